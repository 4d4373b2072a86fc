//! Exchanges that go on: each ends with its token, its certificate or at `streamMaxAge`, in both
//! directions, whatever either side does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::support::Table;
use super::support::client::{Connection, H2, Message, Request, plain_from};
use super::support::now;
use super::support::process::free_port;
use super::support::world::{World, bearer, expect_eq, get};

/// How often a service that goes on sends something.
const TICK: Duration = Duration::from_millis(20);
/// How late an end may be on a busy machine.
const LATE: Duration = Duration::from_secs(10);
/// What is read at once.
const CHUNK: usize = 16 * 1024;

/// A service whose answers and requests have no end of their own.
struct Endless {
    port: u16,
    /// Connections (HTTP/1.1) or streams (HTTP/2) that it still has.
    open: Arc<AtomicUsize>,
    /// Bytes of request bodies.
    received: Arc<AtomicUsize>,
}

impl Endless {
    async fn start(h2c: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let service = Self { port, open: Arc::default(), received: Arc::default() };
        let (open, received) = (Arc::clone(&service.open), Arc::clone(&service.received));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (open, received) = (Arc::clone(&open), Arc::clone(&received));
                tokio::spawn(async move {
                    if h2c {
                        let _ = serve_h2c(socket, &open, &received).await;
                    } else {
                        open.fetch_add(1, Ordering::SeqCst);
                        let _ = serve(socket, &received).await;
                        open.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        service
    }

    /// Waits until it has no more than `count` connections or streams. Whether it came to that.
    async fn has(&self, count: usize) -> bool {
        self.has_within(count, LATE).await
    }

    /// Whether it has more than `count` still after some time.
    async fn keeps_more_than(&self, count: usize) -> bool {
        !self.has_within(count, LATE / 10).await
    }

    async fn has_within(&self, count: usize, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while self.open.load(Ordering::SeqCst) > count {
            if Instant::now() > until {
                return false;
            }
            tokio::time::sleep(TICK).await;
        }
        true
    }
}

/// `…/ticks`: a chunk every [`TICK`]. `…/flood`: chunks as fast as they are read. `…/silent`: a head
/// and nothing more. `…/slow`: 1000 bytes of known length, one a [`TICK`]. `…/wait`: nothing at all.
/// Bodies are counted meanwhile.
async fn serve(mut socket: TcpStream, received: &AtomicUsize) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if socket.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let start = Message::parse(&head).start;
    let kind = start.split([' ', '/', '?']).nth(3).unwrap_or_default().to_owned();
    let (mut reader, mut writer) = socket.split();
    let sending = async {
        let length =
            if kind == "slow" { "Content-Length: 1000" } else { "Transfer-Encoding: chunked" };
        if kind != "wait" {
            let head = format!("HTTP/1.1 200 OK\r\n{length}\r\n\r\n");
            writer.write_all(head.as_bytes()).await?;
        }
        loop {
            match kind.as_str() {
                "flood" => {
                    let chunk = [b"4000\r\n".as_slice(), &[b'x'; 0x4000], b"\r\n"].concat();
                    writer.write_all(&chunk).await?;
                }
                "ticks" | "slow" => {
                    tokio::time::sleep(TICK).await;
                    let chunk = if kind == "slow" { &b"x"[..] } else { b"1\r\nx\r\n" };
                    writer.write_all(chunk).await?;
                }
                _ => tokio::time::sleep(TICK).await,
            }
        }
    };
    let reading = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            match reader.read(&mut buffer).await? {
                0 => return Ok(()),
                read => received.fetch_add(read, Ordering::SeqCst),
            };
        }
    };
    tokio::select! {
        result = sending => result,
        result = reading => result,
    }
}

/// Answers each stream with a chunk every [`TICK`], and counts bodies meanwhile.
async fn serve_h2c(
    socket: TcpStream,
    open: &Arc<AtomicUsize>,
    received: &Arc<AtomicUsize>,
) -> Result<(), h2::Error> {
    let mut connection = h2::server::handshake(socket).await?;
    while let Some(stream) = connection.accept().await {
        let (request, mut answer) = stream?;
        let (open, received) = (Arc::clone(open), Arc::clone(received));
        tokio::spawn(async move {
            open.fetch_add(1, Ordering::SeqCst);
            let mut body = request.into_body();
            let mut sender = answer.send_response(http::Response::new(()), false)?;
            loop {
                tokio::select! {
                    reset = std::future::poll_fn(|cx| sender.poll_reset(cx)) => {
                        open.fetch_sub(1, Ordering::SeqCst);
                        return reset.map(|_| ());
                    }
                    Some(Ok(data)) = body.data() => {
                        let _ = body.flow_control().release_capacity(data.len());
                        received.fetch_add(data.len(), Ordering::SeqCst);
                    }
                    () = tokio::time::sleep(TICK) => {
                        let _ = sender.send_data(Bytes::from_static(b"x"), false);
                    }
                }
            }
        });
    }
    Ok(())
}

