//! One server in use: its connections, who it is, and whether it is worth asking.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::{Pipeline, ServerError, Value};
use tokio::sync::Notify;

use super::Fault;
use super::clock::{Clock, Reading};
use super::commit::{Commits, TooFew};
use super::inspect::Identity;
use super::link::Link;
use super::settings::Address;

/// Answers that did not come, one after another, until no more is asked.
const MISSES: u32 = 3;

/// A master that is in use. The circuit breaker is here: [`Server::trip`] opens it, and only a
/// [`Server`] that the supervisor has connected anew stands in its place.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) address: Address,
    pub(super) identity: Identity,
    link: Link,
    /// Where writes wait for replicas.
    commits: Option<Commits>,
    timeout: Duration,
    /// Whether requests are sent to it.
    open: AtomicBool,
    misses: AtomicU32,
    /// Whether it may have lost some of what it keeps, without being another one.
    forgets: AtomicBool,
    /// Its clock, as it was read so far.
    clock: Mutex<Clock>,
    /// Why it takes no writes though it answers.
    trouble: Mutex<Option<String>>,
    /// Wakes the supervisor.
    look: Arc<Notify>,
}

impl Server {
    pub(super) fn new(
        address: Address,
        (identity, clock): (Identity, Clock),
        link: Link,
        commits: Option<Commits>,
        timeout: Duration,
        look: Arc<Notify>,
    ) -> Self {
        let (open, forgets) = (AtomicBool::new(true), AtomicBool::new(false));
        let (misses, trouble, clock) = (AtomicU32::new(0), Mutex::default(), Mutex::new(clock));
        Self {
            address,
            identity,
            link,
            commits,
            timeout,
            open,
            misses,
            forgets,
            clock,
            trouble,
            look,
        }
    }

    /// Takes note of its clock; by how much that was set forward, if it was.
    pub(super) fn set_clock(&self, reading: Reading) -> Option<Duration> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner).leaps(reading)
    }

    /// Its clock, for who is connected to it anew.
    pub(super) fn clock(&self) -> Clock {
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it may have lost some of what it keeps, without being another one.
    pub(super) fn forgets(&self) -> bool {
        self.forgets.load(Ordering::Acquire)
    }

    /// [`Server::trip`] for one that may have lost some of what it keeps: its marks are not gone on from.
    pub(super) fn disown(&self, why: &str) {
        if !self.forgets.swap(true, Ordering::AcqRel) && !self.is_open() {
            tracing::warn!(server = %self.address, why, "redis may have lost something");
        }
        self.trip(why);
    }

    /// Whether requests are sent to it.
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Whether it answers, and takes writes.
    pub(super) fn is_up(&self) -> bool {
        self.is_open() && self.trouble().is_none()
    }

    /// Why it takes no writes.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// Sends nothing more to it, and has the supervisor look for who is there now.
    pub(super) fn trip(&self, why: &str) {
        if self.open.swap(false, Ordering::AcqRel) {
            tracing::warn!(server = %self.address, why, "requests to redis are refused");
        }
        self.look.notify_one();
    }

    /// Sends once.
    ///
    /// # Errors
    /// [`Fault::Down`] where nobody knows what the server did, or it is not the one to ask any more.
    pub(super) async fn send(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Fault> {
        if !self.is_open() {
            return Err(Fault::Down);
        }
        let answers = self.link.send(pipeline, self.timeout).await;
        self.weigh(answers)
    }

    /// [`Server::send`] for what is looked at each second: one that may not be looked at is not used.
    ///
    /// # Errors
    /// As [`Server::send`].
    pub(super) async fn look(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Fault> {
        if !self.is_open() {
            return Err(Fault::Down);
        }
        let answers = self.link.send(pipeline, self.timeout).await;
        let forbids = |answer: &Value| matches!(answer, Value::ServerError(error) if error.code() == "NOPERM");
        if answers.iter().flatten().any(forbids) {
            self.trip("its user may not ask any more who the server is and what time it is");
            return Err(Fault::Down);
        }
        self.weigh(answers)
    }

    /// [`Server::send`] for what counts only when enough replicas have it.
    pub(super) async fn commit(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Fault> {
        let Some(commits) = &self.commits else { return self.send(pipeline).await };
        if !self.is_open() {
            return Err(Fault::Down);
        }
        let answers = match commits.send(pipeline).await {
            Some(Err(TooFew)) => {
                self.set_trouble(Some("too few replicas have what is written".to_owned()));
                return Err(Fault::Down);
            }
            Some(Ok(answers)) => Some(answers),
            None => None,
        };
        self.weigh(answers)
    }

    fn weigh(&self, answers: Option<Vec<Value>>) -> Result<Vec<Value>, Fault> {
        let Some(answers) = answers else {
            if self.link.ended() || self.commits.as_ref().is_some_and(Commits::ended) {
                self.trip("the connection has ended");
            } else if self.misses.fetch_add(1, Ordering::AcqRel) + 1 >= MISSES {
                self.trip("answers did not come in time");
            }
            return Err(Fault::Down);
        };
        if self.misses.load(Ordering::Relaxed) != 0 {
            self.misses.store(0, Ordering::Release);
        }
        let errors = answers.iter().filter_map(|answer| match answer {
            Value::ServerError(error) => Some(error),
            _ => None,
        });
        for error in errors {
            self.judge(error)?;
        }
        Ok(answers)
    }

    /// What an error says of the server; what it says of a command alone is left to who sent that.
    fn judge(&self, error: &ServerError) -> Result<(), Fault> {
        match error.code() {
            "READONLY" => self.trip("the server is a replica now"),
            "NOAUTH" | "WRONGPASS" => self.trip("the server asks for a password"),
            "CLUSTERDOWN" => self.trip("its Cluster is down, or it is cut off from it"),
            // The slots have moved: this server is still the one for the others.
            "MOVED" | "ASK" | "TRYAGAIN" => self.look.notify_one(),
            "OOM" => {
                self.set_trouble(Some("maxmemory is reached".to_owned()));
                return Err(Fault::Full);
            }
            // Which right is missing is said in the rest of it.
            code @ "NOPERM" => {
                let rest = error.details().unwrap_or_default();
                self.set_trouble(Some(format!("{code} {rest}")));
            }
            code @ ("LOADING" | "MASTERDOWN" | "NOREPLICAS" | "MISCONF" | "BUSY"
            | "NOGOODSLAVE") => {
                self.set_trouble(Some(code.to_owned()));
            }
            _ => return Ok(()),
        }
        Err(Fault::Down)
    }
}
