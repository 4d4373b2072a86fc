//! An authorization server that knows nothing of sender constraints, and the edge in front of it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rusqlite::Connection;
use serde_json::{Value, json};

use super::client::{Message, Outcome, Request};
use super::keys::Key;
use super::now;
use super::pki::{Identity, Pki};
use super::proof::Proof;
use super::scripted::{Script, Scripted, json as answer, reply};
use super::token::{ISSUER, Token};
use super::world::World;

/// Where the server's endpoints are, behind the edge and in front of it.
pub(crate) const TOKEN: &str = "/token";
/// The id of the client that most tests are.
pub(crate) const CLIENT: &str = "client-1";

/// What the server issues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Opaque,
    Jwt,
}

/// What a stub issues tokens by.
struct Mint {
    form: Form,
    key: Option<Key>,
    /// `cnf` that it puts into JWTs, for a server that binds by itself.
    cnf: Value,
    /// What it says that its tokens are.
    token_type: String,
    next: usize,
    /// The last refresh token is good for another, or stays the one.
    rotates: bool,
    /// Client of each token that it knows.
    known: HashMap<String, String>,
}

/// The edge with an authorization server and a resource behind it.
pub(crate) struct Site {
    pub(crate) world: World,
    pub(crate) server: Scripted,
    mint: Arc<Mutex<Mint>>,
}

/// What a client was issued.
#[derive(Clone, Debug, Default)]
pub(crate) struct Issued {
    pub(crate) access: String,
    pub(crate) refresh: String,
    pub(crate) token_type: String,
}

impl Site {
    /// The edge binds the tokens of a server that issues `form`.
    pub(crate) async fn retrofit(form: Form, change: impl FnOnce(&mut Value)) -> Self {
        Self::retrofit_in(form, |_, _, config| change(config)).await
    }

    /// The same; `change` may write files first.
    pub(crate) async fn retrofit_in(
        form: Form,
        change: impl FnOnce(&Path, &Pki, &mut Value),
    ) -> Self {
        Self::start(form, |directory, pki, config| {
            config["issuers"][0]["retrofit"] = json!({});
            if form == Form::Opaque {
                config["issuers"][0]["retrofit"]["opaque"] =
                    json!({"audience": super::token::AUDIENCE});
            }
            for route in config["routes"].as_array_mut().expect("a list") {
                match route["role"].as_str() {
                    Some("token" | "par") => route["binding"] = json!("retrofit"),
                    Some("introspection") => route["senderCertificate"] = json!("caller"),
                    _ => {}
                }
            }
            change(directory, pki, config);
        })
        .await
    }

    /// The server binds by itself.
    pub(crate) async fn native(change: impl FnOnce(&mut Value)) -> Self {
        let site = Self::start(Form::Jwt, |_, _, config| change(config)).await;
        // A proof without a nonce of the edge's must be younger than the edge, by whole seconds.
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
        site
    }

    async fn start(form: Form, change: impl FnOnce(&Path, &Pki, &mut Value)) -> Self {
        let mint = Mint {
            form,
            key: None,
            cnf: Value::Null,
            token_type: "Bearer".to_owned(),
            next: 1,
            rotates: true,
            known: HashMap::new(),
        };
        let mint = Arc::new(Mutex::new(mint));
        let own = Arc::clone(&mint);
        let server = Scripted::start(move |request| serve(&own, request)).await;
        let world = World::start_in(|directory, pki, config| {
            config["upstreams"]["as"] =
                json!({"servers": [format!("127.0.0.1:{}", server.port)], "readTimeout": "10s"});
            config["store"] = json!({"path": "store.db"});
            for (role, path) in [
                ("token", TOKEN),
                ("par", "/par"),
                ("introspection", "/introspect"),
                ("revocation", "/revoke"),
                ("metadata", "/.well-known/oauth-authorization-server"),
            ] {
                let route = json!({"name": role, "hosts": ["api.example"], "path": path,
                                   "role": role, "upstream": "as", "issuer": ISSUER});
                config["routes"].as_array_mut().expect("a list").push(route);
            }
            change(directory, pki, config);
        })
        .await;
        mint.lock().expect("a whole mint").key = Some(world.issuer[0].clone());
        Self { world, server, mint }
    }

    /// Has the server put this `cnf` into its JWTs, and say that they are of this type.
    pub(crate) fn binds(&self, cnf: Value, token_type: &str) {
        let mut mint = self.mint.lock().expect("a whole mint");
        mint.cnf = cnf;
        token_type.clone_into(&mut mint.token_type);
    }

    /// Whether the server gives another refresh token for each that it takes.
    pub(crate) fn rotates(&self, rotates: bool) {
        self.mint.lock().expect("a whole mint").rotates = rotates;
    }

    /// Has the server work as it does at first.
    pub(crate) fn works(&self) {
        let own = Arc::clone(&self.mint);
        self.server.answer(move |request| serve(&own, request));
    }

    pub(crate) fn store(&self) -> Connection {
        open(&self.world.directory.path().join("store.db"))
    }

