//! JWT access tokens (RFC 9068): token, key set and time in, [`VerifiedToken`] out. What is no JWT
//! is [`introspection`]'s.

mod record;

use std::sync::Arc;
use std::time::Duration;

pub use record::of_record;

use super::denial::Denial;
use super::digest::{Jkt, Sha256, X5tS256};
use super::grant::{OpaqueRules, RetrofitRules};
use super::introspection::{self, IntrospectionRules};
use super::jose::{Algorithm, AlgorithmSet, CompactJws, KeyFault, PublicKey};
use super::json::{self, Object};
use super::rule::{Rules, TenantId};
use super::step_up::Authentication;
use super::time::UnixTime;

/// Which `typ` an issuer's tokens have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenType {
    /// `at+jwt` or `application/at+jwt` (RFC 9068 section 4), in any case.
    AccessToken,
    /// One of these values (compared without case, `application/` optional); the empty string stands for no `typ`.
    OneOf(Vec<String>),
    /// Whatever it is.
    Any,
}

/// What an issuer's entry in the configuration says about its tokens.
#[derive(Clone, Debug)]
pub struct IssuerRules {
    /// `iss`, to the letter.
    pub issuer: String,
    /// `aud` must name at least one of these. Never empty.
    pub audiences: Vec<String>,
    /// Allowed signature algorithms.
    pub algorithms: AlgorithmSet,
    /// Allowed `typ`.
    pub token_type: TokenType,
    /// How far the issuer's clock may be from ours, for `exp` and `nbf`.
    pub clock_skew: Duration,
    /// The tenant of its tokens; a claim that names another is refused.
    pub tenant: Option<TenantId>,
    /// Whether its JWTs are verified with its keys. Without, each of its tokens is asked about.
    pub keys: bool,
    /// How it is asked about the tokens that are no such JWT.
    pub introspection: Option<IntrospectionRules>,
    /// How the edge binds its tokens, where it does.
    pub retrofit: Option<RetrofitRules>,
}

impl IssuerRules {
    /// What its opaque tokens begin with, `Some(None)` being whatever; `None` where it has none.
    #[must_use]
    pub fn opaque_prefix(&self) -> Option<Option<&str>> {
        let asked = self.introspection.as_ref().map(|rules| rules.token_prefix.as_deref());
        let recorded = self.retrofit.as_ref().and_then(|rules| rules.opaque.as_ref());
        asked.or_else(|| recorded.map(|rules| rules.token_prefix.as_deref()))
    }

    /// Whether its opaque tokens are taken on their records alone.
    #[must_use]
    pub fn opaque_by_record(&self) -> Option<&OpaqueRules> {
        self.retrofit.as_ref()?.opaque.as_ref()
    }
}

/// What a token is bound to (`cnf`, RFC 7800).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confirmation {
    /// `jkt` (RFC 9449 section 6.1).
    pub jkt: Option<Jkt>,
    /// `x5t#S256` (RFC 8705 section 3.1).
    pub x5t: Option<X5tS256>,
    /// There are members, and none is one of these two: bound to what nobody here can check.
    pub foreign: bool,
}

impl Confirmation {
    /// What satisfies both; `None` where nothing can.
    #[must_use]
    pub fn and(self, other: Self) -> Option<Self> {
        let jkt = joined(self.jkt, other.jkt)?;
        let x5t = joined(self.x5t, other.x5t)?;
        let foreign = (self.foreign || other.foreign) && jkt.is_none() && x5t.is_none();
        Some(Self { jkt, x5t, foreign })
    }

    /// Whether nothing binds the token.
    #[must_use]
    pub fn is_unbound(self) -> bool {
        self.jkt.is_none() && self.x5t.is_none() && !self.foreign
    }
}

/// The one that is there, or both where they are the same.
fn joined<T: PartialEq>(one: Option<T>, other: Option<T>) -> Option<Option<T>> {
    match (one, other) {
        (Some(one), Some(other)) => (one == other).then_some(Some(one)),
        (one, other) => Some(one.or(other)),
    }
}

/// A token whose claims held at the time when it was verified: signed by its issuer (only [`verify`]
/// makes one) or vouched for (only [`introspection::read`] does). Whether
/// it still stands says [`VerifiedToken::stands`].
#[derive(Clone, Debug)]
pub struct VerifiedToken {
    pub(super) issuer: usize,
    pub(super) vouched: Vouched,
    pub(super) subject: Option<String>,
    pub(super) client: Option<String>,
    pub(super) tenant: Option<TenantId>,
    pub(super) audiences: Vec<String>,
    pub(super) scopes: Vec<String>,
    pub(super) confirmation: Confirmation,
    pub(super) authentication: Authentication,
    pub(super) expires: UnixTime,
}

