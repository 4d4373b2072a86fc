//! What those in front say: the PROXY header, where a request comes from, whose certificate it shows.

use std::net::IpAddr;

use holdfast::policy::client_cert::{self, Field};
use holdfast::policy::digest::Sha256;
use holdfast::policy::proxies::{Fields, Proxies, Proxy};
use holdfast::policy::proxy_header::{self, Progress, Source};
use holdfast::policy::target::split_authority;
use http::HeaderMap;
use pingora::http::RequestHeader;

use super::head::with_fields;

/// Bytes after which there is an answer.
const ENOUGH: usize = 4096;

pub(super) fn proxy_header(input: &[u8]) {
    let read = proxy_header::read(input);
    match read {
        Ok(Progress::Done(length, source)) => {
            assert!(length <= input.len() && length <= ENOUGH);
            let header = &input[..length];
            // It ends where it ends, whatever follows, and not before.
            assert_eq!(proxy_header::read(header), read);
            for end in 0..length {
                assert_eq!(proxy_header::read(&header[..end]), Ok(Progress::More));
            }
            match header.strip_prefix(b"PROXY ") {
                Some(text) => in_words(text, source),
                None => in_bytes(header, source),
            }
        }
        Ok(Progress::More) => assert!(input.len() < ENOUGH, "it waits for ever"),
        Err(_) => {}
    }
}

fn in_words(text: &[u8], source: Source) {
    let text = std::str::from_utf8(text).expect("a header that is no text");
    assert!(text.ends_with("\r\n") && text.len() + 6 <= 107);
    let words: Vec<_> = text.trim_end_matches("\r\n").split(' ').collect();
    match source {
        Source::Told(address) => {
            assert_eq!(words.len(), 5);
            let family = if address.is_ipv4() && !words[1].contains(':') { "TCP4" } else { "TCP6" };
            assert_eq!(words[0], family);
            let written: IpAddr = words[1].parse().expect("an address out of what is none");
            assert_eq!(written.to_canonical(), address);
        }
        Source::Unknown => assert_eq!(words[0], "UNKNOWN"),
        Source::Socket | Source::Local => panic!("version 1 cannot say {source:?}"),
    }
}

fn in_bytes(header: &[u8], source: Source) {
    assert_eq!(&header[..12], b"\r\n\r\n\0\r\nQUIT\n");
    assert_eq!(usize::from(header[14]) * 256 + usize::from(header[15]) + 16, header.len());
    match (header[12], header[13]) {
        (0x20, _) => assert_eq!(source, Source::Local),
        (0x21, 0x10 | 0x11) => {
            let octets: [u8; 4] = header[16..20].try_into().expect("four");
            assert_eq!(source, Source::Told(octets.into()));
        }
        (0x21, 0x20 | 0x21) => {
            let octets: [u8; 16] = header[16..32].try_into().expect("sixteen");
            assert_eq!(source, Source::Told(IpAddr::from(octets).to_canonical()));
        }
        (0x21, _) => assert_eq!(source, Source::Unknown),
        other => panic!("{other:?} was taken"),
    }
}

fn fields(input: &[u8]) -> Option<HeaderMap> {
    let request = RequestHeader::build("GET", b"/", None).ok()?;
    Some(with_fields(request, input)?.headers.clone())
}

pub(super) fn forwarded(input: &[u8]) {
    let Some(headers) = fields(input) else { return };
    for believed in [Fields::Any, Fields::Forwarded, Fields::XForwarded] {
        let proxy = |network: &str, address, origin| Proxy {
            network: network.parse().expect("a network"),
            address,
            origin,
            certificate: None,
            names: Vec::new(),
            fields: believed,
        };
        let proxies =
            Proxies::new(vec![proxy("10.0.0.0/8", true, true), proxy("10.9.0.0/16", false, true)]);
        let peer = "10.0.0.1".parse().ok();
        let Ok(whence) = proxies.whence(peer, Source::Socket, &headers) else { continue };
        if let Some(address) = whence.address.filter(|_| Some(whence.address) != Some(peer)) {
            assert!(whence.forwarded);
            // It stands in one of the fields, in some spelling of it.
            assert!(
                ["forwarded", "x-forwarded-for"].iter().any(|name| headers.contains_key(*name))
            );
            assert_eq!(address, address.to_canonical());
        }
        if let Some(authority) = &whence.authority {
            let (host, port) = split_authority(authority).expect("an authority that is none");
            let again = port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"));
            assert_eq!(&again, authority);
        }
        // Of a stranger nothing is believed.
        let stranger = "203.0.113.9".parse().ok();
        let whence = proxies.whence(stranger, Source::Socket, &headers).expect("an answer");
        assert_eq!((whence.address, whence.forwarded), (stranger, false));
        assert_eq!((whence.https, whence.authority), (None, None));
    }
}

pub(super) fn client_cert(input: &[u8]) {
    let Some(headers) = fields(input) else { return };
    for field in [Field::ClientCert, Field::ForwardedClientCert, Field::SslClientCert] {
        let Ok(Some(handed_on)) = client_cert::read(&headers, field) else { continue };
        assert_eq!(headers.get_all(field.name()).iter().count(), 1);
        assert_eq!(handed_on.leaf.x5t().0, Sha256::of(handed_on.leaf.der()));
        assert!(handed_on.chain.len() <= 16);
    }
}
