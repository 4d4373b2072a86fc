//! Refusals at an authorization server.

use super::Lack;

/// Why a request to an authorization server is refused, or its answer not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthorityFault {
    // The request.
    /// The body is longer than its limit.
    BodyTooLarge,
    /// The body is no form (`application/x-www-form-urlencoded`).
    FormInvalid,
    /// A parameter is given more than once (RFC 6749 section 3.2).
    ParameterRepeated,
    /// A parameter that decides who asks for what stands in the query (RFC 6749 section 2.3.1).
    ParameterInQuery,
    /// A parameter that the endpoint cannot do without is missing.
    ParameterMissing,
    /// A client assertion that cannot be read (RFC 7523 section 3).
    AssertionMalformed,
    /// Two sources name two clients.
    ClientsDiffer,
    /// `dpop_jkt` names another key than the proof's (RFC 9449 section 10.1).
    ThumbprintParameter,
    /// No PKCE with S256 (RFC 7636), which is all that ties a code to its sender here.
    PkceMissing,
    /// The refresh token is not known to be bound to anybody.
    GrantUnknown,
    /// The refresh token was revoked.
    GrantRevoked,
    /// The refresh token is another client's.
    GrantClient,
    /// This address has shown too many proofs.
    ProofRate,

    // What the server answered.
    /// No answer that can be read.
    AnswerInvalid,
    /// A token that is not bound, where it must be.
    IssuedUnbound,
    /// A token that is bound to somebody else, or of another type.
    IssuedMismatch,
    /// A token that is bound to somebody else already.
    BindingConflict,

    // What the edge keeps of its tokens.
    /// Nothing is known of what the token is bound to, and it cannot be without.
    RecordMissing,
    /// The token was revoked.
    TokenRevoked,
}

impl AuthorityFault {
    /// What somebody must look at: a server issues what it should not. In label order.
    pub const ALARMS: [Self; 4] =
        [Self::AnswerInvalid, Self::IssuedUnbound, Self::IssuedMismatch, Self::BindingConflict];

    /// The stable code.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::BodyTooLarge => "body_too_large",
            Self::FormInvalid => "form_invalid",
            Self::ParameterRepeated => "parameter_repeated",
            Self::ParameterInQuery => "parameter_in_query",
            Self::ParameterMissing => "parameter_missing",
            Self::AssertionMalformed => "assertion_malformed",
            Self::ClientsDiffer => "clients_differ",
            Self::ThumbprintParameter => "dpop_jkt",
            Self::PkceMissing => "pkce_missing",
            Self::GrantUnknown => "refresh_token_unknown",
            Self::GrantRevoked => "refresh_token_revoked",
            Self::GrantClient => "refresh_token_client",
            Self::ProofRate => "proof_rate",
            Self::AnswerInvalid => "answer_invalid",
            Self::IssuedUnbound => "issued_unbound",
            Self::IssuedMismatch => "issued_mismatch",
            Self::BindingConflict => "binding_conflict",
            Self::RecordMissing => "record_missing",
            Self::TokenRevoked => "token_revoked",
        }
    }

    /// What the sender lacks, where `mode: observe` lets it pass.
    pub(super) fn lack(self) -> Option<Lack> {
        match self {
            Self::ThumbprintParameter => Some(Lack::Key),
            Self::PkceMissing => Some(Lack::Pkce),
            Self::GrantUnknown | Self::GrantClient => Some(Lack::RefreshToken),
            Self::IssuedUnbound | Self::RecordMissing => Some(Lack::Bound),
            Self::IssuedMismatch | Self::BindingConflict => Some(Lack::Authority),
            Self::ProofRate => Some(Lack::Edge),
            Self::BodyTooLarge
            | Self::FormInvalid
            | Self::ParameterRepeated
            | Self::ParameterInQuery
            | Self::ParameterMissing
            | Self::AssertionMalformed
            | Self::ClientsDiffer
            | Self::GrantRevoked
            | Self::AnswerInvalid
            | Self::TokenRevoked => None,
        }
    }
}
