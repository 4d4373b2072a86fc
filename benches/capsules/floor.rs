//! How often a second a disk makes something durable by itself.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::figures::number;

/// What one request writes.
const BLOCK: [u8; 4096] = [0x5a; 4096];
/// Blocks of the file that is written over.
const BLOCKS: u64 = 4096;

/// How a request is made durable without a store.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// 4 KiB more at the end of a file, then `fdatasync`: the file's length is written too.
    Append,
    /// 4 KiB in the place of others, then `fdatasync`: nothing but the block is written.
    Over,
}

/// Files to be made durable.
pub(crate) struct Floor {
    append: File,
    over: File,
    next: u64,
}

impl Floor {
    pub(crate) fn new(directory: &Path) -> Outcome<Self> {
        let open = |name: &str| {
            OpenOptions::new().create(true).truncate(true).write(true).open(directory.join(name))
        };
        let (append, mut over) = (open("append")?, open("over")?);
        for _ in 0..BLOCKS {
            over.write_all(&BLOCK)?;
        }
        over.sync_all()?;
        Ok(Self { append, over, next: 0 })
    }

    /// Requests a second, one after the other, for `time`.
    pub(crate) fn rate(&mut self, way: Way, time: Duration) -> Outcome<f64> {
        let (start, mut done) = (Instant::now(), 0_usize);
        while start.elapsed() < time {
            match way {
                Way::Append => {
                    self.append.write_all(&BLOCK)?;
                    self.append.sync_data()?;
                }
                Way::Over => {
                    self.next = (self.next + 1) % BLOCKS;
                    self.over.write_all_at(&BLOCK, self.next * 4096)?;
                    self.over.sync_data()?;
                }
            }
            done += 1;
        }
        Ok(number(done) / start.elapsed().as_secs_f64())
    }
}
