//! The listener's certificate: loaded and judged before a server is built with it, and replaced while it runs.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig};

/// The configuration that new handshakes use. Cheap to clone; a reload replaces it for all clones.
#[derive(Clone)]
pub struct Tls(Arc<ArcSwap<ServerConfig>>);

impl Tls {
    /// Begins with `config`.
    pub fn new(config: Arc<ServerConfig>) -> Self {
        Self(Arc::new(ArcSwap::new(config)))
    }

    /// Takes effect with the next handshake; connections that are open keep theirs.
    pub fn replace(&self, config: Arc<ServerConfig>) {
        self.0.store(config);
    }

    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.0.load_full()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

/// Reads the PEM files of `server.tls`. With `client_ca`, clients must show a certificate that it signed; `http2`
/// offers HTTP/2 besides HTTP/1.1.
///
/// # Errors
///
/// A sentence for the operator that names the file; never its content.
pub fn load_server_config(
    cert: &Path,
    key: &Path,
    client_ca: Option<&Path>,
    http2: bool,
) -> Result<Arc<ServerConfig>, String> {
    let read = |path: &Path| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let (cert_pem, key_pem) = (read(cert)?, zeroize::Zeroizing::new(read(key)?));
    let chain = certificates(&cert_pem).ok_or_else(|| format!("{}: no PEM certificate in it", cert.display()))?;
    let private =
        PrivateKeyDer::from_pem_slice(&key_pem).map_err(|_| format!("{}: no PEM private key in it", key.display()))?;

    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|error| error.to_string())?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let pem = read(path)?;
            let anchors = certificates(&pem).ok_or_else(|| format!("{}: no PEM certificate in it", path.display()))?;
            let mut roots = RootCertStore::empty();
            for anchor in anchors {
                roots.add(anchor).map_err(|error| format!("{}: {error}", path.display()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| format!("{}: {error}", path.display()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    // Also compares the key with the certificate.
    let mut config = builder
        .with_single_cert(chain, private)
        .map_err(|error| format!("{} with {}: {error}", cert.display(), key.display()))?;
    config.ticketer = ring::Ticketer::new().map_err(|error| error.to_string())?;
    config.alpn_protocols = if http2 { vec![b"h2".to_vec()] } else { Vec::new() };
    config.alpn_protocols.push(b"http/1.1".to_vec());
    Ok(Arc::new(config))
}

fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().ok()?;
    (!all.is_empty()).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name)
    }

    #[test]
    fn a_certificate_with_its_key_is_taken() {
        let (cert, key) = (fixture("localhost.pem"), fixture("localhost.key"));
        load_server_config(&cert, &key, None, true).unwrap();
        load_server_config(&cert, &key, Some(&cert), false).unwrap();
    }

    #[test]
    fn every_bad_file_is_named() {
        let (cert, key, other) = (fixture("localhost.pem"), fixture("localhost.key"), fixture("other.key"));
        let missing = fixture("missing.pem");
        let refused = |c: &Path, k: &Path, ca: Option<&Path>| load_server_config(c, k, ca, true).unwrap_err();
        assert!(refused(&missing, &key, None).contains("missing.pem"));
        assert!(refused(&cert, &missing, None).contains("missing.pem"));
        assert!(refused(&key, &key, None).contains("localhost.key: no PEM certificate"));
        assert!(refused(&cert, &cert, None).contains("localhost.pem: no PEM private key"));
        assert!(refused(&cert, &other, None).contains("other.key"));
        assert!(refused(&cert, &key, Some(&key)).contains("no PEM certificate"));
    }
}
