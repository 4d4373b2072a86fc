//! Whether a file has changed.
//!
//! Looked at rather than subscribed to: what a path means may change without the file being touched
//! (a symbolic link that is switched, as with mounted secrets), and on any file system.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

/// How often. A change counts once it has stood from one look to the next, so that a certificate and
/// its key, written one after the other, are read together.
const INTERVAL: Duration = Duration::from_secs(1);

/// Device, inode, size, and the times of the last change of content and of status.
type Mark = (u64, u64, u64, (i64, i64), (i64, i64));

/// Files and how they stood.
#[derive(Debug)]
pub(super) struct Watch {
    files: Vec<PathBuf>,
    /// When the configuration was loaded.
    loaded: Vec<Option<Mark>>,
    /// At the last look.
    last: Vec<Option<Mark>>,
}

impl Watch {
    /// Watches `files` from now on.
    pub(super) fn new(files: Vec<PathBuf>) -> Self {
        let loaded = marks(&files);
        Self { files, last: loaded.clone(), loaded }
    }

    /// Watches these files instead.
    pub(super) fn follow(&mut self, files: Vec<PathBuf>) {
        *self = Self::new(files);
    }

    /// Waits until a file differs from what was loaded and has stopped changing. May be dropped and
    /// called again.
    pub(super) async fn changed(&mut self) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let now = marks(&self.files);
            let settled = now == self.last;
            self.last = now;
            if settled && self.last != self.loaded {
                return;
            }
        }
    }
}

fn marks(files: &[PathBuf]) -> Vec<Option<Mark>> {
    let mark = |path: &PathBuf| {
        let it = path.metadata().ok()?;
        let (content, status) = ((it.mtime(), it.mtime_nsec()), (it.ctime(), it.ctime_nsec()));
        Some((it.dev(), it.ino(), it.size(), content, status))
    };
    files.iter().map(mark).collect()
}
