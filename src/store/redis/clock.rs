//! A server's clock, held against this machine's.
//!
//! Keys end by the server's clock. One that is set forward ends them too soon: a proof that was used is not
//! known any more, and may still be shown. It may not where this machine's own clock, by which proofs are
//! as old as they are, goes forward with it: one that stood still (suspended, a virtual one that was paused)
//! sees just that. So what counts is how much further the server's clock has gone on, at most, than the one that
//! nobody sets, and how much of that this machine's own has made good by now: where both were set forward and both
//! back again, the keys are gone, and the proofs are young.

use std::time::Duration;

use redis::{Pipeline, Value};

use crate::store::clock::Moment;

/// What keys are kept longer than is needed, for this among other reasons, has room for a smaller leap.
const SLACK: Duration = Duration::from_secs(2);
/// How long readings are held against the same one, at least: clocks that nobody sets are not right for ever.
const WHILE: Duration = Duration::from_secs(3600);

/// What a server's clock said, and between which moments it did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    at: Duration,
    asked: Moment,
    answered: Moment,
}

/// Asks for the time: one answer, for [`Reading::of`].
pub(super) fn ask(pipeline: &mut Pipeline) -> Moment {
    pipeline.cmd("TIME");
    Moment::now()
}

impl Reading {
    /// Reads it, as it comes; `None` for an answer that is none.
    pub(super) fn of(answer: &Value, asked: Moment) -> Option<Self> {
        let Value::Array(parts) = answer else { return None };
        let [Value::BulkString(seconds), Value::BulkString(micros)] = parts.as_slice() else {
            return None;
        };
        let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<u64>().ok();
        let at = Duration::from_secs(number(seconds)?)
            .checked_add(Duration::from_micros(number(micros)?))?;
        Some(Self { at, asked, answered: Moment::now() })
    }
}

/// What readings are held against.
#[derive(Clone, Copy, Debug)]
struct Since {
    first: Reading,
    /// By how much the server's clock has gone on further than time has, at most and for certain.
    ahead: Duration,
}

impl Since {
    fn new(first: Reading) -> Self {
        Self { first, ahead: Duration::ZERO }
    }

    /// By how much keys may have ended too soon; `None` for about nothing.
    fn leap(&mut self, now: &Reading) -> Option<Duration> {
        let went_by = now.answered.surely_since(&self.first.asked);
        let went_on = now.at.saturating_sub(self.first.at);
        if self.ahead <= SLACK / 2 && now.asked.surely_since(&self.first.answered) > went_on {
            // It was set back, or stood still: what it makes good of that is a leap to keys from now.
            *self = Self::new(*now);
            return None;
        }
        self.ahead = self.ahead.max(went_on.saturating_sub(went_by));
        let own = now.answered.wall_since(&self.first.asked);
        let made_good = own.saturating_sub(now.asked.surely_since(&self.first.answered));
        let leap = self.ahead.saturating_sub(made_good);
        (leap > SLACK).then_some(leap)
    }
}

/// A server's clock, as it was read so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    /// What this machine's clock made good before does not make good a leap of now.
    last: Reading,
    /// Many small leaps add up, and what was made good can be undone. The later one takes the other's place, and
    /// begins anew.
    since: [Since; 2],
}

impl Clock {
    pub(super) fn new(first: Reading) -> Self {
        Self { last: first, since: [Since::new(first); 2] }
    }