/// What a token's claims rest on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Vouched {
    /// A signature by this key.
    Key(Jkt),
    /// The issuer's word, which is taken until then.
    Word(UnixTime),
}

impl VerifiedToken {
    /// Index of its issuer.
    #[must_use]
    pub fn issuer(&self) -> usize {
        self.issuer
    }

    /// Whether it is a JWT that its issuer's key has signed.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        matches!(self.vouched, Vouched::Key(_))
    }

    /// `sub`.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }

    /// `client_id` (RFC 9068), or `azp` where an issuer says it that way.
    #[must_use]
    pub fn client(&self) -> Option<&str> {
        self.client.as_deref()
    }

    /// By what it is told into a share of clients: its client, or its `sub` where it names none.
    #[must_use]
    pub fn client_or_subject(&self) -> Option<&str> {
        self.client().or(self.subject())
    }

    /// The configured tenant that it belongs to.
    #[must_use]
    pub fn tenant(&self) -> Option<TenantId> {
        self.tenant
    }

    /// `aud`, never empty.
    #[must_use]
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// `scope`, split at its spaces.
    #[must_use]
    pub fn scopes(&self) -> &[String] {
        &self.scopes
    }

    /// What it is bound to.
    #[must_use]
    pub fn confirmation(&self) -> Confirmation {
        self.confirmation
    }

    /// How and when whoever it speaks for was authenticated.
    #[must_use]
    pub fn authentication(&self) -> &Authentication {
        &self.authentication
    }

    /// `exp`, the issuer's skew added: the time from which it is refused.
    #[must_use]
    pub fn expires(&self) -> UnixTime {
        self.expires
    }

    /// Whether a remembered token still holds: it has not expired, and its key is still its
    /// issuer's, or its issuer's word is still fresh.
    #[must_use]
    pub fn stands(&self, keys: &KeySet, now: UnixTime) -> bool {
        let vouched = match self.vouched {
            Vouched::Key(signer) => keys.keys.iter().any(|key| key.public.jkt() == signer),
            Vouched::Word(until) => now < until,
        };
        vouched && now < self.expires
    }
}

/// An issuer's public keys. Made from a JWK set (RFC 7517 section 5).
#[derive(Clone, Debug, Default)]
pub struct KeySet {
    keys: Arc<[SetKey]>,
}

#[derive(Debug)]
struct SetKey {
    kid: Option<String>,
    public: PublicKey,
}

/// What makes a whole JWK set unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// Not a JSON object with a `keys` array of objects, or duplicate members.
    #[error("not a JWK set: a JSON object with an array `keys` of objects is expected")]
    Malformed,
    /// More keys than any issuer needs.
    #[error("more than {MAX_KEYS} keys")]
    TooMany,
    /// No key in it can verify a token.
    #[error(
        "no usable key: public signature keys of type EC, OKP (Ed25519) or RSA (2048 to 8192 bits) are"
    )]
    NoUsableKey,
    /// A key in it has a private or symmetric member: the set was published by mistake.
    #[error("a key has a private or symmetric member; publish public keys only")]
    PrivateKey,
}

/// The most keys that a set may have.
pub const MAX_KEYS: usize = 64;

impl KeySet {
    /// Reads a JWK set. Keys that no verification can use (encryption keys, unknown types, weak
    /// keys) are left out.
    ///
    /// # Errors
    /// When the text is no JWK set, or no key is left, or a key is not public.
    pub fn from_json(text: &[u8]) -> Result<Self, KeySetError> {
        let set = json::object(text).ok_or(KeySetError::Malformed)?;
        let listed = set.get("keys").and_then(json::Value::as_array);
        let listed = listed.ok_or(KeySetError::Malformed)?;
        if listed.len() > MAX_KEYS {
            return Err(KeySetError::TooMany);
        }
        let mut keys = Vec::with_capacity(listed.len());
        for jwk in listed {
            let jwk = jwk.as_object().ok_or(KeySetError::Malformed)?;
            let kid = json::string(jwk, "kid").map_err(|_| KeySetError::Malformed)?;
            match PublicKey::from_jwk(jwk) {
                Ok(public) => keys.push(SetKey { kid: kid.map(str::to_owned), public }),
                Err(KeyFault::Private) => return Err(KeySetError::PrivateKey),
                Err(KeyFault::Unusable) => {}
            }
        }
        if keys.is_empty() {
            return Err(KeySetError::NoUsableKey);
        }
        Ok(Self { keys: keys.into() })
    }

