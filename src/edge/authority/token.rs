//! What a token endpoint has issued: checked where the server binds, bound and kept where the edge does.

use http::StatusCode;
use serde::Serialize;

use super::call::Answered;
use super::{Asked, Reply, Stop, is_of_type};
use crate::edge::ctx::Ctx;
use crate::edge::parts::now;
use crate::gate::{Granted, Terms};
use crate::policy::audit::{Draft, Kind};
use crate::policy::denial::{AuthorityFault, Denial};
use crate::policy::grant::{self, Inherited, Issue, RecordKey, TokenAnswer, TokenKind};
use crate::policy::json;
use crate::policy::token::Confirmation;
use crate::store::bindings::{BindFault, Issued};

/// The most bytes of a grant's name in it.
const GRANT_TYPE_BYTES: usize = 128;

/// A line of the audit log about a request for a token.
#[derive(Serialize)]
struct Line<'a> {
    tenant: Option<&'a str>,
    client: Option<&'a str>,
    route: &'a str,
    grant_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bypass: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

impl Asked<'_> {
    pub(super) async fn issued(
        &self,
        ctx: &mut Ctx,
        granted: &Granted,
        answered: Answered,
    ) -> Result<Reply, Stop> {
        let status = answered.head.status;
        if *granted.terms() == Terms::AsReceived {
            return Ok(Reply::of(answered));
        }
        if status.is_client_error() || status.is_server_error() {
            self.challenged(ctx, &answered);
            return Ok(Reply::error(answered));
        }
        match self.bound(ctx, granted, &answered).await {
            Ok(Some(body)) => Ok(Reply::with(answered, body)),
            Ok(None) => Ok(Reply::of(answered)),
            // The client may have it as it came; that it could not be kept is told.
            Err(denial) if *granted.terms() == Terms::Unbound => {
                tracing::warn!(decision_id = ctx.id, reason = denial.code(), "not kept");
                Ok(Reply::of(answered))
            }
            // Its client has revoked it meanwhile.
            Err(denial @ Denial::Authority(AuthorityFault::GrantRevoked)) => Err(denial.into()),
            Err(denial) => {
                self.alarm(ctx, granted, denial);
                Err(denial.into())
            }
        }
    }

    /// The body that the client is told, where it is another.
    async fn bound(
        &self,
        ctx: &mut Ctx,
        granted: &Granted,
        answered: &Answered,
    ) -> Result<Option<Vec<u8>>, Denial> {
        let readable =
            answered.head.status == StatusCode::OK && is_of_type(answered, "application/json");
        let members = json::object(&answered.body).filter(|_| readable);
        let members = members.ok_or(Denial::Authority(AuthorityFault::AnswerInvalid))?;
        let answer = TokenAnswer::read(&members)?;
        match granted.terms() {
            Terms::Native { shown, demand } => {
                let confirmation = grant::check_issued(&answer, *shown, *demand)?;
                self.keep(ctx, granted, Issued::default(), confirmation).await?;
                Ok(None)
            }
            Terms::Retrofit { confirmation, inherited } => {
                let issued = self.records(ctx, granted, &answer, *confirmation, inherited)?;
                self.keep(ctx, granted, issued, *confirmation).await?;
                Ok(grant::told(&answer, *confirmation))
            }
            Terms::Unbound | Terms::AsReceived => {
                let (nobody, nothing) = (Confirmation::default(), Inherited::default());
                let issued = self.records(ctx, granted, &answer, nobody, &nothing)?;
                self.keep(ctx, granted, issued, nobody).await?;
                Ok(None)
            }
        }
    }

    fn records(
        &self,
        ctx: &Ctx,
        granted: &Granted,
        answer: &TokenAnswer<'_>,
        confirmation: Confirmation,
        inherited: &Inherited,
    ) -> Result<Issued, Denial> {
        let (issuer, rules) = self
            .issuer()
            .and_then(|issuer| Some((issuer, issuer.retrofit.as_ref()?)))
            .ok_or(Denial::StoreDown)?;
        if !confirmation.is_unbound() && answer.is_another_s(&issuer.issuer) {
            return Err(Denial::Authority(AuthorityFault::IssuedMismatch));
        }
        let now = now();
        // Of 128 random bits, as the decision's id is.
        let family = inherited.family.as_deref().unwrap_or(&ctx.id);
        let issue = Issue {
            asker: granted.asker(),
            tenant: self.parts.tenant(granted.tenant()),
            confirmation,
            inherited,
            redeemed: self.form.get("refresh_token"),
            family,
            bypass: granted.bypass(),
        };
        let redeemed = issue.redeemed;
        let redeemed =
            redeemed.map(|token| RecordKey::of(&issuer.issuer, TokenKind::Refresh, token));
        let records = grant::records(answer, &issue, issuer, rules, now);
        let goes_on = inherited.family.is_some();
        Ok(Issued { records, redeemed, goes_on, ..Issued::default() })
    }

    /// Keeps what must be known of it later, durably.
    async fn keep(
        &self,
        ctx: &mut Ctx,
        granted: &Granted,
        mut issued: Issued,
        confirmation: Confirmation,
    ) -> Result<(), Denial> {
        let gate = &self.parts.common().gate;
        if gate.follows_certificates() {
            let shown = ctx.shown.leaf().filter(|leaf| Some(leaf.x5t()) == confirmation.x5t);
            issued.certificate = shown.cloned();
        }
        if granted.bypass().is_some() {
            issued.line = Some(self.line(ctx, granted, Kind::Bypass, None));
        }
        if issued.is_empty() {
            return Ok(());
        }
        let bindings = gate.bindings().ok_or(Denial::StoreDown)?;
        drop(ctx.announced.take());
        bindings.keep(issued, now()).await.map_err(|fault| match fault {
            BindFault::Conflict => Denial::Authority(AuthorityFault::BindingConflict),
            BindFault::Revoked => Denial::Authority(AuthorityFault::GrantRevoked),
            BindFault::Down => Denial::StoreDown,
        })
    }

    fn line(&self, ctx: &Ctx, granted: &Granted, kind: Kind, reason: Option<Denial>) -> Draft {
        let line = Line {
            tenant: self.parts.tenant(granted.tenant()),
            client: granted.asker().id.as_deref(),
            route: &self.route.name,
            grant_type: self.form.get("grant_type").filter(|name| name.len() <= GRANT_TYPE_BYTES),
            bypass: granted.bypass(),
            reason: reason.map(Denial::code),
        };
        Draft::new(kind, now(), &ctx.id, None, &line)
    }

    /// Somebody must look at a server that issues what it should not.
    fn alarm(&self, ctx: &Ctx, granted: &Granted, denial: Denial) {
        let route = &self.route.name;
        tracing::error!(decision_id = ctx.id, route, reason = denial.code(), "not to be issued");
        if let Some(audit) = &self.parts.common().audit
            && denial != Denial::StoreDown
        {
            let line = self.line(ctx, granted, Kind::Alarm, Some(denial));
            audit.note(ctx.whence.address, denial.code(), line);
        }
    }

    /// A server that issues nonces asks for one: that is counted as the edge's own challenges are.
    fn challenged(&self, ctx: &mut Ctx, answered: &Answered) {
        let told = json::object(&answered.body);
        let error = told.as_ref().and_then(|told| json::string(told, "error").ok().flatten());
        if self.route.rule.authority.upstream_nonces && error == Some("use_dpop_nonce") {
            let had = ctx.facts.as_ref().is_some_and(|facts| facts.carried_nonce);
            ctx.refused = Some(if had { Denial::NonceUnknown } else { Denial::NonceAbsent });
        }
    }
}
