//! Lengths of time and sizes as people write them: `30s`, `1h30m`, `16 MiB`.
//!
//! The one place that reads and writes them, for `config.toml`, task files, the API and the command line.

use std::time::Duration;

use jiff::fmt::friendly::{Designator, Spacing, SpanParser, SpanPrinter};
use jiff::{SignedDuration, SpanRelativeTo};

/// The longest length of time that is taken: ten years, far from where sums with it could overflow.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// Reads a length of time: `500ms`, `30s`, `5m`, `1h30m`, `2d`. A day is 24 hours.
///
/// # Errors
/// One line that says what is wrong: no unit, a month or year (they have no fixed length), less than nothing, or
/// more than ten years. Zero is not an error here.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("{text:?} is not a length of time: write it with its unit, like \"30s\", \"5m\" or \"1h30m\"");
    let span = SpanParser::new().parse_span(text.trim()).map_err(|_| wrong())?;
    if span.get_years() != 0 || span.get_months() != 0 {
        return Err(format!("{text:?}: months and years have no fixed length, write it in days"));
    }
    let length: SignedDuration = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
    let length = Duration::try_from(length).map_err(|_| format!("{text:?} is less than nothing"))?;
    if length > LONGEST {
        return Err(format!("{text:?} is more than ten years"));
    }
    Ok(length)
}

/// Writes a length of time so that [`duration`] reads the same again: `1h30m`. Zero is `0s`.
pub fn duration_text(length: Duration) -> String {
    let length = SignedDuration::try_from(length).unwrap_or(SignedDuration::MAX);
    SpanPrinter::new().designator(Designator::Compact).spacing(Spacing::None).duration_to_string(&length)
}

/// Writes a length of time for people: `30 min`, `1 h 30 min`, `2 days`.
pub fn duration_words(length: Duration) -> String {
    let units: [(u64, &str, &str); 4] = [(86_400, "day", "days"), (3600, "h", "h"), (60, "min", "min"), (1, "s", "s")];
    let mut left = length.as_secs();
    let mut words = Vec::new();
    for (size, one, many) in units {
        // Days only where they come out even: "36 h" is read faster than "1 day 12 h".
        if left >= size && (size < 86_400 || left.is_multiple_of(size)) {
            let count = left / size;
            left %= size;
            words.push(format!("{count} {}", if count == 1 { one } else { many }));
        }
    }
    if length.subsec_millis() > 0 {
        words.push(format!("{} ms", length.subsec_millis()));
    }
    if words.is_empty() {
        return "0 s".into();
    }
    words.join(" ")
}

/// Reads a size in bytes: `16 MiB`, `64KiB`, `1 GB`, `512`.
///
/// # Errors
/// One line that says what is wrong: not a number, a unit that is not known, or more than 2^63-1 bytes.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size: write it like \"16 MiB\" or as a number of bytes");
    let text_ = text.trim();
    let digits = text_.find(|c: char| !c.is_ascii_digit()).unwrap_or(text_.len());
    let number: u64 = text_[..digits].parse().map_err(|_| wrong())?;
    let unit: u64 = match text_[digits..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(unit)
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or_else(|| format!("{text:?} is more than can be counted"))
}

/// For serde fields that are a length of time written as text.
pub mod as_duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer};

    /// Reads the text with [`super::duration`].
    ///
    /// # Errors
    /// Those of [`super::duration`], or that it is no text.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        super::duration(&text).map_err(serde::de::Error::custom)
    }
}

/// For serde fields that are a size written as text or as a number of bytes.
pub mod as_bytes {
    use std::fmt;

    use serde::Deserializer;
    use serde::de::{Error, Visitor};

    /// Takes both forms.
    struct Size;

    impl Visitor<'_> for Size {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a size like \"16 MiB\" or a number of bytes")
        }

        fn visit_i64<E: Error>(self, number: i64) -> Result<u64, E> {
            u64::try_from(number).map_err(|_| E::custom("a size is not less than nothing"))
        }

        fn visit_u64<E: Error>(self, number: u64) -> Result<u64, E> {
            Ok(number)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
            super::bytes(text).map_err(E::custom)
        }
    }

    /// Reads a number, or a text with [`super::bytes`].
    ///
    /// # Errors
    /// Those of [`super::bytes`], or that it is neither.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        from.deserialize_any(Size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lengths_of_time_are_read_as_people_write_them() {
        for (text, millis) in [
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("1h 30m", 5_400_000),
            ("500ms", 500),
            ("2d", 172_800_000),
            ("1w", 604_800_000),
            ("1.5h", 5_400_000),
            ("10 min", 600_000),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn a_length_of_time_without_unit_or_below_nothing_is_refused_with_the_reason() {
        assert!(duration("30").unwrap_err().contains("with its unit"));
        assert!(duration("").unwrap_err().contains("with its unit"));
        assert!(duration("-5m").unwrap_err().contains("less than nothing"));
        assert!(duration("1 month").unwrap_err().contains("no fixed length"));
        assert!(duration("500000h").unwrap_err().contains("ten years"));
    }

    #[test]
    fn sizes_are_read_with_and_without_unit() {
        assert_eq!(bytes("16 MiB"), Ok(16 << 20));
        assert_eq!(bytes("16MiB"), Ok(16 << 20));
        assert_eq!(bytes("512"), Ok(512));
        assert_eq!(bytes("1 kB"), Ok(1000));
        assert!(bytes("lots").is_err());
        assert!(bytes("1 XB").is_err());
        assert!(bytes("99999999999 TiB").is_err());
    }

    #[test]
    fn lengths_of_time_read_well() {
        let words = |s| duration_words(Duration::from_secs(s));
        assert_eq!(words(1800), "30 min");
        assert_eq!(words(5400), "1 h 30 min");
        assert_eq!(words(86_400), "1 day");
        assert_eq!(words(129_600), "36 h");
        assert_eq!(words(1), "1 s");
    }

    proptest! {
        #[test]
        fn a_length_of_time_that_was_written_reads_the_same(millis in 0u64..300_000_000_000) {
            let length = Duration::from_millis(millis);
            prop_assert_eq!(duration(&duration_text(length)), Ok(length));
        }
    }
}
