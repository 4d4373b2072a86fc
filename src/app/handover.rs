//! How one process hands its sockets to the next, so that no client notices.
//!
//! The next one makes a Unix socket once everything that can fail without sockets is done; the one that
//! serves connects to it when it is told to. Both must be the same user's processes. Then, a line of JSON
//! each:
//!
//! ```text
//! serving → next   the sockets (SCM_RIGHTS, with one byte), and their names
//! next → serving   what its nonces are made from, where the other one asks for that
//! next → serving   ready: bound, keys fetched, or why not
//! serving → next   the line between the two memories of proofs
//! next → serving   accepting
//! serving → next   yours: only now does the one that served stop accepting
//! ```
//!
//! Invariant: wherever this breaks off, one of the two accepts. The one that serves goes on unless it has
//! said "yours", and the next one ends unless it was told so.

#![expect(clippy::disallowed_methods, reason = "it has a socket and a clock")]
#![expect(clippy::wildcard_enum_match_arm, reason = "any other word is out of turn")]

use std::io::{self, BufRead as _, BufReader, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Uid, geteuid};
use zeroize::Zeroizing;

mod word;

use word::{Secret, Word};

use super::Estate;
use super::sockets::Named;
use crate::policy::nonce::NonceSecret;
use crate::policy::time::UnixTime;
use crate::store::epoch::OfProcess;

/// How long the next process may take to become ready.
pub const BECOMING_READY: Duration = Duration::from_secs(60);
/// How long either waits for the other's word on what takes no time.
const ANSWER: Duration = Duration::from_secs(10);
/// How often it is looked whether somebody has come.
const POLL: Duration = Duration::from_millis(20);
/// The most sockets: Linux passes 253 at once, and a configuration has no more than 64 listeners.
const SOCKETS: usize = 128;
/// The longest line.
const LINE: u64 = 64 * 1024;
/// The form of these lines.
const VERSION: u32 = 1;

/// Why sockets are not handed over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The system says no.
    #[error("{path}: {error}")]
    Socket {
        /// The Unix socket.
        path: String,
        /// What it says.
        error: io::Error,
    },
    /// Something else is there, or somebody else's.
    #[error("{0} is there and is no socket of this user's")]
    Taken(String),
    /// Another process waits there.
    #[error("{0}: another process waits there for sockets")]
    Occupied(String),
    /// Nobody came.
    #[error("nobody has handed sockets over within {0:?}: send SIGQUIT to the process that serves")]
    Nobody(Duration),
    /// It was called off.
    #[error("called off")]
    CalledOff,
    /// Who is at the other end may not be.
    #[error("the other end is user {0}'s")]
    Stranger(u32),
    /// The other end is gone, or says nothing.
    #[error("the other process has ended or does not answer ({0})")]
    Gone(io::Error),
    /// The other end speaks otherwise.
    #[error("the other process says something else than expected: {0}")]
    Unexpected(String),
    /// The next process cannot begin.
    #[error("the next process cannot take over: {0}")]
    Declined(String),
}

/// The other process, at the other end of a Unix socket.
#[derive(Debug)]
struct Peer {
    lines: BufReader<UnixStream>,
    pid: u32,
}

impl Peer {
    /// Who is at the other end, where it is one of `user`'s processes.
    fn new(stream: UnixStream, user: Uid) -> Result<Self, HandoverError> {
        let peer = socket_peercred(&stream).map_err(|error| HandoverError::Gone(error.into()))?;
        if peer.uid != user {
            return Err(HandoverError::Stranger(peer.uid.as_raw()));
        }
        stream.set_write_timeout(Some(ANSWER)).map_err(HandoverError::Gone)?;
        let pid = u32::try_from(peer.pid.as_raw_nonzero().get()).unwrap_or_default();
        Ok(Self { lines: BufReader::new(stream), pid })
    }

