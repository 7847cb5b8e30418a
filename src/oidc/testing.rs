//! Helpers of this layer's tests: settings, keys that sign, a scripted HTTP server on loopback.

use std::sync::Arc;
use std::time::Duration;

use base64_simd::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

use super::dialect::Dialect;
use super::jwt::Algorithm;
use super::metadata::ProviderMetadata;
use super::settings::{ClientAuth, Endpoints, LogoutStyle, Par, RequestObject, Settings};
use crate::secret::Secret;

pub(crate) fn settings(issuer: &str) -> Settings {
    Settings {
        issuer: issuer.to_owned(),
        name: None,
        has_issuer: true,
        allowed_tenants: Vec::new(),
        openid: true,
        dialect: Dialect::default(),
        discovery_url: Url::parse(&format!("{issuer}/.well-known/openid-configuration")).ok(),
        other_discovery_url: None,
        backchannel_base_url: None,
        client_id: "spa".to_owned(),
        client_auth: ClientAuth::Basic(Secret::new("s3cret")),
        signing_key: None,
        client_certificate: None,
        par: Par::Auto,
        request_object: RequestObject::Auto,
        dpop: false,
        form_post: false,
        iss_required: false,
        ca_file: None,
        scopes: vec!["openid".to_owned(), "offline_access".to_owned()],
        required_scopes: Vec::new(),
        audience: None,
        resource: Vec::new(),
        authorize_params: Vec::new(),
        token_params: Vec::new(),
        login_params: Vec::new(),
        id_token_alg: Algorithm::Rs256,
        trusted_audiences: Vec::new(),
        userinfo: false,
        endpoints: Endpoints::default(),
        timeout: Duration::from_secs(5),
        clock_skew: Duration::from_secs(60),
        proxy: None,
        default_expires_in: None,
        own_callback: None,
        id_token_decryption: None,
        introspection: None,
        backchannel_logout: false,
        frontchannel_logout: false,
        redirect_uri: "https://app.example/auth/callback".to_owned(),
        post_logout_redirect_uri: "https://app.example/auth/logout/return".to_owned(),
        logout_at_provider: true,
        logout_style: LogoutStyle::Oidc,
        revoke: true,
    }
}

pub(crate) fn discovery(issuer: &str) -> Value {
    json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/authorize"),
        "token_endpoint": format!("{issuer}/token"),
        "jwks_uri": format!("{issuer}/jwks"),
        "userinfo_endpoint": format!("{issuer}/userinfo"),
        "end_session_endpoint": format!("{issuer}/end"),
        "revocation_endpoint": format!("{issuer}/revoke"),
    })
}

pub(crate) fn metadata(issuer: &str) -> ProviderMetadata {
    ProviderMetadata::parse(discovery(issuer).to_string().as_bytes(), &settings(issuer)).unwrap()
}

pub(crate) fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode_to_string(bytes)
}

/// A key that signs; RSA by the test key beside this file, the others freshly made.
pub(crate) struct Signer {
    pub(crate) kid: Option<String>,
    pub(crate) algorithm: Algorithm,
    key: Key,
}

