//! Axes: where numbers lie, and how they are written.

use crate::units::bytes;

/// How numbers are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Unit {
    /// As they are.
    #[default]
    Plain,
    /// As sizes of memory.
    Bytes,
}

impl Unit {
    /// The number for people.
    pub fn show(self, value: f64) -> String {
        match self {
            Self::Bytes if value >= 0.0 => bytes(value as u64),
            _ => number(value),
        }
    }
}

/// A number for people: three or four digits that count.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        return "not known".into();
    }
    if size == 0.0 {
        return "0".into();
    }
    if !(1e-4..1e15).contains(&size) {
        return format!("{value:.2e}");
    }
    if size >= 1000.0 {
        let whole = crate::units::count(size.round() as u64);
        return if value < 0.0 { format!("-{whole}") } else { whole };
    }
    let decimals = if size >= 100.0 {
        1
    } else if size >= 1.0 {
        2
    } else {
        (2 - size.log10().floor() as i32) as usize
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
}

/// What an axis says.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Axis {
    /// What is along it, with its unit.
    pub title: String,
    /// How its numbers are written.
    pub unit: Unit,
    /// Each doubling is as long as the next.
    pub doublings: bool,
}

impl Axis {
    /// A plain axis.
    pub fn new(title: &str) -> Self {
        Self { title: title.into(), ..Self::default() }
    }
    /// Sizes of memory; each doubling is as long as the next.
    pub fn of_bytes(title: &str) -> Self {
        Self { title: title.into(), unit: Unit::Bytes, doublings: true }
    }
}

/// From numbers to places.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Scale {
    low: f64,
    high: f64,
    start: f64,
    end: f64,
    doublings: bool,
}

impl Scale {
    /// From 0 to the largest of `values`, or a little more, between two places.
    pub fn from_zero(values: impl Iterator<Item = f64>, (start, end): (f64, f64)) -> Self {
        let most = values.filter(|v| v.is_finite()).fold(0.0, f64::max);
        let high = if most > 0.0 { most } else { 1.0 };
        let step = step(high);
        Self { low: 0.0, high: (high / step).ceil() * step, start, end, doublings: false }
    }

    /// From the least to the largest of `values` between two places.
    pub fn over(values: impl Iterator<Item = f64>, ends: (f64, f64), doublings: bool) -> Self {
        let known = |v: &f64| v.is_finite() && (!doublings || *v > 0.0);
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for v in values.filter(known) {
            (low, high) = (low.min(v), high.max(v));
        }
        if low > high {
            (low, high) = (1.0, 2.0);
        }
        if high - low <= 0.0 {
            (low, high) = if doublings { (low / 2.0, high * 2.0) } else { (low - 1.0, high + 1.0) };
        }
        Self { low, high, start: ends.0, end: ends.1, doublings }
    }

    /// Where a number lies.
    pub fn at(&self, value: f64) -> f64 {
        let along = |v: f64| if self.doublings { v.max(f64::MIN_POSITIVE).log2() } else { v };
        let share = (along(value) - along(self.low)) / (along(self.high) - along(self.low));
        self.start + share * (self.end - self.start)
    }

    /// How long a number is, from 0.
    pub fn length(&self, value: f64) -> f64 {
        value / (self.high - self.low) * (self.end - self.start)
    }

    /// Round numbers along it.
    pub fn ticks(&self) -> Vec<f64> {
        if self.doublings {
            let (first, last) = (self.low.log2().ceil() as i32, self.high.log2().floor() as i32);
            let every = ((last - first) / 8 + 1).max(1) as usize;
            return (first..=last).step_by(every).map(|power| 2f64.powi(power)).collect();
        }
        let step = step(self.high - self.low);
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last).map(|n| n as f64 * step).collect()
    }
}

/// A round step that goes some five times into a length.
fn step(length: f64) -> f64 {
    let rough = length / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let round = [1.0, 2.0, 5.0].into_iter().find(|n| rough <= n * power * 1.0001);
    round.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_the_digits_that_count() {
        let cases = [
            (0.0, "0"),
            (1.0, "1"),
            (12.345, "12.35"),
            (0.01234, "0.0123"),
            (1234567.8, "1,234,568"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
        assert_eq!(number(-2.5), "-2.5");
        assert_eq!(number(f64::NAN), "not known");
        assert_eq!(Unit::Bytes.show(1536.0), "1.5 KiB");
    }

    #[test]
    fn ticks_are_round_and_lie_where_numbers_do() {
        let scale = Scale::from_zero([3.0, 117.0].into_iter(), (100.0, 500.0));
        assert_eq!(scale.ticks(), [0.0, 50.0, 100.0, 150.0]);
        let places = [scale.at(0.0), scale.at(150.0), scale.length(75.0)].map(number);
        assert_eq!(places, ["100", "500", "200"]);
        let sizes = Scale::over([1048576.0, 4194304.0].into_iter(), (0.0, 2.0), true);
        assert_eq!(sizes.ticks(), [1048576.0, 2097152.0, 4194304.0]);
        assert_eq!(number(sizes.at(2097152.0)), "1");
    }

    #[test]
    fn scales_of_nothing_or_of_one_number_are_no_division_by_zero() {
        let none = || std::iter::empty();
        for scale in [
            Scale::from_zero(none(), (0.0, 9.0)),
            Scale::over(none(), (0.0, 9.0), true),
            Scale::over([5.0].into_iter(), (0.0, 9.0), false),
            Scale::over([f64::NAN, -1.0].into_iter(), (0.0, 9.0), true),
        ] {
            assert!(scale.at(1.0).is_finite() && !scale.ticks().is_empty(), "{scale:?}");
        }
    }
}
