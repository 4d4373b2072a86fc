//! `deploy/systemd/`: units that systemd takes, as closed as they say, and sockets that it passes.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::support::Table;
use super::support::client::{Request, plain_get};
use super::support::process::{Process, free_port, write_config};
use super::support::server::skip;
use super::support::world::{Expect, World, expect_eq};

const UNITS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/systemd");
/// `systemd-analyze security`'s exposure, in tenths: what is more is a finding.
const EXPOSURE: &str = "15";

/// A program of systemd's, where it is there.
fn tool(name: &str) -> Option<Command> {
    let there = Command::new(name).arg("--version").output().is_ok();
    if !there {
        skip(&format!("the tests with systemd: no {name}"));
    }
    there.then(|| Command::new(name))
}

#[test]
fn systemd_takes_the_units() {
    let Some(mut analyze) = tool("systemd-analyze") else { return };
    // In a place of their own, with the program where the unit says.
    let directory = tempfile::tempdir().expect("a directory");
    let program = env!("CARGO_BIN_EXE_holdfast");
    for name in ["holdfast.service", "holdfast.socket"] {
        let text = std::fs::read_to_string(Path::new(UNITS).join(name)).expect("a unit");
        let text = text.replace("/usr/bin/holdfast", program);
        std::fs::write(directory.path().join(name), text).expect("a writable directory");
    }
    analyze.args(["verify", "--recursive-errors=no", "--man=no"]);
    let units = ["holdfast.service", "holdfast.socket"].map(|name| directory.path().join(name));
    let output = analyze.args(units).output().expect("systemd-analyze");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && errors.is_empty(), "{}: {errors}", output.status);
}

#[test]
fn the_sandbox_is_as_closed_as_it_says() {
    let Some(mut analyze) = tool("systemd-analyze") else { return };
    analyze.args(["security", "--offline=yes", "--no-pager", "--threshold", EXPOSURE]);
    let output = analyze.arg(Path::new(UNITS).join("holdfast.service")).output();
    let output = output.expect("systemd-analyze");
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{report}{}", String::from_utf8_lossy(&output.stderr));
    let overall = report.lines().find(|line| line.contains("Overall exposure"));
    println!("{}", overall.unwrap_or_default().trim());
}

/// Sockets that are there before the program: whoever connects meanwhile waits and is served.
#[tokio::test(flavor = "multi_thread")]
async fn sockets_are_passed_by_name_and_address() {
    let Some(mut activate) = tool("systemd-socket-activate") else { return };
    let mut world = World::start().await;
    world.process.terminate();
    assert!(world.process.ended().await.is_some());
    let (public, admin) = (world.client.port, world.admin);
    activate.args(["--listen", &format!("127.0.0.1:{public}"), "--fdname", "main:admin"]);
    activate.args(["--listen", &format!("127.0.0.1:{admin}"), env!("CARGO_BIN_EXE_holdfast")]);
    activate.args(["run", "--config"]).arg(world.directory.path().join("authority.yaml"));
    world.process = Process::of(activate);
    let mut table = Table::default();
    // It is started by the first connection.
    let mut answer = Err("nothing".to_owned());
    for _ in 0..500 {
        answer = world.send(&Request::new("GET", "/public/1")).await;
        if answer.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    table.row("ok/served", world.judge(answer, Expect::Public).await);
    let ready = plain_get(admin, "/readyz").await.map(|answer| answer.status());
    table.row("admin", expect_eq("status", &ready, &Ok(200)));
    world.process.terminate();
    assert!(world.process.ended().await.is_some());

    // A socket from which nobody would accept.
    let Some(mut activate) = tool("systemd-socket-activate") else { return };
    let other = free_port();
    write_config(world.directory.path(), &world.config);
    activate.args(["--listen", &format!("127.0.0.1:{other}"), "--fdname", "other"]);
    activate.arg(env!("CARGO_BIN_EXE_holdfast"));
    activate.args(["run", "--config"]).arg(world.directory.path().join("authority.yaml"));
    world.config = json!({});
    let mut process = Process::of(activate);
    let mut status = None;
    for _ in 0..600 {
        let _ = tokio::net::TcpStream::connect(("127.0.0.1", other)).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        if process.output().contains("no listener has the address") {
            status = process.ended().await;
            break;
        }
    }
    let failed = status.is_some_and(|status| !status.success());
    table.row("fail/a stranger's", expect_eq("refused", &failed, &true));
}
