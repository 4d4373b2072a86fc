//! In front of an Authorization Server that nobody here wrote: oidc-provider, once as it binds its own
//! tokens and once as it knows nothing of senders, with openid-client and oauth4webapi as its clients.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};

use super::parties::{
    Authority, LIBRARIES, OPAQUE, RESOURCES, is_possible, judge, push, result_of, scripts,
};
use super::support::Table;
use super::support::client::{Client, Message, Outcome, Request};
use super::support::keys::Key;
use super::support::process::free_port;
use super::support::proof::Proof;
use super::support::world::{World, expect_eq};

/// Kills straight after an answer, and under load.
const KILLS: usize = 32;
const KILLS_UNDER_LOAD: usize = 12;
/// Tokens before each of those, at least.
const TOKENS: usize = 11;
/// Clients that ask without a pause.
const HOLDERS: usize = 12;

/// The resource whose tokens are JWTs.
const SIGNED: &str = RESOURCES[0].1;
const SECRET: &str = "only-for-this-test";

/// How the edge stands in front of the server.
#[derive(Clone, Copy)]
struct Stand {
    /// How the server is: flags of its script.
    server: &'static [&'static str],
    /// Keys of the routes that tokens are asked for on.
    route: fn() -> Value,
    /// Keys of the issuer.
    issuer: fn() -> Value,
    /// Whether the server is asked about opaque tokens.
    asks: bool,
}

/// The server binds.
const NATIVE: Stand =
    Stand { server: &[], route: || json!({"binding": "native"}), issuer: || json!({}), asks: true };
/// The edge does.
const RETROFIT: Stand = Stand {
    server: &["unbound"],
    route: || json!({"binding": "retrofit"}),
    issuer: || json!({"retrofit": {}}),
    asks: true,
};
/// The edge does, and nobody is asked about opaque tokens.
const BY_RECORD: Stand = Stand {
    issuer: || json!({"retrofit": {"opaque": {"audience": OPAQUE}}}),
    asks: false,
    ..RETROFIT
};

/// The edge with a server behind it, and a resource: two origins.
struct Front {
    world: World,
    authority: Authority,
    /// Of the resource's origin.
    port: u16,
    /// Of the server's.
    outer: u16,
    /// With the edge's secret at the server.
    _secret: tempfile::NamedTempFile,
}

impl Front {
    async fn start(stand: Stand) -> Self {
        let (port, outer, inner) = (free_port(), free_port(), free_port());
        let name = format!("https://localhost:{outer}");
        let authority = Authority::start(inner, &name, stand.server);
        let secret = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(&secret, SECRET).expect("a writable file");
        let world = World::start_with(|config| {
            config["store"] = json!({"path": "holdfast.db"});
            let mut second = config["edge"]["listeners"][0].clone();
            second["name"] = json!("authority");
            second["address"] = json!(format!("127.0.0.1:{outer}"));
            config["edge"]["listeners"][0]["address"] = json!(format!("127.0.0.1:{port}"));
            push(&mut config["edge"]["listeners"], second);
            config["routes"][0]["hosts"] = json!([format!("localhost:{port}")]);
            config["upstreams"]["authority"] =
                json!({"servers": [format!("127.0.0.1:{inner}")], "clientCertificate": true});
            // A resource at the server itself.
            config["upstreams"]["claims"] =
                json!({"servers": [format!("127.0.0.1:{inner}")], "authorization": "bearer"});
            let hosts = json!([format!("localhost:{outer}")]);
            push(
                &mut config["routes"],
                json!({"name": "claims", "hosts": hosts, "path": "/me", "role": "resource",
                       "upstream": "claims"}),
            );
            let mut audiences = RESOURCES.map(|(_, resource)| resource).to_vec();
            audiences.push(OPAQUE);
            let mut issuer = json!({
                "issuer": name,
                "audiences": audiences,
                "jwks": {"url": format!("http://127.0.0.1:{inner}/jwks"), "cooldown": "1s"},
            });
            if stand.asks {
                issuer["introspection"] = json!({
                    "url": format!("http://127.0.0.1:{inner}/token/introspection"),
                    "clientId": "edge",
                    "clientSecretFile": secret.path(),
                    "timeout": "20s",
                });
            }
            merge(&mut issuer, (stand.issuer)());
            for (role, path) in [
                ("token", "/token"),
                ("par", "/request"),
                ("introspection", "/token/introspection"),
                ("revocation", "/token/revocation"),
                ("metadata", "/.well-known/openid-configuration"),
                ("public", "/*"),
            ] {
                let mut route = json!({"name": role, "hosts": hosts, "path": path, "role": role,
                                       "upstream": "authority"});
                merge(
                    &mut route,
                    match role {
                        "public" => json!({"name": "rest", "passCredentials": true}),
                        "token" | "par" => (stand.route)(),
                        "introspection" => json!({"senderCertificate": "caller"}),
                        _ => json!({}),
                    },
                );
                if role != "public" {
                    route["issuer"] = json!(name);
                }
                push(&mut config["routes"], route);
            }
            config["issuers"] = json!([issuer]);
        })
        .await;
        // A proof without a nonce of the edge's must be younger than the edge, by whole seconds.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        Self { world, authority, port, outer, _secret: secret }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}/orders/1?page=2", self.port)
    }

