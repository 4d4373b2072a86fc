//! HTTP over TLS with a client certificate or without.
//!
//! Invariant: one [`Client`] presents one certificate or none. Who needs another makes another
//! client, and with it another connection pool and TLS session cache.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Version};
use reqwest::{Certificate, Identity, Url, redirect};

/// Time to connect, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two reads of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Whom to trust, who to be, and how to speak.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// PEM of the authorities that the server's certificate must chain to; `None`: the system's.
    pub authorities: Option<Vec<u8>>,
    /// The client's certificate chain and private key, PEM.
    pub identity: Option<ClientIdentity>,
    /// The server's certificate is not verified.
    pub insecure: bool,
    /// HTTP versions.
    pub versions: Versions,
    /// A host's address in place of what DNS says.
    pub resolve: Option<(String, SocketAddr)>,
    /// The address, one of this machine's, to connect from; `None`: the system chooses.
    pub from: Option<IpAddr>,
}

/// A client certificate with its key, PEM each.
#[derive(Clone)]
pub struct ClientIdentity {
    /// The chain, leaf first.
    pub certificate: Vec<u8>,
    /// PKCS #8, PKCS #1 or SEC 1.
    pub key: zeroize::Zeroizing<Vec<u8>>,
}

/// Without the key.
impl std::fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientIdentity").finish_non_exhaustive()
    }
}

/// Which HTTP versions are offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Versions {
    /// What TLS agrees on: HTTP/2, else HTTP/1.1.
    #[default]
    Agreed,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only; without TLS with prior knowledge.
    Http2,
}

/// What stands between a request and its answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The authorities' PEM.
    #[error("no certificate authority in it: a PEM block \"CERTIFICATE\" is expected")]
    Authorities,
    /// The client's certificate or key.
    #[error("client certificate or key unusable: {0}")]
    Identity(String),
    /// Anything that TLS, the socket or the protocol said.
    #[error("{0}")]
    Transport(String),
    /// The body is larger than the caller takes.
    #[error("the answer's body is larger than {0} bytes")]
    TooLarge(usize),
}

/// The head of an answer, its body still to be read.
#[derive(Debug)]
pub struct Answer {
    response: reqwest::Response,
}

/// Sends requests; see the module's invariant.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
}

impl Client {
    /// Follows no redirect (a proof is good for one target), uses no proxy, adds no cookie.
    ///
    /// # Errors
    /// When a certificate or key cannot be used.
    pub fn new(settings: Settings) -> Result<Self, HttpError> {
        // The first provider stays; whoever was here before installed the same one.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("holdfast/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .local_address(settings.from)
            .tls_danger_accept_invalid_certs(settings.insecure);
        if let Some(pem) = &settings.authorities {
            let authorities =
                Certificate::from_pem_bundle(pem).map_err(|_| HttpError::Authorities)?;
            if authorities.is_empty() {
                return Err(HttpError::Authorities);
            }
            builder = builder.tls_certs_only(authorities);
        }
        if let Some(identity) = settings.identity {
            builder = builder.identity(read_identity(&identity)?);
        }
        if let Some((host, address)) = &settings.resolve {
            builder = builder.resolve(host, *address);
        }
        builder = match settings.versions {
            Versions::Agreed => builder,
            Versions::Http1 => builder.http1_only(),
            Versions::Http2 => builder.http2_prior_knowledge(),
        };
        let http = builder.build().map_err(|error| HttpError::Identity(causes(&error)))?;
        Ok(Self { http })
    }

    /// Sends one request and waits for the head of its answer.
    ///
    /// # Errors
    /// When no connection or no answer comes of it.
    pub async fn send(
        &self,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Answer, HttpError> {
        let mut request = self.http.request(method, url).headers(headers);
        if !body.is_empty() {
            request = request.body(body);
        }
        let response = request.send().await.map_err(transport)?;
        Ok(Answer { response })
    }
}

impl Answer {
    /// The status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The version it came by.
    #[must_use]
    pub fn version(&self) -> Version {
        self.response.version()
    }

    /// All fields.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The next piece of the body, `None` at its end.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, HttpError> {
        self.response.chunk().await.map_err(transport)
    }

    /// The rest of the body.
    ///
    /// # Errors
    /// When the connection breaks, or it is longer than `limit` bytes.
    pub async fn body(&mut self, limit: usize) -> Result<Vec<u8>, HttpError> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if body.len() + chunk.len() > limit {
                return Err(HttpError::TooLarge(limit));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

fn read_identity(identity: &ClientIdentity) -> Result<Identity, HttpError> {
    let mut pem = zeroize::Zeroizing::new(identity.certificate.clone());
    pem.push(b'\n');
    pem.extend_from_slice(&identity.key);
    Identity::from_pem(&pem).map_err(|error| HttpError::Identity(causes(&error)))
}

/// An error with its causes, outermost first, and with what to do about the frequent ones.
fn transport(error: reqwest::Error) -> HttpError {
    let text = causes(&error.without_url());
    let advice = [
        ("UnknownIssuer", "give the server's authority by --cacert FILE"),
        (
            "alert: CertificateRequired",
            "the server demands a client certificate: --cert and --cert-key",
        ),
        ("alert: UnknownCA", "the server does not know the client certificate's authority"),
        ("alert: CertificateUnknown", "the server does not take the client certificate"),
        ("alert: CertificateExpired", "the client certificate has expired"),
    ];
    match advice.iter().find(|(sign, _)| text.contains(sign)) {
        Some((_, advice)) => HttpError::Transport(format!("{text} ({advice})")),
        None => HttpError::Transport(text),
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = cause.source();
    }
    text
}
