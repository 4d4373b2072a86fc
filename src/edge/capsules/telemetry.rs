//! Telemetry: the same first five stages, and what it changes in one transaction.

use std::sync::Arc;

use crate::gate::Gate;
use crate::policy::audit::{Draft, Kind};
use crate::policy::capsule::decision::{Reason, Stage};
use crate::policy::capsule::facts::{Facts, Proof};
use crate::policy::capsule::pipeline::Policy;
use crate::policy::capsule::record::TelemetryRecord;
use crate::policy::capsule::telemetry::{self, Counted, Report, TelemetryDecision};
use crate::policy::digest::Sha256;
use crate::policy::time::UnixTime;
use crate::store::networks::Networks;
use crate::store::nodes::{About, Commit, Standing};
use crate::telemetry::metrics::TelemetryResult;

use super::Capsules;
use super::answer::Answer;
use super::ask::{Asking, Shown};
use super::decide::{Outcome, TOO_MANY_FAILURES, becomes, bring_up_to_date, fault_code};
use super::tell::Told;

impl Capsules {
    /// Takes telemetry. `body` is `None` where it is longer than any can be.
    pub(in crate::edge) async fn telemetry(
        &self,
        gate: &Gate,
        asking: &Asking<'_>,
        body: Option<&[u8]>,
    ) -> Outcome {
        let shown = asking.shown();
        let report = body.and_then(Report::read);
        let mut facts = self.facts(asking);
        let row = match self.found(&shown, &mut facts).await {
            Ok(row) => row,
            Err(fault) => return unavailable(fault_code(&fault)),
        };
        let decide = |facts: &Facts| {
            telemetry::decide(row.as_ref(), facts, report.as_ref(), &self.policy, asking.now)
        };
        let first = decide(&facts);
        let early = first.verdict.as_ref().is_err_and(|refusal| refusal.stage < Stage::Sender);
        if early {
            return self.turned_away(asking, &shown, &facts, report, &first).await;
        }
        let proved = match self.prove(gate, asking, &shown, row.as_ref()).await {
            Ok(proved) => proved,
            Err(code) => return unavailable(code),
        };
        facts.sender.proof = proved.proof.clone();
        let second = decide(&facts);
        if second.is_strangers() {
            let outcome = self.turned_away(asking, &shown, &facts, report, &second).await;
            let wants_nonce =
                matches!(facts.sender.proof, Proof::NeedsNonce { .. } | Proof::Faulty { .. });
            return Outcome { wants_nonce, ..outcome.about(proved.denial) };
        }
        let mut work = Work {
            hash: shown.hash,
            facts,
            report,
            policy: Arc::clone(&self.policy),
            networks: Arc::clone(&self.networks),
            now: asking.now,
        };
        let about = About::node(&shown.id);
        match self.nodes().decide(about, move |standing| Ok(work.run(standing))).await {
            Ok((decision, facts, report)) => {
                let mut outcome = self.taken(asking, &shown, &facts, report, &decision);
                outcome.wants_nonce |= proved.nonce.is_some_and(|nonce| gate.is_worn(&nonce));
                outcome
            }
            Err(fault) => unavailable(fault_code(&fault)),
        }
    }

    /// A refusal of what anybody could be who is not the node.
    async fn turned_away(
        &self,
        asking: &Asking<'_>,
        shown: &Shown<'_>,
        facts: &Facts,
        report: Option<Report>,
        decision: &TelemetryDecision,
    ) -> Outcome {
        if let Some(answer) = self.limited(asking, facts).await {
            let told = Told::telemetry(TelemetryResult::Refused, TOO_MANY_FAILURES, None);
            return Outcome { answer, told, wants_nonce: false };
        }
        self.taken(asking, shown, facts, report, decision)
    }

    /// What is answered and written down of a decision.
    fn taken(
        &self,
        asking: &Asking<'_>,
        shown: &Shown<'_>,
        facts: &Facts,
        report: Option<Report>,
        decision: &TelemetryDecision,
    ) -> Outcome {
        let node = decision.after.as_ref().map(|node| node.id.to_string());
        let code = decision.stages.last().map_or("", |stage| stage.code.as_str());
        let (answer, result, noted) = match &decision.verdict {
            Ok(Counted::Taken | Counted::Again) => (Answer::Taken, TelemetryResult::Taken, None),
            Ok(Counted::OtherBoot) => (Answer::Taken, TelemetryResult::OtherBoot, None),
            Ok(Counted::StrangeNetwork) => {
                let reason = Reason::NetworkPolicyViolation;
                (Answer::Taken, TelemetryResult::StrangeNetwork, Some(reason))
            }
            Err(refusal) => {
                let reason = refusal.reason;
                let denied = Answer::Denied { reason, score: 0, wait: None, challenge: None };
                (denied, TelemetryResult::Refused, Some(reason))
            }
        };
        if let Some(reason) = noted {
            let record = TelemetryRecord {
                asked: shown.named.then(|| shown.id.to_string()),
                facts: facts.clone(),
                report,
                stages: decision.stages.clone(),
                risk: decision.risk,
                verdict: decision.verdict,
            };
            let (kind, id) = (Kind::Telemetry, asking.decision);
            let draft = Draft::new(kind, asking.now, id, node.as_deref(), &record);
            self.audit.note(asking.address, reason.name(), draft);
        }
        Outcome { answer, told: Told::telemetry(result, code, node), wants_nonce: false }
    }
}

fn unavailable(code: &str) -> Outcome {
    let told = Told::telemetry(TelemetryResult::Refused, code, None);
    Outcome { told, ..Outcome::unavailable(code) }
}

struct Work {
    hash: Sha256,
    facts: Facts,
    report: Option<Report>,
    policy: Arc<Policy>,
    networks: Arc<Networks>,
    now: UnixTime,
}

/// What was decided, and what from.
type Decided = (TelemetryDecision, Facts, Option<Report>);

impl Work {
    fn run(&mut self, standing: &Standing) -> (Decided, Commit) {
        let node = standing.node();
        bring_up_to_date(&mut self.facts, node, &self.hash, &self.networks);
        let report = self.report.as_ref();
        let decision = telemetry::decide(node, &self.facts, report, &self.policy, self.now);
        let becomes = becomes(standing, decision.after.as_ref());
        let decided = (decision, self.facts.clone(), self.report.clone());
        (decided, Commit { becomes, ..Commit::default() })
    }
}
