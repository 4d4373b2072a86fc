//! Upstreams and a load that we did not write: nginx, HAProxy, h2load.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::Table;
use super::support::client::Request;
use super::support::pki::{Identity, Issuer};
use super::support::process::free_port;
use super::support::server::{Server, nginx_paths, skip};
use super::support::world::{World, expect_eq};
use super::upstream_tls::add;

/// Requests of one load.
const LOAD: usize = 3000;

/// Files that servers and the edge share.
struct Site {
    directory: TempDir,
    client: Identity,
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let issuer = Issuer::new("Services");
        let (server, client) =
            (issuer.sign(&["orders.internal"], 0), issuer.sign(&["edge.example"], 0));
        let site = Self { directory, client };
        site.write("own.pem", &issuer.pem());
        for (name, identity) in [("server", &server), ("edge", &site.client)] {
            site.write(&format!("{name}.pem"), &identity.certificate_pem);
            site.write(&format!("{name}.key"), &identity.key_pem);
        }
        site.write("both.pem", &(server.certificate_pem + &server.key_pem));
        site
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.directory.path().join(name), text).expect("a writable directory");
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).to_string_lossy().into_owned()
    }

    fn upstream(&self, port: u16, protocol: &str, certified: bool) -> Value {
        let mut tls =
            json!({"authorities": [self.file("own.pem")], "serverName": "orders.internal"});
        if certified {
            tls["certificate"] = json!(self.file("edge.pem"));
            tls["key"] = json!(self.file("edge.key"));
        }
        json!({"servers": [format!("127.0.0.1:{port}")], "protocol": protocol, "tls": tls,
               "connectTimeout": "20s",
               "health": {"path": "/healthz", "interval": "1s", "timeout": "1s"}})
    }
}

fn nginx(directory: &Path, [plain, tls, mutual]: [u16; 3]) -> String {
    let temporary = nginx_paths(directory);
    let directory = directory.display();
    let serve = |what: &str| {
        format!("location / {{ return 200 \"nginx {what} $server_protocol $request_method\"; }}")
    };
    let certificate = format!(
        "ssl_certificate {directory}/server.pem; ssl_certificate_key {directory}/server.key;"
    );
    let (one, two, three) =
        (serve("plain"), serve("tls"), serve("mutual $ssl_client_verify $ssl_client_s_dn"));
    format!(
        "daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/error.log;
         events {{ worker_connections 1024; }}
         http {{
           access_log off; {temporary}
           server {{ listen 127.0.0.1:{plain}; {one} }}
           server {{ listen 127.0.0.1:{tls} ssl http2; {certificate} {two} }}
           server {{ listen 127.0.0.1:{mutual} ssl http2; {certificate}
                     ssl_client_certificate {directory}/own.pem; ssl_verify_client on; {three} }}
         }}"
    )
}

fn haproxy(directory: &Path, port: u16) -> String {
    let directory = directory.display();
    format!(
        "global\n  maxconn 500\n\
         defaults\n  mode http\n  timeout connect 2s\n  timeout client 30s\n  timeout server 30s\n\
         frontend f\n  bind 127.0.0.1:{port} ssl crt {directory}/both.pem alpn h2 \
         ca-file {directory}/own.pem verify required\n  \
         http-request return status 200 content-type text/plain \
         lf-string \"haproxy %[ssl_c_s_dn(cn)] %HV %[method]\"\n"
    )
}

/// Many streams at once, from h2load. `None` without it.
fn load(world: &World, path: &str) -> Option<Result<(), String>> {
    let port = world.client.port;
    let output = Command::new("h2load")
        .args(["-n", &LOAD.to_string(), "-c", "4", "-m", "50", "-T", "60", "-N", "60"])
        .arg(format!("--connect-to=127.0.0.1:{port}"))
        .arg(format!("https://api.example{path}"))
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            skip(&format!("h2load: {error}"));
            return None;
        }
    };
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let good = format!("{LOAD} succeeded, 0 failed, 0 errored, 0 timeout");
    let statuses = format!("status codes: {LOAD} 2xx");
    let all = told.contains(&good) && told.contains(&statuses);
    Some(all.then_some(()).ok_or_else(|| format!("{told}\n{}", world.process.output())))
}

