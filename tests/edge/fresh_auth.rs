//! Step-up (RFC 9470) on resource routes, and routes that answer whether an authentication is fresh.

use serde_json::{Value, json};

use super::support::client::{Message, Outcome, Request};
use super::support::token::Token;
use super::support::world::{Expect, World, bearer, expect_eq, get};
use super::support::{Table, now};

use Expect::{Admitted, Refused};

const STALE: Expect = Refused("authentication_stale");
const WEAK: Expect = Refused("acr_insufficient");

/// Routes `/NAME/*` with these members beside those of a resource.
fn add(config: &mut Value, name: &str, members: Value) {
    let mut route = json!({"name": name, "hosts": ["api.example"], "path": format!("/{name}/*"),
                           "upstream": "echo"});
    for (key, value) in members.as_object().expect("an object") {
        route[key] = value.clone();
    }
    if route["role"] == "freshAuth" && route["answer"] != "upstream" {
        route.as_object_mut().expect("an object").remove("upstream");
    }
    config["routes"].as_array_mut().expect("routes").push(route);
}

async fn world() -> World {
    World::start_with(|config| {
        add(config, "aged", json!({"maxAge": "5m"}));
        add(config, "classed", json!({"acrValues": ["phr", "urn:mfa"]}));
        add(config, "both", json!({"maxAge": "5m", "acrValues": ["phr"], "scopes": ["pay"]}));
        let watched = json!({"maxAge": "5m", "acrValues": ["phr"], "mode": "observe",
                             "overrides": true});
        add(config, "watched", watched);
        let fresh = json!({"role": "freshAuth", "maxAge": "5m", "require": "dpop",
                           "cors": {"allowedOrigins": ["https://app.example"]}});
        add(config, "fresh", fresh);
        add(
            config,
            "fresh-classed",
            json!({"role": "freshAuth", "maxAge": "5m",
                                             "acrValues": ["phr"]}),
        );
        let forwarded = json!({"role": "freshAuth", "maxAge": "5m", "answer": "upstream"});
        add(config, "forwarded", forwarded);
        let observed = json!({"role": "freshAuth", "maxAge": "5m", "mode": "observe",
                              "overrides": true});
        add(config, "fresh-watched", observed);
    })
    .await
}

/// Bound to the client's key, with an authentication that many seconds ago.
fn aged(world: &World, seconds: i64) -> Token {
    world.token().jkt(&world.key.jkt()).claim("auth_time", now() - seconds)
}

