//! What goes upstream and what comes back: fields removed, rewritten and added.
//!
//! Order matters: what a client sent under a name of ours is removed first, then ours are set.
//! pingora removes what a `Connection` field nominates before any of this runs, so that a
//! nomination can drop what the client sent and never what we add (CVE-2026-105299).

use std::fmt::Write as _;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, COOKIE, FORWARDED, HOST, HeaderName,
    PROXY_AUTHORIZATION,
};
use http::{HeaderMap, HeaderValue, StatusCode};
use pingora::http::{RequestHeader, ResponseHeader};

use super::cors;
use crate::config::AuthorizationPolicy;
use crate::gate::Admitted;
use crate::policy::binding::BoundBy;
use crate::policy::certificate::SenderCertificate;
use crate::policy::trace::{Parent, TRACEPARENT, TRACESTATE, Trace, state_is_good};

/// `X-Request-Id`: the decision's id on every answer and every request upstream.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// `DPoP-Nonce` (RFC 9449 section 8).
pub const DPOP_NONCE: HeaderName = HeaderName::from_static("dpop-nonce");
/// `DPoP` (RFC 9449 section 4.1).
pub const DPOP: HeaderName = HeaderName::from_static("dpop");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");
const CLIENT_CERT_CHAIN: HeaderName = HeaderName::from_static("client-cert-chain");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const RESULT: HeaderName = HeaderName::from_static("x-holdfast-result");
const SUBJECT: HeaderName = HeaderName::from_static("x-holdfast-subject");
const CLIENT: HeaderName = HeaderName::from_static("x-holdfast-client");
const TENANT: HeaderName = HeaderName::from_static("x-holdfast-tenant");
const CNF_JKT: HeaderName = HeaderName::from_static("x-holdfast-cnf-jkt");
const CNF_X5T: HeaderName = HeaderName::from_static("x-holdfast-cnf-x5t");

/// Names that only the edge may set: the whole name, or everything that begins so.
const RESERVED: [(&str, bool); 8] = [
    (IDENTITY, true),
    ("client-cert", false),
    ("client-cert-chain", false),
    ("x-forwarded-", true),
    ("forwarded", false),
    ("x-ssl-", true),
    ("ssl-client-", true),
    ("x-request-id", false),
];
/// What the names that tell a service about the sender begin with.
const IDENTITY: &str = "x-holdfast-";

/// What the request upstream is made from.
#[derive(Clone, Debug)]
pub struct Onward<'a> {
    /// The fields as they were received.
    pub received: &'a HeaderMap,
    /// The permit.
    pub admitted: &'a Admitted,
    /// The name of the token's tenant.
    pub tenant: Option<&'a str>,
    /// What becomes of the credentials.
    pub authorization: AuthorizationPolicy,
    /// Credentials of a public route are passed on.
    pub pass_credentials: bool,
    /// The certificate, where the upstream asks for it.
    pub client_certificate: Option<&'a SenderCertificate>,
    /// What it chains to, DER, where the upstream asks for that too.
    pub client_chain: Vec<&'a [u8]>,
    /// The decision's id.
    pub request_id: &'a str,
    /// The edge's place in a trace, where there are traces.
    pub trace: Option<&'a Trace>,
    /// The authority that was routed on.
    pub authority: &'a str,
    /// The target that was routed on.
    pub target: &'a str,
    /// Whether the client spoke `https`.
    pub https: bool,
    /// The client's address.
    pub peer: Option<IpAddr>,
}

/// Rewrites a request on its way upstream.
///
/// # Errors
/// When the target cannot be written, which normalisation rules out.
pub fn upstream_request(request: &mut RequestHeader, onward: &Onward<'_>) -> pingora::Result<()> {
    remove_reserved(request);
    if onward.admitted.bound_by() == BoundBy::Preflight {
        cors::upstream_preflight(request);
    }
    request.set_raw_path(onward.target.as_bytes())?;
    request.insert_header(HOST, onward.authority)?;
    if let Some(length) = repeated_length(&request.headers) {
        request.insert_header(CONTENT_LENGTH, length)?;
    }
    one_cookie(request)?;
    credentials(request, onward)?;
    forwarded(request, onward)?;
    trace_context(request, onward)?;
    request.insert_header(REQUEST_ID, onward.request_id)?;
    identity(request, onward)
}

/// Whether only the edge may set `name`. Many services read `_` and `-` as one character.
fn reserved(name: &str) -> bool {
    RESERVED
        .iter()
        .any(|&(known, prefix)| begins(name, known) && (prefix || name.len() == known.len()))
}

