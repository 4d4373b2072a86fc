//! Who takes nonces up: told by key, as each copy of a client's program has its own.
//!
//! A client whose new program takes nonces up and whose old one never does looks, by counts alone, like one
//! that is challenged now and then. So each miss is held against what else its key did:
//!
//! | the key's misses | and good nonces | each miss |
//! |---|---|---|
//! | any | at least one | is excused: it would have tried again |
//! | two or more | none | is a lack |
//! | one | none | is excused where as many of the client's keys have sent good nonces as have not |
//! | without a key (token routes) | | is excused where the client has sent as many good nonces |

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};

use super::tally::{Cell, Client, Key};

/// Keys that have sent good nonces, and keys of a route that have not yet, which are told apart.
const KEYS: usize = 1_000_000;

/// Nonces that were good and that were missed, by key.
#[derive(Debug, Default)]
pub(super) struct Nonces {
    hasher: RandomState,
    fresh: HashSet<u64>,
    missed: HashMap<Key, Missed>,
    /// Keys in all of `missed`.
    missing: usize,
    /// Whether there was no room for some: their misses are lacks.
    pub(super) full: bool,
}

/// Misses of a client on a route.
#[derive(Debug, Default)]
struct Missed {
    /// By keys that have had no good one until then.
    by_key: HashMap<u64, u32>,
    /// By keys that have had one before.
    excused: f64,
    /// By nobody knows whom.
    unkeyed: f64,
}

impl Nonces {
    /// Counts a good nonce. Whether it is the first of its key.
    pub(super) fn fresh(&mut self, tenant: &str, client: &str, key: &str) -> bool {
        let key = self.hasher.hash_one((tenant, client, key));
        if self.fresh.len() >= KEYS && !self.fresh.contains(&key) {
            self.full = true;
            return false;
        }
        self.fresh.insert(key)
    }

    /// Counts a request of `key` without a good nonce, in the cell `of`; `tenant` and `client` are those of
    /// the record.
    pub(super) fn missed(&mut self, of: &Key, tenant: &str, client: &str, key: Option<&str>) {
        let missed = self.missed.entry(of.clone()).or_default();
        let Some(key) = key else {
            missed.unkeyed += 1.0;
            return;
        };
        let key = self.hasher.hash_one((tenant, client, key));
        if self.fresh.contains(&key) {
            missed.excused += 1.0;
        } else if let Some(count) = missed.by_key.get_mut(&key) {
            *count = count.saturating_add(1);
        } else if self.missing < KEYS {
            missed.by_key.insert(key, 1);
            self.missing += 1;
        } else {
            self.full = true;
        }
    }

    /// The misses in each cell that are excused; `whole` has each client's requests on all its routes.
    pub(super) fn excused(&self, whole: &HashMap<Client<'_>, Cell>) -> HashMap<&Key, f64> {
        // A nonce is good on every route of an origin: what a key does shows on all of them together.
        let mut of_key: HashMap<u64, u32> = HashMap::new();
        for (key, count) in self.missed.values().flat_map(|missed| &missed.by_key) {
            let sum = of_key.entry(*key).or_default();
            *sum = sum.saturating_add(*count);
        }
        let is_alone = |key: &u64| of_key.get(key) == Some(&1) && !self.fresh.contains(key);
        let mut of_client: HashMap<Client<'_>, [f64; 2]> = HashMap::new();
        for (of, missed) in &self.missed {
            let [alone, unkeyed] = of_client.entry(of.client()).or_default();
            *alone += missed.by_key.keys().filter(|key| is_alone(key)).map(|_| 1.0).sum::<f64>();
            *unkeyed += missed.unkeyed;
        }
        let excused = |(of, missed): (_, &Missed)| {
            let of: &Key = of;
            let [alone, unkeyed] = of_client.get(&of.client()).copied().unwrap_or_default();
            let (keys, good) =
                whole.get(&of.client()).map_or((0.0, 0.0), |cell| (cell.fresh_keys, cell.fresh));
            let mut excused = missed.excused;
            for (key, count) in &missed.by_key {
                if self.fresh.contains(key) || (is_alone(key) && alone <= keys) {
                    excused += f64::from(*count);
                }
            }
            if unkeyed <= good {
                excused += missed.unkeyed;
            }
            (of, excused)
        };
        self.missed.iter().map(excused).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell() -> Key {
        Key { tenant: "t".into(), client: "c".into(), route: "r".into() }
    }

    fn excused(nonces: &Nonces, cell: Cell) -> f64 {
        let whole = HashMap::from([(("t", "c"), cell)]);
        nonces.excused(&whole).values().sum()
    }

    #[test]
    fn memory_is_bounded_and_what_is_not_known_is_a_lack() {
        let mut nonces = Nonces::default();
        for number in 0..KEYS + 10 {
            nonces.missed(&cell(), "t", "c", Some(&number.to_string()));
        }
        assert!(nonces.full);
        assert_eq!(nonces.missing, KEYS);
        // Each of them could be excused, were there enough that take nonces up.
        let many = Cell { fresh_keys: 1e9, ..Cell::default() };
        assert_eq!(excused(&nonces, many) as usize, KEYS);

        let mut nonces = Nonces::default();
        let first = (0..KEYS + 10).filter(|number| nonces.fresh("t", "c", &number.to_string()));
        assert_eq!(first.count(), KEYS);
        assert!(nonces.full);
        for key in [0, KEYS + 5] {
            for _ in 0..3 {
                nonces.missed(&cell(), "t", "c", Some(&key.to_string()));
            }
        }
        assert_eq!(excused(&nonces, Cell::default()) as usize, 3);
    }
}
