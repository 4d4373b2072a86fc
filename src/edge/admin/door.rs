//! Who gets to the admin listener: on a loopback address everybody, with `edge.admin.tls` whoever has a
//! certificate of an authority named there.
//!
//! Who has shown no certificate yet has places of their own, of which one address gets a few: whoever merely
//! reaches the port keeps nobody else out. Behind that, and in clear, whoever comes gets in: when all places
//! are taken, the connection that has been there for longest gives way.
//!
//! Invariant: no byte of a request is read from a connection whose handshake was not held under the
//! configuration in force. A reload ends the connections of before; whoever scrapes comes again.

#![expect(clippy::disallowed_methods, reason = "a handshake holds up nobody but its client")]

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Connections at once whose handshake is over.
pub(super) const CONNECTIONS: usize = 256;
/// Handshakes at once.
const HANDSHAKES: usize = 128;
/// Of these, from one address.
const OF_ONE_ADDRESS: usize = 16;
/// The time of a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection lasts, from when it was accepted to its end: the handshake, the request, its turn, and
/// the time that the answer is read in.
const WHOLE: Duration = Duration::from_secs(30);
/// How long is waited after the system gave no connection.
const PAUSE: Duration = Duration::from_millis(100);

/// The TLS in force; none: in clear.
pub type Tls = Arc<ArcSwapOption<ServerConfig>>;

/// Gives out connections whose handshake is over.
pub(super) struct Door {
    ready: mpsc::Receiver<(Guest, Stay)>,
}

impl Door {
    /// Of `socket`, from now on. Not outside of a runtime.
    pub(super) fn open(socket: TcpListener, tls: Tls) -> Self {
        let (let_in, ready) = mpsc::channel(1);
        tokio::spawn(stand(socket, tls, let_in));
        Self { ready }
    }

    /// The next one whose handshake is over, and how long it may stay. May be dropped and called again.
    pub(super) async fn accept(&mut self) -> (Guest, Stay) {
        match self.ready.recv().await {
            Some(guest) => guest,
            // The runtime ends.
            None => std::future::pending().await,
        }
    }
}

async fn stand(socket: TcpListener, tls: Tls, let_in: mpsc::Sender<(Guest, Stay)>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let (crowd, places) = (Crowd::default(), Places::default());
    loop {
        let Ok(handshake) = Arc::clone(&handshakes).acquire_owned().await else { return };
        // A process that hands the socket to the next one must not take connections any more.
        let accepted = tokio::select! {
            () = let_in.closed() => return,
            accepted = socket.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "admin listener");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let until = Instant::now() + WHOLE;
        // In clear there is no handshake, and only this machine.
        let among = match tls.load().is_some().then(|| crowd.enter(address.ip())) {
            Some(None) => {
                tracing::debug!(%address, "admin listener: too many handshakes from there");
                continue;
            }
            among => among.flatten(),
        };
        let (tls, let_in, places) = (Arc::clone(&tls), let_in.clone(), places.clone());
        tokio::spawn(async move {
            let greeted = tokio::time::timeout(HANDSHAKE, greet(stream, &tls)).await;
            let (stream, under) = match greeted {
                Ok(Ok(greeted)) => greeted,
                Ok(Err(error)) => {
                    return tracing::debug!(%error, %address, "admin listener: no handshake");
                }
                Err(_) => {
                    return tracing::debug!(%address, "admin listener: the handshake took too long");
                }
            };
            let stay = Stay { place: places.enter(), until };
            drop((handshake, among));
            let _ = let_in.send((Guest { stream, under, in_force: tls }, stay)).await;
        });
    }
}

/// Who is in a handshake, by address.
#[derive(Clone, Default)]
struct Crowd(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Crowd {
    /// A place of an address, until it is dropped; `None` where it has all of its own.
    fn enter(&self, address: IpAddr) -> Option<Among> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(address).or_default();
        if *count >= OF_ONE_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Among { crowd: self.clone(), address })
    }
}

/// One place in a crowd.
struct Among {
    crowd: Crowd,
    address: IpAddr,
}

impl Drop for Among {
    fn drop(&mut self) {
        let mut all = self.crowd.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = all.get_mut(&self.address).map(|count| {
            *count = count.saturating_sub(1);
            *count
        });
        if left == Some(0) {
            all.remove(&self.address);
        }
    }
}

/// Those whose handshake is over, by the order in which they came.
#[derive(Clone, Default)]
struct Places(Arc<Mutex<Taken>>);

#[derive(Default)]
struct Taken {
    next: u64,
    /// Whose end is dropped has to leave.
    all: BTreeMap<u64, oneshot::Sender<()>>,
}

impl Places {
    /// A place, until it is dropped or wanted for another.
    fn enter(&self) -> Place {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.all.len() >= CONNECTIONS {
            taken.all.pop_first();
        }
        let (number, (holds, wanted)) = (taken.next, oneshot::channel());
        taken.next += 1;
        taken.all.insert(number, holds);
        Place { places: self.clone(), number, wanted }
    }
}

struct Place {
    places: Places,
    number: u64,
    wanted: oneshot::Receiver<()>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all.remove(&self.number);
    }
}

/// How long a connection may go on.
pub(super) struct Stay {
    place: Place,
    until: Instant,
}

impl Stay {
    /// Waits until it is over.
    pub(super) async fn over(mut self) {
        // Nothing is ever sent: that the other end is gone is the word.
        let _ = tokio::time::timeout_at(self.until, &mut self.place.wanted).await;
    }
}

/// Holds the handshake, where there is to be one.
async fn greet(stream: TcpStream, tls: &Tls) -> io::Result<(Stream, Option<Arc<ServerConfig>>)> {
    let under = tls.load_full();
    let stream = match &under {
        None => Stream::Plain(stream),
        Some(config) => {
            let accepted = TlsAcceptor::from(Arc::clone(config)).accept(stream).await?;
            Stream::Tls(Box::new(accepted))
        }
    };
    Ok((stream, under))
}

/// A connection, and what its handshake was held under.
pub(super) struct Guest {
    stream: Stream,
    under: Option<Arc<ServerConfig>>,
    in_force: Tls,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Guest {
    /// Whether what its handshake was held under is in force.
    fn is_welcome(&self) -> bool {
        let now = self.in_force.load();
        match (&self.under, &*now) {
            (None, None) => true,
            (Some(then), Some(now)) => Arc::ptr_eq(then, now),
            (None, Some(_)) | (Some(_), None) => false,
        }
    }
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        if read.is_ready() && !self.is_welcome() {
            // To whoever reads, the other side is done.
            buf.set_filled(before);
            return Poll::Ready(Ok(()));
        }
        read
    }
}

impl AsyncWrite for Guest {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
