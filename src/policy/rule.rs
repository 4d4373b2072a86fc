//! What a request must present. Demands of default, tenant, audience and route add up.

use super::jose::AlgorithmSet;
use super::share::Share;
use super::step_up::StepUp;

/// What a token must be bound to, at least: `none` < `any` < `dpop`, `mtls` < `both`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Demand {
    /// Nothing; what a token is bound to is enforced all the same.
    None,
    /// Either a key or a certificate.
    Any,
    /// A key (`cnf.jkt`).
    Dpop,
    /// A certificate (`cnf.x5t#S256`).
    Mtls,
    /// A key and a certificate.
    Both,
}

impl Demand {
    /// The weakest demand that meets both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, demand) | (demand, Self::None) => demand,
            (Self::Any, demand) | (demand, Self::Any) => demand,
            (Self::Dpop, Self::Dpop) => Self::Dpop,
            (Self::Mtls, Self::Mtls) => Self::Mtls,
            (Self::Both | Self::Dpop | Self::Mtls, Self::Both | Self::Dpop | Self::Mtls) => {
                Self::Both
            }
        }
    }

    /// The strongest demand that whatever meets either meets.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, _) | (_, Self::None) => Self::None,
            (Self::Both, demand) | (demand, Self::Both) => demand,
            (Self::Dpop, Self::Dpop) => Self::Dpop,
            (Self::Mtls, Self::Mtls) => Self::Mtls,
            (Self::Any | Self::Dpop | Self::Mtls, Self::Any | Self::Dpop | Self::Mtls) => Self::Any,
        }
    }

    /// Whether a token bound as said meets this demand.
    #[must_use]
    pub fn met_by(self, key: bool, certificate: bool) -> bool {
        match self {
            Self::None => true,
            Self::Any => key || certificate,
            Self::Dpop => key,
            Self::Mtls => certificate,
            Self::Both => key && certificate,
        }
    }

    /// What is left of it where no key can be shown.
    #[must_use]
    pub fn without_key(self) -> Self {
        match self {
            Self::None | Self::Any | Self::Dpop => Self::None,
            Self::Mtls | Self::Both => Self::Mtls,
        }
    }

    /// The word for it in configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Any => "any",
            Self::Dpop => "dpop",
            Self::Mtls => "mtls",
            Self::Both => "both",
        }
    }
}

/// Whether a misdeed is refused or only recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Refuse.
    Enforce,
    /// Let pass what lacks proof, nonce, binding or freshness, and record it; but refuse it of the
    /// clients that belong to this share.
    Observe(Share),
}

impl Mode {
    /// The share of clients whose misdeeds are refused.
    #[must_use]
    pub fn share(self) -> Share {
        match self {
            Self::Enforce => Share::ALL,
            Self::Observe(share) => share,
        }
    }

    /// Whether it lets pass anybody.
    #[must_use]
    pub fn observes(self) -> bool {
        self.share() != Share::ALL
    }

    /// What refuses whatever either refuses: all shares are cut by the same hash, so that the larger one
    /// has the smaller one in it.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        if other.share() > self.share() { other } else { self }
    }

    /// What refuses only what both refuse.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        if other.share() < self.share() { other } else { self }
    }

    /// The word for it in configuration, its share left out.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Observe(_) => "observe",
        }
    }
}

/// What one scope of the configuration (default, tenant or route) says; `None` says nothing.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// The demand.
    pub require: Option<Demand>,
    /// Enforce or observe.
    pub mode: Option<Mode>,
    /// Signature algorithms allowed for proofs.
    pub algorithms: Option<AlgorithmSet>,
    /// Whether a proof must carry a nonce.
    pub nonce: Option<bool>,
    /// Whether what this scope says replaces what the scopes before it said, weaker values included.
    pub overrides: bool,
}

/// What one request must meet: the outcome of adding up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// What the token must be bound to, at least.
    pub demand: Demand,
    /// Enforce or observe.
    pub mode: Mode,
    /// Signature algorithms allowed for proofs.
    pub algorithms: AlgorithmSet,
    /// Whether a proof must carry a nonce of ours.
    pub nonce: bool,
}

impl Requirement {
    /// Adds what `scope` says: demands join, algorithms intersect, the larger share that is enforced
    /// and a demanded nonce win; unless the scope overrides, then its words replace.
    #[must_use]
    pub fn with(mut self, scope: &Scope) -> Self {
        if let Some(require) = scope.require {
            self.demand = if scope.overrides { require } else { self.demand.and(require) };
        }
        if let Some(mode) = scope.mode {
            self.mode = if scope.overrides { mode } else { self.mode.and(mode) };
        }
        if let Some(algorithms) = scope.algorithms {
            self.algorithms =
                if scope.overrides { algorithms } else { self.algorithms.intersection(algorithms) };
        }
        if let Some(nonce) = scope.nonce {
            self.nonce = if scope.overrides { nonce } else { self.nonce || nonce };
        }
        self
    }

