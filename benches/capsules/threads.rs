//! A thread of this or another process by its name, and what it did.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::Outcome;

/// How often a thread is looked for, and how long between.
const LOOKS: usize = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// A thread that goes on.
pub(crate) struct Thread {
    directory: PathBuf,
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
                let directory = task?.path();
                let called = fs::read_to_string(directory.join("comm"));
                if called.is_ok_and(|called| called.trim_end() == name) {
                    return Ok(Self { directory });
                }
            }
            std::thread::sleep(PAUSE);
        }
        Err(format!("no thread is called {name}").into())
    }

    /// Its id.
    pub(crate) fn id(&self) -> Outcome<u32> {
        let name = self.directory.file_name().and_then(|name| name.to_str());
        Ok(name.ok_or("a thread has an id")?.parse()?)
    }

    pub(crate) fn done(&self) -> Outcome<Done> {
        let (schedule, stat) = ("schedstat", "stat");
        let schedule = fs::read_to_string(self.directory.join(schedule))?;
        let mut numbers = schedule.split_whitespace().map(str::parse);
        let mut next = || numbers.next().ok_or("a short schedstat");
        let (ran, waited) = (next()??, next()??);
        let stat = fs::read_to_string(self.directory.join(stat))?;
        let (_, fields) = stat.rsplit_once(')').ok_or("a stat without a name")?;
        let mut fields = fields.split_whitespace().skip(11).map(str::parse);
        let mut next = || fields.next().ok_or("a short stat");
        Ok(Done {
            ran: Duration::from_nanos(ran),
            waited: Duration::from_nanos(waited),
            user_ticks: next()??,
            system_ticks: next()??,
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

/// Bytes that this process has had written to the disk.
pub(crate) fn bytes_written() -> Outcome<u64> {
    let text = fs::read_to_string("/proc/self/io")?;
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    Ok(line.ok_or("no write_bytes")?.parse()?)
}
