//! Numbers with units, as people write and read them.

use thiserror::Error;

/// Why a text is no number with a unit.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum UnitError {
    /// Not a size.
    #[error(
        "`{0}` is no size: write a number with KiB, MiB, GiB or TiB (or K, M, G, T), as in 4GiB"
    )]
    Bytes(String),
    /// Not a count.
    #[error("`{0}` is no count: write a number, with K, M or G for thousands, millions, billions")]
    Count(String),
}

fn split(text: &str) -> (&str, String) {
    let text = text.trim();
    let end =
        text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
    (&text[..end], text[end..].trim().to_ascii_lowercase())
}

fn scaled(number: &str, scale: u64) -> Option<u64> {
    let number = number.replace('_', "");
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale);
    }
    let value = number.parse::<f64>().ok()? * scale as f64;
    (value.is_finite() && value >= 0.0 && value < u64::MAX as f64).then_some(value as u64)
}

/// Reads a size in bytes: `4GiB`, `512M`, `1.5TiB`, `4096`. Units are powers of 1024.
///
/// # Errors
/// The text is no size, or it is beyond 2^64 bytes.
pub fn parse_bytes(text: &str) -> Result<u64, UnitError> {
    let (number, unit) = split(text);
    let shift = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kib" | "kb" => 10,
        "m" | "mib" | "mb" => 20,
        "g" | "gib" | "gb" => 30,
        "t" | "tib" | "tb" => 40,
        _ => return Err(UnitError::Bytes(text.into())),
    };
    scaled(number, 1 << shift).ok_or_else(|| UnitError::Bytes(text.into()))
}

/// Reads a count: `50M`, `1.5G`, `2000`. Units are powers of 1000.
///
/// # Errors
/// The text is no count, or it is beyond 2^64.
pub fn parse_count(text: &str) -> Result<u64, UnitError> {
    let (number, unit) = split(text);
    let scale = match unit.as_str() {
        "" => 1,
        "k" => 1_000,
        "m" => 1_000_000,
        "g" | "b" => 1_000_000_000,
        _ => return Err(UnitError::Count(text.into())),
    };
    scaled(number, scale).ok_or_else(|| UnitError::Count(text.into()))
}

/// A size for people: the largest unit in which it is at least 1.
pub fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut value = n as f64;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value.fract() == 0.0 || unit == 0 {
        format!("{value:.0} {}", units[unit])
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

/// A count for people: digits in groups of three.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_counts_are_read() {
        assert_eq!(parse_bytes("4GiB"), Ok(4 << 30));
        assert_eq!(parse_bytes("1.5k"), Ok(1536));
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_count("50M"), Ok(50_000_000));
        assert_eq!(parse_count("1_000"), Ok(1000));
        for bad in ["", "GiB", "4 parsecs", "-1", "99999999TiB", "1..2"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
        assert!(parse_count("5 MiB").unwrap_err().to_string().contains("5 MiB"));
    }

    #[test]
    fn sizes_and_counts_are_shown() {
        assert_eq!(bytes(4 << 30), "4 GiB");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(0), "0 B");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(12), "12");
    }
}
