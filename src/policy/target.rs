//! The target of a request: external origin, path, and the comparison of `htu`.

use std::borrow::Cow;
use std::fmt;

/// An external origin (RFC 6454): scheme, host in lower case, port unless it is the scheme's own.
/// Written `https://api.example.com` or `https://localhost:8443`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Origin(String);

impl Origin {
    /// Reads `https://host[:port]`, with a `/` after it or without (an `http` origin too: whoever
    /// terminates TLS elsewhere says so). `None` with a longer path, a query, a fragment, user
    /// information, a port of 0 or past 65535, or a host that is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let uri = Uri::split(text)?;
        let bare = uri.path.is_empty() || uri.path == "/";
        (bare && !text.contains(['?', '#'])).then_some(())?;
        Some(Self(uri.origin()?))
    }

    /// Whether its scheme is `https`.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.0.starts_with("https:")
    }

    /// As it is written in an `htu`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether `htu` is the target at `origin` and the normalised `path` (RFC 9449 section 4.3,
/// number 9): equal after RFC 3986 sections 6.2.2 and 6.2.3, without query and fragment.
#[must_use]
pub fn htu_matches(htu: &str, origin: &Origin, path: &str) -> bool {
    if htu.strip_prefix(origin.as_str()) == Some(path) {
        return true;
    }
    let Some(uri) = Uri::split(htu) else {
        return false;
    };
    let shown = if uri.path.is_empty() { "/" } else { uri.path };
    uri.origin().is_some_and(|shown_origin| shown_origin == origin.as_str())
        && normalise_path(shown).is_some_and(|shown| shown.path == path)
}

/// An absolute `http` or `https` URI in its parts; query and fragment are left out.
struct Uri<'a> {
    scheme: &'static str,
    authority: &'a str,
    path: &'a str,
}

impl<'a> Uri<'a> {
    fn split(text: &'a str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let scheme =
            ["https", "http"].into_iter().find(|known| scheme.eq_ignore_ascii_case(known))?;
        let end = rest.find(['?', '#']).unwrap_or(rest.len());
        let rest = rest.get(..end)?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Some(Self { scheme, authority, path })
    }

    /// Scheme and host in lower case, the default or an empty port left out.
    fn origin(&self) -> Option<String> {
        let default = if self.scheme == "https" { 443 } else { 80 };
        let (host, port) = split_authority(self.authority)?;
        Some(match port {
            Some(port) if port != default => format!("{}://{host}:{port}", self.scheme),
            Some(_) | None => format!("{}://{host}", self.scheme),
        })
    }
}

/// Splits `host[:port]` (a `Host`, or an authority without user information) into the host,
/// normalised (lower case, unreserved characters decoded), and its port; an empty port is none.
/// `None` for what is no host.
#[must_use]
pub fn split_authority(authority: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match authority.rfind(']') {
        Some(end) => authority.split_at(end + 1),
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => None,
        None => return None,
        Some("") => None,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(digits.parse().ok().filter(|port| *port != 0)?)
        }
        Some(_) => return None,
    };
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => format!("[{}]", address.parse::<std::net::Ipv6Addr>().ok()?),
        None => registered_name(host)?,
    };
    Some((host, port))
}

fn registered_name(host: &str) -> Option<String> {
    let mut decoded = String::from_utf8(percent_decoded(host)).ok()?;
    decoded.make_ascii_lowercase();
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    (!decoded.is_empty() && decoded.bytes().all(allowed)).then_some(decoded)
}

/// Every `%XX` decoded; a broken escape stays as it is.
#[must_use]
pub fn percent_decoded(text: &str) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        match escape(rest) {
            Some((value, after)) => {
                decoded.push(value);
                rest = after;
            }
            None => {
                decoded.push(*byte);
                rest = after;
            }
        }
    }
    decoded
}

/// `%XX` at the head of `rest`: its value and what follows.
fn escape(rest: &[u8]) -> Option<(u8, &[u8])> {
    let (b'%', [high, low, after @ ..]) = rest.split_first()? else {
        return None;
    };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let value = digit(*high)? * 16 + digit(*low)?;
    Some((u8::try_from(value).ok()?, after))
}

/// A request's path after normalisation (RFC 3986 section 6.2.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NormalPath<'a> {
    /// Dot segments resolved, unreserved characters decoded, escapes in upper case.
    pub path: Cow<'a, str>,
    /// Whether it held what some services read as a separator: `%2F`, `%5C`, `\`, or an empty
    /// segment; or what some read as a dot segment: `..;x`. Refused unless the route opts in.
    pub ambiguous: bool,
}

