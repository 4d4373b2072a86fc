//! From a socket to a stream of requests: who may connect, whom the PROXY header names, TLS or none,
//! HTTP/1 or HTTP/2.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use pingora::listeners::tls::Acceptor;
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::protocols::tls::server::handshake;
use pingora::protocols::tls::{TlsRef, TlsStream};
use pingora::protocols::{ALPN, GetSocketDigest as _, Ssl as _, Stream};
use pingora::proxy::HttpProxy;
use rustls::pki_types::CertificateDer;
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

use super::connection::{Connection, Tls};
use super::guard::{Guarded, H2_PREFACE, HeadClock};
use super::proxy::Edge;
use super::stream::{Bounded, Exchanges};
use super::tls::{ServerTls, dns_names};
use super::trust::{Live, Shown, Trust};
use super::{hello, parts};
use crate::policy::certificate::SenderCertificate;
use crate::policy::proxies::Proxies;
use crate::policy::proxy_header::{self, Progress, Source};
use crate::telemetry::metrics::ConnectionLoss;

/// What a front needs to know of its listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections open at once.
    pub connections: usize,
    /// Time of a PROXY header and a handshake.
    pub handshake: Duration,
    /// Time of a request head.
    pub head: Duration,
    /// How long a write may make no way.
    pub body: Duration,
}

/// Who stands in front of a listener.
#[derive(Clone, Debug)]
pub struct InFront {
    /// What each is believed.
    pub proxies: Proxies,
    /// Whether each connection begins with a PROXY header.
    pub proxy_protocol: bool,
}

/// What a listener serves with under one configuration.
pub struct Serving {
    /// One for each policy; none on a plain listener.
    acceptors: Vec<Acceptor>,
    trust: Arc<Trust>,
    in_front: InFront,
    proxy: Arc<Bounded>,
    limits: Limits,
    live: Arc<Live>,
}

/// Why a connection comes to nothing.
#[derive(Debug)]
pub(super) struct Lost {
    /// `None` when it ended before it began: a probe of the port.
    pub(super) reason: Option<ConnectionLoss>,
    pub(super) cause: String,
}

impl Lost {
    fn new(reason: ConnectionLoss, cause: impl fmt::Display) -> Self {
        Self { reason: Some(reason), cause: cause.to_string() }
    }
}

impl Serving {
    /// From a listener's TLS, if it has any, and the proxy behind it.
    #[must_use]
    pub fn new(
        tls: ServerTls,
        in_front: InFront,
        proxy: HttpProxy<Edge>,
        limits: Limits,
        live: Arc<Live>,
    ) -> Self {
        let acceptors = tls.configs.into_iter().map(Acceptor::from_server_config).collect();
        let proxy = Arc::new(Bounded::new(proxy));
        Self { acceptors, trust: tls.trust, in_front, proxy, limits, live }
    }

