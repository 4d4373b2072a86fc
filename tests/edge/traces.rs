//! Spans at a collector, and whose trace a service is told of.

use std::time::{Duration, Instant};

use rustls::ALL_VERSIONS;
use serde_json::{Value, json};

use super::support::Table;
use super::support::client::{Message, Request};
use super::support::collector::{Collector, Span};
use super::support::pki::Pki;
use super::support::process::free_port;
use super::support::service::tls;
use super::support::token::{AUDIENCE, ISSUER};
use super::support::world::{World, bearer, expect_eq, get};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

fn parent(flags: &str) -> String {
    format!("00-{TRACE}-{SPAN}-{flags}")
}

/// An edge whose spans go to `collector`, with more said of it.
async fn traced(collector: &Collector, more: Value, change: impl FnOnce(&mut Value)) -> World {
    let endpoint = collector.endpoint();
    World::start_in(|directory, _, config| {
        std::fs::write(directory.join("otlp.auth"), "Bearer collector-secret\n").expect("a file");
        let mut traces = json!({"endpoint": endpoint});
        for (name, value) in more.as_object().into_iter().flatten() {
            traces[name] = value.clone();
        }
        config["telemetry"]["traces"] = traces;
        change(config);
    })
    .await
}

fn said(span: &Span, name: &str) -> String {
    span.attributes.get(name).cloned().unwrap_or_default()
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found = spans.iter().find(|span| span.name == name);
    found.unwrap_or_else(|| panic!("no {name} in {spans:#?}"))
}

