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
    fn since(&self, earlier: &Self) -> Duration {
        self.surely_since(earlier).max(self.wall_since(earlier))
    }

    /// The same, by the clock that nobody sets.
    pub(super) fn surely_since(&self, earlier: &Self) -> Duration {
        self.monotonic.saturating_duration_since(earlier.monotonic)
    }

    /// The same, by the one that is set; nothing where it was set back by more.
    pub(super) fn wall_since(&self, earlier: &Self) -> Duration {
        let millis = self.wall.millis_since(earlier.wall);
        Duration::from_millis(u64::try_from(millis).unwrap_or_default())
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
    pub(super) fn later(&self, monotonic: Duration, wall_secs: i64) -> Self {
        let wall = UnixTime::from_millis(self.wall.millis() + wall_secs * 1000);
        Self { monotonic: self.monotonic + monotonic, wall }
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
