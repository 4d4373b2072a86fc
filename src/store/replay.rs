//! The replay log: which proofs were used (RFC 9449 section 11.1).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::policy::digest::Jkt;
use crate::policy::epoch::Epoch;
use crate::policy::proof::VerifiedProof;
use crate::policy::time::UnixTime;

/// Remembers proofs for as long as they could pass.
#[async_trait::async_trait]
pub trait ReplayLog: std::fmt::Debug + Send + Sync {
    /// Checks that this key has not used this `jti` within the window, and takes note of it, in one
    /// atomic step: of any number of calls with the same two at one time, here and at every edge that
    /// shares the log, one gets `Ok`.
    ///
    /// To be called last, when signature, token and binding hold: what gets here may fill the log.
    ///
    /// # Errors
    /// See [`ReplayFault`]; none of them may be taken as "new".
    async fn check_and_insert(&self, used: Use<'_>, now: UnixTime) -> Result<(), ReplayFault>;

    /// Live proofs that this process has had remembered, wherever they are held: what its capacity bounds.
    fn live(&self) -> usize;
}

/// One use of a proof.
#[derive(Clone, Copy, Debug)]
pub struct Use<'a> {
    /// The thumbprint of its key.
    pub jkt: Jkt,
    /// Its `jti`.
    pub jti: &'a str,
    /// The memory that it was verified for. Another one does not know whether it is new.
    pub epoch: Epoch,
}

impl<'a> Use<'a> {
    /// The use of this proof.
    #[must_use]
    pub fn of(proof: &'a VerifiedProof) -> Self {
        Self { jkt: proof.jkt(), jti: proof.jti(), epoch: proof.epoch() }
    }
}

/// Why a proof is not taken as new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayFault {
    /// It was used before.
    Replayed,
    /// The log is full of live proofs, and none of them is dropped for a new one.
    AtCapacity,
    /// The log is not there, or not the one that the proof was verified for: nobody knows whether it is
    /// new, nor whether it was taken note of.
    Down,
}

/// Tables a window is cut into; a table is dropped as a whole, one slice late at most.
const SLICES: i64 = 4;
/// Locks, so that a table that grows holds up one request in so many.
const SHARDS: usize = 1024;

/// The log of a single edge, in memory: 128-bit keyed hashes in tables by expiry, 21 to 27 bytes
/// a proof. A restart forgets; the epoch of the process and [`proof`] make up for that.
///
/// It keeps a proof no longer than its window: the clock that says when it is over is the one that says
/// whether the proof is fresh. They come apart only where that clock is set forward past the window and then
/// back again.
///
/// [`proof`]: crate::policy::proof
pub struct MemoryReplay {
    hash: Hmac<Sha256>,
    shards: Box<[Mutex<Shard>]>,
    slice_ms: i64,
    capacity: usize,
    live: AtomicUsize,
    swept: AtomicI64,
}

impl std::fmt::Debug for MemoryReplay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryReplay")
            .field("live", &self.live())
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

impl MemoryReplay {
    /// A log of at most `capacity` proofs, each held for at least `window`. `key` is fresh
    /// randomness: without it a stranger could choose where an entry falls.
    #[must_use]
    pub fn new(key: &[u8; 32], window: Duration, capacity: usize) -> Self {
        let mut block = zeroize::Zeroizing::new([0; 64]);
        let (half, _) = block.split_at_mut(key.len());
        half.copy_from_slice(key);
        let window_ms = i64::try_from(window.as_millis()).unwrap_or(i64::MAX - SLICES);
        Self {
            hash: Hmac::new(&(*block).into()),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            slice_ms: (window_ms + SLICES - 1) / SLICES.max(1),
            capacity,
            live: AtomicUsize::new(0),
            swept: AtomicI64::new(i64::MIN),
        }
    }

    fn entry(&self, jkt: Jkt, jti: &str) -> (usize, u128) {
        let mac = self.hash.clone().chain_update(jkt.0.0).chain_update(jti).finalize().into_bytes();
        let mac: [u8; 32] = mac.into();
        let (entry, rest) = mac.split_first_chunk().unwrap_or((&[0; 16], &[]));
        let shard = rest.first_chunk().map_or(0, |bytes| u16::from_be_bytes(*bytes));
        // Zero marks a free place.
        (usize::from(shard) % SHARDS, u128::from_be_bytes(*entry).max(1))
    }