    /// What meets this meets both requirements.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            demand: self.demand.and(other.demand),
            mode: self.mode.and(other.mode),
            algorithms: self.algorithms.intersection(other.algorithms),
            nonce: self.nonce || other.nonce,
        }
    }

    /// What meets either of two requirements need not meet more than this.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            demand: self.demand.or(other.demand),
            mode: self.mode.or(other.mode),
            algorithms: self.algorithms.union(other.algorithms),
            nonce: self.nonce && other.nonce,
        }
    }

    /// Adds the certificate that an audience demands (`mtls.enforceForAudiences`).
    #[must_use]
    pub fn with_certificate(mut self) -> Self {
        self.demand = self.demand.and(Demand::Mtls);
        self
    }
}

/// What a route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Reads a token and admits by it.
    Resource,
    /// Reads no token; credentials are removed unless the route passes them.
    Public,
    /// An authorization server's token endpoint (RFC 6749 section 3.2).
    Token,
    /// Its endpoint for pushed authorization requests (RFC 9126).
    Par,
    /// Its introspection endpoint (RFC 7662).
    Introspection,
    /// Its revocation endpoint (RFC 7009).
    Revocation,
    /// Its metadata (RFC 8414).
    Metadata,
    /// Reads a token as a resource does, and admits only one with a recent authentication.
    FreshAuth,
}

impl Role {
    /// Every role, in label order.
    pub const ALL: [Self; 8] = [
        Self::Resource,
        Self::Public,
        Self::Token,
        Self::Par,
        Self::Introspection,
        Self::Revocation,
        Self::Metadata,
        Self::FreshAuth,
    ];

    /// Whether it reads an access token and admits by it.
    #[must_use]
    pub fn reads_token(self) -> bool {
        match self {
            Self::Resource | Self::FreshAuth => true,
            Self::Public
            | Self::Token
            | Self::Par
            | Self::Introspection
            | Self::Revocation
            | Self::Metadata => false,
        }
    }

    /// Whether it is an authorization server's: the edge asks the server itself and answers with what
    /// it made of the server's answer.
    #[must_use]
    pub fn is_authority(self) -> bool {
        match self {
            Self::Token | Self::Par | Self::Introspection | Self::Revocation | Self::Metadata => {
                true
            }
            Self::Resource | Self::Public | Self::FreshAuth => false,
        }
    }

    /// Whether its requests are held against what a sender must show when it asks for a token.
    #[must_use]
    pub fn asks_for_token(self) -> bool {
        matches!(self, Self::Token | Self::Par)
    }

    /// The word for it in configuration and labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Resource => "resource",
            Self::Public => "public",
            Self::Token => "token",
            Self::Par => "par",
            Self::Introspection => "introspection",
            Self::Revocation => "revocation",
            Self::Metadata => "metadata",
            Self::FreshAuth => "freshAuth",
        }
    }
}

/// What a route demands.
#[derive(Clone, Debug)]
pub struct RouteRule {
    /// What the route is for.
    pub role: Role,
    /// What it adds to default, tenant and audience.
    pub scope: Scope,
    /// Whether unbound tokens pass (bound ones are enforced all the same).
    pub allow_unbound: bool,
    /// The token's `aud` must name one of these; empty: no more than the issuer's entry demands.
    pub audiences: Vec<String>,
    /// The token's `scope` must have all of these.
    pub scopes: Vec<String>,
    /// What it must say of the authentication behind it.
    pub step_up: StepUp,
    /// What an authorization server's route does ([`Role::is_authority`]).
    pub authority: AuthorityRule,
}

/// Who binds an authorization server's tokens to their senders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Binding {
    /// The server itself; the edge checks the proof before it, and what was issued after it.
    #[default]
    Native,
    /// The edge: the server knows nothing of it.
    Retrofit,
}

/// What certificate a token must come back with at its introspection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SenderCertificateCheck {
    /// That of the connection: clients introspect their own tokens.
    Caller,
    /// The one in `Client-Cert` (RFC 9440): a resource server hands it on.
    Forwarded,
    /// None; `cnf` is only told.
    #[default]
    Off,
}

/// What an authorization server's route does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuthorityRule {
    /// Index of the issuer whose server it is.
    pub issuer: Option<usize>,
    /// Who binds.
    pub binding: Binding,
    /// Whether nonces are the server's: its challenges pass, and a proof's nonce is not looked at.
    pub upstream_nonces: bool,
    /// Introspection: which certificate must be the token's.
    pub sender_certificate: SenderCertificateCheck,
    /// Introspection: whether a token with another certificate is answered `inactive` instead of refused.
    pub mismatch_inactive: bool,
}

