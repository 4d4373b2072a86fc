//! A record, facts, a policy and a time in; the last stage's word and the whole record out.

use std::time::Duration;

use super::baseline::BaselinePolicy;
use super::decision::{Decision, Stage};
use super::facts::{
    Asked, Databases, Facts, Fingerprint, KeyFacts, Place, Proof, Seal, SenderFacts,
};
use super::node::{Baseline, Contact, Expectations, Issued, Network, Node, NodeId};
use super::node::{Counters, Quarantine, Status};
use super::pipeline::{BrakePolicy, Ids, Policy, ProofDemand, SealPolicy, decide};
use super::risk::RiskPolicy;
use crate::policy::digest::{Jkt, Sha256, X5tS256};
use crate::policy::time::UnixTime;

mod first;
mod keys;
mod moves;
mod networks;
mod properties;
mod records;
mod stages;
mod telemetry;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

const HOME: &str = "192.0.2.1";
/// Another address of home's system and region: 20.
const NEAR: &str = "192.0.2.2";
/// The same.
const NEXT: &str = "192.0.2.3";
/// Another system, in home's region: 60.
const OTHER_AS: &str = "198.51.100.1";
/// Home's system, in another region: 70.
const OTHER_REGION: &str = "192.0.2.129";
/// Another system, in another region: 110.
const FAR: &str = "203.0.113.1";
/// In no database.
const NOWHERE: &str = "10.0.0.1";
/// In no database either.
const NOWHERE_ELSE: &str = "10.0.0.2";

/// What the databases of these tests say.
fn seen_at(address: &str) -> Network {
    let (asn, region) = match address {
        OTHER_AS => (Some(64_501), Some("SE-AB")),
        OTHER_REGION => (Some(64_500), Some("SE-M")),
        FAR => (Some(64_502), Some("NO-03")),
        NOWHERE | NOWHERE_ELSE => (None, None),
        _ => (Some(64_500), Some("SE-AB")),
    };
    Network { address: address.parse().unwrap(), asn, region: region.map(str::to_owned) }
}

fn jkt(name: &str) -> Jkt {
    Jkt(Sha256::of(name.as_bytes()))
}

fn x5t(name: &str) -> X5tS256 {
    X5tS256(Sha256::of(name.as_bytes()))
}

fn holds(name: &str) -> Proof {
    Proof::Holds { jkt: jkt(name) }
}

fn policy() -> Policy {
    Policy {
        proof: ProofDemand::Any,
        seal: SealPolicy::Offered,
        bind_version: true,
        lifetime: DAY,
        risk: RiskPolicy {
            address: 20,
            asn: 40,
            region: 50,
            abrupt_stop: 80,
            threshold: 80,
            abrupt_window: 300 * SECOND,
        },
        baseline: BaselinePolicy {
            confirm_below: 50,
            confirm_after: DAY,
            confirm_contacts: 3,
            confirm_pause: 7 * DAY,
        },
        brake: BrakePolicy { max_quarantines: 3, window: HOUR },
    }
}

fn enrolled() -> Node {
    let id = NodeId::parse("node-1").unwrap();
    Node::new(id, Sha256::of(b"secret"), Expectations::default(), NOW.minus(DAY))
}

/// A node that has had its first capsule at home.
fn joined() -> Node {
    let baseline = Baseline { network: seen_at(HOME), confirmed: NOW.minus(HOUR), by_time: false };
    Node {
        fingerprint: Some(Sha256::of(b"fingerprint")),
        jkt: Some(jkt("key")),
        baseline: Some(baseline),
        counters: Counters { granted: 1, refused: 5, telemetry: 7, strange_telemetry: 9 },
        ..enrolled()
    }
}

/// A request that a joined node gets a capsule for.
fn facts() -> Facts {
    Facts {
        enrolled: true,
        secret: true,
        sender: SenderFacts { proof: holds("key"), x5t: None },
        fingerprint: Fingerprint::Shown(Sha256::of(b"fingerprint")),
        boot: Some("boot-1".to_owned()),
        version: Some("1.4.0".to_owned()),
        place: Place {
            network: Some(seen_at(HOME)),
            baseline: Some(seen_at(HOME)),
            databases: Databases { asn: Some(1), region: Some(2) },
        },
        recent_quarantines: 0,
        keys: KeyFacts { asked: Asked::Current, masters: vec![2, 3], seal: Seal::Absent },
    }
}

fn ids() -> Ids {
    Ids { decision: "decision-1".to_owned(), capsule: "capsule-1".to_owned() }
}

/// What a decision is made from.
struct Case {
    node: Option<Node>,
    facts: Facts,
    policy: Policy,
    now: UnixTime,
}

impl Case {
    /// A joined node at home, granted a capsule.
    fn joined() -> Self {
        Self { node: Some(joined()), facts: facts(), policy: policy(), now: NOW }
    }

    /// A node that asks for its first capsule, and gets it.
    fn first() -> Self {
        let mut case = Self { node: Some(enrolled()), ..Self::joined() };
        case.facts.place.baseline = None;
        case
    }

    fn with(mut self, edit: impl FnOnce(&mut Self)) -> Self {
        edit(&mut self);
        self
    }

    fn node(&mut self) -> &mut Node {
        self.node.as_mut().unwrap()
    }

    fn expected(&mut self) -> &mut Expectations {
        &mut self.node().expected
    }

