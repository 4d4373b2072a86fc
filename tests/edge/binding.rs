//! `cnf` × scheme × proof × certificate.

use serde_json::json;

use super::support::Table;
use super::support::client::{Outcome, Request};
use super::support::keys::Key;
use super::support::pki::Identity;
use super::support::proof::Proof;
use super::support::token::Token;
use super::support::world::{Expect, World, bearer, expect_eq, get};

use Expect::{Admitted, Refused};

/// What a token is bound to.
#[derive(Clone, Copy)]
enum Cnf {
    Nothing,
    Key,
    Alice,
    KeyAndAlice,
}
use Cnf::{Alice, KeyAndAlice, Nothing};

/// What the sender shows.
#[derive(Clone, Copy)]
enum Scheme {
    Bearer,
    BearerWithProof,
    Dpop,
    DpopWithoutProof,
    DpopByAnotherKey,
}
use Scheme::{Bearer, BearerWithProof, Dpop, DpopByAnotherKey, DpopWithoutProof};

fn token(world: &World, cnf: Cnf) -> Token {
    match cnf {
        Nothing => world.token(),
        Cnf::Key => world.token().jkt(&world.key.jkt()),
        Alice => world.token().x5t(&world.pki.alice.x5t()),
        KeyAndAlice => world.token().jkt(&world.key.jkt()).x5t(&world.pki.alice.x5t()),
    }
}

