//! Records of tokens that come from another store, or go there.

#![expect(clippy::wildcard_enum_match_arm, reason = "the protocol adds kinds of answers")]

use std::collections::BTreeMap;

use redis::{Pipeline, Value};

use super::scripts::{self, Last, Place, REVOKED};
pub(in crate::store) use super::shared::MARGIN;
use super::shared::bare;
use super::shared::edges;
use crate::policy::certificate::{LONGEST_GRACE, SenderCertificate};
use crate::policy::digest::Sha256;
use crate::policy::epoch::GivenUp;
use crate::policy::grant::{BindingRecord, RecordKey};
use crate::policy::time::UnixTime;
use crate::store::redis::{Redis, Script, Tag};
use crate::store::sqlite::Fault;

/// Keys that a server is asked for at once.
const AT_ONCE: usize = 1000;

/// `KEYS`: record, tombstone. `ARGV`: the record; when both end. A record and its tombstone at once.
const PUT_REVOKED: &str = "
redis.call('SET', KEYS[2], 'revoked', 'PXAT', ARGV[2])
redis.call('SET', KEYS[1], ARGV[1], 'PXAT', ARGV[2])
return 1
";

/// What a key leads to.
#[derive(Debug)]
pub(in crate::store) enum Found {
    Token { key: RecordKey, record: Box<BindingRecord>, revoked: bool, grant_revoked: bool },
    Certificate(Vec<u8>),
}

fn text(value: Value) -> Result<Option<Vec<u8>>, Fault> {
    scripts::found(value).map_err(|()| Fault::Malformed)
}

fn refused(answers: &[Value]) -> Result<(), Fault> {
    let error = answers.iter().find_map(|answer| match answer {
        Value::ServerError(error) => Some(error.code().to_owned()),
        _ => None,
    });
    error.map_or(Ok(()), |code| Err(Fault::Failed(format!("the shared store answers {code}"))))
}

async fn ask(redis: &Redis, shard: Tag, pipeline: &Pipeline) -> Result<Vec<Value>, Fault> {
    if pipeline.is_empty() {
        return Ok(Vec::new());
    }
    let answers = redis.send(shard, pipeline).await?;
    refused(&answers)?;
    Ok(answers)
}

async fn write(redis: &Redis, shard: Tag, pipeline: &Pipeline) -> Result<(), Fault> {
    if pipeline.is_empty() {
        return Ok(());
    }
    refused(&redis.commit(shard, pipeline).await?)
}

/// A key that a record, a tombstone or a certificate is found by.
enum Key {
    Token(RecordKey),
    Tombstone(RecordKey),
    Certificate(String),
}

/// Some of a server's keys of such names, and the cursor to go on with; 0 at the end.
async fn names_of(
    redis: &Redis,
    shard: Tag,
    names: &str,
    cursor: u64,
) -> Result<(Vec<String>, u64), Fault> {
    let mut pipeline = Pipeline::new();
    let pattern = redis.keys().pattern(names);
    pipeline.cmd("SCAN").arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(AT_ONCE);
    let mut answers = ask(redis, shard, &pipeline).await?;
    let Some(Value::Array(page)) = answers.pop() else { return Err(Fault::Malformed) };
    let [next, Value::Array(names)] = page.as_slice() else { return Err(Fault::Malformed) };
    let utf8 = |value: &Value| {
        Ok::<_, Fault>(text(value.clone())?.and_then(|it| String::from_utf8(it).ok()))
    };
    let next = utf8(next)?.and_then(|next| next.parse().ok()).ok_or(Fault::Malformed)?;
    let names = names.iter().map(utf8).collect::<Result<Vec<_>, _>>()?;
    Ok((names.into_iter().flatten().collect(), next))
}

/// Some of a server's keys, and the cursor to go on with; 0 at the end.
async fn keys(redis: &Redis, shard: Tag, cursor: u64) -> Result<(Vec<Key>, u64), Fault> {
    let (names, next) = names_of(redis, shard, "[txk]:*", cursor).await?;
    let mut found = Vec::new();
    for name in names {
        let Some((letter, hash)) = redis.keys().name(&name).and_then(|it| it.split_once(':'))
        else {
            continue;
        };
        let hash = Sha256::from_base64url(hash);
        found.extend(match (letter, hash) {
            ("t", Some(hash)) => Some(Key::Token(RecordKey(hash))),
            ("x", Some(hash)) => Some(Key::Tombstone(RecordKey(hash))),
            ("k", Some(_)) => Some(Key::Certificate(name)),
            _ => None,
        });
    }
    Ok((found, next))
}

