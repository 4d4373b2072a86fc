//! What is believed and what is not: for each check, a capsule that is sound but for it.

mod fetch;
mod forge;
mod stub;
mod verify;

use serde_json::{Value, json};

use self::forge::{Forge, KEY, SECRET, Spec, node};
use super::envelope;
use super::fault::Fault;
use super::grant::{Asked, Capsule, Grant, believe};
use super::output::{self, Format};
use super::seal::SealKey;
use crate::policy::capsule::envelope::key_hash;
use crate::policy::capsule::key::KeyVersion;
use crate::policy::jose::Algorithm;
use crate::policy::time::UnixTime;
use crate::policy::token::KeySet;

const ISSUED: i64 = 1_800_000_000;

/// A capsule of `lifetime` seconds.
pub(super) fn capsule(lifetime: i64) -> Capsule {
    let forge = Forge::new(Algorithm::EdDsa);
    let mut spec = forge.spec(ISSUED);
    spec.claims["exp"] = (ISSUED + lifetime).into();
    let grant = Grant::read(forge.grant(&spec).to_string().as_bytes()).unwrap();
    let now = UnixTime::from_secs(ISSUED);
    believe(grant, &asked(&node(), None), &forge.keys(), now).unwrap()
}

fn asked<'a>(
    node: &'a crate::policy::capsule::node::NodeId,
    seal: Option<&'a SealKey>,
) -> Asked<'a> {
    let (key_version, software, seal_required) = (None, None, false);
    Asked { node, secret: SECRET, key_version, software, seal, seal_required }
}

/// What comes of a capsule: spoilt before it is made, and after.
struct Case<'a> {
    before: &'a dyn Fn(&mut Spec),
    after: &'a dyn Fn(&mut Value),
    change: &'a dyn Fn(&mut Asked<'_>),
    sealed: bool,
    now: i64,
}

impl Default for Case<'_> {
    fn default() -> Self {
        Self { before: &|_| {}, after: &|_| {}, change: &|_| {}, sealed: false, now: ISSUED + 1 }
    }
}

impl Case<'_> {
    fn run(&self) -> Result<Capsule, Fault> {
        let forge = Forge::new(Algorithm::EdDsa);
        let seal = SealKey::fresh().unwrap();
        let mut spec = forge.spec(ISSUED);
        if self.sealed {
            spec = spec.sealed_to(seal.public_jwk());
        }
        (self.before)(&mut spec);
        let mut grant = forge.grant(&spec);
        (self.after)(&mut grant);
        let node = node();
        let mut asked = asked(&node, Some(&seal));
        (self.change)(&mut asked);
        let grant = Grant::read(grant.to_string().as_bytes())?;
        believe(grant, &asked, &forge.keys(), UnixTime::from_secs(self.now))
    }

    fn fails(&self, expect: Fault) {
        assert_eq!(self.run().map(drop), Err(expect));
    }
}

fn before(spoil: &dyn Fn(&mut Spec), expect: Fault) {
    Case { before: spoil, ..Case::default() }.fails(expect);
}

fn after(spoil: &dyn Fn(&mut Value), expect: Fault) {
    Case { after: spoil, ..Case::default() }.fails(expect);
}

fn sealed(spoil: &dyn Fn(&mut Spec), expect: Fault) {
    Case { before: spoil, sealed: true, ..Case::default() }.fails(expect);
}

#[test]
fn a_sound_capsule_is_believed() {
    for is_sealed in [false, true] {
        let capsule = Case { sealed: is_sealed, ..Case::default() }.run().unwrap();
        assert_eq!(capsule.key.as_slice(), KEY);
        assert_eq!(capsule.claims.sealed, is_sealed);
        assert_eq!(capsule.expires_utc, "2027-01-16T08:00:00.250Z");
        assert_eq!(capsule.clock_ahead_s, 1);
        assert!(!format!("{capsule:?}").contains("7, 7"));
    }
}

