//! What a sender lacks that is refused for what `mode: observe` lets pass.

use super::Denial;

/// What would have to change before a request passes under `enforce`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lack {
    /// A proof.
    Proof,
    /// A nonce that is good. A client that takes up nonces lacks one now and then, and tries again.
    Nonce,
    /// A proof without a fault.
    GoodProof,
    /// A clock that is right, or a proof that is new: `iat`.
    Clock,
    /// A proof for each request.
    NewProof,
    /// The key that the token is bound to, and the `DPoP` scheme.
    Key,
    /// The certificate that the token is bound to.
    Certificate,
    /// A token that is bound as the rule demands.
    Bound,
    /// PKCE.
    Pkce,
    /// A refresh token that the edge knows as the client's.
    RefreshToken,
    /// An authorization server that binds its tokens to who asks for them.
    Authority,
    /// A configuration that takes what the token is bound to.
    Setting,
    /// An edge with its stores up and room in them, or another process of it: the client lacks nothing.
    Edge,
}

impl Lack {
    /// Every value, in label order.
    pub const ALL: [Self; 13] = [
        Self::Proof,
        Self::Nonce,
        Self::GoodProof,
        Self::Clock,
        Self::NewProof,
        Self::Key,
        Self::Certificate,
        Self::Bound,
        Self::Pkce,
        Self::RefreshToken,
        Self::Authority,
        Self::Setting,
        Self::Edge,
    ];

    /// The word for it in records and labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Proof => "proof",
            Self::Nonce => "nonce",
            Self::GoodProof => "good_proof",
            Self::Clock => "clock",
            Self::NewProof => "new_proof",
            Self::Key => "key",
            Self::Certificate => "certificate",
            Self::Bound => "bound_token",
            Self::Pkce => "pkce",
            Self::RefreshToken => "refresh_token",
            Self::Authority => "authority",
            Self::Setting => "setting",
            Self::Edge => "edge",
        }
    }

    /// The value of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|lack| lack.name() == name)
    }
}

impl Denial {
    /// What the sender lacks, where `mode: observe` lets it pass; `None` for what is refused in every
    /// mode.
    #[must_use]
    pub fn lack(self) -> Option<Lack> {
        match self {
            Self::Authority(fault) => fault.lack(),
            Self::ProofMissing => Some(Lack::Proof),
            Self::NonceAbsent | Self::NonceExpired | Self::NonceUnknown | Self::NonceSpent => {
                Some(Lack::Nonce)
            }
            Self::ProofRepeated
            | Self::ProofTooLarge
            | Self::ProofMalformed
            | Self::ProofCritical
            | Self::ProofClaim(_)
            | Self::ProofType
            | Self::ProofAlgorithm
            | Self::ProofKey
            | Self::ProofSignature
            | Self::ProofPrivateKey
            | Self::ProofMethod
            | Self::ProofTarget
            | Self::ProofTokenHash => Some(Lack::GoodProof),
            Self::ProofStale | Self::ProofFuture | Self::ProofBeforeStart => Some(Lack::Clock),
            Self::Downgrade | Self::KeyMismatch => Some(Lack::Key),
            Self::TokenUnbound | Self::BindingTooWeak => Some(Lack::Bound),
            Self::DpopDisabled | Self::MtlsDisabled => Some(Lack::Setting),
            Self::CertificateContextMissing
            | Self::CertificateMissing
            | Self::CertificateMismatch => Some(Lack::Certificate),
            Self::Replayed => Some(Lack::NewProof),
            Self::ProofAfterHandover | Self::ReplayCapacity | Self::StoreDown => Some(Lack::Edge),
            Self::HeadTooLarge
            | Self::HostInvalid
            | Self::PathInvalid
            | Self::ForwardedInvalid
            | Self::ClientCertInvalid
            | Self::OriginScheme
            | Self::Misdirected
            | Self::RouteUnknown
            | Self::MethodNotAllowed
            | Self::OriginRefused
            | Self::TokenInQuery
            | Self::TokenMissing
            | Self::AuthorizationRepeated
            | Self::AuthorizationMalformed
            | Self::TokenMalformed
            | Self::TokenType
            | Self::TokenAlgorithm
            | Self::TokenCritical
            | Self::TokenIssuer
            | Self::TokenKeyUnknown
            | Self::TokenSignature
            | Self::TokenClaim
            | Self::TokenAudience
            | Self::TokenExpired
            | Self::TokenNotYetValid
            | Self::TokenConfirmation
            | Self::TokenInactive
            | Self::IntrospectionUnavailable
            | Self::TenantUnknown
            | Self::RouteAudience
            | Self::ScopeMissing
            | Self::AuthenticationStale
            | Self::AcrInsufficient => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_name_of_its_own_and_its_place() {
        for (place, lack) in Lack::ALL.into_iter().enumerate() {
            assert_eq!(Lack::from_name(lack.name()), Some(lack));
            assert_eq!(lack as usize, place);
        }
        assert_eq!(Lack::from_name("proof_missing"), None);
    }
}
