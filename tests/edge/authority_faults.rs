//! Bad input in front of an authorization server: bodies that are no form, servers that answer badly or
//! not at all, a store that fails under requests. A clear answer each time, no token that slips out
//! unbound, and no binding lost.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::Table;
use super::support::authority::{Form, Issued, Site, TOKEN, form, grant, issued, refresh};
use super::support::client::{Outcome, Request};
use super::support::keys::Key;
use super::support::proof::Proof;
use super::support::scripted::{Script, Step, json as good, reply, silence, trickle};
use super::support::world::expect_eq;

/// What the edge waits for a body at most.
const SECOND: Duration = Duration::from_secs(1);

/// Whether it is a refusal of this status and error that says nothing else.
fn refused(outcome: Outcome, status: u16, error: &str) -> Result<(), String> {
    let answer = outcome?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let told = answer.json();
    let found = (answer.status(), told["error"].as_str().unwrap_or_default());
    expect_eq(&text, &found, &(status, error))?;
    expect_eq("cache-control", &answer.one("cache-control"), &Some("no-store"))?;
    expect_eq("content-type", &answer.one("content-type"), &Some("application/json"))?;
    expect_eq("request id", &answer.one("x-request-id").is_some(), &true)?;
    expect_eq("challenge", &!answer.all("www-authenticate").is_empty(), &(status == 401))?;
    expect_eq("retry-after", &answer.one("retry-after").is_some(), &(status == 503))?;
    expect_eq("nonces", &(answer.all("dpop-nonce").len() <= 1), &true)?;
    for word in ["access_token", "secret-", "SQL", "sql", ".db"] {
        expect_eq(&text, &text.contains(word), &false)?;
    }
    Ok(())
}

fn status(outcome: Outcome, expect: u16) -> Result<(), String> {
    let answer = outcome?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    expect_eq(&text, &answer.status(), &expect)
}

/// Records of tokens that the edge keeps.
fn records(site: &Site) -> i64 {
    let sql = "SELECT count(*) FROM authority_tokens";
    site.store().query_row(sql, [], |row| row.get(0)).expect("a count")
}

/// A request with a good proof, whose body is written as `bend` says.
async fn bent(site: &Site, key: &Key, bend: impl FnOnce(Request) -> Request) -> Request {
    let proof = site.proof(key, TOKEN).await.sign();
    bend(Request::new("POST", TOKEN).field("DPoP", proof))
}

const MEDIA: &str = "application/x-www-form-urlencoded";

