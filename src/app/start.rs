//! From a configuration to an edge that serves, in steps: what can fail comes first, and what clients
//! notice last.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use pingora::listeners::ListenerConfig;
use pingora::server::{Fds, ListenFds, ShutdownWatch};
use pingora::services::Service as _;
use pingora::services::listening::Service;
use rustls::crypto::CryptoProvider;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::site::{FIRST, InForce, Lasting, Made, Site, make};
use super::sockets::{self, Given};
use super::{POLL, Running, StartError, serving};
use crate::config::Config;
use crate::edge::accept::Serving;
use crate::edge::admin;
use crate::edge::listener::{Front, Occupancy};
use crate::policy::nonce::NonceSecret;
use crate::policy::time::UnixTime;
use crate::store::sqlite::Fault;
use crate::telemetry::log::Log;

/// Everything that an edge is made of but its sockets: every file is read, and stores are open.
#[derive(Debug)]
pub struct Prepared {
    runtime: Runtime,
    lasting: Lasting,
    made: Made,
}

impl Prepared {
    /// Makes the parts.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn new(config: &Config, log: &Log) -> Result<Self, StartError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        // pingora and reqwest take the process's; when somebody was first, it is theirs.
        let _ = CryptoProvider::clone(&provider).install_default();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.edge.threads.max(1))
            .thread_name("edge")
            .enable_all()
            .build()
            .map_err(StartError::Runtime)?;
        let lasting = Lasting::new(config, log, provider, runtime.handle())?;
        let made = make(config, &lasting, None, FIRST)?;
        Ok(Self { runtime, lasting, made })
    }

    /// Gives each listener its socket, of those that are `given` or a new one, and begins to fetch keys and
    /// to watch upstreams. Nothing is accepted yet.
    ///
    /// # Errors
    /// When an address cannot be bound.
    pub fn bind(self, config: &Config, mut given: Given) -> Result<Ready, StartError> {
        let Self { runtime, lasting, made } = self;
        lasting.sign_with(made.ring);
        let current = Arc::new(ArcSwap::from(Arc::clone(&made.parts)));
        let admin = given.take(sockets::ADMIN, config.edge.admin)?;
        let mut fronts = Vec::new();
        for (index, (listener, tls)) in config.edge.listeners.iter().zip(made.tls).enumerate() {
            let place = (&current, index);
            let serving = serving(config, place, listener, tls, &lasting.leaving, Arc::default());
            let socket = given.take(&listener.name, listener.address)?;
            let serving = Arc::new(ArcSwap::from_pointee(serving));
            let metrics = Arc::clone(&made.parts.common().metrics);
            let leaving = Arc::clone(&lasting.leaving);
            let app = Front::new(index, Arc::clone(&serving), leaving, metrics);
            let (name, occupancy) = (listener.name.clone(), app.occupancy());
            fronts.push(Bound { name, socket, occupancy, serving, app });
        }
        let told = fronts.iter().map(|front| (front.name.clone(), Arc::clone(&front.occupancy)));
        let told = admin::Told::new(Arc::clone(&current), told.collect(), lasting.started);
        told.speak(made.admin_tls);
        made.parts.start(runtime.handle());
        let in_force = InForce { config: config.clone(), generation: FIRST, bypass: made.bypass };
        let site = Site {
            lasting,
            current,
            serving: fronts.iter().map(|front| Arc::clone(&front.serving)).collect(),
            told: Arc::new(told),
            in_force: Mutex::new(Arc::new(in_force)),
        };
        Ok(Ready { runtime, site, fronts, admin, left: given.rest() })
    }
}

/// An edge that has all it needs and accepts nothing yet.
#[derive(Debug)]
pub struct Ready {
    runtime: Runtime,
    site: Site,
    fronts: Vec<Bound>,
    admin: (TcpListener, SocketAddr),
    left: Vec<String>,
}

