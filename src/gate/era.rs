//! The nonces of one memory of proofs. Another memory, other nonces: no proof that the one before
//! admitted can be shown to one that does not know it.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::{Gate, Site};
use crate::policy::denial::Denial;
use crate::policy::epoch::Reign;
use crate::policy::nonce::{NonceKeys, NonceSecret};

/// One memory of proofs, and the nonces that go with it.
#[derive(Debug)]
pub(super) struct Era {
    pub(super) reign: Reign,
    /// By external origin; none where nonces are off.
    keys: Vec<NonceKeys>,
}

/// The nonces of the process that takes this one's place, by external origin.
pub(super) type Successor = ArcSwapOption<Vec<NonceKeys>>;

impl Era {
    fn of(reign: Reign, secrets: &[NonceSecret], sites: &[Site], nonces: bool) -> Self {
        let secrets: Vec<_> = secrets.iter().map(|it| it.bound_to(&reign.epoch)).collect();
        let sites = sites.iter().filter(|_| nonces);
        let keys = sites.map(|site| NonceKeys::derive(&secrets, &site.origin)).collect();
        Self { reign, keys }
    }

    /// The nonces of an external origin; `None` when nonces are off.
    pub(super) fn nonce_keys(&self, origin: usize) -> Option<&NonceKeys> {
        self.keys.get(origin)
    }
}

/// The era that was looked at last.
pub(super) type Held = ArcSwapOption<Era>;

impl Gate {
    /// The era of now. Which memory it is can change at any moment, without a reload; its nonces are
    /// derived when it is first met.
    pub(super) fn era(&self) -> Option<Arc<Era>> {
        let mut reign = self.stores.epochs.current()?;
        // A proof may be dated ahead: what an earlier memory admitted just before this one began can
        // bear a time that is to come.
        reign.since = reign.since.plus(self.era_margin);
        let held = self.era.load_full();
        if let Some(era) = held.filter(|era| era.reign == reign) {
            return Some(era);
        }
        let nonces = self.proof.nonce_ttl.is_some();
        let era = Arc::new(Era::of(reign, &self.nonce_secrets, &self.sites, nonces));
        self.era.store(Some(Arc::clone(&era)));
        Some(era)
    }

    /// What a process makes its nonces from; `None` where nonces are off.
    #[must_use]
    pub fn nonce_secret(&self) -> Option<NonceSecret> {
        self.proof.nonce_ttl?;
        let epoch = self.stores.epochs.current()?.epoch;
        Some(self.nonce_secrets.first()?.bound_to(&epoch))
    }

    /// From now on gives out nonces that are another memory's, and takes its own alone as before: whoever
    /// is asked for a nonce comes again on a connection of the process that has the other memory. `None`:
    /// gives out its own.
    pub fn give_out(&self, successor: Option<&NonceSecret>) {
        let keys = successor.map(|secret| {
            let keys = |site: &Site| NonceKeys::derive(std::slice::from_ref(secret), &site.origin);
            Arc::new(self.sites.iter().map(keys).collect())
        });
        self.successor.store(keys);
    }

    /// Nobody is told to come again with a nonce while there is none to be had. For token endpoints, where
    /// a proof that is missing is missed before the memory of proofs is; on a resource
    /// `senders` asks for the memory first.
    pub(super) fn or_down<T>(
        &self,
        verdict: Result<T, Denial>,
        era: Option<&Era>,
    ) -> Result<T, Denial> {
        match verdict {
            Err(Denial::ProofMissing) if era.is_none() && self.proof.nonce_ttl.is_some() => {
                Err(Denial::StoreDown)
            }
            Ok(_) | Err(_) => verdict,
        }
    }
}
