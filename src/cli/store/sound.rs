//! Whether what servers hold may be taken for all that was done.
//!
//! Servers that were started with older data, or wiped, still answer. What they have lost may be that a node
//! or a grant was revoked, and whoever copies them would have that undone for good. So a command does what
//! an edge does before it serves from them, by the same code: it says what this edge's file remembers to
//! have revoked, and nothing else, holds the ledger against the entry that it remembers, and looks whether all edges have
//! said theirs since the servers last changed hands.

use std::time::Duration;

use tokio::runtime::Handle;

use super::progress::Shown;
use crate::cli::site::CommandError;
use crate::policy::epoch::Epoch;
use crate::store::bindings::{SharedBindings, Unsettled};
use crate::store::epoch::SETTLE;
use crate::store::nodes::Nodes as _;
use crate::store::nodes::moved;
use crate::store::nodes::shared::SharedNodes;
use crate::store::records::Servers;
use crate::store::redis::Redis;
use crate::store::sqlite::Fault;

/// How long servers that have settled are waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often servers that do not answer are looked at again at the end.
const LOOKS: usize = 10;
/// The rest between two looks.
const REST: Duration = Duration::from_millis(200);

/// Servers of which all is known that was done there.
pub(super) struct Sound {
    redis: Redis,
    nodes: SharedNodes,
    tokens: SharedBindings,
    epoch: Epoch,
}

impl Sound {
    /// Looks at the nodes. One answer that is late is no reason to begin anew.
    async fn look(&self) -> Result<(), Fault> {
        let mut looked = self.nodes.look().await;
        for _ in 0..LOOKS {
            if looked != Err(Fault::Down) {
                break;
            }
            tokio::time::sleep(REST).await;
            looked = self.nodes.look().await;
        }
        looked
    }

    /// They still are: the same servers, of which nobody has found out anything meanwhile.
    ///
    /// # Errors
    /// What is otherwise; `what` was done is of no use.
    pub(super) async fn still(&self, what: &str) -> Result<(), CommandError> {
        let looked = self.look().await;
        let trouble = trouble(&self.nodes, &self.tokens).map(|Fails { words, .. }| words);
        if let Some(words) = trouble.or_else(|| looked.err().map(|fault| fault.to_string())) {
            return Err(CommandError::Other(format!("while {what}: {words}")));
        }
        self.redis.is_still(self.epoch).await.map_err(|_| {
            let text = format!("another server has taken over while {what}: run it again");
            CommandError::Other(text)
        })
    }
}

/// Waits until all is known that was done at servers.
///
/// # Errors
/// Why it is not, and what is to be done.
pub(super) async fn sound(shared: &Servers, shown: &mut Shown) -> Result<Sound, CommandError> {
    let Servers { redis, registry } = shared;
    let runtime = Handle::current();
    let nodes = SharedNodes::looking(redis.clone(), registry.clone(), &runtime)?;
    let tokens = SharedBindings::looking(redis.clone(), registry.clone(), &runtime);
    let mut why = None;
    let waited = async {
        loop {
            let before = redis.period();
            nodes.look_again().await;
            why = trouble(&nodes, &tokens);
            match (&why, before, redis.period()) {
                (Some(Fails { at_once: true, .. }), ..) => return None,
                (None, Some(before), Some(after)) if before.epoch == after.epoch => {
                    return Some(after.epoch);
                }
                _ => {}
            }
            shown.say("waiting until all is known that was revoked");
            tokio::time::sleep(REST).await;
        }
    };
    let epoch = tokio::time::timeout(SETTLE + PATIENCE, waited).await.unwrap_or_default();
    shown.end();
    match (epoch, why) {
        (Some(epoch), _) => Ok(Sound { redis: redis.clone(), nodes, tokens, epoch }),
        (None, Some(Fails { words, .. })) => Err(CommandError::Other(words)),
        (None, None) => Err(CommandError::Fault(Fault::Down)),
    }
}

/// Refuses servers that have lost changes to nodes: a copy would be taken for whole afterwards, and what
/// is copied there is from before what was lost, or may be.
///
/// # Errors
/// When they have.
pub(super) async fn not_behind(shared: &Servers) -> Result<(), CommandError> {
    if !moved::is_behind(&shared.redis, &shared.registry).await? {
        return Ok(());
    }
    Err(CommandError::Other(
        "the servers have lost changes to nodes, and this file may be from before them: look in the \
         audit log for what is missing, do it again, and run `holdfast node confirm`; or say --replace \
         to go by this file"
            .to_owned(),
    ))
}

/// Why they cannot be gone by.
struct Fails {
    words: String,
    /// Whether waiting is of no use.
    at_once: bool,
}

