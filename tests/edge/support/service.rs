//! A service that does what a script says, well or badly, in clear or over TLS.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::client::Message;
use super::pki::Identity;

/// One thing that a service does after it has read the head of a request.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Reads the body, of which the head has the length.
    Body,
    /// Writes.
    Send(Vec<u8>),
    /// Waits for milliseconds.
    Wait(u64),
    /// Writes a byte at a time, with milliseconds between them.
    Trickle(Vec<u8>, u64),
    /// Writes this until nobody takes it.
    Endless(Vec<u8>),
    /// Closes the connection.
    Close,
}

/// A good answer with this body.
pub(crate) fn good(body: &str) -> Vec<Step> {
    vec![
        Step::Body,
        send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())),
    ]
}

pub(crate) fn send(text: &str) -> Step {
    Step::Send(text.as_bytes().to_vec())
}

/// From how many requests came before (on the connection, at all) and the head to what is done.
pub(crate) type Script = dyn Fn(usize, usize, &Message) -> Vec<Step> + Send + Sync;

/// A scripted service on a loopback port. It runs until the test's runtime ends.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) port: u16,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    bodies: Arc<Mutex<Vec<Vec<u8>>>>,
    /// The certificates that clients showed, one a connection that had one.
    certificates: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Service {
    pub(crate) async fn start(
        script: impl Fn(usize, usize, &Message) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        Self::start_over(None, script).await
    }

    /// Answers 400 to whatever comes, as an HTTP server in clear does to a handshake.
    pub(crate) async fn start_blunt() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let service = Self::on(listener.local_addr().expect("an address").port());
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let _ = socket.read_u8().await;
                let _ = write(&mut socket, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            }
        });
        service
    }

    /// Over TLS where there is a configuration.
    pub(crate) async fn start_over(
        tls: Option<ServerConfig>,
        script: impl Fn(usize, usize, &Message) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let service = Self::on(listener.local_addr().expect("an address").port());
        let script: Arc<Script> = Arc::new(script);
        let acceptor = tls.map(|tls| TlsAcceptor::from(Arc::new(tls)));
        let own = service.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                own.connections.fetch_add(1, Ordering::SeqCst);
                let _ = socket.set_nodelay(true);
                let (own, script, acceptor) = (own.clone(), Arc::clone(&script), acceptor.clone());
                tokio::spawn(async move {
                    let Some(acceptor) = acceptor else { return own.serve(socket, &script).await };
                    let stream = acceptor.accept(socket).await.ok()?;
                    if let Some([leaf, ..]) = stream.get_ref().1.peer_certificates() {
                        own.certificates.lock().expect("a whole list").push(leaf.to_vec());
                    }
                    own.serve(stream, &script).await
                });
            }
        });
        service
    }

    fn on(port: u16) -> Self {
        Self {
            port,
            connections: Arc::default(),
            requests: Arc::default(),
            bodies: Arc::default(),
            certificates: Arc::default(),
        }
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub(crate) fn bodies(&self) -> Vec<Vec<u8>> {
        self.bodies.lock().expect("a whole list").clone()
    }

    pub(crate) fn certificates(&self) -> Vec<Vec<u8>> {
        self.certificates.lock().expect("a whole list").clone()
    }

    async fn serve(
        &self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        script: &Arc<Script>,
    ) -> Option<()> {
        let mut unread = Vec::new();
        for nth in 0.. {
            let end = b"\r\n\r\n";
            let at = loop {
                if let Some(at) = unread.windows(end.len()).position(|window| window == end) {
                    break at;
                }
                if stream.read_buf(&mut unread).await.ok()? == 0 {
                    return None;
                }
            };
            let head: Vec<u8> = unread.drain(..at + end.len()).collect();
            let request = Message::parse(&head);
            let before = self.requests.fetch_add(1, Ordering::SeqCst);
            for step in script(nth, before, &request) {
                self.step(&mut stream, &mut unread, &request, step).await?;
            }
        }
        None
    }

    /// `None` when the connection is at its end.
    async fn step(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        unread: &mut Vec<u8>,
        request: &Message,
        step: Step,
    ) -> Option<()> {
        match step {
            Step::Body => {
                let length = request.one("content-length").and_then(|value| value.parse().ok());
                let length: usize = length.unwrap_or(0);
                while unread.len() < length {
                    if stream.read_buf(unread).await.ok()? == 0 {
                        return None;
                    }
                }
                let body: Vec<u8> = unread.drain(..length).collect();
                if !body.is_empty() {
                    self.bodies.lock().expect("a whole list").push(body);
                }
            }
            Step::Send(bytes) => write(stream, &bytes).await?,
            Step::Wait(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
            Step::Trickle(bytes, millis) => {
                for byte in bytes {
                    write(stream, &[byte]).await?;
                    tokio::time::sleep(Duration::from_millis(millis)).await;
                }
            }
            Step::Endless(bytes) => loop {
                write(stream, &bytes).await?;
            },
            Step::Close => {
                let _ = stream.shutdown().await;
                return None;
            }
        }
        Some(())
    }
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Option<()> {
    stream.write_all(bytes).await.ok()?;
    stream.flush().await.ok()
}

/// TLS of a service: its certificate, whose client certificates it demands, and what it speaks.
pub(crate) fn tls(
    own: &Identity,
    clients: Option<&[u8]>,
    versions: &[&'static rustls::SupportedProtocolVersion],
    alpn: &[&str],
) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .expect("versions");
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(CertificateDer::from(authority.to_vec())).expect("an authority");
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
        }
    };
    let chain = vec![CertificateDer::from(own.certificate_der.clone())];
    let key = PrivatePkcs8KeyDer::from(own.key_der.clone());
    let mut config =
        builder.with_single_cert(chain, PrivateKeyDer::Pkcs8(key)).expect("a certificate");
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}
