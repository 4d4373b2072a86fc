//! Whether a client may ask its authorization server for a token, and what the token will be bound to.
//!
//! ```text
//! rule ─► proof ─► certificate ─► PKCE ─► refresh token × record ─► what binds      as on a resource
//!                                                               ─► replay, of token routes alone
//! ```

use super::{Admitted, Case, Facts, Gate};
use crate::policy::authority;
use crate::policy::binding::BoundBy;
use crate::policy::certificate::SenderCertificate;
use crate::policy::client::{self, Asker};
use crate::policy::denial::{AuthorityFault, Denial};
use crate::policy::digest::{Jkt, Sha256, X5tS256};
use crate::policy::form::Form;
use crate::policy::grant::{self, BindBy, Inherited, RecordKey, RetrofitRules, ShownBy, TokenKind};
use crate::policy::proof::{self, VerifiedProof};
use crate::policy::request::{RequestView, Sender};
use crate::policy::rule::{Binding, Demand, Requirement, Role, RouteRule, TenantId};
use crate::policy::time::UnixTime;
use crate::policy::token::{Confirmation, IssuerRules};

/// A request to an authorization server, as the gate sees it.
#[derive(Clone, Copy)]
pub struct Asking<'a> {
    /// The request.
    pub view: &'a RequestView<'a>,
    /// Its route.
    pub route: &'a RouteRule,
    /// Index of the external origin that it came to.
    pub origin: Option<usize>,
    /// Its body.
    pub form: &'a Form,
    /// The time.
    pub now: UnixTime,
}

/// What may become of a request that goes to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Terms {
    /// It goes as it came and so does the answer: it is no token that is asked for, or `observe` lets it
    /// pass.
    AsReceived,
    /// The server binds; what it issues must meet this.
    Native {
        /// What was shown.
        shown: ShownBy,
        /// What must be bound.
        demand: Demand,
    },
    /// The edge binds.
    Retrofit {
        /// What the tokens are bound to.
        confirmation: Confirmation,
        /// What was redeemed, if it was known.
        inherited: Inherited,
    },
    /// The edge binds, and `observe` lets pass what would have been refused: the answer goes as it comes,
    /// its tokens are kept as bound to nobody.
    Unbound,
}

/// A permit to ask the server. Only [`Gate::admit_grant`] makes one.
#[derive(Clone, Debug)]
pub struct Granted {
    admitted: Admitted,
    terms: Terms,
    asker: Asker,
    tenant: Option<TenantId>,
    bypass: Option<String>,
    native: bool,
}

impl Granted {
    /// The permit to forward.
    #[must_use]
    pub fn admitted(&self) -> &Admitted {
        &self.admitted
    }

    /// What may become of it.
    #[must_use]
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Who asks.
    #[must_use]
    pub fn asker(&self) -> &Asker {
        &self.asker
    }

    /// The tenant.
    #[must_use]
    pub fn tenant(&self) -> Option<TenantId> {
        self.tenant
    }

    /// The temporary bypass that it passes by.
    #[must_use]
    pub fn bypass(&self) -> Option<&str> {
        self.bypass.as_deref()
    }

    /// Whether the server sees the proof: it does where it binds, and where it is all the same to us.
    #[must_use]
    pub fn passes_proof(&self) -> bool {
        match (&self.terms, self.admitted.bound_by) {
            (_, BoundBy::Observed) => true,
            (Terms::Retrofit { .. } | Terms::Unbound, _) => false,
            (Terms::Native { .. }, _) => self.bypass.is_none(),
            (Terms::AsReceived, _) => self.native,
        }
    }
}

/// One request, with what is known of who makes it.
struct Matter<'a> {
    case: Case<'a>,
    form: &'a Form,
    asker: Asker,
    tenant: Option<TenantId>,
    requirement: Requirement,
}

/// What a request comes to before its proof is used up.
struct Weighed {
    terms: Terms,
    shown: ShownBy,
    proof: Option<VerifiedProof>,
    bypass: Option<String>,
}

/// A decision and what it rests on.
#[derive(Clone, Debug)]
pub struct GrantDecision {
    /// A permit, or why not.
    pub verdict: Result<Granted, Denial>,
    /// What is known.
    pub facts: Facts,
}

impl Gate {
    /// Decides about a request to an authorization server. A refused one leaves nothing behind.
    pub async fn admit_grant(&self, asking: &Asking<'_>) -> GrantDecision {
        let requirement = self.rules.grant_requirement(None, false, &[], asking.route);
        let challenge = self.challenge(&requirement, asking.route);
        let mut facts = Facts::new(asking.view, asking.route, challenge);
        facts.issuer = asking.route.authority.issuer;
        let verdict = self.grant(asking, &mut facts).await;
        GrantDecision { verdict, facts }
    }

