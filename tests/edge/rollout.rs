//! From telemetry to enforcement: what records say of a client, the report on them, and the share of
//! clients that is enforced.

use holdfast::policy::share::bucket;
use serde_json::{Value, json};

use super::support::authority::{Form, Site, TOKEN, form, issued};
use super::support::client::{Message, Outcome, Request};
use super::support::keys::Key;
use super::support::node::holdfast;
use super::support::proof::Proof;
use super::support::world::{Expect, World, bearer, expect_eq, get};
use super::support::{Table, now};

use Expect::{Admitted, Refused};

const TARGET: &str = "/orders/1";

/// A token of a client, bound to the world's key.
fn bound(world: &World, client: &str) -> String {
    world.token().claim("client_id", client).jkt(&world.key.jkt()).sign()
}

/// What the record of an answer says.
async fn record(world: &World, answer: &Message) -> Value {
    let id = answer.one("x-request-id").expect("an id").to_owned();
    let record = world.process.record(|record| {
        record["event"] == "authority.dpop.request" && record["decision_id"] == id.as_str()
    });
    record.await.expect("a record")
}

/// A request without anything but a token.
fn bare(token: &str) -> Request {
    get(TARGET, token, "").without("DPoP")
}

/// Requests of clients that do it right and of such that lack something, each told by its client's name.
fn mixture(world: &World, nonce: &str) -> Vec<(&'static str, usize, Request)> {
    // A token and its proof: each token that is signed is another.
    let with = |client: &str, change: &dyn Fn(Proof) -> Proof| {
        let token = bound(world, client);
        let proof = world.proof("GET", TARGET).token(&token).nonce(nonce);
        get(TARGET, &token, &change(proof).sign())
    };
    let good = |client| with(client, &|proof| proof);
    let absent = |client| with(client, &|proof| proof.without("nonce"));
    let at = |client, offset: i64| with(client, &|proof| proof.claim("iat", now() + offset));
    let of = |client| world.token().claim("client_id", client);
    let stranger = Key::new("ES256");
    let other = with("other key", &|proof| {
        let mut other = Proof::new(&stranger, "GET", &format!("https://api.example{TARGET}"));
        for name in ["ath", "nonce"] {
            other = other.claim(name, proof.claims[name].clone());
        }
        other
    });
    let certified = |client| of(client).x5t(&world.pki.alice.x5t()).sign();
    let expired = of("expired").claim("exp", 1).jkt(&world.key.jkt()).sign();
    let mut requests = Vec::new();
    for client in ["good", "bare", "adopts", "slow"] {
        requests.extend((0..4).map(|_| (client, 1, good(client))));
    }
    requests.extend([
        ("bare", 1, bare(&bound(world, "bare"))),
        ("adopts", 1, absent("adopts")),
        ("slow", 1, at("slow", -200)),
        ("never", 1, absent("never")),
        ("never", 1, absent("never")),
        ("never", 1, absent("never")),
        ("ahead", 1, at("ahead", 47)),
        ("bearer", 1, bearer(TARGET, &bound(world, "bearer"))),
        ("other key", 1, other),
        ("unbound", 1, bearer(TARGET, &of("unbound").sign())),
        ("no certificate", 1, bearer(TARGET, &certified("no certificate"))),
        ("again", 2, good("again")),
        ("expired", 1, get(TARGET, &expired, "x")),
        ("certified", 3, bearer(TARGET, &certified("certified"))),
    ]);
    requests
}

