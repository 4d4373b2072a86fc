//! What one edge does, step by step.

use tempfile::TempDir;

use super::edges::LATELY;
use super::*;
use crate::policy::digest::Jkt;
use crate::policy::epoch::{Epoch, GivenUp};
use crate::store::bindings::tests::Server;
use crate::store::clock::Moment;
use crate::store::sqlite::writer::CheckpointRule;

const ROLL: &str = "{test:0}:tokens:edges";
const HOUR: Duration = Duration::from_secs(3600);

/// An edge that does nothing by itself.
async fn edge(server: &Server, scratch: &TempDir, name: &str, waits: Waits) -> Inner {
    let rule = CheckpointRule { lines: 1000, interval: HOUR };
    let registry = Registry::open(&scratch.path().join(name), rule).unwrap();
    Inner::new(server.connect().await, registry, waits)
}

fn shared(inner: Inner) -> SharedBindings {
    let idle = Task::start(&Handle::current(), std::future::ready(()));
    SharedBindings { inner: Arc::new(inner), _saying: Arc::new(idle) }
}

fn key() -> RecordKey {
    RecordKey::of("https://as.example", TokenKind::Access, "access-1")
}

fn record() -> BindingRecord {
    let (expires, cnf_jkt) = (now().plus(HOUR), Some(Jkt(Sha256([1; 32]))));
    let client = Some("client-1".to_owned());
    let bare = bare(expires);
    BindingRecord { cnf_jkt, client, family: "f1".to_owned(), revoked: false, ..bare }
}

fn other_epoch() -> Epoch {
    Epoch(Sha256::of(b"another"))
}

/// Two edges keep the same record. What one takes back is not what the other has acknowledged.
#[tokio::test]
async fn what_is_taken_back_is_one_s_own() {
    let scratch = TempDir::new().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    let one = edge(&server, &scratch, "one.db", Waits::default()).await;
    let two = edge(&server, &scratch, "two.db", Waits::default()).await;
    let record = record();
    let written = one.put(key(), record.clone(), now()).await.unwrap().unwrap();
    two.put(key(), record.clone(), now()).await.unwrap();
    one.undo(written).await;
    assert!(two.stone(key()).await.unwrap().record.is_some());
    let written = two.put(key(), record, now()).await.unwrap().unwrap();
    let now_there = written.before.clone();
    two.undo(written).await;
    let place = Place::record(two.redis.keys(), key());
    assert_eq!(two.get(&place).await.unwrap(), Some(now_there));
}

/// Others wait for what an edge may have revoked while it is on the roll. One that was not lately, for
/// whatever reason, revokes nothing.
#[tokio::test]
async fn an_edge_that_was_not_on_the_roll_lately_revokes_nothing() {
    let scratch = TempDir::new().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    let one = edge(&server, &scratch, "one.db", Waits::default()).await;
    one.put(key(), record(), now()).await.unwrap();
    one.answer_the_roll(&one.period().unwrap()).await;
    let roll = one.roll.load_full().unwrap();
    let one = shared(one);
    let client = || Some("client-1".to_owned());
    let at = Moment::ago(LATELY);
    one.inner.roll.store(Some(Arc::new(Roll { at, ..Roll::clone(&roll) })));
    assert_eq!(one.revoke(vec![key()], client()).await, Err(Fault::Down));
    assert!(!one.inner.stone(key()).await.unwrap().revoked);
    one.inner.roll.store(Some(roll));
    assert_eq!(one.revoke(vec![key()], client()).await, Ok(true));
}

