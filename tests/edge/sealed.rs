//! `edge.sealed`: the whole edge in a network namespace that has no route, with every connection and
//! datagram that it begins written down by strace.
//!
//! The tests that look are ignored, for they need that namespace; one that is not starts each of them in
//! its own.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use super::support::Table;
use super::support::process::Process;
use super::support::server::skip;
use super::support::world::{Expect, World, expect_eq, get};

/// The system calls that send something to somebody.
const CALLS: &str = "trace=connect,sendto,sendmsg,sendmmsg";

#[test]
fn a_sealed_edge_works_without_a_route_and_asks_nobody_else() {
    in_a_namespace("sealed::sealed");
}

#[test]
fn one_that_is_not_asks_around() {
    in_a_namespace("sealed::open");
}

/// Runs a test of this file in a network namespace that has a loopback interface and nothing else.
fn in_a_namespace(name: &str) {
    let script =
        "ip link set lo up && [ -z \"$(ip route show table main)\" ] || exit 77; exec \"$@\"";
    let can = ["strace", "ip", "unshare"].iter().all(|program| {
        let mut asked = Command::new(program);
        asked.arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    });
    if !can {
        return skip("the test of a sealed edge: no strace, ip or unshare");
    }
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--net", "sh", "-c", script, "sh"]);
    command.arg(std::env::current_exe().expect("a test program"));
    command.args([name, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    let output = command.output().expect("unshare");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let wrong = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code() == Some(77) || wrong.starts_with("unshare:") {
        return skip(&format!("the test of a sealed edge: no network namespace: {wrong}"));
    }
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{wrong}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a network namespace without a route"]
async fn sealed() {
    let trace = tempfile::NamedTempFile::new().expect("a file");
    let mut world = World::start_under(&strace(trace.path()), |config| {
        config["edge"]["sealed"] = json!(true);
        config["upstreams"]["echo"]["health"] = json!({"interval": "100ms", "timeout": "100ms"});
    })
    .await;
    let mut table = Table::default();
    let (nonce, token) = (world.nonce().await, world.bound());
    for index in 0..3 {
        let proof = world.proof("GET", "/orders/1").token(&token).claim("nonce", nonce.as_str());
        let answer = world.send(&get("/orders/1", &token, &proof.sign())).await;
        let judged = world.judge(answer, Expect::Admitted("dpop")).await;
        table.row(&format!("ok/{index}"), judged);
    }
    table.row("ok/reload", expect_eq("taken", &world.reload().await, &true));
    let proof = world.proof("GET", "/orders/2").token(&token).claim("nonce", nonce.as_str());
    let answer = world.send(&get("/orders/2", &token, &proof.sign())).await;
    table.row("ok/after", world.judge(answer, Expect::Admitted("dpop")).await);
    let mut open = world.config.clone();
    open["edge"]["sealed"] = json!(false);
    std::mem::swap(&mut open, &mut world.config);
    table.row("fail/unsealed", expect_eq("taken", &world.reload().await, &false));
    let upstream = format!("127.0.0.1:{}", world.upstream.port);
    table
        .row("ok/peers", expect_eq("peers", &ended(world, trace.path()).await, &[upstream].into()));
}

/// What the test above would see, if there were anything: the same edge, unsealed, with a key set by
/// URL and an upstream by name.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a network namespace without a route"]
async fn open() {
    let trace = tempfile::NamedTempFile::new().expect("a file");
    let world = World::start_unready_under(&strace(trace.path()), |config| {
        config["issuers"][0]["jwks"] = json!({"url": "https://192.0.2.7/jwks.json"});
        let named = json!({"servers": ["orders.invalid:9000"], "resolveInterval": "100ms"});
        config["upstreams"]["echo"] = named;
    })
    .await;
    for _ in 0..200 {
        if peers(trace.path()).contains("192.0.2.7:443") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let found = ended(world, trace.path()).await;
    let mut table = Table::default();
    let key_set = found.contains("192.0.2.7:443");
    table.row("ok/the key set", expect_eq("asked", &key_set, &true));
    let resolver = found.iter().any(|peer| peer.ends_with(":53") || peer.starts_with('/'));
    table.row(
        "ok/the resolver",
        expect_eq("asked", &resolver, &true).map_err(|_| format!("{found:?}")),
    );
}

/// What a program runs under so that its calls are written to `trace`; its process id stays its own.
fn strace(trace: &Path) -> Vec<String> {
    let trace = trace.to_str().expect("UTF-8").to_owned();
    ["strace", "-D", "-f", "-qq", "-e", CALLS, "-e", "signal=none", "-o"]
        .map(str::to_owned)
        .into_iter()
        .chain([trace])
        .collect()
}

/// Ends the edge; everyone whom it connected to, or sent something without.
async fn ended(world: World, trace: &Path) -> BTreeSet<String> {
    world.process.terminate();
    let mut process: Process = world.process;
    assert!(process.ended().await.is_some(), "it did not end");
    tokio::time::sleep(Duration::from_millis(300)).await;
    peers(trace)
}

/// Everyone whose address stands in a call. What goes over a connection names nobody.
fn peers(trace: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(trace).expect("a trace");
    text.lines().filter_map(peer).collect()
}

fn peer(line: &str) -> Option<String> {
    let between = |before: &str, after: &str| {
        let (_, rest) = line.split_once(before)?;
        rest.split_once(after).map(|(found, _)| found.to_owned())
    };
    match between("sa_family=", ",")?.as_str() {
        "AF_INET" => {
            let port = between("sin_port=htons(", ")")?;
            Some(format!("{}:{port}", between("inet_addr(\"", "\")")?))
        }
        "AF_INET6" => {
            let port = between("sin6_port=htons(", ")")?;
            Some(format!("[{}]:{port}", between("inet_pton(AF_INET6, \"", "\"")?))
        }
        "AF_UNIX" => between("sun_path=\"", "\""),
        other => Some(other.to_owned()),
    }
}

#[test]
fn a_peer_is_read_from_a_call() {
    for (line, expect) in [
        (
            "7 connect(9, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr(\"10.0.0.2\")}, 16) = 0",
            Some("10.0.0.2:53"),
        ),
        (
            "7 connect(3, {sa_family=AF_UNIX, sun_path=\"/run/nscd/socket\"}, 110) = -1 ENOENT",
            Some("/run/nscd/socket"),
        ),
        (
            "7 sendto(4, [{nlmsg_len=20}], 20, 0, {sa_family=AF_NETLINK, nl_pid=0, nl_groups=00000000}, 12) = 20",
            Some("AF_NETLINK"),
        ),
        (
            "7 connect(9, {sa_family=AF_INET6, sin6_port=htons(443), sin6_flowinfo=htonl(0), \
             inet_pton(AF_INET6, \"fd00::1\", &sin6_addr), sin6_scope_id=0}, 28) = 0",
            Some("[fd00::1]:443"),
        ),
        ("7 sendto(9, \"x\", 1, MSG_NOSIGNAL, NULL, 0) = 1", None),
    ] {
        assert_eq!(peer(line).as_deref(), expect, "{line}");
    }
}
