//! Which memory of proofs a decision rests on: a nonce of one is none of another.

use std::fmt;

use super::digest::Sha256;
use super::time::UnixTime;

/// Which memory it is. Two that are the same remember the same proofs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(pub Sha256);

impl fmt::Display for Epoch {
    /// Its first characters: enough to tell it from the one before.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        f.write_str(text.get(..12).unwrap_or(&text))
    }
}

/// Which epochs are given up, with what is known from them alone: those that had begun before a time, but
/// for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// The time.
    pub before: UnixTime,
    /// The epoch that is not.
    pub but: Epoch,
}

impl GivenUp {
    /// Whether an epoch is given up that began at `begun`.
    #[must_use]
    pub fn is(&self, epoch: Epoch, begun: UnixTime) -> bool {
        epoch != self.but && begun < self.before
    }
}

/// A memory, and since when it has been one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reign {
    /// Which it is.
    pub epoch: Epoch,
    /// Since when: what was admitted until then, it may not know.
    pub since: UnixTime,
}

impl Reign {
    /// The memory of a process that began at `since`; `random` is its own fresh randomness.
    #[must_use]
    pub fn of_process(random: [u8; 32], since: UnixTime) -> Self {
        Self { epoch: Epoch(Sha256(random)), since }
    }
}
