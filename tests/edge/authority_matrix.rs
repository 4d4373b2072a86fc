//! The verification matrix of sender constraints at an authorization server, row by row and by name.

use serde_json::json;

use super::support::authority::{Form, Site, TOKEN, form, grant, issued, refresh};
use super::support::client::{Message, plain_from};
use super::support::keys::Key;
use super::support::process::free_port;
use super::support::proof::Proof;
use super::support::world::expect_eq;

/// Status and error of an answer, with what every refusal has.
#[track_caller]
fn refused(answer: &Message, status: u16, error: &str) {
    let told = answer.json();
    let found = (answer.status(), told["error"].as_str().unwrap_or_default());
    assert_eq!(found, (status, error), "{}", String::from_utf8_lossy(&answer.body));
    assert_eq!(answer.one("cache-control"), Some("no-store"));
    assert!(answer.one("x-request-id").is_some());
    let challenged = !answer.all("www-authenticate").is_empty();
    assert_eq!(challenged, status == 401, "a challenge goes with a 401");
}

async fn told(site: &Site, answer: &Message) -> serde_json::Value {
    let id = answer.one("x-request-id").expect("an id").to_owned();
    let record = site.world.process.record(|record| {
        record["event"] == "authority.dpop.request" && record["decision_id"] == id.as_str()
    });
    record.await.expect("a record")
}

