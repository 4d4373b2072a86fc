//! Which server a request goes to, and how.

use std::sync::atomic::{AtomicUsize, Ordering};

use pingora::ErrorType;
use pingora::upstreams::peer::HttpPeer;

use super::respond::ErrorCode;
use crate::config::{Upstream, UpstreamProtocol};

/// Servers that one request tries to connect to, at most.
pub const MAX_ATTEMPTS: usize = 3;
/// Streams on one HTTP/2 connection to a server.
const H2_STREAMS: usize = 100;

/// The servers of one upstream, taken in turn.
#[derive(Debug)]
pub struct Servers {
    peers: Vec<HttpPeer>,
    next: AtomicUsize,
}

impl Servers {
    /// The servers of the upstream at `index`. Connections are never shared between upstreams, so
    /// that two of them may hold one address and still differ in what they are told.
    #[must_use]
    pub fn new(index: usize, upstream: &Upstream) -> Self {
        let peer = |address: &std::net::SocketAddr| {
            let mut peer = HttpPeer::new(*address, false, String::new());
            peer.group_key = u64::try_from(index).unwrap_or(u64::MAX);
            let options = &mut peer.options;
            options.connection_timeout = Some(upstream.connect_timeout);
            options.total_connection_timeout = Some(upstream.connect_timeout);
            options.read_timeout = Some(upstream.read_timeout);
            options.write_timeout = Some(upstream.write_timeout);
            options.idle_timeout = Some(upstream.idle_timeout);
            match upstream.protocol {
                UpstreamProtocol::Http1 => options.set_http_version(1, 1),
                UpstreamProtocol::H2c => {
                    options.set_http_version(2, 2);
                    options.max_h2_streams = H2_STREAMS;
                }
            }
            peer
        };
        Self { peers: upstream.servers.iter().map(peer).collect(), next: AtomicUsize::new(0) }
    }

    /// Where the next request starts.
    #[must_use]
    pub fn turn(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The server of an attempt (from 0) of the request that drew `turn`.
    #[must_use]
    pub fn peer(&self, turn: usize, attempt: usize) -> Option<HttpPeer> {
        let place = turn.wrapping_add(attempt).checked_rem(self.peers.len())?;
        self.peers.get(place).cloned()
    }

    /// Whether another server is worth an attempt after `attempts` could not be connected to.
    #[must_use]
    pub fn more(&self, attempts: usize) -> bool {
        attempts < self.peers.len().min(MAX_ATTEMPTS)
    }
}

/// The answer to a request whose upstream failed.
#[must_use]
#[expect(clippy::wildcard_enum_match_arm, reason = "every other failure is a bad gateway")]
pub fn failure(error: &ErrorType) -> ErrorCode {
    match error {
        ErrorType::ConnectTimedout | ErrorType::ReadTimedout | ErrorType::WriteTimedout => {
            ErrorCode::GatewayTimeout
        }
        _ => ErrorCode::BadGateway,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::AuthorizationPolicy;

    fn upstream(servers: &[&str]) -> Upstream {
        let second = Duration::from_secs(1);
        Upstream {
            name: "api".to_owned(),
            servers: servers.iter().map(|address| address.parse().unwrap()).collect(),
            protocol: UpstreamProtocol::Http1,
            authorization: AuthorizationPolicy::Forward,
            client_certificate: false,
            connect_timeout: second,
            read_timeout: second,
            write_timeout: second,
            idle_timeout: second,
        }
    }

    #[test]
    fn servers_take_turns_and_attempts_move_on() {
        let servers = Servers::new(0, &upstream(&["10.0.0.1:80", "10.0.0.2:80"]));
        let address =
            |turn, attempt| servers.peer(turn, attempt).map(|peer| peer._address.to_string());
        let (first, second) = (servers.turn(), servers.turn());
        assert_ne!(address(first, 0), address(second, 0));
        assert_eq!(address(first, 1), address(second, 0));
        assert_eq!(address(usize::MAX, 1), address(0, 0));
        assert!(servers.more(1));
        assert!(!servers.more(2));
    }

    #[test]
    fn attempts_are_bounded_and_no_servers_means_none() {
        let servers = Servers::new(0, &upstream(&["10.0.0.1:80"; 9]));
        assert!(servers.more(MAX_ATTEMPTS - 1));
        assert!(!servers.more(MAX_ATTEMPTS));
        assert!(Servers::new(0, &upstream(&[])).peer(0, 0).is_none());
    }

    #[test]
    fn failures() {
        for (error, expect) in [
            (ErrorType::ConnectTimedout, ErrorCode::GatewayTimeout),
            (ErrorType::ReadTimedout, ErrorCode::GatewayTimeout),
            (ErrorType::ConnectRefused, ErrorCode::BadGateway),
            (ErrorType::InvalidHTTPHeader, ErrorCode::BadGateway),
        ] {
            assert_eq!(failure(&error), expect);
        }
    }
}
