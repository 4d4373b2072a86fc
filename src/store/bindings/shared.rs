//! Records of tokens that several edges share, in Redis.
//!
//! # Keys
//!
//! | key, at the tag of its hash | holds | ends |
//! |---|---|---|
//! | `t:<record key>` | the record, JSON; never the token | with the record, plus [`MARGIN`] |
//! | `x:<record key>` | `revoked`: this token was, alone | as late as its record, at least |
//! | `f:<SHA-256 of the family>` | the grant: the epoch in which it was last gone on from, and its begin by the servers' clock, or `revoked` | as late as the last of its records |
//! | `k:<x5t#S256>` | a certificate, DER | [`LONGEST_GRACE`](crate::policy::certificate::LONGEST_GRACE) after the certificate |
//! | `tokens:edges`, at the first tag | edges, with the epoch in which each has last said what it has revoked, its begin, and when; what was given up | a year after the last edge was there |
//!
//! Names of clients and tenants and scopes can be read there; tokens cannot.
//!
//! # What a token is
//!
//! It is good when its record is there, no tombstone beside it, *and* its grant is there and is not
//! revoked. Whatever of that is lost, the token is refused: without its record it is unrecorded, without
//! its grant it counts as revoked. So one write revokes a grant with all that came from it, wherever in a
//! Cluster that lies, and no order of writes matters: what [`Bindings::keep`] writes goes out at once, and
//! when half of it is done the client has not seen its token, and nobody else has that token either. What
//! was written is taken back as far as that can be done.
//!
//! A request knows its token, and the record names the grant. That would be two round trips; an edge
//! remembers in which grant a token was ([`Guesses`]) and asks for both at once. A wrong guess costs the
//! second round trip and nothing else.
//!
//! # What holds when Redis forgets
//!
//! With `waitReplicas` a revocation counts only when so many replicas have it, and survives wherever one
//! of them does. Beyond that:
//!
//! - Each edge writes what it is to revoke into its own SQLite file first ([`Tombstone`]), and says all of
//!   it again when it starts and when the store has another epoch (a restart, a failover, a wipe).
//! - Each edge says every few seconds that it is there ([`edges`]). Until all have said theirs again that
//!   were there when the store last changed hands, and for [`SETTLE`](crate::store::epoch::SETTLE) after the epoch's begin, so that one whose
//!   word of that was lost can, no grant of an earlier epoch is good: 503. Grants of this epoch are
//!   served at once, so that a new or wiped store holds up nobody.
//! - An edge that has not come back two minutes after the epoch's begin ([`Waits`]) may have revoked what
//!   nobody else knows of: grants of earlier epochs are given up. They count as revoked at every edge,
//!   for good, and clients log in again. Each edge remembers that in its own file, and says it again.
//! - An edge that finds others in a later epoch than its own is the one that is cut off: it gives up nobody,
//!   and serves and revokes nothing of earlier epochs until it sees what they see.
//! - An edge revokes only while it was on the roll within the last quarter of a minute: others wait for it.
//! - Records that are lost are refused. An operator who lets tokens without records pass
//!   (`unrecorded: allow`) or binds unknown refresh tokens (`unknownRefresh: bind`) lets lost ones pass
//!   too; of those that were revoked alone the tombstone still says so, and where that is lost as well, only
//!   once the edge that made it is back and has said it again.
//!
//! So what a server loses of a revocation that was acknowledged is said again by the edge that made it, or,
//! where that one is gone, or its file is, refused with all else that could be it. (One that comes back with
//! a new file is another edge: the old one is waited for.) An edge that was last there half a minute or more
//! before the store's last moment is not waited for: what it had revoked is in there.
//!
//! What does not hold: a store that goes further back, by a backup or a replica that was long cut off, knows
//! who was there then; what an edge that came later has revoked, and which does not come back, is undone. And
//! an edge that is cut off together with an old master goes on by what that one says.
//! With `waitReplicas`, or `min-replicas-to-write` at the server, such a master takes no writes, and an
//! edge serves no records from one that takes none: that is seen once a second. Nor is it seen when a
//! running server is made to load older data without a restart, or is made a replica by hand, other than
//! by a Sentinel or a Cluster, which close its connections: that takes a second, too.
//!
//! # Order
//!
//! The line of a bypass is durable in this edge's audit log before anything is written here: a line may
//! speak of tokens that were then not issued, but none is issued without its line.