    /// A proof for `path` by `key`, with a nonce where the edge asks for one.
    pub(crate) async fn proof(&self, key: &Key, path: &str) -> Proof {
        let proof = || Proof::new(key, "POST", &format!("https://api.example{path}"));
        let bare = form(path, "grant_type=none").field("DPoP", proof().sign());
        let challenge = self.world.send(&bare).await.expect("an answer");
        match challenge.one("dpop-nonce") {
            Some(nonce) => proof().nonce(nonce),
            None => proof(),
        }
    }

    /// Asks for a token with a good proof of `key`.
    pub(crate) async fn ask(&self, who: Option<&Identity>, key: &Key, body: &str) -> Outcome {
        let proof = self.proof(key, TOKEN).await.sign();
        self.world.client.send(who, &form(TOKEN, body).field("DPoP", proof)).await
    }

    /// A token bound to `key`.
    pub(crate) async fn issue(&self, key: &Key) -> Issued {
        issued(&self.ask(None, key, &grant("client_credentials")).await.expect("an answer"))
    }

    /// Uses a token with a good proof of `key`.
    pub(crate) async fn consume(&self, key: &Key, token: &str) -> Outcome {
        self.consume_as(None, key, token).await
    }

    pub(crate) async fn consume_as(
        &self,
        who: Option<&Identity>,
        key: &Key,
        token: &str,
    ) -> Outcome {
        let nonce = self.world.nonce().await;
        let proof = Proof::new(key, "GET", "https://api.example/orders/1");
        let proof = proof.token(token).nonce(&nonce).sign();
        self.world.client.send(who, &super::world::get("/orders/1", token, &proof)).await
    }
}

/// A form for an endpoint.
pub(crate) fn form(path: &str, body: &str) -> Request {
    Request::new("POST", path)
        .field("Content-Type", "application/x-www-form-urlencoded")
        .body(body.as_bytes())
}

/// The body of a request by the usual client.
pub(crate) fn grant(grant_type: &str) -> String {
    format!("grant_type={grant_type}&client_id={CLIENT}")
}

/// The body of a refresh.
pub(crate) fn refresh(token: &str) -> String {
    format!("{}&refresh_token={token}", grant("refresh_token"))
}

/// What a client reads out of an answer.
pub(crate) fn issued(answer: &Message) -> Issued {
    assert_eq!(answer.status(), 200, "{}", String::from_utf8_lossy(&answer.body));
    let told = answer.json();
    let text = |name: &str| told[name].as_str().unwrap_or_default().to_owned();
    Issued {
        access: text("access_token"),
        refresh: text("refresh_token"),
        token_type: text("token_type"),
    }
}

/// The store as another process sees it.
pub(crate) fn open(path: &Path) -> Connection {
    let store = Connection::open(path).expect("a store");
    store.busy_timeout(std::time::Duration::from_secs(5)).expect("a store");
    store
}

/// The fields of a form; nothing in these tests needs an escape undone but `%2E`.
pub(crate) fn fields(request: &Message) -> HashMap<String, String> {
    let body = String::from_utf8_lossy(&request.body).into_owned();
    let fields = body.split('&').filter_map(|field| field.split_once('='));
    fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn serve(mint: &Mutex<Mint>, request: &Message) -> Script {
    let mut mint = mint.lock().expect("a whole mint");
    let path = request.start.split(' ').nth(1).unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    let form = fields(request);
    match path {
        TOKEN => mint.issue(&form),
        "/par" => reply(201, "application/json", r#"{"request_uri":"urn:x","expires_in":60}"#),
        "/introspect" => answer(mint.introspect(&form["token"])),
        "/revoke" => reply(200, "application/json", ""),
        "/.well-known/oauth-authorization-server" => answer(json!({
            "issuer": ISSUER, "token_endpoint": "https://api.example/token",
        })),
        _ => reply(404, "text/plain", "nothing"),
    }
}

impl Mint {
    fn issue(&mut self, form: &HashMap<String, String>) -> Script {
        let (number, client) = (self.next, form.get("client_id").cloned().unwrap_or_default());
        self.next += 1;
        let access = match (self.form, &self.key) {
            (Form::Jwt, Some(key)) => {
                let token = Token::new(key, "ES256").claim("jti", format!("token-{number}"));
                let token = token.claim("client_id", client.clone());
                let bound = !self.cnf.is_null();
                if bound { token.claim("cnf", self.cnf.clone()).sign() } else { token.sign() }
            }
            (Form::Opaque, _) | (_, None) => format!("access-{number}"),
        };
        let kept = form.get("refresh_token").filter(|_| !self.rotates).cloned();
        let refresh = kept.unwrap_or_else(|| format!("refresh-{number}"));
        for token in [&access, &refresh] {
            self.known.insert(token.clone(), client.clone());
        }
        answer(json!({
            "access_token": access, "token_type": self.token_type, "expires_in": 600,
            "refresh_token": refresh, "scope": "orders.read", "more": [1.50, {"a": null}],
        }))
    }

    fn introspect(&self, token: &str) -> Value {
        match self.known.get(token) {
            Some(client) => json!({
                "active": true, "iss": ISSUER, "aud": super::token::AUDIENCE, "exp": now() + 600,
                "client_id": client, "token_type": "Bearer", "scope": "orders.read",
            }),
            None => json!({"active": false}),
        }
    }
}
