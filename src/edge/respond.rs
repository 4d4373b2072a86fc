//! What a refusal looks like on the wire: one exhaustive match from [`Denial`] to an answer.
//!
//! A stranger learns the error code of the standard that applies and a decision id. Which check
//! failed is in the log under that id.

mod authority;

use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{Method, StatusCode};
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;
use pingora::proxy::Session;
use serde::Serialize;

pub use authority::AskedOfAuthority;

use super::cors;
use super::grpc;
use super::headers::{DPOP_NONCE, REQUEST_ID};
use crate::config::Cors;
use crate::gate::{self, Challenge};
use crate::policy::denial::Denial;
use crate::policy::presented::Scheme;
use crate::policy::step_up::StepUp;

/// Bytes of a refused request's body that are read, so that the connection can be kept and the
/// answer is not lost to a reset.
const DRAIN_BYTES: usize = 256 * 1024;
/// Time for that.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// The error of an answer, by the name that its standard gives it (RFC 6750 section 3.1, RFC 9449
/// sections 7.1 and 9); what no standard names is named after the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// A token is needed. Not sent in a challenge: a client that sent nothing is told nothing.
    Unauthorized,
    /// `invalid_request`
    InvalidRequest,
    /// `invalid_token`
    InvalidToken,
    /// `insufficient_scope`
    InsufficientScope,
    /// `insufficient_user_authentication` (RFC 9470)
    StepUpNeeded,
    /// `invalid_dpop_proof`
    InvalidDpopProof,
    /// `use_dpop_nonce`
    UseDpopNonce,
    /// `invalid_client` (RFC 6749 section 5.2)
    InvalidClient,
    /// `invalid_grant` (RFC 6749 section 5.2)
    InvalidGrant,
    /// 403
    Forbidden,
    /// 404
    NotFound,
    /// 405
    MethodNotAllowed,
    /// 408
    RequestTimeout,
    /// 413
    ContentTooLarge,
    /// 421
    MisdirectedRequest,
    /// 429
    TooManyRequests,
    /// 431
    HeadTooLarge,
    /// 500
    ServerError,
    /// 502
    BadGateway,
    /// 503
    TemporarilyUnavailable,
    /// 504
    GatewayTimeout,
}

impl ErrorCode {
    /// The name in `error`, and a sentence that is the same for every cause.
    #[must_use]
    pub fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Unauthorized => ("unauthorized", "an access token is needed"),
            Self::InvalidRequest => ("invalid_request", "the request is malformed"),
            Self::InvalidToken => ("invalid_token", "the access token is not valid here"),
            Self::InsufficientScope => {
                ("insufficient_scope", "the access token lacks a scope that is needed here")
            }
            Self::StepUpNeeded => (
                "insufficient_user_authentication",
                "a more recent or another authentication of the user is needed here",
            ),
            Self::InvalidDpopProof => ("invalid_dpop_proof", "the DPoP proof is not valid here"),
            Self::UseDpopNonce => {
                ("use_dpop_nonce", "a DPoP proof with the nonce of this answer is needed")
            }
            Self::InvalidClient => ("invalid_client", "the client did not prove who it is"),
            Self::InvalidGrant => ("invalid_grant", "the grant is not valid for this sender"),
            Self::Forbidden => ("forbidden", "this is not allowed here"),
            Self::NotFound => ("not_found", "nothing is here"),
            Self::MethodNotAllowed => ("method_not_allowed", "the method is not allowed here"),
            Self::RequestTimeout => ("request_timeout", "the request took too long to arrive"),
            Self::ContentTooLarge => ("invalid_request", "the request's body is too large"),
            Self::TooManyRequests => ("rate_limited", "there were too many requests"),
            Self::MisdirectedRequest => {
                ("misdirected_request", "use another connection for this host")
            }
            Self::HeadTooLarge => {
                ("request_header_fields_too_large", "the request's head is too large")
            }
            Self::ServerError => ("server_error", "the request could not be served"),
            Self::BadGateway => ("bad_gateway", "the service did not answer properly"),
            Self::TemporarilyUnavailable => {
                ("temporarily_unavailable", "the request cannot be served now")
            }
            Self::GatewayTimeout => ("gateway_timeout", "the service did not answer in time"),
        }
    }

    /// The status that goes with it on a resource route.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::Unauthorized
            | Self::InvalidToken
            | Self::StepUpNeeded
            | Self::InvalidDpopProof
            | Self::InvalidClient
            | Self::UseDpopNonce => StatusCode::UNAUTHORIZED,
            Self::InvalidRequest | Self::InvalidGrant => StatusCode::BAD_REQUEST,
            Self::ContentTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::InsufficientScope | Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::MisdirectedRequest => StatusCode::MISDIRECTED_REQUEST,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::ServerError => StatusCode::INTERNAL_SERVER_ERROR,
            Self::BadGateway => StatusCode::BAD_GATEWAY,
            Self::TemporarilyUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::GatewayTimeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}

