//! What the shared store is asked: names of keys, scripts, and how answers are read.

#![expect(clippy::wildcard_enum_match_arm, reason = "the protocol adds kinds of answers")]

use redis::{Pipeline, Value};

use super::{Row, Standing};
use crate::policy::capsule::node::{NodeId, Status};
use crate::policy::digest::Sha256;
use crate::policy::epoch::Epoch;
use crate::policy::lineage::{Ledger, Mark};
use crate::policy::time::UnixTime;
use crate::store::redis::{Guarded, Keys, Script, Tag};
use crate::store::sqlite::{Fault, batch};

/// Entries of the ledger that are kept. Whoever comes back after more than so many changes that matter
/// finds its own gone, and needs an operator's word.
const KEPT_ENTRIES: u64 = 100_000;
/// Quarantines older than this are counted by no brake; and their key ends so long after the last.
const KEPT_QUARANTINES_MS: i64 = 31 * 24 * 3600 * 1000;

/// Does what was decided, if everything stands as it did. An integer where it was done: the number of
/// its entry in the ledger, or 0 where it has none; `changed` where it was not.
///
/// KEYS: the node, all ids, ids by status (4), removed versions, quarantines, the lineage, its ledger.
/// ARGV: id, revision ('' for no record), becomes, record, place of its status, secret, next revision,
/// entry ('' for none), the mark's confirmation ('' for whoever needs no trust), number and id,
/// quarantine's time ('' for none), since when they were counted ('' for not), how many they were, oldest
/// to keep, how long to keep them, key version, entries to keep, status.
pub(super) const COMMIT: &str = r"
if ARGV[9] ~= '' then
    local now = redis.call('HMGET', KEYS[9], 'confirmed', 'doubted')
    if now[2] or (now[1] or '0') ~= ARGV[9] then return 'changed' end
    if ARGV[10] ~= '0' and redis.call('HGET', KEYS[10], ARGV[10]) ~= ARGV[11] then return 'changed' end
end
if (redis.call('HGET', KEYS[1], 'revision') or '') ~= ARGV[2] then return 'changed' end
if ARGV[12] ~= '' then
    if ARGV[13] ~= '' and redis.call('ZCOUNT', KEYS[8], '(' .. ARGV[13], '+inf') ~= tonumber(ARGV[14]) then
        return 'changed'
    end
    redis.call('ZREMRANGEBYSCORE', KEYS[8], '-inf', '(' .. ARGV[15])
    redis.call('ZADD', KEYS[8], ARGV[12], ARGV[12] .. ':' .. ARGV[7] .. ':' .. ARGV[1])
    redis.call('PEXPIRE', KEYS[8], ARGV[16])
end
if ARGV[3] ~= 'same' then
    for place = 3, 6 do redis.call('ZREM', KEYS[place], ARGV[1]) end
end
if ARGV[3] == 'node' then
    redis.call('HSET', KEYS[1], 'record', ARGV[4], 'revision', ARGV[7], 'secret', ARGV[6],
        'status', ARGV[19])
    redis.call('ZADD', KEYS[2], 0, ARGV[1])
    redis.call('ZADD', KEYS[2 + tonumber(ARGV[5])], 0, ARGV[1])
elseif ARGV[3] == 'nothing' then
    redis.call('DEL', KEYS[1])
    redis.call('ZREM', KEYS[2], ARGV[1])
    redis.call('HSET', KEYS[7], ARGV[1], ARGV[17])
end
if ARGV[8] == '' then return 0 end
local seq = redis.call('HINCRBY', KEYS[9], 'seq', 1)
redis.call('HSET', KEYS[9], 'id', ARGV[8])
redis.call('HSET', KEYS[10], seq, ARGV[8])
redis.call('HDEL', KEYS[10], seq - tonumber(ARGV[18]))
return seq
";

