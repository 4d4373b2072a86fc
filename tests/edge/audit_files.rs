//! The audit log in files: exported, moved out of the store beside a running edge, and verified.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::support::Table;
use super::support::node::{holdfast, told, world};
use super::support::world::{World, expect_eq};

/// Runs a command, its words parted by spaces; `@` is the configuration.
fn run(world: &World, words: &str) -> (Option<i32>, String) {
    let words = words.replace('@', "--config authority.yaml");
    let (status, out, errors) =
        holdfast(world.directory.path(), &words.split(' ').collect::<Vec<_>>());
    (status, out + &errors)
}

/// Has nodes enrolled and waits until a checkpoint covers that.
async fn some_lines(world: &World, names: &[&str]) {
    for name in names {
        let _ = world.enrol(name, &[]);
    }
    for _ in 0..100 {
        if world.audit().last().is_some_and(|line| line["kind"] == "checkpoint") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no checkpoint:\n{}", world.process.output());
}

async fn signing() -> World {
    let world = world(|config| config["audit"] = json!({"checkpointInterval": "1s"})).await;
    let (_, set) = run(&world, "key list --dir keys --jwks audit");
    world.write("audit.jwks", &set);
    fs::create_dir(world.directory.path().join("old")).expect("a directory");
    world
}

/// The files in `old`, in their order.
fn files(world: &World) -> Vec<String> {
    let entries = fs::read_dir(world.directory.path().join("old")).expect("a directory");
    let mut names: Vec<String> = entries
        .map(|entry| format!("old/{}", entry.expect("an entry").file_name().to_string_lossy()))
        .collect();
    names.sort();
    names
}

fn text(world: &World, name: &str) -> String {
    fs::read_to_string(world.directory.path().join(name)).expect("a file")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_excerpt_is_verified_by_itself() {
    let world = signing().await;
    let mut table = Table::default();
    some_lines(&world, &["node-1", "node-2"]).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let middle = holdfast::policy::time::UnixTime::from_secs(super::support::now()).rfc3339();
    some_lines(&world, &["node-3", "node-4"]).await;
    let (status, out) = run(&world, &format!("audit export @ --since {middle} --out part.jsonl"));
    table.row("export", expect_eq(&out, &status, &Some(0)));
    let part = text(&world, "part.jsonl");
    let preface: Value = serde_json::from_str(part.lines().next().expect("a line")).expect("JSON");
    table.row("preface", expect_eq("version", &preface["holdfastAudit"], &json!(1)));
    table.row("preface", expect_eq("a signature", &preface["jws"].is_string(), &true));
    table.row("older", expect_eq("node-2", &part.contains("node-2"), &false));
    table.row("newer", expect_eq("node-4", &part.contains("node-4"), &true));
    // What is there is not written over.
    let (status, _) = run(&world, "audit export @ --out part.jsonl");
    table.row("again", expect_eq("status", &status, &Some(1)));
    table.row("again", expect_eq("file", &text(&world, "part.jsonl"), &part));
    let (_, all) = run(&world, "audit export @ --since 1h");
    world.write("all.jsonl", &all);
    let (_, raw) = run(&world, "audit tail -n 3 --json @");
    world.write("raw.jsonl", &raw);
    let lines: Vec<&str> = part.lines().collect();
    let with = |change: &dyn Fn(&mut Vec<String>)| {
        let mut lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        change(&mut lines);
        lines.join("\n") + "\n"
    };
    let last = lines.len() - 1;
    world.write("changed.jsonl", &with(&|lines| lines[1] = lines[1].replace("node-3", "node-X")));
    world.write("shorter.jsonl", &with(&|lines| drop(lines.remove(last))));
    world.write("headless.jsonl", &with(&|lines| drop(lines.remove(1))));
    world.write(
        "unsigned.jsonl",
        &with(&|lines| {
            lines[0] = lines[0].replace("\"jws\":\"ey", "\"jws\":\"eY");
        }),
    );
    world.write("cut.jsonl", part.trim_end());
    for (words, status, expect) in [
        ("audit verify part.jsonl --jwks audit.jwks", 0, "it is an excerpt"),
        ("audit verify all.jsonl --jwks audit.jwks", 0, "whole up to line"),
        ("audit verify part.jsonl @", 0, "the log is whole"),
        ("audit verify all.jsonl @", 0, "the log is whole"),
        ("audit verify part.jsonl", 1, "no keys are at hand"),
        ("audit verify part.jsonl all.jsonl --jwks audit.jwks", 1, "is there twice"),
        ("audit verify changed.jsonl --jwks audit.jwks", 1, "does not follow"),
        ("audit verify shorter.jsonl --jwks audit.jwks", 1, "its first line says"),
        ("audit verify headless.jsonl --jwks audit.jwks", 1, "missing"),
        ("audit verify unsigned.jsonl --jwks audit.jwks", 1, "not one of this chain"),
        ("audit verify cut.jsonl --jwks audit.jwks", 1, "cut off within its last line"),
        ("audit verify nowhere.jsonl --jwks audit.jwks", 1, "nowhere.jsonl"),
        ("audit verify authority.yaml --jwks audit.jwks", 1, "none of an audit log"),
        ("audit verify raw.jsonl --jwks audit.jwks", 0, "it is an excerpt"),
        ("audit verify", 2, "--config"),
        ("audit export @ --since 2100-01-01T00:00:00Z", 0, "nothing was written down"),
        ("audit export @ --since soon", 2, "a duration"),
    ] {
        let (found, out) = run(&world, words);
        let said = out.contains(expect);
        table.row(words, expect_eq(&out, &(found, said), &(Some(status), true)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_moved_out_beside_a_running_edge_is_verified_with_the_rest() {
    let mut world = signing().await;
    let mut table = Table::default();
    let node = world.enrol("node-0", &[]);
    some_lines(&world, &["node-1", "node-2"]).await;
    some_lines(&world, &["node-3"]).await;
    let first = world.audit().len();
    let (status, out) = run(&world, "audit rotate @ --keep 1d --to old");
    table.row(
        "young",
        expect_eq(&out, &(status, out.contains("nothing to move")), &(Some(0), true)),
    );
    let (status, out) = run(&world, "audit rotate @ --keep 0s --to old --reason tidy");
    table.row("moved", expect_eq(&out, &(status, files(&world).len()), &(Some(0), 1)));
    table.row("rows", expect_eq("fewer", &(world.audit().len() < first), &true));
    // The edge goes on, and signs what comes.
    let nonce = world.node_nonce(&node).await;
    let answer = world.send(&node.request(&nonce)).await.expect("an answer");
    table.row("capsule", expect_eq("answer", &told(&answer).as_str(), &"200 risk 0"));
    some_lines(&world, &["node-4"]).await;
    some_lines(&world, &["node-5"]).await;
    let (status, out) = run(&world, "audit rotate @ --keep 0s --to old --json");
    table.row("second", expect_eq(&out, &(status, files(&world).len()), &(Some(0), 2)));
    let both = files(&world).join(" ");
    let [one, two] = [&files(&world)[0], &files(&world)[1]].map(String::clone);
    let preface: Value =
        serde_json::from_str(text(&world, &two).lines().next().expect("a line")).expect("JSON");
    let covers = preface["checkpoint"]["seq"].as_u64().map(|seq| seq + 2);
    table.row("second", expect_eq("follows a checkpoint", &covers, &preface["from"].as_u64()));
    let (_, told) = run(&world, &format!("audit verify {one} --jwks audit.jwks"));
    let seen = told.lines().find_map(|line| line.strip_prefix("head: ")).expect("a head");
    world.restart().await;
    for (words, status, expect) in [
        (format!("audit verify {both} @"), 0, "the log is whole"),
        (format!("audit verify {both} @ --seen {seen}"), 0, "the log is whole"),
        (format!("audit verify @ --seen {seen}"), 1, "name the file as well"),
        (format!("audit verify {both} --jwks audit.jwks"), 0, "the log is whole up to"),
        (format!("audit verify {one} --jwks audit.jwks"), 0, "the log is whole up to"),
        (format!("audit verify {two} --jwks audit.jwks"), 0, "it is an excerpt"),
        (format!("audit verify {two} @"), 0, "the log is whole from line"),
        ("audit verify @".to_owned(), 0, "were not looked at"),
        (format!("audit verify {one} @"), 1, "are missing"),
    ] {
        let (found, out) = run(&world, &words);
        let said = out.contains(expect);
        table.row(&words, expect_eq(&out, &(found, said), &(Some(status), true)));
    }
    let (_, shown) = run(&world, "audit tail --kind audit.rotate @");
    table.row("audited", expect_eq(&shown, &shown.contains("audit rotate (tidy)"), &false));
    let (_, whole) = run(&world, &format!("audit verify {both} @ --json"));
    let whole: Value = serde_json::from_str(&whole).unwrap_or_default();
    table.row("whole", expect_eq("firstLine", &whole["firstLine"], &json!(1)));
    let all: String = files(&world).iter().map(|name| text(&world, name)).collect();
    table.row("audited", expect_eq("reason", &all.contains("\"reason\":\"tidy\""), &true));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_moved_that_does_not_verify() {
    let mut world = signing().await;
    let mut table = Table::default();
    some_lines(&world, &["node-1", "node-2"]).await;
    some_lines(&world, &["node-3"]).await;
    world.process.terminate();
    assert!(world.process.ended().await.is_some());
    let store = world.directory.path().join("holdfast.db");
    let count = || {
        let connection = rusqlite::Connection::open(&store).expect("a database");
        let sql = "SELECT count(*) FROM audit";
        connection.query_row(sql, [], |row| row.get::<_, i64>(0)).expect("a count")
    };
    let change = |sql: &str| {
        rusqlite::Connection::open(&store).expect("a database").execute_batch(sql).expect("done");
    };
    let lines = count();
    // Files that an earlier run may have left, of another chain or with something else in them.
    let (_, all) = run(&world, "audit export @");
    let chain: Value = serde_json::from_str(all.lines().next().expect("a line")).expect("JSON");
    let chain = chain["chain"].as_str().expect("an id");
    let name = format!("old/audit-{}-000000000001-000000000003.jsonl", &chain[..8]);
    for (what, content) in
        [("nonsense", "x\n".to_owned()), ("cut", all[..all.len() / 2].to_owned())]
    {
        world.write(&name, &content);
        let (status, out) = run(&world, "audit rotate @ --keep 0s --to old");
        table.row(what, expect_eq(&out, &(status, out.contains(&name)), &(Some(1), true)));
        table.row(what, expect_eq("lines", &count(), &lines));
    }
    fs::remove_file(world.directory.path().join(&name)).expect("a file");
    change("UPDATE audit SET line = replace(line, 'node-1', 'node-9') WHERE line LIKE '%node-1%'");
    let (status, out) = run(&world, "audit rotate @ --keep 0s --to old");
    let said = out.contains("nothing was moved: the log is not whole");
    table.row("changed", expect_eq(&out, &(status, said), &(Some(1), true)));
    table.row("changed", expect_eq("files", &files(&world).len(), &0));
    table.row("changed", expect_eq("lines", &count(), &lines));
    change("UPDATE audit SET line = replace(line, 'node-9', 'node-1') WHERE line LIKE '%node-9%'");
    // A beginning that nobody has written about.
    change(
        "INSERT INTO meta (name, value) SELECT 'audit_base', '{\"seq\":3,\"hash\":\"' ||
         json_extract(line, '$.prev') || '\"}' FROM audit WHERE seq = 4; DELETE FROM audit WHERE seq <= 3;",
    );
    let (status, out) = run(&world, "audit verify @");
    let said = out.contains("no line in it that a checkpoint covers");
    table.row("cut off", expect_eq(&out, &(status, said), &(Some(1), true)));
    let (status, out) = run(&world, "audit rotate @ --keep 0s --to nowhere");
    table.row("no directory", expect_eq(&out, &status, &Some(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_cut_off_anywhere_runs_it_again() {
    let world = signing().await;
    some_lines(&world, &["node-0"]).await;
    let path = world.directory.path().to_owned();
    for round in 0..12_u64 {
        let name = format!("node-{}", round + 1);
        some_lines(&world, &[name.as_str()]).await;
        let mut child = Command::new(env!("CARGO_BIN_EXE_holdfast"))
            .args(["audit", "rotate", "--config", "authority.yaml", "--keep", "0s", "--to", "old"])
            .current_dir(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program");
        tokio::time::sleep(Duration::from_millis(round * 7 + 5)).await;
        let _ = child.kill();
        child.wait().expect("it ended");
    }
    some_lines(&world, &["node-last"]).await;
    let (status, out) = run(&world, "audit rotate @ --keep 0s --to old");
    assert_eq!(status, Some(0), "{out}");
    let all = files(&world).into_iter().filter(|name| name.ends_with(".jsonl"));
    let (status, out) =
        run(&world, &format!("audit verify {} @", all.collect::<Vec<_>>().join(" ")));
    assert!(status == Some(0) && out.contains("the log is whole"), "{out}");
}
