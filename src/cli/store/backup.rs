//! Everything that a store keeps, written into one file.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};

use serde_json::json;

use super::Backup;
use super::progress::Shown;
use super::sound::sound;
use crate::cli::site::{self, CommandError, now};
use crate::policy::time::UnixTime;
use crate::store::backup::{BackupError, Content, Making, Seal};
use crate::store::nodes::moved;
use crate::store::records::transfer::Progress;
use crate::store::records::{Records as _, Servers, Tally};
use crate::store::sqlite::copies;

/// The layout of records as lines.
pub(super) const VERSION: u32 = 1;

impl From<BackupError> for CommandError {
    fn from(error: BackupError) -> Self {
        Self::Other(error.to_string())
    }
}

/// Makes a backup.
pub(super) fn run(backup: &Backup, out: &mut dyn Write) -> Result<(), CommandError> {
    let config = site::load(&backup.config)?;
    let store = site::store(&config, &backup.config)?;
    let at = now();
    if store.redis.is_none() && !store.path.exists() {
        let text = format!("{}: there is no store yet", store.path.display());
        return Err(CommandError::Other(text));
    }
    let making = Making::begin(&backup.file)?;
    let (seal, changes) = match &store.redis {
        None => {
            let counts = copies::copy(&store.path, making.content())?;
            (making.seal(Content::Embedded, at, counts)?, 0)
        }
        Some(servers) => {
            let (registry, runtime) = (site::registry(&config, store)?, site::runtime()?);
            let redis = site::connect(&backup.whom.at(servers), &runtime)?;
            let file = OpenOptions::new().append(true).open(making.content())?;
            let shared = Servers { redis, registry };
            let done = runtime.block_on(whole(&shared, BufWriter::new(file), at));
            let (counts, changes) = site::at_servers(&shared.redis, done)?;
            (making.seal(Content::Redis, at, counts)?, changes)
        }
    };
    tell(backup, &seal, changes, out)
}

/// Writes all that is at servers which stay the same meanwhile. How many there are of what, and how many
/// changes to nodes came in.
async fn whole(
    shared: &Servers,
    file: BufWriter<File>,
    at: UnixTime,
) -> Result<(BTreeMap<String, u64>, u64), CommandError> {
    let servers = sound(shared, &mut Shown::new()).await?;
    let begun = moved::last_change(&shared.redis).await?;
    let counts = lines(shared, file, at).await?;
    let ended = moved::last_change(&shared.redis).await?;
    servers.still("the backup was written").await?;
    let confirmed = u64::from(ended.confirmed != begun.confirmed);
    Ok((counts, ended.seq.saturating_sub(begun.seq).max(confirmed)))
}

/// Writes a record a line. How many there are of what.
async fn lines(
    shared: &Servers,
    mut file: BufWriter<File>,
    at: UnixTime,
) -> Result<BTreeMap<String, u64>, CommandError> {
    writeln!(file, "{}", json!({ "holdfastRecords": VERSION, "at": at }))?;
    let (mut tally, mut shown, mut done) = (Tally::default(), Shown::new(), 0);
    let mut reader = shared.read(at).await?;
    loop {
        let records = reader.next().await?;
        if records.is_empty() {
            break;
        }
        for record in &records {
            writeln!(file, "{}", record.line()?)?;
            tally.add(record)?;
        }
        done += records.len() as u64;
        shown.show(Progress { what: "writing", done, of: None });
    }
    file.flush()?;
    tally.sort();
    Ok(tally.counts().into_iter().map(|(kind, it)| (kind.to_owned(), it.count)).collect())
}

fn tell(
    backup: &Backup,
    seal: &Seal,
    changes: u64,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    if backup.json {
        writeln!(out, "{:#}", json!({ "action": "backup", "backup": seal, "changes": changes }))?;
        return Ok(());
    }
    let (path, counts) = (backup.file.display(), counted(&seal.counts));
    writeln!(out, "{path}: {counts}")?;
    if changes > 0 {
        let since = seal.at.rfc3339();
        writeln!(
            out,
            "{changes} changes to nodes came in while it was written: it has what was before {since}, and \
             of what came later some"
        )?;
    }
    Ok(())
}

/// `3 nodes, 12 tokens`: what there is any of.
pub(super) fn counted(counts: &BTreeMap<String, u64>) -> String {
    let there = counts.iter().filter(|(_, count)| **count > 0);
    let words: Vec<_> = there.map(|(name, count)| format!("{count} {name}")).collect();
    if words.is_empty() { "nothing".to_owned() } else { words.join(", ") }
}
