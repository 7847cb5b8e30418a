//! What replicas share about one refresh token: a lock and its result under one name, so that only one of them spends
//! it and all of them have what came of it.
//!
//! ```text
//! absent < LOCK < DEAD < OK      a write may only go up
//! ```
//!
//! A success therefore always beats a lock or a failure that a slower replica writes later. The store sees sealed
//! bytes and keyed names only; what opens them stands in the browser's cookie.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep};

use crate::session::model::Handle;
pub use crate::session::store::Away;

/// Names the holder of a lock.
pub type Owner = [u8; 16];

/// What stands under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rung {
    Absent,
    /// Somebody is at it.
    Locked,
    /// The provider says that the token is dead.
    Dead,
    /// The sealed next generation.
    Renewed(Vec<u8>),
}

/// The store, as the engine uses it.
#[async_trait]
pub trait Shared: Send + Sync {
    /// What stands there.
    async fn read(&self, handle: Handle) -> Result<Rung, Away>;
    /// Takes the lock for so long if nothing stands there, and says what stood there before.
    async fn lock(&self, handle: Handle, owner: Owner, life: Duration) -> Result<Rung, Away>;
    /// Keeps an own lock for so long from now; false when it is no longer ours.
    async fn renew(&self, handle: Handle, owner: Owner, life: Duration) -> Result<bool, Away>;
    /// Writes a result, upwards only.
    async fn settle(&self, handle: Handle, rung: Rung, life: Duration) -> Result<(), Away>;
    /// Gives an own lock back.
    async fn unlock(&self, handle: Handle, owner: Owner);
    /// The result was delivered: so long is enough from now on. Nobody waits for it.
    fn acknowledge(&self, handle: Handle, life: Duration);
    /// It refuses, or has been away for longer than [`HICCUP`]: to ask again is in vain.
    fn is_gone(&self) -> bool {
        false
    }
}

/// What to do while the store is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// Go on as a single replica would.
    Local,
    /// Refresh nothing: a token that is over gets 503.
    Wait,
}

/// How long a store that says nothing at all is taken for a slow one where a token that is spent twice ends a session.
/// Longer than the pause after which a link looks again for a store that went away.
pub const HICCUP: Duration = Duration::from_secs(3);

/// How long the lock outlives one try: the answer has to be written while it is held.
const LOCK_SLACK: Duration = Duration::from_secs(7);
/// How long a lock is held if its holder is never heard of again.
pub(super) fn lock_life(timeout: Duration) -> Duration {
    timeout + LOCK_SLACK
}

/// What must be left of the lock, beyond one try, for the token request to go out.
const SEND_SLACK: Duration = Duration::from_secs(1);
/// How long a "dead" is believed by all.
pub(super) const DEAD_FOR: Duration = Duration::from_secs(10);
/// How long a holder that was told "dead" looks for another one's success before believing it.
const DOUBT: Duration = Duration::from_secs(2);
/// Waiters look again after these pauses, then after the last one again and again.
const POLLS: [Duration; 5] = [
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(40),
    Duration::from_millis(80),
];

/// How a replica comes to spend a token, or not to.
#[derive(Debug)]
pub(super) enum Claim {
    /// We hold the lock.
    Ours(Held),
    /// There is a result already.
    Settled(Rung),
    /// Another one holds it for longer than we may wait.
    Patience,
}

/// A lock that is ours until then, by our own clock: it is asked again right before the token goes out, so that a
/// process that was paused does not spend it late.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) owner: Owner,
    until: Instant,
    life: Duration,
    timeout: Duration,
}

impl Held {
    fn new(owner: Owner, asked: Instant, timeout: Duration) -> Self {
        let life = lock_life(timeout);
        Self { owner, until: asked + life, life, timeout }
    }

    /// Whether one more try fits, prolonging the lock where it does not.
    pub(super) async fn allows(&mut self, shared: &dyn Shared, handle: Handle) -> Result<bool, Away> {
        let asked = Instant::now();
        if asked + self.timeout + SEND_SLACK < self.until {
            return Ok(true);
        }
        let ours = shared.renew(handle, self.owner, self.life).await?;
        if ours {
            self.until = asked + self.life;
        }
        Ok(ours && Instant::now() + self.timeout + SEND_SLACK < self.until)
    }
}

/// What waiters add to a pause, so that they do not look again all at once: up to a quarter, drawn from the owner's
/// name, which is different for each.
fn jittered(pause: Duration, owner: Owner, poll: u32) -> Duration {
    let drawn = owner.iter().fold(poll, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(*byte)));
    pause + pause.mul_f32(f32::from(drawn.to_be_bytes()[3]) / 1024.0)
}

/// Takes the lock, or waits until there is a result, or becomes the holder once the first one has vanished. A store that
/// gives no answer is asked again for as long as `hold`: another one may be spending the token.
pub(super) async fn claim(
    shared: &dyn Shared,
    handle: Handle,
    owner: Owner,
    timeout: Duration,
    deadline: Instant,
    hold: Duration,
) -> Result<Claim, Away> {
    let mut pauses = POLLS.iter().copied();
    let mut missed = None;
    for poll in 0.. {
        let asked = Instant::now();
        match shared.lock(handle, owner, lock_life(timeout)).await {
            Ok(Rung::Absent) => return Ok(Claim::Ours(Held::new(owner, asked, timeout))),
            Ok(Rung::Locked) => missed = None,
            Ok(settled) => return Ok(Claim::Settled(settled)),
            Err(away) => {
                let since = *missed.get_or_insert(asked);
                if shared.is_gone() || Instant::now() >= since + hold {
                    return Err(away);
                }
            }
        }
        let pause = pauses.next().or(POLLS.last().copied()).unwrap_or_default();
        let pause = jittered(pause, owner, poll);
        if Instant::now() + pause >= deadline {
            return Ok(Claim::Patience);
        }
        sleep(pause).await;
    }
    Ok(Claim::Patience)
}

/// Who is told "dead" looks for a success of somebody else's first: a lock can be lost when the store fails over, and
/// then two have spent one token.
pub(super) async fn doubt(shared: &dyn Shared, handle: Handle) -> Option<Vec<u8>> {
    let end = Instant::now() + DOUBT;
    let mut pauses = POLLS.iter().copied();
    loop {
        if let Ok(Rung::Renewed(sealed)) = shared.read(handle).await {
            return Some(sealed);
        }
        let pause = pauses.next().or(POLLS.last().copied()).unwrap_or_default();
        if Instant::now() + pause >= end {
            return None;
        }
        sleep(pause).await;
    }
}
