//! What one configuration makes, what outlives it, and how the next takes its place.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use tokio::runtime::Handle;

use super::bypass::Wanted;
use super::shared::{bindings, failures, presence, replay, spent_nonces};
use super::{StartError, gate, now, random, servers, serving};
use crate::config::{Config, ReplayStore, Store};
use crate::edge::accept::Serving;
use crate::edge::admin;
use crate::edge::audit::Audit;
use crate::edge::authority;
use crate::edge::capsules::{self, Capsules};
use crate::edge::exporter::Traces;
use crate::edge::introspect::Introspectors;
use crate::edge::jwks::KeySets;
use crate::edge::leaving::Leaving;
use crate::edge::parts::{Common, Parts};
use crate::edge::tls::{self, ServerTls, TlsError};
use crate::policy::epoch::Reign;
use crate::policy::nonce::NonceSecret;
use crate::policy::time::UnixTime;
use crate::store::bindings::Bindings;
use crate::store::budget::Budget;
use crate::store::epoch::{Epochs, OfProcess, SETTLE};
use crate::store::failures::FailureLimits;
use crate::store::keys::{AuditSigner, KeyRing};
use crate::store::networks::Networks;
use crate::store::nodes::Nodes;
use crate::store::nodes::shared::SharedNodes;
use crate::store::nonces::SpentNonces;
use crate::store::redis::{Partition, Redis};
use crate::store::registry::Registry;
use crate::store::replay::ReplayLog;
use crate::store::serving;
use crate::store::sqlite::OpenError;
use crate::store::sqlite::writer::{CheckpointRule, Signer};
use crate::store::task::Task;
use crate::telemetry::log::Log;

/// Addresses whose proofs at token endpoints are counted apart.
const PACED: usize = 100_000;

/// What failures at nodes are counted under.
const NODES: &str = "nodes";

/// The first configuration of a process.
pub(super) const FIRST: u64 = 1;

/// Why a configuration does not take the place of the one before.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// A part cannot be made.
    #[error(transparent)]
    Part(#[from] StartError),
    /// What was changed is fixed while the process lives.
    #[error("{0} cannot change while the edge runs: restart it")]
    Restart(String),
    /// The edge has been stopped.
    #[error("the edge has been stopped")]
    Stopped,
}

/// What outlives every configuration of a process.
#[derive(Debug)]
pub(super) struct Lasting {
    log: Log,
    provider: Arc<CryptoProvider>,
    pub(super) runtime: Handle,
    pub(super) replay: Arc<dyn ReplayLog>,
    /// Proofs at token endpoints.
    pub(super) grants: Arc<dyn ReplayLog>,
    /// Nonces that are used up.
    pub(super) nonces: Option<Arc<dyn SpentNonces>>,
    /// The same at token endpoints.
    pub(super) grant_nonces: Option<Arc<dyn SpentNonces>>,
    /// Which memory of proofs it is.
    pub(super) epochs: Arc<dyn Epochs>,
    /// The same where it is this process's own.
    pub(super) memory: Option<Arc<OfProcess>>,
    /// Of all listeners, one configuration after another.
    pub(super) leaving: Arc<Leaving>,
    /// What edges share.
    pub(super) redis: Option<Redis>,
    /// Notes the bypass of the configuration in force.
    pub(super) noting: Mutex<Option<Task>>,
    /// What tokens are bound to, where there is a store.
    pub(super) bindings: Option<Arc<dyn Bindings>>,
    authority: authority::State,
    pub(super) nonce_secret: NonceSecret,
    pub(super) started: UnixTime,
    /// Nodes and the audit log, where there is a store.
    pub(super) store: Option<capsules::State>,
    /// Says that an edge serves from it.
    _serving: Option<serving::Lock>,
    /// The same, where edges at other machines are.
    _presence: Option<serving::Presence>,
}

impl Lasting {
    /// Has the audit log signed by the keys of `ring` from now on.
    pub(super) fn sign_with(&self, ring: Option<Arc<KeyRing>>) {
        let signer = ring.map(|ring| Box::new(AuditSigner(ring)) as Box<dyn Signer>);
        if let Some(store) = &self.store {
            store.audit.registry.sign_with(signer);
        }
    }

    /// Has what is under way written, and the audit log signed. Not on a runtime's thread.
    pub(super) fn finish(&self) {
        if let Some(store) = &self.store {
            store.audit.finish(now());
        }
    }

