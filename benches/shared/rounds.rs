//! What is told of a load, round by round.

use serde_json::Value;

use crate::load::Load;

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
