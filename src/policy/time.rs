//! Points in time, as an argument.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known;

/// A point in time: milliseconds since 1970-01-01T00:00:00Z, without leap seconds
/// (RFC 7519 section 2, `NumericDate`).
///
/// Arithmetic saturates: a hostile `exp` or `iat` may be anything. Stored as the number of
/// milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixTime {
    millis: i64,
}

impl UnixTime {
    /// The end of time, for what never expires.
    pub const MAX: Self = Self { millis: i64::MAX };

    /// From milliseconds since the epoch.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Self {
        Self { millis }
    }

    /// From whole seconds since the epoch.
    #[must_use]
    pub const fn from_secs(secs: i64) -> Self {
        Self { millis: secs.saturating_mul(1000) }
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub const fn millis(self) -> i64 {
        self.millis
    }

    /// Whole seconds since the epoch, rounded down.
    #[must_use]
    pub const fn secs(self) -> i64 {
        self.millis.div_euclid(1000)
    }

    /// This time and `duration` more.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self { millis: self.millis.saturating_add(millis_of(duration)) }
    }

    /// This time less `duration`.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self { millis: self.millis.saturating_sub(millis_of(duration)) }
    }

    /// Reads a time as RFC 3339 writes it, with any offset.
    #[must_use]
    pub fn from_rfc3339(text: &str) -> Option<Self> {
        let time = OffsetDateTime::parse(text, &well_known::Rfc3339).ok()?;
        i64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok().map(Self::from_millis)
    }

    /// As RFC 3339 writes it: UTC, milliseconds (`2026-11-26T17:42:00.000Z`).
    #[must_use]
    pub fn rfc3339(self) -> Rfc3339 {
        Rfc3339(self)
    }

    /// `self − earlier` in milliseconds, negative when `earlier` is later.
    #[must_use]
    pub const fn millis_since(self, earlier: Self) -> i64 {
        self.millis.saturating_sub(earlier.millis)
    }
}

/// A time as RFC 3339 writes it. What lies before 1970 is written as its first moment, what lies past
/// the year 9999 as its last.
#[derive(Clone, Copy, Debug)]
pub struct Rfc3339(UnixTime);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LAST: i64 = 253_402_300_799_999;
        let millis = u64::try_from(self.0.millis.clamp(0, LAST)).unwrap_or_default();
        let (seconds, millis) = (millis / 1000, millis % 1000);
        let (year, month, day) = civil_from_days(seconds / 86_400);
        let second = seconds % 86_400;
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
    }
}

/// Days since 1970-01-01 to year, month, day in the Gregorian calendar. Years are counted from
/// March, so that the leap day is a year's last and every month but that one has a fixed length.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    const DAYS_IN_400_YEARS: u64 = 146_097;
    let shifted = days + 719_468; // since 0000-03-01
    let era = shifted / DAYS_IN_400_YEARS;
    let day_of_era = shifted % DAYS_IN_400_YEARS;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

fn millis_of(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_text() {
        for (millis, expect) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1970-01-01T00:00:00.000Z"),
            (951_782_400_001, "2000-02-29T00:00:00.001Z"),
            (1_795_801_320_250, "2026-11-27T17:42:00.250Z"),
            (i64::MAX, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(UnixTime::from_millis(millis).rfc3339().to_string(), expect);
        }
    }
}
