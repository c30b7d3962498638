//! Sizes of memory in messages.

use std::fmt;

/// A number of bytes for people: the largest unit in which it is at least 1, to one place. What is
/// not whole pages is said to the byte, since that is what will be wrong with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Size(pub(crate) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0;
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.into_iter().find(|(shift, _)| bytes >> shift > 0) {
            Some((shift, unit)) if bytes & 0xfff == 0 => {
                let value = bytes as f64 / (1u64 << shift) as f64;
                let places = usize::from(bytes & ((1 << shift) - 1) != 0);
                write!(f, "{value:.places$} {unit}")
            }
            _ => write!(f, "{bytes} B"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Size;

    #[test]
    fn sizes_have_units_and_oddities_are_exact() {
        let cases = [
            (0, "0 B"),
            (1, "1 B"),
            (4096, "4 KiB"),
            (8 << 20, "8 MiB"),
            (1 << 30, "1 GiB"),
            (3 << 39, "1.5 TiB"),
            (17 << 40, "17 TiB"),
            ((48 << 20) + 4096, "48.0 MiB"),
            ((1 << 20) + 1, "1048577 B"),
            (u64::MAX, "18446744073709551615 B"),
            (u64::MAX - 0xfff, "16777216.0 TiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }
}
