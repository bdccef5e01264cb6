//! Wall time as text.

use std::time::{SystemTime, UNIX_EPOCH};

const DAY_MS: u64 = 86_400_000;

/// Milliseconds since 1970 as `2026-11-25 01:20:32.123Z` (UTC).
#[must_use]
pub fn show_time(unix_ms: u64) -> String {
    let (year, month, day) = civil_from_days(unix_ms / DAY_MS);
    format!("{year:04}-{month:02}-{day:02} {}Z", show_clock(unix_ms))
}

/// The time of day of milliseconds since 1970, as `01:20:32.123` (UTC).
#[must_use]
pub fn show_clock(unix_ms: u64) -> String {
    let in_day = unix_ms % DAY_MS;
    let (hours, minutes) = (in_day / 3_600_000, in_day / 60_000 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{:03}", in_day / 1_000 % 60, in_day % 1_000)
}

/// Now, milliseconds since 1970.
#[must_use]
pub fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Year, month and day of a day since 1970 in the Gregorian calendar: years begin in March, so that
/// the leap day comes last, and 400 years have 146,097 days.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let since_0000_03_01 = days + 719_468;
    let era = since_0000_03_01 / 146_097;
    let day_of_era = since_0000_03_01 % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_utc() {
        assert_eq!(show_time(0), "1970-01-01 00:00:00.000Z");
        assert_eq!(show_time(951_782_400_000), "2000-02-29 00:00:00.000Z");
        assert_eq!(show_time(1_767_225_599_999), "2025-12-31 23:59:59.999Z");
        assert_eq!(show_time(1_795_569_632_123), "2026-11-25 01:20:32.123Z");
        assert!(!show_time(u64::MAX).is_empty());
    }
}
