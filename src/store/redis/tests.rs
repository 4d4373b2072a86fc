//! What is another store, and which servers are not used, with real ones.

#![expect(clippy::disallowed_methods, reason = "a test has processes and clocks")]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::policy::digest::{Jkt, Sha256};
use crate::policy::proof::ProofRules;
use crate::store::bindings::tests::{Server, address, connected, raw, settings};
use crate::store::replay::{ReplayFault, ReplayLog as _, Use};

/// Waits until it is so.
async fn until(what: &str, so: impl Fn() -> bool) {
    for _ in 0..3000 {
        if so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: that is never so");
}

fn epoch(redis: &Redis) -> Option<Epoch> {
    redis.current().filter(|_| redis.is_up()).map(|reign| reign.epoch)
}

fn ok(answer: &str) {
    assert!(answer.starts_with("+OK"), "{answer}");
}

/// Has the server drop keys of other people, but not all: those that end first.
fn squeeze(server: &Server) {
    let filler = "x".repeat(10_000);
    for index in 0..50 {
        ok(&server.raw(&["SET", &format!("filler:{index}"), &filler, "PX", "60000"]));
    }
    ok(&server.raw(&["CONFIG", "SET", "maxmemory-policy", "volatile-ttl"]));
    let used = server.raw(&["INFO", "memory"]);
    let used = used.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
    let less = used.trim().parse::<u64>().unwrap() - 200_000;
    ok(&server.raw(&["CONFIG", "SET", "maxmemory", &less.to_string()]));
    for _ in 0..100 {
        server.raw(&["SET", "one more", "y"]);
        if !server.raw(&["INFO", "stats"]).contains("evicted_keys:0\r") {
            break;
        }
    }
    ok(&server.raw(&["CONFIG", "SET", "maxmemory", "0"]));
    ok(&server.raw(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]));
}

/// Nobody saw it: it was put right before anybody looked.
#[tokio::test]
async fn a_server_that_has_dropped_keys_is_another_store() {
    let scratch = TempDir::new().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    let before = epoch(&server.connect().await).unwrap();
    assert_eq!(epoch(&server.connect().await), Some(before), "nothing has changed");
    squeeze(&server);
    assert!(!server.raw(&["INFO", "stats"]).contains("evicted_keys:0\r"), "it dropped none");
    assert_ne!(epoch(&server.connect().await).unwrap(), before);
}

/// The count was set back: whoever saw the policy has changed the marks.
#[tokio::test]
async fn a_server_that_may_have_dropped_keys_is_another_store() {
    let scratch = TempDir::new().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    let (one, two) = (server.connect().await, server.connect().await);
    let before = epoch(&one).unwrap();
    assert_eq!(epoch(&two), Some(before));
    ok(&server.raw(&["CONFIG", "SET", "maxmemory-policy", "volatile-ttl"]));
    until("both have seen it", || !one.is_up() && !two.is_up()).await;
    ok(&server.raw(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]));
    ok(&server.raw(&["CONFIG", "RESETSTAT"]));
    until("both are up", || one.is_up() && two.is_up()).await;
    until("both see the same", || epoch(&one) == epoch(&two)).await;
    assert_ne!(epoch(&one).unwrap(), before);
}

fn rules() -> ProofRules {
    ProofRules {
        proof_lifetime: Duration::from_secs(120),
        clock_skew: Duration::from_secs(5),
        replay_window: Duration::from_secs(300),
        nonce_ttl: None,
        nonce_replaces_iat: false,
        nonce_single_use: false,
    }
}

