//! Whether the demands of default, tenants, audiences and routes make sense together.

use crate::config::finding::Place;
use crate::config::section::Section;
use crate::config::{ClientCertificates, Edge, Issuer, ListenerTls};
use crate::policy::jose::AlgorithmSet;
use crate::policy::rule::{Demand, Mode, Requirement, Role, Rules, Scope, TenantId};
use crate::policy::share::Share;

use super::routes::Draft;
use super::security::Security;
use super::tenants::Tenancy;

/// Everything that demands or serves demands.
pub(super) struct Demands<'d, 'a> {
    /// The rules, put together.
    pub(super) rules: &'d Rules,
    /// The default.
    pub(super) security: &'d Security<'a>,
    /// The tenants.
    pub(super) tenancy: &'d Tenancy<'a>,
    /// The routes.
    pub(super) drafts: &'d [Draft<'a>],
    /// The issuers.
    pub(super) issuers: &'d [(Issuer, Place)],
    /// The listeners; `None` when they could not be read.
    pub(super) edge: Option<&'d Edge>,
}

/// Checks them.
pub(super) fn check(all: &Demands<'_, '_>) {
    let default = [("the default".to_owned(), all.rules.default)];
    for (tenant, section) in &all.tenancy.tenants {
        check_scope(&tenant.scope, section, &default, all.rules);
    }
    let bases = bases(all.rules);
    let demanding = |role: Role| role.reads_token() || role.asks_for_token();
    for draft in all.drafts.iter().filter(|draft| demanding(draft.route.rule.role)) {
        check_scope(&draft.route.rule.scope, &draft.section, &bases, all.rules);
        check_route(all, draft);
    }
    if !all.security.certificate_audiences.is_empty() && asks_for_certificates(all) == Some(false) {
        let message = "demands a certificate, but no listener has `clientCertificates: request` or \
                       `require`";
        all.security.mtls.error("enforceForAudiences", message);
    }
}

/// What a route may find before it adds its own: the default first.
fn bases(rules: &Rules) -> Vec<(String, Requirement)> {
    let mut bases = vec![("the default".to_owned(), rules.default)];
    for tenant in &rules.tenants {
        bases.push((format!("tenant `{}`", tenant.name), rules.default.with(&tenant.scope)));
    }
    if let Some(audience) = rules.certificate_audiences.first() {
        bases.push((format!("audience `{audience}`"), rules.default.with_certificate()));
    }
    bases
}

fn asks_for_certificates(all: &Demands<'_, '_>) -> Option<bool> {
    let asks = |asked| match asked {
        ClientCertificates::Off => false,
        ClientCertificates::Request | ClientCertificates::Require => true,
    };
    let mut listeners = all.edge?.listeners.iter();
    Some(listeners.any(|listener| {
        let policies = listener.tls.iter().flat_map(ListenerTls::policies);
        policies.into_iter().any(|tls| asks(tls.client_certificates))
            || listener.proxies.iter().any(|proxy| proxy.certificate.is_some())
    }))
}

/// Warns of values without effect, and of those that weaken.
fn check_scope(
    scope: &Scope,
    section: &Section<'_>,
    bases: &[(String, Requirement)],
    rules: &Rules,
) {
    if scope.nonce == Some(true) && !rules.default.nonce {
        section
            .error("nonce", "`true` needs `security.senderConstraints.dpop.nonce.enabled: true`");
    }
    if scope.overrides {
        check_overrides(scope, section, bases);
        return;
    }
    for (key, value, base) in bases.iter().take(1).flat_map(|(_, base)| idle(scope, base)) {
        let message = format!(
            "{value} has no effect: the default is {base}, and demands add up; only `overrides: \
             true` beside it would replace"
        );
        section.warn(key, message);
    }
}

/// Values that adding up leaves without effect: key, value, and what stays.
fn idle(scope: &Scope, base: &Requirement) -> Vec<(&'static str, String, String)> {
    let mut idle = Vec::new();
    if let Some(require) = scope.require
        && base.demand.and(require) == base.demand
        && require != base.demand
    {
        idle.push(("require", word(require.name()), word(base.demand.name())));
    }
    if let Some(mode) = scope.mode
        && mode.share() < base.mode.share()
    {
        idle.push((mode_key(mode), said(mode), said(base.mode)));
    }
    if scope.nonce == Some(false) && base.nonce {
        idle.push(("nonce", word("false"), word("true")));
    }
    if let Some(algorithms) = scope.algorithms
        && !algorithms.intersection(base.algorithms).is_empty()
        && let Some(more) = beyond(algorithms, base.algorithms)
    {
        idle.push(("allowedAlgorithms", more, names(base.algorithms)));
    }
    idle
}

fn check_overrides(scope: &Scope, section: &Section<'_>, bases: &[(String, Requirement)]) {
    let mut weakens = false;
    let mut warn = |key: &str, weaker: &dyn Fn(&Requirement) -> Option<String>| {
        let found = bases.iter().find_map(|(name, base)| Some((name, weaker(base)?)));
        if let Some((name, change)) = found {
            weakens = true;
            section.warn(key, format!("weakens what {name} demands: {change}"));
        }
    };
    if let Some(require) = scope.require {
        warn("require", &|base| {
            let (from, to) = (base.demand, require);
            (from.and(to) != to).then(|| format!("`{}` instead of `{}`", to.name(), from.name()))
        });
    }
    if let Some(mode) = scope.mode {
        warn(mode_key(mode), &|base| {
            let weaker = mode.share() < base.mode.share();
            weaker.then(|| format!("{} instead of {}", said(mode), said(base.mode)))
        });
    }
    if scope.nonce == Some(false) {
        warn("nonce", &|base| base.nonce.then(|| "no nonce".to_owned()));
    }
    if let Some(algorithms) = scope.algorithms {
        warn("allowedAlgorithms", &|base| {
            beyond(algorithms, base.algorithms).map(|more| format!("also {more}"))
        });
    }
    if !weakens {
        section
            .warn("overrides", "has no effect: nothing beside it is weaker than what it replaces");
    }
}

