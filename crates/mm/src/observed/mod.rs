//! The observed guest: the tables of a real kernel, mirrored from its recorded stream.
//!
//! The protocol is described at [`ObservedGuest`].

mod mirror;
mod stats;
#[cfg(test)]
mod tests;
mod translate;

pub use stats::{
    DROP_REASONS, DropReason, Dropped, DroppedRun, LevelWrites, ObservedError, ObservedStats,
};

use crate::physical::pc_memory_map;
use mirror::{Mirror, Stale};
use nestwalk_tables::{Leaf, Mode, TableMemory};
use nestwalk_types::{Address, Batch, Control, Gpa, GuestBatch, GuestInfo, Gva, NumberSet, VcpuId};
use translate::Cpu;

/// Examples of dropped runs that are kept for each reason.
const KEPT_EXAMPLES: u64 = 3;

/// The observed guest: in comes the stream of a recorded guest, out goes the same stream with the
/// guest-physical address of each run.
///
/// The stream alone says what the tables are: `TableAdded` (a table from here on, with these contents),
/// `TableWrite` (one entry), `TableRetired` and `PageCleared` (no tables from here on), `LoadCr3`. A
/// run's address is what the tables say at its place in the stream, whatever a TLB may still hold;
/// accessed and dirty bits decide nothing here.
///
/// An access that was made had a translation, so a run without one is a sign of order lost: with
/// several vCPUs, one may use a TLB entry whose page table entry another has cleared already. Such
/// runs are *dropped*, counted by reason, and the first few are kept for messages. Accesses to
/// devices, which no memory is behind, are dropped as well.
pub struct ObservedGuest {
    mirror: Mirror,
    ranges: Vec<(Gpa, u64)>,
    cpus: Vec<Cpu>,
    processes: NumberSet,
    stats: ObservedStats,
    examples: Vec<DroppedRun>,
}

impl ObservedGuest {
    /// Of a guest of which nothing is known yet but what its stream says of itself. Memory is laid out
    /// as [`pc_memory_map`] says.
    ///
    /// # Errors
    /// A paging mode that is not known, no vCPUs, no memory.
    pub fn new(info: &GuestInfo) -> Result<Self, ObservedError> {
        let name = info.paging.clone();
        let mode = Mode::by_name(&name).ok_or(ObservedError::NoSuchMode { name })?;
        if info.vcpus == 0 || info.memory_bytes == 0 {
            return Err(ObservedError::Empty { vcpus: info.vcpus, bytes: info.memory_bytes });
        }
        let ranges: Vec<(Gpa, u64)> = pc_memory_map(info.memory_bytes);
        Ok(Self {
            mirror: Mirror::new(mode, end_of(&ranges).page_number()),
            ranges,
            cpus: (0..info.vcpus).map(|_| Cpu::new(mode)).collect(),
            processes: NumberSet::new(),
            stats: ObservedStats::default(),
            examples: Vec::new(),
        })
    }

