//! What the gate knows of proofs that come with a node's secret instead of a token.

use super::{Challenge, Gate};
use crate::policy::denial::Denial;
use crate::policy::digest::Sha256;
use crate::policy::nonce::FreshNonce;
use crate::policy::proof::{self, VerifiedProof};
use crate::policy::request::RequestView;
use crate::policy::time::UnixTime;

impl Gate {
    /// Verifies the proof that came with a node's secret instead of a token: `ath` is the secret's
    /// hash, and a nonce is needed wherever there are any. What is learnt of it stays in `seen`.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn node_proof(
        &self,
        view: &RequestView<'_>,
        origin: usize,
        secret: Sha256,
        seen: &mut proof::Seen,
        now: UnixTime,
    ) -> Result<VerifiedProof, Denial> {
        if !self.rules.dpop_enabled {
            return Err(Denial::DpopDisabled);
        }
        let site = self.sites.get(origin).ok_or(Denial::HostInvalid)?;
        let era = self.era().ok_or(Denial::StoreDown)?;
        let expected = proof::Expected {
            method: view.method,
            origin: &site.origin,
            path: view.path,
            token_hash: Some(secret),
            algorithms: self.rules.default.algorithms,
            nonce_keys: era.nonce_keys(origin),
            nonce_required: era.nonce_keys(origin).is_some(),
            rules: &self.proof,
            max_bytes: self.proof_bytes,
            reign: era.reign,
            now,
        };
        proof::verify(view.headers, &expected, seen)
    }

    /// Whether certificates prove anything at all.
    #[must_use]
    pub fn takes_certificates(&self) -> bool {
        self.rules.mtls_enabled
    }

    /// Whether a fresh nonce should go out beside one that was taken: it is past half its time, or good
    /// once only.
    #[must_use]
    pub fn is_worn(&self, nonce: &FreshNonce) -> bool {
        let once = self.proof.nonce_single_use;
        self.proof.nonce_ttl.is_some_and(|ttl| once || nonce.superseded || nonce.age > ttl / 2)
    }

    /// What a node must present: any algorithm that proofs may have by default.
    #[must_use]
    pub fn node_challenge(&self) -> Challenge {
        let dpop = self.rules.dpop_enabled;
        Challenge { dpop, bearer: true, algorithms: self.rules.default.algorithms }
    }
}
