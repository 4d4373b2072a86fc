//! Nodes, shown.

use std::io::Write;

use serde_json::json;

use super::{Site, unknown};
use crate::cli::site::{self, CommandError};
use crate::policy::capsule::node::{Network, Node, NodeId, State, Status};
use crate::policy::time::UnixTime;
use crate::store::nodes::Listed;

/// What an active node from a backup is called until it is confirmed.
const UNCONFIRMED: &str = "unconfirmed";
/// Nodes that are read at a time.
const PAGE: usize = 1000;

/// Which nodes are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Of(Status),
    Unconfirmed,
}

impl Wanted {
    /// What a word names.
    ///
    /// # Errors
    /// The words that there are.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text == UNCONFIRMED {
            return Ok(Self::Unconfirmed);
        }
        let names = || Status::ALL.map(Status::name).join(", ");
        let none = || format!("one of {}, {UNCONFIRMED}", names());
        Status::from_name(text).map(Self::Of).ok_or_else(none)
    }
}

fn is_unconfirmed(node: &Node) -> bool {
    node.restored.is_some() && node.status == Status::Active
}

/// Lists nodes in the order of their ids.
pub(super) fn list(
    site: &Site,
    wanted: Option<Wanted>,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let status = wanted.map(|wanted| match wanted {
        Wanted::Of(status) => status,
        Wanted::Unconfirmed => Status::Active,
    });
    let nodes = site::look(&site::load(&site.config)?, &site.config)?;
    let mut after = String::new();
    let mut count = 0;
    if !site.json {
        writeln!(out, "{:<32} {:<12} {:<9} {:<24} NETWORK", "NODE", "STATUS", "KEY", "CAPSULE")?;
    }
    loop {
        let page = nodes.ask(|nodes| nodes.list(&after, status, PAGE))?;
        let Some((last, _)) = page.last() else { break };
        after.clone_from(last);
        for listed in &page {
            let held = listed.1.as_ref().is_ok_and(is_unconfirmed);
            if wanted != Some(Wanted::Unconfirmed) || held {
                count += 1;
                line(site, listed, out)?;
            }
        }
    }
    if !site.json {
        writeln!(out, "{count} {}", if count == 1 { "node" } else { "nodes" })?;
    }
    Ok(())
}

/// One node a line: a table's, or a JSON document.
fn line(site: &Site, (id, node): &Listed, out: &mut dyn Write) -> Result<(), CommandError> {
    match (node, site.json) {
        (Ok(node), true) => writeln!(out, "{}", json!(node.without_secret()))?,
        (Err(fault), true) => {
            writeln!(out, "{}", json!({ "id": id, "error": fault.to_string() }))?;
        }
        (Ok(node), false) => {
            let key = format!("n{}", node.key_version);
            let issued = node.issued.as_ref().map(|issued| time(issued.at)).unwrap_or_default();
            let network = node.baseline.as_ref().map(|it| network(&it.network)).unwrap_or_default();
            let status = if is_unconfirmed(node) { UNCONFIRMED } else { node.status.name() };
            let row = format!("{id:<32} {status:<12} {key:<9} {issued:<24} {network}");
            writeln!(out, "{}", row.trim_end())?;
        }
        (Err(fault), false) => writeln!(out, "{id:<32} {fault}")?,
    }
    Ok(())
}

/// Everything that is known of a node.
pub(super) fn show(site: &Site, id: &NodeId, out: &mut dyn Write) -> Result<(), CommandError> {
    let nodes = site::look(&site::load(&site.config)?, &site.config)?;
    let node = nodes.ask(|nodes| nodes.node(id))?.ok_or_else(|| unknown(id))?.node;
    if site.json {
        writeln!(out, "{:#}", json!(node.without_secret()))?;
        return Ok(());
    }
    let none = || "none".to_owned();
    let line = |out: &mut dyn Write, name: &str, value: String| {
        writeln!(out, "{:<16} {value}", format!("{name}:"))
    };
    line(out, "node", node.id.to_string())?;
    line(out, "status", node.status.name().to_owned())?;
    if let Some(held) = &node.quarantine {
        let by = held.decision.as_deref().map_or_else(
            || "by an operator".to_owned(),
            |id| format!("risk {}, by decision {id}", held.score),
        );
        let from = held.network.as_ref().map(network).unwrap_or_default();
        line(out, "quarantined", format!("{} {by} {from}", time(held.at)).trim_end().to_owned())?;
    }
    if let Some(at) = node.restored {
        line(out, "restored", format!("{}, not confirmed since", time(at)))?;
    }
    line(out, "enrolled", time(node.enrolled))?;
    let fingerprint = node.fingerprint.map(|hash| format!("SHA-256 {hash}"));
    line(out, "fingerprint", fingerprint.unwrap_or_else(none))?;
    line(out, "jkt", node.jkt.map(|jkt| jkt.to_string()).unwrap_or_else(none))?;
    line(out, "x5t#S256", node.x5t.map(|x5t| x5t.to_string()).unwrap_or_else(none))?;
    let (oldest, newest) = (node.oldest_key_version, node.key_version);
    line(out, "key versions", format!("n{oldest} to n{newest}"))?;
    let issued = node.issued.as_ref().map(|it| {
        format!("{} at {}, until {}, {}", it.capsule, time(it.at), time(it.expires), it.key_version)
    });
    line(out, "last capsule", issued.unwrap_or_else(none))?;
    let baseline = node
        .baseline
        .as_ref()
        .map(|it| format!("{}, since {}", network(&it.network), time(it.confirmed)));
    line(out, "network", baseline.unwrap_or_else(none))?;
    if let Some(it) = &node.candidate {
        let (network, since) = (network(&it.network), time(it.since));
        line(out, "candidate", format!("{network}, {} contacts since {since}", it.contacts))?;
    }
    let last = node.last.as_ref().map(|it| format!("{} at {}", network(&it.network), time(it.at)));
    line(out, "last seen", last.unwrap_or_else(none))?;
    let heard = node.heard.as_ref().map(|it| {
        let state = if it.state == State::Running { "running" } else { "stopping" };
        format!("{state} at {}, boot {}, number {}", time(it.at), it.boot, it.seq)
    });
    line(out, "telemetry", heard.unwrap_or_else(none))?;
    let counters = node.counters;
    line(out, "granted", counters.granted.to_string())?;
    line(out, "refused", counters.refused.to_string())?;
    Ok(())
}

/// A node in a few words.
pub(super) fn summary(node: &Node) -> String {
    let joined = if node.has_joined() { "" } else { ", has not joined" };
    let held = if node.restored.is_some() { ", not confirmed since it was restored" } else { "" };
    format!("{}, key version n{}{joined}{held}", node.status.name(), node.key_version)
}

pub(super) fn network(network: &Network) -> String {
    let mut text = network.address.to_string();
    if let Some(asn) = network.asn {
        text.push_str(&format!(" AS{asn}"));
    }
    if let Some(region) = &network.region {
        text.push_str(&format!(" {region}"));
    }
    text
}

fn time(time: UnixTime) -> String {
    time.rfc3339().to_string()
}
