//! A listener: pingora accepts the socket and serves HTTP; what is between is here and in
//! [`accept`](super::accept): the connection limit, who may connect, the handshake under its time
//! limit, and the guard that bounds the time of a request head.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora::apps::ServerApp;
use pingora::protocols::Stream;
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::server::ShutdownWatch;

use super::accept::{Lost, Serving};
use super::leaving::{Leaving, SILENCE};
use super::stream::Bounded;
use crate::telemetry::metrics::{ConnectionLoss, Metrics};

/// How many connections are open, and whether the listener still accepts.
#[derive(Debug, Default)]
pub struct Occupancy {
    live: AtomicUsize,
    closed: AtomicBool,
}

impl Occupancy {
    /// Open connections, handshakes included.
    #[must_use]
    pub fn live(&self) -> usize {
        self.live.load(Ordering::Acquire)
    }

    /// Whether the listener accepts.
    #[must_use]
    pub fn accepting(&self) -> bool {
        !self.closed.load(Ordering::Acquire)
    }
}

/// Makes streams of requests of sockets and hands them to pingora's proxy.
pub struct Front {
    index: usize,
    serving: Arc<ArcSwap<Serving>>,
    /// Proxies of earlier configurations, for as long as connections of theirs live.
    earlier: Mutex<Vec<Weak<Bounded>>>,
    occupancy: Arc<Occupancy>,
    leaving: Arc<Leaving>,
    metrics: Arc<Metrics>,
}

impl Front {
    /// A front for the listener at `index`; what `serving` holds may be replaced.
    #[must_use]
    pub fn new(
        index: usize,
        serving: Arc<ArcSwap<Serving>>,
        leaving: Arc<Leaving>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let earlier = Mutex::default();
        Self { index, serving, earlier, occupancy: Arc::default(), leaving, metrics }
    }

    /// How full the listener is.
    #[must_use]
    pub fn occupancy(&self) -> Arc<Occupancy> {
        Arc::clone(&self.occupancy)
    }

    /// Takes a place, or none is free.
    fn enter(&self, limit: usize) -> Option<Place<'_>> {
        let before = self.occupancy.live.fetch_add(1, Ordering::AcqRel);
        self.metrics.connection_opened(self.index);
        let place = Place(self);
        (before < limit).then_some(place)
    }

    fn count(&self, reason: ConnectionLoss) {
        self.metrics.connection_lost(self.index, reason);
    }

    fn lost(&self, lost: &Lost) {
        if let Some(reason) = lost.reason {
            self.count(reason);
            tracing::debug!(reason = reason.name(), cause = lost.cause, "connection lost");
        }
    }

    /// Keeps hold of a proxy, so that a drain ends its idle connections too.
    fn remember(&self, proxy: &Arc<Bounded>) {
        let mut earlier = self.earlier.lock().unwrap_or_else(PoisonError::into_inner);
        if !earlier.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(proxy))) {
            earlier.retain(|known| known.strong_count() > 0);
            earlier.push(Arc::downgrade(proxy));
        }
    }
}

/// A connection's place in the count.
struct Place<'a>(&'a Front);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.occupancy.live.fetch_sub(1, Ordering::AcqRel);
        self.0.metrics.connection_closed(self.0.index);
    }
}

impl fmt::Debug for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Front").field("index", &self.index).finish_non_exhaustive()
    }
}

#[async_trait]
impl ServerApp for Front {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let serving = self.serving.load_full();
        let Some(_place) = self.enter(serving.limits().connections) else {
            self.count(ConnectionLoss::Full);
            return None;
        };
        let mut socket = stream.into_any().downcast::<L4Stream>().ok()?;
        let begun = tokio::select! {
            biased;
            begun = serving.begun(&mut socket) => begun,
            // One that says nothing keeps nobody from stopping.
            () = stopped(shutdown.clone()) => return None,
        };
        let accepted = match begun {
            Ok(deadline) => serving.accept(*socket, deadline).await,
            Err(lost) => Err(lost),
        };
        let (stream, connection) = match accepted {
            Ok(accepted) => accepted,
            Err(lost) => {
                self.lost(&lost);
                return None;
            }
        };
        self.remember(serving.proxy());
        serving.proxy().process_new(stream, shutdown).await;
        if connection.head.timed_out() {
            self.count(ConnectionLoss::HeadTimeout);
        }
        None
    }

    async fn cleanup(&self) {
        self.occupancy.closed.store(true, Ordering::Release);
        let Some(idle) = self.leaving.idle() else { return };
        tokio::time::sleep(idle).await;
        let proxies: Vec<_> = {
            let earlier = self.earlier.lock().unwrap_or_else(PoisonError::into_inner);
            earlier.iter().filter_map(Weak::upgrade).collect()
        };
        for proxy in proxies {
            ServerApp::cleanup(&*proxy).await;
        }
    }
}

/// Waits until nothing is accepted any more, and what was sent before has come.
async fn stopped(mut shutdown: ShutdownWatch) {
    let _ = shutdown.wait_for(|stopping| *stopping).await;
    tokio::time::sleep(SILENCE).await;
}
