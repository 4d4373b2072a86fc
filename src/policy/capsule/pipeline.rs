//! The eight stages. Each narrows, none is skipped, and none looks at anything but its arguments.
//!
//! ```text
//! 1 bearer ─► 2 node ─► 3 status ─► 4 sender ─► 5 fingerprint ─► 6 telemetry ─► 7 network ─► 8 key
//! ```
//!
//! Invariant: only a grant, or stage 7's quarantine, changes more of a record than its counters.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::baseline::{self, BaselinePolicy};
use super::decision::{Decision, Grant, Outcome, Reason, Refusal, Stage};
use super::facts::{Asked, Facts, Fingerprint, Proof, Seal, SenderFacts};
use super::key::KeyVersion;
use super::node::{Contact, Issued, Network, Node, Quarantine, Status};
use super::risk::{self, Risk, RiskPolicy};
use crate::policy::time::UnixTime;

/// `capsules.proof`: what a sender must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProofDemand {
    /// A proof or a certificate, the one that the node is bound to.
    Any,
    /// A DPoP proof.
    Dpop,
    /// A client certificate.
    Mtls,
    /// Nothing beside the secret. A node that is bound to a sender stays so.
    None,
}

/// `capsules.seal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SealPolicy {
    /// A key is only given sealed.
    Required,
    /// A node that sends an ephemeral key gets it sealed.
    Offered,
    /// Ephemeral keys are not looked at.
    Off,
}

/// `capsules.fleetBrake`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BrakePolicy {
    /// Quarantines within the window; past it nodes are refused and not quarantined.
    pub max_quarantines: u32,
    /// The window.
    #[serde(with = "super::decision::millis")]
    pub window: Duration,
}

/// `capsules`, as far as it decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// What a sender must show.
    pub proof: ProofDemand,
    /// Whether keys are sealed.
    pub seal: SealPolicy,
    /// Whether the software version is part of the key.
    pub bind_version: bool,
    /// How long a capsule is good.
    #[serde(with = "super::decision::millis")]
    pub lifetime: Duration,
    /// Weights, threshold and window.
    pub risk: RiskPolicy,
    /// When a network is confirmed by time.
    pub baseline: BaselinePolicy,
    /// When quarantine stops.
    pub brake: BrakePolicy,
}

/// Software versions that a record remembers.
const VERSIONS: usize = 32;

/// One decision, made step by step.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) stages: Vec<Outcome>,
}

impl Walk {
    pub(super) fn new() -> Self {
        Self { stages: Vec::with_capacity(Stage::ALL.len()) }
    }

    fn passed(&mut self, stage: Stage, code: impl Into<String>) {
        self.stages.push(Outcome { stage, passed: true, code: code.into() });
    }

    pub(super) fn refused(
        &mut self,
        stage: Stage,
        reason: Reason,
        code: impl Into<String>,
    ) -> Refusal {
        self.stages.push(Outcome { stage, passed: false, code: code.into() });
        Refusal { reason, stage }
    }
}

/// Decides about a capsule. `node` is the record as it stands, `None` where there is none; `ids` are
/// the decision's and the capsule's to be.
#[must_use]
pub fn decide(
    node: Option<&Node>,
    facts: &Facts,
    policy: &Policy,
    ids: &Ids,
    now: UnixTime,
) -> Decision {
    let mut walk = Walk::new();
    let known = match identify(&mut walk, node, facts, policy, now) {
        Ok(known) => known,
        Err(refusal) => return refuse(walk, node, None, refusal),
    };
    let mut after = known.clone();
    let (network, risk) = match place(&mut walk, known, facts, policy, now) {
        Ok(place) => place,
        Err(refusal) => return refuse(walk, node, None, refusal),
    };
    if risk.score >= policy.risk.threshold {
        return quarantine(walk, after, facts, policy, &network, risk, ids, now);
    }
    let version = match key(&mut walk, known, facts, policy) {
        Ok(version) => version,
        Err(refusal) => return refuse(walk, node, Some(risk), refusal),
    };
    let first = !known.has_joined();
    if first {
        adopt(&mut after, facts, policy.proof);
    }
    baseline::contact(&mut after, &network, &risk, &policy.baseline, now);
    let grant = Grant {
        key_version: version,
        issued: now,
        expires: now.plus(policy.lifetime),
        sealed: policy.seal != SealPolicy::Off && facts.keys.seal == Seal::Usable,
        first,
    };
    after.last = Some(Contact { network, at: now });
    after.granted_boot = facts.boot.clone().or(after.granted_boot);
    after.issued = Some(Issued {
        capsule: ids.capsule.clone(),
        at: now,
        expires: grant.expires,
        key_version: grant.key_version.clone(),
    });
    if let Some(software) = &grant.key_version.software
        && !after.versions.contains(software)
    {
        after.versions.drain(..(after.versions.len() + 1).saturating_sub(VERSIONS));
        after.versions.push(software.clone());
    }
    after.counters.granted = after.counters.granted.saturating_add(1);
    Decision {
        stages: walk.stages,
        risk: Some(risk),
        verdict: Ok(grant),
        after: Some(after),
        quarantined: false,
        held: false,
    }
}

