//! Records from log lines.

#![expect(
    clippy::disallowed_methods,
    reason = "a command reads files, and long work is seen by the clock"
)]

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal as _, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};

use super::report::Wanted;
use super::tally::Tally;
use crate::cli::site::CommandError;
use crate::policy::time::UnixTime;

/// Longest line that is read, bytes.
const LINE_BYTES: usize = 64 * 1024;
/// Lines that cannot be read and are named.
const NAMED: usize = 5;
/// Work that is shorter shows nothing; and how often it is shown.
const QUIET: Duration = Duration::from_secs(1);
/// Lines between two looks at the clock.
const GLANCE: u64 = 20_000;

/// The members of a record that are looked at.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Record {
    #[serde(default)]
    pub(super) event: String,
    #[serde(default)]
    pub(super) ts: String,
    pub(super) tenant: Option<String>,
    pub(super) client: Option<String>,
    pub(super) route: Option<String>,
    pub(super) mode: Option<String>,
    pub(super) admitted: Option<String>,
    pub(super) cnf_jkt: Option<String>,
    #[serde(default)]
    pub(super) nonce_status: String,
    #[serde(default)]
    pub(super) result: String,
    pub(super) lacks: Option<String>,
    pub(super) clock_offset_ms: Option<i64>,
    pub(super) ok_sample: Option<f64>,
    pub(super) count: Option<u64>,
}

/// What was read.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Summary {
    pub(super) files: Vec<String>,
    /// Lines, all of them.
    pub(super) lines: u64,
    /// Records of decisions among them.
    pub(super) records: u64,
    /// Lines that could not be read.
    pub(super) bad: u64,
    /// The first of those: file and line.
    pub(super) bad_lines: Vec<String>,
    /// Lines that the edge says it could not write.
    pub(super) suppressed: u64,
    /// Whether records of `ok` were sampled, so that counts are estimates.
    pub(super) sampled: bool,
    /// Time of the first record that counts.
    #[serde(serialize_with = "as_text")]
    pub(super) first: Option<UnixTime>,
    /// Of the last.
    #[serde(serialize_with = "as_text")]
    pub(super) last: Option<UnixTime>,
}

pub(super) fn as_text<S: serde::Serializer>(
    time: &Option<UnixTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.collect_str(&time.rfc3339()),
        None => serializer.serialize_none(),
    }
}

