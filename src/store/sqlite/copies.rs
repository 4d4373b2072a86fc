//! Copies of the file: made while it is in use, and put in its place.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, params};

use super::batch::{self, Batch};
use super::{Database, Fault, OpenError, connect, mark, sync_directory};
use crate::policy::audit::{Draft, Head};
use crate::policy::time::UnixTime;

/// What is counted, and what moves with a store.
const COUNTED: [(&str, &str); 7] = [
    ("nodes", "nodes"),
    ("removed", "removed"),
    ("quarantines", "quarantines"),
    ("tokens", "authority_tokens"),
    ("revokedGrants", "revoked_grants"),
    ("certificates", "sender_certificates"),
    ("auditLines", "audit"),
];
/// What is let go of where records of tokens are not restored.
const OF_TOKENS: &str = "
    DELETE FROM authority_token_keys;
    DELETE FROM authority_tokens;
    DELETE FROM sender_certificates;
";

/// Copies the store at `path` into `to`, an empty file, as it is at one moment, while others use it. How
/// many there are of what.
///
/// # Errors
/// [`OpenError`].
pub fn copy(path: &Path, to: &Path) -> Result<BTreeMap<String, u64>, OpenError> {
    let wrong = |error| OpenError::Sqlite { path: path.display().to_string(), error };
    let target = to.to_str().ok_or_else(|| OpenError::Io {
        path: to.display().to_string(),
        error: io::ErrorKind::InvalidFilename.into(),
    })?;
    connect(path)?.execute("VACUUM INTO ?1", [target]).map_err(wrong)?;
    // Not a connection that makes another file of it.
    let copy = Connection::open_with_flags(to, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(wrong)?;
    counts(&copy).map_err(wrong)
}

fn counts(connection: &Connection) -> rusqlite::Result<BTreeMap<String, u64>> {
    let count = |(name, table): (&str, &str)| {
        let sql = format!("SELECT count(*) FROM {table}");
        let count: i64 = connection.query_row(&sql, [], |row| row.get(0))?;
        Ok((name.to_owned(), u64::try_from(count).unwrap_or_default()))
    };
    COUNTED.into_iter().map(count).collect()
}

/// A store that another is put in the place of.
#[derive(Clone, Debug, Default)]
pub struct Replaced {
    /// Where it is now; `None` where there was none.
    pub kept: Option<PathBuf>,
    /// The head of its audit log, where that could be read.
    pub head: Option<Head>,
    /// What its mark said, where there was one.
    pub mark: Option<String>,
}

/// What is to be put in the place of a store.
#[derive(Debug)]
pub struct Restoring<'a> {
    /// The store's file.
    pub path: &'a Path,
    /// How long the copy is.
    pub bytes: u64,
    /// Whether a store that holds something is replaced.
    pub replace: bool,
    /// Whether records of tokens are restored.
    pub tokens: bool,
    /// The time.
    pub now: UnixTime,
}

/// Why a copy was not put in a store's place.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It failed.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The system.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// There is something.
    #[error("{0} holds nodes or records of tokens: say --replace to put the backup in its place")]
    Occupied(String),
}

