//! A proof is good once.

use std::time::Duration;

use serde_json::json;

use super::support::Table;
use super::support::base64url;
use super::support::client::Request;
use super::support::keys::Key;
use super::support::proof::{Proof, parts};
use super::support::world::{Expect, World, expect_eq, get};

use Expect::{Admitted, Refused};

fn nonces_off(config: &mut serde_json::Value) {
    config["security"]["senderConstraints"]["dpop"]["nonce"] = json!({"enabled": false});
}

/// With nonces off a proof must be younger than the process, by whole seconds.
async fn next_second() {
    tokio::time::sleep(Duration::from_millis(1100)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_proof_in_every_disguise() {
    let world = World::start().await;
    let token = world.bound();
    let nonce = world.nonce().await;
    let used = world.proof("GET", "/orders/1").token(&token).nonce(&nonce);
    let jws = used.sign();
    let [header, claims, signature] = parts(&jws);
    let raw = {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(signature).expect("base64url")
    };
    let twin = format!("{header}.{claims}.{}", base64url(world.key.twin(&raw)));
    let spaced = base64url(format!(" {}", used.header_json()));
    let reordered = base64url(format!("{} ", used.claims_json()));
    let again = |jti: &serde_json::Value| {
        world.proof("GET", "/orders/1").token(&token).nonce(&nonce).claim("jti", jti.clone())
    };
    let (replayed, malformed) = (Refused("proof_replayed"), Refused("proof_malformed"));
    let signature_fault = Refused("proof_signature");
    let jti = &used.claims["jti"];
    let mut table = Table::default();
    for (name, proof, expect) in [
        ("ok/first", jws.clone(), Admitted("dpop")),
        ("fail/again", jws.clone(), replayed),
        ("fail/n - s", twin, replayed),
        ("fail/signed anew", used.sign(), replayed),
        (
            "fail/same jti, later",
            again(jti).claim("iat", super::support::now() + 1).sign(),
            replayed,
        ),
        (
            "fail/same jti, escaped",
            {
                let text = used.claims_json().replacen("\"jti\"", "\"\\u006ati\"", 1);
                used.sign_text(&used.header_json(), &text)
            },
            replayed,
        ),
        ("fail/padding", format!("{jws}=="), malformed),
        ("fail/padding of the header", format!("{header}=.{claims}.{signature}"), malformed),
        ("fail/last bits of the signature", last_bits(&jws), malformed),
        ("fail/a space before", format!("{} {claims}.{signature}", header), malformed),
        ("fail/header re-encoded", format!("{spaced}.{claims}.{signature}"), signature_fault),
        ("fail/claims re-encoded", format!("{header}.{reordered}.{signature}"), signature_fault),
        ("ok/another jti", again(&json!("another")).sign(), Admitted("dpop")),
    ] {
        let answer = world.send(&get("/orders/1", &token, &proof)).await;
        table.row(name, world.judge(answer, expect).await);
    }
    let elsewhere = again(jti).claim("htu", "https://api.example/orders/2").sign();
    let answer = world.send(&get("/orders/2", &token, &elsewhere)).await;
    table.row("fail/same jti on another path", world.judge(answer, replayed).await);
    let other = Key::new("ES256");
    let others = world.token().jkt(&other.jkt()).sign();
    let proof = Proof::new(&other, "GET", "https://api.example/orders/1")
        .token(&others)
        .nonce(&nonce)
        .claim("jti", jti.clone());
    let answer = world.send(&get("/orders/1", &others, &proof.sign())).await;
    table.row("ok/same jti of another key", world.judge(answer, Admitted("dpop")).await);
    let replays = world.metric("authority_dpop_result_total", &["result=\"replay\""]).await;
    table.row("metric", expect_eq("replays", &replays, &6.0));
}

/// The same bytes under another text: the last character's unused bits set.
fn last_bits(jws: &str) -> String {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (head, last) = jws.split_at(jws.len() - 1);
    let at = alphabet.iter().position(|byte| last.as_bytes() == [*byte]).expect("base64url");
    format!("{head}{}", char::from(alphabet[at ^ 1]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_proof_is_not_used_up() {
    let world = World::start().await;
    let token = world.bound();
    let nonce = world.nonce().await;
    let proof = world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
    let stranger = world.token().jkt(&Key::new("ES256").jkt()).sign();
    let mut table = Table::default();
    for (name, request, expect) in [
        ("fail/on another path", get("/orders/2", &token, &proof), Refused("proof_htu")),
        ("fail/with another token", get("/orders/1", &stranger, &proof), Refused("proof_ath")),
        ("ok/where it belongs", get("/orders/1", &token, &proof), Admitted("dpop")),
        ("fail/then no more", get("/orders/1", &token, &proof), Refused("proof_replayed")),
    ] {
        let answer = world.send(&request).await;
        table.row(name, world.judge(answer, expect).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_at_once_one_is_admitted() {
    let world = World::start().await;
    let token = world.bound();
    let nonce = world.nonce().await;
    let proof = world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
    let request = get("/orders/1", &token, &proof);
    let before = world.upstream.count();
    let mut connections = Vec::new();
    for _ in 0..20 {
        connections.push(world.client.connect_h2(None).await.expect("a connection"));
    }
    let sends: Vec<_> = (0..1000)
        .map(|index| {
            let (connection, request) = (connections[index % 20].clone(), request.clone());
            tokio::spawn(async move { connection.send(&request).await })
        })
        .collect();
    let mut statuses = std::collections::BTreeMap::<String, usize>::new();
    for send in sends {
        let outcome = match send.await.expect("a task") {
            Ok(answer) => format!("{} {}", answer.status(), answer.json()["error"]),
            Err(fault) => fault,
        };
        *statuses.entry(outcome).or_default() += 1;
    }
    let one = statuses.remove("200 null");
    let others = statuses.remove("401 \"invalid_dpop_proof\"");
    assert_eq!((one, others), (Some(1), Some(999)), "the rest: {statuses:?}");
    assert_eq!(world.upstream.count() - before, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_with_nonces() {
    let mut world = World::start().await;
    let token = world.bound();
    let nonce = world.nonce().await;
    let used = world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
    let unused = world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
    let mut table = Table::default();
    let answer = world.send(&get("/orders/1", &token, &used)).await;
    table.row("ok/before", world.judge(answer, Admitted("dpop")).await);
    world.restart().await;
    for (name, proof) in [("fail/used before", used), ("fail/made before", unused)] {
        let answer = world.send(&get("/orders/1", &token, &proof)).await;
        table.row(name, world.judge(answer, Refused("nonce_unknown")).await);
    }
    let nonce = world.nonce().await;
    let proof = world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
    let answer = world.send(&get("/orders/1", &token, &proof)).await;
    table.row("ok/with a fresh nonce", world.judge(answer, Admitted("dpop")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_without_nonces() {
    let mut world = World::start_with(nonces_off).await;
    next_second().await;
    let token = world.bound();
    let make = |world: &World| world.proof("GET", "/orders/1").token(&token).sign();
    let (used, unused) = (make(&world), make(&world));
    let mut table = Table::default();
    let answer = world.send(&get("/orders/1", &token, &used)).await;
    table.row("ok/before", world.judge(answer, Admitted("dpop")).await);
    let answer = world.send(&get("/orders/1", &token, &used)).await;
    table.row("fail/again", world.judge(answer, Refused("proof_replayed")).await);
    world.restart().await;
    for (name, proof) in [("fail/used before", used), ("fail/made before", unused)] {
        let answer = world.send(&get("/orders/1", &token, &proof)).await;
        table.row(name, world.judge(answer, Refused("proof_before_start")).await);
    }
    next_second().await;
    let answer = world.send(&get("/orders/1", &token, &make(&world))).await;
    table.row("ok/made after", world.judge(answer, Admitted("dpop")).await);
    let request = get("/orders/1", &token, "").without("DPoP");
    let answer = world.send(&request).await;
    table.row("fail/none", world.judge(answer, Refused("proof_missing")).await);
}

/// Full of live proofs: new ones are refused, and none that lives is forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn at_capacity_nothing_is_forgotten() {
    let world = World::start_with(|config| {
        config["edge"]["limits"] = json!({"replayEntries": 1000});
    })
    .await;
    let token = world.bound();
    let nonce = world.nonce().await;
    let fresh = || -> Request {
        let proof = world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
        get("/orders/1", &token, &proof)
    };
    let connection = world.client.connect_h2(None).await.expect("a connection");
    let mut admitted = Vec::new();
    let mut full = None;
    for _ in 0..1500 {
        let request = fresh();
        let answer = connection.send(&request).await.expect("an answer");
        if answer.status() != 200 {
            full = Some(answer);
            break;
        }
        admitted.push(request);
    }
    let mut table = Table::default();
    let full = full.expect("a limit of 1000 was reached within 1500");
    table.row("fail/full", world.judge(Ok(full), Refused("replay_capacity")).await);
    for request in admitted.iter().step_by(50) {
        let answer = connection.send(request).await;
        table.row("fail/used", world.judge(answer, Refused("proof_replayed")).await);
    }
}
