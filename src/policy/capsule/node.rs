//! A node as the registry knows it.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::key::KeyVersion;
use crate::policy::digest::{Jkt, Sha256, X5tS256};
use crate::policy::time::UnixTime;

/// The most bytes of a node's id.
const ID_BYTES: usize = 128;
/// The most bytes of a boot id and of a software version.
const LABEL_BYTES: usize = 64;

/// A node's name: 1 to 128 letters, digits, `.`, `_` and `-`, of which the first is a letter, a digit
/// or `_`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(String);

/// A text that is no node id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a node id is 1 to {ID_BYTES} letters, digits, `.`, `_` and `-`, and begins with no `.` or `-`"
)]
pub struct NotANodeId;

impl NodeId {
    /// Reads an id; case counts.
    ///
    /// # Errors
    /// [`NotANodeId`].
    pub fn parse(text: &str) -> Result<Self, NotANodeId> {
        let good = (1..=ID_BYTES).contains(&text.len())
            && !text.starts_with(['.', '-'])
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if good { Ok(Self(text.to_owned())) } else { Err(NotANodeId) }
    }

    /// The id of no node, to be looked up in the place of one that is none, so that it costs the same.
    #[must_use]
    pub fn nobody() -> Self {
        Self("-".to_owned())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for NodeId {
    type Error = NotANodeId;

    fn try_from(text: String) -> Result<Self, NotANodeId> {
        Self::parse(&text)
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> Self {
        id.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether `text` can be a boot id or a software version: 1 to 64 letters, digits, `.`, `_`, `+`,
/// `:` and `-`.
#[must_use]
pub fn is_label(text: &str) -> bool {
    (1..=LABEL_BYTES).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._+:-".contains(&byte))
}

/// Whether a node may have capsules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It may.
    Active,
    /// Switched off by an operator, who may switch it on again.
    Disabled,
    /// Withdrawn for good.
    Revoked,
    /// Held by stage 7 or an operator until it is released.
    Quarantined,
}

impl Status {
    /// Every value, in label order.
    pub const ALL: [Self; 4] = [Self::Active, Self::Disabled, Self::Revoked, Self::Quarantined];

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Disabled => "disabled",
            Self::Revoked => "revoked",
            Self::Quarantined => "quarantined",
        }
    }

    /// The status that a word names.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }
}

/// Where a node was seen: its address, and what the databases of that time said of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Network {
    /// Canonical: an IPv4 address is never written as an IPv6 one.
    pub address: IpAddr,
    /// Number of its autonomous system; `None` where it is unknown.
    #[serde(deserialize_with = "Option::deserialize")]
    pub asn: Option<u32>,
    /// ISO 3166-2, or ISO 3166-1 where no subdivision is known (`SE-M`, `SE`).
    #[serde(deserialize_with = "Option::deserialize")]
    pub region: Option<String>,
}

/// The network that a node is compared with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Baseline {
    /// The network.
    pub network: Network,
    /// Since when.
    pub confirmed: UnixTime,
    /// Whether time confirmed it, not the first capsule or an operator.
    pub by_time: bool,
}

/// A network that may become the baseline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Candidate {
    /// The network.
    pub network: Network,
    /// The first grant from it.
    pub since: UnixTime,
    /// Grants from it since, none from elsewhere between.
    pub contacts: u32,
}

/// A contact, whatever network it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Contact {
    /// From where.
    pub network: Network,
    /// When.
    pub at: UnixTime,
}

/// What must hold of the first capsule, set at enrolment. An empty list expects nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Expectations {
    /// The address lies in one of these.
    pub networks: Vec<IpNet>,
    /// Its autonomous system is one of these.
    pub asns: Vec<u32>,
    /// Its region is one of these, or lies in one (`SE-M` in `SE`).
    pub regions: Vec<String>,
    /// It is before this.
    pub join_before: Option<UnixTime>,
}

impl Expectations {
    /// What of them a network does not meet, as a stable code.
    #[must_use]
    pub fn unmet(&self, network: &Network) -> Option<&'static str> {
        let networks = &self.networks;
        let lies_in = |address: IpAddr| networks.iter().any(|network| network.contains(&address));
        if !networks.is_empty() && !lies_in(network.address) {
            return Some("outside_expected_networks");
        }
        let asn = network.asn.is_some_and(|asn| self.asns.contains(&asn));
        if !self.asns.is_empty() && !asn {
            return Some("outside_expected_asns");
        }
        let is_in = |region: &str, wide: &str| {
            region.strip_prefix(wide).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        let region = network.region.as_deref();
        let inside = region
            .is_some_and(|region| self.regions.iter().any(|expected| is_in(region, expected)));
        if !self.regions.is_empty() && !inside {
            return Some("outside_expected_regions");
        }
        None
    }
}

/// What a node says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It runs.
    Running,
    /// It stops, in good order.
    Stopping,
}

