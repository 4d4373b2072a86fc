//! `role: freshAuth`, answered by the edge: that whoever a token speaks for was authenticated recently.
//! The gate has seen to it; here it is said.

use bytes::Bytes;
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use serde::Serialize;

use super::cors;
use super::ctx::Ctx;
use super::grpc;
use super::headers::{DPOP_NONCE, REQUEST_ID};
use super::parts::Parts;
use super::respond;
use crate::gate::Admitted;
use crate::policy::time::UnixTime;

#[derive(Serialize)]
struct Body<'a> {
    fresh: bool,
    /// Seconds, as in the token.
    auth_time: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_age: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    acr: Option<&'a str>,
    /// What the sender has proven, as `X-Holdfast-Result` says it to services.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'static str>,
    #[serde(rename = "decisionId")]
    decision_id: &'a str,
}

impl Parts {
    /// Answers an admitted request of a route that the edge answers itself.
    pub(super) async fn answer_fresh(
        &self,
        session: &mut Session,
        ctx: &Ctx,
        admitted: &Admitted,
    ) -> pingora::Result<()> {
        let authentication = admitted.token().map(|token| token.authentication());
        let max_age = self.route(ctx).and_then(|route| route.rule.step_up.max_age);
        let body = Body {
            fresh: true,
            auth_time: authentication.and_then(|shown| shown.time).map(UnixTime::secs),
            max_age: max_age.map(|age| age.as_secs()),
            acr: authentication.and_then(|shown| shown.acr.as_deref()),
            result: admitted.bound_by().result_header(),
            decision_id: &ctx.id,
        };
        let body = Bytes::from(serde_json::to_vec(&body).unwrap_or_default());
        let mut head = ResponseHeader::build(StatusCode::OK, Some(8))?;
        head.insert_header(CONTENT_TYPE, "application/json")?;
        head.insert_header(CONTENT_LENGTH, body.len())?;
        head.insert_header(CACHE_CONTROL, "no-store")?;
        head.insert_header(REQUEST_ID, ctx.id.as_str())?;
        if let Some(nonce) = &ctx.nonce {
            head.insert_header(DPOP_NONCE, nonce.as_str())?;
        }
        cors::downstream_response(&mut head, self.cors(ctx), &session.req_header().headers)?;
        if grpc::is_call(session.req_header()) {
            // Fresh or not, there is no method here that could be called.
            grpc::refuse(&mut head, "this is no gRPC service")?;
        }
        respond::write(session, head, body).await
    }
}
