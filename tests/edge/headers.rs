//! What goes upstream and what comes back.

use serde_json::{Value, json};

use super::support::Table;
use super::support::client::{Message, Request};
use super::support::scripted::{self, Scripted};
use super::support::world::{Expect, World, bearer, expect_eq, get};

use Expect::{Admitted, Public, Refused};

/// Every name that only the edge may say, and spellings that services read as the same.
const IDENTITY: [&str; 16] = [
    "X-Holdfast-Result",
    "X-Holdfast-Subject",
    "X-Holdfast-Client",
    "X-Holdfast-Tenant",
    "X-Holdfast-Cnf-Jkt",
    "X-Holdfast-Cnf-X5t",
    "X-Holdfast-Anything",
    "X_Holdfast_Subject",
    "x-holdfast_subject",
    "X_HOLDFAST-RESULT",
    "Client-Cert",
    "Client_Cert",
    "Client-Cert-Chain",
    "X-Forwarded-Client-Cert",
    "X-SSL-Client-Cert",
    "SSL-Client-Verify",
];
/// Names that are rewritten.
const FORWARDED: [&str; 9] = [
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X_Forwarded_For",
    "X_Forwarded_Host",
    "Forwarded",
    "X_SSL_Client_S_DN",
];

fn with_tenant(config: &mut Value) {
    config["tenants"] = json!({"acme": {}});
    config["issuers"][0]["tenant"] = json!("acme");
    config["upstreams"]["echo"]["clientCertificate"] = json!(true);
}

