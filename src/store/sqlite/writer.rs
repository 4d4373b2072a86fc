//! Group commit: what is wanted while one transaction is under way becomes the next one.
//!
//! A commit costs a flush of the disk, whatever is in it. One thread runs what waits, in the order in
//! which it came, commits it at once and then answers everybody: nobody is told of what is not on the
//! disk, and each sees what those before it did.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::batch::Batch;
use super::tail::{Tail, Upkeep};
use super::{Database, Fault, OpenError, now};
use crate::policy::audit::{Checkpoint, Draft, Head};

/// What may wait; more is refused, so that a disk that hangs costs bounded memory.
const QUEUE: usize = 8192;
/// What one transaction takes at most.
const BATCH: usize = 1024;
/// How long a transaction is put off, at most, for what is on its way.
const GATHER: Duration = Duration::from_millis(1);
/// How often it is looked whether it has come: nobody wakes the thread meanwhile.
const GLANCE: Duration = Duration::from_micros(200);
/// How often the writer looks for a checkpoint that is due when nobody wants anything.
const IDLE: Duration = Duration::from_secs(1);

/// How long the end of a process waits for what is under way.
const FINISH: Duration = Duration::from_secs(5);

/// When a checkpoint is due.
#[derive(Clone, Copy, Debug)]
pub struct CheckpointRule {
    /// After so many lines.
    pub lines: u64,
    /// After so long, if there are any.
    pub interval: Duration,
}

/// Signs a checkpoint: a compact JWS over it, `None` when that cannot be done.
pub trait Signer: std::fmt::Debug + Send + Sync {
    /// Signs.
    fn sign(&self, checkpoint: &Checkpoint) -> Option<String>;
}

/// The way to the writer thread. Clones lead to the same one; it ends with the last.
#[derive(Clone, Debug)]
pub struct Writer {
    queue: SyncSender<Box<dyn Work>>,
    signer: Arc<ArcSwapOption<Box<dyn Signer>>>,
    up: Arc<AtomicBool>,
    sign_now: Arc<AtomicBool>,
    coming: Coming,
    path: PathBuf,
    tail: Arc<Tail>,
}

/// How much is on its way to the writer.
#[derive(Clone, Debug, Default)]
struct Coming(Arc<AtomicUsize>);

/// Something that is on its way to the writer. To be dropped when it is handed over, or comes to nothing.
#[derive(Debug)]
pub struct Announced(Coming);

