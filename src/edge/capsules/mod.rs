//! Runtime capsules, answered by the edge itself.
//!
//! ```text
//! path and host ─► find ─► credentials ─► record ─► stages 1 to 3 (pure) ─► proof ─► stage 4
//!                                         └ refused: a failure that counts, the same for everybody
//!   ─► one transaction: record again, all eight stages (pure), new record, audit line
//!   ─► durable ─► key, seal, envelope ─► answer
//! ```
//!
//! Invariant: what is answered was decided in the transaction that made it durable; what was decided
//! before it only ever refuses.

mod answer;
mod ask;
mod decide;
mod grant;
mod seal;
mod telemetry;
mod tell;

use std::sync::Arc;

use super::view::Target;
use crate::config;
use crate::policy::capsule::pipeline::Policy;
use crate::policy::target::{Origin, split_authority};
use crate::store::budget::Budget;
use crate::store::failures::Failures;
use crate::store::keys::KeyRing;
use crate::store::networks::Networks;
use crate::store::registry::Registry;
use crate::telemetry::metrics::StoreStatus;

pub(super) use answer::{From, send};
pub(super) use tell::Told;

/// Where capsules are asked for.
pub(crate) const CAPSULE: &str = "/api/runtime/capsule/";
/// Where telemetry goes.
pub(crate) const TELEMETRY: &str = "/api/runtime/telemetry/";
/// The keys that envelopes are verified with.
pub(crate) const JWKS: &str = "/.well-known/holdfast/capsule-jwks.json";

/// What a path that cannot be read is about, where it is about a node.
pub(super) fn named(path: &[u8]) -> Option<&'static str> {
    [CAPSULE, TELEMETRY].into_iter().find(|prefix| path.starts_with(prefix.as_bytes()))
}

/// Everything that capsules need.
#[derive(Debug)]
pub struct Capsules {
    cluster: String,
    policy: Arc<Policy>,
    sites: Vec<Site>,
    ring: Arc<KeyRing>,
    networks: Arc<Networks>,
    registry: Registry,
    failures: Arc<Failures>,
    budget: Arc<Budget>,
}

/// What lasts longer than one configuration.
#[derive(Clone, Debug)]
pub struct State {
    /// Nodes and the audit log.
    pub registry: Registry,
    /// The failures so far.
    pub failures: Arc<Failures>,
    /// The refusals that may still be written down.
    pub budget: Arc<Budget>,
}

/// An origin that nodes ask at.
#[derive(Debug)]
struct Site {
    origin: usize,
    host: String,
    port: u16,
    default_port: u16,
}

/// What a request of the edge's own is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A capsule.
    Capsule,
    /// Telemetry.
    Telemetry,
    /// The envelope keys.
    Jwks,
}

/// A request that the edge answers itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Own {
    /// What it is for.
    pub(super) what: What,
    /// The origin that it came to.
    pub(super) origin: usize,
    /// The node, as the path names it.
    pub(super) node: String,
}

impl Capsules {
    /// What `settings` makes of them.
    #[must_use]
    pub fn new(
        settings: &config::Capsules,
        origins: &[Origin],
        ring: Arc<KeyRing>,
        networks: Networks,
        state: State,
    ) -> Self {
        let site = |index: &usize| {
            let origin = origins.get(*index)?;
            let default_port = if origin.is_https() { 443 } else { 80 };
            let (_, authority) = origin.as_str().split_once("://")?;
            let (host, port) = split_authority(authority)?;
            let port = port.unwrap_or(default_port);
            Some(Site { origin: *index, host, port, default_port })
        };
        Self {
            cluster: settings.cluster.clone(),
            policy: Arc::new(settings.policy.clone()),
            sites: settings.origins.iter().filter_map(site).collect(),
            ring,
            networks: Arc::new(networks),
            registry: state.registry,
            failures: state.failures,
            budget: state.budget,
        }
    }

    /// Nodes and the audit log.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// How the store stands, and how many nodes have each status.
    pub async fn status(&self) -> StoreStatus {
        let nodes = self.registry.read(|reader| reader.count()).await;
        self.registry.look_again().await;
        let suppressed = self.budget.suppressed();
        StoreStatus { up: self.registry.is_up(), nodes: nodes.unwrap_or_default(), suppressed }
    }

    /// Versions of the master keys, the newest last.
    #[must_use]
    pub fn masters(&self) -> Vec<u32> {
        self.ring.masters()
    }

    /// Whether the edge answers a request to `target` itself, and what it is for.
    pub(super) fn find(&self, target: &Target) -> Option<Own> {
        let path = target.path.as_str();
        let (what, node) = if let Some(node) = path.strip_prefix(CAPSULE) {
            (What::Capsule, node)
        } else if let Some(node) = path.strip_prefix(TELEMETRY) {
            (What::Telemetry, node)
        } else if path == JWKS {
            (What::Jwks, "")
        } else {
            return None;
        };
        let (host, port) = split_authority(&target.authority)?;
        let is_here =
            |site: &&Site| site.host == host && site.port == port.unwrap_or(site.default_port);
        let origin = self.sites.iter().find(is_here)?.origin;
        Some(Own { what, origin, node: node.to_owned() })
    }
}
