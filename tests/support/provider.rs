//! A scriptable OpenID Provider on loopback. Strict where a good provider is strict: exact redirect URIs, PKCE, codes for
//! one use, one client authentication, refresh-token reuse noticed. What it should do differently a test says with
//! [`Switches`]; what it was asked it keeps as [`Call`]s, what it objected to as violations.

pub mod fault;
pub mod modules;
pub mod switches;

use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

pub use fault::{Fault, LogoutFault, Verdict};
pub use modules::{Expect, MODULES, Module};
pub use switches::*;

use super::jose::{self, Key};
use super::leak::Canaries;
use super::text::{self, Pairs, b64u, filler, get, mark, percent};
use super::wire::{self, Answer, Conn, Request, Server};

/// A running provider. Stops when dropped.
#[derive(Debug)]
pub struct ProviderDouble {
    inner: Arc<Inner>,
    server: Server,
}

impl Deref for ProviderDouble {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.inner
    }
}

/// What the tasks of the provider share.
#[derive(Debug)]
pub struct Inner {
    /// `http://127.0.0.1:PORT`.
    pub issuer: String,
    /// What a test may change, at any time.
    pub switches: Mutex<Switches>,
    state: Mutex<State>,
    calls: watch::Sender<Vec<Call>>,
    gates: Mutex<Vec<Arc<Gate>>>,
    /// Added to the wall clock, in seconds.
    ahead: AtomicI64,
    jwks_path: String,
}

/// One request that the provider got.
#[derive(Clone, Debug)]
pub struct Call {
    /// From 0, in the order of arrival.
    pub order: usize,
    /// When it had arrived.
    pub at: Instant,
    pub endpoint: Endpoint,
    pub method: String,
    pub target: String,
    pub headers: Pairs,
    pub query: Pairs,
    pub form: Pairs,
    pub body: Vec<u8>,
    /// Which connection brought it.
    pub connection: u64,
    /// The answer's status; `None` while there is none, 0 when the connection was closed instead.
    pub status: Option<u16>,
}

impl Call {
    /// A parameter of the form or, without one, of the query.
    pub fn param(&self, name: &str) -> Option<&str> {
        get(&self.form, name).or_else(|| get(&self.query, name))
    }

    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        text::header(&self.headers, name)
    }

    /// Whether it is a refresh.
    pub fn is_refresh(&self) -> bool {
        self.endpoint == Endpoint::Token && get(&self.form, "grant_type") == Some("refresh_token")
    }

    /// Whether it is a code exchange.
    pub fn is_code_exchange(&self) -> bool {
        self.endpoint == Endpoint::Token && get(&self.form, "grant_type") == Some("authorization_code")
    }
}

/// A login at the provider, with everything that was issued in it.
#[derive(Clone, Debug)]
pub struct Session {
    pub sub: String,
    pub sid: String,
    pub nonce: Option<String>,
    pub scope: String,
    pub redirect_uri: String,
    pub auth_time: i64,
    pub acr: Option<String>,
    pub alive: bool,
    /// The parameters of the authorization request.
    pub params: Pairs,
    pub access_tokens: Vec<String>,
    pub refresh_tokens: Vec<String>,
    pub id_tokens: Vec<String>,
    /// The thumbprint of the key that the tokens are bound to.
    pub jkt: Option<String>,
}

#[derive(Debug)]
struct Code {
    session: usize,
    used: bool,
    expires: i64,
}

#[derive(Debug)]
struct Access {
    session: usize,
    alive: bool,
    expires: i64,
}

#[derive(Debug)]
struct Refresh {
    session: usize,
    spent: Option<i64>,
    reused: u32,
    expires: Option<i64>,
    /// The answer that spent it.
    answer: Option<Answer>,
}

#[derive(Debug)]
struct State {
    sessions: Vec<Session>,
    codes: HashMap<String, Code>,
    access: HashMap<String, Access>,
    refresh: HashMap<String, Refresh>,
    pushed: HashMap<String, Pairs>,
    violations: Vec<String>,
    reuse_alarms: u32,
    canaries: Canaries,
    /// Of assertions and proofs.
    jtis: HashSet<String>,
    dpop_nonce: String,
    published: Vec<Key>,
    signing: Key,
    ec: Key,
    ed: Key,
    outsider: Key,
    encryption: Key,
    small: Key,
    rotations: usize,
    serial: u64,
}

/// What the provider refuses with.
struct Refusal {
    status: u16,
    error: &'static str,
    description: String,
}

fn refuse<T>(error: &'static str, description: impl Into<String>) -> Result<T, Refusal> {
    let status = if error == "invalid_client" { 401 } else { 400 };
    Err(Refusal { status, error, description: description.into() })
}

/// Whose request it is, by its proof.
enum Proven {
    /// The thumbprint of the key; none without DPoP.
    By(Option<String>),
    /// The proof lacks the nonce: this is the answer.
    Again(Answer),
}

/// Where `MutualTls` writes the SHA-256 of the client's certificate.
pub const CERTIFICATE: &str = "x-test-client-certificate";

/// When a gate holds a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Before the provider acts on it.
    Before,
    /// When it has acted, before it answers.
    After,
}

#[derive(Debug)]
struct Gate {
    endpoint: Endpoint,
    grants: Grants,
    moment: Moment,
    permits: Semaphore,
    waiting: watch::Sender<usize>,
}

/// Holds an endpoint's requests until told otherwise. Dropping it lets all go.
#[derive(Debug)]
pub struct Hold {
    inner: Arc<Inner>,
    gate: Arc<Gate>,
}

impl Hold {
    /// Waits until `n` requests in all have been held, released ones counted too.
    pub async fn wait_for(&self, n: usize) {
        let mut seen = self.gate.waiting.subscribe();
        within("requests at the gate", seen.wait_for(|held| *held >= n)).await.expect("the gate lives");
    }

    /// How many requests have been held so far, released ones counted too.
    pub fn held(&self) -> usize {
        *self.gate.waiting.borrow()
    }

    /// Lets one request go on.
    pub fn release_one(&self) {
        self.gate.permits.add_permits(1);
    }

    /// Lets all go on, those to come too.
    pub fn release(self) {}
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.inner.gates.lock().retain(|g| !Arc::ptr_eq(g, &self.gate));
        self.gate.permits.add_permits(Semaphore::MAX_PERMITS / 2);
    }
}

