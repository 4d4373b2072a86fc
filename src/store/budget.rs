//! How many refusals are written to the audit log: enough to see what happens, and never so many that
//! a stranger fills the disk that grants need: each client has a budget, where an IPv6 client is a /64, and
//! all strangers together have one of `STRANGERS` such budgets, however many addresses they come from.

#![expect(clippy::disallowed_methods, reason = "a budget has a clock")]

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::directory_of;
use super::failures::network;
use super::registry::Registry;

/// The time that a budget is for.
const WINDOW: Duration = Duration::from_secs(60);
/// How often the disk is asked for its room.
const LOOK: Duration = Duration::from_secs(1);
/// Clients and reasons that are told apart within a window; all others share one budget.
const PLACES: usize = 10_000;
/// Lines about all strangers in a window, in budgets of one. By default 600 lines a minute: half a gigabyte
/// a day where that never ends, which is time to see it and to rotate.
const STRANGERS: u32 = 20;

/// Who was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom<'a> {
    /// Somebody at an address, where it is known.
    Stranger(Option<IpAddr>),
    /// A node, which has shown that it is the one.
    Node(&'a str),
}

/// The budget of one process.
#[derive(Debug)]
pub struct Budget {
    per_window: u32,
    directory: PathBuf,
    reserve_bytes: u64,
    max_bytes: u64,
    registry: Option<Registry>,
    state: Mutex<State>,
    suppressed_ever: AtomicU64,
}

#[derive(Debug)]
struct State {
    began: Instant,
    nodes: HashMap<(String, &'static str), u32>,
    strangers: HashMap<([u8; 8], &'static str), u32>,
    /// Lines about all strangers.
    of_strangers: u32,
    /// Not written since the last one that was.
    suppressed: u64,
    looked: Option<Instant>,
    room: bool,
}

/// What becomes of a refusal's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is written; so many before it were not.
    Write {
        /// How many.
        suppressed: u64,
    },
    /// It is counted only.
    Suppress,
}

impl Budget {
    /// Of `per_window` records a minute for each client and reason, while the disk under `file` has
    /// `reserve_bytes` to spare.
    #[must_use]
    pub fn new(per_window: u32, file: &Path, reserve_bytes: u64) -> Self {
        let state = State {
            began: Instant::now(),
            nodes: HashMap::new(),
            strangers: HashMap::new(),
            of_strangers: 0,
            suppressed: 0,
            looked: None,
            room: true,
        };
        Self {
            per_window,
            directory: directory_of(file).to_owned(),
            reserve_bytes,
            max_bytes: u64::MAX,
            registry: None,
            state: Mutex::new(state),
            suppressed_ever: AtomicU64::new(0),
        }
    }

    /// And only while less than `max_bytes` of the file of `registry` are used. What is free in the file
    /// counts as unused: it does not grow before that is full.
    #[must_use]
    pub fn up_to(self, max_bytes: u64, registry: Registry) -> Self {
        Self { max_bytes, registry: Some(registry), ..self }
    }

    /// Records that were not written since the start.
    #[must_use]
    pub fn suppressed(&self) -> u64 {
        self.suppressed_ever.load(Ordering::Relaxed)
    }

    /// Takes one record about `whom` and `reason` out of the budget.
    pub fn take(&self, whom: Whom<'_>, reason: &'static str) -> Verdict {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(state.began) >= WINDOW {
            state.began = now;
            state.nodes.clear();
            state.strangers.clear();
            state.of_strangers = 0;
        }
        if state.looked.is_none_or(|looked| now.duration_since(looked) >= LOOK) {
            state.looked = Some(now);
            state.room = self.has_room();
        }
        if state.room && self.spend(&mut state, whom, reason) {
            let suppressed = std::mem::take(&mut state.suppressed);
            return Verdict::Write { suppressed };
        }
        state.suppressed += 1;
        self.suppressed_ever.fetch_add(1, Ordering::Relaxed);
        Verdict::Suppress
    }

    /// Whether there is something left for it, which is less then.
    fn spend(&self, state: &mut State, whom: Whom<'_>, reason: &'static str) -> bool {
        let written = match whom {
            Whom::Node(node) => place(&mut state.nodes, (node.to_owned(), reason)),
            Whom::Stranger(address) => {
                // Before a place is taken: who comes from many addresses takes no more of them than lines.
                if state.of_strangers >= self.per_window.saturating_mul(STRANGERS) {
                    return false;
                }
                place(&mut state.strangers, (address.map(network).unwrap_or_default(), reason))
            }
        };
        if *written >= self.per_window {
            return false;
        }
        *written += 1;
        if matches!(whom, Whom::Stranger(_)) {
            // The line about those that were left out before it is one too.
            state.of_strangers += 1 + u32::from(state.suppressed > 0);
        }
        true
    }

    /// Those that were not written since the last one that was, which are told of now.
    pub fn flush(&self) -> u64 {
        std::mem::take(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner).suppressed)
    }

