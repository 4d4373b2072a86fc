//! Private signature keys: made, read from PEM or JWK, and used.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use josekit::jwk::alg::ec::{EcCurve, EcKeyPair};
use josekit::jwk::alg::ed::{EdCurve, EdKeyPair};
use josekit::jwk::alg::rsa::RsaKeyPair;
use josekit::jwk::{Jwk, KeyPair};
use josekit::jws::{self, JwsSigner};
use serde_json::{Map, Value};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey as SubjectKey;
use x509_parser::x509::SubjectPublicKeyInfo;
use zeroize::Zeroizing;

use crate::policy::digest::Jkt;
use crate::policy::jose::{Algorithm, CompactJws, PublicKey};
use crate::policy::json::Object;

/// Bits of a fresh RSA key.
const RSA_BITS: u32 = 2048;

/// What makes a key unusable.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Neither PEM nor JSON with a private key in it.
    #[error(
        "no private key in it: a PEM block \"PRIVATE KEY\" or a JWK with its private members is expected"
    )]
    NotAKey,
    /// PEM with a passphrase.
    #[error("the key is encrypted; decrypt it first (openssl pkey -in KEY -out PLAIN)")]
    Encrypted,
    /// Only the public half.
    #[error("only a public key: a proof needs the private one")]
    PublicOnly,
    /// A type or curve without an algorithm.
    #[error(
        "a key of this type signs no proof: EC (P-256, P-384, P-521), Ed25519 or RSA of 2048 bits or more is expected"
    )]
    Unsupported,
    /// The algorithm asked for does not fit.
    #[error("{algorithm} does not fit this key, {fitting} does")]
    Algorithm {
        /// What was asked for.
        algorithm: &'static str,
        /// What would do.
        fitting: &'static str,
    },
    /// The `alg` of a JWK.
    #[error("its \"alg\" names no asymmetric signature algorithm")]
    UnknownAlgorithm,
    /// Its public half is another key's, or OpenSSL cannot use it.
    #[error("the key is broken: what it signs does not verify")]
    Broken,
}

/// A private key with the algorithm that it signs by.
pub struct SigningKey {
    algorithm: Algorithm,
    signer: Box<dyn JwsSigner>,
    public: Map<String, Value>,
    jkt: Jkt,
    pem: Zeroizing<Vec<u8>>,
}

/// Without the private half.
impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("algorithm", &self.algorithm)
            .field("jkt", &self.jkt)
            .finish_non_exhaustive()
    }
}

impl SigningKey {
    /// A fresh key for `algorithm` (RSA: 2048 bits).
    ///
    /// # Errors
    /// [`KeyError::Broken`] when OpenSSL cannot make one.
    pub fn generate(algorithm: Algorithm) -> Result<Self, KeyError> {
        let pair = match Kind::of(algorithm) {
            Kind::Ec(curve) => EcKeyPair::generate(curve).map(Pair::Ec),
            Kind::Ed25519 => EdKeyPair::generate(EdCurve::Ed25519).map(Pair::Ed),
            Kind::Rsa => RsaKeyPair::generate(RSA_BITS).map(Pair::Rsa),
        };
        Self::new(&pair.map_err(|_| KeyError::Broken)?, Some(algorithm))
    }

    /// Reads PEM (PKCS #8, SEC 1 or PKCS #1) or a JWK. Without `algorithm` the JWK's `alg` decides,
    /// or the key's type: ES256, ES384 or ES512 by curve, EdDSA, PS256.
    ///
    /// # Errors
    /// One [`KeyError`], which never quotes the text.
    pub fn read(text: &[u8], algorithm: Option<Algorithm>) -> Result<Self, KeyError> {
        let text = std::str::from_utf8(text).map_err(|_| KeyError::NotAKey)?;
        if text.trim_start().starts_with('{') {
            Self::read_jwk(text, algorithm)
        } else {
            Self::read_pem(text, algorithm)
        }
    }

