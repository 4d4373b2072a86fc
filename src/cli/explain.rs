//! `holdfast explain`: which listener, route, upstream and rule would serve a request, and what its
//! sender must present.

mod answer;
mod grant;
mod own;
mod present;
mod text;

use std::io::{self, Write};
use std::path::Path;

use answer::{
    ClientShown, Contribution, Explanation, IssuerShown, ListenerShown, Refused, RequirementShown,
    RouteShown, TokenShown, UpstreamShown,
};

use super::check;
use crate::config::{
    self, ClientCertificates, Config, Cors, Listener, ListenerTls, Route, Severity, show_duration,
};
use crate::edge::resource_metadata::ResourceMetadata;
use crate::edge::route::{Miss, RouteTable};
use crate::edge::trust::ByName;
use crate::policy::denial::Denial;
use crate::policy::jose::AlgorithmSet;
use crate::policy::presented::names_access_token;
use crate::policy::rule::{Binding, Mode, Requirement, Role, Scope, TenantId};
use crate::policy::share::bucket;
use crate::policy::target::{Origin, normalise_path, split_authority};
use crate::policy::token::IssuerRules;

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The configuration file.
    pub config: &'a Path,
    /// The request's method.
    pub method: &'a str,
    /// The request's URL, as a client would write it.
    pub url: &'a str,
    /// The tenant of the token, where it has one.
    pub tenant: Option<&'a str>,
    /// An audience (`aud`) of the token.
    pub audience: Option<&'a str>,
    /// The client (`client_id`) that asks, to tell whether it is enforced.
    pub client: Option<&'a str>,
    /// Whether the answer is one JSON document.
    pub json: bool,
}

/// Writes the answer, as text or as one JSON document. Gives the exit status: 0 when something would
/// serve the request, 1 when nothing would or the configuration has errors.
///
/// # Errors
/// When `out` cannot be written to.
pub fn run(out: &mut impl Write, query: &Query<'_>) -> io::Result<u8> {
    let loaded = config::load(query.config);
    let Some(config) = loaded.config else {
        let errors = loaded.findings.iter().filter(|finding| finding.severity == Severity::Error);
        if query.json {
            let findings: Vec<_> = errors.map(check::finding_json).collect();
            writeln!(out, "{:#}", serde_json::json!({ "findings": findings }))?;
        } else {
            check::write_findings(out, &errors.cloned().collect::<Vec<_>>())?;
        }
        return Ok(1);
    };
    let explanation = explain(&config, query);
    if query.json {
        writeln!(out, "{:#}", serde_json::to_value(&explanation)?)?;
    } else {
        text::write(out, &explanation, &query.config.display().to_string())?;
    }
    Ok(u8::from(explanation.refused.is_some()))
}

fn explain(config: &Config, query: &Query<'_>) -> Explanation {
    let mut shown = Explanation {
        method: query.method.to_owned(),
        url: query.url.to_owned(),
        refused: None,
        listeners: Vec::new(),
        own: None,
        route: None,
        upstream: None,
        authority: None,
        tenant: None,
        rule: Vec::new(),
        requirement: None,
        token: None,
        present: Vec::new(),
        notes: Vec::new(),
    };
    if let Err(refused) = fill(config, query, &mut shown) {
        shown.refused = Some(refused);
    }
    shown
}

fn refused(status: u16, denial: Denial, why: impl Into<String>) -> Refused {
    Refused { status, code: denial.code(), why: why.into() }
}

/// A URL cut into what a client sends.
struct Target<'a> {
    authority: &'a str,
    path: &'a str,
    query: Option<&'a str>,
}

fn target(url: &str) -> Option<Target<'_>> {
    let (scheme, rest) = url.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    // A client keeps the fragment to itself (RFC 9110 section 7.1).
    let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, Some(query)),
        None => (rest, None),
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    Some(Target { authority, path: if path.is_empty() { "/" } else { path }, query })
}

