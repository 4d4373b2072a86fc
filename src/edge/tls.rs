//! A listener's rustls configurations: policies and certificates by SNI, client certificates, their
//! revocation, versions, ALPN.
//!
//! Each configuration is built anew as a whole, so that its session storage starts empty: rustls
//! does not run the certificate verifier on resumption, and a kept storage would let a client back
//! in whose certificate is no longer accepted. Early data is never accepted.

#![expect(clippy::disallowed_methods, reason = "certificates and keys are read from files")]

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    ClientHello, ResolvesServerCert, ServerSessionMemoryCache, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::trust::{ByName, PolicyTrust, Trust};
use crate::config::{CertificateFiles, ClientCertificates, ListenerTls};
use crate::gate::Withdrawn;
use crate::policy::certificate::{self, RevocationList, SenderCertificate};

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

/// What a listener is built from.
#[derive(Debug)]
pub struct ServerTls {
    /// For the acceptors: the first serves everyone whose SNI no other policy names. None on a plain
    /// listener.
    pub configs: Vec<Arc<ServerConfig>>,
    /// For the connections that are open already.
    pub trust: Arc<Trust>,
}

/// Builds a listener's configurations, one for each policy. Each has a session storage of its own, so
/// that no session of one is resumed under another.
///
/// # Errors
/// When a file cannot be read or does not hold what it should.
pub fn server(
    tls: Option<&ListenerTls>,
    provider: &Arc<CryptoProvider>,
    generation: u64,
) -> Result<ServerTls, TlsError> {
    let Some(tls) = tls else {
        let nobody = vec![PolicyTrust { verifier: None, required: false }];
        let trust = Arc::new(Trust::new(generation, nobody, ByName::default()));
        return Ok(ServerTls { configs: Vec::new(), trust });
    };
    let (mut configs, mut policies) = (Vec::new(), Vec::new());
    let mut names = ByName::default();
    let all = tls.policies.iter().map(|policy| (policy.hosts.as_slice(), &policy.tls));
    for (index, (hosts, tls)) in std::iter::once((&[][..], tls)).chain(all).enumerate() {
        let verifier = client_verifier(tls, provider)?;
        configs.push(server_config(tls, provider, verifier.clone())?);
        let required = tls.client_certificates == ClientCertificates::Require;
        policies.push(PolicyTrust { verifier, required });
        names.add(hosts, &index);
    }
    Ok(ServerTls { configs, trust: Arc::new(Trust::new(generation, policies, names)) })
}

fn server_config(
    tls: &ListenerTls,
    provider: &Arc<CryptoProvider>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut certificates = Certificates::default();
    for files in &tls.certificates {
        let loaded = load(files, provider)?;
        certificates.0.add(&loaded.names, &loaded.key);
        certificates.1.get_or_insert(loaded.key);
    }
    let versions = if tls.tls12 { BOTH_VERSIONS } else { ONLY_TLS13 };
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(versions)?;
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(certificates));
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
    config.alpn_protocols = if tls.h2 {
        vec![b"h2".to_vec(), b"http/1.1".to_vec()]
    } else {
        vec![b"http/1.1".to_vec()]
    };
    Ok(Arc::new(config))
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
    let mut builder = if required { builder } else { builder.allow_unauthenticated() };
    for path in &tls.revocation.crls {
        builder = builder.with_crls(lists(path)?.into_iter().map(|list| list.der));
    }
    if tls.revocation.leaf_only {
        builder = builder.only_check_end_entity_revocation();
    }
    if tls.revocation.unknown_allowed {
        builder = builder.allow_unknown_revocation_status();
    }
    if !tls.revocation.expired_allowed {
        builder = builder.enforce_revocation_expiration();
    }
    builder.build().map(Some).map_err(|error| TlsError::Authorities(error.to_string()))
}

struct Loaded {
    key: Arc<CertifiedKey>,
    names: Vec<String>,
}

