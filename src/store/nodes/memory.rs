//! What one edge writes down and remembers of the shared registry, in its own file.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::policy::audit::{Draft, Kind};
use crate::policy::lineage::Mark;
use crate::policy::time::UnixTime;
use crate::store::registry::Registry;
use crate::store::sqlite::Fault;

/// The audit log, and the last entry of the ledger that was seen or made.
#[derive(Debug)]
pub(super) struct Memory {
    registry: Registry,
    seen: Mutex<Seen>,
}

/// What was seen of the ledger.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// The last entry.
    mark: Mark,
    /// Whether that is on the disk.
    kept: bool,
}

impl Memory {
    /// What `registry` has of it. It waits for the disk.
    ///
    /// # Errors
    /// [`Fault`].
    pub(super) fn of(registry: Registry) -> Result<Self, Fault> {
        let mark = registry.read_at_start(|reader| reader.ledger_mark())?;
        Ok(Self { registry, seen: Mutex::new(Seen { mark, kept: true }) })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last entry that was seen.
    pub(super) fn mark(&self) -> Mark {
        self.seen().mark.clone()
    }

    /// Takes note of a later entry.
    pub(super) fn note(&self, mark: Mark) {
        let mut seen = self.seen();
        if mark.is_after(&seen.mark) {
            *seen = Seen { mark, kept: false };
        }
    }

    /// Takes note of what another process on this machine has made or seen.
    pub(super) async fn look(&self) -> Result<(), Fault> {
        self.note(self.registry.read(|reader| reader.ledger_mark()).await?);
        Ok(())
    }

    /// Writes lines, and what was seen of the ledger since the last time. It is durable then.
    pub(super) async fn keep(&self, lines: Vec<Draft>) -> Result<(), Fault> {
        let Seen { mark, kept } = self.seen().clone();
        if lines.is_empty() && kept {
            return Ok(());
        }
        let keeping = mark.clone();
        let keep = self.registry.transact(move |batch| {
            if !kept {
                batch.keep_ledger_mark(&keeping)?;
            }
            lines.iter().try_for_each(|line| batch.append(line))
        });
        keep.await?;
        let mut seen = self.seen();
        if seen.mark == mark {
            seen.kept = true;
        }
        Ok(())
    }

    /// Says that what a line tells of was not done (`changed`), or that nobody knows (`unknown`).
    pub(super) async fn superseded(
        &self,
        line: Option<Draft>,
        why: &str,
        now: UnixTime,
    ) -> Result<(), Fault> {
        let Some(line) = line else { return Ok(()) };
        let data = serde_json::json!({ "of": line.kind, "why": why });
        let node = line.node.as_deref();
        self.keep(vec![Draft::new(Kind::Superseded, now, &line.id, node, &data)]).await
    }
}
