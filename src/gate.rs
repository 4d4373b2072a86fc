//! The admission sequence. Read this first.
//!
//! ```text
//! presented → token → rule → proof → binding → scope → step-up   pure, in policy
//!                                                → replay         one atomic step, last
//! ```
//!
//! Invariant: only [`Gate`] makes an [`Admitted`]; `edge` forwards nothing without one.
//! Invariant: nothing is asked of the network here; keys, and what an issuer says of an opaque
//! token, are facts that `edge` brings.

mod nodes;
mod tokens;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::policy::binding::{self, BoundBy};
use crate::policy::cors::Preflight;
use crate::policy::denial::Denial;
use crate::policy::digest::{Jkt, Sha256, X5tS256};
use crate::policy::jose::AlgorithmSet;
use crate::policy::nonce::NonceKeys;
use crate::policy::presented::Scheme;
use crate::policy::proof::{self, ProofRules, VerifiedProof};
use crate::policy::request::{RequestView, Sender};
use crate::policy::rule::{Demand, Mode, Requirement, RouteRule, Rules, TenantId};
use crate::policy::target::Origin;
use crate::policy::time::UnixTime;
use crate::policy::token::{IssuerRules, KeySet, VerifiedToken};
use crate::store::replay::{ReplayFault, ReplayLog};
use crate::store::tokens::TokenMemory;

use tokens::Presented;
pub use tokens::Told;

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

    /// The verified token; `None` on public routes and preflights.
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