/// Says that something is missing, unless an operator has confirmed the store since. It weighs more than
/// that a command works on the store.
///
/// KEYS: the lineage. ARGV: the confirmation that it was found in, when, and how a command's word begins.
pub(super) const DOUBT: &str = r"
if (redis.call('HGET', KEYS[1], 'confirmed') or '0') ~= ARGV[1] then return 0 end
local doubted = redis.call('HGET', KEYS[1], 'doubted')
if doubted and string.sub(doubted, 1, #ARGV[3]) ~= ARGV[3] then return 0 end
return redis.call('HSET', KEYS[1], 'doubted', ARGV[2])
";

/// Takes the store for true from now on.
///
/// KEYS: the lineage, its ledger. ARGV: the time of it, the entry. The time, as it is kept, and the
/// entry's number.
pub(super) const CONFIRM: &str = r"
local before = tonumber(redis.call('HGET', KEYS[1], 'confirmed') or '0')
local at = tonumber(ARGV[1])
if at <= before then at = before + 1 end
redis.call('HSET', KEYS[1], 'confirmed', string.format('%.0f', at), 'id', ARGV[2])
redis.call('HDEL', KEYS[1], 'doubted')
local seq = redis.call('HINCRBY', KEYS[1], 'seq', 1)
redis.call('HSET', KEYS[2], seq, ARGV[2])
return { string.format('%.0f', at), seq }
";

/// The scripts, ready to be sent.
#[derive(Debug)]
pub(super) struct Scripts {
    pub(super) commit: Guarded,
    pub(super) doubt: Script,
    pub(super) confirm: Script,
}

impl Default for Scripts {
    fn default() -> Self {
        let (commit, doubt) = (Guarded::new(COMMIT), Script::new(DOUBT));
        Self { commit, doubt, confirm: Script::new(CONFIRM) }
    }
}

/// Where the nodes are: one place for all of them, so that a change and everything that goes with it is
/// one script's. A node is asked about a few times a day: one server has room for very many.
pub(super) const TAG: Tag = Tag::FIRST;

/// Names of keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names<'a>(pub(super) &'a Keys);

impl Names<'_> {
    fn named(self, name: &str) -> String {
        self.0.named(TAG, &format!("nodes:{name}"))
    }

    pub(super) fn node(self, id: &str) -> String {
        self.0.named(TAG, &format!("node:{id}"))
    }

    pub(super) fn status(self, status: Status) -> String {
        self.named(status.name())
    }

    pub(super) fn all(self) -> String {
        self.named("all")
    }

    pub(super) fn removed(self) -> String {
        self.named("removed")
    }

    pub(super) fn quarantines(self) -> String {
        self.named("quarantines")
    }

    pub(super) fn lineage(self) -> String {
        self.named("lineage")
    }

    pub(super) fn ledger(self) -> String {
        self.named("ledger")
    }

    /// Edges that serve.
    pub(super) fn edges(self) -> String {
        self.named("edges")
    }

    /// Those of [`COMMIT`].
    pub(super) fn of_commit(self, id: &NodeId) -> Vec<String> {
        let mut keys = vec![self.node(id.as_str()), self.all()];
        keys.extend(Status::ALL.map(|status| self.status(status)));
        keys.extend([self.removed(), self.quarantines(), self.lineage(), self.ledger()]);
        keys
    }

    /// Asks for the ledger, as far as it is to be held against `mark`: two answers.
    pub(super) fn ask_ledger(self, pipeline: &mut Pipeline, mark: &Mark) {
        let fields = ["confirmed", "seq", "id", "doubted", "vouched"];
        pipeline.cmd("HMGET").arg(self.lineage()).arg(&fields);
        pipeline.cmd("HGET").arg(self.ledger()).arg(mark.seq);
    }

    /// Asks for the hash of a node's secret: one answer.
    pub(super) fn ask_secret(self, pipeline: &mut Pipeline, id: &NodeId) {
        pipeline.cmd("HGET").arg(self.node(id.as_str())).arg("secret");
    }

    /// Asks for a record: one answer.
    pub(super) fn ask_row(self, pipeline: &mut Pipeline, id: &str) {
        pipeline.cmd("HMGET").arg(self.node(id)).arg(&["record", "revision", "status", "secret"]);
    }

    /// Asks for what else a decision is made on: two answers.
    pub(super) fn ask_standing(
        self,
        pipeline: &mut Pipeline,
        id: &NodeId,
        since: Option<UnixTime>,
    ) {
        pipeline.cmd("HGET").arg(self.removed()).arg(id.as_str());
        self.ask_quarantines(pipeline, since);
    }

    /// Asks for the number of quarantines after `since`, or of none: one answer.
    pub(super) fn ask_quarantines(self, pipeline: &mut Pipeline, since: Option<UnixTime>) {
        let since =
            since.map_or_else(|| "(+inf".to_owned(), |since| format!("({}", since.millis()));
        pipeline.cmd("ZCOUNT").arg(self.quarantines()).arg(since).arg("+inf");
    }

    /// Asks for at most `limit` ids after `after`, in their order: one answer.
    pub(super) fn ask_ids(
        self,
        pipeline: &mut Pipeline,
        after: &str,
        status: Option<Status>,
        limit: usize,
    ) {
        let key = status.map_or_else(|| self.all(), |status| self.status(status));
        let from = if after.is_empty() { "-".to_owned() } else { format!("({after}") };
        let command = pipeline.cmd("ZRANGEBYLEX").arg(key).arg(from).arg("+");
        command.arg("LIMIT").arg(0).arg(limit);
    }

    /// Asks how many nodes have each status: an answer each.
    pub(super) fn ask_counts(self, pipeline: &mut Pipeline) {
        for status in Status::ALL {
            pipeline.cmd("ZCARD").arg(self.status(status));
        }
    }
}

