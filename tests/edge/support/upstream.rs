//! A service that answers each request with the head that it was sent, byte by byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::client::Message;

/// A recording upstream on a loopback port. It runs until the test's runtime ends.
pub(crate) struct Upstream {
    pub(crate) port: u16,
    seen: Arc<AtomicUsize>,
    bodies: Arc<std::sync::Mutex<Vec<Vec<u8>>>>,
}

impl Upstream {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let seen = Arc::new(AtomicUsize::new(0));
        let bodies = Arc::default();
        let (counter, kept) = (Arc::clone(&seen), Arc::clone(&bodies));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, Arc::clone(&counter), Arc::clone(&kept)));
            }
        });
        Self { port, seen, bodies }
    }

    /// The same in HTTP/2 with prior knowledge. Its answers end with a trailer.
    pub(crate) async fn start_h2c() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let seen = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve_h2c(socket, Arc::clone(&counter)));
            }
        });
        Self { port, seen, bodies: Arc::default() }
    }

    /// Requests that reached it.
    pub(crate) fn count(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }

    /// The body of the last request that had one.
    pub(crate) fn last_body(&self) -> Vec<u8> {
        self.bodies.lock().expect("a whole list").last().cloned().unwrap_or_default()
    }
}

/// Answers as the request asks: `X-Test-Answer: Name=value` adds a field, `X-Test-Delay` waits for
/// that many milliseconds first.
async fn serve(
    mut socket: TcpStream,
    seen: Arc<AtomicUsize>,
    bodies: Arc<std::sync::Mutex<Vec<Vec<u8>>>>,
) -> Option<()> {
    let mut unread = Vec::new();
    loop {
        let head = until(&mut socket, &mut unread, b"\r\n\r\n").await?;
        seen.fetch_add(1, Ordering::SeqCst);
        let request = Message::parse(&head);
        let body = body(&mut socket, &mut unread, &request).await?;
        if !body.is_empty() {
            bodies.lock().expect("a whole list").push(body);
        }
        if let Some(delay) = request.one("x-test-delay").and_then(|value| value.parse().ok()) {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n",
            head.len()
        );
        for (name, value) in
            request.all("x-test-answer").iter().filter_map(|field| field.split_once('='))
        {
            answer.push_str(&format!("{name}: {value}\r\n"));
        }
        answer.push_str("\r\n");
        socket.write_all(answer.as_bytes()).await.ok()?;
        if !request.start.starts_with("HEAD ") {
            socket.write_all(&head).await.ok()?;
        }
    }
}

async fn serve_h2c(socket: TcpStream, seen: Arc<AtomicUsize>) -> Result<(), h2::Error> {
    let mut connection = h2::server::handshake(socket).await?;
    while let Some(stream) = connection.accept().await {
        let (request, mut answer) = stream?;
        seen.fetch_add(1, Ordering::SeqCst);
        let mut head = format!("{} {} HTTP/2\r\n", request.method(), request.uri().path());
        for (name, value) in request.headers() {
            head.push_str(&format!("{name}: {}\r\n", String::from_utf8_lossy(value.as_bytes())));
        }
        let mut stream = answer.send_response(http::Response::new(()), false)?;
        stream.send_data(head.into(), false)?;
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        stream.send_trailers(trailers)?;
    }
    Ok(())
}

async fn body(socket: &mut TcpStream, unread: &mut Vec<u8>, request: &Message) -> Option<Vec<u8>> {
    if request.one("transfer-encoding").is_some() {
        let mut body = Vec::new();
        loop {
            let line = until(socket, unread, b"\r\n").await?;
            let size = String::from_utf8_lossy(&line);
            let size = usize::from_str_radix(size.trim(), 16).ok()?;
            if size == 0 {
                return trailers(socket, unread, body).await;
            }
            let chunk = exactly(socket, unread, size + 2).await?;
            body.extend_from_slice(&chunk[..size]);
        }
    }
    let length = request.one("content-length").and_then(|value| value.parse().ok());
    exactly(socket, unread, length.unwrap_or(0)).await
}

/// Trailers are kept behind the body, as they came.
async fn trailers(
    socket: &mut TcpStream,
    unread: &mut Vec<u8>,
    mut body: Vec<u8>,
) -> Option<Vec<u8>> {
    loop {
        let line = until(socket, unread, b"\r\n").await?;
        if line == b"\r\n" {
            return Some(body);
        }
        body.extend_from_slice(&line);
    }
}

async fn until(socket: &mut TcpStream, unread: &mut Vec<u8>, end: &[u8]) -> Option<Vec<u8>> {
    loop {
        if let Some(at) = unread.windows(end.len()).position(|window| window == end) {
            return Some(unread.drain(..at + end.len()).collect());
        }
        if socket.read_buf(unread).await.ok()? == 0 {
            return None;
        }
    }
}

async fn exactly(socket: &mut TcpStream, unread: &mut Vec<u8>, length: usize) -> Option<Vec<u8>> {
    while unread.len() < length {
        if socket.read_buf(unread).await.ok()? == 0 {
            return None;
        }
    }
    Some(unread.drain(..length).collect())
}
