use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::reader::Reader;
use super::super::{Database, MIGRATIONS, now};
use super::*;
use crate::policy::digest::Jkt;
use crate::policy::grant::{BindingRecord, TokenKind};

const HOUR: Duration = Duration::from_secs(3600);

struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("holdfast.db")
    }

    fn open(&self) -> Database {
        Database::open(&self.path()).unwrap()
    }

    fn count(&self, sql: &str) -> i64 {
        let reader = Reader::open(&self.path()).unwrap();
        reader.connection.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    fn rows(&self) -> i64 {
        self.count("SELECT count(*) FROM authority_tokens")
    }

    fn entries(&self) -> i64 {
        self.count("SELECT count(*) FROM authority_token_keys")
    }
}

fn key(number: u64) -> RecordKey {
    RecordKey(Sha256::of(&number.to_be_bytes()))
}

fn record(number: u64, expires: UnixTime) -> BindingRecord {
    BindingRecord {
        kind: if number.is_multiple_of(2) { TokenKind::Access } else { TokenKind::Refresh },
        tenant: None,
        client: Some("client".to_owned()),
        cnf_jkt: Some(Jkt(key(number).0)),
        sender_certificate: None,
        scope: None,
        expires,
        family: format!("family {}", number / 2),
        bypass: None,
        revoked: false,
    }
}

fn keep(database: &mut Database, numbers: Range<u64>, expires: UnixTime) {
    let kept = database.transact(|batch| {
        for number in numbers {
            let record = record(number, expires);
            batch.may_bind(key(number), &record, now())?;
            batch.bind(key(number), &record)?;
        }
        Ok(())
    });
    kept.unwrap();
}

/// Puts the whole tail into the index. How many transactions that took.
fn index(database: &mut Database, upkeep: &mut Upkeep) -> usize {
    let tail = std::sync::Arc::clone(&database.tail);
    let mut steps = 0;
    while upkeep.is_due(&tail, true) {
        let done = database.transact(|batch| upkeep.step(batch, now()));
        upkeep.stepped(done.is_ok(), &tail);
        steps += 1;
    }
    steps
}

#[track_caller]
fn found(path: &Path, numbers: Range<u64>) -> Vec<u64> {
    let reader = Reader::open(path).unwrap();
    let is_found = |number: &u64| {
        let found = reader.record(key(*number)).unwrap();
        found.is_some_and(|found| found.cnf_jkt == Some(Jkt(key(*number).0)))
    };
    numbers.filter(is_found).collect()
}

#[test]
fn a_record_is_found_in_the_tail_on_its_way_and_in_the_index() {
    let scratch = Scratch::new();
    let (mut database, mut upkeep) = (scratch.open(), Upkeep::default());
    let until = now().plus(HOUR);
    // One that had it open all the time, and knows the tail as it was.
    let reader = Reader::open(&scratch.path()).unwrap();
    let all = |last: u64| (0..last).all(|number| reader.record(key(number)).unwrap().is_some());
    keep(&mut database, 0..2500, until);
    assert!(all(2500) && scratch.entries() == 0);
    let tail = std::sync::Arc::clone(&database.tail);
    assert!(upkeep.is_due(&tail, true));
    let done = database.transact(|batch| upkeep.step(batch, now()));
    upkeep.stepped(done.is_ok(), &tail);
    assert_eq!(scratch.entries(), 1024);
    // What comes while it is under way waits for the next time.
    keep(&mut database, 2500..2600, until);
    assert!(all(2600));
    assert_eq!(index(&mut database, &mut upkeep), 2);
    assert_eq!(scratch.entries(), 2500);
    assert_eq!(tail.rows().by_key.len(), 100);
    assert!(all(2600) && found(&scratch.path(), 0..2700).len() == 2600);
    // By the index alone.
    let mut other = scratch.open();
    keep(&mut other, 0..10, until);
    assert_eq!(scratch.rows(), 2600, "none has two records");
}

#[test]
fn a_row_that_two_processes_add_to_is_found_by_both() {
    let scratch = Scratch::new();
    let (mut first, mut second) = (scratch.open(), scratch.open());
    let until = now().plus(HOUR);
    for round in 0..10 {
        keep(&mut first, round * 20..round * 20 + 15, until);
        keep(&mut second, round * 20 + 10..round * 20 + 20, until);
    }
    assert_eq!(scratch.rows(), 200, "none has two records");
    assert_eq!(found(&scratch.path(), 0..201).len(), 200);
    let mut upkeep = Upkeep::default();
    keep(&mut first, 200..1200, until);
    index(&mut first, &mut upkeep);
    keep(&mut second, 1000..1300, until);
    assert_eq!(scratch.rows(), 1300);
}

