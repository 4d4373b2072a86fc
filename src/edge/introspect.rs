//! Asks issuers about opaque tokens (RFC 7662).
//!
//! One question a token at a time, however many requests bring it; a bounded number of questions
//! under way and of requests that wait for them, all for a bounded time. What was refused is
//! remembered here for `negativeTtl`, what is vouched for by the gate. An issuer that does not answer
//! is a refusal: its last word is not stretched.

#![expect(clippy::disallowed_methods, reason = "a question outlives the request that puts it")]

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use tokio::sync::{Semaphore, watch};
use zeroize::Zeroizing;

use super::outgoing::{self, OutgoingError, Waiter};
use super::parts::now;
use crate::config::{ClientAuthentication, Introspection, Issuer};
use crate::gate::{Gate, Told};
use crate::policy::denial::Denial;
use crate::policy::digest::Sha256;
use crate::policy::introspection::form_encoded;
use crate::policy::reach::Reach;
use crate::policy::time::UnixTime;
use crate::store::refused::RefusedTokens;
use crate::telemetry::metrics::{IntrospectionResult, Metrics};

/// Bytes of an answer.
const MAX_BYTES: usize = 64 * 1024;
/// Requests of one issuer that wait for an answer at once, and tokens that are asked about.
const MAX_WAITERS: usize = 1024;
const FORM: &str = "application/x-www-form-urlencoded";

/// All issuers that are asked.
#[derive(Debug)]
pub struct Introspectors {
    /// By issuer.
    issuers: Vec<Option<Arc<Introspector>>>,
}

