//! Compact JWS, algorithms, public keys and their thumbprints.
//!
//! Signatures are verified by aws-lc-rs; `benches/README.md` says what josekit would cost here.

use aws_lc_rs::signature as aws;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::digest::{Jkt, Sha256};
use super::json::{self, Object, Value};

/// A JWS signature algorithm (RFC 7518 section 3.1, RFC 8037 section 3.1, RFC 9864 for `Ed25519`).
/// Asymmetric ones only: `none` and the HMACs have no name here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Algorithm {
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// ECDSA on P-521 with SHA-512.
    Es512,
    /// EdDSA (RFC 8037), here always with Ed25519.
    EdDsa,
    /// Ed25519 by its own name (RFC 9864).
    Ed25519,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
}

impl Algorithm {
    /// Every algorithm, in the order in which they are listed to clients.
    pub const ALL: [Self; 11] = [
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::EdDsa,
        Self::Ed25519,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
    ];

    /// The registered name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::EdDsa => "EdDSA",
            Self::Ed25519 => "Ed25519",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
        }
    }

    /// By its registered name, to the letter.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }
}

/// A set of algorithms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AlgorithmSet(u16);

impl AlgorithmSet {
    /// The set of `algorithms`.
    #[must_use]
    pub fn of(algorithms: &[Algorithm]) -> Self {
        Self(algorithms.iter().fold(0, |bits, algorithm| bits | 1 << *algorithm as u8))
    }

    /// Whether `algorithm` is in it.
    #[must_use]
    pub fn contains(self, algorithm: Algorithm) -> bool {
        self.0 & (1 << algorithm as u8) != 0
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in either.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Its members, in listing order.
    pub fn iter(self) -> impl Iterator<Item = Algorithm> {
        Algorithm::ALL.into_iter().filter(move |algorithm| self.contains(*algorithm))
    }
}

/// A compact JWS (RFC 7515 section 3.1) whose header and payload are JSON objects. Its signature is
/// not verified.
#[derive(Clone, Debug)]
pub struct CompactJws<'a> {
    /// The protected header.
    pub header: Object,
    /// The payload.
    pub payload: Object,
    signing_input: &'a str,
    signature: Vec<u8>,
}

impl<'a> CompactJws<'a> {
    /// Reads `header.payload.signature`, each strict base64url without padding. `None` for anything
    /// else, an empty signature and JSON that is no strict object included.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        let (signing_input, signature) = text.rsplit_once('.')?;
        let (header, payload) = signing_input.split_once('.')?;
        if payload.contains('.') || signature.is_empty() {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let header = json::object(&URL_SAFE_NO_PAD.decode(header).ok()?)?;
        let payload = json::object(&URL_SAFE_NO_PAD.decode(payload).ok()?)?;
        Some(Self { header, payload, signing_input, signature })
    }

    /// `alg`, when it is one of ours.
    #[must_use]
    pub fn algorithm(&self) -> Option<Algorithm> {
        json::string(&self.header, "alg").ok().flatten().and_then(Algorithm::from_name)
    }

    /// Whether `key` made the signature with `algorithm`. False also when the two do not fit.
    #[must_use]
    pub fn verified_by(&self, key: &PublicKey, algorithm: Algorithm) -> bool {
        key.verify(algorithm, self.signing_input.as_bytes(), &self.signature)
    }
}

/// Why a JWK is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFault {
    /// It has a private or symmetric member.
    Private,
    /// Malformed, weak, off its curve, not for signatures, or of a type that no algorithm here uses.
    Unusable,
}

/// A public key, parsed and checked.
#[derive(Debug)]
pub struct PublicKey {
    material: Material,
    jkt: Jkt,
    algorithm: Option<Algorithm>,
}

#[derive(Debug)]
enum Material {
    P256(aws::ParsedPublicKey),
    P384(aws::ParsedPublicKey),
    P521(aws::ParsedPublicKey),
    Ed25519(aws::ParsedPublicKey),
    Rsa(aws::RsaPublicKeyComponents<Vec<u8>>),
}

/// Members that only a private or symmetric key has (RFC 7518 sections 6.2.2, 6.3.2, 6.4.1).
const PRIVATE_MEMBERS: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// RSA moduli, bits. Below, a key is weak; above, verifying is a burden.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

