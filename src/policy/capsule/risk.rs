//! Stages 6 and 7 as numbers: what changed since the baseline, and what that weighs.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::facts::Place;
use super::node::{Heard, Network, Node, State};
use crate::policy::time::UnixTime;

/// `capsules.risk`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RiskPolicy {
    /// Weight of another address.
    pub address: u32,
    /// Weight of another autonomous system.
    pub asn: u32,
    /// Weight of another region.
    pub region: u32,
    /// Weight of an abrupt stop.
    pub abrupt_stop: u32,
    /// The score from which a node is quarantined.
    pub threshold: u32,
    /// How long after the last telemetry a new boot without a clean shutdown is an abrupt stop.
    #[serde(with = "super::decision::millis")]
    pub abrupt_window: Duration,
}

/// How one factor stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Factor {
    /// There is no database for it.
    Off,
    /// There is no baseline yet.
    First,
    /// It is the baseline's.
    Same,
    /// Neither the baseline's nor this one is known, and the address differs. That is not "the same".
    Unknown,
    /// It differs, or is known on one side only.
    Changed,
}

/// What stages 6 and 7 found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Risk {
    /// The address; IPv6 by its /64.
    pub address: Factor,
    /// The autonomous system.
    pub asn: Factor,
    /// The region.
    pub region: Factor,
    /// Whether the node stopped without saying so.
    pub abrupt_stop: bool,
    /// The weights of what changed, together.
    pub score: u32,
}

impl Risk {
    /// Of a request from `place` for `node`.
    #[must_use]
    pub fn of(
        node: &Node,
        place: &Place,
        network: &Network,
        boot: Option<&str>,
        policy: &RiskPolicy,
        now: UnixTime,
    ) -> Self {
        let abrupt_stop = is_abrupt(node.heard.as_ref(), boot, policy.abrupt_window, now);
        let mut risk = Self {
            address: Factor::First,
            asn: Factor::First,
            region: Factor::First,
            abrupt_stop,
            score: 0,
        };
        if let Some(baseline) = &node.baseline {
            let stored = &baseline.network;
            // One of another address was looked up for a record that has changed since.
            let is_its = |known: &&Network| is_same_address(known.address, stored.address);
            let known = place.baseline.as_ref().filter(is_its);
            let same_address = is_same_address(stored.address, network.address);
            risk.address = if same_address { Factor::Same } else { Factor::Changed };
            risk.asn = if place.databases.asn.is_none() {
                Factor::Off
            } else {
                let now = known.and_then(|known| known.asn);
                factor(same_address, stored.asn.is_some(), now.as_ref(), network.asn.as_ref())
            };
            risk.region = if place.databases.region.is_none() {
                Factor::Off
            } else {
                let now = known.and_then(|known| known.region.as_ref());
                factor(same_address, stored.region.is_some(), now, network.region.as_ref())
            };
        }
        let weigh = |changed: bool, weight: u32| if changed { weight } else { 0 };
        risk.score = [
            weigh(risk.address == Factor::Changed, policy.address),
            weigh(risk.asn == Factor::Changed, policy.asn),
            weigh(risk.region == Factor::Changed, policy.region),
            weigh(abrupt_stop, policy.abrupt_stop),
        ]
        .into_iter()
        .fold(0, u32::saturating_add);
        risk
    }

    /// Whether it came from a network that scores.
    #[must_use]
    pub fn is_strange(&self) -> bool {
        [self.address, self.asn, self.region].contains(&Factor::Changed)
    }
}

/// `before` and `now` by one build. What the baseline had and nobody can tell any more has changed:
/// otherwise a database that forgets an address would be taken for one that knows it.
fn factor<T: PartialEq>(
    same_address: bool,
    had: bool,
    before: Option<&T>,
    now: Option<&T>,
) -> Factor {
    match (before, now) {
        _ if same_address => Factor::Same,
        (Some(before), Some(now)) if before == now => Factor::Same,
        (None, None) if !had => Factor::Unknown,
        (Some(_) | None, Some(_) | None) => Factor::Changed,
    }
}

/// Whether both are one place: IPv4 addresses to the last bit, IPv6 addresses by their /64, which is
/// what a host may choose in.
#[must_use]
pub fn is_same_address(one: IpAddr, other: IpAddr) -> bool {
    const PREFIX: u32 = 64;
    match (one.to_canonical(), other.to_canonical()) {
        (IpAddr::V4(one), IpAddr::V4(other)) => one == other,
        (IpAddr::V6(one), IpAddr::V6(other)) => {
            one.to_bits() >> (128 - PREFIX) == other.to_bits() >> (128 - PREFIX)
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

/// An abrupt stop: the last shutdown was not clean, the last telemetry is less than `window` old, and
/// it was another boot's (none sent counts as another).
pub(super) fn is_abrupt(
    heard: Option<&Heard>,
    boot: Option<&str>,
    window: Duration,
    now: UnixTime,
) -> bool {
    let Some(heard) = heard else { return false };
    let recent = now < heard.at.plus(window);
    heard.state == State::Running && recent && boot != Some(heard.boot.as_str())
}
