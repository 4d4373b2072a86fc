//! What the configuration makes of the edge: everything that a request meets on its way.

#![expect(clippy::disallowed_methods, reason = "the edge reads the clock and draws nonces")]

use std::sync::Arc;
use std::time::SystemTime;

use http::{Method, StatusCode};
use pingora::Error;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;

use super::audit::Audit;
use super::authority;
use super::believe;
use super::calls;
use super::capsules::{self, Capsules, Own};
use super::connection::{self, Connection};
use super::ctx::Ctx;
use super::exporter::Traces;
use super::headers::Onward;
use super::introspect::Introspectors;
use super::jwks::KeySets;
use super::leaving::Leaving;
use super::resource_metadata::ResourceMetadata;
use super::route::{Miss, RouteTable};
use super::spans;
use super::stream;
use super::trust::{Standing, Trust};
use super::upstream::{self, Servers};
use super::view::{self, Target};
use crate::config::{
    AuthorizationPolicy, ClientCertificateTold, Config, Limits, Listener, Route, Upstream,
};
use crate::gate::{self, Admitted, Decision, Gate};
use crate::policy::cors::{self, Grant};
use crate::policy::denial::Denial;
use crate::policy::lifetime;
use crate::policy::presented;
use crate::policy::request::RequestView;
use crate::policy::rule::{Role, TenantId};
use crate::policy::target::{Origin, split_authority};
use crate::policy::time::UnixTime;
use crate::store::redis::Redis;
use crate::telemetry::log::Log;
use crate::telemetry::metrics::Metrics;

/// What the admin listener tells of as well.
#[derive(Clone, Debug)]
pub struct Common {
    /// Decides.
    pub gate: Arc<Gate>,
    /// The issuers' keys.
    pub keys: Arc<KeySets>,
    /// What is asked of the issuers.
    pub introspectors: Arc<Introspectors>,
    /// Capsules for nodes, where there are any.
    pub capsules: Option<Arc<Capsules>>,
    /// What stands in front of authorization servers.
    pub authority: authority::State,
    /// The audit log, where there is a store.
    pub audit: Option<Audit>,
    /// What edges share, where they share anything.
    pub redis: Option<Redis>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Records.
    pub log: Log,
    /// Spans, where they are kept.
    pub traces: Option<Arc<Traces>>,
}

/// What all listeners share.
#[derive(Debug)]
pub struct Parts {
    common: Common,
    pub(super) listeners: Vec<Listener>,
    origins: Vec<Origin>,
    trust: Vec<Arc<Trust>>,
    pub(super) table: RouteTable,
    pub(super) routes: Vec<Route>,
    pub(super) metadata: ResourceMetadata,
    upstreams: Vec<(Upstream, Arc<Servers>)>,
    tenants: Vec<String>,
    limits: Limits,
    nonces: bool,
    replay_status: StatusCode,
    ok_sample: f64,
}

/// What an admitted request may do.
#[derive(Debug)]
pub(super) enum Permit {
    /// Go upstream.
    Forward(Admitted),
    /// Be answered: it is a preflight.
    Preflight(Grant),
    /// Be answered: it is for the edge itself.
    Own(Own),
    /// Be read: it is for an authorization server.
    Authority,
    /// Be answered: the route asks no more than whether the authentication is fresh.
    Fresh(Admitted),
    /// Be answered with this document of [`ResourceMetadata`].
    Metadata(usize),
}

impl Parts {
    /// What `config` makes of them; `servers` are those of its upstreams, in their order.
    #[must_use]
    pub fn new(
        config: &Config,
        trust: Vec<Arc<Trust>>,
        servers: Vec<Arc<Servers>>,
        common: Common,
    ) -> Self {
        Self {
            common,
            listeners: config.edge.listeners.clone(),
            origins: config.origins.clone(),
            trust,
            table: RouteTable::new(&config.routes),
            routes: config.routes.clone(),
            metadata: ResourceMetadata::new(config),
            upstreams: config.upstreams.iter().cloned().zip(servers).collect(),
            tenants: config.rules.tenants.iter().map(|tenant| tenant.name.clone()).collect(),
            limits: config.edge.limits,
            nonces: config.dpop.nonce_ttl.is_some(),
            replay_status: StatusCode::from_u16(config.replay_status)
                .unwrap_or(StatusCode::UNAUTHORIZED),
            ok_sample: config.telemetry.ok_sample,
        }
    }

