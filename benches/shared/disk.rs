//! Which disk a store is on.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::Outcome;

/// The directory with its file system. One in memory is no disk.
pub(crate) fn describe(directory: &Path) -> Outcome<String> {
    let device = directory.metadata()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let wanted = format!("{major}:{minor}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(&wanted));
    let kind = line.and_then(|line| line.split_once(" - ")).map_or("unknown", |(_, kind)| kind);
    let kind = kind.split(' ').next().unwrap_or_default();
    if ["tmpfs", "ramfs"].contains(&kind) {
        return Err(format!("{} is in memory: --directory DIR", directory.display()).into());
    }
    Ok(format!("{} ({kind}, device {wanted})", directory.display()))
}
