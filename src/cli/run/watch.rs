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

    /// Watches, instead, the files that `load` has read meanwhile. What changes under it counts as a
    /// change: it may have read the one before.
    pub(super) fn load<T>(&mut self, load: impl FnOnce() -> (T, Vec<PathBuf>)) -> T {
        let before = marks(&self.files);
        let (loaded, files) = load();
        let mut next = Self::new(files);
        for (file, mark) in next.files.iter().zip(&mut next.loaded) {
            if let Some(index) = self.files.iter().position(|known| known == file) {
                *mark = before.get(index).copied().flatten();
            }
        }
        *self = next;
        loaded
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

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test has files")]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_changes_while_it_is_read_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.pem");
        std::fs::write(&path, "one").unwrap();
        let mut watch = Watch::new(vec![path.clone()]);
        let read = |then: Option<&str>| {
            let text = std::fs::read_to_string(&path).unwrap();
            if let Some(next) = then {
                std::fs::write(&path, next).unwrap();
            }
            (text, vec![path.clone()])
        };
        assert_eq!(watch.load(|| read(Some("twoo"))), "one");
        let changed = |mut watch: Watch| async move {
            tokio::time::timeout(INTERVAL * 5, watch.changed()).await.map(|()| watch)
        };
        let mut watch = changed(watch).await.unwrap();
        assert_eq!(watch.load(|| read(None)), "twoo");
        assert!(changed(watch).await.is_err());
    }
}
