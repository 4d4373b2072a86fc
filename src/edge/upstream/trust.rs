//! Whom an upstream's servers must be, and who the edge is to them.
//!
//! pingora makes a rustls configuration of these for each connection. It verifies the server's chain
//! and name as long as there is an authority and a name: with an empty name it verifies nothing, so
//! that no peer is made without one.

use std::sync::Arc;

use pingora::protocols::Digest;
use pingora::protocols::tls::CaType;
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::UpstreamError;
use crate::config::{Authorities, CertificateFiles, UpstreamTls};
use crate::edge::tls::{TlsError, certificates, read};

/// How the digest of a connection calls TLS 1.3.
const TLS13: &str = "TLSv1_3";

/// What TLS to an upstream goes by.
#[derive(Clone, Debug)]
pub(super) struct Trust {
    /// Never empty.
    pub(super) authorities: Arc<CaType>,
    pub(super) client: Option<Arc<CertKey>>,
    tls12: bool,
}

impl Trust {
    pub(super) fn load(tls: &UpstreamTls) -> Result<Self, UpstreamError> {
        let found = match &tls.authorities {
            Authorities::System => system()?,
            Authorities::Files(paths) => {
                let mut found = Vec::new();
                for path in paths {
                    found.extend(certificates(path)?);
                }
                found
            }
        };
        let authorities: Vec<_> = found.iter().map(parsed).collect::<Result<_, _>>()?;
        if authorities.is_empty() {
            return Err(UpstreamError::NoAuthority);
        }
        let client = tls.client.as_ref().map(client).transpose()?.map(Arc::new);
        Ok(Self { authorities: authorities.into(), client, tls12: tls.tls12 })
    }

    /// Whether a connection may be used. pingora offers TLS 1.2 always.
    pub(super) fn takes(&self, digest: Option<&Digest>) -> bool {
        let tls = digest.and_then(|digest| digest.ssl_digest.as_ref());
        tls.is_some_and(|tls| self.tls12 || tls.version == TLS13)
    }
}

fn system() -> Result<Vec<CertificateDer<'static>>, UpstreamError> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "an authority of the system cannot be read");
    }
    // A store has old ones that nothing can be verified with; pingora takes all or none.
    let mut store = rustls::RootCertStore::empty();
    let usable = found
        .certs
        .into_iter()
        .filter(|der| store.add(der.clone()).is_ok() && X509Certificate::from_der(der).is_ok());
    Ok(usable.collect())
}

/// pingora's parser panics at what is no certificate.
fn parsed(der: &CertificateDer<'static>) -> Result<WrappedX509, UpstreamError> {
    X509Certificate::from_der(der).map_err(|_| UpstreamError::Certificate)?;
    Ok(WrappedX509::new(der.to_vec(), parse_x509))
}

fn client(files: &CertificateFiles) -> Result<CertKey, UpstreamError> {
    let chain = certificates(&files.certificate)?;
    for der in &chain {
        X509Certificate::from_der(der).map_err(|_| UpstreamError::Certificate)?;
    }
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?).map_err(|_| TlsError::Pem {
        path: files.key.clone(),
        // The parser's own words may quote the file.
        reason: "no private key".to_owned(),
    })?;
    let chain = chain.iter().map(|der| der.to_vec()).collect();
    Ok(CertKey::new(chain, key.secret_der().to_vec()))
}
