//! The embedded store: one SQLite file with the nodes and the audit chain.
//!
//! WAL with full sync: what was committed survives a power cut. One process writes at a time, by
//! SQLite's own lock, so that the edge, a second one during an upgrade and the commands may all have
//! it open. Within a process [`writer`] gathers what is wanted at one time into one transaction.

#![expect(clippy::disallowed_methods, reason = "a store has threads and files")]

pub mod batch;
mod bindings;
pub mod copies;
mod marks;
pub mod reader;
mod rotation;
pub mod rows;
mod tail;
pub mod tombstones;
pub mod writer;

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, TransactionBehavior};

use self::batch::Batch;
use self::tail::Tail;
use crate::policy::audit::{Checkpoint, Draft, Kind};
use crate::store::clock::now;
use crate::store::directory_of;
use crate::store::redis;

/// How long a transaction waits for another process's.
const BUSY: Duration = Duration::from_secs(5);
/// `PRAGMA application_id`: "Hldf".
const APPLICATION: i64 = 0x486c_6466;
/// The layout that this build reads and writes.
const LAYOUT: i64 = 4;
/// Pages of the log that are moved into the database at once: 16 MiB. Fewer would make more commits
/// wait for it.
const CHECKPOINT_PAGES: i64 = 4096;
/// KiB of pages that the connection that writes keeps. A transaction of a thousand decisions changes
/// some four thousand pages: what does not fit is written to the log before its time, read again and
/// written once more.
const CACHE_KIB: i64 = 65_536;

/// From an empty file to each layout in turn.
const MIGRATIONS: [&str; 4] = [
    "
    CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE nodes (
        id TEXT PRIMARY KEY,
        status TEXT NOT NULL,
        revision INTEGER NOT NULL,
        secret BLOB NOT NULL,
        record TEXT NOT NULL
    ) STRICT;
    CREATE TABLE removed (id TEXT PRIMARY KEY, key_version INTEGER NOT NULL) STRICT;
    CREATE INDEX nodes_by_status ON nodes (status);
    CREATE TABLE quarantines (at INTEGER NOT NULL, node TEXT NOT NULL) STRICT;
    CREATE INDEX quarantines_by_time ON quarantines (at);
    CREATE TABLE audit (
        seq INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        node TEXT,
        hash BLOB NOT NULL,
        line TEXT NOT NULL
    ) STRICT;
    CREATE INDEX audit_by_id ON audit (id);
    CREATE INDEX audit_checkpoints ON audit (seq) WHERE kind = 'checkpoint';
",
    "
    CREATE TABLE authority_tokens (
        key BLOB PRIMARY KEY NOT NULL,
        kind TEXT NOT NULL,
        tenant TEXT,
        client TEXT,
        cnf_jkt BLOB,
        sender_certificate BLOB,
        scope TEXT,
        expires INTEGER NOT NULL,
        family TEXT NOT NULL,
        bypass TEXT,
        revoked INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX authority_tokens_by_end ON authority_tokens (expires);
    CREATE INDEX authority_tokens_by_family ON authority_tokens (family);
    CREATE TABLE sender_certificates (
        x5t BLOB PRIMARY KEY,
        der BLOB NOT NULL,
        expires INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX sender_certificates_by_end ON sender_certificates (expires);
",
    "
    -- Keys are random, and an index of them is written all over: this one lags behind.
    ALTER TABLE authority_tokens RENAME TO authority_tokens_2;
    CREATE TABLE authority_tokens (
        id INTEGER PRIMARY KEY,
        key BLOB NOT NULL,
        kind TEXT NOT NULL,
        tenant TEXT,
        client TEXT,
        cnf_jkt BLOB,
        sender_certificate BLOB,
        scope TEXT,
        expires INTEGER NOT NULL,
        family TEXT NOT NULL,
        bypass TEXT,
        revoked INTEGER NOT NULL
    ) STRICT;
    INSERT INTO authority_tokens SELECT rowid, * FROM authority_tokens_2 ORDER BY rowid;
    DROP TABLE authority_tokens_2;
    CREATE TABLE authority_token_keys (
        key BLOB PRIMARY KEY,
        id INTEGER NOT NULL,
        expires INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    INSERT INTO authority_token_keys SELECT key, id, expires FROM authority_tokens ORDER BY key;
    INSERT INTO meta (name, value)
        SELECT 'tokens_indexed', CAST(ifnull(max(id), 0) AS TEXT) FROM authority_tokens;
    -- Nor an index by family: a grant that is revoked is looked for with each record that is read, and
    -- is known until the last record of all that there were is outlived.
    CREATE TABLE revoked_grants (family TEXT PRIMARY KEY, expires INTEGER NOT NULL)
        STRICT, WITHOUT ROWID;
    CREATE INDEX revoked_grants_by_end ON revoked_grants (expires);
    INSERT INTO meta (name, value)
        SELECT 'tokens_end', CAST(ifnull(max(expires), 0) AS TEXT) FROM authority_tokens;
",
    "
    CREATE TABLE tombstones (key BLOB PRIMARY KEY NOT NULL, expires INTEGER NOT NULL)
        STRICT, WITHOUT ROWID;
    CREATE INDEX tombstones_by_end ON tombstones (expires);
",
];

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be made or read.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: String,
        /// What the system says.
        error: io::Error,
    },
    /// SQLite cannot use it.
    #[error("{path}: {error}")]
    Sqlite {
        /// The file.
        path: String,
        /// What SQLite says.
        error: rusqlite::Error,
    },
    /// A database of something else.
    #[error("{0} is a database, but not one of Holdfast's")]
    Foreign(String),
    /// Of a later version.
    #[error("{path} has layout {found}, this build knows {LAYOUT}: run the newer version")]
    Newer {
        /// The file.
        path: String,
        /// Its layout.
        found: i64,
    },
    /// Older than it was.
    #[error(
        "{path} is older than {mark} says: line {seq} of its audit log is not there, or another one. It \
         was restored, or another file was put in its place, and what happened since is not in it \
         (quarantines, revocations). To go on from here all the same, remove {mark}"
    )]
    Behind {
        /// The file.
        path: String,
        /// The mark beside it.
        mark: String,
        /// The line.
        seq: u64,
    },
    /// Shorter than it says, or its last line is not the one that was written.
    #[error("{path} is damaged: {what}; restore it from a backup")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        what: String,
    },
}

