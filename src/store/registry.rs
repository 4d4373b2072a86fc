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
    health: Arc<Health>,
}

/// Whether the last of each was done. A full disk can be read as ever.
#[derive(Debug)]
struct Health {
    read: AtomicBool,
    written: AtomicBool,
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
            health: Arc::new(Health {
                read: AtomicBool::new(true),
                written: AtomicBool::new(true),
            }),
        })
    }

    /// Who signs checkpoints from now on.
    pub fn sign_with(&self, signer: Option<Box<dyn Signer>>) {
        self.writer.sign_with(signer);
    }

    /// Whether it could be read and written when that was last tried.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.health.read.load(Ordering::Relaxed) && self.health.written.load(Ordering::Relaxed)
    }

    /// Tries again what failed last: where nobody sends requests because of it, nobody else would.
    pub async fn look_again(&self) {
        if !self.health.read.load(Ordering::Relaxed) {
            let _ = self.read(|reader| reader.last()).await;
        }
        if !self.health.written.load(Ordering::Relaxed) {
            let _ = self.transact(|batch| batch.touch()).await;
        }
    }

    /// The record of `id` as it is on the disk.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn find(&self, id: &NodeId) -> Result<Option<Row>, Fault> {
        let id = id.clone();
        self.read(move |reader| reader.node(&id)).await
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
        let done = done.await.unwrap_or(Err(Fault::Closed));
        self.health.read.store(is_done(&done), Ordering::Relaxed);
        done
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
        let done = self.writer.transact(work).await;
        self.health.written.store(is_done(&done), Ordering::Relaxed);
        done
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
}

/// Whether the store did its part.
fn is_done<T>(done: &Result<T, Fault>) -> bool {
    match done {
        Ok(_) | Err(Fault::Malformed | Fault::Conflict) => true,
        Err(Fault::Busy | Fault::Failed(_) | Fault::Replaced | Fault::Closed) => false,
    }
}
