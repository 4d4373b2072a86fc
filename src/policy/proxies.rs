//! Whom of those in front a listener believes what.
//!
//! The one who speaks is the socket's other end, or whom its PROXY header names. What a request says
//! of an address, an origin or a certificate counts as far as that one's entry goes, and not at all
//! without an entry.

use std::net::IpAddr;

use http::HeaderMap;
use ipnet::IpNet;

use super::client_cert;
use super::forwarded::{self, Hop, MAX_HOPS, Malformed, Said};
use super::proxy_header::Source;

/// Fields by which somebody says that a request is another's.
const FORWARDING: [&str; 4] =
    ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];

/// Which fields a proxy writes about address and origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fields {
    /// Either, or both where they agree.
    Any,
    /// `Forwarded` (RFC 7239).
    Forwarded,
    /// `X-Forwarded-For`, `-Proto`, `-Host`, `-Port`.
    XForwarded,
}

/// A network of proxies and what they are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Where they are.
    pub network: IpNet,
    /// Where a request comes from.
    pub address: bool,
    /// Which scheme and host were asked for.
    pub origin: bool,
    /// Whose certificate was shown to them, in this field.
    pub certificate: Option<client_cert::Field>,
    /// DNS names, of which their own certificate must have one before they are believed another's.
    /// Empty: any certificate that the listener takes.
    pub names: Vec<String>,
    /// Which fields they write.
    pub fields: Fields,
}

/// Every proxy that a listener believes something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies(Vec<Proxy>);

/// Where a request comes from, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whence {
    /// The client's address; `None` where nobody who is believed says it.
    pub address: Option<IpAddr>,
    /// Whether somebody in front sent it on.
    pub forwarded: bool,
    /// Whether the client spoke `https`, where somebody who is believed says it.
    pub https: Option<bool>,
    /// The authority that the client asked for, where somebody who is believed says it.
    pub authority: Option<String>,
}

impl Proxies {
    /// These; of networks that overlap, the narrowest counts.
    #[must_use]
    pub fn new(mut proxies: Vec<Proxy>) -> Self {
        proxies.sort_by_key(|proxy| std::cmp::Reverse(proxy.network.prefix_len()));
        Self(proxies)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every entry, the narrowest first.
    pub fn iter(&self) -> impl Iterator<Item = &Proxy> {
        self.0.iter()
    }

    /// The entry of an address.
    #[must_use]
    pub fn find(&self, address: IpAddr) -> Option<&Proxy> {
        let address = address.to_canonical();
        self.0.iter().find(|proxy| proxy.network.contains(&address))
    }

    /// Whether somebody at `peer` may connect without TLS: one of these, or, without any, someone on
    /// this machine.
    #[must_use]
    pub fn may_connect_plainly(&self, peer: Option<IpAddr>) -> bool {
        peer.is_some_and(|peer| {
            if self.is_empty() {
                peer.to_canonical().is_loopback()
            } else {
                self.find(peer).is_some()
            }
        })
    }

    /// Whether a PROXY header of somebody at `peer` is read.
    #[must_use]
    pub fn may_name_a_source(&self, peer: Option<IpAddr>) -> bool {
        peer.and_then(|peer| self.find(peer)).is_some_and(|proxy| proxy.address)
    }

    /// Who speaks on a connection from `peer`.
    #[must_use]
    pub fn speaker(&self, peer: Option<IpAddr>, source: Source) -> Option<&Proxy> {
        match source {
            Source::Socket => peer.and_then(|peer| self.find(peer)),
            Source::Told(address) => self.find(address),
            // A stranger, or the proxy's own probe: neither forwards for others.
            Source::Unknown | Source::Local => None,
        }
    }

    /// Where a request with these fields comes from.
    ///
    /// The address is the rightmost hop that is not itself believed where requests come from; when
    /// all are, the leftmost. The origin is what was said to whoever was reached from there.
    ///
    /// # Errors
    /// [`Malformed`]: one who is believed says what cannot be read, or contradicts itself.
    pub fn whence(
        &self,
        peer: Option<IpAddr>,
        source: Source,
        headers: &HeaderMap,
    ) -> Result<Whence, Malformed> {
        let address = match source {
            Source::Told(address) => Some(address),
            Source::Socket | Source::Local => peer,
            Source::Unknown => None,
        };
        let mut whence = Whence { address, ..Whence::default() };
        let speaker = self.speaker(peer, source).filter(|proxy| proxy.address || proxy.origin);
        let Some(speaker) = speaker else { return Ok(whence) };
        whence.forwarded = FORWARDING.iter().any(|name| headers.contains_key(*name));
        let elements = match speaker.fields {
            Fields::XForwarded => None,
            Fields::Any | Fields::Forwarded => forwarded::forwarded(headers)?,
        };
        let older = speaker.fields != Fields::Forwarded;
        let client = elements.as_ref().map(|hops| self.client(speaker, hops));
        if speaker.address {
            let told = client.map(|(hop, _)| hop.address);
            let listed = if older { self.listed(headers)? } else { None };
            if let Some(address) = agreed(told, listed)? {
                whence.address = address;
            }
        }
        if speaker.origin {
            let told = client.filter(|(_, writer)| writer.origin).map(|(hop, _)| &hop.origin);
            let listed =
                if older { forwarded::x_forwarded_origin(headers)? } else { Said::default() };
            let told = told.cloned().unwrap_or_default();
            whence.https = agreed(told.https, listed.https)?;
            whence.authority = agreed(told.authority, authority(listed)?)?;
        }
        Ok(whence)
    }

    /// The proxy at an address that may stand between a client and us, unless it leaves the fields that
    /// are read to `others`: what it did not write may be the client's.
    fn passes_on(&self, address: Option<IpAddr>, others: Fields) -> Option<&Proxy> {
        self.find(address?).filter(|proxy| proxy.address && proxy.fields != others)
    }

    /// The hop that counts, and who wrote it down.
    fn client<'a>(&'a self, speaker: &'a Proxy, hops: &'a [Hop]) -> (&'a Hop, &'a Proxy) {
        static NOBODY: Hop =
            Hop { address: None, origin: Said { https: None, authority: None, port: None } };
        let (mut client, mut writer) = (&NOBODY, speaker);
        for (index, hop) in hops.iter().enumerate().rev() {
            client = hop;
            match self.passes_on(hop.address, Fields::XForwarded) {
                // It wrote down the hop before it.
                Some(next) if writer.address && index > 0 => writer = next,
                Some(_) | None => break,
            }
        }
        (client, writer)
    }

