//! Proofs and nonces that were used, at every edge that shares the store.
//!
//! A use is `SET <key> "" NX PX <time>` and, behind it in the same round trip, `GET` of the tag's
//! mark. It is the first one only when `SET` says `OK` *and* the mark is that of the epoch which the
//! proof was verified for ([`Redis::commit_in`]): a key that was free because the server had been wiped
//! does not count as free.
//!
//! Nothing is sent twice. Where an answer is lost the proof may be noted or not; it is refused, as
//! [`ReplayFault::Down`], and the client comes again with another.
//!
//! # How much of the server an edge takes
//!
//! At token endpoints any fresh key makes a proof that holds. A server that such proofs fill takes nothing
//! more from anybody, so each edge counts what it has put there itself, each partition apart, for as long as
//! the keys are kept ([`Tally`]), and refuses what is more. It counts before it sends, and what it sends in
//! vain not: a proof that was used before, or a server without room. Where nobody knows it stays counted.
//! An edge that was started anew begins at none, while what it had put before is still there.
//!
//! So the server needs memory for the sum of the entries that its edges may put, at 160 to 180 bytes each
//! (`benches/SCALE.md`), and for as many again where all edges are started anew within a proof's time.

use std::time::Duration;

use redis::{Pipeline, Value};

use super::{Fault, Redis, Tag};
use crate::policy::digest::{Sha256, lp};
use crate::policy::epoch::Epoch;
use crate::policy::proof::ProofRules;
use crate::policy::time::UnixTime;
use crate::store::nonces::{SpendFault, SpentNonces};
use crate::store::replay::{ReplayFault, ReplayLog, Use};
use crate::store::tally::Tally;

/// Whose proofs they are: none of one is taken for one of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partition {
    /// Those at resources.
    Resources,
    /// Those at token endpoints.
    Grants,
    /// Those that nodes show.
    Nodes,
}

impl Partition {
    /// What its keys are called.
    fn name(self) -> &'static str {
        match self {
            Self::Resources => "r",
            Self::Grants => "g",
            Self::Nodes => "c",
        }
    }
}

/// What edges' clocks may differ by, where clients' may not differ by more.
const LEAST_APART: Duration = Duration::from_secs(5);

/// What edges' clocks may differ by, given what is conceded to clients'.
#[must_use]
pub fn apart(clock_skew: Duration) -> Duration {
    clock_skew.max(LEAST_APART)
}

/// How long the server keeps what is good for `good_for`.
///
/// Each edge tells by its own clock whether a proof or a nonce is still good, the server by its own when a key
/// ends. What was used at one edge is good at another, whose clock is behind, for as much longer as the two
/// differ; and a server's clock that is set forward a little ends keys early. Neither may outlive its key, so
/// that is kept for as long as clocks may be apart on top: what is conceded to clients', and no less than 5 s.
/// (In the memory of one process one clock tells both.)
fn kept(good_for: Duration, rules: &ProofRules) -> Duration {
    good_for.saturating_add(apart(rules.clock_skew))
}

/// What an edge puts at the server, each for the same time.
#[derive(Debug)]
struct Puts {
    redis: Redis,
    keep: Duration,
    own: Tally,
}

impl Puts {
    fn new(redis: Redis, keep: Duration, entries: usize) -> Self {
        Self { redis, keep, own: Tally::new(keep, entries) }
    }

    /// Whether this is the first time in `epoch` that `kind` has this hash.
    ///
    /// # Errors
    /// [`Fault::Full`] also where this edge has put as many as it may.
    async fn once(&self, epoch: Epoch, kind: &str, hash: &Sha256) -> Result<bool, Fault> {
        // What is not sent is not put. A server that is gone for a minute must not leave a count behind that
        // refuses everybody for the time that keys are kept.
        if !self.redis.takes(epoch, Tag::of(hash)) {
            return Err(Fault::Down);
        }
        let counted = self.own.take().ok_or(Fault::Full)?;
        let first = self.put(epoch, kind, hash).await;
        // Certainly not put. Of `Down` nobody knows.
        if matches!(first, Ok(false) | Err(Fault::Full)) {
            self.own.give_back(counted);
        }
        first
    }

