//! Spans: what requests came to, as OpenTelemetry has it, in one bounded queue for whoever sends them on.
//!
//! A request never waits for them. What finds the queue full is dropped and counted. A span has the names
//! of routes, upstreams and denials in it, and nothing that a client has sent but the method, where that
//! is one that everybody knows, and the trace's id.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1 as otlp;
use prost::Message as _;
use tokio::sync::{Notify, mpsc, oneshot};

use super::metrics::{Metrics, SpanLoss};
use crate::policy::trace::{SpanId, Trace};

/// Requests whose spans wait to be sent.
const QUEUE: usize = 2048;
/// Requests whose spans are sent at once.
const BATCH: usize = 256;
/// How long spans wait for others to be sent with.
const GATHER: Duration = Duration::from_secs(1);
/// A flag of OTLP: whether the parent is somebody else's is known.
const REMOTE_KNOWN: u32 = 0x100;
/// A flag of OTLP: it is.
const REMOTE: u32 = 0x200;

/// One request's spans.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// Its place in the trace.
    pub trace: Trace,
    /// When it began, nanoseconds since 1970.
    pub began_ns: u64,
    /// The request's own first.
    pub spans: Vec<Span>,
}

/// One span.
#[derive(Clone, Debug)]
pub struct Span {
    /// Its id.
    pub id: SpanId,
    /// The span that it is a part of; `None` where a trace begins.
    pub parent: Option<SpanId>,
    /// What it is called: few names in all.
    pub name: Cow<'static, str>,
    /// Whose doing it is.
    pub kind: Kind,
    /// When it began, from the beginning of the request.
    pub from: Duration,
    /// When it ended, likewise.
    pub to: Duration,
    /// What is known of it, by names of OpenTelemetry's or `holdfast.*`.
    pub attributes: Vec<(&'static str, Value)>,
    /// Whether it failed.
    pub failed: bool,
}

/// Whose doing a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It was asked of the edge.
    Server,
    /// The edge asked it of somebody.
    Client,
    /// It is the edge's own.
    Internal,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(Cow<'static, str>),
    /// A number.
    Number(i64),
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

/// The way into the queue.
#[derive(Debug)]
pub struct Spans {
    queue: mpsc::Sender<Entry>,
    metrics: Arc<Metrics>,
    hurry: Arc<Notify>,
}

/// What waits in the queue.
#[derive(Debug)]
pub struct Waiting {
    queue: mpsc::Receiver<Entry>,
    hurry: Arc<Notify>,
}

#[derive(Debug)]
enum Entry {
    Exchange(Exchange),
    Flush(oneshot::Sender<()>),
}

/// Spans that are sent together.
#[derive(Debug, Default)]
pub struct Batch {
    /// Some requests'.
    pub exchanges: Vec<Exchange>,
    /// Who waits until they are sent.
    awaited: Option<oneshot::Sender<()>>,
}

impl Batch {
    /// They are sent, or given up.
    pub fn done(self) {
        if let Some(told) = self.awaited {
            let _ = told.send(());
        }
    }

    /// Whether somebody waits until they are sent.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.awaited.is_some()
    }

    /// How many spans they are.
    #[must_use]
    pub fn spans(&self) -> usize {
        self.exchanges.iter().map(|exchange| exchange.spans.len()).sum()
    }
}

/// A queue; what does not fit is counted in `metrics`.
#[must_use]
pub fn queue(metrics: Arc<Metrics>) -> (Spans, Waiting) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let hurry = Arc::new(Notify::new());
    let waiting = Waiting { queue: receiver, hurry: Arc::clone(&hurry) };
    (Spans { queue: sender, metrics, hurry }, waiting)
}

impl Spans {
    /// Puts a request's spans in, or drops and counts them.
    pub fn tell(&self, exchange: Exchange) {
        let spans = exchange.spans.len();
        if self.queue.try_send(Entry::Exchange(exchange)).is_err() {
            self.metrics.spans_dropped(SpanLoss::QueueFull, spans);
        }
    }