#[test]
fn a_place_that_is_another_token_s_is_none() {
    let scratch = Scratch::new();
    let mut database = scratch.open();
    keep(&mut database, 0..2, now().plus(HOUR));
    let wrong = |batch: &mut Batch<'_>| {
        let place = batch.place(key(1))?;
        let sql = "INSERT INTO authority_token_keys VALUES (?1, ?2, 0)";
        Ok(batch.connection.execute(sql, params![key(7).0.0, place])?)
    };
    assert_eq!(database.transact(wrong), Ok(1));
    assert_eq!(found(&scratch.path(), 0..8), [0, 1]);
    let reader = Reader::open(&scratch.path()).unwrap();
    assert_eq!(reader.record(key(7)), Ok(None));
}

#[test]
fn what_comes_to_nothing_leaves_no_place() {
    let scratch = Scratch::new();
    let mut database = scratch.open();
    let until = now().plus(HOUR);
    keep(&mut database, 0..3, until);
    let failed = database.transact(|batch| {
        batch.bind(key(3), &record(3, until))?;
        assert!(batch.place(key(3)).unwrap().is_some(), "within it is there");
        Err::<(), _>(Fault::Busy)
    });
    assert_eq!(failed, Err(Fault::Busy));
    // Another takes the number that it had.
    keep(&mut database, 4..5, until);
    assert_eq!(found(&scratch.path(), 0..6), [0, 1, 2, 4]);
    assert!(database.transact(|batch| batch.place(key(3))).unwrap().is_none());
    keep(&mut database, 3..4, until);
    assert_eq!(found(&scratch.path(), 0..6), [0, 1, 2, 3, 4]);
}

#[test]
fn what_is_outlived_goes_some_at_a_time_with_what_is_kept() {
    let scratch = Scratch::new();
    let (mut database, mut upkeep) = (scratch.open(), Upkeep::default());
    let (past, until) = (UnixTime::from_millis(now().millis() - 1), now().plus(HOUR));
    keep(&mut database, 0..1000, until);
    // Of these none comes into the index, of the next all do.
    keep(&mut database, 1000..2000, past);
    let early = database.transact(|batch| {
        batch.kept = 2000;
        batch.forget_outlived(&mut upkeep, now())
    });
    early.unwrap();
    assert_eq!(scratch.rows(), 2000, "numbers that are not in the index are not taken out");
    let soon = now().plus(Duration::from_millis(300));
    keep(&mut database, 2000..3000, soon);
    index(&mut database, &mut upkeep);
    assert_eq!((scratch.rows(), scratch.entries()), (3000, 2000));
    while now() <= soon {
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut forget = |database: &mut Database, numbers: Range<u64>| {
        let done = database.transact(|batch| {
            for number in numbers {
                batch.bind(key(number), &record(number, until))?;
            }
            batch.forget_outlived(&mut upkeep, now())
        });
        done.unwrap();
    };
    forget(&mut database, 0..0);
    assert_eq!(scratch.rows(), 3000, "with nothing kept nothing goes");
    forget(&mut database, 5000..5275);
    assert_eq!(scratch.rows(), 3275 - 100, "1,100 were looked at");
    forget(&mut database, 5275..6250);
    assert_eq!(scratch.rows(), 1000 + 1250);
    let mut upkeep = Upkeep::default();
    index(&mut database, &mut upkeep);
    assert_eq!(scratch.entries(), 2250, "and their entries with those that come into the index");
    assert_eq!(found(&scratch.path(), 0..7000).len(), 2250);
}

#[test]
fn a_record_that_lives_longer_is_not_lost_with_its_entry() {
    let scratch = Scratch::new();
    let (mut database, mut upkeep) = (scratch.open(), Upkeep::default());
    let soon = now().plus(Duration::from_millis(200));
    keep(&mut database, 0..1100, soon);
    index(&mut database, &mut upkeep);
    keep(&mut database, 0..550, now().plus(HOUR));
    while now() <= soon {
        std::thread::sleep(Duration::from_millis(10));
    }
    keep(&mut database, 2000..4000, now().plus(HOUR));
    index(&mut database, &mut upkeep);
    assert_eq!(scratch.entries(), 2550);
    let forget = |batch: &mut Batch<'_>| {
        batch.bind(key(4000), &record(4000, now().plus(HOUR)))?;
        batch.kept = 5000;
        batch.forget_outlived(&mut upkeep, now())
    };
    database.transact(forget).unwrap();
    assert_eq!(found(&scratch.path(), 0..1100), (0..550).collect::<Vec<_>>());
}

