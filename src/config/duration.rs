//! Durations as the configuration files write them: a whole number and one of `ms`, `s`, `m`, `h`. No I/O.

use std::time::Duration;

/// Longest duration that a file may name: longer ones are typing errors, and a deadline stays far from overflow.
pub const MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Parses `500ms`, `10s`, `2m`, `1h`.
///
/// # Errors
/// A sentence that says what is wrong with `text`.
pub fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let milliseconds_per_unit: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("`{text}` is not a duration, like \"500ms\", \"10s\", \"2m\" or \"1h\"")),
    };
    if number.is_empty() {
        return Err(format!("`{text}` is not a duration, like \"500ms\", \"10s\", \"2m\" or \"1h\""));
    }
    number
        .parse()
        .ok()
        .and_then(|count: u64| count.checked_mul(milliseconds_per_unit))
        .map(Duration::from_millis)
        .filter(|duration| *duration <= MAX)
        .ok_or_else(|| format!("`{text}` is longer than {} hours", MAX.as_secs() / 3600))
}

/// Writes a duration as a file would, in the largest unit that is exact.
pub fn text(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    let units = [(3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    match units.into_iter().find(|(unit, _)| milliseconds > 0 && milliseconds.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", milliseconds / unit),
        None => format!("{milliseconds}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_number_and_a_unit() {
        for (text, milliseconds) in
            [("500ms", 500), ("10s", 10_000), ("2m", 120_000), ("1h", 3_600_000), ("0s", 0), ("720h", 2_592_000_000)]
        {
            assert_eq!(parse(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn a_duration_is_written_in_its_largest_exact_unit() {
        for (milliseconds, expected) in
            [(500, "500ms"), (1_500, "1500ms"), (90_000, "90s"), (120_000, "2m"), (7_200_000, "2h"), (0, "0ms")]
        {
            let duration = Duration::from_millis(milliseconds);
            assert_eq!((text(duration).as_str(), parse(expected)), (expected, Ok(duration)));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "10",
            "s",
            "10 s",
            " 10s",
            "-1s",
            "+1s",
            "1.5s",
            "1d",
            "1S",
            "1s1",
            "721h",
            "99999999999999999999s",
            "18446744073709551615h",
            "٣s",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
