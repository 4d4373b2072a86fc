//! One set of tests for every store of bindings, and what holds of Redis alone.

#![expect(clippy::disallowed_methods, reason = "a test has a clock, processes and tasks")]

mod given_up;
mod server;

use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tokio::runtime::Handle;

use super::*;
use crate::policy::audit::Kind;
use crate::policy::digest::{Jkt, Sha256};
use crate::policy::grant::Records;
use crate::policy::grant::TokenKind;
use crate::store::epoch::SETTLE;
use crate::store::sqlite::writer::CheckpointRule;
pub(crate) use server::{Server, address, connected, raw, settings};

const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn registry(directory: &TempDir, name: &str) -> Registry {
    let rule = CheckpointRule { lines: 1000, interval: HOUR };
    Registry::open(&directory.path().join(name), rule).unwrap()
}

/// What an edge has of the records in `server`.
async fn edge(server: &Server, registry: &Registry, settle: Duration) -> SharedBindings {
    edge_with(server, registry, Waits { settle, ..Waits::default() }).await
}

async fn edge_with(server: &Server, registry: &Registry, waits: Waits) -> SharedBindings {
    let redis = server.connect().await;
    let edge = SharedBindings::start(redis, registry.clone(), waits, &Handle::current());
    once_up(&edge).await;
    edge
}

