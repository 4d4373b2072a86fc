//! What the edge believes of where a request comes from and whose certificate it shows, beyond what
//! its own socket and handshake say.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::HeaderMap;

use super::connection::Connection;
use crate::config::Listener;
use crate::policy::certificate::SenderCertificate;
use crate::policy::client_cert::{self, Field};
use crate::policy::denial::Denial;
use crate::policy::proxies::{Proxies, Whence};
use crate::policy::proxy_header::Source;
use crate::policy::request::Sender;
use crate::policy::time::UnixTime;

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

/// Whether a connection is one that its listener would take as it is configured now.
pub(super) fn may_go_on(connection: &Connection, listener: &Listener) -> bool {
    let (proxies, peer) = (&listener.proxies, connection.peer);
    let told = connection.source != Source::Socket;
    connection.tls.is_some() == listener.tls.is_some()
        && told == listener.proxy_protocol
        && (connection.tls.is_some() || proxies.may_connect_plainly(peer))
        && (!told || proxies.may_name_a_source(peer))
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

/// The field in which whoever speaks on a connection hands certificates on, where it is believed them.
pub(super) fn handing_on(
    proxies: &Proxies,
    connection: &Connection,
    withdrawn: bool,
) -> Option<Field> {
    let own = connection.tls.as_ref();
    let names = own.filter(|tls| tls.certificate.is_some() && !withdrawn);
    let names = names.map(|tls| tls.names.as_slice());
    let speaker = proxies.speaker(connection.peer, connection.source)?;
    speaker.certificate.filter(|_| speaker.proven(connection.peer, connection.source, names))
}

/// Whose certificate it shows: the one that a proxy hands on, where it is believed that, unless it has
/// expired at `now`; else the connection's own, unless that is `withdrawn`, or somebody who sent on what
/// is another's.
///
/// # Errors
/// [`Denial::ClientCertInvalid`].
pub(super) fn certificate(
    proxies: &Proxies,
    connection: &Connection,
    whence: &Whence,
    withdrawn: bool,
    headers: &HeaderMap,
    now: UnixTime,
) -> Result<Shown, Denial> {
    if let Some(field) = handing_on(proxies, connection, withdrawn) {
        let handed_on = client_cert::read(headers, field).map_err(|_| Denial::ClientCertInvalid)?;
        let handed_on = handed_on.filter(|it| now.secs() <= it.leaf.not_after().secs());
        let (leaf, chain) = handed_on.map(|it| (Arc::new(it.leaf), it.chain)).unzip();
        if leaf.is_some() {
            connection.hands_on.store(true, Ordering::Release);
        }
        return Ok(Shown { context: true, leaf, handed_on: Some(chain.unwrap_or_default()) });
    }
    let own = connection.tls.as_ref();
    let leaf = own.and_then(|tls| tls.certificate.as_ref()).filter(|_| !withdrawn);
    // Who sends on what comes from elsewhere is not its sender.
    let leaf = leaf.filter(|_| !whence.forwarded).map(Arc::clone);
    Ok(Shown { context: own.is_some(), leaf, handed_on: None })
}
