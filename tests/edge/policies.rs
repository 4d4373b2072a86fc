//! Several TLS policies on one listener, chosen by SNI.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, HandshakeKind, NamedGroup};
use serde_json::json;

use super::support::Table;
use super::support::client::{Client, Outcome, Request};
use super::support::pki::Identity;
use super::support::world::{Expect, World, bearer, expect_eq};

use Expect::{Admitted, Public, Refused};

/// `api.example` asks for certificates, `other.example` requires one, `localhost` asks for none.
async fn world() -> World {
    World::start_with(|config| {
        let certificates = json!([{"certificate": "server.pem", "key": "server.key"}]);
        config["edge"]["listeners"][0]["tls"]["policies"] = json!([
            {
                "name": "strict",
                "hosts": ["other.example"],
                "certificates": certificates,
                "clientCertificates": "require",
                "clientAuthorities": ["ca.pem"],
            },
            {"name": "plain", "hosts": ["localhost"], "certificates": certificates},
        ]);
        for route in config["routes"].as_array_mut().expect("routes") {
            route["hosts"] = json!(["api.example", "other.example", "localhost"]);
            if route["role"] == "resource" {
                route["origin"] = json!("https://api.example");
            }
        }
    })
    .await
}

fn named(world: &World, name: &'static str) -> Client {
    let mut client = world.client.clone();
    client.name = name;
    client
}

fn public(host: &str) -> Request {
    Request::new("GET", "/public/1").host(host)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_of_another_policy_is_misdirected() {
    let world = world().await;
    let alice = Some(&world.pki.alice);
    let mut table = Table::default();
    for (sni, who, host, expect) in [
        ("api.example", None, "api.example", Public),
        ("other.example", alice, "other.example", Public),
        ("other.example", alice, "OTHER.example:443", Public),
        ("localhost", alice, "localhost", Public),
        ("api.example", alice, "other.example", Refused("misdirected")),
        ("api.example", alice, "OTHER.Example.:8443", Refused("misdirected")),
        ("api.example", alice, "other%2Eexample", Refused("misdirected")),
        ("localhost", None, "other.example", Refused("misdirected")),
        ("localhost", None, "api.example", Refused("misdirected")),
        ("other.example", alice, "api.example", Refused("misdirected")),
        ("other.example", alice, "localhost", Refused("misdirected")),
    ] {
        let client = named(&world, sni);
        let name = format!("{sni} then {host}");
        let answer = client.send(who, &public(host)).await;
        table.row(&name, world.judge(answer, expect).await);
        if !host.contains('%') {
            let connection = client.connect_h2(who).await.expect("h2");
            let answer = connection.send(&public(host)).await;
            table.row(&format!("{name}, h2"), world.judge(answer, expect).await);
        }
    }
    let answer = named(&world, "other.example").send(None, &public("other.example")).await;
    table.row("fail/no certificate", expect_eq("refused", &answer.is_err(), &true));
    let token = world.token().x5t(&world.pki.alice.x5t()).sign();
    let answer = named(&world, "other.example")
        .send(alice, &bearer("/orders/1", &token).host("other.example"))
        .await;
    table.row("ok/bound", world.judge(answer, Admitted("mtls")).await);
}

/// nginx CVE-2025-23419, Apache CVE-2025-23048: a session of one host resumed at another carried the
/// first one's certificate, or the lack of one, over.
#[tokio::test(flavor = "multi_thread")]
async fn no_session_is_resumed_under_another_policy() {
    static VERSIONS: [&[&rustls::SupportedProtocolVersion]; 2] =
        [&[&rustls::version::TLS12], &[&rustls::version::TLS13]];
    let world = world().await;
    let mut table = Table::default();
    for versions in VERSIONS {
        for (who, first, then) in [
            (Some(&world.pki.alice), "other.example", "api.example"),
            (None, "api.example", "other.example"),
            (None, "localhost", "other.example"),
        ] {
            let mut client = named(&world, first);
            client.versions = versions;
            let settings = under_one_name(&client, who);
            let mut connection = client.connect_with(&settings).await.expect("a connection");
            connection.send(&public(first).bytes()).await.expect("an answer");
            let mut connection = client.connect_with(&settings).await.expect("a connection");
            connection.send(&public(first).bytes()).await.expect("an answer");
            let kind = connection.tls().handshake_kind();
            let name = format!("{first}, then {then}");
            table.row(&name, expect_eq("kind", &kind, &Some(HandshakeKind::Resumed)));

            client.name = then;
            let answer = match client.connect_with(&settings).await {
                Ok(mut connection) => {
                    let answer = connection.send(&public(then).bytes()).await;
                    let kind = connection.tls().handshake_kind();
                    let resumed = kind == Some(HandshakeKind::Resumed);
                    table.row(&name, expect_eq("resumed elsewhere", &resumed, &false));
                    answer
                }
                Err(error) => Err(error),
            };
            let passes = then == "api.example";
            table.row(&name, expect_eq("passes", &answer.is_ok(), &passes));
        }
    }
}

/// A client that offers the session of one name at every other.
fn under_one_name(client: &Client, who: Option<&Identity>) -> Arc<rustls::ClientConfig> {
    let mut settings = (*client.settings(who, "http/1.1")).clone();
    settings.resumption = rustls::client::Resumption::store(Arc::new(OneName(
        rustls::client::ClientSessionMemoryCache::new(32),
    )));
    Arc::new(settings)
}

/// Keeps every session under one name.
#[derive(Debug)]
struct OneName(rustls::client::ClientSessionMemoryCache);

fn one() -> ServerName<'static> {
    ServerName::try_from("one.example").expect("a name")
}