impl Ready {
    /// That every socket which was given is one of a listener.
    ///
    /// # Errors
    /// [`StartError::Sockets`].
    pub fn with_all_sockets(self) -> Result<Self, StartError> {
        if self.left.is_empty() { Ok(self) } else { Err(StartError::Sockets(self.left.join(", "))) }
    }

    /// Waits until `/readyz` would say that it is, keys that are fetched included.
    ///
    /// # Errors
    /// [`StartError::Unready`] when that takes longer than `limit`.
    pub async fn become_ready(&self, limit: Duration) -> Result<(), StartError> {
        let ready = async {
            while !admin::report(&self.site.told).0 {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(limit, ready).await.map_err(|_| {
            let report = admin::report(&self.site.told).1.to_string();
            StartError::Unready { limit, report }
        })
    }

    /// Takes the place of a memory of proofs that ends at `line`
    /// ([`OfProcess`](crate::store::epoch::OfProcess)).
    pub fn begin_after(&self, line: UnixTime) {
        if let Some(memory) = &self.site.lasting.memory {
            memory.begin(line);
        }
    }

    /// What this process makes its nonces from.
    #[must_use]
    pub fn nonce_secret(&self) -> Option<NonceSecret> {
        self.site.current.load().common().gate.nonce_secret()
    }

    /// Sockets once more, by name, to be handed on.
    ///
    /// # Errors
    /// What the system says.
    fn again(&self) -> std::io::Result<Vec<(String, TcpListener)>> {
        let fronts = self.fronts.iter().map(|front| (front.name.as_str(), &front.socket.0));
        let all = std::iter::once((sockets::ADMIN, &self.admin.0)).chain(fronts);
        all.map(|(name, socket)| Ok((name.to_owned(), socket.try_clone()?))).collect()
    }

    /// Has noted what the configuration says of the temporary bypass, for which Redis is waited for, and
    /// accepts.
    ///
    /// # Errors
    /// [`StartError::Unwritten`].
    pub fn begin(self) -> Result<Running, StartError> {
        let noted = self.site.in_force().bypass.note(&self.site.lasting, true);
        noted.recv().unwrap_or(Err(Fault::Closed))?;
        Ok(self.serve())
    }

    /// Accepts. Of the bypass nothing is noted: [`Running::note_bypass`].
    #[must_use]
    pub fn serve(self) -> Running {
        let sockets = self.again().unwrap_or_else(|error| {
            tracing::warn!(%error, "this process will not be able to hand its sockets on");
            Vec::new()
        });
        let Self { runtime, site, fronts, admin: (socket, admin), .. } = self;
        let (shutdown, watch) = watch::channel(false);
        let (admin_serves, admin_ends) = watch::channel(());
        runtime.spawn(serve_admin(socket, Arc::clone(&site.told), admin_ends));
        let mut listeners = Vec::new();
        for front in fronts {
            listeners.push((front.socket.1, Arc::clone(&front.occupancy)));
            runtime.spawn(serve(front, watch.clone()));
        }
        let admin_serves = Mutex::new(Some(admin_serves));
        let sockets = Mutex::new(sockets);
        Running { runtime: Some(runtime), shutdown, listeners, admin, admin_serves, sockets, site }
    }
}

/// A listener that is bound and ready to accept.
#[derive(Debug)]
struct Bound {
    name: String,
    socket: (TcpListener, SocketAddr),
    app: Front,
    serving: Arc<ArcSwap<Serving>>,
    occupancy: Arc<Occupancy>,
}

async fn serve(front: Bound, shutdown: ShutdownWatch) {
    let Bound { name, socket: (socket, address), app, .. } = front;
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

async fn serve_admin(socket: TcpListener, told: Arc<admin::Told>, ends: watch::Receiver<()>) {
    match tokio::net::TcpListener::from_std(socket) {
        Ok(socket) => admin::serve(socket, told, ends).await,
        Err(error) => tracing::error!(%error, "nobody listens for administrators"),
    }
}
