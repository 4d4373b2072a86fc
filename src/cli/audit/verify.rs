//! The chain, followed through files and the store.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use super::chain::Chain;
use super::files::{self, File};
use super::{PAGE, Site, is_watched};
use crate::cli::site::{self, CommandError};
use crate::config::Config;
use crate::policy::audit::{Head, Line};
use crate::policy::digest::Sha256;
use crate::store::keys::KeyRing;
use crate::store::sqlite::reader::{Reader, Snapshot, Stored};

/// What is asked.
pub(super) struct Asked<'a> {
    pub(super) files: &'a [PathBuf],
    pub(super) site: &'a Site,
    pub(super) seen: &'a [(u64, Sha256)],
    pub(super) jwks: Option<&'a Path>,
    pub(super) json: bool,
}

/// What was found.
struct Found {
    chain: Chain,
    /// The lines to be seen that were not met yet.
    unseen: Vec<(u64, Sha256)>,
    /// Whether the store was looked at.
    store: bool,
}

/// Whether the log is whole.
pub(super) fn run(
    asked: &Asked<'_>,
    out: &mut dyn Write,
    errors: &mut dyn Write,
) -> Result<bool, CommandError> {
    let mut found = Found {
        chain: asked_for(asked)?,
        unseen: asked.seen.to_vec(),
        store: asked.site.is_named(),
    };
    let broken = follow_all(asked, &mut found, errors)?;
    let broken = broken.or_else(|| found.chain.unvouched());
    let broken = broken.or_else(|| {
        let (seq, _) = found.unseen.first()?;
        let begins = found.chain.before.map_or(0, |before| before.seq) + 1;
        Some(if *seq < begins {
            format!("line {seq} was not looked at: name the file as well that it was moved into")
        } else {
            format!("line {seq} is not there any more: the log was cut off or is another one")
        })
    });
    report(asked, &found, broken.as_deref(), out)?;
    Ok(broken.is_none())
}

fn follow_all(
    asked: &Asked<'_>,
    found: &mut Found,
    errors: &mut dyn Write,
) -> Result<Option<String>, CommandError> {
    // As it is before the files are read: `rotate` may move lines into one more meanwhile.
    let reader = asked.site.is_named().then(|| asked.site.open()).transpose()?;
    let store = reader.as_ref().map(Reader::snapshot).transpose()?;
    // One is open at a time, however many years are asked for.
    let mut files = Vec::new();
    for path in asked.files {
        files.push((File::open(path)?.before.seq, path));
    }
    files.sort_by_key(|(before, _)| *before);
    for (_, path) in files {
        let file = File::open(path)?;
        let name = file.name.clone();
        let seen = &mut found.unseen;
        if let Err(wrong) = file.follow(&mut found.chain, |line, head| met(seen, line, head))? {
            return Ok(Some(format!("{name}: {wrong}")));
        }
    }
    let Some(store) = store else { return Ok(None) };
    let (chain, seen) = (&mut found.chain, &mut found.unseen);
    follow(&store, chain, &mut |line, head| met(seen, line, head), errors)
}

/// Whether a line that was met is not the one that was seen.
fn met(unseen: &mut Vec<(u64, Sha256)>, line: &Line, head: &Head) -> Result<(), String> {
    let wrong = unseen.iter().any(|(seq, hash)| *seq == head.seq && *hash != head.hash);
    unseen.retain(|(seq, _)| *seq != head.seq);
    if wrong { Err(format!("line {} is not the one that was seen", line.seq)) } else { Ok(()) }
}