fn chunked(body: &[u8]) -> Vec<u8> {
    let mut chunks = Vec::new();
    for chunk in body.chunks(4000) {
        chunks.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        chunks.extend_from_slice(chunk);
        chunks.extend_from_slice(b"\r\n");
    }
    [&chunks[..], b"0\r\n\r\n"].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_no_form() {
    let site = Site::retrofit(Form::Opaque, |config| {
        config["edge"]["listeners"][0]["bodyTimeout"] = json!("1s");
        config["edge"]["limits"] = json!({"authorityBodyBytes": 8192});
    })
    .await;
    let key = Key::new("ES256");
    let own = site.issue(&key).await;
    let (asked, kept) = (site.server.asked(), records(&site));
    let mut table = Table::default();
    let body = grant("client_credentials");
    let long = format!("{body}&more={}", "a".repeat(9000));
    let many = (0..129).map(|number| format!("&a{number}=1")).collect::<String>();
    for (name, media, text, code) in [
        ("oversized", Some(MEDIA), long.clone(), 413),
        (
            "JSON",
            Some("application/json"),
            r#"{"grant_type":"client_credentials"}"#.to_owned(),
            400,
        ),
        ("multipart", Some("multipart/form-data; boundary=x"), "--x--".to_owned(), 400),
        ("no type", None, body.clone(), 400),
        ("almost", Some("application/x-www-form-urlencoded-x"), body.clone(), 400),
        (
            "a list of types",
            Some("text/plain, application/x-www-form-urlencoded"),
            body.clone(),
            400,
        ),
        ("twice", Some(MEDIA), format!("{body}&grant_type=client_credentials"), 400),
        ("twice, escaped", Some(MEDIA), format!("{body}&grant%5Ftype=x"), 400),
        ("twice, unknown", Some(MEDIA), format!("{body}&a=1&a=1"), 400),
        ("an escape cut", Some(MEDIA), format!("{body}&a=%4"), 400),
        ("no escape", Some(MEDIA), format!("{body}&a=%GG"), 400),
        ("NUL", Some(MEDIA), format!("{body}&a=%00"), 400),
        ("no UTF-8", Some(MEDIA), format!("{body}&a=%ff"), 400),
        ("many fields", Some(MEDIA), format!("{body}{many}"), 400),
        ("empty", Some(MEDIA), String::new(), 400),
        ("no grant", Some(MEDIA), "client_id=client-1".to_owned(), 400),
        ("no token", Some(MEDIA), grant("refresh_token"), 400),
    ] {
        let request = bent(&site, &key, |mut request| {
            if let Some(media) = media {
                request = request.field("Content-Type", media);
            }
            request.body(text.as_bytes())
        });
        let answer = site.world.send(&request.await).await;
        table.row(name, refused(answer, code, "invalid_request"));
    }
    for (name, value) in [("Content-Encoding", "gzip"), ("Content-Type", MEDIA)] {
        let request =
            bent(&site, &key, |it| it.field("Content-Type", MEDIA).field(name, value)).await;
        let answer = site.world.send(&request.body(body.as_bytes())).await;
        table.row(name, refused(answer, 400, "invalid_request"));
    }
    for query in ["grant_type=client_credentials", "client%5Fid=x", "a;refresh_token=x", "%zz"] {
        let request = bent(&site, &key, |it| it.field("Content-Type", MEDIA)).await;
        let request = Request { target: format!("{TOKEN}?{query}"), ..request };
        let answer = site.world.send(&request.body(body.as_bytes())).await;
        table.row(query, refused(answer, 400, "invalid_request"));
    }
    for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"] {
        let request = Request::new(method, TOKEN).field("Content-Type", MEDIA);
        let answer = site.world.send(&request).await.expect("an answer");
        table.row(method, expect_eq("status", &answer.status(), &405));
        table.row(method, expect_eq("allow", &answer.one("allow"), &Some("POST")));
    }
    // In chunks: whole, too long, without end.
    let in_chunks = |request: Request| {
        request.field("Content-Type", MEDIA).field("Transfer-Encoding", "chunked").bytes()
    };
    let head = in_chunks(bent(&site, &key, |it| it).await);
    let oversized = [&head[..], &chunked(long.as_bytes())].concat();
    let answer = site.world.client.send_bytes(None, &oversized).await;
    table.row("chunked, oversized", refused(answer, 413, "invalid_request"));
    let endless = [&head[..], b"5\r\ngrant\r\n"].concat();
    let began = Instant::now();
    let answer = site.world.client.send_bytes(None, &endless).await;
    table.row("chunked, slow", refused(answer, 408, "request_timeout"));
    table.row("chunked, slow", expect_eq("in time", &(began.elapsed() < 5 * SECOND), &true));
    let head = bent(&site, &key, |it| it.field("Content-Type", MEDIA)).await;
    let slow = head.clone().field("Content-Length", "100").bytes();
    let answer = site.world.client.send_bytes(None, &[&slow[..], b"grant"].concat()).await;
    table.row("slow", refused(answer, 408, "request_timeout"));
    table.row("asked", expect_eq("asked", &site.server.asked(), &asked));
    table.row("kept", expect_eq("records", &records(&site), &kept));

    // What is a form is one in chunks and with a length that is said beforehand.
    let head = in_chunks(bent(&site, &key, |it| it).await);
    let whole = [&head[..], &chunked(body.as_bytes())].concat();
    table.row("ok/chunked", status(site.world.client.send_bytes(None, &whole).await, 200));
    let seen = site.server.last();
    table.row("ok/chunked", expect_eq("sent on", &seen.body.as_slice(), &body.as_bytes()));
    table.row("ok/chunked", expect_eq("in chunks", &seen.all("transfer-encoding").len(), &0));
    // Of two lengths the chunks count (RFC 9112 section 6.3); what is sent on has one.
    let both = bent(&site, &key, |it| it.field("Content-Length", "5")).await;
    let both = [&in_chunks(both)[..], &chunked(body.as_bytes())].concat();
    table.row("two lengths", status(site.world.client.send_bytes(None, &both).await, 200));
    let seen = site.server.last();
    table.row("two lengths", expect_eq("sent on", &seen.body.as_slice(), &body.as_bytes()));
    table.row("two lengths", expect_eq("in chunks", &seen.all("transfer-encoding").len(), &0));
    let expects = bent(&site, &key, |it| {
        it.field("Content-Type", MEDIA).field("Expect", "100-continue").body(body.as_bytes())
    });
    table.row("ok/expected", status(site.world.send(&expects.await).await, 200));
    table.row("ok/after", status(site.consume(&key, &own.access).await, 200));
}

