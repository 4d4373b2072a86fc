//! From a request to what is answered.

use std::sync::Arc;

use crate::gate::Gate;
use crate::policy::audit::Draft;
use crate::policy::capsule::decision::{Decision, Reason, Stage};
use crate::policy::capsule::facts::{Facts, Proof, Seal, SenderFacts};
use crate::policy::capsule::node::{Node, NodeId};
use crate::policy::capsule::pipeline::{self, Ids, Policy};
use crate::policy::capsule::record::CapsuleRecord;
use crate::policy::clock::Hint;
use crate::policy::denial::Denial;
use crate::policy::digest::Sha256;
use crate::policy::nonce::FreshNonce;
use crate::policy::presented::Scheme;
use crate::policy::proof::{self, Seen};
use crate::policy::time::UnixTime;
use crate::store::budget::{Budget, Verdict, Whom};
use crate::store::networks::Networks;
use crate::store::nodes::{About, Becomes, Commit, Found, Standing};
use crate::store::sqlite::Fault;

use super::Capsules;
use super::answer::Answer;
use super::ask::{Asking, Shown};
use super::seal::SealKey;
use super::tell::Told;

/// The code of a failure that is answered with nothing but that.
pub(super) const TOO_MANY_FAILURES: &str = "too_many_failures";

/// What the sender proved, with what came along.
pub(super) struct Proved {
    /// The proof.
    pub(super) proof: Proof,
    /// The denial behind a proof that does not hold.
    pub(super) denial: Option<Denial>,
    /// The key to seal to: `Err` for one that cannot be.
    pub(super) seal: Option<Result<SealKey, ()>>,
    /// The nonce that it came with.
    pub(super) nonce: Option<FreshNonce>,
}

/// What is answered, and what is told of it.
pub(in crate::edge) struct Outcome {
    pub(super) answer: Answer,
    pub(super) told: Told,
    /// Whether a fresh nonce goes along.
    pub(super) wants_nonce: bool,
}

impl Outcome {
    fn refused(reason: Reason, code: &str, score: u32, decision: Option<&Decision>) -> Self {
        let told = Told::refused(reason, code, score, decision);
        let denied = Answer::Denied { reason, score, wait: None, challenge: None };
        Self { answer: denied, told, wants_nonce: false }
    }

    /// Something that is needed is missing.
    pub(super) fn unavailable(code: &str) -> Self {
        Self::refused(Reason::Unavailable, code, 0, None)
    }

    /// With what is wrong with the proof.
    pub(super) fn about(mut self, denial: Option<Denial>) -> Self {
        if let Answer::Denied { challenge, .. } = &mut self.answer {
            *challenge = denial;
        }
        self
    }
}

impl Capsules {
    /// Decides about a capsule, and makes it.
    pub(in crate::edge) async fn capsule(&self, gate: &Gate, asking: &Asking<'_>) -> Outcome {
        let shown = asking.shown();
        let Some(ids) = ids(asking.decision) else {
            return Outcome::unavailable("no_randomness");
        };
        let mut facts = self.facts(asking);
        let row = match self.found(&shown, &mut facts).await {
            Ok(row) => row,
            Err(fault) => return Outcome::unavailable(fault_code(&fault)),
        };
        let decide =
            |facts: &Facts| pipeline::decide(row.as_ref(), facts, &self.policy, &ids, asking.now);
        let first = decide(&facts);
        if first.refused_before_sender() {
            let (row, ids) = (row.as_ref(), &ids);
            return self.strangers(asking, &shown, row, &facts, ids, &first, None).await;
        }
        let proved = match self.prove(gate, asking, &shown, row.as_ref()).await {
            Ok(proved) => proved,
            Err(code) => return Outcome::unavailable(code),
        };
        facts.sender.proof = proved.proof.clone();
        facts.keys.seal = match &proved.seal {
            None => Seal::Absent,
            Some(Ok(_)) => Seal::Usable,
            Some(Err(())) => Seal::Unusable,
        };
        let second = decide(&facts);
        if second.is_strangers() {
            let (row, ids, denial) = (row.as_ref(), &ids, proved.denial);
            return self.strangers(asking, &shown, row, &facts, ids, &second, denial).await;
        }
        let worn = proved.nonce.is_some_and(|nonce| gate.is_worn(&nonce));
        let committed = self.commit(asking, &shown, facts, ids.clone()).await;
        let mut outcome = match committed {
            Ok(decision) => self.answer(asking, &shown, &decision, &ids, &proved),
            Err(fault) => Outcome::unavailable(fault_code(&fault)),
        };
        outcome.wants_nonce |= worn;
        outcome
    }

