//! Records of tokens, and the certificates among them.

use std::time::Duration;

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::Fault;
use super::batch::Batch;
use super::reader::Reader;
use super::tail::{LOOKED_AT, Upkeep};
use crate::policy::bypass::Seen;
use crate::policy::certificate::{LONGEST_GRACE, SenderCertificate};
use crate::policy::digest::{Jkt, Sha256, X5tS256};
use crate::policy::grant::{BindingRecord, RecordKey, TokenKind};
use crate::policy::time::UnixTime;

impl Batch<'_> {
    /// Whether a record may be kept.
    ///
    /// # Errors
    /// [`Fault::Conflict`] where the token is another sender's already.
    pub fn may_bind(
        &mut self,
        key: RecordKey,
        record: &BindingRecord,
        now: UnixTime,
    ) -> Result<(), Fault> {
        let kept = self.token(key)?;
        match kept.filter(|kept| now < kept.expires) {
            Some(kept) if !record.may_replace(&kept) => Err(Fault::Conflict),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether a token was revoked.
    ///
    /// # Errors
    /// [`Fault::Malformed`].
    pub fn is_revoked(&mut self, key: RecordKey) -> Result<bool, Fault> {
        Ok(self.token(key)?.is_some_and(|kept| kept.revoked))
    }

    fn token(&mut self, key: RecordKey) -> Result<Option<BindingRecord>, Fault> {
        self.place(key)?.map_or(Ok(None), |place| record(self.connection, place, key))
    }

    /// Keeps a record, in the place of the one that is there. It never ends before that one would.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn bind(&mut self, key: RecordKey, record: &BindingRecord) -> Result<(), Fault> {
        let replace =
            "UPDATE authority_tokens SET kind = ?3, tenant = ?4, client = ?5, cnf_jkt = ?6,
                           sender_certificate = ?7, scope = ?8, expires = max(expires, ?9),
                           family = ?10, bypass = ?11, revoked = ?12
                       WHERE id = ?1 AND key = ?2";
        let insert = "INSERT INTO authority_tokens (id, key, kind, tenant, client, cnf_jkt,
                          sender_certificate, scope, expires, family, bypass, revoked)
                      VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";
        let put = |sql, place: i64| {
            self.connection.prepare_cached(sql)?.execute(params![
                place,
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
            ])
        };
        match self.place(key)? {
            Some(place) if put(replace, place)? > 0 => {
                let sql =
                    "UPDATE authority_token_keys SET expires = max(expires, ?2) WHERE key = ?1";
                let mut statement = self.connection.prepare_cached(sql)?;
                statement.execute(params![key.0.0, record.expires.millis()])?;
            }
            Some(_) | None => {
                put(insert, self.new_place(key))?;
            }
        }
        self.writes += 1;
        self.kept += 1;
        self.lasts_to(record.expires)
    }

    /// When the last of all records that there ever were is outlived, or later.
    fn tokens_end(&mut self) -> Result<i64, Fault> {
        if let Some(end) = self.tokens_end {
            return Ok(end);
        }
        let sql = "SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'tokens_end'";
        let end = self.connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
        self.tokens_end = Some(end);
        Ok(end)
    }

    fn lasts_to(&mut self, end: UnixTime) -> Result<(), Fault> {
        if end.millis() > self.tokens_end()? {
            // Ahead by a day, so that it is not written with each record.
            let end = end.plus(Duration::from_secs(86_400)).millis();
            let sql = "UPDATE meta SET value = ?1 WHERE name = 'tokens_end'";
            self.connection.prepare_cached(sql)?.execute([end.to_string()])?;
            self.tokens_end = Some(end);
        }
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
        let Some(place) = self.place(key)? else { return Ok(false) };
        let found = record(self.connection, place, key)?;
        let Some(found) = found.filter(|it| it.client.as_deref() == client) else {
            return Ok(false);
        };
        match found.kind {
            TokenKind::Access => {
                let sql = "UPDATE authority_tokens SET revoked = 1 WHERE id = ?1";
                self.connection.prepare_cached(sql)?.execute([place])?;
            }
            TokenKind::Refresh => self.revoke_grant(&found.family)?,
        }
        self.writes += 1;
        Ok(true)
    }

    /// Revokes a grant, for as long as any record there ever was lives.
    pub(super) fn revoke_grant(&mut self, family: &str) -> Result<(), Fault> {
        let sql = "INSERT INTO revoked_grants (family, expires) VALUES (?1, ?2)
                   ON CONFLICT DO UPDATE SET expires = excluded.expires";
        let end = self.tokens_end()?;
        self.connection.prepare_cached(sql)?.execute(params![family, end])?;
        Ok(())
    }

    /// Takes out some of what is of no use any more, where something was kept.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub(super) fn forget_outlived(
        &mut self,
        upkeep: &mut Upkeep,
        now: UnixTime,
    ) -> Result<(), Fault> {
        if self.kept == 0 {
            return Ok(());
        }
        upkeep.forget_rows(self, now)?;
        for (find, remove) in [
            (
                "SELECT x5t FROM sender_certificates WHERE expires < ?1 ORDER BY expires",
                "DELETE FROM sender_certificates WHERE x5t = ?1",
            ),
            (
                "SELECT family FROM revoked_grants WHERE expires < ?1 ORDER BY expires",
                "DELETE FROM revoked_grants WHERE family = ?1",
            ),
            (
                "SELECT key FROM tombstones WHERE expires < ?1 ORDER BY expires",
                "DELETE FROM tombstones WHERE key = ?1",
            ),
        ] {
            // Not a DELETE of so many: SQLite prepares a statement with a parameter in its LIMIT anew
            // each time, and makes a table for what is IN a list.
            let mut statement = self.connection.prepare_cached(find)?;
            let outlived = statement.query_map([now.millis()], |row| row.get::<_, Value>(0))?;
            let outlived = outlived.take(self.kept * LOOKED_AT).collect::<Result<Vec<_>, _>>()?;
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
        let place = self.tail.find(&self.connection, key)?;
        place.map_or(Ok(None), |place| record(&self.connection, place, key))
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

/// The record, revoked if the token was alone or with its grant.
fn record(
    connection: &Connection,
    place: i64,
    key: RecordKey,
) -> Result<Option<BindingRecord>, Fault> {
    let found = standing(connection, place, key)?;
    Ok(found.map(|(record, grant)| BindingRecord { revoked: record.revoked || grant, ..record }))
}

/// The record, revoked if the token was alone, and whether its grant was.
pub(super) fn standing(
    connection: &Connection,
    place: i64,
    key: RecordKey,
) -> Result<Option<(BindingRecord, bool)>, Fault> {
    let sql = "SELECT kind, tenant, client, cnf_jkt, sender_certificate, scope, expires, family,
                   bypass, revoked, EXISTS (SELECT 1 FROM revoked_grants AS grants
                       WHERE grants.family = authority_tokens.family)
               FROM authority_tokens WHERE id = ?1 AND key = ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let read = |row: &Row<'_>| Ok(row.get(10).and_then(|grant: bool| Ok((read(row)?, grant))));
    let found = statement.query_row(params![place, key.0.0], read).optional()?;
    // A value of another type or length than was written is a record of nothing.
    let found = found.transpose().map_err(|_| Fault::Malformed)?;
    found.map(|(record, grant)| Ok((record?, grant))).transpose()
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
}
