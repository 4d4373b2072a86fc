//! Certificates made for one test: an authority, a server, two clients, and a stranger.

use std::fs;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
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
}

impl Identity {
    /// `x5t#S256`.
    pub(crate) fn x5t(&self) -> String {
        digest(&self.certificate_der)
    }
}

/// Everybody's certificates.
pub(crate) struct Pki {
    pub(crate) authority_pem: String,
    pub(crate) authority_der: Vec<u8>,
    pub(crate) server: Identity,
    pub(crate) alice: Identity,
    pub(crate) bob: Identity,
    /// Signed by an authority that the edge does not know.
    pub(crate) stranger: Identity,
    /// Signed by the right authority, its time is over.
    pub(crate) expired: Identity,
    authority: Authority,
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
            authority: own,
        }
    }

    /// A client whose certificate ends at `not_after`, seconds since the epoch.
    pub(crate) fn until(&self, not_after: u64) -> Identity {
        let mut params = CertificateParams::new(vec!["brief.example".to_owned()]).expect("names");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after =
            rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(not_after);
        sign(&self.authority, &params)
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
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key"))
        .expect("a certificate")
}

/// `ended` is the year in which it ended, 0 for one that is good.
fn identity(authority: &Authority, name: &str, ended: i32) -> Identity {
    let server = name == "server";
    let names: Vec<String> =
        if server { NAMES.map(str::to_owned).to_vec() } else { vec![format!("{name}.example")] };
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![if server {
        ExtendedKeyUsagePurpose::ServerAuth
    } else {
        ExtendedKeyUsagePurpose::ClientAuth
    }];
    if ended > 0 {
        params.not_before = rcgen::date_time_ymd(ended - 1, 1, 1);
        params.not_after = rcgen::date_time_ymd(ended, 1, 1);
    }
    sign(authority, &params)
}

fn sign(authority: &Authority, params: &CertificateParams) -> Identity {
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, authority).expect("a certificate");
    Identity {
        certificate_pem: certificate.pem(),
        certificate_der: certificate.der().to_vec(),
        key_pem: key.serialize_pem(),
        key_der: key.serialize_der(),
    }
}