    fn say(&mut self, word: &Word) -> Result<(), HandoverError> {
        let line = serde_json::to_string(word).map(Zeroizing::new);
        let mut line = line.map_err(|error| HandoverError::Gone(error.into()))?;
        // In one piece: a word without its end would be no word to whoever stops waiting in between.
        line.push('\n');
        self.lines.get_mut().write_all(line.as_bytes()).map_err(HandoverError::Gone)
    }

    fn hear(&mut self, limit: Duration) -> Result<Word, HandoverError> {
        self.lines.get_ref().set_read_timeout(Some(limit)).map_err(HandoverError::Gone)?;
        let mut line = Zeroizing::new(String::new());
        let read = self.lines.by_ref().take(LINE).read_line(&mut line);
        if read.map_err(HandoverError::Gone)? == 0 {
            return Err(HandoverError::Gone(io::ErrorKind::UnexpectedEof.into()));
        }
        // Not as it was said: there are secrets in it.
        serde_json::from_str(&line)
            .map_err(|error| HandoverError::Unexpected(format!("{:?}: no word", error.classify())))
    }

    /// Neither says nor hears anything more but what has come already.
    fn close(&self) {
        // One that is closed by the other side already is closed.
        let _ = self.lines.get_ref().shutdown(Shutdown::Both);
    }

    fn send_sockets(&mut self, sockets: &[(String, OwnedFd)]) -> Result<(), HandoverError> {
        let fds: Vec<_> = sockets.iter().map(|(_, socket)| socket.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(HandoverError::Gone(io::Error::other("too many sockets")));
        }
        let (stream, byte) = (self.lines.get_ref(), IoSlice::new(b"\n"));
        let sent = sendmsg(stream, &[byte], &mut control, SendFlags::NOSIGNAL);
        sent.map_err(|error| HandoverError::Gone(error.into()))?;
        let names = sockets.iter().map(|(name, _)| name.clone()).collect();
        self.say(&Word::Sockets { version: VERSION, names, nonces: true })
    }

    /// The sockets, and whether the other end wants to hear of nonces.
    fn receive_sockets(&mut self) -> Result<(Vec<Named>, bool), HandoverError> {
        let stream = self.lines.get_ref();
        stream.set_read_timeout(Some(ANSWER)).map_err(HandoverError::Gone)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        // One byte and no more: what follows is not read past.
        let mut byte = [0];
        let mut into = [IoSliceMut::new(&mut byte)];
        let received = recvmsg(stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC);
        if received.map_err(|error| HandoverError::Gone(error.into()))?.bytes == 0 {
            return Err(HandoverError::Gone(io::ErrorKind::UnexpectedEof.into()));
        }
        let mut sockets: Vec<OwnedFd> = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                sockets.extend(fds);
            }
        }
        match self.hear(ANSWER)? {
            Word::Sockets { version: VERSION, names, nonces } if names.len() == sockets.len() => {
                let named = names.into_iter().zip(sockets);
                let named = named.map(|(name, socket)| Named::new(name, socket));
                let named = named.collect::<io::Result<_>>().map_err(HandoverError::Gone)?;
                Ok((named, nonces))
            }
            other => Err(HandoverError::Unexpected(format!("{other:?}"))),
        }
    }
}

/// The process that serves, as the one that does not yet sees it.
#[derive(Debug)]
pub struct Serving {
    peer: Peer,
    /// Whether it wants to hear what nonces are made from.
    nonces: bool,
}

impl Serving {
    /// Waits at `path` until the process that serves comes, at most `limit`, and takes its sockets.
    /// `called_off` is asked meanwhile.
    ///
    /// # Errors
    /// [`HandoverError`].
    pub fn await_at(
        path: &Path,
        limit: Duration,
        called_off: impl Fn() -> bool,
    ) -> Result<(Self, Vec<Named>), HandoverError> {
        let meeting = Meeting::new(path)?;
        let began = Instant::now();
        loop {
            if called_off() {
                return Err(HandoverError::CalledOff);
            }
            match meeting.socket.accept() {
                Ok((stream, _)) => match Self::of(stream) {
                    Ok(taken) => return Ok(taken),
                    // Somebody else knocked: the one that serves may still come.
                    Err(error) => tracing::warn!(%error, "no sockets from who has connected"),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if began.elapsed() >= limit {
                        return Err(HandoverError::Nobody(limit));
                    }
                    std::thread::sleep(POLL);
                }
                Err(error) => return Err(meeting.wrong(error)),
            }
        }
    }

