//! In which row the record of a token is.
//!
//! Records are kept in the order in which they come, so that a transaction writes few pages. Their keys
//! are random: an index of them has another page to write for nearly every record, which costs more than
//! all else about it. So the index lags behind. The rows after the last that is in it, the tail, are found
//! by a table in memory; they go into the index many at once and in the order of their keys.
//!
//! Invariants: a row that is not in the index has a greater number than those that are, and is not taken
//! out; no number is used twice. So whoever has the file open finds by its number what another process has
//! added. A row says its key: what points to the wrong one finds nothing.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::types::{FromSql, ToSql};
use rusqlite::{Connection, OptionalExtension as _, Params, params};

use super::Fault;
use super::batch::Batch;
use crate::policy::digest::Sha256;
use crate::policy::grant::RecordKey;
use crate::policy::time::UnixTime;

/// Rows that the tail has when it goes into the index: the more, the fewer pages are written for each.
const LONG: usize = 65_536;
/// Rows that are not worth it while there is nothing else to do.
const SHORT: usize = 1024;
/// Rows that one transaction puts into the index: those that wait for it do so for milliseconds.
const STEP: usize = 1024;
/// What is looked at, for each that is put in, of what may be outlived: then that is a third of all at
/// most.
pub(super) const LOOKED_AT: usize = 4;

/// The rows that are not in the index.
#[derive(Debug, Default)]
pub(super) struct Tail(Mutex<Rows>);

#[derive(Debug, Default)]
struct Rows {
    /// The last that is known.
    last: i64,
    /// The last that is in the index, as far as is known; `None` before it was looked up.
    indexed: Option<i64>,
    by_key: HashMap<RecordKey, i64>,
}

impl Tail {
    fn rows(&self) -> MutexGuard<'_, Rows> {
        // Nothing between lock and unlock can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what was added since, by whichever process, and says what the last row is.
    fn catch_up(&self, connection: &Connection) -> Result<i64, Fault> {
        let mut rows = self.rows();
        if rows.indexed.is_none() {
            let sql = "SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'tokens_indexed'";
            let indexed = connection.query_row(sql, [], |row| row.get(0))?;
            (rows.last, rows.indexed) = (indexed, Some(indexed));
        }
        let sql = "SELECT id, key FROM authority_tokens WHERE id > ?1 ORDER BY id";
        let mut statement = connection.prepare_cached(sql)?;
        let mut added = statement.query([rows.last])?;
        while let Some(row) = added.next()? {
            let (id, key) = (row.get(0)?, row.get::<_, [u8; 32]>(1));
            rows.last = id;
            // A key that none can have belongs to no token.
            if let Ok(key) = key {
                rows.by_key.insert(RecordKey(Sha256(key)), id);
            }
        }
        Ok(rows.last)
    }

    /// The row that the record of a token is in, if there is one.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub(super) fn find(
        &self,
        connection: &Connection,
        key: RecordKey,
    ) -> Result<Option<i64>, Fault> {
        self.catch_up(connection)?;
        self.place(connection, key)
    }

    fn place(&self, connection: &Connection, key: RecordKey) -> Result<Option<i64>, Fault> {
        // In this order: a row leaves the tail when it is in the index.
        let place = self.rows().by_key.get(&key).copied();
        if place.is_some() {
            return Ok(place);
        }
        let sql = "SELECT id FROM authority_token_keys WHERE key = ?1";
        let mut statement = connection.prepare_cached(sql)?;
        Ok(statement.query_row([key.0.0], |row| row.get(0)).optional()?)
    }

    /// Takes in the rows of a transaction, once it is committed.
    pub(super) fn add(&self, fresh: HashMap<RecordKey, i64>) {
        let mut rows = self.rows();
        rows.last = fresh.values().copied().fold(rows.last, i64::max);
        rows.by_key.extend(fresh);
    }
}

/// The rows that one transaction adds.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    /// The last row there is, once it was looked up.
    last: Option<i64>,
    pub(super) rows: HashMap<RecordKey, i64>,
}

impl Batch<'_> {
    /// The row that the record of a token is in, one of this transaction's too.
    pub(super) fn place(&mut self, key: RecordKey) -> Result<Option<i64>, Fault> {
        // Before anything is added: what might come to nothing is not for the tail.
        if self.fresh.last.is_none() {
            self.fresh.last = Some(self.tail.catch_up(self.connection)?);
        }
        match self.fresh.rows.get(&key) {
            Some(place) => Ok(Some(*place)),
            None => self.tail.place(self.connection, key),
        }
    }

    /// A row that no record was ever in, for that of `key`, which [`Self::place`] has not found.
    pub(super) fn new_place(&mut self, key: RecordKey) -> i64 {
        let next = self.fresh.last.unwrap_or_default() + 1;
        self.fresh.last = Some(next);
        self.fresh.rows.insert(key, next);
        next
    }
}

/// What a process knows of the work on the index.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    under_way: Option<Move>,
    /// Where the look for outlived rows is.
    row: i64,
    /// And for outlived entries of the index.
    key: Vec<u8>,
}

