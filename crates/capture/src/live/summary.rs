//! What was recorded, in numbers.

use nestwalk_types::{Control, Run};

/// Accesses that the stream does not show, by reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unseen {
    /// To a device.
    Device,
    /// The second page of an access across two pages was not mapped when it was looked up.
    SecondPage,
    /// Another.
    Other,
}

impl Unseen {
    pub(super) const fn of(number: u64) -> Self {
        match number {
            0 => Self::Device,
            1 => Self::SecondPage,
            _ => Self::Other,
        }
    }
    /// Its name in summaries.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::SecondPage => "second_page",
            Self::Other => "other",
        }
    }
}

/// Counts of a recording.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Page runs.
    pub runs: u64,
    /// Accesses in them.
    pub accesses: u64,
    /// Of these, instruction fetches.
    pub fetches: u64,
    /// Of these, in kernel mode.
    pub kernel: u64,
    /// Instructions.
    pub instructions: u64,
    /// Controls.
    pub controls: u64,
    /// Of these, stores to tables.
    pub table_writes: u64,
    /// Of these, page faults.
    pub faults: u64,
    /// Of these, loads of CR3.
    pub cr3_loads: u64,
    /// Times that the guest waited for the simulator.
    pub waits: u64,
    unseen: [u64; 3],
}

impl Summary {
    pub(super) fn add(&mut self, run: &Run) {
        let count = u64::from(run.count);
        self.runs += 1;
        self.accesses += count;
        self.instructions += u64::from(run.instructions);
        self.fetches += if run.flags.is_fetch() { count } else { 0 };
        self.kernel += if run.flags.is_kernel() { count } else { 0 };
    }
    pub(super) fn count(&mut self, control: &Control) {
        self.controls += 1;
        match control {
            Control::TableWrite { .. } => self.table_writes += 1,
            Control::Fault { .. } => self.faults += 1,
            Control::LoadCr3 { .. } => self.cr3_loads += 1,
            _ => {}
        }
    }
    pub(super) fn unseen(&mut self, reason: Unseen, count: u64) {
        self.unseen[reason as usize] += count;
    }
    /// Accesses that the stream does not show, by reason.
    pub fn not_seen(&self) -> impl Iterator<Item = (Unseen, u64)> {
        let all = [Unseen::Device, Unseen::SecondPage, Unseen::Other];
        all.into_iter().zip(self.unseen).filter(|(_, n)| *n > 0)
    }
}