    /// The hop of `X-Forwarded-For` that counts.
    fn listed(&self, headers: &HeaderMap) -> Result<Option<Option<IpAddr>>, Malformed> {
        let Some(hops) = forwarded::x_forwarded_for(headers) else { return Ok(None) };
        let mut client = None;
        for (index, hop) in hops.enumerate() {
            let hop = hop?;
            client = Some(hop);
            if self.passes_on(hop, Fields::Forwarded).is_none() {
                return Ok(client);
            }
            if index + 1 == MAX_HOPS {
                return Err(Malformed);
            }
        }
        Ok(client)
    }
}

/// One of two that say the same, or the one that says something.
fn agreed<T: PartialEq>(one: Option<T>, other: Option<T>) -> Result<Option<T>, Malformed> {
    match (one, other) {
        (Some(one), Some(other)) if one != other => Err(Malformed),
        (one, other) => Ok(one.or(other)),
    }
}

/// `X-Forwarded-Host` with the port of `X-Forwarded-Port`, which must not be another than its own.
fn authority(said: Said) -> Result<Option<String>, Malformed> {
    let (Some(authority), Some(port)) = (&said.authority, said.port) else {
        return Ok(said.authority);
    };
    let (host, own) = super::target::split_authority(authority).ok_or(Malformed)?;
    match own {
        Some(own) if own != port => Err(Malformed),
        None if port != 443 && !(port == 80 && said.https == Some(false)) => {
            Ok(Some(format!("{host}:{port}")))
        }
        Some(_) | None => Ok(said.authority),
    }
}

