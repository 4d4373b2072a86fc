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

mod era;
mod facts;
mod grants;
mod nodes;
mod senders;
mod tokens;
mod uses;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};

use crate::policy::binding::BoundBy;
use crate::policy::bypass::Bypass;
use crate::policy::certificate::SenderCertificate;
use crate::policy::client::KnownClient;
use crate::policy::cors::Preflight;
use crate::policy::denial::Denial;
use crate::policy::jose::AlgorithmSet;
use crate::policy::nonce::{NonceKeys, NonceSecret};
use crate::policy::proof::ProofRules;
use crate::policy::request::RequestView;
use crate::policy::rule::{Demand, Requirement, Role, RouteRule, Rules, TenantId};
use crate::policy::target::Origin;
use crate::policy::time::UnixTime;
use crate::policy::token::{Confirmation, IssuerRules, KeySet, VerifiedToken};
use crate::store::bindings::Bindings;
use crate::store::epoch::Epochs;
use crate::store::nonces::SpentNonces;
use crate::store::replay::ReplayLog;
use crate::store::tokens::TokenMemory;

use era::{Era, Held, Successor};
pub use facts::{Challenge, Facts, NonceStatus};
pub use grants::{Asking, GrantDecision, Granted, Terms};
use tokens::Presented;
pub use tokens::Told;

/// A permit: this request may go upstream. Only [`Gate::admit`] makes one.
#[derive(Clone, Debug)]
pub struct Admitted {
    bound_by: BoundBy,
    token: Option<Arc<VerifiedToken>>,
    confirmation: Confirmation,
}

impl Admitted {
    /// What the admission rests on: decides `X-Holdfast-Result` and which identity headers go along.
    #[must_use]
    pub fn bound_by(&self) -> BoundBy {
        self.bound_by
    }

    /// What the token is bound to, by its own word or by what the edge keeps of it.
    #[must_use]
    pub fn confirmation(&self) -> Confirmation {
        self.confirmation
    }

    fn without_token(bound_by: BoundBy) -> Self {
        Self { bound_by, token: None, confirmation: Confirmation::default() }
    }

    /// The verified token; `None` on public routes and preflights.
    #[must_use]
    pub fn token(&self) -> Option<&VerifiedToken> {
        self.token.as_deref()
    }
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
    /// Secrets that nonces are made from, the first for new ones. Each is bound to the epoch: what was
    /// made for another memory of proofs is none here.
    pub nonce_secrets: Vec<NonceSecret>,
    /// For how long after an epoch's begin a proof without a nonce may have been used before it.
    pub era_margin: Duration,
    /// The clients that the configuration knows.
    pub clients: Vec<KnownClient>,
    /// The temporary bypass, once it was opened.
    pub bypass: Arc<ArcSwapOption<Bypass>>,
    /// How long a successor may stand in for the certificate that a token is bound to; 0: never.
    pub rotation_grace: Duration,
}

/// What a gate remembers by.
#[derive(Clone, Debug)]
pub struct Stores {
    /// Proofs at resources.
    pub replay: Arc<dyn ReplayLog>,
    /// Proofs at token endpoints, where any fresh key makes one that holds.
    pub grants: Arc<dyn ReplayLog>,
    /// Nonces that are used up, where each is good once.
    pub nonces: Option<Arc<dyn SpentNonces>>,
    /// The same, with the room of token endpoints.
    pub grant_nonces: Option<Arc<dyn SpentNonces>>,
    /// Which memory it is that proofs are held against.
    pub epochs: Arc<dyn Epochs>,
    /// What tokens are bound to, where the edge keeps it.
    pub bindings: Option<Arc<dyn Bindings>>,
    /// Certificates that were withdrawn.
    pub withdrawn: Arc<dyn Withdrawn>,
}

impl Stores {
    /// For resources alone: nothing is kept of tokens, and no certificate is withdrawn.
    #[must_use]
    pub fn of_resources(replay: Arc<dyn ReplayLog>, epochs: Arc<dyn Epochs>) -> Self {
        let grants = Arc::clone(&replay);
        let withdrawn = Arc::new(NoneWithdrawn);
        let (nonces, grant_nonces) = (None, None);
        Self { replay, grants, nonces, grant_nonces, epochs, bindings: None, withdrawn }
    }
}

#[derive(Debug)]
struct NoneWithdrawn;

impl Withdrawn for NoneWithdrawn {
    fn is_withdrawn(&self, _certificate: &SenderCertificate) -> bool {
        false
    }
}