/// What of a request its refusal depends on, the denial apart.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// What satisfies the route; `None` before a token was asked for.
    pub challenge: Option<Challenge>,
    /// The scheme of the token, where one was read.
    pub scheme: Option<Scheme>,
    /// A fresh nonce, where the client will need one.
    pub nonce: Option<&'a str>,
    /// Methods that the route takes.
    pub allow: &'a [String],
    /// Scopes that the route needs.
    pub scopes: &'a [String],
    /// What a request to an authorization server was, where it was one.
    pub authority: Option<AskedOfAuthority>,
    /// What the route demands of the authentication behind a token.
    pub step_up: Option<&'a StepUp>,
    /// Where the resource's metadata is (RFC 9728 section 5.1), if anywhere.
    pub resource_metadata: Option<&'a str>,
}

/// An answer of the edge's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its error.
    pub error: ErrorCode,
    /// Its status.
    pub status: StatusCode,
    /// `WWW-Authenticate` values.
    pub challenges: Vec<String>,
    /// `DPoP-Nonce`.
    pub nonce: Option<String>,
    /// `Allow`.
    pub allow: Option<String>,
}

impl Answer {
    /// An answer that is about nothing the client showed.
    #[must_use]
    pub fn plain(error: ErrorCode) -> Self {
        Self { error, status: error.status(), challenges: Vec::new(), nonce: None, allow: None }
    }
}

/// The answer to a refused request.
#[must_use]
pub fn answer(denial: Denial, asked: &Asked<'_>) -> Answer {
    let error = error_of(denial, asked.nonce.is_some());
    let allow = (error == ErrorCode::MethodNotAllowed).then(|| asked.allow.join(", "));
    let nonce = asked.nonce.map(str::to_owned);
    if let Some(authority) = &asked.authority {
        let (error, status) = authority::error_of(denial, error, authority);
        let challenges = authority::challenges(error, status, asked, authority);
        return Answer { error, status, challenges, nonce, allow };
    }
    let challenges = challenges(denial, error, asked);
    Answer { error, status: error.status(), challenges, nonce, allow }
}

