//! The process is killed at any moment: what was told of is there, and nothing is there by half.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::support::node::{Node, told, world};
use super::support::process::Process;
use super::support::world::World;

/// Worlds at a time, and kills in each: 208.
const WORLDS: usize = 4;
const KILLS: usize = 52;
const NODES: usize = 6;
/// The latest moment after the first request, or the first answers, milliseconds.
const LATEST_MS: u64 = 60;

/// What was acknowledged in one life of the process.
#[derive(Default)]
struct Told {
    /// Capsules by their id, with their node.
    granted: BTreeMap<String, String>,
    /// Nodes.
    quarantined: Vec<String>,
    /// What else was answered.
    other: BTreeMap<String, usize>,
}

impl Told {
    fn has_both(&self) -> bool {
        !self.granted.is_empty() && !self.quarantined.is_empty()
    }
}

/// A number below `end`.
fn random(end: u64) -> u64 {
    let mut bytes = [0; 8];
    openssl::rand::rand_bytes(&mut bytes).expect("randomness");
    u64::from_le_bytes(bytes) % end
}

/// Asks again and again until the process is gone; at some time from far away.
async fn asking(world: Arc<World>, node: Node, nonce: String, all: Arc<Mutex<Told>>) {
    let (home, far) = ("127.0.0.1", "127.0.0.4");
    let leaves = random(12);
    let mut client = world.client.clone();
    for round in 0.. {
        client.from = if round == leaves { far } else { home };
        let Ok(mut connection) = client.connect(None).await else { return };
        let Ok(answer) = connection.send(&node.request(&nonce).bytes()).await else { return };
        let mut all = all.lock().expect("not poisoned");
        match told(&answer).as_str() {
            "200 risk 0" => {
                let capsule = answer.json()["capsuleId"].as_str().expect("an id").to_owned();
                all.granted.insert(capsule, node.id.clone());
            }
            "403 NETWORK_POLICY_VIOLATION risk 110" => {
                all.quarantined.push(node.id.clone());
                return;
            }
            other => *all.other.entry(other.to_owned()).or_default() += 1,
        }
    }
}

/// Holds the store against what was told, and itself.
fn check(world: &World, all: &Told) {
    let lines = world.audit();
    let mut granted = BTreeMap::<String, u64>::new();
    let mut capsules = BTreeMap::new();
    for line in &lines {
        let data = &line["data"];
        if data["verdict"].get("Ok").is_some() {
            let node = line["node"].as_str().expect("a node").to_owned();
            *granted.entry(node.clone()).or_default() += 1;
            let capsule = data["ids"]["capsule"].as_str().expect("an id").to_owned();
            capsules.insert(capsule, node);
        }
    }
    for (capsule, node) in &all.granted {
        assert_eq!(capsules.get(capsule), Some(node), "a capsule without its line");
    }
    let rows = world.command(&["node", "list", "--json"]);
    let rows: Vec<Value> =
        rows.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    for row in &rows {
        let id = row["id"].as_str().expect("an id");
        let counted = row["counters"]["granted"].as_u64().expect("a count");
        assert_eq!(counted, granted.get(id).copied().unwrap_or_default(), "{id}");
        if let Some(capsule) = row["issued"]["capsule"].as_str() {
            assert_eq!(
                capsules.get(capsule).map(String::as_str),
                Some(id),
                "a row without its line"
            );
        }
    }
    for node in &all.quarantined {
        let row = rows.iter().find(|row| row["id"] == json!(node)).expect("a row");
        assert_eq!(row["status"], json!("quarantined"), "a lost quarantine");
    }
    let verified = world.command(&["audit", "verify"]);
    assert!(verified.contains("the log is whole"), "{verified}");
}

async fn one_world() -> (usize, usize) {
    let mut world = world(|config| {
        config["capsules"]["fleetBrake"] = json!({"maxQuarantines": 1_000_000});
        config["capsules"]["risk"] = json!({"abruptWindow": "0s"});
    })
    .await;
    let nodes: Vec<_> = (0..NODES).map(|number| world.enrol(&format!("n{number}"), &[])).collect();
    let (mut grants, mut quarantines) = (0, 0);
    for kill in 0..KILLS {
        let nonce = world.node_nonce(&nodes[0]).await;
        let all = Arc::new(Mutex::new(Told::default()));
        let shared = Arc::new(world);
        let tasks: Vec<_> = nodes
            .iter()
            .map(|node| {
                let (world, node) = (Arc::clone(&shared), node.clone());
                tokio::spawn(asking(world, node, nonce.clone(), Arc::clone(&all)))
            })
            .collect();
        // On a slow machine there may be no answer in so short a time: every second kill waits for some.
        let polls = if kill % 2 == 0 { 0 } else { 1500 };
        for _ in 0..polls {
            if all.lock().expect("not poisoned").has_both() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(Duration::from_millis(random(LATEST_MS))).await;
        shared.process.signal("KILL");
        for task in tasks {
            task.await.expect("no panic");
        }
        world = Arc::into_inner(shared).expect("all tasks have ended");
        assert!(world.process.ended().await.is_some(), "it was not killed");
        let all = std::mem::take(&mut *all.lock().expect("not poisoned"));
        assert!(all.other.is_empty(), "{:?}", all.other);
        check(&world, &all);
        (grants, quarantines) = (grants + all.granted.len(), quarantines + all.quarantined.len());
        for row in world.command(&["node", "list", "--status", "quarantined", "--json"]).lines() {
            let row: Value = serde_json::from_str(row).expect("JSON");
            world.change(&["release", row["id"].as_str().expect("an id")]);
        }
        world.process = Process::start(world.directory.path(), &world.config, world.admin).await;
    }
    (grants, quarantines)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn killed_two_hundred_times() {
    let worlds: Vec<_> = (0..WORLDS).map(|_| tokio::spawn(one_world())).collect();
    let (mut grants, mut quarantines) = (0, 0);
    for world in worlds {
        let (granted, quarantined) = world.await.expect("no panic");
        (grants, quarantines) = (grants + granted, quarantines + quarantined);
    }
    // Too few would show nothing.
    assert!(grants > 100 && quarantines > 20, "{grants} grants, {quarantines} quarantines");
    println!("{} kills, {grants} grants and {quarantines} quarantines told of", WORLDS * KILLS);
}
