//! A listener's rustls configuration: certificates by SNI, client certificates, versions, ALPN.
//!
//! The configuration is built anew as a whole, so that its session storage starts empty: rustls
//! does not run the certificate verifier on resumption, and a kept storage would let a client back
//! in whose certificate is no longer accepted. Early data is never accepted.

#![expect(clippy::disallowed_methods, reason = "certificates and keys are read from files")]

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    ClientHello, ResolvesServerCert, ServerSessionMemoryCache, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::config::{CertificateFiles, ClientCertificates, ListenerTls};
use crate::policy::time::UnixTime;

/// Sessions that a listener remembers for resumption.
const SESSIONS: usize = 4096;
const BOTH_VERSIONS: &[&SupportedProtocolVersion] =
    &[&rustls::version::TLS13, &rustls::version::TLS12];
const ONLY_TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// Why a listener cannot speak TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// A file is not the PEM that it should be.
    #[error("{}: {reason}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Certificate and key do not fit, or the key is of no known type.
    #[error("{}: {error}", path.display())]
    Key {
        /// The key's file.
        path: PathBuf,
        /// What rustls says.
        error: rustls::Error,
    },
    /// The client authorities cannot be used.
    #[error("client authorities: {0}")]
    Authorities(String),
    /// rustls refuses the whole.
    #[error("TLS: {0}")]
    Config(#[from] rustls::Error),
}

/// A server configuration and what is worth telling about it.
#[derive(Debug)]
pub struct ServerTls {
    /// For the acceptor.
    pub config: Arc<ServerConfig>,
    /// When each certificate ends, by file.
    pub expiry: Vec<(PathBuf, UnixTime)>,
}

/// Builds a listener's configuration.
///
/// # Errors
/// When a file cannot be read or does not hold what it should.
pub fn server(tls: &ListenerTls, provider: &Arc<CryptoProvider>) -> Result<ServerTls, TlsError> {
    let mut names = Names::default();
    let mut expiry = Vec::new();
    for files in &tls.certificates {
        let loaded = load(files, provider)?;
        expiry.push((files.certificate.clone(), loaded.not_after));
        names.add(&loaded.names, loaded.key);
    }
    let versions = if tls.tls12 { BOTH_VERSIONS } else { ONLY_TLS13 };
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(versions)?;
    let builder = match client_verifier(tls, provider)? {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(names));
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
    config.alpn_protocols = if tls.h2 {
        vec![b"h2".to_vec(), b"http/1.1".to_vec()]
    } else {
        vec![b"http/1.1".to_vec()]
    };
    Ok(ServerTls { config: Arc::new(config), expiry })
}

fn client_verifier(
    tls: &ListenerTls,
    provider: &Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
    let required = match tls.client_certificates {
        ClientCertificates::Off => return Ok(None),
        ClientCertificates::Request => false,
        ClientCertificates::Require => true,
    };
    let mut roots = RootCertStore::empty();
    for path in &tls.client_authorities {
        for certificate in certificates(path)? {
            roots
                .add(certificate)
                .map_err(|error| TlsError::Pem { path: path.clone(), reason: error.to_string() })?;
        }
    }
    let builder = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(provider));
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    builder.build().map(Some).map_err(|error| TlsError::Authorities(error.to_string()))
}

struct Loaded {
    key: Arc<CertifiedKey>,
    names: Vec<String>,
    not_after: UnixTime,
}

fn load(files: &CertificateFiles, provider: &CryptoProvider) -> Result<Loaded, TlsError> {
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?).map_err(|error| TlsError::Pem {
        path: files.key.clone(),
        reason: format!("no private key: {error}"),
    })?;
    let (names, not_after) = facts(chain.first().map_or(&[], AsRef::as_ref)).ok_or_else(|| {
        TlsError::Pem { path: files.certificate.clone(), reason: "not an X.509 certificate".into() }
    })?;
    let key = CertifiedKey::from_der(chain, key, provider)
        .map_err(|error| TlsError::Key { path: files.key.clone(), error })?;
    Ok(Loaded { key: Arc::new(key), names, not_after })
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::Read { path: path.to_owned(), error })
}

pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |reason: String| TlsError::Pem { path: path.to_owned(), reason };
    let chain = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| pem(format!("no certificates: {error}")))?;
    if chain.is_empty() { Err(pem("no certificate in it".to_owned())) } else { Ok(chain) }
}

/// The DNS names in subjectAltName, in lower case, and the end of validity.
fn facts(der: &[u8]) -> Option<(Vec<String>, UnixTime)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.into_iter().flat_map(|extension| &extension.value.general_names);
    let dns = names.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::OtherName(..)
        | GeneralName::RFC822Name(_)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::URI(_)
        | GeneralName::IPAddress(_)
        | GeneralName::RegisteredID(_)
        | GeneralName::Invalid(..) => None,
    });
    Some((dns.collect(), UnixTime::from_secs(certificate.validity().not_after.timestamp())))
}

