//! DPoP proofs: RFC 9449 section 4.3, one function for each numbered check.

use std::time::Duration;

/// A claim that a proof must have (RFC 9449 section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// `jti`, a string of 1 to 256 bytes.
    Jti,
    /// `htm`, a string.
    Htm,
    /// `htu`, a string.
    Htu,
    /// `iat`, a number.
    Iat,
    /// `ath`, a string; with a token only.
    Ath,
    /// `nonce`, a string.
    Nonce,
}

impl Claim {
    pub(super) fn denial_code(self) -> &'static str {
        match self {
            Self::Jti => "proof_claim_jti",
            Self::Htm => "proof_claim_htm",
            Self::Htu => "proof_claim_htu",
            Self::Iat => "proof_claim_iat",
            Self::Ath => "proof_claim_ath",
            Self::Nonce => "proof_claim_nonce",
        }
    }
}

/// `security.senderConstraints.dpop`: times, nonces and the replay log.
#[derive(Clone, Copy, Debug)]
pub struct ProofRules {
    /// How old a proof may be.
    pub proof_lifetime: Duration,
    /// How far a client's clock may be off, either way.
    pub clock_skew: Duration,
    /// How long a proof is remembered.
    pub replay_window: Duration,
    /// How long a nonce is good; `None`: nonces are off.
    pub nonce_ttl: Option<Duration>,
    /// Whether a valid nonce decides freshness alone.
    pub nonce_replaces_iat: bool,
}