/// Fails the test when what it waits for does not come.
async fn within<F: Future>(what: &str, future: F) -> F::Output {
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

// -- What tests call -----------------------------------------------------------------------------------------------

impl ProviderDouble {
    /// Starts on `127.0.0.1:0`.
    pub async fn start() -> Self {
        let signing = Key::rsa(0, &mark("rsa-"));
        let ec = Key::p256(&mark("ec-"));
        let ed = Key::ed25519(&mark("ed-"));
        let state = State {
            sessions: Vec::new(),
            codes: HashMap::new(),
            access: HashMap::new(),
            refresh: HashMap::new(),
            pushed: HashMap::new(),
            violations: Vec::new(),
            reuse_alarms: 0,
            canaries: Canaries::default(),
            jtis: HashSet::new(),
            dpop_nonce: mark("nonce-"),
            published: vec![signing.clone(), ec.clone(), ed.clone()],
            signing,
            ec,
            ed,
            outsider: Key::rsa(3, &mark("outsider-")),
            encryption: Key::rsa(4, &mark("enc-")).for_encryption(),
            small: Key::small_rsa(&mark("small-")),
            rotations: 0,
            serial: 0,
        };
        let place: Arc<std::sync::OnceLock<Arc<Inner>>> = Arc::default();
        let seat = Arc::clone(&place);
        let server = Server::start(move |conn| {
            let inner = seat.get().map(Arc::clone);
            async move {
                if let Some(inner) = inner {
                    inner.serve(conn).await;
                }
            }
        })
        .await;
        let inner = Arc::new(Inner {
            issuer: format!("http://{}", server.addr),
            switches: Mutex::default(),
            state: Mutex::new(state),
            calls: watch::Sender::new(Vec::new()),
            gates: Mutex::default(),
            ahead: AtomicI64::new(0),
            jwks_path: format!("/keys/{}", mark("")),
        });
        place.set(Arc::clone(&inner)).expect("set once");
        Self { inner, server }
    }

    /// From now on connections are refused, and the open ones are closed.
    pub async fn go_down(&self) {
        self.server.go_down().await;
    }

    /// Accepts connections again, on the same port.
    pub async fn come_back(&self) {
        self.server.come_back().await;
    }

    /// Closes all open connections.
    pub async fn drop_connections(&self) {
        self.server.drop_connections().await;
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> u64 {
        self.server.connections()
    }

    /// Token requests wait, unprocessed, until the handle lets them go.
    pub fn hold_token_endpoint(&self) -> Hold {
        self.hold(Endpoint::Token, Grants::Any, Moment::Before)
    }

    /// Token requests are processed (a refresh token is spent), but their answers wait.
    pub fn hold_token_answers(&self) -> Hold {
        self.hold(Endpoint::Token, Grants::Any, Moment::After)
    }

    /// Requests to `endpoint` wait at `moment`.
    pub fn hold(&self, endpoint: Endpoint, grants: Grants, moment: Moment) -> Hold {
        let (permits, waiting) = (Semaphore::new(0), watch::Sender::new(0));
        let gate = Arc::new(Gate { endpoint, grants, moment, permits, waiting });
        self.inner.gates.lock().push(Arc::clone(&gate));
        Hold { inner: Arc::clone(&self.inner), gate }
    }
}

impl Inner {
    /// Changes switches: `provider.set(|s| s.rotation = Rotation::Family)`.
    pub fn set(&self, change: impl FnOnce(&mut Switches)) {
        change(&mut self.switches.lock());
    }

    /// The client's id.
    pub fn client_id(&self) -> String {
        self.switches.lock().client_id.clone()
    }

    /// The client's secret.
    pub fn client_secret(&self) -> String {
        self.switches.lock().client_secret.clone()
    }

    /// Registers the redirect URIs of a gateway that browsers reach under `public_url`.
    pub fn register(&self, public_url: &str) {
        self.set(|s| {
            s.redirect_uris.push(format!("{public_url}/auth/callback"));
            s.post_logout_redirect_uris.push(format!("{public_url}/auth/logout/return"));
        });
    }

    /// The absolute URL of an endpoint.
    pub fn url(&self, endpoint: Endpoint) -> String {
        format!("{}{}", self.issuer, self.path(endpoint))
    }

    /// The provider's time in seconds since the epoch.
    pub fn now(&self) -> i64 {
        text::now() + self.ahead.load(Ordering::SeqCst)
    }

    /// Moves the provider's clock: tokens age, leeways pass.
    pub fn advance(&self, seconds: i64) {
        self.ahead.fetch_add(seconds, Ordering::SeqCst);
    }

    /// Sets the provider's clock, seconds since the epoch.
    pub fn set_clock(&self, seconds: i64) {
        self.ahead.store(seconds - text::now(), Ordering::SeqCst);
    }

    /// All requests so far.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.borrow().clone()
    }

    /// The requests to one endpoint.
    pub fn calls_to(&self, endpoint: Endpoint) -> Vec<Call> {
        self.calls.borrow().iter().filter(|c| c.endpoint == endpoint).cloned().collect()
    }

    /// Waits until `endpoint` got `n` requests in all.
    pub async fn wait_for_calls(&self, endpoint: Endpoint, n: usize) {
        let mut seen = self.calls.subscribe();
        let enough = |calls: &Vec<Call>| calls.iter().filter(|c| c.endpoint == endpoint).count() >= n;
        within("calls to the provider", seen.wait_for(enough)).await.expect("the provider lives");
    }

    /// Waits until `n` of the requests to `endpoint` have been answered (or cut off).
    pub async fn wait_for_answers(&self, endpoint: Endpoint, n: usize) {
        let mut seen = self.calls.subscribe();
        let done = |c: &&Call| c.endpoint == endpoint && c.status.is_some();
        within("answers of the provider", seen.wait_for(|calls| calls.iter().filter(done).count() >= n))
            .await
            .expect("the provider lives");
    }

    /// How many refreshes were asked for.
    pub fn refreshes(&self) -> usize {
        self.calls.borrow().iter().filter(|c| c.is_refresh()).count()
    }

    /// How many code exchanges were asked for.
    pub fn code_exchanges(&self) -> usize {
        self.calls.borrow().iter().filter(|c| c.is_code_exchange()).count()
    }

    /// What the provider objected to: in most tests this should be empty.
    pub fn violations(&self) -> Vec<String> {
        self.state.lock().violations.clone()
    }

    /// How often a spent refresh token came outside the leeway.
    pub fn reuse_alarms(&self) -> u32 {
        self.state.lock().reuse_alarms
    }

    /// Whether a resource server would take this access token.
    pub fn is_active(&self, access_token: &str) -> bool {
        let state = self.state.lock();
        let alive = |a: &Access| {
            a.alive && a.expires > self.now() && state.sessions.get(a.session).is_none_or(|session| session.alive)
        };
        state.access.get(access_token).is_some_and(alive)
    }

    /// Whether this refresh token would be taken, reuse within a leeway not counted.
    pub fn is_refreshable(&self, refresh_token: &str) -> bool {
        let state = self.state.lock();
        let fresh = |r: &Refresh| r.spent.is_none() && r.expires.is_none_or(|at| at > self.now());
        state.refresh.get(refresh_token).is_some_and(|r| fresh(r) && state.sessions[r.session].alive)
    }

    /// Every login so far.
    pub fn sessions(&self) -> Vec<Session> {
        self.state.lock().sessions.clone()
    }

    /// The latest login.
    pub fn last_session(&self) -> Session {
        self.state.lock().sessions.last().cloned().expect("a login")
    }

    /// Ends all sessions at the provider: their tokens are dead.
    pub fn kill_all_sessions(&self) {
        self.state.lock().sessions.iter_mut().for_each(|s| s.alive = false);
    }

    /// Ends one session at the provider.
    pub fn kill_session(&self, sid: &str) {
        self.state.lock().sessions.iter_mut().filter(|s| s.sid == sid).for_each(|s| s.alive = false);
    }

    /// The access tokens issued so far are dead; refresh tokens are not.
    pub fn kill_access_tokens(&self) {
        self.state.lock().access.values_mut().for_each(|a| a.alive = false);
    }

    /// Every secret that went through the provider's hands, and the client secret.
    pub fn canaries(&self) -> Canaries {
        let mut canaries = self.state.lock().canaries.clone();
        canaries.add("client secret", &self.client_secret());
        canaries
    }

    /// The key set, as published.
    pub fn jwks(&self) -> Value {
        let switches = self.switches.lock().clone();
        let state = self.state.lock();
        let mut keys = switches.more_keys.clone();
        keys.extend(state.published.iter().map(Key::jwk));
        let faults = [switches.fault, switches.refresh_fault];
        if faults.contains(&Some(Fault::SigEncryptionKey)) {
            keys.push(state.encryption.jwk());
        }
        if faults.contains(&Some(Fault::SigSmallKey)) {
            keys.push(state.small.jwk());
        }
        if switches.id_token_alg == "PS256" {
            let rsa = keys.iter_mut().filter(|key| key["kty"] == "RSA" && key["use"] == "sig");
            rsa.for_each(|key| key["alg"] = "PS256".into());
        }
        if switches.without_kid {
            keys.iter_mut().filter_map(Value::as_object_mut).for_each(|k| drop(k.shift_remove("kid")));
        }
        json!({ "keys": keys })
    }

    /// A new signing key; the old one leaves the set.
    pub fn rotate_keys(&self) {
        self.new_key(false);
    }

    /// A new signing key; the old one stays in the set.
    pub fn rotate_keys_keeping_old(&self) {
        self.new_key(true);
    }

    fn new_key(&self, keep: bool) {
        let mut state = self.state.lock();
        state.rotations += 1;
        let fresh = Key::rsa(state.rotations % 3, &mark("rsa-"));
        let old = std::mem::replace(&mut state.signing, fresh.clone());
        if !keep {
            state.published.retain(|k| k.kid != old.kid);
        }
        state.published.insert(0, fresh);
    }

    /// Publishes three RSA keys instead of one, the signing key among them.
    pub fn publish_several_keys(&self) {
        let mut state = self.state.lock();
        let more = [1, 2].map(|i| Key::rsa(state.rotations + i, &mark("rsa-")));
        let [one, two] = more;
        state.published.insert(0, one);
        state.published.push(two);
    }

    /// Publishes keys that no one can use: unknown curves, kinds and garbage (KEY-03).
    pub fn publish_odd_keys(&self) {
        self.set(|s| {
            s.more_keys.extend([
                json!({"kty": "EC", "crv": "secp256k1", "kid": "k1", "x": b64u([1; 32]), "y": b64u([2; 32])}),
                json!({"kty": "OKP", "crv": "Ed448", "kid": "k2", "x": b64u([3; 57])}),
                json!({"kty": "OKP", "crv": "X25519", "kid": "k3", "x": b64u([4; 32])}),
                json!({"kty": "oct", "kid": "k4", "k": b64u([5; 32])}),
                json!({"kty": "EC", "crv": "P-256", "kid": "off-the-curve", "x": b64u([6; 32]), "y": b64u([7; 32])}),
                json!({"kid": "no kty"}),
                json!({"kty": "RSA", "kid": "no modulus", "e": "AQAB"}),
                json!({"kty": "RSA", "kid": "garbage", "n": "!!!", "e": 7, "x5c": {}, "key_ops": "all"}),
                json!({"kty": 5, "kid": ["list"]}),
                json!({"kty": "??", "use": "sig", "alg": "XX999"}),
            ]);
        });
    }

    /// Publishes other keys under the signing key's `kid` (KEY-05).
    pub fn publish_decoys(&self) {
        let kid = self.state.lock().signing.kid.clone();
        let decoys = [
            Key::p256(&kid).jwk(),
            Key::ed25519(&kid).jwk(),
            Key::rsa(4, &kid).for_encryption().jwk(),
            Key::rsa(2, &kid).with_alg("RS384").jwk(),
            Key::small_rsa(&kid).jwk(),
        ];
        self.set(|s| s.more_keys.extend(decoys));
    }

    /// A logout token for a session; `None` leaves the claim out.
    pub fn logout_token(&self, sub: Option<&str>, sid: Option<&str>, fault: Option<LogoutFault>) -> String {
        let mut claims = self.logout_claims();
        for (name, value) in [("sub", sub), ("sid", sid)] {
            if let Some(value) = value {
                claims.insert(name.to_owned(), value.into());
            }
        }
        self.logout_token_of("logout+jwt", claims, fault)
    }

    /// What a logout token says besides whom it is about.
    pub fn logout_claims(&self) -> Map<String, Value> {
        let (now, client_id) = (self.now(), self.client_id());
        let claims = json!({
            "iss": self.issuer, "aud": client_id, "iat": now, "exp": now + 120, "jti": mark("jti-"),
            "events": {"http://schemas.openid.net/event/backchannel-logout": {}},
        });
        let Value::Object(claims) = claims else { unreachable!("an object") };
        claims
    }

    /// A token of these claims.
    pub fn logout_token_of(&self, typ: &str, claims: Map<String, Value>, fault: Option<LogoutFault>) -> String {
        let switches = self.switches.lock().clone();
        let state = self.state.lock();
        let draft = self.draft(&state, &switches, typ, claims);
        match fault {
            Some(fault) => draft.with_logout(fault),
            None => draft.finish(),
        }
    }

    fn draft<'a>(
        &'a self,
        s: &'a State,
        switches: &'a Switches,
        typ: &str,
        claims: Map<String, Value>,
    ) -> fault::Draft<'a> {
        let key = match switches.id_token_alg {
            "ES256" => &s.ec,
            "EdDSA" => &s.ed,
            _ => &s.signing,
        };
        let mut header = Map::new();
        header.insert("alg".to_owned(), key.alg.into());
        header.insert("typ".to_owned(), typ.into());
        if !switches.without_kid {
            header.insert("kid".to_owned(), key.kid.clone().into());
        }
        fault::Draft {
            header,
            claims,
            key,
            ec: &s.ec,
            outsider: &s.outsider,
            encryption: &s.encryption,
            small: &s.small,
            client_secret: &switches.client_secret,
            issuer: &self.issuer,
            now: self.now(),
        }
    }

    fn path(&self, endpoint: Endpoint) -> &str {
        match endpoint {
            Endpoint::Discovery => "/.well-known/openid-configuration",
            Endpoint::Jwks => &self.jwks_path,
            Endpoint::Authorize => "/authorize",
            Endpoint::Par => "/par",
            Endpoint::Token => "/token",
            Endpoint::Userinfo => "/userinfo",
            Endpoint::Revocation => "/revoke",
            Endpoint::Introspection => "/introspect",
            Endpoint::EndSession => "/end-session",
            Endpoint::Other => "/elsewhere",
        }
    }

    fn endpoint_of(&self, path: &str) -> Endpoint {
        let all = [
            Endpoint::Discovery,
            Endpoint::Jwks,
            Endpoint::Authorize,
            Endpoint::Par,
            Endpoint::Token,
            Endpoint::Userinfo,
            Endpoint::Revocation,
            Endpoint::Introspection,
            Endpoint::EndSession,
        ];
        all.into_iter().find(|e| self.path(*e) == path).unwrap_or(Endpoint::Other)
    }
}

