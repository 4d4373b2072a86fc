//! The temporary bypass of the configuration in force.
//!
//! A configuration is made with a cell for it, which requests read. Nothing is noted, opened or closed
//! before it is in force ([`Wanted::note`]): one that comes to nothing leaves no trace.

use std::sync::{Arc, PoisonError, mpsc};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use super::site::Lasting;
use super::{StartError, now, random};
use crate::config::Config;
use crate::policy::bypass::{Bypass, BypassRules};
use crate::store::bypass::{self, Flag, Noted};
use crate::store::sqlite::Fault;
use crate::store::task::Task;

/// What requests read: nothing where it was not noted, or is not to be open.
pub(super) type Cell = Arc<ArcSwapOption<Bypass>>;

/// What a configuration says of it.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    rules: BypassRules,
    fresh_id: String,
    /// How long Redis is waited for where it may be.
    patience: Duration,
    pub(super) cell: Cell,
}

impl Wanted {
    pub(super) fn new(config: &Config) -> Result<Self, StartError> {
        let redis = config.store.as_ref().and_then(|store| store.redis.as_ref());
        Ok(Self {
            rules: config.bypass.clone(),
            fresh_id: random()?.iter().take(16).map(|byte| format!("{byte:02x}")).collect(),
            patience: redis.map_or(Duration::ZERO, |it| it.connect_timeout + it.timeout),
            cell: Arc::default(),
        })
    }

    /// Is what `before` is, by its own rules, so that nobody finds it closed in between where both have
    /// the flag.
    pub(super) fn follow(&self, before: &Self) {
        let open = before.cell.load_full().filter(|_| self.rules.allowed);
        self.cell.store(open.map(|it| Arc::new(Bypass::of(&self.rules, it.seen.clone()))));
    }

    /// Has it noted, now that its configuration is in force, in the place of the one before, and kept where
    /// edges share it: as soon as that can be done, and until then it is not open. With `waits` the first try
    /// waits for Redis. What came of that try can be received.
    pub(super) fn note(&self, lasting: &Lasting, waits: bool) -> mpsc::Receiver<Result<(), Fault>> {
        let (tell, first) = mpsc::channel();
        let mut noting = lasting.noting.lock().unwrap_or_else(PoisonError::into_inner);
        // What the configuration before says is not noted behind this one's.
        *noting = None;
        let Some(store) = &lasting.store else {
            let _ = tell.send(Ok(()));
            return first;
        };
        let (allowed, fresh_id) = (self.rules.allowed, self.fresh_id.clone());
        let patience = if waits { self.patience } else { Duration::ZERO };
        let flag = Flag { allowed, now: now(), fresh_id, patience };
        let (registry, redis) = (store.audit.registry.clone(), lasting.redis.clone());
        let wanted = self.clone();
        *noting = Some(Task::start(&lasting.runtime, async move {
            let mut last = None;
            let told = |noted: &Result<Noted, Fault>| {
                if last.as_ref() != Some(noted) {
                    wanted.show(noted);
                    last = Some(noted.clone());
                }
                // Nobody waits for more than the first.
                let _ = tell.send(noted.as_ref().map(|_| ()).map_err(Fault::clone));
            };
            bypass::keep(&registry, redis.as_ref(), flag, told).await;
        }));
        first
    }

    fn show(&self, noted: &Result<Noted, Fault>) {
        let allowed = self.rules.allowed;
        let seen = match noted {
            Ok(Noted::Seen(seen)) => seen.clone(),
            Ok(Noted::Unheard) => {
                tracing::warn!(
                    allowed,
                    "redis does not answer: the temporary bypass is not open at this edge until it does"
                );
                None
            }
            Ok(Noted::Early) => {
                tracing::warn!(
                    "redis has just begun to be the store: the temporary bypass is not open at this edge \
                     until others have had the time to say what they know of it"
                );
                None
            }
            Err(fault) => {
                tracing::warn!(
                    allowed,
                    %fault,
                    "the temporary bypass could not be noted: it is not open at this edge until it is"
                );
                None
            }
        };
        let bypass = seen.map(|seen| Arc::new(Bypass::of(&self.rules, seen)));
        if let Some(bypass) = bypass.as_ref().filter(|bypass| bypass.lasts(now())) {
            let until = bypass.until.rfc3339().to_string();
            tracing::warn!(id = bypass.seen.id, until, "the temporary bypass is open");
        }
        self.cell.store(bypass);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::bypass::Seen;
    use crate::policy::time::UnixTime;

    fn wanted(allowed: bool, until: i64) -> Wanted {
        let until = Some(UnixTime::from_secs(until));
        let rules = BypassRules { allowed, until, tenants: Vec::new() };
        Wanted { rules, fresh_id: String::new(), patience: Duration::ZERO, cell: Cell::default() }
    }

    #[test]
    fn a_reload_that_keeps_the_flag_goes_on_by_its_own_rules() {
        let before = wanted(true, 5000);
        let seen = Seen { id: "b".to_owned(), since: UnixTime::from_secs(1000) };
        for open in [None, Some(seen)] {
            let until = |at: &Wanted| at.cell.load().as_ref().map(|it| it.until.secs());
            before.show(&Ok(Noted::Seen(open.clone())));
            let (with, without) = (wanted(true, 2000), wanted(false, 2000));
            with.follow(&before);
            without.follow(&before);
            assert_eq!((until(&with), until(&without)), (open.map(|_| 2000), None));
        }
    }
}
