//! Which edges are there, and which of them have said again what they have revoked.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;

use super::super::scripts;
use super::{Inner, now};
use crate::policy::digest::Sha256;
use crate::policy::epoch::{Epoch, Reign};
use crate::policy::time::UnixTime;
use crate::store::epoch::SETTLE;
use crate::store::redis::{Keys, Script, Tag};
use crate::store::sqlite::Fault;

/// How often an edge says that it is there.
const EVERY: Duration = Duration::from_secs(5);
/// The same while others are waited for.
const SOON: Duration = Duration::from_millis(500);
/// An edge that was last there so long before the store changed hands is not waited for: what it has revoked
/// was on replicas and disks by then.
pub(super) const GONE: Duration = Duration::from_secs(30);
/// What edges' clocks may differ by, in saying since when an epoch is one.
const CLOCKS: Duration = Duration::from_secs(60);
/// How long the roll is kept without any edge, milliseconds: a year.
const KEPT_MS: &[u8] = b"31536000000";

/// `KEYS`: the roll. `ARGV`: the edge; the epoch; whether who is missing is given up; until when the epochs
/// before this one have begun; how long ago an edge of this epoch may have been there; how long to keep it.
/// The first edge that is missing, empty for none; until when epochs are given up, and which one is not.
const ANSWER: &str = "
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('HSET', KEYS[1], 'edge:' .. ARGV[1], ARGV[2] .. ' ' .. string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[1], ARGV[6])
local missing = ''
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(name, 1, 5) == 'edge:' then
    local epoch, at = string.match(redis.call('HGET', KEYS[1], name), '^(%S+) (%d+)$')
    if epoch ~= ARGV[2] then
      if ARGV[3] == '1' then
        redis.call('HDEL', KEYS[1], name)
        redis.call('HSET', KEYS[1], 'floor', ARGV[4], 'floor-of', ARGV[2])
      else
        missing = string.sub(name, 6)
      end
    elseif now - tonumber(at) > tonumber(ARGV[5]) then
      redis.call('HDEL', KEYS[1], name)
    end
  end
end
local floor = redis.call('HMGET', KEYS[1], 'floor', 'floor-of')
return { missing, floor[1] or '', floor[2] or '' }
";

/// How long, after another epoch has begun, those are waited for who may know what was revoked.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// Whoever may be there: nothing of an earlier epoch is good until then.
    pub settle: Duration,
    /// An edge that is known to have been there; then it is given up, with the grants of earlier epochs.
    pub missing: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Self { settle: SETTLE, missing: Duration::from_secs(120) }
    }
}

/// What epochs are given up: those that had begun before a time, but for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store::bindings) struct Floor {
    before: UnixTime,
    but: Epoch,
}

impl Floor {
    /// From what is kept; `None` where nothing is.
    ///
    /// # Errors
    /// [`Fault::Malformed`].
    pub(in crate::store::bindings) fn read(
        before: Value,
        but: Value,
    ) -> Result<Option<Self>, Fault> {
        let text = |value| scripts::found(value).map_err(|()| Fault::Malformed);
        let (before, but) = (text(before)?.unwrap_or_default(), text(but)?.unwrap_or_default());
        if before.is_empty() {
            return Ok(None);
        }
        let before = std::str::from_utf8(&before).ok().and_then(|it| it.parse().ok());
        let but = std::str::from_utf8(&but).ok().and_then(Sha256::from_base64url);
        let (before, but) = before.zip(but).ok_or(Fault::Malformed)?;
        Ok(Some(Self { before: UnixTime::from_millis(before), but: Epoch(but) }))
    }

    /// Whether what was last gone on from in this epoch is given up.
    pub(in crate::store::bindings) fn is_above(&self, reign: &Reign) -> bool {
        reign.epoch != self.but && reign.since < self.before
    }