    /// Starts what works in the background. It ends with this, or with the runtime.
    pub fn start(&self, runtime: &tokio::runtime::Handle) {
        self.common.keys.start(runtime);
        self.servers().for_each(|servers| servers.start(runtime));
        if let Some(traces) = &self.common.traces {
            traces.start(runtime);
        }
    }

    /// What the admin listener tells of as well.
    #[must_use]
    pub fn common(&self) -> &Common {
        &self.common
    }

    pub(super) fn route(&self, ctx: &Ctx) -> Option<&Route> {
        self.routes.get(ctx.route?)
    }

    pub(super) fn upstream(&self, ctx: &Ctx) -> Option<&(Upstream, Arc<Servers>)> {
        self.upstreams.get(self.route(ctx)?.upstream?)
    }

    /// The servers of each upstream.
    pub fn servers(&self) -> impl Iterator<Item = &Arc<Servers>> {
        self.upstreams.iter().map(|(_, servers)| servers)
    }

    pub(super) fn tenant(&self, tenant: Option<TenantId>) -> Option<&str> {
        self.tenants.get(tenant?.0).map(String::as_str)
    }

    /// Limits, target, route, gate. What is found on the way stays in `ctx`.
    pub(super) async fn decide(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
    ) -> Result<Permit, Denial> {
        let preflight = session.req_header().method == Method::OPTIONS && session.is_body_empty();
        let session = &*session;
        let request = session.req_header();
        self.is_within_limits(request)?;
        let connection = connection::of(session).ok_or(Denial::Misdirected)?;
        let listener = self.listeners.get(ctx.listener).ok_or(Denial::Misdirected)?;
        ctx.whence = believe::whence(&listener.proxies, connection, &request.headers)?;
        let target = self.target(request, ctx.whence.authority.as_deref())?;
        self.stand(connection, listener, &target, ctx)?;
        ctx.shown = believe::certificate(
            &listener.proxies,
            connection,
            &ctx.whence,
            ctx.withdrawn,
            &request.headers,
            now(),
        )?;
        if let Some(own) = self.common.capsules.as_ref().and_then(|it| it.find(&target)) {
            ctx.origin = Some(own.origin);
            ctx.target = Some(target);
            self.spoke_as_asked(ctx)?;
            return Ok(Permit::Own(own));
        }
        if let Some((document, origin)) =
            self.metadata.find(&self.table, &target.authority, &target.path)
        {
            ctx.origin = Some(origin);
            self.spoke_as_asked(ctx)?;
            return Ok(Permit::Metadata(document));
        }
        let method = request.method.as_str();
        let preflight = preflight.then(|| cors::preflight(method, &request.headers)).flatten();
        let asked = preflight.and_then(|preflight| self.asked_for(&target, &preflight, ctx));
        let route = match asked {
            Some(route) => route,
            None => self.find(&target, method, ctx)?,
        };
        if target.ambiguous && !route.ambiguous_paths {
            return Err(Denial::PathInvalid);
        }
        if let Some(preflight) = preflight.filter(|_| asked.is_some()) {
            let permit = self.preflight(&preflight, route, &target, &request.headers);
            ctx.target = Some(target);
            return permit;
        }
        if route.rule.role != Role::Public {
            self.spoke_as_asked(ctx)?;
        }
        if route.rule.role.is_authority() {
            ctx.target = Some(target);
            return Ok(Permit::Authority);
        }
        let view = view::request(request, &target, &ctx.shown);
        let decision = self.admit(&view, route, ctx.origin).await;
        ctx.target = Some(target);
        if decision.facts.wants_nonce {
            ctx.nonce = ctx.origin.and_then(|origin| self.nonce(origin));
        }
        ctx.facts = Some(decision.facts);
        let answered = route.upstream.is_none();
        decision.verdict.map(if answered { Permit::Fresh } else { Permit::Forward })
    }

