//! Attacks on what stands in front of an authorization server: each is one that worked, or nearly did.

use std::time::Duration;

use serde_json::json;

use super::support::Table;
use super::support::authority::{Form, Site, TOKEN, form, grant, issued, refresh};
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

/// A refresh that is under way while its grant is revoked brings nothing back.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_grant_does_not_come_back_with_a_refresh_under_way() {
    let site = Site::retrofit(Form::Opaque, |_| {}).await;
    let key = Key::new("ES256");
    let own = site.issue(&key).await;
    let asked = site.server.asked();
    site.server.answer(|request| {
        if request.start.starts_with("POST /revoke") {
            return reply(200, "application/json", "");
        }
        let mut script = vec![Step::Wait(Duration::from_secs(5))];
        script.extend(good(json!({
            "access_token": "late", "token_type": "Bearer", "expires_in": 600,
            "refresh_token": "late-refresh", "scope": "orders.read",
        })));
        script
    });
    let body = refresh(&own.refresh);
    let revoke = async {
        for _ in 0..1500 {
            if site.server.asked() > asked {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let body = format!("token={}&client_id=client-1", own.refresh);
        site.world.send(&form("/revoke", &body)).await
    };
    let (refreshed, revoked) = tokio::join!(site.ask(None, &key, &body), revoke);
    assert_eq!(revoked.unwrap().status(), 200);
    let mut table = Table::default();
    table.row("refreshed", is(refreshed, 400, "invalid_grant"));
    table.row("used", is(site.consume(&key, "late").await, 401, "invalid_token"));
    site.works();
    table.row(
        "again",
        is(site.ask(None, &key, &refresh("late-refresh")).await, 400, "invalid_grant"),
    );
}

/// However a grant is spelled, what is bound stays so: a server may read `refresh_token ` as the grant
/// that the edge takes for another.
#[tokio::test(flavor = "multi_thread")]
async fn a_grant_by_another_spelling_is_no_way_around() {
    let site = Site::retrofit(Form::Opaque, |_| {}).await;
    let (key, thief) = (Key::new("ES256"), Key::new("ES256"));
    let own = site.issue(&key).await;
    let asked = site.server.asked();
    let mut table = Table::default();
    for spelling in ["refresh_token+", "Refresh_Token", "refresh_token%0A", "client_credentials"] {
        let body =
            format!("grant_type={spelling}&client_id=client-1&refresh_token={}", own.refresh);
        let answer = site.ask(None, &thief, &body).await.map(|answer| told(&answer).0);
        table.row(spelling, expect_eq("status", &answer, &Ok(400)));
    }
    for spelling in ["authorization_code+", "Authorization_Code", "client_credentials"] {
        let body = format!("grant_type={spelling}&client_id=client-1&code=abc");
        let answer = site.ask(None, &thief, &body).await.map(|answer| told(&answer).0);
        table.row(spelling, expect_eq("status", &answer, &Ok(400)));
    }
    // A refresh token is one also where it is exchanged (RFC 8693 section 3).
    let kind = "urn:ietf:params:oauth:token-type:refresh_token";
    let body = format!(
        "grant_type=urn:ietf:params:oauth:grant-type:token-exchange&client_id=client-1\
         &subject_token={}&subject_token_type={kind}",
        own.refresh
    );
    table.row("exchange", is(site.ask(None, &thief, &body).await, 400, "invalid_grant"));
    table.row("asked", expect_eq("asked", &site.server.asked(), &asked));
    table.row("own", is(site.ask(None, &key, &body).await, 200, ""));
}

/// What servers read in more than one way is refused, or written so that there is one.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_reads_what_the_edge_read() {
    let site = Site::retrofit(Form::Opaque, |_| {}).await;
    let key = Key::new("ES256");
    let mut table = Table::default();
    for (name, body) in [
        ("case", "grant_type=client_credentials&client_id=client-1&Client_Id=client-2"),
        ("dot", "grant_type=client_credentials&client_id=client-1&client.id=client-2"),
        ("space", "grant_type=client_credentials&client_id=client-1&client+id=client-2"),
        ("leading space", "grant_type=client_credentials&client_id=client-1&+client_id=client-2"),
        ("index", "grant_type=client_credentials&client_id=client-1&client_id[]=client-2"),
        (
            "assertion without type",
            "grant_type=client_credentials&client_id=client-1&client_assertion=a.b.c",
        ),
    ] {
        table.row(name, is(site.ask(None, &key, body).await, 400, "invalid_request"));
    }
    for (name, authorization) in
        [("tab", "Basic\tY2xpZW50LTI6c2VjcmV0"), ("no scheme", "Basic,Y2xpZW50LTI6c2VjcmV0")]
    {
        let proof = site.proof(&key, TOKEN).await.sign();
        let ask = form(TOKEN, &grant("client_credentials")).field("DPoP", proof);
        let ask = ask.field("Authorization", authorization);
        table.row(name, is(site.world.send(&ask).await, 400, "invalid_request"));
    }
    for query in
        ["resource=x", "audience=x", "Client_ID=x", "code_challenge_method=plain", "scope=x"]
    {
        let target = format!("{TOKEN}?{query}");
        let proof = site.proof(&key, TOKEN).await.sign();
        let ask = form(&target, &grant("client_credentials")).field("DPoP", proof);
        table.row(query, is(site.world.send(&ask).await, 400, "invalid_request"));
    }
    table.row("asked", expect_eq("asked", &site.server.asked(), &0));
    let proof = site.proof(&key, TOKEN).await.sign();
    let ask = form(TOKEN, &grant("client_credentials")).field("DPoP", proof);
    let ask = ask.without("Content-Type");
    let ask = ask.field("Content-Type", "application/x-www-form-urlencoded; charset=utf-7");
    table.row("charset", is(site.world.send(&ask).await, 200, ""));
    let seen = site.server.last();
    let media = Some("application/x-www-form-urlencoded");
    table.row("charset", expect_eq("seen", &seen.one("content-type"), &media));
}

