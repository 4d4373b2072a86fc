//! Reading beside the writer: nodes and lines of the audit log.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::batch;
use super::tail::Tail;
use super::writer::Writer;
use super::{Fault, OpenError, connect};
use crate::policy::capsule::node::{NodeId, Status};
use crate::policy::digest::Sha256;
use crate::policy::time::UnixTime;
use crate::store::nodes::{Found, Listed, Row};

/// Connections that are kept.
const KEPT: usize = 8;

/// Connections that only read, one for each that reads at one time.
#[derive(Debug)]
pub struct Readers {
    path: PathBuf,
    tail: Arc<Tail>,
    idle: Mutex<Vec<Reader>>,
}

impl Readers {
    /// Of the file at `path`, which must be there.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::with(path, &Arc::default())
    }

    /// Of the file that `writer` has open; what it knows of its rows is known here too.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn beside(writer: &Writer) -> Result<Self, OpenError> {
        let (path, tail) = writer.place();
        Self::with(path, tail)
    }

    fn with(path: &Path, tail: &Arc<Tail>) -> Result<Self, OpenError> {
        let first = Reader::with(path, tail)?;
        let idle = Mutex::new(vec![first]);
        Ok(Self { path: path.to_owned(), tail: Arc::clone(tail), idle })
    }

    /// Reads with a connection of its own. It may wait for the disk.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn read<T>(&self, read: impl FnOnce(&Reader) -> Result<T, Fault>) -> Result<T, Fault> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let reader = match idle {
            Some(reader) => reader,
            None => Reader::with(&self.path, &self.tail)
                .map_err(|error| Fault::Failed(error.to_string()))?,
        };
        let value = read(&reader);
        // After a fault the connection may be one to a file that is gone.
        if value.is_ok() {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < KEPT {
                idle.push(reader);
            }
        }
        value
    }
}

/// One connection that only reads.
#[derive(Debug)]
pub struct Reader {
    pub(super) connection: Connection,
    pub(super) tail: Arc<Tail>,
}

/// A line of the audit log, as it is stored, with what it can be found by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its number.
    pub seq: u64,
    /// Its text.
    pub line: String,
    /// Its SHA-256.
    pub hash: Vec<u8>,
    /// When it happened, milliseconds since the epoch.
    pub at: i64,
    /// What it is about.
    pub kind: String,
    /// Its id.
    pub id: String,
    /// Its node.
    pub node: Option<String>,
}

/// The file as it is at one time, whatever is written meanwhile. The write-ahead log grows until this ends.
#[derive(Debug)]
pub struct Snapshot<'a> {
    reader: &'a Reader,
    _ended_with_it: Transaction<'a>,
}

impl std::ops::Deref for Snapshot<'_> {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        self.reader
    }
}

