//! What of the refusals is written to the audit log: each client's share of it, and no more.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::policy::audit::Draft;
use crate::policy::time::UnixTime;
use crate::store::budget::{Budget, Verdict, Whom};
use crate::store::nodes::Nodes;
use crate::store::registry::Registry;
use crate::store::sqlite::Fault;
use crate::telemetry::metrics::{Quarantines, StoreStatus};

/// How long anything is counted for who asks how the store stands: he would give up as well.
pub(super) const COUNTING: Duration = Duration::from_secs(2);

/// The way into the audit log for what nobody waits for.
#[derive(Clone, Debug)]
pub struct Audit {
    /// Where it is kept.
    pub registry: Registry,
    /// The nodes that it is about, wherever those are kept.
    pub nodes: Arc<dyn Nodes>,
    /// The refusals that may still be written down.
    pub budget: Arc<Budget>,
}

impl Audit {
    /// Writes a line about what `client` did, some time soon and as far as its budget for `reason`
    /// goes, and that of all strangers. What is left out is counted, and the count is written with the next line.
    pub(super) fn note(&self, client: Option<IpAddr>, reason: &'static str, draft: Draft) {
        let verdict = self.budget.take(Whom::Stranger(client), reason);
        let Verdict::Write { suppressed } = verdict else { return };
        if suppressed > 0 {
            self.write(Draft::suppressed(suppressed, draft.at, &draft.id));
        }
        self.write(draft);
    }

    fn write(&self, draft: Draft) {
        let budget = Arc::clone(&self.budget);
        self.registry.note(draft, move || budget.leave_out());
    }

    /// How the store stands, tried anew where it failed last.
    pub async fn status(&self) -> StoreStatus {
        let nodes = tokio::time::timeout(COUNTING, self.nodes.count()).await;
        self.look_again().await;
        // Nodes that lie in Redis have a gauge of their own.
        let (up, suppressed) = (self.registry.is_up(), self.budget.suppressed());
        StoreStatus {
            up,
            doubted: self.nodes.trouble().as_ref().is_some_and(Fault::is_doubt),
            nodes: nodes.ok().and_then(Result::ok).unwrap_or_default(),
            suppressed,
            quarantines: Quarantines::default(),
        }
    }

    /// Whether both the log and the nodes are to be had.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.registry.is_up() && self.nodes.is_up()
    }

    /// Tries again what failed last.
    pub async fn look_again(&self) {
        self.registry.look_again().await;
        // As of the last time, where it takes so long.
        let _ = tokio::time::timeout(COUNTING, self.nodes.look_again()).await;
    }

    /// Writes how many were left out since the last line, and waits until all is written. Not to be
    /// called on a runtime's thread.
    pub fn finish(&self, now: UnixTime) {
        let count = self.budget.flush();
        if count > 0 {
            self.write(Draft::suppressed(count, now, "the end of the process"));
        }
        self.registry.finish();
    }
}