/// Reads what the edge wrote so far.
pub(crate) fn report(world: &World, more: &[&str]) -> (Option<i32>, String) {
    // Its stderr is not what a collector keeps.
    let output = world.process.output();
    let lines: Vec<_> = output.lines().filter(|line| line.starts_with('{')).collect();
    let lines = format!("{}\n", lines.join("\n"));
    let write = |name, lines: &str| {
        std::fs::write(world.directory.path().join(name), lines).expect("a writable directory");
    };
    write("edge.log", &lines);
    write("other.log", "something else\n");
    let lost =
        r#"{"ts":"2026-11-26T10:00:00.000Z","event":"holdfast.log.suppressed","count":200000}"#;
    write("lost.log", lost);
    let arguments = [&["rollout", "report", "--log", "edge.log", "--min-requests", "3"], more];
    let (status, out, errors) = holdfast(world.directory.path(), &arguments.concat());
    (status, out + &errors)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_tells_who_could_be_enforced_and_what_the_others_lack() {
    let world = World::start_with(|config| {
        config["security"]["senderConstraints"]["mode"] = json!("observe");
    })
    .await;
    let token = bound(&world, "good");
    let asked = get(TARGET, &token, &world.proof("GET", TARGET).token(&token).sign());
    let answer = world.send(&asked).await.expect("an answer");
    let nonce = answer.one("dpop-nonce").expect("a nonce").to_owned();
    for (client, times, request) in mixture(&world, &nonce) {
        for _ in 0..times {
            let answer = match client {
                "certified" => world.send_as(&world.pki.alice, &request).await,
                _ => world.send(&request).await,
            };
            record(&world, &answer.expect("an answer")).await;
        }
    }

    let mut table = Table::default();
    let (status, out) = report(&world, &["--json"]);
    table.row("status", expect_eq("status", &status, &Some(0)));
    let told: Value = serde_json::from_str(&out).expect("JSON");
    for (client, verdict, requests, lacks) in [
        ("good", "ready", 5, json!({})),
        ("certified", "ready", 3, json!({})),
        ("adopts", "ready", 5, json!({})),
        ("bare", "not_yet", 5, json!({"proof": 1})),
        ("slow", "not_yet", 5, json!({"clock": 1})),
        ("never", "not_yet", 3, json!({"nonce": 3})),
        ("ahead", "not_yet", 1, json!({"clock": 1})),
        ("bearer", "not_yet", 1, json!({"key": 1})),
        ("other key", "not_yet", 1, json!({"key": 1})),
        ("unbound", "not_yet", 1, json!({"bound_token": 1})),
        ("no certificate", "not_yet", 1, json!({"certificate": 1})),
        ("again", "not_yet", 2, json!({"new_proof": 1})),
    ] {
        let rows = told["clients"].as_array().expect("rows");
        let row = rows.iter().find(|row| row["client"] == client).cloned().unwrap_or_default();
        let found = (row["verdict"].as_str(), row["requests"].as_u64(), &row["lacks"]);
        table.row(client, expect_eq("row", &found, &(Some(verdict), Some(requests), &lacks)));
        table.row(client, expect_eq("now", &row["now"], &json!("observe")));
    }
    let clocks: Vec<_> =
        told["clocks"].as_array().expect("rows").iter().map(|row| row["client"].clone()).collect();
    table.row("clocks", expect_eq("clients", &clocks, &vec![json!("ahead"), json!("slow")]));
    table.row("routes", expect_eq("route", &told["routes"][0]["route"], &json!("orders")));
    for (name, more, expect) in [
        ("all", vec!["--require-ready"], 1),
        ("good", vec!["--require-ready", "--client", "good"], 0),
        ("bare", vec!["--require-ready", "--client", "bare"], 1),
        ("tolerated", vec!["--require-ready", "--client", "bare", "--tolerate", "20"], 0),
        ("nobody", vec!["--require-ready", "--client", "nobody"], 1),
        ("of the future", vec!["--require-ready", "--since", "2100-01-01T00:00:00Z"], 1),
    ] {
        let (status, out) = report(&world, &more);
        table.row(name, expect_eq(&out, &status, &Some(expect)));
    }
    let good = ["--require-ready", "--client", "good", "--log"];
    for (file, why) in [
        ("lost.log", "200000 lines that the edge could not write"),
        ("other.log", "1 lines that could not be read"),
    ] {
        let (status, out) = report(&world, &[&good[..], &[file]].concat());
        table.row(file, expect_eq(&out, &(status, out.contains(why)), &(Some(1), true)));
        let (status, _) = report(&world, &["--log", file]);
        table.row(file, expect_eq("status", &status, &Some(0)));
    }
    let (_, told) = report(&world, &["--json", "--log", "other.log"]);
    let told: Value = serde_json::from_str(&told).expect("JSON");
    table.row("bad", expect_eq("bad", &told["read"]["badLines"], &json!(["other.log:1"])));
    two_apps(&world, &nonce, &mut table).await;
    let (_, text) = report(&world, &[]);
    let line = "not yet: 1 of 5 requests had no proof";
    table.row("text", expect_eq(&text, &text.contains(line), &true));
    for (reason, count) in [("proof", 1.0), ("nonce", 9.0), ("clock", 2.0), ("edge", 0.0)] {
        let labels = [r#"tenant="default""#, &format!("reason=\"{reason}\"")];
        let found = world.metric_once("holdfast_observed_refusals_total", &labels, count).await;
        table.row(reason, expect_eq("counted", &found, &count));
    }
}

/// A client of which one copy takes nonces up and another does not: it is not ready, although as many were
/// good as were not.
async fn two_apps(world: &World, nonce: &str, table: &mut Table) {
    let (new, old) = (&world.key, &Key::new("ES256"));
    for (key, with_nonce) in [(new, true), (old, false)].repeat(4) {
        let token = world.token().claim("client_id", "mobile").jkt(&key.jkt()).sign();
        let proof = Proof::new(key, "GET", &format!("https://api.example{TARGET}")).token(&token);
        let proof = if with_nonce { proof.nonce(nonce) } else { proof };
        let answer = world.send(&get(TARGET, &token, &proof.sign())).await;
        record(world, &answer.expect("an answer")).await;
    }
    let (status, out) = report(world, &["--require-ready", "--client", "mobile"]);
    let line = "not yet: 4 of 8 requests had no good nonce";
    table.row("two apps", expect_eq(&out, &(status, out.contains(line)), &(Some(1), true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_off_is_told_in_the_record_and_to_nobody_else() {
    let world = World::start().await;
    let nonce = world.nonce().await;
    let token = world.bound();
    let mut table = Table::default();
    for (name, offset, with_nonce, code, words) in [
        ("ahead", -47, true, "proof_iat_ahead", Some(("client clock is ", " s ahead"))),
        ("behind", 200, true, "proof_iat_old", Some(("client clock is ", " s old"))),
        ("old", 200, false, "proof_iat_old", Some(("client clock is 2", "is that old"))),
        ("forged", -47, true, "proof_signature", None),
    ] {
        let proof = world.proof("GET", TARGET).token(&token).claim("iat", now() - offset);
        let proof = if with_nonce { proof.nonce(&nonce) } else { proof }.sign();
        let proof = if words.is_none() { bent(&proof) } else { proof };
        let answer = world.send(&get(TARGET, &token, &proof)).await;
        table.row(name, world.judge(answer.clone(), Refused(code)).await);
        let answer = answer.expect("an answer");
        let record = record(&world, &answer).await;
        let hint = record["clock_hint"].as_str().unwrap_or_default();
        let (first, end) = words.unwrap_or_default();
        let fits = hint.starts_with(first) && hint.ends_with(end);
        table.row(name, expect_eq(hint, &(fits, hint.is_empty()), &(true, words.is_none())));
        let seconds = record["clock_offset_ms"].as_i64().map(|millis| millis / 1000);
        // It takes its time on a machine with much to do.
        let near = seconds.map_or(words.is_none(), |found| (offset..offset + 25).contains(&found));
        table.row(name, expect_eq(&format!("{seconds:?}"), &near, &true));
        let body = String::from_utf8_lossy(&answer.body).to_lowercase();
        let silent = !["clock", "ahead", "behind", "47", "200"].iter().any(|it| {
            body.contains(it) && !body.split('"').any(|part| part.len() == 32 && part.contains(it))
        });
        table.row(name, expect_eq(&body, &silent, &true));
    }
}

/// A JWS whose signature is another.
fn bent(jws: &str) -> String {
    let (input, signature) = jws.rsplit_once('.').expect("a JWS");
    let first = if signature.starts_with('A') { "B" } else { "A" };
    format!("{input}.{first}{}", &signature[1..])
}

/// Whether each of these clients is enforced: one that lacks a proof is refused.
async fn enforced(world: &World, clients: &[String], table: &mut Table) -> Vec<String> {
    let mut enforced = Vec::new();
    for client in clients {
        let answer = world.send(&bare(&bound(world, client))).await;
        let refused = answer.as_ref().is_ok_and(|answer| answer.status() == 401);
        let expect = if refused { Refused("proof_missing") } else { Admitted("observe") };
        table.row(client, world.judge(answer.clone(), expect).await);
        let record = record(world, &answer.expect("an answer")).await;
        let mode = if refused { "enforce" } else { "observe" };
        table.row(client, expect_eq("mode", &record["mode"], &json!(mode)));
        if refused {
            enforced.push(client.clone());
        }
    }
    enforced
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_of_clients_is_enforced_and_a_larger_one_has_it() {
    let mut world = World::start_with(|config| {
        let rules = &mut config["security"]["senderConstraints"];
        rules["mode"] = json!("observe");
        rules["enforcePercent"] = json!(25);
        rules["enforceSalt"] = json!("2026");
    })
    .await;
    let mut table = Table::default();
    let clients: Vec<String> = (0..40).map(|number| format!("client-{number}")).collect();
    let share = |percent: u8| -> Vec<String> {
        clients.iter().filter(|client| bucket("2026", client) < percent).cloned().collect()
    };
    let quarter = enforced(&world, &clients, &mut table).await;
    table.row("a quarter", expect_eq("enforced", &quarter, &share(25)));
    // Who does it right passes, in the share and outside.
    let nonce = world.nonce().await;
    for client in &clients[..8] {
        let token = bound(&world, client);
        let proof = world.proof("GET", TARGET).token(&token).nonce(&nonce).sign();
        let answer = world.send(&get(TARGET, &token, &proof)).await;
        table.row(client, world.judge(answer, Admitted("dpop")).await);
    }
    unnamed(&world, &mut table).await;
    // Token validity is nobody's to be relaxed.
    for client in &clients {
        let expired = world.token().claim("client_id", client.as_str()).claim("exp", 1).sign();
        let answer = world.send(&bare(&expired)).await;
        table.row(client, world.judge(answer, Refused("token_expired")).await);
    }
    let url = "https://api.example/orders/1";
    for client in &clients[..8] {
        let words =
            ["explain", "GET", url, "--config", "authority.yaml", "--json", "--client", client];
        let (_, out, _) = holdfast(world.directory.path(), &words);
        let told: Value = serde_json::from_str(&out).unwrap_or_default();
        let told = &told["requirement"]["client"]["enforced"];
        table.row(client, expect_eq("explained", told, &json!(quarter.contains(client))));
    }
    world.config["security"]["senderConstraints"]["enforcePercent"] = json!(60);
    assert!(world.reload().await);
    let more = enforced(&world, &clients, &mut table).await;
    table.row("more", expect_eq("enforced", &more, &share(60)));
    let kept = quarter.iter().all(|client| more.contains(client)) && more.len() > quarter.len();
    table.row("more", expect_eq("kept", &kept, &true));
    // A tenant, a route or the default: the largest share holds.
    world.config["routes"][0]["enforcePercent"] = json!(10);
    assert!(world.reload().await);
    let same = enforced(&world, &clients, &mut table).await;
    table.row("less on the route", expect_eq("enforced", &same, &more));
}

/// A token without `client_id` is told by `azp`, then by `sub`; one that names nobody is enforced.
async fn unnamed(world: &World, table: &mut Table) {
    let out = |number: &u32| bucket("2026", &format!("client-{number}")) >= 25;
    let outside = format!("client-{}", (0..).find(out).expect("one outside the share"));
    let inside = format!("client-{}", (0..).find(|it| !out(it)).expect("one inside it"));
    let nobody = || world.token().jkt(&world.key.jkt()).without("client_id").without("sub");
    let (passes, refused) = (Admitted("observe"), Refused("proof_missing"));
    for (name, token, expect) in [
        ("azp outside", nobody().claim("azp", &*outside), passes),
        ("azp inside", nobody().claim("azp", &*inside), refused),
        ("client_id first", nobody().claim("azp", &*outside).claim("client_id", &*inside), refused),
        ("sub outside", nobody().claim("sub", &*outside), passes),
        ("sub inside", nobody().claim("sub", &*inside), refused),
        ("azp before sub", nobody().claim("sub", &*inside).claim("azp", &*outside), passes),
        ("nobody", nobody(), refused),
    ] {
        let answer = world.send(&bare(&token.sign())).await;
        table.row(name, world.judge(answer, expect).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_share_is_enforced_where_tokens_are_asked_for() {
    let site = Site::retrofit(Form::Opaque, |config| {
        let rules = &mut config["security"]["senderConstraints"];
        rules["mode"] = json!("observe");
        rules["require"] = json!("dpop");
        rules["enforcePercent"] = json!(50);
    })
    .await;
    let mut table = Table::default();
    let is = |answer: &Outcome, status: u16| {
        expect_eq("status", &answer.as_ref().map(Message::status), &Ok(status))
    };
    for number in 0..12 {
        let client = format!("client-{number}");
        let body = format!("grant_type=client_credentials&client_id={client}");
        let answer = site.world.send(&form(TOKEN, &body)).await;
        let status = if bucket("", &client) < 50 { 400 } else { 200 };
        table.row(&client, is(&answer, status));
        let record = record(&site.world, &answer.expect("an answer")).await;
        table.row(&client, expect_eq("lacks", &record["lacks"], &json!("proof")));
        table.row(&client, expect_eq("route", &record["route"].is_string(), &true));
    }
    let nobody = site.world.send(&form(TOKEN, "grant_type=client_credentials")).await;
    table.row("nobody", is(&nobody, 400));

    // Who asks is only said to be somebody; whose the refresh token is, is recorded.
    let of = |enforced: bool| {
        let mut names = (0..).map(|number| format!("client-{number}"));
        names.find(|name| (bucket("", name) < 50) == enforced).expect("a name")
    };
    let key = Key::new("ES256");
    for (owner, name, status) in [(true, false, 400), (false, false, 200)] {
        let grant = format!("grant_type=client_credentials&client_id={}", of(owner));
        let own = issued(&site.ask(None, &key, &grant).await.expect("an answer"));
        let body = format!("grant_type=refresh_token&refresh_token={}", own.refresh);
        let stolen = site.world.send(&form(TOKEN, &format!("{body}&client_id={}", of(name)))).await;
        table.row(&format!("stolen from one who is enforced: {owner}"), is(&stolen, status));
    }
}
