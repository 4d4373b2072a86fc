//! What a node is told.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{Method, StatusCode};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use serde::Serialize;

use super::ask::Asking;
use super::grant::Body;
use super::{Capsules, Own, Told, What};
use crate::edge::believe::Shown;
use crate::edge::body;
use crate::edge::headers::{DPOP_NONCE, REQUEST_ID};
use crate::edge::parts::now;
use crate::edge::respond;
use crate::edge::view::{self, Target};
use crate::gate::{self, Challenge, Gate};
use crate::policy::capsule::decision::Reason;
use crate::policy::denial::Denial;

/// The most bytes of telemetry.
const TELEMETRY_BYTES: usize = 4096;
/// Time for all of it.
const BODY_TIME: Duration = Duration::from_secs(10);
/// How long an envelope key may be cached.
const JWKS_MAX_AGE: &str = "public, max-age=300";

/// What is answered.
pub(super) enum Answer {
    /// A capsule.
    Granted(Box<Body>),
    /// Telemetry was taken.
    Taken,
    /// A refusal.
    Denied {
        /// Why, as far as it is told.
        reason: Reason,
        /// The risk; told above 0.
        score: u32,
        /// How long to wait, where that is known.
        wait: Option<Duration>,
        /// What is wrong with the proof.
        challenge: Option<Denial>,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Denied<'a> {
    denied: bool,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    risk_score: Option<u32>,
    decision_id: &'a str,
}

/// The status of a refusal.
fn status(reason: Reason) -> StatusCode {
    match reason {
        Reason::AuthenticationFailed | Reason::SenderMismatch | Reason::ProofNonceRequired => {
            StatusCode::UNAUTHORIZED
        }
        Reason::NodeRevoked
        | Reason::NodeDisabled
        | Reason::NodeQuarantined
        | Reason::FingerprintMismatch
        | Reason::NetworkPolicyViolation => StatusCode::FORBIDDEN,
        Reason::FingerprintConflict
        | Reason::NodeVersionRequired
        | Reason::KeyVersionUnavailable
        | Reason::SealRequired
        | Reason::TelemetryInvalid => StatusCode::BAD_REQUEST,
        Reason::TelemetryOutOfOrder => StatusCode::CONFLICT,
        Reason::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        Reason::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// What a 401 asks for. Where somebody is not known to be the node, it is the same for all.
fn challenges(reason: Reason, fault: Option<Denial>, challenge: Challenge) -> Vec<String> {
    if status(reason) != StatusCode::UNAUTHORIZED {
        return Vec::new();
    }
    let error = match (reason, fault) {
        (Reason::ProofNonceRequired, _) => Some(respond::ErrorCode::UseDpopNonce),
        (Reason::SenderMismatch, Some(_)) => Some(respond::ErrorCode::InvalidDpopProof),
        (_, _) => None,
    };
    let mut values = Vec::with_capacity(2);
    if challenge.dpop {
        values.push(respond::dpop_challenge_of(error, challenge));
    }
    if error.is_none() && challenge.bearer {
        values.push("Bearer".to_owned());
    }
    values
}

/// Where a request of the edge's own comes from.
pub(in crate::edge) struct From<'a> {
    /// Its target.
    pub(in crate::edge) target: &'a Target,
    /// The certificate that counts as the sender's.
    pub(in crate::edge) shown: &'a Shown,
    /// The peer that the edge trusts.
    pub(in crate::edge) address: Option<IpAddr>,
    /// The most bytes of `Authorization`.
    pub(in crate::edge) authorization_bytes: usize,
    /// The request's id.
    pub(in crate::edge) id: &'a str,
}

/// Answers a request of the edge's own. What is to be told of it.
///
/// # Errors
/// When the client is gone.
pub(in crate::edge) async fn send(
    capsules: &Capsules,
    gate: &Gate,
    session: &mut Session,
    own: &Own,
    from: &From<'_>,
    nonce: impl FnOnce(&mut Session) -> Option<String>,
) -> pingora::Result<Option<Told>> {
    let id = from.id;
    let method = session.req_header().method.clone();
    let allowed = own.what.methods();
    if !allowed.contains(&method) {
        let names: Vec<_> = allowed.iter().map(Method::as_str).collect();
        let mut head = ResponseHeader::build(StatusCode::METHOD_NOT_ALLOWED, Some(8))?;
        head.insert_header(ALLOW, names.join(", "))?;
        finish(session, head, Bytes::new(), id, "no-store").await?;
        return Ok(None);
    }
    let body = match own.what {
        What::Jwks => {
            let mut head = ResponseHeader::build(StatusCode::OK, Some(8))?;
            head.insert_header(CONTENT_TYPE, "application/jwk-set+json")?;
            let body = capsules.ring.jwks().to_string().into();
            finish(session, head, body, id, JWKS_MAX_AGE).await?;
            return Ok(None);
        }
        What::Capsule => None,
        What::Telemetry => body::whole(session, TELEMETRY_BYTES, BODY_TIME).await?,
    };
    let asking = Asking {
        node: &own.node,
        view: view::request(session.req_header(), from.target, from.shown),
        origin: own.origin,
        decision: id,
        address: from.address,
        authorization_bytes: from.authorization_bytes,
        certificates: gate.takes_certificates(),
        now: now(),
    };
    let outcome = match own.what {
        What::Telemetry => capsules.telemetry(gate, &asking, body.as_deref()).await,
        What::Capsule | What::Jwks => capsules.capsule(gate, &asking).await,
    };
    let nonce = if outcome.wants_nonce { nonce(session) } else { None };
    let (head, body) = written(&outcome.answer, gate.node_challenge(), nonce, id)?;
    finish(session, head, body, id, "no-store").await?;
    Ok(Some(outcome.told))
}

fn written(
    answer: &Answer,
    challenge: Challenge,
    nonce: Option<String>,
    id: &str,
) -> pingora::Result<(ResponseHeader, Bytes)> {
    let (status, body) = match answer {
        Answer::Granted(body) => (StatusCode::OK, serde_json::to_vec(body).unwrap_or_default()),
        Answer::Taken => (StatusCode::NO_CONTENT, Vec::new()),
        Answer::Denied { reason, score, .. } => {
            let risk_score = (*score > 0).then_some(*score);
            let (reason_name, decision_id) = (reason.name(), id);
            let denied = Denied { denied: true, reason: reason_name, risk_score, decision_id };
            (status(*reason), serde_json::to_vec(&denied).unwrap_or_default())
        }
    };
    let mut head = ResponseHeader::build(status, Some(8))?;
    if !body.is_empty() {
        head.insert_header(CONTENT_TYPE, "application/json")?;
    }
    if let Answer::Denied { reason, wait, challenge: fault, .. } = answer {
        for value in challenges(*reason, *fault, challenge) {
            head.append_header(WWW_AUTHENTICATE, value)?;
        }
        let unavailable = (*reason == Reason::Unavailable).then_some(gate::RETRY_AFTER);
        if let Some(wait) = wait.or(unavailable) {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            head.insert_header(RETRY_AFTER, seconds.max(1))?;
        }
    }
    if let Some(nonce) = nonce {
        head.insert_header(DPOP_NONCE, nonce)?;
    }
    Ok((head, body.into()))
}

async fn finish(
    session: &mut Session,
    mut head: ResponseHeader,
    body: Bytes,
    id: &str,
    cache: &str,
) -> pingora::Result<()> {
    head.insert_header(CACHE_CONTROL, cache)?;
    head.insert_header(REQUEST_ID, id)?;
    if head.status != StatusCode::NO_CONTENT {
        head.insert_header(CONTENT_LENGTH, body.len())?;
    }
    respond::write(session, head, body).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_status() {
        let of = |status: u16| {
            let with = Reason::ALL.into_iter().filter(|reason| self::status(*reason) == status);
            with.map(Reason::name).collect::<Vec<_>>()
        };
        assert_eq!(of(401), ["AUTHENTICATION_FAILED", "SENDER_MISMATCH", "PROOF_NONCE_REQUIRED"]);
        assert_eq!(
            of(403),
            [
                "NODE_REVOKED",
                "NODE_DISABLED",
                "NODE_QUARANTINED",
                "FINGERPRINT_MISMATCH",
                "NETWORK_POLICY_VIOLATION"
            ]
        );
        assert_eq!(of(429), ["RATE_LIMITED"]);
        assert_eq!(of(503), ["UNAVAILABLE"]);
        assert_eq!(of(409), ["TELEMETRY_OUT_OF_ORDER"]);
    }
}
