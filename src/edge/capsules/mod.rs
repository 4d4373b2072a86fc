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

use http::Method;

use super::audit::Audit;
use super::view::Target;
use crate::config;
use crate::policy::capsule::pipeline::Policy;
use crate::policy::target::{Origin, split_authority};
use crate::policy::time::UnixTime;
use crate::store::failures::{Failures, Pace};
use crate::store::keys::KeyRing;
use crate::store::networks::Networks;
use crate::store::nodes::Nodes;
use crate::store::replay::ReplayLog;
use crate::telemetry::metrics::Quarantines;

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
    sites: Sites,
    ring: Arc<KeyRing>,
    networks: Arc<Networks>,
    failures: Arc<Failures>,
    replay: Arc<dyn ReplayLog>,
    pace: Arc<Pace>,
    audit: Audit,
}

/// What lasts longer than one configuration.
#[derive(Clone, Debug)]
pub struct State {
    /// Nodes and the audit log.
    pub audit: Audit,
    /// The failures so far.
    pub failures: Arc<Failures>,
    /// The proofs so far: no resource route's, so that neither can fill the other's.
    pub replay: Arc<dyn ReplayLog>,
}

/// The origins that nodes ask at.
#[derive(Debug)]
pub struct Sites(Vec<Site>);

#[derive(Debug)]
struct Site {
    origin: usize,
    host: String,
    port: u16,
    default_port: u16,
}

/// What a request of the edge's own is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A capsule.
    Capsule,
    /// Telemetry.
    Telemetry,
    /// The envelope keys.
    Jwks,
}

/// A request that the edge answers itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// What it is for.
    pub what: What,
    /// The origin that it came to.
    pub origin: usize,
    /// The node, as the path names it.
    pub node: String,
}

impl What {
    /// Where it is asked for, a node's name left out.
    pub(super) fn pattern(self) -> &'static str {
        match self {
            Self::Capsule => "/api/runtime/capsule/{nodeId}",
            Self::Telemetry => "/api/runtime/telemetry/{nodeId}",
            Self::Jwks => JWKS,
        }
    }

    /// The methods that it takes.
    #[must_use]
    pub fn methods(self) -> &'static [Method] {
        match self {
            Self::Capsule => &[Method::GET, Method::POST],
            Self::Telemetry => &[Method::POST],
            Self::Jwks => &[Method::GET, Method::HEAD],
        }
    }
}

impl Sites {
    /// Those of `settings`.
    #[must_use]
    pub fn new(settings: &config::Capsules, origins: &[Origin]) -> Self {
        let site = |index: &usize| {
            let origin = origins.get(*index)?;
            let default_port = if origin.is_https() { 443 } else { 80 };
            let (_, authority) = origin.as_str().split_once("://")?;
            let (host, port) = split_authority(authority)?;
            let port = port.unwrap_or(default_port);
            Some(Site { origin: *index, host, port, default_port })
        };
        Self(settings.origins.iter().filter_map(site).collect())
    }

    /// Whether the edge answers a request for `path` at `authority` itself, and what it is for.
    #[must_use]
    pub fn find(&self, authority: &str, path: &str) -> Option<Own> {
        let (what, node) = if let Some(node) = path.strip_prefix(CAPSULE) {
            (What::Capsule, node)
        } else if let Some(node) = path.strip_prefix(TELEMETRY) {
            (What::Telemetry, node)
        } else if path == JWKS {
            (What::Jwks, "")
        } else {
            return None;
        };
        let (host, port) = split_authority(authority)?;
        let is_here =
            |site: &&Site| site.host == host && site.port == port.unwrap_or(site.default_port);
        let origin = self.0.iter().find(is_here)?.origin;
        Some(Own { what, origin, node: node.to_owned() })
    }
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
        Self {
            cluster: settings.cluster.clone(),
            policy: Arc::new(settings.policy.clone()),
            sites: Sites::new(settings, origins),
            ring,
            networks: Arc::new(networks),
            failures: state.failures,
            replay: state.replay,
            pace: Arc::default(),
            audit: state.audit,
        }
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &dyn Nodes {
        &*self.audit.nodes
    }

    /// Whether the nodes and the audit log are to be had.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.audit.is_up()
    }

    /// Whether the audit log is to be had.
    #[must_use]
    pub fn logs(&self) -> bool {
        self.audit.registry.is_up()
    }

    /// Versions of the master keys, the newest last.
    #[must_use]
    pub fn masters(&self) -> Vec<u32> {
        self.ring.masters()
    }

    /// How far the fleet brake is at `now`.
    pub async fn quarantines(&self, now: UnixTime) -> Quarantines {
        let brake = self.policy.brake;
        let recent = self.nodes().quarantines(now.minus(brake.window)).await;
        Quarantines { recent: recent.unwrap_or_default(), most: brake.max_quarantines }
    }

    /// Proofs of nodes that are remembered in this process.
    #[must_use]
    pub fn live_proofs(&self) -> usize {
        self.replay.live()
    }

    /// Whether the edge answers a request to `target` itself, and what it is for.
    pub(super) fn find(&self, target: &Target) -> Option<Own> {
        self.sites.find(&target.authority, &target.path)
    }
}

#[cfg(test)]
mod tests;
