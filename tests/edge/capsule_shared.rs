//! Two edges that share their nodes in a real Redis.

use std::time::Duration;

use serde_json::{Value, json};

use super::support::Table;
use super::support::client::plain_get;
use super::support::keys::Key;
use super::support::node::{self, Node, holdfast, told};
use super::support::redis::{Server, pair, there_is_none};
use super::support::relay::Way;
use super::support::world::{World, expect_eq};

const HERE: &str = "127.0.0.1";

/// An edge that shares its nodes there.
async fn edge(redis: &Server) -> World {
    let nodes = [redis.address()];
    node::world(|config| {
        config["store"] = json!({
            "kind": "redis",
            "path": "holdfast.db",
            "redis": {"nodes": nodes, "timeout": "5s"},
        });
    })
    .await
}

/// Has everything written that is there now.
fn save(redis: &Server) {
    assert_eq!(redis.cli(&["SAVE"]), "OK\n");
    assert!(redis.directory.path().join("dump.rdb").exists());
}

/// What is said to somebody with another secret, once the store may be acted on.
async fn settled(world: &World, node: &Node) -> String {
    let stranger = Node { secret: "wrong".to_owned(), ..node.clone() };
    for _ in 0..1500 {
        let answer = told(&world.send(&stranger.bearer()).await.expect("an answer"));
        if answer != "503 UNAVAILABLE" {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not settled within 30 s:\n{}", world.process.output());
}

async fn ask(world: &World, node: &Node) -> String {
    told(&world.ask(node, HERE).await.expect("an answer"))
}

async fn ready(world: &World) -> (u16, Value) {
    let answer = plain_get(world.admin, "/readyz").await.expect("an answer");
    (answer.status(), answer.json()["capsules"]["ready"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn edges_decide_about_a_node_one_after_the_other() {
    if there_is_none() {
        return;
    }
    let server = Server::start(&[]).await;
    let (a, b) = (edge(&server).await, edge(&server).await);
    let mut table = Table::default();
    let first = a.enrol("node-0", &[]);
    for edge in [&a, &b] {
        let answer = settled(edge, &first).await;
        table.row("stranger", expect_eq("answer", &answer.as_str(), &"401 AUTHENTICATION_FAILED"));
    }
    // Whoever is first is the node's sender, wherever it asks; the other is nobody.
    for round in 1..=5 {
        let name = format!("node-{round}");
        let one = a.enrol(&name, &[]);
        let other = Node { key: Key::new("ES256"), ..one.clone() };
        let (left, right) = tokio::join!(ask(&a, &one), ask(&b, &other));
        let mut answers = [left, right];
        answers.sort();
        let expect = ["200 risk 0", "401 SENDER_MISMATCH"];
        table.row(&name, expect_eq("answers", &answers, &expect.map(str::to_owned)));
    }
    // What one edge bound holds at the other, and every grant is counted.
    table.row("ok/a", expect_eq("answer", &ask(&a, &first).await.as_str(), &"200 risk 0"));
    let mut granted = 1;
    for _ in 0..5 {
        let answers: [String; 2] = tokio::join!(ask(&a, &first), ask(&b, &first)).into();
        granted += answers.iter().filter(|it| *it == "200 risk 0").count();
    }
    let counted = &b.node("node-0")["counters"]["granted"];
    table.row("counted", expect_eq("grants", counted, &json!(granted)));
    table.row("both", expect_eq("grants", &(granted > 6), &true));
    // A change by a command at one edge's machine holds at the other at once.
    let _ = a.change(&["revoke", "node-0"]);
    for edge in [&b, &a] {
        let answer = told(&edge.send(&first.bearer()).await.expect("an answer"));
        table.row("revoked", expect_eq("answer", &answer.as_str(), &"403 NODE_REVOKED"));
    }
    let listed = b.command(&["node", "list", "--status", "revoked", "--json"]);
    table.row("list", expect_eq("nodes", &listed.lines().count(), &1));
    let removed = b.change(&["remove", "node-5"]);
    table.row("remove", expect_eq("id", &removed["node"]["id"], &json!("node-5")));
    let again = a.change(&["add", "node-5"]);
    table.row("no key twice", expect_eq("version", &again["node"]["keyVersion"], &json!(2)));
    for edge in [&a, &b] {
        let whole = edge.command(&["audit", "verify"]);
        table.row("audit", expect_eq(&whole, &whole.contains("whole"), &true));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_store_no_node_is_served() {
    if there_is_none() {
        return;
    }
    let mut server = Server::start(&[]).await;
    let edge = edge(&server).await;
    let mut table = Table::default();
    let node = edge.enrol("node-1", &[]);
    let _ = settled(&edge, &node).await;
    table.row("ok", expect_eq("answer", &ask(&edge, &node).await.as_str(), &"200 risk 0"));
    save(&server);
    server.kill();
    let answer = edge.send(&node.bearer()).await.expect("an answer");
    table.row("down", expect_eq("answer", &told(&answer).as_str(), &"503 UNAVAILABLE"));
    table.row("down", expect_eq("retry-after", &answer.one("retry-after").is_some(), &true));
    table.row("down", expect_eq("ready", &ready(&edge).await, &(503, json!(false))));
    let all = ["node", "list", "--config", "authority.yaml"];
    let (status, _, errors) = holdfast(edge.directory.path(), &all);
    table.row("command", expect_eq(&errors, &status, &Some(1)));
    server.again().await;
    let _ = settled(&edge, &node).await;
    table.row("up", expect_eq("answer", &ask(&edge, &node).await.as_str(), &"200 risk 0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_rolled_back_serves_no_node() {
    if there_is_none() {
        return;
    }
    let mut server = Server::start(&[]).await;
    let (a, b) = (edge(&server).await, edge(&server).await);
    let mut table = Table::default();
    let node = a.enrol("node-1", &[]);
    let _ = settled(&b, &node).await;
    table.row("ok", expect_eq("answer", &ask(&b, &node).await.as_str(), &"200 risk 0"));
    save(&server);
    let _ = a.change(&["revoke", "node-1"]);
    server.kill();
    server.again().await;
    // Neither that which knows of it nor the other, however often it is asked.
    for _ in 0..80 {
        for edge in [&a, &b] {
            let answer = told(&edge.send(&node.request("x")).await.expect("an answer"));
            table.row("fail", expect_eq("answer", &answer.as_str(), &"503 UNAVAILABLE"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // A balancer must not take all edges from services for it: somebody is paged instead.
    table.row("status", expect_eq("ready", &ready(&a).await, &(200, json!(false))));
    let doubted = a.metric("holdfast_nodes_doubted", &[]).await;
    table.row("metric", expect_eq("doubted", &doubted, &1.0));
    table.row("shown", expect_eq("status", &b.node("node-1")["status"], &json!("active")));
    // What gives is not done before somebody has looked; what takes away is.
    for (words, expect) in [("add node-2", 1), ("disable node-1", 0), ("enable node-1", 1)] {
        let line = format!("node {words} --config authority.yaml --reason because");
        let words: Vec<_> = line.split(' ').collect();
        let (status, out, errors) = holdfast(b.directory.path(), &words);
        table.row(&line, expect_eq(&format!("{out}{errors}"), &status, &Some(expect)));
        let told = errors.contains("holdfast node confirm");
        table.row(&line, expect_eq(&errors, &told, &(expect == 1)));
    }
    let _ = b.change(&["revoke", "node-1"]);
    let _ = b.change(&["confirm"]);
    for edge in [&a, &b] {
        let _ = settled(edge, &node).await;
        let doubted = edge.metric("holdfast_nodes_doubted", &[]).await;
        table.row("metric", expect_eq("doubted", &doubted, &0.0));
        let answer = told(&edge.send(&node.bearer()).await.expect("an answer"));
        table.row("confirmed", expect_eq("answer", &answer.as_str(), &"403 NODE_REVOKED"));
    }
}

/// What a master has that is cut off from its replica was acknowledged to nobody. When the replica takes over
/// nothing is lost, and nobody has to look.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_replica_has_is_not_missed() {
    if there_is_none() {
        return;
    }
    let (mut master, link, replica) = pair(&[]).await;
    let nodes = [master.address(), replica.address()];
    let edge = node::world(|config| {
        config["store"] = json!({
            "kind": "redis",
            "path": "holdfast.db",
            "redis": {"nodes": nodes, "timeout": "5s", "waitReplicas": 1, "waitTimeout": "5s"},
        });
    })
    .await;
    let mut table = Table::default();
    let node = edge.enrol("node-1", &[]);
    let _ = settled(&edge, &node).await;
    table.row("ok", expect_eq("answer", &ask(&edge, &node).await.as_str(), &"200 risk 0"));
    // Both move on: the very same offset may never be seen.
    let offset = |server: &Server, name: &str| server.info(name).parse::<u64>().expect("a number");
    let written = offset(&master, "master_repl_offset");
    while offset(&replica, "slave_repl_offset") < written {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    link.is(Way::Cut);
    // What a change that another edge makes leaves at the master, which waits for the replica in vain.
    let (lineage, ledger) = ("{holdfast:0}:nodes:lineage", "{holdfast:0}:nodes:ledger");
    let seq = master.cli(&["HINCRBY", lineage, "seq", "1"]);
    master.cli(&["HSET", lineage, "id", "another"]);
    master.cli(&["HSET", ledger, seq.trim(), "another"]);
    // Edges look each second, and wait for the replica for five.
    tokio::time::sleep(Duration::from_secs(8)).await;
    master.kill();
    replica.cli(&["REPLICAOF", "NO", "ONE"]);
    let follower = Server::following(replica.port, &[]).await;
    let _ = settled(&edge, &node).await;
    let doubted = edge.metric("holdfast_nodes_doubted", &[]).await;
    table.row("promoted", expect_eq("doubted", &doubted, &0.0));
    table.row("promoted", expect_eq("answer", &ask(&edge, &node).await.as_str(), &"200 risk 0"));
    drop(follower);
}