/// A signed answer (RFC 9701) cannot be added to: nobody gets around a binding by asking for one.
#[tokio::test(flavor = "multi_thread")]
async fn a_signed_introspection_answer_hides_no_binding() {
    let site = Site::retrofit(Form::Opaque, |_| {}).await;
    let (alice, bob) = (site.world.pki.alice.clone(), site.world.pki.bob.clone());
    let ask = form(TOKEN, &grant("client_credentials"));
    let own = issued(&site.world.send_as(&alice, &ask).await.unwrap());
    let media = "application/token-introspection+jwt";
    site.server.answer(move |request| match request.one("accept") {
        Some(wanted) if wanted == media => reply(200, media, "a.b.c"),
        _ => good(json!({"active": true, "client_id": "client-1"})),
    });
    let question = form("/introspect", &format!("token={}&client_id=client-1", own.access));
    let question = question.field("Accept", media);
    let mut table = Table::default();
    table.row("thief", is(site.world.send_as(&bob, &question).await, 401, "invalid_client"));
    let answer = site.world.send_as(&alice, &question).await.unwrap();
    let told = answer.json();
    table.row("own", expect_eq("cnf", &told["cnf"]["x5t#S256"], &json!(alice.x5t())));
}

/// The bypass is for proofs: what a client must show besides, it still must.
#[tokio::test(flavor = "multi_thread")]
async fn a_bypass_lifts_the_proof_and_nothing_else() {
    for (require, without, with) in
        [("dpop", 200, 200), ("any", 200, 200), ("both", 401, 200), ("mtls", 401, 200)]
    {
        let site = Site::retrofit(Form::Opaque, |config| {
            config["security"]["senderConstraints"]["require"] = json!(require);
            config["security"]["senderConstraints"]["dpop"]["allowTemporaryBypass"] = json!(true);
        })
        .await;
        let mut table = Table::default();
        let ask = form(TOKEN, &grant("client_credentials"));
        let answer = site.world.send(&ask).await.expect("an answer");
        table.row(require, expect_eq("issued without", &answer.status(), &without));
        if answer.status() == 200 {
            let own = issued(&answer);
            let used = site.world.send(&bearer("/orders/1", &own.access)).await.expect("an answer");
            table.row(require, expect_eq("used without", &used.status(), &200));
            let result = used.seen().one("x-holdfast-result").map(str::to_owned);
            table.row(require, expect_eq("result", &result.as_deref(), &Some("bypass")));
        }
        let alice = &site.world.pki.alice;
        let answer = site.world.send_as(alice, &ask).await.expect("an answer");
        table.row(require, expect_eq("issued with", &answer.status(), &with));
        if with == 200 {
            let own = issued(&answer);
            let used = site.world.send_as(alice, &bearer("/orders/1", &own.access)).await;
            table.row(require, expect_eq("used with", &used.map(|it| it.status()), &Ok(200)));
            if require == "both" || require == "mtls" {
                let used = site.world.send(&bearer("/orders/1", &own.access)).await;
                table.row(require, expect_eq("stolen", &used.map(|it| it.status()), &Ok(401)));
            }
        }
    }
}