    /// How many keys it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether it has none: the set of an issuer whose keys were not fetched yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The key for a token's `kid` and `alg`. Without a `kid` only a single fitting key will do:
    /// trying all of them would let a stranger choose how many signatures are verified.
    #[must_use]
    pub fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Option<&PublicKey> {
        let mut fitting = self.keys.iter().filter(|key| {
            key.public.fits(algorithm) && (kid.is_none() || key.kid.as_deref() == kid)
        });
        let found = fitting.next()?;
        (kid.is_some() || fitting.next().is_none()).then_some(&found.public)
    }
}

/// How a token is verified.
#[derive(Clone, Debug)]
pub enum Reading<'a> {
    /// With the keys of this issuer (its index).
    Signed(CompactJws<'a>, usize),
    /// By asking this issuer (its index).
    Opaque(usize),
}

/// Reads a token far enough to know whose it claims to be: by its `iss`, or, where it is no JWT at
/// all, by its prefix. A JWT of an issuer that is not configured is nobody else's to be asked about.
///
/// # Errors
/// [`Denial::TokenMalformed`], [`Denial::TokenClaim`], [`Denial::TokenIssuer`].
pub fn read<'a>(token: &'a str, issuers: &[IssuerRules]) -> Result<Reading<'a>, Denial> {
    let Some(jws) = CompactJws::parse(token) else {
        let asked = introspection::issuer_of(token, issuers).ok_or(Denial::TokenMalformed)?;
        return Ok(Reading::Opaque(asked));
    };
    let issuer = json::string(&jws.payload, "iss").ok().flatten().ok_or(Denial::TokenClaim)?;
    let index = issuers.iter().position(|known| known.issuer == issuer);
    let index = index.ok_or(Denial::TokenIssuer)?;
    let signed = issuers.get(index).is_none_or(|known| known.keys);
    Ok(if signed { Reading::Signed(jws, index) } else { Reading::Opaque(index) })
}

/// Verifies a token of `issuer` (its index, as [`read`] found it): RFC 9068 section 4, RFC 8725.
///
/// # Errors
/// The first check that fails.
pub fn verify(
    jws: &CompactJws<'_>,
    issuer: usize,
    entry: &IssuerRules,
    keys: &KeySet,
    rules: &Rules,
    now: UnixTime,
) -> Result<VerifiedToken, Denial> {
    if jws.header.contains_key("crit") {
        return Err(Denial::TokenCritical);
    }
    typ(&jws.header, &entry.token_type)?;
    let algorithm = jws.algorithm().filter(|algorithm| entry.algorithms.contains(*algorithm));
    let algorithm = algorithm.ok_or(Denial::TokenAlgorithm)?;
    let kid = json::string(&jws.header, "kid").map_err(|_| Denial::TokenMalformed)?;
    let key = keys.find(kid, algorithm).ok_or(Denial::TokenKeyUnknown)?;
    if !jws.verified_by(key, algorithm) {
        return Err(Denial::TokenSignature);
    }
    let told = Told { issuer, vouched: Vouched::Key(key.jkt()), assumed: Assumed::default() };
    claims(&jws.payload, entry, rules, told, now)
}

/// What of a token its claims do not say.
pub(super) struct Told<'a> {
    pub(super) issuer: usize,
    pub(super) vouched: Vouched,
    pub(super) assumed: Assumed<'a>,
}

/// What holds where a claim is missing; none: it must be there.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Assumed<'a> {
    pub(super) audience: Option<&'a str>,
    pub(super) expires: Option<UnixTime>,
}

