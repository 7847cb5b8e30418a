//! Used login attempts.

use std::time::Duration;

use async_trait::async_trait;
use redis::Value;

use super::{Store, millis};
use crate::crypto::random;
use crate::session::store::{Away, Name, UsedAttempts};

/// The caller's own mark is there when the answer to its first try was lost: it still is the first.
const SCRIPT: &str = "if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end \
                      return redis.call('GET', KEYS[1]) == ARGV[1] and 1 or 0";

#[async_trait]
impl UsedAttempts for Store {
    async fn take(&self, name: Name, life: Duration) -> Result<bool, Away> {
        let mut command = redis::cmd("EVAL");
        command.arg(SCRIPT).arg(1).arg(self.key('a', name.0)).arg(&random::bytes::<16>()).arg(millis(life));
        Ok(self.link.ask(&command).await? == Value::Int(1))
    }
}