/// Normalises the path of a request target in origin form. `None` when it does not start with `/`,
/// has a broken escape, a control byte (raw, or escaped as `%00` to `%1F` or `%7F`), a space or a raw
/// byte outside ASCII.
#[must_use]
pub fn normalise_path(path: &str) -> Option<NormalPath<'_>> {
    if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let plain = !path.contains(['%', '\\']) && !path.contains("//") && !path.contains("/.");
    if plain {
        return Some(NormalPath { path: Cow::Borrowed(path), ambiguous: false });
    }
    let decoded = decode_unreserved(path)?;
    // Before dots are resolved: where there are more separators, they go up to somewhere else.
    let ambiguous = ["\\", "//", "%2F", "%5C"].iter().any(|separator| decoded.contains(separator))
        || decoded.split('/').any(is_dots_with_parameter);
    Some(NormalPath { path: Cow::Owned(resolve_dots(&decoded)), ambiguous })
}

/// Whether a service that takes a segment's parameters (RFC 3986 section 3.3) off it is left with dots:
/// it would serve `/public/..;/admin` as `/admin`.
fn is_dots_with_parameter(segment: &str) -> bool {
    let rest = segment.strip_prefix("..").or_else(|| segment.strip_prefix('.'));
    rest.is_some_and(|rest| rest.starts_with(';') || rest.starts_with("%3B"))
}

/// Decodes escapes of unreserved characters, writes all others in upper case.
fn decode_unreserved(path: &str) -> Option<String> {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        if *byte != b'%' {
            decoded.push(char::from(*byte));
            rest = after;
            continue;
        }
        let (value, after) = escape(rest)?;
        if value.is_ascii_control() {
            return None;
        }
        if value.is_ascii_alphanumeric() || b"-._~".contains(&value) {
            decoded.push(char::from(value));
        } else {
            decoded.push_str(&format!("%{value:02X}"));
        }
        rest = after;
    }
    Some(decoded)
}

