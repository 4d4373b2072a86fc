//! Signatures and keys: what another library signs verifies here, and what is weak does not get in.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use holdfast::policy::jose::{Algorithm, CompactJws, KeyFault, PublicKey};
use holdfast::policy::json::{self, Object};
use holdfast::policy::token::{KeySet, KeySetError};
use josekit::jwk::Jwk;
use josekit::jwk::alg::ec::EcCurve;
use josekit::jwk::alg::ed::EdCurve;
use josekit::jws::{self, JwsHeader, JwsSigner};
use serde_json::{Value, json};

fn object(jwk: &Jwk) -> Object {
    json::object(jwk.to_string().as_bytes()).unwrap()
}

fn members(value: Value) -> Object {
    json::object(value.to_string().as_bytes()).unwrap()
}

fn keys() -> (Jwk, Jwk, Jwk, Jwk, Jwk) {
    (
        Jwk::generate_ec_key(EcCurve::P256).unwrap(),
        Jwk::generate_ec_key(EcCurve::P384).unwrap(),
        Jwk::generate_ec_key(EcCurve::P521).unwrap(),
        Jwk::generate_ed_key(EdCurve::Ed25519).unwrap(),
        Jwk::generate_rsa_key(2048).unwrap(),
    )
}

#[test]
fn every_algorithm_verifies_what_another_library_signed() {
    let (p256, p384, p521, ed, rsa) = keys();
    let cases: [(Algorithm, &Jwk, Box<dyn JwsSigner>); 10] = [
        (Algorithm::Es256, &p256, Box::new(jws::ES256.signer_from_jwk(&p256).unwrap())),
        (Algorithm::Es384, &p384, Box::new(jws::ES384.signer_from_jwk(&p384).unwrap())),
        (Algorithm::Es512, &p521, Box::new(jws::ES512.signer_from_jwk(&p521).unwrap())),
        (Algorithm::EdDsa, &ed, Box::new(jws::EdDSA.signer_from_jwk(&ed).unwrap())),
        (Algorithm::Ps256, &rsa, Box::new(jws::PS256.signer_from_jwk(&rsa).unwrap())),
        (Algorithm::Ps384, &rsa, Box::new(jws::PS384.signer_from_jwk(&rsa).unwrap())),
        (Algorithm::Ps512, &rsa, Box::new(jws::PS512.signer_from_jwk(&rsa).unwrap())),
        (Algorithm::Rs256, &rsa, Box::new(jws::RS256.signer_from_jwk(&rsa).unwrap())),
        (Algorithm::Rs384, &rsa, Box::new(jws::RS384.signer_from_jwk(&rsa).unwrap())),
        (Algorithm::Rs512, &rsa, Box::new(jws::RS512.signer_from_jwk(&rsa).unwrap())),
    ];
    let publics: Vec<_> = [&p256, &p384, &p521, &ed, &rsa]
        .map(|jwk| PublicKey::from_jwk(&object(&jwk.to_public_key().unwrap())).unwrap())
        .into();
    for (algorithm, jwk, signer) in cases {
        let text = jws::serialize_compact(br#"{"a":1}"#, &JwsHeader::new(), &*signer).unwrap();
        let read = CompactJws::parse(&text).unwrap();
        assert_eq!(read.algorithm(), Some(algorithm));
        let own = PublicKey::from_jwk(&object(&jwk.to_public_key().unwrap())).unwrap();
        for other in Algorithm::ALL {
            let same = other == algorithm
                || (algorithm == Algorithm::EdDsa && other == Algorithm::Ed25519);
            assert_eq!(read.verified_by(&own, other), same, "{algorithm:?} as {other:?}");
        }
        for public in publics.iter().filter(|public| public.jkt() != own.jkt()) {
            assert!(!read.verified_by(public, algorithm), "{algorithm:?} under another key");
        }
        let (input, signature) = text.rsplit_once('.').unwrap();
        let mut bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
        bytes[5] ^= 1;
        let bent = format!("{input}.{}", URL_SAFE_NO_PAD.encode(&bytes));
        assert!(!CompactJws::parse(&bent).unwrap().verified_by(&own, algorithm));
        bytes[5] ^= 1;
        bytes.push(0);
        let longer = format!("{input}.{}", URL_SAFE_NO_PAD.encode(&bytes));
        assert!(!CompactJws::parse(&longer).unwrap().verified_by(&own, algorithm));
    }
}

#[test]
fn names_are_to_the_letter() {
    for name in ["none", "HS256", "es256", "ES256 ", "ES256K", "RSA1_5", "Ed448", ""] {
        assert_eq!(Algorithm::from_name(name), None, "{name}");
    }
    for algorithm in Algorithm::ALL {
        assert_eq!(Algorithm::from_name(algorithm.name()), Some(algorithm));
    }
}

#[test]
fn compact_form_is_strict() {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let (header, payload) = (part(r#"{"alg":"ES256"}"#), part(r#"{"a":1}"#));
    assert!(CompactJws::parse(&format!("{header}.{payload}.AAAA")).is_some());
    for (name, text) in [
        ("two parts", format!("{header}.{payload}")),
        ("four parts", format!("{header}.{payload}.AAAA.AAAA")),
        ("empty signature", format!("{header}.{payload}.")),
        ("empty header", format!(".{payload}.AAAA")),
        ("padding", format!("{header}.{payload}.AAA=")),
        ("stray bits", format!("{header}.{payload}.AAB")),
        ("impossible length", format!("{header}.{payload}.AAAAA")),
        ("standard alphabet", format!("{header}.{payload}.AA+/")),
        ("line break", format!("{header}.{payload}.AA\nAA")),
        ("leading space", format!(" {header}.{payload}.AAAA")),
        ("header no object", format!("{}.{payload}.AAAA", part("[]"))),
        ("payload no object", format!("{header}.{}.AAAA", part("1"))),
        (
            "duplicate in header",
            format!("{}.{payload}.AAAA", part(r#"{"alg":"ES256","alg":"none"}"#)),
        ),
        ("duplicate in payload", format!("{header}.{}.AAAA", part(r#"{"a":1,"a":1}"#))),
    ] {
        assert!(CompactJws::parse(&text).is_none(), "{name}");
    }
}

#[test]
fn keys_that_do_not_get_in() {
    let (p256, _, _, ed, rsa) = keys();
    let changed = |jwk: &Jwk, changes: &[(&str, Value)]| {
        let public = jwk.to_public_key().unwrap().to_string();
        let mut public: Value = serde_json::from_str(&public).unwrap();
        for (name, value) in changes {
            public[*name] = value.clone();
        }
        members(public)
    };
    let with = |jwk: &Jwk, name: &str, value: Value| changed(jwk, &[(name, value)]);
    let text =
        |jwk: &Jwk, name: &str| jwk.parameter(name).and_then(Value::as_str).unwrap().to_owned();
    for member in ["d", "p", "q", "dp", "dq", "qi", "oth", "k"] {
        for jwk in [&p256, &ed, &rsa] {
            let fault = PublicKey::from_jwk(&with(jwk, member, json!("AA"))).unwrap_err();
            assert_eq!(fault, KeyFault::Private, "{member}");
        }
    }
    let zeros = URL_SAFE_NO_PAD.encode([0; 32]);
    let padded = |text: &str| {
        let mut bytes = vec![0];
        bytes.extend(URL_SAFE_NO_PAD.decode(text).unwrap());
        json!(URL_SAFE_NO_PAD.encode(bytes))
    };
    let weak = object(&Jwk::generate_rsa_key(1024).unwrap().to_public_key().unwrap());
    for (name, jwk) in [
        ("no kty", with(&p256, "kty", Value::Null)),
        ("unknown kty", with(&p256, "kty", json!("oct"))),
        ("unknown curve", with(&p256, "crv", json!("secp256k1"))),
        ("curve of another size", with(&p256, "crv", json!("P-384"))),
        ("off its curve", with(&p256, "x", json!(text(&p256, "y")))),
        ("point at zero", changed(&p256, &[("x", json!(zeros)), ("y", json!(zeros))])),
        ("coordinate with a zero before it", with(&p256, "x", padded(&text(&p256, "x")))),
        ("coordinate with padding", with(&p256, "x", json!(format!("{}=", text(&p256, "x"))))),
        ("coordinate no string", with(&p256, "x", json!(1))),
        ("for encryption", with(&p256, "use", json!("enc"))),
        ("for signing only", with(&p256, "key_ops", json!(["sign"]))),
        ("key_ops no array", with(&p256, "key_ops", json!("verify"))),
        ("alg of another kind", with(&p256, "alg", json!("RS256"))),
        ("alg unknown", with(&p256, "alg", json!("ECDH-ES"))),
        ("alg no string", with(&p256, "alg", json!(1))),
        ("RSA of 1024 bits", weak),
        ("RSA with a zero before its modulus", with(&rsa, "n", padded(&text(&rsa, "n")))),
        ("RSA with an even exponent", with(&rsa, "e", json!("Ag"))),
        ("RSA with exponent 1", with(&rsa, "e", json!("AQ"))),
        ("RSA with an empty exponent", with(&rsa, "e", json!(""))),
        ("RSA with a huge exponent", with(&rsa, "e", json!("AQAAAAAB"))),
        ("Ed448", with(&ed, "crv", json!("Ed448"))),
        ("X25519", with(&ed, "crv", json!("X25519"))),
        ("Ed25519 too short", with(&ed, "x", json!("AAAA"))),
        ("Ed25519 of order 4", with(&ed, "x", json!(zeros))),
    ] {
        assert_eq!(PublicKey::from_jwk(&jwk).unwrap_err(), KeyFault::Unusable, "{name}");
    }
}

/// Under the neutral point every message verifies, for a signature that anybody can write down.
#[test]
fn ed25519_points_of_small_order() {
    let prime_and = |low: u8| {
        let mut bytes = [0xff; 32];
        (bytes[0], bytes[31]) = (low, 0x7f);
        bytes
    };
    let mut points = vec![[0; 32], prime_and(0xec), prime_and(0xed), prime_and(0xee)];
    points.push({
        let mut bytes = [0; 32];
        bytes[0] = 1;
        bytes
    });
    for mut point in points {
        for sign in [0, 0x80] {
            point[31] = point[31] & 0x7f | sign;
            let x = URL_SAFE_NO_PAD.encode(point);
            let jwk = members(json!({"kty": "OKP", "crv": "Ed25519", "x": x}));
            assert_eq!(PublicKey::from_jwk(&jwk).unwrap_err(), KeyFault::Unusable, "{x}");
        }
    }
}

#[test]
fn key_sets() {
    let (p256, ..) = keys();
    let public = p256.to_public_key().unwrap();
    let ok = |text: String| KeySet::from_json(text.as_bytes()).map(|set| set.len());
    assert_eq!(ok(format!(r#"{{"keys":[{public}]}}"#)), Ok(1));
    let encryption = r#"{"kty":"oct-like"}"#;
    assert_eq!(ok(format!(r#"{{"keys":[{encryption},{public}],"other":1}}"#)), Ok(1));
    for (text, fault) in [
        ("", KeySetError::Malformed),
        ("[]", KeySetError::Malformed),
        ("{}", KeySetError::Malformed),
        (r#"{"keys":{}}"#, KeySetError::Malformed),
        (r#"{"keys":[1]}"#, KeySetError::Malformed),
        (r#"{"keys":[{"kty":"EC","kid":1}]}"#, KeySetError::Malformed),
        (r#"{"keys":[],"keys":[]}"#, KeySetError::Malformed),
        (r#"{"keys":[]}"#, KeySetError::NoUsableKey),
        (r#"{"keys":[{"kty":"EC"}]}"#, KeySetError::NoUsableKey),
        (r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#, KeySetError::PrivateKey),
    ] {
        assert_eq!(ok(text.to_owned()), Err(fault), "{text}");
    }
    assert_eq!(ok(format!(r#"{{"keys":[{p256}]}}"#)), Err(KeySetError::PrivateKey));
    let many = vec![public.to_string(); 65].join(",");
    assert_eq!(ok(format!(r#"{{"keys":[{many}]}}"#)), Err(KeySetError::TooMany));
}
