//! What stands in front of an authorization server: its routes' own keys, `retrofit` of an issuer, the
//! clients of a tenant, and the temporary bypass.

use std::collections::HashMap;

use crate::config::finding::nearest;
use crate::config::item::{Item, Words};
use crate::config::section::Section;
use crate::config::{Issuer, finding::Place};
use crate::policy::bypass::{BypassRules, LONGEST_TERM};
use crate::policy::client::KnownClient;
use crate::policy::grant::{BindBy, OpaqueRules, RetrofitRules, UnknownRefresh};
use crate::policy::rule::{AuthorityRule, Binding, Role, SenderCertificateCheck, TenantId};
use crate::policy::time::UnixTime;

use super::tenants::Tenancy;

const BINDINGS: Words<Binding> = &[("native", Binding::Native), ("retrofit", Binding::Retrofit)];
const NONCES: Words<bool> = &[("upstream", true), ("edge", false)];
const CERTIFICATES: Words<SenderCertificateCheck> = &[
    ("caller", SenderCertificateCheck::Caller),
    ("forwarded", SenderCertificateCheck::Forwarded),
    ("off", SenderCertificateCheck::Off),
];
const MISMATCHES: Words<bool> = &[("refuse", false), ("inactive", true)];
const BINDS: Words<BindBy> = &[
    ("dpop", BindBy { key: true, certificate: false }),
    ("mtls", BindBy { key: false, certificate: true }),
];
const REFRESHES: Words<UnknownRefresh> =
    &[("refuse", UnknownRefresh::Refuse), ("bind", UnknownRefresh::Bind)];
const UNRECORDED: Words<bool> = &[("refuse", false), ("allow", true)];

/// Keys that only routes of an authorization server have, with the roles that take them.
const KEYS: [(&str, &[Role]); 4] = [
    ("issuer", &[Role::Token, Role::Par, Role::Introspection, Role::Revocation, Role::Metadata]),
    ("binding", &[Role::Token, Role::Par]),
    ("senderCertificate", &[Role::Introspection]),
    ("mismatchAnswer", &[Role::Introspection]),
];

/// Reads a route's own keys.
pub(super) fn rule(
    section: &Section<'_>,
    role: Role,
    issuers: &[(Issuer, Place)],
) -> AuthorityRule {
    for (key, _) in KEYS.iter().filter(|(key, roles)| section.has(key) && !roles.contains(&role)) {
        section.error(key, format!("has no place where `role` is `{}`", role.name()));
    }
    let binding = section.word("binding", BINDINGS).unwrap_or_default();
    let issuer = section.text("issuer").and_then(|text| {
        let names = || issuers.iter().map(|(issuer, _)| issuer.rules.issuer.as_str());
        let found = names().position(|name| name == text.value);
        if found.is_none() {
            let written = text.written;
            text.error(match nearest(&text.value, names()) {
                Some((near, _)) => format!("no issuer `{written}`; the nearest is `{near}`"),
                None => format!("no issuer `{written}`: `issuers` has none"),
            });
        }
        found
    });
    let certificate = section.word("senderCertificate", CERTIFICATES);
    let rule = AuthorityRule {
        issuer,
        binding,
        upstream_nonces: false,
        sender_certificate: certificate.unwrap_or_default(),
        mismatch_inactive: section.word("mismatchAnswer", MISMATCHES).unwrap_or(false),
    };
    check(section, role, &rule, issuers);
    rule
}

/// Whether nonces are the server's own: on a route whose server binds, unless the file says otherwise.
/// `None` where `nonce` is a flag, as on any other route.
pub(super) fn upstream_nonces(section: &Section<'_>, role: Role) -> Option<bool> {
    let native = section.word("binding", BINDINGS).unwrap_or_default() == Binding::Native;
    (role.asks_for_token() && native).then(|| section.word("nonce", NONCES).unwrap_or(true))
}

fn check(section: &Section<'_>, role: Role, rule: &AuthorityRule, issuers: &[(Issuer, Place)]) {
    let issuer = rule.issuer.and_then(|index| issuers.get(index)).map(|(issuer, _)| issuer);
    let retrofit = issuer.and_then(|issuer| issuer.rules.retrofit.as_ref());
    if rule.binding == Binding::Retrofit && !section.has("issuer") {
        section.error("issuer", "is required: whose tokens they are that the edge binds");
    }
    if rule.binding == Binding::Retrofit && issuer.is_some() && retrofit.is_none() {
        section.error("binding", "`retrofit` needs a `retrofit` at its issuer");
    }
    if rule.binding == Binding::Native && role.asks_for_token() && retrofit.is_some() {
        let message = "its issuer has `retrofit`: without `binding: retrofit` here its tokens would have \
                       no record, and be refused";
        section.error("binding", message);
    }
    if role == Role::Introspection
        && retrofit.is_some_and(|rules| rules.bind_of_any().certificate)
        && !section.has("senderCertificate")
    {
        let message = "is required: the issuer's tokens are bound to certificates. `caller` compares the \
                       caller's own, `forwarded` the one that a resource server hands on in \
                       `Client-Cert`, `off` none";
        section.error("senderCertificate", message);
    }
    if role == Role::Introspection && rule.issuer.is_none() {
        section.error("issuer", "is required: whose tokens are asked about");
    }
}

