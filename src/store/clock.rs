//! The clock of whatever keeps something.

#![expect(clippy::disallowed_methods, reason = "this is the clock")]

use std::time::{Duration, Instant, SystemTime};

use crate::policy::time::UnixTime;

/// The time.
pub(super) fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixTime::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// A moment by both clocks: one that nobody sets, but that stands still while the machine does (suspended,
/// or a virtual one that is paused), and one that goes on meanwhile, but is set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    monotonic: Instant,
    wall: UnixTime,
}

impl Moment {
    pub(super) fn now() -> Self {
        Self { monotonic: Instant::now(), wall: now() }
    }

    /// How long it was from `earlier` until now, at most: what either clock says.
    pub(super) fn since(&self, earlier: &Self) -> Duration {
        let wall = u64::try_from(self.wall.millis_since(earlier.wall)).unwrap_or_default();
        let monotonic = self.monotonic.saturating_duration_since(earlier.monotonic);
        monotonic.max(Duration::from_millis(wall))
    }

    /// How long ago it was, at most.
    pub(super) fn elapsed(&self) -> Duration {
        Self::now().since(self)
    }

    /// How long ago it was, at least: what the clock says that nobody sets.
    pub(super) fn elapsed_surely(&self) -> Duration {
        self.monotonic.elapsed()
    }

    #[cfg(test)]
    pub(super) fn ago(duration: Duration) -> Self {
        let Self { monotonic, wall } = Self::now();
        Self {
            monotonic: monotonic.checked_sub(duration).unwrap_or(monotonic),
            wall: wall.minus(duration),
        }
    }
}