/// Why something was not done. Nothing of it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Too much is waiting.
    #[error("too much is waiting to be written")]
    Busy,
    /// Nothing has come of it in time.
    #[error("the store does not answer: the disk under it may stand still")]
    Late,
    /// SQLite failed, or the disk under it.
    #[error("the store failed: {0}")]
    Failed(String),
    /// A stored record cannot be read.
    #[error("the stored record of a node cannot be read")]
    Malformed,
    /// The record was changed by somebody else meanwhile.
    #[error("the record was changed meanwhile")]
    Conflict,
    /// The file was moved away or replaced.
    #[error("the store's file was moved away or replaced")]
    Replaced,
    /// The writer has ended.
    #[error("the store is closed")]
    Closed,
    /// The shared store cannot be reached, is not to be acted on yet, or did not answer: then nobody
    /// knows what it did.
    #[error("the shared store is not to be had")]
    Down,
    /// The shared store has forgotten what was seen in it.
    #[error(
        "the shared store has lost changes to nodes: it was restored, wiped or taken over by another \
         server. Look at the nodes and at the audit logs, revoke again what was revoked, then run \
         `holdfast node confirm`"
    )]
    Behind,
    /// Nothing is remembered here that the shared store could be held against, and nobody who could has.
    #[error(
        "this edge's own file is new, and no edge that remembers the shared store has looked at it since \
         it was started or taken over. Start one that does, or look at the nodes and at the audit logs, \
         then run `holdfast node confirm`"
    )]
    Unvouched,
}

impl Fault {
    /// Whether somebody has to look before anything goes on.
    #[must_use]
    pub fn is_doubt(&self) -> bool {
        matches!(self, Self::Behind | Self::Unvouched)
    }
}