/// One edge has found other masters, and said so; this one still sees those from before.
#[tokio::test]
async fn an_edge_in_an_earlier_epoch_gives_up_nobody() {
    let scratch = TempDir::new().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    // It would give up whoever is missing, at once.
    let waits = |missing| Waits { settle: Duration::ZERO, missing };
    let one = edge(&server, &scratch, "one.db", waits(Duration::from_secs(1))).await;
    let period = loop {
        let period = one.period().unwrap();
        if period.age > one.waits.missing {
            break period;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    one.answer_the_roll(&period).await;
    assert!(one.is_settled(&period, one.roll(period.epoch).as_deref()));
    let begun = period.begun.millis() + 1;
    let entry = |at: i64| format!("{} {begun} {at}", other_epoch().0);
    // So that it is time to call the roll again.
    let again = |edge: &Inner| {
        let roll = edge.roll.load_full().unwrap();
        let at = Moment::ago(LATELY);
        edge.roll.store(Some(Arc::new(Roll { at, ..Roll::clone(&roll) })));
    };
    // It is there, and for as long as it may be.
    server.raw(&["HSET", ROLL, "edge:two", &entry(now().plus(HOUR).millis())]);
    server.raw(&["HSET", ROLL, "floor", "5", "floor-of", &other_epoch().0.to_string()]);
    let before = server.raw(&["HGETALL", ROLL]);
    again(&one);
    one.answer_the_roll(&period).await;
    assert!(one.roll(period.epoch).is_none(), "it does not know");
    let one = shared(one);
    assert!(one.trouble().unwrap().contains("edge two has found other masters"));
    assert!(!one.is_up() && one.unsettled() == Some(Unsettled::Missing("two".to_owned())));
    assert!(one.revoke(vec![key()], None).await.is_err());
    assert_eq!(server.raw(&["HGETALL", ROLL]), before, "nothing was changed");
    let lately = now().minus(Duration::from_secs(30));
    // It has gone for good: it is one that is missing, and then given up.
    server.raw(&["HSET", ROLL, "edge:two", &entry(lately.millis())]);
    let patient = edge(&server, &scratch, "three.db", waits(HOUR)).await;
    patient.answer_the_roll(&period).await;
    assert!(patient.roll(period.epoch).is_none(), "an hour has not gone by for this one");
    let last = edge(&server, &scratch, "four.db", waits(Duration::from_secs(1))).await;
    last.answer_the_roll(&period).await;
    // The servers have been there for so long, but others may start together with this one.
    let roll = last.roll(period.epoch).unwrap();
    assert_eq!(
        (roll.missing.as_deref(), roll.given_up.as_ref().map(|it| it.before.millis())),
        (Some("two"), Some(5))
    );
    tokio::time::sleep(last.waits.missing).await;
    again(&last);
    last.answer_the_roll(&period).await;
    let roll = last.roll(period.epoch).unwrap();
    assert!(roll.given_up.unwrap().is(other_epoch(), UnixTime::from_millis(begun)));
}

/// What was given up is so for good, whoever forgets it.
#[tokio::test]
async fn what_is_given_up_is_remembered_by_each_edge() {
    let scratch = TempDir::new().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    let one = edge(&server, &scratch, "one.db", Waits::default()).await;
    let period = one.period().unwrap();
    let but = other_epoch().0.to_string();
    server.raw(&["HSET", ROLL, "floor", "7000", "floor-of", &but]);
    one.answer_the_roll(&period).await;
    let given_up = GivenUp { before: UnixTime::from_millis(7000), but: other_epoch() };
    assert_eq!(one.roll(period.epoch).unwrap().given_up, Some(given_up));
    // The server forgets it, and another edge, that knows nothing, says less.
    server.raw(&["DEL", ROLL]);
    server.raw(&["HSET", ROLL, "floor", "5000", "floor-of", &period.epoch.0.to_string()]);
    let two = edge(&server, &scratch, "two.db", Waits::default()).await;
    two.answer_the_roll(&period).await;
    assert_eq!(two.roll(period.epoch).unwrap().given_up.unwrap().before.millis(), 5000);
    one.roll.store(None);
    one.answer_the_roll(&period).await;
    assert_eq!(one.roll(period.epoch).unwrap().given_up, Some(given_up));
    two.roll.store(None);
    two.answer_the_roll(&period).await;
    assert_eq!(two.roll(period.epoch).unwrap().given_up, Some(given_up));
    let kept = two.registry.read(|reader| reader.given_up()).await;
    assert_eq!(kept, Ok(Some(given_up)));
}

/// A command that looks is nobody that others would wait for, and gives nothing up. Where its file remembers
/// more than the servers say, they are not to be copied.
#[tokio::test]
async fn who_only_looks_is_not_on_the_roll() {
    let scratch = TempDir::new().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    let looking =
        Inner { joins: false, ..edge(&server, &scratch, "one.db", Waits::default()).await };
    let period = looking.period().unwrap();
    let entry = format!("{} 1 1", other_epoch().0);
    server.raw(&["HSET", ROLL, "edge:two", &entry]);
    let before = server.raw(&["HGETALL", ROLL]);
    looking.answer_the_roll(&period).await;
    let roll = looking.roll(period.epoch).unwrap();
    assert_eq!((roll.missing.as_deref(), roll.given_up), (Some("two"), None));
    let given_up = GivenUp { before: UnixTime::from_millis(7000), but: other_epoch() };
    let kept = looking.registry.transact(move |batch| batch.keep_given_up(&given_up)).await;
    assert_eq!(kept, Ok(()));
    looking.roll.store(None);
    looking.answer_the_roll(&period).await;
    assert!(looking.roll(period.epoch).is_none());
    assert_eq!(server.raw(&["HGETALL", ROLL]), before, "nothing was changed");
    assert!(shared(looking).revoke(vec![key()], None).await.is_err());
}

/// A call is for one epoch: where the store is another by then, nothing is said there.
#[tokio::test]
async fn the_roll_is_called_in_one_epoch() {
    let scratch = TempDir::new().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    let one = edge(&server, &scratch, "one.db", Waits::default()).await;
    let period = one.period().unwrap();
    server.raw(&["SET", "{test:0}:mark", "another"]);
    one.answer_the_roll(&period).await;
    assert!(one.roll.load().is_none());
    assert!(server.raw(&["HKEYS", ROLL]).starts_with("*0"));
}
