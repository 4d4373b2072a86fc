//! The admin listener: `/metrics`, `/healthz`, `/readyz`. In clear on a loopback address; on any other
//! with TLS, for whoever has a certificate.
//!
//! HTTP/1.1 alone, and a connection for each request: whoever does not ask, waits for ever, or does not take what
//! he is answered, is cut off, and before that gives way to whoever comes after him (`door`). One is answered at
//! a time.

#![expect(
    clippy::disallowed_methods,
    reason = "a connection holds up nobody but who has opened it"
)]

mod door;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::audit::COUNTING;
use super::jwks::KeyStatus;
use super::listener::Occupancy;
use super::parts::{self, Common, Parts};
use super::upstream::{ServerStatus, Servers};
pub use door::Tls;
use door::{Door, Guest, Stay};

use crate::policy::time::UnixTime;
use crate::store::redis;
use crate::store::sqlite::Fault;
use crate::telemetry::metrics::{ByMemory, Now};

/// How long a request's head is waited for.
const HEAD: Duration = Duration::from_secs(10);
/// Bytes of a request's head, and of an answer that wait to be written.
const BUFFER: usize = 16 * 1024;
/// How long a connection may go on once nobody is let in any more.
const LEAVE: Duration = Duration::from_secs(5);

/// What the admin listener tells, one configuration after another.
#[derive(Debug)]
pub struct Told {
    edge: Arc<ArcSwap<Parts>>,
    listeners: Vec<(String, Arc<Occupancy>)>,
    reloads: Mutex<Reloads>,
    tls: Tls,
    /// Whose turn it is: for the metrics, and for readiness.
    turns: [tokio::sync::Mutex<()>; 2],
}

#[derive(Clone, Debug)]
struct Reloads {
    since: UnixTime,
    error: Option<String>,
}

impl Told {
    /// Of what is in `edge`, which came into force at `since`, and of the listeners, by name.
    #[must_use]
    pub fn new(
        edge: Arc<ArcSwap<Parts>>,
        listeners: Vec<(String, Arc<Occupancy>)>,
        since: UnixTime,
    ) -> Self {
        edge.load().common().metrics.config_started(since);
        let reloads = Mutex::new(Reloads { since, error: None });
        Self { edge, listeners, reloads, tls: Tls::default(), turns: Default::default() }
    }

    /// From now on who asks must speak TLS like this; `None`: in clear.
    pub fn speak(&self, tls: Option<Arc<rustls::ServerConfig>>) {
        self.tls.store(tls);
    }

    /// Another configuration has come into force.
    pub fn reloaded(&self, since: UnixTime) {
        self.edge.load().common().metrics.config_reloaded(Some(since));
        self.note(Reloads { since, error: None });
    }

    /// A reload has failed, so that the configuration before stays in force.
    pub fn reload_failed(&self, error: String) {
        self.edge.load().common().metrics.config_reloaded(None);
        let since = self.noted().since;
        self.note(Reloads { since, error: Some(error) });
    }

    fn note(&self, reloads: Reloads) {
        *self.reloads.lock().unwrap_or_else(PoisonError::into_inner) = reloads;
    }

    fn noted(&self) -> Reloads {
        self.reloads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Serves until the other end of `ends` is gone, or the runtime.
pub async fn serve(socket: tokio::net::TcpListener, told: Arc<Told>, ends: watch::Receiver<()>) {
    let door = Door::open(socket, Arc::clone(&told.tls));
    receive(door, router(told), ends).await;
}

/// Answers whoever comes in by `door`.
async fn receive(mut door: Door, router: Router, mut ends: watch::Receiver<()>) {
    let (open, mut all_gone) = mpsc::channel::<()>(1);
    loop {
        let (guest, stay) = tokio::select! {
            guest = door.accept() => guest,
            ended = ends.changed() => match ended {
                Ok(()) => continue,
                Err(_) => break,
            },
        };
        let (router, ends, open) = (router.clone(), ends.clone(), open.clone());
        tokio::spawn(async move {
            attend(guest, stay, router, ends).await;
            drop(open);
        });
    }
    // What comes now is the next process's.
    drop((door, open));
    let _ = all_gone.recv().await;
}

/// Answers one connection, for as long as it may stay.
async fn attend(guest: Guest, stay: Stay, router: Router, ends: watch::Receiver<()>) {
    tokio::select! {
        () = answer(guest, router, ends) => {}
        () = stay.over() => tracing::debug!("admin listener: cut off"),
    }
}

/// Answers one request, until its connection or the listener ends.
async fn answer(guest: Guest, router: Router, mut ends: watch::Receiver<()>) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD);
    http.keep_alive(false).max_buf_size(BUFFER);
    let service = TowerToHyperService::new(router);
    let connection = http.serve_connection(TokioIo::new(guest), service);
    tokio::pin!(connection);
    let ended = async { while ends.changed().await.is_ok() {} };
    let outcome = tokio::select! {
        outcome = &mut connection => outcome,
        () = ended => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(LEAVE, connection).await {
                Ok(outcome) => outcome,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "admin listener");
    }
}

fn router(told: Arc<Told>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(told)
}