fn id(answer: &Message) -> String {
    answer.one("x-request-id").expect("an id").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_one_trace_through_the_edge() {
    let collector = Collector::start().await;
    let more = json!({
        "sampleRatio": 1.0,
        "serviceName": "edge-one",
        "headers": {"X-Scope-OrgID": "seven"},
        "headerFiles": {"Authorization": "otlp.auth"},
        "resource": {"deployment.environment.name": "test"},
    });
    let world = traced(&collector, more, |_| {}).await;
    let (nonce, token) = (world.nonce().await, world.bound());
    let proof = world.proof("GET", "/orders/4711").token(&token).nonce(&nonce).sign();
    let request = get("/orders/4711?card=4111", &token, &proof)
        .field("traceparent", parent("01"))
        .field("tracestate", "congo=t61rcWkgMzE")
        .field("User-Agent", "somebody");
    let answer = world.send(&request).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let seen = answer.seen();
    let spans = collector.of(&id(&answer)).await.expect("spans");
    let server = named(&spans, "GET /orders/*");
    let (decision, store) = (named(&spans, "decision"), named(&spans, "store replay"));
    let client = named(&spans, "GET");
    let told = seen.one("traceparent").expect("a parent").to_owned();
    let mut table = Table::default();
    let mut row = |name: &str, found: &str, expected: &str| {
        table.row(name, expect_eq(name, &found, &expected));
    };
    row("ok/the service's parent", &told, &format!("00-{TRACE}-{}-01", client.id));
    row("ok/the state", seen.one("tracestate").unwrap_or_default(), "congo=t61rcWkgMzE");
    row("ok/server", &server.parent, SPAN);
    row("ok/decision", &decision.parent, &server.id);
    row("ok/store", &store.parent, &decision.id);
    row("ok/client", &client.parent, &server.id);
    for (span, name, expected) in [
        (server, "http.request.method", "GET"),
        (server, "http.response.status_code", "200"),
        (server, "http.route", "/orders/*"),
        (server, "network.protocol.version", "1.1"),
        (server, "holdfast.route", "orders"),
        (server, "holdfast.role", "resource"),
        (server, "holdfast.result", "ok"),
        (server, "holdfast.decision_id", &id(&answer)),
        (server, "holdfast.denial", ""),
        (client, "holdfast.upstream", "echo"),
        (client, "http.response.status_code", "200"),
        (client, "server.port", &world.upstream.port.to_string()),
    ] {
        row(&format!("ok/{}: {name}", span.name), &said(span, name), expected);
    }
    let kinds: Vec<_> = [server, decision, store, client].map(|span| span.kind).to_vec();
    table.row("ok/kinds", expect_eq("kinds", &kinds, &vec![2, 1, 1, 3]));
    table.row("ok/remote", expect_eq("flags", &(server.flags, client.flags), &(0x301, 0x101)));
    let inside =
        |span: &Span| server.from <= span.from && span.from <= span.to && span.to <= server.to;
    table.row("ok/times", expect_eq("inside", &[decision, store, client].map(inside), &[true; 3]));
    table.row("ok/count", expect_eq("spans", &spans.len(), &4));
    let received = collector.received();
    let (head, resource) = (&received[0].head, &received[0].resource);
    let of = |name: &str| resource.get(name).map(String::as_str).unwrap_or_default().to_owned();
    for (name, found, expected) in [
        ("ok/path", head.start.clone(), "POST /v1/traces HTTP/1.1"),
        ("ok/type", head.one("content-type").unwrap_or_default().into(), "application/x-protobuf"),
        ("ok/field", head.one("x-scope-orgid").unwrap_or_default().into(), "seven"),
        (
            "ok/secret field",
            head.one("authorization").unwrap_or_default().into(),
            "Bearer collector-secret",
        ),
        ("ok/service", of("service.name"), "edge-one"),
        ("ok/environment", of("deployment.environment.name"), "test"),
    ] {
        table.row(name, expect_eq(name, &found.as_str(), &expected));
    }
    // Logs and traces meet.
    let record = world.process.record(|record| record["decision_id"] == id(&answer).as_str()).await;
    let record = record.expect("a record");
    table.row("ok/record", expect_eq("trace_id", &record["trace_id"], &json!(TRACE)));
    for (name, secret) in [
        ("the token", token.as_str()),
        ("its signature", token.rsplit('.').next().expect("one")),
        ("the proof", &proof),
        ("the nonce", &nonce),
        ("the key", &world.key.jkt()),
        ("the path", "4711"),
        ("the query", "4111"),
        ("the agent", "somebody"),
        ("the client", "client-1"),
        ("the subject", "user-1"),
        ("the issuer", ISSUER),
        ("the audience", AUDIENCE),
        ("the host", "api.example"),
        ("the collector's secret", "collector-secret"),
        ("the state", "congo"),
    ] {
        let told =
            received.iter().any(|it| it.body.windows(secret.len()).any(|w| w == secret.as_bytes()));
        table.row(&format!("fail/{name}"), expect_eq("told", &told, &false));
    }
    let output = world.process.output();
    table.row("fail/logged", expect_eq("secret", &output.contains("collector-secret"), &false));
}

/// What becomes of requests that are refused, or that fail.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_failures_are_told() {
    let collector = Collector::start().await;
    let gone = free_port();
    let world = traced(&collector, json!({"sampleRatio": 1.0}), |config| {
        let mut down = config["routes"][1].clone();
        (down["name"], down["path"]) = (json!("down"), json!("/down/*"));
        down["upstream"] = json!("down");
        config["routes"].as_array_mut().expect("a list").push(down);
        config["upstreams"]["down"] = json!({"servers": [format!("127.0.0.1:{gone}")]});
    })
    .await;
    let token = world.bound();
    let mut table = Table::default();
    for (name, request, status, denial, kind) in [
        ("refused", bearer("/orders/1", &token), "401", "bound_token_as_bearer", 0),
        ("unknown", Request::new("BREW", "/elsewhere"), "404", "route_unknown", 0),
        ("failed", Request::new("GET", "/down/1"), "502", "", 2),
    ] {
        let answer = world.send(&request).await.expect("an answer");
        let spans = collector.of(&id(&answer)).await.expect("spans");
        let server = spans.iter().find(|span| span.kind == 2).expect("a server's");
        let found = said(server, "http.response.status_code");
        table.row(&format!("ok/{name}"), expect_eq("status", &found.as_str(), &status));
        let found = said(server, "holdfast.denial");
        table.row(&format!("ok/{name}: why"), expect_eq("denial", &found.as_str(), &denial));
        table.row(&format!("ok/{name}: failed"), expect_eq("status", &server.status, &kind));
        table.row(&format!("ok/{name}: begins"), expect_eq("parent", &server.parent.as_str(), &""));
        if name == "unknown" {
            let found = (server.name.as_str(), said(server, "http.request.method"));
            let expected = ("HTTP", "_OTHER".to_owned());
            table.row("ok/unknown: method", expect_eq("method", &found, &expected));
        }
        if name == "failed" {
            let client = named(&spans, "GET");
            let found = (client.status, said(client, "error.type"));
            table
                .row("ok/failed: asked", expect_eq("client", &found, &(2, "no_answer".to_owned())));
        }
    }
}

