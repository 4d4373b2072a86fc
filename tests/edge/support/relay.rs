//! A link that can be slow, or carry nothing at all while both ends are alive.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How the link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// What comes goes on at once.
    Open,
    /// What the server answers goes on so much later; what it is asked goes on at once.
    Slow(Duration),
    /// Nothing goes on, and no connection ends: what was sent comes when the link is open again, as in a
    /// network that was parted and healed.
    Cut,
}

/// A link to a port of this machine, on a port of its own. It lasts until the test's runtime ends.
pub(crate) struct Relay {
    pub(crate) port: u16,
    way: watch::Sender<Way>,
}

impl Relay {
    pub(crate) async fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (way, seen) = watch::channel(Way::Open);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(carry(near, target, seen.clone()));
            }
        });
        Self { port, way }
    }

    pub(crate) fn is(&self, way: Way) {
        self.way.send_replace(way);
    }
}

async fn carry(near: TcpStream, target: u16, mut way: watch::Receiver<Way>) -> Option<()> {
    way.wait_for(|way| *way != Way::Cut).await.ok()?;
    let far = TcpStream::connect(("127.0.0.1", target)).await.ok()?;
    for end in [&near, &far] {
        end.set_nodelay(true).ok()?;
    }
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::join!(
        half(near_in, far_out, way.clone(), false),
        half(far_in, near_out, way.clone(), true),
    );
    Some(())
}

/// One direction, until its end.
async fn half(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut way: watch::Receiver<Way>,
    answers: bool,
) -> Option<()> {
    let mut bytes = vec![0; 65536];
    loop {
        let count = from.read(&mut bytes).await.ok()?;
        let now = *way.borrow();
        match now {
            Way::Slow(late) if answers => tokio::time::sleep(late).await,
            Way::Open | Way::Slow(_) | Way::Cut => {}
        }
        way.wait_for(|way| *way != Way::Cut).await.ok()?;
        if count == 0 {
            return to.shutdown().await.ok();
        }
        to.write_all(&bytes[..count]).await.ok()?;
    }
}
