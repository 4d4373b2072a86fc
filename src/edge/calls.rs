//! What a decision asks of others while it is made: how long each took, for the spans of a request that
//! is sampled. Of every other request nothing is timed.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use crate::policy::certificate::SenderCertificate;
use crate::policy::digest::{Sha256, X5tS256};
use crate::policy::epoch::Epoch;
use crate::policy::grant::{BindingRecord, RecordKey};
use crate::policy::time::UnixTime;
use crate::store::bindings::{BindFault, Bindings, Issued};
use crate::store::nonces::{SpendFault, SpentNonces};
use crate::store::replay::{ReplayFault, ReplayLog, Use};
use crate::store::sqlite::Fault;
use crate::store::sqlite::writer::Announced;

/// Calls of one request that are told of.
const MAX_CALLS: usize = 16;

tokio::task_local! {
    static CALLS: Arc<Calls>;
}

/// The calls of one request.
#[derive(Debug)]
pub(super) struct Calls {
    started: Instant,
    made: Mutex<Vec<Call>>,
}

/// One call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    /// What was asked.
    pub(super) what: &'static str,
    /// The database that was (`db.system.name`); `None` for none, or one in memory.
    pub(super) system: Option<&'static str>,
    /// From the beginning of the request to that of the call.
    pub(super) from: Duration,
    /// From there to its end.
    pub(super) to: Duration,
    /// Whether there was no answer.
    pub(super) failed: bool,
}

impl Calls {
    /// None yet, of a request that began then.
    pub(super) fn new(started: Instant) -> Arc<Self> {
        Arc::new(Self { started, made: Mutex::default() })
    }

    /// Those that were made.
    pub(super) fn made(&self) -> Vec<Call> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Awaits what makes calls.
    pub(super) async fn watch<F: Future>(self: Arc<Self>, future: F) -> F::Output {
        CALLS.scope(self, future).await
    }
}

/// Awaits a call, and tells of it where somebody watches.
pub(super) async fn timed<T>(
    what: &'static str,
    system: Option<&'static str>,
    failed: impl FnOnce(&T) -> bool,
    call: impl Future<Output = T>,
) -> T {
    let Ok(calls) = CALLS.try_with(Arc::clone) else { return call.await };
    let from = calls.started.elapsed();
    let answer = call.await;
    let to = calls.started.elapsed();
    let mut made = calls.made.lock().unwrap_or_else(PoisonError::into_inner);
    if made.len() < MAX_CALLS {
        made.push(Call { what, system, from, to, failed: failed(&answer) });
    }
    drop(made);
    answer
}

/// A store whose calls are timed.
#[derive(Clone, Debug)]
pub struct Timed<T: ?Sized> {
    system: Option<&'static str>,
    store: Arc<T>,
}

impl<T: ?Sized> Timed<T> {
    /// Of this database, where it is one.
    #[must_use]
    pub fn new(store: Arc<T>, system: Option<&'static str>) -> Self {
        Self { system, store }
    }
}

#[async_trait]
impl ReplayLog for Timed<dyn ReplayLog> {
    async fn check_and_insert(&self, used: Use<'_>, now: UnixTime) -> Result<(), ReplayFault> {
        let down = |it: &Result<(), ReplayFault>| *it == Err(ReplayFault::Down);
        timed("replay", self.system, down, self.store.check_and_insert(used, now)).await
    }

    fn live(&self) -> usize {
        self.store.live()
    }
}

#[async_trait]
impl SpentNonces for Timed<dyn SpentNonces> {
    async fn spend(&self, nonce: Sha256, epoch: Epoch, now: UnixTime) -> Result<(), SpendFault> {
        let down = |it: &Result<(), SpendFault>| *it == Err(SpendFault::Down);
        timed("nonce", self.system, down, self.store.spend(nonce, epoch, now)).await
    }
}

#[async_trait]
impl Bindings for Timed<dyn Bindings> {
    fn is_up(&self) -> bool {
        self.store.is_up()
    }

    async fn record(&self, key: RecordKey) -> Result<Option<BindingRecord>, Fault> {
        timed("record", self.system, Result::is_err, self.store.record(key)).await
    }

    async fn certificate(&self, x5t: X5tS256) -> Result<Option<SenderCertificate>, Fault> {
        timed("certificate", self.system, Result::is_err, self.store.certificate(x5t)).await
    }

    fn announce(&self) -> Option<Announced> {
        self.store.announce()
    }

    async fn keep(&self, issued: Issued, now: UnixTime) -> Result<(), BindFault> {
        timed("keep", self.system, Result::is_err, self.store.keep(issued, now)).await
    }

    async fn revoke(&self, keys: Vec<RecordKey>, client: Option<String>) -> Result<bool, Fault> {
        timed("revoke", self.system, Result::is_err, self.store.revoke(keys, client)).await
    }
}
