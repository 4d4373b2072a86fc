//! `holdfast node`, `key` and `audit`, as an operator runs them.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use super::support::Table;
use super::support::node::{holdfast, told, world};
use super::support::world::{World, expect_eq};

/// Runs a command; its status, output and errors.
fn run(world: &World, words: &str) -> (Option<i32>, String, String) {
    let words = words.replace("@", "--config authority.yaml --reason because");
    holdfast(world.directory.path(), &words.split(' ').collect::<Vec<_>>())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_said_and_not_done() {
    let world = world(|_| {}).await;
    let _ = world.enrol("node-1", &[]);
    let mut table = Table::default();
    let before = world.audit().len();
    for (words, status, expect) in [
        ("node add node-1 @", 1, "there is a node node-1 already"),
        ("node add .x @", 2, "a node id is 1 to 128 letters"),
        ("node add node-2 --config authority.yaml", 2, "--reason"),
        ("node add node-2 @ --jkt x", 2, "43 characters of base64url"),
        ("node add node-2 @ --expect-network 10.0.0.0/99", 2, "--expect-network"),
        ("node add node-2 @ --join-within soon", 2, "a duration is expected"),
        ("node add node-2 @ --secret-out nowhere/secret", 1, "nowhere/secret"),
        ("node disable node-9 @", 1, "there is no node node-9"),
        ("node enable node-1 @", 1, "only a disabled node is enabled"),
        ("node release node-1 @", 1, "only a quarantined node is released"),
        ("node accept-network node-1 @ --address 192.0.2.1", 1, "has had no capsule yet"),
        ("node accept-network node-1 @", 1, "say --address"),
        ("node remove node-9 @", 1, "there is no node node-9"),
        ("node show node-9 --config authority.yaml", 1, "there is no node node-9"),
        ("node list --config authority.yaml --status gone", 2, "one of active, disabled"),
        ("node list --config nowhere.yaml", 1, "cannot read it"),
        ("key retire master 1 @", 1, "it is the newest"),
        ("key retire master 7 @", 1, "there is none"),
        ("key init --dir keys", 1, "there are keys in it already"),
        ("key list --dir nowhere", 1, "nowhere"),
        (
            "audit show 00112233445566778899aabbccddeeff --config authority.yaml",
            1,
            "nothing is written",
        ),
        ("audit verify --store nowhere.db", 1, "there is no store"),
        ("audit verify --config authority.yaml --seen x", 2, "expected NUMBER:HASH"),
    ] {
        let (found, out, errors) = run(&world, words);
        let outcome = expect_eq("status", &found, &Some(status)).and_then(|()| {
            let one_cause = status == 2 || errors.lines().count() == 1;
            expect_eq(&errors, &(errors.contains(expect) && one_cause), &true)
        });
        table.row(words, outcome.map_err(|fault| format!("{fault} {out}")));
    }
    // A key command that failed is written down with its beginning; nothing else is.
    let lines = world.audit();
    let kinds: Vec<_> = lines[before..].iter().filter_map(|line| line["kind"].as_str()).collect();
    table.row("audit", expect_eq("lines", &kinds, &vec!["key.change"; 4]));
    let nodes = world.command(&["node", "list", "--json"]).lines().count();
    table.row("nodes", expect_eq("count", &nodes, &1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_is_written_down_with_its_reason_and_no_secret() {
    let world = world(|_| {}).await;
    let mut table = Table::default();
    let mut node = world.enrol("node-1", &[]);
    let (status, out, _) = run(&world, "node add node-2 @ --secret-out node.secret");
    table.row("add", expect_eq("status", &status, &Some(0)));
    let path = world.directory.path().join("node.secret");
    let secret = std::fs::read_to_string(&path).expect("a file");
    let mode = std::fs::metadata(&path).expect("a file").permissions().mode() & 0o777;
    table.row("mode", expect_eq("mode", &mode, &0o600));
    table.row("shown", expect_eq("secret", &out.contains(&secret), &false));
    table.row("length", expect_eq("characters", &secret.len(), &43));

    table.row("ok", expect_eq("answer", &ask(&world, &node).await.as_str(), &"200 risk 0"));
    let before = node.secret.clone();
    node.secret =
        world.change(&["rotate-secret", "node-1"])["secret"].as_str().expect("a secret").into();
    table.row("ok/new", expect_eq("answer", &ask(&world, &node).await.as_str(), &"200 risk 0"));
    let mut old = node.clone();
    old.secret = before;
    let answer = world.send(&old.bearer()).await.expect("an answer");
    table.row(
        "fail/old",
        expect_eq("answer", &told(&answer).as_str(), &"401 AUTHENTICATION_FAILED"),
    );

    for (words, kind) in [("master", "master 2"), ("envelope", "envelope 2"), ("audit", "audit 2")]
    {
        let (status, out, errors) = run(&world, &format!("key rotate {words} @"));
        table.row(words, expect_eq(&errors, &(status, out.contains(kind)), &(Some(0), true)));
    }
    let lines = world.audit();
    let text = serde_json::to_string(&lines).expect("JSON");
    for hidden in [secret.as_str(), &node.secret, &super::support::digest(&node.secret)] {
        table.row("secret", expect_eq("is in the log", &text.contains(hidden), &false));
    }
    let change = |action: &str| {
        let of = lines.iter().find(|line| line["data"]["action"] == json!(action));
        of.map(|line| line["data"].clone()).unwrap_or_default()
    };
    let rotated = change("rotate-secret");
    table.row("reason", expect_eq("reason", &rotated["reason"], &json!("a test")));
    table.row("actor", expect_eq("actor", &rotated["actor"]["uid"].is_u64(), &true));
    table.row("before", expect_eq("id", &rotated["before"]["id"], &json!("node-1")));
    let key: &Value = &change("rotate");
    table.row("key", expect_eq("begun first", &key["is"], &json!("begun")));
    let made: Value =
        serde_json::from_str(&world.command(&["key", "list", "--json"])).expect("JSON");
    table.row("keys", expect_eq("count", &made.as_array().map(Vec::len), &Some(6)));
    table.row(
        "verify",
        expect_eq("whole", &world.command(&["audit", "verify"]).contains("whole"), &true),
    );
}

async fn ask(world: &World, node: &super::support::node::Node) -> String {
    told(&world.ask(node, "127.0.0.1").await.expect("an answer"))
}
