//! One question to an authorization server, over the connections of its upstream.

use bytes::Bytes;
use http::HeaderMap;
use http::Method;
use http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, ETAG, EXPECT,
    HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE,
    LAST_MODIFIED, RANGE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use pingora::connectors::http::Connector;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::UniqueID as _;
use pingora::protocols::http::client::HttpSession;
use pingora::{Error, ErrorType};

use crate::config::Upstream;
use crate::edge::respond::ErrorCode;
use crate::edge::upstream::{self, MAX_INTERIM, Servers};

/// Idle connections that are kept.
const POOL: usize = 128;
/// Fields of one hop (RFC 9110 section 7.6.1).
const HOP: [HeaderName; 7] = [
    CONNECTION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// The connections to authorization servers.
pub struct Caller(Connector);

impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Caller")
    }
}

impl Default for Caller {
    fn default() -> Self {
        Self(upstream::connector(POOL))
    }
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) head: ResponseHeader,
    pub(super) body: Bytes,
}

impl Caller {
    /// Sends a request and reads its answer, of at most `limit` bytes. Servers that cannot be connected
    /// to are passed over; once something was written it is not sent again, whatever becomes of it.
    ///
    /// # Errors
    /// What the client is told instead; the reason is in the log under `id`.
    pub(super) async fn call(
        &self,
        (upstream, servers): (&Upstream, &Servers),
        request: &RequestHeader,
        body: &[u8],
        limit: usize,
        id: &str,
    ) -> Result<Answered, ErrorCode> {
        let called = self.attempts((upstream, servers), request, body, limit).await;
        called.map_err(|error| {
            let (kind, upstream) = (error.etype().as_str(), &upstream.name);
            tracing::warn!(decision_id = id, upstream, kind, "authorization server failed");
            upstream::failure(error.etype())
        })
    }

    async fn attempts(
        &self,
        (upstream, servers): (&Upstream, &Servers),
        request: &RequestHeader,
        body: &[u8],
        limit: usize,
    ) -> pingora::Result<Answered> {
        let (turn, mut tried) = (servers.turn(), Vec::new());
        loop {
            let target = servers.choose(turn, &tried);
            let target = target.ok_or_else(|| Error::new_up(upstream::NO_ADDRESS))?;
            let peer = target.peer();
            let mut session = match self.0.get_http_session(&peer).await {
                Ok((session, _)) => session,
                Err(error) if servers.unreachable(&target, &mut tried, &error) => continue,
                Err(error) => return Err(error),
            };
            let descriptor = match &session {
                HttpSession::H1(session) => session.id(),
                HttpSession::H2(session) => session.fd(),
                HttpSession::Custom(()) => -1,
            };
            let _used = match servers.connected(&target, descriptor, session.digest()) {
                Ok(used) => used,
                Err(error) if upstream::gone(&error) => continue,
                Err(error) => return Err(error),
            };
            session.set_read_timeout(Some(upstream.read_timeout));
            session.set_write_timeout(Some(upstream.write_timeout));
            let exchange = exchange(&mut session, request, body, limit, upstream.head_bytes);
            // The head, and then the body, may each take as long as a read may.
            let late = || Error::new_up(ErrorType::ReadTimedout);
            let answered = tokio::time::timeout(upstream.read_timeout * 2, exchange).await;
            let answered = answered.map_err(|_| late())??;
            self.0.release_http_session(session, &peer, Some(upstream.idle_timeout)).await;
            return Ok(answered);
        }
    }
}

async fn exchange(
    session: &mut HttpSession,
    request: &RequestHeader,
    body: &[u8],
    limit: usize,
    head_bytes: usize,
) -> pingora::Result<Answered> {
    session.write_request_header(Box::new(request.clone())).await?;
    if !body.is_empty() {
        session.write_request_body(Bytes::copy_from_slice(body), true).await?;
    }
    session.finish_request_body().await?;
    let mut interim = 0;
    let head = loop {
        session.read_response_header().await?;
        let head = session.response_header().cloned();
        let head = head.ok_or_else(|| Error::new_up(ErrorType::InvalidHTTPHeader))?;
        if !upstream::fits(&head, head_bytes) || interim == MAX_INTERIM {
            return Err(Error::new_up(upstream::HEAD_TOO_LARGE));
        }
        if !head.status.is_informational() {
            break head;
        }
        interim += 1;
    };
    let mut whole = Vec::new();
    while let Some(chunk) = session.read_response_body().await? {
        if whole.len() + chunk.len() > limit {
            return Err(Error::new_up(TOO_LONG));
        }
        whole.extend_from_slice(&chunk);
    }
    if let HttpSession::H1(session) = session {
        session.respect_keepalive();
    }
    Ok(Answered { head, body: whole.into() })
}

/// The error of an answer that is longer than any needs to be.
const TOO_LONG: ErrorType = ErrorType::Custom("AnswerTooLong");

/// Prepares a request of `length` bytes of body for another hop: what was about the one before goes.
///
/// # Errors
/// When a value cannot be written, which ours always can.
pub(super) fn next_hop(request: &mut RequestHeader, length: usize) -> pingora::Result<()> {
    let whole = [RANGE, IF_RANGE, IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE];
    let own = [EXPECT, CONTENT_LENGTH].into_iter().chain(whole);
    for name in one_hop(&request.headers).into_iter().chain(own) {
        request.remove_header(&name);
    }
    // What is read is not to be unpacked first.
    request.insert_header(ACCEPT_ENCODING, "identity")?;
    if request.method != Method::GET {
        request.insert_header(CONTENT_LENGTH, length)?;
    }
    request.set_version(http::Version::HTTP_11);
    request.set_send_end_stream(length == 0);
    Ok(())
}

/// Takes from an answer what was about the hop before.
pub(super) fn last_hop(head: &mut ResponseHeader) {
    // The body may be another than what these were about.
    let own = [CONTENT_LENGTH, ETAG, LAST_MODIFIED, ACCEPT_RANGES];
    for name in one_hop(&head.headers).into_iter().chain(own) {
        head.remove_header(&name);
    }
}

/// Whether an answer can be read as it came.
pub(super) fn is_plain(head: &ResponseHeader) -> bool {
    head.headers.get_all(CONTENT_ENCODING).iter().all(|coding| coding == "identity")
}

/// The fields of one hop, those that `Connection` names included.
fn one_hop(headers: &HeaderMap) -> Vec<HeaderName> {
    let named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named = named.flat_map(|value| value.split(','));
    let named = named.filter_map(|name| HeaderName::try_from(name.trim()).ok());
    named.chain(HOP).collect()
}