    pub(super) fn new(
        config: &Config,
        log: &Log,
        provider: Arc<CryptoProvider>,
        runtime: &Handle,
    ) -> Result<Self, StartError> {
        let limits = &config.edge.limits;
        let paced = NonZeroU32::new(limits.token_proofs_per_minute).unwrap_or(NonZeroU32::MAX);
        let pace = FailureLimits { per_address: paced, per_node: paced, entries: PACED };
        let settings = config.store.as_ref().and_then(|store| store.redis.clone());
        let redis = settings.map(|settings| Redis::start(settings, runtime));
        let pace = Arc::new(failures(pace, "proofs", redis.as_ref(), runtime)?);
        let shared = redis.clone().filter(|_| config.replay_store == ReplayStore::Redis);
        let log_of = |partition, entries| replay(config, shared.as_ref(), partition, entries);
        let started = now();
        let memory = Arc::new(OfProcess::new(Reign::of_process(random()?, started)));
        let epochs: Arc<dyn Epochs> = match shared.clone() {
            Some(redis) => Arc::new(redis),
            None => Arc::clone(&memory) as Arc<dyn Epochs>,
        };
        let nodes = log_of(Partition::Nodes, limits.replay_entries)?;
        let store = config.store.as_ref();
        let shared_by = (redis.as_ref(), runtime);
        let serving = store.map(|store| serve(&store.path)).transpose()?;
        let store = store.map(|store| open_store(config, store, nodes, shared_by)).transpose()?;
        let registry = store.as_ref().map(|store| store.audit.registry.clone());
        let bindings = registry.map(|registry| bindings(redis.as_ref(), registry, runtime));
        let (nonces, grant_nonces) = spent_nonces(config, redis.as_ref())?.unzip();
        Ok(Self {
            grants: log_of(Partition::Grants, limits.token_replay_entries)?,
            nonces,
            grant_nonces,
            epochs,
            memory: shared.is_none().then_some(memory),
            leaving: Arc::default(),
            store,
            _serving: serving,
            _presence: presence(redis.as_ref(), runtime)?,
            redis,
            noting: Mutex::default(),
            bindings,
            authority: authority::State { caller: Arc::default(), pace },
            log: log.clone(),
            provider,
            runtime: runtime.clone(),
            replay: log_of(Partition::Resources, limits.replay_entries)?,
            nonce_secret: NonceSecret::new(random()?),
            started,
        })
    }
}

/// Says that an edge serves from the store at `path`.
fn serve(path: &Path) -> Result<serving::Lock, StartError> {
    let lock = serving::serve(path)
        .map_err(|error| OpenError::Io { path: path.display().to_string(), error })?;
    lock.ok_or(StartError::Occupied)
}

fn open_store(
    config: &Config,
    store: &Store,
    replay: Arc<dyn ReplayLog>,
    (redis, runtime): (Option<&Redis>, &Handle),
) -> Result<capsules::State, StartError> {
    let audit = &config.audit;
    let rule =
        CheckpointRule { lines: audit.checkpoint_lines, interval: audit.checkpoint_interval };
    let registry = Registry::open(&store.path, rule)?;
    let limits = config.capsules.as_ref().map_or(FailureLimits::default(), |it| it.failures);
    let budget = Budget::new(audit.refusals_per_minute, &store.path, audit.reserve_bytes)
        .up_to(audit.max_bytes, registry.clone());
    let failures = failures(limits, NODES, redis, runtime)?;
    let nodes: Arc<dyn Nodes> = match redis {
        Some(redis) => {
            Arc::new(SharedNodes::start(redis.clone(), registry.clone(), SETTLE, runtime)?)
        }
        None => Arc::new(registry.clone()),
    };
    let audit = Audit { registry, nodes, budget: Arc::new(budget) };
    Ok(capsules::State { audit, failures: Arc::new(failures), replay })
}

/// Capsules, and the keys that they are made with.
type WithKeys = (Arc<Capsules>, Arc<KeyRing>);

