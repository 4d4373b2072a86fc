//! The oldest lines of the audit log, once they are in a file: taken out, a few at a time.
//!
//! The row `audit_base` of `meta` has the last line that was moved out: the chain in the store begins
//! after it. It is set in the transaction that writes the line about it, and only then are rows removed;
//! whoever is cut off meanwhile leaves rows that do not count any more.

use rusqlite::{Connection, OptionalExtension as _};

use super::Fault;
use super::batch::Batch;
use super::reader::Reader;
use crate::policy::audit::{Draft, Head};
use crate::policy::digest::Sha256;
use crate::policy::time::UnixTime;

/// Rows that are removed in one transaction: the edge waits for it.
const ROWS: i64 = 2000;

impl Batch<'_> {
    /// The last line that was moved out.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn audit_base(&self) -> Result<Head, Fault> {
        base(self.connection)
    }

    /// Has the chain begin after `last` instead of after `base`, and writes `draft`, which says so.
    ///
    /// # Errors
    /// [`Fault::Conflict`] where the chain does not begin after `base` or has no such line.
    pub fn rotate(&mut self, base: Head, last: Head, draft: &Draft) -> Result<(), Fault> {
        if self.audit_base()? != base || last.seq <= base.seq || last.seq >= self.head().seq {
            return Err(Fault::Conflict);
        }
        if line_hash(self.connection, last.seq)? != Some(last.hash) {
            return Err(Fault::Conflict);
        }
        self.append(draft)?;
        let sql = "INSERT INTO meta (name, value) VALUES ('audit_base', ?1)
                   ON CONFLICT DO UPDATE SET value = excluded.value";
        let text = serde_json::to_string(&last).map_err(|_| Fault::Malformed)?;
        self.connection.execute(sql, [text])?;
        // The next file says what it follows: the checkpoint that this one ends with.
        let sql = "INSERT INTO meta (name, value)
                   SELECT 'audit_base_line', line FROM audit WHERE seq = ?1
                   ON CONFLICT DO UPDATE SET value = excluded.value";
        self.connection.execute(sql, [i64::try_from(last.seq).unwrap_or(i64::MAX)])?;
        self.writes += 1;
        Ok(())
    }

    /// Removes some of the rows that were moved out. How many.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn remove_rotated(&mut self) -> Result<usize, Fault> {
        let base = i64::try_from(self.audit_base()?.seq).unwrap_or(i64::MAX);
        let sql = "DELETE FROM audit WHERE seq IN
                   (SELECT seq FROM audit WHERE seq <= ?1 ORDER BY seq LIMIT ?2)";
        let removed = self.connection.execute(sql, [base, ROWS])?;
        self.writes += 1;
        Ok(removed)
    }
}

impl Reader {
    /// The last line that was moved out: the chain in the store begins after it.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn audit_base(&self) -> Result<Head, Fault> {
        base(&self.connection)
    }

    /// The SHA-256 of a line, where it is in the store.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn line_hash(&self, seq: u64) -> Result<Option<Sha256>, Fault> {
        line_hash(&self.connection, seq)
    }

    /// The number of the first line that is not older than `since`.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn first_since(&self, since: UnixTime) -> Result<Option<u64>, Fault> {
        self.number("SELECT min(seq) FROM audit WHERE seq > ?1 AND at >= ?2", since)
    }

    /// The number of the last line that is older than `until`.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn last_before(&self, until: UnixTime) -> Result<Option<u64>, Fault> {
        self.number("SELECT max(seq) FROM audit WHERE seq > ?1 AND at < ?2", until)
    }

    /// The last checkpoint that is older than `until` and not the newest.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn last_closed(&self, until: UnixTime) -> Result<Option<u64>, Fault> {
        let sql = "SELECT max(seq) FROM audit WHERE kind = 'checkpoint' AND seq > ?1 AND at < ?2
                   AND seq < (SELECT max(seq) FROM audit WHERE kind = 'checkpoint')";
        self.number(sql, until)
    }

    /// What `sql` finds among the lines that count; `?2` is a time.
    fn number(&self, sql: &str, at: UnixTime) -> Result<Option<u64>, Fault> {
        let base = i64::try_from(self.audit_base()?.seq).unwrap_or(i64::MAX);
        let found: Option<i64> =
            self.connection.query_row(sql, [base, at.millis()], |row| row.get(0))?;
        Ok(found.and_then(|seq| u64::try_from(seq).ok()))
    }

    /// The first checkpoint after line `seq`.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn checkpoint_after(&self, seq: u64) -> Result<Option<u64>, Fault> {
        let sql = "SELECT min(seq) FROM audit WHERE kind = 'checkpoint' AND seq > ?1";
        let seq = i64::try_from(seq).unwrap_or(i64::MAX);
        let found: Option<i64> = self.connection.query_row(sql, [seq], |row| row.get(0))?;
        Ok(found.and_then(|seq| u64::try_from(seq).ok()))
    }

    /// The last checkpoint up to line `seq`, or else the line that the chain in the store follows.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn checkpoint_up_to(&self, seq: u64) -> Result<Option<String>, Fault> {
        let sql = "SELECT line FROM audit WHERE kind = 'checkpoint' AND seq <= ?1
                   ORDER BY seq DESC LIMIT 1";
        let number = i64::try_from(seq).unwrap_or(i64::MAX);
        let found = self.connection.query_row(sql, [number], |row| row.get(0)).optional()?;
        if found.is_some() {
            return Ok(found);
        }
        let sql = "SELECT value FROM meta WHERE name = 'audit_base_line'";
        Ok(self.connection.query_row(sql, [], |row| row.get(0)).optional()?)
    }
}

