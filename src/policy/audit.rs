//! The audit log's lines and their chain.
//!
//! A line is one JSON object; each holds the SHA-256 of the line before, so that none can be taken
//! out, put in, moved or changed without breaking every hash after it. A checkpoint is a line that
//! holds a signature over the head before it, so that the end of the chain cannot be rewritten
//! either, up to the last checkpoint that somebody else has seen.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

pub use excerpt::{Preface, Rotated};

use super::digest::Sha256;
use super::time::UnixTime;

mod excerpt;

/// The hash before the first line.
pub const BEGINNING: Sha256 = Sha256([0; 32]);

/// `typ` of a checkpoint's JWS.
pub const CHECKPOINT_TYPE: &str = "holdfast-audit-checkpoint+jwt";

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// The first line of a chain: its id.
    #[serde(rename = "chain.begin")]
    Begin,
    /// A decision about a capsule, with all its inputs.
    #[serde(rename = "capsule.decision")]
    Capsule,
    /// Telemetry that was refused, or came from where it changes nothing.
    #[serde(rename = "capsule.telemetry")]
    Telemetry,
    /// An operator changed a node.
    #[serde(rename = "node.change")]
    NodeChange,
    /// An operator changed a key.
    #[serde(rename = "key.change")]
    KeyChange,
    /// An operator moved a store, or put a backup in its place.
    #[serde(rename = "store.change")]
    StoreChange,
    /// The oldest lines were moved into a file.
    #[serde(rename = "audit.rotate")]
    Rotation,
    /// A proof was used again.
    #[serde(rename = "dpop.replay")]
    Replay,
    /// A token's sender is not the one that it is bound to.
    #[serde(rename = "sender.mismatch")]
    Mismatch,
    /// A token was asked for without a proof while the temporary bypass lasted.
    #[serde(rename = "dpop.bypass")]
    Bypass,
    /// The temporary bypass was opened or closed.
    #[serde(rename = "bypass.change")]
    BypassChange,
    /// A certificate stood in for the one that a token is bound to.
    #[serde(rename = "certificate.successor")]
    Successor,
    /// An authorization server issued what is not bound as it must be.
    #[serde(rename = "authority.alarm")]
    Alarm,
    /// What the line before of this id tells of was not done, or nobody knows.
    #[serde(rename = "superseded")]
    Superseded,
    /// Refusals that were not written down one by one.
    #[serde(rename = "suppressed")]
    Suppressed,
    /// A signature over the chain so far.
    #[serde(rename = "checkpoint")]
    Checkpoint,
}

impl Kind {
    /// The name in a line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Begin => "chain.begin",
            Self::Capsule => "capsule.decision",
            Self::Telemetry => "capsule.telemetry",
            Self::NodeChange => "node.change",
            Self::KeyChange => "key.change",
            Self::StoreChange => "store.change",
            Self::Rotation => "audit.rotate",
            Self::Replay => "dpop.replay",
            Self::Mismatch => "sender.mismatch",
            Self::Bypass => "dpop.bypass",
            Self::BypassChange => "bypass.change",
            Self::Successor => "certificate.successor",
            Self::Alarm => "authority.alarm",
            Self::Superseded => "superseded",
            Self::Suppressed => "suppressed",
            Self::Checkpoint => "checkpoint",
        }
    }
}

/// A line to be: what happened, before it has a place in the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// What it is about.
    pub kind: Kind,
    /// When it happened.
    pub at: UnixTime,
    /// The decision's id, or another that finds it again.
    pub id: String,
    /// The node that it concerns; an unknown one has none.
    pub node: Option<String>,
    /// One JSON object.
    pub data: String,
}

impl Draft {
    /// A line with `data` as its content.
    #[must_use]
    pub fn new(
        kind: Kind,
        at: UnixTime,
        id: &str,
        node: Option<&str>,
        data: &impl Serialize,
    ) -> Self {
        // Only a map with keys that are no text cannot be written, and none is.
        let data = serde_json::to_string(data).unwrap_or_else(|_| "{}".to_owned());
        Self { kind, at, id: id.to_owned(), node: node.map(str::to_owned), data }
    }

    /// A line that says how many refusals were not written down one by one.
    #[must_use]
    pub fn suppressed(count: u64, at: UnixTime, id: &str) -> Self {
        Self::new(Kind::Suppressed, at, id, None, &serde_json::json!({ "count": count }))
    }

