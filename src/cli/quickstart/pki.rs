//! The development PKI and keys: one authority, a server, two clients, and signing keys.
//!
//! The authority's own key is used once and kept nowhere.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};
use std::time::Duration;
use x509_parser::pem::parse_x509_pem;
use zeroize::Zeroizing;

use super::files::{Directory, Planned};
use crate::cli::client::key::{KeyError, SigningKey};
use crate::policy::jose::Algorithm;
use crate::policy::time::UnixTime;

/// How long the certificates are good.
const LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// With less than this left they are made anew.
const RENEW_BEFORE: Duration = Duration::from_secs(24 * 3600);
/// A client's clock may be behind ours.
const BACKDATED: Duration = Duration::from_secs(3600);

/// The files, in the order in which they are made and listed.
pub(super) const CERTIFICATES: [(&str, bool); 7] = [
    ("ca.pem", false),
    ("server.pem", false),
    ("server-key.pem", true),
    ("client.pem", false),
    ("client-key.pem", true),
    ("other-client.pem", false),
    ("other-client-key.pem", true),
];

/// The sender's DPoP key.
pub(super) const DPOP_KEY: &str = "dpop-key.pem";
/// The sample Authorization Server's signing key.
pub(super) const ISSUER_KEY: &str = "issuer-key.pem";
/// That of the other one, which binds nothing.
pub(super) const LEGACY_KEY: &str = "legacy-issuer-key.pem";

/// Every file of the PKI: those of an earlier run while they are all there and good for a day.
pub(super) fn certificates(
    directory: &Directory,
    now: UnixTime,
) -> Result<Vec<Planned>, rcgen::Error> {
    let kept: Option<Vec<Planned>> = CERTIFICATES
        .into_iter()
        .map(|(name, secret)| Some(Planned { name, content: directory.own(name)?, secret }))
        .collect();
    match kept {
        Some(kept) if kept.iter().all(|file| file.secret || lasts(&file.content, now)) => Ok(kept),
        Some(_) | None => make(now),
    }
}

/// A signing key, that of an earlier run while it is there.
pub(super) fn signing_key(
    directory: &Directory,
    name: &'static str,
) -> Result<(SigningKey, Planned), KeyError> {
    let kept = directory.own(name).and_then(|pem| SigningKey::read(&pem, None).ok());
    let key = kept.map_or_else(|| SigningKey::generate(Algorithm::Es256), Ok)?;
    let content = Zeroizing::new(key.to_pem().to_vec());
    Ok((key, Planned { name, content, secret: true }))
}

fn lasts(pem: &[u8], now: UnixTime) -> bool {
    let Ok((_, block)) = parse_x509_pem(pem) else { return false };
    block.parse_x509().is_ok_and(|certificate| {
        let end = UnixTime::from_secs(certificate.validity().not_after.timestamp());
        now.plus(RENEW_BEFORE) < end
    })
}

fn make(now: UnixTime) -> Result<Vec<Planned>, rcgen::Error> {
    let mut params = parameters("Holdfast quickstart CA", &[], now)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let issue = |name: &str, hosts: &[&str], usage| {
        let mut params = parameters(name, hosts, now)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &authority)?;
        Ok::<_, rcgen::Error>([certificate.pem(), key.serialize_pem()])
    };
    let server =
        issue("localhost", &["localhost", "127.0.0.1"], ExtendedKeyUsagePurpose::ServerAuth)?;
    let client = issue("quickstart-client", &[], ExtendedKeyUsagePurpose::ClientAuth)?;
    let other = issue("other-client", &[], ExtendedKeyUsagePurpose::ClientAuth)?;
    let contents = [authority.pem()].into_iter().chain(server).chain(client).chain(other);
    let planned = CERTIFICATES.into_iter().zip(contents).map(|((name, secret), pem)| Planned {
        name,
        content: Zeroizing::new(pem.into_bytes()),
        secret,
    });
    Ok(planned.collect())
}

fn parameters(
    name: &str,
    hosts: &[&str],
    now: UnixTime,
) -> Result<CertificateParams, rcgen::Error> {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    let epoch = date_time_ymd(1970, 1, 1);
    let at = |time: UnixTime| epoch + Duration::from_secs(time.secs().unsigned_abs());
    params.not_before = at(now.minus(BACKDATED));
    params.not_after = at(now.plus(LIFETIME));
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_kept_while_it_is_whole_and_lasts() {
        let scratch = tempfile::tempdir().unwrap();
        let now = UnixTime::from_secs(1_800_000_000);
        let mut directory = Directory::open(scratch.path()).unwrap();
        let first = certificates(&directory, now).unwrap();
        directory.write(&first).unwrap();
        let same = |now: UnixTime| {
            let next = certificates(&directory, now).unwrap();
            next.iter().zip(&first).all(|(next, first)| next.content == first.content)
        };
        assert!(same(now));
        assert!(same(now.plus(LIFETIME / 2)));
        assert!(!same(now.plus(LIFETIME)));
        assert!(!same(now.plus(LIFETIME).minus(RENEW_BEFORE / 2)));
    }

    #[test]
    fn a_signing_key_is_kept() {
        let scratch = tempfile::tempdir().unwrap();
        let mut directory = Directory::open(scratch.path()).unwrap();
        let (first, planned) = signing_key(&directory, DPOP_KEY).unwrap();
        directory.write(&[planned]).unwrap();
        let (next, _) = signing_key(&directory, DPOP_KEY).unwrap();
        assert_eq!(next.thumbprint(), first.thumbprint());
    }
}
