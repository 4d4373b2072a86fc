//! `capsule fetch` against an edge that does as it is told.
#![expect(clippy::disallowed_methods, reason = "writes and reads the files of a node")]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::super::notify::Notifier;
use super::super::{Args, Command, Screen, fetch};
use super::forge::{Forge, KEY, SECRET};
use super::stub::{Act, Edge};
use crate::policy::jose::Algorithm;

const CAPSULE: &str = "/capsule/";
const TELEMETRY: &str = "/telemetry/";
const DAY: i64 = 86_400;

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

/// A node with its files, before an edge.
struct Node {
    files: TempDir,
    edge: Arc<Edge>,
    runtime: Runtime,
}

struct Ran {
    code: ExitCode,
    out: Vec<u8>,
    errors: String,
}

impl Ran {
    fn is(&self, code: u8, expect: &str) {
        assert_eq!(self.code, ExitCode::from(code), "{}", self.errors);
        assert!(self.errors.contains(expect), "{expect} is not in\n{}", self.errors);
        assert!(!self.errors.contains(SECRET), "{}", self.errors);
        assert!(!self.errors.contains(&STANDARD.encode(KEY)), "{}", self.errors);
    }
}

impl Node {
    fn before(lifetime: i64, script: &[Act]) -> Self {
        let files = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        let edge = runtime.block_on(Edge::start(lifetime, script));
        let node = Self { files, edge, runtime };
        node.write("secret", &format!("{SECRET}\n"));
        node.write("pin", &node.edge.forge.jwks().to_string());
        node
    }

