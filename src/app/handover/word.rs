//! The words of a handover.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::policy::nonce::NonceSecret;

/// What is said, either way.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Word {
    /// With the sockets of these names.
    Sockets {
        version: u32,
        names: Vec<String>,
        /// Whether it wants to hear [`Self::Nonces`].
        #[serde(default)]
        nonces: bool,
    },
    /// What the next process makes its nonces from, base64url. What the one that served goes on to answer
    /// asks for these, as whoever is asked comes again at the next process.
    Nonces {
        secret: Secret,
    },
    Ready,
    /// What the one that serves admits is dated up to here, milliseconds since 1970; `None` where both
    /// share a memory of proofs.
    Line {
        line: Option<i64>,
    },
    Accepting,
    Yours,
    /// Why the next process does not begin.
    Declined {
        reason: String,
    },
}

/// A secret in base64url. Not to be printed.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Secret(Zeroizing<String>);

impl Secret {
    pub(super) fn of(secret: &NonceSecret) -> Self {
        Self(Zeroizing::new(URL_SAFE_NO_PAD.encode(secret.bytes())))
    }

    pub(super) fn read(&self) -> Option<NonceSecret> {
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(self.0.as_bytes()).ok()?);
        Some(NonceSecret::new(bytes.as_slice().try_into().ok()?))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}
