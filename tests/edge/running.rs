//! The edge as a server: HTTP/1.1, HTTP/2, bodies, TLS versions, upstreams, and its end.

use std::time::Duration;

use serde_json::json;

use super::support::Table;
use super::support::client::{Request, patiently};
use super::support::service::{Service, Step, good, send};
use super::support::upstream::Upstream;
use super::support::world::{Expect, World, expect_eq, get};

use Expect::{Admitted, Public, Refused};

#[tokio::test(flavor = "multi_thread")]
async fn http_2() {
    let world = World::start().await;
    let token = world.bound();
    let nonce = world.nonce().await;
    let good = |method: &str| {
        let proof = world.proof(method, "/orders/1").token(&token).nonce(&nonce).sign();
        let mut request = get("/orders/1", &token, &proof);
        request.method = method.to_owned();
        request
    };
    let connection = world.client.connect_h2(None).await.expect("h2");
    let mut table = Table::default();
    let used = good("GET");
    let lower = used.clone().without("DPoP");
    for (name, request, expect) in [
        ("ok/get", used.clone(), Admitted("dpop")),
        ("fail/again", used, Refused("proof_replayed")),
        ("ok/with a body", good("POST").body(b"hello"), Admitted("dpop")),
        ("fail/no proof", lower, Refused("proof_missing")),
        ("fail/two proofs", good("GET").field("DPoP", "x"), Refused("proof_repeated")),
        (
            "fail/two tokens",
            good("GET").field("Authorization", "DPoP x"),
            Refused("authorization_repeated"),
        ),
        ("fail/another host", good("GET").host("evil.example"), Refused("route_unknown")),
        ("ok/public", Request::new("GET", "/public/1"), Public),
        ("fail/path", Request::new("GET", "/public/%2F"), Refused("path_invalid")),
    ] {
        let answer = connection.send(&request).await;
        table.row(name, world.judge(answer, expect).await);
    }
    table.row("body", expect_eq("body", &world.upstream.last_body().as_slice(), &b"hello"));
    let certified = world.token().x5t(&world.pki.alice.x5t()).sign();
    let request = super::support::world::bearer("/orders/1", &certified);
    let alice = world.client.connect_h2(Some(&world.pki.alice)).await.expect("h2");
    table.row("ok/mtls", world.judge(alice.send(&request).await, Admitted("mtls")).await);
    let refused = Refused("missing-certificate");
    table.row("fail/mtls", world.judge(connection.send(&request).await, refused).await);
}

