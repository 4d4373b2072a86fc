//! What a request for a capsule shows, before anything is made of it.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;

use crate::policy::capsule::facts::{
    Asked, Facts, Fingerprint, KeyFacts, Place, Proof, Seal, SenderFacts,
};
use crate::policy::capsule::key::KeyVersion;
use crate::policy::capsule::node::{NodeId, is_label};
use crate::policy::certificate::SenderCertificate;
use crate::policy::digest::Sha256;
use crate::policy::json::{self, Value};
use crate::policy::presented::{self, Scheme};
use crate::policy::request::RequestView;
use crate::policy::target::percent_decoded;
use crate::policy::time::UnixTime;

use super::Capsules;
use super::seal::SealKey;

const FINGERPRINT: [&str; 2] = ["x-node-fingerprint", "x-bmw-fingerprint"];
const BOOT: &str = "x-node-boot-id";
const VERSION: &str = "x-node-version";
const SEAL_KEY: &str = "x-node-enc-jwk";
/// The most bytes of a fingerprint.
const FINGERPRINT_BYTES: usize = 256;
/// The most bytes of a key in a field.
const SEAL_KEY_BYTES: usize = 1024;

/// A request for a capsule, or with telemetry.
#[derive(Clone, Copy)]
pub(in crate::edge) struct Asking<'a> {
    /// The node, as the path names it.
    pub(in crate::edge) node: &'a str,
    /// The request.
    pub(in crate::edge) view: RequestView<'a>,
    /// The origin that it came to.
    pub(in crate::edge) origin: usize,
    /// The decision's id.
    pub(in crate::edge) decision: &'a str,
    /// The peer that the edge trusts.
    pub(in crate::edge) address: Option<IpAddr>,
    /// The most bytes of `Authorization`.
    pub(in crate::edge) authorization_bytes: usize,
    /// Whether certificates prove anything.
    pub(in crate::edge) certificates: bool,
    /// The time.
    pub(in crate::edge) now: UnixTime,
}

/// What the credentials are, or nothing that costs as much.
pub(super) struct Shown<'a> {
    /// The id; nobody's where the path holds none.
    pub(super) id: NodeId,
    /// Whether the path holds one.
    pub(super) named: bool,
    /// The secret as presented; `None` where there is none that can be read.
    pub(super) secret: Option<&'a str>,
    /// SHA-256 of the secret.
    pub(super) hash: Sha256,
    /// Its scheme.
    pub(super) scheme: Option<Scheme>,
}

impl<'a> Asking<'a> {
    /// Reads id and secret. What cannot be read is looked up and hashed all the same, so that it
    /// costs what any other costs.
    pub(super) fn shown(&self) -> Shown<'a> {
        let id = NodeId::parse(self.node);
        let credentials = presented::credentials(&self.view, self.authorization_bytes).ok();
        let secret = credentials.map(|shown| shown.token);
        Shown {
            named: id.is_ok(),
            id: id.unwrap_or_else(|_| NodeId::nobody()),
            secret,
            hash: Sha256::of(secret.unwrap_or_default().as_bytes()),
            scheme: credentials.map(|shown| shown.scheme),
        }
    }

    /// The sender's certificate, where one that counts was shown.
    pub(super) fn sender(&self) -> SenderFacts {
        let shown = self.view.sender.at(self.now).certificate();
        let x5t = shown.filter(|_| self.certificates).map(SenderCertificate::x5t);
        SenderFacts { proof: Proof::Absent, x5t }
    }

    /// Whether a key to seal to is in a field.
    pub(super) fn has_seal_field(&self) -> bool {
        self.view.headers.contains_key(SEAL_KEY)
    }

    /// The ephemeral key of a request whose sender proves itself by its certificate: the field is
    /// the connection's, as nobody signed it.
    pub(super) fn seal_field(&self) -> Option<Result<SealKey, ()>> {
        let text = match field(self.view.headers, SEAL_KEY, SEAL_KEY_BYTES) {
            Field::Missing => return None,
            Field::Malformed => return Some(Err(())),
            Field::One(text) => text,
        };
        let jwk = URL_SAFE_NO_PAD.decode(text).ok().and_then(|text| json::object(&text));
        let key = jwk.and_then(|jwk| SealKey::read(&Value::Object(jwk)));
        Some(key.ok_or(()))
    }
}

