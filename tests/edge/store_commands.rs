//! `holdfast store`, as an operator runs it: a store moved, backed up and restored.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use holdfast::policy::capsule::node::{Expectations, Node, NodeId, Status};
use holdfast::policy::digest::{Jkt, Sha256};
use holdfast::policy::grant::{BindingRecord, RecordKey, TokenKind};
use holdfast::policy::time::UnixTime;
use holdfast::store::serving;
use holdfast::store::sqlite::Database;
use holdfast::store::sqlite::reader::Readers;
use holdfast::store::sqlite::tombstones::Tombstone;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::Table;
use super::support::node::{holdfast, told, world};
use super::support::process::{free_port, write_config};
use super::support::redis::{Server, there_is_none};
use super::support::relay::{Relay, Way};
use super::support::sharing::share;
use super::support::world::{World, expect_eq};

const HERE: &str = "127.0.0.1";

/// Runs a command; its status, output and errors.
fn run(directory: &Path, words: &str) -> (Option<i32>, String, String) {
    let words = format!("store {words} --config authority.yaml");
    holdfast(directory, &words.split(' ').collect::<Vec<_>>())
}

fn refused(directory: &Path, words: &str, expect: &str) -> Result<(), String> {
    let (status, out, errors) = run(directory, words);
    expect_eq(&errors, &(status, errors.contains(expect)), &(Some(1), true))
        .map_err(|fault| format!("{fault} {out}"))
}

fn done(directory: &Path, words: &str) -> Value {
    let (status, out, errors) = run(directory, &format!("{words} --json"));
    assert_eq!(status, Some(0), "{words}: {out}{errors}");
    serde_json::from_str(&out).expect("JSON")
}

