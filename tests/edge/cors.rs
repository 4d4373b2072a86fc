//! Cross-origin requests: who answers a preflight, what goes to the service without a token, and what
//! a page may read. Chromium is the browser.

use std::process::Command;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::end_to_end::run;
use super::support::Table;
use super::support::client::{Message, Outcome, Request};
use super::support::world::{Expect, World, expect_eq, get};

const PAGE: &str = "https://app.example";

async fn world() -> World {
    World::start_with(|config| {
        let route = |name: &str, cors: Value| {
            json!({"name": name, "hosts": ["api.example"], "path": format!("/{name}/*"),
                   "upstream": "echo", "cors": cors})
        };
        let mut block = route(
            "block",
            json!({
                "allowedOrigins": [PAGE], "allowedHeaders": ["Content-Type", "X-Trace"],
                "exposedHeaders": ["X-Total"], "maxAge": "2m",
            }),
        );
        block["methods"] = json!(["GET", "POST"]);
        let mut scoped = block.clone();
        scoped["path"] = json!("/block/scoped");
        scoped["name"] = json!("scoped");
        scoped["scopes"] = json!(["nobody.has.it"]);
        let mut dead = block.clone();
        dead["path"] = json!("/block/dead");
        dead["name"] = json!("dead");
        dead["upstream"] = json!("dead");
        config["upstreams"]["dead"] = json!({"servers": ["127.0.0.1:9"]});
        let credentials =
            route("cookies", json!({"allowedOrigins": [PAGE], "allowCredentials": true}));
        let any = route("any", json!({"allowedOrigins": ["*"]}));
        let service = route("service", json!("upstream"));
        let routes = config["routes"].as_array_mut().expect("routes");
        routes.extend([block, scoped, dead, credentials, any, service]);
    })
    .await
}

fn preflight(target: &str, origin: &str, method: &str) -> Request {
    Request::new("OPTIONS", target)
        .field("Origin", origin)
        .field("Access-Control-Request-Method", method)
}

/// The fields of CORS, without `access-control-`, as `name: value`.
fn cors(answer: &Message) -> Vec<String> {
    let fields = answer.fields.iter().filter_map(|(name, value)| {
        Some(format!("{}: {value}", name.strip_prefix("access-control-")?))
    });
    let mut fields: Vec<_> = fields.collect();
    fields.sort();
    fields
}

