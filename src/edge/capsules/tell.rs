//! What is told of a decision: counted and written, once.

use crate::policy::capsule::decision::{Decision, Reason};
use crate::telemetry::log::{CapsuleRecord, Log};
use crate::telemetry::metrics::{CapsuleResult, Metrics, TelemetryResult};

/// What is told of a decision about a capsule or telemetry.
#[derive(Clone, Debug)]
pub(in crate::edge) struct Told {
    /// What it is counted as.
    counted: Counted,
    /// The last stage's code.
    code: String,
    /// The risk; `None` where none was weighed.
    score: Option<u32>,
    /// Whether the node was quarantined.
    quarantined: bool,
    /// Whether the fleet brake held that back.
    held: bool,
    /// The capsule.
    capsule: Option<String>,
    /// The node, where it is known to be the one.
    node: Option<String>,
}

#[derive(Clone, Copy, Debug)]
enum Counted {
    Capsule(CapsuleResult),
    Telemetry(TelemetryResult),
}

impl Told {
    pub(super) fn refused(
        reason: Reason,
        code: &str,
        score: u32,
        decision: Option<&Decision>,
    ) -> Self {
        Self {
            counted: Counted::Capsule(CapsuleResult::Refused(reason)),
            code: code.to_owned(),
            score: decision.and_then(|decision| decision.risk).map(|_| score),
            quarantined: decision.is_some_and(|decision| decision.quarantined),
            held: decision.is_some_and(|decision| decision.held),
            capsule: None,
            node: node(decision),
        }
    }

    pub(super) fn granted(decision: &Decision, capsule: String) -> Self {
        Self {
            counted: Counted::Capsule(CapsuleResult::Granted),
            code: "granted".to_owned(),
            score: Some(decision.score()),
            quarantined: false,
            held: false,
            capsule: Some(capsule),
            node: node(Some(decision)),
        }
    }

    pub(super) fn telemetry(result: TelemetryResult, code: &str, node: Option<String>) -> Self {
        Self {
            counted: Counted::Telemetry(result),
            code: code.to_owned(),
            score: None,
            quarantined: false,
            held: false,
            capsule: None,
            node,
        }
    }

    /// Counts and writes it.
    pub(in crate::edge) fn tell(
        &self,
        decision_id: &str,
        latency_us: u64,
        metrics: &Metrics,
        log: &Log,
    ) {
        let (kind, result) = match self.counted {
            Counted::Capsule(result) => {
                metrics.capsule(result, self.score, self.held);
                ("capsule", result.name())
            }
            Counted::Telemetry(result) => {
                metrics.node_telemetry(result);
                // What changes nothing to remark on is counted only.
                if result == TelemetryResult::Taken {
                    return;
                }
                ("telemetry", result.name())
            }
        };
        log.capsule(&CapsuleRecord {
            kind,
            node: self.node.as_deref(),
            result,
            reason: &self.code,
            risk_score: self.score,
            quarantined: self.quarantined,
            held: self.held,
            capsule_id: self.capsule.as_deref(),
            decision_id,
            latency_us,
        });
    }
}

fn node(decision: Option<&Decision>) -> Option<String> {
    decision.and_then(|decision| decision.after.as_ref()).map(|node| node.id.to_string())
}