/// Who decides whether a request is kept.
#[tokio::test(flavor = "multi_thread")]
async fn sampling_is_believed_of_those_in_front_alone() {
    let mut table = Table::default();
    for (in_front, ratio, flags, kept) in [
        (false, 0.0, Some("01"), false),
        (false, 1.0, Some("00"), true),
        (false, 0.0, None, false),
        (true, 0.0, Some("01"), true),
        (true, 1.0, Some("00"), false),
        (true, 1.0, None, true),
    ] {
        let collector = Collector::start().await;
        let world = traced(&collector, json!({"sampleRatio": ratio}), |config| {
            if in_front {
                config["edge"]["listeners"][0]["trustedProxies"] = json!([{"cidr": "127.0.0.1"}]);
            }
        })
        .await;
        let mut request = Request::new("GET", "/public/1");
        if let Some(flags) = flags {
            request = request.field("traceparent", parent(flags));
        }
        let answer = world.send(&request).await.expect("an answer");
        let told = answer.seen().one("traceparent").unwrap_or_default().to_owned();
        let name = format!("in front {in_front}, ratio {ratio}, flags {flags:?}");
        let of_trace = told.starts_with(&format!("00-{TRACE}-"));
        table.row(&format!("ok/{name}: trace"), expect_eq("goes on", &of_trace, &flags.is_some()));
        let own = !told.contains(SPAN) && told.len() == 55;
        table.row(&format!("ok/{name}: span"), expect_eq("own", &own, &true));
        let flag = u8::from_str_radix(told.rsplit('-').next().unwrap_or_default(), 16);
        let flag = flag.map(|flag| flag & 1 == 1);
        table.row(&format!("ok/{name}: flag"), expect_eq("sampled", &flag, &Ok(kept)));
        // Everything that is kept is sent before it ends.
        world.process.terminate();
        let mut process = world.process;
        assert!(process.ended().await.is_some());
        let sent = !collector.spans().is_empty();
        table.row(&format!("ok/{name}: sent"), expect_eq("sent", &sent, &kept));
    }
}

/// What goes on to a service, with traces and without.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_context_goes_no_further() {
    let collector = Collector::start().await;
    let off = World::start().await;
    let on = traced(&collector, json!({"sampleRatio": 0.0}), |_| {}).await;
    let mut table = Table::default();
    let good = parent("01");
    for (name, fields, parent_stays, state_stays) in [
        ("good", vec![("traceparent", good.as_str()), ("tracestate", "a=1,b=2")], true, true),
        ("no state", vec![("traceparent", good.as_str())], true, false),
        ("bad state", vec![("traceparent", good.as_str()), ("tracestate", "A=1")], true, false),
        ("bad", vec![("traceparent", "00-x"), ("tracestate", "a=1")], false, false),
        ("two", vec![("traceparent", good.as_str()), ("traceparent", good.as_str())], false, false),
        ("state alone", vec![("tracestate", "a=1")], false, false),
    ] {
        let mut request = Request::new("GET", "/public/1");
        for (field, value) in fields {
            request = request.field(field, value);
        }
        let seen = off.send(&request).await.expect("an answer").seen();
        let expected: Vec<&str> = if parent_stays { vec![&good] } else { vec![] };
        table.row(
            &format!("ok/off, {name}"),
            expect_eq("parent", &seen.all("traceparent"), &expected),
        );
        let states = |seen: &Message| !seen.all("tracestate").is_empty();
        table.row(
            &format!("ok/off, {name}, state"),
            expect_eq("state", &states(&seen), &state_stays),
        );
        let seen = on.send(&request).await.expect("an answer").seen();
        let told = seen.all("traceparent").join(" ");
        let goes_on = told.contains(TRACE);
        table.row(&format!("ok/on, {name}"), expect_eq("goes on", &goes_on, &parent_stays));
        table.row(&format!("ok/on, {name}, one"), expect_eq("length", &told.len(), &55));
        table.row(
            &format!("ok/on, {name}, state"),
            expect_eq("state", &states(&seen), &state_stays),
        );
    }
    for reason in ["reason=\"queue_full\"", "reason=\"not_taken\""] {
        let text = off.admin("/metrics").await.body;
        let line = format!("holdfast_spans_dropped_total{{{reason}}} 0");
        let there = String::from_utf8_lossy(&text).contains(&line);
        table.row(&format!("ok/{reason}"), expect_eq("at 0", &there, &true));
    }
}

