//! A node that asks for its capsule: enrolled anew by each run, moved about, quarantined, released.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Method};
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::cases::{Got, Senders, field};
use super::table::Row;
use super::{QuickstartError, now};
use crate::cli::client::http::Client;
use crate::cli::client::key::SigningKey;
use crate::cli::site::draft;
use crate::policy::audit::Kind;
use crate::policy::capsule::change::Change;
use crate::policy::capsule::node::{Expectations, Node, NodeId};
use crate::policy::digest::Sha256;
use crate::store::networks::sample::{Entry, database};
use crate::store::sqlite::Database;

/// The node.
pub(super) const NODE: &str = "node-1";
/// Its secret.
pub(super) const SECRET: &str = "node-secret";
/// Its DPoP key.
pub(super) const KEY: &str = "node-key.pem";
/// The store's file.
pub(super) const STORE: &str = "holdfast.db";
/// The directory of the capsules' keys.
pub(super) const KEYS: &str = "keys";
/// The database of networks.
pub(super) const NETWORKS: &str = "networks.mmdb";
/// What identifies the machine.
pub(super) const FINGERPRINT: &str = "quickstart-machine";
/// Its software.
pub(super) const VERSION: &str = "1.0.0";
/// Its first boot.
const BOOT: &str = "boot-1";

/// The addresses that it asks from: at home, near by, and far away.
pub(super) const ADDRESSES: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)),
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3)),
];

/// What is known of the addresses: the first two are one region and system, the third another.
pub(super) fn networks() -> Vec<u8> {
    let entry = |last: u8, asn: u32, region: (&'static str, &'static str)| Entry {
        network: Ipv4Net::from(Ipv4Addr::new(127, 0, 0, last)),
        asn: Some(asn),
        region: Some(region),
    };
    const BUILT: u64 = 1_795_000_000;
    database(
        &[
            entry(1, 64_500, ("SE", "M")),
            entry(2, 64_500, ("SE", "M")),
            entry(3, 64_501, ("NO", "03")),
        ],
        BUILT,
    )
}

/// Enrols the node in the place of the one of an earlier run.
pub(super) fn enrol(store: &Path, secret: &[u8]) -> Result<(), QuickstartError> {
    let id = node_id()?;
    let now = now();
    let node = Node::new(id.clone(), Sha256::of(secret), Expectations::default(), now);
    let data = json!({ "action": "add", "after": node.without_secret() });
    let line = draft(Kind::NodeChange, Some(NODE), data, "holdfast quickstart", now);
    let line = line.map_err(other)?;
    let mut database = Database::open(store).map_err(other)?;
    let enrolled = database.transact(|batch| {
        if let Some(row) = batch.node(&id)? {
            batch.remove(&row)?;
        }
        batch.insert(&node)?;
        batch.append(&line)
    });
    enrolled.map_err(other)
}

/// Releases the node, as `holdfast node release` does.
fn release(store: &Path) -> Result<(), QuickstartError> {
    let id = node_id()?;
    let now = now();
    let data = json!({ "action": "release" });
    let line = draft(Kind::NodeChange, Some(NODE), data, "holdfast quickstart", now);
    let line = line.map_err(other)?;
    let mut database = Database::open(store).map_err(other)?;
    let released = database.transact(|batch| {
        let Some(row) = batch.node(&id)? else { return Ok(()) };
        if let Ok(after) = Change::Release.apply(&row.node, now) {
            batch.update(&after, row.revision)?;
            batch.append(&line)?;
        }
        Ok(())
    });
    released.map_err(other)
}

fn node_id() -> Result<NodeId, QuickstartError> {
    NodeId::parse(NODE).map_err(other)
}

fn other(error: impl std::fmt::Display) -> QuickstartError {
    QuickstartError::Node(error.to_string())
}

/// Who asks for capsules.
pub(super) struct NodeSenders {
    /// Clients by address.
    pub(super) clients: [Client; 3],
    /// Its key.
    pub(super) key: SigningKey,
    /// Its secret's text.
    pub(super) secret: Zeroizing<Vec<u8>>,
    /// The store, to release the node.
    pub(super) store: std::path::PathBuf,
}

/// One request.
#[derive(Clone, Copy)]
struct Asked<'a> {
    node: &'a str,
    secret: &'a str,
    fingerprint: &'a str,
    boot: &'a str,
    /// Which address.
    from: usize,
}

