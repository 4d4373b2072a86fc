//! The commands, as a shell would run them.

use std::process::Command;

use serde_json::Value;

use super::support::Table;
use super::support::world::{World, expect_eq};

/// Exit status and both outputs.
fn holdfast(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_holdfast")).args(arguments).output().expect("the program");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_annotated_reference_is_read() {
    let reference = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/authority.yaml");
    let (_, stdout, stderr) = holdfast(&["check", "--config", reference]);
    // Its files are not there; every key must be known all the same.
    assert!(!(stdout + &stderr).contains("unknown key"), "the reference has an unknown key");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_every_error_and_run_does_not_start() {
    let world = World::start().await;
    let file = world.directory.path().join("authority.yaml").to_string_lossy().into_owned();
    let mut table = Table::default();
    let (status, ..) = holdfast(&["check", "--config", &file]);
    table.row("ok/check", expect_eq("status", &status, &Some(0)));
    let mut config = world.config.clone();
    config["edge"]["listeners"][0]["maxConections"] = 5.into();
    config["upstreams"]["echo"]["servers"] = serde_json::json!(["nowhere"]);
    config["issuers"][0]["jwks"]["file"] = "missing.json".into();
    let text = serde_json::to_string_pretty(&config).expect("JSON");
    let broken = world.directory.path().join("broken.yaml");
    std::fs::write(&broken, text).expect("a writable directory");
    let broken = broken.to_string_lossy().into_owned();
    for command in ["check", "run"] {
        let (status, stdout, stderr) = holdfast(&[command, "--config", &broken]);
        let told = stdout + &stderr;
        table.row(command, expect_eq("status", &status, &Some(1)));
        for part in
            ["broken.yaml:", "`maxConnections`", "upstreams.echo.servers[0]", "missing.json"]
        {
            table.row(command, expect_eq(part, &told.contains(part), &true));
        }
        table.row(command, expect_eq("panicked", &told.contains("panicked"), &false));
    }
    let url = "https://api.example/orders/1";
    let (status, stdout, _) = holdfast(&["explain", "--config", &file, "--json", "GET", url]);
    table.row("explain", expect_eq("status", &status, &Some(0)));
    let explained: Value = serde_json::from_str(&stdout).unwrap_or_default();
    table.row("explain", expect_eq("JSON", &explained.is_object(), &true));
    table.row("explain", expect_eq("route", &stdout.contains("orders"), &true));
}
