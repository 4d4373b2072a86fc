//! Lines of the chain as lines, with what is needed to verify them by themselves.

use std::io::Write;
use std::path::Path;

use super::{Site, files};
use crate::cli::site::{self, CommandError, When};
use crate::policy::audit::Head;
use crate::store::sqlite::reader::Reader;

/// What is asked.
pub(super) struct Asked<'a> {
    pub(super) site: &'a Site,
    pub(super) since: Option<When>,
    pub(super) until: Option<When>,
    pub(super) out: Option<&'a Path>,
}

/// Writes them to `out`, or to a file, of which `errors` is told.
pub(super) fn run(
    asked: &Asked<'_>,
    out: &mut dyn Write,
    errors: &mut dyn Write,
) -> Result<(), CommandError> {
    let reader = asked.site.open()?;
    // `rotate` may move out meanwhile what is read.
    let reader = reader.snapshot()?;
    let Some((before, to)) = range(&reader, asked)? else {
        writeln!(errors, "nothing was written down in that time")?;
        return Ok(());
    };
    let Some(path) = asked.out else { return files::write(&reader, before, to, out).map(drop) };
    let head = files::make(path, |out| files::write(&reader, before, to, out))?;
    let (from, path) = (before.seq + 1, path.display());
    writeln!(errors, "{path}: lines {from} to {}, head {}:{}", head.seq, head.seq, head.hash)?;
    Ok(())
}

/// What the first line follows, and the last line: the first checkpoint after those that are wanted, which
/// covers them, where there is one.
fn range(reader: &Reader, asked: &Asked<'_>) -> Result<Option<(Head, u64)>, CommandError> {
    let (now, base) = (site::now(), reader.audit_base()?);
    let first = match asked.since {
        Some(since) => reader.first_since(since.at(now))?,
        None => Some(base.seq + 1),
    };
    let last = match asked.until {
        Some(until) => reader.last_before(until.at(now))?,
        None => Some(reader.last()?),
    };
    let Some((first, last)) = first.zip(last).filter(|(first, last)| first <= last) else {
        return Ok(None);
    };
    let to = reader.checkpoint_after(last)?.unwrap_or(last);
    let before = match first - 1 {
        seq if seq == base.seq => base,
        seq => {
            let hash = reader.line_hash(seq)?;
            let gone = || CommandError::Other(format!("line {seq} is not in the store any more"));
            Head { seq, hash: hash.ok_or_else(gone)? }
        }
    };
    Ok(Some((before, to)))
}
