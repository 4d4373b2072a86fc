//! Edges that share what tokens are bound to in a real Redis.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::Table;
use super::support::authority::{Form, Issued, Site, TOKEN, form, grant, issued, refresh};
use super::support::client::{Outcome, Request};
use super::support::keys::Key;
use super::support::process::free_port;
use super::support::proof::Proof;
use super::support::redis::{Server, there_is_none};
use super::support::sharing::{Asked, Edge, bypass_of, key_file, own_file, ready_is, share};
use super::support::world::{World, bearer, expect_eq, get};

fn is(answer: &Outcome, status: u16, error: &str) -> Result<(), String> {
    let answer = answer.as_ref().expect("an answer");
    if answer.status() == 503 && answer.one("retry-after").is_none() {
        return Err("503 without Retry-After".to_owned());
    }
    let told = answer.json();
    let found = (answer.status(), told["error"].as_str().unwrap_or_default());
    expect_eq("answer", &found, &(status, error))
}

/// Retrofit at an edge whose store is `redis`.
async fn site(redis: &Server, form: Form, change: impl FnOnce(&mut Value)) -> Site {
    let nodes = json!({"nodes": [format!("127.0.0.1:{}", redis.port)], "timeout": "10s"});
    Site::retrofit_in(form, |directory, _, config| {
        key_file(directory);
        own_file(&directory.join("redis.password"), b"right-password\n");
        share(config, nodes);
        change(config);
    })
    .await
}

/// One sender at one edge.
struct At<'a, E> {
    edge: &'a E,
    key: &'a Key,
}

