//! RFC 9449 section 4.3: each numbered check alone broken.

use serde_json::json;

use super::support::keys::{Key, hs256};
use super::support::proof::{Proof, compact, doubled, parts};
use super::support::world::{Expect, World, expect_eq, get};
use super::support::{Table, base64url, digest, now};

use Expect::{Admitted, Refused};

/// A good proof in, what is sent as `DPoP` out.
type Bend = fn(Proof) -> String;

/// Sends each row's proof with a fresh nonce and a token bound to its key.
async fn check(world: &World, rows: &[(&str, Bend, Expect)]) {
    let token = world.bound();
    let nonce = world.nonce().await;
    let before = world.upstream.count();
    let mut table = Table::default();
    for (name, bend, expect) in rows {
        let good = world.proof("GET", "/orders/1").token(&token).nonce(&nonce);
        let answer = world.send(&get("/orders/1", &token, &bend(good))).await;
        table.row(name, world.judge(answer, *expect).await);
    }
    let admitted = rows.iter().filter(|(.., expect)| matches!(expect, Admitted(_))).count();
    table.row("upstream", expect_eq("requests", &(world.upstream.count() - before), &admitted));
}

/// Rows that set one claim to a value of the wrong type or take it away.
fn claim_rows() -> Vec<(&'static str, Bend, Expect)> {
    vec![
        ("fail/3 no jti", |p| p.without("jti").sign(), Refused("proof_claim_jti")),
        ("fail/3 jti empty", |p| p.claim("jti", "").sign(), Refused("proof_claim_jti")),
        ("fail/3 jti number", |p| p.claim("jti", 1).sign(), Refused("proof_claim_jti")),
        ("fail/3 jti null", |p| p.claim("jti", json!(null)).sign(), Refused("proof_claim_jti")),
        ("fail/3 jti list", |p| p.claim("jti", json!(["a"])).sign(), Refused("proof_claim_jti")),
        ("fail/3 jti 257", |p| p.claim("jti", "j".repeat(257)).sign(), Refused("proof_claim_jti")),
        ("ok/3 jti 256", |p| p.claim("jti", "j".repeat(256)).sign(), Admitted("dpop")),
        ("ok/3 jti of any text", |p| p.claim("jti", "é\u{0}\"☃").sign(), Admitted("dpop")),
        ("fail/3 no htm", |p| p.without("htm").sign(), Refused("proof_claim_htm")),
        ("fail/3 htm list", |p| p.claim("htm", json!(["GET"])).sign(), Refused("proof_claim_htm")),
        ("fail/3 htm null", |p| p.claim("htm", json!(null)).sign(), Refused("proof_claim_htm")),
        ("fail/3 no htu", |p| p.without("htu").sign(), Refused("proof_claim_htu")),
        ("fail/3 htu number", |p| p.claim("htu", 7).sign(), Refused("proof_claim_htu")),
        ("fail/3 htu object", |p| p.claim("htu", json!({})).sign(), Refused("proof_claim_htu")),
        ("fail/3 no iat", |p| p.without("iat").sign(), Refused("proof_claim_iat")),
        (
            "fail/3 iat text",
            |p| p.claim("iat", now().to_string()).sign(),
            Refused("proof_claim_iat"),
        ),
        ("fail/3 iat null", |p| p.claim("iat", json!(null)).sign(), Refused("proof_claim_iat")),
        ("fail/3 iat true", |p| p.claim("iat", true).sign(), Refused("proof_claim_iat")),
        ("fail/3 no ath", |p| p.without("ath").sign(), Refused("proof_claim_ath")),
        ("fail/3 ath number", |p| p.claim("ath", 1).sign(), Refused("proof_claim_ath")),
        ("fail/3 nonce number", |p| p.claim("nonce", 1).sign(), Refused("proof_claim_nonce")),
        (
            "fail/3 nonce null",
            |p| p.claim("nonce", json!(null)).sign(),
            Refused("proof_claim_nonce"),
        ),
    ]
}

