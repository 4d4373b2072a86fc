//! The admin listener with TLS: nobody without a certificate that counts gets a byte of it.

use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::support::Table;
use super::support::client::{Client, Request, plain_from, plain_get, plain_h2};
use super::support::pki::Identity;
use super::support::prometheus::Prometheus;
use super::support::world::{World, expect_eq};

/// A world whose admin listener speaks TLS, and a client of that.
async fn world() -> (World, Client) {
    let mut world = World::start().await;
    world.config["edge"]["admin"]["tls"] = json!({
        "certificate": "server.pem",
        "key": "server.key",
        "clientAuthorities": ["ca.pem"],
    });
    // Whoever starts it asks without a certificate whether it is ready.
    assert!(world.reload().await, "{}", world.process.output());
    let client = Client::new(world.admin, &world.pki.authority_der);
    (world, client)
}

async fn asked(client: &Client, who: Option<&Identity>) -> Result<u16, ()> {
    for target in ["/metrics", "/readyz", "/healthz"] {
        let answer = client.send(who, &Request::new("GET", target)).await.map_err(drop)?;
        if answer.status() != 200 {
            return Ok(answer.status());
        }
    }
    Ok(200)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_a_certificate_is_told_anything() {
    let (world, client) = world().await;
    let pki = &world.pki;
    let mut table = Table::default();
    for (name, who, expect) in [
        ("ok/alice", Some(&pki.alice), Ok(200)),
        ("fail/nobody", None, Err(())),
        ("fail/another authority's", Some(&pki.stranger), Err(())),
        ("fail/expired", Some(&pki.expired), Err(())),
        ("fail/a server's", Some(&pki.server), Err(())),
    ] {
        table.row(name, expect_eq("status", &asked(&client, who).await, &expect));
    }
    let plain = plain_get(world.admin, "/healthz").await;
    table.row(
        "fail/in clear",
        expect_eq("an answer", &plain.is_ok_and(|it| it.status() == 200), &false),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawn_certificate_ends_with_the_reload_that_says_so() {
    let (mut world, client) = world().await;
    let request = Request::new("GET", "/healthz").bytes();
    let connect = || client.connect(Some(&world.pki.alice));
    let mut asks = connect().await.expect("a connection");
    // Its handshake is over, and it has asked for nothing yet.
    let mut waits = connect().await.expect("a connection");
    let first = asks.send(&request).await.expect("an answer");
    assert_eq!(first.status(), 200);
    world.write("clients.crl", &world.pki.revocation_list(&[&world.pki.alice], 2100));
    world.config["edge"]["admin"]["tls"]["revocation"] = json!({"crls": ["clients.crl"]});
    assert!(world.reload().await, "{}", world.process.output());
    let mut table = Table::default();
    table.row("waits", expect_eq("an answer", &waits.send(&request).await.is_ok(), &false));
    for (name, who, expect) in
        [("alice", &world.pki.alice, Err(())), ("bob", &world.pki.bob, Ok(200))]
    {
        table.row(name, expect_eq("status", &asked(&client, Some(who)).await, &expect));
    }
}

/// A stranger opens connections and says nothing, and is the first in every queue.
#[tokio::test(flavor = "multi_thread")]
async fn who_shows_nothing_keeps_nobody_out() {
    let (world, client) = world().await;
    let mut open = Vec::new();
    for _ in 0..400 {
        open.push(plain_from("127.0.0.9", world.admin).await.expect("a connection"));
    }
    // Only a few are waited for.
    let mut waiting = 0;
    for connection in &mut open {
        let end = tokio::time::timeout(Duration::from_millis(100), connection.rest());
        waiting += usize::from(end.await.is_err());
    }
    let mut table = Table::default();
    table.row("fail", expect_eq(&format!("{waiting} wait"), &(waiting <= 16), &true));
    let alice = asked(&client, Some(&world.pki.alice)).await;
    table.row("ok/alice", expect_eq("status", &alice, &Ok(200)));
}

/// On a loopback address whoever is on the machine may ask, and nobody holds what others need.
#[tokio::test(flavor = "multi_thread")]
async fn who_asks_nothing_gives_way_to_who_comes() {
    let world = World::start().await;
    let mut table = Table::default();
    // On one connection there would be any number of answers at once.
    let streams = plain_h2(world.admin).await.expect("a connection");
    let answer = streams.send(&Request::new("GET", "/healthz")).await;
    table.row("fail/HTTP/2", expect_eq("an answer", &answer.is_ok(), &false));
    let url = format!("http://127.0.0.1:{}", world.admin);
    let mut silent = Vec::new();
    // More than there are places, and anew as soon as they are cut off.
    for round in 0..3 {
        for _ in 0..600 {
            silent.push(plain_from("127.0.0.1", world.admin).await.expect("a connection"));
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command.args(["health", "--ready", "--url", &url]);
        let asked = tokio::task::spawn_blocking(move || command.output().expect("the program"));
        let asked = asked.await.expect("a task");
        let said = String::from_utf8_lossy(&asked.stderr).into_owned();
        table.row(
            &format!("ok/health {round}"),
            expect_eq("status", &(asked.status.code(), said), &(Some(0), String::new())),
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prometheus_with_a_certificate_scrapes_it() {
    let (world, _) = world().await;
    let file = |name: &str| world.directory.path().join(name).display().to_string();
    let settings = format!(
        "  scheme: https\n  tls_config: {{ca_file: '{}', cert_file: '{}', key_file: '{}', \
         server_name: localhost, min_version: TLS13}}\n",
        file("ca.pem"),
        file("alice.pem"),
        file("alice.key")
    );
    let Some(prometheus) = Prometheus::start_with(world.admin, &settings).await else { return };
    for _ in 0..150 {
        let up = prometheus.query("up{job=\"holdfast\"} == 1").await.unwrap_or_default();
        if !up.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("it is not scraped: {:?}", prometheus.get("/api/v1/targets").await);
}
