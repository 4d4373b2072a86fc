//! Which build it is, and which configuration is in force.

use prometheus::{Gauge, IntCounter, IntGauge};

use super::Definer;
use super::ends::seconds;
use crate::policy::time::UnixTime;

/// The series.
#[derive(Debug)]
pub(super) struct Configuration {
    /// Taken, refused.
    reloads: [IntCounter; 2],
    succeeded: IntGauge,
    in_force_since: Gauge,
    /// Out of a sandbox that hides when the machine was booted, what is of the process itself says 0.
    started: Gauge,
}

impl Configuration {
    pub(super) fn define(define: &Definer<'_>) -> prometheus::Result<Self> {
        let build =
            define.gauges("holdfast_build_info", "1, for the build that runs", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let reloads = define.counters(
            "holdfast_config_reloads_total",
            "Reloads of the configuration, after SIGHUP or a change of a file",
            &["result"],
        )?;
        let name = "holdfast_config_last_reload_success_timestamp_seconds";
        let help = "When the configuration in force was taken, seconds since 1970";
        let start = "holdfast_start_time_seconds";
        let start_help = "When the process began to serve, seconds since 1970";
        Ok(Self {
            reloads: ["ok", "failed"].map(|result| reloads.with_label_values(&[result])),
            succeeded: define.gauge(
                "holdfast_config_last_reload_successful",
                "Whether the last reload was taken; 1 before the first",
            )?,
            in_force_since: define.families.family(name, || Gauge::new(name, help))?,
            started: define.families.family(start, || Gauge::new(start, start_help))?,
        })
    }

    /// The configuration that the process starts with came into force.
    pub(super) fn started(&self, at: UnixTime) {
        self.succeeded.set(1);
        self.in_force_since.set(seconds(at));
        self.started.set(seconds(at));
    }

    /// A reload was taken, at `taken`, or not.
    pub(super) fn reloaded(&self, taken: Option<UnixTime>) {
        let [ok, failed] = &self.reloads;
        self.succeeded.set(taken.is_some().into());
        match taken {
            Some(at) => {
                ok.inc();
                self.in_force_since.set(seconds(at));
            }
            None => failed.inc(),
        }
    }
}
