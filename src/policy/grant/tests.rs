use std::collections::HashMap;

use super::*;
use crate::policy::jose::AlgorithmSet;
use crate::policy::token::TokenType;

const BOTH: BindBy = BindBy::BOTH;
const KEY: BindBy = BindBy { key: true, certificate: false };
const CERTIFICATE: BindBy = BindBy { key: false, certificate: true };

fn jkt(byte: u8) -> Jkt {
    Jkt(Sha256([byte; 32]))
}

fn x5t(byte: u8) -> X5tS256 {
    X5tS256(Sha256([byte; 32]))
}

fn confirmed(key: bool, certificate: bool) -> Confirmation {
    let (jkt, x5t) = (key.then(|| jkt(1)), certificate.then(|| x5t(1)));
    Confirmation { jkt, x5t, foreign: false }
}

fn shown(key: bool, certificate: bool) -> ShownBy {
    ShownBy { jkt: key.then(|| jkt(1)), x5t: certificate.then(|| x5t(1)) }
}

fn at(secs: i64) -> UnixTime {
    UnixTime::from_secs(1_800_000_000 + secs)
}

fn rules(unknown_refresh: UnknownRefresh) -> RetrofitRules {
    RetrofitRules {
        bind: BOTH,
        by_tenant: HashMap::from([(TenantId(0), KEY)]),
        by_client: HashMap::from([("c".to_owned(), CERTIFICATE)]),
        unrecorded_until: None,
        unknown_refresh,
        token_lifetime: Duration::from_secs(1000),
        refresh_lifetime: Duration::from_secs(5000),
        opaque: None,
    }
}

fn issuer() -> IssuerRules {
    IssuerRules {
        issuer: "https://as.example".to_owned(),
        audiences: vec!["api".to_owned()],
        algorithms: AlgorithmSet::default(),
        token_type: TokenType::Any,
        clock_skew: Duration::from_secs(5),
        tenant: None,
        keys: true,
        introspection: None,
        retrofit: None,
    }
}

fn record() -> BindingRecord {
    BindingRecord {
        kind: TokenKind::Refresh,
        tenant: None,
        client: Some("a".to_owned()),
        cnf_jkt: Some(jkt(1)),
        sender_certificate: None,
        scope: None,
        expires: at(100),
        family: "f".to_owned(),
        bypass: None,
        revoked: false,
    }
}

fn asker(id: &str) -> Asker {
    Asker { id: Some(id.to_owned()), tenant: None }
}

#[test]
fn what_binds_is_the_clients_word_before_the_tenants() {
    let rules = rules(UnknownRefresh::Refuse);
    for (client, tenant, expect) in [
        ("a", None, BOTH),
        ("a", Some(0), KEY),
        ("a", Some(1), BOTH),
        ("c", None, CERTIFICATE),
        ("c", Some(0), CERTIFICATE),
    ] {
        assert_eq!(rules.bind_of(&asker(client), tenant.map(TenantId)), expect, "{client}");
    }
}

#[test]
fn a_token_is_bound_to_what_was_shown_or_what_is_missing_is_said() {
    use Denial::{BindingTooWeak, CertificateMissing, ProofMissing};
    let none = (false, false);
    let (key, certificate, both) = ((true, false), (false, true), (true, true));
    for (name, demand, bind, shown_by, held, expect) in [
        ("ok/none, nothing", Demand::None, BOTH, none, none, Ok(none)),
        ("ok/none, a key", Demand::None, BOTH, key, none, Ok(key)),
        ("ok/any, a key", Demand::Any, BOTH, key, none, Ok(key)),
        ("ok/any, both", Demand::Any, BOTH, both, none, Ok(both)),
        ("ok/any, a certificate", Demand::Any, BOTH, certificate, none, Ok(certificate)),
        ("fail/any, nothing", Demand::Any, BOTH, none, none, Err(ProofMissing)),
        ("fail/any by certificate", Demand::Any, CERTIFICATE, key, none, Err(CertificateMissing)),
        ("fail/any by key", Demand::Any, KEY, certificate, none, Err(ProofMissing)),
        ("ok/dpop", Demand::Dpop, BOTH, key, none, Ok(key)),
        ("fail/dpop", Demand::Dpop, BOTH, certificate, none, Err(ProofMissing)),
        ("fail/dpop by certificate", Demand::Dpop, CERTIFICATE, both, none, Err(BindingTooWeak)),
        ("ok/mtls", Demand::Mtls, BOTH, certificate, none, Ok(certificate)),
        ("fail/mtls", Demand::Mtls, BOTH, key, none, Err(CertificateMissing)),
        ("fail/mtls by key", Demand::Mtls, KEY, both, none, Err(BindingTooWeak)),
        ("ok/both", Demand::Both, BOTH, both, none, Ok(both)),
        ("fail/both, a key", Demand::Both, BOTH, key, none, Err(CertificateMissing)),
        ("fail/both, a certificate", Demand::Both, BOTH, certificate, none, Err(ProofMissing)),
        ("fail/both, nothing", Demand::Both, BOTH, none, none, Err(ProofMissing)),
        ("ok/held", Demand::Dpop, BOTH, none, key, Ok(key)),
        ("ok/held and more", Demand::Both, BOTH, certificate, key, Ok(both)),
        ("ok/held by what binds no more", Demand::Dpop, CERTIFICATE, none, key, Ok(key)),
    ] {
        let inherited = confirmed(held.0, held.1);
        let found = bound_to(shown(shown_by.0, shown_by.1), bind, inherited, demand);
        assert_eq!(found, expect.map(|(key, mtls)| confirmed(key, mtls)), "{name}");
    }
}

