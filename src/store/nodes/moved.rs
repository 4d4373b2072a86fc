//! Nodes that come from another store, or go there.

use std::time::Duration;

use redis::{Pipeline, Value};

use super::memory::Memory;
use super::scripts::{self, Names, TAG};
use crate::policy::capsule::node::{NodeId, Status};
use crate::policy::lineage::{Mark, Standing};
use crate::policy::time::UnixTime;
use crate::store::records::Record;
use crate::store::redis::{Redis, Script};
use crate::store::registry::Registry;
use crate::store::sqlite::Fault;
use crate::store::sqlite::{batch, rows};

/// How long quarantines are kept after the last.
const KEPT: Duration = Duration::from_secs(31 * 24 * 3600);
/// Before the time since when a command works on the store, where a doubt has the time alone.
pub const HELD: &str = "held ";
/// Commands in one round trip.
const AT_ONCE: usize = 500;

async fn ask(redis: &Redis, pipeline: &Pipeline) -> Result<Vec<Value>, Fault> {
    let answers = redis.send(TAG, pipeline).await?;
    answers.iter().try_for_each(scripts::refused)?;
    Ok(answers)
}

/// Sends writes, and says whether they are durable as far as configured.
pub(in crate::store) async fn write(redis: &Redis, pipeline: &Pipeline) -> Result<(), Fault> {
    let answers = redis.commit(TAG, pipeline).await?;
    answers.iter().try_for_each(scripts::refused)
}

async fn one(redis: &Redis, pipeline: &Pipeline) -> Result<Value, Fault> {
    ask(redis, pipeline).await?.pop().ok_or_else(scripts::unreadable)
}

/// At most `limit` nodes after `after`, and the last of them.
pub(in crate::store) async fn read(
    redis: &Redis,
    after: &str,
    limit: usize,
) -> Result<(Vec<Record>, Option<String>), Fault> {
    let names = Names(redis.keys());
    let mut pipeline = Pipeline::new();
    names.ask_ids(&mut pipeline, after, None, limit);
    let ids = one(redis, &pipeline).await?;
    let ids = scripts::list(&ids)?.iter().map(scripts::text).collect::<Result<Vec<_>, _>>()?;
    let ids: Vec<_> = ids.into_iter().flatten().collect();
    let Some(last) = ids.last().cloned() else { return Ok((Vec::new(), None)) };
    let mut pipeline = Pipeline::new();
    ids.iter().for_each(|id| names.ask_row(&mut pipeline, id));
    let rows = ask(redis, &pipeline).await?;
    let record = |(id, row): (&String, &Value)| {
        let row = scripts::row(row, id);
        let row = row.ok().flatten();
        let row =
            row.ok_or_else(|| Fault::Failed(format!("the record of node {id} cannot be read")))?;
        Ok(Record::Node { revision: row.revision, node: Box::new(row.node) })
    };
    let records = ids.iter().zip(&rows).map(record).collect::<Result<_, Fault>>()?;
    Ok((records, Some(last)))
}

/// Ids whose nodes were taken out.
pub(in crate::store) async fn removed(redis: &Redis) -> Result<Vec<Record>, Fault> {
    let mut pipeline = Pipeline::new();
    pipeline.cmd("HGETALL").arg(Names(redis.keys()).removed());
    let all = one(redis, &pipeline).await?;
    let pairs = scripts::list(&all)?.chunks_exact(2).map(|pair| {
        let [id, version] = pair else { return Err(scripts::unreadable()) };
        let id = scripts::text(id)?.ok_or_else(scripts::unreadable)?;
        let id = NodeId::parse(&id).map_err(|_| Fault::Malformed)?;
        let key_version = scripts::number(version)?.ok_or_else(scripts::unreadable)?;
        Ok(Record::Removed { id, key_version })
    });
    pairs.collect()
}

/// All quarantines that are known.
pub(in crate::store) async fn quarantines(redis: &Redis) -> Result<Vec<Record>, Fault> {
    let mut pipeline = Pipeline::new();
    pipeline.cmd("ZRANGE").arg(Names(redis.keys()).quarantines()).arg(0).arg(-1);
    let all = one(redis, &pipeline).await?;
    let row = |member: &Value| {
        // time:revision:node
        let text = scripts::text(member)?.ok_or_else(scripts::unreadable)?;
        let mut parts = text.splitn(3, ':');
        let at = parts.next().and_then(|at| at.parse().ok()).ok_or(Fault::Malformed)?;
        let id = parts.nth(1).ok_or(Fault::Malformed)?;
        Ok((at, id.to_owned()))
    };
    let mut found = scripts::list(&all)?.iter().map(row).collect::<Result<Vec<_>, Fault>>()?;
    found.sort_unstable();
    rows::numbered(found)
}