    /// What a script says is told, as a client of `library`.
    fn node(&self, script: &str, library: &str, client: &str, resource: &str) -> Command {
        let mut command = Command::new("node");
        command
            .current_dir(scripts())
            .args([script, library, &self.authority.issuer, client, resource, &self.url()])
            .arg(self.world.directory.path())
            .stderr(Stdio::inherit());
        command
    }

    /// What became of a client that used and misused a token, by itself.
    fn party(&self, library: &str, client: &str, resource: &str) -> Value {
        let output = self.node("party.mjs", library, client, resource).output().expect("node");
        assert!(output.status.success(), "{library} as {client} for {resource}");
        serde_json::from_slice(&output.stdout).expect("a line of JSON")
    }

    fn session(&self, client: &str, resource: &str, flags: &[&str]) -> Session {
        self.session_of("openid-client", client, resource, flags)
    }

    fn session_of(&self, library: &str, client: &str, resource: &str, flags: &[&str]) -> Session {
        let mut command = self.node("session.mjs", library, client, resource);
        let mut child = command
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node, as it ran the server");
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        Session { child, input, output }
    }

    /// Whether each of these was the reason of a refusal.
    async fn gave(&self, reasons: &[&str]) -> Result<(), String> {
        for reason in reasons {
            if self.world.process.record(|record| record["reason"] == *reason).await.is_none() {
                return Err(format!("nothing was refused for {reason}"));
            }
        }
        Ok(())
    }

    /// Whether what it logs and what it keeps say nothing of these.
    fn keeps_to_itself(&self, secrets: &[&str]) -> Result<(), String> {
        let read = |name| std::fs::read(self.world.directory.path().join(name)).unwrap_or_default();
        let places = [
            ("log", self.world.process.output().into_bytes()),
            ("store", read("holdfast.db")),
            ("store's log", read("holdfast.db-wal")),
        ];
        for (place, bytes) in places {
            let holds =
                |secret: &&&str| bytes.windows(secret.len()).any(|it| it == secret.as_bytes());
            if bytes.is_empty() || secrets.iter().any(|secret| holds(&secret)) {
                return Err(format!("{place}: a secret, or nothing at all"));
            }
        }
        Ok(())
    }

    /// A client of this key.
    fn holder(&self, key: Key, resource: &'static str) -> Holder {
        let mut client = self.world.client.clone();
        client.name = "localhost";
        Holder { client, key, resource, ports: [self.outer, self.port], nonces: Default::default() }
    }

    /// Kills the edge and starts it again with what it has kept.
    async fn kill(&mut self) {
        self.world.process.kill();
        assert!(self.world.process.ended().await.is_some(), "it was not killed");
        self.world.restart_ended().await;
    }

    /// Takes out all that is kept of tokens of this kind. How many there were.
    fn forget(&self, kind: &str) -> usize {
        let file = self.world.directory.path().join("holdfast.db");
        let database = rusqlite::Connection::open(file).expect("the store");
        database.busy_timeout(Duration::from_secs(10)).expect("a time");
        let sql = "DELETE FROM authority_tokens WHERE kind = ?1";
        database.execute(sql, [kind]).expect("a table")
    }
}

