//! The temporary bypass, and certificates that stand in for others.

use std::time::Duration;

use serde_json::{Value, json};

use super::support::authority::{Form, Issued, Site, TOKEN, form, grant, issued, refresh};
use super::support::client::{Message, Outcome};
use super::support::keys::Key;
use super::support::proof::Proof;
use super::support::world::{World, bearer, expect_eq};
use super::support::{Table, now};

fn is(answer: &Outcome, status: u16, error: &str) -> Result<(), String> {
    let answer = answer.as_ref().expect("an answer");
    let told = answer.json();
    let found = (answer.status(), told["error"].as_str().unwrap_or_default());
    expect_eq("answer", &found, &(status, error))
}

fn dpop(config: &mut Value) -> &mut Value {
    &mut config["security"]["senderConstraints"]["dpop"]
}

/// Retrofit where proofs are demanded, of two tenants.
async fn site(change: impl FnOnce(&mut Value)) -> Site {
    Site::retrofit(Form::Opaque, |config| {
        config["security"]["senderConstraints"]["require"] = json!("dpop");
        config["tenants"] = json!({"a": {"clients": ["client-1"]}, "b": {"clients": ["client-2"]}});
        config["tenancy"] = json!({"claim": "tenant", "unknown": "default"});
        change(config);
    })
    .await
}

async fn asked(world: &World, client: &str) -> Outcome {
    let body = grant("client_credentials").replace("client-1", client);
    world.send(&form(TOKEN, &body)).await
}

fn result(answer: &Outcome) -> Option<String> {
    let seen = answer.as_ref().expect("an answer").seen();
    seen.one("x-holdfast-result").map(str::to_owned)
}

