//! The one HTTP client towards the provider: bounded in time and size, no redirects, no proxy from the environment.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use base64_simd::STANDARD;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use ring::hmac;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Map, Value};
use tokio::time::Instant;
use url::{Url, form_urlencoded};

use super::dialect::Manner;
use super::dpop::{self, DpopKey, Nonces};
use super::error::ProviderError;
use super::settings::{CertificateFiles, ClientAuth, Settings};
use super::signing::{SigningKey, fresh_id, hs256_jwt};
use super::token::{Answer, Form, retry_after};
use super::types::AccessToken;
use crate::clock::Clock;

/// The largest document that is read, in bytes.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;
/// Below the five seconds after which common servers close an idle connection: a request that meets the closing is
/// lost, and a code cannot be sent twice.
const POOL_IDLE: Duration = Duration::from_secs(4);
/// How long a client assertion holds. Five minutes are the most that FAPI 2.0 allows; clocks differ, so not much less
/// than two.
const ASSERTION_LIFE: Duration = Duration::from_secs(120);

const DPOP_NONCE: HeaderName = HeaderName::from_static("dpop-nonce");

/// Told the endpoint's name and the duration of every call.
pub type Observer = Box<dyn Fn(&'static str, Duration) + Send + Sync>;

/// Why the client cannot be built: a sentence that names the configuration key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupError(pub String);

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SetupError {}

/// Why there is no answer. What it means depends on what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallError {
    /// Nothing was sent: no name, no connection, no trust.
    Unreachable(&'static str),
    /// Sent, and then silence, a lost connection or a broken answer.
    Lost(&'static str),
    /// An answer above [`MAX_BODY_BYTES`].
    TooLarge,
}

impl CallError {
    /// Of a request that changes nothing there: whatever happened, try again.
    pub const fn of_read(self) -> ProviderError {
        match self {
            Self::Unreachable(reason) | Self::Lost(reason) => ProviderError::Unavailable { reason, retry_after: None },
            Self::TooLarge => ProviderError::Refused { reason: "too_large" },
        }
    }

    /// Of a grant, which may have been spent.
    pub const fn of_grant(self) -> ProviderError {
        match self {
            Self::Unreachable(reason) => ProviderError::Unavailable { reason, retry_after: None },
            Self::Lost(reason) => ProviderError::Ambiguous { reason },
            Self::TooLarge => ProviderError::Invalid { reason: "too_large" },
        }
    }
}

/// The client; cheap to share.
#[derive(Clone)]
pub struct Client {
    http: Arc<ArcSwap<reqwest::Client>>,
    auth: Arc<Auth>,
    client_id: String,
    /// Whom client assertions are made for.
    issuer: String,
    nonces: Arc<Nonces>,
    timeout: Duration,
    clock: Clock,
    observer: Arc<dyn Fn(&'static str, Duration) + Send + Sync>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// Client authentication, made ready once.
enum Auth {
    Basic(HeaderValue),
    Post(crate::secret::Secret),
    SecretJwt(hmac::Key),
    KeyJwt(Arc<SigningKey>),
    /// The id alone: nothing proves it, or the connection's certificate does.
    Id,
}

/// What a call to a protected resource of the provider carries.
#[derive(Clone, Copy, Debug)]
pub struct Credential<'a> {
    /// The access token.
    pub token: &'a AccessToken,
    /// The key that it is bound to.
    pub dpop: Option<&'a DpopKey>,
}

impl Client {
    /// Reads the trust anchors; connects nowhere.
    ///
    /// # Errors
    /// A sentence that names `provider.ca_file`, `provider.proxy` or `provider.issuer`.
    pub fn new(settings: &Settings, clock: Clock, observer: Observer) -> Result<Self, SetupError> {
        Self::with_shared_observer(settings, clock, Arc::from(observer), Arc::default())
    }

    fn with_shared_observer(
        settings: &Settings,
        clock: Clock,
        observer: Arc<dyn Fn(&'static str, Duration) + Send + Sync>,
        nonces: Arc<Nonces>,
    ) -> Result<Self, SetupError> {
        let client_id = settings.client_id.clone();
        let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let auth = match &settings.client_auth {
            // RFC 6749 section 2.3.1: both parts are form-encoded before they are joined.
            ClientAuth::Basic(secret) => Auth::Basic(basic(&encoded(&client_id), &encoded(secret.expose()))?),
            ClientAuth::BasicRaw(secret) => Auth::Basic(basic(&client_id, secret.expose())?),
            ClientAuth::Post(secret) => Auth::Post(secret.clone()),
            ClientAuth::SecretJwt(secret) => {
                Auth::SecretJwt(hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes()))
            }
            ClientAuth::PrivateKeyJwt(key) => Auth::KeyJwt(Arc::clone(key)),
            ClientAuth::Tls | ClientAuth::None => Auth::Id,
        };
        Ok(Self {
            http: Arc::new(ArcSwap::from_pointee(build(settings)?)),
            auth: Arc::new(auth),
            client_id,
            issuer: settings.issuer.clone(),
            nonces,
            timeout: settings.timeout,
            clock,
            observer,
        })
    }

    /// The same for new settings.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn renewed(&self, settings: &Settings) -> Result<Self, SetupError> {
        let (observer, nonces) = (Arc::clone(&self.observer), Arc::clone(&self.nonces));
        Self::with_shared_observer(settings, self.clock.clone(), observer, nonces)
    }

    /// Reads a document, with an access token where the endpoint wants one (RFC 6750 section 2.1, RFC 9449 section 7).
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn get(
        &self,
        endpoint: &'static str,
        url: &Url,
        credential: Option<Credential<'_>>,
    ) -> Result<Answer, CallError> {
        let http = self.http.load();
        let request = || {
            let request = http.get(url.clone()).header(ACCEPT, "application/json, application/jwt;q=0.9");
            let Some(Credential { token, dpop }) = credential else { return Ok(request) };
            let scheme = if dpop.is_some() { "DPoP" } else { "Bearer" };
            let value = format!("{scheme} {}", token.expose());
            let request = request.header(AUTHORIZATION, sensitive(&value).ok_or(CallError::Unreachable("bearer"))?);
            self.proven(request, "GET", url, Some(token), dpop)
        };
        self.sent(endpoint, url, credential.is_some_and(|credential| credential.dpop.is_some()), request).await
    }

    /// Posts a form with our client authentication: exactly one method. With a key the request carries a DPoP proof
    /// (RFC 9449 section 5).
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn post(
        &self,
        endpoint: &'static str,
        url: &Url,
        form: &Form,
        dpop: Option<&DpopKey>,
    ) -> Result<Answer, CallError> {
        self.post_as(endpoint, url, form, dpop, &Manner::default()).await
    }

    /// The same in the provider's own manner, which may be a GET.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn post_as(
        &self,
        endpoint: &'static str,
        url: &Url,
        form: &Form,
        dpop: Option<&DpopKey>,
        manner: &Manner,
    ) -> Result<Answer, CallError> {
        let http = self.http.load();
        let request = || {
            // Made anew for each try: an assertion holds once.
            let (mut form, mut header) = (form.clone(), None);
            match self.auth.as_ref() {
                _ if !manner.secret => form.set(&manner.client_id_param, &self.client_id),
                Auth::Basic(basic) => header = Some(basic.clone()),
                Auth::Post(secret) => {
                    form.set(&manner.client_id_param, &self.client_id);
                    form.set(&manner.client_secret_param, secret.expose());
                }
                Auth::SecretJwt(key) => self.assert_by(&mut form, |claims| hs256_jwt(key, claims))?,
                Auth::KeyJwt(key) => self.assert_by(&mut form, |claims| key.jwt("JWT", None, claims))?,
                Auth::Id => form.set(&manner.client_id_param, &self.client_id),
            }
            let (request, method) = if manner.get {
                let mut url = url.clone();
                url.query_pairs_mut().extend_pairs(form.pairs());
                (http.get(url), "GET")
            } else {
                let request = http.post(url.clone()).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
                (request.body(form.encoded().to_owned()), "POST")
            };
            let request = self.proven(request.header(ACCEPT, manner.accept.as_str()), method, url, None, dpop)?;
            Ok(match header {
                Some(header) => request.header(AUTHORIZATION, header),
                None => request,
            })
        };
        self.sent(endpoint, url, dpop.is_some(), request).await
    }

    /// Revokes an access token as GitHub wants it: `DELETE`, with the token in a JSON body.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn delete_token(&self, url: &Url, token: &AccessToken) -> Result<Answer, CallError> {
        let body = serde_json::json!({"access_token": token.expose()}).to_string();
        let request = self.http.load().delete(url.clone()).header(CONTENT_TYPE, "application/json").body(body);
        let request = match self.auth.as_ref() {
            Auth::Basic(header) => request.header(AUTHORIZATION, header.clone()),
            Auth::Post(secret) => {
                let header = basic(&self.client_id, secret.expose()).ok();
                request.header(AUTHORIZATION, header.ok_or(CallError::Unreachable("client_auth"))?)
            }
            _ => return Err(CallError::Unreachable("client_auth")),
        };
        self.send("revocation", request).await
    }

    /// A client assertion (RFC 7523 section 3, OpenID Connect Core section 9; one audience as FAPI 2.0 wants it).
    fn assert_by(
        &self,
        form: &mut Form,
        sign: impl FnOnce(&Map<String, Value>) -> Option<String>,
    ) -> Result<(), CallError> {
        const FAILED: CallError = CallError::Unreachable("client_assertion");
        let now = self.clock.now();
        let mut claims = Map::new();
        let mut put = |name: &str, value: Value| claims.insert(name.to_owned(), value);
        put("iss", self.client_id.as_str().into());
        put("sub", self.client_id.as_str().into());
        put("aud", self.issuer.as_str().into());
        put("jti", fresh_id().ok_or(FAILED)?.into());
        put("iat", now.as_secs().into());
        put("exp", (now + ASSERTION_LIFE).as_secs().into());
        form.set("client_id", &self.client_id);
        form.set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer");
        form.set("client_assertion", &sign(&claims).ok_or(FAILED)?);
        Ok(())
    }

    fn proven(
        &self,
        request: reqwest::RequestBuilder,
        method: &str,
        url: &Url,
        token: Option<&AccessToken>,
        key: Option<&DpopKey>,
    ) -> Result<reqwest::RequestBuilder, CallError> {
        let Some(key) = key else { return Ok(request) };
        let nonce = self.nonces.get(&origin(url));
        let proof = key.proof(method, &dpop::htu(url), token, nonce.as_deref(), self.clock.now());
        let proof = proof.as_deref().and_then(sensitive).ok_or(CallError::Unreachable("dpop_proof"))?;
        Ok(request.header("dpop", proof))
    }

    /// Sends what `request` makes, and once more when the server wants its nonce in the proof (RFC 9449 section 8).
    async fn sent(
        &self,
        endpoint: &'static str,
        url: &Url,
        proven: bool,
        request: impl Fn() -> Result<reqwest::RequestBuilder, CallError>,
    ) -> Result<Answer, CallError> {
        let answer = self.send(endpoint, request()?).await?;
        let news =
            answer.dpop_nonce.as_deref().filter(|_| proven).is_some_and(|nonce| self.nonces.put(&origin(url), nonce));
        if !news || !answer.demands_nonce() {
            return Ok(answer);
        }
        let answer = self.send(endpoint, request()?).await?;
        if let Some(nonce) = &answer.dpop_nonce {
            self.nonces.put(&origin(url), nonce);
        }
        Ok(answer)
    }

    async fn send(&self, endpoint: &'static str, request: reqwest::RequestBuilder) -> Result<Answer, CallError> {
        let started = Instant::now();
        // Connecting has half of the time (see `build`), so when this ends the request was sent.
        let outcome = match tokio::time::timeout(self.timeout, self.exchange(request)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(CallError::Lost("timeout")),
        };
        (self.observer)(endpoint, started.elapsed());
        outcome
    }

    async fn exchange(&self, request: reqwest::RequestBuilder) -> Result<Answer, CallError> {
        let mut response = request.send().await.map_err(|error| blame(&error))?;
        let text = |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let content_type = text(CONTENT_TYPE).and_then(|value| value.split(';').next()).unwrap_or_default();
        let content_type = content_type.trim().to_ascii_lowercase();
        let retry_after = text(RETRY_AFTER).and_then(|value| retry_after(value, self.clock.now()));
        let announced = text(CONTENT_LENGTH).and_then(|value| value.parse::<u64>().ok());
        if announced.is_some_and(|length| length > MAX_BODY_BYTES as u64) {
            return Err(CallError::TooLarge);
        }
        let dpop_nonce = text(DPOP_NONCE).map(str::to_owned);
        let challenges = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let nonce_challenge = challenges.filter_map(|value| value.to_str().ok()).any(dpop::demands_nonce);
        let status = response.status().as_u16();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|_| CallError::Lost("cut_off"))? {
            if body.len() + chunk.len() > MAX_BODY_BYTES {
                return Err(CallError::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, content_type, retry_after, dpop_nonce, nonce_challenge, body })
    }
}

