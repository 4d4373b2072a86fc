//! The registry of nodes that several edges share, in Redis.
//!
//! # How a decision is made
//!
//! ```text
//! read ─► decide (pure) ─► audit line, durable here ─► compare and swap, one script ─► answer
//!  ▲                                                     │ the record has changed
//!  └──────── `superseded`, with the decision's id ◄──────┘
//! ```
//!
//! The audit log stays local to each edge; the decision's id is what it has in common with the others.
//! A line without `superseded` behind it says what was decided, and, unless the process died in that
//! moment, what was done. The script compares the record's revision, which is random and never the same
//! twice, and, for a quarantine, the number of those that the fleet brake counted.
//!
//! Invariant: nobody is answered by what is not in the store, and nothing is in the store without its
//! audit line.
//!
//! # What holds when Redis forgets
//!
//! A master that dies may take with it what it had acknowledged: a restored backup, an append-only file
//! that lost its last second, a replica that was promoted before it had heard. A node that was revoked in
//! what is lost would be served. With `waitReplicas` a change counts only when so many replicas have it,
//! and one of those is promoted: nothing is lost unless all of them are. Beyond that the ledger
//! ([`crate::policy::lineage`]) finds it out:
//!
//! - Each change that matters is an entry of the ledger, made in the script that makes the change.
//! - Each edge, and each command that changes something, remembers the last entry that it has made, or seen
//!   where acknowledged changes must be, in its SQLite file: once a second. Who made an entry is answered only
//!   after it is remembered.
//! - A store without the remembered entry is *doubted*: whoever finds it so says it there, and no edge
//!   serves any node until an operator has run `holdfast node confirm`. Meanwhile nodes can be listed,
//!   revoked, disabled, quarantined and removed, so that what was lost can be done again before.
//! - While a store is new to be the one (another master, another mark: [`Reign`](crate::store::epoch)),
//!   no edge serves any node for [`SETTLE`], so that each has found out and said what it remembers.
//! - Whoever remembers an entry and finds the store to go on from it *vouches* for it, in this epoch. An
//!   edge that remembers nothing, as one that is new or whose file is gone, believes a store that was vouched
//!   for, and no other that is not new itself: not until an edge that remembers has looked, or an operator has
//!   run `holdfast node confirm`. So one more edge is just started, while any other serves; and a store that
//!   was restarted together with the loss of the only file that knew it is not believed.
//! - A grant is a write. With `waitReplicas`, a master that is cut off from its replicas grants nothing,
//!   whatever an edge on its side of the partition reads there.
//!
//! So a lost change is served to nobody if any edge, or the command's own machine while an edge runs
//! there, remembers it and reaches the store in that time. What does not hold: a change that is lost
//! together with everybody who knew of it. And what each contact changes (counters, the last capsule,
//! telemetry) has no entry: the last of it may be lost silently, with it a node's abrupt stop.
//!
//! # Keys
//!
//! All are at one tag, so that one script reaches them. None but one has a TTL, each for its reason:
//!
//! | key | holds | why it stays |
//! |---|---|---|
//! | `node:<id>` | record, revision, status, the secret's hash | a node is one until it is removed |
//! | `nodes:all`, `nodes:<status>` | ids, in order | as long as the nodes |
//! | `nodes:removed` | the last key version of each removed id | no key is given twice |
//! | `nodes:lineage`, `nodes:ledger` | the last entry; the last 100,000 | what is behind must be found out |
//! | `nodes:quarantines` | time and node of each | ends 31 days after the last |

#![expect(clippy::disallowed_methods, reason = "a store has random ids")]

mod trust;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use redis::{Pipeline, Value};
use tokio::runtime::Handle;

use super::memory::Memory;
use super::scripts::{self, Names, Put, Scripts, TAG, Written};
use super::{About, Becomes, Commit, Decide, Found, Listed, Look, Nodes, Row, Standing};
use crate::policy::audit::Draft;
use crate::policy::capsule::node::{Node, NodeId, Status};
use crate::policy::digest::Sha256;
use crate::policy::epoch::Epoch;
use crate::policy::lineage::{self, Mark};
use crate::policy::time::UnixTime;
use crate::store::clock::now;
use crate::store::epoch::SETTLE;
use crate::store::redis::{Period, Redis};
use crate::store::registry::Registry;
use crate::store::sqlite::Fault;
use crate::store::task::Task;
use trust::Trust;

/// How often the ledger is looked at, whether anybody asks or not.
const LOOK: Duration = Duration::from_secs(1);
/// How often a decision is made anew because its record has changed.
const TRIES: usize = 5;
/// Decisions about one node of this edge wait for each other: of two only one could be done. Nodes that
/// fall into one of these wait together.
const TURNS: usize = 256;
/// How long a turn is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Records that are asked for at once.
const PAGE: usize = 200;