/// What capsules need, read anew.
fn capsules(config: &Config, lasting: &Lasting) -> Result<Option<WithKeys>, StartError> {
    let Some((settings, state)) = config.capsules.as_ref().zip(lasting.store.as_ref()) else {
        return Ok(None);
    };
    let ring = Arc::new(KeyRing::load(&settings.keys)?);
    let (asn, region) = (&settings.asn_database, &settings.region_database);
    let networks = Networks::open(asn.as_deref(), region.as_deref());
    let networks = networks.map_err(StartError::Networks)?;
    let mut state = state.clone();
    if state.failures.limits() != settings.failures {
        let (redis, runtime) = (lasting.redis.as_ref(), &lasting.runtime);
        state.failures = Arc::new(failures(settings.failures, NODES, redis, runtime)?);
    }
    let made = Capsules::new(settings, &config.origins, Arc::clone(&ring), networks, state);
    Ok(Some((Arc::new(made), ring)))
}

/// What a configuration makes.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) parts: Arc<Parts>,
    pub(super) tls: Vec<ServerTls>,
    /// What the admin listener speaks.
    pub(super) admin_tls: Option<Arc<rustls::ServerConfig>>,
    /// Who signs the audit log from now on.
    pub(super) ring: Option<Arc<KeyRing>>,
    /// Of which nothing is noted yet.
    pub(super) bypass: Wanted,
}

/// Makes everything that can fail, before anything is put in the place of what is there.
pub(super) fn make(
    config: &Config,
    lasting: &Lasting,
    before: Option<&Parts>,
    generation: u64,
) -> Result<Made, StartError> {
    let (capsules, ring) = capsules(config, lasting)?.unzip();
    let before_metrics = before.map(|before| &*before.common().metrics);
    let metrics = Arc::new(super::metrics::of(config, ring.as_deref(), before_metrics)?);
    let tls = listeners_tls(config, lasting, generation)?;
    let admin_tls = admin_tls(config, lasting, generation)?;
    let bypass = Wanted::new(config)?;
    let gate = gate(config, lasting, Arc::clone(&bypass.cell), Arc::new(withdrawn(config)?));
    let gate = Arc::new(gate);
    let keys = KeySets::new(
        &config.issuers,
        &config.reach,
        &gate,
        &metrics,
        before.map(|before| &*before.common().keys),
    )?;
    let introspectors = Introspectors::new(&config.issuers, &config.reach, &gate, &metrics)?;
    let (keys, introspectors) = (Arc::new(keys), Arc::new(introspectors));
    let traces = config.telemetry.traces.as_ref();
    let traces = traces.map(|it| Traces::new(it, &config.reach, &metrics)).transpose();
    let traces = traces.map_err(StartError::Traces)?.map(Arc::new);
    let log = lasting.log.clone();
    let audit = lasting.store.as_ref().map(|store| store.audit.clone());
    let authority = lasting.authority.clone();
    let redis = lasting.redis.clone();
    let common = Common {
        gate,
        keys,
        introspectors,
        capsules,
        authority,
        audit,
        redis,
        metrics,
        log,
        traces,
    };
    let trust = tls.iter().map(|tls| Arc::clone(&tls.trust)).collect();
    let servers = servers(config, before)?;
    let parts = Parts::new(config, trust, servers, common);
    Ok(Made { parts: Arc::new(parts), tls, admin_tls, ring, bypass })
}

/// The certificates that are on a list of some listener.
fn withdrawn(config: &Config) -> Result<tls::WithdrawnCertificates, StartError> {
    let mut all = tls::WithdrawnCertificates::default();
    for listener in &config.edge.listeners {
        let wrong = |error| StartError::Tls { name: listener.name.clone(), error };
        all.add(listener.tls.as_ref()).map_err(wrong)?;
    }
    Ok(all)
}

fn listeners_tls(
    config: &Config,
    lasting: &Lasting,
    generation: u64,
) -> Result<Vec<ServerTls>, StartError> {
    let mut all = Vec::new();
    for listener in &config.edge.listeners {
        let name = &listener.name;
        let wrong = |error: TlsError| StartError::Tls { name: name.clone(), error };
        all.push(tls::server(listener.tls.as_ref(), &lasting.provider, generation).map_err(wrong)?);
    }
    Ok(all)
}

fn admin_tls(
    config: &Config,
    lasting: &Lasting,
    generation: u64,
) -> Result<Option<Arc<rustls::ServerConfig>>, StartError> {
    let made = tls::server(config.edge.admin_tls.as_ref(), &lasting.provider, generation);
    let made = made.map_err(|error| StartError::Tls { name: "admin".to_owned(), error })?;
    Ok(made.configs.into_iter().next())
}

