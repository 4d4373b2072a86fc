//! What is not the same twice: chance, and the count of what a boot has said.
#![expect(clippy::disallowed_methods, reason = "the system's randomness and /proc")]

use std::fs;
use std::time::Duration;

use crate::cli::site::now;

/// 64 random bits. They only spread what would else come all at once: without randomness it comes so.
pub(super) fn chance() -> u64 {
    let mut bytes = [0; 8];
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}

/// A number that grows within a boot, also from one process to the next and whatever is done to the
/// clock: hundredths of a second since the boot. Elsewhere than on Linux, milliseconds since 1970.
pub(super) fn sequence() -> u64 {
    let uptime = fs::read_to_string("/proc/uptime").ok();
    uptime
        .as_deref()
        .and_then(hundredths)
        .unwrap_or_else(|| u64::try_from(now().millis()).unwrap_or_default())
}

/// `350735.47 234388.90` → 35073547.
fn hundredths(uptime: &str) -> Option<u64> {
    let (whole, fraction) = uptime.split_whitespace().next()?.split_once('.')?;
    let whole: u64 = whole.parse().ok()?;
    let fraction: u64 = fraction.get(..2)?.parse().ok()?;
    whole.checked_mul(100)?.checked_add(fraction)
}

/// The part of `whole` that `chance` says, from none to all of it.
pub(super) fn part(whole: Duration, chance: u64) -> Duration {
    let millis = u64::try_from(whole.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(chance.checked_rem(millis.saturating_add(1)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptimes() {
        assert_eq!(hundredths("350735.47 234388.90\n"), Some(35_073_547));
        for other in ["", "350735", "a.47", "1.4", "1.xx"] {
            assert_eq!(hundredths(other), None, "{other}");
        }
        let (first, second) = (sequence(), sequence());
        assert!(first <= second);
    }

    #[test]
    fn parts_lie_within() {
        let whole = Duration::from_millis(9);
        let parts: Vec<u128> = (0..20).map(|chance| part(whole, chance).as_millis()).collect();
        assert_eq!((parts.iter().min(), parts.iter().max()), (Some(&0), Some(&9)));
        assert_eq!(part(Duration::ZERO, 7), Duration::ZERO);
        assert!(part(Duration::MAX, u64::MAX) <= Duration::from_millis(u64::MAX));
    }
}
