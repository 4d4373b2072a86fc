//! Keys and proofs, signed before the clock starts.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::Outcome;

/// An ES256 key.
pub(crate) struct Key {
    pub(crate) pair: EcdsaKeyPair,
    random: SystemRandom,
    pub(crate) jwk: Value,
    /// RFC 7638.
    pub(crate) jkt: String,
}

/// What a proof is about.
pub(crate) struct About<'a> {
    pub(crate) method: &'a str,
    pub(crate) url: &'a str,
    /// The access token that it goes with, if there is one.
    pub(crate) token: Option<&'a str>,
    pub(crate) nonce: Option<&'a str>,
}

impl Key {
    pub(crate) fn generate() -> Outcome<Self> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
        // 4, then both coordinates.
        let point = pair.public_key().as_ref();
        let (x, y) = point.get(1..).and_then(|point| point.split_at_checked(32)).ok_or("a key")?;
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        let jkt = digest(format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#));
        let jwk = json!({"kty": "EC", "crv": "P-256", "x": x, "y": y});
        Ok(Self { pair, random: SystemRandom::new(), jwk, jkt })
    }

    /// `count` proofs, each with a `jti` of its own.
    pub(crate) fn proofs(&self, about: &About<'_>, count: usize) -> Outcome<Vec<String>> {
        let header = encoded(&json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": self.jwk}));
        let (ath, now) = (about.token.map(digest), now()?);
        let mut proofs = Vec::with_capacity(count);
        for _ in 0..count {
            let mut id = [0; 16];
            aws_lc_rs::rand::fill(&mut id)?;
            let mut claims = json!({
                "jti": URL_SAFE_NO_PAD.encode(id), "htm": about.method, "htu": about.url,
                "iat": now,
            });
            if let Some(ath) = &ath {
                claims["ath"] = ath.as_str().into();
            }
            if let Some(nonce) = about.nonce {
                claims["nonce"] = nonce.into();
            }
            proofs.push(self.sign(&header, &claims)?);
        }
        Ok(proofs)
    }

    /// A JWS with this header, which is encoded already.
    pub(crate) fn sign(&self, header: &str, claims: &Value) -> Outcome<String> {
        let mut text = format!("{header}.{}", encoded(claims));
        let signature = self.pair.sign(&self.random, text.as_bytes())?;
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut text);
        Ok(text)
    }
}

/// base64url(SHA-256(bytes)).
pub(crate) fn digest(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes.as_ref()))
}

pub(crate) fn encoded(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

/// Seconds since 1970.
pub(crate) fn now() -> Outcome<u64> {
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH)?;
    Ok(since.as_secs())
}
