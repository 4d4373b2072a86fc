//! Which servers are the masters now.

use std::sync::Arc;

use redis::{Pipeline, Value};

use super::keys::{Keys, TAGS, Tag};
use super::link::Link;
use super::settings::{Address, Settings, Topology};

/// The masters, and which tag is whose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Masters {
    /// In order, none twice.
    pub(super) addresses: Vec<Address>,
    /// For each tag an index into them.
    pub(super) places: Box<[usize; TAGS]>,
}

impl Masters {
    fn one(address: Address) -> Self {
        Self { addresses: vec![address], places: Box::new([0; TAGS]) }
    }
}

/// Finds them.
///
/// # Errors
/// In words, where nobody says who they are.
pub(super) async fn find(
    settings: &Settings,
    keys: &Keys,
    known: &[Arc<super::server::Server>],
) -> Result<Masters, String> {
    match &settings.topology {
        Topology::Standalone(nodes) => standalone(settings, nodes, known).await,
        Topology::Sentinel { sentinels, master, login } => {
            let mut last = "no sentinel is configured".to_owned();
            for sentinel in sentinels {
                let asked = async {
                    let link = Link::open(settings, sentinel, login);
                    let link = link.await.map_err(|error| error.to_string())?;
                    let mut pipeline = Pipeline::new();
                    pipeline.cmd("SENTINEL").arg("get-master-addr-by-name").arg(master);
                    let answers = link.send(&pipeline, settings.timeout).await;
                    let answers = answers.ok_or(format!("{sentinel}: no answer"))?;
                    address(answers.first(), None)
                        .ok_or(format!("{sentinel}: knows no master `{master}`"))
                };
                match asked.await {
                    Ok(address) => return Ok(Masters::one(address)),
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
        Topology::Cluster(nodes) => cluster(settings, keys, nodes, known).await,
    }
}

/// The first that answers as a master. One that is in use stays.
async fn standalone(
    settings: &Settings,
    nodes: &[Address],
    known: &[Arc<super::server::Server>],
) -> Result<Masters, String> {
    if let Some(server) = known.iter().find(|server| server.is_open()) {
        return Ok(Masters::one(server.address.clone()));
    }
    if let [one] = nodes {
        return Ok(Masters::one(one.clone()));
    }
    let mut last = "no server is configured".to_owned();
    for node in nodes {
        let asked = async {
            let link = Link::open(settings, node, &settings.login);
            let link = link.await.map_err(|error| error.to_string())?;
            let mut pipeline = Pipeline::new();
            pipeline.cmd("INFO").arg("replication");
            match link.send(&pipeline, settings.timeout).await.as_deref() {
                Some([Value::BulkString(text)]) => {
                    let text = String::from_utf8_lossy(text);
                    let master = text.lines().any(|line| line.trim() == "role:master");
                    if master { Ok(()) } else { Err(format!("{node}: is a replica")) }
                }
                Some(_) | None => Err(format!("{node}: does not say whether it is a master")),
            }
        };
        match asked.await {
            Ok(()) => return Ok(Masters::one(node.clone())),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn cluster(
    settings: &Settings,
    keys: &Keys,
    nodes: &[Address],
    known: &[Arc<super::server::Server>],
) -> Result<Masters, String> {
    let mut pipeline = Pipeline::new();
    pipeline.cmd("CLUSTER").arg("SLOTS");
    let mut last = "no node is configured".to_owned();
    // Those in use know best; a node that is cut off says so only after a while.
    for server in known.iter().filter(|server| server.is_open()) {
        if let Ok(answers) = server.send(&pipeline).await {
            match slots(answers.first(), &server.address, keys) {
                Ok(masters) => return Ok(masters),
                Err(error) => last = error,
            }
        }
    }
    for node in nodes {
        let asked = async {
            let link = Link::open(settings, node, &settings.login);
            let link = link.await.map_err(|error| error.to_string())?;
            let answers = link.send(&pipeline, settings.timeout).await;
            let answers = answers.ok_or(format!("{node}: no answer"))?;
            slots(answers.first(), node, keys)
        };
        match asked.await {
            Ok(masters) => return Ok(masters),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Reads `CLUSTER SLOTS`: a list of first slot, last slot, master, replicas.
fn slots(answer: Option<&Value>, asked: &Address, keys: &Keys) -> Result<Masters, String> {
    let Some(Value::Array(ranges)) = answer else {
        return Err(match answer {
            Some(Value::ServerError(error)) => format!("{asked}: CLUSTER SLOTS: {}", error.code()),
            Some(_) | None => format!("{asked}: CLUSTER SLOTS: no answer that can be read"),
        });
    };
    let mut owned = Vec::new();
    for range in ranges {
        let Value::Array(range) = range else { continue };
        let [Value::Int(first), Value::Int(last), master, ..] = range.as_slice() else { continue };
        let master = address(Some(master), Some(asked));
        owned.push((*first, *last, master.ok_or(format!("{asked}: a slot without a master"))?));
    }
    let mut addresses: Vec<_> = owned.iter().map(|(_, _, master)| master.clone()).collect();
    addresses.sort();
    addresses.dedup();
    let mut places = Box::new([0; TAGS]);
    for (tag, place) in Tag::all().zip(places.iter_mut()) {
        let slot = i64::from(keys.slot(tag));
        let owner = owned.iter().find(|(first, last, _)| (*first..=*last).contains(&slot));
        let (_, _, owner) = owner.ok_or(format!("{asked}: slot {slot} is nobody's"))?;
        *place = addresses.iter().position(|address| address == owner).unwrap_or(usize::MAX);
    }
    Ok(Masters { addresses, places })
}

/// `[host, port, …]`; an empty host is the one that was asked.
fn address(value: Option<&Value>, asked: Option<&Address>) -> Option<Address> {
    let Some(Value::Array(items)) = value else { return None };
    let text = |value: &Value| match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    };
    let [host, port, ..] = items.as_slice() else { return None };
    let host = text(host).filter(|host| !host.is_empty() && host != "?");
    let host = host.or_else(|| asked.map(|asked| asked.host.clone()))?;
    let port = match port {
        Value::Int(port) => u16::try_from(*port).ok()?,
        other => text(other)?.parse().ok()?,
    };
    Some(Address { host, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(host: &str, port: i64) -> Value {
        Value::Array(vec![
            Value::BulkString(host.as_bytes().to_vec()),
            Value::Int(port),
            Value::BulkString(b"id".to_vec()),
        ])
    }

    fn range(first: i64, last: i64, master: Value) -> Value {
        Value::Array(vec![Value::Int(first), Value::Int(last), master, node("r", 1)])
    }

    #[test]
    fn every_tag_has_one_master() {
        let asked = Address { host: "asked".to_owned(), port: 7000 };
        let keys = Keys::new("holdfast");
        let answer =
            Value::Array(vec![range(0, 8000, node("", 7000)), range(8001, 16383, node("b", 7001))]);
        let masters = slots(Some(&answer), &asked, &keys).unwrap();
        assert_eq!(masters.addresses.len(), 2);
        assert_eq!(masters.addresses[0], asked);
        for tag in Tag::all() {
            let owner = usize::from(keys.slot(tag) > 8000);
            assert_eq!(masters.places[tag.index()], owner);
        }
        let gap = Value::Array(vec![range(0, 8000, node("a", 7000))]);
        assert!(slots(Some(&gap), &asked, &keys).is_err());
        assert!(slots(None, &asked, &keys).is_err());
    }
}
