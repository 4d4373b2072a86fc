//! The temporary bypass: when its flag was first seen.
//!
//! Each edge notes it in its own file, with a line in its audit log, as long as its own flag stays. Edges
//! that share a Redis have one note there as well (`bypass`, at the first tag): the id and the time, and
//! which edges have the flag. The earliest time counts for all, so that an edge that is restarted, or one
//! that gets the flag later, opens no new term. It is over for good when the last edge has lost the flag;
//! until then an edge that loses it and gets it back is still in the old term. While a configuration is
//! rolled out, in whichever direction, each edge goes by its own: without the flag it lets nobody by, and
//! with it nobody after its own `until`.
//!
//! The note's key ends 30 days after an edge has last started or reloaded with the flag: a term is a day
//! at most, and what has the flag for longer has its own note in its file. An edge that went away with
//! the flag in place keeps the note from being closed for that long, and no longer.
//!
//! With Redis down at a start or a reload the bypass is not open at that edge; a warning says so, and it is
//! noted, and opened, when Redis answers ([`note_in_time`]).

use std::time::Duration;

use redis::Value;

use super::redis::{Redis, Script, Tag};
use super::registry::Registry;
use super::sqlite::Fault;
use super::sqlite::batch::Batch;
use crate::policy::audit::{Draft, Kind};
use crate::policy::bypass::Seen;
use crate::policy::time::UnixTime;

/// How long the note is kept without any edge that says that it has the flag, milliseconds.
const KEPT_MS: &[u8] = b"2592000000";

/// The rest between two tries, and how long each waits.
const REST: Duration = Duration::from_secs(1);

/// `KEYS`: the note. `ARGV`: the edge; an id; when this edge first saw the flag; how long to keep it. The
/// id and the time of the note.
const WANT: &str = "
local since = redis.call('HGET', KEYS[1], 'since')
if not since or tonumber(ARGV[3]) < tonumber(since) then
  redis.call('HSET', KEYS[1], 'id', ARGV[2], 'since', ARGV[3])
end
redis.call('HSET', KEYS[1], 'edge:' .. ARGV[1], '1')
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return redis.call('HMGET', KEYS[1], 'id', 'since')
";

/// `KEYS`: the note. `ARGV`: the edge. Whether that was the last.
const LEAVE: &str = "
redis.call('HDEL', KEYS[1], 'edge:' .. ARGV[1])
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(name, 1, 5) == 'edge:' then return 0 end
end
redis.call('DEL', KEYS[1])
return 1
";

/// What the configuration says, and when.
#[derive(Clone, Debug)]
pub struct Flag {
    /// Whether the bypass is wanted.
    pub allowed: bool,
    /// The time.
    pub now: UnixTime,
    /// What its records are found by, where it is new: 128 random bits or more.
    pub fresh_id: String,
    /// How long Redis is waited for.
    pub patience: Duration,
}

/// What came of a flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Noted {
    /// It was noted: when it was first seen, or that the bypass is not to be open.
    Seen(Option<Seen>),
    /// Redis does not answer: the bypass is not to be open, and nobody was told.
    Unheard,
}

/// Takes note of the bypass's flag: when it was first seen, as long as it stays.
///
/// # Errors
/// [`Fault`] of this edge's own file.
pub async fn note(registry: &Registry, redis: Option<&Redis>, flag: Flag) -> Result<Noted, Fault> {
    let kept = registry.read(|reader| reader.bypass()).await?;
    let Flag { allowed, now, fresh_id, patience } = flag;
    let mut next = match (allowed, &kept) {
        (false, None) => return Ok(Noted::Seen(None)),
        (false, Some(_)) => None,
        (true, Some(seen)) => Some(seen.clone()),
        (true, None) => Some(Seen { id: fresh_id, since: now }),
    };
    if let Some(redis) = redis {
        let edge = registry.read(|reader| reader.chain()).await?;
        let told = if redis.ready(patience).await { tell(redis, &edge, &next).await } else { None };
        // The note stays, so that the next time closes it where edges share it.
        let Some(told) = told else { return Ok(Noted::Unheard) };
        next = told;
    }
    if next != kept {
        let seen = next.clone();
        registry.transact(move |batch| change(batch, seen.as_ref(), now)).await?;
    }
    Ok(Noted::Seen(next))
}

