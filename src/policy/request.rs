//! The request as the decisions see it.

use std::fmt;

use http::HeaderMap;

use super::certificate::SenderCertificate;
use super::time::UnixTime;

/// What the sender showed of itself on the connection.
#[derive(Clone, Copy, Debug)]
pub enum Sender<'a> {
    /// The connection carries no TLS facts, so nothing can be said about a certificate.
    NoContext,
    /// TLS, without a client certificate.
    NoCertificate,
    /// TLS with a client certificate whose chain and possession were verified.
    Certificate(&'a SenderCertificate),
}

impl<'a> Sender<'a> {
    /// What it showed that still counts at `now`: a certificate that has expired since the handshake,
    /// or before a session was resumed, is none.
    #[must_use]
    pub fn at(self, now: UnixTime) -> Self {
        match self {
            Self::Certificate(shown) if now.secs() > shown.not_after().secs() => {
                Self::NoCertificate
            }
            Self::NoContext | Self::NoCertificate | Self::Certificate(_) => self,
        }
    }

    /// The certificate, if it showed one.
    #[must_use]
    pub fn certificate(self) -> Option<&'a SenderCertificate> {
        match self {
            Self::Certificate(shown) => Some(shown),
            Self::NoContext | Self::NoCertificate => None,
        }
    }
}

/// One request, after normalisation and routing. Borrowed: nothing is copied to decide.
#[derive(Clone, Copy)]
pub struct RequestView<'a> {
    /// The method as sent; case counts (RFC 9110 section 9.1).
    pub method: &'a str,
    /// The normalised path that was routed on, without query.
    pub path: &'a str,
    /// The query without its `?`.
    pub query: Option<&'a str>,
    /// All header fields as received.
    pub headers: &'a HeaderMap,
    /// Who sent it, as far as TLS tells.
    pub sender: Sender<'a>,
}

/// Without query and fields, which carry tokens and proofs.
impl fmt::Debug for RequestView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestView")
            .field("method", &self.method)
            .field("path", &self.path)
            .field("sender", &self.sender)
            .finish_non_exhaustive()
    }
}
