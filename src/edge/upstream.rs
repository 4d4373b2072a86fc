//! Which server a request goes to, and how.
//!
//! Servers are taken in turn. One that checks found down, or that could just not be connected to, is
//! passed over; where none is left, all are tried as if nothing were known, since a refusal would not
//! be better than an attempt.

#![expect(clippy::disallowed_methods, reason = "a server rests for a time")]

mod handshake;
mod health;
mod lines;
mod names;
mod target;
mod trust;

use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::Connector;
use pingora::http::ResponseHeader;
use pingora::protocols::Digest;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType};
use tokio::task::AbortHandle;

pub use handshake::{Handshake, without_wish};
pub use lines::Use;
pub use target::Target;

use super::respond::ErrorCode;
use super::tls::TlsError;
use crate::config::{Health, Server, Upstream, UpstreamProtocol};
use lines::{FULL, GONE, Lines, Opener};
use trust::Trust;

/// Servers that one request tries to connect to, at most.
pub const MAX_ATTEMPTS: usize = 3;
/// Interim answers that one request may get.
pub const MAX_INTERIM: usize = 8;
/// The error of a connection on which the server did not agree to what it must speak.
pub const NOT_AGREED: ErrorType = ErrorType::Custom("UpstreamNotAgreed");
/// The error of an answer whose head is too large, or that has too many heads.
pub const HEAD_TOO_LARGE: ErrorType = ErrorType::Custom("UpstreamHeadTooLarge");
/// The error of an upstream whose servers' names have no address.
pub const NO_ADDRESS: ErrorType = ErrorType::Custom("UpstreamNoAddress");
/// Streams on one HTTP/2 connection to a server.
const H2_STREAMS: usize = 100;
/// Bytes that an HTTP/2 server may send before they are read, a stream and a connection. The default
/// is 8 MiB: 100 streams of slow readers would hold them.
const H2_STREAM_WINDOW: u32 = 256 << 10;
const H2_CONNECTION_WINDOW: u32 = 4 << 20;
/// How often connections that wait for a head are looked at.
const SWEEP: Duration = Duration::from_millis(100);
/// Bytes of a reason in a log line.
const MAX_REASON: usize = 300;

/// Connections that the edge makes on its own account, of which `idle` are kept.
#[must_use]
pub fn connector(idle: usize) -> Connector {
    let mut options = ConnectorOptions::new(idle);
    // Peers bring their authorities; without a file pingora reads the system's, and panics where
    // there are none.
    options.ca_file = Some("/dev/null".to_owned());
    Connector::new(Some(options))
}

/// Why an upstream cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// A file is not there or holds something else.
    #[error(transparent)]
    File(#[from] TlsError),
    /// A certificate cannot be read.
    #[error("a certificate in `tls` is not X.509")]
    Certificate,
    /// Nothing to verify servers with.
    #[error("the system has no authorities")]
    NoAuthority,
}

/// How a server stands, for `/readyz` and the metric.
#[derive(Clone, Debug)]
pub struct ServerStatus<'a> {
    /// Its name in the configuration.
    pub server: &'a str,
    /// Whether one of its addresses is up.
    pub up: bool,
    /// Where it is.
    pub addresses: Vec<SocketAddr>,
    /// Why the last check failed.
    pub error: Option<String>,
}

/// The servers of one upstream.
#[derive(Debug)]
pub struct Servers {
    name: String,
    protocol: UpstreamProtocol,
    servers: Vec<Server>,
    server_name: Option<String>,
    /// Every peer is made from it.
    pattern: HttpPeer,
    trust: Option<Trust>,
    targets: ArcSwap<Vec<Arc<Target>>>,
    next: AtomicUsize,
    lines: Arc<Lines>,
    health: Option<Health>,
    resolve_interval: Duration,
    started: Instant,
    /// Checks and names, and what must go on for requests under way.
    tasks: Mutex<[Vec<AbortHandle>; 2]>,
}

