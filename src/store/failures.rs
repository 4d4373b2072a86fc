//! How often somebody failed, so that guessing has a limit: by address, and by node and address.
//!
//! Only failures count, and only failures are ever turned away: whoever passes is never locked out,
//! however many fail from where it is. Nothing here depends on whether a node exists.
//!
//! Each edge counts in its own memory; edges that share a Redis count there as well (`shared`).

#![expect(clippy::disallowed_methods, reason = "a limit has a clock")]

mod shared;

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use governor::clock::{Clock as _, MonotonicClock};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use tokio::runtime::Handle;

use crate::policy::digest::Sha256;
use crate::store::redis::Redis;
use shared::Shared;

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
    /// What other edges have counted.
    shared: Option<Shared>,
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

/// Whether there was room for a place of its own.
struct Room {
    address: bool,
    node: bool,
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
        Self { limits, by_address, by_node, key, began, swept, shared: None }
    }

    /// Has it counted in `redis` too, with all edges that count there under `name`.
    #[must_use]
    pub fn shared(mut self, redis: Redis, name: &'static str, runtime: &Handle) -> Self {
        self.shared = Some(Shared::new(redis, name, runtime.clone()));
        self
    }

    /// The limits that it was made with.
    #[must_use]
    pub fn limits(&self) -> FailureLimits {
        self.limits
    }

    /// Counts a failure of `address` at `node`, as it was named; one round trip where edges share it.
    ///
    /// # Errors
    /// How long to wait, when there were too many.
    pub async fn count(&self, address: Option<IpAddr>, node: &str) -> Result<(), Duration> {
        let place = address.map(network).unwrap_or_default();
        let room = self.count_here(place, node)?;
        match self.shared.as_ref().filter(|_| room.address) {
            Some(shared) => {
                let node = Some((node, self.limits.per_node.get())).filter(|_| room.node);
                shared.count(place, self.limits.per_address.get(), node).await
            }
            None => Ok(()),
        }
    }

    /// Counts what is no failure, such as a proof at a token endpoint, without waiting for anybody: what
    /// other edges have counted holds as soon as this one knows of it.
    ///
    /// # Errors
    /// How long to wait, when there were too many.
    pub fn take(&self, address: Option<IpAddr>) -> Result<(), Duration> {
        let place = address.map(network).unwrap_or_default();
        let room = self.count_here(place, "")?;
        let limit = self.limits.per_address;
        let limited = limit != NonZeroU32::MAX;
        match self.shared.as_ref().filter(|_| room.address && limited) {
            Some(shared) => shared.count_behind(place, limit.get()),
            None => Ok(()),
        }
    }

    fn count_here(&self, place: [u8; 8], node: &str) -> Result<Room, Duration> {
        let pair = place_of(&[&self.key[..], &place, node.as_bytes()].concat());
        let address = place_of(&[&self.key[..], &place].concat());
        let [swept_address, swept_node] = &self.swept;
        let wait = |limiter: &Keyed, key: u64| {
            let late = limiter.check_key(&key).err();
            late.map_or(Ok(()), |late| Err(late.wait_time_from(MonotonicClock.now())))
        };
        let mut room =
            Room { address: self.has_room(&self.by_address, swept_address), node: false };
        wait(&self.by_address, if room.address { address } else { OVERFLOW })?;
        // An address that is past its limit takes no places of nodes, and where there are none left
        // its own limit is all that holds: nobody's node is another's.
        room.node = self.has_room(&self.by_node, swept_node);
        if room.node {
            wait(&self.by_node, pair)?;
        }
        Ok(room)
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

/// What one sender may choose its addresses from: an IPv4 address, or the /64 of an IPv6 one.
pub(super) fn network(address: IpAddr) -> [u8; 8] {
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
    use crate::store::bindings::tests::Server;

    fn failures(per_address: u32, per_node: u32, entries: usize) -> Failures {
        let number = |number| NonZeroU32::new(number).unwrap();
        let limits =
            FailureLimits { per_address: number(per_address), per_node: number(per_node), entries };
        Failures::new(limits, [7; 32])
    }

    /// Counts in this edge's memory alone.
    fn here(failures: &Failures, address: Option<IpAddr>, node: &str) -> Result<(), Duration> {
        failures.count_here(address.map(network).unwrap_or_default(), node).map(drop)
    }

    fn address(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, last]))
    }

    #[test]
    fn each_pair_and_each_address_has_its_own() {
        let failures = failures(5, 2, 100);
        assert_eq!(here(&failures, address(1), "a"), Ok(()));
        assert_eq!(here(&failures, address(1), "a"), Ok(()));
        let wait = here(&failures, address(1), "a").unwrap_err();
        assert!(wait > Duration::ZERO && wait <= Duration::from_secs(60), "{wait:?}");
        assert_eq!(here(&failures, address(1), "b"), Ok(()));
        assert_eq!(here(&failures, address(1), "c"), Ok(()));
        // The fifth of this address was the last.
        assert!(here(&failures, address(1), "d").is_err());
        assert_eq!(here(&failures, address(2), "a"), Ok(()));
    }

    #[test]
    fn an_ipv6_host_has_one_place_in_its_network() {
        let failures = failures(1, 1, 100);
        let at = |text: &str| here(&failures, Some(text.parse().unwrap()), "a");
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
            let _ = here(&failures, address(1), &format!("n{node}"));
        }
        assert_eq!(failures.by_node.len(), 5);
    }

    #[test]
    fn where_there_is_no_room_for_nodes_the_address_alone_counts() {
        let failures = failures(100, 1, 10);
        for node in 0..10 {
            assert_eq!(here(&failures, address(1), &format!("n{node}")), Ok(()));
        }
        // The table of nodes is full of somebody else's.
        assert_eq!(here(&failures, address(2), "a"), Ok(()));
        assert_eq!(here(&failures, address(2), "a"), Ok(()));
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
        let counted = (0..30).filter(|last| here(&failures, address(*last), "a").is_ok());
        assert_eq!(counted.count(), 11);
        assert!(failures.by_address.len() <= 11);
    }

    async fn edge(server: &Server) -> Failures {
        let redis = server.connect().await;
        failures(5, 2, 100).shared(redis, "test", &Handle::current())
    }

    #[tokio::test]
    async fn edges_count_together() {
        let scratch = tempfile::tempdir().unwrap();
        let Some(mut server) = Server::start(scratch.path()) else { return };
        let (one, two) = (edge(&server).await, edge(&server).await);
        for edge in [&one, &two] {
            assert_eq!(edge.count(address(1), "a").await, Ok(()));
        }
        // By itself neither is past its limit.
        let wait = two.count(address(1), "a").await.unwrap_err();
        assert!(wait > Duration::ZERO && wait <= Duration::from_secs(60), "{wait:?}");
        assert_eq!(one.count(address(2), "a").await, Ok(()));
        assert_eq!(one.count(address(1), "b").await, Ok(()));
        assert_eq!(two.count(address(1), "c").await, Ok(()));
        assert!(two.count(address(1), "d").await.is_err(), "the address's fifth was the last");
        // Another limit's places are others.
        let other = failures(5, 2, 100).shared(server.connect().await, "other", &Handle::current());
        assert_eq!(other.count(address(1), "a").await, Ok(()));
        // Every key ends within two minutes, and none has an address in it.
        let keys = server.raw(&["KEYS", "*:l:*"]);
        let keys: Vec<_> = keys.lines().filter(|line| line.starts_with('{')).collect();
        assert!(keys.len() >= 5, "{keys:?}");
        for key in keys {
            let left = server.raw(&["PTTL", key]);
            let left: i64 = left.trim_start_matches(':').trim().parse().unwrap();
            // One that has ended meanwhile says -2.
            assert!((-2..=120_000).contains(&left) && left != -1, "{left}");
            assert!(!key.contains("192.0.2"), "{key}");
        }
        // With the server gone each has its own, and nobody waits for it.
        server.stop();
        assert_eq!(one.count(address(3), "a").await, Ok(()));
        assert_eq!(one.count(address(3), "a").await, Ok(()));
        assert!(one.count(address(3), "a").await.is_err());
    }

    #[tokio::test]
    async fn what_is_counted_behind_its_answer_holds_at_the_other_edge() {
        let scratch = tempfile::tempdir().unwrap();
        let Some(server) = Server::start(scratch.path()) else { return };
        let edge =
            async || failures(5, 5, 100).shared(server.connect().await, "test", &Handle::current());
        let (one, two) = (edge().await, edge().await);
        let take = async |edge: &Failures, last| {
            let taken = edge.take(address(last)).is_ok();
            while edge.shared.as_ref().unwrap().under_way.load(Ordering::Acquire) > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            taken
        };
        for _ in 0..4 {
            assert!(take(&one, 1).await);
        }
        // The fifth is the last, at either.
        assert!(take(&two, 1).await);
        assert!(!take(&two, 1).await);
        assert!(take(&two, 2).await, "another's place is another's");
        // This edge knows nothing yet; what it lets by is counted all the same.
        assert!(take(&one, 1).await);
        assert!(!take(&one, 1).await);
    }
}