    fn path(&self, name: &str) -> String {
        self.files.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Runs a line of words that are parted by `|`, where `%NAME` is a file, until `stop`.
    fn fetch_until(&self, line: &str, stop: impl Future<Output = ()>) -> Ran {
        let edge = format!("http://{}", self.edge.address);
        let usual = "fetch|--node|node-1|--boot-id|b1|--fingerprint|fp|--secret-file|%secret";
        let line = format!("{usual}|{line}").replace("EDGE", &edge);
        let line = line.replace('%', &format!("{}/", self.path("")).replace("//", "/"));
        let words = std::iter::once("capsule").chain(line.split('|'));
        let args = <Line as clap::Parser>::try_parse_from(words).unwrap().args;
        let Command::Fetch(args) = args.command else { panic!("{line}") };
        let (mut out, mut errors) = (Vec::new(), Vec::new());
        let mut screen = Screen {
            out: &mut out,
            out_is_terminal: false,
            errors: &mut errors,
            errors_is_terminal: true,
        };
        let socket = fs::exists(self.path("notify")).unwrap().then(|| self.path("notify").into());
        let notifier = Notifier::to(socket);
        let outcome = self.runtime.block_on(fetch::fetch(&args, &mut screen, &notifier, stop));
        let code = fetch::conclude(&args, &mut screen, outcome);
        Ran { code, out, errors: String::from_utf8(errors).unwrap() }
    }

    fn fetch(&self, line: &str) -> Ran {
        self.fetch_until(line, std::future::pending())
    }

    /// With a proof and pinned keys.
    fn fetch_proved(&self, line: &str) -> Ran {
        let usual = "--edge|EDGE|--key|%dpop|--create-key|--pin|%pin";
        self.fetch(&if line.is_empty() { usual.to_owned() } else { format!("{usual}|{line}") })
    }
}

#[test]
fn a_sealed_key_is_fetched_with_a_proof_and_written_for_its_owner_only() {
    let node = Node::before(DAY, &[]);
    let line = "--out|%key|--envelope-out|%envelope|--node-version|1.4.0+a|--json|--seal";
    let ran = node.fetch_proved(line);
    ran.is(0, "node-1: key m1.n1 (sealed, risk 20), capsule c1 good for 1d until ");
    assert!(!ran.errors.contains("not pinned"), "{}", ran.errors);
    assert_eq!(fs::read(node.path("key")).unwrap(), KEY);
    for (name, mode) in [("key", 0o600), ("dpop", 0o600), ("envelope", 0o644)] {
        assert_eq!(fs::metadata(node.path(name)).unwrap().mode() & 0o777, mode, "{name}");
    }
    let document: Value = serde_json::from_slice(&ran.out).unwrap();
    for (member, expect) in [("granted", true), ("sealed", true), ("pinned", true)] {
        assert_eq!(document[member], expect, "{member}");
    }
    assert!(!String::from_utf8_lossy(&ran.out).contains(&STANDARD.encode(KEY)));
    let seen = &node.edge.seen(CAPSULE)[0];
    for (field, expect) in
        [("x-node-fingerprint", "fp"), ("x-node-boot-id", "b1"), ("x-node-version", "1.4.0+a")]
    {
        assert_eq!(seen.headers[field], expect);
    }
    assert_eq!(seen.query, None);
    // The key of the proofs stays.
    let key = fs::read(node.path("dpop")).unwrap();
    node.fetch_proved("").is(0, "");
    assert_eq!(fs::read(node.path("dpop")).unwrap(), key);
}

#[test]
fn a_key_goes_to_stdout_in_any_form() {
    let node = Node::before(DAY, &[]);
    assert_eq!(node.fetch_proved("").out, KEY);
    let text = format!("{}\n", STANDARD.encode(KEY));
    assert_eq!(node.fetch_proved("--format|base64").out, text.as_bytes());
}

#[test]
fn with_a_certificate_alone_the_key_to_seal_to_is_a_field() {
    let node = Node::before(DAY, &[]);
    let made = rcgen::generate_simple_self_signed(vec!["node-1".into()]).unwrap();
    node.write("cert", &made.cert.pem());
    node.write("cert-key", &made.signing_key.serialize_pem());
    let ran = node.fetch("--edge|EDGE|--cert|%cert|--cert-key|%cert-key|--key-version|m1.n1@1+1");
    ran.is(1, "not believed: the key is version m1.n1, and m1.n1@1+1 was asked for");
    let seen = &node.edge.seen(CAPSULE)[0];
    assert!(seen.headers.contains_key("x-node-enc-jwk"));
    assert_eq!(seen.query.as_deref(), Some("keyVersion=m1.n1%401%2B1"));
    let ran = node.fetch("--edge|EDGE|--cert|%cert|--cert-key|%cert-key");
    ran.is(0, "note: the keys that sign envelopes are not pinned");
    assert_eq!(ran.out, KEY);
}

#[test]
fn with_the_secret_alone_nothing_is_sealed() {
    let node = Node::before(DAY, &[]);
    node.fetch("--edge|EDGE|--pin|%pin").is(0, "(not sealed, risk 20)");
    node.fetch("--edge|EDGE|--pin|%pin|--seal").is(2, "--seal needs --key or --cert");
    node.fetch_proved("--no-seal").is(0, "(not sealed");
    assert!(
        node.edge.seen(CAPSULE).iter().all(|seen| !seen.headers.contains_key("x-node-enc-jwk"))
    );
}

#[test]
fn sealing_is_offered_or_demanded() {
    let node = Node::before(DAY, &[Act::Plain, Act::Plain]);
    node.fetch_proved("").is(0, "(not sealed");
    node.fetch_proved("--seal|--out|%key").is(1, "not believed: the key is not sealed");
    assert!(!fs::exists(node.path("key")).unwrap());
}

#[test]
fn a_nonce_challenge_is_answered_and_is_no_retry() {
    let acts = [Act::Nonce("n1"), Act::Nonce("n1")];
    let node = Node::before(DAY, &acts);
    node.fetch_proved("--retries|0").is(0, "");
    let nonces: Vec<Value> = node
        .edge
        .seen(CAPSULE)
        .iter()
        .map(|seen| seen.claims.as_ref().unwrap().get("nonce").cloned().unwrap_or_default())
        .collect();
    assert_eq!(nonces, [Value::Null, "n1".into()]);
    let ids: Vec<_> = node.edge.seen(CAPSULE).iter().map(|s| s.claims.clone().unwrap()).collect();
    assert_ne!(ids[0]["jti"], ids[1]["jti"]);
}

#[test]
fn a_challenge_that_is_never_content_is_a_refusal() {
    let node = Node::before(DAY, &[Act::Nonce("n1"), Act::Nonce("n2"), Act::Nonce("n2")]);
    node.fetch_proved("").is(0, "");
    // The same nonce again is no use, and who always has another one is not the edge.
    let node = Node::before(DAY, &[Act::Challenge("n1"), Act::Challenge("n1")]);
    node.fetch_proved("").is(1, "refused: PROOF_NONCE_REQUIRED (401)");
    assert_eq!(node.edge.seen(CAPSULE).len(), 2);
    let acts: Vec<Act> = ["a", "b", "c", "d", "e", "f"].into_iter().map(Act::Nonce).collect();
    let node = Node::before(DAY, &acts);
    node.fetch_proved("").is(1, "refused: PROOF_NONCE_REQUIRED (401)");
    assert_eq!(node.edge.seen(CAPSULE).len(), 4);
}

#[test]
fn the_edge_s_retry_after_is_kept() {
    let acts =
        [Act::Refuse(503, Some("1"), "UNAVAILABLE"), Act::Refuse(429, Some("0"), "RATE_LIMITED")];
    let node = Node::before(DAY, &acts);
    let started = Instant::now();
    let ran = node.fetch_proved("");
    ran.is(0, "UNAVAILABLE (503, decision d1); again in 1.");
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert_eq!(node.edge.seen(CAPSULE).len(), 3);
    // A wish that is too long is no use.
    let node = Node::before(DAY, &[Act::Refuse(429, Some("3600"), "RATE_LIMITED")]);
    node.fetch_proved("").is(2, "no answer: RATE_LIMITED (429, decision d1) (attempts: 1)");
}

#[test]
fn retries_end() {
    let unavailable = Act::Refuse(503, Some("0"), "UNAVAILABLE");
    let node = Node::before(DAY, &vec![unavailable; 9]);
    node.fetch_proved("--retries|2|--json|--out|%key").is(2, "no answer: UNAVAILABLE");
    assert_eq!(node.edge.seen(CAPSULE).len(), 3);
    assert!(!fs::exists(node.path("key")).unwrap());
    // Port 1 of this machine: nothing listens there.
    let ran = node.fetch("--edge|http://127.0.0.1:1|--pin|%pin|--retries|1");
    ran.is(2, "Connection refused");
    assert!(ran.errors.contains("(attempts: 2)"), "{}", ran.errors);
}

#[test]
fn a_refusal_is_told_and_not_asked_again() {
    for (status, reason, expect) in [
        (401, "AUTHENTICATION_FAILED", "no such node, or not its secret"),
        (403, "NODE_QUARANTINED", "NODE_QUARANTINED (403, decision d1): an operator"),
        (400, "FINGERPRINT_CONFLICT", "FINGERPRINT_CONFLICT (400"),
        (404, "a\u{1b}[2J", "a\\u{1b}[2J (404"),
    ] {
        let node = Node::before(DAY, &[Act::Refuse(status, Some("0"), reason)]);
        let ran = node.fetch_proved("--json|--out|%key");
        ran.is(1, expect);
        let document: Value = serde_json::from_slice(&ran.out).unwrap();
        assert_eq!((&document["granted"], &document["status"]), (&false.into(), &status.into()));
        assert_eq!(node.edge.seen(CAPSULE).len(), 1);
    }
    let node = Node::before(DAY, &[Act::Refuse(500, None, "")]);
    node.fetch_proved("").is(2, "500 Internal Server Error: not an answer to expect");
    assert_eq!(node.edge.seen(CAPSULE).len(), 1);
}

#[test]
fn a_clock_that_is_off_is_told_of() {
    let node = Node::before(DAY, &[Act::Dated("Sun, 06 Nov 1994 08:49:37 GMT")]);
    let ran = node.fetch_proved("");
    ran.is(1, "refused: no reason was given (401)");
    assert!(ran.errors.contains("seconds ahead of the edge's"), "{}", ran.errors);
    let node = Node::before(
        DAY,
        &[Act::Forge(|spec| {
            for claim in ["iat", "exp"] {
                spec.claims[claim] = (spec.claims[claim].as_i64().unwrap() + 60).into();
            }
        })],
    );
    let ran = node.fetch_proved("");
    ran.is(0, "warning: this node's clock is ");
    assert!(ran.errors.contains(" seconds behind the edge's"), "{}", ran.errors);
}

#[test]
fn an_edge_that_says_nothing_is_not_waited_for_without_end() {
    let node = Node::before(DAY, &[Act::Hang]);
    let started = Instant::now();
    node.fetch_proved("--max-wait|300ms").is(2, "no answer: --max-wait is over (attempts: 1)");
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn the_unit_s_command_line_is_one() {
    let unit = include_str!("../../../../deploy/node/holdfast-capsule.service");
    let (_, rest) = unit.split_once("ExecStart=/usr/bin/holdfast ").unwrap();
    let mut line = rest.replace("\\\n", " ").lines().next().unwrap().to_owned();
    let environment = include_str!("../../../../deploy/node/node.env");
    for setting in environment.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, value)) = setting.split_once('=') else { continue };
        line = line.replace(&format!("${{{name}}}"), value).replace(&format!("${name}"), value);
    }
    let args = <Line as clap::Parser>::try_parse_from(line.split_whitespace()).unwrap().args;
    let Command::Fetch(args) = args.command else { panic!("{line}") };
    assert!(args.watch && args.telemetry && args.out.is_some() && args.pin.is_some());
}

