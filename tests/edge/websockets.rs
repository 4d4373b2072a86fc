//! How a connection becomes a WebSocket, with services that are quicker, slower and ruder than most.

use rustls::ALL_VERSIONS;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::support::Table;
use super::support::client::Request;
use super::support::pki::Issuer;
use super::support::service::{Service, Step, good, send, tls};
use super::support::world::{World, expect_eq};
use super::upstream_tls::add;

const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                         Upgrade: websocket\r\n\r\n";

fn wish(path: &str) -> Request {
    Request::new("GET", path).field("Connection", "Upgrade").field("Upgrade", "websocket")
}

/// A service that answers a connection before it is asked, and echoes what comes after the request.
async fn hasty(tls: Option<rustls::ServerConfig>) -> u16 {
    async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
        stream.write_all(SWITCHING.as_bytes()).await?;
        stream.flush().await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let (mut from, mut to) = tokio::io::split(stream);
        tokio::io::copy(&mut from, &mut to).await.map(|_| ())
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let acceptor = tls.map(|tls| TlsAcceptor::from(std::sync::Arc::new(tls)));
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                match acceptor {
                    Some(acceptor) => serve(acceptor.accept(socket).await?).await,
                    None => serve(socket).await,
                }
            });
        }
    });
    port
}

/// On a busy machine every service is one of these: its answer is there before the edge looks.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_there_at_once_opens_it_all_the_same() {
    let issuer = Issuer::new("Services");
    let own = issuer.sign(&["orders.internal"], 0);
    let clear = hasty(None).await;
    let secret = hasty(Some(tls(&own, None, ALL_VERSIONS, &[]))).await;
    let files = tempfile::tempdir().expect("a directory");
    let authorities = files.path().join("own.pem");
    std::fs::write(&authorities, issuer.pem()).expect("a directory");
    let world = World::start_with(|config| {
        add(config, "clear", json!({"servers": [format!("127.0.0.1:{clear}")]}));
        let tls = json!({"authorities": [authorities], "serverName": "orders.internal"});
        add(config, "secret", json!({"servers": [format!("127.0.0.1:{secret}")], "tls": tls}));
    })
    .await;
    let mut table = Table::default();
    for path in ["/clear", "/secret"] {
        // Each time it is a toss whether the answer is read first.
        for time in 0..20 {
            let row = format!("{path}, {time}");
            let mut socket = world.client.connect(None).await.expect("a connection");
            socket.write(&wish(path).bytes()).await.expect("a request");
            let head = socket.until(b"\r\n\r\n").await.unwrap_or_default();
            table.row(&row, expect_eq("101", &head.starts_with(b"HTTP/1.1 101 "), &true));
            for text in [&b"one"[..], b"another"] {
                // A write may go out on a connection that is closed already.
                let _ = socket.write(text).await;
                let echo = socket.exactly(text.len()).await.unwrap_or_default();
                table.row(&row, expect_eq("echo", &echo.as_slice(), &text));
            }
        }
    }
}

/// A connection on which a service did not switch is closed, the others are kept as ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_does_not_switch_is_asked_on_a_connection_of_its_own() {
    let service = Service::start(|_, _, _| good("no")).await;
    let silent = Service::start(|_, _, _| vec![]).await;
    let trickle = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(1000)).into_bytes();
    let trickling = Service::start(move |_, _, _| vec![Step::Trickle(trickle.clone(), 100)]).await;
    let world = World::start_with(|config| {
        add(config, "plain", json!({"servers": [service.address()], "idleTimeout": "60s"}));
        for (name, service) in [("silent", &silent), ("trickling", &trickling)] {
            add(config, name, json!({"servers": [service.address()], "readTimeout": "1s"}));
        }
    })
    .await;
    let mut table = Table::default();
    let mut connection = world.client.connect(None).await.expect("a connection");
    let plain = Request::new("GET", "/plain");
    for (name, request, connections) in [
        ("plain", plain.clone(), 1),
        ("wish", wish("/plain"), 2),
        ("plain again", plain.clone(), 2),
        ("wish again", wish("/plain"), 3),
        ("another wish", wish("/plain"), 4),
        ("plain at last", plain, 4),
    ] {
        let answer = connection.send(&request.bytes()).await.expect("an answer");
        table.row(name, expect_eq("status", &answer.status(), &200));
        table.row(name, expect_eq("body", &answer.body.as_slice(), &b"no"));
        table.row(name, expect_eq("connections", &service.connections(), &connections));
    }
    for path in ["/silent", "/trickling"] {
        let answer = world.send(&wish(path)).await.expect("an answer");
        table.row(path, expect_eq("status", &answer.status(), &504));
    }
}

