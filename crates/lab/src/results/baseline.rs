//! The one machine that all run times of a comparison are told relative to.

use nestwalk_sim::report::results::MachineResult;

/// The baseline of a comparison.
#[derive(Clone, Copy, Debug)]
pub struct Baseline<'a> {
    /// The machine.
    pub machine: &'a MachineResult,
    /// Every machine made the same accesses. Where not, as of a guest that was recorded and one that is
    /// re-mapped without its kernel, run times are per instruction.
    pub same_work: bool,
}

/// Machines whose accesses and instructions differ by less than this share are told apart by their run
/// times per instruction.
const NEARLY: f64 = 0.01;

/// Accesses and instructions that were counted.
fn work(m: &MachineResult) -> (u64, u64) {
    (m.accesses, m.instructions)
}

impl<'a> Baseline<'a> {
    /// The fastest ideal machine: it has no cost of translation, and of all guests the one whose kernel
    /// does least. The fastest of all if there is none. None without machines or without accesses.
    pub fn of(machines: &'a [MachineResult]) -> Option<Self> {
        let first = machines.first()?;
        let ideal = machines.iter().filter(|m| m.scheme == "ideal");
        let pace = |m: &MachineResult| Self { machine: first, same_work: false }.cycles(m);
        let fastest = |a: &&MachineResult, b: &&MachineResult| pace(a).total_cmp(&pace(b));
        let machine = ideal.min_by(fastest).or_else(|| machines.iter().min_by(fastest))?;
        let same_work = machines.iter().all(|m| work(m) == work(first));
        (machine.accesses > 0 && machine.total_cycles > 0.0).then_some(Self { machine, same_work })
    }

    /// Whether a machine did what the baseline did, or nearly: only then it is faster or slower.
    pub fn compares_with(&self, m: &MachineResult) -> bool {
        let near = |a: u64, b: u64| a.abs_diff(b) as f64 <= NEARLY * b as f64;
        let (of, base) = (work(m), work(self.machine));
        near(of.0, base.0) && near(of.1, base.1)
    }

    /// The same machine in another run.
    pub fn in_run<'b>(&self, machines: &'b [MachineResult]) -> Option<Baseline<'b>> {
        let machine = machines.iter().find(|m| m.name == self.machine.name)?;
        Some(Baseline { machine, same_work: self.same_work })
    }

    /// Cycles of a machine: all, or per instruction (per access if instructions are not known) where
    /// machines did not do the same.
    fn cycles(&self, m: &MachineResult) -> f64 {
        let each = if m.instructions > 0 { m.instructions } else { m.accesses.max(1) };
        if self.same_work { m.total_cycles } else { m.total_cycles / each as f64 }
    }

    /// Run time of a machine, as a multiple of the baseline's.
    pub fn run_time(&self, m: &MachineResult) -> f64 {
        self.cycles(m) / self.cycles(self.machine)
    }

    /// A part of a machine's cycles in points: percent of the baseline's run time.
    pub fn points(&self, m: &MachineResult, cycles: f64) -> f64 {
        100.0 * self.run_time(m) * cycles / m.total_cycles.max(1.0)
    }
}
