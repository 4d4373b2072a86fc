//! What the edge believes of where a request comes from and whose certificate it shows, beyond what
//! its own socket and handshake say.

use std::sync::Arc;

use http::HeaderMap;

use super::connection::Connection;
use crate::policy::certificate::SenderCertificate;
use crate::policy::client_cert;
use crate::policy::denial::Denial;
use crate::policy::proxies::{Proxies, Whence};
use crate::policy::request::Sender;

/// The certificate that counts as the sender's.
#[derive(Clone, Debug, Default)]
pub(super) struct Shown {
    /// Whether anything can be said about a certificate.
    context: bool,
    /// The leaf.
    leaf: Option<Arc<SenderCertificate>>,
    /// What it chains to, as a proxy handed it on; `None` for the connection's own.
    handed_on: Option<Vec<Vec<u8>>>,
}

impl Shown {
    /// As the decisions see it.
    #[must_use]
    pub(super) fn sender(&self) -> Sender<'_> {
        match &self.leaf {
            Some(certificate) => Sender::Certificate(certificate),
            None if self.context => Sender::NoCertificate,
            None => Sender::NoContext,
        }
    }

    /// The leaf.
    #[must_use]
    pub(super) fn leaf(&self) -> Option<&SenderCertificate> {
        self.leaf.as_deref()
    }

    /// What the leaf chains to, DER, as far as it was shown.
    pub(super) fn issuers<'a>(&'a self, connection: &'a Connection) -> Vec<&'a [u8]> {
        match (&self.handed_on, connection.shown()) {
            (Some(chain), _) => chain.iter().map(Vec::as_slice).collect(),
            (None, Some(shown)) => shown.chain().iter().skip(1).map(AsRef::as_ref).collect(),
            (None, None) => Vec::new(),
        }
    }
}

/// Where a request comes from.
///
/// # Errors
/// [`Denial::ForwardedInvalid`].
pub(super) fn whence(
    proxies: &Proxies,
    connection: &Connection,
    headers: &HeaderMap,
) -> Result<Whence, Denial> {
    let whence = proxies.whence(connection.peer, connection.source, headers);
    whence.map_err(|_| Denial::ForwardedInvalid)
}

/// Whose certificate it shows: the one that a proxy hands on, where it is believed that; else the
/// connection's own, unless that is `withdrawn`, or somebody who sent on what is another's.
///
/// # Errors
/// [`Denial::ClientCertInvalid`].
pub(super) fn certificate(
    proxies: &Proxies,
    connection: &Connection,
    whence: &Whence,
    withdrawn: bool,
    headers: &HeaderMap,
) -> Result<Shown, Denial> {
    let own = connection.tls.as_ref();
    let leaf = own.and_then(|tls| tls.certificate.as_ref()).filter(|_| !withdrawn);
    let names = own.filter(|_| leaf.is_some()).map(|tls| tls.names.as_slice());
    let speaker = proxies.speaker(connection.peer, connection.source);
    let field = speaker
        .filter(|proxy| proxy.proven(connection.peer, connection.source, names))
        .and_then(|proxy| proxy.certificate);
    if let Some(field) = field {
        let handed_on = client_cert::read(headers, field).map_err(|_| Denial::ClientCertInvalid)?;
        let (leaf, chain) = handed_on.map(|it| (Arc::new(it.leaf), it.chain)).unzip();
        return Ok(Shown { context: true, leaf, handed_on: Some(chain.unwrap_or_default()) });
    }
    // Who sends on what comes from elsewhere is not its sender.
    let leaf = leaf.filter(|_| !whence.forwarded).map(Arc::clone);
    Ok(Shown { context: own.is_some(), leaf, handed_on: None })
}
