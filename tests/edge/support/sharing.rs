//! Edges that share a Redis: how they are set up, what is sent to them, and what they say.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::{Client, Outcome, Request, plain_get};
use super::process::{Process, free_port};
use super::world::{World, get};

/// Polls of 20 ms before a wait is given up: 30 s.
const POLLS: usize = 1500;

/// What became of a request: its status, and its error or result.
pub(crate) fn verdict(outcome: Outcome) -> (u16, String) {
    let answer = outcome.expect("an answer");
    let status = answer.status();
    if status == 200 {
        let result = answer.seen().one("x-holdfast-result").unwrap_or("nothing").to_owned();
        return (status, result);
    }
    if status == 503 {
        assert!(answer.one("retry-after").is_some(), "503 without Retry-After");
    }
    (status, answer.json()["error"].as_str().unwrap_or_default().to_owned())
}

pub(crate) fn admitted() -> (u16, String) {
    (200, "dpop".to_owned())
}

pub(crate) fn replayed() -> (u16, String) {
    (401, "invalid_dpop_proof".to_owned())
}

pub(crate) fn another_nonce() -> (u16, String) {
    (401, "use_dpop_nonce".to_owned())
}

pub(crate) fn down() -> (u16, String) {
    (503, "temporarily_unavailable".to_owned())
}

/// Writes a file that its owner alone may read.
pub(crate) fn own_file(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("a writable directory");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("its owner");
}

/// The key of nonces, the same for every edge.
pub(crate) fn key_file(directory: &Path) {
    own_file(&directory.join("nonce.key"), &[9; 32]);
}

pub(crate) fn standalone(port: u16) -> Value {
    json!({"nodes": [format!("127.0.0.1:{port}")], "timeout": "5s"})
}

/// An edge whose proofs are remembered at `redis`.
pub(crate) async fn world(redis: Value) -> World {
    World::start_in(|directory, _, config| {
        key_file(directory);
        share(config, redis);
    })
    .await
}

/// A request with a fresh proof, which has a nonce where there is one.
pub(crate) fn request(world: &World, nonce: Option<&str>) -> Request {
    let token = world.bound();
    let proof = world.proof("GET", "/orders/1").token(&token);
    let proof = match nonce {
        Some(nonce) => proof.nonce(nonce),
        None => proof,
    };
    get("/orders/1", &token, &proof.sign())
}

/// A nonce of an edge that has come back, once it gives one out.
pub(crate) async fn nonce_of(world: &World, edge: &impl Asked) -> String {
    let challenge = request(world, None);
    for _ in 0..1500 {
        let answer = edge.serve(&challenge).await.expect("an answer");
        if let Some(nonce) = answer.one("dpop-nonce") {
            return nonce.to_owned();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it gives no nonce out");
}

/// Has a configuration remember proofs at the servers that `redis` says.
pub(crate) fn share(config: &mut Value, redis: Value) {
    config["store"] = json!({"kind": "redis", "path": "edge.db", "redis": redis});
    let dpop = &mut config["security"]["senderConstraints"]["dpop"];
    dpop["replay"] = json!({"store": "redis"});
    if dpop["nonce"]["enabled"] != json!(false) {
        dpop["nonce"]["keyFiles"] = json!(["nonce.key"]);
        dpop["nonce"]["sharedKeys"] = json!(true);
    }
}

/// Another edge beside the one of a [`World`], with the same keys, upstream and servers.
pub(crate) struct Edge {
    pub(crate) client: Client,
    pub(crate) admin: u16,
    _process: Process,
    _directory: TempDir,
}

impl Edge {
    pub(crate) async fn beside(world: &World) -> Self {
        Self::beside_with(world, |_| {}).await
    }

    /// The same; `change` bends its configuration first.
    pub(crate) async fn beside_with(world: &World, change: impl FnOnce(&mut Value)) -> Self {
        let directory = TempDir::new().expect("a directory");
        copy(world.directory.path(), directory.path());
        let (port, admin) = (free_port(), free_port());
        let mut config = world.config.clone();
        config["edge"]["listeners"][0]["address"] = json!(format!("127.0.0.1:{port}"));
        config["edge"]["admin"]["address"] = json!(format!("127.0.0.1:{admin}"));
        change(&mut config);
        let process = Process::start(directory.path(), &config, admin).await;
        let client = Client::new(port, &world.pki.authority_der);
        Self { client, admin, _process: process, _directory: directory }
    }
}

/// Copies a configuration and what is beside it, but for the store: every edge has an audit log of its own.
fn copy(from: &Path, to: &Path) {
    for file in fs::read_dir(from).expect("a directory") {
        let file = file.expect("an entry").path();
        let name = file.file_name().expect("a name");
        let at = to.join(name);
        if file.is_dir() {
            fs::create_dir(&at).expect("a writable directory");
            copy(&file, &at);
            let rights = fs::metadata(&file).expect("a directory").permissions();
            fs::set_permissions(&at, rights).expect("its owner");
        } else if ![".db", ".mark", ".lock"].iter().any(|of| name.to_string_lossy().contains(of)) {
            fs::copy(&file, at).expect("a copy");
        }
    }
}

/// Whatever sends requests to one edge.
pub(crate) trait Asked {
    async fn serve(&self, request: &Request) -> Outcome;
}

impl Asked for World {
    async fn serve(&self, request: &Request) -> Outcome {
        self.client.send(None, request).await
    }
}

impl Asked for Edge {
    async fn serve(&self, request: &Request) -> Outcome {
        self.client.send(None, request).await
    }
}

/// The id of the temporary bypass, once it is open.
pub(crate) async fn bypass_of(admin: u16) -> String {
    let mut last = Value::Null;
    for _ in 0..POLLS {
        if let Ok(answer) = plain_get(admin, "/readyz").await {
            last = answer.json();
            if let Some(id) = last["bypass"]["id"].as_str() {
                return id.to_owned();
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the bypass does not open: {last:#}");
}

/// Waits until `/readyz` says what is expected.
pub(crate) async fn ready_is(admin: u16, expected: bool) -> Value {
    let mut last = Value::Null;
    for _ in 0..POLLS {
        if let Ok(answer) = plain_get(admin, "/readyz").await {
            last = answer.json();
            if last["redis"]["ready"] == json!(expected) {
                return last;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("redis.ready does not become {expected}: {last:#}");
}