/// Reads all `files` into `tally`.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn read(
    files: &[PathBuf],
    wanted: &Wanted,
    tally: &mut Tally,
    errors: &mut dyn Write,
) -> Result<Summary, CommandError> {
    let mut summary = Summary::default();
    let mut shown = Shown { begun: Instant::now(), last: None };
    for path in files {
        let name =
            if is_stdin(path) { "standard input".to_owned() } else { path.display().to_string() };
        let named = |error: io::Error| CommandError::Other(format!("{name}: {error}"));
        let mut source = open(path).map_err(named)?;
        let (mut line, mut number) = (Vec::new(), 0_u64);
        while next_line(&mut source, &mut line).map_err(named)? {
            number += 1;
            summary.lines += 1;
            if summary.lines.is_multiple_of(GLANCE) {
                shown.show(summary.lines, &name, errors);
            }
            if !take(&line, wanted, tally, &mut summary) {
                summary.bad += 1;
                if summary.bad_lines.len() < NAMED {
                    summary.bad_lines.push(format!("{name}:{number}"));
                }
            }
        }
        summary.files.push(name);
    }
    shown.end(errors);
    Ok(summary)
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn open(path: &Path) -> io::Result<Box<dyn BufRead>> {
    let source: Box<dyn Read> =
        if is_stdin(path) { Box::new(io::stdin()) } else { Box::new(File::open(path)?) };
    let mut source = BufReader::with_capacity(256 * 1024, source);
    let zipped = source.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    // What logrotate has put together has several members.
    Ok(if zipped {
        Box::new(BufReader::new(MultiGzDecoder::new(source)))
    } else {
        Box::new(source)
    })
}

/// Reads the next line into `line`, no more of it than one byte past [`LINE_BYTES`]. Whether there was one.
fn next_line(source: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let mut any = false;
    loop {
        let buffer = source.fill_buf()?;
        if buffer.is_empty() {
            return Ok(any);
        }
        any = true;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let found = buffer.get(..end.unwrap_or(buffer.len())).unwrap_or_default();
        let room = (LINE_BYTES + 1).saturating_sub(line.len());
        line.extend(found.iter().take(room));
        let read = end.map_or(buffer.len(), |end| end + 1);
        source.consume(read);
        if end.is_some() {
            return Ok(true);
        }
    }
}

/// Takes in a line. Whether it could be read.
fn take(line: &[u8], wanted: &Wanted, tally: &mut Tally, summary: &mut Summary) -> bool {
    if line.trim_ascii().is_empty() {
        return true;
    }
    // A collector may have put a time or a name before it.
    let Some(begin) = line.iter().position(|byte| *byte == b'{') else { return false };
    let text = line.get(begin..).unwrap_or_default();
    if line.len() > LINE_BYTES {
        return false;
    }
    let Ok(record) = serde_json::from_slice::<Record>(text) else { return false };
    if record.event == "holdfast.log.suppressed" {
        // It tells of what was lost before it. Without a time it is of any.
        let at = UnixTime::from_rfc3339(&record.ts);
        let counts = wanted.since.is_none_or(|since| at.is_none_or(|at| at >= since));
        let count = record.count.filter(|_| counts).unwrap_or_default();
        summary.suppressed = summary.suppressed.saturating_add(count);
        return record.count.is_some();
    }
    if record.event != "authority.dpop.request" {
        return true;
    }
    let Some(at) = UnixTime::from_rfc3339(&record.ts) else { return false };
    summary.records += 1;
    if wanted.since.is_some_and(|since| at < since) || !wanted.has(&record) {
        return true;
    }
    summary.first = Some(summary.first.map_or(at, |first| first.min(at)));
    summary.last = summary.last.max(Some(at));
    summary.sampled |= record.ok_sample.is_some();
    tally.add(&record);
    true
}

/// How far the work has come, where somebody looks on.
struct Shown {
    begun: Instant,
    last: Option<Instant>,
}

impl Shown {
    fn show(&mut self, lines: u64, name: &str, errors: &mut dyn Write) {
        let early = self.last.unwrap_or(self.begun).elapsed() < QUIET;
        if early || !io::stderr().is_terminal() {
            return;
        }
        self.last = Some(Instant::now());
        // Nobody depends on it.
        let _ = write!(errors, "\r\x1b[Kreading {name}: {lines} lines");
        let _ = errors.flush();
    }

    fn end(&self, errors: &mut dyn Write) {
        if self.last.is_some() {
            let _ = write!(errors, "\r\x1b[K");
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Reads `text` as if it were a file.
    pub(crate) fn read_text(text: &str, wanted: &Wanted) -> (Tally, Summary) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let mut tally = Tally::default();
        let mut told = Vec::new();
        let summary = read(&[file.path().to_owned()], wanted, &mut tally, &mut told).unwrap();
        assert!(told.is_empty());
        (tally, summary)
    }

    const RECORD: &str = r#"{"ts":"2026-11-26T10:00:00.000Z","event":"authority.dpop.request","tenant":null,"client":"c","route":"r","mode":"observe","nonce_status":"fresh","result":"ok"}"#;

    #[test]
    fn lines_of_every_kind_are_read_or_counted() {
        let long = format!("{}{}", RECORD.trim_end_matches('}'), r#","x":""#)
            + &"x".repeat(LINE_BYTES)
            + "\"}";
        let lines = [
            RECORD,
            "2026-11-26T10:00:00Z stdout F {\"event\":\"process\"}",
            &format!("Nov 26 10:00:00 host holdfast[17]: {RECORD}"),
            "",
            r#"{"ts":"2026-11-26T10:00:00.000Z","event":"holdfast.log.suppressed","count":4}"#,
            r#"{"event":"authority.dpop.request","ts":"yesterday","result":"ok"}"#,
            "not a record",
            r#"{"event":"authority.dpop.request""#,
            &long,
            "{\"event\":\"authority.dpop.request\",\"tenant\":5}",
            "\u{1b}[31m{\"event\":\"process\",\"level\":\"INFO\"}",
        ];
        let (_, summary) = read_text(&lines.join("\n"), &Wanted::default());
        assert_eq!((summary.lines, summary.records, summary.bad), (11, 2, 5));
        assert_eq!(summary.suppressed, 4);
        let numbers: Vec<_> =
            summary.bad_lines.iter().filter_map(|at| at.rsplit(':').next()).collect();
        assert_eq!(numbers, ["6", "7", "8", "9", "10"]);
    }

    #[test]
    fn what_is_older_is_left_out() {
        let newer = RECORD.replace("T10:", "T12:");
        let since = UnixTime::from_rfc3339("2026-11-26T11:00:00Z");
        let wanted = Wanted { since, ..Wanted::default() };
        let lost =
            r#"{"ts":"2026-11-26T10:00:00.000Z","event":"holdfast.log.suppressed","count":4}"#;
        let later = lost.replace("T10:", "T12:").replace("4}", "5}");
        let text = format!("{RECORD}\n{lost}\n{newer}\n{later}\n");
        let (_, summary) = read_text(&text, &wanted);
        assert_eq!((summary.records, summary.first), (2, summary.last));
        assert_eq!((summary.suppressed, summary.bad), (5, 0));
        assert_eq!(summary.last, UnixTime::from_rfc3339("2026-11-26T12:00:00Z"));
    }

    #[test]
    fn zipped_files_are_read_member_by_member() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let member = |text: &str| {
            let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            zip.write_all(text.as_bytes()).unwrap();
            zip.finish().unwrap()
        };
        let line = format!("{RECORD}\n");
        std::fs::write(file.path(), [member(&line), member(&line)].concat()).unwrap();
        let mut tally = Tally::default();
        let files = [file.path().to_owned()];
        let summary = read(&files, &Wanted::default(), &mut tally, &mut Vec::new()).unwrap();
        assert_eq!((summary.records, summary.bad), (2, 0));
    }
}
