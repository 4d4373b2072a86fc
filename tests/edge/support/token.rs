//! An issuer of access tokens (RFC 9068) with a key of each algorithm.

use serde_json::{Map, Value, json};

use super::keys::Key;
use super::now;
use super::proof::{compact, members};

/// What tokens are issued for in these tests.
pub(crate) const AUDIENCE: &str = "https://api.example";
/// The issuer of these tests.
pub(crate) const ISSUER: &str = "https://as.example";
/// Every algorithm that an issuer may sign with.
pub(crate) const ALGORITHMS: [&str; 11] = [
    "ES256", "ES384", "ES512", "EdDSA", "Ed25519", "PS256", "PS384", "PS512", "RS256", "RS384",
    "RS512",
];

/// A token before it is signed.
#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) key: Key,
    pub(crate) header: Map<String, Value>,
    pub(crate) claims: Map<String, Value>,
}

impl Token {
    /// A good one, unbound, by `key` under `kid`.
    pub(crate) fn new(key: &Key, kid: &str) -> Self {
        let header = json!({"typ": "at+jwt", "alg": key.algorithm, "kid": kid});
        let claims = json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": "user-1", "client_id": "client-1",
            "iat": now(), "exp": now() + 600, "jti": "token-1", "scope": "orders.read",
        });
        Self { key: key.clone(), header: members(header), claims: members(claims) }
    }

    /// Bound to a key (RFC 9449 section 6.1), beside what it is bound to already.
    pub(crate) fn jkt(self, jkt: &str) -> Self {
        self.confirm("jkt", jkt)
    }

    /// Bound to a certificate (RFC 8705 section 3.1), beside what it is bound to already.
    pub(crate) fn x5t(self, x5t: &str) -> Self {
        self.confirm("x5t#S256", x5t)
    }

    pub(crate) fn confirm(mut self, name: &str, value: impl Into<Value>) -> Self {
        let mut confirmation = self.claims.remove("cnf").unwrap_or_else(|| json!({}));
        confirmation[name] = value.into();
        self.claim("cnf", confirmation)
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

    pub(crate) fn header_json(&self) -> String {
        Value::Object(self.header.clone()).to_string()
    }

    pub(crate) fn claims_json(&self) -> String {
        Value::Object(self.claims.clone()).to_string()
    }

    pub(crate) fn sign(&self) -> String {
        compact(self.header_json(), self.claims_json(), |input| self.key.sign(input))
    }
}
