//! What it costs to be nobody: as much as to be wrong about somebody.

use std::num::NonZeroU32;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};

use super::ask::Asking;
use super::*;
use crate::gate::{Gate, Settings, Stores};
use crate::policy::capsule::baseline::BaselinePolicy;
use crate::policy::capsule::node::{Expectations, Node, NodeId, Status};
use crate::policy::capsule::pipeline::{BrakePolicy, ProofDemand, SealPolicy};
use crate::policy::capsule::risk::RiskPolicy;
use crate::policy::digest::{Sha256, made};
use crate::policy::epoch::Reign;
use crate::policy::jose::{Algorithm, AlgorithmSet};
use crate::policy::nonce::NonceSecret;
use crate::policy::proof::ProofRules;
use crate::policy::request::{RequestView, Sender};
use crate::policy::rule::{Demand, Mode, Requirement, Rules};
use crate::policy::time::UnixTime;
use crate::store::epoch::OfProcess;
use crate::store::failures::FailureLimits;
use crate::store::keys;
use crate::store::registry::Registry;
use crate::store::replay::MemoryReplay;
use crate::store::sqlite::writer::CheckpointRule;

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

fn gate(origin: Origin) -> Gate {
    let algorithms = AlgorithmSet::of(&[Algorithm::Es256]);
    let default = Requirement { demand: Demand::Any, mode: Mode::Enforce, algorithms, nonce: true };
    let settings = Settings {
        rules: Rules {
            default,
            dpop_enabled: true,
            mtls_enabled: true,
            certificate_audiences: Vec::new(),
            nonce_audiences: Vec::new(),
            tenants: Vec::new(),
            tenant_claim: None,
            unknown_tenant_allowed: false,
            share_salt: String::new(),
        },
        issuers: Vec::new(),
        origins: vec![origin],
        proof: ProofRules {
            proof_lifetime: Duration::from_secs(120),
            clock_skew: Duration::from_secs(30),
            replay_window: Duration::from_secs(300),
            nonce_ttl: Some(Duration::from_secs(600)),
            nonce_replaces_iat: false,
            nonce_single_use: false,
        },
        authorization_bytes: 16_384,
        proof_bytes: 8192,
        token_cache_entries: 10,
        introspection_cache_entries: 10,
        nonce_secrets: vec![NonceSecret::new([7; 32])],
        era_margin: Duration::ZERO,
        clients: Vec::new(),
        bypass: Arc::default(),
        rotation_grace: Duration::ZERO,
    };
    let replay = MemoryReplay::new(&[7; 32], Duration::from_secs(300), 1000);
    let epochs = Arc::new(OfProcess::new(Reign::of_process([7; 32], NOW)));
    Gate::new(settings, Stores::of_resources(Arc::new(replay), epochs))
}

fn settings(directory: &std::path::Path) -> config::Capsules {
    let number = |number| NonZeroU32::new(number).unwrap();
    let hour = Duration::from_secs(3600);
    config::Capsules {
        cluster: "test-cluster".to_owned(),
        origins: vec![0],
        policy: Policy {
            proof: ProofDemand::None,
            seal: SealPolicy::Off,
            bind_version: false,
            lifetime: hour,
            risk: RiskPolicy {
                address: 20,
                asn: 40,
                region: 50,
                abrupt_stop: 80,
                threshold: 80,
                abrupt_window: hour,
            },
            baseline: BaselinePolicy {
                confirm_below: 50,
                confirm_after: hour,
                confirm_contacts: 3,
                confirm_pause: hour,
            },
            brake: BrakePolicy { max_quarantines: 10, window: hour },
        },
        keys: directory.join("keys"),
        key_max_age: hour,
        asn_database: None,
        region_database: None,
        failures: FailureLimits {
            per_address: number(1000),
            per_node: number(1000),
            entries: 1000,
        },
    }
}

