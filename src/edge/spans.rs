//! The spans of a request: begun when its head is read, told when it ends.
//!
//! ```text
//! GET /orders/*            server, from the first byte after the head to the end
//! ├ decision               to the gate's verdict
//! │ ├ store replay         each call of a store; introspection
//! │ └ …
//! ├ store keep             those after it, at an authorization server
//! └ GET                    client, to the head of the service's answer; its span is the service's parent
//! ```
//!
//! Names and attributes are those of OpenTelemetry's HTTP conventions, or `holdfast.*`. None of them
//! holds a client, a token, a proof, a key, an address of a client, a path or a query.

#![expect(clippy::disallowed_methods, reason = "a trace has a clock and ids")]

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, Method, Version};
use pingora::proxy::Session;

use super::calls::{Call, Calls};
use super::capsules::What;
use super::connection;
use super::ctx::Ctx;
use super::exporter::Traces;
use super::parts::Parts;
use super::record::{Told, outcome};
use crate::config::PathPattern;
use crate::policy::trace::{Draw, Parent, SpanId, Trace, TraceId};
use crate::telemetry::spans::{Exchange, Kind, Span, Value};

/// A request that belongs to a trace.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) trace: Trace,
    began_ns: u64,
    method: Option<&'static str>,
    version: &'static str,
    /// What it is for, where the edge itself answers.
    own: Option<What>,
    /// Status of an authorization server's answer; 0 for none.
    answered: u16,
    /// `None` where it is not sampled.
    calls: Option<Arc<Calls>>,
}

impl Begun {
    /// The trace's id, where it is kept.
    pub(super) fn sampled(&self) -> Option<TraceId> {
        self.trace.sampled.then_some(self.trace.id)
    }

    /// The authorization server that was asked for it has answered.
    pub(super) fn answered(&mut self, status: u16) {
        self.answered = status;
    }

    /// It is for the edge itself.
    pub(super) fn is_for(&mut self, what: What) {
        self.own = Some(what);
    }
}

/// Finds the place of a request in a trace. `believed`: who sent it stands in front of the edge.
pub(super) fn begin(
    traces: &Traces,
    ctx: &Ctx,
    believed: bool,
    (method, version, headers): (&Method, Version, &HeaderMap),
) -> Option<Box<Begun>> {
    let mut random = [0_u8; 36];
    aws_lc_rs::rand::fill(&mut random).ok()?;
    let (trace, rest) = random.split_first_chunk()?;
    let (own, rest) = rest.split_first_chunk()?;
    let (onward, rest) = rest.split_first_chunk()?;
    let chance = u32::from_be_bytes(*rest.first_chunk()?);
    let draw = Draw { trace: *trace, spans: [*own, *onward], chance };
    let trace = Trace::begin(Parent::of(headers), believed, traces.share(), &draw)?;
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let began = since.saturating_sub(ctx.started.elapsed());
    Some(Box::new(Begun {
        trace,
        began_ns: u64::try_from(began.as_nanos()).unwrap_or(u64::MAX),
        method: known(method),
        version: protocol(version),
        own: None,
        answered: 0,
        calls: trace.sampled.then(|| Calls::new(ctx.started)),
    }))
}

/// Who watches the calls of a request; nobody where it is not sampled.
pub(super) fn calls(ctx: &Ctx) -> Option<Arc<Calls>> {
    ctx.trace.as_ref()?.calls.clone()
}

/// Tells of a request that is sampled.
pub(super) fn tell(parts: &Parts, traces: &Traces, ctx: &Ctx, told: &Told<'_>, status: u16) {
    let Some(begun) = ctx.trace.as_deref() else { return };
    let Some(calls) = &begun.calls else { return };
    let calls = calls.made();
    let Some(ids) = ids(calls.len() + 1) else { return };
    let mut ids = ids.into_iter();
    let Some(decision) = ids.next() else { return };
    let own = begun.trace.own;
    let mut spans = vec![server(parts, ctx, begun, told, status)];
    spans.push(Span {
        id: decision,
        parent: Some(own),
        name: "decision".into(),
        kind: Kind::Internal,
        from: Duration::ZERO,
        to: ctx.decided,
        attributes: Vec::new(),
        failed: false,
    });
    for (call, id) in calls.iter().zip(ids) {
        let parent = if call.to <= ctx.decided { decision } else { own };
        spans.push(asked(call, id, parent));
    }
    spans.extend(client(parts, ctx, begun));
    traces.tell(Exchange { trace: begun.trace, began_ns: begun.began_ns, spans });
}

/// Random ids; `None` where there is no randomness.
fn ids(count: usize) -> Option<Vec<SpanId>> {
    let mut random = vec![0; count * 8];
    aws_lc_rs::rand::fill(&mut random).ok()?;
    random.chunks_exact(8).map(|bytes| SpanId::new(bytes.try_into().ok()?)).collect()
}