    /// Waits until what was put in so far is sent, or has been given up.
    pub async fn flush(&self) {
        let (told, sent) = oneshot::channel();
        self.hurry.notify_one();
        if self.queue.send(Entry::Flush(told)).await.is_ok() {
            let _ = sent.await;
        }
    }
}

impl Waiting {
    /// The next spans to be sent, once there are enough or a second has passed; `None` when there will
    /// be no more.
    pub async fn batch(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        match self.queue.recv().await? {
            Entry::Exchange(first) => batch.exchanges.push(first),
            Entry::Flush(told) => return Some(Batch { awaited: Some(told), ..batch }),
        }
        let gathered = tokio::time::sleep(GATHER);
        tokio::pin!(gathered);
        while batch.exchanges.len() < BATCH {
            tokio::select! {
                () = &mut gathered => break,
                entry = self.queue.recv() => match entry {
                    Some(Entry::Exchange(next)) => batch.exchanges.push(next),
                    Some(Entry::Flush(told)) => {
                        batch.awaited = Some(told);
                        break;
                    }
                    None => break,
                },
            }
        }
        Some(batch)
    }

    /// Waits, unless somebody waits for the queue to be empty.
    pub async fn rest(&self, time: Duration) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = self.hurry.notified() => {}
        }
    }
}

/// Who tells of spans: what OpenTelemetry calls a resource.
#[derive(Clone, Debug)]
pub struct Source(Resource);

impl Source {
    /// The edge under this `service.name`, with these attributes besides.
    #[must_use]
    pub fn new(service_name: &str, attributes: &[(String, String)]) -> Self {
        let own = [("service.name", service_name), ("service.version", env!("CARGO_PKG_VERSION"))];
        let others = attributes.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let known = |name: &str| attributes.iter().any(|(other, _)| other == name);
        let own = own.into_iter().filter(|(name, _)| !known(name));
        let attributes = own.chain(others).map(|(name, value)| text(name, value)).collect();
        Self(Resource { attributes, ..Resource::default() })
    }

