//! Requests for capsules, and telemetry, by those who mean harm: whatever they send, they are
//! refused in words that tell nothing, and the node beside them gets its capsule.

use std::time::Duration;

use serde_json::{Value, json};

use super::support::client::{Message, Outcome, Request};
use super::support::keys::Key;
use super::support::node::{Node, told, world};
use super::support::world::{World, expect_eq};
use super::support::{Table, base64url};

/// Whether it is one of these statuses, and no capsule.
fn refused(outcome: &Outcome, statuses: &[u16]) -> Result<(), String> {
    let answer = outcome.as_ref().map_err(Clone::clone)?;
    let known = statuses.contains(&answer.status());
    expect_eq(&format!("{} {}", answer.start, told(answer)), &known, &true)?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    for word in ["runtimeKey", "sealedKey", "panicked", ".rs:", "rusqlite"] {
        expect_eq(word, &text.contains(word), &false)?;
    }
    Ok(())
}

/// Whether the node still gets its capsule: the edge lives.
async fn lives(world: &World, node: &Node) -> Result<(), String> {
    let answer = world.ask(node, "127.0.0.1").await?;
    expect_eq("the node beside", &told(&answer).as_str(), &"200 risk 0")
}

fn is(outcome: Outcome, expect: &str) -> Result<(), String> {
    expect_eq("answer", &told(&outcome?).as_str(), &expect)
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_name_one_node_or_none() {
    let world = world(|_| {}).await;
    let node = world.enrol("node-1", &[]);
    let mut table = Table::default();
    table.row("ok/before", lives(&world, &node).await);
    let nonce = world.node_nonce(&node).await;
    let long = "n".repeat(64);
    let longer = "n".repeat(65);
    let endless = "n".repeat(20_000);
    for id in [
        "NODE-1",
        "node-1/",
        "/node-1",
        "node-1//",
        "./node-1/x",
        "node-1/../node-2",
        "..%2fnode-1",
        "%2e%2e%2fnode-1",
        "node-1%00",
        "%00node-1",
        "node-1%0d%0aX-Node-Version:%201",
        "node-1%20",
        "node-1;a=b",
        "node-1'--",
        "node-1%27%20OR%201=1",
        "%25",
        "%",
        "%zz",
        "%ff%fe",
        "node-1%c0%af",
        "n\u{f6}de-1",
        "node\u{2010}1",
        "*",
        "_",
        "-",
        ".",
        "..",
        "...",
        "node-1\\",
        "node-1%5c",
        "node-1:443",
        "node-1@x",
        "${node-1}",
        "{nodeId}",
        &long,
        &longer,
        &endless,
    ] {
        let other = Node { id: id.to_owned(), ..node.clone() };
        for request in [other.request(&nonce), other.bearer()] {
            let answer = world.send(&request).await;
            table.row(id, refused(&answer, &[400, 401, 404, 414, 431]));
        }
        let telemetry = other.telemetry(&nonce, &json!({}));
        let answer = world.send(&telemetry).await;
        table.row(&format!("telemetry {id}"), refused(&answer, &[400, 401, 404, 414, 431]));
    }
    // The same path by RFC 3986 is the same node, and the proof is for the path as it is routed.
    let mut same = node.request(&nonce);
    same.target = "/api/runtime/capsule/node%2D1".to_owned();
    table.row("ok/escaped", is(world.send(&same).await, "200 risk 0"));
    for (name, target) in [
        ("fail/no id", "/api/runtime/capsule"),
        ("fail/no id", "/api/runtime/telemetry"),
        ("fail/case", "/API/runtime/capsule/node-1"),
        ("fail/neighbour", "/api/runtime/capsules/node-1"),
        ("fail/below", "/api/runtime/capsule/node-1/x"),
    ] {
        let mut request = node.request(&nonce);
        request.target = target.to_owned();
        table.row(name, refused(&world.send(&request).await, &[400, 401, 404]));
    }
    // Another host of the edge knows nothing of capsules.
    let elsewhere = world.send(&node.request(&nonce).host("other.example")).await;
    table.row("fail/host", refused(&elsewhere, &[404, 421]));
    table.row("ok/after", lives(&world, &node).await);
    let record = world.node("node-1");
    table.row("counters", expect_eq("granted", &record["counters"]["granted"], &json!(3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_megabytes_of_header() {
    const BYTES: usize = 10 << 20;
    let world = world(|_| {}).await;
    let node = world.enrol("node-1", &[]);
    let mut table = Table::default();
    table.row("ok/before", lives(&world, &node).await);
    let memory = world.process.memory();
    let filler = "a".repeat(BYTES);
    let many: String = (0..BYTES / 16).map(|number| format!("X-{number:07}: aaa\r\n")).collect();
    let start = |rest: &str| {
        format!("GET /api/runtime/capsule/node-1 HTTP/1.1\r\nHost: api.example\r\n{rest}\r\n\r\n")
    };
    for (name, bytes) in [
        ("one field", start(&format!("X-Node-Fingerprint: {filler}"))),
        ("the secret", start(&format!("Authorization: DPoP {filler}"))),
        ("the proof", start(&format!("Authorization: DPoP x\r\nDPoP: {filler}"))),
        ("a key", start(&format!("X-Node-Enc-Jwk: {filler}"))),
        ("a name", start(&format!("{filler}: x"))),
        ("many fields", start(&many)),
        (
            "the path",
            format!("GET /api/runtime/capsule/{filler} HTTP/1.1\r\nHost: api.example\r\n\r\n"),
        ),
        (
            "the query",
            format!(
                "GET /api/runtime/capsule/node-1?keyVersion={filler} HTTP/1.1\r\nHost: api.example\r\n\r\n"
            ),
        ),
    ] {
        let mut connection = world.client.connect(None).await.expect("a connection");
        // The edge need not read all of it.
        let _ = connection.write(bytes.as_bytes()).await;
        match connection.answer(false).await {
            Ok(answer) => table.row(name, refused(&Ok(answer), &[400, 414, 431])),
            Err(fault) => table.row(name, expect_eq("hangs", &fault.contains("30 s"), &false)),
        }
    }
    // The same over HTTP/2, where a field is announced before it comes.
    let connection = world.client.connect_h2(None).await.expect("h2");
    let request = node.bearer().field("X-Filler", &filler[..1 << 20]);
    match connection.send(&request).await {
        Ok(answer) => table.row("h2", refused(&Ok(answer), &[400, 431])),
        Err(fault) => table.row("h2", expect_eq("hangs", &fault.contains("30 s"), &false)),
    }
    table.row("ok/after", lives(&world, &node).await);
    let grown = world.process.memory().saturating_sub(memory) >> 20;
    table.row("memory", expect_eq(&format!("{grown} MiB more"), &(grown < 48), &true));
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_that_are_none() {
    let world = world(|_| {}).await;
    let node = world.enrol("node-1", &[]);
    let mut table = Table::default();
    table.row("ok/before", lives(&world, &node).await);
    let nonce = world.node_nonce(&node).await;
    let good = &node.secret;
    let hash = super::support::digest(good);
    let mut shorter = good.clone();
    let last = shorter.pop().expect("a letter");
    let other = if last == 'A' { 'B' } else { 'A' };
    for (name, secret) in [
        ("empty", String::new()),
        ("no base64", "!!!".to_owned()),
        ("a space in it", format!("{} {}", &good[..10], &good[10..])),
        ("quoted", format!("\"{good}\"")),
        ("padded", format!("{good}=")),
        ("one short", shorter.clone()),
        ("one off", format!("{shorter}{other}")),
        ("one more", format!("{good}A")),
        ("lower case", good.to_ascii_lowercase()),
        ("its hash, as stored", hash),
        ("two", format!("{good},{good}")),
        ("another letter set", "\u{43f}\u{430}".to_owned()),
        ("4 KiB", "a".repeat(4 << 10)),
        ("16 KiB", "a".repeat(16 << 10)),
        ("16 KiB that begins well", format!("{good}{}", "a".repeat(16 << 10))),
    ] {
        let proof = node.proof("GET", &node.target(), &nonce).token(&secret).sign();
        for request in [
            node.bare().field("Authorization", format!("Bearer {secret}")),
            node.bare().field("Authorization", format!("DPoP {secret}")).field("DPoP", &proof),
        ] {
            let answer = world.send(&request).await;
            table.row(name, is(answer, "401 AUTHENTICATION_FAILED"));
        }
    }
    for (name, value) in [
        ("no scheme", good.clone()),
        ("no space", format!("DPoP{good}")),
        ("basic", format!("Basic {good}")),
        ("two words", format!("DPoP {good} {good}")),
        ("parameters", format!("DPoP token=\"{good}\"")),
    ] {
        let request = node.bare().field("Authorization", value);
        table.row(name, is(world.send(&request).await, "401 AUTHENTICATION_FAILED"));
    }
    // Bytes that are no text at all.
    for bytes in [&b"\xff\xfe\x80"[..], b"a\x00b", b"a\x7fb", b"a\x0bb"] {
        let mut raw = b"GET /api/runtime/capsule/node-1 HTTP/1.1\r\nHost: api.example\r\n".to_vec();
        raw.extend_from_slice(b"Authorization: DPoP ");
        raw.extend_from_slice(bytes);
        raw.extend_from_slice(b"\r\n\r\n");
        let answer = world.client.send_bytes(None, &raw).await;
        table.row(&format!("{bytes:x?}"), refused(&answer, &[400, 401]));
    }
    table.row("ok/after", lives(&world, &node).await);
    let record = world.node("node-1");
    table.row("status", expect_eq("status", &record["status"], &json!("active")));
}

#[tokio::test(flavor = "multi_thread")]
async fn proofs_that_are_none() {
    let world = world(|_| {}).await;
    let node = world.enrol("node-1", &[]);
    let mut table = Table::default();
    table.row("ok/before", lives(&world, &node).await);
    let nonce = world.node_nonce(&node).await;
    let good = || node.proof("GET", &node.target(), &nonce);
    let whole = good().sign();
    let [head, claims, signature] = super::support::proof::parts(&whole);
    let unsigned = base64url(r#"{"alg":"none","typ":"dpop+jwt"}"#);
    let deep = format!("{}1{}", "[".repeat(2000), "]".repeat(2000));
    let with = |proof: String| {
        node.bare().field("Authorization", format!("DPoP {}", node.secret)).field("DPoP", proof)
    };
    for (name, proof) in [
        ("empty", String::new()),
        ("dots", "..".to_owned()),
        ("one part", head.to_owned()),
        ("two parts", format!("{head}.{claims}")),
        ("four parts", format!("{whole}.{signature}")),
        ("no base64", "!.!.!".to_owned()),
        ("no JSON", format!("{}.{}.{signature}", base64url("{"), base64url("["))),
        ("a list", format!("{}.{}.{signature}", base64url("[]"), base64url("[]"))),
        ("deep", format!("{}.{claims}.{signature}", base64url(&deep))),
        ("deep claims", good().sign_text(&good().header_json(), &format!("{{\"a\":{deep}}}"))),
        ("unsigned", format!("{unsigned}.{claims}.")),
        ("no signature", format!("{head}.{claims}.")),
        ("another's signature", format!("{head}.{claims}.{}", base64url([7; 64]))),
        ("bearer", format!("Bearer {whole}")),
        ("a list of two", format!("{whole}, {whole}")),
        ("8 KiB", "a".repeat(8 << 10)),
        ("HMAC", good().header("alg", "HS256").sign()),
        ("a private key", good().jwk("d", node.key.private_member()).sign()),
        ("no key", good().without_header("jwk").sign()),
        ("a key that is text", good().header("jwk", "x").sign()),
        ("a point off the curve", good().jwk("y", base64url([1; 32])).sign()),
        (
            "a key by address",
            good().header("jku", "https://evil.example/").without_header("jwk").sign(),
        ),
        ("a time that is text", good().claim("iat", "now").sign()),
        ("a time that is huge", good().claim("iat", u64::MAX).sign()),
        ("a time that is negative", good().claim("iat", -1).sign()),
        ("a number as jti", good().claim("jti", 1).sign()),
        ("a long jti", good().claim("jti", "j".repeat(300)).sign()),
        ("no ath", good().without("ath").sign()),
        ("ath that is null", good().claim("ath", Value::Null).sign()),
    ] {
        let answer = world.send(&with(proof)).await;
        let expect = "401 SENDER_MISMATCH";
        table.row(name, is(answer, expect));
    }
    // Nonces that nobody gave out.
    for nonce in ["", "x", "AAAAAAAA", &"n".repeat(500), "\u{0}"] {
        let answer = world.send(&with(good().nonce(nonce).sign())).await;
        table.row(nonce, is(answer, "401 PROOF_NONCE_REQUIRED"));
    }
    table.row("ok/after", lives(&world, &node).await);
    let record = world.node("node-1");
    table.row("counters", expect_eq("granted", &record["counters"]["granted"], &json!(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_nothing_can_be_sealed_to() {
    let world = world(|_| {}).await;
    let node = world.enrol("node-1", &[]);
    let certified = world.enrol("node-2", &[]);
    let mut table = Table::default();
    let alice = Some(&world.pki.alice);
    let nonce = world.node_nonce(&node).await;
    let pair = Key::new("ES256");
    let (good, okp) = (pair.jwk.clone(), Key::new("EdDSA").jwk);
    let with = |name: &str, value: Value| {
        let mut jwk = good.clone();
        jwk[name] = value;
        jwk
    };
    let unusable = "400 SEAL_REQUIRED";
    let bad = [
        ("private", with("d", json!(pair.private_member()))),
        ("private and wrong", with("d", json!("AA"))),
        ("off the curve", with("y", json!(base64url([1; 32])))),
        (
            "the point at infinity",
            json!({"kty": "EC", "crv": "P-256", "x": base64url([0; 32]), "y": base64url([0; 32])}),
        ),
        ("past the field", with("x", json!(base64url([0xff; 32])))),
        ("a short coordinate", with("x", json!("AAAA"))),
        ("a long coordinate", with("x", json!(base64url([1; 64])))),
        ("another curve", with("crv", json!("P-384"))),
        ("secp256k1", Key::new("ES256K").jwk),
        ("Ed25519", okp),
        ("symmetric", json!({"kty": "oct", "k": "AA"})),
        ("RSA", Key::new("PS256").jwk),
        ("no type", with("kty", Value::Null)),
        ("a number", with("x", json!(1))),
        ("empty", json!({})),
        ("a list", json!([good])),
        ("text", json!("x")),
        ("null", Value::Null),
    ];
    for (name, jwk) in bad {
        let text = jwk.to_string();
        let field = certified.bearer().field("X-Node-Enc-Jwk", base64url(&text));
        let answer = world.send_from("127.0.0.1", alice, &field).await;
        table.row(&format!("field, {name}"), is(answer, unusable));
        let mut sealed = node.clone();
        sealed.enc_jwk = Some(jwk);
        table.row(
            &format!("claim, {name}"),
            is(world.send(&sealed.request(&nonce)).await, unusable),
        );
    }
    let doubled = super::support::proof::doubled(&good.to_string(), "\"kty\":\"EC\"");
    for (name, value) in [
        ("no base64", "!".to_owned()),
        ("JSON as it is", good.to_string()),
        ("padded", format!("{}=", base64url(good.to_string()))),
        ("cut", base64url(&good.to_string()[..20])),
        ("doubled", base64url(doubled)),
        ("empty", String::new()),
        ("long", "a".repeat(2000)),
    ] {
        let request = certified.bearer().field("X-Node-Enc-Jwk", value);
        let answer = world.send_from("127.0.0.1", alice, &request).await;
        table.row(&format!("field, {name}"), is(answer, unusable));
    }
    let field = |times: usize| {
        let value = base64url(good.to_string());
        (0..times).fold(certified.bearer(), |it, _| it.field("X-Node-Enc-Jwk", &value))
    };
    let answer = world.send_from("127.0.0.1", alice, &field(2)).await;
    table.row("field, twice", is(answer, unusable));
    // None of these was a first capsule.
    for id in ["node-1", "node-2"] {
        let record = world.node(id);
        table.row(id, expect_eq("granted", &record["counters"]["granted"], &json!(0)));
        table.row(id, expect_eq("bound", &record["fingerprint"], &Value::Null));
    }
    let answer = world.send_from("127.0.0.1", alice, &field(1)).await.expect("an answer");
    let sealed = answer.json()["sealedKey"].is_string();
    table.row("ok/field", expect_eq(&told(&answer), &sealed, &true));
    // Nobody signed the field of a request that is proved by its proof: it seals to nobody, and who
    // asked for a sealed key gets none that is not.
    let beside = node.request(&nonce).field("X-Node-Enc-Jwk", base64url(good.to_string()));
    let answer = world.send(&beside).await.expect("an answer");
    let refused = "400 SEAL_REQUIRED";
    table.row("fail/beside a proof", expect_eq("answer", &told(&answer).as_str(), &refused));
}

#[tokio::test(flavor = "multi_thread")]
async fn key_versions_that_are_none() {
    let world = world(|_| {}).await;
    let node = world.enrol("node-1", &[]);
    let mut table = Table::default();
    table.row("ok/before", lives(&world, &node).await);
    let nonce = world.node_nonce(&node).await;
    let long = format!("m1.n1@{}", "v".repeat(65));
    for version in [
        "",
        "m1",
        "m1.n",
        "n1.m1",
        "m0.n1",
        "m1.n0",
        "m01.n1",
        "m1.n01",
        "m-1.n1",
        "m+1.n1",
        "m1.n2",
        "m2.n1",
        "m4294967296.n1",
        "m1.n4294967296",
        "m99999999999999999999.n1",
        "M1.N1",
        "m1.n1@",
        "m1.n1%00",
        "m1.n1%40%00",
        "m1.n1@a/b",
        "m1.n1@a%2Fb",
        "m1.n1@1@2",
        "%6d1.n1",
        "m1.n1%2540x",
        "m1.n1@%20",
        "m1.n1,m1.n1",
        "m1.n1&keyVersion=m1.n1",
        "null",
        "*",
        &long,
    ] {
        let mut asking = node.clone();
        asking.query = format!("?keyVersion={version}");
        let answer = world.send(&asking.request(&nonce)).await;
        table.row(version, is(answer, "400 KEY_VERSION_UNAVAILABLE"));
    }
    let mut asking = node.clone();
    asking.query = "?keyVersion=m1.n1%401.2.3&x=%zz".to_owned();
    let answer = world.send(&asking.request(&nonce)).await;
    table.row("ok/a version and nonsense", is(answer, "200 risk 0"));
    table.row("ok/after", lives(&world, &node).await);
}

/// Sends telemetry with a body of any form: `fields` announce it, `parts` are written with a pause
/// before each but the first.
async fn post(world: &World, node: &Node, fields: &[(&str, &str)], parts: &[&[u8]]) -> Outcome {
    let nonce = world.node_nonce(node).await;
    let mut request = node.telemetry(&nonce, &json!({})).without("Content-Length");
    request.body = Vec::new();
    for (name, value) in fields {
        request = request.field(name, *value);
    }
    let mut connection = world.client.connect(None).await?;
    connection.write(&request.bytes()).await?;
    for (number, part) in parts.iter().enumerate() {
        if number > 0 {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        // The edge may have said what it has to say.
        let _ = connection.write(part).await;
    }
    connection.answer(false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn telemetry_comes_in_every_form() {
    let world = world(|config| config["edge"]["listeners"][0]["bodyTimeout"] = json!("6s")).await;
    let node = world.enrol("node-1", &[]);
    let mut table = Table::default();
    table.row("ok/before", lives(&world, &node).await);
    let report = |seq: u64| {
        json!({"bootId": "boot-1", "seq": seq, "state": "running", "version": "1.2.3"}).to_string()
    };
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let (first, second, third) = (report(1), report(2), report(3));
    let length = |text: &str| text.len().to_string();
    let chunked = [("Transfer-Encoding", "chunked")];
    let invalid = "400 TELEMETRY_INVALID";
    let whole = format!("{}0\r\n\r\n", chunk(&first));
    table.row("ok/chunked", is(post(&world, &node, &chunked, &[whole.as_bytes()]).await, "204 "));
    // A byte at a time, each in a chunk of its own.
    let crumbs: String = second.chars().map(|one| chunk(&one.to_string())).collect();
    let crumbs = format!("{crumbs}0\r\nX-Trailer: x\r\n\r\n");
    table.row("ok/crumbs", is(post(&world, &node, &chunked, &[crumbs.as_bytes()]).await, "204 "));
    let (left, right) = third.split_at(10);
    let slow = [("Content-Length", length(&third))];
    let slow = slow.each_ref().map(|(name, value)| (*name, value.as_str()));
    let halves = [left.as_bytes(), right.as_bytes()];
    table.row("ok/slow", is(post(&world, &node, &slow, &halves).await, "204 "));
    let padded = format!("{}{}", " ".repeat(5000), report(4));
    for (name, fields, body, expect) in [
        ("fail/absent", vec![], String::new(), invalid),
        ("fail/empty", vec![("Content-Length", "0".to_owned())], String::new(), invalid),
        ("fail/large", vec![("Content-Length", length(&padded))], padded.clone(), invalid),
        (
            "fail/large, chunked",
            vec![("Transfer-Encoding", "chunked".to_owned())],
            format!("{}0\r\n\r\n", chunk(&padded)),
            invalid,
        ),
        (
            "fail/no JSON",
            vec![("Content-Length", "4".to_owned())],
            "\u{0}\u{1}{{".to_owned(),
            invalid,
        ),
        ("fail/deep", vec![("Content-Length", "4000".to_owned())], "[".repeat(4000), invalid),
    ] {
        let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        table.row(name, is(post(&world, &node, &fields, &[body.as_bytes()]).await, expect));
    }
    for (name, body) in [
        ("fail/seq negative", r#"{"bootId":"boot-1","seq":-1,"state":"running"}"#),
        ("fail/seq fraction", r#"{"bootId":"boot-1","seq":1.5,"state":"running"}"#),
        ("fail/seq huge", r#"{"bootId":"boot-1","seq":18446744073709551616,"state":"running"}"#),
        ("fail/seq text", r#"{"bootId":"boot-1","seq":"9","state":"running"}"#),
        ("fail/state", r#"{"bootId":"boot-1","seq":9,"state":"STOPPING"}"#),
        ("fail/boot", r#"{"bootId":"boot 1","seq":9,"state":"running"}"#),
        ("fail/doubled", r#"{"bootId":"boot-1","seq":9,"seq":10,"state":"running"}"#),
        ("fail/more", r#"{"bootId":"boot-1","seq":9,"state":"running"}x"#),
    ] {
        let fields = [("Content-Length", body.len().to_string())];
        let fields = fields.each_ref().map(|(name, value)| (*name, value.as_str()));
        table.row(name, is(post(&world, &node, &fields, &[body.as_bytes()]).await, invalid));
    }
    // A body that never comes.
    let stalled = post(&world, &node, &[("Content-Length", "100")], &[b"{"]).await;
    table.row("fail/stalled", refused(&stalled, &[408]));
    let cache = stalled.as_ref().ok().and_then(|answer| answer.one("cache-control"));
    table.row("fail/stalled", expect_eq("cache", &cache, &Some("no-store")));
    let stalled = post(&world, &node, &chunked, &[b"64\r\n{"]).await;
    table.row("fail/stalled, chunked", refused(&stalled, &[408]));
    // Ten megabytes, of which the edge need not read all.
    let large = vec![b' '; 10 << 20];
    let long = [("Content-Length", "10485760")];
    match post(&world, &node, &long, &[&large]).await {
        Ok(answer) => table.row("fail/10 MB", is(Ok(answer), invalid)),
        Err(fault) => table.row("fail/10 MB", expect_eq("hangs", &fault.contains("30 s"), &false)),
    }
    let heard = world.node("node-1")["heard"].clone();
    table.row("heard", expect_eq("seq", &heard["seq"], &json!(3)));
    table.row("ok/after", lives(&world, &node).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn telemetry_waits_to_be_asked_for_its_body() {
    let world = world(|_| {}).await;
    let node = world.enrol("node-1", &[]);
    let mut table = Table::default();
    table.row("ok/before", lives(&world, &node).await);
    let nonce = world.node_nonce(&node).await;
    let body = json!({"bootId": "boot-1", "seq": 1, "state": "running"});
    let mut request = node.telemetry(&nonce, &body).field("Expect", "100-continue");
    let bytes = std::mem::take(&mut request.body);
    let mut connection = world.client.connect(None).await.expect("a connection");
    connection.write(&request.bytes()).await.expect("a write");
    let interim = connection.until(b"\r\n\r\n").await.expect("an interim answer");
    let interim = Message::parse(&interim);
    table.row("ok/expect", expect_eq("status", &interim.status(), &100));
    connection.write(&bytes).await.expect("a write");
    table.row("ok/expect", is(connection.answer(false).await, "204 "));
    table.row("ok/after", lives(&world, &node).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_where_none_belongs_is_no_request() {
    let world = world(|_| {}).await;
    let node = world.enrol("node-1", &[]);
    let mut table = Table::default();
    table.row("ok/before", lives(&world, &node).await);
    let nonce = world.node_nonce(&node).await;
    let hidden = "GET /public/hidden HTTP/1.1\r\nHost: api.example\r\n\r\n";
    let chunk = format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len());
    for method in ["GET", "POST"] {
        for (field, value, body) in [
            ("Content-Length", hidden.len().to_string(), hidden),
            ("Transfer-Encoding", "chunked".to_owned(), chunk.as_str()),
        ] {
            let path = node.target();
            let proof = node.proof(method, &path, &nonce).sign();
            let mut request = node.bare().field(field, value);
            request.method = method.to_owned();
            let request = request
                .field("Authorization", format!("DPoP {}", node.secret))
                .field("DPoP", proof);
            let bytes = [request.bytes(), body.as_bytes().to_vec()].concat();
            let mut connection = world.client.connect(None).await.expect("a connection");
            let name = format!("{method} {field}");
            table.row(&name, is(connection.send(&bytes).await, "200 risk 0"));
            // Either the connection ends, or what comes next is the answer to what is asked next.
            let next = Request::new("GET", "/public/next").field("Connection", "close");
            if let Ok(answer) = connection.send(&next.bytes()).await {
                let target = answer.seen().start;
                table.row(&name, expect_eq("next", &target.as_str(), &"GET /public/next HTTP/1.1"));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_is_the_same() {
    let world = world(|_| {}).await;
    let node = world.enrol("node-1", &[]);
    let mut table = Table::default();
    let connection = world.client.connect_h2(None).await.expect("h2");
    let challenged = connection.send(&node.request("x")).await.expect("an answer");
    table.row("fail/nonce", is(Ok(challenged.clone()), "401 PROOF_NONCE_REQUIRED"));
    let nonce = challenged.one("dpop-nonce").expect("a nonce").to_owned();
    table.row("ok/capsule", is(connection.send(&node.request(&nonce)).await, "200 risk 0"));
    let report = json!({"bootId": "boot-1", "seq": 1, "state": "running"});
    let answer = connection.send(&node.telemetry(&nonce, &report)).await;
    table.row("ok/telemetry", is(answer, "204 "));
    let with_body = node.request(&nonce).field("Content-Type", "text/plain");
    let with_body = Request { body: b"a body".to_vec(), ..with_body };
    table.row("ok/a body", is(connection.send(&with_body).await, "200 risk 0"));
    let large = Request { body: vec![b' '; 20_000], ..node.telemetry(&nonce, &report) };
    let large = large.without("Content-Length");
    table.row("fail/large", is(connection.send(&large).await, "400 TELEMETRY_INVALID"));
    for method in ["PUT", "DELETE", "TRACE", "BREW"] {
        let request = Request { method: method.to_owned(), ..node.bearer() };
        let answer = connection.send(&request).await.expect("an answer");
        table.row(method, expect_eq("status", &answer.status(), &405));
        table.row(method, expect_eq("cache", &answer.one("cache-control"), &Some("no-store")));
    }
    let two = node.request(&nonce).field("Authorization", format!("Bearer {}", node.secret));
    table.row("fail/two", is(connection.send(&two).await, "401 AUTHENTICATION_FAILED"));
    let elsewhere = connection.send(&node.request(&nonce).host("evil.example")).await;
    table.row("fail/host", refused(&elsewhere, &[404, 421]));
    let alice = world.client.connect_h2(Some(&world.pki.alice)).await.expect("h2");
    let certified = world.enrol("node-2", &[]);
    table.row("ok/mtls", is(alice.send(&certified.bearer()).await, "200 risk 0"));
    let taken = connection.send(&certified.bearer()).await;
    table.row("fail/mtls", is(taken, "401 SENDER_MISMATCH"));
}
