//! Services that answer what they should not, and clients that ask what some services misread.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::support::Table;
use super::support::client::Request;
use super::support::world::{Expect, World, expect_eq};

use Expect::Refused;

/// A service that answers every request with these bytes and closes. An `{echo}` at their end: what
/// comes after the request is sent back for as long as it comes.
async fn service(answer: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|four| four == b"\r\n\r\n") {
                    if socket.read_buf(&mut head).await.unwrap_or_default() == 0 {
                        return;
                    }
                }
                let fixed = answer.strip_suffix("{echo}");
                let _ = socket.write_all(fixed.unwrap_or(answer).as_bytes()).await;
                let mut rest = [0; 64];
                while fixed.is_some() {
                    let read = socket.read(&mut rest).await.unwrap_or_default();
                    if read == 0 || socket.write_all(&rest[..read]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

/// Sends every request for `/public/*` to the service on `port`.
fn to(port: u16) -> impl FnOnce(&mut Value) {
    move |config| config["upstreams"]["echo"]["servers"] = json!([format!("127.0.0.1:{port}")])
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_answers() {
    const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let mut table = Table::default();
    for (name, answer, holds, never) in [
        (
            "an interim answer says nothing in our name",
            "HTTP/1.1 103 Early Hints\r\nLink: </style>\r\nX-Holdfast-Subject: evil\r\n\
             X_Holdfast_Result: evil\r\nX-Request-Id: evil\r\n\r\n\
             HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "Link: </style>",
            "evil",
        ),
        (
            "a switch that nobody asked for",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: evil\r\n\r\nevil",
            "HTTP/1.1 502 ",
            "evil",
        ),
        (
            "a length in two fields",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
            "Content-Length: 2\r\n",
            "Content-Length: 2\r\nContent-Length: 2",
        ),
        (
            "a length as a list",
            "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
            "Content-Length: 2\r\n",
            "2, 2",
        ),
        (
            "a length of nothing",
            "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nevil",
            "HTTP/1.1 204 ",
            "Content-Length",
        ),
        ("a good one", GOOD, "ok", "502"),
    ] {
        let world = World::start_with(to(service(answer).await)).await;
        let request = Request::new("GET", "/public/1").field("Connection", "close");
        let mut connection = world.client.connect(None).await.expect("a connection");
        connection.write(&request.bytes()).await.expect("a write");
        let read = String::from_utf8_lossy(&connection.rest().await).into_owned();
        table.row(name, expect_eq(&read, &read.contains(holds), &true));
        table.row(name, expect_eq(&read, &read.contains(never), &false));
    }
}

/// A connection that was switched may rest; one that only said that it would like to may not.
#[tokio::test(flavor = "multi_thread")]
async fn upgrades() {
    let switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                     Upgrade: websocket\r\n\r\n{echo}";
    let world = World::start_with(|config| {
        config["edge"]["listeners"][0]["bodyTimeout"] = json!("1s");
        config["upstreams"]["echo"]["readTimeout"] = json!("20s");
    })
    .await;
    let mut table = Table::default();
    let wish = |method: &str| {
        Request::new(method, "/public/1")
            .field("Connection", "Upgrade")
            .field("Upgrade", "websocket")
    };
    let stalled = wish("POST").field("Content-Length", "10");
    let answer = world.client.send_bytes(None, &stalled.bytes()).await.expect("an answer");
    table.row("fail/a body that stalls", expect_eq("status", &answer.status(), &408));

    let port = service(switching).await;
    let world = World::start_with(|config| {
        to(port)(config);
        config["edge"]["listeners"][0]["bodyTimeout"] = json!("1s");
    })
    .await;
    let mut connection = world.client.connect(None).await.expect("a connection");
    connection.write(&wish("GET").bytes()).await.expect("a write");
    let head = connection.until(b"\r\n\r\n").await.expect("a head");
    table.row("ok/switched", expect_eq("101", &head.starts_with(b"HTTP/1.1 101 "), &true));
    for text in ["at once", "after a rest"] {
        connection.write(text.as_bytes()).await.expect("a write");
        let echo = connection.exactly(text.len()).await.unwrap_or_default();
        table.row("ok/echo", expect_eq("echo", &echo.as_slice(), &text.as_bytes()));
        tokio::time::sleep(Duration::from_millis(2500)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_services_misread() {
    let world = World::start().await;
    let mut table = Table::default();
    for target in ["/public/..;/orders/1", "/public/%2e%2e;x=1/orders/1", "/public/.;/1"] {
        let answer = world.send(&Request::new("GET", target)).await;
        table.row(target, world.judge(answer, Refused("path_invalid")).await);
    }
    let once = |name: &str, values: &[&str]| {
        values.iter().fold(Request::new("POST", "/public/1"), |it, value| it.field(name, *value))
    };
    for (name, values, expect) in [
        ("Content-Length", &["3", "3"][..], &["3"][..]),
        ("Content-Length", &["3 , 3"], &["3"]),
        ("Cookie", &["a=1", "b=2", "c=3"], &["a=1; b=2; c=3"]),
        ("Cookie", &["a=1; b=2"], &["a=1; b=2"]),
        ("X-Other", &["1", "2"], &["1", "2"]),
    ] {
        let mut request = once(name, values);
        if name == "Content-Length" {
            request.body = b"abc".to_vec();
        }
        let seen = world.send(&request).await.expect("an answer").seen();
        let found = seen.all(&name.to_ascii_lowercase());
        table.row(&format!("{name}: {values:?}"), expect_eq("upstream", &found, &expect));
    }
    let crumbs = Request::new("GET", "/public/1").field("Cookie", "a=1").field("Cookie", "b=2");
    let connection = world.client.connect_h2(None).await.expect("h2");
    let seen = connection.send(&crumbs).await.expect("an answer").seen();
    table.row("crumbs of HTTP/2", expect_eq("upstream", &seen.all("cookie"), &["a=1; b=2"]));
}

/// Whoever can connect cannot write warnings and errors into the log.
#[tokio::test(flavor = "multi_thread")]
async fn clients_do_not_fill_the_log() {
    let world = World::start_with(|config| {
        config["edge"]["listeners"][0]["headTimeout"] = json!("6s");
    })
    .await;
    let mut idle = world.client.connect(None).await.expect("a connection");
    let mut cut = world.client.connect(None).await.expect("a connection");
    cut.write(b"GET /public/1 HTTP/1.1\r\n").await.expect("a write");
    let mut broken = world.client.connect(None).await.expect("a connection");
    broken.write(b"nonsense\r\n\r\n").await.expect("a write");
    for connection in [&mut idle, &mut cut, &mut broken] {
        let _ = connection.rest().await;
    }
    let lost = world.metric_once("holdfast_connections_lost_total", &["head-timeout"], 2.0).await;
    let mut table = Table::default();
    table.row("counted", expect_eq("lost", &lost, &2.0));
    let loud = world.process.records(|line| line["level"] == "ERROR" || line["level"] == "WARN");
    table.row("loud", expect_eq("lines", &loud, &Vec::<Value>::new()));
}
