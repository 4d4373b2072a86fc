//! How many refusals are written to the audit log: enough to see what happens, and never so many that
//! a stranger fills the disk that grants need.

#![expect(clippy::disallowed_methods, reason = "a budget has a clock")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The time that a budget is for.
const WINDOW: Duration = Duration::from_secs(60);
/// How often the disk is asked for its room.
const LOOK: Duration = Duration::from_secs(1);
/// Clients and reasons that are told apart within a window; all others share one budget.
const PLACES: usize = 10_000;

/// The budget of one process.
#[derive(Debug)]
pub struct Budget {
    per_window: u32,
    directory: PathBuf,
    reserve_bytes: u64,
    state: Mutex<State>,
    suppressed_ever: AtomicU64,
}

#[derive(Debug)]
struct State {
    began: Instant,
    written: HashMap<(String, &'static str), u32>,
    /// Not written since the last one that was.
    suppressed: u64,
    looked: Option<Instant>,
    room: bool,
}

/// What becomes of a refusal's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is written; so many before it were not.
    Write {
        /// How many.
        suppressed: u64,
    },
    /// It is counted only.
    Suppress,
}

impl Budget {
    /// Of `per_window` records a minute for each client and reason, while the disk under `file` has
    /// `reserve_bytes` to spare.
    #[must_use]
    pub fn new(per_window: u32, file: &Path, reserve_bytes: u64) -> Self {
        let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty());
        let state = State {
            began: Instant::now(),
            written: HashMap::new(),
            suppressed: 0,
            looked: None,
            room: true,
        };
        Self {
            per_window,
            directory: directory.unwrap_or(Path::new(".")).to_owned(),
            reserve_bytes,
            state: Mutex::new(state),
            suppressed_ever: AtomicU64::new(0),
        }
    }

    /// Records that were not written since the start.
    #[must_use]
    pub fn suppressed(&self) -> u64 {
        self.suppressed_ever.load(Ordering::Relaxed)
    }

    /// Takes one record of `client` and `reason` out of the budget.
    pub fn take(&self, client: &str, reason: &'static str) -> Verdict {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(state.began) >= WINDOW {
            state.began = now;
            state.written.clear();
        }
        if state.looked.is_none_or(|looked| now.duration_since(looked) >= LOOK) {
            state.looked = Some(now);
            state.room = self.has_room();
        }
        let known = state.written.len() < PLACES;
        let key = if known { (client.to_owned(), reason) } else { (String::new(), "") };
        let room = state.room;
        let written = state.written.entry(key).or_default();
        if *written < self.per_window && room {
            *written += 1;
            let suppressed = std::mem::take(&mut state.suppressed);
            return Verdict::Write { suppressed };
        }
        state.suppressed += 1;
        self.suppressed_ever.fetch_add(1, Ordering::Relaxed);
        Verdict::Suppress
    }

    /// Those that were not written since the last one that was, which are told of now.
    pub fn flush(&self) -> u64 {
        std::mem::take(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner).suppressed)
    }

    /// Counts a refusal that is written down nowhere: none of its kind is, or it could not be.
    pub fn leave_out(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).suppressed += 1;
        self.suppressed_ever.fetch_add(1, Ordering::Relaxed);
    }

    /// Where the system does not say how much is left, nothing is held back.
    fn has_room(&self) -> bool {
        rustix::fs::statvfs(&self.directory)
            .map_or(true, |it| it.f_bavail.saturating_mul(it.f_frsize) >= self.reserve_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_and_reason_has_its_own_and_what_is_left_out_is_counted() {
        let scratch = tempfile::tempdir().unwrap();
        let budget = Budget::new(2, &scratch.path().join("x.db"), 0);
        let write = |suppressed| Verdict::Write { suppressed };
        assert_eq!(budget.take("a", "X"), write(0));
        assert_eq!(budget.take("a", "X"), write(0));
        assert_eq!(budget.take("a", "X"), Verdict::Suppress);
        assert_eq!(budget.take("a", "X"), Verdict::Suppress);
        assert_eq!(budget.take("a", "Y"), write(2));
        assert_eq!(budget.take("b", "X"), write(0));
        assert_eq!(budget.suppressed(), 2);
    }

    #[test]
    fn a_disk_without_room_gets_none() {
        let scratch = tempfile::tempdir().unwrap();
        let budget = Budget::new(2, &scratch.path().join("x.db"), u64::MAX);
        assert_eq!(budget.take("a", "X"), Verdict::Suppress);
    }
}
