//! `holdfast health`, as probes ask it.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;

use super::support::Table;
use super::support::world::{World, expect_eq};

fn health(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    command.current_dir(directory).arg("health").args(arguments).output().expect("the program")
}

/// The same, asked again where a slow machine takes too long.
fn answered(directory: &Path, arguments: &[&str]) -> Output {
    let mut output = health(directory, arguments);
    for _ in 0..4 {
        if !said(&output).1.contains("no answer within 3 s") {
            break;
        }
        output = health(directory, arguments);
    }
    output
}

/// Exit status, and what was written to stderr.
fn said(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_edge_that_serves_and_of_one_that_is_gone() {
    let world = World::start().await;
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("http://127.0.0.1:{}", world.admin);
    let mut table = Table::default();
    for arguments in [&["--url", &url][..], &["--ready", "--url", &url]] {
        let seen = said(&answered(directory.path(), arguments));
        table.row("serves", expect_eq("status", &seen, &(Some(0), String::new())));
    }
    drop(world);
    let (status, text) = said(&health(directory.path(), &["--url", &url]));
    table.row("gone", expect_eq("status", &status, &Some(1)));
    let expected = format!("error: {url}/healthz: ");
    table.row("gone", expect_eq("why", &text.starts_with(&expected), &true));
}

/// Behind TLS that asks for a certificate: here a route of the same path at a public listener.
#[tokio::test(flavor = "multi_thread")]
async fn with_a_certificate() {
    let world = World::start_with(|config| {
        config["edge"]["listeners"][0]["tls"]["clientCertificates"] = json!("require");
        let routes = config["routes"].as_array_mut().expect("routes");
        routes.push(json!({ "name": "health", "hosts": ["api.example"], "path": "/healthz",
                            "role": "public", "upstream": "echo" }));
    })
    .await;
    let (url, address) = ("https://api.example", format!("127.0.0.1:{}", world.client.port));
    let at = ["--url", url, "--connect", &address];
    let ours = ["--cacert", "ca.pem"];
    let alice = ["--cert", "alice.pem", "--cert-key", "alice.key"];
    let mut table = Table::default();
    for (name, arguments, expected) in [
        ("ok/both", [&at[..], &ours, &alice].concat(), Some(0)),
        ("fail/no certificate", [&at[..], &ours].concat(), Some(1)),
        ("fail/authority unknown", [&at[..], &alice].concat(), Some(1)),
        ("fail/no such file", [&at[..], &["--cacert", "none.pem"]].concat(), Some(1)),
        ("fail/no certificate in it", [&at[..], &["--cacert", "alice.key"]].concat(), Some(1)),
        ("fail/in clear", vec!["--url", "http://api.example", "--connect", &address], Some(1)),
        ("fail/address twice", vec!["--connect", &address], Some(1)),
        ("fail/certificate without key", vec!["--cert", "alice.pem"], Some(2)),
    ] {
        let (status, text) = said(&answered(world.directory.path(), &arguments));
        table.row(name, expect_eq("status", &status, &expected));
        table.row(name, expect_eq("why", &text.is_empty(), &(expected == Some(0))));
    }
}

/// One that is not ready, one that never answers, one that speaks nonsense, and one that never ends.
#[test]
fn of_what_is_no_healthy_edge() {
    let directory = tempfile::tempdir().expect("a directory");
    let not_ready =
        "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 17\r\n\r\n{\"ready\": false}\n";
    let endless = format!("HTTP/1.1 503 No\r\n\r\n{}", "x".repeat(1 << 20));
    for (answer, why) in [
        (not_ready, "/readyz answers 503 Service Unavailable\n{\"ready\": false}\n"),
        ("", "no answer within 3 s"),
        ("SSH-2.0-x\r\n", "error: "),
        (&endless, "error: "),
    ] {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let url = format!("http://{}", socket.local_addr().expect("an address"));
        let answer = answer.to_owned();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = socket.accept().expect("a connection");
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(answer.as_bytes());
            let _ = stream.read(&mut [0; 1024]);
        });
        let (status, text) = said(&health(directory.path(), &["--ready", "--url", &url]));
        assert_eq!(status, Some(1), "{text}");
        assert!(text.contains(why), "{text}");
        serving.join().expect("it serves");
    }
}
