//! What can be done within one transaction.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::Fault;
use crate::policy::audit::{BEGINNING, Checkpoint, Draft, Head, Kind};
use crate::policy::capsule::node::{Node, NodeId};
use crate::policy::digest::Sha256;
use crate::policy::time::UnixTime;

/// Quarantines older than this are counted by no brake.
const KEPT_QUARANTINES_MS: i64 = 31 * 24 * 3600 * 1000;

/// One transaction, with the head of the audit chain in it.
#[derive(Debug)]
pub struct Batch<'a> {
    connection: &'a Connection,
    head: Head,
    /// How often something was written.
    writes: u64,
}

/// A node's record with the revision that a change is compared with.
#[derive(Clone, Debug)]
pub struct Row {
    /// The record.
    pub node: Node,
    /// Goes up by one with each change.
    pub revision: i64,
}

impl<'a> Batch<'a> {
    pub(super) fn begin(connection: &'a Connection) -> Result<Self, Fault> {
        Ok(Self { connection, head: head(connection)?, writes: 0 })
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
        let sql = "INSERT INTO nodes (id, status, revision, record) VALUES (?1, ?2, 1, ?3)
                   ON CONFLICT DO NOTHING";
        let mut statement = self.connection.prepare_cached(sql)?;
        let done = statement.execute(params![node.id.as_str(), node.status.name(), text(node)?])?;
        self.writes += 1;
        if done == 1 { Ok(()) } else { Err(Fault::Conflict) }
    }

    /// Puts a record in the place of the one with `revision`.
    ///
    /// # Errors
    /// [`Fault::Conflict`] where that is no longer the one that is there.
    pub fn update(&mut self, node: &Node, revision: i64) -> Result<(), Fault> {
        // A status that stays is not written: SQLite would take its index apart and put it together.
        let same = "UPDATE nodes SET record = ?3, revision = revision + 1
                    WHERE id = ?1 AND revision = ?4 AND status = ?2";
        let other = "UPDATE nodes SET status = ?2, record = ?3, revision = revision + 1
                     WHERE id = ?1 AND revision = ?4";
        let (id, status, text) = (node.id.as_str(), node.status.name(), text(node)?);
        let mut done = 0;
        for sql in [same, other] {
            if done == 0 {
                let mut statement = self.connection.prepare_cached(sql)?;
                done = statement.execute(params![id, status, text, revision])?;
            }
        }
        self.writes += 1;
        if done == 1 { Ok(()) } else { Err(Fault::Conflict) }
    }

    /// Takes a record out.
    ///
    /// # Errors
    /// [`Fault::Conflict`] where the one with `revision` is no longer there.
    pub fn remove(&mut self, id: &NodeId, revision: i64) -> Result<(), Fault> {
        let sql = "DELETE FROM nodes WHERE id = ?1 AND revision = ?2";
        let done = self.connection.execute(sql, params![id.as_str(), revision])?;
        self.writes += 1;
        if done == 1 { Ok(()) } else { Err(Fault::Conflict) }
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
        let sql = "SELECT count(*) FROM quarantines WHERE at > ?1";
        let mut statement = self.connection.prepare_cached(sql)?;
        Ok(statement.query_row([since.millis()], |row| row.get(0))?)
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
    /// last one.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn checkpoint(
        &mut self,
        at: UnixTime,
        sign: impl FnOnce(&Checkpoint) -> Option<String>,
    ) -> Result<(), Fault> {
        if self.last_checkpoint()? == self.head.seq {
            return Ok(());
        }
        let checkpoint =
            Checkpoint { chain: self.chain()?, seq: self.head.seq, hash: self.head.hash, at };
        let Some(jws) = sign(&checkpoint) else {
            return Err(Fault::Failed("the checkpoint cannot be signed".into()));
        };
        let data = serde_json::json!({ "checkpoint": checkpoint, "jws": jws });
        let id = format!("checkpoint-{}", self.head.seq);
        self.append(&Draft::new(Kind::Checkpoint, at, &id, None, &data))
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
        let sql = "SELECT value FROM meta WHERE name = 'chain'";
        Ok(self.connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
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

fn text(node: &Node) -> Result<String, Fault> {
    serde_json::to_string(node).map_err(|_| Fault::Malformed)
}

fn head(connection: &Connection) -> Result<Head, Fault> {
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

/// A stored record; one that is not to be read, or is another node's, is [`Fault::Malformed`].
pub(super) fn node(connection: &Connection, id: &NodeId) -> Result<Option<Row>, Fault> {
    let sql = "SELECT revision, record, status FROM nodes WHERE id = ?1";
    let found = connection
        .prepare_cached(sql)?
        .query_row([id.as_str()], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?))
        })
        .optional()?;
    let Some((revision, record, status)) = found else { return Ok(None) };
    let node = read(&record)?;
    if node.id != *id || node.status.name() != status {
        return Err(Fault::Malformed);
    }
    Ok(Some(Row { node, revision }))
}

/// The record of `id`, in the time that one takes which is there: where there is none, its neighbour
/// in the order of ids is read in its place.
pub(super) fn node_in_even_time(
    connection: &Connection,
    id: &NodeId,
) -> Result<Option<Row>, Fault> {
    let sql = "SELECT id, revision, record, status FROM nodes
               WHERE id = coalesce((SELECT min(id) FROM nodes WHERE id >= ?1),
                                   (SELECT max(id) FROM nodes))";
    let found = connection
        .prepare_cached(sql)?
        .query_row([id.as_str()], |row| {
            let (name, status) = (row.get::<_, String>(0)?, row.get::<_, String>(3)?);
            Ok((name, row.get::<_, i64>(1)?, row.get::<_, String>(2)?, status))
        })
        .optional()?;
    let Some((name, revision, record, status)) = found else { return Ok(None) };
    // What is wrong with a neighbour is nothing of this node's.
    let node = std::hint::black_box(read(&record));
    if name != id.as_str() {
        return Ok(None);
    }
    let node = node?;
    if node.id != *id || node.status.name() != status {
        return Err(Fault::Malformed);
    }
    Ok(Some(Row { node, revision }))
}

/// Reads a stored record. One without a secret's hash is none: it could be matched by nobody.
pub(super) fn read(record: &str) -> Result<Node, Fault> {
    let node: Node = serde_json::from_str(record).map_err(|_| Fault::Malformed)?;
    if node.secret.is_none() || node.oldest_key_version > node.key_version {
        return Err(Fault::Malformed);
    }
    Ok(node)
}
