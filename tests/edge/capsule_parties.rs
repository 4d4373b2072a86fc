//! Runtime capsules as a node sees them that nobody of ours wrote: `tests/python/capsule.py`
//! fetches them by its own proofs, opens, verifies and derives them by other libraries, and says
//! what of it does not hold.

use std::io::Write as _;
use std::process::Stdio;

use holdfast::policy::time::UnixTime;
use holdfast::store::keys::{self, Algorithm};
use serde_json::{Value, json};

use super::peers::python;
use super::support::Table;
use super::support::node::{self, Node, with_capsules};
use super::support::world::{World, expect_eq};

/// The checks of a plain capsule; a sealed one has more.
const CHECKS: usize = 22;

/// What the node is, knows and trusts, for the script; `more` is added.
fn asked(world: &World, node: &Node, more: &Value) -> Value {
    let file = |name: &str| world.directory.path().join(name).display().to_string();
    let mut ask = json!({
        "port": world.client.port,
        "origin": "https://api.example",
        "authority": file("ca.pem"),
        "keys": file("keys"),
        "store": file("holdfast.db"),
        "cluster": "test-cluster",
        "node": node.id,
        "secret": node.secret,
        "fingerprint": node.fingerprint,
        "boot": "boot-1",
        "version": "1.2.3",
    });
    let members = more.as_object().expect("an object").clone();
    ask.as_object_mut().expect("an object").extend(members);
    ask
}

/// Asks with a DPoP key of the script's own.
fn proving(world: &World, node: &Node, more: &Value) -> Value {
    let key = world.directory.path().join(format!("{}.jwk", node.id)).display().to_string();
    let mut all = more.clone();
    all["key"] = json!(key);
    fetch(&asked(world, node, &all))
}

/// Asks with alice's certificate and the secret alone.
fn certified(world: &World, node: &Node, more: &Value) -> Value {
    let file = |name: &str| world.directory.path().join(name).display().to_string();
    let mut all = more.clone();
    all["certificate"] = json!(file("alice.pem"));
    all["certificateKey"] = json!(file("alice.key"));
    fetch(&asked(world, node, &all))
}

fn fetch(ask: &Value) -> Value {
    let mut child = python()
        .expect("Python was there")
        .arg("capsule.py")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("Python");
    let mut pipe = child.stdin.take().expect("a pipe");
    pipe.write_all(ask.to_string().as_bytes()).expect("a pipe");
    drop(pipe);
    let output = child.wait_with_output().expect("a child");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    serde_json::from_slice(&output.stdout).expect("a line of JSON")
}

/// Whether it is a capsule in which everything holds.
fn holds(told: &Value) -> Result<(), String> {
    expect_eq("status", &told["status"], &json!(200)).map_err(|e| format!("{e} {told}"))?;
    expect_eq("cache-control", &told["cache"], &json!("no-store"))?;
    let checks = told["checks"].as_object().expect("an object");
    let faults: Vec<_> = checks.iter().filter(|(_, holds)| **holds != json!(true)).collect();
    expect_eq("what does not hold", &faults, &Vec::new())?;
    expect_eq("many checks", &(checks.len() >= CHECKS), &true)
}

fn row(table: &mut Table, name: &str, told: &Value, expect: &[(&str, Value)]) {
    table.row(name, holds(told));
    for (fact, value) in expect {
        table.row(name, expect_eq(fact, &told["facts"][*fact], value));
    }
}