/// Whether an edge ends at its start, for want of the store.
fn does_not_start(directory: &Path) -> Result<(), String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    command.args(["run", "--config", "authority.yaml"]).current_dir(directory);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("the program");
    for _ in 0..500 {
        if let Some(status) = child.try_wait().expect("a child") {
            let output = child.wait_with_output().expect("its end");
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            let said = (status.success(), errors.contains("`holdfast store` works on it"));
            return expect_eq(&errors, &said, &(false, true));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
    Err("it serves".to_owned())
}

pub(super) async fn end(world: &mut World) {
    world.process.terminate();
    assert!(world.process.ended().await.is_some(), "it did not end after SIGTERM");
}

/// Flips one bit of a copy.
fn damaged(directory: &Path, from: &str, to: &str, at: usize) {
    let mut bytes = fs::read(directory.join(from)).expect("a backup");
    bytes[at] ^= 1;
    fs::write(directory.join(to), bytes).expect("a writable directory");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_node_is_refused_until_it_is_confirmed() {
    let mut world = world(|_| {}).await;
    let mut table = Table::default();
    let (kept, gone) = (world.enrol("node-1", &[]), world.enrol("node-2", &[]));
    for node in [&kept, &gone] {
        let answer = told(&world.ask(node, HERE).await.expect("an answer"));
        table.row("before", expect_eq("answer", &answer.as_str(), &"200 risk 0"));
    }
    let _ = world.change(&["revoke", "node-2"]);
    let directory = world.directory.path().to_owned();
    // While the edge serves.
    let backup = done(&directory, "backup kept");
    table.row("counts", expect_eq("nodes", &backup["backup"]["counts"]["nodes"], &json!(2)));
    table.row("again", refused(&directory, "backup kept", "exists"));
    let _ = world.enrol("node-3", &[]);
    table
        .row("serving", refused(&directory, "restore kept --reason r --replace", "an edge serves"));
    end(&mut world).await;
    table.row("mark", expect_eq("is there", &directory.join("holdfast.mark").exists(), &true));
    table.row("full", refused(&directory, "restore kept --reason r", "--replace"));
    damaged(&directory, "kept", "damaged", 5000);
    table.row("flipped", refused(&directory, "restore damaged --reason r --replace", "damaged"));
    let listed = world.command(&["node", "list", "--json"]);
    table.row("unchanged", expect_eq("nodes", &listed.lines().count(), &3));
    let restored = done(&directory, "restore kept --reason r --replace");
    table.row("restored", expect_eq("nodes", &restored["restored"]["nodes"], &json!(2)));
    world.restart_ended().await;
    for (node, expect) in [(&kept, "403 NODE_QUARANTINED"), (&gone, "403 NODE_REVOKED")] {
        let answer = told(&world.send(&node.bearer()).await.expect("an answer"));
        table.row(&node.id, expect_eq("answer", &answer.as_str(), &expect));
    }
    let listed = world.command(&["node", "list"]);
    table.row("list", expect_eq("says so", &listed.contains("unconfirmed"), &true));
    let unconfirmed = || {
        let listed = world.command(&["node", "list", "--json", "--status", "unconfirmed"]);
        listed.lines().count()
    };
    // The other one is revoked, which it stays.
    table.row("list", expect_eq("unconfirmed", &unconfirmed(), &1));
    for id in ["node-1", "node-2"] {
        let _ = world.change(&["confirm", id]);
    }
    table.row("list", expect_eq("unconfirmed", &unconfirmed(), &0));
    let answer = told(&world.ask(&kept, HERE).await.expect("an answer"));
    table.row("confirmed", expect_eq("answer", &answer.as_str(), &"200 risk 0"));
    let answer = told(&world.send(&gone.bearer()).await.expect("an answer"));
    table.row("revoked", expect_eq("answer", &answer.as_str(), &"403 NODE_REVOKED"));
    let lines = world.audit();
    let line = lines.iter().find(|line| line["kind"] == "store.change").expect("a line");
    let said = &line["data"]["restored"];
    table.row("line", expect_eq("backup", &said["backup"], &backup["backup"]));
    table.row("line", expect_eq("mark", &said["mark"].is_string(), &true));
    let verified = world.command(&["audit", "verify"]);
    table.row("verify", expect_eq(&verified, &verified.contains("whole"), &true));
}

const TOKENS: usize = 6000;

/// A store with nodes of each status and tokens, a third of them revoked in one way or the other.
fn fill(path: &Path) {
    let mut database = Database::open(path).expect("a store");
    let now = UnixTime::from_secs(1_900_000_000);
    let filled = database.transact(|batch| {
        for (at, status) in Status::ALL.into_iter().cycle().take(600).enumerate() {
            let id = NodeId::parse(&format!("node-{at}")).expect("an id");
            let secret = Sha256::of(format!("secret of {at}").as_bytes());
            let node =
                Node { status, ..Node::new(id.clone(), secret, Expectations::default(), now) };
            batch.insert(&node)?;
            // Two at one time.
            batch.quarantined(&id, now)?;
            batch.quarantined(&id, now)?;
            if at % 10 == 0 {
                let row = batch.node(&id)?.expect("a node");
                batch.remove(&row)?;
            }
        }
        for at in 0..TOKENS {
            let record = BindingRecord {
                kind: if at % 2 == 0 { TokenKind::Access } else { TokenKind::Refresh },
                tenant: None,
                client: Some("client-1".to_owned()),
                cnf_jkt: Some(Jkt(Sha256::of(b"key"))),
                sender_certificate: None,
                scope: None,
                expires: now.plus(Duration::from_secs(at as u64)),
                family: format!("family-{}", at / 4),
                bypass: None,
                revoked: at % 7 == 0,
            };
            batch.bind(RecordKey(Sha256::of(format!("token {at}").as_bytes())), &record)?;
        }
        for at in (1..TOKENS).step_by(12) {
            let key = RecordKey(Sha256::of(format!("token {at}").as_bytes()));
            assert!(batch.revoke(key, Some("client-1"))?);
        }
        Ok(())
    });
    filled.expect("records");
}

/// A configuration with both kinds of store, without an edge that runs.
async fn both(redis: &Server) -> (World, TempDir) {
    let mut world = world(|_| {}).await;
    end(&mut world).await;
    let directory = TempDir::new().expect("a directory");
    for file in fs::read_dir(world.directory.path()).expect("a directory") {
        let file = file.expect("an entry").path();
        if file.is_file() && !file.to_string_lossy().contains("holdfast") {
            fs::copy(&file, directory.path().join(file.file_name().expect("a name")))
                .expect("a copy");
        }
    }
    holdfast::store::keys::init(
        &directory.path().join("keys"),
        holdfast::store::keys::Algorithm::EdDsa,
        UnixTime::from_secs(1_800_000_000),
    )
    .expect("keys");
    world.config["store"] = json!({
        "path": "moved.db",
        "redis": {"nodes": [format!("{HERE}:{}", redis.port)], "timeout": "5s"},
    });
    write_config(directory.path(), &world.config);
    (world, directory)
}

#[tokio::test(flavor = "multi_thread")]
async fn there_and_back_again_it_is_the_same() {
    if there_is_none() {
        return;
    }
    let redis = Server::start(&[]).await;
    let (mut world, scratch) = both(&redis).await;
    let (directory, mut table) = (scratch.path(), Table::default());
    table.row("nothing", refused(directory, "migrate --to redis", "nothing to migrate"));
    fill(&directory.join("moved.db"));
    let dry = done(directory, "migrate --to redis --dry-run");
    table.row("dry", expect_eq("records", &dry["missing"].as_u64(), &Some(540 + 60 + 1200 + 6000)));
    table.row("dry", expect_eq("keys", &redis.cli(&["KEYS", "*node*"]).trim(), &""));
    let there = done(directory, "migrate --to redis");
    let counted = there["records"]["tokens"]["count"].as_u64();
    table.row("there", expect_eq("tokens", &counted, &Some(TOKENS as u64)));
    // Again: nothing is missing.
    let again = done(directory, "migrate --to redis");
    table.row("again", expect_eq("records", &again["missing"], &json!(0)));
    // Back, into a file that holds them, and into one that does not.
    let back = done(directory, "migrate --to embedded");
    table.row("back", expect_eq("records", &back["records"], &there["records"]));
    for file in ["moved.db", "moved.db-wal", "moved.db-shm"] {
        let _ = fs::remove_file(directory.join(file));
    }
    let back = done(directory, "migrate --to embedded");
    table.row("back", expect_eq("records", &back["records"], &there["records"]));
    let again = done(directory, "migrate --to redis");
    table.row("there", expect_eq("records", &again["records"], &there["records"]));
    // A target with another node, or with another record of one, is left alone.
    let before = redis.cli(&["DBSIZE"]);
    for words in ["node disable node-1", "node add node-9999"] {
        let words = format!("{words} --reason r --config authority.yaml");
        let (status, _, errors) = holdfast(directory, &words.split(' ').collect::<Vec<_>>());
        assert_eq!(status, Some(if words.contains("disable") { 1 } else { 0 }), "{errors}");
    }
    let there_is = "1 nodes that the source does not have";
    table.row("other", refused(directory, "migrate --to embedded", there_is));
    table.row("other", expect_eq("keys", &redis.cli(&["DBSIZE"]), &before));
    let replaced = done(directory, "migrate --to embedded --replace");
    table.row("replaced", expect_eq("records", &replaced["records"], &there["records"]));
    // While somebody has it alone, no edge starts and no command changes anything.
    let alone = serving::alone(&directory.join("moved.db")).expect("a lock file");
    assert!(alone.is_some());
    let words = "node disable node-5 --reason r --config authority.yaml";
    let (status, _, errors) = holdfast(directory, &words.split(' ').collect::<Vec<_>>());
    let said = (status, errors.contains("`holdfast store` works on it"));
    table.row("alone", expect_eq(&errors, &said, &(Some(1), true)));
    table.row("alone", refused(directory, "migrate --to redis", "another command works on it"));
    table.row("alone", does_not_start(directory));
    drop(alone);
    // While an edge serves, from the file or from the servers.
    world.config["store"]["kind"] = json!("redis");
    share(&mut world.config, json!({"nodes": [format!("{HERE}:{}", redis.port)], "timeout": "5s"}));
    world.config["store"]["path"] = json!("moved.db");
    world.write("nonce.key", &"9".repeat(32));
    world.restart_ended().await;
    table.row("served", refused(world.directory.path(), "migrate --to redis", "an edge serves"));
    table.row("served", refused(directory, "migrate --to embedded", "edges serve"));
    // Nor just after the servers have forgotten who does.
    redis.cli(&["FLUSHALL"]);
    table.row("wiped", refused(directory, "migrate --to embedded", "edges serve"));
}

/// Root would leave files that the edge, another user, cannot use.
#[tokio::test(flavor = "multi_thread")]
async fn root_leaves_another_user_s_store_alone() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: root and another user's store: this is not root");
        return;
    }
    let mut world = world(|_| {}).await;
    end(&mut world).await;
    let (directory, mut table) = (world.directory.path(), Table::default());
    let _ = done(directory, "backup kept");
    let aside = directory.join("holdfast.db.lock");
    fs::remove_file(&aside).expect("the lock's file");
    std::os::unix::fs::chown(directory.join("holdfast.db"), Some(65534), None).expect("root");
    let expect = "run this as that user, not as root";
    table.row("restore", refused(directory, "restore kept --reason r --replace", expect));
    for words in ["node add node-7 --reason r", "audit rotate --reason r --keep 1d --to ."] {
        let line = format!("{words} --config authority.yaml");
        let (status, out, errors) = holdfast(directory, &line.split(' ').collect::<Vec<_>>());
        let said = (status, errors.contains(expect));
        table.row(words, expect_eq(&format!("{out}{errors}"), &said, &(Some(1), true)));
    }
    table.row("lock", expect_eq("is made", &aside.exists(), &false));
    let (status, ..) = holdfast(directory, &["node", "list", "--config", "authority.yaml"]);
    table.row("list", expect_eq("status", &status, &Some(0)));
}