/// Whether the audit log has a line of this kind with this id.
fn audited(site: &Site, kind: &str, answer: &Message) -> bool {
    let id = answer.one("x-request-id").expect("an id");
    let sql = "SELECT count(*) FROM audit WHERE kind = ?1 AND id = ?2";
    for _ in 0..1500 {
        let count: i64 =
            site.store().query_row(sql, [kind, id], |row| row.get(0)).expect("a count");
        if count == 1 {
            return true;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn dpop_required_without_proof() {
    let site = Site::retrofit(Form::Opaque, |config| {
        config["security"]["senderConstraints"]["require"] = json!("dpop");
    })
    .await;
    let answer = site.world.send(&form(TOKEN, &grant("client_credentials"))).await.unwrap();
    refused(&answer, 400, "use_dpop_nonce");
    assert!(answer.one("dpop-nonce").is_some());
    assert_eq!(site.server.asked(), 0, "the server was asked");
    let record = told(&site, &answer).await;
    assert_eq!((&record["result"], &record["role"]), (&json!("missing"), &json!("token")));
}

#[tokio::test(flavor = "multi_thread")]
async fn dpop_nonce_required() {
    let site = Site::retrofit(Form::Opaque, |_| {}).await;
    let key = Key::new("ES256");
    let proof = || Proof::new(&key, "POST", "https://api.example/token");
    let ask = |proof: Proof| form(TOKEN, &grant("client_credentials")).field("DPoP", proof.sign());
    for bad in [proof(), proof().nonce("made-up")] {
        let answer = site.world.send(&ask(bad)).await.unwrap();
        refused(&answer, 400, "use_dpop_nonce");
        assert!(answer.one("dpop-nonce").is_some());
    }
    assert_eq!(site.server.asked(), 0, "the server was asked");
    let answer = site.world.send(&ask(proof())).await.unwrap();
    let nonce = answer.one("dpop-nonce").expect("a nonce").to_owned();
    let answer = site.world.send(&ask(proof().nonce(&nonce))).await.unwrap();
    assert_eq!(issued(&answer).token_type, "DPoP");
    for (reason, expected) in [("absent", 2.0), ("unknown", 1.0)] {
        let label = format!("reason=\"{reason}\"");
        let labels = [label.as_str()];
        let name = "authority_dpop_nonce_miss_total";
        let found = site.world.metric_once(name, &labels, expected).await;
        assert_eq!(expect_eq(reason, &found, &expected), Ok(()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dpop_must_match_cnf() {
    let site = Site::retrofit(Form::Opaque, |_| {}).await;
    let (key, thief) = (Key::new("ES256"), Key::new("ES256"));
    let own = site.issue(&key).await;
    assert_eq!(own.token_type, "DPoP");
    let used = site.consume(&key, &own.access).await.unwrap();
    assert_eq!(used.status(), 200);
    assert_eq!(used.seen().one("x-holdfast-result"), Some("dpop"));
    assert_eq!(used.seen().one("x-holdfast-cnf-jkt"), Some(key.jkt().as_str()));
    let stolen = site.consume(&thief, &own.access).await.unwrap();
    refused(&stolen, 401, "invalid_token");
    let asked = site.server.asked();
    let refreshed = site.ask(None, &thief, &refresh(&own.refresh)).await.unwrap();
    refused(&refreshed, 400, "invalid_grant");
    assert!(audited(&site, "sender.mismatch", &refreshed));
    assert_eq!(site.server.asked(), asked, "the server was asked");
    let record = told(&site, &refreshed).await;
    assert_eq!(record["reason"], json!("key_mismatch"));
    // It is the owner's as it was.
    let refreshed = site.ask(None, &key, &refresh(&own.refresh)).await.unwrap();
    assert_eq!(issued(&refreshed).token_type, "DPoP");
}

#[tokio::test(flavor = "multi_thread")]
async fn nonce_replay() {
    for (configured, status) in [(json!(null), 401), (json!(400), 400)] {
        let site = Site::retrofit(Form::Opaque, |config| {
            if !configured.is_null() {
                let dpop = &mut config["security"]["senderConstraints"]["dpop"];
                dpop["replayStatus"] = configured.clone();
            }
        })
        .await;
        let proof = site.proof(&Key::new("ES256"), TOKEN).await.sign();
        let ask = form(TOKEN, &grant("client_credentials")).field("DPoP", &*proof);
        issued(&site.world.send(&ask).await.unwrap());
        let asked = site.server.asked();
        let again = site.world.send(&ask).await.unwrap();
        refused(&again, status, "invalid_dpop_proof");
        assert_eq!(site.server.asked(), asked, "the server was asked");
        assert!(audited(&site, "dpop.replay", &again));
        let labels = ["role=\"token\"", "result=\"replay\""];
        let counted = site.world.metric_once("authority_dpop_result_total", &labels, 1.0).await;
        assert!((counted - 1.0).abs() < f64::EPSILON);
    }
}

/// A certificate-bound token, introspected by its client with what `who` says, where the edge sees a
/// connection that `context` says.
async fn introspected(reason: &str) -> (Site, Message) {
    let plain = free_port();
    let site = Site::retrofit(Form::Opaque, |config| {
        let listener = json!({"name": "plain", "address": format!("127.0.0.1:{plain}")});
        config["edge"]["listeners"].as_array_mut().expect("a list").push(listener);
    })
    .await;
    let (alice, bob) = (site.world.pki.alice.clone(), site.world.pki.bob.clone());
    let ask = form(TOKEN, &grant("client_credentials"));
    let own = issued(&site.world.send_as(&alice, &ask).await.unwrap());
    assert_eq!(own.token_type, "Bearer");
    let question = form("/introspect", &format!("token={}&client_id=client-1", own.access));
    let good = site.world.send_as(&alice, &question).await.unwrap();
    let told = good.json();
    assert_eq!(told["active"], json!(true));
    assert_eq!(told["cnf"]["x5t#S256"], json!(alice.x5t()));
    let answer = match reason {
        "thumbprint-mismatch" => site.world.send_as(&bob, &question).await,
        "context-missing" => {
            let mut connection = plain_from("127.0.0.1", plain).await.expect("a connection");
            connection.send(&question.bytes()).await
        }
        _ => site.world.send(&question).await,
    };
    (site, answer.unwrap())
}

async fn mismatched(reason: &str) {
    let (site, answer) = introspected(reason).await;
    refused(&answer, 401, "invalid_client");
    let label = format!("reason=\"{reason}\"");
    let name = "authority_mtls_mismatch_total";
    assert!((site.world.metric_once(name, &[&label], 1.0).await - 1.0).abs() < f64::EPSILON);
    let id = answer.one("x-request-id").unwrap();
    let record = site.world.process.record(|record| {
        record["event"] == "authority.security.senderConstraint" && record["decision_id"] == id
    });
    let record = record.await.expect("a record");
    assert_eq!(record["senderCertificateMismatch"], json!(true));
    assert_eq!(record["reason"], json!(reason));
    assert_eq!(record["expected"], json!(site.world.pki.alice.x5t()));
    assert!(audited(&site, "sender.mismatch", &answer));
}

#[tokio::test(flavor = "multi_thread")]
async fn mtls_mismatch() {
    mismatched("thumbprint-mismatch").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mtls_missing_certificate() {
    mismatched("missing-certificate").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mtls_context_missing() {
    mismatched("context-missing").await;
}
