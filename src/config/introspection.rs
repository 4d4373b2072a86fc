//! How an issuer is asked about its opaque tokens (RFC 7662).

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::CertificateFiles;

/// `introspection` of an issuer, what it says of the tokens apart
/// ([`IntrospectionRules`](crate::policy::introspection::IntrospectionRules)).
#[derive(Clone, Debug)]
pub struct Introspection {
    /// The endpoint, `https`, or `http` on a loopback address.
    pub url: String,
    /// The edge's own `client_id` there.
    pub client: String,
    /// How the edge says who it is.
    pub authentication: ClientAuthentication,
    /// PEM file of the authorities that sign the server's certificate; the system's otherwise.
    pub authorities: Option<PathBuf>,
    /// The time of one question, and the longest that a request waits for its answer.
    pub timeout: Duration,
    /// How long a token that was refused stays refused without asking again.
    pub negative_ttl: Duration,
    /// Tokens remembered, as many of those refused.
    pub cache_entries: usize,
    /// Questions under way at once.
    pub max_concurrent: usize,
}

impl Introspection {
    /// The certificate that the edge shows of itself.
    #[must_use]
    pub fn certificate(&self) -> Option<&PathBuf> {
        match &self.authentication {
            ClientAuthentication::Mtls(files) => Some(&files.certificate),
            ClientAuthentication::Basic(_) | ClientAuthentication::Post(_) => None,
        }
    }
}

/// How a client authenticates to its authorization server.
#[derive(Clone, Debug)]
pub enum ClientAuthentication {
    /// `client_secret_basic` (RFC 6749 section 2.3.1).
    Basic(Secret),
    /// `client_secret_post` (RFC 6749 section 2.3.1).
    Post(Secret),
    /// `tls_client_auth` (RFC 8705 section 2): the client certificate, and `client_id` in the body.
    Mtls(CertificateFiles),
}

/// A secret: never printed, and overwritten when the last copy goes.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<String>>);

impl Secret {
    pub(super) fn new(text: Zeroizing<String>) -> Self {
        Self(Arc::new(text))
    }

    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}