/// What goes into [`COMMIT`].
pub(super) struct Put<'a> {
    pub(super) id: &'a NodeId,
    pub(super) standing: &'a Standing,
    /// `same`, `node` or `nothing`.
    pub(super) becomes: &'static str,
    /// The record and what is kept beside it.
    pub(super) node: Option<Written>,
    /// What the record's next revision is, if there is a next one.
    pub(super) revision: i64,
    /// The entry, for a change that matters.
    pub(super) entry: Option<&'a str>,
    /// What the ledger is held against; `None` for whoever needs no trust.
    pub(super) mark: Option<&'a Mark>,
    pub(super) quarantined: Option<UnixTime>,
    pub(super) quarantines_since: Option<UnixTime>,
}

/// A record as it is written.
pub(super) struct Written {
    pub(super) record: String,
    pub(super) status: Status,
    pub(super) secret: Sha256,
}

impl Put<'_> {
    /// The script's arguments.
    pub(super) fn arguments(&self) -> Vec<String> {
        let text = |number: Option<i64>| number.map(|it| it.to_string()).unwrap_or_default();
        let row = self.standing.row.as_ref();
        let (record, place, secret) = match &self.node {
            Some(written) => {
                let place = Status::ALL.iter().position(|status| *status == written.status);
                let place = place.map_or(0, |place| place + 1);
                (written.record.clone(), place.to_string(), written.secret.to_string())
            }
            None => Default::default(),
        };
        let (confirmed, seq, mark) = match self.mark {
            Some(mark) => (mark.confirmed.to_string(), mark.seq.to_string(), mark.id.clone()),
            None => Default::default(),
        };
        let quarantined = self.quarantined.map(UnixTime::millis);
        vec![
            self.id.to_string(),
            text(row.map(|row| row.revision)),
            self.becomes.to_owned(),
            record,
            place,
            secret,
            self.revision.to_string(),
            self.entry.unwrap_or_default().to_owned(),
            confirmed,
            seq,
            mark,
            text(quarantined),
            text(self.quarantines_since.map(UnixTime::millis)),
            self.standing.quarantines.to_string(),
            text(quarantined.map(|at| at.saturating_sub(KEPT_QUARANTINES_MS))),
            KEPT_QUARANTINES_MS.to_string(),
            row.map(|row| row.node.key_version.to_string()).unwrap_or_default(),
            KEPT_ENTRIES.to_string(),
            self.node.as_ref().map(|it| it.status.name().to_owned()).unwrap_or_default(),
        ]
    }
}