#[test]
fn what_was_tampered_with_is_not_written() {
    let check = |act: Act, expect: &str| {
        let node = Node::before(DAY, &[act]);
        node.fetch_proved("--out|%key|--envelope-out|%envelope").is(1, expect);
        for name in ["key", "envelope"] {
            assert!(!fs::exists(node.path(name)).unwrap(), "{expect}");
        }
    };
    check(Act::Spoil(|grant| grant["capsuleId"] = "c2".into()), "the capsule's id is not");
    check(Act::Spoil(|grant| grant["signature"] = "x".into()), "the signature for the node");
    check(Act::Spoil(|grant| grant["envelope"] = "a.b.c".into()), "no compact JWS");
    check(Act::Spoil(|grant| *grant = "hello".into()), "the answer is no capsule");
    check(Act::Forge(|spec| spec.key = vec![8; 32]), "the key is not the one");
    check(Act::Forge(|spec| spec.secret = "stolen".into()), "the signature for the node");
    check(Act::Forge(|spec| spec.claims["iat"] = 0.into()), "seconds from now by this node's");
}

#[test]
fn a_pin_is_not_the_edge_s_word() {
    let node = Node::before(DAY, &[]);
    node.write("other", &Forge::new(Algorithm::EdDsa).jwks().to_string());
    let ran = node.fetch("--edge|EDGE|--key|%dpop|--create-key|--pin|%other");
    ran.is(1, "is not among the edge's keys");
}

