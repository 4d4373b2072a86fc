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
//! Invariant: a request reaches an upstream only with an [`Admitted`](crate::gate::Admitted) in its
//! context, and only the gate makes one.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::Digest;
use pingora::protocols::http::ServerSession;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};

use super::authority::{self, Reply, Stop};
use super::connection;
use super::cors;
use super::ctx::Ctx;
use super::headers;
use super::leaving::Leaving;
use super::parts::{Parts, Permit};
use super::respond::{self, Answer, ErrorCode};
use super::spans;
use super::stream;
use super::upstream::{self, Handshake};
use super::view::Target;
use crate::config::Cors;
use crate::policy::denial::Denial;

/// pingora's proxy logic for one listener. Each request keeps the parts that were in force when it
/// came.
#[derive(Clone, Debug)]
pub struct Edge {
    current: Arc<ArcSwap<Parts>>,
    listener: usize,
    leaving: Arc<Leaving>,
}

impl Edge {
    /// The logic of the listener at this place in the configuration.
    #[must_use]
    pub fn new(current: Arc<ArcSwap<Parts>>, listener: usize, leaving: Arc<Leaving>) -> Self {
        Self { current, listener, leaving }
    }

    /// Serves a request to an authorization server, watched where it is sampled.
    async fn ask(
        &self,
        parts: &Parts,
        session: &mut Session,
        ctx: &mut Ctx,
    ) -> Result<Reply, Stop> {
        let reply = match spans::calls(ctx) {
            None => authority::serve(parts, session, ctx).await,
            Some(calls) => calls.watch(authority::serve(parts, session, ctx)).await,
        };
        // Much may have happened since its form began to come.
        self.leaving.take_leave(session);
        reply
    }
}

