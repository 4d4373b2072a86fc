//! `holdfast check`: every error and warning of a configuration at once.

use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use crate::config::{self, Finding, Severity};

/// Loads the file at `path` and writes what is wrong with it, as text or as one JSON document.
/// Gives the exit status: 0, or 1 when there are errors.
///
/// # Errors
/// When `out` cannot be written to.
pub fn run(out: &mut impl Write, path: &Path, json: bool) -> io::Result<u8> {
    let findings = config::load(path).findings;
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    if json {
        let findings: Vec<_> = findings.iter().map(finding_json).collect();
        let ok = errors == 0;
        writeln!(out, "{:#}", json!({ "ok": ok, "errors": errors, "findings": findings }))?;
    } else {
        write_findings(out, &findings)?;
        let warnings = counted(findings.len() - errors, "warning");
        let (path, errors) = (path.display(), counted(errors, "error"));
        writeln!(out, "{path}: {errors}, {warnings}")?;
    }
    Ok(u8::from(errors > 0))
}

/// Writes one finding a line, the errors first.
pub(super) fn write_findings(out: &mut impl Write, findings: &[Finding]) -> io::Result<()> {
    for severity in [Severity::Error, Severity::Warning] {
        for finding in findings.iter().filter(|finding| finding.severity == severity) {
            writeln!(out, "{finding}")?;
        }
    }
    Ok(())
}

/// A finding as JSON; `line` is 0 where the file as a whole is meant.
pub(super) fn finding_json(finding: &Finding) -> serde_json::Value {
    json!({
        "severity": finding.severity.name(),
        "file": finding.file,
        "line": finding.line,
        "key": finding.key,
        "message": finding.message,
    })
}

fn counted(count: usize, noun: &str) -> String {
    match count {
        0 => format!("no {noun}s"),
        1 => format!("1 {noun}"),
        count => format!("{count} {noun}s"),
    }
}
