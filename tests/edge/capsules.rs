//! Runtime capsules: a node proves itself and receives its key.

use serde_json::{Value, json};

use super::support::Table;
use super::support::client::{Message, Request};
use super::support::keys::Key;
use super::support::node::{Node, holdfast, told, world};
use super::support::world::{World, expect_eq};

/// Checks what a refusal must have, whatever it is for.
fn well_formed(answer: &Message) -> Result<(), String> {
    expect_eq("cache-control", &answer.one("cache-control"), &Some("no-store"))?;
    if answer.one("x-request-id").is_none() {
        return Err("no X-Request-Id".to_owned());
    }
    if answer.status() == 401 && answer.all("www-authenticate").is_empty() {
        return Err("401 without WWW-Authenticate".to_owned());
    }
    if answer.status() == 503 && answer.one("retry-after").is_none() {
        return Err("503 without Retry-After".to_owned());
    }
    if answer.status() >= 400 && answer.status() != 405 {
        let body = answer.json();
        expect_eq("denied", &body["denied"], &json!(true))?;
        let same = body["decisionId"].as_str() == answer.one("x-request-id");
        expect_eq("decisionId is the request's", &same, &true)?;
    }
    Ok(())
}

fn is(answer: Result<Message, String>, expect: &str) -> Result<(), String> {
    let answer = answer?;
    expect_eq("answer", &told(&answer).as_str(), &expect)?;
    well_formed(&answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_capsule_binds_and_the_next_must_be_from_the_same() {
    let world = world(|_| {}).await;
    let node = world.enrol("node-1", &[]);
    let mut table = Table::default();
    let nonce = world.node_nonce(&node).await;
    let first = world.send(&node.request(&nonce)).await.expect("an answer");
    table.row("ok/first", is(Ok(first.clone()), "200 risk 0"));
    let body = first.json();
    for member in [
        "capsuleId",
        "nodeId",
        "runtimeKey",
        "keyVersion",
        "issuedUtc",
        "expiresUtc",
        "riskScore",
        "signature",
        "envelope",
    ] {
        table.row(member, expect_eq("is there", &body.get(member).is_some(), &true));
    }
    table.row("version", expect_eq("keyVersion", &body["keyVersion"], &json!("m1.n1@1.2.3")));
    let record = world.node("node-1");
    table.row("jkt", expect_eq("jkt", &record["jkt"], &json!(node.key.jkt())));
    table.row("x5t", expect_eq("x5t", &record["x5t"], &Value::Null));
    table.row("asn", expect_eq("asn", &record["baseline"]["network"]["asn"], &json!(64_500)));

    let again = world.send(&node.request(&nonce)).await.expect("an answer");
    let key = |answer: &Message| answer.json()["runtimeKey"].clone();
    table.row("ok/again", is(Ok(again.clone()), "200 risk 0"));
    table.row("same key", expect_eq("runtimeKey", &key(&again), &key(&first)));
    let mut other = node.clone();
    other.version = Some("1.2.4".to_owned());
    let newer = world.send(&other.request(&nonce)).await.expect("an answer");
    table.row("other key", expect_eq("differs", &(key(&newer) != key(&first)), &true));
    // POST is the same.
    let path = node.target();
    let proof = node.proof("POST", &path, &nonce).sign();
    let mut post = node.bare();
    post.method = "POST".to_owned();
    let post = post
        .field("Authorization", format!("DPoP {}", node.secret))
        .field("DPoP", proof)
        .field("Content-Length", "0");
    table.row("ok/post", is(world.send(&post).await, "200 risk 0"));
    for method in ["HEAD", "PUT", "DELETE", "OPTIONS"] {
        let mut request = node.bearer();
        request.method = method.to_owned();
        let mut connection = world.client.connect(None).await.expect("a connection");
        connection.write(&request.bytes()).await.expect("it is written");
        let answer = connection.answer(method == "HEAD").await.expect("an answer");
        table.row(method, expect_eq("status", &answer.status(), &405));
        table.row(method, expect_eq("allow", &answer.one("allow"), &Some("GET, POST")));
        table.row(method, well_formed(&answer));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_stage_refuses() {
    let world = world(|_| {}).await;
    let node = world.enrol("node-1", &[]);
    let nonce = world.node_nonce(&node).await;
    assert_eq!(told(&world.send(&node.request(&nonce)).await.expect("an answer")), "200 risk 0");
    let mut table = Table::default();
    let bend = |change: fn(&mut Node)| {
        let mut bent = node.clone();
        change(&mut bent);
        bent.request(&nonce)
    };
    let failed = "401 AUTHENTICATION_FAILED";
    let mismatch = "401 SENDER_MISMATCH";
    let different = "403 FINGERPRINT_MISMATCH";
    let proof = |proof: String| {
        node.bare().field("Authorization", format!("DPoP {}", node.secret)).field("DPoP", proof)
    };
    let good = || node.proof("GET", "/api/runtime/capsule/node-1", &nonce);
    let used = node.request(&nonce);
    let _ = world.send(&used).await;
    for (name, request, expect) in [
        ("fail/1 wrong secret", bend(|node| node.secret = "wrong".into()), failed),
        ("fail/1 no secret", node.bare(), failed),
        ("fail/1 no token68", node.bare().field("Authorization", "DPoP ä"), failed),
        ("fail/1 basic", node.bare().field("Authorization", "Basic Og=="), failed),
        ("fail/1 two", node.bearer().field("Authorization", "Bearer x"), failed),
        ("fail/2 unknown", bend(|node| node.id = "node-2".into()), failed),
        ("fail/2 malformed", bend(|node| node.id = "..x".into()), failed),
        ("fail/2 malformed", bend(|node| node.id = "a%2Fb".into()), failed),
        ("fail/2 malformed", bend(|node| node.id = "%".repeat(300)), failed),
        ("fail/2 empty", bend(|node| node.id = String::new()), failed),
        ("fail/2 nobody", bend(|node| node.id = "-".into()), failed),
        ("fail/4 no proof", node.bearer(), mismatch),
        ("fail/4 another key", bend(|node| node.key = Key::new("ES256")), mismatch),
        ("fail/4 another method", proof(good().claim("htm", "POST").sign()), mismatch),
        (
            "fail/4 another target",
            proof(good().claim("htu", "https://api.example/").sign()),
            mismatch,
        ),
        ("fail/4 another secret's", proof(good().token("x").sign()), mismatch),
        ("fail/4 two proofs", node.request(&nonce).field("DPoP", "x"), mismatch),
        ("fail/4 replayed", used, mismatch),
        ("fail/4 no nonce", proof(good().without("nonce").sign()), "401 PROOF_NONCE_REQUIRED"),
        ("fail/4 made-up nonce", proof(good().nonce("x").sign()), "401 PROOF_NONCE_REQUIRED"),
        ("fail/5 other", bend(|node| node.fingerprint = Some("x".into())), different),
        ("fail/5 none", bend(|node| node.fingerprint = None), different),
        (
            "fail/5 two that differ",
            node.request(&nonce).field("X-BMW-Fingerprint", "x"),
            "400 FINGERPRINT_CONFLICT",
        ),
        (
            "ok/5 by its other name",
            bend(|node| node.fingerprint = None)
                .field("X-BMW-Fingerprint", "fingerprint of node-1"),
            "200 risk 0",
        ),
        ("fail/8 no version", bend(|node| node.version = None), "400 NODE_VERSION_REQUIRED"),
        (
            "fail/8 unknown version",
            bend(|node| node.query = "?keyVersion=m2.n1@1.2.3".into()),
            "400 KEY_VERSION_UNAVAILABLE",
        ),
        (
            "fail/8 of a release to come",
            bend(|node| node.query = "?keyVersion=m1.n1@9".into()),
            "400 KEY_VERSION_UNAVAILABLE",
        ),
        (
            "ok/8 by version",
            bend(|node| {
                (node.version, node.query) = (None, "?keyVersion=m1.n1%401.2.3".into());
            }),
            "200 risk 0",
        ),
        ("fail/query", bend(|node| node.query = "?access_token=x".into()), failed),
    ] {
        table.row(name, is(world.send(&request).await, expect));
    }
    // Stage 3.
    for (command, expect) in [
        ("disable", "403 NODE_DISABLED"),
        ("enable", "200 risk 0"),
        ("quarantine", "403 NODE_QUARANTINED"),
        ("release", "200 risk 0"),
        ("revoke", "403 NODE_REVOKED"),
    ] {
        world.change(&[command, "node-1"]);
        table.row(command, is(world.send(&node.request(&nonce)).await, expect));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_can_tell_an_unknown_node_from_a_wrong_secret() {
    let world = world(|_| {}).await;
    let node = world.enrol("node-1", &[]);
    let wrong = Node { secret: "x".repeat(43), ..node.clone() };
    let mut answers = Vec::new();
    for id in ["node-1", "node-2", ".x", "a b", "%00x", "%", "\\"] {
        let node = Node { id: id.replace(' ', "%20"), ..wrong.clone() };
        for request in [node.request("x"), node.bearer()] {
            answers.push(world.send(&request).await.expect("an answer"));
        }
    }
    let plain = |answer: &Message| {
        let fields: Vec<_> = answer
            .fields
            .iter()
            .filter(|(name, _)| !["date", "x-request-id"].contains(&name.as_str()))
            .cloned()
            .collect();
        let id = answer.one("x-request-id").unwrap_or_default();
        let body = String::from_utf8_lossy(&answer.body).replace(id, "");
        (answer.start.clone(), fields, body)
    };
    // `..` and `%00` are no path at all, and answered as any such.
    let same: Vec<_> = answers.iter().filter(|answer| answer.status() == 401).map(plain).collect();
    assert!(same.len() >= 6, "{}", same.len());
    for answer in &same {
        assert_eq!(answer, &same[0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_is_weighed_against_the_confirmed_network() {
    let world = world(|_| {}).await;
    let node = world.enrol("node-1", &[]);
    let mut table = Table::default();
    let quarantined = "403 NETWORK_POLICY_VIOLATION risk 110";
    for (name, from, expect) in [
        ("ok/first", "127.0.0.1", "200 risk 0"),
        ("ok/address", "127.0.0.2", "200 risk 20"),
        ("ok/address and asn", "127.0.0.3", "200 risk 60"),
        ("ok/back", "127.0.0.1", "200 risk 0"),
        // Two steps: the first passed, and moved nothing.
        ("ok/address and asn", "127.0.0.3", "200 risk 60"),
        ("fail/region", "127.0.0.4", quarantined),
    ] {
        table.row(name, is(world.ask(&node, from).await, expect));
    }
    let refused = world.send(&node.request("x")).await;
    table.row("fail/sticky", is(refused, "403 NODE_QUARANTINED"));
    world.change(&["release", "node-1"]);
    table.row("ok/released", is(world.ask(&node, "127.0.0.1").await, "200 risk 0"));
    let far = world.ask(&node, "127.0.0.4").await;
    table.row("fail/again", is(far, quarantined));
    world.change(&["release", "node-1"]);
    world.change(&["accept-network", "node-1", "--address", "127.0.0.4"]);
    table.row("ok/accepted", is(world.ask(&node, "127.0.0.4").await, "200 risk 0"));
    // What nobody knows any more is not the same.
    let unknown = world.ask(&node, "127.0.0.9").await;
    table.row("fail/unknown", is(unknown, quarantined));
    let name = "holdfast_capsule_decisions_total";
    let quarantines = world.metric_once(name, &["NETWORK_POLICY"], 3.0).await;
    table.row("metric", expect_eq("quarantines", &quarantines, &3.0));
    let held = world.metric_once("holdfast_node_status", &["quarantined"], 1.0).await;
    table.row("metric", expect_eq("nodes", &held, &1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_prove_nodes_too() {
    let world = world(|config| config["capsules"]["proof"] = json!("mtls")).await;
    let node = world.enrol("node-1", &[]);
    let alice = Some(&world.pki.alice);
    let mut table = Table::default();
    let send = async |who, request: Request| world.send_from("127.0.0.1", who, &request).await;
    let mismatch = "401 SENDER_MISMATCH";
    table.row("fail/none", is(send(None, node.bearer()).await, mismatch));
    table.row(
        "fail/proof alone",
        is(send(None, node.request("x")).await, "401 PROOF_NONCE_REQUIRED"),
    );
    table.row("ok/first", is(send(alice, node.bearer()).await, "200 risk 0"));
    table.row("ok/again", is(send(alice, node.bearer()).await, "200 risk 0"));
    let beside = node.bearer().field("DPoP", "x");
    table.row("fail/a proof beside Bearer", is(send(alice, beside).await, mismatch));
    let bob = Some(&world.pki.bob);
    table.row("fail/other", is(send(bob, node.bearer()).await, mismatch));
    table.row("fail/none", is(send(None, node.bearer()).await, mismatch));
    let x5t = world.node("node-1")["x5t"].clone();
    table.row("x5t", expect_eq("x5t", &x5t, &json!(world.pki.alice.x5t())));
}

#[tokio::test(flavor = "multi_thread")]
async fn telemetry_tells_a_clean_stop_from_an_abrupt_one() {
    let world = world(|_| {}).await;
    let node = world.enrol("node-1", &[]);
    let mut table = Table::default();
    let running = |boot: &str, seq: u64, state: &str| json!({"bootId": boot, "seq": seq, "state": state, "version": "1.2.3"});
    table.row("ok/capsule", is(world.ask(&node, "127.0.0.1").await, "200 risk 0"));
    let post = async |from: &'static str, body: Value| {
        let nonce = world.node_nonce(&node).await;
        let answer = world.send_from(from, None, &node.telemetry(&nonce, &body)).await;
        answer.map(|answer| told(&answer)).unwrap_or_default()
    };
    let here = "127.0.0.1";
    for (name, from, body, expect) in [
        ("ok/running", here, running("boot-1", 1, "running"), "204 "),
        ("ok/again", here, running("boot-1", 1, "running"), "204 "),
        ("fail/otherwise", here, running("boot-1", 1, "stopping"), "409 TELEMETRY_OUT_OF_ORDER"),
        ("ok/on", here, running("boot-1", 5, "running"), "204 "),
        ("fail/back", here, running("boot-1", 4, "running"), "409 TELEMETRY_OUT_OF_ORDER"),
        // None of these clears what is to come.
        ("ok/strange", "127.0.0.2", running("boot-1", 9, "stopping"), "204 "),
        ("ok/not granted", here, running("boot-2", 1, "stopping"), "204 "),
        ("fail/no object", here, json!([]), "400 TELEMETRY_INVALID"),
        (
            "fail/no seq",
            here,
            json!({"bootId": "boot-1", "state": "running"}),
            "400 TELEMETRY_INVALID",
        ),
        (
            "fail/more",
            here,
            json!({"bootId": "b", "seq": 1, "state": "running", "x": 1}),
            "400 TELEMETRY_INVALID",
        ),
        ("fail/long", here, json!({"bootId": "b".repeat(5000)}), "400 TELEMETRY_INVALID"),
    ] {
        table.row(name, expect_eq("answer", &post(from, body).await.as_str(), &expect));
    }
    let heard = world.node("node-1")["heard"].clone();
    table.row("heard", expect_eq("seq", &heard["seq"], &json!(5)));
    table.row("heard", expect_eq("state", &heard["state"], &json!("running")));
    let mut rebooted = node.clone();
    rebooted.boot = Some("boot-2".to_owned());
    // The same boot renews.
    table.row("ok/renewal", is(world.ask(&node, here).await, "200 risk 0"));
    let abrupt = "403 NETWORK_POLICY_VIOLATION risk 80";
    table.row("fail/abrupt", is(world.ask(&rebooted, here).await, abrupt));
    world.change(&["release", "node-1"]);
    table.row("ok/released", is(world.ask(&rebooted, here).await, "200 risk 0"));
    let nonce = world.node_nonce(&rebooted).await;
    let mut stop = running("boot-2", 1, "stopping");
    let answer = world.send(&rebooted.telemetry(&nonce, &stop)).await.expect("an answer");
    table.row("ok/stopping", expect_eq("status", &answer.status(), &204));
    let mut third = node.clone();
    third.boot = Some("boot-3".to_owned());
    table.row("ok/clean", is(world.ask(&third, here).await, "200 risk 0"));
    stop["seq"] = json!(2);
    let wrong = Node { secret: "wrong".into(), ..third.clone() };
    let answer = world.send(&wrong.telemetry(&nonce, &stop)).await;
    table.row("fail/wrong secret", is(answer, "401 AUTHENTICATION_FAILED"));
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_have_a_limit_that_locks_nobody_out() {
    let world = world(|config| {
        config["capsules"]["failures"] = json!({"perAddress": 6, "perNode": 3});
    })
    .await;
    let node = world.enrol("node-1", &[]);
    let nonce = world.node_nonce(&node).await;
    let mut table = Table::default();
    let wrong = Node { secret: "wrong".into(), ..node.clone() };
    let unknown = Node { id: "node-2".into(), ..wrong.clone() };
    let failed = "401 AUTHENTICATION_FAILED";
    // To begin without a nonce was no failure.
    for expect in [failed, failed, failed, "429 RATE_LIMITED"] {
        table.row("wrong", is(world.send(&wrong.bearer()).await, expect));
    }
    // The address has had its six.
    for expect in [failed, failed, "429 RATE_LIMITED", "429 RATE_LIMITED"] {
        table.row("unknown", is(world.send(&unknown.bearer()).await, expect));
    }
    let late = world.send(&unknown.bearer()).await.expect("an answer");
    let wait: u64 = late.one("retry-after").and_then(|it| it.parse().ok()).unwrap_or_default();
    table.row("retry-after", expect_eq("sensible", &(1..=60).contains(&wait), &true));
    table.row("ok/the node", is(world.send(&node.request(&nonce)).await, "200 risk 0"));
    // And one that has no nonce yet, or one of before a restart, is told the next.
    let begins = world.send(&node.request("x")).await.expect("an answer");
    table.row("begins", is(Ok(begins.clone()), "401 PROOF_NONCE_REQUIRED"));
    table.row("nonce", expect_eq("is there", &begins.one("dpop-nonce").is_some(), &true));
    let elsewhere = world.send_from("127.0.0.2", None, &wrong.bearer()).await;
    table.row("elsewhere", is(elsewhere, failed));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fleet_brake_holds_instead_of_quarantining() {
    let world = world(|config| {
        config["capsules"]["fleetBrake"] = json!({"maxQuarantines": 2, "window": "1h"});
    })
    .await;
    let mut table = Table::default();
    for number in 0..4 {
        let node = world.enrol(&format!("node-{number}"), &[]);
        table.row("ok", is(world.ask(&node, "127.0.0.1").await, "200 risk 0"));
        let refused = "403 NETWORK_POLICY_VIOLATION risk 110";
        table.row("fail", is(world.ask(&node, "127.0.0.4").await, refused));
        let after = if number < 2 { "403 NODE_QUARANTINED" } else { "200 risk 0" };
        let back = match after {
            "200 risk 0" => world.ask(&node, "127.0.0.1").await,
            _ => world.send(&node.request("x")).await,
        };
        table.row("after", is(back, after));
    }
    let held = world.metric("holdfast_capsule_held_total", &[]).await;
    table.row("metric", expect_eq("held", &held, &2.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_expected_at_enrolment_holds_for_the_first_capsule() {
    let world = world(|_| {}).await;
    let mut table = Table::default();
    let violation = "403 NETWORK_POLICY_VIOLATION";
    for (number, (more, from, expect)) in [
        (&["--expect-network", "127.0.0.0/30"][..], "127.0.0.3", "200 risk 0"),
        (&["--expect-network", "127.0.0.0/30"], "127.0.0.4", violation),
        (&["--expect-asn", "64501"], "127.0.0.4", "200 risk 0"),
        (&["--expect-asn", "64501"], "127.0.0.1", violation),
        (&["--expect-asn", "64501"], "127.0.0.9", violation),
        (&["--expect-region", "se"], "127.0.0.1", "200 risk 0"),
        (&["--expect-region", "SE-M"], "127.0.0.4", violation),
        (&["--join-within", "1h"], "127.0.0.1", "200 risk 0"),
        (&["--join-within", "0s"], "127.0.0.1", "403 NODE_DISABLED"),
    ]
    .into_iter()
    .enumerate()
    {
        let node = world.enrol(&format!("node-{number}"), more);
        let nonce = match expect {
            "403 NODE_DISABLED" => "x".to_owned(),
            _ => world.node_nonce(&node).await,
        };
        let answer = world.send_from(from, None, &node.request(&nonce)).await;
        table.row(&format!("{more:?} {from}"), is(answer, expect));
        if expect == violation {
            let record = world.node(&node.id);
            table.row("not bound", expect_eq("jkt", &record["jkt"], &Value::Null));
            table.row("status", expect_eq("status", &record["status"], &json!("active")));
        }
    }
    // Bound before the first contact.
    let mut node = world.enrol("bound", &["--jkt", &Key::new("ES256").jkt()]);
    table.row("fail/bound", is(world.ask(&node, "127.0.0.1").await, "401 SENDER_MISMATCH"));
    node.key = Key::new("ES256");
    world.change(&["rejoin", "bound", "--jkt", &node.key.jkt()]);
    table.row("ok/rejoined", is(world.ask(&node, "127.0.0.1").await, "200 risk 0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_for_one_node_give_one_history() {
    const MANY: usize = 500;
    let world = std::sync::Arc::new(world(|_| {}).await);
    let node = world.enrol("node-1", &[]);
    let nonce = world.node_nonce(&node).await;
    let connection = std::sync::Arc::new(world.client.connect_h2(None).await.expect("h2"));
    let tasks: Vec<_> = (0..MANY)
        .map(|number| {
            let connection = std::sync::Arc::clone(&connection);
            // Every fifth from a key of its own: who comes first is bound, the others are not.
            let mut node = node.clone();
            if number % 5 == 0 {
                node.key = Key::new("ES256");
            }
            let request = node.request(&nonce);
            tokio::spawn(async move { connection.send(&request).await.map(|it| told(&it)) })
        })
        .collect();
    let mut counts = std::collections::BTreeMap::new();
    for task in tasks {
        let answer = task.await.expect("no panic").expect("an answer");
        *counts.entry(answer).or_insert(0_u64) += 1;
    }
    let granted = counts.get("200 risk 0").copied().unwrap_or_default();
    let record = world.node("node-1");
    assert_eq!(record["counters"]["granted"], json!(granted), "{counts:?}");
    let refused: u64 =
        counts.iter().filter(|(told, _)| !told.starts_with("200")).map(|it| it.1).sum();
    assert_eq!(granted + refused, MANY as u64, "{counts:?}");
    // Each grant in the log was decided on the record that the one before it left.
    let lines = world.audit();
    let grants = lines.iter().filter(|line| line["data"]["verdict"].get("Ok").is_some());
    let before: Vec<u64> =
        grants.map(|line| line["data"]["node"]["counters"]["granted"].as_u64().unwrap()).collect();
    assert_eq!(before, (0..granted).collect::<Vec<_>>());
    let firsts = lines.iter().filter(|line| line["data"]["verdict"]["Ok"]["first"] == json!(true));
    assert_eq!(firsts.count(), 1);
    assert!(world.command(&["audit", "verify"]).contains("the log is whole"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_decision_is_in_the_log_and_is_explained() {
    let world = world(|_| {}).await;
    let node = world.enrol("node-1", &[]);
    let mut table = Table::default();
    let explain = async |answer: &Message| {
        let id = answer.json()["decisionId"].as_str().map(str::to_owned);
        let id = id.or_else(|| answer.one("x-request-id").map(str::to_owned)).expect("an id");
        let arguments = ["audit", "show", id.as_str(), "--config", "authority.yaml"];
        // A stranger's line is written some time soon.
        for _ in 0..1500 {
            if holdfast(world.directory.path(), &arguments).0 == Some(0) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        world.command(&arguments[..3])
    };
    let has = |text: &str, parts: &[&str]| {
        let missing: Vec<_> = parts.iter().filter(|part| !text.contains(**part)).collect();
        expect_eq(text, &missing, &Vec::<&&str>::new())
    };
    let first = world.ask(&node, "127.0.0.1").await.expect("an answer");
    let same = "Decided again from what is recorded: the same.";
    let text = explain(&first).await;
    table.row("first", has(&text, &["GRANTED", "its first", "there is no baseline yet", same]));
    let moved = world.ask(&node, "127.0.0.4").await.expect("an answer");
    let text = explain(&moved).await;
    let parts = [
        "7 REFUSED network quarantined: from 127.0.0.4 AS64501 NO-03",
        "the baseline is 127.0.0.1 AS64500 SE-M",
        "address: changed: +20",
        "autonomous system: changed: +40",
        "region: changed: +50",
        "risk 110, quarantine from 80",
        "REFUSED: NETWORK_POLICY_VIOLATION",
        "The node was quarantined",
        same,
    ];
    table.row("moved", has(&text, &parts));
    let wrong = Node { secret: "wrong".into(), ..node.clone() };
    let answer = world.send(&wrong.bearer()).await.expect("an answer");
    table.row("wrong", has(&explain(&answer).await, &["1 REFUSED the secret is not the node's"]));
    let unknown = Node { id: "node-2".into(), ..wrong };
    let answer = world.send(&unknown.bearer()).await.expect("an answer");
    table.row("unknown", has(&explain(&answer).await, &["2 REFUSED there is no such node"]));

    let lines = world.audit();
    let kinds: Vec<_> = lines.iter().filter_map(|line| line["kind"].as_str()).collect();
    table.row("begin", expect_eq("first", &kinds.first(), &Some(&"chain.begin")));
    table.row("change", expect_eq("change", &kinds.contains(&"node.change"), &true));
    let change = lines.iter().find(|line| line["kind"] == "node.change").expect("a change");
    let shown = world.command(&["audit", "show", change["id"].as_str().expect("an id")]);
    let line = shown.lines().any(|line| line.trim().starts_with("\"action\": \"add\""));
    table.row("change", expect_eq(&shown, &line, &true));
    let all = serde_json::to_string(&lines).expect("JSON");
    let record = world.process.output();
    let key = first.json()["runtimeKey"].as_str().expect("a key").to_owned();
    for secret in [node.secret.as_str(), &key] {
        for (name, text) in [("audit", &all), ("log", &record)] {
            table.row(name, expect_eq("holds a secret", &text.contains(secret), &false));
        }
    }
    let hash = super::support::digest(&node.secret);
    table.row("hash", expect_eq("holds the secret's hash", &all.contains(&hash), &false));
    table.row("verify", has(&world.command(&["audit", "verify"]), &["the log is whole"]));
}

/// A checkpoint whose signature is bent, or is that of the checkpoint before.
fn forged(line: &str, how: &str, signatures: &mut Vec<String>) -> String {
    let read: Value = serde_json::from_str(line).expect("JSON");
    let Some(jws) = read["data"]["jws"].as_str() else { return line.to_owned() };
    signatures.push(jws.to_owned());
    let (signed, signature) = jws.rsplit_once('.').expect("three parts");
    let other = match how {
        "the signature" => {
            let bent = if signature.starts_with('A') { "B" } else { "A" };
            format!("{signed}.{bent}{}", &signature[1..])
        }
        "another's signature" => signatures[0].clone(),
        _ => return line.to_owned(),
    };
    line.replace(jws, &other)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_log_is_found_out() {
    let mut world: World = world(|_| {}).await;
    let node = world.enrol("node-1", &[]);
    for _ in 0..3 {
        let _ = world.ask(&node, "127.0.0.1").await;
    }
    // The end of a process signs what is there.
    world.restart().await;
    let verified = world.command(&["audit", "verify"]);
    assert!(verified.contains("2 checkpoints, each with a good signature"), "{verified}");
    let head = verified.lines().find_map(|line| line.strip_prefix("head: ")).expect("a head");
    let path = world.directory.path().to_owned();
    let seen = holdfast(&path, &["audit", "verify", "--config", "authority.yaml", "--seen", head]);
    assert_eq!(seen.0, Some(0), "{}", seen.1);
    drop(world.process);
    // Whoever can write the file, and has no key, writes the whole chain anew.
    let rewrite = |connection: &rusqlite::Connection, from: &str, to: &str, keep: &str| {
        let sql = format!("SELECT line, seq FROM audit WHERE {keep} ORDER BY seq");
        let mut statement = connection.prepare(&sql).expect("SQL");
        let rows = statement.query_map([], |row| row.get::<_, String>(0)).expect("rows");
        let lines: Vec<String> = rows.map(|row| row.expect("a line")).collect();
        connection.execute("DELETE FROM audit", []).expect("it is emptied");
        let (mut prev, mut signatures) = ("A".repeat(43), Vec::new());
        for (number, line) in lines.iter().enumerate() {
            let read: Value = serde_json::from_str(line).expect("JSON");
            let number = number as u64 + 1;
            let line = line
                .replace(&format!("{{\"seq\":{},", read["seq"]), &format!("{{\"seq\":{number},"))
                .replacen(read["prev"].as_str().expect("a hash"), &prev, 1)
                .replace(from, to);
            let line = forged(&line, from, &mut signatures);
            prev = super::support::digest(&line);
            let read: Value = serde_json::from_str(&line).expect("JSON");
            let hash = openssl::sha::sha256(line.as_bytes());
            let sql = "INSERT INTO audit (seq, at, kind, id, node, hash, line)
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
            let text = |name: &str| read[name].as_str().map(str::to_owned);
            let at = read["at"].as_i64();
            let row = rusqlite::params![
                number as i64,
                at,
                text("kind"),
                text("id"),
                text("node"),
                hash,
                line
            ];
            connection.execute(sql, row).expect("a row");
        }
    };
    let tamper = |sql: &str| {
        let copy = path.join("copy.db");
        let _ = std::fs::remove_file(&copy);
        let original = rusqlite::Connection::open(path.join("holdfast.db")).expect("a database");
        original.execute("VACUUM INTO ?1", [copy.to_str()]).expect("a copy");
        let connection = rusqlite::Connection::open(&copy).expect("a database");
        match sql.strip_prefix("rewrite ").and_then(|words| words.split_once(" where ")) {
            Some((words, keep)) => {
                let (from, to) = words.split_once("=>").expect("two texts");
                rewrite(&connection, from, to, keep);
            }
            None => connection.execute_batch(sql).expect("it is changed"),
        }
        let jwks = path.join("audit.jwks");
        let (_, set, _) = holdfast(&path, &["key", "list", "--dir", "keys", "--jwks", "audit"]);
        std::fs::write(&jwks, set).expect("a writable directory");
        holdfast(&path, &["audit", "verify", "--store", "copy.db", "--jwks", "audit.jwks"])
    };
    assert_eq!(tamper("").0, Some(0));
    let decision = "seq = (SELECT min(seq) FROM audit WHERE kind = 'capsule.decision')";
    for (sql, expect) in [
        (
            "UPDATE audit SET line = replace(line, 'node-1', 'node-9') WHERE",
            "not what it is found by",
        ),
        ("UPDATE audit SET line = replace(line, '\"data\":', '\"data\": ') WHERE", "found by"),
        ("DELETE FROM audit WHERE", "is missing"),
        (
            "UPDATE audit SET line = replace(line, '\"jws\":\"e', '\"jws\":\"f') WHERE kind = 'checkpoint' OR",
            "found by",
        ),
        ("UPDATE audit SET node = NULL WHERE", "not what it is found by"),
        ("UPDATE audit SET hash = zeroblob(32) WHERE", "not what it is found by"),
        ("DELETE FROM audit; SELECT 1 FROM audit WHERE", "no line at all"),
        ("rewrite node-1=>node-9 where 1", "a checkpoint of something else"),
        ("rewrite \"jws\":\"ey=>\"jws\":\"eY where 1", "none of the keys signed"),
        ("rewrite the signature=> where 1", "none of the keys signed"),
        ("rewrite another's signature=> where 1", "none of the keys signed"),
        ("rewrite node-1=>node-9 where kind <> 'checkpoint'", "no checkpoint"),
    ] {
        let sql = match sql.starts_with("rewrite") {
            true => sql.to_owned(),
            false => format!("{sql} {decision}"),
        };
        let sql = sql.as_str();
        let (status, out, errors) = tamper(sql);
        assert!(status == Some(1) && out.contains(expect), "{sql}: {out}{errors}");
    }
    // What is cut off after a checkpoint only somebody knows who has seen more.
    assert_eq!(tamper("DELETE FROM audit WHERE seq = (SELECT max(seq) FROM audit)").0, Some(0));
    let arguments = ["audit", "verify", "--store", "copy.db", "--jwks", "audit.jwks"];
    let (status, out, _) = holdfast(&path, &[&arguments[..], &["--seen", head]].concat());
    assert!(status == Some(1) && out.contains("is not there any more"), "{out}");
    // And without keys nobody vouches for anything.
    let (status, out, _) = holdfast(&path, &arguments[..4]);
    assert!(status == Some(1) && out.contains("no keys are at hand"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn replays_and_mismatches_are_in_the_log_up_to_a_budget() {
    use super::support::world::get;
    let world = world(|config| config["audit"] = json!({"refusalsPerMinute": 3})).await;
    let token = world.bound();
    let nonce = world.nonce().await;
    let proof = |key: &Key| {
        let proof = super::support::proof::Proof::new(key, "GET", "https://api.example/orders/1");
        proof.token(&token).nonce(&nonce).sign()
    };
    let good = get("/orders/1", &token, &proof(&world.key));
    for _ in 0..8 {
        let _ = world.send(&good).await;
    }
    // The next line says how many were left out before it.
    world.metric_once("holdfast_audit_suppressed_total", &[], 4.0).await;
    let other = Key::new("ES256");
    let _ = world.send(&get("/orders/1", &token, &proof(&other))).await;
    // They are written some time soon.
    let mut lines = world.audit();
    for _ in 0..200 {
        let told = |kind: &str| lines.iter().any(|line| line["kind"] == json!(kind));
        if told("suppressed") && told("sender.mismatch") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        lines = world.audit();
    }
    let count = |kind: &str| lines.iter().filter(|line| line["kind"] == json!(kind)).count();
    let mut table = Table::default();
    table.row("replays", expect_eq("lines", &count("dpop.replay"), &3));
    table.row("mismatches", expect_eq("lines", &count("sender.mismatch"), &1));
    let suppressed = lines.iter().find(|line| line["kind"] == json!("suppressed"));
    let left_out = suppressed.map(|line| line["data"]["count"].clone());
    table.row("suppressed", expect_eq("count", &left_out, &Some(json!(4))));
    let mismatch = lines.iter().find(|line| line["kind"] == json!("sender.mismatch"));
    let presented = mismatch.map(|line| line["data"]["presented"].clone());
    table.row("presented", expect_eq("key", &presented, &Some(json!(other.jkt()))));
    let text = serde_json::to_string(&lines).expect("JSON");
    table.row("token", expect_eq("holds a token", &text.contains(&token), &false));
    let metric = world.metric("holdfast_audit_suppressed_total", &[]).await;
    table.row("metric", expect_eq("suppressed", &metric, &4.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_as_large_as_it_may_be_gets_no_refusals_and_grants_all_the_same() {
    let world = world(|config| {
        config["audit"] = json!({"maxBytes": 1_048_576, "refusalsPerMinute": 100_000});
    })
    .await;
    let node = world.enrol("node-1", &[]);
    let mut table = Table::default();
    table.row("ok/first", is(world.ask(&node, "127.0.0.1").await, "200 risk 0"));
    let connection = rusqlite::Connection::open(world.directory.path().join("holdfast.db"));
    let connection = connection.expect("the store");
    connection.busy_timeout(std::time::Duration::from_secs(10)).expect("a timeout");
    let fill = "CREATE TABLE filler AS SELECT zeroblob(1048576) AS bytes";
    connection.execute_batch(fill).expect("a larger store");
    let nonce = world.node_nonce(&node).await;
    let elsewhere = Node { fingerprint: Some("another".into()), ..node.clone() };
    let suppressed = async || world.metric("holdfast_audit_suppressed_total", &[]).await;
    // It is looked at once a second.
    for _ in 0..200 {
        let refused = world.send(&elsewhere.request(&nonce)).await;
        table.row("fail/fingerprint", is(refused, "403 FINGERPRINT_MISMATCH"));
        if suppressed().await >= 1.0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    table.row("left out", expect_eq("counted", &(suppressed().await >= 1.0), &true));
    table.row("ok/granted", is(world.send(&node.request(&nonce)).await, "200 risk 0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_the_secret_alone_fills_nothing() {
    let world = world(|config| {
        config["edge"]["limits"] = json!({"replayEntries": 1000});
        config["audit"] = json!({"refusalsPerMinute": 5});
    })
    .await;
    let mut table = Table::default();
    let certified = world.enrol("node-1", &[]);
    let alice = Some(&world.pki.alice);
    let first = world.send_from("127.0.0.1", alice, &certified.bearer()).await;
    table.row("ok/by certificate", is(first, "200 risk 0"));
    let nonce = world.node_nonce(&certified).await;
    let thief = std::sync::Arc::new(world.client.connect_h2(None).await.expect("h2"));
    let key = Key::new("ES256");
    let tasks: Vec<_> = (0..1100)
        .map(|_| {
            let request = Node { key: key.clone(), ..certified.clone() }.request(&nonce);
            let thief = std::sync::Arc::clone(&thief);
            tokio::spawn(async move { thief.send(&request).await.map(|it| told(&it)) })
        })
        .collect();
    for task in tasks {
        let answer = task.await.expect("no panic").expect("an answer");
        table.row(
            "fail/no certificate",
            expect_eq("answer", &answer.as_str(), &"401 SENDER_MISMATCH"),
        );
    }
    let honest = world.enrol("node-2", &[]);
    table.row("ok/another", is(world.ask(&honest, "127.0.0.1").await, "200 risk 0"));
    let ready = world.admin("/readyz").await.status();
    table.row("ready", expect_eq("status", &ready, &200));

    // Nor does who is the node, and is refused for what it shows.
    let lines = world.audit().len();
    let elsewhere = Node { fingerprint: Some("another".into()), ..honest.clone() };
    for _ in 0..20 {
        let refused = world.send(&elsewhere.request(&nonce)).await;
        table.row("fail/fingerprint", is(refused, "403 FINGERPRINT_MISMATCH"));
    }
    table.row("lines", expect_eq("written", &(world.audit().len() - lines), &5));
    let left_out = world.metric("holdfast_audit_suppressed_total", &[]).await;
    table.row("left out", expect_eq("counted", &(left_out >= 15.0), &true));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sender_shows_is_taken_as_it_is_meant() {
    let world = world(|config| {
        config["security"]["senderConstraints"]["mtls"] = json!({"enabled": false});
    })
    .await;
    let node = world.enrol("node-1", &[]);
    let mut table = Table::default();
    let alice = Some(&world.pki.alice);
    let refused = world.send_from("127.0.0.1", alice, &node.bearer()).await;
    table.row("fail/mTLS is off", is(refused, "401 SENDER_MISMATCH"));
    let nonce = world.node_nonce(&node).await;
    let proof = node.proof("GET", &node.target(), &nonce).sign();
    let beside = node.bearer().field("DPoP", proof);
    table.row("fail/a proof beside Bearer", is(world.send(&beside).await, "401 SENDER_MISMATCH"));
    let unsigned = node.request(&nonce).field("X-Node-Enc-Jwk", "e30");
    let sealed = "400 SEAL_REQUIRED";
    table.row("fail/a key to seal to that nobody signed", is(world.send(&unsigned).await, sealed));
    table.row("ok", is(world.send(&node.request(&nonce)).await, "200 risk 0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_takes_another_s_name_gets_another_key() {
    let world = world(|_| {}).await;
    let mut node = world.enrol("node-1", &[]);
    let key = async |node: &Node| {
        let answer = world.ask(node, "127.0.0.1").await.expect("an answer");
        (answer.json()["keyVersion"].clone(), answer.json()["runtimeKey"].clone())
    };
    let (version, before) = key(&node).await;
    assert_eq!(version, json!("m1.n1@1.2.3"));
    world.change(&["rotate-key", "node-1", "--retire-old"]);
    world.change(&["revoke", "node-1"]);
    world.change(&["remove", "node-1"]);
    node.secret = world.enrol("node-1", &[]).secret;
    let (version, after) = key(&node).await;
    assert_eq!(version, json!("m1.n3@1.2.3"));
    assert!(after.is_string() && after != before);
    node.query = "?keyVersion=m1.n1@1.2.3".to_owned();
    let old = world.ask(&node, "127.0.0.1").await.expect("an answer");
    assert_eq!(told(&old), "400 KEY_VERSION_UNAVAILABLE");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_sent_in_clear_is_not_taken_for_what_it_did_not() {
    use super::support::client::plain_from;
    let port = super::support::process::free_port();
    let world = world(|config| {
        let listeners = config["edge"]["listeners"].as_array_mut().expect("a list");
        listeners.push(json!({
            "name": "plain",
            "address": format!("127.0.0.1:{port}"),
            "trustedProxies": [
                {"cidr": "127.0.0.1", "believe": ["address", "origin"], "fields": "x-forwarded"},
            ],
        }));
    })
    .await;
    let node = world.enrol("node-1", &[]);
    let nonce = world.node_nonce(&node).await;
    let mut table = Table::default();
    let send = async |scheme: &str| {
        let request = node
            .request(&nonce)
            .field("X-Forwarded-Proto", scheme)
            .field("X-Forwarded-For", "127.0.0.2");
        let mut connection = plain_from("127.0.0.1", port).await.expect("a connection");
        connection.send(&request.bytes()).await.expect("an answer")
    };
    table.row("fail/http", expect_eq("status", &send("http").await.status(), &400));
    table.row("ok/https", is(Ok(send("https").await), "200 risk 0"));
    let seen = world.node("node-1")["last"]["network"]["address"].clone();
    table.row("address", expect_eq("address", &seen, &json!("127.0.0.2")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_uses_up_proofs_at_a_pace() {
    let world = world(|_| {}).await;
    let node = world.enrol("node-1", &[]);
    let nonce = world.node_nonce(&node).await;
    let connection = std::sync::Arc::new(world.client.connect_h2(None).await.expect("h2"));
    let tasks: Vec<_> = (0..1300)
        .map(|_| {
            let (request, connection) = (node.request(&nonce), std::sync::Arc::clone(&connection));
            tokio::spawn(async move { connection.send(&request).await.map(|it| told(&it)) })
        })
        .collect();
    let mut late = 0;
    for task in tasks {
        match task.await.expect("no panic").expect("an answer").as_str() {
            "200 risk 0" => {}
            "503 UNAVAILABLE" => late += 1,
            other => panic!("{other}"),
        }
    }
    assert!((1..=300).contains(&late), "{late}");
    let other = world.enrol("node-2", &[]);
    assert_eq!(told(&world.ask(&other, "127.0.0.1").await.expect("an answer")), "200 risk 0");
}
