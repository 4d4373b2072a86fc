use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::reader::Readers;
use super::writer::{CheckpointRule, Signer, Writer};
use super::*;
use crate::policy::audit::{Checkpoint, Head};
use crate::policy::capsule::node::{Expectations, Node, NodeId, Status};
use crate::policy::digest::Sha256;

const RULE: CheckpointRule = CheckpointRule { lines: 10, interval: Duration::from_secs(3600) };

struct Scratch {
    directory: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("holdfast.db")
    }
}

fn node(id: &str) -> Node {
    let id = NodeId::parse(id).unwrap();
    Node::new(id, Sha256::of(b"secret"), Expectations::default(), now())
}

fn draft(id: &str) -> Draft {
    Draft::new(Kind::NodeChange, now(), id, None, &serde_json::json!({}))
}

/// Follows the whole chain.
fn verified(path: &Path) -> Head {
    let reader = reader::Reader::open(path).unwrap();
    let lines = reader.lines(1, usize::MAX).unwrap();
    let follow = |head: Head, line: &reader::Stored| head.follow(&line.line).unwrap().0;
    lines.iter().fold(Head::default(), follow)
}

#[derive(Debug)]
struct Count(AtomicU64);

impl Signer for Arc<Count> {
    fn sign(&self, _: &Checkpoint) -> Option<String> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Some("jws".to_owned())
    }
}

#[test]
fn a_new_file_is_its_owners_and_begins_a_chain() {
    let scratch = Scratch::new();
    drop(Database::open(&scratch.path()).unwrap());
    let mode = fs::metadata(scratch.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(verified(&scratch.path()).seq, 1);
    drop(Database::open(&scratch.path()).unwrap());
    assert_eq!(verified(&scratch.path()).seq, 1);
}

#[test]
fn a_change_is_compared_with_the_revision_that_it_is_of() {
    let scratch = Scratch::new();
    let mut database = Database::open(&scratch.path()).unwrap();
    let id = NodeId::parse("node-1").unwrap();
    database.transact(|batch| batch.insert(&node("node-1"))).unwrap();
    assert_eq!(database.transact(|batch| batch.insert(&node("node-1"))), Err(Fault::Conflict));
    let row = database.transact(|batch| batch.node(&id)).unwrap().unwrap();
    let mut changed = row.node.clone();
    changed.status = Status::Quarantined;
    database.transact(|batch| batch.update(&changed, row.revision)).unwrap();
    let late = database.transact(|batch| batch.update(&row.node, row.revision));
    assert_eq!(late, Err(Fault::Conflict));
    let late = database.transact(|batch| batch.remove(&row));
    assert_eq!(late, Err(Fault::Conflict));
    let row = database.transact(|batch| batch.node(&id)).unwrap().unwrap();
    assert_eq!((&row.node, row.revision), (&changed, 2));
    // What its key was derived for is remembered.
    assert_eq!(database.transact(|batch| batch.removed(&id)), Ok(None));
    database.transact(|batch| batch.remove(&row)).unwrap();
    assert_eq!(database.transact(|batch| batch.removed(&id)), Ok(Some(changed.key_version)));
}

#[test]
fn a_log_that_is_gone_is_not_begun_anew() {
    let scratch = Scratch::new();
    let database = Database::open(&scratch.path()).unwrap();
    database.connection.execute("DELETE FROM audit", []).unwrap();
    drop(database);
    let error = Database::open(&scratch.path()).unwrap_err().to_string();
    assert!(error.contains("the audit log is gone"), "{error}");
}

#[tokio::test]
async fn a_store_that_cannot_write_says_so_until_it_can_again() {
    let scratch = Scratch::new();
    let writer = Writer::start(&scratch.path(), RULE).unwrap();
    assert!(writer.is_up());
    let away = scratch.directory.path().join("away.db");
    fs::rename(scratch.path(), &away).unwrap();
    assert!(writer.transact(|batch| batch.append(&draft("one"))).await.is_err());
    assert!(!writer.is_up());
    fs::rename(&away, scratch.path()).unwrap();
    let again = async {
        while !writer.is_up() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), again).await.unwrap();
    writer.transact(|batch| batch.append(&draft("two"))).await.unwrap();
}

#[tokio::test]
async fn a_job_that_panics_takes_nobody_else_down() {
    let scratch = Scratch::new();
    let writer = Writer::start(&scratch.path(), RULE).unwrap();
    let panics = writer.transact(|batch| {
        batch.append(&draft("half"))?;
        panic!("a job")
    });
    let done: Result<(), _> = panics.await;
    assert!(matches!(done, Err(Fault::Failed(_))), "{done:?}");
    writer.transact(|batch| batch.append(&draft("whole"))).await.unwrap();
    assert_eq!(verified(&scratch.path()).seq, 2);
}

