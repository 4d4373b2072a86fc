//! Who comes in clear, and keeps nobody else out.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::*;

/// Longer than anything may take.
const LONG: Duration = Duration::from_secs(3600);

/// A listener that answers with `router`, for as long as its other part is there.
struct Listener {
    address: std::net::SocketAddr,
    _ends: watch::Sender<()>,
}

async fn listener(router: Router) -> Listener {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let (ends, ended) = watch::channel(());
    tokio::spawn(receive(Door::open(socket, Tls::default()), router, ended));
    Listener { address, _ends: ends }
}

impl Listener {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// All that is answered to these bytes, until the connection ends.
    async fn told(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        // An answer may come, and the end, before all was sent.
        let _ = stream.write_all(request.as_bytes()).await;
        rest(&mut stream).await
    }
}

async fn rest(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let read = tokio::time::timeout(LONG, stream.read_to_end(&mut all)).await;
    let _ = read.expect("the end of the connection");
    String::from_utf8_lossy(&all).into_owned()
}

fn quick() -> Router {
    Router::new().route("/", get(async || "ok\n"))
}

const ASKED: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[tokio::test]
async fn a_connection_is_for_one_request() {
    let listener = listener(quick()).await;
    let told = listener.told(&ASKED.repeat(2)).await;
    assert!(told.starts_with("HTTP/1.1 200 OK\r\n"), "{told}");
    assert!(told.contains("\r\nconnection: close\r\n"), "{told}");
    assert_eq!(told.matches("ok\n").count(), 1, "{told}");
}

#[tokio::test]
async fn a_head_has_its_limit() {
    let listener = listener(quick()).await;
    for (bytes, good) in [(8 * 1024, true), (BUFFER, false)] {
        let filled = format!("\r\nX: {}\r\n\r\n", "x".repeat(bytes));
        let told = listener.told(&ASKED.replace("\r\n\r\n", &filled)).await;
        assert_eq!(told.contains(" 200 OK"), good, "{bytes}: {told}");
    }
}

#[tokio::test]
async fn the_newest_gets_in_and_the_oldest_gives_way() {
    let listener = listener(quick()).await;
    let mut silent = Vec::new();
    for _ in 0..door::CONNECTIONS + 10 {
        silent.push(listener.connect().await);
        // Each has its place before the next comes.
        let told = listener.told(ASKED).await;
        assert!(told.ends_with("ok\n"), "{told}");
    }
    // One for each of those that were answered once all were taken.
    tokio::time::pause();
    let mut left = 0;
    for stream in &mut silent {
        let end = tokio::time::timeout(Duration::from_millis(1), stream.read_u8());
        left += usize::from(end.await.is_err());
    }
    assert_eq!(left, door::CONNECTIONS - 1);
}

#[tokio::test]
async fn who_waits_for_an_answer_waits_for_so_long() {
    let asked = Arc::new(Notify::new());
    let heard = Arc::clone(&asked);
    let endless = move || async move {
        heard.notify_one();
        std::future::pending::<()>().await;
    };
    let listener = listener(Router::new().route("/", get(endless))).await;
    let mut stream = listener.connect().await;
    stream.write_all(ASKED.as_bytes()).await.unwrap();
    asked.notified().await;
    tokio::time::pause();
    assert_eq!(rest(&mut stream).await, "");
}

#[tokio::test]
async fn who_reads_slowly_does_not_read_to_the_end() {
    const SIZE: usize = 64 * 1024 * 1024;
    let listener = listener(Router::new().route("/", get(async || "x".repeat(SIZE)))).await;
    let mut stream = listener.connect().await;
    stream.write_all(ASKED.as_bytes()).await.unwrap();
    stream.read_u8().await.unwrap();
    tokio::time::pause();
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(5)).await;
        stream.read_u8().await.unwrap();
    }
    // What the system has of it already; the end may be a reset.
    let mut read = 0;
    let mut some = vec![0; 1024 * 1024];
    while let Ok(more @ 1..) = stream.read(&mut some).await {
        read += more;
    }
    assert!(read < SIZE / 2, "{read} bytes");
}
