//! Nodes that ask the real program for capsules, and the commands that enrol them.

use std::path::Path;
use std::process::Command;

use holdfast::policy::time::UnixTime;
use holdfast::store::keys::{self, Algorithm};
use holdfast::store::networks::sample::{Entry, database};
use serde_json::{Value, json};

use super::client::{Message, Outcome, Request};
use super::keys::Key;
use super::pki::Identity;
use super::proof::Proof;
use super::world::World;

/// A node: what it knows, and what it shows.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) secret: String,
    pub(crate) key: Key,
    pub(crate) fingerprint: Option<String>,
    pub(crate) boot: Option<String>,
    pub(crate) version: Option<String>,
    /// Added to the target.
    pub(crate) query: String,
    /// Added to the proof's claims.
    pub(crate) enc_jwk: Option<Value>,
}

/// The networks of the sample database, by the address that a client binds.
pub(crate) fn networks() -> Vec<u8> {
    let entry = |address: &str, asn: u32, region: (&'static str, &'static str)| Entry {
        network: format!("{address}/32").parse().expect("a network"),
        asn: Some(asn),
        region: Some(region),
    };
    database(
        &[
            entry("127.0.0.1", 64_500, ("SE", "M")),
            entry("127.0.0.2", 64_500, ("SE", "M")),
            entry("127.0.0.3", 64_501, ("SE", "M")),
            entry("127.0.0.4", 64_501, ("NO", "03")),
        ],
        1_800_000_000,
    )
}

/// Adds capsules to a configuration, with keys and networks beside it.
pub(crate) fn with_capsules(directory: &Path, config: &mut Value) {
    let made = UnixTime::from_secs(1_800_000_000);
    keys::init(&directory.join("keys"), Algorithm::EdDsa, made).expect("keys");
    std::fs::write(directory.join("networks.mmdb"), networks()).expect("a writable directory");
    config["capsules"] = json!({
        "cluster": "test-cluster",
        "origins": ["https://api.example"],
        "keys": {"directory": "keys"},
        "networks": {"asnDatabase": "networks.mmdb", "regionDatabase": "networks.mmdb"},
        // A table has many failures.
        "failures": {"perAddress": 10_000, "perNode": 10_000},
    });
}

/// A world with capsules.
pub(crate) async fn world(change: impl FnOnce(&mut Value)) -> World {
    World::start_in(|directory, _, config| {
        with_capsules(directory, config);
        change(config);
    })
    .await
}

/// Exit status, output and errors of the program.
pub(crate) fn holdfast(directory: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("the program");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

impl World {
    /// Runs a command on the configuration; it must succeed. What it wrote.
    pub(crate) fn command(&self, arguments: &[&str]) -> String {
        let all = [arguments, &["--config", "authority.yaml"]].concat();
        let (status, out, errors) = holdfast(self.directory.path(), &all);
        assert_eq!(status, Some(0), "{arguments:?}: {out}{errors}");
        out
    }

    /// A command that changes a node.
    pub(crate) fn change(&self, words: &[&str]) -> Value {
        let out = self.command(&[&["node"], words, &["--reason", "a test", "--json"]].concat());
        serde_json::from_str(&out).expect("JSON")
    }

    /// Enrols a node.
    pub(crate) fn enrol(&self, id: &str, more: &[&str]) -> Node {
        let added = self.change(&[&["add", id], more].concat());
        Node {
            id: id.to_owned(),
            secret: added["secret"].as_str().expect("a secret").to_owned(),
            key: Key::new("ES256"),
            fingerprint: Some(format!("fingerprint of {id}")),
            boot: Some("boot-1".to_owned()),
            version: Some("1.2.3".to_owned()),
            query: String::new(),
            enc_jwk: None,
        }
    }

    /// The registry's record of a node.
    pub(crate) fn node(&self, id: &str) -> Value {
        serde_json::from_str(&self.command(&["node", "show", id, "--json"])).expect("JSON")
    }

    /// The nonce that capsules are asked for with.
    pub(crate) async fn node_nonce(&self, node: &Node) -> String {
        let answer = self.send(&node.request("x")).await.expect("an answer");
        answer.one("dpop-nonce").expect("a challenge with a nonce").to_owned()
    }

    /// Asks for a capsule with a proof, from an address.
    pub(crate) async fn ask(&self, node: &Node, from: &'static str) -> Outcome {
        let nonce = self.node_nonce(node).await;
        self.send_from(from, None, &node.request(&nonce)).await
    }

    /// Sends from an address.
    pub(crate) async fn send_from(
        &self,
        from: &'static str,
        who: Option<&Identity>,
        request: &Request,
    ) -> Outcome {
        let mut client = self.client.clone();
        client.from = from;
        client.send(who, request).await
    }

    /// The lines of the audit log.
    pub(crate) fn audit(&self) -> Vec<Value> {
        let out = self.command(&["audit", "tail", "-n", "100000", "--json"]);
        out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

impl Node {
    /// The target.
    pub(crate) fn target(&self) -> String {
        format!("/api/runtime/capsule/{}{}", self.id, self.query)
    }

    /// A proof for this request.
    pub(crate) fn proof(&self, method: &str, path: &str, nonce: &str) -> Proof {
        let url = format!("https://api.example{path}");
        let proof = Proof::new(&self.key, method, &url).token(&self.secret).nonce(nonce);
        match &self.enc_jwk {
            Some(jwk) => proof.claim("enc_jwk", jwk.clone()),
            None => proof,
        }
    }

    /// A request without credentials.
    pub(crate) fn bare(&self) -> Request {
        let mut request = Request::new("GET", &self.target());
        for (name, value) in [
            ("X-Node-Fingerprint", &self.fingerprint),
            ("X-Node-Boot-Id", &self.boot),
            ("X-Node-Version", &self.version),
        ] {
            if let Some(value) = value {
                request = request.field(name, value);
            }
        }
        request
    }

    /// With the secret alone.
    pub(crate) fn bearer(&self) -> Request {
        self.bare().field("Authorization", format!("Bearer {}", self.secret))
    }

    /// With the secret and a proof.
    pub(crate) fn request(&self, nonce: &str) -> Request {
        let path = format!("/api/runtime/capsule/{}", self.id);
        let proof = self.proof("GET", &path, nonce).sign();
        self.bare().field("Authorization", format!("DPoP {}", self.secret)).field("DPoP", proof)
    }

    /// Telemetry, with the secret and a proof.
    pub(crate) fn telemetry(&self, nonce: &str, body: &Value) -> Request {
        let path = format!("/api/runtime/telemetry/{}", self.id);
        let proof = self.proof("POST", &path, nonce).sign();
        let mut request = self.bare();
        (request.method, request.target) = ("POST".to_owned(), path);
        request
            .field("Authorization", format!("DPoP {}", self.secret))
            .field("DPoP", proof)
            .body(body.to_string().as_bytes())
    }
}

/// `200`, or the status, reason and risk of a refusal.
pub(crate) fn told(answer: &Message) -> String {
    let body = answer.json();
    if answer.status() == 200 {
        return format!("200 risk {}", body["riskScore"]);
    }
    let risk = body.get("riskScore").map(|risk| format!(" risk {risk}")).unwrap_or_default();
    format!("{} {}{risk}", answer.status(), body["reason"].as_str().unwrap_or_default())
}
