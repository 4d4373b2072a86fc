//! What keys are called, and in which slot of a Cluster they lie.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::policy::digest::Sha256;

/// How many hash tags there are. Each has a mark of its own, so that a write and the look at the mark
/// are for one slot.
pub const TAGS: usize = 256;
/// Slots of a Cluster.
pub(super) const SLOTS: u16 = 16384;

/// One of the [`TAGS`] places that all keys lie in. Keys of one tag lie on one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag(u8);

impl Tag {
    /// The first, for what is there once.
    pub const FIRST: Self = Self(0);

    /// Every tag.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..=u8::MAX).map(Self)
    }

    /// The tag of what has this hash.
    #[must_use]
    pub fn of(hash: &Sha256) -> Self {
        let [.., last] = hash.0;
        Self(last)
    }

    pub(super) fn index(self) -> usize {
        self.0.into()
    }
}

/// Names of keys under one prefix: `{<prefix>:<tag>}:<name>`.
#[derive(Clone, Debug)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The key of this name at this tag.
    #[must_use]
    pub fn named(&self, tag: Tag, name: &str) -> String {
        let mut key = String::with_capacity(self.prefix.len() + name.len() + 8);
        // Writing to a text cannot fail.
        let _ = write!(key, "{{{}:{}}}:{name}", self.prefix, tag.0);
        key
    }

    /// The key of what has this hash, at the hash's tag: `kind` keeps apart what would share one.
    #[must_use]
    pub fn hashed(&self, kind: &str, hash: &Sha256) -> String {
        let (half, _) = hash.0.split_at(16);
        self.named(Tag::of(hash), &format!("{kind}:{}", URL_SAFE_NO_PAD.encode(half)))
    }

    /// What all keys of such names match, at whichever tag: a prefix has none of a pattern's characters.
    #[must_use]
    pub fn pattern(&self, name: &str) -> String {
        format!("{{{}:*}}:{name}", self.prefix)
    }

    /// The name in a key; `None` for one that is not of this prefix.
    #[must_use]
    pub fn name<'a>(&self, key: &'a str) -> Option<&'a str> {
        let rest = key.strip_prefix('{')?.strip_prefix(&self.prefix)?.strip_prefix(':')?;
        let (tag, name) = rest.split_once("}:")?;
        tag.parse::<u8>().ok().map(|_| name)
    }

    /// The slot that a tag's keys lie in.
    pub(super) fn slot(&self, tag: Tag) -> u16 {
        crc16(format!("{}:{}", self.prefix, tag.0).as_bytes()) % SLOTS
    }
}

/// CRC-16/XMODEM, by which a Cluster spreads its keys.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_the_cluster_s() {
        // The specification's own example.
        assert_eq!(crc16(b"123456789"), 0x31c3);
        // What `CLUSTER KEYSLOT '{holdfast:0}:mark'`, and so on, says at a server of Redis 7.0.
        let keys = Keys::new("holdfast");
        for (tag, slot) in [(0, 12262), (1, 16327), (7, 7937), (128, 16120), (255, 12178)] {
            assert_eq!(keys.slot(Tag(tag)), slot, "{}", keys.named(Tag(tag), "mark"));
        }
    }

    #[test]
    fn a_key_says_where_it_lies_and_nothing_of_what_it_is_for() {
        let keys = Keys::new("holdfast");
        let hash = Sha256::of(b"a jti");
        let tag = Tag::of(&hash);
        assert_eq!(keys.named(Tag(7), "mark"), "{holdfast:7}:mark");
        assert_eq!(keys.name("{holdfast:7}:t:x"), Some("t:x"));
        for other in ["{holdfast2:7}:t", "{holdfast:256}:t", "holdfast:7:t", "{holdfast:7}t"] {
            assert_eq!(keys.name(other), None, "{other}");
        }
        let key = keys.hashed("r", &hash);
        assert!(key.starts_with(&format!("{{holdfast:{}}}:r:", tag.0)), "{key}");
        assert!(key.len() < 48 && !key.contains("jti"));
    }
}
