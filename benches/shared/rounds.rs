//! Rounds of load under a time limit, and what is told of them.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

use crate::load::Load;
use crate::{Outcome, bench, cpu};

/// What `measure`, which is told whether the generator has its core, finds within `limit`.
pub(crate) fn run<T>(limit: Duration, measure: impl AsyncFnOnce(bool) -> Outcome<T>) -> Outcome<T> {
    // Before there is another thread, which would not be moved.
    let pinned = cpu::pin(std::process::id(), cpu::GENERATOR_CORE);
    bench::runtime()?.block_on(async {
        let measured = tokio::time::timeout(limit, measure(pinned));
        measured.await.map_err(|_| format!("not done after {limit:?}"))?
    })
}

/// How a report begins.
pub(crate) fn heading(f: &mut fmt::Formatter<'_>, setting: &str, trial: bool) -> fmt::Result {
    writeln!(f, "{setting}")?;
    if trial {
        writeln!(f, "a trial: these figures say nothing")?;
    }
    Ok(())
}

impl Load {
    /// Its figures, after `members`.
    pub(crate) fn json(&self, mut members: Value) -> Value {
        members["requests"] = self.latencies.len().into();
        members["requests_per_s"] = self.rate().into();
        members["edge_cpu_us"] = self.cost().into();
        members["edge_busy"] = self.busy().into();
        for (name, share) in [("p50_us", 0.5), ("p99_us", 0.99), ("max_us", 1.0)] {
            members[name] = self.latency(share).into();
        }
        members["statuses"] = serde_json::json!(self.statuses);
        members["unanswered"] = serde_json::json!(self.failures);
        members
    }

    /// Every request of a round that was not answered with 200, and answers that are not as many as
    /// the requests.
    pub(crate) fn faults(&self, round: u16, case: &str, requests: u32) -> Vec<String> {
        let place = format!("round {}, {case}", round + 1);
        let other = self.statuses.iter().filter(|(status, _)| **status != 200);
        let mut faults: Vec<_> =
            other.map(|(status, count)| format!("{place}: {count} × {status}")).collect();
        faults.extend(self.failures.iter().map(|failure| format!("{place}: {failure}")));
        if self.latencies.len() != usize::try_from(requests).unwrap_or(0) {
            faults.push(format!("{place}: {} answers", self.latencies.len()));
        }
        faults
    }
}
