//! Attacks on what stands in front of an authorization server: each is one that worked, or nearly did.

use std::time::Duration;

use serde_json::json;

use super::support::Table;
use super::support::authority::{Form, Site, TOKEN, form, grant, issued, refresh};
use super::support::base64url;
use super::support::client::{Message, Outcome};
use super::support::keys::Key;
use super::support::proof::Proof;
use super::support::scripted::{Step, json as good, reply};
use super::support::world::{bearer, expect_eq};

fn is(outcome: Outcome, status: u16, error: &str) -> Result<(), String> {
    let answer = outcome?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let told = answer.json();
    let found = (answer.status(), told["error"].as_str().unwrap_or_default());
    expect_eq(&text, &found, &(status, error))
}

/// A member of the answer's `error`; nothing for a good one.
fn told(answer: &Message) -> (u16, String) {
    (answer.status(), answer.json()["error"].as_str().unwrap_or_default().to_owned())
}

const BASIC: &str = "Basic Y2xpZW50LTE6c2VjcmV0";

/// Who may ask is the server's to say: it must see the credentials that it says it by.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_a_client_reach_its_server() {
    let site = Site::retrofit(Form::Opaque, |config| {
        for route in config["routes"].as_array_mut().expect("a list") {
            if route["role"] == json!("introspection") {
                route["senderCertificate"] = json!("off");
            }
        }
    })
    .await;
    let own = site.issue(&Key::new("ES256")).await;
    let mut table = Table::default();
    for path in ["/introspect", "/revoke"] {
        let body = format!("token={}", own.access);
        let answer = site.world.send(&form(path, &body).field("Authorization", BASIC)).await;
        table.row(path, is(answer, 200, ""));
        let seen = site.server.last();
        table.row(path, expect_eq("seen", &seen.one("authorization"), &Some(BASIC)));
    }
    let body = "grant_type=client_credentials";
    let proof = site.proof(&Key::new("ES256"), TOKEN).await.sign();
    let ask = form(TOKEN, body).field("Authorization", BASIC).field("DPoP", proof);
    table.row(TOKEN, is(site.world.send(&ask).await, 200, ""));
    table.row(TOKEN, expect_eq("seen", &site.server.last().one("authorization"), &Some(BASIC)));
}
