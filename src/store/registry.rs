//! The registry of nodes and the audit log, as the edge uses them: reads beside writes, both off the
//! threads that serve requests.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Semaphore;

use super::sqlite::batch::{Batch, Row};
use super::sqlite::reader::{Reader, Readers};
use super::sqlite::writer::{CheckpointRule, Signer, Writer};
use super::sqlite::{Fault, OpenError};
use crate::policy::audit::Draft;
use crate::policy::capsule::node::NodeId;

/// Reads under way at once; more wait.
const READS: usize = 32;
/// Reads that wait or are under way; more are refused.
const WAITING: usize = 4096;

/// One store. Clones are of the same one.
#[derive(Clone, Debug)]
pub struct Registry {
    writer: Writer,
    readers: Arc<Readers>,
    reads: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    up: Arc<AtomicBool>,
}

impl Registry {
    /// Opens the store at `path`.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path, rule: CheckpointRule) -> Result<Self, OpenError> {
        let writer = Writer::start(path, rule)?;
        Ok(Self {
            writer,
            readers: Arc::new(Readers::open(path)?),
            reads: Arc::new(Semaphore::new(READS)),
            waiting: Arc::new(Semaphore::new(WAITING)),
            up: Arc::new(AtomicBool::new(true)),
        })
    }

    /// Who signs checkpoints from now on.
    pub fn sign_with(&self, signer: Option<Box<dyn Signer>>) {
        self.writer.sign_with(signer);
    }

    /// Whether the last thing that was asked of it was done.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// The record of `id` as it is on the disk; the time does not tell whether there is one
    /// ([`Reader::node_in_even_time`]).
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn find(&self, id: &NodeId) -> Result<Option<Row>, Fault> {
        let id = id.clone();
        self.read(move |reader| reader.node_in_even_time(&id)).await
    }

    /// Reads, on a thread that may wait for the disk.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let _place = self.waiting.try_acquire().map_err(|_| Fault::Busy)?;
        let turn = Arc::clone(&self.reads).acquire_owned().await.map_err(|_| Fault::Closed)?;
        let readers = Arc::clone(&self.readers);
        let done = tokio::task::spawn_blocking(move || {
            let value = readers.read(read);
            drop(turn);
            value
        });
        self.note_health(done.await.unwrap_or(Err(Fault::Closed)))
    }

    /// Does `work` in a transaction; durable when this returns `Ok` ([`Writer::transact`]).
    ///
    /// # Errors
    /// [`Fault`]; then nothing of it was done.
    pub async fn transact<F, T>(&self, work: F) -> Result<T, Fault>
    where
        F: FnOnce(&mut Batch<'_>) -> Result<T, Fault> + Send + 'static,
        T: Send + 'static,
    {
        self.note_health(self.writer.transact(work).await)
    }

    /// Waits until all that was asked for is done ([`Writer::finish`]).
    pub fn finish(&self) {
        self.writer.finish();
    }

    /// Adds a line to the audit log, some time soon. Whether it was taken to be written.
    #[must_use]
    pub fn note(&self, draft: Draft) -> bool {
        self.writer.note(draft)
    }

    fn note_health<T>(&self, done: Result<T, Fault>) -> Result<T, Fault> {
        let up = match &done {
            Ok(_) | Err(Fault::Malformed | Fault::Conflict) => true,
            Err(Fault::Busy | Fault::Failed(_) | Fault::Replaced | Fault::Closed) => false,
        };
        self.up.store(up, Ordering::Relaxed);
        done
    }
}
