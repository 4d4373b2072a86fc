//! What proxies in front say of a request: `Forwarded` (RFC 7239) and the older `X-Forwarded-*`.
//!
//! Nothing is believed here. [`proxies`](super::proxies) says who is.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use http::header::FORWARDED;

use super::presented::is_token;
use super::target::split_authority;

const X_FORWARDED_FOR: &str = "x-forwarded-for";
const X_FORWARDED_PROTO: &str = "x-forwarded-proto";
const X_FORWARDED_HOST: &str = "x-forwarded-host";
const X_FORWARDED_PORT: &str = "x-forwarded-port";
/// Hops that are looked at, from the right.
pub const MAX_HOPS: usize = 32;
/// Pairs of one element of `Forwarded`; four are defined.
const MAX_PAIRS: usize = 16;

/// A field that should say where a request comes from cannot be read, or says it twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what a proxy says of the request cannot be read")]
pub struct Malformed;

/// One hop, as the proxy after it saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// `for`: its address; `None` where the proxy hides it (`unknown`, `_name`) or does not say.
    pub address: Option<IpAddr>,
    /// How and as whom it reached the proxy.
    pub origin: Said,
}

/// What a proxy says of the origin that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Whether by `https`.
    pub https: Option<bool>,
    /// Its authority, normalised: `api.example.com`, `api.example.com:8443`.
    pub authority: Option<String>,
    /// Its port, where a field of its own says it.
    pub port: Option<u16>,
}

/// `Forwarded`: every hop, the client first. `None` without such a field.
///
/// # Errors
/// [`Malformed`]: anything but elements of `name=value` pairs, each name once, as in section 4.
pub fn forwarded(headers: &HeaderMap) -> Result<Option<Vec<Hop>>, Malformed> {
    let mut hops = None;
    for value in headers.get_all(FORWARDED) {
        let value = value.to_str().map_err(|_| Malformed)?;
        let hops: &mut Vec<Hop> = hops.get_or_insert_default();
        for element in split(value, ',')? {
            if !element.trim_matches(BLANK).is_empty() {
                hops.push(hop(element)?);
            }
        }
        if hops.len() > MAX_HOPS {
            return Err(Malformed);
        }
    }
    Ok(hops.filter(|hops| !hops.is_empty()))
}

fn hop(element: &str) -> Result<Hop, Malformed> {
    let mut seen = Vec::new();
    let mut hop = Hop::default();
    for pair in split(element, ';')? {
        let (name, value) = pair.trim_matches(BLANK).split_once('=').ok_or(Malformed)?;
        let name = name.to_ascii_lowercase();
        if !is_token(&name) || seen.contains(&name) || seen.len() == MAX_PAIRS {
            return Err(Malformed);
        }
        let value = unquoted(value)?;
        match name.as_str() {
            "for" => hop.address = node(&value)?,
            "proto" => hop.origin.https = Some(scheme(&value)?),
            "host" => hop.origin.authority = Some(authority(&value)?),
            // `by`, and what extensions say.
            _ => {}
        }
        seen.push(name);
    }
    Ok(hop)
}

/// `X-Forwarded-For`, from the right: each hop is read when it is asked for, so that what a client
/// wrote to the left of what counts is never looked at. `None` without such a field.
pub fn x_forwarded_for(
    headers: &HeaderMap,
) -> Option<impl Iterator<Item = Result<Option<IpAddr>, Malformed>>> {
    let present = headers.contains_key(X_FORWARDED_FOR);
    let values = headers.get_all(X_FORWARDED_FOR).iter().rev();
    let hops = values.flat_map(|value| value.as_bytes().rsplit(|&byte| byte == b','));
    let hops = hops.map(|hop| {
        let hop = std::str::from_utf8(hop).map_err(|_| Malformed)?.trim_matches(BLANK);
        // Some proxies write IPv6 addresses without brackets.
        hop.parse::<IpAddr>().map_or_else(|_| node(hop), |address| Ok(Some(address.to_canonical())))
    });
    present.then(|| hops.take(MAX_HOPS))
}

/// `X-Forwarded-Proto`, `-Host` and `-Port`, which say one thing each.
///
/// # Errors
/// [`Malformed`]: a value that is none, or more than one.
pub fn x_forwarded_origin(headers: &HeaderMap) -> Result<Said, Malformed> {
    let port = |value: &str| {
        let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        let port = value.parse().ok().filter(|port| digits && *port != 0);
        port.ok_or(Malformed)
    };
    Ok(Said {
        https: one_value(headers, X_FORWARDED_PROTO)?.map(scheme).transpose()?,
        authority: one_value(headers, X_FORWARDED_HOST)?.map(authority).transpose()?,
        port: one_value(headers, X_FORWARDED_PORT)?.map(port).transpose()?,
    })
}

