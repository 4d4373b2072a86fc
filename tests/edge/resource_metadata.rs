//! Metadata of protected resources (RFC 9728): what the edge says of its routes, where, and when it
//! leaves the word to a route.

use serde_json::{Value, json};

use super::support::Table;
use super::support::client::{Message, Request};
use super::support::token::ISSUER;
use super::support::world::{Expect, World, bearer, expect_eq, get};

const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

fn route(name: &str, path: &str, members: &Value) -> Value {
    let mut route =
        json!({"name": name, "hosts": ["api.example"], "path": path, "upstream": "echo"});
    for (key, value) in members.as_object().expect("an object") {
        route[key] = value.clone();
    }
    route
}

async fn world() -> World {
    World::start_with(|config| {
        let dpop = json!({"require": "dpop", "methods": ["GET"], "scopes": ["read"],
                          "allowedAlgorithms": ["ES256", "EdDSA"]});
        let mut more = dpop.clone();
        more["methods"] = json!(["PUT"]);
        more["scopes"] = json!(["read", "write"]);
        more["allowedAlgorithms"] = json!(["ES256"]);
        let public = json!({"role": "public"});
        let fresh = json!({"name": "fresh", "hosts": ["api.example"], "path": "/fresh",
                           "role": "freshAuth", "maxAge": "5m"});
        config["routes"].as_array_mut().expect("routes").extend([
            route("dpop", "/dpop/*", &dpop),
            route("dpop-put", "/dpop", &more),
            route("rest", "/*", &json!({})),
            route("off", "/off/*", &json!({"resourceMetadata": false})),
            route("said", "/said/*", &json!({})),
            route("said-by", &format!("{WELL_KNOWN}/said"), &public),
            route("mapped", "/mapped/*", &json!({"origin": "https://outside.example"})),
            route("twin", "/twin/*", &json!({"methods": ["GET"], "require": "dpop"})),
            route(
                "twin-off",
                "/twin/*",
                &json!({"methods": ["PUT"], "resourceMetadata": false,
                                                  "scopes": ["untold"]}),
            ),
            fresh,
        ]);
    })
    .await
}

async fn asked(world: &World, path: &str) -> Message {
    let target = format!("{WELL_KNOWN}{path}");
    world.send(&Request::new("GET", &target)).await.expect("an answer")
}

fn document(resource: &str, more: &Value) -> Value {
    let mut document = json!({
        "resource": resource,
        "authorization_servers": [ISSUER],
        "bearer_methods_supported": ["header"],
        "tls_client_certificate_bound_access_tokens": true,
        "dpop_signing_alg_values_supported": ["ES256", "ES384", "EdDSA", "Ed25519", "PS256"],
    });
    for (key, value) in more.as_object().expect("an object") {
        document[key] = value.clone();
    }
    document
}

