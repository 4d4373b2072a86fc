//! The edge over real sockets, with public routes: what it does before and around a decision.

#![expect(clippy::disallowed_methods, reason = "tests use files, tasks and the clock")]

mod keys;

use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::config;

/// What the upstream saw, one request a string.
type Seen = Arc<Mutex<Vec<String>>>;

/// A service that answers every request with 200 and remembers its head and body.
async fn upstream() -> (SocketAddr, Seen) {
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let seen = Seen::default();
    let keep = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = socket.accept().await.unwrap();
            let keep = Arc::clone(&keep);
            tokio::spawn(async move {
                while let Some(request) = read_message(&mut stream).await {
                    keep.lock().unwrap().push(request);
                    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nDPoP-Nonce: theirs\r\n\
                                  X-Holdfast-Subject: mallory\r\nX-Request-Id: theirs\r\n\r\nok";
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    (address, seen)
}

/// One HTTP/1.1 message, by its `Content-Length`; `None` at the end of the stream.
async fn read_message(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length = length.map_or(0, |length| length.trim().parse().unwrap());
    while bytes.len() < end + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            break;
        }
    }
    Some(String::from_utf8(bytes).unwrap())
}

/// An authority, an edge certificate for `localhost` and a client certificate, as files.
struct Pki {
    directory: tempfile::TempDir,
}

impl Pki {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = authority.self_signed(&key).unwrap();
        let authority = Issuer::new(authority, key);
        std::fs::write(directory.path().join("ca.pem"), certificate.pem()).unwrap();
        for name in ["localhost", "client"] {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &authority).unwrap();
            let write = |end: &str, pem: String| {
                std::fs::write(directory.path().join(format!("{name}.{end}")), pem).unwrap();
            };
            write("pem", certificate.pem());
            write("key", key.serialize_pem());
        }
        Self { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn connector(&self, with_certificate: bool) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path().join("ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = if with_certificate {
            let chain = CertificateDer::from_pem_file(self.path().join("client.pem")).unwrap();
            let key = PrivateKeyDer::from_pem_file(self.path().join("client.key")).unwrap();
            builder.with_client_auth_cert(vec![chain], key).unwrap()
        } else {
            builder.with_no_client_auth()
        };
        Arc::new(config).into()
    }
}