fn fill(config: &Config, query: &Query<'_>, shown: &mut Explanation) -> Result<(), Refused> {
    const NO_URL: &str = "a URL is expected, as in https://api.example.com/orders";
    let host = |why: &str| refused(400, Denial::HostInvalid, why);
    let target = target(query.url).ok_or_else(|| host(NO_URL))?;
    let (name, port) = split_authority(target.authority).ok_or_else(|| host(NO_URL))?;
    shown.listeners = listeners(config, &name, port.unwrap_or(443), &mut shown.notes);

    let normal = normalise_path(target.path).ok_or_else(|| {
        let why = "the path has a broken escape, a control byte, a space or a byte outside ASCII";
        refused(400, Denial::PathInvalid, why)
    })?;
    let path = normal.path.as_ref();
    if let Some(own) = own::find(config, query.method, target.authority, path)? {
        shown.own = Some(own);
        return Ok(());
    }
    let (table, metadata) = (RouteTable::new(&config.routes), ResourceMetadata::new(config));
    if let Some((document, _)) = metadata.find(&table, target.authority, path) {
        shown.own = Some(own::metadata(query.method, metadata.identifier(document))?);
        return Ok(());
    }
    let found = table.find(target.authority, path, query.method);
    let found = found.map_err(|miss| missed(&miss, target.authority, path))?;
    let Some(route) = config.routes.get(found.route) else { return Ok(()) };
    shown.route = Some(RouteShown {
        name: route.name.clone(),
        line: route.line,
        role: route.rule.role.name(),
        answer: route.upstream.is_none().then_some("edge"),
        allow_unbound: route.rule.allow_unbound,
        cors: match &route.cors {
            Cors::Off => None,
            Cors::Upstream => Some("upstream"),
            Cors::Edge(_) => Some("edge"),
        },
        cors_origins: match &route.cors {
            Cors::Off | Cors::Upstream => Vec::new(),
            Cors::Edge(rules) if rules.any_origin => vec!["*".to_owned()],
            Cors::Edge(rules) => rules.origins.clone(),
        },
        stream_max_age: route.stream_max_age.map(show_duration),
        resource_metadata: route
            .hosts
            .get(found.host)
            .and_then(|host| metadata.url(&table, target.authority, found.route, host.origin?)),
    });
    shown.upstream = upstream(config, route);
    shown.authority = grant::authority(config, route);
    if normal.ambiguous && !route.ambiguous_paths {
        let why = "the path has an encoded slash, a backslash, an empty segment or dots before a \
                   `;`, and the route does not say `allowAmbiguousPaths: true`";
        return Err(refused(400, Denial::PathInvalid, why));
    }
    let role = route.rule.role;
    if !role.reads_token() && !role.asks_for_token() {
        shown.present = grant::asker(route).into_iter().collect();
        return Ok(());
    }
    if target.query.is_some_and(names_access_token) {
        return Err(refused(400, Denial::TokenInQuery, "a token in the query is refused"));
    }
    let origin = route.hosts.get(found.host).and_then(|host| host.origin);
    let origin = origin.and_then(|origin| config.origins.get(origin));
    rule(config, query, route, &format!("{}{path}", origin.map_or("", Origin::as_str)), shown)
}

fn missed(miss: &Miss, authority: &str, path: &str) -> Refused {
    match miss {
        Miss::Unknown => {
            let why = format!("no route has the host `{authority}` and the path `{path}`");
            refused(404, Denial::RouteUnknown, why)
        }
        Miss::Method(allowed) => {
            let why = format!("the route takes only {}", allowed.join(", "));
            refused(405, Denial::MethodNotAllowed, why)
        }
    }
}

/// The listeners with this port; all of them, with a note, where none has it.
fn listeners(
    config: &Config,
    host: &str,
    port: u16,
    notes: &mut Vec<String>,
) -> Vec<ListenerShown> {
    let show = |listener: &Listener| {
        let (policy, tls) = tls_policy(listener, host).unzip();
        let handed_on = listener.proxies.iter().any(|proxy| proxy.certificate.is_some());
        ListenerShown {
            name: listener.name.clone(),
            address: listener.address.to_string(),
            policy: policy.flatten(),
            tls: tls.is_some(),
            proxy_protocol: listener.proxy_protocol,
            client_certificates: match tls.map(|tls| tls.client_certificates) {
                Some(ClientCertificates::Request) => "request",
                Some(ClientCertificates::Require) => "require",
                Some(ClientCertificates::Off) | None if handed_on => "handed on",
                Some(ClientCertificates::Off) | None => "off",
            },
        }
    };
    let all = &config.edge.listeners;
    let fitting = all.iter().filter(|listener| listener.address.port() == port);
    let fitting: Vec<_> = fitting.map(show).collect();
    if fitting.is_empty() {
        notes.push(format!("no listener has port {port}: something in front must map it"));
        return all.iter().map(show).collect();
    }
    fitting
}

