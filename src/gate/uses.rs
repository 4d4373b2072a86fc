//! A proof is good once, and so is its nonce where that is asked for. The one step with a memory.

use super::{Facts, Gate, NonceStatus, Stores};
use crate::policy::denial::Denial;
use crate::policy::proof::VerifiedProof;
use crate::policy::time::UnixTime;
use crate::store::nonces::{SpendFault, SpentNonces};
use crate::store::replay::{ReplayFault, ReplayLog, Use};

/// Where a use is remembered, each kind of endpoint with room of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room<'a> {
    proofs: &'a dyn ReplayLog,
    nonces: Option<&'a dyn SpentNonces>,
}

impl Stores {
    pub(super) fn at_resources(&self) -> Room<'_> {
        Room { proofs: &*self.replay, nonces: self.nonces.as_deref() }
    }

    pub(super) fn at_token_endpoints(&self) -> Room<'_> {
        Room { proofs: &*self.grants, nonces: self.grant_nonces.as_deref() }
    }
}

impl Gate {
    pub(super) async fn first_use(
        &self,
        room: Room<'_>,
        proof: Option<VerifiedProof>,
        facts: &mut Facts,
        now: UnixTime,
    ) -> Result<(), Denial> {
        let Some(proof) = proof else {
            return Ok(());
        };
        let used = self.use_up_in(room, &proof, now).await;
        if used == Err(Denial::NonceSpent) {
            facts.nonce = NonceStatus::Spent;
        }
        used
    }

    /// Has a node's proof remembered in `log`, and its nonce where that is good once, both in the time of one.
    ///
    /// # Errors
    /// [`Denial::Replayed`], [`Denial::NonceSpent`] for a new proof with a nonce that another has used
    /// up, [`Denial::ProofAfterHandover`], [`Denial::ReplayCapacity`] and [`Denial::StoreDown`].
    pub async fn use_up(
        &self,
        log: &dyn ReplayLog,
        proof: &VerifiedProof,
        now: UnixTime,
    ) -> Result<(), Denial> {
        let room = Room { proofs: log, ..self.stores.at_resources() };
        self.use_up_in(room, proof, now).await
    }

    async fn use_up_in(
        &self,
        room: Room<'_>,
        proof: &VerifiedProof,
        now: UnixTime,
    ) -> Result<(), Denial> {
        if proof.dated().is_some_and(|issued| !self.stores.epochs.takes(issued)) {
            return Err(Denial::ProofAfterHandover);
        }
        let noted = async {
            let noted = room.proofs.check_and_insert(Use::of(proof), now).await;
            noted.map_err(|fault| match fault {
                ReplayFault::Replayed => Denial::Replayed,
                ReplayFault::AtCapacity => Denial::ReplayCapacity,
                ReplayFault::Down => Denial::StoreDown,
            })
        };
        let Some(nonce) = proof.nonce() else { return noted.await };
        let spent = room.nonces.ok_or(Denial::StoreDown)?;
        let spent = async {
            let spent = spent.spend(nonce, proof.epoch(), now).await;
            spent.map_err(|fault| match fault {
                SpendFault::Spent => Denial::NonceSpent,
                SpendFault::AtCapacity => Denial::ReplayCapacity,
                SpendFault::Down => Denial::StoreDown,
            })
        };
        let (noted, spent) = tokio::join!(noted, spent);
        noted.and(spent)
    }
}
