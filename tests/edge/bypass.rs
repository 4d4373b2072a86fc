//! The note of the temporary bypass: what is not in force leaves no trace in it, and what could not be
//! noted is noted later.

use std::time::Duration;

use serde_json::{Value, json};

use super::support::authority::{Form, Site};
use super::support::client::Request;
use super::support::process::{Process, write_config};
use super::support::redis::{Server, there_is_none};
use super::support::sharing::{bypass_of, key_file, ready_is, share};
use super::support::world::World;
use super::upgrade::{NOT_HANDED_OVER, says};

const NOTE: &str = "{holdfast:0}:bypass";

/// An edge whose store is `redis`, or its own file alone.
async fn site(redis: Option<&Server>, flag: bool) -> Site {
    Site::retrofit_in(Form::Opaque, |directory, _, config| {
        key_file(directory);
        if let Some(redis) = redis {
            share(config, json!({"nodes": [redis.address()], "timeout": "10s"}));
            config["store"]["path"] = json!("store.db");
        }
        config["edge"]["drainTimeout"] = json!("8s");
        set(config, flag);
    })
    .await
}

fn set(config: &mut Value, flag: bool) {
    config["security"]["senderConstraints"]["dpop"]["allowTemporaryBypass"] = json!(flag);
}

/// A configuration with which no process can start.
fn cannot_start(config: &mut Value, taken: &std::net::TcpListener) {
    let mut other = config["edge"]["listeners"][0].clone();
    other["name"] = json!("other");
    other["address"] = json!(taken.local_addr().expect("an address").to_string());
    config["edge"]["listeners"].as_array_mut().expect("listeners").push(other);
}

fn taken() -> std::net::TcpListener {
    std::net::TcpListener::bind("127.0.0.1:0").expect("a port")
}

async fn bypass(world: &World) -> Value {
    world.admin("/readyz").await.json()["bypass"].clone()
}

/// What this edge's own file says, and the changes of which there is a line.
fn own(site: &Site) -> (Option<String>, Vec<String>) {
    let store = site.store();
    let sql = "SELECT group_concat(value) FROM meta WHERE name = 'bypass'";
    let note = store.query_row(sql, [], |row| row.get(0)).expect("a store");
    let sql = "SELECT line FROM audit WHERE kind = 'bypass.change' ORDER BY seq";
    let mut lines = store.prepare(sql).expect("a store");
    let lines = lines.query_map([], |row| row.get(0)).expect("lines");
    (note, lines.collect::<Result<_, _>>().expect("lines"))
}

