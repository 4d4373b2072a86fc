//! The way of a request through the edge.
//!
//! ```text
//! head read ─► early_request_filter   head clock off, keepalive, body timeouts
//!            ─► request_filter        limits → target → route → gate ──► refusal: answered here
//!            ─► upstream_peer         nothing without a permit; servers in turn
//!            ─► upstream_request_filter   their fields off, ours on
//!            ─► (body both ways, streamed)
//!            ─► response_filter       DPoP-Nonce, X-Request-Id
//!            ─► fail_to_proxy         502, 504 and their like, as JSON
//!            ─► logging               one record, metrics; head clock ready for the next
//! ```
//!
//! Invariant: a request reaches an upstream only with an [`Admitted`] in its context, and only the
//! gate makes one.

#![expect(clippy::disallowed_methods, reason = "the edge reads the clock and draws ids and nonces")]

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use http::{HeaderMap, StatusCode};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};

use super::headers::{self, Onward};
use super::jwks::KeySets;
use super::respond::{self, Answer, Asked, ErrorCode};
use super::route::{Miss, RouteTable};
use super::upstream::{self, Servers};
use super::view::{self, Target};
use super::{record, record::Told};
use crate::config::{Config, Limits, Listener, Route, Upstream};
use crate::gate::{Admitted, Decision, Facts, Gate};
use crate::policy::denial::Denial;
use crate::policy::rule::{Role, TenantId};
use crate::policy::time::UnixTime;
use crate::telemetry::log::Log;
use crate::telemetry::metrics::{Metrics, Stage};

