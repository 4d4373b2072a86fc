//! The chain, followed through files and the store.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use super::chain::Chain;
use super::files::{self, File};
use super::{PAGE, Site, is_watched};
use crate::cli::site::{self, CommandError};
use crate::policy::audit::{Head, Line};
use crate::policy::digest::Sha256;
use crate::store::keys::KeyRing;
use crate::store::sqlite::reader::{Reader, Stored};

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
    let keys = keys(asked.jwks, asked.site.config.as_deref())?;
    let chain = Chain::new(keys, most_unsigned(asked.site.config.as_deref())?);
    let mut found = Found { chain, unseen: asked.seen.to_vec(), store: asked.site.is_named() };
    let broken = follow_all(asked, &mut found, errors)?;
    let broken = broken.or_else(|| found.chain.unvouched());
    let broken = broken.or_else(|| {
        let (seq, _) = found.unseen.first()?;
        Some(format!("line {seq} is not there any more: the log was cut off or is another one"))
    });
    report(asked, &found, broken.as_deref(), out)?;
    Ok(broken.is_none())
}

fn follow_all(
    asked: &Asked<'_>,
    found: &mut Found,
    errors: &mut dyn Write,
) -> Result<Option<String>, CommandError> {
    let mut files =
        asked.files.iter().map(|path| File::open(path)).collect::<Result<Vec<_>, _>>()?;
    files.sort_by_key(|file| file.before.seq);
    for file in files {
        let name = file.name.clone();
        let seen = &mut found.unseen;
        if let Err(wrong) = file.follow(&mut found.chain, |line, head| met(seen, line, head))? {
            return Ok(Some(format!("{name}: {wrong}")));
        }
    }
    if !asked.site.is_named() {
        return Ok(None);
    }
    let reader = asked.site.open()?;
    let (chain, seen) = (&mut found.chain, &mut found.unseen);
    follow(&reader, chain, &mut |line, head| met(seen, line, head), errors)
}

/// Whether a line that was met is not the one that was seen.
fn met(unseen: &mut Vec<(u64, Sha256)>, line: &Line, head: &Head) -> Result<(), String> {
    let wrong = unseen.iter().any(|(seq, hash)| *seq == head.seq && *hash != head.hash);
    unseen.retain(|(seq, _)| *seq != head.seq);
    if wrong { Err(format!("line {} is not the one that was seen", line.seq)) } else { Ok(()) }
}

/// Follows the chain through the store, from where it is, or else from where it begins there. What is
/// wrong with it.
pub(super) fn follow(
    reader: &Reader,
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
        return Ok(chain.begin(base));
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

/// How many lines the edge leaves without a checkpoint, and some that a command may have added
/// meanwhile.
pub(super) fn most_unsigned(config: Option<&Path>) -> Result<u64, CommandError> {
    const DEFAULT: u64 = 1000;
    const MEANWHILE: u64 = 2000;
    let lines = match config {
        Some(config) => site::load(config)?.audit.checkpoint_lines,
        None => DEFAULT,
    };
    Ok(lines.saturating_add(MEANWHILE))
}

/// The keys that checkpoints are verified with; `None` where none are at hand.
pub(super) fn keys(
    jwks: Option<&Path>,
    config: Option<&Path>,
) -> Result<Option<Vec<Value>>, CommandError> {
    let other = |text: String| CommandError::Other(text);
    let set: Value = match (jwks, config) {
        (Some(path), _) => {
            let named =
                |error: &dyn std::fmt::Display| other(format!("{}: {error}", path.display()));
            let text = std::fs::read(path).map_err(|error| named(&error))?;
            serde_json::from_slice(&text).map_err(|error| named(&error))?
        }
        (None, Some(config)) => match site::load(config)?.capsules {
            Some(capsules) => {
                let ring =
                    KeyRing::load(&capsules.keys).map_err(|error| other(error.to_string()))?;
                ring.audit_jwks()
            }
            None => return Ok(None),
        },
        (None, None) => return Ok(None),
    };
    let keys = set.get("keys").and_then(Value::as_array).cloned();
    keys.map(Some).ok_or_else(|| other("a JWK set is expected".to_owned()))
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