/// Reads the claims of a token: those of a JWT, or of an answer to a question about it.
pub(super) fn claims(
    claims: &Object,
    entry: &IssuerRules,
    rules: &Rules,
    told: Told<'_>,
    now: UnixTime,
) -> Result<VerifiedToken, Denial> {
    let expires = times(claims, entry, told.assumed.expires, now)?;
    let mut audiences = json::strings(claims, "aud").map_err(|_| Denial::TokenClaim)?;
    if !claims.contains_key("aud") {
        audiences.extend(told.assumed.audience.map(str::to_owned));
    }
    if audiences.is_empty() {
        return Err(Denial::TokenClaim);
    }
    if !audiences.iter().any(|audience| entry.audiences.contains(audience)) {
        return Err(Denial::TokenAudience);
    }
    let text = |name: &str| match json::string(claims, name) {
        Ok(value) => Ok(value.map(str::to_owned)),
        Err(json::WrongType) => Err(Denial::TokenClaim),
    };
    text("jti")?;
    let scope = text("scope")?.unwrap_or_default();
    let time = json::numeric_date(claims, "auth_time").map_err(|_| Denial::TokenClaim)?;
    Ok(VerifiedToken {
        issuer: told.issuer,
        vouched: told.vouched,
        subject: text("sub")?,
        client: match text("client_id")? {
            Some(client) => Some(client),
            None => text("azp")?,
        },
        tenant: tenant(claims, entry, rules)?,
        audiences,
        scopes: scope.split(' ').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        confirmation: confirmation(claims)?,
        authentication: Authentication { time, acr: text("acr")? },
        expires,
    })
}

fn typ(header: &Object, allowed: &TokenType) -> Result<(), Denial> {
    let shown = json::string(header, "typ").map_err(|_| Denial::TokenType)?.unwrap_or_default();
    let shown = shown.to_ascii_lowercase();
    let shown = shown.strip_prefix("application/").unwrap_or(&shown);
    let fits = match allowed {
        TokenType::AccessToken => shown == "at+jwt",
        TokenType::OneOf(names) => names.iter().any(|name| {
            let name = name.to_ascii_lowercase();
            name.strip_prefix("application/").unwrap_or(&name) == shown
        }),
        TokenType::Any => true,
    };
    if fits { Ok(()) } else { Err(Denial::TokenType) }
}

/// `exp` must be there and ahead, `nbf` behind, `iat` a number. The answer is `exp` with the skew.
fn times(
    claims: &Object,
    entry: &IssuerRules,
    assumed: Option<UnixTime>,
    now: UnixTime,
) -> Result<UnixTime, Denial> {
    let date = |name: &str| json::numeric_date(claims, name).map_err(|_| Denial::TokenClaim);
    date("iat")?;
    let told = date("exp")?.map(|expires| expires.plus(entry.clock_skew));
    let expires = told.or(assumed).ok_or(Denial::TokenClaim)?;
    if expires <= now {
        return Err(Denial::TokenExpired);
    }
    match date("nbf")? {
        Some(from) if from > now.plus(entry.clock_skew) => Err(Denial::TokenNotYetValid),
        Some(_) | None => Ok(expires),
    }
}

/// The claim names the tenant; an issuer that has one of its own speaks for no other.
fn tenant(claims: &Object, entry: &IssuerRules, rules: &Rules) -> Result<Option<TenantId>, Denial> {
    let Some(claim) = &rules.tenant_claim else {
        return Ok(entry.tenant);
    };
    let named = json::string(claims, claim).map_err(|_| Denial::TokenClaim)?;
    let found = named.and_then(|name| rules.tenant_named(name));
    match (entry.tenant, found) {
        (Some(own), None) if named.is_none() => Ok(Some(own)),
        (Some(own), Some(found)) if found == own => Ok(Some(own)),
        (Some(_), Some(_) | None) => Err(Denial::TenantUnknown),
        (None, Some(found)) => Ok(Some(found)),
        (None, None) if rules.unknown_tenant_allowed => Ok(None),
        (None, None) => Err(Denial::TenantUnknown),
    }
}

/// `cnf`, when it is there, is an object; what it says of a key or certificate can be read.
pub(super) fn confirmation(claims: &Object) -> Result<Confirmation, Denial> {
    let Some(cnf) = claims.get("cnf") else {
        return Ok(Confirmation::default());
    };
    let cnf = cnf.as_object().ok_or(Denial::TokenConfirmation)?;
    let digest = |name: &str| match json::string(cnf, name) {
        Ok(None) => Ok(None),
        Ok(Some(text)) => Sha256::from_base64url(text).map(Some).ok_or(Denial::TokenConfirmation),
        Err(json::WrongType) => Err(Denial::TokenConfirmation),
    };
    let (jkt, x5t) = (digest("jkt")?.map(Jkt), digest("x5t#S256")?.map(X5tS256));
    let foreign = jkt.is_none() && x5t.is_none() && !cnf.is_empty();
    Ok(Confirmation { jkt, x5t, foreign })
}
