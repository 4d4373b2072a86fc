use serde_json::{Value, json};

use super::super::jose::AlgorithmSet;
use super::super::rule::{Demand, Mode, Requirement};
use super::super::token::{KeySet, TokenType};
use super::*;

const NOW: i64 = 1_800_000_000;
const JKT: &str = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I";

fn rules() -> Rules {
    let default = Requirement {
        demand: Demand::Any,
        mode: Mode::Enforce,
        algorithms: AlgorithmSet::default(),
        nonce: true,
    };
    Rules {
        default,
        dpop_enabled: true,
        mtls_enabled: true,
        certificate_audiences: Vec::new(),
        nonce_audiences: Vec::new(),
        tenants: Vec::new(),
        tenant_claim: None,
        unknown_tenant_allowed: false,
        share_salt: String::new(),
    }
}

fn entry(issuer: &str, introspection: Option<IntrospectionRules>) -> IssuerRules {
    IssuerRules {
        issuer: issuer.to_owned(),
        audiences: vec!["api".to_owned(), "admin".to_owned()],
        algorithms: AlgorithmSet::default(),
        token_type: TokenType::AccessToken,
        clock_skew: Duration::from_secs(5),
        tenant: None,
        keys: false,
        introspection,
        retrofit: None,
    }
}

fn asked(prefix: Option<&str>) -> IntrospectionRules {
    IntrospectionRules {
        token_prefix: prefix.map(str::to_owned),
        cache_ttl: Duration::from_secs(30),
        assumed_audience: None,
        assumed_lifetime: None,
    }
}

/// A good answer with these members changed; `null` takes one away.
fn answer(changes: &Value) -> String {
    let mut answer = json!({
        "active": true, "iss": "https://as.example", "aud": "api", "exp": NOW + 600, "iat": NOW,
        "sub": "user", "client_id": "client", "scope": "read write", "token_type": "DPoP",
        "cnf": {"jkt": JKT}, "username": "someone", "jti": "1",
    });
    for (name, value) in changes.as_object().unwrap() {
        answer[name] = value.clone();
    }
    answer.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    answer.to_string()
}

/// Rows that did not come out as expected.
#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn check(
        &mut self,
        name: &str,
        asked: IntrospectionRules,
        body: &str,
        expect: Result<(), Denial>,
    ) {
        let entry = entry("https://as.example", Some(asked));
        let read = read(body.as_bytes(), 0, &entry, &rules(), UnixTime::from_secs(NOW));
        let found = read.map(drop);
        if found != expect {
            self.0.push(format!("{name}: {found:?}"));
        }
    }
}

#[test]
fn an_answer_says_how_the_user_was_authenticated() {
    let entry = entry("https://as.example", Some(asked(None)));
    let body = answer(&json!({"auth_time": NOW - 9, "acr": "phr"}));
    let token = read(body.as_bytes(), 0, &entry, &rules(), UnixTime::from_secs(NOW)).unwrap();
    let shown = token.authentication();
    assert_eq!(shown.time, Some(UnixTime::from_secs(NOW - 9)));
    assert_eq!(shown.acr.as_deref(), Some("phr"));
}

