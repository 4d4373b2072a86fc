use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::policy::jose::Algorithm::{self, EdDsa, Es256, Es384};
use crate::policy::rule::Mode;
use crate::policy::rule::{AuthorityRule, Role, Scope, TenantId, TenantRule};
use crate::policy::share::Share;
use crate::policy::step_up::StepUp;
use crate::policy::token::TokenType;

fn rules(demand: Demand) -> Rules {
    Rules {
        default: Requirement {
            demand,
            mode: Mode::Enforce,
            algorithms: AlgorithmSet::of(&[Es256, EdDsa]),
            nonce: true,
        },
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

/// The default, and tenants that add this to it, by a claim.
fn with_tenants(demand: Demand, scopes: Vec<Scope>) -> Rules {
    let tenant = |scope| TenantRule { name: "t".to_owned(), scope };
    let tenants = scopes.into_iter().map(tenant).collect();
    Rules { tenants, tenant_claim: Some("tenant".to_owned()), ..rules(demand) }
}

fn demanding(demand: Demand) -> Scope {
    Scope { require: Some(demand), ..Scope::default() }
}

fn route(scope: Scope, scopes: &[&str]) -> RouteRule {
    RouteRule {
        role: Role::Resource,
        scope,
        allow_unbound: false,
        audiences: Vec::new(),
        scopes: scopes.iter().map(|&one| one.to_owned()).collect(),
        step_up: StepUp::default(),
        authority: AuthorityRule::default(),
    }
}

fn issuer(name: &str, tenant: Option<usize>) -> IssuerRules {
    IssuerRules {
        issuer: name.to_owned(),
        audiences: vec!["api".to_owned()],
        algorithms: AlgorithmSet::default(),
        token_type: TokenType::AccessToken,
        clock_skew: Duration::ZERO,
        tenant: tenant.map(TenantId),
        keys: true,
        introspection: None,
        retrofit: None,
    }
}

fn told(routes: &[RouteRule], rules: &Rules, issuers: &[IssuerRules], certificates: bool) -> Value {
    let resource = Resource::new(&Origin::parse("https://a.example").unwrap(), "/x").unwrap();
    let listed: Vec<_> = routes.iter().map(|rule| Listed { rule, told: true }).collect();
    let grounds = Grounds { rules, issuers, certificates };
    serde_json::to_value(document(&resource, &listed, &grounds)).unwrap()
}

#[test]
fn resources_and_where_their_metadata_is() {
    let origin = Origin::parse("https://a.example:8443").unwrap();
    for (path, expect) in [
        ("", Some(("", ""))),
        ("/", Some(("", ""))),
        ("/orders", Some(("/orders", "/orders"))),
        ("/orders/", Some(("/orders/", "/orders/"))),
        ("/a%C3%A9/b;c", Some(("/a%C3%A9/b;c", "/a%C3%A9/b;c"))),
        ("/a\"b", None),
        ("/a\\b", None),
        ("/a<b", None),
    ] {
        let found = Resource::new(&origin, path);
        let found = found.map(|it| (it.identifier(), it.metadata_url()));
        let expect = expect.map(|(path, behind)| {
            let origin = "https://a.example:8443";
            (format!("{origin}{path}"), format!("{origin}{WELL_KNOWN}{behind}"))
        });
        assert_eq!(found, expect, "{path}");
    }
}

#[test]
fn a_whole_document() {
    let issuers = [
        issuer("https://as.example", None),
        issuer("urn:as", None),
        issuer("http://127.0.0.1:1", None),
    ];
    let routes = [route(demanding(Demand::Dpop), &["read", "list"])];
    assert_eq!(
        told(&routes, &rules(Demand::Any), &issuers, true),
        json!({
            "resource": "https://a.example/x",
            "authorization_servers": ["https://as.example", "http://127.0.0.1:1"],
            "scopes_supported": ["read", "list"],
            "bearer_methods_supported": ["header"],
            "tls_client_certificate_bound_access_tokens": true,
            "dpop_signing_alg_values_supported": ["ES256", "EdDSA"],
            "dpop_bound_access_tokens_required": true,
        })
    );
    let off = Rules { dpop_enabled: false, mtls_enabled: false, ..rules(Demand::Any) };
    assert_eq!(
        told(&[route(Scope::default(), &[])], &off, &issuers[1..2], true),
        json!({"resource": "https://a.example/x", "bearer_methods_supported": ["header"]})
    );
}

#[test]
fn a_key_is_always_needed_or_it_is_not_promised() {
    let observed = Scope {
        mode: Some(Mode::Observe(Share::NONE)),
        overrides: true,
        ..demanding(Demand::Dpop)
    };
    let weaker = Scope { overrides: true, ..demanding(Demand::Any) };
    let unbound = RouteRule { allow_unbound: true, ..route(Scope::default(), &[]) };
    let one = |scope: Scope| vec![route(scope, &[])];
    let free = [issuer("https://a", None)];
    let two = vec![demanding(Demand::Dpop), demanding(Demand::Both)];
    let three = vec![demanding(Demand::Dpop), demanding(Demand::Mtls)];
    for (name, rules, routes, issuers, expect) in [
        ("any", rules(Demand::Any), one(Scope::default()), &free[..], false),
        ("dpop", rules(Demand::Dpop), one(Scope::default()), &free, true),
        ("both", rules(Demand::Both), one(Scope::default()), &free, true),
        ("mtls", rules(Demand::Mtls), one(Scope::default()), &free, false),
        ("route", rules(Demand::Any), one(demanding(Demand::Dpop)), &free, true),
        ("observed", rules(Demand::Dpop), one(observed), &free, false),
        ("overridden", rules(Demand::Dpop), one(weaker.clone()), &free, false),
        ("unbound", rules(Demand::Dpop), vec![unbound], &free, false),
        (
            "one of two routes",
            rules(Demand::Any),
            vec![route(demanding(Demand::Dpop), &[]), route(Scope::default(), &[])],
            &free,
            false,
        ),
        ("every tenant", with_tenants(Demand::Any, two), one(Scope::default()), &free, true),
        ("one tenant", with_tenants(Demand::Any, three), one(Scope::default()), &free, false),
        (
            "the issuer's tenant",
            with_tenants(Demand::Any, vec![demanding(Demand::Dpop), weaker]),
            one(Scope::default()),
            &[issuer("https://a", Some(0))],
            true,
        ),
        (
            "no tenant either",
            Rules {
                unknown_tenant_allowed: true,
                ..with_tenants(Demand::Any, vec![demanding(Demand::Dpop)])
            },
            one(Scope::default()),
            &free,
            false,
        ),
    ] {
        let document = told(&routes, &rules, issuers, true);
        let found = document.get("dpop_bound_access_tokens_required");
        assert_eq!(found, expect.then_some(&json!(true)), "{name}");
    }
}

#[test]
fn several_routes_promise_what_each_holds() {
    let with = |algorithms: &[Algorithm]| Scope {
        algorithms: Some(AlgorithmSet::of(algorithms)),
        ..Scope::default()
    };
    let issuers = [issuer("https://a", None)];
    let any = rules(Demand::Any);
    for (name, routes, expect) in [
        ("the default", vec![with(&[Es256, EdDsa, Es384])], json!(["ES256", "EdDSA"])),
        ("both", vec![with(&[Es256]), Scope::default()], json!(["ES256"])),
        ("nothing in common", vec![with(&[Es256]), with(&[EdDsa])], Value::Null),
        ("a certificate alone", vec![Scope::default(), demanding(Demand::Mtls)], Value::Null),
    ] {
        let routes: Vec<_> = routes.into_iter().map(|scope| route(scope, &[])).collect();
        let document = told(&routes, &any, &issuers, true);
        let found = document.get("dpop_signing_alg_values_supported").unwrap_or(&Value::Null);
        assert_eq!(found, &expect, "{name}");
    }
    let routes =
        [route(Scope::default(), &["read", "list"]), route(Scope::default(), &["list", "write"])];
    let document = told(&routes, &any, &issuers, false);
    assert_eq!(document["scopes_supported"], json!(["read", "list", "write"]));
    assert_eq!(document.get("tls_client_certificate_bound_access_tokens"), None);

    let resource = Resource::new(&Origin::parse("https://a.example").unwrap(), "/x").unwrap();
    let quiet = Listed { rule: &routes[0], told: false };
    let listed = [quiet, Listed { rule: &routes[1], told: true }];
    let grounds = Grounds { rules: &any, issuers: &issuers, certificates: false };
    let document = document_of(&resource, &listed, &grounds);
    assert_eq!(document["scopes_supported"], json!(["list", "write"]));
}

fn document_of(resource: &Resource, listed: &[Listed<'_>], grounds: &Grounds<'_>) -> Value {
    serde_json::to_value(document(resource, listed, grounds)).unwrap()
}
