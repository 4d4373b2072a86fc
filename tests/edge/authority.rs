//! In front of an authorization server: what binds, what is kept, what is told, and what is refused.

use serde_json::{Value, json};

use super::support::Table;
use super::support::authority::{Form, Site, TOKEN, fields, form, grant, issued, refresh};
use super::support::client::{Message, Outcome, Request};
use super::support::keys::Key;
use super::support::proof::Proof;
use super::support::world::{bearer, expect_eq};

const METADATA: &str = "/.well-known/oauth-authorization-server";

/// Status and the error in the body.
fn outcome(answer: &Outcome) -> (u16, String) {
    let answer = answer.as_ref().expect("an answer");
    let told = answer.json();
    (answer.status(), told["error"].as_str().unwrap_or_default().to_owned())
}

fn is(answer: &Outcome, status: u16, error: &str) -> Result<(), String> {
    expect_eq("answer", &outcome(answer), &(status, error.to_owned()))
}

/// The reason in the record of an answer.
async fn reason(site: &Site, answer: &Message) -> Value {
    let id = answer.one("x-request-id").expect("an id").to_owned();
    let record = site.world.process.record(|record| {
        record["event"] == "authority.dpop.request" && record["decision_id"] == id.as_str()
    });
    record.await.expect("a record")["reason"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retrofitted_token_is_its_senders_through_every_step() {
    for form_of in [Form::Opaque, Form::Jwt] {
        let site = Site::retrofit(form_of, |_| {}).await;
        let (key, thief) = (Key::new("ES256"), Key::new("ES256"));
        let first = site.issue(&key).await;
        // The server saw neither proof nor anything of the edge's own that it did not ask for.
        let seen = site.server.last();
        assert_eq!(seen.one("dpop"), None);
        assert_eq!(seen.one("accept-encoding"), Some("identity"));
        assert_eq!(fields(&seen)["grant_type"], "client_credentials");
        let second =
            issued(&site.ask(None, &key, &refresh(&first.refresh)).await.expect("an answer"));
        let mut table = Table::default();
        for (name, own) in [("first", &first), ("second", &second)] {
            let by = |key| site.consume(key, &own.access);
            table.row(name, is(&by(&key).await, 200, ""));
            table.row(name, is(&by(&thief).await, 401, "invalid_token"));
            let downgraded = site.world.send(&bearer("/orders/1", &own.access)).await;
            table.row(name, is(&downgraded, 401, "invalid_token"));
            let stolen = site.ask(None, &thief, &refresh(&own.refresh)).await;
            table.row(name, is(&stolen, 400, "invalid_grant"));
            let unproven = site.world.send(&form(TOKEN, &refresh(&own.refresh))).await;
            table.row(name, is(&unproven, 400, "use_dpop_nonce"));
            let other = refresh(&own.refresh).replace("client-1", "client-2");
            let others = site.ask(None, &key, &other).await;
            table.row(name, is(&others, 400, "invalid_grant"));
        }
        // What is told is what the server said, to the letter, but for the type.
        let answer = site.ask(None, &key, &grant("client_credentials")).await.expect("an answer");
        let text = String::from_utf8(answer.body.clone()).expect("text");
        table.row("told", expect_eq("type", &answer.json()["token_type"], &json!("DPoP")));
        table.row("told", expect_eq("kept", &text.contains("[1.5,{\"a\":null}]"), &true));
        table.row("told", expect_eq("cache", &answer.one("cache-control"), &Some("no-store")));
        // A refresh token is no access token, and the other way round.
        let swapped = site.consume(&key, &first.refresh).await;
        table.row("swapped", is(&swapped, 401, "invalid_token"));
        let swapped = site.ask(None, &key, &refresh(&first.access)).await;
        table.row("swapped", is(&swapped, 400, "invalid_grant"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_record_is_refused() {
    for form_of in [Form::Opaque, Form::Jwt] {
        let site = Site::retrofit(form_of, |_| {}).await;
        let key = Key::new("ES256");
        let own = site.issue(&key).await;
        let mut table = Table::default();
        table.row("before", is(&site.consume(&key, &own.access).await, 200, ""));
        // Another process may say it, too.
        site.store().execute("DELETE FROM authority_tokens", []).expect("a store");
        table.row("access", is(&site.consume(&key, &own.access).await, 401, "invalid_token"));
        table.row(
            "bearer",
            is(&site.world.send(&bearer("/orders/1", &own.access)).await, 401, "invalid_token"),
        );
        let refreshed = site.ask(None, &key, &refresh(&own.refresh)).await;
        table.row("refresh", is(&refreshed, 400, "invalid_grant"));
        // The token of an issuer whose tokens the edge binds, even with a `cnf` of its own.
        let behind = site.world.token().jkt(&site.world.key.jkt()).sign();
        let used = site.consume(&site.world.key, &behind).await;
        table.row("behind its back", is(&used, 401, "invalid_token"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_odd_admits_nobody() {
    let site = Site::retrofit(Form::Opaque, |_| {}).await;
    let key = Key::new("ES256");
    let mut table = Table::default();
    for (name, change, status) in [
        ("another key", "cnf_jkt = zeroblob(32)", 401),
        ("a short key", "cnf_jkt = x'00'", 503),
        ("another kind", "kind = 'other'", 503),
        ("ended", "expires = 1", 401),
        ("revoked", "revoked = 1", 401),
    ] {
        let own = site.issue(&key).await;
        let sql = format!("UPDATE authority_tokens SET {change}");
        site.store().execute(&sql, []).expect("a store");
        let used = outcome(&site.consume(&key, &own.access).await);
        table.row(name, expect_eq("status", &used.0, &status));
        site.store().execute("DELETE FROM authority_tokens", []).expect("a store");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_refresh_tokens_and_tokens_without_a_record_may_be_let_in() {
    let site = Site::retrofit(Form::Jwt, |config| {
        config["issuers"][0]["retrofit"]["unknownRefresh"] = json!("bind");
        config["issuers"][0]["retrofit"]["unrecorded"] = json!("allow");
        config["issuers"][0]["retrofit"]["unrecordedUntil"] = json!("2099-01-01T00:00:00Z");
        config["routes"][0]["allowUnbound"] = json!(true);
    })
    .await;
    let (key, other) = (Key::new("ES256"), Key::new("ES256"));
    let mut table = Table::default();
    let old = site.world.token().sign();
    let used = site.world.send(&bearer("/orders/1", &old)).await;
    table.row("unrecorded", is(&used, 200, ""));
    let seen = used.expect("an answer").seen();
    table.row("unrecorded", expect_eq("r", &seen.one("x-holdfast-result"), &Some("unbound")));
    site.rotates(false);
    let own = issued(&site.ask(None, &key, &refresh("from-before")).await.expect("an answer"));
    table.row("bound", expect_eq("type", &own.token_type.as_str(), &"DPoP"));
    // Whoever brings it first keeps it, though the server goes on with the same.
    table.row("kept", expect_eq("refresh", &own.refresh.as_str(), &"from-before"));
    let late = site.ask(None, &other, &refresh("from-before")).await;
    table.row("late", is(&late, 400, "invalid_grant"));
    let again = site.ask(None, &key, &refresh("from-before")).await;
    table.row("again", is(&again, 200, ""));
    // Once it is over, they are refused.
    let mut world = site.world;
    world.config["issuers"][0]["retrofit"]["unrecordedUntil"] = json!("2020-01-01T00:00:00Z");
    assert!(world.reload().await);
    let used = world.send(&bearer("/orders/1", &old)).await;
    table.row("over", is(&used, 401, "invalid_token"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_is_ever_bound_to_another() {
    let site = Site::retrofit(Form::Opaque, |_| {}).await;
    let (key, other) = (Key::new("ES256"), Key::new("ES256"));
    let own = site.issue(&key).await;
    // A server that gives the same token twice.
    let body = json!({"access_token": own.access, "token_type": "Bearer", "expires_in": 600});
    site.server.answer(move |_| super::support::scripted::json(body.clone()));
    let mut table = Table::default();
    let ask = async |key| site.ask(None, key, &grant("client_credentials")).await;
    table.row("another key", is(&ask(&other).await, 502, "bad_gateway"));
    table.row("the same", is(&ask(&key).await, 200, ""));
    site.works();
    table.row("the owner", is(&site.consume(&key, &own.access).await, 200, ""));
    table.row("the other", is(&site.consume(&other, &own.access).await, 401, "invalid_token"));
    let alarms: i64 = (0..1500)
        .map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let sql = "SELECT count(*) FROM audit WHERE kind = 'authority.alarm'";
            site.store().query_row(sql, [], |row| row.get(0)).expect("a count")
        })
        .find(|count| *count > 0)
        .unwrap_or(0);
    table.row("alarm", expect_eq("lines", &alarms, &1));
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_bind_as_the_configuration_says() {
    let site = Site::retrofit(Form::Opaque, |config| {
        config["issuers"][0]["retrofit"]["clients"] = json!({"only-key": {"bind": ["dpop"]}});
        config["tenants"] = json!({"t": {"bind": ["mtls"], "clients": ["only-certificate"]}});
    })
    .await;
    let (alice, bob) = (site.world.pki.alice.clone(), site.world.pki.bob.clone());
    let key = Key::new("ES256");
    let mut table = Table::default();
    for (client, proof, token_type, kept) in [
        ("client-1", false, "Bearer", (false, true)),
        ("client-1", true, "DPoP", (true, true)),
        ("only-key", true, "DPoP", (true, false)),
        ("only-certificate", true, "Bearer", (false, true)),
    ] {
        let name = format!("{client} {proof}");
        let body = grant("client_credentials").replace("client-1", client);
        let answer = if proof {
            site.ask(Some(&alice), &key, &body).await
        } else {
            site.world.send_as(&alice, &form(TOKEN, &body)).await
        };
        let own = issued(&answer.expect("an answer"));
        table.row(&name, expect_eq("type", &own.token_type.as_str(), &token_type));
        let sql = "SELECT cnf_jkt IS NOT NULL, sender_certificate IS NOT NULL \
                   FROM authority_tokens WHERE kind = 'access'";
        let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        let found: (bool, bool) = site.store().query_row(sql, [], read).expect("a record");
        table.row(&name, expect_eq("kept", &found, &kept));
        let (_, certificate) = kept;
        let use_as = async |who| match token_type {
            "DPoP" => site.consume_as(who, &key, &own.access).await,
            _ => site.world.client.send(who, &bearer("/orders/1", &own.access)).await,
        };
        table.row(&name, is(&use_as(Some(&alice)).await, 200, ""));
        let others = if certificate { (401, "invalid_token") } else { (200, "") };
        table.row(&name, is(&use_as(Some(&bob)).await, others.0, others.1));
        table.row(&name, is(&use_as(None).await, others.0, others.1));
        if client == "client-1" && !proof {
            let refreshed = site.world.send_as(&bob, &form(TOKEN, &refresh(&own.refresh))).await;
            table.row(&name, is(&refreshed, 400, "invalid_grant"));
            let refreshed = site.world.send_as(&alice, &form(TOKEN, &refresh(&own.refresh))).await;
            table.row(&name, is(&refreshed, 200, ""));
        }
        site.store().execute("DELETE FROM authority_tokens", []).expect("a store");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_must_show_is_its_tenants_rule() {
    let site = Site::retrofit(Form::Opaque, |config| {
        config["security"]["senderConstraints"]["require"] = json!("none");
        config["routes"][0]["allowUnbound"] = json!(true);
        config["tenants"] = json!({
            "keys": {"require": "dpop", "clients": ["k"]},
            "certificates": {"require": "mtls", "clients": [
                {"id": "c", "certificateNames": ["alice.example"]}]},
            "free": {"clients": ["f"]},
        });
        config["tenancy"] = json!({"claim": "tenant", "unknown": "default"});
    })
    .await;
    let (alice, key) = (site.world.pki.alice.clone(), Key::new("ES256"));
    let body = |client: &str| grant("client_credentials").replace("client-1", client);
    let mut table = Table::default();
    for (name, client, certificate, proof, expect) in [
        ("fail/keys, nothing", "k", false, false, (400, "use_dpop_nonce")),
        ("ok/keys", "k", false, true, (200, "")),
        ("fail/certificates, nothing", "c", false, false, (401, "invalid_client")),
        ("fail/certificates, a proof", "c", false, true, (401, "invalid_client")),
        ("ok/certificates", "c", true, false, (200, "")),
        ("ok/free", "f", false, false, (200, "")),
        ("fail/unknown, nothing", "u", false, false, (400, "use_dpop_nonce")),
        ("fail/unknown, a proof", "u", false, true, (401, "invalid_client")),
        ("fail/another's certificate", "k", true, true, (400, "invalid_request")),
    ] {
        let who = certificate.then_some(&alice);
        let answer = if proof {
            site.ask(who, &key, &body(client)).await
        } else {
            site.world.client.send(who, &form(TOKEN, &body(client))).await
        };
        table.row(name, is(&answer, expect.0, expect.1));
    }
    // The certificate alone names its client.
    let answer = site.world.send_as(&alice, &form(TOKEN, "grant_type=client_credentials")).await;
    table.row("ok/by certificate", is(&answer, 200, ""));
    let sql = "SELECT DISTINCT tenant, client FROM authority_tokens WHERE tenant = 'certificates'";
    let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let kept: (String, String) = site.store().query_row(sql, [], read).expect("one record");
    table.row("kept", expect_eq("who", &kept, &("certificates".to_owned(), "c".to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_source_must_name_the_same_client() {
    use base64::Engine as _;
    let site = Site::retrofit(Form::Opaque, |_| {}).await;
    let key = Key::new("ES256");
    let basic =
        |pair: &str| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair));
    let assertion = |issuer: &str, subject: &str| {
        let claims = json!({"iss": issuer, "sub": subject, "aud": "x"}).to_string();
        let jws =
            super::support::proof::compact(r#"{"alg":"ES256"}"#, claims, |input| key.sign(input));
        format!(
            "client_assertion={jws}&client_assertion_type=\
             urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer"
        )
    };
    let grant = "grant_type=client_credentials";
    let mut table = Table::default();
    for (name, header, body, expect) in [
        ("ok/basic", Some(basic("a:s")), grant.to_owned(), (200, "")),
        ("ok/both", Some(basic("a:s")), format!("{grant}&client_id=a"), (200, "")),
        ("ok/assertion", None, format!("{grant}&{}", assertion("a", "a")), (200, "")),
        ("ok/escaped", Some(basic("a%20b:s")), format!("{grant}&client_id=a+b"), (200, "")),
        (
            "fail/basic and form",
            Some(basic("a:s")),
            format!("{grant}&client_id=b"),
            (400, "invalid_request"),
        ),
        (
            "fail/assertion and form",
            None,
            format!("{grant}&client_id=b&{}", assertion("a", "a")),
            (400, "invalid_request"),
        ),
        (
            "fail/within an assertion",
            None,
            format!("{grant}&{}", assertion("a", "b")),
            (400, "invalid_request"),
        ),
        (
            "fail/no base64",
            Some("Basic ???".to_owned()),
            grant.to_owned(),
            (400, "invalid_request"),
        ),
        ("fail/no colon", Some(basic("a")), grant.to_owned(), (400, "invalid_request")),
        ("fail/nobody", Some(basic(":s")), grant.to_owned(), (400, "invalid_request")),
    ] {
        let proof = site.proof(&key, TOKEN).await.sign();
        let mut request = form(TOKEN, &body).field("DPoP", proof);
        if let Some(value) = header {
            request = request.field("Authorization", value);
        }
        table.row(name, is(&site.world.send(&request).await, expect.0, expect.1));
    }
    let twice = form(TOKEN, grant)
        .field("Authorization", basic("a:s"))
        .field("Authorization", basic("a:s"));
    table.row("fail/twice", is(&site.world.send(&twice).await, 400, "invalid_request"));
}

#[tokio::test(flavor = "multi_thread")]
async fn codes_need_pkce_where_the_edge_binds() {
    let site = Site::retrofit(Form::Opaque, |_| {}).await;
    let key = Key::new("ES256");
    let code = format!("{}&code=abc", grant("authorization_code"));
    let verified = format!("{code}&code_verifier=0123456789012345678901234567890123456789012");
    let pushed = |challenge: &str| format!("client_id=client-1&response_type=code{challenge}");
    let mut table = Table::default();
    for (name, path, body, expect) in [
        ("fail/code", TOKEN, code, (400, "invalid_request")),
        ("ok/code", TOKEN, verified, (200, "")),
        ("fail/par", "/par", pushed(""), (400, "invalid_request")),
        (
            "fail/par, plain",
            "/par",
            pushed("&code_challenge=x&code_challenge_method=plain"),
            (400, "invalid_request"),
        ),
        ("ok/par", "/par", pushed("&code_challenge=x&code_challenge_method=S256"), (201, "")),
    ] {
        let proof = site.proof(&key, path).await.sign();
        let answer = site.world.send(&form(path, &body).field("DPoP", proof)).await;
        table.row(name, is(&answer, expect.0, expect.1));
    }
    // dpop_jkt stands for a proof, and must be the proof's where both are there.
    let pushed = pushed("&code_challenge=x&code_challenge_method=S256");
    let named = |key: &Key| format!("{pushed}&dpop_jkt={}", key.jkt());
    let bare = site.world.send(&form("/par", &pushed)).await;
    table.row("fail/nothing", is(&bare, 400, "use_dpop_nonce"));
    let answer = site.world.send(&form("/par", &named(&key))).await;
    table.row("ok/named", is(&answer, 201, ""));
    let proof = site.proof(&key, "/par").await.sign();
    let request = form("/par", &named(&Key::new("ES256"))).field("DPoP", proof);
    table.row("fail/another", is(&site.world.send(&request).await, 400, "invalid_dpop_proof"));
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_leaves_a_tombstone() {
    let site = Site::retrofit(Form::Opaque, |_| {}).await;
    let key = Key::new("ES256");
    let revoke =
        |token: &str, client: &str| form("/revoke", &format!("token={token}&client_id={client}"));
    let mut table = Table::default();
    let own = site.issue(&key).await;
    let next = issued(&site.ask(None, &key, &refresh(&own.refresh)).await.expect("an answer"));
    table.row("others", is(&site.world.send(&revoke(&own.access, "client-2")).await, 200, ""));
    table.row("alive", is(&site.consume(&key, &own.access).await, 200, ""));
    table.row("own", is(&site.world.send(&revoke(&own.access, "client-1")).await, 200, ""));
    let used = site.consume(&key, &own.access).await;
    table.row("dead", is(&used, 401, "invalid_token"));
    let why = reason(&site, &used.expect("an answer")).await;
    table.row("dead", expect_eq("reason", &why, &json!("token_revoked")));
    table.row("next", is(&site.consume(&key, &next.access).await, 200, ""));
    // The server still knows it; who asks by way of the edge is told otherwise.
    let asked = form("/introspect", &format!("token={}&client_id=client-1", own.access));
    let told = site.world.send(&asked).await.expect("an answer").json();
    table.row("introspected", expect_eq("told", &told, &json!({"active": false})));
    // A refresh token goes with everything of its grant.
    table.row("family", is(&site.world.send(&revoke(&next.refresh, "client-1")).await, 200, ""));
    table.row("family", is(&site.consume(&key, &next.access).await, 401, "invalid_token"));
    let refreshed = site.ask(None, &key, &refresh(&next.refresh)).await;
    table.row("family", is(&refreshed, 400, "invalid_grant"));
    // A server that gives out again what was revoked.
    let body = json!({"access_token": next.access, "token_type": "Bearer"});
    site.server.answer(move |_| super::support::scripted::json(body.clone()));
    let again = site.ask(None, &key, &grant("client_credentials")).await;
    table.row("again", is(&again, 502, "bad_gateway"));
    // What the server refuses to revoke stays.
    let other = Site::retrofit(Form::Opaque, |_| {}).await;
    let own = other.issue(&key).await;
    other.server.answer(|_| {
        super::support::scripted::reply(401, "application/json", r#"{"error":"invalid_client"}"#)
    });
    let refused = other.world.send(&revoke(&own.access, "client-1")).await;
    table.row("refused", is(&refused, 401, "invalid_client"));
    table.row("refused", is(&other.consume(&key, &own.access).await, 200, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn introspection_tells_what_a_token_is_bound_to() {
    let site = Site::retrofit(Form::Opaque, |_| {}).await;
    let key = Key::new("ES256");
    let own = site.issue(&key).await;
    let ask = |token: &str| form("/introspect", &format!("token={token}&client_id=client-1"));
    let mut table = Table::default();
    let told = site.world.send(&ask(&own.access)).await.expect("an answer").json();
    table.row("access", expect_eq("cnf", &told["cnf"], &json!({"jkt": key.jkt()})));
    table.row("access", expect_eq("type", &told["token_type"], &json!("DPoP")));
    table.row("access", expect_eq("rest", &told["scope"], &json!("orders.read")));
    let told = site.world.send(&ask(&own.refresh)).await.expect("an answer").json();
    table.row("refresh", expect_eq("cnf", &told["cnf"], &json!({"jkt": key.jkt()})));
    table.row("refresh", expect_eq("type", &told["token_type"], &json!("Bearer")));
    let told = site.world.send(&ask("nothing")).await.expect("an answer").json();
    table.row("unknown", expect_eq("told", &told, &json!({"active": false})));
    site.store().execute("DELETE FROM authority_tokens", []).expect("a store");
    let told = site.world.send(&ask(&own.access)).await.expect("an answer").json();
    table.row("no record", expect_eq("told", &told, &json!({"active": false})));
    // Signed answers pass, and that is said.
    site.server.answer(|_| {
        super::support::scripted::reply(200, "application/token-introspection+jwt", "a.b.c")
    });
    let answer = site.world.send(&ask(&own.access)).await.expect("an answer");
    table.row("signed", expect_eq("body", &answer.body.as_slice(), &b"a.b.c".as_slice()));
    let warned = site
        .world
        .process
        .record(|record| record["message"].as_str().is_some_and(|text| text.contains("RFC 9701")));
    table.row("signed", warned.await.map(drop).ok_or_else(|| "no warning".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn introspection_compares_the_certificate_that_it_is_told_to() {
    let byte_sequence = |der: &[u8]| {
        use base64::Engine as _;
        format!(":{}:", base64::engine::general_purpose::STANDARD.encode(der))
    };
    for (mode, answer_mode) in
        [("forwarded", "refuse"), ("forwarded", "inactive"), ("off", "refuse")]
    {
        let site = Site::retrofit(Form::Opaque, |config| {
            for route in config["routes"].as_array_mut().expect("a list") {
                if route["role"] == "introspection" {
                    route["senderCertificate"] = json!(mode);
                    route["mismatchAnswer"] = json!(answer_mode);
                }
            }
        })
        .await;
        let (alice, bob) = (site.world.pki.alice.clone(), site.world.pki.bob.clone());
        let ask = form(TOKEN, &grant("client_credentials"));
        let own = issued(&site.world.send_as(&alice, &ask).await.expect("an answer"));
        let question = form("/introspect", &format!("token={}&client_id=rs", own.access));
        let forwarding = |der: &[u8]| question.clone().field("Client-Cert", byte_sequence(der));
        let mut table = Table::default();
        for (name, request, good) in [
            ("alice", forwarding(&alice.certificate_der), true),
            ("bob", forwarding(&bob.certificate_der), mode == "off"),
            ("nobody", question.clone(), mode == "off"),
        ] {
            // The resource server's own certificate, if any, is not the token's.
            let answer = site.world.send_as(&bob, &request).await.expect("an answer");
            let told = answer.json();
            let seen = site.server.last();
            table.row(name, expect_eq("passed on", &seen.one("client-cert"), &None));
            let expect = match (good, answer_mode) {
                (true, _) => (200, json!({"x5t#S256": alice.x5t()})),
                (false, "inactive") => (200, Value::Null),
                (false, _) => (401, Value::Null),
            };
            table.row(name, expect_eq(mode, &(answer.status(), told["cnf"].clone()), &expect));
        }
        let malformed = question.clone().field("Client-Cert", ":::");
        let expect = if mode == "off" { (200, "") } else { (400, "invalid_request") };
        table.row("malformed", is(&site.world.send(&malformed).await, expect.0, expect.1));
    }
}

/// A tenant is enforced where its tokens are asked about too, whatever the default.
#[tokio::test(flavor = "multi_thread")]
async fn introspection_observes_by_the_token_s_own_tenant() {
    let site = Site::retrofit(Form::Opaque, |config| {
        config["security"]["senderConstraints"]["mode"] = json!("observe");
        config["tenants"] = json!({"a": {"clients": ["client-1"], "mode": "enforce"},
                                   "b": {"clients": ["client-2"]}});
        config["tenancy"] = json!({"claim": "tenant", "unknown": "default"});
    })
    .await;
    let (alice, bob) = (site.world.pki.alice.clone(), site.world.pki.bob.clone());
    let mut table = Table::default();
    for (client, status) in [("client-1", 401), ("client-2", 200)] {
        let ask = form(TOKEN, &grant("client_credentials").replace("client-1", client));
        let own = issued(&site.world.send_as(&alice, &ask).await.expect("an answer"));
        let question = form("/introspect", &format!("token={}&client_id={client}", own.access));
        for (who, expect) in [(&alice, 200), (&bob, status)] {
            let answer = site.world.send_as(who, &question).await.expect("an answer");
            table.row(client, expect_eq("status", &answer.status(), &expect));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_says_what_the_edge_can_do() {
    let site = Site::retrofit(Form::Opaque, |_| {}).await;
    let told = site.world.send(&Request::new("GET", METADATA)).await.expect("an answer").json();
    let algorithms = json!(["ES256", "ES384", "EdDSA", "Ed25519", "PS256"]);
    assert_eq!(told["dpop_signing_alg_values_supported"], algorithms);
    assert_eq!(told["tls_client_certificate_bound_access_tokens"], json!(true));
    assert_eq!(told["token_endpoint"], json!("https://api.example/token"));
    let head = site.world.send(&Request::new("HEAD", METADATA)).await;
    assert_eq!(head.map(|answer| answer.status()), Ok(200));
    let post = site.world.send(&Request::new("POST", METADATA).body(b"x")).await;
    assert_eq!(post.map(|answer| answer.status()), Ok(405));
    let native = Site::native(|_| {}).await;
    let told = native.world.send(&Request::new("GET", METADATA)).await.expect("an answer").json();
    assert_eq!(told["dpop_signing_alg_values_supported"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_binding_server_issues_is_held_against_the_sender() {
    let site = Site::native(|config| {
        config["security"]["senderConstraints"]["require"] = json!("dpop");
        for route in config["routes"].as_array_mut().expect("a list") {
            if route["role"] == "token" {
                route["nonce"] = json!("edge");
            }
        }
    })
    .await;
    let (key, other) = (Key::new("ES256"), Key::new("ES256"));
    let mut table = Table::default();
    for (name, cnf, token_type, expect) in [
        ("ok", json!({"jkt": key.jkt()}), "DPoP", (200, "")),
        ("ok/case", json!({"jkt": key.jkt()}), "dpop", (200, "")),
        ("fail/another key", json!({"jkt": other.jkt()}), "DPoP", (502, "bad_gateway")),
        ("fail/unbound", Value::Null, "Bearer", (502, "bad_gateway")),
        ("fail/unbound as DPoP", Value::Null, "DPoP", (502, "bad_gateway")),
        ("fail/bound as Bearer", json!({"jkt": key.jkt()}), "Bearer", (502, "bad_gateway")),
        ("fail/unread", json!({"jkt": "x"}), "DPoP", (502, "bad_gateway")),
        ("fail/a certificate", json!({"x5t#S256": key.jkt()}), "Bearer", (502, "bad_gateway")),
    ] {
        site.binds(cnf, token_type);
        let answer = site.ask(None, &key, &grant("client_credentials")).await;
        table.row(name, is(&answer, expect.0, expect.1));
        if expect.0 == 200 {
            let seen = site.server.last();
            table.row(name, expect_eq("proof passed on", &seen.one("dpop").is_some(), &true));
            let own = issued(&answer.expect("an answer"));
            table.row(name, is(&site.consume(&key, &own.access).await, 200, ""));
            table.row(name, is(&site.consume(&other, &own.access).await, 401, "invalid_token"));
        }
    }
    let (asked, bare) = (site.server.asked(), form(TOKEN, &grant("client_credentials")));
    table.row("no proof", is(&site.world.send(&bare).await, 400, "use_dpop_nonce"));
    table.row("no proof", expect_eq("asked", &site.server.asked(), &asked));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_challenges_of_a_server_with_nonces_pass_and_are_counted() {
    let site = Site::native(|_| {}).await;
    let key = Key::new("ES256");
    site.server.answer(|request| {
        let body = r#"{"error":"use_dpop_nonce"}"#;
        let mut script = super::support::scripted::reply(400, "application/json", body);
        if request.one("dpop").is_some()
            && let Some(super::support::scripted::Step::Send(bytes)) = script.first_mut()
        {
            let text = String::from_utf8_lossy(bytes)
                .replace("Connection: close", "Connection: close\r\nDPoP-Nonce: of-the-server");
            *bytes = text.into_bytes();
        }
        script
    });
    let ask = |nonce: Option<&str>| {
        let proof = Proof::new(&key, "POST", "https://api.example/token");
        let proof = nonce.map_or(proof.clone(), |nonce| proof.nonce(nonce)).sign();
        form(TOKEN, &grant("client_credentials")).field("DPoP", proof)
    };
    for nonce in [None, Some("old")] {
        let answer = site.world.send(&ask(nonce)).await.expect("an answer");
        assert_eq!(answer.status(), 400);
        assert_eq!(answer.all("dpop-nonce"), ["of-the-server"]);
    }
    for reason in ["absent", "unknown"] {
        let label = format!("reason=\"{reason}\"");
        let name = "authority_dpop_nonce_miss_total";
        let found = site.world.metric_once(name, &[&label], 1.0).await;
        assert!((found - 1.0).abs() < f64::EPSILON, "{reason}: {found}");
    }
    site.works();
    site.binds(json!({"jkt": key.jkt()}), "DPoP");
    let answer = site.world.send(&ask(Some("of-the-server"))).await.expect("an answer");
    assert_eq!(issued(&answer).token_type, "DPoP");
}

#[tokio::test(flavor = "multi_thread")]
async fn observe_lets_pass_as_received_and_keeps_what_was_issued() {
    let site = Site::retrofit(Form::Opaque, |config| {
        config["security"]["senderConstraints"]["mode"] = json!("observe");
        config["security"]["senderConstraints"]["require"] = json!("dpop");
    })
    .await;
    let (key, mut table) = (Key::new("ES256"), Table::default());
    let faulty = Proof::new(&key, "GET", "https://api.example/token").sign();
    let odd = "grant_type=client_credentials&client%5Fid=client-1&&x";
    for (name, request) in [
        ("nothing", form(TOKEN, odd)),
        ("a faulty proof", form(TOKEN, odd).field("DPoP", &*faulty)),
    ] {
        let answer = site.world.send(&request).await.expect("an answer");
        let own = issued(&answer);
        table.row(name, expect_eq("type", &own.token_type.as_str(), &"Bearer"));
        let seen = site.server.last();
        let body = String::from_utf8_lossy(&seen.body).into_owned();
        table.row(name, expect_eq("as received", &body.as_str(), &odd));
        table.row(name, expect_eq("r", &seen.one("x-holdfast-result"), &Some("observe")));
        let proof = request.fields.iter().find(|(name, _)| name == "DPoP");
        let proof = proof.map(|(_, value)| value.as_str());
        table.row(name, expect_eq("proof", &seen.one("dpop"), &proof));
        let used = site.world.send(&bearer("/orders/1", &own.access)).await;
        table.row(name, is(&used, 200, ""));
    }
    // Who does it right is bound already.
    let own = site.issue(&key).await;
    table.row("right", expect_eq("type", &own.token_type.as_str(), &"DPoP"));
    // Introspection tells what the server said, and the fault is recorded.
    let question = |token: &str| form("/introspect", &format!("token={token}&client_id=client-1"));
    site.store()
        .execute("DELETE FROM authority_tokens WHERE cnf_jkt IS NOT NULL", [])
        .expect("a store");
    let told = site.world.send(&question(&own.access)).await.expect("an answer");
    table.row("introspected", expect_eq("active", &told.json()["active"], &json!(true)));
    let why = reason(&site, &told).await;
    table.row("introspected", expect_eq("reason", &why, &json!("record_missing")));
    // Under `enforce` what was bound to nobody is refused.
    let loose = issued(&site.world.send(&form(TOKEN, &grant("a"))).await.expect("an answer"));
    let mut world = site.world;
    world.config["security"]["senderConstraints"]["mode"] = json!("enforce");
    assert!(world.reload().await);
    let used = world.send(&bearer("/orders/1", &loose.access)).await;
    table.row("enforced", is(&used, 401, "invalid_token"));
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_and_cross_origin_pages_get_tokens_too() {
    let site = Site::retrofit(Form::Opaque, |config| {
        for route in config["routes"].as_array_mut().expect("a list") {
            if route["role"] == "token" {
                route["cors"] = json!({"allowedOrigins": ["https://app.example"]});
            }
        }
    })
    .await;
    let key = Key::new("ES256");
    let mut table = Table::default();
    let client = site.world.client.connect_h2(None).await.expect("a connection");
    let proof = site.proof(&key, TOKEN).await.sign();
    let ask = form(TOKEN, &grant("client_credentials")).field("DPoP", proof);
    let answer = client.send(&ask).await;
    table.row("h2", is(&answer, 200, ""));
    let own = issued(&answer.expect("an answer"));
    table.row("h2", is(&site.consume(&key, &own.access).await, 200, ""));
    let preflight = Request::new("OPTIONS", TOKEN)
        .field("Origin", "https://app.example")
        .field("Access-Control-Request-Method", "POST")
        .field("Access-Control-Request-Headers", "dpop, authorization, content-type");
    let answer = site.world.send(&preflight).await.expect("an answer");
    table.row("preflight", expect_eq("status", &answer.status(), &204));
    let from_page = |request: Request| request.field("Origin", "https://app.example");
    let exposed = |answer: &Message| {
        let exposed = answer.one("access-control-expose-headers").unwrap_or_default();
        exposed.to_ascii_lowercase().contains("dpop-nonce")
    };
    let bare = from_page(form(TOKEN, &grant("client_credentials")));
    let refused = site.world.send(&bare).await.expect("an answer");
    table.row("refused", expect_eq("status", &refused.status(), &400));
    table.row("refused", expect_eq("exposed", &exposed(&refused), &true));
    let proof = site.proof(&key, TOKEN).await.sign();
    let good = from_page(form(TOKEN, &grant("client_credentials")).field("DPoP", proof));
    let answer = site.world.send(&good).await.expect("an answer");
    table.row("good", expect_eq("status", &answer.status(), &200));
    let origin = answer.one("access-control-allow-origin");
    table.row("good", expect_eq("origin", &origin, &Some("https://app.example")));
}