    fn read_pem(text: &str, algorithm: Option<Algorithm>) -> Result<Self, KeyError> {
        let block = private_block(text)?;
        let pair = EcKeyPair::from_pem(block, None)
            .map(Pair::Ec)
            .or_else(|_| EdKeyPair::from_pem(block).map(Pair::Ed))
            .or_else(|_| RsaKeyPair::from_pem(block).map(Pair::Rsa))
            .map_err(|_| KeyError::Unsupported)?;
        Self::new(&pair, algorithm)
    }

    fn read_jwk(text: &str, algorithm: Option<Algorithm>) -> Result<Self, KeyError> {
        let all: Map<String, Value> = serde_json::from_str(text).map_err(|_| KeyError::NotAKey)?;
        let kty = all.get("kty").and_then(Value::as_str).ok_or(KeyError::NotAKey)?;
        let algorithm = match (algorithm, all.get("alg")) {
            (Some(algorithm), _) => Some(algorithm),
            (None, None) => None,
            (None, Some(name)) => Some(
                name.as_str().and_then(Algorithm::from_name).ok_or(KeyError::UnknownAlgorithm)?,
            ),
        };
        if matches!(kty, "EC" | "OKP" | "RSA") && !all.contains_key("d") {
            return Err(KeyError::PublicOnly);
        }
        // `use`, `key_ops` and `alg` are advice about the key, and josekit would refuse by them.
        const MEMBERS: [&str; 13] =
            ["kty", "crv", "x", "y", "d", "n", "e", "p", "q", "dp", "dq", "qi", "oth"];
        let bare: Map<String, Value> =
            all.into_iter().filter(|(name, _)| MEMBERS.contains(&name.as_str())).collect();
        let jwk = Jwk::from_map(bare).map_err(|_| KeyError::NotAKey)?;
        let pair = match jwk.key_type() {
            "EC" => EcKeyPair::from_jwk(&jwk).map(Pair::Ec),
            "OKP" => EdKeyPair::from_jwk(&jwk).map(Pair::Ed),
            "RSA" => RsaKeyPair::from_jwk(&jwk).map(Pair::Rsa),
            _ => return Err(KeyError::Unsupported),
        };
        Self::new(&pair.map_err(|_| KeyError::Unsupported)?, algorithm)
    }

    fn new(pair: &Pair, algorithm: Option<Algorithm>) -> Result<Self, KeyError> {
        let (fitting, public) = pair.public().ok_or(KeyError::Unsupported)?;
        let algorithm = algorithm.unwrap_or(fitting);
        if Kind::of(algorithm) != Kind::of(fitting) {
            return Err(KeyError::Algorithm {
                algorithm: algorithm.name(),
                fitting: fitting.name(),
            });
        }
        let signer = pair.signer(algorithm).ok_or(KeyError::Unsupported)?;
        let verifying =
            PublicKey::from_jwk(&Object::from(&public)).map_err(|_| KeyError::Unsupported)?;
        let pem = Zeroizing::new(pair.key_pair().to_pem_private_key());
        let key = Self { algorithm, signer, public, jkt: verifying.jkt(), pem };
        // A JWK may carry any public half beside its private one: OpenSSL takes both as they are.
        let jws = key.sign(&Map::new(), &Value::Object(Map::new()))?;
        let verifies =
            CompactJws::parse(&jws).is_some_and(|j| j.verified_by(&verifying, algorithm));
        verifies.then_some(key).ok_or(KeyError::Broken)
    }

    /// The algorithm that it signs by.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The public JWK: the members that RFC 7638 section 3.2 requires, no others.
    #[must_use]
    pub fn public_jwk(&self) -> &Map<String, Value> {
        &self.public
    }

    /// The RFC 7638 thumbprint.
    #[must_use]
    pub fn thumbprint(&self) -> Jkt {
        self.jkt
    }

    /// The private key as PKCS #8 PEM.
    #[must_use]
    pub fn to_pem(&self) -> &[u8] {
        &self.pem
    }

