//! The registry of nodes, whatever keeps it.
//!
//! A record is changed in one way only: a decision is run on the record as it stands, and what it says
//! is done if the record still stands so. Where it does not, the decision is run once more, on what
//! stands there then. So two decisions about one node come one after the other, never both from the
//! same record, and none of them needs a lock that outlives it.
//!
//! Invariant: a decision is a function of what it is shown. It may be run several times; what its last
//! run said is what was done.

mod memory;
pub mod moved;
mod scripts;
pub mod shared;

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::registry::Registry;
use super::sqlite::Fault;
use super::sqlite::batch::Batch;
use super::sqlite::reader::Readers;
use crate::policy::audit::Draft;
use crate::policy::capsule::node::{Node, NodeId, Status};
use crate::policy::digest::Sha256;
use crate::policy::time::UnixTime;

/// A node's record with the revision that a change is compared with.
#[derive(Clone, Debug)]
pub struct Row {
    /// The record.
    pub node: Node,
    /// Another one with each change.
    pub revision: i64,
}

/// What the store knows of whoever shows a secret.
#[derive(Clone, Debug)]
pub enum Found {
    /// There is no such node.
    Unknown,
    /// There is, and the secret is not its own.
    Wrong,
    /// It is its own.
    Node(Box<Row>),
}

/// A stored record, by its id, as far as it can be read.
pub type Listed = (String, Result<Node, Fault>);

/// What a decision is about.
#[derive(Clone, Debug)]
pub struct About {
    /// The node.
    pub id: NodeId,
    /// Quarantines after this are counted, of any node; `None` where nobody wants to know.
    pub quarantines_since: Option<UnixTime>,
    /// Whether it is done even if the store has forgotten something: for what takes away.
    pub even_if_behind: bool,
}

impl About {
    /// A node, and nothing else.
    #[must_use]
    pub fn node(id: &NodeId) -> Self {
        Self { id: id.clone(), quarantines_since: None, even_if_behind: false }
    }
}

/// What a decision is made on: how things stand in the moment in which nobody else can change them.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// The record.
    pub row: Option<Row>,
    /// The last version of the key of a node of this id that was taken out. Only looked for where there
    /// is no record.
    pub removed: Option<u32>,
    /// The quarantines that were asked about.
    pub quarantines: u32,
}

impl Standing {
    /// The record, without its revision.
    #[must_use]
    pub fn node(&self) -> Option<&Node> {
        self.row.as_ref().map(|row| &row.node)
    }
}

/// What becomes of a record.
#[derive(Clone, Debug, Default)]
pub enum Becomes {
    /// It stays as it is.
    #[default]
    Same,
    /// This is put in its place, or there where there was none.
    Node(Box<Node>),
    /// It is taken out. What versions its key had is remembered: another node of its id must not be
    /// given the same keys.
    Nothing,
}

/// What a decision comes to, as far as the store is concerned: all of it is done, or none.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// The record from now on.
    pub becomes: Becomes,
    /// Where the node was quarantined: when, for the fleet brake.
    pub quarantined: Option<UnixTime>,
    /// The lines for the audit log, in their order.
    pub lines: Vec<Draft>,
}

/// A decision: what is to be done about things as they stand.
pub type Decide = dyn FnMut(&Standing) -> Result<Commit, Fault> + Send;

/// Looking at nodes.
#[async_trait]
pub trait Look: std::fmt::Debug + Send + Sync {
    /// The record of `id`.
    ///
    /// # Errors
    /// [`Fault`]; [`Fault::Malformed`] for one that cannot be read.
    async fn node(&self, id: &NodeId) -> Result<Option<Row>, Fault>;

    /// At most `limit` records after `after` in the order of ids, those of `status` where it is given.
    ///
    /// # Errors
    /// [`Fault`].
    async fn list(
        &self,
        after: &str,
        status: Option<Status>,
        limit: usize,
    ) -> Result<Vec<Listed>, Fault>;
}

/// The registry, to be decided with.
#[async_trait]
pub trait Nodes: Look {
    /// Whether the last that was asked of it was done.
    fn is_up(&self) -> bool;

    /// Why not, where there is more to be said of it.
    fn trouble(&self) -> Option<Fault> {
        None
    }

    /// Looks at what lies elsewhere than in the audit log's file, so that who asks is told how it is now.
    async fn look_again(&self) {}

    /// How often a record was looked for since the start.
    fn looked_up(&self) -> u64;

    /// The record of `id` as it stands, where `presented` is the hash of its secret. An unknown id costs
    /// what a wrong secret does.
    ///
    /// # Errors
    /// [`Fault`].
    async fn find(&self, id: &NodeId, presented: Sha256) -> Result<Found, Fault>;