fn trouble(nodes: &SharedNodes, tokens: &SharedBindings) -> Option<Fails> {
    let waits = |words: String| Some(Fails { words, at_once: false });
    match (nodes.trouble(), tokens.unsettled()) {
        (Some(Fault::Behind), _) => Some(Fails {
            words: "the servers have lost changes to nodes: look in the audit log for what is missing, \
                    do it again, run `holdfast node confirm`, and then this again"
                .to_owned(),
            at_once: true,
        }),
        (Some(Fault::Unvouched), _) => waits(
            "the file of store.path remembers nothing of the servers, and no edge that does has looked \
             at them since they were started or took over: start one, or run `holdfast node confirm`, \
             and then this again"
                .to_owned(),
        ),
        (_, Some(Unsettled::Missing(edge))) => waits(format!(
            "edge {edge} has not said again what it has revoked since the servers have changed hands: \
             start it, or any other edge for two minutes, which then refuses the tokens from before for \
             good; and then run this again"
        )),
        (Some(fault), _) => waits(fault.to_string()),
        (None, Some(Unsettled::Early)) => waits(
            "the servers have only just changed hands, do not answer, or do not say all that was given up \
             as the file of store.path remembers it: run this again, with an edge of that file started \
             in between"
                .to_owned(),
        ),
        (None, None) => None,
    }
}

/// Waits until no edge serves from the servers: none has said so for as long as one that does takes to.
///
/// # Errors
/// How many do.
pub(super) async fn unserved(redis: &Redis, shown: &mut Shown) -> Result<(), CommandError> {
    let longest = moved::PRESENCE + Duration::from_secs(1);
    let gone = async {
        loop {
            let before = redis.period().ok_or(Fault::Down)?;
            // What the store forgot when it changed hands is said again by those that are there.
            let told = before.age >= moved::PRESENCE;
            if moved::present(redis, None).await? == 0 && told {
                redis.is_still(before.epoch).await?;
                return Ok::<_, Fault>(());
            }
            shown.say("waiting until no edge says that it serves");
            tokio::time::sleep(REST).await;
        }
    };
    let gone = tokio::time::timeout(longest, gone).await;
    shown.end();
    if let Ok(gone) = gone {
        return Ok(gone?);
    }
    let text = match moved::present(redis, None).await? {
        0 => "the servers of store.redis have only just changed hands: run this again".to_owned(),
        count => format!("{count} edges serve from the servers of store.redis: stop them"),
    };
    Err(CommandError::Other(text))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;
    use crate::cli::site;
    use crate::policy::audit::Kind as Line;
    use crate::store::bindings::tests::{Server, registry};

    const LINEAGE: &str = "{test:0}:nodes:lineage";

    /// A server, and what a command has of it.
    async fn servers(scratch: &TempDir) -> Option<(Server, Servers)> {
        let server = Server::start(scratch.path())?;
        let (redis, registry) = (server.connect().await, registry(scratch, "holdfast.db"));
        Some((server, Servers { redis, registry }))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_found_out_meanwhile_is_seen_at_the_end() {
        let scratch = tempfile::tempdir().unwrap();
        let Some((server, shared)) = servers(&scratch).await else { return };
        let mut shown = Shown::new();
        let said = |still: Result<(), CommandError>| still.unwrap_err().to_string();
        let servers = sound(&shared, &mut shown).await.unwrap();
        servers.still("it was tried").await.unwrap();
        // An edge finds out that something is missing.
        server.raw(&["HSET", LINEAGE, "doubted", "1"]);
        let text = said(servers.still("it was tried").await);
        assert!(text.contains("it was tried") && text.contains("lost changes to nodes"), "{text}");
        server.raw(&["HDEL", LINEAGE, "doubted"]);
        servers.still("it was tried").await.unwrap();
        // They lose what says which store they are.
        server.raw(&["DEL", "{test:0}:mark"]);
        // Or they are looked at by themselves before that.
        let text = said(servers.still("it was tried").await);
        assert!(text.contains("while it was tried"), "{text}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_copy_does_not_make_whole_what_has_lost_something() {
        let scratch = tempfile::tempdir().unwrap();
        let Some((server, shared)) = servers(&scratch).await else { return };
        not_behind(&shared).await.unwrap();
        // A copy that was broken off goes on.
        moved::hold(&shared.redis, site::now()).await.unwrap();
        not_behind(&shared).await.unwrap();
        let runtime = Handle::current();
        let begin = || {
            let (redis, registry) = (shared.redis.clone(), shared.registry.clone());
            SharedNodes::start(redis, registry, Duration::ZERO, &runtime).unwrap()
        };
        let confirmed =
            || site::draft(Line::StoreChange, None, json!({}), "r", site::now()).unwrap();
        begin().confirm(confirmed()).await.unwrap();
        not_behind(&shared).await.unwrap();
        // Another edge says so; and what an edge says weighs more than a copy that is under way.
        server.raw(&["HSET", LINEAGE, "doubted", "1"]);
        assert!(not_behind(&shared).await.is_err());
        begin().confirm(confirmed()).await.unwrap();
        moved::hold(&shared.redis, site::now()).await.unwrap();
        not_behind(&shared).await.unwrap();
        // The file remembers another entry than there is.
        server.raw(&["HSET", LINEAGE, "confirmed", "1"]);
        assert!(not_behind(&shared).await.is_err());
        let edge = begin();
        edge.look_again().await;
        assert_eq!(edge.trouble(), Some(Fault::Behind));
        let doubted = server.raw(&["HGET", LINEAGE, "doubted"]);
        assert!(!doubted.contains(moved::HELD), "{doubted}");
        // Servers in which nothing was ever done have nothing that could be taken for whole.
        server.raw(&["DEL", LINEAGE]);
        not_behind(&shared).await.unwrap();
    }
}
