//! A client of HTTP/2 over TLS. Its clones share a connection.

use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use rustls::ClientConfig;

use crate::Outcome;
use crate::http1::{Fields, HOST, connect};
use crate::load;

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

/// `count` clients, so many `streams` on one connection.
pub(crate) async fn open(
    port: u16,
    tls: &Arc<ClientConfig>,
    count: usize,
    streams: usize,
) -> Outcome<Vec<Client>> {
    let mut clients = Vec::with_capacity(count);
    while clients.len() < count {
        let stream = connect(port, Arc::clone(tls)).await?;
        let (sender, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(connection);
        let client = Client { sender };
        let streams = streams.min(count - clients.len());
        clients.extend((0..streams).map(|_| client.clone()));
    }
    Ok(clients)
}

impl load::Client for Client {
    type Request = http::Request<()>;

    async fn send(&mut self, request: http::Request<()>) -> Outcome<u16> {
        let mut sender = self.sender.clone().ready().await?;
        let (answer, _) = sender.send_request(request, true)?;
        let (head, mut body) = answer.await?.into_parts();
        while let Some(chunk) = body.data().await {
            body.flow_control().release_capacity(chunk?.len())?;
        }
        Ok(head.status.as_u16())
    }
}
