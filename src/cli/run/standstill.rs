//! Ends the process when the threads that serve stand still: who supervises it starts it again. A port that
//! is open says nothing of them, since the system accepts for them, and no request is answered. Where a
//! service manager watches as well it is there first ([`manager::watchdog`](super::manager::watchdog)).
//!
//! Neither a runtime nor the log is asked: both may be what stands still.

#![expect(clippy::disallowed_methods, reason = "it goes by the clock")]

use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::runtime::Handle;

/// From one look to the next.
const EVERY: Duration = Duration::from_secs(5);
/// A look that comes later than this says nothing: the whole process stood still (SIGSTOP), or the machine.
const LATE: Duration = Duration::from_secs(10);
/// Looks in a row at which the threads had not taken up what they were given before.
const MISSES: u32 = 12;
/// How long the last word may take.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Looks until it is dropped.
#[derive(Debug)]
pub(super) struct Watching {
    _until: Sender<()>,
}

impl Watching {
    /// Begins to look whether the threads of `serving` take up work.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn begin(serving: Handle) -> io::Result<Self> {
        let (until, ended) = channel();
        Builder::new().name("standstill".to_owned()).spawn(move || watch(&serving, &ended))?;
        Ok(Self { _until: until })
    }
}

fn watch(serving: &Handle, ended: &Receiver<()>) {
    let mut looks = Looks::default();
    let taken_up = Arc::new(AtomicBool::new(true));
    loop {
        // One is under way at most, however long they stand still.
        if taken_up.swap(false, Ordering::AcqRel) {
            let work = Arc::clone(&taken_up);
            serving.spawn(async move { work.store(true, Ordering::Release) });
        }
        let from = Instant::now();
        match ended.recv_timeout(EVERY) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
        if looks.stand_still(from.elapsed(), taken_up.load(Ordering::Acquire)) {
            end();
        }
    }
}

/// Looks in a row at which nothing had been taken up.
#[derive(Debug, Default)]
struct Looks(u32);

impl Looks {
    /// Counts a look that came `after` the one before it. Whether the threads stand still.
    fn stand_still(&mut self, after: Duration, taken_up: bool) -> bool {
        self.0 = if taken_up || after > LATE { 0 } else { self.0.saturating_add(1) };
        self.0 >= MISSES
    }
}

fn end() -> ! {
    let (said, word) = channel();
    let seconds = (EVERY * MISSES).as_secs();
    // Whoever reads it may stand still too.
    let saying = Builder::new().spawn(move || {
        let line =
            format!("error: the threads that serve have stood still for {seconds} s: aborted\n");
        let _ = io::stderr().write_all(line.as_bytes());
        let _ = said.send(());
    });
    if saying.is_ok() {
        let _ = word.recv_timeout(LAST_WORD);
    }
    // No key in a core dump.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    std::process::abort();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it ends there, look by look.
    fn ends_at(looks: impl IntoIterator<Item = (u64, bool)>) -> Option<usize> {
        let mut count = Looks::default();
        looks
            .into_iter()
            .position(|(after, taken_up)| count.stand_still(Duration::from_secs(after), taken_up))
    }

    #[test]
    fn ends_after_a_minute_in_a_row() {
        let (well, missed) = ((5, true), (5, false));
        let misses = |number| std::iter::repeat_n(missed, number);
        assert_eq!(ends_at(misses(100)), Some(11));
        assert_eq!(ends_at(std::iter::repeat_n(well, 1000)), None);
        assert_eq!(ends_at(misses(11).chain([well]).chain(misses(11))), None);
        assert_eq!(ends_at(misses(11).chain([well]).chain(misses(12))), Some(23));
    }

    #[test]
    fn who_has_slept_too_long_begins_anew() {
        let missed = |number| std::iter::repeat_n((5, false), number);
        // Stopped, or suspended: before the first, and just before the last.
        assert_eq!(ends_at([(3600, false)].into_iter().chain(missed(11))), None);
        assert_eq!(ends_at(missed(11).chain([(11, false)]).chain(missed(11))), None);
        assert_eq!(ends_at(missed(11).chain([(11, false)]).chain(missed(12))), Some(23));
        // Just late.
        assert_eq!(ends_at(missed(11).chain([(10, false)])), Some(11));
    }
}
