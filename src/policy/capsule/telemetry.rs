//! `POST /api/runtime/telemetry/{nodeId}`: what a node says of itself, and what of it counts.

use serde::{Deserialize, Serialize};

use super::baseline;
use super::decision::{Outcome, Reason, Refusal, Stage};
use super::facts::Facts;
use super::node::{Heard, Node, State, is_label};
use super::pipeline::{Policy, Walk, identify, refuse};
use super::risk::Risk;
use crate::policy::json::{self, Object, Value};
use crate::policy::time::UnixTime;

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Report {
    /// The boot that says it.
    pub boot: String,
    /// Its number within the boot.
    pub seq: u64,
    /// Whether it runs or stops.
    pub state: State,
    /// The software version.
    pub version: Option<String>,
}

impl Report {
    /// Reads `{"bootId", "seq", "state", "version"}`, of which the version may be missing and no
    /// other member may be there. `None` for anything else.
    #[must_use]
    pub fn read(body: &[u8]) -> Option<Self> {
        const MEMBERS: [&str; 4] = ["bootId", "seq", "state", "version"];
        let object = json::object(body)?;
        if object.names().any(|name| !MEMBERS.contains(&name)) {
            return None;
        }
        let label =
            |name: &str| json::string(&object, name).ok().flatten().filter(|text| is_label(text));
        let version = label("version").map(str::to_owned);
        if object.contains_key("version") && version.is_none() {
            return None;
        }
        let state = match json::string(&object, "state").ok()?? {
            "running" => State::Running,
            "stopping" => State::Stopping,
            _ => return None,
        };
        Some(Self { boot: label("bootId")?.to_owned(), seq: seq(&object)?, state, version })
    }
}

fn seq(object: &Object) -> Option<u64> {
    let Value::Number(number) = object.get("seq")? else { return None };
    number.as_u64()
}

/// What becomes of telemetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Counted {
    /// It is the node's state now.
    Taken,
    /// It says again what it said before.
    Again,
    /// From a network that scores: noted, and nothing else.
    StrangeNetwork,
    /// From a boot that was granted no capsule: noted, and nothing else.
    OtherBoot,
}

/// What is decided, with the new record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TelemetryDecision {
    /// The outcomes of stages 1 to 5.
    pub stages: Vec<Outcome>,
    /// Where it came from, where that was come to.
    pub risk: Option<Risk>,
    /// What becomes of it.
    pub verdict: Result<Counted, Refusal>,
    /// The record from now on; `None` where it stays as it is.
    pub after: Option<Node>,
}

impl TelemetryDecision {
    /// Whether it was refused by what anybody could be who is not the node.
    #[must_use]
    pub fn is_strangers(&self) -> bool {
        self.verdict.as_ref().is_err_and(|refusal| refusal.stage <= Stage::Sender)
    }
}

/// Decides about telemetry. It passes stages 1 to 5; a node that has had no capsule has none to send.
#[must_use]
pub fn decide(
    node: Option<&Node>,
    facts: &Facts,
    report: Option<&Report>,
    policy: &Policy,
    now: UnixTime,
) -> TelemetryDecision {
    let mut walk = Walk::new();
    let judged = judge(&mut walk, node, facts, report, policy, now);
    match judged {
        Ok((counted, risk, after)) => TelemetryDecision {
            stages: walk.stages,
            risk: Some(risk),
            verdict: Ok(counted),
            after: Some(after),
        },
        Err(refusal) => {
            let refused = refuse(walk, node, None, refusal);
            TelemetryDecision {
                stages: refused.stages,
                risk: None,
                verdict: Err(refusal),
                after: refused.after,
            }
        }
    }
}

fn judge(
    walk: &mut Walk,
    node: Option<&Node>,
    facts: &Facts,
    report: Option<&Report>,
    policy: &Policy,
    now: UnixTime,
) -> Result<(Counted, Risk, Node), Refusal> {
    let known = identify(walk, node, facts, policy, now)?;
    let stage = Stage::Telemetry;
    let Some(report) = report else {
        return Err(walk.refused(stage, Reason::TelemetryInvalid, "malformed_report"));
    };
    let Some(network) = &facts.place.network else {
        return Err(walk.refused(stage, Reason::NetworkPolicyViolation, "address_unknown"));
    };
    let boot = Some(report.boot.as_str());
    let risk = Risk::of(known, &facts.place, network, boot, &policy.risk, now);
    let before = known.heard.as_ref().filter(|heard| heard.boot == report.boot);
    let backwards = before.is_some_and(|heard| {
        report.seq < heard.seq || (report.seq == heard.seq && report.state != heard.state)
    });
    if backwards {
        return Err(walk.refused(stage, Reason::TelemetryOutOfOrder, "seq_goes_backwards"));
    }
    let mut after = known.clone();
    if known.baseline.is_none() || risk.is_strange() {
        let counters = &mut after.counters;
        counters.strange_telemetry = counters.strange_telemetry.saturating_add(1);
        baseline::telemetry(&mut after, network);
        return Ok((Counted::StrangeNetwork, risk, after));
    }
    baseline::telemetry(&mut after, network);
    after.counters.telemetry = after.counters.telemetry.saturating_add(1);
    if known.granted_boot.as_deref() != boot {
        return Ok((Counted::OtherBoot, risk, after));
    }
    if before.is_some_and(|heard| heard.seq == report.seq) {
        return Ok((Counted::Again, risk, after));
    }
    after.heard = Some(Heard {
        at: now,
        boot: report.boot.clone(),
        seq: report.seq,
        state: report.state,
        version: report.version.clone(),
    });
    Ok((Counted::Taken, risk, after))
}
