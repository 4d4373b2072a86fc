//! The temporary bypass of one configuration.

use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use super::site::Lasting;
use super::{StartError, now, random};
use crate::config::Config;
use crate::policy::bypass::Bypass;
use crate::store::bypass::{self, Flag, Noted};
use crate::store::sqlite::Fault;
use crate::store::task::Task;

/// The temporary bypass, as long as its flag stays. That it was seen is written down first. At the start
/// Redis is waited for; a reload goes on without it, and the bypass is opened when it answers.
pub(super) fn note(
    config: &Config,
    lasting: &Lasting,
    waits: bool,
    cell: Arc<OnceLock<Bypass>>,
) -> Result<(), StartError> {
    let Some(store) = &lasting.store else { return Ok(()) };
    // What the last configuration says is not noted behind this one's.
    *lasting.noting.lock().unwrap_or_else(PoisonError::into_inner) = None;
    let fresh_id = random()?.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let settings = config.store.as_ref().and_then(|store| store.redis.as_ref()).filter(|_| waits);
    let patience = settings.map_or(Duration::ZERO, |it| it.connect_timeout + it.timeout);
    let flag = Flag { allowed: config.bypass.allowed, now: now(), fresh_id, patience };
    let noted = bypass::note(&store.audit.registry, lasting.redis.as_ref(), flag.clone());
    // Whoever reloads may be a thread of some runtime, which must not wait for another's.
    let noted = std::thread::scope(|scope| {
        scope.spawn(|| lasting.runtime.block_on(noted)).join().unwrap_or(Err(Fault::Closed))
    });
    let rules = config.bypass.clone();
    match (noted?, &lasting.redis) {
        (Noted::Seen(seen), _) => open(&cell, seen.map(|seen| Bypass::of(&rules, &seen))),
        (Noted::Unheard, None) => {}
        (Noted::Unheard, Some(redis)) => {
            tracing::warn!(
                allowed = flag.allowed,
                "redis does not answer: the temporary bypass is not open at this edge until it does"
            );
            let (registry, redis) = (store.audit.registry.clone(), redis.clone());
            let task = Task::start(&lasting.runtime, async move {
                let seen = bypass::note_in_time(&registry, &redis, flag).await;
                open(&cell, seen.map(|seen| Bypass::of(&rules, &seen)));
            });
            *lasting.noting.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        }
    }
    Ok(())
}

fn open(cell: &OnceLock<Bypass>, bypass: Option<Bypass>) {
    let Some(bypass) = bypass else { return };
    if bypass.lasts(now()) {
        let until = bypass.until.rfc3339().to_string();
        tracing::warn!(id = bypass.id, until, "the temporary bypass is open");
    }
    // Nobody else opens it.
    let _ = cell.set(bypass);
}