impl Servers {
    /// The servers of an upstream. Connections are never shared with another upstream, nor with what
    /// another configuration made of this one: pingora's pools look neither at authorities nor at
    /// ALPN.
    ///
    /// # Errors
    /// When the files of its `tls` cannot be used.
    pub fn new(upstream: &Upstream) -> Result<Self, UpstreamError> {
        let trust = upstream.tls.as_ref().map(Trust::load).transpose()?;
        let lines = Arc::new(Lines::new(upstream.max_connections));
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut pattern = HttpPeer::new(nowhere, trust.is_some(), String::new());
        pattern.group_key = next_group();
        pattern.client_cert_key = trust.as_ref().and_then(|trust| trust.client.clone());
        let options = &mut pattern.options;
        options.ca = trust.as_ref().map(|trust| Arc::clone(&trust.authorities));
        options.custom_l4 = Some(Arc::new(Opener { lines: Arc::clone(&lines), handshake: None }));
        options.connection_timeout = Some(upstream.connect_timeout);
        options.total_connection_timeout = Some(upstream.connect_timeout);
        options.read_timeout = Some(upstream.read_timeout);
        options.write_timeout = Some(upstream.write_timeout);
        options.idle_timeout = Some(upstream.idle_timeout);
        match upstream.protocol {
            UpstreamProtocol::Http1 => options.set_http_version(1, 1),
            UpstreamProtocol::H2c | UpstreamProtocol::H2 => {
                options.set_http_version(2, 2);
                options.max_h2_streams = H2_STREAMS;
                options.h2_stream_window_size = Some(H2_STREAM_WINDOW);
                options.h2_connection_window_size = Some(H2_CONNECTION_WINDOW);
            }
        }
        let servers = Self {
            name: upstream.name.clone(),
            protocol: upstream.protocol,
            servers: upstream.servers.clone(),
            server_name: upstream.tls.as_ref().and_then(|tls| tls.server_name.clone()),
            pattern,
            trust,
            targets: ArcSwap::default(),
            next: AtomicUsize::new(0),
            lines,
            health: upstream.health.clone(),
            resolve_interval: upstream.resolve_interval,
            started: Instant::now(),
            tasks: Mutex::default(),
        };
        for (index, server) in servers.servers.iter().enumerate() {
            servers.place(index, &server.addresses);
        }
        Ok(servers)
    }

