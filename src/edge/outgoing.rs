//! Requests of the edge's own, to an issuer: no redirect, no proxy of the environment, a time for the
//! whole of it, answers of bounded length.
//!
//! Invariant: whatever the edge asks beside upstreams and stores, it asks by a client from here, and
//! there is none without a [`Way`], which a sealed edge has to its upstreams' servers alone.

#![expect(clippy::disallowed_methods, reason = "a client's certificates are files")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::dns::{Name, Resolve, Resolving};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::config::CertificateFiles;
use crate::policy::reach::{Sealed, Way};

/// Why there is no client, or no answer.
#[derive(Debug, thiserror::Error)]
pub enum OutgoingError {
    /// A file cannot be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// Certificates in a file cannot be used.
    #[error("{}: {error}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: String,
    },
    /// No answer, or no TLS.
    #[error("{0}")]
    Http(String),
    /// A URL that the edge may not reach.
    #[error(transparent)]
    Sealed(#[from] Sealed),
    /// An answer other than 200.
    #[error("status {0}")]
    Status(u16),
    /// An answer longer than it can need to be.
    #[error("longer than {0} bytes")]
    TooLong(usize),
}

impl From<reqwest::Error> for OutgoingError {
    fn from(error: reqwest::Error) -> Self {
        // The URL may hold what came from the environment.
        let error = error.without_url();
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            text = format!("{text}: {inner}");
            cause = inner.source();
        }
        Self::Http(text)
    }
}

/// A client for what is at the end of `way`. It trusts `authorities` alone where they are configured,
/// and shows `identity` where there is one. `timeout` is for the whole of a request, its answer's body
/// included.
pub(super) fn client(
    way: &Way,
    authorities: Option<&PathBuf>,
    identity: Option<&CertificateFiles>,
    timeout: Duration,
    idle: usize,
) -> Result<reqwest::Client, OutgoingError> {
    let mut builder = reqwest::Client::builder()
        .tls_backend_rustls()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(timeout)
        .pool_max_idle_per_host(idle);
    if let Some((host, addresses)) = way.pinned() {
        builder = builder.dns_resolver(NoNames).resolve_to_addrs(host, addresses);
    }
    if let Some(path) = authorities {
        builder = builder.tls_certs_only(trusted(path)?);
    }
    if let Some(files) = identity {
        builder = builder.identity(shown(files)?);
    }
    Ok(builder.build()?)
}

/// Finds no address for any name.
struct NoNames;

impl Resolve for NoNames {
    fn resolve(&self, _name: Name) -> Resolving {
        Box::pin(std::future::ready(Err(Sealed.into())))
    }
}

fn trusted(path: &Path) -> Result<Vec<reqwest::Certificate>, OutgoingError> {
    let wrong = |error: String| OutgoingError::Certificates { path: path.to_owned(), error };
    let bytes = read(path)?;
    let mut trusted = Vec::new();
    for der in CertificateDer::pem_slice_iter(&bytes) {
        let der = der.map_err(|error| wrong(error.to_string()))?;
        trusted.push(reqwest::Certificate::from_der(&der)?);
    }
    if trusted.is_empty() {
        return Err(wrong("no certificate in it".to_owned()));
    }
    Ok(trusted)
}

fn shown(files: &CertificateFiles) -> Result<reqwest::Identity, OutgoingError> {
    let mut pem = zeroize::Zeroizing::new(read(&files.key)?);
    pem.push(b'\n');
    pem.extend_from_slice(&read(&files.certificate)?);
    reqwest::Identity::from_pem(&pem).map_err(|_| {
        // The parser's own words may quote the file.
        let error = "no certificate chain with its key".to_owned();
        OutgoingError::Certificates { path: files.certificate.clone(), error }
    })
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, OutgoingError> {
    std::fs::read(path).map_err(|error| OutgoingError::Read { path: path.to_owned(), error })
}

/// The body of a 200, of at most `limit` bytes.
pub(super) async fn body(
    mut response: reqwest::Response,
    limit: usize,
) -> Result<Vec<u8>, OutgoingError> {
    if response.status() != reqwest::StatusCode::OK {
        return Err(OutgoingError::Status(response.status().as_u16()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > limit {
            return Err(OutgoingError::TooLong(limit));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// One request that waits for somebody's answer.
pub(super) struct Waiter<'a>(&'a AtomicUsize);

impl<'a> Waiter<'a> {
    /// Joins those who wait, unless `most` do.
    pub(super) fn enter(most: usize, count: &'a AtomicUsize) -> Option<Self> {
        let waiter = (count.fetch_add(1, Ordering::AcqRel), Self(count));
        (waiter.0 < most).then_some(waiter.1)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::policy::reach::{Known, Reach};

    #[tokio::test]
    async fn a_sealed_edge_finds_its_upstreams_servers_and_no_other_name() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let _ = socket.read(&mut [0; 1024]).await;
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        });
        let known = Known { address, name: Some("as.internal".to_owned()) };
        let reach = Reach::of(true).with([known]);
        let url = format!("http://as.internal:{}/introspect", address.port());
        let way = reach.to(&url).unwrap();
        let client = client(&way, None, None, Duration::from_secs(5), 1).unwrap();
        let answer = client.get(&url).send().await.unwrap();
        assert_eq!(body(answer, 10).await.unwrap(), b"ok");
        let other = client.get("http://localhost:1/").send().await.unwrap_err();
        let other = OutgoingError::from(other).to_string();
        assert!(other.contains("the edge is sealed"), "{other}");
    }
}