    fn is_within_limits(&self, request: &RequestHeader) -> Result<(), Denial> {
        let within = view::head_bytes(request) <= self.limits.head_bytes
            && request.headers.len() <= self.limits.head_fields;
        if within { Ok(()) } else { Err(Denial::HeadTooLarge) }
    }

    /// The target. A node's name that cannot be read is one that is wrong, and told from no other.
    fn target(&self, request: &RequestHeader, told: Option<&str>) -> Result<Target, Denial> {
        match Target::of(request, told) {
            Err(Denial::PathInvalid) if self.common.capsules.is_some() => {
                let named = capsules::named(request.raw_path()).ok_or(Denial::PathInvalid)?;
                let target = Target::unreadable(request, told, named)?;
                let own = self.common.capsules.as_ref().and_then(|it| it.find(&target));
                own.map(|_| target).ok_or(Denial::PathInvalid)
            }
            target => target,
        }
    }

    /// Sets how long an admitted exchange may go on, and has it watched unless it is known to be
    /// over before.
    pub(super) fn set_term(&self, session: &mut Session, ctx: &mut Ctx, admitted: &Admitted) {
        let max_age = self.route(ctx).and_then(|route| route.stream_max_age);
        let rests = lifetime::rests_on_certificate(admitted.bound_by());
        let certificate = ctx.shown.leaf().filter(|_| rests);
        let token = admitted.token().map(|token| token.expires());
        let now = now();
        ctx.term.set(lifetime::end(token, certificate, max_age, now), now, rests);
        // How long an ordinary exchange may wait for its next step.
        let pause = self.upstream(ctx).map(|(upstream, _)| upstream.read_timeout);
        let pause = pause.max(ctx.listener().map(|listener| listener.body_timeout));
        if stream::is_open_ended(session) || ctx.term.ends_within(pause.unwrap_or_default()) {
            ctx.term.watch(connection::of(session).map(|connection| &connection.exchanges));
        }
    }

    /// Holds the connection against the trust in force.
    fn stand(
        &self,
        connection: &Connection,
        listener: &Listener,
        target: &Target,
        ctx: &mut Ctx,
    ) -> Result<(), Denial> {
        let trust = self.trust.get(ctx.listener).ok_or(Denial::Misdirected)?;
        if !believe::may_go_on(connection, listener) {
            return Err(Denial::Misdirected);
        }
        let (host, _) = split_authority(&target.authority).ok_or(Denial::HostInvalid)?;
        match trust.standing(connection.server_name(), connection.shown(), &host, now()) {
            Standing::Good => Ok(()),
            Standing::Withdrawn => {
                ctx.withdrawn = true;
                Ok(())
            }
            Standing::Misdirected => Err(Denial::Misdirected),
        }
    }

    /// A token is for an external origin, whose scheme a client must have spoken: what went in clear is
    /// not taken for what did not.
    fn spoke_as_asked(&self, ctx: &Ctx) -> Result<(), Denial> {
        let origin = ctx.origin.and_then(|origin| self.origins.get(origin));
        let differs =
            ctx.whence.https.zip(origin).is_some_and(|(https, origin)| https != origin.is_https());
        if differs { Err(Denial::OriginScheme) } else { Ok(()) }
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
        view: &RequestView<'_>,
        route: &Route,
        origin: Option<usize>,
    ) -> Decision {
        let decision = self.common.gate.admit(view, &route.rule, origin, now()).await;
        let Some((denial, issuer)) = decision.verdict.as_ref().err().zip(decision.facts.issuer)
        else {
            return decision;
        };
        if *denial == Denial::TokenKeyUnknown && self.common.keys.refresh(issuer).await {
            return self.common.gate.admit(view, &route.rule, origin, now()).await;
        }
        if *denial == Denial::IntrospectionUnavailable
            && let Ok(shown) = presented::credentials(view, self.limits.authorization_bytes)
        {
            let asked = self.common.introspectors.ask(issuer, shown.token);
            let down = |it: &gate::Told| it.denial() == Some(Denial::IntrospectionUnavailable);
            let told = calls::timed(spans::INTROSPECTION, None, down, asked).await;
            return self
                .common
                .gate
                .admit_told(view, &route.rule, origin, Some(&told), now())
                .await;
        }
        decision
    }