#[tokio::test]
async fn a_line_that_cannot_be_written_is_said_to_be_lost() {
    let scratch = Scratch::new();
    let writer = Writer::start(&scratch.path(), RULE).unwrap();
    let lost = Arc::new(AtomicU64::new(0));
    let count = || {
        let lost = Arc::clone(&lost);
        move || {
            lost.fetch_add(1, Ordering::Relaxed);
        }
    };
    writer.note(draft("kept"), count());
    writer.transact(|_| Ok(())).await.unwrap();
    assert_eq!(lost.load(Ordering::Relaxed), 0);
    fs::rename(scratch.path(), scratch.directory.path().join("away.db")).unwrap();
    writer.note(draft("lost"), count());
    let _ = writer.transact(|_| Ok(())).await;
    assert_eq!(lost.load(Ordering::Relaxed), 1);
}

#[test]
fn half_of_something_is_nothing_and_takes_its_transaction_with_it() {
    let scratch = Scratch::new();
    let writer = Writer::start(&scratch.path(), RULE).unwrap();
    // One transaction: the thread waits in the first while the others come.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let answers = runtime.block_on(async {
        let first = writer.transact(move |_| {
            wait.recv().unwrap();
            Ok(())
        });
        let half = writer.transact(|batch| {
            batch.append(&draft("half"))?;
            Err::<(), _>(Fault::Busy)
        });
        let other = writer.transact(|batch| batch.append(&draft("other")));
        let let_go = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            go.send(()).unwrap();
        };
        tokio::join!(first, half, other, let_go)
    });
    // The first may have been in it, too.
    assert_eq!((answers.1, answers.2), (Err(Fault::Busy), Err(Fault::Busy)));
    assert_eq!(verified(&scratch.path()).seq, 1);
}

#[test]
fn what_fails_leaves_nothing() {
    let scratch = Scratch::new();
    let mut database = Database::open(&scratch.path()).unwrap();
    let failed = database.transact(|batch| {
        batch.insert(&node("node-1"))?;
        batch.append(&draft("one"))?;
        Err::<(), _>(Fault::Busy)
    });
    assert_eq!(failed, Err(Fault::Busy));
    let id = NodeId::parse("node-1").unwrap();
    assert!(database.transact(|batch| batch.node(&id)).unwrap().is_none());
    assert_eq!(verified(&scratch.path()).seq, 1);
}

#[test]
fn stored_records_that_cannot_be_read_are_said_so() {
    let scratch = Scratch::new();
    let mut database = Database::open(&scratch.path()).unwrap();
    let good = serde_json::to_string(&node("node-1")).unwrap();
    for (record, status) in [
        ("", "active"),
        ("{}", "active"),
        (good.get(..good.len() / 2).unwrap(), "active"),
        (&good.replace("\"status\":\"active\"", "\"status\":\"unknown\""), "active"),
        (&good.replace("\"keyVersion\":1", "\"keyVersion\":-1"), "active"),
        (&good.replace("\"oldestKeyVersion\":1", "\"oldestKeyVersion\":2"), "active"),
        (&good.replace("{\"id\"", "{\"more\":1,\"id\""), "active"),
        (&good.replace("node-1", "node-2"), "active"),
        (&good.replace("node-1", "../etc"), "active"),
        (&good.replace("\"secret\":\"", "\"secret\":\"x"), "active"),
        // A status that was changed in one of its two places.
        (good.as_str(), "quarantined"),
    ] {
        let sql = "INSERT OR REPLACE INTO nodes (id, status, revision, secret, record)
                   VALUES ('node-1', ?2, 1, ?3, ?1)";
        let secret = Sha256::of(b"secret").0;
        database.connection.execute(sql, rusqlite::params![record, status, secret]).unwrap();
        let id = NodeId::parse("node-1").unwrap();
        let read = database.transact(|batch| batch.node(&id)).map(|row| row.map(|row| row.node));
        assert_eq!(read, Err(Fault::Malformed), "{record} {status}");
        // Whoever has no secret is not told.
        let reader = reader::Reader::open(&scratch.path()).unwrap();
        let found = |secret: &[u8]| reader.find(&id, &Sha256::of(secret));
        assert!(matches!(found(b"wrong"), Ok(batch::Found::Wrong)), "{record}");
        assert!(matches!(found(b"secret"), Err(Fault::Malformed)), "{record}");
    }
    // A secret that was changed in one of its two places.
    let sql = "UPDATE nodes SET secret = ?1, record = ?2, status = 'active'";
    let other = Sha256::of(b"other").0;
    database.connection.execute(sql, rusqlite::params![other, good]).unwrap();
    let id = NodeId::parse("node-1").unwrap();
    let read = database.transact(|batch| batch.node(&id)).map(|row| row.is_some());
    assert_eq!(read, Err(Fault::Malformed));
}