/// RFC 3986 section 5.2.4, for a path that starts with `/`.
fn resolve_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut open = false;
    for segment in path.split('/').skip(1) {
        open = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            other => kept.push(other),
        }
    }
    // A dot segment at the end leaves its directory, with the slash.
    if open {
        kept.push("");
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths() {
        for (raw, expect) in [
            ("/", Some(("/", false))),
            ("/a/b", Some(("/a/b", false))),
            ("/a/b/", Some(("/a/b/", false))),
            ("/A/b", Some(("/A/b", false))),
            ("/a/./b", Some(("/a/b", false))),
            ("/a/../b", Some(("/b", false))),
            ("/a/%2e%2E/b", Some(("/b", false))),
            ("/../../a", Some(("/a", false))),
            ("/a/..", Some(("/", false))),
            ("/a/b/..", Some(("/a/", false))),
            ("/a/.", Some(("/a/", false))),
            ("/...", Some(("/...", false))),
            ("/.a/..b", Some(("/.a/..b", false))),
            ("/%7Ea%2db", Some(("/~a-b", false))),
            ("/a%c3%a9", Some(("/a%C3%A9", false))),
            ("/a%2520", Some(("/a%2520", false))),
            ("/a%2fb", Some(("/a%2Fb", true))),
            ("/a%5cb", Some(("/a%5Cb", true))),
            ("/a\\b", Some(("/a\\b", true))),
            ("//a", Some(("//a", true))),
            ("/a//b", Some(("/a//b", true))),
            ("/a/..//b", Some(("//b", true))),
            ("/a//../b", Some(("/a/b", true))),
            ("/a/b%2f/../c", Some(("/a/c", true))),
            ("/a/b\\c/../d", Some(("/a/d", true))),
            ("/a/..;/../b", Some(("/a/b", true))),
            ("/a/..;/b", Some(("/a/..;/b", true))),
            ("/a/%2e%2e;x=1/b", Some(("/a/..;x=1/b", true))),
            ("/a/.;/b", Some(("/a/.;/b", true))),
            ("/a/..%3b/b", Some(("/a/..%3B/b", true))),
            ("/a;x=1/..b;/c", Some(("/a;x=1/..b;/c", false))),
            ("/a%2", None),
            ("/a%", None),
            ("/a%zz", None),
            ("/a%+1", None),
            ("/a%00", None),
            ("/a%0d", None),
            ("/a%7f", None),
            ("/a b", None),
            ("/a\u{7f}", None),
            ("/a\u{e9}", None),
            ("a", None),
            ("", None),
            ("*", None),
        ] {
            let read = normalise_path(raw).map(|found| (found.path.into_owned(), found.ambiguous));
            assert_eq!(read, expect.map(|(path, ambiguous)| (path.to_owned(), ambiguous)), "{raw}");
        }
    }

    #[test]
    fn origins() {
        for (text, expect) in [
            ("https://API.Example.com", Some("https://api.example.com")),
            ("HTTPS://api.example.com:443/", Some("https://api.example.com")),
            ("https://api.example.com:", Some("https://api.example.com")),
            ("https://localhost:8443", Some("https://localhost:8443")),
            ("http://localhost:80", Some("http://localhost")),
            ("http://localhost:443", Some("http://localhost:443")),
            ("https://[::1]:8443", Some("https://[::1]:8443")),
            ("https://[0:0::1]", Some("https://[::1]")),
            ("https://user@host", None),
            ("https://host:0", None),
            ("https://host:65536", None),
            ("https://host:+1", None),
            ("https://host/path", None),
            ("https://host?", None),
            ("https://host#", None),
            ("https://", None),
            ("https://[::1", None),
            ("https://[::1]x", None),
            ("https://a b", None),
            ("ftp://host", None),
            ("//host", None),
            ("host", None),
        ] {
            let read = Origin::parse(text).map(|origin| origin.0);
            assert_eq!(read.as_deref(), expect, "{text}");
        }
    }

    #[test]
    fn targets() {
        let origin = Origin::parse("https://api.example.com").unwrap();
        for (htu, path, expect) in [
            ("https://api.example.com/orders/1", "/orders/1", true),
            ("https://api.example.com/orders/1?a=b", "/orders/1", true),
            ("https://api.example.com/orders/1#f", "/orders/1", true),
            ("https://api.example.com/orders/1?a#b?c", "/orders/1", true),
            ("HTTPS://API.EXAMPLE.COM/orders/1", "/orders/1", true),
            ("https://api.example.com:443/orders/1", "/orders/1", true),
            ("https://api.example.com:/orders/1", "/orders/1", true),
            ("https://%61pi.example.com/orders/1", "/orders/1", true),
            ("https://api.example.com/%6frders/1", "/orders/1", true),
            ("https://api.example.com/x/../orders/./1", "/orders/1", true),
            ("https://api.example.com", "/", true),
            ("https://api.example.com?q", "/", true),
            ("https://api.example.com/a%c3%a9", "/a%C3%A9", true),
            ("https://api.example.com/orders/1/", "/orders/1", false),
            ("https://api.example.com/orders/1", "/orders/1/", false),
            ("https://api.example.com/Orders/1", "/orders/1", false),
            ("https://api.example.com/orders%2F1", "/orders/1", false),
            ("https://api.example.com//orders/1", "/orders/1", false),
            ("https://api.example.com/orders/1%3Fa", "/orders/1", false),
            ("http://api.example.com/orders/1", "/orders/1", false),
            ("https://api.example.com:8443/orders/1", "/orders/1", false),
            ("https://api.example.com:0443/orders/1", "/orders/1", true),
            ("https://api.example.com.evil.example/orders/1", "/orders/1", false),
            ("https://evil.example/https://api.example.com/orders/1", "/orders/1", false),
            ("https://a@api.example.com/orders/1", "/orders/1", false),
            ("https://api.example.com@evil.example/orders/1", "/orders/1", false),
            ("https://api.example.com\\@evil.example/orders/1", "/orders/1", false),
            ("https://api.example.com./orders/1", "/orders/1", false),
            ("//api.example.com/orders/1", "/orders/1", false),
            ("/orders/1", "/orders/1", false),
            ("", "/", false),
            ("https://", "/", false),
            (" https://api.example.com/orders/1", "/orders/1", false),
            ("https://api.example.com/orders/1 ", "/orders/1", false),
            ("https://api.example.com/orders/1%00", "/orders/1", false),
        ] {
            assert_eq!(htu_matches(htu, &origin, path), expect, "{htu} at {path}");
        }
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(raw in "/[ -~]{0,40}") {
            if let Some(once) = normalise_path(&raw) {
                let twice = normalise_path(&once.path);
                prop_assert_eq!(twice.map(|found| found.path.into_owned()), Some(once.path.into_owned()));
            }
        }

        #[test]
        fn nothing_panics(text in any::<String>()) {
            let _ = normalise_path(&text);
            let _ = Origin::parse(&text);
            let _ = split_authority(&text);
            if let Some(origin) = Origin::parse("https://a") {
                let _ = htu_matches(&text, &origin, "/");
            }
        }
    }
}
