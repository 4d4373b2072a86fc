//! Parts that nobody here wrote, together: oidc-provider as the Authorization Server behind the
//! edge, openid-client, oauth4webapi, curl and h2load as its clients and the resource's.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use base64::Engine as _;
use serde_json::{Value, json};

use super::end_to_end::run;
use super::support::Table;
use super::support::client::Message;
use super::support::process::free_port;
use super::support::server::skip;
use super::support::world::{World, expect_eq};

pub(super) const LIBRARIES: [&str; 2] = ["openid-client", "oauth4webapi"];
/// What the Authorization Server knows as resources with JWTs, by the algorithm that signs them.
pub(super) const RESOURCES: [(&str, &str); 3] = [
    ("ES256", "https://es256.example/"),
    ("EdDSA", "https://ed25519.example/"),
    ("PS256", "https://ps256.example/"),
];
/// The resource whose tokens are opaque.
pub(super) const OPAQUE: &str = "https://opaque.example/";
/// Requests on one connection.
const STREAMS: usize = 200;

pub(super) fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node")
}

/// Whether the packages are there, and a Node that oidc-provider runs on (20.12 is the first).
pub(super) fn is_possible() -> bool {
    let packages = ["oidc-provider", "openid-client", "oauth4webapi", "undici"];
    let missing = packages.iter().find(|name| !scripts().join("node_modules").join(name).is_dir());
    if let Some(missing) = missing {
        skip(&format!("{missing}: not installed"));
        return false;
    }
    let mut node = Command::new("node");
    node.args(["--eval", "process.exit(require('crypto').hash ? 0 : 1)"]);
    let Some(output) = run(&mut node) else { return false };
    if !output.status.success() {
        skip("oidc-provider: this Node is older than 20.12");
    }
    output.status.success()
}

/// oidc-provider, in clear on a loopback port.
pub(super) struct Authority {
    child: Child,
    port: u16,
    pub(super) issuer: String,
    flags: &'static [&'static str],
}

impl Authority {
    /// `flags` are those that the script names.
    pub(super) fn start(port: u16, issuer: &str, flags: &'static [&'static str]) -> Self {
        let mut command = Command::new("node");
        command
            .current_dir(scripts())
            .args(["as.mjs", &port.to_string(), issuer])
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("node");
        let mut line = String::new();
        let output = child.stdout.take().expect("a pipe");
        BufReader::new(output).read_line(&mut line).expect("a pipe");
        if line.is_empty() {
            let output = child.wait_with_output().expect("a child");
            panic!("oidc-provider: {}", String::from_utf8_lossy(&output.stderr));
        }
        Self { child, port, issuer: issuer.to_owned(), flags }
    }

    /// The same server with other keys.
    fn rotate(&mut self) {
        self.end();
        *self = Self::start(self.port, &self.issuer, self.flags);
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.end();
    }
}

/// The Authorization Server and a resource, each behind a listener of the edge: two origins.
struct Site {
    world: World,
    authority: Authority,
    /// Of the resource's origin.
    port: u16,
    /// With the edge's secret at the Authorization Server.
    _secret: tempfile::NamedTempFile,
}