/// Puts nodes, removed ids and quarantines.
pub(in crate::store) async fn put(redis: &Redis, records: &[Record]) -> Result<(), Fault> {
    let names = Names(redis.keys());
    for some in records.chunks(AT_ONCE) {
        let mut pipeline = Pipeline::new();
        for record in some {
            match record {
                Record::Node { revision, node } => {
                    let (id, key) = (node.id.as_str(), names.node(node.id.as_str()));
                    let secret = node.secret.ok_or(Fault::Malformed)?.to_string();
                    let status = node.status.name();
                    let hset = pipeline.cmd("HSET").arg(&key).arg("record").arg(batch::text(node)?);
                    hset.arg("revision").arg(*revision).arg("secret").arg(secret);
                    hset.arg("status").arg(status);
                    pipeline.cmd("ZADD").arg(names.status(node.status)).arg(0).arg(id);
                    pipeline.cmd("ZADD").arg(names.all()).arg(0).arg(id);
                }
                Record::Removed { id, key_version } => {
                    pipeline.cmd("HSET").arg(names.removed()).arg(id.as_str()).arg(*key_version);
                }
                Record::Quarantine { at, node, nth } => {
                    let key = names.quarantines();
                    // A revision is random: a small one is another's never.
                    let member = format!("{}:moved{nth}:{node}", at.millis());
                    pipeline.cmd("ZADD").arg(&key).arg(at.millis()).arg(member);
                    pipeline.cmd("PEXPIRE").arg(&key).arg(KEPT.as_millis().to_string());
                }
                Record::Token(_) | Record::Certificate { .. } | Record::Bypass(_) => {}
            }
        }
        if !pipeline.is_empty() {
            write(redis, &pipeline).await?;
        }
    }
    Ok(())
}

/// The last entry of the ledger: another one, where nodes were changed meanwhile.
///
/// # Errors
/// [`Fault`].
pub async fn last_change(redis: &Redis) -> Result<Mark, Fault> {
    let mut pipeline = Pipeline::new();
    Names(redis.keys()).ask_ledger(&mut pipeline, &Mark::default());
    let [head, entry] = scripts::answers(redis.send(TAG, &pipeline).await?)?;
    Ok(scripts::ledger(&head, &entry)?.last)
}

/// Has no edge serve any node until the store is confirmed.
///
/// # Errors
/// [`Fault`].
pub async fn hold(redis: &Redis, now: UnixTime) -> Result<(), Fault> {
    let mut pipeline = Pipeline::new();
    let lineage = Names(redis.keys()).lineage();
    pipeline.cmd("HSETNX").arg(lineage).arg("doubted").arg(format!("{HELD}{}", now.millis()));
    write(redis, &pipeline).await
}

/// Whether changes to nodes are known to be missing: an edge has found that out and nobody has confirmed
/// the store since, or it does not go on from what the file of `registry` remembers. Of a store in which
/// nothing was ever changed only the former is held against it.
///
/// # Errors
/// [`Fault`].
pub async fn is_behind(redis: &Redis, registry: &Registry) -> Result<bool, Fault> {
    let (names, mark) = (Names(redis.keys()), Memory::of(registry.clone())?.mark());
    let mut pipeline = Pipeline::new();
    pipeline.cmd("HGET").arg(names.lineage()).arg("doubted");
    names.ask_ledger(&mut pipeline, &mark);
    let [doubted, head, entry] = scripts::answers(redis.send(TAG, &pipeline).await?)?;
    if scripts::text(&doubted)?.is_some_and(|doubted| !doubted.starts_with(HELD)) {
        return Ok(true);
    }
    let ledger = scripts::ledger(&head, &entry)?;
    let is_new = ledger.last == Mark::default();
    Ok(!is_new && ledger.against(&mark, true) == Standing::Behind)
}

/// Takes all nodes out, and what is known of them; not the ledger.
///
/// # Errors
/// [`Fault`].
pub async fn clear(redis: &Redis) -> Result<(), Fault> {
    let names = Names(redis.keys());
    loop {
        let mut pipeline = Pipeline::new();
        names.ask_ids(&mut pipeline, "", None, AT_ONCE);
        let ids = one(redis, &pipeline).await?;
        let ids = scripts::list(&ids)?.iter().map(scripts::text).collect::<Result<Vec<_>, _>>()?;
        if ids.is_empty() {
            break;
        }
        let mut pipeline = Pipeline::new();
        for id in ids.iter().flatten() {
            pipeline.cmd("DEL").arg(names.node(id));
            for status in Status::ALL {
                pipeline.cmd("ZREM").arg(names.status(status)).arg(id);
            }
            pipeline.cmd("ZREM").arg(names.all()).arg(id);
        }
        write(redis, &pipeline).await?;
    }
    let mut pipeline = Pipeline::new();
    pipeline.cmd("DEL").arg(names.quarantines()).cmd("DEL").arg(names.removed());
    write(redis, &pipeline).await
}

/// `KEYS`: edges. `ARGV`: this one, or nothing; how long it counts, milliseconds. How many there are.
const PRESENT: &str = "
local now = redis.call('TIME')
local at, kept = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000), tonumber(ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', at - kept))
if ARGV[1] ~= '' then
  redis.call('ZADD', KEYS[1], string.format('%.0f', at), ARGV[1])
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return redis.call('ZCARD', KEYS[1])
";
/// How long an edge counts as one that serves after it has said so.
pub const PRESENCE: Duration = Duration::from_secs(10);

/// How many edges serve, `edge` with them if there is one.
///
/// # Errors
/// [`Fault`].
pub async fn present(redis: &Redis, edge: Option<&str>) -> Result<u64, Fault> {
    let keys = [Names(redis.keys()).edges()];
    let kept = PRESENCE.as_millis().to_string();
    let arguments = [edge.unwrap_or_default().as_bytes(), kept.as_bytes()];
    let said = redis.script(TAG, &Script::new(PRESENT), &keys, &arguments).await;
    let said = said?;
    scripts::refused(&said)?;
    scripts::count(&said)
}