// -- Serving -------------------------------------------------------------------------------------------------------

/// What goes over the wire in the end.
enum Outcome {
    Answer(Answer),
    Raw(Vec<u8>),
    Drop,
    Stall,
    Drip,
}

impl Inner {
    async fn serve(self: Arc<Self>, mut conn: Conn) {
        while let Ok(Some(mut request)) = wire::read_request_head(&mut conn).await {
            if wire::read_request_body(&mut conn, &mut request).await.is_err() || !request.complete {
                return;
            }
            let (order, outcome) = self.handle(&request).await;
            let status = if let Outcome::Answer(answer) = &outcome { answer.status } else { 0 };
            let sent = match outcome {
                Outcome::Answer(answer) => conn.send(&answer.bytes(&request.method)).await.is_ok(),
                Outcome::Raw(bytes) => {
                    let _ = conn.send(&bytes).await;
                    let _ = conn.half_close().await;
                    false
                }
                Outcome::Drop => false,
                Outcome::Stall => {
                    conn.wait_for_end().await;
                    false
                }
                Outcome::Drip => {
                    let head = [("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")];
                    let head: Pairs = head.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec();
                    let mut bytes = wire::head_bytes(200, &head);
                    while conn.send(&bytes).await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        bytes = b"1\r\n \r\n".to_vec();
                    }
                    false
                }
            };
            self.calls.send_modify(|calls| calls[order].status = Some(status));
            if !sent || request.header("connection").is_some_and(|v| v.eq_ignore_ascii_case("close")) {
                return;
            }
        }
    }

    async fn handle(&self, request: &Request) -> (usize, Outcome) {
        let endpoint = self.endpoint_of(request.path());
        let wechat = self.switches.lock().wechat;
        let mut form = if request.method == "POST" { request.form() } else { Vec::new() };
        if wechat && endpoint == Endpoint::Token {
            let name = |name: String| match name.as_str() {
                "appid" => "client_id".to_owned(),
                "secret" => "client_secret".to_owned(),
                _ => name,
            };
            form = request.query_pairs().into_iter().map(|(k, v)| (name(k), v)).collect();
        }
        let grants = match (endpoint, get(&form, "grant_type")) {
            (Endpoint::Token, Some("refresh_token")) => Grants::Refresh,
            (Endpoint::Token, Some("authorization_code")) => Grants::Code,
            _ => Grants::Any,
        };
        let mut order = 0;
        self.calls.send_modify(|calls| {
            order = calls.len();
            calls.push(Call {
                order,
                at: Instant::now(),
                endpoint,
                method: request.method.clone(),
                target: request.target.clone(),
                headers: request.headers.clone(),
                query: request.query_pairs(),
                form: form.clone(),
                body: request.body.clone(),
                connection: request.connection,
                status: None,
            });
        });
        self.pass(endpoint, grants, Moment::Before).await;
        let (outage, latency) = {
            let mut switches = self.switches.lock();
            let latency = if grants == Grants::Refresh { text::draw(switches.refresh_latency.clone()) } else { 0 };
            (switches.next_outage(endpoint, grants), Duration::from_millis(latency))
        };
        self.take_time(latency / 2).await;
        let act = || self.act(endpoint, request, &form);
        let outcome = match outage {
            None => Outcome::Answer(act()),
            Some(Outage::Status(status)) => Outcome::Answer(Answer::json(status, r#"{"error":"server_error"}"#)),
            Some(Outage::StatusAfterCommit(status)) => {
                act();
                Outcome::Answer(Answer::new(status, "text/plain", "something broke\n"))
            }
            Some(Outage::TooMany(after)) => {
                let answer = Answer::json(429, r#"{"error":"slow_down"}"#);
                Outcome::Answer(after.iter().fold(answer, |a, v| a.with("Retry-After", v)))
            }
            Some(Outage::Unavailable(after)) => {
                let answer = Answer::json(503, r#"{"error":"temporarily_unavailable"}"#);
                Outcome::Answer(after.iter().fold(answer, |a, v| a.with("Retry-After", v)))
            }
            Some(Outage::Html(status)) => {
                Outcome::Answer(Answer::new(status, "text/html", "<!doctype html><title>Maintenance</title>"))
            }
            Some(Outage::Empty) => Outcome::Answer(Answer::json(200, "")),
            Some(Outage::Drop) => Outcome::Drop,
            Some(Outage::DropAfterCommit) => {
                act();
                Outcome::Drop
            }
            Some(Outage::Stall) => Outcome::Stall,
            Some(Outage::StallAfterCommit) => {
                act();
                Outcome::Stall
            }
            Some(Outage::Slow(by)) => {
                tokio::time::sleep(by).await;
                Outcome::Answer(act())
            }
            Some(Outage::Late(by)) => {
                let answer = act();
                tokio::time::sleep(by).await;
                Outcome::Answer(answer)
            }
            Some(Outage::Drip) => Outcome::Drip,
            Some(Outage::Huge(bytes)) => {
                Outcome::Answer(Answer::json(200, format!("{{\"filler\":\"{}\"}}", "x".repeat(bytes))))
            }
            Some(Outage::Redirect(to)) => Outcome::Answer(Answer::empty(302).with("Location", &to)),
            Some(Outage::Refuse { status, error, description }) => {
                let style = self.switches.lock().error_style;
                Outcome::Answer(styled_error(style, status, &error, &description, grants))
            }
            Some(Outage::Answer(answer)) => Outcome::Answer(answer),
            Some(Outage::Raw(bytes)) => Outcome::Raw(bytes),
        };
        self.take_time(latency / 2).await;
        self.pass(endpoint, grants, Moment::After).await;
        (order, outcome)
    }

    async fn take_time(&self, time: Duration) {
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
    }

    async fn pass(&self, endpoint: Endpoint, grants: Grants, moment: Moment) {
        let holds = |g: &&Arc<Gate>| {
            g.endpoint == endpoint && g.moment == moment && (g.grants == Grants::Any || g.grants == grants)
        };
        let gate = self.gates.lock().iter().find(holds).cloned();
        if let Some(gate) = gate {
            gate.waiting.send_modify(|n| *n += 1);
            gate.permits.acquire().await.expect("never closed").forget();
        }
    }

    fn act(&self, endpoint: Endpoint, request: &Request, form: &Pairs) -> Answer {
        let result = match endpoint {
            Endpoint::Discovery => Ok(Answer::json(200, self.document())),
            Endpoint::Jwks => {
                let whole = self.switches.lock().jwks_document.clone();
                Ok(Answer::json(200, whole.unwrap_or_else(|| self.jwks().to_string())))
            }
            Endpoint::Authorize => self.authorize(request, form),
            Endpoint::Par => self.push(request, form),
            Endpoint::Token => self.token(request, form),
            Endpoint::Userinfo => self.userinfo(request),
            Endpoint::Revocation => self.revoke(request, form),
            Endpoint::Introspection => self.introspect(request, form),
            Endpoint::EndSession => self.end_session(request, form),
            Endpoint::Other => Ok(Answer::new(404, "text/plain", "no such endpoint\n")),
        };
        result.unwrap_or_else(|refusal| {
            let said = format!("{endpoint:?}: {} ({})", refusal.error, refusal.description);
            self.state.lock().violations.push(said);
            let style = match endpoint {
                Endpoint::Token => self.switches.lock().error_style,
                _ => ErrorStyle::Standard,
            };
            let refresh = get(form, "grant_type") == Some("refresh_token");
            let grants = if refresh { Grants::Refresh } else { Grants::Code };
            let answer = styled_error(style, refusal.status, refusal.error, &refusal.description, grants);
            if refusal.status == 401 { answer.with("WWW-Authenticate", "Basic realm=\"provider\"") } else { answer }
        })
    }

    fn violate(&self, what: impl Into<String>) {
        self.state.lock().violations.push(what.into());
    }

    // -- Discovery -------------------------------------------------------------------------------------------------

    fn document(&self) -> String {
        let switches = self.switches.lock().clone();
        let mut document = json!({
            "issuer": switches.document_issuer.as_ref().unwrap_or(&self.issuer),
            "authorization_endpoint": self.url(Endpoint::Authorize),
            "token_endpoint": self.url(Endpoint::Token),
            "jwks_uri": self.url(Endpoint::Jwks),
            "userinfo_endpoint": self.url(Endpoint::Userinfo),
            "revocation_endpoint": self.url(Endpoint::Revocation),
            "introspection_endpoint": self.url(Endpoint::Introspection),
            "end_session_endpoint": self.url(Endpoint::EndSession),
            "response_types_supported": ["code"],
            "response_modes_supported": ["query", "form_post"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256", "PS256", "ES256", "EdDSA"],
            "scopes_supported": ["openid", "profile", "email", "offline_access"],
            "token_endpoint_auth_methods_supported": [
                "client_secret_basic", "client_secret_post", "client_secret_jwt", "private_key_jwt", "tls_client_auth", "none",
            ],
            "token_endpoint_auth_signing_alg_values_supported": ["HS256", "RS256", "PS256", "ES256", "EdDSA"],
            "code_challenge_methods_supported": ["S256"],
            "backchannel_logout_supported": true,
            "backchannel_logout_session_supported": true,
            "frontchannel_logout_supported": true,
            "frontchannel_logout_session_supported": true,
        });
        if switches.announce_iss {
            document["authorization_response_iss_parameter_supported"] = true.into();
        }
        if switches.par != Par::Off {
            document["pushed_authorization_request_endpoint"] = self.url(Endpoint::Par).into();
            document["require_pushed_authorization_requests"] = (switches.par == Par::Required).into();
        }
        if switches.dpop != Dpop::Off {
            document["dpop_signing_alg_values_supported"] = json!(["ES256"]);
        }
        if switches.request_object.is_some() {
            document["require_signed_request_object"] = true.into();
        }
        for (name, value) in &switches.document {
            document[name] = value.clone();
        }
        if let Some(members) = document.as_object_mut() {
            members.retain(|name, _| !switches.omit.contains(name));
        }
        let text = document.to_string();
        let doubled: String = switches.document_doubled.iter().map(|(k, v)| format!("{}:{v},", json!(k))).collect();
        format!("{{{doubled}{}", &text[1..])
    }

    // -- Authorization ---------------------------------------------------------------------------------------------

    fn push(&self, request: &Request, form: &Pairs) -> Result<Answer, Refusal> {
        if self.switches.lock().par == Par::Off {
            return refuse("invalid_request", "no PAR here");
        }
        self.check_form(request, form)?;
        self.check_client(request, form)?;
        if get(form, "request_uri").is_some() {
            return refuse("invalid_request", "request_uri in a pushed request");
        }
        let jkt = match self.check_proof(request, Endpoint::Par, None)? {
            Proven::By(jkt) => jkt,
            Proven::Again(answer) => return Ok(answer),
        };
        let not = |k: &str| !matches!(k, "client_secret" | "client_assertion" | "client_assertion_type");
        let mut keep: Pairs = form.iter().filter(|(k, _)| not(k)).cloned().collect();
        if let Some(jkt) = jkt {
            if get(form, "dpop_jkt").is_some_and(|named| named != jkt) {
                return refuse("invalid_dpop_proof", "dpop_jkt is not the proof's key");
            }
            keep.push(("dpop_jkt".to_owned(), jkt));
        }
        let name = format!("urn:ietf:params:oauth:request_uri:{}", mark("par-"));
        self.state.lock().canaries.add("request_uri", &name);
        self.state.lock().pushed.insert(name.clone(), keep);
        Ok(Answer::json(201, json!({"request_uri": name, "expires_in": 60}).to_string()))
    }

    fn authorize(&self, request: &Request, form: &Pairs) -> Result<Answer, Refusal> {
        let switches = self.switches.lock().clone();
        let mut params = request.query_pairs();
        params.extend(form.iter().cloned());
        if let Some(name) = text::doubled(&params, &["resource"]) {
            return refuse("invalid_request", format!("{name} is given twice"));
        }
        if switches.wechat {
            if request.query_pairs().first().is_none_or(|(name, _)| name != "appid") {
                return refuse("invalid_request", "appid comes first");
            }
            params.iter_mut().filter(|(k, _)| k == "appid").for_each(|(k, _)| *k = "client_id".to_owned());
            let alnum = |v: &str| v.len() <= 128 && v.bytes().all(|b| b.is_ascii_alphanumeric());
            if !get(&params, "state").is_some_and(alnum) {
                return refuse("invalid_request", "state must be at most 128 letters and digits");
            }
        }
        if get(&params, "client_id") != Some(&switches.client_id) {
            return refuse("unauthorized_client", "client_id");
        }
        match get(&params, "request_uri") {
            Some(name) => {
                if let Some((extra, _)) = params.iter().find(|(k, _)| k != "client_id" && k != "request_uri") {
                    self.violate(format!("Authorize: {extra} beside request_uri"));
                }
                let Some(pushed) = self.state.lock().pushed.remove(name) else {
                    return refuse("invalid_request", "unknown or used request_uri");
                };
                params = pushed;
            }
            None if switches.par == Par::Required => return refuse("invalid_request", "PAR is required"),
            None => {}
        }
        if let Some(keys) = &switches.request_object {
            let object = get(&params, "request").unwrap_or_default();
            if params.iter().any(|(k, _)| !matches!(k.as_str(), "client_id" | "request" | "dpop_jkt")) {
                self.violate("Authorize: parameters beside the request object");
            }
            let claims = jose::parse(object).filter(|_| keys.iter().any(|key| jose::verified(object, key)));
            let Some((header, Value::Object(claims))) = claims else {
                return refuse("invalid_request_object", "not signed by the client");
            };
            let now = self.now();
            let timely = claims["exp"].as_i64().is_some_and(|exp| exp > now && exp <= now + 300);
            let ours = claims["iss"] == switches.client_id.as_str() && claims["aud"] == self.issuer.as_str();
            if header["typ"] != "oauth-authz-req+jwt" || !timely || !ours {
                return refuse("invalid_request_object", "typ, exp, iss or aud");
            }
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            params.retain(|(k, _)| k == "dpop_jkt");
            params.extend(claims.iter().map(|(k, v)| (k.clone(), text(v))));
        }
        let param = |name: &str| get(&params, name);
        let redirect_uri = param("redirect_uri").unwrap_or_default().to_owned();
        if !switches.redirect_uris.contains(&redirect_uri) {
            return refuse("invalid_request", format!("redirect_uri {redirect_uri} is not registered"));
        }
        {
            let canaries = &mut self.state.lock().canaries;
            for name in ["state", "nonce", "code_challenge"] {
                canaries.add(name, param(name).unwrap_or_default());
            }
        }
        let objection = if param("response_type") != Some("code") {
            Some(("unsupported_response_type", "response_type"))
        } else if !switches.pkce && param("code_challenge").is_some() {
            Some(("invalid_request", "PKCE is not known here"))
        } else if switches.pkce
            && (param("code_challenge_method") != Some("S256") || param("code_challenge").map(str::len) != Some(43))
        {
            Some(("invalid_request", "PKCE with S256 is required"))
        } else if !matches!(param("response_mode"), None | Some("query" | "form_post")) {
            Some(("invalid_request", "response_mode"))
        } else if param("state").is_none_or(|s| s.len() < 16) {
            Some(("invalid_request", "state is missing or short"))
        } else {
            None
        };
        let mut answer: Pairs = Vec::new();
        let mut put = |name: &str, value: &str| answer.push((name.to_owned(), value.to_owned()));
        let silent = param("prompt") == Some("none");
        if let Some((error, why)) = objection {
            self.violate(format!("Authorize: {why}"));
            put("error", error);
            put("error_description", why);
        } else if silent && !switches.signed_in {
            put("error", "login_required");
        } else {
            match &switches.authorization {
                Authorization::Page => {
                    return Ok(Answer::new(200, "text/html", "<!doctype html><title>Sign in</title>"));
                }
                Authorization::OnlyState => {}
                Authorization::Error { error, more } => {
                    put("error", error);
                    answer.extend(more.iter().cloned());
                }
                Authorization::Code => put("code", &self.new_code(&switches, &params, &redirect_uri)),
            }
        }
        let mut put = |name: &str, value: &str| answer.push((name.to_owned(), value.to_owned()));
        if let Some(state) = param("state") {
            put("state", &if switches.wrong_state { format!("{state}x") } else { state.to_owned() });
        }
        match &switches.iss_parameter {
            IssParameter::Right => put("iss", &self.issuer),
            IssParameter::Is(iss) => put("iss", iss),
            IssParameter::Missing => {}
        }
        answer.extend(switches.authorization_more.iter().cloned());
        if param("response_mode") == Some("form_post") {
            let escape = |t: &str| t.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;");
            let field = |(k, v): &(String, String)| {
                format!("<input type=\"hidden\" name=\"{}\" value=\"{}\">", escape(k), escape(v))
            };
            let fields: String = answer.iter().map(field).collect();
            let page = format!(
                "<!doctype html><title>Submit</title><body onload=\"document.forms[0].submit()\">\
                 <form method=\"post\" action=\"{}\">{fields}</form>",
                escape(&redirect_uri)
            );
            return Ok(Answer::new(200, "text/html; charset=utf-8", page).with("Cache-Control", "no-store"));
        }
        let joint = if redirect_uri.contains('?') { '&' } else { '?' };
        let location = format!("{redirect_uri}{joint}{}", text::form(&answer));
        Ok(Answer::empty(302).with("Location", &location).with("Cache-Control", "no-store"))
    }

    fn new_code(&self, switches: &Switches, params: &Pairs, redirect_uri: &str) -> String {
        let code = mark("code-");
        let asked_acr = get(params, "acr_values").and_then(|v| v.split(' ').next()).map(str::to_owned);
        let session = Session {
            sub: switches.sub.clone(),
            sid: mark("sid-"),
            nonce: get(params, "nonce").map(str::to_owned),
            scope: get(params, "scope").unwrap_or_default().to_owned(),
            redirect_uri: redirect_uri.to_owned(),
            auth_time: self.now() - switches.auth_age,
            acr: switches.acr.clone().or(asked_acr),
            alive: true,
            params: params.clone(),
            access_tokens: Vec::new(),
            refresh_tokens: Vec::new(),
            id_tokens: Vec::new(),
            jkt: get(params, "dpop_jkt").map(str::to_owned),
        };
        let expires = self.now() + 60;
        let mut state = self.state.lock();
        state.canaries.add("code", &code);
        state.sessions.push(session);
        let session = state.sessions.len() - 1;
        state.codes.insert(code.clone(), Code { session, used: false, expires });
        code
    }

    // -- Token -----------------------------------------------------------------------------------------------------

    fn check_form(&self, request: &Request, form: &Pairs) -> Result<(), Refusal> {
        let kind = request.header("content-type").unwrap_or_default().split(';').next().unwrap_or_default().trim();
        if request.method != "POST" {
            return refuse("invalid_request", format!("method {}", request.method));
        }
        if !kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            return refuse("invalid_request", format!("content type {kind}"));
        }
        if !request.query().is_empty() {
            return refuse("invalid_request", "parameters in the URL");
        }
        if let Some(name) = text::doubled(form, &["resource", "audience"]) {
            return refuse("invalid_request", format!("{name} is given twice"));
        }
        Ok(())
    }

    /// RFC 6749 section 2.3: exactly one way, exactly the registered one.
    fn check_client(&self, request: &Request, form: &Pairs) -> Result<(), Refusal> {
        let (id, secret, how) = {
            let s = self.switches.lock();
            (s.client_id.clone(), s.client_secret.clone(), s.client_auth.clone())
        };
        let headers = request.header_all("authorization");
        let (in_form, id_in_form) = (get(form, "client_secret"), get(form, "client_id"));
        if headers.len() > 1 || (!headers.is_empty() && in_form.is_some()) {
            return refuse("invalid_client", "more than one client authentication");
        }
        let assertion = get(form, "client_assertion");
        if assertion.is_some() && !matches!(how, ClientAuth::SecretJwt | ClientAuth::KeyJwt(_)) {
            return refuse("invalid_client", "a client assertion");
        }
        if assertion.is_some() && (in_form.is_some() || !headers.is_empty()) {
            return refuse("invalid_client", "more than one client authentication");
        }
        if id_in_form.is_some_and(|given| given != id) {
            return refuse("invalid_client", "client_id in the form is not ours");
        }
        match how {
            ClientAuth::Basic | ClientAuth::BasicRaw => {
                let encoded = headers.first().and_then(|h| h.strip_prefix("Basic "));
                let plain = encoded.and_then(|e| base64_simd::STANDARD.decode_to_vec(e).ok());
                let Some(plain) = plain.and_then(|p| String::from_utf8(p).ok()) else {
                    return refuse("invalid_client", "Basic authentication expected");
                };
                let Some((user, password)) = plain.split_once(':') else {
                    return refuse("invalid_client", "no colon");
                };
                let unreserved = |c: char| c.is_ascii_alphanumeric() || "-._~*+%".contains(c);
                if how == ClientAuth::BasicRaw {
                    if user != id || password != secret {
                        return refuse("invalid_client", "wrong id or secret");
                    }
                    return Ok(());
                }
                if !plain.chars().filter(|c| *c != ':').all(unreserved) || password.contains(':') {
                    return refuse("invalid_client", "id and secret must be form-encoded");
                }
                if text::unform_value(user) != id || text::unform_value(password) != secret {
                    return refuse("invalid_client", "wrong id or secret");
                }
            }
            ClientAuth::SecretJwt => {
                let key = json!({"kty": "oct", "k": b64u(secret.as_bytes())});
                return self.check_assertion(form, &[key], &id);
            }
            ClientAuth::KeyJwt(keys) => return self.check_assertion(form, &keys, &id),
            ClientAuth::Tls(certificate) => {
                if request.header(CERTIFICATE) != Some(&certificate) || id_in_form != Some(&id) || in_form.is_some() {
                    return refuse("invalid_client", "the client's certificate expected");
                }
            }
            ClientAuth::Post => {
                if !headers.is_empty() || id_in_form != Some(&id) || in_form != Some(&secret) {
                    return refuse("invalid_client", "client_secret_post expected");
                }
            }
            ClientAuth::None => {
                if !headers.is_empty() || in_form.is_some() || id_in_form != Some(&id) {
                    return refuse("invalid_client", "a public client expected");
                }
            }
        }
        Ok(())
    }

    /// RFC 7523 section 3, as FAPI 2.0 section 5.3.2 narrows it.
    fn check_assertion(&self, form: &Pairs, keys: &[Value], id: &str) -> Result<(), Refusal> {
        let bearer = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
        let token = get(form, "client_assertion").unwrap_or_default();
        self.state.lock().canaries.add("client assertion", token);
        let Some((header, claims)) = jose::parse(token) else {
            return refuse("invalid_client", "no client assertion");
        };
        let named = |key: &&Value| header.get("kid").is_none_or(|kid| key.get("kid").is_none_or(|own| own == kid));
        if get(form, "client_assertion_type") != Some(bearer) || header["typ"] != "JWT" {
            return refuse("invalid_client", "client_assertion_type or typ");
        }
        if !keys.iter().filter(named).any(|key| jose::verified(token, key)) {
            return refuse("invalid_client", format!("signature of the assertion, header {header}"));
        }
        let now = self.now();
        if claims["iss"] != id || claims["sub"] != id || claims["aud"] != self.issuer.as_str() {
            return refuse("invalid_client", "iss, sub or aud of the assertion");
        }
        if claims["exp"].as_i64().is_none_or(|exp| exp <= now || exp > now + 300) || !claims["iat"].is_i64() {
            return refuse("invalid_client", "exp or iat of the assertion");
        }
        match claims["jti"].as_str().filter(|jti| jti.len() >= 16) {
            Some(jti) if self.state.lock().jtis.insert(jti.to_owned()) => Ok(()),
            _ => refuse("invalid_client", "jti of the assertion"),
        }
    }

    /// RFC 9449 section 4.3 and 8: the key that the request proves, or an answer that asks for a nonce.
    fn check_proof(&self, request: &Request, endpoint: Endpoint, token: Option<&str>) -> Result<Proven, Refusal> {
        let switches = self.switches.lock().clone();
        let proofs = request.header_all("dpop");
        if switches.dpop == Dpop::Off {
            return if proofs.is_empty() { Ok(Proven::By(None)) } else { refuse("invalid_dpop_proof", "no DPoP here") };
        }
        let [proof] = proofs[..] else { return refuse("invalid_dpop_proof", format!("{} proofs", proofs.len())) };
        let url = self.url(endpoint);
        let wanted = jose::Proof { method: &request.method, url: &url, token, now: self.now() };
        let (jkt, jti, nonce) = match wanted.check(proof) {
            Ok(good) => good,
            Err(wrong) => return refuse("invalid_dpop_proof", wrong),
        };
        let state = &mut *self.state.lock();
        if !state.jtis.insert(jti) {
            return refuse("invalid_dpop_proof", "jti used twice");
        }
        if switches.dpop == Dpop::NeverContent {
            state.dpop_nonce = mark("nonce-");
        }
        let content = nonce.as_deref() == Some(&state.dpop_nonce) && switches.dpop == Dpop::WithNonce;
        if switches.dpop == Dpop::Bound || content {
            return Ok(Proven::By(Some(jkt)));
        }
        let answer = if token.is_some() {
            Answer::empty(401).with("WWW-Authenticate", "DPoP error=\"use_dpop_nonce\"")
        } else {
            Answer::json(400, r#"{"error":"use_dpop_nonce"}"#)
        };
        Ok(Proven::Again(answer.with("DPoP-Nonce", &state.dpop_nonce)))
    }

    /// From now on proofs need another nonce.
    pub fn renew_dpop_nonce(&self) {
        self.state.lock().dpop_nonce = mark("nonce-");
    }

    fn token(&self, request: &Request, form: &Pairs) -> Result<Answer, Refusal> {
        if self.switches.lock().wechat {
            let (id, secret) = (self.client_id(), self.client_secret());
            let secret = (get(form, "grant_type") != Some("refresh_token")).then_some(secret);
            if request.method != "GET" || request.header("authorization").is_some() {
                return refuse("invalid_request", "GET without Authorization expected");
            }
            if get(form, "client_id") != Some(&id) || get(form, "client_secret") != secret.as_deref() {
                return refuse("invalid_client", "appid or secret");
            }
            return match get(form, "grant_type") {
                Some("authorization_code") => self.exchange(form, None),
                Some("refresh_token") => self.refresh(form, None),
                other => refuse("unsupported_grant_type", format!("{other:?}")),
            };
        }
        self.check_form(request, form)?;
        if let Some(verifier) = get(form, "code_verifier") {
            self.state.lock().canaries.add("code verifier", verifier);
        }
        self.check_client(request, form)?;
        let jkt = match self.check_proof(request, Endpoint::Token, None)? {
            Proven::By(jkt) => jkt,
            Proven::Again(answer) => return Ok(answer),
        };
        match get(form, "grant_type") {
            Some("authorization_code") => self.exchange(form, jkt),
            Some("refresh_token") => self.refresh(form, jkt),
            Some("urn:ietf:params:oauth:grant-type:token-exchange") => self.exchange_token(form),
            Some("client_credentials") => self.client_token(form),
            other => refuse("unsupported_grant_type", format!("{other:?}")),
        }
    }

    /// RFC 6749 section 4.4: a token of no session.
    fn client_token(&self, form: &Pairs) -> Result<Answer, Refusal> {
        if get(form, "scope").is_some_and(|scope| scope.split(' ').any(|scope| scope == "admin")) {
            return refuse("invalid_scope", "admin");
        }
        let (token, life) = (mark("app-"), self.switches.lock().access_lifetime);
        let state = &mut *self.state.lock();
        state.canaries.add("access token", &token);
        state.access.insert(token.clone(), Access { session: usize::MAX, alive: true, expires: self.now() + life });
        let answer = json!({"access_token": token, "token_type": "Bearer", "expires_in": life});
        Ok(Answer::new(200, "application/json", answer.to_string()))
    }

    /// RFC 8693. Knows no scope `admin` and no audience `unknown`; with `broken` it is out of order.
    fn exchange_token(&self, form: &Pairs) -> Result<Answer, Refusal> {
        let subject = get(form, "subject_token").unwrap_or_default();
        let access_token = Some("urn:ietf:params:oauth:token-type:access_token");
        if get(form, "subject_token_type") != access_token || get(form, "requested_token_type") != access_token {
            return refuse("invalid_request", "token types");
        }
        if !self.is_active(subject) {
            return refuse("invalid_grant", "the subject token is not active");
        }
        let scope = get(form, "scope").unwrap_or_default();
        match get(form, "audience") {
            _ if scope.split(' ').any(|scope| scope == "admin") => return refuse("invalid_scope", "admin"),
            Some("unknown") => return refuse("invalid_target", "unknown"),
            Some("broken") => return Ok(Answer::new(503, "text/plain", "")),
            _ => {}
        }
        let session = self.state.lock().access[subject].session;
        let switches = self.switches.lock().clone();
        let token = self.new_access_token(&switches, session);
        let answer = json!({
            "access_token": token, "issued_token_type": access_token, "token_type": "Bearer",
            "expires_in": switches.access_lifetime,
        });
        Ok(Answer::new(200, "application/json", answer.to_string()))
    }

    fn exchange(&self, form: &Pairs, jkt: Option<String>) -> Result<Answer, Refusal> {
        let session = {
            let now = self.now();
            let state = &mut *self.state.lock();
            let Some(code) = state.codes.get_mut(get(form, "code").unwrap_or_default()) else {
                return refuse("invalid_grant", "unknown code");
            };
            if code.used {
                state.sessions[code.session].alive = false;
                return refuse("invalid_grant", "code used twice");
            }
            code.used = true;
            if code.expires < now {
                return refuse("invalid_grant", "code expired");
            }
            let session = &state.sessions[code.session];
            if get(form, "redirect_uri") != Some(&session.redirect_uri) {
                return refuse("invalid_grant", "redirect_uri differs");
            }
            let verifier = get(form, "code_verifier").unwrap_or_default();
            let challenge = b64u(jose::sha256(verifier.as_bytes()));
            if !self.switches.lock().pkce {
                if !verifier.is_empty() {
                    return refuse("invalid_request", "code_verifier is not known here");
                }
            } else if !(43..=128).contains(&verifier.len())
                || get(&session.params, "code_challenge") != Some(&challenge)
            {
                return refuse("invalid_grant", "PKCE verification failed");
            }
            if session.jkt.is_some() && session.jkt != jkt {
                return refuse("invalid_grant", "the code is bound to another key");
            }
            state.sessions[code.session].jkt = jkt;
            code.session
        };
        Ok(self.issue(session, None, None))
    }

    fn refresh(&self, form: &Pairs, jkt: Option<String>) -> Result<Answer, Refusal> {
        let switches = self.switches.lock().clone();
        let now = self.now();
        let given = get(form, "refresh_token").unwrap_or_default();
        let session = {
            let state = &mut *self.state.lock();
            let Some(refresh) = state.refresh.get_mut(given) else {
                return refuse("invalid_grant", "unknown refresh token");
            };
            let session = &mut state.sessions[refresh.session];
            if !session.alive {
                return refuse("invalid_grant", "Session not active");
            }
            if session.jkt != jkt {
                return refuse("invalid_grant", "the refresh token is bound to another key");
            }
            if refresh.expires.is_some_and(|at| at <= now) {
                return refuse("invalid_grant", "refresh token expired");
            }
            // As at an exchange, and before anything is spent.
            match get(form, "audience") {
                Some("unknown") => return refuse("invalid_target", "unknown"),
                Some("consent") => return refuse("invalid_grant", "the user has not consented to this"),
                Some("broken") => return Ok(Answer::new(503, "text/plain", "")),
                _ => {}
            }
            let within = |scope: &str| scope.split(' ').all(|s| session.scope.split(' ').any(|have| have == s));
            if get(form, "scope").is_some_and(|scope| !within(scope)) {
                return refuse("invalid_scope", "more than was granted");
            }
            if let Some(spent) = refresh.spent {
                let timely = if switches.leeway.is_zero() {
                    switches.leeway_count.is_some()
                } else {
                    now - spent <= i64::try_from(switches.leeway.as_secs()).unwrap_or(i64::MAX)
                };
                let seldom = switches.leeway_count.is_none_or(|limit| refresh.reused < limit);
                if !timely || !seldom {
                    state.reuse_alarms += 1;
                    if switches.rotation == Rotation::Family {
                        session.alive = false;
                    }
                    return refuse("invalid_grant", "Maximum allowed refresh token reuse exceeded");
                }
                refresh.reused += 1;
                if switches.leeway_answer == LeewayAnswer::Same
                    && let Some(answer) = &refresh.answer
                {
                    return Ok(answer.clone());
                }
            } else if switches.rotation != Rotation::None {
                refresh.spent = Some(now);
            }
            if switches.kills_access_token {
                for token in &session.access_tokens {
                    state.access.entry(token.clone()).and_modify(|a| a.alive = false);
                }
            }
            refresh.session
        };
        let answer = self.issue(session, Some(given), get(form, "scope"));
        let mut state = self.state.lock();
        if let Some(refresh) = state.refresh.get_mut(given) {
            refresh.answer.get_or_insert_with(|| answer.clone());
        }
        Ok(answer)
    }

    fn issue(&self, session: usize, old: Option<&str>, scope: Option<&str>) -> Answer {
        if std::mem::take(&mut self.switches.lock().rotate_before_signing) {
            self.rotate_keys();
        }
        let switches = self.switches.lock().clone();
        let access = self.new_access_token(&switches, session);
        let asked = scope.map_or_else(|| self.state.lock().sessions[session].scope.clone(), str::to_owned);
        let granted = switches.granted_scope.clone().unwrap_or_else(|| asked.clone());
        let mut members: Vec<(String, String)> = Vec::new();
        let mut put = |name: &str, json: String| members.push((name.to_owned(), json));
        put("access_token", json!(access).to_string());
        let bound = switches.dpop != Dpop::Off && switches.token_type.as_deref() == Some("Bearer");
        if let Some(token_type) = if bound { Some("DPoP") } else { switches.token_type.as_deref() } {
            put("token_type", json!(token_type).to_string());
        }
        match &switches.expires_in {
            ExpiresIn::Honest => put("expires_in", switches.access_lifetime.to_string()),
            ExpiresIn::Json(text) => put("expires_in", text.clone()),
            ExpiresIn::Missing => {}
        }
        if !granted.is_empty() {
            put("scope", json!(granted).to_string());
        }
        let refresh = match old {
            None => switches.refresh_token_at_login.then(|| self.new_refresh_token(&switches, session)),
            Some(old) if switches.rotation == Rotation::None => {
                switches.refresh_token_at_refresh.then(|| old.to_owned())
            }
            Some(old) => {
                if !switches.refresh_token_at_refresh {
                    // Without a successor the old one must go on working.
                    self.state.lock().refresh.entry(old.to_owned()).and_modify(|r| r.spent = None);
                }
                switches.refresh_token_at_refresh.then(|| self.new_refresh_token(&switches, session))
            }
        };
        if let Some(refresh) = refresh {
            put("refresh_token", json!(refresh).to_string());
            if let Some(seconds) = switches.refresh_lifetime {
                put("refresh_expires_in", seconds.to_string());
            }
        }
        let wanted = if old.is_some() { switches.id_token_at_refresh } else { switches.id_token_at_login };
        if wanted && asked.split(' ').any(|s| s == "openid") {
            put("id_token", json!(self.id_token(&switches, session, &access, old.is_some())).to_string());
        }
        for (name, value) in &switches.token_more {
            put(name, value.to_string());
        }
        styled_answer(&switches.answer_style, &members).with("Cache-Control", "no-store")
    }

    fn new_access_token(&self, switches: &Switches, session: usize) -> String {
        let now = self.now();
        let mut state = self.state.lock();
        let mut token = mark("at-");
        match &switches.access_token {
            AccessToken::Opaque => {}
            AccessToken::Sized(n) => token.push_str(&filler(n.saturating_sub(token.len()))),
            AccessToken::With(tail) => token.push_str(tail),
            AccessToken::Jwt => {
                let s = &state.sessions[session];
                let claims = json!({
                    "iss": self.issuer, "sub": s.sub, "aud": "api", "client_id": switches.client_id, "iat": now,
                    "exp": now + switches.access_lifetime, "jti": mark("jti-"), "scope": s.scope,
                });
                let header = json!({"alg": "RS256", "typ": "at+jwt", "kid": state.signing.kid});
                token = jose::compact(&header.to_string(), &claims.to_string(), &state.signing);
            }
        }
        state.canaries.add("access token", &token);
        state.sessions[session].access_tokens.push(token.clone());
        state.access.insert(token.clone(), Access { session, alive: true, expires: now + switches.access_lifetime });
        token
    }

    fn new_refresh_token(&self, switches: &Switches, session: usize) -> String {
        let mut token = mark("rt-");
        token.push_str(&filler(switches.refresh_token_size.saturating_sub(token.len())));
        token.push_str(&switches.refresh_token_tail);
        let expires = switches.refresh_lifetime.map(|seconds| self.now() + seconds);
        let mut state = self.state.lock();
        state.canaries.add("refresh token", &token);
        state.sessions[session].refresh_tokens.push(token.clone());
        state.refresh.insert(token.clone(), Refresh { session, spent: None, reused: 0, expires, answer: None });
        token
    }

    fn id_token(&self, switches: &Switches, session: usize, access: &str, at_refresh: bool) -> String {
        let now = self.now();
        let mut state = self.state.lock();
        let s = &state.sessions[session];
        let mut claims = json!({
            "iss": self.issuer, "sub": s.sub, "aud": switches.client_id, "exp": now + switches.id_lifetime, "iat": now,
            "auth_time": s.auth_time, "sid": s.sid, "at_hash": jose::half_hash(access, switches.id_token_alg),
            "name": switches.name, "email": switches.email, "preferred_username": "alice",
        });
        if let Some(nonce) = s.nonce.as_ref().filter(|_| !at_refresh || switches.nonce_at_refresh) {
            claims["nonce"] = nonce.clone().into();
        }
        if let Some(acr) = &s.acr {
            claims["acr"] = acr.clone().into();
        }
        for (name, value) in &switches.id_claims {
            claims[name] = value.clone();
        }
        let Value::Object(claims) = claims else { unreachable!("an object") };
        let draft = self.draft(&state, switches, "JWT", claims);
        let fault = if at_refresh { switches.refresh_fault } else { switches.fault };
        let token = match fault {
            Some(fault) => draft.with(fault),
            None if switches.id_token_alg == "PS256" => draft.with(Fault::SigPs256),
            None => draft.finish(),
        };
        state.canaries.add("id token", &token);
        state.sessions[session].id_tokens.push(token.clone());
        match &switches.id_token_encryption {
            Some(Some(jwk)) => jose::encrypted(&token, jwk),
            Some(None) => jose::encrypted_by_secret(&token, &switches.client_secret),
            None => token,
        }
    }

    // -- The rest --------------------------------------------------------------------------------------------------

    fn userinfo(&self, request: &Request) -> Result<Answer, Refusal> {
        let in_body = get(&request.form(), "access_token").is_some();
        if in_body || get(&request.query_pairs(), "access_token").is_some() {
            return refuse("invalid_request", "the access token belongs in the header");
        }
        let bound = request.header("authorization").and_then(|value| value.strip_prefix("DPoP "));
        let bound = bound.filter(|_| self.switches.lock().dpop != Dpop::Off);
        let Some(token) = bound.or_else(|| request.bearer()) else {
            return refuse("invalid_request", "no bearer token");
        };
        let jkt = match self.check_proof(request, Endpoint::Userinfo, Some(token))? {
            Proven::By(jkt) => jkt,
            Proven::Again(answer) => return Ok(answer),
        };
        if self.sessions().iter().any(|s| s.access_tokens.iter().any(|t| t == token) && s.jkt != jkt) {
            return refuse("invalid_token", "the token is bound to another key");
        }
        if !self.is_active(token) {
            let challenge = "Bearer error=\"invalid_token\"";
            return Ok(Answer::empty(401).with("WWW-Authenticate", challenge));
        }
        let switches = self.switches.lock().clone();
        let state = self.state.lock();
        let session = &state.sessions[state.access[token].session];
        let mut claims = json!({
            "sub": session.sub, "name": switches.name, "email": switches.email, "email_verified": true,
            "preferred_username": "alice", "picture": "https://img.example/alice.png",
        });
        for (name, value) in &switches.userinfo_claims {
            claims[name] = value.clone();
        }
        let sign = |mut claims: Value, key: &Key, kid: &str| {
            claims["iss"] = claims.get("iss").cloned().unwrap_or_else(|| self.issuer.clone().into());
            claims["aud"] = claims.get("aud").cloned().unwrap_or_else(|| switches.client_id.clone().into());
            let header = json!({"alg": "RS256", "kid": kid}).to_string();
            Answer::new(200, "application/jwt", jose::compact(&header, &claims.to_string(), key))
        };
        let (key, kid) = (&state.signing, state.signing.kid.as_str());
        let jwt = |claims: &Value, typ: &str| {
            let header = json!({"alg": "RS256", "typ": typ, "kid": kid}).to_string();
            jose::compact(&header, &claims.to_string(), key)
        };
        Ok(match &switches.userinfo {
            Userinfo::Json => Answer::json(200, claims.to_string()),
            Userinfo::Signed => sign(claims, key, kid),
            Userinfo::SignedWrongAud => {
                claims["aud"] = "another-client".into();
                sign(claims, key, kid)
            }
            Userinfo::SignedWrongIss => {
                claims["iss"] = "https://other.example".into();
                sign(claims, key, kid)
            }
            Userinfo::SignedNone => {
                claims["iss"] = self.issuer.clone().into();
                claims["aud"] = switches.client_id.clone().into();
                let input = jose::input(r#"{"alg":"none"}"#, &claims.to_string());
                Answer::new(200, "application/jwt", format!("{input}."))
            }
            Userinfo::SignedWithoutSub => {
                claims.as_object_mut().map(|c| c.shift_remove("sub"));
                sign(claims, key, kid)
            }
            Userinfo::SignedByOutsider => sign(claims, &state.outsider, kid),
            Userinfo::WrongSub => {
                claims["sub"] = "mallory-666".into();
                Answer::json(200, claims.to_string())
            }
            Userinfo::MissingSub => {
                claims.as_object_mut().map(|c| c.shift_remove("sub"));
                Answer::json(200, claims.to_string())
            }
            Userinfo::Aggregated => {
                claims["_claim_names"] = json!({"address": "src1"});
                let embedded = jwt(&json!({"iss": self.issuer, "address": {"country": "NL"}}), "JWT");
                claims["_claim_sources"] = json!({"src1": {"JWT": embedded}});
                Answer::json(200, claims.to_string())
            }
            Userinfo::Distributed(url) => {
                claims["_claim_names"] = json!({"credit_score": "src2"});
                claims["_claim_sources"] = json!({"src2": {"endpoint": url, "access_token": mark("distributed-")}});
                Answer::json(200, claims.to_string())
            }
            Userinfo::Array => Answer::json(200, json!([claims]).to_string()),
            Userinfo::ReplacesIssuer => {
                claims["iss"] = "https://other.example".into();
                claims["aud"] = "another-client".into();
                Answer::json(200, claims.to_string())
            }
        })
    }

    /// RFC 7662.
    fn introspect(&self, request: &Request, form: &Pairs) -> Result<Answer, Refusal> {
        self.check_form(request, form)?;
        self.check_client(request, form)?;
        let token = get(form, "token").unwrap_or_default();
        let answer = match self.state.lock().access.get(token) {
            Some(access) if access.alive && access.expires > self.now() => {
                json!({"active": true, "exp": access.expires, "token_type": "Bearer"})
            }
            _ => json!({"active": false}),
        };
        Ok(Answer::json(200, answer.to_string()))
    }

    /// RFC 7009: a refresh token takes its session's tokens along; an unknown token is no error.
    fn revoke(&self, request: &Request, form: &Pairs) -> Result<Answer, Refusal> {
        self.check_form(request, form)?;
        self.check_client(request, form)?;
        let token = get(form, "token").unwrap_or_default();
        let state = &mut *self.state.lock();
        if let Some(refresh) = state.refresh.get(token) {
            state.sessions[refresh.session].alive = false;
        } else if let Some(access) = state.access.get_mut(token) {
            access.alive = false;
        }
        Ok(Answer::empty(200))
    }

    fn end_session(&self, request: &Request, form: &Pairs) -> Result<Answer, Refusal> {
        let switches = self.switches.lock().clone();
        let mut params = request.query_pairs();
        params.extend(form.iter().cloned());
        let (hint, back) = (get(&params, "id_token_hint"), get(&params, "post_logout_redirect_uri"));
        {
            let state = &mut *self.state.lock();
            if let Some(hint) = hint {
                let Some(session) = state.sessions.iter_mut().find(|s| s.id_tokens.iter().any(|t| t == hint)) else {
                    return refuse("invalid_request", "id_token_hint was not issued here");
                };
                session.alive = false;
            }
        }
        if back.is_some_and(|uri| !switches.post_logout_redirect_uris.iter().any(|known| known == uri)) {
            return refuse("invalid_request", "post_logout_redirect_uri is not registered");
        }
        let page = Answer::new(200, "text/html", "<!doctype html><title>Signed out</title>");
        let Some(back) = back.filter(|_| switches.logout_return != LogoutReturn::Page) else { return Ok(page) };
        let state = match switches.logout_return {
            LogoutReturn::Right => get(&params, "state").map(str::to_owned),
            LogoutReturn::OtherState => Some(mark("other-state-")),
            LogoutReturn::NoState | LogoutReturn::Page => None,
        };
        let query = state.map(|s| format!("?state={}", percent(s))).unwrap_or_default();
        Ok(Answer::empty(302).with("Location", &format!("{back}{query}")))
    }
}

// -- Dialects ------------------------------------------------------------------------------------------------------

fn styled_error(style: ErrorStyle, status: u16, error: &str, description: &str, grants: Grants) -> Answer {
    let dead = error == "invalid_grant" && grants == Grants::Refresh;
    let standard =
        |error: &str, description: &str| json!({"error": error, "error_description": description}).to_string();
    let answer = match style {
        ErrorStyle::Standard => Answer::json(status, standard(error, description)),
        ErrorStyle::Auth0 => {
            Answer::json(if error == "invalid_grant" { 403 } else { status }, standard(error, description))
        }
        ErrorStyle::Status200 => {
            let error = match error {
                "invalid_grant" if dead => "bad_refresh_token",
                "invalid_grant" => "bad_verification_code",
                "invalid_client" => "incorrect_client_credentials",
                other => other,
            };
            Answer::json(200, standard(error, description))
        }
        ErrorStyle::Errcode => {
            let (code, message) = match error {
                "invalid_grant" if dead => (40030, "invalid refresh_token"),
                "invalid_grant" => (40029, "invalid code"),
                "invalid_client" => (40125, "invalid appsecret"),
                _ => (-1, "system error"),
            };
            let body = json!({"errcode": code, "errmsg": format!("{message}, rid: {}", mark(""))});
            Answer::new(200, "text/plain", body.to_string())
        }
        ErrorStyle::OkFalse => {
            let error = match error {
                "invalid_grant" if dead => "invalid_refresh_token",
                "invalid_grant" => "invalid_code",
                "invalid_client" => "bad_client_secret",
                "temporarily_unavailable" => "ratelimited",
                other => other,
            };
            Answer::json(200, json!({"ok": false, "error": error}).to_string())
        }
        ErrorStyle::DexClaimed if dead => Answer::json(
            400,
            standard("invalid_request", "Refresh token is invalid or has already been claimed by another client."),
        ),
        ErrorStyle::DexExpired if dead => Answer::json(400, standard("invalid_request", "Refresh token expired.")),
        ErrorStyle::Hydra if dead => {
            let description = "The request is missing a required parameter. Failed to refresh token because of \
                               multiple concurrent requests using the same token. Please retry the request.";
            Answer::json(400, standard("invalid_request", description))
        }
        ErrorStyle::DexClaimed | ErrorStyle::DexExpired | ErrorStyle::Hydra => {
            Answer::json(status, standard(error, description))
        }
        ErrorStyle::TextPlain => Answer::new(status, "text/plain; charset=utf-8", standard(error, description)),
        ErrorStyle::Form => {
            let pairs = [("error", error), ("error_description", description)];
            Answer::new(status, "application/x-www-form-urlencoded", text::form(&pairs))
        }
    };
    answer.with("Cache-Control", "no-store")
}

fn styled_answer(style: &AnswerStyle, members: &[(String, String)]) -> Answer {
    let object = |members: &[(String, String)]| {
        let members: Vec<String> = members.iter().map(|(k, v)| format!("{}:{v}", json!(k))).collect();
        format!("{{{}}}", members.join(","))
    };
    match style {
        AnswerStyle::Json => Answer::json(200, object(members)),
        AnswerStyle::JsonAs(kind) => Answer::new(200, kind, object(members)),
        AnswerStyle::Status(status) => Answer::json(*status, object(members)),
        AnswerStyle::OkTrue => {
            let ok = ("ok".to_owned(), "true".to_owned());
            Answer::json(200, object(&[std::slice::from_ref(&ok), members].concat()))
        }
        AnswerStyle::Nested => Answer::json(200, format!("{{\"ok\":true,\"authed_user\":{}}}", object(members))),
        AnswerStyle::WeChat => {
            let named = |(name, json): &(String, String)| match name.as_str() {
                "token_type" => ("openid".to_owned(), json!("o6_bmasdasdsad6_2sgVt7hMZOPfL").to_string()),
                _ => (name.clone(), json.clone()),
            };
            let members: Vec<(String, String)> = members.iter().map(named).collect();
            Answer::new(200, "text/plain", object(&members))
        }
        AnswerStyle::Array => Answer::json(200, format!("[{}]", object(members))),
        AnswerStyle::Doubled => {
            let other = ("access_token".to_owned(), json!(mark("at-")).to_string());
            Answer::json(200, object(&[std::slice::from_ref(&other), members].concat()))
        }
        AnswerStyle::Form => {
            let plain = |(k, v): &(String, String)| {
                let value: Value = serde_json::from_str(v).unwrap_or_default();
                (k.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned))
            };
            let pairs: Pairs = members.iter().map(plain).collect();
            Answer::new(200, "application/x-www-form-urlencoded", text::form(&pairs))
        }
    }
}
