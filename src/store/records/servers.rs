//! The records of a store that edges share, in Redis. It needs Redis 7 or Valkey: `PEXPIRETIME`, and
//! `PEXPIREAT` with `GT`.
//!
//! Keys are found by `SCAN`, which shows each key that is there from beginning to end, one or the other
//! twice. A record goes in by commands that can be given again. Of a token what makes it less good is
//! there before the record is: its grant's standing first, then its tombstone together with it. So
//! whoever is cut off in the middle leaves no token better than it was.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::{Read, Record, Records, Token};
use crate::policy::digest::Sha256;
use crate::policy::grant::RecordKey;
use crate::policy::time::UnixTime;
use crate::store::bindings::moved::{self as tokens, Found};
use crate::store::bypass;
use crate::store::nodes::moved as nodes;
use crate::store::redis::{Redis, Tag};
use crate::store::registry::Registry;
use crate::store::sqlite::Fault;
use crate::store::sqlite::tombstones::Tombstone;

/// Nodes that are read at once.
const PAGE: usize = 500;

/// A store in Redis, seen from this edge.
#[derive(Clone, Debug)]
pub struct Servers {
    /// The servers.
    pub redis: Redis,
    /// This edge's own file: what was revoked is remembered there as well.
    pub registry: Registry,
}

enum Place {
    Nodes(String),
    Removed,
    Quarantines,
    /// Tokens and certificates: servers still to be scanned, with the cursor of the last.
    Scan(Vec<(Tag, u64)>),
    Bypass,
    End,
}

struct Reading {
    redis: Redis,
    place: Place,
    now: UnixTime,
}

impl Reading {
    async fn step(&mut self) -> Result<Vec<Record>, Fault> {
        let place = std::mem::replace(&mut self.place, Place::End);
        match place {
            Place::Nodes(after) => {
                let (records, last) = nodes::read(&self.redis, &after, PAGE).await?;
                self.place = last.map_or(Place::Removed, Place::Nodes);
                Ok(records)
            }
            Place::Removed => {
                self.place = Place::Quarantines;
                nodes::removed(&self.redis).await
            }
            Place::Quarantines => {
                self.place =
                    Place::Scan(self.redis.shards().into_iter().map(|it| (it, 0)).collect());
                nodes::quarantines(&self.redis).await
            }
            Place::Scan(mut shards) => {
                let Some((shard, cursor)) = shards.pop() else {
                    self.place = Place::Bypass;
                    return Ok(Vec::new());
                };
                let (found, next) = tokens::scan(&self.redis, shard, cursor, self.now).await?;
                if next != 0 {
                    shards.push((shard, next));
                }
                self.place = Place::Scan(shards);
                Ok(found.into_iter().map(record).collect())
            }
            Place::Bypass => {
                let seen = bypass::shared(&self.redis).await?;
                Ok(seen.map(Record::Bypass).into_iter().collect())
            }
            Place::End => Ok(Vec::new()),
        }
    }
}

fn record(found: Found) -> Record {
    match found {
        Found::Token { key, record, revoked, grant_revoked } => {
            Record::Token(Box::new(Token::of(key, *record, revoked, grant_revoked)))
        }
        Found::Certificate(der) => Record::certificate(&der),
    }
}

#[async_trait]
impl Read for Reading {
    async fn next(&mut self) -> Result<Vec<Record>, Fault> {
        while !matches!(self.place, Place::End) {
            let records = self.step().await?;
            if !records.is_empty() {
                return Ok(records);
            }
        }
        Ok(Vec::new())
    }
}

#[async_trait]
impl Records for Servers {
    async fn read(&self, now: UnixTime) -> Result<Box<dyn Read>, Fault> {
        let place = Place::Nodes(String::new());
        Ok(Box::new(Reading { redis: self.redis.clone(), place, now }))
    }

    async fn put(&self, records: Vec<Record>) -> Result<(), Fault> {
        let mut of_nodes = Vec::new();
        let mut found = Vec::new();
        let mut revoked = BTreeMap::new();
        for record in records {
            match record {
                Record::Token(token) => {
                    let (key, record) = (RecordKey(token.key), Box::new(token.record()?));
                    let grant = Sha256::of(record.family.as_bytes());
                    if token.grant_revoked {
                        revoked.insert((1, grant.0), (Tombstone::Grant(grant), record.expires));
                    }
                    if token.revoked {
                        revoked.insert((0, key.0.0), (Tombstone::Token(key), record.expires));
                    }
                    let (revoked, grant_revoked) = (token.revoked, token.grant_revoked);
                    found.push(Found::Token { key, record, revoked, grant_revoked });
                }
                Record::Certificate { .. } => {
                    found.push(Found::Certificate(record.certificate_der()?));
                }
                Record::Bypass(seen) => {
                    let edge = self.registry.read(|reader| reader.chain()).await?;
                    bypass::carry(&self.redis, &edge, &seen).await?;
                }
                other @ (Record::Node { .. }
                | Record::Removed { .. }
                | Record::Quarantine { .. }) => {
                    of_nodes.push(other);
                }
            }
        }
        if !revoked.is_empty() {
            // So that it can be said again where Redis forgets it.
            let remember = self.registry.transact(move |batch| {
                let mut revoked = revoked.into_values();
                revoked
                    .try_for_each(|(stone, ends)| batch.remember(stone, ends.plus(tokens::MARGIN)))
            });
            remember.await?;
        }
        nodes::put(&self.redis, &of_nodes).await?;
        tokens::put(&self.redis, &found).await
    }

    async fn clear(&self) -> Result<(), Fault> {
        // Tokens first: none is good without its grant.
        tokens::clear(&self.redis).await?;
        nodes::clear(&self.redis).await
    }
}
