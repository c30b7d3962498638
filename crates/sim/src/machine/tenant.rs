//! A virtual machine as its host sees it, where it is one of several.

use super::events::Events;
use crate::hardware::Hardware;
use crate::hardware::world::World;
use crate::measure::counters::{Counters, ExitReason};
use crate::scheme::guard::{Guard, Tracking};
use crate::scheme::{Event, MachineError};
use nestwalk_mm::HostMemory;
use nestwalk_types::{Address, Gpa, Hpa, PageSize, VcpuId};

/// What of a virtual machine goes from host to host, beside its memory.
pub struct Life {
    world: World,
    counters: Counters,
    instructions: u64,
    pcids: Vec<u16>,
    before: Option<Box<Counters>>,
    fresh: Vec<bool>,
    /// Merged pages that were stored to.
    broken: u64,
}

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

    /// The host logs from now on which pages the guest stores to, or no longer.
    ///
    /// # Errors
    /// The machine cannot go on.
    pub fn log_stores(&mut self, tracking: Option<Tracking>) -> Result<(), MachineError> {
        self.events.log_stores(tracking)
    }

    /// Numbers of the pages that were stored to since this was last asked, or logging began.
    pub fn take_dirty(&mut self) -> Vec<u64> {
        self.events.take_dirty()
    }

    /// The page behind `gpa` is merged with others of its contents: it has the frame `with` in place of
    /// its own, if one is given. Returns the frame; `None` if no page of 4 KiB is there.
    ///
    /// # Errors
    /// The machine cannot go on.
    pub fn merge(&mut self, gpa: Gpa, with: Option<Hpa>) -> Result<Option<Hpa>, MachineError> {
        self.events.merge(gpa, with)
    }

    /// Merged pages that were stored to so far, and have frames of their own since.
    pub fn broken(&self) -> u64 {
        self.events.platform.guard.as_ref().map_or(0, |guard| guard.broken)
    }

    /// The guest's state leaves this machine, which runs no more.
    pub fn take_life(&mut self) -> Life {
        let Events { platform, drive, .. } = &mut self.events;
        let (mode, vcpus) = (platform.cpu.world.mode, platform.cpu.hardware.cores.len());
        Life {
            world: std::mem::replace(&mut platform.cpu.world, World::new(mode, vcpus)),
            counters: platform.cpu.counters.clone(),
            instructions: platform.instructions,
            pcids: platform.cpu.hardware.cores.iter().map(|core| core.pcid).collect(),
            before: drive.before.take(),
            fresh: std::mem::take(&mut drive.fresh),
            broken: platform.guard.take().map_or(0, |guard| guard.broken),
        }
    }

    /// The guest goes on on this machine, which has run nothing yet.
    ///
    /// # Errors
    /// The machine cannot go on.
    pub fn give_life(&mut self, life: Life) -> Result<(), MachineError> {
        let Events { platform, drive, .. } = &mut self.events;
        let Life { world, counters, instructions, pcids, before, fresh, broken } = life;
        platform.cpu.world = world;
        platform.instructions = instructions;
        platform.guard = (broken > 0).then(|| Box::new(Guard { broken, log: None }));
        (drive.before, drive.fresh) = (before, fresh);
        for (vcpu, pcid) in pcids.into_iter().enumerate() {
            let vcpu = VcpuId(vcpu as u8);
            if self.events.platform.cpu.world.root(vcpu) != Gpa::new(0) {
                self.events.tell(Event::LoadCr3 { vcpu, pcid, keep: false })?;
            }
        }
        self.events.platform.cpu.counters = counters;
        Ok(())
    }

    /// The host takes the page back. Returns whether there was one.
    ///
    /// # Errors
    /// The host is out of memory, or the machine cannot go on.
    pub fn take_back(&mut self, gpa: Gpa) -> Result<bool, MachineError> {
        self.events.discard(gpa)
    }
}