/// A configured tenant.
#[derive(Clone, Debug)]
pub struct TenantRule {
    /// Its name, as tokens and labels write it.
    pub name: String,
    /// What it adds to the default.
    pub scope: Scope,
}

/// What the configuration demands, routes apart.
#[derive(Clone, Debug)]
pub struct Rules {
    /// `security.senderConstraints`: what holds before any tenant, audience or route adds to it.
    pub default: Requirement,
    /// Whether DPoP is accepted at all.
    pub dpop_enabled: bool,
    /// Whether certificate-bound tokens are accepted at all.
    pub mtls_enabled: bool,
    /// Audiences that demand a certificate (`mtls.enforceForAudiences`).
    pub certificate_audiences: Vec<String>,
    /// Audiences that need a nonce; empty: every audience (`dpop.nonce.requiredAudiences`).
    pub nonce_audiences: Vec<String>,
    /// The tenants, by index ([`TenantId`]).
    pub tenants: Vec<TenantRule>,
    /// The claim that names the tenant; without one the issuer's entry does.
    pub tenant_claim: Option<String>,
    /// Whether a token whose tenant is not configured is served under the default rule.
    pub unknown_tenant_allowed: bool,
    /// By which clients are told into shares (`enforceSalt`).
    pub share_salt: String,
}

/// A tenant by its place in [`Rules::tenants`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TenantId(pub usize);

impl Rules {
    /// The tenant of a name.
    #[must_use]
    pub fn tenant_named(&self, name: &str) -> Option<TenantId> {
        self.tenants.iter().position(|tenant| tenant.name == name).map(TenantId)
    }

    /// Whether what is wrong with a sender is refused where `client` asks: the `client_id` of a verified
    /// token or of who asks for one. One without a name counts as enforced as soon as anybody is.
    #[must_use]
    pub fn enforces(&self, mode: Mode, client: Option<&str>) -> bool {
        mode.share().has(&self.share_salt, client)
    }

    /// Adds up default, tenant, the token's audiences and route.
    #[must_use]
    pub fn requirement(
        &self,
        tenant: Option<TenantId>,
        audiences: &[String],
        route: &RouteRule,
    ) -> Requirement {
        let names = |listed: &[String]| audiences.iter().any(|audience| listed.contains(audience));
        let mut default = self.default;
        if !self.nonce_audiences.is_empty() && !names(&self.nonce_audiences) {
            default.nonce = false;
        }
        self.added_up(default, tenant, audiences, route)
    }

    /// What a client must show to be issued a token, which may be for other audiences than those that it
    /// names. `known` is whether anybody knows whose client it is: if not, all that default and every
    /// tenant demand together.
    #[must_use]
    pub fn grant_requirement(
        &self,
        tenant: Option<TenantId>,
        known: bool,
        audiences: &[String],
        route: &RouteRule,
    ) -> Requirement {
        let of = |tenant| self.added_up(self.default, tenant, audiences, route);
        if known {
            return of(tenant);
        }
        let tenants = (0..self.tenants.len()).map(|index| of(Some(TenantId(index))));
        tenants.fold(of(None), Requirement::and)
    }

    fn added_up(
        &self,
        default: Requirement,
        tenant: Option<TenantId>,
        audiences: &[String],
        route: &RouteRule,
    ) -> Requirement {
        let names = |listed: &[String]| audiences.iter().any(|audience| listed.contains(audience));
        let mut requirement = default;
        if let Some(tenant) = tenant.and_then(|TenantId(index)| self.tenants.get(index)) {
            requirement = requirement.with(&tenant.scope);
        }
        if names(&self.certificate_audiences) {
            requirement = requirement.with_certificate();
        }
        requirement.with(&route.scope)
    }

    /// What every token of an issuer must be shown at least, before it is known which it is: no
    /// tenant that it may turn out to have, and no audience, demands less.
    ///
    /// `own` is the tenant of the issuer's entry: its tokens have no other.
    #[must_use]
    pub fn least(&self, own: Option<TenantId>, route: &RouteRule) -> Requirement {
        let of = |tenant: Option<TenantId>| self.requirement(tenant, &[], route);
        let tenants = self.tenants_of(own).into_iter().map(of);
        tenants.reduce(Requirement::or).unwrap_or_else(|| of(None))
    }

    /// The tenants that tokens of an issuer can have whose entry names `own`.
    #[must_use]
    pub fn tenants_of(&self, own: Option<TenantId>) -> Vec<Option<TenantId>> {
        if own.is_some() || self.tenant_claim.is_none() {
            return vec![own];
        }
        let tenants = (0..self.tenants.len()).map(|index| Some(TenantId(index)));
        tenants.chain(self.unknown_tenant_allowed.then_some(None)).collect()
    }
}
