//! What a protected resource says of itself (RFC 9728): who issues its tokens, and what they must be
//! bound to.
//!
//! A document promises no more than each route of its resource holds: a client that keeps to it is
//! refused nowhere for what it was told.

use serde::Serialize;

use super::jose::AlgorithmSet;
use super::rule::{Demand, Requirement, RouteRule, Rules};
use super::target::Origin;
use super::token::IssuerRules;

/// What the path of a resource is put behind (RFC 9728 section 3.1).
pub const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

/// A protected resource: an external origin and the path that its routes have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    origin: Origin,
    /// Empty for the origin itself.
    path: String,
}

impl Resource {
    /// The resource at this path, which is a route's; `None` where no URL has such a path.
    #[must_use]
    pub fn new(origin: &Origin, path: &str) -> Option<Self> {
        // RFC 3986 section 3.3. What stands for another byte is escaped already.
        let fits =
            |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/%".contains(&byte);
        let path = if path == "/" { "" } else { path };
        path.bytes().all(fits).then(|| Self { origin: origin.clone(), path: path.to_owned() })
    }

    /// Its identifier.
    #[must_use]
    pub fn identifier(&self) -> String {
        format!("{}{}", self.origin, self.path)
    }

    /// The path of its metadata.
    #[must_use]
    pub fn metadata_path(&self) -> String {
        format!("{WELL_KNOWN}{}", self.path)
    }

    /// The URL of its metadata.
    #[must_use]
    pub fn metadata_url(&self) -> String {
        format!("{}{}", self.origin, self.metadata_path())
    }
}

/// One route of a resource.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// What it demands.
    pub rule: &'a RouteRule,
    /// Whether its own scopes may be told.
    pub told: bool,
}

/// What a document rests on, the resource apart.
#[derive(Clone, Copy, Debug)]
pub struct Grounds<'a> {
    /// Demands of default, tenants and audiences.
    pub rules: &'a Rules,
    /// Whose tokens are taken.
    pub issuers: &'a [IssuerRules],
    /// Whether a client can show a certificate at all.
    pub certificates: bool,
}

/// A document (RFC 9728 section 2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Document {
    resource: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    authorization_servers: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    scopes_supported: Vec<String>,
    bearer_methods_supported: [&'static str; 1],
    #[serde(skip_serializing_if = "is_false")]
    tls_client_certificate_bound_access_tokens: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dpop_signing_alg_values_supported: Vec<&'static str>,
    #[serde(skip_serializing_if = "is_false")]
    dpop_bound_access_tokens_required: bool,
}

/// Left out where it is the default that RFC 9728 gives it.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

/// The document of a resource with these routes.
#[must_use]
pub fn document(resource: &Resource, routes: &[Listed<'_>], grounds: &Grounds<'_>) -> Document {
    let rules = grounds.rules;
    let all: Vec<_> = routes.iter().flat_map(|route| requirements(route.rule, grounds)).collect();
    let mut scopes: Vec<String> = Vec::new();
    for scope in routes.iter().filter(|route| route.told).flat_map(|route| &route.rule.scopes) {
        if !scopes.contains(scope) {
            scopes.push(scope.clone());
        }
    }
    let dpop = rules.dpop_enabled && all.iter().all(|one| one.demand != Demand::Mtls);
    let algorithms = all.iter().map(|one| one.algorithms).reduce(AlgorithmSet::intersection);
    let algorithms = algorithms.filter(|_| dpop).unwrap_or_default();
    Document {
        resource: resource.identifier(),
        authorization_servers: authorization_servers(grounds.issuers),
        scopes_supported: scopes,
        bearer_methods_supported: ["header"],
        tls_client_certificate_bound_access_tokens: rules.mtls_enabled && grounds.certificates,
        dpop_signing_alg_values_supported: algorithms.iter().map(|one| one.name()).collect(),
        dpop_bound_access_tokens_required: dpop
            && !routes.iter().any(|route| route.rule.allow_unbound)
            && all.iter().all(always_dpop),
    }
}

/// What the tokens of each issuer must meet on a route, whatever tenant they turn out to have. An
/// audience only ever adds the certificate.
fn requirements(rule: &RouteRule, grounds: &Grounds<'_>) -> Vec<Requirement> {
    let issuers = grounds.issuers.iter();
    let tenants = issuers.flat_map(|issuer| grounds.rules.tenants_of(issuer.tenant));
    tenants.map(|tenant| grounds.rules.requirement(tenant, &[], rule)).collect()
}

/// Whether nothing passes that is not bound to a key. `observe` lets anything pass.
fn always_dpop(requirement: &Requirement) -> bool {
    !requirement.mode.observes() && !requirement.demand.met_by(false, true)
}

/// The issuers whose identifier is one of an authorization server (RFC 8414 section 2), `http` taken
/// as well, which development uses.
fn authorization_servers(issuers: &[IssuerRules]) -> Vec<String> {
    let is_url = |issuer: &&String| issuer.starts_with("https://") || issuer.starts_with("http://");
    issuers.iter().map(|entry| &entry.issuer).filter(is_url).cloned().collect()
}

#[cfg(test)]
mod tests;
