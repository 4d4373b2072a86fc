//! What this edge revokes: remembered in its own file, said where all edges look, and said again where
//! that may have been forgotten.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::super::scripts::{self, Place};
use super::{Inner, MARGIN, now, unreadable};
use crate::policy::epoch::Epoch;
use crate::policy::grant::RecordKey;
use crate::policy::time::UnixTime;
use crate::store::sqlite::Fault;
use crate::store::sqlite::tombstones::Tombstone;

/// How often is looked whether there is another epoch.
const LOOK: Duration = Duration::from_millis(100);
/// Tombstones that are said again at once.
const AT_ONCE: usize = 128;
/// Round trips with such that are under way together.
const TOGETHER: usize = 16;

impl Inner {
    /// Remembers here that something is revoked, then says so where all edges look.
    pub(super) async fn bury(&self, tombstone: Tombstone, least: UnixTime) -> Result<(), Fault> {
        let remember = |ends| self.registry.transact(move |batch| batch.remember(tombstone, ends));
        let least = least.plus(MARGIN);
        remember(least).await?;
        let said = self.say(&[(tombstone, least)]).await;
        if said.is_err() {
            // The authorization server has revoked it: it is said as soon as that can be done.
            self.unsaid.notify_one();
        }
        let ends = said?;
        if ends > least { remember(ends).await } else { Ok(()) }
    }

    /// Says what is revoked; all of it lies at one tag. When the last of it ends.
    async fn say(&self, stones: &[(Tombstone, UnixTime)]) -> Result<UnixTime, Fault> {
        let keys = self.redis.keys();
        let places: Vec<_> = stones.iter().map(|(it, _)| Place::revoked(keys, it)).collect();
        let tag = places.first().ok_or(Fault::Malformed)?.tag;
        let names: Vec<_> = places.into_iter().map(|place| place.name).collect();
        let ends: Vec<_> = stones.iter().map(|(_, ends)| ends.millis().to_string()).collect();
        let ends: Vec<_> = ends.iter().map(String::as_bytes).collect();
        let said = self.redis.script(tag, &self.scripts.revoke, &names, &ends).await;
        let last = scripts::found(said?).map_err(unreadable)?;
        let last = last.as_deref().and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        last.map(UnixTime::from_millis).ok_or(Fault::Malformed)
    }

    pub(super) async fn say_again_for_ever(self: &Arc<Self>) {
        let (mut said, mut unsaid) = (None, false);
        loop {
            if let Ok(period) = self.period() {
                unsaid |= said != Some(period.epoch);
                if unsaid && self.said_again(period.epoch).await {
                    (said, unsaid) = (Some(period.epoch), false);
                }
                if !unsaid {
                    self.answer_the_roll(&period).await;
                }
            }
            let asked = tokio::time::timeout(LOOK, self.unsaid.notified()).await;
            unsaid |= asked.is_ok();
        }
    }

    async fn said_again(self: &Arc<Self>, epoch: Epoch) -> bool {
        match self.say_again().await {
            Ok(0) => true,
            Ok(count) => {
                tracing::info!(%epoch, count, "revocations were said again in redis");
                true
            }
            Err(fault) => {
                tracing::warn!(%fault, "revocations could not be said again");
                false
            }
        }
    }

    /// Says all that this edge has revoked. How much that was.
    async fn say_again(self: &Arc<Self>) -> Result<usize, Fault> {
        let now = now();
        let all = self.registry.read(move |reader| reader.tombstones(now)).await?;
        let count = all.len();
        let mut by_tag = BTreeMap::<u8, Vec<(Tombstone, UnixTime)>>::new();
        for (stone, ends) in all {
            let (Tombstone::Token(RecordKey(hash)) | Tombstone::Grant(hash)) = stone;
            // What Tag::of goes by.
            let [.., last] = hash.0;
            by_tag.entry(last).or_default().push((stone, ends));
        }
        // There are 256 tags, and tokens from before wait for the last of them.
        let mut under_way = JoinSet::new();
        for stones in by_tag.values().flat_map(|stones| stones.chunks(AT_ONCE)) {
            if under_way.len() >= TOGETHER
                && let Some(said) = under_way.join_next().await
            {
                said.unwrap_or(Err(Fault::Down))?;
            }
            let (inner, stones) = (Arc::clone(self), stones.to_vec());
            under_way.spawn(async move { inner.say(&stones).await });
        }
        while let Some(said) = under_way.join_next().await {
            said.unwrap_or(Err(Fault::Down))?;
        }
        Ok(count)
    }
}
