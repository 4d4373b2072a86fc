//! Metrics, health and records.

use serde_json::{Value, json};

use super::support::Table;
use super::support::client::Request;
use super::support::keys::Key;
use super::support::node;
use super::support::proof::Proof;
use super::support::world::{Expect, World, bearer, expect_eq, get};

use Expect::{Admitted, Public, Refused};

const REQUESTS: &str = "authority_dpop_requests_total";
const RESULTS: &str = "authority_dpop_result_total";
const NONCES: &str = "authority_dpop_nonce_miss_total";
const CERTIFICATES: &str = "authority_mtls_mismatch_total";

#[tokio::test(flavor = "multi_thread")]
async fn records_that_cannot_be_written_are_counted() {
    let under = ["sh", "-c", r#"exec "$0" "$@" >/dev/full"#].map(str::to_owned);
    let world = World::start_under(&under, |_| {}).await;
    // They are written some time soon.
    let dropped = async |wanted: f64| {
        let mut found = 0.0;
        for _ in 0..500 {
            found = world.metric("holdfast_log_suppressed_total", &[]).await;
            if found >= wanted {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        found
    };
    let before = dropped(1.0).await;
    assert!(before >= 1.0, "it has said that it started: {before}");
    for _ in 0..5 {
        let answer = world.send(&bearer("/orders/1", "x")).await.expect("an answer");
        assert_eq!(answer.status(), 401);
    }
    let after = dropped(before + 5.0).await;
    assert!(after >= before + 5.0, "{before}, then {after}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_series_is_there_from_the_start() {
    let world = node::world(|config| {
        config["tenancy"] = json!({"claim": "tenant", "unknown": "default"});
        config["tenants"] = json!({"acme": {}});
    })
    .await;
    let text = String::from_utf8(world.admin("/metrics").await.body).expect("UTF-8");
    let mut table = Table::default();
    let mut there = |name: &str, labels: &[&str]| {
        let found = text.lines().find(|line| {
            line.split(['{', ' ']).next() == Some(name)
                && labels.iter().all(|label| line.contains(label))
        });
        let zero = found.and_then(|line| line.rsplit(' ').next()) == Some("0");
        table.row(&format!("{name} {labels:?}"), expect_eq("at 0", &zero, &true));
    };
    for tenant in ["tenant=\"acme\"", "tenant=\"other\""] {
        there(REQUESTS, &[tenant, "role=\"resource\""]);
        for result in
            ["ok", "missing", "invalid", "nonce", "replay", "mismatch", "bypass", "observe"]
        {
            there(RESULTS, &[tenant, "role=\"resource\"", &format!("result=\"{result}\"")]);
        }
    }
    for reason in ["absent", "expired", "unknown", "replayed"] {
        there(NONCES, &[&format!("reason=\"{reason}\"")]);
    }
    for reason in ["context-missing", "missing-certificate", "thumbprint-mismatch"] {
        there(CERTIFICATES, &[&format!("reason=\"{reason}\"")]);
    }
    for reason in CAPSULE_REASONS {
        there("holdfast_capsule_decisions_total", &[&format!("reason=\"{reason}\"")]);
    }
    for status in ["active", "disabled", "quarantined", "revoked"] {
        there("holdfast_node_status", &[&format!("status=\"{status}\"")]);
    }
    for result in ["ok", "failed"] {
        there("holdfast_config_reloads_total", &[&format!("result=\"{result}\"")]);
    }
    for outcome in ["refused", "observed"] {
        let outcome = format!("outcome=\"{outcome}\"");
        for reason in ["proof_replayed", "replay_capacity", "store_down", "key_mismatch"] {
            there("holdfast_denials_total", &[&format!("reason=\"{reason}\""), &outcome]);
        }
    }
    for class in ["2xx", "5xx", "failed"] {
        there("holdfast_upstream_responses_total", &[&format!("class=\"{class}\"")]);
    }
    for reason in ["answer_invalid", "issued_unbound", "issued_mismatch", "binding_conflict"] {
        there("holdfast_authority_alarms_total", &[&format!("reason=\"{reason}\"")]);
    }
    for stage in ["decision", "upstream", "total"] {
        let stage = format!("stage=\"{stage}\"");
        there("holdfast_request_duration_seconds_count", &["role=\"resource\"", &stage]);
    }
    for log in ["resource", "token", "node"] {
        there("holdfast_replay_entries", &[&format!("log=\"{log}\"")]);
    }
    for name in [
        "holdfast_clock_skew_seconds_count",
        "holdfast_capsule_risk_score_count",
        "holdfast_capsule_held_total",
        "holdfast_fleet_quarantines",
        "holdfast_bypass_active",
        "holdfast_audit_suppressed_total",
        "holdfast_log_suppressed_total",
    ] {
        there(name, &[]);
    }
    // What is not 0 from the start.
    for (name, labels, expect) in [
        ("holdfast_store_up", "store=\"embedded\"", 1.0),
        ("holdfast_store_up", "store=\"redis\"", 1.0),
        ("holdfast_config_last_reload_successful", "", 1.0),
        ("holdfast_build_info", "version=\"", 1.0),
        ("holdfast_fleet_quarantines_limit", "", 10.0),
        ("holdfast_connections_limit", "listener=\"main\"", 10_000.0),
        ("holdfast_replay_capacity", "log=\"resource\"", 1_000_000.0),
        ("holdfast_replay_capacity", "log=\"token\"", 100_000.0),
        // A year after the keys were made, which is the default.
        ("holdfast_key_expiry_timestamp_seconds", "kind=\"master\"", 1_831_536_000.0),
        ("holdfast_key_expiry_timestamp_seconds", "kind=\"envelope\"", 1_831_536_000.0),
        ("holdfast_key_expiry_timestamp_seconds", "kind=\"audit\"", 1_831_536_000.0),
    ] {
        let found = world.metric(name, &[labels]).await;
        table.row(name, expect_eq(labels, &found, &expect));
    }
    for name in [
        "holdfast_config_last_reload_success_timestamp_seconds",
        "holdfast_start_time_seconds",
        "process_resident_memory_bytes",
        "process_max_fds",
    ] {
        table.row(name, expect_eq("is there", &(world.metric(name, &[]).await > 0.0), &true));
    }
}

const CAPSULE_REASONS: [&str; 17] = [
    "GRANTED",
    "AUTHENTICATION_FAILED",
    "NODE_REVOKED",
    "NODE_DISABLED",
    "NODE_QUARANTINED",
    "SENDER_MISMATCH",
    "PROOF_NONCE_REQUIRED",
    "FINGERPRINT_MISMATCH",
    "FINGERPRINT_CONFLICT",
    "NETWORK_POLICY_VIOLATION",
    "NODE_VERSION_REQUIRED",
    "KEY_VERSION_UNAVAILABLE",
    "SEAL_REQUIRED",
    "TELEMETRY_INVALID",
    "TELEMETRY_OUT_OF_ORDER",
    "RATE_LIMITED",
    "UNAVAILABLE",
];

/// A file that the configuration no longer names does not go on ending, and so does not alert.
#[tokio::test(flavor = "multi_thread")]
async fn ends_are_those_of_the_files_in_use() {
    let mut world = World::start().await;
    let mut table = Table::default();
    let (ends, lives) =
        ("holdfast_certificate_expiry_timestamp_seconds", "holdfast_certificate_lifetime_seconds");
    let now = f64::from(u32::try_from(super::support::now()).expect("a time before 2106"));
    for (used, file) in [("server", "server.pem"), ("client-authority", "ca.pem")] {
        let labels = ["owner=\"main\"".to_owned(), format!("use=\"{used}\""), format!("/{file}\"")];
        let labels = labels.each_ref().map(String::as_str);
        let (end, life) = (world.metric(ends, &labels).await, world.metric(lives, &labels).await);
        table.row(file, expect_eq("ends", &(end > now), &true));
        table.row(file, expect_eq("began before now", &(end - life < now), &true));
    }
    for extension in ["pem", "key"] {
        let place = |name: &str| world.directory.path().join(format!("{name}.{extension}"));
        std::fs::copy(place("server"), place("renewed")).expect("a copy");
    }
    world.config["edge"]["listeners"][0]["tls"]["certificates"] =
        json!([{"certificate": "renewed.pem", "key": "renewed.key"}]);
    assert!(world.reload().await, "{}", world.process.output());
    for (file, expect) in [("renewed.pem", true), ("server.pem", false)] {
        let end = world.metric(ends, &[&format!("/{file}\"")]).await;
        table.row(file, expect_eq("ends after the reload", &(end > now), &expect));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_counted_by_code_and_upstreams_by_what_they_answer() {
    let mut world = World::start().await;
    let (token, mut table) = (world.bound(), Table::default());
    let nonce = world.nonce().await;
    let proof = || world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
    let used = proof();
    for _ in 0..2 {
        world.send(&get("/orders/1", &token, &used)).await.expect("an answer");
    }
    const DENIALS: &str = "holdfast_denials_total";
    const UPSTREAMS: &str = "holdfast_upstream_responses_total";
    let replayed = "reason=\"proof_replayed\"";
    let count = world.metric_once(DENIALS, &[replayed, "outcome=\"refused\""], 1.0).await;
    table.row("a replay", expect_eq("refused", &count, &1.0));
    let count = world.metric_once(UPSTREAMS, &["class=\"2xx\""], 1.0).await;
    table.row("an answer", expect_eq("counted", &count, &1.0));

    world.config["security"]["senderConstraints"]["mode"] = json!("observe");
    // Nobody listens there.
    let nobody = super::support::process::free_port();
    world.config["upstreams"]["echo"]["servers"] = json!([format!("127.0.0.1:{nobody}")]);
    assert!(world.reload().await, "{}", world.process.output());
    let answer = world.send(&get("/orders/1", &token, &used)).await.expect("an answer");
    table.row("observed", expect_eq("status", &answer.status(), &502));
    for (outcome, expect) in [("observed", 1.0), ("refused", 1.0)] {
        let labels = [replayed, &format!("outcome=\"{outcome}\"")];
        let count = world.metric_once(DENIALS, &labels, expect).await;
        table.row("observed", expect_eq(outcome, &count, &expect));
    }
    let count = world.metric_once(UPSTREAMS, &["class=\"failed\""], 1.0).await;
    table.row("no answer", expect_eq("counted", &count, &1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_decision_is_counted_once() {
    let world = World::start().await;
    let token = world.bound();
    let nonce = world.nonce().await;
    let proof = |nonce: &str| world.proof("GET", "/orders/1").token(&token).nonce(nonce).sign();
    let used = proof(&nonce);
    let stranger = {
        let url = "https://api.example/orders/1";
        Proof::new(&Key::new("ES256"), "GET", url).token(&token).nonce(&nonce).sign()
    };
    let certified = world.token().x5t(&world.pki.alice.x5t()).sign();
    let mut table = Table::default();
    let total = world.metric(REQUESTS, &[]).await;
    let mut sent = 0.0;
    for (result, request) in [
        ("ok", get("/orders/1", &token, &used)),
        ("replay", get("/orders/1", &token, &used)),
        ("missing", get("/orders/1", &token, "").without("DPoP")),
        ("invalid", get("/orders/1", &token, "nonsense")),
        ("nonce", get("/orders/1", &token, &proof("made up"))),
        ("mismatch", get("/orders/1", &token, &stranger)),
    ] {
        let label = format!("result=\"{result}\"");
        let before = world.metric(RESULTS, &[&label]).await;
        let answer = world.send(&request).await;
        table.row(result, answer.map(|_| ()));
        sent += 1.0;
        let after = world.metric_once(RESULTS, &[&label], before + 1.0).await;
        table.row(result, expect_eq("counted", &after, &(before + 1.0)));
        let requests = world.metric(REQUESTS, &[]).await - total;
        table.row(result, expect_eq("requests", &requests, &sent));
    }
    for (reason, who) in
        [("missing-certificate", None), ("thumbprint-mismatch", Some(&world.pki.bob))]
    {
        let answer = world.client.send(who, &bearer("/orders/1", &certified)).await;
        table.row(reason, world.judge(answer, Refused(reason)).await);
        let label = format!("reason=\"{reason}\"");
        let count = world.metric_once(CERTIFICATES, &[&label], 1.0).await;
        table.row(reason, expect_eq("counted", &count, &1.0));
    }
    let skew = world.metric("holdfast_clock_skew_seconds_count", &[]).await;
    table.row("skew", expect_eq("observed", &(skew > 0.0), &true));
}

#[tokio::test(flavor = "multi_thread")]
async fn records_say_what_happened_and_no_secret() {
    let world = World::start().await;
    let token = world.bound();
    let nonce = world.nonce().await;
    let good = world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
    let other = Key::new("ES256");
    let stranger = Proof::new(&other, "GET", "https://api.example/orders/1")
        .token(&token)
        .nonce(&nonce)
        .sign();
    let certified = world.token().x5t(&world.pki.alice.x5t()).sign();
    let mut table = Table::default();

    let answer = world.send(&get("/orders/1", &token, &good)).await.expect("an answer");
    let record = find(&world, answer.one("x-request-id"), "authority.dpop.request").await;
    let jkt = world.key.jkt();
    for (member, value) in [
        ("client", json!("client-1")),
        ("role", json!("resource")),
        ("cnf_jkt", json!(jkt)),
        ("result", json!("ok")),
    ] {
        table.row("ok record", expect_eq(member, &record[member], &value));
    }
    table.row("ok record", expect_eq("latency_us", &record["latency_us"].is_u64(), &true));

    let answer = world.send(&get("/orders/1", &token, &stranger)).await.expect("an answer");
    let event = "authority.security.senderConstraint";
    let record = find(&world, answer.one("x-request-id"), event).await;
    for (member, value) in [
        ("kind", json!("dpop")),
        ("reason", json!("key_mismatch")),
        ("expected", json!(jkt)),
        ("presented", json!(other.jkt())),
        ("senderCertificateMismatch", json!(false)),
    ] {
        table.row("key record", expect_eq(member, &record[member], &value));
    }

    let answer = world.send_as(&world.pki.bob, &bearer("/orders/1", &certified)).await;
    let answer = answer.expect("an answer");
    let record = find(&world, answer.one("x-request-id"), event).await;
    for (member, value) in [
        ("kind", json!("mtls")),
        ("reason", json!("thumbprint-mismatch")),
        ("expected", json!(world.pki.alice.x5t())),
        ("presented", json!(world.pki.bob.x5t())),
        ("senderCertificateMismatch", json!(true)),
    ] {
        table.row("certificate record", expect_eq(member, &record[member], &value));
    }

    let metrics = String::from_utf8_lossy(&world.admin("/metrics").await.body).into_owned();
    let output = world.process.output() + &metrics;
    for (name, secret) in [
        ("token", &token),
        ("certified token", &certified),
        ("proof", &good),
        ("another's proof", &stranger),
        ("nonce", &nonce),
    ] {
        // Its signature alone would do.
        let end = secret.rsplit('.').next().unwrap_or(secret);
        table.row(name, expect_eq("in the output", &output.contains(end), &false));
    }
}

/// Who is told a decision id can be helped, whatever was refused.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_before_a_route_are_recorded() {
    let world = World::start().await;
    let mut table = Table::default();
    for (target, reason) in [("/nowhere", "route_unknown"), ("/orders/%00", "path_invalid")] {
        let answer = world.send(&bearer(target, "t")).await.unwrap();
        let record = find(&world, answer.one("x-request-id"), "authority.dpop.request").await;
        let found = (&record["result"], &record["reason"], &record["role"]);
        let expect = (&json!("invalid"), &json!(reason), &Value::Null);
        table.row(target, expect_eq("record", &found, &expect));
    }
}

/// Every decision on a resource route leaves a record; the DPoP metrics count DPoP alone.
#[tokio::test(flavor = "multi_thread")]
async fn admissions_without_a_proof_are_recorded() {
    let world = World::start_with(|config| config["routes"][0]["allowUnbound"] = json!(true)).await;
    let certified = world.token().x5t(&world.pki.alice.x5t()).sign();
    let unbound = world.token().sign();
    let mut table = Table::default();
    for (result, token) in [("mtls", &certified), ("unbound", &unbound)] {
        let answer = world.send_as(&world.pki.alice, &bearer("/orders/1", token)).await;
        table.row(result, world.judge(answer.clone(), Admitted(result)).await);
        let answer = answer.expect("an answer");
        let record = find(&world, answer.one("x-request-id"), "authority.dpop.request").await;
        let found = (&record["result"], &record["client"], &record["cnf_jkt"]);
        table.row(
            result,
            expect_eq("record", &found, &(&json!("ok"), &json!("client-1"), &Value::Null)),
        );
    }
    let counted = world.metric(REQUESTS, &[]).await;
    table.row("metrics", expect_eq("counted", &counted, &0.0));
}

async fn find(world: &World, id: Option<&str>, event: &str) -> Value {
    let id = id.unwrap_or_default();
    let wanted = |record: &Value| record["decision_id"] == id && record["event"] == event;
    world.process.record(wanted).await.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn health() {
    let world = World::start().await;
    let mut table = Table::default();
    let healthy = world.admin("/healthz").await;
    table.row("healthz", expect_eq("status", &healthy.status(), &200));
    let ready = world.admin("/readyz").await;
    table.row("readyz", expect_eq("status", &ready.status(), &200));
    table.row("readyz", expect_eq("ready", &ready.json()["ready"], &json!(true)));
    let text = String::from_utf8_lossy(&ready.body).into_owned();
    for part in ["listeners", "issuers", "replay", "main", "https://as.example"] {
        table.row("readyz", expect_eq(part, &text.contains(part), &true));
    }
    table.row("other", expect_eq("status", &world.admin("/other").await.status(), &404));
    // The public listener has none of it.
    for path in ["/metrics", "/healthz", "/readyz"] {
        let answer = world.send(&Request::new("GET", path)).await;
        table.row(path, world.judge(answer, Refused("route_unknown")).await);
    }
    let answer = world.send(&Request::new("GET", "/public/1")).await;
    table.row("public", world.judge(answer, Public).await);
    let nonce = world.nonce().await;
    let token = world.bound();
    let proof = world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
    let answer = world.send(&get("/orders/1", &token, &proof)).await;
    table.row("resource", world.judge(answer, Admitted("dpop")).await);
    let replay = &world.admin("/readyz").await.json()["replay"]["entries"];
    table.row("readyz", expect_eq("live proofs", replay, &json!(1)));
}