    /// The record of whoever shows its secret; of anyone else only whether there is one, which goes into
    /// the audit log and nowhere else.
    pub(super) async fn found(
        &self,
        shown: &Shown<'_>,
        facts: &mut Facts,
    ) -> Result<Option<Node>, Fault> {
        let found = self.nodes().find(&shown.id, shown.hash).await?;
        facts.enrolled = !matches!(found, Found::Unknown);
        let Found::Node(row) = found else { return Ok(None) };
        facts.secret = shown.secret.is_some() && shown.named;
        Ok(facts.secret.then_some(row.node))
    }

    /// A refusal of what anybody could be who is not the node: it counts as a failure, and past the
    /// limit it says no more than that.
    #[expect(clippy::too_many_arguments, reason = "all of it goes into the record")]
    async fn strangers(
        &self,
        asking: &Asking<'_>,
        shown: &Shown<'_>,
        node: Option<&Node>,
        facts: &Facts,
        ids: &Ids,
        decision: &Decision,
        denial: Option<Denial>,
    ) -> Outcome {
        let Err(refusal) = decision.verdict else {
            return Outcome::unavailable("not_refused");
        };
        if let Some(answer) = self.limited(asking, facts).await {
            let reason = Reason::RateLimited;
            let told = Told::refused(reason, TOO_MANY_FAILURES, 0, Some(decision));
            return Outcome { answer, told, wants_nonce: false };
        }
        let asked = shown.named.then_some(&shown.id);
        let record =
            CapsuleRecord::new(asked, node, facts, &self.policy, ids, asking.now, decision);
        self.audit.note(asking.address, refusal.reason.name(), record.draft());
        let code = decision.stages.last().map_or("", |stage| stage.code.as_str());
        let mut outcome = Outcome::refused(refusal.reason, code, 0, Some(decision)).about(denial);
        let about_proof =
            matches!(facts.sender.proof, Proof::NeedsNonce { .. } | Proof::Faulty { .. })
                || code == "proof_missing";
        outcome.wants_nonce = refusal.stage == Stage::Sender && about_proof;
        outcome
    }

    /// Counts a failure. Past the limit that is the whole answer.
    pub(super) async fn limited(&self, asking: &Asking<'_>, facts: &Facts) -> Option<Answer> {
        // Whoever has the secret and begins without a nonce has not failed yet.
        if facts.secret && matches!(facts.sender.proof, Proof::NeedsNonce { .. }) {
            return None;
        }
        let wait = self.failures.count(asking.address, asking.node).await.err()?;
        self.audit.budget.leave_out();
        let reason = Reason::RateLimited;
        Some(Answer::Denied { reason, score: 0, wait: Some(wait), challenge: None })
    }