/// One that may not be looked at could be another one by now, or be told to drop keys.
#[tokio::test]
async fn a_server_that_may_not_be_looked_at_any_more_is_not_used() {
    let scratch = TempDir::new().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    ok(&server.raw(&["ACL", "SETUSER", "edge", "on", ">word", "~*", "+@all"]));
    let password = scratch.path().join("password");
    std::fs::write(&password, "word").unwrap();
    let login = Login { user: Some("edge".to_owned()), password_file: Some(password) };
    let redis = server.connect_as(login).await;
    for right in ["time", "info"] {
        assert!(redis.current().is_some());
        ok(&server.raw(&["ACL", "SETUSER", "edge", &format!("-{right}")]));
        until("it is not used", || redis.current().is_none()).await;
        for _ in 0..25 {
            assert!(redis.current().is_none(), "{right}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        ok(&server.raw(&["ACL", "SETUSER", "edge", &format!("+{right}")]));
        until("it is used again", || redis.is_up()).await;
    }
}

/// An edge that was started before its clock was right.
#[tokio::test]
async fn an_epoch_s_begin_goes_with_the_clock_that_proofs_are_held_against() {
    let scratch = TempDir::new().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    let redis = server.connect().await;
    let view = redis.shared.view.load_full().unwrap();
    assert!(view.by_the_clock(now()).is_none());
    for (by, is) in [(240_000, true), (-240_000, true), (500, false)] {
        let set = UnixTime::from_millis(now().millis() + by);
        let other = view.by_the_clock(set).map(|view| view.reign);
        assert_eq!(other.is_some(), is, "{by}");
        let Some(other) = other else { continue };
        let moved = other.since.millis_since(view.reign.since);
        assert!((moved - by).abs() < 1000 && other.epoch == view.reign.epoch, "{by}: {moved}");
    }
}

/// Passes bytes on; what `TIME` answers is so many seconds later. `to` says where each connection goes.
fn pass_on(to: Vec<u16>, later: Arc<AtomicU64>) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = AtomicUsize::new(0);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let nth = count.fetch_add(1, Ordering::SeqCst);
            let server = TcpStream::connect((Ipv4Addr::LOCALHOST, to[nth % to.len()])).unwrap();
            let (mut from, mut into) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut into));
            let later = Arc::clone(&later);
            std::thread::spawn(move || answer(server, client, &later));
        }
    });
    port
}

fn answer(mut server: TcpStream, mut client: TcpStream, later: &AtomicU64) {
    const HEAD: &[u8] = b"*2\r\n$10\r\n";
    let mut bytes = vec![0; 65536];
    while let Ok(count) = server.read(&mut bytes) {
        if count == 0 {
            return;
        }
        let mut said = bytes[..count].to_vec();
        if let Some(at) = said.windows(HEAD.len()).position(|window| window == HEAD) {
            let seconds = &mut said[at + HEAD.len()..][..10];
            let then: u64 = std::str::from_utf8(seconds).unwrap().parse().unwrap();
            let then = then + later.load(Ordering::SeqCst);
            seconds.copy_from_slice(then.to_string().as_bytes());
        }
        if client.write_all(&said).is_err() {
            return;
        }
    }
}

/// Keys end by the server's clock. It cannot be set here, so that what it says is changed on the way.
#[tokio::test]
async fn a_server_whose_clock_leaps_is_another_store() {
    let scratch = TempDir::new().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    let later = Arc::<AtomicU64>::default();
    let port = pass_on(vec![server.port], Arc::clone(&later));
    let redis = connected(settings(Topology::Standalone(vec![address(port)]))).await;
    let (before, other) = (epoch(&redis).unwrap(), server.connect().await);
    let log = RedisReplay::new(redis.clone(), Partition::Resources, &rules(), 10);
    let used = Use { jkt: Jkt(Sha256([1; 32])), jti: "jti", epoch: before };
    log.check_and_insert(used, now()).await.unwrap();
    assert_eq!(log.check_and_insert(used, now()).await, Err(ReplayFault::Replayed));
    later.store(3600, Ordering::SeqCst);
    until("it is another", || epoch(&redis).is_some_and(|epoch| epoch != before)).await;
    // What was good in the one before is not in this one, for whoever has not seen it either.
    assert_eq!(log.check_and_insert(used, now()).await, Err(ReplayFault::Down));
    until("all see the same", || epoch(&other) == epoch(&redis)).await;
    let since = epoch(&redis);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(epoch(&redis), since, "once");
}