    /// Takes a place in the count; when there is none, drops what has expired everywhere, once a
    /// slice, and tries again.
    fn reserve(&self, slice: i64) -> bool {
        let take = |live| (live < self.capacity).then_some(live + 1);
        let taken = || self.live.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok();
        if taken() {
            return true;
        }
        if self.swept.fetch_max(slice, Ordering::AcqRel) >= slice {
            return false;
        }
        for shard in &self.shards {
            self.release(lock(shard).expire(slice));
        }
        taken()
    }

    fn release(&self, entries: usize) {
        self.live.fetch_sub(entries, Ordering::AcqRel);
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    // A shard is never left half changed: nothing between lock and unlock can panic.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait::async_trait]
impl ReplayLog for MemoryReplay {
    async fn check_and_insert(&self, used: Use<'_>, now: UnixTime) -> Result<(), ReplayFault> {
        // Its epoch is this process's, as the log is.
        let (index, entry) = self.entry(used.jkt, used.jti);
        let slice = now.millis().div_euclid(self.slice_ms.max(1));
        let shard = self.shards.get(index).ok_or(ReplayFault::AtCapacity)?;
        let mut guard = lock(shard);
        self.release(guard.expire(slice));
        if guard.contains(entry) {
            return Err(ReplayFault::Replayed);
        }
        if self.live.load(Ordering::Acquire) >= self.capacity {
            // The sweep takes every lock, this one too.
            drop(guard);
            if !self.reserve(slice) {
                return Err(ReplayFault::AtCapacity);
            }
            guard = lock(shard);
            if guard.contains(entry) {
                self.release(1);
                return Err(ReplayFault::Replayed);
            }
        } else {
            self.live.fetch_add(1, Ordering::AcqRel);
        }
        guard.insert(slice, entry);
        Ok(())
    }

    fn live(&self) -> usize {
        self.live.load(Ordering::Acquire)
    }
}

#[derive(Default)]
struct Shard {
    /// By the slice in which its entries came, oldest first.
    tables: VecDeque<(i64, Table)>,
}

impl Shard {
    /// Drops the tables whose every entry is older than the window; how many entries that were.
    fn expire(&mut self, slice: i64) -> usize {
        let mut dropped = 0;
        while let Some((_, table)) =
            self.tables.pop_front_if(|(oldest, _)| oldest.saturating_add(SLICES) < slice)
        {
            dropped += table.len;
        }
        dropped
    }

    fn contains(&self, entry: u128) -> bool {
        self.tables.iter().rev().any(|(_, table)| table.contains(entry))
    }

    fn insert(&mut self, slice: i64, entry: u128) {
        // A clock that was set back must not shorten the life of what is there.
        match self.tables.back_mut() {
            Some((newest, table)) if *newest >= slice => table.insert(entry),
            Some(_) | None => {
                let mut table = Table::default();
                table.insert(entry);
                self.tables.push_back((slice, table));
            }
        }
    }
}

/// A set of non-zero numbers that are already hashes: open addressing, linear probing, never
/// fuller than three quarters, grown by a quarter so that growth costs little memory.
#[derive(Default)]
struct Table {
    places: Vec<u128>,
    len: usize,
}

impl Table {
    /// The places from where `entry` belongs, once around.
    fn probe(&self, entry: u128) -> impl Iterator<Item = usize> + use<> {
        let places = self.places.len();
        // Multiply and shift: a number of places that is no power of two costs no division.
        let start = ((entry >> 64) * places as u128) >> 64;
        let start = usize::try_from(start).unwrap_or(0);
        (start..places).chain(0..start)
    }

    fn contains(&self, entry: u128) -> bool {
        for place in self.probe(entry) {
            match self.places.get(place) {
                Some(held) if *held == entry => return true,
                Some(0) | None => return false,
                Some(_) => {}
            }
        }
        false
    }

    fn insert(&mut self, entry: u128) {
        if (self.len + 1) * 4 > self.places.len() * 3 {
            let grown = vec![0; self.places.len() * 5 / 4 + 8];
            for held in std::mem::replace(&mut self.places, grown) {
                if held != 0 {
                    self.place(held);
                }
            }
        }
        self.place(entry);
        self.len += 1;
    }

    fn place(&mut self, entry: u128) {
        for place in self.probe(entry) {
            if let Some(free) = self.places.get_mut(place).filter(|held| **held == 0) {
                *free = entry;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::digest::Sha256 as Digest;
    use std::collections::HashSet;
    use std::sync::Arc;

    const WINDOW: Duration = Duration::from_secs(300);

    fn jkt(byte: u8) -> Jkt {
        Jkt(Digest([byte; 32]))
    }

    fn used(key: u8, jti: &str) -> Use<'_> {
        Use { jkt: jkt(key), jti, epoch: Epoch(Digest([9; 32])) }
    }

    fn at(secs: i64) -> UnixTime {
        UnixTime::from_secs(1_800_000_000 + secs)
    }

    async fn all(log: &MemoryReplay, steps: &[(u8, &str, i64, Result<(), ReplayFault>)]) {
        for (key, jti, secs, expect) in steps {
            let found = log.check_and_insert(used(*key, jti), at(*secs)).await;
            assert_eq!(found, *expect, "key {key}, {jti} at {secs}");
        }
    }

    #[tokio::test]
    async fn by_key_and_jti_for_the_window() {
        let replayed = Err(ReplayFault::Replayed);
        let log = MemoryReplay::new(&[1; 32], WINDOW, 100);
        all(
            &log,
            &[
                (1, "a", 0, Ok(())),
                (1, "a", 0, replayed),
                (2, "a", 0, Ok(())),
                (1, "b", 0, Ok(())),
                (1, "a", 300, replayed),
                (1, "a", -5000, replayed),
                (1, "a", 376, Ok(())),
            ],
        )
        .await;
    }

    #[tokio::test]
    async fn held_for_the_whole_window_wherever_a_slice_begins() {
        for start in 0..80 {
            let log = MemoryReplay::new(&[1; 32], WINDOW, 100);
            all(
                &log,
                &[(1, "a", start, Ok(())), (1, "a", start + 300, Err(ReplayFault::Replayed))],
            )
            .await;
        }
    }

    #[tokio::test]
    async fn full_refuses_and_drops_nothing_alive() {
        let full = Err(ReplayFault::AtCapacity);
        let log = MemoryReplay::new(&[1; 32], WINDOW, 2);
        all(
            &log,
            &[
                (1, "a", 0, Ok(())),
                (1, "b", 0, Ok(())),
                (1, "c", 0, full),
                (1, "a", 0, Err(ReplayFault::Replayed)),
                (1, "c", 299, full),
                (1, "a", 299, Err(ReplayFault::Replayed)),
                (1, "c", 400, Ok(())),
                (1, "d", 400, Ok(())),
                (1, "e", 400, full),
            ],
        )
        .await;
        assert_eq!(log.live(), 2);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    #[expect(clippy::disallowed_methods, reason = "the test is about threads")]
    async fn one_of_many_at_once() {
        let log = Arc::new(MemoryReplay::new(&[1; 32], WINDOW, 100_000));
        for round in 0..200 {
            let tasks: Vec<_> = (0..16)
                .map(|_| {
                    let log = Arc::clone(&log);
                    tokio::spawn(async move {
                        log.check_and_insert(used(1, &round.to_string()), at(0)).await.is_ok()
                    })
                })
                .collect();
            let mut admitted = 0;
            for task in tasks {
                admitted += usize::from(task.await.unwrap());
            }
            assert_eq!(admitted, 1);
        }
    }

    #[test]
    fn a_table_is_a_set() {
        let mut table = Table::default();
        let mut model = HashSet::new();
        let mut number = 1u128;
        for _ in 0..5000 {
            number = number.wrapping_mul(0x2d99_787a_3a2f_1c55_b1a5_77d3_9f32_6e35).wrapping_add(1);
            assert!(!table.contains(number));
            table.insert(number);
            model.insert(number);
            assert!(table.places.len() * 3 >= table.len * 4);
        }
        assert!(model.iter().all(|number| table.contains(*number)));
        assert!(table.places.len() * 16 <= table.len * 40);
    }
}