impl PublicKey {
    /// Reads a JWK (RFC 7517): EC on P-256, P-384 or P-521, OKP with Ed25519, or RSA of 2048 to
    /// 8192 bits.
    ///
    /// Members must be written in the one way the RFCs allow (full-length coordinates, no leading
    /// zero octets), so that one key has one thumbprint.
    ///
    /// # Errors
    /// [`KeyFault::Private`] before anything else is looked at.
    pub fn from_jwk(jwk: &Object) -> Result<Self, KeyFault> {
        if PRIVATE_MEMBERS.iter().any(|member| jwk.contains_key(member)) {
            return Err(KeyFault::Private);
        }
        Self::read(jwk).ok_or(KeyFault::Unusable)
    }

    fn read(jwk: &Object) -> Option<Self> {
        let signs = match jwk.get("use") {
            None => true,
            Some(usage) => usage.as_str() == Some("sig"),
        };
        let verifies = match jwk.get("key_ops") {
            None => true,
            Some(Value::Array(operations)) => {
                operations.iter().any(|name| name.as_str() == Some("verify"))
            }
            Some(_) => false,
        };
        if !signs || !verifies {
            return None;
        }
        let algorithm = match json::string(jwk, "alg").ok()? {
            None => None,
            Some(name) => Some(Algorithm::from_name(name)?),
        };
        let (material, jkt) = match text(jwk, "kty")? {
            "EC" => elliptic(jwk)?,
            "OKP" => edwards(jwk)?,
            "RSA" => rsa(jwk)?,
            _ => return None,
        };
        let key = Self { material, jkt, algorithm };
        match algorithm {
            Some(algorithm) if !key.fits(algorithm) => None,
            Some(_) | None => Some(key),
        }
    }

    /// The RFC 7638 thumbprint.
    #[must_use]
    pub fn jkt(&self) -> Jkt {
        self.jkt
    }

    /// Whether signatures of `algorithm` can be this key's; its own `alg` narrows that.
    #[must_use]
    pub fn fits(&self, algorithm: Algorithm) -> bool {
        let kind = match (&self.material, algorithm) {
            (Material::P256(_), Algorithm::Es256)
            | (Material::P384(_), Algorithm::Es384)
            | (Material::P521(_), Algorithm::Es512)
            | (Material::Ed25519(_), Algorithm::EdDsa | Algorithm::Ed25519) => true,
            (Material::Rsa(_), algorithm) => rsa_parameters(algorithm).is_some(),
            (
                Material::P256(_) | Material::P384(_) | Material::P521(_) | Material::Ed25519(_),
                _,
            ) => false,
        };
        kind && self.algorithm.is_none_or(|own| own == algorithm || same_curve(own, algorithm))
    }

    fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        if !self.fits(algorithm) {
            return false;
        }
        match &self.material {
            Material::P256(key)
            | Material::P384(key)
            | Material::P521(key)
            | Material::Ed25519(key) => key.verify_sig(message, signature).is_ok(),
            Material::Rsa(key) => rsa_parameters(algorithm)
                .is_some_and(|parameters| key.verify(parameters, message, signature).is_ok()),
        }
    }
}

/// `EdDSA` and `Ed25519` are two names of one algorithm (RFC 9864 section 2.2).
fn same_curve(one: Algorithm, other: Algorithm) -> bool {
    let edwards = |algorithm| matches!(algorithm, Algorithm::EdDsa | Algorithm::Ed25519);
    edwards(one) && edwards(other)
}

fn text<'a>(jwk: &'a Object, name: &str) -> Option<&'a str> {
    json::string(jwk, name).ok().flatten()
}

