//! How full the memories of used proofs are.

use prometheus::IntGauge;

use super::{Definer, Shape, number};

/// The `log` label of `holdfast_replay_entries`: memories that cannot fill one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayMemory {
    /// Proofs at resources.
    Resource,
    /// Proofs at token endpoints.
    Token,
    /// Proofs of nodes.
    Node,
}

impl ReplayMemory {
    const ALL: [Self; 3] = [Self::Resource, Self::Token, Self::Node];

    fn name(self) -> &'static str {
        match self {
            Self::Resource => "resource",
            Self::Token => "token",
            Self::Node => "node",
        }
    }
}

/// One number for each [`ReplayMemory`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ByMemory {
    /// Of [`ReplayMemory::Resource`].
    pub resource: usize,
    /// Of [`ReplayMemory::Token`].
    pub token: usize,
    /// Of [`ReplayMemory::Node`].
    pub node: usize,
}

impl ByMemory {
    fn of(self, memory: ReplayMemory) -> i64 {
        number(match memory {
            ReplayMemory::Resource => self.resource,
            ReplayMemory::Token => self.token,
            ReplayMemory::Node => self.node,
        })
    }
}

/// The series.
#[derive(Debug)]
pub(super) struct ReplayMetrics(Vec<(ReplayMemory, IntGauge)>);

impl ReplayMetrics {
    pub(super) fn define(define: &Definer<'_>, shape: &Shape<'_>) -> prometheus::Result<Self> {
        let help = "Live proofs that this edge has had remembered, in its memory or in Redis";
        let live = define.gauges("holdfast_replay_entries", help, &["log"])?;
        let capacity = define.gauges(
            "holdfast_replay_capacity",
            "Live proofs that this edge may have remembered",
            &["log"],
        )?;
        for memory in ReplayMemory::ALL {
            let most = shape.replay_capacity.of(memory);
            capacity.with_label_values(&[memory.name()]).set(most);
        }
        let series = |memory: ReplayMemory| (memory, live.with_label_values(&[memory.name()]));
        Ok(Self(ReplayMemory::ALL.map(series).into()))
    }

    pub(super) fn set(&self, live: ByMemory) {
        for (memory, gauge) in &self.0 {
            gauge.set(live.of(*memory));
        }
    }
}