/// A world before `service`, in which clocks agree to the millisecond.
async fn world(service: &Endless, protocol: &str, change: impl FnOnce(&mut Value)) -> World {
    World::start_with(|config| {
        config["upstreams"]["endless"] = json!({
            "servers": [format!("127.0.0.1:{}", service.port)], "protocol": protocol,
        });
        for route in [0, 1] {
            config["routes"][route]["upstream"] = json!("endless");
        }
        config["upstreams"].as_object_mut().expect("upstreams").remove("echo");
        config["issuers"][0]["clockSkew"] = json!("0s");
        change(config);
    })
    .await
}

/// A request with a token that ends in `seconds`, and when that is.
async fn brief(world: &World, method: &str, target: &str, seconds: i64) -> (Request, Duration) {
    let nonce = world.nonce().await;
    let end = now() + seconds;
    let token = world.token().claim("exp", end).jkt(&world.key.jkt()).sign();
    let proof = world.proof(method, target).token(&token).nonce(&nonce).sign();
    let request = Request { method: method.to_owned(), ..get(target, &token, &proof) };
    (request, since_epoch(end))
}

fn since_epoch(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).expect("after 1970"))
}

/// Seconds since the epoch, to the millisecond.
fn clock() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970")
}

/// That something which ended now ended at `end`: not before, and soon after.
fn ended_at(end: Duration) -> Result<(), String> {
    let at = clock();
    if at < end.saturating_sub(Duration::from_millis(20)) {
        return Err(format!("ended {:?} too early", end - at));
    }
    if at > end + LATE {
        return Err(format!("ended {:?} too late", at - end));
    }
    Ok(())
}