fn server(parts: &Parts, ctx: &Ctx, begun: &Begun, told: &Told<'_>, status: u16) -> Span {
    let route = parts.route(ctx);
    let pattern: Option<Cow<'static, str>> = match (route, begun.own) {
        (Some(route), _) => Some(shown(&route.path).into()),
        (None, Some(what)) => Some(what.pattern().into()),
        (None, None) => None,
    };
    let method = begun.method.unwrap_or("HTTP");
    let name = match &pattern {
        Some(pattern) => format!("{method} {pattern}").into(),
        None => method.into(),
    };
    let mut attributes = vec![
        ("http.request.method", Value::from(begun.method.unwrap_or("_OTHER"))),
        ("network.protocol.version", begun.version.into()),
        ("holdfast.decision_id", ctx.id.clone().into()),
    ];
    attributes.extend(pattern.map(|pattern| ("http.route", Value::Text(pattern))));
    attributes.extend(route.map(|route| ("holdfast.route", route.name.clone().into())));
    attributes.extend(told.role.map(|role| ("holdfast.role", role.name().into())));
    attributes.extend(told.tenant.map(|name| ("holdfast.tenant", name.to_owned().into())));
    let (fault, result) = outcome(told);
    if told.facts.is_some() || told.refused.is_some() {
        attributes.push(("holdfast.result", result.name().into()));
    }
    attributes.extend(fault.map(|denial| ("holdfast.denial", denial.code().into())));
    let failed = status == 0 || status >= 500;
    if status != 0 {
        attributes.push(("http.response.status_code", status.into()));
    }
    if failed {
        let kind = if status == 0 { "no_answer".to_owned() } else { status.to_string() };
        attributes.push(("error.type", kind.into()));
    }
    let to = ctx.started.elapsed();
    let (id, parent) = (begun.trace.own, begun.trace.parent);
    Span { id, parent, name, kind: Kind::Server, from: Duration::ZERO, to, attributes, failed }
}

fn asked(call: &Call, id: SpanId, parent: SpanId) -> Span {
    let mut attributes = Vec::new();
    attributes.extend(call.system.map(|system| ("db.system.name", system.into())));
    let kind = match call.system {
        Some("redis") => Kind::Client,
        Some(_) | None => Kind::Internal,
    };
    let name = format!("store {}", call.what).into();
    Span {
        id,
        parent: Some(parent),
        name: if call.what == INTROSPECTION { INTROSPECTION.into() } else { name },
        kind: if call.what == INTROSPECTION { Kind::Client } else { kind },
        from: call.from,
        to: call.to,
        attributes,
        failed: call.failed,
    }
}

/// The call that is none of a store.
pub(super) const INTROSPECTION: &str = "introspection";

/// The request to the service, where it came so far.
fn client(parts: &Parts, ctx: &Ctx, begun: &Begun) -> Option<Span> {
    let from = ctx.sent?;
    let (upstream, _) = parts.upstream(ctx)?;
    let method = begun.method.unwrap_or("HTTP");
    let mut attributes = vec![
        ("http.request.method", Value::from(begun.method.unwrap_or("_OTHER"))),
        ("holdfast.upstream", upstream.name.clone().into()),
    ];
    if let Some(address) = ctx.server.as_ref().map(|server| server.address()) {
        attributes.push(("server.address", address.ip().to_string().into()));
        attributes.push(("server.port", address.port().into()));
    }
    let status = if begun.answered == 0 { ctx.status } else { begun.answered };
    if status != 0 {
        attributes.push(("http.response.status_code", status.into()));
    }
    let failed = ctx.answered.is_none() || status >= 400;
    if failed {
        let answered = ctx.answered.is_some();
        let kind = if answered { status.to_string() } else { "no_answer".to_owned() };
        attributes.push(("error.type", kind.into()));
    }
    Some(Span {
        id: begun.trace.onward,
        parent: Some(begun.trace.own),
        name: method.into(),
        kind: Kind::Client,
        from,
        to: ctx.answered.unwrap_or_else(|| ctx.started.elapsed()),
        attributes,
        failed,
    })
}

/// A route's paths, as the file writes them.
fn shown(pattern: &PathPattern) -> String {
    match pattern {
        PathPattern::Exact(path) => path.clone(),
        PathPattern::Prefix(path) => format!("{path}/*"),
    }
}

/// A method that everybody knows; any other is a client's own words.
fn known(method: &Method) -> Option<&'static str> {
    let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    known.into_iter().find(|name| *name == method.as_str())
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    }
}

impl Parts {
    /// Finds the place of a request in a trace, where there are traces.
    pub(super) fn begin_trace(&self, session: &Session, ctx: &mut Ctx) {
        let Some(traces) = &self.common().traces else { return };
        let speaker = connection::of(session).and_then(|connection| {
            let proxies = &ctx.listener()?.proxies;
            proxies.speaker(connection.peer, connection.source)
        });
        let request = session.req_header();
        let head = (&request.method, request.version, &request.headers);
        ctx.trace = begin(traces, ctx, speaker.is_some(), head);
    }
}
