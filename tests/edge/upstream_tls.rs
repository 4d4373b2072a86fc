//! TLS to upstreams: whom the edge takes for the service, and who it is to it.

use std::path::Path;

use rustls::ALL_VERSIONS;
use serde_json::{Value, json};

use super::support::Table;
use super::support::client::Request;
use super::support::pki::{Identity, Issuer};
use super::support::service::{Service, good, tls};
use super::support::world::{World, expect_eq};

static TLS12: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS12];

/// Adds an upstream and a public route `/NAME` to it.
pub(crate) fn add(config: &mut Value, name: &str, upstream: Value) {
    config["upstreams"][name] = upstream;
    let route = json!({"name": name, "hosts": ["api.example"], "path": format!("/{name}"),
                       "role": "public", "upstream": name});
    config["routes"].as_array_mut().expect("routes").push(route);
}

/// Waits until the edge is done with what it has answered: who reads an answer may be ahead of it, and the
/// connection to the service not be free yet.
pub(crate) async fn at_rest(world: &World) {
    let open = world.metric_once("holdfast_connections", &["listener=\"main\""], 0.0).await;
    assert_eq!(open, 0.0, "connections that do not end");
}

fn write(directory: &Path, name: &str, identity: &Identity) {
    for (end, text) in [("pem", &identity.certificate_pem), ("key", &identity.key_pem)] {
        std::fs::write(directory.join(format!("{name}.{end}")), text).expect("a directory");
    }
}

