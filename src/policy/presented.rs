//! What a request presents: one `Authorization`, at most one `DPoP`, within their limits.

use http::header::AUTHORIZATION;

use super::denial::Denial;
use super::request::RequestView;

/// The scheme that a token came with (compared without case, RFC 9110 section 11.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `DPoP` (RFC 9449 section 7.1).
    Dpop,
    /// `Bearer` (RFC 6750 section 2.1).
    Bearer,
}

/// A token as presented. It is not to be printed, so it has no `Debug`.
#[derive(Clone, Copy)]
pub struct Credentials<'a> {
    /// Its scheme.
    pub scheme: Scheme,
    /// Its text, a non-empty `token68`.
    pub token: &'a str,
}

/// Reads the token.
///
/// # Errors
/// [`Denial::TokenInQuery`] for `access_token` in the query, [`Denial::AuthorizationRepeated`],
/// [`Denial::AuthorizationMalformed`], and [`Denial::TokenMissing`] without `Authorization` or with
/// a scheme that carries no access token.
pub fn credentials<'a>(view: &RequestView<'a>, limit: usize) -> Result<Credentials<'a>, Denial> {
    if view.query.is_some_and(names_access_token) {
        return Err(Denial::TokenInQuery);
    }
    let mut fields = view.headers.get_all(AUTHORIZATION).iter();
    let field = fields.next().ok_or(Denial::TokenMissing)?;
    if fields.next().is_some() {
        return Err(Denial::AuthorizationRepeated);
    }
    if field.len() > limit {
        return Err(Denial::AuthorizationMalformed);
    }
    let text = field.to_str().map_err(|_| Denial::AuthorizationMalformed)?;
    let (name, rest) = text.split_once(' ').unwrap_or((text, ""));
    let scheme = if name.eq_ignore_ascii_case("dpop") {
        Scheme::Dpop
    } else if name.eq_ignore_ascii_case("bearer") {
        Scheme::Bearer
    } else if is_token(name) {
        return Err(Denial::TokenMissing);
    } else {
        return Err(Denial::AuthorizationMalformed);
    };
    let token = rest.trim_start_matches(' ');
    if !is_token68(token) {
        return Err(Denial::AuthorizationMalformed);
    }
    Ok(Credentials { scheme, token })
}

/// Whether a parameter of the query is called `access_token` (RFC 6750 section 2.3), however its
/// name is escaped, and also for a service that takes `;` for `&`.
#[must_use]
pub fn names_access_token(query: &str) -> bool {
    query.split(['&', ';']).any(|parameter| {
        let name = parameter.split('=').next().unwrap_or_default();
        name == "access_token"
            || (name.contains('%')
                && super::target::percent_decoded(name).eq_ignore_ascii_case(b"access_token"))
    })
}

/// RFC 9110 section 5.6.2.
pub(super) fn is_token(text: &str) -> bool {
    let special = |byte| b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || special(byte))
}

/// RFC 9110 section 11.2.
fn is_token68(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    !body.is_empty()
        && body.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::super::request::Sender;
    use super::*;
    use http::{HeaderMap, HeaderValue};

    fn check(
        query: Option<&str>,
        fields: &[&[u8]],
        expect: Result<(Scheme, &'static str), Denial>,
    ) {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(AUTHORIZATION, HeaderValue::from_bytes(field).unwrap());
        }
        let sender = Sender::NoCertificate;
        let view = RequestView { method: "GET", path: "/", query, headers: &headers, sender };
        let read = credentials(&view, 100).map(|found| (found.scheme, found.token.to_owned()));
        assert_eq!(read, expect.map(|(scheme, token)| (scheme, token.to_owned())), "{fields:?}");
    }

    #[test]
    fn ok() {
        check(None, &[b"DPoP a.b-c_d~e+f/g=="], Ok((Scheme::Dpop, "a.b-c_d~e+f/g==")));
        check(None, &[b"dpop abc"], Ok((Scheme::Dpop, "abc")));
        check(None, &[b"BEARER   abc"], Ok((Scheme::Bearer, "abc")));
        check(Some("a=access_token"), &[b"Bearer abc"], Ok((Scheme::Bearer, "abc")));
        check(Some("access_tokens=1&xaccess_token"), &[b"Bearer abc"], Ok((Scheme::Bearer, "abc")));
    }

    #[test]
    fn fail() {
        check(None, &[], Err(Denial::TokenMissing));
        check(None, &[b"Basic abc"], Err(Denial::TokenMissing));
        check(None, &[b""], Err(Denial::AuthorizationMalformed));
        check(None, &[b"Bearer"], Err(Denial::AuthorizationMalformed));
        check(None, &[b"Bearer "], Err(Denial::AuthorizationMalformed));
        check(None, &[b"Bearer =="], Err(Denial::AuthorizationMalformed));
        check(None, &[b"Bearer a b"], Err(Denial::AuthorizationMalformed));
        check(None, &[b"Bearer a, DPoP b"], Err(Denial::AuthorizationMalformed));
        check(None, &[b"Bearer \xe9"], Err(Denial::AuthorizationMalformed));
        check(None, &[b"DPoP\tabc"], Err(Denial::AuthorizationMalformed));
        check(
            None,
            &[format!("Bearer {}", "a".repeat(94)).as_bytes()],
            Err(Denial::AuthorizationMalformed),
        );
        check(None, &[b"Bearer a", b"Bearer a"], Err(Denial::AuthorizationRepeated));
        check(None, &[b"DPoP a", b"Basic a"], Err(Denial::AuthorizationRepeated));
        check(Some("access_token=x"), &[b"Bearer a"], Err(Denial::TokenInQuery));
        check(Some("a=1&access%5Ftoken=x"), &[], Err(Denial::TokenInQuery));
        check(Some("access_token"), &[], Err(Denial::TokenInQuery));
        check(Some("a=1;access_token=x"), &[], Err(Denial::TokenInQuery));
    }
}
