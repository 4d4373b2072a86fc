//! How a new network becomes the baseline without an operator: slowly, and only a near one.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::node::{Baseline, Candidate, Network, Node};
use super::risk::{Risk, is_same_address};
use crate::policy::time::UnixTime;

/// `capsules.baseline`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BaselinePolicy {
    /// Only a network that scores less than this is confirmed by time; 0: none is.
    pub confirm_below: u32,
    /// How long every contact must have come from it.
    #[serde(with = "super::decision::millis")]
    pub confirm_after: Duration,
    /// How many contacts there must have been.
    pub confirm_contacts: u32,
    /// How long after one confirmation by time there is none again.
    #[serde(with = "super::decision::millis")]
    pub confirm_pause: Duration,
}

/// Takes note of a granted contact from `network` in the record.
pub(super) fn contact(
    node: &mut Node,
    network: &Network,
    risk: &Risk,
    policy: &BaselinePolicy,
    now: UnixTime,
) {
    let Some(baseline) = &node.baseline else {
        let network = network.clone();
        node.baseline = Some(Baseline { network, confirmed: now, by_time: false });
        node.candidate = None;
        return;
    };
    if !risk.is_strange() || risk.score >= policy.confirm_below {
        node.candidate = None;
        return;
    }
    let paused = baseline.by_time && now < baseline.confirmed.plus(policy.confirm_pause);
    let candidate = match node.candidate.take() {
        Some(known) if is_same_address(known.network.address, network.address) => {
            Candidate { contacts: known.contacts.saturating_add(1), ..known }
        }
        Some(_) | None => Candidate { network: network.clone(), since: now, contacts: 1 },
    };
    let long_enough = now >= candidate.since.plus(policy.confirm_after);
    if long_enough && candidate.contacts >= policy.confirm_contacts && !paused {
        let network = network.clone();
        node.baseline = Some(Baseline { network, confirmed: now, by_time: true });
    } else {
        node.candidate = Some(candidate);
    }
}

/// Takes note of telemetry from `network`: it confirms nothing, but from anywhere else than the
/// candidate it ends its row of contacts.
pub(super) fn telemetry(node: &mut Node, network: &Network) {
    let is_candidate =
        |candidate: &Candidate| is_same_address(candidate.network.address, network.address);
    node.candidate = node.candidate.take().filter(is_candidate);
}
