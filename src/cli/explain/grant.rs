//! Routes of an authorization server: who binds, whose nonces go, and what a token will be bound to.

use super::answer::{AuthorityShown, Contribution, Present, ProofShown};
use crate::config::{Config, Route, show_duration};
use crate::policy::grant::{BindBy, RetrofitRules, UnknownRefresh};
use crate::policy::rule::{Binding, Demand, Requirement, Role, SenderCertificateCheck, TenantId};
use crate::policy::token::IssuerRules;

/// The issuer whose server the route stands before.
pub(super) fn issuer<'a>(config: &'a Config, route: &Route) -> Option<&'a IssuerRules> {
    let index = route.rule.authority.issuer?;
    config.issuers.get(index).map(|issuer| &issuer.rules)
}

/// What the edge does with the answers of the route's server; `None` on any other route.
pub(super) fn authority(config: &Config, route: &Route) -> Option<AuthorityShown> {
    let rule = &route.rule.authority;
    let issuer = issuer(config, route);
    let retrofit = issuer.and_then(|issuer| issuer.retrofit.as_ref());
    let asks = route.rule.role.asks_for_token();
    let does = match (route.rule.role, rule.binding) {
        (Role::Resource | Role::Public | Role::FreshAuth, _) => return None,
        (Role::Token, Binding::Native) => vec![
            "what the server issues is held against what was shown; a token that is not bound so is \
             kept back (502)"
                .to_owned(),
        ],
        (Role::Token, Binding::Retrofit) => retrofit.map(kept).unwrap_or_default(),
        (Role::Par, Binding::Native) => Vec::new(),
        (Role::Par, Binding::Retrofit) => vec!["codes need PKCE with S256".to_owned()],
        (Role::Introspection, _) => introspected(route, retrofit.is_some()),
        (Role::Revocation, _) if retrofit.is_some() => {
            vec!["a token that its own client revokes is refused from then on".to_owned()]
        }
        (Role::Metadata, _) if retrofit.is_some() => {
            vec!["what the edge binds by is added to what the server says".to_owned()]
        }
        (Role::Revocation | Role::Metadata, _) => Vec::new(),
    };
    let binding = match rule.binding {
        Binding::Native => "native",
        Binding::Retrofit => "retrofit",
    };
    let nonces = if rule.upstream_nonces { "upstream" } else { "edge" };
    Some(AuthorityShown {
        issuer: issuer.map(|issuer| issuer.issuer.clone()),
        binding: asks.then_some(binding),
        nonces: asks.then_some(nonces),
        does,
    })
}

fn kept(rules: &RetrofitRules) -> Vec<String> {
    let lifetime = show_duration(rules.token_lifetime);
    let unknown = match rules.unknown_refresh {
        UnknownRefresh::Refuse => "one that the edge does not know is refused",
        UnknownRefresh::Bind => "one that the edge does not know is bound to who brings it first",
    };
    let mut lines = vec![
        "the edge keeps what each token is bound to, then answers; a code needs PKCE".to_owned(),
        format!("a refresh token goes with the sender that it is bound to; {unknown}"),
        format!("a token whose answer does not say how long it lives is kept for {lifetime}"),
    ];
    if !rules.by_client.is_empty() {
        lines.push(format!("{} clients have a `bind` of their own", rules.by_client.len()));
    }
    lines
}

fn introspected(route: &Route, records: bool) -> Vec<String> {
    let rule = &route.rule.authority;
    let whose = match rule.sender_certificate {
        SenderCertificateCheck::Off => None,
        SenderCertificateCheck::Caller => Some("the caller's"),
        SenderCertificateCheck::Forwarded => Some("the one in Client-Cert"),
    };
    let otherwise = if rule.mismatch_inactive { "inactive" } else { "401" };
    let added = "cnf and token_type of an active token are what the edge has bound it to";
    let added = records.then(|| added.to_owned());
    let compared = whose.map(|whose| {
        format!("the certificate that a token is bound to must be {whose}, or {otherwise}")
    });
    added.into_iter().chain(compared).collect()
}

/// What whoever asks about a token presents.
pub(super) fn asker(route: &Route) -> Option<Present> {
    let asks = matches!(route.rule.role, Role::Introspection | Role::Revocation);
    asks.then(|| Present {
        authorization: None,
        cnf: Vec::new(),
        proof: None,
        client_certificate: false,
    })
}

/// What holds for a client that nobody knows.
pub(super) fn strictest() -> Contribution {
    let says = vec!["what every tenant demands, all of it".to_owned()];
    Contribution { scope: "client of no tenant".to_owned(), says, overrides: false }
}

/// What becomes of a token that the edge has no record of.
pub(super) fn recorded(rules: &RetrofitRules) -> &'static str {
    match rules.unrecorded_until {
        Some(_) => "one without a record passes as unbound until `unrecordedUntil`",
        None => "one without a record is refused",
    }
}

/// What the token may be bound by: all of it where the server binds.
fn bind(config: &Config, route: &Route, tenant: Option<TenantId>) -> BindBy {
    let rules = match route.rule.authority.binding {
        Binding::Native => None,
        Binding::Retrofit if route.rule.role == Role::Par => None,
        Binding::Retrofit => issuer(config, route).and_then(|issuer| issuer.retrofit.as_ref()),
    };
    let own = |rules: &RetrofitRules| {
        let of = tenant.and_then(|tenant| rules.by_tenant.get(&tenant));
        of.copied().unwrap_or(rules.bind)
    };
    rules.map_or(BindBy::BOTH, own)
}

/// The ways to be issued a token. `certificates`: whether one can be shown.
pub(super) fn ways(
    config: &Config,
    route: &Route,
    (tenant, requirement): (Option<TenantId>, &Requirement),
    proof: ProofShown,
    certificates: bool,
) -> Vec<Present> {
    let bind = bind(config, route, tenant);
    let dpop = config.rules.dpop_enabled && bind.key;
    let mtls = config.rules.mtls_enabled && bind.certificate && certificates;
    let demand = requirement.demand;
    let way = |cnf: Vec<&'static str>| Present {
        authorization: None,
        proof: cnf.contains(&"jkt").then(|| proof.clone()),
        client_certificate: cnf.contains(&"x5t#S256"),
        cnf,
    };
    let ways = [
        (way(vec!["jkt"]), dpop && demand.met_by(true, false)),
        (way(vec!["x5t#S256"]), mtls && demand.met_by(false, true)),
        (way(vec!["jkt", "x5t#S256"]), dpop && mtls && demand == Demand::Both),
        (way(Vec::new()), demand == Demand::None),
    ];
    ways.into_iter().filter(|(_, open)| *open).map(|(way, _)| way).collect()
}