#[test]
fn a_refresh_token_is_its_clients_while_it_lives() {
    let (refuse, bind) = (rules(UnknownRefresh::Refuse), rules(UnknownRefresh::Bind));
    let with = |change: fn(&mut BindingRecord)| {
        let mut record = record();
        change(&mut record);
        Some(record)
    };
    for (name, record, client, expect) in [
        ("ok", with(|_| {}), "a", Ok(Some("f"))),
        ("fail/unknown", None, "a", Err(AuthorityFault::GrantUnknown)),
        ("fail/over", with(|it| it.expires = at(0)), "a", Err(AuthorityFault::GrantUnknown)),
        ("fail/revoked", with(|it| it.revoked = true), "a", Err(AuthorityFault::GrantRevoked)),
        ("fail/another's", with(|_| {}), "b", Err(AuthorityFault::GrantClient)),
        ("ok/nobody's", with(|it| it.client = None), "b", Ok(Some("f"))),
    ] {
        let found = redeem(record.as_ref(), &asker(client), &refuse, at(0));
        let found = found.map(|inherited| inherited.family);
        let expect = expect.map(|family| family.map(str::to_owned));
        assert_eq!(found, expect.map_err(Denial::Authority), "{name}");
        if record.is_some_and(|record| record.revoked) {
            // Nobody may keep what was revoked.
            let found = redeem(with(|it| it.revoked = true).as_ref(), &asker("a"), &bind, at(0));
            assert_eq!(found.err(), Some(Denial::Authority(AuthorityFault::GrantRevoked)));
        }
    }
    assert_eq!(redeem(None, &asker("a"), &bind, at(0)), Ok(Inherited::default()));
    let nobody = redeem(Some(&record()), &Asker::default(), &refuse, at(0));
    assert_eq!(nobody.err(), Some(Denial::Authority(AuthorityFault::GrantClient)));
}

#[test]
fn a_record_takes_no_others_place() {
    let with = |change: fn(&mut BindingRecord)| {
        let mut record = record();
        change(&mut record);
        record
    };
    let own = record();
    for (name, kept, expect) in [
        ("ok/the same", with(|it| it.expires = at(5)), true),
        ("ok/bound to nobody", with(|it| it.cnf_jkt = None), true),
        ("fail/another key", with(|it| it.cnf_jkt = Some(jkt(2))), false),
        ("fail/more", with(|it| it.sender_certificate = Some(x5t(1))), false),
        ("ok/nobody's", with(|it| it.client = None), true),
        ("fail/another client", with(|it| it.client = Some("b".to_owned())), false),
        ("fail/revoked", with(|it| it.revoked = true), false),
    ] {
        assert_eq!(own.may_replace(&kept), expect, "{name}");
    }
    assert!(!with(|it| it.cnf_jkt = None).may_replace(&own), "to nobody");
}

#[test]
fn a_record_is_found_by_issuer_kind_and_what_is_signed() {
    let jwt = |signature: &str| format!("eyJhIjoxfQ.eyJiIjoyfQ.{signature}");
    let key = |issuer: &str, kind, token: &str| RecordKey::of(issuer, kind, token);
    let own = key("i", TokenKind::Access, &jwt("AAAA"));
    assert_eq!(own, key("i", TokenKind::Access, &jwt("BBBB")));
    assert_eq!(own, RecordKey::of_jwt("i", &jwt("CCCC")));
    assert_ne!(own, key("j", TokenKind::Access, &jwt("AAAA")));
    assert_ne!(own, key("i", TokenKind::Refresh, &jwt("AAAA")));
    // An opaque token with dots is taken as a whole.
    assert_ne!(key("i", TokenKind::Access, "a.b.c"), key("i", TokenKind::Access, "a.b.d"),);
    // Parts are told apart by their lengths.
    let boundary = key("ia", TokenKind::Access, "x");
    assert_ne!(boundary, key("i", TokenKind::Access, "ax"));
}

