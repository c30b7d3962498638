//! The guest kernel's daemons: when they run, and what they work on.

use crate::daemons::{Daemons, Home, Watch};
use crate::guest::cpu::Cpu;
use crate::guest::emit::{Emit, Output, Work};
use crate::guest::{GuestError, GuestStats, ModelledGuest, Process};
use crate::space::{AddressSpace, Memory, canonical};
use nestwalk_types::{Address, ByNumber, Gpa, Gva, OsWork, Run, VcpuId};

/// When daemons run: the guest's time, and what they work with.
pub(super) struct Clock {
    pub daemons: Daemons,
    /// Instructions so far; counted only if a daemon needs them.
    instructions: u64,
    /// vCPU and page of the last run.
    last: (VcpuId, u64),
}

impl Clock {
    pub const fn new(daemons: Daemons) -> Self {
        Self { daemons, instructions: 0, last: (VcpuId(0), u64::MAX) }
    }
}

impl ModelledGuest {
    /// Translates runs, with daemons at work between them when their time has come: before the next
    /// run of another page, so that nothing depends on how accesses are cut into runs.
    pub(super) fn translate_on_time(
        &mut self,
        runs: &[Run],
        output: &mut Output<'_>,
    ) -> Result<(), GuestError> {
        if self.clock.daemons.due() == u64::MAX {
            return self.translate(runs, output);
        }
        let mut from = 0;
        for (i, run) in runs.iter().enumerate() {
            let page = (run.vcpu, run.gva.page_number());
            if self.clock.instructions >= self.clock.daemons.due() && page != self.clock.last {
                self.translate(&runs[from..i], output)?;
                from = i;
                self.run_daemons(output);
            }
            self.clock.last = page;
            self.clock.instructions += u64::from(run.instructions);
        }
        self.translate(&runs[from..], output)
    }

    /// Lets daemons work whose time has come.
    fn run_daemons(&mut self, output: &mut Output<'_>) {
        self.work.emit(output);
        let mut daemons = std::mem::take(&mut self.clock.daemons);
        daemons.run(self.clock.instructions, &mut self.home(output));
        self.clock.daemons = daemons;
        self.work.emit(output);
    }

    /// All processes, for those of the kernel who work on any of them.
    pub(super) fn home<'g, 'o>(&'g mut self, output: &'g mut Output<'o>) -> GuestHome<'g, 'o> {
        let mut ids = ByNumber::new();
        for (id, process) in self.processes.iter() {
            ids.insert(process.context, id);
        }
        GuestHome {
            ids,
            memory: &mut self.memory,
            processes: &mut self.processes,
            cpus: &mut self.cpus,
            current: self.current,
            output,
            work: &mut self.work,
            stats: &mut self.stats,
            entry_bytes: self.config.mode.entry_bytes,
            daemon: true,
        }
    }
}

/// All processes of the guest. Address spaces are known by their context numbers.
pub(super) struct GuestHome<'g, 'o> {
    /// Processes by their contexts.
    ids: ByNumber<u64>,
    memory: &'g mut Memory<Gpa>,
    processes: &'g mut ByNumber<Process>,
    cpus: &'g mut Vec<Cpu>,
    current: VcpuId,
    output: &'g mut Output<'o>,
    work: &'g mut Work,
    stats: &'g mut GuestStats,
    entry_bytes: u8,
    /// They run on a processor of their own, from which they interrupt vCPUs.
    pub(super) daemon: bool,
}

impl GuestHome<'_, '_> {
    /// vCPUs look the page up in the tables when they use it next.
    pub(super) fn forget(&mut self, id: u64, page: u64) {
        let Some(mode) = self.look(id).map(|space| space.config().mode) else { return };
        let gva = Gva::new(canonical(mode, page << 12));
        for cpu in self.cpus.iter_mut().filter(|cpu| cpu.loaded == id) {
            cpu.translations.forget_page(gva);
        }
    }
}

impl Home<Gva, Gpa> for GuestHome<'_, '_> {
    fn spaces(&self) -> Vec<u64> {
        self.ids.numbers().collect()
    }
    fn look(&self, id: u64) -> Option<&AddressSpace<Gva, Gpa>> {
        Some(&self.processes.get(*self.ids.get(id)?)?.space)
    }
    fn memory(&self) -> &Memory<Gpa> {
        self.memory
    }
    fn memory_mut(&mut self) -> &mut Memory<Gpa> {
        self.memory
    }

    fn with<R>(
        &mut self,
        id: u64,
        f: impl FnOnce(&mut AddressSpace<Gva, Gpa>, &mut Memory<Gpa>, &mut Watch<'_, Gva, Gpa>) -> R,
    ) -> Option<R> {
        let process = self.processes.get_mut(*self.ids.get(id)?)?;
        let mut emit = Emit {
            output: &mut *self.output,
            vcpu: crate::guest::acting(self.cpus, self.current, process.context),
            cpus: self.cpus,
            context: process.context,
            generation: &mut process.generation,
            entry_bytes: self.entry_bytes,
            work: self.work,
            invalidations: &mut self.stats.invalidations,
            segment_loads: &mut self.stats.segment_loads,
            interrupts: self.daemon.then_some(&mut self.stats.daemon_interrupts),
        };
        Some(f(&mut process.space, self.memory, &mut Watch(&mut emit)))
    }

    fn work(&mut self, work: OsWork, count: u64) {
        self.work.add(work, count);
    }
    fn changed(&mut self, _: u64, _: u64, _: u64) {}
}
