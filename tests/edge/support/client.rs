//! Clients: one that sends exactly the bytes it is given over TLS, and one that speaks HTTP/2.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::pki::Identity;

/// After this a test hangs, whatever the machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A request as it is written on the wire.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            fields: vec![("Host".to_owned(), "api.example".to_owned())],
            body: Vec::new(),
        }
    }

    /// Adds a field beside those that are there.
    pub(crate) fn field(mut self, name: &str, value: impl Into<String>) -> Self {
        self.fields.push((name.to_owned(), value.into()));
        self
    }

    /// Removes every field of this name.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.fields.retain(|(field, _)| !field.eq_ignore_ascii_case(name));
        self
    }

    pub(crate) fn host(self, host: &str) -> Self {
        self.without("Host").field("Host", host)
    }

    pub(crate) fn body(mut self, body: &[u8]) -> Self {
        self.body = body.to_vec();
        let length = self.body.len().to_string();
        self.field("Content-Length", length)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        for (name, value) in &self.fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        [head.as_bytes(), &self.body].concat()
    }
}

/// A message head and its body: an answer, or what an upstream saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    /// The first line.
    pub(crate) start: String,
    /// Fields in order, names in lower case.
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// Reads a head that ends with an empty line.
    pub(crate) fn parse(head: &[u8]) -> Self {
        let text = String::from_utf8_lossy(head);
        let mut lines = text.split("\r\n");
        let start = lines.next().unwrap_or_default().to_owned();
        let fields = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Self { start, fields, body: Vec::new() }
    }

    pub(crate) fn status(&self) -> u16 {
        self.start.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_default()
    }

    /// Every value of a field.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let named = self.fields.iter().filter(|(field, _)| field == name);
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// The value of a field that is there once.
    pub(crate) fn one(&self, name: &str) -> Option<&str> {
        match self.all(name).as_slice() {
            [value] => Some(value),
            _ => None,
        }
    }

    /// What the recording upstream saw: it answers with the head that it was sent.
    pub(crate) fn seen(&self) -> Self {
        Self::parse(&self.body)
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// An answer, or how the connection ended without one.
pub(crate) type Outcome = Result<Message, String>;

/// Where a client connects to and whom it trusts.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) port: u16,
    authority: Vec<u8>,
    /// The address, one of this machine's, that it connects from.
    pub(crate) from: &'static str,
    /// What it sends as SNI.
    pub(crate) name: &'static str,
    /// The oldest and newest version that it offers.
    pub(crate) versions: &'static [&'static rustls::SupportedProtocolVersion],
}

impl Client {
    pub(crate) fn new(port: u16, authority: &[u8]) -> Self {
        Self {
            port,
            authority: authority.to_vec(),
            from: "127.0.0.1",
            name: "api.example",
            versions: rustls::ALL_VERSIONS,
        }
    }

    /// One request on a connection of its own.
    pub(crate) async fn send(&self, who: Option<&Identity>, request: &Request) -> Outcome {
        self.send_bytes(who, &request.bytes()).await
    }

    pub(crate) async fn send_bytes(&self, who: Option<&Identity>, bytes: &[u8]) -> Outcome {
        let mut connection = self.connect(who).await?;
        connection.send(bytes).await
    }

    pub(crate) async fn connect(&self, who: Option<&Identity>) -> Result<Connection, String> {
        let stream = self.tls(who, "http/1.1").await?;
        Ok(Connection { stream, unread: Vec::new() })
    }

    pub(crate) async fn connect_h2(&self, who: Option<&Identity>) -> Result<H2, String> {
        let stream = self.tls(who, "h2").await?;
        let agreed = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        if agreed.as_deref() != Some(b"h2") {
            return Err(format!("h2 was not agreed but {agreed:?}"));
        }
        // More than a hundred at once only when the edge has said how many it takes (RFC 9113 section
        // 6.5.2): what comes before that would be refused.
        let mut builder = h2::client::Builder::new();
        let handshake = builder.initial_max_send_streams(100).handshake::<_, Bytes>(stream);
        let (sender, connection) = handshake.await.map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        Ok(H2 { sender })
    }

    async fn tls(
        &self,
        who: Option<&Identity>,
        protocol: &str,
    ) -> Result<TlsStream<TcpStream>, String> {
        self.tls_with(self.settings(who, protocol)).await
    }

