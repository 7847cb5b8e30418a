//! TLS of the listener: certificates that change, clients that must show one, what is offered.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, crypto::ring};
use toml::Table;

use support::exact::{PATIENCE, route, routes};
use support::gateway::{free_port, set};
use support::inside::Inside;
use support::provider::ProviderDouble;
use support::upstream::Upstream;
use support::wait::until;

fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "fixtures", "tls", name].iter().collect()
}

fn certificate(name: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(fixture(name)).expect("a certificate")
}

/// A folder as a mounted Secret is: the names lead through `..data`, which is swapped as a whole.
struct Secret(tempfile::TempDir);

impl Secret {
    fn new(cert: &str, key: &str) -> Self {
        let secret = Self(tempfile::tempdir().expect("a directory"));
        secret.put("..1", &std::fs::read(fixture(cert)).expect("read"), &std::fs::read(fixture(key)).expect("read"));
        for name in ["tls.crt", "tls.key"] {
            std::os::unix::fs::symlink(Path::new("..data").join(name), secret.file(name)).expect("a link");
        }
        secret
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, version: &str, cert: &[u8], key: &[u8]) {
        std::fs::create_dir(self.file(version)).expect("a directory");
        std::fs::write(self.file(version).join("tls.crt"), cert).expect("written");
        std::fs::write(self.file(version).join("tls.key"), key).expect("written");
        std::os::unix::fs::symlink(version, self.file("..tmp")).expect("a link");
        std::fs::rename(self.file("..tmp"), self.file("..data")).expect("swapped");
    }
}

async fn gateway(change: impl FnOnce(&mut Table)) -> (Inside, Upstream, ProviderDouble) {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Inside::start_with(&provider, &upstream, |config| {
        set(config, "server.public_url", &format!("'https://localhost:{}'", free_port()));
        set(config, "server.tls.cert_file", &format!("{:?}", fixture("localhost.pem")));
        set(config, "server.tls.key_file", &format!("{:?}", fixture("localhost.key")));
        change(config);
    })
    .await;
    (gateway, upstream, provider)
}

fn client(versions: &[&'static rustls::SupportedProtocolVersion], own: Option<(&str, &str)>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for name in ["localhost.pem", "other.pem"] {
        roots.add(certificate(name)).expect("an anchor");
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let key = PrivateKeyDer::from_pem_file(fixture(key)).expect("a key");
            builder.with_client_auth_cert(vec![certificate(cert)], key).expect("a pair")
        }
    };
    TlsConnector::from(Arc::new(config))
}

/// A connection on which a request was answered; none when TLS or the server refused.
async fn served(gateway: &Inside, connector: &TlsConnector) -> Option<(TlsStream<TcpStream>, String)> {
    let exchange = async {
        let stream = TcpStream::connect(gateway.addr).await.ok()?;
        let mut stream = connector.connect("localhost".try_into().expect("a name"), stream).await.ok()?;
        let request = format!("GET /x HTTP/1.1\r\nHost: {}\r\n\r\n", gateway.host());
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = vec![0; 4096];
        let length = stream.read(&mut answer).await.ok().filter(|length| *length > 0)?;
        answer.truncate(length);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        Some((stream, answer))
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("an answer or an end")
}

/// The certificate that a new connection is shown.
async fn shown(gateway: &Inside) -> CertificateDer<'static> {
    let (stream, answer) = served(gateway, &client(rustls::ALL_VERSIONS, None)).await.expect("a connection");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    stream.get_ref().1.peer_certificates().and_then(<[_]>::first).expect("a certificate").clone().into_owned()
}

/// CFG-07, DOS-26: a certificate that is swapped is shown to the next client while open connections go on; one that
/// cannot be used changes nothing, and is counted.
#[tokio::test]
async fn pitfall_29_listener_certificates_are_taken_from_changed_files() {
    let secret = Secret::new("localhost.pem", "localhost.key");
    let (gateway, _upstream, _provider) = gateway(|config| {
        set(config, "server.tls.cert_file", &format!("{:?}", secret.file("tls.crt")));
        set(config, "server.tls.key_file", &format!("{:?}", secret.file("tls.key")));
    })
    .await;
    assert_eq!(shown(&gateway).await, certificate("localhost.pem"));
    let (mut open, _) = served(&gateway, &client(rustls::ALL_VERSIONS, None)).await.expect("a connection");
    let read = |name: &str| std::fs::read(fixture(name)).expect("read");
    let reloads = |outcome: &'static str| gateway.metric("sidegate_config_reloads_total", &[("outcome", outcome)]);
    let wait_for = async |outcome: &'static str, count: f64| {
        until(&format!("{count} reloads {outcome}"), async || reloads(outcome) >= count).await;
    };
    // Of two pairs; no certificate at all.
    secret.put("..2", &read("other.pem"), &read("localhost.key"));
    wait_for("failed", 1.0).await;
    assert_eq!(shown(&gateway).await, certificate("localhost.pem"));
    secret.put("..3", b"garbage", b"");
    wait_for("failed", 2.0).await;
    assert_eq!(shown(&gateway).await, certificate("localhost.pem"));
    secret.put("..4", &read("other.pem"), &read("other.key"));
    wait_for("ok", 1.0).await;
    assert_eq!(shown(&gateway).await, certificate("other.pem"));
    open.write_all(format!("GET /y HTTP/1.1\r\nHost: {}\r\n\r\n", gateway.host()).as_bytes()).await.expect("open");
    let mut answer = [0; 12];
    open.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200");
}

