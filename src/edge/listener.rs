//! A listener: TLS in front of pingora's proxy, with limits of its own.
//!
//! pingora accepts the socket and serves HTTP; everything between is here: the connection limit,
//! the handshake under its time limit, what is remembered of the client's certificate, and a guard
//! that bounds the time of a request head. pingora bounds each read, which lets a client trickle a
//! head for ever.

use std::any::Any;
use std::fmt;
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora::apps::ServerApp;
use pingora::listeners::TlsAccept;
use pingora::listeners::tls::Acceptor;
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::server::handshake_with_callback;
use pingora::protocols::tls::{SslDigest, TlsRef, TlsStream};
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    Stream, TimingDigest, UniqueID, UniqueIDType,
};
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::proxy::Edge;
use super::stream::{Bounded, Exchanges};
use super::trust::{Live, Shown, Trust};
use super::{hello, parts};
use crate::policy::certificate::SenderCertificate;
use crate::telemetry::metrics::{ConnectionLoss, Metrics};

/// Bytes of the HTTP/2 client preface (RFC 9113 section 3.4). After it, HTTP/2's own idle limit
/// bounds a connection without streams.
const H2_PREFACE: usize = 24;

/// What the requests of one connection share: pingora carries it as the TLS digest's extension.
#[derive(Debug)]
pub struct Connection {
    /// The client's certificate, chain and possession verified in the handshake.
    pub certificate: Option<Arc<SenderCertificate>>,
    /// Its chain, to be verified again when trust changes.
    pub shown: Option<Shown>,
    /// The name that the client asked for.
    pub server_name: Option<String>,
    /// To be told when a head is complete and when an answer is.
    pub head: Arc<HeadClock>,
    /// Those that its certificate can end.
    pub exchanges: Exchanges,
}

/// Times request heads. The proxy says where a connection stands, the guard acts on it.
#[derive(Debug)]
pub struct HeadClock {
    phase: AtomicU8,
    limit: Duration,
}

/// A head is being awaited or read: the clock runs.
const HEAD: u8 = 0;
/// A request is being served: no clock.
const SERVING: u8 = 1;
/// Between two requests of an HTTP/1 connection: the clock starts with the next byte.
const IDLE: u8 = 2;

