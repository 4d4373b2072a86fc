//! A request as it is routed and decided on: its authority, its target, its sender.

use http::header::HOST;
use pingora::http::RequestHeader;

use super::believe::Shown;
use crate::policy::denial::Denial;
use crate::policy::request::RequestView;
use crate::policy::target::{normalise_path, split_authority};

/// A request's target, owned, for as long as the request lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `Host` or `:authority`, the host normalised: `api.example.com`, `[::1]:8443`.
    pub authority: String,
    /// The normalised path.
    pub path: String,
    /// Whether some services would read a separator in it that others do not.
    pub ambiguous: bool,
    /// The query as received, without its `?`.
    pub query: Option<String>,
}

impl Target {
    /// Reads the target. `told` is the authority that the client asked for, where one who is believed
    /// says it.
    ///
    /// # Errors
    /// [`Denial::HostInvalid`] and [`Denial::PathInvalid`].
    pub fn of(request: &RequestHeader, told: Option<&str>) -> Result<Self, Denial> {
        let own = authority(request)?;
        let authority = told.map_or(own, str::to_owned);
        let raw = std::str::from_utf8(request.raw_path()).map_err(|_| Denial::PathInvalid)?;
        let (path, query) = match raw.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (raw, None),
        };
        let normal = normalise_path(path).ok_or(Denial::PathInvalid)?;
        let (path, ambiguous) = (normal.path.into_owned(), normal.ambiguous);
        Ok(Self { authority, path, ambiguous, query })
    }

    /// The target of a request whose path cannot be read, as if it were `path`.
    ///
    /// # Errors
    /// [`Denial::HostInvalid`].
    pub(super) fn unreadable(
        request: &RequestHeader,
        told: Option<&str>,
        path: &str,
    ) -> Result<Self, Denial> {
        let own = authority(request)?;
        let authority = told.map_or(own, str::to_owned);
        Ok(Self { authority, path: path.to_owned(), ambiguous: false, query: None })
    }

    /// The target as it goes upstream: the path that was routed on, the query as received.
    #[must_use]
    pub fn upstream(&self) -> String {
        match &self.query {
            Some(query) => format!("{}?{query}", self.path),
            None => self.path.clone(),
        }
    }
}

/// The one authority of a request (RFC 9110 section 7.2, RFC 9113 section 8.3.1), normalised: where
/// `Host` and `:authority` are both there they must agree.
fn authority(request: &RequestHeader) -> Result<String, Denial> {
    let mut hosts = request.headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (None, _) => None,
        (Some(host), None) => Some(host.to_str().map_err(|_| Denial::HostInvalid)?),
        (Some(_), Some(_)) => return Err(Denial::HostInvalid),
    };
    let pseudo = request.uri.authority().map(http::uri::Authority::as_str);
    let split = |text: &str| split_authority(text).ok_or(Denial::HostInvalid);
    let (host, port) = match (host.map(split).transpose()?, pseudo.map(split).transpose()?) {
        (Some(host), Some(pseudo)) if host != pseudo => return Err(Denial::HostInvalid),
        (Some(one), _) | (None, Some(one)) => one,
        (None, None) => return Err(Denial::HostInvalid),
    };
    Ok(port.map_or_else(|| host.clone(), |port| format!("{host}:{port}")))
}

/// Bytes of the request head as HTTP/1.1 would write it.
#[must_use]
pub fn head_bytes(request: &RequestHeader) -> usize {
    let line = request.method.as_str().len() + request.raw_path().len() + "  HTTP/1.1\r\n".len();
    let field = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        name.as_str().len() + value.len() + ": \r\n".len()
    };
    line + request.headers.iter().map(field).sum::<usize>() + "\r\n".len()
}

/// The request as the decisions see it, from a sender who showed what it did.
#[must_use]
pub(super) fn request<'a>(
    request: &'a RequestHeader,
    target: &'a Target,
    shown: &'a Shown,
) -> RequestView<'a> {
    RequestView {
        method: request.method.as_str(),
        path: &target.path,
        query: target.query.as_deref(),
        headers: &request.headers,
        sender: shown.sender(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(target: &str, hosts: &[&str]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", target.as_bytes(), None).unwrap();
        for host in hosts {
            request.append_header("Host", *host).unwrap();
        }
        request
    }

    #[test]
    fn hosts() {
        for (hosts, expect) in [
            (&["api.example"][..], Ok("api.example")),
            (&["API.Example:8443"], Ok("api.example:8443")),
            (&["[::1]:443"], Ok("[::1]:443")),
            (&["[::1]"], Ok("[::1]")),
            (&["127.0.0.1"], Ok("127.0.0.1")),
            (&[], Err(Denial::HostInvalid)),
            (&[""], Err(Denial::HostInvalid)),
            (&[":443"], Err(Denial::HostInvalid)),
            (&["a.example", "a.example"], Err(Denial::HostInvalid)),
            (&["user@a.example"], Err(Denial::HostInvalid)),
            (&["a.example:"], Ok("a.example")),
            (&["a%2Eexample"], Ok("a.example")),
            (&["a.example:99999"], Err(Denial::HostInvalid)),
            (&["a.example:+80"], Err(Denial::HostInvalid)),
            (&["a.example:80:80"], Err(Denial::HostInvalid)),
            (&["a.example/path"], Err(Denial::HostInvalid)),
            (&["a b"], Err(Denial::HostInvalid)),
            (&["[::1"], Err(Denial::HostInvalid)),
            (&["[::1]x"], Err(Denial::HostInvalid)),
            (&["[evil]"], Err(Denial::HostInvalid)),
            (&["a%2Fexample"], Err(Denial::HostInvalid)),
        ] {
            let target = Target::of(&request("/", hosts), None).map(|target| target.authority);
            assert_eq!(target.as_deref().map_err(|denial| *denial), expect, "{hosts:?}");
        }
    }

    #[test]
    fn authority_and_host_must_agree() {
        for (host, expect) in [
            (None, Ok("a.example:8443")),
            (Some("A.example:8443"), Ok("a.example:8443")),
            (Some("b.example"), Err(Denial::HostInvalid)),
            (Some("a.example"), Err(Denial::HostInvalid)),
        ] {
            let mut request = request("/", host.as_slice());
            request.set_uri("https://a.example:8443/p?q=1".parse().unwrap());
            let target = Target::of(&request, None).map(|target| target.authority);
            assert_eq!(target.as_deref().map_err(|denial| *denial), expect, "{host:?}");
        }
    }

    #[test]
    fn targets() {
        for (raw, expect) in [
            ("/a?b=%2F&c", Ok("/a?b=%2F&c")),
            ("/a?", Ok("/a?")),
            ("/a??b", Ok("/a??b")),
            ("/a", Ok("/a")),
            ("*", Err(Denial::PathInvalid)),
            ("http://a.example/", Err(Denial::PathInvalid)),
        ] {
            let target =
                Target::of(&request(raw, &["a.example"]), None).map(|target| target.upstream());
            assert_eq!(target.as_deref().map_err(|denial| *denial), expect, "{raw}");
        }
    }

    #[test]
    fn a_head_is_as_long_as_it_is_written() {
        let wire = "GET /x HTTP/1.1\r\nhost: a.example\r\n\r\n";
        assert_eq!(head_bytes(&request("/x", &["a.example"])), wire.len());
    }
}
