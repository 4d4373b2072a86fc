//! A proof is good once, and so is its nonce where that is asked for. The one step with a memory.

use super::{Facts, Gate, NonceStatus};
use crate::policy::denial::Denial;
use crate::policy::proof::VerifiedProof;
use crate::policy::time::UnixTime;
use crate::store::nonces::SpendFault;
use crate::store::replay::{ReplayFault, ReplayLog, Use};

impl Gate {
    pub(super) async fn first_use(
        &self,
        log: &dyn ReplayLog,
        proof: Option<VerifiedProof>,
        facts: &mut Facts,
        now: UnixTime,
    ) -> Result<(), Denial> {
        let Some(proof) = proof else {
            return Ok(());
        };
        let used = self.use_up(log, &proof, now).await;
        if used == Err(Denial::NonceSpent) {
            facts.nonce = NonceStatus::Spent;
        }
        used
    }

    /// Has the proof remembered, and its nonce where that is good once, both in the time of one.
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
        if proof.dated().is_some_and(|issued| !self.stores.epochs.takes(issued)) {
            return Err(Denial::ProofAfterHandover);
        }
        let noted = async {
            let noted = log.check_and_insert(Use::of(proof), now).await;
            noted.map_err(|fault| match fault {
                ReplayFault::Replayed => Denial::Replayed,
                ReplayFault::AtCapacity => Denial::ReplayCapacity,
                ReplayFault::Down => Denial::StoreDown,
            })
        };
        let Some(nonce) = proof.nonce() else { return noted.await };
        let spent = self.stores.nonces.as_ref().ok_or(Denial::StoreDown)?;
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
