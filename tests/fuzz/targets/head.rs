//! What a request presents: its target, its authority, its credentials, its certificate.
//!
//! An input is a request head: `METHOD target`, then `Name: value` lines, ended by line feeds only,
//! so that field values can hold any other byte.

use holdfast::edge::view::{Target, head_bytes};
use holdfast::policy::certificate::SenderCertificate;
use holdfast::policy::digest::Sha256;
use holdfast::policy::presented::{Scheme, credentials};
use holdfast::policy::proof::at_most_one_field;
use holdfast::policy::request::{RequestView, Sender};
use holdfast::policy::target::{normalise_path, split_authority};
use holdfast::policy::trace::{Parent, TRACEPARENT, state_is_good};
use http::header::AUTHORIZATION;
use pingora::http::RequestHeader;

const LIMIT: usize = 1024;

pub(super) fn head(input: &[u8]) {
    let Some(request) = read(input) else { return };
    assert!(head_bytes(&request) >= request.raw_path().len());
    let _ = at_most_one_field(&request.headers);
    context(&request.headers);
    let Ok(target) = Target::of(&request, None) else { return };
    target_is_normal(&target);
    let view = RequestView {
        method: request.method.as_str(),
        path: &target.path,
        query: target.query.as_deref(),
        headers: &request.headers,
        sender: Sender::NoCertificate,
    };
    let Ok(found) = credentials(&view, LIMIT) else { return };
    let fields: Vec<_> = request.headers.get_all(AUTHORIZATION).iter().collect();
    assert_eq!(fields.len(), 1, "a token of several Authorization fields");
    let field = fields[0].to_str().expect("a token out of a field that is no text");
    assert!(field.len() <= LIMIT);
    let name = match found.scheme {
        Scheme::Dpop => "dpop",
        Scheme::Bearer => "bearer",
    };
    let (scheme, token) = field.split_at(name.len());
    assert_eq!(scheme.to_ascii_lowercase(), name);
    assert_eq!(token.trim_start_matches(' '), found.token);
    assert!(!found.token.contains([' ', ',', '"']), "more than one token68");
    let query = target.query.unwrap_or_default();
    assert!(!query.split('&').any(|pair| pair.split('=').next() == Some("access_token")));
}

/// What is read as a trace's context is written as it was, as far as it is known.
fn context(headers: &http::HeaderMap) {
    let _ = state_is_good(headers);
    let Some(parent) = Parent::of(headers) else { return };
    let value = headers.get(TRACEPARENT).expect("the field that was read").as_bytes();
    let written = format!("-{}-{}-", parent.trace, parent.span);
    assert_eq!(value.get(2..53), Some(written.as_bytes()));
}

fn read(input: &[u8]) -> Option<RequestHeader> {
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (start, fields) = input.split_at(end);
    let space = start.iter().position(|byte| *byte == b' ')?;
    let request = RequestHeader::build(&start[..space], &start[space + 1..], None).ok()?;
    with_fields(request, fields.get(1..).unwrap_or_default())
}

/// `Name: value` lines, ended by line feeds only.
pub(super) fn with_fields(mut request: RequestHeader, lines: &[u8]) -> Option<RequestHeader> {
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = String::from_utf8(line[..colon].to_vec()).ok()?;
        request.append_header(name, line[colon + 1..].trim_ascii()).ok()?;
    }
    Some(request)
}

/// What is routed on and goes upstream is in its one normal form.
fn target_is_normal(target: &Target) {
    let again = normalise_path(&target.path).expect("a path that is refused the second time");
    assert_eq!(again.path, target.path);
    assert!(target.ambiguous || !again.ambiguous);
    assert!(target.path.starts_with('/'));
    assert!(target.path.bytes().all(|byte| byte.is_ascii_graphic()));
    assert!(!target.path.contains(['?', '#']), "a path with a query or a fragment");
    assert!(!target.path.split('/').any(|segment| segment == "." || segment == ".."));
    let lower = target.path.to_ascii_lowercase();
    let separators = ["//", "\\", "%2f", "%5c", "/..;", "/.;"];
    assert!(target.ambiguous || !separators.iter().any(|text| lower.contains(text)));
    let (host, port) = split_authority(&target.authority).expect("an authority that is none");
    let again = port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"));
    assert_eq!(again, target.authority);
    assert!(!target.authority.contains(['@', '/', '\\', '%', ' ']));
    assert_eq!(target.authority.to_ascii_lowercase(), target.authority);
}

pub(super) fn certificate(input: &[u8]) {
    let Some(read) = SenderCertificate::new(input.to_vec()) else { return };
    assert_eq!(read.der(), input);
    assert_eq!(read.x5t().0, Sha256::of(input));
}