impl rustls::client::ClientSessionStore for OneName {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.0.set_kx_hint(one(), group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.kx_hint(&one())
    }

    fn set_tls12_session(
        &self,
        _: ServerName<'static>,
        value: rustls::client::Tls12ClientSessionValue,
    ) {
        self.0.set_tls12_session(one(), value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<rustls::client::Tls12ClientSessionValue> {
        self.0.tls12_session(&one())
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.0.remove_tls12_session(&one());
    }

    fn insert_tls13_ticket(
        &self,
        _: ServerName<'static>,
        value: rustls::client::Tls13ClientSessionValue,
    ) {
        self.0.insert_tls13_ticket(one(), value);
    }

    fn take_tls13_ticket(
        &self,
        _: &ServerName<'static>,
    ) -> Option<rustls::client::Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&one())
    }
}

/// Traefik CVE-2026-32305: a ClientHello in pieces met the default policy.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_hello_in_pieces_chooses_the_same_policy() {
    let world = world().await;
    let mut table = Table::default();
    for (piece, sni, who, passes) in [
        (1, "other.example", None, false),
        (7, "other.example", None, false),
        (100, "other.example", None, false),
        (1, "other.example", Some(&world.pki.alice), true),
        (64, "other.example", Some(&world.pki.alice), true),
        (1, "api.example", None, true),
    ] {
        let client = named(&world, sni);
        let settings = client.settings(who, "http/1.1");
        let request = public(sni).bytes();
        let port = client.port;
        let answer = tokio::task::spawn_blocking(move || {
            in_pieces(port, settings, sni, piece, &request).map_err(|error| error.to_string())
        });
        let answer = answer.await.expect("a thread");
        let name = format!("{sni} in pieces of {piece}, {}", who.is_some());
        let seen = answer.as_deref().map(|text| text.starts_with("HTTP/1.1 200"));
        table.row(&name, expect_eq("passes", &(seen == Ok(true)), &passes));
    }
}

/// Sends the ClientHello as TLS records of `piece` bytes, each a packet of its own.
fn in_pieces(
    port: u16,
    settings: Arc<rustls::ClientConfig>,
    sni: &'static str,
    piece: usize,
    request: &[u8],
) -> std::io::Result<String> {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(std::time::Duration::from_secs(20)))?;
    let name = ServerName::try_from(sni).expect("a name");
    let mut client = ClientConnection::new(settings, name).map_err(std::io::Error::other)?;
    let mut record = Vec::new();
    client.write_tls(&mut record)?;
    let (head, hello) = record.split_at(5);
    for part in hello.chunks(piece) {
        let length = u16::try_from(part.len()).expect("a short record").to_be_bytes();
        socket.write_all(&[&head[..3], &length, part].concat())?;
    }
    let mut tls = rustls::Stream::new(&mut client, &mut socket);
    tls.write_all(request)?;
    let mut answer = [0; 4096];
    let read = tls.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..read]).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_that_never_ends_is_cut_off() {
    let world = world().await;
    let port = world.client.port;
    let labels = ["reason=\"handshake\""];
    let before = world.metric("holdfast_connections_lost_total", &labels).await;
    let sent = tokio::task::spawn_blocking(move || {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        // A handshake message of 16 MiB, one byte a record.
        let mut bytes = vec![22, 3, 1, 0, 4, 1, 255, 255, 255];
        for _ in 0..100_000 {
            bytes.extend_from_slice(&[22, 3, 1, 0, 1, 0]);
        }
        let _ = socket.write_all(&bytes);
        let mut end = [0; 64];
        while matches!(socket.read(&mut end), Ok(1..)) {}
    });
    sent.await.expect("it ends");
    let after = world.metric_once("holdfast_connections_lost_total", &labels, before + 1.0).await;
    assert_eq!(after, before + 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hybrid_key_exchange_is_agreed_on() {
    let world = world().await;
    let mut connection = world.client.connect(None).await.expect("a connection");
    let answer: Outcome = connection.send(&public("api.example").bytes()).await;
    let mut table = Table::default();
    table.row("ok", world.judge(answer, Public).await);
    let group = connection.tls().negotiated_key_exchange_group().map(|group| group.name());
    table.row("group", expect_eq("group", &group, &Some(NamedGroup::X25519MLKEM768)));
}