impl Capsules {
    /// The facts of a request, as far as no record is needed for them.
    pub(super) fn facts(&self, asking: &Asking<'_>) -> Facts {
        let headers = asking.view.headers;
        let label = |name: &str| match field(headers, name, usize::MAX) {
            Field::One(text) if is_label(text) => Some(text.to_owned()),
            Field::One(_) | Field::Missing | Field::Malformed => None,
        };
        Facts {
            enrolled: false,
            secret: false,
            sender: asking.sender(),
            fingerprint: fingerprint(headers),
            boot: label(BOOT),
            version: label(VERSION),
            place: Place {
                network: asking.address.map(|address| self.networks.locate(address)),
                baseline: None,
                databases: self.networks.builds(),
            },
            recent_quarantines: 0,
            keys: KeyFacts {
                asked: asked(asking.view.query),
                masters: self.ring.masters(),
                seal: Seal::Absent,
            },
        }
    }
}

/// `?keyVersion=`, once; other parameters are nobody's.
fn asked(query: Option<&str>) -> Asked {
    let parameters = query.into_iter().flat_map(|query| query.split('&'));
    let mut values = parameters.filter_map(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        (percent_decoded(name) == b"keyVersion").then(|| percent_decoded(value))
    });
    match (values.next(), values.next()) {
        (None, _) => Asked::Current,
        (Some(value), None) => {
            let version = String::from_utf8(value).ok().and_then(|it| KeyVersion::parse(&it).ok());
            version.map_or(Asked::Malformed, Asked::Version)
        }
        (Some(_), Some(_)) => Asked::Malformed,
    }
}

fn fingerprint(headers: &HeaderMap) -> Fingerprint {
    let mut known = None;
    for name in FINGERPRINT {
        for value in headers.get_all(name) {
            match known {
                Some(before) if before != value => return Fingerprint::Conflict,
                Some(_) | None => known = Some(value),
            }
        }
    }
    let text = known.and_then(|value| value.to_str().ok());
    match text.filter(|text| (1..=FINGERPRINT_BYTES).contains(&text.len())) {
        Some(text) => Fingerprint::Shown(Sha256::of(text.as_bytes())),
        None => Fingerprint::Missing,
    }
}

enum Field<'a> {
    Missing,
    Malformed,
    One(&'a str),
}

fn field<'a>(headers: &'a HeaderMap, name: &str, limit: usize) -> Field<'a> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Field::Missing,
        (Some(value), None) if value.len() <= limit => {
            value.to_str().map_or(Field::Malformed, Field::One)
        }
        (Some(_), None | Some(_)) => Field::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn key_versions_in_a_query() {
        let version = |text: &str| Asked::Version(KeyVersion::parse(text).unwrap());
        for (query, expect) in [
            (None, Asked::Current),
            (Some("a=b"), Asked::Current),
            (Some("keyVersion=m1.n2"), version("m1.n2")),
            (Some("a=b&keyVersion=m1.n2@1.2"), version("m1.n2@1.2")),
            (Some("keyVersion=m1.n2%401.2"), version("m1.n2@1.2")),
            (Some("keyVersion=m1.n2%401.2%2Bx%3Ay"), version("m1.n2@1.2+x:y")),
            (Some("key%56ersion=m1.n2"), version("m1.n2")),
            (Some("keyVersion"), Asked::Malformed),
            (Some("keyVersion="), Asked::Malformed),
            (Some("keyVersion=m0.n1"), Asked::Malformed),
            (Some("keyVersion=m1.n2&keyVersion=m1.n2"), Asked::Malformed),
        ] {
            assert_eq!(asked(query), expect, "{query:?}");
        }
    }

    #[test]
    fn fingerprints() {
        let check = |fields: &[(&'static str, &[u8])], expect: Fingerprint| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, HeaderValue::from_bytes(value).unwrap());
            }
            assert_eq!(fingerprint(&headers), expect, "{fields:?}");
        };
        let of = |text: &str| Fingerprint::Shown(Sha256::of(text.as_bytes()));
        check(&[], Fingerprint::Missing);
        check(&[("x-node-fingerprint", b"a")], of("a"));
        check(&[("x-bmw-fingerprint", b"a")], of("a"));
        check(&[("x-node-fingerprint", b"a"), ("x-bmw-fingerprint", b"a")], of("a"));
        check(&[("x-node-fingerprint", b"a"), ("x-bmw-fingerprint", b"b")], Fingerprint::Conflict);
        check(&[("x-node-fingerprint", b"a"), ("x-node-fingerprint", b"b")], Fingerprint::Conflict);
        check(&[("x-node-fingerprint", b"")], Fingerprint::Missing);
        check(&[("x-node-fingerprint", b"\xff")], Fingerprint::Missing);
        check(&[("x-node-fingerprint", &[b'a'; 257])], Fingerprint::Missing);
        check(&[("x-node-fingerprint", &[b'a'; 256])], of(&"a".repeat(256)));
    }
}
