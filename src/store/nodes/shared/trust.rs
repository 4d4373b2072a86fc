//! Whether what the shared store says is to be acted on.

use std::sync::{Mutex, MutexGuard, PoisonError};

use redis::Pipeline;

use super::super::moved::HELD;
use super::super::scripts::{self, TAG};
use super::{Inner, now};
use crate::policy::epoch::Epoch;
use crate::policy::lineage::{Ledger, Mark, Standing};
use crate::store::redis::Period;
use crate::store::sqlite::Fault;

/// What came of the last look.
#[derive(Debug)]
pub(super) struct Trust(Mutex<Last>);

#[derive(Debug)]
struct Last {
    /// Why it is not acted on.
    trouble: Option<Fault>,
    /// The epoch in which it was known to be whole.
    whole: Option<Epoch>,
    /// The epoch in which it is vouched for.
    vouched: Option<Epoch>,
}

impl Default for Trust {
    fn default() -> Self {
        let last = Last { trouble: Some(Fault::Down), whole: None, vouched: None };
        Self(Mutex::new(last))
    }
}

impl Trust {
    fn last(&self) -> MutexGuard<'_, Last> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why it is not acted on, as of the last look.
    pub(super) fn trouble(&self) -> Option<Fault> {
        self.last().trouble.clone()
    }
}

impl Inner {
    /// Which epoch it is: to be asked before what is then held against it.
    ///
    /// # Errors
    /// [`Fault::Down`] where no master answers.
    pub(super) fn period(&self) -> Result<Period, Fault> {
        self.redis.period().ok_or(Fault::Down)
    }

    /// Whether what the store has said in the epoch of `period` may be acted on. Gives the last entry of its
    /// ledger, which is not remembered yet: a master may have it that is the only one.
    ///
    /// # Errors
    /// [`Fault::Down`] while it settles, [`Fault::Behind`] where it has forgotten something,
    /// [`Fault::Unvouched`] where nobody here could tell.
    pub(super) async fn trust(
        &self,
        period: &Period,
        ledger: &Ledger,
        mark: &Mark,
    ) -> Result<Mark, Fault> {
        let trusted = match self.period() {
            // Nobody knows whether it was the one or the other that answered.
            Ok(now) if now.epoch != period.epoch => Err(Fault::Down),
            Ok(now) => self.weigh(&now, ledger, mark).await,
            Err(fault) => Err(fault),
        };
        let mut last = self.trust.last();
        let trouble = trusted.clone().err();
        if trouble == Some(Fault::Unvouched) && last.trouble != trouble {
            tracing::error!(
                found = ledger.last.seq,
                "this edge remembers nothing of the shared store, and none that does has looked at it \
                 since it was started or taken over: no node is served until one has, or `holdfast node \
                 confirm`"
            );
        }
        last.trouble = trouble;
        trusted
    }

    async fn weigh(&self, period: &Period, ledger: &Ledger, mark: &Mark) -> Result<Mark, Fault> {
        let here = self.trust.last().whole == Some(period.epoch);
        let last = match ledger.against(mark, here || ledger.vouched == Some(period.epoch)) {
            Standing::Follows(next) => next.unwrap_or_else(|| mark.clone()),
            Standing::Unknown => return Err(Fault::Unvouched),
            Standing::Doubted => return Err(Fault::Behind),
            Standing::Behind if !self.speaks => return Err(Fault::Behind),
            Standing::Behind => {
                tracing::error!(
                    seen = mark.seq,
                    found = ledger.last.seq,
                    "the shared store has lost changes to nodes: no node is served until \
                     `holdfast node confirm`"
                );
                self.doubt(ledger).await?;
                return Err(Fault::Behind);
            }
        };
        // Nothing was ever changed in it: there is nothing that it could have lost.
        let empty = ledger.last == Mark::default();
        {
            let mut last = self.trust.last();
            last.whole = Some(period.epoch);
            last.vouched = ledger.vouched;
        }
        if !empty {
            self.vouch().await;
        }
        if !empty && period.age < self.settle {
            return Err(Fault::Down);
        }
        Ok(last)
    }

    /// Has all others know that something is missing.
    async fn doubt(&self, ledger: &Ledger) -> Result<(), Fault> {
        let (confirmed, at) = (ledger.last.confirmed.to_string(), now().millis().to_string());
        let arguments = [confirmed.as_bytes(), at.as_bytes(), HELD.as_bytes()];
        let keys = [self.names().lineage()];
        let done = self.redis.script(TAG, &self.scripts.doubt, &keys, &arguments).await;
        scripts::refused(&done?)
    }

    /// Has those who remember nothing know that nothing is missing, where they do not yet. What cannot be
    /// said now is said the next time.
    pub(super) async fn vouch(&self) {
        let Ok(Period { epoch, .. }) = self.period() else { return };
        if !self.speaks || self.trust.last().vouched == Some(epoch) {
            return;
        }
        let mut pipeline = Pipeline::new();
        let key = self.names().lineage();
        pipeline.cmd("HSET").arg(key).arg("vouched").arg(epoch.0.to_string());
        if self.redis.commit_in(epoch, TAG, pipeline).await.is_ok() {
            self.trust.last().vouched = Some(epoch);
        }
    }

    /// Looks at the ledger, and keeps what is new of it.
    pub(super) async fn look(&self) -> Result<(), Fault> {
        // A command on this machine may have made an entry.
        self.memory.look().await?;
        let (period, mark) = (self.period()?, self.memory.mark());
        let mut pipeline = Pipeline::new();
        self.names().ask_ledger(&mut pipeline, &mark);
        let [head, entry] = self.send(&pipeline).await?;
        let last = self.trust(&period, &scripts::ledger(&head, &entry)?, &mark).await?;
        if !self.speaks {
            // Nor is the file told, which may be another store's.
            return Ok(());
        }
        if last != mark {
            self.await_replicas(period.epoch).await?;
            self.memory.note(last);
        }
        self.memory.keep(Vec::new()).await
    }

    /// Waits until as many replicas as acknowledged changes must have, have what was read before. Of what only
    /// a master has nobody was told that it is done; where another one takes over without it, nothing is lost,
    /// and whoever remembered it would say otherwise.
    async fn await_replicas(&self, epoch: Epoch) -> Result<(), Fault> {
        // Newer servers wait for nothing behind a command that writes nothing.
        let mut pipeline = Pipeline::new();
        let key = self.names().lineage();
        pipeline.cmd("HSET").arg(key).arg("looked").arg(now().millis());
        let done = self.redis.commit_in(epoch, TAG, pipeline).await?;
        done.iter().try_for_each(scripts::refused)
    }
}
