//! The cheapest authorization server there is, and the cheapest resource: one answer for each request.
//! The tokens are named after the code or the refresh token, so that who has sent that knows them.

use std::borrow::Cow;

use crate::origin::ORDER;

/// Seconds that an access token is good: soon there is one that is outlived for each that is issued.
const LIFETIME: u64 = 60;

/// The answer to a request, once it is whole.
pub(crate) fn answer(request: &[u8]) -> Option<Cow<'static, [u8]>> {
    let end = request.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let (head, body) = request.split_at_checked(end)?;
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let field = |name: &str| {
        let mut lines = head.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    let Some(length) = field("content-length") else { return Some(ORDER.into()) };
    if body.len() < length.parse().ok()? {
        return None;
    }
    let body = String::from_utf8_lossy(body);
    let named = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        ["code", "refresh_token"].contains(&name).then(|| value.to_owned())
    };
    let name = body.split('&').find_map(named)?;
    // Where it sees a proof, it is one that binds.
    let binds = if field("dpop").is_some() { "DPoP" } else { "Bearer" };
    let (access, refresh) = (access_token(&name), refresh_token(&name));
    let told = format!(
        r#"{{"access_token":"{access}","token_type":"{binds}","expires_in":{LIFETIME},"refresh_token":"{refresh}","scope":"orders:read orders:write"}}"#
    );
    let length = told.len();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nCache-Control: no-store";
    Some(format!("{head}\r\nContent-Length: {length}\r\n\r\n{told}").into_bytes().into())
}

pub(crate) fn access_token(name: &str) -> String {
    format!("at_{name}")
}

pub(crate) fn refresh_token(name: &str) -> String {
    format!("rt_{name}")
}
