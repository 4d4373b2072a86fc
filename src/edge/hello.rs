//! The name that a client asks for, read ahead of the handshake that it chooses.

use std::io;

use pingora::protocols::l4::stream::Stream as L4Stream;
use rustls::server::Acceptor;
use tokio::io::AsyncReadExt as _;

/// Bytes of a ClientHello, record headers included. rustls takes no handshake message past 64 KiB.
const MAX_BYTES: usize = 68 * 1024;
const CHUNK: usize = 4096;

/// Reads a ClientHello, in however many records and packets it comes, gives its SNI, and puts every
/// byte back. What is no ClientHello has no name: the handshake that follows says so to the client.
///
/// # Errors
/// When the connection ends, fails or brings more than a ClientHello can have.
pub(super) async fn server_name(stream: &mut L4Stream) -> io::Result<Option<String>> {
    let mut acceptor = Acceptor::default();
    let mut seen = Vec::new();
    let mut chunk = [0; CHUNK];
    let name = loop {
        let read = stream.read(&mut chunk).await?;
        let Some(mut unread) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        seen.extend_from_slice(unread);
        if seen.len() > MAX_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        while !unread.is_empty() && acceptor.read_tls(&mut unread)? > 0 {}
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => break accepted.client_hello().server_name().map(str::to_owned),
            Err(_) => break None,
        }
    };
    stream.rewind(&seen);
    Ok(name)
}
