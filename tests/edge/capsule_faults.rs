//! What lies under capsules fails while the edge runs: stored records, the database's file, the
//! disk, the key files. Nothing is issued that is not written down, and nothing half written stays.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rusqlite::Connection;
use serde_json::{Value, json};

use super::support::Table;
use super::support::client::{Message, Outcome};
use super::support::node::{Node, holdfast, told, with_capsules, world};
use super::support::server::skip;
use super::support::world::{World, expect_eq};

const HERE: &str = "127.0.0.1";

fn is(outcome: Outcome, expect: &str) -> Result<(), String> {
    expect_eq("answer", &told(&outcome?).as_str(), &expect)
}

/// Whether it is the refusal of an edge that cannot say.
fn unavailable(outcome: &Outcome) -> Result<(), String> {
    let answer = outcome.as_ref().map_err(Clone::clone)?;
    expect_eq("answer", &told(answer).as_str(), &"503 UNAVAILABLE")?;
    expect_eq("retry-after", &answer.one("retry-after").is_some(), &true)?;
    expect_eq("cache-control", &answer.one("cache-control"), &Some("no-store"))?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    for word in ["Key", "sql", "SQL", ".db", "malformed"] {
        expect_eq(word, &text.contains(word), &false)?;
    }
    Ok(())
}

/// The database, beside the edge.
fn database(world: &World) -> Connection {
    Connection::open(world.directory.path().join("holdfast.db")).expect("a database")
}

/// Asks with a nonce of before: when the store is down there is no challenge.
async fn ask(world: &World, node: &Node, nonce: &str) -> Outcome {
    world.send(&node.request(nonce)).await
}