fn members(text: &str) -> Object {
    json::object(text.as_bytes()).unwrap()
}

#[test]
fn an_answer_has_a_token_and_its_type() {
    for (text, expect) in [
        (r#"{"access_token":"a","token_type":"Bearer"}"#, true),
        (r#"{"access_token":"a","token_type":"bearer","refresh_token":""}"#, true),
        (r#"{"token_type":"Bearer"}"#, false),
        (r#"{"access_token":"","token_type":"Bearer"}"#, false),
        (r#"{"access_token":1,"token_type":"Bearer"}"#, false),
        (r#"{"access_token":null,"token_type":"Bearer"}"#, false),
        (r#"{"access_token":"a"}"#, false),
        (r#"{"access_token":"a","token_type":[]}"#, false),
        (r#"{"access_token":"a","token_type":"Bearer","refresh_token":{}}"#, false),
    ] {
        assert_eq!(TokenAnswer::read(&members(text)).is_ok(), expect, "{text}");
    }
    assert!(json::object(br#"{"access_token":"a","access_token":"b"}"#).is_none());
}

#[test]
fn records_live_as_long_as_their_tokens_can() {
    let base64 = |text: &str| {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text)
    };
    let jwt = |exp: i64| {
        let claims = format!(r#"{{"exp":{}}}"#, at(exp).secs());
        format!("{}.{}.AAAA", base64("{}"), base64(&claims))
    };
    for (name, token, expires_in, expect) in [
        ("said", "a".to_owned(), ",\"expires_in\":60", 65),
        ("said as text", "a".to_owned(), ",\"expires_in\":\"60\"", 65),
        ("not said", "a".to_owned(), "", 1005),
        ("nonsense", "a".to_owned(), ",\"expires_in\":-1", 1005),
        ("signed, longer", jwt(300), ",\"expires_in\":60", 305),
        ("signed, shorter", jwt(30), ",\"expires_in\":60", 65),
        ("signed alone", jwt(300), "", 305),
    ] {
        let text = format!(
            r#"{{"access_token":"{token}","token_type":"Bearer","refresh_token":"r"{expires_in}}}"#
        );
        let members = members(&text);
        let answer = TokenAnswer::read(&members).unwrap();
        let (asker, inherited) = (asker("a"), Inherited::default());
        let issue = Issue {
            asker: &asker,
            tenant: Some("t"),
            confirmation: confirmed(true, false),
            inherited: &inherited,
            redeemed: None,
            family: "f",
            bypass: None,
        };
        let rules = rules(UnknownRefresh::Refuse);
        let records = records(&answer, &issue, &issuer(), &rules, at(0));
        let ends: Vec<_> =
            records.iter().map(|(_, record)| record.expires.millis_since(at(0)) / 1000).collect();
        assert_eq!(ends, [expect, 5005], "{name}");
        assert!(records.iter().all(|(_, record)| record.confirmation() == confirmed(true, false)));
    }
}

#[test]
fn a_successor_goes_to_the_next_refresh_token_and_not_to_the_old_one() {
    let inherited = Inherited {
        confirmation: Confirmation { x5t: Some(x5t(1)), ..Confirmation::default() },
        next: Confirmation { x5t: Some(x5t(2)), ..Confirmation::default() },
        family: Some("f".to_owned()),
    };
    for (refresh, expect) in
        [("", 1), (r#","refresh_token":"old""#, 1), (r#","refresh_token":"new""#, 2)]
    {
        let text = format!(r#"{{"access_token":"a","token_type":"Bearer"{refresh}}}"#);
        let members = members(&text);
        let answer = TokenAnswer::read(&members).unwrap();
        let asker = asker("a");
        let issue = Issue {
            asker: &asker,
            tenant: None,
            confirmation: inherited.next,
            inherited: &inherited,
            redeemed: Some("old"),
            family: "f",
            bypass: None,
        };
        let rules = rules(UnknownRefresh::Refuse);
        let records = records(&answer, &issue, &issuer(), &rules, at(0));
        let kept: Vec<_> = records.iter().map(|(_, record)| record.sender_certificate).collect();
        assert_eq!(kept, [Some(x5t(2)), Some(x5t(expect))], "{refresh}");
    }
}
