//! Spans that come to nothing.

use super::{Metrics, SpanLoss};

impl Metrics {
    /// Counts spans that did not come to the collector.
    pub fn spans_dropped(&self, reason: SpanLoss, spans: usize) {
        if let Some(counter) = self.spans_dropped.get(reason as usize) {
            counter.inc_by(u64::try_from(spans).unwrap_or(u64::MAX));
        }
    }
}
