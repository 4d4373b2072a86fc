//! One address of a server, and how it stands.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pingora::upstreams::peer::HttpPeer;

/// How long a server that could not be connected to is passed over where there is another.
const REST: Duration = Duration::from_secs(5);

/// One address of a server.
#[derive(Debug)]
pub struct Target {
    /// Index of the server in the configuration.
    pub(super) server: usize,
    pub(super) address: SocketAddr,
    pub(super) peer: HttpPeer,
    down: AtomicBool,
    /// Milliseconds on the upstream's clock until which it is passed over.
    resting: AtomicU64,
    checks: Mutex<Checks>,
}

#[derive(Debug, Default)]
struct Checks {
    /// Whether one has ended.
    any: bool,
    /// Outcomes in a row that speak against what holds.
    against: u32,
    error: Option<String>,
}

impl Target {
    pub(super) fn new(server: usize, address: SocketAddr, peer: HttpPeer) -> Self {
        let (down, resting, checks) = (AtomicBool::new(false), AtomicU64::new(0), Mutex::default());
        Self { server, address, peer, down, resting, checks }
    }

    /// Whether checks found it up; without checks it is.
    pub(super) fn is_up(&self) -> bool {
        !self.down.load(Ordering::Acquire)
    }

    /// Whether a request may go there before others were tried.
    pub(super) fn is_usable(&self, now: u64) -> bool {
        self.is_up() && self.resting.load(Ordering::Acquire) <= now
    }

    /// It could not be connected to.
    pub(super) fn rest(&self, now: u64) {
        let rest = u64::try_from(REST.as_millis()).unwrap_or(u64::MAX);
        self.resting.store(now.saturating_add(rest), Ordering::Release);
    }

    /// It was connected to.
    pub(super) fn rested(&self) {
        if self.resting.load(Ordering::Relaxed) != 0 {
            self.resting.store(0, Ordering::Release);
        }
    }

    /// Why the last check failed.
    pub(super) fn error(&self) -> Option<String> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner).error.clone()
    }

    /// Takes in the outcome of a check; the first decides alone, later ones by the numbers in a row.
    /// `Some` when that changed whether it is up.
    pub(super) fn checked(&self, outcome: Result<(), String>, down: u32, up: u32) -> Option<bool> {
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        let (good, was_up, first) = (outcome.is_ok(), self.is_up(), !checks.any);
        checks.any = true;
        checks.error = outcome.err();
        if good == was_up {
            checks.against = 0;
            return None;
        }
        checks.against += 1;
        if !first && checks.against < if good { up } else { down } {
            return None;
        }
        checks.against = 0;
        self.down.store(!good, Ordering::Release);
        Some(good)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        let address: SocketAddr = "10.0.0.1:80".parse().unwrap();
        Target::new(0, address, HttpPeer::new(address, false, String::new()))
    }

    #[test]
    fn checks_count_in_a_row_and_the_first_decides_alone() {
        let bad = || Err("no".to_owned());
        for (name, outcomes, up) in [
            ("ok/none", vec![], true),
            ("fail/the first", vec![bad()], false),
            ("ok/two of three", vec![Ok(()), bad(), bad()], true),
            ("fail/three", vec![Ok(()), bad(), bad(), bad()], false),
            ("ok/not in a row", vec![Ok(()), bad(), bad(), Ok(()), bad(), bad()], true),
            ("fail/one success after", vec![bad(), Ok(())], false),
            ("ok/two successes after", vec![bad(), Ok(()), Ok(())], true),
        ] {
            let target = target();
            for outcome in outcomes {
                target.checked(outcome, 3, 2);
            }
            assert_eq!(target.is_up(), up, "{name}");
        }
        let target = target();
        assert_eq!(target.checked(bad(), 3, 2), Some(false));
        assert_eq!(target.error().as_deref(), Some("no"));
        assert_eq!(target.checked(Ok(()), 3, 2), None);
        assert_eq!(target.checked(Ok(()), 3, 2), Some(true));
        assert_eq!(target.error(), None);
    }

    #[test]
    fn it_rests_for_a_while_after_a_failure() {
        let target = target();
        assert!(target.is_usable(0));
        target.rest(1000);
        assert!(!target.is_usable(5999));
        assert!(target.is_usable(6000));
        target.rested();
        assert!(target.is_usable(1000));
        assert!(target.is_up());
    }
}
