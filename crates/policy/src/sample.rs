//! What a policy sees of an interval, and the exact arithmetic of the published script on it.

use serde::Serialize;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// How a VM's memory is virtualized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Shadow page tables, kept by the VMM. The kernel patch of the thesis calls it 0.
    Shadow,
    /// Nested (two-dimensional) paging: EPT, NPT. The kernel patch of the thesis calls it 1.
    Nested,
}

impl Mode {
    /// The other mode.
    pub const fn other(self) -> Self {
        match self {
            Self::Shadow => Self::Nested,
            Self::Nested => Self::Shadow,
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shadow => "shadow",
            Self::Nested => "nested",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "shadow" => Ok(Self::Shadow),
            "nested" => Ok(Self::Nested),
            other => Err(format!("`{other}` is no paging mode; shadow or nested is")),
        }
    }
}

/// A number with two decimals, as `bc` with `scale=2` keeps them: the published script computes all
/// percentages and ratios so, truncated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "f64")]
pub struct Hundredths(pub u64);

impl Hundredths {
    /// `a / b`, truncated to two decimals; none if `b` is 0, the largest number if it is too large.
    pub fn ratio(a: u128, b: u128) -> Option<Self> {
        let value = a.saturating_mul(100).checked_div(b)?;
        Some(Self(u64::try_from(value).unwrap_or(u64::MAX)))
    }
}

impl From<Hundredths> for f64 {
    fn from(h: Hundredths) -> Self {
        h.0 as Self / 100.0
    }
}

impl fmt::Display for Hundredths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{:02}", self.0 / 100, self.0 % 100))
    }
}

/// A counter that a source of samples may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Counter {
    /// Cycles with a page walk under way.
    WalkCycles,
    /// Page faults that the guest's kernel handled.
    GuestPageFaults,
    /// Misses of the last level of TLBs.
    TlbMisses,
    /// Exits to the VMM.
    VmExits,
}

impl fmt::Display for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::WalkCycles => "cycles in page walks",
            Self::GuestPageFaults => "guest page faults",
            Self::TlbMisses => "TLB misses",
            Self::VmExits => "VM exits",
        })
    }
}

/// What was counted of a VM in an interval, over all its vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Sample {
    /// End of the interval, nanoseconds since any fixed moment.
    pub time_ns: u64,
    /// Length of the interval, nanoseconds.
    pub duration_ns: u64,
    /// Processor time of the vCPU threads, nanoseconds: the script's `task-clock`.
    pub busy_ns: u64,
    /// Instructions retired in the guest: `instructions:G`.
    pub instructions: u64,
    /// Cycles in the guest, walks included: `cycles:G`.
    pub guest_cycles: u64,
    /// Cycles of the vCPU threads in the host's kernel: `r003c:Hk`, which stands for the VMM.
    pub host_kernel_cycles: u64,
    /// Cycles of the vCPU threads in the host's user space, where devices are emulated.
    pub host_user_cycles: u64,
    /// Guest cycles with a page walk under way, loads and stores.
    pub walk_cycles: Option<u64>,
    /// Page faults that the guest's kernel handled, whoever saw them.
    pub guest_page_faults: Option<u64>,
    /// Misses of the last level of TLBs, in the guest.
    pub tlb_misses: Option<u64>,
    /// Exits to the VMM: those that paging causes if the source can tell them, else all.
    pub vm_exits: Option<u64>,
    /// The mode in which the whole interval passed.
    pub mode: Mode,
}

/// Why a sample cannot be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SampleError {
    /// The interval has no length.
    #[error("the interval is empty")]
    EmptyInterval,
    /// More instructions than any processor retires.
    #[error("{0} instructions in {1} guest cycles are more than 16 a cycle")]
    Instructions(u64, u64),
    /// More walk cycles than any number of walkers makes.
    #[error("{0} walk cycles in {1} guest cycles are more than 16 walkers make")]
    WalkCycles(u64, u64),
    /// More processor time than KVM's most vCPUs have.
    #[error("{0} ns of processor time in {1} ns are more than 4096 vCPUs have")]
    Busy(u64, u64),
    /// More cycles than such processors make.
    #[error("{0} cycles in {1} ns are more than 4096 vCPUs of 10 GHz make")]
    Cycles(u64, u64),
}

/// Processors of 2025 retire at most 12 instructions a cycle and walk at most 6 tables at once.
const MOST_PER_CYCLE: u64 = 16;
/// `KVM_MAX_VCPUS` of Linux 6.
const MOST_VCPUS: u64 = 4096;
/// No processor has reached this clock, in cycles per nanosecond.
const MOST_GHZ: u64 = 10;

impl Sample {
    /// Whether the numbers can be those of a machine at all.
    ///
    /// # Errors
    /// Says what is absurd.
    pub fn check(&self) -> Result<(), SampleError> {
        let guest = self.guest_cycles;
        let walk = self.walk_cycles.unwrap_or(0);
        if self.duration_ns == 0 {
            Err(SampleError::EmptyInterval)
        } else if self.instructions > guest.saturating_mul(MOST_PER_CYCLE) {
            Err(SampleError::Instructions(self.instructions, guest))
        } else if walk > guest.saturating_mul(MOST_PER_CYCLE) {
            Err(SampleError::WalkCycles(walk, guest))
        } else if self.busy_ns > self.duration_ns.saturating_mul(MOST_VCPUS) {
            Err(SampleError::Busy(self.busy_ns, self.duration_ns))
        } else if self.total_cycles()
            > self.duration_ns.saturating_mul(MOST_VCPUS).saturating_mul(MOST_GHZ)
        {
            Err(SampleError::Cycles(self.total_cycles(), self.duration_ns))
        } else {
            Ok(())
        }
    }