/// Follows the chain through the store, from where it is, or else from where it begins there. What is
/// wrong with it. Where the chain begins and each page are reads of one time: `rotate` may move lines out
/// beside it, which nobody has tampered with.
pub(super) fn follow(
    reader: &Snapshot<'_>,
    chain: &mut Chain,
    met: &mut dyn FnMut(&Line, &Head) -> Result<(), String>,
    errors: &mut dyn Write,
) -> Result<Option<String>, CommandError> {
    let (began, last, base) = (Instant::now(), reader.last()?, reader.audit_base()?);
    if let Err(wrong) = enter(reader, chain, base)? {
        return Ok(Some(wrong));
    }
    let mut told = 0;
    loop {
        let page = reader.lines(chain.head.seq + 1, PAGE)?;
        if page.is_empty() {
            break;
        }
        for stored in &page {
            let found_by = |line: &Line, hash: &Sha256| {
                let wrong = || {
                    format!("line {} is not what it is found by: a column was changed", line.seq)
                };
                if is_found_by(stored, line, hash) { Ok(()) } else { Err(wrong()) }
            };
            let line = match chain.take_if(&stored.line, found_by) {
                Ok(line) => line,
                Err(wrong) => return Ok(Some(wrong)),
            };
            if let Err(wrong) = met(&line, &chain.head) {
                return Ok(Some(wrong));
            }
        }
        let seconds = began.elapsed().as_secs();
        if is_watched() && seconds > told {
            told = seconds;
            write!(errors, "\r{} of {last} lines", chain.head.seq)?;
            errors.flush()?;
        }
    }
    if base.seq > 0 && chain.moved_out() != Some(base) {
        return Ok(Some(format!(
            "it begins after line {}, and no line in it that a checkpoint covers says that what was before \
             was moved into a file",
            base.seq
        )));
    }
    Ok(None)
}

/// Goes from files, or from nowhere, into the store, whose lines begin after `base`.
fn enter(
    reader: &Reader,
    chain: &mut Chain,
    base: Head,
) -> Result<Result<(), String>, CommandError> {
    if let Err(wrong) = chain.is_of(&reader.chain()?) {
        return Ok(Err(wrong));
    }
    let (Some(_), head) = (chain.before, chain.head) else { return Ok(chain.begin(base)) };
    if head.seq <= base.seq {
        let hint = |wrong: String| match head.seq < base.seq {
            true => format!("{wrong}: name the file as well that they were moved into"),
            false => wrong,
        };
        return Ok(chain.begin(base).map_err(hint));
    }
    // Files that have lines of the store as well: it goes on where they end.
    let there = reader.line_hash(head.seq)?.is_some_and(|hash| chain.is_at(head.seq, &hash));
    let wrong = || format!("line {} is not in the store, or another one", head.seq);
    Ok(if there { Ok(()) } else { Err(wrong()) })
}

/// Whether the columns say what the line does.
fn is_found_by(stored: &Stored, line: &Line, hash: &Sha256) -> bool {
    stored.hash == hash.0
        && stored.at == line.at.millis()
        && stored.kind == line.kind.name()
        && stored.id == line.id
        && stored.node == line.node
}

/// The edge's key ring, where its configuration has one.
pub(super) fn ring(config: &Config) -> Result<Option<KeyRing>, CommandError> {
    let ring = config.capsules.as_ref().map(|capsules| KeyRing::load(&capsules.keys));
    ring.transpose().map_err(|error| CommandError::Other(error.to_string()))
}

/// A chain whose checkpoints are verified with the keys in a set, where there is one.
pub(super) fn chain(config: Option<&Config>, set: Option<&Value>) -> Result<Chain, CommandError> {
    /// What an edge leaves without a checkpoint where nothing else is configured.
    const DEFAULT: u64 = 1000;
    /// Lines that a command may have added meanwhile.
    const MEANWHILE: u64 = 2000;
    let keys_of = |set: &Value| set.get("keys").and_then(Value::as_array).cloned();
    let none = || CommandError::Other("a JWK set is expected".to_owned());
    let keys = set.map(|set| keys_of(set).ok_or_else(none)).transpose()?;
    let lines = config.map_or(DEFAULT, |config| config.audit.checkpoint_lines);
    Ok(Chain::new(keys, lines.saturating_add(MEANWHILE)))
}

/// The chain that is asked for.
fn asked_for(asked: &Asked<'_>) -> Result<Chain, CommandError> {
    let config = asked.site.config.as_deref().map(site::load).transpose()?;
    let set = match asked.jwks {
        Some(path) => {
            let named = |error: &dyn std::fmt::Display| {
                CommandError::Other(format!("{}: {error}", path.display()))
            };
            let text = std::fs::read(path).map_err(|error| named(&error))?;
            Some(serde_json::from_slice(&text).map_err(|error| named(&error))?)
        }
        None => match &config {
            Some(config) => ring(config)?.map(|ring| ring.audit_jwks()),
            None => None,
        },
    };
    chain(config.as_ref(), set.as_ref())
}

