//! Client certificates: thumbprint and validity.

use x509_parser::prelude::{FromDer as _, X509Certificate};

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
