//! `issuers`: whose access tokens are read, and where their keys are.

use std::net::IpAddr;

use crate::config::finding::{Place, Severity};
use crate::config::item::{Item, Text, Words};
use crate::config::section::Section;
use crate::config::{Issuer, JwksSource, files};
use crate::policy::jose::{Algorithm, AlgorithmSet};
use crate::policy::reach::Reach;
use crate::policy::target::split_authority;
use crate::policy::token::{IssuerRules, TokenType};

use super::Names;
use super::authority;
use super::introspection;
use super::scope::algorithms;
use super::security::audiences;
use super::tenants::Tenancy;

/// The word of `types` that stands for every type.
const ANY_TYPE: Words<()> = &[("any", ()), ("at+jwt", ())];

/// The keys of `jwks` that belong to `url`.
const FETCH_KEYS: [&str; 4] = ["authorities", "refresh", "timeout", "cooldown"];

/// The keys of an issuer that are about its JWTs alone.
const JWT_KEYS: [&str; 2] = ["algorithms", "types"];

/// Resolves `issuers`.
pub(super) fn resolve(
    root: &Section<'_>,
    tenancy: &Tenancy<'_>,
    reach: &Reach,
) -> Vec<(Issuer, Place)> {
    let mut names = Names::default();
    let items = root.list("issuers", 256).unwrap_or_default().into_iter();
    let issuers: Vec<_> = items
        .map(Item::section)
        .map(|section| (issuer(&section, tenancy, &mut names, reach), section.place()))
        .collect();
    introspection::check_clashes(root, &issuers);
    issuers
}

fn issuer(
    section: &Section<'_>,
    tenancy: &Tenancy<'_>,
    names: &mut Names,
    reach: &Reach,
) -> Issuer {
    let issuer = section.required("issuer");
    if let Some(text) = &issuer
        && let Some(taken) = names.take(&text.value, text.item.place.clone())
    {
        text.error(format!("`{}` is taken on line {}", text.written, taken.line));
    }
    if section.lacks("audiences") {
        section.error("audiences", "at least one is needed: a token's `aud` must name one of them");
    }
    let audiences = audiences(section, "audiences");
    let (has_keys, asks) = (section.has("jwks"), section.has("introspection"));
    let asked = introspection::introspection(section, asks, &audiences, reach);
    let rules = IssuerRules {
        issuer: issuer.map_or_else(String::new, |text| text.value),
        algorithms: section
            .item("algorithms")
            .and_then(algorithms)
            .unwrap_or_else(|| AlgorithmSet::of(&Algorithm::ALL)),
        token_type: section.item("types").map_or(TokenType::AccessToken, token_type),
        clock_skew: section.duration("clockSkew", "30s", ["0s", "10m"]),
        tenant: section.text("tenant").and_then(|text| tenancy.find(&text)),
        keys: has_keys,
        introspection: asked.rules,
        retrofit: authority::retrofit(section, tenancy, &audiences),
        audiences,
    };
    let recorded = rules.opaque_by_record().is_some();
    if !has_keys && !asks && !recorded {
        let message = "is required: the issuer's keys, by `file` or `url`; or `introspection`, or \
                       `retrofit.opaque`";
        section.error("jwks", message);
    }
    for key in JWT_KEYS.into_iter().filter(|key| !has_keys && asks && section.has(key)) {
        section.error(key, "belongs to `jwks`: without, the issuer is asked about each token");
    }
    let jwks = has_keys.then(|| jwks(&section.section("jwks"), reach));
    Issuer { rules, jwks, introspection: asked.asking }
}

/// `at+jwt`, `any`, or a list in which `none` stands for a token without `typ`.
fn token_type(item: Item<'_>) -> TokenType {
    if !item.is_list() {
        let any =
            item.word(ANY_TYPE).is_some() && item.clone().text().is_some_and(|t| t.value == "any");
        return if any { TokenType::Any } else { TokenType::AccessToken };
    }
    let items = item.clone().list(16);
    if items.is_empty() {
        item.error("at least one type is needed; `any` takes every one");
    }
    let texts = items.into_iter().filter_map(Item::text);
    let types = texts.map(|text| if text.value == "none" { String::new() } else { text.value });
    TokenType::OneOf(types.collect())
}

fn jwks(section: &Section<'_>, reach: &Reach) -> JwksSource {
    let file = section.text("file");
    let url = section.text("url");
    let authorities = section.text("authorities").map(files::authority);
    let refresh = section.duration("refresh", "5m", ["10s", "1d"]);
    let timeout = section.duration("timeout", "5s", ["100ms", "1m"]);
    let cooldown = section.duration("cooldown", "30s", ["1s", "1h"]);
    if !section.has("file") && !section.has("url") {
        section.error_here("`file` or `url` is required");
    }
    if section.has("file") && section.has("url") {
        section.error("url", "only one of `file` and `url` can be given");
    }
    if section.has("url") && reach.is_sealed() {
        let message = "`edge.sealed`: keys are not fetched; save the set and name it in `file`, which is \
                       read again when it changes";
        section.error("url", message);
    }
    match (file, url) {
        (Some(file), None) => {
            for key in FETCH_KEYS.into_iter().filter(|key| section.has(key)) {
                section.error(key, "belongs to `url`");
            }
            JwksSource::File(files::key_set(file))
        }
        (_, url) => {
            if let Some(text) = &url
                && let Err(message) = check_url(&text.value)
            {
                text.error(message);
            }
            let url = url.map_or_else(String::new, |text| text.value);
            JwksSource::Url { url, authorities, refresh, timeout, cooldown }
        }
    }
}

/// Where the edge asks, or tells, on its own account.
pub(super) fn check_endpoint(text: &Text<'_>, reach: &Reach) {
    if let Err(message) = check_url(&text.value) {
        text.error(message);
    } else if reach.to(&text.value).is_err() {
        text.error(
            "`edge.sealed`: no upstream has a server there; its host must be the address of one, or the \
             `tls.serverName` of its upstream, and its port that server's",
        );
    }
}

/// Keys and answers decide what is let in, so they travel under TLS or not off this machine.
fn check_url(url: &str) -> Result<(), &'static str> {
    const FORM: &str = "a URL is expected, as in `https://as.example.com/jwks.json`";
    if !url.is_ascii() || url.contains('#') {
        return Err(FORM);
    }
    let uri: http::Uri = url.parse().map_err(|_| FORM)?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(FORM);
    };
    let (host, _) = split_authority(authority.as_str()).ok_or(FORM)?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let local = host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match scheme {
        "https" => Ok(()),
        "http" if local => Ok(()),
        "http" => Err("`http` is taken only for a loopback address or `localhost`; use `https`"),
        _ => Err(FORM),
    }
}

/// Needs an issuer where tokens are read; warns of issuers where none are.
pub(super) fn check_use(
    root: &Section<'_>,
    issuers: &[(Issuer, Place)],
    reads_tokens: bool,
    asks: bool,
) {
    if reads_tokens && root.lacks("issuers") {
        root.error("issuers", "at least one is needed: a `resource` route reads tokens");
    }
    for (_, place) in issuers.iter().filter(|_| !reads_tokens && !asks) {
        let message = "has no effect: no route reads tokens".to_owned();
        root.sink().push(Severity::Warning, place.clone(), message);
    }
}
