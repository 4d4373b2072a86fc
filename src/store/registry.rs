//! The registry of nodes and the audit log, as the edge uses them: reads beside writes, both off the
//! threads that serve requests.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::nodes::Found;
use super::sqlite::batch::Batch;
use super::sqlite::reader::{Reader, Readers};
use super::sqlite::writer::{Announced, CheckpointRule, Signer, Writer};
use super::sqlite::{Fault, OpenError};
use crate::policy::audit::Draft;
use crate::policy::capsule::node::NodeId;
use crate::policy::digest::Sha256;

/// Reads under way at once; more wait.
const READS: usize = 32;
/// Reads that wait or are under way; more are refused.
const WAITING: usize = 4096;

/// How long a transaction is waited for.
const PATIENCE: Duration = Duration::from_secs(15);

/// One store. Clones are of the same one.
#[derive(Clone, Debug)]
pub struct Registry {
    writer: Writer,
    readers: Arc<Readers>,
    reads: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// Whether the last read that was tried was done.
    reads_up: Arc<AtomicBool>,
    looked_up: Arc<AtomicU64>,
}

impl Registry {
    /// Opens the store at `path`.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path, rule: CheckpointRule) -> Result<Self, OpenError> {
        let writer = Writer::start(path, rule)?;
        let readers = Arc::new(Readers::beside(&writer)?);
        Ok(Self {
            writer,
            readers,
            reads: Arc::new(Semaphore::new(READS)),
            waiting: Arc::new(Semaphore::new(WAITING)),
            reads_up: Arc::new(AtomicBool::new(true)),
            looked_up: Arc::default(),
        })
    }

    /// Bytes of the file that something is in.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn used_bytes(&self) -> Result<u64, Fault> {
        self.readers.read(Reader::used_bytes)
    }

    /// Who signs checkpoints from now on.
    pub fn sign_with(&self, signer: Option<Box<dyn Signer>>) {
        self.writer.sign_with(signer);
    }

    /// Whether it reads and writes.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.writer.is_up() && self.reads_up.load(Ordering::Relaxed)
    }

    /// Tries again what failed last, so that who asks is told how it is now.
    pub async fn look_again(&self) {
        if !self.reads_up.load(Ordering::Relaxed) {
            let _ = self.read(|reader| reader.last()).await;
        }
        if !self.writer.is_up() {
            let _ = self.transact(|batch| batch.probe()).await;
        }
    }

    /// How often a record was looked for since the start.
    #[must_use]
    pub fn looked_up(&self) -> u64 {
        self.looked_up.load(Ordering::Relaxed)
    }

    /// The record of `id` as it is on the disk, where `presented` is the hash of its secret.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn find(&self, id: &NodeId, presented: Sha256) -> Result<Found, Fault> {
        self.looked_up.fetch_add(1, Ordering::Relaxed);
        let id = id.clone();
        self.read(move |reader| reader.find(&id, &presented)).await
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
        let up = !matches!(done, Err(Fault::Failed(_) | Fault::Replaced | Fault::Closed));
        self.reads_up.store(up, Ordering::Relaxed);
        done
    }

    /// Reads on this thread, which waits for the disk: before there is anybody to be served.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn read_at_start<T>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.readers.read(read)
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
        let done = tokio::time::timeout(PATIENCE, self.writer.transact(work)).await;
        // It may still be done; nobody is told that it was.
        done.unwrap_or(Err(Fault::Busy))
    }

    /// Says that a transaction will be wanted soon ([`Writer::announce`]).
    #[must_use]
    pub fn announce(&self) -> Announced {
        self.writer.announce()
    }

    /// Waits until all that was asked for is done ([`Writer::finish`]).
    pub fn finish(&self) {
        self.writer.finish();
    }

    /// Adds a line to the audit log, some time soon. `lost` is called where that is not done.
    pub fn note(&self, draft: Draft, lost: impl FnOnce() + Send + 'static) {
        self.writer.note(draft, lost);
    }
}