    /// Where the name of a server has no address now, takes those that it has in `before`: a resolver
    /// that is away when a configuration is read again takes no server away.
    pub fn inherit<'a>(&self, before: impl Iterator<Item = &'a Self> + Clone) {
        for (index, server) in self.servers.iter().enumerate() {
            if server.named.is_none() || !server.addresses.is_empty() {
                continue;
            }
            let known =
                |it: &ServerStatus<'_>| it.server == server.name && !it.addresses.is_empty();
            if let Some(known) = before.clone().flat_map(Self::status).find(known) {
                self.place(index, &known.addresses);
            }
        }
    }

    /// Starts checks and the like. They end with this, or before by [`Servers::retire`].
    pub fn start(self: &Arc<Self>, runtime: &tokio::runtime::Handle) {
        let mut background = Vec::new();
        if let Some(health) = self.health.clone() {
            let watch = health::watch(Arc::downgrade(self), health);
            background.push(runtime.spawn(watch).abort_handle());
        }
        if self.servers.iter().any(|server| server.named.is_some()) {
            let watch = names::watch(Arc::downgrade(self), self.resolve_interval);
            background.push(runtime.spawn(watch).abort_handle());
        }
        let lines = Arc::clone(&self.lines);
        let sweep = runtime.spawn(async move {
            loop {
                tokio::time::sleep(SWEEP).await;
                lines.cut_overdue();
            }
        });
        let tasks = [background, vec![sweep.abort_handle()]];
        *self.tasks.lock().unwrap_or_else(PoisonError::into_inner) = tasks;
    }

    /// Ends checks and look-ups: another configuration is in force. Requests under way go on.
    pub fn retire(&self) {
        let [background, _] = &*self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        for task in background {
            task.abort();
        }
    }

    /// Its name in the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How each server stands.
    pub fn status(&self) -> impl Iterator<Item = ServerStatus<'_>> {
        let targets = self.targets.load_full();
        self.servers.iter().enumerate().map(move |(index, server)| {
            let own = targets.iter().filter(|target| target.server == index);
            ServerStatus {
                server: &server.name,
                up: own.clone().any(|target| target.is_up()),
                addresses: own.clone().map(|target| target.address).collect(),
                error: own.filter_map(|target| target.error()).next(),
            }
        })
    }

    /// Where the next request starts.
    #[must_use]
    pub fn turn(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The next server for the request that drew `turn` and could not connect to those in `tried`.
    #[must_use]
    pub fn choose(&self, turn: usize, tried: &[SocketAddr]) -> Option<Arc<Target>> {
        let targets = self.targets.load();
        let (count, now) = (targets.len(), self.now());
        let in_turn = || {
            let places = (0..count).filter_map(|step| turn.wrapping_add(step).checked_rem(count));
            let targets = places.filter_map(|place| targets.get(place));
            targets.filter(|target| !tried.contains(&target.address))
        };
        let usable = in_turn().find(|target| target.is_usable(now));
        usable.or_else(|| in_turn().next()).cloned()
    }

    /// Takes in that a server could not be connected to. Whether another attempt is worth it:
    /// nothing was sent, so that any method may be tried again.
    pub fn unreachable(&self, target: &Target, tried: &mut Vec<SocketAddr>, error: &Error) -> bool {
        let kind = error.etype();
        if *kind == FULL {
            tracing::warn!(upstream = self.name, "no connection: there are maxConnections");
            return false;
        }
        // A kept HTTP/2 connection that has just ended says nothing of its server.
        if *kind == ErrorType::H2Error {
            return true;
        }
        target.rest(self.now());
        tried.push(target.address);
        let more = tried.len() < MAX_ATTEMPTS
            && self.targets.load().iter().any(|other| !tried.contains(&other.address));
        let (server, address) = (self.server(target), target.address);
        let (error, reason) = (kind.as_str(), reason(error));
        tracing::warn!(upstream = self.name, server, %address, error, reason, more, "no connection");
        more
    }

    /// Where and how to connect. With a handshake the connection is for its request alone.
    #[must_use]
    pub fn peer(&self, target: &Target, handshake: Option<&Arc<Handshake>>) -> HttpPeer {
        let mut peer = target.peer.clone();
        if let Some(handshake) = handshake {
            // pingora keeps connections by their descriptors, which it does not know of this one.
            peer.group_key = next_group();
            let options = &mut peer.options;
            options.idle_timeout = Some(SWEEP);
            let (lines, handshake) = (Arc::clone(&self.lines), Some(Arc::clone(handshake)));
            options.custom_l4 = Some(Arc::new(Opener { lines, handshake }));
        }
        peer
    }

    /// Whether requests become WebSockets here.
    #[must_use]
    pub fn takes_upgrades(&self) -> bool {
        self.protocol == UpstreamProtocol::Http1
    }

    /// A connection is there for a request: whether it is what the configuration asks for. `Some` is
    /// what the request has of it.
    ///
    /// # Errors
    /// When it is another version of TLS, or has made room for another.
    pub fn connected(
        &self,
        target: &Target,
        descriptor: RawFd,
        digest: Option<&Digest>,
    ) -> pingora::Result<Option<Use>> {
        if !self.takes(digest) {
            return Err(Error::new_up(NOT_AGREED));
        }
        target.rested();
        self.lines.used(descriptor, self.protocol == UpstreamProtocol::Http1)
    }

    /// Whether a request that is about to be written in this version may be. pingora speaks HTTP/1.1
    /// to a server that did not agree on `h2`.
    ///
    /// # Errors
    /// When it may not.
    pub fn speaks(&self, version: http::Version) -> pingora::Result<()> {
        let agreed = match self.protocol {
            UpstreamProtocol::Http1 => version != http::Version::HTTP_2,
            UpstreamProtocol::H2c | UpstreamProtocol::H2 => version == http::Version::HTTP_2,
        };
        if agreed { Ok(()) } else { Err(Error::new_up(NOT_AGREED)) }
    }

    fn takes(&self, digest: Option<&Digest>) -> bool {
        self.trust.as_ref().is_none_or(|trust| trust.takes(digest))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn server(&self, target: &Target) -> &str {
        self.servers.get(target.server).map_or("", |server| server.name.as_str())
    }

    /// The `Host` of a check.
    fn host<'a>(&'a self, health: &'a Health, target: &Target) -> &'a str {
        let configured = health.host.as_deref().or(self.server_name.as_deref());
        configured.unwrap_or_else(|| self.server(target))
    }

    fn checked(&self, target: &Target, outcome: Result<(), String>, health: &Health) {
        let reason = outcome.as_ref().err().cloned().unwrap_or_default();
        if outcome.is_ok() {
            target.rested();
        }
        let (upstream, server, address) = (&self.name, self.server(target), target.address);
        match target.checked(outcome, health.unhealthy_after, health.healthy_after) {
            Some(true) => tracing::info!(upstream, server, %address, "server up"),
            Some(false) => tracing::warn!(upstream, server, %address, reason, "server down"),
            None => {}
        }
    }

    /// Whether a server has no address.
    fn is_missing_one(&self) -> bool {
        self.status().any(|server| server.addresses.is_empty())
    }

    /// Takes in a name's addresses. None keeps the last ones.
    fn found(&self, server: usize, addresses: Vec<SocketAddr>) {
        let targets = self.targets.load();
        let own = targets.iter().filter(|target| target.server == server);
        if addresses.is_empty() || own.map(|target| target.address).eq(addresses.iter().copied()) {
            return;
        }
        let name = self.servers.get(server).map(|server| server.name.as_str());
        tracing::info!(upstream = self.name, server = name, ?addresses, "name resolved");
        self.place(server, &addresses);
    }

    /// Puts a server's addresses in the place of those it had. What stays keeps what is known of it.
    fn place(&self, index: usize, addresses: &[SocketAddr]) {
        let Some(server) = self.servers.get(index) else { return };
        let before = self.targets.load();
        let kept = |address: &SocketAddr| {
            let same = |it: &&Arc<Target>| it.server == index && it.address == *address;
            before.iter().find(same).cloned()
        };
        let made = |address: &SocketAddr| {
            let mut peer = self.pattern.clone();
            peer._address = (*address).into();
            if self.trust.is_some() {
                peer.sni = self.server_name.clone().unwrap_or_else(|| server.host.clone());
            }
            Arc::new(Target::new(index, *address, peer))
        };
        let own = addresses.iter().map(|address| kept(address).unwrap_or_else(|| made(address)));
        let others = before.iter().filter(|target| target.server != index).cloned();
        let mut targets: Vec<_> = others.chain(own).collect();
        targets.sort_by_key(|target| target.server);
        self.targets.store(Arc::new(targets));
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for task in self.tasks.lock().unwrap_or_else(PoisonError::into_inner).iter().flatten() {
            task.abort();
        }
    }
}

impl Target {
    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where and how to connect.
    #[must_use]
    pub fn peer(&self) -> HttpPeer {
        self.peer.clone()
    }
}

/// A number that no upstream's connections go by yet.
fn next_group() -> u64 {
    static GROUP: AtomicU64 = AtomicU64::new(1);
    GROUP.fetch_add(1, Ordering::Relaxed)
}

/// Whether the head of an answer is within `limit` bytes.
#[must_use]
pub fn fits(head: &ResponseHeader, limit: usize) -> bool {
    // `: ` and the line's end.
    let field = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        name.as_str().len() + value.len() + 4
    };
    head.headers.iter().map(field).sum::<usize>() <= limit
}

