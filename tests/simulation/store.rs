//! The shared store, in memory, with the faults of one across a network.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use sidegate::refresh::shared::{Away, Owner, Rung, Shared};
use sidegate::session::model::Handle;
use tokio::time::{Instant, sleep};

use crate::dice::Dice;
use crate::world::Alive;

/// Patience per operation, as `redis.timeout`.
const PATIENCE: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// Share of attempts that get no answer; half of them were carried out.
    pub(crate) failing: f64,
    /// Seconds since the beginning in which nobody gets an answer.
    pub(crate) away: Option<(u64, u64)>,
    /// Seconds after which it restarts and has lost everything.
    pub(crate) loses_all_at: Option<u64>,
    /// Of so many milliseconds each, it answers nobody in so many: it lives, but does other things.
    pub(crate) hiccups: Option<(u64, u64)>,
    /// Every operation takes up to so many milliseconds.
    pub(crate) slow: u64,
}

#[derive(Debug)]
struct Kept {
    rung: Rung,
    owner: Option<Owner>,
    until: Instant,
}

#[derive(Debug)]
pub(crate) struct Store {
    faults: Faults,
    dice: Dice,
    began: Instant,
    kept: Mutex<BTreeMap<Handle, Kept>>,
    lost: Mutex<bool>,
}

impl Store {
    pub(crate) fn new(faults: Faults, dice: Dice) -> Arc<Self> {
        Arc::new(Self { faults, dice, began: Instant::now(), kept: Mutex::default(), lost: Mutex::new(false) })
    }

    async fn carry_out<T>(&self, act: impl Fn(&mut BTreeMap<Handle, Kept>) -> T) -> Result<T, Away> {
        for _ in 0..2 {
            let at = self.began.elapsed().as_secs();
            if self.faults.loses_all_at.is_some_and(|limit| at >= limit)
                && !std::mem::replace(&mut *self.lost.lock(), true)
            {
                self.kept.lock().clear();
            }
            let away = self.faults.away.is_some_and(|(from, to)| (from..to).contains(&at));
            let milli = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            let away = away || self.faults.hiccups.is_some_and(|(of, dumb)| milli % of < dumb);
            let failed = away || self.dice.chance(self.faults.failing);
            sleep(Duration::from_micros(200 + self.dice.roll() % (1 + self.faults.slow * 1000))).await;
            let done = (!failed || !away && self.dice.chance(0.5)).then(|| {
                let mut kept = self.kept.lock();
                kept.retain(|_, kept| Instant::now() < kept.until);
                act(&mut kept)
            });
            match done {
                Some(done) if !failed => return Ok(done),
                _ => sleep(PATIENCE).await,
            }
        }
        Err(Away)
    }
}

fn height(rung: &Rung) -> u8 {
    match rung {
        Rung::Absent => 0,
        Rung::Locked => 1,
        Rung::Dead => 2,
        Rung::Renewed(_) => 3,
    }
}

/// A replica's connection.
pub(crate) struct Connection {
    pub(crate) store: Arc<Store>,
    pub(crate) alive: Alive,
}

impl Connection {
    async fn carry_out<T>(&self, act: impl Fn(&mut BTreeMap<Handle, Kept>) -> T) -> Result<T, Away> {
        self.alive.check().await;
        let done = self.store.carry_out(act).await;
        self.alive.check().await;
        done
    }
}

#[async_trait]
impl Shared for Connection {
    async fn read(&self, handle: Handle) -> Result<Rung, Away> {
        self.carry_out(|kept| kept.get(&handle).map_or(Rung::Absent, |kept| kept.rung.clone())).await
    }

    async fn lock(&self, handle: Handle, owner: Owner, life: Duration) -> Result<Rung, Away> {
        self.carry_out(|kept| match kept.get(&handle) {
            // Its first answer was lost.
            Some(found) if found.owner == Some(owner) => Rung::Absent,
            Some(found) => found.rung.clone(),
            None => {
                let until = Instant::now() + life;
                kept.insert(handle, Kept { rung: Rung::Locked, owner: Some(owner), until });
                Rung::Absent
            }
        })
        .await
    }

    async fn renew(&self, handle: Handle, owner: Owner, life: Duration) -> Result<bool, Away> {
        self.carry_out(|kept| match kept.get_mut(&handle) {
            Some(found) if found.owner == Some(owner) => {
                found.until = Instant::now() + life;
                true
            }
            _ => false,
        })
        .await
    }

    async fn settle(&self, handle: Handle, rung: Rung, life: Duration) -> Result<(), Away> {
        self.carry_out(|kept| {
            let stands = kept.get(&handle).map_or(0, |kept| height(&kept.rung));
            if height(&rung) > stands {
                kept.insert(handle, Kept { rung: rung.clone(), owner: None, until: Instant::now() + life });
            }
        })
        .await
    }

    async fn unlock(&self, handle: Handle, owner: Owner) {
        let _ = self
            .carry_out(|kept| {
                if kept.get(&handle).is_some_and(|kept| kept.owner == Some(owner)) {
                    kept.remove(&handle);
                }
            })
            .await;
    }

    fn acknowledge(&self, handle: Handle, life: Duration) {
        if let Some(found) = self.store.kept.lock().get_mut(&handle) {
            found.until = found.until.min(Instant::now() + life);
        }
    }
}