/// The names that a decision and a capsule get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ids {
    /// What the answer calls `decisionId`.
    pub decision: String,
    /// `capsuleId` of a grant.
    pub capsule: String,
}

/// Stages 1 to 5: whether it is the node that asks.
pub(super) fn identify<'a>(
    walk: &mut Walk,
    node: Option<&'a Node>,
    facts: &Facts,
    policy: &Policy,
    now: UnixTime,
) -> Result<&'a Node, Refusal> {
    let node = authenticate(walk, node, facts)?;
    status(walk, node, now)?;
    sender(walk, node, &facts.sender, policy.proof)?;
    fingerprint(walk, node, facts)?;
    Ok(node)
}

/// Stages 1 and 2. Which of both failed is in the audit record only.
fn authenticate<'a>(
    walk: &mut Walk,
    node: Option<&'a Node>,
    facts: &Facts,
) -> Result<&'a Node, Refusal> {
    let failed = Reason::AuthenticationFailed;
    let Some(node) = node.filter(|_| facts.enrolled) else {
        return Err(if facts.enrolled {
            walk.refused(Stage::Bearer, failed, "wrong_secret")
        } else {
            walk.refused(Stage::Node, failed, "unknown_node")
        });
    };
    if !facts.secret {
        return Err(walk.refused(Stage::Bearer, failed, "wrong_secret"));
    }
    walk.passed(Stage::Bearer, "secret");
    walk.passed(Stage::Node, "known");
    Ok(node)
}

/// Stage 3.
fn status(walk: &mut Walk, node: &Node, now: UnixTime) -> Result<(), Refusal> {
    let reason = match node.status {
        // What was done to it since the backup is not known.
        Status::Active if node.restored.is_some() => {
            return Err(walk.refused(Stage::Status, Reason::NodeQuarantined, "restored"));
        }
        Status::Active => {
            let end = node.expected.join_before;
            if !node.has_joined() && end.is_some_and(|end| now >= end) {
                let code = "join_before_passed";
                return Err(walk.refused(Stage::Status, Reason::NodeDisabled, code));
            }
            walk.passed(Stage::Status, "active");
            return Ok(());
        }
        Status::Disabled => Reason::NodeDisabled,
        Status::Revoked => Reason::NodeRevoked,
        Status::Quarantined => Reason::NodeQuarantined,
    };
    Err(walk.refused(Stage::Status, reason, node.status.name()))
}

/// Whether stage 4 lets a sender pass: what a proof is used up for.
#[must_use]
pub fn is_sender(node: &Node, sender: &SenderFacts, demand: ProofDemand) -> bool {
    self::sender(&mut Walk::new(), node, sender, demand).is_ok()
}

