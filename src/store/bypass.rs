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
//! # What holds when Redis forgets
//!
//! - Each edge with the flag says its note again as soon as it finds Redis to be another store, and every
//!   `AGAIN`; an earlier time that it finds there counts for itself from then on, a later one never.
//! - An edge whose own file has no note opens nothing until Redis has been the store that it is for
//!   [`SETTLE`], so that each has said what it remembers. In a store that is another by then its word does
//!   nothing.
//!
//! So a term that is over stays so unless every edge that knows of it is away for that time. One that
//! comes back later ends what was opened meanwhile, within `AGAIN`.
//!
//! The note's key ends 30 days after the last edge has said that it has the flag: a term is a day at most,
//! and what has the flag for longer has its own note in its file. An edge that went away with the flag in
//! place keeps the note from being closed for that long, and no longer.
//!
//! With Redis down at a start or a reload the bypass is not open at that edge; a warning says so, and it is
//! noted, and opened, when Redis answers ([`keep`]).

use std::time::Duration;

use redis::{Pipeline, Value};

use super::clock;
use super::epoch::SETTLE;
use super::redis::{Guarded, Redis, Tag};
use super::registry::Registry;
use super::sqlite::Fault;
use super::sqlite::batch::Batch;
use crate::policy::audit::{Draft, Kind};
use crate::policy::bypass::Seen;
use crate::policy::epoch::Epoch;
use crate::policy::time::UnixTime;

/// How long the note is kept without any edge that says that it has the flag, milliseconds.
const KEPT_MS: &[u8] = b"2592000000";

/// How often an edge says that it has the flag, in the same store.
const AGAIN: Duration = Duration::from_secs(5);
/// How often it looks whether the store is the same.
const LOOK: Duration = Duration::from_millis(250);

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
    /// This edge has no note, and Redis may not yet have those of others: the same.
    Early,
}

/// Takes note of the bypass's flag: when it was first seen, as long as it stays.
///
/// # Errors
/// [`Fault`] of this edge's own file.
pub async fn note(registry: &Registry, redis: Option<&Redis>, flag: Flag) -> Result<Noted, Fault> {
    let kept = registry.read(|reader| reader.bypass()).await?;
    let Flag { allowed, now, fresh_id, patience } = flag;
    let own = match (allowed, &kept) {
        (false, None) => return Ok(Noted::Seen(None)),
        (false, Some(_)) => None,
        (true, Some(seen)) => Some(seen.clone()),
        (true, None) => Some(Seen { id: fresh_id, since: now }),
    };
    let noted = match redis {
        None => Noted::Seen(own),
        Some(redis) if redis.ready(patience).await => {
            let edge = registry.read(|reader| reader.chain()).await?;
            tell(redis, &edge, own, kept.is_none()).await
        }
        Some(_) => Noted::Unheard,
    };
    // Where nobody was told the note stays, so that the next time closes it where edges share it.
    if let Noted::Seen(next) = &noted {
        write(registry, &kept, next.clone(), now).await?;
    }
    Ok(noted)
}