#[test]
fn a_grant_is_revoked_with_all_that_came_from_it() {
    let scratch = Scratch::new();
    let mut database = scratch.open();
    let until = now().plus(HOUR);
    keep(&mut database, 0..10, until);
    let revoked = || {
        let reader = Reader::open(&scratch.path()).unwrap();
        let revoked = |number: &u64| reader.record(key(*number)).unwrap().unwrap().revoked;
        (0..10).filter(revoked).collect::<Vec<_>>()
    };
    let client = Some("client");
    let no = |batch: &mut Batch<'_>| batch.revoke(key(3), Some("another"));
    assert_eq!(database.transact(no), Ok(false));
    assert_eq!(database.transact(|batch| batch.revoke(key(11), client)), Ok(false));
    assert_eq!(revoked(), [] as [u64; 0]);
    assert_eq!(database.transact(|batch| batch.revoke(key(3), client)), Ok(true));
    assert_eq!(revoked(), [2, 3]);
    assert_eq!(database.transact(|batch| batch.revoke(key(4), client)), Ok(true));
    assert_eq!(revoked(), [2, 3, 4], "an access token alone");
    assert_eq!(database.transact(|batch| batch.is_revoked(key(2))), Ok(true));
    let back = |batch: &mut Batch<'_>| batch.may_bind(key(3), &record(3, until), now());
    assert_eq!(database.transact(back), Err(Fault::Conflict));
}

#[test]
fn a_revoked_grant_is_known_until_all_that_came_from_it_is_outlived() {
    let scratch = Scratch::new();
    let (mut database, mut upkeep) = (scratch.open(), Upkeep::default());
    let last = now().plus(HOUR);
    // The other record of the family ends later than the one by which it is revoked.
    let early = now().plus(Duration::from_secs(1));
    database.transact(|batch| batch.bind(key(3), &record(3, early))).unwrap();
    keep(&mut database, 2..3, last);
    database.transact(|batch| batch.revoke(key(3), Some("client"))).unwrap();
    let end = scratch.count("SELECT expires FROM revoked_grants");
    assert!(end >= last.millis());
    let mut forget = |at: UnixTime| {
        let done = database.transact(|batch| {
            batch.kept = 1;
            batch.forget_outlived(&mut upkeep, at)
        });
        done.unwrap();
        scratch.count("SELECT count(*) FROM revoked_grants")
    };
    assert_eq!(forget(UnixTime::from_millis(end)), 1);
    assert_eq!(forget(UnixTime::from_millis(end + 1)), 0);
}

#[test]
fn the_records_of_the_layout_before_are_found() {
    let scratch = Scratch::new();
    let until = now().plus(HOUR);
    let old = Connection::open(scratch.path()).unwrap();
    old.pragma_update(None, "application_id", super::super::APPLICATION).unwrap();
    MIGRATIONS.iter().take(2).for_each(|sql| old.execute_batch(sql).unwrap());
    old.pragma_update(None, "user_version", 2).unwrap();
    for number in 0..20 {
        let record = record(number, until);
        let sql = "INSERT INTO authority_tokens VALUES (?1, ?2, NULL, ?3, ?4, NULL, NULL, ?5, ?6,
                                                        NULL, ?7)";
        let (kind, jkt) = (record.kind.name(), record.cnf_jkt.unwrap().0.0);
        let row = params![
            key(number).0.0,
            kind,
            record.client,
            jkt,
            until.millis(),
            record.family,
            number == 5
        ];
        old.execute(sql, row).unwrap();
    }
    drop(old);
    let mut database = scratch.open();
    assert_eq!(found(&scratch.path(), 0..30), (0..20).collect::<Vec<_>>());
    let reader = Reader::open(&scratch.path()).unwrap();
    assert!(reader.record(key(5)).unwrap().unwrap().revoked);
    keep(&mut database, 10..12, until);
    assert_eq!((scratch.rows(), scratch.entries()), (20, 20));
    database.transact(|batch| batch.revoke(key(7), Some("client"))).unwrap();
    assert!(scratch.count("SELECT expires FROM revoked_grants") >= until.millis());
}