fn form_rows() -> Vec<(&'static str, Bend, Expect)> {
    let malformed = Refused("proof_malformed");
    vec![
        ("ok/as it should be", |p| p.sign(), Admitted("dpop")),
        (
            "ok/more members than asked for",
            |p| p.header("kid", "k").jwk("use", "sig").jwk("kid", "k").claim("x", 1).sign(),
            Admitted("dpop"),
        ),
        (
            "ok/spaces in the JSON",
            |p| p.sign_text(&format!(" {}\n", p.header_json()), &format!("\t{} ", p.claims_json())),
            Admitted("dpop"),
        ),
        ("fail/2 no JWT", |_| "nonsense".to_owned(), malformed),
        ("fail/2 empty", |_| String::new(), malformed),
        ("fail/2 two parts", |p| p.sign().rsplit_once('.').expect("dots").0.to_owned(), malformed),
        ("fail/2 four parts", |p| format!("{}.e30", p.sign()), malformed),
        ("fail/2 five parts", |p| format!("{}.e30.e30", p.sign()), malformed),
        ("fail/2 two in one field", |p| format!("{}, {}", p.sign(), p.sign()), malformed),
        ("fail/2 a space within", |p| p.sign().replacen('.', ". ", 1), malformed),
        ("fail/2 padded signature", |p| format!("{}==", p.sign()), malformed),
        (
            "fail/2 base64 in place of base64url",
            |p| {
                let odd = p.claim("x", "\u{3ff}\u{3ff}\u{3ff}???>>>~~~");
                let jws = odd.sign();
                let other = jws.replace('-', "+").replace('_', "/");
                if other == jws { format!("{jws}+") } else { other }
            },
            malformed,
        ),
        ("fail/2 header no JSON", |p| p.sign_text("{", &p.claims_json()), malformed),
        ("fail/2 header a list", |p| p.sign_text("[]", &p.claims_json()), malformed),
        ("fail/2 claims no object", |p| p.sign_text(&p.header_json(), "1"), malformed),
        ("fail/2 claims empty", |p| p.sign_text(&p.header_json(), ""), malformed),
        (
            "fail/2 claims not UTF-8",
            |p| compact(p.header_json(), b"{\"jti\":\"\xff\"}", |input| p.key.sign(input)),
            malformed,
        ),
        (
            "fail/2 something behind the claims",
            |p| p.sign_text(&p.header_json(), &format!("{}{{}}", p.claims_json())),
            malformed,
        ),
        (
            "fail/2 jti twice",
            |p| p.sign_text(&p.header_json(), &doubled(&p.claims_json(), "\"jti\":\"b\"")),
            malformed,
        ),
        (
            "fail/2 jti twice, once escaped",
            |p| p.sign_text(&p.header_json(), &doubled(&p.claims_json(), "\"\\u006ati\":\"b\"")),
            malformed,
        ),
        (
            "fail/2 alg twice",
            |p| p.sign_text(&doubled(&p.header_json(), "\"alg\":\"none\""), &p.claims_json()),
            malformed,
        ),
        (
            "fail/2 a member of the jwk twice",
            |p| {
                let header = p.header_json().replacen("\"kty\":", "\"kty\":\"RSA\",\"kty\":", 1);
                p.sign_text(&header, &p.claims_json())
            },
            malformed,
        ),
        (
            "fail/2 nested without end",
            |p| {
                let deep = format!("{{\"x\":{}1{}}}", "[".repeat(900), "]".repeat(900));
                p.sign_text(&p.header_json(), &deep)
            },
            malformed,
        ),
        ("fail/2 crit", |p| p.header("crit", json!(["exp"])).sign(), Refused("proof_crit")),
        ("fail/2 crit empty", |p| p.header("crit", json!([])).sign(), Refused("proof_crit")),
        (
            "fail/2 b64 false",
            |p| p.header("b64", false).header("crit", json!(["b64"])).sign(),
            Refused("proof_crit"),
        ),
        ("fail/4 no typ", |p| p.without_header("typ").sign(), Refused("proof_typ")),
        ("fail/4 typ JWT", |p| p.header("typ", "JWT").sign(), Refused("proof_typ")),
        ("fail/4 typ at+jwt", |p| p.header("typ", "at+jwt").sign(), Refused("proof_typ")),
        ("fail/4 typ list", |p| p.header("typ", json!(["dpop+jwt"])).sign(), Refused("proof_typ")),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn form_and_claims() {
    let world = World::start().await;
    let rows: Vec<_> = form_rows().into_iter().chain(claim_rows()).collect();
    check(&world, &rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values() {
    let world = World::start().await;
    let rows: &[(&str, Bend, Expect)] = &[
        ("fail/8 another method", |p| p.claim("htm", "POST").sign(), Refused("proof_htm")),
        ("fail/8 lower case", |p| p.claim("htm", "get").sign(), Refused("proof_htm")),
        ("fail/8 a space", |p| p.claim("htm", "GET ").sign(), Refused("proof_htm")),
        (
            "fail/9 another path",
            |p| p.claim("htu", "https://api.example/orders/2").sign(),
            Refused("proof_htu"),
        ),
        ("fail/10 none", |p| p.without("nonce").sign(), Refused("nonce_absent")),
        ("fail/10 not ours", |p| p.claim("nonce", "abc").sign(), Refused("nonce_unknown")),
        ("fail/10 empty", |p| p.claim("nonce", "").sign(), Refused("nonce_unknown")),
        ("fail/10 long", |p| p.claim("nonce", "A".repeat(2000)).sign(), Refused("nonce_unknown")),
        (
            "fail/10 one character other",
            |p| {
                let nonce = p.claims["nonce"].as_str().expect("a nonce").to_owned();
                let first = if nonce.starts_with('A') { "B" } else { "A" };
                let other = format!("{first}{}", nonce.get(1..).expect("ASCII"));
                p.claim("nonce", other).sign()
            },
            Refused("nonce_unknown"),
        ),
        (
            "fail/10 one character more",
            |p| {
                let nonce = p.claims["nonce"].as_str().expect("a nonce").to_owned();
                p.claim("nonce", nonce + "A").sign()
            },
            Refused("nonce_unknown"),
        ),
        ("ok/11 old within bounds", |p| p.claim("iat", now() - 140).sign(), Admitted("dpop")),
        ("fail/11 too old", |p| p.claim("iat", now() - 160).sign(), Refused("proof_iat_old")),
        ("fail/11 before time", |p| p.claim("iat", -5).sign(), Refused("proof_iat_old")),
        (
            "fail/11 beginning of time",
            |p| p.claim("iat", i64::MIN).sign(),
            Refused("proof_iat_old"),
        ),
        ("ok/11 ahead within bounds", |p| p.claim("iat", now() + 20).sign(), Admitted("dpop")),
        ("fail/11 ahead", |p| p.claim("iat", now() + 60).sign(), Refused("proof_iat_ahead")),
        (
            "fail/11 milliseconds",
            |p| p.claim("iat", now() * 1000).sign(),
            Refused("proof_iat_ahead"),
        ),
        ("fail/11 end of time", |p| p.claim("iat", u64::MAX).sign(), Refused("proof_iat_ahead")),
        ("fail/12a of another token", |p| p.claim("ath", digest("x")).sign(), Refused("proof_ath")),
        (
            "fail/12a padded",
            |p| {
                let ath = p.claims["ath"].as_str().expect("an ath").to_owned() + "=";
                p.claim("ath", ath).sign()
            },
            Refused("proof_ath"),
        ),
        ("fail/12a cut short", |p| p.claim("ath", base64url([0; 16])).sign(), Refused("proof_ath")),
        ("fail/12b another key", other_key, Refused("key_mismatch")),
        (
            "fail/other faults come before a missing nonce: ath",
            |p| p.without("nonce").claim("ath", digest("x")).sign(),
            Refused("proof_ath"),
        ),
        (
            "fail/other faults come before a missing nonce: iat",
            |p| p.without("nonce").claim("iat", now() - 1000).sign(),
            Refused("proof_iat_old"),
        ),
        (
            "fail/other faults come before a missing nonce: htu",
            |p| p.without("nonce").claim("htu", "https://api.example/").sign(),
            Refused("proof_htu"),
        ),
    ];
    check(&world, rows).await;
}

/// The same claims by a key that the token is not bound to.
fn other_key(mut proof: Proof) -> String {
    proof.key = Key::new("ES256");
    let jwk = proof.key.jwk.clone();
    proof.header("jwk", jwk).sign()
}

/// The proof by a fresh key of `algorithm`.
fn by(mut proof: Proof, key: Key) -> Proof {
    let (jwk, algorithm) = (key.jwk.clone(), key.algorithm);
    proof.key = key;
    proof.header("jwk", jwk).header("alg", algorithm)
}

#[tokio::test(flavor = "multi_thread")]
async fn keys() {
    let world = World::start().await;
    let no_key = Refused("proof_jwk");
    let private = Refused("proof_private_key");
    let rows: &[(&str, Bend, Expect)] = &[
        ("fail/5 no jwk", |p| p.without_header("jwk").sign(), no_key),
        ("fail/5 jwk null", |p| p.header("jwk", json!(null)).sign(), no_key),
        ("fail/5 jwk text", |p| p.header("jwk", "key").sign(), no_key),
        ("fail/5 jwk list", |p| p.header("jwk", json!([])).sign(), no_key),
        ("fail/5 jwk empty", |p| p.header("jwk", json!({})).sign(), no_key),
        ("fail/5 no kty", |p| p.jwk("kty", json!(null)).sign(), no_key),
        ("fail/5 no crv", |p| p.jwk("crv", json!(null)).sign(), no_key),
        ("fail/5 no y", |p| p.jwk("y", json!(null)).sign(), no_key),
        ("fail/5 x number", |p| p.jwk("x", 1).sign(), no_key),
        ("fail/5 x short", |p| p.jwk("x", base64url([1; 31])).sign(), no_key),
        ("fail/5 x long", |p| p.jwk("x", base64url([0; 33])).sign(), no_key),
        ("fail/5 off the curve", |p| p.jwk("y", base64url([1; 32])).sign(), no_key),
        (
            "fail/5 the point at infinity",
            |p| p.jwk("x", base64url([0; 32])).jwk("y", base64url([0; 32])).sign(),
            no_key,
        ),
        (
            "fail/5 on another curve",
            |p| {
                let alg = p.header["alg"].clone();
                by(p, Key::new("ES256K")).header("alg", alg).sign()
            },
            no_key,
        ),
        ("fail/5 RSA 1024", |p| by(p, Key::rsa("PS256", 1024)).sign(), no_key),
        ("fail/5 RSA 2040", |p| by(p, Key::rsa("PS256", 2040)).sign(), no_key),
        ("fail/5 RSA e = 1", |p| by(p, Key::new("PS256")).jwk("e", "AQ").sign(), no_key),
        ("fail/5 RSA e even", |p| by(p, Key::new("PS256")).jwk("e", "Ag").sign(), no_key),
        (
            "fail/5 RSA 16384",
            |p| by(p, Key::new("PS256")).jwk("n", base64url([0xff; 2048])).sign(),
            no_key,
        ),
        ("fail/5 Ed25519 short", |p| by(p, Key::new("EdDSA")).jwk("x", "AAAA").sign(), no_key),
        ("fail/5 X25519", |p| by(p, Key::new("EdDSA")).jwk("crv", "X25519").sign(), no_key),
        ("fail/7 d", with_private_member, private),
        ("fail/7 p", |p| p.jwk("p", "AQAB").sign(), private),
        ("fail/7 q", |p| p.jwk("q", "AQAB").sign(), private),
        ("fail/7 dp", |p| p.jwk("dp", "AQAB").sign(), private),
        ("fail/7 dq", |p| p.jwk("dq", "AQAB").sign(), private),
        ("fail/7 qi", |p| p.jwk("qi", "AQAB").sign(), private),
        ("fail/7 oth", |p| p.jwk("oth", json!([])).sign(), private),
        ("fail/7 k", |p| p.jwk("k", "AQAB").sign(), private),
        ("fail/7 d empty", |p| p.jwk("d", "").sign(), private),
    ];
    check(&world, rows).await;
}

fn with_private_member(proof: Proof) -> String {
    let d = proof.key.private_member();
    proof.jwk("d", d).sign()
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures() {
    let world = World::start().await;
    let algorithm = Refused("proof_alg");
    let signature = Refused("proof_signature");
    let rows: &[(&str, Bend, Expect)] = &[
        ("fail/5 no alg", |p| p.without_header("alg").sign(), algorithm),
        ("fail/5 alg number", |p| p.header("alg", 1).sign(), algorithm),
        ("fail/5 alg in lower case", |p| p.header("alg", "es256").sign(), algorithm),
        ("fail/5 alg unknown", |p| p.header("alg", "ES257").sign(), algorithm),
        ("fail/5 ES256K", |p| p.header("alg", "ES256K").sign(), algorithm),
        ("fail/5 not the key's", |p| p.header("alg", "ES384").sign(), algorithm),
        ("fail/5 another key type's", |p| p.header("alg", "PS256").sign(), algorithm),
        ("fail/5 not on the list", |p| by(p, Key::new("RS256")).sign(), algorithm),
        (
            "fail/5 none",
            |p| {
                let p = p.header("alg", "none");
                compact(p.header_json(), p.claims_json(), |_| vec![0])
            },
            algorithm,
        ),
        (
            "fail/2 none, unsigned",
            |p| {
                let p = p.header("alg", "none");
                compact(p.header_json(), p.claims_json(), |_| Vec::new())
            },
            Refused("proof_malformed"),
        ),
        (
            "fail/5 HS256 with the public key",
            |p| {
                let p = p.header("alg", "HS256");
                compact(p.header_json(), p.claims_json(), |input| hs256(&p.key.public_pem(), input))
            },
            algorithm,
        ),
        (
            "fail/2 unsigned",
            |p| compact(p.header_json(), p.claims_json(), |_| Vec::new()),
            Refused("proof_malformed"),
        ),
        ("fail/6 zeros", |p| compact(p.header_json(), p.claims_json(), |_| vec![0; 64]), signature),
        (
            "fail/6 by another key",
            |p| compact(p.header_json(), p.claims_json(), |input| Key::new("ES256").sign(input)),
            signature,
        ),
        (
            "fail/6 one bit other",
            |p| {
                compact(p.header_json(), p.claims_json(), |input| {
                    let mut signature = p.key.sign(input);
                    signature[40] ^= 1;
                    signature
                })
            },
            signature,
        ),
        (
            "fail/6 cut short",
            |p| {
                compact(p.header_json(), p.claims_json(), |input| {
                    p.key.sign(input).into_iter().take(63).collect()
                })
            },
            signature,
        ),
        (
            "fail/6 in DER",
            |p| compact(p.header_json(), p.claims_json(), |input| p.key.der(&p.key.sign(input))),
            signature,
        ),
        (
            "fail/6 other claims",
            |p| {
                let (jws, other) = (p.sign(), p.clone().claim("x", 1).sign());
                format!("{}.{}.{}", parts(&jws)[0], parts(&other)[1], parts(&jws)[2])
            },
            signature,
        ),
        (
            "fail/6 another header",
            |p| {
                let (jws, other) = (p.sign(), p.clone().header("x", 1).sign());
                format!("{}.{}.{}", parts(&other)[0], parts(&jws)[1], parts(&jws)[2])
            },
            signature,
        ),
    ];
    check(&world, rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn how_many_and_how_long() {
    let world = World::start_with(|config| {
        config["edge"]["limits"] = json!({"proofBytes": 2000});
    })
    .await;
    let token = world.bound();
    let nonce = world.nonce().await;
    let proof = || world.proof("GET", "/orders/1").token(&token).nonce(&nonce);
    let once = get("/orders/1", &token, &proof().sign());
    let long = proof().claim("x", "x".repeat(2000)).sign();
    let none = once.clone().without("DPoP");
    let mut table = Table::default();
    for (name, request, expect) in [
        ("ok/one", once.clone(), Admitted("dpop")),
        ("fail/none", none.clone(), Refused("proof_missing")),
        (
            "fail/1 two",
            once.clone()
                .without("DPoP")
                .field("DPoP", proof().sign())
                .field("dpop", proof().sign()),
            Refused("proof_repeated"),
        ),
        ("fail/1 the same twice", once.field("DPoP", proof().sign()), Refused("proof_repeated")),
        (
            "fail/1 an empty one beside",
            none.clone().field("DPoP", "").field("DPoP", proof().sign()),
            Refused("proof_repeated"),
        ),
        ("fail/2 too long", none.field("DPoP", long), Refused("proof_too_large")),
    ] {
        let answer = world.send(&request).await;
        table.row(name, world.judge(answer, expect).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_algorithm_that_is_allowed() {
    use super::support::token::ALGORITHMS;
    let world = World::start_with(|config| {
        config["security"]["senderConstraints"]["dpop"]["allowedAlgorithms"] = json!(ALGORITHMS);
    })
    .await;
    let nonce = world.nonce().await;
    let mut table = Table::default();
    for algorithm in ALGORITHMS {
        let key = Key::new(algorithm);
        let token = world.token().jkt(&key.jkt()).sign();
        let proof = by(world.proof("GET", "/orders/1").token(&token).nonce(&nonce), key);
        let answer = world.send(&get("/orders/1", &token, &proof.sign())).await;
        table.row(&format!("ok/{algorithm}"), world.judge(answer, Admitted("dpop")).await);
    }
}

/// A fresh nonce comes with a success when the old one is past half its time, so that a client that
/// goes on is never challenged again; one that paused is.
#[tokio::test(flavor = "multi_thread")]
async fn a_nonce_ends() {
    let world = World::start_with(|config| {
        config["security"]["senderConstraints"]["dpop"]["nonce"]["ttl"] = json!("16s");
    })
    .await;
    let token = world.bound();
    let nonce = world.nonce().await;
    let half = std::time::Duration::from_secs(9);
    let mut table = Table::default();
    let mut fresh = None;
    for (name, pause, expect, brings) in [
        ("ok/fresh", None, Admitted("dpop"), false),
        ("ok/past its half", Some(half), Admitted("dpop"), true),
        ("fail/past its end", Some(half), Refused("nonce_expired"), true),
    ] {
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
        let proof = world.proof("GET", "/orders/1").token(&token).nonce(&nonce).sign();
        let answer = world.send(&get("/orders/1", &token, &proof)).await;
        table.row(name, world.judge(answer.clone(), expect).await);
        fresh = answer.ok().and_then(|answer| answer.one("dpop-nonce").map(str::to_owned));
        table.row(name, expect_eq("brings a nonce", &fresh.is_some(), &brings));
    }
    let fresh = fresh.unwrap_or_default();
    let proof = world.proof("GET", "/orders/1").token(&token).nonce(&fresh).sign();
    let answer = world.send(&get("/orders/1", &token, &proof)).await;
    table.row("ok/the one that came instead", world.judge(answer, Admitted("dpop")).await);
}
