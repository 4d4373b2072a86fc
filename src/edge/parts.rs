//! What the configuration makes of the edge: everything that a request meets on its way.

#![expect(clippy::disallowed_methods, reason = "the edge reads the clock and draws nonces")]

use std::sync::Arc;
use std::time::SystemTime;

use pingora::proxy::Session;
use pingora::{Error, ErrorSource};

use super::ctx::Ctx;
use super::headers::Onward;
use super::introspect::Introspectors;
use super::jwks::KeySets;
use super::respond::{self, Answer, Asked};
use super::route::{Miss, RouteTable};
use super::upstream::Servers;
use super::view::{self, Target};
use super::{record, record::Told};
use crate::config::{Config, Limits, Listener, Route, Upstream};
use crate::gate::{Admitted, Decision, Gate};
use crate::policy::denial::Denial;
use crate::policy::presented;
use crate::policy::rule::{Role, TenantId};
use crate::policy::time::UnixTime;
use crate::telemetry::log::Log;
use crate::telemetry::metrics::{Metrics, Stage};

/// What all listeners share.
#[derive(Debug)]
pub struct Parts {
    gate: Arc<Gate>,
    keys: Arc<KeySets>,
    introspectors: Arc<Introspectors>,
    metrics: Arc<Metrics>,
    log: Log,
    pub(super) listeners: Vec<Listener>,
    table: RouteTable,
    routes: Vec<Route>,
    upstreams: Vec<(Upstream, Servers)>,
    tenants: Vec<String>,
    limits: Limits,
    nonces: bool,
    ok_sample: f64,
}

impl Parts {
    /// What `config` makes of them.
    #[must_use]
    pub fn new(
        config: &Config,
        gate: Arc<Gate>,
        keys: Arc<KeySets>,
        introspectors: Arc<Introspectors>,
        metrics: Arc<Metrics>,
        log: Log,
    ) -> Self {
        let servers = |(index, upstream): (usize, &Upstream)| {
            (upstream.clone(), Servers::new(index, upstream))
        };
        Self {
            gate,
            keys,
            introspectors,
            metrics,
            log,
            listeners: config.edge.listeners.clone(),
            table: RouteTable::new(&config.routes),
            routes: config.routes.clone(),
            upstreams: config.upstreams.iter().enumerate().map(servers).collect(),
            tenants: config.rules.tenants.iter().map(|tenant| tenant.name.clone()).collect(),
            limits: config.edge.limits,
            nonces: config.dpop.nonce_ttl.is_some(),
            ok_sample: config.telemetry.ok_sample,
        }
    }

    pub(super) fn route(&self, ctx: &Ctx) -> Option<&Route> {
        self.routes.get(ctx.route?)
    }

    pub(super) fn upstream(&self, ctx: &Ctx) -> Option<&(Upstream, Servers)> {
        self.upstreams.get(self.route(ctx)?.upstream)
    }

    pub(super) fn tenant(&self, tenant: Option<TenantId>) -> Option<&str> {
        self.tenants.get(tenant?.0).map(String::as_str)
    }

    /// Limits, target, route, gate. What is found on the way stays in `ctx`.
    pub(super) async fn decide(
        &self,
        session: &Session,
        ctx: &mut Ctx,
    ) -> Result<Admitted, Denial> {
        let request = session.req_header();
        if view::head_bytes(request) > self.limits.head_bytes
            || request.headers.len() > self.limits.head_fields
        {
            return Err(Denial::HeadTooLarge);
        }
        let target = Target::of(request)?;
        let route = self.find(&target, request.method.as_str(), ctx)?;
        if target.ambiguous && !route.ambiguous_paths {
            return Err(Denial::PathInvalid);
        }
        let decision = self.admit(session, &target, route, ctx.origin).await;
        ctx.target = Some(target);
        if decision.facts.wants_nonce {
            ctx.nonce = ctx.origin.and_then(|origin| self.nonce(origin));
        }
        ctx.facts = Some(decision.facts);
        decision.verdict
    }

    fn find(&self, target: &Target, method: &str, ctx: &mut Ctx) -> Result<&Route, Denial> {
        match self.table.find(&target.authority, &target.path, method) {
            Ok(found) => {
                let route = self.routes.get(found.route).ok_or(Denial::RouteUnknown)?;
                ctx.route = Some(found.route);
                ctx.origin = route.hosts.get(found.host).and_then(|host| host.origin);
                Ok(route)
            }
            Err(Miss::Unknown) => Err(Denial::RouteUnknown),
            Err(Miss::Method(allow)) => {
                ctx.allow = allow;
                Err(Denial::MethodNotAllowed)
            }
        }
    }

