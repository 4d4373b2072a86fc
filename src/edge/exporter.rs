//! Sends spans to a collector: OTLP over HTTP, in protobuf.
//!
//! A collector that is away costs a bounded queue, a few attempts at each batch and a line in the log once
//! a minute at most. What is given up is counted.

#![expect(clippy::disallowed_methods, reason = "faults are told of once in a while")]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};

use super::outgoing::{self, OutgoingError};
use crate::config::Traces as Settings;
use crate::policy::reach::Reach;
use crate::telemetry::metrics::{Metrics, SpanLoss};
use crate::telemetry::spans::{self, Batch, Exchange, Source, Spans, Waiting};

/// Times that a batch is sent, and the pause after the first; each pause is twice the one before.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);
/// From one line about a collector that is away to the next.
const QUIET: Duration = Duration::from_secs(60);
/// Bytes of an answer.
const MAX_BYTES: usize = 64 * 1024;
/// Bytes of a collector's own words in the log.
const MAX_REASON: usize = 300;
/// How long the end of the process waits for what is in the queue.
const FLUSH: Duration = Duration::from_secs(5);

/// Whose spans are kept, and the way to whoever keeps them.
#[derive(Debug)]
pub struct Traces {
    share: f64,
    spans: Spans,
    exporter: Mutex<Option<Exporter>>,
}

impl Traces {
    /// Prepares to send.
    ///
    /// # Errors
    /// When a certificate cannot be used, or when the edge may not reach the collector.
    pub fn new(
        settings: &Settings,
        reach: &Reach,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, OutgoingError> {
        let (spans, waiting) = spans::queue(Arc::clone(metrics));
        let way = reach.to(&settings.endpoint)?;
        let (authorities, client) = (settings.authorities.as_ref(), settings.client.as_ref());
        let mut headers = HeaderMap::new();
        for (name, value) in &settings.headers {
            // `config` has tried it.
            if let Ok(mut value) = HeaderValue::from_str(value.expose()) {
                value.set_sensitive(true);
                headers.insert(name, value);
            }
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let exporter = Exporter {
            client: outgoing::client(&way, authorities, client, settings.timeout, 1)?,
            endpoint: settings.endpoint.clone(),
            headers,
            source: Source::new(&settings.service_name, &settings.resource),
            metrics: Arc::clone(metrics),
            waiting,
            told: None,
            away: false,
        };
        Ok(Self { share: settings.sample_ratio, spans, exporter: Mutex::new(Some(exporter)) })
    }

    /// Starts to send. It ends when this is gone and everything in the queue is sent, or with the
    /// runtime.
    pub fn start(&self, runtime: &tokio::runtime::Handle) {
        let exporter = self.exporter.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(exporter) = exporter {
            runtime.spawn(exporter.run());
        }
    }

    /// Waits until what is in the queue is sent or given up, at most five seconds.
    pub async fn flush(&self) {
        if tokio::time::timeout(FLUSH, self.spans.flush()).await.is_err() {
            tracing::warn!("spans are left behind: the collector takes too long");
        }
    }

    /// The share of requests whose spans are kept.
    pub(super) fn share(&self) -> f64 {
        self.share
    }

    pub(super) fn tell(&self, exchange: Exchange) {
        self.spans.tell(exchange);
    }
}

struct Exporter {
    client: reqwest::Client,
    endpoint: String,
    headers: HeaderMap,
    source: Source,
    metrics: Arc<Metrics>,
    waiting: Waiting,
    /// When it was last told that the collector is away.
    told: Option<Instant>,
    away: bool,
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exporter")
    }
}

impl Exporter {
    async fn run(mut self) {
        while let Some(batch) = self.waiting.batch().await {
            if !batch.exchanges.is_empty() {
                self.send(&batch).await;
            }
            batch.done();
        }
    }

    async fn send(&mut self, batch: &Batch) {
        let body = bytes::Bytes::from(self.source.encode(&batch.exchanges));
        let mut attempt = 1;
        loop {
            let error = match self.attempt(body.clone()).await {
                Ok(answer) => return self.taken(&answer),
                Err(error) => error,
            };
            if attempt == ATTEMPTS || !passes(&error) || batch.is_awaited() {
                self.metrics.spans_dropped(SpanLoss::NotTaken, batch.spans());
                return self.note(&error.to_string());
            }
            self.waiting.rest(PAUSE * (1 << (attempt - 1))).await;
            attempt += 1;
        }
    }

    async fn attempt(&self, body: bytes::Bytes) -> Result<Vec<u8>, OutgoingError> {
        let request = self.client.post(&self.endpoint).headers(self.headers.clone()).body(body);
        outgoing::body(request.send().await?, MAX_BYTES).await
    }

    fn taken(&mut self, answer: &[u8]) {
        if let Some((count, reason)) = spans::rejected(answer) {
            self.metrics.spans_dropped(SpanLoss::NotTaken, count);
            let reason: String =
                reason.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect();
            self.note(&format!("the collector did not take all: {reason}"));
        } else if std::mem::take(&mut self.away) {
            tracing::info!("spans are sent again");
        }
    }

    fn note(&mut self, error: &str) {
        if self.told.is_none_or(|told| told.elapsed() >= QUIET) {
            self.told = Some(Instant::now());
            self.away = true;
            tracing::warn!(
                error,
                "spans not sent; said once a minute, counted in holdfast_spans_dropped_total"
            );
        }
    }
}

/// Whether it may go better the next time (OTLP, "Failures" over HTTP).
fn passes(error: &OutgoingError) -> bool {
    match error {
        OutgoingError::Http(_) | OutgoingError::Status(429 | 502..=504) => true,
        OutgoingError::Status(_)
        | OutgoingError::Read { .. }
        | OutgoingError::Certificates { .. }
        | OutgoingError::Sealed(_)
        | OutgoingError::TooLong(_) => false,
    }
}
