//! Which memory a proof is held against: a nonce of one is none of another.

use std::fmt;

use crate::policy::digest::Sha256;
use crate::policy::time::UnixTime;

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

/// A memory, and since when it has been one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reign {
    /// Which it is.
    pub epoch: Epoch,
    /// Since when: what was admitted before, it may not know.
    pub since: UnixTime,
}

/// Knows which memory it is now.
pub trait Epochs: fmt::Debug + Send + Sync {
    /// The memory of now; `None` while nobody knows: then nothing may be admitted by a proof.
    fn current(&self) -> Option<Reign>;
}

/// The memory of one process, which is always the same.
#[derive(Debug)]
pub struct OfProcess(pub Reign);

impl Epochs for OfProcess {
    fn current(&self) -> Option<Reign> {
        Some(self.0)
    }
}