    /// Takes note of a reading. By how much the clock was set forward, if it was; from then on this reading
    /// is what others are held against.
    pub(super) fn leaps(&mut self, now: Reading) -> Option<Duration> {
        let before = Since::new(self.last).leap(&now);
        self.last = now;
        let [earlier, later] = &mut self.since;
        let leap = earlier.leap(&now).max(later.leap(&now)).max(before);
        if leap.is_some() {
            *self = Self::new(now);
        } else if now.asked.surely_since(&later.first.answered) >= WHILE {
            self.since = [*later, Since::new(now)];
        }
        leap
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// Readings: what the server said, when it was asked and when it had answered by the clock that nobody
    /// sets, and by how much the other is further by then.
    fn leaps(readings: &[(u64, u64, u64, i64)]) -> Vec<Option<u64>> {
        let begin = Moment::now();
        let reading = |&(at, asked, answered, wall): &(u64, u64, u64, i64)| {
            let moment =
                |after: u64| begin.later(secs(after), i64::try_from(after).unwrap() + wall);
            Reading { at: secs(at), asked: moment(asked), answered: moment(answered) }
        };
        let mut clock = Clock::new(reading(&(1000, 0, 0, 0)));
        readings.iter().map(|it| clock.leaps(reading(it)).map(|leap| leap.as_secs())).collect()
    }

    #[test]
    fn a_leap_is_what_no_time_went_by_for() {
        for (name, readings, expect) in [
            ("as time goes by", vec![(1001, 1, 1, 0), (1002, 2, 2, 0)], vec![None, None]),
            ("a little", vec![(1003, 1, 1, 0)], vec![None]),
            ("a leap, once", vec![(1004, 1, 1, 0), (1005, 2, 2, 0)], vec![Some(3), None]),
            (
                "many small ones",
                vec![(1002, 1, 1, 0), (1004, 2, 2, 0), (1006, 3, 3, 0)],
                vec![None, None, Some(3)],
            ),
            ("a slow answer", vec![(1011, 1, 10, 0)], vec![None]),
            (
                "set back, and put right",
                vec![(500, 1, 1, 0), (1003, 3, 3, 0)],
                vec![None, Some(501)],
            ),
            (
                "stood still, and put right",
                vec![(1001, 61, 61, 0), (1063, 63, 63, 0)],
                vec![None, Some(60)],
            ),
            (
                "after this machine's was set",
                vec![(1001, 1, 1, 600), (1002, 2, 2, 600), (1603, 3, 3, 600)],
                vec![None, None, Some(600)],
            ),
            ("after a slow answer", vec![(1012, 2, 12, 0), (1018, 13, 13, 0)], vec![None, Some(5)]),
            (
                "stood still, and made good slowly",
                vec![(1001, 61, 61, 0), (1012, 71, 71, 0), (1023, 81, 81, 0), (1034, 91, 91, 0)],
                vec![None, None, None, Some(3)],
            ),
            ("set back", vec![(500, 1, 1, 0), (501, 2, 2, 0)], vec![None, None]),
            ("a great one", vec![(1601, 1, 1, 0)], vec![Some(600)]),
            // Proofs are as old here as their keys are there.
            (
                "this machine stood still",
                vec![(1601, 1, 1, 600), (1602, 2, 2, 600)],
                vec![None, None],
            ),
            (
                "and its clock was put right later",
                vec![(1601, 1, 1, 0), (1602, 2, 2, 600)],
                vec![Some(600), None],
            ),
            ("both were set", vec![(1601, 1, 1, 600), (1602, 2, 2, 600)], vec![None, None]),
            ("and back", vec![(1601, 1, 1, 600), (1002, 2, 2, 0)], vec![None, Some(600)]),
            (
                "back together, in two steps",
                vec![(1601, 1, 1, 600), (1302, 2, 2, 300)],
                vec![None, Some(300)],
            ),
            ("this machine's alone", vec![(1001, 1, 1, -60), (1002, 2, 2, 60)], vec![None, None]),
        ] {
            assert_eq!(leaps(&readings), expect, "{name}");
        }
    }

    /// A clock that nobody sets and that is a little slow is no leap, however long it goes on.
    #[test]
    fn what_it_is_held_against_is_not_for_ever() {
        let day =
            (1..=24 * 6).map(|step| (1000 + step * 600 + step / 6, step * 600, step * 600, 0));
        assert!(leaps(&day.collect::<Vec<_>>()).iter().all(Option::is_none));
        // And yet what was an hour ago is not forgotten.
        let mut readings: Vec<_> =
            (1..=5).map(|step| (1000 + step * 600 + 600, step * 600, step * 600, 600)).collect();
        readings.push((1000 + 3610, 3610, 3610, 0));
        assert_eq!(leaps(&readings).last(), Some(&Some(600)));
    }

    #[test]
    fn reads_what_the_server_says() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let asked = Moment::now();
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