fn raw(text: &str) -> Script {
    vec![Step::Send(text.as_bytes().to_vec())]
}

fn with_head(head: &str, body: &str) -> Script {
    raw(&format!(
        "HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ))
}

const TOKENS: &str = r#""access_token":"secret-1","token_type":"Bearer","expires_in":600"#;

/// Answers that bring no token to the client, by name, with what it is told.
fn bad_answers() -> Vec<(&'static str, Script, u16, &'static str)> {
    let whole = format!("{{{TOKENS}}}");
    let media = "Content-Type: application/json";
    let ok = |body: &str| reply(200, "application/json", body);
    let bad = "bad_gateway";
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let good_head = format!("200 OK\r\n{media}");
    vec![
        ("HTML", reply(200, "text/html", "<html>secret-1</html>"), 502, bad),
        ("HTML that is said to be JSON", ok("<html>secret-1</html>"), 502, bad),
        ("JSON that is said to be HTML", reply(200, "text/html", &whole), 502, bad),
        ("no type", with_head("200 OK", &whole), 502, bad),
        ("truncated JSON", ok(&whole[..whole.len() - 1]), 502, bad),
        ("more than JSON", ok(&format!("{whole}{whole}")), 502, bad),
        ("a list", ok(&format!("[{whole}]")), 502, bad),
        ("empty", ok(""), 502, bad),
        ("no token", ok(r#"{"token_type":"Bearer"}"#), 502, bad),
        ("an empty token", ok(r#"{"access_token":"","token_type":"Bearer"}"#), 502, bad),
        ("a number", ok(r#"{"access_token":1,"token_type":"Bearer"}"#), 502, bad),
        ("null", ok(r#"{"access_token":null,"token_type":"Bearer"}"#), 502, bad),
        ("no token type", ok(r#"{"access_token":"secret-1"}"#), 502, bad),
        ("two tokens", ok(&format!(r#"{{{TOKENS},"access_token":"secret-2"}}"#)), 502, bad),
        ("two, escaped", ok(&format!(r#"{{{TOKENS},"access\u005ftoken":"secret-2"}}"#)), 502, bad),
        ("two within", ok(&format!(r#"{{{TOKENS},"more":{{"a":1,"a":2}}}}"#)), 502, bad),
        (
            "a refresh token of another type",
            ok(&format!(r#"{{{TOKENS},"refresh_token":[]}}"#)),
            502,
            bad,
        ),
        ("deep", ok(&format!(r#"{{{TOKENS},"a":{}"#, "[".repeat(5000))), 502, bad),
        ("gzip", with_head(&format!("{good_head}\r\nContent-Encoding: gzip"), &whole), 502, bad),
        (
            "gzip beside",
            with_head(
                &format!("{good_head}\r\nContent-Encoding: identity\r\nContent-Encoding: gzip"),
                &whole,
            ),
            502,
            bad,
        ),
        ("created", reply(201, "application/json", &whole), 502, bad),
        ("no content", with_head("204 No Content", ""), 502, bad),
        (
            "moved",
            with_head(&format!("302 Found\r\nLocation: /token\r\n{media}"), &whole),
            502,
            bad,
        ),
        (
            "moved for good",
            with_head("308 Moved\r\nLocation: https://other.example/", ""),
            502,
            bad,
        ),
        ("not modified", with_head("304 Not Modified", ""), 502, bad),
        ("too long", ok(&format!(r#"{{{TOKENS},"a":"{}"}}"#, "a".repeat(300 << 10))), 502, bad),
        (
            "shorter than said",
            raw(&format!("HTTP/1.1 {good_head}\r\nContent-Length: 500\r\n\r\n{whole}",)),
            502,
            bad,
        ),
        (
            "chunks without end",
            raw(&format!(
                "HTTP/1.1 {good_head}\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{whole}\r\n",
                whole.len(),
            )),
            502,
            bad,
        ),
        (
            "chunks that are none",
            raw(&format!(
                "HTTP/1.1 {good_head}\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n{whole}\r\n0\r\n\r\n",
            )),
            502,
            bad,
        ),
        ("cut at once", raw("HTTP/1.1 200"), 502, bad),
        ("closed", raw(""), 502, bad),
        ("no HTTP", raw("220 mail.example ESMTP\r\n"), 502, bad),
        (
            "an endless head",
            raw(&format!("HTTP/1.1 200 OK\r\nA: {}", "a".repeat(200 << 10))),
            502,
            bad,
        ),
        ("a flood of interim answers", [raw(&interim.repeat(5000)), ok(&whole)].concat(), 502, bad),
        (
            "a switch",
            raw("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
            502,
            bad,
        ),
        ("silence", silence(), 504, "gateway_timeout"),
        (
            "a silent body",
            [
                raw(&format!("HTTP/1.1 {good_head}\r\nContent-Length: 500\r\n\r\n{whole}")),
                silence(),
            ]
            .concat(),
            504,
            "gateway_timeout",
        ),
        (
            "slower than anybody waits",
            trickle(&whole, Duration::from_millis(300)),
            504,
            "gateway_timeout",
        ),
        ("500", reply(500, "application/json", r#"{"error":"server_error"}"#), 500, "server_error"),
        (
            "500 in HTML",
            reply(500, "text/html", "<html>secret-1 at x.rs:1</html>"),
            500,
            "server_error",
        ),
        ("500 with a token", reply(500, "application/json", &whole), 500, "server_error"),
        ("503", reply(503, "text/plain", "down"), 503, "server_error"),
        ("400 with a token", reply(400, "application/json", &whole), 400, "server_error"),
        (
            "400",
            reply(400, "application/json", r#"{"error":"invalid_grant"}"#),
            400,
            "invalid_grant",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_answer_badly() {
    let site = Site::retrofit(Form::Opaque, |config| {
        config["upstreams"]["as"]["readTimeout"] = json!("3s");
    })
    .await;
    let (key, other) = (Key::new("ES256"), Key::new("ES256"));
    let own = site.issue(&key).await;
    let kept = records(&site);
    let mut table = Table::default();
    for (name, script, code, error) in bad_answers() {
        site.server.answer(move |_| script.clone());
        let began = Instant::now();
        for body in [grant("client_credentials"), refresh(&own.refresh)] {
            let answer = site.ask(None, &key, &body).await;
            if code == 503 {
                table.row(name, status(answer, code));
            } else {
                table.row(name, refused(answer, code, error));
            }
        }
        let soon = began.elapsed() < 30 * SECOND;
        table.row(name, expect_eq("in time", &soon, &true));
    }
    table.row("kept", expect_eq("records", &records(&site), &kept));
    // What it would have issued is nobody's.
    table.row("thief", refused(site.consume(&other, "secret-1").await, 401, "invalid_token"));
    site.works();
    table.row(
        "thief",
        refused(site.ask(None, &other, &refresh(&own.refresh)).await, 400, "invalid_grant"),
    );
    table.row("ok/after", status(site.consume(&key, &own.access).await, 200));
    table.row("ok/after", status(site.ask(None, &key, &refresh(&own.refresh)).await, 200));
    let output = site.world.process.output();
    for word in ["secret-", "panicked", own.access.as_str(), own.refresh.as_str()] {
        table.row("logs", expect_eq(word, &output.contains(word), &false));
    }
}

/// Interim answers come and go before a good one.
#[tokio::test(flavor = "multi_thread")]
async fn a_few_interim_answers_are_passed_over() {
    let site = Site::retrofit(Form::Opaque, |_| {}).await;
    let key = Key::new("ES256");
    site.server.answer(|_| {
        let mut script = raw(&"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(3));
        script.extend(good(format!("{{{TOKENS}}}")));
        script
    });
    let own = issued(&site.ask(None, &key, &grant("client_credentials")).await.unwrap());
    assert_eq!((own.access.as_str(), own.token_type.as_str()), ("secret-1", "DPoP"));
    assert_eq!(site.consume(&Key::new("ES256"), &own.access).await.unwrap().status(), 401);
}

/// The other endpoints are answered badly too.
#[tokio::test(flavor = "multi_thread")]
async fn questions_that_are_answered_badly() {
    let site = Site::retrofit(Form::Opaque, |_| {}).await;
    let key = Key::new("ES256");
    let own = site.issue(&key).await;
    let mut table = Table::default();
    let gzip =
        with_head("200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip", "{}");
    let metadata = "/.well-known/oauth-authorization-server";
    for (name, script) in [
        ("HTML", reply(200, "text/html", "<html>")),
        ("truncated", reply(200, "application/json", r#"{"active":true"#)),
        ("twice", reply(200, "application/json", r#"{"active":false,"active":true}"#)),
        ("a text", reply(200, "application/json", r#"{"active":"true"}"#)),
        ("a list", reply(200, "application/json", r#"[{"active":true}]"#)),
        ("a strange cnf", reply(200, "application/json", r#"{"active":true,"cnf":"x"}"#)),
        ("another cnf", reply(200, "application/json", r#"{"active":true,"cnf":{"jkt":7}}"#)),
        ("gzip", gzip.clone()),
        ("closed", raw("")),
        ("too long", reply(200, "application/json", "a".repeat(300 << 10))),
    ] {
        let answers = script.clone();
        site.server.answer(move |_| answers.clone());
        let question = form("/introspect", &format!("token={}&client_id=client-1", own.access));
        table.row(name, refused(site.world.send(&question).await, 502, "bad_gateway"));
        if !["a text", "a strange cnf", "another cnf"].contains(&name) {
            let answer = site.world.send(&Request::new("GET", metadata)).await;
            table.row(name, refused(answer, 502, "bad_gateway"));
        }
    }
    // A revocation that failed revoked nothing.
    for script in [reply(500, "text/html", "<html>"), raw(""), gzip, reply(302, "text/html", "")] {
        site.server.answer(move |_| script.clone());
        let body = format!("token={}&client_id=client-1", own.refresh);
        let answer = site.world.send(&form("/revoke", &body)).await.expect("an answer");
        table.row("revocation", expect_eq("done", &(answer.status() < 300), &false));
    }
    site.works();
    table.row("ok/after", status(site.consume(&key, &own.access).await, 200));
    table.row("ok/after", status(site.ask(None, &key, &refresh(&own.refresh)).await, 200));
}

/// A server that binds by itself is believed no more than it can show.
#[tokio::test(flavor = "multi_thread")]
async fn servers_that_bind_and_answer_badly() {
    let site = Site::native(|_| {}).await;
    let key = Key::new("ES256");
    let mut table = Table::default();
    for (name, script, code, error) in bad_answers() {
        if code != 502 {
            continue;
        }
        site.server.answer(move |_| script.clone());
        let answer = site.ask(None, &key, &grant("client_credentials")).await;
        table.row(name, refused(answer, code, error));
    }
    // An opaque token shows its type alone.
    site.server.answer(|_| good(format!("{{{TOKENS}}}")));
    let answer = site.ask(None, &key, &grant("client_credentials")).await;
    table.row("unbound", refused(answer, 502, "bad_gateway"));
    let sql = "SELECT count(*) FROM audit WHERE kind = 'authority.alarm'";
    let alarms = || -> i64 { site.store().query_row(sql, [], |row| row.get(0)).expect("a count") };
    for _ in 0..1500 {
        if alarms() > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    table.row("alarm", expect_eq("lines", &(alarms() > 0), &true));
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_are_not_there() {
    let site = Site::retrofit(Form::Opaque, |config| {
        let own = config["upstreams"]["as"]["servers"][0].clone();
        // Nobody listens on these; the last one is good.
        let mut servers: Vec<Value> =
            (1..8).map(|last| json!(format!("127.0.0.9:{last}"))).collect();
        config["upstreams"]["down"] = json!({"servers": servers.clone(), "connectTimeout": "1s"});
        servers.push(own);
        config["upstreams"]["as"]["servers"] = json!(servers);
        let mut route = config["routes"][2].clone();
        route["name"] = json!("elsewhere");
        route["path"] = json!("/elsewhere");
        route["upstream"] = json!("down");
        config["routes"].as_array_mut().expect("a list").push(route);
    })
    .await;
    let mut table = Table::default();
    let key = Key::new("ES256");
    let began = Instant::now();
    for _ in 0..3 {
        let proof = site.proof(&key, "/elsewhere").await.sign();
        let ask = form("/elsewhere", &grant("client_credentials")).field("DPoP", proof);
        table.row("down", refused(site.world.send(&ask).await, 502, "bad_gateway"));
    }
    table.row("down", expect_eq("in time", &(began.elapsed() < 10 * SECOND), &true));
    table.row("down", expect_eq("records", &records(&site), &0));
    // Found among the dead ones, at the latest when those are known to be dead.
    let mut last = Issued::default();
    for _ in 0..4 {
        let answer = site.ask(None, &key, &grant("client_credentials")).await;
        if let Ok(answer) = answer.clone()
            && answer.status() == 200
        {
            last = issued(&answer);
        } else {
            table.row("one of eight", refused(answer, 502, "bad_gateway"));
        }
    }
    table.row("ok/one of eight", status(site.consume(&key, &last.access).await, 200));
}

fn unavailable(outcome: Outcome) -> Result<(), String> {
    refused(outcome, 503, "temporarily_unavailable")
}

async fn asked_with(site: &Site, key: &Key, nonce: &str, body: &str) -> Outcome {
    let url = format!("https://api.example{TOKEN}");
    let proof = Proof::new(key, "POST", &url).nonce(nonce).sign();
    site.world.send(&form(TOKEN, body).field("DPoP", proof)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_moved_away_while_requests_run() {
    let site = Site::retrofit(Form::Opaque, |_| {}).await;
    let key = Key::new("ES256");
    let own = site.issue(&key).await;
    let nonce = site.world.nonce().await;
    let (path, away) =
        (site.world.directory.path().join("store.db"), site.world.directory.path().join("away.db"));
    let kept = records(&site);
    let mut table = Table::default();
    fs::rename(&path, &away).expect("it is moved");
    let before = site.server.asked();
    for round in 0..4 {
        let body = grant("client_credentials");
        let (one, two) = tokio::join!(
            asked_with(&site, &key, &nonce, &body),
            asked_with(&site, &key, &nonce, &body)
        );
        table.row(&format!("fail/moved {round}"), unavailable(one));
        table.row(&format!("fail/moved {round}"), unavailable(two));
    }
    // Once that is known nobody is asked for what could not be kept.
    let asked = site.server.asked() - before;
    table.row("fail/moved", expect_eq(&format!("asked {asked}"), &(asked <= 2), &true));
    let body = format!("token={}&client_id=client-1", own.refresh);
    table.row("fail/revocation", unavailable(site.world.send(&form("/revoke", &body)).await));
    let down = site.world.metric_once("holdfast_store_up", &["store=\"embedded\""], 0.0).await;
    table.row("fail/moved", expect_eq("store up", &down, &0.0));
    fs::rename(&away, &path).expect("it is moved back");
    table.row("kept", expect_eq("records", &records(&site), &kept));
    table.row("ready", expect_eq("status", &site.world.admin("/readyz").await.status(), &200));
    table.row("ok/back", status(site.consume(&key, &own.access).await, 200));
    let refreshed = site.ask(None, &key, &refresh(&own.refresh)).await;
    table.row("ok/back", status(refreshed, 200));
    let stolen = site.ask(None, &Key::new("ES256"), &refresh(&own.refresh)).await;
    table.row("fail/thief", refused(stolen, 400, "invalid_grant"));
    let output = site.world.process.output();
    table.row("logs", expect_eq("panicked", &output.contains("panicked"), &false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_takes_nothing() {
    let site = Site::retrofit(Form::Opaque, |_| {}).await;
    let key = Key::new("ES256");
    let own = site.issue(&key).await;
    let nonce = site.world.nonce().await;
    let kept = records(&site);
    let mut table = Table::default();
    // Another process writes and does not end: it is waited for, for some seconds.
    let other = site.store();
    other.execute_batch("BEGIN IMMEDIATE").expect("a lock");
    let body = grant("client_credentials");
    table.row("fail/locked", unavailable(asked_with(&site, &key, &nonce, &body).await));
    table.row("fail/locked", unavailable(asked_with(&site, &key, &nonce, &body).await));
    other.execute_batch("ROLLBACK").expect("it is given up");
    drop(other);
    for _ in 0..200 {
        if site.world.admin("/readyz").await.status() == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    table.row("kept", expect_eq("records", &records(&site), &kept));
    // What it reads and writes with no longer fits: as if every write failed.
    let store = site.store();
    let trigger = "CREATE TRIGGER no BEFORE INSERT ON authority_tokens
                   BEGIN SELECT RAISE(ABORT, 'read-only'); END";
    store.execute_batch(trigger).expect("a trigger");
    table.row("fail/refused", unavailable(asked_with(&site, &key, &nonce, &body).await));
    store.execute_batch("DROP TRIGGER no").expect("a trigger");
    table.row("kept", expect_eq("records", &records(&site), &kept));
    // Nothing that could be read is no word on a token: nobody is admitted without it.
    store.execute_batch("ALTER TABLE authority_tokens RENAME TO elsewhere").expect("a table");
    table.row("fail/no table", unavailable(site.consume(&key, &own.access).await));
    let answer = site.ask(None, &key, &refresh(&own.refresh)).await;
    table.row("fail/no table", unavailable(answer));
    let question = form("/introspect", &format!("token={}&client_id=client-1", own.access));
    table.row("fail/no table", unavailable(site.world.send(&question).await));
    store.execute_batch("ALTER TABLE elsewhere RENAME TO authority_tokens").expect("a table");
    drop(store);
    for _ in 0..200 {
        if site.world.admin("/readyz").await.status() == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    table.row("ok/back", status(site.consume(&key, &own.access).await, 200));
    table.row("ok/back", status(site.ask(None, &key, &refresh(&own.refresh)).await, 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_cannot_be_read_admits_nobody() {
    let site = Site::retrofit(Form::Opaque, |config| {
        config["issuers"][0]["retrofit"]["unknownRefresh"] = json!("bind");
    })
    .await;
    let (key, other) = (Key::new("ES256"), Key::new("ES256"));
    let (own, whole) = (site.issue(&key).await, site.issue(&key).await);
    let mut table = Table::default();
    let sql = "CREATE TEMP TABLE good AS SELECT * FROM authority_tokens";
    let store = site.store();
    store.execute(sql, []).expect("a copy");
    for change in [
        "cnf_jkt = x'00'",
        "cnf_jkt = zeroblob(33)",
        "sender_certificate = x'01'",
        "kind = 'other'",
        "kind = ''",
        "revoked = 7",
        "family = ''",
        "expires = -1",
        "expires = 0",
    ] {
        store.execute(&format!("UPDATE authority_tokens SET {change}"), []).expect("it is written");
        for who in [&key, &other] {
            let used = site.consume(who, &own.access).await.expect("an answer");
            let refused = [401, 503].contains(&used.status());
            let harmless = change.starts_with("family") && std::ptr::eq(who, &raw const key);
            table.row(change, expect_eq("refused", &refused, &!harmless));
        }
        let question = form("/introspect", &format!("token={}&client_id=client-1", own.access));
        let told = site.world.send(&question).await.expect("an answer");
        let bound = told.json()["cnf"]["jkt"] == json!(key.jkt());
        let active = told.json()["active"] == json!(true);
        table
            .row(change, expect_eq("introspected as bound to nobody", &(active && !bound), &false));
        if !change.starts_with("expires") {
            let stolen = site.ask(None, &other, &refresh(&own.refresh)).await.expect("an answer");
            table.row(change, expect_eq("redeemed", &(stolen.status() == 200), &false));
        }
        store.execute("DELETE FROM authority_tokens", []).expect("it is emptied");
        store.execute("INSERT INTO authority_tokens SELECT * FROM good", []).expect("it is back");
    }
    table.row("ok/after", status(site.consume(&key, &own.access).await, 200));
    table.row("ok/after", status(site.consume(&key, &whole.access).await, 200));
    table.row("ready", expect_eq("status", &site.world.admin("/readyz").await.status(), &200));
}
