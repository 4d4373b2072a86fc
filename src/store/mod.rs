//! Shared state: one trait a file, each with its implementations beside it.

pub mod backup;
pub mod bindings;
pub mod budget;
pub mod bypass;
mod clock;
pub mod epoch;
pub mod failures;
pub mod keys;
pub mod networks;
pub mod nodes;
pub mod nonces;
pub mod records;
pub mod redis;
pub mod refused;
pub mod registry;
pub mod replay;
pub mod serving;
pub mod sqlite;
mod tally;
pub mod task;
pub mod tokens;

use std::path::Path;

/// The directory that a file is in, or is to be.
pub(crate) fn directory_of(file: &Path) -> &Path {
    let named = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    named.unwrap_or(Path::new("."))
}