#[test]
fn what_is_no_database_of_ours_is_refused_and_left_alone() {
    let check = |make: fn(&Path), expect: &str| {
        let scratch = Scratch::new();
        make(&scratch.path());
        let before = fs::read(scratch.path()).ok();
        let error = Database::open(&scratch.path()).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
        assert!(fs::read(scratch.path()).ok() == before, "{expect}: it was changed");
    };
    check(
        |path| fs::write(path, "not a database at all, but long enough").unwrap(),
        "not a database",
    );
    check(
        |path| Connection::open(path).unwrap().execute_batch("CREATE TABLE t (a)").unwrap(),
        "not one of Holdfast's",
    );
    check(
        |path| {
            drop(Database::open(path).unwrap());
            let connection = Connection::open(path).unwrap();
            connection.pragma_update(None, "user_version", LAYOUT + 1).unwrap();
        },
        "run the newer version",
    );
    check(|path| fs::create_dir(path).unwrap(), "unable to open");
}

#[test]
fn a_truncated_file_is_refused() {
    let scratch = Scratch::new();
    let mut database = Database::open(&scratch.path()).unwrap();
    for number in 0..200 {
        database.transact(|batch| batch.append(&draft(&format!("line-{number}")))).unwrap();
    }
    database.connection.pragma_update(None, "wal_checkpoint", "TRUNCATE").unwrap();
    drop(database);
    let length = fs::metadata(scratch.path()).unwrap().len();
    for part in [2, 4] {
        let file = OpenOptions::new().write(true).open(scratch.path()).unwrap();
        file.set_len(length / part).unwrap();
        let error = Database::open(&scratch.path()).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. } | OpenError::Sqlite { .. }), "{error}");
    }
}

#[test]
fn a_last_line_that_was_changed_is_noticed_at_start() {
    let scratch = Scratch::new();
    let mut database = Database::open(&scratch.path()).unwrap();
    database.transact(|batch| batch.append(&draft("one"))).unwrap();
    let sql = "UPDATE audit SET line = replace(line, 'one', 'two')";
    database.connection.execute(sql, []).unwrap();
    drop(database);
    let error = Database::open(&scratch.path()).unwrap_err().to_string();
    assert!(error.contains("the last line"), "{error}");
}

#[test]
fn nothing_is_written_into_a_file_that_was_moved_away() {
    let scratch = Scratch::new();
    let mut database = Database::open(&scratch.path()).unwrap();
    fs::rename(scratch.path(), scratch.directory.path().join("away.db")).unwrap();
    assert!(database.transact(|batch| batch.append(&draft("one"))).is_err());
    drop(Database::open(&scratch.path()).unwrap());
    assert!(database.transact(|batch| batch.append(&draft("one"))).is_err());
    drop(database);
    assert_eq!(verified(&scratch.path()).seq, 1);
}

#[test]
fn a_full_store_refuses_and_goes_on_when_there_is_room() {
    let scratch = Scratch::new();
    let mut database = Database::open(&scratch.path()).unwrap();
    let pages: i64 =
        database.connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    let limit = |database: &Database, pages: i64| {
        database
            .connection
            .pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
            .unwrap();
    };
    limit(&database, pages + 2);
    let long = "x".repeat(3000);
    let mut done = 0;
    let full = loop {
        match database.transact(|batch| batch.append(&draft(&long))) {
            Ok(()) => done += 1,
            Err(fault) => break fault,
        }
    };
    assert!(matches!(&full, Fault::Failed(why) if why.contains("full")), "{full}");
    assert_eq!(verified(&scratch.path()).seq, 1 + done);
    limit(&database, i64::from(i32::MAX));
    database.transact(|batch| batch.append(&draft(&long))).unwrap();
    assert_eq!(verified(&scratch.path()).seq, 2 + done);
}