/// An upstream that answers every request with `ok`, over TLS.
async fn secure_upstream() -> u16 {
    let tls = sidegate::net::load_server_config(&fixture("localhost.pem"), &fixture("localhost.key"), None, false);
    let acceptor = tokio_rustls::TlsAcceptor::from(tls.expect("a certificate"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut head = [0; 8192];
                while matches!(stream.read(&mut head).await, Ok(1..)) {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                    let _ = stream.flush().await;
                }
            });
        }
    });
    port
}

/// DOS-26: trust anchors of an upstream are taken from a changed file, and what was connected under the old ones is not
/// used under the new.
#[tokio::test]
async fn trust_in_upstreams_is_taken_from_changed_files() {
    let port = secure_upstream().await;
    let secret = Secret::new("localhost.pem", "localhost.key");
    let (gateway, _upstream, _provider) = gateway(|config| {
        let more = format!("access = 'public'\nupstream_tls = {{ ca_file = {:?} }}", secret.file("tls.crt"));
        routes(config, &route("/", &format!("https://localhost:{port}"), &more));
    })
    .await;
    let connector = client(rustls::ALL_VERSIONS, None);
    let status = async || served(&gateway, &connector).await.map(|(_, answer)| answer[..12].to_owned());
    assert_eq!(status().await.as_deref(), Some("HTTP/1.1 200"));
    let other = std::fs::read(fixture("other.pem")).expect("read");
    secret.put("..2", &other, b"");
    until("it is trusted no more", async || status().await.as_deref() == Some("HTTP/1.1 502")).await;
}

/// ASVS-12.1.1, ASVS-12.1.2: both versions, and in TLS 1.2 only suites with forward secrecy and AEAD.
#[tokio::test]
async fn tls_1_2_and_1_3_with_modern_suites() {
    let (gateway, _upstream, _provider) = gateway(|_| {}).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let (stream, _) = served(&gateway, &client(&[version], None)).await.expect("a connection");
        let session = stream.get_ref().1;
        assert_eq!(session.protocol_version(), Some(version.version));
        let suite = format!("{:?}", session.negotiated_cipher_suite().expect("a suite").suite());
        assert!(suite.starts_with("TLS13_") || suite.starts_with("TLS_ECDHE_"), "{suite}");
        assert!(suite.contains("GCM") || suite.contains("CHACHA20"), "{suite}");
    }
}

/// ASVS-12.3.5, ASVS-12.1.3: with `client_ca_file` only clients with a certificate of that authority are served.
#[tokio::test]
async fn clients_must_show_a_certificate_where_one_is_asked_for() {
    let (gateway, upstream, _provider) = gateway(|config| {
        set(config, "server.tls.client_ca_file", &format!("{:?}", fixture("other.pem")));
    })
    .await;
    for versions in [&[&rustls::version::TLS12][..], &[&rustls::version::TLS13]] {
        assert!(served(&gateway, &client(versions, None)).await.is_none());
        assert!(served(&gateway, &client(versions, Some(("localhost.pem", "localhost.key")))).await.is_none());
        assert!(upstream.untouched());
        let (_, answer) = served(&gateway, &client(versions, Some(("other.pem", "other.key")))).await.expect("served");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        upstream.forget();
    }
}

/// ASVS-4.1.2, ASVS-4.4.1: plain HTTP on the port of TLS is not answered with a redirect that would hide a mistake, and
/// neither a request nor a WebSocket gets through.
#[tokio::test]
async fn plain_http_is_refused_and_not_redirected() {
    let (gateway, upstream, _provider) = gateway(|_| {}).await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for fields in ["", upgrade] {
        let mut stream = TcpStream::connect(gateway.addr).await.expect("connected");
        let origin = &gateway.public_url;
        let request = format!("GET /x HTTP/1.1\r\nHost: {}\r\nOrigin: {origin}\r\n{fields}\r\n", gateway.host());
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        // It may end by a reset.
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the connection ends");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(!answer.contains("HTTP/1.1 1") && !answer.contains("HTTP/1.1 2"), "{answer}");
        assert!(!answer.contains("HTTP/1.1 3") && !answer.to_lowercase().contains("location:"), "{answer}");
    }
    assert!(upstream.untouched());
}
