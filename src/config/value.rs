//! Durations and names as the file writes them.

use std::time::Duration;

/// The duration forms, for messages.
pub(super) const DURATION_FORMS: &str = "a duration is expected: `500ms`, `90s`, `2m`, `1h`, `7d`, \
     `HH:MM:SS` or `D.HH:MM:SS`";

/// Reads a duration: a whole number with `ms`, `s`, `m`, `h` or `d`, or `HH:MM:SS` with hours up to
/// 23, or the same after whole days and a dot.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    if text.contains(':') {
        return clock(text);
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let millis_each: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(millis_each).map(Duration::from_millis)
}

fn clock(text: &str) -> Option<Duration> {
    let (days, time) = match text.split_once('.') {
        Some((days, time)) => (whole(days, 1..=6)?, time),
        None => (0, text),
    };
    let mut parts = time.split(':');
    let mut part = |limit: u64| {
        parts.next().and_then(|digits| whole(digits, 2..=2)).filter(|value| *value < limit)
    };
    let (hours, minutes, seconds) = (part(24)?, part(60)?, part(60)?);
    if parts.next().is_some() {
        return None;
    }
    Some(Duration::from_secs(((days * 24 + hours) * 60 + minutes) * 60 + seconds))
}

fn whole(digits: &str, lengths: std::ops::RangeInclusive<usize>) -> Option<u64> {
    let plain = lengths.contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

/// Writes a duration with the largest unit that fits.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
    units
        .iter()
        .find(|(each, _)| millis.is_multiple_of(*each))
        .map_or_else(|| format!("{millis}ms"), |(each, unit)| format!("{}{unit}", millis / each))
}

/// A name that labels, logs and key paths can carry: 1 to 64 letters, digits, `_`, `-`, `.`.
pub(super) fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
}

/// An HTTP token (RFC 9110 section 5.6.2).
pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let table = [
            ("500ms", Some(500)),
            ("90s", Some(90_000)),
            ("2m", Some(120_000)),
            ("1h", Some(3_600_000)),
            ("7d", Some(604_800_000)),
            ("0s", Some(0)),
            ("00:02:00", Some(120_000)),
            ("23:59:59", Some(86_399_000)),
            ("1.00:00:01", Some(86_401_000)),
            ("10.12:00:00", Some(907_200_000)),
            ("", None),
            ("90", None),
            ("s", None),
            ("-1s", None),
            ("1.5h", None),
            ("1 s", None),
            ("1S", None),
            ("24:00:00", None),
            ("00:60:00", None),
            ("00:00:60", None),
            ("0:02:00", None),
            ("00:02", None),
            ("00:02:00:00", None),
            (".00:02:00", None),
            ("00:02:00.5", None),
            ("+1.00:00:00", None),
            ("99999999999999999999s", None),
            ("18446744073709551615d", None),
            ("1234567.00:00:00", None),
            ("é1s", None),
        ];
        for (text, expect) in table {
            assert_eq!(duration(text), expect.map(Duration::from_millis), "{text:?}");
        }
    }

    #[test]
    fn durations_are_shown_in_the_largest_unit() {
        for text in ["500ms", "90s", "2m", "1h", "7d", "0s", "1001ms"] {
            assert_eq!(show_duration(duration(text).unwrap()), text);
        }
        assert_eq!(show_duration(duration("00:01:30").unwrap()), "90s");
    }
}