    /// Holds the sender's proof, and uses it up where it is the node's.
    ///
    /// # Errors
    /// Why nothing can be said: the replay log is full or away.
    pub(super) async fn prove(
        &self,
        gate: &Gate,
        asking: &Asking<'_>,
        shown: &Shown<'_>,
        node: Option<&Node>,
    ) -> Result<Proved, &'static str> {
        if shown.scheme != Some(Scheme::Dpop) {
            let (proof, seal) = if proof::is_presented(asking.view.headers) {
                (
                    Proof::Faulty { code: "proof_with_bearer".to_owned(), jkt: None, clock: None },
                    None,
                )
            } else {
                (Proof::Absent, asking.sender().x5t.and_then(|_| asking.seal_field()))
            };
            return Ok(Proved { proof, denial: None, seal, nonce: None });
        }
        let mut seen = Seen::default();
        let verified =
            gate.node_proof(&asking.view, asking.origin, shown.hash, &mut seen, asking.now);
        let faulty = |denial: Denial| {
            let code = denial.code().to_owned();
            let proof = if denial.is_about_nonce() {
                Proof::NeedsNonce { code }
            } else {
                let age = seen.nonce.map(|nonce| nonce.age);
                let clock =
                    Hint::of(denial, seen.clock_offset_ms, age).map(|hint| hint.to_string());
                Proof::Faulty { code, jkt: seen.jkt, clock }
            };
            Proved { proof, denial: Some(denial), seal: None, nonce: None }
        };
        let verified = match verified {
            Ok(verified) => verified,
            Err(denial @ Denial::StoreDown) => return Err(denial.code()),
            Err(denial) => return Ok(faulty(denial)),
        };
        let jkt = verified.jkt();
        let seal = match verified.enc_jwk() {
            Some(jwk) => Some(SealKey::read(jwk).ok_or(())),
            // Nobody signed it, and who wants its key sealed must not get it otherwise.
            None => asking.has_seal_field().then_some(Err(())),
        };
        let sender = SenderFacts { proof: Proof::Holds { jkt }, ..asking.sender() };
        // A sender that is not the node's must not fill the log.
        if node.is_some_and(|node| pipeline::is_sender(node, &sender, self.policy.proof)) {
            if !self.pace.take(shown.id.as_str()) {
                return Err("too_many_proofs");
            }
            match gate.use_up(&*self.replay, &verified, asking.now).await {
                Ok(()) => {}
                Err(denial @ (Denial::ReplayCapacity | Denial::StoreDown)) => {
                    return Err(denial.code());
                }
                Err(denial) => return Ok(faulty(denial)),
            }
        }
        Ok(Proved { proof: Proof::Holds { jkt }, denial: None, seal, nonce: seen.nonce })
    }

    /// Decides once more, on the record as it stands when nobody else can change it, and makes the
    /// outcome durable with its audit line.
    async fn commit(
        &self,
        asking: &Asking<'_>,
        shown: &Shown<'_>,
        facts: Facts,
        ids: Ids,
    ) -> Result<Decision, Fault> {
        let mut work = Work {
            id: shown.id.clone(),
            hash: shown.hash,
            facts,
            ids,
            policy: Arc::clone(&self.policy),
            networks: Arc::clone(&self.networks),
            budget: Arc::clone(&self.audit.budget),
            now: asking.now,
        };
        let since = Some(asking.now.minus(self.policy.brake.window));
        let about = About { quarantines_since: since, ..About::node(&shown.id) };
        self.nodes().decide(about, move |standing| Ok(work.run(standing))).await
    }

    fn answer(
        &self,
        asking: &Asking<'_>,
        shown: &Shown<'_>,
        decision: &Decision,
        ids: &Ids,
        proved: &Proved,
    ) -> Outcome {
        let score = decision.score();
        match (&decision.verdict, &decision.after) {
            (Ok(grant), Some(after)) => {
                let seal = proved.seal.as_ref().and_then(|seal| seal.as_ref().ok());
                let made = self.make(shown, after, grant, ids, score, seal, asking.now);
                match made {
                    Some(body) => {
                        let told = Told::granted(decision, body.capsule_id.clone());
                        let answer = Answer::Granted(Box::new(body));
                        Outcome { answer, told, wants_nonce: false }
                    }
                    None => Outcome::unavailable("capsule_not_made"),
                }
            }
            (Err(refusal), _) => {
                let code = decision.stages.last().map_or("", |stage| stage.code.as_str());
                Outcome::refused(refusal.reason, code, score, Some(decision))
            }
            (Ok(_), None) => Outcome::unavailable("no_record"),
        }
    }
}

