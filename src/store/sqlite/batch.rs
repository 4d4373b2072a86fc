//! What can be done within one transaction.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::Fault;
use super::tail::{Fresh, Tail};
use crate::policy::audit::{BEGINNING, Checkpoint, Draft, Head, Kind};
use crate::policy::capsule::node::{Node, NodeId};
use crate::policy::digest::Sha256;
use crate::policy::time::UnixTime;
use crate::store::nodes::{Found, Row};

/// Quarantines older than this are counted by no brake.
const KEPT_QUARANTINES_MS: i64 = 31 * 24 * 3600 * 1000;

/// One transaction, with the head of the audit chain in it.
#[derive(Debug)]
pub struct Batch<'a> {
    pub(super) connection: &'a Connection,
    head: Head,
    /// How often something was written.
    pub(super) writes: u64,
    /// Records and certificates that were kept.
    pub(super) kept: usize,
    pub(super) tail: &'a Tail,
    pub(super) fresh: Fresh,
    /// When the last of all records ends, once it was looked up.
    pub(super) tokens_end: Option<i64>,
}

impl<'a> Batch<'a> {
    pub(super) fn begin(connection: &'a Connection, tail: &'a Tail) -> Result<Self, Fault> {
        let (head, fresh) = (head(connection)?, Fresh::default());
        Ok(Self { connection, head, writes: 0, kept: 0, tail, fresh, tokens_end: None })
    }

    /// The head of the chain, with what this transaction added.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// How often something was written in this transaction so far.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// The record of `id` as it stands.
    ///
    /// # Errors
    /// [`Fault::Malformed`] for a record that cannot be read.
    pub fn node(&self, id: &NodeId) -> Result<Option<Row>, Fault> {
        node(self.connection, id)
    }

    /// Puts a record that is new.
    ///
    /// # Errors
    /// [`Fault::Conflict`] where there is one of its id.
    pub fn insert(&mut self, node: &Node) -> Result<(), Fault> {
        let sql = "INSERT INTO nodes (id, status, revision, secret, record)
                   VALUES (?1, ?2, 1, ?3, ?4) ON CONFLICT DO NOTHING";
        let mut statement = self.connection.prepare_cached(sql)?;
        let (id, status, secret) = (node.id.as_str(), node.status.name(), secret(node)?);
        let done = statement.execute(params![id, status, secret, text(node)?])?;
        self.writes += 1;
        if done == 1 { Ok(()) } else { Err(Fault::Conflict) }
    }

    /// Puts a record in the place of the one with `revision`.
    ///
    /// # Errors
    /// [`Fault::Conflict`] where that is no longer the one that is there.
    pub fn update(&mut self, node: &Node, revision: i64) -> Result<(), Fault> {
        // A status that stays is not written: SQLite would take its index apart and put it together.
        let same = "UPDATE nodes SET secret = ?3, record = ?4, revision = revision + 1
                    WHERE id = ?1 AND revision = ?5 AND status = ?2";
        let other =
            "UPDATE nodes SET status = ?2, secret = ?3, record = ?4, revision = revision + 1
                     WHERE id = ?1 AND revision = ?5";
        let (id, status, secret) = (node.id.as_str(), node.status.name(), secret(node)?);
        let text = text(node)?;
        let mut done = 0;
        for sql in [same, other] {
            if done == 0 {
                let mut statement = self.connection.prepare_cached(sql)?;
                done = statement.execute(params![id, status, secret, text, revision])?;
            }
        }
        self.writes += 1;
        if done == 1 { Ok(()) } else { Err(Fault::Conflict) }
    }

    /// Takes a record out. What versions its key had is remembered: another node of its id must not
    /// be given the same keys.
    ///
    /// # Errors
    /// [`Fault::Conflict`] where the one with the row's revision is no longer there.
    pub fn remove(&mut self, row: &Row) -> Result<(), Fault> {
        let (id, version) = (row.node.id.as_str(), row.node.key_version);
        let sql = "INSERT INTO removed (id, key_version) VALUES (?1, ?2)
                   ON CONFLICT DO UPDATE SET key_version = excluded.key_version";
        self.connection.execute(sql, params![id, version])?;
        let sql = "DELETE FROM nodes WHERE id = ?1 AND revision = ?2";
        let done = self.connection.execute(sql, params![id, row.revision])?;
        self.writes += 1;
        if done == 1 { Ok(()) } else { Err(Fault::Conflict) }
    }

