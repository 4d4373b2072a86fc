//! Which grant to ask about along with a token's record, before the record says so.

use std::sync::{Mutex, PoisonError};

use crate::policy::digest::Sha256;
use crate::policy::grant::RecordKey;

/// Tokens whose grants are remembered: 1.2 MiB.
const GUESSES: usize = 16_384;

/// In which grants tokens were: where to look first, and no more than that.
#[derive(Debug)]
pub(super) struct Guesses(Box<[Place]>);

type Place = Mutex<Option<(RecordKey, Sha256)>>;

impl Default for Guesses {
    fn default() -> Self {
        Self((0..GUESSES).map(|_| Mutex::default()).collect())
    }
}

impl Guesses {
    fn place(&self, key: RecordKey) -> Option<&Place> {
        let [a, b, ..] = key.0.0;
        self.0.get(usize::from(u16::from_be_bytes([a, b])) % GUESSES)
    }

    pub(super) fn get(&self, key: RecordKey) -> Option<Sha256> {
        let place = self.place(key)?.lock().unwrap_or_else(PoisonError::into_inner);
        place.filter(|(of, _)| *of == key).map(|(_, grant)| grant)
    }

    pub(super) fn put(&self, key: RecordKey, grant: Sha256) {
        if let Some(place) = self.place(key) {
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some((key, grant));
        }
    }
}