async fn serve(own: &Identity, clients: Option<&[u8]>, alpn: &[&str]) -> Service {
    Service::start_over(Some(tls(own, clients, ALL_VERSIONS, alpn)), |_, _, _| good("well")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_right_server_gets_a_request() {
    let files = tempfile::tempdir().expect("a directory");
    // Two of one name, that only their keys tell apart.
    let (own, other) = (Issuer::new("Services"), Issuer::new("Services"));
    for (name, issuer) in [("own", &own), ("other", &other)] {
        let path = files.path().join(format!("{name}.pem"));
        std::fs::write(path, issuer.pem()).expect("a directory");
    }
    let client = own.sign(&["edge.example"], 0);
    write(files.path(), "edge", &client);
    let file = |name: &str| files.path().join(name).to_string_lossy().into_owned();

    let named = own.sign(&["orders.internal"], 0);
    let right = serve(&named, None, &[]).await;
    let addressed = serve(&own.sign(&["127.0.0.1"], 0), None, &["http/1.1"]).await;
    let foreign = serve(&other.sign(&["orders.internal"], 0), None, &[]).await;
    let expired = serve(&own.sign(&["orders.internal"], 2020), None, &[]).await;
    let old = tls(&named, None, TLS12, &[]);
    let old = Service::start_over(Some(old), |_, _, _| good("well")).await;
    let demanding = serve(&named, Some(&own.der()), &[]).await;
    let plain = Service::start_blunt().await;

    let with = |service: &Service, more: Value| {
        let mut tls = json!({"authorities": [file("own.pem")], "serverName": "orders.internal"});
        for (key, value) in more.as_object().expect("keys") {
            tls[key] = value.clone();
        }
        json!({"servers": [service.address()], "tls": tls, "connectTimeout": "20s"})
    };
    let as_edge = json!({"certificate": file("edge.pem"), "key": file("edge.key")});
    let mut h2 = with(&right, json!({}));
    h2["protocol"] = json!("h2");
    let mut by_address = with(&addressed, json!({}));
    by_address["tls"].as_object_mut().expect("keys").remove("serverName");
    let mut by_wrong_address = by_address.clone();
    by_wrong_address["servers"] = json!([right.address()]);
    let rows = [
        ("right", &right, with(&right, json!({})), None),
        ("address", &addressed, by_address, None),
        ("client", &demanding, with(&demanding, as_edge), None),
        ("old", &old, with(&old, json!({})), None),
        ("authority", &foreign, with(&foreign, json!({})), Some("BadSignature")),
        // The same server that was just spoken to and whose connection is kept.
        (
            "kept",
            &right,
            with(&right, json!({"authorities": [file("other.pem")]})),
            Some("BadSignature"),
        ),
        ("system", &right, with(&right, json!({"authorities": "system"})), Some("UnknownIssuer")),
        (
            "name",
            &right,
            with(&right, json!({"serverName": "other.internal"})),
            Some("not valid for name"),
        ),
        ("no-address", &right, by_wrong_address, Some("not valid for name")),
        ("expired", &expired, with(&expired, json!({})), Some("expired")),
        ("plain", &plain, with(&plain, json!({})), Some("TLS")),
        ("anonymous", &demanding, with(&demanding, json!({})), Some("CertificateRequired")),
        ("version", &old, with(&old, json!({"minVersion": "1.3"})), Some("UpstreamNotAgreed")),
        ("alpn", &right, h2, Some("UpstreamNotAgreed")),
    ];
    let world = World::start_with(|config| {
        for (name, _, upstream, _) in &rows {
            add(config, name, upstream.clone());
        }
    })
    .await;
    let mut table = Table::default();
    for (name, service, _, fault) in &rows {
        let before = service.requests();
        let answer =
            world.send(&Request::new("GET", &format!("/{name}"))).await.expect("an answer");
        let expect = if fault.is_some() { 502 } else { 200 };
        table.row(name, expect_eq("status", &answer.status(), &expect));
        let reached = service.requests() - before;
        table.row(name, expect_eq("requests", &reached, &usize::from(fault.is_none())));
        if let Some(fault) = fault {
            table.row(name, expect_eq("error", &answer.json()["error"], &json!("bad_gateway")));
            let told = world
                .process
                .record(|line| line["upstream"] == *name && line.to_string().contains(fault));
            table.row(name, told.await.map(drop).ok_or_else(|| world.process.output()));
        }
    }
    let shown = demanding.certificates();
    table.row("client", expect_eq("certificate", &shown.first(), &Some(&client.certificate_der)));
    let output = world.process.output();
    let secret = client.key_pem.lines().nth(1).expect("a line of the key");
    table.row("secrets", expect_eq("told", &output.contains(secret), &false));
}

/// Connections under one trust are not used under another, in both directions and whichever way the
/// upstreams differ.
#[tokio::test(flavor = "multi_thread")]
async fn one_address_under_several_trusts() {
    let files = tempfile::tempdir().expect("a directory");
    let issuer = Issuer::new("Services");
    std::fs::write(files.path().join("own.pem"), issuer.pem()).expect("a directory");
    write(files.path(), "one", &issuer.sign(&["one.example"], 0));
    write(files.path(), "two", &issuer.sign(&["two.example"], 0));
    let file = |name: &str| files.path().join(name).to_string_lossy().into_owned();
    let server = issuer.sign(&["orders.internal"], 0);
    let service = serve(&server, Some(&issuer.der()), &[]).await;
    let world = World::start_with(|config| {
        for name in ["one", "two"] {
            let tls = json!({"authorities": [file("own.pem")], "serverName": "orders.internal",
                             "certificate": file(&format!("{name}.pem")),
                             "key": file(&format!("{name}.key"))});
            let servers = json!([service.address()]);
            let upstream = json!({"servers": servers, "tls": tls, "idleTimeout": "60s",
                                  "connectTimeout": "20s"});
            add(config, name, upstream);
        }
    })
    .await;
    let mut table = Table::default();
    for name in ["one", "two", "one", "two"] {
        let answer = world.send(&Request::new("GET", &format!("/{name}"))).await;
        table.row(name, expect_eq("status", &answer.map(|answer| answer.status()), &Ok(200)));
        at_rest(&world).await;
    }
    table.row("pools", expect_eq("connections", &service.connections(), &2));
    let shown = service.certificates();
    let differ = shown.first() != shown.get(1);
    table.row("pools", expect_eq("two certificates", &differ, &true));
}
