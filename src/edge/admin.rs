//! The admin listener: `/metrics`, `/healthz`, `/readyz`. Loopback, in clear, never on a public
//! address.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use serde_json::{Value, json};

use super::introspect::Introspectors;
use super::jwks::KeySets;
use super::listener::Occupancy;
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
    /// What is asked of the issuers.
    pub introspectors: Arc<Introspectors>,
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
    let text = parts.metrics.render(parts.gate.live_proofs(), parts.log.suppressed());
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
        .enumerate()
        .map(|(index, (issuer, status))| {
            let (ready, error) = (part(status.loaded), status.error);
            // An issuer that is away is no reason to send requests elsewhere.
            match parts.introspectors.status(index) {
                None => json!({ "issuer": issuer, "ready": ready, "lastError": error }),
                Some(last) => json!({
                    "issuer": issuer,
                    "ready": ready,
                    "lastError": error,
                    "introspection": { "lastError": last },
                }),
            }
        })
        .collect();
    let live = parts.gate.live_proofs();
    let capacity = parts.replay_capacity;
    let replay = json!({ "ready": part(live < capacity), "entries": live, "capacity": capacity });
    let report = json!({
        "ready": ready,
        "listeners": listeners,
        "issuers": issuers,
        "replay": replay,
    });
    (ready, report)
}