#[test]
fn envelopes_of_either_algorithm_are_read_and_of_no_other() {
    for (algorithm, good) in [
        (Algorithm::EdDsa, true),
        (Algorithm::Es256, true),
        (Algorithm::Es384, false),
        (Algorithm::Ed25519, false),
        (Algorithm::Ps256, false),
    ] {
        let forge = Forge::new(algorithm);
        let read = envelope::read(&forge.envelope(&forge.spec(ISSUED)), &forge.keys());
        assert_eq!(read.map(drop), if good { Ok(()) } else { Err(Fault::Algorithm) });
    }
}

#[test]
fn an_envelope_is_signed_by_a_key_of_the_set() {
    let (forge, other) = (Forge::new(Algorithm::EdDsa), Forge::new(Algorithm::EdDsa));
    let read = |compact: &str, keys: &KeySet| envelope::read(compact, keys).map(drop);
    let compact = forge.envelope(&forge.spec(ISSUED));
    assert_eq!(read(&compact, &forge.keys()), Ok(()));
    assert_eq!(read(&compact, &other.keys()), Err(Fault::UnknownKey(forge.kid())));
    // The kid of a key that did not sign it.
    let mut spec = forge.spec(ISSUED);
    spec.header["kid"] = other.kid().into();
    assert_eq!(read(&forge.envelope(&spec), &other.keys()), Err(Fault::Signature));
    // A kid whose key has another algorithm.
    let ec = Forge::new(Algorithm::Es256);
    spec.header["kid"] = ec.kid().into();
    assert_eq!(read(&forge.envelope(&spec), &ec.keys()), Err(Fault::UnknownKey(ec.kid())));
    // Claims of one, signature of another.
    let mut later = forge.spec(ISSUED);
    later.claims["exp"] = (ISSUED + 90_000).into();
    let later = forge.envelope(&later);
    let (head, _) = later.rsplit_once('.').unwrap();
    let (_, signature) = compact.rsplit_once('.').unwrap();
    assert_eq!(read(&format!("{head}.{signature}"), &forge.keys()), Err(Fault::Signature));
    assert_eq!(read("", &forge.keys()), Err(Fault::NotAnEnvelope));
    assert_eq!(read(&format!("{compact} "), &forge.keys()), Err(Fault::NotAnEnvelope));
}

#[test]
fn an_envelope_has_the_form_of_one() {
    before(&|spec| spec.header["typ"] = "JWT".into(), Fault::Type);
    before(&|spec| drop(spec.header.as_object_mut().unwrap().remove("typ")), Fault::Type);
    before(&|spec| drop(spec.header.as_object_mut().unwrap().remove("kid")), Fault::NoKid);
    before(&|spec| spec.header["crit"] = json!(["exp"]), Fault::Critical);
    before(&|spec| spec.claims["exp"] = ISSUED.into(), Fault::Lifetime);
    let forge = Forge::new(Algorithm::EdDsa);
    let mut spec = forge.spec(ISSUED);
    spec.claims["iat"] = "soon".into();
    let read = envelope::read(&forge.envelope(&spec), &forge.keys());
    assert_eq!(read.map(drop), Err(Fault::Claims));
}

#[test]
fn a_capsule_is_what_its_envelope_says() {
    let other = crate::policy::capsule::node::NodeId::parse("node-2").unwrap();
    before(&|spec| spec.claims["sub"] = "node-2".into(), Fault::Node(other));
    after(&|grant| grant["nodeId"] = "node-2".into(), Fault::GrantNode);
    after(&|grant| grant["capsuleId"] = "c2".into(), Fault::CapsuleId);
    after(&|grant| grant["keyVersion"] = "m1.n2".into(), Fault::KeyVersion);
    after(&|grant| grant["riskScore"] = 0.into(), Fault::RiskScore);
    for (member, time) in [
        ("issuedUtc", "2027-01-15T08:00:01.250Z"),
        ("issuedUtc", "2027-01-15T08:00:00Z"),
        ("issuedUtc", "2027-01-15T08:00:00.2500Z"),
        ("issuedUtc", "2027-01-15T08:00:00.25xZ"),
        ("issuedUtc", "2027-01-15T08:00:00.250+00:00"),
        ("expiresUtc", "2027-01-17T08:00:00.250Z"),
        ("expiresUtc", ""),
    ] {
        after(&|grant| grant[member] = time.into(), Fault::Times);
    }
    let whole = Case {
        after: &|grant| grant["issuedUtc"] = "2027-01-15T08:00:00.000Z".into(),
        ..Case::default()
    };
    assert!(whole.run().is_ok());
}

