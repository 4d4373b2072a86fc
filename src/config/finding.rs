//! What is wrong with a configuration: each finding with its place.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can, but something in it may not do what its author expects.
    Warning,
}

impl Severity {
    /// The word for it in text and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// One error or warning.
///
/// Written as `authority.yaml:12: security.senderConstraints.mode: message`, with `warning: ` before
/// the key of a warning. Never holds a value that came from the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Error or warning.
    pub severity: Severity,
    /// The file as it was named.
    pub file: String,
    /// The line, from 1; 0 where the file as a whole is meant.
    pub line: usize,
    /// The key path, as in `routes[0].path`; empty for the file as a whole.
    pub key: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if self.line > 0 {
            write!(f, "{}:", self.line)?;
        }
        if self.severity == Severity::Warning {
            write!(f, " warning:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.message)
    }
}

/// A place in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// The line, from 1.
    pub(super) line: usize,
    /// The key path.
    pub(super) key: String,
}

/// Collects the findings of one file. Shared by all its readers, so that reading goes on after an
/// error.
#[derive(Debug)]
pub(super) struct Sink {
    file: String,
    base: PathBuf,
    findings: RefCell<Vec<Finding>>,
    known: RefCell<BTreeSet<String>>,
    files: RefCell<BTreeSet<PathBuf>>,
}

impl Sink {
    /// For `file`, with relative paths in it starting at `base`.
    pub(super) fn new(file: &str, base: &Path) -> Self {
        Self {
            file: file.to_owned(),
            base: base.to_owned(),
            findings: RefCell::default(),
            known: RefCell::default(),
            files: RefCell::default(),
        }
    }

    /// Where relative paths start.
    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    /// Adds a finding.
    pub(super) fn push(&self, severity: Severity, place: Place, message: String) {
        let Place { line, key } = place;
        let finding = Finding { severity, file: self.file.clone(), line, key, message };
        self.findings.borrow_mut().push(finding);
    }

    /// Whether an error was found so far.
    pub(super) fn has_errors(&self) -> bool {
        self.findings.borrow().iter().any(|finding| finding.severity == Severity::Error)
    }

    /// Remembers that the key at `path` is one that this build reads.
    pub(super) fn know(&self, path: String) {
        self.known.borrow_mut().insert(path);
    }

    /// Remembers that what is found depends on the file at `path`.
    pub(super) fn depends_on(&self, path: &Path) {
        self.files.borrow_mut().insert(path.to_owned());
    }

    /// Every finding in the order of lines, the paths of all keys that were asked for, list indices
    /// written as `[]` and names chosen by the user as `<name>`, and the files that were read.
    pub(super) fn into_parts(self) -> (Vec<Finding>, BTreeSet<String>, Vec<PathBuf>) {
        let mut findings = self.findings.into_inner();
        findings.sort_by_key(|finding| (finding.line, finding.severity));
        findings.dedup();
        (findings, self.known.into_inner(), self.files.into_inner().into_iter().collect())
    }
}

/// The one of `known` that `word` was most likely meant to be, and whether it is close enough to be
/// a slip of the hand. `None` when nothing is known.
pub(super) fn nearest<'a>(
    word: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<(&'a str, bool)> {
    // A word of the file may be long; comparing costs the product of both lengths.
    let word: String = word.chars().take(64).flat_map(char::to_lowercase).collect();
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, &candidate.to_lowercase()), candidate))
        .min()
        .map(|(distance, candidate)| (candidate, distance <= 2.max(candidate.len() / 3)))
}
