//! Sessions as a Keycloak of medium size makes them, before a coordinator, with nothing around it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic, reason = "test code that two tests share")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use base64_simd::URL_SAFE_NO_PAD;
use sidegate::clock::{Clock, Timestamp};
use sidegate::crypto::keyring::{Key, Keyring};
use sidegate::oidc::ProviderError;
use sidegate::oidc::provider::{Grant, RefreshRequest};
use sidegate::oidc::types::{AccessToken, IdToken, Identity, Login, RefreshToken, TokenSet};
use sidegate::refresh::coordinator::{Freshened, Handles};
use sidegate::refresh::{Coordinator, Demand, Observer, OnReuse, Settings};
use sidegate::session::jar::Jar;
use sidegate::session::model::{Handle, Session, SessionId};
use sidegate::session::settings::{Layout, SameSite, Store};
use sidegate::web::origin::Origin;

const START: Timestamp = Timestamp::from_secs(1_800_000_000);
pub const MIB: usize = 1024 * 1024;
struct Quiet;
impl Observer for Quiet {}

struct Names(Jar);

impl Handles for Names {
    fn handle(&self, session: &Session) -> Option<Handle> {
        self.0.handle(session)
    }
    fn index_key(&self, now: Timestamp) -> u16 {
        self.0.sealing_key_id(now)
    }
}

/// Answers at once, with tokens as a Keycloak of medium size gives them: about 1400, 700 and 1200 characters.
struct Keycloak {
    clock: Clock,
    calls: AtomicUsize,
}

/// A token like a JWT that does not compress.
fn token(number: usize, kind: usize, length: usize) -> String {
    let mut state = (number as u64) << 8 | kind as u64;
    let bytes: Vec<u8> = (0..length * 3 / 4)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        })
        .collect();
    let (payload, signature) = bytes.split_at(bytes.len().saturating_sub(256));
    format!(
        "{}.{}.{}",
        URL_SAFE_NO_PAD.encode_to_string(br#"{"alg":"RS256","kid":"1"}"#),
        URL_SAFE_NO_PAD.encode_to_string(payload),
        URL_SAFE_NO_PAD.encode_to_string(signature)
    )
    .into_boxed_str()
    .into_string()
}

impl Keycloak {
    fn tokens(&self, number: usize) -> TokenSet {
        TokenSet {
            access_token: AccessToken::new(token(number, 0, 1400)),
            access_expires: Some(self.clock.now() + Duration::from_secs(300)),
            refresh_token: Some(RefreshToken::new(token(number, 1, 700))),
            refresh_expires: None,
            id_token: Some(IdToken::new(token(number, 2, 1200))),
            scope: Some("openid profile email".into()),
        }
    }
}

#[async_trait]
impl Grant for Keycloak {
    async fn refresh(&self, _: RefreshRequest<'_>) -> Result<TokenSet, ProviderError> {
        Ok(self.tokens(1 << 32 | self.calls.fetch_add(1, Ordering::Relaxed)))
    }
}

pub struct Rig {
    clock: Clock,
    provider: Arc<Keycloak>,
    jar: Jar,
    pub coordinator: Arc<Coordinator>,
}

impl Rig {
    pub fn new(memory: usize) -> Self {
        let clock = Clock::manual(START);
        let ours = sidegate::session::Settings {
            cookie_name: "sidegate".into(),
            same_site: SameSite::Strict,
            form_post: false,
            partitioned: false,
            public: Origin::parse("https://app.example.com").unwrap(),
            issuer: "https://login.example.com".into(),
            providers: Vec::new(),
            client_id: "app".into(),
            max_age: Duration::from_secs(12 * 3600),
            idle_timeout: None,
            max_refreshes: 0,
            header_budget: 7600,
            claims: vec!["email".into()],
            id_token_needed: false,
            store: Store::Cookie,
            layout: Layout::Single,
            prefix: "/auth".into(),
        };
        let ring = Keyring::new(vec![Key::generate()]).unwrap();
        let settings = Settings {
            before_expiry: Duration::from_secs(60),
            after: None,
            timeout: Duration::from_secs(8),
            wait: Duration::from_secs(10),
            grace: Duration::from_secs(60),
            recovery: Duration::from_secs(24 * 3600),
            memory,
            max_refreshes: 0,
            on_reuse: OnReuse::Reauthenticate,
            rotation: None,
            leeway: Duration::ZERO,
            kills_access_token: false,
            replica: None,
        };
        let provider = Arc::new(Keycloak { clock: clock.clone(), calls: AtomicUsize::new(0) });
        let names = Arc::new(Names(Jar::new(ours.clone(), ring.clone())));
        let coordinator = Coordinator::new(settings, provider.clone(), names, clock.clone(), Arc::new(Quiet));
        Self { clock, provider, jar: Jar::new(ours, ring), coordinator }
    }

    /// A user's session whose access token is over.
    pub fn session(&self, number: usize) -> Arc<Session> {
        let identity = Identity {
            subject: format!("f:0b1c2d3e-aaaa-bbbb-cccc-1234567890ab:{number}"),
            sid: Some("2a8ad1cb-9c5c-4a1c-8f4b-7c2f0f0f0f0f".into()),
            auth_time: Some(1_800_000_000),
            acr: Some("1".into()),
            claims: BTreeMap::from([("email".to_owned(), format!("user-{number}@example.com").into())]),
        };
        let mut tokens = self.provider.tokens(number);
        tokens.access_expires = Some(self.clock.now());
        let login = Login { tokens, identity, dpop: None };
        // Ids are random; the first byte chooses among the engine's parts.
        let id = (number as u128).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes();
        let (settings, key, then) =
            (self.jar.settings(), self.jar.sealing_key_id(START), self.clock.now() - Duration::from_secs(300));
        Arc::new(Session::begin(login, [1; 16], SessionId(id), key, settings, then))
    }

    pub async fn visit(&self, session: &Arc<Session>) -> Arc<Session> {
        match self.coordinator.freshen(Arc::clone(session), Demand::IfDue).await {
            Freshened::Use { session, .. } => session,
            other => panic!("{other:?}"),
        }
    }

    /// Whether the old cookie still finds its successor, without another call.
    pub async fn remembers(&self, number: usize) -> bool {
        let session = self.session(number);
        self.coordinator.newest(session.id).is_some()
    }

    pub fn calls(&self) -> usize {
        self.provider.calls.load(Ordering::Relaxed)
    }
}

/// Bytes of the process that are in memory.
pub fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
