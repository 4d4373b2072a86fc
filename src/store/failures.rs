//! How often somebody failed, so that guessing has a limit: by address, and by node and address.
//!
//! Only failures count, and only failures are ever turned away: whoever passes is never locked out,
//! however many fail from where it is. Nothing here depends on whether a node exists.

#![expect(clippy::disallowed_methods, reason = "a limit has a clock")]

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use governor::clock::{Clock as _, MonotonicClock};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};

use crate::policy::digest::Sha256;

/// How many failures are taken a minute, and how many places are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureLimits {
    /// From one address (IPv6: one /64).
    pub per_address: NonZeroU32,
    /// At one node from one address.
    pub per_node: NonZeroU32,
    /// Addresses, and pairs of node and address, that are remembered.
    pub entries: usize,
}

impl Default for FailureLimits {
    fn default() -> Self {
        Self { per_address: NonZeroU32::MIN, per_node: NonZeroU32::MIN, entries: 1 }
    }
}

type Keyed = RateLimiter<
    u64,
    DashMapStateStore<u64>,
    MonotonicClock,
    NoOpMiddleware<<MonotonicClock as governor::clock::Clock>::Instant>,
>;

/// The failures of the last minute.
#[derive(Debug)]
pub struct Failures {
    limits: FailureLimits,
    by_address: Keyed,
    by_node: Keyed,
    /// A stranger must not be able to choose with whom it shares a place.
    key: [u8; 32],
    began: Instant,
    /// The second in which each table was last swept.
    swept: [AtomicU64; 2],
}

/// How many proofs one node may use up: far more than any needs, and far too few to fill the log that
/// all share.
#[derive(Debug)]
pub struct Pace(Keyed);

impl Pace {
    const PER_MINUTE: NonZeroU32 = NonZeroU32::MIN.saturating_add(999);

    /// Takes one proof of `node`, which is known to be its own; false when there were too many.
    #[must_use]
    pub fn take(&self, node: &str) -> bool {
        self.0.check_key(&place_of(node.as_bytes())).is_ok()
    }
}

impl Default for Pace {
    fn default() -> Self {
        let quota = Quota::per_minute(Self::PER_MINUTE);
        Self(RateLimiter::new(quota, DashMapStateStore::default(), MonotonicClock))
    }
}

/// The place of all that there is no room for.
const OVERFLOW: u64 = 0;

impl Failures {
    /// None so far. `key` is fresh randomness.
    #[must_use]
    pub fn new(limits: FailureLimits, key: [u8; 32]) -> Self {
        let keyed = |quota| {
            let quota = Quota::per_minute(quota);
            RateLimiter::new(quota, DashMapStateStore::default(), MonotonicClock)
        };
        let (by_address, by_node) = (keyed(limits.per_address), keyed(limits.per_node));
        let (began, swept) = (Instant::now(), Default::default());
        Self { limits, by_address, by_node, key, began, swept }
    }

    /// The limits that it was made with.
    #[must_use]
    pub fn limits(&self) -> FailureLimits {
        self.limits
    }

    /// Counts a failure of `address` at `node`, as it was named.
    ///
    /// # Errors
    /// How long to wait, when there were too many.
    pub fn count(&self, address: Option<IpAddr>, node: &str) -> Result<(), Duration> {
        let place = address.map(network).unwrap_or_default();
        let pair = place_of(&[&self.key[..], &place, node.as_bytes()].concat());
        let address = place_of(&[&self.key[..], &place].concat());
        let [swept_address, swept_node] = &self.swept;
        let wait = |limiter: &Keyed, key: u64| {
            let late = limiter.check_key(&key).err();
            late.map_or(Ok(()), |late| Err(late.wait_time_from(MonotonicClock.now())))
        };
        let room = self.has_room(&self.by_address, swept_address);
        wait(&self.by_address, if room { address } else { OVERFLOW })?;
        // An address that is past its limit takes no places of nodes, and where there are none left
        // its own limit is all that holds: nobody's node is another's.
        if self.has_room(&self.by_node, swept_node) {
            wait(&self.by_node, pair)?;
        }
        Ok(())
    }

