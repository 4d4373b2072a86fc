//! What this file remembers of a store that others share.

use rusqlite::{Connection, OptionalExtension as _};

use super::Fault;
use super::batch::Batch;
use super::reader::Reader;
use crate::policy::lineage::Mark;

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

impl Reader {
    /// The last entry of the shared ledger that was seen or made.
    ///
    /// # Errors
    /// [`Fault::Malformed`] where what is kept cannot be read.
    pub fn ledger_mark(&self) -> Result<Mark, Fault> {
        ledger_mark(&self.connection)
    }
}

fn ledger_mark(connection: &Connection) -> Result<Mark, Fault> {
    let sql = "SELECT value FROM meta WHERE name = 'ledger'";
    let text: Option<String> =
        connection.prepare_cached(sql)?.query_row([], |row| row.get(0)).optional()?;
    let mark = text.map(|text| serde_json::from_str(&text).map_err(|_| Fault::Malformed));
    mark.unwrap_or_else(|| Ok(Mark::default()))
}
