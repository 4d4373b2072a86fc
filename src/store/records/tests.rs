//! What moves means the same on the other side.

use std::path::Path;
use std::time::Duration;

use tokio::runtime::Handle;

use super::transfer::{Planned, TransferError};
use super::*;
use crate::policy::capsule::node::{Expectations, Status};
use crate::store::bindings::tests::Server;
use crate::store::bindings::{Bindings as _, SharedBindings, Waits};
use crate::store::nodes::{Nodes as _, moved};
use crate::store::redis::Redis;
use crate::store::registry::Registry;
use crate::store::sqlite::writer::CheckpointRule;

const NOW: UnixTime = UnixTime::from_secs(1_900_000_000);

fn registry(directory: &Path, name: &str) -> Registry {
    let rule = CheckpointRule { lines: 1000, interval: Duration::from_secs(3600) };
    Registry::open(&directory.join(name), rule).unwrap()
}

fn key(name: &str) -> RecordKey {
    RecordKey(Sha256::of(name.as_bytes()))
}

fn token(name: &str, family: &str, revoked: bool, grant_revoked: bool) -> Record {
    let record = BindingRecord {
        kind: TokenKind::Refresh,
        tenant: Some("tenant".to_owned()),
        client: Some("client".to_owned()),
        cnf_jkt: Some(Jkt(Sha256::of(b"key"))),
        sender_certificate: Some(X5tS256(Sha256::of(b"certificate"))),
        scope: Some("scope".to_owned()),
        expires: NOW.plus(Duration::from_secs(3600)),
        family: family.to_owned(),
        bypass: Some("bypass".to_owned()),
        revoked: false,
    };
    Record::Token(Box::new(Token::of(key(name), record, revoked, grant_revoked)))
}

fn node(name: &str, status: Status) -> Record {
    let id = NodeId::parse(name).unwrap();
    let node = Node { status, ..Node::new(id, Sha256::of(b"s"), Expectations::default(), NOW) };
    Record::Node { revision: i64::MAX - 5, node: Box::new(node) }
}

fn all() -> Vec<Record> {
    let made = rcgen::CertificateParams::default();
    let made = made.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    let quarantine = |nth| Record::Quarantine { at: NOW, node: NodeId::parse("b").unwrap(), nth };
    vec![
        node("a", Status::Active),
        node("b", Status::Quarantined),
        node("c", Status::Revoked),
        Record::Removed { id: NodeId::parse("gone").unwrap(), key_version: 7 },
        quarantine(0),
        quarantine(1),
        token("good", "one", false, false),
        token("alone", "one", true, false),
        token("grant", "two", false, true),
        token("both", "two", true, true),
        Record::certificate(made.der()),
        Record::Bypass(Seen { id: "bypass".to_owned(), since: NOW }),
    ]
}

async fn counts(store: &dyn Records) -> Counts {
    tally(store, NOW, |_| {}).await.unwrap().counts()
}

async fn servers(server: &Server, directory: &Path) -> (Servers, Redis) {
    let redis = server.connect().await;
    (Servers { redis: redis.clone(), registry: registry(directory, "edge.db") }, redis)
}

#[tokio::test]
async fn both_kinds_keep_the_same_and_it_means_the_same() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    let (shared, redis) = servers(&server, scratch.path()).await;
    let embedded = Embedded(registry(scratch.path(), "own.db"));
    let records = all();
    let mut expected = Tally::default();
    records.iter().for_each(|it| expected.add(it).unwrap());
    expected.sort();
    for _ in 0..2 {
        for store in [&embedded as &dyn Records, &shared] {
            store.put(records.clone()).await.unwrap();
            assert_eq!(counts(store).await, expected.counts());
        }
    }
    // What was revoked alone and is not known by its record any more is still revoked on the other side.
    let gone = redis.keys().named(crate::store::redis::Tag::of(&key("alone").0), "t:");
    let gone = format!("{gone}{}", key("alone").0);
    assert_eq!(server.raw(&["DEL", &gone]), ":1\r\n");
    let other = Embedded(registry(scratch.path(), "other.db"));
    let planned = Planned::new((&shared, &other), false, NOW, |_| {}).await.unwrap();
    assert_eq!(planned.missing(), 11);
    planned.run((&shared, &other), NOW, |_| {}).await.unwrap();
    let waits = Waits { settle: Duration::ZERO, ..Waits::default() };
    let bindings = SharedBindings::start(redis, shared.registry.clone(), waits, &Handle::current());
    while !bindings.is_up() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for (name, revoked) in [("good", false), ("alone", true), ("grant", true), ("both", true)] {
        for store in [&bindings as &dyn crate::store::bindings::Bindings, &embedded.0, &other.0] {
            let record = store.record(key(name)).await.unwrap().unwrap();
            assert_eq!(record.revoked, revoked, "{name}");
        }
    }
    for store in [&embedded as &dyn Records, &shared] {
        store.clear().await.unwrap();
        assert_eq!(counts(store).await, Counts::new());
    }
    assert!(bindings.record(key("good")).await.unwrap().is_none());
}

