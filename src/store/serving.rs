//! Whether an edge serves from a store: what moves a store or takes its place must have it alone.
//!
//! Each edge holds a lock of the system's (`flock`, shared) on `<store's file>.lock` for as long as it
//! runs, also where its nodes are in Redis, and so does a command that changes nodes. Who wants the store alone takes the same lock for itself. The
//! lock goes with the process, however that ends; the file stays and says nothing. On a file system
//! without such locks (some network ones) an edge does not start.
//!
//! Edges at other machines are seen where they share a Redis: each says there every [`EVERY`] that it
//! serves, and counts for [`moved::PRESENCE`] after the last time. An edge that cannot reach the servers is
//! not seen, nor does anything keep one from starting while a store is moved: then no node is served until
//! that has ended ([`moved::hold`]), and no token whose record is not there yet.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::runtime::Handle;

use super::nodes::moved;
use super::redis::Redis;
use super::task::Task;

/// How often an edge says that it serves.
pub const EVERY: Duration = Duration::from_secs(2);

/// When it is said again where it could not be.
const SOON: Duration = Duration::from_millis(100);

/// The task that says that an edge serves. It ends with this.
#[derive(Debug)]
pub struct Presence(#[expect(dead_code, reason = "it ends with this")] Task);

impl Presence {
    /// Begins to say it of `edge`, a name that no other has.
    #[must_use]
    pub fn start(redis: Redis, edge: String, runtime: &Handle) -> Self {
        Self(Task::start(runtime, async move {
            loop {
                // What cannot be said now is said soon: a command sees no edge that has not.
                let said = moved::present(&redis, Some(&edge)).await;
                tokio::time::sleep(if said.is_ok() { EVERY } else { SOON }).await;
            }
        }))
    }
}

/// The lock, until this is dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "the system lets go of it when it is closed")] File);

/// The lock of an edge that serves from the store at `path`; `None` while somebody has it alone.
///
/// # Errors
/// What the system says.
pub fn serve(path: &Path) -> io::Result<Option<Lock>> {
    lock(path, FlockOperation::NonBlockingLockShared)
}

/// The lock of who wants the store at `path` alone; `None` while anybody has it.
///
/// # Errors
/// What the system says.
pub fn alone(path: &Path) -> io::Result<Option<Lock>> {
    lock(path, FlockOperation::NonBlockingLockExclusive)
}

/// The lock of who moves lines of the audit log of the store at `path` into files, beside edges that serve;
/// `None` while somebody has it.
///
/// # Errors
/// What the system says.
pub fn rotate(path: &Path) -> io::Result<Option<Lock>> {
    lock_file(path, ".rotate", FlockOperation::NonBlockingLockExclusive)
}

fn lock(path: &Path, how: FlockOperation) -> io::Result<Option<Lock>> {
    lock_file(path, ".lock", how)
}

fn lock_file(path: &Path, suffix: &str, how: FlockOperation) -> io::Result<Option<Lock>> {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(PathBuf::from(name))?;
    match flock(&file, how) {
        Ok(()) => Ok(Some(Lock(file))),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_serve_together_and_who_is_alone_is_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("holdfast.db");
        let (one, two) = (serve(&path).unwrap(), serve(&path).unwrap());
        assert!(one.is_some() && two.is_some());
        drop(one);
        assert!(alone(&path).unwrap().is_none());
        drop(two);
        let own = alone(&path).unwrap();
        assert!(
            own.is_some() && alone(&path).unwrap().is_none() && serve(&path).unwrap().is_none()
        );
        drop(own);
        assert!(serve(&path).unwrap().is_some());
    }
}