async fn says(world: &World, path: &str, expect: &str) -> Result<(), String> {
    for (method, body) in [("GET", &b""[..]), ("POST", b"hello")] {
        let mut request = Request::new(method, path);
        if !body.is_empty() {
            request = request.body(body);
        }
        let answer = world.send(&request).await?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        expect_eq("body", &text, &format!("{expect} {method}"))?;
    }
    Ok(())
}

/// Waits until checks found every server up.
async fn all_up(world: &World) -> Result<(), String> {
    let mut ready = Value::Null;
    for _ in 0..200 {
        ready = world.admin("/readyz").await.json();
        let upstreams = ready["upstreams"].as_array().map_or(0, Vec::len);
        let upstreams = f64::from(u32::try_from(upstreams).expect("a handful"));
        if (world.metric("holdfast_upstream_up", &[]).await - upstreams).abs() < 0.5 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(format!("not all are up: {ready}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_in_clear_by_tls_and_by_mutual_tls() {
    let site = Site::new();
    let ports = [free_port(), free_port(), free_port()];
    let [plain, tls, mutual] = ports;
    let directory = site.directory.path();
    site.write("nginx.conf", &nginx(directory, ports));
    let mut command = Command::new("nginx");
    command.args(["-e", &site.file("start.log"), "-p"]).arg(directory);
    command.arg("-c").arg(site.file("nginx.conf"));
    let Some(_nginx) = Server::start(&mut command, mutual).await else { return };
    let world = World::start_with(|config| {
        add(config, "plain", json!({"servers": [format!("127.0.0.1:{plain}")]}));
        add(config, "tls", site.upstream(tls, "http/1.1", false));
        add(config, "tls-h2", site.upstream(tls, "h2", false));
        add(config, "mutual", site.upstream(mutual, "http/1.1", true));
        add(config, "mutual-h2", site.upstream(mutual, "h2", true));
        add(config, "anonymous", site.upstream(mutual, "http/1.1", false));
        config["upstreams"]["anonymous"].as_object_mut().expect("keys").remove("health");
    })
    .await;
    let mut table = Table::default();
    for (path, expect) in [
        ("/plain", "nginx plain HTTP/1.1"),
        ("/tls", "nginx tls HTTP/1.1"),
        ("/tls-h2", "nginx tls HTTP/2.0"),
        ("/mutual", "nginx mutual SUCCESS CN=edge HTTP/1.1"),
        ("/mutual-h2", "nginx mutual SUCCESS CN=edge HTTP/2.0"),
    ] {
        table.row(path, says(&world, path, expect).await);
        let Some(load) = load(&world, path) else { continue };
        table.row(&format!("{path}, load"), load);
    }
    // nginx says so by 400, inside TLS.
    let answer = world.send(&Request::new("GET", "/anonymous")).await;
    table.row("anonymous", expect_eq("status", &answer.map(|it| it.status()), &Ok(400)));
    table.row("health", all_up(&world).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_by_h2_over_mutual_tls() {
    let site = Site::new();
    let port = free_port();
    site.write("haproxy.cfg", &haproxy(site.directory.path(), port));
    let mut command = Command::new("haproxy");
    command.args(["-db", "-f"]).arg(site.file("haproxy.cfg"));
    let Some(_haproxy) = Server::start(&mut command, port).await else { return };
    let world = World::start_with(|config| {
        add(config, "h2", site.upstream(port, "h2", true));
        add(config, "anonymous", site.upstream(port, "h2", false));
        config["upstreams"]["anonymous"].as_object_mut().expect("keys").remove("health");
    })
    .await;
    let mut table = Table::default();
    table.row("h2", says(&world, "/h2", "haproxy edge HTTP/2.0").await);
    if let Some(load) = load(&world, "/h2") {
        table.row("h2, load", load);
    }
    // It takes no stranger.
    let answer = world.send(&Request::new("GET", "/anonymous")).await;
    table.row("anonymous", expect_eq("status", &answer.map(|it| it.status()), &Ok(502)));
    table.row("health", all_up(&world).await);
}
