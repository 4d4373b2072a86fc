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
/// The rest between two looks.
const REST: Duration = Duration::from_millis(200);

/// Waits until all is known that was done at servers; the epoch in which it is.
///
/// # Errors
/// Why it is not, and what is to be done.
pub(super) async fn sound(shared: &Servers, shown: &mut Shown) -> Result<Epoch, CommandError> {
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
    epoch.ok_or_else(|| match why {
        Some(Fails { words, .. }) => CommandError::Other(words),
        None => CommandError::Fault(Fault::Down),
    })
}

/// The servers are still those of `epoch`.
///
/// # Errors
/// Another one has taken over: `what` was done is of both.
pub(super) async fn same(redis: &Redis, epoch: Epoch, what: &str) -> Result<(), CommandError> {
    redis.is_still(epoch).await.map_err(|_| {
        CommandError::Other(format!("another server has taken over while {what}: run it again"))
    })
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
                let same = redis.period().is_some_and(|after| after.epoch == before.epoch);
                if same {
                    return Ok::<_, Fault>(());
                }
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
