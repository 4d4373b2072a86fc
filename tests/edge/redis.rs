//! Several edges and one memory of proofs: nobody's proof is admitted twice, whatever becomes of Redis.

use std::fs;
use std::time::Duration;

use holdfast::policy::digest::{Jkt, Sha256};
use holdfast::policy::epoch::Epoch;
use holdfast::policy::proof::ProofRules;
use holdfast::policy::reach::Reach;
use holdfast::policy::time::UnixTime;
use holdfast::store::epoch::Epochs as _;
use holdfast::store::redis::{
    Address, Login, Partition, Redis, RedisReplay, Script, Settings, Tag, Topology, Wait,
};
use holdfast::store::replay::{ReplayFault, ReplayLog as _, Use};
use serde_json::{Value, json};

use super::support::client::Request;
use super::support::process::{Process, free_port};
use super::support::redis::{Cluster, Server, Tls, Watched, there_is_none};
use super::support::sharing::{
    Asked, Edge, admitted, another_nonce, down, key_file, nonce_of, ready_is, replayed, request,
    share, standalone, verdict, world,
};
use super::support::world::{World, get};

/// Each of `HOLDFAST_ROUNDS` proofs (default 300) goes to three edges five times at once.
#[tokio::test(flavor = "multi_thread")]
async fn one_proof_at_three_edges_at_once_is_admitted_once() {
    if there_is_none() {
        return;
    }
    let rounds = std::env::var("HOLDFAST_ROUNDS").map_or(300, |it| it.parse().expect("a number"));
    let redis = Server::start(&[]).await;
    let world = world(standalone(redis.port)).await;
    let (second, third) = (Edge::beside(&world).await, Edge::beside(&world).await);
    let (mut sent, mut taken, mut refused, mut wrong) = (0, 0, 0, Vec::new());
    for lap in (0..rounds).step_by(500) {
        // A nonce and a connection do not last for ever.
        let nonce = nonce_of(&world, &world).await;
        let connections = [&world.client, &second.client, &third.client];
        let connections = connections.map(|client| client.connect_h2(None));
        let [one, two, three] = connections;
        let (one, two, three) = tokio::try_join!(one, two, three).expect("three connections");
        for round in lap..rounds.min(lap + 500) {
            let proof = request(&world, Some(&nonce));
            let (a, b, c, d, e) = tokio::join!(
                one.send(&proof),
                two.send(&proof),
                three.send(&proof),
                one.send(&proof),
                two.send(&proof),
            );
            let verdicts = [a, b, c, d, e].map(verdict);
            let are = |expected| verdicts.iter().filter(|it| **it == expected).count();
            let (admitted, replayed) = (are(admitted()), are(replayed()));
            sent += verdicts.len();
            taken += admitted;
            refused += replayed;
            if (admitted, replayed) != (1, 4) {
                wrong.push((round, verdicts));
            }
        }
    }
    let bad = wrong.len();
    println!("{rounds} rounds: sent {sent}, admitted {taken}, refused {refused}, wrong {bad}");
    assert!(wrong.is_empty(), "{wrong:?}");
    assert_eq!((taken, refused), (rounds, 4 * rounds));
}

