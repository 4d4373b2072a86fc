//! Cross-origin requests (Fetch standard, section 3.2): what is a preflight, and what an origin is
//! told.

use std::time::Duration;

use http::header::{
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, CONTENT_LENGTH,
    ORIGIN, PROXY_AUTHORIZATION, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::denial::Denial;

/// Field names that one preflight may ask for.
const MAX_ASKED: usize = 64;

/// A route's `cors` block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CorsRules {
    /// Origins as browsers write them (RFC 6454 section 6.2), `null` among them only where it is
    /// named.
    pub origins: Vec<String>,
    /// `*`: every origin, without credentials.
    pub any_origin: bool,
    /// Methods; empty: those that the route takes.
    pub methods: Vec<String>,
    /// Request fields, in lower case.
    pub headers: Vec<String>,
    /// Fields of an answer that a page may read.
    pub exposed: Vec<String>,
    /// How long a browser may remember a preflight's answer.
    pub max_age: Duration,
    /// Whether cookies and client certificates go along.
    pub credentials: bool,
}

/// A preflight as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preflight<'a> {
    /// `Access-Control-Request-Method`.
    pub method: &'a str,
    /// `Access-Control-Request-Headers`.
    asked: &'a str,
}

/// Reads a preflight: `OPTIONS` with one `Origin` and one `Access-Control-Request-Method`.
///
/// A browser's preflight carries no token, no body and no upgrade. What does is no preflight, so
/// that nothing else passes for one.
#[must_use]
pub fn preflight<'a>(method: &str, headers: &'a HeaderMap) -> Option<Preflight<'a>> {
    const FOREIGN: [HeaderName; 4] =
        [AUTHORIZATION, PROXY_AUTHORIZATION, TRANSFER_ENCODING, UPGRADE];
    if method != "OPTIONS" {
        return None;
    }
    let body = headers.get_all(CONTENT_LENGTH).iter().any(|length| length != "0");
    if body || FOREIGN.iter().any(|name| headers.contains_key(name)) {
        return None;
    }
    one(headers, &ORIGIN)?;
    let method = one(headers, &ACCESS_CONTROL_REQUEST_METHOD)?.to_str().ok()?;
    let asked = match headers.contains_key(ACCESS_CONTROL_REQUEST_HEADERS) {
        true => one(headers, &ACCESS_CONTROL_REQUEST_HEADERS)?.to_str().ok()?,
        false => "",
    };
    Some(Preflight { method, asked })
}

fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// Whether a preflight's field may go to the service. It comes without a token, so that what else it
/// may say, such as another method to be taken instead, is not passed on.
#[must_use]
pub fn preflight_field(name: &str) -> bool {
    const PREFIXES: [&str; 3] = ["access-control-request-", "accept", "sec-"];
    const NAMES: [&str; 4] = ["host", "origin", "referer", "user-agent"];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// What a browser is told to let a page do: the values of an answer to a preflight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// `Access-Control-Allow-Methods`.
    pub methods: String,
    /// `Access-Control-Allow-Headers`; empty: none was asked for.
    pub headers: String,
    /// `Access-Control-Max-Age`, seconds.
    pub max_age: u64,
}

