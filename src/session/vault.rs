//! Sessions wherever they are kept: in the browser's cookies, or in the store with a ticket in the cookie.
//!
//! The jar reads and writes cookies and asks nobody. What takes a look into the store is here.
//!
//! ```text
//! a request   open:  cookies ─► session | ticket ─► store ─► session
//! a login     place: session ─► cookies, or the store when it is configured, or when it is too large for cookies
//! a refresh   keep:  the next generation is in the store before anybody uses it; what a logout removed stays removed
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;

use super::Session;
use super::jar::{Jar, Opened, Presented, TooLarge};
use super::lifecycle::{self, State};
use super::settings::Store;
use super::store::{Away, Name, Tickets};
use super::ticket::Ticket;
use crate::clock::{Clock, Timestamp};

/// Tries at once to write what must not be lost, and the pause between them.
const TRIES: usize = 3;
const PAUSE: Duration = Duration::from_millis(100);
/// After those, in the background, once a second: how often. By then the store is back, or the session's requests were
/// refused for so long that it makes no difference.
const LATER_TRIES: usize = 300;
const LATER_PAUSE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Clone)]
pub struct Vault {
    jar: Arc<Jar>,
    tickets: Option<Arc<dyn Tickets>>,
    clock: Clock,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").finish_non_exhaustive()
    }
}

/// Why a session could not be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unplaced {
    /// It does not fit cookies, and there is no store.
    TooLarge(TooLarge),
    /// The store does not answer.
    Away,
}

/// What became of the next generation.
#[derive(Debug)]
pub enum Keeping {
    /// Use it.
    Kept(Box<Session>),
    /// Another replica was ahead: use this one.
    Newer(Box<Session>),
    /// The session was ended meanwhile.
    Gone,
}

impl Vault {
    /// With the jar of this generation of the configuration, and the store if there is one.
    pub fn new(jar: Arc<Jar>, tickets: Option<Arc<dyn Tickets>>, clock: Clock) -> Self {
        Self { jar, tickets, clock }
    }

    /// The cookies' keeper.
    pub fn jar(&self) -> &Arc<Jar> {
        &self.jar
    }

    /// What the cookies of a request hold, or what their ticket leads to. [`State::Kept`] stays only when the store does
    /// not answer. `whole`: see [`Jar::open_whole`].
    pub async fn open(&self, headers: &HeaderMap, whole: bool, now: Timestamp) -> Opened {
        let opened = if whole { self.jar.open_whole(headers, now) } else { self.jar.open(headers, now) };
        let State::Kept(ticket) = opened.state else { return opened };
        let state = match self.load(&ticket).await {
            Ok(Some(session)) => lifecycle::judge(Arc::new(session), self.jar.settings(), now),
            Ok(None) => State::Broken,
            Err(Away) => State::Kept(ticket),
        };
        Opened { state, presented: opened.presented }
    }

    /// Puts a session where it belongs, with a ticket when that is the store.
    ///
    /// # Errors
    /// When it can be put nowhere.
    pub async fn place(&self, session: Session, now: Timestamp) -> Result<Session, Unplaced> {
        let wanted = self.jar.settings().store == Store::Tickets && self.tickets.is_some();
        let fits = if wanted { None } else { Some(self.jar.seal(&session, &Presented::default(), now)) };
        let tickets = match (fits, &self.tickets) {
            (Some(Ok(_)), _) => return Ok(session),
            (Some(Err(too_large)), None) => return Err(Unplaced::TooLarge(too_large)),
            (_, Some(tickets)) => tickets,
            (None, None) => return Ok(session),
        };
        let ticket = Ticket::new(session.id, self.jar.sealing_key_id(now), session.created);
        let session = Session { ticket: Some(ticket.clone()), ..session };
        let Some(entry) = self.jar.seal_entry(&session, &ticket) else { return Err(Unplaced::Away) };
        let life = lifecycle::left(&session, self.jar.settings(), now);
        match tickets.save(self.jar.entry_name(&ticket), entry, true, life).await {
            Ok(_) => Ok(session),
            Err(Away) => Err(Unplaced::Away),
        }
    }

    /// Keeps the next generation, before anybody uses it. While the store is away it is tried again in the background:
    /// until then this process has the only copy.
    pub async fn keep(&self, next: Session) -> Keeping {
        let now = self.clock.now();
        if next.ticket.is_none() {
            // It moves into the store when that is configured, or when it has grown too large.
            let stays = next.clone();
            return Keeping::Kept(Box::new(self.place(next, now).await.unwrap_or(stays)));
        }
        for _ in 0..TRIES {
            match self.write(&next, now).await {
                Ok(true) => return Keeping::Kept(Box::new(next)),
                Ok(false) => return self.overtaken(next).await,
                Err(Away) => tokio::time::sleep(PAUSE).await,
            }
        }
        self.write_later(next.clone());
        Keeping::Kept(Box::new(next))
    }

    async fn overtaken(&self, next: Session) -> Keeping {
        let Some(ticket) = &next.ticket else { return Keeping::Kept(Box::new(next)) };
        match self.load(ticket).await {
            Ok(Some(session)) if session.generation >= next.generation => Keeping::Newer(Box::new(session)),
            Ok(None) => Keeping::Gone,
            Ok(Some(_)) | Err(Away) => Keeping::Kept(Box::new(next)),
        }
    }

    /// Writes a session that is in the store already; false when a newer generation stands there, or nothing.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn write(&self, session: &Session, now: Timestamp) -> Result<bool, Away> {
        let (Some(tickets), Some(ticket)) = (&self.tickets, &session.ticket) else { return Ok(true) };
        let Some(entry) = self.jar.seal_entry(session, ticket) else { return Ok(true) };
        let life = lifecycle::left(session, self.jar.settings(), now);
        tickets.save(self.jar.entry_name(ticket), entry, false, life).await
    }

    /// The same in the background, until the store is there.
    pub fn write_later(&self, session: Session) {
        let vault = self.clone();
        tokio::spawn(async move {
            for _ in 0..LATER_TRIES {
                if vault.write(&session, vault.clock.now()).await.is_ok() {
                    break;
                }
                tokio::time::sleep(LATER_PAUSE).await;
            }
        });
    }

    /// Removes what the ticket leads to; in the background when the store does not answer.
    pub async fn remove(&self, ticket: &Ticket) {
        self.remove_entry(self.jar.entry_name(ticket)).await;
    }

    /// The same by its name.
    pub async fn remove_entry(&self, name: Name) {
        let Some(tickets) = &self.tickets else { return };
        if tickets.remove(name).await.is_err() {
            let tickets = Arc::clone(tickets);
            tokio::spawn(async move {
                for _ in 0..LATER_TRIES {
                    tokio::time::sleep(LATER_PAUSE).await;
                    if tickets.remove(name).await.is_ok() {
                        break;
                    }
                }
            });
        }
    }

    async fn load(&self, ticket: &Ticket) -> Result<Option<Session>, Away> {
        let Some(tickets) = &self.tickets else { return Ok(None) };
        let entry = tickets.load(self.jar.entry_name(ticket)).await?;
        Ok(entry.and_then(|entry| self.jar.open_entry(ticket, &entry)))
    }
}

#[cfg(test)]
mod tests;
