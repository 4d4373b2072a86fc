//! Active checks: each server is asked over the same TLS as requests, on a connection of its own.

use std::sync::{Arc, Weak};

use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType};
use tokio::task::JoinSet;

use super::target::Target;
use super::{MAX_INTERIM, NOT_AGREED, Servers, reason};
use crate::config::{Health, UpstreamProtocol};

/// Checks of one upstream under way at once.
const AT_ONCE: usize = 16;

/// Checks until the upstream is gone.
pub(super) async fn watch(servers: Weak<Servers>, health: Health) {
    let connector = Arc::new(super::connector(1));
    let health = Arc::new(health);
    loop {
        let Some(upstream) = servers.upgrade() else { return };
        round(&upstream, &connector, &health).await;
        drop(upstream);
        tokio::time::sleep(health.interval).await;
    }
}

async fn round(servers: &Arc<Servers>, connector: &Arc<Connector>, health: &Arc<Health>) {
    let mut checks = JoinSet::new();
    for target in servers.targets.load().iter() {
        if checks.len() >= AT_ONCE {
            let _ = checks.join_next().await;
        }
        let (servers, target) = (Arc::clone(servers), Arc::clone(target));
        let (connector, health) = (Arc::clone(connector), Arc::clone(health));
        checks.spawn(async move {
            let outcome = checked(&servers, &connector, &health, &target).await;
            servers.checked(&target, outcome, &health);
        });
    }
    while checks.join_next().await.is_some() {}
}

async fn checked(
    servers: &Servers,
    connector: &Connector,
    health: &Health,
    target: &Target,
) -> Result<(), String> {
    match tokio::time::timeout(health.timeout, check(servers, connector, health, target)).await {
        Ok(outcome) => outcome.map_err(|error| reason(&error)),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

async fn check(
    servers: &Servers,
    connector: &Connector,
    health: &Health,
    target: &Target,
) -> pingora::Result<()> {
    let mut peer = target.peer.clone();
    // Of its own, counted nowhere, and never used again.
    peer.options.custom_l4 = None;
    peer.options.max_h2_streams = 1;
    let (mut session, _) = connector.get_http_session(&peer).await?;
    if !servers.takes(session.digest()) {
        return Error::e_explain(NOT_AGREED, "TLS 1.3 was not agreed on");
    }
    if session.as_http1().is_some() && servers.protocol == UpstreamProtocol::H2 {
        return Error::e_explain(NOT_AGREED, "h2 was not agreed on");
    }
    match &health.path {
        Some(path) => ask(&mut session, health, path, servers.host(health, target), &peer).await,
        None => Ok(()),
    }
}

async fn ask(
    session: &mut HttpSession,
    health: &Health,
    path: &str,
    host: &str,
    peer: &HttpPeer,
) -> pingora::Result<()> {
    session.set_read_timeout(Some(health.timeout));
    session.set_write_timeout(peer.options.write_timeout);
    let mut request = RequestHeader::build("GET", path.as_bytes(), Some(3))?;
    request.insert_header("user-agent", "holdfast-health")?;
    if session.as_http1().is_some() {
        request.insert_header("host", host)?;
        request.insert_header("connection", "close")?;
    } else {
        // As `:authority` alone: beside a `Host` some servers take it for a second one.
        let scheme = if peer.is_tls() { "https" } else { "http" };
        let uri = http::Uri::builder().scheme(scheme).authority(host).path_and_query(path).build();
        let uri =
            uri.map_err(|e| Error::because(ErrorType::InternalError, "the check's URI", e))?;
        request.set_uri(uri);
    }
    session.write_request_header(Box::new(request)).await?;
    session.finish_request_body().await?;
    for _ in 0..MAX_INTERIM {
        session.read_response_header().await?;
        let status = session.response_header().map_or(0, |head| head.status.as_u16());
        if (100..200).contains(&status) {
            continue;
        }
        let good = match health.statuses.as_slice() {
            [] => (200..300).contains(&status),
            statuses => statuses.contains(&status),
        };
        if good {
            return Ok(());
        }
        return Error::e_explain(ErrorType::HTTPStatus(status), format!("status {status}"));
    }
    Error::e_explain(ErrorType::InvalidHTTPHeader, "interim answers without end")
}
