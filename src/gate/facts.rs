//! What is known of a request when the decision falls.

use std::sync::Arc;
use std::time::Duration;

use crate::policy::binding::BoundBy;
use crate::policy::certificate::SenderCertificate;
use crate::policy::denial::Denial;
use crate::policy::digest::{Jkt, X5tS256};
use crate::policy::jose::AlgorithmSet;
use crate::policy::presented::Scheme;
use crate::policy::proof;
use crate::policy::request::RequestView;
use crate::policy::rule::{RouteRule, TenantId};
use crate::policy::token::{Confirmation, VerifiedToken};

/// How a proof's nonce stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonceStatus {
    /// None was needed, or the decision fell before it was looked at.
    NotChecked,
    /// Fresh.
    Fresh {
        /// How long it has been good for.
        age: Duration,
        /// Whether its key is no longer the one that new nonces are made with.
        superseded: bool,
    },
    /// Missing where one is needed.
    Absent,
    /// Ours, too old.
    Expired,
    /// Not ours.
    Unknown,
    /// Ours, and used up by another proof.
    Spent,
}

/// What is known of a request when the decision falls: for the record, the metrics and the answer.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The tenant, once the token is verified.
    pub tenant: Option<TenantId>,
    /// The verified token, whatever came after.
    pub token: Option<Arc<VerifiedToken>>,
    /// Whether the request took part in DPoP: a `DPoP` field or scheme, or a token bound to a key.
    pub dpop: bool,
    /// The scheme of the token.
    pub scheme: Option<Scheme>,
    /// The proof's key, once its signature is verified.
    pub presented_jkt: Option<Jkt>,
    /// The connection's client certificate.
    pub presented_x5t: Option<X5tS256>,
    /// What the token is bound to, the refresh token at a token endpoint, or what is issued there.
    pub confirmation: Confirmation,
    /// Who asks for a token.
    pub client: Option<String>,
    /// Whether it is refreshed.
    pub refresh: bool,
    /// The temporary bypass that let it through.
    pub bypass: Option<String>,
    /// Whether the certificate stands in for the one that the token is bound to.
    pub successor: bool,
    /// The proof's nonce.
    pub nonce: NonceStatus,
    /// Whether the proof has a nonce, whoever issued it.
    pub carried_nonce: bool,
    /// now − `iat` of a proof whose signature is verified, milliseconds.
    pub clock_offset_ms: Option<i64>,
    /// What would have been refused under `enforce`.
    pub observed: Option<Denial>,
    /// Whether what is wrong with this sender is refused, once it is known whose request it is.
    pub enforced: Option<bool>,
    /// What the admission rests on.
    pub bound_by: Option<BoundBy>,
    /// Whether the answer must bring a `DPoP-Nonce`: the client needs one, or its own soon ends.
    pub wants_nonce: bool,
    /// Index into the configured issuers of the token's `iss`, verified or not.
    pub issuer: Option<usize>,
    /// Whether a key or a certificate satisfies the route: which challenges a 401 carries.
    pub challenge: Challenge,
}

impl Facts {
    pub(super) fn new(view: &RequestView<'_>, route: &RouteRule, challenge: Challenge) -> Self {
        let presented_x5t = view.sender.certificate().map(SenderCertificate::x5t);
        Self {
            tenant: None,
            token: None,
            dpop: (route.role.reads_token() || route.role.asks_for_token())
                && proof::is_presented(view.headers),
            scheme: None,
            presented_jkt: None,
            presented_x5t,
            confirmation: Confirmation::default(),
            client: None,
            refresh: false,
            bypass: None,
            successor: false,
            nonce: NonceStatus::NotChecked,
            carried_nonce: false,
            clock_offset_ms: None,
            observed: None,
            enforced: None,
            bound_by: None,
            wants_nonce: false,
            issuer: None,
            challenge,
        }
    }
}

/// Which schemes a 401 names in `WWW-Authenticate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// `DPoP` can satisfy the route.
    pub dpop: bool,
    /// `Bearer` can: a certificate suffices, or unbound tokens pass.
    pub bearer: bool,
    /// Algorithms for `algs`.
    pub algorithms: AlgorithmSet,
}