/// The last telemetry that counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Heard {
    /// When it came.
    pub at: UnixTime,
    /// The boot that sent it.
    pub boot: String,
    /// Its number within the boot.
    pub seq: u64,
    /// The state it told; `stopping` is a clean shutdown.
    pub state: State,
    /// The software version, where it told one.
    pub version: Option<String>,
}

/// The last capsule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Issued {
    /// Its id.
    pub capsule: String,
    /// When.
    pub at: UnixTime,
    /// Its end.
    pub expires: UnixTime,
    /// The key in it.
    pub key_version: KeyVersion,
}

/// Why a node is quarantined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Quarantine {
    /// Since when.
    pub at: UnixTime,
    /// The decision that did it; `None`: an operator.
    pub decision: Option<String>,
    /// Its risk.
    pub score: u32,
    /// The network that it came from.
    pub network: Option<Network>,
}

/// How often what happened, since enrolment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Counters {
    /// Capsules.
    pub granted: u64,
    /// Refusals of whoever was the node's sender, as far as they are written down.
    pub refused: u64,
    /// Telemetry taken.
    pub telemetry: u64,
    /// Telemetry from a network that is not the baseline's, which changes nothing.
    pub strange_telemetry: u64,
}

/// One row of the registry. The secret is not in it, only its hash, which an audit record leaves out.
/// What it is held against must be told, if only as `null`: a row that lost it is no node that may
/// join again, or that was never heard of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// Its name.
    pub id: NodeId,
    /// Whether it may have capsules.
    pub status: Status,
    /// SHA-256 of the secret's text; `None` in an audit record.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub secret: Option<Sha256>,
    /// SHA-256 of the fingerprint; `None` before the first capsule.
    #[serde(deserialize_with = "Option::deserialize")]
    pub fingerprint: Option<Sha256>,
    /// The key that its proofs are signed with.
    #[serde(deserialize_with = "Option::deserialize")]
    pub jkt: Option<Jkt>,
    /// Its certificate.
    #[serde(deserialize_with = "Option::deserialize")]
    pub x5t: Option<X5tS256>,
    /// The version that its key is derived for, from 1.
    pub key_version: u32,
    /// The oldest version that is still derived.
    pub oldest_key_version: u32,
    /// What the first capsule must meet.
    pub expected: Expectations,
    /// The confirmed network; `None` before the first capsule.
    #[serde(deserialize_with = "Option::deserialize")]
    pub baseline: Option<Baseline>,
    /// A network on its way to being the baseline.
    pub candidate: Option<Candidate>,
    /// The last contact that was granted something.
    pub last: Option<Contact>,
    /// The last telemetry that counts.
    #[serde(deserialize_with = "Option::deserialize")]
    pub heard: Option<Heard>,
    /// The boot that the last capsule with a boot id went to: only its telemetry counts.
    pub granted_boot: Option<String>,
    /// The last capsule.
    pub issued: Option<Issued>,
    /// Why it is quarantined, where it is.
    pub quarantine: Option<Quarantine>,
    /// The software versions that keys were granted for, the newest last; bounded.
    pub versions: Vec<String>,
    /// What happened so far.
    pub counters: Counters,
    /// When it was enrolled.
    pub enrolled: UnixTime,
    /// When its record was taken from a backup; `None` once an operator has confirmed it since. What was
    /// changed after the backup is not in it, so that it gives nothing until then.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub restored: Option<UnixTime>,
}

impl Node {
    /// A node that was just enrolled.
    #[must_use]
    pub fn new(id: NodeId, secret: Sha256, expected: Expectations, now: UnixTime) -> Self {
        Self {
            id,
            status: Status::Active,
            secret: Some(secret),
            fingerprint: None,
            jkt: None,
            x5t: None,
            key_version: 1,
            oldest_key_version: 1,
            expected,
            baseline: None,
            candidate: None,
            last: None,
            heard: None,
            granted_boot: None,
            issued: None,
            quarantine: None,
            versions: Vec::new(),
            counters: Counters::default(),
            enrolled: now,
            restored: None,
        }
    }

    /// Whether it has had its first capsule, with which it was bound to a fingerprint.
    #[must_use]
    pub fn has_joined(&self) -> bool {
        self.fingerprint.is_some()
    }

    /// Whether `presented` is its secret: SHA-256 against the stored hash in constant time. A node
    /// that does not exist is compared with a value that nothing hashes to, so that it costs the same.
    #[must_use]
    pub fn knows(node: Option<&Self>, presented: &Sha256) -> bool {
        Self::is_secret(node.and_then(|node| node.secret), presented)
    }

    /// [`Node::knows`], of the hash alone.
    #[must_use]
    pub fn is_secret(stored: Option<Sha256>, presented: &Sha256) -> bool {
        const NOBODY: Sha256 = Sha256([0; 32]);
        let same = presented.same(&stored.unwrap_or(NOBODY));
        same & stored.is_some()
    }

    /// The record as an audit record holds it: without the secret's hash.
    #[must_use]
    pub fn without_secret(&self) -> Self {
        Self { secret: None, ..self.clone() }
    }
}
