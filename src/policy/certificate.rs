//! Client certificates: thumbprint and validity, and the lists of those that were withdrawn.

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject as _;
use std::time::Duration;

use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME;
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, GeneralName, X509Certificate};

use super::digest::{Sha256, X5tS256};
use super::time::UnixTime;

/// The longest time for which a successor may stand in for a certificate.
pub const LONGEST_GRACE: Duration = Duration::from_secs(90 * 86_400);

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

    /// The DNS names, in lower case, and URIs in its subjectAltName.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let Ok((_, certificate)) = X509Certificate::from_der(&self.der) else { return Vec::new() };
        let names = certificate.subject_alternative_name().ok().flatten();
        let names = names.into_iter().flat_map(|extension| &extension.value.general_names);
        let named = names.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            GeneralName::OtherName(..)
            | GeneralName::RFC822Name(_)
            | GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::IPAddress(_)
            | GeneralName::RegisteredID(_)
            | GeneralName::Invalid(..) => None,
        });
        named.collect()
    }

    /// Whether it is what `old`'s holder got after it: from the same authority, with the same subject
    /// and alternative names, and begun before `old` ended; and at `now` no more than `grace` old.
    ///
    /// Whether `old` was revoked is for those to say who have the lists.
    #[must_use]
    pub fn succeeds(&self, old: &Self, grace: Duration, now: UnixTime) -> bool {
        let (Some(old), Some(new)) = (Identity::of(old), Identity::of(self)) else { return false };
        let named = !old.subject.is_empty() || old.alternative_names.is_some();
        named
            && old.subject == new.subject
            && old.alternative_names == new.alternative_names
            && old.issuer == new.issuer
            && old.authority_key == new.authority_key
            && old.begins < new.begins
            && new.begins <= old.ends
            && new.begins <= now
            && now < new.begins.plus(grace)
    }

    /// The issuer's name and this certificate's number, as revocation lists write them; `None` when it
    /// cannot be read.
    #[must_use]
    pub fn number(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let (_, certificate) = X509Certificate::from_der(&self.der).ok()?;
        Some((certificate.issuer().as_raw().to_vec(), certificate.raw_serial().to_vec()))
    }
}

/// What makes a certificate its holder's, and its place in time.
#[derive(Debug)]
struct Identity {
    /// The subject, DER; empty where it has no name.
    subject: Vec<u8>,
    /// The value of subjectAltName, DER.
    alternative_names: Option<Vec<u8>>,
    /// The issuer, DER.
    issuer: Vec<u8>,
    /// The identifier of the issuer's key.
    authority_key: Option<Vec<u8>>,
    begins: UnixTime,
    ends: UnixTime,
}

impl Identity {
    fn of(certificate: &SenderCertificate) -> Option<Self> {
        let (_, read) = X509Certificate::from_der(&certificate.der).ok()?;
        let names = read.get_extension_unique(&OID_X509_EXT_SUBJECT_ALT_NAME).ok()?;
        let authority_key = read.extensions().iter().find_map(|it| {
            let parsed = it.parsed_extension();
            let ParsedExtension::AuthorityKeyIdentifier(key) = parsed else { return None };
            Some(key.key_identifier.as_ref().map(|key| key.0.to_vec()))
        });
        let subject = read.subject();
        Some(Self {
            subject: subject.iter().next().map_or_else(Vec::new, |_| subject.as_raw().to_vec()),
            alternative_names: names.map(|extension| extension.value.to_vec()),
            issuer: read.issuer().as_raw().to_vec(),
            authority_key: authority_key.flatten(),
            begins: UnixTime::from_secs(read.validity().not_before.timestamp()),
            ends: certificate.not_after,
        })
    }
}

/// Whether a list of this issuer has this number ([`SenderCertificate::number`]).
#[must_use]
pub fn is_listed(list: &CertificateRevocationListDer<'_>, issuer: &[u8], number: &[u8]) -> bool {
    let Ok((_, list)) = CertificateRevocationList::from_der(list) else { return false };
    list.issuer().as_raw() == issuer
        && list.iter_revoked_certificates().any(|entry| entry.raw_serial() == number)
}

/// A certificate revocation list (RFC 5280 section 5), not verified yet: whoever uses it verifies
/// its issuer's signature.
#[derive(Clone, Debug)]
pub struct RevocationList {
    /// The whole list.
    pub der: CertificateRevocationListDer<'static>,
    /// When it was made.
    pub this_update: UnixTime,
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
        let this_update = UnixTime::from_secs(list.last_update().timestamp());
        Ok(RevocationList { this_update, next_update, der: der.clone() })
    };
    let lists: Vec<_> = lists.into_iter().map(read).collect::<Result<_, _>>()?;
    if lists.is_empty() {
        Err("no certificate revocation list in it".to_owned())
    } else {
        Ok(lists)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn made(common: &str, name: &str, year: i32) -> SenderCertificate {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, common);
        params.not_before = rcgen::date_time_ymd(year, 1, 1);
        params.not_after = rcgen::date_time_ymd(year + 1, 6, 1);
        let issuer = rcgen::Issuer::new(CertificateParams::default(), KeyPair::generate().unwrap());
        let signed = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
        SenderCertificate::new(signed.der().to_vec()).unwrap()
    }

    #[test]
    fn a_successor_has_the_same_subject_and_names() {
        let old = made("a", "a.example", 2026);
        // 2027-01-02.
        let now = UnixTime::from_secs(1_798_848_000);
        for (common, name, expect) in
            [("a", "a.example", true), ("b", "a.example", false), ("a", "b.example", false)]
        {
            let new = made(common, name, 2027);
            let found = new.succeeds(&old, Duration::from_secs(10 * 86_400), now);
            assert_eq!(found, expect, "{common} {name}");
        }
    }
}
