//! All records of one store, put into another.
//!
//! ```text
//! count the source ─► the target holds nothing else ─► copy ─► count both ─► the same, or say what is not
//! ```
//!
//! It can be done again at any time: what is in the target by then is a part of the source, and is put
//! there again as it was. A target with anything that the source has not, or has otherwise, is left as it
//! is: nothing that is newer is ever overwritten.

use std::collections::BTreeMap;

use super::{Counts, Records, Tally, tally};
use crate::policy::time::UnixTime;
use crate::store::sqlite::Fault;

/// Records that are put at once.
const AT_ONCE: usize = 2000;

/// What is done at the moment, of how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is done.
    pub what: &'static str,
    /// How many records so far.
    pub done: u64,
    /// Of how many; `None` while nobody knows.
    pub of: Option<u64>,
}

/// Why it is not done.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// A store failed.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The target holds what the source does not.
    #[error(
        "the target holds {} that the source does not have, or has otherwise: nothing was changed. \
         --replace takes all out that the target holds, the audit log apart",
        words(.0)
    )]
    Occupied(BTreeMap<&'static str, u64>),
    /// The target is not what the source is.
    #[error("source and target differ in {}: do not use the target", .0.join(", "))]
    Differs(Vec<String>),
}

fn words(counts: &BTreeMap<&'static str, u64>) -> String {
    let words: Vec<_> = counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    words.join(", ")
}

/// A transfer that is about to be done: both stores are known.
#[derive(Debug)]
pub struct Planned {
    source: Tally,
    target: Tally,
    /// Whether the target is cleared before.
    clears: bool,
}

impl Planned {
    /// Counts both stores. With `replace` a target with anything else in it is cleared before.
    ///
    /// # Errors
    /// [`TransferError::Fault`], [`TransferError::Occupied`].
    pub async fn new(
        (source, target): (&dyn Records, &dyn Records),
        replace: bool,
        now: UnixTime,
        mut show: impl FnMut(Progress) + Send,
    ) -> Result<Self, TransferError> {
        let mut done = 0;
        let mut count = |what, more| {
            done += more;
            show(Progress { what, done, of: None });
        };
        let source = tally(source, now, |more| count("counting the source", more)).await?;
        let target = tally(target, now, |more| count("counting both", more)).await?;
        let strangers = source.strangers(&target);
        if strangers.is_empty() || replace {
            Ok(Self { source, target, clears: !strangers.is_empty() })
        } else {
            Err(TransferError::Occupied(strangers))
        }
    }

    /// What the source holds.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.source.counts()
    }

    /// How many records of the source the target has not yet.
    #[must_use]
    pub fn missing(&self) -> u64 {
        if self.clears {
            self.source.total()
        } else {
            self.target.strangers(&self.source).values().sum()
        }
    }

    /// Copies, and counts both once more.
    ///
    /// # Errors
    /// [`TransferError::Fault`]; then it can be done again. [`TransferError::Differs`].
    pub async fn run(
        &self,
        (source, target): (&dyn Records, &dyn Records),
        now: UnixTime,
        mut show: impl FnMut(Progress) + Send,
    ) -> Result<(), TransferError> {
        if self.clears {
            target.clear().await?;
        }
        let (of, mut done) = (Some(self.source.total()), 0);
        let mut reader = source.read(now).await?;
        loop {
            let mut records = reader.next().await?;
            if records.is_empty() {
                break;
            }
            while !records.is_empty() {
                let rest = records.split_off(records.len().min(AT_ONCE));
                done += records.len() as u64;
                target.put(records).await?;
                records = rest;
                show(Progress { what: "copying", done, of });
            }
        }
        let mut checked = 0;
        let mut check = |more| {
            checked += more;
            show(Progress { what: "verifying", done: checked, of: of.map(|of| of * 2) });
        };
        let after = tally(source, now, &mut check).await?.counts();
        let there = tally(target, now, &mut check).await?.counts();
        let differs = differences(&after, &there);
        if differs.is_empty() { Ok(()) } else { Err(TransferError::Differs(differs)) }
    }
}

/// The kinds of which there are not the same.
#[must_use]
pub fn differences(source: &Counts, target: &Counts) -> Vec<String> {
    let mut kinds: Vec<_> = source.keys().chain(target.keys()).copied().collect();
    kinds.sort_unstable();
    kinds.dedup();
    let differ = kinds.into_iter().filter(|kind| source.get(kind) != target.get(kind));
    let words = |kind| {
        let count = |counts: &Counts| counts.get(kind).map_or(0, |it| it.count);
        format!("{kind} ({} and {})", count(source), count(target))
    };
    differ.map(words).collect()
}
