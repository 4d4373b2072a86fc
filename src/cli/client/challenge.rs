//! `WWW-Authenticate`, read (RFC 9110 section 11.6.1), and the error that an answer names.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;
use serde_json::Value;

/// One challenge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Challenge {
    /// The scheme as written.
    pub scheme: String,
    /// The token68, where the scheme has one instead of parameters.
    pub token68: Option<String>,
    /// Names in lower case, values unquoted, in order.
    pub parameters: Vec<(String, String)>,
}

impl Challenge {
    /// The value of a parameter, the first one when it is repeated.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Every challenge of every `WWW-Authenticate` field. What cannot be read ends its field's list:
/// this is a reader for people, who see the field itself too.
#[must_use]
pub fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let mut found = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE) {
        read_field(&String::from_utf8_lossy(value.as_bytes()), &mut found);
    }
    found
}

/// The error code of a refusal: that of a `DPoP` challenge, of another one, or `error` in a JSON
/// body (RFC 6749 section 5.2).
#[must_use]
pub fn error_code(headers: &HeaderMap, body: &[u8]) -> Option<String> {
    let challenges = challenges(headers);
    let dpop = challenges.iter().filter(|c| c.scheme.eq_ignore_ascii_case("DPoP"));
    if let Some(code) = dpop.chain(&challenges).find_map(|c| c.parameter("error")) {
        return Some(code.to_owned());
    }
    member(body, "error")
}

/// Why, in words: `error_description` of the challenge that names an error, or of a JSON body.
#[must_use]
pub fn error_description(headers: &HeaderMap, body: &[u8]) -> Option<String> {
    let challenges = challenges(headers);
    let said = challenges.iter().find_map(|c| c.parameter("error_description"));
    said.map(str::to_owned).or_else(|| member(body, "error_description"))
}

fn member(body: &[u8], name: &str) -> Option<String> {
    let json: Value = serde_json::from_slice(body).ok()?;
    Some(json.get(name)?.as_str()?.to_owned())
}

fn read_field(field: &str, found: &mut Vec<Challenge>) {
    let first = found.len();
    let mut rest = Cursor { rest: field };
    loop {
        rest.skip(|c| c == ',' || is_space(c));
        let word = rest.take(is_token);
        if word.is_empty() {
            return;
        }
        let spaced = rest.skip(is_space);
        if rest.peek() == Some('=') {
            let Some(challenge) = found.get_mut(first..).and_then(<[_]>::last_mut) else { return };
            let Some(value) = rest.parameter_value() else { return };
            challenge.parameters.push((word.to_ascii_lowercase(), value));
            continue;
        }
        let mut challenge = Challenge { scheme: word.to_owned(), ..Challenge::default() };
        if spaced {
            challenge.token68 = rest.token68();
        }
        found.push(challenge);
    }
}

struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn take(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !belongs(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn skip(&mut self, belongs: impl Fn(char) -> bool) -> bool {
        !self.take(belongs).is_empty()
    }

    /// `= value`, the value a token or a quoted string.
    fn parameter_value(&mut self) -> Option<String> {
        self.rest = self.rest.strip_prefix('=')?;
        self.skip(is_space);
        if self.peek() != Some('"') {
            return Some(self.take(is_token).to_owned());
        }
        let mut value = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = self.rest.get(at + 1..)?;
                    return Some(value);
                }
                '\\' => value.push(chars.next()?.1),
                other => value.push(other),
            }
        }
        self.rest = "";
        Some(value)
    }

    /// A token68 is told from a parameter by what follows: the next challenge or the end.
    fn token68(&mut self) -> Option<String> {
        let start = self.rest;
        let body = self.take(is_token68);
        let padding = self.take(|c| c == '=');
        let whole = start.get(..body.len() + padding.len()).unwrap_or_default();
        self.skip(is_space);
        if !body.is_empty() && matches!(self.peek(), None | Some(',')) {
            return Some(whole.to_owned());
        }
        self.rest = start;
        None
    }
}

fn is_space(c: char) -> bool {
    c == ' ' || c == '\t'
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

fn is_token68(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~+/".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(WWW_AUTHENTICATE, field.parse().unwrap());
        }
        headers
    }

    #[test]
    fn challenges_are_read() {
        let check = |fields: &[&str], expect: &str| {
            let shown: Vec<String> = challenges(&headers(fields))
                .into_iter()
                .map(|c| {
                    format!("{}|{}|{:?}", c.scheme, c.token68.unwrap_or_default(), c.parameters)
                })
                .collect();
            assert_eq!(shown.join(" ; "), expect, "{fields:?}");
        };
        check(&[], "");
        check(&[""], "");
        check(&["Basic"], "Basic||[]");
        check(
            &[r#"DPoP error="use_dpop_nonce", algs="ES256 PS256""#],
            r#"DPoP||[("error", "use_dpop_nonce"), ("algs", "ES256 PS256")]"#,
        );
        check(
            &[r#"Bearer realm="a, b", DPoP algs=ES256"#, "Basic realm=\"x\""],
            r#"Bearer||[("realm", "a, b")] ; DPoP||[("algs", "ES256")] ; Basic||[("realm", "x")]"#,
        );
        check(&["Negotiate YWJj==, Basic"], "Negotiate|YWJj==|[] ; Basic||[]");
        check(&["Negotiate YWJj"], "Negotiate|YWJj|[]");
        check(&[r#"A B="q\"r\\" , c = d"#], r#"A||[("b", "q\"r\\"), ("c", "d")]"#);
        check(&[",, Bearer ,, DPoP ,"], "Bearer||[] ; DPoP||[]");
        // Broken ones end the list and nothing else.
        check(&[r#"DPoP error="unfinished"#], r#"DPoP||[("error", "unfinished")]"#);
        check(&["DPoP error=\"x\" @ y=z"], r#"DPoP||[("error", "x")]"#);
        check(&["=x"], "");
        check(&["Basic", "a=b"], "Basic||[]");
        check(&[r#"DPoP e="\"#], "DPoP||[]");
    }

    #[test]
    fn error_is_the_dpop_challenge_s_first() {
        let check = |fields: &[&str], body: &str, expect: Option<&str>| {
            assert_eq!(error_code(&headers(fields), body.as_bytes()).as_deref(), expect);
        };
        let bearer = r#"Bearer error="invalid_token""#;
        check(&[bearer, r#"dpop error="use_dpop_nonce""#], "", Some("use_dpop_nonce"));
        check(&[bearer, "DPoP algs=\"ES256\""], "", Some("invalid_token"));
        check(&["DPoP"], r#"{"error":"x"}"#, Some("x"));
        check(&["DPoP"], r#"{"error":7}"#, None);
        check(&[], "no json", None);
    }
}
