//! The connection of a WebSocket, whose answer waits for the end of the request.
//!
//! Where pingora has read the `101` before it has passed on that the handshake's body, which is empty,
//! is at its end, it takes that for the end of the WebSocket, and closes it as soon as it is open
//! (cloudflare/pingora#946). A service that answers at once is enough, and a thread that has to wait for
//! a processor. So nothing is read from here until pingora has passed it on.

use std::io;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderName, Method};
use pingora::http::RequestHeader;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket};
use pingora::proxy::Session;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Everything passes.
const OPEN: u8 = 0;
/// Nothing is read.
const HELD: u8 = 1;
/// Nothing is read, until what was written is flushed.
const ENDING: u8 = 2;

/// What keeps an answer waiting, for one attempt of one request.
#[derive(Debug)]
pub struct Handshake {
    state: AtomicU8,
    reader: Mutex<Option<Waker>>,
    descriptor: AtomicI32,
}

impl Handshake {
    /// What a request for a WebSocket needs; `None` for any other. A handshake is a GET (RFC 6455 section
    /// 4.1), without a body. Whoever sends `Upgrade` without its option in `Connection` only passes it
    /// on (RFC 9110 section 7.8) and would not know that the connection is no longer one of HTTP.
    pub fn of(session: &mut Session) -> Option<Arc<Self>> {
        let head = session.req_header();
        let asks = session.is_upgrade_req()
            && head.method == Method::GET
            && says(&head.headers, &CONNECTION, b"upgrade")
            && says(&head.headers, &UPGRADE, b"websocket")
            && session.is_body_empty();
        asks.then(|| {
            let (state, descriptor) = (AtomicU8::new(OPEN), AtomicI32::new(-1));
            Arc::new(Self { state, reader: Mutex::default(), descriptor })
        })
    }

    /// From now on nothing is read: the head of the request is written next.
    pub fn hold(&self) {
        self.state.store(HELD, Ordering::Release);
    }

    /// The next thing that pingora passes on is the end of the request.
    pub fn ends(&self) {
        let _ = self.state.compare_exchange(HELD, ENDING, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The descriptor of its connection, which pingora does not know.
    pub fn descriptor(&self) -> RawFd {
        self.descriptor.load(Ordering::Acquire)
    }

    pub(super) fn is_connected(&self, descriptor: RawFd) {
        self.descriptor.store(descriptor, Ordering::Release);
    }

    fn is_passed_on(&self) {
        let passed = self.state.compare_exchange(ENDING, OPEN, Ordering::AcqRel, Ordering::Acquire);
        if passed.is_ok()
            && let Some(reader) = self.reader().take()
        {
            reader.wake();
        }
    }

    fn is_waiting(&self, cx: &Context<'_>) -> bool {
        if self.state.load(Ordering::Acquire) == OPEN {
            return false;
        }
        *self.reader() = Some(cx.waker().clone());
        // It may have been passed on before the waker was there.
        self.state.load(Ordering::Acquire) != OPEN
    }

    fn reader(&self) -> std::sync::MutexGuard<'_, Option<Waker>> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a field's list has this word.
fn says(fields: &HeaderMap, name: &HeaderName, word: &[u8]) -> bool {
    let values = fields.get_all(name).iter();
    let mut words = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    words.any(|one| one.trim_ascii().eq_ignore_ascii_case(word))
}

/// Leaves the wish for another protocol out of a request, as any recipient may (RFC 9110 section 7.8).
pub fn without_wish(request: &mut RequestHeader) {
    if request.remove_header(&UPGRADE).is_some() {
        request.remove_header(&CONNECTION);
    }
}

/// A connection that is read when its handshake lets it.
#[derive(Debug)]
pub(super) struct Patient {
    pub(super) socket: TcpStream,
    pub(super) handshake: Arc<Handshake>,
}

impl VirtualSocket for Patient {
    fn set_socket_option(&self, option: VirtualSockOpt) -> io::Result<()> {
        if !matches!(option, VirtualSockOpt::NoDelay) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.socket.set_nodelay(true)
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.handshake.is_waiting(cx) {
            return Poll::Pending;
        }
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(cx);
        if flushed.is_ready() {
            self.handshake.is_passed_on();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
