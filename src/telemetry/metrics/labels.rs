//! What labels range over.

use crate::policy::rule::{Role, TenantId};

/// The place of a role in label order.
pub(super) fn role_index(role: Role) -> usize {
    Role::ALL.iter().position(|known| *known == role).unwrap_or_default()
}

/// The tenant label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenant {
    /// The request has none: no token, or one of an issuer without tenants.
    Default,
    /// A configured one.
    Known(TenantId),
    /// Any other.
    Other,
}

/// The `reason` label of `authority_dpop_nonce_miss_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonceMiss {
    /// The proof has no nonce.
    Absent,
    /// Ours, too old.
    Expired,
    /// Not ours.
    Unknown,
    /// Ours, and spent.
    Replayed,
}

impl NonceMiss {
    pub(super) const ALL: [Self; 4] = [Self::Absent, Self::Expired, Self::Unknown, Self::Replayed];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Expired => "expired",
            Self::Unknown => "unknown",
            Self::Replayed => "replayed",
        }
    }
}

/// The `reason` label of `holdfast_spans_dropped_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanLoss {
    /// Too many waited to be sent.
    QueueFull,
    /// The collector was away, or refused them.
    NotTaken,
}

impl SpanLoss {
    pub(super) const ALL: [Self; 2] = [Self::QueueFull, Self::NotTaken];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::NotTaken => "not_taken",
        }
    }
}

/// The `reason` label of `authority_mtls_mismatch_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateMiss {
    /// No TLS facts for the connection.
    ContextMissing,
    /// No client certificate.
    MissingCertificate,
    /// Another certificate.
    ThumbprintMismatch,
}

impl CertificateMiss {
    pub(super) const ALL: [Self; 3] =
        [Self::ContextMissing, Self::MissingCertificate, Self::ThumbprintMismatch];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ContextMissing => "context-missing",
            Self::MissingCertificate => "missing-certificate",
            Self::ThumbprintMismatch => "thumbprint-mismatch",
        }
    }
}

/// The `stage` label of `holdfast_request_duration_seconds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// From the request head to the decision.
    Decision,
    /// From the decision to the head of the upstream's answer.
    Upstream,
    /// From the request head to the end of the answer.
    Total,
}

impl Stage {
    pub(super) const ALL: [Self; 3] = [Self::Decision, Self::Upstream, Self::Total];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Decision => "decision",
            Self::Upstream => "upstream",
            Self::Total => "total",
        }
    }
}

/// Why a connection came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionLoss {
    /// The listener was full.
    Full,
    /// The handshake failed.
    Handshake,
    /// The handshake took too long.
    HandshakeTimeout,
    /// The request head took too long.
    HeadTimeout,
    /// It did not begin with a PROXY header where one must be.
    ProxyHeader,
    /// Whoever connected may not: a stranger on a plain listener, or where a PROXY header must be.
    Untrusted,
}

impl ConnectionLoss {
    pub(super) const ALL: [Self; 6] = [
        Self::Full,
        Self::Handshake,
        Self::HandshakeTimeout,
        Self::HeadTimeout,
        Self::ProxyHeader,
        Self::Untrusted,
    ];

    /// The label's value.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Handshake => "handshake",
            Self::HandshakeTimeout => "handshake-timeout",
            Self::HeadTimeout => "head-timeout",
            Self::ProxyHeader => "proxy-header",
            Self::Untrusted => "untrusted",
        }
    }
}

/// The `result` label of `holdfast_introspection_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntrospectionResult {
    /// The issuer vouches for the token.
    Active,
    /// It does not.
    Inactive,
    /// It does, but what it says of the token does not hold here.
    Refused,
    /// No answer, or none that can be read.
    Failed,
    /// Not asked: too many questions were under way.
    Busy,
}

impl IntrospectionResult {
    pub(super) const ALL: [Self; 5] =
        [Self::Active, Self::Inactive, Self::Refused, Self::Failed, Self::Busy];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Inactive => "inactive",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Busy => "busy",
        }
    }
}