    /// A compact JWS (RFC 7515 section 7.1) over `claims`. `alg` is put into `header`.
    ///
    /// # Errors
    /// [`KeyError::Broken`] when OpenSSL cannot sign.
    pub fn sign(&self, header: &Map<String, Value>, claims: &Value) -> Result<String, KeyError> {
        let mut header = header.clone();
        header.insert("alg".into(), self.algorithm.name().into());
        let mut compact = URL_SAFE_NO_PAD.encode(Value::Object(header).to_string());
        compact.push('.');
        URL_SAFE_NO_PAD.encode_string(claims.to_string(), &mut compact);
        let signature = self.signer.sign(compact.as_bytes()).map_err(|_| KeyError::Broken)?;
        compact.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut compact);
        Ok(compact)
    }
}

/// Which keys an algorithm takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ec(EcCurve),
    Ed25519,
    Rsa,
}

impl Kind {
    fn of(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Es256 => Self::Ec(EcCurve::P256),
            Algorithm::Es384 => Self::Ec(EcCurve::P384),
            Algorithm::Es512 => Self::Ec(EcCurve::P521),
            Algorithm::EdDsa | Algorithm::Ed25519 => Self::Ed25519,
            Algorithm::Ps256
            | Algorithm::Ps384
            | Algorithm::Ps512
            | Algorithm::Rs256
            | Algorithm::Rs384
            | Algorithm::Rs512 => Self::Rsa,
        }
    }
}

/// A key pair by type.
enum Pair {
    Ec(EcKeyPair),
    Ed(EdKeyPair),
    Rsa(RsaKeyPair),
}

impl Pair {
    fn key_pair(&self) -> &dyn KeyPair {
        match self {
            Self::Ec(pair) => pair,
            Self::Ed(pair) => pair,
            Self::Rsa(pair) => pair,
        }
    }

    /// The public JWK and the algorithm that the key signs by when nothing else is said. Read from
    /// the DER: josekit's own JWK panics on a point at infinity.
    fn public(&self) -> Option<(Algorithm, Map<String, Value>)> {
        let der = self.key_pair().to_der_public_key();
        let (_, spki) = SubjectPublicKeyInfo::from_der(&der).ok()?;
        let bits: &[u8] = &spki.subject_public_key.data;
        match self {
            Self::Ec(pair) => {
                let (algorithm, crv, width) = match pair.curve() {
                    EcCurve::P256 => (Algorithm::Es256, "P-256", 32),
                    EcCurve::P384 => (Algorithm::Es384, "P-384", 48),
                    EcCurve::P521 => (Algorithm::Es512, "P-521", 66),
                    EcCurve::Secp256k1 => return None,
                };
                let point = bits.strip_prefix(&[4]).filter(|point| point.len() == 2 * width)?;
                let (x, y) = point.split_at(width);
                Some((algorithm, jwk("EC", &[("x", x), ("y", y)], Some(crv))))
            }
            Self::Ed(pair) if pair.curve() == EdCurve::Ed25519 => {
                Some((Algorithm::EdDsa, jwk("OKP", &[("x", bits)], Some("Ed25519"))))
            }
            Self::Ed(_) => None,
            Self::Rsa(_) => {
                let Ok(SubjectKey::RSA(key)) = spki.parsed() else { return None };
                let integer = |bytes: &[u8]| {
                    bytes.iter().skip_while(|byte| **byte == 0).copied().collect::<Vec<u8>>()
                };
                let (n, e) = (integer(key.modulus), integer(key.exponent));
                Some((Algorithm::Ps256, jwk("RSA", &[("n", &n), ("e", &e)], None)))
            }
        }
    }