/// The value of a field that may be there once, without blanks around it.
pub(super) fn one_value<'a>(
    headers: &'a HeaderMap,
    name: &str,
) -> Result<Option<&'a str>, Malformed> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            value.to_str().map(|it| Some(it.trim_matches(BLANK))).map_err(|_| Malformed)
        }
        (Some(_), Some(_)) => Err(Malformed),
    }
}

const BLANK: [char; 2] = [' ', '\t'];

/// Splits at `at` outside of quoted strings (RFC 9110 section 5.6.4).
pub(super) fn split(text: &str, at: char) -> Result<Vec<&str>, Malformed> {
    let (mut parts, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (place, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if character == at && !quoted => {
                parts.push(text.get(start..place).ok_or(Malformed)?);
                start = place + 1;
            }
            _ => {}
        }
    }
    parts.push(text.get(start..).ok_or(Malformed)?);
    if quoted { Err(Malformed) } else { Ok(parts) }
}

/// A token, or what stands in a quoted string.
fn unquoted(value: &str) -> Result<String, Malformed> {
    if is_token(value) {
        return Ok(value.to_owned());
    }
    let inner = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    let (mut text, mut escaped) = (String::new(), false);
    for character in inner.ok_or(Malformed)?.chars() {
        match character {
            _ if escaped => {
                text.push(character);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return Err(Malformed),
            _ => text.push(character),
        }
    }
    if escaped { Err(Malformed) } else { Ok(text) }
}

/// A node (section 6): an address, IPv6 in brackets, with a port or without, or a name that hides it.
fn node(text: &str) -> Result<Option<IpAddr>, Malformed> {
    let hidden = |name: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        name.eq_ignore_ascii_case("unknown")
            || (name.len() > 1 && name.starts_with('_') && name.bytes().all(allowed))
    };
    let address = text
        .parse::<SocketAddr>()
        .map(|socket| socket.ip())
        .or_else(|_| text.parse().map(IpAddr::V4))
        .ok()
        .or_else(|| {
            let inner = text.strip_prefix('[')?.strip_suffix(']')?;
            inner.parse().ok().map(IpAddr::V6)
        });
    match address {
        Some(address) => Ok(Some(address.to_canonical())),
        None if hidden(text.split_once(':').map_or(text, |(name, _)| name)) => Ok(None),
        None => Err(Malformed),
    }
}

fn scheme(text: &str) -> Result<bool, Malformed> {
    match text {
        _ if text.eq_ignore_ascii_case("https") || text.eq_ignore_ascii_case("wss") => Ok(true),
        _ if text.eq_ignore_ascii_case("http") || text.eq_ignore_ascii_case("ws") => Ok(false),
        _ => Err(Malformed),
    }
}

