//! Who knows which memory of proofs it is now.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use crate::policy::epoch::{Epoch, Reign};
use crate::policy::time::UnixTime;

/// How long, after another store has begun to be the one, nothing from before is served that another edge
/// may know to be revoked: within that time each edge says what it remembers.
pub const SETTLE: Duration = Duration::from_secs(5);

/// Knows which memory it is now.
pub trait Epochs: std::fmt::Debug + Send + Sync {
    /// The memory of now; `None` while nobody knows: then nothing may be admitted by a proof.
    fn current(&self) -> Option<Reign>;

    /// Whether a proof of that date may still be remembered here, which nothing but its date ties to this
    /// memory. To be asked right before it is.
    fn takes(&self, issued: UnixTime) -> bool {
        let _ = issued;
        true
    }
}

/// Nothing has taken the memory's place.
const NEVER: i64 = i64::MAX;

/// The memory of one process.
///
/// Where another process takes its place while it still has requests to finish, both are memories at one
/// time, and neither knows what the other admits. Nonces keep them apart; proofs without one are parted by
/// their date: [`Self::cede`] draws a line, behind everything that was admitted here, and from then on
/// what is dated up to it belongs here and what is dated later to the other ([`Self::begin`]).
#[derive(Debug)]
pub struct OfProcess {
    epoch: Epoch,
    since: AtomicI64,
    /// The latest date of what was remembered here.
    latest: AtomicI64,
    until: AtomicI64,
}

impl OfProcess {
    /// One that begins with `reign`.
    #[must_use]
    pub fn new(reign: Reign) -> Self {
        let since = reign.since.millis();
        Self {
            epoch: reign.epoch,
            since: AtomicI64::new(since),
            latest: AtomicI64::new(since),
            until: AtomicI64::new(NEVER),
        }
    }

    /// Leaves what is dated later than the answer to another memory; `now` or later, as proofs may be
    /// dated ahead.
    #[must_use]
    pub fn cede(&self, now: UnixTime) -> UnixTime {
        // In this order: what is not among the latest when that is read finds that this is over.
        self.until.store(now.millis(), Ordering::SeqCst);
        let line = self.latest.load(Ordering::SeqCst).max(now.millis());
        self.until.store(line, Ordering::SeqCst);
        UnixTime::from_millis(line)
    }

    /// The other memory has come to nothing, and admitted nothing that is dated after `end`: its end and
    /// what proofs may be dated ahead. What it may have admitted until then is refused.
    pub fn resume(&self, end: UnixTime) {
        self.since.fetch_max(end.millis(), Ordering::SeqCst);
        self.until.store(NEVER, Ordering::SeqCst);
    }

    /// Takes the place of a memory that has ceded at `line`.
    pub fn begin(&self, line: UnixTime) {
        self.since.fetch_max(line.millis(), Ordering::SeqCst);
    }
}

impl Epochs for OfProcess {
    fn current(&self) -> Option<Reign> {
        let since = UnixTime::from_millis(self.since.load(Ordering::SeqCst));
        Some(Reign { epoch: self.epoch, since })
    }

    fn takes(&self, issued: UnixTime) -> bool {
        self.latest.fetch_max(issued.millis(), Ordering::SeqCst);
        let within = issued.millis() <= self.until.load(Ordering::SeqCst);
        // Read after the end: whoever was let by since this memory resumed finds from when.
        within && issued.millis() > self.since.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> UnixTime {
        UnixTime::from_millis(millis)
    }

    fn memory(since: i64) -> OfProcess {
        OfProcess::new(Reign::of_process([1; 32], at(since)))
    }

    fn since(memory: &OfProcess) -> i64 {
        memory.current().unwrap().since.millis()
    }

    /// Whatever was admitted, and whenever the line is drawn, no date is both memories'.
    #[test]
    fn no_proof_is_two_memories() {
        for (admitted, now, line) in [(100, 200, 200), (230, 200, 230), (200, 200, 200)] {
            let (one, two) = (memory(0), memory(0));
            assert!(one.takes(at(admitted)));
            assert_eq!(one.cede(at(now)), at(line));
            two.begin(at(line));
            for date in [admitted, now, line, line + 1, line + 1000] {
                let (first, second) = (one.takes(at(date)), date > since(&two));
                assert!(first != second, "{date}, line {line}: {first} {second}");
            }
        }
    }

    #[test]
    fn what_comes_to_nothing_leaves_no_proof_admitted_twice() {
        let one = memory(0);
        let line = one.cede(at(100));
        assert!(!one.takes(at(150)));
        one.resume(at(300));
        assert!(one.takes(at(301)) && since(&one) == 300 && line == at(100));
        // One that was held against the time before is told so at the last.
        assert!(!one.takes(at(150)) && !one.takes(at(300)));
    }
}
