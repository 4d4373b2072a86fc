//! Redis or Valkey under the shared state: standalone, Sentinel or Cluster.
//!
//! ```text
//! supervise ─► masters ─► link ─► inspect      who is there, each second and whenever something is wrong
//!     └─► epoch: the marks, and who the masters are ─► View
//! request ─► View ─► server ─► link            once, never again; `commit` where replicas must have it
//! ```
//!
//! Each master has one connection that all requests share (`server`), which the supervisor has made
//! and looked at. The connection is the store's identity: as long as it stands, the same process is at
//! its other end. So nothing here reconnects or sends again behind anybody's back, and a Cluster is
//! followed by its slots, not by a client that does.
//!
//! # The breaker
//!
//! A connection that ends, an answer that says that the server is no master any more, a lost mark, or
//! three answers in a row that did not come in time trip a server: from then on requests are refused
//! at once, and the supervisor alone tries, with a rest between two tries. When it has found a master,
//! seen that it may be used, and read the marks, requests go there. No restart is needed.
//!
//! # The epoch
//!
//! A store that lost what it had acknowledged must not be asked whether a proof is new. So an [`Epoch`]
//! names one memory: it is a hash over a random mark at each tag and over `run_id`, `master_replid` and
//! `evicted_keys` of each master. Nonces are keyed by it, so that a proof with a nonce can be admitted under the epoch
//! of its nonce and under no other; where there is no nonce, a proof that is dated before the epoch's
//! begin (and what it may be dated ahead and edges' clocks be apart after it) is refused. Every use of a proof is sent together with a `GET`
//! of the mark and counts only when the mark is the epoch's.
//!
//! - **Restart**: another `run_id`, a new epoch, whatever is on the disk. With `appendfsync everysec` the
//!   last second may be missing, which nobody could tell from a complete file.
//! - **Failover**: another process, and another `master_replid`: a new epoch. What the replica had not
//!   yet received is refused by its epoch. A master that becomes a replica closes its clients'
//!   connections or answers `READONLY`; one that became master again has another `master_replid`, which
//!   is looked at each second.
//! - **`FLUSHALL`**: the marks are gone. The mark comes behind the write in the same round trip, so that
//!   no write is taken for new which a wiped key made so, without any connection being lost.
//! - **Keys dropped to make room**: a server whose policy says so is not used, and when it is put right
//!   what it has counted as dropped is another number. Whoever has seen the policy changes the marks, too,
//!   so that it is another store also where the number was set back.
//! - **A server's clock set forward**: keys end by it, and end too soon then. It is held against this
//!   machine's clocks each second and at each new connection; where it has leapt, the marks are changed. What keys are kept
//!   longer than is needed has room for a smaller leap.
//! - **A restored backup**: needs a restart, or a resynchronisation: as those.
//! - **Partition, the old master still alive**: edges on its side stay in the old epoch, those on the
//!   other side go to a new one. A proof *with a nonce* is admitted on one side only, since the other
//!   does not know its nonce; no proof is admitted twice. A proof *without one* which is dated after
//!   the new epoch's begin could be admitted once on each side while both take writes:
//!   `min-replicas-to-write` at the servers, or `waitReplicas` here, ends that, because the master that
//!   was left behind has no replica. Without nonces use one of them.
//!
//! With `waitReplicas` a write that was acknowledged outlives its master as long as a replica does that
//! has it and is promoted. One server is in between: a master that stood still, was given up by its
//! Sentinels and comes back before they have told all its replicas still has those to wait for, and the
//! edges that are sent to it; what it acknowledges then is lost when they turn to the new one. Where
//! `waitReplicas` is the number of replicas it acknowledges nothing, since the one that was promoted has
//! left it. Proofs are admitted once all the same, by their epochs.
//!
//! How old an epoch is, is told by the clock of the server of the first tag when an edge finds it, and from then
//! on by the edge's own monotonic clock; the epoch's begin, for proofs without a nonce, is so long ago by the clock
//! that the proofs' dates are held against, as it is each second. Edges' clocks may be apart by what is conceded
//! to clients', and by 5 s at least.
//!
//! What does not hold: what is looked at each second may be a second late: dropped keys, and a leap of a
//! clock. A proxy that lets several servers share a connection hides who
//! answers; there must be none in between. A replica that attaches to a master which never had one
//! gives it another `master_replid`: a new epoch for no need, which costs clients one challenge.
//!
//! Servers in use are looked at each second also while another cannot be reached. One of a Cluster that says
//! that the Cluster is down, as a master that was cut off from the others does, is not used.
//!
//! Keys have a TTL, the marks and the epoch's begin apart (`epoch`).