/// Who the edge is to the collector, and who the collector is to it: nobody else gets a span.
#[tokio::test(flavor = "multi_thread")]
async fn both_sides_say_who_they_are() {
    let collector = Collector::start().await;
    let traces = json!({
        "endpoint": format!("https://localhost:{}", collector.port), "sampleRatio": 1.0,
        "authorities": "ca.pem", "certificate": "alice.pem", "key": "alice.key",
    });
    let mut world = World::start_in(|_, pki, config| {
        collector.speaks(tls(&pki.server, Some(&pki.authority_der), ALL_VERSIONS, &[]));
        config["telemetry"]["traces"] = traces;
    })
    .await;
    let ask = async |world: &World| {
        let answer = world.send(&Request::new("GET", "/public/1")).await.expect("an answer");
        assert_eq!(answer.status(), 200);
        id(&answer)
    };
    let mut table = Table::default();
    let taken = async |world: &World| collector.of(&ask(world).await).await.is_some();
    table.row("ok/both", expect_eq("taken", &taken(&world).await, &true));
    for used in ["collector-authority", "collector-client"] {
        let labels = ["owner=\"traces\"", &format!("use=\"{used}\"")];
        let ends = world.metric("holdfast_certificate_expiry_timestamp_seconds", &labels).await;
        table.row(used, expect_eq("told", &(ends > 0.0), &true));
    }
    let name = "holdfast_spans_dropped_total";
    let reason = ["reason=\"not_taken\""];
    // Each request has a server's, a decision's and a client's span.
    let mut lost = 0.0;
    let mut refused = async |world: &World| {
        let id = ask(world).await;
        lost += 3.0;
        let dropped = world.metric_once(name, &reason, lost).await;
        let span = |span: &Span| said(span, "holdfast.decision_id") == id;
        (dropped - lost, collector.spans().iter().any(span))
    };
    // The edge shows no certificate, and later nobody's that the collector trusts.
    let traces = &mut world.config["telemetry"]["traces"];
    for name in ["certificate", "key"] {
        traces.as_object_mut().expect("a section").remove(name);
    }
    table.row("fail/no certificate", expect_eq("reload", &world.reload().await, &true));
    table.row("fail/no certificate", expect_eq("of it", &refused(&world).await, &(0.0, false)));
    // Somebody else answers there.
    let other = Pki::new();
    for (name, server) in [("a stranger", &other.server), ("its name", &world.pki.alice)] {
        collector.speaks(tls(server, None, ALL_VERSIONS, &[]));
        // A connection to the one before is not used again.
        table.row(name, expect_eq("reload", &world.reload().await, &true));
        let name = format!("fail/{name}");
        table.row(&name, expect_eq("of it", &refused(&world).await, &(0.0, false)));
    }
    collector.speaks(tls(&world.pki.server, None, ALL_VERSIONS, &[]));
    table.row("ok/again", expect_eq("taken", &taken(&world).await, &true));
}

/// A collector that is away, refuses, or takes a part.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_taken_is_counted_and_delays_nobody() {
    let collector = Collector::start().await;
    let mut world = traced(&collector, json!({"sampleRatio": 1.0}), |_| {}).await;
    let mut table = Table::default();
    let ask = async |world: &World| {
        let answer = world.send(&Request::new("GET", "/public/1")).await.expect("an answer");
        assert_eq!(answer.status(), 200);
    };
    let reason = ["reason=\"not_taken\""];
    // Each request has a server's, a decision's and a client's span.
    collector.answer(400, b"");
    ask(&world).await;
    let name = "holdfast_spans_dropped_total";
    table.row(
        "ok/refused",
        expect_eq("dropped", &world.metric_once(name, &reason, 3.0).await, &3.0),
    );
    // A partial success (field 1) of 2 rejected spans (field 1).
    collector.answer(200, &[0x0a, 0x02, 0x08, 0x02]);
    ask(&world).await;
    table.row(
        "ok/in part",
        expect_eq("dropped", &world.metric_once(name, &reason, 5.0).await, &5.0),
    );
    // What passes is tried again.
    collector.answer(200, b"");
    collector.refuse(1);
    let before = collector.received().len();
    ask(&world).await;
    for _ in 0..1500 {
        if collector.received().len() > before {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    table.row("ok/again", expect_eq("taken", &(collector.received().len() > before), &true));
    // Nobody listens.
    let gone = free_port();
    let endpoint = format!("http://127.0.0.1:{gone}/spans");
    world.config["telemetry"]["traces"]["endpoint"] = json!(endpoint);
    table.row("ok/reload", expect_eq("taken", &world.reload().await, &true));
    for _ in 0..20 {
        ask(&world).await;
    }
    // They may have come to several batches, each of which is tried three times.
    let mut dropped = 0.0;
    for _ in 0..10 {
        dropped = world.metric_once(name, &reason, 65.0).await;
        if dropped == 65.0 {
            break;
        }
    }
    table.row("ok/away", expect_eq("dropped", &dropped, &65.0));
    let told = world.process.records(|record| {
        record["message"].as_str().is_some_and(|text| text.starts_with("spans not sent"))
    });
    // One of each configuration's.
    table.row("ok/told", expect_eq("lines", &told.len(), &2));
    ask(&world).await;
    let began = Instant::now();
    world.process.terminate();
    let status = world.process.ended().await;
    let in_time = status.is_some_and(|status| status.success()) && began.elapsed().as_secs() < 20;
    table.row("ok/the end", expect_eq("in time", &in_time, &true));
}