    /// Spans as the body of an OTLP request (`ExportTraceServiceRequest`).
    #[must_use]
    pub fn encode(&self, exchanges: &[Exchange]) -> Vec<u8> {
        let spans = exchanges
            .iter()
            .flat_map(|exchange| exchange.spans.iter().map(|span| encoded(exchange, span)));
        let scope = InstrumentationScope {
            name: "holdfast".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let scope_spans = vec![otlp::ScopeSpans {
            scope: Some(scope),
            spans: spans.collect(),
            ..otlp::ScopeSpans::default()
        }];
        let resource = Some(self.0.clone());
        let resource_spans =
            vec![otlp::ResourceSpans { resource, scope_spans, ..otlp::ResourceSpans::default() }];
        ExportTraceServiceRequest { resource_spans }.encode_to_vec()
    }
}

/// How many spans the answer to an OTLP request says were not taken, and why. An answer that cannot be
/// read says nothing.
#[must_use]
pub fn rejected(answer: &[u8]) -> Option<(usize, String)> {
    let answer = ExportTraceServiceResponse::decode(answer).ok()?;
    let partial = answer.partial_success?;
    let count = usize::try_from(partial.rejected_spans).ok().filter(|count| *count > 0)?;
    Some((count, partial.error_message))
}

fn encoded(exchange: &Exchange, span: &Span) -> otlp::Span {
    let at = |since: Duration| {
        let since = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        exchange.began_ns.saturating_add(since)
    };
    let kind = match span.kind {
        Kind::Server => otlp::span::SpanKind::Server,
        Kind::Client => otlp::span::SpanKind::Client,
        Kind::Internal => otlp::span::SpanKind::Internal,
    };
    let code =
        if span.failed { otlp::status::StatusCode::Error } else { otlp::status::StatusCode::Unset };
    let attributes = span.attributes.iter().map(|(name, value)| match value {
        Value::Text(value) => text(name, value),
        Value::Number(value) => attribute(name, any_value::Value::IntValue(*value)),
    });
    let remote = if span.id == exchange.trace.own && span.parent.is_some() { REMOTE } else { 0 };
    otlp::Span {
        trace_id: exchange.trace.id.bytes().to_vec(),
        span_id: span.id.bytes().to_vec(),
        parent_span_id: span.parent.map(|parent| parent.bytes().to_vec()).unwrap_or_default(),
        flags: u32::from(exchange.trace.flags()) | REMOTE_KNOWN | remote,
        name: span.name.clone().into_owned(),
        kind: kind.into(),
        start_time_unix_nano: at(span.from),
        end_time_unix_nano: at(span.to.max(span.from)),
        attributes: attributes.collect(),
        status: Some(otlp::Status { code: code.into(), ..otlp::Status::default() }),
        ..otlp::Span::default()
    }
}

fn text(name: &str, value: &str) -> KeyValue {
    attribute(name, any_value::Value::StringValue(value.to_owned()))
}

fn attribute(name: &str, value: any_value::Value) -> KeyValue {
    KeyValue {
        key: name.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::policy::trace::Draw;
    use crate::telemetry::metrics::{Now, Shape};

    fn metrics() -> Arc<Metrics> {
        let shape = Shape::default();
        Arc::new(Metrics::new(&shape).unwrap())
    }

    fn exchange() -> Exchange {
        let draw = Draw { trace: [1; 16], spans: [[2; 8], [3; 8]], chance: 0 };
        let trace = Trace::begin(None, false, 1.0, &draw).unwrap();
        let span = Span {
            id: trace.own,
            parent: None,
            name: "GET".into(),
            kind: Kind::Server,
            from: Duration::ZERO,
            to: Duration::from_millis(1),
            attributes: vec![("http.response.status_code", 200_u16.into())],
            failed: false,
        };
        Exchange { trace, began_ns: 7, spans: vec![span.clone(), span] }
    }

    #[tokio::test]
    async fn what_finds_the_queue_full_is_counted_and_the_rest_comes_in_batches() {
        let metrics = metrics();
        let (spans, mut waiting) = queue(Arc::clone(&metrics));
        for _ in 0..QUEUE + 3 {
            spans.tell(exchange());
        }
        let text = String::from_utf8(metrics.render(&Now::default(), [])).unwrap();
        assert!(text.contains("holdfast_spans_dropped_total{reason=\"queue_full\"} 6"), "{text}");
        let flushed = Cell::new(false);
        let sent = async {
            let mut sizes = Vec::new();
            loop {
                let batch = waiting.batch().await.unwrap();
                sizes.push(batch.exchanges.len());
                if batch.is_awaited() {
                    assert!(!flushed.get());
                    batch.done();
                    return sizes;
                }
            }
        };
        let flush = async {
            spans.flush().await;
            flushed.set(true);
        };
        let (sizes, ()) = tokio::join!(sent, flush);
        assert_eq!((sizes.iter().sum::<usize>(), sizes.len()), (QUEUE, QUEUE / BATCH + 1));
        assert!(flushed.get());
    }

    #[tokio::test]
    async fn a_few_go_together_and_what_is_left_goes_before_the_end() {
        let (spans, mut waiting) = queue(metrics());
        spans.tell(exchange());
        spans.tell(exchange());
        drop(spans);
        let batch = waiting.batch().await.unwrap();
        assert_eq!((batch.exchanges.len(), batch.spans()), (2, 4));
        assert!(waiting.batch().await.is_none());
    }

    #[test]
    fn answers() {
        for (answer, expect) in [
            (vec![], None),
            (vec![0x0a, 0x02, 0x08, 0x02], Some((2, String::new()))),
            (vec![0x0a, 0x05, 0x08, 0x01, 0x12, 0x01, b'x'], Some((1, "x".to_owned()))),
            // A warning, a negative number, and no protobuf.
            (vec![0x0a, 0x03, 0x12, 0x01, b'x'], None),
            ([&[0x0a, 0x0b, 0x08][..], &[0xff; 9], &[1]].concat(), None),
            (b"<html>".to_vec(), None),
        ] {
            assert_eq!(rejected(&answer), expect, "{answer:02x?}");
        }
    }
}
