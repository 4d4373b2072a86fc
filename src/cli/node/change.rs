//! Changes, each with its audit line in one transaction.

use std::io::Write;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{Add, One, Site, show, unknown};
use crate::cli::capsule::files::create_private;
use crate::cli::site::{self, CommandError, now, secret};
use crate::config::Config;
use crate::policy::audit::Kind;
use crate::policy::capsule::change::Change;
use crate::policy::capsule::node::{Expectations, Network, Node};
use crate::policy::digest::{Jkt, X5tS256};
use crate::policy::time::UnixTime;
use crate::store::networks::Networks;
use crate::store::nodes::{About, Becomes, Commit, Standing};
use crate::store::sqlite::Fault;

/// Enrols a node.
pub(super) fn add(add: &Add, out: &mut dyn Write) -> Result<(), CommandError> {
    let one = &add.one;
    let config = site::load(&one.site.config)?;
    let nodes = site::nodes(&config, &one.site.config)?;
    let (secret, hash) = secret()?;
    let now = now();
    let expected = Expectations {
        networks: add.expect_network.iter().map(IpNet::trunc).collect(),
        asns: add.expect_asn.clone(),
        regions: add.expect_region.iter().map(|it| it.to_ascii_uppercase()).collect(),
        join_before: add.join_within.map(|within| now.plus(within)),
    };
    warn_of_factors(&config, &expected)?;
    let mut node = Node::new(one.node.clone(), hash, expected, now);
    node.jkt = add.sender.jkt.map(Jkt);
    node.x5t = add.sender.x5t.map(X5tS256);
    // Before the node is there: a secret that cannot be written down is nobody's.
    if let Some(path) = &add.secret_out {
        let written = create_private(path, secret.as_bytes());
        written.map_err(|error| CommandError::Other(error.to_string()))?;
    }
    let (new, reason) = (node, one.reason.clone());
    let added = nodes.ask(|nodes| {
        nodes.decide(About::node(&one.node), move |standing| enrol(standing, &new, &reason, now))
    })?;
    let node = added?;
    let shown = if add.secret_out.is_some() { None } else { Some(secret.as_str()) };
    tell(one, "add", &node, shown, out)
}

/// The decision to enrol `new`.
fn enrol(
    standing: &Standing,
    new: &Node,
    reason: &str,
    now: UnixTime,
) -> Result<(Result<Node, CommandError>, Commit), Fault> {
    let mut node = new.clone();
    if standing.row.is_some() {
        let error = CommandError::Other(format!("there is a node {} already", node.id));
        return Ok((Err(error), Commit::default()));
    }
    // What was derived for one that had its name is not derived for it.
    node.key_version = standing.removed.map_or(1, |version| version.saturating_add(1));
    node.oldest_key_version = node.key_version;
    let data = json!({ "action": "add", "after": node.without_secret() });
    Ok(match site::draft(Kind::NodeChange, Some(node.id.as_str()), data, reason, now) {
        Ok(line) => {
            let becomes = Becomes::Node(Box::new(node.clone()));
            (Ok(node), Commit { becomes, quarantined: None, lines: vec![line] })
        }
        Err(error) => (Err(error), Commit::default()),
    })
}

/// What is expected must be something that can be known.
fn warn_of_factors(config: &Config, expected: &Expectations) -> Result<(), CommandError> {
    let Some(capsules) = &config.capsules else { return Ok(()) };
    let missing = |key: &str| {
        CommandError::Other(format!(
            "nothing can be expected of it without capsules.networks.{key}"
        ))
    };
    if !expected.asns.is_empty() && capsules.asn_database.is_none() {
        return Err(missing("asnDatabase"));
    }
    if !expected.regions.is_empty() && capsules.region_database.is_none() {
        return Err(missing("regionDatabase"));
    }
    Ok(())
}

/// Makes a change.
pub(super) fn make(one: &One, change: &Change, out: &mut dyn Write) -> Result<(), CommandError> {
    let config = site::load(&one.site.config)?;
    let asked = change.clone();
    let node = apply(one, &config, !change.loosens(), move |_| Ok(asked.clone()))?;
    tell(one, name(change).as_deref().unwrap_or_default(), &node, None, out)
}

/// Makes another secret.
pub(super) fn rotate_secret(one: &One, out: &mut dyn Write) -> Result<(), CommandError> {
    let config = site::load(&one.site.config)?;
    let (text, secret) = secret()?;
    let node = apply(one, &config, true, move |_| Ok(Change::RotateSecret { secret }))?;
    tell(one, "rotate-secret", &node, Some(&text), out)
}

