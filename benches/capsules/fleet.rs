//! Nodes as a registry has them after their first capsule, and what is decided about them.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use holdfast::policy::audit::{Draft, Kind};
use holdfast::policy::capsule::baseline::BaselinePolicy;
use holdfast::policy::capsule::decision::Decision;
use holdfast::policy::capsule::facts::{
    Asked, Facts, Fingerprint, KeyFacts, Place, Proof, Seal, SenderFacts,
};
use holdfast::policy::capsule::key::KeyVersion;
use holdfast::policy::capsule::node::{Baseline, Contact, Expectations, Issued, Node, NodeId};
use holdfast::policy::capsule::pipeline::{
    self, BrakePolicy, Ids, Policy, ProofDemand, SealPolicy,
};
use holdfast::policy::capsule::record::CapsuleRecord;
use holdfast::policy::capsule::risk::RiskPolicy;
use holdfast::policy::digest::{Jkt, Sha256};
use holdfast::policy::time::UnixTime;
use holdfast::store::networks::Networks;
use holdfast::store::networks::sample::{Entry, database};
use holdfast::store::sqlite::batch::Batch;
use holdfast::store::sqlite::{Database, Fault};
use serde_json::json;

use crate::Outcome;

/// Nodes of one transaction while they are registered.
const AT_A_TIME: u32 = 10_000;
const HOUR: Duration = Duration::from_secs(3600);
/// From where all of them ask.
pub(crate) const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What a decision is made with, beside the record and the facts.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) policy: Policy,
    pub(crate) networks: Networks,
}

/// Everything of a decision that a request brings along.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) id: NodeId,
    pub(crate) secret: Sha256,
    pub(crate) facts: Facts,
    pub(crate) ids: Ids,
    pub(crate) now: UnixTime,
}

impl Setting {
    /// The defaults; the networks are written to `directory`.
    pub(crate) fn new(directory: &Path) -> Outcome<Arc<Self>> {
        let file = write_networks(directory)?;
        let policy = Policy {
            proof: ProofDemand::Any,
            seal: SealPolicy::Offered,
            bind_version: true,
            lifetime: 24 * HOUR,
            risk: RiskPolicy {
                address: 20,
                asn: 40,
                region: 50,
                abrupt_stop: 80,
                threshold: 80,
                abrupt_window: HOUR / 12,
            },
            baseline: BaselinePolicy {
                confirm_below: 50,
                confirm_after: 24 * HOUR,
                confirm_contacts: 3,
                confirm_pause: 168 * HOUR,
            },
            brake: BrakePolicy { max_quarantines: 10, window: HOUR / 6 },
        };
        Ok(Arc::new(Self { policy, networks: Networks::open(Some(&file), Some(&file))? }))
    }

    /// A renewal by node `number`.
    pub(crate) fn request(&self, number: u32) -> Outcome<Request> {
        let jkt = jkt(number);
        let facts = Facts {
            enrolled: true,
            secret: true,
            sender: SenderFacts { proof: Proof::Holds { jkt }, x5t: None },
            fingerprint: Fingerprint::Shown(Sha256::of(fingerprint(number).as_bytes())),
            boot: Some("boot-1".to_owned()),
            version: Some("1.2.3".to_owned()),
            place: Place {
                network: Some(self.networks.locate(ADDRESS)),
                baseline: Some(self.networks.locate(ADDRESS)),
                databases: self.networks.builds(),
            },
            recent_quarantines: 0,
            keys: KeyFacts { asked: Asked::Current, masters: vec![1], seal: Seal::Absent },
        };
        Ok(Request {
            id: NodeId::parse(&name(number))?,
            secret: Sha256::of(secret(number).as_bytes()),
            facts,
            ids: Ids { decision: random()?, capsule: random()? },
            now: now(),
        })
    }