    /// The last version of the key of a node that was taken out.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn removed(&self, id: &NodeId) -> Result<Option<u32>, Fault> {
        let sql = "SELECT key_version FROM removed WHERE id = ?1";
        let mut statement = self.connection.prepare_cached(sql)?;
        Ok(statement.query_row([id.as_str()], |row| row.get(0)).optional()?)
    }

    /// Writes something that means nothing: whether that is possible.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn probe(&mut self) -> Result<(), Fault> {
        let sql = "INSERT INTO meta (name, value) VALUES ('probe', ?1)
                   ON CONFLICT DO UPDATE SET value = excluded.value";
        self.connection.prepare_cached(sql)?.execute([super::now().millis().to_string()])?;
        self.writes += 1;
        Ok(())
    }

    /// Whether there was a chain before, whatever became of it.
    pub(super) fn has_begun(&self) -> Result<bool, Fault> {
        let sql = "SELECT EXISTS (SELECT 1 FROM nodes)
                   OR EXISTS (SELECT 1 FROM meta WHERE name = 'chain')";
        Ok(self.connection.query_row(sql, [], |row| row.get(0))?)
    }

    /// Notes a quarantine, for the fleet brake.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn quarantined(&mut self, id: &NodeId, at: UnixTime) -> Result<(), Fault> {
        self.writes += 1;
        let kept = at.millis().saturating_sub(KEPT_QUARANTINES_MS);
        self.connection.prepare_cached("DELETE FROM quarantines WHERE at < ?1")?.execute([kept])?;
        self.connection
            .prepare_cached("INSERT INTO quarantines (at, node) VALUES (?1, ?2)")?
            .execute(params![at.millis(), id.as_str()])?;
        Ok(())
    }

    /// Quarantines after `since`.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn quarantines(&self, since: UnixTime) -> Result<u32, Fault> {
        quarantines(self.connection, since)
    }

    /// Adds a line to the audit chain.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn append(&mut self, draft: &Draft) -> Result<(), Fault> {
        let seq = self.head.seq + 1;
        let line = draft.line(seq, &self.head.hash);
        let hash = Sha256::of(line.as_bytes());
        let sql = "INSERT INTO audit (seq, at, kind, id, node, hash, line)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        let number = i64::try_from(seq).map_err(|_| Fault::Failed("the chain is full".into()))?;
        self.connection.prepare_cached(sql)?.execute(params![
            number,
            draft.at.millis(),
            draft.kind.name(),
            draft.id,
            draft.node,
            hash.0,
            line
        ])?;
        self.head = Head { seq, hash };
        self.writes += 1;
        Ok(())
    }

    /// Adds a checkpoint of the chain so far, signed by `sign`, unless nothing was added since the
    /// last one. What was signed.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn checkpoint(
        &mut self,
        at: UnixTime,
        sign: impl FnOnce(&Checkpoint) -> Option<String>,
    ) -> Result<Option<Checkpoint>, Fault> {
        if self.last_checkpoint()? == self.head.seq {
            return Ok(None);
        }
        let checkpoint =
            Checkpoint { chain: self.chain()?, seq: self.head.seq, hash: self.head.hash, at };
        let Some(jws) = sign(&checkpoint) else {
            return Err(Fault::Failed("the checkpoint cannot be signed".into()));
        };
        let data = serde_json::json!({ "checkpoint": checkpoint, "jws": jws });
        let id = format!("checkpoint-{}", self.head.seq);
        self.append(&Draft::new(Kind::Checkpoint, at, &id, None, &data))?;
        Ok(Some(checkpoint))
    }

    /// The number of the last checkpoint's line; 0 where there is none.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn last_checkpoint(&self) -> Result<u64, Fault> {
        let sql = "SELECT coalesce(max(seq), 0) FROM audit WHERE kind = 'checkpoint'";
        let seq: i64 = self.connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
        Ok(u64::try_from(seq).unwrap_or_default())
    }

    /// The chain's id.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn chain(&self) -> Result<String, Fault> {
        chain(self.connection)
    }

    pub(super) fn set_chain(&self, id: &str) -> Result<(), Fault> {
        let sql = "INSERT INTO meta (name, value) VALUES ('chain', ?1)
                   ON CONFLICT DO UPDATE SET value = excluded.value";
        self.connection.execute(sql, [id])?;
        Ok(())
    }

    /// Whether the last line is the one whose hash was kept.
    pub(super) fn check_head(&self) -> Result<(), Fault> {
        let sql = "SELECT line FROM audit WHERE seq = ?1";
        let seq = i64::try_from(self.head.seq).unwrap_or(i64::MAX);
        let line: Option<String> =
            self.connection.query_row(sql, [seq], |row| row.get(0)).optional()?;
        let hash = line.map_or(BEGINNING, |line| Sha256::of(line.as_bytes()));
        if hash == self.head.hash {
            Ok(())
        } else {
            Err(Fault::Failed(
                "the last line of the audit log is not the one that was written".into(),
            ))
        }
    }
}

