use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tokio::net::TcpListener;

use super::*;
use crate::clock::Timestamp;
use crate::oidc::testing::{Reply, Server, settings};
use crate::secret::Secret;

fn client(settings: &Settings) -> Client {
    Client::new(settings, Clock::manual(Timestamp::from_secs(1_800_000_000)), Box::new(|_, _| ())).unwrap()
}

fn url(server: &Server, path: &str) -> Url {
    Url::parse(&format!("{}{path}", server.origin)).unwrap()
}

fn form() -> Form {
    let mut form = Form::default();
    form.set("grant_type", "x");
    form
}

/// oidcc-client-test-client-secret-basic: both parts form-encoded, the secret in no second place.
#[tokio::test]
async fn basic_is_form_encoded() {
    let server = Server::start(|_| Reply::Json(200, json!({}))).await;
    let mut settings = settings("https://op.example");
    settings.client_id = "a:b c".into();
    settings.client_auth = ClientAuth::Basic(Secret::new("a:b%+ \u{e9}/"));
    client(&settings).post("token", &url(&server, "/token"), &form(), None).await.unwrap();
    let seen = &server.seen("/token")[0];
    let expected = STANDARD.encode_to_string("a%3Ab+c:a%3Ab%25%2B+%C3%A9%2F");
    assert_eq!(seen.header("authorization"), [format!("Basic {expected}")]);
    assert_eq!(seen.header("content-type"), ["application/x-www-form-urlencoded"]);
    assert_eq!(seen.body, "grant_type=x");
}

/// BFF-01, RFC6749-03: one method a call.
#[tokio::test]
async fn post_and_public_clients_use_the_body_only() {
    let server = Server::start(|_| Reply::Json(200, json!({}))).await;
    let mut settings = settings("https://op.example");
    settings.client_auth = ClientAuth::Post(Secret::new("s&1"));
    client(&settings).post("token", &url(&server, "/post"), &form(), None).await.unwrap();
    settings.client_auth = ClientAuth::None;
    client(&settings).post("token", &url(&server, "/none"), &form(), None).await.unwrap();
    let (post, none) = (&server.seen("/post")[0], &server.seen("/none")[0]);
    assert_eq!(post.body, "grant_type=x&client_id=spa&client_secret=s%261");
    assert_eq!(none.body, "grant_type=x&client_id=spa");
    assert!(post.header("authorization").is_empty() && none.header("authorization").is_empty());
}

/// KEY-01, ASVS-15.3.2: redirects are not followed, whatever they carry.
#[tokio::test]
async fn redirects_are_not_followed() {
    let server = Server::start(|seen| match seen.target.as_str() {
        "/evil" => Reply::Json(200, json!({})),
        _ => Reply::text(307, "Location: /evil\r\nRetry-After: 3\r\n", ""),
    })
    .await;
    let client = client(&settings("https://op.example"));
    let answer = client.post("token", &url(&server, "/token"), &form(), None).await.unwrap();
    assert_eq!((answer.status, answer.retry_after), (307, Some(Duration::from_secs(3))));
    assert_eq!(client.get("discovery", &url(&server, "/doc"), None).await.unwrap().status, 307);
    assert!(server.seen("/evil").is_empty());
}

/// KEY-09: documents over 1 MiB are refused, announced or not.
#[tokio::test]
async fn large_bodies_are_refused() {
    let server = Server::start(|seen| {
        let body = "x".repeat(MAX_BODY_BYTES + usize::from(seen.target != "/fits"));
        match seen.target.as_str() {
            "/unannounced" => Reply::Raw(format!("HTTP/1.1 200 X\r\nConnection: close\r\n\r\n{body}")),
            _ => Reply::text(200, "Content-Type: Text/HTML; charset=x\r\n", &body),
        }
    })
    .await;
    let client = client(&settings("https://op.example"));
    for path in ["/announced", "/unannounced"] {
        let error = client.get("jwks", &url(&server, path), None).await.unwrap_err();
        assert_eq!(error, CallError::TooLarge, "{path}");
    }
    let fits = client.get("jwks", &url(&server, "/fits"), None).await.unwrap();
    assert_eq!((fits.body.len(), fits.content_type.as_str()), (MAX_BODY_BYTES, "text/html"));
}

/// Whether anything was sent decides whether a grant may be tried again.
#[tokio::test]
async fn unreachable_and_lost_are_told_apart() {
    let server = Server::start(|seen| match seen.target.as_str() {
        "/drop" => Reply::Drop,
        "/cut" => Reply::Raw("HTTP/1.1 200 X\r\nContent-Length: 100\r\n\r\nhalf".into()),
        "/garbage" => Reply::Raw("SSH-2.0-x\r\n\r\n".into()),
        _ => Reply::Hang,
    })
    .await;
    let mut settings = settings("https://op.example");
    settings.timeout = Duration::from_millis(400);
    let client = client(&settings);
    let call = async |path: &str| client.post("token", &url(&server, path), &form(), None).await.unwrap_err();
    assert_eq!(call("/drop").await, CallError::Lost("lost"));
    assert_eq!(call("/cut").await, CallError::Lost("cut_off"));
    assert!(matches!(call("/garbage").await, CallError::Lost(_)));
    assert_eq!(call("/hang").await, CallError::Lost("timeout"));
    for path in ["/drop", "/cut", "/garbage", "/hang"] {
        assert_eq!(server.seen(path).len(), 1, "{path} was sent more than once");
    }

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = Url::parse(&format!("http://{}/token", listener.local_addr().unwrap())).unwrap();
    drop(listener);
    assert_eq!(client.post("token", &closed, &form(), None).await.unwrap_err(), CallError::Unreachable("connect"));
    // TLS towards something that does not speak it: nothing of ours was sent.
    let tls = Url::parse(&url(&server, "/t").as_str().replace("http:", "https:")).unwrap();
    assert!(matches!(client.post("token", &tls, &form(), None).await.unwrap_err(), CallError::Unreachable(_)));
}

