//! What the records come to, by tenant, client and route.

use std::collections::HashMap;

use super::nonces::Nonces;
use super::read::Record;
use crate::policy::denial::Lack;

/// Combinations of tenant, client and route that are told apart. Names of clients at token endpoints are
/// whatever was sent there.
const CELLS: usize = 100_000;

/// What clients past that are called, and what those are that nobody has named.
pub(super) const OTHERS: &str = "(others)";
pub(super) const UNNAMED: &str = "(not known)";

/// Whose requests are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) tenant: String,
    pub(super) client: String,
    pub(super) route: String,
}

/// A client of a tenant, on all of its routes.
pub(super) type Client<'a> = (&'a str, &'a str);

impl Key {
    pub(super) fn client(&self) -> Client<'_> {
        (&self.tenant, &self.client)
    }
}

/// How far the proofs' `iat` lay from now, milliseconds, and how many were refused for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Clock {
    pub(super) least: i64,
    pub(super) most: i64,
}

/// A count. Records of admitted requests may be sampled: then it is an estimate.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    /// Would pass, or did.
    pub(super) passed: f64,
    /// Of those, with a token that is bound to nothing, where a rule allows it.
    pub(super) unbound: f64,
    /// With a nonce that was good.
    pub(super) fresh: f64,
    /// Keys that have sent one, each where it was first seen.
    pub(super) fresh_keys: f64,
    /// By the temporary bypass.
    pub(super) bypassed: f64,
    /// Would not pass, or did not, by what they lack.
    pub(super) lacks: [f64; Lack::ALL.len()],
    /// Of all those, enforced.
    pub(super) enforced: f64,
    /// Refused in every mode.
    pub(super) refused: f64,
    pub(super) clock: Option<Clock>,
}

impl Cell {
    /// Requests that say something of a mode.
    pub(super) fn requests(&self) -> f64 {
        self.passed + self.bypassed + self.lacks.iter().sum::<f64>()
    }

    pub(super) fn lacking(&self, lack: Lack) -> f64 {
        self.lacks.get(lack as usize).copied().unwrap_or_default()
    }

    /// Takes in another.
    pub(super) fn join(&mut self, other: &Self) {
        self.passed += other.passed;
        self.unbound += other.unbound;
        self.fresh += other.fresh;
        self.fresh_keys += other.fresh_keys;
        self.bypassed += other.bypassed;
        self.enforced += other.enforced;
        self.refused += other.refused;
        for (own, other) in self.lacks.iter_mut().zip(other.lacks) {
            *own += other;
        }
        if let Some(clock) = other.clock {
            self.saw(clock);
        }
    }

    fn saw(&mut self, seen: Clock) {
        let own = self.clock.unwrap_or(seen);
        let (least, most) = (own.least.min(seen.least), own.most.max(seen.most));
        self.clock = Some(Clock { least, most });
    }

    fn add(&mut self, record: &Record) {
        if let Some(offset) = record.clock_offset_ms {
            self.saw(Clock { least: offset, most: offset });
        }
        let lack = record.lacks.as_deref();
        if lack.is_none() && record.mode.is_none() {
            self.refused += f64::from(record.result != "ok");
            return;
        }
        let weight = match record.ok_sample.filter(|share| *share > 0.0 && record.result == "ok") {
            Some(share) => 1.0 / share,
            None => 1.0,
        };
        match (lack, record.result.as_str()) {
            // A word of a later version is a fault of some kind.
            (Some(lack), _) => {
                let place = Lack::from_name(lack).unwrap_or(Lack::GoodProof) as usize;
                if let Some(count) = self.lacks.get_mut(place) {
                    *count += weight;
                }
            }
            (None, "ok") => {
                self.passed += weight;
                let unbound = record.admitted.as_deref() == Some("unbound");
                self.unbound += if unbound { weight } else { 0.0 };
            }
            (None, "bypass") => self.bypassed += weight,
            (None, _) => {
                self.refused += weight;
                return;
            }
        }
        self.fresh += if record.nonce_status == "fresh" { weight } else { 0.0 };
        self.enforced += if record.mode.as_deref() == Some("enforce") { weight } else { 0.0 };
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) cells: HashMap<Key, Cell>,
    /// Who takes nonces up.
    pub(super) nonces: Nonces,
    /// Whether clients were counted together because there are too many.
    pub(super) full: bool,
    /// Records that even so had no room.
    pub(super) left_out: u64,
}

impl Tally {
    pub(super) fn add(&mut self, record: &Record) {
        let text = |name: &Option<String>, none: &str| name.as_deref().unwrap_or(none).to_owned();
        let mut key = Key {
            tenant: text(&record.tenant, "default"),
            client: text(&record.client, UNNAMED),
            route: text(&record.route, "-"),
        };
        if self.cells.len() >= CELLS && !self.cells.contains_key(&key) {
            self.full = true;
            OTHERS.clone_into(&mut key.client);
            // Tenants and routes are few, unless the file is none of an edge's.
            if self.cells.len() >= 2 * CELLS && !self.cells.contains_key(&key) {
                self.left_out += 1;
                return;
            }
        }
        let (tenant, client) = (text(&record.tenant, "default"), text(&record.client, UNNAMED));
        let jkt = record.cnf_jkt.as_deref();
        if record.lacks.as_deref().and_then(Lack::from_name) == Some(Lack::Nonce) {
            self.nonces.missed(&key, &tenant, &client, jkt);
        }
        let fresh = jkt.filter(|_| record.nonce_status == "fresh");
        let first = fresh.is_some_and(|jkt| self.nonces.fresh(&tenant, &client, jkt));
        let cell = self.cells.entry(key).or_default();
        cell.fresh_keys += if first { 1.0 } else { 0.0 };
        cell.add(record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded() {
        let mut tally = Tally::default();
        let mut add = |client: String, route: String| {
            let record = Record {
                client: Some(client),
                route: Some(route),
                mode: Some("observe".into()),
                result: "ok".into(),
                ..Record::default()
            };
            tally.add(&record);
        };
        for number in 0..CELLS + 500 {
            add(format!("client-{number}"), "orders".to_owned());
        }
        assert!(tally.full);
        assert_eq!(tally.cells.len(), CELLS + 1);
        let key = Key { tenant: "default".into(), client: OTHERS.into(), route: "orders".into() };
        assert_eq!(tally.cells[&key].requests() as u64, 500);
        assert_eq!(tally.left_out, 0);
    }
}