fn key(outcome: &Outcome) -> Value {
    outcome.as_ref().map_or(Value::Null, |answer: &Message| answer.json()["runtimeKey"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_cannot_be_read_is_one_node_s_trouble() {
    let world = world(|_| {}).await;
    let (node, other) = (world.enrol("node-1", &[]), world.enrol("node-2", &[]));
    let mut table = Table::default();
    let nonce = world.node_nonce(&node).await;
    for one in [&node, &other] {
        table.row("ok/before", is(ask(&world, one, &nonce).await, "200 risk 0"));
    }
    let connection = database(&world);
    let good: String = connection
        .query_row("SELECT record FROM nodes WHERE id = 'node-1'", [], |row| row.get(0))
        .expect("a record");
    let put = |record: &str, status: &str| {
        let sql = "UPDATE nodes SET record = ?1, status = ?2, revision = revision + 1
                   WHERE id = 'node-1'";
        connection.execute(sql, [record, status]).expect("it is written");
    };
    let granted = || world.node("node-2")["counters"]["granted"].as_u64().unwrap_or_default();
    let member = |name: &str, value: Value| {
        let mut record: Value = serde_json::from_str(&good).expect("JSON");
        record[name] = value;
        record.to_string()
    };
    let before = granted();
    let mut rows = 0;
    for (name, record, status) in [
        ("empty", String::new(), "active"),
        ("no JSON", "{".to_owned(), "active"),
        ("cut", good[..good.len() / 2].to_owned(), "active"),
        ("an empty object", "{}".to_owned(), "active"),
        ("null", "null".to_owned(), "active"),
        ("another node's", good.replace("node-1", "node-2"), "active"),
        ("no secret", member("secret", Value::Null), "active"),
        ("a secret that is none", member("secret", json!("x")), "active"),
        ("key version 0", member("keyVersion", json!(0)), "active"),
        ("key version -1", member("keyVersion", json!(-1)), "active"),
        ("all versions retired", member("oldestKeyVersion", json!(9)), "active"),
        ("a status that is none", member("status", json!("trusted")), "active"),
        ("two that differ", member("status", json!("revoked")), "active"),
        ("a column that differs", good.clone(), "quarantined"),
        ("a baseline that is text", member("baseline", json!("x")), "active"),
        ("a key that is none", member("jkt", json!("x")), "active"),
        ("more", member("trusted", json!(true)), "active"),
        ("deep", format!("{}{}", "[".repeat(9000), "]".repeat(9000)), "active"),
    ] {
        put(&record, status);
        // Two at once: one transaction holds both.
        let (hurt, whole) = tokio::join!(ask(&world, &node, &nonce), ask(&world, &other, &nonce));
        table.row(&format!("fail/{name}"), unavailable(&hurt));
        table.row(&format!("ok/beside {name}"), is(whole, "200 risk 0"));
        let wrong = Node { secret: "x".repeat(43), ..node.clone() };
        let answer = ask(&world, &wrong, &nonce).await;
        let granted = answer.as_ref().is_ok_and(|answer| answer.status() == 200);
        table.row(&format!("fail/{name}, wrong secret"), expect_eq("granted", &granted, &false));
        rows += 1;
    }
    table.row("beside", expect_eq("granted", &(granted() - before), &rows));
    // `readyz` is about the store, and that is up.
    let ready = world.admin("/readyz").await;
    table.row("ready", expect_eq("status", &ready.status(), &200));
    put(&good, "active");
    table.row("ok/after", is(ask(&world, &node, &nonce).await, "200 risk 0"));
    let verified = world.command(&["audit", "verify"]);
    table.row("audit", expect_eq(&verified, &verified.contains("the log is whole"), &true));
}

/// How many capsules the registry knows to have been given to a node.
fn granted(world: &World, id: &str) -> u64 {
    world.node(id)["counters"]["granted"].as_u64().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_moved_away_is_waited_for() {
    let mut world = world(|_| {}).await;
    let node = world.enrol("node-1", &[]);
    let mut table = Table::default();
    let nonce = world.node_nonce(&node).await;
    let first = ask(&world, &node, &nonce).await;
    table.row("ok/before", is(first.clone(), "200 risk 0"));
    let path = world.directory.path().join("holdfast.db");
    let away = world.directory.path().join("away.db");
    fs::rename(&path, &away).expect("it is moved");
    for _ in 0..3 {
        table.row("fail/moved", unavailable(&ask(&world, &node, &nonce).await));
    }
    let down = world.metric_once("holdfast_store_up", &["store=\"embedded\""], 0.0).await;
    table.row("fail/moved", expect_eq("store up", &down, &0.0));
    // Something else in its place is not written to.
    fs::write(&path, b"").expect("a file");
    table.row("fail/another", unavailable(&ask(&world, &node, &nonce).await));
    let length = fs::metadata(&path).expect("a file").len();
    table.row("fail/another", expect_eq("bytes", &length, &0));
    fs::rename(&away, &path).expect("it is moved back");
    let again = ask(&world, &node, &nonce).await;
    table.row("ok/back", is(again.clone(), "200 risk 0"));
    table.row("ok/back", expect_eq("same key", &key(&again), &key(&first)));
    table.row("ok/back", expect_eq("granted", &granted(&world, "node-1"), &2));
    let said = world.process.output().contains("moved away or replaced");
    table.row("fail/moved", expect_eq("the log says why", &said, &true));

    // Deleted: nothing any more, until somebody restores it and starts the edge again.
    let copy = world.directory.path().join("copy.db");
    database(&world).execute("VACUUM INTO ?1", [copy.to_str()]).expect("a backup");
    for name in ["holdfast.db", "holdfast.db-wal", "holdfast.db-shm"] {
        let _ = fs::remove_file(world.directory.path().join(name));
    }
    for _ in 0..3 {
        table.row("fail/deleted", unavailable(&ask(&world, &node, &nonce).await));
    }
    // A backup that is put there is another file: the edge says so, and takes it when it starts.
    fs::copy(&copy, &path).expect("it is restored");
    table.row("fail/replaced", unavailable(&ask(&world, &node, &nonce).await));
    let untouched = fs::read(&path).expect("a file") == fs::read(&copy).expect("a file");
    table.row("fail/replaced", expect_eq("untouched", &untouched, &true));
    world.restart().await;
    let after = world.ask(&node, HERE).await;
    table.row("ok/restored", is(after.clone(), "200 risk 0"));
    table.row("ok/restored", expect_eq("same key", &key(&after), &key(&first)));
    table.row("ok/restored", expect_eq("granted", &granted(&world, "node-1"), &3));
    let verified = world.command(&["audit", "verify"]);
    table.row("audit", expect_eq(&verified, &verified.contains("the log is whole"), &true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_cut_off_gives_nothing() {
    let mut table = Table::default();
    for (name, part) in [("to nothing", 0), ("to a half", 2), ("to a tenth", 10)] {
        let mut world = world(|_| {}).await;
        let node = world.enrol("node-1", &[]);
        for number in 2..60 {
            // Enough of them that there are pages to lose.
            if number % 20 == 0 {
                world.enrol(&format!("node-{number}"), &[]);
            }
        }
        let nonce = world.node_nonce(&node).await;
        for _ in 0..20 {
            table.row("ok/before", is(ask(&world, &node, &nonce).await, "200 risk 0"));
        }
        // All of it in the file itself, and a copy for afterwards.
        let connection = database(&world);
        connection.pragma_update(None, "wal_checkpoint", "TRUNCATE").expect("it is written");
        let copy = world.directory.path().join("copy.db");
        connection.execute("VACUUM INTO ?1", [copy.to_str()]).expect("a backup");
        drop(connection);
        let path = world.directory.path().join("holdfast.db");
        let length = fs::metadata(&path).expect("a file").len();
        let file = fs::OpenOptions::new().write(true).open(&path).expect("a file");
        // Whole pages: of what is torn within one SQLite cannot tell.
        let rest = length.checked_div(part).unwrap_or(0) / 4096 * 4096;
        file.set_len(rest).expect("it is cut");
        let mut given = 0;
        for _ in 0..5 {
            let answer = ask(&world, &node, &nonce).await;
            if answer.as_ref().is_ok_and(|answer| answer.status() == 200) {
                given += 1;
            } else {
                table.row(&format!("fail/{name}"), unavailable(&answer));
            }
        }
        table.row(&format!("fail/{name}"), expect_eq("given", &given, &0));
        let down = world.metric_once("holdfast_store_up", &["store=\"embedded\""], 0.0).await;
        table.row(&format!("fail/{name}"), expect_eq("store up", &down, &0.0));
        // It does not start with it either, and says what to do.
        world.process.terminate();
        assert!(world.process.ended().await.is_some(), "it did not end after SIGTERM");
        if part > 0 {
            let (status, text) = start(world.directory.path());
            table.row(&format!("fail/{name}, start"), expect_eq(&text, &status, &Some(1)));
            let named = text.contains("holdfast.db");
            table.row(&format!("fail/{name}, start"), expect_eq(&text, &named, &true));
        }
        for file in ["holdfast.db-wal", "holdfast.db-shm"] {
            let _ = fs::remove_file(world.directory.path().join(file));
        }
        fs::copy(&copy, &path).expect("it is restored");
        world.restart_ended().await;
        table.row(&format!("ok/{name}, restored"), is(world.ask(&node, HERE).await, "200 risk 0"));
    }
}

/// A file system of a few megabytes, for the store alone. It is unmounted with the test.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path) -> Option<Self> {
        fs::create_dir(at).expect("a writable directory");
        let owner = |flag| {
            let output = Command::new("id").arg(flag).output().expect("id");
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        };
        let options = format!("size=2m,mode=700,uid={},gid={}", owner("-u"), owner("-g"));
        let mount = ["mount", "-t", "tmpfs", "-o", &options, "holdfast-test"];
        as_root(&mount, at).then(|| Self(at.to_owned()))
    }

    /// Takes all the room there is.
    fn fill(&self) {
        use std::io::Write as _;
        let mut file = fs::File::create(self.0.join("filler")).expect("a file");
        for size in [4096, 1] {
            while file.write(&vec![0; size]).is_ok_and(|written| written > 0) {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.0.join("filler")).expect("a file");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: the edge may still have a file of it open.
        as_root(&["umount", "--lazy"], &self.0);
    }
}

/// Runs a command on a path as root; false where we may not.
fn as_root(command: &[&str], path: &Path) -> bool {
    let quiet = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).arg(path).stdin(Stdio::null());
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let (program, rest) = command.split_first().expect("a program");
    quiet(program, rest) || quiet("sudo", &[&["-n"], command].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_gives_nothing_and_loses_nothing() {
    let mut disk = None;
    let world = World::start_in(|directory, _, config| {
        with_capsules(directory, config);
        disk = Disk::mount(&directory.join("disk"));
        config["store"] = json!({"path": "disk/holdfast.db"});
        // Whoever is refused could fill it as well.
        config["audit"] = json!({"reserveBytes": 0});
    })
    .await;
    let Some(disk) = disk else {
        skip("a full disk: no right to mount one");
        return;
    };
    let (node, other) = (world.enrol("node-1", &[]), world.enrol("node-2", &[]));
    let mut table = Table::default();
    let nonce = world.node_nonce(&node).await;
    let first = ask(&world, &node, &nonce).await;
    table.row("ok/before", is(first.clone(), "200 risk 0"));
    let (mut given, mut lines) = (1, world.audit().len());
    for round in 0..3 {
        disk.fill();
        // Several at once share a transaction; none of them may be said to be done.
        for _ in 0..4 {
            let (one, two, three) = tokio::join!(
                ask(&world, &node, &nonce),
                ask(&world, &other, &nonce),
                ask(&world, &node, &nonce)
            );
            for answer in [one, two, three] {
                table.row(&format!("fail/full {round}"), unavailable(&answer));
            }
        }
        let report = json!({"bootId": "boot-1", "seq": 1, "state": "stopping"});
        let answer = world.send(&node.telemetry(&nonce, &report)).await;
        table.row(&format!("fail/telemetry {round}"), unavailable(&answer));
        let arguments = ["node", "revoke", "node-2", "--reason", "x", "--config", "authority.yaml"];
        let (status, out, errors) = holdfast(world.directory.path(), &arguments);
        let told = format!("{out}{errors}");
        table.row("fail/command", expect_eq(&told, &(status == Some(0)), &false));
        table.row("fail/command", expect_eq(&told, &told.contains("panicked"), &false));
        let down = world.metric_once("holdfast_store_up", &["store=\"embedded\""], 0.0).await;
        table.row("fail/full", expect_eq("store up", &down, &0.0));
        let ready = world.admin("/readyz").await.status();
        table.row("fail/full", expect_eq("readyz", &ready, &503));
        disk.free();
        // Seen without a request: a balancer that asks here sends none.
        let ready = world.admin("/readyz").await.status();
        table.row("ok/room", expect_eq("readyz", &ready, &200));
        let up = world.metric("holdfast_store_up", &["store=\"embedded\""]).await;
        table.row("ok/room", expect_eq("store up", &up, &1.0));
        let again = ask(&world, &node, &nonce).await;
        table.row(&format!("ok/room {round}"), is(again.clone(), "200 risk 0"));
        table.row("ok/room", expect_eq("same key", &key(&again), &key(&first)));
        given += 1;
        table.row("ok/room", expect_eq("granted", &granted(&world, "node-1"), &given));
        let record = world.node("node-2");
        table.row("ok/room", expect_eq("node-2", &record["counters"]["granted"], &json!(0)));
        table.row("ok/room", expect_eq("node-2", &record["fingerprint"], &Value::Null));
        table.row("ok/room", expect_eq("node-2", &record["status"], &json!("active")));
        table.row("ok/room", expect_eq("heard", &world.node("node-1")["heard"], &Value::Null));
        let now = world.audit();
        let grants = now.iter().filter(|line| line["data"]["verdict"].get("Ok").is_some()).count();
        table.row("ok/room", expect_eq("grants in the log", &(grants as u64), &given));
        table.row("ok/room", expect_eq("lines", &(now.len() - lines), &1));
        lines = now.len();
        let verified = world.command(&["audit", "verify"]);
        table.row("audit", expect_eq(&verified, &verified.contains("the log is whole"), &true));
    }
    table.row("ok/other", is(ask(&world, &other, &nonce).await, "200 risk 0"));
    drop(world);
    drop(disk);
}

/// Starts the edge, which must end by itself: exit status and all it wrote.
fn start(directory: &Path) -> (Option<i32>, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(["run", "--config", "authority.yaml"])
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program");
    for _ in 0..300 {
        if child.try_wait().expect("a child").is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = child.kill();
    let output = child.wait_with_output().expect("a child");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its owner");
}

/// Takes the keys away in every way, and puts them back.
type Damage = (&'static str, fn(&Path), &'static str);

const DAMAGES: [Damage; 11] = [
    (
        "no master",
        |keys| fs::remove_file(keys.join("master-1.json")).expect("a file"),
        "no master key",
    ),
    (
        "no envelope",
        |keys| fs::remove_file(keys.join("envelope-1.json")).expect("a file"),
        "no envelope key",
    ),
    (
        "no audit",
        |keys| fs::remove_file(keys.join("audit-1.json")).expect("a file"),
        "no audit key",
    ),
    ("no directory", |keys| fs::remove_dir_all(keys).expect("a directory"), "No such file"),
    ("cut", |keys| cut(&keys.join("master-1.json")), "master-1.json"),
    ("empty", |keys| fs::write(keys.join("master-1.json"), "").expect("a file"), "master-1.json"),
    ("a cut envelope key", |keys| cut(&keys.join("envelope-1.json")), "envelope-1.json"),
    ("for everybody", |keys| mode(&keys.join("master-1.json"), 0o644), "can be read by others"),
    ("for the group", |keys| mode(&keys.join("envelope-1.json"), 0o640), "can be read by others"),
    (
        "another's name",
        |keys| drop(fs::copy(keys.join("master-1.json"), keys.join("master-2.json"))),
        "master-2.json",
    ),
    (
        "a shorter key",
        |keys| {
            let path = keys.join("master-1.json");
            let mut stored: Value =
                serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON");
            stored["master"] = json!("AAAA");
            fs::write(&path, stored.to_string()).expect("a file");
        },
        "master-1.json",
    ),
];

fn cut(path: &Path) {
    let text = fs::read(path).expect("a file");
    fs::write(path, &text[..text.len() / 2]).expect("a file");
}

fn put_back(keys: &Path, kept: &[(String, Vec<u8>)]) {
    let _ = fs::remove_dir_all(keys);
    fs::create_dir(keys).expect("a directory");
    mode(keys, 0o700);
    for (name, content) in kept {
        fs::write(keys.join(name), content).expect("a file");
        mode(&keys.join(name), 0o600);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_cannot_be_used_stop_a_start_and_change_nothing_in_a_run() {
    let mut world = world(|_| {}).await;
    let node = world.enrol("node-1", &[]);
    let mut table = Table::default();
    let nonce = world.node_nonce(&node).await;
    let first = ask(&world, &node, &nonce).await;
    table.row("ok/before", is(first.clone(), "200 risk 0"));
    let keys = world.directory.path().join("keys");
    let kept: Vec<(String, Vec<u8>)> = fs::read_dir(&keys)
        .expect("a directory")
        .map(|entry| entry.expect("an entry"))
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, fs::read(entry.path()).expect("a file"))
        })
        .collect();
    let stored: Value = serde_json::from_slice(
        &kept.iter().find(|(name, _)| name == "master-1.json").expect("a master key").1,
    )
    .expect("JSON");
    let secret = stored["master"].as_str().expect("a key").to_owned();
    for (name, damage, _) in DAMAGES {
        damage(&keys);
        let taken = world.told_to_reload().await;
        table.row(&format!("fail/reload, {name}"), expect_eq("taken", &taken, &false));
        let answer = ask(&world, &node, &nonce).await;
        table.row(&format!("ok/{name}"), is(answer.clone(), "200 risk 0"));
        table.row(&format!("ok/{name}"), expect_eq("same key", &key(&answer), &key(&first)));
        put_back(&keys, &kept);
    }
    let said = world.process.output();
    table.row("log", expect_eq("holds a key", &said.contains(&secret), &false));
    let mut taken = false;
    for _ in 0..5 {
        taken = taken || world.told_to_reload().await;
    }
    table.row("ok/reload", expect_eq("taken", &taken, &true));
    world.process.terminate();
    assert!(world.process.ended().await.is_some(), "it did not end after SIGTERM");
    for (name, damage, expect) in DAMAGES {
        damage(&keys);
        let (status, text) = start(world.directory.path());
        table.row(&format!("fail/start, {name}"), expect_eq(&text, &status, &Some(1)));
        table.row(&format!("fail/start, {name}"), expect_eq(&text, &text.contains(expect), &true));
        for word in ["panicked", "RUST_BACKTRACE", secret.as_str(), &secret[..20]] {
            table.row(
                &format!("fail/start, {name}"),
                expect_eq(&text, &text.contains(word), &false),
            );
        }
        put_back(&keys, &kept);
    }
    world.restart_ended().await;
    let after = world.ask(&node, HERE).await;
    table.row("ok/after", expect_eq("same key", &key(&after), &key(&first)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retired_version_is_derived_no_more() {
    let world = world(|_| {}).await;
    let node = world.enrol("node-1", &[]);
    let mut table = Table::default();
    let nonce = world.node_nonce(&node).await;
    let asking = |version: &str| {
        let query = format!("?keyVersion={version}");
        Node { query, ..node.clone() }
    };
    let first = ask(&world, &node, &nonce).await;
    table.row("ok/first", is(first.clone(), "200 risk 0"));
    let secret = fs::read_to_string(world.directory.path().join("keys/master-1.json"));
    let secret: Value = serde_json::from_str(&secret.expect("a file")).expect("JSON");
    let secret = secret["master"].as_str().expect("a key").to_owned();
    world.command(&["key", "rotate", "master", "--reason", "a test"]);
    assert!(world.told_to_reload().await, "{}", world.process.output());
    let old = ask(&world, &asking("m1.n1@1.2.3"), &nonce).await;
    table.row("ok/old", expect_eq("same key", &key(&old), &key(&first)));
    let new = ask(&world, &node, &nonce).await;
    table.row("ok/new", expect_eq("another key", &(key(&new) != key(&first)), &true));
    world.command(&["key", "retire", "master", "1", "--reason", "a test"]);
    assert!(world.told_to_reload().await, "{}", world.process.output());
    let gone = "400 KEY_VERSION_UNAVAILABLE";
    table.row("fail/master", is(ask(&world, &asking("m1.n1@1.2.3"), &nonce).await, gone));
    table.row("ok/new", is(ask(&world, &asking("m2.n1@1.2.3"), &nonce).await, "200 risk 0"));
    let mut left = Vec::new();
    for entry in fs::read_dir(world.directory.path().join("keys")).expect("a directory") {
        left.extend(fs::read(entry.expect("an entry").path()).expect("a file"));
    }
    let left = String::from_utf8_lossy(&left).into_owned();
    table.row("fail/master", expect_eq("the secret is left", &left.contains(&secret), &false));
    // The node's own version, likewise.
    world.change(&["rotate-key", "node-1"]);
    let current = ask(&world, &node, &nonce).await;
    table.row("ok/rotated", expect_eq("another key", &(key(&current) != key(&new)), &true));
    let old = ask(&world, &asking("m2.n1@1.2.3"), &nonce).await;
    table.row("ok/rotated", expect_eq("same key", &key(&old), &key(&new)));
    world.change(&["rotate-key", "node-1", "--retire-old"]);
    for version in ["m2.n1@1.2.3", "m2.n2@1.2.3", "m1.n1@1.2.3", "m1.n3@1.2.3", "m2.n4@1.2.3"] {
        let answer = ask(&world, &asking(version), &nonce).await;
        table.row(&format!("fail/{version}"), is(answer, gone));
    }
    table.row("ok/n3", is(ask(&world, &asking("m2.n3@1.2.3"), &nonce).await, "200 risk 0"));
    // A retired file does not come back by another retirement, and the newest stays.
    for (version, expect) in
        [("1", "it is retired"), ("2", "it is the newest"), ("7", "there is none")]
    {
        let arguments =
            ["key", "retire", "master", version, "--reason", "x", "--config", "authority.yaml"];
        let (status, _, errors) = holdfast(world.directory.path(), &arguments);
        table.row(version, expect_eq(&errors, &status, &Some(1)));
        table.row(version, expect_eq(&errors, &errors.contains(expect), &true));
    }
}