impl Facts {
    fn new(view: &RequestView<'_>, route: &RouteRule, challenge: Challenge) -> Self {
        let presented_x5t = match view.sender {
            Sender::Certificate(certificate) => Some(certificate.x5t()),
            Sender::NoContext | Sender::NoCertificate => None,
        };
        Self {
            tenant: None,
            token: None,
            dpop: route.role.reads_token() && proof::is_presented(view.headers),
            scheme: None,
            presented_jkt: None,
            presented_x5t,
            nonce: NonceStatus::NotChecked,
            clock_offset_ms: None,
            observed: None,
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

/// What a gate is made from. It holds a secret, so it has no `Debug`.
#[derive(Clone)]
pub struct Settings {
    /// Demands of default, tenants and audiences.
    pub rules: Rules,
    /// The issuers, by index.
    pub issuers: Vec<IssuerRules>,
    /// Every external origin of a route, by index.
    pub origins: Vec<Origin>,
    /// Times, nonces.
    pub proof: ProofRules,
    /// Bytes of one `Authorization` value.
    pub authorization_bytes: usize,
    /// Bytes of one `DPoP` value.
    pub proof_bytes: usize,
    /// Verified tokens remembered.
    pub token_cache_entries: usize,
    /// Opaque tokens remembered.
    pub introspection_cache_entries: usize,
    /// Secrets of this process, the first for new nonces: what was made for another process, or this
    /// one before a restart, is none here.
    pub nonce_secrets: Vec<[u8; 32]>,
    /// When this process started.
    pub started: UnixTime,
}

/// An external origin, with the nonces that are good there.
#[derive(Debug)]
struct Site {
    origin: Origin,
    nonce_keys: Option<NonceKeys>,
}

/// Admits, or says why not.
#[derive(Debug)]
pub struct Gate {
    rules: Rules,
    issuers: Vec<IssuerRules>,
    keys: Vec<ArcSwap<KeySet>>,
    sites: Vec<Site>,
    proof: ProofRules,
    authorization_bytes: usize,
    proof_bytes: usize,
    tokens: TokenMemory,
    /// Opaque tokens, for as long as their issuers' word is fresh.
    opaque: TokenMemory,
    replay: Arc<dyn ReplayLog>,
    started: UnixTime,
}

impl Gate {
    /// A gate without keys: every token is refused until [`Gate::replace_keys`] brought its issuer's.
    #[must_use]
    pub fn new(settings: Settings, replay: Arc<dyn ReplayLog>) -> Self {
        let nonces = settings.proof.nonce_ttl.is_some();
        let site = |origin: Origin| Site {
            nonce_keys: nonces.then(|| NonceKeys::derive(&settings.nonce_secrets, &origin)),
            origin,
        };
        Self {
            keys: settings.issuers.iter().map(|_| ArcSwap::default()).collect(),
            sites: settings.origins.into_iter().map(site).collect(),
            rules: settings.rules,
            issuers: settings.issuers,
            proof: settings.proof,
            authorization_bytes: settings.authorization_bytes,
            proof_bytes: settings.proof_bytes,
            tokens: TokenMemory::new(settings.token_cache_entries),
            opaque: TokenMemory::new(settings.introspection_cache_entries),
            replay,
            started: settings.started,
        }
    }

    /// Puts an issuer's key set in the place of the one before. Tokens that a key verified which is
    /// not in it are no longer taken from memory.
    pub fn replace_keys(&self, issuer: usize, keys: KeySet) {
        if let Some(current) = self.keys.get(issuer) {
            current.store(Arc::new(keys));
        }
    }

    /// Decides. `origin` is the index of the external origin that route and host give (`None` on
    /// public routes only).
    ///
    /// A refused request leaves nothing behind but, for a replay, what was there before; asking
    /// again is safe after [`Denial::TokenKeyUnknown`], with fresh keys, and after
    /// [`Denial::IntrospectionUnavailable`], with the issuer's answer.
    pub async fn admit(
        &self,
        view: &RequestView<'_>,
        route: &RouteRule,
        origin: Option<usize>,
        now: UnixTime,
    ) -> Decision {
        self.admit_told(view, route, origin, None, now).await
    }

    /// [`Gate::admit`], with what the issuer says of the token ([`Gate::judge`]).
    pub async fn admit_told(
        &self,
        view: &RequestView<'_>,
        route: &RouteRule,
        origin: Option<usize>,
        told: Option<&Told>,
        now: UnixTime,
    ) -> Decision {
        let requirement = self.rules.requirement(None, &[], route);
        let mut facts = Facts::new(view, route, self.challenge(&requirement, route));
        if !route.role.reads_token() {
            let verdict = Ok(Admitted { bound_by: BoundBy::Public, token: None });
            return Decision { verdict, facts };
        }
        let Some(site) = origin.and_then(|index| self.sites.get(index)) else {
            return Decision { verdict: Err(Denial::HostInvalid), facts };
        };
        let case = Case { view, route, site, told, now };
        let verdict = self.decide(&case, requirement, &mut facts).await;
        Decision { verdict, facts }
    }

    /// Admits a preflight for the service to answer, on a route that says so. It reads no token.
    #[must_use]
    pub fn admit_preflight(&self, _preflight: &Preflight<'_>) -> Admitted {
        Admitted { bound_by: BoundBy::Preflight, token: None }
    }

    async fn decide(
        &self,
        case: &Case<'_>,
        mut requirement: Requirement,
        facts: &mut Facts,
    ) -> Result<Admitted, Denial> {
        let verdict = match self.token(case, facts) {
            Ok((presented, token)) => {
                let (tenant, audiences) = (token.tenant(), token.audiences());
                requirement = self.rules.requirement(tenant, audiences, case.route);
                facts.challenge = self.challenge(&requirement, case.route);
                self.hold(case, &requirement, &presented, token, facts).await
            }
            Err(denial) => Err(denial),
        };
        facts.wants_nonce = self.wants_nonce(&requirement, &verdict, facts);
        verdict
    }

    /// Holds the sender against token and rule, then the proof against the replay log; `observe`
    /// lets pass what it may.
    async fn hold(
        &self,
        case: &Case<'_>,
        requirement: &Requirement,
        presented: &Presented,
        token: Arc<VerifiedToken>,
        facts: &mut Facts,
    ) -> Result<Admitted, Denial> {
        let held = match self.sender(case, requirement, presented, &token, facts) {
            Ok((by, proof)) => {
                self.allows(case, &token)?;
                self.first_use(proof, case.now).await.map(|()| by)
            }
            Err(denial) => Err(denial),
        };
        match held {
            Ok(bound_by) => Ok(Admitted { bound_by, token: Some(token) }),
            Err(denial) if requirement.mode == Mode::Observe && denial.observable() => {
                self.allows(case, &token)?;
                facts.observed = Some(denial);
                Ok(Admitted { bound_by: BoundBy::Observed, token: Some(token) })
            }
            Err(denial) => Err(denial),
        }
    }

    /// Proof and certificate, as far as they can be judged without memory.
    fn sender(
        &self,
        case: &Case<'_>,
        requirement: &Requirement,
        presented: &Presented,
        token: &VerifiedToken,
        facts: &mut Facts,
    ) -> Result<(BoundBy, Option<VerifiedProof>), Denial> {
        let confirmation = token.confirmation();
        if confirmation.jkt.is_some() && !self.rules.dpop_enabled {
            return Err(Denial::DpopDisabled);
        }
        if confirmation.x5t.is_some() && !self.rules.mtls_enabled {
            return Err(Denial::MtlsDisabled);
        }
        let proof = if binding::proof_needed(confirmation, presented.scheme)? {
            Some(self.proof(case, requirement, presented.hash, facts)?)
        } else {
            proof::at_most_one_field(case.view.headers)?;
            None
        };
        let sender = case.view.sender.at(case.now);
        let allow_unbound = case.route.allow_unbound;
        let bound =
            binding::bind(confirmation, proof.as_ref(), sender, requirement, allow_unbound)?;
        Ok((bound.by(), proof))
    }

    fn proof(
        &self,
        case: &Case<'_>,
        requirement: &Requirement,
        token_hash: Sha256,
        facts: &mut Facts,
    ) -> Result<VerifiedProof, Denial> {
        let expected = proof::Expected {
            method: case.view.method,
            origin: &case.site.origin,
            path: case.view.path,
            token_hash,
            algorithms: requirement.algorithms,
            nonce_keys: case.site.nonce_keys.as_ref(),
            nonce_required: requirement.nonce,
            rules: &self.proof,
            max_bytes: self.proof_bytes,
            started: self.started,
            now: case.now,
        };
        let mut seen = proof::Seen::default();
        let verified = proof::verify(case.view.headers, &expected, &mut seen);
        facts.presented_jkt = seen.jkt;
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

    /// Whether the token is one for this route, whoever shows it: no mode relaxes it.
    fn allows(&self, case: &Case<'_>, token: &VerifiedToken) -> Result<(), Denial> {
        scopes(case.route, token)?;
        let skew = self.issuers.get(token.issuer()).map_or(Duration::ZERO, |it| it.clock_skew);
        case.route.step_up.check(token.authentication(), skew, case.now)
    }

    async fn first_use(&self, proof: Option<VerifiedProof>, now: UnixTime) -> Result<(), Denial> {
        let Some(proof) = proof else {
            return Ok(());
        };
        let noted = self.replay.check_and_insert(proof.jkt(), proof.jti(), now).await;
        noted.map_err(|fault| match fault {
            ReplayFault::Replayed => Denial::Replayed,
            ReplayFault::AtCapacity => Denial::ReplayCapacity,
        })
    }

    fn challenge(&self, requirement: &Requirement, route: &RouteRule) -> Challenge {
        let demand = requirement.demand;
        let certificate = self.rules.mtls_enabled && demand.met_by(false, true);
        Challenge {
            dpop: self.rules.dpop_enabled && demand != Demand::Mtls,
            bearer: certificate || route.allow_unbound || demand == Demand::None,
            algorithms: requirement.algorithms,
        }
    }

    /// Whether the answer must bring a nonce: after a refusal where one is needed, and, so that a
    /// steady client is never challenged twice, once the client's own is past half its time.
    fn wants_nonce(
        &self,
        requirement: &Requirement,
        verdict: &Result<Admitted, Denial>,
        facts: &Facts,
    ) -> bool {
        let Some(ttl) = self.proof.nonce_ttl else {
            return false;
        };
        // A certificate may be all that the rule demands of a token that is bound to a key as well.
        let dpop = facts.challenge.dpop || (facts.dpop && self.rules.dpop_enabled);
        let needed = requirement.nonce && dpop;
        match (verdict, facts.nonce) {
            (Err(_), NonceStatus::Absent | NonceStatus::Expired | NonceStatus::Unknown) => true,
            (Err(_), NonceStatus::NotChecked | NonceStatus::Fresh { .. }) => needed,
            (Ok(_), NonceStatus::Fresh { age, superseded }) => superseded || age > ttl / 2,
            (Ok(_), _) => needed && facts.observed.is_some(),
        }
    }

    /// A fresh nonce for `origin`; `None` when nonces are off.
    #[must_use]
    pub fn nonce(&self, origin: usize, now: UnixTime, random: [u8; 8]) -> Option<String> {
        self.sites.get(origin)?.nonce_keys.as_ref()?.make(now, random)
    }

    /// Live proofs remembered, for the metrics.
    #[must_use]
    pub fn live_proofs(&self) -> usize {
        self.replay.live()
    }
}

/// One request at one route.
struct Case<'a> {
    view: &'a RequestView<'a>,
    route: &'a RouteRule,
    site: &'a Site,
    told: Option<&'a Told>,
    now: UnixTime,
}

fn scopes(route: &RouteRule, token: &VerifiedToken) -> Result<(), Denial> {
    if route.scopes.iter().all(|scope| token.scopes().contains(scope)) {
        Ok(())
    } else {
        Err(Denial::ScopeMissing)
    }
}
