//! Which edges are there, and which of them have said again what they have revoked.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;

use super::super::scripts;
use super::Inner;
use crate::policy::digest::Sha256;
use crate::policy::epoch::{Epoch, GivenUp};
use crate::policy::time::UnixTime;
use crate::store::clock::Moment;
use crate::store::epoch::SETTLE;
use crate::store::redis::{Guarded, Keys, Period, Tag};
use crate::store::sqlite::Fault;

/// How often an edge says that it is there.
const EVERY: Duration = Duration::from_secs(5);
/// The same while others are waited for.
const SOON: Duration = Duration::from_millis(500);
/// An edge that was last there so long before the store changed hands is not waited for: what it has revoked
/// was on replicas and disks by then.
pub(super) const GONE: Duration = Duration::from_secs(30);
/// What servers' clocks may differ by, in saying when an epoch began: one may have taken over from another
/// that remembered nothing.
const CLOCKS: Duration = Duration::from_secs(60);
/// What counts for the other edges only while this one has been there lately: well before they would take
/// it for gone.
pub(super) const LATELY: Duration = Duration::from_secs(15);
/// How long the roll is kept without any edge, milliseconds: a year.
const KEPT_MS: &[u8] = b"31536000000";

/// `KEYS`: the roll. `ARGV`: the edge; the epoch; when that began; whether who is missing is given up; how
/// long an edge is waited for; until when the epochs before this one have begun; how long ago an edge of
/// this epoch may have been there; how long to keep it; until when epochs are given up as this edge
/// remembers it, empty for never, and which one is not; whether the edge is to be on the roll: otherwise
/// nothing is changed of who is.
///
/// An edge that is missing, empty for none; until when epochs are given up, and which one is not; an
/// edge that is in a later epoch: then nothing was changed.
const ANSWER: &str = "
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local own, begun = 'edge:' .. ARGV[1], tonumber(ARGV[3])
local others = {}
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(name, 1, 5) == 'edge:' and name ~= own then
    local epoch, since, at = string.match(redis.call('HGET', KEYS[1], name), '^(%S+) (%d+) (%d+)$')
    local other = { name = name, epoch = epoch, begun = tonumber(since or 0), at = tonumber(at or 0) }
    if epoch ~= ARGV[2] and other.begun > begun and now - other.at <= tonumber(ARGV[5]) then
      return { '', '', '', string.sub(name, 6) }
    end
    others[#others + 1] = other
  end
end
local function give_up(before, but)
  if before > tonumber(redis.call('HGET', KEYS[1], 'floor') or 0) then
    redis.call('HSET', KEYS[1], 'floor', string.format('%.0f', before), 'floor-of', but)
  end
end
if ARGV[11] == '1' then
  redis.call('HSET', KEYS[1], own, ARGV[2] .. ' ' .. ARGV[3] .. ' ' .. string.format('%.0f', now))
end
if ARGV[11] == '1' and ARGV[9] ~= '' then give_up(tonumber(ARGV[9]), ARGV[10]) end
local missing, before = '', tonumber(ARGV[6])
for _, other in ipairs(others) do
  if other.epoch ~= ARGV[2] then
    if ARGV[4] == '1' and ARGV[11] == '1' then
      redis.call('HDEL', KEYS[1], other.name)
      give_up(math.max(before, other.begun + before - begun), ARGV[2])
    else
      missing = string.sub(other.name, 6)
    end
  elseif now - other.at > tonumber(ARGV[7]) and ARGV[11] == '1' then
    redis.call('HDEL', KEYS[1], other.name)
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[8])
local floor = redis.call('HMGET', KEYS[1], 'floor', 'floor-of')
return { missing, floor[1] or '', floor[2] or '', '' }
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

/// What epochs are given up, from what is kept; `None` where nothing is.
///
/// # Errors
/// [`Fault::Malformed`].
pub(in crate::store::bindings) fn given_up(
    before: Value,
    but: Value,
) -> Result<Option<GivenUp>, Fault> {
    let text = |value| scripts::found(value).map_err(|()| Fault::Malformed);
    let (before, but) = (text(before)?.unwrap_or_default(), text(but)?.unwrap_or_default());
    if before.is_empty() {
        return Ok(None);
    }
    let before = std::str::from_utf8(&before).ok().and_then(|it| it.parse().ok());
    let but = std::str::from_utf8(&but).ok().and_then(Sha256::from_base64url);
    let (before, but) = before.zip(but).ok_or(Fault::Malformed)?;
    Ok(Some(GivenUp { before: UnixTime::from_millis(before), but: Epoch(but) }))
}

/// The time and the epoch, as scripts are given them; empty for nothing.
pub(super) fn texts(given_up: Option<&GivenUp>) -> (String, String) {
    let texts = |it: &GivenUp| (it.before.millis().to_string(), it.but.0.to_string());
    given_up.map(texts).unwrap_or_default()
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
    /// An edge that is in a later epoch: then nothing else is known.
    pub(super) later: Option<String>,
    pub(super) given_up: Option<GivenUp>,
    pub(super) at: Moment,
    /// When this edge called it first in that epoch.
    pub(super) first: Moment,
}

