//! Sockets to listen on: made here, or given by whoever had them before.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use rustix::net::sockopt::socket_acceptconn;

use super::StartError;

/// The name of the admin listener's socket; no listener of the configuration is called so.
pub(super) const ADMIN: &str = "admin";

/// A socket that listens already, by the name of its listener.
#[derive(Debug)]
pub struct Named {
    /// As whoever gives it calls it.
    pub name: String,
    socket: TcpListener,
    address: SocketAddr,
}

impl Named {
    /// Takes a socket that another process has made.
    ///
    /// # Errors
    /// When it is none that listens for TCP connections.
    pub fn new(name: String, socket: OwnedFd) -> io::Result<Self> {
        if !socket_acceptconn(&socket)? {
            return Err(io::Error::other("it does not listen"));
        }
        let socket = TcpListener::from(socket);
        let address = socket.local_addr()?;
        Ok(Self { name, socket, address })
    }
}

/// Sockets that were given, of which each is taken once.
#[derive(Debug, Default)]
pub struct Given(Vec<Named>);

impl Given {
    /// These sockets.
    #[must_use]
    pub fn new(sockets: Vec<Named>) -> Self {
        Self(sockets)
    }

    /// The socket of the listener `name` at `address`, or one that is made now.
    ///
    /// It is told by its address. Port 0 stands for any, which only the name tells.
    pub(super) fn take(
        &mut self,
        name: &str,
        address: SocketAddr,
    ) -> Result<(TcpListener, SocketAddr), StartError> {
        let fits = |given: &Named| match address.port() {
            0 => given.name == name && given.address.ip() == address.ip(),
            _ => given.address == address,
        };
        let bound = match self.0.iter().position(fits) {
            Some(index) => Ok(self.0.swap_remove(index).socket),
            None => TcpListener::bind(address),
        };
        let bound = bound.and_then(|socket| {
            socket.set_nonblocking(true)?;
            let address = socket.local_addr()?;
            Ok((socket, address))
        });
        bound.map_err(|error| StartError::Bind { name: name.to_owned(), address, error })
    }

    /// Those that nobody has taken, as `name (address)`. With this they are closed: on a socket that
    /// listens and from which nobody accepts, clients would wait.
    pub(super) fn rest(self) -> Vec<String> {
        self.0.into_iter().map(|it| format!("{} ({})", it.name, it.address)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening(name: &str) -> (Named, SocketAddr) {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        (Named::new(name.to_owned(), socket.into()).unwrap(), address)
    }

    #[test]
    fn a_socket_is_told_by_its_address_and_one_of_any_port_by_its_name() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let (first, one) = listening("public");
        let (second, two) = listening("other");
        let (third, three) = listening("left");
        let mut given = Given::new(vec![first, second, third]);
        assert_eq!(given.take("renamed", one).unwrap().1, one);
        assert_eq!(given.take("other", any).unwrap().1, two);
        let made = given.take("public", any).unwrap().1;
        assert!(![one, two, three].contains(&made));
        assert_eq!(given.rest(), [format!("left ({three})")]);
    }

    #[test]
    fn what_does_not_listen_is_no_listener() {
        let (server, _) = listening("public");
        let client = std::net::TcpStream::connect(server.address).unwrap();
        assert!(Named::new("public".to_owned(), client.into()).is_err());
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(Named::new("public".to_owned(), datagrams.into()).is_err());
    }
}
