//! Everything between a client and an upstream, made anew for each test.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::{Client, Message, Outcome, Request, plain_get};
use super::keys::Key;
use super::pki::{Identity, Pki};
use super::process::{Process, free_port, write_config};
use super::proof::Proof;
use super::token::{ALGORITHMS, AUDIENCE, ISSUER, Token};
use super::upstream::Upstream;

/// The edge, what it needs, and a client key.
pub(crate) struct World {
    pub(crate) directory: TempDir,
    pub(crate) pki: Pki,
    /// The issuer's keys, each with its algorithm as `kid`.
    pub(crate) issuer: Vec<Key>,
    /// The client's DPoP key.
    pub(crate) key: Key,
    pub(crate) upstream: Upstream,
    pub(crate) config: Value,
    pub(crate) client: Client,
    pub(crate) admin: u16,
    pub(crate) process: Process,
}

/// What must become of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expect {
    /// It reaches the upstream with this `X-Holdfast-Result`.
    Admitted(&'static str),
    /// It reaches the upstream without any `X-Holdfast-*`.
    Public,
    /// It is refused by this denial.
    Refused(&'static str),
    /// It is refused by HTTP's own rules: any 4xx, or the connection ends.
    Rejected,
}

/// Denials that fall before there is a route whose decision could be recorded.
const BEFORE_THE_ROUTE: [&str; 9] = [
    "forwarded_invalid",
    "client_cert_invalid",
    "origin_scheme",
    "head_too_large",
    "host_invalid",
    "path_invalid",
    "misdirected",
    "route_unknown",
    "method_not_allowed",
];

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// `change` bends the configuration first.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Value)) -> Self {
        Self::start_in(|_, _, config| change(config)).await
    }

    /// `change` bends the configuration and writes files first.
    pub(crate) async fn start_in(change: impl FnOnce(&Path, &Pki, &mut Value)) -> Self {
        Self::build(&[], true, change).await
    }

    /// The edge is run by the program and with the arguments in `under`.
    pub(crate) async fn start_under(under: &[String], change: impl FnOnce(&mut Value)) -> Self {
        Self::build(under, true, |_, _, config| change(config)).await
    }

    /// The same for one that does not get ready.
    pub(crate) async fn start_unready_under(
        under: &[String],
        change: impl FnOnce(&mut Value),
    ) -> Self {
        Self::build(under, false, |_, _, config| change(config)).await
    }

    async fn build(
        under: &[String],
        ready: bool,
        change: impl FnOnce(&Path, &Pki, &mut Value),
    ) -> Self {
        let directory = TempDir::new().expect("a directory");
        let pki = Pki::new();
        pki.write(directory.path());
        let issuer: Vec<Key> = ALGORITHMS.iter().map(|name| Key::new(name)).collect();
        write_keys(directory.path(), &issuer);
        let upstream = Upstream::start().await;
        let (port, admin) = (free_port(), free_port());
        let mut config = base_config(port, admin, upstream.port);
        change(directory.path(), &pki, &mut config);
        let process = if ready {
            Process::start_under(under, directory.path(), &config, admin).await
        } else {
            Process::start_unready_under(under, directory.path(), &config, admin).await
        };
        let client = Client::new(port, &pki.authority_der);
        let key = Key::new("ES256");
        Self { directory, pki, issuer, key, upstream, config, client, admin, process }
    }

    /// Writes a file beside the configuration.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.directory.path().join(name);
        fs::write(&path, text).expect("a writable directory");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its owner");
    }

    /// Writes the configuration, tells the program to read it again, and waits for what it says.
    pub(crate) async fn reload(&self) -> bool {
        write_config(self.directory.path(), &self.config);
        self.told_to_reload().await
    }

    /// Tells the program to read its files again, and waits for what it says.
    pub(crate) async fn told_to_reload(&self) -> bool {
        let told = "SIGHUP";
        let before = self.reloads(told).len();
        self.process.signal("HUP");
        for _ in 0..1500 {
            if let Some(taken) = self.reloads(told).get(before) {
                return *taken;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("it said nothing:\n{}", self.process.output());
    }

    /// How each reload so far went that had this cause.
    pub(crate) fn reloads(&self, cause: &str) -> Vec<bool> {
        let taken = |record: &Value| {
            let message = record["message"].as_str()?;
            let about = message.strip_prefix("configuration ")?;
            match about.split(':').next()? {
                "reloaded" => Some(true),
                "not reloaded" => Some(false),
                _ => None,
            }
        };
        self.process.records(|record| record["cause"] == cause).iter().filter_map(taken).collect()
    }

    /// Ends the program and starts it anew with the same files.
    pub(crate) async fn restart(&mut self) {
        self.process.terminate();
        assert!(self.process.ended().await.is_some(), "it did not end after SIGTERM");
        self.restart_ended().await;
    }

    /// Starts the program anew, which has ended.
    pub(crate) async fn restart_ended(&mut self) {
        self.process = Process::start(self.directory.path(), &self.config, self.admin).await;
    }

    /// A token of the issuer's ES256 key, unbound.
    pub(crate) fn token(&self) -> Token {
        Token::new(&self.issuer[0], "ES256")
    }

    /// A token bound to the client's key.
    pub(crate) fn bound(&self) -> String {
        self.token().jkt(&self.key.jkt()).sign()
    }

    /// A proof by the client's key for `target` at the external origin.
    pub(crate) fn proof(&self, method: &str, target: &str) -> Proof {
        Proof::new(&self.key, method, &format!("https://api.example{target}"))
    }

    /// A nonce, as a client gets one: by being challenged.
    pub(crate) async fn nonce(&self) -> String {
        let token = self.bound();
        let proof = self.proof("GET", "/orders/1").token(&token).sign();
        let answer = self.send(&get("/orders/1", &token, &proof)).await.expect("an answer");
        answer.one("dpop-nonce").expect("a challenge with a nonce").to_owned()
    }

    /// Sends without a certificate.
    pub(crate) async fn send(&self, request: &Request) -> Outcome {
        self.client.send(None, request).await
    }

    /// Sends with a certificate.
    pub(crate) async fn send_as(&self, who: &Identity, request: &Request) -> Outcome {
        self.client.send(Some(who), request).await
    }

    pub(crate) async fn admin(&self, target: &str) -> Message {
        plain_get(self.admin, target).await.expect("an answer of the admin listener")
    }

    /// The sum of a metric's series that have all these labels, each written `name="value"`.
    pub(crate) async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let answer = self.admin("/metrics").await;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let series = text.lines().filter_map(|line| line.rsplit_once(' '));
        let wanted = series.filter(|(series, _)| {
            series.split('{').next() == Some(name)
                && labels.iter().all(|label| series.contains(label))
        });
        wanted.filter_map(|(_, value)| value.parse::<f64>().ok()).sum()
    }

    /// The same, once it is `expected`, or what it still is after some seconds: counting follows the
    /// end of what is counted.
    pub(crate) async fn metric_once(&self, name: &str, labels: &[&str], expected: f64) -> f64 {
        let mut found = 0.0;
        for _ in 0..1500 {
            found = self.metric(name, labels).await;
            if found == expected {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        found
    }

    /// Whether an answer is what it must be, to the letter of the contract.
    pub(crate) async fn judge(&self, outcome: Outcome, expect: Expect) -> Result<(), String> {
        match expect {
            Expect::Admitted(result) => admitted(&outcome?, Some(result)),
            Expect::Public => admitted(&outcome?, None),
            Expect::Refused(code) => self.refused(&outcome?, code).await,
            Expect::Rejected => match outcome {
                Ok(answer) if !(400..500).contains(&answer.status()) => {
                    Err(format!("answered {}, upstream {:?}", answer.start, answer.seen().start))
                }
                Ok(_) | Err(_) => Ok(()),
            },
        }
    }

    async fn refused(&self, answer: &Message, code: &str) -> Result<(), String> {
        let (status, error) = self.wire(code);
        let body = answer.json();
        let id = body["decisionId"].as_str().unwrap_or_default().to_owned();
        let reason = if BEFORE_THE_ROUTE.contains(&code) {
            json!(code)
        } else {
            let record = self.process.record(|record| record["decision_id"] == id.as_str()).await;
            record.map(|record| record["reason"].clone()).unwrap_or_default()
        };
        expect_eq("status", &answer.status(), &status)
            .map_err(|text| format!("{text} ({reason})"))?;
        expect_eq("reason", &reason, &json!(code))?;
        expect_eq("cache-control", &answer.one("cache-control"), &Some("no-store"))?;
        expect_eq("content-type", &answer.one("content-type"), &Some("application/json"))?;
        if answer.one("x-request-id").is_none_or(str::is_empty) {
            return Err("no X-Request-Id".to_owned());
        }
        let members = body.as_object().into_iter().flat_map(|members| members.keys());
        let members: std::collections::BTreeSet<&str> = members.map(String::as_str).collect();
        let expected = ["decisionId", "error", "error_description"].into();
        expect_eq("members", &members, &expected)?;
        if let Some(error) = error {
            expect_eq("error", &body["error"], &json!(error))?;
        }
        if status == 401 {
            challenged(answer, error)?;
        }
        if error == Some("use_dpop_nonce") && answer.one("dpop-nonce").is_none() {
            return Err("use_dpop_nonce without one DPoP-Nonce".to_owned());
        }
        if status == 503 && answer.one("retry-after").is_none() {
            return Err("503 without Retry-After".to_owned());
        }
        Ok(())
    }

    /// The contract's table: a denial's status and error code. `None`: none is asked for.
    fn wire(&self, code: &str) -> (u16, Option<&'static str>) {
        let nonces = self.config["security"]["senderConstraints"]["dpop"]["nonce"]["enabled"]
            != json!(false);
        match code {
            "head_too_large" => (431, None),
            "host_invalid"
            | "path_invalid"
            | "forwarded_invalid"
            | "client_cert_invalid"
            | "origin_scheme"
            | "token_in_query"
            | "authorization_repeated"
            | "authorization_malformed" => (400, Some("invalid_request")),
            "misdirected" => (421, None),
            "route_unknown" => (404, None),
            "method_not_allowed" => (405, None),
            "token_missing" => (401, None),
            "origin_refused" => (403, Some("forbidden")),
            "scope_missing" => (403, Some("insufficient_scope")),
            "nonce_absent" | "nonce_expired" | "nonce_unknown" => (401, Some("use_dpop_nonce")),
            "proof_missing" if nonces => (401, Some("use_dpop_nonce")),
            "authentication_stale" | "acr_insufficient" => {
                (401, Some("insufficient_user_authentication"))
            }
            "introspection_unavailable" | "replay_capacity" | "store_down" => (503, None),
            code if code.starts_with("proof_") => (401, Some("invalid_dpop_proof")),
            _ => (401, Some("invalid_token")),
        }
    }
}

/// A GET with a token under the `DPoP` scheme and its proof.
pub(crate) fn get(target: &str, token: &str, proof: &str) -> Request {
    Request::new("GET", target).field("Authorization", format!("DPoP {token}")).field("DPoP", proof)
}

/// A GET with a token under the `Bearer` scheme.
pub(crate) fn bearer(target: &str, token: &str) -> Request {
    Request::new("GET", target).field("Authorization", format!("Bearer {token}"))
}

/// Writes the issuer's `jwks.json`.
pub(crate) fn write_keys(directory: &Path, issuer: &[Key]) {
    let keys: Vec<Value> = issuer.iter().map(|key| key.public_entry(key.algorithm)).collect();
    let text = json!({ "keys": keys }).to_string();
    fs::write(directory.join("jwks.json"), text).expect("a writable directory");
}

pub(crate) fn expect_eq<A: PartialEq<B> + std::fmt::Debug, B: std::fmt::Debug>(
    what: &str,
    found: &A,
    expected: &B,
) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what}: found {found:?}, expected {expected:?}"))
}

