//! A thread of this or another process by its name, and what it did.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::{Outcome, cpu};

/// How often a thread is looked for, and how long between.
const LOOKS: usize = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// A thread that goes on.
pub(crate) struct Thread {
    process: u32,
    pub(crate) id: u32,
}

/// What it did since it began.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    /// On a core.
    pub(crate) ran: Duration,
    /// Ready to run while another one had the core.
    pub(crate) waited: Duration,
    /// Of what it ran, the share of the system's part cannot be told exactly: in ticks of 10 ms.
    pub(crate) user_ticks: u64,
    pub(crate) system_ticks: u64,
}

impl Thread {
    /// The first of `process` that is called `name`. A thread names itself, soon after it began.
    pub(crate) fn named(process: u32, name: &str) -> Outcome<Self> {
        for _ in 0..LOOKS {
            for task in fs::read_dir(format!("/proc/{process}/task"))? {
                let task = task?;
                let called = fs::read_to_string(task.path().join("comm"));
                if called.is_ok_and(|called| called.trim_end() == name) {
                    let id = task.file_name().to_str().ok_or("a thread has an id")?.parse()?;
                    return Ok(Self { process, id });
                }
            }
            std::thread::sleep(PAUSE);
        }
        Err(format!("no thread is called {name}").into())
    }

    pub(crate) fn done(&self) -> Outcome<Done> {
        let directory = PathBuf::from(format!("/proc/{}/task/{}", self.process, self.id));
        let schedule = fs::read_to_string(directory.join("schedstat"))?;
        let mut numbers = schedule.split_whitespace().map(str::parse);
        let mut next = || numbers.next().ok_or("a short schedstat");
        let (ran, waited) = (next()??, next()??);
        let (user_ticks, system_ticks) = cpu::ticks(&directory)?;
        Ok(Done {
            ran: Duration::from_nanos(ran),
            waited: Duration::from_nanos(waited),
            user_ticks,
            system_ticks,
        })
    }
}

impl Done {
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            ran: self.ran.saturating_sub(before.ran),
            waited: self.waited.saturating_sub(before.waited),
            user_ticks: self.user_ticks.saturating_sub(before.user_ticks),
            system_ticks: self.system_ticks.saturating_sub(before.system_ticks),
        }
    }
}

/// Bytes that a process has had written to the disk.
pub(crate) fn bytes_written(process: u32) -> Outcome<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/io"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    Ok(line.ok_or("no write_bytes")?.parse()?)
}