/// Takes a network for the node's.
pub(super) fn accept_network(
    one: &One,
    address: Option<IpAddr>,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let config = site::load(&one.site.config)?;
    let capsules = config.capsules.as_ref();
    let networks = capsules.map_or_else(
        || Ok(Networks::default()),
        |it| Networks::open(it.asn_database.as_deref(), it.region_database.as_deref()),
    );
    let networks = networks.map_err(CommandError::Other)?;
    let node = apply(one, &config, false, move |node| {
        // Whose address a refused request had only an operator can know.
        let seen = || {
            let refused = node.quarantine.as_ref().and_then(|it| it.network.as_ref());
            let words = |what: &str, it: &Network| format!("; it was {what} {}", show::network(it));
            let refused = refused.map(|it| words("quarantined from", it)).unwrap_or_default();
            let last = node.last.as_ref().map(|last| words("last granted from", &last.network));
            format!("say --address{refused}{}", last.unwrap_or_default())
        };
        let address = address.ok_or_else(|| CommandError::Other(seen()))?;
        let network: Network = networks.locate(address);
        Ok(Change::AcceptNetwork { network })
    })?;
    tell(one, "accept-network", &node, None, out)
}

/// Takes a shared registry that has lost something for true.
pub(super) fn confirm(site: &Site, reason: &str, out: &mut dyn Write) -> Result<(), CommandError> {
    let config = site::load(&site.config)?;
    let nodes = site::nodes(&config, &site.config)?;
    let line = site::draft(Kind::NodeChange, None, json!({ "action": "confirm" }), reason, now())?;
    if !nodes.ask(|nodes| nodes.confirm(line))? {
        let text = "there is nothing to confirm: the registry is a file of this machine's own";
        return Err(CommandError::Other(text.to_owned()));
    }
    let count: u64 = nodes.ask(|nodes| nodes.count())?.iter().map(|(_, count)| count).sum();
    if site.json {
        writeln!(out, "{:#}", json!({ "action": "confirm", "nodes": count }))?;
    } else {
        let nodes = if count == 1 { "node is" } else { "nodes are" };
        writeln!(out, "confirmed: {count} {nodes} served from the shared store as it is")?;
    }
    Ok(())
}

/// Takes a node out.
pub(super) fn remove(one: &One, out: &mut dyn Write) -> Result<(), CommandError> {
    let config = site::load(&one.site.config)?;
    let (reason, now) = (one.reason.clone(), now());
    let node = alter(one, &config, true, move |node| {
        let data = json!({ "action": "remove", "before": node.without_secret() });
        let line = site::draft(Kind::NodeChange, Some(node.id.as_str()), data, &reason, now)?;
        let commit = Commit { becomes: Becomes::Nothing, quarantined: None, lines: vec![line] };
        Ok((node.clone(), commit))
    })?;
    tell(one, "remove", &node, None, out)
}

/// Makes the change that `change` says for the record as it stands. `even_if_behind`: [`About`].
fn apply(
    one: &One,
    config: &Config,
    even_if_behind: bool,
    mut change: impl FnMut(&Node) -> Result<Change, CommandError> + Send + 'static,
) -> Result<Node, CommandError> {
    let (reason, now) = (one.reason.clone(), now());
    alter(one, config, even_if_behind, move |node| changed(node, &change(node)?, &reason, now))
}

/// Does what `alter` says about the record as it stands; the record that it says.
fn alter(
    one: &One,
    config: &Config,
    even_if_behind: bool,
    mut alter: impl FnMut(&Node) -> Result<(Node, Commit), CommandError> + Send + 'static,
) -> Result<Node, CommandError> {
    let nodes = site::nodes(config, &one.site.config)?;
    let id = one.node.clone();
    let decide = move |standing: &Standing| {
        let altered = standing.node().ok_or_else(|| unknown(&id)).and_then(&mut alter);
        Ok(match altered {
            Ok((node, commit)) => (Ok(node), commit),
            Err(error) => (Err(error), Commit::default()),
        })
    };
    let about = About { even_if_behind, ..About::node(&one.node) };
    nodes.ask(|nodes| nodes.decide(about, decide))?
}

fn changed(
    node: &Node,
    change: &Change,
    reason: &str,
    now: UnixTime,
) -> Result<(Node, Commit), CommandError> {
    let after = change.apply(node, now).map_err(|why| CommandError::Other(why.to_string()))?;
    let mut data = json!(change);
    if let Some(data) = data.as_object_mut() {
        data.insert("before".into(), json!(node.without_secret()));
        data.insert("after".into(), json!(after.without_secret()));
    }
    let line = site::draft(Kind::NodeChange, Some(node.id.as_str()), data, reason, now)?;
    let becomes = Becomes::Node(Box::new(after.clone()));
    Ok((after, Commit { becomes, quarantined: None, lines: vec![line] }))
}

fn name(change: &Change) -> Option<String> {
    json!(change).get("action").and_then(Value::as_str).map(str::to_owned)
}

/// What was done.
fn tell(
    one: &One,
    action: &str,
    node: &Node,
    secret: Option<&str>,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    if one.site.json {
        let mut told = json!({ "action": action, "node": node.without_secret() });
        if let (Some(told), Some(secret)) = (told.as_object_mut(), secret) {
            told.insert("secret".into(), secret.into());
        }
        writeln!(out, "{told:#}")?;
        return Ok(());
    }
    writeln!(out, "{}: {action}: {}", node.id, show::summary(node))?;
    if let Some(secret) = secret {
        writeln!(out, "secret: {secret}\nIt is shown this once: only its SHA-256 is kept.")?;
    }
    Ok(())
}