/// The shared registry. It ends with the last of its clones.
#[derive(Clone, Debug)]
pub struct SharedNodes {
    inner: Arc<Inner>,
    runtime: Handle,
    /// The task that looks at the ledger.
    _looking: Arc<Task>,
}

#[derive(Debug)]
struct Inner {
    redis: Redis,
    memory: Memory,
    scripts: Scripts,
    turns: Vec<tokio::sync::Mutex<()>>,
    settle: Duration,
    /// Whether others are told what is found of the ledger.
    speaks: bool,
    /// Whether the store is to be acted on.
    trust: Trust,
    looked_up: AtomicU64,
}

impl SharedNodes {
    /// The nodes in `redis`, with the audit log and the memory of `registry`. For `settle` after another
    /// store has begun to be the one, nothing is decided: [`SETTLE`], or nothing for a command.
    ///
    /// # Errors
    /// [`Fault`], where what is remembered cannot be read.
    pub fn start(
        redis: Redis,
        registry: Registry,
        settle: Duration,
        runtime: &Handle,
    ) -> Result<Self, Fault> {
        Self::begin(redis, registry, (settle, true), runtime)
    }

    /// The same for a command that only looks: it tells nobody what it finds, as its file may be any.
    ///
    /// # Errors
    /// Those of [`SharedNodes::start`].
    pub fn looking(redis: Redis, registry: Registry, runtime: &Handle) -> Result<Self, Fault> {
        Self::begin(redis, registry, (SETTLE, false), runtime)
    }

    /// Looks at the store now.
    ///
    /// # Errors
    /// Why it is not acted on, or what it could not be looked at for.
    pub async fn look(&self) -> Result<(), Fault> {
        self.inner.look().await
    }

    fn begin(
        redis: Redis,
        registry: Registry,
        (settle, speaks): (Duration, bool),
        runtime: &Handle,
    ) -> Result<Self, Fault> {
        let inner = Arc::new(Inner {
            redis,
            memory: Memory::of(registry)?,
            scripts: Scripts::default(),
            turns: (0..TURNS).map(|_| tokio::sync::Mutex::default()).collect(),
            settle,
            speaks,
            trust: Trust::default(),
            looked_up: AtomicU64::default(),
        });
        let looking = Arc::clone(&inner);
        let task = Task::start(runtime, async move {
            loop {
                // What cannot be done now is tried again, and whoever asks for a node is told.
                let _ = looking.look().await;
                tokio::time::sleep(LOOK).await;
            }
        });
        Ok(Self { inner, runtime: runtime.clone(), _looking: Arc::new(task) })
    }
}

/// What came of trying to do what was decided.
enum Tried {
    Done,
    Changed,
}

