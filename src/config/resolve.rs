//! From sections of the file to [`Config`], with every error on the way.

mod authority;
mod capsules;
mod cors;
mod demands;
mod edge;
mod fresh_auth;
mod introspection;
mod issuers;
mod proxies;
mod routes;
mod scope;
mod security;
mod store;
mod telemetry;
mod tenants;
mod tls;
mod upstream_tls;
mod upstreams;

use super::Config;
use super::finding::Place;
use super::section::Section;
use crate::policy::rule::Rules;

/// The version of the file's layout that this build reads.
const SCHEMA_VERSION: u64 = 1;

/// Resolves the whole file. `None` when an error keeps the parts from being put together; after any
/// other error the outcome is not to be used.
pub(super) fn resolve(root: Section<'_>) -> Option<Config> {
    if !root.has("schemaVersion") {
        let message = format!("is required; this build reads version {SCHEMA_VERSION}");
        root.error("schemaVersion", message);
    }
    root.number("schemaVersion", SCHEMA_VERSION, SCHEMA_VERSION..=SCHEMA_VERSION);

    let (edge, reach) = edge::resolve(&root.section("edge"));
    let upstreams = upstreams::resolve(&root, &reach);
    let reach = reach.with(upstreams::known(&upstreams));
    let tenancy = tenants::resolve(&root);
    let security = security::resolve(&root, &tenancy);
    let issuers = issuers::resolve(&root, &tenancy, &reach);
    let names: Vec<_> = upstreams.iter().map(|(upstream, _)| upstream.name.as_str()).collect();
    let (drafts, mut origins) = routes::resolve(&root, &names, &issuers, edge.as_ref());
    let telemetry = telemetry::resolve(&root.section("telemetry"), &reach);
    let (dpop, mtls) = (security.dpop_enabled, security.mtls_enabled);
    let means = capsules::Means { dpop, mtls, edge: edge.as_ref() };
    let capsules = capsules::resolve(&root, &mut origins, &means);
    let binds = issuers.iter().any(|(issuer, _)| issuer.rules.retrofit.is_some());
    let store = store::resolve(&root, &security, binds, &reach);
    let audit = capsules::audit(&root);

    let reads_tokens = drafts.iter().any(|draft| draft.route.rule.role.reads_token());
    let asks = drafts.iter().any(|draft| draft.route.rule.role.is_authority());
    issuers::check_use(&root, &issuers, reads_tokens, asks);
    upstreams::check_use(root.sink(), &upstreams, &drafts);
    tenants::check_use(&tenancy, &issuers, reads_tokens, asks);
    let rules = rules(&security, &tenancy);
    demands::check(&demands::Demands {
        rules: &rules,
        security: &security,
        tenancy: &tenancy,
        drafts: &drafts,
        issuers: &issuers,
        edge: edge.as_ref(),
    });

    Some(Config {
        edge: edge?,
        reach,
        upstreams: upstreams.into_iter().map(|(upstream, _)| upstream).collect(),
        routes: drafts.into_iter().map(|draft| draft.route).collect(),
        origins,
        issuers: issuers.into_iter().map(|(issuer, _)| issuer).collect(),
        rules,
        dpop: security.proof,
        nonce_keys: security.nonce_keys,
        replay_store: security.replay_store,
        nonce_store: security.nonce_store,
        replay_status: security.replay_status,
        bypass: security.bypass,
        rotation_grace: security.rotation_grace,
        clients: tenancy.clients,
        capsules,
        store,
        audit,
        telemetry,
    })
}

/// What default, tenants and audiences demand.
fn rules(security: &security::Security<'_>, tenancy: &tenants::Tenancy<'_>) -> Rules {
    Rules {
        default: security.default,
        dpop_enabled: security.dpop_enabled,
        mtls_enabled: security.mtls_enabled,
        certificate_audiences: security.certificate_audiences.clone(),
        nonce_audiences: security.nonce_audiences.clone(),
        tenants: tenancy.tenants.iter().map(|(tenant, _)| tenant.clone()).collect(),
        tenant_claim: tenancy.claim.clone(),
        unknown_tenant_allowed: tenancy.unknown_allowed,
        share_salt: security.share_salt.clone(),
    }
}

/// Says of each name that came before that it is taken.
#[derive(Debug, Default)]
struct Names(std::collections::HashMap<String, Place>);

impl Names {
    /// Takes `name` for what stands at `place`; where it is taken already, by what stands there.
    fn take(&mut self, name: &str, place: Place) -> Option<Place> {
        match self.0.entry(name.to_owned()) {
            std::collections::hash_map::Entry::Occupied(taken) => Some(taken.get().clone()),
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(place);
                None
            }
        }
    }
}

/// A name of the user's own under `key`: required, of few characters, given once.
fn own_name(section: &Section<'_>, key: &'static str, names: &mut Names) -> String {
    let Some(text) = section.required(key) else { return String::new() };
    if !super::value::is_name(&text.value) {
        text.error("1 to 64 letters, digits, `_`, `-` and `.` are expected");
    }
    if let Some(taken) = names.take(&text.value, text.item.place.clone()) {
        text.error(format!("`{}` is taken on line {}", text.written, taken.line));
    }
    text.value
}