    /// The request comes from `address`, by the databases of these tests.
    fn from(&mut self, address: &str) {
        self.facts.place.network = Some(seen_at(address));
    }

    fn decide(&self) -> Decision {
        let enrolled = self.facts.enrolled && self.node.is_some();
        let facts = Facts { enrolled, ..self.facts.clone() };
        decide(self.node.as_ref(), &facts, &self.policy, &ids(), self.now)
    }
}

/// `8 granted m3.n1@1.4.0`, or the refusing stage with its code and its reason.
fn told(decision: &Decision) -> String {
    let risk = match decision.score() {
        0 => String::new(),
        score => format!(" risk {score}"),
    };
    let note = |noted: bool, word: &'static str| if noted { word } else { "" };
    match &decision.verdict {
        Ok(grant) => format!(
            "8 granted {}{risk}{}{}",
            grant.key_version,
            note(grant.sealed, " sealed"),
            note(grant.first, " first"),
        ),
        Err(refusal) => format!(
            "{} {} {}{risk}{}{}",
            refusal.stage.number(),
            decision.stages.last().unwrap().code,
            refusal.reason.name(),
            note(decision.quarantined, " quarantined"),
            note(decision.held, " held"),
        ),
    }
}

/// Decides, and holds against it the word, the order of its stages and the whole new record.
fn check(name: &str, case: &Case, expect: &str) -> Decision {
    let decision = case.decide();
    assert_eq!(told(&decision), expect, "{name}");
    assert_eq!(decision, case.decide(), "{name}: twice the same");
    assert_eq!(name.starts_with("ok/"), decision.verdict.is_ok(), "{name}");
    check_stages(name, &decision);
    match &decision.verdict {
        Ok(_) => check_granted(name, case, &decision),
        Err(_) => check_refused(name, case, &decision),
    }
    decision
}

fn check_stages(name: &str, decision: &Decision) {
    let stages: Vec<_> = decision.stages.iter().map(|outcome| outcome.stage).collect();
    let last = match &decision.verdict {
        Ok(_) => Stage::Key,
        Err(refusal) => refusal.stage,
    };
    let expect: Vec<_> = Stage::ALL.into_iter().filter(|stage| *stage <= last).collect();
    // What nobody knows has no secret that stage 1 could look at.
    if stages != [Stage::Node] {
        assert_eq!(stages, expect, "{name}");
    }
    for outcome in &decision.stages {
        let passed = decision.verdict.is_ok() || outcome.stage < last;
        assert_eq!(outcome.passed, passed, "{name}: {outcome:?}");
    }
    let before_sender = decision.verdict.is_err() && last < Stage::Sender;
    assert_eq!(decision.refused_before_sender(), before_sender, "{name}");
    let strangers = decision.verdict.is_err() && last <= Stage::Sender;
    assert_eq!(decision.is_strangers(), strangers, "{name}");
}

/// A grant moves nothing but what it is for. What it adopts and confirms has its own tests.
fn check_granted(name: &str, case: &Case, decision: &Decision) {
    let (before, after) = (case.node.as_ref().unwrap(), decision.after.as_ref().unwrap());
    let grant = decision.verdict.as_ref().unwrap();
    let network = case.facts.place.network.clone().unwrap();
    let mut expect = before.clone();
    if !before.has_joined() {
        expect.fingerprint = after.fingerprint;
        expect.jkt = after.jkt;
        expect.x5t = after.x5t;
    }
    expect.baseline.clone_from(&after.baseline);
    expect.candidate.clone_from(&after.candidate);
    if let Some(software) = &grant.key_version.software
        && !before.versions.contains(software)
    {
        expect.versions.push(software.clone());
        expect.versions.drain(..expect.versions.len().saturating_sub(32));
    }
    expect.last = Some(Contact { network, at: case.now });
    if let Some(boot) = &case.facts.boot {
        expect.granted_boot = Some(boot.clone());
    }
    expect.issued = Some(Issued {
        capsule: "capsule-1".to_owned(),
        at: case.now,
        expires: case.now.plus(case.policy.lifetime),
        key_version: grant.key_version.clone(),
    });
    expect.counters.granted += 1;
    assert_eq!(*after, expect, "{name}");
    assert_eq!(grant.issued, case.now, "{name}");
    assert_eq!(grant.expires, case.now.plus(case.policy.lifetime), "{name}");
    assert_eq!(grant.first, !before.has_joined(), "{name}");
    assert!(!decision.quarantined && !decision.held, "{name}");
}

/// A refusal counts, of whoever had the secret, and may quarantine.
fn check_refused(name: &str, case: &Case, decision: &Decision) {
    let refusal = decision.verdict.as_ref().unwrap_err();
    if refusal.stage <= Stage::Node {
        assert_eq!(decision.after, None, "{name}");
        return;
    }
    let mut expect = case.node.clone().unwrap();
    expect.counters.refused += 1;
    if decision.quarantined {
        assert_eq!(refusal.stage, Stage::Network, "{name}");
        expect.status = Status::Quarantined;
        expect.candidate = None;
        expect.quarantine = Some(Quarantine {
            at: case.now,
            decision: Some("decision-1".to_owned()),
            score: decision.score(),
            network: case.facts.place.network.clone(),
        });
    }
    assert_eq!(decision.after.as_ref(), Some(&expect), "{name}");
}
