//! What a token endpoint's request and answer come to: who must hold a refresh token, what a new token
//! is bound to, what is kept of that, and what the client is told.

use std::collections::HashMap;
use std::time::Duration;

use super::client::Asker;
use super::denial::{AuthorityFault, Denial};
use super::digest::{Jkt, Sha256, X5tS256, lp};
use super::jose::CompactJws;
use super::json::{self, Object};
use super::rule::{Demand, TenantId};
use super::time::UnixTime;
use super::token::{Confirmation, IssuerRules};

/// What a token is bound to by: which of the things that a sender shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindBy {
    /// The proof's key.
    pub key: bool,
    /// The client certificate.
    pub certificate: bool,
}

impl BindBy {
    /// Both.
    pub const BOTH: Self = Self { key: true, certificate: true };
}

/// What becomes of a refresh token of which no record is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownRefresh {
    /// It is refused.
    Refuse,
    /// Whoever brings it first keeps it.
    Bind,
}

/// How opaque tokens are taken on their records alone, without asking their issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpaqueRules {
    /// The audience that they are for.
    pub audience: String,
    /// What they begin with; `None`: every one that no other issuer's prefix fits.
    pub token_prefix: Option<String>,
}

/// `retrofit` of an issuer: the edge binds its tokens.
#[derive(Clone, Debug)]
pub struct RetrofitRules {
    /// What binds, where neither tenant nor client says.
    pub bind: BindBy,
    /// What binds the tokens of a tenant.
    pub by_tenant: HashMap<TenantId, BindBy>,
    /// What binds the tokens of a client.
    pub by_client: HashMap<String, BindBy>,
    /// Until when tokens without a record pass as unbound ones.
    pub unrecorded_until: Option<UnixTime>,
    /// What becomes of unknown refresh tokens.
    pub unknown_refresh: UnknownRefresh,
    /// How long a token can live whose answer does not say.
    pub token_lifetime: Duration,
    /// How long a refresh token is known after its last use.
    pub refresh_lifetime: Duration,
    /// Opaque tokens.
    pub opaque: Option<OpaqueRules>,
}

impl RetrofitRules {
    /// What binds the tokens of whoever asks: the client's word before the tenant's.
    #[must_use]
    pub fn bind_of(&self, asker: &Asker, tenant: Option<TenantId>) -> BindBy {
        let client = asker.id.as_ref().and_then(|id| self.by_client.get(id));
        let tenant = || tenant.and_then(|tenant| self.by_tenant.get(&tenant));
        client.or_else(tenant).copied().unwrap_or(self.bind)
    }

    /// What binds the tokens of anyone.
    #[must_use]
    pub fn bind_of_any(&self) -> BindBy {
        let others = self.by_tenant.values().chain(self.by_client.values());
        others.fold(self.bind, |all, one| BindBy {
            key: all.key || one.key,
            certificate: all.certificate || one.certificate,
        })
    }
}

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenKind {
    /// An access token.
    Access,
    /// A refresh token.
    Refresh,
}

impl TokenKind {
    /// Its name in a record.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Refresh => "refresh",
        }
    }

    /// The kind of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Access, Self::Refresh].into_iter().find(|kind| kind.name() == name)
    }
}

/// What a record is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordKey(pub Sha256);

impl RecordKey {
    /// The key of a token of `issuer`: the SHA-256 over `lp(issuer) ‖ lp(kind) ‖ lp(SHA-256(x))`, `x`
    /// being the signing input of a JWT, whose signature can be written in more than one way, and every
    /// other token as a whole. `lp(y)` is the length of `y` in two bytes, then `y`.
    #[must_use]
    pub fn of(issuer: &str, kind: TokenKind, token: &str) -> Self {
        let signed = CompactJws::parse(token).and_then(|_| token.rsplit_once('.'));
        Self::over(issuer, kind, signed.map_or(token, |(input, _)| input))
    }

    /// The key of an access token that is known to be a JWT.
    #[must_use]
    pub fn of_jwt(issuer: &str, token: &str) -> Self {
        let input = token.rsplit_once('.').map_or(token, |(input, _)| input);
        Self::over(issuer, TokenKind::Access, input)
    }