impl<E: Asked> At<'_, E> {
    async fn nonce(&self) -> String {
        let proof = Proof::new(self.key, "POST", "https://api.example/token").sign();
        let challenge = form(TOKEN, "grant_type=none").field("DPoP", proof);
        for _ in 0..1500 {
            let answer = self.edge.serve(&challenge).await.expect("an answer");
            if let Some(nonce) = answer.one("dpop-nonce") {
                return nonce.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("it gives no nonce out");
    }

    async fn ask(&self, body: &str) -> Outcome {
        let proof = Proof::new(self.key, "POST", "https://api.example/token");
        let proof = proof.nonce(&self.nonce().await).sign();
        self.edge.serve(&form(TOKEN, body).field("DPoP", proof)).await
    }

    async fn issue(&self) -> Issued {
        issued(&self.ask(&grant("client_credentials")).await.expect("an answer"))
    }

    async fn consume(&self, token: &str) -> Outcome {
        let proof = Proof::new(self.key, "GET", "https://api.example/orders/1");
        let proof = proof.token(token).nonce(&self.nonce().await).sign();
        self.edge.serve(&get("/orders/1", token, &proof)).await
    }

    async fn revoke(&self, token: &str) -> Outcome {
        let body = format!("token={token}&client_id=client-1");
        self.edge.serve(&form("/revoke", &body)).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_bound_at_every_edge() {
    if there_is_none() {
        return;
    }
    for kind in [Form::Opaque, Form::Jwt] {
        let redis = Server::start(&[]).await;
        let site = site(&redis, kind, |_| {}).await;
        let second = Edge::beside(&site.world).await;
        let (key, other) = (Key::new("ES256"), Key::new("ES256"));
        let mut table = Table::default();
        let (own, there) = (At { edge: &site.world, key: &key }, At { edge: &second, key: &key });
        let thief = At { edge: &second, key: &other };
        let first = own.issue().await;
        // Once by the record and its grant one after the other, then at once.
        for _ in 0..2 {
            table.row("bound", is(&there.consume(&first.access).await, 200, ""));
            table.row("thief", is(&thief.consume(&first.access).await, 401, "invalid_token"));
        }
        let stolen = second.serve(&bearer("/orders/1", &first.access)).await;
        table.row("bearer", is(&stolen, 401, "invalid_token"));
        let stolen = thief.ask(&refresh(&first.refresh)).await;
        table.row("refresh, thief", is(&stolen, 400, "invalid_grant"));
        let next = there.ask(&refresh(&first.refresh)).await;
        table.row("refresh", is(&next, 200, ""));
        let next = issued(&next.expect("an answer"));
        table.row("refreshed", is(&own.consume(&next.access).await, 200, ""));
        // Revoked at one edge, refused at the other at once, with all of its grant.
        table.row("revoke", is(&there.revoke(&first.access).await, 200, ""));
        table.row("revoked", is(&own.consume(&first.access).await, 401, "invalid_token"));
        table.row("not revoked", is(&own.consume(&next.access).await, 200, ""));
        table.row("revoke", is(&there.revoke(&next.refresh).await, 200, ""));
        table.row("revoked", is(&own.consume(&next.access).await, 401, "invalid_token"));
        let late = own.ask(&refresh(&next.refresh)).await;
        table.row("revoked", is(&late, 400, "invalid_grant"));
    }
}

/// Any fresh key makes a proof that holds at a token route: such proofs do not take the room of others, and
/// not all of Redis.
#[tokio::test(flavor = "multi_thread")]
async fn proofs_at_token_routes_fill_their_own_place_alone() {
    if there_is_none() {
        return;
    }
    let redis = Server::start(&[]).await;
    let limits = json!({"tokenReplayEntries": 1000});
    let site = site(&redis, Form::Opaque, |config| config["edge"]["limits"] = limits).await;
    let second = Edge::beside(&site.world).await;
    let key = Key::new("ES256");
    let (own, there) = (At { edge: &site.world, key: &key }, At { edge: &second, key: &key });
    let token = own.issue().await;
    let nonce = own.nonce().await;
    let stranger = Key::new("ES256");
    let proof = || Proof::new(&stranger, "POST", "https://api.example/token").nonce(&nonce).sign();
    let connection = site.world.client.connect_h2(None).await.expect("a connection");
    let mut table = Table::default();
    let used = form(TOKEN, "grant_type=none").field("DPoP", proof());
    // What was used before takes no room, however often it is shown.
    for expected in [200, 401, 401, 401, 401] {
        let answer = connection.send(&used).await.expect("an answer");
        table.row("once", expect_eq("status", &answer.status(), &expected));
    }
    let mut shown = 2;
    let full = loop {
        let request = form(TOKEN, "grant_type=none").field("DPoP", proof());
        let answer = connection.send(&request).await;
        if answer.as_ref().is_ok_and(|answer| answer.status() != 200) || shown == 1500 {
            break answer;
        }
        shown += 1;
    };
    table.row("full", is(&full, 503, "temporarily_unavailable"));
    table.row("full", expect_eq("proofs", &shown, &1000));
    let entries = site.world.metric("holdfast_replay_entries", &["log=\"token\""]).await;
    table.row("metric", expect_eq("entries", &entries, &1000.0));
    let keys = redis.cli(&["KEYS", "*:g:*"]).lines().count();
    table.row("redis", expect_eq("keys", &keys, &1000));
    // Resources are served with the same Redis, and another edge has room of its own.
    let ready = site.world.admin("/readyz").await;
    table.row("ready", expect_eq("status", &ready.status(), &200));
    let full = &ready.json()["tokenReplay"];
    let told = json!({"ready": false, "entries": 1000, "capacity": 1000});
    table.row("ready", expect_eq("tokenReplay", full, &told));
    table.row("resource", is(&own.consume(&token.access).await, 200, ""));
    table.row("resource", is(&there.consume(&token.access).await, 200, ""));
    table.row("another edge", is(&there.ask(&grant("client_credentials")).await, 200, ""));
    let entries = site.world.metric("holdfast_replay_entries", &["log=\"resource\""]).await;
    table.row("metric", expect_eq("entries", &entries, &1.0));
}

/// Nonces that are good once are in one memory, of which token routes have a share of their own too.
#[tokio::test(flavor = "multi_thread")]
async fn nonces_used_up_at_token_routes_fill_their_own_place_alone() {
    if there_is_none() {
        return;
    }
    let redis = Server::start(&[]).await;
    for store in ["memory", "redis"] {
        let once = |config: &mut Value| {
            config["edge"]["limits"] = json!({"replayEntries": 1000, "tokenReplayEntries": 1000});
            let nonce = &mut config["security"]["senderConstraints"]["dpop"]["nonce"];
            nonce["store"] = json!(store);
            nonce["singleUse"] = json!(true);
        };
        let site = match store {
            "redis" => site(&redis, Form::Opaque, once).await,
            _ => Site::retrofit(Form::Opaque, once).await,
        };
        let (key, stranger) = (Key::new("ES256"), Key::new("ES256"));
        let own = At { edge: &site.world, key: &key };
        let token = own.issue().await;
        let connection = site.world.client.connect_h2(None).await.expect("a connection");
        let mut nonce = own.nonce().await;
        let mut statuses = BTreeSet::new();
        for _ in 0..1100 {
            // One proof for ever, signed anew: what is new is the nonce.
            let proof = Proof::new(&stranger, "POST", "https://api.example/token");
            let proof = proof.claim("jti", "one").nonce(&nonce).sign();
            let request = form(TOKEN, "grant_type=none").field("DPoP", proof);
            let answer = connection.send(&request).await.expect("an answer");
            statuses.insert(answer.status());
            nonce = answer.one("dpop-nonce").expect("a nonce").to_owned();
        }
        let mut table = Table::default();
        table.row(store, expect_eq("statuses", &statuses, &BTreeSet::from([200, 401])));
        let full = own.ask(&grant("client_credentials")).await;
        table.row(store, is(&full, 503, "temporarily_unavailable"));
        table.row(store, is(&own.consume(&token.access).await, 200, ""));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_redis_has_lost_is_refused_and_without_it_nobody_is_served() {
    if there_is_none() {
        return;
    }
    let mut redis = Server::start(&[]).await;
    let site = site(&redis, Form::Opaque, |_| {}).await;
    let second = Edge::beside(&site.world).await;
    let key = Key::new("ES256");
    let (own, there) = (At { edge: &site.world, key: &key }, At { edge: &second, key: &key });
    let mut table = Table::default();
    for letter in ["t", "f"] {
        let token = own.issue().await;
        table.row(letter, is(&there.consume(&token.access).await, 200, ""));
        for name in redis.cli(&["KEYS", &format!("*:{letter}:*")]).lines() {
            redis.cli(&["DEL", name]);
        }
        table.row(letter, is(&there.consume(&token.access).await, 401, "invalid_token"));
        let again = there.ask(&refresh(&token.refresh)).await;
        table.row(letter, is(&again, 400, "invalid_grant"));
    }
    let token = own.issue().await;
    let nonce = own.nonce().await;
    redis.kill();
    ready_is(second.admin, false).await;
    let down = "temporarily_unavailable";
    let proof = || Proof::new(&key, "GET", "https://api.example/orders/1").nonce(&nonce);
    let used = get("/orders/1", &token.access, &proof().token(&token.access).sign());
    table.row("down", is(&second.serve(&used).await, 503, down));
    let proof = Proof::new(&key, "POST", "https://api.example/token").nonce(&nonce).sign();
    let asked = form(TOKEN, &grant("client_credentials")).field("DPoP", proof);
    table.row("down", is(&second.serve(&asked).await, 503, down));
    table.row("down", is(&own.revoke(&token.access).await, 503, down));
    // It comes back empty: what was issued is unknown, and what is issued is known.
    redis.again().await;
    ready_is(second.admin, true).await;
    ready_is(site.world.admin, true).await;
    table.row("lost", is(&there.consume(&token.access).await, 401, "invalid_token"));
    let next = once(&own).await;
    table.row("new", is(&there.consume(&next.access).await, 200, ""));
}

/// A token, as soon as there is one to be had.
async fn once<E: Asked>(at: &At<'_, E>) -> Issued {
    for _ in 0..500 {
        let answer = at.ask(&grant("client_credentials")).await.expect("an answer");
        if answer.status() == 200 {
            return issued(&answer);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("none is issued");
}

/// A server that hands the same token to two senders: one has it, the other is told nothing.
#[tokio::test(flavor = "multi_thread")]
async fn one_token_for_two_senders_at_two_edges_is_one_s() {
    if there_is_none() {
        return;
    }
    let redis = Server::start(&[]).await;
    let site = site(&redis, Form::Opaque, |_| {}).await;
    let second = Edge::beside(&site.world).await;
    let (key, other) = (Key::new("ES256"), Key::new("ES256"));
    for round in 0..10 {
        let body = json!({"access_token": format!("same-{round}"), "token_type": "Bearer",
                          "expires_in": 600});
        site.server.answer(move |_| super::support::scripted::json(&body));
        let (own, there) = (At { edge: &site.world, key: &key }, At { edge: &second, key: &other });
        let body = grant("client_credentials");
        let (a, b) = tokio::join!(own.ask(&body), there.ask(&body));
        let mut statuses = [a, b].map(|answer| answer.expect("an answer").status());
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 502], "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bypass_is_seen_by_all_and_ends_for_all() {
    if there_is_none() {
        return;
    }
    let redis = Server::start(&[]).await;
    let mut site = site(&redis, Form::Opaque, |config| {
        let rules = &mut config["security"]["senderConstraints"];
        rules["require"] = json!("dpop");
        rules["dpop"]["allowTemporaryBypass"] = json!(true);
    })
    .await;
    let second = Edge::beside(&site.world).await;
    let mut table = Table::default();
    // Of two that have begun at once, one joins the other.
    let mut ids = [String::new(), "none".to_owned()];
    for _ in 0..1500 {
        ids = [bypass_of(site.world.admin).await, bypass_of(second.admin).await];
        if ids[0] == ids[1] {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    table.row("one note", expect_eq("ids", &ids[0], &ids[1]));
    let body = grant("client_credentials");
    let loose = second.serve(&form(TOKEN, &body)).await;
    table.row("open", is(&loose, 200, ""));
    let loose = issued(&loose.expect("an answer"));
    let used = site.world.serve(&bearer("/orders/1", &loose.access)).await;
    table.row("used", is(&used, 200, ""));
    // An edge without the flag lets nobody by, whatever the others do.
    let dpop = |world: &mut World, allowed: bool| {
        world.config["security"]["senderConstraints"]["dpop"]["allowTemporaryBypass"] =
            json!(allowed);
    };
    dpop(&mut site.world, false);
    assert!(site.world.reload().await);
    table.row("closed", is(&site.world.serve(&form(TOKEN, &body)).await, 400, "use_dpop_nonce"));
    let used = site.world.serve(&bearer("/orders/1", &loose.access)).await;
    table.row("closed", is(&used, 401, "invalid_token"));
    table.row("open", is(&second.serve(&form(TOKEN, &body)).await, 200, ""));
    // With the flag again it is in the old term, which the other has kept.
    dpop(&mut site.world, true);
    assert!(site.world.reload().await);
    let again = bypass_of(site.world.admin).await;
    table.row("old term", expect_eq("id", &again, &ids[0]));
    // An hour after it was first seen it is over at both, also where it was never open before.
    redis.cli(&["HSET", "{holdfast:0}:bypass", "since", "1700000000000"]);
    let third = Edge::beside(&site.world).await;
    let over = third.serve(&form(TOKEN, &body)).await;
    table.row("over", is(&over, 400, "use_dpop_nonce"));
    for admin in [site.world.admin, second.admin] {
        let mut ready = ready_is(admin, true).await;
        for _ in 0..1500 {
            if ready["bypass"].is_null() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            ready = ready_is(admin, true).await;
        }
        table.row("over", expect_eq("bypass", &ready["bypass"], &Value::Null));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn proofs_at_token_endpoints_are_counted_together() {
    if there_is_none() {
        return;
    }
    let redis = Server::start(&[]).await;
    let site = site(&redis, Form::Opaque, |config| {
        config["edge"]["limits"]["tokenProofsPerMinute"] = json!(60);
    })
    .await;
    let second = Edge::beside(&site.world).await;
    let key = Key::new("ES256");
    let request = |number: u32| -> Request {
        let proof = Proof::new(&key, "POST", "https://api.example/token");
        form(TOKEN, &format!("grant_type=none&n={number}")).field("DPoP", proof.sign())
    };
    let (began, mut taken) = (Instant::now(), 0);
    for number in 0..80 {
        // One after the other, so that each edge knows before the next.
        for answer in
            [site.world.serve(&request(number)).await, second.serve(&request(number)).await]
        {
            taken += u64::from(answer.expect("an answer").status() == 400);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Sixty, one more each second, and what came in before it was known; not sixty at each.
    let most = 60 + began.elapsed().as_secs() + 30;
    assert!((50..=most).contains(&taken), "{taken} of {most}");
}

/// Tokens, the bypass and limits need no more of the server than what is delivered.
#[tokio::test(flavor = "multi_thread")]
async fn the_least_rights_are_enough() {
    if there_is_none() {
        return;
    }
    let acl = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/redis/users.acl"));
    let acl = acl.expect("deploy/redis/users.acl").replace("CHANGE-ME", "right-password");
    // Somebody who may look.
    let acl = format!("{acl}\nuser looker on nopass ~* +@all\n");
    let directory = tempfile::TempDir::new().expect("a directory");
    let users = directory.path().join("users.acl");
    fs::write(&users, acl).expect("a writable directory");
    let port = free_port();
    let lines = [format!("port {port}"), format!("aclfile {}", users.display())];
    let cli = ["--user", "looker", "--pass", "any", "--no-auth-warning"];
    let redis = Server::start_at(port, &cli, lines.iter().map(String::as_str)).await;
    let mut site = site(&redis, Form::Opaque, |config| {
        config["security"]["senderConstraints"]["dpop"]["allowTemporaryBypass"] = json!(true);
        let redis = &mut config["store"]["redis"];
        redis["user"] = json!("holdfast");
        redis["passwordFile"] = json!("redis.password");
    })
    .await;
    let key = Key::new("ES256");
    let mut table = Table::default();
    bypass_of(site.world.admin).await;
    let own = At { edge: &site.world, key: &key };
    let token = own.issue().await;
    table.row("bound", is(&own.consume(&token.access).await, 200, ""));
    let next = issued(&own.ask(&refresh(&token.refresh)).await.expect("an answer"));
    table.row("revoke", is(&own.revoke(&token.access).await, 200, ""));
    table.row("revoked", is(&own.consume(&token.access).await, 401, "invalid_token"));
    table.row("revoke", is(&own.revoke(&next.refresh).await, 200, ""));
    table.row("revoked", is(&own.consume(&next.access).await, 401, "invalid_token"));
    let counted = redis.cli(&["EXISTS", "{holdfast:0}:bypass"]);
    table.row("noted", expect_eq("keys", &counted.trim(), &"1"));
    site.world.config["security"]["senderConstraints"]["dpop"]["allowTemporaryBypass"] =
        json!(false);
    assert!(site.world.reload().await);
    let counted = redis.cli(&["EXISTS", "{holdfast:0}:bypass"]);
    table.row("closed", expect_eq("keys", &counted.trim(), &"0"));
}

/// A reload goes on without Redis, however long that may be waited for, and what it could not note is noted
/// when Redis is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_bypass_that_could_not_be_noted_opens_when_redis_answers() {
    if there_is_none() {
        return;
    }
    let mut redis = Server::start(&[]).await;
    let mut site = site(&redis, Form::Opaque, |config| {
        let redis = &mut config["store"]["redis"];
        redis["connectTimeout"] = json!("30s");
        redis["timeout"] = json!("30s");
    })
    .await;
    let mut table = Table::default();
    let ready = ready_is(site.world.admin, true).await;
    table.row("closed", expect_eq("bypass", &ready["bypass"], &Value::Null));
    redis.kill();
    ready_is(site.world.admin, false).await;
    let allow = "allowTemporaryBypass";
    site.world.config["security"]["senderConstraints"]["dpop"][allow] = json!(true);
    assert!(site.world.reload().await);
    let ready = ready_is(site.world.admin, false).await;
    table.row("not noted", expect_eq("bypass", &ready["bypass"], &Value::Null));
    redis.again().await;
    ready_is(site.world.admin, true).await;
    bypass_of(site.world.admin).await;
    let counted = redis.cli(&["EXISTS", "{holdfast:0}:bypass"]);
    table.row("noted", expect_eq("keys", &counted.trim(), &"1"));
    // One that is taken away before Redis is back stays closed.
    site.world.config["security"]["senderConstraints"]["dpop"][allow] = json!(false);
    redis.kill();
    ready_is(site.world.admin, false).await;
    assert!(site.world.reload().await);
    redis.again().await;
    ready_is(site.world.admin, true).await;
    let mut audit = String::new();
    for _ in 0..1500 {
        audit = site.world.command(&["audit", "tail", "--json"]);
        if audit.contains("closed") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    table.row("taken away", expect_eq(&audit, &audit.contains("closed"), &true));
    redis.says(&["EXISTS", "{holdfast:0}:bypass"], "0").await;
    let ready = ready_is(site.world.admin, true).await;
    table.row("taken away", expect_eq("bypass", &ready["bypass"], &Value::Null));
}
