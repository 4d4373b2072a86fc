//! The runtime key: HKDF-SHA256 (RFC 5869) from a master key, one for each node and version.

use std::fmt;

use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::node::{NodeId, is_label};
use crate::policy::digest::{Sha256, lp};

/// What every construction of a capsule begins with.
pub(super) const PROTOCOL: &[u8] = b"runtime-capsule/v1";
/// Bytes of a runtime key.
pub const KEY_BYTES: u16 = 32;

/// A master key with its salt, 32 random bytes each.
pub struct MasterKey {
    /// Its version, from 1.
    pub version: u32,
    /// Input keying material.
    pub master: Zeroizing<[u8; 32]>,
    /// The salt that is kept with it.
    pub salt: Zeroizing<[u8; 32]>,
}

/// Not to be printed.
impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MasterKey").field("version", &self.version).finish_non_exhaustive()
    }
}

/// Which key it is: `m2.n1`, or `m2.n1@1.4.0` where the node's software version is bound.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyVersion {
    /// Version of the master key.
    pub master: u32,
    /// Version of the node's key.
    pub node: u32,
    /// The software version that is part of the derivation.
    pub software: Option<String>,
}

/// A text that is no key version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key version is written as `m1.n1`, or `m1.n1@1.4.0` with a software version")]
pub struct NotAKeyVersion;

impl KeyVersion {
    /// Reads what [`fmt::Display`] writes, to the letter.
    ///
    /// # Errors
    /// [`NotAKeyVersion`].
    pub fn parse(text: &str) -> Result<Self, NotAKeyVersion> {
        let (numbers, software) = match text.split_once('@') {
            Some((numbers, software)) => (numbers, Some(software)),
            None => (text, None),
        };
        let (master, node) = numbers
            .strip_prefix('m')
            .and_then(|rest| rest.split_once(".n"))
            .ok_or(NotAKeyVersion)?;
        if software.is_some_and(|software| !is_label(software)) {
            return Err(NotAKeyVersion);
        }
        let software = software.map(str::to_owned);
        Ok(Self { master: number(master)?, node: number(node)?, software })
    }
}

/// A number from 1, in the only way to write it.
fn number(text: &str) -> Result<u32, NotAKeyVersion> {
    let number: u32 = text.parse().map_err(|_| NotAKeyVersion)?;
    if number > 0 && number.to_string() == text { Ok(number) } else { Err(NotAKeyVersion) }
}

impl fmt::Display for KeyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "m{}.n{}", self.master, self.node)?;
        match &self.software {
            Some(software) => write!(f, "@{software}"),
            None => Ok(()),
        }
    }
}

impl TryFrom<String> for KeyVersion {
    type Error = NotAKeyVersion;

    fn try_from(text: String) -> Result<Self, NotAKeyVersion> {
        Self::parse(&text)
    }
}

impl From<KeyVersion> for String {
    fn from(version: KeyVersion) -> Self {
        version.to_string()
    }
}

/// HKDF-SHA256 to 32 bytes.
pub(super) fn expand(salt: Option<&[u8]>, ikm: &[u8], info: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    let done = Hkdf::<sha2::Sha256>::new(salt, ikm).expand(info, key.as_mut());
    // RFC 5869 section 2.3: only more than 255 blocks are too many.
    debug_assert!(done.is_ok());
    key
}