/// A world whose envelopes are signed by `algorithm`.
async fn world(algorithm: Algorithm, change: impl FnOnce(&mut Value)) -> World {
    World::start_in(|directory, _, config| {
        with_capsules(directory, config);
        let keys = directory.join("keys");
        std::fs::remove_dir_all(&keys).expect("keys");
        keys::init(&keys, algorithm, UnixTime::from_secs(1_800_000_000)).expect("keys");
        change(config);
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_implementation_finds_everything_as_documented() {
    if python().is_none() {
        return;
    }
    let mut table = Table::default();
    for (algorithm, named) in [(Algorithm::EdDsa, "EdDSA"), (Algorithm::Es256, "ES256")] {
        let world = world(algorithm, |_| {}).await;
        let alg = [("alg", json!(named))];
        let node = world.enrol("node-1", &[]);
        for (name, more) in [
            ("plain", json!({})),
            ("sealed", json!({"seal": "P-256"})),
            ("sealed, P-384", json!({"seal": "P-384"})),
            ("sealed, P-521", json!({"seal": "P-521"})),
        ] {
            let told = proving(&world, &node, &more);
            row(&mut table, &format!("ok/{named}, proof, {name}"), &told, &alg);
            table.row(name, expect_eq("challenges", &told["challenges"], &json!(1)));
            let sealed = told["checks"]["sealed"] == json!(true);
            table.row(name, expect_eq("sealed", &sealed, &more.get("seal").is_some()));
        }
        let okp = world.enrol("node-okp", &[]);
        let told = proving(&world, &okp, &json!({"okp": true}));
        row(&mut table, &format!("ok/{named}, Ed25519 proof"), &told, &alg);
        // A key is the node's, not its proof's.
        let other = world.enrol("node-3", &[]);
        for (name, more) in [("plain", json!({})), ("sealed", json!({"seal": "P-256"}))] {
            let told = certified(&world, &other, &more);
            row(&mut table, &format!("ok/{named}, certificate, {name}"), &told, &alg);
            table.row(name, expect_eq("challenges", &told["challenges"], &json!(0)));
            let sealed = told["checks"]["sealed"] == json!(true);
            table.row(name, expect_eq("sealed", &sealed, &more.get("seal").is_some()));
        }
        // A proof by another key is nobody's, and what the script sees then is a refusal.
        let key = world.directory.path().join("stranger.jwk").display().to_string();
        let told = fetch(&asked(&world, &node, &json!({"key": key})));
        table.row("fail/stranger", expect_eq("reason", &told["reason"], &json!("SENDER_MISMATCH")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_implementation_derives_every_version() {
    if python().is_none() {
        return;
    }
    let world = world(Algorithm::EdDsa, |_| {}).await;
    let node = world.enrol("node-1", &[]);
    let mut table = Table::default();
    let mut keys = Vec::new();
    let version = |version: &str| [("keyVersion", json!(version))];
    let none = json!({});
    let first = proving(&world, &node, &none);
    row(&mut table, "ok/first", &first, &version("m1.n1@1.2.3"));
    keys.push(first["facts"]["key"].clone());
    let told = proving(&world, &node, &json!({"version": "1.2.4"}));
    row(&mut table, "ok/another release", &told, &version("m1.n1@1.2.4"));
    keys.push(told["facts"]["key"].clone());
    world.change(&["rotate-key", "node-1"]);
    let told = proving(&world, &node, &none);
    row(&mut table, "ok/rotate-key", &told, &version("m1.n2@1.2.3"));
    keys.push(told["facts"]["key"].clone());
    world.command(&["key", "rotate", "master", "--reason", "a test"]);
    world.command(&[
        "key",
        "rotate",
        "envelope",
        "--algorithm",
        "es256",
        "--after",
        "0s",
        "--reason",
        "a test",
    ]);
    assert!(world.told_to_reload().await, "{}", world.process.output());
    let earlier = [&first["facts"]["envelope"], &told["facts"]["envelope"]];
    let told = proving(&world, &node, &json!({"earlier": earlier, "seal": "P-256"}));
    row(&mut table, "ok/rotate master", &told, &version("m2.n2@1.2.3"));
    row(&mut table, "ok/rotate envelope", &told, &[("alg", json!("ES256"))]);
    let kid = &first["facts"]["kid"];
    table.row("ok/earlier", expect_eq("still verified", &told["earlier"], &json!([kid, kid])));
    keys.push(told["facts"]["key"].clone());
    let old = proving(&world, &node, &json!({"query": "?keyVersion=m1.n1@1.2.3"}));
    row(&mut table, "ok/old", &old, &version("m1.n1@1.2.3"));
    table.row("ok/old", expect_eq("key", &old["facts"]["key"], &keys[0]));
    let mixed = proving(&world, &node, &json!({"query": "?keyVersion=m2.n1%401.2.3"}));
    row(&mut table, "ok/new master, old version", &mixed, &version("m2.n1@1.2.3"));
    keys.push(mixed["facts"]["key"].clone());
    // A signing key that is retired leaves the set, and what it signed is believed no more.
    let args = ["key", "retire", "envelope", "1", "--reason", "a test"];
    world.command(&args);
    assert!(world.told_to_reload().await, "{}", world.process.output());
    let told = proving(&world, &node, &none);
    let kids = told["facts"]["kids"].as_array().expect("a list").clone();
    table.row("ok/retired", expect_eq("published", &(kids.len(), kids.contains(kid)), &(1, false)));
    let count = keys.len();
    keys.sort_by_key(Value::to_string);
    keys.dedup();
    table.row("keys", expect_eq("differ", &keys.len(), &count));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_implementation_derives_keys_that_outlive_releases() {
    if python().is_none() {
        return;
    }
    let world = node::world(|config| config["capsules"]["bindVersion"] = json!(false)).await;
    let node = world.enrol("node-1", &[]);
    let mut table = Table::default();
    let mut keys = Vec::new();
    for (name, more) in [
        ("ok/a release", json!({})),
        ("ok/another", json!({"version": "9"})),
        ("ok/sealed", json!({"seal": "P-256"})),
    ] {
        let told = proving(&world, &node, &more);
        row(&mut table, name, &told, &[("keyVersion", json!("m1.n1"))]);
        keys.push(told["facts"]["key"].clone());
    }
    table.row("ok/same", expect_eq("keys", &keys, &vec![keys[0].clone(); 3]));
}
