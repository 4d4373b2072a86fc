//! Rows as records that move to another store, and back.

use rusqlite::params;

use super::Fault;
use super::batch::{self, Batch};
use super::bindings;
use super::reader::Reader;
use crate::policy::bypass::Seen;
use crate::policy::capsule::node::NodeId;
use crate::policy::certificate::SenderCertificate;
use crate::policy::digest::Sha256;
use crate::policy::grant::RecordKey;
use crate::policy::time::UnixTime;
use crate::store::nodes::Listed;
use crate::store::records::{Record, Token};

const CLEAR: &str = "
    DELETE FROM nodes;
    DELETE FROM removed;
    DELETE FROM quarantines;
    DELETE FROM authority_token_keys;
    DELETE FROM authority_tokens;
    DELETE FROM revoked_grants;
    DELETE FROM sender_certificates;
";

/// How far a reader has come.
#[derive(Clone, Debug)]
pub enum Place {
    /// At nodes, after this id.
    Nodes(String),
    /// At removed ids, after this.
    Removed(String),
    /// At quarantines, which are read at once.
    Quarantines,
    /// At records of tokens, after this row.
    Tokens(i64),
    /// At certificates, after this thumbprint.
    Certificates(Vec<u8>),
    /// At the bypass.
    Bypass,
}

impl Default for Place {
    fn default() -> Self {
        Self::Nodes(String::new())
    }
}

/// Records, and where it goes on.
type Page = (Vec<Record>, Option<Place>);

impl Reader {
    /// Some records from `place` on, about `limit` of them, without those that are outlived at `now`.
    ///
    /// # Errors
    /// [`Fault`]; [`Fault::Malformed`] where one cannot be read.
    pub fn records(&self, place: &Place, now: UnixTime, limit: usize) -> Result<Page, Fault> {
        match place {
            Place::Nodes(after) => self.node_records(after, limit),
            Place::Removed(after) => self.removed_records(after, limit),
            Place::Quarantines => Ok((self.quarantine_records()?, Some(Place::Tokens(0)))),
            Place::Tokens(after) => self.token_records(*after, now, limit),
            Place::Certificates(after) => self.certificate_records(after, now, limit),
            Place::Bypass => Ok((self.bypass()?.map(Record::Bypass).into_iter().collect(), None)),
        }
    }

    fn node_records(&self, after: &str, limit: usize) -> Result<Page, Fault> {
        let listed = self.nodes(after, None, limit)?;
        let Some((last, _)) = listed.last().cloned() else {
            return Ok((Vec::new(), Some(Place::Removed(String::new()))));
        };
        let record = |(id, _): Listed| {
            let malformed = || Fault::Failed(format!("the record of node {id} cannot be read"));
            let name = NodeId::parse(&id).map_err(|_| malformed())?;
            let row = self.node(&name).map_err(|_| malformed())?.ok_or_else(malformed)?;
            Ok(Record::Node { revision: row.revision, node: Box::new(row.node) })
        };
        let records = listed.into_iter().map(record).collect::<Result<Vec<_>, Fault>>()?;
        Ok((records, Some(Place::Nodes(last))))
    }

