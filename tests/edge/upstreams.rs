//! Upstreams that are slow, dead or lying, and those that come back: what the client gets, what is
//! sent again, and what is remembered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::Table;
use super::support::client::{Message, Outcome, Request};
use super::support::process::free_port;
use super::support::service::{Service, Step, good, send};
use super::support::world::{World, expect_eq};
use super::upstream_tls::{add, at_rest};

fn status(outcome: &Outcome) -> Result<u16, String> {
    outcome.as_ref().map(Message::status).map_err(Clone::clone)
}

async fn get(world: &World, path: &str) -> Outcome {
    world.send(&Request::new("GET", path)).await
}

/// Waits until the server of an upstream stands so.
async fn stands(world: &World, upstream: &str, server: &str, up: bool) -> Result<(), String> {
    let mut seen = Value::Null;
    for _ in 0..1500 {
        let ready = world.admin("/readyz").await.json();
        let named = |list: &Value, name: &str| {
            let found = list.as_array().and_then(|all| all.iter().find(|it| it["name"] == name));
            found.cloned().unwrap_or_default()
        };
        seen = named(&named(&ready["upstreams"], upstream)["servers"], server);
        if seen["up"] == up {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(format!("{upstream} {server} never was {up}: {seen}"))
}

/// How often a service was asked, once that is `expected` or after some seconds.
async fn asked(service: &Service, expected: usize) -> usize {
    for _ in 0..1500 {
        if service.requests() == expected {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    service.requests()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_is_passed_over() {
    let health = Arc::new(AtomicU16::new(200));
    let answer = |name: &'static str, health: Arc<AtomicU16>| {
        move |_: usize, _: usize, request: &Message| {
            if !request.start.starts_with("GET /healthz ") {
                return good(name);
            }
            let status = health.load(Ordering::SeqCst);
            vec![send(&format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n"))]
        }
    };
    let first = Service::start(answer("first", Arc::clone(&health))).await;
    let second = Service::start(answer("second", Arc::new(AtomicU16::new(204)))).await;
    let checks = json!({"path": "/healthz", "interval": "1s", "timeout": "1s",
                        "unhealthyAfter": 3, "healthyAfter": 2});
    let dead = format!("127.0.0.1:{}", free_port());
    let world = World::start_with(|config| {
        let both = json!({"servers": [first.address(), second.address()], "health": checks});
        add(config, "both", both);
        let mut connect = checks.clone();
        connect.as_object_mut().expect("keys").remove("path");
        add(config, "connect", json!({"servers": [dead, second.address()], "health": connect}));
    })
    .await;
    let mut table = Table::default();
    let labels = [format!("server=\"{}\"", first.address()), "upstream=\"both\"".to_owned()];
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    for (good, up, expect) in [(200, true, 5), (503, false, 0), (200, true, 5)] {
        health.store(good, Ordering::SeqCst);
        table.row("state", stands(&world, "both", &first.address(), up).await);
        let gauge = world.metric("holdfast_upstream_up", &labels).await;
        table.row("gauge", expect_eq("up", &gauge, &f64::from(u8::from(up))));
        let mut by_first = 0;
        for _ in 0..10 {
            let answer = get(&world, "/both").await;
            table.row("ok", expect_eq("status", &status(&answer), &Ok(200)));
            by_first += usize::from(answer.is_ok_and(|answer| answer.body == b"first"));
        }
        table.row("turns", expect_eq("by the first", &by_first, &expect));
    }
    for (message, up) in [("server down", "false"), ("server up", "true")] {
        let told = world.process.record(|line| {
            line["message"] == message && line["server"] == first.address().as_str()
        });
        table.row(up, told.await.map(drop).ok_or_else(|| world.process.output()));
    }
    table.row("connect", stands(&world, "connect", &dead, false).await);
    table.row("connect", stands(&world, "connect", &second.address(), true).await);
}

/// Nothing is up, and still an attempt is better than none: it may be the check that is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn when_all_are_down_all_are_tried() {
    let service = Service::start(|_, _, request| match request.start.contains("/healthz") {
        true => vec![send("HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n")],
        false => good("well"),
    })
    .await;
    let world = World::start_with(|config| {
        let health = json!({"path": "/healthz", "interval": "100ms", "timeout": "100ms"});
        add(config, "one", json!({"servers": [service.address()], "health": health}));
    })
    .await;
    let mut table = Table::default();
    table.row("down", stands(&world, "one", &service.address(), false).await);
    table.row("tried", expect_eq("status", &status(&get(&world, "/one").await), &Ok(200)));
    // The other upstream is up.
    let ready = world.admin("/readyz").await;
    table.row("ready", expect_eq("status", &ready.status(), &200));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_server_is_remembered() {
    let alive = Service::start(|_, _, _| good("well")).await;
    let dead = format!("127.0.0.1:{}", free_port());
    let world = World::start_with(|config| {
        add(config, "two", json!({"servers": [dead, alive.address()]}));
    })
    .await;
    let mut table = Table::default();
    let start = Instant::now();
    for _ in 0..10 {
        table.row("ok", expect_eq("status", &status(&get(&world, "/two").await), &Ok(200)));
    }
    let tried = |line: &Value| line["message"] == "no connection";
    let _ = world.process.record(tried).await;
    let told = world.process.records(tried);
    // After five seconds it is tried again.
    let most = 1 + start.elapsed().as_secs() / 5;
    let few = (1..=most).contains(&(told.len() as u64));
    table.row("remembered", few.then_some(()).ok_or_else(|| format!("{} attempts", told.len())));
    // Nothing was sent to the dead one, so that a POST may go on to the other.
    let post = world.send(&Request::new("POST", "/two").body(b"x")).await;
    table.row("post", expect_eq("status", &status(&post), &Ok(200)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_without_an_address() {
    let alive = Service::start(|_, _, _| good("well")).await;
    let world = World::start_with(|config| {
        let servers = json!(["no-such-host.invalid:80", alive.address()]);
        add(config, "two", json!({"servers": servers, "resolveInterval": "100ms"}));
        add(config, "none", json!({"servers": ["no-such-host.invalid:80"]}));
    })
    .await;
    let mut table = Table::default();
    for _ in 0..4 {
        table.row("two", expect_eq("status", &status(&get(&world, "/two").await), &Ok(200)));
    }
    table.row("none", expect_eq("status", &status(&get(&world, "/none").await), &Ok(502)));
    let told = world.process.record(|line| line["message"] == "name not resolved").await;
    table.row("told", told.map(drop).ok_or_else(|| world.process.output()));
}

/// A kept connection that ends when the next request comes is the one case of a second sending.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_twice_and_what_never() {
    let once = Service::start(|nth, _, _| if nth == 0 { good("well") } else { vec![Step::Close] });
    let (once, never) = (once.await, Service::start(|_, _, _| vec![Step::Close]).await);
    let early = Service::start(|_, before, _| match before {
        0 => vec![Step::Body, send("HTTP/1.1 200 OK\r\nContent-"), Step::Close],
        _ => good("well"),
    })
    .await;
    // It takes all of a body first, so that the edge cannot have kept the whole of a large one.
    let taken = Service::start(|nth, _, _| match nth {
        0 => good("well"),
        _ => vec![Step::Body, Step::Close],
    })
    .await;
    let world = World::start_with(|config| {
        let services = [("once", &once), ("never", &never), ("early", &early), ("taken", &taken)];
        for (name, service) in services {
            add(config, name, json!({"servers": [service.address()], "idleTimeout": "30s"}));
        }
    })
    .await;
    let mut table = Table::default();
    let small = vec![b'x'; 1000];
    for (method, body, expect, sendings) in [
        ("GET", None, 200, 2),
        ("DELETE", None, 200, 2),
        ("PUT", Some(&small), 200, 2),
        ("POST", Some(&small), 502, 1),
        ("POST", None, 502, 1),
        ("PATCH", Some(&small), 502, 1),
    ] {
        let name = format!("{method} {}", body.map_or(0, Vec::len));
        // A connection that has served, and is kept.
        let kept = get(&world, "/once").await;
        table.row(&name, expect_eq("before", &status(&kept), &Ok(200)));
        at_rest(&world).await;
        let (requests, bodies) = (once.requests(), once.bodies().len());
        let mut request = Request::new(method, "/once");
        if let Some(body) = body {
            request = request.body(body);
        }
        let answer = world.send(&request).await;
        table.row(&name, expect_eq("status", &status(&answer), &Ok(expect)));
        table.row(&name, expect_eq("sendings", &(once.requests() - requests), &sendings));
        if let Some(body) = body.filter(|_| expect == 200) {
            let whole = once.bodies().get(bodies).cloned();
            table.row(&name, expect_eq("whole body", &(whole.as_ref() == Some(body)), &true));
        }
    }
    let kept = get(&world, "/taken").await;
    table.row("large", expect_eq("before", &status(&kept), &Ok(200)));
    at_rest(&world).await;
    let large = vec![b'x'; 200_000];
    let answer = world.send(&Request::new("PUT", "/taken").body(&large)).await;
    table.row("large", expect_eq("status", &status(&answer), &Ok(502)));
    table.row("large", expect_eq("sendings", &taken.requests(), &2));
    for method in ["GET", "POST"] {
        let before = never.requests();
        let answer = world.send(&Request::new(method, "/never")).await;
        table.row("never", expect_eq("status", &status(&answer), &Ok(502)));
        table.row("never", expect_eq("sendings", &(never.requests() - before), &1));
    }
    let answer = world.send(&Request::new("POST", "/early").body(b"x")).await;
    table.row("early", expect_eq("status", &status(&answer), &Ok(502)));
    table.row("early", expect_eq("sendings", &early.requests(), &1));
}

/// An HTTP/2 service that refuses the first stream with `reason` and answers the others.
async fn refusing(reason: h2::Reason) -> (u16, Arc<AtomicU16>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let seen = Arc::new(AtomicU16::new(0));
    let counter = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(refuse_first(socket, reason, Arc::clone(&counter)));
        }
    });
    (port, seen)
}

async fn refuse_first(
    socket: tokio::net::TcpStream,
    reason: h2::Reason,
    seen: Arc<AtomicU16>,
) -> Result<(), h2::Error> {
    let mut connection = h2::server::handshake(socket).await?;
    while let Some(stream) = connection.accept().await {
        let (_, mut answer) = stream?;
        if seen.fetch_add(1, Ordering::SeqCst) == 0 {
            answer.send_reset(reason);
        } else {
            answer.send_response(http::Response::new(()), true)?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_was_refused_untouched_is_sent_again() {
    let mut table = Table::default();
    for (reason, method, expect, sendings) in [
        (h2::Reason::REFUSED_STREAM, "POST", 200, 2),
        (h2::Reason::REFUSED_STREAM, "GET", 200, 2),
        (h2::Reason::INTERNAL_ERROR, "POST", 502, 1),
        (h2::Reason::CANCEL, "POST", 502, 1),
    ] {
        let (port, seen) = refusing(reason).await;
        let world = World::start_with(|config| {
            let servers = json!([format!("127.0.0.1:{port}")]);
            add(config, "h2", json!({"servers": servers, "protocol": "h2c"}));
        })
        .await;
        let name = format!("{method} {reason:?}");
        let answer = world.send(&Request::new(method, "/h2")).await;
        table.row(&name, expect_eq("status", &status(&answer), &Ok(expect)));
        table.row(&name, expect_eq("sendings", &seen.load(Ordering::SeqCst), &sendings));
    }
}

/// What an upstream does, and what becomes of it: a status, or `None` for a connection that is cut.
fn lies() -> Vec<(&'static str, Vec<Step>, Option<u16>)> {
    let text = |text: &str| vec![send(text), Step::Close];
    let endless =
        |head: &str, more: &str| vec![send(head), Step::Endless(more.as_bytes().to_vec())];
    let ok = "HTTP/1.1 200 OK\r\n";
    vec![
        ("garbage", text("hello\r\n\r\n"), Some(502)),
        ("closes", vec![Step::Close], Some(502)),
        ("half-a-head", text("HTTP/1.1 200 OK\r\nContent-"), Some(502)),
        ("no-status", text("HTTP/1.1 abc OK\r\n\r\n"), Some(502)),
        (
            "two-lengths",
            text(&format!("{ok}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd")),
            Some(502),
        ),
        ("negative-length", text(&format!("{ok}Content-Length: -1\r\n\r\nabcd")), Some(502)),
        (
            "huge-field",
            text(&format!("{ok}X: {}\r\nContent-Length: 0\r\n\r\n", "x".repeat(100_000))),
            Some(502),
        ),
        (
            "many-fields",
            text(&format!("{ok}{}Content-Length: 0\r\n\r\n", "X: y\r\n".repeat(300))),
            Some(502),
        ),
        ("endless-head", endless(ok, "X: y\r\n"), Some(502)),
        ("endless-line", endless(ok, &"xxxxxxxx".repeat(1000)), Some(502)),
        ("endless-interim", endless("", "HTTP/1.1 103 Early Hints\r\n\r\n"), Some(502)),
        (
            "unasked-upgrade",
            text("HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
            Some(502),
        ),
        ("silent", vec![Step::Wait(60_000)], Some(504)),
        (
            "trickled-head",
            vec![Step::Trickle(format!("{ok}X: {}", "x".repeat(1000)).into_bytes(), 100)],
            Some(504),
        ),
        (
            "trickled-interim",
            vec![send("HTTP/1.1 103 X\r\n\r\n"), Step::Trickle(ok.repeat(99).into_bytes(), 100)],
            Some(504),
        ),
        ("length-too-long", text(&format!("{ok}Content-Length: 10\r\n\r\nabc")), None),
        ("truncated-chunk", text(&format!("{ok}Transfer-Encoding: chunked\r\n\r\n5\r\nab")), None),
        (
            "garbage-chunk",
            text(&format!("{ok}Transfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n")),
            None,
        ),
        (
            "no-last-chunk",
            text(&format!("{ok}Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n")),
            None,
        ),
        (
            "stalled-body",
            vec![send(&format!("{ok}Content-Length: 10\r\n\r\nabc")), Step::Wait(60_000)],
            None,
        ),
        (
            "two-framings",
            text(&format!(
                "{ok}Content-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
            )),
            Some(200),
        ),
        (
            "length-too-short",
            vec![send(&format!(
                "{ok}Content-Length: 2\r\n\r\nabHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhidden"
            ))],
            Some(200),
        ),
        ("body-of-204", vec![send("HTTP/1.1 204 X\r\nContent-Length: 6\r\n\r\nhidden")], Some(204)),
        (
            "one-interim",
            vec![
                send("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"),
                send(&format!("{ok}Content-Length: 2\r\n\r\nab")),
            ],
            Some(200),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn lying_and_slow_upstreams() {
    let mut services = Vec::new();
    for (name, steps, expect) in lies() {
        let service = Service::start(move |_, _, _| steps.clone()).await;
        services.push((name, service, expect));
    }
    let world = World::start_with(|config| {
        for (name, service, expect) in &services {
            // For those alone that it is to end: the others are to answer within it.
            let ends = expect == &Some(504) || *name == "stalled-body";
            let time = if ends { "1s" } else { "20s" };
            add(config, name, json!({"servers": [service.address()], "readTimeout": time}));
        }
    })
    .await;
    let h2 = world.client.connect_h2(None).await.expect("h2");
    let mut table = Table::default();
    for (name, service, expect) in &services {
        // The second time on what may be left of the first.
        for round in ["HTTP/1.1", "HTTP/1.1 again", "HTTP/2"] {
            let row = format!("{name}, {round}");
            let (before, start) = (service.requests(), Instant::now());
            let request = Request::new("GET", &format!("/{name}"));
            let answer = match round {
                "HTTP/2" => h2.send(&request).await,
                _ => world.send(&request).await,
            };
            match expect {
                Some(expect) => {
                    table.row(&row, expect_eq("status", &status(&answer), &Ok(*expect)));
                }
                None => table.row(&row, expect_eq("whole", &answer.is_ok(), &false)),
            }
            if let Ok(answer) = &answer
                && answer.status() >= 500
            {
                let fields = ["error", "decisionId"].map(|key| answer.json()[key].is_string());
                table.row(&row, expect_eq("JSON", &fields, &[true, true]));
            }
            if expect == &Some(200) {
                let body = answer.map(|answer| answer.body).unwrap_or_default();
                table.row(&row, expect_eq("body", &body.as_slice(), &b"ab"));
            }
            table.row(&row, expect_eq("sendings", &(service.requests() - before), &1));
            let took = start.elapsed();
            table.row(&row, expect_eq("in time", &(took < Duration::from_secs(25)), &true));
        }
    }
    // The program is still there and well, and no answer's words are in the log.
    let answer = get(&world, "/public/1").await;
    table.row("after", expect_eq("status", &status(&answer), &Ok(200)));
    let output = world.process.output();
    for word in ["hidden", "xxxxxxxx", "panicked"] {
        table.row("log", expect_eq(word, &output.contains(word), &false));
    }
}

/// A client that does not read holds up the service, not the edge's memory.
#[tokio::test(flavor = "multi_thread")]
async fn endless_answers_and_readers_who_stop() {
    let endless = vec![
        send("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"),
        Step::Endless(vec![b'x'; 64 * 1024]),
    ];
    let service = Service::start(move |_, _, _| endless.clone()).await;
    let world = World::start_with(|config| {
        add(config, "endless", json!({"servers": [service.address()]}));
    })
    .await;
    let before = world.process.memory();
    let mut readers = Vec::new();
    for _ in 0..20 {
        let mut reader = world.client.connect(None).await.expect("a connection");
        reader.write(&Request::new("GET", "/endless").bytes()).await.expect("written");
        readers.push(reader);
    }
    let mut table = Table::default();
    table.row("reached", expect_eq("requests", &asked(&service, 20).await, &20));
    tokio::time::sleep(Duration::from_secs(3)).await;
    let grown = world.process.memory().saturating_sub(before);
    let bounded = grown < 64 << 20;
    table.row("memory", bounded.then_some(()).ok_or_else(|| format!("grew by {grown} bytes")));
}

/// A connection that is kept for the next request to its server is in nobody's way.
#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_makes_room() {
    let (one, two) =
        (Service::start(|_, _, _| good("one")).await, Service::start(|_, _, _| good("two")).await);
    let world = World::start_with(|config| {
        let servers = [one.address(), two.address()];
        add(config, "narrow", json!({"servers": servers, "maxConnections": 1}));
    })
    .await;
    let mut table = Table::default();
    for time in 0..20 {
        let mut request = Request::new(["GET", "POST"][time % 2], "/narrow").body(b"x");
        if time % 5 == 4 {
            // It has a connection of its own.
            request = Request::new("GET", "/narrow")
                .field("Connection", "Upgrade")
                .field("Upgrade", "websocket");
        }
        let answer = world.send(&request).await;
        table.row(&format!("{time}"), expect_eq("status", &status(&answer), &Ok(200)));
        at_rest(&world).await;
    }
    table.row("both", expect_eq("requests", &(one.requests(), two.requests()), &(10, 10)));
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_an_upstream_are_limited() {
    let service = Service::start(|_, _, _| [vec![Step::Wait(5000)], good("well")].concat()).await;
    let world = World::start_with(|config| {
        add(config, "narrow", json!({"servers": [service.address()], "maxConnections": 2}));
    })
    .await;
    let request = Request::new("GET", "/narrow");
    let mut table = Table::default();
    for round in 1..=2 {
        let mut under_way = Vec::new();
        for _ in 0..2 {
            let (client, request) = (world.client.clone(), request.clone());
            under_way.push(tokio::spawn(async move { client.send(None, &request).await }));
        }
        table.row(
            "under way",
            expect_eq("requests", &asked(&service, 2 * round).await, &(2 * round)),
        );
        let third = world.send(&request).await;
        table.row("third", expect_eq("status", &status(&third), &Ok(503)));
        let retry = third.is_ok_and(|answer| answer.one("retry-after").is_some());
        table.row("third", expect_eq("Retry-After", &retry, &true));
        for send in under_way {
            let answer = send.await.expect("a task");
            table.row("within", expect_eq("status", &status(&answer), &Ok(200)));
        }
        at_rest(&world).await;
    }
    let most = service.connections();
    table.row("connections", expect_eq("open", &(most <= 2), &true));
}