fn request(world: &World, token: &str, scheme: Scheme, nonce: &str) -> Request {
    let proof = world.proof("GET", "/orders/1").token(token).nonce(nonce).sign();
    match scheme {
        Bearer => bearer("/orders/1", token),
        BearerWithProof => bearer("/orders/1", token).field("DPoP", proof),
        Dpop => get("/orders/1", token, &proof),
        DpopWithoutProof => get("/orders/1", token, "").without("DPoP"),
        DpopByAnotherKey => {
            let url = "https://api.example/orders/1";
            let other = Proof::new(&Key::new("ES256"), "GET", url).token(token).nonce(nonce);
            get("/orders/1", token, &other.sign())
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_token_is_bound_to_must_be_shown() {
    let world = World::start().await;
    let nonce = world.nonce().await;
    let (alice, bob) = (Some(&world.pki.alice), Some(&world.pki.bob));
    let none: Option<&Identity> = None;
    let downgrade = Refused("bound_token_as_bearer");
    let unbound = Refused("unbound_token_as_dpop");
    let (missing, mismatch) = (Refused("missing-certificate"), Refused("thumbprint-mismatch"));
    let mut table = Table::default();
    for (name, cnf, scheme, who, expect) in [
        ("ok/key", Cnf::Key, Dpop, none, Admitted("dpop")),
        ("ok/key, a certificate beside", Cnf::Key, Dpop, alice, Admitted("dpop")),
        ("ok/certificate", Alice, Bearer, alice, Admitted("mtls")),
        ("ok/both", KeyAndAlice, Dpop, alice, Admitted("dpop+mtls")),
        ("fail/key as Bearer", Cnf::Key, Bearer, none, downgrade),
        ("fail/key as Bearer, proof beside", Cnf::Key, BearerWithProof, none, downgrade),
        ("fail/key as Bearer, certificate", Cnf::Key, Bearer, alice, downgrade),
        ("fail/key, no proof", Cnf::Key, DpopWithoutProof, none, Refused("proof_missing")),
        ("fail/key, another's", Cnf::Key, DpopByAnotherKey, none, Refused("key_mismatch")),
        ("fail/certificate, none shown", Alice, Bearer, none, missing),
        ("fail/certificate, another's", Alice, Bearer, bob, mismatch),
        ("fail/certificate as DPoP", Alice, Dpop, alice, unbound),
        ("fail/certificate, proof only", Alice, BearerWithProof, none, missing),
        ("fail/both, key only", KeyAndAlice, Dpop, none, missing),
        ("fail/both, another certificate", KeyAndAlice, Dpop, bob, mismatch),
        ("fail/both, certificate only", KeyAndAlice, Bearer, alice, downgrade),
        (
            "fail/both, certificate, no proof",
            KeyAndAlice,
            DpopWithoutProof,
            alice,
            Refused("proof_missing"),
        ),
        ("fail/both, another key", KeyAndAlice, DpopByAnotherKey, alice, Refused("key_mismatch")),
        ("fail/unbound as DPoP", Nothing, Dpop, none, unbound),
        ("fail/unbound as Bearer", Nothing, Bearer, none, Refused("binding_too_weak")),
        ("fail/unbound, certificate", Nothing, Bearer, alice, Refused("binding_too_weak")),
        ("fail/unbound, proof", Nothing, BearerWithProof, none, Refused("binding_too_weak")),
    ] {
        let text = token(&world, cnf).sign();
        let answer = world.client.send(who, &request(&world, &text, scheme, &nonce)).await;
        table.row(name, world.judge(answer, expect).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn confirmations_that_cannot_be_read() {
    let world = World::start().await;
    let nonce = world.nonce().await;
    let (unreadable, weak) = (Refused("token_cnf"), Refused("binding_too_weak"));
    let jkt = world.key.jkt();
    let mut table = Table::default();
    for (name, cnf, expect) in [
        ("fail/cnf text", json!("jkt"), unreadable),
        ("fail/cnf null", json!(null), unreadable),
        ("fail/cnf list", json!([{"jkt": jkt}]), unreadable),
        ("fail/jkt number", json!({"jkt": 1}), unreadable),
        ("fail/jkt null", json!({"jkt": null}), unreadable),
        ("fail/jkt list", json!({"jkt": [jkt]}), unreadable),
        ("fail/jkt empty", json!({"jkt": ""}), unreadable),
        ("fail/jkt short", json!({"jkt": "AAAA"}), unreadable),
        ("fail/jkt padded", json!({"jkt": format!("{jkt}=")}), unreadable),
        ("fail/x5t null", json!({"jkt": jkt, "x5t#S256": null}), unreadable),
        ("fail/x5t number", json!({"x5t#S256": 1}), unreadable),
        ("fail/nothing in it", json!({}), weak),
        ("fail/a kind that is not known", json!({"kid": "k"}), weak),
        ("fail/jwk alone", json!({"jwk": world.key.jwk}), weak),
        ("fail/another case", json!({"JKT": jkt}), weak),
        ("fail/x5t of SHA-1", json!({"x5t": jkt}), weak),
    ] {
        let text = world.token().claim("cnf", cnf).sign();
        let scheme = if matches!(expect, Refused("token_cnf")) { Dpop } else { Bearer };
        let answer = world.send(&request(&world, &text, scheme, &nonce)).await;
        table.row(name, world.judge(answer, expect).await);
    }
}

/// Whether TLS let it through at all.
fn handshake(outcome: Outcome) -> Result<(), String> {
    match outcome {
        Ok(answer) => Err(format!("answered {}", answer.start)),
        Err(_) => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_do_not_verify_end_the_handshake() {
    let world = World::start().await;
    let request = Request::new("GET", "/public/1");
    let mut table = Table::default();
    for (name, who) in
        [("fail/of a stranger", &world.pki.stranger), ("fail/expired", &world.pki.expired)]
    {
        table.row(name, handshake(world.send_as(who, &request).await));
    }
    let answer = world.send(&request).await;
    table.row("ok/none", world.judge(answer, Expect::Public).await);
    table.row("upstream", expect_eq("requests", &world.upstream.count(), &1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_requires_certificates() {
    let world = World::start_with(|config| {
        config["edge"]["listeners"][0]["tls"]["clientCertificates"] = json!("require");
    })
    .await;
    let text = token(&world, Alice).sign();
    let mut table = Table::default();
    table.row("fail/none", handshake(world.send(&bearer("/orders/1", &text)).await));
    let stranger = world.send_as(&world.pki.stranger, &bearer("/orders/1", &text)).await;
    table.row("fail/of a stranger", handshake(stranger));
    let answer = world.send_as(&world.pki.alice, &bearer("/orders/1", &text)).await;
    table.row("ok/alice", world.judge(answer, Admitted("mtls")).await);
    let answer = world.send_as(&world.pki.bob, &bearer("/orders/1", &text)).await;
    table.row("fail/bob", world.judge(answer, Refused("thumbprint-mismatch")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_asks_for_no_certificates() {
    let world = World::start_with(|config| {
        let tls = config["edge"]["listeners"][0]["tls"].as_object_mut().expect("tls");
        tls.insert("clientCertificates".to_owned(), json!("off"));
        tls.remove("clientAuthorities");
    })
    .await;
    let nonce = world.nonce().await;
    let mut table = Table::default();
    let text = token(&world, Alice).sign();
    let answer = world.send_as(&world.pki.alice, &bearer("/orders/1", &text)).await;
    table.row("fail/certificate", world.judge(answer, Refused("missing-certificate")).await);
    let text = token(&world, Cnf::Key).sign();
    let answer = world.send(&request(&world, &text, Dpop, &nonce)).await;
    table.row("ok/key", world.judge(answer, Admitted("dpop")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_of_binding_that_are_switched_off() {
    let world = World::start_with(|config| {
        config["security"]["senderConstraints"]["mtls"] = json!({"enabled": false});
    })
    .await;
    let nonce = world.nonce().await;
    let mut table = Table::default();
    for (name, cnf, scheme, expect) in [
        ("ok/key", Cnf::Key, Dpop, Admitted("dpop")),
        ("fail/certificate", Alice, Bearer, Refused("mtls_disabled")),
        ("fail/both", KeyAndAlice, Dpop, Refused("mtls_disabled")),
    ] {
        let text = token(&world, cnf).sign();
        let request = request(&world, &text, scheme, &nonce);
        let answer = world.send_as(&world.pki.alice, &request).await;
        table.row(name, world.judge(answer, expect).await);
    }
    let world = World::start_with(|config| {
        config["security"]["senderConstraints"]["dpop"] = json!({"enabled": false});
    })
    .await;
    for (name, cnf, scheme, expect) in [
        ("ok/certificate alone", Alice, Bearer, Admitted("mtls")),
        ("fail/key", Cnf::Key, Dpop, Refused("dpop_disabled")),
        ("fail/both", KeyAndAlice, Dpop, Refused("dpop_disabled")),
    ] {
        let text = token(&world, cnf).sign();
        let request = request(&world, &text, scheme, "");
        let answer = world.send_as(&world.pki.alice, &request).await;
        table.row(name, world.judge(answer, expect).await);
    }
}
