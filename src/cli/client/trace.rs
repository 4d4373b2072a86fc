//! What was sent and what came back, for a person to read or as JSON.
//!
//! Invariant: no private key, token, proof or cookie is written: hashes, and a proof decoded.

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use serde_json::{Map, Value, json};

use super::challenge::{Challenge, challenges, error_code};
use super::proof::Proof;
use crate::policy::digest::Sha256;

/// A request as it is about to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent<'a> {
    /// 1 for the first.
    pub number: usize,
    /// The method.
    pub method: &'a Method,
    /// The URL.
    pub url: &'a str,
    /// Every field, the proof's and the token's too.
    pub headers: &'a HeaderMap,
    /// The proof among them.
    pub proof: Option<&'a Proof>,
    /// Bytes of the body.
    pub body_bytes: usize,
}

/// An answer.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// The number of the request that it answers.
    pub number: usize,
    /// The status.
    pub status: StatusCode,
    /// The HTTP version.
    pub version: Version,
    /// Every field.
    pub headers: &'a HeaderMap,
    /// The body as far as it was read.
    pub body: &'a [u8],
    /// Whether the body goes on.
    pub truncated: bool,
}

/// Writes a request.
///
/// # Errors
/// What `out` says.
pub fn write_sent(out: &mut dyn Write, sent: &Sent<'_>) -> io::Result<()> {
    writeln!(out, "> {}  {} {}", sent.number, sent.method, clean(sent.url))?;
    for (name, value) in sent.headers {
        if *name != "dpop" || sent.proof.is_none_or(|proof| value != proof.compact.as_str()) {
            writeln!(out, "     {name}: {}", shown(name, value))?;
        }
    }
    if let Some(proof) = sent.proof {
        writeln!(out, "     dpop: a proof, signed, of")?;
        write_json(out, "header", &proof.header)?;
        write_json(out, "claims", &proof.claims)?;
    }
    if sent.body_bytes > 0 {
        writeln!(out, "     (body of {} bytes)", sent.body_bytes)?;
    }
    Ok(())
}

/// Writes the head of an answer, its challenges and nonce told apart.
///
/// # Errors
/// What `out` says.
pub fn write_received(out: &mut dyn Write, received: &Received<'_>) -> io::Result<()> {
    writeln!(out, "< {}  {} ({:?})", received.number, received.status, received.version)?;
    for challenge in challenges(received.headers) {
        write_challenge(out, &challenge)?;
    }
    for (name, value) in received.headers {
        if name != http::header::WWW_AUTHENTICATE {
            writeln!(out, "     {name}: {}", shown(name, value))?;
        }
    }
    Ok(())
}

/// Writes the start of a body that does not go to the standard output.
///
/// # Errors
/// What `out` says.
pub fn write_body(out: &mut dyn Write, body: &[u8]) -> io::Result<()> {
    for line in String::from_utf8_lossy(body).lines() {
        writeln!(out, "     | {}", clean(line))?;
    }
    Ok(())
}

fn write_challenge(out: &mut dyn Write, challenge: &Challenge) -> io::Result<()> {
    write!(out, "     www-authenticate: {}", clean(&challenge.scheme))?;
    match &challenge.token68 {
        Some(token68) => writeln!(out, " {}", clean(token68))?,
        None => writeln!(out)?,
    }
    for (name, value) in &challenge.parameters {
        writeln!(out, "       {} = {}", clean(name), clean(value))?;
    }
    Ok(())
}

fn write_json(out: &mut dyn Write, title: &str, value: &Value) -> io::Result<()> {
    let pretty = serde_json::to_string_pretty(value).unwrap_or_default();
    let mut lines = pretty.lines();
    writeln!(out, "       {title} {}", lines.next().unwrap_or_default())?;
    for line in lines {
        writeln!(out, "       {line}")?;
    }
    Ok(())
}

