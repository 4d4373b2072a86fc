//! The connections to an upstream: counted, and cut where an answer's head does not come.
//!
//! pingora's read timeout on HTTP/1.1 is one of each read, so that a service may trickle a head for
//! as long as it likes. Here a connection has a time by which the whole head must have come.

#![expect(clippy::disallowed_methods, reason = "a connection has a deadline")]

use std::io::ErrorKind;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use dashmap::DashMap;
use pingora::connectors::L4Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::VirtualSocketStream;
use pingora::upstreams::peer::{Tracer, Tracing};
use pingora::{Error, ErrorType, Result};

use super::handshake::{Handshake, Patient};

/// The error of a request that would need one more connection than there may be.
pub(super) const FULL: ErrorType = ErrorType::Custom("UpstreamFull");

/// The open connections to one upstream.
#[derive(Debug)]
pub(super) struct Lines {
    limit: usize,
    open: AtomicUsize,
    by_descriptor: DashMap<RawFd, Arc<Line>>,
    started: Instant,
}

/// One open connection.
#[derive(Debug)]
pub struct Line {
    /// A second handle, so that it can be cut while pingora reads from it.
    socket: TcpStream,
    started: Instant,
    /// Milliseconds since `started`; 0 while nothing is awaited.
    due: AtomicU64,
    cut: AtomicBool,
}

impl Line {
    /// From now on the head of an answer must come within this time.
    pub fn expect_head(&self, within: Duration) {
        let due = self.started.elapsed().saturating_add(within);
        self.due.store(millis(due).max(1), Ordering::Release);
    }

    /// The head came.
    pub fn head_came(&self) {
        self.due.store(0, Ordering::Release);
    }

    /// Whether it was cut because no head came.
    pub fn was_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }
}

impl Lines {
    pub(super) fn new(limit: usize) -> Self {
        let (open, by_descriptor) = (AtomicUsize::new(0), DashMap::new());
        Self { limit, open, by_descriptor, started: Instant::now() }
    }

    pub(super) fn of(&self, descriptor: RawFd) -> Option<Arc<Line>> {
        self.by_descriptor.get(&descriptor).map(|line| Arc::clone(&line))
    }

    /// Cuts what is overdue.
    pub(super) fn cut_overdue(&self) {
        let now = millis(self.started.elapsed());
        for line in &self.by_descriptor {
            let due = line.due.load(Ordering::Acquire);
            if due != 0 && due <= now && !line.cut.swap(true, Ordering::AcqRel) {
                let _ = line.socket.shutdown(Shutdown::Both);
            }
        }
    }

    fn enter(self: &Arc<Self>) -> Result<Place> {
        let place = (self.open.fetch_add(1, Ordering::AcqRel), Place(Arc::clone(self)));
        if place.0 < self.limit { Ok(place.1) } else { Error::e_explain(FULL, "maxConnections") }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A connection's place among those that may be open.
#[derive(Debug)]
struct Place(Arc<Lines>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What pingora opens connections with.
#[derive(Debug)]
pub(super) struct Opener {
    pub(super) lines: Arc<Lines>,
    /// Of the one request that the connection is for.
    pub(super) handshake: Option<Arc<Handshake>>,
}

#[async_trait]
impl L4Connect for Opener {
    async fn connect(&self, address: &SocketAddr) -> Result<Stream> {
        let place = self.lines.enter()?;
        let Some(address) = address.as_inet() else {
            return Error::e_explain(ErrorType::ConnectError, "not an IP address");
        };
        let unconnected = |error: std::io::Error| {
            let kind = if error.kind() == ErrorKind::ConnectionRefused {
                ErrorType::ConnectRefused
            } else {
                ErrorType::ConnectError
            };
            Error::because(kind, "connecting", error)
        };
        let socket = tokio::net::TcpStream::connect(address).await.map_err(unconnected)?;
        let second = socket.as_fd().try_clone_to_owned().map_err(unconnected)?;
        let descriptor = socket.as_raw_fd();
        let line = Line {
            socket: TcpStream::from(second),
            started: self.lines.started,
            due: AtomicU64::new(0),
            cut: AtomicBool::new(false),
        };
        self.lines.by_descriptor.insert(descriptor, Arc::new(line));
        let mut stream = match &self.handshake {
            None => Stream::from(socket),
            Some(handshake) => {
                handshake.is_connected(descriptor);
                let handshake = Arc::clone(handshake);
                Stream::from(VirtualSocketStream::new(Box::new(Patient { socket, handshake })))
            }
        };
        stream.tracer = Some(Tracer(Box::new(Open { place: Arc::new(place), descriptor })));
        Ok(stream)
    }
}

/// Goes with an open connection.
#[derive(Clone, Debug)]
struct Open {
    place: Arc<Place>,
    descriptor: RawFd,
}

impl Tracing for Open {
    fn on_connected(&self) {}

    /// Called before the descriptor is closed, so that it is not another connection's yet.
    fn on_disconnected(&self) {
        self.place.0.by_descriptor.remove(&self.descriptor);
    }

    fn boxed_clone(&self) -> Box<dyn Tracing> {
        Box::new(self.clone())
    }
}