impl Roll {
    fn is_fresh(&self) -> bool {
        let soon = self.missing.is_some() || self.later.is_some();
        self.at.elapsed() < if soon { SOON } else { EVERY }
    }

    /// Whether others still wait for what this edge may say.
    pub(super) fn counts(&self) -> bool {
        self.at.elapsed() < LATELY
    }
}

impl Inner {
    /// What edges have said again in this epoch; `None` before this one has said all of its own.
    pub(super) fn roll(&self, epoch: Epoch) -> Option<Arc<Roll>> {
        self.called(epoch).filter(|roll| roll.later.is_none())
    }

    /// What came of calling the roll in this epoch.
    pub(super) fn called(&self, epoch: Epoch) -> Option<Arc<Roll>> {
        self.roll.load_full().filter(|roll| roll.epoch == epoch)
    }

    /// Whether what was revoked in earlier epochs has been said again, as far as a roll tells.
    pub(super) fn is_settled(&self, period: &Period, roll: Option<&Roll>) -> bool {
        roll.is_some_and(|roll| roll.missing.is_none()) && period.age >= self.waits.settle
    }

    /// Says that this edge is there and has said all that it has revoked, if it is time.
    pub(super) async fn answer_the_roll(&self, period: &Period) {
        let before = self.called(period.epoch);
        if before.as_ref().is_some_and(|roll| roll.is_fresh()) {
            return;
        }
        let first = before.as_ref().map_or_else(Moment::now, |roll| roll.first);
        let Ok(roll) = self.call(period, first).await else { return };
        let known = before.as_ref().is_some_and(|before| before.later == roll.later);
        if let Some(edge) = roll.later.as_ref().filter(|_| !known) {
            tracing::warn!(
                edge,
                "another edge has found other masters of redis than this one: tokens from before are \
                 not served here until both see the same"
            );
        }
        let known = before.as_ref().is_some_and(|before| before.missing == roll.missing);
        if let Some(edge) = roll.missing.as_ref().filter(|_| !known) {
            tracing::warn!(
                edge,
                "an edge has not said again in redis what it has revoked: tokens from before are not \
                 served until it has"
            );
        }
        let given_up = |before: &Arc<Roll>| before.given_up != roll.given_up;
        if roll.later.is_none() && before.as_ref().is_some_and(given_up) {
            tracing::error!(
                "an edge that may have revoked tokens has not come back since redis has changed hands: \
                 tokens from before are refused for good, clients log in again"
            );
        }
        self.roll.store(Some(Arc::new(roll)));
    }

    async fn call(&self, period: &Period, first: Moment) -> Result<Roll, Fault> {
        let (edge, known) =
            self.registry.read(|reader| Ok((reader.chain()?, reader.given_up()?))).await?;
        // Not as long as the servers have been there alone, or with a command: others start now as well.
        let gives_up = period.age.min(first.elapsed_surely()) >= self.waits.missing;
        let (known_before, known_but) = texts(known.as_ref());
        let millis = |duration: Duration| duration.as_millis().to_string();
        let (epoch, begun) = (period.epoch.0.to_string(), period.begun.millis().to_string());
        let (missing, gone) = (millis(self.waits.missing), millis(GONE));
        let floor = period.begun.plus(CLOCKS).millis().to_string();
        let arguments = [
            edge.as_bytes(),
            epoch.as_bytes(),
            begun.as_bytes(),
            if gives_up { b"1" } else { b"0" },
            missing.as_bytes(),
            floor.as_bytes(),
            gone.as_bytes(),
            KEPT_MS,
            known_before.as_bytes(),
            known_but.as_bytes(),
            if self.joins { b"1" } else { b"0" },
        ];
        let (keys, script) = ([key(self.redis.keys())], Guarded::new(ANSWER));
        let answer =
            self.redis.script_in(period.epoch, Tag::FIRST, &script, &keys, &arguments).await?;
        let Value::Array(answer) = answer else { return Err(Fault::Malformed) };
        let [missing, before, but, later] =
            <[Value; 4]>::try_from(answer).map_err(|_| Fault::Malformed)?;
        let name = |value| {
            let text = scripts::found(value).map_err(|()| Fault::Malformed)?.unwrap_or_default();
            let text = String::from_utf8(text).map_err(|_| Fault::Malformed)?;
            Ok::<_, Fault>(Some(text).filter(|text| !text.is_empty()))
        };
        let (epoch, at) = (period.epoch, Moment::now());
        if let Some(edge) = name(later)? {
            let (missing, later) = (None, Some(edge));
            return Ok(Roll { epoch, missing, later, given_up: known, at, first });
        }
        let given_up = given_up(before, but)?;
        if !self.joins
            && known.is_some_and(|known| given_up.is_none_or(|it| it.before < known.before))
        {
            // Who copies them would take for good what was given up. An edge says it again.
            return Err(Fault::Unvouched);
        }
        let is_later = |it: &GivenUp| known.is_none_or(|known| it.before > known.before);
        if let Some(given_up) = given_up.filter(is_later) {
            // It stays so, also where the server that says it is wiped.
            self.registry.transact(move |batch| batch.keep_given_up(&given_up)).await?;
        }
        Ok(Roll { epoch, missing: name(missing)?, later: None, given_up, at, first })
    }
}