/// Whether `name` begins with `known`, `_` read as `-`.
fn begins(name: &str, known: &str) -> bool {
    let read = |byte: u8| if byte == b'_' { b'-' } else { byte };
    name.len() >= known.len() && name.bytes().map(read).zip(known.bytes()).all(|(a, b)| a == b)
}

fn remove_reserved(request: &mut RequestHeader) {
    for name in names(&request.headers, reserved) {
        request.remove_header(&name);
    }
}

fn names(headers: &HeaderMap, chosen: fn(&str) -> bool) -> Vec<HeaderName> {
    headers.keys().filter(|name| chosen(name.as_str())).cloned().collect()
}

/// The length that is said more than once, in several fields or as a list, to be said once (RFC 9110
/// section 8.6). pingora refuses lengths that differ.
fn repeated_length(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter().map(HeaderValue::as_bytes);
    let first = lengths.next()?;
    if lengths.next().is_none() && !first.contains(&b',') {
        return None;
    }
    let length = first.split(|&byte| byte == b',').next()?.trim_ascii();
    HeaderValue::from_bytes(length).ok()
}

/// Joins the crumbs in which HTTP/2 may send `Cookie` (RFC 9113 section 8.2.3): services read one.
fn one_cookie(request: &mut RequestHeader) -> pingora::Result<()> {
    let crumbs: Vec<_> =
        request.headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1 {
        let cookie = crumbs.join(b"; ".as_slice());
        request.insert_header(COOKIE, cookie)?;
    }
    Ok(())
}

/// Whether a service that echoes `name` would have a client take it for our word.
fn identity_name(name: &str) -> bool {
    begins(name, IDENTITY)
}

fn credentials(request: &mut RequestHeader, onward: &Onward<'_>) -> pingora::Result<()> {
    // Of one hop, as pingora sees it; as a credential it is the next two arms' to decide.
    request.remove_header(&PROXY_AUTHORIZATION);
    match (onward.admitted.bound_by(), onward.authorization) {
        (BoundBy::Public, _) if onward.pass_credentials => proxy_authorization(request, onward)?,
        // As received: what the sender showed was not proven, the service may judge it itself.
        (BoundBy::Observed, _) => proxy_authorization(request, onward)?,
        (BoundBy::Public | BoundBy::Preflight, _) | (_, AuthorizationPolicy::Strip) => {
            request.remove_header(&AUTHORIZATION);
            request.remove_header(&DPOP);
        }
        (_, AuthorizationPolicy::Forward) => {}
        (_, AuthorizationPolicy::Bearer) => {
            let token = request.headers.get(AUTHORIZATION).and_then(token).map(<[u8]>::to_vec);
            request.remove_header(&DPOP);
            request.remove_header(&AUTHORIZATION);
            if let Some(token) = token {
                let bearer = [b"Bearer ".as_slice(), &token].concat();
                request.insert_header(AUTHORIZATION, bearer)?;
            }
        }
    }
    Ok(())
}

/// Puts `Proxy-Authorization` back, unless a `Connection` field nominates it.
fn proxy_authorization(request: &mut RequestHeader, onward: &Onward<'_>) -> pingora::Result<()> {
    let nominated = onward.received.get_all(CONNECTION).iter().any(|value| {
        let mut names = value.as_bytes().split(|&byte| byte == b',');
        let name = PROXY_AUTHORIZATION.as_str().as_bytes();
        names.any(|nominated| nominated.trim_ascii().eq_ignore_ascii_case(name))
    });
    if !nominated {
        for value in onward.received.get_all(PROXY_AUTHORIZATION) {
            request.append_header(PROXY_AUTHORIZATION, value.clone())?;
        }
    }
    Ok(())
}

/// What follows the scheme.
fn token(value: &HeaderValue) -> Option<&[u8]> {
    let value = value.as_bytes();
    let space = value.iter().position(|&byte| byte == b' ')?;
    value.get(space..).map(<[u8]>::trim_ascii)
}

/// Says whose trace it is (W3C Trace Context): the edge's place in it, or else what came, where that is a
/// context.
fn trace_context(request: &mut RequestHeader, onward: &Onward<'_>) -> pingora::Result<()> {
    let came =
        request.headers.contains_key(TRACEPARENT) || request.headers.contains_key(TRACESTATE);
    if came {
        let goes_on = Parent::of(&request.headers).is_some();
        if !goes_on {
            request.remove_header(&TRACEPARENT);
        }
        if !goes_on || !state_is_good(&request.headers) {
            request.remove_header(&TRACESTATE);
        }
    }
    match onward.trace {
        Some(trace) => request.insert_header(TRACEPARENT, trace.traceparent()),
        None => Ok(()),
    }
}

