//! Clients that we did not write: curl, and oauth4webapi on Node.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::support::Table;
use super::support::client::Message;
use super::support::server::skip;
use super::support::world::{World, expect_eq};

/// Runs a program, or says why it cannot be: with `CI=true` that is a failure.
pub(crate) fn run(command: &mut Command) -> Option<Output> {
    let output = command.output();
    match output {
        Ok(output) => Some(output),
        Err(error) => {
            let program = command.get_program().to_string_lossy().into_owned();
            skip(&format!("{program}: {error}"));
            None
        }
    }
}

/// curl's answer to one request.
fn curl(world: &World, arguments: &[&str]) -> Option<Message> {
    let to = format!("api.example:443:127.0.0.1:{}", world.client.port);
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--include", "--max-time", "30", "--noproxy", "*"])
        .args(["--connect-to", &to, "--cacert"])
        .arg(world.directory.path().join("ca.pem"))
        .args(arguments);
    let output = run(&mut command)?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "curl: {told}");
    let at = output.stdout.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let (head, body) = output.stdout.split_at(at + 4);
    let mut message = Message::parse(head);
    message.body = body.to_vec();
    Some(message)
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_with_a_proof_and_with_a_certificate() {
    let world = World::start().await;
    let url = "https://api.example/orders/1";
    let token = world.bound();
    let authorization = format!("Authorization: DPoP {token}");
    let first = format!("DPoP: {}", world.proof("GET", "/orders/1").token(&token).sign());
    let arguments = ["-H", authorization.as_str(), "-H", first.as_str(), url];
    let Some(challenged) = curl(&world, &arguments) else { return };
    let nonce = challenged.one("dpop-nonce").unwrap_or_default();
    let proof = world.proof("GET", "/orders/1").token(&token).nonce(nonce).sign();
    let second = format!("DPoP: {proof}");
    let arguments = ["-H", authorization.as_str(), "-H", second.as_str(), url];
    let mut table = Table::default();
    table.row("no nonce", expect_eq("status", &challenged.status(), &401));
    for (name, flag, status) in
        [("nonce, HTTP/2", "--http2", 200), ("again", "--http2", 401), ("again", "--http1.1", 401)]
    {
        let answer = curl(&world, &[&[flag], &arguments[..]].concat()).expect("curl was there");
        table.row(name, expect_eq("status", &answer.status(), &status));
    }
    let certified = world.token().x5t(&world.pki.alice.x5t()).sign();
    let authorization = format!("Authorization: Bearer {certified}");
    let file = |name: &str| world.directory.path().join(name).to_string_lossy().into_owned();
    for (name, status) in [("alice", 200), ("bob", 401)] {
        let (certificate, key) = (file(&format!("{name}.pem")), file(&format!("{name}.key")));
        let arguments = ["--cert", &certificate, "--key", &key, "-H", &authorization, url];
        let answer = curl(&world, &arguments).expect("curl was there");
        table.row(name, expect_eq("status", &answer.status(), &status));
    }
    let answer = curl(&world, &["-H", &authorization, url]).expect("curl was there");
    table.row("no certificate", expect_eq("status", &answer.status(), &401));
}

#[tokio::test(flavor = "multi_thread")]
async fn oauth4webapi_answers_the_challenge_once() {
    let node = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node");
    if !node.join("node_modules/oauth4webapi").is_dir() {
        skip("oauth4webapi: not installed");
        return;
    }
    let port = super::support::process::free_port();
    let world = World::start_with(|config| {
        // Its fetch connects where the URL says, so the external origin has the listener's port.
        config["edge"]["listeners"][0]["address"] = format!("127.0.0.1:{port}").into();
        config["routes"][0]["hosts"] = serde_json::json!([format!("localhost:{port}")]);
    })
    .await;
    let key = world.directory.path().join("client.key");
    std::fs::write(&key, world.key.private_pem()).expect("a writable directory");
    let mut command = Command::new("node");
    command
        .current_dir(&node)
        .arg("resource.mjs")
        .arg(format!("https://localhost:{port}/orders/1?page=2"))
        .arg(world.bound())
        .arg(&key)
        .env("NODE_EXTRA_CA_CERTS", world.directory.path().join("ca.pem"));
    let Some(output) = run(&mut command) else { return };
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "node: {told}");
    let outcome: Value = serde_json::from_slice(&output.stdout).expect("a line of JSON");
    let mut table = Table::default();
    // The second request carries the nonce that the first one learnt.
    table.row("challenges", expect_eq("challenges", &outcome["challenges"], &1));
    table.row(
        "statuses",
        expect_eq("statuses", &outcome["statuses"], &serde_json::json!([200, 200])),
    );
    let seen = Message::parse(outcome["body"].as_str().unwrap_or_default().as_bytes());
    table.row("upstream", expect_eq("result", &seen.all("x-holdfast-result"), &["dpop"]));
    let start = "GET /orders/1?page=2 HTTP/1.1";
    table.row("upstream", expect_eq("request line", &seen.start.as_str(), &start));
}
