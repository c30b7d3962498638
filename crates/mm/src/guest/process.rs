//! Processes: creation, switch, fork, exec, exit, and changes of their mappings.

use crate::error::MmError;
use crate::guest::cpu::Cpu;
use crate::guest::emit::{Emit, Output, registers};
use crate::guest::{GuestError, ModelledGuest, Process};
use crate::space::{AddressSpace, Memory};
use nestwalk_types::{Address, Control, Gpa, Gva, OsWork, ProcessId, Protection, VcpuId};

/// Bytes that a kernel which swaps makes present at a time.
const PIECE: u64 = 64 << 12;

impl ModelledGuest {
    /// Says what an error of an address space means for the guest.
    pub(super) fn error(&self, process: ProcessId, error: MmError) -> GuestError {
        match error {
            MmError::OutOfMemory { address, .. } => GuestError::OutOfMemory {
                process,
                gva: address,
                bytes: self.memory.physical.bytes(),
                resident: self.memory.counters.data_frames << 12,
                tables: self.memory.counters.table_frames << 12,
            },
            error => GuestError::Process { process, error },
        }
    }

    /// Does something with a process's address space, on the vCPU that acts for it.
    pub(super) fn with<R>(
        &mut self,
        id: ProcessId,
        vcpu: VcpuId,
        output: &mut Output<'_>,
        f: impl FnOnce(
            &mut AddressSpace<Gva, Gpa>,
            &mut Memory<Gpa>,
            &mut Emit<'_, '_>,
        ) -> Result<R, MmError>,
    ) -> Result<R, GuestError> {
        self.create(id, vcpu, output)?;
        self.memory.physical.set_cpu(vcpu.0);
        let result = match self.processes.get_mut(id.0.into()) {
            Some(process) => {
                let mut emit = Emit {
                    output,
                    cpus: &mut self.cpus,
                    vcpu,
                    context: process.context,
                    generation: &mut process.generation,
                    entry_bytes: self.config.mode.entry_bytes,
                    work: &mut self.work,
                    invalidations: &mut self.stats.invalidations,
                    segment_loads: &mut self.stats.segment_loads,
                    interrupts: None,
                };
                f(&mut process.space, &mut self.memory, &mut emit)
            }
            None => Err(MmError::NoMapping { space: Gva::SPACE, address: 0 }),
        };
        result.map_err(|e| self.error(id, e))
    }

    /// An empty address space with a number of its own.
    fn new_process(
        &mut self,
        id: ProcessId,
        vcpu: VcpuId,
        output: &mut Output<'_>,
    ) -> Result<Process, GuestError> {
        self.contexts += 1;
        let (context, mut generation) = (self.contexts, 0);
        let mut emit = Emit {
            output,
            cpus: &mut self.cpus,
            vcpu,
            context,
            generation: &mut generation,
            entry_bytes: self.config.mode.entry_bytes,
            work: &mut self.work,
            invalidations: &mut self.stats.invalidations,
            segment_loads: &mut self.stats.segment_loads,
            interrupts: None,
        };
        match AddressSpace::new(self.space_config, &mut self.memory, &mut emit) {
            Ok(space) => Ok(Process { space, context, generation }),
            Err(e) => Err(self.error(id, e)),
        }
    }

    /// A process that was never mentioned comes into being.
    pub(super) fn create(
        &mut self,
        id: ProcessId,
        vcpu: VcpuId,
        output: &mut Output<'_>,
    ) -> Result<(), GuestError> {
        if !self.processes.contains(id.0.into()) {
            let process = self.new_process(id, vcpu, output)?;
            self.processes.insert(id.0.into(), process);
        }
        Ok(())
    }

    pub(super) fn cpu(&mut self, vcpu: VcpuId) -> &mut Cpu {
        let index = usize::from(vcpu.0);
        if index >= self.cpus.len() {
            let mode = self.config.mode;
            self.cpus.resize_with(index + 1, || Cpu::new(mode));
        }
        &mut self.cpus[index]
    }

    /// Loads CR3 with the process's root, unless it is there.
    pub(super) fn load(
        &mut self,
        vcpu: VcpuId,
        id: ProcessId,
        output: &mut Output<'_>,
    ) -> Result<(), GuestError> {
        self.create(id, vcpu, output)?;
        let pcids = self.config.pcids;
        let Some(process) = self.processes.get(id.0.into()) else { return Ok(()) };
        let (root, context) = (process.space.root(), process.context);
        let generation = process.generation;
        let cpu = self.cpu(vcpu);
        cpu.process = Some(id);
        if cpu.loaded != context {
            let keep = cpu.load(context, generation, root, pcids);
            let pcid = cpu.pcid;
            output.control(Control::LoadCr3 { vcpu, root, pcid, keep });
            self.stats.cr3_loads += 1;
            self.load_segment(vcpu, id, output);
        }
        Ok(())
    }

    /// The segment registers are part of a process's context: they are loaded with CR3, but not if
    /// neither the old nor the new process has a segment.
    fn load_segment(&mut self, vcpu: VcpuId, id: ProcessId, output: &mut Output<'_>) {
        let region = self.processes.get(id.0.into()).and_then(|p| p.space.region());
        let cpu = self.cpu(vcpu);
        if cpu.segment || region.is_some() {
            cpu.segment = region.is_some();
            let segment = region.map(|r| Box::new(registers(&r)));
            output.control(Control::LoadSegment { vcpu, segment });
            self.stats.segment_loads += 1;
        }
    }