fn forwarded(request: &mut RequestHeader, onward: &Onward<'_>) -> pingora::Result<()> {
    let scheme = if onward.https { "https" } else { "http" };
    request.insert_header(X_FORWARDED_PROTO, scheme)?;
    request.insert_header(X_FORWARDED_HOST, onward.authority)?;
    let node = match onward.peer {
        Some(peer) => {
            request.insert_header(X_FORWARDED_FOR, peer.to_string())?;
            match peer {
                IpAddr::V4(peer) => peer.to_string(),
                IpAddr::V6(peer) => format!("\"[{peer}]\""),
            }
        }
        None => "unknown".to_owned(),
    };
    let value = format!("for={node};host=\"{}\";proto={scheme}", onward.authority);
    request.insert_header(FORWARDED, value)
}

fn identity(request: &mut RequestHeader, onward: &Onward<'_>) -> pingora::Result<()> {
    let bound_by = onward.admitted.bound_by();
    if let Some(result) = bound_by.result_header() {
        request.insert_header(RESULT, result)?;
    }
    if matches!(bound_by, BoundBy::Observed | BoundBy::Preflight) {
        return Ok(());
    }
    if let Some(certificate) = onward.client_certificate {
        request.insert_header(CLIENT_CERT, byte_sequence(certificate.der()))?;
        if !onward.client_chain.is_empty() {
            let chain: Vec<_> = onward.client_chain.iter().map(|der| byte_sequence(der)).collect();
            request.insert_header(CLIENT_CERT_CHAIN, chain.join(", "))?;
        }
    }
    let Some(token) = onward.admitted.token() else { return Ok(()) };
    let confirmation = onward.admitted.confirmation();
    for (name, value) in [
        (SUBJECT, token.subject().map(visible)),
        (CLIENT, token.client().map(visible)),
        (TENANT, onward.tenant.map(visible)),
        (CNF_JKT, confirmation.jkt.map(|jkt| jkt.to_string())),
        (CNF_X5T, confirmation.x5t.map(|x5t| x5t.to_string())),
    ] {
        if let Some(value) = value {
            request.insert_header(name, value)?;
        }
    }
    Ok(())
}

/// A byte sequence of RFC 8941 section 3.3.5, as RFC 9440 section 2 writes certificates: DER in base64
/// between colons.
fn byte_sequence(der: &[u8]) -> String {
    format!(":{}:", STANDARD.encode(der))
}

