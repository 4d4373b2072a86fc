//! Access tokens: JWTs, signed or not as proofs are (`proof.rs`), and an issuer's word about opaque
//! ones. In header, claims and answers `"$jkt"` stands for a thumbprint and `"$now"` for the time.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use holdfast::policy::introspection::{self, IntrospectionRules};
use holdfast::policy::jose::{Algorithm, AlgorithmSet};
use holdfast::policy::rule::{Demand, Mode, Requirement, Rules, TenantId, TenantRule};
use holdfast::policy::time::UnixTime;
use holdfast::policy::token::{
    IssuerRules, KeySet, Reading, TokenType, VerifiedToken, read, verify,
};
use serde_json::Value;

use super::proof::{NOW, jwk, signed};

const JKT: &str = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I";
const SKEW: i64 = 30;
const CACHE_TTL: Duration = Duration::from_secs(30);
const AUDIENCES: [&str; 2] = ["api", "signer"];

pub(super) fn token(input: &[u8]) {
    let text = signed(input, &[("\"$jkt\"", JKT)]);
    let text = text.or_else(|| String::from_utf8(input.to_vec()).ok());
    let Some(text) = text else { return };
    let entry = entry();
    let (jws, issuer) = match read(&text, std::slice::from_ref(&entry)) {
        Ok(Reading::Signed(jws, issuer)) => (jws, issuer),
        Ok(Reading::Opaque(issuer)) => return assert_eq!(issuer, 0),
        Err(_) => return,
    };
    assert_eq!(issuer, 0);
    let keys = format!(r#"{{"keys":[{}]}}"#, jwk());
    let keys = KeySet::from_json(keys.as_bytes()).expect("a set");
    let now = UnixTime::from_secs(NOW);
    let Ok(token) = verify(&jws, issuer, &entry, &keys, &rules(), now) else { return };

    let parts: Vec<&str> = text.split('.').collect();
    let part = |index: usize| URL_SAFE_NO_PAD.decode(parts[index]).expect("base64url");
    let json = |index: usize| serde_json::from_slice::<Value>(&part(index)).expect("JSON");
    let (header, claims) = (json(0), json(1));
    assert!(header.get("crit").is_none());
    let typ = header["typ"].as_str().expect("text").to_ascii_lowercase();
    assert!(["at+jwt", "application/at+jwt"].contains(&typ.as_str()));
    assert!(["EdDSA", "Ed25519"].contains(&header["alg"].as_str().expect("text")));
    assert_eq!(claims["iss"], entry.issuer);
    assert!(token.stands(&keys, now) && !token.stands(&KeySet::default(), now));
    claims_hold(&claims, &token);
}

/// An answer of RFC 7662.
pub(super) fn introspection(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let text =
        text.replace("\"$jkt\"", &format!("\"{JKT}\"")).replace("\"$now\"", &NOW.to_string());
    let now = UnixTime::from_secs(NOW);
    let entry = entry();
    let Ok(token) = introspection::read(text.as_bytes(), 0, &entry, &rules(), now) else { return };
    let told: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(told["active"], true);
    assert!(told.get("iss").is_none_or(|issuer| *issuer == entry.issuer));
    let kind = told.get("token_type").map(|kind| kind.as_str().expect("text"));
    match kind.map(str::to_ascii_lowercase).as_deref() {
        None | Some("bearer") => {}
        Some("dpop") => assert!(token.confirmation().jkt.is_some()),
        Some(kind) => panic!("a token of the type {kind}"),
    }
    // Its word is taken for so long, and for no longer than the token lives.
    assert!(!token.stands(&KeySet::default(), now.plus(CACHE_TTL)));
    let ends = told["exp"].as_f64().expect("a number");
    assert!(token.stands(&KeySet::default(), now) == (ends > NOW as f64));
    claims_hold(&told, &token);
}

/// Holds an accepted token against what it says.
fn claims_hold(claims: &Value, token: &VerifiedToken) {
    let audience = &claims["aud"];
    let named = |audience: &Value| AUDIENCES.iter().any(|known| audience == known);
    assert!(named(audience) || audience.as_array().expect("an array").iter().any(named));
    assert!(claims["exp"].as_f64().expect("a number") + SKEW as f64 > NOW as f64);
    if let Some(from) = claims.get("nbf") {
        assert!(from.as_f64().expect("a number") < (NOW + SKEW) as f64 + 0.001);
    }
    let confirmation = token.confirmation();
    let cnf = claims.get("cnf").map(|cnf| cnf.as_object().expect("an object"));
    assert_eq!(confirmation.is_unbound(), cnf.is_none_or(|cnf| cnf.is_empty()));
    let member = |name: &str| cnf.and_then(|cnf| cnf.get(name)).and_then(Value::as_str);
    assert_eq!(confirmation.jkt.map(|jkt| jkt.to_string()).as_deref(), member("jkt"));
    assert_eq!(confirmation.x5t.map(|x5t| x5t.to_string()).as_deref(), member("x5t#S256"));
    assert_eq!(token.subject(), claims["sub"].as_str());
    assert_eq!(token.client(), claims["client_id"].as_str());
    match claims.get("tenant") {
        None => assert_eq!(token.tenant(), None),
        Some(name) => assert_eq!(token.tenant(), (name == "acme").then_some(TenantId(0))),
    }
}

fn entry() -> IssuerRules {
    IssuerRules {
        issuer: "https://as.example".to_owned(),
        audiences: AUDIENCES.map(str::to_owned).to_vec(),
        algorithms: AlgorithmSet::of(&Algorithm::ALL),
        token_type: TokenType::AccessToken,
        clock_skew: Duration::from_secs(SKEW.unsigned_abs()),
        tenant: None,
        keys: true,
        introspection: Some(IntrospectionRules {
            token_prefix: None,
            cache_ttl: CACHE_TTL,
            assumed_audience: None,
            assumed_lifetime: None,
        }),
        retrofit: None,
    }
}

fn rules() -> Rules {
    let default = Requirement {
        demand: Demand::Any,
        mode: Mode::Enforce,
        algorithms: AlgorithmSet::of(&Algorithm::ALL),
        nonce: true,
    };
    Rules {
        default,
        dpop_enabled: true,
        mtls_enabled: true,
        certificate_audiences: Vec::new(),
        nonce_audiences: Vec::new(),
        tenants: vec![TenantRule { name: "acme".to_owned(), scope: Default::default() }],
        tenant_claim: Some("tenant".to_owned()),
        unknown_tenant_allowed: true,
        share_salt: String::new(),
    }
}
