//! Every refusal: one variant for each misdeed, with a stable code.
//!
//! What a refusal looks like on the wire is decided in `edge::respond`, in one match.

use super::proof::Claim;
pub use all::ALL;
pub use authority::AuthorityFault;
pub use lack::Lack;

mod all;
mod authority;
mod lack;

/// Why a request is refused. The variants stand by what they are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    // The request itself.
    /// A field, the head or a field count past its limit.
    HeadTooLarge,
    /// No `Host`, or one that is no host.
    HostInvalid,
    /// A path with an encoded separator, a backslash, a control byte, a broken escape, an empty
    /// segment, dots before a `;`, or not in origin form.
    PathInvalid,
    /// One in front who is believed says where it comes from in a way that cannot be read, or
    /// contradicts itself.
    ForwardedInvalid,
    /// One in front who is believed hands on a client certificate that cannot be read.
    ClientCertInvalid,
    /// One in front who is believed says that the client spoke another scheme than that of the route's
    /// external origin.
    OriginScheme,
    /// The host belongs to another TLS policy than the one its SNI chose (RFC 9110 section 15.5.20).
    Misdirected,
    /// No route has this host and path.
    RouteUnknown,
    /// The route does not take this method.
    MethodNotAllowed,
    /// A preflight asks for an origin, method or field that the route's `cors` does not allow.
    OriginRefused,
    /// `access_token` in the query (RFC 9449 section 7.1 has no such form; RFC 6750 section 5.3).
    TokenInQuery,

    // The credentials as presented.
    /// No token.
    TokenMissing,
    /// More than one `Authorization`.
    AuthorizationRepeated,
    /// `Authorization` is no `scheme SP token68`, or longer than its limit.
    AuthorizationMalformed,

    // The token.
    /// Not a compact JWS of JSON objects, or with duplicate members.
    TokenMalformed,
    /// `typ` is not the issuer's.
    TokenType,
    /// `alg` is `none`, symmetric, not the issuer's, or does not fit the key.
    TokenAlgorithm,
    /// `crit` is present.
    TokenCritical,
    /// `iss` names no configured issuer.
    TokenIssuer,
    /// No key of the issuer fits `kid` and `alg`.
    TokenKeyUnknown,
    /// The signature does not verify.
    TokenSignature,
    /// A required claim is missing or has the wrong type.
    TokenClaim,
    /// `aud` names none of the issuer's audiences.
    TokenAudience,
    /// `exp` has passed.
    TokenExpired,
    /// `nbf` lies ahead.
    TokenNotYetValid,
    /// `cnf` cannot be read.
    TokenConfirmation,
    /// The issuer says that the token is not active (RFC 7662 section 2.2).
    TokenInactive,
    /// The issuer was not asked about an opaque token, or gave no answer that can be read. `edge` asks
    /// and comes again; what it then still is, is a refusal.
    IntrospectionUnavailable,
    /// The tenant that the token names is not configured, or not its issuer's.
    TenantUnknown,
    /// `aud` names none of the route's audiences.
    RouteAudience,
    /// The token lacks a scope that the route needs.
    ScopeMissing,
    /// The authentication behind the token is older than the route allows, or the token does not say
    /// when it was.
    AuthenticationStale,
    /// `acr` is none of the route's.
    AcrInsufficient,

    // The proof: RFC 9449 section 4.3, by its numbers.
    /// A proof is required and none was sent.
    ProofMissing,
    /// 1: more than one `DPoP` field.
    ProofRepeated,
    /// 2: longer than its limit.
    ProofTooLarge,
    /// 2: not one well-formed JWT.
    ProofMalformed,
    /// 2: `crit` is present, no extension is understood (RFC 7515 section 4.1.11).
    ProofCritical,
    /// 3: a required claim is missing, empty, too long or of the wrong type.
    ProofClaim(Claim),
    /// 4: `typ` is not `dpop+jwt`.
    ProofType,
    /// 5: `alg` is not an allowed asymmetric algorithm or does not fit the key.
    ProofAlgorithm,
    /// 5: the `jwk` is missing, malformed, weak or off its curve.
    ProofKey,
    /// 6: the signature does not verify.
    ProofSignature,
    /// 7: the `jwk` has a private member.
    ProofPrivateKey,
    /// 8: `htm` is not the method.
    ProofMethod,
    /// 9: `htu` is not the target.
    ProofTarget,
    /// 10: no nonce where one is needed.
    NonceAbsent,
    /// 10: a nonce of ours, too old.
    NonceExpired,
    /// 10: not a nonce of ours.
    NonceUnknown,
    /// 10: a nonce of ours that another proof has used up.
    NonceSpent,
    /// 11: `iat` too long ago.
    ProofStale,
    /// 11: `iat` ahead of the clock.
    ProofFuture,
    /// 11: issued before the memory of proofs began that it would be held against: this process's, or
    /// the epoch of a shared store.
    ProofBeforeStart,
    /// 11: issued after another process took this one's place, in whose memory it is looked for.
    ProofAfterHandover,
    /// 12a: `ath` is not the hash of the token.
    ProofTokenHash,

    // The binding.
    /// A bound token sent as `Bearer`.
    Downgrade,
    /// An unbound token sent as `DPoP` (RFC 9449 section 7.1).
    TokenUnbound,
    /// The token is bound to less than the rule demands.
    BindingTooWeak,
    /// The token is bound to a key and DPoP is switched off.
    DpopDisabled,
    /// The token is bound to a certificate and mTLS is switched off.
    MtlsDisabled,
    /// 12b: the proof's key is not the one in `cnf.jkt`.
    KeyMismatch,
    /// The connection has no TLS facts.
    CertificateContextMissing,
    /// No client certificate was presented.
    CertificateMissing,
    /// The client certificate is not the one in `cnf.x5t#S256`.
    CertificateMismatch,

    /// At an authorization server.
    Authority(AuthorityFault),

    // What only the stores know.
    /// The proof was used before.
    Replayed,
    /// The replay log is full of live proofs.
    ReplayCapacity,
    /// A store that the decision needs is down.
    StoreDown,
}

