//! A server that answers as a test tells it to, well or badly, and counts who asks.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::client::Message;

/// A step of an answer.
#[derive(Clone)]
pub(crate) enum Step {
    Send(Vec<u8>),
    Wait(Duration),
}

/// An answer: its steps, then the connection is closed.
pub(crate) type Script = Vec<Step>;

/// An answer in one piece.
pub(crate) fn reply(status: u16, media: &str, body: impl AsRef<[u8]>) -> Script {
    let body = body.as_ref();
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: {media}\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    vec![Step::Send([head.as_bytes(), body].concat())]
}

/// A good one, in JSON.
pub(crate) fn json(body: impl ToString) -> Script {
    reply(200, "application/json", body.to_string())
}

/// No answer at all.
pub(crate) fn silence() -> Script {
    vec![Step::Wait(Duration::from_secs(60))]
}

/// The head, then the body byte by byte: each read brings something.
pub(crate) fn trickle(body: impl ToString, pause: Duration) -> Script {
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut script = vec![Step::Send(head.into_bytes())];
    for byte in body.bytes() {
        script.extend([Step::Send(vec![byte]), Step::Wait(pause)]);
    }
    script
}

type Answer = Box<dyn FnMut(&Message) -> Script + Send>;

/// The server. It runs until the test's runtime ends.
pub(crate) struct Scripted {
    pub(crate) port: u16,
    answer: Arc<Mutex<Answer>>,
    seen: Arc<Mutex<Vec<Message>>>,
    open: Arc<AtomicUsize>,
}

impl Scripted {
    /// In clear, on a loopback port.
    pub(crate) async fn start(answer: impl FnMut(&Message) -> Script + Send + 'static) -> Self {
        Self::start_over(answer, async |socket| Some(socket)).await
    }

    /// Over what `wrap` makes of a connection.
    pub(crate) async fn start_over<S, F>(
        answer: impl FnMut(&Message) -> Script + Send + 'static,
        wrap: impl Fn(tokio::net::TcpStream) -> F + Clone + Send + 'static,
    ) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = Option<S>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let answer: Arc<Mutex<Answer>> = Arc::new(Mutex::new(Box::new(answer)));
        let (seen, open) = (Arc::default(), Arc::default());
        let server = Self { port, answer, seen, open };
        let (answer, seen, open) =
            (Arc::clone(&server.answer), Arc::clone(&server.seen), Arc::clone(&server.open));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let socket = wrap(socket);
                let (answer, seen, open) =
                    (Arc::clone(&answer), Arc::clone(&seen), Arc::clone(&open));
                tokio::spawn(async move {
                    let Some(socket) = socket.await else { return };
                    open.fetch_add(1, Ordering::SeqCst);
                    serve(socket, &answer, &seen).await;
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        server
    }

    /// Has it answer otherwise from now on.
    pub(crate) fn answer(&self, answer: impl FnMut(&Message) -> Script + Send + 'static) {
        *self.answer.lock().expect("an answer") = Box::new(answer);
    }

    /// How often it was asked.
    pub(crate) fn asked(&self) -> usize {
        self.seen.lock().expect("a whole list").len()
    }

    /// What it was asked last.
    pub(crate) fn last(&self) -> Message {
        self.seen.lock().expect("a whole list").last().cloned().unwrap_or_default()
    }

    /// All that it was asked.
    pub(crate) fn all(&self) -> Vec<Message> {
        self.seen.lock().expect("a whole list").clone()
    }

    /// Requests that it is answering now.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut socket: S,
    answer: &Mutex<Answer>,
    seen: &Mutex<Vec<Message>>,
) -> Option<()> {
    let mut unread = Vec::new();
    let end = loop {
        if let Some(at) = unread.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if socket.read_buf(&mut unread).await.ok()? == 0 {
            return None;
        }
    };
    let mut request = Message::parse(&unread[..end]);
    let length = request.one("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
    let mut body = unread.split_off(end);
    while body.len() < length {
        if socket.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    request.body = body;
    seen.lock().expect("a whole list").push(request.clone());
    let script = answer.lock().expect("an answer")(&request);
    for step in script {
        match step {
            Step::Send(bytes) => {
                socket.write_all(&bytes).await.ok()?;
                socket.flush().await.ok()?;
            }
            // The other side may have had enough.
            Step::Wait(pause) => {
                let mut more = [0; 64];
                if tokio::time::timeout(pause, socket.read(&mut more)).await.is_ok() {
                    return None;
                }
            }
        }
    }
    let _ = socket.shutdown().await;
    Some(())
}
