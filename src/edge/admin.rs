//! The admin listener: `/metrics`, `/healthz`, `/readyz`. Loopback, in clear, never on a public
//! address.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use serde_json::{Value, json};

use super::jwks::KeySets;
use super::listener::Occupancy;
use super::parts;
use super::upstream::{ServerStatus, Servers};
use crate::gate::Gate;
use crate::policy::time::UnixTime;
use crate::telemetry::log::Log;
use crate::telemetry::metrics::Metrics;

/// What the admin listener tells of.
#[derive(Debug)]
pub struct Parts {
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// Live proofs.
    pub gate: Arc<Gate>,
    /// Live proofs that fit.
    pub replay_capacity: usize,
    /// The issuers' keys.
    pub keys: Arc<KeySets>,
    /// The configuration in force, for the upstreams.
    pub edge: Arc<ArcSwap<parts::Parts>>,
    /// The listeners, by name.
    pub listeners: Vec<(String, Arc<Occupancy>)>,
    /// Dropped lines.
    pub log: Log,
}

/// What the admin listener tells, one configuration after another.
#[derive(Debug)]
pub struct Told {
    parts: ArcSwap<Parts>,
    reloads: Mutex<Reloads>,
}

#[derive(Clone, Debug)]
struct Reloads {
    since: UnixTime,
    error: Option<String>,
}

impl Told {
    /// Of the configuration that came into force at `since`.
    #[must_use]
    pub fn new(parts: Parts, since: UnixTime) -> Self {
        let reloads = Mutex::new(Reloads { since, error: None });
        Self { parts: ArcSwap::from_pointee(parts), reloads }
    }

    /// Another configuration has come into force.
    pub fn replace(&self, parts: Parts, since: UnixTime) {
        self.parts.store(Arc::new(parts));
        *self.reloads.lock().unwrap_or_else(PoisonError::into_inner) =
            Reloads { since, error: None };
    }

    /// A reload has failed, so that the configuration before stays in force.
    pub fn reload_failed(&self, error: String) {
        self.parts.load().metrics.config_reloaded(false);
        self.reloads.lock().unwrap_or_else(PoisonError::into_inner).error = Some(error);
    }
}

/// Serves until the runtime ends.
///
/// # Errors
/// When the socket fails.
pub async fn serve(socket: tokio::net::TcpListener, told: Arc<Told>) -> std::io::Result<()> {
    axum::serve(socket, router(told)).await
}

fn router(told: Arc<Told>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(told)
}

async fn metrics(State(told): State<Arc<Told>>) -> Response {
    let parts = told.parts.load();
    let edge = parts.edge.load();
    let servers = edge.servers().flat_map(|upstream| {
        upstream.status().map(|status| (upstream.name(), status.server, status.up))
    });
    let text = parts.metrics.render(parts.gate.live_proofs(), parts.log.suppressed(), servers);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn ready(State(told): State<Arc<Told>>) -> Response {
    let (ready, mut report) = report(&told.parts.load());
    // A reload that failed leaves the edge as able to serve as it was.
    let reloads = told.reloads.lock().unwrap_or_else(PoisonError::into_inner).clone();
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
fn report(parts: &Parts) -> (bool, Value) {
    let mut ready = true;
    let mut part = |ok: bool| {
        ready &= ok;
        ok
    };
    let listeners: Vec<_> = parts
        .listeners
        .iter()
        .map(|(name, occupancy)| {
            let ready = part(occupancy.accepting());
            json!({ "name": name, "ready": ready, "connections": occupancy.live() })
        })
        .collect();
    let issuers: Vec<_> = parts
        .keys
        .status()
        .map(|(issuer, status)| {
            json!({ "issuer": issuer, "ready": part(status.loaded), "lastError": status.error })
        })
        .collect();
    let upstreams = upstreams(&parts.edge.load());
    // One service that is down is its routes' trouble; without any the edge serves nobody.
    part(upstreams.is_empty() || upstreams.iter().any(|upstream| upstream["ready"] == true));
    let live = parts.gate.live_proofs();
    let capacity = parts.replay_capacity;
    let replay = json!({ "ready": part(live < capacity), "entries": live, "capacity": capacity });
    let report = json!({
        "ready": ready,
        "listeners": listeners,
        "issuers": issuers,
        "upstreams": upstreams,
        "replay": replay,
    });
    (ready, report)
}

fn upstreams(edge: &parts::Parts) -> Vec<Value> {
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