/// The runtime key of a node: `salt` and `ikm` are the master key's,
///
/// ```text
/// info = lp("runtime-capsule/v1") ‖ lp("runtime-key") ‖ lp(cluster) ‖ lp(nodeId)
///        ‖ lp(SHA-256(fingerprint)) ‖ u32be(masterVersion) ‖ u32be(nodeKeyVersion) ‖ u16be(32)
///        [‖ lp(software version)]
/// ```
///
/// and 32 bytes come out.
#[must_use]
pub fn derive(
    master: &MasterKey,
    cluster: &str,
    node: &NodeId,
    fingerprint: &Sha256,
    version: &KeyVersion,
) -> Zeroizing<[u8; 32]> {
    let mut info = Vec::with_capacity(192);
    lp(&mut info, PROTOCOL);
    lp(&mut info, b"runtime-key");
    lp(&mut info, cluster.as_bytes());
    lp(&mut info, node.as_str().as_bytes());
    lp(&mut info, &fingerprint.0);
    info.extend_from_slice(&master.version.to_be_bytes());
    info.extend_from_slice(&version.node.to_be_bytes());
    info.extend_from_slice(&KEY_BYTES.to_be_bytes());
    if let Some(software) = &version.software {
        lp(&mut info, software.as_bytes());
    }
    expand(Some(master.salt.as_slice()), master.master.as_slice(), &info)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits = hex.as_bytes().chunks(2);
        digits
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    #[test]
    fn the_vectors_of_rfc_5869() {
        // Appendix A, cases 1 to 3, their first 32 bytes.
        let long = |from: u8, to: u8| (from..=to).collect::<Vec<u8>>();
        for (ikm, salt, info, expect) in [
            (
                vec![0x0b; 22],
                Some(bytes("000102030405060708090a0b0c")),
                bytes("f0f1f2f3f4f5f6f7f8f9"),
                "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf",
            ),
            (
                long(0x00, 0x4f),
                Some(long(0x60, 0xaf)),
                long(0xb0, 0xff),
                "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c",
            ),
            (
                vec![0x0b; 22],
                None,
                Vec::new(),
                "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d",
            ),
        ] {
            assert_eq!(hex(expand(salt.as_deref(), &ikm, &info).as_slice()), expect);
        }
    }

    fn master() -> MasterKey {
        let mut master = [0; 32];
        for (value, byte) in (0..).zip(&mut master) {
            *byte = value;
        }
        let salt = Sha256::of(b"capsule-test-salt").0;
        MasterKey { version: 1, master: master.into(), salt: salt.into() }
    }

    #[test]
    fn the_vectors_of_the_design() {
        let node = NodeId::parse("node-1").unwrap();
        let fingerprint = Sha256::of(b"test-fingerprint");
        for (version, expect) in [
            ("m1.n1", "2c0dd27bd35d3412d6e487bc2bd8cefe9eafd67862a402b22f6f0d325266481e"),
            ("m1.n1@1.2.3", "e163ec84f732639674d722152d4d7b774e08f3dedec3c3abbfeffc359534bd09"),
        ] {
            let version = KeyVersion::parse(version).unwrap();
            let key = derive(&master(), "test-cluster", &node, &fingerprint, &version);
            assert_eq!(hex(key.as_slice()), expect, "{version}");
        }
    }

    #[test]
    fn every_part_is_part_of_the_key() {
        let fingerprint = Sha256::of(b"test-fingerprint");
        let with = |cluster: &str, node: &str, fingerprint: &Sha256, version: &str| {
            let (node, version) =
                (NodeId::parse(node).unwrap(), KeyVersion::parse(version).unwrap());
            *derive(&master(), cluster, &node, fingerprint, &version)
        };
        let mut keys = vec![
            with("a", "b", &fingerprint, "m1.n1"),
            with("ab", "b", &fingerprint, "m1.n1"),
            with("a", "bb", &fingerprint, "m1.n1"),
            with("a", "b", &Sha256::of(b""), "m1.n1"),
            with("a", "b", &fingerprint, "m1.n2"),
            with("a", "b", &fingerprint, "m1.n1@1"),
            with("a", "b", &fingerprint, "m1.n1@2"),
        ];
        let other = MasterKey { version: 2, ..master() };
        let (node, version) = (NodeId::parse("b").unwrap(), KeyVersion::parse("m2.n1").unwrap());
        keys.push(*derive(&other, "a", &node, &fingerprint, &version));
        let count = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), count);
    }

    #[test]
    fn key_versions() {
        for text in ["m1.n1", "m12.n4294967295", "m1.n1@1.2.3", "m1.n1@2026-11+a:b_c"] {
            assert_eq!(KeyVersion::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "",
            "m1",
            "n1.m1",
            "m1.n0",
            "m01.n1",
            "m+1.n1",
            "m1.n1@",
            "m1.n1@a b",
            "m1.n1@a@b",
            "m1.n4294967296",
            "M1.n1",
            "m1.n1 ",
        ] {
            assert_eq!(KeyVersion::parse(text), Err(NotAKeyVersion), "{text}");
        }
    }
}
