//! A virtual machine as its host sees it, where it is one of several.

use super::events::Events;
use crate::hardware::Hardware;
use crate::measure::counters::{Counters, ExitReason};
use crate::scheme::MachineError;
use nestwalk_mm::HostMemory;
use nestwalk_types::{Address, Gpa, PageSize};

/// A virtual machine as its host sees it.
pub struct Tenant<'a> {
    events: Events<'a>,
}

impl<'a> Tenant<'a> {
    pub(super) const fn new(events: Events<'a>) -> Self {
        Self { events }
    }

    /// The processor, as the VM has it for its turn.
    pub const fn hardware(&mut self) -> &mut Hardware {
        &mut self.events.platform.cpu.hardware
    }

    /// What was counted.
    pub const fn counters(&mut self) -> &mut Counters {
        &mut self.events.platform.cpu.counters
    }

    /// The host's memory, as the VMM process of this VM has it.
    pub const fn host(&mut self) -> Option<&mut HostMemory> {
        self.events.platform.host.as_mut()
    }

    /// Each of the VM's processors is called out of the guest for this.
    pub fn exits(&mut self, reason: ExitReason) {
        let cores = self.events.platform.cpu.hardware.cores.len() as u64;
        self.counters().exits[reason as usize] += cores;
    }

    /// The page behind `gpa`, as large as it would be taken back.
    pub fn page(&mut self, gpa: Gpa) -> Option<(Gpa, PageSize)> {
        self.host()?.whole_page(gpa)
    }

    /// Whether the page was used since this was last asked, by what the host's kernel has marked
    /// and by the accessed bits of the VMM's tables.
    ///
    /// # Errors
    /// The machine cannot go on.
    pub fn take_used(&mut self, at: Gpa, size: PageSize) -> Result<bool, MachineError> {
        self.counters().host_pages_scanned += 1;
        let Events { software, platform, .. } = &mut self.events;
        let accessed = software.take_accessed(platform, at, size)?;
        // After the tables: what they drop may be asked for again at once.
        let mut marked = false;
        for page in 0..size.base_pages() {
            let gpa = at.offset_by(page << 12);
            marked |= platform.host.as_mut().is_some_and(|h| h.take_mark(gpa));
        }
        Ok(accessed || marked)
    }

    /// The host takes the page back. Returns whether there was one.
    ///
    /// # Errors
    /// The host is out of memory, or the machine cannot go on.
    pub fn take_back(&mut self, gpa: Gpa) -> Result<bool, MachineError> {
        self.events.discard(gpa)
    }
}