/// What some of a server's keys lead to, and the cursor to go on with; 0 at the end.
pub(in crate::store) async fn scan(
    redis: &Redis,
    shard: Tag,
    cursor: u64,
    now: UnixTime,
) -> Result<(Vec<Found>, u64), Fault> {
    let (names, next) = keys(redis, shard, cursor).await?;
    let keys = redis.keys();
    let mut pipeline = Pipeline::new();
    for key in &names {
        match key {
            Key::Token(key) | Key::Tombstone(key) => {
                let tombstone = Place::tombstone(keys, *key).name;
                pipeline.cmd("GET").arg(Place::record(keys, *key).name);
                pipeline.cmd("PEXPIRETIME").arg(tombstone);
            }
            Key::Certificate(name) => {
                pipeline.cmd("GET").arg(name);
            }
        }
    }
    let mut answers = ask(redis, shard, &pipeline).await?.into_iter();
    let mut next_answer = || answers.next().ok_or(Fault::Malformed);
    let (mut found, mut tokens) = (Vec::new(), Vec::new());
    for key in names {
        match key {
            Key::Token(key) => {
                let (record, buried) = (text(next_answer()?)?, ends(&next_answer()?)?.is_some());
                // It may have ended meanwhile.
                let Some(record) = record else { continue };
                let record = scripts::record_of(&record).ok_or(Fault::Malformed)?;
                if record.expires > now {
                    tokens.push((key, record, buried));
                }
            }
            Key::Tombstone(key) => {
                let (record, ends) = (text(next_answer()?)?, ends(&next_answer()?)?);
                // A tombstone without a record is one of a record that says nothing.
                if let (None, Some(ends)) = (record, ends) {
                    let record = bare(ends.minus(MARGIN));
                    if record.expires > now {
                        tokens.push((key, record, true));
                    }
                }
            }
            Key::Certificate(_) => {
                let certificate = text(next_answer()?)?.and_then(SenderCertificate::new);
                let good = |it: &SenderCertificate| it.not_after().plus(LONGEST_GRACE) > now;
                found.extend(
                    certificate.filter(good).map(|it| Found::Certificate(it.der().to_vec())),
                );
            }
        }
    }
    found.extend(with_grants(redis, tokens).await?);
    Ok((found, next))
}

/// When a key ends; `None` where there is none.
fn ends(value: &Value) -> Result<Option<UnixTime>, Fault> {
    match value {
        Value::Int(-2) => Ok(None),
        Value::Int(at) if *at > 0 => Ok(Some(UnixTime::from_millis(*at))),
        _ => Err(Fault::Malformed),
    }
}

/// What epochs are given up.
async fn given_up(redis: &Redis) -> Result<Option<GivenUp>, Fault> {
    let mut pipeline = Pipeline::new();
    pipeline.cmd("HMGET").arg(edges::key(redis.keys())).arg(&["floor", "floor-of"]);
    match ask(redis, Tag::FIRST, &pipeline).await?.pop() {
        Some(Value::Array(found)) => {
            let [before, but] = <[Value; 2]>::try_from(found).map_err(|_| Fault::Malformed)?;
            edges::given_up(before, but)
        }
        _ => Err(Fault::Malformed),
    }
}

/// Tokens with their grants' standing. A grant that is not there, or was given up, counts as revoked.
async fn with_grants(
    redis: &Redis,
    tokens: Vec<(RecordKey, BindingRecord, bool)>,
) -> Result<Vec<Found>, Fault> {
    let mut by_shard = BTreeMap::<usize, Vec<(Sha256, String, Tag)>>::new();
    for (_, record, _) in &tokens {
        let grant = scripts::grant_of(record);
        let place = Place::grant(redis.keys(), &grant);
        let shard = redis.shard(place.tag);
        by_shard.entry(shard).or_default().push((grant, place.name, place.tag));
    }
    let (mut good, given_up) = (BTreeMap::new(), given_up(redis).await?);
    for grants in by_shard.values() {
        let Some((_, _, tag)) = grants.first() else { continue };
        let mut pipeline = Pipeline::new();
        for (_, name, _) in grants {
            pipeline.cmd("GET").arg(name);
        }
        for ((grant, _, _), answer) in grants.iter().zip(ask(redis, *tag, &pipeline).await?) {
            let text = text(answer)?.filter(|text| text != REVOKED);
            let last = text.map(|text| Last::read(&text).ok_or(Fault::Malformed)).transpose()?;
            let is_given_up =
                |last: &Last| given_up.is_some_and(|it| it.is(last.epoch, last.begun));
            good.insert(grant.0, last.is_some_and(|last| !is_given_up(&last)));
        }
    }
    let of = |(key, record, revoked): (RecordKey, BindingRecord, bool)| {
        let good = good.get(&scripts::grant_of(&record).0).copied().unwrap_or_default();
        Found::Token { key, record: Box::new(record), revoked, grant_revoked: !good }
    };
    Ok(tokens.into_iter().map(of).collect())
}