    /// The line in its place in the chain.
    #[must_use]
    pub fn line(&self, seq: u64, prev: &Sha256) -> String {
        let mut line = String::with_capacity(self.data.len() + 192);
        let text = |text: &str| serde_json::Value::from(text).to_string();
        let node = self.node.as_deref().map_or_else(|| "null".to_owned(), text);
        let (at, kind, id) = (self.at.millis(), self.kind.name(), text(&self.id));
        let written = write!(
            line,
            "{{\"seq\":{seq},\"prev\":\"{prev}\",\"at\":{at},\"kind\":\"{kind}\",\"id\":{id},\
             \"node\":{node},\"data\":{}}}",
            self.data
        );
        debug_assert!(written.is_ok());
        line
    }
}

/// A line, read.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Its number, from 1.
    pub seq: u64,
    /// The SHA-256 of the line before.
    pub prev: Sha256,
    /// When it happened.
    pub at: UnixTime,
    /// What it is about.
    pub kind: Kind,
    /// What finds it again.
    pub id: String,
    /// The node that it concerns.
    pub node: Option<String>,
    /// What happened.
    pub data: serde_json::Value,
}

/// The head of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The last line's number; 0 before the first.
    pub seq: u64,
    /// Its SHA-256.
    pub hash: Sha256,
}

impl Default for Head {
    fn default() -> Self {
        Self { seq: 0, hash: BEGINNING }
    }
}

/// What a checkpoint signs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Checkpoint {
    /// The chain's id.
    pub chain: String,
    /// The last line that it covers.
    pub seq: u64,
    /// That line's SHA-256.
    pub hash: Sha256,
    /// When.
    pub at: UnixTime,
}

/// Where a chain is broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// It cannot be read.
    #[error("line {0}: not a line of an audit log")]
    Unreadable(u64),
    /// A line is missing or is there twice.
    #[error("line {expected} is missing: {found} stands in its place")]
    Gap {
        /// The number that should stand there.
        expected: u64,
        /// The number that does.
        found: u64,
    },
    /// The line before is not the one that it was written after.
    #[error("line {0} does not follow the line before it: one of both was changed")]
    Hash(u64),
}

impl Head {
    /// The head after `line`, which must follow this one.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn follow(self, line: &str) -> Result<(Self, Line), Broken> {
        let expected = self.seq + 1;
        let read: Line = serde_json::from_str(line).map_err(|_| Broken::Unreadable(expected))?;
        if read.seq != expected {
            return Err(Broken::Gap { expected, found: read.seq });
        }
        if read.prev != self.hash {
            return Err(Broken::Hash(expected));
        }
        Ok((Self { seq: expected, hash: Sha256::of(line.as_bytes()) }, read))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(count: u64) -> Vec<String> {
        let mut head = Head::default();
        let draft = |seq: u64| {
            let at = UnixTime::from_secs(1_800_000_000);
            let node = seq.is_multiple_of(2).then_some("node-\"1\"");
            Draft::new(Kind::Replay, at, &format!("id-{seq}"), node, &serde_json::json!({"n": seq}))
        };
        let mut lines = Vec::new();
        for seq in 1..=count {
            let line = draft(seq).line(seq, &head.hash);
            head = head.follow(&line).unwrap().0;
            lines.push(line);
        }
        lines
    }

    fn verify(lines: &[String]) -> Result<Head, Broken> {
        lines.iter().try_fold(Head::default(), |head, line| head.follow(line).map(|it| it.0))
    }

    #[test]
    fn a_chain_holds() {
        assert_eq!(verify(&chain(5)).unwrap().seq, 5);
        let (_, line) = Head::default().follow(&chain(1)[0]).unwrap();
        assert_eq!(
            (line.id.as_str(), line.kind, line.data["n"].as_u64()),
            ("id-1", Kind::Replay, Some(1))
        );
    }

    #[test]
    fn what_is_changed_removed_added_or_moved_breaks_it() {
        let lines = chain(5);
        let with = |change: fn(&mut Vec<String>)| {
            let mut lines = lines.clone();
            change(&mut lines);
            verify(&lines)
        };
        assert_eq!(with(|lines| lines[2] = lines[2].replace("id-3", "id-X")), Err(Broken::Hash(4)));
        assert_eq!(with(|lines| drop(lines.remove(1))), Err(Broken::Gap { expected: 2, found: 3 }));
        assert_eq!(with(|lines| lines.swap(1, 2)), Err(Broken::Gap { expected: 2, found: 3 }));
        assert_eq!(with(|lines| lines[3].push(' ')), Err(Broken::Hash(5)));
        assert_eq!(with(|lines| lines.insert(1, "{}".into())), Err(Broken::Unreadable(2)));
        assert_eq!(with(|lines| drop(lines.remove(0))), Err(Broken::Gap { expected: 1, found: 2 }));
    }
}