/// Waits until the last line says so, and there are so many.
async fn changes(site: &Site, count: usize, word: &str) {
    let mut found = Vec::new();
    for _ in 0..1500 {
        found = own(site).1;
        if found.len() == count && found.last().is_some_and(|line| line.contains(word)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not {count} lines with {word:?} at the end: {found:#?}");
}

/// No note can be read, or one again.
fn spoil(site: &Site, spoilt: bool) {
    let sql = if spoilt {
        "INSERT INTO meta (name, value) VALUES ('bypass', 'no note')"
    } else {
        "DELETE FROM meta WHERE name = 'bypass'"
    };
    site.store().execute(sql, []).expect("a store");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_notes_nothing() {
    let mut site = site(None, false).await;
    site.world.process.terminate();
    assert!(site.world.process.ended().await.is_some());
    let taken = taken();
    let mut config = site.world.config.clone();
    set(&mut config, true);
    cannot_start(&mut config, &taken);
    let file = write_config(site.world.directory.path(), &config);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_holdfast"));
    command.args(["run", "--config"]).arg(&file);
    let mut process = Process::of(command);
    let status = process.ended().await.expect("an end");
    assert!(
        !status.success() && process.output().contains("cannot listen"),
        "{}",
        process.output()
    );
    assert_eq!(own(&site), (None, Vec::new()));
    // Nor does an edge start that cannot know whether it is open.
    set(&mut site.world.config, true);
    write_config(site.world.directory.path(), &site.world.config);
    spoil(&site, true);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_holdfast"));
    command.args(["run", "--config"]).arg(&file);
    let mut process = Process::of(command);
    let status = process.ended().await.expect("an end");
    assert!(
        !status.success() && process.output().contains("error: store:"),
        "{}",
        process.output()
    );
    spoil(&site, false);
    site.world.restart_ended().await;
    bypass_of(site.world.admin).await;
    changes(&site, 1, "opened").await;
}

/// Whichever way the flag would go, the note, the audit log and what is open stay as they are until the
/// next process has the sockets.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_is_declined_leaves_the_note_as_it_was() {
    if there_is_none() {
        return;
    }
    for flag in [true, false] {
        let redis = Server::start(&[]).await;
        let mut site = site(Some(&redis), flag).await;
        if flag {
            bypass_of(site.world.admin).await;
        }
        let is = async |site: &Site| {
            (own(site), redis.cli(&["HGETALL", NOTE]), bypass(&site.world).await)
        };
        let before = is(&site).await;
        assert_eq!(before.1.contains("since"), flag, "{}", before.1);
        let taken = taken();
        let mut config = site.world.config.clone();
        set(&mut config, !flag);
        let good = config.clone();
        cannot_start(&mut config, &taken);
        write_config(site.world.directory.path(), &config);
        site.world.process.signal("QUIT");
        says(&site.world.process, NOT_HANDED_OVER, 1).await;
        assert_eq!(is(&site).await, before, "flag {flag}");
        // One that is taken does what it says, however long the one before has requests to finish.
        let mut kept = site.world.client.connect(None).await.expect("a connection");
        let public = Request::new("GET", "/public/1").bytes();
        assert_eq!(kept.send(&public).await.expect("an answer").status(), 200);
        site.world.config = good;
        write_config(site.world.directory.path(), &site.world.config);
        let mut old = site.world.upgrade().await;
        if flag {
            changes(&site, 2, "closed").await;
            redis.says(&["EXISTS", NOTE], "0").await;
            assert_eq!(bypass(&site.world).await, Value::Null);
        } else {
            bypass_of(site.world.admin).await;
            changes(&site, 1, "opened").await;
            redis.says(&["EXISTS", NOTE], "1").await;
        }
        assert!(old.ended().await.is_some(), "{}", old.output());
        redis.says(&["EXISTS", NOTE], if flag { "0" } else { "1" }).await;
        assert_eq!(own(&site).0.is_some(), !flag);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_noted_after_an_upgrade_is_noted_later() {
    let mut site = site(None, false).await;
    spoil(&site, true);
    set(&mut site.world.config, true);
    write_config(site.world.directory.path(), &site.world.config);
    let _old = site.world.upgrade().await;
    let warned = |record: &Value| {
        record["message"].as_str().is_some_and(|text| text.contains("could not be noted"))
    };
    assert!(site.world.process.record(warned).await.is_some(), "{}", site.world.process.output());
    assert_eq!(bypass(&site.world).await, Value::Null);
    spoil(&site, false);
    bypass_of(site.world.admin).await;
    changes(&site, 1, "opened").await;
}

/// What waits for Redis goes on waiting, whatever becomes of the reloads meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn no_reload_gives_up_what_is_being_noted() {
    if there_is_none() {
        return;
    }
    let mut redis = Server::start(&[]).await;
    let mut site = site(Some(&redis), false).await;
    redis.kill();
    ready_is(site.world.admin, false).await;
    set(&mut site.world.config, true);
    assert!(site.world.reload().await);
    // One whose parts cannot be made, by which it would be closed.
    let keys = site.world.directory.path().join("jwks.json");
    let good = std::fs::read(&keys).expect("keys");
    std::fs::write(&keys, "none").expect("a writable directory");
    let mut config = site.world.config.clone();
    set(&mut config, false);
    write_config(site.world.directory.path(), &config);
    assert!(!site.world.told_to_reload().await);
    std::fs::write(&keys, good).expect("a writable directory");
    // One while the edge's own file cannot be read.
    spoil(&site, true);
    site.world.reload().await;
    assert_eq!(bypass(&site.world).await, Value::Null);
    spoil(&site, false);
    redis.again().await;
    bypass_of(site.world.admin).await;
    changes(&site, 1, "opened").await;
}