    pub(super) fn switch(
        &mut self,
        vcpu: VcpuId,
        id: ProcessId,
        output: &mut Output<'_>,
    ) -> Result<(), GuestError> {
        self.current = vcpu;
        if self.cpu(vcpu).process != Some(id) {
            self.count(OsWork::ContextSwitch);
        }
        self.load(vcpu, id, output)
    }

    /// Does something with a process's mappings.
    pub(super) fn change(
        &mut self,
        id: ProcessId,
        output: &mut Output<'_>,
        f: impl FnOnce(
            &mut AddressSpace<Gva, Gpa>,
            &mut Memory<Gpa>,
            &mut Emit<'_, '_>,
        ) -> Result<(), MmError>,
    ) -> Result<(), GuestError> {
        let vcpu = self.acting_for(id);
        self.with(id, vcpu, output, f)
    }

    fn acting_for(&self, id: ProcessId) -> VcpuId {
        self.processes.get(id.0.into()).map_or(self.current, |p| self.acting(p.context))
    }

    /// What is not mapped in the range is mapped first, as an access there would have it.
    pub(super) fn populate(
        &mut self,
        id: ProcessId,
        start: Gva,
        bytes: u64,
        output: &mut Output<'_>,
    ) -> Result<(), GuestError> {
        let vcpu = self.acting_for(id);
        let gaps = self.with(id, vcpu, output, |space, memory, emit| {
            space.map_gaps(memory, start, bytes, Protection::ALL, emit)
        })?;
        self.stats.implicit_mappings += gaps;
        // A kernel that swaps may have to make room between pages.
        let piece = if self.reclaim.is_some() { PIECE } else { bytes.max(1) };
        let mut done = 0;
        while done < bytes {
            let (at, bytes) = (start.offset_by(done), piece.min(bytes - done));
            self.make_room(bytes >> 12, output);
            self.with(id, vcpu, output, |space, memory, emit| {
                space.populate(memory, at, bytes, emit)
            })?;
            done += bytes;
            let context = self.processes.get(id.0.into()).map_or(0, |p| p.context);
            if self.reclaim.is_some() {
                (0..bytes >> 12).for_each(|i| self.page_came(context, at.offset_by(i << 12)));
            }
        }
        Ok(())
    }

    /// A child that exists already is gone first: its exit was not part of the trace.
    pub(super) fn fork(
        &mut self,
        parent: ProcessId,
        child: ProcessId,
        output: &mut Output<'_>,
    ) -> Result<(), GuestError> {
        if parent == child {
            return Err(GuestError::ForkOfItself(parent));
        }
        self.exit(child, output);
        let vcpu = self.acting_for(parent);
        self.make_room(self.memory.counters.table_frames, output);
        let space =
            self.with(parent, vcpu, output, |space, memory, emit| space.fork(memory, emit))?;
        self.contexts += 1;
        self.processes
            .insert(child.0.into(), Process { space, context: self.contexts, generation: 0 });
        self.count(OsWork::Fork);
        Ok(())
    }

    /// The vCPU that executes it switches to the new address space, then the old one is unmapped
    /// (`exec_mmap`). Other vCPUs that ran the process load the new one at their next access.
    pub(super) fn exec(
        &mut self,
        id: ProcessId,
        output: &mut Output<'_>,
    ) -> Result<(), GuestError> {
        let vcpu = self.acting_for(id);
        let new = self.new_process(id, vcpu, output)?;
        if let Some(old) = self.processes.insert(id.0.into(), new) {
            if self.cpus.get(usize::from(vcpu.0)).is_some_and(|c| c.loaded == old.context) {
                self.load(vcpu, id, output)?;
            }
            self.tear_down(old, vcpu, output);
        }
        self.count(OsWork::Exec);
        Ok(())
    }

    /// Does nothing if there is no such process. A vCPU that runs it goes on in the kernel until the
    /// next switch; should it access memory before, the process begins anew.
    pub(super) fn exit(&mut self, id: ProcessId, output: &mut Output<'_>) {
        let vcpu = self.acting_for(id);
        if let Some(process) = self.processes.remove(id.0.into()) {
            self.tear_down(process, vcpu, output);
            self.count(OsWork::Exit);
        }
    }

    fn tear_down(&mut self, process: Process, vcpu: VcpuId, output: &mut Output<'_>) {
        let Process { space, context, mut generation } = process;
        self.memory.physical.set_cpu(vcpu.0);
        let mut emit = Emit {
            output,
            cpus: &mut self.cpus,
            vcpu,
            context,
            generation: &mut generation,
            entry_bytes: self.config.mode.entry_bytes,
            work: &mut self.work,
            invalidations: &mut self.stats.invalidations,
            segment_loads: &mut self.stats.segment_loads,
            interrupts: None,
        };
        space.destroy(&mut self.memory, &mut emit);
        self.cpus.iter_mut().filter(|c| c.loaded == context).for_each(Cpu::lose);
    }
}