pub(super) mod edges;
mod guesses;
#[cfg(test)]
mod tests;
mod tombstones;
mod writes;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use redis::{Pipeline, Value};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinSet;

pub use edges::Waits;

use super::scripts::{self, Last, Place, REVOKED, Scripts};
use super::{BindFault, Bindings, Issued};
use crate::policy::certificate::SenderCertificate;
use crate::policy::digest::{Sha256, X5tS256};
use crate::policy::grant::{BindingRecord, RecordKey, TokenKind};
use crate::policy::time::UnixTime;
use crate::store::clock::now;
use crate::store::redis::{Period, Redis};
use crate::store::registry::Registry;
use crate::store::sqlite::Fault;
use crate::store::sqlite::tombstones::Tombstone;
use crate::store::sqlite::writer::Announced;
use crate::store::task::Task;
use edges::Roll;
use guesses::Guesses;

/// How much longer a key is kept than it is good: clocks of servers and edges differ.
pub(in crate::store) const MARGIN: Duration = Duration::from_secs(3600);

/// The shared records. They end with the last of their clones.
#[derive(Clone, Debug)]
pub struct SharedBindings {
    inner: Arc<Inner>,
    _saying: Arc<Task>,
}

#[derive(Debug)]
struct Inner {
    redis: Redis,
    /// The audit log, and what this edge has revoked.
    registry: Registry,
    scripts: Scripts,
    guesses: Guesses,
    waits: Waits,
    /// Whether it serves, and others wait for it.
    joins: bool,
    /// What all edges have said again, as of the last look; in an epoch in which this one has.
    roll: ArcSwapOption<Roll>,
    /// Something that was to be revoked could not be.
    unsaid: Notify,
}

/// What a record's key leads to, before its grant is known.
struct Stone {
    /// The record.
    record: Option<BindingRecord>,
    /// Whether the token was revoked alone.
    revoked: bool,
}

/// How a grant stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Good,
    /// It was, or it is not there.
    Revoked,
    /// What is said of it may be older than what was done.
    Unsure,
}

impl SharedBindings {
    /// The records in `redis`, with the audit log and the memory of `registry`.
    #[must_use]
    pub fn start(redis: Redis, registry: Registry, waits: Waits, runtime: &Handle) -> Self {
        Self::begin(Inner::new(redis, registry, waits), runtime)
    }

    /// The same for a command, which says what its file remembers and looks at what others have said, but
    /// is no edge that others would wait for, nor gives one up. It revokes nothing.
    #[must_use]
    pub fn looking(redis: Redis, registry: Registry, runtime: &Handle) -> Self {
        let waits = Waits { missing: Duration::MAX, ..Waits::default() };
        let inner = Inner { joins: false, ..Inner::new(redis, registry, waits) };
        Self::begin(inner, runtime)
    }

    fn begin(inner: Inner, runtime: &Handle) -> Self {
        let inner = Arc::new(inner);
        let saying = Arc::clone(&inner);
        let saying = Task::start(runtime, async move { saying.say_again_for_ever().await });
        Self { inner, _saying: Arc::new(saying) }
    }

    /// Why what the store says of grants is not all that was done, where it may not be.
    #[must_use]
    pub fn unsettled(&self) -> Option<Unsettled> {
        let Ok(period) = self.inner.period() else { return Some(Unsettled::Early) };
        let Some(roll) = self.inner.called(period.epoch) else { return Some(Unsettled::Early) };
        if let Some(edge) = roll.missing.as_ref().or(roll.later.as_ref()) {
            return Some(Unsettled::Missing(edge.clone()));
        }
        (!self.inner.is_settled(&period, Some(&*roll))).then_some(Unsettled::Early)
    }
}

/// Why a store may not say all that was revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsettled {
    /// It does not answer, or has only just begun to be the one.
    Early,
    /// This edge has not said again what it has revoked.
    Missing(String),
}

fn unreadable<T>(_: T) -> Fault {
    Fault::Malformed
}

impl Inner {
    fn new(redis: Redis, registry: Registry, waits: Waits) -> Self {
        Self {
            redis,
            registry,
            scripts: Scripts::default(),
            guesses: Guesses::default(),
            waits,
            joins: true,
            roll: ArcSwapOption::empty(),
            unsaid: Notify::new(),
        }
    }