/// The policy that a client meets which asks for `host`, with its name where it has one.
fn tls_policy<'a>(listener: &'a Listener, host: &str) -> Option<(Option<String>, &'a ListenerTls)> {
    let tls = listener.tls.as_ref()?;
    let mut names = ByName::default();
    for policy in &tls.policies {
        names.add(&policy.hosts, &policy);
    }
    Some(match names.find(host) {
        Some(policy) => (Some(policy.name.clone()), &policy.tls),
        None => (None, tls),
    })
}

fn upstream(config: &Config, route: &Route) -> Option<UpstreamShown> {
    use config::AuthorizationPolicy::{Bearer, Forward, Strip};
    let upstream = config.upstreams.get(route.upstream?)?;
    let credentials = match (route.rule.role, upstream.authorization) {
        (Role::Public, _) if route.pass_credentials => "passed on as received, unread",
        (Role::Public, _) => "removed",
        (Role::Token | Role::Par, _) if route.rule.authority.binding == Binding::Retrofit => {
            "the client's own as received, without the proof"
        }
        (Role::Token | Role::Par | Role::Introspection | Role::Revocation | Role::Metadata, _) => {
            "as received"
        }
        (Role::Resource | Role::FreshAuth, Forward) => "forwarded as received",
        (Role::Resource | Role::FreshAuth, Bearer) => "forwarded as Bearer, without the proof",
        (Role::Resource | Role::FreshAuth, Strip) => "removed",
    };
    let scheme = if upstream.tls.is_some() { "https://" } else { "" };
    let servers = upstream.servers.iter().map(|server| format!("{scheme}{}", server.name));
    Some(UpstreamShown { name: upstream.name.clone(), servers: servers.collect(), credentials })
}

fn rule(
    config: &Config,
    query: &Query<'_>,
    route: &Route,
    htu: &str,
    shown: &mut Explanation,
) -> Result<(), Refused> {
    let asks_for_token = route.rule.role.asks_for_token();
    let tenant = if asks_for_token {
        let own = grant::issuer(config, route).and_then(|issuer| issuer.tenant);
        own.or(tenant(config, query, &mut Vec::new())?)
    } else {
        tenant(config, query, &mut shown.notes)?
    };
    let tenant_rule = tenant.and_then(|TenantId(index)| config.rules.tenants.get(index));
    shown.tenant = tenant_rule.map(|tenant| tenant.name.clone());
    let audiences: Vec<_> = query.audience.iter().map(|&audience| audience.to_owned()).collect();
    let mut requirement = if asks_for_token {
        let known = tenant.is_some();
        config.rules.grant_requirement(tenant, known, &audiences, &route.rule)
    } else {
        config.rules.requirement(tenant, &audiences, &route.rule)
    };
    requirement.nonce &= !route.rule.authority.upstream_nonces;

    let [nonce_said, certificate_said] = audience_said(config, query);
    shown.rule.push(default_said(&config.rules.default));
    shown.rule.extend(nonce_said.filter(|_| !asks_for_token));
    shown.rule.extend(
        tenant_rule.map(|tenant| contribution(format!("tenant {}", tenant.name), &tenant.scope)),
    );
    shown.rule.extend(certificate_said);
    let strictest = asks_for_token && tenant.is_none() && !config.rules.tenants.is_empty();
    shown.rule.extend(strictest.then(grant::strictest));
    shown.rule.push(contribution(format!("route {}", route.name), &route.rule.scope));
    shown.requirement = Some(RequirementShown {
        require: requirement.demand.name(),
        mode: requirement.mode.name(),
        enforce_percent: share(requirement.mode),
        client: query.client.map(|client| share_of(config, requirement.mode, client)),
        nonce: requirement.nonce,
        algorithms: names(requirement.algorithms),
    });
    shown.token = (!asks_for_token).then(|| token(config, route));
    if let Some(audience) = query.audience {
        let listed = &route.rule.audiences;
        if !listed.is_empty() && !listed.iter().any(|known| known == audience) {
            let why = format!("the route takes no token for `{audience}` alone");
            return Err(refused(401, Denial::RouteAudience, why));
        }
    }
    present::present(config, query, route, (tenant, &requirement), htu, shown);
    Ok(())
}