    /// What a grant does in its transaction, step by step what the edge does: the row is read and
    /// decided about, the new one is put in its place, and the audit line is added.
    pub(crate) fn grant(&self, mut asked: Request, batch: &mut Batch<'_>) -> Result<(), Fault> {
        let row = batch.node(&asked.id)?.ok_or(Fault::Malformed)?;
        asked.facts.secret = Node::knows(Some(&row.node), &asked.secret);
        let baseline = row.node.baseline.as_ref();
        asked.facts.place.baseline =
            baseline.map(|baseline| self.networks.locate(baseline.network.address));
        let since = asked.now.minus(self.policy.brake.window);
        asked.facts.recent_quarantines = batch.quarantines(since)?;
        let decision = self.decide(&row.node, &asked);
        let after = decision.after.as_ref().ok_or(Fault::Malformed)?;
        // What is measured is a grant, and nothing else.
        decision.verdict.as_ref().map_err(|_| Fault::Malformed)?;
        batch.update(after, row.revision)?;
        let record = CapsuleRecord {
            asked: Some(asked.id.to_string()),
            node: Some(row.node.without_secret()),
            facts: asked.facts,
            policy: self.policy.clone(),
            ids: asked.ids.clone(),
            now: asked.now,
            stages: decision.stages.clone(),
            risk: decision.risk,
            verdict: decision.verdict.clone(),
            quarantined: decision.quarantined,
            held: decision.held,
        };
        let (id, decision) = (asked.id.as_str(), &asked.ids.decision);
        batch.append(&Draft::new(Kind::Capsule, asked.now, decision, Some(id), &record))
    }

    pub(crate) fn decide(&self, node: &Node, asked: &Request) -> Decision {
        pipeline::decide(Some(node), &asked.facts, &self.policy, &asked.ids, asked.now)
    }
}

/// Node `number` after its first capsule, bound to `jkt`.
pub(crate) fn node(number: u32, jkt: Jkt, networks: &Networks, now: UnixTime) -> Outcome<Node> {
    let id = NodeId::parse(&name(number))?;
    let secret = Sha256::of(secret(number).as_bytes());
    let before = now.minus(HOUR);
    let mut node = Node::new(id, secret, Expectations::default(), before);
    let network = networks.locate(ADDRESS);
    node.fingerprint = Some(Sha256::of(fingerprint(number).as_bytes()));
    node.jkt = Some(jkt);
    node.baseline = Some(Baseline { network: network.clone(), confirmed: before, by_time: false });
    node.last = Some(Contact { network, at: before });
    node.granted_boot = Some("boot-1".to_owned());
    node.issued = Some(Issued {
        capsule: random()?,
        at: before,
        expires: now.plus(HOUR),
        key_version: KeyVersion::parse("m1.n1@1.2.3")?,
    });
    node.counters.granted = 1;
    Ok(node)
}

/// Registers nodes 0 to `count` - 1, each with its line in the audit log, as a command does.
pub(crate) fn register(
    database: &mut Database,
    count: u32,
    networks: &Networks,
    jkt: impl Fn(u32) -> Jkt,
) -> Outcome<()> {
    let mut first = 0;
    while first < count {
        let until = count.min(first.saturating_add(AT_A_TIME));
        let mut nodes = Vec::new();
        for number in first..until {
            nodes.push((node(number, jkt(number), networks, now())?, random()?));
        }
        database.transact(|batch| {
            for (node, line) in &nodes {
                batch.insert(node)?;
                let data = json!({
                    "action": "add", "after": node.without_secret(), "reason": "a benchmark",
                    "actor": {"user": "bench"},
                });
                let (kind, id) = (Kind::NodeChange, Some(node.id.as_str()));
                batch.append(&Draft::new(kind, node.enrolled, line, id, &data))?;
            }
            Ok(())
        })?;
        first = until;
    }
    Ok(())
}

/// Networks, in MaxMind's format.
pub(crate) fn write_networks(directory: &Path) -> Outcome<std::path::PathBuf> {
    let file = directory.join("networks.mmdb");
    let entry =
        Entry { network: "127.0.0.0/8".parse()?, asn: Some(64_500), region: Some(("SE", "M")) };
    std::fs::write(&file, database(&[entry], 1_800_000_000))?;
    Ok(file)
}

pub(crate) fn name(number: u32) -> String {
    format!("node-{number:07}")
}

pub(crate) fn secret(number: u32) -> String {
    // As long as one that a command makes.
    Sha256::of(format!("secret of {number}").as_bytes()).to_string()
}

pub(crate) fn fingerprint(number: u32) -> String {
    format!("fingerprint-of-node-{number:07}")
}

/// Of a key that nobody has.
pub(crate) fn jkt(number: u32) -> Jkt {
    Jkt(Sha256::of(format!("key of {number}").as_bytes()))
}

/// As the edge names decisions and capsules.
pub(crate) fn random() -> Outcome<String> {
    let mut id = [0; 16];
    aws_lc_rs::rand::fill(&mut id)?;
    Ok(format!("{:032x}", u128::from_be_bytes(id)))
}

pub(crate) fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixTime::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
