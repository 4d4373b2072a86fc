//! What the requests of one connection share.

use std::any::Any;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use http::StatusCode;
use pingora::http::ResponseHeader;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::proxy::Session;

use super::guard::HeadClock;
use super::stream::Exchanges;
use super::trust::Shown;
use crate::policy::certificate::SenderCertificate;
use crate::policy::proxy_header::Source;

/// What the requests of one connection share.
#[derive(Debug)]
pub struct Connection {
    /// The address of the socket's other end.
    pub peer: Option<IpAddr>,
    /// What its PROXY header says, where there is one.
    pub source: Source,
    /// What TLS knows; `None` on a plain listener.
    pub tls: Option<Tls>,
    /// Whether a request of it rested on a certificate that a proxy handed on.
    pub hands_on: AtomicBool,
    /// To be told when a head is complete and when an answer is.
    pub head: HeadClock,
    /// Those that the client's certificate can end.
    pub exchanges: Exchanges,
}

/// What a handshake leaves.
#[derive(Debug, Default)]
pub struct Tls {
    /// The client's certificate, chain and possession verified in the handshake.
    pub certificate: Option<Arc<SenderCertificate>>,
    /// Its chain, to be verified again when trust changes.
    pub shown: Option<Shown>,
    /// DNS names in the client's certificate.
    pub names: Vec<String>,
    /// The name that the client asked for.
    pub server_name: Option<String>,
}

impl Connection {
    /// The client's chain.
    #[must_use]
    pub fn shown(&self) -> Option<&Shown> {
        self.tls.as_ref()?.shown.as_ref()
    }

    /// The name that the client asked for.
    #[must_use]
    pub fn server_name(&self) -> Option<&str> {
        self.tls.as_ref()?.server_name.as_deref()
    }
}

/// pingora hands a connection's facts on in its digest. The place for those of a TLS handshake exists
/// only where there is one; this one, for what a proxy answered to CONNECT, is nobody's downstream.
pub(super) fn carry(connection: &Arc<Connection>) -> Option<Arc<ProxyDigest>> {
    let user_data: Box<dyn Any + Send + Sync> = Box::new(Arc::clone(connection));
    let response = ResponseHeader::build(StatusCode::OK, Some(0)).ok()?;
    Some(Arc::new(ProxyDigest::new(Box::new(response), Some(user_data))))
}

/// The facts of a request's connection.
#[must_use]
pub fn of(session: &Session) -> Option<&Arc<Connection>> {
    session.digest()?.proxy_digest.as_ref()?.user_data.as_ref()?.downcast_ref()
}
