//! Which token a request brings: remembered, verified with its issuer's keys, or opaque, and then
//! its issuer's to vouch for.

use std::sync::Arc;

use super::{Case, Facts, Gate};
use crate::policy::denial::{AuthorityFault, Denial};
use crate::policy::digest::Sha256;
use crate::policy::grant::{RecordKey, TokenKind};
use crate::policy::introspection;
use crate::policy::presented::{self, Credentials, Scheme};
use crate::policy::proof;
use crate::policy::request::Sender;
use crate::policy::rule::Requirement;
use crate::policy::time::UnixTime;
use crate::policy::token::{self, IssuerRules, Reading, VerifiedToken};

/// A token as it was presented.
pub(super) struct Presented {
    pub(super) scheme: Scheme,
    pub(super) hash: Sha256,
    /// What its record is found by, where its issuer's tokens have any.
    pub(super) record: Option<RecordKey>,
}

/// What came of asking an issuer about one token. [`Gate::judge`] makes one from an answer.
#[derive(Clone, Debug)]
pub struct Told {
    hash: Sha256,
    outcome: Result<Arc<VerifiedToken>, Denial>,
}

impl Told {
    /// That the token with this hash is not to be taken.
    #[must_use]
    pub fn refused(hash: Sha256, denial: Denial) -> Self {
        Self { hash, outcome: Err(denial) }
    }

    /// Why the token is not to be taken; `None` when it is vouched for.
    #[must_use]
    pub fn denial(&self) -> Option<Denial> {
        self.outcome.as_ref().err().copied()
    }
}

impl Gate {
    /// Reads an issuer's answer to a question about the token with this hash, which was put at
    /// `asked`. A token that it vouches for is remembered for as long as its word is fresh.
    #[must_use]
    pub fn judge(&self, issuer: usize, hash: Sha256, body: &[u8], asked: UnixTime) -> Told {
        let Some(entry) = self.issuers.get(issuer) else {
            return Told::refused(hash, Denial::IntrospectionUnavailable);
        };
        let outcome = introspection::read(body, issuer, entry, &self.rules, asked).map(Arc::new);
        if let Ok(token) = &outcome {
            self.opaque.remember(hash, Arc::clone(token));
        }
        Told { hash, outcome }
    }

    /// What is remembered of an opaque token.
    #[must_use]
    pub fn told(&self, hash: Sha256, now: UnixTime) -> Option<Told> {
        self.recall_opaque(&hash, now).map(|token| Told { hash, outcome: Ok(token) })
    }

    /// The token: as presented, from memory while it stands, else verified or as its issuer says; and
    /// for this route.
    pub(super) async fn token(
        &self,
        case: &Case<'_>,
        facts: &mut Facts,
    ) -> Result<(Presented, Arc<VerifiedToken>), Denial> {
        let credentials = presented::credentials(case.view, self.authorization_bytes)?;
        facts.scheme = Some(credentials.scheme);
        facts.dpop |= credentials.scheme == Scheme::Dpop;
        let hash = Sha256::of(credentials.token.as_bytes());
        let mut presented = Presented { scheme: credentials.scheme, hash, record: None };
        let token = match case.told.filter(|told| told.hash == hash) {
            Some(told) => vouched(told, case.now)?,
            None => match self.recall(&hash, case.now) {
                Some(token) => token,
                None => self.verify(case, &credentials, &presented, facts).await?,
            },
        };
        presented.record = self.record_key(&token, credentials.token);
        facts.issuer = Some(token.issuer());
        facts.tenant = token.tenant();
        facts.confirmation = token.confirmation();
        facts.dpop |= token.confirmation().jkt.is_some();
        facts.token = Some(Arc::clone(&token));
        let audiences = &case.route.audiences;
        if !audiences.is_empty() && !token.audiences().iter().any(|one| audiences.contains(one)) {
            return Err(Denial::RouteAudience);
        }
        Ok((presented, token))
    }

    fn recall(&self, hash: &Sha256, now: UnixTime) -> Option<Arc<VerifiedToken>> {
        let Some(token) = self.tokens.recall(hash) else {
            return self.recall_opaque(hash, now);
        };
        let keys = self.keys.get(token.issuer())?.load();
        if token.stands(&keys, now) {
            return Some(token);
        }
        self.tokens.forget(hash);
        None
    }

