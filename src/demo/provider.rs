//! The demo's provider: discovery, authorization-code flow with PKCE, strictly rotating refresh tokens, logout. Two
//! users, no consent, everything in memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64_simd::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use parking_lot::Mutex;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

use crate::clock::{Clock, Timestamp};
use crate::crypto::random;

/// Short enough that a refresh can be watched.
const ACCESS_LIFE: Duration = Duration::from_secs(20);
const CODE_LIFE: Duration = Duration::from_secs(60);
/// What the demo's gateway calls itself there.
pub(super) const CLIENT_ID: &str = "sidegate-demo";

/// The two users: subject, name, e-mail.
pub(super) const USERS: [(&str, &str, &str); 2] =
    [("alice", "Alice Example", "alice@example.test"), ("bob", "Bob Example", "bob@example.test")];

/// The provider's memory.
pub(super) struct DemoProvider {
    issuer: String,
    client_secret: String,
    app: String,
    key: EcdsaKeyPair,
    clock: Clock,
    store: Mutex<Store>,
}

#[derive(Default)]
struct Store {
    codes: HashMap<String, Granted>,
    /// Refresh token to (family, user); spent ones stay, so that a second use is seen.
    refresh: HashMap<String, (u64, &'static str, bool)>,
    access: HashMap<String, (u64, &'static str, Timestamp)>,
    families: u64,
    dead: Vec<u64>,
    /// The provider's own login sessions, by cookie.
    browsers: HashMap<String, &'static str>,
    refreshes: u64,
}

struct Granted {
    user: &'static str,
    challenge: String,
    redirect_uri: String,
    nonce: String,
    until: Timestamp,
}

type Answer = Response<Full<Bytes>>;

impl DemoProvider {
    pub(super) fn new(issuer: String, app: String, client_secret: String, clock: Clock) -> Option<Arc<Self>> {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).ok()?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).ok()?;
        Some(Arc::new(Self { issuer, client_secret, app, key, clock, store: Mutex::default() }))
    }

    /// The user behind a live access token, and how many refreshes were asked for so far.
    pub(super) fn introspect(&self, token: &str) -> (Option<&'static str>, u64) {
        let now = self.clock.now();
        let store = self.store.lock();
        let live = store.access.get(token).filter(|(family, _, until)| *until > now && !store.dead.contains(family));
        (live.map(|(_, user, _)| *user), store.refreshes)
    }

    pub(super) async fn serve(self: Arc<Self>, request: Request<Incoming>) -> Answer {
        let (parts, body) = request.into_parts();
        let cookie = parts.headers.get(header::COOKIE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let browser = cookie.split("; ").find_map(|pair| pair.strip_prefix("demo-idp=")).map(ToOwned::to_owned);
        let authorization =
            parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).map(ToOwned::to_owned);
        let query = fields(parts.uri.query().unwrap_or_default().as_bytes());
        let form = match Limited::new(body, 64 * 1024).collect().await {
            Ok(body) => fields(&body.to_bytes()),
            Err(_) => return text(StatusCode::PAYLOAD_TOO_LARGE, "too large"),
        };
        match (&parts.method, parts.uri.path()) {
            (&Method::GET, "/.well-known/openid-configuration") => self.metadata(),
            (&Method::GET, "/jwks") => self.jwks(),
            (&Method::GET, "/authorize") => self.authorize(&query, browser.as_deref()),
            (&Method::POST, "/authorize") => self.chosen(&form),
            (&Method::POST, "/token") => self.token(&form, authorization.as_deref()),
            (&Method::POST, "/revoke") => self.revoke(&form, authorization.as_deref()),
            (&Method::GET, "/logout") => self.logout(&query, browser.as_deref()),
            // Asked for by every browser; an error in its console would look like one of ours.
            (&Method::GET, "/favicon.ico") => text(StatusCode::NO_CONTENT, ""),
            _ => text(StatusCode::NOT_FOUND, "not found"),
        }
    }

