//! Issuers' key sets: read from a file at start, or fetched and fetched again in the background.
//!
//! The last good set stays in force when a fetch fails. A `kid` that no set has may cause one fetch
//! ahead of time: one at a time, not more often than the cooldown, awaited by a bounded number of
//! requests for a bounded time.

#![expect(clippy::disallowed_methods, reason = "fetches are spread by chance")]

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::outgoing::{self, OutgoingError, Waiter};
use crate::config::{Issuer, JwksSource};
use crate::gate::Gate;
use crate::policy::reach::Reach;
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
    /// A file is no key set.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: KeySetError,
    },
    /// No client for a URL, or no answer.
    #[error(transparent)]
    Outgoing(#[from] OutgoingError),
    /// The answer is no key set.
    #[error(transparent)]
    Set(#[from] KeySetError),
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
    /// When the last one ended.
    ended: Option<Instant>,
    running: bool,
    /// The last good set.
    keys: Option<KeySet>,
    error: Option<String>,
}

/// All issuers' key sets. Dropping them ends their fetches.
#[derive(Debug)]
pub struct KeySets {
    /// By issuer.
    sources: Vec<Arc<Source>>,
    tasks: Mutex<Vec<AbortHandle>>,
}

#[derive(Debug)]
struct Source {
    /// The issuer's index.
    index: usize,
    issuer: String,
    gate: Arc<Gate>,
    metrics: Arc<Metrics>,
    progress: watch::Sender<Progress>,
    /// Whether the issuer has keys at all.
    needed: bool,
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
    /// Reads the sets in files and prepares to fetch the others. Where `previous` fetched an issuer's
    /// set from the same URL, its last good one is in force until there is a newer one.
    ///
    /// # Errors
    /// When a file cannot be read or is no key set, or when the edge may not reach a URL.
    pub fn new(
        issuers: &[Issuer],
        reach: &Reach,
        gate: &Arc<Gate>,
        metrics: &Arc<Metrics>,
        previous: Option<&Self>,
    ) -> Result<Self, JwksError> {
        let mut sources = Vec::with_capacity(issuers.len());
        for (index, issuer) in issuers.iter().enumerate() {
            let mut progress = Progress::default();
            let mut fetcher = None;
            match &issuer.jwks {
                None => {}
                Some(JwksSource::File(path)) => progress.keys = Some(read(path)?),
                Some(JwksSource::Url { url, authorities, refresh, timeout, cooldown }) => {
                    let before = previous.and_then(|sets| sets.of(&issuer.rules.issuer, url));
                    progress = before.unwrap_or_default();
                    let way = reach.to(url).map_err(OutgoingError::from)?;
                    fetcher = Some(Fetcher {
                        client: outgoing::client(&way, authorities.as_ref(), None, *timeout, 1)?,
                        url: url.clone(),
                        refresh: *refresh,
                        cooldown: *cooldown,
                        asked: Notify::new(),
                        waiters: AtomicUsize::new(0),
                    });
                }
            }
            if let Some(keys) = &progress.keys {
                gate.replace_keys(index, keys.clone());
            }
            sources.push(Arc::new(Source {
                index,
                issuer: issuer.rules.issuer.clone(),
                gate: Arc::clone(gate),
                metrics: Arc::clone(metrics),
                progress: watch::Sender::new(progress),
                needed: issuer.jwks.is_some(),
                fetcher,
            }));
        }
        Ok(Self { sources, tasks: Mutex::default() })
    }

    /// How far an issuer's set from this URL has come.
    fn of(&self, issuer: &str, url: &str) -> Option<Progress> {
        let same = |source: &&Arc<Source>| {
            let fetched = source.fetcher.as_ref().is_some_and(|fetcher| fetcher.url == url);
            fetched && source.issuer == issuer
        };
        let progress = self.sources.iter().find(same)?.progress.borrow().clone();
        Some(Progress { running: false, ..progress })
    }

    /// Each issuer with how its keys stand.
    pub fn status(&self) -> impl Iterator<Item = (&str, KeyStatus)> {
        self.sources.iter().map(|source| {
            let progress = source.progress.borrow();
            let loaded = progress.keys.is_some() || !source.needed;
            (source.issuer.as_str(), KeyStatus { loaded, error: progress.error.clone() })
        })
    }

    /// Starts a task for each set that is fetched. They end with the runtime, or with these sets.
    pub fn start(&self, runtime: &tokio::runtime::Handle) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        for source in self.sources.iter().filter(|source| source.fetcher.is_some()) {
            let source = Arc::clone(source);
            let task = runtime.spawn(async move { source.keep_fresh().await });
            tasks.push(task.abort_handle());
        }
    }

    /// Asks for one fetch of an issuer's set and waits for it, at most half a second. `true` when
    /// one succeeded meanwhile, or just before, so that it is worth asking the gate again.
    pub async fn refresh(&self, issuer: usize) -> bool {
        let Some(source) = self.sources.get(issuer) else { return false };
        let Some(fetcher) = &source.fetcher else { return false };
        let mut progress = source.progress.subscribe();
        let before = {
            let now = progress.borrow_and_update();
            if !now.running && fetcher.cooling(&now) {
                // It may have ended since the gate looked for the key.
                return now.error.is_none() && now.ended.is_some_and(|end| end.elapsed() < WAIT);
            }
            now.finished
        };
        let Some(_waiter) = Waiter::enter(MAX_WAITERS, &fetcher.waiters) else { return false };
        fetcher.asked.notify_one();
        let fetched = progress.wait_for(|now| now.finished > before);
        match tokio::time::timeout(WAIT, fetched).await {
            Ok(Ok(now)) => now.error.is_none(),
            Ok(Err(_)) | Err(_) => false,
        }
    }
}