/// CONTRACT section 4, the column of resources.
fn error_of(denial: Denial, nonce: bool) -> ErrorCode {
    match denial {
        Denial::HeadTooLarge => ErrorCode::HeadTooLarge,
        Denial::HostInvalid
        | Denial::PathInvalid
        | Denial::ForwardedInvalid
        | Denial::ClientCertInvalid
        | Denial::OriginScheme
        | Denial::TokenInQuery
        | Denial::AuthorizationRepeated
        | Denial::AuthorizationMalformed => ErrorCode::InvalidRequest,
        Denial::Authority(fault) => authority::error_of_fault(fault),
        Denial::Misdirected => ErrorCode::MisdirectedRequest,
        Denial::RouteUnknown => ErrorCode::NotFound,
        Denial::MethodNotAllowed => ErrorCode::MethodNotAllowed,
        Denial::OriginRefused => ErrorCode::Forbidden,
        Denial::TokenMissing => ErrorCode::Unauthorized,
        Denial::TokenMalformed
        | Denial::TokenType
        | Denial::TokenAlgorithm
        | Denial::TokenCritical
        | Denial::TokenIssuer
        | Denial::TokenKeyUnknown
        | Denial::TokenSignature
        | Denial::TokenClaim
        | Denial::TokenAudience
        | Denial::TokenExpired
        | Denial::TokenNotYetValid
        | Denial::TokenConfirmation
        | Denial::TokenInactive
        | Denial::TenantUnknown
        | Denial::RouteAudience
        | Denial::Downgrade
        | Denial::TokenUnbound
        | Denial::BindingTooWeak
        | Denial::DpopDisabled
        | Denial::MtlsDisabled
        | Denial::KeyMismatch
        | Denial::CertificateContextMissing
        | Denial::CertificateMissing
        | Denial::CertificateMismatch => ErrorCode::InvalidToken,
        Denial::ScopeMissing => ErrorCode::InsufficientScope,
        Denial::AuthenticationStale | Denial::AcrInsufficient => ErrorCode::StepUpNeeded,
        Denial::ProofMissing if nonce => ErrorCode::UseDpopNonce,
        Denial::NonceAbsent | Denial::NonceExpired | Denial::NonceUnknown | Denial::NonceSpent => {
            ErrorCode::UseDpopNonce
        }
        Denial::ProofMissing
        | Denial::ProofRepeated
        | Denial::ProofTooLarge
        | Denial::ProofMalformed
        | Denial::ProofCritical
        | Denial::ProofClaim(_)
        | Denial::ProofType
        | Denial::ProofAlgorithm
        | Denial::ProofKey
        | Denial::ProofSignature
        | Denial::ProofPrivateKey
        | Denial::ProofMethod
        | Denial::ProofTarget
        | Denial::ProofStale
        | Denial::ProofFuture
        | Denial::ProofBeforeStart
        | Denial::ProofAfterHandover
        | Denial::ProofTokenHash
        | Denial::Replayed => ErrorCode::InvalidDpopProof,
        Denial::IntrospectionUnavailable => ErrorCode::TemporarilyUnavailable,
        Denial::ReplayCapacity | Denial::StoreDown => ErrorCode::TemporarilyUnavailable,
    }
}

/// A challenge for each scheme that satisfies the route, the error on the one that was used or
/// should have been.
fn challenges(denial: Denial, error: ErrorCode, asked: &Asked<'_>) -> Vec<String> {
    let needed = matches!(error.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
        || error == ErrorCode::InvalidRequest;
    let Some(challenge) = asked.challenge.filter(|_| needed) else { return Vec::new() };
    let about_proof = matches!(error, ErrorCode::InvalidDpopProof | ErrorCode::UseDpopNonce);
    let on_dpop = about_proof
        || denial == Denial::Downgrade
        || asked.scheme == Some(Scheme::Dpop)
        || !challenge.bearer;
    let attributes = (error != ErrorCode::Unauthorized).then(|| attributes(error, Some(asked)));
    let on = |dpop: bool| attributes.as_deref().filter(|_| dpop == on_dpop);
    let mut values = Vec::with_capacity(2);
    if challenge.dpop || on_dpop {
        values.push(dpop_challenge(on(true), challenge));
    }
    if challenge.bearer {
        values.push(match on(false) {
            Some(attributes) => format!("Bearer {attributes}"),
            None => "Bearer".to_owned(),
        });
    }
    if let Some(url) = asked.resource_metadata {
        for value in &mut values {
            let joint = if value.contains(' ') { ", " } else { " " };
            *value = format!("{value}{joint}resource_metadata=\"{url}\"");
        }
    }
    values
}

/// The DPoP challenge with an error, or without.
pub(super) fn dpop_challenge_of(error: Option<ErrorCode>, challenge: Challenge) -> String {
    let attributes = error.map(|error| attributes(error, None));
    dpop_challenge(attributes.as_deref(), challenge)
}

fn dpop_challenge(attributes: Option<&str>, challenge: Challenge) -> String {
    let algorithms: Vec<_> =
        challenge.algorithms.iter().map(|algorithm| algorithm.name()).collect();
    let algorithms = algorithms.join(" ");
    match attributes {
        Some(attributes) => format!("DPoP {attributes}, algs=\"{algorithms}\""),
        None => format!("DPoP algs=\"{algorithms}\""),
    }
}

fn attributes(error: ErrorCode, asked: Option<&Asked<'_>>) -> String {
    let (name, description) = error.words();
    let mut attributes = format!("error=\"{name}\", error_description=\"{description}\"");
    let Some(asked) = asked else { return attributes };
    if error == ErrorCode::InsufficientScope {
        attributes.push_str(&format!(", scope=\"{}\"", asked.scopes.join(" ")));
    }
    if error == ErrorCode::StepUpNeeded {
        for (name, value) in asked.step_up.map(StepUp::parameters).unwrap_or_default() {
            attributes.push_str(&format!(", {name}=\"{value}\""));
        }
    }
    attributes
}

#[derive(Serialize)]
struct Body<'a> {
    error: &'a str,
    error_description: &'a str,
    #[serde(rename = "decisionId")]
    decision_id: &'a str,
}