enum Key {
    Rsa(Box<signature::RsaKeyPair>),
    /// With its private scalar, if it is of P-256.
    Ec(EcdsaKeyPair, &'static str, Vec<u8>),
    Ed(Ed25519KeyPair),
}

impl Signer {
    pub(crate) fn new(algorithm: Algorithm, kid: Option<&str>) -> Self {
        let random = SystemRandom::new();
        let ec = |flavour, curve| {
            let document = EcdsaKeyPair::generate_pkcs8(flavour, &random).unwrap();
            let pair = EcdsaKeyPair::from_pkcs8(flavour, document.as_ref(), &random).unwrap();
            Key::Ec(pair, curve, document.as_ref()[36..68].to_vec())
        };
        let key = match algorithm {
            Algorithm::Es256 => ec(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256"),
            Algorithm::Es384 => ec(&signature::ECDSA_P384_SHA384_FIXED_SIGNING, "P-384"),
            Algorithm::EdDsa => {
                let document = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
                Key::Ed(Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap())
            }
            _ => {
                let document = include_bytes!("testdata/rsa2048.pk8");
                Key::Rsa(Box::new(signature::RsaKeyPair::from_pkcs8(document).unwrap()))
            }
        };
        Self { kid: kid.map(str::to_owned), algorithm, key }
    }

    pub(crate) fn jwk(&self) -> Value {
        let mut jwk = match &self.key {
            Key::Rsa(key) => {
                let public = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(key.public());
                json!({"kty": "RSA", "n": b64(public.n), "e": b64(public.e)})
            }
            Key::Ec(key, curve, _) => {
                let point = &key.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                json!({"kty": "EC", "crv": curve, "x": b64(x), "y": b64(y)})
            }
            Key::Ed(key) => json!({"kty": "OKP", "crv": "Ed25519", "x": b64(key.public_key())}),
        };
        if let Some(kid) = &self.kid {
            jwk["kid"] = json!(kid);
        }
        jwk
    }

    /// The whole key as a JWK file; P-256 only.
    pub(crate) fn private_jwk(&self, kid: &str) -> Vec<u8> {
        let Key::Ec(_, "P-256", scalar) = &self.key else { panic!("P-256 only") };
        let mut jwk = self.jwk();
        jwk["d"] = json!(b64(scalar));
        jwk["kid"] = json!(kid);
        jwk.to_string().into_bytes()
    }

    pub(crate) fn header(&self) -> Value {
        let mut header = json!({"alg": self.algorithm.name(), "typ": "JWT"});
        if let Some(kid) = &self.kid {
            header["kid"] = json!(kid);
        }
        header
    }

    pub(crate) fn signature(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.key {
            Key::Rsa(key) => {
                let padding: &dyn signature::RsaEncoding = match self.algorithm {
                    Algorithm::Rs384 => &signature::RSA_PKCS1_SHA384,
                    Algorithm::Rs512 => &signature::RSA_PKCS1_SHA512,
                    Algorithm::Ps256 => &signature::RSA_PSS_SHA256,
                    Algorithm::Ps384 => &signature::RSA_PSS_SHA384,
                    Algorithm::Ps512 => &signature::RSA_PSS_SHA512,
                    _ => &signature::RSA_PKCS1_SHA256,
                };
                let mut bytes = vec![0; key.public().modulus_len()];
                key.sign(padding, &random, message, &mut bytes).unwrap();
                bytes
            }
            Key::Ec(key, ..) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Key::Ed(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    /// Signs texts, so that malformed ones can be made too.
    pub(crate) fn sign_text(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", b64(header), b64(claims));
        format!("{signed}.{}", b64(self.signature(signed.as_bytes())))
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_text(&self.header().to_string(), &claims.to_string())
    }
}

/// A request as the scripted server saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) target: String,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
    }

    pub(crate) fn form(&self, name: &str) -> Option<String> {
        let mut pairs = url::form_urlencoded::parse(self.body.as_bytes());
        pairs.find(|(known, _)| known == name).map(|(_, value)| value.into_owned())
    }
}

/// What the scripted server does with a request.
pub(crate) enum Reply {
    Json(u16, Value),
    Raw(String),
    /// Closes without an answer.
    Drop,
    /// Never answers.
    Hang,
}

impl Reply {
    pub(crate) fn text(status: u16, headers: &str, body: &str) -> Self {
        Self::Raw(format!(
            "HTTP/1.1 {status} X\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    }
}

type Script = dyn Fn(&Seen) -> Reply + Send + Sync;

/// An HTTP/1.1 server on loopback that does what its script says; it ends with the test's runtime.
pub(crate) struct Server {
    pub(crate) origin: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    pub(crate) async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (record, script): (_, Arc<Script>) = (Arc::clone(&seen), Arc::new(script));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&script), Arc::clone(&record)));
            }
        });
        Self { origin, seen }
    }

    pub(crate) fn seen(&self, path: &str) -> Vec<Seen> {
        self.seen.lock().iter().filter(|seen| seen.target == path).cloned().collect()
    }
}

async fn serve(mut stream: TcpStream, script: Arc<Script>, record: Arc<Mutex<Vec<Seen>>>) {
    let Some(seen) = read_request(&mut stream).await else { return };
    record.lock().push(seen.clone());
    let raw = match script(&seen) {
        Reply::Json(status, body) => match Reply::text(status, "Content-Type: application/json\r\n", &body.to_string())
        {
            Reply::Raw(raw) => raw,
            _ => unreachable!(),
        },
        Reply::Raw(raw) => raw,
        Reply::Drop => return,
        Reply::Hang => std::future::pending().await,
    };
    let _ = stream.write_all(raw.as_bytes()).await;
    let _ = stream.shutdown().await;
}

async fn read_request(stream: &mut TcpStream) -> Option<Seen> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let target = head.split(' ').nth(1)?.to_owned();
            let seen = Seen { target, head: head.to_owned(), body: body.to_owned() };
            let length = seen.header("content-length").first().map_or(0, |length| length.parse().unwrap());
            if body.len() >= length {
                return Some(seen);
            }
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
        }
    }
}
