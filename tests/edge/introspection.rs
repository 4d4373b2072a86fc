//! Opaque tokens: whom the edge asks about them, when, how often, and what it makes of the answers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

use super::support::client::{Message, Outcome, Request};
use super::support::pki::Identity;
use super::support::scripted::{Script, Scripted, Step, json as answer, reply, silence, trickle};
use super::support::token::{AUDIENCE, ISSUER};
use super::support::world::{Expect, World, bearer, expect_eq, get};
use super::support::{Table, now};

use Expect::{Admitted, Refused};

const SECRET: &str = "a secret: 100 % of it, + more";
const UNAVAILABLE: Expect = Refused("introspection_unavailable");
const INACTIVE: Expect = Refused("token_inactive");

/// An authorization server that knows some tokens.
struct Issuer {
    server: Scripted,
    tokens: Arc<Mutex<HashMap<String, Value>>>,
    directory: TempDir,
}

impl Issuer {
    async fn start() -> Self {
        let tokens: Arc<Mutex<HashMap<String, Value>>> = Arc::default();
        let known = Arc::clone(&tokens);
        let server = Scripted::start(move |request| answer(look_up(&known, request))).await;
        let directory = TempDir::new().expect("a directory");
        std::fs::write(directory.path().join("secret"), format!("{SECRET}\n")).expect("a file");
        Self { server, tokens, directory }
    }

    /// `introspection` of its entry.
    fn section(&self) -> Value {
        json!({
            "url": format!("http://127.0.0.1:{}/introspect?x=1", self.server.port),
            "clientId": "the edge",
            "clientSecretFile": self.directory.path().join("secret"),
            "cacheTtl": "60s", "negativeTtl": "60s", "timeout": "10s",
        })
    }

    async fn world(&self, change: impl FnOnce(&mut Value)) -> World {
        let section = self.section();
        World::start_with(|config| {
            config["issuers"][0]["introspection"] = section;
            change(config);
        })
        .await
    }

    /// Makes a token known.
    fn knows(&self, token: &str, answer: Value) {
        self.tokens.lock().expect("whole tokens").insert(token.to_owned(), answer);
    }

    fn forgets(&self, token: &str) {
        self.tokens.lock().expect("whole tokens").remove(token);
    }

    /// Has it answer by what it knows again.
    fn works(&self) {
        let known = Arc::clone(&self.tokens);
        self.server.answer(move |request| answer(look_up(&known, request)));
    }
}

fn look_up(known: &Mutex<HashMap<String, Value>>, request: &Message) -> Value {
    let form = form(request);
    let known = known.lock().expect("whole tokens");
    known.get(&form["token"]).cloned().unwrap_or(json!({"active": false}))
}

