//! How listeners take their leave, so that no client is turned away which did nothing wrong.
//!
//! A client may be about to send when it is told to go: its connection waits in the queue of the
//! socket, or its request is on the way on a connection that is kept open. Once the listeners stop,
//! each answer closes its connection and says so, and what is silent is given some time first.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use pingora::proxy::Session;

/// How long a connection that says nothing is kept once nothing new is accepted: what was sent before
/// its client could know arrives within it, a lost packet included.
pub const SILENCE: Duration = Duration::from_secs(1);

const SERVING: u8 = 0;
const ENDING: u8 = 1;
const SUCCEEDED: u8 = 2;

/// Whether the listeners are to stop, and what becomes of connections that are kept open. All
/// listeners share it.
#[derive(Debug, Default)]
pub struct Leaving(AtomicU8);

impl Leaving {
    /// Begins, before the listeners are told. Where another process has `succeeded` this one, nobody
    /// waits for its end.
    pub fn begin(&self, succeeded: bool) {
        self.0.store(if succeeded { SUCCEEDED } else { ENDING }, Ordering::Release);
    }

    /// Whether each answer from now on is the last of its connection.
    fn has_begun(&self) -> bool {
        self.0.load(Ordering::Acquire) != SERVING
    }

    /// Has the answer say that it is the last of its connection, where each is. What came before that knows
    /// nothing of it yet. To be asked after the answer's nonce was made: one of the next process is of no
    /// use on this connection.
    pub(super) fn take_leave(&self, session: &mut Session) {
        if self.has_begun() {
            session.set_keepalive(None);
        }
    }

    /// How long an idle HTTP/1.1 connection may still bring a request. `None`: until its keepalive or the
    /// drain ends, since to close it sooner could cross a request and saves nothing.
    pub(super) fn idle(&self) -> Option<Duration> {
        (self.0.load(Ordering::Acquire) != SUCCEEDED).then_some(SILENCE)
    }
}
