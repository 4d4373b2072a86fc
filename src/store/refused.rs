//! Opaque tokens that their issuer does not vouch for, remembered for a short time, so that one that
//! keeps coming does not cost a question each time.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::policy::denial::Denial;
use crate::policy::digest::Sha256;
use crate::policy::time::UnixTime;

/// A bounded memory of refused tokens, by the SHA-256 of their text. Forgetting one is always safe:
/// its issuer is asked again. At capacity the oldest is forgotten.
#[derive(Debug)]
pub struct RefusedTokens {
    entries: Mutex<Entries>,
    capacity: usize,
    time_to_live: Duration,
}

#[derive(Debug, Default)]
struct Entries {
    by_hash: HashMap<Sha256, (Denial, UnixTime)>,
    /// In the order of their ends.
    ends: VecDeque<(UnixTime, Sha256)>,
}

impl RefusedTokens {
    /// A memory of at most `capacity` tokens, each for `time_to_live`.
    #[must_use]
    pub fn new(capacity: usize, time_to_live: Duration) -> Self {
        Self { entries: Mutex::default(), capacity, time_to_live }
    }

    /// Why the token with this hash was refused.
    #[must_use]
    pub fn recall(&self, hash: &Sha256, now: UnixTime) -> Option<Denial> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let (denial, end) = entries.by_hash.get(hash)?;
        (now < *end).then_some(*denial)
    }

    /// Remembers why a token was refused at `now`.
    pub fn remember(&self, hash: Sha256, denial: Denial, now: UnixTime) {
        let end = now.plus(self.time_to_live);
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((end, oldest)) = entries.ends.front().copied() {
            if now < end && entries.ends.len() < self.capacity {
                break;
            }
            entries.ends.pop_front();
            // It may have been refused again since.
            if entries.by_hash.get(&oldest).is_some_and(|(_, kept)| *kept == end) {
                entries.by_hash.remove(&oldest);
            }
        }
        entries.by_hash.insert(hash, (denial, end));
        entries.ends.push_back((end, hash));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u32) -> Sha256 {
        Sha256::of(&number.to_be_bytes())
    }

    fn at(seconds: i64) -> UnixTime {
        UnixTime::from_secs(seconds)
    }

    #[test]
    fn a_refusal_ends() {
        let memory = RefusedTokens::new(10, Duration::from_secs(5));
        memory.remember(hash(1), Denial::TokenInactive, at(100));
        assert_eq!(memory.recall(&hash(1), at(104)), Some(Denial::TokenInactive));
        assert_eq!(memory.recall(&hash(1), at(105)), None);
        assert_eq!(memory.recall(&hash(2), at(100)), None);
    }

    #[test]
    fn a_second_refusal_outlives_the_first() {
        let memory = RefusedTokens::new(10, Duration::from_secs(5));
        memory.remember(hash(1), Denial::TokenInactive, at(100));
        memory.remember(hash(1), Denial::TokenClaim, at(103));
        memory.remember(hash(2), Denial::TokenInactive, at(106));
        assert_eq!(memory.recall(&hash(1), at(107)), Some(Denial::TokenClaim));
    }

    #[test]
    fn it_is_bounded() {
        let memory = RefusedTokens::new(3, Duration::from_secs(5));
        for number in 0..1000 {
            memory.remember(hash(number), Denial::TokenInactive, at(100));
        }
        let entries = memory.entries.lock().unwrap();
        assert_eq!((entries.by_hash.len(), entries.ends.len()), (3, 3));
        drop(entries);
        assert_eq!(memory.recall(&hash(999), at(100)), Some(Denial::TokenInactive));
        assert_eq!(memory.recall(&hash(0), at(100)), None);
    }
}
