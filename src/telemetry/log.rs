//! JSON lines: decision records and process events, through one bounded queue and one writer thread.
//!
//! A request never waits for the log. When the queue is full, or the line cannot be written (a full disk, a
//! reader that has ended), it is dropped and counted, and the count is written as soon as that is
//! possible again, so nothing goes missing silently.
//!
//! Levels: `error` needs a person, `warn` will if it goes on, `info` is start, stop and change,
//! `debug` is one line a connection. Messages of the libraries underneath are taken from `warn` up
//! only, whatever the level: below that they print requests with their tokens.

#![expect(clippy::disallowed_methods, reason = "a log has a clock and a thread")]

mod writer;

use std::fmt::{self, Write as _};
use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use serde::Serialize;
use tracing::subscriber::Interest;
use tracing::{Level, Metadata, field};

use crate::policy::clock::Hint;
use crate::policy::digest::Sha256;
use crate::policy::time::UnixTime;
use crate::policy::trace::TraceId;
use writer::Lost;

/// Lines that may wait for the writer.
const QUEUE_LINES: usize = 8192;
/// Longest value of a field that a client has a say in, bytes.
const VALUE_BYTES: usize = 256;
/// Bytes that an ordinary record fits into.
const RECORD_BYTES: usize = 512;
/// How long a flush waits for the writer.
const FLUSH: Duration = Duration::from_secs(2);

/// The way into the log. Clones write to the same queue.
#[derive(Clone, Debug)]
pub struct Log {
    queue: SyncSender<Entry>,
    lost: Lost,
    level: Arc<ArcSwap<Level>>,
}

#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// `authority.dpop.request`: one decision.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RequestRecord<'a> {
    /// The configured tenant of the token.
    pub tenant: Option<&'a str>,
    /// `client_id` of the token, once verified.
    #[serde(serialize_with = "cut")]
    pub client: Option<&'a str>,
    /// The route's name; absent where no route was found.
    pub route: Option<&'a str>,
    /// The route's role; absent where no route was found.
    pub role: Option<&'a str>,
    /// `enforce` or `observe`: what held for this client; absent where it was not known yet whose request
    /// it was.
    pub mode: Option<&'a str>,
    /// What the admission rests on, as `X-Holdfast-Result` has it; absent where there was none.
    pub admitted: Option<&'a str>,
    /// The key that the token is bound to, once it is verified.
    pub cnf_jkt: Option<Thumbprint>,
    /// How the proof's nonce stood.
    pub nonce_status: &'a str,
    /// A value of the `result` label of `authority_dpop_result_total`.
    pub result: &'a str,
    /// The denial's code; absent on `ok`.
    pub reason: Option<&'a str>,
    /// What the sender lacks that is or would be refused for what `mode: observe` lets pass: a value of
    /// the `reason` label of `holdfast_observed_refusals_total`.
    pub lacks: Option<&'a str>,
    /// now − `iat` of the proof in milliseconds, once its signature holds.
    pub clock_offset_ms: Option<i64>,
    /// What that says of the client's clock, where `iat` is why the proof does not hold.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "in_words")]
    pub clock_hint: Option<Hint>,
    /// What the answer called `X-Request-Id`.
    pub decision_id: &'a str,
    /// Time of the decision, microseconds.
    pub latency_us: u64,
    /// The trace that has its spans, where there is one.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "shown")]
    pub trace_id: Option<TraceId>,
    /// The share of `ok` records that is written; absent where all are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ok_sample: Option<f64>,
}

/// `authority.dpop.proof.bypass`: a token was asked for without a proof while the temporary bypass lasts.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BypassRecord<'a> {
    /// The configured tenant of the client.
    pub tenant: Option<&'a str>,
    /// The client.
    #[serde(serialize_with = "cut")]
    pub client: Option<&'a str>,
    /// The bypass.
    pub bypass: &'a str,
    /// What the answer called `X-Request-Id`.
    pub decision_id: &'a str,
}