/// [`note`], again and again until it is. `told` hears what came of each try.
pub async fn note_in_time(
    registry: &Registry,
    redis: Option<&Redis>,
    mut flag: Flag,
    mut told: impl FnMut(&Result<Noted, Fault>) + Send,
) {
    loop {
        let noted = note(registry, redis, flag.clone()).await;
        told(&noted);
        if let Ok(Noted::Seen(_)) = noted {
            return;
        }
        flag.patience = REST;
        tokio::time::sleep(REST).await;
    }
}

/// Says at the shared note what this edge has; what the note says. `None` where nobody answers.
async fn tell(redis: &Redis, edge: &str, own: &Option<Seen>) -> Option<Option<Seen>> {
    let keys = [redis.keys().named(Tag::FIRST, "bypass")];
    let Some(own) = own else {
        let script = Script::new(LEAVE);
        let left = redis.script(Tag::FIRST, &script, &keys, &[edge.as_bytes()]).await;
        return matches!(left, Ok(Value::Int(0 | 1))).then_some(None);
    };
    let since = own.since.millis().to_string();
    let arguments = [edge.as_bytes(), own.id.as_bytes(), since.as_bytes(), KEPT_MS];
    let noted = redis.script(Tag::FIRST, &Script::new(WANT), &keys, &arguments).await;
    let Ok(Value::Array(noted)) = noted else { return None };
    let [Value::BulkString(id), Value::BulkString(since)] = noted.as_slice() else { return None };
    let id = std::str::from_utf8(id).ok()?.to_owned();
    let since = UnixTime::from_millis(std::str::from_utf8(since).ok()?.parse().ok()?);
    Some(Some(Seen { id, since }))
}

/// What the shared note says.
///
/// # Errors
/// [`Fault`].
pub(in crate::store) async fn shared(redis: &Redis) -> Result<Option<Seen>, Fault> {
    let key = redis.keys().named(Tag::FIRST, "bypass");
    let mut pipeline = redis::Pipeline::new();
    pipeline.cmd("HMGET").arg(key).arg("id").arg("since");
    let answers = redis.send(Tag::FIRST, &pipeline).await.map_err(|_| Fault::Down)?;
    match answers.as_slice() {
        [Value::Array(noted)] => match noted.as_slice() {
            [Value::Nil, Value::Nil] => Ok(None),
            [Value::BulkString(id), Value::BulkString(since)] => {
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
                let since = text(since).and_then(|since| since.parse().ok());
                let (id, since) = text(id).zip(since).ok_or(Fault::Malformed)?;
                Ok(Some(Seen { id, since: UnixTime::from_millis(since) }))
            }
            _ => Err(Fault::Malformed),
        },
        _ => Err(Fault::Malformed),
    }
}

/// Has the shared note say what another store's does, as that of `edge`.
///
/// # Errors
/// [`Fault::Down`].
pub(in crate::store) async fn carry(redis: &Redis, edge: &str, seen: &Seen) -> Result<(), Fault> {
    let told = tell(redis, edge, &Some(seen.clone())).await;
    told.map(|_| ()).ok_or(Fault::Down)
}