/// What all listeners share.
#[derive(Debug)]
pub struct Parts {
    gate: Arc<Gate>,
    keys: Arc<KeySets>,
    metrics: Arc<Metrics>,
    log: Log,
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
        metrics: Arc<Metrics>,
        log: Log,
    ) -> Self {
        let servers = |(index, upstream): (usize, &Upstream)| {
            (upstream.clone(), Servers::new(index, upstream))
        };
        Self {
            gate,
            keys,
            metrics,
            log,
            table: RouteTable::new(&config.routes),
            routes: config.routes.clone(),
            upstreams: config.upstreams.iter().enumerate().map(servers).collect(),
            tenants: config.rules.tenants.iter().map(|tenant| tenant.name.clone()).collect(),
            limits: config.edge.limits,
            nonces: config.dpop.nonce_ttl.is_some(),
            ok_sample: config.telemetry.ok_sample,
        }
    }

    fn route(&self, ctx: &Ctx) -> Option<&Route> {
        self.routes.get(ctx.route?)
    }

    fn upstream(&self, ctx: &Ctx) -> Option<&(Upstream, Servers)> {
        self.upstreams.get(self.route(ctx)?.upstream)
    }

    fn tenant(&self, tenant: Option<TenantId>) -> Option<&str> {
        self.tenants.get(tenant?.0).map(String::as_str)
    }

    /// Limits, target, route, gate. What is found on the way stays in `ctx`.
    async fn decide(&self, session: &Session, ctx: &mut Ctx) -> Result<Admitted, Denial> {
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

    /// Asks the gate; once more after a fetch when it lacks the token's key.
    async fn admit(
        &self,
        session: &Session,
        target: &Target,
        route: &Route,
        origin: Option<usize>,
    ) -> Decision {
        let view = view::request(session, target);
        let decision = self.gate.admit(&view, &route.rule, origin, now()).await;
        if decision.verdict.as_ref().err() == Some(&Denial::TokenKeyUnknown)
            && let Some(issuer) = decision.facts.issuer
            && self.keys.refresh(issuer).await
        {
            return self.gate.admit(&view, &route.rule, origin, now()).await;
        }
        decision
    }

    fn nonce(&self, origin: usize) -> Option<String> {
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random).ok()?;
        self.gate.nonce(origin, now(), random)
    }

    fn refusal(&self, ctx: &Ctx, denial: Denial) -> Answer {
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
    fn issues(&self, ctx: &Ctx) -> bool {
        self.nonces && self.route(ctx).is_some_and(|route| route.rule.role == Role::Resource)
    }

    fn tell(&self, ctx: &Ctx, status: u16) {
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
    fn tell_failure(&self, e: &Error, ctx: &Ctx) {
        let (kind, side) = (e.etype().as_str(), e.esource().as_str());
        let upstream = self.upstream(ctx).map(|(upstream, _)| upstream.name.as_str());
        if *e.esource() == ErrorSource::Downstream {
            tracing::debug!(decision_id = ctx.id, upstream, kind, side, "request failed");
        } else {
            tracing::warn!(decision_id = ctx.id, upstream, kind, side, "request failed");
        }
    }

    fn onward<'a>(
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

fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixTime::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// One request's state between the phases.
#[derive(Debug)]
pub struct Ctx {
    /// 128 random bits in hexadecimal.
    id: String,
    started: Instant,
    /// From `started` to the decision.
    decided: Duration,
    /// From `started` to the head of the upstream's answer.
    answered: Option<Duration>,
    target: Option<Target>,
    route: Option<usize>,
    origin: Option<usize>,
    allow: Vec<String>,
    facts: Option<Facts>,
    refused: Option<Denial>,
    admitted: Option<Admitted>,
    nonce: Option<String>,
    turn: Option<usize>,
    unreachable: usize,
}

impl Ctx {
    fn new() -> Self {
        let mut id = [0; 16];
        // Without randomness nothing here works; an id of zeros is the least of it.
        let _ = aws_lc_rs::rand::fill(&mut id);
        Self {
            id: format!("{:032x}", u128::from_be_bytes(id)),
            started: Instant::now(),
            decided: Duration::ZERO,
            answered: None,
            target: None,
            route: None,
            origin: None,
            allow: Vec::new(),
            facts: None,
            refused: None,
            admitted: None,
            nonce: None,
            turn: None,
            unreachable: 0,
        }
    }
}

/// pingora's proxy logic for one listener.
#[derive(Clone, Debug)]
pub struct Edge {
    parts: Arc<Parts>,
    keepalive_s: u64,
    body_timeout: Duration,
}

impl Edge {
    /// The logic of `listener`.
    #[must_use]
    pub fn new(parts: Arc<Parts>, listener: &Listener) -> Self {
        // pingora reads 0 as "for ever".
        let keepalive_s = listener.keepalive_timeout.as_secs().max(1);
        Self { parts, keepalive_s, body_timeout: listener.body_timeout }
    }
}

#[async_trait]
impl ProxyHttp for Edge {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        Ctx::new()
    }

    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn early_request_filter(&self, session: &mut Session, _ctx: &mut Ctx) -> Result<()> {
        if let Some(connection) = view::connection(session) {
            connection.head.stop();
        }
        // pingora sets it to "for ever" on each request that allows another.
        if session.get_keepalive().is_some() {
            session.set_keepalive(Some(self.keepalive_s));
        }
        session.set_read_timeout(Some(self.body_timeout));
        session.set_write_timeout(Some(self.body_timeout));
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<bool> {
        let verdict = self.parts.decide(session, ctx).await;
        ctx.decided = ctx.started.elapsed();
        match verdict {
            Ok(admitted) => {
                ctx.admitted = Some(admitted);
                Ok(false)
            }
            Err(denial) => {
                ctx.refused = Some(denial);
                let answer = self.parts.refusal(ctx, denial);
                respond::send(session, &answer, &ctx.id).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(&self, _session: &mut Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
        if ctx.admitted.is_none() {
            return Error::e_explain(ErrorType::InternalError, "not admitted");
        }
        let servers = self.parts.upstream(ctx).map(|(_, servers)| servers);
        let turn = ctx.turn.or_else(|| servers.map(Servers::turn));
        let peer =
            servers.zip(turn).and_then(|(servers, turn)| servers.peer(turn, ctx.unreachable));
        ctx.turn = turn;
        match peer {
            Some(peer) => Ok(Box::new(peer)),
            None => Error::e_explain(ErrorType::InternalError, "no server"),
        }
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        peer: &HttpPeer,
        ctx: &mut Ctx,
        mut e: Box<Error>,
    ) -> Box<Error> {
        ctx.unreachable += 1;
        let more =
            self.parts.upstream(ctx).is_some_and(|(_, servers)| servers.more(ctx.unreachable));
        tracing::warn!(server = %peer._address, error = e.etype().as_str(), more, "no connection");
        // Nothing was sent, so that any method may try another server.
        e.set_retry(more);
        e
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream_request: &mut RequestHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        let target = ctx.target.as_ref().map(Target::upstream).unwrap_or_default();
        match self.parts.onward(session, ctx, &target) {
            Some(onward) => headers::upstream_request(upstream_request, &onward),
            None => Error::e_explain(ErrorType::InternalError, "not admitted"),
        }
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        let issues = self.parts.issues(ctx);
        if response.status == StatusCode::SWITCHING_PROTOCOLS {
            if !session.is_upgrade_req() {
                return Err(Error::new_up(ErrorType::InvalidHTTPHeader));
            }
            // What is no request any more may rest; the service's read timeout bounds it.
            session.set_read_timeout(None);
        } else if response.status.is_informational() {
            headers::informational_response(response, issues);
            return Ok(());
        }
        ctx.answered = Some(ctx.started.elapsed());
        headers::downstream_response(response, &ctx.id, issues, ctx.nonce.as_deref())
    }

    async fn response_trailer_filter(
        &self,
        _session: &mut Session,
        trailers: &mut HeaderMap,
        ctx: &mut Ctx,
    ) -> Result<Option<bytes::Bytes>> {
        headers::downstream_trailers(trailers, self.parts.issues(ctx));
        Ok(None)
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut Ctx) -> FailToProxy {
        let error = failure(e);
        self.parts.tell_failure(e, ctx);
        let mut error_code = 0;
        if let Some(error) = error.filter(|_| session.response_written().is_none()) {
            session.set_keepalive(None);
            let answer = Answer { nonce: ctx.nonce.clone(), ..Answer::plain(error) };
            if respond::send(session, &answer, &ctx.id).await.is_ok() {
                error_code = error.status().as_u16();
            }
        }
        FailToProxy { error_code, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, _e: Option<&Error>, ctx: &mut Ctx) {
        let status = session.response_written().map_or(0, |response| response.status.as_u16());
        self.parts.tell(ctx, status);
        if !session.is_http2()
            && let Some(connection) = view::connection(session)
        {
            connection.head.rest();
        }
    }

    fn request_summary(&self, _session: &Session, ctx: &Ctx) -> String {
        ctx.id.clone()
    }

    fn suppress_error_log(&self, _session: &Session, _ctx: &Ctx, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &Ctx,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        true
    }
}

/// The error that a failed request is answered with; `None` when nobody is there to read it.
#[expect(clippy::wildcard_enum_match_arm, reason = "every other fault is one of the request")]
fn failure(e: &Error) -> Option<ErrorCode> {
    match e.esource() {
        ErrorSource::Upstream => Some(upstream::failure(e.etype())),
        ErrorSource::Internal | ErrorSource::Unset => Some(ErrorCode::ServerError),
        ErrorSource::Downstream => match e.etype() {
            ErrorType::ReadError
            | ErrorType::WriteError
            | ErrorType::WriteTimedout
            | ErrorType::ConnectionClosed => None,
            ErrorType::ReadTimedout => Some(ErrorCode::RequestTimeout),
            _ => Some(ErrorCode::InvalidRequest),
        },
    }
}