/// `observe` says nothing of what was revoked, whatever is wrong with a proof beside it.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_grant_stays_so_under_observe() {
    let site = Site::retrofit(Form::Opaque, |config| {
        config["security"]["senderConstraints"]["mode"] = json!("observe");
    })
    .await;
    let key = Key::new("ES256");
    let own = site.issue(&key).await;
    let body = format!("token={}&client_id=client-1", own.refresh);
    assert_eq!(site.world.send(&form("/revoke", &body)).await.unwrap().status(), 200);
    let asked = site.server.asked();
    let mut table = Table::default();
    let bare = form(TOKEN, &refresh(&own.refresh));
    table.row("no proof", is(site.world.send(&bare).await, 400, "invalid_grant"));
    table.row(
        "bad proof",
        is(site.world.send(&bare.field("DPoP", "x")).await, 400, "invalid_grant"),
    );
    let old = Proof::new(&key, "POST", "https://api.example/token").claim("iat", 5).sign();
    let bare = form(TOKEN, &refresh(&own.refresh)).field("DPoP", old);
    table.row("old proof", is(site.world.send(&bare).await, 400, "invalid_grant"));
    table.row("asked", expect_eq("asked", &site.server.asked(), &asked));
}

/// Lines are for people: who asks does not choose how long they are.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_fills_the_logs_with_a_name() {
    let site = Site::retrofit(Form::Opaque, |_| {}).await;
    let long = "a".repeat(100_000);
    let mut table = Table::default();
    let body = format!("grant_type=client_credentials&client_id={long}");
    table.row("id", is(site.world.send(&form(TOKEN, &body)).await, 400, "invalid_request"));
    site.server.answer(|_| reply(200, "text/html", "<html>"));
    let body = format!("grant_type={long}&client_id=client-1");
    let answer = site.ask(None, &Key::new("ES256"), &body).await;
    table.row("grant", expect_eq("status", &answer.is_ok_and(|it| it.status() >= 400), &true));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let sql = "SELECT coalesce(max(length(line)), 0) FROM audit";
    let longest: i64 = site.store().query_row(sql, [], |row| row.get(0)).expect("a length");
    table.row("audit", expect_eq(&format!("{longest}"), &(longest < 10_000), &true));
    let output = site.world.process.output();
    let longest = output.lines().map(str::len).max().unwrap_or_default();
    table.row("log", expect_eq(&format!("{longest}"), &(longest < 10_000), &true));
}

/// Servers that say no more than that it is done have done it too.
#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_without_content_is_one() {
    let site = Site::retrofit(Form::Opaque, |_| {}).await;
    let key = Key::new("ES256");
    let own = site.issue(&key).await;
    site.server.answer(|_| {
        vec![Step::Send(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n".to_vec())]
    });
    let body = format!("token={}&client_id=client-1", own.refresh);
    let answer = site.world.send(&form("/revoke", &body)).await.unwrap();
    assert_eq!((answer.status(), answer.body.len()), (204, 0));
    let used = site.consume(&key, &own.access).await.unwrap();
    assert_eq!(told(&used), (401, "invalid_token".to_owned()));
}

/// Whoever brings an unknown refresh token first keeps it, also where the server takes it once more.
#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_refresh_token_is_whose_it_was_first() {
    let site = Site::retrofit(Form::Opaque, |config| {
        config["issuers"][0]["retrofit"]["unknownRefresh"] = json!("bind");
    })
    .await;
    let (key, thief) = (Key::new("ES256"), Key::new("ES256"));
    let first = site.ask(None, &key, &refresh("of-before")).await.unwrap();
    assert_eq!(issued(&first).token_type, "DPoP");
    let again = site.ask(None, &thief, &refresh("of-before")).await.unwrap();
    assert_eq!(told(&again), (400, "invalid_grant".to_owned()));
    let again = site.ask(None, &key, &refresh("of-before")).await.unwrap();
    assert_eq!(again.status(), 200);
}

