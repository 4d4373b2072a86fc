//! `cnf` × proof × certificate × rule → bound.

use std::time::Duration;

use super::certificate::SenderCertificate;
use super::denial::Denial;
use super::digest::X5tS256;
use super::presented::Scheme;
use super::proof::VerifiedProof;
use super::request::Sender;
use super::rule::Requirement;
use super::time::UnixTime;
use super::token::Confirmation;

/// What an admission rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BoundBy {
    /// A `public` route: no token was read, no `X-Holdfast-*` is added.
    Public,
    /// A cross-origin preflight that the service answers: no token was read.
    Preflight,
    /// An unbound token where that is allowed.
    Unbound,
    /// `cnf.jkt`, proven.
    Dpop,
    /// `cnf.x5t#S256`, proven.
    Mtls,
    /// Both, both proven.
    Both,
    /// An unbound token while the temporary bypass lasts.
    Bypass,
    /// `mode: observe` let it pass; nothing about the sender is proven.
    Observed,
}

impl BoundBy {
    /// What was proven of a sender: a key, a certificate.
    #[must_use]
    pub fn proven(key: bool, certificate: bool) -> Self {
        match (key, certificate) {
            (true, true) => Self::Both,
            (true, false) => Self::Dpop,
            (false, true) => Self::Mtls,
            (false, false) => Self::Unbound,
        }
    }

    /// The value of `X-Holdfast-Result`; `None` on public routes and preflights.
    #[must_use]
    pub fn result_header(self) -> Option<&'static str> {
        match self {
            Self::Public | Self::Preflight => None,
            Self::Unbound => Some("unbound"),
            Self::Dpop => Some("dpop"),
            Self::Mtls => Some("mtls"),
            Self::Both => Some("dpop+mtls"),
            Self::Bypass => Some("bypass"),
            Self::Observed => Some("observe"),
        }
    }
}

/// Whether a proof must be shown for a token of this confirmation and scheme.
///
/// # Errors
/// [`Denial::Downgrade`] for a token bound to a key that came as `Bearer` (RFC 9449 section 7.2),
/// [`Denial::TokenUnbound`] for `DPoP` with a token that is bound to no key (section 7.1).
pub fn proof_needed(confirmation: Confirmation, scheme: Scheme) -> Result<bool, Denial> {
    match (confirmation.jkt, scheme) {
        (Some(_), Scheme::Dpop) => Ok(true),
        (Some(_), Scheme::Bearer) => Err(Denial::Downgrade),
        (None, Scheme::Dpop) => Err(Denial::TokenUnbound),
        (None, Scheme::Bearer) => Ok(false),
    }
}

/// A sender that holds what its token is bound to, and a binding that meets the rule. Only [`bind`]
/// makes one.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    by: BoundBy,
}

impl Bound {
    /// What it rests on.
    #[must_use]
    pub fn by(self) -> BoundBy {
        self.by
    }
}

/// Holds the confirmation against proof and certificate, and against the rule. Whatever the token is
/// bound to is enforced, required or not.
///
/// # Errors
/// [`Denial::KeyMismatch`] (RFC 9449 section 4.3, number 12b), the three certificate denials
/// (RFC 8705 section 3), and [`Denial::BindingTooWeak`] where the rule demands more than the token
/// is bound to, or the token is bound to what nobody here can check.
pub fn bind(
    confirmation: Confirmation,
    proof: Option<&VerifiedProof>,
    sender: Sender<'_>,
    requirement: &Requirement,
    leave: Leave<'_>,
) -> Result<Bound, Denial> {
    if let Some(jkt) = confirmation.jkt {
        let proof = proof.ok_or(Denial::ProofMissing)?;
        if !proof.jkt().0.same(&jkt.0) {
            return Err(Denial::KeyMismatch);
        }
    }
    if let Some(x5t) = confirmation.x5t {
        match sender {
            Sender::NoContext => return Err(Denial::CertificateContextMissing),
            Sender::NoCertificate => return Err(Denial::CertificateMissing),
            Sender::Certificate(shown)
                if !shown.x5t().0.same(&x5t.0)
                    && !leave.successor.is_some_and(|it| it.vouches(x5t, shown)) =>
            {
                return Err(Denial::CertificateMismatch);
            }
            Sender::Certificate(_) => {}
        }
    }
    let (key, certificate) = (confirmation.jkt.is_some(), confirmation.x5t.is_some());
    let met = requirement.demand.met_by(key, certificate);
    let by = match (key, certificate) {
        (true, _) | (_, true) if met => BoundBy::proven(key, certificate),
        (false, false) if confirmation.is_unbound() && (met || leave.unbound) => BoundBy::Unbound,
        // What is in trouble is proofs; a certificate that is demanded still is.
        (false, certificate)
            if (certificate || confirmation.is_unbound())
                && leave.bypass
                && requirement.demand.without_key().met_by(false, certificate) =>
        {
            BoundBy::Bypass
        }
        (true | false, true | false) => return Err(Denial::BindingTooWeak),
    };
    Ok(Bound { by })
}

/// What may pass beside what the rule demands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Leave<'a> {
    /// The route lets unbound tokens pass.
    pub unbound: bool,
    /// The temporary bypass does.
    pub bypass: bool,
    /// A certificate that another may stand in for.
    pub successor: Option<&'a Successor>,
}

/// That one certificate may stand in for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Successor {
    old: X5tS256,
    new: X5tS256,
}

impl Successor {
    /// Holds `new` against the rule ([`SenderCertificate::succeeds`]); `None` where it does not succeed
    /// `old`.
    #[must_use]
    pub fn of(
        old: &SenderCertificate,
        new: &SenderCertificate,
        grace: Duration,
        now: UnixTime,
    ) -> Option<Self> {
        new.succeeds(old, grace, now).then(|| Self { old: old.x5t(), new: new.x5t() })
    }

    fn vouches(&self, old: X5tS256, new: &SenderCertificate) -> bool {
        self.old.0.same(&old.0) && self.new.0.same(&new.x5t().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::jose::AlgorithmSet;
    use crate::policy::rule::{Demand, Mode};

    #[test]
    fn the_bypass_lets_unbound_tokens_pass_but_where_a_certificate_is_demanded() {
        for (demand, expect) in [
            (Demand::None, Some(BoundBy::Unbound)),
            (Demand::Any, Some(BoundBy::Bypass)),
            (Demand::Dpop, Some(BoundBy::Bypass)),
            (Demand::Both, None),
            (Demand::Mtls, None),
        ] {
            let algorithms = AlgorithmSet::default();
            let requirement = Requirement { demand, mode: Mode::Enforce, algorithms, nonce: false };
            let leave = Leave { bypass: true, ..Leave::default() };
            let of = |confirmation, leave| {
                bind(confirmation, None, Sender::NoCertificate, &requirement, leave)
            };
            let unbound = of(Confirmation::default(), leave).ok().map(Bound::by);
            assert_eq!(unbound, expect, "{demand:?}");
            // What is bound to something stays so, whatever it is.
            let foreign = Confirmation { foreign: true, ..Confirmation::default() };
            let bound = of(foreign, leave).ok().map(Bound::by);
            assert_eq!(bound, None, "{demand:?}");
            if demand != Demand::None {
                let refused = of(Confirmation::default(), Leave::default()).err();
                assert_eq!(refused, Some(Denial::BindingTooWeak), "{demand:?}");
            }
        }
    }
}
