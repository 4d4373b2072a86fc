//! A server's clock, held against one that nobody sets.
//!
//! Keys end by the server's clock. One that is set forward ends them too soon: a proof that was used is not
//! known any more, and may still be shown.

#![expect(clippy::disallowed_methods, reason = "it is held against a clock")]

use std::time::{Duration, Instant};

use redis::{Pipeline, Value};

/// What keys are kept longer than is needed, for this among other reasons, has room for a smaller leap.
const SLACK: Duration = Duration::from_secs(2);

/// What a server's clock said, and between which moments it did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    at: Duration,
    asked: Instant,
    answered: Instant,
}

/// Asks for the time: one answer, for [`Reading::of`].
pub(super) fn ask(pipeline: &mut Pipeline) -> Instant {
    pipeline.cmd("TIME");
    Instant::now()
}

impl Reading {
    /// Reads it, as it comes; `None` for an answer that is none.
    pub(super) fn of(answer: &Value, asked: Instant) -> Option<Self> {
        let Value::Array(parts) = answer else { return None };
        let [Value::BulkString(seconds), Value::BulkString(micros)] = parts.as_slice() else {
            return None;
        };
        let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<u64>().ok();
        let at = Duration::from_secs(number(seconds)?)
            .checked_add(Duration::from_micros(number(micros)?))?;
        Some(Self { at, asked, answered: Instant::now() })
    }

    /// By how much the clock has gone on further than time has, since an earlier reading; `None` for about
    /// as much. Time is what the clock of this machine says that nobody sets: the other may be set together
    /// with the server's, and both be set back. Where this machine stood still, that looks like a leap.
    pub(super) fn leap_since(&self, earlier: &Self) -> Option<Duration> {
        let went_on = self.at.checked_sub(earlier.at)?;
        let at_most = self.answered.saturating_duration_since(earlier.asked) + SLACK;
        went_on.checked_sub(at_most).filter(|leap| !leap.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leap_is_what_no_time_went_by_for() {
        let secs = Duration::from_secs;
        let begin = Instant::now();
        let reading = |at: u64, asked: u64, answered: u64| {
            let (asked, answered) = (begin + secs(asked), begin + secs(answered));
            Reading { at: secs(at), asked, answered }
        };
        let first = reading(1000, 0, 1);
        for (at, asked, answered, leap) in [
            (1001, 1, 1, None),
            (1003, 1, 1, None),
            (1004, 1, 1, Some(1)),
            // The answer took its time.
            (1012, 1, 10, None),
            (1013, 1, 10, Some(1)),
            // Set back.
            (500, 1, 1, None),
        ] {
            let found = reading(at, asked, answered).leap_since(&first);
            assert_eq!(found, leap.map(secs), "{at} {asked} {answered}");
        }
    }

    #[test]
    fn reads_what_the_server_says() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let asked = Instant::now();
        let said = Value::Array(vec![text("1800000000"), text("250000")]);
        let at = Reading::of(&said, asked).unwrap().at;
        assert_eq!(at, Duration::from_millis(1_800_000_000_250));
        for other in
            [Value::Nil, Value::Array(vec![text("1")]), Value::Array(vec![text("x"), text("1")])]
        {
            assert!(Reading::of(&other, asked).is_none());
        }
    }
}