    /// Cycles of the vCPU threads in guest and host: the script's `cycles:HG`.
    pub fn total_cycles(&self) -> u64 {
        self.guest_cycles
            .saturating_add(self.host_kernel_cycles)
            .saturating_add(self.host_user_cycles)
    }

    /// Share of the cycles with a walk under way, percent: the thesis's C_PW%.
    pub fn walk_percent(&self) -> Option<Hundredths> {
        let walk = u128::from(self.walk_cycles?);
        Hundredths::ratio(100 * walk, u128::from(self.total_cycles()))
    }

    /// Share of the cycles in the host's kernel, percent: the thesis's C_VMM%.
    pub fn vmm_percent(&self) -> Option<Hundredths> {
        let vmm = u128::from(self.host_kernel_cycles);
        Hundredths::ratio(100 * vmm, u128::from(self.total_cycles()))
    }

    /// Guest instructions per cycle as the script has them: the reciprocal of the cycles per
    /// instruction, both truncated to two decimals. None without instructions.
    pub fn script_ipc(&self) -> Option<Hundredths> {
        let cpi = Hundredths::ratio(self.total_cycles().into(), self.instructions.into())?;
        Hundredths::ratio(100, cpi.0.into())
    }

    /// Cycles per guest instruction. None without instructions.
    pub fn cpi(&self) -> Option<f64> {
        (self.instructions > 0).then(|| self.total_cycles() as f64 / self.instructions as f64)
    }

    /// Processors in use, thousandths: perf's "CPUs utilized", which it prints with three decimals.
    pub fn load_thousandths(&self) -> u64 {
        let duration = u128::from(self.duration_ns.max(1));
        let rounded = (u128::from(self.busy_ns) * 1000 + duration / 2) / duration;
        u64::try_from(rounded).unwrap_or(u64::MAX)
    }

    /// The value of a counter that may be missing.
    pub fn counter(&self, counter: Counter) -> Option<u64> {
        match counter {
            Counter::WalkCycles => self.walk_cycles,
            Counter::GuestPageFaults => self.guest_page_faults,
            Counter::TlbMisses => self.tlb_misses,
            Counter::VmExits => self.vm_exits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Hundredths, Mode, Sample, SampleError};

    fn sample() -> Sample {
        Sample {
            time_ns: 1_000_000_000,
            duration_ns: 1_000_000_000,
            busy_ns: 998_000_000,
            instructions: 2_000_000_000,
            guest_cycles: 3_000_000_000,
            host_kernel_cycles: 280_000_000,
            host_user_cycles: 20_000_000,
            walk_cycles: Some(500_000_000),
            guest_page_faults: None,
            tlb_misses: None,
            vm_exits: None,
            mode: Mode::Shadow,
        }
    }

    #[test]
    fn percentages_are_truncated_as_bc_does() {
        let s = sample();
        // 100*280/3300 = 8.4848..., 100*500/3300 = 15.1515...
        assert_eq!(s.vmm_percent(), Some(Hundredths(848)));
        assert_eq!(s.walk_percent(), Some(Hundredths(1515)));
        // 3300/2000 = 1.65; 1/1.65 = 0.6060...
        assert_eq!(s.script_ipc(), Some(Hundredths(60)));
        assert_eq!(s.load_thousandths(), 998);
        assert_eq!(Hundredths(848).to_string(), "8.48");
        assert_eq!(Hundredths(5).to_string(), "0.05");
    }

    #[test]
    fn nothing_is_divided_by_nothing() {
        let idle = Sample { instructions: 0, guest_cycles: 0, walk_cycles: Some(0), ..sample() };
        assert_eq!(idle.script_ipc(), None);
        assert_eq!(idle.cpi(), None);
        let none = Sample { host_kernel_cycles: 0, host_user_cycles: 0, ..idle };
        assert_eq!(none.walk_percent(), None);
        // More than 100 instructions per cycle: the script's CPI is 0 and its reciprocal nothing.
        let absurd = Sample { instructions: u64::MAX, ..sample() };
        assert_eq!(absurd.script_ipc(), None);
    }

    #[test]
    fn absurd_samples_are_known() {
        assert_eq!(sample().check(), Ok(()));
        let s = Sample { duration_ns: 0, ..sample() };
        assert_eq!(s.check(), Err(SampleError::EmptyInterval));
        let s = Sample { instructions: 48_000_000_001, ..sample() };
        assert!(matches!(s.check(), Err(SampleError::Instructions(..))));
        let s = Sample { walk_cycles: Some(u64::MAX), ..sample() };
        assert!(matches!(s.check(), Err(SampleError::WalkCycles(..))));
        let s = Sample { busy_ns: u64::MAX, ..sample() };
        assert!(matches!(s.check(), Err(SampleError::Busy(..))));
        let s = Sample { host_kernel_cycles: u64::MAX, ..sample() };
        assert!(matches!(s.check(), Err(SampleError::Cycles(..))));
    }
}