impl Restoring<'_> {
    /// Puts the copy that `content` holds in the store's place. All its nodes must be confirmed from then
    /// on. `line` is for its audit log. How many nodes there are, and what it took the place of.
    ///
    /// The store that was there is kept beside it. Who calls this has the store alone.
    ///
    /// # Errors
    /// [`RestoreError`]. Then the store that was there still is, unless it is its mark alone that could
    /// not be taken away: an edge does not start then, and this can be done again.
    pub fn restore(
        &self,
        content: &mut impl Read,
        line: impl FnOnce(&Replaced, u64) -> Draft,
    ) -> Result<(u64, Replaced), RestoreError> {
        let aside = format!(".replaced-{}", self.now.millis());
        let replaced = self.look(&aside)?;
        let fresh = beside(self.path, ".restored.db");
        for part in ["", "-wal", "-shm", "-journal"] {
            remove(&beside(&fresh, part))?;
        }
        let nodes = self.make(&fresh, content, |nodes| line(&replaced, nodes))?;
        if let Some(kept) = &replaced.kept {
            // What could not be read stays with its file.
            for part in ["-wal", "-shm"] {
                rename(&beside(self.path, part), &beside(kept, part))?;
            }
            fs::hard_link(self.path, kept)?;
        }
        fs::rename(&fresh, self.path)?;
        sync_directory(self.path)?;
        // Last: until then an edge would not start from what is there.
        let mark = mark(self.path);
        rename(&mark, &beside(&mark, &aside))?;
        sync_directory(self.path)?;
        Ok((nodes, replaced))
    }

    /// What is there now. All that it has written is in its file afterwards, as far as it can be read.
    fn look(&self, aside: &str) -> Result<Replaced, RestoreError> {
        let mark = match fs::read_to_string(mark(self.path)) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error.into()),
        };
        if !self.path.exists() {
            return Ok(Replaced { mark, ..Replaced::default() });
        }
        let kept = Some(beside(self.path, aside));
        let name = || self.path.display().to_string();
        let looked = connect(self.path).and_then(|connection| {
            look(&connection).map_err(|error| OpenError::Sqlite { path: name(), error })
        });
        match looked {
            Ok((false, _)) if !self.replace => Err(RestoreError::Occupied(name())),
            Ok((_, head)) => Ok(Replaced { kept, head, mark }),
            Err(error) if !self.replace => Err(error.into()),
            Err(_) => Ok(Replaced { kept, head: None, mark }),
        }
    }

    /// Makes the store at `fresh`.
    fn make(
        &self,
        fresh: &Path,
        content: &mut impl Read,
        line: impl FnOnce(u64) -> Draft,
    ) -> Result<u64, RestoreError> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(fresh)?;
        io::copy(&mut content.take(self.bytes), &mut file)?;
        file.sync_all()?;
        drop(file);
        let mut database = Database::open(fresh)?;
        let nodes = database.transact(|batch| {
            if !self.tokens {
                batch.connection.execute_batch(OF_TOKENS)?;
            }
            let nodes = batch.hold_all(self.now)?;
            batch.append(&line(nodes))?;
            Ok(nodes)
        })?;
        // Into the file itself, which is all that is put in the other's place.
        let sql = "PRAGMA journal_mode = DELETE";
        let mode: String =
            database.connection.query_row(sql, [], |row| row.get(0)).map_err(Fault::from)?;
        if mode != "delete" {
            return Err(Fault::Failed("the copy's log cannot be closed".to_owned()).into());
        }
        drop(database);
        File::open(fresh)?.sync_all()?;
        Ok(nodes)
    }
}

/// Whether there is nothing in it, and the head of its audit log.
fn look(connection: &Connection) -> rusqlite::Result<(bool, Option<Head>)> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables == 0 {
        return Ok((true, None));
    }
    let found = counts(connection)?;
    let empty = found.iter().all(|(name, count)| name == "auditLines" || *count == 0);
    Ok((empty, batch::head(connection).ok()))
}

impl Batch<'_> {
    /// Has every node wait for an operator's word. One whose record cannot be read is given nothing as it
    /// is. How many nodes there are.
    fn hold_all(&mut self, now: UnixTime) -> Result<u64, Fault> {
        let mut select = self.connection.prepare("SELECT id, record FROM nodes ORDER BY id")?;
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let rows: Vec<(String, String)> = rows.collect::<Result<_, _>>()?;
        let sql = "UPDATE nodes SET record = ?2, revision = revision + 1 WHERE id = ?1";
        let mut update = self.connection.prepare(sql)?;
        for (id, record) in &rows {
            let Ok(mut node) = batch::read(record) else { continue };
            node.restored = Some(now);
            update.execute(params![id, batch::text(&node)?])?;
        }
        Ok(rows.len() as u64)
    }
}

/// A name beside another.
fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}

