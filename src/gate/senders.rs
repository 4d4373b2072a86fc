//! Whether a token's sender is who it is bound to.

use super::tokens::Presented;
use super::{Case, Facts, Gate, NonceStatus};
use crate::policy::authority::Known;
use crate::policy::binding::{self, BoundBy, Leave, Successor};
use crate::policy::denial::Denial;
use crate::policy::digest::{Sha256, X5tS256};
use crate::policy::grant::{BindingRecord, RecordKey};
use crate::policy::nonce::NonceKeys;
use crate::policy::proof::{self, VerifiedProof};
use crate::policy::request::Sender;
use crate::policy::rule::Requirement;
use crate::policy::time::UnixTime;
use crate::policy::token::{Confirmation, VerifiedToken};

impl Gate {
    /// Proof and certificate, as far as they can be judged without the replay log.
    pub(super) async fn sender(
        &self,
        case: &Case<'_>,
        requirement: &Requirement,
        presented: &Presented,
        token: &VerifiedToken,
        facts: &mut Facts,
    ) -> Result<(BoundBy, Option<VerifiedProof>), Denial> {
        let confirmation = self.confirmation(presented, token, case.now).await?;
        facts.confirmation = confirmation;
        facts.dpop |= confirmation.jkt.is_some();
        if confirmation.jkt.is_some() && !self.rules.dpop_enabled {
            return Err(Denial::DpopDisabled);
        }
        if confirmation.x5t.is_some() && !self.rules.mtls_enabled {
            return Err(Denial::MtlsDisabled);
        }
        let proof = if binding::proof_needed(confirmation, presented.scheme)? {
            let nonces = case.nonce_keys();
            Some(self.proof(case, requirement, nonces, Some(presented.hash), facts)?)
        } else {
            proof::at_most_one_field(case.view.headers)?;
            None
        };
        let sender = case.view.sender.at(case.now);
        let successor = self.successor(confirmation.x5t, sender, case.now).await?;
        facts.successor = successor.is_some();
        let bypass = self.bypass(case.now).filter(|it| it.is_open(token.tenant(), case.now));
        let leave = Leave {
            unbound: case.route.allow_unbound,
            bypass: bypass.is_some(),
            successor: successor.as_ref(),
        };
        let bound = binding::bind(confirmation, proof.as_ref(), sender, requirement, leave)?;
        if bound.by() == BoundBy::Bypass {
            facts.bypass = bypass.map(|it| it.seen.id.clone());
        }
        Ok((bound.by(), proof))
    }

    /// What the token is bound to: by its own word, and by the record of an issuer whose tokens the edge
    /// binds.
    async fn confirmation(
        &self,
        presented: &Presented,
        token: &VerifiedToken,
        now: UnixTime,
    ) -> Result<Confirmation, Denial> {
        let own = token.confirmation();
        let rules = self.issuers.get(token.issuer()).and_then(|entry| entry.retrofit.as_ref());
        let Some((rules, key)) = rules.zip(presented.record) else { return Ok(own) };
        let record = self.record(key).await?;
        let bypass = self.bypass(now).is_some_and(|it| it.is_open(token.tenant(), now));
        let known = Known { record: record.as_ref(), rules: Some(rules), bypass };
        own.and(known.confirmation(now)?).ok_or(Denial::TokenConfirmation)
    }

    /// The record of a token.
    pub(super) async fn record(&self, key: RecordKey) -> Result<Option<BindingRecord>, Denial> {
        let bindings = self.stores.bindings.as_ref().ok_or(Denial::StoreDown)?;
        bindings.record(key).await.map_err(|_| Denial::StoreDown)
    }

    /// Whether the certificate that was shown may stand in for the one that a token is bound to.
    ///
    /// # Errors
    /// [`Denial::StoreDown`].
    pub async fn successor(
        &self,
        bound: Option<X5tS256>,
        sender: Sender<'_>,
        now: UnixTime,
    ) -> Result<Option<Successor>, Denial> {
        let (Some(bound), Sender::Certificate(shown)) = (bound, sender) else { return Ok(None) };
        if self.rotation_grace.is_zero() || shown.x5t().0.same(&bound.0) {
            return Ok(None);
        }
        let Some(bindings) = &self.stores.bindings else { return Ok(None) };
        let old = bindings.certificate(bound).await.map_err(|_| Denial::StoreDown)?;
        let old = old.filter(|old| !self.stores.withdrawn.is_withdrawn(old));
        Ok(old.and_then(|old| Successor::of(&old, shown, self.rotation_grace, now)))
    }

    pub(super) fn proof(
        &self,
        case: &Case<'_>,
        requirement: &Requirement,
        nonce_keys: Option<&NonceKeys>,
        token_hash: Option<Sha256>,
        facts: &mut Facts,
    ) -> Result<VerifiedProof, Denial> {
        let era = case.era.as_ref().ok_or(Denial::StoreDown)?;
        let expected = proof::Expected {
            method: case.view.method,
            origin: &case.site.origin,
            path: case.view.path,
            token_hash,
            algorithms: requirement.algorithms,
            nonce_keys,
            nonce_required: requirement.nonce,
            rules: &self.proof,
            max_bytes: self.proof_bytes,
            reign: era.reign,
            now: case.now,
        };
        let mut seen = proof::Seen::default();
        let verified = proof::verify(case.view.headers, &expected, &mut seen);
        facts.presented_jkt = seen.jkt;
        facts.carried_nonce = seen.carries_nonce;
        facts.clock_offset_ms = seen.clock_offset_ms;
        facts.nonce = match (&verified, seen.nonce) {
            (_, Some(nonce)) => NonceStatus::Fresh { age: nonce.age, superseded: nonce.superseded },
            (Err(Denial::NonceAbsent), None) => NonceStatus::Absent,
            (Err(Denial::NonceExpired), None) => NonceStatus::Expired,
            (Err(Denial::NonceUnknown), None) => NonceStatus::Unknown,
            (Ok(_) | Err(_), None) => NonceStatus::NotChecked,
        };
        verified
    }
}