impl Inner {
    fn names(&self) -> Names<'_> {
        Names(self.redis.keys())
    }

    async fn send<const N: usize>(&self, pipeline: &Pipeline) -> Result<[Value; N], Fault> {
        let answered = self.redis.send(TAG, pipeline).await?;
        scripts::answers(answered)
    }

    /// How things stand, and what the ledger must still go on from when something is done about them;
    /// `None` where it is done though the store has forgotten something.
    async fn standing(
        &self,
        period: &Period,
        about: &About,
    ) -> Result<(Standing, Option<Mark>), Fault> {
        let (names, mark) = (self.names(), self.memory.mark());
        let mut pipeline = Pipeline::new();
        names.ask_row(&mut pipeline, about.id.as_str());
        names.ask_standing(&mut pipeline, &about.id, about.quarantines_since);
        // Last: a record that was read before somebody found something missing is not acted on.
        names.ask_ledger(&mut pipeline, &mark);
        let [row, removed, quarantines, head, entry] = self.send(&pipeline).await?;
        let trusted = match self.trust(period, &scripts::ledger(&head, &entry)?, &mark).await {
            Ok(last) => Some(last),
            Err(Fault::Behind | Fault::Unvouched) if about.even_if_behind => None,
            Err(fault) => return Err(fault),
        };
        let row = scripts::row(&row, about.id.as_str())?;
        let removed = scripts::number(&removed)?.filter(|_| row.is_none());
        let standing = Standing { row, removed, quarantines: scripts::count(&quarantines)? };
        Ok((standing, trusted))
    }

    /// Writes the lines, then does what was decided, if it is still the same epoch.
    async fn put(
        &self,
        epoch: Epoch,
        about: &About,
        (standing, mark): (&Standing, Option<&Mark>),
        commit: Commit,
    ) -> Result<Tried, Fault> {
        let Commit { becomes, quarantined, lines } = commit;
        let last = lines.last().cloned();
        self.memory.keep(lines).await?;
        let (becomes, after) = match becomes {
            Becomes::Same if quarantined.is_none() => return Ok(Tried::Done),
            Becomes::Same => ("same", standing.node().cloned()),
            Becomes::Node(node) => ("node", Some(*node)),
            Becomes::Nothing => ("nothing", None),
        };
        let entry = lineage::matters(standing.node(), after.as_ref()).then(entry).transpose()?;
        let put = Put {
            id: &about.id,
            standing,
            becomes,
            node: after.as_ref().map(written).transpose()?,
            revision: revision()?,
            entry: entry.as_deref(),
            mark,
            quarantined,
            quarantines_since: about.quarantines_since,
        };
        match self.swap(epoch, &put).await {
            Ok(Some(0)) => Ok(Tried::Done),
            Ok(Some(seq)) => {
                // One in a store that has forgotten something is not what is to be gone on from.
                if let (Some(id), Some(mark)) = (entry, mark) {
                    self.memory.note(Mark { confirmed: mark.confirmed, seq, id });
                    self.memory.keep(Vec::new()).await?;
                    self.vouch().await;
                }
                Ok(Tried::Done)
            }
            Ok(None) => {
                self.memory.superseded(last, "changed", now()).await?;
                Ok(Tried::Changed)
            }
            Err(fault) => {
                self.memory.superseded(last, "unknown", now()).await?;
                Err(fault)
            }
        }
    }

    /// Compares and swaps: the number of the entry, 0 where there is none, `None` where it has changed.
    async fn swap(&self, epoch: Epoch, put: &Put<'_>) -> Result<Option<u64>, Fault> {
        let (keys, arguments) = (self.names().of_commit(put.id), put.arguments());
        let arguments: Vec<_> = arguments.iter().map(|it| it.as_bytes()).collect();
        let commit = &self.scripts.commit;
        let done = self.redis.script_in(epoch, TAG, commit, &keys, &arguments).await?;
        scripts::refused(&done)?;
        if let Value::Int(_) = done {
            return scripts::count(&done).map(Some);
        }
        match scripts::text(&done)?.as_deref() {
            Some("changed") => Ok(None),
            Some(_) | None => Err(scripts::unreadable()),
        }
    }

    /// At most `limit` ids after `after`.
    async fn ids(
        &self,
        after: &str,
        status: Option<Status>,
        limit: usize,
    ) -> Result<Vec<String>, Fault> {
        let mut pipeline = Pipeline::new();
        self.names().ask_ids(&mut pipeline, after, status, limit);
        let [ids] = self.send(&pipeline).await?;
        let ids = scripts::list(&ids)?.iter().map(scripts::text).collect::<Result<Vec<_>, _>>()?;
        Ok(ids.into_iter().flatten().collect())
    }

    /// The records of `ids`, without those that were removed meanwhile.
    async fn records(&self, ids: Vec<String>) -> Result<Vec<Listed>, Fault> {
        let mut pipeline = Pipeline::new();
        ids.iter().for_each(|id| self.names().ask_row(&mut pipeline, id));
        let rows = self.redis.send(TAG, &pipeline).await?;
        let listed = ids.into_iter().zip(&rows).filter_map(|(id, row)| {
            let row = scripts::refused(row).and_then(|()| scripts::row(row, &id));
            row.transpose().map(|row| (id, row.map(|row| row.node)))
        });
        Ok(listed.collect())
    }

    fn turn(&self, id: &NodeId) -> Option<&tokio::sync::Mutex<()>> {
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        let place = hasher.finish() % (self.turns.len().max(1) as u64);
        self.turns.get(usize::try_from(place).ok()?)
    }
}

#[async_trait]
impl Look for SharedNodes {
    async fn node(&self, id: &NodeId) -> Result<Option<Row>, Fault> {
        let mut pipeline = Pipeline::new();
        self.inner.names().ask_row(&mut pipeline, id.as_str());
        let [row] = self.inner.send(&pipeline).await?;
        scripts::row(&row, id.as_str())
    }

    async fn list(
        &self,
        after: &str,
        status: Option<Status>,
        limit: usize,
    ) -> Result<Vec<Listed>, Fault> {
        let mut after = after.to_owned();
        loop {
            let ids = self.inner.ids(&after, status, limit.min(PAGE)).await?;
            let Some(last) = ids.last().cloned() else { return Ok(Vec::new()) };
            let listed = self.inner.records(ids).await?;
            if !listed.is_empty() {
                return Ok(listed);
            }
            after = last;
        }
    }
}

#[async_trait]
impl Nodes for SharedNodes {
    fn is_up(&self) -> bool {
        self.inner.redis.is_up() && self.inner.trust.trouble().is_none()
    }

    fn trouble(&self) -> Option<Fault> {
        self.inner.trust.trouble()
    }

    async fn look_again(&self) {
        // What it finds is told by `trouble`.
        let _ = self.look().await;
    }

