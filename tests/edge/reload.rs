//! Configuration, certificates, revocation lists and keys that change while the edge runs.

use std::time::Duration;

use holdfast::store::networks::sample::{Entry, database};
use rustls::HandshakeKind;
use serde_json::{Value, json};

use super::support::Table;
use super::support::client::Request;
use super::support::keys::Key;
use super::support::node::with_capsules;
use super::support::pki::Pki;
use super::support::token::{ALGORITHMS, Token};
use super::support::world::{Expect, World, bearer, expect_eq, get, write_keys};

use Expect::{Admitted, Public, Refused};

const LIST: &str = "clients.crl";
/// A year that these tests do not see.
const FAR: i32 = 2100;

/// A world whose clients are looked up in a list that revokes nobody.
async fn world_with_list(change: impl FnOnce(&mut Value)) -> World {
    World::start_in(|directory, pki, config| {
        std::fs::write(directory.join(LIST), pki.revocation_list(&[], FAR)).expect("a list");
        config["edge"]["listeners"][0]["tls"]["revocation"] = json!({ "crls": [LIST] });
        change(config);
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_certificate_gets_in_nowhere() {
    static VERSIONS: [&[&rustls::SupportedProtocolVersion]; 2] =
        [&[&rustls::version::TLS12], &[&rustls::version::TLS13]];
    for versions in VERSIONS {
        let world = world_with_list(|_| {}).await;
        let mut client = world.client.clone();
        client.versions = versions;
        let request = bearer("/orders/1", &world.token().x5t(&world.pki.alice.x5t()).sign());
        let settings = client.settings(Some(&world.pki.alice), "http/1.1");
        let mut table = Table::default();

        let mut open = client.connect_with(&settings).await.expect("a connection");
        let answer = open.send(&request.bytes()).await;
        table.row("ok/before", world.judge(answer, Admitted("mtls")).await);
        let mut resumed = client.connect_with(&settings).await.expect("a connection");
        let answer = resumed.send(&request.bytes()).await;
        table.row("ok/resumed before", world.judge(answer, Admitted("mtls")).await);
        let kind = resumed.tls().handshake_kind();
        table.row("resumed", expect_eq("handshake", &kind, &Some(HandshakeKind::Resumed)));
        let h2 = client.connect_h2(Some(&world.pki.alice)).await.expect("h2");
        let answer = h2.send(&request).await;
        table.row("ok/h2 before", world.judge(answer, Admitted("mtls")).await);

        world.write(LIST, &world.pki.revocation_list(&[&world.pki.alice], FAR));
        assert!(world.told_to_reload().await, "{}", world.process.output());

        let refused = Refused("missing-certificate");
        let answer = open.send(&request.bytes()).await;
        table.row("fail/open connection", world.judge(answer, refused).await);
        table.row("closed", expect_eq("closed", &open.is_closed().await, &true));
        let answer = h2.send(&request).await;
        table.row("fail/open h2 connection", world.judge(answer, refused).await);
        for (name, settings) in [
            ("fail/resumption", &settings),
            ("fail/fresh handshake", &client.settings(Some(&world.pki.alice), "http/1.1")),
        ] {
            let answer = match client.connect_with(settings).await {
                Ok(mut connection) => connection.send(&request.bytes()).await,
                Err(error) => Err(error),
            };
            let seen = answer.map(|answer| answer.start);
            table.row(name, expect_eq("no answer", &seen.is_err(), &true));
        }
        let bob = bearer("/orders/1", &world.token().x5t(&world.pki.bob.x5t()).sign());
        let answer = world.send_as(&world.pki.bob, &bob).await;
        table.row("ok/bob", world.judge(answer, Admitted("mtls")).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_open_connection_may_still_do() {
    let world = world_with_list(|_| {}).await;
    let mut open = world.client.connect(Some(&world.pki.alice)).await.expect("a connection");
    let h2 = world.client.connect_h2(Some(&world.pki.alice)).await.expect("h2");
    let public = Request::new("GET", "/public/1");
    let mut table = Table::default();
    let answer = open.send(&public.bytes()).await;
    table.row("ok/before", world.judge(answer, Public).await);
    let answer = h2.send(&public).await;
    table.row("ok/before", world.judge(answer, Public).await);
    let mut required = world.config.clone();
    required["edge"]["listeners"][0]["tls"]["clientCertificates"] = json!("require");
    let world = World { config: required, ..world };
    assert!(world.reload().await);
    let answer = open.send(&public.bytes()).await;
    table.row("ok/it has one", world.judge(answer, Public).await);
    let mut nobody = world.client.connect(None).await;
    if let Ok(connection) = &mut nobody {
        let answer = connection.send(&public.bytes()).await;
        table.row("fail/nobody", expect_eq("refused", &answer.is_err(), &true));
    }
    world.write(LIST, &world.pki.revocation_list(&[&world.pki.alice], FAR));
    assert!(world.told_to_reload().await);
    let answer = open.send(&public.bytes()).await;
    table.row("fail/required and revoked", world.judge(answer, Refused("misdirected")).await);
    let answer = h2.send(&public).await;
    table.row("fail/h2", world.judge(answer, Refused("misdirected")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_fail_closed() {
    let request =
        |world: &World| bearer("/orders/1", &world.token().x5t(&world.pki.alice.x5t()).sign());
    let mut table = Table::default();
    // (unknown, expired, next update, list by a stranger's authority)
    for (name, extra, next_update, foreign, passes) in [
        ("ok/good", json!({}), FAR, false, true),
        ("fail/past nextUpdate", json!({}), 2021, false, false),
        ("ok/past nextUpdate, accepted", json!({"expired": "accept"}), 2021, false, true),
        ("fail/no list of the issuer", json!({}), FAR, true, false),
        ("fail/no list of the issuer, leaf", json!({"check": "leaf"}), FAR, true, false),
    ] {
        let world = World::start_in(|directory, pki, config| {
            let other = Pki::new();
            let list = if foreign { &other } else { pki }.revocation_list(&[], next_update);
            std::fs::write(directory.join(LIST), list).expect("a list");
            let mut revocation = extra.clone();
            revocation["crls"] = json!([LIST]);
            config["edge"]["listeners"][0]["tls"]["revocation"] = revocation;
        })
        .await;
        let answer = world.send_as(&world.pki.alice, &request(&world)).await;
        table.row(name, expect_eq("passes", &answer.is_ok(), &passes));
    }
}

/// Waits until so many reloads ended like that. There may be more, as files that change are seen besides.
async fn counts(world: &World, result: &str, least: f64) -> Result<(), String> {
    let label = format!("result=\"{result}\"");
    let mut found = 0.0;
    for _ in 0..1500 {
        found = world.metric("holdfast_config_reloads_total", &[&label]).await;
        if found >= least {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(format!("{found} {result}, not {least}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn all_or_nothing() {
    let mut world = World::start().await;
    let token = world.bound();
    let nonce = world.nonce().await;
    let proof = || world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
    let used = get("/orders/1", &token, &proof());
    let (second, third) = (get("/orders/1", &token, &proof()), get("/orders/1", &token, &proof()));
    let mut table = Table::default();
    let answer = world.send(&used).await;
    table.row("ok/before", world.judge(answer, Admitted("dpop")).await);

    // A good one: the new route is there, and what was used or given out before still counts.
    let mut route = world.config["routes"][1].clone();
    route["name"] = json!("more");
    route["path"] = json!("/more/*");
    world.config["routes"].as_array_mut().expect("routes").push(route);
    table.row("taken", expect_eq("taken", &world.reload().await, &true));
    let more = Request::new("GET", "/more/1");
    table.row("ok/new route", world.judge(world.send(&more).await, Public).await);
    let answer = world.send(&used).await;
    table.row("fail/used before", world.judge(answer, Refused("proof_replayed")).await);
    let answer = world.send(&second).await;
    table.row("ok/nonce of before", world.judge(answer, Admitted("dpop")).await);

    // Bad ones change nothing.
    let good = world.config.clone();
    for (name, change) in [
        ("unknown key", (|config| config["edge"]["lsteners"] = json!(1)) as fn(&mut Value)),
        ("file that is not there", |config| {
            config["edge"]["listeners"][0]["tls"]["clientAuthorities"] = json!(["absent.pem"]);
        }),
        ("address", |config| config["edge"]["listeners"][0]["address"] = json!("127.0.0.1:1")),
        ("replay window", |config| {
            config["security"]["senderConstraints"]["dpop"]["replayWindow"] = json!("1h");
        }),
    ] {
        world.config = good.clone();
        world.config["routes"].as_array_mut().expect("routes").truncate(2);
        change(&mut world.config);
        table.row(name, expect_eq("taken", &world.reload().await, &false));
        table.row(name, world.judge(world.send(&more).await, Public).await);
        let ready = world.admin("/readyz").await;
        table.row(name, expect_eq("ready", &ready.status(), &200));
        let error = ready.json()["configuration"]["lastReloadError"].is_string();
        table.row(name, expect_eq("tells the error", &error, &true));
    }
    table.row("counted", counts(&world, "failed", 4.0).await);

    // And the next good one does.
    world.config = good;
    world.config["routes"].as_array_mut().expect("routes").truncate(2);
    table.row("taken", expect_eq("taken", &world.reload().await, &true));
    let answer = world.send(&more).await;
    table.row("fail/route that went", world.judge(answer, Refused("route_unknown")).await);
    let answer = world.send(&third).await;
    table.row("ok/still", world.judge(answer, Admitted("dpop")).await);
    table.row("counted", counts(&world, "ok", 2.0).await);
    let mut error = Value::Null;
    for _ in 0..1500 {
        error = world.admin("/readyz").await.json()["configuration"]["lastReloadError"].clone();
        if error.is_null() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    table.row("no error", expect_eq("error", &error, &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_is_seen() {
    let world = World::start().await;
    let before = world.client.connect(None).await.expect("a connection");
    let certificate = |connection: &super::support::client::Connection| {
        let chain = connection.tls().peer_certificates().expect("a certificate");
        chain[0].to_vec()
    };
    let old = certificate(&before);
    let next = world.pki.another_server(&["api.example"]);
    world.write("server.pem", &next.certificate_pem);
    // Half of it must not do harm.
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.write("server.key", &next.key_pem);
    let mut seen = old.clone();
    for _ in 0..500 {
        if seen != old {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        seen = certificate(&world.client.connect(None).await.expect("a connection"));
    }
    assert_eq!(seen, next.certificate_der, "{}", world.process.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nonce_outlives_the_turn_of_its_key() {
    let (one, two) = ("11".repeat(32), "22".repeat(32));
    let mut world = World::start_in(|directory, _, config| {
        let path = directory.join("one.key");
        std::fs::write(&path, &one).expect("a key");
        use std::os::unix::fs::PermissionsExt as _;
        let own = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&path, own).expect("its owner");
        let nonce = &mut config["security"]["senderConstraints"]["dpop"]["nonce"];
        nonce["keyFiles"] = json!(["one.key"]);
    })
    .await;
    world.write("two.key", &format!("{two}\n"));
    let token = world.bound();
    let with = |world: &World, nonce: &str| {
        let proof = world.proof("GET", "/orders/1").token(&token).nonce(nonce).sign();
        get("/orders/1", &token, &proof)
    };
    let mut table = Table::default();
    let old = world.nonce().await;
    let answer = world.send(&with(&world, &old)).await;
    let fresh = answer.as_ref().is_ok_and(|answer| answer.one("dpop-nonce").is_none());
    table.row("ok/no other nonce yet", expect_eq("fresh", &fresh, &true));
    table.row("ok/before", world.judge(answer, Admitted("dpop")).await);

    world.config["security"]["senderConstraints"]["dpop"]["nonce"]["keyFiles"] =
        json!(["two.key", "one.key"]);
    assert!(world.reload().await, "{}", world.process.output());
    let answer = world.send(&with(&world, &old)).await;
    let new = answer.as_ref().ok().and_then(|answer| answer.one("dpop-nonce")).map(str::to_owned);
    table.row("ok/old one", world.judge(answer, Admitted("dpop")).await);
    let new = new.expect("a fresh nonce beside the success");

    world.config["security"]["senderConstraints"]["dpop"]["nonce"]["keyFiles"] = json!(["two.key"]);
    assert!(world.reload().await);
    let answer = world.send(&with(&world, &old)).await;
    table.row("fail/old one", world.judge(answer, Refused("nonce_unknown")).await);
    let answer = world.send(&with(&world, &new)).await;
    table.row("ok/new one", world.judge(answer, Admitted("dpop")).await);

    // Another process with the same file takes none of them.
    world.restart().await;
    let answer = world.send(&with(&world, &new)).await;
    table.row("fail/after a restart", world.judge(answer, Refused("nonce_unknown")).await);
}

/// A row for a file that is no good: nothing is taken of it.
async fn broken(world: &World, table: &mut Table, name: &str, text: &str) {
    let path = world.directory.path().join(name);
    let good = std::fs::read(&path).expect("a file");
    world.write(name, text);
    table.row(name, expect_eq("broken, taken", &world.told_to_reload().await, &false));
    std::fs::write(&path, good).expect("a writable directory");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_lists_and_key_sets_are_taken_anew_or_not_at_all() {
    let world = world_with_list(|_| {}).await;
    let mut table = Table::default();
    let (alice, bob) = (&world.pki.alice, &world.pki.bob);
    let public = Request::new("GET", "/public/1");

    // Revocation lists.
    world.write(LIST, &world.pki.revocation_list(&[alice], FAR));
    table.row(LIST, expect_eq("taken", &world.told_to_reload().await, &true));
    broken(&world, &mut table, LIST, "nonsense").await;
    for (who, passes) in [(alice, false), (bob, true)] {
        let answer = world.send_as(who, &public).await;
        table.row(LIST, expect_eq("passes", &answer.is_ok(), &passes));
    }
    table.row(LIST, expect_eq("mended", &world.told_to_reload().await, &true));

    // The issuer's keys.
    let token = world.bound();
    let issuer: Vec<Key> = ALGORITHMS.iter().map(|name| Key::new(name)).collect();
    write_keys(world.directory.path(), &issuer);
    table.row("jwks.json", expect_eq("taken", &world.told_to_reload().await, &true));
    broken(&world, &mut table, "jwks.json", "nonsense").await;
    let fresh = Token::new(&issuer[0], "ES256").jkt(&world.key.jkt()).sign();
    for (name, token, status) in [("old key", token, 401), ("new key", fresh, 200)] {
        let proof = world.proof("GET", "/orders/1").token(&token);
        let challenge = world.send(&get("/orders/1", &token, &proof.sign())).await;
        let challenge = challenge.expect("an answer");
        let proof = match challenge.one("dpop-nonce") {
            Some(nonce) => world.proof("GET", "/orders/1").token(&token).nonce(nonce),
            None => world.proof("GET", "/orders/1").token(&token),
        };
        let answer = world.send(&get("/orders/1", &token, &proof.sign())).await;
        table.row(name, expect_eq("status", &answer.map(|it| it.status()), &Ok(status)));
    }
    table.row("jwks.json", expect_eq("mended", &world.told_to_reload().await, &true));

    // What the edge shows, and whom it believes.
    broken(&world, &mut table, "server.pem", "nonsense").await;
    table.row("server.pem", expect_eq("mended", &world.told_to_reload().await, &true));
    broken(&world, &mut table, "server.key", "nonsense").await;
    let shown = world.client.connect(None).await.expect("a connection");
    let shown = shown.tls().peer_certificates().expect("a certificate")[0].to_vec();
    table.row("server.pem", expect_eq("same", &(shown == world.pki.server.certificate_der), &true));
    table.row("server.pem", expect_eq("mended", &world.told_to_reload().await, &true));
    let other = Pki::new();
    world.write("ca.pem", &other.authority_pem);
    world.write(LIST, &other.revocation_list(&[], FAR));
    table.row("ca.pem", expect_eq("taken", &world.told_to_reload().await, &true));
    broken(&world, &mut table, "ca.pem", "nonsense").await;
    for (who, passes) in [(bob, false), (&other.alice, true)] {
        let answer = world.send_as(who, &public).await;
        table.row("ca.pem", expect_eq("passes", &answer.is_ok(), &passes));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_databases_are_taken_anew_or_not_at_all() {
    let world = World::start_in(|directory, _, config| {
        with_capsules(directory, config);
        let path = directory.join("nonce.key");
        std::fs::write(&path, "11".repeat(32)).expect("a key");
        use std::os::unix::fs::PermissionsExt as _;
        let own = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&path, own).expect("its owner");
        let nonce = &mut config["security"]["senderConstraints"]["dpop"]["nonce"];
        nonce["keyFiles"] = json!(["nonce.key"]);
    })
    .await;
    let mut table = Table::default();
    let token = world.bound();
    let with = |nonce: &str| {
        let proof = world.proof("GET", "/orders/1").token(&token).nonce(nonce).sign();
        get("/orders/1", &token, &proof)
    };
    let old = world.nonce().await;
    world.write("nonce.key", &"22".repeat(32));
    table.row("nonce.key", expect_eq("taken", &world.told_to_reload().await, &true));
    let new = world.nonce().await;
    broken(&world, &mut table, "nonce.key", "22").await;
    let answer = world.send(&with(&old)).await;
    table.row("nonce.key", world.judge(answer, Refused("nonce_unknown")).await);
    table.row("nonce.key", world.judge(world.send(&with(&new)).await, Admitted("dpop")).await);
    table.row("nonce.key", expect_eq("mended", &world.told_to_reload().await, &true));

    // Where a node is, by the database of now, and under which master key it is served.
    let mut seen = Vec::new();
    for step in ["before", "after", "broken"] {
        match step {
            "after" => {
                let entry = Entry {
                    network: "127.0.0.1/32".parse().expect("a network"),
                    asn: Some(65_000),
                    region: Some(("NO", "03")),
                };
                let path = world.directory.path().join("networks.mmdb");
                std::fs::write(&path, database(&[entry], 1_800_000_100)).expect("a file");
                world.command(&["key", "rotate", "master", "--reason", "a test"]);
                table.row(step, expect_eq("taken", &world.told_to_reload().await, &true));
            }
            "broken" => {
                broken(&world, &mut table, "networks.mmdb", "nonsense").await;
                table.row(step, expect_eq("mended", &world.told_to_reload().await, &true));
                broken(&world, &mut table, "keys/master-2.json", "nonsense").await;
            }
            _ => {}
        }
        let node = world.enrol(&format!("node-{step}"), &[]);
        let answer = world.ask(&node, "127.0.0.1").await.expect("an answer").json();
        let version = answer["keyVersion"].as_str().unwrap_or_default().to_owned();
        let asn = world.node(&node.id)["baseline"]["network"]["asn"].clone();
        seen.push((asn, version.split('.').next().unwrap_or_default().to_owned()));
    }
    let expected = [(64_500, "m1"), (65_000, "m2"), (65_000, "m2")];
    let expected = expected.map(|(asn, version)| (json!(asn), version.to_owned()));
    table.row("seen", expect_eq("networks and keys", &seen.as_slice(), &expected.as_slice()));
}
