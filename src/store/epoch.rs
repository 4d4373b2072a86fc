//! Who knows which memory of proofs it is now.

use std::time::Duration;

use crate::policy::epoch::Reign;

/// How long, after another store has begun to be the one, nothing from before is served that another edge
/// may know to be revoked: within that time each edge says what it remembers.
pub const SETTLE: Duration = Duration::from_secs(5);

/// Knows which memory it is now.
pub trait Epochs: std::fmt::Debug + Send + Sync {
    /// The memory of now; `None` while nobody knows: then nothing may be admitted by a proof.
    fn current(&self) -> Option<Reign>;
}

/// The memory of one process, which is the same as long as it lives.
#[derive(Clone, Copy, Debug)]
pub struct OfProcess(pub Reign);

impl Epochs for OfProcess {
    fn current(&self) -> Option<Reign> {
        Some(self.0)
    }
}