impl Site {
    async fn start(flags: &'static [&'static str]) -> Self {
        let (port, outer, inner) = (free_port(), free_port(), free_port());
        let issuer = format!("https://localhost:{outer}");
        let authority = Authority::start(inner, &issuer, flags);
        let secret = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(&secret, "only-for-this-test").expect("a writable file");
        let world = World::start_with(|config| {
            let mut second = config["edge"]["listeners"][0].clone();
            second["name"] = json!("authority");
            second["address"] = json!(format!("127.0.0.1:{outer}"));
            config["edge"]["listeners"][0]["address"] = json!(format!("127.0.0.1:{port}"));
            push(&mut config["edge"]["listeners"], second);
            config["routes"][0]["hosts"] = json!([format!("localhost:{port}")]);
            config["upstreams"]["authority"] =
                json!({"servers": [format!("127.0.0.1:{inner}")], "clientCertificate": true});
            push(
                &mut config["routes"],
                json!({"name": "authority", "hosts": [format!("localhost:{outer}")], "path": "/*",
                       "role": "public", "passCredentials": true, "upstream": "authority"}),
            );
            let url = format!("http://127.0.0.1:{inner}/jwks");
            let mut audiences = RESOURCES.map(|(_, resource)| resource).to_vec();
            audiences.push(OPAQUE);
            config["issuers"] = json!([{
                "issuer": issuer,
                "audiences": audiences,
                "jwks": {"url": url, "cooldown": "1s"},
                "introspection": {
                    "url": format!("http://127.0.0.1:{inner}/token/introspection"),
                    "clientId": "edge",
                    "clientSecretFile": secret.path(),
                    "timeout": "20s",
                },
            }]);
        })
        .await;
        Self { world, authority, port, _secret: secret }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}/orders/1?page=2", self.port)
    }

    fn file(&self, name: &str) -> String {
        self.world.directory.path().join(name).to_string_lossy().into_owned()
    }

    /// What became of a client of `library` that used and misused a token for `resource`.
    fn party(&self, library: &str, client: &str, resource: &str) -> Value {
        let mut command = Command::new("node");
        command
            .current_dir(scripts())
            .args(["party.mjs", library, &self.authority.issuer, client, resource, &self.url()])
            .arg(self.world.directory.path());
        let output = command.output().expect("node, as it ran the Authorization Server");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{library} as {client}: {told}");
        serde_json::from_slice(&output.stdout).expect("a line of JSON")
    }

    /// The statuses of `count` requests by curl, as streams of one connection, with a token and
    /// someone's certificate.
    fn many(&self, who: &str, token: &str, count: usize) -> Option<Vec<String>> {
        let output = self.curl(&[
            "--cert",
            &self.file(&format!("{who}.pem")),
            "--key",
            &self.file(&format!("{who}.key")),
            "--header",
            &format!("Authorization: Bearer {token}"),
            "--http2",
            "--parallel",
            "--parallel-max",
            "64",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_version} %{num_connects} %{http_code}\n",
            &format!("https://localhost:{}/orders/[1-{count}]", self.port),
        ])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut connections = 0;
        let statuses = text.lines().map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            assert_eq!(words[0], "2", "not HTTP/2: {line}");
            connections += words[1].parse::<usize>().expect("a number");
            words[2].to_owned()
        });
        let statuses = statuses.collect();
        assert_eq!(connections, 1, "{text}");
        Some(statuses)
    }

    /// A token for the client `mtls`, by curl with alice's certificate.
    fn certified_token(&self, resource: &str) -> Option<String> {
        let output = self.curl(&[
            "--cert",
            &self.file("alice.pem"),
            "--key",
            &self.file("alice.key"),
            "--data",
            &format!(
                "grant_type=client_credentials&client_id=mtls&scope=orders.read&resource={resource}"
            ),
            &format!("{}/token", self.authority.issuer),
        ])?;
        let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        Some(answer["access_token"].as_str().expect("a token").to_owned())
    }

    fn curl(&self, arguments: &[&str]) -> Option<Output> {
        let mut command = Command::new("curl");
        command
            .args(["--silent", "--show-error", "--max-time", "30", "--noproxy", "*", "--cacert"])
            .arg(self.file("ca.pem"))
            .args(arguments);
        let output = run(&mut command)?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "curl: {told}");
        Some(output)
    }
}

pub(super) fn push(list: &mut Value, value: Value) {
    list.as_array_mut().expect("a list").push(value);
}

pub(super) fn result_of(used: &Value) -> Value {
    let seen = Message::parse(used["body"].as_str().unwrap_or_default().as_bytes());
    json!([used["status"], seen.one("x-holdfast-result")])
}