/// What a service says of itself with its `101` is as odd as with any other answer.
#[tokio::test(flavor = "multi_thread")]
async fn odd_switches() {
    let mut table = Table::default();
    for (name, answer, status) in [
        ("ok/after an interim answer", format!("HTTP/1.1 103 X\r\n\r\n{SWITCHING}tail"), "103"),
        (
            "ok/with a length",
            SWITCHING.replace("Upgrade: ", "Content-Length: 1\r\nUpgrade: ") + "tail",
            "101",
        ),
        (
            "ok/in chunks",
            SWITCHING.replace("Upgrade: ", "Transfer-Encoding: chunked\r\nUpgrade: ") + "tail",
            "101",
        ),
        ("fail/in HTTP/1.0", SWITCHING.replace("1.1 101", "1.0 101") + "tail", "502"),
    ] {
        let service = Service::start(move |_, _, _| vec![send(&answer), Step::Close]).await;
        let world = World::start_with(|config| {
            add(config, "odd", json!({"servers": [service.address()]}));
        })
        .await;
        let mut connection = world.client.connect(None).await.expect("a connection");
        connection.write(&wish("/odd").bytes()).await.expect("a request");
        let told = String::from_utf8_lossy(&connection.rest().await).into_owned();
        let expect = format!("HTTP/1.1 {status} ");
        table.row(name, expect_eq(&told, &told.starts_with(&expect), &true));
        table.row(name, expect_eq(&told, &told.ends_with("tail"), &name.starts_with("ok/")));
        for field in ["Content-Length: 1\r", "Transfer-Encoding: chunked"] {
            let framed = told.contains(field) && name.starts_with("ok/");
            table.row(name, expect_eq(field, &framed, &false));
        }
        table
            .row(name, expect_eq("panicked", &world.process.output().contains("panicked"), &false));
    }
}

/// What is no handshake reaches the service as what it is besides.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_handshake_asks_a_service_to_switch() {
    let service = Service::start(|_, _, head| {
        let asks = head.one("upgrade").is_some() || head.one("connection").is_some();
        if asks { vec![send(SWITCHING)] } else { good("asked for nothing") }
    })
    .await;
    let world = World::start_with(|config| {
        add(config, "plain", json!({"servers": [service.address()]}));
    })
    .await;
    let mut table = Table::default();
    let other = |protocol: &str| {
        Request::new("GET", "/plain").field("Connection", "Upgrade").field("Upgrade", protocol)
    };
    let bare = Request::new("GET", "/plain").field("Upgrade", "websocket");
    let mut head = wish("/plain");
    head.method = "HEAD".to_owned();
    for (name, request, status) in [
        ("ok/a handshake", wish("/plain"), 101),
        ("ok/in capitals", other("WebSocket"), 101),
        ("ok/among others", bare.clone().field("Connection", "keep-alive, upgrade"), 101),
        ("fail/with a body", wish("/plain").body(b"body"), 200),
        ("fail/another protocol", other("h2c"), 200),
        ("fail/another one besides", other("websocket, h2c"), 200),
        ("fail/passed on by who does not know it", bare.clone(), 200),
        ("fail/of the connection before", bare.field("Connection", "close"), 200),
        ("fail/another method", head, 200),
    ] {
        let mut connection = world.client.connect(None).await.expect("a connection");
        connection.write(&request.bytes()).await.expect("a request");
        let head = connection.until(b"\r\n\r\n").await.unwrap_or_default();
        let told = String::from_utf8_lossy(&head).into_owned();
        let expect = format!("HTTP/1.1 {status} ");
        table.row(name, expect_eq(&told, &told.starts_with(&expect), &true));
    }
}