fn admitted(answer: &Message, result: Option<&str>) -> Result<(), String> {
    if answer.status() != 200 {
        return Err(format!("{} {}", answer.start, String::from_utf8_lossy(&answer.body)));
    }
    let expected: Vec<&str> = result.into_iter().collect();
    expect_eq("x-holdfast-result", &answer.seen().all("x-holdfast-result"), &expected)
}

fn challenged(answer: &Message, error: Option<&str>) -> Result<(), String> {
    let challenges = answer.all("www-authenticate").join(", ");
    if challenges.is_empty() {
        return Err("401 without WWW-Authenticate".to_owned());
    }
    match error {
        Some(error) if !challenges.contains(&format!("error=\"{error}\"")) => {
            Err(format!("no error=\"{error}\" in {challenges}"))
        }
        None if challenges.contains("error=") => Err(format!("an error code in {challenges}")),
        Some(_) | None => Ok(()),
    }
}

fn base_config(port: u16, admin: u16, upstream: u16) -> Value {
    let route = |name: &str, path: &str| {
        json!({"name": name, "hosts": ["api.example"], "path": path, "role": "resource",
               "upstream": "echo"})
    };
    let mut public = route("public", "/public/*");
    public["role"] = json!("public");
    json!({
        "schemaVersion": 1,
        "edge": {
            "listeners": [{
                "name": "main",
                "address": format!("127.0.0.1:{port}"),
                "tls": {
                    "certificates": [{"certificate": "server.pem", "key": "server.key"}],
                    "clientCertificates": "request",
                    "clientAuthorities": ["ca.pem"],
                },
            }],
            "admin": {"address": format!("127.0.0.1:{admin}")},
        },
        "upstreams": {"echo": {"servers": [format!("127.0.0.1:{upstream}")]}},
        "routes": [route("orders", "/orders/*"), public],
        "issuers": [{
            "issuer": ISSUER,
            "audiences": [AUDIENCE],
            "jwks": {"file": "jwks.json"},
            "algorithms": ALGORITHMS,
        }],
        "security": {"senderConstraints": {"dpop": {"nonce": {"enabled": true}}}},
        "telemetry": {"logs": {"okSample": 1.0}},
    })
}
