//! `upstreams`: the services behind the edge.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _};

use crate::config::finding::{Place, Severity, Sink};
use crate::config::item::{Text, Words};
use crate::config::section::Section;
use crate::config::value::is_name;
use crate::config::{AuthorizationPolicy, Upstream, UpstreamProtocol};

use crate::policy::target::split_authority;

use super::routes::Draft;

const PROTOCOLS: Words<UpstreamProtocol> =
    &[("http/1.1", UpstreamProtocol::Http1), ("h2c", UpstreamProtocol::H2c)];

const AUTHORIZATION: Words<AuthorizationPolicy> = &[
    ("forward", AuthorizationPolicy::Forward),
    ("bearer", AuthorizationPolicy::Bearer),
    ("strip", AuthorizationPolicy::Strip),
];

/// Resolves `upstreams`.
pub(super) fn resolve(root: &Section<'_>) -> Vec<(Upstream, Place)> {
    let upstreams = root.named("upstreams", 1000).into_iter();
    upstreams.map(|(name, section)| (upstream(name, &section), section.place())).collect()
}

fn upstream(name: String, section: &Section<'_>) -> Upstream {
    if !is_name(&name) {
        section.error_here("a name of 1 to 64 letters, digits, `_`, `-` and `.` is expected");
    }
    section.later(&["tls"]);
    if section.lacks("servers") {
        section.error("servers", "at least one is needed, as in `[\"127.0.0.1:9000\"]`");
    }
    let servers = section.texts("servers", 64).unwrap_or_default();
    let servers = servers.iter().flat_map(server).collect();
    Upstream {
        name,
        servers,
        protocol: section.word("protocol", PROTOCOLS).unwrap_or(UpstreamProtocol::Http1),
        authorization: section
            .word("authorization", AUTHORIZATION)
            .unwrap_or(AuthorizationPolicy::Forward),
        client_certificate: section.flag("clientCertificate").unwrap_or(false),
        connect_timeout: section.duration("connectTimeout", "2s", ["10ms", "1m"]),
        read_timeout: section.duration("readTimeout", "60s", ["10ms", "1d"]),
        write_timeout: section.duration("writeTimeout", "60s", ["10ms", "1d"]),
        idle_timeout: section.duration("idleTimeout", "4s", ["100ms", "1h"]),
    }
}

/// The addresses of one server. `localhost` is 127.0.0.1; any other name is asked for once, and its
/// IPv4 addresses are taken where it has some.
fn server(text: &Text<'_>) -> Vec<SocketAddr> {
    if let Ok(address) = text.value.parse::<SocketAddr>() {
        if address.port() == 0 {
            text.error("port 0 cannot be connected to");
        }
        return vec![address];
    }
    let Some((host, Some(port))) = split_authority(&text.value) else {
        text.error("a host and a port are expected, as in `127.0.0.1:9000`");
        return Vec::new();
    };
    if host == "localhost" {
        return vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)];
    }
    let found: Vec<_> = match (host.as_str(), port).to_socket_addrs() {
        Ok(found) => found.take(64).collect(),
        Err(error) => {
            text.error(format!("`{}` has no address: {error}", text.written));
            return Vec::new();
        }
    };
    let (v4, v6): (Vec<_>, Vec<_>) = found.into_iter().partition(SocketAddr::is_ipv4);
    text.item.warn(format!(
        "`{}` is resolved once: when its address changes, the edge must be restarted",
        text.written
    ));
    if v4.is_empty() { v6 } else { v4 }
}

/// Warns of upstreams that no route uses.
pub(super) fn check_use(sink: &Sink, upstreams: &[(Upstream, Place)], drafts: &[Draft<'_>]) {
    for (index, (_, place)) in upstreams.iter().enumerate() {
        if !drafts.iter().any(|draft| draft.route.upstream == index) {
            sink.push(Severity::Warning, place.clone(), "no route uses it".to_owned());
        }
    }
}
