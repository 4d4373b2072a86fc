//! How long to go on asking, and how long to pause: exponential backoff with full jitter, so that
//! nodes that lost the edge together do not come back together.

use std::time::Duration;

use tokio::time::Instant;

use super::clock::part;
use crate::policy::time::UnixTime;

/// The first pause is at most this.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// How long to go on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// How many times to ask again; `None`: as often as the time allows.
    pub(super) retries: Option<u32>,
    /// Until when, by a clock that nobody sets; `None`: without end.
    pub(super) until: Option<Instant>,
    /// Until when, by the wall clock.
    pub(super) expires: Option<UnixTime>,
    /// The longest pause that is not the edge's wish.
    pub(super) longest_pause: Duration,
}

impl Patience {
    /// How long to pause after `failures`, from 1; `None`: to give up. `wish` is the edge's
    /// `Retry-After`, which is kept, with the jitter on top.
    pub(super) fn pause(
        &self,
        failures: u32,
        wish: Option<Duration>,
        chance: u64,
        (now, wall): (Instant, UnixTime),
    ) -> Option<Duration> {
        if self.retries.is_some_and(|most| failures > most) {
            return None;
        }
        let doubled = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let most = FIRST_PAUSE.saturating_mul(doubled).min(self.longest_pause);
        let pause = wish.unwrap_or_default().checked_add(part(most, chance))?;
        let in_time =
            self.until.is_none_or(|until| now.checked_add(pause).is_some_and(|end| end < until));
        let alive = self.expires.is_none_or(|expires| wall.plus(pause) < expires);
        (in_time && alive).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patience(retries: Option<u32>) -> Patience {
        let longest_pause = Duration::from_secs(30);
        Patience { retries, until: None, expires: None, longest_pause }
    }

    fn clocks() -> (Instant, UnixTime) {
        (Instant::now(), UnixTime::from_secs(1_000_000))
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_are_jittered_from_nothing() {
        for (failures, most) in [
            (1, 500),
            (2, 1000),
            (3, 2000),
            (6, 16_000),
            (7, 30_000),
            (40, 30_000),
            (u32::MAX, 30_000),
        ] {
            let pause = |chance| patience(None).pause(failures, None, chance, clocks()).unwrap();
            assert_eq!(pause(0), Duration::ZERO, "{failures}");
            assert_eq!(pause(most), Duration::from_millis(most), "{failures}");
            assert_eq!(pause(most + 1), Duration::ZERO, "{failures}");
        }
    }

    #[test]
    fn the_edge_s_wish_is_the_least() {
        let wish = Some(Duration::from_secs(7));
        let pause = |chance| patience(None).pause(1, wish, chance, clocks()).unwrap();
        assert_eq!((pause(0), pause(500)), (Duration::from_secs(7), Duration::from_millis(7500)));
    }

    #[test]
    fn patience_ends() {
        let pause = |patience: Patience, failures, wish| {
            patience.pause(failures, wish, 0, clocks()).is_some()
        };
        assert!(pause(patience(Some(2)), 2, None));
        assert!(!pause(patience(Some(2)), 3, None));
        assert!(!pause(patience(Some(0)), 1, None));
        let minute = Some(Duration::from_secs(60));
        let until = |seconds| Patience {
            until: Some(Instant::now() + Duration::from_secs(seconds)),
            ..patience(None)
        };
        assert!(pause(until(90), 1, minute) && !pause(until(30), 1, minute));
        let expires = |seconds: i64| Patience {
            expires: Some(UnixTime::from_secs(1_000_000 + seconds)),
            ..patience(None)
        };
        assert!(pause(expires(61), 1, minute) && !pause(expires(60), 1, minute));
        assert!(!pause(until(90), 1, Some(Duration::MAX)));
    }
}
