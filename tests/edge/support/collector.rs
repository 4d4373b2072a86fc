//! A collector: takes OTLP over HTTP, in clear or over TLS, and keeps what it is sent, as bytes and as spans.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use prost::Message as _;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::client::Message;

/// One span, as it was sent.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) trace: String,
    pub(crate) id: String,
    /// Empty where there is none.
    pub(crate) parent: String,
    pub(crate) name: String,
    /// As in OTLP: 1 internal, 2 server, 3 client.
    pub(crate) kind: i32,
    pub(crate) flags: u32,
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) attributes: BTreeMap<String, String>,
    /// As in OTLP: 0 unset, 2 error.
    pub(crate) status: i32,
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) head: Message,
    pub(crate) body: Vec<u8>,
    pub(crate) resource: BTreeMap<String, String>,
    pub(crate) spans: Vec<Span>,
}

/// The collector.
pub(crate) struct Collector {
    pub(crate) port: u16,
    received: Arc<Mutex<Vec<Received>>>,
    status: Arc<AtomicU16>,
    refusals: Arc<AtomicUsize>,
    answer: Arc<Mutex<Vec<u8>>>,
    tls: Arc<Mutex<Option<TlsAcceptor>>>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (received, status) = (Arc::default(), Arc::new(AtomicU16::new(200)));
        let answer: Arc<Mutex<Vec<u8>>> = Arc::default();
        let tls: Arc<Mutex<Option<TlsAcceptor>>> = Arc::default();
        let refusals: Arc<AtomicUsize> = Arc::default();
        let collector = Self { port, received, status, refusals, answer, tls };
        let (received, status) = (Arc::clone(&collector.received), Arc::clone(&collector.status));
        let refusals = Arc::clone(&collector.refusals);
        let answer = Arc::clone(&collector.answer);
        let tls = Arc::clone(&collector.tls);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (received, status) = (Arc::clone(&received), Arc::clone(&status));
                let (refusals, answer) = (Arc::clone(&refusals), Arc::clone(&answer));
                let tls = tls.lock().expect("TLS").clone();
                tokio::spawn(async move {
                    match tls {
                        None => serve(socket, &received, &status, &refusals, &answer).await,
                        Some(tls) => {
                            if let Ok(socket) = tls.accept(socket).await {
                                serve(socket, &received, &status, &refusals, &answer).await;
                            }
                        }
                    }
                });
            }
        });
        collector
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What the next connections have to speak.
    pub(crate) fn speaks(&self, tls: ServerConfig) {
        *self.tls.lock().expect("TLS") = Some(TlsAcceptor::from(Arc::new(tls)));
    }

    /// What the next requests are answered.
    pub(crate) fn answer(&self, status: u16, body: &[u8]) {
        self.status.store(status, Ordering::SeqCst);
        *self.answer.lock().expect("an answer") = body.to_vec();
    }

    /// Answers the next so many requests with 503.
    pub(crate) fn refuse(&self, count: usize) {
        self.refusals.store(count, Ordering::SeqCst);
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().expect("whole requests").clone()
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        self.received().into_iter().flat_map(|received| received.spans).collect()
    }

    /// The spans of one request to the edge, by the id that its answer had, once they are there.
    pub(crate) async fn of(&self, decision: &str) -> Option<Vec<Span>> {
        for _ in 0..500 {
            let spans = self.spans();
            let server = spans.iter().find(|span| {
                span.attributes.get("holdfast.decision_id").is_some_and(|id| id == decision)
            });
            if let Some(server) = server {
                let own = spans.iter().filter(|span| span.trace == server.trace);
                return Some(own.cloned().collect());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        None
    }
}

async fn serve(
    mut socket: impl AsyncRead + AsyncWrite + Unpin,
    received: &Mutex<Vec<Received>>,
    status: &AtomicU16,
    refusals: &AtomicUsize,
    answer: &Mutex<Vec<u8>>,
) {
    let mut bytes = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if !more(&mut socket, &mut bytes).await {
                return;
            }
        };
        let head = Message::parse(&bytes[..end]);
        let length: usize = head.one("content-length").expect("a length").parse().expect("one");
        while bytes.len() < end + length {
            if !more(&mut socket, &mut bytes).await {
                return;
            }
        }
        let body = bytes[end..end + length].to_vec();
        bytes.drain(..end + length);
        let left = |left: usize| left.checked_sub(1);
        let refused = refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_ok();
        let status = if refused { 503 } else { status.load(Ordering::SeqCst) };
        if status == 200 {
            received.lock().expect("whole requests").push(read(head, body));
        }
        let answer = answer.lock().expect("an answer").clone();
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", answer.len());
        let written = socket.write_all(&[head.as_bytes(), &answer].concat()).await;
        if written.is_err() || socket.flush().await.is_err() {
            return;
        }
    }
}

async fn more(socket: &mut (impl AsyncRead + Unpin), bytes: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 16 << 10];
    match socket.read(&mut buffer).await {
        Ok(0) | Err(_) => false,
        Ok(count) => {
            bytes.extend_from_slice(&buffer[..count]);
            true
        }
    }
}

fn read(head: Message, body: Vec<u8>) -> Received {
    let request = ExportTraceServiceRequest::decode(body.as_slice()).expect("OTLP");
    let mut received = Received { head, body, resource: BTreeMap::new(), spans: Vec::new() };
    for resource_spans in request.resource_spans {
        received.resource = texts(&resource_spans.resource.expect("a resource").attributes);
        for span in resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            received.spans.push(Span {
                trace: hexadecimal(&span.trace_id),
                id: hexadecimal(&span.span_id),
                parent: hexadecimal(&span.parent_span_id),
                name: span.name,
                kind: span.kind,
                flags: span.flags,
                from: span.start_time_unix_nano,
                to: span.end_time_unix_nano,
                attributes: texts(&span.attributes),
                status: span.status.map_or(0, |status| status.code),
            });
        }
    }
    received
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Value| {
        if let Value::StringValue(text) = value {
            return text.clone();
        }
        let Value::IntValue(number) = value else { panic!("neither text nor number: {value:?}") };
        number.to_string()
    };
    let value = |it: &KeyValue| Some(text(it.value.as_ref()?.value.as_ref()?));
    attributes.iter().filter_map(|it| Some((it.key.clone(), value(it)?))).collect()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