/// An edge before one upstream. `listener` and `upstream` add to their entries.
fn edge(pki: &Pki, server: SocketAddr, listener: &Value, upstream: &Value) -> Running {
    let mut first = json!({
        "name": "public",
        "address": "127.0.0.1:0",
        "tls": { "certificates": [{ "certificate": "localhost.pem", "key": "localhost.key" }] },
    });
    merge(&mut first, listener);
    let mut service = json!({ "servers": [server.to_string()] });
    merge(&mut service, upstream);
    let route = |name: &str, path: &str| {
        json!({ "name": name, "hosts": ["localhost"], "path": path, "role": "public",
                "upstream": "api" })
    };
    let mut one = route("one", "/one");
    one["methods"] = json!(["POST", "GET"]);
    let mut open = route("open", "/open/*");
    open["passCredentials"] = json!(true);
    let file = json!({
        "schemaVersion": 1,
        "edge": {
            "listeners": [first], "admin": { "address": "127.0.0.1:0" },
            "threads": 2, "drainTimeout": "5s",
        },
        "upstreams": { "api": service },
        "routes": [route("any", "/any/*"), one, open],
    });
    let loaded = config::load_str(&file.to_string(), pki.path());
    let config = loaded.config.unwrap_or_else(|| panic!("{:#?}", loaded.findings));
    let log = Log::start(Box::new(std::io::sink()), config.telemetry.level).unwrap();
    start(&config, &log).unwrap()
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

async fn connect(
    running: &Running,
    connector: &TlsConnector,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(running.addresses().next().unwrap()).await?;
    connector.connect(ServerName::try_from("localhost").unwrap(), stream).await
}

/// Sends on a fresh connection and reads one answer.
async fn ask(running: &Running, connector: &TlsConnector, request: &str) -> Option<String> {
    let mut stream = connect(running, connector).await.ok()?;
    stream.write_all(request.as_bytes()).await.ok()?;
    read_message(&mut stream).await
}

/// Ends the edge where blocking is allowed.
async fn stop(running: Running) {
    tokio::task::spawn_blocking(|| running.stop()).await.unwrap();
}

fn field<'a>(message: &'a str, name: &str) -> Vec<&'a str> {
    let head = message.split("\r\n\r\n").next().unwrap();
    head.lines()
        .filter_map(|line| line.split_once(": "))
        .filter(|(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
        .collect()
}

fn body(message: &str) -> Value {
    serde_json::from_str(message.split("\r\n\r\n").nth(1).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_before_the_gate() {
    let pki = Pki::new();
    let (server, seen) = upstream().await;
    let running = edge(&pki, server, &json!({}), &json!({}));
    let connector = pki.connector(false);
    let long =
        format!("GET /any/ HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(33_000));
    for (request, status, error) in [
        ("GET /none HTTP/1.1\r\nHost: localhost\r\n\r\n", "404", "not_found"),
        ("GET /any/ HTTP/1.1\r\nHost: other.example\r\n\r\n", "404", "not_found"),
        ("PUT /one HTTP/1.1\r\nHost: localhost\r\n\r\n", "405", "method_not_allowed"),
        ("GET /any/ HTTP/1.1\r\n\r\n", "400", "invalid_request"),
        ("GET /any/ HTTP/1.0\r\n\r\n", "400", "invalid_request"),
        ("GET /any/ HTTP/1.1\r\nHost: a b\r\n\r\n", "400", "invalid_request"),
        ("GET /any/%2f HTTP/1.1\r\nHost: localhost\r\n\r\n", "400", "invalid_request"),
        ("GET /any/%00 HTTP/1.1\r\nHost: localhost\r\n\r\n", "400", "invalid_request"),
        (
            "GET https://localhost/any/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "400",
            "invalid_request",
        ),
        (&long, "431", "request_header_fields_too_large"),
    ] {
        let answer = ask(&running, &connector, request).await.unwrap();
        let line = request.lines().next().unwrap();
        assert_eq!(answer.split(' ').nth(1), Some(status), "{line}\n{answer}");
        let id = field(&answer, "x-request-id")[0];
        assert_eq!(body(&answer)["error"], error, "{line}");
        assert_eq!(body(&answer)["decisionId"], id, "{line}");
        assert_eq!(id.len(), 32);
        assert_eq!(field(&answer, "cache-control"), ["no-store"]);
        let allow = if status == "405" { vec!["POST, GET, HEAD"] } else { vec![] };
        assert_eq!(field(&answer, "allow"), allow, "{line}");
    }
    assert!(seen.lock().unwrap().is_empty(), "nothing of it went upstream");
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_upstream_and_comes_back_on_a_public_route() {
    let pki = Pki::new();
    let (server, seen) = upstream().await;
    let asks =
        json!({ "tls": { "clientCertificates": "request", "clientAuthorities": ["ca.pem"] } });
    let running = edge(&pki, server, &asks, &json!({ "clientCertificate": true }));
    let forged = "Host: localhost\r\nX-Holdfast-Subject: mallory\r\nX_Holdfast_Result: dpop\r\n\
                  Client-Cert: :AA==:\r\nX-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n\
                  X-Request-Id: mine\r\nAuthorization: Bearer secret\r\nDPoP: proof\r\n\
                  SSL_Client_Verify: SUCCESS\r\nX-Kept: 1\r\nX-Dropped: 1\r\n\
                  Connection: keep-alive, X-Dropped, X-Holdfast-Result, Client-Cert\r\n\r\n";
    for (connector, certificates) in [(pki.connector(true), 1), (pki.connector(false), 0)] {
        let request = format!("GET /any/a/../b%41?q=%2F&x HTTP/1.1\r\n{forged}");
        let answer = ask(&running, &connector, &request).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(field(&answer, "x-holdfast-subject").is_empty());
        assert_eq!(field(&answer, "x-request-id")[0].len(), 32);
        assert_eq!(field(&answer, "dpop-nonce"), ["theirs"], "a public service's own");
        let sent = seen.lock().unwrap().pop().unwrap();
        assert!(sent.starts_with("GET /any/bA?q=%2F&x HTTP/1.1\r\n"), "{sent}");
        for name in [
            "x-holdfast-subject",
            "x_holdfast_result",
            "x-holdfast-result",
            "authorization",
            "dpop",
            "ssl_client_verify",
            "x-dropped",
        ] {
            assert!(field(&sent, name).is_empty(), "{name}: {sent}");
        }
        assert_eq!(field(&sent, "client-cert").len(), certificates);
        assert_eq!(field(&sent, "host"), ["localhost"]);
        assert_eq!(field(&sent, "x-kept"), ["1"]);
        assert_eq!(field(&sent, "x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(field(&sent, "x-forwarded-proto"), ["https"]);
        assert_eq!(field(&sent, "forwarded"), ["for=127.0.0.1;host=\"localhost\";proto=https"]);
        assert_eq!(field(&sent, "x-request-id"), field(&answer, "x-request-id"));
    }
    let request = format!("GET /open/ HTTP/1.1\r\n{forged}");
    ask(&running, &pki.connector(false), &request).await.unwrap();
    let sent = seen.lock().unwrap().pop().unwrap();
    assert_eq!(field(&sent, "authorization"), ["Bearer secret"]);
    assert_eq!(field(&sent, "dpop"), ["proof"]);
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_certificates_as_configured() {
    let pki = Pki::new();
    let (server, _) = upstream().await;
    let get = "GET /any/ HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for (mode, without, with) in [("require", false, true), ("request", true, true)] {
        let tls = json!({ "clientCertificates": mode, "clientAuthorities": ["ca.pem"] });
        let running = edge(&pki, server, &json!({ "tls": tls }), &json!({}));
        assert_eq!(ask(&running, &pki.connector(false), get).await.is_some(), without, "{mode}");
        assert_eq!(ask(&running, &pki.connector(true), get).await.is_some(), with, "{mode}");
        let stranger = Pki::new();
        let mut connector = pki.connector(true);
        let mut config = (**connector.config()).clone();
        config.client_auth_cert_resolver =
            stranger.connector(true).config().client_auth_cert_resolver.clone();
        connector = Arc::new(config).into();
        assert!(ask(&running, &connector, get).await.is_none(), "{mode}: another authority's");
        stop(running).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_body_does_not_cost_the_connection() {
    let pki = Pki::new();
    let (server, seen) = upstream().await;
    let running = edge(&pki, server, &json!({}), &json!({}));
    let mut stream = connect(&running, &pki.connector(false)).await.unwrap();
    let refused = "POST /none HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n";
    for _ in 0..3 {
        stream.write_all(refused.as_bytes()).await.unwrap();
        stream.write_all(&[b'x'; 100_000]).await.unwrap();
        let answer = read_message(&mut stream).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    }
    stream.write_all(b"HEAD /none HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 404");
    let mut rest = vec![0; 4096];
    let read = stream.read(&mut rest).await.unwrap();
    assert!(rest[..read].ends_with(b"\r\n\r\n"), "no body after HEAD");
    let accepted = "POST /one HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc";
    stream.write_all(accepted.as_bytes()).await.unwrap();
    assert!(read_message(&mut stream).await.unwrap().ends_with("ok"));
    assert!(seen.lock().unwrap()[0].ends_with("abc"));
    // Too long to read: the answer arrives, the connection does not stay.
    let long = "POST /none HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n";
    stream.write_all(long.as_bytes()).await.unwrap();
    let answer = read_message(&mut stream).await.unwrap();
    assert_eq!(field(&answer, "connection"), ["close"]);
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trickled_head_is_cut_off_and_an_idle_connection_is_not() {
    let pki = Pki::new();
    let (server, _) = upstream().await;
    let running = edge(&pki, server, &json!({ "headTimeout": "1s" }), &json!({}));
    let get = b"GET /any/ HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for served_before in [false, true] {
        let mut stream = connect(&running, &pki.connector(false)).await.unwrap();
        if served_before {
            stream.write_all(get).await.unwrap();
            read_message(&mut stream).await.unwrap();
            // Longer than a head may take: idle is not slow.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            stream.write_all(get).await.unwrap();
            assert!(read_message(&mut stream).await.is_some(), "an idle connection is served");
        }
        let began = Instant::now();
        let mut answered = Vec::new();
        for byte in b"GET /any/ HTTP/1.1\r\nX-Slow: ".iter().chain(std::iter::repeat(&b'x')) {
            let read =
                tokio::time::timeout(Duration::from_millis(50), stream.read_buf(&mut answered));
            if matches!(read.await, Ok(Ok(0) | Err(_))) || stream.write_all(&[*byte]).await.is_err()
            {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "still open");
        }
        assert!(answered.is_empty(), "nothing to say to half a head");
    }
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_past_the_limit_are_closed() {
    let pki = Pki::new();
    let (server, _) = upstream().await;
    let running = edge(&pki, server, &json!({ "maxConnections": 2 }), &json!({}));
    let connector = pki.connector(false);
    let first = connect(&running, &connector).await.unwrap();
    let _second = connect(&running, &connector).await.unwrap();
    assert!(connect(&running, &connector).await.is_err());
    drop(first);
    for attempt in 0..500 {
        if connect(&running, &connector).await.is_ok() {
            break;
        }
        assert!(attempt < 499, "the place is not given back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_and_silent_upstreams() {
    let pki = Pki::new();
    let closed = {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap()
    };
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (alive, _) = upstream().await;
    let get = "GET /any/ HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let both = json!([closed.to_string(), alive.to_string()]);
    for (server, with, status, error) in [
        (closed, json!({}), "502", "bad_gateway"),
        (silent.local_addr().unwrap(), json!({ "readTimeout": "1s" }), "504", "gateway_timeout"),
        (closed, json!({ "servers": both }), "200", ""),
    ] {
        let running = edge(&pki, server, &json!({}), &with);
        for _ in 0..2 {
            let answer = ask(&running, &pki.connector(false), get).await.unwrap();
            assert_eq!(answer.split(' ').nth(1), Some(status), "{answer}");
            if status != "200" {
                assert_eq!(body(&answer)["error"], error);
                assert_eq!(body(&answer)["decisionId"], field(&answer, "x-request-id")[0]);
            }
        }
        stop(running).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_idle_connections_and_waits_for_the_others() {
    let pki = Pki::new();
    let service = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let running = edge(&pki, service.local_addr().unwrap(), &json!({}), &json!({}));
    let connector = pki.connector(false);
    let mut idle = connect(&running, &connector).await.unwrap();
    idle.write_all(b"GET /none HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    read_message(&mut idle).await.unwrap();
    let mut busy = connect(&running, &connector).await.unwrap();
    busy.write_all(b"GET /any/ HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let (mut served, _) = service.accept().await.unwrap();
    read_message(&mut served).await.unwrap();
    let mut byte = [0; 1];
    let mut drain = Box::pin(running.drain());
    tokio::select! {
        () = &mut drain => panic!("a request is under way"),
        read = idle.read(&mut byte) => assert!(matches!(read, Ok(0) | Err(_))),
    }
    served.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    let answer = tokio::select! {
        () = &mut drain => panic!("a request is under way"),
        answer = read_message(&mut busy) => answer.unwrap(),
    };
    assert!(answer.starts_with("HTTP/1.1 200"));
    drop(busy);
    drain.await;
    assert!(running.listeners.iter().all(|(_, it)| it.live() == 0));
    assert!(connect(&running, &connector).await.is_err());
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_is_said_at_once() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let error =
        Given::default().take("public", taken.local_addr().unwrap()).unwrap_err().to_string();
    assert!(error.starts_with("public: cannot listen on 127.0.0.1:"), "{error}");
}

/// A proof that one edge has admitted by its clock is dated before what another takes for the begin.
#[test]
fn the_begin_of_a_shared_memory_concedes_what_edges_clocks_are_apart() {
    for (skew, margin) in [(30, 60), (5, 10), (1, 6), (0, 5)] {
        let found = era_margin(Duration::from_secs(skew));
        assert_eq!(found, Duration::from_secs(margin), "{skew}");
    }
}