    fn metadata(&self) -> Answer {
        let at = |path: &str| format!("{}{path}", self.issuer);
        json_answer(
            StatusCode::OK,
            &json!({
                "issuer": self.issuer,
                "authorization_endpoint": at("/authorize"),
                "token_endpoint": at("/token"),
                "jwks_uri": at("/jwks"),
                "revocation_endpoint": at("/revoke"),
                "end_session_endpoint": at("/logout"),
                "response_types_supported": ["code"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"],
                "code_challenge_methods_supported": ["S256"],
                "scopes_supported": ["openid", "profile", "email", "offline_access"],
                "token_endpoint_auth_methods_supported": ["client_secret_basic"],
                "authorization_response_iss_parameter_supported": true,
            }),
        )
    }

    fn jwks(&self) -> Answer {
        let point = self.key.public_key().as_ref();
        let (x, y) = point.get(1..33).zip(point.get(33..65)).unwrap_or_default();
        let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode_to_string(bytes);
        json_answer(
            StatusCode::OK,
            &json!({ "keys": [{
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": "demo", "x": b64(x), "y": b64(y),
        }] }),
        )
    }

    /// Known browser: straight back with a code. Unknown: a page to choose a user.
    fn authorize(&self, query: &HashMap<String, String>, browser: Option<&str>) -> Answer {
        let value = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
        let redirect_uri = format!("{}/auth/callback", self.app);
        if value("client_id") != CLIENT_ID || value("redirect_uri") != redirect_uri {
            return text(StatusCode::BAD_REQUEST, "unknown client or redirect_uri");
        }
        if value("response_type") != "code" || value("code_challenge_method") != "S256" {
            return text(StatusCode::BAD_REQUEST, "only the code flow with PKCE S256 is offered");
        }
        let known = browser.and_then(|browser| self.store.lock().browsers.get(browser).copied());
        match (known, value("prompt")) {
            (Some(user), prompt) if prompt != "login" => self.grant(user, query),
            (_, "none") => redirect(&format!(
                "{redirect_uri}?error=login_required&state={}&iss={}",
                encode(value("state")),
                encode(&self.issuer)
            )),
            _ => chooser(query),
        }
    }

    fn chosen(&self, form: &HashMap<String, String>) -> Answer {
        let user = form.get("user").and_then(|wanted| USERS.iter().find(|(subject, ..)| subject == wanted));
        let Some((user, ..)) = user else { return text(StatusCode::BAD_REQUEST, "no such user") };
        if form.get("redirect_uri").map(String::as_str) != Some(&format!("{}/auth/callback", self.app)) {
            return text(StatusCode::BAD_REQUEST, "unknown redirect_uri");
        }
        let browser = random::base64url::<24>();
        self.store.lock().browsers.insert(browser.clone(), user);
        let mut answer = self.grant(user, form);
        let cookie = format!("demo-idp={browser}; Path=/; HttpOnly; SameSite=Lax");
        if let Ok(cookie) = cookie.parse() {
            answer.headers_mut().insert(header::SET_COOKIE, cookie);
        }
        answer
    }

    fn grant(&self, user: &'static str, asked: &HashMap<String, String>) -> Answer {
        let value = |name: &str| asked.get(name).cloned().unwrap_or_default();
        let code = random::base64url::<24>();
        let granted = Granted {
            user,
            challenge: value("code_challenge"),
            redirect_uri: value("redirect_uri"),
            nonce: value("nonce"),
            until: self.clock.now() + CODE_LIFE,
        };
        let location = format!(
            "{}?code={code}&state={}&iss={}",
            granted.redirect_uri,
            encode(&value("state")),
            encode(&self.issuer)
        );
        self.store.lock().codes.insert(code, granted);
        redirect(&location)
    }

    fn token(&self, form: &HashMap<String, String>, authorization: Option<&str>) -> Answer {
        if !self.is_client(authorization) {
            return oauth_error(StatusCode::UNAUTHORIZED, "invalid_client");
        }
        let value = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
        match value("grant_type") {
            "authorization_code" => {
                let granted = self.store.lock().codes.remove(value("code"));
                let challenge = {
                    let digest = ring::digest::digest(&ring::digest::SHA256, value("code_verifier").as_bytes());
                    URL_SAFE_NO_PAD.encode_to_string(digest)
                };
                match granted {
                    Some(granted)
                        if granted.until > self.clock.now()
                            && granted.challenge == challenge
                            && granted.redirect_uri == value("redirect_uri") =>
                    {
                        let family = {
                            let mut store = self.store.lock();
                            store.families += 1;
                            store.families
                        };
                        self.issue(family, granted.user, Some(&granted.nonce))
                    }
                    _ => oauth_error(StatusCode::BAD_REQUEST, "invalid_grant"),
                }
            }
            "refresh_token" => {
                let found = {
                    let mut store = self.store.lock();
                    store.refreshes += 1;
                    let found = store.refresh.get(value("refresh_token")).copied();
                    match found {
                        // Spent twice: the whole family dies, as with a strict provider.
                        Some((family, _, true)) => {
                            store.dead.push(family);
                            None
                        }
                        Some((family, user, false)) if !store.dead.contains(&family) => {
                            store.refresh.insert(value("refresh_token").to_owned(), (family, user, true));
                            Some((family, user))
                        }
                        _ => None,
                    }
                };
                match found {
                    Some((family, user)) => self.issue(family, user, None),
                    None => oauth_error(StatusCode::BAD_REQUEST, "invalid_grant"),
                }
            }
            _ => oauth_error(StatusCode::BAD_REQUEST, "unsupported_grant_type"),
        }
    }

    fn issue(&self, family: u64, user: &'static str, nonce: Option<&str>) -> Answer {
        let now = self.clock.now();
        let access = random::base64url::<32>();
        let refresh = random::base64url::<32>();
        {
            let mut store = self.store.lock();
            store.access.retain(|_, (_, _, until)| *until > now);
            store.access.insert(access.clone(), (family, user, now + ACCESS_LIFE));
            store.refresh.insert(refresh.clone(), (family, user, false));
        }
        let (_, name, email) = USERS.iter().find(|(subject, ..)| *subject == user).copied().unwrap_or(USERS[0]);
        let mut claims = json!({
            "iss": self.issuer, "sub": user, "aud": CLIENT_ID, "iat": now.as_secs(), "exp": now.as_secs() + 300,
            "auth_time": now.as_secs(), "name": name, "preferred_username": user, "email": email,
        });
        if let (Some(nonce), Value::Object(claims)) = (nonce, &mut claims) {
            claims.insert("nonce".to_owned(), json!(nonce));
        }
        let mut answer = json!({
            "access_token": access, "token_type": "Bearer", "expires_in": ACCESS_LIFE.as_secs(),
            "refresh_token": refresh, "scope": "openid profile email offline_access",
        });
        // Only at login: a refreshed one would have to repeat the first auth_time.
        if let (Some(_), Some(signed), Value::Object(answer)) = (nonce, self.sign(&claims), &mut answer) {
            answer.insert("id_token".to_owned(), json!(signed));
        }
        json_answer(StatusCode::OK, &answer)
    }

    fn sign(&self, claims: &Value) -> Option<String> {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode_to_string(value.to_string());
        let message = format!("{}.{}", part(&json!({ "alg": "ES256", "typ": "JWT", "kid": "demo" })), part(claims));
        let signature = self.key.sign(&SystemRandom::new(), message.as_bytes()).ok()?;
        Some(format!("{message}.{}", URL_SAFE_NO_PAD.encode_to_string(signature)))
    }

    fn revoke(&self, form: &HashMap<String, String>, authorization: Option<&str>) -> Answer {
        if !self.is_client(authorization) {
            return oauth_error(StatusCode::UNAUTHORIZED, "invalid_client");
        }
        let token = form.get("token").map(String::as_str).unwrap_or_default();
        let mut store = self.store.lock();
        let family = store.refresh.get(token).map(|(family, ..)| *family);
        let family = family.or_else(|| store.access.get(token).map(|(family, ..)| *family));
        store.dead.extend(family);
        text(StatusCode::OK, "")
    }

    fn logout(&self, query: &HashMap<String, String>, browser: Option<&str>) -> Answer {
        if let Some(browser) = browser {
            self.store.lock().browsers.remove(browser);
        }
        let back = format!("{}/auth/logout/return", self.app);
        match query.get("post_logout_redirect_uri") {
            Some(wanted) if *wanted == back => redirect(&back),
            _ => text(StatusCode::OK, "You are logged out."),
        }
    }

    fn is_client(&self, authorization: Option<&str>) -> bool {
        use subtle::ConstantTimeEq;
        let sent = authorization.and_then(|value| value.strip_prefix("Basic ")).unwrap_or_default();
        let own = base64_simd::STANDARD.encode_to_string(format!("{CLIENT_ID}:{}", self.client_secret));
        sent.as_bytes().ct_eq(own.as_bytes()).into()
    }
}

/// The page on which the user says who they are. The request's parameters travel on as hidden fields.
fn chooser(query: &HashMap<String, String>) -> Answer {
    let hidden: String = query
        .iter()
        .filter(|(name, _)| matches!(name.as_str(), "redirect_uri" | "state" | "nonce" | "code_challenge"))
        .map(|(name, value)| format!("<input type=\"hidden\" name=\"{}\" value=\"{}\">", escape(name), escape(value)))
        .collect();
    let buttons: String = USERS
        .iter()
        .map(|(subject, name, email)| {
            format!("<button name=\"user\" value=\"{subject}\"><b>{name}</b><span>{email}</span></button>")
        })
        .collect();
    let page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>Demo provider</title><style>{STYLE}</style></head><body><main><h1>Demo provider</h1>\
         <p>This stands for your login service. Who are you?</p><form method=\"post\" action=\"/authorize\">{hidden}{buttons}</form>\
         </main></body></html>"
    );
    answer(StatusCode::OK, "text/html; charset=utf-8", page)
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;background:#f1ecf7;color:#241a33;margin:0;display:grid;place-items:center;min-height:100vh}\
main{background:#fff;border-radius:12px;padding:2rem;max-width:22rem;width:calc(100% - 2rem);box-sizing:border-box}h1{margin:0;font-size:1.3rem}\
button{display:block;width:100%;text-align:left;font:inherit;padding:.8rem 1rem;margin-top:.8rem;border:1px solid #cfc3e0;border-radius:8px;background:#faf8fd;cursor:pointer}\
button:hover{background:#efe8f8}button:focus-visible{outline:3px solid #6b3fa0}span{display:block;color:#5e5370;font-size:.9rem}";

fn fields(bytes: &[u8]) -> HashMap<String, String> {
    url::form_urlencoded::parse(bytes).into_owned().collect()
}

fn encode(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;").replace('>', "&gt;")
}

fn oauth_error(status: StatusCode, error: &str) -> Answer {
    json_answer(status, &json!({ "error": error }))
}

pub(super) fn json_answer(status: StatusCode, document: &Value) -> Answer {
    answer(status, "application/json", document.to_string())
}

pub(super) fn text(status: StatusCode, message: &'static str) -> Answer {
    answer(status, "text/plain; charset=utf-8", message)
}

pub(super) fn answer(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, http::HeaderValue::from_static(media_type));
    headers.insert(header::CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
    response
}

fn redirect(location: &str) -> Answer {
    let mut response = text(StatusCode::SEE_OTHER, "");
    if let Ok(location) = location.parse() {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}