/// Whether a connection had made room for another before a request was written on it.
#[must_use]
pub fn gone(error: &Error) -> bool {
    *error.etype() == GONE
}

/// Whether an HTTP/2 server says that it did not touch the request, which may then be sent again
/// whatever its method (RFC 9113 section 8.7).
#[must_use]
pub fn untouched(error: &Error) -> bool {
    error.root_cause().downcast_ref::<h2::Error>().is_some_and(|error| {
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        let ended = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
        error.is_remote() && (refused || ended)
    })
}

/// Why no connection came about, from pingora's error. Only of errors before a request is written:
/// others quote what the server sent.
fn reason(error: &Error) -> String {
    // The cause of these is only where the connection came from.
    let explained =
        [ErrorType::TLSHandshakeFailure, ErrorType::InvalidCert, ErrorType::ConnectTimedout];
    let text = match &error.context {
        Some(context) if error.cause.is_none() || explained.contains(error.etype()) => {
            context.as_str().to_owned()
        }
        Some(_) | None => error.root_cause().to_string(),
    };
    text.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect()
}

/// The answer to a request whose upstream failed.
#[must_use]
#[expect(clippy::wildcard_enum_match_arm, reason = "every other failure is a bad gateway")]
pub fn failure(error: &ErrorType) -> ErrorCode {
    match error {
        ErrorType::ConnectTimedout | ErrorType::ReadTimedout | ErrorType::WriteTimedout => {
            ErrorCode::GatewayTimeout
        }
        full if *full == FULL => ErrorCode::TemporarilyUnavailable,
        _ => ErrorCode::BadGateway,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AuthorizationPolicy;

    fn servers(addresses: &[&str]) -> Servers {
        let second = Duration::from_secs(1);
        let server = |address: &&str| {
            let address: SocketAddr = address.parse().unwrap();
            Server {
                name: address.to_string(),
                host: address.ip().to_string(),
                port: address.port(),
                named: None,
                addresses: vec![address],
            }
        };
        Servers::new(&Upstream {
            name: "api".to_owned(),
            servers: addresses.iter().map(server).collect(),
            protocol: UpstreamProtocol::Http1,
            tls: None,
            health: None,
            authorization: AuthorizationPolicy::Forward,
            client_certificate: crate::config::ClientCertificateTold::Nothing,
            connect_timeout: second,
            read_timeout: second,
            write_timeout: second,
            idle_timeout: second,
            resolve_interval: second,
            max_connections: 10,
            head_bytes: 1024,
        })
        .unwrap()
    }

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn refused() -> Box<Error> {
        Error::new_up(ErrorType::ConnectRefused)
    }

    #[test]
    fn servers_take_turns() {
        let servers = servers(&["10.0.0.1:80", "10.0.0.2:80"]);
        let address = |turn| servers.choose(turn, &[]).map(|target| target.address.to_string());
        let (first, second) = (servers.turn(), servers.turn());
        assert_ne!(address(first), address(second));
        assert_eq!(address(first), address(first + 2));
        assert!(address(usize::MAX).is_some());
    }

    #[test]
    fn an_unreachable_server_is_passed_over_and_attempts_are_bounded() {
        let servers = servers(&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80"]);
        let mut tried = Vec::new();
        let mut more = Vec::new();
        for _ in 0..MAX_ATTEMPTS {
            let target = servers.choose(0, &tried).unwrap();
            more.push(servers.unreachable(&target, &mut tried, &refused()));
        }
        assert_eq!(more, [true, true, false]);
        assert_eq!(tried, addresses(&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]));
        // The next request, whatever its turn, goes to the one that is left.
        for turn in 0..4 {
            let target = servers.choose(turn, &[]).unwrap();
            assert_eq!(target.address.to_string(), "10.0.0.4:80");
        }
        // When that fails too, all are tried as if nothing were known.
        let last = servers.choose(0, &[]).unwrap();
        servers.unreachable(&last, &mut Vec::new(), &refused());
        assert_eq!(servers.choose(0, &[]).unwrap().address.to_string(), "10.0.0.1:80");
        assert_eq!(servers.choose(1, &[]).unwrap().address.to_string(), "10.0.0.2:80");
    }

    #[test]
    fn a_full_upstream_and_an_ended_connection_say_nothing_of_the_server() {
        let servers = servers(&["10.0.0.1:80", "10.0.0.2:80"]);
        let (target, mut tried) = (servers.choose(0, &[]).unwrap(), Vec::new());
        assert!(!servers.unreachable(&target, &mut tried, &Error::new_up(FULL)));
        let ended = Error::new_up(ErrorType::H2Error);
        assert!(servers.unreachable(&target, &mut tried, &ended));
        assert!(tried.is_empty() && target.is_usable(0));
    }

    #[test]
    fn a_name_keeps_its_last_addresses_and_what_is_known_of_them() {
        let servers = servers(&["10.0.0.1:80", "10.0.0.9:80"]);
        let all = |servers: &Servers| -> Vec<_> {
            servers.targets.load().iter().map(|target| target.address).collect()
        };
        servers.found(0, addresses(&["10.0.0.1:80", "10.0.0.2:80"]));
        assert_eq!(all(&servers), addresses(&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.9:80"]));
        let second = Arc::clone(&servers.targets.load()[1]);
        servers.found(0, addresses(&["10.0.0.2:80", "10.0.0.3:80"]));
        assert_eq!(all(&servers), addresses(&["10.0.0.2:80", "10.0.0.3:80", "10.0.0.9:80"]));
        assert!(Arc::ptr_eq(&second, &servers.targets.load()[0]));
        servers.found(0, Vec::new());
        assert_eq!(all(&servers).len(), 3);
    }

    #[test]
    fn names_have_few_addresses_of_one_family() {
        let found = addresses(&["[::1]:80", "10.0.0.2:80", "10.0.0.1:80", "10.0.0.2:80"]);
        assert_eq!(Server::choose(found), addresses(&["10.0.0.1:80", "10.0.0.2:80"]));
        assert_eq!(Server::choose(addresses(&["[::1]:80"])), addresses(&["[::1]:80"]));
        let many = (0..99).map(|n| SocketAddr::from(([10, 0, 0, n], 80)));
        assert_eq!(Server::choose(many).len(), 16);
    }

    #[test]
    fn no_servers_means_none_and_no_pool_is_shared() {
        assert!(servers(&[]).choose(0, &[]).is_none());
        let one = |servers: Servers| servers.choose(0, &[]).unwrap().peer().group_key;
        assert_ne!(one(servers(&["10.0.0.1:80"])), one(servers(&["10.0.0.1:80"])));
    }

    #[test]
    fn failures() {
        for (error, expect) in [
            (ErrorType::ConnectTimedout, ErrorCode::GatewayTimeout),
            (ErrorType::ReadTimedout, ErrorCode::GatewayTimeout),
            (ErrorType::ConnectRefused, ErrorCode::BadGateway),
            (ErrorType::InvalidHTTPHeader, ErrorCode::BadGateway),
            (NOT_AGREED, ErrorCode::BadGateway),
            (FULL, ErrorCode::TemporarilyUnavailable),
        ] {
            assert_eq!(failure(&error), expect);
        }
    }
}
