//! Telling systemd how the service stands (sd_notify(3)): a datagram to `NOTIFY_SOCKET`.
#![expect(clippy::disallowed_methods, reason = "systemd says by the environment where it listens")]

use std::ffi::OsString;
use std::io;
use std::os::unix::net::UnixDatagram;

/// Whom to tell. Nobody, where nobody asked.
pub(super) struct Notifier(Option<OsString>);

impl Notifier {
    /// Whom the environment names.
    pub(super) fn from_environment() -> Self {
        Self::to(std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()))
    }

    /// Whoever listens at this path, or, on Linux, at `@` and a name.
    pub(super) fn to(socket: Option<OsString>) -> Self {
        Self(socket)
    }

    /// Sends assignments, one a line: `READY=1`, `STATUS=…`.
    pub(super) fn tell(&self, state: &str) -> io::Result<()> {
        let Some(socket) = &self.0 else { return Ok(()) };
        let sender = UnixDatagram::unbound()?;
        #[cfg(target_os = "linux")]
        {
            use std::os::linux::net::SocketAddrExt as _;
            use std::os::unix::ffi::OsStrExt as _;
            use std::os::unix::net::SocketAddr;
            // A socket without a file, as the managers of users and containers may have.
            if let Some(name) = socket.as_bytes().strip_prefix(b"@") {
                let address = SocketAddr::from_abstract_name(name)?;
                return sender.send_to_addr(state.as_bytes(), &address).map(drop);
            }
        }
        sender.send_to(state.as_bytes(), socket).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn systemd_is_told() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Notifier::to(Some(path.into())).tell("READY=1").unwrap();
        assert_eq!(received(&socket), "READY=1");
        Notifier::to(None).tell("READY=1").unwrap();
        assert!(Notifier::to(Some("/nowhere/notify".into())).tell("READY=1").is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn systemd_is_told_where_its_socket_is_no_file() {
        use std::os::linux::net::SocketAddrExt as _;
        let name = format!("holdfast-test-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        Notifier::to(Some(format!("@{name}").into())).tell("STOPPING=1").unwrap();
        assert_eq!(received(&socket), "STOPPING=1");
    }
}