impl Reader {
    /// What is there now, for reads that must fit each other.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn snapshot(&self) -> Result<Snapshot<'_>, Fault> {
        let transaction = self.connection.unchecked_transaction()?;
        // It is of the time of the first read.
        self.last()?;
        Ok(Snapshot { reader: self, _ended_with_it: transaction })
    }

    /// A connection to the file at `path`, which must be there.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::with(path, &Arc::default())
    }

    fn with(path: &Path, tail: &Arc<Tail>) -> Result<Self, OpenError> {
        let connection = connect(path)?;
        let wrong = |error| OpenError::Sqlite { path: path.display().to_string(), error };
        connection.pragma_update(None, "query_only", true).map_err(wrong)?;
        Ok(Self { connection, tail: Arc::clone(tail) })
    }

    /// The record of `id`.
    ///
    /// # Errors
    /// [`Fault::Malformed`] for one that cannot be read.
    pub fn node(&self, id: &NodeId) -> Result<Option<Row>, Fault> {
        batch::node(&self.connection, id)
    }

    /// The record of `id`, where `presented` is the hash of its secret.
    ///
    /// # Errors
    /// [`Fault::Malformed`] for one that cannot be read.
    pub fn find(&self, id: &NodeId, presented: &Sha256) -> Result<Found, Fault> {
        batch::find(&self.connection, id, presented)
    }

    /// At most `limit` records after `id` in the order of ids, those of `status` where it is given.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn nodes(
        &self,
        after: &str,
        status: Option<Status>,
        limit: usize,
    ) -> Result<Vec<Listed>, Fault> {
        let sql = "SELECT id, record FROM nodes
                   WHERE id > ?1 AND (?2 IS NULL OR status = ?2) ORDER BY id LIMIT ?3";
        let mut statement = self.connection.prepare_cached(sql)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![after, status.map(Status::name), limit], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })?;
        let listed = rows.map(|row| {
            let (id, record) = row?;
            Ok((id, batch::read(&record)))
        });
        listed.collect()
    }

    /// How many nodes have each status.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn count(&self) -> Result<Vec<(Status, u64)>, Fault> {
        let sql = "SELECT count(*) FROM nodes WHERE status = ?1";
        let mut statement = self.connection.prepare_cached(sql)?;
        let of = |status: Status| {
            let count: i64 = statement.query_row([status.name()], |row| row.get(0))?;
            Ok((status, u64::try_from(count).unwrap_or_default()))
        };
        Status::ALL.into_iter().map(of).collect()
    }

    /// Quarantines after `since`.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn quarantines(&self, since: UnixTime) -> Result<u32, Fault> {
        batch::quarantines(&self.connection, since)
    }

    /// At most `limit` lines from number `from` on.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn lines(&self, from: u64, limit: usize) -> Result<Vec<Stored>, Fault> {
        let sql = "SELECT seq, line, hash, at, kind, id, node FROM audit
                   WHERE seq >= ?1 ORDER BY seq LIMIT ?2";
        let mut statement = self.connection.prepare_cached(sql)?;
        let from = i64::try_from(from).unwrap_or(i64::MAX);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map([from, limit], stored)?;
        rows.map(|row| Ok(row?)).collect()
    }

    /// The lines with this id, oldest first: a decision has one.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn lines_of(&self, id: &str) -> Result<Vec<Stored>, Fault> {
        let sql = "SELECT seq, line, hash, at, kind, id, node FROM audit
                   WHERE id = ?1 ORDER BY seq LIMIT 100";
        let mut statement = self.connection.prepare_cached(sql)?;
        let rows = statement.query_map([id], stored)?;
        rows.map(|row| Ok(row?)).collect()
    }

    /// The number of the last line.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn last(&self) -> Result<u64, Fault> {
        let sql = "SELECT seq FROM audit ORDER BY seq DESC LIMIT 1";
        let mut statement = self.connection.prepare_cached(sql)?;
        let seq: Option<i64> = statement.query_row([], |row| row.get(0)).optional()?;
        Ok(u64::try_from(seq.unwrap_or_default()).unwrap_or_default())
    }

    /// Bytes of the file that something is in. What is free in it is used before it grows.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn used_bytes(&self) -> Result<u64, Fault> {
        let sql = "SELECT (SELECT page_count FROM pragma_page_count)
                   - (SELECT freelist_count FROM pragma_freelist_count), page_size
                   FROM pragma_page_size";
        let mut statement = self.connection.prepare_cached(sql)?;
        let found = statement.query_row([], |row| Ok((row.get::<_, i64>(0)?, row.get(1)?)))?;
        let (pages, page_bytes): (i64, i64) = found;
        Ok(u64::try_from(pages.saturating_mul(page_bytes)).unwrap_or_default())
    }

    /// The chain's id.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn chain(&self) -> Result<String, Fault> {
        batch::chain(&self.connection)
    }
}

fn stored(row: &rusqlite::Row<'_>) -> rusqlite::Result<Stored> {
    let seq: i64 = row.get(0)?;
    Ok(Stored {
        seq: u64::try_from(seq).unwrap_or_default(),
        line: row.get(1)?,
        hash: row.get(2)?,
        at: row.get(3)?,
        kind: row.get(4)?,
        id: row.get(5)?,
        node: row.get(6)?,
    })
}