/// `authority.security.senderConstraint`: the sender is not the one that the token is bound to.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ConstraintRecord<'a> {
    /// The configured tenant of the token.
    pub tenant: Option<&'a str>,
    /// `client_id` of the token.
    #[serde(serialize_with = "cut")]
    pub client: Option<&'a str>,
    /// `dpop` or `mtls`.
    pub kind: &'a str,
    /// The denial's code.
    pub reason: &'a str,
    /// The thumbprint in `cnf`.
    pub expected: Option<Thumbprint>,
    /// The thumbprint of what was shown.
    pub presented: Option<Thumbprint>,
    /// Whether it is the certificate that differs or is missing.
    #[serde(rename = "senderCertificateMismatch")]
    pub sender_certificate_mismatch: bool,
    /// What the answer called `X-Request-Id`.
    pub decision_id: &'a str,
    /// Whether it was refused, or let through by `mode: observe`.
    pub refused: bool,
}

/// `holdfast.capsule.decision`: a decision about a capsule or telemetry.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CapsuleRecord<'a> {
    /// `capsule` or `telemetry`.
    pub kind: &'a str,
    /// The node, once its secret holds.
    pub node: Option<&'a str>,
    /// `GRANTED`, or the reason that the node is told.
    pub result: &'a str,
    /// The code of the stage that decided.
    pub reason: &'a str,
    /// The risk, where it was weighed.
    pub risk_score: Option<u32>,
    /// Whether the node was quarantined by it.
    pub quarantined: bool,
    /// Whether the fleet brake held that back.
    pub held: bool,
    /// The capsule.
    pub capsule_id: Option<&'a str>,
    /// What the answer called `decisionId`; the audit log has it under this.
    pub decision_id: &'a str,
    /// Time until the answer, microseconds.
    pub latency_us: u64,
}

/// A SHA-256 thumbprint, written as base64url.
#[derive(Clone, Copy, Debug)]
pub struct Thumbprint(pub Sha256);

impl Serialize for Thumbprint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

fn shown<S: serde::Serializer>(id: &Option<TraceId>, serializer: S) -> Result<S::Ok, S::Error> {
    match id {
        Some(id) => serializer.collect_str(id),
        None => serializer.serialize_none(),
    }
}

fn in_words<S: serde::Serializer>(hint: &Option<Hint>, serializer: S) -> Result<S::Ok, S::Error> {
    match hint {
        Some(hint) => serializer.collect_str(hint),
        None => serializer.serialize_none(),
    }
}

fn cut<S: serde::Serializer>(value: &Option<&str>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.serialize_str(shorten(value)),
        None => serializer.serialize_none(),
    }
}

/// The longest prefix of `value` that fits into a record.
fn shorten(value: &str) -> &str {
    value.get(..value.floor_char_boundary(VALUE_BYTES)).unwrap_or(value)
}

#[derive(Serialize)]
struct Line<'a, T> {
    ts: Timestamp,
    event: &'a str,
    #[serde(flatten)]
    record: &'a T,
}

