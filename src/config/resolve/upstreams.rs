//! `upstreams`: the services behind the edge.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::config::finding::{Place, Severity, Sink};
use crate::config::item::{Item, Text, Words};
use crate::config::names;
use crate::config::section::Section;
use crate::config::value::is_name;
use crate::config::{
    AuthorizationPolicy, ClientCertificateTold, Health, Server, Upstream, UpstreamProtocol,
};

use crate::policy::reach::{Known, Reach};
use crate::policy::target::split_authority;

use super::routes::Draft;
use super::upstream_tls;

const PROTOCOLS: Words<UpstreamProtocol> = &[
    ("http/1.1", UpstreamProtocol::Http1),
    ("h2c", UpstreamProtocol::H2c),
    ("h2", UpstreamProtocol::H2),
];

const AUTHORIZATION: Words<AuthorizationPolicy> = &[
    ("forward", AuthorizationPolicy::Forward),
    ("bearer", AuthorizationPolicy::Bearer),
    ("strip", AuthorizationPolicy::Strip),
];

/// Resolves `upstreams`.
pub(super) fn resolve(root: &Section<'_>, reach: &Reach) -> Vec<(Upstream, Place)> {
    let (mut upstreams, mut named) = (Vec::new(), Vec::new());
    for (name, section) in root.named("upstreams", 1000) {
        let (upstream, texts) = upstream(name, &section, reach);
        named.push(texts);
        upstreams.push((upstream, section.place()));
    }
    find(&mut upstreams, &named);
    upstreams
}

/// Asks for the addresses of all servers that are names. `named`: for each upstream, what stands for each
/// of its servers in the file.
fn find(upstreams: &mut [(Upstream, Place)], named: &[Vec<Text<'_>>]) {
    let servers = upstreams.iter_mut().zip(named).flat_map(|((upstream, _), texts)| {
        upstream.servers.iter_mut().zip(texts).filter(|(server, _)| server.named.is_some())
    });
    let servers: Vec<_> = servers.collect();
    let names = servers.iter().map(|(server, _)| (server.host.clone(), server.port)).collect();
    for ((server, text), found) in servers.into_iter().zip(names::look_up(names)) {
        match found {
            Ok(found) => server.addresses = Server::choose(found),
            Err(error) => text.item.warn(format!(
                "`{}` has no address now, and is asked for again: {error}",
                text.written
            )),
        }
    }
}

/// Their servers, as an edge that is sealed may know them.
pub(super) fn known(upstreams: &[(Upstream, Place)]) -> impl Iterator<Item = Known> {
    upstreams.iter().flat_map(|(upstream, _)| {
        let tls = upstream.tls.as_ref();
        let name =
            tls.and_then(|tls| tls.server_name.as_ref()).map(|name| name.to_ascii_lowercase());
        let addresses = upstream.servers.iter().flat_map(|server| &server.addresses);
        addresses.map(move |address| Known { address: *address, name: name.clone() })
    })
}

/// An upstream, and what stands for each of its servers in the file.
fn upstream<'a>(name: String, section: &Section<'a>, reach: &Reach) -> (Upstream, Vec<Text<'a>>) {
    if !is_name(&name) {
        section.error_here("a name of 1 to 64 letters, digits, `_`, `-` and `.` is expected");
    }
    if section.lacks("servers") {
        section.error("servers", "at least one is needed, as in `[\"127.0.0.1:9000\"]`");
    }
    let servers = section.texts("servers", 64).unwrap_or_default();
    let servers = servers.into_iter().filter_map(|text| Some((server(&text, reach)?, text)));
    let (servers, texts): (Vec<_>, Vec<_>) = servers.unzip();
    check_twice(section, &servers);
    let tls = section.item("tls").map(|tls| upstream_tls::resolve(&tls.section(), &servers));
    let upstream = Upstream {
        name,
        servers,
        protocol: protocol(section, tls.is_some()),
        tls,
        health: section.item("health").map(|health| health_of(&health.section())),
        authorization: section
            .word("authorization", AUTHORIZATION)
            .unwrap_or(AuthorizationPolicy::Forward),
        client_certificate: client_certificate(section),
        connect_timeout: section.duration("connectTimeout", "2s", ["10ms", "1m"]),
        read_timeout: section.duration("readTimeout", "60s", ["10ms", "1d"]),
        write_timeout: section.duration("writeTimeout", "60s", ["10ms", "1d"]),
        idle_timeout: section.duration("idleTimeout", "4s", ["100ms", "1h"]),
        resolve_interval: section.duration("resolveInterval", "30s", ["100ms", "1d"]),
        max_connections: section.size("maxConnections", 10_000, 1..=1_000_000),
        head_bytes: section.size("headBytes", 64 << 10, 1 << 10..=1 << 20),
    };
    (upstream, texts)
}

