//! Signing keys of the edge's own: Ed25519 or ECDSA on P-256.

use std::fmt;

use aws_lc_rs::encoding::AsBigEndian as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::policy::digest::Jkt;
use crate::policy::jose::PublicKey;
use crate::policy::json::Object;

/// What a signing key signs by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// `EdDSA` with Ed25519 (RFC 8037).
    EdDsa,
    /// `ES256`.
    Es256,
}

impl Algorithm {
    /// The name in `alg`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
        }
    }
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
}

/// A private key with its public JWK. aws-lc-rs wipes the private half when it is dropped.
pub struct SigningKey {
    pair: Pair,
    public: Map<String, Value>,
    jkt: Jkt,
}

/// Without the private half.
impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("jkt", &self.jkt).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// A fresh key's private JWK; `None` where there is no randomness.
    pub(super) fn generate(algorithm: Algorithm) -> Option<Zeroizing<String>> {
        let text = |bytes: &[u8]| Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes));
        let (mut jwk, private) = match algorithm {
            Algorithm::EdDsa => {
                let pair = Ed25519KeyPair::generate().ok()?;
                let seed = pair.seed().ok()?;
                let private = text(seed.as_be_bytes().ok()?.as_ref());
                (ed25519_jwk(pair.public_key().as_ref()), private)
            }
            Algorithm::Es256 => {
                let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).ok()?;
                let private = text(pair.private_key().as_be_bytes().ok()?.as_ref());
                (p256_jwk(pair.public_key().as_ref())?, private)
            }
        };
        jwk.insert("d".into(), private.as_str().into());
        Some(Zeroizing::new(Value::Object(jwk).to_string()))
    }

    /// Reads a private JWK, whose public half must be its own.
    #[must_use]
    pub fn from_jwk(text: &str) -> Option<Self> {
        let jwk: Map<String, Value> = serde_json::from_str(text).ok()?;
        let member = |name: &str| jwk.get(name).and_then(Value::as_str);
        let bytes = |name: &str| URL_SAFE_NO_PAD.decode(member(name)?).ok().map(Zeroizing::new);
        let (pair, public) = match (member("kty")?, member("crv")?) {
            ("OKP", "Ed25519") => {
                let pair = Ed25519KeyPair::from_seed_and_public_key(&bytes("d")?, &bytes("x")?);
                let pair = pair.ok()?;
                let public = ed25519_jwk(pair.public_key().as_ref());
                (Pair::Ed25519(pair), public)
            }
            ("EC", "P-256") => {
                let mut point = vec![4];
                point.extend_from_slice(&bytes("x")?);
                point.extend_from_slice(&bytes("y")?);
                let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
                let pair =
                    EcdsaKeyPair::from_private_key_and_public_key(algorithm, &bytes("d")?, &point);
                let pair = pair.ok()?;
                let public = p256_jwk(pair.public_key().as_ref())?;
                (Pair::P256(pair), public)
            }
            _ => return None,
        };
        let jkt = PublicKey::from_jwk(&Object::from(&public)).ok()?.jkt();
        Some(Self { pair, public, jkt })
    }

    /// What it signs by.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        match self.pair {
            Pair::Ed25519(_) => Algorithm::EdDsa,
            Pair::P256(_) => Algorithm::Es256,
        }
    }

    /// Its `kid`: the RFC 7638 thumbprint.
    #[must_use]
    pub fn kid(&self) -> String {
        self.jkt.to_string()
    }

    /// Its public JWK with `kid`, `alg` and `use`.
    #[must_use]
    pub fn public_jwk(&self) -> Value {
        let mut jwk = self.public.clone();
        jwk.insert("kid".into(), self.kid().into());
        jwk.insert("alg".into(), self.algorithm().name().into());
        jwk.insert("use".into(), "sig".into());
        Value::Object(jwk)
    }

    /// A compact JWS (RFC 7515 section 7.1); `None` where there is no randomness.
    #[must_use]
    pub fn sign(&self, typ: &str, payload: &[u8]) -> Option<String> {
        let (alg, kid) = (self.algorithm().name(), self.kid());
        let header = json!({ "alg": alg, "kid": kid, "typ": typ }).to_string();
        let mut compact = URL_SAFE_NO_PAD.encode(header);
        compact.push('.');
        URL_SAFE_NO_PAD.encode_string(payload, &mut compact);
        let signature = match &self.pair {
            Pair::Ed25519(pair) => pair.try_sign(compact.as_bytes()).ok()?,
            Pair::P256(pair) => pair.sign(&SystemRandom::new(), compact.as_bytes()).ok()?,
        };
        compact.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut compact);
        Some(compact)
    }
}

fn ed25519_jwk(public: &[u8]) -> Map<String, Value> {
    let mut jwk = Map::new();
    jwk.insert("kty".into(), "OKP".into());
    jwk.insert("crv".into(), "Ed25519".into());
    jwk.insert("x".into(), URL_SAFE_NO_PAD.encode(public).into());
    jwk
}

/// Of an uncompressed point.
fn p256_jwk(point: &[u8]) -> Option<Map<String, Value>> {
    let (x, y) = point.strip_prefix(&[4]).filter(|rest| rest.len() == 64)?.split_at(32);
    let mut jwk = Map::new();
    jwk.insert("kty".into(), "EC".into());
    jwk.insert("crv".into(), "P-256".into());
    jwk.insert("x".into(), URL_SAFE_NO_PAD.encode(x).into());
    jwk.insert("y".into(), URL_SAFE_NO_PAD.encode(y).into());
    Some(jwk)
}
