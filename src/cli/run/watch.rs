//! Whether a file has changed.
//!
//! Looked at rather than subscribed to: what a path means may change without the file being touched
//! (a symbolic link that is switched, as with mounted secrets), and on any file system.

#![expect(clippy::disallowed_methods, reason = "files have times")]

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, Interval, MissedTickBehavior};

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
    /// When to look; whoever waits for it may be dropped again and again.
    looks: Option<Interval>,
}

/// How files stood before the configuration was loaded.
#[derive(Debug)]
pub(super) struct Before {
    files: Vec<PathBuf>,
    marks: Vec<Option<Mark>>,
    /// Since the epoch: seconds, nanoseconds.
    at: (i64, i64),
}

impl Before {
    /// Before a file is read of which nothing is known yet.
    pub(super) fn start() -> Self {
        Self::of(&[])
    }

    fn of(files: &[PathBuf]) -> Self {
        // A file system's clock is up to some milliseconds behind: a change within those is not seen. To look
        // back further would have each edge that starts right after its file was written load it twice.
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        let at = (seconds, i64::from(since.subsec_nanos()));
        Self { files: files.to_vec(), marks: marks(files), at }
    }

    /// How a file that stands like `now` stood when it was read; none where it may have changed meanwhile.
    fn read(&self, file: &PathBuf, now: Option<Mark>) -> Option<Mark> {
        match self.files.iter().position(|known| known == file) {
            Some(index) => self.marks.get(index).copied().flatten(),
            None => now.filter(|(.., content, status)| (*content).max(*status) < self.at),
        }
    }
}

impl Watch {
    /// Watches `files`, of which some may have changed while they were read: that counts as a change.
    pub(super) fn new(files: Vec<PathBuf>, before: &Before) -> Self {
        let last = marks(&files);
        let read = files.iter().zip(&last).map(|(file, now)| before.read(file, *now));
        Self { loaded: read.collect(), files, last, looks: None }
    }

    /// Before they are loaded again.
    pub(super) fn before(&self) -> Before {
        Before::of(&self.files)
    }

    /// Waits until a file differs from what was loaded and has stopped changing. May be dropped and
    /// called again.
    pub(super) async fn changed(&mut self) {
        loop {
            let looks = self.looks.get_or_insert_with(|| {
                let mut looks = tokio::time::interval_at(Instant::now() + INTERVAL, INTERVAL);
                looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                looks
            });
            looks.tick().await;
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
mod tests {
    use super::*;

    /// A file that has stood for a while.
    fn old(path: &std::path::Path, text: &str) {
        std::fs::write(path, text).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }

    async fn changes(watch: &mut Watch) -> bool {
        tokio::time::timeout(INTERVAL * 5, watch.changed()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_while_it_is_read_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.pem");
        old(&path, "one");
        let files = || vec![path.clone()];
        // The very first time, and later.
        let mut before = Before::start();
        std::thread::sleep(Duration::from_millis(50));
        for next in ["twoo", "three"] {
            std::fs::write(&path, next).unwrap();
            let mut watch = Watch::new(files(), &before);
            assert!(changes(&mut watch).await);
            before = watch.before();
        }
        let mut watch = Watch::new(files(), &before);
        assert!(!changes(&mut watch).await);
        std::thread::sleep(Duration::from_millis(50));
        let mut watch = Watch::new(files(), &Before::start());
        assert!(!changes(&mut watch).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_seen_however_often_the_wait_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.pem");
        old(&path, "one");
        let mut watch = Watch::new(vec![path.clone()], &Before::start());
        std::fs::write(&path, "twoo").unwrap();
        let given_up = INTERVAL / 4;
        let mut seen = false;
        for _ in 0..20 {
            seen = seen || tokio::time::timeout(given_up, watch.changed()).await.is_ok();
        }
        assert!(seen);
    }
}