#[test]
fn answers() {
    let table: &[(&str, Value, Result<(), Denial>)] = &[
        ("ok/as it should be", json!({}), Ok(())),
        ("ok/no iss", json!({"iss": null}), Ok(())),
        ("ok/more members", json!({"x": [1]}), Ok(())),
        ("ok/audiences", json!({"aud": ["x", "admin"]}), Ok(())),
        ("ok/no token_type", json!({"token_type": null}), Ok(())),
        ("ok/dpop in small letters", json!({"token_type": "dpop"}), Ok(())),
        ("ok/bearer, bound", json!({"token_type": "Bearer"}), Ok(())),
        ("ok/bearer, unbound", json!({"token_type": "Bearer", "cnf": null}), Ok(())),
        ("ok/within the skew", json!({"exp": NOW - 4}), Ok(())),
        ("fail/inactive", json!({"active": false}), Err(Denial::TokenInactive)),
        ("fail/no active", json!({"active": null}), Err(Denial::IntrospectionUnavailable)),
        ("fail/active text", json!({"active": "true"}), Err(Denial::IntrospectionUnavailable)),
        ("fail/active number", json!({"active": 1}), Err(Denial::IntrospectionUnavailable)),
        ("fail/active list", json!({"active": [true]}), Err(Denial::IntrospectionUnavailable)),
        ("fail/iss of another", json!({"iss": "https://x"}), Err(Denial::TokenIssuer)),
        ("fail/iss number", json!({"iss": 1}), Err(Denial::TokenClaim)),
        ("fail/no aud", json!({"aud": null}), Err(Denial::TokenClaim)),
        ("fail/aud empty", json!({"aud": []}), Err(Denial::TokenClaim)),
        ("fail/aud of another", json!({"aud": "x"}), Err(Denial::TokenAudience)),
        ("fail/aud number", json!({"aud": 1}), Err(Denial::TokenClaim)),
        ("fail/no exp", json!({"exp": null}), Err(Denial::TokenClaim)),
        ("fail/exp text", json!({"exp": "9999999999"}), Err(Denial::TokenClaim)),
        ("fail/exp behind", json!({"exp": NOW - 5}), Err(Denial::TokenExpired)),
        ("fail/nbf ahead", json!({"nbf": NOW + 6}), Err(Denial::TokenNotYetValid)),
        ("fail/nbf text", json!({"nbf": "1"}), Err(Denial::TokenClaim)),
        ("fail/iat text", json!({"iat": "1"}), Err(Denial::TokenClaim)),
        ("fail/sub number", json!({"sub": 1}), Err(Denial::TokenClaim)),
        ("fail/client_id list", json!({"client_id": ["a"]}), Err(Denial::TokenClaim)),
        ("fail/scope list", json!({"scope": ["read"]}), Err(Denial::TokenClaim)),
        ("fail/jti number", json!({"jti": 1}), Err(Denial::TokenClaim)),
        ("fail/auth_time text", json!({"auth_time": "1"}), Err(Denial::TokenClaim)),
        ("fail/acr list", json!({"acr": ["phr"]}), Err(Denial::TokenClaim)),
        ("fail/cnf text", json!({"cnf": JKT}), Err(Denial::TokenConfirmation)),
        ("fail/jkt number", json!({"cnf": {"jkt": 1}}), Err(Denial::TokenConfirmation)),
        ("fail/jkt short", json!({"cnf": {"jkt": "AAAA"}}), Err(Denial::TokenConfirmation)),
        ("fail/x5t number", json!({"cnf": {"x5t#S256": 1}}), Err(Denial::TokenConfirmation)),
        ("fail/DPoP without a key", json!({"cnf": null}), Err(Denial::TokenConfirmation)),
        (
            "fail/DPoP with a certificate alone",
            json!({"cnf": {"x5t#S256": JKT}}),
            Err(Denial::TokenConfirmation),
        ),
        ("fail/token_type of another", json!({"token_type": "N_A"}), Err(Denial::TokenType)),
        ("fail/token_type number", json!({"token_type": 1}), Err(Denial::TokenClaim)),
        ("fail/scopes without end", json!({"scope": "a ".repeat(600)}), Err(Denial::TokenClaim)),
        ("fail/audiences without end", json!({"aud": vec!["api"; 600]}), Err(Denial::TokenClaim)),
    ];
    let mut faults = Faults::default();
    for (name, changes, expect) in table {
        faults.check(name, asked(None), &answer(changes), *expect);
    }
    for (name, body) in [
        ("fail/empty", String::new()),
        ("fail/a list", "[]".to_owned()),
        ("fail/true", "true".to_owned()),
        ("fail/more behind", format!("{}{{", answer(&json!({})))),
        ("fail/active twice", answer(&json!({})).replacen('{', "{\"active\":false,", 1)),
        ("fail/exp twice", answer(&json!({})).replacen('{', "{\"exp\":1,", 1)),
        ("fail/jkt twice", answer(&json!({})).replacen("{\"jkt\"", "{\"jkt\":\"\",\"jkt\"", 1)),
        (
            "fail/nested",
            format!("{{\"active\":true,\"x\":{}1{}}}", "[".repeat(9999), "]".repeat(9999)),
        ),
    ] {
        faults.check(name, asked(None), &body, Err(Denial::IntrospectionUnavailable));
    }
    assert_eq!(faults.0, Vec::<String>::new());
}

#[test]
fn what_the_answer_leaves_out_may_be_assumed() {
    let assumed = IntrospectionRules {
        assumed_audience: Some("api".to_owned()),
        assumed_lifetime: Some(Duration::from_secs(60)),
        ..asked(None)
    };
    let mut faults = Faults::default();
    for (name, changes, expect) in [
        ("ok/neither", json!({"aud": null, "exp": null}), Ok(())),
        ("fail/expired", json!({"exp": NOW - 5}), Err(Denial::TokenExpired)),
        ("fail/aud empty", json!({"aud": []}), Err(Denial::TokenClaim)),
        ("fail/aud of another", json!({"aud": "x"}), Err(Denial::TokenAudience)),
        (
            "fail/perhaps a refresh token",
            json!({"aud": null, "token_type": null}),
            Err(Denial::TokenType),
        ),
    ] {
        faults.check(name, assumed.clone(), &answer(&changes), expect);
    }
    assert_eq!(faults.0, Vec::<String>::new());
    let entry = entry("https://as.example", Some(assumed));
    let body = answer(&json!({"aud": null, "exp": null}));
    let token = read(body.as_bytes(), 0, &entry, &rules(), UnixTime::from_secs(NOW)).unwrap();
    assert_eq!(token.audiences(), ["api"]);
    assert_eq!(token.expires(), UnixTime::from_secs(NOW + 60));
}

/// A word is taken for `cacheTtl`, and never past the token's own end.
#[test]
fn a_word_ends() {
    let entry = entry("https://as.example", Some(asked(None)));
    for (exp, end) in [(NOW + 600, NOW + 30), (NOW + 10, NOW + 10), (NOW - 2, NOW - 2)] {
        let body = answer(&json!({"exp": exp}));
        let token = read(body.as_bytes(), 0, &entry, &rules(), UnixTime::from_secs(NOW)).unwrap();
        let stands = |at: i64| token.stands(&KeySet::default(), UnixTime::from_secs(at));
        assert!(stands(end - 1), "{exp}");
        assert!(!stands(end), "{exp}");
    }
}

#[test]
fn whose_an_opaque_token_is() {
    let issuers = [
        entry("a", Some(asked(Some("at_")))),
        entry("b", None),
        entry("c", Some(asked(None))),
        entry("d", Some(asked(Some("d-")))),
    ];
    for (token, expect) in [("at_1", 0), ("d-1", 3), ("AT_1", 2), ("x", 2)] {
        assert_eq!(issuer_of(token, &issuers), Some(expect), "{token}");
    }
    assert_eq!(issuer_of("x", &issuers[..2]), None);
}

#[test]
fn forms() {
    assert_eq!(form_encoded("aZ09*-._ ~/+=&%:\u{e9}"), "aZ09*-._+%7E%2F%2B%3D%26%25%3A%C3%A9");
}