    async fn grant(&self, asking: &Asking<'_>, facts: &mut Facts) -> Result<Granted, Denial> {
        let Asking { view, route, form, now, .. } = *asking;
        let site = asking.origin.and_then(|index| self.sites.get(index));
        let (site, era) = (site.ok_or(Denial::HostInvalid)?, self.era());
        let case = Case { view, route, site, era: era.clone(), told: None, now };
        let certificate = view.sender.at(now).certificate();
        let asker = if route.role == Role::Metadata {
            Asker::default()
        } else {
            client::asker(view.headers, form, certificate, &self.clients)?
        };
        let own = facts.issuer.and_then(|issuer| self.issuers.get(issuer)?.tenant);
        let tenant = own.or(asker.tenant);
        facts.client.clone_from(&asker.id);
        facts.tenant = tenant;
        let asked = ["resource", "audience"].map(|name| form.values(name));
        let audiences: Vec<_> = asked.into_iter().flatten().map(str::to_owned).collect();
        let known = tenant.is_some();
        let mut requirement = self.rules.grant_requirement(tenant, known, &audiences, route);
        requirement.nonce &= !route.authority.upstream_nonces;
        facts.challenge = self.challenge(&requirement, route);
        facts.refresh = refresh_token(form).is_some();
        let matter = Matter { case, form, asker, tenant, requirement };
        if !route.role.asks_for_token() {
            return Ok(matter.granted(Terms::AsReceived, BoundBy::Public, None));
        }
        let verdict = self.weigh(matter, facts).await;
        // Who lacks a proof takes part in what is counted of proofs.
        let fault = verdict.as_ref().err().copied().or(facts.observed);
        facts.dpop |= fault == Some(Denial::ProofMissing);
        let ours = !route.authority.upstream_nonces;
        let verdict = if ours { self.or_down(verdict, era.as_deref()) } else { verdict };
        facts.wants_nonce = ours && self.wants_nonce(&requirement, &verdict, facts);
        verdict
    }

    /// Holds what was shown against the rule; `observe` lets pass what it may.
    async fn weigh(&self, matter: Matter<'_>, facts: &mut Facts) -> Result<Granted, Denial> {
        let client = matter.asker.id.as_deref();
        let enforced = self.rules.enforces(matter.requirement.mode, client);
        facts.enforced = Some(enforced);
        let weighed = match self.terms(&matter, facts).await {
            Ok(weighed) => {
                let (room, proof) = (self.stores.at_token_endpoints(), weighed.proof.clone());
                self.first_use(room, proof, facts, matter.case.now).await.map(|()| weighed)
            }
            Err(denial) => Err(denial),
        };
        match weighed {
            Ok(Weighed { terms, shown, bypass, .. }) => {
                let by = match &bypass {
                    Some(_) => BoundBy::Bypass,
                    None => BoundBy::proven(shown.jkt.is_some(), shown.x5t.is_some()),
                };
                facts.bypass.clone_from(&bypass);
                facts.bound_by = Some(by);
                Ok(matter.granted(terms, by, bypass))
            }
            Err(denial) if !enforced && denial.observable() => {
                if self.is_of_enforced(&matter, facts).await? {
                    facts.enforced = Some(true);
                    return Err(denial);
                }
                facts.observed = Some(denial);
                facts.bound_by = Some(BoundBy::Observed);
                let route = matter.case.route;
                let binds = route.authority.binding == Binding::Retrofit;
                let kept = binds && route.role == Role::Token;
                let terms = if kept { Terms::Unbound } else { Terms::AsReceived };
                Ok(matter.granted(terms, BoundBy::Observed, None))
            }
            Err(denial) => Err(denial),
        }
    }

