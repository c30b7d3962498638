//! Which stretches of a stream are measured.

use nestwalk_types::mix64;

/// How a stream is sampled: counted in instructions from where the region of interest begins.
#[derive(Clone, PartialEq, Debug)]
pub struct Sampling {
    /// From the begin of one unit to that of the next. The first stretch of this length is measured
    /// whole, since caches are cold there and nowhere else.
    pub every: u64,
    /// Length of a unit.
    pub unit: u64,
    /// Simulated, not counted, before each unit.
    pub warm: u64,
    /// Decides where in its stretch each unit lies.
    pub seed: u64,
    /// Units with weights in place of all these: the simulation points of a program.
    pub points: Vec<Point>,
}

/// An interval that stands for a share of the stream.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Point {
    /// Its number, in intervals of [`Sampling::unit`].
    pub interval: u64,
    /// The share.
    pub weight: f64,
}

impl Sampling {
    /// Units of 20,000 instructions, one in a million, after as many that warm up.
    pub const fn systematic(seed: u64) -> Self {
        Self { every: 1_000_000, unit: 20_000, warm: 20_000, seed, points: Vec::new() }
    }

    /// # Errors
    /// The parts of a stretch are longer than the stretch, or weights are none.
    pub fn check(&self) -> Result<(), String> {
        if self.unit == 0 {
            return Err("a unit needs at least one instruction".into());
        }
        if self.points.is_empty() && self.unit.saturating_add(self.warm) > self.every {
            return Err(format!(
                "a unit of {} and {} before it are more than the {} instructions from unit to unit",
                self.unit, self.warm, self.every
            ));
        }
        let sound = |p: &Point| p.weight > 0.0 && p.weight <= 1.0;
        if let Some(p) = self.points.iter().find(|p| !sound(p)) {
            return Err(format!("interval {}: weight {} is no share", p.interval, p.weight));
        }
        if let Some(w) = self.points.windows(2).find(|w| w[0].interval >= w[1].interval) {
            return Err(format!("interval {} is there twice, or out of order", w[1].interval));
        }
        Ok(())
    }

    /// Instructions at the begin that are measured whole.
    pub(super) const fn lead(&self) -> u64 {
        if self.points.is_empty() { self.every } else { 0 }
    }

    /// The window of this number: what is measured. Number 0 is the lead, if there is one.
    pub(super) fn window(&self, number: usize) -> Option<Window> {
        if !self.points.is_empty() {
            let start = self.points.get(number)?.interval.saturating_mul(self.unit);
            return Some(Window { start, end: start.saturating_add(self.unit), warm: self.warm });
        }
        let Some(before) = (number as u64).checked_sub(1) else {
            return Some(Window { start: 0, end: self.every, warm: 0 });
        };
        // Systematic, with a random begin (Wunderlich et al., ISCA 2003).
        let free = self.every - self.unit - self.warm;
        let offset = self.warm + mix64(self.seed ^ 0x5a4d_504c) % (free + 1);
        let start = before.saturating_add(1).saturating_mul(self.every).saturating_add(offset);
        Some(Window { start, end: start.saturating_add(self.unit), warm: self.warm })
    }
}

/// What is measured, in instructions since the region of interest began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Window {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) warm: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_lie_each_in_its_stretch_at_the_same_place() {
        for seed in 0..50 {
            let s = Sampling { every: 1000, unit: 100, warm: 300, ..Sampling::systematic(seed) };
            assert_eq!(s.window(0), Some(Window { start: 0, end: 1000, warm: 0 }));
            let first = s.window(1).unwrap();
            assert!((1300..=1900).contains(&first.start), "{first:?}");
            assert_eq!(s.window(9).unwrap().start, first.start + 8000);
            assert_eq!(first.end - first.start, 100);
        }
    }

    #[test]
    fn points_are_intervals_in_order_with_shares() {
        let point = |interval, weight| Point { interval, weight };
        let mut s =
            Sampling { points: vec![point(2, 0.25), point(5, 0.75)], ..Sampling::systematic(1) };
        assert_eq!(s.check(), Ok(()));
        assert_eq!(s.window(1), Some(Window { start: 100_000, end: 120_000, warm: 20_000 }));
        assert_eq!(s.window(2), None);
        s.points[1].interval = 2;
        assert!(s.check().unwrap_err().contains("twice"));
        s.points[1] = point(3, 1.5);
        assert!(s.check().unwrap_err().contains("1.5"));
        let long = Sampling { every: 30_000, ..Sampling::systematic(1) };
        assert!(long.check().unwrap_err().contains("30000"), "{:?}", long.check());
    }
}
