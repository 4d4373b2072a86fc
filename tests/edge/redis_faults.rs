//! Redis that is full, slow, parted, restarted, or asks for another password: whatever becomes of it,
//! nothing is admitted twice, and edges come back without a restart.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::support::authority::{Form, Site, TOKEN, form, grant};
use super::support::client::{Client, Request};
use super::support::process::{Process, free_port};
use super::support::redis::{Server, Tls, pair, there_is_none};
use super::support::relay::{Relay, Way};
use super::support::sharing::{
    Asked, Edge, admitted, another_nonce, down, key_file, nonce_of, ready_is, replayed, request,
    share, standalone, verdict, world,
};
use super::support::world::{World, bearer};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/redis");

fn deployed(name: &str) -> String {
    fs::read_to_string(Path::new(DEPLOY).join(name)).expect("a file of deploy/redis")
}

/// Sends it until the answer is `expected`; until then every one is `meanwhile`.
async fn becomes(
    edge: &impl Asked,
    request: impl Fn() -> Request,
    expected: (u16, String),
    meanwhile: (u16, String),
) -> Request {
    for _ in 0..1500 {
        let request = request();
        let found = verdict(edge.serve(&request).await);
        if found == expected {
            return request;
        }
        assert_eq!(found, meanwhile);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it never is {expected:?}");
}

/// A proof without a nonce that was admitted: the epoch's begin and the clocks' skew are past.
async fn admitted_without_a_nonce(edge: &impl Asked, world: &World) -> Request {
    becomes(edge, || request(world, None), admitted(), replayed()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_admits_nothing_until_there_is_room() {
    if there_is_none() {
        return;
    }
    let redis = Server::start(&[]).await;
    let world = world(standalone(redis.port)).await;
    let nonce = world.nonce().await;
    let used = request(&world, Some(&nonce));
    assert_eq!(verdict(world.serve(&used).await), admitted());
    let memory: u64 = redis.info("used_memory").parse().expect("a number");
    redis.cli(&["CONFIG", "SET", "maxmemory", &(memory + 4_000_000).to_string()]);
    // The last write that fits goes far over the limit.
    assert_eq!(redis.cli(&["SETRANGE", "filling", "20000000", "x"]).trim(), "20000001");
    let reached = world.upstream.count();
    let refused: Vec<_> = (0..20).map(|_| request(&world, Some(&nonce))).collect();
    for proof in &refused {
        assert_eq!(verdict(world.serve(proof).await), down());
        assert_eq!(verdict(world.serve(&used).await), down());
    }
    let report = ready_is(world.admin, false).await;
    assert_eq!(
        report["redis"]["lastError"].as_str().map(|it| it.contains("maxmemory")),
        Some(true)
    );
    assert_eq!(world.upstream.count(), reached, "something was admitted");
    redis.cli(&["DEL", "filling"]);
    ready_is(world.admin, true).await;
    // It is the same memory, and what was refused was not used up.
    assert_eq!(verdict(world.serve(&used).await), replayed());
    for proof in &refused {
        assert_eq!(verdict(world.serve(proof).await), admitted());
        assert_eq!(verdict(world.serve(proof).await), replayed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_joins_later_knows_what_the_others_know() {
    if there_is_none() {
        return;
    }
    for nonces in [true, false] {
        let redis = Server::start(&[]).await;
        let mut world = World::start_in(|directory, _, config| {
            key_file(directory);
            if !nonces {
                let dpop = &mut config["security"]["senderConstraints"]["dpop"];
                dpop["nonce"] = json!({"enabled": false});
                dpop["allowedClockSkew"] = json!("2s");
            }
            share(config, standalone(redis.port));
        })
        .await;
        let nonce = if nonces { Some(world.nonce().await) } else { None };
        let nonce = nonce.as_deref();
        let used = match nonce {
            Some(_) => becomes(&world, || request(&world, nonce), admitted(), down()).await,
            None => admitted_without_a_nonce(&world, &world).await,
        };
        assert_eq!(verdict(world.serve(&used).await), replayed());
        // Made before the edge was there that it is shown to.
        let [kept, later, last] = [(); 3].map(|()| request(&world, nonce));
        let second = Edge::beside(&world).await;
        assert_eq!(verdict(second.serve(&used).await), replayed());
        assert_eq!(verdict(second.serve(&kept).await), admitted());
        assert_eq!(verdict(world.serve(&kept).await), replayed());
        // Nobody's nonce was void because of it.
        assert_eq!(verdict(world.serve(&later).await), admitted());
        // One that is started anew joins as well, and no other is there to tell it.
        drop(second);
        world.restart().await;
        for proof in [&used, &kept, &later] {
            assert_eq!(verdict(world.serve(proof).await), replayed());
        }
        assert_eq!(verdict(world.serve(&last).await), admitted());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_that_lost_nothing_is_another_epoch_all_the_same() {
    if there_is_none() {
        return;
    }
    let mut redis = Server::start(&["appendonly yes", "appendfsync always", "save 3600 1"]).await;
    let world = world(standalone(redis.port)).await;
    let mut old = Vec::new();
    for killed in [true, false] {
        let nonce = nonce_of(&world, &world).await;
        let used = request(&world, Some(&nonce));
        assert_eq!(verdict(world.serve(&used).await), admitted());
        old.extend([used, request(&world, Some(&nonce))]);
        let kept = redis.cli(&["KEYS", "*"]).lines().count();
        if !killed {
            redis.cli(&["SHUTDOWN"]);
        }
        redis.kill();
        redis.again().await;
        assert_eq!(redis.cli(&["KEYS", "*"]).lines().count(), kept, "it lost something");
        // The edge may hear of the restart by its next request.
        let last = &old[old.len() - 1];
        becomes(&world, || last.clone(), another_nonce(), down()).await;
        for proof in &old {
            assert_eq!(verdict(world.serve(proof).await), another_nonce());
        }
        let fresh = nonce_of(&world, &world).await;
        assert_eq!(verdict(world.serve(&request(&world, Some(&fresh))).await), admitted());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_come_too_late_admit_nothing() {
    if there_is_none() {
        return;
    }
    let redis = Server::start(&[]).await;
    let link = Relay::to(redis.port).await;
    let mut through = standalone(link.port);
    through["timeout"] = json!("3s");
    let world = world(through).await;
    let straight = standalone(redis.port);
    let second = Edge::beside_with(&world, |config| config["store"]["redis"] = straight).await;
    let nonce = world.nonce().await;
    // Slow, but in time.
    link.is(Way::Slow(Duration::from_millis(30)));
    let in_time = request(&world, Some(&nonce));
    assert_eq!(verdict(world.serve(&in_time).await), admitted());
    assert_eq!(verdict(second.serve(&in_time).await), replayed());
    // The server does what it is told; nobody hears of it until it is too late.
    link.is(Way::Slow(Duration::from_secs(5)));
    let late: Vec<_> = (0..12).map(|_| request(&world, Some(&nonce))).collect();
    let mut taken = vec![0; late.len()];
    for (taken, proof) in taken.iter_mut().zip(&late) {
        let slow = tokio::time::timeout(Duration::from_secs(20), world.serve(proof));
        let (slow, quick) = tokio::join!(slow, second.serve(proof));
        assert_eq!(verdict(slow.expect("an answer in time")), down());
        let quick = verdict(quick);
        assert!([admitted(), replayed()].contains(&quick), "{quick:?}");
        *taken += usize::from(quick == admitted());
    }
    ready_is(world.admin, false).await;
    link.is(Way::Open);
    ready_is(world.admin, true).await;
    // It is the same memory: no client is asked for another nonce, and nothing is new that was sent.
    for (taken, proof) in taken.iter_mut().zip(&late) {
        for answer in [world.serve(proof).await, second.serve(proof).await] {
            let verdict = verdict(answer);
            assert!([admitted(), replayed()].contains(&verdict), "{verdict:?}");
            *taken += usize::from(verdict == admitted());
        }
        assert!(*taken <= 1, "admitted {taken} times");
    }
    assert_eq!(verdict(world.serve(&in_time).await), replayed());
    let fresh = request(&world, Some(&nonce));
    assert_eq!(verdict(world.serve(&fresh).await), admitted());
    assert_eq!(verdict(second.serve(&fresh).await), replayed());
}

/// Waits until an edge is where a proof is known that was used at the other; it admits it never.
async fn healed(edge: &impl Asked, used: &Request) {
    for _ in 0..1500 {
        let found = verdict(edge.serve(used).await);
        if found == replayed() {
            return;
        }
        assert!([down(), another_nonce()].contains(&found), "{found:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it does not go where the other is");
}

/// One edge stays with a master that is alive; what is left of the network makes the replica master, as
/// sentinels do, and the other edge goes there.
#[tokio::test(flavor = "multi_thread")]
async fn parted_each_proof_is_admitted_on_one_side_alone() {
    if there_is_none() {
        return;
    }
    let (old, replication, new) = pair(&[]).await;
    let link = Relay::to(old.port).await;
    let servers = |first: u16| {
        json!({"nodes": [format!("127.0.0.1:{first}"),
        format!("127.0.0.1:{}", new.port)], "timeout": "3s", "connectTimeout": "3s"})
    };
    let left = world(servers(old.port)).await;
    let parted = servers(link.port);
    let right = Edge::beside_with(&left, |config| config["store"]["redis"] = parted).await;
    let before = nonce_of(&left, &right).await;
    let used: Vec<_> = (0..10).map(|_| request(&left, Some(&before))).collect();
    for proof in &used {
        assert_eq!(verdict(left.serve(proof).await), admitted());
        assert_eq!(verdict(right.serve(proof).await), replayed());
    }
    replication.is(Way::Cut);
    link.is(Way::Cut);
    // What this side admits from now on the other cannot know.
    let unknown: Vec<_> = (0..10).map(|_| request(&left, Some(&before))).collect();
    for proof in &unknown {
        assert_eq!(verdict(left.serve(proof).await), admitted());
        assert_eq!(verdict(right.serve(proof).await), down());
    }
    new.cli(&["REPLICAOF", "NO", "ONE"]);
    let after = nonce_of(&left, &right).await;
    assert_eq!(old.info("role"), "master");
    for proof in used.iter().chain(&unknown) {
        assert_eq!(verdict(left.serve(proof).await), replayed());
        assert_eq!(verdict(right.serve(proof).await), another_nonce());
    }
    let mut theirs = Vec::new();
    for _ in 0..20 {
        let (one, other) = (request(&left, Some(&before)), request(&left, Some(&after)));
        let answers = tokio::join!(left.serve(&one), right.serve(&one));
        assert_eq!([answers.0, answers.1].map(verdict), [admitted(), another_nonce()]);
        let answers = tokio::join!(left.serve(&other), right.serve(&other));
        assert_eq!([answers.0, answers.1].map(verdict), [another_nonce(), admitted()]);
        theirs.extend([(one, another_nonce()), (other, replayed())]);
    }
    // The network heals, and the old master is told whom to follow: everybody is where one side was.
    replication.is(Way::Open);
    link.is(Way::Open);
    old.cli(&["REPLICAOF", "127.0.0.1", &new.port.to_string()]);
    healed(&left, &theirs[1].0).await;
    for (proof, expected) in &theirs {
        assert_eq!(verdict(left.serve(proof).await), *expected);
        assert_eq!(verdict(right.serve(proof).await), *expected);
    }
    for proof in used.iter().chain(&unknown) {
        assert_eq!(verdict(left.serve(proof).await), another_nonce());
    }
    let fresh = request(&left, Some(&after));
    assert_eq!(verdict(left.serve(&fresh).await), admitted());
    assert_eq!(verdict(right.serve(&fresh).await), replayed());
}

/// As above, of a master that takes no writes without its replica.
#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_was_left_alone_admits_nothing_more() {
    if there_is_none() {
        return;
    }
    let settings =
        ["min-replicas-to-write 1", "min-replicas-max-lag 5", "repl-ping-replica-period 1"];
    let (master, replication, replica) = pair(&settings).await;
    let world = World::start_in(|_, _, config| {
        let dpop = &mut config["security"]["senderConstraints"]["dpop"];
        dpop["nonce"] = json!({"enabled": false});
        dpop["allowedClockSkew"] = json!("2s");
        share(config, standalone(master.port));
    })
    .await;
    let known = admitted_without_a_nonce(&world, &world).await;
    replication.is(Way::Cut);
    ready_is(world.admin, false).await;
    replica.cli(&["REPLICAOF", "NO", "ONE"]);
    let elsewhere = standalone(replica.port);
    let second = Edge::beside_with(&world, |config| config["store"]["redis"] = elsewhere).await;
    assert_eq!(verdict(second.serve(&known).await), replayed());
    admitted_without_a_nonce(&second, &world).await;
    for _ in 0..20 {
        let proof = request(&world, None);
        assert_eq!(verdict(world.serve(&proof).await), down());
        assert_eq!(verdict(second.serve(&proof).await), admitted());
        assert_eq!(verdict(world.serve(&proof).await), down());
    }
    replication.is(Way::Open);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_wrong_or_changed_is_read_again() {
    if there_is_none() {
        return;
    }
    // The server's own, by which `redis-cli` looks, needs none.
    let redis = Server::start(&["user edge on >first-password ~* &* +@all"]).await;
    let prepared = World::start().await;
    let mut config = prepared.config.clone();
    let mut settings = standalone(redis.port);
    settings["user"] = json!("edge");
    settings["passwordFile"] = json!("redis.password");
    share(&mut config, settings);
    key_file(prepared.directory.path());
    let (port, admin) = (free_port(), free_port());
    config["edge"]["admin"]["address"] = json!(format!("127.0.0.1:{admin}"));
    config["edge"]["listeners"][0]["address"] = json!(format!("127.0.0.1:{port}"));
    prepared.write("redis.password", "wrong-password\n");
    let process = Process::start_unready(prepared.directory.path(), &config, admin).await;
    let client = Client::new(port, &prepared.pki.authority_der);
    ready_is(admin, false).await;
    assert_eq!(verdict(client.send(None, &request(&prepared, None)).await), down());
    prepared.write("redis.password", "first-password\n");
    ready_is(admin, true).await;
    let challenge = client.send(None, &request(&prepared, None)).await.expect("an answer");
    let nonce = challenge.one("dpop-nonce").expect("a nonce").to_owned();
    let mut used = Vec::new();
    let mut old = "first-password".to_owned();
    for new in ["second-password", "third-password"] {
        let proof = request(&prepared, Some(&nonce));
        assert_eq!(verdict(client.send(None, &proof).await), admitted());
        used.push(proof);
        // The server has another, and has ended who came with the old one.
        redis.cli(&["ACL", "SETUSER", "edge", "resetpass", &format!(">{new}")]);
        redis.cli(&["CLIENT", "KILL", "USER", "edge"]);
        ready_is(admin, false).await;
        for proof in &used {
            assert_eq!(verdict(client.send(None, proof).await), down());
        }
        assert_eq!(verdict(client.send(None, &request(&prepared, Some(&nonce))).await), down());
        prepared.write("redis.password", &format!("{new}\n"));
        ready_is(admin, true).await;
        // It is the same memory.
        for proof in &used {
            assert_eq!(verdict(client.send(None, proof).await), replayed());
        }
        assert!(!process.output().contains(new) && !process.output().contains(&old));
        old = new.to_owned();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_no_proof_passes_without_it() {
    if there_is_none() {
        return;
    }
    let mut redis = Server::start(&[]).await;
    let world = world(standalone(redis.port)).await;
    let alice = &world.pki.alice;
    let token = world.token().x5t(&alice.x5t()).sign();
    let own = bearer("/orders/1", &token);
    let everybody = Request::new("GET", "/public/1");
    redis.kill();
    ready_is(world.admin, false).await;
    assert_eq!(verdict(world.serve(&request(&world, None)).await), down());
    assert_eq!(verdict(world.send_as(alice, &own).await), (200, "mtls".to_owned()));
    assert_eq!(verdict(world.send(&own).await).0, 401);
    assert_eq!(world.send(&everybody).await.expect("an answer").status(), 200);
}

/// A token endpoint misses the proof before it misses Redis.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_who_asks_for_a_token_is_sent_for_a_nonce_that_is_not_to_be_had() {
    if there_is_none() {
        return;
    }
    let mut redis = Server::start(&[]).await;
    let port = redis.port;
    let site = Site::retrofit_in(Form::Opaque, |directory, _, config| {
        key_file(directory);
        share(config, standalone(port));
    })
    .await;
    let asked = form(TOKEN, &grant("client_credentials"));
    let challenge = site.world.send(&asked).await.expect("an answer");
    assert_eq!(
        (challenge.status(), challenge.json()["error"].clone()),
        (400, json!("use_dpop_nonce"))
    );
    assert!(challenge.one("dpop-nonce").is_some());
    redis.kill();
    ready_is(site.world.admin, false).await;
    assert_eq!(verdict(site.world.send(&asked).await), down());
    redis.again().await;
    ready_is(site.world.admin, true).await;
    assert_eq!(site.world.send(&asked).await.expect("an answer").status(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_of_deploy_starts_and_serves_an_edge() {
    if there_is_none() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let put = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).expect("a writable directory");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its owner");
        path.display().to_string()
    };
    let tls = Tls::new();
    let users = put("users.acl", &deployed("users.acl"));
    let password = put("redis.password", "CHANGE-ME\n");
    let (port, home) = (free_port(), directory.path().display().to_string());
    let at = port.to_string();
    // What a machine decides, and nothing else.
    let arguments = [
        ["--tls-port", &at],
        ["--dir", &home],
        ["--aclfile", &users],
        ["--tls-cert-file", &tls.file("server.pem")],
        ["--tls-key-file", &tls.file("server.key")],
        ["--tls-ca-cert-file", &tls.file("ca.pem")],
    ];
    let cli = tls.cli();
    let login = ["--no-auth-warning", "--user", "holdfast", "--pass", "CHANGE-ME"];
    let cli: Vec<_> = cli.iter().map(String::as_str).chain(login).collect();
    let text = deployed("redis.conf");
    let redis = Server::begin(directory, port, &cli, &text, &arguments.concat()).await;
    let mut told = standalone(redis.port);
    told["user"] = json!("holdfast");
    told["passwordFile"] = json!(password);
    told["requirePersistence"] = json!(true);
    told["tls"] = tls.told();
    let world = world(told).await;
    let nonce = world.nonce().await;
    let used = request(&world, Some(&nonce));
    assert_eq!(verdict(world.serve(&used).await), admitted());
    assert_eq!(verdict(world.serve(&used).await), replayed());
    let warned = |record: &Value| {
        record["level"] == "WARN"
            && record["message"].as_str().is_some_and(|it| it.contains("redis"))
    };
    assert_eq!(world.process.records(warned), Vec::<Value>::new());
    // What it must keep is on the disk, and no stranger is let in.
    assert!(redis.directory.path().join("appendonlydir").is_dir());
    assert!(redis.cli(&["CONFIG", "GET", "maxmemory-policy"]).contains("noeviction"));
    assert!(redis.cli(&["KEYS", "*"]).contains("NOPERM"));
    assert!(redis.cli(&["GET", "another:key"]).contains("NOPERM"));

    // What one script wrote more than once is there after a restart as well: Redis plays such writes back
    // as a transaction, by the rights of the user `default`.
    let mut redis = redis;
    let twice = "for _, key in ipairs(KEYS) do redis.call('HSET', key, 'a', 'kept') end return 1";
    let keys = ["{holdfast:0}:one", "{holdfast:0}:two"];
    assert_eq!(redis.cli(&["EVAL", twice, "2", keys[0], keys[1]]).trim(), "1");
    redis.kill();
    redis.again().await;
    for key in keys {
        assert_eq!(redis.cli(&["HGET", key, "a"]).trim(), "kept", "{key}");
    }
    assert!(redis.cli(&["--user", "default", "--pass", "", "PING"]).contains("WRONGPASS"));

    // Whoever looks after the server turns passwords, and reads nothing that is kept.
    let admin = |words: &[&str]| {
        let login = ["--user", "holdfast-admin", "--pass", "CHANGE-ME-ADMIN"];
        redis.cli(&[&login, words].concat())
    };
    for words in [
        &["ACL", "SETUSER", "holdfast", ">another", "<CHANGE-ME"][..],
        &["ACL", "SAVE"],
        &["CONFIG", "SET", "maxmemory", "3gb"],
    ] {
        assert_eq!(admin(words).trim(), "OK", "{words:?}");
    }
    assert!(admin(&["GET", "{holdfast:0}:mark"]).contains("NOPERM"));
    assert!(redis.cli(&["PING"]).contains("WRONGPASS"));
    assert!(redis.cli(&["--user", "holdfast", "--pass", "another", "TIME"]).trim().contains('\n'));
}
