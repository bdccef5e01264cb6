//! Sizes and times as people write them.

use std::time::Duration;

/// Why a text is no size.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidSize {
    /// No number before the unit.
    #[error("{0:?} is no size: write a number and a unit, for example 512MiB, 10GiB or 1TiB")]
    Text(String),
    /// An unknown unit.
    #[error(
        "{0:?} is no unit of size: use B, KiB, MiB, GiB or TiB (powers of 1024), or KB, MB, GB or TB (powers of 1000)"
    )]
    Unit(String),
    /// Above 2^63.
    #[error("{0:?} is more than 8 EiB")]
    TooLarge(String),
}

/// Reads a size, bytes: `4096`, `10GiB`, `1.5TiB`, `500MB`. `K`, `M`, `G`, `T` alone mean powers of 1024.
///
/// # Errors
/// [`InvalidSize`] says what is wrong with the text.
pub fn parse_size(text: &str) -> Result<u64, InvalidSize> {
    let trimmed = text.trim();
    let split = trimmed
        .find(|character: char| !character.is_ascii_digit() && character != '.')
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let factor =
        unit_bytes(unit.trim()).ok_or_else(|| InvalidSize::Unit(unit.trim().to_owned()))?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let invalid = || InvalidSize::Text(text.to_owned());
    if whole.is_empty() || fraction.contains('.') || fraction.len() > 9 || number.ends_with('.') {
        return Err(invalid());
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).expect("at most 9 digits"));
    let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| invalid())?;
    let bytes = digits
        .checked_mul(u128::from(factor))
        .ok_or_else(|| InvalidSize::TooLarge(text.to_owned()))?
        / scale;
    u64::try_from(bytes)
        .ok()
        .filter(|bytes| *bytes < 1 << 63)
        .ok_or_else(|| InvalidSize::TooLarge(text.to_owned()))
}

fn unit_bytes(unit: &str) -> Option<u64> {
    Some(match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return None,
    })
}

/// Writes a size in the largest unit that keeps at most one decimal.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut divisor: u64 = 1;
    while unit + 1 < UNITS.len() && bytes / divisor >= 1024 {
        divisor *= 1024;
        unit += 1;
    }
    let tenths = (u128::from(bytes) * 10 + u128::from(divisor) / 2) / u128::from(divisor);
    match tenths % 10 {
        0 => format!("{} {}", tenths / 10, UNITS[unit]),
        tenth => format!("{}.{tenth} {}", tenths / 10, UNITS[unit]),
    }
}

/// Why a text is no duration.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no duration: write a number and a unit, for example 500ms, 30s, 5m or 2h")]
pub struct InvalidDuration(String);

/// Reads a duration: `500ms`, `30s`, `5m`, `2h`, or a bare number of seconds.
///
/// # Errors
/// [`InvalidDuration`] for anything else.
pub fn parse_duration(text: &str) -> Result<Duration, InvalidDuration> {
    let trimmed = text.trim();
    let split =
        trimmed.find(|character: char| !character.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let invalid = || InvalidDuration(text.to_owned());
    let count: u64 = number.parse().map_err(|_| invalid())?;
    let milliseconds_each: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(invalid()),
    };
    count.checked_mul(milliseconds_each).map(Duration::from_millis).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_number_and_a_unit() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("10GiB"), Ok(10 << 30));
        assert_eq!(parse_size("10 gib"), Ok(10 << 30));
        assert_eq!(parse_size("1.5T"), Ok(3 << 39));
        assert_eq!(parse_size("500MB"), Ok(500_000_000));
        assert_eq!(parse_size("0.5KiB"), Ok(512));
    }

    #[test]
    fn an_absurd_size_is_refused_with_what_to_write() {
        for text in
            ["", "GiB", "-1GiB", "1..5GiB", "1.GiB", "99999999999999999999999999999999999999999TiB"]
        {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert_eq!(parse_size("9000000TiB"), Err(InvalidSize::TooLarge("9000000TiB".into())));
        assert!(parse_size("10 bananas").expect_err("no unit").to_string().contains("GiB"));
    }

    #[test]
    fn a_shown_size_is_short() {
        assert_eq!(show_size(0), "0 B");
        assert_eq!(show_size(256 << 20), "256 MiB");
        assert_eq!(show_size(3 << 39), "1.5 TiB");
        assert_eq!(show_size(u64::MAX), "16384 PiB");
    }

    #[test]
    fn a_duration_is_a_number_and_a_unit() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(parse_duration("30"), Ok(Duration::from_secs(30)));
        assert!(parse_duration("soon").is_err());
        assert!(parse_duration("99999999999999999999h").is_err());
    }
}
