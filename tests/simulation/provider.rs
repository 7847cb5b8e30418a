//! A provider with the habits and faults of real ones, and the application that takes its access tokens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use sidegate::clock::Clock;
use sidegate::oidc::ProviderError;
use sidegate::oidc::provider::{Grant, RefreshRequest};
use sidegate::oidc::types::{AccessToken, RefreshToken, TokenSet};
use tokio::time::{Instant, sleep};

use crate::dice::Dice;
use crate::world::Alive;

/// An access token's life.
pub(crate) const LIFE: Duration = Duration::from_secs(300);

/// What a provider does with refresh tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) rotates: bool,
    /// A spent token that comes back ends all tokens of its login.
    pub(crate) kills_family: bool,
    pub(crate) leeway: Duration,
    pub(crate) kills_access_token: bool,
}

impl Rules {
    pub(crate) const FAMILY: Self =
        Self { rotates: true, kills_family: true, leeway: Duration::ZERO, kills_access_token: false };
    pub(crate) const TOKEN: Self = Self { kills_family: false, ..Self::FAMILY };
    pub(crate) const LEEWAY: Self = Self { leeway: Duration::from_secs(30), ..Self::FAMILY };
    pub(crate) const NO_ROTATION: Self = Self { rotates: false, ..Self::TOKEN };
}

/// Shares of calls that go wrong.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    /// Three seconds late.
    pub(crate) stalls: f64,
    /// Later than any patience; committed.
    pub(crate) hangs: f64,
    pub(crate) server_error: f64,
    pub(crate) rate_limited: f64,
    /// The connection breaks after the provider has rotated.
    pub(crate) lost_answer: f64,
    /// It breaks before.
    pub(crate) lost_request: f64,
    /// Seconds since the beginning in which it answers 503, or nobody.
    pub(crate) down: Option<(u64, u64)>,
    /// In which it refuses our client.
    pub(crate) refuses: Option<(u64, u64)>,
}

#[derive(Debug, Default)]
struct Family {
    live: BTreeMap<u64, ()>,
    spent: BTreeMap<u64, Instant>,
    dead: bool,
    newest_access: u64,
}

#[derive(Debug)]
pub(crate) struct Provider {
    rules: Rules,
    weather: Weather,
    dice: Dice,
    clock: Clock,
    began: Instant,
    families: Mutex<Vec<Family>>,
    access: Mutex<BTreeMap<u64, (usize, Instant)>>,
    serial: Mutex<u64>,
    calls: AtomicUsize,
}

impl Provider {
    pub(crate) fn new(rules: Rules, weather: Weather, dice: Dice, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            rules,
            weather,
            dice,
            clock,
            began: Instant::now(),
            families: Mutex::default(),
            access: Mutex::default(),
            serial: Mutex::default(),
            calls: AtomicUsize::new(0),
        })
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    /// A user logs in.
    pub(crate) fn login(&self) -> TokenSet {
        let family = {
            let mut families = self.families.lock();
            families.push(Family::default());
            families.len() - 1
        };
        let mut tokens = self.issue(family);
        if tokens.refresh_token.is_none() {
            tokens.refresh_token = Some(RefreshToken::new(format!("r.{family}.0")));
        }
        tokens
    }

    /// Whether the application takes an access token. It has a clock of its own, which is right.
    pub(crate) fn accepts(&self, token: &AccessToken) -> bool {
        let serial: u64 = token.expose().rsplit('.').next().and_then(|text| text.parse().ok()).unwrap_or_default();
        let Some((family, until)) = self.access.lock().get(&serial).copied() else { return false };
        let newest = self.families.lock().get(family).map_or(0, |family| family.newest_access);
        Instant::now() < until && (!self.rules.kills_access_token || serial == newest)
    }

    fn issue(&self, family: usize) -> TokenSet {
        let serial = {
            let mut serial = self.serial.lock();
            *serial += 1;
            *serial
        };
        self.access.lock().insert(serial, (family, Instant::now() + LIFE));
        if let Some(family) = self.families.lock().get_mut(family) {
            family.newest_access = serial;
            family.live.insert(serial, ());
        }
        let rotated = self.rules.rotates.then(|| RefreshToken::new(format!("r.{family}.{serial}")));
        TokenSet {
            access_token: AccessToken::new(format!("a.{family}.{serial}")),
            access_expires: Some(self.clock.now() + LIFE),
            refresh_token: rotated,
            refresh_expires: None,
            id_token: None,
            scope: None,
        }
    }

    fn commit(&self, token: &str) -> Result<TokenSet, ProviderError> {
        let dead = Err(ProviderError::Dead { reason: "invalid_grant" });
        let mut parts = token.split('.').skip(1).filter_map(|part| part.parse::<u64>().ok());
        let (Some(family), Some(serial)) = (parts.next(), parts.next()) else { return dead };
        let family = family as usize;
        if self.rules.rotates {
            let mut families = self.families.lock();
            let Some(found) = families.get_mut(family) else { return dead };
            if found.dead {
                return dead;
            }
            if found.live.remove(&serial).is_some() {
                found.spent.insert(serial, Instant::now());
            } else {
                let forgiven = found.spent.get(&serial).is_some_and(|at| at.elapsed() < self.rules.leeway);
                if !forgiven {
                    found.dead = self.rules.kills_family;
                    return dead;
                }
            }
        }
        Ok(self.issue(family))
    }

    fn within(&self, span: Option<(u64, u64)>) -> bool {
        span.is_some_and(|(from, to)| (from..to).contains(&self.began.elapsed().as_secs()))
    }

    async fn answer(&self, token: &str) -> Result<TokenSet, ProviderError> {
        let Weather { stalls, hangs, server_error, rate_limited, lost_answer, lost_request, down, refuses } =
            self.weather;
        self.calls.fetch_add(1, Ordering::Relaxed);
        let took = self.dice.log_normal(150.0, 0.5);
        sleep(took / 2).await;
        let unavailable = |reason, retry_after: Option<u64>| ProviderError::Unavailable {
            reason,
            retry_after: retry_after.map(Duration::from_secs),
        };
        if self.within(down) {
            if self.dice.chance(0.3) {
                sleep(Duration::from_secs(60)).await;
            }
            return Err(unavailable("server_error", None));
        }
        if self.within(refuses) {
            return Err(ProviderError::Refused { reason: "invalid_client" });
        }
        if self.dice.chance(server_error) {
            return Err(unavailable("server_error", None));
        }
        if self.dice.chance(rate_limited) {
            return Err(unavailable("rate_limited", Some(1 + self.dice.roll() % 20)));
        }
        if self.dice.chance(lost_request) {
            return Err(ProviderError::Ambiguous { reason: "connection_lost" });
        }
        let answer = self.commit(token);
        if self.dice.chance(stalls) {
            sleep(Duration::from_secs(3)).await;
        }
        if self.dice.chance(hangs) {
            sleep(Duration::from_secs(60)).await;
        }
        if self.dice.chance(lost_answer) {
            return Err(ProviderError::Ambiguous { reason: "connection_lost" });
        }
        sleep(took / 2).await;
        answer
    }
}

/// A replica's way to the provider: a process that is dead hears no answer.
pub(crate) struct Line {
    pub(crate) provider: Arc<Provider>,
    pub(crate) alive: Alive,
}

#[async_trait]
impl Grant for Line {
    async fn refresh(&self, request: RefreshRequest<'_>) -> Result<TokenSet, ProviderError> {
        self.alive.check().await;
        let answer = self.provider.answer(request.token.expose()).await;
        self.alive.check().await;
        answer
    }
}
