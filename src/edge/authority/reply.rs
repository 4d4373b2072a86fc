//! What the client is told.

use bytes::Bytes;
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

use super::call::{self, Answered};
use crate::edge::cors;
use crate::edge::ctx::Ctx;
use crate::edge::headers;
use crate::edge::parts::Parts;
use crate::edge::respond;
use crate::policy::json;
use crate::policy::rule::Role;

/// The server's answer, as far as it is passed on.
#[derive(Debug)]
pub(in crate::edge) struct Reply {
    head: ResponseHeader,
    body: Bytes,
}

impl Reply {
    /// The answer as it came.
    pub(super) fn of(answered: Answered) -> Self {
        Self { head: answered.head, body: answered.body }
    }

    /// The answer with another body.
    pub(super) fn with(answered: Answered, body: impl Into<Bytes>) -> Self {
        Self { head: answered.head, body: body.into() }
    }

    /// An answer that is an error: what is no JSON object, or holds what an error does not, is not passed
    /// on.
    pub(super) fn error(answered: Answered) -> Self {
        let told = json::object(&answered.body);
        if told.is_some_and(|told| !told.contains_key("access_token")) {
            return Self::of(answered);
        }
        let mut reply = Self::with(answered, SERVER_ERROR);
        let _ = reply.head.insert_header(CONTENT_TYPE, "application/json");
        reply
    }
}

/// What an error is that says nothing that could be passed on.
const SERVER_ERROR: &str = "{\"error\":\"server_error\",\"error_description\":\"the authorization server \
                            did not answer properly\"}";

/// Sends it.
///
/// # Errors
/// When the client is gone.
pub(in crate::edge) async fn send(
    parts: &Parts,
    session: &mut Session,
    ctx: &mut Ctx,
    reply: Reply,
) -> pingora::Result<()> {
    let Reply { mut head, body } = reply;
    ctx.status = head.status.as_u16();
    call::last_hop(&mut head);
    headers::downstream_response(&mut head, &ctx.id, parts.issues(ctx), ctx.nonce.as_deref())?;
    let metadata = parts.route(ctx).is_some_and(|route| route.rule.role == Role::Metadata);
    if !metadata {
        head.insert_header(CACHE_CONTROL, "no-store")?;
    }
    if head.status != StatusCode::NO_CONTENT {
        head.insert_header(CONTENT_LENGTH, body.len())?;
    }
    cors::downstream_response(&mut head, parts.cors(ctx), &session.req_header().headers)?;
    respond::write(session, head, body).await
}
