//! `introspection` of an issuer.

use crate::config::finding::{Place, Severity};
use crate::config::introspection::{ClientAuthentication, Introspection, Secret};
use crate::config::item::Words;
use crate::config::section::Section;
use crate::config::{Issuer, files};
use crate::policy::introspection::IntrospectionRules;
use crate::policy::reach::Reach;

use super::issuers::check_endpoint;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Basic,
    Post,
    Mtls,
}

const METHODS: Words<Method> =
    &[("basic", Method::Basic), ("post", Method::Post), ("mtls", Method::Mtls)];

/// What an issuer's entry says of introspection.
pub(super) struct Asked {
    /// Of the tokens; `None` where the entry has no `introspection`.
    pub(super) rules: Option<IntrospectionRules>,
    /// Of the asking.
    pub(super) asking: Option<Introspection>,
}

/// Resolves `introspection` of an issuer with these audiences, where it is `given`.
pub(super) fn introspection(
    issuer: &Section<'_>,
    given: bool,
    audiences: &[String],
    reach: &Reach,
) -> Asked {
    let section = issuer.section("introspection");
    if !given {
        return Asked { rules: None, asking: None };
    }
    let url = section.required("url");
    if let Some(text) = &url {
        check_endpoint(text, reach);
    }
    let client = section.required("clientId");
    let authentication = authentication(&section);
    let authorities = section.text("authorities").map(files::authority);
    let timeout = section.duration("timeout", "2s", ["100ms", "30s"]);
    let negative_ttl = section.duration("negativeTtl", "10s", ["0s", "5m"]);
    let cache_entries = section.size("cacheEntries", 10_000, 1..=1_000_000);
    let max_concurrent = section.size("maxConcurrent", 32, 1..=1000);
    let rules = Some(rules(&section, audiences));
    let asking = url.zip(client).zip(authentication).map(|((url, client), authentication)| {
        let (url, client) = (url.value, client.value);
        Introspection {
            url,
            client,
            authentication,
            authorities,
            timeout,
            negative_ttl,
            cache_entries,
            max_concurrent,
        }
    });
    Asked { rules, asking }
}

fn rules(section: &Section<'_>, audiences: &[String]) -> IntrospectionRules {
    let prefix = section.text("tokenPrefix");
    if let Some(text) = &prefix
        && !text.value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte))
    {
        text.error(
            "what tokens begin with is expected: letters, digits, `-`, `.`, `_`, `~`, `+`, `/`",
        );
    }
    let cache_ttl = section.duration("cacheTtl", "30s", ["0s", "5m"]);
    let assume = section.section("assume");
    let audience = assume.text("audience");
    if let Some(text) = &audience
        && !audiences.contains(&text.value)
    {
        text.error(format!("`{}` is none of the issuer's `audiences`", text.written));
    }
    let given = assume.has("lifetime");
    let lifetime = assume.duration("lifetime", "1m", ["1s", "1d"]);
    IntrospectionRules {
        token_prefix: prefix.map(|text| text.value),
        cache_ttl,
        assumed_audience: audience.map(|text| text.value),
        assumed_lifetime: given.then_some(lifetime),
    }
}

fn authentication(section: &Section<'_>) -> Option<ClientAuthentication> {
    const SECRET: [&str; 2] = ["clientSecret", "clientSecretFile"];
    const CERTIFICATE: [&str; 2] = ["certificate", "key"];
    let given = |keys: [&'static str; 2]| {
        // What is looked at is known.
        keys.into_iter().filter(|key| section.has(key) && section.item(key).is_some())
    };
    let method = section.word("authentication", METHODS);
    if section.has("authentication") && method.is_none() {
        given(SECRET).chain(given(CERTIFICATE)).for_each(drop);
        return None;
    }
    let method = method.unwrap_or(Method::Basic);
    let (own, others) = match method {
        Method::Basic | Method::Post => ("`mtls`", CERTIFICATE),
        Method::Mtls => ("`basic` and `post`", SECRET),
    };
    for key in given(others) {
        section.error(key, format!("belongs to `authentication` {own}"));
    }
    match method {
        Method::Basic => secret(section).map(ClientAuthentication::Basic),
        Method::Post => secret(section).map(ClientAuthentication::Post),
        Method::Mtls => files::certificate_files(section).map(ClientAuthentication::Mtls),
    }
}

/// A secret stands in a file of its own or in the environment, never in the configuration.
fn secret(section: &Section<'_>) -> Option<Secret> {
    let file = section.text("clientSecretFile");
    if !section.has("clientSecret") {
        if !section.has("clientSecretFile") {
            let message = "is required: the file that holds it; or `clientSecret: ${ENV:NAME}`";
            section.error("clientSecretFile", message);
        }
        return file.and_then(files::secret);
    }
    let text = section.text("clientSecret")?;
    if section.has("clientSecretFile") {
        section.error(
            "clientSecret",
            "only one of `clientSecretFile` and `clientSecret` can be given",
        );
    }
    if !text.is_from_environment() {
        text.error("a secret has no place in this file: use `clientSecretFile` or `${ENV:NAME}`");
    }
    Some(Secret::new(text.value.into()))
}

/// Refuses issuers between which nothing decides whose an opaque token is.
pub(super) fn check_clashes(root: &Section<'_>, issuers: &[(Issuer, Place)]) {
    let asked = |(issuer, place): &(Issuer, Place)| {
        let rules = issuer.rules.introspection.as_ref()?;
        let Place { line, key } = place;
        let place = Place { line: *line, key: format!("{key}.introspection") };
        Some((rules.token_prefix.clone(), issuer.rules.issuer.clone(), place))
    };
    let asked: Vec<_> = issuers.iter().filter_map(asked).collect();
    for (index, (prefix, _, place)) in asked.iter().enumerate() {
        let clash = asked.iter().take(index).find(|(other, _, _)| match (prefix, other) {
            (None, None) => true,
            (Some(one), Some(other)) => one.starts_with(other) || other.starts_with(one),
            (Some(_), None) | (None, Some(_)) => false,
        });
        if let Some((_, other, _)) = clash {
            let message = format!(
                "whose an opaque token is must show in it: give this one or `{other}` a \
                 `tokenPrefix` that does not begin with the other's"
            );
            root.sink().push(Severity::Error, place.clone(), message);
        }
    }
}
