//! Which store it is: marks that it keeps, and who its masters are.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use redis::{Pipeline, Value};

use super::inspect::Identity;
use super::keys::{Keys, Tag};
use crate::policy::digest::{Sha256, lp};
use crate::policy::epoch::Epoch;
use crate::policy::time::UnixTime;

/// A tag's mark: a random text that is there as long as nobody wiped the server.
pub(super) type Mark = Vec<u8>;

/// Sets a tag's mark where there is none, and asks for it: two answers.
///
/// It has no TTL: a mark that ended would be taken for a store that was wiped.
pub(super) fn ask_mark(pipeline: &mut Pipeline, keys: &Keys, tag: Tag, random: &[u8; 16]) {
    let key = keys.named(tag, "mark");
    let fresh = URL_SAFE_NO_PAD.encode(random);
    pipeline.cmd("SET").arg(&key).arg(fresh).arg("NX");
    pipeline.cmd("GET").arg(key);
}

/// Reads one tag's mark.
///
/// # Errors
/// In words, where the server has none after all.
pub(super) fn mark(set: &Value, got: &Value) -> Result<Mark, String> {
    match (set, got) {
        (Value::ServerError(error), _) | (_, Value::ServerError(error)) => {
            let detail = error.details().unwrap_or_default();
            Err(format!("its mark cannot be kept: {} {detail}", error.code()))
        }
        (_, Value::BulkString(mark)) if !mark.is_empty() => Ok(mark.clone()),
        (_, _) => Err("keeps no mark".to_owned()),
    }
}

/// `KEYS`: a tag's mark. `ARGV`: the one that is not to be gone on from; another. Edges that find out the
/// same at one time make one new mark.
const DISOWN: &str = "
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2]) end
return 1
";

/// Has a tag's mark be another than `mark`: one answer. What is there may not be all that was.
pub(super) fn disown(
    pipeline: &mut Pipeline,
    keys: &Keys,
    tag: Tag,
    mark: &Mark,
    random: &[u8; 16],
) {
    let fresh = URL_SAFE_NO_PAD.encode(random);
    pipeline.cmd("EVAL").arg(DISOWN).arg(1).arg(keys.named(tag, "mark")).arg(mark).arg(fresh);
}

/// SHA-256 over `lp("holdfast-epoch/v2")`, every tag's mark in order, and every master's identity,
/// sorted.
pub(super) fn of(marks: &[Mark], masters: &[Identity]) -> Epoch {
    let mut text = Vec::new();
    lp(&mut text, b"holdfast-epoch/v2");
    for mark in marks {
        lp(&mut text, mark);
    }
    let mut masters: Vec<_> = masters.iter().collect();
    masters.sort();
    for master in masters {
        lp(&mut text, master.run.as_bytes());
        lp(&mut text, master.replication.as_bytes());
        lp(&mut text, master.evicted.as_bytes());
    }
    Epoch(Sha256::of(&text))
}

/// `KEYS`: what the store remembers of its epoch's begin: `<epoch> <begun> <at>`. `ARGV`: the epoch.
///
/// When it began, in milliseconds, later than any that the store remembers; and how long ago that was. Both
/// by the server's clock. `begun` runs ahead of that where the server before had a clock that did, so that
/// epochs have an order; by more than what clocks may differ by, which whoever gives epochs up concedes.
const BEGIN: &str = "
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local epoch, begun, at = string.match(redis.call('GET', KEYS[1]) or '', '^(%S+) (%d+) (%d+)$')
if epoch ~= ARGV[1] then
  begun, at = math.max(now, (tonumber(begun) or 0) + 60001), now
  local text = string.format('%s %.0f %.0f', ARGV[1], begun, at)
  redis.call('SET', KEYS[1], text)
end
return { string.format('%.0f', begun), string.format('%.0f', now - at) }
";

/// Has the store remember that this epoch has begun, where it does not: one answer, for [`began`].
///
/// The key has no TTL: there is one such key, and each epoch writes over it.
pub(super) fn ask_begin(pipeline: &mut Pipeline, keys: &Keys, epoch: Epoch) {
    let key = keys.named(Tag::FIRST, "begun");
    pipeline.cmd("EVAL").arg(BEGIN).arg(1).arg(key).arg(epoch.0.to_string());
}

/// When the epoch began, by the server's clock, and how long ago; `None` for an answer that is none.
pub(super) fn began(answer: &Value) -> Option<(UnixTime, Duration)> {
    let Value::Array(answer) = answer else { return None };
    let [Value::BulkString(begun), Value::BulkString(age)] = answer.as_slice() else { return None };
    let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<i64>().ok();
    // Less than nothing where the server's clock was set back: then it counts from now on.
    let age = u64::try_from(number(age)?).unwrap_or_default();
    Some((UnixTime::from_millis(number(begun)?), Duration::from_millis(age)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn master(run: &str, replication: &str) -> Identity {
        let (run, replication) = (run.to_owned(), replication.to_owned());
        Identity { run, replication, evicted: "0".to_owned() }
    }

    #[test]
    fn another_mark_or_master_is_another_epoch() {
        let marks = |first: &str| vec![first.as_bytes().to_vec(), b"two".to_vec()];
        let (a, b) = (master("a", "r"), master("b", "s"));
        let epoch = of(&marks("one"), &[a.clone(), b.clone()]);
        assert_eq!(epoch, of(&marks("one"), &[b.clone(), a.clone()]));
        for other in [
            of(&marks("won"), &[a.clone(), b.clone()]),
            of(&marks("one"), std::slice::from_ref(&a)),
            of(&marks("one"), &[master("a", "t"), b.clone()]),
            of(&marks("one"), &[master("c", "r"), b.clone()]),
            of(&marks("one"), &[Identity { evicted: "1".to_owned(), ..a.clone() }, b.clone()]),
        ] {
            assert_ne!(epoch, other);
        }
    }

    #[test]
    fn reads_when_it_began() {
        let answer = |begun: &str, age: &str| {
            let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
            began(&Value::Array(vec![text(begun), text(age)]))
        };
        let begun = UnixTime::from_millis(1_800_000_000_123);
        assert_eq!(answer("1800000000123", "7000"), Some((begun, Duration::from_secs(7))));
        assert_eq!(answer("1800000000123", "-7000"), Some((begun, Duration::ZERO)));
        assert_eq!(answer("1800000000123", ""), None);
        assert_eq!(began(&Value::Nil), None);
    }
}