    /// The time and the epoch, as scripts are given them.
    pub(super) fn texts(&self) -> (String, String) {
        (self.before.millis().to_string(), self.but.0.to_string())
    }
}

/// The name of the roll.
pub(in crate::store::bindings) fn key(keys: &Keys) -> String {
    keys.named(Tag::FIRST, "tokens:edges")
}

/// The roll, as it was last called in an epoch in which this edge has said all of its own.
#[derive(Clone, Debug)]
pub(super) struct Roll {
    pub(super) epoch: Epoch,
    /// An edge that has not said its own yet.
    pub(super) missing: Option<String>,
    pub(super) floor: Option<Floor>,
    at: UnixTime,
}

impl Roll {
    fn is_fresh(&self, now: UnixTime) -> bool {
        let every = if self.missing.is_some() { SOON } else { EVERY };
        self.at <= now && now < self.at.plus(every)
    }
}

impl Inner {
    /// What edges have said again in this epoch; `None` before this one has said all of its own.
    pub(super) fn roll(&self, reign: &Reign) -> Option<Arc<Roll>> {
        self.roll.load_full().filter(|roll| roll.epoch == reign.epoch)
    }

    /// Whether what was revoked in earlier epochs has been said again.
    pub(super) fn is_settled(&self, reign: &Reign) -> bool {
        let all = self.roll(reign).is_some_and(|roll| roll.missing.is_none());
        all && now() >= reign.since.plus(self.waits.settle)
    }

    /// Says that this edge is there and has said all that it has revoked, if it is time.
    pub(super) async fn answer_the_roll(&self, reign: &Reign) {
        let (now, before) = (now(), self.roll(reign));
        if before.as_ref().is_some_and(|roll| roll.is_fresh(now)) {
            return;
        }
        let gives_up = now >= reign.since.plus(self.waits.missing);
        let Ok(roll) = self.call(reign, gives_up).await else { return };
        let known = before.as_ref().is_some_and(|before| before.missing == roll.missing);
        if let Some(edge) = roll.missing.as_ref().filter(|_| !known) {
            tracing::warn!(
                edge,
                "an edge has not said again in redis what it has revoked: tokens from before are not \
                 served until it has"
            );
        }
        if before.as_ref().is_some_and(|before| before.floor != roll.floor) {
            tracing::error!(
                "an edge that may have revoked tokens has not come back since redis has changed hands: \
                 tokens from before are refused for good, clients log in again"
            );
        }
        self.roll.store(Some(Arc::new(roll)));
    }

    async fn call(&self, reign: &Reign, gives_up: bool) -> Result<Roll, Fault> {
        let edge = self.registry.read(|reader| reader.chain()).await?;
        let (epoch, gone) = (reign.epoch.0.to_string(), GONE.as_millis().to_string());
        let floor = reign.since.plus(CLOCKS).millis().to_string();
        let arguments = [
            edge.as_bytes(),
            epoch.as_bytes(),
            if gives_up { b"1" } else { b"0" },
            floor.as_bytes(),
            gone.as_bytes(),
            KEPT_MS,
        ];
        let keys = [key(self.redis.keys())];
        let answer = self.redis.script(Tag::FIRST, &Script::new(ANSWER), &keys, &arguments).await?;
        let Value::Array(answer) = answer else { return Err(Fault::Malformed) };
        let [missing, before, but] =
            <[Value; 3]>::try_from(answer).map_err(|_| Fault::Malformed)?;
        let missing = scripts::found(missing).map_err(|()| Fault::Malformed)?.unwrap_or_default();
        let missing = String::from_utf8(missing).map_err(|_| Fault::Malformed)?;
        // Another server may have answered by now: its roll is of another epoch.
        if self.reign()?.epoch != reign.epoch {
            return Err(Fault::Down);
        }
        let missing = Some(missing).filter(|missing| !missing.is_empty());
        Ok(Roll { epoch: reign.epoch, missing, floor: Floor::read(before, but)?, at: now() })
    }
}
