//! The oldest lines of the chain, moved from the store into a file that the rest can be verified with.
//!
//! ```text
//! verify all ─► file, on the disk ─► read again ─► one transaction: a line says so, and the chain
//!                                                   in the store begins after it ─► rows go, a few at a time
//! ```
//!
//! Whoever is cut off anywhere runs it again: a file that is whole and was not told of yet is taken as it is.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use super::chain::Chain;
use super::files::{self, File};
use super::verify;
use crate::cli::site::{self, CommandError, When};
use crate::config::Config;
use crate::policy::audit::{Head, Kind, Rotated};
use crate::policy::time::UnixTime;
use crate::store::keys::{AuditSigner, KeyRing};
use crate::store::serving;
use crate::store::sqlite::Database;
use crate::store::sqlite::reader::Reader;
use crate::store::sqlite::writer::Signer as _;

/// What is asked.
pub(super) struct Asked<'a> {
    pub(super) config: &'a Path,
    pub(super) keep: When,
    pub(super) to: &'a Path,
    pub(super) reason: &'a str,
    pub(super) unsigned: bool,
    pub(super) json: bool,
}

/// A store at work.
struct Store<'a> {
    asked: &'a Asked<'a>,
    database: Database,
    reader: Reader,
    chain: String,
    base: Head,
    config: &'a Config,
    /// Verifies what is there, and signs the line that says what was moved.
    ring: Option<Arc<KeyRing>>,
}

/// Moves what is older than what is kept. Whether that was done.
pub(super) fn run(
    asked: &Asked<'_>,
    out: &mut dyn Write,
    errors: &mut dyn Write,
) -> Result<bool, CommandError> {
    let other = |text: String| CommandError::Other(text);
    let config = site::load(asked.config)?;
    let path = site::store_path(&config, asked.config)?;
    if !path.exists() {
        return Err(other(format!("{}: there is no store", path.display())));
    }
    site::own(path)?;
    let busy = |who: &str| other(format!("{}: {who} works on it", path.display()));
    let _serving = serving::serve(path)?.ok_or_else(|| busy("`holdfast store`"))?;
    let _rotating =
        serving::rotate(path)?.ok_or_else(|| busy("another `holdfast audit rotate`"))?;
    let directory = fs::metadata(asked.to).is_ok_and(|found| found.is_dir());
    if !directory {
        return Err(other(format!("{}: there is no such directory", asked.to.display())));
    }
    let database = site::open(&config, asked.config)?;
    let reader = Reader::open(path)?;
    let (chain, base) = (reader.chain()?, reader.audit_base()?);
    let ring = verify::ring(&config)?.map(Arc::new);
    let mut store = Store { asked, database, reader, chain, base, config: &config, ring };
    store.is_whole(errors)?;
    let before = store.base.seq;
    // What an earlier run did not come to.
    store.remove_rows()?;
    let mut moved = Vec::new();
    if let Some(file) = store.left_behind()? {
        moved.push(store.rotate(&file)?);
    }
    if let Some(last) = store.cut()? {
        let file = store.write(last)?;
        moved.push(store.rotate(&file)?);
    }
    tell(asked, &moved, before, out)?;
    Ok(true)
}

