//! The registry of nodes and the audit log, as the edge uses them: reads beside writes, both off the
//! threads that serve requests.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
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

/// How long a transaction is waited for, and a read.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a look is, at a store that answered nobody in that time.
const GLANCE: Duration = Duration::from_secs(1);

/// How something stands: it is waited for, it is late, it has ended.
const WAITED_FOR: u8 = 0;
const LATE: u8 = 1;
const ENDED: u8 = 2;

/// Something that is under way, which ends when this is dropped.
#[derive(Debug)]
struct Work(Arc<AtomicU8>, Arc<AtomicUsize>);

impl Drop for Work {
    fn drop(&mut self) {
        if self.0.swap(ENDED, Ordering::AcqRel) == LATE {
            self.1.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Who waits for it.
#[derive(Debug)]
struct Waited(Arc<AtomicU8>, Arc<AtomicUsize>);

impl Waited {
    /// Waits no more. Until it ends it is among those that are late.
    fn in_vain<T>(&self) -> Result<T, Fault> {
        self.1.fetch_add(1, Ordering::AcqRel);
        let order = (Ordering::AcqRel, Ordering::Acquire);
        if self.0.compare_exchange(WAITED_FOR, LATE, order.0, order.1).is_err() {
            self.1.fetch_sub(1, Ordering::AcqRel);
        }
        Err(Fault::Late)
    }
}

fn under_way(late: &Arc<AtomicUsize>) -> (Work, Waited) {
    let state = Arc::new(AtomicU8::new(WAITED_FOR));
    (Work(Arc::clone(&state), Arc::clone(late)), Waited(state, Arc::clone(late)))
}

/// One store. Clones are of the same one.
#[derive(Clone, Debug)]
pub struct Registry {
    writer: Writer,
    readers: Arc<Readers>,
    reads: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// Whether the last read that was tried was done.
    reads_up: Arc<AtomicBool>,
    /// What was given up waiting for and has not ended yet. On a disk that stands still nothing fails.
    late: Arc<AtomicUsize>,
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
            late: Arc::default(),
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
        self.writer.is_up()
            && self.late.load(Ordering::Relaxed) == 0
            && self.reads_up.load(Ordering::Relaxed)
    }

    /// Reads, and tries to write again where that failed last, so that who asks is told how it is now: for a
    /// second each.
    pub async fn look_again(&self) {
        if self.late.load(Ordering::Relaxed) == 0 {
            let _ = self.read_within(GLANCE, |reader| reader.last()).await;
        }
        if !self.writer.is_up() {
            let _ = self.transact_within(GLANCE, |batch| batch.probe()).await;
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
        self.read_within(PATIENCE, read).await
    }

    async fn read_within<T: Send + 'static>(
        &self,
        limit: Duration,
        read: impl FnOnce(&Reader) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let (work, waited) = under_way(&self.late);
        let read = move |reader: &Reader| {
            let _work = work;
            read(reader)
        };
        let done = tokio::time::timeout(limit, self.read_some_time(read)).await;
        let done = done.unwrap_or_else(|_| waited.in_vain());
        // Of what was not begun nobody knows, and what is late is counted.
        if !matches!(done, Err(Fault::Busy | Fault::Late)) {
            let up = !matches!(done, Err(Fault::Failed(_) | Fault::Replaced | Fault::Closed));
            self.reads_up.store(up, Ordering::Relaxed);
        }
        done
    }

    async fn read_some_time<T: Send + 'static>(
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
        done.await.unwrap_or(Err(Fault::Closed))
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
        self.transact_within(PATIENCE, work).await
    }

    async fn transact_within<F, T>(&self, limit: Duration, work: F) -> Result<T, Fault>
    where
        F: FnOnce(&mut Batch<'_>) -> Result<T, Fault> + Send + 'static,
        T: Send + 'static,
    {
        let (end, waited) = under_way(&self.late);
        // Its value is there until it is committed.
        let work = move |batch: &mut Batch<'_>| work(batch).map(|value| (value, end));
        let done = tokio::time::timeout(limit, self.writer.transact(work)).await;
        // It may still be done; nobody is told that it was.
        done.unwrap_or_else(|_| waited.in_vain()).map(|(value, _)| value)
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::store::bindings::tests::registry;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_disk_that_stands_still_is_no_store() {
        let scratch = tempfile::tempdir().unwrap();
        let registry = registry(&scratch, "holdfast.db");
        let soon = Duration::from_millis(50);
        for reads in [false, true] {
            assert!(registry.is_up());
            let (go_on, waits) = mpsc::channel::<()>();
            let stands = move || {
                let _ = waits.recv();
            };
            let late = if reads {
                let read = move |_: &Reader| {
                    stands();
                    Ok(())
                };
                registry.read_within(soon, read).await
            } else {
                let work = move |_: &mut Batch<'_>| {
                    stands();
                    Ok(())
                };
                registry.transact_within(soon, work).await
            };
            assert_eq!(late, Err(Fault::Late));
            assert!(!registry.is_up(), "reads: {reads}");
            registry.look_again().await;
            assert!(!registry.is_up(), "reads: {reads}");
            // It goes on, whether anybody asks or not.
            drop(go_on);
            while !registry.is_up() {
                tokio::time::sleep(soon).await;
            }
        }
    }
}