/// Percent-encodes what is outside visible ASCII, and `%` itself.
fn visible(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        if (b'!'..=b'~').contains(&byte) && byte != b'%' {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// Rewrites the head of an upstream's answer: its fields of our names go, ours are set. With
/// `issues` the edge issues nonces for this origin, so that the upstream's cannot be a second one.
///
/// # Errors
/// When a value cannot be written, which ours always can.
pub fn downstream_response(
    response: &mut ResponseHeader,
    request_id: &str,
    issues: bool,
    nonce: Option<&str>,
) -> pingora::Result<()> {
    informational_response(response, issues);
    if let Some(length) = repeated_length(&response.headers) {
        response.insert_header(CONTENT_LENGTH, length)?;
    }
    if response.status == StatusCode::NO_CONTENT {
        response.remove_header(&CONTENT_LENGTH);
    }
    // Of the connection to the upstream, not of this one.
    response.remove_header(&KEEP_ALIVE);
    response.insert_header(REQUEST_ID, request_id)?;
    if let Some(nonce) = nonce {
        response.insert_header(DPOP_NONCE, nonce)?;
        response.insert_header(CACHE_CONTROL, "no-store")?;
    }
    Ok(())
}

/// Removes fields of our names from the head of an upstream's answer, an interim one too. The id is
/// said on the answer itself.
pub fn informational_response(response: &mut ResponseHeader, issues: bool) {
    for name in names(&response.headers, identity_name) {
        response.remove_header(&name);
    }
    response.remove_header(&REQUEST_ID);
    if issues {
        response.remove_header(&DPOP_NONCE);
    }
}

/// Removes fields of our names from an answer's trailers.
pub fn downstream_trailers(trailers: &mut HeaderMap, issues: bool) {
    for name in names(trailers, identity_name) {
        trailers.remove(name);
    }
    if issues {
        trailers.remove(DPOP_NONCE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_only_the_edge_may_set() {
        for (name, expect) in [
            ("x-holdfast-subject", true),
            ("x_holdfast_subject", true),
            ("x-holdfast_anything-new", true),
            ("x-holdfast", false),
            ("client-cert", true),
            ("client_cert", true),
            ("client-cert-chain", true),
            ("client-certificate", false),
            ("x-forwarded-client-cert", true),
            ("x_forwarded-client_cert", true),
            ("x-forwarded-for", true),
            ("x-forwarded-port", true),
            ("forwarded", true),
            ("x-ssl-client-verify", true),
            ("ssl-client-dn", true),
            ("ssl_client_dn", true),
            ("x-request-id", true),
            ("x_request_id", true),
            ("x-real-ip", false),
            ("authorization", false),
            ("dpop", false),
            ("content-type", false),
            ("x-request-id-2", false),
        ] {
            assert_eq!(reserved(name), expect, "{name}");
        }
    }

    #[test]
    fn values_are_visible_ascii() {
        for (value, expect) in [
            ("alice", "alice"),
            ("a b", "a%20b"),
            ("100%", "100%25"),
            ("a\r\nX-Evil: 1", "a%0D%0AX-Evil:%201"),
            ("zoë", "zo%C3%AB"),
            ("", ""),
            ("\u{7f}", "%7F"),
        ] {
            assert_eq!(visible(value), expect);
        }
    }

    /// RFC 9440 appendix A, figure 2.
    #[test]
    fn client_cert_is_written_as_in_rfc_9440() {
        let example = concat!(
            ":MIIBqDCCAU6gAwIBAgIBBzAKBggqhkjOPQQDAjA6MRswGQYDVQQKDBJMZXQncyBBdXRoZW50aWNhdGUxGzAZ",
            "BgNVBAMMEkxBIEludGVybWVkaWF0ZSBDQTAeFw0yMDAxMTQyMjU1MzNaFw0yMTAxMjMyMjU1MzNaMA0xCzAJ",
            "BgNVBAMMAkJDMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE8YnXXfaUgmnMtOXU/IncWalRhebrXmckC8vd",
            "gJ1p5Be5F/3YC8OthxM4+k1M6aEAEFcGzkJiNy6J84y7uzo9M6NyMHAwCQYDVR0TBAIwADAfBgNVHSMEGDAW",
            "gBRm3WjLa38lbEYCuiCPct0ZaSED2DAOBgNVHQ8BAf8EBAMCBsAwEwYDVR0lBAwwCgYIKwYBBQUHAwIwHQYD",
            "VR0RAQH/BBMwEYEPYmRjQGV4YW1wbGUuY29tMAoGCCqGSM49BAMCA0gAMEUCIBHda/r1vaL6G3VliL4/Di6Y",
            "K0Q6bMjeSkC3dFCOOB8TAiEAx/kHSB4urmiZ0NX5r5XarmPk0wmuydBVoU4hBVZ1yhk=:",
        );
        let der = STANDARD.decode(example.trim_matches(':')).unwrap();
        let certificate = SenderCertificate::new(der).unwrap();
        assert_eq!(byte_sequence(certificate.der()), example);
        // 2021-01-23T22:55:33Z, as the example's certificate says of itself.
        assert_eq!(certificate.not_after().secs(), 1_611_442_533);
    }

    #[test]
    fn the_token_follows_the_scheme() {
        for (value, expect) in [
            ("DPoP abc", Some("abc")),
            ("dpop   abc ", Some("abc")),
            ("Bearer a.b.c", Some("a.b.c")),
            ("DPoP", None),
        ] {
            let value = HeaderValue::from_static(value);
            assert_eq!(token(&value), expect.map(str::as_bytes));
        }
    }

    #[test]
    fn an_answer_carries_our_fields_once() {
        for (issues, nonce, expect) in
            [(false, None, Some("theirs")), (true, None, None), (true, Some("ours"), Some("ours"))]
        {
            let mut response = ResponseHeader::build(200, None).unwrap();
            for (name, value) in [
                ("DPoP-Nonce", "theirs"),
                ("X-Holdfast-Subject", "mallory"),
                ("X-Request-Id", "theirs"),
                ("Cache-Control", "max-age=60"),
                ("Keep-Alive", "timeout=5"),
            ] {
                response.append_header(name, value).unwrap();
            }
            downstream_response(&mut response, "0123", issues, nonce).unwrap();
            let nonces: Vec<_> = response.headers.get_all(DPOP_NONCE).iter().collect();
            assert_eq!(nonces, expect.iter().collect::<Vec<_>>());
            assert_eq!(response.headers.get(REQUEST_ID).unwrap(), "0123");
            assert!(!response.headers.contains_key(SUBJECT));
            assert!(!response.headers.contains_key(KEEP_ALIVE));
            let cache = if nonce.is_some() { "no-store" } else { "max-age=60" };
            assert_eq!(response.headers.get(CACHE_CONTROL).unwrap(), cache);
        }
    }
}
