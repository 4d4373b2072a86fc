//! An edge whose own file is gone, beside servers that others know.

use std::fs;

use serde_json::{Value, json};

use super::store_commands::end;
use super::support::Table;
use super::support::client::plain_get;
use super::support::node::{Node, told, world};
use super::support::process::Process;
use super::support::redis::{Server, there_is_none};
use super::support::world::{World, expect_eq};

const HERE: &str = "127.0.0.1";

async fn shared(redis: &Server) -> World {
    let nodes = [format!("{HERE}:{}", redis.port)];
    world(|config| {
        config["store"] = json!({
            "kind": "redis",
            "path": "holdfast.db",
            "redis": {"nodes": nodes, "timeout": "5s"},
        });
    })
    .await
}

/// Waits until `/readyz` says of capsules what is expected; what it says.
async fn capsules(admin: u16, expected: bool, because: &str) -> Result<(), String> {
    let mut last = Value::Null;
    for _ in 0..1500 {
        if let Ok(answer) = plain_get(admin, "/readyz").await {
            last = answer.json()["capsules"].clone();
            let said = last["lastError"].as_str().unwrap_or_default().contains(because);
            if last["ready"] == json!(expected) && said {
                return Ok(());
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    Err(format!("never: {last:#}"))
}

/// What a node is told once the store is settled.
async fn settled(world: &World, node: &Node) -> Result<(), String> {
    let stranger = Node { secret: "wrong".to_owned(), ..node.clone() };
    for _ in 0..1500 {
        if told(&world.send(&stranger.bearer()).await.expect("an answer")) != "503 UNAVAILABLE" {
            let answer = told(&world.ask(node, HERE).await.expect("an answer"));
            return expect_eq("answer", &answer.as_str(), &"200 risk 0");
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    Err("it does not settle".to_owned())
}

/// With the mark beside it: with that alone the edge would not start.
fn forget(world: &World) {
    for file in ["holdfast.db", "holdfast.db-wal", "holdfast.db-shm", "holdfast.mark"] {
        let _ = fs::remove_file(world.directory.path().join(file));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_without_its_file_believes_no_server_that_nobody_vouches_for() {
    if there_is_none() {
        return;
    }
    let mut redis = Server::start(&["appendonly yes", "appendfsync always"]).await;
    let mut edge = shared(&redis).await;
    let mut table = Table::default();
    let node = edge.enrol("node-1", &[]);
    table.row("known", capsules(edge.admin, true, "").await);
    table.row("ok", settled(&edge, &node).await);
    // One more edge beside it is just started, and so is this one while the server stays.
    let second = shared(&redis).await;
    table.row("joins", capsules(second.admin, true, "").await);
    drop(second);
    end(&mut edge).await;
    forget(&edge);
    edge.restart_ended().await;
    table.row("ok, the same server", settled(&edge, &node).await);
    end(&mut edge).await;
    forget(&edge);
    redis.kill();
    redis.again().await;
    edge.process = Process::start_unready(edge.directory.path(), &edge.config, edge.admin).await;
    table.row("not believed", capsules(edge.admin, false, "own file is new").await);
    let answer = told(&edge.send(&node.bearer()).await.expect("an answer"));
    table.row("refused", expect_eq("answer", &answer.as_str(), &"503 UNAVAILABLE"));
    let said = edge.process.output();
    table.row("said", expect_eq("in the log", &said.contains("remembers nothing"), &true));
    let _ = edge.change(&["confirm"]);
    table.row("confirmed", capsules(edge.admin, true, "").await);
    table.row("ok, confirmed", settled(&edge, &node).await);
}