#[tokio::test(flavor = "multi_thread")]
async fn each_resource_has_its_document() {
    let world = world().await;
    let mut table = Table::default();
    let two = json!({
        "scopes_supported": ["read", "write"],
        "dpop_signing_alg_values_supported": ["ES256"],
        "dpop_bound_access_tokens_required": true,
    });
    for (path, resource, more) in [
        ("/orders", "https://api.example/orders", json!({})),
        ("", "https://api.example", json!({})),
        ("/dpop", "https://api.example/dpop", two),
        ("/fresh", "https://api.example/fresh", json!({})),
        ("/mapped", "https://outside.example/mapped", json!({})),
        // One that says nothing weakens what the other promises.
        ("/twin", "https://api.example/twin", json!({})),
    ] {
        let answer = asked(&world, path).await;
        table.row(path, expect_eq("status", &answer.status(), &200));
        table.row(path, expect_eq("document", &answer.json(), &document(resource, &more)));
        for (name, value) in [
            ("content-type", "application/json"),
            ("cache-control", "public, max-age=300"),
            ("access-control-allow-origin", "*"),
        ] {
            table.row(path, expect_eq(name, &answer.one(name), &Some(value)));
        }
        table.row(path, expect_eq("id", &answer.one("x-request-id").is_some(), &true));
        table.row(path, expect_eq("nonce", &answer.one("dpop-nonce"), &None::<&str>));
    }
    table.row("upstream", expect_eq("saw", &world.upstream.count(), &0));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_else_is_answered_there() {
    let world = world().await;
    let mut table = Table::default();
    let refused = Expect::Refused;
    // What no document describes is the wide route's, which wants a token.
    for path in ["/off", "/orders/1", "/orders/", "/nowhere", "/public", "x"] {
        let target = format!("{WELL_KNOWN}{path}");
        let answer = world.send(&Request::new("GET", &target)).await;
        table.row(path, world.judge(answer, refused("token_missing")).await);
    }
    let said = world.send(&Request::new("GET", &format!("{WELL_KNOWN}/said"))).await;
    let seen = said.clone().expect("an answer").seen().start;
    let line = format!("GET {WELL_KNOWN}/said HTTP/1.1");
    table.row("a route for the path", world.judge(said, Expect::Public).await);
    table.row("a route for the path", expect_eq("upstream", &seen, &line));

    let target = format!("{WELL_KNOWN}/orders");
    let answer = world.send(&Request::new("HEAD", &target)).await.expect("an answer");
    let length = asked(&world, "/orders").await.body.len().to_string();
    table.row("HEAD", expect_eq("status", &answer.status(), &200));
    table.row("HEAD", expect_eq("body", &answer.body.len(), &0));
    table.row("HEAD", expect_eq("length", &answer.one("content-length"), &Some(length.as_str())));
    for method in ["POST", "PUT", "OPTIONS"] {
        let answer = world.send(&Request::new(method, &target).body(b"x")).await;
        let answer = answer.expect("an answer");
        table.row(method, expect_eq("status", &answer.status(), &405));
        table.row(method, expect_eq("allow", &answer.one("allow"), &Some("GET, HEAD")));
        table.row(method, expect_eq("body", &answer.body.len(), &0));
    }
    // Credentials make no difference, and are not looked at.
    let text = world.bound();
    let answer = world.send(&get(&target, &text, "nonsense")).await.expect("an answer");
    table.row("credentials", expect_eq("status", &answer.status(), &200));
    // Every check of the listener comes before.
    for (name, request, expect) in [
        ("another host", Request::new("GET", &target).host("b.example"), refused("route_unknown")),
        ("two hosts", Request::new("GET", &target).field("Host", "b.example"), Expect::Rejected),
        (
            "a head past its limit",
            Request::new("GET", &target).field("X-Long", "x".repeat(40_000)),
            refused("head_too_large"),
        ),
        ("dots", Request::new("GET", &format!("{target}/..;/x")), refused("path_invalid")),
    ] {
        table.row(name, world.judge(world.send(&request).await, expect).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn challenges_say_where_it_is() {
    let world = world().await;
    let mut table = Table::default();
    for (target, url) in [
        ("/orders/1", Some("https://api.example/.well-known/oauth-protected-resource/orders")),
        ("/elsewhere", Some("https://api.example/.well-known/oauth-protected-resource")),
        ("/mapped/1", Some("https://outside.example/.well-known/oauth-protected-resource/mapped")),
        ("/fresh", Some("https://api.example/.well-known/oauth-protected-resource/fresh")),
        ("/off/1", None),
        // A route speaks there, and nobody knows what it says.
        ("/said/1", None),
    ] {
        let text = world.bound();
        for request in [
            Request::new("GET", target),
            bearer(target, &text),
            get(target, &text, "nonsense"),
            get(target, "nonsense", ""),
        ] {
            let answer = world.send(&request).await.expect("an answer");
            let challenges = answer.all("www-authenticate");
            table.row(target, expect_eq("challenged", &challenges.is_empty(), &false));
            for challenge in challenges {
                let found = challenge.split_once("resource_metadata=\"").map(|(_, rest)| rest);
                let found = found.map(|rest| rest.trim_end_matches('"'));
                table.row(target, expect_eq(challenge, &found, &url));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_what_is_said() {
    let mut world = World::start().await;
    let mut table = Table::default();
    let before = asked(&world, "/orders").await;
    table.row(
        "before",
        expect_eq("document", &before.json(), &document("https://api.example/orders", &json!({}))),
    );
    world.config["routes"][0]["require"] = json!("dpop");
    table.row("reload", expect_eq("taken", &world.reload().await, &true));
    let required =
        asked(&world, "/orders").await.json()["dpop_bound_access_tokens_required"].clone();
    table.row("after", expect_eq("required", &required, &json!(true)));
    world.config["routes"][0]["resourceMetadata"] = json!(false);
    table.row("reload", expect_eq("taken", &world.reload().await, &true));
    table.row("off", expect_eq("status", &asked(&world, "/orders").await.status(), &404));
}

/// Who terminated TLS elsewhere says that a client spoke in clear: it is no origin of a resource then.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_in_clear_is_told_nothing() {
    let world = World::start_with(|config| {
        config["edge"]["listeners"][0]["trustedProxies"] =
            json!([{"cidr": "127.0.0.1", "believe": ["origin"], "fields": "x-forwarded"}]);
    })
    .await;
    let mut table = Table::default();
    let target = format!("{WELL_KNOWN}/orders");
    for (scheme, status) in [("https", 200), ("http", 400)] {
        let request = Request::new("GET", &target).field("X-Forwarded-Proto", scheme);
        let answer = world.send(&request).await.expect("an answer");
        table.row(scheme, expect_eq("status", &answer.status(), &status));
    }
}

/// A connection that was made under another host's policy is told to make a new one.
#[tokio::test(flavor = "multi_thread")]
async fn the_hosts_own_policy_comes_first() {
    let world = World::start_with(|config| {
        let certificates = json!([{"certificate": "server.pem", "key": "server.key"}]);
        config["edge"]["listeners"][0]["tls"]["policies"] =
            json!([{"name": "own", "hosts": ["api.example"], "certificates": certificates}]);
    })
    .await;
    let mut table = Table::default();
    let request = Request::new("GET", &format!("{WELL_KNOWN}/orders"));
    for (sni, status) in [("api.example", 200), ("localhost", 421)] {
        let mut client = world.client.clone();
        client.name = sni;
        let answer = client.send(None, &request).await.expect("an answer");
        table.row(sni, expect_eq("status", &answer.status(), &status));
    }
}