    /// How many nodes have each status.
    ///
    /// # Errors
    /// [`Fault`].
    async fn count(&self) -> Result<Vec<(Status, u64)>, Fault>;

    /// How many nodes were quarantined after `since`.
    ///
    /// # Errors
    /// [`Fault`].
    async fn quarantines(&self, since: UnixTime) -> Result<u32, Fault>;

    /// Decides about a node, and does what was decided. It is durable, with its audit lines, when this
    /// returns `Ok`.
    ///
    /// # Errors
    /// [`Fault`], or what the decision failed with; then the record is as it was, as far as anybody can
    /// tell.
    async fn commit(&self, about: About, decide: Box<Decide>) -> Result<(), Fault>;

    /// Takes a store that has forgotten something for true from now on; `line` says so in the audit log.
    /// `false` where there is nothing to be said: a store that nobody shares cannot be behind and open.
    ///
    /// # Errors
    /// [`Fault`].
    async fn confirm(&self, line: Draft) -> Result<bool, Fault>;
}

impl dyn Nodes + '_ {
    /// [`Nodes::commit`], with what the decision says beside it.
    ///
    /// # Errors
    /// Those of [`Nodes::commit`].
    pub async fn decide<T, D>(&self, about: About, mut decide: D) -> Result<T, Fault>
    where
        T: Send + 'static,
        D: FnMut(&Standing) -> Result<(T, Commit), Fault> + Send + 'static,
    {
        let last = Arc::new(Mutex::new(None));
        let said = Arc::clone(&last);
        let run = move |standing: &Standing| {
            let (value, commit) = decide(standing)?;
            *said.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
            Ok(commit)
        };
        self.commit(about, Box::new(run)).await?;
        let value = last.lock().unwrap_or_else(PoisonError::into_inner).take();
        value.ok_or(Fault::Closed)
    }
}

#[async_trait]
impl Look for Registry {
    async fn node(&self, id: &NodeId) -> Result<Option<Row>, Fault> {
        let id = id.clone();
        self.read(move |reader| reader.node(&id)).await
    }

    async fn list(
        &self,
        after: &str,
        status: Option<Status>,
        limit: usize,
    ) -> Result<Vec<Listed>, Fault> {
        let after = after.to_owned();
        self.read(move |reader| reader.nodes(&after, status, limit)).await
    }
}

#[async_trait]
impl Nodes for Registry {
    fn is_up(&self) -> bool {
        Self::is_up(self)
    }

    fn looked_up(&self) -> u64 {
        Self::looked_up(self)
    }

    async fn find(&self, id: &NodeId, presented: Sha256) -> Result<Found, Fault> {
        Self::find(self, id, presented).await
    }

    async fn count(&self) -> Result<Vec<(Status, u64)>, Fault> {
        self.read(|reader| reader.count()).await
    }

    async fn quarantines(&self, since: UnixTime) -> Result<u32, Fault> {
        self.read(move |reader| reader.quarantines(since)).await
    }

    async fn commit(&self, about: About, mut decide: Box<Decide>) -> Result<(), Fault> {
        self.transact(move |batch| commit(batch, &about, &mut *decide)).await
    }

    async fn confirm(&self, _line: Draft) -> Result<bool, Fault> {
        Ok(false)
    }
}

/// Decides within a transaction, which nobody else's can come between.
fn commit(batch: &mut Batch<'_>, about: &About, decide: &mut Decide) -> Result<(), Fault> {
    let row = batch.node(&about.id)?;
    let removed = if row.is_some() { None } else { batch.removed(&about.id)? };
    let since = about.quarantines_since;
    let quarantines = since.map_or(Ok(0), |since| batch.quarantines(since))?;
    let standing = Standing { row, removed, quarantines };
    let Commit { becomes, quarantined, lines } = decide(&standing)?;
    match (becomes, &standing.row) {
        (Becomes::Same, _) => {}
        (Becomes::Node(node), Some(row)) => batch.update(&node, row.revision)?,
        (Becomes::Node(node), None) => batch.insert(&node)?,
        (Becomes::Nothing, Some(row)) => batch.remove(row)?,
        (Becomes::Nothing, None) => return Err(Fault::Conflict),
    }
    if let Some(at) = quarantined {
        batch.quarantined(&about.id, at)?;
    }
    lines.iter().try_for_each(|line| batch.append(line))
}

/// For a command that changes nothing, and has nothing else to do while it waits for the disk.
#[async_trait]
impl Look for Readers {
    async fn node(&self, id: &NodeId) -> Result<Option<Row>, Fault> {
        self.read(|reader| reader.node(id))
    }

    async fn list(
        &self,
        after: &str,
        status: Option<Status>,
        limit: usize,
    ) -> Result<Vec<Listed>, Fault> {
        self.read(|reader| reader.nodes(after, status, limit))
    }
}

#[cfg(test)]
mod tests;