/// Each tenant's demand on the route, and nobody's.
fn check_route(all: &Demands<'_, '_>, draft: &Draft<'_>) {
    let tenants = (0..all.rules.tenants.len()).map(|index| Some(TenantId(index)));
    let mut errors: Vec<(&str, String)> = Vec::new();
    for tenant in std::iter::once(None).chain(tenants) {
        let requirement = all.rules.requirement(tenant, &[], &draft.route.rule);
        let name = tenant.and_then(|TenantId(index)| all.rules.tenants.get(index));
        let whom = name.map_or_else(String::new, |tenant| format!(" for tenant `{}`", tenant.name));
        for (key, message) in route_errors(all, draft, &requirement, tenant, &whom) {
            // One tenant is enough to show what is wrong.
            if errors.iter().all(|(known, _)| *known != key) {
                errors.push((key, message));
            }
        }
    }
    for (key, message) in errors {
        draft.section.error(key, message);
    }
}

fn route_errors(
    all: &Demands<'_, '_>,
    draft: &Draft<'_>,
    requirement: &Requirement,
    tenant: Option<TenantId>,
    whom: &str,
) -> Vec<(&'static str, String)> {
    let mut errors = Vec::new();
    let demand = requirement.demand;
    let rule = &draft.route.rule;
    if demand == Demand::None && !rule.allow_unbound && rule.role.reads_token() {
        let message = format!(
            "nothing is demanded{whom}: demand something, or say `role: public` (reads no token) or \
             `allowUnbound: true` (for a migration)"
        );
        errors.push(("require", message));
    }
    if let Some(obstacle) = obstacle(all, demand) {
        let message = format!("`{}` is demanded{whom}, but {obstacle}", demand.name());
        errors.push(("require", message));
    }
    let issuer = rule.authority.issuer.and_then(|index| all.issuers.get(index));
    let retrofit = issuer.and_then(|(issuer, _)| issuer.rules.retrofit.as_ref());
    if let Some(retrofit) = retrofit.filter(|_| rule.role == Role::Token) {
        let bind = tenant.and_then(|tenant| retrofit.by_tenant.get(&tenant));
        let bind = bind.unwrap_or(&retrofit.bind);
        if !demand.met_by(bind.key, bind.certificate) {
            let message =
                format!("`{}` is demanded{whom}, but `bind` leaves it out", demand.name());
            errors.push(("require", message));
        }
    }
    if all.rules.dpop_enabled && requirement.algorithms.is_empty() {
        let message =
            format!("no algorithm is left{whom}: lists of default, tenant and route intersect");
        errors.push(("allowedAlgorithms", message));
    }
    errors
}

/// Why no sender could ever meet `demand`.
fn obstacle(all: &Demands<'_, '_>, demand: Demand) -> Option<&'static str> {
    const NO_DPOP: &str = "`dpop.enabled` is `false`";
    const NO_MTLS: &str = "`mtls.enabled` is `false`";
    const NO_LISTENER: &str = "no listener has `clientCertificates: request` or `require`";
    let key = (!all.rules.dpop_enabled).then_some(NO_DPOP);
    let certificate = if all.rules.mtls_enabled {
        (asks_for_certificates(all) == Some(false)).then_some(NO_LISTENER)
    } else {
        Some(NO_MTLS)
    };
    match demand {
        Demand::None => None,
        Demand::Any => key.and(certificate).map(|reason| match reason {
            NO_LISTENER => "`dpop.enabled` is `false` and no listener asks for client certificates",
            _ => "both `dpop.enabled` and `mtls.enabled` are `false`",
        }),
        Demand::Dpop => key,
        Demand::Mtls => certificate,
        Demand::Both => key.or(certificate),
    }
}

/// What is in `algorithms` and not in `base`.
fn beyond(algorithms: AlgorithmSet, base: AlgorithmSet) -> Option<String> {
    let more: Vec<_> = algorithms.iter().filter(|algorithm| !base.contains(*algorithm)).collect();
    (!more.is_empty()).then(|| names(AlgorithmSet::of(&more)))
}

fn names(algorithms: AlgorithmSet) -> String {
    algorithms.iter().map(|algorithm| algorithm.name()).collect::<Vec<_>>().join(", ")
}

/// The key that says a mode's share.
fn mode_key(mode: Mode) -> &'static str {
    if mode.share() == Share::NONE { "mode" } else { "enforcePercent" }
}

/// A mode with its share.
fn said(mode: Mode) -> String {
    match mode {
        Mode::Observe(share) if share != Share::NONE => {
            format!("`observe` for all but {} % of the clients", share.percent())
        }
        Mode::Enforce | Mode::Observe(_) => word(mode.name()),
    }
}

fn word(word: &str) -> String {
    format!("`{word}`")
}
