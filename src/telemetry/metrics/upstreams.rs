//! Gauges of upstreams' servers, made when they are asked for.

use prometheus::core::Collector as _;
use prometheus::proto::MetricFamily;
use prometheus::{IntGaugeVec, Opts};

/// Whether each server, by its upstream's name and its own, is up.
pub(super) fn upstream_up<'a>(
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
