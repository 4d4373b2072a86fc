//! gRPC by grpcio and WebSockets by `websockets`, on both sides of the edge.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use serde_json::{Value, json};

use super::support::server::skip;
use super::support::world::{World, expect_eq};
use super::support::{Table, now};

/// The Python of `tests/run`, with the packages of `tests/python/requirements.txt`.
pub(crate) fn python() -> Option<Command> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = root.join("target/python/bin/python");
    if !program.exists() {
        skip("the packages of tests/python/requirements.txt: not installed in target/python");
        return None;
    }
    let mut command = Command::new(program);
    command.current_dir(root.join("tests/python"));
    Some(command)
}

/// A service in Python. It ends with its standard input.
struct Service {
    child: Child,
    port: u16,
}

impl Service {
    fn start(script: &str) -> Option<Self> {
        let mut child = python()?
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python");
        let mut line = String::new();
        let pipe = child.stdout.take().expect("a pipe");
        BufReader::new(pipe).read_line(&mut line).expect("a line");
        let port = line.trim().parse().expect("a port");
        Some(Self { child, port })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a client and reads the line of JSON that it prints. It gets `ending` once it has said that it
/// is ready: what a token of a few seconds is for begins when the token does, however slow the start.
async fn client(mut command: Command, ending: impl FnOnce() -> String + Send + 'static) -> Value {
    let run = move || {
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().expect("Python");
        let mut told = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        told.read_line(&mut line).expect("a line");
        let mut input = child.stdin.take().expect("a pipe");
        if line == "ready\n" {
            input.write_all(ending().as_bytes()).expect("a reader");
        }
        drop(input);
        line.clear();
        told.read_line(&mut line).expect("a line");
        (line, child.wait_with_output().expect("a child"))
    };
    let (line, output) = tokio::task::spawn_blocking(run).await.expect("a thread");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    serde_json::from_str(&line).expect("a line of JSON")
}

/// Whether what ended at `at` (seconds since the epoch) ended with its token, not before. How soon
/// after is the machine's affair; what never ends, the client's alarm ends.
fn with_its_token(at: Option<f64>, end: &Arc<AtomicI64>) -> Result<(), String> {
    let late = at.map(|at| at - seconds(end.load(Ordering::Relaxed)));
    expect_eq(&format!("{late:?} s after"), &late.is_some_and(|late| late > -0.1), &true)
}

/// When a token of a few seconds ends, for those who make it later.
fn unknown_end() -> Arc<AtomicI64> {
    Arc::new(AtomicI64::new(i64::MAX))
}

#[expect(clippy::cast_precision_loss, reason = "seconds since 1970 fit exactly")]
fn seconds(since_epoch: i64) -> f64 {
    since_epoch as f64
}

fn key_file(world: &World) -> PathBuf {
    let file = world.directory.path().join("client.key");
    std::fs::write(&file, world.key.private_pem()).expect("a writable directory");
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcio_calls_of_every_kind() {
    let Some(service) = Service::start("grpc_service.py") else { return };
    let world = World::start_with(|config| {
        config["upstreams"]["echo"] =
            json!({"servers": [format!("127.0.0.1:{}", service.port)], "protocol": "h2c"});
        config["routes"][0]["path"] = json!("/test.Echo/*");
        config["issuers"][0]["clockSkew"] = json!("0s");
    })
    .await;
    let mut command = python().expect("Python was there");
    command
        .arg("grpc_client.py")
        .arg(world.client.port.to_string())
        .arg(world.directory.path().join("ca.pem"))
        .arg(key_file(&world))
        .arg(world.bound());
    let end = unknown_end();
    let (brief, jkt, known) = (world.token(), world.key.jkt(), Arc::clone(&end));
    let told = client(command, move || {
        let end = now() + 15;
        known.store(end, Ordering::Relaxed);
        brief.claim("exp", end).jkt(&jkt).sign()
    })
    .await;

    let mut table = Table::default();
    let around = json!({
        "initial": {"seen-x-holdfast-result": "dpop", "seen-x-holdfast-subject": "user-1"},
        "trailing": {"trailer": "at the end"}, "code": "OK", "details": "",
    });
    let with = |name: &str, value: Value| {
        let mut all = around.clone();
        all[name] = value;
        all
    };
    for (name, details, challenge) in [
        ("no token", "an access token is needed", "DPoP algs="),
        (
            "no nonce",
            "a DPoP proof with the nonce of this answer is needed",
            "DPoP error=\"use_dpop_nonce\"",
        ),
    ] {
        let told = &told[name];
        table.row(name, expect_eq("code", &told["code"], &json!("UNAUTHENTICATED")));
        table.row(name, expect_eq("details", &told["details"], &json!(details)));
        let shown = told["challenges"][0].as_str().unwrap_or_default().starts_with(challenge);
        table.row(name, expect_eq("challenge", &shown, &true));
    }
    for (name, expect) in [
        ("nonce", json!(true)),
        ("unary", with("answer", json!("one"))),
        ("large", json!(true)),
        ("from service", with("answers", json!(300))),
        ("from client", with("answer", json!(300))),
        ("both", with("answers", json!(20))),
        ("fail", json!({"code": "NOT_FOUND", "details": "no such thing", "trailer": "at the end"})),
        ("unknown", json!("UNIMPLEMENTED")),
        ("other method's proof", json!("UNAUTHENTICATED")),
        ("ticks", json!(true)),
        ("neighbour", json!("tick")),
    ] {
        table.row(name, expect_eq("told", &told[name], &expect));
    }
    let deadline = &told["deadline"];
    table.row("deadline", expect_eq("code", &deadline["code"], &json!("DEADLINE_EXCEEDED")));
    table.row("cut", expect_eq("code", &told["cut"]["code"], &json!("CANCELLED")));
    table.row("cut", with_its_token(told["cut"]["ended"].as_f64(), &end));
    let ended = world.metric_once("holdfast_streams_ended_total", &["reason=\"token\""], 1.0).await;
    table.row("cut", expect_eq("counted", &ended, &1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_of_another_maker() {
    let Some(service) = Service::start("websocket_service.py") else { return };
    let world = World::start_with(|config| {
        config["upstreams"]["echo"]["servers"] = json!([format!("127.0.0.1:{}", service.port)]);
        config["issuers"][0]["clockSkew"] = json!("0s");
        let mut aged = config["routes"][0].clone();
        aged["name"] = json!("aged");
        aged["path"] = json!("/aged");
        aged["streamMaxAge"] = json!("15s");
        config["routes"].as_array_mut().expect("routes").push(aged);
    })
    .await;
    let (by_key, jkt, x5t) = (world.token(), world.key.jkt(), world.pki.alice.x5t());
    let token = move |end: i64| by_key.clone().claim("exp", end).jkt(&jkt).sign();
    let by_certificate = world.token();
    let certified = move |end: i64| by_certificate.clone().claim("exp", end).x5t(&x5t).sign();
    let case = |token: String, scheme: &str, path: &str, certificate: bool, until: bool| {
        json!({"token": token, "scheme": scheme, "path": path, "certificate": certificate,
               "until": until})
    };
    let file = |name: &str| world.directory.path().join(name).display().to_string();
    let mut asked = json!({
        "port": world.client.port,
        "authority": file("ca.pem"),
        "key": key_file(&world).display().to_string(),
        "certificate": file("alice.pem"),
        "certificateKey": file("alice.key"),
    });
    let mut command = python().expect("Python was there");
    command.arg("websocket_client.py");
    let end = unknown_end();
    let known = Arc::clone(&end);
    let told = client(command, move || {
        let (end, far) = (now() + 20, now() + 600);
        known.store(end, Ordering::Relaxed);
        asked["cases"] = json!({
            "proof": case(token(far), "DPoP", "/orders/1", false, false),
            "certificate": case(certified(far), "Bearer", "/orders/1", true, false),
            "brief": case(token(end), "DPoP", "/orders/1", false, true),
            "brief certified": case(certified(end), "Bearer", "/orders/1", true, true),
            "aged": case(token(far), "DPoP", "/aged", false, true),
            "public": case(String::new(), "", "/public/1", false, false),
            "no token": case(String::new(), "", "/orders/1", false, false),
            "no certificate": case(certified(far), "Bearer", "/orders/1", false, false),
            "downgrade": case(token(far), "Bearer", "/orders/1", false, false),
        });
        asked.to_string()
    })
    .await;

    let mut table = Table::default();
    for (name, challenges, result) in [
        ("proof", 1, "dpop"),
        ("certificate", 0, "mtls"),
        ("brief", 1, "dpop"),
        ("brief certified", 0, "mtls"),
        ("aged", 1, "dpop"),
        ("public", 0, "-"),
    ] {
        let told = &told[name];
        table.row(name, expect_eq("challenges", &told["challenges"], &json!(challenges)));
        table.row(name, expect_eq("result", &told["result"], &json!(result)));
        for what in ["text", "bytes", "large", "ping"] {
            table.row(name, expect_eq(what, &told[what], &json!(true)));
        }
    }
    for name in ["no token", "no certificate", "downgrade"] {
        table.row(name, expect_eq("status", &told[name]["status"], &json!(401)));
    }
    for name in ["brief", "brief certified"] {
        table.row(name, with_its_token(told[name]["ended"].as_f64(), &end));
        table.row(name, expect_eq("ticks", &told[name]["ticks"], &json!(true)));
    }
    table.row("aged", expect_eq("ended", &told["aged"]["ended"].is_f64(), &true));
    for (reason, count) in [("token", 2.0), ("max_age", 1.0), ("certificate", 0.0)] {
        let label = format!("reason=\"{reason}\"");
        let ended = world.metric_once("holdfast_streams_ended_total", &[&label], count).await;
        table.row(reason, expect_eq("counted", &ended, &count));
    }
}
