//! Whom the edge may connect to on its own account: everyone, or, where it is sealed, its upstreams and
//! stores alone.
//!
//! Two things are held by whoever would leave that circle, and neither can be made while the edge is
//! sealed: a [`Lookup`], without which no name is asked for, and a [`Way`], without which there is no
//! client for a URL.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::Uri;

use super::target::split_authority;

/// Leave to ask for the addresses of a name, which goes out over the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup(());

/// One server that a sealed edge may connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Where it is.
    pub address: SocketAddr,
    /// The name in its certificate, in lower case, where it is known by one.
    pub name: Option<String>,
}

/// Whom the edge may connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// `None`: everyone.
    sealed: Option<Vec<Known>>,
}

/// How a URL is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way(To);

#[derive(Clone, Debug, PartialEq, Eq)]
enum To {
    /// Wherever it leads.
    Anywhere,
    /// To these addresses alone, whatever the host is called.
    Server(String, Vec<SocketAddr>),
}

/// A URL that a sealed edge may not reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the edge is sealed, and no upstream has a server there")]
pub struct Sealed;

impl Reach {
    /// Everyone, unless `sealed`: then nobody yet.
    #[must_use]
    pub fn of(sealed: bool) -> Self {
        Self { sealed: sealed.then(Vec::new) }
    }

    /// The same, with these servers in it.
    #[must_use]
    pub fn with(mut self, servers: impl IntoIterator<Item = Known>) -> Self {
        if let Some(known) = &mut self.sealed {
            known.extend(servers);
        }
        self
    }

    /// Whether it ends somewhere.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.sealed.is_some()
    }

    /// Leave to look names up; none where the edge is sealed.
    #[must_use]
    pub fn lookup(&self) -> Option<Lookup> {
        self.sealed.is_none().then_some(Lookup(()))
    }

    /// The way to a URL. Where the edge is sealed, its host must be the address of a known server, or
    /// the name that one is known by, and its port that server's.
    ///
    /// # Errors
    /// [`Sealed`] for every other URL, what is none included.
    pub fn to(&self, url: &str) -> Result<Way, Sealed> {
        let Some(known) = &self.sealed else { return Ok(Way(To::Anywhere)) };
        let uri: Uri = url.parse().map_err(|_| Sealed)?;
        let authority = uri.authority().ok_or(Sealed)?;
        let (host, port) = split_authority(authority.as_str()).ok_or(Sealed)?;
        let port = port.or(match uri.scheme_str() {
            Some("https") => Some(443),
            Some("http") => Some(80),
            Some(_) | None => None,
        });
        let port = port.ok_or(Sealed)?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let address = match bare {
            "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            _ => bare.parse().ok(),
        };
        let address = address.map(|ip| SocketAddr::new(ip, port));
        let meant = |known: &&Known| match address {
            Some(address) => known.address == address,
            None => known.address.port() == port && known.name.as_deref() == Some(bare),
        };
        let addresses: Vec<_> = known.iter().filter(meant).map(|known| known.address).collect();
        if addresses.is_empty() { Err(Sealed) } else { Ok(Way(To::Server(host, addresses))) }
    }
}

impl Way {
    /// The host whose addresses are given, and these; `None` where names are looked up.
    #[must_use]
    pub fn pinned(&self) -> Option<(&str, &[SocketAddr])> {
        match &self.0 {
            To::Anywhere => None,
            To::Server(host, addresses) => Some((host, addresses)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(address: &str, name: Option<&str>) -> Known {
        Known { address: address.parse().unwrap(), name: name.map(str::to_owned) }
    }

    #[test]
    fn a_sealed_edge_reaches_what_it_knows() {
        let reach = Reach::of(true).with([
            known("10.0.0.1:443", Some("as.internal")),
            known("10.0.0.2:443", Some("as.internal")),
            known("10.0.0.3:8443", None),
            known("127.0.0.1:9000", None),
            known("[fd00::1]:443", None),
        ]);
        for (url, expect) in [
            ("https://10.0.0.1/introspect", vec!["10.0.0.1:443"]),
            ("https://10.0.0.1:443/introspect", vec!["10.0.0.1:443"]),
            ("https://AS.internal/introspect", vec!["10.0.0.1:443", "10.0.0.2:443"]),
            ("https://10.0.0.3:8443/", vec!["10.0.0.3:8443"]),
            ("http://localhost:9000/", vec!["127.0.0.1:9000"]),
            ("https://[fd00::1]/", vec!["[fd00::1]:443"]),
            // Another port, another scheme's port, another host, and what is no URL.
            ("https://10.0.0.1:8443/", vec![]),
            ("http://10.0.0.1/", vec![]),
            ("https://as.internal:8443/", vec![]),
            ("https://other.internal/", vec![]),
            ("https://sub.as.internal/", vec![]),
            ("https://10.0.0.9/", vec![]),
            ("https://10.0.0.1@10.0.0.9/", vec![]),
            ("ftp://10.0.0.1/", vec![]),
            ("/introspect", vec![]),
            ("", vec![]),
        ] {
            let way = reach.to(url);
            let found = way.as_ref().ok().and_then(Way::pinned);
            let found: Vec<_> =
                found.iter().flat_map(|(_, all)| *all).map(ToString::to_string).collect();
            assert_eq!(found, expect, "{url}");
            assert_eq!(way.is_err(), expect.is_empty(), "{url}");
        }
        assert_eq!(reach.lookup(), None);
        assert!(Reach::of(true).to("https://10.0.0.1/").is_err());
    }

    #[test]
    fn one_that_is_not_reaches_everyone() {
        let reach = Reach::of(false).with([known("10.0.0.1:443", None)]);
        assert!(reach.lookup().is_some());
        assert_eq!(
            reach.to("https://anywhere.example/").map(|way| way.pinned().is_none()),
            Ok(true)
        );
    }
}