#[test]
fn what_cannot_be_asked_ends_with_2() {
    let node = Node::before(DAY, &[]);
    node.write("empty", "\n");
    node.write("exposed", SECRET);
    fs::set_permissions(node.path("exposed"), fs::Permissions::from_mode(0o640)).unwrap();
    let check = |line: &str, expect: &str| {
        let ran = node.fetch(line);
        ran.is(2, expect);
        assert!(ran.out.is_empty() && ran.errors.lines().last().unwrap().starts_with("error: "));
    };
    check("--edge|http://edge.example", "must begin with https://");
    check("--edge|http://localhost:1|--connect|192.0.2.1:1", "must begin with https://");
    check("--edge|ftp://127.0.0.1", "must begin with https://");
    check("--edge|https://edge.example/path", "--edge is an origin");
    check("--edge|https://u:p@edge.example", "--edge is an origin");
    check("--edge|EDGE|--connect|127.0.0.1:1", "--connect is for an origin with a host name");
    check("--edge|EDGE|--key|%nowhere", "nowhere: No such file");
    check("--edge|EDGE|--key|%secret", "no private key");
    check("--edge|EDGE|--key|%exposed", "others than its owner may read it (mode 640)");
    check("--edge|EDGE|--pin|%secret", "not a JWK set");
    check("--edge|EDGE|--cacert|%secret", "no certificate authority");
    check("--edge|EDGE|--envelope-out|/nowhere/x|--pin|%pin", "/nowhere/x: No such file");
    node.write("secret", "two words");
    check("--edge|EDGE", "a secret is one line of visible ASCII");
    fs::set_permissions(node.path("secret"), fs::Permissions::from_mode(0o604)).unwrap();
    check("--edge|EDGE", "chmod 600 it");
    assert!(node.edge.seen(CAPSULE).len() == 1);
}

