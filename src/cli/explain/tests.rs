//! Whole answers, as they are printed.

#![expect(clippy::disallowed_methods, reason = "commands take a file")]

use super::*;
use crate::config::tests::{SMALL, site};

/// More of everything than the small file has.
const MORE: &str = r#"  - name: health
    hosts: ["localhost:8443"]
    path: /health
    upstream: api
    cors: upstream
    role: public
  - name: reports
    hosts: ["localhost:8443"]
    path: /reports/*
    methods: [GET, POST]
    upstream: api
    origin: https://api.example.com
    require: dpop
    overrides: true
    allowUnbound: true
    audiences: [reports]
    scopes: [reports.read, reports.list]
    cors: {allowedOrigins: ["https://app.example.com"]}
    streamMaxAge: 1h
  - name: fresh
    hosts: ["localhost:8443"]
    path: /fresh
    role: freshAuth
    require: dpop
    maxAge: 5m
    acrValues: [phr, phrh]
    resourceMetadata: false
tenancy: {claim: tenant}
tenants:
  acme: {require: mtls, mode: observe, allowedAlgorithms: [ES256]}
security:
  senderConstraints:
    dpop: {nonce: {requiredAudiences: [signer]}}
    mtls: {enforceForAudiences: [signer]}
issuers:
"#;

/// What `explain` prints for `GET-or-other URL [tenant] [audience]`, and its exit status.
fn ask(config: &str, question: &str, json: bool) -> (u8, String) {
    let site = site();
    let path = site.path().join("authority.yaml");
    std::fs::write(&path, config).unwrap();
    let mut words = question.split(' ');
    let mut word = || words.next().filter(|word| *word != "-");
    let query = Query {
        config: &path,
        method: word().unwrap(),
        url: word().unwrap(),
        tenant: word(),
        audience: word(),
        client: word(),
        json,
    };
    let mut out = Vec::new();
    let status = run(&mut out, &query).unwrap();
    let out = String::from_utf8(out).unwrap();
    (status, out.replace(&path.display().to_string(), "authority.yaml"))
}

#[test]
fn a_host_with_a_tls_policy() {
    let policy = "        policies: [{name: strict, hosts: ['*.example'], clientCertificates: require, \
                  clientAuthorities: [pki/clients-ca.pem], certificates: [{certificate: pki/edge.pem, \
                  key: pki/edge.key}]}]\nupstreams:";
    let config = SMALL.replacen("upstreams:", policy, 1);
    let config = config.replace("localhost:8443", "api.example:8443");
    let (_, text) = ask(&config, "GET https://api.example:8443/orders/1", false);
    let line =
        "listener   public (127.0.0.1:8443, TLS policy strict, client certificates: require)";
    assert!(text.contains(line), "{text}");
}

#[test]
fn a_share_of_clients_and_whether_one_belongs_to_it() {
    let rule = "issuers:\n".to_owned();
    let security = "security:\n  senderConstraints: {mode: observe, enforcePercent: 50, enforceSalt: '2026'}\n";
    let config = SMALL.replace("issuers:\n", &(security.to_owned() + &rule));
    for (client, stands, observed) in
        [("mobile", "observed", true), ("client-8", "enforced", false)]
    {
        let question = format!("GET https://localhost:8443/orders/1 - - {client}");
        let (_, text) = ask(&config, &question, false);
        let from = bucket("2026", client) + 1;
        assert_eq!(from > 50, observed, "{client} {from}");
        for line in [
            "mode observe but for 50 % of clients, nonce true",
            "default       require any, mode observe, enforcePercent 50, nonce true",
            &format!("client     {client} is {stands}; enforcePercent has it from {from} on"),
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert_eq!(text.contains("goes on as received"), observed, "{text}");
    }
}

/// A question and its answer a block.
const ANSWERS: &str = include_str!("answers.txt");

#[test]
fn answers() {
    let config = SMALL.replace("issuers:\n", MORE);
    for case in ANSWERS.trim_end().split("\n\n") {
        let (question, expect) = case.split_once('\n').unwrap();
        let (status, text) = ask(&config, question, false);
        assert_eq!(format!("{text}exit {status}"), expect, "{question}");
    }
}

#[test]
fn every_demand_has_its_ways() {
    let cases = [
        ("none", "observe", "DPoP jkt false, Bearer x5t#S256 true, Bearer  false"),
        ("any", "enforce", "DPoP jkt false, Bearer x5t#S256 true"),
        ("dpop", "enforce", "DPoP jkt false"),
        ("mtls", "enforce", "Bearer x5t#S256 true"),
        ("both", "enforce", "DPoP jkt+x5t#S256 true"),
    ];
    for (demand, mode, expect) in cases {
        let unbound = demand == "none";
        let route = format!("upstream: api\n    allowUnbound: {unbound}\nsecurity:");
        let rule = format!("\n  senderConstraints: {{require: {demand}, mode: {mode}}}");
        let config = SMALL.replace("upstream: api", &(route + &rule));
        let (status, json) = ask(&config, "GET https://localhost:8443/orders", true);
        assert_eq!(status, 0, "{json}");
        let answer: serde_json::Value = serde_json::from_str(&json).unwrap();
        let ways = answer["present"].as_array().unwrap().iter().map(|way| {
            let cnf: Vec<_> = way["cnf"].as_array().unwrap().iter().map(text_of).collect();
            let certificate = way["clientCertificate"].as_bool().unwrap();
            format!("{} {} {certificate}", text_of(&way["authorization"]), cnf.join("+"))
        });
        assert_eq!(ways.collect::<Vec<_>>().join(", "), expect, "{demand}");
        assert_eq!(answer["requirement"]["require"], demand);
        assert_eq!(answer["requirement"]["mode"], mode);
    }
}

#[test]
fn opaque_tokens_have_somebody_to_ask() {
    let asked = "introspection: {url: 'https://as.example.com/i', clientId: edge, \
                 clientSecretFile: keys/introspection.secret";
    let keys = "    jwks: {file: keys/jwks.json}\n";
    for (with, expect) in [
        (format!("{keys}    {asked}}}\n"), "no JWT"),
        (format!("{keys}    {asked}, tokenPrefix: at_}}\n"), "no JWT, beginning with at_"),
        (format!("    {asked}}}\n"), "one of its JWTs or opaque"),
    ] {
        let config = SMALL.replace(keys, &with);
        let (status, text) = ask(&config, "GET https://localhost:8443/orders", false);
        let line = format!("\n           the issuer is asked about a token that is {expect}\n");
        assert!(status == 0 && text.contains(&line), "{text}");
    }
}

fn text_of(value: &serde_json::Value) -> &str {
    value.as_str().unwrap()
}

/// Routes in front of an authorization server; the edge binds.
const GRANTS: &str = r#"  - {name: token, hosts: ["localhost:8443"], path: /token, role: token, upstream: api,
     binding: retrofit, issuer: "https://as.example.com"}
  - {name: par, hosts: ["localhost:8443"], path: /par, role: par, upstream: api,
     binding: retrofit, issuer: "https://as.example.com"}
  - {name: ask, hosts: ["localhost:8443"], path: /introspect, role: introspection, upstream: api,
     issuer: "https://as.example.com", senderCertificate: caller, mismatchAnswer: inactive}
  - {name: revoke, hosts: ["localhost:8443"], path: /revoke, role: revocation, upstream: api,
     issuer: "https://as.example.com"}
tenants:
  acme: {require: mtls, bind: [mtls], clients: [acme-app]}
  lax: {clients: [lax-app]}
store: {path: store.db}
issuers:
"#;

fn grants() -> String {
    let retrofit = "    retrofit: {unknownRefresh: bind, clients: {batch: {bind: [mtls]}}}\n";
    SMALL.replace("issuers:\n", GRANTS) + retrofit
}

#[test]
fn what_a_token_will_be_bound_to() {
    let check = |config: &str, question: &str, expect: &[&str], absent: &[&str]| {
        let (status, text) = ask(config, question, false);
        assert_eq!(status, 0, "{text}");
        for part in expect {
            assert!(text.contains(part), "{question}: {part} is not in\n{text}");
        }
        for part in absent {
            assert!(!text.contains(part), "{question}: {part} is in\n{text}");
        }
    };
    let (retrofit, token) = (grants(), "POST https://localhost:8443/token");
    let [by_key, by_certificate] =
        ["proof by the key that the token is", "the client certificate that it is to be bound to"];
    let server = "server     of https://as.example.com, binding retrofit: the edge binds, nonces are \
                  the edge's\n";
    // Whose client it is nobody knows: what any tenant demands is demanded.
    let strictest = "client of no tenant  what every tenant demands, all of it\n";
    let parts = [server, strictest, by_certificate, "to who brings it first", "1 clients have"];
    check(&retrofit, token, &parts, &[by_key, "ath ", "Authorization", "iss "]);
    check(&retrofit, &format!("{token} lax"), &[by_key, by_certificate], &[strictest, "ath "]);
    check(&retrofit, &format!("{token} acme"), &[by_certificate, "require mtls"], &[by_key]);
    // Where this listener asks for no certificate, though another does.
    let tls =
        "      tls:\n        certificates: [{certificate: pki/edge.pem, key: pki/edge.key}]\n";
    let plain = format!("{tls}    - name: other\n      address: 127.0.0.1:8444\n{tls}");
    let closed = retrofit.replacen(tls, &plain, 1);
    let note = "nothing that can be shown here is enough: every request is refused";
    check(&closed, &format!("{token} acme"), &[note], &["present"]);
    let par = "POST https://localhost:8443/par lax";
    check(&retrofit, par, &["codes need PKCE with S256", by_key], &["is kept for"]);

    let introspect = "POST https://localhost:8443/introspect";
    let parts = [
        "cnf and token_type of an active token are",
        "must be the caller's, or inactive\n",
        "present    a form, with what the server asks for to know the client\n",
    ];
    check(&retrofit, introspect, &parts, &["binding", "nonce"]);
    let revoke = "POST https://localhost:8443/revoke";
    check(&retrofit, revoke, &["revokes is refused from then on"], &["binding"]);
    let resource = "GET https://localhost:8443/orders/1 lax";
    check(&retrofit, resource, &["bound by the edge; one without a record is refused"], &[]);
}

#[test]
fn whose_nonces_a_server_that_binds_goes_by() {
    let native =
        grants().replace("retrofit: {", "# ").replace("binding: retrofit", "binding: native");
    for (said, expect, nonce) in [
        ("", "nonces are the server's, whose challenges pass\n", false),
        (", nonce: edge", "nonces are the edge's\n", true),
    ] {
        let config = native.replace("binding: native", &format!("binding: native{said}"));
        let (status, text) = ask(&config, "POST https://localhost:8443/token lax", false);
        let head = "server     of https://as.example.com, binding native: the server binds, ";
        assert!(status == 0 && text.contains(&format!("{head}{expect}")), "{text}");
        assert!(text.contains("is kept back (502)"), "{text}");
        assert_eq!(text.contains("the last DPoP-Nonce of this origin"), nonce, "{text}");
    }
    let (_, json) = ask(&native, "POST https://localhost:8443/token lax", true);
    let answer: serde_json::Value = serde_json::from_str(&json).unwrap();
    let told = (&answer["authority"]["binding"], &answer["authority"]["nonces"]);
    assert_eq!(told, (&"native".into(), &"upstream".into()));
    assert_eq!(answer["present"][0]["authorization"], serde_json::Value::Null);
}

#[test]
fn a_bad_file_is_not_explained() {
    let config = SMALL.replace("path:", "pth:");
    let (status, text) = ask(&config, "GET https://localhost:8443/orders", false);
    let expect = "authority.yaml:14: routes[0].path: is required\n\
                  authority.yaml:16: routes[0].pth: unknown key; did you mean `path`?\n";
    assert_eq!((status, text.as_str()), (1, expect));
    let (status, json) = ask(&config, "GET https://localhost:8443/orders", true);
    let answer: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((status, &answer["findings"][1]["key"]), (1, &"routes[0].pth".into()));
}

#[test]
fn check_lists_errors_first_and_sums_up() {
    let site = site();
    let path = site.path().join("authority.yaml");
    let check = |json| {
        let mut out = Vec::new();
        let status = check::run(&mut out, &path, json).unwrap();
        let out = String::from_utf8(out).unwrap();
        (status, out.replace(&path.display().to_string(), "F"))
    };
    std::fs::write(&path, SMALL).unwrap();
    assert_eq!(check(false), (0, "F: no errors, no warnings\n".to_owned()));

    let changed = SMALL.replace("upstream: api", "upstream: apo").replace("path:", "pth:");
    std::fs::write(&path, changed).unwrap();
    let expect = "F:14: routes[0].path: is required\n\
                  F:16: routes[0].pth: unknown key; did you mean `path`?\n\
                  F:17: routes[0].upstream: no upstream `apo`; the nearest is `api`\n\
                  F:11: warning: upstreams.api: no route uses it\n\
                  F: 3 errors, 1 warning\n";
    assert_eq!(check(false), (1, expect.to_owned()));
    let answer: serde_json::Value = serde_json::from_str(&check(true).1).unwrap();
    assert_eq!((&answer["ok"], &answer["errors"]), (&false.into(), &3.into()));
    assert_eq!(answer["findings"][0]["severity"], "warning");
}

#[test]
fn what_the_edge_answers_itself() {
    let capsules = "capsules:\n  cluster: prod\n  origins: [\"https://edge.example.com\"]\n  \
                    keys: {directory: keys/capsules}\n  networks: {asnDatabase: networks.mmdb, \
                    regionDatabase: networks.mmdb}\n";
    let config = format!("{SMALL}{capsules}");
    let (status, out) = ask(&config, "GET https://edge.example.com/api/runtime/capsule/n1", false);
    for part in [
        "answered   by the edge itself: capsule of cluster prod\n",
        "htm GET, htu https://edge.example.com/api/runtime/capsule/n1, ath of the secret",
        "or Authorization: Bearer <the node's secret>, and the node's client certificate",
        "X-Node-Version: a part of the key",
    ] {
        assert!(status == 0 && out.contains(part), "{out}");
    }
    let (status, out) = ask(&config, "PUT https://edge.example.com/api/runtime/capsule/n1", false);
    assert!(status == 1 && out.contains("it takes only GET, POST"), "{out}");
    let keys = "GET https://edge.example.com/.well-known/holdfast/capsule-jwks.json";
    let (status, out) = ask(&config, keys, true);
    assert!(status == 0 && out.contains("\"what\": \"keys\""), "{out}");
    // At another host it is a path like any other.
    let (status, _) = ask(&config, "GET https://localhost:8443/api/runtime/capsule/n1", false);
    assert_eq!(status, 1);
}