#[test]
fn what_a_failure_means() {
    assert!(matches!(CallError::Unreachable("connect").of_grant(), ProviderError::Unavailable { .. }));
    assert!(matches!(CallError::Lost("timeout").of_grant(), ProviderError::Ambiguous { .. }));
    assert!(matches!(CallError::Lost("timeout").of_read(), ProviderError::Unavailable { .. }));
    assert!(matches!(CallError::TooLarge.of_read(), ProviderError::Refused { .. }));
}

/// oidcc-client-test-userinfo-bearer-header.
#[tokio::test]
async fn a_bearer_is_in_the_header_only_and_calls_are_observed() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let server = Server::start(|_| Reply::Json(200, json!({}))).await;
    let observer: Observer = Box::new(|endpoint, _| {
        assert_eq!(endpoint, "userinfo");
        CALLS.fetch_add(1, Ordering::Relaxed);
    });
    let client = Client::new(&settings("https://op.example"), Clock::System, observer).unwrap();
    client
        .get("userinfo", &url(&server, "/userinfo"), Some(Credential { token: &AccessToken::new("at-1"), dpop: None }))
        .await
        .unwrap();
    let seen = &server.seen("/userinfo")[0];
    assert_eq!(seen.header("authorization"), ["Bearer at-1"]);
    assert!(seen.body.is_empty() && !seen.head.lines().next().unwrap().contains("at-1"));
    assert_eq!(CALLS.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn the_configured_proxy_is_used() {
    let proxy = Server::start(|_| Reply::Json(200, json!({"by": "proxy"}))).await;
    let mut settings = settings("https://op.example");
    settings.proxy = Some(Url::parse(&proxy.origin).unwrap());
    let target = Url::parse("http://op.invalid/doc").unwrap();
    let answer = client(&settings).get("discovery", &target, None).await.unwrap();
    assert_eq!(answer.body, br#"{"by":"proxy"}"#);
    assert_eq!(proxy.seen("http://op.invalid/doc").len(), 1);
}

/// A TLS server with a certificate for `localhost` by the test authority; answers one request a connection.
async fn tls_server(alpn: &[&[u8]]) -> u16 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let chain =
        CertificateDer::pem_slice_iter(include_bytes!("testdata/server.pem")).collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::try_from(&include_bytes!("testdata/server.pk8")[..]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 X\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}").await;
            let _ = stream.shutdown().await;
        }
    });
    port
}

/// KEY-01, ASVS-12.3.1, ASVS-12.3.2, ASVS-12.3.4: an unknown authority and another host are refused, `ca_file` adds an
/// authority.
#[tokio::test]
async fn tls_is_verified() {
    let port = tls_server(&[b"http/1.1"]).await;
    let (localhost, address) = (format!("https://localhost:{port}/"), format!("https://127.0.0.1:{port}/"));
    let mut settings = settings("https://op.example");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, include_bytes!("testdata/ca.pem")).unwrap();
    settings.ca_file = Some(file);
    let trusting = client(&settings);
    let call = async |client: &Client, url: &str| client.get("discovery", &Url::parse(url).unwrap(), None).await;
    assert_eq!(call(&trusting, &localhost).await.unwrap().body, b"{}");
    assert_eq!(call(&trusting, &address).await.unwrap_err(), CallError::Unreachable("tls"));

    // The same call by a client that trusts somebody else only.
    std::fs::write(settings.ca_file.as_ref().unwrap(), include_bytes!("testdata/server.pem")).unwrap();
    let stranger = trusting.renewed(&settings).unwrap();
    let other_port = tls_server(&[]).await;
    let refused = call(&stranger, &format!("https://127.0.0.1:{other_port}/")).await;
    assert_eq!(refused.unwrap_err(), CallError::Unreachable("tls"));
    settings.ca_file = None;
    if let Ok(public_only) = trusting.renewed(&settings) {
        assert_eq!(call(&public_only, &localhost).await.unwrap_err(), CallError::Unreachable("tls"));
    }
}

#[test]
fn a_bad_ca_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings("https://op.example");
    let mut setup = |path: &Path| {
        settings.ca_file = Some(path.to_owned());
        Client::new(&settings, Clock::System, Box::new(|_, _| ())).unwrap_err().0
    };
    let missing = setup(&folder.path().join("none.pem"));
    assert!(missing.starts_with("provider.ca_file: ") && missing.contains("none.pem"), "{missing}");
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "nothing here").unwrap();
    assert!(setup(&empty).contains("no certificate"));
    std::fs::write(&empty, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    assert!(setup(&empty).contains("no trust anchor"));
}
