//! What a decision comes to: each stage's outcome, the grant or the refusal, and the new record.

use serde::{Deserialize, Serialize};

use super::key::KeyVersion;
use super::node::Node;
use super::risk::Risk;
use crate::policy::time::UnixTime;

/// Why there is no capsule. The names are what answers, metrics and the audit log say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Reason {
    /// Unknown node, wrong secret, malformed id or credentials: nobody can tell which.
    AuthenticationFailed,
    /// Stage 3.
    NodeRevoked,
    /// Stage 3; also where the time to join has passed.
    NodeDisabled,
    /// Stage 3.
    NodeQuarantined,
    /// Stage 4.
    SenderMismatch,
    /// Stage 4: the proof needs a nonce of this edge.
    ProofNonceRequired,
    /// Stage 5.
    FingerprintMismatch,
    /// Stage 5: two fingerprints that differ.
    FingerprintConflict,
    /// Stage 7.
    NetworkPolicyViolation,
    /// Stage 8: the software version is part of the key, and was not told.
    NodeVersionRequired,
    /// Stage 8: there is no such version of the key, or it is retired.
    KeyVersionUnavailable,
    /// Stage 8: the key is only given sealed, and there is none to seal it to.
    SealRequired,
    /// Telemetry that cannot be read.
    TelemetryInvalid,
    /// Telemetry whose number goes backwards.
    TelemetryOutOfOrder,
    /// Too many failures from there.
    RateLimited,
    /// Something that is needed is missing: the registry, the keys.
    Unavailable,
}

impl Reason {
    /// Every value, in label order.
    pub const ALL: [Self; 16] = [
        Self::AuthenticationFailed,
        Self::NodeRevoked,
        Self::NodeDisabled,
        Self::NodeQuarantined,
        Self::SenderMismatch,
        Self::ProofNonceRequired,
        Self::FingerprintMismatch,
        Self::FingerprintConflict,
        Self::NetworkPolicyViolation,
        Self::NodeVersionRequired,
        Self::KeyVersionUnavailable,
        Self::SealRequired,
        Self::TelemetryInvalid,
        Self::TelemetryOutOfOrder,
        Self::RateLimited,
        Self::Unavailable,
    ];

    /// The name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AuthenticationFailed => "AUTHENTICATION_FAILED",
            Self::NodeRevoked => "NODE_REVOKED",
            Self::NodeDisabled => "NODE_DISABLED",
            Self::NodeQuarantined => "NODE_QUARANTINED",
            Self::SenderMismatch => "SENDER_MISMATCH",
            Self::ProofNonceRequired => "PROOF_NONCE_REQUIRED",
            Self::FingerprintMismatch => "FINGERPRINT_MISMATCH",
            Self::FingerprintConflict => "FINGERPRINT_CONFLICT",
            Self::NetworkPolicyViolation => "NETWORK_POLICY_VIOLATION",
            Self::NodeVersionRequired => "NODE_VERSION_REQUIRED",
            Self::KeyVersionUnavailable => "KEY_VERSION_UNAVAILABLE",
            Self::SealRequired => "SEAL_REQUIRED",
            Self::TelemetryInvalid => "TELEMETRY_INVALID",
            Self::TelemetryOutOfOrder => "TELEMETRY_OUT_OF_ORDER",
            Self::RateLimited => "RATE_LIMITED",
            Self::Unavailable => "UNAVAILABLE",
        }
    }
}

/// The stages, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// 1: the secret.
    Bearer,
    /// 2: there is such a node.
    Node,
    /// 3: it may have capsules.
    Status,
    /// 4: the sender is the node.
    Sender,
    /// 5: the fingerprint is the node's.
    Fingerprint,
    /// 6: how it stopped.
    Telemetry,
    /// 7: where it comes from.
    Network,
    /// 8: which key.
    Key,
}

impl Stage {
    /// All, in their order.
    pub const ALL: [Self; 8] = [
        Self::Bearer,
        Self::Node,
        Self::Status,
        Self::Sender,
        Self::Fingerprint,
        Self::Telemetry,
        Self::Network,
        Self::Key,
    ];

    /// Its number, from 1.
    #[must_use]
    pub fn number(self) -> usize {
        Self::ALL.iter().position(|stage| *stage == self).map_or(0, |index| index + 1)
    }
}

/// What came of one stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Outcome {
    /// Which.
    pub stage: Stage,
    /// Whether it let the request on.
    pub passed: bool,
    /// Why, as a stable code.
    pub code: String,
}

/// A refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Refusal {
    /// What the node is told.
    pub reason: Reason,
    /// The stage that refused.
    pub stage: Stage,
}

/// A grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Grant {
    /// The key that goes into the capsule.
    pub key_version: KeyVersion,
    /// When.
    pub issued: UnixTime,
    /// Its end.
    pub expires: UnixTime,
    /// Whether it is sealed to the node's ephemeral key.
    pub sealed: bool,
    /// Whether fingerprint, sender and baseline were adopted with it.
    pub first: bool,
}

/// What is decided, with the new record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Every stage that was come to.
    pub stages: Vec<Outcome>,
    /// What stages 6 and 7 found, where they were come to.
    pub risk: Option<Risk>,
    /// The grant or the refusal.
    pub verdict: Result<Grant, Refusal>,
    /// The record from now on; `None` where it stays as it is.
    pub after: Option<Node>,
    /// Whether this decision quarantined the node.
    pub quarantined: bool,
    /// Whether it would have, but for the fleet brake.
    pub held: bool,
}

impl Decision {
    /// The risk that is told: 0 where none was weighed.
    #[must_use]
    pub fn score(&self) -> u32 {
        self.risk.map_or(0, |risk| risk.score)
    }

    /// Whether it was refused before the sender was looked at.
    #[must_use]
    pub fn refused_before_sender(&self) -> bool {
        self.verdict.as_ref().is_err_and(|refusal| refusal.stage < Stage::Sender)
    }

    /// Whether it was refused by what anybody could be who is not the node.
    #[must_use]
    pub fn is_strangers(&self) -> bool {
        self.verdict.as_ref().is_err_and(|refusal| refusal.stage <= Stage::Sender)
    }
}

/// Durations as whole milliseconds.
pub(super) mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::policy::capsule) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(in crate::policy::capsule) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}
