//! What this edge has revoked in a store that others share, so that it can be said there again.

use rusqlite::params;

use super::Fault;
use super::batch::Batch;
use super::reader::Reader;
use crate::policy::digest::Sha256;
use crate::policy::grant::RecordKey;
use crate::policy::time::UnixTime;

/// What was revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tombstone {
    /// One token.
    Token(RecordKey),
    /// A grant with all that came from it: the SHA-256 of its name.
    Grant(Sha256),
}

impl Tombstone {
    /// What its row is found by: a letter, then the hash.
    fn key(&self) -> Vec<u8> {
        let (letter, hash) = match self {
            Self::Token(key) => (b't', key.0),
            Self::Grant(hash) => (b'g', *hash),
        };
        [&[letter][..], &hash.0].concat()
    }

    fn of(key: &[u8]) -> Option<Self> {
        let (letter, hash) = key.split_first()?;
        let hash = Sha256(hash.try_into().ok()?);
        match letter {
            b't' => Some(Self::Token(RecordKey(hash))),
            b'g' => Some(Self::Grant(hash)),
            _ => None,
        }
    }
}

impl Batch<'_> {
    /// Remembers what was revoked, until `expires` or for as long as it is remembered already.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn remember(&mut self, tombstone: Tombstone, expires: UnixTime) -> Result<(), Fault> {
        let sql = "INSERT INTO tombstones (key, expires) VALUES (?1, ?2)
                   ON CONFLICT DO UPDATE SET expires = max(expires, excluded.expires)";
        let mut statement = self.connection.prepare_cached(sql)?;
        statement.execute(params![tombstone.key(), expires.millis()])?;
        self.writes += 1;
        self.kept += 1;
        Ok(())
    }
}

impl Reader {
    /// All that was revoked and could be shown still.
    ///
    /// # Errors
    /// [`Fault::Malformed`] where a row cannot be read.
    pub fn tombstones(&self, now: UnixTime) -> Result<Vec<(Tombstone, UnixTime)>, Fault> {
        let sql = "SELECT key, expires FROM tombstones WHERE expires >= ?1";
        let mut statement = self.connection.prepare_cached(sql)?;
        let rows = statement.query_map([now.millis()], |row| {
            Ok((row.get::<_, Vec<u8>>(0)?, UnixTime::from_millis(row.get(1)?)))
        })?;
        let mut all = Vec::new();
        for row in rows {
            let (key, expires) = row?;
            all.push((Tombstone::of(&key).ok_or(Fault::Malformed)?, expires));
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::reader::Readers;
    use super::super::writer::{CheckpointRule, Writer};
    use super::*;

    #[tokio::test]
    async fn are_remembered_until_their_end_and_never_shorter() {
        let scratch = tempfile::tempdir().unwrap();
        let rule = CheckpointRule { lines: 1000, interval: Duration::from_secs(3600) };
        let writer = Writer::start(&scratch.path().join("holdfast.db"), rule).unwrap();
        // After any clock that this runs by: what is outlived is forgotten.
        let at = |secs: i64| UnixTime::from_secs(9_000_000_000 + secs);
        let token = Tombstone::Token(RecordKey(Sha256::of(b"a")));
        // The same hash is another thing for a grant.
        let grant = Tombstone::Grant(Sha256::of(b"a"));
        let remembered = writer.transact(move |batch| {
            batch.remember(token, at(60))?;
            batch.remember(token, at(30))?;
            batch.remember(grant, at(10))
        });
        remembered.await.unwrap();
        let readers = Readers::beside(&writer).unwrap();
        let found = |now: i64| readers.read(|reader| reader.tombstones(at(now))).unwrap();
        assert_eq!(found(0), [(grant, at(10)), (token, at(60))]);
        assert_eq!(found(31), [(token, at(60))]);
        assert_eq!(found(61), []);
    }
}