/// Stage 4: a sender is what the node is bound to, in each way in which it is bound, and shows what
/// the policy demands. A proof that was shown must hold, needed or not.
fn sender(
    walk: &mut Walk,
    node: &Node,
    sender: &SenderFacts,
    demand: ProofDemand,
) -> Result<(), Refusal> {
    let mut mismatch =
        |code: String| Err(walk.refused(Stage::Sender, Reason::SenderMismatch, code));
    let jkt = match &sender.proof {
        Proof::Absent => None,
        Proof::Holds { jkt } => Some(*jkt),
        Proof::Faulty { code, .. } => return mismatch(code.clone()),
        Proof::NeedsNonce { code } => {
            let reason = Reason::ProofNonceRequired;
            return Err(walk.refused(Stage::Sender, reason, code.clone()));
        }
    };
    if node.jkt.is_some() && node.jkt != jkt {
        let code = if jkt.is_some() { "key_mismatch" } else { "proof_missing" };
        return mismatch(code.to_owned());
    }
    if node.x5t.is_some() && node.x5t != sender.x5t {
        let code = if sender.x5t.is_some() { "thumbprint-mismatch" } else { "missing-certificate" };
        return mismatch(code.to_owned());
    }
    // What a node was not bound to proves nothing of it, once it has joined or was bound to another
    // sender at enrolment: it is not adopted then, and the second capsule would be refused.
    let open = !node.has_joined() && node.jkt.is_none() && node.x5t.is_none();
    let key = jkt.is_some() && (node.jkt.is_some() || open);
    let certificate = sender.x5t.is_some() && (node.x5t.is_some() || open);
    let met = match demand {
        ProofDemand::Any => key || certificate,
        ProofDemand::Dpop => key,
        ProofDemand::Mtls => certificate,
        ProofDemand::None => true,
    };
    if !met {
        return mismatch("sender_unproven".to_owned());
    }
    let by = match (key, certificate) {
        (true, true) => "dpop+mtls",
        (true, false) => "dpop",
        (false, true) => "mtls",
        (false, false) => "secret_alone",
    };
    walk.passed(Stage::Sender, by);
    Ok(())
}

/// Stage 5: missing counts as different, on the first contact too.
fn fingerprint(walk: &mut Walk, node: &Node, facts: &Facts) -> Result<(), Refusal> {
    let stage = Stage::Fingerprint;
    let shown = match facts.fingerprint {
        Fingerprint::Shown(shown) => shown,
        Fingerprint::Missing => {
            return Err(walk.refused(stage, Reason::FingerprintMismatch, "fingerprint_missing"));
        }
        Fingerprint::Conflict => {
            return Err(walk.refused(stage, Reason::FingerprintConflict, "fingerprints_differ"));
        }
    };
    match node.fingerprint {
        Some(known) if !known.same(&shown) => {
            Err(walk.refused(stage, Reason::FingerprintMismatch, "fingerprint_differs"))
        }
        Some(_) => {
            walk.passed(stage, "same");
            Ok(())
        }
        None => {
            walk.passed(stage, "first");
            Ok(())
        }
    }
}

/// Stages 6 and 7, up to the score. The first capsule has no baseline; what was expected at enrolment
/// stands in for it.
fn place(
    walk: &mut Walk,
    node: &Node,
    facts: &Facts,
    policy: &Policy,
    now: UnixTime,
) -> Result<(Network, Risk), Refusal> {
    let boot = facts.boot.as_deref();
    let abrupt_stop = risk::is_abrupt(node.heard.as_ref(), boot, policy.risk.abrupt_window, now);
    walk.passed(Stage::Telemetry, if abrupt_stop { "abrupt_stop" } else { "clean" });
    let Some(network) = facts.place.network.clone() else {
        let reason = Reason::NetworkPolicyViolation;
        return Err(walk.refused(Stage::Network, reason, "address_unknown"));
    };
    let risk = Risk::of(node, &facts.place, &network, boot, &policy.risk, now);
    if !node.has_joined()
        && let Some(code) = node.expected.unmet(&network)
    {
        return Err(walk.refused(Stage::Network, Reason::NetworkPolicyViolation, code));
    }
    if risk.score < policy.risk.threshold {
        let code = if node.baseline.is_none() { "first" } else { "below_threshold" };
        walk.passed(Stage::Network, code);
    }
    Ok((network, risk))
}

/// Stage 7 past the threshold: quarantine, or, past the fleet brake, a refusal alone. A record
/// without a baseline is not quarantined for where it is.
#[expect(clippy::too_many_arguments, reason = "the end of a decision has all of it in hand")]
fn quarantine(
    mut walk: Walk,
    mut after: Node,
    facts: &Facts,
    policy: &Policy,
    network: &Network,
    risk: Risk,
    ids: &Ids,
    now: UnixTime,
) -> Decision {
    let held = facts.recent_quarantines >= policy.brake.max_quarantines;
    let code = if held { "held_by_fleet_brake" } else { "quarantined" };
    let refusal = walk.refused(Stage::Network, Reason::NetworkPolicyViolation, code);
    after.counters.refused = after.counters.refused.saturating_add(1);
    if !held {
        after.status = Status::Quarantined;
        // A candidate's row has no contact from elsewhere in it, and none is seen until a release.
        after.candidate = None;
        after.quarantine = Some(Quarantine {
            at: now,
            decision: Some(ids.decision.clone()),
            score: risk.score,
            network: Some(network.clone()),
        });
    }
    Decision {
        stages: walk.stages,
        risk: Some(risk),
        verdict: Err(refusal),
        after: Some(after),
        quarantined: !held,
        held,
    }
}