/// The configuration in force.
#[derive(Debug)]
pub(super) struct InForce {
    pub(super) config: Config,
    pub(super) generation: u64,
    pub(super) bypass: Wanted,
}

/// How long a reload waits until the bypass is noted, so that it is open when that says it is done.
const NOTED: Duration = Duration::from_secs(1);

/// Everything that a reload touches.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) lasting: Lasting,
    pub(super) current: Arc<ArcSwap<Parts>>,
    pub(super) serving: Vec<Arc<ArcSwap<Serving>>>,
    pub(super) told: Arc<admin::Told>,
    /// Held while a reload is under way, so that there is one at a time.
    pub(super) in_force: Mutex<Arc<InForce>>,
}

impl Site {
    pub(super) fn in_force(&self) -> Arc<InForce> {
        Arc::clone(&self.in_force.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn reload(&self, config: &Config, runtime: &Handle) -> Result<(), ReloadError> {
        let mut in_force = self.in_force.lock().unwrap_or_else(PoisonError::into_inner);
        let fixed = fixed(&in_force.config, config);
        if !fixed.is_empty() {
            return Err(ReloadError::Restart(fixed.join(", ")));
        }
        let generation = in_force.generation + 1;
        let before = self.current.load_full();
        let made = make(config, &self.lasting, Some(&before), generation)?;
        // From here on nothing fails. Requests first, so that a connection which is made meanwhile
        // under the trust of before is held against the new one.
        made.bypass.follow(&in_force.bypass);
        self.current.store(made.parts);
        self.told.speak(made.admin_tls);
        self.lasting.sign_with(made.ring);
        let listeners = config.edge.listeners.iter().zip(&self.serving).zip(made.tls);
        for (index, ((listener, place), tls)) in listeners.enumerate() {
            let (live, trust) = (Arc::clone(place.load().live()), Arc::clone(&tls.trust));
            let (at, leaving) = ((&self.current, index), &self.lasting.leaving);
            let serving = serving(config, at, listener, tls, leaving, Arc::clone(&live));
            place.store(Arc::new(serving));
            live.review(&trust, listener, now());
        }
        self.lasting.log.set_level(config.telemetry.level);
        self.told.reloaded(now());
        let after = self.current.load();
        after.start(runtime);
        before.servers().for_each(|servers| servers.retire());
        let bypass = made.bypass;
        // Last, as it may take a while: on a disk that stands still for ever. What cannot be noted is tried
        // again.
        let noted = bypass.note(&self.lasting, false);
        *in_force = Arc::new(InForce { config: config.clone(), generation, bypass });
        let _ = noted.recv_timeout(NOTED);
        Ok(())
    }
}

/// The keys that differ and cannot.
fn fixed(old: &Config, new: &Config) -> Vec<String> {
    let mut keys = Vec::new();
    let mut same = |key: &str, same: bool| {
        if !same {
            keys.push(key.to_owned());
        }
    };
    let (before, after) = (&old.edge, &new.edge);
    let sockets = |edge: &crate::config::Edge| -> Vec<_> {
        edge.listeners.iter().map(|it| (it.name.clone(), it.address)).collect()
    };
    same("edge.listeners (their names and addresses)", sockets(before) == sockets(after));
    same("edge.sealed", old.reach.is_sealed() == new.reach.is_sealed());
    same("edge.admin.address", before.admin == after.admin);
    same("edge.threads", before.threads == after.threads);
    let replay = |edge: &crate::config::Edge| edge.limits.replay_entries;
    same("edge.limits.replayEntries", replay(before) == replay(after));
    let window = |config: &Config| config.dpop.replay_window;
    same("security.senderConstraints.dpop.replayWindow", window(old) == window(new));
    let grants = |config: &Config| {
        (config.edge.limits.token_replay_entries, config.edge.limits.token_proofs_per_minute)
    };
    same("edge.limits.tokenReplayEntries and tokenProofsPerMinute", grants(old) == grants(new));
    same("store", old.store == new.store);
    let shared = |config: &Config| {
        let ttl = config.dpop.nonce_ttl.filter(|_| config.dpop.nonce_single_use);
        (config.replay_store, config.nonce_store, ttl)
    };
    same(
        "security.senderConstraints.dpop.replay, nonce.store, and nonce.ttl with singleUse",
        shared(old) == shared(new),
    );
    same("audit", old.audit == new.audit);
    keys
}