/// RFC 3339, UTC, milliseconds.
struct Timestamp(SystemTime);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let millis = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
        UnixTime::from_millis(millis).rfc3339().fmt(f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Log {
    /// Starts the writer thread. Process events below `level` are left out; records never are.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(out: Box<dyn Write + Send>, level: Level) -> std::io::Result<Self> {
        let (queue, lines) = mpsc::sync_channel(QUEUE_LINES);
        let lost = Lost::default();
        let counted = lost.clone();
        let write = move || writer::write_lines(&lines, &counted, out);
        std::thread::Builder::new().name("log".to_owned()).spawn(write)?;
        let level = Arc::new(ArcSwap::from_pointee(level));
        Ok(Self { queue, lost, level })
    }

    /// Leaves out process events below `level` from now on.
    pub fn set_level(&self, level: Level) {
        self.level.store(Arc::new(level));
    }

    /// Takes the process events of this library (`tracing`) and of those underneath (`log`) into
    /// this log. The first log so installed in a process stays.
    pub fn install(&self) {
        if tracing::subscriber::set_global_default(Bridge(self.clone())).is_ok()
            && ::log::set_boxed_logger(Box::new(Bridge(self.clone()))).is_ok()
        {
            ::log::set_max_level(::log::LevelFilter::Warn);
        }
    }

    /// Writes `authority.dpop.request`.
    pub fn request(&self, record: &RequestRecord<'_>) {
        self.record("authority.dpop.request", record);
    }

    /// Writes `authority.dpop.proof.bypass`.
    pub fn bypass(&self, record: &BypassRecord<'_>) {
        self.record("authority.dpop.proof.bypass", record);
    }

    /// Writes `authority.security.senderConstraint`.
    pub fn constraint(&self, record: &ConstraintRecord<'_>) {
        self.record("authority.security.senderConstraint", record);
    }

    /// Writes `holdfast.capsule.decision`.
    pub fn capsule(&self, record: &CapsuleRecord<'_>) {
        self.record("holdfast.capsule.decision", record);
    }

    /// Lines dropped since the start because the queue was full or they could not be written.
    #[must_use]
    pub fn suppressed(&self) -> u64 {
        self.lost.ever()
    }

    /// Waits until what was logged so far is written, at most two seconds.
    pub fn flush(&self) {
        let (done, written) = mpsc::sync_channel(1);
        let deadline = Instant::now() + FLUSH;
        let mut entry = Entry::Flush(done);
        // A writer whose reader does not read must not hold up the end of the process.
        while let Err(TrySendError::Full(back)) = self.queue.try_send(entry) {
            if Instant::now() >= deadline {
                return;
            }
            entry = back;
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }

    fn record<T: Serialize>(&self, event: &str, record: &T) {
        let line = Line { ts: Timestamp(SystemTime::now()), event, record };
        let mut bytes = Vec::with_capacity(RECORD_BYTES);
        if serde_json::to_writer(&mut bytes, &line).is_ok() {
            bytes.push(b'\n');
            self.push(bytes);
        }
    }

    fn push(&self, line: Vec<u8>) {
        match self.queue.try_send(Entry::Line(line)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.lost.add(1),
        }
    }

    fn message(&self, level: &str, target: &str, message: &str, fields: &str) {
        let mut line =
            format!("{{\"ts\":\"{}\",\"event\":\"process\"", Timestamp(SystemTime::now()));
        for (name, value) in [("level", level), ("target", target), ("message", message)] {
            push_field(&mut line, name, value);
        }
        line.push_str(fields);
        line.push_str("}\n");
        self.push(line.into_bytes());
    }
}

/// Appends `,"name":"value"`, escaped.
fn push_field(line: &mut String, name: &str, value: &str) {
    let value = serde_json::Value::from(value);
    let _ = write!(line, ",{}:{value}", serde_json::Value::from(name));
}

/// Takes `tracing` events and `log` records into the log.
struct Bridge(Log);

/// Libraries that complain, up to `error`, of what a client sent, one line each time: whoever can
/// connect could fill the log. The edge counts and tells of these faults itself.
const ABOUT_CLIENTS: [&str; 3] = ["pingora_proxy", "pingora_core::apps", "rustls"];

/// Whether a message may come from here: the libraries underneath print requests below `warn`.
fn wanted(target: &str, level: Level, limit: Level) -> bool {
    let of = |name: &str| {
        target.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    let limit = if of("holdfast") { limit } else { limit.min(Level::WARN) };
    level <= limit && !ABOUT_CLIENTS.into_iter().any(of)
}

impl tracing::Subscriber for Bridge {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // What no level lets through is never asked about again: h2 alone has dozens of spans and
        // events a request. For the rest the level may change.
        let ever =
            metadata.is_event() && wanted(metadata.target(), *metadata.level(), Level::TRACE);
        if ever { Interest::sometimes() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && wanted(metadata.target(), *metadata.level(), **self.0.level.load())
    }

    fn new_span(&self, _span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _span: &tracing::span::Id, _values: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _span: &tracing::span::Id, _follows: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let level = metadata.level().as_str();
        self.0.message(level, metadata.target(), &fields.message, &fields.rest);
    }

    fn enter(&self, _span: &tracing::span::Id) {}

    fn exit(&self, _span: &tracing::span::Id) {}
}

impl ::log::Log for Bridge {
    fn enabled(&self, metadata: &::log::Metadata<'_>) -> bool {
        let level = match metadata.level() {
            ::log::Level::Error => Level::ERROR,
            ::log::Level::Warn => Level::WARN,
            ::log::Level::Info => Level::INFO,
            ::log::Level::Debug => Level::DEBUG,
            ::log::Level::Trace => Level::TRACE,
        };
        wanted(metadata.target(), level, **self.0.level.load())
    }

    fn log(&self, record: &::log::Record<'_>) {
        if ::log::Log::enabled(self, record.metadata()) {
            let message = record.args().to_string();
            self.0.message(record.level().as_str(), record.target(), shorten(&message), "");
        }
    }

    fn flush(&self) {}
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: String,
}

impl field::Visit for Fields {
    fn record_debug(&mut self, field: &field::Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &field::Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            push_field(&mut self.rest, field.name(), shorten(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A place to write to that a test can read, and can hold up.
    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Paper {
        fn lines(&self) -> Vec<serde_json::Value> {
            let bytes = self.0.lock().unwrap().clone();
            let text = String::from_utf8(bytes).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
    }

    fn record(client: &str) -> RequestRecord<'_> {
        RequestRecord {
            tenant: None,
            client: Some(client),
            route: Some("orders"),
            role: Some("resource"),
            mode: Some("enforce"),
            admitted: Some("dpop"),
            cnf_jkt: Some(Thumbprint(Sha256::of(b"key"))),
            nonce_status: "fresh",
            result: "ok",
            reason: None,
            lacks: None,
            clock_offset_ms: Some(250),
            clock_hint: None,
            decision_id: "00ff",
            latency_us: 7,
            trace_id: None,
            ok_sample: None,
        }
    }

    /// Remembers each write.
    #[derive(Clone, Default)]
    struct Writes(Arc<Mutex<Vec<Vec<u8>>>>);

    impl Write for Writes {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_write_is_whole_lines_and_no_more_than_a_pipe_takes_at_once() {
        let writes = Writes::default();
        let log = Log::start(Box::new(writes.clone()), Level::INFO).unwrap();
        for _ in 0..500 {
            log.request(&record("a client"));
        }
        log.flush();
        let writes = writes.0.lock().unwrap();
        assert!(writes.len() > 1);
        for write in writes.iter() {
            assert!(write.len() <= 4096 && write.ends_with(b"\n"), "{}", write.len());
        }
    }

    #[test]
    fn a_record_is_one_escaped_line() {
        let paper = Paper::default();
        let log = Log::start(Box::new(paper.clone()), Level::INFO).unwrap();
        let long = "é".repeat(1000);
        log.request(&record("a\n\"b\u{1b}[31m"));
        log.request(&record(&long));
        log.flush();
        let lines = paper.lines();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["event"], "authority.dpop.request");
        assert_eq!(lines[0]["client"], "a\n\"b\u{1b}[31m");
        assert_eq!(lines[0]["cnf_jkt"].as_str().map(str::len), Some(43));
        assert_eq!(lines[1]["client"].as_str().map(str::len), Some(VALUE_BYTES));
    }

    #[test]
    fn what_does_not_fit_is_counted_and_told() {
        let paper = Paper::default();
        let held = paper.0.lock().unwrap();
        let log = Log::start(Box::new(paper.clone()), Level::INFO).unwrap();
        let sent = QUEUE_LINES * 3;
        for _ in 0..sent {
            log.request(&record("c"));
        }
        drop(held);
        log.flush();
        let lines = paper.lines();
        let told: u64 = lines.iter().filter_map(|line| line["count"].as_u64()).sum();
        let written = lines.iter().filter(|line| line["event"] == "authority.dpop.request").count();
        assert!(told > 0);
        assert_eq!(told, log.suppressed());
        assert_eq!(written + usize::try_from(told).unwrap(), sent);
    }

    #[test]
    fn libraries_are_heard_from_warn_up_only() {
        for (target, level, limit, expect) in [
            ("holdfast::edge::tls", Level::DEBUG, Level::DEBUG, true),
            ("holdfast::edge::tls", Level::DEBUG, Level::INFO, false),
            ("pingora_proxy", Level::DEBUG, Level::TRACE, false),
            ("pingora_core::services", Level::WARN, Level::TRACE, true),
            ("pingora_core::services", Level::WARN, Level::ERROR, false),
            ("pingora_core::services", Level::ERROR, Level::ERROR, true),
            ("pingora_core::apps", Level::ERROR, Level::TRACE, false),
            ("pingora_proxy", Level::ERROR, Level::TRACE, false),
            ("rustls::msgs::handshake", Level::WARN, Level::TRACE, false),
            ("rustls_native_certs", Level::WARN, Level::INFO, true),
            ("holdfastish", Level::INFO, Level::INFO, false),
        ] {
            assert_eq!(wanted(target, level, limit), expect, "{target} {level} under {limit}");
        }
    }

    #[test]
    fn timestamps() {
        for (seconds, expect) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_767_225_599, "2025-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(Timestamp(at).to_string(), expect);
        }
    }
}
