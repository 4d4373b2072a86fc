//! Client certificates: thumbprint and validity, and the lists of those that were withdrawn.

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

use super::digest::{Sha256, X5tS256};
use super::time::UnixTime;

/// A client certificate whose chain and possession TLS has verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SenderCertificate {
    der: Vec<u8>,
    x5t: X5tS256,
    not_after: UnixTime,
}

impl SenderCertificate {
    /// Reads the leaf `der`. `None` when it is not one X.509 certificate to the last byte.
    #[must_use]
    pub fn new(der: Vec<u8>) -> Option<Self> {
        let not_after = {
            let (rest, certificate) = X509Certificate::from_der(&der).ok()?;
            if !rest.is_empty() {
                return None;
            }
            UnixTime::from_secs(certificate.validity().not_after.timestamp())
        };
        let x5t = X5tS256(Sha256::of(&der));
        Some(Self { der, x5t, not_after })
    }

    /// `x5t#S256`: SHA-256 over the DER (RFC 8705 section 3.1).
    #[must_use]
    pub fn x5t(&self) -> X5tS256 {
        self.x5t
    }

    /// The leaf's DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The end of its validity.
    #[must_use]
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }
}

/// A certificate revocation list (RFC 5280 section 5), not verified yet: whoever uses it verifies
/// its issuer's signature.
#[derive(Clone, Debug)]
pub struct RevocationList {
    /// The whole list.
    pub der: CertificateRevocationListDer<'static>,
    /// When the next one is due.
    pub next_update: Option<UnixTime>,
}

/// Reads a file of lists: PEM blocks, or one list in DER.
///
/// # Errors
/// What is wrong, when something in it is no list, or one of a kind that cannot be looked up
/// (indirect and delta lists), or there is none.
pub fn revocation_lists(content: &[u8]) -> Result<Vec<RevocationList>, String> {
    const SEQUENCE: u8 = 0x30;
    let lists = if content.first() == Some(&SEQUENCE) {
        vec![CertificateRevocationListDer::from(content.to_vec())]
    } else {
        let blocks = CertificateRevocationListDer::pem_slice_iter(content);
        blocks.collect::<Result<Vec<_>, _>>().map_err(|_| "not valid PEM".to_owned())?
    };
    let read = |der: CertificateRevocationListDer<'static>| {
        webpki::OwnedCertRevocationList::from_der(&der).map_err(|error| error.to_string())?;
        let malformed = || "not one certificate revocation list".to_owned();
        let (rest, list) = CertificateRevocationList::from_der(&der).map_err(|_| malformed())?;
        if !rest.is_empty() {
            return Err(malformed());
        }
        let next_update = list.next_update().map(|end| UnixTime::from_secs(end.timestamp()));
        Ok(RevocationList { next_update, der: der.clone() })
    };
    let lists: Vec<_> = lists.into_iter().map(read).collect::<Result<_, _>>()?;
    if lists.is_empty() {
        Err("no certificate revocation list in it".to_owned())
    } else {
        Ok(lists)
    }
}