fn head(answer: &Answer, id: &str, length: usize) -> pingora::Result<ResponseHeader> {
    let mut head = ResponseHeader::build(answer.status, Some(8))?;
    head.insert_header(CONTENT_TYPE, "application/json")?;
    head.insert_header(CONTENT_LENGTH, length)?;
    head.insert_header(CACHE_CONTROL, "no-store")?;
    head.insert_header(REQUEST_ID, id)?;
    for challenge in &answer.challenges {
        head.append_header(WWW_AUTHENTICATE, challenge.as_str())?;
    }
    if let Some(nonce) = &answer.nonce {
        head.insert_header(DPOP_NONCE, nonce.as_str())?;
    }
    if let Some(allow) = &answer.allow {
        head.insert_header(ALLOW, allow.as_str())?;
    }
    if matches!(answer.error, ErrorCode::TemporarilyUnavailable | ErrorCode::TooManyRequests) {
        head.insert_header(RETRY_AFTER, gate::RETRY_AFTER.as_secs().max(1))?;
    }
    Ok(head)
}

/// Sends an answer and reads what is left of the request's body within limits. The connection is
/// kept where that leaves it clean, else closed. With the fields of `cors` a page can read it.
///
/// # Errors
/// When the client is gone.
pub async fn send(
    session: &mut Session,
    answer: &Answer,
    cors: &Cors,
    id: &str,
) -> pingora::Result<()> {
    let (error, error_description) = answer.error.words();
    let body = Body { error, error_description, decision_id: id };
    let body = Bytes::from(serde_json::to_vec(&body).unwrap_or_default());
    let mut head = head(answer, id, body.len())?;
    cors::downstream_response(&mut head, cors, &session.req_header().headers)?;
    if grpc::is_call(session.req_header()) {
        grpc::refuse(&mut head, error_description)?;
    }
    write(session, head, body).await
}

/// Writes an answer of the edge's own, and reads what is left of the request's body within limits.
///
/// # Errors
/// When the client is gone.
pub(super) async fn write(
    session: &mut Session,
    head: ResponseHeader,
    body: Bytes,
) -> pingora::Result<()> {
    let call = grpc::is_call(session.req_header());
    if !can_keep(session) {
        session.set_keepalive(None);
    }
    session.set_close_on_response_before_downstream_finish(false);
    let without_body = call || session.req_header().method == Method::HEAD || body.is_empty();
    if call {
        // The one way to have the head itself end an HTTP/2 stream.
        session.write_response_tasks(vec![HttpTask::Header(Box::new(head), true)]).await?;
    } else {
        session.write_response_header(Box::new(head), without_body).await?;
    }
    if !without_body {
        session.write_response_body(Some(body), true).await?;
    }
    if tokio::time::timeout(DRAIN_TIME, drain(session)).await.is_err() {
        session.set_keepalive(None);
    }
    Ok(())
}

/// Whether the body that is still to come is known to be short enough to be read. A client that
/// waits for `100 Continue` will not send it after a refusal, and nobody can tell whether it did.
fn can_keep(session: &mut Session) -> bool {
    if session.is_body_empty() {
        return true;
    }
    let headers = &session.req_header().headers;
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    let short =
        length.and_then(|length| length.parse().ok()).is_some_and(|n: usize| n <= DRAIN_BYTES);
    short && !headers.contains_key(EXPECT)
}

