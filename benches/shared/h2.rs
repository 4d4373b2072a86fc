//! A client of HTTP/2 over TLS. Its clones share a connection.

use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use rustls::ClientConfig;

use crate::Outcome;
use crate::http1::{Fields, HOST, connect};

#[derive(Clone)]
pub(crate) struct Client {
    sender: SendRequest<Bytes>,
}

/// The head of a GET.
pub(crate) fn request(path: &str, fields: &Fields) -> Outcome<http::Request<()>> {
    let mut request = http::Request::get(format!("https://{HOST}{path}"));
    request = request.header("accept", "application/json");
    for (name, value) in fields {
        request = request.header(*name, value);
    }
    Ok(request.body(())?)
}

impl Client {
    pub(crate) async fn open(port: u16, tls: Arc<ClientConfig>) -> Outcome<Self> {
        let (sender, connection) = h2::client::handshake(connect(port, tls).await?).await?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    /// Sends a request and reads the whole answer: its status.
    pub(crate) async fn get(&mut self, request: http::Request<()>) -> Outcome<u16> {
        let mut sender = self.sender.clone().ready().await?;
        let (answer, _) = sender.send_request(request, true)?;
        let (head, mut body) = answer.await?.into_parts();
        while let Some(chunk) = body.data().await {
            body.flow_control().release_capacity(chunk?.len())?;
        }
        Ok(head.status.as_u16())
    }
}
