//! A decision as the audit log keeps it: with everything that it was made from.

use serde::{Deserialize, Serialize};

use super::decision::{Decision, Grant, Outcome, Refusal};
use super::facts::Facts;
use super::node::{Node, NodeId};
use super::pipeline::{self, Ids, Policy};
use super::risk::Risk;
use super::telemetry::{Counted, Report};
use crate::policy::audit::{Draft, Kind};
use crate::policy::time::UnixTime;

/// A decision about a capsule. No key and no secret's hash is in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CapsuleRecord {
    /// The id that was asked for; `None` for a text that is none.
    pub asked: Option<String>,
    /// The record as it stood; `None` where nobody proved to be the node.
    pub node: Option<Node>,
    /// What the request showed.
    pub facts: Facts,
    /// The policy in force.
    pub policy: Policy,
    /// The names.
    pub ids: Ids,
    /// When.
    pub now: UnixTime,
    /// Every stage that was come to.
    pub stages: Vec<Outcome>,
    /// What stages 6 and 7 found.
    pub risk: Option<Risk>,
    /// What came of it.
    pub verdict: Result<Grant, Refusal>,
    /// Whether the node was quarantined.
    pub quarantined: bool,
    /// Whether it would have been, but for the fleet brake.
    pub held: bool,
}

impl CapsuleRecord {
    /// What is kept of `decision`, which was made from the rest.
    #[must_use]
    pub fn new(
        asked: Option<&NodeId>,
        node: Option<&Node>,
        facts: &Facts,
        policy: &Policy,
        ids: &Ids,
        now: UnixTime,
        decision: &Decision,
    ) -> Self {
        Self {
            asked: asked.map(NodeId::to_string),
            node: node.map(Node::without_secret),
            facts: facts.clone(),
            policy: policy.clone(),
            ids: ids.clone(),
            now,
            stages: decision.stages.clone(),
            risk: decision.risk,
            verdict: decision.verdict.clone(),
            quarantined: decision.quarantined,
            held: decision.held,
        }
    }

    /// Its line in the audit log.
    #[must_use]
    pub fn draft(&self) -> Draft {
        let node = self.node.as_ref().map(|node| node.id.as_str());
        Draft::new(Kind::Capsule, self.now, &self.ids.decision, node, self)
    }

    /// Decides again, from what was recorded.
    #[must_use]
    pub fn again(&self) -> Decision {
        pipeline::decide(self.node.as_ref(), &self.facts, &self.policy, &self.ids, self.now)
    }

    /// Whether deciding again comes to what is recorded. Where nobody proved to be the node its record
    /// is not there, and there is nothing to decide from.
    #[must_use]
    pub fn is_as_recorded(&self) -> Option<bool> {
        self.node.as_ref()?;
        let again = self.again();
        let same = again.stages == self.stages
            && again.risk == self.risk
            && again.verdict == self.verdict
            && (again.quarantined, again.held) == (self.quarantined, self.held);
        Some(same)
    }
}

/// Telemetry that was refused or changes nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TelemetryRecord {
    /// The id that was asked for; `None` for a text that is none.
    pub asked: Option<String>,
    /// What the request showed.
    pub facts: Facts,
    /// What it told; `None` where it cannot be read.
    pub report: Option<Report>,
    /// Every stage that was come to.
    pub stages: Vec<Outcome>,
    /// Where it came from.
    pub risk: Option<Risk>,
    /// What came of it.
    pub verdict: Result<Counted, Refusal>,
}