impl HeadClock {
    fn new(limit: Duration) -> Self {
        Self { phase: AtomicU8::new(HEAD), limit }
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

/// What a front needs to know of its listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections open at once.
    pub connections: usize,
    /// Time of a handshake.
    pub handshake: Duration,
    /// Time of a request head.
    pub head: Duration,
}

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

/// What a listener serves with under one configuration.
pub struct Serving {
    /// One for each policy.
    acceptors: Vec<Acceptor>,
    trust: Arc<Trust>,
    proxy: Arc<Bounded>,
    limits: Limits,
    live: Arc<Live>,
}

impl Serving {
    /// From a listener's TLS and the proxy behind it.
    #[must_use]
    pub fn new(
        configs: Vec<Arc<rustls::ServerConfig>>,
        trust: Arc<Trust>,
        proxy: HttpProxy<Edge>,
        limits: Limits,
        live: Arc<Live>,
    ) -> Self {
        let acceptors = configs.into_iter().map(Acceptor::from_server_config).collect();
        Self { acceptors, trust, proxy: Arc::new(Bounded::new(proxy)), limits, live }
    }
}

impl Serving {
    /// The connections that this and every other configuration's handshakes have made.
    #[must_use]
    pub fn live(&self) -> &Arc<Live> {
        &self.live
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// Terminates TLS and hands the stream to pingora's proxy.
pub struct TlsFront {
    index: usize,
    serving: Arc<ArcSwap<Serving>>,
    /// Proxies of earlier configurations, for as long as connections of theirs live.
    earlier: Mutex<Vec<Weak<Bounded>>>,
    occupancy: Arc<Occupancy>,
    metrics: Arc<Metrics>,
}

impl TlsFront {
    /// A front for the listener at `index`; what `serving` holds may be replaced.
    #[must_use]
    pub fn new(index: usize, serving: Arc<ArcSwap<Serving>>, metrics: Arc<Metrics>) -> Self {
        let earlier = Mutex::default();
        Self { index, serving, earlier, occupancy: Arc::default(), metrics }
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

    fn lost(&self, reason: ConnectionLoss) {
        self.metrics.connection_lost(self.index, reason);
    }

    async fn handshake(
        &self,
        serving: &Serving,
        stream: L4Stream,
    ) -> Option<(TlsStream<L4Stream>, Arc<HeadClock>)> {
        let head = Arc::new(HeadClock::new(serving.limits.head));
        match tokio::time::timeout(serving.limits.handshake, shake(serving, stream, &head)).await {
            Ok(Ok(stream)) => return Some((stream, head)),
            Ok(Err(error)) => {
                self.lost(ConnectionLoss::Handshake);
                tracing::debug!(error, "handshake failed");
            }
            Err(_) => {
                self.lost(ConnectionLoss::HandshakeTimeout);
                tracing::debug!("handshake took too long");
            }
        }
        None
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

/// The handshake of the policy that the client's SNI chooses.
async fn shake(
    serving: &Serving,
    mut stream: L4Stream,
    head: &Arc<HeadClock>,
) -> Result<TlsStream<L4Stream>, String> {
    let mut policy = 0;
    if serving.trust.has_policies() {
        let name = hello::server_name(&mut stream).await.map_err(|error| error.to_string())?;
        policy = serving.trust.policy(name.as_deref());
    }
    let acceptor = serving.acceptors.get(policy).ok_or("no policy")?;
    let callback = Handshake {
        head: Arc::clone(head),
        generation: serving.trust.generation(),
        live: Arc::clone(&serving.live),
    };
    let stream = handshake_with_callback(acceptor, stream, &callback).await;
    let stream = stream.map_err(|error| error.to_string())?;
    // What chose the policy and what the handshake then read are the same bytes.
    let agreed = stream.get_ssl().and_then(TlsRef::server_name);
    if serving.trust.policy(agreed) == policy {
        Ok(stream)
    } else {
        Err("the handshake has another name than its ClientHello".to_owned())
    }
}

/// A connection's place in the count.
struct Place<'a>(&'a TlsFront);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.occupancy.live.fetch_sub(1, Ordering::AcqRel);
        self.0.metrics.connection_closed(self.0.index);
    }
}

#[async_trait]
impl ServerApp for TlsFront {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let serving = self.serving.load_full();
        let Some(_place) = self.enter(serving.limits.connections) else {
            self.lost(ConnectionLoss::Full);
            return None;
        };
        let stream = stream.into_any().downcast::<L4Stream>().ok()?;
        let (stream, head) = self.handshake(&serving, *stream).await?;
        let guarded = Guarded::new(stream, head);
        let timed_out = Arc::clone(&guarded.timed_out);
        self.remember(&serving.proxy);
        serving.proxy.process_new(Box::new(guarded), shutdown).await;
        if timed_out.load(Ordering::Acquire) {
            self.lost(ConnectionLoss::HeadTimeout);
        }
        None
    }

    async fn cleanup(&self) {
        self.occupancy.closed.store(true, Ordering::Release);
        let proxies: Vec<_> = {
            let earlier = self.earlier.lock().unwrap_or_else(PoisonError::into_inner);
            earlier.iter().filter_map(Weak::upgrade).collect()
        };
        for proxy in proxies {
            ServerApp::cleanup(&*proxy).await;
        }
    }
}

/// Remembers the client's certificate once the handshake is complete.
struct Handshake {
    head: Arc<HeadClock>,
    generation: u64,
    live: Arc<Live>,
}

#[async_trait]
impl TlsAccept for Handshake {
    async fn handshake_complete_callback(
        &self,
        tls: &TlsRef,
    ) -> Option<Arc<dyn Any + Send + Sync>> {
        let chain: Vec<_> = tls
            .peer_cert_chain_der()
            .unwrap_or_default()
            .iter()
            .map(|certificate| CertificateDer::from(certificate.to_vec()))
            .collect();
        // A leaf that webpki took and we cannot read counts as none: what is bound to it is refused.
        let leaf = chain.first().map(|leaf| leaf.to_vec());
        let certificate = leaf.and_then(SenderCertificate::new).map(Arc::new);
        let shown = (!chain.is_empty()).then(|| Shown::new(chain, self.generation, parts::now()));
        let connection = Arc::new(Connection {
            certificate,
            shown,
            server_name: tls.server_name().map(str::to_owned),
            head: Arc::clone(&self.head),
            exchanges: Exchanges::default(),
        });
        self.live.add(&connection);
        Some(connection)
    }
}

/// The TLS stream with a clock on request heads.
struct Guarded {
    stream: TlsStream<L4Stream>,
    head: Arc<HeadClock>,
    alarm: Pin<Box<Sleep>>,
    /// Bytes of the preface still to come; 0 on HTTP/1.
    preface: usize,
    timed_out: Arc<AtomicBool>,
}

impl Guarded {
    fn new(stream: TlsStream<L4Stream>, head: Arc<HeadClock>) -> Self {
        let h2 = matches!(stream.selected_alpn_proto(), Some(ALPN::H2));
        let alarm = Box::pin(tokio::time::sleep(head.limit));
        let preface = if h2 { H2_PREFACE } else { 0 };
        Self { stream, head, alarm, preface, timed_out: Arc::default() }
    }

    /// Whether the time of the head under way is over; wakes the task when it will be.
    fn overdue(&mut self, cx: &mut Context<'_>) -> bool {
        if self.head.phase.load(Ordering::Acquire) != HEAD {
            return false;
        }
        let overdue = self.alarm.as_mut().poll(cx).is_ready();
        if overdue {
            self.timed_out.store(true, Ordering::Release);
        }
        overdue
    }

    fn received(&mut self, bytes: usize) {
        if self.preface > 0 {
            self.preface = self.preface.saturating_sub(bytes);
            if self.preface == 0 {
                self.head.stop();
            }
        } else if bytes > 0
            && self
                .head
                .phase
                .compare_exchange(IDLE, HEAD, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        {
            self.alarm.as_mut().reset(Instant::now() + self.head.limit);
        }
    }
}

impl AsyncRead for Guarded {
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

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("head", &self.head).finish_non_exhaustive()
    }
}

#[async_trait]
impl Shutdown for Guarded {
    async fn shutdown(&mut self) {
        Shutdown::shutdown(&mut self.stream).await;
    }
}

impl UniqueID for Guarded {
    fn id(&self) -> UniqueIDType {
        self.stream.id()
    }
}

impl Ssl for Guarded {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.stream.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.stream.selected_alpn_proto()
    }
}

impl GetTimingDigest for Guarded {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.stream.get_timing_digest()
    }
}

impl GetProxyDigest for Guarded {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.stream.get_proxy_digest()
    }
}

impl GetSocketDigest for Guarded {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream.get_socket_digest()
    }
}

impl Peek for Guarded {}