impl CorsRules {
    /// `Access-Control-Allow-Origin` for a request; `None` when it has no origin or one that is not
    /// allowed.
    #[must_use]
    pub fn allow_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = one(headers, &ORIGIN)?;
        if self.origins.iter().any(|known| origin == known.as_str()) {
            return Some(origin.clone());
        }
        self.any_origin.then(|| HeaderValue::from_static("*"))
    }

    /// Answers a preflight whose method the route takes.
    ///
    /// # Errors
    /// [`Denial::OriginRefused`] when the origin, the method or a field is not allowed.
    pub fn grant(&self, preflight: &Preflight<'_>, headers: &HeaderMap) -> Result<Grant, Denial> {
        let method = preflight.method;
        let known = self.methods.is_empty() || self.methods.iter().any(|known| known == method);
        if self.allow_origin(headers).is_none() || !known {
            return Err(Denial::OriginRefused);
        }
        let asked: Vec<_> = preflight
            .asked
            .split(',')
            .map(|name| name.trim_matches([' ', '\t']).to_ascii_lowercase())
            .filter(|name| !name.is_empty())
            .take(MAX_ASKED + 1)
            .collect();
        if asked.len() > MAX_ASKED || !asked.iter().all(|name| self.headers.contains(name)) {
            return Err(Denial::OriginRefused);
        }
        let methods =
            if self.methods.is_empty() { method.to_owned() } else { self.methods.join(", ") };
        Ok(Grant { methods, headers: asked.join(", "), max_age: self.max_age.as_secs() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fields from lines `Name: value`.
    fn fields(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines.iter().filter_map(|line| line.split_once(": ")) {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    const ORIGIN_A: &str = "Origin: https://a.example";
    const ASKS: &str = "Access-Control-Request-Method: PUT";

    #[test]
    fn preflights() {
        for (name, method, lines, expect) in [
            ("ok/bare", "OPTIONS", vec![ORIGIN_A, ASKS], true),
            ("ok/length 0", "OPTIONS", vec![ORIGIN_A, ASKS, "Content-Length: 0"], true),
            ("ok/null", "OPTIONS", vec!["Origin: null", ASKS], true),
            ("fail/method", "GET", vec![ORIGIN_A, ASKS], false),
            ("fail/case", "options", vec![ORIGIN_A, ASKS], false),
            ("fail/no origin", "OPTIONS", vec![ASKS], false),
            ("fail/no request method", "OPTIONS", vec![ORIGIN_A], false),
            ("fail/two origins", "OPTIONS", vec![ORIGIN_A, ORIGIN_A, ASKS], false),
            ("fail/two methods", "OPTIONS", vec![ORIGIN_A, ASKS, ASKS], false),
            ("fail/token", "OPTIONS", vec![ORIGIN_A, ASKS, "Authorization: Bearer a"], false),
            ("fail/body", "OPTIONS", vec![ORIGIN_A, ASKS, "Content-Length: 1"], false),
            ("fail/chunks", "OPTIONS", vec![ORIGIN_A, ASKS, "Transfer-Encoding: chunked"], false),
            ("fail/upgrade", "OPTIONS", vec![ORIGIN_A, ASKS, "Upgrade: websocket"], false),
        ] {
            assert_eq!(preflight(method, &fields(&lines)).is_some(), expect, "{name}");
        }
    }

    #[test]
    fn a_preflight_carries_nothing_else_to_the_service() {
        for (name, expect) in [
            ("origin", true),
            ("access-control-request-method", true),
            ("access-control-request-headers", true),
            ("access-control-request-private-network", true),
            ("accept-language", true),
            ("user-agent", true),
            ("sec-fetch-mode", true),
            ("host", true),
            ("cookie", false),
            ("authorization", false),
            ("dpop", false),
            ("x-http-method-override", false),
            ("x-api-key", false),
        ] {
            assert_eq!(preflight_field(name), expect, "{name}");
        }
    }

    fn rules() -> CorsRules {
        CorsRules {
            origins: vec!["https://a.example".to_owned(), "http://localhost:3000".to_owned()],
            headers: vec!["authorization".to_owned(), "dpop".to_owned()],
            max_age: Duration::from_secs(600),
            ..CorsRules::default()
        }
    }

    #[test]
    fn origins_are_compared_to_the_letter() {
        let any = CorsRules { any_origin: true, ..rules() };
        let null = CorsRules { origins: vec!["null".to_owned()], ..rules() };
        for (rules, line, expect) in [
            (&rules(), "Origin: https://a.example", Some("https://a.example")),
            (&rules(), "Origin: http://localhost:3000", Some("http://localhost:3000")),
            (&rules(), "Origin: https://a.example:443", None),
            (&rules(), "Origin: https://a.example.evil.example", None),
            (&rules(), "Origin: https://A.example", None),
            (&rules(), "Origin: http://a.example", None),
            (&rules(), "Origin: null", None),
            (&rules(), "X-Origin: https://a.example", None),
            (&any, "Origin: https://b.example", Some("*")),
            (&any, "Origin: https://a.example", Some("https://a.example")),
            (&any, "X-Origin: https://b.example", None),
            (&null, "Origin: null", Some("null")),
        ] {
            let found = rules.allow_origin(&fields(&[line]));
            assert_eq!(found, expect.map(HeaderValue::from_static), "{line}");
        }
    }

    #[test]
    fn grants() {
        let listed = CorsRules { methods: vec!["GET".to_owned(), "PUT".to_owned()], ..rules() };
        let many = vec!["dpop"; MAX_ASKED + 1].join(",");
        for (name, rules, origin, method, asked, expect) in [
            ("ok/any method", &rules(), "https://a.example", "PUT", "", Ok(("PUT", ""))),
            ("ok/listed", &listed, "https://a.example", "PUT", "", Ok(("GET, PUT", ""))),
            (
                "ok/fields",
                &rules(),
                "https://a.example",
                "GET",
                "dpop, Authorization",
                Ok(("GET", "dpop, authorization")),
            ),
            ("fail/origin", &rules(), "https://b.example", "GET", "", Err(Denial::OriginRefused)),
            ("fail/method", &listed, "https://a.example", "DELETE", "", Err(Denial::OriginRefused)),
            ("fail/field", &rules(), "https://a.example", "GET", "x-a", Err(Denial::OriginRefused)),
            ("fail/many", &rules(), "https://a.example", "GET", &many, Err(Denial::OriginRefused)),
        ] {
            let origin = format!("Origin: {origin}");
            let lines = [
                origin.as_str(),
                &format!("Access-Control-Request-Method: {method}"),
                &format!("Access-Control-Request-Headers: {asked}"),
            ];
            let headers = fields(&lines);
            let preflight = preflight("OPTIONS", &headers).unwrap();
            let granted = rules.grant(&preflight, &headers);
            let found = granted.as_ref().map(|it| (it.methods.as_str(), it.headers.as_str()));
            assert_eq!(found.map_err(|denial| *denial), expect, "{name}");
        }
    }
}