fn authority(text: &str) -> Result<String, Malformed> {
    let (host, port) = split_authority(text).ok_or(Malformed)?;
    Ok(port.map_or_else(|| host.clone(), |port| format!("{host}:{port}")))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn hops(values: &[&str]) -> Result<Option<Vec<String>>, Malformed> {
        let fields: Vec<_> = values.iter().map(|value| ("forwarded", *value)).collect();
        let show = |hop: Hop| {
            let address = hop.address.map_or("?".to_owned(), |address| address.to_string());
            let https = hop.origin.https.map_or("", |https| if https { " https" } else { " http" });
            let authority = hop.origin.authority.map(|it| format!(" {it}")).unwrap_or_default();
            format!("{address}{https}{authority}")
        };
        let hops = forwarded(&headers(&fields))?;
        Ok(hops.map(|hops| hops.into_iter().map(show).collect()))
    }

    #[test]
    fn elements_of_forwarded() {
        for (values, expect) in [
            (&["for=192.0.2.43"][..], &["192.0.2.43"][..]),
            (&["for=192.0.2.43, for=198.51.100.17"], &["192.0.2.43", "198.51.100.17"]),
            (&["for=192.0.2.43", "for=198.51.100.17"], &["192.0.2.43", "198.51.100.17"]),
            (&["For=\"[2001:db8:cafe::17]:4711\""], &["2001:db8:cafe::17"]),
            (&["for=\"192.0.2.43:47011\""], &["192.0.2.43"]),
            (&["for=\"[::ffff:192.0.2.43]\""], &["192.0.2.43"]),
            (&["for=192.0.2.60;proto=http;by=203.0.113.43"], &["192.0.2.60 http"]),
            (&["for=unknown"], &["?"]),
            (&["for=_hidden, for=_SEVKISEK"], &["?", "?"]),
            (&["proto=HTTPS;host=\"API.example.com:8443\""], &["? https api.example.com:8443"]),
            (&["for=1.2.3.4;host=a.example;x=\"a,b;c\\\"d\""], &["1.2.3.4 a.example"]),
            (&[" for=1.2.3.4 ; proto=https , "], &["1.2.3.4 https"]),
        ] {
            let expect = expect.iter().map(|hop| (*hop).to_owned()).collect();
            assert_eq!(hops(values), Ok(Some(expect)), "{values:?}");
        }
        assert_eq!(hops(&[]), Ok(None));
        assert_eq!(hops(&[""]), Ok(None));
    }

    #[test]
    fn what_is_no_forwarded() {
        let many = vec!["for=1.2.3.4"; MAX_HOPS + 1].join(",");
        let pairs: Vec<_> = (0..=MAX_PAIRS).map(|index| format!("a{index}=b")).collect();
        for value in [
            "1.2.3.4",
            "for",
            "for=",
            "for=1.2.3.4;for=1.2.3.5",
            "For=1.2.3.4;for=1.2.3.4",
            "for=\"1.2.3.4",
            "for=\"1.2.3.4, for=1.2.3.4",
            "for=2001:db8::1",
            "for=[2001:db8::1]",
            "for=example.com",
            "for=\"_a b\"",
            "for=1.2.3",
            "for =1.2.3.4",
            "for= 1.2.3.4",
            "for=1.2.3.4;;proto=http",
            "proto=ftp",
            "host=\"a b\"",
            "host=\"a.example/x\"",
            "host=\"user@a.example\"",
            "for=\"1.2.3.4\"x",
            "for=\"1.2.3.4\\\"",
            "for=\u{e9}",
            &many,
            &pairs.join(";"),
        ] {
            assert_eq!(hops(&[value]), Err(Malformed), "{value}");
        }
    }

    #[test]
    fn x_forwarded_for_is_read_from_the_right() {
        for (values, expect) in [
            (&["192.0.2.1"][..], "192.0.2.1"),
            (&["192.0.2.1, 192.0.2.2"], "192.0.2.2 192.0.2.1"),
            (&["192.0.2.1", "192.0.2.2 ,192.0.2.3"], "192.0.2.3 192.0.2.2 192.0.2.1"),
            (&["2001:db8::1"], "2001:db8::1"),
            (&["[2001:db8::1]:80, 192.0.2.1:80"], "192.0.2.1 2001:db8::1"),
            (&["::ffff:192.0.2.1"], "192.0.2.1"),
            (&["unknown, 192.0.2.1"], "192.0.2.1 ?"),
            (&["evil, 192.0.2.1"], "192.0.2.1 !"),
            (&["192.0.2.1,"], "! 192.0.2.1"),
            (&["a.example"], "!"),
            (&["for=192.0.2.1"], "!"),
            (&["\u{e9}"], "!"),
        ] {
            let fields: Vec<_> = values.iter().map(|value| ("x-forwarded-for", *value)).collect();
            let show = |hop: Result<Option<IpAddr>, Malformed>| match hop {
                Ok(Some(address)) => address.to_string(),
                Ok(None) => "?".to_owned(),
                Err(Malformed) => "!".to_owned(),
            };
            let headers = headers(&fields);
            let hops: Vec<_> = x_forwarded_for(&headers).unwrap().map(show).collect();
            assert_eq!(hops.join(" "), expect, "{values:?}");
        }
        assert!(x_forwarded_for(&headers(&[])).is_none());
    }

    #[test]
    fn x_forwarded_origins() {
        let said = |https, authority: Option<&str>, port| {
            Ok(Said { https, authority: authority.map(str::to_owned), port })
        };
        for (fields, expect) in [
            (&[][..], said(None, None, None)),
            (&[("x-forwarded-proto", "HTTPS")], said(Some(true), None, None)),
            (&[("x-forwarded-proto", "ws")], said(Some(false), None, None)),
            (
                &[("x-forwarded-host", "A.example:8443"), ("x-forwarded-port", "8443")],
                said(None, Some("a.example:8443"), Some(8443)),
            ),
            (&[("x-forwarded-proto", "https, http")], Err(Malformed)),
            (&[("x-forwarded-proto", "https"), ("x-forwarded-proto", "https")], Err(Malformed)),
            (&[("x-forwarded-proto", "")], Err(Malformed)),
            (&[("x-forwarded-host", "a.example, b.example")], Err(Malformed)),
            (&[("x-forwarded-host", "a.example/")], Err(Malformed)),
            (&[("x-forwarded-port", "0")], Err(Malformed)),
            (&[("x-forwarded-port", "+80")], Err(Malformed)),
            (&[("x-forwarded-port", "65536")], Err(Malformed)),
        ] {
            assert_eq!(x_forwarded_origin(&headers(fields)), expect, "{fields:?}");
        }
    }
}
