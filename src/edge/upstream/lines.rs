//! The connections to an upstream: counted, and cut where an answer's head does not come.
//!
//! pingora's read timeout on HTTP/1.1 is one of each read, so that a service may trickle a head for
//! as long as it likes. Here a connection has a time by which the whole head must have come.
//!
//! One that is kept and that nobody uses makes room for one that is needed: pingora's pools give it to
//! nobody who needs another server, or a connection of their own.

#![expect(clippy::disallowed_methods, reason = "a connection has a deadline")]

use std::io::ErrorKind;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::pin::pin;
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
use tokio::sync::Notify;

use super::handshake::{Handshake, Patient};

/// The error of a request that would need one more connection than there may be.
pub(super) const FULL: ErrorType = ErrorType::Custom("UpstreamFull");

/// The error of a request that was given a connection which had just made room for another. Nothing was
/// sent.
pub(super) const GONE: ErrorType = ErrorType::Custom("UpstreamGone");
/// In the place of the number of its requests: it has made room.
const NO_MORE: usize = usize::MAX;

/// The open connections to one upstream.
#[derive(Debug)]
pub(super) struct Lines {
    limit: usize,
    open: AtomicUsize,
    left: Notify,
    by_descriptor: DashMap<RawFd, Arc<Line>>,
    started: Instant,
}

/// One open connection.
#[derive(Debug)]
struct Line {
    /// A second handle, so that it can be cut while pingora reads from it.
    socket: TcpStream,
    started: Instant,
    /// Milliseconds since `started`; 0 while nothing is awaited.
    due: AtomicU64,
    cut: AtomicBool,
    /// Requests that use it, or [`NO_MORE`]. The first is the one that it was opened for.
    users: AtomicUsize,
    /// That one has not come yet.
    opening: AtomicBool,
}

/// What a request has of its connection.
#[derive(Debug)]
pub struct Use {
    line: Arc<Line>,
    /// Whether one answer at a time comes on it.
    timed: bool,
}

impl Use {
    /// From now on the head of an answer must come within this time.
    pub fn expect_head(&self, within: Duration) {
        if self.timed {
            let due = self.line.started.elapsed().saturating_add(within);
            self.line.due.store(millis(due).max(1), Ordering::Release);
        }
    }

    /// The head came.
    pub fn head_came(&self) {
        if self.timed {
            self.line.due.store(0, Ordering::Release);
        }
    }

    /// Whether it was cut because no head came.
    pub fn was_cut(&self) -> bool {
        self.line.cut.load(Ordering::Acquire)
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.line.users.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Lines {
    pub(super) fn new(limit: usize) -> Self {
        let (open, left) = (AtomicUsize::new(0), Notify::new());
        Self { limit, open, left, by_descriptor: DashMap::new(), started: Instant::now() }
    }

    /// A request is about to be written on a connection; `None` where that is not one of these.
    ///
    /// # Errors
    /// [`GONE`].
    pub(super) fn used(&self, descriptor: RawFd, timed: bool) -> Result<Option<Use>> {
        let Some(line) = self.by_descriptor.get(&descriptor).map(|line| Arc::clone(&line)) else {
            return Ok(None);
        };
        if !line.opening.swap(false, Ordering::AcqRel) {
            let one_more = |users: usize| (users != NO_MORE).then(|| users + 1);
            let kept = line.users.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
            if kept.is_err() {
                let mut gone = Error::new_up(GONE);
                gone.set_retry(true);
                return Err(gone);
            }
        }
        Ok(Some(Use { line, timed }))
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

    /// A place for one connection more; where there is none, that of one which nobody uses.
    async fn enter(self: &Arc<Self>) -> Result<Place> {
        loop {
            let mut left = pin!(self.left.notified());
            // Before it looks: of two places that are left meanwhile, one would be told of to nobody.
            left.as_mut().enable();
            if let Some(place) = self.place() {
                return Ok(place);
            }
            if !self.makes_room() {
                return Error::e_explain(FULL, "maxConnections");
            }
            left.await;
        }
    }

    fn place(self: &Arc<Self>) -> Option<Place> {
        let one_more = |open: usize| (open < self.limit).then(|| open + 1);
        let open = self.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
        open.is_ok().then(|| Place(Arc::clone(self)))
    }

    /// Closes a connection that nobody uses, if there is one. Its place is free a moment later.
    fn makes_room(&self) -> bool {
        let unused = self.by_descriptor.iter().find(|line| {
            let none = line.users.compare_exchange(0, NO_MORE, Ordering::AcqRel, Ordering::Acquire);
            none.is_ok()
        });
        if let Some(line) = &unused {
            let _ = line.socket.shutdown(Shutdown::Both);
        }
        unused.is_some()
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
        self.0.left.notify_one();
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
        let place = self.lines.enter().await?;
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
            users: AtomicUsize::new(1),
            opening: AtomicBool::new(true),
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// Connections to a listener that takes them, and their descriptors.
    async fn opened(lines: &Arc<Lines>, listener: &std::net::TcpListener) -> (Stream, RawFd) {
        let opener = Opener { lines: Arc::clone(lines), handshake: None };
        let address = listener.local_addr().unwrap();
        let stream = opener.connect(&address.into()).await.unwrap();
        let descriptor = stream.as_raw_fd();
        (stream, descriptor)
    }

    #[tokio::test]
    async fn only_what_nobody_uses_makes_room_and_then_nobody_does() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let lines = Arc::new(Lines::new(1));
        let (stream, descriptor) = opened(&lines, &listener).await;
        assert!(!lines.makes_room(), "it is being opened");
        let first = lines.used(descriptor, true).unwrap();
        let second = lines.used(descriptor, true).unwrap();
        assert!(first.is_some() && second.is_some());
        drop(first);
        assert!(!lines.makes_room(), "one request goes on");
        assert_eq!(lines.enter().await.unwrap_err().etype(), &FULL);
        drop(second);
        assert!(lines.makes_room());
        assert!(!lines.makes_room(), "it has made room already");
        let gone = lines.used(descriptor, true).unwrap_err();
        assert_eq!((gone.etype(), gone.retry()), (&GONE, true));
        assert!(lines.place().is_none(), "it is still open");
        drop(stream);
        assert!(lines.place().is_some());
        assert!(lines.used(descriptor, true).unwrap().is_none());
    }

    #[tokio::test]
    async fn who_needs_a_connection_waits_for_its_place() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let lines = Arc::new(Lines::new(1));
        let (stream, descriptor) = opened(&lines, &listener).await;
        drop(lines.used(descriptor, false).unwrap());
        let entering = tokio::spawn({
            let lines = Arc::clone(&lines);
            async move { lines.enter().await.map(drop) }
        });
        while lines.by_descriptor.iter().any(|line| line.users.load(Ordering::Acquire) == 0) {
            tokio::task::yield_now().await;
        }
        assert!(!entering.is_finished());
        drop(stream);
        assert!(entering.await.unwrap().is_ok());
    }
}
