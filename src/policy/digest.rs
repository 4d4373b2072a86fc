//! SHA-256 values as the standards write them.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use subtle::ConstantTimeEq as _;

/// Adds `lp(x) = u16be(len) ‖ x`: what is joined so can be read apart again, so that no two inputs give
/// one text. Nothing that comes here is longer than a header field.
pub fn lp(text: &mut Vec<u8>, part: &[u8]) {
    let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
    text.extend_from_slice(&length.to_be_bytes());
    text.extend_from_slice(part);
}

/// A SHA-256 value. Written as base64url without padding, 43 characters (`ath`, `jkt`, `x5t#S256`).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sha256(pub [u8; 32]);

impl Sha256 {
    /// The SHA-256 of `data`.
    #[must_use]
    pub fn of(data: &[u8]) -> Self {
        #[cfg(test)]
        made::COUNT.set(made::COUNT.get() + 1);
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, data);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }

    /// Reads 43 characters of strict base64url; `None` for padding, other alphabets, stray bits
    /// in the last character and any other length.
    #[must_use]
    pub fn from_base64url(text: &str) -> Option<Self> {
        if text.len() != 43 {
            return None;
        }
        let mut bytes = [0; 32];
        let written = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        (written == bytes.len()).then_some(Self(bytes))
    }

    /// Whether both are the same value, in time that does not depend on where they differ.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 43];
        URL_SAFE_NO_PAD.encode_slice(self.0, &mut text).map_err(|_| fmt::Error)?;
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Sha256 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let wrong = || de::Error::custom("a SHA-256 value is 43 characters of base64url");
        Self::from_base64url(&text).ok_or_else(wrong)
    }
}

/// How many hashes were made on this thread, so that a test can hold two ways against each other.
#[cfg(test)]
pub(crate) mod made {
    std::thread_local! {
        pub(crate) static COUNT: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    }
}

/// The RFC 7638 SHA-256 thumbprint of a public key (`cnf.jkt`, RFC 9449 section 6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Jkt(pub Sha256);

/// The SHA-256 of a certificate's DER (`cnf.x5t#S256`, RFC 8705 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct X5tS256(pub Sha256);

impl fmt::Display for Jkt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for X5tS256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
