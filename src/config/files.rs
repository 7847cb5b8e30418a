//! Files that the configuration names: secrets, keys, certificates. Messages name the file, never its content.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, Error, RootCertStore};

use super::load::cause;
use super::problem::Findings;
use crate::secret::Secret;

/// Nothing that is mounted as a secret or certificate is larger.
const LARGEST: u64 = 1 << 20;

/// Reads named files and remembers them, for they are watched.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) watched: Vec<PathBuf>,
}

impl Files {
    /// A secret: one trailing newline dropped, not blank.
    pub(super) fn secret(&mut self, key: &str, path: &str, found: &mut Findings) -> Option<Secret> {
        let bytes = self.private(key, path, found)?;
        let Ok(mut text) = String::from_utf8(bytes) else {
            found.problem(key, format!("{path} is not UTF-8 text"));
            return None;
        };
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        if text.trim().is_empty() {
            found.problem(key, format!("{path} is empty"));
            return None;
        }
        Some(Secret::new(text))
    }

    /// Any content, which others should not be able to read.
    pub(super) fn private(&mut self, key: &str, path: &str, found: &mut Findings) -> Option<Vec<u8>> {
        let bytes = self.read(key, path, found)?;
        if std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0) {
            found.warn(
                key,
                format!(
                    "{path} may be read by every user; take the right away (chmod o-r, or `defaultMode` of the mount)"
                ),
            );
        }
        Some(bytes)
    }

    /// Whether it can be read, when no more can be judged.
    pub(super) fn there(&mut self, key: &str, path: &str, found: &mut Findings) {
        drop(self.read(key, path, found));
    }

    /// PEM with at least one certificate.
    pub(super) fn certificates(
        &mut self,
        key: &str,
        path: &str,
        found: &mut Findings,
    ) -> Option<Vec<CertificateDer<'static>>> {
        let bytes = self.read(key, path, found)?;
        match CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>() {
            Ok(chain) if !chain.is_empty() => Some(chain),
            _ => {
                found.problem(key, format!("{path} holds no PEM certificate"));
                None
            }
        }
    }

    /// A certificate chain and its key, which belong together.
    pub(super) fn pair(&mut self, table: &str, names: [&str; 2], paths: [&str; 2], found: &mut Findings) -> bool {
        let ([cert, key], [cert_path, key_path]) = (names.map(|name| format!("{table}.{name}")), paths);
        let chain = self.certificates(&cert, cert_path, found);
        let Some(pem) = self.private(&key, key_path, found) else { return false };
        let loaded = PrivateKeyDer::from_pem_slice(&pem)
            .ok()
            .and_then(|der| default_provider().key_provider.load_private_key(der).ok());
        let Some(loaded) = loaded else {
            found.problem(key, format!("{key_path} holds no PEM private key that can be used"));
            return false;
        };
        let Some(chain) = chain else { return false };
        if let Some(wrong) = chain.first().and_then(|leaf| out_of_time(leaf, UnixTime::now())) {
            found.warn(&cert, format!("the first certificate in {cert_path} {wrong}: nobody will trust it"));
        }
        match CertifiedKey::new(chain, loaded).keys_match() {
            // Some keys do not tell their public half: those are believed.
            Ok(()) | Err(Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => true,
            Err(Error::InconsistentKeys(_)) => {
                found.problem(key, format!("{key_path} is not the key of the first certificate in {cert_path}"));
                false
            }
            Err(_) => {
                found.problem(cert, format!("the first certificate in {cert_path} cannot be read"));
                false
            }
        }
    }

    fn read(&mut self, key: &str, path: &str, found: &mut Findings) -> Option<Vec<u8>> {
        self.watched.push(PathBuf::from(path));
        match read_bounded(Path::new(path)) {
            Ok(bytes) => Some(bytes),
            Err(reason) => {
                let place =
                    if Path::new(path).is_relative() { " (from the directory sidegate was started in)" } else { "" };
                let hint = if key.starts_with("session.key_files") {
                    "; `sidegate keygen` prints what belongs there"
                } else {
                    ""
                };
                found.problem(key, format!("cannot read {path}{place}: {reason}{hint}"));
                None
            }
        }
    }
}

/// Says when a certificate does not hold at `now`. Only its time is judged here: whether somebody trusts it, the other side
/// says.
fn out_of_time(leaf: &CertificateDer<'_>, now: UnixTime) -> Option<&'static str> {
    let (parsed, roots) = (ParsedCertificate::try_from(leaf).ok()?, RootCertStore::empty());
    let algorithms = default_provider().signature_verification_algorithms.all;
    match verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], now, algorithms) {
        Err(Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
            Some("has expired")
        }
        Err(Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. })) => {
            Some("is not valid yet")
        }
        _ => None,
    }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, String> {
    let said = |error: std::io::Error| cause(&error);
    // A pipe or a device would make the start wait for ever.
    if !std::fs::metadata(path).map_err(said)?.is_file() {
        return Err("not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(said)?.take(LARGEST + 1).read_to_end(&mut bytes).map_err(said)?;
    if bytes.len() as u64 > LARGEST { Err("larger than 1 MiB".to_owned()) } else { Ok(bytes) }
}