/// The same while no connection stood.
#[tokio::test]
async fn a_leap_between_two_connections_is_seen() {
    let scratch = TempDir::new().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    let later = Arc::<AtomicU64>::default();
    let port = pass_on(vec![server.port], Arc::clone(&later));
    let redis = connected(settings(Topology::Standalone(vec![address(port)]))).await;
    let before = epoch(&redis).unwrap();
    later.store(3600, Ordering::SeqCst);
    server.raw(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    until("it is another", || epoch(&redis).is_some_and(|epoch| epoch != before)).await;
}

/// The server works for others between the changes of two marks: whoever has read some of before and some of
/// after finds out by the one that is looked at each second.
#[test]
fn the_mark_that_is_looked_at_is_changed_last() {
    let places = [0; TAGS];
    let all: Vec<_> = supervise::tags_at(&places, 0).collect();
    assert_eq!(all.first(), Some(&Tag::FIRST), "it is looked at");
    let order: Vec<_> = supervise::one_by_one(&all).copied().collect();
    assert_eq!((order.len(), order.last()), (TAGS, Some(&Tag::FIRST)));
}

/// What was not sent while the server was gone takes no room of what is there when it is back.
#[tokio::test]
async fn a_server_that_is_gone_fills_no_log() {
    let scratch = TempDir::new().unwrap();
    let Some(mut server) = Server::start(scratch.path()) else { return };
    let redis = server.connect().await;
    let log = RedisReplay::new(redis.clone(), Partition::Resources, &rules(), 10);
    let used = |epoch| Use { jkt: Jkt(Sha256([1; 32])), jti: "jti", epoch };
    let before = epoch(&redis).unwrap();
    server.stop();
    until("it is not used", || !redis.is_up()).await;
    for _ in 0..100 {
        assert_eq!(log.check_and_insert(used(before), now()).await, Err(ReplayFault::Down));
    }
    assert_eq!(log.live(), 0);
    server.roll_back();
    until("it is used again", || redis.is_up()).await;
    assert_eq!(log.check_and_insert(used(epoch(&redis).unwrap()), now()).await, Ok(()));
    assert_eq!(log.live(), 1);
}

/// With `waitReplicas` there are two connections. Behind a name there may be two servers.
#[tokio::test]
async fn both_connections_lead_to_one_server() {
    let scratch = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let Some(one) = Server::start(scratch[0].path()) else { return };
    let Some(two) = Server::start(scratch[1].path()) else { return };
    let port = pass_on(vec![one.port, two.port], Arc::default());
    let wait = Wait { replicas: 1, within: Duration::from_millis(200) };
    let topology = Topology::Standalone(vec![address(port)]);
    let redis = Redis::start(Settings { wait, ..settings(topology) }, &Handle::current());
    let says = || redis.status().error.unwrap_or_default();
    until("it says so", || says().contains("two connections lead to two servers")).await;
    assert!(!redis.is_up());
}

#[tokio::test]
async fn an_epoch_is_as_old_as_the_server_says_and_later_than_those_before() {
    let scratch = TempDir::new().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    let first = server.connect().await.period().unwrap();
    assert!(first.age < Duration::from_secs(60), "{:?}", first.age);
    let key = "{test:0}:begun";
    // Somebody has seen it an hour ago.
    let ago = first.begun.millis() - 3_600_000;
    ok(&server.raw(&["SET", key, &format!("{} {ago} {ago}", first.epoch.0)]));
    let redis = server.connect().await;
    let second = redis.period().unwrap();
    assert_eq!((second.epoch, second.begun.millis()), (first.epoch, ago));
    assert!(second.age >= Duration::from_secs(3600), "{:?}", second.age);
    let since = redis.current().unwrap().since;
    assert!(since <= now().minus(Duration::from_secs(3600)), "by this clock");
    // One before had a clock that ran ahead.
    let ahead = first.begun.millis() + 3_600_000;
    let before = Sha256::of(b"before");
    ok(&server.raw(&["SET", key, &format!("{before} {ahead} {ahead}")]));
    let third = server.connect().await.period().unwrap();
    assert_eq!(third.begun.millis(), ahead + 60_001, "more than servers' clocks may differ by");
    assert!(third.age < Duration::from_secs(60), "{:?}", third.age);
}

/// A node of a Cluster that nobody is in but those of the test.
fn member(scratch: &TempDir, slots: (u16, u16)) -> Option<Server> {
    let more = [
        ["--cluster-enabled", "yes"],
        ["--cluster-require-full-coverage", "no"],
        ["--cluster-node-timeout", "3600000"],
    ]
    .concat();
    let server = Server::start_with(scratch.path(), &more)?;
    let (first, last) = (slots.0.to_string(), slots.1.to_string());
    ok(&server.raw(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]));
    Some(server)
}