#![expect(clippy::disallowed_methods, reason = "a connection has files, tasks and chance")]
#![expect(clippy::wildcard_enum_match_arm, reason = "the crate adds kinds of values as Redis does")]

mod clock;
mod commit;
mod epoch;
mod inspect;
mod keys;
mod link;
mod masters;
mod replay;
mod script;
mod server;
mod settings;
mod supervise;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use redis::{Pipeline, Value};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

pub use keys::{Keys, TAGS, Tag};
pub use replay::{Partition, RedisReplay, RedisSpent, apart};
pub use script::{Guarded, Script};
pub use settings::{Address, Login, Settings, Tls, Topology, Wait};

use crate::policy::epoch::{Epoch, Reign};
use crate::policy::time::UnixTime;
use crate::store::clock::now;
use crate::store::epoch::Epochs;
use crate::store::task::Task;
use epoch::Mark;
use script::ANOTHER;
use server::Server;

/// Why there is no answer. None of them may be taken for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The server is not there, answered too late or in no way that can be read, too few replicas have
    /// the write, or the store is not the one that the question was about. Nobody knows whether the
    /// commands were run.
    Down,
    /// The server has no room for a write (`maxmemory` with `noeviction`).
    Full,
}

/// A store that is there.
#[derive(Clone, Debug)]
struct View {
    reign: Reign,
    /// When it began, by the servers' clock.
    begun: UnixTime,
    /// How long ago that was, and when it was so long ago.
    aged: (Duration, Instant),
    servers: Vec<Arc<Server>>,
    places: Box<[usize; TAGS]>,
    /// By tag.
    marks: Vec<Mark>,
}

impl View {
    /// How long ago it began.
    fn age(&self) -> Duration {
        let (age, at) = self.aged;
        age.saturating_add(at.elapsed())
    }

    /// The same where this machine's clock was set, and another time is that long ago by now.
    fn by_the_clock(&self, now: UnixTime) -> Option<Self> {
        let since = now.minus(self.age());
        let moved = since.millis_since(self.reign.since).unsigned_abs();
        let reign = Reign { epoch: self.reign.epoch, since };
        (Duration::from_millis(moved) > DRIFT).then(|| Self { reign, ..self.clone() })
    }
}

#[derive(Debug)]
struct Shared {
    settings: Settings,
    keys: Keys,
    view: ArcSwapOption<View>,
    /// Has the supervisor look at once.
    look: Arc<Notify>,
    /// Tells that a view was put in place.
    seen: watch::Sender<()>,
    /// Why the supervisor could not do its work, the last time.
    failure: Mutex<Option<String>>,
    /// What has been said once.
    warned: Mutex<BTreeSet<String>>,
}

impl Shared {
    fn failed(&self, error: String) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.as_ref() != Some(&error) {
            tracing::warn!(error, "redis cannot be used");
        }
        *failure = Some(error);
    }

    fn works(&self) {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        if failure.is_some() {
            tracing::info!("redis can be used again");
        }
    }

    fn warn_once(&self, text: String) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.insert(text.clone()) {
            tracing::warn!("redis: {text}");
        }
    }
}

/// One epoch of the store, as all who share it know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    /// Which it is.
    pub epoch: Epoch,
    /// When it was found to have begun, later than every epoch before it that the store remembers. By the clock
    /// of the server of [`Tag::FIRST`], or ahead of it. The same at every edge, unless another epoch was found
    /// in between.
    pub begun: UnixTime,
    /// How long ago that was, as of when this edge found it, and since then by a clock that nobody sets.
    pub age: Duration,
}

/// How the store stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Whether every master answers and takes writes.
    pub up: bool,
    /// Which memory it is.
    pub epoch: Option<Epoch>,
    /// Why it is not up, in words that hold no secret.
    pub error: Option<String>,
}

/// The store. A clone is the same one.
#[derive(Clone, Debug)]
pub struct Redis {
    shared: Arc<Shared>,
    _supervisor: Arc<Task>,
}

impl Redis {
    /// Begins to connect, and returns at once: until that is done, and whenever it is undone, every
    /// request is a [`Fault::Down`].
    #[must_use]
    pub fn start(settings: Settings, runtime: &Handle) -> Self {
        let keys = Keys::new(&settings.prefix);
        let shared = Arc::new(Shared {
            settings,
            keys,
            view: ArcSwapOption::empty(),
            look: Arc::default(),
            seen: watch::Sender::new(()),
            failure: Mutex::default(),
            warned: Mutex::default(),
        });
        let supervisor = Task::start(runtime, supervise::supervise(Arc::clone(&shared)));
        Self { shared, _supervisor: Arc::new(supervisor) }
    }

