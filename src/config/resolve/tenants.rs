//! `tenancy` and `tenants`.

use crate::config::item::{Text, Words};
use crate::config::section::Section;
use crate::config::{Issuer, finding::Place, finding::nearest};
use crate::policy::client::KnownClient;
use crate::policy::grant::BindBy;
use crate::policy::rule::{TenantId, TenantRule};

use super::authority;
use super::scope::scope;

/// Whether a token of an unknown tenant is served under the default rule.
const UNKNOWN: Words<bool> = &[("refuse", false), ("default", true)];

/// What the file says of tenants.
#[derive(Debug)]
pub(super) struct Tenancy<'a> {
    /// The claim that names a token's tenant.
    pub(super) claim: Option<String>,
    /// Whether a token of an unknown tenant is served under the default rule.
    pub(super) unknown_allowed: bool,
    /// The tenants, each with its place in the file.
    pub(super) tenants: Vec<(TenantRule, Section<'a>)>,
    /// Clients whose tenants are known.
    pub(super) clients: Vec<KnownClient>,
    /// What binds the tokens of a tenant.
    pub(super) binds: Vec<(TenantId, BindBy)>,
    section: Section<'a>,
}

impl Tenancy<'_> {
    /// The tenant that `text` names; an error where there is none.
    pub(super) fn find(&self, text: &Text<'_>) -> Option<TenantId> {
        let names = || self.tenants.iter().map(|(tenant, _)| tenant.name.as_str());
        let found = names().position(|name| name == text.value).map(TenantId);
        if found.is_none() {
            let written = text.written;
            text.error(match nearest(&text.value, names()) {
                Some((near, _)) => format!("no tenant `{written}`; the nearest is `{near}`"),
                None => format!("no tenant `{written}`: `tenants` has none"),
            });
        }
        found
    }
}

/// Resolves `tenancy` and `tenants`.
pub(super) fn resolve<'a>(root: &Section<'a>) -> Tenancy<'a> {
    let section = root.section("tenancy");
    let claim = section.text("claim").map(|text| text.value);
    let unknown = section.word("unknown", UNKNOWN);
    if claim.is_none() && unknown.is_some() {
        section.warn("unknown", "has no effect without `claim`");
    }
    // Each is a label value of many metrics.
    let tenants = root.named("tenants", 1000).into_iter();
    let tenants: Vec<_> =
        tenants.map(|(name, section)| (tenant(name, &section), section)).collect();
    let (mut clients, mut binds) = (Vec::new(), Vec::new());
    for (index, (_, section)) in tenants.iter().enumerate() {
        authority::clients(TenantId(index), section, &mut clients);
        binds.extend(section.item("bind").map(|item| (TenantId(index), authority::bind(item))));
    }
    let unknown_allowed = unknown.unwrap_or(false);
    Tenancy { claim, unknown_allowed, tenants, clients, binds, section }
}

fn tenant(name: String, section: &Section<'_>) -> TenantRule {
    if name.is_empty() || name.len() > 128 || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        section.error_here("a name of 1 to 128 visible ASCII characters is expected");
    }
    if name == "other" {
        section.error_here("`other` is how metrics call the tenants that are not configured");
    }
    if name == "default" {
        section.error_here("`default` is how metrics call the lack of a tenant");
    }
    TenantRule { name, scope: scope(section, section.flag("nonce")) }
}

/// Warns of tenants that no token can belong to, and of a claim that no token will be asked for.
pub(super) fn check_use(
    tenancy: &Tenancy<'_>,
    issuers: &[(Issuer, Place)],
    reads_tokens: bool,
    asks: bool,
) {
    if tenancy.claim.is_some() {
        if !reads_tokens {
            tenancy.section.warn("claim", "has no effect: no route reads tokens");
        } else if tenancy.tenants.is_empty() && !tenancy.unknown_allowed {
            let message = "every token is refused that has this claim: `tenants` is empty and `unknown` \
                           is `refuse`";
            tenancy.section.warn("claim", message);
        }
        return;
    }
    for (index, (_, section)) in tenancy.tenants.iter().enumerate() {
        let named = |(issuer, _): &(Issuer, _)| issuer.rules.tenant == Some(TenantId(index));
        let own = tenancy.clients.iter().any(|client| client.tenant == TenantId(index));
        let has_clients = asks && own;
        if !issuers.iter().any(named) && !has_clients {
            section.warn_here(
                "no token belongs to it: no issuer names it, `tenancy.claim` is not set",
            );
        }
    }
}
