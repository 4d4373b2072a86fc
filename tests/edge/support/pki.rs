//! Certificates made for one test: an authority, a server, two clients, and a stranger.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SerialNumber,
};

use super::digest;

/// The server's names.
pub(crate) const NAMES: [&str; 3] = ["api.example", "other.example", "localhost"];

/// A certificate with its key.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) certificate_pem: String,
    pub(crate) certificate_der: Vec<u8>,
    pub(crate) key_pem: String,
    pub(crate) key_der: Vec<u8>,
    /// What it shows beside its own certificate.
    pub(crate) issuers_der: Vec<Vec<u8>>,
    serial: SerialNumber,
}

impl Identity {
    /// `x5t#S256`.
    pub(crate) fn x5t(&self) -> String {
        digest(&self.certificate_der)
    }
}

/// Everybody's certificates.
pub(crate) struct Pki {
    own: Authority,
    pub(crate) authority_pem: String,
    pub(crate) authority_der: Vec<u8>,
    pub(crate) server: Identity,
    pub(crate) alice: Identity,
    pub(crate) bob: Identity,
    /// Signed by an authority that the edge does not know.
    pub(crate) stranger: Identity,
    /// Signed by the right authority, its time is over.
    pub(crate) expired: Identity,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let own = authority("Test authority");
        // Another one under the same name.
        let foreign = authority("Test authority");
        Self {
            authority_pem: own.pem(),
            authority_der: own.der().to_vec(),
            server: identity(&own, "server", 0),
            alice: identity(&own, "alice", 0),
            bob: identity(&own, "bob", 0),
            stranger: identity(&foreign, "alice", 0),
            expired: identity(&own, "alice", 2020),
            own,
        }
    }

    /// A list of these revoked certificates, due for the next one in `next_update` (a year).
    pub(crate) fn revocation_list(&self, revoked: &[&Identity], next_update: i32) -> String {
        let revoked = revoked.iter().map(|identity| RevokedCertParams {
            serial_number: identity.serial.clone(),
            revocation_time: rcgen::date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2020, 1, 1),
            next_update: rcgen::date_time_ymd(next_update, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.own).expect("a list").pem().expect("PEM")
    }

    /// A server certificate for other names, by the same authority.
    pub(crate) fn another_server(&self, names: &[&str]) -> Identity {
        signed(&self.own, names, vec![ExtendedKeyUsagePurpose::ServerAuth], 0)
    }

    /// A client whose certificate ends at `not_after`, seconds since the epoch.
    pub(crate) fn until(&self, not_after: u64) -> Identity {
        let mut params = params(&["brief.example"], vec![ExtendedKeyUsagePurpose::ClientAuth]);
        params.not_after =
            rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(not_after);
        sign(&self.own, params)
    }

    /// A client's certificate that begins and ends so many seconds from now.
    pub(crate) fn client(&self, name: &str, begins: i64, ends: i64) -> Identity {
        let own = format!("{name}.example");
        let mut params = params(&[&own], vec![ExtendedKeyUsagePurpose::ClientAuth]);
        let at = |secs: i64| {
            let secs = u64::try_from(super::now() + secs).expect("after 1970");
            rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(secs)
        };
        params.not_before = at(begins);
        params.not_after = at(ends);
        sign(&self.own, params)
    }

    /// Writes what a configuration names: `ca.pem`, `server.pem`, `server.key`, and a pair for each
    /// client.
    pub(crate) fn write(&self, directory: &Path) {
        let write = |name: &str, text: &str| {
            fs::write(directory.join(name), text).expect("a writable directory");
        };
        write("ca.pem", &self.authority_pem);
        for (name, identity) in
            [("server", &self.server), ("alice", &self.alice), ("bob", &self.bob)]
        {
            write(&format!("{name}.pem"), &identity.certificate_pem);
            write(&format!("{name}.key"), &identity.key_pem);
        }
    }
}

/// An authority that signs services' certificates.
pub(crate) struct Issuer(Authority);

impl Issuer {
    pub(crate) fn new(name: &str) -> Self {
        Self(authority(name))
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn der(&self) -> Vec<u8> {
        self.0.der().to_vec()
    }

    /// A certificate for these names or addresses that serves and asks; `ended` is the year in which
    /// it ended, 0 for one that is good.
    pub(crate) fn sign(&self, names: &[&str], ended: i32) -> Identity {
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        signed(&self.0, names, usages, ended)
    }
}

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key"))
        .expect("a certificate")
}

/// `ended` is the year in which it ended, 0 for one that is good.
fn identity(authority: &Authority, name: &str, ended: i32) -> Identity {
    if name == "server" {
        return signed(authority, &NAMES, vec![ExtendedKeyUsagePurpose::ServerAuth], ended);
    }
    let own = format!("{name}.example");
    signed(authority, &[&own], vec![ExtendedKeyUsagePurpose::ClientAuth], ended)
}

fn signed(
    authority: &Authority,
    names: &[&str],
    usages: Vec<ExtendedKeyUsagePurpose>,
    ended: i32,
) -> Identity {
    let mut params = params(names, usages);
    if ended > 0 {
        params.not_before = rcgen::date_time_ymd(ended - 1, 1, 1);
        params.not_after = rcgen::date_time_ymd(ended, 1, 1);
    }
    sign(authority, params)
}

fn params(names: &[&str], usages: Vec<ExtendedKeyUsagePurpose>) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let common = names.first().map_or("", |name| name.trim_end_matches(".example")).to_owned();
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name.push(DnType::CommonName, common);
    params.extended_key_usages = usages;
    params
}

fn sign(authority: &Authority, mut params: CertificateParams) -> Identity {
    static NEXT: AtomicU64 = AtomicU64::new(1000);
    let key = KeyPair::generate().expect("a key");
    // Chosen here, so that it can be revoked.
    let serial = SerialNumber::from(NEXT.fetch_add(1, Ordering::Relaxed));
    params.serial_number = Some(serial.clone());
    let certificate = params.signed_by(&key, authority).expect("a certificate");
    Identity {
        certificate_pem: certificate.pem(),
        certificate_der: certificate.der().to_vec(),
        key_pem: key.serialize_pem(),
        key_der: key.serialize_der(),
        issuers_der: Vec::new(),
        serial,
    }
}
