//! JWT access tokens: RFC 9068, and where their keys come from.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::support::keys::{Key, hs256};
use super::support::proof::{compact, doubled, parts};
use super::support::token::{ALGORITHMS, AUDIENCE, Token};
use super::support::world::{Expect, World, bearer, expect_eq};
use super::support::{Table, base64url, now};

use Expect::{Admitted, Refused};

/// A good certificate-bound token in, what is sent out.
type Bend = fn(&World, Token) -> String;

async fn check(world: &World, rows: &[(&str, Bend, Expect)]) {
    let mut table = Table::default();
    for (name, bend, expect) in rows {
        let good = world.token().x5t(&world.pki.alice.x5t());
        let request = bearer("/orders/1", &bend(world, good));
        let answer = world.send_as(&world.pki.alice, &request).await;
        table.row(name, world.judge(answer, *expect).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn claims() {
    let world = World::start().await;
    let (claim, malformed) = (Refused("token_claim"), Refused("token_malformed"));
    let ok = Admitted("mtls");
    let rows: &[(&str, Bend, Expect)] = &[
        ("ok/as it should be", |_, t| t.sign(), ok),
        ("ok/more claims", |_, t| t.claim("x", json!({"y": [1]})).sign(), ok),
        ("ok/audience a list", |_, t| t.claim("aud", json!(["x", AUDIENCE])).sign(), ok),
        ("ok/exp with a fraction", |_, t| t.claim("exp", now() as f64 + 60.5).sign(), ok),
        ("fail/no iss", |_, t| t.without("iss").sign(), claim),
        ("fail/iss number", |_, t| t.claim("iss", 1).sign(), claim),
        (
            "fail/iss unknown",
            |_, t| t.claim("iss", "https://x.example").sign(),
            Refused("token_iss"),
        ),
        (
            "fail/iss with a slash",
            |_, t| t.claim("iss", "https://as.example/").sign(),
            Refused("token_iss"),
        ),
        ("fail/iss a list", |_, t| t.claim("iss", json!(["https://as.example"])).sign(), claim),
        ("fail/no aud", |_, t| t.without("aud").sign(), claim),
        ("fail/aud empty list", |_, t| t.claim("aud", json!([])).sign(), claim),
        ("fail/aud number", |_, t| t.claim("aud", 1).sign(), claim),
        ("fail/aud list of mixed", |_, t| t.claim("aud", json!([AUDIENCE, 1])).sign(), claim),
        ("fail/aud another", |_, t| t.claim("aud", "x").sign(), Refused("token_aud")),
        (
            "fail/aud in part",
            |_, t| t.claim("aud", format!("{AUDIENCE}/")).sign(),
            Refused("token_aud"),
        ),
        ("fail/no exp", |_, t| t.without("exp").sign(), claim),
        ("fail/exp text", |_, t| t.claim("exp", (now() + 60).to_string()).sign(), claim),
        ("fail/exp null", |_, t| t.claim("exp", json!(null)).sign(), claim),
        ("fail/exp true", |_, t| t.claim("exp", true).sign(), claim),
        ("fail/expired", |_, t| t.claim("exp", now() - 300).sign(), Refused("token_expired")),
        ("fail/expired long ago", |_, t| t.claim("exp", i64::MIN).sign(), Refused("token_expired")),
        ("ok/nbf behind", |_, t| t.claim("nbf", now() - 5).sign(), ok),
        (
            "fail/nbf ahead",
            |_, t| t.claim("nbf", now() + 300).sign(),
            Refused("token_not_yet_valid"),
        ),
        ("fail/nbf text", |_, t| t.claim("nbf", "0").sign(), claim),
        ("fail/nbf null", |_, t| t.claim("nbf", json!(null)).sign(), claim),
        ("fail/iat text", |_, t| t.claim("iat", "0").sign(), claim),
        ("fail/sub number", |_, t| t.claim("sub", 1).sign(), claim),
        ("fail/client_id list", |_, t| t.claim("client_id", json!([])).sign(), claim),
        ("fail/scope list", |_, t| t.claim("scope", json!(["a"])).sign(), claim),
        ("fail/claims a list", |_, t| compact(t.header_json(), "[]", |i| t.key.sign(i)), malformed),
        ("fail/claims empty", |_, t| compact(t.header_json(), "", |i| t.key.sign(i)), malformed),
        (
            "fail/exp twice",
            |_, t| {
                let claims = doubled(&t.claims_json(), &format!("\"exp\":{}", now() + 900));
                compact(t.header_json(), claims, |input| t.key.sign(input))
            },
            malformed,
        ),
        (
            "fail/cnf twice",
            |_, t| {
                let claims = doubled(&t.claims_json(), "\"cnf\":{}");
                compact(t.header_json(), claims, |input| t.key.sign(input))
            },
            malformed,
        ),
        (
            "fail/a member of cnf twice",
            |_, t| {
                let claims =
                    t.claims_json().replacen("\"cnf\":{", "\"cnf\":{\"x5t#S256\":\"a\",", 1);
                compact(t.header_json(), claims, |input| t.key.sign(input))
            },
            malformed,
        ),
    ];
    check(&world, rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_and_signatures() {
    let world = World::start().await;
    let (typ, algorithm) = (Refused("token_typ"), Refused("token_alg"));
    let (malformed, signature) = (Refused("token_malformed"), Refused("token_signature"));
    let unknown = Refused("token_key_unknown");
    let rows: &[(&str, Bend, Expect)] = &[
        ("ok/typ in full", |_, t| t.header("typ", "application/at+jwt").sign(), Admitted("mtls")),
        ("ok/typ in capitals", |_, t| t.header("typ", "AT+JWT").sign(), Admitted("mtls")),
        ("fail/no typ", |_, t| t.without_header("typ").sign(), typ),
        ("fail/typ JWT", |_, t| t.header("typ", "JWT").sign(), typ),
        ("fail/typ of a proof", |_, t| t.header("typ", "dpop+jwt").sign(), typ),
        ("fail/typ number", |_, t| t.header("typ", 1).sign(), typ),
        ("fail/crit", |_, t| t.header("crit", json!(["exp"])).sign(), Refused("token_crit")),
        ("fail/crit empty", |_, t| t.header("crit", json!([])).sign(), Refused("token_crit")),
        ("fail/no alg", |_, t| t.without_header("alg").sign(), algorithm),
        (
            "fail/none",
            |_, t| {
                let t = t.header("alg", "none");
                compact(t.header_json(), t.claims_json(), |_| vec![0])
            },
            algorithm,
        ),
        (
            "fail/none, unsigned",
            |_, t| {
                let t = t.header("alg", "none");
                compact(t.header_json(), t.claims_json(), |_| Vec::new())
            },
            malformed,
        ),
        (
            "fail/None",
            |_, t| {
                let t = t.header("alg", "None");
                compact(t.header_json(), t.claims_json(), |_| vec![0])
            },
            algorithm,
        ),
        (
            "fail/HS256 with the public key as PEM",
            |world, t| {
                let t = t.header("alg", "HS256").header("kid", "RS256");
                let key = world.issuer.iter().find(|key| key.algorithm == "RS256").expect("RS256");
                compact(t.header_json(), t.claims_json(), |i| hs256(&key.public_pem(), i))
            },
            algorithm,
        ),
        (
            "fail/HS256 with the public key as JWK",
            |world, t| {
                let t = t.header("alg", "HS256");
                let secret = world.issuer[0].public_entry("ES256").to_string();
                compact(t.header_json(), t.claims_json(), |i| hs256(secret.as_bytes(), i))
            },
            algorithm,
        ),
        ("fail/kid of another type", |_, t| t.header("kid", "RS256").sign(), unknown),
        ("fail/kid unknown", |_, t| t.header("kid", "x").sign(), unknown),
        ("fail/kid number", |_, t| t.header("kid", 1).sign(), malformed),
        ("ok/no kid, one key fits", |_, t| t.without_header("kid").sign(), Admitted("mtls")),
        (
            "fail/a key of its own in the header",
            |_, mut t| {
                t.key = Key::new("ES256");
                let jwk = t.key.jwk.clone();
                t.header("jwk", jwk).sign()
            },
            signature,
        ),
        (
            "fail/one bit other",
            |_, t| {
                compact(t.header_json(), t.claims_json(), |input| {
                    let mut signature = t.key.sign(input);
                    signature[7] ^= 1;
                    signature
                })
            },
            signature,
        ),
        (
            "fail/zeros",
            |_, t| compact(t.header_json(), t.claims_json(), |_| vec![0; 64]),
            signature,
        ),
        ("fail/unsigned", |_, t| compact(t.header_json(), t.claims_json(), |_| vec![]), malformed),
        (
            "fail/other claims",
            |_, t| {
                let (jws, other) = (t.sign(), t.claim("sub", "root").sign());
                format!("{}.{}.{}", parts(&jws)[0], parts(&other)[1], parts(&jws)[2])
            },
            signature,
        ),
        ("fail/opaque", |_, _| "0123456789abcdef".to_owned(), malformed),
        ("fail/padded", |_, t| format!("{}=", t.sign()), malformed),
        ("fail/four parts", |_, t| format!("{}.{}", t.sign(), base64url("x")), malformed),
        (
            "fail/alg twice",
            |_, t| {
                let header = doubled(&t.header_json(), "\"alg\":\"none\"");
                compact(header, t.claims_json(), |input| t.key.sign(input))
            },
            malformed,
        ),
    ];
    check(&world, rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_algorithm() {
    let world = World::start_with(|config| {
        let mut narrow = config["issuers"][0].clone();
        narrow["issuer"] = json!("https://narrow.example");
        narrow["algorithms"] = json!(["ES256"]);
        config["issuers"].as_array_mut().expect("issuers").push(narrow);
    })
    .await;
    let mut table = Table::default();
    for key in &world.issuer {
        let token = Token::new(key, key.algorithm).x5t(&world.pki.alice.x5t());
        let answer = world.send_as(&world.pki.alice, &bearer("/orders/1", &token.sign())).await;
        table.row(&format!("ok/{}", key.algorithm), world.judge(answer, Admitted("mtls")).await);
        let narrow = token.claim("iss", "https://narrow.example").sign();
        let answer = world.send_as(&world.pki.alice, &bearer("/orders/1", &narrow)).await;
        let allowed = key.algorithm == "ES256";
        let expect = if allowed { Admitted("mtls") } else { Refused("token_alg") };
        table.row(&format!("narrow/{}", key.algorithm), world.judge(answer, expect).await);
    }
    assert_eq!(world.issuer.len(), ALGORITHMS.len());
}

/// A remembered token is no better than it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_remembered_token_ends() {
    let world = World::start_with(|config| {
        config["issuers"][0]["clockSkew"] = json!("0s");
    })
    .await;
    let end = now() + 12;
    let token = world.token().x5t(&world.pki.alice.x5t()).claim("exp", end).sign();
    let mut table = Table::default();
    for _ in 0..2 {
        let answer = world.send_as(&world.pki.alice, &bearer("/orders/1", &token)).await;
        table.row("ok/before its end", world.judge(answer, Admitted("mtls")).await);
    }
    let answer = world.send_as(&world.pki.bob, &bearer("/orders/1", &token)).await;
    table.row("fail/remembered, bob", world.judge(answer, Refused("thumbprint-mismatch")).await);
    while now() <= end {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let answer = world.send_as(&world.pki.alice, &bearer("/orders/1", &token)).await;
    table.row("fail/after its end", world.judge(answer, Refused("token_expired")).await);
}

/// Serves a JWK set that can be changed, and counts how often it is asked.
struct KeyServer {
    port: u16,
    set: Arc<Mutex<Option<String>>>,
    asked: Arc<std::sync::atomic::AtomicUsize>,
}

impl KeyServer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let set: Arc<Mutex<Option<String>>> = Arc::default();
        let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (served, counter) = (Arc::clone(&set), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let body = served.lock().expect("a whole set").clone();
                let mut head = vec![0; 4096];
                let _ = socket.read(&mut head).await;
                let answer = match body {
                    Some(body) => format!(
                        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\
                         Content-Length: {}\r\n\r\n{body}",
                        body.len()
                    ),
                    None => {
                        "HTTP/1.1 500 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".into()
                    }
                };
                let _ = socket.write_all(answer.as_bytes()).await;
            }
        });
        Self { port, set, asked }
    }

    fn serve(&self, keys: &[(&str, &Key)]) {
        let keys: Vec<_> = keys.iter().map(|(kid, key)| key.public_entry(kid)).collect();
        *self.set.lock().expect("a whole set") = Some(json!({"keys": keys}).to_string());
    }

    fn asked(&self) -> usize {
        self.asked.load(std::sync::atomic::Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_by_url() {
    let server = KeyServer::start().await;
    let (first, second) = (Key::new("ES256"), Key::new("EdDSA"));
    server.serve(&[("one", &first)]);
    let port = server.port;
    let world = World::start_with(|config| {
        config["issuers"][0]["jwks"] = json!({
            "url": format!("http://127.0.0.1:{port}/jwks.json"), "refresh": "10s", "cooldown": "1s",
        });
    })
    .await;
    let x5t = world.pki.alice.x5t();
    let token = |key: &Key, kid: &str| Token::new(key, kid).x5t(&x5t).sign();
    let send = async |text: &str| world.send_as(&world.pki.alice, &bearer("/orders/1", text)).await;
    let mut table = Table::default();
    let old = token(&first, "one");
    table.row("ok/the first key", world.judge(send(&old).await, Admitted("mtls")).await);
    let new = token(&second, "two");
    let unknown = Refused("token_key_unknown");
    tokio::time::sleep(Duration::from_millis(1200)).await;
    table.row("fail/not yet published", world.judge(send(&new).await, unknown).await);
    // One unknown `kid` costs the issuer one request a cooldown, however often it comes.
    let (before, start) = (server.asked(), Instant::now());
    for _ in 0..20 {
        table.row("fail/still not", world.judge(send(&new).await, unknown).await);
    }
    let asked = server.asked() - before;
    let few = asked as u64 <= start.elapsed().as_secs() + 2;
    table.row("cooldown", expect_eq("few requests", &few, &true));
    server.serve(&[("one", &first), ("two", &second)]);
    // The edge waits for half a second, which may not do on a busy machine.
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(1200)).await;
        if send(&new).await.is_ok_and(|answer| answer.status() == 200) {
            break;
        }
    }
    table.row("ok/a key more", world.judge(send(&new).await, Admitted("mtls")).await);
    table.row("ok/the first still", world.judge(send(&old).await, Admitted("mtls")).await);
    // A server that fails takes nothing away.
    *server.set.lock().expect("a whole set") = None;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let other = token(&second, "three");
    table.row("fail/unknown, server down", world.judge(send(&other).await, unknown).await);
    table.row("ok/the last good set", world.judge(send(&old).await, Admitted("mtls")).await);
    // A set with a private key in it is no good; a weak key is as if it were not there.
    let mut spilt = json!({"keys": [second.public_entry("three"), first.public_entry("one")]});
    spilt["keys"][0]["d"] = json!(second.private_member());
    *server.set.lock().expect("a whole set") = Some(spilt.to_string());
    tokio::time::sleep(Duration::from_millis(1200)).await;
    table.row("fail/a set that spilt", world.judge(send(&other).await, unknown).await);
    let weak = Key::rsa("RS256", 1024);
    server.serve(&[("one", &first), ("two", &second), ("weak", &weak)]);
    tokio::time::sleep(Duration::from_millis(1200)).await;
    table.row("fail/a weak key", world.judge(send(&token(&weak, "weak")).await, unknown).await);
    table.row("ok/beside it", world.judge(send(&old).await, Admitted("mtls")).await);
    // A key that is no longer published is no longer good, remembered or not.
    server.serve(&[("two", &second)]);
    let other = token(&second, "four");
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(1200)).await;
        table.row("fail/makes it fetch", world.judge(send(&other).await, unknown).await);
        if send(&old).await.is_ok_and(|answer| answer.status() == 401) {
            break;
        }
    }
    table.row("fail/a key less", world.judge(send(&old).await, unknown).await);
    table.row("ok/the other", world.judge(send(&new).await, Admitted("mtls")).await);
}
