//! What is refused before anyone looks at a token: sizes, shapes, and HTTP that two parties could
//! read in two ways.

use serde_json::json;

use super::support::Table;
use super::support::client::Request;
use super::support::world::{Expect, World, bearer, expect_eq, get};

use Expect::{Admitted, Public, Refused, Rejected};

#[tokio::test(flavor = "multi_thread")]
async fn sizes() {
    let world = World::start_with(|config| {
        config["edge"]["limits"] = json!({
            "headBytes": 16384, "headFields": 40, "authorizationBytes": 2048, "proofBytes": 2048,
        });
    })
    .await;
    let open = || Request::new("GET", "/public/1");
    let fields = |count: usize| {
        (0..count).fold(open(), |request, index| request.field(&format!("X-Field-{index}"), "x"))
    };
    let long = |bytes: usize| open().field("X-Long", "x".repeat(bytes));
    let too_large = Refused("head_too_large");
    let mut table = Table::default();
    for (name, request, expect) in [
        ("ok/30 fields", fields(30), Public),
        ("fail/41 fields", fields(40), too_large),
        ("fail/300 fields", fields(299), Rejected),
        ("ok/8 KiB", long(8 << 10), Public),
        ("fail/17 KiB", long(17 << 10), too_large),
        ("fail/2 MiB", long(2 << 20), Rejected),
        (
            "fail/a long target",
            Request::new("GET", &format!("/public/{}", "x".repeat(17 << 10))),
            too_large,
        ),
        (
            "fail/a long token",
            bearer("/orders/1", &"x".repeat(3000)),
            Refused("authorization_malformed"),
        ),
    ] {
        let answer = world.send(&request).await;
        table.row(name, world.judge(answer, expect).await);
    }
    let answer = world.client.connect_h2(None).await.expect("h2").send(&fields(41)).await;
    table.row("fail/h2, 42 fields", world.judge(answer, too_large).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_as_presented() {
    let world = World::start().await;
    let token = world.bound();
    let nonce = world.nonce().await;
    let good = || {
        let proof = world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
        get("/orders/1", &token, &proof)
    };
    let with = |value: String| good().without("Authorization").field("Authorization", value);
    let query = |query: &str| {
        let mut request = good();
        request.target = format!("/orders/1?{query}");
        request
    };
    let malformed = Refused("authorization_malformed");
    let repeated = Refused("authorization_repeated");
    let in_query = Refused("token_in_query");
    let mut table = Table::default();
    for (name, request, expect) in [
        ("ok/scheme in lower case", with(format!("dpop {token}")), Admitted("dpop")),
        ("ok/scheme in capitals", with(format!("DPOP {token}")), Admitted("dpop")),
        (
            "ok/field in lower case",
            good().without("DPoP").field("dpop", {
                world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign()
            }),
            Admitted("dpop"),
        ),
        ("fail/none", good().without("Authorization"), Refused("token_missing")),
        ("fail/Basic", with("Basic eDp5".to_owned()), Refused("token_missing")),
        ("fail/scheme alone", with("DPoP".to_owned()), malformed),
        ("fail/no scheme", with(token.clone()), Rejected),
        ("fail/two tokens", with(format!("DPoP {token} {token}")), malformed),
        ("fail/a list", with(format!("DPoP {token}, Bearer {token}")), malformed),
        ("fail/quoted", with(format!("DPoP \"{token}\"")), malformed),
        ("fail/parameters", with(format!("DPoP token={token}, x=y")), malformed),
        ("fail/two fields", good().field("Authorization", format!("Bearer {token}")), repeated),
        ("fail/two equal fields", good().field("authorization", format!("DPoP {token}")), repeated),
        ("fail/and Basic beside", good().field("Authorization", "Basic eDp5"), repeated),
        ("ok/another parameter", query("access_tokens=1&a=access_token"), Admitted("dpop")),
        ("fail/in the query", query("access_token=x"), in_query),
        ("fail/in the query, empty", query("a=1&access_token"), in_query),
        ("fail/in the query, escaped", query("access%5Ftoken=x"), in_query),
        (
            "fail/in the query alone",
            query(&format!("access_token={token}")).without("Authorization"),
            in_query,
        ),
    ] {
        let answer = world.send(&request).await;
        table.row(name, world.judge(answer, expect).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_that_can_be_read_in_two_ways() {
    let world = World::start().await;
    let mut table = Table::default();
    let hidden = "GET /orders/hidden HTTP/1.1\r\nHost: api.example\r\n\r\n";
    let post = "POST /public/1 HTTP/1.1\r\nHost: api.example\r\n";
    for (name, bytes) in [
        (
            "fail/two lengths",
            format!("{post}Content-Length: 0\r\nContent-Length: {}\r\n\r\n{hidden}", hidden.len()),
        ),
        ("fail/a length with a sign", format!("{post}Content-Length: +0\r\n\r\n{hidden}")),
        ("fail/a length that is none", format!("{post}Content-Length: x\r\n\r\n{hidden}")),
        (
            "fail/chunked that is not last",
            format!("{post}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{hidden}"),
        ),
        (
            "fail/another coding",
            format!("{post}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{hidden}"),
        ),
        ("fail/a space before the colon", format!("{post}Content-Length : 0\r\n\r\n{hidden}")),
        ("fail/a folded line", format!("{post}X-A: b\r\n Content-Length: 9\r\n\r\n{hidden}")),
        ("fail/a NUL", format!("{post}X-A: b\0c\r\n\r\n")),
        ("fail/a bare CR", format!("{post}X-A: b\rX-B: c\r\n\r\n")),
        ("fail/no version", "GET /public/1\r\nHost: api.example\r\n\r\n".to_owned()),
        ("fail/version 3", "GET /public/1 HTTP/3.0\r\nHost: api.example\r\n\r\n".to_owned()),
        ("fail/no HTTP", "\x16\x03\x01 nonsense\r\n\r\n".to_owned()),
    ] {
        let answer = world.client.send_bytes(None, bytes.as_bytes()).await;
        table.row(name, world.judge(answer, Rejected).await);
    }
    table.row("upstream", expect_eq("requests", &world.upstream.count(), &0));
    // RFC 9112 section 6.3: chunked decides, the length does not go on, and the connection ends.
    for lengths in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
    ] {
        let mut connection = world.client.connect(None).await.expect("a connection");
        let bytes = format!("{post}{lengths}\r\n\r\n0\r\n\r\n{hidden}");
        let answer = connection.send(bytes.as_bytes()).await;
        if let Ok(answer) = &answer
            && answer.status() == 200
        {
            let seen = answer.seen();
            table.row(lengths, expect_eq("lengths", &seen.all("content-length").len(), &0));
            table.row(lengths, expect_eq("closed", &connection.is_closed().await, &true));
        } else {
            table.row(lengths, world.judge(answer, Rejected).await);
        }
    }
    let answer = world.send(&Request::new("GET", "/public/1")).await;
    table.row("ok/after all that", world.judge(answer, Public).await);
}