async fn once_up(store: &dyn Bindings) {
    for _ in 0..3000 {
        if store.is_up() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the store does not come up");
}

/// Asks until there is an answer.
async fn found(store: &dyn Bindings, key: RecordKey) -> Option<BindingRecord> {
    for _ in 0..3000 {
        if let Ok(found) = store.record(key).await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the store does not answer");
}

fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    UnixTime::from_millis(since.as_millis().try_into().unwrap())
}

fn key(kind: TokenKind, token: &str) -> RecordKey {
    RecordKey::of("https://as.example", kind, token)
}

fn record(kind: TokenKind, bound_to: Option<u8>, family: &str) -> BindingRecord {
    BindingRecord {
        kind,
        tenant: Some("acme".to_owned()),
        client: Some("client-1".to_owned()),
        cnf_jkt: bound_to.map(|byte| Jkt(Sha256([byte; 32]))),
        sender_certificate: None,
        scope: Some("orders".to_owned()),
        // To the millisecond, as it is kept.
        expires: now().plus(HOUR),
        family: family.to_owned(),
        bypass: None,
        revoked: false,
    }
}

/// An access and a refresh token of one grant, bound to one key.
fn pair(name: &str, bound_to: Option<u8>, family: &str) -> Records {
    let (access, refresh) = (format!("access-{name}"), format!("refresh-{name}"));
    vec![
        (key(TokenKind::Access, &access), record(TokenKind::Access, bound_to, family)),
        (key(TokenKind::Refresh, &refresh), record(TokenKind::Refresh, bound_to, family)),
    ]
}

fn issued(records: Records) -> Issued {
    Issued { records, ..Issued::default() }
}

/// A grant that goes on: `name`'s refresh token was redeemed.
fn refreshed(name: &str, records: Records) -> Issued {
    let redeemed = Some(key(TokenKind::Refresh, &format!("refresh-{name}")));
    Issued { records, redeemed, goes_on: true, ..Issued::default() }
}

const REVOKER: Option<&str> = Some("client-1");

async fn revoke(store: &dyn Bindings, kind: TokenKind, token: &str, client: Option<&str>) -> bool {
    store.revoke(vec![key(kind, token)], client.map(str::to_owned)).await.unwrap()
}

/// Whether a token is revoked; `None` where there is no record of it.
async fn is_revoked(store: &dyn Bindings, kind: TokenKind, token: &str) -> Option<bool> {
    store.record(key(kind, token)).await.unwrap().map(|record| record.revoked)
}

const ACCESS: TokenKind = TokenKind::Access;
const REFRESH: TokenKind = TokenKind::Refresh;

/// What is kept, of every store; `other` is a second way to the same one.
async fn check_kept(store: &dyn Bindings, other: &dyn Bindings) {
    assert_eq!(other.record(key(ACCESS, "none")).await, Ok(None));
    let first = pair("1", Some(1), "f1");
    store.keep(issued(first.clone()), now()).await.unwrap();
    for (key, record) in &first {
        assert_eq!(other.record(*key).await.as_ref(), Ok(&Some(record.clone())));
        // The second time by what was learned the first.
        assert_eq!(other.record(*key).await.as_ref(), Ok(&Some(record.clone())));
    }
    // The same again, and for longer: it is never shorter.
    let mut later = first.clone();
    later.iter_mut().for_each(|(_, record)| record.expires = now().plus(HOUR * 2));
    other.keep(refreshed("1", later.clone()), now()).await.unwrap();
    store.keep(refreshed("1", first.clone()), now()).await.unwrap();
    assert_eq!(other.record(later[0].0).await, Ok(Some(later[0].1.clone())));
    // An outlived record is in nobody's way.
    let mut old = pair("4", Some(4), "f4");
    old.iter_mut().for_each(|(_, record)| record.expires = now().minus(Duration::from_secs(1)));
    store.keep(issued(old), now()).await.unwrap();
    other.keep(issued(pair("4", Some(5), "f5")), now()).await.unwrap();

    let made = rcgen::CertificateParams::default();
    let made = made.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    let certificate = SenderCertificate::new(made.der().to_vec()).unwrap();
    let x5t = certificate.x5t();
    assert!(other.certificate(x5t).await.unwrap().is_none());
    let kept = Issued { certificate: Some(certificate), ..Issued::default() };
    store.keep(kept, now()).await.unwrap();
    assert_eq!(other.certificate(x5t).await.unwrap().map(|it| it.x5t()), Some(x5t));
}

/// Another's token stays that one's, and nothing of the answer is kept.
async fn check_conflicts(store: &dyn Bindings, other: &dyn Bindings) {
    let first = pair("1", Some(1), "f1");
    store.keep(issued(first.clone()), now()).await.unwrap();
    let mut stolen = pair("2", Some(2), "f2");
    stolen.push((first[1].0, record(REFRESH, Some(2), "f2")));
    assert_eq!(other.keep(issued(stolen.clone()), now()).await, Err(BindFault::Conflict));
    assert_eq!(other.record(stolen[0].0).await, Ok(None));
    assert_eq!(other.record(first[1].0).await, Ok(Some(first[1].1.clone())));
    // One that was nobody's can become somebody's, once.
    store.keep(issued(pair("3", None, "f3")), now()).await.unwrap();
    other.keep(refreshed("3", pair("3", Some(3), "f3")), now()).await.unwrap();
    let free = store.keep(refreshed("3", pair("3", None, "f3")), now()).await;
    assert_eq!(free, Err(BindFault::Conflict));
}

/// Revocations: by a token's own client alone; an access token alone, a refresh token with its grant.
async fn check_revoked(store: &dyn Bindings, other: &dyn Bindings) {
    store.keep(issued(pair("1", Some(1), "f1")), now()).await.unwrap();
    store.keep(issued(pair("2", Some(1), "f2")), now()).await.unwrap();
    other.keep(refreshed("1", pair("1b", Some(1), "f1")), now()).await.unwrap();
    for client in [None, Some("client-2")] {
        assert!(!revoke(store, ACCESS, "access-1", client).await, "{client:?}");
        assert!(!revoke(store, REFRESH, "refresh-1", client).await, "{client:?}");
    }
    assert!(!revoke(store, ACCESS, "access-none", REVOKER).await);
    assert_eq!(is_revoked(other, ACCESS, "access-1").await, Some(false));
    assert!(revoke(store, ACCESS, "access-1", REVOKER).await);
    assert_eq!(is_revoked(other, ACCESS, "access-1").await, Some(true));
    assert_eq!(is_revoked(other, REFRESH, "refresh-1").await, Some(false));
    assert!(revoke(store, REFRESH, "refresh-1", REVOKER).await);
    assert_eq!(is_revoked(other, ACCESS, "access-1b").await, Some(true));
    assert_eq!(is_revoked(other, REFRESH, "refresh-1b").await, Some(true));
    assert_eq!(is_revoked(other, ACCESS, "access-2").await, Some(false), "of another grant");
}

/// What is revoked does not come back.
async fn check_late(store: &dyn Bindings, other: &dyn Bindings) {
    let alone = pair("1", Some(1), "f1");
    store.keep(issued(alone.clone()), now()).await.unwrap();
    assert!(revoke(store, ACCESS, "access-1", REVOKER).await);
    let back = other.keep(refreshed("1", alone), now()).await;
    assert_eq!(back, Err(BindFault::Conflict), "a revoked token");
    store.keep(issued(pair("3", Some(3), "f3")), now()).await.unwrap();
    assert!(revoke(store, REFRESH, "refresh-3", REVOKER).await);
    let late = other.keep(refreshed("3", pair("3b", Some(3), "f3")), now()).await;
    assert_eq!(late, Err(BindFault::Revoked), "a token of a revoked grant");
    assert_eq!(other.record(key(ACCESS, "access-3b")).await, Ok(None));
    let moved = other.keep(issued(pair("3", Some(3), "f7")), now()).await;
    assert_eq!(moved, Err(BindFault::Conflict), "one of its tokens in another grant");
}

/// A grant that was not known, and that somebody has bound and revoked meanwhile.
async fn check_redeemed(store: &dyn Bindings, other: &dyn Bindings) {
    store.keep(issued(pair("1", Some(1), "f1")), now()).await.unwrap();
    assert!(revoke(store, REFRESH, "refresh-1", REVOKER).await);
    let unknown = Issued { goes_on: false, ..refreshed("1", pair("2", Some(1), "f2")) };
    assert_eq!(other.keep(unknown, now()).await, Err(BindFault::Revoked));
    assert_eq!(other.record(key(ACCESS, "access-2")).await, Ok(None));
}

/// Two edges of one server, and the server.
async fn two_edges(scratch: &TempDir) -> Option<(Server, SharedBindings, SharedBindings)> {
    let server = Server::start(scratch.path())?;
    let (one, two) = (registry(scratch, "one.db"), registry(scratch, "two.db"));
    let (one, two) = (edge(&server, &one, SETTLE).await, edge(&server, &two, SETTLE).await);
    Some((server, one, two))
}

/// Each set of checks against either store.
macro_rules! both {
    ($($check:ident: $embedded:ident, $shared:ident;)*) => {$(
        #[tokio::test]
        async fn $embedded() {
            let scratch = tempfile::tempdir().unwrap();
            let registry = registry(&scratch, "one.db");
            $check(&registry, &registry.clone()).await;
        }

        #[tokio::test]
        async fn $shared() {
            let scratch = tempfile::tempdir().unwrap();
            let Some((_server, one, two)) = two_edges(&scratch).await else { return };
            $check(&one, &two).await;
        }
    )*};
}

both! {
    check_kept: the_file_keeps, redis_keeps;
    check_conflicts: the_file_has_conflicts, redis_has_conflicts;
    check_revoked: the_file_revokes, redis_revokes;
    check_late: in_the_file_nothing_comes_back, in_redis_nothing_comes_back;
    check_redeemed: the_file_knows_what_was_redeemed, redis_knows_what_was_redeemed;
}

#[tokio::test]
async fn each_key_ends_and_none_has_a_token_in_it() {
    let scratch = tempfile::tempdir().unwrap();
    let Some((server, one, two)) = two_edges(&scratch).await else { return };
    check_kept(&one, &two).await;
    assert!(revoke(&one, ACCESS, "access-1", REVOKER).await);
    for key in server.raw(&["KEYS", "*"]).lines().filter(|line| line.starts_with('{')) {
        let ends = server.raw(&["PTTL", key]);
        let left: i64 = ends.trim_start_matches(':').trim().parse().unwrap();
        let kept = ["mark", "begun"].iter().any(|name| key.ends_with(name));
        // Later than what it is for.
        assert!(kept || left > 3_500_000, "{key}: {left}");
        assert!(!server.raw(&["GET", key]).contains("access-1"), "{key}");
    }
}

#[tokio::test]
async fn a_line_is_written_before_anything_is_kept() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    let registry = registry(&scratch, "one.db");
    let edge = edge(&server, &registry, SETTLE).await;
    let line = Draft::new(Kind::Bypass, now(), "decision", None, &serde_json::json!({}));
    let bypassed = Issued { line: Some(line), ..issued(pair("1", None, "f1")) };
    edge.keep(bypassed.clone(), now()).await.unwrap();
    let lines = registry.read(|reader| reader.lines_of("decision")).await.unwrap();
    assert_eq!(lines.len(), 1);
    // Where it cannot be written nothing is kept.
    std::fs::rename(scratch.path().join("one.db"), scratch.path().join("moved.db")).unwrap();
    let unwritten = Issued { records: pair("2", None, "f2"), ..bypassed };
    assert_eq!(edge.keep(unwritten, now()).await, Err(BindFault::Down));
    assert_eq!(edge.record(key(TokenKind::Access, "access-2")).await, Ok(None));
}

