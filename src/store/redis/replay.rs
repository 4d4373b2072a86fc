//! Proofs and nonces that were used, at every edge that shares the store.
//!
//! A use is `SET <key> "" NX PX <window>` and, behind it in the same round trip, `GET` of the tag's
//! mark. It is the first one only when `SET` says `OK` *and* the mark is that of the epoch which the
//! proof was verified for ([`Redis::commit_in`]): a key that was free because the server had been wiped
//! does not count as free.
//!
//! Nothing is sent twice. Where an answer is lost the proof may be noted or not; it is refused, as
//! [`ReplayFault::Down`], and the client comes again with another.

use std::time::Duration;

use redis::{Pipeline, Value};

use super::{Fault, Redis, Tag};
use crate::policy::digest::{Sha256, lp};
use crate::policy::epoch::Epoch;
use crate::policy::time::UnixTime;
use crate::store::nonces::{SpendFault, SpentNonces};
use crate::store::replay::{ReplayFault, ReplayLog, Use};

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

/// A replay log that edges share. The server's memory is its capacity.
#[derive(Clone, Debug)]
pub struct RedisReplay {
    redis: Redis,
    partition: Partition,
    window: Duration,
}

impl RedisReplay {
    /// The log of one partition, which holds each proof for `window`.
    #[must_use]
    pub fn new(redis: Redis, partition: Partition, window: Duration) -> Self {
        Self { redis, partition, window }
    }
}

#[async_trait::async_trait]
impl ReplayLog for RedisReplay {
    async fn check_and_insert(&self, used: Use<'_>, _now: UnixTime) -> Result<(), ReplayFault> {
        let mut text = Vec::with_capacity(64);
        for part in [self.partition.name().as_bytes(), &used.jkt.0.0, used.jti.as_bytes()] {
            lp(&mut text, part);
        }
        let (name, hash) = (self.partition.name(), Sha256::of(&text));
        match once(&self.redis, used.epoch, name, &hash, self.window).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(ReplayFault::Replayed),
            Err(Fault::Full) => Err(ReplayFault::AtCapacity),
            Err(Fault::Down) => Err(ReplayFault::Down),
        }
    }

    /// None: they are the server's to count.
    fn live(&self) -> usize {
        0
    }
}

/// Nonces that are used up, at every edge.
#[derive(Clone, Debug)]
pub struct RedisSpent {
    redis: Redis,
    ttl: Duration,
}

impl RedisSpent {
    /// A memory that keeps each nonce for `ttl`, as long as it is good.
    #[must_use]
    pub fn new(redis: Redis, ttl: Duration) -> Self {
        Self { redis, ttl }
    }
}

#[async_trait::async_trait]
impl SpentNonces for RedisSpent {
    async fn spend(&self, nonce: Sha256, epoch: Epoch, _now: UnixTime) -> Result<(), SpendFault> {
        // A second more, for edges whose clocks differ.
        let ttl = self.ttl + Duration::from_secs(1);
        match once(&self.redis, epoch, "n", &nonce, ttl).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(SpendFault::Spent),
            Err(Fault::Full) => Err(SpendFault::AtCapacity),
            Err(Fault::Down) => Err(SpendFault::Down),
        }
    }
}

/// Whether this is the first time in `epoch` that `kind` has this hash.
async fn once(
    redis: &Redis,
    epoch: Epoch,
    kind: &str,
    hash: &Sha256,
    keep: Duration,
) -> Result<bool, Fault> {
    let mut pipeline = Pipeline::with_capacity(2);
    let keep_ms = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX).max(1);
    let key = redis.keys().hashed(kind, hash);
    pipeline.cmd("SET").arg(key).arg("").arg("NX").arg("PX").arg(keep_ms);
    match redis.commit_in(epoch, Tag::of(hash), pipeline).await?.as_slice() {
        [Value::Okay] => Ok(true),
        [Value::Nil] => Ok(false),
        _ => Err(Fault::Down),
    }
}
