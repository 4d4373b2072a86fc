//! What makes a capsule believable: the envelope for third parties, the signature for the node.
//!
//! The envelope is a compact JWS over the claims; it holds the key's hash, never the key. The
//! signature is an HMAC that only whoever has the node's secret can make or check, so that a copy of
//! the registry, which has only its hash, forges none.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::key::{KEY_BYTES, KeyVersion, PROTOCOL, expand};
use super::node::NodeId;
use crate::policy::digest::{Sha256, lp};

/// `typ` of an envelope.
pub const TYPE: &str = "runtime-capsule+jwt";

/// The claims. The fields stand in the order of RFC 8785 (by name), so that they are written in
/// canonical form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claims {
    /// The cluster.
    pub cluster: String,
    /// The end, seconds since the epoch.
    pub exp: i64,
    /// When it was issued, seconds since the epoch.
    pub iat: i64,
    /// `capsuleId`.
    pub jti: String,
    /// SHA-256 over `lp("capsule-key-hash") ‖ runtimeKey`.
    pub key_hash: Sha256,
    /// Which key.
    pub key_version: KeyVersion,
    /// The risk that it was granted at.
    pub risk_score: u32,
    /// Whether the key was sealed.
    pub sealed: bool,
    /// The node.
    pub sub: NodeId,
}

impl Claims {
    /// The RFC 8785 form: members by name, no white space, numbers are integers.
    #[must_use]
    pub fn canonical(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// `keyHash` of a runtime key.
#[must_use]
pub fn key_hash(runtime_key: &[u8]) -> Sha256 {
    let mut input = Zeroizing::new(Vec::with_capacity(64));
    lp(&mut input, b"capsule-key-hash");
    input.extend_from_slice(runtime_key);
    Sha256::of(&input)
}

/// `signature`: base64url of HMAC-SHA256 over the claims' RFC 8785 form ‖ the key material as it is
/// sent (the text of `runtimeKey` or of `sealedKey`). The key is HKDF-SHA256 without salt over the
/// secret's text, `info = lp("runtime-capsule/v1") ‖ lp("envelope-mac") ‖ lp(nodeId)`, 32 bytes.
#[must_use]
pub fn signature(secret: &str, node: &NodeId, canonical: &str, material: &str) -> String {
    URL_SAFE_NO_PAD.encode(mac(secret, node, canonical, material).finalize().into_bytes())
}

/// Whether a signature holds, in constant time.
#[must_use]
pub fn is_signed(
    secret: &str,
    node: &NodeId,
    canonical: &str,
    material: &str,
    signature: &str,
) -> bool {
    let expected = self::signature(secret, node, canonical, material);
    expected.as_bytes().ct_eq(signature.as_bytes()).into()
}

fn mac(secret: &str, node: &NodeId, canonical: &str, material: &str) -> Hmac<sha2::Sha256> {
    let mut info = Vec::with_capacity(128);
    lp(&mut info, PROTOCOL);
    lp(&mut info, b"envelope-mac");
    lp(&mut info, node.as_str().as_bytes());
    let key = expand(None, secret.as_bytes(), &info);
    let mut block = Zeroizing::new([0; 64]);
    let (half, _) = block.split_at_mut(usize::from(KEY_BYTES));
    half.copy_from_slice(key.as_slice());
    Hmac::new(&(*block).into()).chain_update(canonical).chain_update(material)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> Claims {
        Claims {
            cluster: "test-cluster".to_owned(),
            exp: 1_800_086_400,
            iat: 1_800_000_000,
            jti: "00112233445566778899aabbccddeeff".to_owned(),
            key_hash: key_hash(&[7; 32]),
            key_version: KeyVersion::parse("m1.n1@1.2.3").unwrap(),
            risk_score: 20,
            sealed: false,
            sub: NodeId::parse("node-1").unwrap(),
        }
    }

    #[test]
    fn claims_are_written_in_canonical_form() {
        let text = claims().canonical();
        let sorted: std::collections::BTreeMap<String, serde_json::Value> =
            serde_json::from_str(&text).unwrap();
        assert_eq!(text, serde_json::to_string(&sorted).unwrap());
    }

    #[test]
    fn the_vector_of_the_signature() {
        // Made with Python's hmac and hashlib from the construction's words.
        let signed = signature(
            "correct horse battery staple",
            &NodeId::parse("node-1").unwrap(),
            &claims().canonical(),
            "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
        );
        assert_eq!(signed, "-29U8-n_4_qbTqbwkuh5pOJxouYQ73yVTjzCoTOXDtA");
        assert_eq!(claims().key_hash.to_string(), "sxqCBI1j7cyARnjW1y7t2GtHF7ZaxvocovHID7OcZcA");
    }

    #[test]
    fn whatever_changes_breaks_the_signature() {
        let (node, text) = (NodeId::parse("node-1").unwrap(), claims().canonical());
        let signed = signature("secret", &node, &text, "material");
        assert!(is_signed("secret", &node, &text, "material", &signed));
        let other = NodeId::parse("node-2").unwrap();
        assert!(!is_signed("secrets", &node, &text, "material", &signed));
        assert!(!is_signed("secret", &other, &text, "material", &signed));
        assert!(!is_signed("secret", &node, &format!("{text} "), "material", &signed));
        assert!(!is_signed("secret", &node, &text, "materials", &signed));
        assert!(!is_signed("secret", &node, &text, "material", ""));
        // What the registry stores is not enough.
        let hash = Sha256::of(b"secret").to_string();
        assert!(!is_signed(&hash, &node, &text, "material", &signed));
    }
}