/// Keeps the note of this edge, with its line.
fn change(batch: &mut Batch<'_>, next: Option<&Seen>, now: UnixTime) -> Result<(), Fault> {
    let kept = batch.bypass()?;
    let (id, data) = match (next, &kept) {
        (Some(next), None) => {
            (&next.id, serde_json::json!({ "change": "opened", "since": next.since }))
        }
        // Another edge has seen it before.
        (Some(next), Some(kept)) if next != kept => {
            (&next.id, serde_json::json!({ "change": "joined", "since": next.since }))
        }
        (None, Some(kept)) => {
            (&kept.id, serde_json::json!({ "change": "closed", "since": kept.since }))
        }
        (Some(_), Some(_)) | (None, None) => return Ok(()),
    };
    batch.append(&Draft::new(Kind::BypassChange, now, id, None, &data))?;
    batch.set_bypass(next)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::store::bindings::tests::Server;
    use crate::store::sqlite::writer::CheckpointRule;

    struct Edge {
        registry: Registry,
        redis: Option<Redis>,
    }

    impl Edge {
        fn new(scratch: &TempDir, name: &str, redis: Option<Redis>) -> Self {
            let rule = CheckpointRule { lines: 1000, interval: Duration::from_secs(3600) };
            Self { registry: Registry::open(&scratch.path().join(name), rule).unwrap(), redis }
        }

        /// Its start, or a reload.
        async fn told(&self, allowed: bool, secs: i64) -> Option<Seen> {
            match note(&self.registry, self.redis.as_ref(), flag(allowed, secs)).await.unwrap() {
                Noted::Seen(seen) => seen,
                Noted::Unheard => None,
            }
        }

        async fn lines(&self) -> Vec<String> {
            let lines = self.registry.read(|reader| reader.lines(1, 100)).await.unwrap();
            let lines = lines.into_iter().filter(|line| line.kind == "bypass.change");
            lines.map(|line| line.line).collect()
        }
    }

    fn flag(allowed: bool, secs: i64) -> Flag {
        let (now, fresh_id) = (at(secs), format!("id-{secs}"));
        Flag { allowed, now, fresh_id, patience: Duration::from_millis(300) }
    }

    fn at(secs: i64) -> UnixTime {
        UnixTime::from_secs(1_800_000_000 + secs)
    }

    fn seen(secs: i64) -> Option<Seen> {
        Some(Seen { id: format!("id-{secs}"), since: at(secs) })
    }

    #[tokio::test]
    async fn one_edge_notes_it_as_long_as_the_flag_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let edge = Edge::new(&scratch, "one.db", None);
        assert_eq!(edge.told(false, 0).await, None);
        assert_eq!(edge.told(true, 1).await, seen(1));
        assert_eq!(edge.told(true, 9).await, seen(1));
        assert_eq!(edge.told(false, 10).await, None);
        assert_eq!(edge.told(false, 11).await, None);
        assert_eq!(edge.told(true, 12).await, seen(12));
        let lines = edge.lines().await;
        let words = ["opened", "closed", "opened"];
        assert_eq!(lines.len(), words.len(), "{lines:?}");
        for (line, word) in lines.iter().zip(words) {
            assert!(line.contains(word), "{line}");
        }
    }

    #[tokio::test]
    async fn edges_have_one_term() {
        let scratch = tempfile::tempdir().unwrap();
        let Some(server) = Server::start(scratch.path()) else { return };
        let mut edges = Vec::new();
        for name in ["one.db", "two.db", "three.db", "four.db"] {
            edges.push(Edge::new(&scratch, name, Some(server.connect().await)));
        }
        let [one, two, three, four] = edges.try_into().unwrap_or_else(|_| unreachable!());
        assert_eq!(one.told(true, 1).await, seen(1));
        // Those that get the flag later, or never.
        assert_eq!(two.told(true, 60).await, seen(1));
        assert_eq!(three.told(false, 61).await, None);
        assert_eq!(one.told(true, 62).await, seen(1));
        // It is not begun anew by taking the flag away at one edge.
        assert_eq!(one.told(false, 70).await, None);
        assert_eq!(four.told(true, 70).await, seen(1));
        assert_eq!(two.told(true, 71).await, seen(1));
        assert_eq!(one.told(true, 72).await, seen(1));
        // Nor by what Redis forgets.
        server.raw(&["FLUSHALL"]);
        assert_eq!(three.told(true, 80).await, seen(80));
        assert_eq!(two.told(true, 81).await, seen(1));
        assert_eq!(three.told(true, 82).await, seen(1));
        assert_eq!(one.told(true, 83).await, seen(1));
        // With the last flag it is over.
        for edge in [&one, &two, &three, &four] {
            assert_eq!(edge.told(false, 90).await, None);
        }
        assert_eq!(two.told(true, 100).await, seen(100));
        assert_eq!(two.lines().await.len(), 3);
    }

    #[tokio::test]
    async fn without_redis_it_is_not_open() {
        let scratch = tempfile::tempdir().unwrap();
        let Some(mut server) = Server::start(scratch.path()) else { return };
        let edge = Edge::new(&scratch, "one.db", Some(server.connect().await));
        assert_eq!(edge.told(true, 1).await, seen(1));
        server.stop();
        assert_eq!(edge.told(true, 2).await, None);
        assert_eq!(edge.told(false, 3).await, None);
        assert_eq!(edge.lines().await.len(), 1, "it is closed when all can know");
        // It is noted as of when the flag was there, once it can be.
        let mut last = None;
        let mut noting =
            Box::pin(note_in_time(&edge.registry, edge.redis.as_ref(), flag(true, 4), |noted| {
                last = Some(noted.clone())
            }));
        assert!(tokio::time::timeout(Duration::from_millis(1300), &mut noting).await.is_err());
        server.roll_back();
        noting.await;
        assert_eq!(last, Some(Ok(Noted::Seen(seen(1)))));
    }
}