/// Certificates by name. An exact name wins over a wildcard, an earlier certificate over a later
/// one, and the first serves whoever names none of them.
#[derive(Default)]
struct Names {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what follows `*.`: one label stands for the star (RFC 9525 section 6.3).
    wildcard: HashMap<String, Arc<CertifiedKey>>,
    first: Option<Arc<CertifiedKey>>,
}

impl Names {
    fn add(&mut self, names: &[String], key: Arc<CertifiedKey>) {
        for name in names {
            let (map, name) = match name.strip_prefix("*.") {
                Some(parent) => (&mut self.wildcard, parent),
                None => (&mut self.exact, name.as_str()),
            };
            map.entry(name.to_owned()).or_insert_with(|| Arc::clone(&key));
        }
        self.first.get_or_insert(key);
    }

    fn find(&self, sni: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        let Some(sni) = sni else { return self.first.as_ref() };
        let name = sni.trim_end_matches('.').to_ascii_lowercase();
        let parent = name.split_once('.').map(|(_, parent)| parent);
        self.exact
            .get(&name)
            .or_else(|| parent.and_then(|parent| self.wildcard.get(parent)))
            .or(self.first.as_ref())
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.exact.keys()).entries(self.wildcard.keys()).finish()
    }
}

impl ResolvesServerCert for Names {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name()).map(Arc::clone)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn provider() -> Arc<CryptoProvider> {
        Arc::new(rustls::crypto::aws_lc_rs::default_provider())
    }

    fn files(directory: &Path, stem: &str, names: &[&str]) -> CertificateFiles {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let certificate = directory.join(format!("{stem}.pem"));
        let key = directory.join(format!("{stem}.key"));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        CertificateFiles { certificate, key }
    }

    fn tls(certificates: Vec<CertificateFiles>) -> ListenerTls {
        ListenerTls {
            certificates,
            client_certificates: ClientCertificates::Off,
            client_authorities: Vec::new(),
            tls12: true,
            h2: true,
            handshake_timeout: Duration::from_secs(5),
        }
    }

    #[test]
    fn sni_chooses() {
        let directory = tempfile::tempdir().unwrap();
        let mut names = Names::default();
        let mut keys = Vec::new();
        for (stem, sans) in [
            ("one", vec!["one.example", "*.wild.example"]),
            ("two", vec!["Two.Example", "named.wild.example", "one.example"]),
        ] {
            let loaded = load(&files(directory.path(), stem, &sans), &provider()).unwrap();
            names.add(&loaded.names, Arc::clone(&loaded.key));
            keys.push(loaded.key);
        }
        for (sni, expect) in [
            (Some("one.example"), 0),
            (Some("two.example"), 1),
            (Some("TWO.example."), 1),
            (Some("a.wild.example"), 0),
            (Some("named.wild.example"), 1),
            (Some("a.b.wild.example"), 0), // the default: no wildcard spans two labels
            (Some("wild.example"), 0),
            (Some("unknown.example"), 0),
            (None, 0),
        ] {
            let found = names.find(sni).unwrap();
            assert!(Arc::ptr_eq(found, &keys[expect]), "{sni:?}");
        }
        // The wildcard itself, apart from the default.
        assert!(names.wildcard.contains_key("wild.example"));
        assert_eq!(names.exact.len(), 3);
    }

    #[test]
    fn a_listener_says_what_is_wrong_with_its_files() {
        let directory = tempfile::tempdir().unwrap();
        let one = files(directory.path(), "one", &["one.example"]);
        let two = files(directory.path(), "two", &["two.example"]);
        let text = directory.path().join("text");
        std::fs::write(&text, "nothing").unwrap();
        let with = |certificate: &Path, key: &Path| {
            let files =
                CertificateFiles { certificate: certificate.to_owned(), key: key.to_owned() };
            server(&tls(vec![files]), &provider()).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(with(&one.certificate, &one.key), Ok(()));
        for (certificate, key, expect) in [
            (&one.certificate, &two.key, "two.key"),
            (&text, &one.key, "no certificate"),
            (&one.certificate, &text, "no private key"),
            (&directory.path().join("absent"), &one.key, "absent"),
        ] {
            let error = with(certificate, key).unwrap_err();
            assert!(error.contains(expect), "{error}");
        }
    }

    #[test]
    fn early_data_is_off_and_alpn_as_configured() {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = tls(vec![files(directory.path(), "one", &["one.example"])]);
        let built = server(&settings, &provider()).unwrap();
        assert_eq!(built.config.max_early_data_size, 0);
        assert_eq!(built.config.alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        settings.h2 = false;
        let built = server(&settings, &provider()).unwrap();
        assert_eq!(built.config.alpn_protocols, [b"http/1.1".to_vec()]);
    }
}
