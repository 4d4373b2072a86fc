//! Issuers' keys by URL: rotation under load, and what becomes of sets and servers that are no good.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::Table;
use super::support::client::{Outcome, Request};
use super::support::keys::Key;
use super::support::scripted::{Script, Scripted, Step, json as answer, reply, silence, trickle};
use super::support::token::Token;
use super::support::world::{Expect, World, bearer, expect_eq};

use Expect::{Admitted, Refused};

fn set(keys: &[(&str, &Key)]) -> Value {
    let keys: Vec<_> = keys.iter().map(|(kid, key)| key.public_entry(kid)).collect();
    json!({ "keys": keys })
}

/// A world whose issuer's keys come from `server`.
async fn world(server: &Scripted, cooldown: &str) -> World {
    let url = format!("http://127.0.0.1:{}/jwks.json", server.port);
    let cooldown = cooldown.to_owned();
    World::start_with(move |config| {
        config["issuers"][0]["jwks"] =
            json!({"url": url, "refresh": "1h", "cooldown": cooldown, "timeout": "8s"});
    })
    .await
}

/// Sends it again where the edge has waited for a fetch in vain: that is half a second, in which a slow
/// machine may not be done with it.
async fn patient(world: &World, request: &Request) -> Outcome {
    let mut answer = Err("not sent".to_owned());
    for _ in 0..10 {
        let started = Instant::now();
        answer = world.send_as(&world.pki.alice, request).await;
        let refused = answer.as_ref().is_ok_and(|answer| answer.status() == 401);
        if !refused || started.elapsed() < Duration::from_millis(500) {
            break;
        }
    }
    answer
}

/// Waits for two more good fetches: the second has begun after this.
async fn fetched(world: &World) {
    let (name, good) = ("holdfast_jwks_refreshes_total", ["result=\"ok\""]);
    let before = world.metric(name, &good).await;
    for _ in 0..1500 {
        if world.metric(name, &good).await >= before + 2.0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no two fetches within 30 s:\n{}", world.process.output());
}

/// Waits until every client has had an answer to what it signed with this key, or a later one.
async fn in_use(used: &[AtomicUsize], key: usize) {
    for _ in 0..1500 {
        if used.iter().all(|last| last.load(Ordering::SeqCst) >= key) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not all clients use key {key} within 30 s: {used:?}");
}

/// Eight clients go on while the issuer changes its key again and again, as issuers do: the next key
/// is published before it signs, the last one for as long as its tokens may be under way. Strangers
/// send `kid`s that nobody has, all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn keys_change_under_load() {
    let keys: Vec<Key> = (0..4).map(|_| Key::new("ES256")).collect();
    let server = Scripted::start({
        let set = set(&[("0", &keys[0])]);
        move |_| answer(&set)
    })
    .await;
    let world = Arc::new(world(&server, "1s").await);
    let started = Instant::now();
    let signing = Arc::new(AtomicUsize::new(0));
    let done = Arc::new(AtomicBool::new(false));
    let admitted = Arc::new(AtomicUsize::new(0));
    let used: Arc<[AtomicUsize; 8]> = Arc::default();
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let (world, keys) = (Arc::clone(&world), keys.clone());
            let (signing, done) = (Arc::clone(&signing), Arc::clone(&done));
            let (admitted, used) = (Arc::clone(&admitted), Arc::clone(&used));
            tokio::spawn(async move {
                let x5t = world.pki.alice.x5t();
                let mut connection =
                    world.client.connect(Some(&world.pki.alice)).await.expect("a connection");
                let mut faults = Vec::new();
                let mut count = 0;
                while !done.load(Ordering::SeqCst) {
                    let index = signing.load(Ordering::SeqCst);
                    // Seven clients get a new token each time; the last one floods.
                    let stranger = client == 7;
                    let kid = if stranger { format!("nobody-{count}") } else { index.to_string() };
                    count += 1;
                    let token = Token::new(&keys[index], &kid).x5t(&x5t);
                    let token = token.claim("jti", format!("{client}-{count}")).sign();
                    let request = bearer("/orders/1", &token);
                    match connection.send(&request.bytes()).await {
                        Ok(answer) if answer.status() == 200 && !stranger => {
                            admitted.fetch_add(1, Ordering::SeqCst);
                        }
                        Ok(answer) if answer.status() == 401 && stranger => {}
                        Ok(answer) => faults.push(format!("{client}: {}", answer.start)),
                        // A connection serves so many requests and no more.
                        Err(_) => {
                            connection = world
                                .client
                                .connect(Some(&world.pki.alice))
                                .await
                                .expect("a connection");
                        }
                    }
                    used[client].store(index, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                faults
            })
        })
        .collect();
    for next in 1..keys.len() {
        let both =
            set(&[(&(next - 1).to_string(), &keys[next - 1]), (&next.to_string(), &keys[next])]);
        server.answer(move |_| answer(&both));
        // The flood makes the edge fetch every second.
        fetched(&world).await;
        signing.store(next, Ordering::SeqCst);
        in_use(&used[..], next).await;
    }
    let last = set(&[("3", &keys[3])]);
    server.answer(move |_| answer(&last));
    fetched(&world).await;
    done.store(true, Ordering::SeqCst);
    let mut faults = Vec::new();
    for client in clients {
        faults.extend(client.await.expect("a client"));
    }
    let seconds = started.elapsed().as_secs() as usize;
    let mut table = Table::default();
    table.row("ok/nobody refused", expect_eq("faults", &faults, &Vec::<String>::new()));
    let admitted = admitted.load(Ordering::SeqCst);
    table.row("ok/under load", expect_eq("many", &(admitted > 200), &true));
    let asked = server.asked();
    table.row(
        "ok/one fetch a cooldown",
        expect_eq(&format!("{asked}"), &(asked <= seconds + 2), &true),
    );
    // A key that is gone is gone, for tokens that were remembered too.
    let x5t = world.pki.alice.x5t();
    for (name, key, kid, expect) in [
        ("fail/the first key", &keys[0], "0", Refused("token_key_unknown")),
        ("fail/the key before", &keys[2], "2", Refused("token_key_unknown")),
        ("ok/the last key", &keys[3], "3", Admitted("mtls")),
    ] {
        let request = bearer("/orders/1", &Token::new(key, kid).x5t(&x5t).sign());
        let answer = world.send_as(&world.pki.alice, &request).await;
        table.row(name, world.judge(answer, expect).await);
    }
}

/// A key that signs as soon as it is published: those who come while it is fetched wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_new_key_is_waited_for() {
    let (first, second) = (Key::new("ES256"), Key::new("ES256"));
    let server = Scripted::start({
        let set = set(&[("one", &first)]);
        move |_| answer(&set)
    })
    .await;
    let world = Arc::new(world(&server, "1s").await);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let both = set(&[("one", &first), ("two", &second)]);
    server.answer(move |_| {
        let mut script = answer(&both);
        script.insert(0, Step::Wait(Duration::from_millis(100)));
        script
    });
    let (before, started) = (server.asked(), Instant::now());
    let x5t = world.pki.alice.x5t();
    let clients: Vec<_> = (0..24)
        .map(|client| {
            let (world, second, x5t) = (Arc::clone(&world), second.clone(), x5t.clone());
            tokio::spawn(async move {
                let token = Token::new(&second, "two").x5t(&x5t);
                let token = token.claim("jti", format!("{client}")).sign();
                let request = bearer("/orders/1", &token);
                world.judge(patient(&world, &request).await, Admitted("mtls")).await
            })
        })
        .collect();
    let mut table = Table::default();
    for (index, client) in clients.into_iter().enumerate() {
        table.row(&format!("ok/{index}"), client.await.expect("a client"));
    }
    let (fetches, most) = (server.asked() - before, 1 + started.elapsed().as_secs() as usize);
    let few = (1..=most).contains(&fetches);
    table.row("ok/one fetch a cooldown", expect_eq(&format!("{fetches} of {most}"), &few, &true));
}

