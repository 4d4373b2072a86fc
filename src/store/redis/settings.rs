//! Where the servers are, and how they are spoken to.

use std::path::PathBuf;
use std::time::Duration;

use crate::policy::reach::Lookup;

/// Everything that a [`Redis`](super::Redis) goes by. Secrets and certificates are files, which are
/// read at each connection, so that a new password needs no restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Leave to look servers' names up, which Sentinels and Clusters tell too; without it they are
    /// addresses.
    pub lookup: Option<Lookup>,
    /// Where the masters are found.
    pub topology: Topology,
    /// Who the edge is there.
    pub login: Login,
    /// TLS to every node; `None` for none.
    pub tls: Option<Tls>,
    /// What every key begins with, inside its hash tag.
    pub prefix: String,
    /// The longest that a connection may take until it can be used.
    pub connect_timeout: Duration,
    /// The longest that a request waits for its answers.
    pub timeout: Duration,
    /// How many replicas must have a write before it counts.
    pub wait: Wait,
    /// Whether a server that would forget at a restart is refused.
    pub require_persistence: bool,
}

/// Where the masters are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topology {
    /// One server; of several names the first that answers as a master.
    Standalone(Vec<Address>),
    /// Sentinels know it.
    Sentinel {
        /// The sentinels.
        sentinels: Vec<Address>,
        /// What they call it.
        master: String,
        /// Who the edge is to them.
        login: Login,
    },
    /// A Cluster, which is asked through any of these.
    Cluster(Vec<Address>),
}

/// Host and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// A name or an IP address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Who the edge is to a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Login {
    /// The ACL user; `None` is `default`.
    pub user: Option<String>,
    /// A file with one line: the password.
    pub password_file: Option<PathBuf>,
}

/// TLS to the nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// PEM files of the authorities that sign the servers' certificates; none: the system's.
    pub authorities: Vec<PathBuf>,
    /// The name in the servers' certificates, where it is not the host that is connected to.
    pub server_name: Option<String>,
    /// The edge's certificate chain and its key, PEM.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// How many replicas must have a write before it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// So many; 0: the master's word is enough.
    pub replicas: u32,
    /// The longest that is waited for them.
    pub within: Duration,
}