/// A tail on its way into the index.
#[derive(Debug)]
struct Move {
    /// In the order of their keys.
    rows: Vec<(RecordKey, i64)>,
    done: usize,
    /// All rows up to here are among them.
    last: i64,
}

impl Upkeep {
    /// Begins to move the tail into the index where it is long enough. Whether there is something to do.
    pub(super) fn is_due(&mut self, tail: &Tail, idle: bool) -> bool {
        if self.under_way.is_none() {
            let rows = tail.rows();
            if rows.by_key.len() >= if idle { SHORT } else { LONG } {
                let mut moved: Vec<_> = rows.by_key.iter().map(|(key, id)| (*key, *id)).collect();
                let last = rows.last;
                drop(rows);
                moved.sort_unstable_by_key(|(key, _)| key.0.0);
                self.under_way = Some(Move { rows: moved, done: 0, last });
            }
        }
        self.under_way.is_some()
    }

    /// Puts some of the tail into the index, in a transaction that has kept `kept` records.
    ///
    /// # Errors
    /// [`Fault`]; then it can be done again.
    pub(super) fn step(&mut self, batch: &mut Batch<'_>, now: UnixTime) -> Result<(), Fault> {
        let Some(Move { rows, done, last }) = &mut self.under_way else { return Ok(()) };
        // Faster than the tail grows.
        let some = STEP.max(batch.kept * 2);
        // From the row itself: it may live longer than it did, and be gone.
        let sql = "INSERT OR REPLACE INTO authority_token_keys (key, id, expires)
                   SELECT key, id, expires FROM authority_tokens WHERE id = ?1 AND expires >= ?2";
        let mut statement = batch.connection.prepare_cached(sql)?;
        for (_, id) in rows.iter().skip(*done).take(some) {
            statement.execute([*id, now.millis()])?;
        }
        *done += some;
        if *done >= rows.len() {
            let sql = "UPDATE meta SET value = ?1
                       WHERE name = 'tokens_indexed' AND CAST(value AS INTEGER) < ?2";
            batch.connection.execute(sql, params![last.to_string(), *last])?;
        }
        self.forget_entries(batch, some * LOOKED_AT, now)
    }

    /// What must be done when a transaction with a [`Self::step`] in it is at its end.
    pub(super) fn stepped(&mut self, committed: bool, tail: &Tail) {
        if !committed {
            // All of it again, some time.
            self.under_way = None;
            return;
        }
        if let Some(done) = self.under_way.take_if(|it| it.done >= it.rows.len()) {
            let mut rows = tail.rows();
            rows.by_key.retain(|_, id| *id > done.last);
            rows.by_key.shrink_to(LONG);
            rows.indexed = Some(done.last);
        }
    }

    fn forget_entries(
        &mut self,
        batch: &Batch<'_>,
        most: usize,
        now: UnixTime,
    ) -> Result<(), Fault> {
        let look = "SELECT key, expires FROM authority_token_keys WHERE key > ?1 ORDER BY key";
        let take = "DELETE FROM authority_token_keys WHERE key = ?1";
        let next = forget(batch.connection, (look, [&self.key]), take, most, now)?;
        self.key = next.unwrap_or_default();
        Ok(())
    }

    /// Takes out some of the rows that are outlived, in a transaction that has kept `kept` records.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub(super) fn forget_rows(&mut self, batch: &Batch<'_>, now: UnixTime) -> Result<(), Fault> {
        let indexed = batch.tail.rows().indexed.unwrap_or_default();
        let look =
            "SELECT id, expires FROM authority_tokens WHERE id > ?1 AND id <= ?2 ORDER BY id";
        let take = "DELETE FROM authority_tokens WHERE id = ?1";
        let (from, most) = ([self.row, indexed], batch.kept * LOOKED_AT);
        let next = forget(batch.connection, (look, from), take, most, now)?;
        self.row = next.unwrap_or_default();
        Ok(())
    }
}

/// Looks at `most` rows, each with its key and its end, and takes out those that are outlived. The key to go
/// on behind; `None` at the end.
fn forget<K: FromSql + ToSql>(
    connection: &Connection,
    (look, from): (&str, impl Params),
    take: &str,
    most: usize,
    now: UnixTime,
) -> Result<Option<K>, Fault> {
    let mut statement = connection.prepare_cached(look)?;
    let rows = statement.query_map(from, |row| Ok((row.get::<_, K>(0)?, row.get::<_, i64>(1)?)))?;
    let rows: Vec<_> = rows.take(most).collect::<Result<_, _>>()?;
    let mut statement = connection.prepare_cached(take)?;
    for (key, _) in rows.iter().filter(|(_, expires)| *expires < now.millis()) {
        statement.execute([key])?;
    }
    let ended = rows.len() < most;
    Ok(rows.into_iter().next_back().filter(|_| !ended).map(|(key, _)| key))
}

#[cfg(test)]
mod tests;