/// A point in the form `04 ‖ x ‖ y` (SEC 1 section 2.3.3); parsing refuses one off its curve.
fn elliptic(jwk: &Object) -> Option<(Material, Jkt)> {
    type Wrap = fn(aws::ParsedPublicKey) -> Material;
    let (curve, x, y) = (text(jwk, "crv")?, text(jwk, "x")?, text(jwk, "y")?);
    let (size, verification, wrap): (usize, &'static dyn aws::VerificationAlgorithm, Wrap) =
        match curve {
            "P-256" => (32, &aws::ECDSA_P256_SHA256_FIXED, Material::P256),
            "P-384" => (48, &aws::ECDSA_P384_SHA384_FIXED, Material::P384),
            "P-521" => (66, &aws::ECDSA_P521_SHA512_FIXED, Material::P521),
            _ => return None,
        };
    let mut point = Vec::with_capacity(1 + 2 * size);
    point.push(4);
    for coordinate in [x, y] {
        let bytes = URL_SAFE_NO_PAD.decode(coordinate).ok()?;
        if bytes.len() != size {
            return None;
        }
        point.extend_from_slice(&bytes);
    }
    let key = aws::ParsedPublicKey::new(verification, &point).ok()?;
    let canonical = format!(r#"{{"crv":"{curve}","kty":"EC","x":"{x}","y":"{y}"}}"#);
    Some((wrap(key), Jkt(Sha256::of(canonical.as_bytes()))))
}

fn edwards(jwk: &Object) -> Option<(Material, Jkt)> {
    let (curve, x) = (text(jwk, "crv")?, text(jwk, "x")?);
    let bytes = URL_SAFE_NO_PAD.decode(x).ok()?;
    if curve != "Ed25519" || bytes.len() != 32 || has_small_order(&bytes) {
        return None;
    }
    let key = aws::ParsedPublicKey::new(&aws::ED25519, &bytes).ok()?;
    let canonical = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
    Some((Material::Ed25519(key), Jkt(Sha256::of(canonical.as_bytes()))))
}

/// Whether an Ed25519 key is one of the points of order 1, 2, 4 or 8 (RFC 8032 section 8.9, RFC 7748
/// section 7): under such a key anybody can make a signature that verifies.
fn has_small_order(key: &[u8]) -> bool {
    /// Their y coordinates, little endian, the non-canonical 2^255 − 19 and 2^255 − 18 included.
    const ORDER_8: [[u8; 32]; 2] = [
        [
            0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef,
            0x98, 0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88,
            0x6d, 0x53, 0xfc, 0x05,
        ],
        [
            0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10,
            0x67, 0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77,
            0x92, 0xac, 0x03, 0x7a,
        ],
    ];
    let Some((last, low)) = key.split_last() else {
        return true;
    };
    // The top bit is the sign of x.
    let last = last & 0x7f;
    let Some((first, middle)) = low.split_first() else {
        return true;
    };
    let all = |value: u8| middle.iter().all(|byte| *byte == value);
    let near_zero = last == 0 && all(0) && *first <= 1;
    let near_prime = last == 0x7f && all(0xff) && (0xec..=0xee).contains(first);
    let order_8 = ORDER_8
        .iter()
        .any(|point| point.split_last().is_some_and(|(top, rest)| *top == last && rest == low));
    near_zero || near_prime || order_8
}

fn rsa(jwk: &Object) -> Option<(Material, Jkt)> {
    let (n_text, e_text) = (text(jwk, "n")?, text(jwk, "e")?);
    let n = URL_SAFE_NO_PAD.decode(n_text).ok()?;
    let e = URL_SAFE_NO_PAD.decode(e_text).ok()?;
    let (n_first, e_first) = (*n.first()?, *e.first()?);
    let bits = n.len() * 8 - n_first.leading_zeros() as usize;
    let odd = n.last()? & 1 == 1 && e.last()? & 1 == 1;
    // Minimal octets (RFC 7518 section 6.3.1), an odd modulus, and an odd exponent of 3 to 2^32.
    let sound = n_first != 0 && e_first != 0 && odd && e.len() <= 4 && e != [1];
    if !sound || !RSA_BITS.contains(&bits) {
        return None;
    }
    let canonical = format!(r#"{{"e":"{e_text}","kty":"RSA","n":"{n_text}"}}"#);
    let key = aws::RsaPublicKeyComponents { n, e };
    Some((Material::Rsa(key), Jkt(Sha256::of(canonical.as_bytes()))))
}

fn rsa_parameters(algorithm: Algorithm) -> Option<&'static aws::RsaParameters> {
    match algorithm {
        Algorithm::Ps256 => Some(&aws::RSA_PSS_2048_8192_SHA256),
        Algorithm::Ps384 => Some(&aws::RSA_PSS_2048_8192_SHA384),
        Algorithm::Ps512 => Some(&aws::RSA_PSS_2048_8192_SHA512),
        Algorithm::Rs256 => Some(&aws::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::Rs384 => Some(&aws::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::Rs512 => Some(&aws::RSA_PKCS1_2048_8192_SHA512),
        Algorithm::Es256
        | Algorithm::Es384
        | Algorithm::Es512
        | Algorithm::EdDsa
        | Algorithm::Ed25519 => None,
    }
}
