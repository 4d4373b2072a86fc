//! A part of a chain in a file of its own: what stands in its first line, and what the chain says of one
//! that was moved out of the store.

use serde::{Deserialize, Serialize};

use super::{Checkpoint, Head};
use crate::policy::digest::Sha256;
use crate::policy::time::UnixTime;

/// The first line of a file with a part of a chain; the part's lines follow, as they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Preface {
    /// The version of this form.
    #[serde(rename = "holdfastAudit")]
    version: Version,
    /// The chain's id.
    pub chain: String,
    /// The number of its first line.
    pub from: u64,
    /// Of its last.
    pub to: u64,
    /// The SHA-256 of the line before its first.
    pub prev: Sha256,
    /// The last checkpoint before its first line, where there is one.
    pub checkpoint: Option<Checkpoint>,
    /// The signature over that: a compact JWS.
    pub jws: Option<String>,
    /// When it was written.
    pub written: UnixTime,
}

/// The only version there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
struct Version;

impl From<Version> for u32 {
    fn from(_: Version) -> Self {
        1
    }
}

impl TryFrom<u32> for Version {
    type Error = String;

    fn try_from(version: u32) -> Result<Self, String> {
        if version == 1 { Ok(Self) } else { Err(format!("form {version} is of a later version")) }
    }
}

impl Preface {
    /// That of the lines after `before`, up to `to`. `signed` is the last checkpoint before them with its
    /// signature.
    #[must_use]
    pub fn new(
        chain: &str,
        before: Head,
        to: u64,
        signed: Option<(Checkpoint, String)>,
        written: UnixTime,
    ) -> Self {
        let (checkpoint, jws) = signed.unzip();
        let (chain, from) = (chain.to_owned(), before.seq.saturating_add(1));
        Self { version: Version, chain, from, to, prev: before.hash, checkpoint, jws, written }
    }

    /// Reads a line; `None` for one that is none.
    #[must_use]
    pub fn read(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok().filter(|read: &Self| read.from >= 1 && read.to >= read.from)
    }

    /// The head that its first line follows.
    #[must_use]
    pub fn before(&self) -> Head {
        Head { seq: self.from.saturating_sub(1), hash: self.prev }
    }
}

/// What a line of [`Kind::Rotation`](super::Kind::Rotation) says of the lines that are in the store no
/// longer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rotated {
    /// The file's name.
    pub file: String,
    /// The number of its first line.
    pub from: u64,
    /// Its last line: number and SHA-256.
    pub last: Head,
}
