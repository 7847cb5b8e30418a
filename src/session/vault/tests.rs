use std::collections::HashMap;

use async_trait::async_trait;
use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;

use super::super::model::tests::{NOW, at, session, settings, tokens};
use super::*;
use crate::crypto::keyring::{Key, Keyring};
use crate::session::Settings;
use crate::session::store::{Kept, Name};

/// A store in memory, without a clock.
#[derive(Debug, Default)]
struct Shelf {
    entries: Mutex<HashMap<Name, Kept>>,
    away: Mutex<bool>,
}

impl Shelf {
    fn check(&self) -> Result<(), Away> {
        if *self.away.lock() { Err(Away) } else { Ok(()) }
    }
}

#[async_trait]
impl Tickets for Shelf {
    async fn load(&self, name: Name) -> Result<Option<Kept>, Away> {
        self.check()?;
        Ok(self.entries.lock().get(&name).cloned())
    }
    async fn save(&self, name: Name, kept: Kept, create: bool, _: Duration) -> Result<bool, Away> {
        self.check()?;
        let mut entries = self.entries.lock();
        let goes = entries.get(&name).map_or(create, |now| now.generation <= kept.generation);
        if goes {
            entries.insert(name, kept);
        }
        Ok(goes)
    }
    async fn remove(&self, name: Name) -> Result<(), Away> {
        self.check()?;
        self.entries.lock().remove(&name);
        Ok(())
    }
}

fn vault(settings: Settings, shelf: &Arc<Shelf>, key: &Key) -> Vault {
    let jar = Jar::new(settings, Keyring::new(vec![key.clone()]).unwrap());
    Vault::new(Arc::new(jar), Some(Arc::clone(shelf) as _), Clock::manual(NOW))
}

fn in_store() -> Settings {
    Settings { store: Store::Tickets, ..settings() }
}

fn request(vault: &Vault, session: &Session) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for cookie in vault.jar().seal(session, &Presented::default(), NOW).unwrap() {
        let pair = cookie.to_str().unwrap().split(';').next().unwrap().to_owned();
        headers.append(COOKIE, HeaderValue::try_from(pair).unwrap());
    }
    headers
}

fn next(vault: &Vault, session: &Session) -> Session {
    let own = vault.jar().handle(session).unwrap();
    session.refreshed(tokens("access-1", Some("refresh-1")), own, session.index_key, at(10))
}

fn large() -> Session {
    let noise: String =
        (0..9000).map(|n| char::from(b'a' + u8::try_from((n * n * 7 + n / 11) % 26).unwrap())).collect();
    session(tokens(&format!("x.{noise}"), Some("refresh-0")))
}

/// Contract 2.5: ticket cookies stay under 1200 bytes, and hold no token.
#[tokio::test]
async fn the_browser_gets_a_ticket_and_the_store_the_session() {
    let (shelf, key) = (Arc::new(Shelf::default()), Key::generate());
    let vault = vault(in_store(), &shelf, &key);
    let placed = vault.place(large(), NOW).await.unwrap();
    let headers = request(&vault, &placed);
    let cookies: Vec<_> = headers.get_all(COOKIE).iter().collect();
    assert!(cookies.len() == 1 && cookies[0].len() < 300, "{cookies:?}");
    let State::Open(found) = vault.open(&headers, false, NOW).await.state else { panic!() };
    assert_eq!(*found, placed);
    let kept = shelf.entries.lock().values().next().unwrap().clone();
    let readable = String::from_utf8_lossy(&kept.sealed).into_owned();
    for secret in ["refresh-0", "alice-4711", "abc"] {
        assert!(!readable.contains(secret));
    }
    // Another ticket, another key: neither opens it.
    let stranger = Ticket::new(placed.id, placed.index_key, placed.created);
    assert_eq!(vault.jar().open_entry(&stranger, &kept), None);
    let elsewhere = self::vault(in_store(), &shelf, &Key::generate());
    assert_eq!(elsewhere.jar().open_entry(placed.ticket.as_ref().unwrap(), &kept), None);
    assert_eq!(vault.jar().open_entry(placed.ticket.as_ref().unwrap(), &Kept { generation: 1, ..kept }), None);
}