#[tokio::test]
async fn a_server_whose_cluster_is_down_is_not_used() {
    let scratch = TempDir::new().unwrap();
    let Some(server) = member(&scratch, (0, 16383)) else { return };
    ok(&server.raw(&["CONFIG", "SET", "cluster-require-full-coverage", "yes"]));
    until("it is ready", || server.raw(&["CLUSTER", "INFO"]).contains("cluster_state:ok")).await;
    let redis = connected(settings(Topology::Cluster(vec![address(server.port)]))).await;
    let before = epoch(&redis);
    // No key is in this slot: it is not one of the tags'.
    let tags: BTreeSet<_> = Tag::all().map(|tag| redis.keys().slot(tag)).collect();
    let free = (0..16384).find(|slot| !tags.contains(slot)).unwrap().to_string();
    ok(&server.raw(&["CLUSTER", "DELSLOTS", &free]));
    until("it is not used", || !redis.is_up()).await;
    assert!(redis.send(Tag::FIRST, &Pipeline::new().cmd("TIME").to_owned()).await.is_err());
    ok(&server.raw(&["CLUSTER", "ADDSLOTS", &free]));
    until("it is used again", || redis.is_up()).await;
    assert_eq!(epoch(&redis), before, "the same process, with what it had");
}

/// One of two cannot be reached; what becomes of the other is seen all the same.
#[tokio::test]
async fn a_server_is_looked_at_while_another_is_gone() {
    let scratch = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let Some(one) = member(&scratch[0], (0, 8191)) else { return };
    let Some(two) = member(&scratch[1], (8192, 16383)) else { return };
    ok(&one.raw(&["CLUSTER", "MEET", "127.0.0.1", &two.port.to_string()]));
    let knows = |port| raw(port, &["CLUSTER", "INFO"]).contains("cluster_slots_assigned:16384");
    until("they know each other", || knows(one.port) && knows(two.port)).await;
    let (mut gone, left) = if one.port < two.port { (one, two) } else { (two, one) };
    let hour = Duration::from_secs(3600);
    let slow = settings(Topology::Cluster(vec![address(left.port)]));
    let slow = Settings { connect_timeout: hour, timeout: hour, ..slow };
    let redis = connected(slow).await;
    let tag = |port| {
        let view = redis.shared.view.load_full().unwrap();
        Tag::all().find(|tag| view.server(*tag).unwrap().address.port == port).unwrap()
    };
    let (at_left, time) = (tag(left.port), Pipeline::new().cmd("TIME").to_owned());
    gone.stop();
    // Who connects there waits.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, gone.port)).unwrap();
    until("one is down", || !redis.is_up()).await;
    let _waits = silent.accept().unwrap();
    redis.send(at_left, &time).await.unwrap();
    ok(&left.raw(&["CONFIG", "SET", "maxmemory-policy", "volatile-ttl"]));
    let is_used = || redis.shared.view.load_full().unwrap().server(at_left).unwrap().is_open();
    until("the other is not used", || !is_used()).await;
    assert!(redis.shared.view.load_full().unwrap().server(at_left).unwrap().forgets());
    assert_eq!(redis.send(at_left, &time).await, Err(Fault::Down));
}
