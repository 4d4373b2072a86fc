//! What this file remembers of a store that others share.

use rusqlite::{Connection, OptionalExtension as _};

use super::Fault;
use super::batch::Batch;
use super::reader::Reader;
use crate::policy::digest::Sha256;
use crate::policy::epoch::{Epoch, GivenUp};
use crate::policy::lineage::Mark;
use crate::policy::time::UnixTime;

impl Batch<'_> {
    /// Remembers an entry of the shared ledger, unless a later one is.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn keep_ledger_mark(&mut self, mark: &Mark) -> Result<(), Fault> {
        if !mark.is_after(&ledger_mark(self.connection)?) {
            return Ok(());
        }
        let sql = "INSERT INTO meta (name, value) VALUES ('ledger', ?1)
                   ON CONFLICT DO UPDATE SET value = excluded.value";
        let text = serde_json::to_string(mark).map_err(|_| Fault::Malformed)?;
        self.connection.prepare_cached(sql)?.execute([text])?;
        self.writes += 1;
        Ok(())
    }
}

impl Batch<'_> {
    /// Remembers which epochs of the shared store are given up, unless later ones are.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn keep_given_up(&mut self, given_up: &GivenUp) -> Result<(), Fault> {
        if kept_given_up(self.connection)?.is_some_and(|kept| kept.before >= given_up.before) {
            return Ok(());
        }
        let sql = "INSERT INTO meta (name, value) VALUES ('given-up', ?1)
                   ON CONFLICT DO UPDATE SET value = excluded.value";
        let text = format!("{} {}", given_up.before.millis(), given_up.but.0);
        self.connection.prepare_cached(sql)?.execute([text])?;
        self.writes += 1;
        Ok(())
    }
}

impl Reader {
    /// Which epochs of the shared store are given up.
    ///
    /// # Errors
    /// [`Fault::Malformed`] where what is kept cannot be read.
    pub fn given_up(&self) -> Result<Option<GivenUp>, Fault> {
        kept_given_up(&self.connection)
    }

    /// The last entry of the shared ledger that was seen or made.
    ///
    /// # Errors
    /// [`Fault::Malformed`] where what is kept cannot be read.
    pub fn ledger_mark(&self) -> Result<Mark, Fault> {
        ledger_mark(&self.connection)
    }
}

fn kept_given_up(connection: &Connection) -> Result<Option<GivenUp>, Fault> {
    let sql = "SELECT value FROM meta WHERE name = 'given-up'";
    let text: Option<String> =
        connection.prepare_cached(sql)?.query_row([], |row| row.get(0)).optional()?;
    let read = |text: String| {
        let (before, but) = text.split_once(' ')?;
        let before = UnixTime::from_millis(before.parse().ok()?);
        Some(GivenUp { before, but: Epoch(Sha256::from_base64url(but)?) })
    };
    text.map(|text| read(text).ok_or(Fault::Malformed)).transpose()
}

fn ledger_mark(connection: &Connection) -> Result<Mark, Fault> {
    let sql = "SELECT value FROM meta WHERE name = 'ledger'";
    let text: Option<String> =
        connection.prepare_cached(sql)?.query_row([], |row| row.get(0)).optional()?;
    let mark = text.map(|text| serde_json::from_str(&text).map_err(|_| Fault::Malformed));
    mark.unwrap_or_else(|| Ok(Mark::default()))
}
