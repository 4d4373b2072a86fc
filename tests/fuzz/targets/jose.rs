//! JSON, compact JWS, JWK and JWK sets.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use holdfast::policy::jose::{Algorithm, CompactJws, PublicKey};
use holdfast::policy::json::{self, Value};
use holdfast::policy::token::{KeySet, MAX_KEYS};

/// Members of private and symmetric keys.
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

pub(super) fn json(input: &[u8]) {
    let lenient = serde_json::from_slice::<serde_json::Value>(input).ok();
    let Some(strict) = json::object(input) else { return };
    assert_eq!(serde_json::to_value(&strict).ok(), lenient, "read as another object");
    let written = serde_json::to_string(&strict).expect("JSON");
    assert_eq!(json::object(written.as_bytes()), Some(strict), "not read again");
    let doubled = format!("{},\"\\u0061\":0,\"a\":0}}", written.trim_end_matches('}'));
    assert_eq!(json::object(doubled.as_bytes()), None, "a member twice");
}

pub(super) fn jws(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Some(jws) = CompactJws::parse(text) else { return };
    let parts: Vec<&str> = text.split('.').collect();
    assert_eq!(parts.len(), 3);
    for part in &parts {
        let bytes = URL_SAFE_NO_PAD.decode(part).expect("not strict base64url");
        assert_eq!(URL_SAFE_NO_PAD.encode(bytes), **part, "one of several ways to write it");
    }
    let part = |index: usize| URL_SAFE_NO_PAD.decode(parts[index]).expect("decoded before");
    assert_eq!(json::object(&part(0)).as_ref(), Some(&jws.header));
    assert_eq!(json::object(&part(1)).as_ref(), Some(&jws.payload));
    let key = jws.header.get("jwk").and_then(Value::as_object).map(PublicKey::from_jwk);
    let (Some(Ok(key)), Some(algorithm)) = (key, jws.algorithm()) else { return };
    if jws.verified_by(&key, algorithm) {
        assert!(key.fits(algorithm));
        let (input, _) = text.rsplit_once('.').expect("three parts");
        let mut signature = part(2);
        signature.push(0);
        let longer = format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature));
        let longer = CompactJws::parse(&longer).expect("still well formed");
        assert!(!longer.verified_by(&key, algorithm), "a signature with a byte behind it");
    }
}

pub(super) fn jwk(input: &[u8]) {
    let Some(jwk) = json::object(input) else { return };
    let private = PRIVATE.iter().any(|member| jwk.contains_key(member));
    let Ok(key) = PublicKey::from_jwk(&jwk) else { return };
    assert!(!private, "a key with a private member");
    assert!(Algorithm::ALL.iter().any(|algorithm| key.fits(*algorithm)), "a key for nothing");
    // RFC 7638 section 3.2: the required members in order.
    let jwk = serde_json::to_value(&jwk).expect("JSON");
    let members: &[&str] = match jwk["kty"].as_str() {
        Some("EC") => &["crv", "kty", "x", "y"],
        Some("OKP") => &["crv", "kty", "x"],
        Some("RSA") => &["e", "kty", "n"],
        kty => panic!("a key of the type {kty:?}"),
    };
    let canonical: Vec<String> =
        members.iter().map(|name| format!("{:?}:{}", name, jwk[*name])).collect();
    let canonical = format!("{{{}}}", canonical.join(","));
    let bare = json::object(canonical.as_bytes()).expect("an object");
    let hash = <sha2::Sha256 as sha2::Digest>::digest(canonical);
    assert_eq!(key.jkt().to_string(), URL_SAFE_NO_PAD.encode(hash));
    let again = PublicKey::from_jwk(&bare).expect("a key by its required members alone");
    assert_eq!(again.jkt(), key.jkt(), "one key, two thumbprints");
}

pub(super) fn jwks(input: &[u8]) {
    let Ok(set) = KeySet::from_json(input) else { return };
    assert!((1..=MAX_KEYS).contains(&set.len()));
    let read = json::object(input).expect("a set that is no object");
    let keys = read.get("keys").and_then(Value::as_array).expect("a set without an array");
    assert!(set.len() <= keys.len());
    for key in keys {
        assert!(
            PRIVATE
                .iter()
                .all(|member| !key.as_object().is_some_and(|key| key.contains_key(member))),
            "a private key"
        );
    }
}