/// That the edge told of one exchange that was cut for `reason`, once.
async fn told(world: &World, reason: &str, count: usize) -> Result<(), String> {
    let cut = |record: &Value| record["message"] == "stream ended";
    for _ in 0..1500 {
        if world.process.records(cut).len() >= count {
            break;
        }
        tokio::time::sleep(TICK).await;
    }
    let records = world.process.records(cut);
    expect_eq("records of the end", &records.len(), &count)?;
    for record in &records {
        expect_eq("reason", &record["reason"], &json!(reason))?;
        let requests = world.process.records(|other| {
            other["event"] == "authority.dpop.request"
                && other["decision_id"] == record["decision_id"]
        });
        // A public route has no such record.
        let expected = usize::from(!requests.is_empty() || reason != "max_age");
        expect_eq("records of the request", &requests.len(), &expected)?;
    }
    for known in ["token", "certificate", "max_age"] {
        let label = format!("reason=\"{known}\"");
        let counted = world.metric("holdfast_streams_ended_total", &[&label]).await;
        #[expect(clippy::cast_precision_loss, reason = "a few")]
        let expected = if known == reason { count as f64 } else { 0.0 };
        expect_eq(known, &counted, &expected)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http1_stream_ends_with_its_token() {
    let service = Endless::start(false).await;
    let world = world(&service, "http/1.1", |_| {}).await;
    let mut table = Table::default();
    for (cut, kind) in ["ticks", "silent", "wait", "slow"].into_iter().enumerate() {
        let (request, end) = brief(&world, "GET", &format!("/orders/{kind}"), 8).await;
        let mut connection = world.client.connect(None).await.expect("a connection");
        connection.write(&request.bytes()).await.expect("a request");
        let answer = rest(&mut connection).await;
        table.row(kind, ended_at(end));
        let text = String::from_utf8_lossy(&answer);
        let begun = text.starts_with("HTTP/1.1 200");
        table.row(kind, expect_eq("an answer has begun", &begun, &(kind != "wait")));
        table.row(kind, expect_eq("its end was sent", &text.ends_with("0\r\n\r\n"), &false));
        table.row(kind, expect_eq("the service was left", &service.has(0).await, &true));
        table.row(kind, told(&world, "token", cut + 1).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_and_a_steady_writer_are_cut_too() {
    let service = Endless::start(false).await;
    let world = world(&service, "http/1.1", |_| {}).await;
    let mut table = Table::default();

    // The client reads nothing: buffers fill up on the whole way.
    let (request, end) = brief(&world, "GET", "/orders/flood", 10).await;
    let mut connection = world.client.connect(None).await.expect("a connection");
    connection.write(&request.bytes()).await.expect("a request");
    // Long before the moment: whoever comes late finds it cut.
    let before = end.saturating_sub(clock()).saturating_sub(Duration::from_secs(5));
    tokio::time::sleep(before).await;
    let reading = service.open.load(Ordering::SeqCst);
    table.row("slow reader", expect_eq("connections before", &reading, &1));
    table.row("slow reader", expect_eq("the service was left", &service.has(0).await, &true));
    table.row("slow reader", ended_at(end));

    // The same on HTTP/2: the stream's window is full.
    let h2 = world.client.connect_h2(None).await.expect("a connection");
    let (request, end) = brief(&world, "GET", "/orders/flood", 8).await;
    let _unread = h2.open(&request, true).await.expect("a stream");
    tokio::time::sleep(end.saturating_sub(clock())).await;
    table.row("HTTP/2", expect_eq("the service was left", &service.has(0).await, &true));
    table.row("HTTP/2", ended_at(end));

    // The client sends without end, and the service says nothing.
    let (request, end) = brief(&world, "POST", "/orders/wait", 8).await;
    let request = request.field("Transfer-Encoding", "chunked");
    let mut connection = world.client.connect(None).await.expect("a connection");
    connection.write(&request.bytes()).await.expect("a request");
    while connection.write(b"1\r\nx\r\n").await.is_ok() {
        tokio::time::sleep(TICK).await;
        if clock() > end + LATE {
            break;
        }
    }
    table.row("writer", ended_at(end));
    table.row("writer", expect_eq("the service was left", &service.has(0).await, &true));
    table.row("writer", told(&world, "token", 3).await);
    let received = service.received.load(Ordering::SeqCst);
    table.row("writer", expect_eq("its body went through before", &(received > 10), &true));
}

/// Reads a connection to its end, or for a time that no test needs.
async fn rest(connection: &mut Connection) -> Vec<u8> {
    tokio::time::timeout(LATE * 3, connection.rest()).await.unwrap_or_default()
}

/// Reads a stream of HTTP/2 to its end.
async fn drain_h2(h2: &H2, request: &Request) -> Result<(), h2::Error> {
    let (answer, _sender) = h2.open(request, true).await.expect("a stream");
    let mut body = answer.await?.into_body();
    let reading = tokio::time::timeout(LATE * 3, async {
        while let Some(data) = body.data().await {
            let data = data?;
            let _ = body.flow_control().release_capacity(data.len());
        }
        Ok(())
    });
    reading.await.unwrap_or(Ok(()))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http2_stream_is_reset_and_its_neighbours_live() {
    // Side by side, as a token lasts for seconds.
    tokio::join!(one_of_two_is_reset(true, "h2c"), one_of_two_is_reset(false, "http/1.1"));
}

async fn one_of_two_is_reset(h2c: bool, name: &str) {
    let mut table = Table::default();
    let service = Endless::start(h2c).await;
    let world = world(&service, name, |_| {}).await;
    let h2 = world.client.connect_h2(None).await.expect("a connection");
    let (first, first_end) = brief(&world, "GET", "/orders/ticks", 8).await;
    let (second, second_end) = brief(&world, "GET", "/orders/ticks", 20).await;
    let neighbour = tokio::spawn({
        let h2 = h2.clone();
        async move {
            let error = drain_h2(&h2, &second).await;
            (error, ended_at(second_end))
        }
    });
    let error = drain_h2(&h2, &first).await.expect_err("a reset");
    table.row(name, ended_at(first_end));
    table.row(name, expect_eq("reset", &error.reason(), &Some(h2::Reason::CANCEL)));
    table.row(name, expect_eq("one is left", &service.has(1).await, &true));
    table.row(name, told(&world, "token", 1).await);
    let (error, at) = neighbour.await.expect("a task");
    table.row(name, at);
    let reason = error.expect_err("a reset").reason();
    table.row(name, expect_eq("reset", &reason, &Some(h2::Reason::CANCEL)));
    table.row(name, expect_eq("none is left", &service.has(0).await, &true));
    let (third, _) = brief(&world, "GET", "/orders/ticks", 600).await;
    let (answer, _) = h2.open(&third, true).await.expect("the connection lives");
    let status = answer.await.map(|answer| answer.status().as_u16());
    table.row(name, expect_eq("the connection serves", &status.ok(), &Some(200)));
}

#[tokio::test(flavor = "multi_thread")]
async fn bidirectional_http2_passes_nothing_after_the_end() {
    let service = Endless::start(true).await;
    let world = world(&service, "h2c", |_| {}).await;
    let h2 = world.client.connect_h2(None).await.expect("a connection");
    let (request, end) = brief(&world, "GET", "/orders/ticks", 8).await;
    let (answer, mut sender) = h2.open(&request, false).await.expect("a stream");
    let mut body = answer.await.expect("an answer").into_body();
    let mut sent = 0;
    let error = loop {
        tokio::select! {
            data = body.data() => match data.expect("no clean end") {
                Ok(data) => { let _ = body.flow_control().release_capacity(data.len()); }
                Err(error) => break error,
            },
            () = tokio::time::sleep(TICK) => {
                assert!(clock() < end + LATE, "it was not cut");
                sent += usize::from(sender.send_data(Bytes::from_static(b"y"), false).is_ok());
            }
        }
    };
    let mut table = Table::default();
    table.row("both", ended_at(end));
    table.row("both", expect_eq("reset", &error.reason(), &Some(h2::Reason::CANCEL)));
    table.row("both", expect_eq("the service was left", &service.has(0).await, &true));
    let received = service.received.load(Ordering::SeqCst);
    table.row("both", expect_eq("went through", &(received > 10 && received <= sent), &true));
    tokio::time::sleep(TICK * 5).await;
    let later = service.received.load(Ordering::SeqCst);
    table.row("both", expect_eq("nothing after the end", &later, &received));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_the_certificate_that_it_rests_on() {
    let service = Endless::start(false).await;
    let world = world(&service, "http/1.1", |config| {
        config["routes"][0]["allowUnbound"] = json!(true);
    })
    .await;
    let mut table = Table::default();

    let last = now() + 8;
    let who = world.pki.until(u64::try_from(last).expect("after 1970"));
    // The last second of a certificate is its own.
    let end = since_epoch(last + 1);
    let token = world.token().x5t(&who.x5t()).sign();
    let mut connection = world.client.connect(Some(&who)).await.expect("a connection");
    connection.write(&bearer("/orders/ticks", &token).bytes()).await.expect("a request");
    let unbound = world.token().claim("exp", last + 12).sign();
    let mut beside = world.client.connect(Some(&who)).await.expect("a connection");
    beside.write(&bearer("/orders/ticks", &unbound).bytes()).await.expect("a request");
    let answer = rest(&mut connection).await;
    table.row("bound", ended_at(end));
    table.row("bound", expect_eq("200", &answer.starts_with(b"HTTP/1.1 200"), &true));
    table.row("bound", told(&world, "certificate", 1).await);
    // A certificate that was only shown ends nothing; the token does.
    rest(&mut beside).await;
    table.row("shown beside", ended_at(since_epoch(last + 12)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_certificate_is_revoked() {
    let service = Endless::start(false).await;
    let world = World::start_in(|directory, pki, config| {
        std::fs::write(directory.join("list.crl"), pki.revocation_list(&[], 2100)).expect("a list");
        config["edge"]["listeners"][0]["tls"]["revocation"] = json!({ "crls": ["list.crl"] });
        config["upstreams"]["echo"]["servers"] = json!([format!("127.0.0.1:{}", service.port)]);
    })
    .await;
    let mut table = Table::default();
    let mut open = Vec::new();
    for who in [&world.pki.alice, &world.pki.bob] {
        let token = world.token().x5t(&who.x5t()).sign();
        let mut connection = world.client.connect(Some(who)).await.expect("a connection");
        connection.write(&bearer("/orders/ticks", &token).bytes()).await.expect("a request");
        connection.until(b"\r\n\r\n").await.expect("a head");
        open.push(connection);
    }
    // A reload that takes nothing away ends nothing.
    assert!(world.told_to_reload().await, "{}", world.process.output());
    table.row("before", expect_eq("streams", &service.keeps_more_than(1).await, &true));
    world.write("list.crl", &world.pki.revocation_list(&[&world.pki.alice], 2100));
    assert!(world.told_to_reload().await);
    table.row("alice", expect_eq("one is left", &service.has(1).await, &true));
    table.row("alice", told(&world, "certificate", 1).await);
    table.row("bob", expect_eq("goes on", &service.keeps_more_than(0).await, &true));
    rest(&mut open[0]).await;
}

/// What a proxy hands on counts as long as the proxy is believed.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_the_bearer_of_its_certificate_is_no_longer_believed() {
    let (service, port) = (Endless::start(false).await, free_port());
    let mut world = World::start_with(|config| {
        let listeners = config["edge"]["listeners"].as_array_mut().expect("a list");
        let trusted = json!([{"cidr": "127.0.0.1", "believe": ["certificate"]}]);
        listeners.push(json!({"name": "plain", "address": format!("127.0.0.1:{port}"),
                              "trustedProxies": trusted}));
        config["upstreams"]["echo"]["servers"] = json!([format!("127.0.0.1:{}", service.port)]);
    })
    .await;
    let mut table = Table::default();
    let mut open = Vec::new();
    for handed_on in [true, false] {
        let token = world.token().x5t(&world.pki.alice.x5t()).sign();
        let der = STANDARD.encode(&world.pki.alice.certificate_der);
        let request = bearer("/orders/ticks", &token).field("Client-Cert", format!(":{der}:"));
        if handed_on {
            let mut connection = plain_from("127.0.0.1", port).await.expect("a connection");
            connection.write(&request.bytes()).await.expect("a request");
            connection.until(b"\r\n\r\n").await.expect("a head");
            open.push(connection);
        } else {
            let mut own = world.client.connect(Some(&world.pki.alice)).await.expect("one");
            own.write(&request.bytes()).await.expect("a request");
            own.until(b"\r\n\r\n").await.expect("a head");
            tokio::spawn(async move { own.rest().await });
        }
    }
    assert!(world.told_to_reload().await, "{}", world.process.output());
    table.row("before", expect_eq("streams", &service.keeps_more_than(1).await, &true));
    world.config["edge"]["listeners"][1]["trustedProxies"][0]["believe"] = json!(["address"]);
    assert!(world.reload().await);
    table.row("after", expect_eq("one is left", &service.has(1).await, &true));
    table.row("after", told(&world, "certificate", 1).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_at_the_routes_age() {
    let service = Endless::start(false).await;
    let world = world(&service, "http/1.1", |config| {
        config["routes"][0]["streamMaxAge"] = json!("5s");
        config["routes"][1]["streamMaxAge"] = json!("6s");
    })
    .await;
    let mut table = Table::default();
    for (cut, (name, target, age)) in
        [("resource", "/orders/ticks", 5), ("public", "/public/ticks", 6)].into_iter().enumerate()
    {
        let (request, _) = brief(&world, "GET", target, 600).await;
        let mut connection = world.client.connect(None).await.expect("a connection");
        let start = clock();
        connection.write(&request.bytes()).await.expect("a request");
        let answer = rest(&mut connection).await;
        table.row(name, ended_at(start + Duration::from_secs(age)));
        table.row(name, expect_eq("200", &answer.starts_with(b"HTTP/1.1 200"), &true));
        table.row(name, told(&world, "max_age", cut + 1).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_by_itself_is_not_cut() {
    let world = World::start_with(|config| {
        config["issuers"][0]["clockSkew"] = json!("0s");
        config["routes"][0]["streamMaxAge"] = json!("6s");
    })
    .await;
    let mut connection = world.client.connect(None).await.expect("a connection");
    let mut table = Table::default();
    // The connection outlives each exchange's end.
    for round in ["first", "second", "third"] {
        let (request, _) = brief(&world, "GET", "/orders/1", 6).await;
        let answer = connection.send(&request.bytes()).await;
        table.row(round, expect_eq("status", &answer.map(|it| it.status()), &Ok(200)));
        tokio::time::sleep(Duration::from_secs(7)).await;
    }
    table.row("none", told(&world, "token", 0).await);
}

/// RFC 8441 is not offered: `SETTINGS_ENABLE_CONNECT_PROTOCOL` is not sent, and CONNECT is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_over_http2_is_refused() {
    let world = World::start().await;
    let h2 = world.client.connect_h2(None).await.expect("a connection");
    let mut table = Table::default();
    let warmed = h2.send(&Request::new("GET", "/public/1")).await;
    table.row("warm", expect_eq("status", &warmed.map(|it| it.status()), &Ok(200)));
    table.row("setting", expect_eq("offered", &h2.offers_connect(), &false));
}