/// An answer that says nothing that this can read.
pub(super) fn unreadable() -> Fault {
    Fault::Failed("the shared store answers what cannot be read".to_owned())
}

/// The answers, in the number in which they were asked for; none of them an error.
pub(super) fn answers<const N: usize>(answers: Vec<Value>) -> Result<[Value; N], Fault> {
    answers.iter().try_for_each(refused)?;
    answers.try_into().map_err(|_| unreadable())
}

/// What an error says.
pub(super) fn refused(value: &Value) -> Result<(), Fault> {
    match value {
        Value::ServerError(error) => {
            Err(Fault::Failed(format!("the shared store answers {}", error.code())))
        }
        _ => Ok(()),
    }
}

/// A text; `None` for nothing.
pub(super) fn text(value: &Value) -> Result<Option<String>, Fault> {
    match value {
        Value::Nil => Ok(None),
        Value::BulkString(bytes) => {
            String::from_utf8(bytes.clone()).map(Some).map_err(|_| unreadable())
        }
        Value::SimpleString(text) => Ok(Some(text.clone())),
        _ => Err(unreadable()),
    }
}

/// A number written as a text; `None` for nothing.
pub(super) fn number<N: std::str::FromStr>(value: &Value) -> Result<Option<N>, Fault> {
    text(value)?.map(|text| text.parse().map_err(|_| unreadable())).transpose()
}

/// A number.
pub(super) fn count<N: TryFrom<i64>>(value: &Value) -> Result<N, Fault> {
    match value {
        Value::Int(count) => N::try_from(*count).map_err(|_| unreadable()),
        _ => Err(unreadable()),
    }
}

/// A list.
pub(super) fn list(value: &Value) -> Result<&[Value], Fault> {
    match value {
        Value::Array(items) => Ok(items),
        _ => Err(unreadable()),
    }
}

/// The ledger, from what [`Names::ask_ledger`] was answered.
pub(super) fn ledger(lineage: &Value, at_mark: &Value) -> Result<Ledger, Fault> {
    let [confirmed, seq, id, doubted, vouched] = list(lineage)? else { return Err(unreadable()) };
    let last = Mark {
        confirmed: number(confirmed)?.unwrap_or_default(),
        seq: number(seq)?.unwrap_or_default(),
        id: text(id)?.unwrap_or_default(),
    };
    let vouched = text(vouched)?.and_then(|text| Sha256::from_base64url(&text)).map(Epoch);
    Ok(Ledger { last, doubted: text(doubted)?.is_some(), vouched, at_mark: text(at_mark)? })
}

/// The hash of a secret.
pub(super) fn secret(value: &Value) -> Result<Option<Sha256>, Fault> {
    let Some(text) = text(value)? else { return Ok(None) };
    Sha256::from_base64url(&text).map(Some).ok_or(Fault::Malformed)
}

/// A record; one that cannot be read, or is another node's, is [`Fault::Malformed`].
pub(super) fn row(value: &Value, id: &str) -> Result<Option<Row>, Fault> {
    let [record, revision, status, kept] = list(value)? else { return Err(unreadable()) };
    let (record, revision, status) = (text(record)?, number(revision)?, text(status)?);
    let (Some(record), Some(revision)) = (&record, revision) else {
        let nothing = record.is_none() && revision.is_none() && secret(kept)?.is_none();
        return if nothing { Ok(None) } else { Err(Fault::Malformed) };
    };
    let node = batch::read(record)?;
    let status = status.as_deref() == Some(node.status.name());
    if node.id.as_str() != id || !status || node.secret != secret(kept)? {
        return Err(Fault::Malformed);
    }
    Ok(Some(Row { node, revision }))
}