async fn metrics(State(told): State<Arc<Told>>) -> Response {
    let [turn, _] = &told.turns;
    let _turn = turn.lock().await;
    let edge = told.edge.load_full();
    let capsules = edge.common().capsules.as_deref();
    let mut store = match &edge.common().audit {
        Some(audit) => Some(audit.status().await),
        None => None,
    };
    if let Some((store, capsules)) = store.as_mut().zip(capsules) {
        let counted = capsules.quarantines(parts::now());
        store.quarantines = tokio::time::timeout(COUNTING, counted).await.unwrap_or_default();
    }
    let servers = edge.servers().flat_map(|upstream| {
        upstream.status().map(|status| (upstream.name(), status.server, status.up))
    });
    let Common { gate, metrics, log, redis, .. } = edge.common();
    let now = Now {
        live_proofs: ByMemory {
            resource: gate.live_proofs(),
            token: gate.live_grants(),
            node: capsules.map_or(0, |capsules| capsules.live_proofs()),
        },
        log_suppressed: log.suppressed(),
        bypass: gate.bypass(parts::now()).is_some(),
        store,
        shared: redis.as_ref().map(|redis| redis.is_up()),
    };
    let text = metrics.render(&now, servers);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn ready(State(told): State<Arc<Told>>) -> Response {
    let [_, turn] = &told.turns;
    let _turn = turn.lock().await;
    let edge = told.edge.load_full();
    if let Some(audit) = &edge.common().audit {
        audit.look_again().await;
    }
    let (ready, mut report) = report(&told);
    // A reload that failed leaves the edge as able to serve as it was.
    let reloads = told.noted();
    if let Some(report) = report.as_object_mut() {
        let (since, error) = (reloads.since.secs(), &reloads.error);
        let told = json!({ "inForceSince": since, "lastReloadError": error });
        report.insert("configuration".to_owned(), told);
    }
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let content = [(header::CONTENT_TYPE, "application/json")];
    (status, content, format!("{report:#}\n")).into_response()
}

/// Each part with whether it can do its work.
/// Whether the edge is ready, and each part of that.
#[must_use]
pub fn report(told: &Told) -> (bool, Value) {
    let edge = told.edge.load();
    let Common { gate, .. } = edge.common();
    let mut ready = true;
    let mut part = |ok: bool| {
        ready &= ok;
        ok
    };
    let listeners: Vec<_> = told
        .listeners
        .iter()
        .map(|(name, occupancy)| {
            let ready = part(occupancy.accepting());
            json!({ "name": name, "ready": ready, "connections": occupancy.live() })
        })
        .collect();
    let issuers = issuers(edge.common());
    for issuer in &issuers {
        part(issuer["ready"] == true);
    }
    let upstreams = upstreams(&edge);
    // One service that is down is its routes' trouble; without any the edge serves nobody.
    part(upstreams.is_empty() || upstreams.iter().any(|upstream| upstream["ready"] == true));
    let limits = edge.limits();
    let log = |live: usize, capacity: usize| json!({ "ready": live < capacity, "entries": live, "capacity": capacity });
    let replay = log(gate.live_proofs(), limits.replay_entries);
    part(gate.live_proofs() < limits.replay_entries);
    // Any fresh key makes a proof that fills it: who sends those must not take the edge from resources.
    let grants = log(gate.live_grants(), limits.token_replay_entries);
    // Where nothing but the audit log is kept, requests are served without it.
    let bindings = edge.binds().then(|| {
        let bindings = gate.bindings();
        let up = bindings.is_some_and(|bindings| bindings.is_up());
        json!({ "ready": part(up), "lastError": bindings.and_then(|it| it.trouble()) })
    });
    let shared = edge.common().redis.as_ref().map(|redis| {
        part(redis.is_up());
        shared(&redis.status())
    });
    // Open or not, it is no reason to send requests elsewhere.
    let bypass = gate
        .bypass(parts::now())
        .map(|bypass| json!({ "id": bypass.seen.id, "until": bypass.until.rfc3339().to_string() }));
    let capsules = edge.common().capsules.as_ref().map(|capsules| {
        let (up, trouble) = (capsules.is_up(), capsules.nodes().trouble());
        // Where that has lost something no edge serves a node until somebody has looked, and a balancer
        // would take all of them from the services.
        part(up || (trouble.as_ref().is_some_and(Fault::is_doubt) && capsules.logs()));
        let error = trouble.map(|fault| fault.to_string());
        json!({ "ready": up, "store": up, "masterKeys": capsules.masters(), "lastError": error })
    });
    let report = json!({
        "ready": ready,
        "listeners": listeners,
        "issuers": issuers,
        "upstreams": upstreams,
        "replay": replay,
        "tokenReplay": grants,
        "bindings": bindings,
        "redis": shared,
        "bypass": bypass,
        "capsules": capsules,
    });
    (ready, report)
}

fn issuers(common: &Common) -> Vec<Value> {
    let issuer = |(index, (issuer, status)): (usize, (&str, KeyStatus))| {
        let (ready, error) = (status.loaded, status.error);
        // An issuer that is away is no reason to send requests elsewhere.
        match common.introspectors.status(index) {
            None => json!({ "issuer": issuer, "ready": ready, "lastError": error }),
            Some(last) => json!({
                "issuer": issuer,
                "ready": ready,
                "lastError": error,
                "introspection": { "lastError": last },
            }),
        }
    };
    common.keys.status().enumerate().map(issuer).collect()
}

/// What edges share. The epoch's first characters tell whether two edges see the same.
fn shared(status: &redis::Status) -> Value {
    let epoch = status.epoch.map(|epoch| epoch.to_string());
    json!({ "ready": status.up, "epoch": epoch, "lastError": status.error })
}

fn upstreams(edge: &Parts) -> Vec<Value> {
    let server = |status: &ServerStatus<'_>| {
        json!({
            "name": status.server,
            "up": status.up,
            "addresses": status.addresses,
            "lastError": status.error,
        })
    };
    let upstream = |servers: &Arc<Servers>| {
        let status: Vec<_> = servers.status().collect();
        let ready = status.iter().any(|status| status.up);
        let each: Vec<_> = status.iter().map(server).collect();
        json!({ "name": servers.name(), "ready": ready, "servers": each })
    };
    edge.servers().map(upstream).collect()
}

#[cfg(test)]
mod tests;
