//! What the metrics of one configuration range over.

use crate::config::Config;
use crate::edge::ends;
use crate::policy::time::UnixTime;
use crate::store::keys::{KeyRing, Kind};
use crate::telemetry::metrics::{ByMemory, Ends, KeyTerm, Metrics, Shape};

/// The metrics of `config`, whose capsules have the keys of `ring`. They go on with those of `before`.
pub(super) fn of(
    config: &Config,
    ring: Option<&KeyRing>,
    before: Option<&Metrics>,
) -> prometheus::Result<Metrics> {
    let tenants: Vec<_> = config.rules.tenants.iter().map(|tenant| tenant.name.as_str()).collect();
    let listeners: Vec<_> =
        config.edge.listeners.iter().map(|it| (it.name.as_str(), it.max_connections)).collect();
    let issuers: Vec<_> =
        config.issuers.iter().map(|issuer| issuer.rules.issuer.as_str()).collect();
    let upstreams: Vec<_> = config.upstreams.iter().map(|it| it.name.as_str()).collect();
    let limits = &config.edge.limits;
    let (resource, token) = (limits.replay_entries, limits.token_replay_entries);
    let shape = Shape {
        tenants: &tenants,
        listeners: &listeners,
        issuers: &issuers,
        upstreams: &upstreams,
        replay_capacity: ByMemory { resource, token, node: resource },
        ends: Ends { files: ends::of(config), keys: due(config, ring) },
    };
    match before {
        Some(before) => before.reshaped(&shape),
        None => Metrics::new(&shape),
    }
}

/// When the newest key of each kind is due to be followed by another.
fn due(config: &Config, ring: Option<&KeyRing>) -> Vec<KeyTerm> {
    let Some((settings, ring)) = config.capsules.as_ref().zip(ring) else { return Vec::new() };
    let due = |(kind, since): (Kind, UnixTime)| KeyTerm {
        kind: kind.name(),
        ends: since.plus(settings.key_max_age),
    };
    ring.newest().into_iter().map(due).collect()
}