impl From<redis::Fault> for Fault {
    fn from(fault: redis::Fault) -> Self {
        match fault {
            redis::Fault::Down => Self::Down,
            redis::Fault::Full => Self::Failed("the shared store is full".to_owned()),
        }
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        // Of a value SQLite quotes nothing but its type.
        Self::Failed(error.to_string())
    }
}

/// Which file a connection has open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

fn file_id(path: &Path) -> io::Result<FileId> {
    let metadata = path.metadata()?;
    Ok(FileId { device: metadata.dev(), inode: metadata.ino() })
}

/// One connection that writes.
#[derive(Debug)]
pub struct Database {
    path: PathBuf,
    file: FileId,
    connection: Connection,
    tail: Arc<Tail>,
}

impl Database {
    /// Opens the file at `path`, or makes it, readable for its owner only, and brings it to the
    /// current layout.
    ///
    /// # Errors
    /// [`OpenError`]; the file is then as it was.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let name = || path.display().to_string();
        let failed = |error| OpenError::Io { path: name(), error };
        let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        match created {
            Ok(file) => {
                // The name must survive a power cut as well as what will be in the file.
                file.sync_all().and_then(|()| sync_directory(path)).map_err(failed)?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(error)),
        }
        let connection = connect(path)?;
        let cached = connection.pragma_update(None, "cache_size", -CACHE_KIB);
        cached.map_err(|error| OpenError::Sqlite { path: name(), error })?;
        let file = file_id(path).map_err(failed)?;
        let mut database = Self { path: path.to_owned(), file, connection, tail: Arc::default() };
        database.migrate()?;
        database.look_over()?;
        database.is_not_behind()?;
        Ok(database)
    }

    fn migrate(&mut self) -> Result<(), OpenError> {
        let name = self.path.display().to_string();
        let wrong = |error| OpenError::Sqlite { path: name.clone(), error };
        let behaviour = TransactionBehavior::Immediate;
        let transaction = self.connection.transaction_with_behavior(behaviour).map_err(wrong)?;
        let found = pragma(&transaction, "user_version").map_err(wrong)?;
        if found > LAYOUT {
            return Err(OpenError::Newer { path: name, found });
        }
        let done = usize::try_from(found).unwrap_or_default();
        for migration in MIGRATIONS.iter().skip(done) {
            transaction.execute_batch(migration).map_err(wrong)?;
        }
        if found < LAYOUT {
            transaction.pragma_update(None, "application_id", APPLICATION).map_err(wrong)?;
            transaction.pragma_update(None, "user_version", LAYOUT).map_err(wrong)?;
        }
        transaction.commit().map_err(wrong)?;
        let path = name.clone();
        self.begin_chain().map_err(|fault| OpenError::Damaged { path, what: fault.to_string() })
    }

    /// A chain begins with its id, which no other has.
    fn begin_chain(&mut self) -> Result<(), Fault> {
        self.transact(|batch| {
            if batch.head().seq > 0 {
                return Ok(());
            }
            if batch.has_begun()? {
                return Err(Fault::Failed("the audit log is gone".to_owned()));
            }
            let mut id = [0; 16];
            aws_lc_rs::rand::fill(&mut id).map_err(|_| Fault::Failed("no randomness".into()))?;
            let id = format!("{:032x}", u128::from_be_bytes(id));
            batch.set_chain(&id)?;
            let data = serde_json::json!({ "chain": id });
            batch.append(&Draft::new(Kind::Begin, now(), &id, None, &data))
        })
    }

    /// Whether the file is as long as it says, and its last line is what was written.
    fn look_over(&mut self) -> Result<(), OpenError> {
        let path = self.path.display().to_string();
        let damaged = |what: String| OpenError::Damaged { path: path.clone(), what };
        let looked = self.transact(|batch| batch.check_head());
        looked.map_err(|fault| damaged(fault.to_string()))?;
        let nodes = self.connection.query_row("SELECT count(*) FROM nodes", [], |row| row.get(0));
        let _: i64 = nodes.map_err(|error| damaged(error.to_string()))?;
        Ok(())
    }

    /// Whether the last checkpoint that was marked beside the file is in it.
    fn is_not_behind(&self) -> Result<(), OpenError> {
        let mark = mark(&self.path);
        let (path, name) = (self.path.display().to_string(), mark.display().to_string());
        let text = match std::fs::read(&mark) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(OpenError::Io { path: name, error }),
        };
        let Ok(head) = serde_json::from_slice::<Checkpoint>(&text) else {
            let what = format!("{name} cannot be read");
            return Err(OpenError::Damaged { path, what });
        };
        let sql = "SELECT hash FROM audit WHERE seq = ?1";
        let seq = i64::try_from(head.seq).unwrap_or(i64::MAX);
        let found = self.connection.query_row(sql, [seq], |row| row.get::<_, [u8; 32]>(0));
        let found =
            found.optional().map_err(|error| OpenError::Sqlite { path: path.clone(), error })?;
        let rotated = rotation::base(&self.connection);
        let rotated = rotated
            .map_err(|fault| OpenError::Damaged { path: path.clone(), what: fault.to_string() });
        // What was moved out of it has been in it.
        if found == Some(head.hash.0) || rotated?.seq >= head.seq {
            Ok(())
        } else {
            Err(OpenError::Behind { path, mark: name, seq: head.seq })
        }
    }

    /// Marks a checkpoint beside the file.
    ///
    /// # Errors
    /// What the system says.
    fn mark(&self, head: &Checkpoint) -> io::Result<()> {
        let (mark, text) = (mark(&self.path), serde_json::to_vec(head)?);
        // Of this process alone: during an upgrade two have the file open.
        let beside = mark.with_extension(format!("mark-new-{}", std::process::id()));
        let mut file = OpenOptions::new();
        let file = file.write(true).create(true).truncate(true).mode(0o600).open(&beside);
        file.and_then(|mut file| file.write_all(&text))?;
        std::fs::rename(&beside, &mark)
    }

    /// Runs `work` in a transaction that is durable when this returns `Ok`.
    ///
    /// # Errors
    /// [`Fault`]; then nothing of it was done.
    pub fn transact<T>(
        &mut self,
        work: impl FnOnce(&mut Batch<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut batch = Batch::begin(&transaction, &self.tail)?;
        let value = work(&mut batch)?;
        // A file that was moved away goes on taking writes, and nobody would ever read them.
        if file_id(&self.path).ok() != Some(self.file) {
            return Err(Fault::Replaced);
        }
        let fresh = batch.fresh.rows;
        transaction.commit()?;
        self.tail.add(fresh);
        Ok(value)
    }
}