#[test]
fn a_run_that_is_told_to_end_has_no_capsule() {
    let node = Node::before(DAY, &[Act::Refuse(503, Some("60"), "UNAVAILABLE")]);
    let edge = node.edge.clone();
    let line = "--edge|EDGE|--pin|%pin";
    node.fetch_until(line, async move { edge.until_seen(CAPSULE, 1).await }).is(2, "interrupted");
}

#[test]
fn a_watch_renews_writes_another_key_and_says_how_the_node_is() {
    let other = [9; 32];
    // Renewed after 1.7 to 2 seconds; the second key is the first one.
    let script = [Act::Nonce("n1"), Act::Nonce("n1"), Act::Grant, Act::Key(other)];
    let node = Node::before(3, &script);
    let edge = node.edge.clone();
    let systemd = UnixDatagram::bind(node.path("notify")).unwrap();
    systemd.set_nonblocking(true).unwrap();
    let key = node.path("key");
    let inodes = std::cell::RefCell::new(Vec::new());
    let stop = async {
        for grants in [2, 3] {
            edge.until_seen(CAPSULE, grants).await;
            edge.until_seen(TELEMETRY, grants).await;
            inodes.borrow_mut().push(fs::metadata(&key).unwrap().ino());
        }
        while fs::read(&key).unwrap() != other {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let line = "--edge|EDGE|--pin|%pin|--key|%dpop|--create-key|--out|%key|--watch|--telemetry\
                |--telemetry-every|500ms|--node-version|1.4.0";
    let ran = node.fetch_until(line, stop);
    ran.is(0, "; the key is the same");
    let mut told = Vec::new();
    let mut buffer = [0; 256];
    while let Ok(length) = systemd.recv(&mut buffer) {
        told.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
    assert!(told[0].starts_with("READY=1\nSTATUS=capsule good until "), "{told:?}");
    assert!(told[1].starts_with("STATUS="), "{told:?}");
    assert_eq!(told.last().unwrap(), "STOPPING=1");
    let inodes = inodes.into_inner();
    assert_eq!(inodes[0], inodes[1]);
    // Each request has the nonce of the answer before.
    let last = node.edge.seen(CAPSULE).last().cloned().unwrap();
    assert_eq!(last.claims.unwrap()["nonce"], "from-a-grant");
    let told = node.edge.seen(TELEMETRY);
    let (end, before) = told.split_last().unwrap();
    assert!(before.iter().all(|told| told.body["state"] == "running"));
    assert_eq!((&end.body["state"], &end.body["bootId"]), (&"stopping".into(), &"b1".into()));
    assert_eq!(end.body["version"], "1.4.0");
    let numbers: Vec<u64> = told.iter().map(|told| told.body["seq"].as_u64().unwrap()).collect();
    assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
}

#[test]
fn a_watch_ends_when_the_edge_refuses_or_the_capsule_ends_without_an_answer() {
    let refused = Node::before(3, &[Act::Grant, Act::Refuse(403, None, "NODE_REVOKED")]);
    let line = "--edge|EDGE|--pin|%pin|--out|%key|--watch";
    refused.fetch(line).is(1, "refused: NODE_REVOKED (403");
    let mut script = vec![Act::Grant];
    script.resize(60, Act::Refuse(503, Some("0"), "UNAVAILABLE"));
    let started = Instant::now();
    Node::before(3, &script).fetch(line).is(2, "no answer: UNAVAILABLE");
    assert!(started.elapsed() < Duration::from_secs(4));
}
