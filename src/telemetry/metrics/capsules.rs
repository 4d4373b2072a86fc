//! What is counted of runtime capsules and the store.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge};

use super::Definer;
use crate::policy::capsule::decision::Reason;
use crate::policy::capsule::node::Status;

const RISK_BUCKETS: &[f64] = &[0.0, 20.0, 40.0, 60.0, 80.0, 110.0, 190.0];

/// The `reason` label of `holdfast_capsule_decisions_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapsuleResult {
    /// There is a capsule.
    Granted,
    /// There is none.
    Refused(Reason),
}

impl CapsuleResult {
    /// The label's value.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Granted => "GRANTED",
            Self::Refused(reason) => reason.name(),
        }
    }

    fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Granted).chain(Reason::ALL.map(Self::Refused))
    }
}

/// The `result` label of `holdfast_node_telemetry_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TelemetryResult {
    /// It counts.
    Taken,
    /// From a boot without a capsule.
    OtherBoot,
    /// From a network that scores.
    StrangeNetwork,
    /// Not the node's, or out of order.
    Refused,
}

impl TelemetryResult {
    const ALL: [Self; 4] = [Self::Taken, Self::OtherBoot, Self::StrangeNetwork, Self::Refused];

    /// The label's value.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::OtherBoot => "other-boot",
            Self::StrangeNetwork => "strange-network",
            Self::Refused => "refused",
        }
    }
}

/// How the store stands when the metrics are asked for.
#[derive(Clone, Debug, Default)]
pub struct StoreStatus {
    /// Whether it does its work.
    pub up: bool,
    /// Whether no node is served until somebody has looked.
    pub doubted: bool,
    /// How many nodes have each status.
    pub nodes: Vec<(Status, u64)>,
    /// Refusals that were not written to the audit log since the start.
    pub suppressed: u64,
    /// How far the fleet brake is.
    pub quarantines: Quarantines,
}

/// The nodes that were quarantined within the fleet brake's window, and how many may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quarantines {
    /// How many were.
    pub recent: u32,
    /// From how many on nodes are held instead.
    pub most: u32,
}

/// The series.
#[derive(Debug)]
pub(super) struct CapsuleMetrics {
    decisions: Vec<IntCounter>,
    risk: Histogram,
    held: IntCounter,
    telemetry: Vec<IntCounter>,
    nodes: Vec<IntGauge>,
    store_up: [IntGauge; 2],
    doubted: IntGauge,
    suppressed: IntCounter,
    /// Recent, most.
    quarantines: [IntGauge; 2],
}

impl CapsuleMetrics {
    pub(super) fn define(define: &Definer<'_>) -> prometheus::Result<Self> {
        let reasons: Vec<_> = CapsuleResult::all().map(CapsuleResult::name).collect();
        let risk = "holdfast_capsule_risk_score";
        let held = "holdfast_capsule_held_total";
        let results = define.counters(
            "holdfast_node_telemetry_total",
            "Telemetry of nodes by what became of it",
            &["result"],
        )?;
        let up = define.gauges(
            "holdfast_store_up",
            "Whether each store does its work, or is not in use",
            &["store"],
        )?;
        let nodes = define.gauges("holdfast_node_status", "Nodes by status", &["status"])?;
        Ok(Self {
            decisions: define.reasons(
                "holdfast_capsule_decisions_total",
                "Requests for a runtime capsule by what became of them",
                &reasons,
            )?,
            risk: define.families.family(risk, || {
                let opts = HistogramOpts::new(risk, "Risk of requests that were weighed");
                Histogram::with_opts(opts.buckets(RISK_BUCKETS.to_vec()))
            })?,
            held: define.counter(held, "Nodes that the fleet brake kept from being quarantined")?,
            telemetry: TelemetryResult::ALL
                .map(|result| results.with_label_values(&[result.name()]))
                .into(),
            nodes: Status::ALL.map(|status| nodes.with_label_values(&[status.name()])).into(),
            store_up: ["embedded", "redis"].map(|store| up.with_label_values(&[store])),
            doubted: define.gauge(
                "holdfast_nodes_doubted",
                "Whether no node is served because the store has lost changes, or nobody can tell",
            )?,
            suppressed: define.counter(
                "holdfast_audit_suppressed_total",
                "Refusals that were counted but not written to the audit log",
            )?,
            quarantines: [
                define.gauge(
                    "holdfast_fleet_quarantines",
                    "Nodes that were quarantined within the fleet brake's window",
                )?,
                define.gauge(
                    "holdfast_fleet_quarantines_limit",
                    "Quarantines from which on nodes are held instead; 0 without capsules",
                )?,
            ],
        })
    }

    pub(super) fn decided(&self, result: CapsuleResult, score: Option<u32>, held: bool) {
        let place = CapsuleResult::all().position(|known| known == result);
        super::count(&self.decisions, place.unwrap_or(usize::MAX));
        if let Some(score) = score {
            self.risk.observe(score.into());
        }
        if held {
            self.held.inc();
        }
    }

    pub(super) fn telemetry(&self, result: TelemetryResult) {
        let place = TelemetryResult::ALL.iter().position(|known| *known == result);
        super::count(&self.telemetry, place.unwrap_or(usize::MAX));
    }

    /// Sets the gauges; without a store nothing of it is down. `shared` is whether Redis is up.
    pub(super) fn set(&self, store: Option<&StoreStatus>, shared: Option<bool>) {
        let [embedded, redis] = &self.store_up;
        embedded.set(store.is_none_or(|store| store.up).into());
        redis.set(shared.unwrap_or(true).into());
        let Some(store) = store else { return };
        self.doubted.set(store.doubted.into());
        super::raise(&self.suppressed, store.suppressed);
        let [recent, most] = &self.quarantines;
        recent.set(store.quarantines.recent.into());
        most.set(store.quarantines.most.into());
        for (status, count) in &store.nodes {
            let place = Status::ALL.iter().position(|known| known == status);
            if let Some(gauge) = place.and_then(|place| self.nodes.get(place)) {
                gauge.set(i64::try_from(*count).unwrap_or(i64::MAX));
            }
        }
    }
}