    async fn terms(&self, matter: &Matter<'_>, facts: &mut Facts) -> Result<Weighed, Denial> {
        let (case, route) = (&matter.case, matter.case.route);
        let demand = matter.requirement.demand;
        let proof = self.grant_proof(matter, facts)?;
        let named = matter.form.get("dpop_jkt").map(Sha256::from_base64url);
        if named.is_some()
            && proof.is_some()
            && named.flatten() != proof.as_ref().map(|it| it.jkt().0)
        {
            return Err(Denial::Authority(AuthorityFault::ThumbprintParameter));
        }
        let x5t = self.certificate(case);
        let shown = ShownBy { jkt: proof.as_ref().map(VerifiedProof::jkt), x5t };
        facts.confirmation.jkt = shown.jkt;
        match (route.role, route.authority.binding) {
            (Role::Par, binding) => {
                if binding == Binding::Retrofit {
                    challenge_is_s256(matter.form)?;
                }
                // A code may be tied to a key by its name alone (RFC 9449 section 10).
                let jkt = shown.jkt.or(named.flatten().map(Jkt));
                let meant = ShownBy { jkt, x5t };
                self.met(matter, meant, BindBy::BOTH, Confirmation::default(), demand)?;
                Ok(Weighed { terms: Terms::AsReceived, shown, proof, bypass: None })
            }
            (_, Binding::Native) => {
                let met = self.met(matter, shown, BindBy::BOTH, Confirmation::default(), demand);
                let bypass = self.let_by(matter, met.err(), shown, proof.as_ref())?;
                let demand = if bypass.is_some() { demand.without_key() } else { demand };
                Ok(Weighed { terms: Terms::Native { shown, demand }, shown, proof, bypass })
            }
            (_, Binding::Retrofit) => {
                let inherited = self.redeemed(matter, shown, facts).await?;
                let (_, rules) = self.retrofit(facts).ok_or(Denial::StoreDown)?;
                let bind = rules.bind_of(&matter.asker, matter.tenant);
                let met = self.met(matter, shown, bind, inherited.next, demand);
                let bypass = self.let_by(matter, met.err(), shown, proof.as_ref())?;
                let confirmation = match met {
                    Ok(confirmation) => confirmation,
                    // Nobody is bound, but by the certificate that is demanded all the same.
                    Err(_) => {
                        let demand = demand.without_key();
                        let certificate = bind.certificate && demand != Demand::None;
                        let bind = BindBy { key: false, certificate };
                        self.met(matter, shown, bind, inherited.next, demand)?
                    }
                };
                facts.confirmation = confirmation;
                let terms = Terms::Retrofit { confirmation, inherited };
                Ok(Weighed { terms, shown, proof, bypass })
            }
        }
    }

    /// The issuer whose tokens the edge binds, and how.
    fn retrofit(&self, facts: &Facts) -> Option<(&IssuerRules, &RetrofitRules)> {
        let issuer = self.issuers.get(facts.issuer?)?;
        Some((issuer, issuer.retrofit.as_ref()?))
    }

    /// Whether the refresh token, where one is brought, is that of a client which is enforced: who asks is
    /// only said to be somebody. What is revoked is revoked in any mode.
    async fn is_of_enforced(&self, matter: &Matter<'_>, facts: &Facts) -> Result<bool, Denial> {
        let token = refresh_token(matter.form);
        let Some(((issuer, _), token)) = self.retrofit(facts).zip(token) else { return Ok(false) };
        let key = RecordKey::of(&issuer.issuer, TokenKind::Refresh, token);
        let Some(record) = self.record(key).await.ok().flatten() else { return Ok(false) };
        if record.revoked {
            return Err(Denial::Authority(AuthorityFault::GrantRevoked));
        }
        Ok(self.rules.enforces(matter.requirement.mode, record.client.as_deref()))
    }

    /// The proof, if there is one: whether one is needed is the rule's to say.
    fn grant_proof(
        &self,
        matter: &Matter<'_>,
        facts: &mut Facts,
    ) -> Result<Option<VerifiedProof>, Denial> {
        let case = &matter.case;
        if proof::at_most_one_field(case.view.headers)?.is_none() {
            return Ok(None);
        }
        if !self.rules.dpop_enabled {
            return Err(Denial::DpopDisabled);
        }
        let ours = !case.route.authority.upstream_nonces;
        let nonces = case.nonce_keys().filter(|_| ours);
        self.proof(case, &matter.requirement, nonces, None, facts).map(Some)
    }

    fn certificate(&self, case: &Case<'_>) -> Option<X5tS256> {
        let shown = case.view.sender.at(case.now).certificate();
        shown.filter(|_| self.rules.mtls_enabled).map(SenderCertificate::x5t)
    }