impl Store<'_> {
    /// A chain from its beginning.
    fn follower(&self) -> Result<Chain, CommandError> {
        let set = self.ring.as_ref().map(|ring| ring.audit_jwks());
        verify::chain(Some(self.config), set.as_ref())
    }

    /// Refuses to go on with a chain that does not verify.
    fn is_whole(&self, errors: &mut dyn Write) -> Result<(), CommandError> {
        let mut chain = self.follower()?;
        let store = self.reader.snapshot()?;
        let broken = verify::follow(&store, &mut chain, &mut |_, _| Ok(()), errors)?;
        drop(store);
        let broken = broken.or_else(|| chain.unvouched().filter(|_| !self.asked.unsigned));
        match broken {
            None => Ok(()),
            Some(broken) => {
                let hint = if self.asked.unsigned {
                    ""
                } else {
                    " (--unsigned moves lines that nobody has signed)"
                };
                let text = format!("nothing was moved: the log is not whole: {broken}{hint}");
                Err(CommandError::Other(text))
            }
        }
    }

    /// The last line that goes: a checkpoint, so that the file vouches for itself.
    fn cut(&self) -> Result<Option<u64>, CommandError> {
        let until = self.asked.keep.at(site::now());
        let last = if self.asked.unsigned {
            // Never the last of all: the chain goes on after it.
            let head = self.reader.last()?;
            self.reader.last_before(until)?.map(|last| last.min(head.saturating_sub(1)))
        } else {
            self.reader.last_closed(until)?
        };
        Ok(last.filter(|last| *last > self.base.seq))
    }

    fn prefix(&self) -> String {
        let chain: String = self.chain.chars().take(8).collect();
        format!("audit-{chain}-{:012}-", self.base.seq + 1)
    }

    /// A file that an earlier run has made and told nobody of.
    fn left_behind(&self) -> Result<Option<PathBuf>, CommandError> {
        let prefix = self.prefix();
        for entry in fs::read_dir(self.asked.to)? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(&prefix) && name.ends_with(".jsonl") {
                return Ok(Some(self.asked.to.join(name.as_ref())));
            }
        }
        Ok(None)
    }

    fn write(&self, last: u64) -> Result<PathBuf, CommandError> {
        let path = self.asked.to.join(format!("{}{last:012}.jsonl", self.prefix()));
        files::make(&path, |out| files::write(&self.reader, self.base, last, out))?;
        Ok(path)
    }

    /// Reads the file again, and has the chain begin after it.
    fn rotate(&mut self, path: &Path) -> Result<Rotated, CommandError> {
        let named = |wrong: String| CommandError::Other(format!("{}: {wrong}", path.display()));
        let mut chain = self.follower()?;
        chain.is_of(&self.chain).and_then(|()| chain.begin(self.base)).map_err(named)?;
        File::open(path)?.follow(&mut chain, |_, _| Ok(()))?.map_err(named)?;
        let last = chain.head;
        if self.reader.line_hash(last.seq)? != Some(last.hash) {
            return Err(named("it is no part of what is in the store: move it away".to_owned()));
        }
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let rotated = Rotated { file, from: self.base.seq + 1, last };
        let mut data = serde_json::to_value(&rotated).unwrap_or_default();
        if let Some(data) = data.as_object_mut() {
            data.insert("action".into(), "audit rotate".into());
        }
        let draft = site::draft(Kind::Rotation, None, data, self.asked.reason, site::now())?;
        // The file may be an earlier run's, which was cut off before it and its name were on the disk.
        fs::File::open(path)?.sync_all()?;
        fs::File::open(self.asked.to)?.sync_all()?;
        let (base, signer) = (self.base, self.ring.clone().map(AuditSigner));
        self.database.transact(|batch| {
            batch.rotate(base, last, &draft)?;
            // Signed at once: what cuts the chain off must not be anybody's word.
            if let Some(signer) = &signer {
                batch.checkpoint(site::now(), |checkpoint| signer.sign(checkpoint))?;
            }
            Ok(())
        })?;
        self.base = last;
        self.remove_rows()?;
        Ok(rotated)
    }

    fn remove_rows(&mut self) -> Result<(), CommandError> {
        while self.database.transact(|batch| batch.remove_rotated())? > 0 {}
        Ok(())
    }
}

fn tell(
    asked: &Asked<'_>,
    moved: &[Rotated],
    before: u64,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let until: UnixTime = asked.keep.at(site::now());
    if asked.json {
        writeln!(out, "{:#}", json!({ "moved": moved, "olderThan": until.rfc3339().to_string() }))?;
        return Ok(());
    }
    for Rotated { file, from, last } in moved {
        let path = asked.to.join(file);
        writeln!(
            out,
            "{}: lines {from} to {}, head {}:{}",
            path.display(),
            last.seq,
            last.seq,
            last.hash
        )?;
    }
    if moved.is_empty() {
        let until = until.rfc3339();
        writeln!(out, "nothing to move: no signed part after line {before} is older than {until}")?;
    }
    Ok(())
}
