//! Issuers' key sets: read from a file at start, or fetched and fetched again in the background.
//!
//! The last good set stays in force when a fetch fails. A `kid` that no set has may cause one fetch
//! ahead of time: one at a time, not more often than the cooldown, awaited by a bounded number of
//! requests for a bounded time.

#![expect(clippy::disallowed_methods, reason = "fetches have a schedule, and read files at start")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::config::{Issuer, JwksSource};
use crate::gate::Gate;
use crate::policy::token::{KeySet, KeySetError};
use crate::telemetry::metrics::Metrics;

/// Bytes of a JWK set.
const MAX_BYTES: usize = 256 * 1024;
/// How long a request waits for a fetch.
const WAIT: Duration = Duration::from_millis(500);
/// Requests of one issuer that wait for a fetch at once.
const MAX_WAITERS: usize = 256;
/// The longest pause after a failed fetch.
const MAX_RETRY: Duration = Duration::from_secs(30);

/// Why there is no new key set.
#[derive(Debug, thiserror::Error)]
pub enum JwksError {
    /// A file cannot be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// A file is no key set.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: KeySetError,
    },
    /// The authorities of a URL's server cannot be used.
    #[error("{}: {error}", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: String,
    },
    /// No answer, or no TLS.
    #[error("{0}")]
    Http(String),
    /// An answer other than 200.
    #[error("status {0}")]
    Status(u16),
    /// An answer longer than any key set.
    #[error("longer than {MAX_BYTES} bytes")]
    TooLong,
    /// The answer is no key set.
    #[error(transparent)]
    Set(#[from] KeySetError),
}

impl From<reqwest::Error> for JwksError {
    fn from(error: reqwest::Error) -> Self {
        // The URL may hold what came from the environment.
        let error = error.without_url();
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            text = format!("{text}: {inner}");
            cause = inner.source();
        }
        Self::Http(text)
    }
}

/// How an issuer's keys stand, for `/readyz`.
#[derive(Clone, Debug, Default)]
pub struct KeyStatus {
    /// Whether there is a set.
    pub loaded: bool,
    /// Why the last fetch failed; none when it did not.
    pub error: Option<String>,
}

#[derive(Clone, Debug, Default)]
struct Progress {
    /// Fetches that ended.
    finished: u64,
    /// When the last one started.
    started: Option<Instant>,
    running: bool,
    status: KeyStatus,
}

/// All issuers' key sets.
#[derive(Debug)]
pub struct KeySets {
    gate: Arc<Gate>,
    metrics: Arc<Metrics>,
    sources: Vec<Source>,
}

#[derive(Debug)]
struct Source {
    issuer: String,
    progress: watch::Sender<Progress>,
    fetcher: Option<Fetcher>,
}

#[derive(Debug)]
struct Fetcher {
    client: reqwest::Client,
    url: String,
    refresh: Duration,
    cooldown: Duration,
    asked: Notify,
    waiters: AtomicUsize,
}

impl KeySets {
    /// Reads the sets in files and prepares to fetch the others.
    ///
    /// # Errors
    /// When a file cannot be read or is no key set.
    pub fn new(
        issuers: &[Issuer],
        gate: Arc<Gate>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, JwksError> {
        let mut sources = Vec::with_capacity(issuers.len());
        for (index, issuer) in issuers.iter().enumerate() {
            let mut progress = Progress::default();
            let fetcher = match &issuer.jwks {
                JwksSource::File(path) => {
                    gate.replace_keys(index, read(path)?);
                    progress.status.loaded = true;
                    None
                }
                JwksSource::Url { url, authorities, refresh, timeout, cooldown } => Some(Fetcher {
                    client: client(authorities.as_ref(), *timeout)?,
                    url: url.clone(),
                    refresh: *refresh,
                    cooldown: *cooldown,
                    asked: Notify::new(),
                    waiters: AtomicUsize::new(0),
                }),
            };
            let issuer = issuer.rules.issuer.clone();
            sources.push(Source { issuer, progress: watch::Sender::new(progress), fetcher });
        }
        Ok(Self { gate, metrics, sources })
    }

    /// Each issuer with how its keys stand.
    pub fn status(&self) -> impl Iterator<Item = (&str, KeyStatus)> {
        self.sources
            .iter()
            .map(|source| (source.issuer.as_str(), source.progress.borrow().status.clone()))
    }

    /// Starts a task for each set that is fetched. They end with the runtime.
    pub fn start(self: &Arc<Self>, runtime: &tokio::runtime::Handle) {
        for index in 0..self.sources.len() {
            let sets = Arc::clone(self);
            runtime.spawn(async move { sets.keep_fresh(index).await });
        }
    }

    /// Asks for one fetch of an issuer's set and waits for it, at most half a second. `true` when
    /// one succeeded meanwhile, so that it is worth asking the gate again.
    pub async fn refresh(&self, issuer: usize) -> bool {
        let Some(source) = self.sources.get(issuer) else { return false };
        let Some(fetcher) = &source.fetcher else { return false };
        let mut progress = source.progress.subscribe();
        let before = {
            let now = progress.borrow_and_update();
            if !now.running && fetcher.cooling(&now) {
                return false;
            }
            now.finished
        };
        let Some(_waiter) = Waiter::enter(&fetcher.waiters) else { return false };
        fetcher.asked.notify_one();
        let fetched = progress.wait_for(|now| now.finished > before);
        match tokio::time::timeout(WAIT, fetched).await {
            Ok(Ok(now)) => now.status.error.is_none(),
            Ok(Err(_)) | Err(_) => false,
        }
    }

    async fn keep_fresh(&self, issuer: usize) {
        let Some(source) = self.sources.get(issuer) else { return };
        let Some(fetcher) = &source.fetcher else { return };
        let mut failures = 0;
        loop {
            self.fetch(issuer, source, fetcher).await;
            let failed = source.progress.borrow().status.error.is_some();
            failures = if failed { failures + 1 } else { 0 };
            let pause = tokio::time::sleep(fetcher.pause(failures));
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    () = fetcher.asked.notified() => {
                        if !fetcher.cooling(&source.progress.borrow()) {
                            break;
                        }
                    }
                }
            }
        }
    }

    async fn fetch(&self, issuer: usize, source: &Source, fetcher: &Fetcher) {
        source.progress.send_modify(|progress| {
            progress.running = true;
            progress.started = Some(Instant::now());
        });
        let fetched = fetcher.fetch().await;
        self.metrics.jwks_refreshed(issuer, fetched.is_ok());
        let error = match fetched {
            Ok(keys) => {
                self.gate.replace_keys(issuer, keys);
                None
            }
            Err(error) => {
                tracing::warn!(issuer = source.issuer, %error, "JWK set not fetched");
                Some(error.to_string())
            }
        };
        source.progress.send_modify(|progress| {
            progress.running = false;
            progress.finished += 1;
            progress.status.loaded |= error.is_none();
            progress.status.error = error;
        });
    }
}