pub(in crate::store) fn text(node: &Node) -> Result<String, Fault> {
    serde_json::to_string(node).map_err(|_| Fault::Malformed)
}

pub(super) fn head(connection: &Connection) -> Result<Head, Fault> {
    let sql = "SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1";
    let found = connection
        .prepare_cached(sql)?
        .query_row([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, [u8; 32]>(1)?)))
        .optional()?;
    Ok(found.map_or_else(Head::default, |(seq, hash)| Head {
        seq: u64::try_from(seq).unwrap_or_default(),
        hash: Sha256(hash),
    }))
}

/// The hash of a node's secret, as the column has it.
pub(super) fn secret(node: &Node) -> Result<[u8; 32], Fault> {
    node.secret.map(|secret| secret.0).ok_or(Fault::Malformed)
}

/// The record of `id`, where `presented` is the hash of its secret. Nothing else of a record is
/// looked at before: who has no secret learns nothing of it, not even by how long it takes.
pub(super) fn find(
    connection: &Connection,
    id: &NodeId,
    presented: &Sha256,
) -> Result<Found, Fault> {
    let sql = "SELECT secret FROM nodes WHERE id = ?1";
    let stored = connection
        .prepare_cached(sql)?
        .query_row([id.as_str()], |row| row.get::<_, [u8; 32]>(0))
        .optional()?
        .map(Sha256);
    match (Node::is_secret(stored, presented), stored) {
        (true, _) => {
            let row = node(connection, id)?;
            Ok(row.map_or(Found::Unknown, |row| Found::Node(Box::new(row))))
        }
        (false, Some(_)) => Ok(Found::Wrong),
        (false, None) => Ok(Found::Unknown),
    }
}

pub(super) fn chain(connection: &Connection) -> Result<String, Fault> {
    let sql = "SELECT value FROM meta WHERE name = 'chain'";
    Ok(connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
}

/// A stored record; one that is not to be read, or is another node's, is [`Fault::Malformed`].
pub(super) fn quarantines(connection: &Connection, since: UnixTime) -> Result<u32, Fault> {
    let sql = "SELECT count(*) FROM quarantines WHERE at > ?1";
    let mut statement = connection.prepare_cached(sql)?;
    Ok(statement.query_row([since.millis()], |row| row.get(0))?)
}

pub(super) fn node(connection: &Connection, id: &NodeId) -> Result<Option<Row>, Fault> {
    let sql = "SELECT revision, record, status, secret FROM nodes WHERE id = ?1";
    let found = connection
        .prepare_cached(sql)?
        .query_row([id.as_str()], |row| {
            let (revision, record): (i64, String) = (row.get(0)?, row.get(1)?);
            let (status, secret): (String, [u8; 32]) = (row.get(2)?, row.get(3)?);
            Ok((revision, record, status, secret))
        })
        .optional()?;
    let Some((revision, record, status, secret)) = found else { return Ok(None) };
    let node = read(&record)?;
    if node.id != *id || node.status.name() != status || node.secret != Some(Sha256(secret)) {
        return Err(Fault::Malformed);
    }
    Ok(Some(Row { node, revision }))
}

/// Reads a stored record. One without a secret's hash is none: it could be matched by nobody.
pub(in crate::store) fn read(record: &str) -> Result<Node, Fault> {
    let node: Node = serde_json::from_str(record).map_err(|_| Fault::Malformed)?;
    if node.secret.is_none() || node.oldest_key_version > node.key_version {
        return Err(Fault::Malformed);
    }
    Ok(node)
}
