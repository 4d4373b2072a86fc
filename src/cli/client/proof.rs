//! DPoP proofs, made (RFC 9449 section 4.2).
#![expect(clippy::disallowed_methods, reason = "a proof needs a fresh `jti`")]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::key::{KeyError, SigningKey};
use crate::policy::digest::Sha256;
use crate::policy::time::UnixTime;

/// What a proof is to say.
#[derive(Clone, Debug)]
pub struct Statement<'a> {
    /// `htm`.
    pub method: &'a str,
    /// `htu`: the target without query and fragment.
    pub target: &'a str,
    /// `iat`.
    pub issued: UnixTime,
    /// `jti`.
    pub id: String,
    /// The access token that `ath` is the hash of; at a token endpoint there is none.
    pub token: Option<&'a str>,
    /// `nonce`.
    pub nonce: Option<&'a str>,
}

/// A signed proof and what is in it.
#[derive(Clone, Debug)]
pub struct Proof {
    /// The JOSE header, with the public key.
    pub header: Value,
    /// The claims.
    pub claims: Value,
    /// The value of the `DPoP` field.
    pub compact: String,
}

impl Proof {
    /// Signs `statement` by `key`.
    ///
    /// # Errors
    /// [`KeyError::Broken`] when the key cannot sign.
    pub fn sign(key: &SigningKey, statement: &Statement<'_>) -> Result<Self, KeyError> {
        Self::sign_with(key, statement, Map::new())
    }

    /// Signs `statement` by `key`, with claims that RFC 9449 does not know. Those that it knows are
    /// the statement's.
    ///
    /// # Errors
    /// [`KeyError::Broken`] when the key cannot sign.
    pub fn sign_with(
        key: &SigningKey,
        statement: &Statement<'_>,
        mut claims: Map<String, Value>,
    ) -> Result<Self, KeyError> {
        let mut header = Map::new();
        header.insert("typ".into(), "dpop+jwt".into());
        header.insert("alg".into(), key.algorithm().name().into());
        header.insert("jwk".into(), Value::Object(key.public_jwk().clone()));
        claims.insert("jti".into(), statement.id.as_str().into());
        claims.insert("htm".into(), statement.method.into());
        claims.insert("htu".into(), statement.target.into());
        claims.insert("iat".into(), statement.issued.secs().into());
        if let Some(token) = statement.token {
            claims.insert("ath".into(), Sha256::of(token.as_bytes()).to_string().into());
        }
        if let Some(nonce) = statement.nonce {
            claims.insert("nonce".into(), nonce.into());
        }
        let claims = Value::Object(claims);
        let compact = key.sign(&header, &claims)?;
        Ok(Self { header: Value::Object(header), claims, compact })
    }
}

/// A `jti`: 128 random bits, base64url.
///
/// # Errors
/// When the system has no randomness to give.
pub fn fresh_id() -> Result<String, KeyError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| KeyError::Broken)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use crate::policy::epoch::Reign;
    use std::time::Duration;

    use http::HeaderMap;
    use serde_json::json;

    use super::*;
    use crate::policy::jose::{Algorithm, AlgorithmSet};
    use crate::policy::proof::{Expected, ProofRules, Seen, verify};
    use crate::policy::target::Origin;

    #[test]
    fn what_is_made_here_passes_at_the_edge_for_every_algorithm() {
        let token = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU";
        let now = UnixTime::from_millis(1_562_262_618_999);
        let rules = ProofRules {
            proof_lifetime: Duration::from_secs(1),
            clock_skew: Duration::ZERO,
            replay_window: Duration::from_secs(1),
            nonce_ttl: None,
            nonce_replaces_iat: false,
            nonce_single_use: false,
        };
        for algorithm in Algorithm::ALL {
            let key = SigningKey::generate(algorithm).unwrap();
            let statement = Statement {
                method: "GET",
                target: "https://resource.example.org/protectedresource",
                issued: now,
                id: fresh_id().unwrap(),
                token: Some(token),
                nonce: Some("n"),
            };
            let proof = Proof::sign(&key, &statement).unwrap();
            // `ath` is that of RFC 9449 section 7.1's example.
            let expect = json!({
                "jti": statement.id, "htm": "GET", "htu": statement.target, "iat": 1_562_262_618,
                "ath": "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo", "nonce": "n",
            });
            assert_eq!(proof.claims, expect);
            let mut headers = HeaderMap::new();
            headers.insert("dpop", proof.compact.parse().unwrap());
            let expected = Expected {
                method: "GET",
                origin: &Origin::parse("https://resource.example.org").unwrap(),
                path: "/protectedresource",
                token_hash: Some(Sha256::of(token.as_bytes())),
                algorithms: AlgorithmSet::of(&[algorithm]),
                nonce_keys: None,
                nonce_required: false,
                rules: &rules,
                max_bytes: 8192,
                reign: Reign::of_process([0; 32], UnixTime::from_secs(0)),
                now,
            };
            let verified = verify(&headers, &expected, &mut Seen::default()).unwrap();
            assert_eq!((verified.jkt(), verified.jti()), (key.thumbprint(), &*statement.id));
        }
    }

    #[test]
    fn what_is_not_said_is_absent() {
        let key = SigningKey::generate(Algorithm::Es256).unwrap();
        let statement = Statement {
            method: "GET",
            target: "https://a/",
            issued: UnixTime::from_secs(1),
            id: "x".into(),
            token: None,
            nonce: None,
        };
        let claims = Proof::sign(&key, &statement).unwrap().claims;
        assert_eq!(claims, json!({"jti": "x", "htm": "GET", "htu": "https://a/", "iat": 1}));
    }

    #[test]
    fn ids_are_128_bits_and_never_the_same() {
        let ids: std::collections::HashSet<_> = (0..100).map(|_| fresh_id().unwrap()).collect();
        assert_eq!(ids.len(), 100);
        assert!(ids.iter().all(|id| URL_SAFE_NO_PAD.decode(id).unwrap().len() == 16));
    }
}