/// How long a key is still kept; zero for one that has no end.
fn remaining(redis: &Server, key: &str) -> Duration {
    let ttl: i64 = redis.cli(&["PTTL", key]).trim().parse().expect("a number");
    Duration::from_millis(u64::try_from(ttl).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn edges_take_each_other_s_nonces_and_none_of_each_other_s_used_proofs() {
    if there_is_none() {
        return;
    }
    let redis = Server::start(&[]).await;
    let world = world(standalone(redis.port)).await;
    let second = Edge::beside(&world).await;
    let nonce = nonce_of(&world, &second).await;
    let used = request(&world, Some(&nonce));
    assert_eq!(verdict(world.serve(&used).await), admitted());
    assert_eq!(verdict(second.serve(&used).await), replayed());
    assert_eq!(verdict(second.serve(&request(&world, Some(&nonce))).await), admitted());
    // Neither key nor value says whose proof it was.
    let keys = redis.cli(&["KEYS", "*"]);
    assert!(keys.lines().any(|key| key.contains(":r:")), "{keys}");
    assert!(keys.lines().all(|key| key.starts_with("{holdfast:") && key.len() < 45), "{keys}");
    for key in keys.lines().filter(|key| !key.ends_with(":mark") && !key.ends_with(":begun")) {
        assert!(remaining(&redis, key) > Duration::ZERO, "{key} has no TTL");
    }
    // No proof outlives its key where the edges' clocks differ: replayWindow, and allowedClockSkew on top.
    let window = Duration::from_secs(300);
    for key in keys.lines().filter(|key| key.contains(":r:")) {
        let left = remaining(&redis, key);
        let on_top = left.saturating_sub(window);
        assert!(on_top > Duration::from_secs(5), "{key}: {left:?}");
        assert!(on_top <= Duration::from_secs(30), "{key}: {left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_it_refuses_and_started_anew_it_demands_another_nonce() {
    if there_is_none() {
        return;
    }
    let mut redis = Server::start(&[]).await;
    let world = world(standalone(redis.port)).await;
    let nonce = world.nonce().await;
    let used = request(&world, Some(&nonce));
    assert_eq!(verdict(world.serve(&used).await), admitted());
    let up = world.metric("holdfast_store_up", &["store=\"redis\""]).await;
    assert_eq!(up, 1.0);
    redis.kill();
    for _ in 0..20 {
        assert_eq!(verdict(world.serve(&request(&world, Some(&nonce))).await), down());
        assert_eq!(verdict(world.serve(&used).await), down());
        // Nobody is sent for a nonce that is not to be had.
        let without = Request::new("GET", "/orders/1");
        let without = without.field("Authorization", format!("DPoP {}", world.bound()));
        assert_eq!(verdict(world.serve(&without).await), down());
    }
    let report = ready_is(world.admin, false).await;
    assert_eq!(report["ready"], json!(false), "{report:#}");
    let up = world.metric_once("holdfast_store_up", &["store=\"redis\""], 0.0).await;
    assert_eq!(up, 0.0);
    redis.again().await;
    ready_is(world.admin, true).await;
    // It remembers nothing: the proof, and every other with that nonce, is refused.
    assert_eq!(verdict(world.serve(&used).await), another_nonce());
    let fresh = nonce_of(&world, &world).await;
    assert_ne!(fresh, nonce);
    assert_eq!(verdict(world.serve(&request(&world, Some(&fresh))).await), admitted());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still_is_refused_in_time_and_taken_back() {
    if there_is_none() {
        return;
    }
    let redis = Server::start(&[]).await;
    let mut told = standalone(redis.port);
    told["timeout"] = json!("1s");
    let world = world(told).await;
    let nonce = world.nonce().await;
    let used = request(&world, Some(&nonce));
    assert_eq!(verdict(world.serve(&used).await), admitted());
    redis.signal("STOP");
    for _ in 0..6 {
        let proof = request(&world, Some(&nonce));
        let answer = world.serve(&proof);
        let answer = tokio::time::timeout(Duration::from_secs(10), answer).await;
        assert_eq!(verdict(answer.expect("an answer in time")), down());
    }
    ready_is(world.admin, false).await;
    redis.signal("CONT");
    ready_is(world.admin, true).await;
    // It is the same memory: the nonce is still good, and the proof still used.
    assert_eq!(verdict(world.serve(&used).await), replayed());
    assert_eq!(verdict(world.serve(&request(&world, Some(&nonce))).await), admitted());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_server_admits_nothing_old() {
    if there_is_none() {
        return;
    }
    let redis = Server::start(&[]).await;
    let world = world(standalone(redis.port)).await;
    let second = Edge::beside(&world).await;
    for round in 0..20 {
        let nonce = nonce_of(&world, &world).await;
        let used = request(&world, Some(&nonce));
        assert_eq!(verdict(world.serve(&used).await), admitted(), "round {round}");
        redis.cli(&["FLUSHALL"]);
        for edge in 0..6 {
            let answer =
                if edge % 2 == 0 { world.serve(&used).await } else { second.serve(&used).await };
            let verdict = verdict(answer);
            assert!([down(), another_nonce()].contains(&verdict), "round {round}: {verdict:?}");
        }
        nonce_of(&world, &second).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_nonces_a_wiped_server_refuses_what_is_older_than_the_wipe() {
    if there_is_none() {
        return;
    }
    let redis = Server::start(&[]).await;
    let world = World::start_in(|_, _, config| {
        let dpop = &mut config["security"]["senderConstraints"]["dpop"];
        dpop["nonce"] = json!({"enabled": false});
        dpop["allowedClockSkew"] = json!("2s");
        share(config, standalone(redis.port));
    })
    .await;
    let once_admitted = async |world: &World| {
        for _ in 0..1500 {
            let proof = request(world, None);
            if verdict(world.serve(&proof).await) == admitted() {
                return proof;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no proof is admitted");
    };
    let used = once_admitted(&world).await;
    // Dated as far ahead as it may be, and used.
    let token = world.bound();
    let ahead = world.proof("GET", "/orders/1").token(&token);
    let ahead = ahead.claim("iat", super::support::now() + 1).sign();
    let ahead = get("/orders/1", &token, &ahead);
    assert_eq!(verdict(world.serve(&ahead).await), admitted());
    redis.cli(&["FLUSHALL"]);
    for _ in 0..50 {
        for old in [&used, &ahead] {
            let verdict = verdict(world.serve(old).await);
            assert!([down(), replayed()].contains(&verdict), "{verdict:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    once_admitted(&world).await;
    assert_eq!(verdict(world.serve(&used).await), replayed());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_least_rights_and_no_other_password() {
    if there_is_none() {
        return;
    }
    let acl = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/redis/users.acl"));
    let acl = acl.expect("deploy/redis/users.acl").replace("CHANGE-ME", "right-password");
    let directory = tempfile::tempdir().expect("a directory");
    let users = directory.path().join("users.acl");
    fs::write(&users, &acl).expect("a writable directory");
    let line = format!("aclfile {}", users.display());
    let redis = Server::start(&[&line]).await;
    let prepared = World::start().await;
    let mut config = prepared.config.clone();
    let mut settings = standalone(redis.port);
    settings["user"] = json!("holdfast");
    settings["passwordFile"] = json!("redis.password");
    share(&mut config, settings);
    let admin = free_port();
    config["edge"]["admin"]["address"] = json!(format!("127.0.0.1:{admin}"));
    let port = free_port();
    config["edge"]["listeners"][0]["address"] = json!(format!("127.0.0.1:{port}"));
    key_file(prepared.directory.path());
    prepared.write("redis.password", "wrong-password\n");
    let process = Process::start_unready(prepared.directory.path(), &config, admin).await;
    let report = ready_is(admin, false).await;
    let client = super::support::client::Client::new(port, &prepared.pki.authority_der);
    assert_eq!(verdict(client.send(None, &request(&prepared, None)).await), down());
    let said = process.record(|record| record["message"] == "redis cannot be used").await;
    let said = said.expect("a word of it").to_string();
    assert!(said.contains("WRONGPASS") || said.contains("uthentication"), "{said}");
    assert!(!process.output().contains("wrong-password"), "the password is in the log");
    assert!(!report.to_string().contains("wrong-password"));
    // A new password needs no restart.
    prepared.write("redis.password", "right-password\n");
    ready_is(admin, true).await;
    let answer = client.send(None, &request(&prepared, None)).await.expect("an answer");
    let nonce = answer.one("dpop-nonce").expect("a nonce").to_owned();
    let used = request(&prepared, Some(&nonce));
    assert_eq!(verdict(client.send(None, &used).await), admitted());
    assert_eq!(verdict(client.send(None, &used).await), replayed());
    assert!(!process.output().contains("NOPERM"), "{}", process.output());
    assert!(!process.output().contains("may not call"), "{}", process.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_evicts_or_forgets_is_refused() {
    if there_is_none() {
        return;
    }
    let redis = Server::start(&["maxmemory-policy allkeys-lru"]).await;
    let prepared = World::start().await;
    let mut config = prepared.config.clone();
    let mut settings = standalone(redis.port);
    settings["requirePersistence"] = json!(true);
    share(&mut config, settings);
    key_file(prepared.directory.path());
    let (port, admin) = (free_port(), free_port());
    config["edge"]["admin"]["address"] = json!(format!("127.0.0.1:{admin}"));
    config["edge"]["listeners"][0]["address"] = json!(format!("127.0.0.1:{port}"));
    let process = Process::start_unready(prepared.directory.path(), &config, admin).await;
    let because = async |text: &str| {
        let said =
            |record: &Value| record["error"].as_str().is_some_and(|error| error.contains(text));
        assert!(process.record(said).await.is_some(), "{}", process.output());
        let report = ready_is(admin, false).await;
        let error = report["redis"]["lastError"].as_str().unwrap_or_default().to_owned();
        assert!(error.contains(text), "{error}");
    };
    because("maxmemory-policy is allkeys-lru").await;
    redis.cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    because("everything is gone after a restart").await;
    redis.cli(&["CONFIG", "SET", "appendonly", "yes"]);
    ready_is(admin, true).await;
    // It is looked at as long as it is in use, too.
    redis.cli(&["CONFIG", "SET", "maxmemory-policy", "volatile-ttl"]);
    because("maxmemory-policy is volatile-ttl").await;
    let client = super::support::client::Client::new(port, &prepared.pki.authority_der);
    assert_eq!(verdict(client.send(None, &request(&prepared, None)).await), down());
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_with_a_certificate_that_holds() {
    if there_is_none() {
        return;
    }
    let tls = Tls::new();
    let cli = tls.cli();
    let cli: Vec<_> = cli.iter().map(String::as_str).collect();
    for (certificate, good) in [("server", true), ("expired", false)] {
        let port = free_port();
        let settings = tls.settings(port, certificate);
        let redis = Server::start_at(port, &cli, settings.iter().map(String::as_str)).await;
        let mut told = standalone(redis.port);
        told["tls"] = tls.told();
        if good {
            let world = world(told).await;
            let nonce = world.nonce().await;
            let used = request(&world, Some(&nonce));
            assert_eq!(verdict(world.serve(&used).await), admitted());
            assert_eq!(verdict(world.serve(&used).await), replayed());
        } else {
            let prepared = World::start().await;
            let mut config = prepared.config.clone();
            share(&mut config, told);
            key_file(prepared.directory.path());
            let (port, admin) = (free_port(), free_port());
            config["edge"]["admin"]["address"] = json!(format!("127.0.0.1:{admin}"));
            config["edge"]["listeners"][0]["address"] = json!(format!("127.0.0.1:{port}"));
            let process = Process::start_unready(prepared.directory.path(), &config, admin).await;
            let said = |record: &Value| {
                record["error"].as_str().is_some_and(|error| error.contains("xpired"))
            };
            assert!(process.record(said).await.is_some(), "{}", process.output());
            let client = super::support::client::Client::new(port, &prepared.pki.authority_der);
            assert_eq!(verdict(client.send(None, &request(&prepared, None)).await), down());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_that_was_verified_for_another_epoch_is_not_new() {
    if there_is_none() {
        return;
    }
    let server = Server::start(&[]).await;
    let address = Address { host: "127.0.0.1".to_owned(), port: server.port };
    let settings = Settings {
        lookup: Reach::of(false).lookup(),
        topology: Topology::Standalone(vec![address]),
        login: Login::default(),
        tls: None,
        prefix: "holdfast".to_owned(),
        connect_timeout: Duration::from_secs(2),
        timeout: Duration::from_secs(2),
        wait: Wait { replicas: 0, within: Duration::ZERO },
        require_persistence: false,
    };
    let redis = Redis::start(settings, &tokio::runtime::Handle::current());
    assert!(redis.ready(Duration::from_secs(10)).await, "{:?}", redis.status());
    let rules = ProofRules {
        proof_lifetime: Duration::from_secs(30),
        clock_skew: Duration::from_secs(10),
        replay_window: Duration::from_secs(60),
        nonce_ttl: None,
        nonce_replaces_iat: false,
        nonce_single_use: false,
    };
    let log = RedisReplay::new(redis.clone(), Partition::Resources, &rules, 100);
    let own = redis.current().expect("an epoch").epoch;
    let other = Epoch(Sha256([0; 32]));
    let now = UnixTime::from_secs(super::support::now());
    for (jti, epoch, expect) in [
        ("a", other, Err(ReplayFault::Down)),
        ("a", own, Ok(())),
        ("a", own, Err(ReplayFault::Replayed)),
        ("b", own, Ok(())),
    ] {
        let used = Use { jkt: Jkt(Sha256([1; 32])), jti, epoch };
        assert_eq!(log.check_and_insert(used, now).await, expect, "{jti}");
    }
    // Another partition has other proofs.
    let grants = RedisReplay::new(redis.clone(), Partition::Grants, &rules, 100);
    let used = Use { jkt: Jkt(Sha256([1; 32])), jti: "a", epoch: own };
    assert_eq!(grants.check_and_insert(used, now).await, Ok(()));
    // Scripts that the server has forgotten are given to it again.
    let script = Script::new("return ARGV[1]");
    for _ in 0..2 {
        let answer = redis.script(Tag::FIRST, &script, &[], &[b"told"]).await;
        assert_eq!(format!("{answer:?}"), "Ok(bulk-string('\"told\"'))");
        server.cli(&["SCRIPT", "FLUSH"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nonce_for_one_proof_alone() {
    if there_is_none() {
        return;
    }
    let redis = Server::start(&[]).await;
    let world = World::start_in(|directory, _, config| {
        key_file(directory);
        share(config, standalone(redis.port));
        let nonce = &mut config["security"]["senderConstraints"]["dpop"]["nonce"];
        nonce["store"] = json!("redis");
        nonce["singleUse"] = json!(true);
    })
    .await;
    let second = Edge::beside(&world).await;
    let mut nonce = world.nonce().await;
    for round in 0..20 {
        let (one, two) = (request(&world, Some(&nonce)), request(&world, Some(&nonce)));
        let (first, other) = tokio::join!(world.serve(&one), second.serve(&two));
        let [first, other] = [first, other].map(|answer| answer.expect("an answer"));
        let (good, bad) = if first.status() == 200 { (first, other) } else { (other, first) };
        assert_eq!((good.status(), bad.status()), (200, 401), "round {round}");
        assert_eq!(bad.json()["error"], "use_dpop_nonce");
        assert_eq!(verdict(world.serve(&one).await).0, 401);
        // Whoever goes on is never challenged.
        nonce = good.one("dpop-nonce").expect("the next nonce").to_owned();
        let next = bad.one("dpop-nonce").expect("a nonce to come again with");
        assert_eq!(verdict(second.serve(&request(&world, Some(next))).await), admitted());
    }
    let spent = world.metric("authority_dpop_nonce_miss_total", &["reason=\"replayed\""]).await;
    assert!(spent > 0.0);
    let ttl = Duration::from_secs(600);
    let keys = redis.cli(&["KEYS", "*:n:*"]);
    let kept: Vec<_> = keys.lines().map(|key| remaining(&redis, key)).collect();
    assert!(kept.iter().any(|left| *left > ttl + Duration::from_secs(5)), "{kept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_edge_s_nonces_can_be_good_once_too() {
    let world = World::start_with(|config| {
        let nonce = &mut config["security"]["senderConstraints"]["dpop"]["nonce"];
        nonce["store"] = json!("memory");
        nonce["singleUse"] = json!(true);
    })
    .await;
    let nonce = world.nonce().await;
    let answer = world.serve(&request(&world, Some(&nonce))).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let next = answer.one("dpop-nonce").expect("the next nonce").to_owned();
    let again = world.serve(&request(&world, Some(&nonce))).await;
    assert_eq!(verdict(again), another_nonce());
    assert_eq!(verdict(world.serve(&request(&world, Some(&next))).await), admitted());
    let spent = world.metric_once("authority_dpop_nonce_miss_total", &["reason=\"replayed\""], 1.0);
    assert_eq!(spent.await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_replicas_must_have_is_refused_without_them() {
    if there_is_none() {
        return;
    }
    let master = Server::start(&[]).await;
    let mut replica = Server::following(master.port, &[]).await;
    let mut settings = standalone(master.port);
    settings["waitReplicas"] = json!(1);
    let world = world(settings).await;
    let nonce = world.nonce().await;
    let used = request(&world, Some(&nonce));
    let many: Vec<_> = (0..50).map(|_| request(&world, Some(&nonce))).collect();
    assert_eq!(verdict(world.serve(&used).await), admitted());
    assert_eq!(verdict(world.serve(&used).await), replayed());
    for proof in &many {
        assert_eq!(verdict(world.serve(proof).await), admitted());
    }
    replica.kill();
    for _ in 0..5 {
        assert_eq!(verdict(world.serve(&request(&world, Some(&nonce))).await), down());
    }
    ready_is(world.admin, false).await;
    replica.again().await;
    ready_is(world.admin, true).await;
    let nonce = nonce_of(&world, &world).await;
    assert_eq!(verdict(world.serve(&request(&world, Some(&nonce))).await), admitted());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_by_sentinels_admits_nothing_old() {
    if there_is_none() {
        return;
    }
    let mut redis = Watched::start(1, &[]).await;
    let world = world(redis.told()).await;
    let second = Edge::beside(&world).await;
    let nonce = world.nonce().await;
    let used: Vec<_> = (0..20).map(|_| request(&world, Some(&nonce))).collect();
    for proof in &used {
        assert_eq!(verdict(world.serve(proof).await), admitted());
    }
    redis.master.kill();
    for _ in 0..10 {
        for proof in &used {
            let verdict = verdict(world.serve(proof).await);
            assert!([down(), another_nonce(), replayed()].contains(&verdict), "{verdict:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ready_is(world.admin, true).await;
    ready_is(second.admin, true).await;
    assert_eq!(redis.replicas[0].info("role"), "master");
    for proof in &used {
        assert_eq!(verdict(world.serve(proof).await), another_nonce());
        assert_eq!(verdict(second.serve(proof).await), another_nonce());
    }
    let nonce = nonce_of(&world, &second).await;
    let fresh = request(&world, Some(&nonce));
    assert_eq!(verdict(world.serve(&fresh).await), admitted());
    assert_eq!(verdict(second.serve(&fresh).await), replayed());
    // Who was master comes back as a replica, and is not asked.
    redis.master.again().await;
    assert_eq!(verdict(world.serve(&request(&world, Some(&nonce))).await), admitted());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_six_loses_a_master_and_admits_nothing_old() {
    if there_is_none() {
        return;
    }
    let mut redis = Cluster::start().await;
    let world = world(redis.told()).await;
    let second = Edge::beside(&world).await;
    let nonce = world.nonce().await;
    let used: Vec<_> = (0..60).map(|_| request(&world, Some(&nonce))).collect();
    for proof in &used {
        let (one, other) = tokio::join!(world.serve(proof), second.serve(proof));
        let both = [verdict(one), verdict(other)];
        assert!(both.contains(&admitted()) && both.contains(&replayed()), "{both:?}");
    }
    let master = redis.servers.iter().position(|it| it.info("role") == "master");
    redis.servers[master.expect("a master")].kill();
    for _ in 0..20 {
        for proof in &used {
            let verdict = verdict(world.serve(proof).await);
            assert!([down(), another_nonce(), replayed()].contains(&verdict), "{verdict:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ready_is(world.admin, true).await;
    ready_is(second.admin, true).await;
    for proof in &used {
        let verdicts = [verdict(world.serve(proof).await), verdict(second.serve(proof).await)];
        assert_eq!(verdicts, [another_nonce(), another_nonce()]);
    }
    let nonce = nonce_of(&world, &second).await;
    for _ in 0..30 {
        let fresh = request(&world, Some(&nonce));
        let (one, other) = tokio::join!(world.serve(&fresh), second.serve(&fresh));
        let both = [verdict(one), verdict(other)];
        assert!(both.contains(&admitted()) && both.contains(&replayed()), "{both:?}");
    }
}
