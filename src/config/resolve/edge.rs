//! `edge`: listeners, admin, limits.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use crate::config::item::Text;
use crate::config::section::Section;
use crate::config::{Edge, Limits, Listener, ListenerTls};
use crate::policy::reach::Reach;

use super::{Names, own_name, proxies, tls};

const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);

/// The longest path that Linux takes, bytes.
const SOCKET_PATH: usize = 107;

/// Resolves `edge`, and whom it may connect to. `None` when a listener has no usable address.
pub(super) fn resolve(edge: &Section<'_>) -> (Option<Edge>, Reach) {
    // What is neither true nor false is an error; until it is mended nothing is asked for.
    let sealed = edge.flag("sealed").unwrap_or(edge.has("sealed"));
    (sockets(edge), Reach::of(sealed))
}

fn sockets(edge: &Section<'_>) -> Option<Edge> {
    if edge.lacks("listeners") {
        edge.error("listeners", "at least one listener is needed");
    }
    let listeners = edge.list("listeners", 64).unwrap_or_default();
    let mut names = Names::default();
    let mut addresses = Names::default();
    let listeners: Vec<_> = listeners
        .into_iter()
        .map(|item| listener(&item.section(), &mut names, &mut addresses))
        .collect();
    let (admin, admin_tls) = admin(&edge.section("admin"), &mut addresses);
    let limits = limits(&edge.section("limits"));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cores = u64::try_from(cores).unwrap_or(1).min(1024);
    let threads = edge.size("threads", cores, 1..=1024);
    let drain_timeout = edge.duration("drainTimeout", "30s", ["0s", "1h"]);
    let upgrade_socket = upgrade_socket(edge);
    let listeners = listeners.into_iter().collect::<Option<Vec<_>>>()?;
    Some(Edge { listeners, admin, admin_tls, limits, threads, drain_timeout, upgrade_socket })
}

fn upgrade_socket(edge: &Section<'_>) -> PathBuf {
    let Some(text) = edge.text("upgradeSocket") else {
        return edge.sink().base().join("upgrade.sock");
    };
    let (path, text) = text.path();
    if path.as_os_str().len() > SOCKET_PATH {
        text.error(format!("is too long: the path of a socket has at most {SOCKET_PATH} bytes"));
    }
    path
}

fn listener(section: &Section<'_>, names: &mut Names, addresses: &mut Names) -> Option<Listener> {
    let name = own_name(section, "name", names);
    let address = section.required("address").and_then(|text| address(&text, addresses));
    let tls = section.item("tls").map(|tls| tls::listener(&tls.section()));
    let proxies = proxies::resolve(section, address, tls.as_ref());
    Some(Listener {
        name,
        tls,
        proxy_protocol: section.flag("proxyProtocol").unwrap_or(false),
        proxies,
        max_connections: section.size("maxConnections", 10_000, 1..=1_000_000),
        head_timeout: section.duration("headTimeout", "15s", ["1s", "5m"]),
        keepalive_timeout: section.duration("keepaliveTimeout", "60s", ["1s", "1h"]),
        keepalive_requests: section.count("keepaliveRequests", 1000, 1..=1_000_000),
        h2_max_streams: section.count("h2MaxStreams", 128, 1..=10_000),
        body_timeout: section.duration("bodyTimeout", "30s", ["1s", "1h"]),
        address: address?,
    })
}

fn address(text: &Text<'_>, addresses: &mut Names) -> Option<SocketAddr> {
    let Ok(address) = text.value.parse::<SocketAddr>() else {
        text.error("an IP address and a port are expected, as in `0.0.0.0:8443` or `[::]:8443`");
        return None;
    };
    // Port 0 lets the system choose, each time another.
    let taken = addresses.take(&address.to_string(), text.item.place.clone());
    if let Some(taken) = taken.filter(|_| address.port() != 0) {
        text.error(format!("`{}` is taken on line {}", text.written, taken.line));
    }
    Some(address)
}

fn admin(section: &Section<'_>, addresses: &mut Names) -> (SocketAddr, Option<ListenerTls>) {
    let tls = section.item("tls").and_then(|tls| tls::admin(&tls.section()));
    let admin = section.text("address").and_then(|text| address(&text, addresses));
    let admin = admin.unwrap_or(ADMIN);
    if !admin.ip().is_loopback() && !section.has("tls") {
        let message = "must be a loopback address, as in `127.0.0.1:9901`: others need `tls`, with which \
                       whoever asks must have a certificate";
        section.error("address", message);
    }
    (admin, tls)
}

fn limits(section: &Section<'_>) -> Limits {
    let limits = Limits {
        head_bytes: section.size("headBytes", 32 << 10, 1 << 10..=1 << 20),
        head_fields: section.size("headFields", 100, 8..=256),
        authorization_bytes: section.size("authorizationBytes", 16 << 10, 256..=1 << 20),
        proof_bytes: section.size("proofBytes", 8 << 10, 512..=1 << 20),
        token_cache_entries: section.size("tokenCacheEntries", 100_000, 1..=10_000_000),
        replay_entries: section.size("replayEntries", 1_000_000, 1000..=100_000_000),
        token_replay_entries: section.size("tokenReplayEntries", 100_000, 1000..=100_000_000),
        token_proofs_per_minute: section.count("tokenProofsPerMinute", 6000, 1..=10_000_000),
        authority_body_bytes: section.size("authorityBodyBytes", 256 << 10, 4 << 10..=4 << 20),
    };
    let fields =
        [("authorizationBytes", limits.authorization_bytes), ("proofBytes", limits.proof_bytes)];
    for (key, bytes) in fields {
        if bytes > limits.head_bytes {
            let message = format!("can never be reached: `headBytes` is {}", limits.head_bytes);
            section.error(key, message);
        }
    }
    limits
}