/// Puts what was found elsewhere: grants first.
pub(in crate::store) async fn put(redis: &Redis, found: &[Found]) -> Result<(), Fault> {
    let own = Last::of(&redis.period().ok_or(Fault::Down)?).text();
    let (mut grants, mut rest) = (Writes::default(), Writes::default());
    let script = Script::new(PUT_REVOKED);
    for one in found {
        match one {
            Found::Token { record, grant_revoked, .. } => {
                let place = Place::grant(redis.keys(), &scripts::grant_of(record));
                let ends = kept_until(record.expires);
                let pipeline = grants.at(redis, place.tag);
                if *grant_revoked {
                    let set = pipeline.cmd("SET").arg(&place.name).arg(REVOKED);
                    set.arg("NX").arg("PXAT").arg(&ends);
                    let set = pipeline.cmd("SET").arg(&place.name).arg(REVOKED);
                    set.arg("XX").arg("KEEPTTL");
                } else {
                    let set = pipeline.cmd("SET").arg(&place.name).arg(&own);
                    set.arg("NX").arg("PXAT").arg(&ends);
                }
                pipeline.cmd("PEXPIREAT").arg(&place.name).arg(&ends).arg("GT");
            }
            Found::Certificate(der) => {
                let certificate = SenderCertificate::new(der.clone()).ok_or(Fault::Malformed)?;
                let place = Place::certificate(redis.keys(), certificate.x5t());
                let ends = kept_until(certificate.not_after().plus(LONGEST_GRACE));
                let pipeline = rest.at(redis, place.tag);
                pipeline.cmd("SET").arg(&place.name).arg(der).arg("PXAT").arg(ends);
            }
        }
    }
    grants.send(redis).await?;
    for one in found {
        let Found::Token { key, record, revoked, .. } = one else { continue };
        let place = Place::record(redis.keys(), *key);
        let (record_text, ends) = (scripts::text_of(record), kept_until(record.expires));
        let record_text = record_text.ok_or(Fault::Malformed)?;
        if *revoked {
            let names = [place.name, Place::tombstone(redis.keys(), *key).name];
            let arguments = [record_text.as_slice(), ends.as_bytes()];
            let done = redis.script(place.tag, &script, &names, &arguments).await?;
            refused(&[done])?;
        } else {
            let pipeline = rest.at(redis, place.tag);
            pipeline.cmd("SET").arg(&place.name).arg(record_text).arg("PXAT").arg(ends);
        }
    }
    rest.send(redis).await
}

/// Takes all records of tokens out, with their grants, tombstones and certificates.
///
/// # Errors
/// [`Fault`].
pub async fn clear(redis: &Redis) -> Result<(), Fault> {
    // Without its grant no token is good, whatever else is still there.
    for names in ["f:*", "[txk]:*"] {
        for shard in redis.shards() {
            clear_shard(redis, shard, names).await?;
        }
    }
    Ok(())
}

async fn clear_shard(redis: &Redis, shard: Tag, names: &str) -> Result<(), Fault> {
    let mut cursor = 0;
    loop {
        let (found, next) = names_of(redis, shard, names, cursor).await?;
        let mut pipeline = Pipeline::new();
        for name in found {
            pipeline.cmd("DEL").arg(name);
        }
        write(redis, shard, &pipeline).await?;
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
}

fn kept_until(ends: UnixTime) -> String {
    ends.plus(MARGIN).millis().to_string()
}

/// Writes by server.
#[derive(Default)]
struct Writes(BTreeMap<usize, (Option<Tag>, Pipeline)>);

impl Writes {
    fn at(&mut self, redis: &Redis, tag: Tag) -> &mut Pipeline {
        let (place, pipeline) = self.0.entry(redis.shard(tag)).or_default();
        *place = Some(tag);
        pipeline
    }

    async fn send(&self, redis: &Redis) -> Result<(), Fault> {
        for (tag, pipeline) in self.0.values() {
            if let Some(tag) = tag {
                write(redis, *tag, pipeline).await?;
            }
        }
        Ok(())
    }
}