/// The fields of a form; `+` is the only escape that these tests need to undo in a token.
fn form(request: &Message) -> HashMap<String, String> {
    let body = String::from_utf8_lossy(&request.body).into_owned();
    let fields = body.split('&').filter_map(|field| field.split_once('='));
    fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// A good answer about a token of this `cnf`.
fn active(cnf: Value) -> Value {
    let token_type = if cnf.get("jkt").is_some() { "DPoP" } else { "Bearer" };
    json!({
        "active": true, "iss": ISSUER, "aud": AUDIENCE, "exp": now() + 600, "iat": now(),
        "sub": "user-1", "client_id": "client-1", "scope": "orders.read",
        "token_type": token_type, "cnf": cnf,
    })
}

fn with(mut answer: Value, name: &str, value: Value) -> Value {
    answer[name] = value;
    answer
}

/// A request with a fresh proof of the client's key.
async fn proven(world: &World, token: &str) -> Request {
    let nonce = world.nonce().await;
    get("/orders/1", token, &world.proof("GET", "/orders/1").token(token).nonce(&nonce).sign())
}

async fn send(world: &World, token: &str) -> Outcome {
    world.send(&proven(world, token).await).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opaque_token_is_asked_about() {
    let issuer = Issuer::start().await;
    let world = issuer.world(|_| {}).await;
    let (jkt, x5t) = (world.key.jkt(), world.pki.alice.x5t());
    issuer.knows("key-bound", active(json!({"jkt": jkt})));
    issuer.knows("certificate-bound", active(json!({"x5t#S256": x5t})));
    issuer.knows("both", active(json!({"jkt": jkt, "x5t#S256": x5t})));
    issuer.knows("unbound", with(active(json!({})), "cnf", json!({})));
    let mut table = Table::default();

    let admitted = send(&world, "key-bound").await;
    let seen = admitted.clone().expect("an answer").seen();
    table.row("ok/key", world.judge(admitted, Admitted("dpop")).await);
    for (name, value) in [
        ("x-holdfast-subject", "user-1"),
        ("x-holdfast-client", "client-1"),
        ("x-holdfast-cnf-jkt", jkt.as_str()),
        ("authorization", "DPoP key-bound"),
    ] {
        table.row(name, expect_eq(name, &seen.one(name), &Some(value)));
    }
    let asked = issuer.server.last();
    let basic = STANDARD.encode("the+edge:a+secret%3A+100+%25+of+it%2C+%2B+more");
    for (name, found, expect) in [
        ("question", Some(asked.start.as_str()), "POST /introspect?x=1 HTTP/1.1"),
        ("media", asked.one("content-type"), "application/x-www-form-urlencoded"),
        ("accept", asked.one("accept"), "application/json"),
        ("basic", asked.one("authorization"), &format!("Basic {basic}")),
        (
            "form",
            std::str::from_utf8(&asked.body).ok(),
            "token=key-bound&token_type_hint=access_token",
        ),
    ] {
        table.row(name, expect_eq(name, &found, &Some(expect)));
    }
    table.row("ok/again", world.judge(send(&world, "key-bound").await, Admitted("dpop")).await);
    table.row("ok/asked once", expect_eq("asked", &issuer.server.asked(), &1));

    let as_alice = async |request: Request| world.send_as(&world.pki.alice, &request).await;
    let answer = as_alice(bearer("/orders/1", "certificate-bound")).await;
    table.row("ok/certificate", world.judge(answer, Admitted("mtls")).await);
    let answer = world.send_as(&world.pki.bob, &bearer("/orders/1", "certificate-bound")).await;
    table.row("fail/bob", world.judge(answer, Refused("thumbprint-mismatch")).await);
    let answer = as_alice(proven(&world, "both").await).await;
    table.row("ok/both", world.judge(answer, Admitted("dpop+mtls")).await);
    let answer = send(&world, "both").await;
    table.row("fail/half", world.judge(answer, Refused("missing-certificate")).await);
    let answer = as_alice(bearer("/orders/1", "key-bound")).await;
    table.row("fail/as Bearer", world.judge(answer, Refused("bound_token_as_bearer")).await);
    let answer = as_alice(bearer("/orders/1", "unbound")).await;
    table.row("fail/unbound", world.judge(answer, Refused("binding_too_weak")).await);
    table.row("fail/unknown", world.judge(send(&world, "unknown").await, INACTIVE).await);

    let before = issuer.server.asked();
    table.row("ok/a JWT", world.judge(send(&world, &world.bound()).await, Admitted("dpop")).await);
    table.row("ok/nobody asked", expect_eq("asked", &issuer.server.asked(), &before));
    let output = world.process.output();
    for secret in ["key-bound", "certificate-bound", SECRET, &basic] {
        table.row("not told", expect_eq(secret, &output.contains(secret), &false));
    }
    for (result, expect) in
        [("active", 4.0), ("inactive", 1.0), ("refused", 0.0), ("failed", 0.0), ("busy", 0.0)]
    {
        let label = format!("result=\"{result}\"");
        let found = world.metric("holdfast_introspection_total", &[&label]).await;
        table.row(result, expect_eq(result, &found, &expect));
    }
}

/// Nobody makes the edge ask who shows nothing that could be the token's.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_causes_no_question() {
    let issuer = Issuer::start().await;
    let world = issuer.world(|_| {}).await;
    issuer.knows("opaque", active(json!({"jkt": world.key.jkt()})));
    let nonce = world.nonce().await;
    let proof = || world.proof("GET", "/orders/1").token("opaque").nonce(&nonce);
    let shown = |proof: String| get("/orders/1", "opaque", &proof);
    let without = shown(String::new()).without("DPoP");
    let mut table = Table::default();
    for (name, request, expect) in [
        ("no proof", without, "proof_missing"),
        ("no nonce", shown(proof().without("nonce").sign()), "nonce_absent"),
        ("of another token", shown(proof().token("x").sign()), "proof_ath"),
        (
            "of another path",
            shown(proof().claim("htu", "https://api.example/x").sign()),
            "proof_htu",
        ),
        ("too old", shown(proof().claim("iat", now() - 9999).sign()), "proof_iat_old"),
        ("two", shown(proof().sign()).field("DPoP", proof().sign()), "proof_repeated"),
        ("Bearer", bearer("/orders/1", "opaque"), "missing-certificate"),
    ] {
        let answer = world.send(&request).await;
        table.row(&format!("fail/{name}"), world.judge(answer, Refused(expect)).await);
    }
    table.row("ok/nobody asked", expect_eq("asked", &issuer.server.asked(), &0));
    // A proof is used up by the admission alone, and by one.
    let request = shown(proof().sign());
    issuer.server.answer(|_| reply(500, "text/plain", "no"));
    table.row("fail/down", world.judge(world.send(&request).await, UNAVAILABLE).await);
    issuer.works();
    table.row("ok/the same proof", world.judge(world.send(&request).await, Admitted("dpop")).await);
    let again = world.send(&request).await;
    table.row("fail/once more", world.judge(again, Refused("proof_replayed")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_do_not_hold() {
    let issuer = Issuer::start().await;
    let world = issuer.world(|config| {
        config["issuers"][0]["introspection"]["timeout"] = json!("3s");
    });
    let world = world.await;
    let good = || active(json!({"jkt": world.key.jkt()}));
    let bent = |name: &str, value: Value| answer(with(good(), name, value));
    let text = good().to_string();
    let huge = with(good(), "x", json!("x".repeat(70_000))).to_string();
    let endless = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n".to_vec();
    let endless = [endless, huge.clone().into_bytes(), vec![b' '; 1 << 20]].concat();
    let deep = format!("{{\"active\":true,\"x\":{}{}}}", "[".repeat(9000), "]".repeat(9000));
    let away = b"HTTP/1.1 307 X\r\nLocation: /moved\r\nContent-Length: 0\r\n\r\n".to_vec();
    let rows: Vec<(&str, Script, Expect)> = vec![
        ("ok/as it should be", answer(good()), Admitted("dpop")),
        (
            "ok/media with a charset",
            reply(200, "application/JSON; charset=utf-8", &text),
            Admitted("dpop"),
        ),
        ("fail/inactive", answer(json!({"active": false})), INACTIVE),
        ("fail/inactive, with the rest", bent("active", json!(false)), INACTIVE),
        ("fail/active text", bent("active", json!("true")), UNAVAILABLE),
        ("fail/active number", bent("active", json!(1)), UNAVAILABLE),
        ("fail/active missing", answer(json!({"sub": "user-1"})), UNAVAILABLE),
        ("fail/active twice", answer(text.replacen('{', "{\"active\":false,", 1)), UNAVAILABLE),
        ("fail/exp past", bent("exp", json!(now() - 300)), Refused("token_expired")),
        ("fail/exp text", bent("exp", json!("9999999999")), Refused("token_claim")),
        ("fail/exp null", bent("exp", Value::Null), Refused("token_claim")),
        ("fail/nbf ahead", bent("nbf", json!(now() + 300)), Refused("token_not_yet_valid")),
        ("fail/iss of another", bent("iss", json!("https://x.example")), Refused("token_iss")),
        ("fail/aud of another", bent("aud", json!("x")), Refused("token_aud")),
        ("fail/aud none", bent("aud", json!([])), Refused("token_claim")),
        ("fail/scope list", bent("scope", json!(["a"])), Refused("token_claim")),
        ("fail/cnf text", bent("cnf", json!("x")), Refused("token_cnf")),
        ("fail/DPoP without a key", bent("cnf", json!({})), Refused("token_cnf")),
        ("fail/refresh token", bent("token_type", json!("refresh_token")), Refused("token_typ")),
        (
            "fail/another key",
            bent("cnf", json!({"jkt": world.pki.alice.x5t()})),
            Refused("key_mismatch"),
        ),
        ("fail/401", reply(401, "application/json", &text), UNAVAILABLE),
        ("fail/500", reply(500, "application/json", &text), UNAVAILABLE),
        ("fail/201", reply(201, "application/json", &text), UNAVAILABLE),
        ("fail/redirect", vec![Step::Send(away)], UNAVAILABLE),
        ("fail/signed", reply(200, "application/token-introspection+jwt", &text), UNAVAILABLE),
        ("fail/HTML", reply(200, "text/html", &text), UNAVAILABLE),
        ("fail/nothing", reply(200, "application/json", ""), UNAVAILABLE),
        ("fail/a list", answer(json!([good()])), UNAVAILABLE),
        ("fail/huge", answer(&huge), UNAVAILABLE),
        ("fail/endless", vec![Step::Send(endless)], UNAVAILABLE),
        ("fail/deep", answer(deep), UNAVAILABLE),
        (
            "fail/cut short",
            vec![Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{".into())],
            UNAVAILABLE,
        ),
        ("fail/closed", Vec::new(), UNAVAILABLE),
        ("fail/silence", silence(), UNAVAILABLE),
        ("fail/trickle", trickle(&text, Duration::from_millis(300)), UNAVAILABLE),
    ];
    let mut table = Table::default();
    for (index, (name, script, expect)) in rows.into_iter().enumerate() {
        let elsewhere = answer(good());
        issuer.server.answer(move |request| {
            let moved = request.start.contains("/moved");
            if moved { elsewhere.clone() } else { script.clone() }
        });
        let request = proven(&world, &format!("token-{index}")).await;
        let started = Instant::now();
        let answer = world.send(&request).await;
        let waited = started.elapsed() < Duration::from_secs(20);
        table.row(&format!("{name}, in time"), expect_eq("in time", &waited, &true));
        table.row(name, world.judge(answer, expect).await);
    }
    let ready = world.admin("/readyz").await;
    let told = ready.json()["issuers"][0]["introspection"]["lastError"].to_string();
    table.row("ok/told", expect_eq(&told, &told.contains("time"), &true));
    table.row("ok/still ready", expect_eq("status", &ready.status(), &200));
    issuer.server.answer(move |_| reply(200, "application/token-introspection+jwt", "x.y.z"));
    table.row("fail/signed again", world.judge(send(&world, "signed").await, UNAVAILABLE).await);
    let told = world.admin("/readyz").await.json()["issuers"][0]["introspection"].to_string();
    table.row("ok/told why", expect_eq(&told, &told.contains("RFC 9701"), &true));
    issuer.works();
    table.row("fail/inactive", world.judge(send(&world, "nobodys").await, INACTIVE).await);
    let told = world.admin("/readyz").await.json()["issuers"][0]["introspection"].clone();
    table.row("ok/mended", expect_eq("told", &told, &json!({"lastError": null})));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_question_however_many_ask() {
    let issuer = Issuer::start().await;
    let world = Arc::new(issuer.world(|_| {}).await);
    let good = active(json!({"jkt": world.key.jkt()}));
    issuer.server.answer(move |request| {
        let known = form(request)["token"] == "known";
        let mut script = answer(if known { good.clone() } else { json!({"active": false}) });
        script.insert(0, Step::Wait(Duration::from_millis(150)));
        script
    });
    let mut table = Table::default();
    for (token, expect) in [("known", Admitted("dpop")), ("unknown", INACTIVE)] {
        let before = issuer.server.asked();
        let clients: Vec<_> = (0..24)
            .map(|_| {
                let world = Arc::clone(&world);
                tokio::spawn(async move {
                    let answer = send(&world, token).await;
                    world.judge(answer, expect).await
                })
            })
            .collect();
        for client in clients {
            table.row(token, client.await.expect("a client"));
        }
        table.row(token, expect_eq("asked", &(issuer.server.asked() - before), &1));
    }
}

/// An issuer that hangs: few questions hang with it, and nobody waits for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn questions_are_bounded() {
    let issuer = Issuer::start().await;
    let world = issuer.world(|config| {
        let section = &mut config["issuers"][0]["introspection"];
        section["maxConcurrent"] = json!(2);
        section["timeout"] = json!("4s");
    });
    let world = Arc::new(world.await);
    issuer.server.answer(|_| silence());
    let nonce = world.nonce().await;
    let started = Instant::now();
    let clients: Vec<_> = (0..40)
        .map(|client| {
            let (world, nonce) = (Arc::clone(&world), nonce.clone());
            tokio::spawn(async move {
                let token = format!("token-{client}");
                let proof = world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
                let answer = world.send(&get("/orders/1", &token, &proof)).await;
                world.judge(answer, UNAVAILABLE).await
            })
        })
        .collect();
    let mut table = Table::default();
    for _ in 0..1500 {
        if issuer.server.open() >= 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (full, mut most) = (Instant::now(), 0);
    while full.elapsed() < Duration::from_millis(400) {
        most = most.max(issuer.server.open());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for client in clients {
        table.row("fail/503", client.await.expect("a client"));
    }
    let waited = started.elapsed() < Duration::from_secs(30);
    table.row("ok/in time", expect_eq("in time", &waited, &true));
    table.row("ok/two at once", expect_eq("at once", &most, &2));
    // Each takes two seconds at least.
    let asked = issuer.server.asked();
    let most = 2 * (started.elapsed().as_millis() as usize / 2000 + 1);
    table.row("ok/asked", expect_eq(&format!("{asked} of {most}"), &(asked <= most), &true));
    let count = async |result: &str| {
        let label = format!("result=\"{result}\"");
        world.metric("holdfast_introspection_total", &[&label]).await
    };
    let (busy, failed) = (count("busy").await, count("failed").await);
    table.row("ok/counted", expect_eq("all", &(busy + failed), &40.0));
    table.row("ok/some did not ask", expect_eq(&format!("{busy}"), &(busy >= 1.0), &true));
    issuer.knows("later", active(json!({"jkt": world.key.jkt()})));
    issuer.works();
    table.row("ok/later", world.judge(send(&world, "later").await, Admitted("dpop")).await);
}

/// What was said is taken for `cacheTtl` and `negativeTtl`, and no longer, whatever comes after.
#[tokio::test(flavor = "multi_thread")]
async fn a_word_is_not_stretched() {
    let issuer = Issuer::start().await;
    let world = issuer.world(|config| {
        let section = &mut config["issuers"][0]["introspection"];
        section["cacheTtl"] = json!("10s");
        section["negativeTtl"] = json!("10s");
    });
    let world = world.await;
    let good = active(json!({"jkt": world.key.jkt()}));
    let mut table = Table::default();
    issuer.knows("revoked", good.clone());
    issuer.knows("kept", good.clone());
    issuer.knows("ending", with(good.clone(), "exp", json!(now() + 1)));
    for token in ["revoked", "kept", "ending"] {
        table.row("ok/active", world.judge(send(&world, token).await, Admitted("dpop")).await);
    }
    table.row("fail/not yet", world.judge(send(&world, "issued").await, INACTIVE).await);
    issuer.forgets("revoked");
    issuer.forgets("ending");
    issuer.knows("issued", good);
    let asked = issuer.server.asked();
    table.row("ok/cacheTtl", world.judge(send(&world, "revoked").await, Admitted("dpop")).await);
    table.row("fail/negativeTtl", world.judge(send(&world, "issued").await, INACTIVE).await);
    table.row("ok/not asked", expect_eq("asked", &issuer.server.asked(), &asked));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    table.row("fail/its own end", world.judge(send(&world, "ending").await, INACTIVE).await);
    tokio::time::sleep(Duration::from_millis(9500)).await;
    table.row("fail/revoked", world.judge(send(&world, "revoked").await, INACTIVE).await);
    table.row("ok/issued", world.judge(send(&world, "issued").await, Admitted("dpop")).await);
    issuer.server.answer(|_| reply(503, "text/plain", "no"));
    table.row("fail/down", world.judge(send(&world, "kept").await, UNAVAILABLE).await);
    table.row("ok/still fresh", world.judge(send(&world, "issued").await, Admitted("dpop")).await);
    issuer.works();
    table.row("ok/up again", world.judge(send(&world, "kept").await, Admitted("dpop")).await);
}

/// `observe` lets pass what lacks a sender, never what is no token.
#[tokio::test(flavor = "multi_thread")]
async fn observe_asks_too() {
    let issuer = Issuer::start().await;
    let world = issuer.world(|config| {
        config["security"]["senderConstraints"]["mode"] = json!("observe");
    });
    let world = world.await;
    issuer.knows("known", active(json!({"jkt": world.key.jkt()})));
    let mut table = Table::default();
    let shown = |token: &str| bearer("/orders/1", token);
    table
        .row("ok/known", world.judge(world.send(&shown("known")).await, Admitted("observe")).await);
    table.row("fail/unknown", world.judge(world.send(&shown("x")).await, INACTIVE).await);
    issuer.server.answer(|_| reply(500, "text/plain", "no"));
    table.row("fail/down", world.judge(world.send(&shown("y")).await, UNAVAILABLE).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_says_whose_a_token_is() {
    let (one, other) = (Issuer::start().await, Issuer::start().await);
    let section = other.section();
    let world = one.world(|config| {
        let mut entry = config["issuers"][0].clone();
        entry["issuer"] = json!("https://other.example");
        entry["introspection"] = section;
        entry["introspection"]["tokenPrefix"] = json!("other_");
        for key in ["jwks", "algorithms"] {
            entry.as_object_mut().expect("an entry").remove(key);
        }
        config["issuers"].as_array_mut().expect("issuers").push(entry);
    });
    let world = world.await;
    let good = active(json!({"jkt": world.key.jkt()}));
    let of_other = with(good.clone(), "iss", json!("https://other.example"));
    one.knows("a-token", good.clone());
    other.knows("other_token", of_other.clone());
    other.knows("other_lie", good);
    let mut table = Table::default();
    let admitted = Admitted("dpop");
    table.row("ok/no prefix", world.judge(send(&world, "a-token").await, admitted).await);
    table.row("ok/asked", expect_eq("asked", &(one.server.asked(), other.server.asked()), &(1, 0)));
    table.row("ok/prefix", world.judge(send(&world, "other_token").await, admitted).await);
    table.row("ok/asked", expect_eq("asked", &(one.server.asked(), other.server.asked()), &(1, 1)));
    let lie = send(&world, "other_lie").await;
    table.row("fail/for another", world.judge(lie, Refused("token_iss")).await);
    // An issuer without keys is asked about its JWTs as well.
    let jwt = world.token().claim("iss", "https://other.example").sign();
    other.knows(&jwt, of_other);
    table.row("ok/its JWT", world.judge(send(&world, &jwt).await, admitted).await);
    let foreign = world.token().claim("iss", "https://x.example").sign();
    let answer = send(&world, &foreign).await;
    table.row("fail/a stranger's JWT", world.judge(answer, Refused("token_iss")).await);
    table.row("ok/asked", expect_eq("asked", &(one.server.asked(), other.server.asked()), &(1, 3)));
}

/// TLS as the issuer's server speaks it, with whom it believes.
fn acceptor(server: &Identity, clients: &[u8]) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(clients.to_vec())).expect("an authority");
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .expect("a verifier");
    let chain = vec![CertificateDer::from(server.certificate_der.clone())];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(server.key_der.clone()));
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .expect("a certificate");
    TlsAcceptor::from(Arc::new(config))
}

/// Who the edge is there, by secret in the form or by certificate, and who the issuer is to it.
#[tokio::test(flavor = "multi_thread")]
async fn both_sides_say_who_they_are() {
    let shown: Arc<Mutex<Option<Vec<u8>>>> = Arc::default();
    let tls: Arc<Mutex<Option<TlsAcceptor>>> = Arc::default();
    let (kept, current) = (Arc::clone(&shown), Arc::clone(&tls));
    let known = Arc::new(Mutex::new(Value::Null));
    let told = Arc::clone(&known);
    let server = Scripted::start_over(
        move |_| answer(told.lock().expect("an answer").clone()),
        move |socket| {
            let (kept, tls) = (Arc::clone(&kept), current.lock().expect("TLS").clone());
            async move {
                let stream = tls?.accept(socket).await.ok()?;
                let peer = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                *kept.lock().expect("a certificate") = peer.map(|der| der.to_vec());
                Some(stream)
            }
        },
    )
    .await;
    let issuer = Issuer::start().await;
    let url = format!("https://localhost:{}/introspect", server.port);
    let mut section = issuer.section();
    section["url"] = json!(url);
    section["authorities"] = json!("ca.pem");
    let mut table = Table::default();
    for method in ["post", "mtls"] {
        section["authentication"] = json!(method);
        if method == "mtls" {
            section.as_object_mut().expect("a section").remove("clientSecretFile");
            section["certificate"] = json!("alice.pem");
            section["key"] = json!("alice.key");
        }
        let entry = section.clone();
        let world = World::start_with(|config| config["issuers"][0]["introspection"] = entry).await;
        *known.lock().expect("an answer") = active(json!({"jkt": world.key.jkt()}));
        *tls.lock().expect("TLS") = Some(acceptor(&world.pki.server, &world.pki.authority_der));
        let admitted = send(&world, "opaque").await;
        table.row(&format!("ok/{method}"), world.judge(admitted, Admitted("dpop")).await);
        let asked = server.last();
        let form = String::from_utf8_lossy(&asked.body).into_owned();
        let (certificate, secret) = match method {
            "mtls" => (Some(world.pki.alice.certificate_der.clone()), ""),
            _ => (None, "&client_secret=a+secret%3A+100+%25+of+it%2C+%2B+more"),
        };
        let expect =
            format!("token=opaque&token_type_hint=access_token&client_id=the+edge{secret}");
        table.row("ok/form", expect_eq("form", &form, &expect));
        table.row("ok/no header", expect_eq("header", &asked.one("authorization"), &None::<&str>));
        let found = shown.lock().expect("a certificate").clone();
        table.row("ok/certificate", expect_eq("certificate", &found, &certificate));
        // Somebody else answers there.
        let server_of = &world.pki.stranger;
        *tls.lock().expect("TLS") = Some(acceptor(server_of, &world.pki.authority_der));
        tokio::time::sleep(Duration::from_millis(100)).await;
        table.row("fail/a stranger", world.judge(send(&world, "else").await, UNAVAILABLE).await);
    }
}

/// Where nobody is to be asked, an opaque token is what it always was.
#[tokio::test(flavor = "multi_thread")]
async fn without_introspection_an_opaque_token_is_malformed() {
    let world = World::start().await;
    let answer = send(&world, "opaque").await;
    let judged = world.judge(answer, Refused("token_malformed")).await;
    assert_eq!(judged, Ok(()));
}
