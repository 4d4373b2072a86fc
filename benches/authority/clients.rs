//! Clients of the edge, and what it does with its store for them.

use crate::cases::Kind;
use crate::drive::{WARM_UP, warm_up};
use crate::load::Load;
use crate::stage::Stage;
use crate::threads::{Done, Thread};
use crate::{Outcome, http1};

/// What the edge did with its store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    /// Its thread.
    pub(crate) writer: Done,
    /// Transactions.
    pub(crate) commits: u32,
    /// Bytes that the edge had written to the disk.
    pub(crate) written: u64,
}

impl Stored {
    /// So far.
    fn by(stage: &Stage) -> Outcome<Self> {
        Ok(Self {
            writer: Thread::named(stage.edge.id(), "store")?.done()?,
            commits: stage.commits()?,
            written: stage.bytes_written()?,
        })
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            writer: self.writer.since(&before.writer),
            commits: self.commits.wrapping_sub(before.commits),
            written: self.written.saturating_sub(before.written),
        }
    }
}

/// Opens connections, warms them up, and measures. The statuses are those of all requests, those
/// before the clock included: what they were granted is in the store as well.
pub(crate) async fn run(
    stage: &Stage,
    kind: Kind,
    clients: usize,
    mut requests: Vec<Vec<u8>>,
) -> Outcome<(Load, Stored)> {
    let measured = requests.split_off(WARM_UP * clients);
    let tls = stage.tls(kind)?;
    let mut open = Vec::with_capacity(clients);
    while open.len() < clients {
        open.push(http1::Client::open(stage.port, tls.clone()).await?);
    }
    let warm = warm_up(open, requests).await?;
    let (statuses, before) = (warm.before.statuses.clone(), Stored::by(stage)?);
    let mut load = warm.measure(stage.edge.id(), measured).await?;
    let stored = Stored::by(stage)?.since(&before);
    for (status, count) in statuses {
        *load.statuses.entry(status).or_default() += count;
    }
    Ok((load, stored))
}
