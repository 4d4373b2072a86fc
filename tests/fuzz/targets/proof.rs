//! The whole DPoP proof.
//!
//! An input is the value of a `DPoP` field; or a header and, after a line feed, claims, both JSON,
//! which are then signed with a key of this process, so that what lies behind the signature is
//! reached too. In them `"$jwk"` stands for that key, `"$ath"` for the right hash, `"$nonce"` for a
//! good nonce and `"$now"` for the time.

use std::sync::OnceLock;
use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use holdfast::policy::digest::Sha256;
use holdfast::policy::epoch::Reign;
use holdfast::policy::jose::{Algorithm, AlgorithmSet};
use holdfast::policy::nonce::{NonceKeys, NonceSecret};
use holdfast::policy::proof::{Expected, ProofRules, Seen, verify};
use holdfast::policy::target::Origin;
use holdfast::policy::time::UnixTime;
use http::{HeaderMap, HeaderValue};
use serde_json::Value;

use super::htu::whatwg_agrees;

/// The time of every decision here, seconds.
pub(super) const NOW: i64 = 1_800_000_000;
const PATH: &str = "/orders/1";
const LIFETIME: i64 = 120;
const SKEW: i64 = 30;
const ALGORITHMS: [Algorithm; 2] = [Algorithm::Es256, Algorithm::EdDsa];

pub(super) fn proof(input: &[u8]) {
    let origin = Origin::parse("https://api.example").expect("an origin");
    let nonces = NonceKeys::derive(&[NonceSecret::new([7; 32])], &origin);
    let nonce = nonces.make(UnixTime::from_secs(NOW - 5), [1; 8]).expect("a key");
    let ath = Sha256::of(b"token");
    let text = match signed(input, &[("\"$ath\"", &ath.to_string()), ("\"$nonce\"", &nonce)]) {
        Some(text) => text.into_bytes(),
        None => input.to_vec(),
    };
    let Ok(field) = HeaderValue::from_bytes(&text) else { return };
    let headers = HeaderMap::from_iter([(http::HeaderName::from_static("dpop"), field)]);
    let rules = ProofRules {
        proof_lifetime: Duration::from_secs(LIFETIME.unsigned_abs()),
        clock_skew: Duration::from_secs(SKEW.unsigned_abs()),
        replay_window: Duration::from_secs(300),
        nonce_ttl: Some(Duration::from_secs(600)),
        nonce_replaces_iat: false,
        nonce_single_use: false,
    };
    for nonce_required in [false, true] {
        let expected = Expected {
            method: "GET",
            origin: &origin,
            path: PATH,
            token_hash: Some(ath),
            algorithms: AlgorithmSet::of(&ALGORITHMS),
            nonce_keys: Some(&nonces),
            nonce_required,
            rules: &rules,
            max_bytes: 8192,
            reign: Reign::of_process([0; 32], UnixTime::from_secs(NOW - 3600)),
            now: UnixTime::from_secs(NOW),
        };
        let mut seen = Seen::default();
        let Ok(verified) = verify(&headers, &expected, &mut seen) else { continue };
        assert_eq!(seen.jkt, Some(verified.jkt()));
        let claims = judge(&text);
        assert_eq!(claims["jti"], verified.jti());
        assert_eq!(claims["ath"], ath.to_string());
        assert!(whatwg(&claims, &origin));
        match claims.get("nonce") {
            None => assert!(!nonce_required),
            Some(shown) => assert_eq!(shown, &nonce),
        }
    }
}

/// Reads an accepted proof with a lenient parser, and holds its text against RFC 9449 section 4.3.
/// Gives its claims.
fn judge(text: &[u8]) -> Value {
    let text = std::str::from_utf8(text).expect("an accepted proof that is no text");
    assert!(text.len() <= 8192);
    let parts: Vec<Value> = text.split('.').take(2).map(read).collect();
    let (header, claims) = (&parts[0], &parts[1]);
    assert_eq!(header["typ"], "dpop+jwt");
    assert!(ALGORITHMS.iter().any(|algorithm| header["alg"] == algorithm.name()));
    assert!(header.get("crit").is_none());
    for member in ["d", "p", "q", "dp", "dq", "qi", "oth", "k"] {
        assert!(header["jwk"].get(member).is_none());
    }
    assert_eq!(claims["htm"], "GET");
    let issued = claims["iat"].as_f64().expect("a number");
    let (from, to) = (NOW - LIFETIME - SKEW, NOW + SKEW);
    // A fraction below a millisecond does not count.
    assert!((from as f64 - 0.001..to as f64 + 0.001).contains(&issued), "iat {issued}");
    let jti = claims["jti"].as_str().expect("text");
    assert!((1..=256).contains(&jti.len()));
    claims.clone()
}

fn whatwg(claims: &Value, origin: &Origin) -> bool {
    let htu = claims["htu"].as_str().expect("text");
    whatwg_agrees(htu, origin, PATH);
    true
}

fn read(part: &str) -> Value {
    let bytes = URL_SAFE_NO_PAD.decode(part).expect("base64url");
    serde_json::from_slice(&bytes).expect("JSON")
}

/// The key of this process.
fn key() -> &'static Ed25519KeyPair {
    static KEY: OnceLock<Ed25519KeyPair> = OnceLock::new();
    KEY.get_or_init(|| Ed25519KeyPair::generate().expect("a key"))
}

/// The public JWK of this process's key.
pub(super) fn jwk() -> String {
    let x = URL_SAFE_NO_PAD.encode(key().public_key());
    format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}"}}"#)
}

/// A compact JWS of a header and claims, the first line and the rest of `input`, in which what
/// stands for something is replaced; `None` where there is no line feed.
pub(super) fn signed(input: &[u8], texts: &[(&str, &str)]) -> Option<String> {
    let (header, claims) = std::str::from_utf8(input).ok()?.split_once('\n')?;
    let part = |text: &str| {
        let mut text = text.replace("\"$jwk\"", &jwk()).replace("\"$now\"", &NOW.to_string());
        for (name, value) in texts {
            text = text.replace(name, &format!("\"{value}\""));
        }
        URL_SAFE_NO_PAD.encode(text)
    };
    let input = format!("{}.{}", part(header), part(claims));
    let signature = URL_SAFE_NO_PAD.encode(key().sign(input.as_bytes()));
    Some(format!("{input}.{signature}"))
}
