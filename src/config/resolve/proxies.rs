//! `trustedProxies` and `proxyProtocol` of a listener: who stands in front, and what it is believed.

use std::net::SocketAddr;

use ipnet::IpNet;

use crate::config::item::{Item, Text, Words};
use crate::config::section::Section;
use crate::config::{ClientCertificates, ListenerTls};
use crate::policy::client_cert::Field;
use crate::policy::proxies::{Fields, Proxies, Proxy};

use super::Names;
use super::tls::is_dns_name;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Belief {
    Address,
    Origin,
    Certificate,
}

const BELIEFS: Words<Belief> = &[
    ("address", Belief::Address),
    ("origin", Belief::Origin),
    ("certificate", Belief::Certificate),
];

const FIELDS: Words<Fields> =
    &[("any", Fields::Any), ("forwarded", Fields::Forwarded), ("x-forwarded", Fields::XForwarded)];

const CERTIFICATE_HEADERS: Words<Field> = &[
    ("Client-Cert", Field::ClientCert),
    ("X-Forwarded-Client-Cert", Field::ForwardedClientCert),
    ("X-SSL-Client-Cert", Field::SslClientCert),
];

/// Resolves the proxies of a listener at `address`.
pub(super) fn resolve(
    listener: &Section<'_>,
    address: Option<SocketAddr>,
    tls: Option<&ListenerTls>,
) -> Proxies {
    let mut taken = Names::default();
    let items = listener.list("trustedProxies", 256).unwrap_or_default();
    let proxies = items.into_iter().filter_map(|item| proxy(item, tls, &mut taken));
    let proxies = Proxies::new(proxies.collect());
    let proxy_protocol = listener.flag("proxyProtocol") == Some(true);
    if proxy_protocol && !proxies.iter().any(|proxy| proxy.address) {
        let message = "needs somebody in `trustedProxies` who is believed an `address`: nobody else may \
                       send a PROXY header";
        listener.error("proxyProtocol", message);
    }
    let elsewhere = address.is_some_and(|address| !address.ip().is_loopback());
    if tls.is_none() && elsewhere && !listener.has("trustedProxies") {
        let message = "is required: a listener without TLS is for a terminator on this machine (a \
                       loopback `address`), or for those in `trustedProxies`";
        listener.error("tls", message);
    }
    proxies
}

fn proxy(item: Item<'_>, tls: Option<&ListenerTls>, taken: &mut Names) -> Option<Proxy> {
    let section = item.section();
    let network = section.required("cidr").and_then(|text| network(&text, taken));
    let believed = section.list("believe", 3);
    let believed: Option<Vec<_>> =
        believed.map(|words| words.iter().filter_map(|word| word.word(BELIEFS)).collect());
    let believed = believed.unwrap_or_else(|| vec![Belief::Address]);
    let header = section.word("certificateHeader", CERTIFICATE_HEADERS);
    let names = section.texts("names", 64).unwrap_or_default();
    let certificate = believed.contains(&Belief::Certificate);
    let fields = section.word("fields", FIELDS);
    if !certificate {
        for key in ["certificateHeader", "names"] {
            if section.has(key) {
                section.error(key, "belongs to `believe: [certificate]`");
            }
        }
    }
    if section.has("names") && section.lacks("names") {
        section.error(
            "names",
            "is empty; leave it out to take any certificate of `clientAuthorities`",
        );
    }
    for name in names.iter().filter(|name| !is_dns_name(&name.value.to_ascii_lowercase())) {
        name.error("a DNS name is expected, as in `proxy.example.com`");
    }
    let network = network?;
    if network.prefix_len() == 0 {
        let message = "everyone is believed: name the proxies' own addresses";
        if tls.is_some() { section.warn("cidr", message) } else { section.error("cidr", message) }
    }
    if believed.contains(&Belief::Origin) && fields.unwrap_or(Fields::Any) == Fields::Any {
        let message = "`origin` with `fields: any` believes fields that the proxy may pass on from a \
                       client; say which it writes: `forwarded` or `x-forwarded`";
        section.warn("believe", message);
    }
    if certificate && !is_loopback(&network) {
        check_proof(&section, tls, names.is_empty());
    }
    Some(Proxy {
        network,
        address: believed.contains(&Belief::Address),
        origin: believed.contains(&Belief::Origin),
        certificate: certificate.then(|| header.unwrap_or(Field::ClientCert)),
        names: names.into_iter().map(|name| name.value.to_ascii_lowercase()).collect(),
        fields: fields.unwrap_or(Fields::Any),
    })
}

/// Who is not on this machine has to prove who it is.
fn check_proof(section: &Section<'_>, tls: Option<&ListenerTls>, unnamed: bool) {
    let asks = tls.is_some_and(|tls| {
        tls.policies().any(|policy| policy.client_certificates != ClientCertificates::Off)
    });
    if !asks {
        let message = "`certificate` is believed only of a proxy that shows one itself (`tls` with \
                       `clientCertificates`), or of a loopback `cidr`";
        section.error("believe", message);
    } else if unnamed {
        let message = "whoever has a certificate of `clientAuthorities` and connects from `cidr` is \
                       believed everyone's; `names` says which are the proxies'";
        section.warn("believe", message);
    }
}

fn is_loopback(network: &IpNet) -> bool {
    network.addr().is_loopback() && network.broadcast().is_loopback()
}

/// Addresses are compared in their canonical form, so networks are too.
fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(six) = network else { return network };
    let four = six.addr().to_ipv4_mapped().zip(six.prefix_len().checked_sub(96));
    four.and_then(|(address, length)| IpNet::new(address.into(), length).ok()).unwrap_or(network)
}

/// An address or a network, whose host bits must be 0.
fn network(text: &Text<'_>, taken: &mut Names) -> Option<IpNet> {
    let address = text.value.parse::<std::net::IpAddr>().ok().map(IpNet::from);
    let network = address.or_else(|| text.value.parse::<IpNet>().ok()).map(canonical);
    let Some(network) = network.filter(|network| *network == network.trunc()) else {
        let meant = network.map(|network| format!("; `{}` is the network", network.trunc()));
        let message = "an address or a network is expected, as in `10.0.0.7` or `10.0.0.0/8`";
        text.error(format!("{message}{}", meant.unwrap_or_default()));
        return None;
    };
    if let Some(taken) = taken.take(&network.to_string(), text.item.place.clone()) {
        text.error(format!("`{}` stands on line {} already", text.written, taken.line));
    }
    Some(network)
}
