//! Introspection, revocation and metadata: what the edge knows is put into the server's answers.

use pingora::proxy::Session;

use super::call::Answered;
use super::{Asked, Reply, Stop, is_of_type, is_success};
use crate::edge::ctx::Ctx;
use crate::edge::parts::now;
use crate::gate::Granted;
use crate::policy::authority::{self, Known};
use crate::policy::certificate::SenderCertificate;
use crate::policy::client_cert::{self, Field, HandedOn};
use crate::policy::denial::{AuthorityFault, Denial};
use crate::policy::grant::{BindBy, BindingRecord, RecordKey, RetrofitRules, TokenKind};
use crate::policy::json;
use crate::policy::request::Sender;
use crate::policy::rule::{SenderCertificateCheck, TenantId};
use crate::policy::token::{Confirmation, IssuerRules};

impl Asked<'_> {
    pub(super) fn issuer(&self) -> Option<&IssuerRules> {
        let gate = &self.parts.common().gate;
        self.route.rule.authority.issuer.and_then(|index| gate.issuer(index))
    }

    fn retrofit(&self) -> Option<&RetrofitRules> {
        self.issuer()?.retrofit.as_ref()
    }

    /// Whether something is to be said, or looked at, that is not the server's.
    pub(super) fn adds(&self) -> bool {
        let check = self.route.rule.authority.sender_certificate;
        self.retrofit().is_some() || check != SenderCertificateCheck::Off
    }

    /// What the token that is asked about is found by, whatever it is.
    fn keys(&self) -> Vec<RecordKey> {
        let (Some(issuer), Some(token)) = (self.issuer(), self.form.get("token")) else {
            return Vec::new();
        };
        let key = |kind| RecordKey::of(&issuer.issuer, kind, token);
        [TokenKind::Access, TokenKind::Refresh].map(key).to_vec()
    }

    pub(super) async fn introspected(
        &self,
        session: &Session,
        ctx: &mut Ctx,
        answered: Answered,
    ) -> Result<Reply, Stop> {
        if !is_success(&answered) {
            return Ok(Reply::error(answered));
        }
        if is_of_type(&answered, "application/token-introspection+jwt") {
            let route = &self.route.name;
            tracing::warn!(
                decision_id = ctx.id,
                route,
                "a signed introspection answer (RFC 9701) cannot be added to: it says nothing of what \
                 the edge binds"
            );
            return Ok(Reply::of(answered));
        }
        let told =
            json::object(&answered.body).ok_or(Denial::Authority(AuthorityFault::AnswerInvalid))?;
        if !authority::is_active(&told)? {
            return Ok(Reply::of(answered));
        }
        let mut tenant = self.issuer().and_then(|issuer| issuer.tenant);
        let vouched = self.vouched(session, ctx, &told, &mut tenant).await;
        let client = json::string(&told, "client_id").ok().flatten();
        let gate = &self.parts.common().gate;
        let observed = gate.observes(tenant, client, &self.route.rule);
        if let Some(facts) = &mut ctx.facts {
            facts.enforced = Some(!observed);
        }
        match vouched {
            Ok((confirmation, kind)) => {
                Ok(match authority::with_confirmation(&told, confirmation, kind) {
                    Some(body) => Reply::with(answered, body),
                    None => Reply::of(answered),
                })
            }
            Err(denial) if denial.observable() && observed => {
                if let Some(facts) = &mut ctx.facts {
                    facts.observed = Some(denial);
                }
                Ok(Reply::of(answered))
            }
            Err(denial) if self.is_told_as_inactive(denial) => {
                ctx.refused = Some(denial);
                Ok(Reply::with(answered, authority::INACTIVE))
            }
            Err(denial) => Err(denial.into()),
        }
    }

    /// Whether a token is answered `inactive`; why stays with the edge.
    #[expect(clippy::wildcard_enum_match_arm, reason = "all others are about the request")]
    fn is_told_as_inactive(&self, denial: Denial) -> bool {
        use AuthorityFault::{IssuedMismatch, RecordMissing, TokenRevoked};
        match denial {
            Denial::Authority(RecordMissing | TokenRevoked | IssuedMismatch)
            | Denial::BindingTooWeak => true,
            Denial::CertificateContextMissing
            | Denial::CertificateMissing
            | Denial::CertificateMismatch => self.route.rule.authority.mismatch_inactive,
            _ => false,
        }
    }

    /// What an active token is bound to, and what it is, if it came with the certificate that it must.
    /// `owner` becomes the tenant that its record names.
    async fn vouched(
        &self,
        session: &Session,
        ctx: &mut Ctx,
        told: &json::Object,
        owner: &mut Option<TenantId>,
    ) -> Result<(Confirmation, Option<TokenKind>), Denial> {
        let record = self.record().await?;
        let now = now();
        let gate = &self.parts.common().gate;
        let named = record.as_ref().and_then(|record| record.tenant.as_deref());
        let tenant = named.and_then(|name| gate.tenant_named(name));
        *owner = tenant.or(*owner);
        let bypass = gate.bypass(now);
        let known = Known {
            record: record.as_ref(),
            rules: self.retrofit(),
            bypass: bypass.is_some_and(|bypass| bypass.is_open(tenant, now)),
        };
        let confirmation = authority::bound_to(told, known, now)?;
        if let Some(facts) = &mut ctx.facts {
            facts.confirmation = confirmation;
        }
        self.certificate(session, ctx, confirmation).await?;
        Ok((confirmation, record.map(|record| record.kind)))
    }

    async fn record(&self) -> Result<Option<BindingRecord>, Denial> {
        let Some(bindings) = self.parts.common().gate.bindings() else { return Ok(None) };
        if self.retrofit().is_none() {
            return Ok(None);
        }
        for key in self.keys() {
            let found = bindings.record(key).await.map_err(|_| Denial::StoreDown)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Holds the certificate that the route looks at against what the token is bound to.
    async fn certificate(
        &self,
        session: &Session,
        ctx: &mut Ctx,
        confirmation: Confirmation,
    ) -> Result<(), Denial> {
        let now = now();
        let handed_on: Option<HandedOn>;
        let sender = match self.route.rule.authority.sender_certificate {
            SenderCertificateCheck::Off => return Ok(()),
            SenderCertificateCheck::Caller => ctx.shown.sender().at(now),
            SenderCertificateCheck::Forwarded => {
                let headers = &session.req_header().headers;
                let read = client_cert::read(headers, Field::ClientCert);
                handed_on = read.map_err(|_| Denial::ClientCertInvalid)?;
                handed_on.as_ref().map_or(Sender::NoCertificate, |it| Sender::Certificate(&it.leaf))
            }
        };
        let shown = sender.certificate().map(SenderCertificate::x5t);
        let gate = &self.parts.common().gate;
        let successor = gate.successor(confirmation.x5t, sender, now).await?;
        if let Some(facts) = &mut ctx.facts {
            facts.presented_x5t = shown;
            facts.successor = successor.is_some();
        }
        if successor.is_some() {
            return Ok(());
        }
        authority::check_certificate(confirmation, sender)
    }

    /// The server has revoked it, or never knew it: what is kept of it goes the same way.
    pub(super) async fn revoked(
        &self,
        granted: &Granted,
        answered: Answered,
    ) -> Result<Reply, Stop> {
        // RFC 7009 section 2.2 says 200; who says 204 has revoked it as well.
        if !answered.head.status.is_success() {
            return Ok(Reply::error(answered));
        }
        if self.retrofit().is_some() {
            let bindings = self.parts.common().gate.bindings().ok_or(Denial::StoreDown)?;
            let revoked = bindings.revoke(self.keys(), granted.asker().id.clone()).await;
            revoked.map_err(|_| Denial::StoreDown)?;
        }
        Ok(Reply::of(answered))
    }

    pub(super) fn described(&self, answered: Answered) -> Result<Reply, Stop> {
        let Some(rules) = self.retrofit().filter(|_| is_success(&answered)) else {
            return Ok(Reply::of(answered));
        };
        let bind = rules.bind_of_any();
        let (algorithms, certificates) = self.parts.common().gate.can_bind_by();
        let bind = BindBy { certificate: bind.certificate && certificates, ..bind };
        let body = authority::metadata(&answered.body, algorithms, bind);
        Ok(Reply::with(answered, body.ok_or(Denial::Authority(AuthorityFault::AnswerInvalid))?))
    }
}