/// What an upstream must see of a request bound to key and certificate, whatever else was sent.
fn identity(world: &World, seen: &Message) -> Result<(), String> {
    let certificate = {
        use base64::Engine as _;
        let text =
            base64::engine::general_purpose::STANDARD.encode(&world.pki.alice.certificate_der);
        format!(":{text}:")
    };
    for (name, value) in [
        ("x-holdfast-result", "dpop+mtls"),
        ("x-holdfast-subject", "user-1"),
        ("x-holdfast-client", "client-1"),
        ("x-holdfast-tenant", "acme"),
        ("x-holdfast-cnf-jkt", &world.key.jkt()),
        ("x-holdfast-cnf-x5t", &world.pki.alice.x5t()),
        ("client-cert", &certificate),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "api.example"),
        ("host", "api.example"),
    ] {
        expect_eq(name, &seen.all(name), &[value])?;
    }
    let forged = seen.fields.iter().find(|(_, value)| value.contains("evil"));
    expect_eq("forged", &forged, &None::<&(String, String)>)
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_says_who_the_sender_is() {
    let world = World::start_with(with_tenant).await;
    let token = world.token().jkt(&world.key.jkt()).x5t(&world.pki.alice.x5t()).sign();
    let nonce = world.nonce().await;
    let good = || {
        let proof = world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
        get("/orders/1", &token, &proof)
    };
    let all: Vec<&str> = IDENTITY.into_iter().chain(FORWARDED).collect();
    let forge = |request: Request, name: &str| request.field(name, "evil");
    let mut rows = vec![("ok/nothing forged".to_owned(), good())];
    for name in &all {
        rows.push((format!("ok/{name}"), forge(good(), name)));
        rows.push((format!("ok/{name} twice"), forge(forge(good(), name), name)));
        rows.push((format!("ok/{name} nominated"), good().field("Connection", *name)));
        let both = forge(good(), name).field("Connection", format!("close, {name}"));
        rows.push((format!("ok/{name} sent and nominated"), both));
    }
    let every = all.iter().fold(good(), |request, name| forge(request, name));
    rows.push(("ok/all at once".to_owned(), every.field("Connection", all.join(", "))));
    let hops = "Host, Authorization, X-Request-Id, X-Forwarded-For";
    rows.push(("ok/what every request has".to_owned(), good().field("Connection", hops)));
    let (total, mut refused) = (rows.len(), 0);
    let mut table = Table::default();
    for (name, request) in rows {
        let answer = world.send_as(&world.pki.alice, &request).await;
        // A hop-by-hop field that cannot be one may be refused instead.
        let nominated = request.fields.iter().any(|(field, _)| field == "Connection");
        if nominated && answer.as_ref().is_ok_and(|answer| answer.status() == 400) {
            refused += 1;
            continue;
        }
        let outcome = world.judge(answer.clone(), Admitted("dpop+mtls")).await;
        let outcome = outcome.and_then(|()| identity(&world, &answer?.seen()));
        table.row(&name, outcome);
    }
    table.row("upstream", expect_eq("requests", &world.upstream.count(), &(total - refused)));
    table.row("most pass", expect_eq("refused", &(refused <= 8), &true));
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_by_http_2_or_in_trailers() {
    let world = World::start_with(with_tenant).await;
    let token = world.token().jkt(&world.key.jkt()).x5t(&world.pki.alice.x5t()).sign();
    let nonce = world.nonce().await;
    let mut table = Table::default();
    let proof = world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
    let mut request = get("/orders/1", &token, &proof);
    for name in IDENTITY.into_iter().chain(FORWARDED) {
        request = request.field(name, "evil");
    }
    let connection = world.client.connect_h2(Some(&world.pki.alice)).await.expect("h2");
    let answer = connection.send(&request).await;
    let outcome = world.judge(answer.clone(), Admitted("dpop+mtls")).await;
    table.row("ok/h2", outcome.and_then(|()| identity(&world, &answer?.seen())));

    let proof = world.proof("POST", "/orders/1").token(&token).nonce(&nonce).sign();
    let mut request = get("/orders/1", &token, &proof);
    request.method = "POST".to_owned();
    request = request.field("Transfer-Encoding", "chunked");
    request = request.field("Trailer", "X-Holdfast-Subject, Client-Cert");
    request.body =
        b"4\r\nbody\r\n0\r\nX-Holdfast-Subject: evil\r\nClient-Cert: evil\r\n\r\n".to_vec();
    let answer = world.send_as(&world.pki.alice, &request).await;
    // A body with trailers may be refused; what passes has none of them.
    let passed = answer.as_ref().is_ok_and(|answer| answer.status() == 200);
    if passed {
        table.row("ok/trailers", identity(&world, &answer.expect("an answer").seen()));
        let body = String::from_utf8_lossy(&world.upstream.last_body()).into_owned();
        table.row("ok/trailers", expect_eq("body", &body.as_str(), &"body"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_upstream() {
    let world = World::start_with(|config| {
        let servers = config["upstreams"]["echo"]["servers"].clone();
        for policy in ["forward", "bearer", "strip"] {
            config["upstreams"][policy] = json!({"servers": servers, "authorization": policy});
            let mut route = config["routes"][0].clone();
            route["name"] = json!(policy);
            route["path"] = json!(format!("/{policy}/*"));
            route["upstream"] = json!(policy);
            config["routes"].as_array_mut().expect("routes").push(route);
        }
        let mut passing = config["routes"][1].clone();
        passing["name"] = json!("passing");
        passing["path"] = json!("/passing/*");
        passing["passCredentials"] = json!(true);
        config["routes"].as_array_mut().expect("routes").push(passing);
        let mut observed = config["routes"][0].clone();
        observed["name"] = json!("observed");
        observed["path"] = json!("/observed/*");
        observed["mode"] = json!("observe");
        observed["overrides"] = json!(true);
        config["routes"].as_array_mut().expect("routes").push(observed);
    })
    .await;
    let token = world.bound();
    let certified = world.token().x5t(&world.pki.alice.x5t()).sign();
    let nonce = world.nonce().await;
    let (dpop, as_bearer) = (format!("DPoP {token}"), format!("Bearer {token}"));
    let plain = format!("Bearer {certified}");
    let mut table = Table::default();
    for (target, authorization, proofs) in [
        ("/forward/1", vec![dpop.as_str()], 1),
        ("/bearer/1", vec![as_bearer.as_str()], 0),
        ("/strip/1", vec![], 0),
        ("/public/1", vec![], 0),
        ("/passing/1", vec![dpop.as_str()], 1),
    ] {
        let proof = world.proof("GET", target).token(&token).nonce(&nonce).sign();
        let request = get(target, &token, &proof).field("Proxy-Authorization", "Basic eDp5");
        let answer = world.send(&request).await;
        let open = target.starts_with("/p");
        let expect = if open { Public } else { Admitted("dpop") };
        table.row(target, world.judge(answer.clone(), expect).await);
        let seen = answer.expect("an answer").seen();
        table.row(target, expect_eq("authorization", &seen.all("authorization"), &authorization));
        table.row(target, expect_eq("dpop", &seen.all("dpop").len(), &proofs));
        let found = seen.all("proxy-authorization").len();
        let passed = usize::from(target == "/passing/1");
        table.row(target, expect_eq("proxy-authorization", &found, &passed));
    }
    // What was not proven goes on exactly as received.
    for (target, nominated, expect, passed) in [
        ("/observed/1", "close", Admitted("observe"), 1),
        ("/observed/2", "close, proxy-AUTHORIZATION", Admitted("observe"), 0),
        ("/passing/2", "Proxy-Authorization", Public, 0),
    ] {
        let request = get(target, &token, "nonsense")
            .field("Proxy-Authorization", "Basic eDp5")
            .field("Connection", nominated);
        let answer = world.send(&request).await;
        table.row(target, world.judge(answer.clone(), expect).await);
        let seen = answer.expect("an answer").seen();
        table.row(target, expect_eq("authorization", &seen.all("authorization"), &[&dpop]));
        table.row(target, expect_eq("dpop", &seen.all("dpop"), &["nonsense"]));
        let found = seen.all("proxy-authorization").len();
        table.row(target, expect_eq("proxy-authorization", &found, &passed));
    }
    for (target, authorization) in [
        ("/forward/1", vec![plain.as_str()]),
        ("/bearer/1", vec![plain.as_str()]),
        ("/strip/1", vec![]),
    ] {
        let answer = world.send_as(&world.pki.alice, &bearer(target, &certified)).await;
        table.row(target, world.judge(answer.clone(), Admitted("mtls")).await);
        let seen = answer.expect("an answer").seen();
        table.row(target, expect_eq("authorization", &seen.all("authorization"), &authorization));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_outside_visible_ascii_are_escaped() {
    let world = World::start().await;
    let certificate = world.pki.alice.x5t();
    let mut table = Table::default();
    for (subject, expect) in [
        ("jürgen müller", "j%C3%BCrgen%20m%C3%BCller"),
        ("a\r\nX-Holdfast-Tenant: evil", "a%0D%0AX-Holdfast-Tenant:%20evil"),
        ("a\u{0}b", "a%00b"),
        ("☃", "%E2%98%83"),
        ("https://as.example/u?a=1&b=2", "https://as.example/u?a=1&b=2"),
    ] {
        let token = world.token().claim("sub", subject).x5t(&certificate).sign();
        let answer = world.send_as(&world.pki.alice, &bearer("/orders/1", &token)).await;
        let outcome = world.judge(answer.clone(), Admitted("mtls")).await;
        table.row(
            subject,
            outcome.and_then(|()| {
                expect_eq("subject", &answer?.seen().all("x-holdfast-subject"), &[expect])
            }),
        );
    }
}

/// What an upstream says in the edge's name does not reach the client.
#[tokio::test(flavor = "multi_thread")]
async fn answers() {
    let world = World::start().await;
    let token = world.bound();
    let nonce = world.nonce().await;
    let proof = world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
    let request = get("/orders/1", &token, &proof)
        .field("X-Test-Answer", "DPoP-Nonce=of-the-upstream")
        .field("X-Test-Answer", "X-Request-Id=of-the-upstream")
        .field("X-Test-Answer", "X-Service=kept")
        .field("X-Request-Id", "of-the-client");
    let answer = world.send(&request).await.expect("an answer");
    let mut table = Table::default();
    table.row("status", expect_eq("status", &answer.status(), &200));
    let nonces = answer.all("dpop-nonce");
    table.row("nonce", expect_eq("of the upstream", &nonces.contains(&"of-the-upstream"), &false));
    table.row("nonce", expect_eq("one at most", &(nonces.len() < 2), &true));
    table.row("kept", expect_eq("x-service", &answer.all("x-service"), &["kept"]));
    let ids = answer.all("x-request-id");
    table.row(
        "id",
        expect_eq("one of ours", &(ids.len() == 1 && !ids[0].starts_with("of-")), &true),
    );
    let upstream = answer.seen();
    table.row("id", expect_eq("the same upstream", &upstream.all("x-request-id"), &ids));
}

/// Each challenge names what the client can do next.
#[tokio::test(flavor = "multi_thread")]
async fn challenges() {
    let world = World::start_with(|config| {
        for demand in ["dpop", "mtls"] {
            let mut route = config["routes"][0].clone();
            route["name"] = json!(demand);
            route["path"] = json!(format!("/{demand}/*"));
            route["require"] = json!(demand);
            config["routes"].as_array_mut().expect("routes").push(route);
        }
    })
    .await;
    let mut table = Table::default();
    for (target, dpop, bearer) in
        [("/orders/1", true, true), ("/dpop/1", true, false), ("/mtls/1", false, true)]
    {
        let answer = world.send(&Request::new("GET", target)).await;
        table.row(target, world.judge(answer.clone(), Refused("token_missing")).await);
        let answer = answer.expect("an answer");
        let challenges = answer.all("www-authenticate").join(", ");
        let found = (challenges.contains("DPoP algs=\""), challenges.contains("Bearer"));
        table.row(target, expect_eq("schemes", &found, &(dpop, bearer)));
        if dpop {
            let algorithms = "algs=\"ES256 ES384 EdDSA Ed25519 PS256\"";
            let all = challenges.contains(algorithms);
            table.row(target, expect_eq(&challenges, &all, &true));
        }
    }
}

/// They are those by which it knows who asks.
#[tokio::test(flavor = "multi_thread")]
async fn an_authorization_server_sees_its_clients_credentials() {
    let server = Scripted::start(|_| scripted::json(json!({"active": false}))).await;
    let roles = ["introspection", "revocation", "metadata"];
    let world = World::start_with(|config| {
        config["store"] = json!({"path": "holdfast.db"});
        config["upstreams"]["authority"] =
            json!({"servers": [format!("127.0.0.1:{}", server.port)]});
        let issuer = config["issuers"][0]["issuer"].clone();
        for role in roles {
            let route = json!({"name": role, "hosts": ["api.example"], "path": format!("/as/{role}"),
                               "role": role, "issuer": issuer, "upstream": "authority"});
            config["routes"].as_array_mut().expect("a list").push(route);
        }
    })
    .await;
    let mut table = Table::default();
    for role in roles {
        let method = if role == "metadata" { "GET" } else { "POST" };
        let mut request = Request::new(method, &format!("/as/{role}"))
            .field("Authorization", "Basic YTpi")
            .field("Content-Type", "application/x-www-form-urlencoded");
        if role != "metadata" {
            request = request.body(b"token=x");
        }
        let answer = world.send(&request).await;
        let status = answer.as_ref().map(Message::status);
        table.row(role, expect_eq("status", &status, &Ok(200)));
        let seen = server.last();
        table.row(role, expect_eq("seen", &seen.one("authorization"), &Some("Basic YTpi")));
    }
}
