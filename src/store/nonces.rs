//! Nonces that are used up, where each is good for one proof.

use std::sync::Arc;
use std::time::Duration;

use super::replay::{MemoryReplay, ReplayFault, ReplayLog as _, Use};
use crate::policy::digest::{Jkt, Sha256};
use crate::policy::epoch::Epoch;
use crate::policy::time::UnixTime;
use crate::store::tally::Tally;

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

/// A share of the memory of a single edge.
#[derive(Debug)]
pub struct MemorySpent {
    all: Arc<MemoryReplay>,
    own: Tally,
}

impl MemorySpent {
    /// The shares of one memory, each of so many nonces at most, so that none fills another. A nonce is kept
    /// for `ttl` at least. `key` is fresh randomness.
    #[must_use]
    pub fn shares<const N: usize>(key: &[u8; 32], ttl: Duration, entries: [usize; N]) -> [Self; N] {
        let all = Arc::new(MemoryReplay::new(key, ttl, entries.iter().sum()));
        // As long as the memory keeps one at most: no share has more there than it counts.
        let life = ttl.saturating_add(ttl / 4);
        entries.map(|entries| Self { all: Arc::clone(&all), own: Tally::new(life, entries) })
    }
}

#[async_trait::async_trait]
impl SpentNonces for MemorySpent {
    async fn spend(&self, nonce: Sha256, epoch: Epoch, now: UnixTime) -> Result<(), SpendFault> {
        let counted = self.own.take().ok_or(SpendFault::AtCapacity)?;
        // A set of hashes, like that of proofs.
        let used = Use { jkt: Jkt(nonce), jti: "", epoch };
        let spent = self.all.check_and_insert(used, now).await;
        spent.map_err(|fault| {
            self.own.give_back(counted);
            match fault {
                ReplayFault::Replayed => SpendFault::Spent,
                ReplayFault::AtCapacity => SpendFault::AtCapacity,
                ReplayFault::Down => SpendFault::Down,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn once_each_and_no_more_than_its_share() {
        let shares = MemorySpent::shares(&[1; 32], Duration::from_secs(600), [2, 1]);
        let epoch = Epoch(Sha256([9; 32]));
        let at = |secs: i64| UnixTime::from_secs(1_800_000_000 + secs);
        for (share, nonce, secs, expect) in [
            (0, 1, 0, Ok(())),
            (0, 1, 600, Err(SpendFault::Spent)),
            (1, 1, 600, Err(SpendFault::Spent)),
            (1, 2, 0, Ok(())),
            (1, 3, 0, Err(SpendFault::AtCapacity)),
            (0, 2, 0, Err(SpendFault::Spent)),
            (0, 3, 0, Ok(())),
            (0, 4, 0, Err(SpendFault::AtCapacity)),
        ] {
            let found = shares[share].spend(Sha256([nonce; 32]), epoch, at(secs)).await;
            assert_eq!(found, expect, "{nonce} of share {share}");
        }
    }
}