/// Records that were moved from a file to servers, and the configuration of edges that use these. What the
/// move said comes last.
async fn moved_there(redis: &Server) -> (World, TempDir, Value) {
    let (mut world, scratch) = both(redis).await;
    fill(&scratch.path().join("moved.db"));
    let there = done(scratch.path(), "migrate --to redis");
    world.config["store"]["kind"] = json!("redis");
    write_config(scratch.path(), &world.config);
    (world, scratch, there)
}

/// What the embedded store says of a node.
fn status_of(directory: &Path, node: &str) -> Status {
    let readers = Readers::open(&directory.join("moved.db")).expect("a store");
    let id = NodeId::parse(node).expect("an id");
    readers.read(|reader| reader.node(&id)).expect("a record").expect("a node").node.status
}

/// The servers were started with older data: what they have lost is not undone by whoever copies them.
#[tokio::test(flavor = "multi_thread")]
async fn what_servers_have_lost_is_not_taken_elsewhere() {
    const ROLL: &str = "{holdfast:0}:tokens:edges";
    if there_is_none() {
        return;
    }
    let mut redis = Server::start(&["appendonly no"]).await;
    let (_world, scratch, _) = moved_there(&redis).await;
    let (directory, mut table) = (scratch.path(), Table::default());
    let saved = redis.cli(&["SAVE"]);
    assert!(saved.starts_with("OK"), "{saved}");
    let command = |words: &str| {
        let words = format!("{words} --reason r --config authority.yaml");
        let (status, out, errors) = holdfast(directory, &words.split(' ').collect::<Vec<_>>());
        assert_eq!(status, Some(0), "{words}: {out}{errors}");
    };
    assert_eq!(status_of(directory, "node-1"), Status::ALL[1]);
    command("node revoke node-1");
    // What an edge remembers of a grant that it has revoked, and a token.
    let (grant, token) = (Sha256::of(b"family-1490"), Sha256::of(b"token 5980"));
    let expires = UnixTime::from_secs(1_900_100_000);
    let mut database = Database::open(&directory.join("moved.db")).expect("a store");
    let remembered = database.transact(|batch| {
        batch.remember(Tombstone::Grant(grant), expires)?;
        batch.remember(Tombstone::Token(RecordKey(token)), expires)
    });
    remembered.expect("tombstones");
    drop(database);
    redis.kill();
    redis.again().await;
    let lost = "have lost changes to nodes";
    // Who only lists tells edges nothing: the file may be another store's.
    let listing = ["node", "list", "--config", "authority.yaml"];
    table.row("list", expect_eq("status", &holdfast(directory, &listing).0, &Some(0)));
    let doubted = || redis.cli(&["HEXISTS", "{holdfast:0}:nodes:lineage", "doubted"]);
    table.row("list", expect_eq("doubted", &doubted().trim(), &"0"));
    table.row("dry", refused(directory, "migrate --to embedded --replace --dry-run", lost));
    table.row("migrate", refused(directory, "migrate --to embedded --replace", lost));
    table.row("backup", refused(directory, "backup lost", lost));
    table.row("backup", expect_eq("is there", &directory.join("lost").exists(), &false));
    // Nor is it made whole by what the file says that was the store before.
    table.row("there", refused(directory, "migrate --to redis", lost));
    table.row("there", refused(directory, "migrate --to redis --dry-run", lost));
    // It is done again.
    command("node revoke node-1");
    command("node confirm");
    // Another edge has been there before, and may have revoked what nobody knows.
    let entry = format!("{} 1 1", Sha256::of(b"before"));
    redis.cli(&["HSET", ROLL, "edge:elsewhere", &entry]);
    let missing = "edge elsewhere has not said again";
    table.row("roll", refused(directory, "migrate --to embedded --replace", missing));
    table.row("roll", refused(directory, "backup lost", missing));
    redis.cli(&["HDEL", ROLL, "edge:elsewhere"]);
    let _ = done(directory, "backup kept");
    let _ = done(directory, "migrate --to embedded --replace");
    table.row("revoked", expect_eq("node", &status_of(directory, "node-1"), &Status::Revoked));
    let readers = Readers::open(&directory.join("moved.db")).expect("a store");
    let revoked = |name: &str| {
        let key = RecordKey(Sha256::of(name.as_bytes()));
        readers.read(|reader| reader.record(key)).expect("a record").expect("a token").revoked
    };
    for (name, expect) in [
        // All four of the grant, and of another the one that was.
        ("token 5960", true),
        ("token 5962", true),
        ("token 5980", true),
        ("token 5982", false),
        ("token 5984", false),
    ] {
        table.row(name, expect_eq("revoked", &revoked(name), &expect));
    }
    // Who only looks is nobody that others wait for.
    let there = redis.cli(&["HKEYS", ROLL]);
    table.row("roll", expect_eq(&there, &there.contains("edge:"), &false));
}