fn says(answer: Outcome, status: u16, fields: &[&str]) -> Result<(), String> {
    let answer = answer?;
    expect_eq("status", &answer.status(), &status)?;
    expect_eq("fields", &cors(&answer), &fields.to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_edge_answers_preflights() {
    let world = world().await;
    let h2 = world.client.connect_h2(None).await.expect("a connection");
    let mut table = Table::default();
    let granted = [
        "allow-headers: authorization, dpop, x-trace",
        "allow-methods: GET, POST",
        "allow-origin: https://app.example",
        "max-age: 120",
    ];
    let asked = preflight("/block/1", PAGE, "POST")
        .field("Access-Control-Request-Headers", "Authorization, DPoP,x-trace");
    table.row("ok/HTTP/1.1", says(world.send(&asked).await, 204, &granted));
    table.row("ok/HTTP/2", says(h2.send(&asked).await, 204, &granted));
    let answer = world.send(&asked).await.expect("an answer");
    table.row(
        "ok/vary",
        expect_eq(
            "vary",
            &answer.one("vary"),
            &Some("Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
        ),
    );
    table.row("ok/id", expect_eq("id", &answer.one("x-request-id").is_some(), &true));
    let bare = preflight("/cookies/1", PAGE, "DELETE");
    table.row(
        "ok/credentials",
        says(
            world.send(&bare).await,
            204,
            &[
                "allow-credentials: true",
                "allow-methods: DELETE",
                "allow-origin: https://app.example",
                "max-age: 600",
            ],
        ),
    );
    let any = preflight("/any/1", "https://b.example", "GET");
    table.row(
        "ok/any origin",
        says(
            world.send(&any).await,
            204,
            &["allow-methods: GET", "allow-origin: *", "max-age: 600"],
        ),
    );

    let ours = preflight("/block/1", PAGE, "GET");
    for (name, request, expect) in [
        ("fail/origin", preflight("/block/1", "https://b.example", "GET"), "origin_refused"),
        ("fail/null", preflight("/block/1", "null", "GET"), "origin_refused"),
        (
            "fail/field",
            ours.clone().field("Access-Control-Request-Headers", "x-other"),
            "origin_refused",
        ),
        // The route takes none of these; what asks for them is a plain OPTIONS, which it takes neither.
        ("fail/method", preflight("/block/1", PAGE, "DELETE"), "method_not_allowed"),
        ("fail/no preflight", Request::new("OPTIONS", "/block/1"), "method_not_allowed"),
        ("fail/two origins", ours.clone().field("Origin", PAGE), "method_not_allowed"),
        ("fail/body", ours.clone().body(b"x"), "method_not_allowed"),
        ("fail/token", ours.clone().field("Authorization", "Bearer x"), "method_not_allowed"),
        // Without `cors` it is a request without a token.
        ("fail/off", preflight("/orders/1", PAGE, "GET"), "token_missing"),
        ("fail/nowhere", preflight("/nowhere", PAGE, "GET"), "route_unknown"),
    ] {
        let outcome = world.send(&request).await;
        let told = outcome.clone().map(|answer| cors(&answer)).unwrap_or_default();
        table.row(name, world.judge(outcome, Expect::Refused(expect)).await);
        let granted = told
            .iter()
            .any(|field| !field.starts_with("allow-origin") && !field.starts_with("expose"));
        table.row(name, expect_eq("granted", &granted, &false));
    }
    table.row("upstream", expect_eq("requests", &world.upstream.count(), &0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_answers_preflights() {
    let world = world().await;
    let mut table = Table::default();
    let asked = preflight("/service/1?q=1", PAGE, "PUT")
        .field("Access-Control-Request-Headers", "dpop")
        .field("DPoP", "a.b.c")
        .field("Cookie", "session=1")
        .field("X-HTTP-Method-Override", "DELETE")
        .field("X-Holdfast-Subject", "root")
        .field("User-Agent", "browser");
    let h2 = world.client.connect_h2(None).await.expect("a connection");
    for (name, outcome) in
        [("HTTP/1.1", world.send(&asked).await), ("HTTP/2", h2.send(&asked).await)]
    {
        let answer = outcome.expect("an answer");
        table.row(name, expect_eq("status", &answer.status(), &200));
        let seen = answer.seen();
        let start = "OPTIONS /service/1?q=1 HTTP/1.1";
        table.row(name, expect_eq("request line", &seen.start.as_str(), &start));
        for (field, expect) in [
            ("origin", Some(PAGE)),
            ("access-control-request-method", Some("PUT")),
            ("access-control-request-headers", Some("dpop")),
            ("user-agent", Some("browser")),
            ("authorization", None),
            ("dpop", None),
            ("cookie", None),
            ("x-http-method-override", None),
            ("x-holdfast-subject", None),
            ("x-holdfast-result", None),
        ] {
            table.row(name, expect_eq(field, &seen.one(field), &expect));
        }
    }
    let before = world.upstream.count();
    let ours = preflight("/service/1", PAGE, "PUT");
    for (name, request, expect) in [
        ("fail/no preflight", Request::new("OPTIONS", "/service/1"), "token_missing"),
        (
            "fail/other method",
            Request { method: "DELETE".to_owned(), ..ours.clone() },
            "token_missing",
        ),
        ("fail/body", ours.clone().body(b"x"), "token_missing"),
        (
            "fail/upgrade",
            ours.clone().field("Connection", "Upgrade").field("Upgrade", "websocket"),
            "token_missing",
        ),
        ("fail/token", ours.clone().field("Authorization", "Bearer x"), "token_malformed"),
        (
            "fail/token in the query",
            preflight("/service/1?access_token=x", PAGE, "PUT"),
            "token_in_query",
        ),
    ] {
        table.row(name, world.judge(world.send(&request).await, Expect::Refused(expect)).await);
    }
    let mut chunked = h2.clone().send(&ours.clone().without("Content-Length")).await;
    table.row(
        "h2 without a body",
        expect_eq("status", &chunked.as_ref().map(Message::status), &Ok(200)),
    );
    let with_body = Request { body: b"x".to_vec(), ..ours };
    chunked = h2.send(&with_body).await;
    table.row(
        "h2 with a body of no length",
        world.judge(chunked, Expect::Refused("token_missing")).await,
    );
    table.row("upstream", expect_eq("requests", &world.upstream.count(), &(before + 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_read_answers_and_refusals() {
    let world = world().await;
    let mut table = Table::default();
    let ours = [
        "allow-origin: https://app.example",
        "expose-headers: X-Total, DPoP-Nonce, WWW-Authenticate",
    ];
    let token = world.bound();
    let shown = |target: &str, nonce: &str| {
        let proof = world.proof("GET", target).token(&token);
        let proof = if nonce.is_empty() { proof } else { proof.nonce(nonce) };
        get(target, &token, &proof.sign()).field("Origin", PAGE)
    };
    let nonce = world.nonce().await;
    let challenge = world.send(&shown("/block/1", "")).await;
    let challenged = challenge.clone().expect("an answer");
    table.row("challenge", expect_eq("nonce", &challenged.one("dpop-nonce").is_some(), &true));
    table.row("challenge", says(challenge, 401, &ours));
    let bare = Request::new("GET", "/block/1").field("Origin", PAGE);
    table.row("no token", says(world.send(&bare).await, 401, &ours));
    table.row("scope", says(world.send(&shown("/block/scoped", &nonce)).await, 403, &ours));
    table.row("502", says(world.send(&shown("/block/dead", &nonce)).await, 502, &ours));

    let service = |request: Request| {
        request
            .field("X-Test-Answer", "Access-Control-Allow-Origin=*")
            .field("X-Test-Answer", "Access-Control-Allow-Credentials=true")
            .field("X-Test-Answer", "Access-Control-Expose-Headers=X-Page")
            .field("X-Test-Answer", "Vary=Accept")
    };
    let answer = world.send(&service(shown("/block/1", &nonce))).await;
    let vary = answer.clone().expect("an answer");
    table.row("200", expect_eq("vary", &vary.one("vary"), &Some("Accept, Origin")));
    table.row(
        "200",
        says(
            answer,
            200,
            &[
                "allow-origin: https://app.example",
                "expose-headers: X-Page, X-Total, DPoP-Nonce, WWW-Authenticate",
            ],
        ),
    );
    let other =
        service(shown("/block/1", &nonce)).without("Origin").field("Origin", "https://b.example");
    table.row("another origin", says(world.send(&other).await, 200, &[]));
    let none = service(shown("/block/1", &nonce)).without("Origin");
    table.row("no origin", says(world.send(&none).await, 200, &[]));
    table.row(
        "credentials",
        says(
            world.send(&shown("/cookies/1", &nonce)).await,
            200,
            &[
                "allow-credentials: true",
                "allow-origin: https://app.example",
                "expose-headers: DPoP-Nonce, WWW-Authenticate",
            ],
        ),
    );
    table.row(
        "the service's own",
        says(
            world.send(&service(shown("/service/1", &nonce))).await,
            200,
            &[
                "allow-credentials: true",
                "allow-origin: *",
                "expose-headers: X-Page, DPoP-Nonce, WWW-Authenticate",
            ],
        ),
    );
    table.row("off", says(world.send(&shown("/orders/1", &nonce)).await, 200, &[]));
}

/// Serves one page at every path until the test ends.
async fn serve(listener: TcpListener, page: String) {
    while let Ok((mut socket, _)) = listener.accept().await {
        let _ = socket.read(&mut [0; 4096]).await;
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{page}",
            page.len()
        );
        let _ = socket.write_all(head.as_bytes()).await;
    }
}

/// What a page at `port` of localhost says once it is done, in Chromium; `None` without Chromium.
async fn browse(world: &World, port: u16) -> Option<Value> {
    let profile = world.directory.path().join(format!("profile-{port}"));
    let mut command = Command::new("chromium");
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--ignore-certificate-errors", "--virtual-time-budget=20000", "--dump-dom"])
        .arg(format!("--host-resolver-rules=MAP api.example 127.0.0.1:{}", world.client.port))
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("http://localhost:{port}/"));
    let output = tokio::task::spawn_blocking(move || run(&mut command)).await.expect("a thread")?;
    let page = String::from_utf8_lossy(&output.stdout).into_owned();
    let told = page.split("<pre>").nth(1).and_then(|rest| rest.split("</pre>").next());
    let told = told.unwrap_or_else(|| panic!("{page}{}", String::from_utf8_lossy(&output.stderr)));
    Some(serde_json::from_str(told).expect("JSON"))
}

#[tokio::test(flavor = "multi_thread")]
async fn chromium_reads_the_challenge_and_retries() {
    let ours = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let other = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = |listener: &TcpListener| listener.local_addr().expect("an address").port();
    let ports = [port(&ours), port(&other)];
    let world = World::start_with(|config| {
        config["routes"][0]["methods"] = json!(["GET", "PUT"]);
        config["routes"][0]["cors"] = json!({
            "allowedOrigins": [format!("http://localhost:{}", ports[0])],
            "exposedHeaders": ["X-Request-Id"],
        });
    })
    .await;
    let pem = String::from_utf8(world.key.private_pem()).expect("PEM");
    let key: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let page = include_str!("page.html").replace("@token@", &world.bound()).replace("@key@", &key);
    tokio::spawn(serve(ours, page.clone()));
    tokio::spawn(serve(other, page));

    let mut table = Table::default();
    let Some(told) = browse(&world, ports[0]).await else {
        table.row("skipped", Ok(()));
        return;
    };
    // The challenge is read, and both requests carry its nonce; the body and X-Request-Id are read.
    for (method, statuses) in [("GET", json!([401, 200])), ("PUT", json!([200]))] {
        let told = &told[method];
        table.row(method, expect_eq("statuses", &told["statuses"], &statuses));
        table.row(method, expect_eq("id", &told["id"].is_string(), &true));
        let start = told["body"].as_str().unwrap_or_default().starts_with(method);
        table.row(method, expect_eq("body", &start, &true));
    }
    table.row("upstream", expect_eq("requests", &world.upstream.count(), &2));
    let told = browse(&world, ports[1]).await.expect("Chromium was there");
    table.row("another origin", expect_eq("told", &told, &json!({"error": "TypeError"})));
    table.row("upstream", expect_eq("requests", &world.upstream.count(), &2));
}
