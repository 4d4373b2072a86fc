//! A keepalive client of HTTP/1.1 over TLS that does no more than it must.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::Outcome;
use crate::load;

/// The edge's name, in certificates, `Host` and `htu`.
pub(crate) const HOST: &str = "api.example";

/// Header fields of one request.
pub(crate) type Fields = Vec<(&'static str, String)>;

pub(crate) struct Client {
    stream: TlsStream<TcpStream>,
    /// The last answer.
    answer: Vec<u8>,
}

/// The bytes of a GET.
pub(crate) fn request(path: &str, fields: &Fields) -> Vec<u8> {
    let mut head = format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nAccept: application/json\r\n");
    for (name, value) in fields {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    head.into_bytes()
}

/// A TLS connection on which `tls`'s protocol was agreed.
pub(crate) async fn connect(port: u16, tls: Arc<ClientConfig>) -> Outcome<TlsStream<TcpStream>> {
    let wanted = tls.alpn_protocols.first().cloned();
    let socket = TcpStream::connect(("127.0.0.1", port)).await?;
    socket.set_nodelay(true)?;
    let stream = TlsConnector::from(tls).connect(ServerName::try_from(HOST)?, socket).await?;
    if stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec) != wanted {
        return Err("another protocol was agreed".into());
    }
    Ok(stream)
}

impl Client {
    pub(crate) async fn open(port: u16, tls: Arc<ClientConfig>) -> Outcome<Self> {
        Ok(Self { stream: connect(port, tls).await?, answer: Vec::with_capacity(8192) })
    }

    /// Sends the bytes of a request and reads the whole answer: its status.
    pub(crate) async fn get(&mut self, request: &[u8]) -> Outcome<u16> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        self.answer.clear();
        let head = loop {
            if self.stream.read_buf(&mut self.answer).await? == 0 {
                return Err("closed before the head of an answer".into());
            }
            if let Some(at) = self.answer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
        };
        let length: usize =
            self.field("content-length").ok_or("an answer without a length")?.parse()?;
        while self.answer.len() < head + length {
            if self.stream.read_buf(&mut self.answer).await? == 0 {
                return Err("closed within a body".into());
            }
        }
        if self.answer.len() > head + length {
            return Err("more than one answer".into());
        }
        let status = self.answer.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
        Ok(status.ok_or("an answer without a status")?.parse()?)
    }

    /// A field of the last answer.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let lines = self.answer.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
        let mut lines = lines.take_while(|line| !line.is_empty()).skip(1);
        let value = lines.find_map(|line| {
            let (field, value) = line.split_at_checked(name.len())?;
            field.eq_ignore_ascii_case(name.as_bytes()).then_some(value.strip_prefix(b":")?)
        });
        std::str::from_utf8(value?.trim_ascii()).ok()
    }
}

impl load::Client for Client {
    type Request = Vec<u8>;

    async fn send(&mut self, request: Vec<u8>) -> Outcome<u16> {
        self.get(&request).await
    }
}

/// A nonce of the edge's, as a client gets one: by being challenged for this request.
pub(crate) async fn nonce(port: u16, tls: Arc<ClientConfig>, request: &[u8]) -> Outcome<String> {
    let mut client = Client::open(port, tls).await?;
    let status = client.get(request).await?;
    let nonce = client.field("dpop-nonce").ok_or_else(|| format!("no nonce, but {status}"))?;
    Ok(nonce.to_owned())
}
