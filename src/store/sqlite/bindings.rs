//! Records of tokens, and the certificates among them.

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::Fault;
use super::batch::Batch;
use super::reader::Reader;
use crate::policy::bypass::Seen;
use crate::policy::certificate::{LONGEST_GRACE, SenderCertificate};
use crate::policy::digest::{Jkt, Sha256, X5tS256};
use crate::policy::grant::{BindingRecord, RecordKey, TokenKind};
use crate::policy::time::UnixTime;

/// Outlived rows that one transaction takes out of a table for each that it puts in: more than one, so
/// that they do not pile up, and few enough that it does not grow.
const OUTLIVED: usize = 4;

impl Batch<'_> {
    /// Whether a record may be kept.
    ///
    /// # Errors
    /// [`Fault::Conflict`] where the token is another sender's already.
    pub fn may_bind(
        &self,
        key: RecordKey,
        record: &BindingRecord,
        now: UnixTime,
    ) -> Result<(), Fault> {
        let kept = self::record(self.connection, key)?;
        match kept.filter(|kept| now < kept.expires) {
            Some(kept) if !record.may_replace(&kept) => Err(Fault::Conflict),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether a token was revoked.
    ///
    /// # Errors
    /// [`Fault::Malformed`].
    pub fn is_revoked(&self, key: RecordKey) -> Result<bool, Fault> {
        Ok(record(self.connection, key)?.is_some_and(|kept| kept.revoked))
    }

    /// Keeps a record, in the place of the one that is there. It never ends before that one would.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn bind(&mut self, key: RecordKey, record: &BindingRecord) -> Result<(), Fault> {
        let sql = "INSERT INTO authority_tokens (key, kind, tenant, client, cnf_jkt,
                       sender_certificate, scope, expires, family, bypass, revoked)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
                   ON CONFLICT DO UPDATE SET kind = excluded.kind, tenant = excluded.tenant,
                       client = excluded.client, cnf_jkt = excluded.cnf_jkt,
                       sender_certificate = excluded.sender_certificate, scope = excluded.scope,
                       expires = max(expires, excluded.expires), family = excluded.family,
                       bypass = excluded.bypass, revoked = excluded.revoked";
        self.connection.prepare_cached(sql)?.execute(params![
            key.0.0,
            record.kind.name(),
            record.tenant,
            record.client,
            record.cnf_jkt.map(|it| it.0.0),
            record.sender_certificate.map(|it| it.0.0),
            record.scope,
            record.expires.millis(),
            record.family,
            record.bypass,
            record.revoked,
        ])?;
        self.writes += 1;
        self.kept += 1;
        Ok(())
    }

    /// Keeps a certificate for as long as another may stand in for it.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn keep_certificate(&mut self, certificate: &SenderCertificate) -> Result<(), Fault> {
        let sql = "INSERT INTO sender_certificates (x5t, der, expires) VALUES (?1, ?2, ?3)
                   ON CONFLICT DO NOTHING";
        // A successor begins before this one ends.
        let last = certificate.not_after().plus(LONGEST_GRACE);
        let (x5t, der) = (certificate.x5t().0.0, certificate.der());
        self.connection.prepare_cached(sql)?.execute(params![x5t, der, last.millis()])?;
        self.writes += 1;
        self.kept += 1;
        Ok(())
    }

    /// Revokes a token if it is `client`'s, a refresh token with all of its grant. Whether it was there.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn revoke(&mut self, key: RecordKey, client: Option<&str>) -> Result<bool, Fault> {
        let found = record(self.connection, key)?;
        let Some(found) = found.filter(|it| it.client.as_deref() == client) else {
            return Ok(false);
        };
        let (sql, value): (_, &dyn rusqlite::ToSql) = match found.kind {
            TokenKind::Access => {
                ("UPDATE authority_tokens SET revoked = 1 WHERE key = ?1", &key.0.0)
            }
            TokenKind::Refresh => {
                ("UPDATE authority_tokens SET revoked = 1 WHERE family = ?1", &found.family)
            }
        };
        self.connection.prepare_cached(sql)?.execute([value])?;
        self.writes += 1;
        Ok(true)
    }

    /// Takes out some of what is of no use any more, where something was kept.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn forget_outlived(&mut self, now: UnixTime) -> Result<(), Fault> {
        if self.kept == 0 {
            return Ok(());
        }
        let most = self.kept.saturating_mul(OUTLIVED);
        for (find, remove) in [
            (
                "SELECT key FROM authority_tokens WHERE expires < ?1 ORDER BY expires",
                "DELETE FROM authority_tokens WHERE key = ?1",
            ),
            (
                "SELECT x5t FROM sender_certificates WHERE expires < ?1 ORDER BY expires",
                "DELETE FROM sender_certificates WHERE x5t = ?1",
            ),
            (
                "SELECT key FROM tombstones WHERE expires < ?1 ORDER BY expires",
                "DELETE FROM tombstones WHERE key = ?1",
            ),
        ] {
            // Not a DELETE of so many: SQLite prepares a statement with a parameter in its LIMIT anew
            // each time, and makes a table for what is IN a list.
            let mut statement = self.connection.prepare_cached(find)?;
            let outlived = statement.query_map([now.millis()], |row| row.get::<_, Vec<u8>>(0))?;
            let outlived: Vec<_> = outlived.take(most).collect::<Result<_, _>>()?;
            let mut statement = self.connection.prepare_cached(remove)?;
            for key in outlived {
                statement.execute([key])?;
            }
        }
        Ok(())
    }

    /// The bypass, since its flag was first seen.
    ///
    /// # Errors
    /// [`Fault::Malformed`].
    pub fn bypass(&self) -> Result<Option<Seen>, Fault> {
        bypass(self.connection)
    }

    /// Keeps the bypass, or that there is none.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn set_bypass(&mut self, seen: Option<&Seen>) -> Result<(), Fault> {
        self.connection.execute("DELETE FROM meta WHERE name = 'bypass'", [])?;
        if let Some(seen) = seen {
            let text = serde_json::to_string(seen).map_err(|_| Fault::Malformed)?;
            let sql = "INSERT INTO meta (name, value) VALUES ('bypass', ?1)";
            self.connection.execute(sql, [text])?;
        }
        self.writes += 1;
        Ok(())
    }
}

