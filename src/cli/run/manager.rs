//! What the service manager is told, where there is one (`sd_notify`, systemd's protocol), and the
//! sockets that it gives (`LISTEN_FDS`).

#![expect(clippy::disallowed_methods, reason = "its protocol is the environment")]

use std::ffi::OsStr;
use std::io;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;

use crate::app::sockets::{Given, Named};

/// What a process started by this one must not believe to be meant for it.
pub(super) const OURS: [&str; 4] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID"];

/// The sockets that the service manager has made. Before there is a second thread.
///
/// # Errors
/// When one of them is no listening TCP socket.
pub(super) fn sockets() -> io::Result<Given> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);
    let mut given = ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..given.len() {
        let name = names.next().unwrap_or_default();
        let wrong = |error| io::Error::other(format!("the socket passed as {name:?}: {error}"));
        if let Some(socket) = given.take_tcp_listener(index).map_err(wrong)? {
            sockets.push(Named::new(name.clone(), socket.into()).map_err(wrong)?);
        }
    }
    Ok(Given::new(sockets))
}

/// How often the service manager wants to hear that all is well.
pub(super) fn watchdog() -> Option<Duration> {
    // Half of the time after which it acts.
    sd_notify::watchdog_enabled().map(|limit| limit / 2).filter(|interval| !interval.is_zero())
}

/// It serves.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(&line(status))]);
}

/// Some of a text, in one line: what is longer than a pipe's buffer systemd drops as a whole, with what
/// else is in the message, and the next line is another variable to it.
fn line(text: &str) -> String {
    const LENGTH: usize = 300;
    text.chars().take(LENGTH).map(|each| if each.is_control() { ' ' } else { each }).collect()
}

/// It reads its configuration again. [`ready`] ends that.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "the service manager is not told of the reload"),
    }
}

/// It ends.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// This process is the service from now on.
pub(super) fn main_process(pid: u32, status: &str) {
    tell(&[NotifyState::MainPid(pid), NotifyState::Status(status)]);
}

/// All is well.
pub(super) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        let socket = std::env::var_os("NOTIFY_SOCKET");
        let socket = socket.as_deref().map(OsStr::to_string_lossy).unwrap_or_default();
        tracing::warn!(%error, %socket, "the service manager cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_some_of_one_line() {
        assert_eq!(line("not reloaded: a\nMAINPID=1\u{0}b"), "not reloaded: a MAINPID=1 b");
        let long = line(&"ß".repeat(5000));
        assert!(long.len() < 4096 && long.starts_with("ßß"), "{}", long.len());
    }
}
