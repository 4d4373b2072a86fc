//! What a request is for: `htu`, external origins, hosts and paths.

use serde_json::json;

use super::support::Table;
use super::support::client::Request;
use super::support::proof::Proof;
use super::support::world::{Expect, World, expect_eq, get};

use Expect::{Admitted, Public, Refused, Rejected};

/// Sends each row's request target with a proof for its `htu`.
async fn check_htu(world: &World, host: &str, rows: &[(&str, &str, &str, Expect)]) {
    let token = world.bound();
    let nonce = world.nonce().await;
    let mut table = Table::default();
    for (name, target, htu, expect) in rows {
        let proof = Proof::new(&world.key, "GET", htu).token(&token).nonce(&nonce).sign();
        let answer = world.send(&get(target, &token, &proof).host(host)).await;
        table.row(name, world.judge(answer, *expect).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn htu_is_compared_after_normalisation() {
    let world = World::start().await;
    let (ok, no) = (Admitted("dpop"), Refused("proof_htu"));
    let port = world.client.port;
    let socket = format!("https://api.example:{port}/orders/1");
    let loopback = format!("https://127.0.0.1:{port}/orders/1");
    let rows = [
        ("ok/to the letter", "/orders/1", "https://api.example/orders/1", ok),
        ("ok/case of scheme", "/orders/1", "HTTPS://api.example/orders/1", ok),
        ("ok/case of host", "/orders/1", "https://API.Example/orders/1", ok),
        ("ok/default port", "/orders/1", "https://api.example:443/orders/1", ok),
        ("ok/empty port", "/orders/1", "https://api.example:/orders/1", ok),
        ("ok/query of the request", "/orders/1?a=b", "https://api.example/orders/1", ok),
        ("ok/query of htu", "/orders/1", "https://api.example/orders/1?a=b", ok),
        ("ok/fragment of htu", "/orders/1", "https://api.example/orders/1#top", ok),
        ("ok/request escapes a tilde", "/orders/%7Eme", "https://api.example/orders/~me", ok),
        ("ok/htu escapes a tilde", "/orders/~me", "https://api.example/orders/%7Eme", ok),
        ("ok/htu escapes a letter", "/orders/1", "https://api.example/%6Frders/1", ok),
        ("ok/case of an escape", "/orders/%c3%a9", "https://api.example/orders/%C3%A9", ok),
        ("ok/dots in the request", "/orders/./x/../1", "https://api.example/orders/1", ok),
        ("ok/dots in htu", "/orders/1", "https://api.example/a/../orders/./1", ok),
        ("ok/escaped dots in htu", "/orders/1", "https://api.example/a/%2e%2E/orders/1", ok),
        ("fail/scheme http", "/orders/1", "http://api.example/orders/1", no),
        ("fail/http on 443", "/orders/1", "http://api.example:443/orders/1", no),
        ("fail/scheme wss", "/orders/1", "wss://api.example/orders/1", no),
        ("fail/another host", "/orders/1", "https://other.example/orders/1", no),
        ("fail/a longer host", "/orders/1", "https://api.example.evil.example/orders/1", no),
        ("fail/host with a dot behind", "/orders/1", "https://api.example./orders/1", no),
        ("fail/user information", "/orders/1", "https://u@api.example/orders/1", no),
        ("fail/host as a user", "/orders/1", "https://api.example@evil.example/orders/1", no),
        ("fail/another port", "/orders/1", "https://api.example:8443/orders/1", no),
        ("fail/the socket's port", "/orders/1", socket.as_str(), no),
        ("fail/the socket's address", "/orders/1", loopback.as_str(), no),
        ("fail/port no number", "/orders/1", "https://api.example:https/orders/1", no),
        ("fail/port 65979", "/orders/1", "https://api.example:65979/orders/1", no),
        ("fail/case of the path", "/orders/1", "https://api.example/Orders/1", no),
        ("fail/slash behind", "/orders/1", "https://api.example/orders/1/", no),
        ("fail/slash missing", "/orders/1/", "https://api.example/orders/1", no),
        ("fail/a prefix", "/orders/1", "https://api.example/orders", no),
        ("fail/a longer path", "/orders/1", "https://api.example/orders/1/2", no),
        ("fail/no path", "/orders/1", "https://api.example", no),
        ("fail/slash twice", "/orders/1", "https://api.example//orders/1", no),
        ("fail/escaped slash", "/orders/1", "https://api.example/orders%2F1", no),
        ("fail/backslash", "/orders/1", "https://api.example\\orders\\1", no),
        ("fail/no origin", "/orders/1", "/orders/1", no),
        ("fail/no scheme", "/orders/1", "api.example/orders/1", no),
        ("fail/no slashes", "/orders/1", "https:api.example/orders/1", no),
        ("fail/no host", "/orders/1", "https:///orders/1", no),
        ("fail/a space before", "/orders/1", " https://api.example/orders/1", no),
        ("fail/a line end behind", "/orders/1", "https://api.example/orders/1\n", no),
        ("fail/a space within", "/orders/1", "https://api.example/orders/ 1", no),
        ("fail/broken escape", "/orders/1", "https://api.example/orders/1%", no),
        ("fail/NUL", "/orders/1", "https://api.example/orders/1%00", no),
    ];
    check_htu(&world, "api.example", &rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_origin_is_the_routes() {
    let world = World::start_with(|config| {
        let mut told = config["routes"][0].clone();
        told["name"] = json!("told");
        told["hosts"] = json!(["inner.example"]);
        told["origin"] = json!("https://outer.example:8443");
        let mut ported = config["routes"][0].clone();
        ported["name"] = json!("ported");
        ported["hosts"] = json!(["ported.example:9443"]);
        let routes = config["routes"].as_array_mut().expect("routes");
        routes.extend([told, ported]);
    })
    .await;
    let (ok, no) = (Admitted("dpop"), Refused("proof_htu"));
    // A nonce of one origin is none of another's, so these rows are told by that fault alone.
    let here = Refused("nonce_unknown");
    let outer = "https://outer.example:8443/orders/1";
    let rows = [
        ("ok/as configured", "/orders/1", outer, here),
        ("fail/as the Host says", "/orders/1", "https://inner.example/orders/1", no),
        ("fail/without the port", "/orders/1", "https://outer.example/orders/1", no),
    ];
    check_htu(&world, "inner.example", &rows).await;
    let rows = [
        ("ok/port of the host", "/orders/1", "https://ported.example:9443/orders/1", here),
        ("fail/default port", "/orders/1", "https://ported.example/orders/1", no),
    ];
    check_htu(&world, "ported.example:9443", &rows).await;
    let unknown = Refused("route_unknown");
    let rows = [("fail/another port", "/orders/1", "https://ported.example/orders/1", unknown)];
    check_htu(&world, "ported.example", &rows).await;
    let rows = [("ok/its own", "/orders/1", "https://api.example/orders/1", ok)];
    check_htu(&world, "api.example", &rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_host_decides_nothing() {
    let world = World::start().await;
    let token = world.bound();
    let nonce = world.nonce().await;
    let proof = |host: &str| {
        let url = format!("https://{host}/orders/1");
        Proof::new(&world.key, "GET", &url).token(&token).nonce(&nonce).sign()
    };
    let good = || get("/orders/1", &token, &proof("api.example"));
    let evil = || get("/orders/1", &token, &proof("evil.example"));
    let mut table = Table::default();
    let absolute = |mut request: Request| {
        request.target = "https://evil.example/orders/1".to_owned();
        request
    };
    for (name, request, expect) in [
        ("ok/Host in another case", good().host("API.example"), Admitted("dpop")),
        ("ok/Host with its port", good().host("api.example:443"), Admitted("dpop")),
        ("fail/Host of no route", evil().host("evil.example"), Refused("route_unknown")),
        (
            "fail/Host of no route, good proof",
            good().host("evil.example"),
            Refused("route_unknown"),
        ),
        (
            "fail/X-Forwarded-Host",
            evil().field("X-Forwarded-Host", "evil.example"),
            Refused("proof_htu"),
        ),
        (
            "fail/Forwarded",
            evil().field("Forwarded", "host=evil.example;proto=https"),
            Refused("proof_htu"),
        ),
        (
            "fail/X-Forwarded-Server",
            evil().field("X-Forwarded-Server", "evil.example"),
            Refused("proof_htu"),
        ),
        ("fail/X-Host", evil().field("X-Host", "evil.example"), Refused("proof_htu")),
        ("ok/X-Forwarded-Proto", good().field("X-Forwarded-Proto", "http"), Admitted("dpop")),
        ("ok/X-Forwarded-Port", good().field("X-Forwarded-Port", "8443"), Admitted("dpop")),
        ("ok/X-Original-URL", good().field("X-Original-URL", "/public/x"), Admitted("dpop")),
        ("fail/no Host", good().without("Host"), Rejected),
        ("fail/Host empty", good().host(""), Rejected),
        ("fail/two Hosts", good().field("Host", "evil.example"), Rejected),
        ("fail/two equal Hosts", good().field("Host", "api.example"), Rejected),
        ("fail/Host with a path", good().host("api.example/orders"), Rejected),
        ("fail/Host with a user", good().host("api.example@evil.example"), Rejected),
        ("fail/Host with a wrong port", good().host("api.example:x"), Rejected),
        ("fail/Host a list", good().host("api.example, evil.example"), Rejected),
        ("fail/absolute form of another host", absolute(evil()), Rejected),
    ] {
        let answer = world.send(&request).await;
        table.row(name, world.judge(answer, expect).await);
    }
}

/// Each row: a path, and the path that the upstream gets or why it is refused. No token is sent: what
/// is routed to the resource is refused for that.
#[tokio::test(flavor = "multi_thread")]
async fn paths_are_routed_as_they_are_forwarded() {
    let world = World::start_with(|config| {
        let mut files = config["routes"][1].clone();
        files["name"] = json!("files");
        files["path"] = json!("/files/*");
        files["allowAmbiguousPaths"] = json!(true);
        let mut exact = config["routes"][1].clone();
        exact["name"] = json!("exact");
        exact["path"] = json!("/exact");
        config["routes"].as_array_mut().expect("routes").extend([files, exact]);
    })
    .await;
    let mut table = Table::default();
    for (path, seen) in [
        ("/public/a", "/public/a"),
        ("/public/a?x=%2F..//y", "/public/a?x=%2F..//y"),
        ("/public/a/", "/public/a/"),
        ("/public/%61", "/public/a"),
        ("/public/%c3%a9", "/public/%C3%A9"),
        ("/public/a%20b", "/public/a%20b"),
        // pingora escapes what may not stand in a target before anyone sees it.
        ("/public/a b", "/public/a%20b"),
        ("/public/./a/../b", "/public/b"),
        ("/public/%2e/b", "/public/b"),
        ("/public/x/%2E%2e/b", "/public/b"),
        ("/orders/../public/b", "/public/b"),
        ("/../../public/b", "/public/b"),
        ("/files/a%2Fb", "/files/a%2Fb"),
        ("/files/a%5Cb", "/files/a%5Cb"),
        ("/files//b", "/files//b"),
        ("/files/..;/b", "/files/..;/b"),
        ("/exact", "/exact"),
    ] {
        let answer = world.send(&Request::new("GET", path)).await;
        let outcome = world.judge(answer.clone(), Public).await;
        table.row(
            &format!("ok/{path}"),
            outcome.and_then(|()| {
                let start = answer?.seen().start;
                expect_eq("request line", &start, &format!("GET {seen} HTTP/1.1"))
            }),
        );
    }
    for (path, expect) in [
        ("/public/%2F", Refused("path_invalid")),
        ("/public/%2f..%2forders/1", Refused("path_invalid")),
        ("/public/%5C", Refused("path_invalid")),
        ("/public/..%5corders/1", Refused("path_invalid")),
        ("/public/\\x", Refused("path_invalid")),
        ("/public/%00", Refused("path_invalid")),
        ("/public/%0a", Refused("path_invalid")),
        ("/public/%7f", Refused("path_invalid")),
        ("/files/%00", Refused("path_invalid")),
        ("/public/%", Refused("path_invalid")),
        ("/public/%zz", Refused("path_invalid")),
        ("/public//a", Refused("path_invalid")),
        ("//public/a", Refused("route_unknown")),
        ("/public/a//", Refused("path_invalid")),
        ("/public/../orders/1", Refused("token_missing")),
        ("/public/%2e%2e/orders/1", Refused("token_missing")),
        ("/public/%2e./orders/1", Refused("token_missing")),
        ("/files/../orders/1", Refused("token_missing")),
        ("/%6frders/1", Refused("token_missing")),
        ("/orders", Refused("token_missing")),
        ("/orders-old", Refused("route_unknown")),
        ("/Orders/1", Refused("route_unknown")),
        ("/exact/", Refused("route_unknown")),
        ("/exact/more", Refused("route_unknown")),
        ("/", Refused("route_unknown")),
        ("*", Rejected),
        ("public/a", Rejected),
        ("http://api.example", Rejected),
    ] {
        let answer = world.send(&Request::new("GET", path)).await;
        table.row(&format!("fail/{path}"), world.judge(answer, expect).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_are_the_routes() {
    let world = World::start_with(|config| {
        config["routes"][1]["methods"] = json!(["GET", "POST"]);
    })
    .await;
    let mut table = Table::default();
    for (method, expect) in [
        ("GET", Public),
        ("POST", Public),
        ("DELETE", Refused("method_not_allowed")),
        ("get", Refused("method_not_allowed")),
        ("CONNECT", Rejected),
    ] {
        let request = Request::new(method, "/public/a").field("Content-Length", "0");
        let answer = world.send(&request).await;
        if let (Ok(answer), Refused(_)) = (&answer, expect) {
            let allow = answer.one("allow").map(|list| list.replace(' ', ""));
            table.row(method, expect_eq("allow", &allow.as_deref(), &Some("GET,HEAD,POST")));
        }
        table.row(method, world.judge(answer, expect).await);
    }
}