fn absent(done: io::Result<()>) -> io::Result<()> {
    done.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn remove(path: &Path) -> io::Result<()> {
    absent(fs::remove_file(path))
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    absent(fs::rename(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::audit::Kind;
    use crate::policy::capsule::node::{Expectations, Node, NodeId, Status};
    use crate::policy::digest::{Jkt, Sha256};
    use crate::policy::grant::{BindingRecord, RecordKey, TokenKind};

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn node(name: &str, status: Status) -> Node {
        let id = NodeId::parse(name).unwrap();
        Node { status, ..Node::new(id, Sha256::of(b"s"), Expectations::default(), NOW) }
    }

    fn key() -> RecordKey {
        RecordKey(Sha256::of(b"token"))
    }

    fn filled(path: &Path) -> Database {
        let mut database = Database::open(path).unwrap();
        let record = BindingRecord {
            kind: TokenKind::Access,
            tenant: None,
            client: None,
            cnf_jkt: Some(Jkt(Sha256::of(b"key"))),
            sender_certificate: None,
            scope: None,
            expires: NOW,
            family: "family".to_owned(),
            bypass: None,
            revoked: false,
        };
        let filled = database.transact(|batch| {
            batch.insert(&node("a", Status::Active))?;
            batch.insert(&node("b", Status::Revoked))?;
            batch.bind(key(), &record)
        });
        filled.unwrap();
        database
    }

    fn restoring(path: &Path, bytes: u64) -> Restoring<'_> {
        Restoring { path, bytes, replace: true, tokens: false, now: NOW }
    }

    fn line(_: &Replaced, nodes: u64) -> Draft {
        Draft::new(Kind::StoreChange, NOW, "id", None, &serde_json::json!({ "nodes": nodes }))
    }

    #[test]
    fn a_copy_in_the_place_of_the_store_gives_nothing_until_it_is_confirmed() {
        let scratch = tempfile::tempdir().unwrap();
        let (path, copied) = (scratch.path().join("holdfast.db"), scratch.path().join("copy"));
        let mut database = filled(&path);
        let counts = copy(&path, &copied).unwrap();
        assert_eq!((counts["nodes"], counts["tokens"]), (2, 1));
        let since = database.transact(|batch| batch.insert(&node("c", Status::Active)));
        since.unwrap();
        fs::write(mark(&path), "a mark that the copy is older than").unwrap();
        drop(database);
        let bytes = copied.metadata().unwrap().len();
        let mut restore = restoring(&path, bytes);
        restore.replace = false;
        let done = restore.restore(&mut File::open(&copied).unwrap(), line);
        assert!(matches!(done, Err(RestoreError::Occupied(_))));
        for tokens in [false, true] {
            let restore = Restoring { tokens, ..restoring(&path, bytes) };
            let restore = Restoring {
                now: NOW.plus(std::time::Duration::from_secs(u64::from(tokens))),
                ..restore
            };
            let (nodes, replaced) =
                restore.restore(&mut File::open(&copied).unwrap(), line).unwrap();
            assert_eq!(nodes, 2);
            // What was there is there still.
            let kept = replaced.kept.unwrap();
            let there = Database::open(&kept).unwrap().transact(|batch| {
                batch.node(&NodeId::parse(if tokens { "a" } else { "c" }).unwrap())
            });
            assert!(there.unwrap().is_some());
            let mut database = Database::open(&path).unwrap();
            let read = database.transact(|batch| {
                let node = |name| batch.node(&NodeId::parse(name).unwrap());
                let nodes = [node("a")?, node("b")?, node("c")?];
                Ok((
                    nodes.map(|row| row.map(|row| row.node)),
                    batch.may_bind(key(), &unbound(), NOW.minus(std::time::Duration::from_secs(9))),
                ))
            });
            let ([a, b, c], bound) = read.unwrap();
            let (a, b) = (a.unwrap(), b.unwrap());
            assert_eq!((a.restored, a.status), (Some(restore.now), Status::Active));
            assert_eq!((b.restored, b.status), (Some(restore.now), Status::Revoked));
            assert_eq!((c, bound.is_err()), (None, tokens));
            assert!(!mark(&path).exists());
        }
    }

    /// A record that may stand in no bound one's place.
    fn unbound() -> BindingRecord {
        BindingRecord {
            kind: TokenKind::Access,
            tenant: None,
            client: None,
            cnf_jkt: None,
            sender_certificate: None,
            scope: None,
            expires: NOW,
            family: "family".to_owned(),
            bypass: None,
            revoked: false,
        }
    }

    #[test]
    fn what_cannot_be_opened_is_replaced_only_if_that_is_said() {
        let scratch = tempfile::tempdir().unwrap();
        let (path, copied) = (scratch.path().join("holdfast.db"), scratch.path().join("copy"));
        drop(filled(&path));
        copy(&path, &copied).unwrap();
        fs::write(&path, "no database at all, but long enough to be taken for one by its size")
            .unwrap();
        let bytes = copied.metadata().unwrap().len();
        let mut restore = restoring(&path, bytes);
        restore.replace = false;
        assert!(restore.restore(&mut File::open(&copied).unwrap(), line).is_err());
        restore.replace = true;
        restore.restore(&mut File::open(&copied).unwrap(), line).unwrap();
        Database::open(&path).unwrap();
    }
}
