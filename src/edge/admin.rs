//! The admin listener: `/metrics`, `/healthz`, `/readyz`. Loopback, in clear, never on a public
//! address.

use std::sync::Arc;

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

/// Serves until the runtime ends.
///
/// # Errors
/// When the socket fails.
pub async fn serve(socket: tokio::net::TcpListener, parts: Parts) -> std::io::Result<()> {
    axum::serve(socket, router(Arc::new(parts))).await
}

fn router(parts: Arc<Parts>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(parts)
}

async fn metrics(State(parts): State<Arc<Parts>>) -> Response {
    let edge = parts.edge.load();
    let servers = edge.servers().flat_map(|upstream| {
        upstream.status().map(|status| (upstream.name(), status.server, status.up))
    });
    let text = parts.metrics.render(parts.gate.live_proofs(), parts.log.suppressed(), servers);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn ready(State(parts): State<Arc<Parts>>) -> Response {
    let (ready, report) = report(&parts);
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
