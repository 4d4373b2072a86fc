//! Behind something that terminates TLS or passes connections on: who is believed what.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::support::Table;
use super::support::client::{Message, Outcome, Request, patiently, plain_from, plain_h2};
use super::support::pki::Identity;
use super::support::process::free_port;
use super::support::world::{Expect, World, bearer, expect_eq, get};

use Expect::{Admitted, Public, Refused};

/// The edge with a second listener without TLS, with this in it.
async fn plain(port: u16, mut listener: Value) -> World {
    listener["name"] = json!("plain");
    listener["address"] = json!(format!("127.0.0.1:{port}"));
    World::start_with(|config| {
        config["edge"]["listeners"].as_array_mut().expect("a list").push(listener);
        config["upstreams"]["echo"]["clientCertificate"] = json!("chain");
    })
    .await
}

/// One request on a connection in clear from `address`.
async fn send(address: &str, port: u16, request: &Request) -> Outcome {
    plain_from(address, port).await?.send(&request.bytes()).await
}

fn with(request: Request, fields: &[(&str, &str)]) -> Request {
    fields.iter().fold(request, |request, (name, value)| request.field(name, *value))
}

/// What an upstream is told of where a request comes from.
fn told(message: &Message) -> String {
    let seen = message.seen();
    let names = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded"];
    let values = names.map(|name| seen.one(name).unwrap_or("-").to_owned());
    values.join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_of_address_and_origin() {
    let port = free_port();
    let world = plain(
        port,
        json!({"trustedProxies": [
            {"cidr": "127.0.0.1", "believe": ["address", "origin"]},
            {"cidr": "127.0.0.2"},
            {"cidr": "127.0.0.3", "believe": []},
            {"cidr": "127.0.0.4", "believe": ["address"], "fields": "forwarded"},
            {"cidr": "10.0.0.0/8"},
        ]}),
    )
    .await;
    let client = ("X-Forwarded-For", "192.0.2.1, 203.0.113.9, 10.0.0.7");
    let expect = |address: &str, scheme: &str, host: &str| {
        let node = if address.is_empty() { "unknown" } else { address };
        let address = if address.is_empty() { "-" } else { address };
        format!("{address} {scheme} {host} for={node};host=\"{host}\";proto={scheme}")
    };
    let mut table = Table::default();
    for (peer, fields, found) in [
        ("127.0.0.1", &[][..], expect("127.0.0.1", "http", "api.example")),
        ("127.0.0.1", &[client], expect("203.0.113.9", "http", "api.example")),
        (
            "127.0.0.1",
            &[client, ("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "API.example:8443")],
            expect("203.0.113.9", "https", "api.example:8443"),
        ),
        (
            "127.0.0.1",
            &[("Forwarded", "for=1.1.1.1, for=\"[2001:db8::9]:99\";proto=https;host=api.example")],
            "2001:db8::9 https api.example \
             for=\"[2001:db8::9]\";host=\"api.example\";proto=https"
                .to_owned(),
        ),
        ("127.0.0.1", &[("Forwarded", "for=unknown")], expect("", "http", "api.example")),
        (
            "127.0.0.1",
            &[("X_Forwarded_For", "203.0.113.9")],
            expect("127.0.0.1", "http", "api.example"),
        ),
        (
            "127.0.0.2",
            &[client, ("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "evil.example")],
            expect("203.0.113.9", "http", "api.example"),
        ),
        (
            "127.0.0.3",
            &[client, ("X-Forwarded-Proto", "https"), ("Forwarded", "evil")],
            expect("127.0.0.3", "http", "api.example"),
        ),
        (
            "127.0.0.4",
            &[client, ("Forwarded", "for=198.51.100.7")],
            expect("198.51.100.7", "http", "api.example"),
        ),
    ] {
        let request = with(Request::new("GET", "/public/1"), fields);
        let answer = send(peer, port, &request).await;
        let name = format!("{peer} {fields:?}");
        match &answer {
            Ok(message) if message.status() == 200 => {
                table.row(&name, expect_eq("told", &told(message), &found));
                let others =
                    message.seen().fields.into_iter().filter(|(name, _)| name.contains('_'));
                table.row(&name, expect_eq("variants", &others.count(), &0));
            }
            other => table.row(&name, Err(format!("{other:?}"))),
        }
    }
    for fields in [
        &[("Forwarded", "evil")][..],
        &[("Forwarded", "for=203.0.113.9"), ("X-Forwarded-For", "203.0.113.8")],
        &[("X-Forwarded-For", "evil")],
        &[("X-Forwarded-Proto", "https"), ("X-Forwarded-Proto", "https")],
        &[("X-Forwarded-Host", "a b")],
        &[("X-Forwarded-Host", "api.example:1"), ("X-Forwarded-Port", "2")],
    ] {
        let request = with(Request::new("GET", "/public/1"), fields);
        let answer = send("127.0.0.1", port, &request).await;
        let name = format!("hostile/{fields:?}");
        table.row(&name, world.judge(answer, Refused("forwarded_invalid")).await);
    }
    // On the listener with TLS nobody is believed anything.
    let request = Request::new("GET", "/public/1");
    let request = with(request, &[client, ("X-Forwarded-Proto", "http"), ("Forwarded", "evil")]);
    let answer = world.send(&request).await.expect("an answer");
    table.row(
        "TLS",
        expect_eq("told", &told(&answer), &expect("127.0.0.1", "https", "api.example")),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_does_not_connect_in_clear() {
    let (port, open) = (free_port(), free_port());
    let mut world = plain(port, json!({"trustedProxies": [{"cidr": "127.0.0.2"}]})).await;
    let request = Request::new("GET", "/public/1");
    let mut table = Table::default();
    let answer = send("127.0.0.2", port, &request).await;
    table.row("ok/trusted", world.judge(answer, Public).await);
    let answer = send("127.0.0.1", port, &request).await;
    table.row("fail/stranger", expect_eq("refused", &answer.is_err(), &true));
    let labels = ["plain", "untrusted"];
    let lost = world.metric_once("holdfast_connections_lost_total", &labels, 1.0).await;
    table.row("fail/stranger", expect_eq("counted", &lost, &1.0));

    // Who is no longer trusted does not go on.
    let mut kept = plain_from("127.0.0.2", port).await.expect("a connection");
    let answer = kept.send(&request.bytes()).await;
    table.row("ok/kept", world.judge(answer, Public).await);
    world.config["edge"]["listeners"][1]["trustedProxies"][0]["cidr"] = json!("127.0.0.3");
    table.row("reload", expect_eq("taken", &world.reload().await, &true));
    let answer = kept.send(&request.bytes()).await;
    table.row("fail/kept", world.judge(answer, Refused("misdirected")).await);
    let answer = send("127.0.0.2", port, &request).await;
    table.row("fail/anew", expect_eq("refused", &answer.is_err(), &true));

    // Nobody named: this machine.
    let world = plain(open, json!({})).await;
    let answer = send("127.0.0.9", open, &request).await;
    table.row("ok/this machine", world.judge(answer, Public).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_behind_a_terminator() {
    let port = free_port();
    let world = plain(
        port,
        json!({"trustedProxies": [
            {"cidr": "127.0.0.1", "believe": ["address", "origin"]},
            {"cidr": "127.0.0.2"},
        ]}),
    )
    .await;
    let token = world.bound();
    let nonce = world.nonce().await;
    let request = || {
        let proof = world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
        get("/orders/1", &token, &proof)
    };
    let said = |host: &'static str, proto: &'static str| {
        [("X-Forwarded-Host", host), ("X-Forwarded-Proto", proto)]
    };
    let mut table = Table::default();
    for (name, peer, host, fields, expect) in [
        ("ok/Host as the client's", "127.0.0.1", "api.example", None, Admitted("dpop")),
        ("ok/said", "127.0.0.1", "inner", Some(said("api.example", "https")), Admitted("dpop")),
        (
            "fail/in clear",
            "127.0.0.1",
            "inner",
            Some(said("api.example", "http")),
            Refused("origin_scheme"),
        ),
        (
            "fail/not believed",
            "127.0.0.2",
            "inner",
            Some(said("api.example", "https")),
            Refused("route_unknown"),
        ),
        (
            "ok/not believed",
            "127.0.0.2",
            "api.example",
            Some(said("evil", "http")),
            Admitted("dpop"),
        ),
        // The host that is said is routed on like any other: no route has it.
        (
            "fail/elsewhere",
            "127.0.0.1",
            "api.example",
            Some(said("evil", "https")),
            Refused("route_unknown"),
        ),
    ] {
        let request = with(request().host(host), fields.as_ref().map_or(&[], |it| &it[..]));
        let answer = send(peer, port, &request).await;
        table.row(name, world.judge(answer, expect).await);
    }
    let mtls = bearer("/orders/1", &world.token().x5t(&world.pki.alice.x5t()).sign());
    let answer = send("127.0.0.1", port, &mtls).await;
    table.row("fail/no TLS facts", world.judge(answer, Refused("context-missing")).await);

    // HTTP/2 with prior knowledge, and a request shorter than its preface.
    let h2 = plain_h2(port).await.expect("h2");
    table.row("ok/h2", world.judge(h2.send(&request()).await, Admitted("dpop")).await);
    let mut short = plain_from("127.0.0.1", port).await.expect("a connection");
    let answer = short.send(b"GET / HTTP/1.0\r\n\r\n").await;
    table.row("short", expect_eq("status", &answer.map(|it| it.status()), &Ok(400)));
}

/// As nginx writes it.
fn escaped(pem: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let bytes = pem.bytes();
    bytes
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn sequence(der: &[u8]) -> String {
    format!(":{}:", STANDARD.encode(der))
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_are_handed_on() {
    for (header, write) in [
        ("Client-Cert", (|who| sequence(&who.certificate_der)) as fn(&Identity) -> String),
        ("X-Forwarded-Client-Cert", |who| {
            let hash = openssl::sha::sha256(&who.certificate_der).map(|byte| format!("{byte:02x}"));
            let (hash, pem) = (hash.concat(), escaped(&who.certificate_pem));
            format!("By=x;Hash={hash};Cert=\"{pem}\";Subject=\"CN=\\\"a;b\"")
        }),
        ("X-SSL-Client-Cert", |who| escaped(&who.certificate_pem)),
        ("X-SSL-Client-Cert", |who| STANDARD.encode(&who.certificate_der)),
    ] {
        handed_on(header, write).await;
    }
}

async fn handed_on(header: &'static str, write: fn(&Identity) -> String) {
    let port = free_port();
    let world = plain(
        port,
        json!({"trustedProxies": [
            {"cidr": "127.0.0.1", "believe": ["certificate"], "certificateHeader": header},
            {"cidr": "127.0.0.2", "believe": ["address", "origin"]},
        ]}),
    )
    .await;
    let pki = &world.pki;
    let token = world.token().x5t(&pki.alice.x5t()).sign();
    let both = world.token().x5t(&pki.alice.x5t()).jkt(&world.key.jkt()).sign();
    let nonce = world.nonce().await;
    let request = |fields: &[(&str, &str)]| with(bearer("/orders/1", &token), fields);
    let (alice, bob) = (write(&pki.alice), write(&pki.bob));
    let (expired, variant) = (write(&pki.expired), header.replace('-', "_"));
    let expired_token = world.token().x5t(&pki.expired.x5t()).sign();
    let other = if header == "Client-Cert" { "X-SSL-Client-Cert" } else { "Client-Cert" };
    let mut table = Table::default();
    for (name, peer, request, expect) in [
        ("ok/alice", "127.0.0.1", request(&[(header, &alice)]), Admitted("mtls")),
        ("fail/bob", "127.0.0.1", request(&[(header, &bob)]), Refused("thumbprint-mismatch")),
        ("fail/nobody", "127.0.0.1", request(&[]), Refused("missing-certificate")),
        ("fail/empty", "127.0.0.1", request(&[(header, "")]), Refused("missing-certificate")),
        (
            "fail/variant",
            "127.0.0.1",
            request(&[(&variant, &alice)]),
            Refused("missing-certificate"),
        ),
        (
            "fail/another field",
            "127.0.0.1",
            request(&[(other, &sequence(&pki.alice.certificate_der))]),
            Refused("missing-certificate"),
        ),
        (
            "fail/twice",
            "127.0.0.1",
            request(&[(header, &alice), (header, &alice)]),
            Refused("client_cert_invalid"),
        ),
        (
            "fail/nonsense",
            "127.0.0.1",
            request(&[(header, "evil")]),
            Refused("client_cert_invalid"),
        ),
        (
            "fail/cut",
            "127.0.0.1",
            request(&[(header, &alice[..alice.len() / 2])]),
            Refused("client_cert_invalid"),
        ),
        (
            "fail/not believed",
            "127.0.0.2",
            request(&[(header, &alice)]),
            Refused("context-missing"),
        ),
        (
            "fail/expired",
            "127.0.0.1",
            bearer("/orders/1", &expired_token).field(header, expired),
            Refused("missing-certificate"),
        ),
        (
            "ok/both",
            "127.0.0.1",
            get(
                "/orders/1",
                &both,
                &world.proof("GET", "/orders/1").token(&both).nonce(&nonce).sign(),
            )
            .field(header, &alice),
            Admitted("dpop+mtls"),
        ),
    ] {
        let answer = send(peer, port, &request).await;
        table.row(&format!("{header} {name}"), world.judge(answer, expect).await);
    }
    // Where nothing is demanded, one whose time is over is not told of either.
    for (who, told) in [(&pki.alice, 1), (&pki.expired, 0)] {
        let request = Request::new("GET", "/public/1").field(header, write(who));
        let seen = send("127.0.0.1", port, &request).await.expect("an answer").seen();
        let count = seen.all("client-cert").len();
        table.row(&format!("{header} public"), expect_eq("client-cert", &count, &told));
    }
    let own = sequence(&pki.alice.certificate_der);
    let issuer = sequence(&pki.authority_der);
    let chain: &[(&str, &str)] = &[("Client-Cert-Chain", &issuer)];
    let passed = (header == "Client-Cert").then_some(issuer.as_str());
    let answer = send("127.0.0.1", port, &with(request(&[(header, &alice)]), chain)).await;
    let seen = answer.expect("an answer").seen();
    table.row(header, expect_eq("client-cert", &seen.one("client-cert"), &Some(own.as_str())));
    table.row(header, expect_eq("chain", &seen.one("client-cert-chain"), &passed));
    let left: Vec<_> =
        ["x-forwarded-client-cert", "x-ssl-client-cert"].map(|it| seen.all(it).len()).into();
    table.row(header, expect_eq("left", &left, &vec![0, 0]));
}

/// The connection's own chain, where the client shows more than its leaf.
#[tokio::test(flavor = "multi_thread")]
async fn the_connections_own_chain_is_handed_on() {
    for (wanted, expect) in [(json!(true), 1), (json!("chain"), 2), (json!(false), 0)] {
        let world = World::start_with(|config| {
            config["upstreams"]["echo"]["clientCertificate"] = wanted.clone();
        })
        .await;
        let mut who = world.pki.alice.clone();
        who.issuers_der = vec![world.pki.authority_der.clone()];
        let request = Request::new("GET", "/public/1");
        let request = with(request, &[("Client-Cert", "evil"), ("Client-Cert-Chain", "evil")]);
        let seen = world.send_as(&who, &request).await.expect("an answer").seen();
        let found = (seen.one("client-cert"), seen.one("client-cert-chain"));
        let own = sequence(&world.pki.alice.certificate_der);
        let chain = sequence(&world.pki.authority_der);
        let all = [Some(own.as_str()), Some(chain.as_str())];
        let told = |index: usize| all[index].filter(|_| index < expect);
        assert_eq!(found, (told(0), told(1)), "{wanted}");
    }
}

const FROM_CLIENT: &[u8] = b"PROXY TCP4 203.0.113.9 192.0.2.1 54321 443\r\n";
const FROM_PROXY: &[u8] = b"PROXY TCP4 10.0.0.5 192.0.2.1 54321 443\r\n";

fn version_2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([command, family]);
    header.extend(u16::try_from(addresses.len()).expect("short").to_be_bytes());
    header.extend(addresses);
    header
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_headers() {
    let port = free_port();
    let world = plain(
        port,
        json!({"proxyProtocol": true, "headTimeout": "5s", "trustedProxies": [
            {"cidr": "127.0.0.1", "believe": ["address", "origin"]},
            {"cidr": "127.0.0.3", "believe": []},
            {"cidr": "10.0.0.0/8"},
        ]}),
    )
    .await;
    let request = with(Request::new("GET", "/public/1"), &[("X-Forwarded-For", "198.51.100.1")]);
    let v4 = [203, 0, 113, 9, 192, 0, 2, 1, 0xd4, 0x31, 1, 0xbb];
    let big = [&v4[..], &[4, 0x0e, 0x10], &[0; 3600]].concat();
    let mut table = Table::default();
    for (name, header, expect) in [
        ("v1", FROM_CLIENT.to_vec(), "203.0.113.9"),
        ("v2", version_2(0x21, 0x11, &v4), "203.0.113.9"),
        ("v2 with much more", version_2(0x21, 0x11, &big), "203.0.113.9"),
        // The one who is named is believed as far as its own entry goes.
        ("v1 of a proxy", FROM_PROXY.to_vec(), "198.51.100.1"),
        ("local", version_2(0x20, 0, &[]), "127.0.0.1"),
        ("unknown", b"PROXY UNKNOWN\r\n".to_vec(), "-"),
        ("unspecified", version_2(0x21, 0, &[]), "-"),
    ] {
        let bytes = [header.as_slice(), &request.bytes()].concat();
        for pieces in [bytes.len(), 1, 7] {
            if bytes.len() / pieces > 1000 {
                continue;
            }
            let mut connection = plain_from("127.0.0.1", port).await.expect("a connection");
            for piece in bytes.chunks(pieces) {
                connection.write(piece).await.expect("a write");
                tokio::task::yield_now().await;
            }
            let found = connection
                .answer(false)
                .await
                .map(|answer| answer.seen().one("x-forwarded-for").unwrap_or("-").to_owned());
            table.row(
                &format!("{name} by {pieces}"),
                expect_eq("address", &found, &Ok(expect.to_owned())),
            );
        }
    }
    let lost = async |reason: &str| {
        world.metric("holdfast_connections_lost_total", &["plain", reason]).await
    };
    for (name, peer, header, reason) in [
        ("none", "127.0.0.1", &b""[..], "proxy-header"),
        ("of another version", "127.0.0.1", &version_2(0x31, 0x11, &v4), "proxy-header"),
        ("a name", "127.0.0.1", b"PROXY TCP4 localhost 192.0.2.1 1 2\r\n", "proxy-header"),
        (
            "endless",
            "127.0.0.1",
            &[b"PROXY UNKNOWN ".as_slice(), &[b'a'; 200]].concat(),
            "proxy-header",
        ),
        ("longer than any", "127.0.0.1", &version_2(0x21, 0x11, &[0; 5000]), "proxy-header"),
        ("of a stranger", "127.0.0.2", FROM_CLIENT, "untrusted"),
        ("of one who is believed nothing", "127.0.0.3", FROM_CLIENT, "untrusted"),
        ("that does not come", "127.0.0.1", b"PROXY", "handshake-timeout"),
    ] {
        let before = lost(reason).await;
        let mut connection = plain_from(peer, port).await.expect("a connection");
        let body = if name == "that does not come" { Vec::new() } else { request.bytes() };
        let _ = connection.write(&[header, &body].concat()).await;
        let answer = connection.answer(false).await;
        table.row(name, expect_eq("answered", &answer.is_ok(), &false));
        let labels = ["plain", reason];
        let after = world.metric_once("holdfast_connections_lost_total", &labels, before + 1.0);
        table.row(name, expect_eq(reason, &(after.await - before), &1.0));
    }
    // A probe of the port is nobody's fault.
    let before = lost("proxy-header").await;
    drop(plain_from("127.0.0.1", port).await.expect("a connection"));
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    table.row("probe", expect_eq("lost", &(lost("proxy-header").await - before), &0.0));
}

/// Whom a PROXY header named is believed only as long as whoever sent it may name somebody.
#[tokio::test(flavor = "multi_thread")]
async fn who_was_named_is_not_believed_for_ever() {
    let change = |what: &str| match what {
        "may name nobody" => json!([{"cidr": "127.0.0.1", "believe": []}, {"cidr": "10.0.0.0/8"}]),
        "unknown" => json!([{"cidr": "10.0.0.0/8"}]),
        _ => json!([{"cidr": "127.0.0.1"}, {"cidr": "10.0.0.0/8"}]),
    };
    let mut table = Table::default();
    for what in ["may name nobody", "unknown", "no header any more", "as before"] {
        let mut world = World::start_with(|config| {
            let listener = &mut config["edge"]["listeners"][0];
            listener["proxyProtocol"] = json!(true);
            listener["trustedProxies"] = change("");
        })
        .await;
        let request = Request::new("GET", "/public/1").field("X-Forwarded-For", "198.51.100.1");
        let mut open = world.client.connect_behind(FROM_PROXY, None).await.expect("a connection");
        let answer = open.send(&request.bytes()).await;
        table.row(what, world.judge(answer, Public).await);
        let listener = &mut world.config["edge"]["listeners"][0];
        listener["trustedProxies"] = change(what);
        listener["proxyProtocol"] = json!(what != "no header any more");
        assert!(world.reload().await, "{}", world.process.output());
        let expect = if what == "as before" { Public } else { Refused("misdirected") };
        let answer = open.send(&request.bytes()).await;
        table.row(what, world.judge(answer, expect).await);
    }
}

/// Before TLS, and with proxies that have to prove who they are.
#[tokio::test(flavor = "multi_thread")]
async fn proxies_with_certificates_of_their_own() {
    let world = World::start_with(|config| {
        let listener = &mut config["edge"]["listeners"][0];
        listener["proxyProtocol"] = json!(true);
        listener["trustedProxies"] = json!([
            {"cidr": "127.0.0.1"},
            {"cidr": "10.0.0.0/8", "believe": ["address", "certificate"], "names": ["bob.example"]},
        ]);
    })
    .await;
    let pki = &world.pki;
    let token = world.token().x5t(&pki.alice.x5t()).sign();
    let bobs = world.token().x5t(&pki.bob.x5t()).sign();
    let alice = sequence(&pki.alice.certificate_der);
    let mut table = Table::default();
    for (name, header, who, token, fields, expect) in [
        (
            "ok/the proxy",
            FROM_PROXY,
            Some(&pki.bob),
            &token,
            vec![("Client-Cert", &*alice)],
            Admitted("mtls"),
        ),
        (
            "fail/its own is nobody's",
            FROM_PROXY,
            Some(&pki.bob),
            &bobs,
            vec![],
            Refused("missing-certificate"),
        ),
        (
            "fail/its own beside another's",
            FROM_PROXY,
            Some(&pki.bob),
            &bobs,
            vec![("Client-Cert", &*alice)],
            Refused("thumbprint-mismatch"),
        ),
        (
            "fail/no certificate",
            FROM_PROXY,
            None,
            &token,
            vec![("Client-Cert", &*alice)],
            Refused("missing-certificate"),
        ),
        (
            "fail/a client beside the proxy",
            FROM_PROXY,
            Some(&pki.alice),
            &bobs,
            vec![("Client-Cert", &*sequence(&pki.bob.certificate_der))],
            Refused("thumbprint-mismatch"),
        ),
        (
            "ok/a client beside the proxy",
            FROM_PROXY,
            Some(&pki.alice),
            &token,
            vec![],
            Admitted("mtls"),
        ),
        (
            "fail/sent on with the sender's own",
            FROM_PROXY,
            Some(&pki.alice),
            &token,
            vec![("X-Forwarded-For", "203.0.113.9")],
            Refused("missing-certificate"),
        ),
        (
            "fail/from elsewhere",
            FROM_CLIENT,
            Some(&pki.bob),
            &token,
            vec![("Client-Cert", &*alice)],
            Refused("thumbprint-mismatch"),
        ),
        (
            "ok/a client",
            FROM_CLIENT,
            Some(&pki.alice),
            &token,
            vec![("X-Forwarded-For", "evil")],
            Admitted("mtls"),
        ),
    ] {
        let request = with(bearer("/orders/1", token), &fields);
        let answer = match world.client.connect_behind(header, who).await {
            Ok(mut connection) => connection.send(&request.bytes()).await,
            Err(fault) => Err(fault),
        };
        table.row(name, world.judge(answer, expect).await);
    }
    let bare = patiently(async { world.client.connect(None).await.map(drop) }).await;
    table.row("fail/no header", expect_eq("connected", &bare.is_ok(), &false));
}