fn lines(site: &Site, kind: &str) -> i64 {
    let sql = "SELECT count(*) FROM audit WHERE kind = ?1";
    site.store().query_row(sql, [kind], |row| row.get(0)).expect("a count")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bypass_lets_by_who_shows_no_proof_and_closes_again() {
    let mut site = site(|_| {}).await;
    let (key, other) = (Key::new("ES256"), Key::new("ES256"));
    let mut table = Table::default();
    table.row("closed", is(&asked(&site.world, "client-1").await, 400, "use_dpop_nonce"));
    let own = site.issue(&key).await;
    dpop(&mut site.world.config)["allowTemporaryBypass"] = json!(true);
    assert!(site.world.reload().await);

    let answer = asked(&site.world, "client-1").await.expect("an answer");
    let loose = issued(&answer);
    table.row("open", expect_eq("type", &loose.token_type.as_str(), &"Bearer"));
    let sql = "SELECT count(*) FROM authority_tokens WHERE bypass IS NOT NULL \
               AND cnf_jkt IS NULL AND sender_certificate IS NULL";
    let kept: i64 = site.store().query_row(sql, [], |row| row.get(0)).expect("a count");
    table.row("open", expect_eq("records", &kept, &2));
    table.row("open", expect_eq("audited", &lines(&site, "dpop.bypass"), &1));
    table.row("open", expect_eq("audited", &lines(&site, "bypass.change"), &1));
    let listed = std::process::Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(["audit", "tail", "--kind", "dpop.bypass", "--store"])
        .arg(site.world.directory.path().join("store.db"))
        .output()
        .expect("the program");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    table.row("listed", expect_eq("lines", &listed.lines().count(), &1));
    table.row("listed", expect_eq("client", &listed.contains("client client-1"), &true));
    let id = answer.one("x-request-id").expect("an id").to_owned();
    let told = site.world.process.record(|record| {
        record["event"] == "authority.dpop.proof.bypass" && record["decision_id"] == id.as_str()
    });
    let told = told.await.expect("a record");
    table.row("open", expect_eq("told", &told["client"], &json!("client-1")));
    let labels = ["result=\"bypass\"", "role=\"token\""];
    let counted = site.world.metric_once("authority_dpop_result_total", &labels, 1.0).await;
    table.row("open", expect_eq("counted", &counted, &1.0));
    table.row(
        "gauge",
        expect_eq("gauge", &site.world.metric("holdfast_bypass_active", &[]).await, &1.0),
    );
    let ready = site.world.admin("/readyz").await;
    table.row("ready", expect_eq("status", &ready.status(), &200));
    table.row("ready", expect_eq("id", &ready.json()["bypass"]["id"].is_string(), &true));

    let used = site.world.send(&bearer("/orders/1", &loose.access)).await;
    table.row("used", is(&used, 200, ""));
    table.row("used", expect_eq("result", &result(&used).as_deref(), &Some("bypass")));
    // A faulty proof is none, and what is bound stays bound.
    let faulty = Proof::new(&key, "GET", "https://api.example/token").sign();
    let request = form(TOKEN, &grant("client_credentials")).field("DPoP", faulty);
    table.row("faulty", is(&site.world.send(&request).await, 400, "invalid_dpop_proof"));
    table.row("bound", is(&site.consume(&other, &own.access).await, 401, "invalid_token"));
    table.row("bound", is(&site.consume(&key, &own.access).await, 200, ""));
    let as_bearer = site.world.send(&bearer("/orders/1", &own.access)).await;
    table.row("bound", is(&as_bearer, 401, "invalid_token"));
    let refreshed = site.world.send(&form(TOKEN, &refresh(&own.refresh))).await;
    table.row("bound", is(&refreshed, 400, "use_dpop_nonce"));
    // Who shows a proof is bound as ever.
    let bound = site.issue(&key).await;
    table.row("proven", expect_eq("type", &bound.token_type.as_str(), &"DPoP"));
    // What was issued loosely may be refreshed loosely, or be bound from now on.
    let again =
        issued(&site.world.send(&form(TOKEN, &refresh(&loose.refresh))).await.expect("an answer"));
    let caught = issued(&site.ask(None, &key, &refresh(&again.refresh)).await.expect("an answer"));
    table.row("caught", expect_eq("type", &caught.token_type.as_str(), &"DPoP"));
    let stolen = site.ask(None, &other, &refresh(&caught.refresh)).await;
    table.row("caught", is(&stolen, 400, "invalid_grant"));

    dpop(&mut site.world.config)["allowTemporaryBypass"] = json!(false);
    assert!(site.world.reload().await);
    table.row("over", is(&asked(&site.world, "client-1").await, 400, "use_dpop_nonce"));
    let used = site.world.send(&bearer("/orders/1", &loose.access)).await;
    table.row("over", is(&used, 401, "invalid_token"));
    table.row("over", is(&site.consume(&key, &caught.access).await, 200, ""));
    table.row(
        "gauge",
        expect_eq("gauge", &site.world.metric("holdfast_bypass_active", &[]).await, &0.0),
    );
    table.row("over", expect_eq("audited", &lines(&site, "bypass.change"), &2));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bypass_is_for_its_tenants_and_its_time_alone() {
    let mut site = site(|config| {
        dpop(config)["allowTemporaryBypass"] = json!(true);
        dpop(config)["temporaryBypass"] = json!({"tenants": ["a"]});
        config["security"]["senderConstraints"]["mtls"] = json!({"enforceForAudiences": ["never"]});
    })
    .await;
    let mut table = Table::default();
    table.row("a", is(&asked(&site.world, "client-1").await, 200, ""));
    table.row("b", is(&asked(&site.world, "client-2").await, 400, "use_dpop_nonce"));
    table.row("nobody's", is(&asked(&site.world, "client-3").await, 400, "use_dpop_nonce"));
    // A restart does not open it anew: it was first seen an hour ago.
    site.store()
        .execute(
            "UPDATE meta SET value = json_set(value, '$.since', json_extract(value, '$.since') - \
             3600000) WHERE name = 'bypass'",
            [],
        )
        .expect("a store");
    site.world.restart().await;
    table.row("late", is(&asked(&site.world, "client-1").await, 400, "use_dpop_nonce"));
    table.row(
        "late",
        expect_eq("gauge", &site.world.metric("holdfast_bypass_active", &[]).await, &0.0),
    );
    // It ends when the file says, though nobody reads the file again.
    dpop(&mut site.world.config)["allowTemporaryBypass"] = json!(false);
    assert!(site.world.reload().await);
    let soon = now() + 12;
    dpop(&mut site.world.config)["allowTemporaryBypass"] = json!(true);
    dpop(&mut site.world.config)["temporaryBypass"] = json!({"until": time(soon)});
    assert!(site.world.reload().await);
    table.row("until", is(&asked(&site.world, "client-2").await, 200, ""));
    let mut after = asked(&site.world, "client-2").await;
    for _ in 0..400 {
        if is(&after, 200, "").is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        after = asked(&site.world, "client-2").await;
    }
    table.row("after", is(&after, 400, "use_dpop_nonce"));
    table.row("after", expect_eq("it is time", &(now() >= soon), &true));
}

/// Seconds since the epoch, as RFC 3339 writes them.
fn time(secs: i64) -> String {
    let output = std::process::Command::new("date")
        .args(["-u", "-d", &format!("@{secs}"), "+%Y-%m-%dT%H:%M:%SZ"])
        .output()
        .expect("date");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demanded_certificate_is_not_bypassed() {
    let site = site(|config| {
        dpop(config)["allowTemporaryBypass"] = json!(true);
        config["security"]["senderConstraints"]["require"] = json!("any");
        config["tenants"]["a"]["require"] = json!("both");
        config["tenants"]["b"]["require"] = json!("mtls");
    })
    .await;
    let alice = site.world.pki.alice.clone();
    let mut table = Table::default();
    table.row("both", is(&asked(&site.world, "client-1").await, 401, "invalid_client"));
    table.row("mtls", is(&asked(&site.world, "client-2").await, 401, "invalid_client"));
    let ask = form(TOKEN, &grant("client_credentials"));
    table.row("both", is(&site.world.send_as(&alice, &ask).await, 200, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bypass_of_a_server_that_binds_passes_no_proof_and_is_written_down() {
    let site = Site::native(|config| {
        config["security"]["senderConstraints"]["require"] = json!("dpop");
        dpop(config)["allowTemporaryBypass"] = json!(true);
    })
    .await;
    let answer = asked(&site.world, "client-1").await.expect("an answer");
    let loose = issued(&answer);
    let used = site.world.send(&bearer("/orders/1", &loose.access)).await;
    assert_eq!(result(&used).as_deref(), Some("bypass"));
    assert_eq!(lines(&site, "dpop.bypass"), 1);
    // A token that is bound all the same is somebody's.
    site.binds(json!({"jkt": Key::new("ES256").jkt()}), "DPoP");
    assert!(is(&asked(&site.world, "client-1").await, 502, "bad_gateway").is_ok());
}

const HOUR: i64 = 3600;

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_stands_in_for_a_certificate_for_a_while() {
    let (mut given, mut table) = (None, Table::default());
    let site = Site::retrofit_in(Form::Opaque, |directory, pki, config| {
        let old = pki.client("carol", -100 * HOUR, HOUR);
        config["security"]["senderConstraints"]["mtls"] = json!({"rotationGrace": "1h"});
        let tls = &mut config["edge"]["listeners"][0]["tls"];
        tls["revocation"] = json!({"crls": ["clients.crl"]});
        let nobody = pki.revocation_list(&[], 2099);
        std::fs::write(directory.join("clients.crl"), nobody).expect("a file");
        given = Some(old);
    })
    .await;
    let (old, pki) = (given.expect("a certificate"), &site.world.pki);
    let ask = form(TOKEN, &grant("client_credentials"));
    let own = issued(&site.world.send_as(&old, &ask).await.expect("an answer"));
    let (carol, others) = ("carol", "dave");
    let next = pki.client(carol, -60, 100 * HOUR);
    let question = form("/introspect", &format!("token={}&client_id=client-1", own.access));
    for (name, who, good) in [
        ("ok/itself", &old, true),
        ("ok/its successor", &next, true),
        ("fail/too long ago", &pki.client(carol, -2 * HOUR, 100 * HOUR), false),
        ("fail/another's", &pki.client(others, -60, 100 * HOUR), false),
        ("fail/another's", &site.world.pki.alice, false),
        ("fail/from before", &pki.client(carol, -101 * HOUR, 100 * HOUR), false),
    ] {
        let used = site.world.send_as(who, &bearer("/orders/1", &own.access)).await;
        let told = site.world.send_as(who, &question).await;
        if good {
            table.row(name, is(&used, 200, ""));
            table.row(name, expect_eq("result", &result(&used).as_deref(), &Some("mtls")));
            table.row(name, is(&told, 200, ""));
        } else {
            table.row(name, is(&used, 401, "invalid_token"));
            table.row(name, is(&told, 401, "invalid_client"));
            let refreshed = site.world.send_as(who, &form(TOKEN, &refresh(&own.refresh))).await;
            table.row(name, is(&refreshed, 400, "invalid_grant"));
        }
    }
    // Each use is written down.
    let sql = "SELECT count(*) FROM audit WHERE kind = 'certificate.successor'";
    let count = || -> i64 { site.store().query_row(sql, [], |row| row.get(0)).expect("a count") };
    for _ in 0..1500 {
        if count() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    table.row("written down", expect_eq("lines", &count(), &2));
    // What it refreshes is the new certificate's.
    let refreshing = form(TOKEN, &refresh(&own.refresh));
    let newer = issued(&site.world.send_as(&next, &refreshing).await.expect("an answer"));
    let used = site.world.send_as(&old, &bearer("/orders/1", &newer.access)).await;
    table.row("refreshed", is(&used, 401, "invalid_token"));
    let used = site.world.send_as(&next, &bearer("/orders/1", &newer.access)).await;
    table.row("refreshed", is(&used, 200, ""));
    // Never after the old one was revoked.
    site.world.write("clients.crl", &pki.revocation_list(&[&old], 2099));
    assert!(site.world.told_to_reload().await);
    let used = site.world.send_as(&next, &bearer("/orders/1", &own.access)).await;
    table.row("revoked", is(&used, 401, "invalid_token"));
    let used = site.world.send_as(&next, &bearer("/orders/1", &newer.access)).await;
    table.row("revoked", is(&used, 200, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_grace_nothing_stands_in() {
    let site = Site::retrofit(Form::Opaque, |_| {}).await;
    let pki = &site.world.pki;
    let (old, next) = (pki.client("carol", -HOUR, HOUR), pki.client("carol", -60, 100 * HOUR));
    let ask = form(TOKEN, &grant("client_credentials"));
    let own: Issued = issued(&site.world.send_as(&old, &ask).await.expect("an answer"));
    let used = site.world.send_as(&next, &bearer("/orders/1", &own.access)).await;
    assert_eq!(is(&used, 401, "invalid_token"), Ok(()));
    let answer: Message = used.expect("an answer");
    assert!(answer.one("x-request-id").is_some());
}