#[test]
fn a_capsule_is_what_was_asked_for() {
    let version = |text: &str| KeyVersion::parse(text).unwrap();
    let (first, second) = (version("m1.n1"), version("m1.n2"));
    let asks = |change: &dyn Fn(&mut Asked<'_>), key_version: &str| {
        let spoil = |spec: &mut Spec| spec.claims["keyVersion"] = key_version.into();
        Case { before: &spoil, change, ..Case::default() }.run().map(drop)
    };
    // The arguments outlive the case.
    let (first, second): (&'static _, &'static _) =
        (Box::leak(Box::new(first)), Box::leak(Box::new(second)));
    assert_eq!(asks(&|asked| asked.key_version = Some(first), "m1.n1"), Ok(()));
    let other = Fault::OtherVersion { got: first.clone(), asked: second.clone() };
    assert_eq!(asks(&|asked| asked.key_version = Some(second), "m1.n1"), Err(other));
    let bound = "m1.n1@1.4.0";
    assert_eq!(asks(&|asked| asked.software = Some("1.4.0"), bound), Ok(()));
    assert_eq!(asks(&|asked| asked.software = Some("1.4.0"), "m1.n1"), Ok(()));
    let software = || Err(Fault::Software("1.4.0".to_owned()));
    assert_eq!(asks(&|asked| asked.software = Some("1.4.1"), bound), software());
    assert_eq!(asks(&|_| {}, bound), software());
    // Who asks for a key of before gets it.
    let old: &'static KeyVersion = Box::leak(Box::new(version(bound)));
    let change = |asked: &mut Asked<'_>| {
        (asked.key_version, asked.software) = (Some(old), Some("1.4.1"));
    };
    assert_eq!(asks(&change, bound), Ok(()));
}

#[test]
fn a_capsule_was_issued_just_now() {
    let at = |now| Case { now, ..Case::default() };
    assert_eq!(at(ISSUED + 300).run().unwrap().clock_ahead_s, 300);
    assert_eq!(at(ISSUED - 300).run().unwrap().clock_ahead_s, -300);
    at(ISSUED + 301).fails(Fault::Clock(301));
    at(ISSUED - 301).fails(Fault::Clock(-301));
    let ends = UnixTime::from_secs(ISSUED + 1);
    before(&|spec| spec.claims["exp"] = (ISSUED + 1).into(), Fault::Expired(ends));
}

#[test]
fn a_key_is_the_one_vouched_for() {
    before(&|spec| spec.key = vec![8; 32], Fault::KeyHash);
    before(
        &|spec| {
            spec.key = vec![7; 31];
            spec.claims["keyHash"] = json!(key_hash(&[7; 31]));
        },
        Fault::KeyLength,
    );
    after(&|grant| grant["runtimeKey"] = "BwcH_wcH".into(), Fault::KeyLength);
    after(&|grant| drop(grant.as_object_mut().unwrap().remove("runtimeKey")), Fault::NoKey);
    after(&|grant| grant["sealedKey"] = "a.b.c.d.e".into(), Fault::NoKey);
    after(&|grant| *grant = json!([]), Fault::NotAGrant);
    after(&|grant| drop(grant.as_object_mut().unwrap().remove("signature")), Fault::NotAGrant);
    before(&|spec| spec.claims["sealed"] = true.into(), Fault::SealedFlag);
    sealed(&|spec| spec.claims["sealed"] = false.into(), Fault::SealedFlag);
}

#[test]
fn the_signature_for_the_node_needs_its_secret() {
    before(&|spec| spec.secret = "hf-secret-2".to_owned(), Fault::NodeSignature);
    after(&|grant| grant["signature"] = "".into(), Fault::NodeSignature);
    // It is over the text of the key, too.
    let swap = |grant: &mut Value| {
        let text = grant["runtimeKey"].as_str().unwrap().to_owned();
        grant["signature"] =
            crate::policy::capsule::envelope::signature(SECRET, &node(), "{}", &text).into();
    };
    after(&swap, Fault::NodeSignature);
}