fn blame(error: &reqwest::Error) -> CallError {
    if error.is_connect() {
        return CallError::Unreachable(if is_tls(error) {
            "tls"
        } else if error.is_timeout() {
            "connect_timeout"
        } else {
            "connect"
        });
    }
    if error.is_builder() {
        return CallError::Unreachable("request");
    }
    CallError::Lost("lost")
}

/// Whether TLS refused, so that the log can say that it is a matter of trust and not of the network.
fn is_tls(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if error.is::<rustls::Error>() {
            return true;
        }
        // What an `io::Error` wraps is not its source, but its source's predecessor.
        cause = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

/// The origin of a URL, by which nonces are kept.
fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

fn basic(client_id: &str, secret: &str) -> Result<HeaderValue, SetupError> {
    sensitive(&format!("Basic {}", STANDARD.encode_to_string(format!("{client_id}:{secret}"))))
        .ok_or_else(|| SetupError("provider.client_secret does not fit into a header".to_owned()))
}

fn sensitive(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn build(settings: &Settings) -> Result<reqwest::Client, SetupError> {
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls(settings)?)
        .user_agent(settings.dialect.user_agent.as_deref().unwrap_or("sidegate"))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .connect_timeout(settings.timeout / 2)
        .pool_idle_timeout(POOL_IDLE)
        .no_proxy();
    if let Some(proxy) = &settings.proxy {
        let refused = |_| SetupError("provider.proxy is not the URL of an HTTP proxy".to_owned());
        builder = builder.proxy(reqwest::Proxy::all(proxy.clone()).map_err(refused)?);
    }
    builder.build().map_err(|_| SetupError("the client of the provider cannot be set up: see provider.*".to_owned()))
}

/// TLS 1.2 and up with *ring*, the system's trust anchors and the operator's.
fn tls(settings: &Settings) -> Result<rustls::ClientConfig, SetupError> {
    let mut roots = rustls::RootCertStore::empty();
    let (_, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = &settings.ca_file {
        for anchor in anchors(path)? {
            roots.add(anchor).map_err(|_| unreadable(CA_FILE, path, "holds a certificate that is no trust anchor"))?;
        }
    }
    if roots.is_empty() && settings.discovery_url.as_ref().is_none_or(|url| url.scheme() == "https") {
        return Err(SetupError(
            "provider.ca_file is needed: this system has no trust anchors, so no https provider can be verified"
                .to_owned(),
        ));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|_| SetupError("TLS cannot be set up".to_owned()))?
        .with_root_certificates(roots);
    let mut config = match &settings.client_certificate {
        Some(files) => {
            let (chain, key) = client_certificate(files)?;
            config.with_client_auth_cert(chain, key).map_err(|_| {
                unreadable("provider.tls_key_file", &files.key, "is not the key of provider.tls_cert_file")
            })?
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

const CA_FILE: &str = "provider.ca_file";

fn anchors(path: &Path) -> Result<Vec<CertificateDer<'static>>, SetupError> {
    certificates(CA_FILE, path)
}

fn client_certificate(
    files: &CertificateFiles,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), SetupError> {
    let chain = certificates("provider.tls_cert_file", &files.cert)?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|_| unreadable("provider.tls_key_file", &files.key, "holds no private key in PEM form"))?;
    Ok((chain, key))
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, SetupError> {
    let pem =
        std::fs::read(path).map_err(|error| unreadable(key, path, &format!("cannot be read: {}", error.kind())))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(unreadable(key, path, "holds no certificate in PEM form")),
    }
}

fn unreadable(key: &str, path: &Path, what: &str) -> SetupError {
    SetupError(format!("{key}: {} {what}", path.display()))
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