    fn over(issuer: &str, kind: TokenKind, hashed: &str) -> Self {
        let hash = Sha256::of(hashed.as_bytes());
        let mut input = Vec::with_capacity(issuer.len() + 48);
        for part in [issuer.as_bytes(), kind.name().as_bytes(), &hash.0] {
            lp(&mut input, part);
        }
        Self(Sha256::of(&input))
    }
}

/// What is kept of a token (`authority_tokens`): never the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindingRecord {
    /// What it is.
    pub kind: TokenKind,
    /// The tenant's name.
    pub tenant: Option<String>,
    /// The `client_id` that it was issued to.
    pub client: Option<String>,
    /// The key that it is bound to.
    pub cnf_jkt: Option<Jkt>,
    /// The certificate that it is bound to.
    pub sender_certificate: Option<X5tS256>,
    /// `scope` of the answer that it came in.
    pub scope: Option<String>,
    /// From when on it is of no use.
    pub expires: UnixTime,
    /// The grant that it came from, with all that were refreshed from it.
    pub family: String,
    /// The temporary bypass that it was issued under.
    pub bypass: Option<String>,
    /// Whether it was revoked.
    pub revoked: bool,
}

impl BindingRecord {
    /// What it is bound to.
    #[must_use]
    pub fn confirmation(&self) -> Confirmation {
        Confirmation { jkt: self.cnf_jkt, x5t: self.sender_certificate, foreign: false }
    }

    /// Whether this may take the place of what is kept of the same token: it says the same, or binds what
    /// was bound to nobody. No token is ever bound to another, and none comes back that was revoked.
    #[must_use]
    pub fn may_replace(&self, kept: &Self) -> bool {
        let same = (kept.client.is_none() || self.client == kept.client)
            && (kept.confirmation().is_unbound() || kept.confirmation() == self.confirmation());
        same && !kept.revoked
    }
}

/// What whoever asks for a token has shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShownBy {
    /// The key of a proof that holds.
    pub jkt: Option<Jkt>,
    /// The client certificate of the connection.
    pub x5t: Option<X5tS256>,
}

/// What a refresh token that holds hands on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inherited {
    /// What it is bound to.
    pub confirmation: Confirmation,
    /// What the one that takes its place is bound to: the same, but for a certificate that has a
    /// successor.
    pub next: Confirmation,
    /// The grant that it came from.
    pub family: Option<String>,
}

/// Holds who brings a refresh token against its record.
///
/// # Errors
/// [`AuthorityFault::GrantUnknown`], [`AuthorityFault::GrantRevoked`], [`AuthorityFault::GrantClient`].
pub fn redeem(
    record: Option<&BindingRecord>,
    asker: &Asker,
    rules: &RetrofitRules,
    now: UnixTime,
) -> Result<Inherited, Denial> {
    let live = record.filter(|record| now < record.expires);
    let Some(record) = live else {
        return match rules.unknown_refresh {
            UnknownRefresh::Refuse => Err(Denial::Authority(AuthorityFault::GrantUnknown)),
            UnknownRefresh::Bind => Ok(Inherited::default()),
        };
    };
    if record.revoked {
        return Err(Denial::Authority(AuthorityFault::GrantRevoked));
    }
    if record.client.is_some() && record.client != asker.id {
        return Err(Denial::Authority(AuthorityFault::GrantClient));
    }
    let confirmation = record.confirmation();
    Ok(Inherited { confirmation, next: confirmation, family: Some(record.family.clone()) })
}

/// What a new token is bound to: what was shown as far as `bind` goes, and what its refresh token is
/// bound to, which was held against the sender already.
///
/// # Errors
/// What is missing to meet `demand`.
pub fn bound_to(
    shown: ShownBy,
    bind: BindBy,
    inherited: Confirmation,
    demand: Demand,
) -> Result<Confirmation, Denial> {
    let jkt = inherited.jkt.or(shown.jkt.filter(|_| bind.key));
    let x5t = inherited.x5t.or(shown.x5t.filter(|_| bind.certificate));
    if demand.met_by(jkt.is_some(), x5t.is_some()) {
        return Ok(Confirmation { jkt, x5t, foreign: false });
    }
    let key_helps = bind.key && jkt.is_none() && !demand.met_by(false, x5t.is_some());
    Err(match demand {
        Demand::Mtls if bind.certificate => Denial::CertificateMissing,
        Demand::Both if jkt.is_some() && bind.certificate => Denial::CertificateMissing,
        Demand::None | Demand::Any | Demand::Dpop | Demand::Mtls | Demand::Both if key_helps => {
            Denial::ProofMissing
        }
        Demand::Any if bind.certificate => Denial::CertificateMissing,
        Demand::None | Demand::Any | Demand::Dpop | Demand::Mtls | Demand::Both => {
            Denial::BindingTooWeak
        }
    })
}