fn token(config: &Config, route: &Route) -> TokenShown {
    let issuers = config.issuers.iter().map(|issuer| IssuerShown {
        issuer: issuer.rules.issuer.clone(),
        audiences: issuer.rules.audiences.clone(),
        introspection: introspection(&issuer.rules),
        recorded: issuer.rules.retrofit.as_ref().map(grant::recorded),
    });
    TokenShown {
        issuers: issuers.collect(),
        audiences: route.rule.audiences.clone(),
        scopes: route.rule.scopes.clone(),
        max_age: route.rule.step_up.max_age.map(show_duration),
        acr_values: route.rule.step_up.acr_values.clone(),
    }
}

fn tenant(
    config: &Config,
    query: &Query<'_>,
    notes: &mut Vec<String>,
) -> Result<Option<TenantId>, Refused> {
    let rules = &config.rules;
    let Some(name) = query.tenant else {
        if rules.tenant_claim.is_some() && !rules.unknown_tenant_allowed {
            notes.push(
                "no --tenant: a token without one is refused unless its issuer's entry names one"
                    .to_owned(),
            );
        }
        return Ok(None);
    };
    let found = rules.tenant_named(name);
    if found.is_some() {
        return Ok(found);
    }
    if rules.tenant_claim.is_some() && rules.unknown_tenant_allowed {
        notes.push(format!("tenant `{name}` is not configured: the default rule holds"));
        return Ok(None);
    }
    let why = format!("tenant `{name}` is not configured");
    Err(refused(401, Denial::TenantUnknown, why))
}

/// Which of an issuer's tokens it is asked about; nothing where it is asked about none.
fn introspection(issuer: &IssuerRules) -> Option<String> {
    let rules = issuer.introspection.as_ref()?;
    let of = if issuer.keys { "no JWT" } else { "one of its JWTs or opaque" };
    Some(match &rules.token_prefix {
        Some(prefix) => format!("{of}, beginning with {prefix}"),
        None => of.to_owned(),
    })
}

fn default_said(default: &Requirement) -> Contribution {
    let scope = Scope {
        require: Some(default.demand),
        mode: Some(default.mode),
        algorithms: Some(default.algorithms),
        nonce: Some(default.nonce),
        overrides: false,
    };
    contribution("default".to_owned(), &scope)
}

/// What the audiences add, before the tenant (nonce) and after it (certificate), as
/// [`Rules::requirement`](crate::policy::rule::Rules::requirement) adds up.
fn audience_said(config: &Config, query: &Query<'_>) -> [Option<Contribution>; 2] {
    let rules = &config.rules;
    let listed = |list: &[String]| list.iter().any(|known| Some(known.as_str()) == query.audience);
    let said = |said: &str| Contribution {
        scope: query.audience.map_or("no audience".to_owned(), |name| format!("audience {name}")),
        says: vec![said.to_owned()],
        overrides: false,
    };
    let unlisted = !rules.nonce_audiences.is_empty() && !listed(&rules.nonce_audiences);
    [
        (unlisted && rules.default.nonce).then(|| said("nonce false (not in requiredAudiences)")),
        listed(&rules.certificate_audiences).then(|| said("require mtls (enforceForAudiences)")),
    ]
}

fn contribution(name: String, scope: &Scope) -> Contribution {
    let says = [
        scope.require.map(|demand| format!("require {}", demand.name())),
        scope.mode.map(|mode| match share(mode) {
            Some(percent) => format!("mode observe, enforcePercent {percent}"),
            None => format!("mode {}", mode.name()),
        }),
        scope.nonce.map(|nonce| format!("nonce {nonce}")),
        scope.algorithms.map(|set| format!("allowedAlgorithms {}", names(set).join(" "))),
    ];
    Contribution {
        scope: name,
        says: says.into_iter().flatten().collect(),
        overrides: scope.overrides,
    }
}

/// The percentage of clients that are enforced, where it is neither none nor all.
fn share(mode: Mode) -> Option<u8> {
    Some(mode.share().percent()).filter(|percent| (1..100).contains(percent))
}

/// Whether a client is enforced, and from which percentage on it would be.
fn share_of(config: &Config, mode: Mode, client: &str) -> ClientShown {
    ClientShown {
        id: client.to_owned(),
        enforced: config.rules.enforces(mode, Some(client)),
        enforced_from_percent: bucket(&config.rules.share_salt, client) + 1,
    }
}

fn names(algorithms: AlgorithmSet) -> Vec<&'static str> {
    algorithms.iter().map(|algorithm| algorithm.name()).collect()
}

#[cfg(test)]
mod tests;
