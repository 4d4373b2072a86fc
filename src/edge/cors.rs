//! Cross-origin requests on the wire: preflights that the edge answers, and the fields that let a
//! page read what it is told.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, HeaderName,
    VARY,
};
use http::{HeaderMap, StatusCode};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;

use super::headers::REQUEST_ID;
use crate::config::Cors;
use crate::policy::cors::{self, CorsRules, Grant};

/// What a browser client must be able to read: challenges and nonces.
const EXPOSED: [&str; 2] = ["DPoP-Nonce", "WWW-Authenticate"];
/// What an answer to a preflight depends on.
const PREFLIGHT_VARY: [&str; 3] =
    ["Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers"];

/// Puts the fields of a route's `cors` on an answer to the request with these fields. Where the edge
/// answers, the service's own go.
///
/// # Errors
/// When a value cannot be written, which ours always can.
pub(super) fn downstream_response(
    response: &mut ResponseHeader,
    cors: &Cors,
    request: &HeaderMap,
) -> pingora::Result<()> {
    match cors {
        Cors::Off => Ok(()),
        Cors::Upstream => expose(response, &[]),
        Cors::Edge(rules) => {
            let exposed = list(&response.headers, &ACCESS_CONTROL_EXPOSE_HEADERS);
            let foreign = response.headers.keys().filter(|name| is_cors(name));
            for name in foreign.cloned().collect::<Vec<_>>() {
                response.remove_header(&name);
            }
            if !allow_origin(response, rules, request)? {
                return Ok(());
            }
            expose(response, &[exposed.as_slice(), &rules.exposed].concat())
        }
    }
}

fn is_cors(name: &HeaderName) -> bool {
    name.as_str().replace('_', "-").starts_with("access-control-")
}

/// Says which origin may read the answer. Whether it is this one.
fn allow_origin(
    response: &mut ResponseHeader,
    rules: &CorsRules,
    request: &HeaderMap,
) -> pingora::Result<bool> {
    if !rules.origins.is_empty() {
        add(response, &VARY, &["Origin"])?;
    }
    let Some(origin) = rules.allow_origin(request) else { return Ok(false) };
    response.insert_header(ACCESS_CONTROL_ALLOW_ORIGIN, origin)?;
    if rules.credentials {
        response.insert_header(ACCESS_CONTROL_ALLOW_CREDENTIALS, "true")?;
    }
    Ok(true)
}

fn expose(response: &mut ResponseHeader, more: &[String]) -> pingora::Result<()> {
    let names: Vec<_> = more.iter().map(String::as_str).chain(EXPOSED).collect();
    add(response, &ACCESS_CONTROL_EXPOSE_HEADERS, &names)
}

/// Adds `more` to a field that is a list of names, each once, in one value.
fn add(response: &mut ResponseHeader, name: &HeaderName, more: &[&str]) -> pingora::Result<()> {
    let mut names = list(&response.headers, name);
    for &one in more {
        if !names.iter().any(|known| known == "*" || known.eq_ignore_ascii_case(one)) {
            names.push(one.to_owned());
        }
    }
    response.insert_header(name.clone(), names.join(", "))
}

fn list(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let names = values.flat_map(|value| value.split(',')).map(str::trim);
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Removes from a preflight on its way to the service everything that no browser sends with one.
pub(super) fn upstream_preflight(request: &mut RequestHeader) {
    let names = request.headers.keys().filter(|name| !cors::preflight_field(name.as_str()));
    for name in names.cloned().collect::<Vec<_>>() {
        request.remove_header(&name);
    }
}

/// Answers a preflight.
///
/// # Errors
/// When the client is gone.
pub(super) async fn answer(
    session: &mut Session,
    rules: &CorsRules,
    grant: &Grant,
    id: &str,
) -> pingora::Result<()> {
    let mut head = ResponseHeader::build(StatusCode::NO_CONTENT, Some(8))?;
    head.insert_header(REQUEST_ID, id)?;
    allow_origin(&mut head, rules, &session.req_header().headers)?;
    head.insert_header(ACCESS_CONTROL_ALLOW_METHODS, grant.methods.as_str())?;
    if !grant.headers.is_empty() {
        head.insert_header(ACCESS_CONTROL_ALLOW_HEADERS, grant.headers.as_str())?;
    }
    head.insert_header(ACCESS_CONTROL_MAX_AGE, grant.max_age)?;
    add(&mut head, &VARY, &PREFLIGHT_VARY)?;
    session.write_response_header(Box::new(head), true).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> CorsRules {
        CorsRules {
            origins: vec!["https://a.example".to_owned()],
            exposed: vec!["X-Total".to_owned()],
            ..CorsRules::default()
        }
    }

    /// The answer's fields of CORS, sorted, after what a service said.
    fn fields(cors: &Cors, origin: &str, said: &[(&'static str, &str)]) -> Vec<String> {
        let mut response = ResponseHeader::build(200, None).unwrap();
        for (name, value) in said {
            response.append_header(*name, *value).unwrap();
        }
        let mut request = HeaderMap::new();
        request.insert("origin", origin.parse().unwrap());
        downstream_response(&mut response, cors, &request).unwrap();
        let fields = response.headers.iter().filter(|(name, _)| is_cors(name) || *name == VARY);
        let mut fields: Vec<_> =
            fields.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        fields.sort();
        fields
    }

    #[test]
    fn answers() {
        let said = [
            ("access-control-allow-origin", "*"),
            ("access-control-allow-credentials", "true"),
            ("access_control_allow_origin", "*"),
            ("access-control-expose-headers", "X-Page, dpop-nonce"),
            ("vary", "Accept-Encoding"),
        ];
        let credentials = CorsRules { credentials: true, ..rules() };
        let any = CorsRules { any_origin: true, ..CorsRules::default() };
        let exposed =
            "access-control-expose-headers: X-Page, dpop-nonce, X-Total, WWW-Authenticate";
        for (name, cors, origin, said, expect) in [
            ("off", Cors::Off, "https://a.example", &said[4..], vec!["vary: Accept-Encoding"]),
            (
                "the service's own go",
                Cors::Edge(rules()),
                "https://a.example",
                &said,
                vec![
                    "access-control-allow-origin: https://a.example",
                    exposed,
                    "vary: Accept-Encoding, Origin",
                ],
            ),
            (
                "credentials",
                Cors::Edge(credentials),
                "https://a.example",
                &[],
                vec![
                    "access-control-allow-credentials: true",
                    "access-control-allow-origin: https://a.example",
                    "access-control-expose-headers: X-Total, DPoP-Nonce, WWW-Authenticate",
                    "vary: Origin",
                ],
            ),
            (
                "another origin",
                Cors::Edge(rules()),
                "https://b.example",
                &said,
                vec!["vary: Accept-Encoding, Origin"],
            ),
            (
                "any origin",
                Cors::Edge(any),
                "https://b.example",
                &[],
                vec![
                    "access-control-allow-origin: *",
                    "access-control-expose-headers: DPoP-Nonce, WWW-Authenticate",
                ],
            ),
            (
                "the service answers",
                Cors::Upstream,
                "https://b.example",
                &said[..1],
                vec![
                    "access-control-allow-origin: *",
                    "access-control-expose-headers: DPoP-Nonce, WWW-Authenticate",
                ],
            ),
        ] {
            assert_eq!(fields(&cors, origin, said), expect, "{name}");
        }
    }
}
