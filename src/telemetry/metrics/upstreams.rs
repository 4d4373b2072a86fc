//! What upstreams answer, and which of their servers are up.

use prometheus::core::Collector as _;
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntGaugeVec, Opts};

use super::{CLASSES, Definer, Shape, count};

/// The `class` of a request that an upstream gave no answer to.
const FAILED: &str = "failed";
const SERIES: usize = CLASSES.len() + 1;

/// The series, by upstream and class.
#[derive(Debug)]
pub(super) struct UpstreamMetrics(Vec<IntCounter>);

impl UpstreamMetrics {
    pub(super) fn define(define: &Definer<'_>, shape: &Shape<'_>) -> prometheus::Result<Self> {
        let counters = define.counters(
            "holdfast_upstream_responses_total",
            "What upstreams answered, by class; failed where they gave no answer",
            &["upstream", "class"],
        )?;
        let series = |name: &&str| {
            let classes = CLASSES.into_iter().chain([FAILED]);
            classes.map(|class| counters.with_label_values(&[*name, class])).collect::<Vec<_>>()
        };
        Ok(Self(shape.upstreams.iter().flat_map(series).collect()))
    }

    pub(super) fn answered(&self, upstream: usize, status: Option<u16>) {
        let class = match status {
            None => Some(CLASSES.len()),
            Some(status) => super::class(status),
        };
        if let Some(class) = class {
            count(&self.0, upstream * SERIES + class);
        }
    }
}

pub(super) fn up<'a>(
    servers: impl IntoIterator<Item = (&'a str, &'a str, bool)>,
) -> Vec<MetricFamily> {
    let opts =
        Opts::new("holdfast_upstream_up", "Whether checks found a server up, 1 without checks");
    let Ok(gauges) = IntGaugeVec::new(opts, &["upstream", "server"]) else { return Vec::new() };
    for (upstream, server, up) in servers {
        gauges.with_label_values(&[upstream, server]).set(up.into());
    }
    // The encoder takes no family without a series.
    gauges.collect().into_iter().filter(|family| !family.get_metric().is_empty()).collect()
}
