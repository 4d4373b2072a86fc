//! Parts of the chain in files: read, and written so that they are there when this says so.

use std::fs;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::PAGE;
use super::chain::{Chain, checkpoint_of};
use crate::cli::client::trace::clean;
use crate::cli::site::{self, CommandError};
use crate::policy::audit::{Head, Line, Preface};
use crate::store::directory_of;
use crate::store::sqlite::reader::Reader;

/// Longest line that is read, bytes: a decision about a capsule has some thousands.
const LINE_BYTES: u64 = 1 << 20;

/// A file with a part of a chain, read as far as what it begins with.
pub(super) struct File {
    pub(super) name: String,
    /// What its first line follows.
    pub(super) before: Head,
    preface: Option<Preface>,
    /// The first line, where it was no preface.
    first: Option<String>,
    lines: BufReader<fs::File>,
}

impl File {
    /// Opens it and reads its first line: a preface, or the first of the part itself.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub(super) fn open(path: &Path) -> Result<Self, CommandError> {
        let name = path.display().to_string();
        let none = |why: &str| CommandError::Other(format!("{name}: {why}"));
        let file = fs::OpenOptions::new().read(true).open(path);
        let mut lines = BufReader::new(file.map_err(|error| none(&error.to_string()))?);
        let first = next(&mut lines).map_err(|error| none(&error.to_string()))?;
        let first = first.ok_or_else(|| none("it is empty"))?;
        if let Some(preface) = Preface::read(&first) {
            let before = preface.before();
            return Ok(Self { name, before, preface: Some(preface), first: None, lines });
        }
        let line: Line = serde_json::from_str(&first)
            .map_err(|_| none("its first line is none of an audit log"))?;
        let before = Head { seq: line.seq.saturating_sub(1), hash: line.prev };
        Ok(Self { name, before, preface: None, first: Some(first), lines })
    }

    /// Follows `chain` through it. What is wrong with it, in words.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn follow(
        mut self,
        chain: &mut Chain,
        mut met: impl FnMut(&Line, &Head) -> Result<(), String>,
    ) -> Result<Result<(), String>, CommandError> {
        let begun = match &self.preface {
            Some(preface) => chain.begin_file(preface),
            None => chain.begin(self.before),
        };
        if begun.is_err() {
            return Ok(begun);
        }
        let failed = |error: io::Error| CommandError::Other(format!("{}: {error}", self.name));
        let mut line = self.first.take();
        while let Some(text) = match line.take() {
            Some(first) => Some(first),
            None => next(&mut self.lines).map_err(failed)?,
        } {
            let taken = chain.take(&text).and_then(|line| met(&line, &chain.head));
            if taken.is_err() {
                return Ok(taken);
            }
        }
        let (end, told) = (chain.head.seq, self.preface.as_ref().map(|preface| preface.to));
        Ok(match told.filter(|told| *told != end) {
            Some(told) => Err(format!("it ends at line {end}, its first line says {told}")),
            None => Ok(()),
        })
    }
}

/// The next line without its end; `None` at the end.
fn next(lines: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut text = String::new();
    let read = io::Read::take(&mut *lines, LINE_BYTES).read_line(&mut text)?;
    if read as u64 == LINE_BYTES {
        return Err(io::Error::other("a line is too long"));
    }
    if text.ends_with('\n') {
        text.pop();
    } else if read > 0 {
        return Err(io::Error::other("it was cut off within its last line"));
    }
    Ok((read > 0).then_some(text))
}

/// Writes the lines after `before` up to `to`, with a preface before them, following the chain while it
/// does so. The head after the last.
///
/// # Errors
/// They do not follow each other, or are not there any more; the store or `out` fails.
pub(super) fn write(
    reader: &Reader,
    before: Head,
    to: u64,
    out: &mut dyn Write,
) -> Result<Head, CommandError> {
    let signed = reader.checkpoint_up_to(before.seq)?.and_then(|text| {
        let line: Line = serde_json::from_str(&text).ok()?;
        checkpoint_of(&line.data)
    });
    let preface = Preface::new(&reader.chain()?, before, to, signed, site::now());
    let text = serde_json::to_string(&preface).map_err(io::Error::other)?;
    writeln!(out, "{text}")?;
    let mut head = before;
    while head.seq < to {
        let left = usize::try_from(to - head.seq).unwrap_or(PAGE).min(PAGE);
        let page = reader.lines(head.seq + 1, left)?;
        if page.is_empty() {
            let text = format!("line {} is not in the store any more", head.seq + 1);
            return Err(CommandError::Other(text));
        }
        for stored in page {
            let followed = head.follow(&stored.line);
            head = followed.map_err(|broken| CommandError::Other(broken.to_string()))?.0;
            writeln!(out, "{}", stored.line)?;
        }
    }
    Ok(head)
}

/// Makes a file that only its owner reads, has `fill` write to it, and gives it its name once all of it is
/// on the disk. There must be none of that name.
///
/// # Errors
/// What `fill` or the system says; then there is no file of that name.
pub(super) fn make<T>(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> Result<T, CommandError>,
) -> Result<T, CommandError> {
    let named = |error: io::Error| CommandError::Other(format!("{}: {error}", path.display()));
    let beside = beside(path);
    let made = || -> Result<T, CommandError> {
        // What a run left that was cut off: perhaps the same file as the one of that name.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(named(error)),
            Ok(()) | Err(_) => {}
        }
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut out = BufWriter::new(options.open(&beside).map_err(named)?);
        let value = fill(&mut out)?;
        let file = out.into_inner().map_err(|error| named(error.into_error()))?;
        file.sync_all().map_err(named)?;
        // A link never takes the place of what is there.
        fs::hard_link(&beside, path).map_err(named)?;
        Ok(value)
    };
    let made = made();
    let removed = fs::remove_file(&beside).map_err(named);
    let value = made?;
    removed?;
    let directory = fs::OpenOptions::new().read(true).open(directory_of(path));
    directory.and_then(|directory| directory.sync_all()).map_err(named)?;
    Ok(value)
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

/// A name from a file, for people.
pub(super) fn shown(name: &str) -> String {
    clean(name)
}