    /// Which epoch it is, if the store is one to go by: not a master that takes no writes.
    fn period(&self) -> Result<Period, Fault> {
        let period = self.redis.period().filter(|_| self.redis.is_up());
        period.ok_or(Fault::Down)
    }

    async fn get(&self, place: &Place) -> Result<Option<Vec<u8>>, Fault> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("GET").arg(&place.name);
        let answers = self.redis.send(place.tag, &pipeline).await?;
        let answer = answers.into_iter().next().ok_or(Fault::Malformed)?;
        scripts::found(answer).map_err(unreadable)
    }

    /// The record, and whether its tombstone is there.
    async fn stone(&self, key: RecordKey) -> Result<Stone, Fault> {
        let keys = self.redis.keys();
        let (record, tombstone) = (Place::record(keys, key), Place::tombstone(keys, key));
        let mut pipeline = Pipeline::new();
        pipeline.cmd("GET").arg(&record.name).cmd("GET").arg(&tombstone.name);
        let answers = self.redis.send(record.tag, &pipeline).await?;
        let [record, tombstone] = <[Value; 2]>::try_from(answers).map_err(unreadable)?;
        let revoked = scripts::found(tombstone).map_err(unreadable)?.is_some();
        let text = scripts::found(record).map_err(unreadable)?;
        let record = text.map(|text| scripts::record_of(&text).ok_or(Fault::Malformed));
        Ok(Stone { record: record.transpose()?, revoked })
    }

    async fn standing(&self, period: &Period, grant: &Sha256) -> Result<Standing, Fault> {
        let place = Place::grant(self.redis.keys(), grant);
        let Some(text) = self.get(&place).await? else { return Ok(Standing::Revoked) };
        if text == REVOKED {
            return Ok(Standing::Revoked);
        }
        let last = Last::read(&text).ok_or(Fault::Malformed)?;
        if last.epoch == period.epoch {
            return Ok(Standing::Good);
        }
        // One roll for both: a later one may give up what this one still waits for.
        let roll = self.roll(period.epoch);
        let given_up = roll.as_ref().and_then(|roll| roll.given_up);
        Ok(if given_up.is_some_and(|given_up| given_up.is(last.epoch, last.begun)) {
            Standing::Revoked
        } else if self.is_settled(period, roll.as_deref()) {
            Standing::Good
        } else {
            Standing::Unsure
        })
    }

    /// The record of a token, with its grant's standing in it.
    async fn record(&self, key: RecordKey) -> Result<Option<BindingRecord>, Fault> {
        let period = self.period()?;
        let guess = self.guesses.get(key);
        let guessed = async {
            match guess {
                Some(grant) => Some(self.standing(&period, &grant).await),
                None => None,
            }
        };
        let (stone, guessed) = tokio::join!(self.stone(key), guessed);
        let Stone { record, revoked: alone } = stone?;
        let Some(mut record) = record else {
            return Ok(alone.then(|| bare(now().plus(MARGIN))));
        };
        let grant = scripts::grant_of(&record);
        let standing = match guessed.filter(|_| guess == Some(grant)) {
            Some(standing) => standing?,
            None => self.standing(&period, &grant).await?,
        };
        self.guesses.put(key, grant);
        // Had another server taken over meanwhile, it would have answered for an epoch that it is not of.
        let same = self.period()?.epoch == period.epoch;
        record.revoked = match standing {
            Standing::Revoked => true,
            Standing::Good if same => alone,
            Standing::Good | Standing::Unsure => return Err(Fault::Down),
        };
        Ok(Some(record))
    }
}

/// What is left of a token that was revoked.
pub(super) fn bare(expires: UnixTime) -> BindingRecord {
    BindingRecord {
        kind: TokenKind::Access,
        tenant: None,
        client: None,
        cnf_jkt: None,
        sender_certificate: None,
        scope: None,
        expires,
        family: String::new(),
        bypass: None,
        revoked: true,
    }
}

/// `PXAT` of what is good until `ends`.
fn kept_until(ends: UnixTime) -> String {
    ends.plus(MARGIN).millis().to_string()
}

#[async_trait]
impl Bindings for SharedBindings {
    fn is_up(&self) -> bool {
        let Ok(period) = self.inner.period() else { return false };
        self.inner.roll(period.epoch).is_some() && self.inner.registry.is_up()
    }

