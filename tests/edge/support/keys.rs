//! Keys and signatures by OpenSSL, so that nothing is signed by the code that verifies.

use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcGroup, EcKey};
use openssl::ecdsa::EcdsaSig;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::{Padding, Rsa};
use openssl::sign::{RsaPssSaltlen, Signer};
use serde_json::{Value, json};

use super::{base64url, digest};

/// A key pair with the algorithm that it signs with unless told otherwise.
#[derive(Clone)]
pub(crate) struct Key {
    pair: PKey<Private>,
    pub(crate) algorithm: &'static str,
    /// The public members (RFC 7517).
    pub(crate) jwk: Value,
}

impl Key {
    /// A fresh key for `algorithm`; RSA keys have 2048 bits.
    pub(crate) fn new(algorithm: &'static str) -> Self {
        match algorithm {
            "ES256" => Self::elliptic(algorithm, Nid::X9_62_PRIME256V1, "P-256", 32),
            "ES384" => Self::elliptic(algorithm, Nid::SECP384R1, "P-384", 48),
            "ES512" => Self::elliptic(algorithm, Nid::SECP521R1, "P-521", 66),
            "ES256K" => Self::elliptic(algorithm, Nid::SECP256K1, "secp256k1", 32),
            "EdDSA" | "Ed25519" => {
                let pair = PKey::generate_ed25519().expect("a key");
                let x = base64url(pair.raw_public_key().expect("a public key"));
                Self { pair, algorithm, jwk: json!({"kty": "OKP", "crv": "Ed25519", "x": x}) }
            }
            _ => Self::rsa(algorithm, 2048),
        }
    }

    pub(crate) fn rsa(algorithm: &'static str, bits: u32) -> Self {
        let rsa = Rsa::generate(bits).expect("a key");
        let jwk = json!({
            "kty": "RSA",
            "n": base64url(rsa.n().to_vec()),
            "e": base64url(rsa.e().to_vec()),
        });
        Self { pair: PKey::from_rsa(rsa).expect("a key"), algorithm, jwk }
    }

    fn elliptic(algorithm: &'static str, curve: Nid, name: &str, size: i32) -> Self {
        let group = EcGroup::from_curve_name(curve).expect("a curve");
        let key = EcKey::generate(&group).expect("a key");
        let mut context = BigNumContext::new().expect("memory");
        let (mut x, mut y) = (BigNum::new().expect("memory"), BigNum::new().expect("memory"));
        key.public_key().affine_coordinates(&group, &mut x, &mut y, &mut context).expect("a point");
        let coordinate = |n: &BigNum| base64url(n.to_vec_padded(size).expect("a coordinate"));
        let jwk = json!({"kty": "EC", "crv": name, "x": coordinate(&x), "y": coordinate(&y)});
        Self { pair: PKey::from_ec_key(key).expect("a key"), algorithm, jwk }
    }

    /// RFC 7638.
    pub(crate) fn jkt(&self) -> String {
        let member = |name: &str| self.jwk[name].as_str().unwrap_or_default().to_owned();
        let canonical = match member("kty").as_str() {
            "EC" => format!(
                r#"{{"crv":"{}","kty":"EC","x":"{}","y":"{}"}}"#,
                member("crv"),
                member("x"),
                member("y")
            ),
            "OKP" => format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, member("x")),
            _ => format!(r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#, member("e"), member("n")),
        };
        digest(canonical)
    }

    /// The public members and what makes them an entry of a JWK set.
    pub(crate) fn public_entry(&self, kid: &str) -> Value {
        let mut entry = self.jwk.clone();
        entry["kid"] = json!(kid);
        entry["alg"] = json!(self.algorithm);
        entry["use"] = json!("sig");
        entry
    }

    /// The public key as PEM: what an attacker takes for an HMAC secret.
    pub(crate) fn public_pem(&self) -> Vec<u8> {
        self.pair.public_key_to_pem().expect("PEM")
    }

    /// The private key as PKCS #8 PEM.
    pub(crate) fn private_pem(&self) -> Vec<u8> {
        self.pair.private_key_to_pem_pkcs8().expect("PEM")
    }

    /// The `d` of the JWK.
    pub(crate) fn private_member(&self) -> String {
        if let Ok(key) = self.pair.ec_key() {
            return base64url(key.private_key().to_vec());
        }
        if let Ok(key) = self.pair.rsa() {
            return base64url(key.d().to_vec());
        }
        base64url(self.pair.raw_private_key().expect("a private key"))
    }

    /// A JWS signature (RFC 7518 section 3) by this key's algorithm.
    pub(crate) fn sign(&self, input: &[u8]) -> Vec<u8> {
        let hash = match self.algorithm {
            "ES256" | "ES256K" | "PS256" | "RS256" => MessageDigest::sha256(),
            "ES384" | "PS384" | "RS384" => MessageDigest::sha384(),
            "ES512" | "PS512" | "RS512" => MessageDigest::sha512(),
            _ => {
                let mut signer = Signer::new_without_digest(&self.pair).expect("a signer");
                return signer.sign_oneshot_to_vec(input).expect("a signature");
            }
        };
        if let Ok(key) = self.pair.ec_key() {
            let hashed = openssl::hash::hash(hash, input).expect("a digest");
            let signature = EcdsaSig::sign(&hashed, &key).expect("a signature");
            return self.joined(signature.r(), signature.s());
        }
        let mut signer = Signer::new(hash, &self.pair).expect("a signer");
        if self.algorithm.starts_with("PS") {
            signer.set_rsa_padding(Padding::PKCS1_PSS).expect("PSS");
            signer.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH).expect("a salt length");
        }
        signer.sign_oneshot_to_vec(input).expect("a signature")
    }

    /// The same ECDSA signature with n − s in the place of s: as valid as the first.
    pub(crate) fn twin(&self, signature: &[u8]) -> Vec<u8> {
        let key = self.pair.ec_key().expect("an EC key");
        let (r, s) = signature.split_at(signature.len() / 2);
        let number = |bytes: &[u8]| BigNum::from_slice(bytes).expect("a number");
        let mut order = BigNum::new().expect("memory");
        let mut context = BigNumContext::new().expect("memory");
        key.group().order(&mut order, &mut context).expect("an order");
        self.joined(&number(r), &(&order - &number(s)))
    }

    /// The same signature in DER, as other protocols write it.
    pub(crate) fn der(&self, signature: &[u8]) -> Vec<u8> {
        let (r, s) = signature.split_at(signature.len() / 2);
        let number = |bytes: &[u8]| BigNum::from_slice(bytes).expect("a number");
        let signature = EcdsaSig::from_private_components(number(r), number(s));
        signature.and_then(|signature| signature.to_der()).expect("DER")
    }

    fn joined(&self, r: &openssl::bn::BigNumRef, s: &openssl::bn::BigNumRef) -> Vec<u8> {
        let size = match self.algorithm {
            "ES384" => 48,
            "ES512" => 66,
            _ => 32,
        };
        let padded = |n: &openssl::bn::BigNumRef| n.to_vec_padded(size).expect("a half");
        [padded(r), padded(s)].concat()
    }
}

/// HMAC-SHA256 with any bytes as the secret.
pub(crate) fn hs256(secret: &[u8], input: &[u8]) -> Vec<u8> {
    let key = PKey::hmac(secret).expect("a key");
    let mut signer = Signer::new(MessageDigest::sha256(), &key).expect("a signer");
    signer.sign_oneshot_to_vec(input).expect("a MAC")
}