/// Whatever the URL answers: the last good set stays, the fault is told, and it takes no longer than
/// it may.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_no_set_changes_nothing() {
    let (good, other) = (Key::new("ES256"), Key::new("ES256"));
    let kept = set(&[("one", &good)]);
    let server = Scripted::start({
        let kept = kept.clone();
        move |_| answer(&kept)
    })
    .await;
    let world = world(&server, "1s").await;
    let x5t = world.pki.alice.x5t();
    let send = async |key: &Key, kid: &str| {
        let request = bearer("/orders/1", &Token::new(key, kid).x5t(&x5t).sign());
        world.send_as(&world.pki.alice, &request).await
    };
    let failed = ["result=\"failed\""];
    let mut table = Table::default();
    for (name, script, told) in hostile(&other, &good) {
        let before = world.metric("holdfast_jwks_refreshes_total", &failed).await;
        server.answer(move |_| script.clone());
        tokio::time::sleep(Duration::from_millis(1050)).await;
        let started = Instant::now();
        let refused = send(&other, "bad").await;
        table
            .row(&format!("fail/{name}"), world.judge(refused, Refused("token_key_unknown")).await);
        let waited = started.elapsed() < Duration::from_secs(7);
        table.row(&format!("ok/{name}, in time"), expect_eq("in time", &waited, &true));
        table.row(&format!("ok/{name}, last good set"), {
            world.judge(send(&good, "one").await, Admitted("mtls")).await
        });
        // The fetch itself may take its whole time.
        let mut seen = String::new();
        for _ in 0..1500 {
            if world.metric("holdfast_jwks_refreshes_total", &failed).await > before {
                seen = world.admin("/readyz").await.json()["issuers"][0]["lastError"].to_string();
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        table.row(&format!("ok/{name}, told"), expect_eq(&seen, &seen.contains(told), &true));
    }
    // It mends itself.
    let both = set(&[("one", &good), ("bad", &other)]);
    server.answer(move |_| answer(&both));
    let mut mended = Err("not sent".to_owned());
    for _ in 0..28 {
        tokio::time::sleep(Duration::from_millis(1050)).await;
        mended = send(&other, "bad").await;
        if mended.as_ref().is_ok_and(|answer| answer.status() == 200) {
            break;
        }
    }
    table.row("ok/mended", world.judge(mended, Admitted("mtls")).await);
    let ready = world.admin("/readyz").await;
    let error = ready.json()["issuers"][0]["lastError"].clone();
    table.row("ok/no error any more", expect_eq("lastError", &error, &Value::Null));
    table.row("ok/ready", expect_eq("status", &ready.status(), &200));
}

/// Answers that would bring in `bad` if they were taken, each with what is told of it.
fn hostile(bad: &Key, good: &Key) -> Vec<(&'static str, Script, &'static str)> {
    let entry = bad.public_entry("bad");
    let with = |name: &str, value: Value| {
        let mut entry = entry.clone();
        entry[name] = value;
        entry
    };
    let one = |entry: Value| answer(json!({"keys": [entry]}));
    let beside = |entry: Value| answer(json!({"keys": [entry, good.public_entry("one")]}));
    let whole = json!({"keys": [entry]}).to_string();
    let huge = format!("{{\"keys\":[{entry}],\"x\":\"{}\"}}", "x".repeat(300 * 1024));
    let endless = [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n".to_vec(),
        huge.clone().into_bytes(),
        vec![b' '; 4 << 20],
    ];
    let deep = format!("{{\"keys\":[{entry}],\"x\":{}{}}}", "[".repeat(50_000), "]".repeat(50_000));
    let away = "HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n";
    let heads = "HTTP/1.1 200 OK\r\n".to_owned() + &"X-A: b\r\n".repeat(100_000);
    vec![
        ("500", reply(500, "application/json", &whole), "status 500"),
        ("404", reply(404, "application/json", &whole), "status 404"),
        ("204", reply(204, "application/json", ""), "status 204"),
        ("redirect", vec![Step::Send(away.into())], "status 302"),
        ("HTML", reply(200, "text/html", "<html>maintenance</html>"), "not a JWK set"),
        ("empty", answer(""), "not a JWK set"),
        ("silence", silence(), "timed out"),
        ("trickle", trickle(&whole, Duration::from_millis(200)), "timed out"),
        ("closed", Vec::new(), "closed"),
        ("no HTTP", vec![Step::Send(b"SSH-2.0-OpenSSH\r\n\r\n".to_vec())], "HTTP"),
        (
            "cut short",
            vec![Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{".into())],
            "",
        ),
        ("huge", answer(&huge), "longer than 262144 bytes"),
        ("endless", vec![Step::Send(endless.concat())], "longer than 262144 bytes"),
        ("heads without end", vec![Step::Send(heads.into_bytes())], "too large"),
        ("deep", answer(&deep), "not a JWK set"),
        ("keys a map", answer(json!({"keys": {"0": entry}})), "not a JWK set"),
        ("keys missing", answer(&entry), "not a JWK set"),
        ("a key a text", answer(json!({"keys": [entry.to_string()]})), "not a JWK set"),
        ("keys twice", answer(format!("{{\"keys\":[],\"keys\":[{entry}]}}")), "not a JWK set"),
        (
            "a member twice",
            answer(whole.replacen('[', "[{\"kty\":\"x\",\"kty\":\"y\"},", 1)),
            "not a JWK set",
        ),
        ("no keys", answer(json!({"keys": []})), "no usable key"),
        ("too many", answer(json!({"keys": vec![&entry; 65]})), "more than 64 keys"),
        ("a private key", beside(with("d", json!(bad.private_member()))), "private or symmetric"),
        ("a private member of no sense", beside(with("p", json!(1))), "private or symmetric"),
        (
            "a secret",
            beside(json!({"kty": "oct", "k": "c2VjcmV0", "kid": "bad"})),
            "private or symmetric",
        ),
        ("kid number", beside(with("kid", json!(1))), "not a JWK set"),
        ("for encryption", one(with("use", json!("enc"))), "no usable key"),
        ("use a list", one(with("use", json!(["sig"]))), "no usable key"),
        ("key_ops to sign", one(with("key_ops", json!(["sign"]))), "no usable key"),
        ("key_ops a text", one(with("key_ops", json!("verify"))), "no usable key"),
        ("alg of another", one(with("alg", json!("RS256"))), "no usable key"),
        ("alg none", one(with("alg", json!("none"))), "no usable key"),
        ("alg HS256", one(with("alg", json!("HS256"))), "no usable key"),
        ("alg number", one(with("alg", json!(256))), "no usable key"),
        ("kty number", one(with("kty", json!(1))), "no usable key"),
        ("x number", one(with("x", json!(1))), "no usable key"),
        ("off its curve", one(with("x", entry["y"].clone())), "no usable key"),
        ("of another curve", one(with("crv", json!("P-384"))), "no usable key"),
    ]
}