/// A JWT of another issuer has its record where nobody looks for it: it is not told as bound.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_issuer_is_not_told_as_bound() {
    let site = Site::retrofit(Form::Jwt, |_| {}).await;
    let key = Key::new("ES256");
    let token = site.world.token().claim("iss", "https://other.example").sign();
    site.server.answer(move |_| {
        good(json!({"access_token": token, "token_type": "Bearer", "expires_in": 600}))
    });
    let answer = site.ask(None, &key, &grant("client_credentials")).await;
    assert_eq!(is(answer, 502, "bad_gateway"), Ok(()));
}

/// A token of a client that nobody knows is of no tenant: it passes where such tokens do.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_no_tenant_is_none_of_the_default_s() {
    let site = Site::retrofit(Form::Opaque, |config| {
        config["tenancy"] = json!({"claim": "tenant", "unknown": "refuse"});
        config["tenants"] = json!({"acme": {"clients": ["client-1"]}});
    })
    .await;
    let key = Key::new("ES256");
    let known = site.issue(&key).await;
    assert_eq!(site.consume(&key, &known.access).await.unwrap().status(), 200);
    let body = "grant_type=client_credentials&client_id=stranger";
    let own = issued(&site.ask(None, &key, body).await.unwrap());
    let used = site.consume(&key, &own.access).await;
    assert_eq!(is(used, 401, "invalid_token"), Ok(()));
}

/// A page reads every answer of a token endpoint, and one nonce in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_reads_every_answer_of_a_token_endpoint() {
    let site = Site::retrofit(Form::Opaque, |config| {
        for route in config["routes"].as_array_mut().expect("a list") {
            if route["role"] == json!("token") {
                route["cors"] = json!({"allowedOrigins": ["https://app.example"]});
            }
        }
    })
    .await;
    let key = Key::new("ES256");
    let mut table = Table::default();
    let page = |ask: super::support::client::Request| ask.field("Origin", "https://app.example");
    let preflight = super::support::client::Request::new("OPTIONS", TOKEN)
        .field("Access-Control-Request-Method", "POST")
        .field("Access-Control-Request-Headers", "dpop, content-type");
    let answer = site.world.send(&page(preflight)).await.expect("an answer");
    table.row("preflight", expect_eq("status", &answer.status(), &204));
    let bare = form(TOKEN, &grant("client_credentials"));
    let with = bare.clone().field("DPoP", site.proof(&key, TOKEN).await.sign());
    let bad = bare.clone().field("DPoP", site.proof(&key, TOKEN).await.sign());
    for (name, ask, status) in [
        ("challenge", bare.clone(), 400),
        ("no form", form(TOKEN, "a=%"), 400),
        ("good", with, 200),
        ("server", bad, 502),
    ] {
        if name == "server" {
            site.server.answer(|_| {
                let head = "HTTP/1.1 200 OK\r\nDPoP-Nonce: theirs\r\nDPoP-Nonce: too\r\n";
                vec![Step::Send(format!("{head}Connection: close\r\n\r\nx").into_bytes())]
            });
        }
        let answer = site.world.send(&page(ask)).await.expect("an answer");
        table.row(name, expect_eq("status", &answer.status(), &status));
        let origin = answer.one("access-control-allow-origin");
        table.row(name, expect_eq("origin", &origin, &Some("https://app.example")));
        let exposed = answer.one("access-control-expose-headers").unwrap_or_default();
        table.row(name, expect_eq(exposed, &exposed.contains("DPoP-Nonce"), &true));
        let nonces = answer.all("dpop-nonce");
        let ours = nonces.len() <= 1 && !nonces.contains(&"theirs");
        table.row(name, expect_eq(&format!("{nonces:?}"), &ours, &true));
        table.row(name, expect_eq("cache", &answer.one("cache-control"), &Some("no-store")));
    }
    site.server.answer(|_| {
        let body = r#"{"access_token":"a","token_type":"Bearer","expires_in":60}"#;
        let head = "HTTP/1.1 200 OK\r\nDPoP-Nonce: theirs\r\nContent-Type: application/json\r\n";
        let length = body.len();
        let text = format!("{head}Content-Length: {length}\r\nCache-Control: public\r\n\r\n{body}");
        vec![Step::Send(text.into_bytes())]
    });
    let answer = site.ask(None, &key, &grant("client_credentials")).await.expect("an answer");
    table.row("theirs", expect_eq("nonces", &answer.all("dpop-nonce").contains(&"theirs"), &false));
    table.row("theirs", expect_eq("cache", &answer.all("cache-control"), &vec!["no-store"]));
}
