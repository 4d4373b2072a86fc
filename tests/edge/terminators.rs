//! Terminators that we did not write: nginx and HAProxy, by HTTP and by the PROXY protocol.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::support::Table;
use super::support::client::{Client, Request};
use super::support::pki::Identity;
use super::support::process::free_port;
use super::support::server::{Server, nginx_paths, skip};
use super::support::world::{Expect, World, bearer, expect_eq, get};

use Expect::{Admitted, Refused};

/// Where nginx of Debian keeps the module for connections.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// Ports of the edge's listeners: behind HTTP, behind HTTP with RFC 9440, behind a PROXY header.
struct Ports {
    escaped: u16,
    rfc_9440: u16,
    passed_on: u16,
}

/// The edge behind terminators on 127.0.0.1.
async fn world(ports: &Ports) -> World {
    let address = |port: u16| format!("127.0.0.1:{port}");
    let trusted = |header: &str| {
        json!([{"cidr": "127.0.0.1", "believe": ["address", "origin", "certificate"],
                "certificateHeader": header, "fields": "x-forwarded"}])
    };
    World::start_with(|config| {
        let listeners = config["edge"]["listeners"].as_array_mut().expect("a list");
        let mut passed_on = listeners[0].clone();
        passed_on["name"] = json!("passed-on");
        passed_on["address"] = json!(address(ports.passed_on));
        passed_on["proxyProtocol"] = json!(true);
        passed_on["trustedProxies"] = json!([{"cidr": "127.0.0.1"}]);
        listeners.push(passed_on);
        listeners.push(json!({"name": "escaped", "address": address(ports.escaped),
                              "trustedProxies": trusted("X-SSL-Client-Cert")}));
        listeners.push(json!({"name": "rfc-9440", "address": address(ports.rfc_9440),
                              "trustedProxies": trusted("Client-Cert")}));
    })
    .await
}

fn ports() -> Ports {
    Ports { escaped: free_port(), rfc_9440: free_port(), passed_on: free_port() }
}

/// Every case on the way over the terminator at `port`; `headers` are those in which it hands a
/// certificate on, where it terminates TLS.
async fn check(world: &World, port: u16, way: &str, headers: &[&str], table: &mut Table) {
    let mut client = Client::new(port, &world.pki.authority_der);
    client.from = "127.0.0.9";
    let pki = &world.pki;
    let forged = |request: Request| {
        let others = [("X-Forwarded-For", "198.51.100.1"), ("X-Forwarded-Proto", "http")];
        let others = others.into_iter().chain([("X-Forwarded-Host", "evil.example")]);
        others.fold(request, |request, (name, value)| request.field(name, value))
    };
    let certified = |who: &Identity| bearer("/orders/1", &world.token().x5t(&who.x5t()).sign());
    let token = world.bound();
    let nonce = world.nonce().await;
    let proof = world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
    let both = world.token().jkt(&world.key.jkt()).x5t(&pki.alice.x5t()).sign();
    let second = world.proof("GET", "/orders/1").token(&both).nonce(&nonce).sign();
    for (name, who, request, expect) in [
        ("ok/DPoP", None, get("/orders/1", &token, &proof), Admitted("dpop")),
        ("fail/replay", None, get("/orders/1", &token, &proof), Refused("proof_replayed")),
        ("ok/certificate", Some(&pki.alice), certified(&pki.alice), Admitted("mtls")),
        ("fail/another's", Some(&pki.bob), certified(&pki.alice), Refused("thumbprint-mismatch")),
        ("fail/none", None, certified(&pki.alice), Refused("missing-certificate")),
        ("ok/both", Some(&pki.alice), get("/orders/1", &both, &second), Admitted("dpop+mtls")),
    ] {
        let answer = client.send(who, &forged(request)).await;
        if let Some(answer) = answer.as_ref().ok().filter(|answer| answer.status() == 200) {
            let seen = answer.seen();
            let found = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"];
            let found = found.map(|name| seen.one(name).unwrap_or("-").to_owned()).join(" ");
            table.row(
                &format!("{way}, {name}"),
                expect_eq("told", &found.as_str(), &"127.0.0.9 https api.example"),
            );
        }
        table.row(&format!("{way}, {name}"), world.judge(answer, expect).await);
    }
    for header in headers {
        let request = certified(&pki.alice).field(header, "evil");
        let answer = client.send(None, &request).await;
        let name = format!("{way}, fail/forged {header}");
        table.row(&name, world.judge(answer, Refused("missing-certificate")).await);
    }
}

