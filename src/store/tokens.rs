//! Verified tokens, remembered by the SHA-256 of their text, so that a steady client costs one
//! signature check a request: its proof's.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use dashmap::DashMap;

use crate::policy::digest::Sha256;
use crate::policy::token::VerifiedToken;

type Generation = Arc<DashMap<Sha256, Arc<VerifiedToken>>>;

/// A bounded memory of verified tokens. Forgetting one is always safe: it is verified again.
///
/// Two generations of half the capacity each: when the young one is full it becomes the old one, and
/// what was in the old one and not asked for since is forgotten.
#[derive(Debug)]
pub struct TokenMemory {
    generations: ArcSwap<(Generation, Generation)>,
    turning: Mutex<()>,
    half: usize,
}

impl TokenMemory {
    /// A memory of at most `capacity` tokens (at least two).
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            generations: ArcSwap::from_pointee((Arc::default(), Arc::default())),
            turning: Mutex::new(()),
            half: (capacity / 2).max(1),
        }
    }

    /// The token whose text has this hash. Whether it still stands is the caller's to check.
    #[must_use]
    pub fn recall(&self, hash: &Sha256) -> Option<Arc<VerifiedToken>> {
        let generations = self.generations.load();
        let (young, old) = &**generations;
        if let Some(token) = young.get(hash) {
            return Some(Arc::clone(&token));
        }
        let token = Arc::clone(&*old.get(hash)?);
        self.remember(*hash, Arc::clone(&token));
        Some(token)
    }

    /// Remembers a token by the hash of its text.
    pub fn remember(&self, hash: Sha256, token: Arc<VerifiedToken>) {
        let generations = self.generations.load();
        if generations.0.len() < self.half {
            generations.0.insert(hash, token);
            return;
        }
        let turn = self.turning.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.generations.load_full();
        if current.0.len() >= self.half {
            let young = Generation::default();
            young.insert(hash, token);
            self.generations.store(Arc::new((young, Arc::clone(&current.0))));
        } else {
            current.0.insert(hash, token);
        }
        drop(turn);
    }

    /// Forgets a token that no longer stands.
    pub fn forget(&self, hash: &Sha256) {
        let generations = self.generations.load();
        generations.0.remove(hash);
        generations.1.remove(hash);
    }
}