/// A 200 of a token endpoint (RFC 6749 section 5.1).
#[derive(Clone, Copy)]
pub struct TokenAnswer<'a> {
    members: &'a Object,
    access: &'a str,
    refresh: Option<&'a str>,
    token_type: &'a str,
}

impl<'a> TokenAnswer<'a> {
    /// Reads it.
    ///
    /// # Errors
    /// [`AuthorityFault::AnswerInvalid`] without an `access_token` and a `token_type`, or with members of the
    /// wrong type.
    pub fn read(members: &'a Object) -> Result<Self, Denial> {
        let text = |name| {
            json::string(members, name)
                .map_err(|_| Denial::Authority(AuthorityFault::AnswerInvalid))
        };
        let required = |name| {
            text(name)?
                .filter(|it| !it.is_empty())
                .ok_or(Denial::Authority(AuthorityFault::AnswerInvalid))
        };
        let (access, token_type) = (required("access_token")?, required("token_type")?);
        let refresh = text("refresh_token")?.filter(|it| !it.is_empty());
        Ok(Self { members, access, refresh, token_type })
    }

    /// Whether its `token_type` is this one.
    #[must_use]
    pub fn is_of_type(&self, name: &str) -> bool {
        self.token_type.eq_ignore_ascii_case(name)
    }

    /// Whether it is a JWT that says that it is another issuer's: what is kept of it would not be found.
    #[must_use]
    pub fn is_another_s(&self, issuer: &str) -> bool {
        let jws = CompactJws::parse(self.access);
        let named = jws.as_ref().and_then(|jws| json::string(&jws.payload, "iss").ok().flatten());
        named.is_some_and(|named| named != issuer)
    }

    /// `expires_in`, seconds; some servers write it as text.
    fn expires_in(&self) -> Option<Duration> {
        match self.members.get("expires_in")? {
            json::Value::Number(number) => number.as_u64().map(Duration::from_secs),
            json::Value::String(text) => text.parse().ok().map(Duration::from_secs),
            json::Value::Null
            | json::Value::Bool(_)
            | json::Value::Array(_)
            | json::Value::Object(_) => None,
        }
    }
}

/// What the server's answer is for.
#[derive(Clone, Debug)]
pub struct Issue<'a> {
    /// Who asked.
    pub asker: &'a Asker,
    /// The tenant's name.
    pub tenant: Option<&'a str>,
    /// What the tokens are bound to.
    pub confirmation: Confirmation,
    /// What was redeemed.
    pub inherited: &'a Inherited,
    /// The refresh token that was redeemed: a server may go on with it.
    pub redeemed: Option<&'a str>,
    /// The grant that they belong to.
    pub family: &'a str,
    /// The temporary bypass.
    pub bypass: Option<&'a str>,
}

/// What is to be kept before the client sees its tokens.
pub type Records = Vec<(RecordKey, BindingRecord)>;