/// A stream may end with a frame of no bytes, and many clients' do. The service, which speaks HTTP/1.1, must
/// not take that for the begin of another request.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_http_2_end_once() {
    let world = World::start().await;
    let connection = world.client.connect_h2(None).await.expect("h2");
    let mut table = Table::default();
    for (row, frames) in [
        ("at once", &["", ""][..1]),
        ("after bytes", &["one", ""]),
        ("with the last bytes", &["one", "two"]),
        ("after a frame of no bytes", &["one", "", "two", ""]),
    ] {
        for field in [None, Some("Content-Length"), Some("Expect")] {
            let name = format!("{row}, {field:?}");
            let before = world.upstream.count();
            let whole = frames.concat();
            let mut request = Request::new("POST", "/public/1");
            match field {
                Some("Expect") => request = request.field("Expect", "100-continue"),
                Some(field) => request = request.field(field, whole.len().to_string()),
                None => {}
            }
            let (answer, mut body) = connection.open(&request, false).await.expect("a stream");
            for (place, frame) in frames.iter().enumerate() {
                let end = place + 1 == frames.len();
                body.send_data(frame.to_string().into(), end).expect("an open stream");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let status = patiently(answer).await.map(|answer| answer.status().as_u16());
            table.row(&name, expect_eq("status", &status, &Ok(200)));
            if !whole.is_empty() {
                let last = world.upstream.last_body();
                table.row(&name, expect_eq("body", &last.as_slice(), &whole.as_bytes()));
            }
            // It comes on the same connection.
            let next = world.send(&Request::new("GET", "/public/next")).await.expect("an answer");
            let seen = next.seen().start;
            table.row(&name, expect_eq("next", &seen.as_str(), &"GET /public/next HTTP/1.1"));
            table.row(&name, expect_eq("requests", &(world.upstream.count() - before), &2));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_many_requests_each_judged() {
    let world = World::start().await;
    let token = world.bound();
    let nonce = world.nonce().await;
    let mut connection = world.client.connect(None).await.expect("a connection");
    let mut table = Table::default();
    for round in 0..5 {
        let proof = world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
        let good = get("/orders/1", &token, &proof);
        let refused = good.clone().without("DPoP");
        let answer = connection.send(&good.bytes()).await;
        table.row(&format!("ok/{round}"), world.judge(answer, Admitted("dpop")).await);
        let answer = connection.send(&refused.bytes()).await;
        table.row(&format!("fail/{round}"), world.judge(answer, Refused("proof_missing")).await);
    }
    // A refused body is not taken for the next request.
    let hidden = Request::new("GET", "/orders/hidden").bytes();
    let post = Request::new("POST", "/orders/1").body(&hidden);
    let answer = connection.send(&post.bytes()).await;
    table.row("fail/body", world.judge(answer, Refused("token_missing")).await);
    let count = world.upstream.count();
    table.row("upstream", expect_eq("requests", &count, &5));
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies() {
    let world = World::start().await;
    let mut table = Table::default();
    let large: Vec<u8> = (0..3_000_000_u32).map(|index| (index % 251) as u8).collect();
    let request = Request::new("PUT", "/public/large").body(&large);
    let answer = world.send(&request).await;
    table.row("ok/3 MB", world.judge(answer, Public).await);
    table.row("ok/3 MB", expect_eq("same", &(world.upstream.last_body() == large), &true));
    let mut chunked = Request::new("POST", "/public/chunked").field("Transfer-Encoding", "chunked");
    chunked.body = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n".to_vec();
    let answer = world.send(&chunked).await;
    table.row("ok/chunked", world.judge(answer, Public).await);
    let body = world.upstream.last_body();
    table.row("ok/chunked", expect_eq("body", &body.as_slice(), &b"hello world"));
    let answer = world.send(&Request::new("HEAD", "/public/1")).await.expect("an answer");
    table.row("ok/HEAD", expect_eq("status", &answer.status(), &200));
}

/// Probes and old clients speak it. What has no length ends for them with the connection.
#[tokio::test(flavor = "multi_thread")]
async fn http_1_0() {
    let chunked =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n";
    let mut table = Table::default();
    for (name, steps) in [
        ("ok/with a length", good("abc")),
        (
            "ok/after an interim answer",
            [vec![send("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")], good("abc")].concat(),
        ),
        ("ok/in chunks", vec![send(chunked)]),
        ("ok/till the end", vec![send("HTTP/1.1 200 OK\r\n\r\nabc"), Step::Close]),
        ("ok/in chunks from HTTP/1.0", vec![send(&chunked.replace("/1.1", "/1.0")), Step::Close]),
        ("ok/from HTTP/1.0", vec![send("HTTP/1.0 200 OK\r\n\r\nabc"), Step::Close]),
    ] {
        let service = Service::start(move |_, _, _| steps.clone()).await;
        let world = World::start_with(|config| {
            config["upstreams"]["echo"]["servers"] = json!([service.address()]);
        })
        .await;
        for field in ["", "Connection: keep-alive\r\n"] {
            let name = format!("{name} {}", field.trim());
            let request = format!("GET /public/1 HTTP/1.0\r\nHost: api.example\r\n{field}\r\n");
            let mut connection = world.client.connect(None).await.expect("a connection");
            connection.write(request.as_bytes()).await.expect("a write");
            let head = connection.until(b"\r\n\r\n").await.unwrap_or_default();
            let head = String::from_utf8_lossy(&head).to_lowercase();
            table.row(&name, expect_eq(&head, &head.starts_with("http/1.1 200 "), &true));
            table.row(&name, expect_eq("chunked", &head.contains("transfer-encoding"), &false));
            let ends = !head.contains("content-length");
            table.row(&name, expect_eq(&head, &(ends && head.contains("keep-alive")), &false));
            let body = if ends {
                connection.rest().await
            } else {
                connection.exactly(3).await.unwrap_or_default()
            };
            table.row(&name, expect_eq("body", &body.as_slice(), &b"abc"));
        }
        let answer = world.send(&Request::new("GET", "/public/1")).await.expect("an answer");
        table.row(name, expect_eq("in 1.1", &answer.body.as_slice(), &b"abc"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_versions_and_names() {
    static TLS12: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS12];
    static TLS13: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];
    let request = Request::new("GET", "/public/1");
    let mut table = Table::default();
    for (minimum, versions, passes) in
        [("1.2", TLS12, true), ("1.2", TLS13, true), ("1.3", TLS12, false), ("1.3", TLS13, true)]
    {
        let world = World::start_with(|config| {
            config["edge"]["listeners"][0]["tls"]["minVersion"] = json!(minimum);
        })
        .await;
        let mut client = world.client.clone();
        client.versions = versions;
        let answer = client.send(None, &request).await;
        let name = format!("at least {minimum}, offered {:?}", versions[0].version);
        table.row(&name, expect_eq("passes", &answer.is_ok(), &passes));
        client.versions = TLS13;
        client.name = "other.example";
        let answer = client.send(None, &request).await;
        table.row("another name of the certificate", world.judge(answer, Public).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_servers_take_turns() {
    let second = Upstream::start().await;
    let port = second.port;
    let world = World::start_with(|config| {
        let servers = config["upstreams"]["echo"]["servers"].as_array_mut().expect("servers");
        servers.push(json!(format!("127.0.0.1:{port}")));
    })
    .await;
    let mut table = Table::default();
    for _ in 0..10 {
        let answer = world.send(&Request::new("GET", "/public/1")).await;
        table.row("ok", world.judge(answer, Public).await);
    }
    table.row("turns", expect_eq("requests", &(world.upstream.count(), second.count()), &(5, 5)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_speaks_http_2() {
    let second = Upstream::start_h2c().await;
    let port = second.port;
    let world = World::start_with(|config| {
        config["upstreams"]["echo"] =
            json!({"servers": [format!("127.0.0.1:{port}")], "protocol": "h2c"});
    })
    .await;
    let token = world.bound();
    let nonce = world.nonce().await;
    let good = || {
        let proof = world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
        get("/orders/1", &token, &proof)
    };
    let connection = world.client.connect_h2(None).await.expect("h2");
    let mut table = Table::default();
    let answer = world.send(&good()).await;
    table.row("ok/from HTTP/1.1", world.judge(answer, Admitted("dpop")).await);
    let answer = connection.send(&good()).await;
    table.row("ok/from HTTP/2", world.judge(answer.clone(), Admitted("dpop")).await);
    let trailer = answer.as_ref().ok().and_then(|answer| answer.one("grpc-status"));
    table.row("ok/trailers", expect_eq("grpc-status", &trailer, &Some("0")));
    let mut all = Vec::new();
    for _ in 0..50 {
        let (connection, request) = (connection.clone(), good());
        all.push(tokio::spawn(async move { connection.send(&request).await }));
    }
    for send in all {
        let answer = send.await.expect("a task");
        table.row("ok/at once", world.judge(answer, Admitted("dpop")).await);
    }
    table.row("upstream", expect_eq("requests", &second.count(), &52));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_not_there() {
    let world = World::start_with(|config| {
        let port = super::support::process::free_port();
        config["upstreams"]["gone"] = json!({"servers": [format!("127.0.0.1:{port}")]});
        config["routes"][1]["upstream"] = json!("gone");
    })
    .await;
    let answer = world.send(&Request::new("GET", "/public/1")).await.expect("an answer");
    let mut table = Table::default();
    table.row("gone", expect_eq("status", &answer.status(), &502));
    table.row("gone", expect_eq("error", &answer.json()["error"].is_string(), &true));
    let told = String::from_utf8_lossy(&answer.body).contains("127.0.0.1");
    table.row("gone", expect_eq("tells where", &told, &false));
}

/// What is under way is finished, what is new is not taken, and then it ends.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains() {
    let mut world = World::start().await;
    let client = world.client.clone();
    let slow = Request::new("GET", "/public/slow").field("X-Test-Delay", "1500");
    let under_way = tokio::spawn(async move { client.send(None, &slow).await });
    while world.upstream.count() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    world.process.terminate();
    let answer = under_way.await.expect("a task");
    let mut table = Table::default();
    table.row("ok/under way", world.judge(answer, Public).await);
    let status = world.process.ended().await;
    table.row("ended", expect_eq("well", &status.is_some_and(|status| status.success()), &true));
    let answer = world.send(&Request::new("GET", "/public/1")).await;
    table.row("fail/after", expect_eq("refused", &answer.is_err(), &true));
}

/// A head that never ends does not hold a connection for ever.
#[tokio::test(flavor = "multi_thread")]
async fn slow_heads_and_idle_connections_are_closed() {
    let world = World::start_with(|config| {
        let listener = &mut config["edge"]["listeners"][0];
        listener["headTimeout"] = json!("1s");
        listener["keepaliveTimeout"] = json!("1s");
    })
    .await;
    let mut table = Table::default();
    let mut trickled = world.client.connect(None).await.expect("a connection");
    let _ = trickled.write(b"GET /public/1 HTTP/1.1\r\nHost: api.example\r\n").await;
    for index in 0..8 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        let _ = trickled.write(format!("X-{index}: x\r\n").as_bytes()).await;
    }
    let _ = trickled.write(b"\r\n").await;
    let answer = trickled.answer(false).await;
    let served = answer.is_ok_and(|answer| answer.status() == 200);
    table.row("trickled", expect_eq("served", &served, &false));
    let request = Request::new("GET", "/public/1").bytes();
    let mut attempts = 0;
    let (mut idle, answer) = loop {
        let mut idle = world.client.connect(None).await.expect("a connection");
        let answer = idle.send(&request).await;
        attempts += 1;
        // A busy machine may not have sent the whole head in time.
        if attempts == 10 || answer.as_ref().is_ok_and(|answer| answer.status() == 200) {
            break (idle, answer);
        }
    };
    table.row("idle", world.judge(answer, Public).await);
    table.row("idle", expect_eq("closed", &idle.is_closed().await, &true));
}

/// Answers without a body are writes like any other.
#[tokio::test(flavor = "multi_thread")]
async fn who_reads_no_answer_is_closed() {
    let world = World::start_with(|config| {
        config["edge"]["listeners"][0]["bodyTimeout"] = json!("1s");
    })
    .await;
    let open = async |expected: f64| {
        world.metric_once("holdfast_connections", &["listener=\"main\""], expected).await
    };
    let mut head = Request::new("HEAD", "/public/1");
    for place in 0..5 {
        head = head.field("X-Test-Answer", format!("X-{place}={}", "x".repeat(4000)));
    }
    let mut silent = world.client.connect(None).await.expect("a connection");
    let mut table = Table::default();
    table.row("asks", expect_eq("open", &open(1.0).await, &1.0));
    let mut asked = 0;
    // What the edge and the system take for it is full at some time. Then it is no longer heard.
    for _ in 0..900 {
        if silent.write(&head.bytes()).await.is_err() {
            break;
        }
        let waits = async {
            while world.upstream.count() == asked {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if tokio::time::timeout(Duration::from_millis(500), waits).await.is_err() {
            break;
        }
        asked += 1;
        // The answer is written.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    table.row("reads nothing", expect_eq("asked", &(20..900).contains(&asked), &true));
    table.row("reads nothing", expect_eq("open", &open(0.0).await, &0.0));
}

/// The next connection is closed, those that are open go on.
#[tokio::test(flavor = "multi_thread")]
async fn connections_and_handshakes_are_limited() {
    let world = World::start_with(|config| {
        let listener = &mut config["edge"]["listeners"][0];
        listener["maxConnections"] = json!(5);
        listener["tls"]["handshakeTimeout"] = json!("5s");
    })
    .await;
    let request = Request::new("GET", "/public/1").bytes();
    let mut table = Table::default();
    let mut open = Vec::new();
    for _ in 0..5 {
        let mut connection = world.client.connect(None).await.expect("a connection");
        let answer = connection.send(&request).await;
        table.row("ok/within", world.judge(answer, Public).await);
        open.push(connection);
    }
    let sixth = world.client.send_bytes(None, &request).await;
    table.row("fail/one more", expect_eq("refused", &sixth.is_err(), &true));
    for connection in &mut open {
        let answer = connection.send(&request).await;
        table.row("ok/still", world.judge(answer, Public).await);
    }
    drop(open);
    // Nobody speaks: the handshake's time ends it.
    let mut silent = tokio::net::TcpStream::connect(("127.0.0.1", world.client.port))
        .await
        .expect("a connection");
    let read = tokio::io::AsyncReadExt::read_u8(&mut silent);
    let ended = patiently(read).await;
    let closed = ended.is_err_and(|fault| !fault.contains("nothing came"));
    table.row("silent", expect_eq("closed", &closed, &true));
}