    fn of(stream: UnixStream) -> Result<(Self, Vec<Named>), HandoverError> {
        stream.set_nonblocking(false).map_err(HandoverError::Gone)?;
        let mut peer = Peer::new(stream, geteuid())?;
        let (sockets, nonces) = peer.receive_sockets()?;
        Ok((Self { peer, nonces }, sockets))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.peer.pid
    }

    /// Says that this process could accept, and what its nonces are made from. Gives the line between the
    /// memories of proofs.
    ///
    /// # Errors
    /// [`HandoverError`]; then this process must end.
    pub fn ready(
        &mut self,
        nonces: Option<&NonceSecret>,
    ) -> Result<Option<UnixTime>, HandoverError> {
        if let Some(secret) = nonces.filter(|_| self.nonces) {
            self.peer.say(&Word::Nonces { secret: Secret::of(secret) })?;
        }
        self.peer.say(&Word::Ready)?;
        match self.peer.hear(ANSWER)? {
            Word::Line { line } => Ok(line.map(UnixTime::from_millis)),
            other => Err(HandoverError::Unexpected(format!("{other:?}"))),
        }
    }

    /// Says that this process accepts, and waits until the sockets are its own.
    ///
    /// # Errors
    /// [`HandoverError`]; then this process must end at once.
    pub fn accepting(&mut self) -> Result<(), HandoverError> {
        self.accepting_within(ANSWER)
    }

    fn accepting_within(&mut self, limit: Duration) -> Result<(), HandoverError> {
        self.peer.say(&Word::Accepting)?;
        let word = self.peer.hear(limit).or_else(|error| {
            // From here on the other one finds that nobody listens, and goes on. What it has said until now
            // counts: it has left.
            self.peer.close();
            self.peer.hear(ANSWER).map_err(|_| error)
        });
        match word? {
            Word::Yours => Ok(()),
            other => Err(HandoverError::Unexpected(format!("{other:?}"))),
        }
    }

    /// Says why this process does not begin.
    pub fn decline(&mut self, reason: &str) {
        // It goes on without this word too.
        let _ = self.peer.say(&Word::Declined { reason: reason.to_owned() });
    }
}

/// The next process, as the one that serves sees it.
#[derive(Debug)]
pub struct Next {
    peer: Peer,
    ceded: Option<Ceded>,
    nonces: Option<NonceSecret>,
}

/// A memory of proofs that was ceded. It is taken back, unless the next process has all there is.
#[derive(Debug)]
struct Ceded {
    memory: Arc<OfProcess>,
    now: fn() -> UnixTime,
    ahead: Duration,
    /// Whether the next process has it for good.
    theirs: bool,
}

impl Drop for Ceded {
    fn drop(&mut self) {
        if !self.theirs {
            self.memory.resume((self.now)().plus(self.ahead));
        }
    }
}