fn client_certificate(section: &Section<'_>) -> ClientCertificateTold {
    let Some(item) = section.item("clientCertificate") else {
        return ClientCertificateTold::Nothing;
    };
    match (item.value.as_bool(), item.value.as_str()) {
        (Some(true), _) => ClientCertificateTold::Leaf,
        (_, Some("chain")) => ClientCertificateTold::Chain,
        (Some(false), _) => ClientCertificateTold::Nothing,
        (None, _) => {
            item.error("`true`, `false` or `chain` is expected");
            ClientCertificateTold::Nothing
        }
    }
}

fn protocol(section: &Section<'_>, tls: bool) -> UpstreamProtocol {
    let protocol = section.word("protocol", PROTOCOLS).unwrap_or(UpstreamProtocol::Http1);
    match (protocol, tls) {
        (UpstreamProtocol::H2, false) => {
            section.error("protocol", "`h2` needs `tls`; HTTP/2 in clear is `h2c`");
        }
        (UpstreamProtocol::H2c, true) => {
            section.error("protocol", "`h2c` is in clear; HTTP/2 over `tls` is `h2`");
        }
        (UpstreamProtocol::Http1 | UpstreamProtocol::H2c | UpstreamProtocol::H2, _) => {}
    }
    protocol
}

/// One server. `localhost` is 127.0.0.1; any other name is asked for later ([`find`]) and
/// then in the background, where it may be.
fn server(text: &Text<'_>, reach: &Reach) -> Option<Server> {
    if let Ok(address) = text.value.parse::<SocketAddr>() {
        if address.port() == 0 {
            text.error("port 0 cannot be connected to");
        }
        let (name, host) = (address.to_string(), address.ip().to_string());
        let port = address.port();
        return Some(Server { name, host, port, named: None, addresses: vec![address] });
    }
    let Some((host, Some(port))) = split_authority(&text.value) else {
        text.error("a host and a port are expected, as in `127.0.0.1:9000`");
        return None;
    };
    let name = format!("{host}:{port}");
    if host == "localhost" {
        let addresses = vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)];
        return Some(Server { name, host, port, named: None, addresses });
    }
    let named = reach.lookup();
    if named.is_none() {
        text.error(format!(
            "`edge.sealed`: `{}` is a name, which would be looked up over the network; give its \
             address, and where there is `tls`, the name as `serverName`",
            text.written
        ));
        return None;
    }
    Some(Server { name, host, port, named, addresses: Vec::new() })
}

/// A server that stands twice would be two series of one name, and no second server.
fn check_twice(section: &Section<'_>, servers: &[Server]) {
    for (index, server) in servers.iter().enumerate() {
        if servers.iter().take(index).any(|other| other.name == server.name) {
            section.error("servers", format!("`{}` stands twice", server.name));
        }
    }
}

fn health_of(section: &Section<'_>) -> Health {
    let path = section.text("path");
    if let Some(text) = &path
        && (!text.value.starts_with('/')
            || text.value.parse::<http::uri::PathAndQuery>().is_err()
            || text.value.contains('#'))
    {
        text.error(format!("`{}` is no path; one as in `/healthz` is expected", text.written));
    }
    let host = section.text("host");
    if let Some(text) = &host
        && split_authority(&text.value).is_none()
    {
        text.error("a host is expected, as in `orders.example.com`");
    }
    for key in ["host", "expectedStatus"] {
        if path.is_none() && section.has(key) {
            section.error(key, "belongs to `path`");
        }
    }
    let interval = section.duration("interval", "5s", ["100ms", "1h"]);
    let timeout = section.duration("timeout", "2s", ["10ms", "1m"]);
    if timeout > interval {
        section.error("timeout", "must not be longer than `interval`");
    }
    let statuses = section.list("expectedStatus", 16).unwrap_or_default();
    Health {
        path: path.map(|text| text.value),
        host: host.map(|text| text.value),
        interval,
        timeout,
        unhealthy_after: section.count("unhealthyAfter", 3, 1..=100),
        healthy_after: section.count("healthyAfter", 2, 1..=100),
        statuses: statuses.iter().filter_map(status).collect(),
    }
}

fn status(item: &Item<'_>) -> Option<u16> {
    let status = item.value.as_u64().and_then(|status| u16::try_from(status).ok());
    let status = status.filter(|status| (200..600).contains(status));
    if status.is_none() {
        item.error("a status from 200 to 599 is expected");
    }
    status
}

/// Warns of upstreams that no route uses.
pub(super) fn check_use(sink: &Sink, upstreams: &[(Upstream, Place)], drafts: &[Draft<'_>]) {
    for (index, (upstream, place)) in upstreams.iter().enumerate() {
        let authority = |draft: &&Draft<'_>| {
            draft.route.upstream == Some(index) && draft.route.rule.role.is_authority()
        };
        if let Some(draft) = drafts.iter().find(authority)
            && upstream.protocol != UpstreamProtocol::Http1
        {
            let message = format!(
                "an authorization server is spoken to in HTTP/1.1; route `{}` is one's",
                draft.route.name
            );
            sink.push(Severity::Error, place.clone(), message);
        }
        if !drafts.iter().any(|draft| draft.route.upstream == Some(index)) {
            sink.push(Severity::Warning, place.clone(), "no route uses it".to_owned());
        }
    }
}