impl Reader {
    /// The bypass, since its flag was first seen.
    ///
    /// # Errors
    /// [`Fault::Malformed`].
    pub fn bypass(&self) -> Result<Option<Seen>, Fault> {
        bypass(&self.connection)
    }

    /// The record of a token.
    ///
    /// # Errors
    /// [`Fault::Malformed`] for one that cannot be read.
    pub fn record(&self, key: RecordKey) -> Result<Option<BindingRecord>, Fault> {
        record(&self.connection, key)
    }

    /// A certificate that a token was bound to.
    ///
    /// # Errors
    /// [`Fault::Malformed`] for one that cannot be read.
    pub fn sender_certificate(&self, x5t: X5tS256) -> Result<Option<SenderCertificate>, Fault> {
        let sql = "SELECT der FROM sender_certificates WHERE x5t = ?1";
        let mut statement = self.connection.prepare_cached(sql)?;
        let der: Option<Vec<u8>> = statement.query_row([x5t.0.0], |row| row.get(0)).optional()?;
        let Some(der) = der else { return Ok(None) };
        let certificate = SenderCertificate::new(der).filter(|it| it.x5t() == x5t);
        certificate.map(Some).ok_or(Fault::Malformed)
    }
}

fn bypass(connection: &Connection) -> Result<Option<Seen>, Fault> {
    let sql = "SELECT value FROM meta WHERE name = 'bypass'";
    let text: Option<String> = connection.query_row(sql, [], |row| row.get(0)).optional()?;
    text.map(|text| serde_json::from_str(&text).map_err(|_| Fault::Malformed)).transpose()
}

fn record(connection: &Connection, key: RecordKey) -> Result<Option<BindingRecord>, Fault> {
    let sql = "SELECT kind, tenant, client, cnf_jkt, sender_certificate, scope, expires, family,
                   bypass, revoked FROM authority_tokens WHERE key = ?1";
    let mut statement = connection.prepare_cached(sql)?;
    let found = statement.query_row([key.0.0], |row| Ok(read(row))).optional()?;
    // A value of another type or length than was written is a record of nothing.
    found.transpose().map_err(|_| Fault::Malformed)?.map_or(Ok(None), |it| it.map(Some))
}

