//! What edges may share: in this process, or in Redis.

use std::sync::Arc;

use tokio::runtime::Handle;

use super::{StartError, random};
use crate::config::{Config, NonceStore};
use crate::store::bindings::{Bindings, SharedBindings, Waits};
use crate::store::failures::{FailureLimits, Failures};
use crate::store::nonces::{MemorySpent, SpentNonces};
use crate::store::redis::{Partition, Redis, RedisReplay, RedisSpent};
use crate::store::registry::Registry;
use crate::store::replay::{MemoryReplay, ReplayLog};
use crate::store::serving;

/// What tokens are bound to: in this edge's file, or where other edges look as well.
pub(super) fn bindings(
    redis: Option<&Redis>,
    registry: Registry,
    runtime: &Handle,
) -> Arc<dyn Bindings> {
    match redis {
        Some(redis) => {
            Arc::new(SharedBindings::start(redis.clone(), registry, Waits::default(), runtime))
        }
        None => Arc::new(registry),
    }
}

/// The log of some proofs: here, or where other edges look as well.
pub(super) fn replay(
    config: &Config,
    shared: Option<&Redis>,
    partition: Partition,
    entries: usize,
) -> Result<Arc<dyn ReplayLog>, StartError> {
    let rules = &config.dpop;
    Ok(match shared {
        Some(redis) => Arc::new(RedisReplay::new(redis.clone(), partition, rules, entries)),
        None => Arc::new(MemoryReplay::new(&random()?, rules.replay_window, entries)),
    })
}

/// Of one memory the room of all but token endpoints, and theirs.
pub(super) type Spent = (Arc<dyn SpentNonces>, Arc<dyn SpentNonces>);

/// The nonces that are used up, where each is good once.
pub(super) fn spent_nonces(
    config: &Config,
    redis: Option<&Redis>,
) -> Result<Option<Spent>, StartError> {
    let rules = &config.dpop;
    let limits = &config.edge.limits;
    let entries = [limits.replay_entries, limits.token_replay_entries];
    Ok(match (config.nonce_store, redis) {
        (NonceStore::Stateless, _) => None,
        (NonceStore::Redis, Some(redis)) => {
            let [all, grants] = entries.map(|most| RedisSpent::new(redis.clone(), rules, most));
            Some((Arc::new(all), Arc::new(grants)))
        }
        (NonceStore::Memory | NonceStore::Redis, _) => {
            let ttl = rules.nonce_ttl.unwrap_or_default();
            let [all, grants] = MemorySpent::shares(&random()?, ttl, entries);
            Some((Arc::new(all), Arc::new(grants)))
        }
    })
}

/// Failures, or what else is counted, here and where other edges count.
pub(super) fn failures(
    limits: FailureLimits,
    name: &'static str,
    redis: Option<&Redis>,
    runtime: &Handle,
) -> Result<Failures, StartError> {
    let failures = Failures::new(limits, random()?);
    Ok(match redis {
        Some(redis) => failures.shared(redis.clone(), name, runtime),
        None => failures,
    })
}

/// Says at servers that an edge serves.
pub(super) fn presence(
    redis: Option<&Redis>,
    runtime: &Handle,
) -> Result<Option<serving::Presence>, StartError> {
    let Some(redis) = redis else { return Ok(None) };
    let edge: String = random()?.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    Ok(Some(serving::Presence::start(redis.clone(), edge, runtime)))
}
