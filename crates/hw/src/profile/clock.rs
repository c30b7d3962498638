//! Times and cycles, one from the other.

use super::{CoreProfile, Profile};

/// Cycles of one processor, or of several side by side, in time.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Clock {
    /// Cycles in a microsecond.
    per_us: f64,
}

impl CoreProfile {
    /// The clock of one processor.
    pub const fn clock(&self) -> Clock {
        Clock { per_us: self.frequency_mhz.value }
    }
}

impl Clock {
    /// That of so many processors that run all the time: their cycles together.
    #[must_use]
    pub fn of_all(self, processors: f64) -> Self {
        Self { per_us: self.per_us * processors }
    }
    /// Cycles in a nanosecond.
    pub const fn per_ns(self) -> f64 {
        self.per_us / 1000.0
    }
    /// Cycles in a millisecond.
    pub const fn per_ms(self) -> f64 {
        self.per_us * 1000.0
    }
    /// Cycles in so many nanoseconds.
    pub const fn cycles(self, ns: f64) -> f64 {
        ns * self.per_us / 1000.0
    }
    /// Cycles in so many milliseconds.
    pub const fn cycles_of_ms(self, ms: f64) -> f64 {
        ms * self.per_us * 1000.0
    }
    /// Nanoseconds of so many cycles.
    pub const fn ns(self, cycles: f64) -> f64 {
        cycles * 1000.0 / self.per_us
    }
    /// Microseconds of so many cycles.
    pub const fn us(self, cycles: f64) -> f64 {
        cycles / self.per_us
    }
    /// Milliseconds of so many cycles.
    pub const fn ms(self, cycles: f64) -> f64 {
        cycles / self.per_ms()
    }
}

impl Profile {
    /// Instructions in so many microseconds at the base CPI: of a program that never waits for memory.
    pub const fn instructions_in_us(&self, us: f64) -> f64 {
        us * self.core.frequency_mhz.value / self.core.base_cpi.value
    }
}
