//! `telemetry`: logs and traces.

use http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION};
use http::{HeaderName, HeaderValue, Uri};

use super::issuers::check_endpoint;
use super::upstream_tls;
use crate::config::introspection::Secret;
use crate::config::item::{Text, Words};
use crate::config::section::Section;
use crate::config::{Telemetry, Traces, files};
use crate::policy::reach::Reach;

const LEVELS: Words<tracing::Level> = &[
    ("error", tracing::Level::ERROR),
    ("warn", tracing::Level::WARN),
    ("info", tracing::Level::INFO),
    ("debug", tracing::Level::DEBUG),
    ("trace", tracing::Level::TRACE),
];
/// Where collectors take traces when the URL has no path of its own.
const PATH: &str = "/v1/traces";
/// Entries of `headers`, `headerFiles` and `resource`, at most.
const MAX_ENTRIES: usize = 64;
/// What names of fields hold whose values are secret, three more apart.
const SECRETS: [&str; 4] = ["key", "token", "secret", "password"];

/// Resolves `telemetry`.
pub(super) fn resolve(section: &Section<'_>, reach: &Reach) -> Telemetry {
    let logs = section.section("logs");
    let traces = section.item("traces").map(|traces| traces.section());
    Telemetry {
        ok_sample: logs.item("okSample").and_then(|item| item.fraction()).unwrap_or(1.0),
        level: logs.word("level", LEVELS).unwrap_or(tracing::Level::INFO),
        traces: traces.and_then(|section| traces_of(&section, reach)),
    }
}

fn traces_of(section: &Section<'_>, reach: &Reach) -> Option<Traces> {
    let endpoint = section.required("endpoint");
    let headers = headers(section);
    let sample_ratio = section.item("sampleRatio").and_then(|item| item.fraction()).unwrap_or(0.01);
    let timeout = section.duration("timeout", "5s", ["100ms", "30s"]);
    let service_name = section.text("serviceName");
    let resource = section.texts_by_name("resource", MAX_ENTRIES);
    for (name, text) in resource.iter().filter(|(name, _)| name.starts_with("service.name")) {
        text.error(format!("`{name}` is said by `serviceName`"));
    }
    let authorities = section.text("authorities").map(files::authority);
    let client = upstream_tls::client(section);
    let endpoint = endpoint.and_then(|text| endpoint_of(&text, headers.is_empty(), reach))?;
    Some(Traces {
        endpoint,
        headers,
        sample_ratio,
        timeout,
        service_name: service_name.map_or_else(|| "holdfast".to_owned(), |text| text.value),
        resource: resource.into_iter().map(|(name, text)| (name, text.value)).collect(),
        authorities,
        client,
    })
}

/// The whole URL. Spans may travel in clear, what authenticates the edge to the collector may not.
fn endpoint_of(text: &Text<'_>, bare: bool, reach: &Reach) -> Option<String> {
    let uri = text.value.parse::<Uri>().ok();
    let plain = uri.as_ref().and_then(Uri::scheme_str) == Some("http");
    let host = uri.as_ref().and_then(Uri::host).unwrap_or_default();
    let bracketless = host.trim_start_matches('[').trim_end_matches(']');
    let local = host == "localhost"
        || bracketless.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if plain && !local && bare && !host.is_empty() {
        text.item.warn("spans go in clear: use `https`, or a collector on this machine");
        if reach.to(&text.value).is_err() {
            check_endpoint(text, reach);
        }
    } else {
        check_endpoint(text, reach);
    }
    let pathless = uri?.path_and_query().is_none_or(|path| path.as_str() == "/");
    let base = text.value.trim_end_matches('/');
    Some(if pathless { format!("{base}{PATH}") } else { text.value.clone() })
}

fn headers(section: &Section<'_>) -> Vec<(HeaderName, Secret)> {
    let mut all: Vec<(HeaderName, Secret)> = Vec::new();
    let mut add = |name: &str, value: Option<Secret>, text: &Text<'_>| {
        let Ok(field) = HeaderName::try_from(name) else {
            text.error(format!("`{name}` is no field's name"));
            return;
        };
        let Some(value) = value else { return };
        if HeaderValue::from_str(value.expose()).is_err() {
            text.error("is no field's value");
        }
        if all.iter().any(|(known, _)| *known == field) {
            text.error(format!("`{name}` stands twice"));
        }
        all.push((field, value));
    };
    for (name, text) in section.texts_by_name("headers", MAX_ENTRIES) {
        if is_secret(&name) && !text.is_from_environment() {
            text.error("a secret has no place in this file: use `headerFiles` or `${ENV:NAME}`");
        }
        add(&name, Some(Secret::new(text.value.clone().into())), &text);
    }
    for (name, text) in section.texts_by_name("headerFiles", MAX_ENTRIES) {
        add(&name, files::secret(text.clone()), &text);
    }
    all
}

/// Whether a field by this name holds what its receiver knows the sender by.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let known = [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE];
    known.iter().any(|known| known == name.as_str()) || SECRETS.iter().any(|it| name.contains(it))
}
