//! The refresh engine's ladder, in one value under one key.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use redis::{Cmd, Value};

use super::{Store, millis};
use crate::refresh::shared::{HICCUP, Owner, Rung, Shared};
use crate::session::model::Handle;
use crate::session::store::Away;

const SCRIPT: &str = include_str!("ladder.lua");

/// First bytes of the value.
const LOCK: u8 = b'L';
const DEAD: u8 = b'D';
const OK: u8 = b'O';

impl Store {
    fn climb(&self, handle: Handle, act: &str, value: &[u8], life: Duration) -> Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg(SCRIPT).arg(1).arg(self.key('h', handle.0)).arg(act).arg(value).arg(millis(life));
        command
    }
}

fn locked_by(owner: Owner) -> [u8; 17] {
    let mut value = [LOCK; 17];
    let (_, rest) = value.split_at_mut(1);
    rest.copy_from_slice(&owner);
    value
}

fn rung(value: &Value) -> Rung {
    let Value::BulkString(bytes) = value else { return Rung::Absent };
    match bytes.split_first() {
        Some((&LOCK, _)) => Rung::Locked,
        Some((&DEAD, _)) => Rung::Dead,
        Some((&OK, sealed)) => Rung::Renewed(sealed.to_vec()),
        // Written by somebody else: nothing that we could build on.
        _ => Rung::Absent,
    }
}

#[async_trait]
impl Shared for Arc<Store> {
    async fn read(&self, handle: Handle) -> Result<Rung, Away> {
        let mut command = redis::cmd("GET");
        command.arg(self.key('h', handle.0));
        Ok(rung(&self.link.ask(&command).await?))
    }

    async fn lock(&self, handle: Handle, owner: Owner, life: Duration) -> Result<Rung, Away> {
        let command = self.climb(handle, "lock", &locked_by(owner), life);
        Ok(rung(&self.link.ask(&command).await?))
    }

    async fn renew(&self, handle: Handle, owner: Owner, life: Duration) -> Result<bool, Away> {
        let command = self.climb(handle, "renew", &locked_by(owner), life);
        Ok(self.link.ask(&command).await? == Value::Int(1))
    }

    async fn settle(&self, handle: Handle, rung: Rung, life: Duration) -> Result<(), Away> {
        let value = match rung {
            Rung::Absent | Rung::Locked => return Ok(()),
            Rung::Dead => vec![DEAD],
            Rung::Renewed(sealed) => [&[OK], sealed.as_slice()].concat(),
        };
        self.link.ask(&self.climb(handle, "settle", &value, life)).await.map(drop)
    }

    async fn unlock(&self, handle: Handle, owner: Owner) {
        // Its life ends anyway.
        let command = self.climb(handle, "unlock", &locked_by(owner), Duration::ZERO);
        let _ = self.link.ask(&command).await;
    }

    fn is_gone(&self) -> bool {
        self.link.is_refused() || self.link.is_away_since(HICCUP)
    }

    fn acknowledge(&self, handle: Handle, life: Duration) {
        if self.link.number().is_none() {
            return;
        }
        let store = Self::clone(self);
        tokio::spawn(async move {
            let command = store.climb(handle, "delivered", &[], life);
            let _ = store.link.ask(&command).await;
        });
    }
}