    /// Paging mode of the guest.
    pub const fn mode(&self) -> &'static Mode {
        self.mirror.mode
    }
    /// The guest's tables as they are now.
    pub const fn tables(&self) -> &TableMemory<Gpa> {
        &self.mirror.tables
    }
    /// Root table of a vCPU, once it has loaded one.
    pub fn root(&self, vcpu: VcpuId) -> Option<Gpa> {
        self.cpus.get(usize::from(vcpu.0))?.root
    }
    /// The first few dropped runs of each reason, in the order of the stream.
    pub fn examples(&self) -> &[DroppedRun] {
        &self.examples
    }
    /// What was seen and what is held.
    pub fn stats(&self) -> ObservedStats {
        ObservedStats {
            table_writes: self.mirror.writes(),
            stray_writes: self.mirror.stray_writes,
            tables: self.mirror.tables.len(),
            peak_tables: self.mirror.peak,
            processes: self.processes.len() as u64,
            ..self.stats
        }
    }

    /// Where the tables that the vCPU has in CR3 put an address now, whatever the access.
    ///
    /// # Errors
    /// They do not.
    pub fn look_up(&self, vcpu: VcpuId, gva: Gva) -> Result<Leaf<Gpa>, ObservedError> {
        let leaf = self.root(vcpu).filter(|_| self.is_translated(gva)).and_then(|root| {
            nestwalk_tables::look_up(&self.mirror.tables, self.mirror.mode, root, gva).ok()
        });
        leaf.ok_or(ObservedError::NotMapped { vcpu, gva })
    }

    /// Deals with a batch: `output` is replaced by the same controls, and the same runs with their
    /// addresses but for those that are dropped.
    ///
    /// # Errors
    /// An event that no recorded guest says. What was dealt with before is in `output`.
    pub fn process(&mut self, input: &Batch, output: &mut GuestBatch) -> Result<(), ObservedError> {
        output.batch.runs.clear();
        output.batch.controls.clear();
        output.gpas.clear();
        let mut index = 0;
        for (controls, runs) in input.segments() {
            for (_, control) in controls {
                self.control(index, control)?;
                index += 1;
                let position = output.batch.runs.len() as u32;
                output.batch.controls.push((position, control.clone()));
            }
            let runs = &input.runs[runs];
            if let Some(run) = runs.iter().find(|r| usize::from(r.vcpu.0) >= self.cpus.len()) {
                return Err(self.no_such_vcpu(run.vcpu));
            }
            self.translate(runs, output);
        }
        Ok(())
    }

    /// Deals with the controls of a batch only, when nobody needs its runs.
    ///
    /// # Errors
    /// As [`ObservedGuest::process`].
    pub fn follow(&mut self, controls: &[(u32, Control)]) -> Result<(), ObservedError> {
        controls.iter().enumerate().try_for_each(|(i, (_, control))| self.control(i, control))
    }

    fn control(&mut self, index: usize, control: &Control) -> Result<(), ObservedError> {
        let refused = |name| Err(ObservedError::OfProcess { index, name });
        match *control {
            Control::TableWrite { gpa, value, .. } => {
                let stale = self.mirror.write(gpa, value);
                self.forget(stale);
            }
            Control::TableAdded { gpa, ref entries, .. } => {
                self.check(index, gpa, 0x1000)?;
                self.stats.tables_new += 1;
                let stale = self.mirror.insert(gpa, entries.as_deref());
                self.forget(stale);
            }
            Control::TableRetired { gpa, .. } => {
                let stale = self.mirror.remove(gpa);
                self.forget(stale);
            }
            Control::PageCleared { gpa, size, .. } => {
                self.check(index, gpa, size.bytes())?;
                for page in 0..size.base_pages() {
                    let stale = self.mirror.remove(gpa.offset_by(page << 12));
                    self.forget(stale);
                }
            }
            Control::LoadCr3 { vcpu, root, .. } => {
                let vcpus = self.cpus.len();
                let Some(cpu) = self.cpus.get_mut(usize::from(vcpu.0)) else {
                    return Err(ObservedError::NoSuchVcpu { vcpu, vcpus });
                };
                self.stats.cr3_loads += 1;
                self.stats.cr3_reloads += u64::from(cpu.root == Some(root));
                cpu.load(root);
                self.mirror.root(root);
            }
            Control::Invalidate { .. } => self.stats.invalidations += 1,
            Control::Fault { code, .. } => {
                self.stats.faults += 1;
                self.stats.protection_faults += u64::from(code.present);
                self.stats.write_faults += u64::from(code.write);
                self.stats.fetch_faults += u64::from(code.fetch);
                self.stats.kernel_faults += u64::from(!code.user);
            }
            Control::Process { id, .. } => {
                self.processes.insert(u64::from(id.0));
            }
            Control::Prefault { start, bytes } => self.check(index, start, bytes)?,
            Control::RegionOfInterest | Control::OsWork { .. } => {}
            Control::LoadSegment { .. } => return refused("a load of segment registers"),
            Control::SelfBallooned { .. } => return refused("memory that was exchanged"),
            Control::WrittenOut { .. } => return refused("a page that goes to a device"),
            Control::Switch { .. } => return refused("a switch between processes"),
            Control::Map { .. } => return refused("a mapping"),
            Control::Populate { .. } => return refused("a populated range"),
            Control::Unmap { .. } => return refused("an unmapped range"),
            Control::Protect { .. } => return refused("a change of protection"),
            Control::Fork { .. } => return refused("a fork"),
            Control::Exec { .. } => return refused("an exec"),
            Control::Exit { .. } => return refused("an exit"),
        }
        Ok(())
    }

    /// Whether an event is about guest memory.
    fn check(&self, index: usize, gpa: Gpa, bytes: u64) -> Result<(), ObservedError> {
        let end = end_of(&self.ranges);
        if gpa <= end && bytes <= end.value() - gpa.value() {
            return Ok(());
        }
        let memory = self.ranges.iter().map(|r| r.1).sum();
        Err(ObservedError::OutsideMemory { index, gpa, bytes, memory, end })
    }

    #[inline]
    fn forget(&mut self, stale: Stale) {
        match stale {
            Stale::Nothing => {}
            Stale::Page(gva) => {
                self.cpus.iter_mut().for_each(|c| c.translations.forget_page(gva));
            }
            Stale::Everything => self.cpus.iter_mut().for_each(Cpu::forget),
        }
    }

    const fn no_such_vcpu(&self, vcpu: VcpuId) -> ObservedError {
        ObservedError::NoSuchVcpu { vcpu, vcpus: self.cpus.len() }
    }
}

/// The first address behind guest memory.
fn end_of(ranges: &[(Gpa, u64)]) -> Gpa {
    ranges.iter().map(|(start, bytes)| start.offset_by(*bytes)).max().unwrap_or_default()
}