/// Capsules with one node, `node-1`, whose secret is `right`; and another that is revoked.
async fn capsules(directory: &std::path::Path) -> Capsules {
    let settings = settings(directory);
    keys::init(&settings.keys, keys::Algorithm::EdDsa, NOW).unwrap();
    let ring = Arc::new(KeyRing::load(&settings.keys).unwrap());
    let path = directory.join("holdfast.db");
    let rule = CheckpointRule { lines: 1000, interval: Duration::from_secs(3600) };
    let registry = Registry::open(&path, rule).unwrap();
    let enrolled = |id: &str, status: Status| {
        let id = NodeId::parse(id).unwrap();
        Node { status, ..Node::new(id, Sha256::of(b"right"), Expectations::default(), NOW) }
    };
    let nodes = [enrolled("node-1", Status::Active), enrolled("node-9", Status::Revoked)];
    let added =
        registry.transact(move |batch| nodes.iter().try_for_each(|node| batch.insert(node)));
    added.await.unwrap();
    let budget = Arc::new(crate::store::budget::Budget::new(1000, &path, 0));
    let failures = Arc::new(Failures::new(settings.failures, [7; 32]));
    let replay = Arc::new(MemoryReplay::new(&[8; 32], Duration::from_secs(300), 1000));
    let state = State {
        audit: Audit { nodes: Arc::new(registry.clone()), registry, budget },
        failures,
        replay,
    };
    let origins = [Origin::parse("https://api.example").unwrap()];
    Capsules::new(&settings, &origins, ring, Networks::default(), state)
}

fn asking<'a>(node: &'a str, path: &'a str, headers: &'a HeaderMap) -> Asking<'a> {
    let sender = Sender::NoCertificate;
    Asking {
        node,
        view: RequestView { method: "GET", path, query: None, headers, sender },
        origin: 0,
        decision: "00112233445566778899aabbccddeeff",
        address: Some([192, 0, 2, 1].into()),
        authorization_bytes: 16_384,
        certificates: true,
        now: NOW,
    }
}

fn headers(secret: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(
        "authorization",
        HeaderValue::from_bytes(format!("Bearer {secret}").as_bytes()).unwrap(),
    );
    headers.insert("x-node-fingerprint", HeaderValue::from_static("a machine"));
    headers
}

/// Records looked up and hashes made on the way to an answer, and the answer.
async fn cost(capsules: &Capsules, gate: &Gate, node: &str, secret: &str) -> (u64, u64, String) {
    let (path, headers) = (format!("{CAPSULE}{node}"), headers(secret));
    let (looked_up, hashed) = (capsules.nodes().looked_up(), made::COUNT.get());
    let outcome = capsules.capsule(gate, &asking(node, &path, &headers)).await;
    let told = format!("{:?}", outcome.told);
    let reason = told.split("code").next().unwrap_or_default().to_owned();
    (capsules.nodes().looked_up() - looked_up, made::COUNT.get() - hashed, reason)
}

#[tokio::test]
async fn an_unknown_node_costs_what_a_wrong_secret_costs() {
    let scratch = tempfile::tempdir().unwrap();
    let capsules = capsules(scratch.path()).await;
    let gate = gate(Origin::parse("https://api.example").unwrap());
    let wrong = cost(&capsules, &gate, "node-1", "wrong").await;
    assert_eq!(wrong.0, 1, "one record is looked up");
    assert!(wrong.1 > 0 && wrong.2.contains("AuthenticationFailed"), "{wrong:?}");
    for (node, secret) in [
        ("node-2", "wrong"),
        ("node-2", "right"),
        // Revoked, which whoever has no secret is not told.
        ("node-9", "wrong"),
        ("", "wrong"),
        ("..", "right"),
        ("-", "right"),
        ("a%2Fb", "wrong"),
        ("node-1", "not token68 ä"),
    ] {
        assert_eq!(cost(&capsules, &gate, node, secret).await, wrong, "{node} {secret}");
    }
    // And who is right is another matter.
    let right = cost(&capsules, &gate, "node-1", "right").await;
    assert!(right.2.contains("Granted"), "{right:?}");
}
