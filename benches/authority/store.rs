//! The store under the edge: what is in it before, what came into it.

use std::fs;
use std::path::Path;

use holdfast::policy::digest::{Jkt, Sha256};
use holdfast::policy::grant::{BindingRecord, RecordKey, TokenKind};
use holdfast::policy::time::UnixTime;
use holdfast::store::sqlite::Database;

use crate::{Outcome, proofs};

/// Grants that one transaction puts in.
const AT_ONCE: u32 = 5000;

/// Fills it with the records of `grants` grants, two each, none of them outlived.
pub(crate) fn fill(path: &Path, grants: u32) -> Outcome<()> {
    let mut database = Database::open(path)?;
    let now = UnixTime::from_secs(i64::try_from(proofs::now()?)?);
    let digest =
        |kind: TokenKind, grant: u32| Sha256::of(format!("{} {grant}", kind.name()).as_bytes());
    let mut next = 0..grants;
    loop {
        let some: Vec<u32> = next.by_ref().take(usize::try_from(AT_ONCE)?).collect();
        if some.is_empty() {
            return Ok(());
        }
        database.transact(|batch| {
            for &grant in &some {
                for kind in [TokenKind::Access, TokenKind::Refresh] {
                    let key = digest(kind, grant);
                    let record = BindingRecord {
                        kind,
                        tenant: None,
                        client: Some("client-1".to_owned()),
                        cnf_jkt: Some(Jkt(key)),
                        sender_certificate: None,
                        scope: Some("orders:read orders:write".to_owned()),
                        expires: now.plus(std::time::Duration::from_secs(86_400)),
                        family: key.to_string().chars().take(32).collect(),
                        bypass: None,
                        revoked: false,
                    };
                    batch.bind(RecordKey(key), &record)?;
                }
            }
            Ok(())
        })?;
    }
}

/// Transactions so far, as SQLite counts them in the header of its index of the log.
pub(crate) fn commits(database: &Path) -> Outcome<u32> {
    let index = fs::read(database.with_extension("db-shm"))?;
    let counted = index.get(8..12).ok_or("an index of the log that is too short")?;
    Ok(u32::from_ne_bytes(counted.try_into()?))
}

/// Records of refresh tokens, which do not end during a run.
pub(crate) fn refresh_tokens(database: &Path) -> Outcome<usize> {
    let connection = rusqlite::Connection::open(database)?;
    let sql = "SELECT count(*) FROM authority_tokens WHERE kind = 'refresh'";
    let count: i64 = connection.query_row(sql, [], |row| row.get(0))?;
    Ok(usize::try_from(count)?)
}
