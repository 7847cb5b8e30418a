//! A TLS front of the provider double that asks for a client certificate, and tells the double which one came.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::jose;
use super::provider::{CERTIFICATE, ProviderDouble};
use super::text::{find, hex};

/// Ends when dropped.
#[derive(Debug)]
pub struct MutualTls {
    /// `https://localhost:PORT`.
    pub origin: String,
    task: JoinHandle<()>,
}

impl Drop for MutualTls {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The authority of the server's certificate, PEM.
pub fn authority() -> &'static str {
    include_str!("../../src/oidc/testdata/ca.pem")
}

/// What the double calls the first certificate of a PEM file.
pub fn fingerprint(pem: &str) -> String {
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
    hex(&jose::sha256(&certificate))
}

impl MutualTls {
    /// In front of `provider`.
    pub async fn start(provider: &ProviderDouble) -> Self {
        let ring = Arc::new(rustls::crypto::ring::default_provider());
        let chain = CertificateDer::pem_slice_iter(include_bytes!("../../src/oidc/testdata/server.pem"));
        let key = PrivateKeyDer::try_from(&include_bytes!("../../src/oidc/testdata/server.pk8")[..]).expect("a key");
        let config = rustls::ServerConfig::builder_with_provider(Arc::clone(&ring))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(Arc::new(Anybody(ring)))
            .with_single_cert(chain.collect::<Result<_, _>>().expect("certificates"), key)
            .expect("a server certificate");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let behind: SocketAddr = provider.issuer.trim_start_matches("http://").parse().expect("an address");
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let _ = forward(stream, behind).await;
                    }
                });
            }
        });
        Self { origin: format!("https://localhost:{port}"), task }
    }
}

/// One request, with the certificate's fingerprint in its head; then the connection ends.
async fn forward(mut client: tokio_rustls::server::TlsStream<TcpStream>, behind: SocketAddr) -> std::io::Result<()> {
    let certificate = client.get_ref().1.peer_certificates().and_then(|chain| chain.first().cloned());
    let mut head = Vec::new();
    let end = loop {
        if let Some(end) = find(&head, b"\r\n\r\n") {
            break end;
        }
        if client.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    };
    let rest = head.split_off(end);
    head.extend_from_slice(b"\r\nConnection: close");
    if let Some(certificate) = certificate {
        head.extend_from_slice(format!("\r\n{CERTIFICATE}: {}", hex(&jose::sha256(&certificate))).as_bytes());
    }
    let mut server = TcpStream::connect(behind).await?;
    server.write_all(&head).await?;
    server.write_all(&rest).await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop)
}

/// Takes every certificate whose key the client has, as a provider does that knows its clients by fingerprint.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ClientCertVerifier for Anybody {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
