//! What one request has come to between the phases.

#![expect(clippy::disallowed_methods, reason = "a request has a start and an id")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::believe::Shown;
use super::parts::Parts;
use super::spans::Begun;
use super::stream::Term;
use super::upstream::{Handshake, Target as Server, Use};
use super::view::Target;
use crate::config::Listener;
use crate::gate::{Admitted, Facts};
use crate::policy::denial::Denial;
use crate::policy::proxies::Whence;
use crate::store::sqlite::writer::Announced;

/// One request's state between the phases.
#[derive(Debug)]
pub struct Ctx {
    /// The configuration in force when it came, for as long as it takes.
    pub(super) parts: Arc<Parts>,
    pub(super) listener: usize,
    /// 128 random bits in hexadecimal.
    pub(super) id: String,
    pub(super) started: Instant,
    /// From `started` to the decision.
    pub(super) decided: Duration,
    /// From `started` to the head of the upstream's answer.
    pub(super) answered: Option<Duration>,
    /// What the store is to expect of it.
    pub(super) announced: Option<Announced>,
    /// Where it comes from.
    pub(super) whence: Whence,
    /// The certificate that counts as the sender's.
    pub(super) shown: Shown,
    /// The connection's certificate no longer counts.
    pub(super) withdrawn: bool,
    pub(super) target: Option<Target>,
    pub(super) route: Option<usize>,
    pub(super) origin: Option<usize>,
    pub(super) allow: Vec<String>,
    pub(super) facts: Option<Facts>,
    pub(super) refused: Option<Denial>,
    /// Whether a client came to an authorization server with `Authorization: Basic`.
    pub(super) basic: bool,
    /// What the edge answered itself.
    pub(super) own: Option<super::capsules::Told>,
    pub(super) admitted: Option<Admitted>,
    pub(super) nonce: Option<String>,
    pub(super) turn: Option<usize>,
    /// How long it may go on.
    pub(super) term: Term,
    /// Status of the answer's head; 0 before it.
    pub(super) status: u16,
    /// Whether it was recorded.
    pub(super) told: bool,
    /// Servers that could not be connected to.
    pub(super) tried: Vec<SocketAddr>,
    /// The server of the attempt under way.
    pub(super) server: Option<Arc<Server>>,
    /// The connection to it.
    pub(super) line: Option<Use>,
    /// Of that connection, where the request asks for a WebSocket.
    pub(super) handshake: Option<Arc<Handshake>>,
    /// Interim answers so far.
    pub(super) interim: usize,
    /// The trace that it belongs to, where there are traces.
    pub(super) trace: Option<Box<Begun>>,
    /// From `started` to the request to the upstream.
    pub(super) sent: Option<Duration>,
}

impl Ctx {
    pub(super) fn new(parts: Arc<Parts>, listener: usize) -> Self {
        let mut id = [0; 16];
        // Without randomness nothing here works; an id of zeros is the least of it.
        let _ = aws_lc_rs::rand::fill(&mut id);
        Self {
            parts,
            listener,
            id: format!("{:032x}", u128::from_be_bytes(id)),
            started: Instant::now(),
            decided: Duration::ZERO,
            answered: None,
            announced: None,
            whence: Whence::default(),
            shown: Shown::default(),
            withdrawn: false,
            target: None,
            route: None,
            origin: None,
            allow: Vec::new(),
            facts: None,
            refused: None,
            basic: false,
            own: None,
            admitted: None,
            nonce: None,
            turn: None,
            term: Term::current(),
            status: 0,
            told: false,
            tried: Vec::new(),
            server: None,
            line: None,
            handshake: None,
            interim: 0,
            trace: None,
            sent: None,
        }
    }
    /// The listener that it came in by.
    pub(super) fn listener(&self) -> Option<&Listener> {
        self.parts.listeners.get(self.listener)
    }
}

/// An exchange that is cut sees no further phase; it is told of here.
impl Drop for Ctx {
    fn drop(&mut self) {
        if !self.told {
            self.told = true;
            self.parts.tell(self, self.status);
        }
    }
}