async fn sent(world: &World, method: &str, target: &str, token: &Token, nonce: &str) -> Outcome {
    let text = token.sign();
    let proof = world.proof(method, target).token(&text).nonce(nonce).sign();
    let mut request = get(target, &text, &proof);
    request.method = method.to_owned();
    world.send(&request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn resource_routes_hold_the_authentication() {
    let world = world().await;
    let nonce = world.nonce().await;
    let (fresh, old) = (|| aged(&world, 10), || aged(&world, 400));
    let none = || world.token().jkt(&world.key.jkt());
    let claim = Refused("token_claim");
    let mut table = Table::default();
    for (name, target, token, expect) in [
        ("ok/fresh", "/aged/1", fresh(), Admitted("dpop")),
        (
            "ok/a fraction of a second",
            "/aged/1",
            fresh().claim("auth_time", now() as f64 - 9.5),
            Admitted("dpop"),
        ),
        ("fail/stale", "/aged/1", old(), STALE),
        ("fail/missing", "/aged/1", none(), STALE),
        ("fail/in milliseconds", "/aged/1", none().claim("auth_time", now() * 1000), STALE),
        ("fail/a text", "/aged/1", none().claim("auth_time", now().to_string()), claim),
        ("fail/null", "/aged/1", none().claim("auth_time", Value::Null), claim),
        (
            "fail/a text where nothing is demanded",
            "/orders/1",
            none().claim("auth_time", "1"),
            claim,
        ),
        ("ok/stale where nothing is demanded", "/orders/1", old(), Admitted("dpop")),
        ("ok/class", "/classed/1", none().claim("acr", "urn:mfa"), Admitted("dpop")),
        ("fail/class", "/classed/1", fresh().claim("acr", "pwd"), WEAK),
        ("fail/no class", "/classed/1", fresh(), WEAK),
        ("fail/classes in a list", "/classed/1", none().claim("acr", json!(["phr"])), claim),
        (
            "fail/a list where nothing is demanded",
            "/orders/1",
            none().claim("acr", json!(["phr"])),
            claim,
        ),
        ("ok/both", "/both/1", fresh().claim("acr", "phr").claim("scope", "pay"), Admitted("dpop")),
        ("fail/both, stale", "/both/1", old().claim("acr", "phr").claim("scope", "pay"), STALE),
        ("fail/both, class", "/both/1", fresh().claim("scope", "pay"), WEAK),
        ("fail/scope first", "/both/1", old(), Refused("scope_missing")),
    ] {
        let answer = sent(&world, "GET", target, &token, &nonce).await;
        table.row(name, world.judge(answer, expect).await);
    }
}

/// RFC 9470 section 3: what is missing, on the scheme that was used.
#[tokio::test(flavor = "multi_thread")]
async fn the_challenge_says_what_is_needed() {
    let world = world().await;
    let nonce = world.nonce().await;
    let mut table = Table::default();
    for (target, parameters) in [
        ("/aged/1", "max_age=\"300\""),
        ("/classed/1", "acr_values=\"phr urn:mfa\""),
        ("/both/1", "max_age=\"300\", acr_values=\"phr\""),
    ] {
        let error = format!(
            "error=\"insufficient_user_authentication\", error_description=\"a more \
                             recent or another authentication of the user is needed here\", {parameters}"
        );
        let scoped = |token: Token| token.claim("scope", "pay");
        let answer = sent(&world, "GET", target, &scoped(aged(&world, 400)), &nonce).await;
        let challenges = answer.expect("an answer").all("www-authenticate").join(" | ");
        let expected = format!("DPoP {error}, algs=");
        table.row(target, expect_eq(&challenges, &challenges.starts_with(&expected), &true));

        let text = scoped(world.token().x5t(&world.pki.alice.x5t())).sign();
        let answer = world.send_as(&world.pki.alice, &bearer(target, &text)).await;
        let challenges = answer.expect("an answer").all("www-authenticate").join(" | ");
        let expected = format!("| Bearer {error}, resource_metadata=");
        table.row(target, expect_eq(&challenges, &challenges.contains(&expected), &true));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_uses_up_no_proof_and_no_mode_relaxes_it() {
    let world = world().await;
    let nonce = world.nonce().await;
    let mut table = Table::default();
    let (good, old) =
        (|| aged(&world, 0).claim("acr", "phr"), aged(&world, 400).claim("acr", "phr"));
    for (name, token, expect) in [
        ("ok/observe, proven", good(), Admitted("dpop")),
        ("fail/observe, stale", old.clone(), STALE),
        ("fail/observe, class", aged(&world, 0), WEAK),
    ] {
        let answer = sent(&world, "GET", "/watched/1", &token, &nonce).await;
        table.row(name, world.judge(answer, expect).await);
    }
    for (name, token, expect) in [
        ("ok/observe, without a proof", good(), Admitted("observe")),
        ("fail/observe, stale without a proof", old.clone(), STALE),
        ("fail/observe, class without a proof", aged(&world, 0), WEAK),
    ] {
        let request = get("/watched/1", &token.sign(), "").without("DPoP");
        table.row(name, world.judge(world.send(&request).await, expect).await);
    }

    // Refused for its token's age, the proof is as good as before.
    let text = old.sign();
    let proof = world.proof("GET", "/aged/1").token(&text).nonce(&nonce).sign();
    for _ in 0..2 {
        let answer = world.send(&get("/aged/1", &text, &proof)).await;
        table.row("fail/twice stale", world.judge(answer, STALE).await);
    }
    // One that is remembered grows old all the same.
    let brief = World::start_with(|config| add(config, "brief", json!({"maxAge": "8s"}))).await;
    let nonce = brief.nonce().await;
    let token = aged(&brief, 0);
    let answer = sent(&brief, "GET", "/brief/1", &token, &nonce).await;
    table.row("ok/in time", brief.judge(answer, Admitted("dpop")).await);
    tokio::time::sleep(std::time::Duration::from_millis(8500)).await;
    let answer = sent(&brief, "GET", "/brief/1", &token, &nonce).await;
    table.row("fail/remembered", brief.judge(answer, STALE).await);
}

fn told(answer: &Message, expected: &Value) -> Result<(), String> {
    expect_eq("status", &answer.status(), &200)?;
    expect_eq("cache-control", &answer.one("cache-control"), &Some("no-store"))?;
    expect_eq("content-type", &answer.one("content-type"), &Some("application/json"))?;
    let mut body = answer.json();
    let id = body.as_object_mut().and_then(|body| body.remove("decisionId")).unwrap_or_default();
    expect_eq("id", &answer.one("x-request-id"), &id.as_str())?;
    expect_eq("body", &body, expected)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_edge_answers_whether_it_is_fresh() {
    let world = world().await;
    let nonce = world.nonce().await;
    let mut table = Table::default();
    let token = aged(&world, 10);
    let auth_time = token.claims["auth_time"].clone();
    let body = json!({"fresh": true, "auth_time": auth_time, "max_age": 300, "result": "dpop"});
    for method in ["GET", "POST"] {
        let answer = sent(&world, method, "/fresh/1", &token, &nonce).await.expect("an answer");
        table.row(method, told(&answer, &body));
        let record = world.process.record(|record| {
            record["decision_id"] == answer.json()["decisionId"] && record["result"] == "ok"
        });
        let record = record.await.unwrap_or_default();
        table.row("record", expect_eq("role", &record["role"], &json!("freshAuth")));
    }
    let answer = sent(&world, "HEAD", "/fresh/1", &token, &nonce).await.expect("an answer");
    let found = (answer.status(), answer.body.len());
    table.row("HEAD", expect_eq("status and length", &found, &(200, 0)));
    let classed = token.clone().claim("acr", "phr");
    let answer = sent(&world, "GET", "/fresh-classed/1", &classed, &nonce).await;
    let body = json!({"fresh": true, "auth_time": auth_time, "max_age": 300, "acr": "phr",
                      "result": "dpop"});
    table.row("acr", told(&answer.expect("an answer"), &body));
    // Whoever shows it has not proven anything.
    let request = get("/fresh-watched/1", &token.sign(), "").without("DPoP");
    let answer = world.send(&request).await.expect("an answer");
    table.row("observe", expect_eq("result", &answer.json()["result"], &json!("observe")));
    table.row("observe", expect_eq("nonce", &answer.one("dpop-nonce").is_some(), &true));

    let counted = world
        .metric_once("authority_dpop_result_total", &["role=\"freshAuth\"", "result=\"ok\""], 4.0)
        .await;
    table.row("metric", expect_eq("ok", &counted, &4.0));
    table.row("upstream", expect_eq("saw", &world.upstream.count(), &0));
}

#[tokio::test(flavor = "multi_thread")]
async fn fresh_auth_routes_refuse_as_resources_do() {
    let world = world().await;
    let nonce = world.nonce().await;
    let mut table = Table::default();
    let text = aged(&world, 10).sign();
    let proof = |target: &str| world.proof("GET", target).token(&text).nonce(&nonce);
    let other = super::support::keys::Key::new("ES256");
    let stolen = |target: &str| {
        let url = format!("https://api.example{target}");
        super::support::proof::Proof::new(&other, "GET", &url).token(&text).nonce(&nonce).sign()
    };
    for target in ["/fresh/1", "/forwarded/1"] {
        let used = proof(target).sign();
        let admitted = world.send(&get(target, &text, &used)).await.expect("an answer");
        table.row(target, expect_eq("status", &admitted.status(), &200));
        let in_query = format!("{target}?access_token={text}");
        for (name, request, expect) in [
            ("fail/replay", get(target, &text, &used), Refused("proof_replayed")),
            ("fail/another key", get(target, &text, &stolen(target)), Refused("key_mismatch")),
            ("fail/no proof", get(target, &text, "").without("DPoP"), Refused("proof_missing")),
            (
                "fail/no nonce",
                get(target, &text, &proof(target).without("nonce").sign()),
                Refused("nonce_absent"),
            ),
            ("fail/downgrade", bearer(target, &text), Refused("bound_token_as_bearer")),
            ("fail/none", Request::new("GET", target), Refused("token_missing")),
            (
                "fail/in the query",
                get(&in_query, &text, &stolen(target)),
                Refused("token_in_query"),
            ),
            ("fail/method", Request::new("PUT", target), Refused("method_not_allowed")),
        ] {
            let name = format!("{name} at {target}");
            table.row(&name, world.judge(world.send(&request).await, expect).await);
        }
        for (name, token, expect) in [
            ("fail/stale", aged(&world, 400), STALE),
            ("fail/missing", world.token().jkt(&world.key.jkt()), STALE),
            ("fail/expired", aged(&world, 10).claim("exp", now() - 100), Refused("token_expired")),
        ] {
            let answer = sent(&world, "GET", target, &token, &nonce).await;
            table.row(name, world.judge(answer, expect).await);
        }
    }
    let bound = world.token().x5t(&world.pki.alice.x5t()).claim("auth_time", now()).sign();
    let answer = world.send_as(&world.pki.alice, &bearer("/fresh/1", &bound)).await;
    table.row("fail/demand", world.judge(answer, Refused("binding_too_weak")).await);
    let answer = world.send_as(&world.pki.alice, &bearer("/forwarded/1", &bound)).await;
    table.row("ok/certificate", world.judge(answer, Admitted("mtls")).await);
    let answer = world.send_as(&world.pki.bob, &bearer("/forwarded/1", &bound)).await;
    table.row("fail/bob", world.judge(answer, Refused("thumbprint-mismatch")).await);

    // A page asks beforehand, and can read what it is told.
    let asked = Request::new("OPTIONS", "/fresh/1")
        .field("Origin", "https://app.example")
        .field("Access-Control-Request-Method", "POST")
        .field("Access-Control-Request-Headers", "authorization,dpop");
    let answer = world.send(&asked).await.expect("an answer");
    let allowed = answer.one("access-control-allow-headers");
    table.row("preflight", expect_eq("fields", &allowed, &Some("authorization, dpop")));
    let request = get("/fresh/1", &text, &proof("/fresh/1").sign());
    let answer = world.send(&request.field("Origin", "https://app.example")).await;
    let answer = answer.expect("an answer");
    let origin = answer.one("access-control-allow-origin");
    table.row("page", expect_eq("origin", &origin, &Some("https://app.example")));
}