/// Knows which client certificates their issuers have withdrawn.
pub trait Withdrawn: std::fmt::Debug + Send + Sync {
    /// Whether a list that is in force has this one.
    fn is_withdrawn(&self, certificate: &SenderCertificate) -> bool;
}

/// An external origin, and which of them it is.
#[derive(Debug)]
struct Site {
    origin: Origin,
    index: usize,
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
    stores: Stores,
    nonce_secrets: Vec<NonceSecret>,
    era: Held,
    successor: Successor,
    era_margin: Duration,
    clients: Vec<KnownClient>,
    bypass: Arc<ArcSwapOption<Bypass>>,
    rotation_grace: Duration,
}

impl Gate {
    /// A gate without keys: every token is refused until [`Gate::replace_keys`] brought its issuer's.
    #[must_use]
    pub fn new(settings: Settings, stores: Stores) -> Self {
        let site = |(index, origin)| Site { origin, index };
        Self {
            keys: settings.issuers.iter().map(|_| ArcSwap::default()).collect(),
            sites: settings.origins.into_iter().enumerate().map(site).collect(),
            rules: settings.rules,
            issuers: settings.issuers,
            proof: settings.proof,
            authorization_bytes: settings.authorization_bytes,
            proof_bytes: settings.proof_bytes,
            tokens: TokenMemory::new(settings.token_cache_entries),
            opaque: TokenMemory::new(settings.introspection_cache_entries),
            stores,
            nonce_secrets: settings.nonce_secrets,
            era: Held::empty(),
            successor: Successor::empty(),
            era_margin: settings.era_margin,
            clients: settings.clients,
            bypass: settings.bypass,
            rotation_grace: settings.rotation_grace,
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
            let verdict = Ok(Admitted::without_token(BoundBy::Public));
            return Decision { verdict, facts };
        }
        let Some(site) = origin.and_then(|index| self.sites.get(index)) else {
            return Decision { verdict: Err(Denial::HostInvalid), facts };
        };
        let case = Case { view, route, site, era: self.era(), told, now };
        let verdict = self.decide(&case, requirement, &mut facts).await;
        Decision { verdict, facts }
    }

    /// Admits a preflight for the service to answer, on a route that says so. It reads no token.
    #[must_use]
    pub fn admit_preflight(&self, _preflight: &Preflight<'_>) -> Admitted {
        Admitted::without_token(BoundBy::Preflight)
    }