#[tokio::test]
async fn a_target_with_anything_else_is_left_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let source = Embedded(registry(scratch.path(), "source.db"));
    source.put(all()).await.unwrap();
    for (case, other) in [
        ("another node", node("z", Status::Active)),
        ("another record", node("a", Status::Disabled)),
        ("another token", token("z", "one", false, false)),
        ("a token that was revoked since", token("good", "one", true, false)),
    ] {
        let target = Embedded(registry(scratch.path(), &format!("{case}.db")));
        target.put(vec![other]).await.unwrap();
        let before = counts(&target).await;
        let planned = Planned::new((&source, &target), false, NOW, |_| {}).await;
        assert!(matches!(planned, Err(TransferError::Occupied(_))), "{case}");
        assert_eq!(counts(&target).await, before, "{case}");
        let planned = Planned::new((&source, &target), true, NOW, |_| {}).await.unwrap();
        planned.run((&source, &target), NOW, |_| {}).await.unwrap();
        assert_eq!(counts(&target).await, counts(&source).await, "{case}");
    }
}

/// A store that keeps all but one.
struct Leaky(Embedded);

#[async_trait]
impl Records for Leaky {
    async fn read(&self, now: UnixTime) -> Result<Box<dyn Read>, Fault> {
        self.0.read(now).await
    }

    async fn put(&self, mut records: Vec<Record>) -> Result<(), Fault> {
        records.retain(|it| !matches!(it, Record::Removed { .. }));
        self.0.put(records).await
    }

    async fn clear(&self) -> Result<(), Fault> {
        self.0.clear().await
    }
}

#[tokio::test]
async fn what_did_not_arrive_is_said() {
    let scratch = tempfile::tempdir().unwrap();
    let source = Embedded(registry(scratch.path(), "source.db"));
    source.put(all()).await.unwrap();
    let target = Leaky(Embedded(registry(scratch.path(), "target.db")));
    let planned = Planned::new((&source, &target), false, NOW, |_| {}).await.unwrap();
    let done = planned.run((&source, &target), NOW, |_| {}).await;
    let Err(TransferError::Differs(kinds)) = done else { panic!("{done:?}") };
    assert_eq!(kinds, ["removed (1 and 0)"]);
}

#[tokio::test]
async fn while_it_is_filled_no_node_is_served_and_edges_are_seen() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    let (shared, redis) = servers(&server, scratch.path()).await;
    shared.put(all()).await.unwrap();
    moved::hold(&redis, NOW).await.unwrap();
    let runtime = Handle::current();
    let nodes = crate::store::nodes::shared::SharedNodes::start(
        redis.clone(),
        shared.registry.clone(),
        Duration::ZERO,
        &runtime,
    )
    .unwrap();
    let id = NodeId::parse("a").unwrap();
    assert_eq!(nodes.find(&id, Sha256::of(b"s")).await.unwrap_err(), Fault::Behind);
    assert_eq!(moved::present(&redis, None).await, Ok(0));
    assert_eq!(moved::present(&redis, Some("one")).await, Ok(1));
    assert_eq!(moved::present(&redis, Some("one")).await, Ok(1));
    assert_eq!(moved::present(&redis, None).await, Ok(1));
}