/// The `result` label of `authority_dpop_result_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DpopResult {
    /// Admitted.
    Ok,
    /// No proof where one is needed.
    Missing,
    /// A faulty proof, token or request.
    Invalid,
    /// A nonce is needed.
    Nonce,
    /// Used before.
    Replay,
    /// Bound to another key or certificate.
    Mismatch,
    /// Let through by the temporary bypass.
    Bypass,
    /// Let through by `mode: observe`.
    Observe,
}

impl DpopResult {
    /// Every value, in label order.
    pub const ALL: [Self; 8] = [
        Self::Ok,
        Self::Missing,
        Self::Invalid,
        Self::Nonce,
        Self::Replay,
        Self::Mismatch,
        Self::Bypass,
        Self::Observe,
    ];

    /// The label's value.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Missing => "missing",
            Self::Invalid => "invalid",
            Self::Nonce => "nonce",
            Self::Replay => "replay",
            Self::Mismatch => "mismatch",
            Self::Bypass => "bypass",
            Self::Observe => "observe",
        }
    }
}

impl Denial {
    /// The stable code: what records, answers and the runbook call it.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::HeadTooLarge => "head_too_large",
            Self::HostInvalid => "host_invalid",
            Self::PathInvalid => "path_invalid",
            Self::ForwardedInvalid => "forwarded_invalid",
            Self::ClientCertInvalid => "client_cert_invalid",
            Self::OriginScheme => "origin_scheme",
            Self::Misdirected => "misdirected",
            Self::RouteUnknown => "route_unknown",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::OriginRefused => "origin_refused",
            Self::TokenInQuery => "token_in_query",
            Self::TokenMissing => "token_missing",
            Self::AuthorizationRepeated => "authorization_repeated",
            Self::AuthorizationMalformed => "authorization_malformed",
            Self::TokenMalformed => "token_malformed",
            Self::TokenType => "token_typ",
            Self::TokenAlgorithm => "token_alg",
            Self::TokenCritical => "token_crit",
            Self::TokenIssuer => "token_iss",
            Self::TokenKeyUnknown => "token_key_unknown",
            Self::TokenSignature => "token_signature",
            Self::TokenClaim => "token_claim",
            Self::TokenAudience => "token_aud",
            Self::TokenExpired => "token_expired",
            Self::TokenNotYetValid => "token_not_yet_valid",
            Self::TokenConfirmation => "token_cnf",
            Self::TokenInactive => "token_inactive",
            Self::IntrospectionUnavailable => "introspection_unavailable",
            Self::TenantUnknown => "tenant_unknown",
            Self::RouteAudience => "route_audience",
            Self::ScopeMissing => "scope_missing",
            Self::AuthenticationStale => "authentication_stale",
            Self::AcrInsufficient => "acr_insufficient",
            Self::ProofMissing => "proof_missing",
            Self::ProofRepeated => "proof_repeated",
            Self::ProofTooLarge => "proof_too_large",
            Self::ProofMalformed => "proof_malformed",
            Self::ProofCritical => "proof_crit",
            Self::ProofClaim(claim) => claim.denial_code(),
            Self::ProofType => "proof_typ",
            Self::ProofAlgorithm => "proof_alg",
            Self::ProofKey => "proof_jwk",
            Self::ProofSignature => "proof_signature",
            Self::ProofPrivateKey => "proof_private_key",
            Self::ProofMethod => "proof_htm",
            Self::ProofTarget => "proof_htu",
            Self::NonceAbsent => "nonce_absent",
            Self::NonceExpired => "nonce_expired",
            Self::NonceUnknown => "nonce_unknown",
            Self::NonceSpent => "nonce_spent",
            Self::ProofStale => "proof_iat_old",
            Self::ProofFuture => "proof_iat_ahead",
            Self::ProofBeforeStart => "proof_before_start",
            Self::ProofAfterHandover => "proof_after_handover",
            Self::ProofTokenHash => "proof_ath",
            Self::Downgrade => "bound_token_as_bearer",
            Self::TokenUnbound => "unbound_token_as_dpop",
            Self::BindingTooWeak => "binding_too_weak",
            Self::DpopDisabled => "dpop_disabled",
            Self::MtlsDisabled => "mtls_disabled",
            Self::KeyMismatch => "key_mismatch",
            Self::CertificateContextMissing => "context-missing",
            Self::CertificateMissing => "missing-certificate",
            Self::CertificateMismatch => "thumbprint-mismatch",
            Self::Authority(fault) => fault.code(),
            Self::Replayed | Self::ReplayCapacity | Self::StoreDown => self.store_code(),
        }
    }

    fn store_code(self) -> &'static str {
        if self == Self::Replayed {
            "proof_replayed"
        } else if self == Self::ReplayCapacity {
            "replay_capacity"
        } else {
            "store_down"
        }
    }

    /// Whether `mode: observe` lets it pass: proof, nonce, binding and replay, and nothing else.
    /// A replay log that is full or down is counted in observe mode, not refused.
    #[must_use]
    pub fn observable(self) -> bool {
        self.lack().is_some()
    }

    /// Whether a fresh nonce is all that is needed.
    #[must_use]
    pub fn is_about_nonce(self) -> bool {
        matches!(
            self,
            Self::NonceAbsent | Self::NonceExpired | Self::NonceUnknown | Self::NonceSpent
        )
    }

    /// How it is counted.
    #[must_use]
    #[expect(clippy::wildcard_enum_match_arm, reason = "what is not named is a plain fault")]
    pub fn result(self) -> DpopResult {
        match self {
            Self::ProofMissing => DpopResult::Missing,
            _ if self.is_about_nonce() => DpopResult::Nonce,
            Self::Replayed => DpopResult::Replay,
            Self::KeyMismatch
            | Self::Authority(AuthorityFault::IssuedMismatch)
            | Self::CertificateContextMissing
            | Self::CertificateMissing
            | Self::CertificateMismatch => DpopResult::Mismatch,
            _ => DpopResult::Invalid,
        }
    }
}