/// Sends every case and gives a row for each.
pub(super) async fn run(
    senders: &Senders,
    node: &NodeSenders,
) -> Result<Vec<Row>, QuickstartError> {
    let secret = String::from_utf8_lossy(&node.secret).into_owned();
    let right =
        Asked { node: NODE, secret: &secret, fingerprint: FINGERPRINT, boot: BOOT, from: 0 };
    let mut case = Cases { senders, node, rows: Vec::new(), nonce: None };
    let failed = ("401 AUTHENTICATION_FAILED", "wrong_secret");
    let violation = "403 NETWORK_POLICY_VIOLATION";
    case.add("a capsule, with a proof", right, ("200 risk 0", "granted")).await?;
    let wrong = Asked { secret: "wrong", ..right };
    let first = case.add("wrong secret", wrong, failed).await?;
    let unknown = Asked { node: "node-2", ..wrong };
    let second = case.add("unknown node", unknown, (failed.0, "unknown_node")).await?;
    case.same("  told from it by nobody", &first, &second);
    let elsewhere = Asked { fingerprint: "another-machine", ..right };
    let refused = ("403 FINGERPRINT_MISMATCH", "fingerprint_differs");
    case.add("other fingerprint", elsewhere, refused).await?;
    let moved = Asked { from: 1, ..right };
    case.add("another address", moved, ("200 risk 20", "granted")).await?;
    let far = Asked { from: 2, ..right };
    let quarantined = format!("{violation} risk 110");
    case.add("another network and region", far, (&quarantined, "quarantined")).await?;
    case.add("  then from home", right, ("403 NODE_QUARANTINED", "quarantined")).await?;
    release(&node.store)?;
    case.add("released", right, ("200 risk 0", "granted")).await?;
    case.telemetry(right, "running").await?;
    let abrupt = Asked { boot: "boot-2", ..right };
    let quarantined = format!("{violation} risk 80");
    case.add("it stopped without a word", abrupt, (&quarantined, "quarantined")).await?;
    // What is to be tried by hand begins well.
    release(&node.store)?;
    Ok(case.rows)
}

struct Cases<'a> {
    senders: &'a Senders,
    node: &'a NodeSenders,
    rows: Vec<Row>,
    nonce: Option<String>,
}

impl Cases<'_> {
    async fn add(
        &mut self,
        case: &'static str,
        asked: Asked<'_>,
        (expected, wanted): (&str, &str),
    ) -> Result<Got, QuickstartError> {
        if self.nonce.is_none() {
            let challenged = self.send(asked, "GET", "capsule", Bytes::new()).await?;
            self.nonce = challenged.nonce;
        }
        let got = self.send(asked, "GET", "capsule", Bytes::new()).await?;
        let told = told(&got);
        let reason = match &got.decision {
            Some(decision) => self.senders.reasons.of(decision).await,
            None => None,
        };
        let ok = told == expected && reason.as_deref().is_none_or(|reason| reason == wanted);
        let reason = reason.unwrap_or_else(|| "(no record)".to_owned());
        self.rows.push(Row { case, expected: expected.to_owned(), got: told, reason, ok });
        Ok(got)
    }

    /// A row that says whether two answers are one but for their ids.
    fn same(&mut self, case: &'static str, first: &Got, second: &Got) {
        let plain = |got: &Got| {
            let mut body = got.body.clone();
            if let Some(members) = body.as_object_mut() {
                members.remove("decisionId");
            }
            (got.status, body)
        };
        let ok = plain(first) == plain(second);
        let got = if ok { "the same" } else { "another" }.to_owned();
        let expected = "the same".to_owned();
        self.rows.push(Row { case, expected, got, reason: String::new(), ok });
    }

    async fn telemetry(&self, asked: Asked<'_>, state: &str) -> Result<Got, QuickstartError> {
        let body = json!({ "bootId": asked.boot, "seq": 1, "state": state, "version": VERSION });
        self.send(asked, "POST", "telemetry", body.to_string().into()).await
    }

    async fn send(
        &self,
        asked: Asked<'_>,
        method: &str,
        what: &str,
        body: Bytes,
    ) -> Result<Got, QuickstartError> {
        let path = format!("/api/runtime/{what}/{}", asked.node);
        let (key, nonce) = (&self.node.key, self.nonce.as_deref());
        let proof = self.senders.statement(method, &path, Some(asked.secret), nonce, key)?;
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, field(&format!("DPoP {}", asked.secret))?);
        headers.insert("dpop", field(&proof)?);
        headers.insert("x-node-fingerprint", field(asked.fingerprint)?);
        headers.insert("x-node-boot-id", field(asked.boot)?);
        headers.insert("x-node-version", HeaderValue::from_static(VERSION));
        let method = if method == "GET" { Method::GET } else { Method::POST };
        let client = self.node.clients.get(asked.from).unwrap_or(&self.senders.plain);
        self.senders.exchange(client, method, &path, headers, body).await
    }
}

/// An answer in a few words.
fn told(got: &Got) -> String {
    let status = got.status.as_u16();
    let risk = got.body.get("riskScore").and_then(Value::as_u64);
    match (got.body.get("reason").and_then(Value::as_str), risk) {
        (Some(reason), Some(risk)) => format!("{status} {reason} risk {risk}"),
        (Some(reason), None) => format!("{status} {reason}"),
        (None, Some(risk)) => format!("{status} risk {risk}"),
        (None, None) => status.to_string(),
    }
}