/// A request as JSON.
#[must_use]
pub fn sent_json(sent: &Sent<'_>) -> Value {
    let proof = sent.proof.map(|proof| json!({"header": proof.header, "claims": proof.claims}));
    json!({
        "method": sent.method.as_str(),
        "url": sent.url,
        "headers": headers_json(sent.headers),
        "proof": proof,
        "bodyBytes": sent.body_bytes,
    })
}

/// An answer as JSON; a body that is no UTF-8 as `bodyBase64`.
#[must_use]
pub fn received_json(received: &Received<'_>) -> Value {
    let challenges: Vec<Value> = challenges(received.headers)
        .into_iter()
        .map(|challenge| {
            let parameters: Map<String, Value> = challenge
                .parameters
                .into_iter()
                .map(|(name, value)| (name, Value::String(value)))
                .collect();
            json!({
                "scheme": challenge.scheme,
                "token68": challenge.token68,
                "parameters": parameters,
            })
        })
        .collect();
    let (member, body) = match std::str::from_utf8(received.body) {
        Ok(text) => ("body", text.to_owned()),
        Err(_) => ("bodyBase64", STANDARD.encode(received.body)),
    };
    json!({
        "status": received.status.as_u16(),
        "version": format!("{:?}", received.version),
        "headers": headers_json(received.headers),
        "challenges": challenges,
        "error": error_code(received.headers, received.body),
        "nonce": nonce(received.headers),
        member: body,
        "bodyTruncated": received.truncated,
    })
}

/// The `DPoP-Nonce` of an answer (RFC 9449 section 8.1); `None` unless there is exactly one.
#[must_use]
pub fn nonce(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all("dpop-nonce").iter();
    let first = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(first)
}

fn headers_json(headers: &HeaderMap) -> Vec<[String; 2]> {
    headers.iter().map(|(name, value)| [name.to_string(), shown(name, value)]).collect()
}

/// A field's value, credentials as a hash: whoever has the value can tell that it is the same.
fn shown(name: &HeaderName, value: &HeaderValue) -> String {
    let text = String::from_utf8_lossy(value.as_bytes());
    let hashed = |secret: &str| {
        let hash = Sha256::of(secret.as_bytes()).to_string();
        format!("(sha256 {}...)", hash.get(..8).unwrap_or_default())
    };
    match name.as_str() {
        "authorization" | "proxy-authorization" => match text.split_once(' ') {
            Some((scheme, rest)) => format!("{} {}", clean(scheme), hashed(rest)),
            None => hashed(&text),
        },
        "dpop" | "cookie" | "set-cookie" => hashed(&text),
        _ => clean(&text),
    }
}

/// Text from elsewhere, on one line and without what a terminal would obey.
#[must_use]
pub fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            cleaned.extend(c.escape_unicode());
        } else {
            cleaned.push(c);
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_escaped() {
        assert_eq!(clean("a\u{1b}[2Jb\u{202e}c\nd é"), "a\\u{1b}[2Jb\\u{202e}c\\u{a}d é");
    }

    #[test]
    fn credentials_are_shown_as_hashes() {
        let check = |name: &'static str, value: &str, expect: &str| {
            let name = HeaderName::from_static(name);
            assert_eq!(shown(&name, &value.parse().unwrap()), expect);
        };
        let token = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU";
        check("authorization", &format!("DPoP {token}"), "DPoP (sha256 fUHyO2r2...)");
        check("authorization", token, "(sha256 fUHyO2r2...)");
        check("dpop", token, "(sha256 fUHyO2r2...)");
        check("cookie", token, "(sha256 fUHyO2r2...)");
        check("accept", "*/*", "*/*");
    }

    #[test]
    fn two_nonces_are_none() {
        let mut headers = HeaderMap::new();
        assert_eq!(nonce(&headers), None);
        headers.append("dpop-nonce", HeaderValue::from_static("a"));
        assert_eq!(nonce(&headers), Some("a"));
        headers.append("dpop-nonce", HeaderValue::from_static("b"));
        assert_eq!(nonce(&headers), None);
    }
}