fn merge(object: &mut Value, more: Value) {
    let Value::Object(more) = more else { panic!("no object") };
    object.as_object_mut().expect("an object").extend(more);
}

/// A client that is quick enough to be there when the edge is killed.
#[derive(Clone)]
struct Holder {
    client: Client,
    key: Key,
    resource: &'static str,
    /// Of the server's origin and the resource's.
    ports: [u16; 2],
    nonces: [Option<String>; 2],
}

impl Holder {
    async fn token(&mut self) -> Outcome {
        let body = format!(
            "grant_type=client_credentials&scope=orders.read&resource={}",
            self.resource.replace(':', "%3A").replace('/', "%2F")
        );
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("app:{SECRET}"));
        let request = Request::new("POST", "/token")
            .field("Authorization", format!("Basic {basic}"))
            .field("Content-Type", "application/x-www-form-urlencoded")
            .body(body.as_bytes());
        self.send(0, request, None).await
    }

    async fn uses(&mut self, token: &str) -> Outcome {
        let request =
            Request::new("GET", "/orders/1").field("Authorization", format!("DPoP {token}"));
        self.send(1, request, Some(token)).await
    }

    /// Sends it with a proof, and again with a nonce where it is asked for one.
    async fn send(&mut self, to: usize, request: Request, token: Option<&str>) -> Outcome {
        let origin = format!("localhost:{}", self.ports[to]);
        self.client.port = self.ports[to];
        let mut last = Err("not sent".to_owned());
        for _ in 0..2 {
            let url = format!("https://{origin}{}", request.target);
            let mut proof = Proof::new(&self.key, &request.method, &url);
            if let Some(token) = token {
                proof = proof.token(token);
            }
            if let Some(nonce) = &self.nonces[to] {
                proof = proof.nonce(nonce);
            }
            let request = request.clone().host(&origin).field("DPoP", proof.sign());
            let answer = self.client.send(None, &request).await?;
            let challenged = answer.json()["error"] == "use_dpop_nonce";
            if let Some(nonce) = answer.one("dpop-nonce") {
                self.nonces[to] = Some(nonce.to_owned());
            }
            last = Ok(answer);
            if !challenged {
                break;
            }
        }
        last
    }
}

/// Whether a token is `own`'s and nobody else's.
async fn check(own: &mut Holder, other: &mut Holder, token: &str) -> Result<(), String> {
    let answer = own.uses(token).await?;
    expect_eq("own", &answer.status(), &200)?;
    expect_eq("result", &answer.seen().one("x-holdfast-result"), &Some("dpop"))?;
    let answer = other.uses(token).await?;
    let told = json!([answer.status(), answer.json()["error"]]);
    expect_eq("other", &told, &json!([401, "invalid_token"]))
}

/// A client that is told what to do, one thing at a time.
struct Session {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Session {
    /// Does it with a token and the key of this name.
    fn with(&mut self, what: &str, token: &str, key: &str) -> Value {
        self.task(&json!({"do": what, "token": token, "key": key}))
    }

    /// The same with a certificate of this name.
    fn showing(&mut self, who: &str, what: &str, token: &str) -> Value {
        self.task(&json!({"do": what, "token": token, "sender": who}))
    }

    fn task(&mut self, task: &Value) -> Value {
        writeln!(self.input, "{task}").expect("a session that lives");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a pipe");
        let outcome: Value = serde_json::from_str(&line).expect("a line of JSON");
        assert!(outcome.get("fault").is_none(), "{task}: {outcome}");
        outcome
    }

