//! The node's own client against the real edge: `holdfast capsule fetch` and `verify`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::end_to_end::run;
use super::support::Table;
use super::support::node::{Node, world};
use super::support::process::free_port;
use super::support::server::skip;
use super::support::world::{World, expect_eq};

/// What a run of the client came to.
struct Ran {
    status: Option<i32>,
    out: String,
    errors: String,
}

impl Ran {
    /// Whether it ended so, and said this among its errors.
    fn is(&self, status: i32, said: &str) -> Result<(), String> {
        let told = format!("{}{}", self.out, self.errors);
        expect_eq(&told, &self.status, &Some(status))?;
        expect_eq(&format!("{told} has {said}"), &self.errors.contains(said), &true)?;
        for word in ["panicked", "RUST_BACKTRACE"] {
            expect_eq(word, &told.contains(word), &false)?;
        }
        Ok(())
    }
}

/// A node's machine: a directory with its secret, beside the world.
struct Machine<'a> {
    world: &'a World,
    home: PathBuf,
    node: Node,
    boot: String,
}

impl<'a> Machine<'a> {
    fn new(world: &'a World, id: &str) -> Self {
        let node = world.enrol(id, &[]);
        let home = world.directory.path().join(format!("machine of {id}"));
        fs::create_dir(&home).expect("a writable directory");
        let machine = Self { world, home, node, boot: "boot-1".to_owned() };
        machine.keep("secret", &machine.node.secret);
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    fn keep(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("a writable directory");
        let owner = fs::Permissions::from_mode(0o600);
        fs::set_permissions(self.path(name), owner).expect("its owner");
    }

    fn read(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.path(name)).ok()
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).expect("a file").permissions().mode() & 0o777
    }

    /// The client on this machine; `words` are parted by spaces.
    fn client(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        let to = format!("127.0.0.1:{}", self.world.client.port);
        command
            .current_dir(&self.home)
            .args(["capsule", "fetch", "--edge", "https://api.example", "--secret-file", "secret"])
            .args(["--node", &self.node.id, "--fingerprint", "this-machine"])
            .args(["--boot-id", &self.boot, "--node-version", "1.2.3", "--cacert", "../ca.pem"])
            .args(words.split(' ').filter(|word| !word.is_empty()));
        if !words.contains("--connect") {
            command.args(["--connect", &to]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn fetch(&self, words: &str) -> Ran {
        ran(&mut self.client(words))
    }

    /// With a proof, to the file `key`.
    fn proved(&self, words: &str) -> Ran {
        self.fetch(&format!("--key dpop.pem --create-key --out key {words}"))
    }

    /// The edge's keys, in the file `jwks`.
    async fn pin(&self, name: &str) -> Value {
        let path = "/.well-known/holdfast/capsule-jwks.json";
        let request = super::support::client::Request::new("GET", path);
        let set = self.world.send(&request).await.expect("an answer");
        fs::write(self.path(name), &set.body).expect("a writable directory");
        set.json()
    }

    fn verify(&self, words: &str) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command.current_dir(&self.home).args(["capsule", "verify"]).args(words.split(' '));
        ran(&mut command)
    }
}

fn ran(command: &mut Command) -> Ran {
    let output = command.output().expect("the program");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran { status: output.status.code(), out: text(&output.stdout), errors: text(&output.stderr) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_fetched_by_a_proof() {
    let world = world(|_| {}).await;
    let machine = Machine::new(&world, "node-1");
    let mut table = Table::default();
    table.row("fail/no key", machine.fetch("--key dpop.pem --out key").is(2, "dpop.pem"));
    let first = machine.proved("--json --envelope-out envelope");
    table.row("ok/first", first.is(0, "not pinned"));
    let key = machine.read("key").expect("a key");
    table.row("ok/first", expect_eq("bytes", &key.len(), &32));
    for (name, expect) in [("key", 0o600), ("dpop.pem", 0o600), ("envelope", 0o644)] {
        table.row(name, expect_eq("mode", &machine.mode(name), &expect));
    }
    let told: Value = serde_json::from_str(&first.out).unwrap_or_default();
    for (member, expect) in [
        ("granted", json!(true)),
        ("sealed", json!(true)),
        ("pinned", json!(false)),
        ("written", json!(true)),
        ("keyVersion", json!("m1.n1@1.2.3")),
    ] {
        table.row(member, expect_eq("told", &told[member], &expect));
    }
    // The edge knows the key that was made here.
    let bound = world.node("node-1")["jkt"].is_string();
    table.row("ok/bound", expect_eq("jkt", &bound, &true));
    let again = machine.proved("--json");
    let told: Value = serde_json::from_str(&again.out).unwrap_or_default();
    table.row("ok/again", expect_eq("written", &told["written"], &json!(false)));
    // Plain and sealed are the same key, to a file or not, in any form.
    for (name, words) in [("plain", "--no-seal"), ("sealed", "--seal")] {
        let hex = machine.fetch(&format!("--key dpop.pem --format hex {words}"));
        table.row(name, hex.is(0, ""));
        let expect: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        table.row(name, expect_eq("key", &hex.out.trim(), &expect.as_str()));
    }
    // A key of another node, and none, are refused, and nothing is written.
    for (name, words) in [
        ("fail/another key", "--key other.pem --create-key --out refused"),
        ("fail/none", "--out refused"),
    ] {
        table.row(name, machine.fetch(words).is(1, "SENDER_MISMATCH"));
        table.row(name, expect_eq("written", &machine.read("refused"), &None));
    }
    machine.keep("secret", "somebody-elses");
    let wrong = machine.proved("--json");
    table.row("fail/secret", wrong.is(1, "AUTHENTICATION_FAILED"));
    let told: Value = serde_json::from_str(&wrong.out).unwrap_or_default();
    table.row("fail/secret", expect_eq("reason", &told["reason"], &json!("AUTHENTICATION_FAILED")));
    table.row("fail/secret", expect_eq("key", &machine.read("key"), &Some(key)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_fetched_by_a_certificate() {
    let world = world(|config| {
        config["capsules"]["proof"] = json!("mtls");
        config["capsules"]["seal"] = json!("required");
    })
    .await;
    let machine = Machine::new(&world, "node-1");
    let alice = "--cert ../alice.pem --cert-key ../alice.key";
    let bob = "--cert ../bob.pem --cert-key ../bob.key";
    for file in ["alice.key", "bob.key"] {
        let path = world.directory.path().join(file);
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("its owner");
    }
    let mut table = Table::default();
    let plain = machine.fetch(&format!("{alice} --no-seal --out key"));
    table.row("fail/not sealed", plain.is(1, "SEAL_REQUIRED"));
    table.row("fail/not sealed", expect_eq("written", &machine.read("key"), &None));
    table.row("ok/sealed", machine.fetch(&format!("{alice} --seal --out key")).is(0, ""));
    let key = machine.read("key");
    table.row("ok/sealed", expect_eq("written", &key.is_some(), &true));
    table
        .row("fail/another", machine.fetch(&format!("{bob} --out other")).is(1, "SENDER_MISMATCH"));
    table.row("fail/none", machine.fetch("--out other").is(1, "SENDER_MISMATCH"));
    table.row("fail", expect_eq("written", &machine.read("other"), &None));
    let x5t = world.node("node-1")["x5t"].clone();
    table.row("bound", expect_eq("x5t", &x5t, &json!(world.pki.alice.x5t())));
}

#[tokio::test(flavor = "multi_thread")]
async fn pins_and_refusals() {
    let world = world(|_| {}).await;
    let machine = Machine::new(&world, "node-1");
    let mut table = Table::default();
    let set = machine.pin("jwks").await;
    // Another edge's keys, and this edge's kid over another key.
    let mut foreign = set.clone();
    foreign["keys"][0]["x"] = super::support::keys::Key::new("EdDSA").jwk["x"].clone();
    machine.keep("foreign", &foreign.to_string());
    foreign["keys"][0]["kid"] = json!("another");
    machine.keep("unknown", &foreign.to_string());
    machine.keep("nothing", "{\"keys\":[]}");
    for (name, said) in [("foreign", "signature"), ("unknown", "is not among the edge's keys")] {
        let ran = machine.proved(&format!("--pin {name} --envelope-out envelope"));
        table.row(&format!("fail/{name}"), ran.is(1, said));
        for file in ["key", "envelope"] {
            table.row(name, expect_eq(file, &machine.read(file), &None));
        }
    }
    let empty = machine.proved("--pin nothing");
    table.row("fail/nothing", expect_eq(&empty.errors, &(empty.status == Some(0)), &false));
    table.row("fail/nothing", expect_eq("written", &machine.read("key"), &None));
    let good = machine.proved("--pin jwks --json --envelope-out envelope");
    table.row("ok/pinned", good.is(0, ""));
    table.row("ok/pinned", expect_eq("no note", &good.errors.contains("not pinned"), &false));
    let key = machine.read("key");
    for (command, reason) in [
        ("disable", "NODE_DISABLED"),
        ("enable", ""),
        ("quarantine", "NODE_QUARANTINED"),
        ("release", ""),
        ("revoke", "NODE_REVOKED"),
    ] {
        world.change(&[command, "node-1"]);
        let ran = machine.proved("--pin jwks");
        let status = i32::from(!reason.is_empty());
        table.row(command, ran.is(status, reason));
    }
    table.row("fail", expect_eq("key", &machine.read("key"), &key));

    // A third party has the envelope, the edge's keys, and perhaps the key.
    let verify = |words: &str| machine.verify(&format!("envelope {words}"));
    table.row("ok/verify", verify("--jwks jwks").is(0, ""));
    let all = verify("--jwks jwks --key key --node node-1 --cluster test-cluster --json");
    table.row("ok/verify", all.is(0, ""));
    let told: Value = serde_json::from_str(&all.out).unwrap_or_default();
    table.row("ok/verify", expect_eq("sub", &told["claims"]["sub"], &json!("node-1")));
    machine.keep("another key", &"k".repeat(32));
    fs::rename(machine.path("another key"), machine.path("another")).expect("a file");
    for (name, words) in [
        ("fail/keys", "--jwks foreign"),
        ("fail/kid", "--jwks unknown"),
        ("fail/node", "--jwks jwks --node node-2"),
        ("fail/cluster", "--jwks jwks --cluster other"),
        ("fail/key", "--jwks jwks --key another"),
    ] {
        table.row(name, verify(words).is(1, ""));
    }
    let envelope = String::from_utf8(machine.read("envelope").expect("a file")).expect("text");
    let [head, claims, signature] = super::support::proof::parts(envelope.trim());
    let forged = claims.replacen('a', "b", 1);
    machine.keep("forged", &format!("{head}.{forged}.{signature}"));
    table.row("fail/forged", machine.verify("forged --jwks jwks").is(1, ""));
    table.row("fail/no file", machine.verify("nowhere --jwks jwks").is(2, "nowhere"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_cannot_say_is_asked_again() {
    let world = world(|_| {}).await;
    let machine = Machine::new(&world, "node-1");
    let mut table = Table::default();
    let nobody = format!("--connect 127.0.0.1:{} --retries 2 --max-wait 20s", free_port());
    let gone = machine.proved(&nobody);
    table.row("fail/no answer", gone.is(2, "(attempts: 3)"));
    let path = world.directory.path().join("holdfast.db");
    let away = world.directory.path().join("away.db");
    fs::rename(&path, &away).expect("it is moved");
    let down = machine.proved("--retries 1 --max-wait 15s");
    table.row("fail/503", down.is(2, "(attempts: 2)"));
    table.row("fail/503", expect_eq("written", &machine.read("key"), &None));
    // It comes back while somebody asks.
    let waiting = machine.client("--key dpop.pem --create-key --out key --max-wait 25s").spawn();
    tokio::time::sleep(Duration::from_secs(1)).await;
    fs::rename(&away, &path).expect("it is moved back");
    let output = waiting.expect("the program").wait_with_output().expect("a child");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    table.row("ok/back", expect_eq(&errors, &output.status.code(), &Some(0)));
    table.row("ok/back", expect_eq("written", &machine.read("key").is_some(), &true));
}

#[tokio::test(flavor = "multi_thread")]
async fn old_keys_can_be_had_until_they_are_retired() {
    let world = world(|_| {}).await;
    let machine = Machine::new(&world, "node-1");
    let mut table = Table::default();
    table.row("ok/first", machine.proved("").is(0, ""));
    let first = machine.read("key");
    world.change(&["rotate-key", "node-1"]);
    table.row("ok/rotated", machine.proved("").is(0, ""));
    table.row("ok/rotated", expect_eq("another", &(machine.read("key") != first), &true));
    let old = "--key dpop.pem --key-version m1.n1@1.2.3 --out old";
    table.row("ok/old", machine.fetch(old).is(0, ""));
    table.row("ok/old", expect_eq("same", &machine.read("old"), &first));
    world.change(&["rotate-key", "node-1", "--retire-old"]);
    let gone = "--key dpop.pem --key-version m1.n1@1.2.3 --out gone";
    table.row("fail/retired", machine.fetch(gone).is(1, "KEY_VERSION_UNAVAILABLE"));
    table.row("fail/retired", expect_eq("written", &machine.read("gone"), &None));
    table.row("ok/current", machine.proved("").is(0, ""));
}

/// A client that goes on; ended with the test.
struct Watching(Child);

impl Watching {
    fn signal(&self, name: &str) {
        let command = format!("kill -{name} {}", self.0.id());
        let status = Command::new("sh").args(["-c", &command]).status().expect("a shell");
        assert!(status.success(), "SIG{name} could not be sent");
    }

    async fn ended(&mut self) -> Option<i32> {
        for _ in 0..500 {
            if let Some(status) = self.0.try_wait().expect("a child") {
                return status.code();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("it does not end");
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until `holds`, at most so long. How long it took.
async fn until(limit: Duration, mut holds: impl FnMut() -> bool) -> Option<Duration> {
    let began = Instant::now();
    while began.elapsed() < limit {
        if holds() {
            return Some(began.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_renews_and_tells_how_the_node_stops() {
    let world = world(|config| config["capsules"]["lifetime"] = json!("1m")).await;
    let machine = Machine::new(&world, "node-1");
    let mut table = Table::default();
    let words = "--key dpop.pem --create-key --out key --watch --telemetry --telemetry-every 1s";
    let watch = |machine: &Machine<'_>| {
        let mut command = machine.client(words);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Watching(command.spawn().expect("the program"))
    };
    let heard = |member: &str| world.node("node-1")["heard"][member].clone();
    let soon = Duration::from_secs(10);
    let mut watching = watch(&machine);
    let there = until(soon, || heard("state") == json!("running")).await;
    table.row("ok/running", expect_eq("heard", &there.is_some(), &true));
    let first = machine.read("key").expect("a key");
    let seq = heard("seq").as_u64().unwrap_or_default();
    let on = until(soon, || heard("seq").as_u64().unwrap_or_default() > seq).await;
    table.row("ok/goes on", expect_eq("heard", &on.is_some(), &true));
    // The key that comes with the renewal is another one; it is due after 34 to 40 seconds.
    world.change(&["rotate-key", "node-1"]);
    let changed = || machine.read("key").is_some_and(|key| key != first);
    let renewed = until(Duration::from_secs(50), changed).await;
    let in_time = renewed.is_some_and(|took| took > Duration::from_secs(20));
    table.row("ok/renewed", expect_eq(&format!("{renewed:?}"), &in_time, &true));
    table.row("ok/renewed", expect_eq("mode", &machine.mode("key"), &0o600));
    watching.signal("TERM");
    table.row("ok/SIGTERM", expect_eq("status", &watching.ended().await, &Some(0)));
    table.row("ok/SIGTERM", expect_eq("heard", &heard("state"), &json!("stopping")));
    // Another boot after a clean stop, which ends with a crash.
    let crashing = Machine { boot: "boot-2".to_owned(), ..machine };
    let mut watching = watch(&crashing);
    let there = until(soon, || heard("boot") == json!("boot-2")).await;
    table.row("ok/after a clean stop", expect_eq("heard", &there.is_some(), &true));
    watching.signal("KILL");
    table.row("kill -9", expect_eq("status", &watching.ended().await, &None));
    table.row("kill -9", expect_eq("heard", &heard("state"), &json!("running")));
    table.row("ok/same boot", crashing.proved("").is(0, ""));
    let next = Machine { boot: "boot-3".to_owned(), ..crashing };
    let abrupt = next.proved("");
    table.row("fail/abrupt", abrupt.is(1, "NETWORK_POLICY_VIOLATION (403, risk 80"));
    table.row("fail/sticky", next.proved("").is(1, "NODE_QUARANTINED"));
    world.change(&["release", "node-1"]);
    table.row("ok/released", next.proved("").is(0, ""));
}

#[test]
fn systemd_understands_the_units() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/node");
    let scratch = tempfile::tempdir().expect("a directory");
    let mut table = Table::default();
    for name in ["holdfast-capsule.service", "example-app.service"] {
        let text = fs::read_to_string(format!("{root}/{name}")).expect("a unit");
        // Where the programs are is the node's, not this machine's.
        let text = text
            .replace("/usr/bin/holdfast", env!("CARGO_BIN_EXE_holdfast"))
            .replace("/usr/bin/example-app", "/bin/true");
        fs::write(scratch.path().join(name), text).expect("a writable directory");
    }
    for name in ["holdfast-capsule.service", "example-app.service"] {
        let mut command = Command::new("systemd-analyze");
        command
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .arg(scratch.path().join(name));
        let Some(output) = run(&mut command) else { return };
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if said.contains("Failed to") && said.contains("manager") {
            skip(&format!("systemd-analyze verify: {said}"));
            return;
        }
        let about: Vec<&str> = said.lines().filter(|line| line.contains(name)).collect();
        table.row(name, expect_eq("said", &about, &Vec::<&str>::new()));
        table.row(name, expect_eq(&said, &output.status.success(), &true));
    }
}