    /// Asks the gate; once more after a fetch when it lacks the token's key, or with what the issuer
    /// says when the token is opaque.
    async fn admit(
        &self,
        session: &Session,
        target: &Target,
        route: &Route,
        origin: Option<usize>,
    ) -> Decision {
        let view = view::request(session, target);
        let decision = self.gate.admit(&view, &route.rule, origin, now()).await;
        let Some((denial, issuer)) = decision.verdict.as_ref().err().zip(decision.facts.issuer)
        else {
            return decision;
        };
        if *denial == Denial::TokenKeyUnknown && self.keys.refresh(issuer).await {
            return self.gate.admit(&view, &route.rule, origin, now()).await;
        }
        if *denial == Denial::IntrospectionUnavailable
            && let Ok(shown) = presented::credentials(&view, self.limits.authorization_bytes)
        {
            let told = self.introspectors.ask(issuer, shown.token).await;
            return self.gate.admit_told(&view, &route.rule, origin, Some(&told), now()).await;
        }
        decision
    }

    pub(super) fn nonce(&self, origin: usize) -> Option<String> {
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random).ok()?;
        self.gate.nonce(origin, now(), random)
    }

    pub(super) fn refusal(&self, ctx: &Ctx, denial: Denial) -> Answer {
        let facts = ctx.facts.as_ref();
        let scopes = self.route(ctx).map_or(&[][..], |route| &route.rule.scopes);
        let asked = Asked {
            challenge: facts.map(|facts| facts.challenge),
            scheme: facts.and_then(|facts| facts.scheme),
            nonce: ctx.nonce.as_deref(),
            allow: &ctx.allow,
            scopes,
        };
        respond::answer(denial, &asked)
    }

    /// Whether the edge issues this route's nonces. A service behind a public route may be one that
    /// issues its own, such as an authorization server.
    pub(super) fn issues(&self, ctx: &Ctx) -> bool {
        self.nonces && self.route(ctx).is_some_and(|route| route.rule.role == Role::Resource)
    }

    pub(super) fn tell(&self, ctx: &Ctx, status: u16) {
        let role = self.route(ctx).map(|route| route.rule.role);
        self.metrics.response(role, status);
        if let Some(role) = role {
            self.metrics.duration(role, Stage::Decision, ctx.decided);
            self.metrics.duration(role, Stage::Total, ctx.started.elapsed());
            if let Some(answered) = ctx.answered {
                self.metrics.duration(role, Stage::Upstream, answered.saturating_sub(ctx.decided));
            }
        }
        let facts = ctx.facts.as_ref();
        let told = Told {
            role,
            refused: ctx.refused,
            facts,
            tenant: self.tenant(facts.and_then(|facts| facts.tenant)),
            id: &ctx.id,
            took: ctx.decided,
            ok_sample: self.ok_sample,
        };
        record::tell(&told, &self.metrics, &self.log);
    }

    /// A client that goes away is its own business; a service that fails is somebody's.
    pub(super) fn tell_failure(&self, e: &Error, ctx: &Ctx) {
        let (kind, side) = (e.etype().as_str(), e.esource().as_str());
        let upstream = self.upstream(ctx).map(|(upstream, _)| upstream.name.as_str());
        if *e.esource() == ErrorSource::Downstream {
            tracing::debug!(decision_id = ctx.id, upstream, kind, side, "request failed");
        } else {
            tracing::warn!(decision_id = ctx.id, upstream, kind, side, "request failed");
        }
    }

    pub(super) fn onward<'a>(
        &'a self,
        session: &'a Session,
        ctx: &'a Ctx,
        target: &'a str,
    ) -> Option<Onward<'a>> {
        let admitted = ctx.admitted.as_ref()?;
        let (upstream, _) = self.upstream(ctx)?;
        let certificate = view::certificate(session).map(Arc::as_ref);
        Some(Onward {
            received: &session.req_header().headers,
            admitted,
            tenant: self.tenant(admitted.token().and_then(|token| token.tenant())),
            authorization: upstream.authorization,
            pass_credentials: self.route(ctx)?.pass_credentials,
            client_certificate: certificate.filter(|_| upstream.client_certificate),
            request_id: &ctx.id,
            authority: &ctx.target.as_ref()?.authority,
            target,
            peer: view::peer(session),
        })
    }
}

/// The time.
pub(super) fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixTime::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