impl Drop for Announced {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Something to be done in a transaction, and somebody to be told.
trait Work: Send {
    fn run(&mut self, batch: &mut Batch<'_>) -> Result<(), Fault>;
    fn answer(self: Box<Self>, done: Result<(), Fault>);
}

struct Task<F, T> {
    work: Option<F>,
    value: Option<T>,
    reply: oneshot::Sender<Result<T, Fault>>,
}

impl<F, T> Work for Task<F, T>
where
    F: FnOnce(&mut Batch<'_>) -> Result<T, Fault> + Send,
    T: Send,
{
    fn run(&mut self, batch: &mut Batch<'_>) -> Result<(), Fault> {
        if let Some(work) = self.work.take() {
            self.value = Some(work(batch)?);
        }
        Ok(())
    }

    fn answer(self: Box<Self>, done: Result<(), Fault>) {
        let Self { value, reply, .. } = *self;
        // Who has gone away is not told.
        let _ = reply.send(done.and_then(|()| value.ok_or(Fault::Closed)));
    }
}

/// A line that nobody waits for.
struct Note {
    draft: Draft,
    lost: Option<Box<dyn FnOnce() + Send>>,
}

impl Work for Note {
    fn run(&mut self, batch: &mut Batch<'_>) -> Result<(), Fault> {
        batch.append(&self.draft)
    }

    fn answer(self: Box<Self>, done: Result<(), Fault>) {
        if let (Err(_), Some(lost)) = (done, self.lost) {
            lost();
        }
    }
}

impl Writer {
    /// Opens the store and starts its thread.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn start(path: &Path, rule: CheckpointRule) -> Result<Self, OpenError> {
        let database = Database::open(path)?;
        let tail = Arc::clone(&database.tail);
        let (queue, jobs) = sync_channel(QUEUE);
        let signer = Arc::new(ArcSwapOption::empty());
        let up = Arc::new(AtomicBool::new(true));
        let sign_now = Arc::new(AtomicBool::new(false));
        let coming = Coming::default();
        let state = State {
            database,
            jobs,
            signer: Arc::clone(&signer),
            rule,
            up: Arc::clone(&up),
            sign_now: Arc::clone(&sign_now),
            coming: coming.clone(),
            upkeep: Upkeep::default(),
        };
        let thread = std::thread::Builder::new().name("store".to_owned());
        let io = |error| OpenError::Io { path: path.display().to_string(), error };
        thread.spawn(move || state.run()).map_err(io)?;
        Ok(Self { queue, signer, up, sign_now, coming, path: path.to_owned(), tail })
    }

    /// Says that something will be asked for soon, until what this returns is dropped.
    #[must_use]
    pub fn announce(&self) -> Announced {
        self.coming.0.fetch_add(1, Ordering::Relaxed);
        Announced(self.coming.clone())
    }

    /// The file, and the rows of it that are found in memory.
    pub(super) fn place(&self) -> (&Path, &Arc<Tail>) {
        (&self.path, &self.tail)
    }

    /// Whether the last transaction was committed. While none can be, the thread tries once a second.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Who signs checkpoints from now on; without anybody there are none.
    pub fn sign_with(&self, signer: Option<Box<dyn Signer>>) {
        self.signer.store(signer.map(Arc::new));
        // A log without any signature gets its first one now. Where there is no room for this, there is
        // work that brings it.
        let (reply, _) = oneshot::channel::<Result<(), Fault>>();
        let work = |_: &mut Batch<'_>| Ok(());
        let _ = self.queue.try_send(Box::new(Task { work: Some(work), value: None, reply }));
    }

    /// Does `work` in a transaction, after all that was asked for before. It is durable when this
    /// returns `Ok`.
    ///
    /// # Errors
    /// [`Fault`]; then nothing of it was done.
    pub async fn transact<F, T>(&self, work: F) -> Result<T, Fault>
    where
        F: FnOnce(&mut Batch<'_>) -> Result<T, Fault> + Send + 'static,
        T: Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let task = Task { work: Some(work), value: None, reply };
        self.queue.try_send(Box::new(task)).map_err(|error| match error {
            TrySendError::Full(_) => Fault::Busy,
            TrySendError::Disconnected(_) => Fault::Closed,
        })?;
        answer.await.unwrap_or(Err(Fault::Closed))
    }

    /// Waits, at most some seconds, until all that was asked for is done, and has the log signed. Not
    /// to be called on a runtime's thread.
    pub fn finish(&self) {
        let (reply, mut answer) = oneshot::channel::<Result<(), Fault>>();
        self.sign_now.store(true, Ordering::Relaxed);
        let work = |_: &mut Batch<'_>| Ok(());
        if self.queue.try_send(Box::new(Task { work: Some(work), value: None, reply })).is_err() {
            return;
        }
        let began = Instant::now();
        while began.elapsed() < FINISH && answer.try_recv() == Err(TryRecvError::Empty) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Adds a line to the audit log, some time soon. `lost` is called where that is not done.
    pub fn note(&self, draft: Draft, lost: impl FnOnce() + Send + 'static) {
        let note = Note { draft, lost: Some(Box::new(lost)) };
        if let Err(TrySendError::Full(note) | TrySendError::Disconnected(note)) =
            self.queue.try_send(Box::new(note))
        {
            note.answer(Err(Fault::Busy));
        }
    }
}

struct State {
    database: Database,
    jobs: Receiver<Box<dyn Work>>,
    signer: Arc<ArcSwapOption<Box<dyn Signer>>>,
    rule: CheckpointRule,
    up: Arc<AtomicBool>,
    sign_now: Arc<AtomicBool>,
    coming: Coming,
    upkeep: Upkeep,
}

impl State {
    fn run(mut self) {
        let mut signed = Signed { at: Instant::now(), seq: None, now: false };
        loop {
            let mut jobs = Vec::new();
            match self.jobs.recv_timeout(IDLE) {
                Ok(job) => jobs.push(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.gather(&mut jobs);
            let idle = jobs.is_empty();
            if idle && !self.up.load(Ordering::Relaxed) {
                let probed = self.database.transact(|batch| batch.probe());
                self.up.store(probed.is_ok(), Ordering::Relaxed);
                continue;
            }
            let upkeep = self.upkeep.is_due(&self.database.tail, idle);
            if idle && !upkeep && signed.at.elapsed() < self.rule.interval {
                continue;
            }
            self.commit(jobs, &mut signed);
        }
    }

    /// Takes what has come and, where there is something, what is about to: a commit costs more than all
    /// that is in it.
    fn gather(&self, jobs: &mut Vec<Box<dyn Work>>) {
        let began = Instant::now();
        loop {
            jobs.extend(self.jobs.try_iter().take(BATCH.saturating_sub(jobs.len())));
            let more = self.coming.0.load(Ordering::Relaxed) > 0;
            if jobs.is_empty() || jobs.len() >= BATCH || !more || began.elapsed() >= GATHER {
                return;
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// Runs `jobs` in one transaction and tells everybody what came of it.
    fn commit(&mut self, mut jobs: Vec<Box<dyn Work>>, signed: &mut Signed) {
        let mut outcomes = Vec::with_capacity(jobs.len());
        let (signer, rule) = (self.signer.load_full(), self.rule);
        let mut now_signed = None;
        let sign_now = self.sign_now.swap(false, Ordering::Relaxed);
        let upkeep = &mut self.upkeep;
        let run = |batch: &mut Batch<'_>| {
            for job in &mut jobs {
                let before = batch.writes();
                match job.run(batch) {
                    // Half of something is in the transaction, or it is no longer to be trusted.
                    Err(fault) if batch.writes() != before => return Err(fault),
                    Err(fault @ Fault::Failed(_)) => return Err(fault),
                    outcome => outcomes.push(outcome),
                }
            }
            let now = now();
            batch.forget_outlived(upkeep, now)?;
            upkeep.step(batch, now)?;
            if let Some(signer) = &signer {
                signed.now = sign_now;
                now_signed = signed.when_due(batch, rule, &***signer)?;
            }
            Ok(batch.head())
        };
        // A job that panics takes down its transaction, not the thread that all others need.
        let caught = catch_unwind(AssertUnwindSafe(|| self.database.transact(run)));
        let done = caught.unwrap_or_else(|_| Err(Fault::Failed("it panicked".to_owned())));
        self.up.store(done.is_ok(), Ordering::Relaxed);
        self.upkeep.stepped(done.is_ok(), &self.database.tail);
        match done {
            Ok(head) => {
                if let Some(checkpoint) = now_signed {
                    *signed = Signed { at: Instant::now(), seq: Some(head.seq), now: false };
                    tracing::info!(seq = head.seq, hash = %head.hash, "audit checkpoint");
                    if let Err(error) = self.database.mark(&checkpoint) {
                        tracing::warn!(%error, "the audit checkpoint cannot be marked");
                    }
                }
                for (job, outcome) in jobs.into_iter().zip(outcomes) {
                    job.answer(outcome);
                }
            }
            Err(fault) => {
                tracing::error!(%fault, waiting = jobs.len(), "nothing could be written");
                for job in jobs {
                    job.answer(Err(fault.clone()));
                }
            }
        }
    }
}

/// The last checkpoint.
struct Signed {
    at: Instant,
    /// The number of its line, once it was looked up.
    seq: Option<u64>,
    /// Whether another is wanted, due or not.
    now: bool,
}

impl Signed {
    /// Adds a checkpoint where one is due. What was signed.
    fn when_due(
        &mut self,
        batch: &mut Batch<'_>,
        rule: CheckpointRule,
        signer: &dyn Signer,
    ) -> Result<Option<Checkpoint>, Fault> {
        let last = match self.seq {
            Some(seq) => seq,
            None => batch.last_checkpoint()?,
        };
        self.seq = Some(last);
        let Head { seq, .. } = batch.head();
        let lines = seq.saturating_sub(last);
        // A log begins with a signature: one without any was made up, or is younger than its keys.
        let first = last == 0;
        let due = first || self.now || lines >= rule.lines || self.at.elapsed() >= rule.interval;
        if lines == 0 || !due {
            return Ok(None);
        }
        batch.checkpoint(now(), |checkpoint| signer.sign(checkpoint))
    }
}
