//! DPoP proofs that can be bent in any way.

use serde_json::{Map, Value, json};

use super::keys::Key;
use super::{base64url, digest, now};

/// A proof before it is signed.
#[derive(Clone)]
pub(crate) struct Proof {
    pub(crate) key: Key,
    pub(crate) header: Map<String, Value>,
    pub(crate) claims: Map<String, Value>,
}

impl Proof {
    /// A good one, with a fresh `jti`, for a request without a token.
    pub(crate) fn new(key: &Key, method: &str, url: &str) -> Self {
        let mut jti = [0; 16];
        openssl::rand::rand_bytes(&mut jti).expect("randomness");
        let header = json!({"typ": "dpop+jwt", "alg": key.algorithm, "jwk": key.jwk});
        let claims = json!({"jti": base64url(jti), "htm": method, "htu": url, "iat": now()});
        Self { key: key.clone(), header: members(header), claims: members(claims) }
    }

    pub(crate) fn token(self, token: &str) -> Self {
        self.claim("ath", digest(token))
    }

    pub(crate) fn nonce(self, nonce: &str) -> Self {
        self.claim("nonce", nonce)
    }

    pub(crate) fn claim(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.claims.insert(name.to_owned(), value.into());
        self
    }

    pub(crate) fn without(mut self, claim: &str) -> Self {
        self.claims.remove(claim);
        self
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.header.insert(name.to_owned(), value.into());
        self
    }

    pub(crate) fn without_header(mut self, name: &str) -> Self {
        self.header.remove(name);
        self
    }

    /// Changes one member of the `jwk`; `null` takes it away.
    pub(crate) fn jwk(mut self, name: &str, value: impl Into<Value>) -> Self {
        let jwk = self.header.get_mut("jwk").and_then(Value::as_object_mut).expect("a jwk");
        match value.into() {
            Value::Null => jwk.remove(name),
            value => jwk.insert(name.to_owned(), value),
        };
        self
    }

    pub(crate) fn header_json(&self) -> String {
        Value::Object(self.header.clone()).to_string()
    }

    pub(crate) fn claims_json(&self) -> String {
        Value::Object(self.claims.clone()).to_string()
    }

    pub(crate) fn sign(&self) -> String {
        compact(&self.header_json(), &self.claims_json(), |input| self.key.sign(input))
    }

    /// Signed over this text instead: how members are doubled, spaced and ordered is the caller's.
    pub(crate) fn sign_text(&self, header: &str, claims: &str) -> String {
        compact(header, claims, |input| self.key.sign(input))
    }
}

/// A compact JWS of these bytes.
pub(crate) fn compact(
    header: impl AsRef<[u8]>,
    claims: impl AsRef<[u8]>,
    sign: impl FnOnce(&[u8]) -> Vec<u8>,
) -> String {
    let input = format!("{}.{}", base64url(header), base64url(claims));
    let signature = base64url(sign(input.as_bytes()));
    format!("{input}.{signature}")
}

/// A JSON object's members.
pub(crate) fn members(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        other => panic!("not an object: {other}"),
    }
}

/// `{"a":1,…}` → `{"a":1,…,<more>}`: a member twice, where a map can hold it once.
pub(crate) fn doubled(object: &str, more: &str) -> String {
    format!("{},{more}}}", object.trim_end_matches('}'))
}

/// The three parts of a compact JWS.
pub(crate) fn parts(jws: &str) -> [&str; 3] {
    let parts: Vec<&str> = jws.split('.').collect();
    parts.try_into().expect("three parts")
}