impl Fetcher {
    /// Whether the last fetch is too recent for another that an unknown `kid` causes.
    fn cooling(&self, progress: &Progress) -> bool {
        progress.started.is_some_and(|started| started.elapsed() < self.cooldown)
    }

    /// Until the next fetch. A tenth either way, so that edges started together do not stay so.
    fn pause(&self, failures: u32) -> Duration {
        let pause = match failures {
            0 => self.refresh,
            _ => self.refresh.min(MAX_RETRY).min(Duration::from_secs(1 << failures.min(5))),
        };
        let mut random = [0; 1];
        let _ = aws_lc_rs::rand::fill(&mut random);
        let [random] = random;
        pause.mul_f64(0.9 + 0.2 * f64::from(random) / 255.0)
    }

    async fn fetch(&self) -> Result<KeySet, JwksError> {
        let request = self.client.get(&self.url).header("accept", "application/json");
        let mut response = request.send().await?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(JwksError::Status(response.status().as_u16()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > MAX_BYTES {
                return Err(JwksError::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(KeySet::from_json(&body)?)
    }
}

/// One request that waits.
struct Waiter<'a>(&'a AtomicUsize);

impl<'a> Waiter<'a> {
    fn enter(count: &'a AtomicUsize) -> Option<Self> {
        let waiter = (count.fetch_add(1, Ordering::AcqRel), Self(count));
        (waiter.0 < MAX_WAITERS).then_some(waiter.1)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn read(path: &PathBuf) -> Result<KeySet, JwksError> {
    let bytes =
        std::fs::read(path).map_err(|error| JwksError::Read { path: path.clone(), error })?;
    KeySet::from_json(&bytes).map_err(|error| JwksError::File { path: path.clone(), error })
}

/// A client that follows no redirect, takes no proxy from the environment and, where authorities
/// are configured, trusts these alone.
fn client(authorities: Option<&PathBuf>, timeout: Duration) -> Result<reqwest::Client, JwksError> {
    let mut builder = reqwest::Client::builder()
        .tls_backend_rustls()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(timeout)
        .pool_max_idle_per_host(1);
    if let Some(path) = authorities {
        let wrong = |error: String| JwksError::Authorities { path: path.clone(), error };
        let bytes =
            std::fs::read(path).map_err(|error| JwksError::Read { path: path.clone(), error })?;
        let mut trusted = Vec::new();
        for der in CertificateDer::pem_slice_iter(&bytes) {
            let der = der.map_err(|error| wrong(error.to_string()))?;
            trusted.push(reqwest::Certificate::from_der(&der)?);
        }
        if trusted.is_empty() {
            return Err(wrong("no certificate in it".to_owned()));
        }
        builder = builder.tls_certs_only(trusted);
    }
    Ok(builder.build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failed_fetch_does_not_tell_the_url() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        // Port 0 is nobody's.
        let fetcher = Fetcher {
            client: client(None, Duration::from_secs(5)).unwrap(),
            url: "http://127.0.0.1:0/jwks?key=secret".to_owned(),
            refresh: Duration::ZERO,
            cooldown: Duration::ZERO,
            asked: Notify::new(),
            waiters: AtomicUsize::new(0),
        };
        let error = fetcher.fetch().await.unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