    /// What the token will be bound to, if that meets what is demanded.
    fn met(
        &self,
        matter: &Matter<'_>,
        shown: ShownBy,
        bind: BindBy,
        inherited: Confirmation,
        demand: Demand,
    ) -> Result<Confirmation, Denial> {
        let bind = BindBy {
            key: bind.key && self.rules.dpop_enabled,
            certificate: bind.certificate && self.rules.mtls_enabled,
        };
        let met = grant::bound_to(shown, bind, inherited, demand);
        met.map_err(|denial| match (denial, matter.case.view.sender) {
            (Denial::CertificateMissing, Sender::NoContext) => Denial::CertificateContextMissing,
            (denial, _) => denial,
        })
    }

    /// The bypass, where it lets by who has shown no proof, and all else that is demanded; `missing` is
    /// what would be refused.
    fn let_by(
        &self,
        matter: &Matter<'_>,
        missing: Option<Denial>,
        shown: ShownBy,
        proof: Option<&VerifiedProof>,
    ) -> Result<Option<String>, Denial> {
        let Some(missing) = missing else { return Ok(None) };
        let now = matter.case.now;
        let bypass = self.bypass(now).filter(|it| it.is_open(matter.tenant, now));
        match bypass {
            Some(bypass) if missing == Denial::ProofMissing && proof.is_none() => {
                let demand = matter.requirement.demand;
                if demand == Demand::Both && shown.x5t.is_none() {
                    return Err(Denial::CertificateMissing);
                }
                Ok(Some(bypass.seen.id.clone()))
            }
            Some(_) | None => Err(missing),
        }
    }

    /// Holds the sender against what ties a grant to it: the record of a refresh token, PKCE for a code.
    async fn redeemed(
        &self,
        matter: &Matter<'_>,
        shown: ShownBy,
        facts: &mut Facts,
    ) -> Result<Inherited, Denial> {
        let (case, form) = (&matter.case, matter.form);
        let said =
            form.get("grant_type").ok_or(Denial::Authority(AuthorityFault::ParameterMissing))?;
        // A server may read the name of a grant in more ways than one: what is brought counts as well.
        let code = said == "authorization_code" || form.get("code").is_some();
        if code && form.get("code_verifier").is_none() {
            return Err(Denial::Authority(AuthorityFault::PkceMissing));
        }
        let token = match refresh_token(form) {
            Some(token) => token,
            None if said == "refresh_token" => {
                return Err(Denial::Authority(AuthorityFault::ParameterMissing));
            }
            None => return Ok(Inherited::default()),
        };
        let (issuer, rules) = self.retrofit(facts).ok_or(Denial::StoreDown)?;
        let key = RecordKey::of(&issuer.issuer, TokenKind::Refresh, token);
        let record = self.record(key).await?;
        let mut inherited = grant::redeem(record.as_ref(), &matter.asker, rules, case.now)?;
        let bound = inherited.confirmation;
        facts.confirmation = bound;
        if let Some(jkt) = bound.jkt {
            let key = shown.jkt.ok_or(Denial::ProofMissing)?;
            if !key.0.same(&jkt.0) {
                return Err(Denial::KeyMismatch);
            }
        }
        let sender = case.view.sender.at(case.now);
        if self.successor(bound.x5t, sender, case.now).await?.is_some() {
            facts.successor = true;
            inherited.next.x5t = shown.x5t;
        } else {
            authority::check_certificate(bound, sender)?;
        }
        Ok(inherited)
    }
}

impl Matter<'_> {
    fn granted(self, terms: Terms, bound_by: BoundBy, bypass: Option<String>) -> Granted {
        let native = self.case.route.authority.binding == Binding::Native;
        let admitted = Admitted::without_token(bound_by);
        Granted { admitted, terms, asker: self.asker, tenant: self.tenant, bypass, native }
    }
}

/// The refresh token that is brought, under whatever grant: to be redeemed, or to be exchanged (RFC 8693
/// section 2.1).
fn refresh_token(form: &Form) -> Option<&str> {
    let exchanged = || {
        let kind = form.get("subject_token_type");
        let token = form.get("subject_token");
        token.filter(|_| kind == Some("urn:ietf:params:oauth:token-type:refresh_token"))
    };
    form.get("refresh_token").or_else(exchanged)
}

/// PKCE with S256 in a pushed request (RFC 7636 section 4.3); what is in a request object is the
/// server's to read.
fn challenge_is_s256(form: &Form) -> Result<(), Denial> {
    let said =
        form.get("code_challenge").is_some() && form.get("code_challenge_method") == Some("S256");
    let needed = form.get("response_type").is_some_and(|it| it.split(' ').any(|it| it == "code"));
    if said || !needed || form.get("request").is_some() {
        Ok(())
    } else {
        Err(Denial::Authority(AuthorityFault::PkceMissing))
    }
}
