//! `cors` of a route.

use crate::config::Cors;
use crate::config::item::Text;
use crate::config::section::Section;
use crate::config::value::is_token;
use crate::policy::cors::CorsRules;
use crate::policy::rule::Role;
use crate::policy::target::split_authority;

/// Names in one list.
const MAX_NAMES: usize = 64;

/// Resolves `cors` of the route with this role and these methods.
pub(super) fn cors(section: &Section<'_>, role: Role, methods: &[String]) -> Cors {
    let Some(item) = section.item("cors") else { return Cors::Off };
    if item.value.as_str() == Some("upstream") {
        return Cors::Upstream;
    }
    if !item.value.is_mapping() {
        item.error("`upstream` or a mapping of keys is expected");
        return Cors::Off;
    }
    let block = item.section();
    let credentials = block.flag("allowCredentials").unwrap_or(false);
    let (origins, any_origin) = origins(&block, credentials);
    let mut headers = names(&block, "allowedHeaders");
    if !block.has("allowedHeaders") {
        headers.push("content-type".to_owned());
    }
    if role.reads_token() {
        headers.extend(["authorization".to_owned(), "dpop".to_owned()]);
    }
    Cors::Edge(CorsRules {
        origins,
        any_origin,
        methods: allowed_methods(&block, methods),
        headers: headers.into_iter().map(|name| name.to_ascii_lowercase()).collect(),
        exposed: names(&block, "exposedHeaders"),
        max_age: block.duration("maxAge", "10m", ["0s", "1d"]),
        credentials,
    })
}

fn origins(block: &Section<'_>, credentials: bool) -> (Vec<String>, bool) {
    let texts = block.texts("allowedOrigins", MAX_NAMES).unwrap_or_default();
    if block.lacks("allowedOrigins") {
        block.error("allowedOrigins", "at least one is needed");
    }
    let (mut origins, mut any): (Vec<String>, _) = (Vec::new(), false);
    for text in texts {
        match text.value.as_str() {
            "*" if credentials => {
                text.error("`*` and `allowCredentials: true` do not go together: name each origin");
            }
            "*" => any = true,
            "null" if credentials => text.error(
                "`null` is the origin of any sandboxed page; with `allowCredentials: true` every \
                 site could act as the user",
            ),
            "null" => {
                text.item.warn("`null` is the origin of any sandboxed page, whoever made it");
                origins.push(text.value);
            }
            origin => match check_origin(origin) {
                Err(message) => text.error(format!("`{}` {message}", text.written)),
                Ok(()) if origins.contains(&text.value) => {
                    text.error(format!("`{}` is written twice", text.written));
                }
                Ok(()) => {
                    warn_of_plain(&text);
                    origins.push(text.value);
                }
            },
        }
    }
    if any && !origins.is_empty() {
        block.warn("allowedOrigins", "`*` allows every origin; the others have no effect");
    }
    (origins, any)
}

/// Compared to the letter, so that it must be as browsers write it (RFC 6454 section 6.2).
fn check_origin(origin: &str) -> Result<(), &'static str> {
    const NONE: &str = "is no origin; one is expected, as in `https://app.example.com`";
    let (scheme, rest) = origin.split_once("://").ok_or(NONE)?;
    let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    if !scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        || !scheme.bytes().all(letters)
    {
        return Err(NONE);
    }
    if rest.contains(['/', '?', '#']) {
        return Err("can never match: an origin has no path, and no slash at its end");
    }
    if rest.contains('*') {
        return Err(
            "has a wildcard; wildcards are not available in this version: name each origin",
        );
    }
    let (host, port) = split_authority(rest).ok_or(NONE)?;
    if origin.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("can never match: browsers write origins in lower case");
    }
    if matches!((scheme, port), ("https", Some(443)) | ("http", Some(80))) {
        return Err("can never match: browsers leave the default port out");
    }
    if port.map_or_else(|| host.clone(), |port| format!("{host}:{port}")) != rest {
        return Err("can never match: browsers write hosts and ports in their shortest form");
    }
    Ok(())
}

/// What comes over plain HTTP may be anybody's.
fn warn_of_plain(text: &Text<'_>) {
    let Some(rest) = text.value.strip_prefix("http://") else { return };
    let host = split_authority(rest).map(|(host, _)| host).unwrap_or_default();
    if !["localhost", "127.0.0.1", "[::1]"].contains(&host.as_str()) {
        text.item.warn("a page over plain HTTP can be changed on its way; `https` is expected");
    }
}

/// The methods of `allowedMethods`; empty: those of the route.
fn allowed_methods(block: &Section<'_>, route: &[String]) -> Vec<String> {
    let texts = block.texts("allowedMethods", MAX_NAMES).unwrap_or_default();
    if block.has("allowedMethods") && block.lacks("allowedMethods") {
        block.error("allowedMethods", "is empty; leave it out for the methods of the route");
    }
    let taken = |method: &str| {
        let has = |name: &str| route.iter().any(|known| known == name);
        route.is_empty() || has(method) || (method == "HEAD" && has("GET"))
    };
    for text in &texts {
        if !is_token(&text.value) || text.value == "*" {
            text.error(format!("`{}` is no method", text.written));
        } else if !taken(&text.value) {
            text.error(format!("the route does not take `{}`", text.written));
        }
    }
    if texts.is_empty() { route.to_vec() } else { texts.into_iter().map(|it| it.value).collect() }
}

fn names(block: &Section<'_>, key: &'static str) -> Vec<String> {
    let texts = block.texts(key, MAX_NAMES).unwrap_or_default();
    for text in &texts {
        if text.value == "*" {
            text.error("`*` does not stand for `Authorization`: name each field");
        } else if !is_token(&text.value) {
            text.error(format!("`{}` is no field name", text.written));
        }
    }
    texts.into_iter().map(|text| text.value).collect()
}
