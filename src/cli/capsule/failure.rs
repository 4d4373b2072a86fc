//! Why there is no capsule, and with which status the command ends for it.

use std::fmt;
use std::io;
use std::time::Duration;

use serde_json::{Value, json};

use super::fault::Fault;
use super::files::FileError;
use crate::cli::client::http::HttpError;
use crate::cli::client::key::KeyError;
use crate::cli::client::trace::clean;
use crate::policy::token::KeySetError;

/// One variant for each thing that can come in between. Each is one line.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path}: {error}")]
    Key { path: String, error: KeyError },
    #[error(transparent)]
    Sign(#[from] KeyError),
    #[error("{path}: {error}")]
    KeySet { path: String, error: KeySetError },
    #[error("{whose}: {error}")]
    Client { whose: String, error: HttpError },
    /// The edge cannot say, and may be able to later.
    #[error("{}", .0.cause)]
    Later(Later),
    #[error("no answer: {cause} (attempts: {requests})")]
    GaveUp { requests: u32, cause: String },
    #[error("{0}: not an answer to expect of the edge; is this its origin?")]
    Unexpected(String),
    #[error("refused: {0}")]
    Refused(Denial),
    #[error("not believed: {0}")]
    Disbelieved(#[from] Fault),
    #[error("interrupted")]
    Interrupted,
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

/// A reason to ask again.
#[derive(Debug)]
pub(super) struct Later {
    /// Why.
    pub(super) cause: String,
    /// `Retry-After`.
    pub(super) wish: Option<Duration>,
}

impl Failure {
    /// 1: the edge refused, or is not believed. 2: everything else.
    pub(super) fn status(&self) -> u8 {
        match self {
            Self::Refused(_) | Self::Disbelieved(_) => 1,
            Self::Usage(_)
            | Self::File(_)
            | Self::Key { .. }
            | Self::Sign(_)
            | Self::KeySet { .. }
            | Self::Client { .. }
            | Self::Later(_)
            | Self::GaveUp { .. }
            | Self::Unexpected(_)
            | Self::Interrupted
            | Self::Output(_) => 2,
        }
    }

    /// As one JSON document.
    pub(super) fn document(&self) -> Value {
        let Self::Refused(denial) = self else {
            return json!({"granted": false, "error": self.to_string()});
        };
        json!({
            "granted": false,
            "reason": denial.reason,
            "status": denial.status,
            "riskScore": denial.risk,
            "decisionId": denial.decision,
        })
    }
}

/// A refusal. Its texts are the edge's, cleaned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Denial {
    /// The status.
    pub(super) status: u16,
    /// `reason`; `error` where another part of the edge refused.
    pub(super) reason: Option<String>,
    /// `riskScore`.
    pub(super) risk: Option<u64>,
    /// `decisionId`.
    pub(super) decision: Option<String>,
}

impl Denial {
    /// Reads a refusal; what its body does not say stays unsaid.
    pub(super) fn read(status: u16, body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |name| body.get(name).and_then(Value::as_str).map(clean);
        Self {
            status,
            reason: text("reason").or_else(|| text("error")),
            risk: body.get("riskScore").and_then(Value::as_u64),
            decision: text("decisionId"),
        }
    }
}

/// What to do about the refusals that this side can do something about.
const ADVICE: [(&str, &str); 13] = [
    ("AUTHENTICATION_FAILED", "no such node, or not its secret"),
    ("NODE_QUARANTINED", "an operator must release it (holdfast node release)"),
    ("NODE_DISABLED", "an operator must enable it, or its time to join has passed"),
    ("NODE_REVOKED", "withdrawn for good; it must be enrolled anew"),
    ("SENDER_MISMATCH", "--key or --cert is not what this node is bound to, or none was given"),
    (
        "PROOF_NONCE_REQUIRED",
        "the edge wants a nonce and gives none that it takes, or --key is missing",
    ),
    ("FINGERPRINT_MISMATCH", "the fingerprint is not the one of the first capsule"),
    ("FINGERPRINT_CONFLICT", "something on the way adds another fingerprint"),
    (
        "NETWORK_POLICY_VIOLATION",
        "it comes from another network than it is known from, or stopped abruptly",
    ),
    ("NODE_VERSION_REQUIRED", "give --node-version"),
    ("KEY_VERSION_UNAVAILABLE", "there is no such --key-version, or it is retired"),
    (
        "SEAL_REQUIRED",
        "the edge gives keys sealed only: leave --no-seal out, and give --key or --cert",
    ),
    ("TELEMETRY_OUT_OF_ORDER", "another process reports for this boot"),
];

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = self.reason.as_deref();
        write!(f, "{} ({}", reason.unwrap_or("no reason was given"), self.status)?;
        if let Some(risk) = self.risk {
            write!(f, ", risk {risk}")?;
        }
        if let Some(decision) = &self.decision {
            write!(f, ", decision {decision}")?;
        }
        f.write_str(")")?;
        match ADVICE.iter().find(|(name, _)| Some(*name) == reason) {
            Some((_, advice)) => write!(f, ": {advice}"),
            None => Ok(()),
        }
    }
}
