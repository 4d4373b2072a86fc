//! The composition root: a resolved configuration becomes parts, the parts become listeners.
//!
//! The edge runs on a runtime of its own, so that a process may run it beside something else and
//! stop it without ending itself.

#![expect(clippy::disallowed_methods, reason = "the root draws keys and reads the clock")]

use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use pingora::apps::HttpServerOptions;
use pingora::listeners::ListenerConfig;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::proxy::{HttpProxy, http_proxy};
use pingora::server::configuration::ServerConf;
use pingora::server::{Fds, ListenFds, ShutdownWatch};
use pingora::services::Service as _;
use pingora::services::listening::Service;
use rustls::crypto::CryptoProvider;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::config::{Config, Listener};
use crate::edge::admin;
use crate::edge::introspect::Introspectors;
use crate::edge::jwks::{JwksError, KeySets};
use crate::edge::listener::{Limits, Occupancy, TlsFront};
use crate::edge::outgoing::OutgoingError;
use crate::edge::parts::Parts;
use crate::edge::proxy::Edge;
use crate::edge::tls::{self, TlsError};
use crate::edge::upstream::MAX_ATTEMPTS;
use crate::gate::{Gate, Settings};
use crate::policy::time::UnixTime;
use crate::store::replay::MemoryReplay;
use crate::telemetry::log::Log;
use crate::telemetry::metrics::{Metrics, Shape};

/// Idle connections to upstreams that are kept, a worker thread.
const UPSTREAM_POOL: usize = 128;
/// Attempts at one request: each server that may be tried, and as often a reused connection that
/// turns out to be dead.
const ATTEMPTS: usize = 2 * MAX_ATTEMPTS;
/// Bytes of an answer that wait for a slow reader, a stream. The default is 400 KiB: a connection's
/// 128 streams would hold 50 MiB.
const H2_SEND_BUFFER: usize = 64 * 1024;
/// How often an end that is awaited is looked for.
const POLL: Duration = Duration::from_millis(20);
/// How long a runtime may take to end once nothing is awaited any more.
const RUNTIME_END: Duration = Duration::from_millis(500);

/// Why the edge does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be bound.
    #[error("{name}: cannot listen on {address}: {error}")]
    Bind {
        /// The listener's name.
        name: String,
        /// The address.
        address: SocketAddr,
        /// What the system says.
        error: std::io::Error,
    },
    /// A listener cannot speak TLS.
    #[error("listener {name}: {error}")]
    Tls {
        /// The listener's name.
        name: String,
        /// What is wrong.
        error: TlsError,
    },
    /// A key set cannot be read.
    #[error("JWK set: {0}")]
    Jwks(#[from] JwksError),
    /// An issuer cannot be asked about tokens.
    #[error("introspection: {0}")]
    Introspection(#[from] OutgoingError),
    /// A metric is defined twice.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The system gives no threads.
    #[error("runtime: {0}")]
    Runtime(std::io::Error),
    /// The system gives no randomness.
    #[error("no randomness")]
    Randomness,
}

/// A running edge. Dropping it stops it at once.
#[derive(Debug)]
pub struct Running {
    runtime: Option<Runtime>,
    shutdown: watch::Sender<bool>,
    listeners: Vec<(SocketAddr, Arc<Occupancy>)>,
    admin: SocketAddr,
    drain: Duration,
}

impl Running {
    /// The addresses that the listeners are bound to, in the order of the configuration.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.listeners.iter().map(|(address, _)| *address)
    }

    /// The address that the admin listener is bound to.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Stops accepting, and waits until the last connection has ended, at most `drainTimeout`.
    /// Idle connections are closed, those with a request under way after it.
    pub async fn drain(&self) {
        let _ = self.shutdown.send(true);
        let ended = async {
            while self.listeners.iter().any(|(_, it)| it.accepting() || it.live() > 0) {
                tokio::time::sleep(POLL).await;
            }
        };
        if tokio::time::timeout(self.drain, ended).await.is_err() {
            tracing::warn!("requests are cut off: drainTimeout has passed");
        }
    }

    /// Ends everything at once. Not to be called on a runtime's thread.
    pub fn stop(mut self) {
        let _ = self.shutdown.send(true);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(RUNTIME_END);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Binds every address, reads every file, and serves. When it returns the listeners accept; key
/// sets that are fetched may still be under way, which `/readyz` says.
///
/// # Errors
/// When a part cannot be made; then nothing is left running.
pub fn start(config: &Config, log: &Log) -> Result<Running, StartError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    // pingora and reqwest take the process's; when somebody was first, it is theirs.
    let _ = CryptoProvider::clone(&provider).install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.edge.threads.max(1))
        .thread_name("edge")
        .enable_all()
        .build()
        .map_err(StartError::Runtime)?;
    let metrics = Arc::new(Metrics::new(&Shape {
        tenants: &names(&config.rules.tenants, |tenant| &tenant.name),
        listeners: &names(&config.edge.listeners, |listener| &listener.name),
        issuers: &names(&config.issuers, |issuer| &issuer.rules.issuer),
        replay_capacity: config.edge.limits.replay_entries,
    })?);
    let gate = Arc::new(gate(config)?);
    let keys = Arc::new(KeySets::new(&config.issuers, &gate, &metrics, None)?);
    let introspectors = Arc::new(Introspectors::new(&config.issuers, &gate, &metrics)?);
    let parts = Parts::new(
        config,
        gate.clone(),
        keys.clone(),
        introspectors.clone(),
        metrics.clone(),
        log.clone(),
    );
    let parts = Arc::new(ArcSwap::from_pointee(parts));
    let admin_socket = bind("admin", config.edge.admin)?;
    let fronts = fronts(config, &parts, &metrics, &provider)?;

    let (shutdown, watch) = watch::channel(false);
    let mut listeners = Vec::new();
    let mut told = Vec::new();
    for front in fronts {
        told.push((front.name.clone(), Arc::clone(&front.occupancy)));
        listeners.push((front.socket.1, Arc::clone(&front.occupancy)));
        runtime.spawn(serve(front, watch.clone()));
    }
    let (socket, admin) = admin_socket;
    let told = admin::Parts {
        metrics,
        gate,
        replay_capacity: config.edge.limits.replay_entries,
        keys: Arc::clone(&keys),
        introspectors,
        listeners: told,
        log: log.clone(),
    };
    runtime.spawn(serve_admin(socket, told));
    keys.start(runtime.handle());
    let drain = config.edge.drain_timeout;
    Ok(Running { runtime: Some(runtime), shutdown, listeners, admin, drain })
}