#[tokio::test]
async fn gone_is_nobody_and_away_is_somebody() {
    let (shelf, key) = (Arc::new(Shelf::default()), Key::generate());
    let vault = vault(in_store(), &shelf, &key);
    let placed = vault.place(session(tokens("a", Some("r"))), NOW).await.unwrap();
    let headers = request(&vault, &placed);
    *shelf.away.lock() = true;
    assert!(matches!(vault.open(&headers, false, NOW).await.state, State::Kept(ticket) if ticket.id == placed.id));
    assert_eq!(vault.place(session(tokens("a", Some("r"))), NOW).await.unwrap_err(), Unplaced::Away);
    *shelf.away.lock() = false;
    vault.remove(placed.ticket.as_ref().unwrap()).await;
    assert_eq!(vault.open(&headers, false, NOW).await.state, State::Broken, "its cookie is expired");
}

/// A refresh does not bring back what a logout removed, and gives way to a replica that was ahead.
#[tokio::test]
async fn the_next_generation_is_kept_unless_it_is_too_late() {
    let (shelf, key) = (Arc::new(Shelf::default()), Key::generate());
    let vault = vault(in_store(), &shelf, &key);
    let first = vault.place(session(tokens("a", Some("refresh-0"))), NOW).await.unwrap();
    let headers = request(&vault, &first);
    let second = next(&vault, &first);
    assert!(matches!(vault.keep(second.clone()).await, Keeping::Kept(kept) if *kept == second));
    let State::Open(found) = vault.open(&headers, false, at(10)).await.state else { panic!() };
    assert_eq!(*found, second, "by the ticket that the browser had");
    assert!(!vault.write(&first, NOW).await.unwrap(), "an older one does not come back");

    let third = next(&vault, &second);
    vault.keep(third.clone()).await;
    assert!(matches!(vault.keep(second.clone()).await, Keeping::Newer(newer) if *newer == third));
    vault.remove(first.ticket.as_ref().unwrap()).await;
    assert!(matches!(vault.keep(next(&vault, &third)).await, Keeping::Gone));
    assert!(shelf.entries.lock().is_empty());
}

/// Contract 2.5: over the budget the session goes to the store; without one the login is refused.
#[tokio::test]
async fn what_is_too_large_for_cookies_goes_to_the_store() {
    let (shelf, key) = (Arc::new(Shelf::default()), Key::generate());
    let vault = vault(settings(), &shelf, &key);
    let small = vault.place(session(tokens("a", Some("r"))), NOW).await.unwrap();
    assert!(small.ticket.is_none() && shelf.entries.lock().is_empty());
    let placed = vault.place(large(), NOW).await.unwrap();
    let headers = request(&vault, &placed);
    assert!(matches!(vault.open(&headers, true, NOW).await.state, State::Open(found) if *found == placed));
    // At a refresh too.
    let grown = Session { access_token: large().access_token, ..next(&vault, &small) };
    assert!(matches!(vault.keep(grown).await, Keeping::Kept(kept) if kept.ticket.is_some()));

    let alone = Vault::new(Arc::clone(vault.jar()), None, Clock::manual(NOW));
    assert!(matches!(alone.place(large(), NOW).await, Err(Unplaced::TooLarge(_))));
    assert_eq!(alone.open(&headers, true, NOW).await.state, State::Broken, "there is no store any more");
}

/// COOKIE-25: the bounds hold from what is sealed, in the store too.
#[tokio::test]
async fn a_session_in_the_store_ends_by_time() {
    let (shelf, key) = (Arc::new(Shelf::default()), Key::generate());
    let vault = vault(Settings { idle_timeout: Some(Duration::from_secs(600)), ..in_store() }, &shelf, &key);
    let placed = vault.place(session(tokens("a", Some("r"))), NOW).await.unwrap();
    let headers = request(&vault, &placed);
    assert!(matches!(vault.open(&headers, false, at(599)).await.state, State::Open(_)));
    assert!(matches!(vault.open(&headers, false, at(600)).await.state, State::Over(lifecycle::Ended::Idle, _)));
    let mut touched = placed.clone();
    touched.touch(at(500));
    assert!(vault.write(&touched, at(500)).await.unwrap());
    assert!(matches!(vault.open(&headers, false, at(1000)).await.state, State::Open(_)));
    assert!(matches!(vault.open(&headers, false, at(13 * 3600)).await.state, State::Over(_, _)));
}
