//! Every refusal that there is.

use super::{AuthorityFault, Denial};
use crate::policy::proof::Claim;

/// Every [`Denial`], in the order of its variants.
pub const ALL: [Denial; 91] = [
    Denial::HeadTooLarge,
    Denial::HostInvalid,
    Denial::PathInvalid,
    Denial::ForwardedInvalid,
    Denial::ClientCertInvalid,
    Denial::OriginScheme,
    Denial::Misdirected,
    Denial::RouteUnknown,
    Denial::MethodNotAllowed,
    Denial::OriginRefused,
    Denial::TokenInQuery,
    Denial::TokenMissing,
    Denial::AuthorizationRepeated,
    Denial::AuthorizationMalformed,
    Denial::TokenMalformed,
    Denial::TokenType,
    Denial::TokenAlgorithm,
    Denial::TokenCritical,
    Denial::TokenIssuer,
    Denial::TokenKeyUnknown,
    Denial::TokenSignature,
    Denial::TokenClaim,
    Denial::TokenAudience,
    Denial::TokenExpired,
    Denial::TokenNotYetValid,
    Denial::TokenConfirmation,
    Denial::TokenInactive,
    Denial::IntrospectionUnavailable,
    Denial::TenantUnknown,
    Denial::RouteAudience,
    Denial::ScopeMissing,
    Denial::AuthenticationStale,
    Denial::AcrInsufficient,
    Denial::ProofMissing,
    Denial::ProofRepeated,
    Denial::ProofTooLarge,
    Denial::ProofMalformed,
    Denial::ProofCritical,
    Denial::ProofClaim(Claim::Jti),
    Denial::ProofClaim(Claim::Htm),
    Denial::ProofClaim(Claim::Htu),
    Denial::ProofClaim(Claim::Iat),
    Denial::ProofClaim(Claim::Ath),
    Denial::ProofClaim(Claim::Nonce),
    Denial::ProofType,
    Denial::ProofAlgorithm,
    Denial::ProofKey,
    Denial::ProofSignature,
    Denial::ProofPrivateKey,
    Denial::ProofMethod,
    Denial::ProofTarget,
    Denial::NonceAbsent,
    Denial::NonceExpired,
    Denial::NonceUnknown,
    Denial::NonceSpent,
    Denial::ProofStale,
    Denial::ProofFuture,
    Denial::ProofBeforeStart,
    Denial::ProofAfterHandover,
    Denial::ProofTokenHash,
    Denial::Downgrade,
    Denial::TokenUnbound,
    Denial::BindingTooWeak,
    Denial::DpopDisabled,
    Denial::MtlsDisabled,
    Denial::KeyMismatch,
    Denial::CertificateContextMissing,
    Denial::CertificateMissing,
    Denial::CertificateMismatch,
    Denial::Authority(AuthorityFault::BodyTooLarge),
    Denial::Authority(AuthorityFault::FormInvalid),
    Denial::Authority(AuthorityFault::ParameterRepeated),
    Denial::Authority(AuthorityFault::ParameterInQuery),
    Denial::Authority(AuthorityFault::ParameterMissing),
    Denial::Authority(AuthorityFault::AssertionMalformed),
    Denial::Authority(AuthorityFault::ClientsDiffer),
    Denial::Authority(AuthorityFault::ThumbprintParameter),
    Denial::Authority(AuthorityFault::PkceMissing),
    Denial::Authority(AuthorityFault::GrantUnknown),
    Denial::Authority(AuthorityFault::GrantRevoked),
    Denial::Authority(AuthorityFault::GrantClient),
    Denial::Authority(AuthorityFault::ProofRate),
    Denial::Authority(AuthorityFault::AnswerInvalid),
    Denial::Authority(AuthorityFault::IssuedUnbound),
    Denial::Authority(AuthorityFault::IssuedMismatch),
    Denial::Authority(AuthorityFault::BindingConflict),
    Denial::Authority(AuthorityFault::RecordMissing),
    Denial::Authority(AuthorityFault::TokenRevoked),
    Denial::Replayed,
    Denial::ReplayCapacity,
    Denial::StoreDown,
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// The variants of an enum in a source file.
    fn variants(source: &str, name: &str) -> usize {
        let body = source.split_once(&format!("pub enum {name} {{")).unwrap().1;
        let body = body.split_once("\n}\n").unwrap().0;
        body.lines().filter(|line| line.trim_start().starts_with(char::is_uppercase)).count()
    }

    #[test]
    fn none_is_missing_and_each_has_a_code_of_its_own() {
        let claims = variants(include_str!("../proof.rs"), "Claim");
        let faults = variants(include_str!("authority.rs"), "AuthorityFault");
        let denials = variants(include_str!("../denial.rs"), "Denial");
        // The two that have a part stand for as many as their parts.
        assert_eq!(ALL.len(), denials - 2 + claims + faults);
        let codes: HashSet<_> = ALL.iter().map(|denial| denial.code()).collect();
        assert_eq!(codes.len(), ALL.len());
    }
}