impl Proxy {
    /// Whether it is believed other clients' certificates: it is on this very machine, or has shown
    /// that it is who it should be by a certificate of its own, with these DNS names.
    #[must_use]
    pub fn proven(&self, peer: Option<IpAddr>, source: Source, names: Option<&[String]>) -> bool {
        let here = source == Source::Socket && peer.is_some_and(|peer| peer.is_loopback());
        let named = |names: &[String]| {
            self.names.is_empty() || self.names.iter().any(|name| names.contains(name))
        };
        here || names.is_some_and(named)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// From `CIDR WHAT…`, with `forwarded` or `x-forwarded` for the fields.
    fn proxies(lines: &[&str]) -> Proxies {
        let proxy = |line: &&str| {
            let words: Vec<_> = line.split(' ').collect();
            Proxy {
                network: words[0].parse().unwrap(),
                address: words.contains(&"address"),
                origin: words.contains(&"origin"),
                certificate: None,
                names: Vec::new(),
                fields: match () {
                    () if words.contains(&"forwarded") => Fields::Forwarded,
                    () if words.contains(&"x-forwarded") => Fields::XForwarded,
                    () => Fields::Any,
                },
            }
        };
        Proxies::new(lines.iter().map(proxy).collect())
    }

    fn ask(proxies: &Proxies, peer: &str, source: Source, fields: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for field in fields {
            let (name, value) = field.split_once(": ").unwrap();
            let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        match proxies.whence(Some(peer.parse().unwrap()), source, &headers) {
            Ok(whence) => {
                let address = whence.address.map_or("?".to_owned(), |address| address.to_string());
                let https = whence.https.map_or("", |https| if https { " https" } else { " http" });
                let authority = whence.authority.map(|it| format!(" {it}")).unwrap_or_default();
                format!("{address}{https}{authority}")
            }
            Err(Malformed) => "malformed".to_owned(),
        }
    }

    #[test]
    fn the_address_is_the_rightmost_hop_that_is_not_trusted() {
        let proxies = proxies(&[
            "10.0.0.0/8 address",
            "10.9.0.0/16 origin",
            "192.0.2.7/32 address forwarded",
            "2001:db8::/32 address x-forwarded",
        ]);
        for (peer, fields, expect) in [
            ("10.0.0.1", &[][..], "10.0.0.1"),
            ("203.0.113.9", &["x-forwarded-for: 1.1.1.1"], "203.0.113.9"),
            ("10.0.0.1", &["x-forwarded-for: 203.0.113.9"], "203.0.113.9"),
            ("::ffff:10.0.0.1", &["x-forwarded-for: 203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["x-forwarded-for: 1.1.1.1, 203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["x-forwarded-for: evil, 203.0.113.9"], "203.0.113.9"),
            (
                "10.0.0.1",
                &["x-forwarded-for: 1.1.1.1", "x-forwarded-for: 203.0.113.9, 10.0.0.2"],
                "203.0.113.9",
            ),
            ("10.0.0.1", &["x-forwarded-for: 203.0.113.9, 10.9.0.1"], "10.9.0.1"),
            ("10.0.0.1", &["x-forwarded-for: 10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &["x-forwarded-for: 203.0.113.9, unknown"], "?"),
            ("10.0.0.1", &["x-forwarded-for: 203.0.113.9, evil"], "malformed"),
            ("10.0.0.1", &["x-forwarded-for: evil, 10.0.0.2"], "malformed"),
            ("10.0.0.1", &["forwarded: for=203.0.113.9"], "203.0.113.9"),
            (
                "10.0.0.1",
                &["forwarded: for=1.1.1.1, for=203.0.113.9;by=10.0.0.2, for=10.0.0.2"],
                "203.0.113.9",
            ),
            ("10.0.0.1", &["forwarded: for=10.0.0.3, for=10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &["forwarded: for=_hidden"], "?"),
            ("10.0.0.1", &["forwarded: proto=https"], "?"),
            ("10.0.0.1", &["forwarded: evil"], "malformed"),
            (
                "10.0.0.1",
                &["forwarded: for=203.0.113.9", "x-forwarded-for: 203.0.113.9"],
                "203.0.113.9",
            ),
            ("10.0.0.1", &["forwarded: for=1.1.1.1", "x-forwarded-for: 203.0.113.9"], "malformed"),
            (
                "192.0.2.7",
                &["forwarded: for=203.0.113.9", "x-forwarded-for: 1.1.1.1"],
                "203.0.113.9",
            ),
            ("192.0.2.7", &["x-forwarded-for: 1.1.1.1"], "192.0.2.7"),
            (
                "2001:db8::1",
                &["forwarded: for=1.1.1.1", "x-forwarded-for: 203.0.113.9"],
                "203.0.113.9",
            ),
            ("2001:db8::1", &["forwarded: evil"], "2001:db8::1"),
            ("10.9.0.1", &["x-forwarded-for: 203.0.113.9"], "10.9.0.1"),
            ("10.0.0.1", &["x_forwarded_for: 203.0.113.9"], "10.0.0.1"),
            (
                "10.0.0.1",
                &["x-forwarded-host: evil.example", "x-forwarded-proto: evil"],
                "10.0.0.1",
            ),
        ] {
            assert_eq!(ask(&proxies, peer, Source::Socket, fields), expect, "{peer} {fields:?}");
        }
        // What a proxy does not write itself it may pass on from a client.
        for (peer, field, expect) in [
            ("10.0.0.1", "forwarded: for=1.1.1.1, for=192.0.2.7", "1.1.1.1"),
            ("10.0.0.1", "forwarded: for=1.1.1.1, for=\"[2001:db8::1]\"", "2001:db8::1"),
            ("10.0.0.1", "x-forwarded-for: 1.1.1.1, 2001:db8::1", "1.1.1.1"),
            ("10.0.0.1", "x-forwarded-for: 1.1.1.1, 192.0.2.7", "192.0.2.7"),
        ] {
            assert_eq!(ask(&proxies, peer, Source::Socket, &[field]), expect, "{peer} {field}");
        }
        let endless = format!("x-forwarded-for: {}", vec!["10.0.0.2"; 40].join(","));
        assert_eq!(ask(&proxies, "10.0.0.1", Source::Socket, &[&endless]), "malformed");
    }

    #[test]
    fn the_origin_is_believed_of_who_was_reached() {
        let proxies =
            proxies(&["10.0.0.0/8 address origin", "10.1.0.0/16 address", "10.2.0.0/16 origin"]);
        for (peer, fields, expect) in [
            ("10.0.0.1", &["x-forwarded-proto: https"][..], "10.0.0.1 https"),
            (
                "10.0.0.1",
                &["x-forwarded-proto: http", "x-forwarded-host: A.example"],
                "10.0.0.1 http a.example",
            ),
            (
                "10.0.0.1",
                &["x-forwarded-host: a.example", "x-forwarded-port: 8443"],
                "10.0.0.1 a.example:8443",
            ),
            (
                "10.0.0.1",
                &["x-forwarded-host: a.example", "x-forwarded-port: 443"],
                "10.0.0.1 a.example",
            ),
            (
                "10.0.0.1",
                &["x-forwarded-proto: http", "x-forwarded-host: a.example", "x-forwarded-port: 80"],
                "10.0.0.1 http a.example",
            ),
            ("10.0.0.1", &["x-forwarded-port: 8443"], "10.0.0.1"),
            ("10.0.0.1", &["x-forwarded-host: a.example:1", "x-forwarded-port: 2"], "malformed"),
            ("10.0.0.1", &["x-forwarded-proto: https, http"], "malformed"),
            ("10.1.0.1", &["x-forwarded-proto: https, http"], "10.1.0.1"),
            (
                "10.0.0.1",
                &["forwarded: for=203.0.113.9;proto=https;host=a.example"],
                "203.0.113.9 https a.example",
            ),
            (
                "10.0.0.1",
                &[
                    "forwarded: host=evil.example, for=203.0.113.9;host=a.example, for=10.0.0.2;host=b.example",
                ],
                "203.0.113.9 a.example",
            ),
            (
                "10.0.0.1",
                &["forwarded: for=203.0.113.9;host=a.example, for=10.1.0.1"],
                "203.0.113.9",
            ),
            ("10.2.0.1", &["forwarded: for=203.0.113.9;host=a.example"], "10.2.0.1 a.example"),
            (
                "10.2.0.1",
                &["forwarded: host=evil.example, for=10.0.0.1;host=a.example"],
                "10.2.0.1 a.example",
            ),
            (
                "10.0.0.1",
                &["forwarded: for=203.0.113.9;host=a.example", "x-forwarded-host: b.example"],
                "malformed",
            ),
            (
                "10.0.0.1",
                &["forwarded: for=203.0.113.9;proto=http", "x-forwarded-proto: https"],
                "malformed",
            ),
        ] {
            assert_eq!(ask(&proxies, peer, Source::Socket, fields), expect, "{peer} {fields:?}");
        }
    }

    #[test]
    fn who_speaks_is_whom_the_proxy_header_names() {
        let proxies = proxies(&["10.0.0.0/8 address", "198.51.100.1/32 address"]);
        let told = |address: &str| Source::Told(address.parse().unwrap());
        for (source, expect) in [
            (Source::Socket, "1.1.1.1"),
            (told("203.0.113.9"), "203.0.113.9"),
            (told("198.51.100.1"), "1.1.1.1"),
            (Source::Unknown, "?"),
            (Source::Local, "10.0.0.1"),
        ] {
            let found = ask(&proxies, "10.0.0.1", source, &["x-forwarded-for: 1.1.1.1"]);
            assert_eq!(found, expect, "{source:?}");
        }
    }

    #[test]
    fn a_proxy_proves_who_it_is_before_it_vouches_for_a_certificate() {
        let mut proxy = proxies(&["0.0.0.0/0 address"]).0.remove(0);
        let names = ["edge.example".to_owned()];
        let (here, there) = ("127.0.0.1".parse().ok(), "10.0.0.1".parse().ok());
        for (wanted, peer, source, shown, expect) in [
            ("", here, Source::Socket, None, true),
            ("", "::1".parse().ok(), Source::Socket, None, true),
            ("", here, Source::Told("127.0.0.1".parse().unwrap()), None, false),
            ("", there, Source::Socket, None, false),
            ("", there, Source::Socket, Some(&names[..]), true),
            ("", there, Source::Socket, Some(&[]), true),
            ("edge.example", there, Source::Socket, Some(&names), true),
            ("edge.example", there, Source::Socket, Some(&[]), false),
            ("other.example", there, Source::Socket, Some(&names), false),
            ("", None, Source::Socket, None, false),
        ] {
            proxy.names =
                Some(wanted.to_owned()).filter(|name| !name.is_empty()).into_iter().collect();
            let context = format!("{wanted} {peer:?} {source:?} {shown:?}");
            assert_eq!(proxy.proven(peer, source, shown), expect, "{context}");
        }
    }
}