    /// Waits until the store can be used, at most `within`: for commands, which have nobody to answer
    /// meanwhile. `false` when it cannot; [`Redis::status`] says why.
    pub async fn ready(&self, within: Duration) -> bool {
        let mut seen = self.shared.seen.subscribe();
        let up = async {
            while !self.is_up() {
                // The sender lives as long as `self`.
                let _ = tokio::time::timeout(Duration::from_millis(50), seen.changed()).await;
            }
        };
        tokio::time::timeout(within, up).await.is_ok()
    }

    /// Names of keys.
    #[must_use]
    pub fn keys(&self) -> &Keys {
        &self.shared.keys
    }

    /// Whether every master answers and takes writes.
    #[must_use]
    pub fn is_up(&self) -> bool {
        let view = self.shared.view.load();
        view.as_ref().is_some_and(|view| view.servers.iter().all(|server| server.is_up()))
    }

    /// How the store stands, for `/readyz`.
    #[must_use]
    pub fn status(&self) -> Status {
        let up = self.is_up();
        let failure = self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let view = self.shared.view.load();
        let servers = view.iter().flat_map(|view| &view.servers);
        let mut troubles = servers.filter_map(|server| {
            let trouble = server
                .trouble()
                .or_else(|| (!server.is_open()).then(|| "is not answering".to_owned()));
            trouble.map(|trouble| format!("{}: {trouble}", server.address))
        });
        let error = if up { None } else { failure.or_else(|| troubles.next()) };
        let epoch = self.current().map(|reign| reign.epoch);
        Status { up, epoch, error }
    }

    /// The epoch of now; `None` while no master answers.
    #[must_use]
    pub fn period(&self) -> Option<Period> {
        let view = self.shared.view.load();
        let view = view.as_ref().filter(|view| view.servers.iter().any(|it| it.is_open()))?;
        Some(Period { epoch: view.reign.epoch, begun: view.begun, age: view.age() })
    }

    /// Sends commands whose keys are all at `tag`, in one round trip, once. Answers are in their order;
    /// an error that is about one command alone stands in its place as [`Value::ServerError`].
    ///
    /// # Errors
    /// See [`Fault`]. After one the commands may have been run or not.
    pub async fn send(&self, tag: Tag, pipeline: &Pipeline) -> Result<Vec<Value>, Fault> {
        self.server(tag)?.send(pipeline).await
    }

    /// [`Redis::send`] for writes that must outlive the master: with `waitReplicas`, the answers come
    /// when so many replicas have what was written.
    ///
    /// # Errors
    /// As [`Redis::send`]; too few replicas are a [`Fault::Down`] too.
    pub async fn commit(&self, tag: Tag, pipeline: &Pipeline) -> Result<Vec<Value>, Fault> {
        self.server(tag)?.commit(pipeline).await
    }

    /// [`Redis::commit`], whose answers come only when the store has been the one of `epoch` from
    /// before the first command until after the last: one that was wiped or has failed over meanwhile
    /// is not taken for it. `GET` of the tag's mark goes along in the same round trip.
    ///
    /// # Errors
    /// As [`Redis::commit`]; another store is a [`Fault::Down`].
    pub async fn commit_in(
        &self,
        epoch: Epoch,
        tag: Tag,
        mut pipeline: Pipeline,
    ) -> Result<Vec<Value>, Fault> {
        let view = self.view_of(epoch)?;
        let (server, mark) = (view.server(tag)?, view.mark(tag)?);
        pipeline.cmd("GET").arg(self.shared.keys.named(tag, "mark"));
        let mut answers = server.commit(&pipeline).await?;
        match answers.pop() {
            Some(Value::BulkString(found)) if found == mark => Ok(answers),
            Some(_) | None => {
                server.trip(WIPED);
                Err(Fault::Down)
            }
        }
    }

    /// Runs a script whose keys are all at `tag`, as a [`Redis::commit`]. The server keeps it from its
    /// first time on; one whose scripts were flushed is given it again.
    ///
    /// # Errors
    /// As [`Redis::commit`].
    pub async fn script(
        &self,
        tag: Tag,
        script: &Script,
        keys: &[String],
        arguments: &[&[u8]],
    ) -> Result<Value, Fault> {
        run(&*self.server(tag)?, script, keys, arguments).await
    }