pub(super) fn base(connection: &Connection) -> Result<Head, Fault> {
    let sql = "SELECT value FROM meta WHERE name = 'audit_base'";
    let text: Option<String> =
        connection.prepare_cached(sql)?.query_row([], |row| row.get(0)).optional()?;
    let head = text.map(|text| serde_json::from_str(&text).map_err(|_| Fault::Malformed));
    head.unwrap_or_else(|| Ok(Head::default()))
}

fn line_hash(connection: &Connection, seq: u64) -> Result<Option<Sha256>, Fault> {
    let sql = "SELECT hash FROM audit WHERE seq = ?1";
    let seq = i64::try_from(seq).unwrap_or(i64::MAX);
    let hash = connection.query_row(sql, [seq], |row| row.get::<_, [u8; 32]>(0)).optional()?;
    Ok(hash.map(Sha256))
}

#[cfg(test)]
mod tests {
    use super::super::{Database, now};
    use super::*;
    use crate::policy::audit::Kind;

    fn draft(id: &str) -> Draft {
        Draft::new(Kind::NodeChange, now(), id, None, &serde_json::json!({}))
    }

    #[test]
    fn rows_go_only_once_the_chain_begins_after_them() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("holdfast.db");
        let mut database = Database::open(&path).unwrap();
        let lines = |batch: &mut Batch<'_>| {
            (0..5000).try_for_each(|number: u32| batch.append(&draft(&number.to_string())))
        };
        database.transact(lines).unwrap();
        assert_eq!(database.transact(|batch| batch.remove_rotated()).unwrap(), 0);
        let reader = Reader::open(&path).unwrap();
        let at = |seq: u64| Head { seq, hash: reader.line_hash(seq).unwrap().unwrap() };
        let (nothing, last) = (Head::default(), at(4500));
        let elsewhere = Head { seq: 4500, hash: at(4499).hash };
        let head = at(reader.last().unwrap());
        // Not after a line that is another one, nor after the last, nor from where it does not begin.
        for (base, last) in [(nothing, elsewhere), (nothing, head), (at(1), last), (last, last)] {
            let done = database.transact(|batch| batch.rotate(base, last, &draft("no")));
            assert_eq!(done, Err(Fault::Conflict));
        }
        assert_eq!(reader.audit_base().unwrap(), nothing);
        database.transact(|batch| batch.rotate(nothing, last, &draft("rotated"))).unwrap();
        assert_eq!(reader.audit_base().unwrap(), last);
        let mut removed = Vec::new();
        while removed.last() != Some(&0) {
            removed.push(database.transact(|batch| batch.remove_rotated()).unwrap());
        }
        assert_eq!(removed, [2000, 2000, 500, 0]);
        let first = reader.lines(1, 1).unwrap().remove(0);
        assert_eq!(first.seq, 4501);
        last.follow(&first.line).unwrap();
        drop(database);
        // It is opened as ever, and goes on.
        let mut database = Database::open(&path).unwrap();
        database.transact(|batch| batch.append(&draft("more"))).unwrap();
        let mut head = last;
        for stored in reader.lines(4501, usize::MAX).unwrap() {
            head = head.follow(&stored.line).unwrap().0;
        }
        assert_eq!(head.seq, 5003);
    }
}
