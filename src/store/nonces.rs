//! Nonces that are used up, where each is good for one proof.

use std::time::Duration;

use super::replay::{MemoryReplay, ReplayFault, ReplayLog as _, Use};
use crate::policy::digest::{Jkt, Sha256};
use crate::policy::epoch::Epoch;
use crate::policy::time::UnixTime;

/// Remembers nonces that are used up, for as long as they could pass.
#[async_trait::async_trait]
pub trait SpentNonces: std::fmt::Debug + Send + Sync {
    /// Uses up the nonce with this SHA-256, in one atomic step: of any number of calls with the same
    /// one, here and at every edge that shares the memory, one gets `Ok`. `epoch` is the memory that
    /// its proof was verified for.
    ///
    /// # Errors
    /// See [`SpendFault`]; after none of them may the nonce be taken as good.
    async fn spend(&self, nonce: Sha256, epoch: Epoch, now: UnixTime) -> Result<(), SpendFault>;
}

/// Why a nonce is not good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpendFault {
    /// Another proof has used it up.
    Spent,
    /// There is no room to remember it, and none that is still good is forgotten for it.
    AtCapacity,
    /// The memory is not there, or another one.
    Down,
}

/// The memory of a single edge.
#[derive(Debug)]
pub struct MemorySpent(MemoryReplay);

impl MemorySpent {
    /// A memory of at most `capacity` nonces, each kept for `ttl` at least. `key` is fresh randomness.
    #[must_use]
    pub fn new(key: &[u8; 32], ttl: Duration, capacity: usize) -> Self {
        Self(MemoryReplay::new(key, ttl, capacity))
    }
}

#[async_trait::async_trait]
impl SpentNonces for MemorySpent {
    async fn spend(&self, nonce: Sha256, epoch: Epoch, now: UnixTime) -> Result<(), SpendFault> {
        // A set of hashes, like that of proofs.
        let used = Use { jkt: Jkt(nonce), jti: "", epoch };
        self.0.check_and_insert(used, now).await.map_err(|fault| match fault {
            ReplayFault::Replayed => SpendFault::Spent,
            ReplayFault::AtCapacity => SpendFault::AtCapacity,
            ReplayFault::Down => SpendFault::Down,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn once_each_and_no_more_than_there_is_room_for() {
        let spent = MemorySpent::new(&[1; 32], Duration::from_secs(600), 2);
        let epoch = Epoch(Sha256([9; 32]));
        let at = |secs: i64| UnixTime::from_secs(1_800_000_000 + secs);
        for (nonce, secs, expect) in [
            (1, 0, Ok(())),
            (1, 600, Err(SpendFault::Spent)),
            (2, 0, Ok(())),
            (3, 0, Err(SpendFault::AtCapacity)),
            (1, 0, Err(SpendFault::Spent)),
        ] {
            assert_eq!(spent.spend(Sha256([nonce; 32]), epoch, at(secs)).await, expect, "{nonce}");
        }
    }
}