/// What is decided when nobody else can change the record.
struct Work {
    id: NodeId,
    hash: Sha256,
    facts: Facts,
    ids: Ids,
    policy: Arc<Policy>,
    networks: Arc<Networks>,
    budget: Arc<Budget>,
    now: UnixTime,
}

impl Work {
    fn run(&mut self, standing: &Standing) -> (Decision, Commit) {
        let node = standing.node();
        bring_up_to_date(&mut self.facts, node, &self.hash, &self.networks);
        self.facts.recent_quarantines = standing.quarantines;
        let decision = pipeline::decide(node, &self.facts, &self.policy, &self.ids, self.now);
        let mut commit = Commit::default();
        if !self.is_written(&decision, &mut commit) {
            return (decision, commit);
        }
        commit.becomes = becomes(standing, decision.after.as_ref());
        commit.quarantined = decision.quarantined.then_some(self.now);
        let Self { id, facts, policy, ids, now, .. } = &*self;
        let record = CapsuleRecord::new(Some(id), node, facts, policy, ids, *now, &decision);
        commit.lines.push(record.draft());
        (decision, commit)
    }

    /// Whether a decision is written down. A grant and a quarantine always are; another refusal as far
    /// as the node's budget goes, so that nobody who is refused takes the disk from those who are not.
    fn is_written(&self, decision: &Decision, commit: &mut Commit) -> bool {
        let Err(refusal) = decision.verdict else { return true };
        if decision.quarantined {
            return true;
        }
        match self.budget.take(Whom::Node(self.id.as_str()), refusal.reason.name()) {
            Verdict::Suppress => false,
            Verdict::Write { suppressed: 0 } => true,
            Verdict::Write { suppressed } => {
                commit.lines.push(Draft::suppressed(suppressed, self.now, &self.ids.decision));
                true
            }
        }
    }
}

/// What becomes of the record that is there, where there is one.
pub(super) fn becomes(standing: &Standing, after: Option<&Node>) -> Becomes {
    match (&standing.row, after) {
        (Some(_), Some(after)) => Becomes::Node(Box::new(after.clone())),
        (Some(_) | None, None) | (None, Some(_)) => Becomes::Same,
    }
}

/// Gathers anew, on the record as it stands, what depends on the record: it may have been changed since it
/// was read. The baseline's address is looked up in the builds that the request's was looked up in.
pub(super) fn bring_up_to_date(
    facts: &mut Facts,
    node: Option<&Node>,
    hash: &Sha256,
    networks: &Networks,
) {
    facts.enrolled = node.is_some();
    facts.secret = Node::knows(node, hash);
    let baseline = node.and_then(|node| node.baseline.as_ref());
    facts.place.baseline = baseline.map(|baseline| networks.locate(baseline.network.address));
}

/// The decision's name, and 128 random bits for the capsule's.
#[expect(clippy::disallowed_methods, reason = "a capsule has a random id")]
fn ids(decision: &str) -> Option<Ids> {
    let mut capsule = [0; 16];
    aws_lc_rs::rand::fill(&mut capsule).ok()?;
    let capsule = format!("{:032x}", u128::from_be_bytes(capsule));
    Some(Ids { decision: decision.to_owned(), capsule })
}

pub(super) fn fault_code(fault: &Fault) -> &'static str {
    match fault {
        Fault::Busy => "store_busy",
        Fault::Late => "store_late",
        Fault::Failed(_) => "store_failed",
        Fault::Malformed => "record_malformed",
        Fault::Conflict => "record_changed",
        Fault::Replaced => "store_replaced",
        Fault::Closed => "store_closed",
        Fault::Down => "store_down",
        Fault::Behind => "store_behind",
        Fault::Unvouched => "store_unvouched",
    }
}