impl Introspectors {
    /// Prepares to ask.
    ///
    /// # Errors
    /// When a certificate cannot be used, or when the edge may not reach a URL.
    pub fn new(
        issuers: &[Issuer],
        reach: &Reach,
        gate: &Arc<Gate>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, OutgoingError> {
        let introspector = |(index, issuer): (usize, &Issuer)| {
            let asking = issuer.introspection.as_ref();
            asking
                .map(|asking| Introspector::new(index, issuer, asking, reach, gate, metrics))
                .transpose()
        };
        let issuers: Result<_, OutgoingError> =
            issuers.iter().enumerate().map(introspector).collect();
        Ok(Self { issuers: issuers? })
    }

    /// What the issuer says of the token: asked now, or of late.
    pub async fn ask(&self, issuer: usize, token: &str) -> Told {
        match self.issuers.get(issuer) {
            Some(Some(introspector)) => introspector.ask(token).await,
            Some(None) | None => unavailable(Sha256::of(token.as_bytes())),
        }
    }

    /// How the last question to an issuer went, for `/readyz`: `None` when it is not asked at all,
    /// an error when it gave no answer.
    #[must_use]
    pub fn status(&self, issuer: usize) -> Option<Option<String>> {
        let introspector = self.issuers.get(issuer)?.as_ref()?;
        Some(introspector.failure.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn unavailable(hash: Sha256) -> Told {
    Told::refused(hash, Denial::IntrospectionUnavailable)
}

/// Why an issuer's answer is none.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Outgoing(#[from] OutgoingError),
    #[error("the answer is signed (RFC 9701), which is not read: have it send application/json")]
    Signed,
    #[error("the answer is no application/json")]
    Type,
    #[error("the answer is no JSON object with a boolean `active`")]
    Malformed,
    #[error("no answer in time")]
    Late,
}

/// The end of a question.
type Flight = watch::Receiver<Option<Told>>;

#[derive(Debug)]
struct Introspector {
    index: usize,
    issuer: String,
    asking: Introspection,
    client: reqwest::Client,
    gate: Arc<Gate>,
    metrics: Arc<Metrics>,
    refused: RefusedTokens,
    /// Questions under way, by the hash of the token.
    flights: Mutex<HashMap<Sha256, Flight>>,
    permits: Semaphore,
    waiters: AtomicUsize,
    failure: Mutex<Option<String>>,
}

impl Introspector {
    fn new(
        index: usize,
        issuer: &Issuer,
        asking: &Introspection,
        reach: &Reach,
        gate: &Arc<Gate>,
        metrics: &Arc<Metrics>,
    ) -> Result<Arc<Self>, OutgoingError> {
        let identity = match &asking.authentication {
            ClientAuthentication::Mtls(files) => Some(files),
            ClientAuthentication::Basic(_) | ClientAuthentication::Post(_) => None,
        };
        let authorities = asking.authorities.as_ref();
        let (way, idle) = (reach.to(&asking.url)?, asking.max_concurrent);
        let client = outgoing::client(&way, authorities, identity, asking.timeout, idle)?;
        Ok(Arc::new(Self {
            index,
            issuer: issuer.rules.issuer.clone(),
            client,
            gate: Arc::clone(gate),
            metrics: Arc::clone(metrics),
            refused: RefusedTokens::new(asking.cache_entries, asking.negative_ttl),
            flights: Mutex::default(),
            permits: Semaphore::new(asking.max_concurrent),
            waiters: AtomicUsize::new(0),
            failure: Mutex::default(),
            asking: asking.clone(),
        }))
    }

    async fn ask(self: &Arc<Self>, token: &str) -> Told {
        let hash = Sha256::of(token.as_bytes());
        let Some(_waiter) = Waiter::enter(MAX_WAITERS, &self.waiters) else {
            return self.busy(hash);
        };
        let mut flight = match self.board(hash, token) {
            Ok(flight) => flight,
            Err(told) => return told,
        };
        // The question itself ends in time; this is for a runtime that does not run it.
        let landed = flight.wait_for(Option::is_some);
        match tokio::time::timeout(self.asking.timeout + Duration::from_secs(1), landed).await {
            Ok(Ok(told)) => told.clone().unwrap_or_else(|| unavailable(hash)),
            Ok(Err(_)) | Err(_) => unavailable(hash),
        }
    }

    /// The question about this token that is under way, or a new one; or what is known of it already.
    fn board(self: &Arc<Self>, hash: Sha256, token: &str) -> Result<Flight, Told> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&hash) {
            return Ok(flight.clone());
        }
        // The last one may have landed since this request was at the gate.
        let now = now();
        if let Some(denial) = self.refused.recall(&hash, now) {
            return Err(Told::refused(hash, denial));
        }
        if let Some(told) = self.gate.told(hash, now) {
            return Err(told);
        }
        if flights.len() >= MAX_WAITERS {
            return Err(self.busy(hash));
        }
        let (landing, flight) = watch::channel(None);
        flights.insert(hash, flight.clone());
        let question = Question { introspector: Arc::clone(self), hash, landing };
        let form = self.form(token);
        tokio::spawn(async move { question.put(form).await });
        Ok(flight)
    }

    fn busy(&self, hash: Sha256) -> Told {
        self.metrics.introspected(self.index, IntrospectionResult::Busy);
        unavailable(hash)
    }

    /// The body of a question.
    fn form(&self, token: &str) -> Zeroizing<String> {
        let token = Zeroizing::new(form_encoded(token));
        let mut form = Zeroizing::new(String::with_capacity(token.len() + 256));
        form.push_str("token=");
        form.push_str(&token);
        form.push_str("&token_type_hint=access_token");
        match &self.asking.authentication {
            ClientAuthentication::Basic(_) => {}
            ClientAuthentication::Mtls(_) => {
                form.push_str("&client_id=");
                form.push_str(&form_encoded(&self.asking.client));
            }
            ClientAuthentication::Post(secret) => {
                form.push_str("&client_id=");
                form.push_str(&form_encoded(&self.asking.client));
                form.push_str("&client_secret=");
                form.push_str(&Zeroizing::new(form_encoded(secret.expose())));
            }
        }
        form
    }

    /// RFC 6749 section 2.3.1: id and secret are form-encoded first.
    fn authorization(&self) -> Option<HeaderValue> {
        let ClientAuthentication::Basic(secret) = &self.asking.authentication else { return None };
        let client = form_encoded(&self.asking.client);
        let pair = Zeroizing::new(format!("{client}:{}", form_encoded(secret.expose())));
        let value = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
        let mut value = HeaderValue::from_str(&value).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    async fn call(&self, form: &str) -> Result<Vec<u8>, AskError> {
        let request = self.client.post(&self.asking.url);
        let request = request.header(CONTENT_TYPE, FORM).header(ACCEPT, "application/json");
        let request = match self.authorization() {
            Some(value) => request.header(AUTHORIZATION, value),
            None => request,
        };
        let response = request.body(form.to_owned()).send().await.map_err(OutgoingError::from)?;
        let media = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media = media.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        let media = media.to_ascii_lowercase();
        let body = outgoing::body(response, MAX_BYTES).await?;
        match media.as_str() {
            "application/json" => Ok(body),
            "application/token-introspection+jwt" => Err(AskError::Signed),
            _ => Err(AskError::Type),
        }
    }

    fn note(&self, failed: Option<&AskError>) {
        let error = failed.map(ToString::to_string);
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if *failure == error {
            return;
        }
        match &error {
            Some(error) => tracing::warn!(issuer = self.issuer, error, "introspection failed"),
            None => tracing::info!(issuer = self.issuer, "introspection works again"),
        }
        *failure = error;
    }
}

/// A question under way. However it ends, those who wait are told.
struct Question {
    introspector: Arc<Introspector>,
    hash: Sha256,
    landing: watch::Sender<Option<Told>>,
}

impl Question {
    async fn put(self, form: Zeroizing<String>) {
        let asker = &self.introspector;
        let limit = tokio::time::Instant::now() + asker.asking.timeout;
        // A question that is put with no time left to answer it is a burden to nobody's use.
        let place = tokio::time::timeout(asker.asking.timeout / 2, asker.permits.acquire());
        let told = match place.await {
            Ok(Ok(_permit)) => {
                let asked = now();
                let called = tokio::time::timeout_at(limit, asker.call(&form)).await;
                let called = called.unwrap_or(Err(AskError::Late));
                self.judge(called, asked)
            }
            Ok(Err(_)) | Err(_) => asker.busy(self.hash),
        };
        self.land(told);
    }

    fn judge(&self, called: Result<Vec<u8>, AskError>, asked: UnixTime) -> Told {
        let (asker, hash) = (&self.introspector, self.hash);
        let told = called.map(|body| asker.gate.judge(asker.index, hash, &body, asked));
        let told = told.and_then(|told| {
            let read = told.denial() != Some(Denial::IntrospectionUnavailable);
            read.then_some(told).ok_or(AskError::Malformed)
        });
        asker.note(told.as_ref().err());
        let Ok(told) = told else {
            asker.metrics.introspected(asker.index, IntrospectionResult::Failed);
            return unavailable(hash);
        };
        if let Some(denial) = told.denial() {
            asker.refused.remember(hash, denial, asked);
        }
        let result = match told.denial() {
            None => IntrospectionResult::Active,
            Some(Denial::TokenInactive) => IntrospectionResult::Inactive,
            Some(_) => IntrospectionResult::Refused,
        };
        asker.metrics.introspected(asker.index, result);
        told
    }

    fn land(self, told: Told) {
        self.landing.send_replace(Some(told));
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        let mut flights = self.introspector.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.remove(&self.hash);
    }
}