fn report(
    asked: &Asked<'_>,
    found: &Found,
    broken: Option<&str>,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let chain = &found.chain;
    let (head, after) = (chain.head, chain.unsigned());
    let first = chain.before.map_or(0, |before| before.seq) + 1;
    let lines = (head.seq + 1).saturating_sub(first);
    if asked.json {
        let told = json!({
            "ok": broken.is_none(),
            "error": broken,
            "chain": chain.id,
            "lines": lines,
            "firstLine": first,
            "rotated": chain.rotated,
            "head": head.hash.to_string(),
            "checkpoints": chain.checkpoints,
            "signaturesNotChecked": chain.unchecked,
            "linesAfterTheLastCheckpoint": after,
        });
        writeln!(out, "{told:#}")?;
        return Ok(());
    }
    let name = chain.id.as_deref().unwrap_or("of no known id");
    if first > 1 {
        writeln!(out, "chain {name}: lines {first} to {} follow each other", head.seq)?;
    } else {
        writeln!(out, "chain {name}: {lines} lines follow each other")?;
    }
    let signatures = match (chain.checkpoints, chain.unchecked) {
        (0, _) => "no checkpoints".to_owned(),
        (count, 0) => format!("{count} checkpoints, each with a good signature"),
        (count, _) => format!("{count} checkpoints, whose signatures were not checked: say --jwks"),
    };
    writeln!(out, "{signatures}; {after} lines after the last one")?;
    writeln!(out, "head: {}:{}", head.seq, head.hash)?;
    if first > 1 {
        match (&chain.rotated, found.store) {
            (Some(rotated), true) if rotated.last.seq + 1 == first => {
                let (to, file) = (first - 1, files::shown(&rotated.file));
                writeln!(
                    out,
                    "lines 1 to {to} are in files, the last of them {file}, and were not looked at"
                )?;
            }
            _ => writeln!(out, "it is an excerpt: lines 1 to {} were not looked at", first - 1)?,
        }
    }
    match broken {
        None if first > 1 => {
            writeln!(out, "the log is whole from line {first} to line {}", head.seq)?
        }
        None if found.store => writeln!(out, "the log is whole")?,
        None => writeln!(out, "the log is whole up to line {}", head.seq)?,
        Some(broken) => writeln!(out, "THE LOG IS NOT WHOLE: {broken}")?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::audit::{Draft, Kind, Rotated};
    use crate::policy::time::UnixTime;
    use crate::store::sqlite::Database;

    const AT: UnixTime = UnixTime::from_secs(1_800_000_000);

    /// Moves all lines up to `last` out, as `rotate` does.
    fn rotate(path: &Path, last: u64) {
        let reader = Reader::open(path).unwrap();
        let last = Head { seq: last, hash: reader.line_hash(last).unwrap().unwrap() };
        let rotated = Rotated { file: "f".into(), from: 1, last };
        let data = serde_json::to_value(&rotated).unwrap();
        let draft = Draft::new(Kind::Rotation, AT, "rotated", None, &data);
        let mut database = Database::open(path).unwrap();
        let base = reader.audit_base().unwrap();
        database.transact(|batch| batch.rotate(base, last, &draft)).unwrap();
        while database.transact(|batch| batch.remove_rotated()).unwrap() > 0 {}
    }

    #[test]
    fn what_is_moved_out_meanwhile_is_no_tampering() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("holdfast.db");
        let mut database = Database::open(&path).unwrap();
        let line = Draft::suppressed(1, AT, "x");
        let written =
            database.transact(|batch| (0..3 * PAGE).try_for_each(|_| batch.append(&line)));
        written.unwrap();
        let reader = Reader::open(&path).unwrap();
        let lines = reader.last().unwrap();
        let followed = |moves: bool| {
            let mut chain = Chain::new(None, 1_000_000);
            let mut met = |line: &Line, _: &Head| {
                if moves && line.seq == 5 {
                    rotate(&path, lines - 10);
                }
                Ok(())
            };
            let store = reader.snapshot().unwrap();
            let broken = follow(&store, &mut chain, &mut met, &mut Vec::new()).unwrap();
            (broken, chain.before.unwrap().seq, chain.head.seq)
        };
        assert_eq!(followed(true), (None, 0, lines));
        assert_eq!(followed(false), (None, lines - 10, lines + 1));
    }
}