    async fn decide(
        &self,
        case: &Case<'_>,
        mut requirement: Requirement,
        facts: &mut Facts,
    ) -> Result<Admitted, Denial> {
        let verdict = match self.token(case, facts).await {
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
        let enforced = self.rules.enforces(requirement.mode, token.client_or_subject());
        facts.enforced = Some(enforced);
        let held = match self.sender(case, requirement, presented, &token, facts).await {
            Ok((by, proof)) => {
                self.allows(case, &token)?;
                self.first_use(self.stores.at_resources(), proof, facts, case.now)
                    .await
                    .map(|()| by)
            }
            Err(denial) => Err(denial),
        };
        let admitted = |bound_by, token| {
            let confirmation = facts.confirmation;
            Admitted { bound_by, token: Some(token), confirmation }
        };
        match held {
            Ok(bound_by) => {
                facts.bound_by = Some(bound_by);
                Ok(admitted(bound_by, token))
            }
            Err(denial) if !enforced && denial.observable() => {
                self.allows(case, &token)?;
                let admitted = admitted(BoundBy::Observed, token);
                facts.observed = Some(denial);
                facts.bound_by = Some(BoundBy::Observed);
                Ok(admitted)
            }
            Err(denial) => Err(denial),
        }
    }

    /// Whether the token is one for this route, whoever shows it: no mode relaxes it.
    fn allows(&self, case: &Case<'_>, token: &VerifiedToken) -> Result<(), Denial> {
        scopes(case.route, token)?;
        let skew = self.issuers.get(token.issuer()).map_or(Duration::ZERO, |it| it.clock_skew);
        case.route.step_up.check(token.authentication(), skew, case.now)
    }

    fn challenge(&self, requirement: &Requirement, route: &RouteRule) -> Challenge {
        let demand = requirement.demand;
        let certificate = self.rules.mtls_enabled && demand.met_by(false, true);
        Challenge {
            dpop: self.rules.dpop_enabled
                && demand != Demand::Mtls
                && route.role != Role::Introspection,
            bearer: certificate || route.allow_unbound || demand == Demand::None,
            algorithms: requirement.algorithms,
        }
    }

    /// Whether the answer must bring a nonce: after a refusal where one is needed, and, so that a
    /// steady client is never challenged twice, once the client's own is past half its time.
    fn wants_nonce<T>(
        &self,
        requirement: &Requirement,
        verdict: &Result<T, Denial>,
        facts: &Facts,
    ) -> bool {
        let Some(ttl) = self.proof.nonce_ttl else {
            return false;
        };
        // A certificate may be all that the rule demands of a token that is bound to a key as well.
        let dpop = facts.challenge.dpop || (facts.dpop && self.rules.dpop_enabled);
        let needed = requirement.nonce && dpop;
        match (verdict, facts.nonce) {
            (
                Err(_),
                NonceStatus::Absent
                | NonceStatus::Expired
                | NonceStatus::Unknown
                | NonceStatus::Spent,
            ) => true,
            (Err(_), NonceStatus::NotChecked | NonceStatus::Fresh { .. }) => needed,
            (Ok(_), NonceStatus::Fresh { age, superseded }) => {
                superseded || age > ttl / 2 || self.proof.nonce_single_use
            }
            (Ok(_), _) => needed && facts.observed.is_some(),
        }
    }

    /// A fresh nonce for `origin`; `None` when nonces are off, and while nobody knows which memory it
    /// would be for.
    #[must_use]
    pub fn nonce(&self, origin: usize, now: UnixTime, random: [u8; 8]) -> Option<String> {
        if let Some(keys) = &*self.successor.load() {
            return keys.get(origin)?.make(now, random);
        }
        self.era()?.nonce_keys(origin)?.make(now, random)
    }

    /// Live proofs remembered, for the metrics.
    #[must_use]
    pub fn live_proofs(&self) -> usize {
        self.stores.replay.live()
    }

    /// What the proofs of token endpoints come to.
    #[must_use]
    pub fn live_grants(&self) -> usize {
        self.stores.grants.live()
    }

    /// The temporary bypass, while it lasts.
    #[must_use]
    pub fn bypass(&self, now: UnixTime) -> Option<Arc<Bypass>> {
        self.bypass.load().as_ref().filter(|bypass| bypass.lasts(now)).map(Arc::clone)
    }

    /// What tokens are bound to, where the edge keeps it.
    #[must_use]
    pub fn bindings(&self) -> Option<&Arc<dyn Bindings>> {
        self.stores.bindings.as_ref()
    }

    /// Whether what is wrong with a sender whose token is `client`'s is only recorded on `route`. Of a token
    /// that is nobody's the strictest tenant's mode counts.
    #[must_use]
    pub fn observes(
        &self,
        tenant: Option<TenantId>,
        client: Option<&str>,
        route: &RouteRule,
    ) -> bool {
        let of_client = || {
            let known = self.clients.iter().find(|known| Some(known.id.as_str()) == client);
            known.map(|known| known.tenant)
        };
        let tenant = tenant.or_else(of_client);
        let requirement = self.rules.grant_requirement(tenant, tenant.is_some(), &[], route);
        !self.rules.enforces(requirement.mode, client)
    }

    /// Whether certificates that tokens are bound to are kept, for their successors.
    #[must_use]
    pub fn follows_certificates(&self) -> bool {
        !self.rotation_grace.is_zero() && self.stores.bindings.is_some()
    }

    /// What tokens can be bound by: the algorithms of proofs, and whether certificates.
    #[must_use]
    pub fn can_bind_by(&self) -> (Option<AlgorithmSet>, bool) {
        let algorithms = self.rules.default.algorithms;
        (self.rules.dpop_enabled.then_some(algorithms), self.rules.mtls_enabled)
    }

    /// The configured tenant of this name.
    #[must_use]
    pub fn tenant_named(&self, name: &str) -> Option<TenantId> {
        self.rules.tenant_named(name)
    }

    /// What an issuer's tokens must be.
    #[must_use]
    pub fn issuer(&self, index: usize) -> Option<&IssuerRules> {
        self.issuers.get(index)
    }
}

/// One request at one route.
struct Case<'a> {
    view: &'a RequestView<'a>,
    route: &'a RouteRule,
    site: &'a Site,
    /// The memory of proofs that the request is held against; `None` while nobody knows which it is.
    era: Option<Arc<Era>>,
    told: Option<&'a Told>,
    now: UnixTime,
}

impl Case<'_> {
    fn nonce_keys(&self) -> Option<&NonceKeys> {
        self.era.as_ref()?.nonce_keys(self.site.index)
    }
}

fn scopes(route: &RouteRule, token: &VerifiedToken) -> Result<(), Denial> {
    if route.scopes.iter().all(|scope| token.scopes().contains(scope)) {
        Ok(())
    } else {
        Err(Denial::ScopeMissing)
    }
}
