//! Events per million cycles, and the costs that the default thresholds are derived from.
//!
//! Neither DSP's nor Bae's nor Zhang's thresholds are known here (their sources state them for their
//! own machines only, or not at all). Ours are derived from published costs:
//!
//! - The page fault of a page of anonymous memory, without page-table isolation, makes 2.2 exits more
//!   under shadow paging than under nested paging, and 3.99 us with the work behind them, at prices
//!   fitted to LMbench (PVM, SOSP'23, Xeon Platinum 8269CY at 2.5 GHz; `docs/costs.md`): 9970 cycles.
//! - A walk makes 4.4 references under nested paging and 1.5 natively, with walk caches (Park et al.,
//!   ASPLOS'22). At the 54 cycles of a last-level hit (Victima's and SagePTE's configurations) a TLB
//!   miss costs 157 cycles more under nested paging.
//!
//! A rate is high where it costs more than one percent of all cycles, and where both are high, the
//! costs balance at 157 / 9970 = 0.016 faults per miss.

use crate::decision::Reason;
use crate::sample::{Counter, Sample};

/// One percent of a million cycles over 9970 cycles.
pub(crate) const FAULT_HIGH: &str = "1";
/// One percent of a million cycles over 157 cycles.
pub(crate) const MISS_HIGH: &str = "64";
/// 157 / 9970.
pub(crate) const FAULTS_PER_MISS: &str = "0.016";
/// A guest's page fault causes two exits under shadow paging where the emulated write fills the
/// shadow entry (Linux 4.19's KVM).
pub(crate) const EXIT_HIGH: &str = "2";
/// Where the thresholds come from.
pub(crate) const DERIVED: &str = "derived: 1 % of cycles at costs of PVM SOSP'23 and ASPLOS'22";

/// Events per million cycles of the vCPUs.
///
/// # Errors
/// The reason to ignore the sample: not counted, or no cycles.
pub(crate) fn rate(sample: &Sample, counter: Counter) -> Result<f64, Reason> {
    let events = sample.counter(counter).ok_or(Reason::NotCounted { counter })?;
    let cycles = sample.total_cycles();
    if cycles == 0 {
        return Err(Reason::NothingRan);
    }
    Ok(events as f64 * 1e6 / cycles as f64)
}

/// Brings a rate into 0..1: 0 at 0, 1/2 at `half`. Only exact operations, so that learned policies
/// decide alike on every machine.
pub(crate) fn squash(rate: f64, half: f64) -> f64 {
    rate / (rate + half)
}