/// Where the last checkpoint is marked.
fn mark(path: &Path) -> PathBuf {
    path.with_extension("mark")
}

/// A connection with the pragmas that all have.
fn connect(path: &Path) -> Result<Connection, OpenError> {
    let wrong = |error| OpenError::Sqlite { path: path.display().to_string(), error };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(wrong)?;
    connection.busy_timeout(BUSY).map_err(wrong)?;
    if !is_ours(&connection).map_err(wrong)? {
        return Err(OpenError::Foreign(path.display().to_string()));
    }
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
        .map_err(wrong)?;
    if !mode.eq_ignore_ascii_case("wal") {
        let what = format!("the file system allows no write-ahead log (journal_mode is {mode})");
        return Err(OpenError::Damaged { path: path.display().to_string(), what });
    }
    for (pragma, value) in [("synchronous", 2), ("wal_autocheckpoint", CHECKPOINT_PAGES)] {
        connection.pragma_update(None, pragma, value).map_err(wrong)?;
    }
    connection.pragma_update(None, "trusted_schema", false).map_err(wrong)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

/// Whether it is one of ours, or empty. To ask changes nothing.
fn is_ours(connection: &Connection) -> rusqlite::Result<bool> {
    let application = pragma(connection, "application_id")?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let empty = tables == 0 && application == 0 && pragma(connection, "user_version")? == 0;
    Ok(application == APPLICATION || empty)
}

fn pragma(connection: &Connection, name: &str) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    std::fs::File::open(directory_of(path))?.sync_all()
}

#[cfg(test)]
mod tests;
