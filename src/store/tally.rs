//! How many entries a process has put where they end by themselves, without a list of them: a few numbers
//! on a monotonic clock, whatever their count.

#![expect(clippy::disallowed_methods, reason = "what it counts ends by this clock")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Slices that an entry's life is cut into. What is counted ends up to one of them late.
const SLICES: u32 = 16;
/// Slices that live entries can be of: that in which the oldest came, and all that have begun since.
const PLACES: usize = SLICES as usize + 1;

/// A count of live entries that does not go past its capacity.
///
/// It is this process's alone: it begins at none, and whatever becomes of the entries elsewhere it counts
/// them until their time is over.
#[derive(Debug)]
pub(super) struct Tally {
    capacity: usize,
    slice_ms: u64,
    begun: Instant,
    /// By the slice in which they came, modulo the number of places: see [`Slice`].
    places: [AtomicU64; PLACES],
}

/// An entry that is counted. Dropped, it stays so until its time is over.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) struct Counted(u32);

/// One place: which slice, and how many entries came in it. A number of 64 bits, so that both change at
/// once; a capacity is far below 32.
#[derive(Clone, Copy, Debug)]
struct Slice {
    number: u32,
    entries: u32,
}

impl Slice {
    fn read(place: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = place.to_be_bytes();
        Self { number: u32::from_be_bytes([a, b, c, d]), entries: u32::from_be_bytes([e, f, g, h]) }
    }

    fn written(self) -> u64 {
        (u64::from(self.number) << 32) | u64::from(self.entries)
    }

    /// With one more, which came in slice `number`. Who was held up for so long that the place is a later
    /// one's is counted there.
    fn and_one(self, number: u32) -> Self {
        if self.number < number {
            Self { number, entries: 1 }
        } else {
            Self { entries: self.entries.saturating_add(1), ..self }
        }
    }

    /// With one less; `None` where what came in slice `number` is not counted any more.
    fn less_one(self, number: u32) -> Option<Self> {
        let entries = self.entries.checked_sub(1)?;
        (self.number == number).then_some(Self { entries, ..self })
    }

    fn lives_at(self, now: u32) -> bool {
        self.number.saturating_add(SLICES) >= now
    }
}

impl Tally {
    /// A count of at most `capacity` entries, each of which lives for `life`.
    #[must_use]
    pub(super) fn new(life: Duration, capacity: usize) -> Self {
        let life_ms = u64::try_from(life.as_millis()).unwrap_or(u64::MAX);
        Self {
            capacity,
            slice_ms: life_ms.div_ceil(SLICES.into()).max(1),
            begun: Instant::now(),
            places: Default::default(),
        }
    }

    /// Counts one more; `None` when there are as many as may be. To be called before the entry is made: of
    /// any number of calls at once no more get one than there is room for.
    #[must_use]
    pub(super) fn take(&self) -> Option<Counted> {
        self.take_at(self.begun.elapsed())
    }

    /// Does not count an entry that was certainly not made.
    pub(super) fn give_back(&self, Counted(number): Counted) {
        let less = |place| Slice::read(place).less_one(number).map(Slice::written);
        // An error: its time is over.
        let _ = self.place(number).fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
    }

    /// Entries that live.
    #[must_use]
    pub(super) fn live(&self) -> usize {
        self.live_in(self.slice(self.begun.elapsed()))
    }

    fn take_at(&self, elapsed: Duration) -> Option<Counted> {
        let number = self.slice(elapsed);
        // Who is refused is the cheaper for it, and in nobody's way.
        if self.live_in(number) >= self.capacity {
            return None;
        }
        let more = |place| Some(Slice::read(place).and_one(number).written());
        let _ = self.place(number).fetch_update(Ordering::SeqCst, Ordering::SeqCst, more);
        let counted = Counted(number);
        // One order of all changes and looks: whoever of several goes past the capacity sees it.
        if self.live_in(number) > self.capacity {
            self.give_back(counted);
            return None;
        }
        Some(counted)
    }

