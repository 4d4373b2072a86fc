//! Sealing a key to a node's ephemeral key: a compact JWE, `ECDH-ES` and `A256GCM`
//! (RFC 7518 sections 4.6 and 5.3).

use josekit::jwe::alg::ecdh_es::EcdhEsJweEncrypter;
use josekit::jwe::{self, ECDH_ES, JweHeader};
use josekit::jwk::Jwk;
use serde_json::{Map, Value as Json};

use crate::policy::jose::PublicKey;
use crate::policy::json::{self, Object, Value};

/// A key that can be sealed to: an EC key on P-256, P-384 or P-521 whose point is on its curve.
pub(super) struct SealKey(EcdhEsJweEncrypter);

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey")
    }
}

impl SealKey {
    /// Reads a public JWK; `None` for any other key, one with a private member, and what is none.
    pub(super) fn read(value: &Value) -> Option<Self> {
        let object = value.as_object()?;
        // What is no point of the curve must not come near the agreement.
        PublicKey::from_jwk(object).ok()?;
        let text = |name: &str| json::string(object, name).ok().flatten();
        if text("kty") != Some("EC") {
            return None;
        }
        let jwk = Jwk::from_map(members(object)?).ok()?;
        ECDH_ES.encrypter_from_jwk(&jwk).ok().map(Self)
    }

    /// Seals `key`; `apu` is the cluster, `apv` the node. `None` when OpenSSL cannot.
    pub(super) fn seal(&self, key: &[u8], cluster: &str, node: &str) -> Option<String> {
        let mut header = JweHeader::new();
        header.set_content_encryption("A256GCM");
        header.set_agreement_partyuinfo(cluster.as_bytes());
        header.set_agreement_partyvinfo(node.as_bytes());
        jwe::serialize_compact(key, &header, &self.0).ok()
    }
}

/// The members that make the key, without the advice (`use`, `key_ops`) that comes with it.
fn members(object: &Object) -> Option<Map<String, Json>> {
    let mut map = Map::new();
    for name in ["kty", "crv", "x", "y"] {
        let text = json::string(object, name).ok()??;
        map.insert(name.to_owned(), text.into());
    }
    Some(map)
}

#[cfg(test)]
mod tests {
    use josekit::jwk::KeyPair as _;
    use josekit::jwk::alg::ec::{EcCurve, EcKeyPair};

    use super::*;

    fn read(jwk: &Jwk) -> Option<SealKey> {
        SealKey::read(&Value::Object(Object::from(jwk.as_ref())))
    }

    #[test]
    fn what_is_sealed_is_opened_by_the_key_alone() {
        for curve in [EcCurve::P256, EcCurve::P384, EcCurve::P521] {
            let pair = EcKeyPair::generate(curve).unwrap();
            let sealed = read(&pair.to_jwk_public_key()).unwrap();
            let sealed = sealed.seal(&[7; 32], "cluster", "node-1").unwrap();
            let opener = ECDH_ES.decrypter_from_jwk(&pair.to_jwk_private_key()).unwrap();
            let (opened, header) = jwe::deserialize_compact(&sealed, &opener).unwrap();
            assert_eq!(opened, [7; 32]);
            assert_eq!(header.agreement_partyuinfo().unwrap(), b"cluster");
            assert_eq!(header.agreement_partyvinfo().unwrap(), b"node-1");
            assert_eq!(
                (header.algorithm(), header.content_encryption()),
                (Some("ECDH-ES"), Some("A256GCM"))
            );
            let other = EcKeyPair::generate(curve).unwrap();
            let opener = ECDH_ES.decrypter_from_jwk(&other.to_jwk_private_key()).unwrap();
            assert!(jwe::deserialize_compact(&sealed, &opener).is_err());
        }
    }

    #[test]
    fn no_other_key_is_taken() {
        let pair = EcKeyPair::generate(EcCurve::P256).unwrap();
        assert!(read(&pair.to_jwk_private_key()).is_none());
        let mut off = pair.to_jwk_public_key();
        off.set_parameter("x", Some("AAAA".into())).unwrap();
        assert!(read(&off).is_none());
        let mut off = pair.to_jwk_public_key();
        off.set_parameter("y", off.parameter("x").cloned()).unwrap();
        assert!(read(&off).is_none());
        let secp = EcKeyPair::generate(EcCurve::Secp256k1).unwrap();
        assert!(read(&secp.to_jwk_public_key()).is_none());
        for text in [r#"{"kty":"oct","k":"AA"}"#, "{}", r#"{"kty":"EC","crv":"P-256"}"#] {
            let object = json::object(text.as_bytes()).unwrap();
            assert!(SealKey::read(&Value::Object(object)).is_none(), "{text}");
        }
        assert!(SealKey::read(&Value::Null).is_none());
    }
}
