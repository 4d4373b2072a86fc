//! The composition root: a resolved configuration becomes parts, the parts become listeners.
//!
//! The edge runs on a runtime of its own, so that a process may run it beside something else and
//! stop it without ending itself.

#![expect(clippy::disallowed_methods, reason = "the root draws keys and reads the clock")]

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use pingora::apps::HttpServerOptions;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::proxy::{HttpProxy, http_proxy};
use pingora::server::configuration::ServerConf;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;

use crate::config::{Config, Listener, NonceStore, ReplayStore};
use crate::edge::accept::{InFront, Limits, Serving};
use crate::edge::calls::Timed;
use crate::edge::jwks::JwksError;
use crate::edge::leaving::Leaving;
use crate::edge::listener::Occupancy;
use crate::edge::outgoing::OutgoingError;
use crate::edge::parts::Parts;
use crate::edge::proxy::Edge;
use crate::edge::tls::{ServerTls, TlsError};
use crate::edge::trust::Live;
use crate::edge::upstream::{MAX_ATTEMPTS, Servers, UpstreamError};
use crate::gate::{Gate, Settings, Stores, Withdrawn};
use crate::policy::nonce::NonceSecret;
use crate::policy::time::UnixTime;
use crate::store::epoch::OfProcess;
use crate::store::keys::KeysError;
use crate::store::redis::apart;
use crate::store::sqlite::{Fault, OpenError};
use crate::telemetry::log::Log;

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
    /// An upstream cannot be used.
    #[error("upstream {name}: {error}")]
    Upstream {
        /// The upstream's name.
        name: String,
        /// What is wrong.
        error: UpstreamError,
    },
    /// An issuer cannot be asked about tokens.
    #[error("introspection: {0}")]
    Introspection(#[from] OutgoingError),
    /// Spans cannot be sent.
    #[error("telemetry.traces: {0}")]
    Traces(OutgoingError),
    /// A metric is defined twice.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The store cannot be opened.
    #[error("store: {0}")]
    Store(#[from] OpenError),
    /// The store is being moved, or restored.
    #[error("store: `holdfast store` works on it; start when that has ended")]
    Occupied,
    /// The store cannot be written.
    #[error("store: {0}")]
    Unwritten(#[from] Fault),
    /// Keys of capsules cannot be used.
    #[error("capsules.keys: {0}")]
    Keys(#[from] KeysError),
    /// A database of networks cannot be used.
    #[error("capsules.networks: {0}")]
    Networks(String),
    /// Sockets were given for which there is no listener.
    #[error("no listener has the address of the socket that was passed as {0}")]
    Sockets(String),
    /// It would begin to serve without what it needs.
    #[error("not ready within {limit:?}: {report}")]
    Unready {
        /// How long was waited.
        limit: Duration,
        /// What `/readyz` would say.
        report: String,
    },
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
    /// Ends the admin listener when it is dropped.
    admin_serves: Mutex<Option<watch::Sender<()>>>,
    /// Each once more, by name, to be handed to another process.
    sockets: Mutex<Vec<(String, TcpListener)>>,
    site: Site,
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

    /// Takes another configuration, as a whole or not at all: what the edge does not have to forget
    /// (proofs, nonces, connections) stays.
    ///
    /// # Errors
    /// When a part cannot be made, or the configuration changes what only a restart can; then the
    /// one before stays in force.
    pub fn reload(&self, config: &Config) -> Result<(), ReloadError> {
        let runtime = self.runtime.as_ref().ok_or(ReloadError::Stopped)?;
        self.site.reload(config, runtime.handle())
    }

    /// Tells `/readyz` and the metrics of a configuration that could not even be read.
    pub fn reload_failed(&self, error: String) {
        self.site.told.reload_failed(error);
    }

    /// Gives work to the threads that serve, for who looks whether they still take some up; `None` once
    /// it has been stopped.
    #[must_use]
    pub fn threads(&self) -> Option<&Handle> {
        self.runtime.as_ref().map(Runtime::handle)
    }

    /// Where the next process waits for its sockets ([`handover`]), by the configuration in force.
    #[must_use]
    pub fn upgrade_socket(&self) -> PathBuf {
        self.site.in_force().config.edge.upgrade_socket.clone()
    }

    /// The sockets that it listens on, by name, and the memory of proofs that another process takes the
    /// place of: what that one needs to go on where this one ends.
    ///
    /// # Errors
    /// What the system says.
    pub fn estate(&self) -> std::io::Result<Estate> {
        let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let again = |(name, socket): &(String, TcpListener)| {
            Ok((name.clone(), OwnedFd::from(socket.try_clone()?)))
        };
        let sockets = sockets.iter().map(again).collect::<std::io::Result<_>>()?;
        let ahead = self.site.in_force().config.dpop.clock_skew;
        Ok(Estate { sockets, memory: self.site.lasting.memory.clone(), ahead })
    }

    /// Has noted what the configuration says of the temporary bypass, now that no other process's is in force.
    /// Where that cannot be done it is said, and tried again.
    pub fn note_bypass(&self) {
        // Nobody waits for what comes of it.
        drop(self.site.in_force().bypass.note(&self.site.lasting, false));
    }

    /// Gives out the nonces of the process that takes this one's place, or its own again.
    pub fn give_out(&self, successor: Option<&NonceSecret>) {
        self.site.current.load().common().gate.give_out(successor);
    }

    /// Stops accepting, and waits until the last connection has ended, at most `drainTimeout`.
    /// Idle connections are closed soon, those with a request under way after it.
    pub async fn drain(&self) {
        self.leave(false).await;
    }

    /// The same where another process accepts from the sockets already. Nobody waits for the end of this
    /// one, so that idle connections may live on until `drainTimeout`.
    pub async fn give_way(&self) {
        // From now on the other one's configuration says what is to be noted of the bypass.
        *self.site.lasting.noting.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.admin_serves.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.leave(true).await;
    }

    async fn leave(&self, succeeded: bool) {
        self.site.lasting.leaving.begin(succeeded);
        let _ = self.shutdown.send(true);
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let ended = async {
            while self.listeners.iter().any(|(_, it)| it.accepting() || it.live() > 0) {
                tokio::time::sleep(POLL).await;
            }
        };
        let limit = self.site.in_force().config.edge.drain_timeout;
        if tokio::time::timeout(limit, ended).await.is_err() {
            tracing::warn!("connections are cut off: drainTimeout has passed");
        }
    }

    /// Ends everything at once. Not to be called on a runtime's thread.
    pub fn stop(mut self) {
        let _ = self.shutdown.send(true);
        if let Some(runtime) = self.runtime.take() {
            if let Some(traces) = &self.site.current.load().common().traces {
                runtime.block_on(traces.flush());
            }
            runtime.shutdown_timeout(RUNTIME_END);
        }
        self.site.lasting.finish();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What one process leaves to the next.
#[derive(Debug)]
pub struct Estate {
    /// Each listener's socket, by its name.
    pub sockets: Vec<(String, OwnedFd)>,
    /// The memory of proofs, where it is this process's own.
    pub memory: Option<Arc<OfProcess>>,
    /// What proofs may be dated ahead.
    pub ahead: Duration,
}

/// Binds every address, reads every file, and serves. When it returns the listeners accept; key
/// sets that are fetched may still be under way, which `/readyz` says.
///
/// # Errors
/// When a part cannot be made; then nothing is left running.
pub fn start(config: &Config, log: &Log) -> Result<Running, StartError> {
    Prepared::new(config, log)?.bind(config, Given::default())?.begin()
}

/// The servers of each upstream, which are not watched yet.
fn servers(config: &Config, before: Option<&Parts>) -> Result<Vec<Arc<Servers>>, StartError> {
    let before: Vec<_> = before.into_iter().flat_map(Parts::servers).collect();
    let servers = config.upstreams.iter().map(|upstream| {
        let servers = Servers::new(upstream);
        let servers =
            servers.map_err(|error| StartError::Upstream { name: upstream.name.clone(), error })?;
        servers.inherit(before.iter().map(|servers| &***servers));
        Ok(Arc::new(servers))
    });
    servers.collect()
}

/// By how much later than the begin of a shared memory a proof without a nonce must be dated: what it may
/// be dated ahead of the edge that admitted it before, and what that edge's clock may be ahead of this one's.
fn era_margin(clock_skew: Duration) -> Duration {
    clock_skew.saturating_add(apart(clock_skew))
}

fn gate(
    config: &Config,
    lasting: &Lasting,
    bypass: bypass::Cell,
    withdrawn: Arc<dyn Withdrawn>,
) -> Gate {
    let limits = &config.edge.limits;
    let keys = config.nonce_keys.iter();
    let mut nonce_secrets: Vec<_> = keys.map(|key| NonceSecret::new(*key.bytes())).collect();
    if nonce_secrets.is_empty() {
        nonce_secrets.push(lasting.nonce_secret.clone());
    }
    let shared = config.replay_store == ReplayStore::Redis;
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
        nonce_secrets,
        era_margin: if shared { era_margin(config.dpop.clock_skew) } else { Duration::ZERO },
        clients: config.clients.clone(),
        bypass,
        rotation_grace: config.rotation_grace,
    };
    let stores = Stores {
        replay: Arc::clone(&lasting.replay),
        grants: Arc::clone(&lasting.grants),
        nonces: lasting.nonces.clone(),
        grant_nonces: lasting.grant_nonces.clone(),
        epochs: Arc::clone(&lasting.epochs),
        bindings: lasting.bindings.clone(),
        withdrawn,
    };
    let traced = config.telemetry.traces.is_some();
    Gate::new(settings, if traced { timed(stores, config) } else { stores })
}

/// The stores with their calls timed, for spans.
fn timed(stores: Stores, config: &Config) -> Stores {
    let redis = |is: bool| is.then_some("redis");
    let proofs = redis(config.replay_store == ReplayStore::Redis);
    let nonces = redis(config.nonce_store == NonceStore::Redis);
    let shared = config.store.as_ref().is_some_and(|store| store.redis.is_some());
    let records = redis(shared).or(Some("sqlite"));
    let spent = |store| Arc::new(Timed::new(store, nonces)) as _;
    Stores {
        replay: Arc::new(Timed::new(stores.replay, proofs)),
        grants: Arc::new(Timed::new(stores.grants, proofs)),
        nonces: stores.nonces.map(spent),
        grant_nonces: stores.grant_nonces.map(spent),
        bindings: stores.bindings.map(|store| Arc::new(Timed::new(store, records)) as _),
        ..stores
    }
}

fn random() -> Result<[u8; 32], StartError> {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| StartError::Randomness)?;
    Ok(bytes)
}

/// The time.
pub(crate) fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixTime::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Where the parts are that requests meet, and which listener's requests.
type Place<'a> = (&'a Arc<ArcSwap<Parts>>, usize);

fn serving(
    config: &Config,
    place: Place<'_>,
    listener: &Listener,
    tls: ServerTls,
    leaving: &Arc<Leaving>,
    live: Arc<Live>,
) -> Serving {
    let limits = Limits {
        connections: listener.max_connections,
        handshake: listener.tls.as_ref().map_or(listener.head_timeout, |tls| tls.handshake_timeout),
        head: listener.head_timeout,
        body: listener.body_timeout,
    };
    let in_front =
        InFront { proxies: listener.proxies.clone(), proxy_protocol: listener.proxy_protocol };
    Serving::new(tls, in_front, proxy(config, place, listener, leaving), limits, live)
}

fn proxy(
    config: &Config,
    (parts, index): Place<'_>,
    listener: &Listener,
    leaving: &Arc<Leaving>,
) -> HttpProxy<Edge> {
    let conf = ServerConf {
        threads: config.edge.threads,
        max_retries: ATTEMPTS,
        upstream_keepalive_pool_size: UPSTREAM_POOL,
        // Upstreams bring their authorities. Without a file pingora reads the system's, and panics
        // where there are none.
        ca_file: Some("/dev/null".to_owned()),
        ..ServerConf::default()
    };
    let mut proxy =
        http_proxy(&Arc::new(conf), Edge::new(Arc::clone(parts), index, Arc::clone(leaving)));
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

mod bypass;
pub mod handover;
mod metrics;
mod shared;
mod site;
pub mod sockets;
mod start;

pub use site::ReloadError;
use site::{Lasting, Site};
use sockets::Given;
pub use start::{Prepared, Ready};

#[cfg(test)]
mod tests;