fn read(row: &Row<'_>) -> rusqlite::Result<Result<BindingRecord, Fault>> {
    let digest = |index| row.get::<_, Option<[u8; 32]>>(index).map(|it| it.map(Sha256));
    let kind: String = row.get(0)?;
    let Some(kind) = TokenKind::from_name(&kind) else { return Ok(Err(Fault::Malformed)) };
    Ok(Ok(BindingRecord {
        kind,
        tenant: row.get(1)?,
        client: row.get(2)?,
        cnf_jkt: digest(3)?.map(Jkt),
        sender_certificate: digest(4)?.map(X5tS256),
        scope: row.get(5)?,
        expires: UnixTime::from_millis(row.get(6)?),
        family: row.get(7)?,
        bypass: row.get(8)?,
        revoked: row.get(9)?,
    }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::reader::Readers;
    use super::super::writer::{CheckpointRule, Writer};
    use super::super::{Database, now};
    use super::*;

    #[test]
    fn a_certificate_is_not_kept_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let mut database = Database::open(&directory.path().join("holdfast.db")).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let made = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        let certificate = SenderCertificate::new(made.der().to_vec()).unwrap();
        let kept = database.transact(|batch| batch.keep_certificate(&certificate));
        kept.unwrap();
        let sql = "SELECT expires FROM sender_certificates";
        let ends: i64 = database.connection.query_row(sql, [], |row| row.get(0)).unwrap();
        let last = certificate.not_after().plus(LONGEST_GRACE);
        assert!(now() < certificate.not_after() && UnixTime::from_millis(ends) == last);
    }

    #[tokio::test]
    async fn what_is_outlived_goes_with_the_next_that_is_kept() {
        let scratch = tempfile::tempdir().unwrap();
        let database = scratch.path().join("holdfast.db");
        let rule = CheckpointRule { lines: 1000, interval: Duration::from_secs(3600) };
        let writer = Writer::start(&database, rule).unwrap();
        let key = |number: u64| RecordKey(Sha256::of(&number.to_be_bytes()));
        let record = |expires| BindingRecord {
            kind: TokenKind::Access,
            tenant: None,
            client: None,
            cnf_jkt: None,
            sender_certificate: None,
            scope: None,
            expires,
            family: "family".to_owned(),
            bypass: None,
            revoked: false,
        };
        let hour = Duration::from_secs(3600);
        let past = UnixTime::from_millis(now().millis() - 1);
        for number in 0..3 {
            let (key, record) = (key(number), record(now().plus(hour)));
            writer.transact(move |batch| batch.bind(key, &record)).await.unwrap();
        }
        let records: Vec<_> = (3..23).map(|number| (key(number), record(past))).collect();
        // By another way in, as if time had passed.
        Database::open(&database)
            .unwrap()
            .transact(move |batch| {
                records.iter().try_for_each(|(key, record)| batch.bind(*key, record))
            })
            .unwrap();
        let left = || {
            let readers = Readers::open(&database).unwrap();
            let found = (0..30).map(|number| readers.read(|reader| reader.record(key(number))));
            found.map(|found| usize::from(found.unwrap().is_some())).sum::<usize>()
        };
        assert_eq!(left(), 23);
        writer.transact(|batch| batch.probe()).await.unwrap();
        assert_eq!(left(), 23, "with nothing kept nothing goes");
        for number in 23..28 {
            let (key, record) = (key(number), record(now().plus(hour)));
            writer.transact(move |batch| batch.bind(key, &record)).await.unwrap();
            let gone = usize::try_from(number - 22).unwrap() * 4;
            assert_eq!(left(), 23 + usize::try_from(number - 22).unwrap() - gone, "some at a time");
        }
        let (key, record) = (key(28), record(now().plus(hour)));
        writer.transact(move |batch| batch.bind(key, &record)).await.unwrap();
        assert_eq!(left(), 9);
    }
}