fn nginx(directory: &Path, ports: &Ports, http: u16, stream: Option<u16>) -> String {
    let temporary = nginx_paths(directory);
    let (directory, edge) = (directory.display(), ports.escaped);
    let (module, passed_on) = stream.map_or_else(Default::default, |port| {
        let to = ports.passed_on;
        let server =
            format!("listen 127.0.0.1:{port}; proxy_pass 127.0.0.1:{to}; proxy_protocol on;");
        (format!("load_module {STREAM_MODULE};"), format!("stream {{ server {{ {server} }} }}"))
    });
    format!(
        "{module}
         daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/error.log;
         events {{ worker_connections 1024; }}
         http {{
           access_log off; {temporary}
           server {{
             listen 127.0.0.1:{http} ssl;
             ssl_certificate {directory}/server.pem; ssl_certificate_key {directory}/server.key;
             ssl_client_certificate {directory}/ca.pem; ssl_verify_client optional;
             location / {{
               proxy_pass http://127.0.0.1:{edge};
               proxy_http_version 1.1;
               proxy_set_header Host inner.example;
               proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
               proxy_set_header X-Forwarded-Proto $scheme;
               proxy_set_header X-Forwarded-Host $host;
               proxy_set_header X-SSL-Client-Cert $ssl_client_escaped_cert;
             }}
           }}
         }}
         {passed_on}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_terminates_and_passes_on() {
    let (ports, http) = (ports(), free_port());
    let stream = Path::new(STREAM_MODULE).exists().then(free_port);
    let world = world(&ports).await;
    let directory = world.directory.path();
    world.write("nginx.conf", &nginx(directory, &ports, http, stream));
    let mut command = Command::new("nginx");
    command.arg("-e").arg(directory.join("start.log")).arg("-p").arg(directory);
    command.arg("-c").arg(directory.join("nginx.conf"));
    let Some(_nginx) = Server::start(&mut command, http).await else { return };
    let mut table = Table::default();
    check(&world, http, "nginx", &["X-SSL-Client-Cert", "Client-Cert"], &mut table).await;
    match stream {
        Some(port) => {
            check(&world, port, "nginx, PROXY header", &["Client-Cert"], &mut table).await
        }
        None => skip("nginx has no stream module"),
    }
}

fn haproxy(directory: &Path, ports: &Ports, [http, h2, v1, v2]: [u16; 4]) -> String {
    let directory = directory.display();
    let Ports { rfc_9440, passed_on, .. } = ports;
    let terminate = |name: &str, port: u16, how: &str| {
        format!(
            "frontend {name}\n  mode http\n  \
             bind 127.0.0.1:{port} ssl crt {directory}/both.pem ca-file {directory}/ca.pem verify optional\n  \
             http-request set-header X-Forwarded-Host %[req.hdr(host)]\n  \
             http-request set-header X-Forwarded-Proto https\n  \
             http-request set-header Host inner.example\n  \
             http-request del-header Client-Cert\n  \
             http-request del-header Client-Cert-Chain\n  \
             http-request set-header Client-Cert :%[ssl_c_der,base64]: if {{ ssl_c_used }}\n  \
             option forwardfor\n  default_backend {name}\n\
             backend {name}\n  mode http\n  server edge 127.0.0.1:{rfc_9440} {how}\n"
        )
    };
    let pass = |name: &str, port: u16, how: &str| {
        format!(
            "listen {name}\n  mode tcp\n  bind 127.0.0.1:{port}\n  server edge 127.0.0.1:{passed_on} {how}\n"
        )
    };
    [
        "global\n  maxconn 500\ndefaults\n  timeout connect 2s\n  timeout client 30s\n  timeout server 30s\n"
            .to_owned(),
        terminate("http", http, ""),
        terminate("h2", h2, "proto h2"),
        pass("v1", v1, "send-proxy"),
        pass("v2", v2, "send-proxy-v2"),
    ]
    .concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_terminates_and_passes_on() {
    let ports = ports();
    let ways = [free_port(), free_port(), free_port(), free_port()];
    let world = world(&ports).await;
    let directory = world.directory.path();
    let server = &world.pki.server;
    world.write("both.pem", &format!("{}{}", server.certificate_pem, server.key_pem));
    world.write("haproxy.cfg", &haproxy(directory, &ports, ways));
    let mut command = Command::new("haproxy");
    command.args(["-db", "-f"]).arg(directory.join("haproxy.cfg"));
    let Some(_haproxy) = Server::start(&mut command, ways[0]).await else { return };
    let mut table = Table::default();
    for (way, port) in
        ["HAProxy", "HAProxy, h2", "HAProxy, v1", "HAProxy, v2"].into_iter().zip(ways)
    {
        check(&world, port, way, &["Client-Cert", "X-SSL-Client-Cert"], &mut table).await;
    }
}