    /// The connections that this and every other configuration's handshakes have made.
    #[must_use]
    pub fn live(&self) -> &Arc<Live> {
        &self.live
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn proxy(&self) -> &Arc<Bounded> {
        &self.proxy
    }

    /// Waits for the first byte of somebody who may connect. Gives when the handshake has to be over.
    pub(super) async fn begun(&self, socket: &mut L4Stream) -> Result<Instant, Lost> {
        let InFront { proxies, proxy_protocol } = &self.in_front;
        let peer = peer(socket);
        if self.acceptors.is_empty() && !proxies.may_connect_plainly(peer) {
            return Err(Lost::new(ConnectionLoss::Untrusted, "a stranger on a plain listener"));
        }
        if *proxy_protocol && !proxies.may_name_a_source(peer) {
            return Err(Lost::new(
                ConnectionLoss::Untrusted,
                "a stranger may send no PROXY header",
            ));
        }
        let deadline = Instant::now() + self.limits.handshake;
        let mut first = [0; 1];
        match tokio::time::timeout_at(deadline, socket.read(&mut first)).await {
            Ok(Ok(1..)) => {
                socket.rewind(&first);
                Ok(deadline)
            }
            // A probe of the port.
            Ok(Ok(0)) => Err(Lost { reason: None, cause: "it said nothing".to_owned() }),
            Ok(Err(error)) => Err(Lost { reason: None, cause: error.to_string() }),
            Err(_) => Err(self.slow()),
        }
    }

    fn slow(&self) -> Lost {
        Lost::new(ConnectionLoss::HandshakeTimeout, "it took too long")
    }

    /// Makes a stream of requests of a socket on which somebody has begun.
    pub(super) async fn accept(
        &self,
        mut socket: L4Stream,
        deadline: Instant,
    ) -> Result<(Stream, Arc<Connection>), Lost> {
        let peer = peer(&socket);
        let slow = |_| self.slow();
        let source = if self.in_front.proxy_protocol {
            let read = tokio::time::timeout_at(deadline, proxy_source(&mut socket));
            let wrong = |error| Lost::new(ConnectionLoss::ProxyHeader, error);
            read.await.map_err(slow)?.map_err(wrong)?
        } else {
            Source::Socket
        };
        if self.acceptors.is_empty() {
            return self.plain(socket, peer, source).await;
        }
        let stream = tokio::time::timeout_at(deadline, self.shake(socket));
        let failed = |cause| Lost::new(ConnectionLoss::Handshake, cause);
        let stream = stream.await.map_err(slow)?.map_err(failed)?;
        let tls = stream.get_ssl().map(|tls| self.facts(tls)).unwrap_or_default();
        let h2 = matches!(stream.selected_alpn_proto(), Some(ALPN::H2));
        let connection = self.connection(peer, source, Some(tls));
        self.live.add(&connection, &self.in_front.proxies);
        let stream =
            Guarded::new(stream, Arc::clone(&connection), h2, Instant::now(), self.limits.body);
        Ok((Box::new(stream), connection))
    }

    fn connection(
        &self,
        peer: Option<IpAddr>,
        source: Source,
        tls: Option<Tls>,
    ) -> Arc<Connection> {
        let head = HeadClock::new(self.limits.head);
        let (hands_on, exchanges) = (AtomicBool::new(false), Exchanges::default());
        Arc::new(Connection { peer, source, tls, hands_on, head, exchanges })
    }

    /// The handshake of the policy that the client's SNI chooses.
    async fn shake(&self, mut stream: L4Stream) -> Result<TlsStream<L4Stream>, String> {
        let mut policy = 0;
        if self.trust.has_policies() {
            let name = hello::server_name(&mut stream).await.map_err(|error| error.to_string())?;
            policy = self.trust.policy(name.as_deref());
        }
        let acceptor = self.acceptors.get(policy).ok_or("no policy")?;
        let stream = handshake(acceptor, stream).await.map_err(|error| error.to_string())?;
        // What chose the policy and what the handshake then read are the same bytes.
        let agreed = stream.get_ssl().and_then(TlsRef::server_name);
        if self.trust.policy(agreed) == policy {
            Ok(stream)
        } else {
            Err("the handshake has another name than its ClientHello".to_owned())
        }
    }

    fn facts(&self, tls: &TlsRef) -> Tls {
        let chain: Vec<_> = tls
            .peer_cert_chain_der()
            .unwrap_or_default()
            .iter()
            .map(|certificate| CertificateDer::from(certificate.to_vec()))
            .collect();
        // A leaf that webpki took and we cannot read counts as none: what is bound to it is refused.
        let leaf = chain.first().map(|leaf| leaf.to_vec());
        let names = leaf.as_deref().and_then(dns_names).unwrap_or_default();
        let certificate = leaf.and_then(SenderCertificate::new).map(Arc::new);
        let generation = self.trust.generation();
        let shown = (!chain.is_empty()).then(|| Shown::new(chain, generation, parts::now()));
        Tls { certificate, shown, names, server_name: tls.server_name().map(str::to_owned) }
    }

    /// A plain listener speaks HTTP/1.1, and HTTP/2 with those who begin with its preface (RFC 9113
    /// section 3.3).
    async fn plain(
        &self,
        mut socket: L4Stream,
        peer: Option<IpAddr>,
        source: Source,
    ) -> Result<(Stream, Arc<Connection>), Lost> {
        let since = Instant::now();
        let begins = tokio::time::timeout(self.limits.head, begins_h2(&mut socket)).await;
        let h2 = match begins {
            Ok(Ok(h2)) => h2,
            Ok(Err(error)) => return Err(Lost { reason: None, cause: error.to_string() }),
            Err(_) => return Err(Lost::new(ConnectionLoss::HeadTimeout, "no request")),
        };
        let connection = self.connection(peer, source, None);
        self.live.add(&connection, &self.in_front.proxies);
        let stream = Guarded::new(socket, Arc::clone(&connection), h2, since, self.limits.body);
        Ok((Box::new(stream), connection))
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").field("limits", &self.limits).finish_non_exhaustive()
    }
}

fn peer(socket: &L4Stream) -> Option<IpAddr> {
    let digest = socket.get_socket_digest()?;
    digest.peer_addr()?.as_inet().map(|address| address.ip().to_canonical())
}

/// Reads a PROXY header and puts back what follows it.
async fn proxy_source(socket: &mut L4Stream) -> io::Result<Source> {
    let mut seen = Vec::new();
    loop {
        // A header is one packet as a rule. What was read too much is put back.
        let mut chunk = [0; 512];
        let read = socket.read(&mut chunk).await?;
        let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        seen.extend_from_slice(bytes);
        match proxy_header::read(&seen).map_err(io::Error::other)? {
            Progress::More => {}
            Progress::Done(length, source) => {
                socket.rewind(seen.get(length..).unwrap_or_default());
                return Ok(source);
            }
        }
    }
}

/// Whether a connection begins with HTTP/2's preface: known as soon as a byte differs, since there are
/// HTTP/1 requests shorter than it. What was read is put back.
async fn begins_h2(socket: &mut L4Stream) -> io::Result<bool> {
    let mut seen = Vec::new();
    let h2 = loop {
        let mut chunk = [0; H2_PREFACE.len()];
        let read = socket.read(&mut chunk).await?;
        seen.extend_from_slice(chunk.get(..read).unwrap_or_default());
        let preface = H2_PREFACE.get(..seen.len().min(H2_PREFACE.len())).unwrap_or_default();
        if !seen.starts_with(preface) || read == 0 {
            break false;
        }
        if seen.len() >= H2_PREFACE.len() {
            break true;
        }
    };
    if seen.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    socket.rewind(&seen);
    Ok(h2)
}