impl Next {
    /// The process that waits at `path`; `None` where none does.
    ///
    /// # Errors
    /// [`HandoverError`].
    pub fn at(path: &Path) -> Result<Option<Self>, HandoverError> {
        if !stands(path)? {
            return Ok(None);
        }
        match UnixStream::connect(path) {
            Ok(stream) => {
                let peer = Peer::new(stream, geteuid())?;
                Ok(Some(Self { peer, ceded: None, nonces: None }))
            }
            Err(error) if is_nobody(&error) => Ok(None),
            Err(error) => Err(wrong(path, error)),
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.peer.pid
    }

    /// Gives it the sockets, and waits until it accepts from them. What is admitted by its date from now on
    /// is its own; this process accepts as well until [`Self::theirs`].
    ///
    /// # Errors
    /// [`HandoverError`]; when this is dropped everything is as it was.
    pub fn take(&mut self, estate: &Estate, now: fn() -> UnixTime) -> Result<(), HandoverError> {
        self.peer.send_sockets(&estate.sockets)?;
        self.become_ready()?;
        let line = estate.memory.as_ref().map(|memory| {
            let (memory, ahead) = (Arc::clone(memory), estate.ahead);
            let line = memory.cede(now()).millis();
            self.ceded = Some(Ceded { memory, now, ahead, theirs: false });
            line
        });
        self.peer.say(&Word::Line { line })?;
        let word = self.hear(ANSWER)?;
        as_expected(&word, matches!(word, Word::Accepting))
    }

    /// Waits until it could accept.
    fn become_ready(&mut self) -> Result<(), HandoverError> {
        let limit = BECOMING_READY + ANSWER;
        let mut word = self.hear(limit)?;
        if let Word::Nonces { secret } = &word {
            let none = || HandoverError::Unexpected("a secret that is none".to_owned());
            self.nonces = Some(secret.read().ok_or_else(none)?);
            word = self.hear(limit)?;
        }
        as_expected(&word, matches!(word, Word::Ready))
    }

    /// What its nonces are made from, where its memory of proofs is another one.
    #[must_use]
    pub fn nonces(&self) -> Option<NonceSecret> {
        self.nonces.clone().filter(|_| self.ceded.is_some())
    }

    /// Its next word, unless that is that it does not begin.
    fn hear(&mut self, limit: Duration) -> Result<Word, HandoverError> {
        match self.peer.hear(limit)? {
            Word::Declined { reason } => Err(HandoverError::Declined(reason)),
            word => Ok(word),
        }
    }

    /// Says that the sockets are its own.
    ///
    /// # Errors
    /// [`HandoverError`]; then it ends, and this process goes on.
    pub fn theirs(mut self) -> Result<(), HandoverError> {
        self.peer.say(&Word::Yours)?;
        if let Some(ceded) = &mut self.ceded {
            ceded.theirs = true;
        }
        Ok(())
    }
}

fn as_expected(word: &Word, is_expected: bool) -> Result<(), HandoverError> {
    is_expected.then_some(()).ok_or_else(|| HandoverError::Unexpected(format!("{word:?}")))
}

/// A Unix socket at which somebody is waited for.
#[derive(Debug)]
struct Meeting {
    path: PathBuf,
    socket: UnixListener,
    inode: u64,
}

impl Meeting {
    fn new(path: &Path) -> Result<Self, HandoverError> {
        let failed = |error| wrong(path, error);
        if stands(path)? {
            match UnixStream::connect(path) {
                Ok(_) => return Err(HandoverError::Occupied(path.display().to_string())),
                // Left behind by one that was killed.
                Err(error) if is_nobody(&error) => std::fs::remove_file(path).map_err(failed)?,
                Err(error) => return Err(failed(error)),
            }
        }
        let socket = UnixListener::bind(path).map_err(failed)?;
        let inode = path.symlink_metadata().map_err(failed)?.ino();
        let meeting = Self { path: path.to_owned(), socket, inode };
        // Whoever comes in between is asked who they are, as everybody is.
        let own = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(path, own).map_err(failed)?;
        meeting.socket.set_nonblocking(true).map_err(failed)?;
        Ok(meeting)
    }

    fn wrong(&self, error: io::Error) -> HandoverError {
        wrong(&self.path, error)
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        let ours = self.path.symlink_metadata().is_ok_and(|found| found.ino() == self.inode);
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether a socket of this user's is there. Anything else there is an error.
fn stands(path: &Path) -> Result<bool, HandoverError> {
    match path.symlink_metadata() {
        Ok(it) if it.file_type().is_socket() && it.uid() == geteuid().as_raw() => Ok(true),
        Ok(_) => Err(HandoverError::Taken(path.display().to_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(wrong(path, error)),
    }
}

/// Nobody listens there, or no longer.
fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

fn wrong(path: &Path, error: io::Error) -> HandoverError {
    HandoverError::Socket { path: path.display().to_string(), error }
}

#[cfg(test)]
mod tests;