    fn trouble(&self) -> Option<String> {
        let roll = self.inner.called(self.inner.period().ok()?.epoch)?;
        if let Some(later) = &roll.later {
            return Some(format!("edge {later} has found other masters of redis"));
        }
        let missing = roll.missing.as_ref()?;
        Some(format!("edge {missing} has not said again what it has revoked"))
    }

    async fn record(&self, key: RecordKey) -> Result<Option<BindingRecord>, Fault> {
        self.inner.record(key).await
    }

    async fn certificate(&self, x5t: X5tS256) -> Result<Option<SenderCertificate>, Fault> {
        self.inner.period()?;
        let place = Place::certificate(self.inner.redis.keys(), x5t);
        let Some(der) = self.inner.get(&place).await? else { return Ok(None) };
        let certificate = SenderCertificate::new(der).filter(|it| it.x5t() == x5t);
        certificate.map(Some).ok_or(Fault::Malformed)
    }

    /// Nothing: what this edge's file is told of a token is the line of a bypass, and that is rare.
    fn announce(&self) -> Option<Announced> {
        None
    }

    async fn keep(&self, issued: Issued, now: UnixTime) -> Result<(), BindFault> {
        let Issued { records, certificate, line, redeemed, goes_on } = issued;
        if let Some(line) = line {
            let written = self.inner.registry.transact(move |batch| batch.append(&line)).await;
            written.map_err(|_| BindFault::Down)?;
        }
        // One whose grant goes on is looked at there.
        if let Some(redeemed) = redeemed.filter(|_| !goes_on) {
            let record = self.inner.record(redeemed).await.map_err(|_| BindFault::Down)?;
            if record.is_some_and(|record| record.revoked) {
                return Err(BindFault::Revoked);
            }
        }
        let mut grants = BTreeMap::new();
        for (_, record) in &records {
            let ends = grants.entry(scripts::grant_of(record).0).or_insert(record.expires);
            *ends = (*ends).max(record.expires);
        }
        let mut writes = JoinSet::new();
        for (grant, ends) in grants {
            let inner = Arc::clone(&self.inner);
            writes.spawn(async move { inner.go_on(Sha256(grant), ends, goes_on).await });
        }
        for (key, record) in records {
            let inner = Arc::clone(&self.inner);
            writes.spawn(async move { inner.put(key, record, now).await });
        }
        if let Some(certificate) = certificate {
            let inner = Arc::clone(&self.inner);
            writes.spawn(async move { inner.put_certificate(&certificate).await });
        }
        let (mut fault, mut written) = (None, Vec::new());
        while let Some(done) = writes.join_next().await {
            match done.unwrap_or(Err(BindFault::Down)) {
                Ok(write) => written.extend(write),
                Err(found) => fault = Some(worse(fault, found)),
            }
        }
        let Some(fault) = fault else { return Ok(()) };
        for write in written {
            self.inner.undo(write).await;
        }
        Err(fault)
    }

    async fn revoke(&self, keys: Vec<RecordKey>, client: Option<String>) -> Result<bool, Fault> {
        let mut any = false;
        for key in keys {
            // What an edge revokes that no other waits for could be lost without anybody's knowing.
            let roll = self.inner.roll(self.inner.period()?.epoch);
            roll.filter(|roll| self.inner.joins && roll.counts()).ok_or(Fault::Down)?;
            let Some(record) = self.inner.stone(key).await?.record else { continue };
            if record.client != client {
                continue;
            }
            let tombstone = match record.kind {
                TokenKind::Access => Tombstone::Token(key),
                TokenKind::Refresh => Tombstone::Grant(scripts::grant_of(&record)),
            };
            self.inner.bury(tombstone, record.expires).await?;
            any = true;
        }
        Ok(any)
    }
}

/// What is told of two faults: the one that no other try would mend.
fn worse(before: Option<BindFault>, found: BindFault) -> BindFault {
    match (before, found) {
        (Some(BindFault::Revoked), _) | (_, BindFault::Revoked) => BindFault::Revoked,
        (Some(BindFault::Conflict), _) | (_, BindFault::Conflict) => BindFault::Conflict,
        (Some(BindFault::Down) | None, BindFault::Down) => BindFault::Down,
    }
}