    /// The tokens that it is given, with its own key: the answer.
    fn gets(&mut self, what: &str) -> Value {
        let outcome = self.with(what, "", "own");
        assert!(outcome["status"] == 200, "{what}: {outcome}");
        outcome["told"].clone()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(answer: &Value, name: &str) -> String {
    answer[name].as_str().unwrap_or_else(|| panic!("no {name} in {answer}")).to_owned()
}

fn refused(outcome: &Value, status: u16, error: &str) -> Result<(), String> {
    expect_eq("refusal", &json!([outcome["status"], outcome["error"]]), &json!([status, error]))
}

fn admitted(outcome: &Value, result: &str) -> Result<(), String> {
    expect_eq("result", &result_of(outcome), &json!([200, result]))
}

/// Paths and statuses.
fn exchanges(outcome: &Value) -> Vec<String> {
    let list = outcome["exchanges"].as_array().cloned().unwrap_or_default();
    list.iter().map(|one| one.as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn native_both_libraries_with_tokens_of_each_binding() {
    if !is_possible() {
        return;
    }
    let mut table = Table::default();
    for server in [&[][..], &["nonces"]] {
        let front = Front::start(Stand { server, ..NATIVE }).await;
        for (library, resource) in LIBRARIES.into_iter().flat_map(|it| [(it, SIGNED), (it, OPAQUE)])
        {
            for client in ["dpop", "mtls"] {
                let outcome = front.party(library, client, resource);
                let name = format!("{server:?}, {library}, {client}, {resource}");
                table.row(&name, judge(&outcome, client));
                let asked = exchanges(&outcome);
                let asked = asked.iter().filter(|it| it.starts_with("/token ")).count();
                // A server's own challenge is passed on, and the edge adds none.
                let expected = if client == "dpop" && !server.is_empty() { 2 } else { 1 };
                table.row(&name, expect_eq("asked for a token", &asked, &expected));
            }
        }
        let labels = ["reason=\"absent\""];
        let misses = front.world.metric("authority_dpop_nonce_miss_total", &labels).await;
        // The resource's, once for each key, a thief's too; and the server's.
        let expected = if server.is_empty() { 8.0 } else { 12.0 };
        table.row(&format!("{server:?}"), expect_eq("nonce misses", &misses, &expected));
    }
}

/// A server without nonces of its own refuses a proof that has one, as oidc-provider does: that is why
/// the edge asks for none there unless it is told to.
#[tokio::test(flavor = "multi_thread")]
async fn native_with_the_edges_nonces() {
    if !is_possible() {
        return;
    }
    let route = || json!({"binding": "native", "nonce": "edge"});
    let front = Front::start(Stand { route, ..NATIVE }).await;
    let mut table = Table::default();
    let mut session = front.session("dpop", SIGNED, &[]);
    let outcome = session.with("token", "", "own");
    table.row("fail/nonce", refused(&outcome, 400, "invalid_dpop_proof"));
    let asked = exchanges(&outcome);
    table.row("fail/nonce", expect_eq("asked", &asked, &["/token 400", "/token 400"]));
    let mut session = front.session("mtls", SIGNED, &["certified", "secretless"]);
    let token = text(&session.gets("token"), "access_token");
    table.row("ok/mtls", admitted(&session.showing("alice", "use", &token), "mtls"));
}

/// A code that was asked for with a proof, the refresh token that came of it, and what the server says
/// of its tokens.
#[tokio::test(flavor = "multi_thread")]
async fn native_flow_pushed_refreshed_introspected_and_revoked() {
    if !is_possible() {
        return;
    }
    let mut table = Table::default();
    for server in [&[][..], &["nonces"]] {
        let front = Front::start(Stand { server, ..NATIVE }).await;
        for way in ["flow", "push"] {
            let mut session = front.session("app", OPAQUE, &[]);
            let name = |step: &str| format!("{server:?}, {way}, {step}");
            let told = session.gets(way);
            table.row(&name("ok"), expect_eq("type", &told["token_type"], &json!("dpop")));
            let token = text(&told, "access_token");
            table.row(&name("ok/use"), admitted(&session.with("use", &token, "own"), "dpop"));
            let stolen = session.with("use", &token, "other");
            table.row(&name("fail/use"), refused(&stolen, 401, "invalid_token"));
            let asked = session.with("introspect", &token, "own")["told"].clone();
            let seen =
                json!([asked["active"], asked["token_type"], asked["cnf"]["jkt"].is_string()]);
            table.row(&name("asked"), expect_eq("told", &seen, &json!([true, "DPoP", true])));
            let outcome = session.with("refresh", &text(&told, "refresh_token"), "own");
            let next = text(&outcome["told"], "access_token");
            table.row(&name("ok/next"), admitted(&session.with("use", &next, "own"), "dpop"));
            let revoked = session.with("revoke", &next, "own");
            table.row(&name("revoke"), expect_eq("status", &revoked["status"], &json!(200)));
            let asked = session.with("introspect", &next, "own")["told"].clone();
            table.row(&name("revoked"), expect_eq("told", &asked, &json!({"active": false})));
        }
    }
}

/// Both sorts of token, and both ways to know an opaque one.
const KINDS: [(&str, Stand, &str); 4] = [
    ("JWT", RETROFIT, SIGNED),
    ("opaque, asked about", RETROFIT, OPAQUE),
    ("JWT beside records", BY_RECORD, SIGNED),
    ("opaque, by its record", BY_RECORD, OPAQUE),
];

/// The server says Bearer and knows nothing; what the clients see is bound.
#[tokio::test(flavor = "multi_thread")]
async fn retrofit_both_libraries() {
    if !is_possible() {
        return;
    }
    let mut table = Table::default();
    for (kind, stand, resource) in KINDS {
        let front = Front::start(stand).await;
        for library in LIBRARIES {
            let outcome = front.party(library, "dpop", resource);
            let name = format!("{kind}, {library}");
            table.row(&name, judge(&outcome, "dpop"));
            let own = &outcome["claims"]["cnf"];
            table.row(&name, expect_eq("the token's own word", own, &Value::Null));
            let bound = outcome["claims"].is_object();
            table.row(&name, expect_eq("JWT", &bound, &kind.starts_with("JWT")));
        }
    }
}

/// A certificate binds what its server knows nothing of, too: the token stays Bearer.
#[tokio::test(flavor = "multi_thread")]
async fn retrofit_by_certificate() {
    if !is_possible() {
        return;
    }
    let mut table = Table::default();
    for (kind, stand, resource) in KINDS {
        let front = Front::start(stand).await;
        for library in LIBRARIES {
            let mut session = front.session_of(library, "app", resource, &["certified"]);
            let name = |step: &str| format!("{kind}, {library}, {step}");
            let told = session.gets("token");
            let token = text(&told, "access_token");
            table.row(&name("ok"), expect_eq("type", &told["token_type"], &json!("bearer")));
            table
                .row(&name("ok/alice"), admitted(&session.showing("alice", "use", &token), "mtls"));
            for who in ["bob", "nobody"] {
                let outcome = session.showing(who, "use", &token);
                table.row(&name(who), refused(&outcome, 401, "invalid_token"));
            }
            if resource == OPAQUE {
                let own = session.showing("alice", "introspect", &token)["told"].clone();
                let x5t = json!(front.world.pki.alice.x5t());
                table.row(&name("asked"), expect_eq("cnf", &own["cnf"]["x5t#S256"], &x5t));
                table.row(&name("asked"), expect_eq("type", &own["token_type"], &json!("Bearer")));
                let other = session.showing("bob", "introspect", &token);
                table
                    .row(&name("asked by bob"), expect_eq("status", &other["status"], &json!(401)));
            }
        }
        let labels = ["reason=\"thumbprint-mismatch\""];
        let expected = if resource == OPAQUE { 4.0 } else { 2.0 };
        let name = "authority_mtls_mismatch_total";
        let found = front.world.metric_once(name, &labels, expected).await;
        table.row(kind, expect_eq("mismatches", &found, &expected));
    }
}

/// A code, its tokens, and those that were refreshed from them, each with its key and with another.
#[tokio::test(flavor = "multi_thread")]
async fn retrofit_flow_and_refresh() {
    if !is_possible() {
        return;
    }
    let mut table = Table::default();
    for (at, (kind, stand, resource)) in KINDS.into_iter().enumerate() {
        let servers = [&["unbound"][..], &["unbound", "rotates"]];
        // Each with either sort of token, and with either way to know an opaque one.
        let server = servers[at.div_ceil(2) % 2];
        let front = Front::start(Stand { server, ..stand }).await;
        let mut session = front.session("app", resource, &[]);
        let name = |step: &str| format!("{kind}, {server:?}, {step}");
        let mut told = session.gets(if server.len() == 1 { "flow" } else { "push" });
        for round in 0..3 {
            let name = |step: &str| name(&format!("{round}, {step}"));
            table.row(&name("ok"), expect_eq("type", &told["token_type"], &json!("dpop")));
            let (token, refresh) = (text(&told, "access_token"), text(&told, "refresh_token"));
            table.row(&name("ok/use"), admitted(&session.with("use", &token, "own"), "dpop"));
            let stolen = session.with("use", &token, "other");
            table.row(&name("fail/use"), refused(&stolen, 401, "invalid_token"));
            let plain = session.with("downgrade", &token, "own");
            table.row(&name("fail/bearer"), refused(&plain, 401, "invalid_token"));
            let stolen = session.with("refresh", &refresh, "other");
            table.row(&name("fail/refresh"), refused(&stolen, 400, "invalid_grant"));
            let outcome = session.with("refresh", &refresh, "own");
            table.row(&name("ok/refresh"), expect_eq("status", &outcome["status"], &json!(200)));
            let next = outcome["told"].clone();
            let rotated = next["refresh_token"] != told["refresh_token"];
            let expected = server.contains(&"rotates");
            table.row(&name("ok/refresh"), expect_eq("rotated", &rotated, &expected));
            told = next;
        }
        let mut other = front.session("other", resource, &[]);
        let stolen = other.with("refresh", &text(&told, "refresh_token"), "own");
        table.row(&name("fail/other client"), refused(&stolen, 400, "invalid_grant"));
        let (token, refresh) = (text(&told, "access_token"), text(&told, "refresh_token"));
        let gave = front.gave(&["key_mismatch", "refresh_token_client"]).await;
        table.row(&name("reasons"), gave);
        let own = front.keeps_to_itself(&[&token, &refresh, SECRET]);
        table.row(&name("secrets"), own);
    }
}

/// What the edge has lost, it refuses.
#[tokio::test(flavor = "multi_thread")]
async fn retrofit_a_lost_record_fails_closed() {
    if !is_possible() {
        return;
    }
    let mut table = Table::default();
    for (kind, stand, resource) in KINDS {
        let front = Front::start(stand).await;
        let mut session = front.session("app", resource, &[]);
        let name = |step: &str| format!("{kind}, {step}");
        let told = session.gets("flow");
        let (token, refresh) = (text(&told, "access_token"), text(&told, "refresh_token"));
        table.row(&name("ok"), admitted(&session.with("use", &token, "own"), "dpop"));
        table.row(&name("lost"), expect_eq("rows", &front.forget("access"), &1));
        let outcome = session.with("use", &token, "own");
        table.row(&name("fail/use"), refused(&outcome, 401, "invalid_token"));
        let outcome = session.with("downgrade", &token, "own");
        table.row(&name("fail/bearer"), refused(&outcome, 401, "invalid_token"));
        if resource == OPAQUE {
            let asked = session.with("introspect", &token, "own")["told"].clone();
            table.row(&name("asked"), expect_eq("told", &asked, &json!({"active": false})));
        }
        let next = text(&session.with("refresh", &refresh, "own")["told"], "access_token");
        table.row(&name("ok/next"), admitted(&session.with("use", &next, "own"), "dpop"));
        table.row(&name("lost"), expect_eq("rows", &front.forget("refresh"), &1));
        let outcome = session.with("refresh", &refresh, "own");
        table.row(&name("fail/refresh"), refused(&outcome, 400, "invalid_grant"));
        let gave = front.gave(&["record_missing", "refresh_token_unknown"]).await;
        table.row(&name("reasons"), gave);
    }
}

/// Revocation by the token's own client counts at once, whatever is remembered of the token; by another
/// it changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn retrofit_introspection_and_revocation() {
    if !is_possible() {
        return;
    }
    let mut table = Table::default();
    for (kind, stand, resource) in KINDS {
        let front = Front::start(stand).await;
        let mut session = front.session("app", resource, &[]);
        let mut other = front.session("other", resource, &[]);
        let name = |step: &str| format!("{kind}, {step}");
        let told = session.gets("flow");
        let (token, refresh) = (text(&told, "access_token"), text(&told, "refresh_token"));
        let used = session.with("use", &token, "own");
        table.row(&name("ok"), admitted(&used, "dpop"));
        let jkt = Message::parse(used["body"].as_str().unwrap_or_default().as_bytes());
        let jkt = jkt.one("x-holdfast-cnf-jkt").map(str::to_owned);
        // oidc-provider neither introspects nor revokes its JWTs.
        if resource == OPAQUE {
            let asked = session.with("introspect", &token, "own")["told"].clone();
            let seen = json!([asked["active"], asked["token_type"], asked["cnf"]]);
            let expected = json!([true, "DPoP", {"jkt": jkt}]);
            table.row(&name("asked"), expect_eq("told", &seen, &expected));
        }
        let asked = session.with("introspect", &refresh, "own")["told"].clone();
        let seen = json!([asked["active"], asked["token_type"], asked["cnf"]]);
        let expected = json!([true, null, {"jkt": jkt}]);
        table.row(&name("asked about refresh"), expect_eq("told", &seen, &expected));
        for one in [&token, &refresh] {
            let by = other.with("revoke", one, "own");
            let structured = resource != OPAQUE && one == &token;
            let expected = if structured { 400 } else { 200 };
            table.row(&name("by another"), expect_eq("status", &by["status"], &json!(expected)));
        }
        let alive = session.with("use", &token, "own");
        table.row(&name("ok/by another"), admitted(&alive, "dpop"));
        let next = session.with("refresh", &refresh, "own");
        table.row(&name("ok/by another"), expect_eq("status", &next["status"], &json!(200)));
        let next = text(&next["told"], "access_token");
        table.row(&name("ok/next"), admitted(&session.with("use", &next, "own"), "dpop"));
        if resource == OPAQUE && kind.contains("record") {
            // One access token: the others of its grant are the server's to say.
            let by = session.with("revoke", &token, "own");
            table.row(&name("revoke"), expect_eq("status", &by["status"], &json!(200)));
            let dead = session.with("use", &token, "own");
            table.row(&name("fail/revoked"), refused(&dead, 401, "invalid_token"));
            table.row(&name("reasons"), front.gave(&["token_revoked"]).await);
            continue;
        }
        // A refresh token takes with it all that came from its grant.
        let by = session.with("revoke", &refresh, "own");
        table.row(&name("revoke"), expect_eq("status", &by["status"], &json!(200)));
        for (which, one) in [("first", &token), ("next", &next)] {
            let dead = session.with("use", one, "own");
            table.row(&name(&format!("fail/{which}")), refused(&dead, 401, "invalid_token"));
        }
        let dead = session.with("refresh", &refresh, "own");
        table.row(&name("fail/refresh"), refused(&dead, 400, "invalid_grant"));
        let asked = session.with("introspect", &refresh, "own")["told"].clone();
        table.row(&name("asked"), expect_eq("told", &asked, &json!({"active": false})));
        let gave = front.gave(&["token_revoked", "refresh_token_revoked"]).await;
        table.row(&name("reasons"), gave);
    }
}

/// The server's own resource takes no scheme but Bearer, and knows nothing of proofs: that is the edge's
/// to check, with the nonce that the token was asked for with.
#[tokio::test(flavor = "multi_thread")]
async fn retrofit_claims_about_the_user() {
    if !is_possible() {
        return;
    }
    let front = Front::start(BY_RECORD).await;
    let mut table = Table::default();
    let mut session = front.session("app", "", &[]);
    let told = session.gets("flow");
    let token = text(&told, "access_token");
    let claims = session.with("userinfo", &token, "own");
    table.row("ok", expect_eq("claims", &claims["told"], &json!({"sub": "somebody"})));
    table.row("ok", expect_eq("asked", &exchanges(&claims), &["/me 200"]));
    let stolen = session.with("userinfo", &token, "other");
    table.row("fail/key", refused(&stolen, 401, "invalid_token"));
    table.row("lost", expect_eq("rows", &front.forget("access"), &1));
    let lost = session.with("userinfo", &token, "own");
    table.row("fail/lost", refused(&lost, 401, "invalid_token"));
}

/// Discovery by both libraries takes what the edge adds.
#[tokio::test(flavor = "multi_thread")]
async fn retrofit_metadata() {
    if !is_possible() {
        return;
    }
    let front = Front::start(RETROFIT).await;
    let mut table = Table::default();
    for library in LIBRARIES {
        let mut session = front.session_of(library, "app", SIGNED, &[]);
        let told = session.gets("metadata");
        let algorithms = json!(["ES256", "ES384", "EdDSA", "Ed25519", "PS256"]);
        let name = "dpop_signing_alg_values_supported";
        table.row(library, expect_eq(name, &told[name], &algorithms));
        let name = "tls_client_certificate_bound_access_tokens";
        table.row(library, expect_eq(name, &told[name], &json!(true)));
        table.row(library, expect_eq("issuer", &told["issuer"], &json!(front.authority.issuer)));
    }
}

/// The edge is killed as soon as a client has its token: it is bound all the same.
#[tokio::test(flavor = "multi_thread")]
async fn retrofit_killed_straight_after_the_answer() {
    if !is_possible() {
        return;
    }
    let mut front = Front::start(BY_RECORD).await;
    let mut table = Table::default();
    for round in 0..KILLS {
        let resource = [SIGNED, OPAQUE][round % 2];
        let mut own = front.holder(Key::new("ES256"), resource);
        let mut other = front.holder(Key::new("ES256"), resource);
        let answer = own.token().await;
        front.kill().await;
        let answer = answer.expect("an answer").json();
        let name = format!("round {round}");
        table.row(&name, expect_eq("token_type", &answer["token_type"], &json!("DPoP")));
        let checked = check(&mut own, &mut other, &text(&answer, "access_token")).await;
        table.row(&name, checked);
    }
}

/// So is a refresh token that has just taken the place of another.
#[tokio::test(flavor = "multi_thread")]
async fn retrofit_killed_straight_after_a_refresh() {
    if !is_possible() {
        return;
    }
    let server = &["unbound", "rotates"];
    let mut front = Front::start(Stand { server, ..BY_RECORD }).await;
    let mut table = Table::default();
    let mut session = front.session("app", OPAQUE, &[]);
    let mut told = session.gets("flow");
    for round in 0..KILLS_UNDER_LOAD {
        let name = |step: &str| format!("round {round}, {step}");
        let refresh = text(&told, "refresh_token");
        let outcome = session.with("refresh", &refresh, "own");
        front.kill().await;
        told = outcome["told"].clone();
        let (token, next) = (text(&told, "access_token"), text(&told, "refresh_token"));
        assert_ne!(refresh, next, "it was not rotated");
        table.row(&name("ok"), admitted(&session.with("use", &token, "own"), "dpop"));
        let stolen = session.with("use", &token, "other");
        table.row(&name("fail/use"), refused(&stolen, 401, "invalid_token"));
        let stolen = session.with("refresh", &next, "other");
        table.row(&name("fail/refresh"), refused(&stolen, 400, "invalid_grant"));
    }
}

/// Many clients ask when the edge is killed: whatever token one of them has seen is that one's.
#[tokio::test(flavor = "multi_thread")]
async fn retrofit_killed_under_load() {
    if !is_possible() {
        return;
    }
    let mut front = Front::start(BY_RECORD).await;
    let mut table = Table::default();
    let mut holders: Vec<Holder> = (0..HOLDERS)
        .map(|number| front.holder(Key::new("ES256"), [SIGNED, OPAQUE][number % 2]))
        .collect();
    let mut seen = 0;
    for round in 0..KILLS_UNDER_LOAD {
        let count = Arc::new(AtomicUsize::new(0));
        let asking = holders.iter().cloned().map(|mut holder| {
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let mut tokens = Vec::new();
                // Until it is gone.
                while let Ok(answer) = holder.token().await {
                    assert_eq!(answer.status(), 200, "{}", answer.json());
                    tokens.push(text(&answer.json(), "access_token"));
                    count.fetch_add(1, Ordering::SeqCst);
                }
                tokens
            })
        });
        let asking: Vec<_> = asking.collect();
        for _ in 0..1500 {
            if count.load(Ordering::SeqCst) >= TOKENS {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let moment = 150 + 37 * u64::try_from(round).expect("small");
        tokio::time::sleep(Duration::from_millis(moment)).await;
        front.kill().await;
        for (number, tokens) in asking.into_iter().enumerate() {
            let tokens = tokens.await.expect("no panic");
            seen += tokens.len();
            let mut other = holders[(number + 1) % HOLDERS].clone();
            let own = &mut holders[number];
            for token in tokens {
                table.row(&format!("round {round}"), check(own, &mut other, &token).await);
            }
        }
    }
    // Too few would show nothing.
    assert!(seen >= TOKENS * KILLS_UNDER_LOAD, "{seen} tokens");
    println!("{KILLS_UNDER_LOAD} kills, {seen} tokens seen");
}
