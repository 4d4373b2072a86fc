//! The real program over a store with many nodes.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use holdfast::policy::digest::{Jkt, Sha256};
use holdfast::store::keys::{self, Algorithm};
use holdfast::store::sqlite::Database;
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fleet::{self, Setting};
use crate::http1::{self, Fields, HOST};
use crate::program::{self, Edge, free_port};
use crate::proofs::{About, Key};
use crate::{Options, Outcome, pki};

pub(crate) struct Stage {
    pub(crate) port: u16,
    pub(crate) edge: Edge,
    /// Nodes that ask, with the keys that they are bound to.
    pub(crate) nodes: Vec<Asker>,
    authority: CertificateDer<'static>,
    directory: TempDir,
}

/// A node that asks.
pub(crate) struct Asker {
    pub(crate) number: u32,
    key: Key,
}

impl Stage {
    /// Registers the nodes and starts the edge.
    pub(crate) async fn start(options: &Options, pinned: bool) -> Outcome<Self> {
        let directory = tempfile::tempdir_in(options.directory())?;
        let authority = pki::authority()?;
        program::certify(directory.path(), &authority)?;
        keys::init(&directory.path().join("keys"), Algorithm::EdDsa, fleet::now())?;
        let nodes = register(options, directory.path())?;
        let (port, admin) = (free_port()?, free_port()?);
        let edge = Edge::start(directory.path(), &config(port, admin), pinned).await?;
        Ok(Self { port, edge, nodes, authority: authority.der().clone(), directory })
    }

    /// How a node speaks TLS and `protocol`.
    pub(crate) fn tls(&self, protocol: &str) -> Outcome<Arc<ClientConfig>> {
        pki::tls(&self.authority, None, protocol)
    }

    /// As a node gets one: by being challenged.
    pub(crate) async fn nonce(&self) -> Outcome<String> {
        let node = self.nodes.first().ok_or("a node")?;
        let fields = node.requests(None, 1)?.pop().unwrap_or_default();
        let request = http1::request(&node.path(), &fields);
        http1::nonce(self.port, self.tls("http/1.1")?, &request).await
    }

    /// Grants in the audit log, as a command reads it, after another one has verified the whole.
    pub(crate) fn verified_grants(&self) -> Outcome<usize> {
        self.command(&["audit", "verify"])?;
        let lines = self.command(&["audit", "tail", "-n", "10000000", "--json"])?;
        let granted = |line: &&str| {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            line["kind"] == "capsule.decision" && line["data"]["verdict"]["Ok"].is_object()
        };
        Ok(lines.lines().filter(granted).count())
    }

    fn command(&self, words: &[&str]) -> Outcome<String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command.args(words).args(["--config", "authority.yaml"]).current_dir(self.directory.path());
        let output = command.output()?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("holdfast {}: {errors}", words.join(" ")).into());
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl Asker {
    pub(crate) fn path(&self) -> String {
        format!("/api/runtime/capsule/{}", fleet::name(self.number))
    }

    /// The fields of `count` requests, each with a proof of its own, signed now.
    pub(crate) fn requests(&self, nonce: Option<&str>, count: usize) -> Outcome<Vec<Fields>> {
        let (secret, url) = (fleet::secret(self.number), format!("https://{HOST}{}", self.path()));
        let about = About { method: "GET", url: &url, token: Some(&secret), nonce };
        let proofs = self.key.proofs(&about, count)?;
        let with = |proof| {
            let mut fields = shown(self.number, &format!("DPoP {secret}"));
            fields.push(("dpop", proof));
            fields
        };
        Ok(proofs.into_iter().map(with).collect())
    }
}

/// What node `number` shows beside a proof.
pub(crate) fn shown(number: u32, authorization: &str) -> Fields {
    vec![
        ("authorization", authorization.to_owned()),
        ("x-node-fingerprint", fleet::fingerprint(number)),
        ("x-node-boot-id", "boot-1".to_owned()),
        ("x-node-version", "1.2.3".to_owned()),
    ]
}

/// Fills the store; the nodes that will ask are spread over it.
fn register(options: &Options, directory: &Path) -> Outcome<Vec<Asker>> {
    let step = options.registered / options.at_once;
    let asker = |index: u32| Ok(Asker { number: index * step, key: Key::generate()? });
    let nodes: Vec<Asker> = (0..options.at_once).map(asker).collect::<Outcome<_>>()?;
    let jkt = |number: u32| {
        let asker =
            number.is_multiple_of(step).then(|| usize::try_from(number / step).unwrap_or(0));
        let key = asker.and_then(|index| nodes.get(index)).map(|asker| &asker.key.jkt);
        let known = key.and_then(|jkt| Sha256::from_base64url(jkt));
        known.map_or_else(|| fleet::jkt(number), Jkt)
    };
    let setting = Setting::new(directory)?;
    let mut database = Database::open(&directory.join("holdfast.db"))?;
    fleet::register(&mut database, options.registered, &setting.networks, jkt)?;
    Ok(nodes)
}

/// With room for failures.
fn config(port: u16, admin: u16) -> Value {
    json!({
        "schemaVersion": 1,
        "edge": program::edge(port, admin),
        // There must be one; nothing is asked of it.
        "upstreams": {"none": {"servers": ["127.0.0.1:9"]}},
        "routes": [{"name": "none", "hosts": [HOST], "path": "/none", "role": "public",
                    "upstream": "none"}],
        "capsules": {
            "cluster": "bench",
            "origins": [format!("https://{HOST}")],
            "keys": {"directory": "keys"},
            "networks": {"asnDatabase": "networks.mmdb", "regionDatabase": "networks.mmdb"},
            "failures": {"perAddress": 1_000_000, "perNode": 1_000_000},
        },
        "store": {"path": "holdfast.db"},
    })
}
