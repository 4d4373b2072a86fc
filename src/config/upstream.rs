//! What an upstream's servers, TLS and health checks resolve to.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::CertificateFiles;
use crate::policy::reach::Lookup;

/// Addresses of one name that are used, at most.
const MAX_ADDRESSES: usize = 16;

/// A server of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// `host:port`: what logs, metrics and `explain` call it.
    pub name: String,
    /// The host, an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Leave to ask for the host again and again, where it is a name.
    pub named: Option<Lookup>,
    /// Where it is; of a name what it had when the file was read, which may be nothing.
    pub addresses: Vec<SocketAddr>,
}

impl Server {
    /// The addresses of a name that are used: its IPv4 addresses where it has some, sorted, so that
    /// the same answer in another order is no change.
    #[must_use]
    pub fn choose(found: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
        let (v4, v6): (Vec<_>, Vec<_>) = found.into_iter().partition(SocketAddr::is_ipv4);
        let mut chosen = if v4.is_empty() { v6 } else { v4 };
        chosen.sort_unstable();
        chosen.dedup();
        chosen.truncate(MAX_ADDRESSES);
        chosen
    }
}

/// `tls` of an upstream: whom its servers must be, and who the edge is to them.
#[derive(Clone, Debug)]
pub struct UpstreamTls {
    /// Who signs the servers' certificates.
    pub authorities: Authorities,
    /// The name that a server's certificate must have, and the SNI; each server's host otherwise.
    pub server_name: Option<String>,
    /// What the edge shows of itself.
    pub client: Option<CertificateFiles>,
    /// Whether TLS 1.2 is taken beside 1.3.
    pub tls12: bool,
}

/// Who signs the certificates of an upstream's servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authorities {
    /// Those that the system trusts.
    System,
    /// Those in these PEM files.
    Files(Vec<PathBuf>),
}

/// `health` of an upstream: its servers are asked, whether or not there are requests.
#[derive(Clone, Debug)]
pub struct Health {
    /// What is asked for by GET; without it a connection (with TLS, its handshake) is enough.
    pub path: Option<String>,
    /// The `Host` of that request; the server's name otherwise.
    pub host: Option<String>,
    /// From one check to the next.
    pub interval: Duration,
    /// The time of one check.
    pub timeout: Duration,
    /// Failures in a row after which a server is down.
    pub unhealthy_after: u32,
    /// Successes in a row after which it is up again.
    pub healthy_after: u32,
    /// Statuses that are good; empty: 200 to 299.
    pub statuses: Vec<u16>,
}
