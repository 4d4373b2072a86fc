//! In front of an authorization server: the edge reads what is asked, decides, asks the server itself,
//! and answers with what it made of the server's answer.
//!
//! ```text
//! body ─► form ─► gate (rule, proof, certificate, refresh token) ──► refusal
//!     ─► the server, asked anew with what was read
//!     ─► token:          checked (native), or bound and kept (retrofit), then answered
//!        introspection:  cnf from what is kept, the certificate compared
//!        revocation:     what is kept is revoked
//!        metadata:       what the edge adds to it
//! ```
//!
//! Invariant: no client sees a token that the edge binds before its record is durable.

mod call;
mod inquiry;
mod reply;
mod token;

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE};
use http::{Method, StatusCode};
use pingora::Error;
use pingora::proxy::Session;
use zeroize::Zeroizing;

pub use call::Caller;
pub(super) use reply::{Reply, send};

use super::body;
use super::ctx::Ctx;
use super::headers::{self, DPOP};
use super::parts::{Parts, now};
use super::respond::ErrorCode;
use super::view::{self, Target};
use crate::config::Route;
use crate::gate::{Asking, Granted};
use crate::policy::binding::BoundBy;
use crate::policy::client;
use crate::policy::denial::{AuthorityFault, Denial};
use crate::policy::form::{Form, FormFault, query_decides};
use crate::policy::proof;
use crate::policy::rule::Role;
use crate::store::failures::Failures;
use call::Answered;

/// What outlives every configuration.
#[derive(Clone, Debug)]
pub struct State {
    /// The connections.
    pub caller: Arc<Caller>,
    /// The proofs that each address has shown of late.
    pub pace: Arc<Failures>,
}

/// Why there is no answer of the server's.
#[derive(Debug)]
pub(super) enum Stop {
    /// It is refused.
    Denied(Denial),
    /// The server failed.
    Failed(ErrorCode),
    /// The client failed.
    Client(Box<Error>),
}

impl From<Denial> for Stop {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

impl From<Box<Error>> for Stop {
    fn from(error: Box<Error>) -> Self {
        Self::Client(error)
    }
}

/// A request that was read.
struct Asked<'a> {
    parts: &'a Parts,
    route: &'a Route,
    form: Form,
}

/// Serves a request on an authorization server's route.
pub(super) async fn serve(
    parts: &Parts,
    session: &mut Session,
    ctx: &mut Ctx,
) -> Result<Reply, Stop> {
    let route = parts.route(ctx).ok_or(Denial::RouteUnknown)?;
    let role = route.rule.role;
    ctx.basic = client::is_basic(&session.req_header().headers);
    let body = read(parts, session, ctx, role).await?;
    let form = if role == Role::Metadata { Form::default() } else { form(session, &body)? };
    let asked = Asked { parts, route, form };
    let granted = asked.admit(session, ctx).await?;
    // Under `observe` it goes as it came.
    let body = match &ctx.facts {
        Some(facts) if facts.observed.is_some() => body,
        _ => Zeroizing::new(asked.form.encoded().as_bytes().to_vec()),
    };
    let answered = asked.ask(session, ctx, &granted, &body).await?;
    ctx.answered = Some(ctx.started.elapsed());
    if let Some(begun) = &mut ctx.trace {
        begun.answered(answered.head.status.as_u16());
    }
    match role {
        Role::Token => asked.issued(ctx, &granted, answered).await,
        Role::Introspection => asked.introspected(session, ctx, answered).await,
        Role::Revocation => asked.revoked(&granted, answered).await,
        Role::Metadata => asked.described(answered),
        Role::Par | Role::Resource | Role::Public | Role::FreshAuth => Ok(Reply::of(answered)),
    }
}

async fn read(
    parts: &Parts,
    session: &mut Session,
    ctx: &Ctx,
    role: Role,
) -> Result<Zeroizing<Vec<u8>>, Stop> {
    let query = ctx.target.as_ref().and_then(|target| target.query.as_deref());
    if role != Role::Metadata && query.is_some_and(query_decides) {
        return Err(Denial::Authority(AuthorityFault::ParameterInQuery).into());
    }
    let time = ctx.listener().map(|listener| listener.body_timeout).unwrap_or_default();
    let body = body::whole(session, parts.limits().authority_body_bytes, time).await?;
    Ok(Zeroizing::new(body.ok_or(Denial::Authority(AuthorityFault::BodyTooLarge))?))
}

fn form(session: &Session, body: &[u8]) -> Result<Form, Denial> {
    let headers = &session.req_header().headers;
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let content_type = types.next().and_then(|value| value.to_str().ok());
    if types.next().is_some() || headers.contains_key(CONTENT_ENCODING) {
        return Err(Denial::Authority(AuthorityFault::FormInvalid));
    }
    Form::parse(content_type, body).map_err(|fault| match fault {
        FormFault::Type | FormFault::Malformed => Denial::Authority(AuthorityFault::FormInvalid),
        FormFault::Repeated => Denial::Authority(AuthorityFault::ParameterRepeated),
    })
}

