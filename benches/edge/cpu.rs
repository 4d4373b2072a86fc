//! CPU time as the kernel counts it, and cores.

use std::collections::HashMap;
use std::fs;
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
            let nanoseconds = match fs::read_to_string(thread.path().join("schedstat")) {
                Ok(text) => first_number(&text)?,
                Err(_) => ticks(&fs::read_to_string(thread.path().join("stat"))?)?,
            };
            used.insert(thread.file_name().to_string_lossy().into_owned(), nanoseconds);
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

/// CPU time of the calling thread so far.
pub(crate) fn of_this_thread() -> Outcome<u64> {
    // Takes it off its core, so that its time is added up.
    std::thread::sleep(Duration::from_millis(2));
    match fs::read_to_string("/proc/thread-self/schedstat") {
        Ok(text) => first_number(&text),
        Err(_) => ticks(&fs::read_to_string("/proc/thread-self/stat")?),
    }
}

/// Whether `task`, a process or a thread, runs on `core` alone from now on. Without `taskset`, or
/// with one core, it does not.
pub(crate) fn pin(task: u32, core: u8) -> bool {
    let mut command = Command::new("taskset");
    command.args(["-p", "-c", &core.to_string(), &task.to_string()]);
    command.output().is_ok_and(|output| output.status.success())
}

/// The calling thread's id.
pub(crate) fn this_thread() -> Outcome<u32> {
    let link = fs::read_link("/proc/thread-self")?;
    let id = link.file_name().and_then(|name| name.to_str()).ok_or("a thread has an id")?;
    Ok(id.parse()?)
}

fn first_number(text: &str) -> Outcome<u64> {
    Ok(text.split_whitespace().next().ok_or("an empty schedstat")?.parse()?)
}

/// User and system time from `stat`, in nanoseconds.
fn ticks(stat: &str) -> Outcome<u64> {
    // The name before them may have anything in it, a parenthesis too.
    let (_, rest) = stat.rsplit_once(')').ok_or("a stat without a name")?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || fields.next().ok_or("a short stat");
    let (user, system) = (next()?.parse::<u64>()?, next()?.parse::<u64>()?);
    Ok((user + system) * (1_000_000_000 / TICKS))
}