/// An edge finds out that servers have lost something while they are copied.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_found_out_while_servers_are_copied_is_seen() {
    const DOUBT: [&str; 2] = ["{holdfast:0}:nodes:lineage", "doubted"];
    if there_is_none() {
        return;
    }
    let redis = Server::start(&[]).await;
    let (mut world, scratch, _) = moved_there(&redis).await;
    let (directory, mut table) = (scratch.path(), Table::default());
    let link = Relay::to(redis.port).await;
    world.config["store"]["redis"]["nodes"] = json!([format!("{HERE}:{}", link.port)]);
    write_config(directory, &world.config);
    for words in ["migrate --to embedded --dry-run", "migrate --to embedded", "backup kept"] {
        redis.cli(&["CONFIG", "RESETSTAT"]);
        link.is(Way::Slow(Duration::from_millis(100)));
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command.arg("store").args(words.split(' ')).args(["--config", "authority.yaml"]);
        command.current_dir(directory).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program");
        // It has been found whole by then, and tokens are read.
        while !redis.cli(&["INFO", "commandstats"]).contains("cmdstat_scan:") {
            if child.try_wait().expect("a child").is_some() {
                let output = child.wait_with_output().expect("its end");
                panic!("{words}: {}", String::from_utf8_lossy(&output.stderr));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        redis.cli(&["HSET", DOUBT[0], DOUBT[1], "1"]);
        link.is(Way::Open);
        let output = child.wait_with_output().expect("its end");
        let errors = String::from_utf8_lossy(&output.stderr);
        let said = (output.status.code(), errors.contains("have lost changes to nodes"));
        table.row(words, expect_eq(&errors, &said, &(Some(1), true)));
        redis.cli(&["HDEL", DOUBT[0], DOUBT[1]]);
    }
    table.row("backup", expect_eq("is there", &directory.join("kept").exists(), &false));
    let _ = done(directory, "backup kept");
}

/// A file that remembers nothing cannot tell what servers have lost.
#[tokio::test(flavor = "multi_thread")]
async fn servers_that_nobody_vouches_for_are_not_taken_elsewhere() {
    if there_is_none() {
        return;
    }
    let mut redis = Server::start(&["appendonly no"]).await;
    let (_world, scratch) = both(&redis).await;
    let (directory, mut table) = (scratch.path(), Table::default());
    fill(&directory.join("moved.db"));
    let _ = done(directory, "migrate --to redis");
    redis.cli(&["SAVE"]);
    redis.kill();
    redis.again().await;
    for file in ["moved.db", "moved.db-wal", "moved.db-shm"] {
        let _ = fs::remove_file(directory.join(file));
    }
    let nothing = "remembers nothing of the servers";
    table.row("unvouched", refused(directory, "migrate --to embedded", nothing));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_was_killed_ends_when_it_is_run_again() {
    if there_is_none() {
        return;
    }
    let redis = Server::start(&[]).await;
    let (_world, scratch) = both(&redis).await;
    let (directory, mut table) = (scratch.path(), Table::default());
    fill(&directory.join("moved.db"));
    let size = || redis.cli(&["DBSIZE"]).trim().parse::<usize>().expect("a number");
    let mut cut = 0;
    for wanted in [300, 700, 2500, 5000] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command.args(["store", "migrate", "--config", "authority.yaml", "--to", "redis"]);
        command.current_dir(directory).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the program");
        while size() < wanted && child.try_wait().expect("a child").is_none() {}
        let _ = child.kill();
        let ended = child.wait().expect("its end");
        cut += usize::from(!ended.success());
        if ended.success() {
            break;
        }
        // No edge serves from what is half there.
        let doubted = redis.cli(&["HEXISTS", "{holdfast:0}:nodes:lineage", "doubted"]);
        table.row("doubted", expect_eq("mark", &doubted.trim(), &"1"));
    }
    table.row("cut", expect_eq("in the middle", &(cut > 0), &true));
    let whole = done(directory, "migrate --to redis");
    let again = done(directory, "migrate --to redis --dry-run");
    table.row("whole", expect_eq("missing", &again["missing"], &json!(0)));
    table.row("whole", expect_eq("records", &again["records"], &whole["records"]));
    let doubted = redis.cli(&["HEXISTS", "{holdfast:0}:nodes:lineage", "doubted"]);
    table.row("confirmed", expect_eq("mark", &doubted.trim(), &"0"));
    // And the other way, into a file of its own.
    for file in ["moved.db", "moved.db-wal", "moved.db-shm"] {
        let _ = fs::remove_file(directory.join(file));
    }
    for millis in [400, 700, 1000] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command.args(["store", "migrate", "--config", "authority.yaml", "--to", "embedded"]);
        command.current_dir(directory).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the program");
        std::thread::sleep(Duration::from_millis(millis));
        let _ = child.kill();
        let _ = child.wait();
    }
    let back = done(directory, "migrate --to embedded");
    table.row("back", expect_eq("records", &back["records"], &whole["records"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_store_is_backed_up_and_restored() {
    if there_is_none() {
        return;
    }
    let redis = Server::start(&[]).await;
    let (_world, scratch, there) = moved_there(&redis).await;
    let (directory, mut table) = (scratch.path(), Table::default());
    let backup = done(directory, "backup kept");
    let count = &backup["backup"]["counts"]["tokens"];
    table.row("backup", expect_eq("tokens", count, &there["records"]["tokens"]["count"]));
    table.row("still", expect_eq("changes", &backup["changes"], &json!(0)));
    table.row("moving", changes_are_counted(&redis, directory));
    table.row("full", refused(directory, "restore kept --reason r", "--replace"));
    damaged(directory, "kept", "damaged", 5000);
    let before = redis.cli(&["DBSIZE"]);
    table.row("flipped", refused(directory, "restore damaged --reason r --replace", "damaged"));
    table.row("flipped", expect_eq("keys", &redis.cli(&["DBSIZE"]), &before));
    let restored = done(directory, "restore kept --reason r --replace");
    table.row("restored", expect_eq("nodes", &restored["restored"]["nodes"], &json!(540)));
    let tokens = redis.cli(&["KEYS", "{holdfast:*}:t:*"]);
    let count = tokens.lines().filter(|it| !it.is_empty()).count();
    table.row("tokens", expect_eq("left out", &count, &0));
    let listed = "node list --json --config authority.yaml";
    let (_, listed, _) = holdfast(directory, &listed.split(' ').collect::<Vec<_>>());
    let nodes: Vec<Value> = listed.lines().filter_map(|it| serde_json::from_str(it).ok()).collect();
    let held = nodes.iter().filter(|node| node["restored"].is_number()).count();
    table.row("held", expect_eq("nodes", &held, &540));
    let revoked = nodes.iter().filter(|node| node["status"] == "revoked").count();
    table.row("revoked", expect_eq("nodes", &(revoked > 100), &true));
    let words = "node confirm node-1 --reason r --config authority.yaml";
    let (status, _, errors) = holdfast(directory, &words.split(' ').collect::<Vec<_>>());
    table.row("confirm", expect_eq(&errors, &status, &Some(0)));
    let restored = done(directory, "restore kept --reason r --replace --tokens");
    table.row("restored", expect_eq("tokens", &restored["restored"]["tokens"], &json!(true)));
    let tokens = redis.cli(&["KEYS", "{holdfast:*}:t:*"]);
    table.row("tokens", expect_eq("restored", &tokens.lines().count(), &TOKENS));
}

/// The edge's user finds and lists nothing; the operator's, and no other, moves a store.
#[tokio::test(flavor = "multi_thread")]
async fn the_operator_s_user_is_enough_and_the_edge_s_is_not() {
    if there_is_none() {
        return;
    }
    let acl = include_str!("../../deploy/redis/users.acl");
    // Somebody who may look.
    let acl = format!("{acl}\nuser looker on nopass ~* +@all\n");
    let users = TempDir::new().expect("a directory");
    let file = users.path().join("users.acl");
    fs::write(&file, acl).expect("a writable directory");
    let port = free_port();
    let lines = [format!("port {port}"), format!("aclfile {}", file.display())];
    let cli = ["--user", "looker", "--pass", "any", "--no-auth-warning"];
    let redis = Server::start_at(port, &cli, lines.iter().map(String::as_str)).await;
    let (mut world, scratch) = both(&redis).await;
    let (directory, mut table) = (scratch.path(), Table::default());
    fill(&directory.join("moved.db"));
    for (file, password) in [("edge.password", "CHANGE-ME"), ("op.password", "CHANGE-ME-OPERATOR")]
    {
        fs::write(directory.join(file), password).expect("a writable directory");
    }
    world.config["store"]["redis"]["user"] = json!("holdfast");
    world.config["store"]["redis"]["passwordFile"] = json!("edge.password");
    write_config(directory, &world.config);
    let who = "--redis-user holdfast-operator --redis-password-file op.password";
    table.row("edge", refused(directory, "migrate --to redis", "NOPERM"));
    let halved = "migrate --to redis --redis-user holdfast-operator";
    let (status, _, errors) = run(directory, halved);
    table.row("half", expect_eq(&errors, &status, &Some(2)));
    let there = done(directory, &format!("migrate --to redis {who}"));
    let counted = there["records"]["tokens"]["count"].as_u64();
    table.row("there", expect_eq("tokens", &counted, &Some(TOKENS as u64)));
    let back = done(directory, &format!("migrate --to embedded {who}"));
    table.row("back", expect_eq("records", &back["records"], &there["records"]));
    world.config["store"]["kind"] = json!("redis");
    write_config(directory, &world.config);
    let backup = done(directory, &format!("backup kept {who}"));
    let count = &backup["backup"]["counts"]["tokens"];
    table.row("backup", expect_eq("tokens", count, &there["records"]["tokens"]["count"]));
    let restored = done(directory, &format!("restore kept --reason r --replace --tokens {who}"));
    table.row("restored", expect_eq("nodes", &restored["restored"]["nodes"], &json!(540)));
    let list = ["node", "list", "--config", "authority.yaml"];
    let (status, _, errors) = holdfast(directory, &list);
    table.row("edge", expect_eq(&errors, &status, &Some(0)));
}

const LINEAGE: &str = "{holdfast:0}:nodes:lineage";
const LEDGER: &str = "{holdfast:0}:nodes:ledger";
/// A change to a node, as the ledger has it.
const ENTRY: &str = "
local seq = redis.call('HINCRBY', KEYS[1], 'seq', 1)
redis.call('HSET', KEYS[1], 'id', 'entry ' .. seq)
redis.call('HSET', KEYS[2], seq, 'entry ' .. seq)
";

/// Nodes change while a backup is written: it says so.
fn changes_are_counted(redis: &Server, directory: &Path) -> Result<(), String> {
    let (stop, changing) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while changing.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                redis.cli(&["EVAL", ENTRY, "2", LINEAGE, LEDGER]);
            }
        });
        let backup = done(directory, "backup moving");
        let (status, out, errors) = run(directory, "backup told");
        stop.send(()).expect("somebody who changes");
        let counted = backup["changes"].as_u64().is_some_and(|changes| changes > 0);
        let said = (counted, status, out.contains("changes to nodes came in"));
        expect_eq(&format!("{out}{errors}"), &said, &(true, Some(0), true))
    })
}

