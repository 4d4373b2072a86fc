//! CPU time as the kernel counts it, and cores.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::Outcome;

pub(crate) const EDGE_CORE: u8 = 0;
pub(crate) const GENERATOR_CORE: u8 = 1;

/// Clock ticks a second in `/proc/<pid>/stat`, the same on every Linux.
const TICKS: u64 = 100;

/// CPU time of a process so far, by thread: to be read while none of them runs, as the kernel adds
/// up when a thread is taken off its core.
pub(crate) struct Used(HashMap<String, u64>);

impl Used {
    /// Of a process.
    pub(crate) fn of(process: u32) -> Outcome<Self> {
        let mut used = HashMap::new();
        for thread in fs::read_dir(format!("/proc/{process}/task"))? {
            let thread = thread?;
            let name = thread.file_name().to_string_lossy().into_owned();
            used.insert(name, of_thread(&thread.path())?);
        }
        Ok(Self(used))
    }

    /// Since `before`, of all threads together.
    pub(crate) fn since(&self, before: &Self) -> Duration {
        let of = |(thread, now): (&String, &u64)| {
            now.saturating_sub(before.0.get(thread).copied().unwrap_or(0))
        };
        Duration::from_nanos(self.0.iter().map(of).sum())
    }
}

/// Nanoseconds of CPU time so far of the thread whose directory in `/proc` this is.
pub(crate) fn of_thread(directory: &Path) -> Outcome<u64> {
    if let Ok(text) = fs::read_to_string(directory.join("schedstat")) {
        return Ok(text.split_whitespace().next().ok_or("an empty schedstat")?.parse()?);
    }
    let (user, system) = ticks(directory)?;
    Ok((user + system) * (1_000_000_000 / TICKS))
}

/// The thread's own part of it and the system's, in ticks of 10 ms.
pub(crate) fn ticks(directory: &Path) -> Outcome<(u64, u64)> {
    let stat = fs::read_to_string(directory.join("stat"))?;
    // The name before them may have anything in it, a parenthesis too.
    let (_, rest) = stat.rsplit_once(')').ok_or("a stat without a name")?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || fields.next().ok_or("a short stat");
    Ok((next()?.parse()?, next()?.parse()?))
}

/// To run `program`, on `core` alone where it is to be `pinned`.
pub(crate) fn command(program: &str, pinned: bool, core: u8) -> Command {
    if !pinned {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    // It becomes the program, under the same process id.
    command.args(["-c", &core.to_string(), program]);
    command
}

/// Whether `task`, a process or a thread, runs on `core` alone from now on. Without `taskset`, or
/// with one core, it does not.
pub(crate) fn pin(task: u32, core: u8) -> bool {
    let mut command = Command::new("taskset");
    command.args(["-p", "-c", &core.to_string(), &task.to_string()]);
    command.output().is_ok_and(|output| output.status.success())
}