/// A list of what binds.
pub(super) fn bind(item: Item<'_>) -> BindBy {
    let mut bind = BindBy { key: false, certificate: false };
    let items = item.clone().list(8);
    if items.is_empty() {
        item.error("`dpop`, `mtls` or both are expected in it");
    }
    for word in items.iter().filter_map(|item| item.word(BINDS)) {
        bind.key |= word.key;
        bind.certificate |= word.certificate;
    }
    bind
}

/// Reads `retrofit` of an issuer.
pub(super) fn retrofit(
    issuer: &Section<'_>,
    tenancy: &Tenancy<'_>,
    audiences: &[String],
) -> Option<RetrofitRules> {
    let section = issuer.item("retrofit")?.section();
    let unrecorded = section.word("unrecorded", UNRECORDED).unwrap_or(false);
    let until = section.item("unrecordedUntil").and_then(time);
    if unrecorded && !section.has("unrecordedUntil") {
        let message = "is required beside `unrecorded: allow`: tokens without a record pass as bound to \
                       nobody until then";
        section.error("unrecordedUntil", message);
    } else if unrecorded {
        let message = "tokens that were not issued through the edge pass as bound to nobody, wherever \
                       such tokens may pass";
        section.warn("unrecorded", message);
    }
    let opaque = section.item("opaque").map(|item| {
        let opaque = item.section();
        let audience = opaque.required("audience");
        if let Some(text) = audience.as_ref().filter(|text| !audiences.contains(&text.value)) {
            text.error("is none of the issuer's `audiences`");
        }
        OpaqueRules {
            audience: audience.map(|text| text.value).unwrap_or_default(),
            token_prefix: opaque.text("tokenPrefix").map(|text| text.value),
        }
    });
    if opaque.is_some() && issuer.has("introspection") {
        section.error("opaque", "`introspection` is asked about opaque tokens already");
    }
    let by_client: HashMap<_, _> = section
        .named("clients", 10_000)
        .into_iter()
        .filter_map(|(id, client)| Some((id, bind(client.item("bind")?))))
        .collect();
    Some(RetrofitRules {
        bind: section.item("bind").map_or(BindBy::BOTH, bind),
        by_tenant: tenancy.binds.iter().copied().collect(),
        by_client,
        unrecorded_until: until.filter(|_| unrecorded),
        unknown_refresh: section
            .word("unknownRefresh", REFRESHES)
            .unwrap_or(UnknownRefresh::Refuse),
        token_lifetime: section.duration("tokenLifetime", "24h", ["1m", "365d"]),
        refresh_lifetime: section.duration("refreshLifetime", "90d", ["1h", "3650d"]),
        opaque,
    })
}

/// The clients of a tenant: ids, or mappings with what names them in a certificate.
pub(super) fn clients(tenant: TenantId, section: &Section<'_>, known: &mut Vec<KnownClient>) {
    for item in section.list("clients", 10_000).unwrap_or_default() {
        let place = item.clone();
        let (id, certificate_names) = if item.value.is_mapping() {
            let client = item.section();
            let names = client.texts("certificateNames", 64).unwrap_or_default();
            let names = names.into_iter().map(|text| name_in_certificate(&text.value)).collect();
            (client.required("id").map(|text| text.value), names)
        } else {
            (item.text().map(|text| text.value), Vec::new())
        };
        let Some(id) = id else { continue };
        if known.iter().any(|client| client.id == id) {
            place.error("this client is somebody's already");
        }
        let taken = |name: &String| known.iter().any(|it| it.certificate_names.contains(name));
        if certificate_names.iter().any(taken) {
            place.error("a certificate with one of these names is another client's already");
        }
        known.push(KnownClient { id, tenant, certificate_names });
    }
}

/// A DNS name in lower case; what has a scheme is a URI and stays.
fn name_in_certificate(name: &str) -> String {
    if name.contains(':') { name.to_owned() } else { name.to_ascii_lowercase() }
}

/// Reads `allowTemporaryBypass` and `temporaryBypass`.
pub(super) fn bypass(dpop: &Section<'_>, tenancy: &Tenancy<'_>) -> BypassRules {
    let allowed = dpop.flag("allowTemporaryBypass").unwrap_or(false);
    let section = dpop.section("temporaryBypass");
    let until = section.item("until").and_then(time);
    let texts = section.texts("tenants", 1000).unwrap_or_default();
    let tenants = texts.iter().filter_map(|text| tenancy.find(text)).collect();
    if section.has("tenants") && section.lacks("tenants") {
        section.error("tenants", "is empty; leave it out for everybody");
    }
    if allowed {
        let message = "tokens are issued without a proof, and bound to nobody, until it ends; set it back \
                       to `false` as soon as the emergency is over";
        dpop.warn("allowTemporaryBypass", message);
        let now = crate::config::now();
        if until.is_some_and(|until| until > now.plus(LONGEST_TERM)) {
            section.error("until", "lies more than 24 hours ahead");
        } else if until.is_some_and(|until| until <= now) {
            section.warn("until", "has passed: the bypass is closed");
        }
    }
    BypassRules { allowed, until, tenants }
}

/// A point in time as RFC 3339 writes it.
fn time(item: Item<'_>) -> Option<UnixTime> {
    let text = item.text()?;
    let time = UnixTime::from_rfc3339(&text.value);
    if time.is_none() {
        text.error("a time is expected, as in `2027-01-31T12:00:00Z`");
    }
    time
}
