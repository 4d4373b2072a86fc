//! A stream with a clock on request heads, and one on writes. pingora bounds each read, which lets a
//! client trickle a head for ever, and of the writes only those of an answer's body: who asks for heads
//! and reads none of them kept a connection here, and one at the service, for as long as it liked.

use std::fmt;
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::{SslDigest, TlsRef};
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, IO, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::connection::{self, Connection};

/// Bytes of the HTTP/2 client preface (RFC 9113 section 3.4). After it, HTTP/2's own idle limit
/// bounds a connection without streams.
pub(super) const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Times request heads. The proxy says where a connection stands, the guard acts on it.
#[derive(Debug)]
pub struct HeadClock {
    phase: AtomicU8,
    limit: Duration,
    /// A head took too long.
    timed_out: AtomicBool,
}

/// A head is being awaited or read: the clock runs.
const HEAD: u8 = 0;
/// A request is being served: no clock.
const SERVING: u8 = 1;
/// Between two requests of an HTTP/1 connection: the clock starts with the next byte.
const IDLE: u8 = 2;

impl HeadClock {
    pub(super) fn new(limit: Duration) -> Self {
        Self { phase: AtomicU8::new(HEAD), limit, timed_out: AtomicBool::new(false) }
    }

    /// Whether the connection ended because a head took too long.
    pub(super) fn timed_out(&self) -> bool {
        self.timed_out.load(Ordering::Acquire)
    }

    /// The head is complete.
    pub fn stop(&self) {
        self.phase.store(SERVING, Ordering::Release);
    }

    /// The answer is complete: the next byte begins a head.
    pub fn rest(&self) {
        self.phase.store(IDLE, Ordering::Release);
    }
}

/// A stream with a clock on request heads and one on writes, and the facts of its connection.
pub(super) struct Guarded<S> {
    stream: S,
    connection: Arc<Connection>,
    /// How pingora carries the facts to where a request is served.
    carried: Option<Arc<ProxyDigest>>,
    alarm: Pin<Box<Sleep>>,
    /// How long a write may make no way.
    patience: Duration,
    /// Made with the first write that has to wait.
    stalled: Option<Pin<Box<Sleep>>>,
    /// A write waits.
    waiting: bool,
    h2: bool,
    /// Bytes of the preface still to come; 0 on HTTP/1.
    preface: usize,
}

impl<S: IO> Guarded<S> {
    /// Guards `stream`, on which HTTP/2 was agreed or begun if `h2`. The first head is awaited from
    /// `since` on.
    pub(super) fn new(
        stream: S,
        connection: Arc<Connection>,
        h2: bool,
        since: Instant,
        patience: Duration,
    ) -> Self {
        let alarm = Box::pin(tokio::time::sleep_until(since + connection.head.limit));
        let preface = if h2 { H2_PREFACE.len() } else { 0 };
        let carried = connection::carry(&connection);
        let (stalled, waiting) = (None, false);
        Self { stream, connection, carried, alarm, patience, stalled, waiting, h2, preface }
    }

    /// What becomes of a write: an error where it has made no way for too long.
    fn written<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.waiting = false;
            return write;
        }
        let end = Instant::now() + self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        if !self.waiting {
            self.waiting = true;
            stalled.as_mut().reset(end);
        }
        stalled.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Whether the time of the head under way is over; wakes the task when it will be.
    fn overdue(&mut self, cx: &mut Context<'_>) -> bool {
        if self.connection.head.phase.load(Ordering::Acquire) != HEAD {
            return false;
        }
        let overdue = self.alarm.as_mut().poll(cx).is_ready();
        if overdue {
            self.connection.head.timed_out.store(true, Ordering::Release);
        }
        overdue
    }

    fn received(&mut self, bytes: usize) {
        if self.preface > 0 {
            self.preface = self.preface.saturating_sub(bytes);
            if self.preface == 0 {
                self.connection.head.stop();
            }
        } else if bytes > 0
            && self
                .connection
                .head
                .phase
                .compare_exchange(IDLE, HEAD, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        {
            self.alarm.as_mut().reset(Instant::now() + self.connection.head.limit);
        }
    }
}

impl<S: IO> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.overdue(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = &read {
            self.received(buf.filled().len() - before);
        }
        read
    }
}

impl<S: IO> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(cx, write)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let write = Pin::new(&mut self.stream).poll_flush(cx);
        self.written(cx, write)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let write = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.written(cx, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(cx, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl<S: IO> fmt::Debug for Guarded<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("connection", &self.connection).finish_non_exhaustive()
    }
}

#[async_trait]
impl<S: IO> Shutdown for Guarded<S> {
    async fn shutdown(&mut self) {
        Shutdown::shutdown(&mut self.stream).await;
    }
}

impl<S: IO> UniqueID for Guarded<S> {
    fn id(&self) -> UniqueIDType {
        self.stream.id()
    }
}

impl<S: IO> Ssl for Guarded<S> {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.stream.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        if self.h2 { Some(ALPN::H2) } else { self.stream.selected_alpn_proto() }
    }
}

impl<S: IO> GetTimingDigest for Guarded<S> {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.stream.get_timing_digest()
    }
}

impl<S: IO> GetProxyDigest for Guarded<S> {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.carried.clone()
    }
}

impl<S: IO> GetSocketDigest for Guarded<S> {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream.get_socket_digest()
    }
}

impl<S: IO> Peek for Guarded<S> {}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(200);

    fn guarded(stream: DuplexStream) -> Guarded<DuplexStream> {
        let connection = Arc::new(Connection {
            peer: None,
            source: crate::policy::proxy_header::Source::Socket,
            tls: None,
            hands_on: AtomicBool::new(false),
            head: HeadClock::new(Duration::from_secs(60)),
            exchanges: super::super::stream::Exchanges::default(),
        });
        Guarded::new(stream, connection, false, Instant::now(), PATIENCE)
    }

    #[tokio::test]
    async fn a_write_that_makes_no_way_fails() {
        let (near, far) = tokio::io::duplex(4);
        let mut near = guarded(near);
        near.write_all(b"four").await.unwrap();
        assert_eq!(near.write_all(b"more").await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(far);
    }

    #[tokio::test]
    async fn one_that_makes_some_may_take_long() {
        let (near, mut far) = tokio::io::duplex(4);
        let mut near = guarded(near);
        let reading = async {
            let mut read = [0; 4];
            for _ in 0..5 {
                tokio::time::sleep(PATIENCE / 2).await;
                far.read_exact(&mut read).await.unwrap();
            }
        };
        let began = Instant::now();
        let (written, ()) = tokio::join!(near.write_all(&[0; 20]), reading);
        written.unwrap();
        assert!(began.elapsed() > PATIENCE);
    }
}