fn load(files: &CertificateFiles, provider: &CryptoProvider) -> Result<Loaded, TlsError> {
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?).map_err(|error| TlsError::Pem {
        path: files.key.clone(),
        reason: format!("no private key: {error}"),
    })?;
    let names = dns_names(chain.first().map_or(&[], AsRef::as_ref)).ok_or_else(|| {
        TlsError::Pem { path: files.certificate.clone(), reason: "not an X.509 certificate".into() }
    })?;
    let key = CertifiedKey::from_der(chain, key, provider)
        .map_err(|error| TlsError::Key { path: files.key.clone(), error })?;
    Ok(Loaded { key: Arc::new(key), names })
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

/// The lists of withdrawn client certificates of all listeners.
#[derive(Debug, Default)]
pub struct WithdrawnCertificates(Vec<CertificateRevocationListDer<'static>>);

impl WithdrawnCertificates {
    /// Adds the lists of a listener.
    ///
    /// # Errors
    /// When a file cannot be read or holds something else.
    pub fn add(&mut self, tls: Option<&ListenerTls>) -> Result<(), TlsError> {
        for tls in tls.into_iter().flat_map(ListenerTls::policies) {
            for path in &tls.revocation.crls {
                self.0.extend(lists(path)?.into_iter().map(|list| list.der));
            }
        }
        Ok(())
    }
}

impl Withdrawn for WithdrawnCertificates {
    fn is_withdrawn(&self, certificate: &SenderCertificate) -> bool {
        // What cannot be looked up is not vouched for.
        certificate.number().is_none_or(|(issuer, number)| {
            self.0.iter().any(|list| certificate::is_listed(list, &issuer, &number))
        })
    }
}

fn lists(path: &Path) -> Result<Vec<RevocationList>, TlsError> {
    certificate::revocation_lists(&read(path)?)
        .map_err(|reason| TlsError::Pem { path: path.to_owned(), reason })
}

/// The DNS names in a certificate's subjectAltName, in lower case.
pub(super) fn dns_names(der: &[u8]) -> Option<Vec<String>> {
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
    Some(dns.collect())
}

/// Certificates by name; the first serves whoever names none of them.
#[derive(Default)]
struct Certificates(ByName<Arc<CertifiedKey>>, Option<Arc<CertifiedKey>>);

impl Certificates {
    fn find(&self, sni: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        sni.and_then(|sni| self.0.find(sni)).or(self.1.as_ref())
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificates")
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name()).map(Arc::clone)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Revocation;

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
            revocation: Revocation::default(),
            policies: Vec::new(),
        }
    }

    #[test]
    fn sni_chooses() {
        let directory = tempfile::tempdir().unwrap();
        let mut certificates = Certificates::default();
        let mut keys = Vec::new();
        for (stem, sans) in [
            ("one", vec!["one.example", "*.wild.example"]),
            ("two", vec!["Two.Example", "named.wild.example", "one.example"]),
        ] {
            let loaded = load(&files(directory.path(), stem, &sans), &provider()).unwrap();
            certificates.0.add(&loaded.names, &loaded.key);
            certificates.1.get_or_insert(Arc::clone(&loaded.key));
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
            let found = certificates.find(sni).unwrap();
            assert!(Arc::ptr_eq(found, &keys[expect]), "{sni:?}");
        }
        // The wildcard itself, apart from the default.
        assert!(certificates.0.find("a.wild.example").is_some());
        assert!(certificates.0.find("a.b.wild.example").is_none());
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
            server(Some(&tls(vec![files])), &provider(), 1)
                .map(drop)
                .map_err(|error| error.to_string())
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
        let built = server(Some(&settings), &provider(), 1).unwrap();
        assert_eq!(built.configs[0].max_early_data_size, 0);
        assert_eq!(built.configs[0].alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        settings.h2 = false;
        let built = server(Some(&settings), &provider(), 1).unwrap();
        assert_eq!(built.configs[0].alpn_protocols, [b"http/1.1".to_vec()]);
    }
}