    fn removed_records(&self, after: &str, limit: usize) -> Result<Page, Fault> {
        let sql = "SELECT id, key_version FROM removed WHERE id > ?1 ORDER BY id LIMIT ?2";
        let mut statement = self.connection.prepare_cached(sql)?;
        let rows = statement.query_map(params![after, rows_of(limit)], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, u32>(1)?))
        })?;
        let (mut records, mut last) = (Vec::new(), None);
        for row in rows {
            let (id, key_version) = row?;
            last = Some(id.clone());
            let id = NodeId::parse(&id).map_err(|_| Fault::Malformed)?;
            records.push(Record::Removed { id, key_version });
        }
        Ok((records, Some(last.map_or(Place::Quarantines, Place::Removed))))
    }

    fn quarantine_records(&self) -> Result<Vec<Record>, Fault> {
        let sql = "SELECT at, node FROM quarantines ORDER BY at, node";
        let mut statement = self.connection.prepare_cached(sql)?;
        let rows =
            statement.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?;
        let rows: Vec<_> = rows.collect::<Result<_, _>>()?;
        numbered(rows)
    }

    fn token_records(&self, after: i64, now: UnixTime, limit: usize) -> Result<Page, Fault> {
        let sql =
            "SELECT id, key, expires FROM authority_tokens WHERE id > ?1 ORDER BY id LIMIT ?2";
        let mut statement = self.connection.prepare_cached(sql)?;
        let rows = statement.query_map(params![after, rows_of(limit)], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, i64>(2)?))
        })?;
        let (mut records, mut last) = (Vec::new(), None);
        for row in rows {
            let (place, key, expires) = row?;
            last = Some(place);
            if UnixTime::from_millis(expires) <= now {
                continue;
            }
            let key: [u8; 32] = key.try_into().map_err(|_| Fault::Malformed)?;
            let key = RecordKey(Sha256(key));
            let found = bindings::standing(&self.connection, place, key)?;
            let (record, grant_revoked) = found.ok_or(Fault::Malformed)?;
            let revoked = record.revoked;
            let token = Token::of(key, record, revoked, grant_revoked);
            records.push(Record::Token(Box::new(token)));
        }
        Ok((records, Some(last.map_or_else(|| Place::Certificates(Vec::new()), Place::Tokens))))
    }

    fn certificate_records(
        &self,
        after: &[u8],
        now: UnixTime,
        limit: usize,
    ) -> Result<Page, Fault> {
        let sql = "SELECT x5t, der, expires FROM sender_certificates WHERE x5t > ?1
                   ORDER BY x5t LIMIT ?2";
        let mut statement = self.connection.prepare_cached(sql)?;
        let rows = statement.query_map(params![after, rows_of(limit)], |row| {
            Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, i64>(2)?))
        })?;
        let (mut records, mut last) = (Vec::new(), None);
        for row in rows {
            let (x5t, der, expires) = row?;
            last = Some(x5t);
            if UnixTime::from_millis(expires) > now {
                records.push(Record::certificate(&der));
            }
        }
        Ok((records, Some(last.map_or(Place::Bypass, Place::Certificates))))
    }
}

/// A limit as SQLite takes it.
fn rows_of(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Times and nodes, in order, as records.
pub(in crate::store) fn numbered(rows: Vec<(i64, String)>) -> Result<Vec<Record>, Fault> {
    let (mut records, mut before, mut nth) = (Vec::new(), None, 0);
    for row in rows {
        nth = if before.as_ref() == Some(&row) { nth + 1 } else { 0 };
        let node = NodeId::parse(&row.1).map_err(|_| Fault::Malformed)?;
        records.push(Record::Quarantine { at: UnixTime::from_millis(row.0), node, nth });
        before = Some(row);
    }
    Ok(records)
}

impl Batch<'_> {
    /// Puts a record of another store. One that is there already must be the same, or the earlier where
    /// it is the bypass's.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn put(&mut self, record: &Record) -> Result<(), Fault> {
        self.writes += 1;
        match record {
            Record::Node { revision, node } => {
                let sql = "INSERT INTO nodes (id, status, revision, secret, record)
                           VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING";
                let mut statement = self.connection.prepare_cached(sql)?;
                let (id, status) = (node.id.as_str(), node.status.name());
                let (secret, text) = (batch::secret(node)?, batch::text(node)?);
                statement.execute(params![id, status, revision, secret, text])?;
            }
            Record::Removed { id, key_version } => {
                let sql = "INSERT INTO removed (id, key_version) VALUES (?1, ?2)
                           ON CONFLICT DO UPDATE SET key_version = max(key_version, ?2)";
                let mut statement = self.connection.prepare_cached(sql)?;
                statement.execute(params![id.as_str(), key_version])?;
            }
            Record::Quarantine { at, node, nth } => {
                let sql = "INSERT INTO quarantines (at, node) SELECT ?1, ?2
                           WHERE (SELECT count(*) FROM quarantines WHERE at = ?1 AND node = ?2) <= ?3";
                let mut statement = self.connection.prepare_cached(sql)?;
                statement.execute(params![at.millis(), node.as_str(), nth])?;
            }
            Record::Token(token) => {
                let record = token.record()?;
                self.bind(RecordKey(token.key), &record)?;
                if token.grant_revoked {
                    self.revoke_grant(&record.family)?;
                }
            }
            Record::Certificate { .. } => {
                let der = record.certificate_der()?;
                self.keep_certificate(&SenderCertificate::new(der).ok_or(Fault::Malformed)?)?;
            }
            Record::Bypass(seen) => self.put_bypass(seen)?,
        }
        Ok(())
    }

    /// Takes all records out that move to another store.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn clear(&mut self) -> Result<(), Fault> {
        self.writes += 1;
        Ok(self.connection.execute_batch(CLEAR)?)
    }

    fn put_bypass(&mut self, seen: &Seen) -> Result<(), Fault> {
        let kept = self.bypass()?;
        if kept.is_none_or(|kept| seen.since < kept.since) {
            self.set_bypass(Some(seen))
        } else {
            Ok(())
        }
    }
}
