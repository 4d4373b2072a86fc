//! What a refusal looks like at an authorization server (RFC 6749 section 5.2, RFC 9449 section 5).

use http::StatusCode;

use super::{Asked, ErrorCode, attributes, dpop_challenge};
use crate::policy::denial::{AuthorityFault, Denial};

/// What of a request to an authorization server its refusal depends on.
#[derive(Clone, Copy, Debug)]
pub struct AskedOfAuthority {
    /// Whether a token was to be refreshed.
    pub refresh: bool,
    /// Whether the client came with `Authorization: Basic`.
    pub basic: bool,
    /// What a replayed proof is answered with.
    pub replay_status: StatusCode,
}

/// The error of what only an authorization server's routes refuse.
pub(super) fn error_of_fault(fault: AuthorityFault) -> ErrorCode {
    use AuthorityFault as F;
    match fault {
        F::FormInvalid
        | F::ParameterRepeated
        | F::ParameterInQuery
        | F::ParameterMissing
        | F::AssertionMalformed
        | F::ClientsDiffer
        | F::PkceMissing => ErrorCode::InvalidRequest,
        F::BodyTooLarge => ErrorCode::ContentTooLarge,
        F::GrantUnknown | F::GrantRevoked | F::GrantClient => ErrorCode::InvalidGrant,
        F::RecordMissing | F::TokenRevoked => ErrorCode::InvalidToken,
        F::ProofRate => ErrorCode::TooManyRequests,
        F::ThumbprintParameter => ErrorCode::InvalidDpopProof,
        F::AnswerInvalid | F::IssuedUnbound | F::IssuedMismatch | F::BindingConflict => {
            ErrorCode::BadGateway
        }
    }
}

/// CONTRACT section 4, the column of token endpoints: `error` is that of a resource.
#[expect(clippy::wildcard_enum_match_arm, reason = "all others are as on a resource")]
pub(super) fn error_of(
    denial: Denial,
    error: ErrorCode,
    asked: &AskedOfAuthority,
) -> (ErrorCode, StatusCode) {
    let error = match denial {
        Denial::KeyMismatch => ErrorCode::InvalidGrant,
        Denial::CertificateContextMissing
        | Denial::CertificateMissing
        | Denial::CertificateMismatch
            if asked.refresh =>
        {
            ErrorCode::InvalidGrant
        }
        Denial::CertificateContextMissing
        | Denial::CertificateMissing
        | Denial::CertificateMismatch => ErrorCode::InvalidClient,
        Denial::DpopDisabled => ErrorCode::InvalidDpopProof,
        Denial::BindingTooWeak | Denial::MtlsDisabled => ErrorCode::InvalidRequest,
        _ => error,
    };
    let status = match (denial, error) {
        (Denial::Replayed, _) => asked.replay_status,
        (_, ErrorCode::InvalidDpopProof | ErrorCode::UseDpopNonce) => StatusCode::BAD_REQUEST,
        (_, error) => error.status(),
    };
    (error, status)
}

/// A 401 names the scheme that the client came with (RFC 6749 section 5.2).
pub(super) fn challenges(
    error: ErrorCode,
    status: StatusCode,
    asked: &Asked<'_>,
    authority: &AskedOfAuthority,
) -> Vec<String> {
    if status != StatusCode::UNAUTHORIZED {
        return Vec::new();
    }
    let attributes = attributes(error, None);
    match asked.challenge {
        Some(challenge) if error == ErrorCode::InvalidDpopProof => {
            vec![dpop_challenge(Some(&attributes), challenge)]
        }
        Some(_) | None if authority.basic => vec!["Basic realm=\"client\"".to_owned()],
        Some(_) | None => vec![format!("Bearer {attributes}")],
    }
}
