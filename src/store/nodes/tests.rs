//! One list of what must hold of every registry, and what must hold of the shared one beyond that.

#![expect(clippy::disallowed_methods, reason = "a test has an environment")]

mod server;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;

use self::server::{Server, raw};
use super::*;
use crate::policy::audit::{Kind, Line};
use crate::policy::capsule::node::Expectations;
use crate::store::redis::Login;
use crate::store::sqlite::writer::CheckpointRule;

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

fn id(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

fn node(name: &str) -> Node {
    Node::new(id(name), Sha256::of(b"secret"), Expectations::default(), NOW)
}

fn line(kind: Kind, id: &str, node: &str) -> Draft {
    Draft::new(kind, NOW, id, Some(node), &json!({}))
}

/// An edge's own file.
fn registry(directory: &Path, name: &str) -> Registry {
    let rule = CheckpointRule { lines: 1000, interval: Duration::from_secs(3600) };
    Registry::open(&directory.join(name), rule).unwrap()
}

/// The lines of one id: kind and data.
async fn lines(registry: &Registry, id: &str) -> Vec<(Kind, serde_json::Value)> {
    let id = id.to_owned();
    let stored = registry.read(move |reader| reader.lines_of(&id)).await.unwrap();
    let read = |text: &str| serde_json::from_str::<Line>(text).unwrap();
    stored.iter().map(|it| read(&it.line)).map(|line| (line.kind, line.data)).collect()
}

async fn put(nodes: &dyn Nodes, node: Node) {
    let about = About::node(&node.id);
    let decide = move |_: &Standing| {
        let commit = Commit { becomes: Becomes::Node(Box::new(node.clone())), ..Commit::default() };
        Ok(((), commit))
    };
    nodes.decide(about, decide).await.unwrap();
}

/// Counts once more, and says how often it was counted before.
async fn count_up(nodes: &dyn Nodes, name: &str) -> u64 {
    let decide = |standing: &Standing| {
        let mut node = standing.node().unwrap().clone();
        let before = node.counters.granted;
        node.counters.granted += 1;
        Ok((before, Commit { becomes: Becomes::Node(Box::new(node)), ..Commit::default() }))
    };
    nodes.decide(About::node(&id(name)), decide).await.unwrap()
}

async fn set_status(
    nodes: &dyn Nodes,
    name: &str,
    status: Status,
    about: About,
) -> Result<(), Fault> {
    assert_eq!(about.id, id(name));
    let line = line(Kind::NodeChange, &format!("{name} is {}", status.name()), name);
    let decide = move |standing: &Standing| {
        let node = Node { status, ..standing.node().unwrap().clone() };
        let becomes = Becomes::Node(Box::new(node));
        Ok(((), Commit { becomes, quarantined: None, lines: vec![line.clone()] }))
    };
    nodes.decide(about, decide).await
}

/// What must hold of every registry. `log` is its audit log.
async fn check(nodes: Arc<dyn Nodes>, log: &Registry) {
    let (nodes, right, wrong) = (&*nodes, Sha256::of(b"secret"), Sha256::of(b"wrong"));
    assert!(matches!(nodes.find(&id("node-1"), right).await, Ok(Found::Unknown)));
    put(nodes, node("node-1")).await;
    let found = nodes.find(&id("node-1"), right).await.unwrap();
    assert!(matches!(found, Found::Node(row) if row.node == node("node-1")));
    assert!(matches!(nodes.find(&id("node-1"), wrong).await, Ok(Found::Wrong)));
    assert!(matches!(nodes.find(&id("node-2"), right).await, Ok(Found::Unknown)));
    assert!(matches!(nodes.find(&NodeId::nobody(), right).await, Ok(Found::Unknown)));
    assert_eq!(nodes.looked_up(), 5);

    // Each decision is made on what the one before left.
    for before in 0..5 {
        assert_eq!(count_up(nodes, "node-1").await, before);
    }
    check_faults(nodes, log).await;
    check_lists(nodes).await;
    check_removal(nodes).await;
    check_quarantines(nodes).await;
}

/// What fails changes nothing; what is done has its lines.
async fn check_faults(nodes: &dyn Nodes, log: &Registry) {
    let before = nodes.node(&id("node-1")).await.unwrap().unwrap();
    let failed = nodes.decide(About::node(&id("node-1")), |_| Err::<((), Commit), _>(Fault::Busy));
    assert_eq!(failed.await, Err(Fault::Busy));
    let after = nodes.node(&id("node-1")).await.unwrap().unwrap();
    assert_eq!((&after.node, after.revision), (&before.node, before.revision));
    set_status(nodes, "node-1", Status::Disabled, About::node(&id("node-1"))).await.unwrap();
    let found = lines(log, "node-1 is disabled").await;
    assert_eq!(found.iter().map(|it| it.0).collect::<Vec<_>>(), [Kind::NodeChange]);
    let after = nodes.node(&id("node-1")).await.unwrap().unwrap();
    assert_eq!(after.node.status, Status::Disabled);
    assert_ne!(after.revision, before.revision);
}

async fn check_lists(nodes: &dyn Nodes) {
    for name in ["node-3", "node-2", "Node"] {
        put(nodes, node(name)).await;
    }
    let names = |listed: Vec<Listed>| -> Vec<String> {
        listed.into_iter().map(|(name, node)| node.map(|_| name).unwrap()).collect()
    };
    let all = names(nodes.list("", None, 100).await.unwrap());
    assert_eq!(all, ["Node", "node-1", "node-2", "node-3"]);
    assert_eq!(names(nodes.list("Node", None, 2).await.unwrap()), ["node-1", "node-2"]);
    let disabled = nodes.list("", Some(Status::Disabled), 100).await.unwrap();
    assert_eq!(names(disabled), ["node-1"]);
    let counts = nodes.count().await.unwrap();
    assert_eq!(counts.iter().map(|it| it.1).collect::<Vec<_>>(), [3, 1, 0, 0]);
}

async fn check_removal(nodes: &dyn Nodes) {
    put(nodes, Node { key_version: 7, ..node("node-2") }).await;
    let remove = |_: &Standing| Ok(((), Commit { becomes: Becomes::Nothing, ..Commit::default() }));
    nodes.decide(About::node(&id("node-2")), remove).await.unwrap();
    assert!(nodes.node(&id("node-2")).await.unwrap().is_none());
    let again = nodes.decide(About::node(&id("node-2")), |standing| {
        assert!(standing.row.is_none());
        Ok((standing.removed, Commit::default()))
    });
    assert_eq!(again.await, Ok(Some(7)));
    let counts = nodes.count().await.unwrap();
    assert_eq!(counts.iter().map(|it| it.1).collect::<Vec<_>>(), [2, 1, 0, 0]);
}

async fn check_quarantines(nodes: &dyn Nodes) {
    let since = NOW.plus(Duration::from_secs(10));
    let about = |name: &str| About { quarantines_since: Some(since), ..About::node(&id(name)) };
    let at = |seconds| NOW.plus(Duration::from_secs(seconds));
    for (name, at, before) in
        [("node-1", at(10), 0), ("node-3", at(11), 0), ("node-1", at(12), 1), ("Node", at(12), 2)]
    {
        let quarantine = move |standing: &Standing| {
            Ok((standing.quarantines, Commit { quarantined: Some(at), ..Commit::default() }))
        };
        assert_eq!(nodes.decide(about(name), quarantine).await, Ok(before), "{name}");
    }
}

#[tokio::test]
async fn the_embedded_registry() {
    let scratch = tempfile::tempdir().unwrap();
    let registry = registry(scratch.path(), "holdfast.db");
    check(Arc::new(registry.clone()), &registry).await;
}

/// Asks until the store answers again, whatever it says.
async fn once_up(nodes: &dyn Nodes, name: &str) -> Result<Found, Fault> {
    loop {
        match nodes.find(&id(name), Sha256::of(b"secret")).await {
            Err(Fault::Down) => tokio::time::sleep(Duration::from_millis(20)).await,
            other => return other,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shared_registry() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    let registry = registry(scratch.path(), "holdfast.db");
    check(server.nodes(&registry, Duration::ZERO).await, &registry).await;
    // Every key has a TTL, or is one of those that stay.
    assert_eq!(raw(server.port, &["PTTL", "{test:0}:node:node-1"]), ":-1");
    assert!(raw(server.port, &["PTTL", "{test:0}:nodes:quarantines"]).len() > 8);
}

/// The user of the edges, as it is deployed.
const USERS: &str = include_str!("../../../deploy/redis/users.acl");

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_the_least_rights_is_enough() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    let mut words = vec!["ACL", "SETUSER", "edge", "on", ">word", "~{test:*", "-@all"];
    let user = USERS.lines().find(|line| line.starts_with("user holdfast ")).unwrap();
    words.extend(user.split_whitespace().filter(|word| word.starts_with('+')));
    assert_eq!(raw(server.port, &words), "+OK");
    let password = scratch.path().join("password");
    std::fs::write(&password, "word").unwrap();
    let login = Login { user: Some("edge".to_owned()), password_file: Some(password) };
    let registry = registry(scratch.path(), "holdfast.db");
    let nodes = server.nodes_as(login, &registry, Duration::ZERO).await;
    check(Arc::clone(&nodes), &registry).await;
    assert_eq!(nodes.confirm(line(Kind::NodeChange, "confirmed", "node-1")).await, Ok(true));
    raw(server.port, &["FLUSHALL"]);
    assert!(matches!(once_up(&*nodes, "node-1").await, Err(Fault::Behind)));
    assert_eq!(raw(server.port, &["HEXISTS", "{test:0}:nodes:lineage", "doubted"]), ":1");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_edges_decide_one_after_the_other() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    let mut edges = Vec::new();
    for name in ["a.db", "b.db"] {
        let registry = registry(scratch.path(), name);
        edges.push((server.nodes(&registry, Duration::ZERO).await, registry));
    }
    for round in 0..20 {
        let name = format!("node-{round}");
        put(&*edges[0].0, node(&name)).await;
        let mut asked = JoinSet::new();
        for (edge, (nodes, _)) in edges.iter().enumerate() {
            for _ in 0..3 {
                let (nodes, name) = (Arc::clone(nodes), name.clone());
                asked.spawn(async move {
                    let adopt = move |standing: &Standing| {
                        let mut node = standing.node().unwrap().clone();
                        node.counters.granted += 1;
                        let first = node.fingerprint.is_none();
                        if first {
                            node.fingerprint = Some(Sha256::of(&[u8::try_from(edge).unwrap()]));
                        }
                        let becomes = Becomes::Node(Box::new(node));
                        Ok((first, Commit { becomes, ..Commit::default() }))
                    };
                    nodes.decide(About::node(&id(&name)), adopt).await
                });
            }
        }
        let outcomes = asked.join_all().await;
        let done = outcomes.iter().filter(|it| it.is_ok()).count();
        assert!(done >= 2, "{outcomes:?}");
        assert_eq!(outcomes.iter().filter(|it| **it == Ok(true)).count(), 1, "{outcomes:?}");
        let after = edges[1].0.node(&id(&name)).await.unwrap().unwrap().node;
        assert_eq!(after.counters.granted, done as u64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_that_came_too_late_is_superseded_and_made_anew() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    let registry = registry(scratch.path(), "holdfast.db");
    let nodes = server.nodes(&registry, Duration::ZERO).await;
    put(&*nodes, node("node-1")).await;
    let (port, runs) = (server.port, Arc::new(AtomicU32::new(0)));
    let counted = Arc::clone(&runs);
    let decide = move |standing: &Standing| {
        if counted.fetch_add(1, Ordering::Relaxed) == 0 {
            // Somebody else was faster.
            raw(port, &["HSET", "{test:0}:node:node-1", "revision", "5"]);
        }
        let becomes = Becomes::Node(Box::new(standing.node().unwrap().clone()));
        let lines = vec![line(Kind::Capsule, "decision", "node-1")];
        Ok(((), Commit { becomes, quarantined: None, lines }))
    };
    nodes.decide(About::node(&id("node-1")), decide).await.unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 2);
    let found = lines(&registry, "decision").await;
    let kinds: Vec<_> = found.iter().map(|it| it.0).collect();
    assert_eq!(kinds, [Kind::Capsule, Kind::Superseded, Kind::Capsule]);
    assert_eq!(found[1].1, json!({ "of": "capsule.decision", "why": "changed" }));
}

/// Decides about `node-1` once `meanwhile` was done to the store, the first time; what it was decided on.
async fn decide_while(
    server: &Server,
    nodes: &dyn Nodes,
    commit: Commit,
    meanwhile: &'static [&'static str],
) -> (Result<u32, Fault>, u32) {
    let (port, runs) = (server.port, Arc::new(AtomicU32::new(0)));
    let counted = Arc::clone(&runs);
    let decide = move |standing: &Standing| {
        if counted.fetch_add(1, Ordering::Relaxed) == 0 {
            raw(port, meanwhile);
        }
        Ok((standing.quarantines, commit.clone()))
    };
    let about = About { quarantines_since: Some(NOW), ..About::node(&id("node-1")) };
    let decided = nodes.decide(about, decide).await;
    (decided, runs.load(Ordering::Relaxed))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_meanwhile_is_seen_by_the_script() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    let registry = registry(scratch.path(), "holdfast.db");
    let nodes = server.nodes(&registry, Duration::ZERO).await;
    put(&*nodes, node("node-1")).await;
    let quarantine = || Commit {
        becomes: Becomes::Node(Box::new(Node { status: Status::Quarantined, ..node("node-1") })),
        quarantined: Some(NOW.plus(Duration::from_secs(1))),
        lines: Vec::new(),
    };
    // Another quarantine, which the fleet brake must count.
    let other = &["ZADD", "{test:0}:nodes:quarantines", "1800000000500", "other"];
    assert_eq!(decide_while(&server, &*nodes, quarantine(), other).await, (Ok(1), 2));
    // Somebody finds something missing.
    let doubt = &["HSET", "{test:0}:nodes:lineage", "doubted", "1"];
    let found = decide_while(&server, &*nodes, quarantine(), doubt).await;
    assert_eq!(found, (Err(Fault::Behind), 1));
    raw(server.port, &["HDEL", "{test:0}:nodes:lineage", "doubted"]);
    // The store is wiped, but for the record.
    let wipe = &["DEL", "{test:0}:nodes:lineage", "{test:0}:nodes:ledger"];
    let found = decide_while(&server, &*nodes, quarantine(), wipe).await;
    assert_eq!(found, (Err(Fault::Behind), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_did_not_answer_was_not_done() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(mut server) = Server::start(scratch.path()) else { return };
    let registry = registry(scratch.path(), "holdfast.db");
    let nodes = server.nodes(&registry, Duration::ZERO).await;
    put(&*nodes, node("node-1")).await;
    let pid = server.process.id();
    let decide = move |standing: &Standing| {
        let killed = Command::new("kill").args(["-9", &pid.to_string()]).status();
        assert!(killed.unwrap().success());
        let becomes = Becomes::Node(Box::new(standing.node().unwrap().clone()));
        let lines = vec![line(Kind::Capsule, "decision", "node-1")];
        Ok(((), Commit { becomes, quarantined: None, lines }))
    };
    let done = nodes.decide(About::node(&id("node-1")), decide).await;
    assert_eq!(done, Err(Fault::Down));
    let found = lines(&registry, "decision").await;
    assert_eq!(found.iter().map(|it| it.0).collect::<Vec<_>>(), [Kind::Capsule, Kind::Superseded]);
    assert_eq!(found[1].1["why"], "unknown");
    assert!(matches!(nodes.find(&id("node-1"), Sha256::of(b"secret")).await, Err(Fault::Down)));
    assert!(!nodes.is_up());
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_rolled_back_serves_no_node() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(mut server) = Server::start(scratch.path()) else { return };
    let (first, second) = (registry(scratch.path(), "a.db"), registry(scratch.path(), "b.db"));
    let knows = server.nodes(&first, Duration::ZERO).await;
    put(&*knows, node("node-1")).await;
    assert_eq!(raw(server.port, &["SAVE"]), "+OK");
    set_status(&*knows, "node-1", Status::Revoked, About::node(&id("node-1"))).await.unwrap();
    server.roll_back();
    assert!(matches!(once_up(&*knows, "node-1").await, Err(Fault::Behind)));
    assert_eq!(count_would(&*knows).await, Err(Fault::Behind));
    assert!(!knows.is_up());
    // One that has never seen the revocation is told.
    let knows_not = server.nodes(&second, Duration::ZERO).await;
    assert!(matches!(once_up(&*knows_not, "node-1").await, Err(Fault::Behind)));
    // What was lost can be done again, and nothing else.
    let about = || About::node(&id("node-1"));
    let enabled = set_status(&*knows_not, "node-1", Status::Active, about()).await;
    assert_eq!(enabled, Err(Fault::Behind));
    let even_so = About { even_if_behind: true, ..about() };
    set_status(&*knows_not, "node-1", Status::Revoked, even_so).await.unwrap();
    assert!(matches!(once_up(&*knows_not, "node-1").await, Err(Fault::Behind)));
    let said = line(Kind::NodeChange, "confirmed", "node-1");
    assert_eq!(knows_not.confirm(said).await, Ok(true));
    for nodes in [&knows_not, &knows] {
        let found = once_up(&**nodes, "node-1").await.unwrap();
        assert!(matches!(found, Found::Node(row) if row.node.status == Status::Revoked));
        assert!(nodes.is_up());
    }
    // And a process that starts anew remembers all of it.
    drop((knows, knows_not));
    server.roll_back();
    let again = server.nodes(&first, Duration::ZERO).await;
    assert!(matches!(once_up(&*again, "node-1").await, Err(Fault::Behind)));
}

/// The store became another one between the look at the record and the change.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_decided_in_one_epoch_is_not_done_in_another() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    let (one, two) = (registry(scratch.path(), "a.db"), registry(scratch.path(), "b.db"));
    let nodes = server.nodes(&one, Duration::ZERO).await;
    put(&*nodes, node("node-1")).await;
    let port = server.port;
    let decide = move |standing: &Standing| {
        raw(port, &["SET", "{test:0}:mark", "another"]);
        let mut node = standing.node().unwrap().clone();
        node.status = Status::Revoked;
        let becomes = Becomes::Node(Box::new(node));
        Ok(((), Commit { becomes, ..Commit::default() }))
    };
    let decided = nodes.decide(About::node(&id("node-1")), decide).await;
    assert_eq!(decided, Err(Fault::Down));
    let other = server.nodes(&two, Duration::ZERO).await;
    assert_eq!(other.node(&id("node-1")).await.unwrap().unwrap().node.status, Status::Active);
}

async fn count_would(nodes: &dyn Nodes) -> Result<(), Fault> {
    nodes.decide(About::node(&id("node-1")), |_| Ok(((), Commit::default()))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_store_serves_no_node() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    let registry = registry(scratch.path(), "holdfast.db");
    let nodes = server.nodes(&registry, Duration::ZERO).await;
    put(&*nodes, node("node-1")).await;
    assert_eq!(raw(server.port, &["FLUSHALL"]), "+OK");
    assert!(matches!(once_up(&*nodes, "node-1").await, Err(Fault::Behind)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_new_serves_no_node_yet() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(mut server) = Server::start(scratch.path()) else { return };
    let first = registry(scratch.path(), "a.db");
    let command = server.nodes(&first, Duration::ZERO).await;
    put(&*command, node("node-1")).await;
    assert_eq!(raw(server.port, &["SAVE"]), "+OK");
    drop(command);
    server.roll_back();
    let hour = Duration::from_secs(3600);
    let edge = server.nodes(&first, hour).await;
    let found = edge.find(&id("node-1"), Sha256::of(b"secret")).await;
    assert!(matches!(found, Err(Fault::Down)), "{found:?}");
    let settled = server.nodes(&first, Duration::ZERO).await;
    assert!(matches!(once_up(&*settled, "node-1").await, Ok(Found::Node(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_remembers_nothing_believes_what_is_vouched_for() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(mut server) = Server::start(scratch.path()) else { return };
    let [first, second, third] =
        ["a.db", "b.db", "c.db"].map(|name| registry(scratch.path(), name));
    let knows = server.nodes(&first, Duration::ZERO).await;
    put(&*knows, node("node-1")).await;
    // One more edge beside one that serves.
    let joins = server.nodes(&second, Duration::ZERO).await;
    assert!(matches!(once_up(&*joins, "node-1").await, Ok(Found::Node(_))));
    assert_eq!(raw(server.port, &["SAVE"]), "+OK");
    drop((knows, joins));
    // The server may have lost something, and whoever knew of it is gone, with its file.
    server.roll_back();
    let edge = server.nodes(&third, Duration::ZERO).await;
    assert!(matches!(once_up(&*edge, "node-1").await, Err(Fault::Unvouched)));
    assert!(!edge.is_up());
    assert_eq!(edge.trouble(), Some(Fault::Unvouched));
    assert_eq!(count_would(&*edge).await, Err(Fault::Unvouched));
    // It does not come to believe it by being started anew.
    let again = server.nodes(&third, Duration::ZERO).await;
    assert!(matches!(once_up(&*again, "node-1").await, Err(Fault::Unvouched)));
    // What takes away can be done.
    let even_so = About { even_if_behind: true, ..About::node(&id("node-1")) };
    set_status(&*edge, "node-1", Status::Disabled, even_so).await.unwrap();
    assert!(matches!(once_up(&*edge, "node-1").await, Err(Fault::Unvouched)));
    // One that remembers vouches for it.
    let knows = server.nodes(&first, Duration::ZERO).await;
    assert!(matches!(once_up(&*knows, "node-1").await, Ok(Found::Node(_))));
    assert!(matches!(once_up(&*edge, "node-1").await, Ok(Found::Node(_))));
    assert!(edge.is_up());
    drop((knows, edge, again));
    // Or an operator does.
    server.roll_back();
    let fourth = registry(scratch.path(), "d.db");
    let edge = server.nodes(&fourth, Duration::ZERO).await;
    assert!(matches!(once_up(&*edge, "node-1").await, Err(Fault::Unvouched)));
    let command = server.nodes(&registry(scratch.path(), "e.db"), Duration::ZERO).await;
    let said = line(Kind::NodeChange, "confirmed", "node-1");
    assert_eq!(command.confirm(said).await, Ok(true));
    assert!(matches!(once_up(&*edge, "node-1").await, Ok(Found::Node(_))));
}