    /// `None` when the key does not fit, or is an RSA key under 2048 bits.
    fn signer(&self, algorithm: Algorithm) -> Option<Box<dyn JwsSigner>> {
        let der = Zeroizing::new(match self {
            Self::Ec(_) | Self::Ed(_) => self.key_pair().to_der_private_key(),
            // PKCS #1: of PKCS #8 josekit takes PS keys or RS keys, by OID.
            Self::Rsa(pair) => pair.to_raw_private_key(),
        });
        let der = der.as_slice();
        Some(match algorithm {
            Algorithm::Es256 => Box::new(jws::ES256.signer_from_der(der).ok()?),
            Algorithm::Es384 => Box::new(jws::ES384.signer_from_der(der).ok()?),
            Algorithm::Es512 => Box::new(jws::ES512.signer_from_der(der).ok()?),
            Algorithm::EdDsa | Algorithm::Ed25519 => {
                Box::new(jws::EdDSA.signer_from_der(der).ok()?)
            }
            Algorithm::Ps256 => Box::new(jws::PS256.signer_from_der(der).ok()?),
            Algorithm::Ps384 => Box::new(jws::PS384.signer_from_der(der).ok()?),
            Algorithm::Ps512 => Box::new(jws::PS512.signer_from_der(der).ok()?),
            Algorithm::Rs256 => Box::new(jws::RS256.signer_from_der(der).ok()?),
            Algorithm::Rs384 => Box::new(jws::RS384.signer_from_der(der).ok()?),
            Algorithm::Rs512 => Box::new(jws::RS512.signer_from_der(der).ok()?),
        })
    }
}

fn jwk(kty: &str, parts: &[(&str, &[u8])], crv: Option<&str>) -> Map<String, Value> {
    let mut jwk = Map::new();
    jwk.insert("kty".into(), kty.into());
    if let Some(crv) = crv {
        jwk.insert("crv".into(), crv.into());
    }
    for (name, bytes) in parts {
        jwk.insert((*name).into(), URL_SAFE_NO_PAD.encode(bytes).into());
    }
    jwk
}