impl Asked<'_> {
    /// Asks the gate. What is found on the way stays in `ctx`.
    async fn admit(&self, session: &Session, ctx: &mut Ctx) -> Result<Granted, Denial> {
        let target = ctx.target.clone().ok_or(Denial::HostInvalid)?;
        let headers = &session.req_header().headers;
        let role = self.route.rule.role;
        if role.asks_for_token() && proof::is_presented(headers) {
            self.pace(ctx.whence.address)?;
        }
        let view = view::request(session.req_header(), &target, &ctx.shown);
        let asking = Asking {
            view: &view,
            route: &self.route.rule,
            origin: ctx.origin,
            form: &self.form,
            now: now(),
        };
        let gate = &self.parts.common().gate;
        let decision = gate.admit_grant(&asking).await;
        if decision.facts.wants_nonce {
            ctx.nonce = ctx.origin.and_then(|origin| self.parts.nonce(origin));
        }
        ctx.decided = ctx.started.elapsed();
        ctx.facts = (role != Role::Metadata).then_some(decision.facts);
        // What the server issues could not be kept: it is not asked to begin with.
        let keeps = role == Role::Token && self.parts.retrofits(self.route);
        let down = keeps && gate.bindings().is_none_or(|bindings| !bindings.is_up());
        match decision.verdict {
            Ok(_) if down && ctx.facts.as_ref().is_some_and(|facts| facts.observed.is_none()) => {
                Err(Denial::StoreDown)
            }
            Ok(granted) => {
                let bindings = gate.bindings().filter(|_| keeps);
                ctx.announced = bindings.and_then(|bindings| bindings.announce());
                Ok(granted)
            }
            Err(denial) => Err(denial),
        }
    }

    fn pace(&self, address: Option<IpAddr>) -> Result<(), Denial> {
        let pace = &self.parts.common().authority.pace;
        pace.take(address).map_err(|_| Denial::Authority(AuthorityFault::ProofRate))
    }

    /// Asks the server.
    async fn ask(
        &self,
        session: &Session,
        ctx: &mut Ctx,
        granted: &Granted,
        body: &[u8],
    ) -> Result<Answered, Stop> {
        let upstream = self.parts.upstream(ctx).ok_or(Stop::Failed(ErrorCode::ServerError))?;
        ctx.sent = Some(ctx.started.elapsed());
        let target = ctx.target.as_ref().map(Target::upstream).unwrap_or_default();
        ctx.admitted = Some(granted.admitted().clone());
        let onward = self.parts.onward(session, ctx, &target);
        let onward = onward.ok_or(Stop::Failed(ErrorCode::ServerError))?;
        let (role, mut request) = (self.route.rule.role, session.req_header().clone());
        if request.method == Method::HEAD {
            request.set_method(Method::GET);
        }
        let unwritten = |_| Stop::Failed(ErrorCode::ServerError);
        call::next_hop(&mut request, body.len()).map_err(unwritten)?;
        headers::upstream_request(&mut request, &onward).map_err(unwritten)?;
        // What a client authenticates by is its server's to see, on routes too where no token is read.
        for name in [AUTHORIZATION, DPOP] {
            let own = session.req_header().headers.get(&name);
            let missing = role != Role::Metadata && !request.headers.contains_key(&name);
            if let Some(own) = own.filter(|_| missing) {
                request.insert_header(name, own.clone()).map_err(unwritten)?;
            }
        }
        // A signed answer (RFC 9701) cannot be added to: that there is one is not the caller's to choose.
        if role == Role::Introspection && self.adds() {
            request.insert_header(ACCEPT, "application/json").map_err(unwritten)?;
        }
        // The body is written anew, in UTF-8 alone; what goes as it came is under its own name.
        if role != Role::Metadata && granted.admitted().bound_by() != BoundBy::Observed {
            let media = "application/x-www-form-urlencoded";
            request.insert_header(CONTENT_TYPE, media).map_err(unwritten)?;
        }
        if !granted.passes_proof() {
            request.remove_header(&DPOP);
        }
        let caller = &self.parts.common().authority.caller;
        let limit = self.parts.limits().authority_body_bytes;
        let (upstream, servers) = (&upstream.0, &*upstream.1);
        let answered = caller.call((upstream, servers), &request, body, limit, &ctx.id).await;
        let status = answered.as_ref().ok().map(|answered| answered.head.status.as_u16());
        self.parts.upstream_answered(ctx, status);
        let answered = answered.map_err(Stop::Failed)?;
        if call::is_plain(&answered.head) {
            Ok(answered)
        } else {
            Err(Denial::Authority(AuthorityFault::AnswerInvalid).into())
        }
    }
}

/// Whether an answer's body is of this media type.
fn is_of_type(answered: &Answered, media: &str) -> bool {
    let value = answered.head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let found = value.and_then(|value| value.split(';').next()).map(str::trim);
    found.is_some_and(|found| found.eq_ignore_ascii_case(media))
}

/// Whether an answer says that all went well and is to be read.
fn is_success(answered: &Answered) -> bool {
    answered.head.status == StatusCode::OK
}