    /// Answers a request that is for the edge itself.
    pub(super) async fn answer(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        own: &Own,
        leaving: &Leaving,
    ) -> pingora::Result<()> {
        let Some(capsules) = &self.common.capsules else { return Ok(()) };
        let Some(target) = &ctx.target else { return Ok(()) };
        let from = capsules::From {
            target,
            shown: &ctx.shown,
            address: ctx.whence.address,
            authorization_bytes: self.limits.authorization_bytes,
            id: &ctx.id,
        };
        let gate = &self.common.gate;
        let nonce = |session: &mut Session| {
            let nonce = self.nonce(own.origin);
            leaving.take_leave(session);
            nonce
        };
        ctx.own = capsules::send(capsules, gate, session, own, &from, nonce).await?;
        Ok(())
    }

    pub(super) fn nonce(&self, origin: usize) -> Option<String> {
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random).ok()?;
        self.common.gate.nonce(origin, now(), random)
    }

    /// Whether one more head of an answer may be passed on.
    pub(super) fn check_head(&self, head: &ResponseHeader, ctx: &Ctx) -> pingora::Result<()> {
        let limit = self.upstream(ctx).map_or(0, |(upstream, _)| upstream.head_bytes);
        if upstream::fits(head, limit) && ctx.interim < upstream::MAX_INTERIM {
            return Ok(());
        }
        Err(Error::new_up(upstream::HEAD_TOO_LARGE))
    }

    /// Whether the client spoke `https`, where nobody says so: it did with us, or with whom the route's
    /// origin says.
    fn is_https(&self, connection: &Connection, ctx: &Ctx) -> bool {
        let origin = ctx.origin.and_then(|origin| self.origins.get(origin));
        connection.tls.is_some() || origin.is_some_and(Origin::is_https)
    }

    pub(super) fn onward<'a>(
        &'a self,
        session: &'a Session,
        ctx: &'a Ctx,
        target: &'a str,
    ) -> Option<Onward<'a>> {
        let admitted = ctx.admitted.as_ref()?;
        let (route, (upstream, _)) = (self.route(ctx)?, self.upstream(ctx)?);
        let connection = connection::of(session)?;
        let authority = route.rule.role.is_authority();
        let certificate = ctx.shown.leaf();
        let told = upstream.client_certificate;
        Some(Onward {
            received: &session.req_header().headers,
            admitted,
            tenant: self.tenant(admitted.token().and_then(|token| token.tenant())),
            // At an authorization server they are those by which it knows its client.
            authorization: if authority {
                AuthorizationPolicy::Forward
            } else {
                upstream.authorization
            },
            pass_credentials: route.pass_credentials || authority,
            client_certificate: certificate.filter(|_| told != ClientCertificateTold::Nothing),
            client_chain: if told == ClientCertificateTold::Chain && certificate.is_some() {
                ctx.shown.issuers(connection)
            } else {
                Vec::new()
            },
            request_id: &ctx.id,
            trace: ctx.trace.as_ref().map(|begun| &begun.trace),
            authority: &ctx.target.as_ref()?.authority,
            target,
            https: ctx.whence.https.unwrap_or_else(|| self.is_https(connection, ctx)),
            peer: ctx.whence.address,
        })
    }
}

mod outcome;
mod refusal;

/// The time.
pub(super) fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixTime::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