/// The one PEM block that holds a private key: `openssl ecparam -genkey` writes another before it.
fn private_block(text: &str) -> Result<&str, KeyError> {
    const LABELS: [&str; 3] = ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"];
    if text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----")
        || text.contains("Proc-Type: 4,ENCRYPTED")
    {
        return Err(KeyError::Encrypted);
    }
    for label in LABELS {
        let end_line = format!("-----END {label}-----");
        let start = text.find(&format!("-----BEGIN {label}-----"));
        let end = text.find(&end_line).map(|end| end + end_line.len());
        if let (Some(start), Some(end)) = (start, end) {
            return text.get(start..end).ok_or(KeyError::NotAKey);
        }
    }
    if text.contains("PUBLIC KEY-----") || text.contains("-----BEGIN CERTIFICATE-----") {
        return Err(KeyError::PublicOnly);
    }
    Err(KeyError::NotAKey)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_algorithm_signs_and_survives_its_pem() {
        for algorithm in Algorithm::ALL {
            let key = SigningKey::generate(algorithm).unwrap();
            let again = SigningKey::read(key.to_pem(), Some(algorithm)).unwrap();
            assert_eq!(again.thumbprint(), key.thumbprint(), "{algorithm:?}");
            let jws = again.sign(&Map::new(), &serde_json::json!({"a": 1})).unwrap();
            let public = PublicKey::from_jwk(&Object::from(key.public_jwk())).unwrap();
            let read = CompactJws::parse(&jws).unwrap();
            assert!(read.verified_by(&public, algorithm), "{algorithm:?}");
            assert_eq!(read.algorithm(), Some(algorithm));
        }
    }

    #[test]
    fn every_way_that_openssl_writes_a_key_is_read() {
        let pair = EcKeyPair::generate(EcCurve::P521).unwrap();
        let rsa = RsaKeyPair::generate(2048).unwrap();
        let parameters =
            "-----BEGIN EC PARAMETERS-----\nBgUrgQQAIw==\n-----END EC PARAMETERS-----\n";
        let check = |pem: &[u8], expect| {
            let pem = format!("{parameters}{}", String::from_utf8_lossy(pem));
            let key = SigningKey::read(pem.as_bytes(), None).unwrap();
            assert_eq!(key.algorithm(), expect);
        };
        check(&pair.to_traditional_pem_private_key(), Algorithm::Es512);
        check(&pair.to_pem_private_key(), Algorithm::Es512);
        check(&rsa.to_traditional_pem_private_key(), Algorithm::Ps256);
        check(&rsa.to_pem_private_key(), Algorithm::Ps256);
        let jwk = rsa.to_jwk_key_pair().to_string();
        assert_eq!(SigningKey::read(jwk.as_bytes(), None).unwrap().algorithm(), Algorithm::Ps256);
    }

    #[test]
    fn a_weak_key_is_refused() {
        let weak = RsaKeyPair::generate(1024).unwrap();
        let error = SigningKey::read(&weak.to_pem_private_key(), None).unwrap_err();
        assert!(matches!(error, KeyError::Unsupported), "{error:?}");
    }

    /// RFC 8037 appendix A.1, with advice that must not be in the way.
    const ED25519: &str = r#"{"kty":"OKP","crv":"Ed25519","use":"enc","key_ops":["verify"],
        "d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
        "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;

    #[test]
    fn a_jwk_signs_as_rfc_8037_says() {
        let key = SigningKey::read(ED25519.as_bytes(), None).unwrap();
        assert_eq!(key.algorithm(), Algorithm::EdDsa);
        let named = SigningKey::read(ED25519.as_bytes(), Some(Algorithm::Ed25519)).unwrap();
        let jws = named.sign(&Map::new(), &Value::Null).unwrap();
        assert!(jws.starts_with(&URL_SAFE_NO_PAD.encode(r#"{"alg":"Ed25519"}"#)), "{jws}");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let check = |text: &str, algorithm, expect: &str| {
            let error = SigningKey::read(text.as_bytes(), algorithm).unwrap_err().to_string();
            assert!(error.contains(expect), "{text}: {error}");
        };
        check("", None, "no private key");
        check("nonsense", None, "no private key");
        check("{", None, "no private key");
        check("{\"kty\":7}", None, "no private key");
        check("{\"kty\":\"oct\",\"k\":\"AAAA\"}", None, "signs no proof");
        check("{\"kty\":\"EC\",\"crv\":\"secp256k1\",\"d\":\"AA\"}", None, "signs no proof");
        check(
            "{\"kty\":\"EC\",\"crv\":\"P-256\",\"x\":\"AA\",\"y\":\"AA\"}",
            None,
            "only a public key",
        );
        check("-----BEGIN PUBLIC KEY-----", None, "only a public key");
        check("-----BEGIN CERTIFICATE-----", None, "only a public key");
        check("-----BEGIN ENCRYPTED PRIVATE KEY-----", None, "encrypted");
        check("-----END PRIVATE KEY----- -----BEGIN PRIVATE KEY-----", None, "no private key");
        check(
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",
            None,
            "signs no proof",
        );
        check(ED25519, Some(Algorithm::Es256), "ES256 does not fit this key, EdDSA does");
        check(&ED25519.replace("use\":\"enc", "alg\":\"HS256"), None, "\"alg\" names no");
    }

    #[test]
    fn a_public_half_of_another_key_is_noticed() {
        let (one, other) = (
            EcKeyPair::generate(EcCurve::P256).unwrap(),
            EcKeyPair::generate(EcCurve::P256).unwrap(),
        );
        let mut mixed = one.to_jwk_key_pair();
        for member in ["x", "y"] {
            let value = other.to_jwk_public_key().parameter(member).cloned();
            mixed.set_parameter(member, value).unwrap();
        }
        let error = SigningKey::read(mixed.to_string().as_bytes(), None).unwrap_err();
        assert!(matches!(error, KeyError::Broken | KeyError::Unsupported), "{error:?}");
    }

    #[test]
    fn debug_shows_no_private_half() {
        let key = SigningKey::read(ED25519.as_bytes(), None).unwrap();
        let shown = format!("{key:?}");
        assert!(!shown.contains("nWGx") && shown.contains("kPrK"), "{shown}");
    }
}