#[async_trait]
impl ProxyHttp for Edge {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        Ctx::new(self.current.load_full(), self.listener)
    }

    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<()> {
        if let Some(connection) = connection::of(session) {
            connection.head.stop();
        }
        // pingora sets it to "for ever" on each request that allows another.
        if session.get_keepalive().is_some() {
            session.set_keepalive(ctx.listener().map(|listener| {
                // pingora reads 0 as "for ever".
                listener.keepalive_timeout.as_secs().max(1)
            }));
        }
        let timeout = ctx.listener().map(|listener| listener.body_timeout);
        session.set_read_timeout(timeout);
        session.set_write_timeout(timeout);
        if session.req_header().version == Version::HTTP_10
            && let ServerSession::H1(session) = session.as_downstream_mut()
        {
            // It would take an interim answer for the answer (RFC 9110 section 15.2).
            session.set_ignore_info_resp(true);
        }
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<bool> {
        let parts = Arc::clone(&ctx.parts);
        parts.begin_trace(session, ctx);
        let verdict = match spans::calls(ctx) {
            None => parts.decide(session, ctx).await,
            Some(calls) => calls.watch(parts.decide(session, ctx)).await,
        };
        ctx.decided = ctx.started.elapsed();
        self.leaving.take_leave(session);
        match verdict {
            Ok(Permit::Preflight(grant)) => {
                if let Cors::Edge(rules) = parts.cors(ctx) {
                    cors::answer(session, rules, &grant, &ctx.id).await?;
                }
                Ok(true)
            }
            Ok(Permit::Own(own)) => {
                if let Some(begun) = &mut ctx.trace {
                    begun.is_for(own.what);
                }
                parts.answer(session, ctx, &own, &self.leaving).await?;
                Ok(true)
            }
            Ok(Permit::Fresh(admitted)) => {
                parts.answer_fresh(session, ctx, &admitted).await?;
                Ok(true)
            }
            Ok(Permit::Metadata(document)) => {
                parts.metadata.send(session, document, &ctx.id).await?;
                Ok(true)
            }
            Ok(Permit::Forward(admitted)) => {
                parts.set_term(session, ctx, &admitted);
                ctx.admitted = Some(admitted);
                Ok(false)
            }
            Ok(Permit::Authority) => match self.ask(&parts, session, ctx).await {
                Ok(reply) => {
                    authority::send(&parts, session, ctx, reply).await?;
                    Ok(true)
                }
                Err(Stop::Denied(denial)) => refuse(&parts, session, ctx, denial).await,
                Err(Stop::Failed(error)) => {
                    let answer = Answer { nonce: ctx.nonce.clone(), ..Answer::plain(error) };
                    respond::send(session, &answer, parts.cors(ctx), &ctx.id).await?;
                    Ok(true)
                }
                Err(Stop::Client(error)) => Err(error),
            },
            Err(denial) => refuse(&parts, session, ctx, denial).await,
        }
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
        if ctx.admitted.is_none() {
            return Error::e_explain(ErrorType::InternalError, "not admitted");
        }
        let parts = Arc::clone(&ctx.parts);
        let Some((_, servers)) = parts.upstream(ctx) else {
            return Error::e_explain(ErrorType::InternalError, "no upstream");
        };
        if ctx.trace.is_some() {
            ctx.sent.get_or_insert(ctx.started.elapsed());
        }
        let turn = *ctx.turn.get_or_insert_with(|| servers.turn());
        ctx.server = servers.choose(turn, &ctx.tried);
        ctx.line = None;
        ctx.handshake = Handshake::of(session).filter(|_| servers.takes_upgrades());
        match &ctx.server {
            Some(server) => Ok(Box::new(servers.peer(server, ctx.handshake.as_ref()))),
            None => Err(Error::new_up(upstream::NO_ADDRESS)),
        }
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Ctx,
        mut e: Box<Error>,
    ) -> Box<Error> {
        let parts = Arc::clone(&ctx.parts);
        let servers = parts.upstream(ctx).map(|(_, servers)| servers);
        let more = servers
            .zip(ctx.server.as_ref())
            .is_some_and(|(servers, server)| servers.unreachable(server, &mut ctx.tried, &e));
        e.set_retry(more);
        e
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        _reused: bool,
        _peer: &HttpPeer,
        descriptor: RawFd,
        digest: Option<&Digest>,
        ctx: &mut Ctx,
    ) -> Result<()> {
        if let Some((_, servers)) = ctx.parts.upstream(ctx)
            && let Some(server) = &ctx.server
        {
            let own = ctx.handshake.as_ref().map(|handshake| handshake.descriptor());
            ctx.line = servers.connected(server, own.unwrap_or(descriptor), digest)?;
        }
        Ok(())
    }

    /// A request is sent again only after a kept connection ended before the head of an answer, with a
    /// method that may be repeated, or where the server says that it did not touch it; and with a
    /// body that is still there as a whole.
    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut e: Box<Error>,
        ctx: &mut Ctx,
        reused: bool,
    ) -> Box<Error> {
        if upstream::gone(&e) {
            return e;
        }
        let harmless = session.req_header().method.is_idempotent() || upstream::untouched(&e);
        let again = harmless
            && !session.as_ref().retry_buffer_truncated()
            && session.response_written().is_none()
            && !ctx.line.as_ref().is_some_and(|line| line.was_cut());
        if again {
            e.retry.decide_reuse(reused);
        } else {
            e.set_retry(false);
        }
        e
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream_request: &mut RequestHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        if let Some((_, servers)) = ctx.parts.upstream(ctx) {
            servers.speaks(upstream_request.version)?;
        }
        let target = ctx.target.as_ref().map(Target::upstream).unwrap_or_default();
        match &ctx.handshake {
            Some(handshake) => handshake.hold(),
            None => upstream::without_wish(upstream_request),
        }
        match ctx.parts.onward(session, ctx, &target) {
            Some(onward) => headers::upstream_request(upstream_request, &onward),
            None => Error::e_explain(ErrorType::InternalError, "not admitted"),
        }
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Ctx,
    ) -> Result<()> {
        if body.is_some() && !end_of_stream {
            watch(session, ctx);
        }
        if end_of_stream && body.as_ref().is_some_and(Bytes::is_empty) {
            // pingora would write it as a chunk of no bytes, which ends a body, and then the end: to the
            // service that is the begin of the next request (cloudflare/pingora#935).
            *body = None;
        }
        if end_of_stream && let Some(handshake) = &ctx.handshake {
            handshake.ends();
        }
        if end_of_stream
            && ctx.answered.is_none()
            && let Some(line) = &ctx.line
            && let Some((upstream, _)) = ctx.parts.upstream(ctx)
        {
            line.expect_head(upstream.read_timeout);
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        ctx.parts.check_head(response, ctx)?;
        let issues = ctx.parts.issues(ctx);
        if response.status == StatusCode::SWITCHING_PROTOCOLS {
            if ctx.handshake.is_none() || response.version != Version::HTTP_11 {
                return Err(Error::new_up(ErrorType::InvalidHTTPHeader));
            }
            // What follows has no length, whatever is said of it.
            response.remove_header(&CONTENT_LENGTH);
            response.remove_header(&TRANSFER_ENCODING);
            // What is no request any more may rest; the service's read timeout bounds it.
            session.set_read_timeout(None);
        } else if response.status.is_informational() {
            ctx.interim += 1;
            headers::informational_response(response, issues);
            return Ok(());
        }
        self.leaving.take_leave(session);
        ctx.answered = Some(ctx.started.elapsed());
        if let Some(line) = &ctx.line {
            line.head_came();
        }
        if ctx.term.over().is_some() {
            // Nobody may read it any more; `failure` has no answer for this either.
            return Err(Error::new_down(ErrorType::ConnectionClosed));
        }
        ctx.status = response.status.as_u16();
        ctx.parts.upstream_answered(ctx, Some(ctx.status));
        if stream::is_unbounded(&session.req_header().method, response) {
            watch(session, ctx);
        }
        // It is the edge that answers (RFC 9112 section 2.3), and HTTP/1.0 knows no chunks (section 6.1).
        response.set_version(Version::HTTP_11);
        if session.req_header().version == Version::HTTP_10
            && response.remove_header(&TRANSFER_ENCODING).is_some()
        {
            session.set_keepalive(None);
        }
        headers::downstream_response(response, &ctx.id, issues, ctx.nonce.as_deref())?;
        cors::downstream_response(response, ctx.parts.cors(ctx), &session.req_header().headers)
    }

    fn response_body_filter(
        &self,
        session: &mut Session,
        _body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Ctx,
    ) -> Result<Option<Duration>> {
        if !end_of_stream {
            watch(session, ctx);
        }
        Ok(None)
    }

    async fn response_trailer_filter(
        &self,
        _session: &mut Session,
        trailers: &mut HeaderMap,
        ctx: &mut Ctx,
    ) -> Result<Option<Bytes>> {
        headers::downstream_trailers(trailers, ctx.parts.issues(ctx));
        Ok(None)
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut Ctx) -> FailToProxy {
        let cut = ctx.line.as_ref().is_some_and(|line| line.was_cut());
        let error = if cut { Some(ErrorCode::GatewayTimeout) } else { failure(e) };
        ctx.parts.tell_failure(e, ctx);
        let mut error_code = 0;
        let unanswered = session.response_written().is_none_or(|head| {
            head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS
        });
        if let Some(error) = error.filter(|_| unanswered) {
            session.set_keepalive(None);
            let answer = Answer { nonce: ctx.nonce.clone(), ..Answer::plain(error) };
            if respond::send(session, &answer, ctx.parts.cors(ctx), &ctx.id).await.is_ok() {
                error_code = error.status().as_u16();
            }
        }
        FailToProxy { error_code, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, _e: Option<&Error>, ctx: &mut Ctx) {
        let status = session.response_written().map_or(0, |response| response.status.as_u16());
        ctx.told = true;
        ctx.parts.tell(ctx, status);
        if !session.is_http2()
            && let Some(connection) = connection::of(session)
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

/// Answers a refused request.
async fn refuse(
    parts: &Parts,
    session: &mut Session,
    ctx: &mut Ctx,
    denial: Denial,
) -> Result<bool> {
    ctx.refused = Some(denial);
    if ctx.withdrawn || denial == Denial::Misdirected {
        // What the client needs is another connection.
        session.set_keepalive(None);
    }
    let answer = parts.refusal(ctx, denial);
    respond::send(session, &answer, parts.cors(ctx), &ctx.id).await?;
    Ok(true)
}

/// The exchange is not known to be short.
fn watch(session: &Session, ctx: &mut Ctx) {
    ctx.term.watch(connection::of(session).map(|connection| &connection.exchanges));
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