    fn looked_up(&self) -> u64 {
        self.inner.looked_up.load(Ordering::Relaxed)
    }

    async fn find(&self, id: &NodeId, presented: Sha256) -> Result<Found, Fault> {
        let (inner, names, mark) = (&self.inner, self.inner.names(), self.inner.memory.mark());
        inner.looked_up.fetch_add(1, Ordering::Relaxed);
        let period = inner.period()?;
        let mut pipeline = Pipeline::new();
        names.ask_secret(&mut pipeline, id);
        names.ask_ledger(&mut pipeline, &mark);
        let [secret, head, entry] = inner.send(&pipeline).await?;
        inner.trust(&period, &scripts::ledger(&head, &entry)?, &mark).await?;
        let stored = scripts::secret(&secret)?;
        // Nothing else of a record is looked at before: who has no secret learns nothing of it.
        match (Node::is_secret(stored, &presented), stored) {
            (true, _) => {
                let row = self.node(id).await?;
                let own = row.filter(|row| Node::knows(Some(&row.node), &presented));
                Ok(own.map_or(Found::Unknown, |row| Found::Node(Box::new(row))))
            }
            (false, Some(_)) => Ok(Found::Wrong),
            (false, None) => Ok(Found::Unknown),
        }
    }

    async fn count(&self) -> Result<Vec<(Status, u64)>, Fault> {
        let mut pipeline = Pipeline::new();
        self.inner.names().ask_counts(&mut pipeline);
        let counts: [Value; Status::ALL.len()] = self.inner.send(&pipeline).await?;
        let counted = Status::ALL.into_iter().zip(&counts);
        counted.map(|(status, count)| Ok((status, scripts::count(count)?))).collect()
    }

    async fn quarantines(&self, since: UnixTime) -> Result<u32, Fault> {
        let mut pipeline = Pipeline::new();
        self.inner.names().ask_quarantines(&mut pipeline, Some(since));
        let [count]: [Value; 1] = self.inner.send(&pipeline).await?;
        scripts::count(&count)
    }

    async fn commit(&self, about: About, mut decide: Box<Decide>) -> Result<(), Fault> {
        let inner = Arc::clone(&self.inner);
        // Who asks may go away: what was begun is done, or said not to be.
        let done = self.runtime.spawn(async move {
            let turn = inner.turn(&about.id).ok_or(Fault::Closed)?.lock();
            let _turn = tokio::time::timeout(PATIENCE, turn).await.map_err(|_| Fault::Busy)?;
            for _ in 0..TRIES {
                let period = inner.period()?;
                let (standing, mark) = inner.standing(&period, &about).await?;
                let commit = decide(&standing)?;
                let stands = (&standing, mark.as_ref());
                match inner.put(period.epoch, &about, stands, commit).await? {
                    Tried::Done => return Ok(()),
                    Tried::Changed => {}
                }
            }
            Err(Fault::Conflict)
        });
        done.await.unwrap_or(Err(Fault::Closed))
    }

    async fn confirm(&self, line: Draft) -> Result<bool, Fault> {
        let inner = &self.inner;
        inner.memory.keep(vec![line]).await?;
        let at = now().millis().max(inner.memory.mark().confirmed.saturating_add(1)).to_string();
        let (entry, names) = (entry()?, inner.names());
        let (keys, arguments) =
            ([names.lineage(), names.ledger()], [at.as_bytes(), entry.as_bytes()]);
        let done = inner.redis.script(TAG, &inner.scripts.confirm, &keys, &arguments).await;
        let done = done?;
        scripts::refused(&done)?;
        let [confirmed, seq] = scripts::list(&done)? else { return Err(scripts::unreadable()) };
        let confirmed = scripts::number(confirmed)?.ok_or_else(scripts::unreadable)?;
        inner.memory.note(Mark { confirmed, seq: scripts::count(seq)?, id: entry });
        inner.memory.keep(Vec::new()).await?;
        inner.vouch().await;
        Ok(true)
    }
}

fn written(node: &Node) -> Result<Written, Fault> {
    let record = serde_json::to_string(node).map_err(|_| Fault::Malformed)?;
    let secret = node.secret.ok_or(Fault::Malformed)?;
    Ok(Written { record, status: node.status, secret })
}

fn random() -> Result<[u8; 16], Fault> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Fault::Failed("no randomness".into()))?;
    Ok(bytes)
}

/// A new entry's id.
fn entry() -> Result<String, Fault> {
    Ok(format!("{:032x}", u128::from_be_bytes(random()?)))
}

/// A revision that no record has had.
fn revision() -> Result<i64, Fault> {
    let bits = u128::from_be_bytes(random()?) >> 65;
    i64::try_from(bits).map_err(|_| Fault::Failed("no randomness".into()))
}
