//! Sessions of which the browser has only a ticket.

use std::time::Duration;

use async_trait::async_trait;
use redis::Value;

use super::{Store, millis};
use crate::session::store::{Away, Kept, Name, Tickets};

const SCRIPT: &str = include_str!("tickets.lua");

fn kept(value: &[u8]) -> Option<Kept> {
    let (generation, sealed) = value.split_at_checked(memchr::memchr(b':', value)?)?;
    let generation = std::str::from_utf8(generation).ok()?.parse().ok()?;
    Some(Kept { generation, sealed: sealed.split_first()?.1.to_vec() })
}

#[async_trait]
impl Tickets for Store {
    async fn load(&self, name: Name) -> Result<Option<Kept>, Away> {
        let mut command = redis::cmd("GET");
        command.arg(self.key('t', name.0));
        match self.link.ask(&command).await? {
            Value::BulkString(value) => Ok(kept(&value)),
            _ => Ok(None),
        }
    }

    async fn save(&self, name: Name, entry: Kept, create: bool, life: Duration) -> Result<bool, Away> {
        let mut command = redis::cmd("EVAL");
        command.arg(SCRIPT).arg(1).arg(self.key('t', name.0));
        command.arg(entry.generation).arg(entry.sealed).arg(u8::from(create)).arg(millis(life));
        Ok(self.link.ask(&command).await? == Value::Int(1))
    }

    async fn remove(&self, name: Name) -> Result<(), Away> {
        let mut command = redis::cmd("DEL");
        command.arg(self.key('t', name.0));
        self.link.ask(&command).await.map(drop)
    }
}