impl Drop for KeySets {
    fn drop(&mut self) {
        for task in self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

impl Source {
    async fn keep_fresh(&self) {
        let Some(fetcher) = &self.fetcher else { return };
        let mut failures = 0;
        loop {
            self.fetch(fetcher).await;
            let failed = self.progress.borrow().error.is_some();
            failures = if failed { failures + 1 } else { 0 };
            let pause = tokio::time::sleep(fetcher.pause(failures));
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    () = fetcher.asked.notified() => {
                        if !fetcher.cooling(&self.progress.borrow()) {
                            break;
                        }
                    }
                }
            }
        }
    }

    async fn fetch(&self, fetcher: &Fetcher) {
        self.progress.send_modify(|progress| {
            progress.running = true;
            progress.started = Some(Instant::now());
        });
        let fetched = fetcher.fetch().await;
        self.metrics.jwks_refreshed(self.index, fetched.is_ok());
        if let Ok(keys) = &fetched {
            self.gate.replace_keys(self.index, keys.clone());
        }
        let error = fetched.as_ref().err().map(ToString::to_string);
        if let Some(error) = &error {
            tracing::warn!(issuer = self.issuer, error, "JWK set not fetched");
        }
        self.progress.send_modify(|progress| {
            progress.running = false;
            progress.finished += 1;
            progress.ended = Some(Instant::now());
            progress.keys = fetched.ok().or(progress.keys.take());
            progress.error = error;
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
        let response = request.send().await.map_err(OutgoingError::from)?;
        Ok(KeySet::from_json(&outgoing::body(response, MAX_BYTES).await?)?)
    }
}

fn read(path: &Path) -> Result<KeySet, JwksError> {
    let bytes = outgoing::read(path)?;
    let set = KeySet::from_json(&bytes);
    set.map_err(|error| JwksError::File { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failed_fetch_does_not_tell_the_url() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        // Port 0 is nobody's.
        let url = "http://127.0.0.1:0/jwks?key=secret";
        let way = Reach::of(false).to(url).unwrap();
        let fetcher = Fetcher {
            client: outgoing::client(&way, None, None, Duration::from_secs(5), 1).unwrap(),
            url: url.to_owned(),
            refresh: Duration::ZERO,
            cooldown: Duration::ZERO,
            asked: Notify::new(),
            waiters: AtomicUsize::new(0),
        };
        let error = fetcher.fetch().await.unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