fn names<T>(of: &[T], name: impl Fn(&T) -> &str) -> Vec<&str> {
    of.iter().map(name).collect()
}

fn gate(config: &Config) -> Result<Gate, StartError> {
    let limits = &config.edge.limits;
    let window = config.dpop.replay_window;
    let replay = MemoryReplay::new(&random()?, window, limits.replay_entries);
    let asked = config.issuers.iter().filter_map(|issuer| issuer.introspection.as_ref());
    let settings = Settings {
        rules: config.rules.clone(),
        issuers: config.issuers.iter().map(|issuer| issuer.rules.clone()).collect(),
        origins: config.origins.clone(),
        proof: config.dpop,
        authorization_bytes: limits.authorization_bytes,
        proof_bytes: limits.proof_bytes,
        token_cache_entries: limits.token_cache_entries,
        introspection_cache_entries: asked.map(|asking| asking.cache_entries).sum(),
        nonce_secret: random()?,
        started: now(),
    };
    Ok(Gate::new(settings, Arc::new(replay)))
}

fn random() -> Result<[u8; 32], StartError> {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| StartError::Randomness)?;
    Ok(bytes)
}

fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixTime::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// A listener that is bound and ready to accept.
struct Front {
    name: String,
    socket: (TcpListener, SocketAddr),
    app: TlsFront,
    occupancy: Arc<Occupancy>,
}

fn fronts(
    config: &Config,
    parts: &Arc<ArcSwap<Parts>>,
    metrics: &Arc<Metrics>,
    provider: &Arc<CryptoProvider>,
) -> Result<Vec<Front>, StartError> {
    let front = |(index, listener): (usize, &Listener)| {
        let name = listener.name.clone();
        let tls = tls::server(&listener.tls, provider)
            .map_err(|error| StartError::Tls { name: name.clone(), error })?;
        for (path, not_after) in &tls.expiry {
            metrics.certificate_expiry(&name, &path.display().to_string(), *not_after);
        }
        let socket = bind(&name, listener.address)?;
        let limits = Limits {
            index,
            connections: listener.max_connections,
            handshake: listener.tls.handshake_timeout,
            head: listener.head_timeout,
        };
        let proxy = proxy(config, parts, index, listener);
        let app = TlsFront::new(tls.config, proxy, limits, Arc::clone(metrics));
        Ok(Front { name, socket, occupancy: app.occupancy(), app })
    };
    config.edge.listeners.iter().enumerate().map(front).collect()
}

fn bind(name: &str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let bound = TcpListener::bind(address).and_then(|socket| {
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        Ok((socket, address))
    });
    bound.map_err(|error| StartError::Bind { name: name.to_owned(), address, error })
}

fn proxy(
    config: &Config,
    parts: &Arc<ArcSwap<Parts>>,
    index: usize,
    listener: &Listener,
) -> HttpProxy<Edge> {
    let conf = ServerConf {
        threads: config.edge.threads,
        max_retries: ATTEMPTS,
        upstream_keepalive_pool_size: UPSTREAM_POOL,
        // Upstreams are spoken to in clear. Without a file pingora reads the system's authorities
        // and panics where there are none.
        ca_file: Some("/dev/null".to_owned()),
        ..ServerConf::default()
    };
    let mut proxy = http_proxy(&Arc::new(conf), Edge::new(Arc::clone(parts), index));
    let mut options = HttpServerOptions::default();
    options.keepalive_request_limit = Some(listener.keepalive_requests);
    options.h2_idle_timeout = Some(listener.keepalive_timeout);
    proxy.server_options = Some(options);
    let mut h2 = default_h2_options();
    h2.max_concurrent_streams(listener.h2_max_streams);
    h2.max_send_buffer_size(H2_SEND_BUFFER);
    proxy.h2_options = Some(h2);
    proxy
}

async fn serve(front: Front, shutdown: ShutdownWatch) {
    let Front { name, socket: (socket, address), app, .. } = front;
    tracing::info!(listener = name, %address, "listening");
    let key = address.to_string();
    let mut service = Service::new(name, app);
    service.add_listener(ListenerConfig::tcp(key.clone()));
    // Bound before, so that a start that fails says so instead of trying again for half a minute.
    let mut fds = Fds::new();
    fds.add(key, socket.into_raw_fd());
    let fds: ListenFds = Arc::new(fds.into());
    service.start_service(Some(fds), shutdown, 1).await;
}

async fn serve_admin(socket: TcpListener, parts: admin::Parts) {
    let served = match tokio::net::TcpListener::from_std(socket) {
        Ok(socket) => admin::serve(socket, parts).await,
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        tracing::error!(%error, "the admin listener has ended");
    }
}

#[cfg(test)]
mod tests;