/// Two edges bind one token at once, each to another key: one does.
#[tokio::test]
async fn one_token_at_two_edges_is_one_sender_s() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    let (one, two) = (registry(&scratch, "one.db"), registry(&scratch, "two.db"));
    let (one, two) = (edge(&server, &one, SETTLE).await, edge(&server, &two, SETTLE).await);
    for round in 0..100 {
        let name = round.to_string();
        let keep = |edge: &SharedBindings, byte: u8| {
            let (edge, records) =
                (edge.clone(), pair(&name, Some(byte), &format!("{name}-{byte}")));
            tokio::spawn(async move { edge.keep(issued(records), now()).await })
        };
        let (a, b) = tokio::join!(keep(&one, 1), keep(&two, 2));
        let done = [a.unwrap(), b.unwrap()];
        // Both may lose, each by one of the two tokens; never do both win.
        let won: Vec<_> = done.iter().filter(|done| done.is_ok()).collect();
        assert!(won.len() <= 1, "{done:?}");
        if let Some(byte) = done.iter().position(Result::is_ok) {
            let byte = u8::try_from(byte + 1).unwrap();
            for (key, record) in pair(&name, Some(byte), "") {
                let found = two.record(key).await.unwrap().unwrap();
                assert_eq!(found.cnf_jkt, record.cnf_jkt, "{name}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_lost_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(mut server) = Server::start(scratch.path()) else { return };
    let registry = registry(&scratch, "one.db");
    let edge = edge(&server, &registry, SETTLE).await;
    let access = key(TokenKind::Access, "access-1");
    edge.keep(issued(pair("1", Some(1), "f1")), now()).await.unwrap();
    // The grant alone.
    for key in server.keys('f') {
        assert!(server.raw(&["DEL", &key]).starts_with(":1"));
    }
    assert!(edge.record(access).await.unwrap().unwrap().revoked);
    let on = edge.keep(refreshed("1", pair("2", Some(1), "f1")), now()).await;
    assert_eq!(on, Err(BindFault::Revoked), "a grant that is lost does not begin anew");
    // The record.
    for key in server.keys('t') {
        assert!(server.raw(&["DEL", &key]).starts_with(":1"));
    }
    assert_eq!(edge.record(access).await, Ok(None));
    // What nobody here has written.
    edge.keep(issued(pair("3", Some(1), "f3")), now()).await.unwrap();
    for key in server.keys('t') {
        server.raw(&["SET", &key, "{\"kind\":\"access\"}"]);
    }
    assert_eq!(edge.record(key(TokenKind::Access, "access-3")).await, Err(Fault::Malformed));
    server.stop();
    assert!(edge.record(access).await.is_err());
    assert_eq!(edge.keep(issued(pair("4", Some(1), "f4")), now()).await, Err(BindFault::Down));
    assert!(edge.revoke(vec![access], REVOKER.map(str::to_owned)).await.is_err());
    assert!(edge.certificate(X5tS256(Sha256([1; 32]))).await.is_err());
}

/// The server goes back to before a revocation; the edge that made it says it again.
#[tokio::test]
async fn a_revocation_outlives_a_server_that_forgets_it() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(mut server) = Server::start(scratch.path()) else { return };
    let (one, two) = (registry(&scratch, "one.db"), registry(&scratch, "two.db"));
    // The one that has revoked waits for nobody but itself.
    let (one, two) = (
        edge(&server, &one, Duration::ZERO).await,
        edge(&server, &two, Duration::from_millis(1500)).await,
    );
    for (name, family) in [("1", "f1"), ("2", "f2"), ("3", "f3")] {
        one.keep(issued(pair(name, Some(1), family)), now()).await.unwrap();
    }
    assert!(server.raw(&["SAVE"]).starts_with("+OK"));
    assert!(revoke(&one, TokenKind::Refresh, "refresh-1", REVOKER).await);
    assert!(revoke(&one, TokenKind::Access, "access-2", REVOKER).await);
    server.roll_back();
    // Until it has, nobody is served by what the server says, at neither edge.
    for edge in [&one, &two] {
        for (token, revoked) in [("access-1", true), ("access-2", true), ("access-3", false)] {
            let record = found(edge, key(TokenKind::Access, token)).await.unwrap();
            assert_eq!(record.revoked, revoked, "{token}");
        }
    }
}

/// For as long as a new epoch settles, nothing of an earlier one is good.
#[tokio::test]
async fn an_epoch_settles_before_what_came_before_is_good() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(mut server) = Server::start(scratch.path()) else { return };
    let registry = registry(&scratch, "one.db");
    let edge = edge(&server, &registry, HOUR).await;
    let access = key(TokenKind::Access, "access-1");
    edge.keep(issued(pair("1", Some(1), "f1")), now()).await.unwrap();
    assert!(
        !edge.record(access).await.unwrap().unwrap().revoked,
        "its own epoch's is good at once"
    );
    assert!(server.raw(&["SAVE"]).starts_with("+OK"));
    server.roll_back();
    // Down first, by the connection that ended; then another epoch.
    while edge.is_up() {
        let _ = edge.record(access).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    once_up(&edge).await;
    assert!(edge.record(access).await.is_err());
    let on = edge.keep(refreshed("1", pair("2", Some(1), "f1")), now()).await;
    assert_eq!(on, Err(BindFault::Down), "it is not gone on from");
    // A new grant holds up nobody.
    edge.keep(issued(pair("3", Some(1), "f3")), now()).await.unwrap();
    assert!(edge.record(key(TokenKind::Access, "access-3")).await.unwrap().is_some());
    // And what is revoked is.
    assert!(revoke(&edge, TokenKind::Refresh, "refresh-1", REVOKER).await);
    assert!(edge.record(access).await.unwrap().unwrap().revoked);
}

/// What could not be said while the server was down is said when it is back.
#[tokio::test]
async fn a_revocation_that_could_not_be_said_is_said_later() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    let registry = registry(&scratch, "one.db");
    let edge = edge(&server, &registry, SETTLE).await;
    let access = key(TokenKind::Access, "access-1");
    edge.keep(issued(pair("1", Some(1), "f1")), now()).await.unwrap();
    // A server that takes no more.
    assert!(server.raw(&["CONFIG", "SET", "maxmemory", "1"]).starts_with("+OK"));
    let client = REVOKER.map(str::to_owned);
    let failed = edge.revoke(vec![key(TokenKind::Refresh, "refresh-1")], client).await;
    assert!(failed.is_err());
    assert!(server.raw(&["CONFIG", "SET", "maxmemory", "0"]).starts_with("+OK"));
    for _ in 0..3000 {
        if edge.record(access).await.is_ok_and(|found| found.is_some_and(|it| it.revoked)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it was not said");
}

/// What a master says that takes no writes is not gone by: another may be in its place.
#[tokio::test]
async fn a_master_that_takes_no_writes_is_not_believed() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(server) = Server::start(scratch.path()) else { return };
    let registry = registry(&scratch, "one.db");
    let edge = edge(&server, &registry, SETTLE).await;
    let access = key(TokenKind::Access, "access-1");
    edge.keep(issued(pair("1", Some(1), "f1")), now()).await.unwrap();
    assert!(server.raw(&["CONFIG", "SET", "min-replicas-to-write", "1"]).starts_with("+OK"));
    let refused = edge.keep(issued(pair("2", Some(1), "f2")), now()).await;
    assert_eq!(refused, Err(BindFault::Down));
    assert!(edge.record(access).await.is_err());
    assert!(server.raw(&["CONFIG", "SET", "min-replicas-to-write", "0"]).starts_with("+OK"));
    assert!(found(&edge, access).await.is_some());
}