#[test]
fn sealing_is_as_asked() {
    let change = |asked: &mut Asked<'_>| asked.seal = None;
    Case { change: &change, sealed: true, ..Case::default() }.fails(Fault::SealedUnasked);
    let change = |asked: &mut Asked<'_>| asked.seal_required = true;
    Case { change: &change, ..Case::default() }.fails(Fault::Unsealed);
    assert!(Case { change: &change, sealed: true, ..Case::default() }.run().is_ok());
}

#[test]
fn a_sealed_key_is_for_this_node_and_cluster() {
    fn seal(spec: &mut Spec) -> &mut Value {
        &mut spec.seal.as_mut().unwrap().header
    }
    let other = "b3RoZXI";
    sealed(&|spec| seal(spec)["apu"] = other.into(), Fault::SealedFor);
    sealed(&|spec| seal(spec)["apv"] = other.into(), Fault::SealedFor);
    for party in ["apu", "apv"] {
        sealed(&|spec| drop(seal(spec).as_object_mut().unwrap().remove(party)), Fault::SealedFor);
    }
    sealed(&|spec| seal(spec)["alg"] = "ECDH-ES+A256KW".into(), Fault::NotSealed);
    sealed(&|spec| seal(spec)["enc"] = "A128GCM".into(), Fault::NotSealed);
    sealed(&|spec| seal(spec)["zip"] = "DEF".into(), Fault::NotSealed);
    sealed(&|spec| seal(spec)["crit"] = json!(["b64"]), Fault::NotSealed);
    // OpenSSL would take it.
    sealed(&|spec| spec.seal.as_mut().unwrap().tag_bytes = 4, Fault::NotSealed);
    let stranger = SealKey::fresh().unwrap();
    let to = |spec: &mut Spec| spec.seal.as_mut().unwrap().to = stranger.public_jwk().clone();
    sealed(&to, Fault::Unseal);
}

#[test]
fn a_sealed_key_that_was_changed_does_not_open() {
    let part = |at: usize, text: &'static str| {
        move |grant: &mut Value| {
            let sealed = grant["sealedKey"].as_str().unwrap().to_owned();
            let mut parts: Vec<&str> = sealed.split('.').collect();
            parts[at] = text;
            grant["sealedKey"] = parts.join(".").into();
        }
    };
    let check = |at, text, expect| {
        Case { after: &part(at, text), sealed: true, ..Case::default() }.fails(expect);
    };
    check(0, "e30", Fault::NotSealed);
    check(0, "!", Fault::NotSealed);
    check(1, "AAAA", Fault::NotSealed);
    check(2, "AAAA", Fault::NotSealed);
    check(2, "AAAAAAAAAAAAAAAA", Fault::Unseal);
    check(3, "AAAA", Fault::Unseal);
    check(4, "AAAAAAAAAAAAAAAAAAAAAA", Fault::Unseal);
    check(4, "a.b", Fault::NotSealed);
}

#[test]
fn a_key_is_read_as_it_was_written() {
    let capsule = capsule(60);
    let text = |format| String::from_utf8(output::encode(&capsule, format).to_vec()).unwrap();
    assert_eq!(output::encode(&capsule, Format::Raw).as_slice(), KEY);
    assert_eq!(text(Format::Base64), "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n");
    assert_eq!(text(Format::Hex), format!("{}\n", "07".repeat(32)));
    let document: Value = serde_json::from_str(&text(Format::Json)).unwrap();
    assert_eq!(document["key"], "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=");
    assert_eq!(document["keyVersion"], "m1.n1");
    for format in [Format::Raw, Format::Base64, Format::Hex, Format::Json] {
        let bytes = output::encode(&capsule, format);
        assert_eq!(output::decode(&bytes).unwrap().as_slice(), KEY, "{format:?}");
    }
    for other in [&b""[..], &[7; 31], b"{}", &[b'g'; 64], &[b'!'; 44], br#"{"key":"BwcH"}"#] {
        assert!(output::decode(other).is_none());
    }
}