    /// What a client remembers from one connection to the next: sessions, for one.
    pub(crate) fn settings(&self, who: Option<&Identity>, protocol: &str) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(self.authority.clone())).expect("an authority");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(self.versions)
            .expect("versions")
            .with_root_certificates(roots);
        let mut config = match who {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let chain = [&identity.certificate_der].into_iter().chain(&identity.issuers_der);
                let chain = chain.map(|der| CertificateDer::from(der.clone())).collect();
                let key = PrivatePkcs8KeyDer::from(identity.key_der.clone());
                builder
                    .with_client_auth_cert(chain, PrivateKeyDer::Pkcs8(key))
                    .expect("a client certificate")
            }
        };
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        Arc::new(config)
    }

    /// An HTTP/1.1 connection that resumes a session where `settings` has one.
    pub(crate) async fn connect_with(
        &self,
        settings: &Arc<ClientConfig>,
    ) -> Result<Connection, String> {
        let stream = self.tls_with(Arc::clone(settings)).await?;
        Ok(Connection { stream, unread: Vec::new() })
    }

    /// An HTTP/1.1 connection that begins with `header`, before TLS.
    pub(crate) async fn connect_behind(
        &self,
        header: &[u8],
        who: Option<&Identity>,
    ) -> Result<Connection, String> {
        let settings = self.settings(who, "http/1.1");
        Ok(Connection { stream: self.tls_behind(header, settings).await?, unread: Vec::new() })
    }

    async fn tls_with(&self, settings: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, String> {
        self.tls_behind(b"", settings).await
    }

    async fn tls_behind(
        &self,
        header: &[u8],
        settings: Arc<ClientConfig>,
    ) -> Result<TlsStream<TcpStream>, String> {
        let connect = async {
            let mut socket = connect_from(self.from, self.port).await?;
            socket.write_all(header).await?;
            let name = ServerName::try_from(self.name).expect("a name");
            TlsConnector::from(settings).connect(name, socket).await
        };
        patiently(connect).await
    }
}

/// An HTTP/1.1 connection.
pub(crate) struct Connection<S = TlsStream<TcpStream>> {
    stream: S,
    unread: Vec<u8>,
}

impl Connection {
    /// What the handshake came to.
    pub(crate) fn tls(&self) -> &rustls::ClientConnection {
        self.stream.get_ref().1
    }
}

/// A connection in clear from this address of the machine's own.
pub(crate) async fn plain_from(address: &str, port: u16) -> Result<Connection<TcpStream>, String> {
    let stream = patiently(connect_from(address, port)).await?;
    Ok(Connection { stream, unread: Vec::new() })
}

async fn connect_from(address: &str, port: u16) -> std::io::Result<TcpStream> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    let address: std::net::IpAddr = address.parse().map_err(std::io::Error::other)?;
    socket.bind((address, 0).into())?;
    let stream = socket.connect(([127, 0, 0, 1], port).into()).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// HTTP/2 in clear, with prior knowledge.
pub(crate) async fn plain_h2(port: u16) -> Result<H2, String> {
    let stream = patiently(TcpStream::connect(("127.0.0.1", port))).await?;
    let (sender, connection) = patiently(h2::client::handshake(stream)).await?;
    tokio::spawn(connection);
    Ok(H2 { sender })
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Outcome {
        self.write(bytes).await?;
        self.answer(bytes.starts_with(b"HEAD ")).await
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        patiently(async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        })
        .await
    }

    /// The next answer that is not an interim one.
    pub(crate) async fn answer(&mut self, head_only: bool) -> Outcome {
        loop {
            let head = self.until(b"\r\n\r\n").await?;
            let mut message = Message::parse(&head);
            let status = message.status();
            if (100..200).contains(&status) {
                continue;
            }
            let length = message.one("content-length").and_then(|value| value.parse().ok());
            if head_only || status == 204 || status == 304 {
                return Ok(message);
            }
            message.body = if message.one("transfer-encoding") == Some("chunked") {
                self.chunks().await?
            } else if let Some(length) = length {
                self.exactly(length).await?
            } else {
                self.rest().await
            };
            return Ok(message);
        }
    }

    /// Whether the other side has closed, nothing else being on its way.
    pub(crate) async fn is_closed(&mut self) -> bool {
        self.unread.is_empty() && !matches!(self.more().await, Ok(1..))
    }

    async fn more(&mut self) -> Result<usize, String> {
        patiently(self.stream.read_buf(&mut self.unread)).await
    }

    pub(crate) async fn until(&mut self, end: &[u8]) -> Result<Vec<u8>, String> {
        loop {
            let found = self.unread.windows(end.len()).position(|window| window == end);
            if let Some(at) = found {
                return Ok(self.unread.drain(..at + end.len()).collect());
            }
            if self.more().await? == 0 {
                return Err("closed".to_owned());
            }
        }
    }

    pub(crate) async fn exactly(&mut self, length: usize) -> Result<Vec<u8>, String> {
        while self.unread.len() < length {
            if self.more().await? == 0 {
                return Err("closed within a body".to_owned());
            }
        }
        Ok(self.unread.drain(..length).collect())
    }

    async fn chunks(&mut self) -> Result<Vec<u8>, String> {
        let mut body = Vec::new();
        loop {
            let line = self.until(b"\r\n").await?;
            let size = String::from_utf8_lossy(&line);
            let size = usize::from_str_radix(size.trim(), 16).map_err(|error| error.to_string())?;
            let chunk = self.exactly(size + 2).await?;
            if size == 0 {
                return Ok(body);
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }

    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while matches!(self.more().await, Ok(1..)) {}
        std::mem::take(&mut self.unread)
    }
}

