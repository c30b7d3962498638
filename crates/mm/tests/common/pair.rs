//! A modelled guest with a machine that follows it, and short forms of what it says.

use super::{Machine, config, run};
use nestwalk_mm::{GuestConfig, ModelledGuest, PagePolicy};
use nestwalk_tables::{Entry, LONG4};
use nestwalk_types::{
    Batch, Control, GuestBatch, Gva, OsWork, ProcessId, Protection, Run, RunFlags, VcpuId,
};

pub const BASE: u64 = 0x4000_0000;
pub const STORE: RunFlags = RunFlags::STORE;

/// A guest and the machine that follows its output.
pub struct Pair {
    pub guest: ModelledGuest,
    pub machine: Machine,
    pub out: GuestBatch,
}

impl Pair {
    pub fn new(config: GuestConfig) -> Self {
        let guest = ModelledGuest::new(config).unwrap();
        Self { guest, machine: Machine::new(config.mode), out: GuestBatch::default() }
    }
    pub fn with(policy: &str) -> Self {
        let policy = PagePolicy::by_name(policy).unwrap();
        Self::new(GuestConfig { policy, ..config(&LONG4, 1024) })
    }
    pub fn batch(&mut self, batch: &Batch) -> &[(u32, Control)] {
        self.guest.process(batch, &mut self.out).unwrap();
        self.machine.follow(&self.out, |_, run, tag| tag + u64::from(run.flags.is_store()));
        &self.out.batch.controls
    }
    pub fn runs(&mut self, runs: &[Run]) -> Vec<Control> {
        let batch = Batch { runs: runs.to_vec(), controls: vec![] };
        self.batch(&batch).iter().map(|c| c.1.clone()).collect()
    }
    pub fn control(&mut self, control: Control) -> Vec<Control> {
        let batch = Batch { runs: vec![], controls: vec![(0, control)] };
        self.batch(&batch).iter().map(|c| c.1.clone()).collect()
    }
    pub fn store(&mut self, gva: u64) -> Vec<Control> {
        self.runs(&[run(0, gva, STORE)])
    }
    pub fn load(&mut self, gva: u64) -> Vec<Control> {
        self.runs(&[run(0, gva, RunFlags::default())])
    }
    pub fn switch(&mut self, vcpu: u8, process: u32) -> Vec<Control> {
        self.control(Control::Switch { vcpu: VcpuId(vcpu), process: ProcessId(process) })
    }
    pub fn fork(&mut self, parent: u32, child: u32) -> Vec<Control> {
        self.control(Control::Fork { parent: ProcessId(parent), child: ProcessId(child) })
    }
    pub fn map(&mut self, start: u64, pages: u64, protection: Protection) -> Vec<Control> {
        let (start, bytes) = (Gva::new(start), pages << 12);
        self.control(Control::Map { process: ProcessId(0), start, bytes, protection })
    }
    pub fn unmap(&mut self, start: u64, pages: u64) -> Vec<Control> {
        let (start, bytes) = (Gva::new(start), pages << 12);
        self.control(Control::Unmap { process: ProcessId(0), start, bytes })
    }
    pub fn populate(&mut self, start: u64, pages: u64) -> Vec<Control> {
        let (start, bytes) = (Gva::new(start), pages << 12);
        self.control(Control::Populate { process: ProcessId(0), start, bytes })
    }
    pub fn exit(&mut self, process: u32) -> Vec<Control> {
        self.control(Control::Exit { process: ProcessId(process) })
    }
}

pub fn writes(controls: &[Control]) -> Vec<Entry> {
    let value = |c: &Control| match c {
        Control::TableWrite { value, .. } => Some(Entry(*value)),
        _ => None,
    };
    controls.iter().filter_map(value).collect()
}

/// One letter per control: Fault, table New, Cleared page, table Write, zero written (0), INVLPG (I),
/// CR3 load (L, kept: K), work of the kernel (W).
pub fn letters(controls: &[Control]) -> String {
    let letter = |c: &Control| match *c {
        Control::Fault { .. } => 'F',
        Control::TableAdded { .. } => 'N',
        Control::PageCleared { .. } => 'C',
        Control::TableWrite { value: 0, .. } => '0',
        Control::TableWrite { .. } => 'w',
        Control::Invalidate { .. } => 'I',
        Control::LoadCr3 { keep: false, .. } => 'L',
        Control::LoadCr3 { keep: true, .. } => 'K',
        Control::OsWork { .. } => 'W',
        _ => '?',
    };
    controls.iter().map(letter).collect()
}

pub fn work(controls: &[Control], kind: OsWork) -> u32 {
    let count = |c: &Control| match c {
        Control::OsWork { work, count } if *work == kind => *count,
        _ => 0,
    };
    controls.iter().map(count).sum()
}