/// The records of what a server that binds nothing has issued.
#[must_use]
pub fn records(
    answer: &TokenAnswer<'_>,
    issue: &Issue<'_>,
    issuer: &IssuerRules,
    rules: &RetrofitRules,
    now: UnixTime,
) -> Records {
    let record = |kind, confirmation: Confirmation, expires: UnixTime| BindingRecord {
        kind,
        tenant: issue.tenant.map(str::to_owned),
        client: issue.asker.id.clone(),
        cnf_jkt: confirmation.jkt,
        sender_certificate: confirmation.x5t,
        scope: json::string(answer.members, "scope").ok().flatten().map(str::to_owned),
        expires: expires.plus(issuer.clock_skew),
        family: issue.family.to_owned(),
        bypass: issue.bypass.map(str::to_owned),
        revoked: false,
    };
    let said = answer.expires_in().map(|lifetime| now.plus(lifetime));
    let signed = CompactJws::parse(answer.access)
        .and_then(|jws| json::numeric_date(&jws.payload, "exp").ok().flatten());
    // As long as the token can live, whichever of the two a resource goes by.
    let ends = said.max(signed).unwrap_or_else(|| now.plus(rules.token_lifetime));
    let key = |kind, token| RecordKey::of(&issuer.issuer, kind, token);
    let access = record(TokenKind::Access, issue.confirmation, ends);
    let mut records = vec![(key(TokenKind::Access, answer.access), access)];
    if let Some(refresh) = answer.refresh.or(issue.redeemed) {
        let same = issue.redeemed == Some(refresh);
        let bound = if same { issue.inherited.confirmation } else { issue.inherited.next };
        // What was bound to nobody is bound from now on.
        let bound = if bound.is_unbound() { issue.confirmation } else { bound };
        let refreshed = record(TokenKind::Refresh, bound, now.plus(rules.refresh_lifetime));
        records.push((key(TokenKind::Refresh, refresh), refreshed));
    }
    // Whoever redeems one that was bound to nobody keeps it, also where the server takes it once more.
    let free = issue.inherited.confirmation.is_unbound() && !issue.confirmation.is_unbound();
    if let Some(redeemed) =
        issue.redeemed.filter(|old| free && answer.refresh.is_some_and(|it| it != *old))
    {
        let ends = now.plus(rules.refresh_lifetime);
        let kept = record(TokenKind::Refresh, issue.confirmation, ends);
        records.push((key(TokenKind::Refresh, redeemed), kept));
    }
    records
}

/// The answer as the client sees it, where it is another: `DPoP` for what is bound to a key (RFC 9449
/// section 5).
#[must_use]
pub fn told(answer: &TokenAnswer<'_>, confirmation: Confirmation) -> Option<Vec<u8>> {
    let other = confirmation.jkt.is_some() && answer.is_of_type("Bearer");
    let name = || json::Value::String("DPoP".to_owned());
    other.then(|| answer.members.clone().with("token_type", name()).to_json())
}

/// Holds what a server that binds by itself has issued against who asked for it.
///
/// # Errors
/// [`AuthorityFault::IssuedMismatch`] for a token that is bound to another than the sender, or whose type is not
/// that of its binding; [`AuthorityFault::IssuedUnbound`] for one that is bound to less than is demanded, as far
/// as that can be seen: an opaque token shows no more than its type.
pub fn check_issued(
    answer: &TokenAnswer<'_>,
    shown: ShownBy,
    demand: Demand,
) -> Result<Confirmation, Denial> {
    let dpop = answer.is_of_type("DPoP");
    let Some(jws) = CompactJws::parse(answer.access) else {
        // What a certificate binds does not show in an opaque token.
        let met = demand.met_by(dpop && shown.jkt.is_some(), shown.x5t.is_some());
        return if met {
            Ok(Confirmation::default())
        } else {
            Err(Denial::Authority(AuthorityFault::IssuedUnbound))
        };
    };
    let confirmation = super::token::confirmation(&jws.payload)
        .map_err(|_| Denial::Authority(AuthorityFault::IssuedMismatch))?;
    let other = |bound: Option<Sha256>, shown: Option<Sha256>| {
        bound.is_some_and(|bound| !shown.is_some_and(|shown| shown.same(&bound)))
    };
    if other(confirmation.jkt.map(|it| it.0), shown.jkt.map(|it| it.0))
        || other(confirmation.x5t.map(|it| it.0), shown.x5t.map(|it| it.0))
    {
        return Err(Denial::Authority(AuthorityFault::IssuedMismatch));
    }
    if !demand.met_by(confirmation.jkt.is_some(), confirmation.x5t.is_some()) {
        return Err(Denial::Authority(AuthorityFault::IssuedUnbound));
    }
    if demand != Demand::None && confirmation.jkt.is_some() != dpop {
        return Err(Denial::Authority(AuthorityFault::IssuedMismatch));
    }
    Ok(confirmation)
}

#[cfg(test)]
mod tests;