    /// Counts a refusal that is written down nowhere: none of its kind is, or it could not be.
    pub fn leave_out(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).suppressed += 1;
        self.suppressed_ever.fetch_add(1, Ordering::Relaxed);
    }

    /// Where the system does not say how much is left or used, nothing is held back.
    fn has_room(&self) -> bool {
        let full =
            |registry: &Registry| registry.used_bytes().is_ok_and(|used| used >= self.max_bytes);
        if self.registry.as_ref().is_some_and(full) {
            return false;
        }
        rustix::fs::statvfs(&self.directory)
            .map_or(true, |it| it.f_bavail.saturating_mul(it.f_frsize) >= self.reserve_bytes)
    }
}

/// The count at `key`, or the one that all share for whom there is no place.
fn place<'a, K: Default + Eq + std::hash::Hash>(
    places: &'a mut HashMap<(K, &'static str), u32>,
    key: (K, &'static str),
) -> &'a mut u32 {
    let known = places.len() < PLACES || places.contains_key(&key);
    places.entry(if known { key } else { (K::default(), "") }).or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::audit::{Draft, Kind};
    use crate::policy::time::UnixTime;
    use crate::store::sqlite::Database;
    use crate::store::sqlite::writer::CheckpointRule;

    fn at(address: &str) -> Whom<'_> {
        Whom::Stranger(Some(address.parse().unwrap()))
    }

    /// How many of these are written.
    fn written(budget: &Budget, addresses: impl Iterator<Item = String>) -> usize {
        addresses.filter(|it| budget.take(at(it), "X") != Verdict::Suppress).count()
    }

    #[test]
    fn each_client_and_reason_has_its_own_and_what_is_left_out_is_counted() {
        let scratch = tempfile::tempdir().unwrap();
        let budget = Budget::new(2, &scratch.path().join("x.db"), 0);
        let write = |suppressed| Verdict::Write { suppressed };
        let (a, b) = (Whom::Node("a"), at("192.0.2.1"));
        assert_eq!(budget.take(a, "X"), write(0));
        assert_eq!(budget.take(a, "X"), write(0));
        assert_eq!(budget.take(a, "X"), Verdict::Suppress);
        assert_eq!(budget.take(a, "X"), Verdict::Suppress);
        assert_eq!(budget.take(a, "Y"), write(2));
        assert_eq!(budget.take(b, "X"), write(0));
        assert_eq!(budget.take(Whom::Stranger(None), "X"), write(0));
        assert_eq!(budget.suppressed(), 2);
    }

    #[test]
    fn an_ipv6_client_has_one_budget_in_its_network() {
        let scratch = tempfile::tempdir().unwrap();
        let budget = Budget::new(30, &scratch.path().join("x.db"), 0);
        let hosts = (0..500).map(|host| format!("2001:db8::{host:x}"));
        assert_eq!(written(&budget, hosts), 30);
        let mapped = (0..40).map(|_| "::ffff:192.0.2.1".to_owned());
        assert_eq!(written(&budget, mapped), 30);
        assert_eq!(budget.take(at("192.0.2.1"), "X"), Verdict::Suppress);
        assert_ne!(budget.take(at("2001:db8:0:1::1"), "X"), Verdict::Suppress);
    }

    #[test]
    fn all_addresses_together_have_a_ceiling_and_take_nothing_from_nodes() {
        let scratch = tempfile::tempdir().unwrap();
        let budget = Budget::new(30, &scratch.path().join("x.db"), 0);
        let addresses = (0..20_000).map(|it| format!("198.{}.{}.1", it / 256, it % 256));
        assert_eq!(written(&budget, addresses), 600);
        assert_eq!(budget.suppressed(), 19_400);
        assert!(budget.state.lock().unwrap().strangers.len() <= 600);
        assert_eq!(budget.take(Whom::Node("a"), "X"), Verdict::Write { suppressed: 19_400 });
        assert_eq!(budget.take(Whom::Node("b"), "X"), Verdict::Write { suppressed: 0 });
    }

    #[test]
    fn a_disk_without_room_gets_none() {
        let scratch = tempfile::tempdir().unwrap();
        let budget = Budget::new(2, &scratch.path().join("x.db"), u64::MAX);
        assert_eq!(budget.take(at("192.0.2.1"), "X"), Verdict::Suppress);
    }

    #[test]
    fn a_store_that_is_as_large_as_it_may_be_gets_none_until_there_is_room_in_it() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("x.db");
        let rule = CheckpointRule { lines: 1000, interval: Duration::from_secs(3600) };
        let registry = Registry::open(&path, rule).unwrap();
        let empty = registry.used_bytes().unwrap();
        let data = serde_json::json!({ "x": "x".repeat(1_000_000) });
        let draft = Draft::new(Kind::Suppressed, UnixTime::from_secs(0), "x", None, &data);
        Database::open(&path).unwrap().transact(|batch| batch.append(&draft)).unwrap();
        let used = registry.used_bytes().unwrap();
        assert!(used >= empty + 900_000, "{empty}, then {used}");
        let take = |max| {
            let budget = Budget::new(2, &path, 0).up_to(max, registry.clone());
            budget.take(Whom::Node("a"), "X")
        };
        assert_eq!(take(used), Verdict::Suppress);
        assert_eq!(take(used + 1), Verdict::Write { suppressed: 0 });
        // The file keeps its size when lines are moved out.
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.execute("DELETE FROM audit WHERE length(line) > 1000000", []).unwrap();
        assert_eq!(take(used), Verdict::Write { suppressed: 0 });
    }
}
