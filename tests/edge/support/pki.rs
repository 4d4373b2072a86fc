//! Certificates made for one test: an authority, a server, two clients, and a stranger.

use std::fs;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SerialNumber,
};

use super::digest;

/// The server's names.
pub(crate) const NAMES: [&str; 3] = ["api.example", "other.example", "localhost"];

/// A certificate with its key.
pub(crate) struct Identity {
    pub(crate) certificate_pem: String,
    pub(crate) certificate_der: Vec<u8>,
    pub(crate) key_pem: String,
    pub(crate) key_der: Vec<u8>,
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
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let purpose = ExtendedKeyUsagePurpose::ServerAuth;
        let params = CertificateParams::new(names).expect("names");
        signed(&self.own, params, "another server", purpose)
    }

    /// A client whose certificate ends at `not_after`, seconds since the epoch.
    pub(crate) fn until(&self, not_after: u64) -> Identity {
        let mut params = CertificateParams::new(vec!["brief.example".to_owned()]).expect("names");
        params.not_after =
            rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(not_after);
        signed(&self.own, params, "brief", ExtendedKeyUsagePurpose::ClientAuth)
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
    let server = name == "server";
    let names: Vec<String> =
        if server { NAMES.map(str::to_owned).to_vec() } else { vec![format!("{name}.example")] };
    let mut params = CertificateParams::new(names).expect("names");
    if ended > 0 {
        params.not_before = rcgen::date_time_ymd(ended - 1, 1, 1);
        params.not_after = rcgen::date_time_ymd(ended, 1, 1);
    }
    let purpose = if server {
        ExtendedKeyUsagePurpose::ServerAuth
    } else {
        ExtendedKeyUsagePurpose::ClientAuth
    };
    signed(authority, params, name, purpose)
}

fn signed(
    authority: &Authority,
    mut params: CertificateParams,
    name: &str,
    purpose: ExtendedKeyUsagePurpose,
) -> Identity {
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![purpose];
    let key = KeyPair::generate().expect("a key");
    // Chosen here, so that it can be revoked.
    let serial =
        SerialNumber::from(
            key.public_key_raw().iter().rev().take(16).fold(1, |sum, byte| {
                u64::from(*byte).wrapping_add(u64::wrapping_mul(sum, 31)) >> 1
            }),
        );
    params.serial_number = Some(serial.clone());
    let certificate = params.signed_by(&key, authority).expect("a certificate");
    Identity {
        certificate_pem: certificate.pem(),
        certificate_der: certificate.der().to_vec(),
        key_pem: key.serialize_pem(),
        key_der: key.serialize_der(),
        serial,
    }
}