async fn drain(session: &mut Session) {
    if session.req_header().headers.contains_key(EXPECT) {
        return;
    }
    let mut read = 0;
    while let Ok(Some(chunk)) = session.read_request_body().await {
        read += chunk.len();
        if read > DRAIN_BYTES {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::jose::{Algorithm, AlgorithmSet};
    use crate::policy::proof::Claim;

    fn challenge(dpop: bool, bearer: bool) -> Challenge {
        let algorithms = AlgorithmSet::of(&[Algorithm::Es256, Algorithm::EdDsa]);
        Challenge { dpop, bearer, algorithms }
    }

    fn asked<'a>(
        challenge: Challenge,
        scheme: Option<Scheme>,
        nonce: Option<&'a str>,
    ) -> Asked<'a> {
        Asked {
            challenge: Some(challenge),
            scheme,
            nonce,
            allow: &[],
            scopes: &[],
            authority: None,
            step_up: None,
            resource_metadata: None,
        }
    }

    /// Every variant with the status and error that the contract's table gives it.
    const TABLE: &[(Denial, u16, &str)] = &[
        (Denial::HeadTooLarge, 431, "request_header_fields_too_large"),
        (Denial::HostInvalid, 400, "invalid_request"),
        (Denial::PathInvalid, 400, "invalid_request"),
        (Denial::ForwardedInvalid, 400, "invalid_request"),
        (Denial::ClientCertInvalid, 400, "invalid_request"),
        (Denial::OriginScheme, 400, "invalid_request"),
        (Denial::Misdirected, 421, "misdirected_request"),
        (Denial::RouteUnknown, 404, "not_found"),
        (Denial::MethodNotAllowed, 405, "method_not_allowed"),
        (Denial::OriginRefused, 403, "forbidden"),
        (Denial::TokenInQuery, 400, "invalid_request"),
        (Denial::TokenMissing, 401, "unauthorized"),
        (Denial::AuthorizationRepeated, 400, "invalid_request"),
        (Denial::AuthorizationMalformed, 400, "invalid_request"),
        (Denial::TokenMalformed, 401, "invalid_token"),
        (Denial::TokenType, 401, "invalid_token"),
        (Denial::TokenAlgorithm, 401, "invalid_token"),
        (Denial::TokenCritical, 401, "invalid_token"),
        (Denial::TokenIssuer, 401, "invalid_token"),
        (Denial::TokenKeyUnknown, 401, "invalid_token"),
        (Denial::TokenSignature, 401, "invalid_token"),
        (Denial::TokenClaim, 401, "invalid_token"),
        (Denial::TokenAudience, 401, "invalid_token"),
        (Denial::TokenExpired, 401, "invalid_token"),
        (Denial::TokenNotYetValid, 401, "invalid_token"),
        (Denial::TokenConfirmation, 401, "invalid_token"),
        (Denial::TokenInactive, 401, "invalid_token"),
        (Denial::IntrospectionUnavailable, 503, "temporarily_unavailable"),
        (Denial::TenantUnknown, 401, "invalid_token"),
        (Denial::RouteAudience, 401, "invalid_token"),
        (Denial::ScopeMissing, 403, "insufficient_scope"),
        (Denial::AuthenticationStale, 401, "insufficient_user_authentication"),
        (Denial::AcrInsufficient, 401, "insufficient_user_authentication"),
        (Denial::ProofMissing, 401, "invalid_dpop_proof"),
        (Denial::ProofRepeated, 401, "invalid_dpop_proof"),
        (Denial::ProofTooLarge, 401, "invalid_dpop_proof"),
        (Denial::ProofMalformed, 401, "invalid_dpop_proof"),
        (Denial::ProofCritical, 401, "invalid_dpop_proof"),
        (Denial::ProofClaim(Claim::Jti), 401, "invalid_dpop_proof"),
        (Denial::ProofClaim(Claim::Nonce), 401, "invalid_dpop_proof"),
        (Denial::ProofType, 401, "invalid_dpop_proof"),
        (Denial::ProofAlgorithm, 401, "invalid_dpop_proof"),
        (Denial::ProofKey, 401, "invalid_dpop_proof"),
        (Denial::ProofSignature, 401, "invalid_dpop_proof"),
        (Denial::ProofPrivateKey, 401, "invalid_dpop_proof"),
        (Denial::ProofMethod, 401, "invalid_dpop_proof"),
        (Denial::ProofTarget, 401, "invalid_dpop_proof"),
        (Denial::NonceAbsent, 401, "use_dpop_nonce"),
        (Denial::NonceExpired, 401, "use_dpop_nonce"),
        (Denial::NonceUnknown, 401, "use_dpop_nonce"),
        (Denial::NonceSpent, 401, "use_dpop_nonce"),
        (Denial::ProofStale, 401, "invalid_dpop_proof"),
        (Denial::ProofFuture, 401, "invalid_dpop_proof"),
        (Denial::ProofBeforeStart, 401, "invalid_dpop_proof"),
        (Denial::ProofAfterHandover, 401, "invalid_dpop_proof"),
        (Denial::ProofTokenHash, 401, "invalid_dpop_proof"),
        (Denial::Downgrade, 401, "invalid_token"),
        (Denial::TokenUnbound, 401, "invalid_token"),
        (Denial::BindingTooWeak, 401, "invalid_token"),
        (Denial::DpopDisabled, 401, "invalid_token"),
        (Denial::MtlsDisabled, 401, "invalid_token"),
        (Denial::KeyMismatch, 401, "invalid_token"),
        (Denial::CertificateContextMissing, 401, "invalid_token"),
        (Denial::CertificateMissing, 401, "invalid_token"),
        (Denial::CertificateMismatch, 401, "invalid_token"),
        (Denial::Replayed, 401, "invalid_dpop_proof"),
        (Denial::ReplayCapacity, 503, "temporarily_unavailable"),
        (Denial::StoreDown, 503, "temporarily_unavailable"),
    ];

    #[test]
    fn every_denial_has_its_answer() {
        for &(denial, status, error) in TABLE {
            for scheme in [Some(Scheme::Dpop), Some(Scheme::Bearer), None] {
                for (dpop, bearer) in [(true, false), (true, true), (false, true), (false, false)] {
                    let answer = answer(denial, &asked(challenge(dpop, bearer), scheme, None));
                    let context = format!("{denial:?} {scheme:?} {dpop} {bearer}");
                    assert_eq!(answer.status.as_u16(), status, "{context}");
                    assert_eq!(answer.error.words().0, error, "{context}");
                    let with_error =
                        answer.challenges.iter().filter(|c| c.contains("error=")).count();
                    if status == 401 {
                        assert!(!answer.challenges.is_empty(), "{context}");
                        assert_eq!(with_error, usize::from(denial != Denial::TokenMissing));
                    }
                    let head = head(&answer, "id", 0).unwrap();
                    assert_eq!(head.headers.get(CACHE_CONTROL).unwrap(), "no-store");
                    assert_eq!(head.headers.get(REQUEST_ID).unwrap(), "id");
                    assert_eq!(head.headers.contains_key(RETRY_AFTER), status == 503);
                    assert_eq!(head.headers.contains_key(ALLOW), status == 405);
                }
            }
        }
    }

    #[test]
    fn challenges_name_what_satisfies_and_where_the_error_is() {
        use Denial as D;
        let (none, with_dpop, with_bearer) = (None, Some(Scheme::Dpop), Some(Scheme::Bearer));
        let token =
            "error=\"invalid_token\", error_description=\"the access token is not valid here\"";
        let proof =
            "error=\"invalid_dpop_proof\", error_description=\"the DPoP proof is not valid here\"";
        for (denial, scheme, dpop, bearer, expect) in [
            (D::TokenMissing, none, true, false, vec!["DPoP algs=\"ES256 EdDSA\"".to_owned()]),
            (
                D::TokenMissing,
                none,
                true,
                true,
                vec!["DPoP algs=\"ES256 EdDSA\"".to_owned(), "Bearer".to_owned()],
            ),
            (D::TokenMissing, none, false, true, vec!["Bearer".to_owned()]),
            (
                D::TokenExpired,
                with_bearer,
                true,
                true,
                vec!["DPoP algs=\"ES256 EdDSA\"".to_owned(), format!("Bearer {token}")],
            ),
            (
                D::TokenExpired,
                with_dpop,
                true,
                true,
                vec![format!("DPoP {token}, algs=\"ES256 EdDSA\""), "Bearer".to_owned()],
            ),
            (
                D::Downgrade,
                with_bearer,
                true,
                true,
                vec![format!("DPoP {token}, algs=\"ES256 EdDSA\""), "Bearer".to_owned()],
            ),
            (
                D::ProofTarget,
                with_bearer,
                true,
                true,
                vec![format!("DPoP {proof}, algs=\"ES256 EdDSA\""), "Bearer".to_owned()],
            ),
            (D::CertificateMissing, with_bearer, false, true, vec![format!("Bearer {token}")]),
        ] {
            let answer = answer(denial, &asked(challenge(dpop, bearer), scheme, None));
            assert_eq!(answer.challenges, expect, "{denial:?} {scheme:?}");
        }
    }

    #[test]
    fn a_missing_proof_asks_for_a_nonce_where_nonces_are_on() {
        let asked = asked(challenge(true, false), Some(Scheme::Dpop), Some("n-1"));
        let answer = answer(Denial::ProofMissing, &asked);
        assert_eq!(answer.error, ErrorCode::UseDpopNonce);
        assert_eq!(head(&answer, "id", 0).unwrap().headers.get(DPOP_NONCE).unwrap(), "n-1");
    }

    #[test]
    fn every_challenge_says_where_the_metadata_is() {
        let url = "https://a.example/.well-known/oauth-protected-resource/x";
        let asked = Asked {
            resource_metadata: Some(url),
            ..asked(challenge(true, true), Some(Scheme::Bearer), None)
        };
        let refused = answer(Denial::TokenMissing, &asked);
        let dpop = format!("DPoP algs=\"ES256 EdDSA\", resource_metadata=\"{url}\"");
        assert_eq!(refused.challenges, [dpop, format!("Bearer resource_metadata=\"{url}\"")]);
        let refused = answer(Denial::TokenExpired, &asked);
        assert!(refused.challenges.iter().all(|one| one.ends_with(&format!("=\"{url}\""))));
    }

    #[test]
    fn a_stale_authentication_is_told_all_that_is_needed() {
        let step_up = StepUp {
            max_age: Some(Duration::from_secs(300)),
            acr_values: vec!["phr".to_owned(), "urn:mfa".to_owned()],
        };
        let asked = Asked {
            step_up: Some(&step_up),
            ..asked(challenge(true, true), Some(Scheme::Bearer), None)
        };
        for denial in [Denial::AuthenticationStale, Denial::AcrInsufficient] {
            let refused = answer(denial, &asked);
            assert_eq!(
                refused.challenges[1],
                "Bearer error=\"insufficient_user_authentication\", error_description=\"a more recent \
                 or another authentication of the user is needed here\", max_age=\"300\", \
                 acr_values=\"phr urn:mfa\""
            );
        }
        let refused = answer(Denial::TokenExpired, &asked);
        assert!(refused.challenges.iter().all(|one| !one.contains("max_age")));
    }

    #[test]
    fn scope_and_allow_are_said() {
        let scopes = ["read".to_owned(), "write".to_owned()];
        let allow = ["GET".to_owned(), "POST".to_owned()];
        let asked = Asked {
            scopes: &scopes,
            allow: &allow,
            ..asked(challenge(true, false), Some(Scheme::Dpop), None)
        };
        let refused = answer(Denial::ScopeMissing, &asked);
        assert!(refused.challenges[0].contains("scope=\"read write\""));
        let refused = answer(Denial::MethodNotAllowed, &Asked { challenge: None, ..asked });
        assert_eq!(refused.allow.as_deref(), Some("GET, POST"));
        assert!(refused.challenges.is_empty());
    }
}
