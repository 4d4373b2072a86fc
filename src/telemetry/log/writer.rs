//! The writer of the log: whole lines, several in one write, and a count of those that went nowhere.

#![expect(clippy::disallowed_methods, reason = "a log has a clock and a thread that rests")]

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, SystemTime};

use super::{Entry, Timestamp};

/// How long the writer rests after lines were written, so that those that come meanwhile are one
/// write, and who logs them has nobody to wake. A line after a pause is written at once.
const GATHER: Duration = Duration::from_millis(5);
/// Bytes of one write: what a pipe takes as a whole, so that the lines of two processes that share one
/// during an upgrade stay lines.
const WRITE_BYTES: usize = 4096;
/// How often a count of lost lines is looked for when nothing else is written.
const IDLE: Duration = Duration::from_secs(1);

/// Lines that are written nowhere.
#[derive(Clone, Debug, Default)]
pub(super) struct Lost(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Since the start.
    ever: AtomicU64,
    /// Of which no line tells yet.
    untold: AtomicU64,
}

impl Lost {
    /// Counts `lines` more.
    pub(super) fn add(&self, lines: u64) {
        self.0.ever.fetch_add(lines, Ordering::Relaxed);
        self.0.untold.fetch_add(lines, Ordering::Relaxed);
    }

    /// Since the start.
    pub(super) fn ever(&self) -> u64 {
        self.0.ever.load(Ordering::Relaxed)
    }
}

/// Writes what comes, until nobody is left who logs.
pub(super) fn write_lines(lines: &Receiver<Entry>, lost: &Lost, out: impl Write) {
    let mut page = Page { out, lost: lost.clone(), bytes: Vec::new(), lines: 0, cut: false };
    let mut wrote = false;
    loop {
        let entry = match lines.try_recv() {
            Ok(entry) => Some(entry),
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {
                page.flush();
                if std::mem::take(&mut wrote) {
                    std::thread::sleep(GATHER);
                    continue;
                }
                match lines.recv_timeout(IDLE) {
                    Ok(entry) => Some(entry),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
        };
        match entry {
            Some(Entry::Line(line)) => {
                wrote = true;
                page.take(&line);
            }
            Some(Entry::Flush(done)) => {
                page.flush();
                let _ = done.try_send(());
            }
            None => {}
        }
    }
    page.flush();
}

/// Lines that are written together. A reader that went away (a closed pipe) or a full disk must not
/// stop the edge: what is not taken is counted, and the next is tried again.
struct Page<W> {
    out: W,
    lost: Lost,
    bytes: Vec<u8>,
    lines: u64,
    /// Whether the last line that was written is one in part.
    cut: bool,
}

impl<W: Write> Page<W> {
    fn take(&mut self, line: &[u8]) {
        if self.bytes.len() + line.len() > WRITE_BYTES {
            self.write();
        }
        self.bytes.extend_from_slice(line);
        self.lines += 1;
    }

    /// Writes what there is, and how many were lost, where that is to be had.
    fn flush(&mut self) {
        self.write();
        let untold = &self.lost.0.untold;
        let count = untold.swap(0, Ordering::Relaxed);
        if count == 0 {
            return;
        }
        let ts = Timestamp(SystemTime::now());
        let line = format!(
            "{{\"ts\":\"{ts}\",\"event\":\"holdfast.log.suppressed\",\"count\":{count}}}\n"
        );
        if self.put(line.as_bytes()).is_err() {
            self.lost.0.untold.fetch_add(count, Ordering::Relaxed);
        }
    }

    fn write(&mut self) {
        let (mut bytes, lines) = (std::mem::take(&mut self.bytes), std::mem::take(&mut self.lines));
        if let Err(whole) = self.put(&bytes) {
            self.lost.add(lines.saturating_sub(whole));
        }
        bytes.clear();
        self.bytes = bytes;
    }

    /// Writes `bytes`, which are lines; or else how many of them are written nevertheless.
    fn put(&mut self, bytes: &[u8]) -> Result<(), u64> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.cut {
            // What is there of a line must not spoil the next.
            let (ended, _) = write_all(&mut self.out, b"\n");
            ended.map_err(|_| 0_u64)?;
            self.cut = false;
        }
        let (done, rest) = write_all(&mut self.out, bytes);
        if done.is_err() {
            let (written, _) = bytes.split_at(bytes.len().saturating_sub(rest.len()));
            self.cut = written.last().is_some_and(|byte| *byte != b'\n');
            return Err(written.iter().map(|byte| u64::from(*byte == b'\n')).sum());
        }
        // What fails here may be any of them.
        self.out.flush().map_err(|_| 0)
    }
}

/// As `Write::write_all`, and what is left to be written where it failed.
fn write_all<'a>(out: &mut impl Write, mut bytes: &'a [u8]) -> (io::Result<()>, &'a [u8]) {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), bytes),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (Err(error), bytes),
        }
    }
    (Ok(()), bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use super::*;

    /// A disk with room for so many bytes.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<(Vec<u8>, usize)>>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock().unwrap();
            let count = bytes.len().min(disk.1);
            if count == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.1 -= count;
            disk.0.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_full_disk_does_not_take_is_counted_and_told_once_it_takes_more() {
        let (disk, lost) = (Disk::default(), Lost::default());
        let (queue, lines) = mpsc::sync_channel(100);
        let writer = std::thread::spawn({
            let (disk, lost) = (disk.clone(), lost.clone());
            move || write_lines(&lines, &lost, disk)
        });
        let flush = || {
            let (done, written) = mpsc::sync_channel(1);
            queue.send(Entry::Flush(done)).unwrap();
            written.recv().unwrap();
        };
        let send = |count: usize| {
            for _ in 0..count {
                queue.send(Entry::Line(b"{\"a\":1}\n".to_vec())).unwrap();
            }
            flush();
        };
        send(3);
        flush();
        assert_eq!(lost.ever(), 3);
        // Two lines and a half of one.
        disk.0.lock().unwrap().1 = 20;
        send(5);
        // Those before are told of in a line, which has no room either.
        let ever = lost.ever();
        assert!((6..=8).contains(&ever), "{ever}");
        disk.0.lock().unwrap().1 = usize::MAX;
        send(2);
        drop(queue);
        writer.join().unwrap();
        assert_eq!(lost.ever(), ever);
        let text = String::from_utf8(disk.0.lock().unwrap().0.clone()).unwrap();
        let read = |line| serde_json::from_str::<serde_json::Value>(line).ok();
        let whole: Vec<_> = text.lines().filter_map(read).collect();
        let told: u64 = whole.iter().filter_map(|line| line["count"].as_u64()).sum();
        assert_eq!(told, ever, "{text}");
        assert_eq!(whole.iter().filter(|line| line["a"] == 1).count() as u64, 10 - ever);
        assert!(text.lines().count() <= whole.len() + 1, "{text}");
    }
}