#[tokio::test]
async fn what_is_wanted_at_once_is_done_one_after_the_other() {
    let scratch = Scratch::new();
    let writer = Writer::start(&scratch.path(), RULE).unwrap();
    let id = NodeId::parse("node-1").unwrap();
    writer.transact(|batch| batch.insert(&node("node-1"))).await.unwrap();
    let one = |number: u64| {
        let (writer, id) = (writer.clone(), id.clone());
        async move {
            let work = move |batch: &mut Batch<'_>| {
                let mut row = batch.node(&id)?.ok_or(Fault::Malformed)?;
                row.node.counters.granted += 1;
                batch.update(&row.node, row.revision)?;
                batch.append(&draft(&number.to_string()))?;
                Ok(row.node.counters.granted)
            };
            writer.transact(work).await.unwrap()
        }
    };
    let tasks: Vec<_> = (0..200).map(|number| tokio::spawn(one(number))).collect();
    let mut seen = Vec::new();
    for task in tasks {
        seen.push(task.await.unwrap());
    }
    seen.sort_unstable();
    assert_eq!(seen, (1..=200).collect::<Vec<_>>());
    let readers = Readers::beside(&writer).unwrap();
    let row = readers.read(|reader| reader.node(&id)).unwrap().unwrap();
    assert_eq!((row.node.counters.granted, row.revision), (200, 201));
    assert_eq!(verified(&scratch.path()).seq, 201);
}

#[tokio::test]
async fn one_that_fails_before_it_writes_fails_alone() {
    let scratch = Scratch::new();
    let writer = Writer::start(&scratch.path(), RULE).unwrap();
    let good = writer.transact(|batch| batch.append(&draft("good")));
    let bad = writer.transact(|_| Err::<(), _>(Fault::Malformed));
    let other = writer.transact(|batch| batch.append(&draft("other")));
    let (good, bad, other) = tokio::join!(good, bad, other);
    assert_eq!((good, bad, other), (Ok(()), Err(Fault::Malformed), Ok(())));
    assert_eq!(verified(&scratch.path()).seq, 3);
}

#[tokio::test]
async fn checkpoints_come_by_number_and_at_the_end() {
    let scratch = Scratch::new();
    let writer = Writer::start(&scratch.path(), RULE).unwrap();
    let count = Arc::new(Count(AtomicU64::new(0)));
    writer.sign_with(Some(Box::new(Arc::clone(&count))));
    for number in 0..25 {
        writer.transact(move |batch| batch.append(&draft(&number.to_string()))).await.unwrap();
    }
    assert_eq!(count.0.load(Ordering::Relaxed), 3);
    let done = tokio::task::spawn_blocking(move || writer.finish());
    done.await.unwrap();
    assert_eq!(count.0.load(Ordering::Relaxed), 4);
    let mut database = Database::open(&scratch.path()).unwrap();
    let (last, head) =
        database.transact(|batch| Ok((batch.last_checkpoint()?, batch.head().seq))).unwrap();
    assert_eq!(last, head);
}

#[tokio::test]
async fn a_file_that_is_older_than_its_mark_is_refused() {
    let scratch = Scratch::new();
    let path = scratch.path();
    let signed = async |lines: u64| {
        let writer = Writer::start(&path, RULE).unwrap();
        writer.sign_with(Some(Box::new(Arc::new(Count(AtomicU64::new(0))))));
        for number in 0..lines {
            let line = draft(&number.to_string());
            writer.transact(move |batch| batch.append(&line)).await.unwrap();
        }
        tokio::task::spawn_blocking(move || writer.finish()).await.unwrap();
    };
    signed(3).await;
    let backup = scratch.directory.path().join("backup.db");
    let connection = Connection::open(&path).unwrap();
    connection.execute("VACUUM INTO ?1", [backup.to_str()]).unwrap();
    drop(connection);
    signed(3).await;
    drop(Database::open(&path).unwrap());
    for more in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{more}", path.display()));
    }
    fs::copy(&backup, &path).unwrap();
    let error = Database::open(&path).unwrap_err();
    assert!(matches!(error, OpenError::Behind { .. }), "{error}");
    fs::remove_file(mark(&path)).unwrap();
    drop(Database::open(&path).unwrap());
    fs::write(mark(&path), "{").unwrap();
    assert!(matches!(Database::open(&path).unwrap_err(), OpenError::Damaged { .. }));
}

#[test]
fn two_writers_share_one_chain() {
    let scratch = Scratch::new();
    let path = scratch.path();
    drop(Database::open(&path).unwrap());
    let writers: Vec<_> = (0..2)
        .map(|writer| {
            let path = path.clone();
            std::thread::spawn(move || {
                let mut database = Database::open(&path).unwrap();
                for number in 0..100 {
                    let draft = draft(&format!("{writer}-{number}"));
                    database.transact(|batch| batch.append(&draft)).unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
    assert_eq!(verified(&path).seq, 201);
}

#[test]
fn a_commit_is_on_the_disk() {
    let scratch = Scratch::new();
    let database = Database::open(&scratch.path()).unwrap();
    let ask = |name: &str| pragma(&database.connection, name).unwrap();
    // FULL: the log is flushed with each commit, so that a power cut takes none back.
    assert_eq!(ask("synchronous"), 2);
    let mode: String =
        database.connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
    assert_eq!(mode, "wal");
}