/// Moves what is in `moved.db` to the servers of `redis` and back, and by a backup.
fn moved_there_and_back(directory: &Path, world: &mut World, redis: Value, table: &mut Table) {
    world.config["store"] = json!({"path": "moved.db", "redis": redis});
    write_config(directory, &world.config);
    let there = done(directory, "migrate --to redis");
    let counted = there["records"]["tokens"]["count"].as_u64();
    table.row("there", expect_eq("tokens", &counted, &Some(TOKENS as u64)));
    for file in ["moved.db", "moved.db-wal", "moved.db-shm"] {
        let _ = fs::remove_file(directory.join(file));
    }
    let back = done(directory, "migrate --to embedded");
    table.row("back", expect_eq("records", &back["records"], &there["records"]));
    world.config["store"]["kind"] = json!("redis");
    write_config(directory, &world.config);
    let backup = done(directory, "backup kept");
    let _ = done(directory, "restore kept --reason r --replace --tokens");
    let again = done(directory, "backup again");
    for kind in ["nodes", "removed", "quarantines", "tokens"] {
        let (kept, there) = (&backup["backup"]["counts"], &again["backup"]["counts"]);
        table.row(kind, expect_eq("restored", &there[kind], &kept[kind]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_moved_to_a_cluster_and_back() {
    if there_is_none() {
        return;
    }
    let mut servers = Vec::new();
    for _ in 0..3 {
        // The default is the port and 10,000, which may be somebody's.
        let bus = format!("cluster-port {}", free_port());
        let settings = ["cluster-enabled yes", "cluster-node-timeout 5000", bus.as_str()];
        servers.push(Server::start(&settings).await);
    }
    let nodes: Vec<_> = servers.iter().map(|it| format!("{HERE}:{}", it.port)).collect();
    let names = nodes.iter().map(String::as_str);
    let make: Vec<_> = ["--cluster", "create"].into_iter().chain(names).collect();
    let said = servers[0].cli(&[&make[..], &["--cluster-yes"]].concat());
    assert!(said.contains("All 16384 slots covered"), "{said}");
    for _ in 0..1500 {
        let ok = |it: &Server| it.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok");
        if servers.iter().all(ok) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (mut world, scratch) = both(&servers[0]).await;
    let (directory, mut table) = (scratch.path(), Table::default());
    fill(&directory.join("moved.db"));
    let redis = json!({"mode": "cluster", "nodes": nodes, "timeout": "5s"});
    moved_there_and_back(directory, &mut world, redis, &mut table);
    for server in &servers {
        let keys: u64 = server.cli(&["DBSIZE"]).trim().parse().expect("a number");
        table.row("spread", expect_eq("keys", &(keys > 1000), &true));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_moved_to_what_sentinels_watch_and_to_nobody_alone() {
    if there_is_none() {
        return;
    }
    let master = Server::start(&[]).await;
    let follow = format!("replicaof {HERE} {}", master.port);
    let mut replica = Server::start(&[&follow]).await;
    for _ in 0..1500 {
        if replica.cli(&["INFO", "replication"]).contains("master_link_status:up") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let sentinel = Server::sentinel(master.port, 1).await;
    let (mut world, scratch) = both(&master).await;
    let (directory, mut table) = (scratch.path(), Table::default());
    fill(&directory.join("moved.db"));
    let redis = json!({
        "mode": "sentinel",
        "nodes": [format!("{HERE}:{}", sentinel.port)],
        "sentinelMaster": "holdfast",
        "timeout": "5s",
        "waitReplicas": 1,
        "waitTimeout": "5s",
    });
    moved_there_and_back(directory, &mut world, redis, &mut table);
    let sizes = [&master, &replica].map(|it| it.cli(&["DBSIZE"]));
    table.row("replica", expect_eq("keys", &sizes[1], &sizes[0]));
    // What no replica would have is not said to be done.
    replica.kill();
    world.config["store"]["redis"]["waitTimeout"] = json!("100ms");
    write_config(directory, &world.config);
    let words = "restore kept --reason r --replace --tokens";
    table.row("alone", refused(directory, words, "too few replicas"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_goes_where_it_came_from_and_tokens_stay_out() {
    if there_is_none() {
        return;
    }
    let redis = Server::start(&[]).await;
    let (mut world, scratch) = both(&redis).await;
    let (directory, mut table) = (scratch.path(), Table::default());
    let path = directory.join("moved.db");
    fill(&path);
    let bound = |number: usize| {
        let key = RecordKey(Sha256::of(format!("token {number}").as_bytes()));
        let readers = Readers::open(&path).expect("a store");
        readers.read(|reader| reader.record(key)).expect("an answer").is_some()
    };
    let _ = done(directory, "backup embedded");
    assert!(bound(0) && bound(TOKENS - 1));
    let restored = done(directory, "restore embedded --reason r --replace");
    table.row("embedded", expect_eq("nodes", &restored["restored"]["nodes"], &json!(540)));
    let there: Vec<_> = (0..TOKENS).step_by(100).filter(|number| bound(*number)).collect();
    table.row("embedded", expect_eq("tokens", &there, &Vec::<usize>::new()));
    let _ = done(directory, "restore embedded --reason r --replace --tokens");
    let there = (0..TOKENS).step_by(100).filter(|number| bound(*number)).count();
    table.row("embedded, with tokens", expect_eq("tokens", &there, &(TOKENS / 100)));
    let _ = done(directory, "migrate --to redis");
    world.config["store"]["kind"] = json!("redis");
    write_config(directory, &world.config);
    let _ = done(directory, "backup shared");
    let before = redis.cli(&["DBSIZE"]);
    let words = "restore embedded --reason r --replace --tokens";
    table.row("embedded there", refused(directory, words, "of the other kind of store"));
    table.row("embedded there", expect_eq("keys", &redis.cli(&["DBSIZE"]), &before));
    world.config["store"]["kind"] = json!("embedded");
    write_config(directory, &world.config);
    let words = "restore shared --reason r --replace --tokens";
    table.row("shared here", refused(directory, words, "of the other kind of store"));
    table.row("shared here", expect_eq("tokens", &bound(0), &true));
}
