//! How far long work has come, where somebody looks.

#![expect(clippy::disallowed_methods, reason = "what takes long is known by the clock")]

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use crate::store::records::transfer::Progress;

/// Work that is shorter shows nothing; and how often a line is written anew.
const QUIET: Duration = Duration::from_secs(1);
const EVERY: Duration = Duration::from_millis(200);

/// A line on a terminal.
pub(super) struct Shown {
    begun: Instant,
    last: Option<Instant>,
    terminal: bool,
}

impl Shown {
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), last: None, terminal: io::stderr().is_terminal() }
    }

    /// Shows it, if it is time.
    pub(super) fn show(&mut self, progress: Progress) {
        self.say(&words(progress));
    }

    /// Says what is waited for, if it is time.
    pub(super) fn say(&mut self, words: &str) {
        let early = self.last.map_or(self.begun.elapsed() < QUIET, |last| last.elapsed() < EVERY);
        if !self.terminal || early {
            return;
        }
        self.last = Some(Instant::now());
        // Nobody depends on it.
        let _ = write!(io::stderr(), "\r\x1b[K{words}");
    }

    /// Takes the line away.
    pub(super) fn end(&self) {
        if self.last.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.end();
    }
}

fn words(progress: Progress) -> String {
    let Progress { what, done, of } = progress;
    match of.filter(|of| *of > 0) {
        Some(of) => format!("{what}: {done} of {of} records ({} %)", done.min(of) * 100 / of),
        None => format!("{what}: {done} records"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_how_far_it_is() {
        let progress = |of| Progress { what: "copying", done: 50, of };
        assert_eq!(words(progress(Some(200))), "copying: 50 of 200 records (25 %)");
        assert_eq!(words(progress(Some(0))), "copying: 50 records");
        assert_eq!(words(progress(None)), "copying: 50 records");
    }
}