    fn live_in(&self, now: u32) -> usize {
        let slices = self.places.iter().map(|place| Slice::read(place.load(Ordering::SeqCst)));
        let live = slices.filter(|slice| slice.lives_at(now));
        live.map(|slice| usize::try_from(slice.entries).unwrap_or(usize::MAX)).sum()
    }

    fn slice(&self, elapsed: Duration) -> u32 {
        let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        u32::try_from(elapsed_ms / self.slice_ms).unwrap_or(u32::MAX)
    }

    fn place(&self, number: u32) -> &AtomicU64 {
        let [first, ..] = &self.places;
        let index = usize::try_from(number).unwrap_or_default() % PLACES;
        self.places.get(index).unwrap_or(first)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const LIFE: Duration = Duration::from_secs(320);

    fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn live(tally: &Tally, secs: u64) -> usize {
        tally.live_in(tally.slice(at(secs)))
    }

    #[test]
    fn full_takes_no_more_until_some_have_ended() {
        let tally = Tally::new(LIFE, 3);
        for (secs, room) in [
            (0, true),
            (100, true),
            (100, true),
            (100, false),
            (319, false),
            // The first ends a slice of 20 s late at most.
            (341, true),
            (341, false),
            (420, false),
            (441, true),
            (441, true),
            (441, false),
            // Whatever was long ago is over, and nobody has looked meanwhile.
            (100_000, true),
        ] {
            assert_eq!(tally.take_at(at(secs)).is_some(), room, "at {secs}");
        }
        assert_eq!(live(&tally, 100_000), 1);
    }

    #[test]
    fn counted_for_the_whole_life_wherever_a_slice_begins() {
        for start in 0..45 {
            let tally = Tally::new(LIFE, 10);
            let _counted = tally.take_at(at(start)).unwrap();
            assert_eq!(live(&tally, start + 319), 1, "from {start}");
            assert_eq!(live(&tally, start + 341), 0, "from {start}");
        }
    }

    #[test]
    fn what_was_not_made_leaves_its_room() {
        let tally = Tally::new(LIFE, 1);
        let counted = tally.take_at(at(0)).unwrap();
        assert_eq!(tally.take_at(at(1)), None);
        tally.give_back(counted);
        let late = tally.take_at(at(1)).unwrap();
        assert_eq!(live(&tally, 1), 1);
        // Its place is another slice's when the answer comes.
        let other = tally.take_at(at(20 * 17)).unwrap();
        tally.give_back(late);
        assert_eq!(live(&tally, 20 * 17), 1);
        // Who reads the clock, and is held up until the place is a later slice's, is counted there.
        tally.give_back(other);
        let other = tally.take_at(at(20 * 17)).unwrap();
        assert_eq!(tally.take_at(at(0)), None);
        tally.give_back(other);
        let _held_up = tally.take_at(at(0)).unwrap();
        assert_eq!(live(&tally, 20 * 17), 1);
    }

    #[test]
    fn the_shortest_life_and_the_longest() {
        for life in [Duration::ZERO, Duration::from_millis(1), Duration::MAX] {
            let tally = Tally::new(life, 1);
            assert!(tally.take().is_some(), "{life:?}");
            assert!(tally.take_at(Duration::MAX).is_some() || life == Duration::MAX, "{life:?}");
        }
    }

    /// However many come at once, and while slices begin and end.
    #[test]
    fn no_more_are_let_in_than_there_is_room_for() {
        const ROOM: usize = 1000;
        for step in [0, 1, 7] {
            let (tally, taken) = (Tally::new(LIFE, ROOM), AtomicUsize::new(0));
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for secs in 0..2000 {
                            match tally.take_at(at(secs * step / 50)) {
                                // A third are given back.
                                Some(counted) if secs % 3 == 0 => tally.give_back(counted),
                                Some(_) => drop(taken.fetch_add(1, Ordering::SeqCst)),
                                None => {}
                            }
                        }
                    });
                }
            });
            let (taken, last) = (taken.into_inner(), 1999 * step / 50);
            assert!(taken <= ROOM && live(&tally, last) == taken, "{taken} with {step}");
        }
    }
}
