//! Demands of default, tenant, audience and route; `observe`, `allowUnbound`, overrides.

use serde_json::{Value, json};

use super::support::Table;
use super::support::client::Request;
use super::support::token::{AUDIENCE, Token};
use super::support::world::{Expect, World, bearer, expect_eq, get};

use Expect::{Admitted, Refused};

/// Adds a resource route at `/name/*` with these members.
fn add_route(config: &mut Value, name: &str, members: Value) {
    let mut route = config["routes"][0].clone();
    route["name"] = json!(name);
    route["path"] = json!(format!("/{name}/*"));
    for (key, value) in members.as_object().expect("an object") {
        route[key] = value.clone();
    }
    config["routes"].as_array_mut().expect("routes").push(route);
}

/// A good request for `token`, whatever it is bound to, with alice's certificate.
async fn send(
    world: &World,
    target: &str,
    token: &Token,
    nonce: &str,
) -> super::support::client::Outcome {
    let text = token.sign();
    let keyed = token.claims.get("cnf").is_some_and(|cnf| cnf.get("jkt").is_some());
    let request = if keyed {
        let proof = world.proof("GET", target).token(&text).nonce(nonce).sign();
        get(target, &text, &proof)
    } else {
        bearer(target, &text)
    };
    world.send_as(&world.pki.alice, &request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn demands_add_up() {
    let world = World::start_with(|config| {
        for demand in ["dpop", "mtls", "both"] {
            add_route(config, demand, json!({"require": demand}));
        }
        add_route(config, "weaker", json!({"require": "none", "allowUnbound": true}));
        add_route(
            config,
            "overridden",
            json!({
                "require": "any", "overrides": true,
            }),
        );
        config["security"]["senderConstraints"]["mtls"] =
            json!({"enforceForAudiences": ["signer"]});
        config["tenancy"] = json!({"claim": "tenant", "unknown": "refuse"});
        config["tenants"] = json!({
            "plain": {}, "certified": {"require": "mtls"}, "strict": {"require": "both"},
        });
    })
    .await;
    let nonce = world.nonce().await;
    let plain = || world.token().claim("tenant", "plain");
    let key = || plain().jkt(&world.key.jkt());
    let certificate = || plain().x5t(&world.pki.alice.x5t());
    let both = || key().x5t(&world.pki.alice.x5t());
    let signer = |token: Token| token.claim("aud", json!([AUDIENCE, "signer"]));
    let of = |tenant: &str, token: Token| token.claim("tenant", tenant);
    let weak = Refused("binding_too_weak");
    let mut table = Table::default();
    for (name, target, token, expect) in [
        ("ok/any by key", "/orders/1", key(), Admitted("dpop")),
        ("ok/any by certificate", "/orders/1", certificate(), Admitted("mtls")),
        ("fail/any by nothing", "/orders/1", plain(), weak),
        ("ok/dpop by key", "/dpop/1", key(), Admitted("dpop")),
        ("ok/dpop by both", "/dpop/1", both(), Admitted("dpop+mtls")),
        ("fail/dpop by certificate", "/dpop/1", certificate(), weak),
        ("ok/mtls by certificate", "/mtls/1", certificate(), Admitted("mtls")),
        ("fail/mtls by key", "/mtls/1", key(), weak),
        ("ok/both by both", "/both/1", both(), Admitted("dpop+mtls")),
        ("fail/both by key", "/both/1", key(), weak),
        ("fail/both by certificate", "/both/1", certificate(), weak),
        ("ok/audience by certificate", "/orders/1", signer(certificate()), Admitted("mtls")),
        ("fail/audience by key", "/orders/1", signer(key()), weak),
        ("fail/audience and route by certificate", "/dpop/1", signer(certificate()), weak),
        ("ok/audience and route by both", "/dpop/1", signer(both()), Admitted("dpop+mtls")),
        ("ok/tenant plain", "/orders/1", of("plain", key()), Admitted("dpop")),
        ("fail/tenant certified by key", "/orders/1", of("certified", key()), weak),
        ("ok/tenant certified", "/orders/1", of("certified", certificate()), Admitted("mtls")),
        ("fail/tenant and route", "/dpop/1", of("certified", certificate()), weak),
        ("ok/tenant and route by both", "/dpop/1", of("certified", both()), Admitted("dpop+mtls")),
        ("fail/tenant strict by key", "/orders/1", of("strict", key()), weak),
        ("ok/route overrides tenant", "/overridden/1", of("strict", key()), Admitted("dpop")),
        ("fail/tenant unknown", "/orders/1", of("nobody", key()), Refused("tenant_unknown")),
        ("fail/tenant number", "/orders/1", key().claim("tenant", 1), Refused("token_claim")),
        ("ok/unbound where it may", "/weaker/1", plain(), Admitted("unbound")),
        ("ok/bound where it need not", "/weaker/1", key(), Admitted("dpop")),
    ] {
        let answer = send(&world, target, &token, &nonce).await;
        table.row(name, world.judge(answer, expect).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unbound_tokens_where_they_are_allowed() {
    let world = World::start_with(|config| {
        add_route(config, "migrating", json!({"allowUnbound": true}));
    })
    .await;
    let nonce = world.nonce().await;
    let target = "/migrating/1";
    let (unbound, bound) = (world.token().sign(), world.bound());
    let certified = world.token().x5t(&world.pki.alice.x5t()).sign();
    let proof = |token: &str| world.proof("GET", target).token(token).nonce(&nonce).sign();
    let foreign = world.token().confirm("kid", "k").sign();
    let mut table = Table::default();
    for (name, request, expect) in [
        ("ok/unbound", bearer(target, &unbound), Admitted("unbound")),
        ("ok/bound", get(target, &bound, &proof(&bound)), Admitted("dpop")),
        (
            "fail/unbound as DPoP",
            get(target, &unbound, &proof(&unbound)),
            Refused("unbound_token_as_dpop"),
        ),
        ("fail/bound as Bearer", bearer(target, &bound), Refused("bound_token_as_bearer")),
        ("fail/no proof", get(target, &bound, "").without("DPoP"), Refused("proof_missing")),
        ("fail/no certificate", bearer(target, &certified), Refused("missing-certificate")),
        ("fail/bound to what nobody knows", bearer(target, &foreign), Refused("binding_too_weak")),
        ("fail/none", Request::new("GET", target), Refused("token_missing")),
    ] {
        let answer = world.send(&request).await;
        table.row(name, world.judge(answer, expect).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn audiences_scopes_and_algorithms_of_a_route() {
    let world = World::start_with(|config| {
        config["issuers"][0]["audiences"] = json!([AUDIENCE, "payments"]);
        add_route(config, "payments", json!({"audiences": ["payments"]}));
        add_route(config, "writing", json!({"scopes": ["orders.read", "orders.write"]}));
        add_route(config, "strong", json!({"allowedAlgorithms": ["ES384", "RS256"]}));
    })
    .await;
    let nonce = world.nonce().await;
    let key = || world.token().jkt(&world.key.jkt());
    let mut table = Table::default();
    for (name, target, token, expect) in [
        ("ok/audience", "/payments/1", key().claim("aud", "payments"), Admitted("dpop")),
        (
            "ok/one of two",
            "/payments/1",
            key().claim("aud", json!([AUDIENCE, "payments"])),
            Admitted("dpop"),
        ),
        ("fail/another audience", "/payments/1", key(), Refused("route_audience")),
        (
            "ok/scopes",
            "/writing/1",
            key().claim("scope", "a orders.write orders.read"),
            Admitted("dpop"),
        ),
        ("fail/one scope of two", "/writing/1", key(), Refused("scope_missing")),
        ("fail/no scope", "/writing/1", key().without("scope"), Refused("scope_missing")),
        (
            "fail/a longer scope",
            "/writing/1",
            key().claim("scope", "orders.read orders.writer"),
            Refused("scope_missing"),
        ),
        ("fail/algorithm", "/strong/1", key(), Refused("proof_alg")),
    ] {
        let answer = send(&world, target, &token, &nonce).await;
        table.row(name, world.judge(answer, expect).await);
    }
    for (algorithm, expect) in [("ES384", Admitted("dpop")), ("RS256", Refused("proof_alg"))] {
        let key = super::support::keys::Key::new(algorithm);
        let token = world.token().jkt(&key.jkt()).sign();
        let url = "https://api.example/strong/1";
        let proof = super::support::proof::Proof::new(&key, "GET", url).token(&token).nonce(&nonce);
        let answer = world.send(&get("/strong/1", &token, &proof.sign())).await;
        table.row(algorithm, world.judge(answer, expect).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_needs_a_nonce() {
    let world = World::start_with(|config| {
        config["issuers"][0]["audiences"] = json!([AUDIENCE, "careful"]);
        config["security"]["senderConstraints"]["dpop"]["nonce"]["requiredAudiences"] =
            json!(["careful"]);
        add_route(config, "careful", json!({"nonce": true}));
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let key = || world.token().jkt(&world.key.jkt());
    let careful = || key().claim("aud", json!(["careful", AUDIENCE]));
    let mut table = Table::default();
    for (name, target, token, expect) in [
        ("ok/no need", "/orders/1", key(), Admitted("dpop")),
        ("fail/audience", "/orders/1", careful(), Refused("nonce_absent")),
        ("fail/route", "/careful/1", key(), Refused("nonce_absent")),
    ] {
        let text = token.sign();
        let proof = world.proof("GET", target).token(&text).sign();
        let answer = world.send(&get(target, &text, &proof)).await;
        table.row(name, world.judge(answer, expect).await);
    }
    // One that is sent must hold, needed or not.
    let text = key().sign();
    let proof = world.proof("GET", "/orders/1").token(&text).nonce("made up").sign();
    let answer = world.send(&get("/orders/1", &text, &proof)).await;
    table.row("fail/not ours", world.judge(answer, Refused("nonce_unknown")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn observe_relaxes_the_sender_and_nothing_else() {
    let world = World::start_with(|config| {
        config["upstreams"]["echo"]["authorization"] = json!("bearer");
        config["upstreams"]["echo"]["clientCertificate"] = json!(true);
        add_route(
            config,
            "watched",
            json!({
                "mode": "observe", "overrides": true, "scopes": ["orders.read"],
            }),
        );
    })
    .await;
    let nonce = world.nonce().await;
    let target = "/watched/1";
    let (bound, unbound) = (world.bound(), world.token().sign());
    let certified = world.token().x5t(&world.pki.alice.x5t()).sign();
    let proof = || world.proof("GET", target).token(&bound).nonce(&nonce);
    let used = proof().sign();
    let observed = Admitted("observe");
    let expired = world.token().claim("exp", 1).jkt(&world.key.jkt()).sign();
    let scopeless = world.token().without("scope").jkt(&world.key.jkt()).sign();
    let mut table = Table::default();
    for (name, request, expect, reason) in [
        ("ok/good", get(target, &bound, &used), Admitted("dpop"), None),
        ("ok/replay", get(target, &bound, &used), observed, Some("proof_replayed")),
        ("ok/no proof", get(target, &bound, "").without("DPoP"), observed, Some("proof_missing")),
        ("ok/nonsense", get(target, &bound, "nonsense"), observed, Some("proof_malformed")),
        (
            "ok/no nonce",
            get(target, &bound, &proof().without("nonce").sign()),
            observed,
            Some("nonce_absent"),
        ),
        (
            "ok/another path",
            get(target, &bound, &proof().claim("htu", "https://x.example/").sign()),
            observed,
            Some("proof_htu"),
        ),
        ("ok/downgrade", bearer(target, &bound), observed, Some("bound_token_as_bearer")),
        ("ok/unbound", bearer(target, &unbound), observed, Some("binding_too_weak")),
        ("ok/no certificate", bearer(target, &certified), observed, Some("missing-certificate")),
        ("fail/expired", get(target, &expired, &used), Refused("token_expired"), None),
        ("fail/scope", get(target, &scopeless, "x"), Refused("scope_missing"), None),
        ("fail/none", Request::new("GET", target), Refused("token_missing"), None),
        ("fail/path", get("/watched/%2F", &bound, &used), Refused("path_invalid"), None),
    ] {
        let sent = request.clone().field("X-Holdfast-Subject", "evil").field("Client-Cert", "evil");
        let answer = world.send(&sent).await;
        table.row(name, world.judge(answer.clone(), expect).await);
        let (Some(reason), Ok(answer)) = (reason, answer) else { continue };
        table.row(name, untouched(&request, &answer.seen()));
        let id = answer.one("x-request-id").unwrap_or_default().to_owned();
        let wanted = |record: &Value| {
            record["decision_id"] == id.as_str() && record["event"] == "authority.dpop.request"
        };
        let record = world.process.record(wanted).await.unwrap_or_default();
        table.row(name, expect_eq("result", &record["result"], &json!("observe")));
        table.row(name, expect_eq("reason", &record["reason"], &json!(reason)));
    }
    let missing = get(target, &bound, "").without("DPoP");
    let answer = world.send(&missing).await.expect("an answer");
    table.row("nonce", expect_eq("DPoP-Nonce", &answer.one("dpop-nonce").is_some(), &true));
}

/// It went on exactly as received, with nothing said about the sender.
fn untouched(sent: &Request, seen: &super::support::client::Message) -> Result<(), String> {
    for (name, field) in [("authorization", "Authorization"), ("dpop", "DPoP")] {
        let sent: Vec<&str> = sent
            .fields
            .iter()
            .filter(|(name, _)| name == field)
            .map(|(_, value)| value.as_str())
            .collect();
        expect_eq(name, &seen.all(name), &sent)?;
    }
    let identity = seen.fields.iter().map(|(name, _)| name.as_str()).filter(|name| {
        (name.starts_with("x-holdfast-") && *name != "x-holdfast-result") || name.contains("cert")
    });
    expect_eq("identity", &identity.collect::<Vec<_>>(), &Vec::<&str>::new())
}