    fn recall_opaque(&self, hash: &Sha256, now: UnixTime) -> Option<Arc<VerifiedToken>> {
        let token = self.opaque.recall(hash)?;
        let keys = self.keys.get(token.issuer())?.load();
        if token.stands(&keys, now) {
            return Some(token);
        }
        self.opaque.forget(hash);
        None
    }

    fn record_key(&self, token: &VerifiedToken, text: &str) -> Option<RecordKey> {
        let entry = self.issuers.get(token.issuer())?;
        entry.retrofit.as_ref()?;
        Some(if token.is_signed() {
            RecordKey::of_jwt(&entry.issuer, text)
        } else {
            RecordKey::of(&entry.issuer, TokenKind::Access, text)
        })
    }

    async fn verify(
        &self,
        case: &Case<'_>,
        credentials: &Credentials<'_>,
        presented: &Presented,
        facts: &mut Facts,
    ) -> Result<Arc<VerifiedToken>, Denial> {
        let (jws, issuer) = match token::read(credentials.token, &self.issuers)? {
            Reading::Signed(jws, issuer) => (jws, issuer),
            Reading::Opaque(issuer) => {
                facts.issuer = Some(issuer);
                let entry = self.issuers.get(issuer).ok_or(Denial::TokenIssuer)?;
                self.worth_asking(case, entry, presented, facts)?;
                if entry.opaque_by_record().is_none() {
                    return Err(Denial::IntrospectionUnavailable);
                }
                let key = RecordKey::of(&entry.issuer, TokenKind::Access, credentials.token);
                let record = self
                    .record(key)
                    .await?
                    .ok_or(Denial::Authority(AuthorityFault::RecordMissing))?;
                let token = token::of_record(&record, issuer, entry, &self.rules, case.now)?;
                return Ok(Arc::new(token));
            }
        };
        facts.issuer = Some(issuer);
        let entry = self.issuers.get(issuer).ok_or(Denial::TokenIssuer)?;
        let keys = self.keys.get(issuer).ok_or(Denial::TokenKeyUnknown)?.load();
        let token = Arc::new(token::verify(&jws, issuer, entry, &keys, &self.rules, case.now)?);
        self.tokens.remember(presented.hash, Arc::clone(&token));
        Ok(token)
    }

    /// What can be checked of an opaque token's sender before its issuer is asked, so that nobody
    /// makes the edge ask who shows nothing: a proof by some key of this very request and token, or a
    /// certificate where one can suffice. Whether they are the token's is seen afterwards, and only
    /// then is the proof used up.
    fn worth_asking(
        &self,
        case: &Case<'_>,
        entry: &IssuerRules,
        presented: &Presented,
        facts: &mut Facts,
    ) -> Result<(), Denial> {
        let least = self.rules.least(entry.tenant, case.route);
        let shown = match presented.scheme {
            Scheme::Dpop if !self.rules.dpop_enabled => Err(Denial::DpopDisabled),
            Scheme::Dpop => {
                let nonces = case.nonce_keys();
                self.proof(case, &least, nonces, Some(presented.hash), facts).map(drop)
            }
            Scheme::Bearer => self.certificate_shown(case, &least),
        };
        match shown {
            // It may yet pass, and then the token's validity is what must not be taken for granted.
            Err(denial) if least.mode.observes() && denial.observable() => Ok(()),
            Ok(()) | Err(_) => shown,
        }
    }

    fn certificate_shown(&self, case: &Case<'_>, least: &Requirement) -> Result<(), Denial> {
        proof::at_most_one_field(case.view.headers)?;
        let sender = case.view.sender.at(case.now);
        let shown = self.rules.mtls_enabled && matches!(sender, Sender::Certificate(_));
        // While the bypass lasts, it may be a token that is bound to nobody.
        let bypass = self.bypass(case.now).is_some();
        let demand = if bypass { least.demand.without_key() } else { least.demand };
        if case.route.allow_unbound || demand.met_by(false, shown) {
            return Ok(());
        }
        Err(match sender {
            _ if !least.demand.met_by(false, true) => Denial::BindingTooWeak,
            Sender::Certificate(_) => Denial::MtlsDisabled,
            Sender::NoCertificate => Denial::CertificateMissing,
            Sender::NoContext => Denial::CertificateContextMissing,
        })
    }
}

fn vouched(told: &Told, now: UnixTime) -> Result<Arc<VerifiedToken>, Denial> {
    let token = Arc::clone(told.outcome.as_ref().map_err(|denial| *denial)?);
    if now < token.expires() { Ok(token) } else { Err(Denial::TokenExpired) }
}