/// [`note`], again and again until it is; from then on the note is kept at Redis, as long as this is polled
/// and the flag is there. `told` hears what came of each try, and what is found to count later.
pub async fn keep(
    registry: &Registry,
    redis: Option<&Redis>,
    mut flag: Flag,
    mut told: impl FnMut(&Result<Noted, Fault>) + Send,
) {
    let (mut said, seen) = loop {
        let said = redis.and_then(epoch);
        let noted = note(registry, redis, flag.clone()).await;
        told(&noted);
        if let Ok(Noted::Seen(seen)) = noted {
            break (said, seen);
        }
        flag.patience = REST;
        tokio::time::sleep(REST).await;
    };
    let (Some(redis), Some(mut seen)) = (redis, seen) else { return };
    loop {
        due(redis, said).await;
        let current = epoch(redis);
        match again(registry, redis, &mut seen, &mut told).await {
            Ok(true) => said = current,
            Ok(false) => tokio::time::sleep(REST).await,
            Err(fault) => {
                tracing::warn!(%fault, "the temporary bypass could not be noted again");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

/// Waits until Redis is another store than the one in which the note was `said`, at most `AGAIN`.
async fn due(redis: &Redis, said: Option<Epoch>) {
    let another = async {
        while epoch(redis).is_none_or(|epoch| Some(epoch) == said) {
            tokio::time::sleep(LOOK).await;
        }
    };
    let _ = tokio::time::timeout(AGAIN, another).await;
}

/// Says once more what this edge has `seen`, and goes by an earlier note that is there. Whether anybody
/// answered.
async fn again(
    registry: &Registry,
    redis: &Redis,
    seen: &mut Seen,
    told: &mut (impl FnMut(&Result<Noted, Fault>) + Send),
) -> Result<bool, Fault> {
    let edge = registry.read(|reader| reader.chain()).await?;
    let Some(epoch) = epoch(redis) else { return Ok(false) };
    let Some(found) = want(redis, epoch, &edge, seen).await else { return Ok(false) };
    if found != *seen && found.since <= seen.since {
        *seen = found;
        // Before it is written down: it ends no later for a file that cannot be written.
        told(&Ok(Noted::Seen(Some(seen.clone()))));
    }
    let kept = registry.read(|reader| reader.bypass()).await?;
    // Nothing is opened here: where there is none, who took this process's place has closed it.
    if kept.is_some() {
        write(registry, &kept, Some(seen.clone()), clock::now()).await?;
    }
    Ok(true)
}

/// Which store Redis is; `None` while nobody knows.
fn epoch(redis: &Redis) -> Option<Epoch> {
    redis.period().map(|period| period.epoch)
}

/// Says at the shared note what this edge has, which may be `fresh`: of this very moment.
async fn tell(redis: &Redis, edge: &str, own: Option<Seen>, fresh: bool) -> Noted {
    let Some(period) = redis.period() else { return Noted::Unheard };
    let told = match own {
        Some(_) if fresh && period.age < SETTLE => return Noted::Early,
        Some(own) => want(redis, period.epoch, edge, &own).await.map(Some),
        None => leave(redis, period.epoch, edge).await.then_some(None),
    };
    told.map_or(Noted::Unheard, Noted::Seen)
}

/// Says at the note in the store of `epoch` what this edge has seen; what the note says. `None` where nobody
/// answers, or another store.
async fn want(redis: &Redis, epoch: Epoch, edge: &str, own: &Seen) -> Option<Seen> {
    let keys = [redis.keys().named(Tag::FIRST, "bypass")];
    let since = own.since.millis().to_string();
    let arguments = [edge.as_bytes(), own.id.as_bytes(), since.as_bytes(), KEPT_MS];
    let want = Guarded::new(WANT);
    match redis.script_in(epoch, Tag::FIRST, &want, &keys, &arguments).await {
        Ok(Value::Array(noted)) => seen(&noted),
        Ok(_) | Err(_) => None,
    }
}

/// Says there that this edge has not the flag any more. Whether somebody heard.
async fn leave(redis: &Redis, epoch: Epoch, edge: &str) -> bool {
    let keys = [redis.keys().named(Tag::FIRST, "bypass")];
    let leave = Guarded::new(LEAVE);
    let left = redis.script_in(epoch, Tag::FIRST, &leave, &keys, &[edge.as_bytes()]).await;
    matches!(left, Ok(Value::Int(0 | 1)))
}

/// An id and a time, as the note has them.
fn seen(noted: &[Value]) -> Option<Seen> {
    let [Value::BulkString(id), Value::BulkString(since)] = noted else { return None };
    let id = std::str::from_utf8(id).ok()?.to_owned();
    let since = UnixTime::from_millis(std::str::from_utf8(since).ok()?.parse().ok()?);
    Some(Seen { id, since })
}

/// What the shared note says.
///
/// # Errors
/// [`Fault`].
pub(in crate::store) async fn shared(redis: &Redis) -> Result<Option<Seen>, Fault> {
    let key = redis.keys().named(Tag::FIRST, "bypass");
    let mut pipeline = Pipeline::new();
    pipeline.cmd("HMGET").arg(key).arg("id").arg("since");
    let answers = redis.send(Tag::FIRST, &pipeline).await.map_err(|_| Fault::Down)?;
    let [Value::Array(noted)] = answers.as_slice() else { return Err(Fault::Malformed) };
    match noted.as_slice() {
        [Value::Nil, Value::Nil] => Ok(None),
        noted => seen(noted).map(Some).ok_or(Fault::Malformed),
    }
}

/// Has the shared note say what another store's does, as that of `edge`.
///
/// # Errors
/// [`Fault::Down`].
pub(in crate::store) async fn carry(redis: &Redis, edge: &str, seen: &Seen) -> Result<(), Fault> {
    let epoch = epoch(redis).ok_or(Fault::Down)?;
    want(redis, epoch, edge, seen).await.map(|_| ()).ok_or(Fault::Down)
}

/// Keeps the note of this edge, with its line, where it is another than what is `kept`.
async fn write(
    registry: &Registry,
    kept: &Option<Seen>,
    next: Option<Seen>,
    now: UnixTime,
) -> Result<(), Fault> {
    if next == *kept {
        return Ok(());
    }
    registry.transact(move |batch| change(batch, next.as_ref(), now)).await
}

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
    use tokio::runtime::Handle;
    use tokio::sync::mpsc::{self, UnboundedReceiver};

    use super::*;
    use crate::store::bindings::tests::Server;
    use crate::store::sqlite::writer::CheckpointRule;
    use crate::store::task::Task;

    #[derive(Clone)]
    struct Edge {
        registry: Registry,
        redis: Option<Redis>,
    }

    impl Edge {
        fn new(scratch: &TempDir, name: &str, redis: Option<Redis>) -> Self {
            let rule = CheckpointRule { lines: 1000, interval: Duration::from_secs(3600) };
            Self { registry: Registry::open(&scratch.path().join(name), rule).unwrap(), redis }
        }

        async fn noted(&self, allowed: bool, secs: i64) -> Noted {
            note(&self.registry, self.redis.as_ref(), flag(allowed, secs)).await.unwrap()
        }

        /// Its start, or a reload, and what comes of it.
        async fn told(&self, allowed: bool, secs: i64) -> Option<Seen> {
            loop {
                match self.noted(allowed, secs).await {
                    Noted::Seen(seen) => return seen,
                    Noted::Unheard => return None,
                    Noted::Early => tokio::time::sleep(REST / 10).await,
                }
            }
        }

        /// It runs with the flag, and what it is told.
        fn runs(&self, secs: i64) -> (Task, UnboundedReceiver<Noted>) {
            let (tell, heard) = mpsc::unbounded_channel();
            let edge = self.clone();
            let task = Task::start(&Handle::current(), async move {
                let told = |noted: &Result<Noted, Fault>| drop(tell.send(noted.clone().unwrap()));
                keep(&edge.registry, edge.redis.as_ref(), flag(true, secs), told).await;
            });
            (task, heard)
        }

        fn epoch(&self) -> Option<Epoch> {
            epoch(self.redis.as_ref().unwrap())
        }

        async fn kept(&self) -> Option<Seen> {
            self.registry.read(|reader| reader.bypass()).await.unwrap()
        }

        async fn lines(&self) -> Vec<String> {
            let lines = self.registry.read(|reader| reader.lines(1, 100)).await.unwrap();
            let lines = lines.into_iter().filter(|line| line.kind == "bypass.change");
            lines.map(|line| line.line).collect()
        }
    }

    /// The first that an edge is told of a note.
    async fn first(heard: &mut UnboundedReceiver<Noted>) -> Option<Seen> {
        loop {
            if let Noted::Seen(seen) = heard.recv().await.unwrap() {
                return seen;
            }
        }
    }

    /// Redis loses everything, and `edge` has found that out.
    async fn wiped(server: &Server, edge: &Edge) {
        let before = edge.epoch();
        server.raw(&["FLUSHALL"]);
        while edge.epoch().is_none() || edge.epoch() == before {
            tokio::time::sleep(REST / 100).await;
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
        assert_eq!(three.told(true, 80).await, seen(1));
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
        let (_runs, mut heard) = edge.runs(4);
        assert_eq!(heard.recv().await, Some(Noted::Unheard));
        server.roll_back();
        assert_eq!(first(&mut heard).await, seen(1));
    }

    /// One edge runs with its note, and another gets the flag when Redis has lost everything.
    #[tokio::test]
    async fn what_redis_forgets_opens_no_new_term() {
        let scratch = tempfile::tempdir().unwrap();
        let Some(server) = Server::start(scratch.path()) else { return };
        let one = Edge::new(&scratch, "one.db", Some(server.connect().await));
        let two = Edge::new(&scratch, "two.db", Some(server.connect().await));
        let (one_runs, mut heard) = one.runs(1);
        assert_eq!(first(&mut heard).await, seen(1));
        for secs in [80, 90] {
            wiped(&server, &two).await;
            let (two_runs, mut heard) = two.runs(secs);
            assert_eq!(first(&mut heard).await, seen(1), "{secs}");
            drop(two_runs);
            assert_eq!(two.told(false, secs + 1).await, None);
        }
        let lines = two.lines().await;
        assert_eq!(lines.len(), 4, "{lines:?}");
        // With the last flag it is over, as ever.
        drop(one_runs);
        assert_eq!(one.told(false, 100).await, None);
        assert_eq!(two.told(true, 101).await, seen(101));
    }

    #[tokio::test]
    async fn who_has_no_note_waits_for_those_who_have() {
        let scratch = tempfile::tempdir().unwrap();
        let Some(server) = Server::start(scratch.path()) else { return };
        let one = Edge::new(&scratch, "one.db", Some(server.connect().await));
        let two = Edge::new(&scratch, "two.db", Some(server.connect().await));
        assert_eq!(one.told(true, 1).await, seen(1));
        let early = loop {
            wiped(&server, &two).await;
            let noted = two.noted(true, 80).await;
            // Unless this machine stood still meanwhile.
            let period = two.redis.as_ref().unwrap().period();
            if period.is_some_and(|period| period.age < SETTLE) {
                break noted;
            }
            two.told(false, 80).await;
        };
        assert_eq!((early, two.kept().await), (Noted::Early, None));
        assert_eq!(shared(two.redis.as_ref().unwrap()).await, Ok(None));
        // Who has one does not wait.
        let (_runs, mut heard) = one.runs(81);
        assert_eq!(first(&mut heard).await, seen(1));
        assert_eq!(two.told(true, 82).await, seen(1));
        // Nor does anybody while the store has long been the one.
        let three = Edge::new(&scratch, "three.db", Some(server.connect().await));
        assert_eq!(three.noted(true, 83).await, Noted::Seen(seen(1)));
    }

    /// By the store that is asked it has settled, and that store is gone.
    #[tokio::test]
    async fn who_asks_while_redis_is_wiped_is_not_heard() {
        let scratch = tempfile::tempdir().unwrap();
        let Some(server) = Server::start(scratch.path()) else { return };
        let edge = Edge::new(&scratch, "one.db", Some(server.connect().await));
        let before = edge.epoch().unwrap();
        server.raw(&["FLUSHALL"]);
        let own = Seen { id: "id-1".to_owned(), since: at(1) };
        let redis = edge.redis.as_ref().unwrap();
        assert_eq!(want(redis, before, "edge", &own).await, None);
        assert!(!leave(redis, before, "edge").await);
        let note = redis.keys().named(Tag::FIRST, "bypass");
        assert_eq!(server.raw(&["EXISTS", &note]), ":0\r\n", "nothing was done there");
    }

    #[tokio::test]
    async fn an_earlier_note_counts_and_a_later_one_never() {
        let scratch = tempfile::tempdir().unwrap();
        let Some(server) = Server::start(scratch.path()) else { return };
        let redis = server.connect().await;
        let one = Edge::new(&scratch, "one.db", Some(redis.clone()));
        let two = Edge::new(&scratch, "two.db", None);
        assert_eq!(one.told(true, 50).await, seen(50));
        let mut own = seen(50).unwrap();
        let mut told = Vec::new();
        let mut tell = |noted: &Result<Noted, Fault>| told.push(noted.clone().unwrap());
        assert_eq!(again(&one.registry, &redis, &mut own, &mut tell).await, Ok(true));
        // One that was away comes back with what it knows.
        assert_eq!(two.told(true, 1).await, seen(1));
        let two = Edge { redis: Some(redis.clone()), ..two };
        assert_eq!(two.told(true, 60).await, seen(1));
        assert_eq!(again(&one.registry, &redis, &mut own, &mut tell).await, Ok(true));
        assert_eq!((Some(own.clone()), one.kept().await), (seen(1), seen(1)));
        let note = redis.keys().named(Tag::FIRST, "bypass");
        server.raw(&["HSET", &note, "id", "late", "since", &at(70).millis().to_string()]);
        server.raw(&["PEXPIRE", &note, "100000"]);
        assert_eq!(again(&one.registry, &redis, &mut own, &mut tell).await, Ok(true));
        assert_eq!((Some(own), one.kept().await), (seen(1), seen(1)));
        assert_eq!(shared(&redis).await, Ok(seen(1)));
        assert_eq!(told, [Noted::Seen(seen(1))]);
        // And it stays as long as somebody says it.
        let ends = server.raw(&["PTTL", &note]);
        let ends: u64 = ends.trim_matches([':', '\r', '\n']).parse().unwrap();
        assert!(ends > 100_000, "{ends}");
    }
}
