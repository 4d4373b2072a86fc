//! The admission sequence. Read this first.
//!
//! Invariant: only [`Gate`] makes an [`Admitted`]; `edge` forwards nothing without one.

use std::sync::Arc;
use std::time::Duration;

use crate::policy::binding::BoundBy;
use crate::policy::denial::Denial;
use crate::policy::digest::{Jkt, X5tS256};
use crate::policy::rule::TenantId;
use crate::policy::token::VerifiedToken;

/// A permit: this request may go upstream. Only [`Gate::admit`] makes one.
#[derive(Clone, Debug)]
pub struct Admitted {
    bound_by: BoundBy,
    token: Option<Arc<VerifiedToken>>,
}

impl Admitted {
    /// What the admission rests on: decides `X-Holdfast-Result` and which identity headers go along.
    #[must_use]
    pub fn bound_by(&self) -> BoundBy {
        self.bound_by
    }

    /// The verified token; `None` on public routes.
    #[must_use]
    pub fn token(&self) -> Option<&VerifiedToken> {
        self.token.as_deref()
    }
}

/// How a proof's nonce stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonceStatus {
    /// None was needed, or the decision fell before it was looked at.
    NotChecked,
    /// Fresh.
    Fresh,
    /// Missing where one is needed.
    Absent,
    /// Ours, too old.
    Expired,
    /// Not ours.
    Unknown,
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
    /// The proof's key, once its signature is verified.
    pub presented_jkt: Option<Jkt>,
    /// The connection's client certificate.
    pub presented_x5t: Option<X5tS256>,
    /// The proof's nonce.
    pub nonce: NonceStatus,
    /// now − `iat` of a proof whose signature is verified, milliseconds.
    pub clock_offset_ms: Option<i64>,
    /// What would have been refused under `enforce`.
    pub observed: Option<Denial>,
    /// Whether the answer must bring a `DPoP-Nonce`: the client needs one, or its own soon ends.
    pub wants_nonce: bool,
    /// Index into the configured issuers of the token's `iss`, verified or not.
    pub issuer: Option<usize>,
    /// Whether a key or a certificate satisfies the route: which challenges a 401 carries.
    pub challenge: Challenge,
}

/// Which schemes a 401 names in `WWW-Authenticate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// `DPoP` can satisfy the route.
    pub dpop: bool,
    /// `Bearer` can: a certificate suffices, or unbound tokens pass.
    pub bearer: bool,
    /// Algorithms for `algs`.
    pub algorithms: crate::policy::jose::AlgorithmSet,
}

/// A decision and what it rests on.
#[derive(Clone, Debug)]
pub struct Decision {
    /// A permit, or why not.
    pub verdict: Result<Admitted, Denial>,
    /// What is known.
    pub facts: Facts,
}

/// How long a client should wait before it tries again after a 503 (`Retry-After`).
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a gate is made from.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Demands of default, tenants and audiences.
    pub rules: crate::policy::rule::Rules,
    /// The issuers, by index.
    pub issuers: Vec<crate::policy::token::IssuerRules>,
    /// Every external origin of a route, by index.
    pub origins: Vec<crate::policy::target::Origin>,
    /// Times, nonces.
    pub proof: crate::policy::proof::ProofRules,
    /// Bytes of one `Authorization` value.
    pub authorization_bytes: usize,
    /// Bytes of one `DPoP` value.
    pub proof_bytes: usize,
    /// Verified tokens remembered.
    pub token_cache_entries: usize,
    /// Live proofs remembered.
    pub replay_entries: usize,
    /// Fresh randomness: nonces and replay keys of this process are keyed by it.
    pub process_key: [u8; 32],
    /// When this process started.
    pub started: crate::policy::time::UnixTime,
}

/// Admits, or says why not.
#[derive(Debug)]
pub struct Gate {
    settings: Settings,
}

impl Gate {
    /// A gate without keys: every token is refused until [`Gate::replace_keys`] brought its issuer's.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// Puts an issuer's key set in the place of the one before. Tokens remembered under a key that
    /// is no longer there are forgotten.
    pub fn replace_keys(&self, _issuer: usize, _keys: crate::policy::token::KeySet) {}

    /// Decides. `origin` is the external origin that the route and the request's host give (`None`
    /// on public routes only).
    ///
    /// Nothing is remembered of a refused request, its proof's replay apart: calling it again after
    /// [`Denial::TokenKeyUnknown`], with fresh keys, is safe.
    pub async fn admit(
        &self,
        _view: &crate::policy::request::RequestView<'_>,
        _route: &crate::policy::rule::RouteRule,
        _origin: Option<usize>,
        _now: crate::policy::time::UnixTime,
    ) -> Decision {
        let _ = &self.settings;
        Decision {
            verdict: Err(Denial::StoreDown),
            facts: Facts {
                tenant: None,
                token: None,
                dpop: false,
                presented_jkt: None,
                presented_x5t: None,
                nonce: NonceStatus::NotChecked,
                clock_offset_ms: None,
                observed: None,
                wants_nonce: false,
                issuer: None,
                challenge: Challenge {
                    dpop: true,
                    bearer: false,
                    algorithms: crate::policy::jose::AlgorithmSet::default(),
                },
            },
        }
    }

    /// A fresh nonce for `origin`; `None` when nonces are off.
    #[must_use]
    pub fn nonce(
        &self,
        _origin: usize,
        _now: crate::policy::time::UnixTime,
        _random: [u8; 8],
    ) -> Option<String> {
        None
    }

    /// Live proofs remembered, for the metrics.
    #[must_use]
    pub fn live_proofs(&self) -> usize {
        0
    }
}