/// Stage 8: the version of the key.
fn key(
    walk: &mut Walk,
    node: &Node,
    facts: &Facts,
    policy: &Policy,
) -> Result<KeyVersion, Refusal> {
    let stage = Stage::Key;
    let Some(&newest) = facts.keys.masters.last() else {
        return Err(walk.refused(stage, Reason::Unavailable, "no_master_key"));
    };
    match (policy.seal, facts.keys.seal) {
        (SealPolicy::Required, Seal::Absent) => {
            return Err(walk.refused(stage, Reason::SealRequired, "no_key_to_seal_to"));
        }
        (SealPolicy::Required | SealPolicy::Offered, Seal::Unusable) => {
            return Err(walk.refused(stage, Reason::SealRequired, "unusable_key_to_seal_to"));
        }
        (SealPolicy::Required | SealPolicy::Offered | SealPolicy::Off, _) => {}
    }
    let unavailable = Reason::KeyVersionUnavailable;
    let version = match &facts.keys.asked {
        Asked::Malformed => return Err(walk.refused(stage, unavailable, "malformed_version")),
        Asked::Version(asked) => asked.clone(),
        Asked::Current => {
            let software = policy.bind_version.then(|| facts.version.clone());
            if software == Some(None) {
                let reason = Reason::NodeVersionRequired;
                return Err(walk.refused(stage, reason, "no_software_version"));
            }
            KeyVersion { master: newest, node: node.key_version, software: software.flatten() }
        }
    };
    if !facts.keys.masters.contains(&version.master) {
        return Err(walk.refused(stage, unavailable, "master_version_not_there"));
    }
    if !(node.oldest_key_version..=node.key_version).contains(&version.node) {
        return Err(walk.refused(stage, unavailable, "node_version_not_there"));
    }
    if version.software.is_some() != policy.bind_version {
        return Err(walk.refused(stage, unavailable, "software_version_not_as_bound"));
    }
    // Of another release's key only what the node has had before: none that is to come.
    let of_this_request = version.software == facts.version;
    let had = version.software.as_ref().is_none_or(|software| node.versions.contains(software));
    if policy.bind_version && !of_this_request && !had {
        return Err(walk.refused(stage, unavailable, "software_version_never_had"));
    }
    walk.passed(stage, version.to_string());
    Ok(version)
}

/// The first capsule binds: one fingerprint, and one sender key where none was set at enrolment, the
/// proof's before the certificate. Where none is demanded none is adopted.
fn adopt(node: &mut Node, facts: &Facts, demand: ProofDemand) {
    if let Fingerprint::Shown(shown) = facts.fingerprint {
        node.fingerprint = Some(shown);
    }
    if node.jkt.is_none() && node.x5t.is_none() && demand != ProofDemand::None {
        match facts.sender.proof {
            Proof::Holds { jkt } if demand != ProofDemand::Mtls => node.jkt = Some(jkt),
            Proof::Holds { .. }
            | Proof::Absent
            | Proof::NeedsNonce { .. }
            | Proof::Faulty { .. } => {
                node.x5t = facts.sender.x5t;
            }
        }
    }
}

/// A refusal: of whoever had the secret it is counted in the record.
pub(super) fn refuse(
    walk: Walk,
    node: Option<&Node>,
    risk: Option<Risk>,
    refusal: Refusal,
) -> Decision {
    let counted = refusal.stage > Stage::Node;
    let after = node.filter(|_| counted).map(|node| {
        let mut after = node.clone();
        after.counters.refused = after.counters.refused.saturating_add(1);
        after
    });
    Decision {
        stages: walk.stages,
        risk,
        verdict: Err(refusal),
        after,
        quarantined: false,
        held: false,
    }
}