    /// [`Redis::script`] in the store of `epoch`, as [`Redis::commit_in`]; in another nothing is done.
    ///
    /// # Errors
    /// As [`Redis::commit_in`].
    pub async fn script_in(
        &self,
        epoch: Epoch,
        tag: Tag,
        script: &Guarded,
        keys: &[String],
        arguments: &[&[u8]],
    ) -> Result<Value, Fault> {
        let view = self.view_of(epoch)?;
        let (server, mark) = (view.server(tag)?, view.mark(tag)?);
        let own = [self.shared.keys.named(tag, "mark")];
        let (keys, arguments) = ([keys, &own].concat(), [arguments, &[mark]].concat());
        let answer = run(server, &script.0, &keys, &arguments).await?;
        if matches!(&answer, Value::ServerError(error) if error.code() == ANOTHER) {
            server.trip(WIPED);
            return Err(Fault::Down);
        }
        Ok(answer)
    }

    /// Whether something would be sent for `tag` in `epoch`.
    fn takes(&self, epoch: Epoch, tag: Tag) -> bool {
        let view = self.view_of(epoch);
        view.is_ok_and(|view| view.server(tag).is_ok_and(|server| server.is_open()))
    }

    /// Whether the store is the one of `epoch`, as each of its servers says now.
    ///
    /// # Errors
    /// [`Fault`]; another store is a [`Fault::Down`] too.
    pub async fn is_still(&self, epoch: Epoch) -> Result<(), Fault> {
        for tag in self.shards() {
            self.commit_in(epoch, tag, Pipeline::new()).await?;
        }
        Ok(())
    }

    fn view_of(&self, epoch: Epoch) -> Result<Arc<View>, Fault> {
        let view = self.shared.view.load_full();
        view.filter(|view| view.reign.epoch == epoch).ok_or(Fault::Down)
    }

    /// One tag at each master that is there: who looks at every key asks each of them.
    #[must_use]
    pub fn shards(&self) -> Vec<Tag> {
        let mut seen = BTreeSet::new();
        Tag::all().filter(|tag| seen.insert(self.shard(*tag))).collect()
    }

    /// Which master a tag lies at, as a number that is its own while the masters stay.
    #[must_use]
    pub fn shard(&self, tag: Tag) -> usize {
        let view = self.shared.view.load();
        view.as_ref().and_then(|view| view.places.get(tag.index()).copied()).unwrap_or_default()
    }

    fn server(&self, tag: Tag) -> Result<Arc<Server>, Fault> {
        self.shared.view.load().as_ref().ok_or(Fault::Down)?.server(tag).cloned()
    }
}

/// By how much this machine's clock is set before an epoch's begin is another time.
const DRIFT: Duration = Duration::from_secs(1);
/// Why a server is not used that has another mark.
const WIPED: &str = "the store has lost its mark: it was wiped";

/// Calls a script by its name, and with its text where the server does not know it.
async fn run(
    server: &Server,
    script: &Script,
    keys: &[String],
    arguments: &[&[u8]],
) -> Result<Value, Fault> {
    let answered = server.commit(&script.by_hash(keys, arguments)).await?;
    match answered.into_iter().next() {
        // It was not run, so that it can be sent again.
        Some(Value::ServerError(error)) if error.code() == "NOSCRIPT" => {
            let answered = server.commit(&script.in_full(keys, arguments)).await?;
            answered.into_iter().next().ok_or(Fault::Down)
        }
        other => other.ok_or(Fault::Down),
    }
}

impl View {
    fn mark(&self, tag: Tag) -> Result<&[u8], Fault> {
        self.marks.get(tag.index()).map(Vec::as_slice).ok_or(Fault::Down)
    }

    /// Whether the server at `address` may have lost some of what it kept.
    fn forgets(&self, address: &Address) -> bool {
        self.servers.iter().any(|server| server.address == *address && server.forgets())
    }

    fn server(&self, tag: Tag) -> Result<&Arc<Server>, Fault> {
        let place = self.places.get(tag.index()).ok_or(Fault::Down)?;
        self.servers.get(*place).ok_or(Fault::Down)
    }
}

impl Epochs for Redis {
    /// `None` while no master answers.
    fn current(&self) -> Option<Reign> {
        let view = self.shared.view.load();
        let view = view.as_ref()?;
        view.servers.iter().any(|server| server.is_open()).then_some(view.reign)
    }
}

impl Topology {
    fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Without randomness two marks could be the same; then nothing starts here at all, since the
    // process draws its keys from the same source first.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    bytes
}