    async fn put(&self, epoch: Epoch, kind: &str, hash: &Sha256) -> Result<bool, Fault> {
        let mut pipeline = Pipeline::with_capacity(2);
        let keep_ms = u64::try_from(self.keep.as_millis()).unwrap_or(u64::MAX).max(1);
        let key = self.redis.keys().hashed(kind, hash);
        pipeline.cmd("SET").arg(key).arg("").arg("NX").arg("PX").arg(keep_ms);
        match self.redis.commit_in(epoch, Tag::of(hash), pipeline).await?.as_slice() {
            [Value::Okay] => Ok(true),
            [Value::Nil] => Ok(false),
            _ => Err(Fault::Down),
        }
    }
}

/// A replay log that edges share.
#[derive(Debug)]
pub struct RedisReplay {
    partition: Partition,
    puts: Puts,
}

impl RedisReplay {
    /// The log of one partition, which holds each proof for the window of `rules` and longer, and at most
    /// `entries` of this edge at a time.
    #[must_use]
    pub fn new(redis: Redis, partition: Partition, rules: &ProofRules, entries: usize) -> Self {
        let keep = kept(rules.replay_window, rules);
        Self { partition, puts: Puts::new(redis, keep, entries) }
    }
}

#[async_trait::async_trait]
impl ReplayLog for RedisReplay {
    async fn check_and_insert(&self, used: Use<'_>, _now: UnixTime) -> Result<(), ReplayFault> {
        let mut text = Vec::with_capacity(64);
        for part in [self.partition.name().as_bytes(), &used.jkt.0.0, used.jti.as_bytes()] {
            lp(&mut text, part);
        }
        match self.puts.once(used.epoch, self.partition.name(), &Sha256::of(&text)).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(ReplayFault::Replayed),
            Err(Fault::Full) => Err(ReplayFault::AtCapacity),
            Err(Fault::Down) => Err(ReplayFault::Down),
        }
    }

    fn live(&self) -> usize {
        self.puts.own.live()
    }
}

/// Nonces that are used up, at every edge.
#[derive(Debug)]
pub struct RedisSpent(Puts);

impl RedisSpent {
    /// A memory that keeps each nonce for as long as it is good by `rules` and longer, and at most `entries`
    /// of this edge at a time.
    #[must_use]
    pub fn new(redis: Redis, rules: &ProofRules, entries: usize) -> Self {
        let keep = kept(rules.nonce_ttl.unwrap_or_default(), rules);
        Self(Puts::new(redis, keep, entries))
    }
}

#[async_trait::async_trait]
impl SpentNonces for RedisSpent {
    async fn spend(&self, nonce: Sha256, epoch: Epoch, _now: UnixTime) -> Result<(), SpendFault> {
        match self.0.once(epoch, "n", &nonce).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(SpendFault::Spent),
            Err(Fault::Full) => Err(SpendFault::AtCapacity),
            Err(Fault::Down) => Err(SpendFault::Down),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_outlives_what_it_is_for_by_what_clocks_may_be_apart() {
        let secs = Duration::from_secs;
        for (skew, kept_for) in [(0, 305), (5, 305), (30, 330)] {
            let rules = ProofRules {
                proof_lifetime: secs(120),
                clock_skew: secs(skew),
                replay_window: secs(300),
                nonce_ttl: None,
                nonce_replaces_iat: false,
                nonce_single_use: false,
            };
            assert_eq!(kept(rules.replay_window, &rules), secs(kept_for), "{skew}");
            assert_eq!(kept(Duration::MAX, &rules), Duration::MAX);
        }
    }
}
