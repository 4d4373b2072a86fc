//! What would have been refused under `enforce`.

use prometheus::IntCounter;

use super::{Definer, Metrics, Shape, Tenant, count};
use crate::policy::denial::Lack;

/// `holdfast_observed_refusals_total`, by tenant, reason.
#[derive(Debug)]
pub(super) struct Observed(Vec<IntCounter>);

impl Observed {
    pub(super) fn define(define: &Definer<'_>, shape: &Shape<'_>) -> prometheus::Result<Self> {
        let counters = define.counters(
            "holdfast_observed_refusals_total",
            "Requests that mode: observe let pass and enforce would refuse, by what they lack",
            &["tenant", "reason"],
        )?;
        let tenants = shape.tenants.iter().copied().chain(["default", "other"]);
        let of = |tenant| Lack::ALL.map(|lack| counters.with_label_values(&[tenant, lack.name()]));
        Ok(Self(tenants.flat_map(of).collect()))
    }
}

impl Metrics {
    /// Counts a request that was let pass and would have been refused under `enforce`.
    pub fn observed(&self, tenant: Tenant, lack: Lack) {
        let place = self.tenant(tenant) * Lack::ALL.len() + lack as usize;
        count(&self.observed.0, place);
    }
}
