//! The clock of whatever keeps something.

#![expect(clippy::disallowed_methods, reason = "this is the clock")]

use std::time::SystemTime;

use crate::policy::time::UnixTime;

/// The time.
pub(super) fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixTime::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