/// Whether `outcome` is that of a client whose token is bound as `result` says.
pub(super) fn judge(outcome: &Value, result: &str) -> Result<(), String> {
    for name in ["first", "second"] {
        expect_eq(name, &result_of(&outcome[name]), &json!([200, result]))?;
    }
    if result == "mtls" {
        expect_eq("token_type", &outcome["tokenType"], &json!("bearer"))?;
        expect_eq("alice", &result_of(&outcome["alice"]), &json!([200, result]))?;
        for name in ["bob", "nobody"] {
            let expected = json!({"status": 401, "error": "invalid_token"});
            expect_eq(name, &outcome[name], &expected)?;
        }
        return Ok(());
    }
    expect_eq("token_type", &outcome["tokenType"], &json!("dpop"))?;
    for (name, error) in [
        ("replayed", "invalid_dpop_proof"),
        ("downgraded", "invalid_token"),
        ("stolen", "invalid_token"),
    ] {
        expect_eq(name, &outcome[name], &json!({"status": 401, "error": error}))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn both_libraries_with_tokens_of_each_binding() {
    if !is_possible() {
        return;
    }
    let site = Site::start(&[]).await;
    let mut table = Table::default();
    let clients = LIBRARIES.iter().flat_map(|library| ["dpop", "mtls"].map(|one| (library, one)));
    for ((library, client), (algorithm, resource)) in clients.zip(RESOURCES.iter().cycle()) {
        let outcome = site.party(library, client, resource);
        let name = format!("{library}, {client}, {algorithm}");
        table.row(&name, judge(&outcome, client));
        table.row(&name, expect_eq("alg", &outcome["header"]["alg"], &json!(algorithm)));
        table.row(&name, expect_eq("aud", &outcome["claims"]["aud"], &json!(resource)));
    }
}

/// A client that knows no more than the resource finds out who issues tokens for it (RFC 9728).
#[tokio::test(flavor = "multi_thread")]
async fn a_library_discovers_the_server_by_the_resource() {
    if !is_possible() {
        return;
    }
    let site = Site::start(&[]).await;
    let mut table = Table::default();
    for client in ["dpop", "mtls"] {
        let found = &site.party("oauth4webapi", client, RESOURCES[0].1)["resource"];
        let origin = format!("https://localhost:{}", site.port);
        let url = format!("{origin}/.well-known/oauth-protected-resource/orders");
        table.row(client, expect_eq("challenges", &found["urls"], &json!([url, url])));
        table.row(client, expect_eq("issuer", &found["issuer"], &json!(site.authority.issuer)));
        let metadata = &found["metadata"];
        let resource = format!("{origin}/orders");
        table.row(client, expect_eq("resource", &metadata["resource"], &json!(resource)));
        let certificates = &metadata["tls_client_certificate_bound_access_tokens"];
        table.row(client, expect_eq("certificates", certificates, &json!(true)));
    }
}

/// The Authorization Server is asked once for each token, and what it says binds the token.
#[tokio::test(flavor = "multi_thread")]
async fn both_libraries_with_opaque_tokens() {
    if !is_possible() {
        return;
    }
    let site = Site::start(&[]).await;
    let mut table = Table::default();
    for library in LIBRARIES {
        for client in ["dpop", "mtls"] {
            let outcome = site.party(library, client, OPAQUE);
            let name = format!("{library}, {client}");
            table.row(&name, judge(&outcome, client));
            table.row(&name, expect_eq("JWT header", &outcome["header"], &Value::Null));
        }
    }
    let unknown = site.many("alice", "made-up", 1);
    table.row("unknown", expect_eq("statuses", &unknown, &Some(vec!["401".to_owned()])));
    for (result, asked) in [("active", 4.0), ("inactive", 1.0)] {
        let label = format!("result=\"{result}\"");
        let count = site.world.metric("holdfast_introspection_total", &[&label]).await;
        table.row(result, expect_eq("asked", &count, &asked));
    }
}

/// Each library has one nonce for each origin, and is challenged once for each.
#[tokio::test(flavor = "multi_thread")]
async fn the_servers_nonces_and_the_edges_are_told_apart() {
    if !is_possible() {
        return;
    }
    let site = Site::start(&["nonces"]).await;
    let mut table = Table::default();
    for library in LIBRARIES {
        let outcome = site.party(library, "dpop", RESOURCES[0].1);
        let expected = json!([
            "/.well-known/openid-configuration 200",
            "/token 400",
            "/token 200",
            "/orders/1 401",
            "/orders/1 200",
            "/orders/1 200",
        ]);
        table.row(library, expect_eq("exchanges", &outcome["exchanges"], &expected));
        table.row(library, judge(&outcome, "dpop"));
    }
}

/// Our own client is challenged by both, too.
#[tokio::test(flavor = "multi_thread")]
async fn holdfast_request_gets_a_token_and_uses_it() {
    if !is_possible() {
        return;
    }
    let site = Site::start(&["nonces"]).await;
    let key = site.file("client.key");
    std::fs::write(&key, site.world.key.private_pem()).expect("a writable directory");
    let request = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command.arg("request").args(arguments).args(["--key", &key, "--cacert"]);
        let output = command.arg(site.file("ca.pem")).output().expect("the program");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "holdfast request: {told}");
        output.stdout
    };
    let basic = base64::engine::general_purpose::STANDARD.encode("dpop:only-for-this-test");
    let answer = request(&[
        "POST",
        &format!("{}/token", site.authority.issuer),
        "--header",
        &format!("Authorization: Basic {basic}"),
        "--data",
        &format!("grant_type=client_credentials&scope=orders.read&resource={}", RESOURCES[0].1),
    ]);
    let answer: Value = serde_json::from_slice(&answer).expect("JSON");
    let token = answer["access_token"].as_str().expect("a token");
    let seen = Message::parse(&request(&["GET", &site.url(), "--token", token]));
    let mut table = Table::default();
    table.row("token_type", expect_eq("value", &answer["token_type"], &json!("DPoP")));
    table.row("upstream", expect_eq("result", &seen.one("x-holdfast-result"), &Some("dpop")));
    let jkt = site.world.key.jkt();
    table.row("upstream", expect_eq("jkt", &seen.one("x-holdfast-cnf-jkt"), &Some(jkt.as_str())));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_keys_rotate() {
    if !is_possible() {
        return;
    }
    let mut site = Site::start(&[]).await;
    let mut table = Table::default();
    let Some(old) = site.certified_token(RESOURCES[0].1) else { return };
    let ask = |site: &Site, token: &str| site.many("alice", token, 1).expect("curl was there");
    table.row("old", expect_eq("statuses", &ask(&site, &old), &["200"]));
    site.authority.rotate();
    // The fetch at start may have been within the cooldown of 1 s.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let new = site.certified_token(RESOURCES[0].1).expect("curl was there");
    let mut statuses = ask(&site, &new);
    // Nobody waits for a fetch for longer than half a second.
    for _ in 0..27 {
        if statuses == ["200"] {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
        statuses = ask(&site, &new);
    }
    table.row("new", expect_eq("statuses", &statuses, &["200"]));
    table.row("old", expect_eq("statuses", &ask(&site, &old), &["401"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_gets_a_bound_token_and_uses_it_on_many_streams() {
    if !is_possible() {
        return;
    }
    let site = Site::start(&[]).await;
    let mut table = Table::default();
    let Some(token) = site.certified_token(RESOURCES[1].1) else { return };
    let before = site.world.upstream.count();
    for (who, status) in [("alice", "200"), ("bob", "401")] {
        let statuses = site.many(who, &token, STREAMS).expect("curl was there");
        table.row(who, expect_eq("statuses", &statuses, &vec![status; STREAMS]));
    }
    let reached = site.world.upstream.count() - before;
    table.row("upstream", expect_eq("requests", &reached, &STREAMS));
}

/// One proof on many streams of several connections, all at once: it is new to one of them.
#[tokio::test(flavor = "multi_thread")]
async fn h2load_plays_one_proof_many_times() {
    let world = World::start().await;
    let token = world.bound();
    let nonce = world.nonce().await;
    let proof = world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
    let before = world.upstream.count();
    let mut command = Command::new("h2load");
    command
        .args(["--requests", "400", "--clients", "4", "--max-concurrent-streams", "50"])
        .arg(format!("--connect-to=127.0.0.1:{}", world.client.port))
        .args(["--header", &format!("authorization: DPoP {token}")])
        .args(["--header", &format!("dpop: {proof}")])
        .arg("https://api.example/orders/1");
    let Some(output) = run(&mut command) else { return };
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "h2load: {told}");
    let mut table = Table::default();
    let statuses = told.lines().find(|line| line.starts_with("status codes: "));
    let expected = "status codes: 1 2xx, 0 3xx, 399 4xx, 0 5xx";
    table.row("h2load", expect_eq("statuses", &statuses, &Some(expected)));
    table.row("upstream", expect_eq("requests", &(world.upstream.count() - before), &1));
    let labels = ["result=\"replay\""];
    let replays = world.metric_once("authority_dpop_result_total", &labels, 399.0).await;
    table.row("metric", expect_eq("replays", &replays, &399.0));
}