    /// Whether one more place can be remembered. Those that are as good as new are forgotten first,
    /// once a second at most: to look costs as much as there are.
    fn has_room(&self, limiter: &Keyed, swept: &AtomicU64) -> bool {
        if limiter.len() < self.limits.entries {
            return true;
        }
        let second = self.began.elapsed().as_secs() + 1;
        if swept.fetch_max(second, Ordering::Relaxed) < second {
            limiter.retain_recent();
        }
        limiter.len() < self.limits.entries
    }
}

fn place_of(name: &[u8]) -> u64 {
    let hash = Sha256::of(name);
    hash.0.first_chunk().map_or(1, |bytes| u64::from_be_bytes(*bytes)).max(1)
}

/// What one sender may choose its addresses from.
fn network(address: IpAddr) -> [u8; 8] {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [0, 0, 0, 0, a, b, c, d]
        }
        IpAddr::V6(address) => {
            (address.to_bits() >> 64).to_be_bytes().last_chunk().copied().unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(per_address: u32, per_node: u32, entries: usize) -> Failures {
        let number = |number| NonZeroU32::new(number).unwrap();
        let limits =
            FailureLimits { per_address: number(per_address), per_node: number(per_node), entries };
        Failures::new(limits, [7; 32])
    }

    fn address(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, last]))
    }

    #[test]
    fn each_pair_and_each_address_has_its_own() {
        let failures = failures(5, 2, 100);
        assert_eq!(failures.count(address(1), "a"), Ok(()));
        assert_eq!(failures.count(address(1), "a"), Ok(()));
        let wait = failures.count(address(1), "a").unwrap_err();
        assert!(wait > Duration::ZERO && wait <= Duration::from_secs(60), "{wait:?}");
        assert_eq!(failures.count(address(1), "b"), Ok(()));
        assert_eq!(failures.count(address(1), "c"), Ok(()));
        // The fifth of this address was the last.
        assert!(failures.count(address(1), "d").is_err());
        assert_eq!(failures.count(address(2), "a"), Ok(()));
    }

    #[test]
    fn an_ipv6_host_has_one_place_in_its_network() {
        let failures = failures(1, 1, 100);
        let at = |text: &str| failures.count(Some(text.parse().unwrap()), "a");
        assert_eq!(at("2001:db8::1"), Ok(()));
        assert!(at("2001:db8::ffff:1").is_err());
        assert_eq!(at("2001:db8:0:1::1"), Ok(()));
        assert_eq!(at("192.0.2.1"), Ok(()));
        assert!(at("::ffff:192.0.2.1").is_err());
    }

    #[test]
    fn one_address_takes_no_more_places_than_it_may_fail() {
        let failures = failures(5, 1, 1000);
        for node in 0..100 {
            let _ = failures.count(address(1), &format!("n{node}"));
        }
        assert_eq!(failures.by_node.len(), 5);
    }

    #[test]
    fn where_there_is_no_room_for_nodes_the_address_alone_counts() {
        let failures = failures(100, 1, 10);
        for node in 0..10 {
            assert_eq!(failures.count(address(1), &format!("n{node}")), Ok(()));
        }
        // The table of nodes is full of somebody else's.
        assert_eq!(failures.count(address(2), "a"), Ok(()));
        assert_eq!(failures.count(address(2), "a"), Ok(()));
        assert!(failures.by_node.len() <= 10);
    }

    #[test]
    fn a_node_has_a_pace_of_its_own() {
        let pace = Pace::default();
        let taken = (0..1500).filter(|_| pace.take("a")).count();
        assert!((1000..1100).contains(&taken), "{taken}");
        assert!(pace.take("b"));
    }

    #[test]
    fn addresses_that_there_is_no_room_for_share_one_place() {
        let failures = failures(1, 100, 10);
        let counted = (0..30).filter(|last| failures.count(address(*last), "a").is_ok());
        assert_eq!(counted.count(), 11);
        assert!(failures.by_address.len() <= 11);
    }
}
