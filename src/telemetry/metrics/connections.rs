//! The connections of the listeners.

use prometheus::{IntCounter, IntGauge};

use super::labels::ConnectionLoss;
use super::{Definer, Shape, count, number};

/// The series.
#[derive(Debug)]
pub(super) struct ConnectionMetrics {
    /// By listener.
    open: Vec<IntGauge>,
    /// By listener, reason.
    losses: Vec<IntCounter>,
}

impl ConnectionMetrics {
    pub(super) fn define(define: &Definer<'_>, shape: &Shape<'_>) -> prometheus::Result<Self> {
        let open = define.gauges("holdfast_connections", "Open connections", &["listener"])?;
        let limits = define.gauges(
            "holdfast_connections_limit",
            "Connections that may be open at once",
            &["listener"],
        )?;
        let lost = define.counters(
            "holdfast_connections_lost_total",
            "Connections that were ended before they brought a request",
            &["listener", "reason"],
        )?;
        for (name, most) in shape.listeners {
            limits.with_label_values(&[name]).set(number(*most));
        }
        let names = || shape.listeners.iter().map(|(name, _)| *name);
        let by_reason = |name: &str| {
            ConnectionLoss::ALL.map(|reason| lost.with_label_values(&[name, reason.name()]))
        };
        Ok(Self {
            open: names().map(|name| open.with_label_values(&[name])).collect(),
            losses: names().flat_map(by_reason).collect(),
        })
    }

    pub(super) fn opened(&self, listener: usize) {
        if let Some(gauge) = self.open.get(listener) {
            gauge.inc();
        }
    }

    pub(super) fn closed(&self, listener: usize) {
        if let Some(gauge) = self.open.get(listener) {
            gauge.dec();
        }
    }

    pub(super) fn lost(&self, listener: usize, reason: ConnectionLoss) {
        count(&self.losses, listener * ConnectionLoss::ALL.len() + reason as usize);
    }
}
