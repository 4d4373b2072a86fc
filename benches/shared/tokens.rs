//! Access tokens of an issuer whose keys the edge has in a file.

use serde_json::{Value, json};

use crate::Outcome;
use crate::proofs::{Key, encoded, now};

/// What the edge verifies them with.
pub(crate) fn key_set(issuer: &Key) -> Value {
    let mut jwk = issuer.jwk.clone();
    jwk["kid"] = "k1".into();
    json!({ "keys": [jwk] })
}

/// An access token (RFC 9068) of this issuer's.
pub(crate) fn token(issuer: &Key, number: u32, confirmation: &Value) -> Outcome<String> {
    let now = now()?;
    let header = json!({"typ": "at+jwt", "alg": "ES256", "kid": "k1"});
    let claims = json!({
        "iss": "https://as.example", "sub": "user-1", "client_id": "client-1",
        "aud": "https://api.example", "scope": "orders:read orders:write",
        "jti": format!("token-{number}"), "iat": now, "exp": now + 3600, "cnf": confirmation,
    });
    issuer.sign(&encoded(&header), &claims)
}
