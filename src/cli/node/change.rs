//! Changes, each with its audit line in one transaction.

use std::io::Write;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{Add, One, show, unknown};
use crate::cli::capsule::files::create_private;
use crate::cli::site::{self, CommandError, now, secret};
use crate::config::Config;
use crate::policy::audit::Kind;
use crate::policy::capsule::change::Change;
use crate::policy::capsule::node::{Expectations, Network, Node};
use crate::policy::digest::{Jkt, X5tS256};
use crate::policy::time::UnixTime;
use crate::store::networks::Networks;
use crate::store::sqlite::Fault;

/// Enrols a node.
pub(super) fn add(add: &Add, out: &mut dyn Write) -> Result<(), CommandError> {
    let one = &add.one;
    let config = site::load(&one.site.config)?;
    let mut database = site::open(&config, &one.site.config)?;
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
    // What was derived for one that had its name is not derived for it.
    let before = database.transact(|batch| batch.removed(&node.id))?;
    node.key_version = before.map_or(1, |version| version.saturating_add(1));
    node.oldest_key_version = node.key_version;
    let data = json!({ "action": "add", "after": node.without_secret() });
    let id = node.id.as_str();
    let draft = site::draft(Kind::NodeChange, Some(id), data, &one.reason, now)?;
    // Before the node is there: a secret that cannot be written down is nobody's.
    if let Some(path) = &add.secret_out {
        let written = create_private(path, secret.as_bytes());
        written.map_err(|error| CommandError::Other(error.to_string()))?;
    }
    let added = database.transact(|batch| {
        batch.insert(&node)?;
        batch.append(&draft)
    });
    match added {
        Ok(()) => {}
        Err(Fault::Conflict) => {
            return Err(CommandError::Other(format!("there is a node {} already", node.id)));
        }
        Err(fault) => return Err(fault.into()),
    }
    let shown = if add.secret_out.is_some() { None } else { Some(secret.as_str()) };
    tell(one, "add", &node, shown, out)
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
    let node = apply(one, &config, |_| Ok(change.clone()))?;
    tell(one, name(change).as_deref().unwrap_or_default(), &node, None, out)
}

/// Makes another secret.
pub(super) fn rotate_secret(one: &One, out: &mut dyn Write) -> Result<(), CommandError> {
    let config = site::load(&one.site.config)?;
    let (text, secret) = secret()?;
    let node = apply(one, &config, |_| Ok(Change::RotateSecret { secret }))?;
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
    let node = apply(one, &config, |node| {
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

/// Takes a node out.
pub(super) fn remove(one: &One, out: &mut dyn Write) -> Result<(), CommandError> {
    let config = site::load(&one.site.config)?;
    let mut database = site::open(&config, &one.site.config)?;
    let now = now();
    let removed = database.transact(|batch| {
        let Some(row) = batch.node(&one.node)? else { return Ok(None) };
        let data = json!({ "action": "remove", "before": row.node.without_secret() });
        let id = Some(one.node.as_str());
        let Ok(draft) = site::draft(Kind::NodeChange, id, data, &one.reason, now) else {
            return Err(Fault::Failed("no randomness".to_owned()));
        };
        batch.remove(&row)?;
        batch.append(&draft)?;
        Ok(Some(row.node))
    })?;
    match removed {
        Some(node) => tell(one, "remove", &node, None, out),
        None => Err(unknown(&one.node)),
    }
}

/// Makes the change that `change` says for the record as it stands.
fn apply(
    one: &One,
    config: &Config,
    change: impl FnOnce(&Node) -> Result<Change, CommandError>,
) -> Result<Node, CommandError> {
    let mut database = site::open(config, &one.site.config)?;
    let now = now();
    let mut refused = None;
    let changed = database.transact(|batch| {
        let Some(row) = batch.node(&one.node)? else { return Ok(None) };
        match changed(one, &row.node, change, now) {
            Ok((after, draft)) => {
                batch.update(&after, row.revision)?;
                batch.append(&draft)?;
                Ok(Some(after))
            }
            Err(error) => {
                refused = Some(error);
                Ok(None)
            }
        }
    })?;
    match (changed, refused) {
        (Some(node), _) => Ok(node),
        (None, Some(error)) => Err(error),
        (None, None) => Err(unknown(&one.node)),
    }
}

fn changed(
    one: &One,
    node: &Node,
    change: impl FnOnce(&Node) -> Result<Change, CommandError>,
    now: UnixTime,
) -> Result<(Node, crate::policy::audit::Draft), CommandError> {
    let change = change(node)?;
    let after = change.apply(node, now).map_err(|why| CommandError::Other(why.to_string()))?;
    let mut data = json!(change);
    if let Some(data) = data.as_object_mut() {
        data.insert("before".into(), json!(node.without_secret()));
        data.insert("after".into(), json!(after.without_secret()));
    }
    let id = Some(one.node.as_str());
    Ok((after, site::draft(Kind::NodeChange, id, data, &one.reason, now)?))
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