/// An HTTP/2 connection.
#[derive(Clone)]
pub(crate) struct H2 {
    sender: h2::client::SendRequest<Bytes>,
}

impl H2 {
    /// Whether the server takes extended CONNECT (RFC 8441).
    pub(crate) fn offers_connect(&self) -> bool {
        self.sender.is_extended_connect_protocol_enabled()
    }

    /// Opens a stream: the answer to come, and the way to send a body.
    pub(crate) async fn open(
        &self,
        request: &Request,
        end: bool,
    ) -> Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>), String> {
        let head = h2_head(request)?;
        let mut sender = patiently(self.sender.clone().ready()).await?;
        sender.send_request(head, end).map_err(|error| error.to_string())
    }

    /// One request on a stream of its own. `Host` becomes `:authority`; trailers are put behind
    /// the fields.
    pub(crate) async fn send(&self, request: &Request) -> Outcome {
        let head = h2_head(request)?;
        let body = Bytes::from(request.body.clone());
        let sender = self.sender.clone();
        patiently(async move {
            let mut sender = sender.ready().await?;
            let (answer, mut stream) = sender.send_request(head, body.is_empty())?;
            if !body.is_empty() {
                stream.send_data(body, true)?;
            }
            let (parts, mut stream) = answer.await?.into_parts();
            let mut body = Vec::new();
            while let Some(chunk) = stream.data().await {
                let chunk = chunk?;
                let _ = stream.flow_control().release_capacity(chunk.len());
                body.extend_from_slice(&chunk);
            }
            let trailers = stream.trailers().await?.unwrap_or_default();
            let text =
                |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
            let fields = parts.headers.iter().chain(&trailers);
            let fields = fields.map(|(name, value)| (name.to_string(), text(value)));
            let start = format!("HTTP/2 {}", parts.status.as_u16());
            Ok::<_, h2::Error>(Message { start, fields: fields.collect(), body })
        })
        .await
    }
}

fn h2_head(request: &Request) -> Result<http::Request<()>, String> {
    let authority = request.fields.iter().find(|(name, _)| name == "Host");
    let authority = authority.map_or("api.example", |(_, value)| value.as_str());
    let uri = format!("https://{authority}{}", request.target);
    let mut head = http::Request::builder().method(request.method.as_str()).uri(uri);
    for (name, value) in request.fields.iter().filter(|(name, _)| name != "Host") {
        head = head.header(name.to_ascii_lowercase(), value);
    }
    head.body(()).map_err(|error| error.to_string())
}

/// One plain HTTP/1.1 GET, for the admin listener.
pub(crate) async fn plain_get(port: u16, target: &str) -> Outcome {
    patiently(async {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await?;
        let request =
            format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await?;
        let at = answer.windows(4).position(|window| window == b"\r\n\r\n");
        let at = at.ok_or_else(|| std::io::Error::other("no answer"))?;
        let mut message = Message::parse(&answer[..at]);
        message.body = answer.split_off(at + 4);
        Ok::<_, std::io::Error>(message)
    })
    .await
}

/// Waits, but not for ever.
pub(crate) async fn patiently<T, E: std::fmt::Display>(
    future: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("nothing came for 30 s".to_owned()),
    }
}
