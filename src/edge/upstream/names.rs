//! Servers' names, asked for again and again in the background. A name that has no address any more
//! keeps the last ones.

use std::net::SocketAddr;
use std::sync::Weak;
use std::time::Duration;

use super::Servers;
use crate::config::Server;
use crate::policy::reach::Lookup;

/// How soon a name that has no address is asked for again.
const SOON: Duration = Duration::from_secs(1);

/// Looks names up until the upstream is gone.
pub(super) async fn watch(servers: Weak<Servers>, interval: Duration) {
    loop {
        let is_missing = servers.upgrade().is_some_and(|servers| servers.is_missing_one());
        tokio::time::sleep(if is_missing { interval.min(SOON) } else { interval }).await;
        let Some(upstream) = servers.upgrade() else { return };
        // One at a time: the system's resolver has a time limit of its own, and what it takes
        // delays nobody but the next name.
        for (index, server) in upstream.servers.iter().enumerate() {
            let Some(leave) = server.named else { continue };
            match look_up(leave, server).await {
                Ok(found) => upstream.found(index, Server::choose(found)),
                Err(error) => {
                    let (upstream, server) = (&upstream.name, &server.name);
                    tracing::warn!(upstream, server, %error, "name not resolved");
                }
            }
        }
    }
}

async fn look_up(_leave: Lookup, server: &Server) -> std::io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host((server.host.as_str(), server.port)).await?.collect())
}
