//! Writes that count only when replicas have them, many at a time.
//!
//! `WAIT` holds up the connection that it is sent on, and speaks of that connection's writes alone.
//! So these writes have a connection of their own, on which one batch after another goes out: every
//! write that has come in meanwhile, and one `WAIT` behind them all.

use std::sync::Arc;
use std::time::Duration;

use redis::{Pipeline, Value};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::link::Link;
use super::settings::Wait;
use crate::store::task::Task;

/// Writes in one batch.
const BATCH: usize = 512;
/// Writes that wait for the next batch; past them a write is refused.
const WAITING: usize = 4096;

/// Fewer replicas than configured have a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooFew;

struct Write {
    pipeline: Pipeline,
    answers: oneshot::Sender<Result<Vec<Value>, TooFew>>,
}

/// The way to a server's replicas.
#[derive(Debug)]
pub(super) struct Commits {
    writes: mpsc::Sender<Write>,
    task: Task,
    /// The longest that one write may take: a batch under way, and its own.
    within: Duration,
}

impl Commits {
    pub(super) fn start(link: Link, wait: Wait, timeout: Duration) -> Self {
        let (writes, batches) = mpsc::channel(WAITING);
        let within = timeout + wait.within;
        let work = work(Arc::new(link), batches, wait, within);
        let task = Task::start(&Handle::current(), work);
        Self { writes, task, within: within * 2 }
    }

    /// Whether its connection has ended.
    pub(super) fn ended(&self) -> bool {
        self.task.ended()
    }

    /// The answers, when the writes are on enough replicas; `None` when nobody knows what became of
    /// them.
    pub(super) async fn send(&self, pipeline: &Pipeline) -> Option<Result<Vec<Value>, TooFew>> {
        let (answers, answered) = oneshot::channel();
        let write = Write { pipeline: pipeline.clone(), answers };
        self.writes.try_send(write).ok()?;
        tokio::time::timeout(self.within, answered).await.ok()?.ok()
    }
}

async fn work(link: Arc<Link>, mut batches: mpsc::Receiver<Write>, wait: Wait, within: Duration) {
    let mut batch = Vec::new();
    while batches.recv_many(&mut batch, BATCH).await > 0 {
        let mut all = Pipeline::new();
        for write in &batch {
            for command in write.pipeline.cmd_iter() {
                all.add_command(command.clone());
            }
        }
        all.cmd("WAIT").arg(wait.replicas).arg(wait.within.as_millis().max(1).to_string());
        let Some(mut answers) = link.send(&all, within).await else {
            // Nobody knows. Behind an answer that is still to come the next would be taken for late.
            return;
        };
        let enough = matches!(answers.pop(), Some(Value::Int(replicas))
            if u32::try_from(replicas).is_ok_and(|replicas| replicas >= wait.replicas));
        let mut answers = answers.into_iter();
        for write in batch.drain(..) {
            let own: Vec<_> = answers.by_ref().take(write.pipeline.len()).collect();
            let _ = write.answers.send(if enough { Ok(own) } else { Err(TooFew) });
        }
    }
}
