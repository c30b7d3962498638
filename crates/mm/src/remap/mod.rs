//! The re-mapped guest: recorded accesses with a modelled kernel's placement in place of the recorded
//! page tables.
//!
//! The protocol is described at [`Remap`].

mod ranges;
mod spaces;

use crate::observed::ObservedError;
use nestwalk_tables::Mode;
use nestwalk_tables::entry::WRITE;
use nestwalk_types::{
    Batch, Control, GuestInfo, Gva, ProcessId, Run, RunFlags, Source, SourceError, VcpuId,
};
use ranges::{Mapping, Pages, Ranges};
use spaces::{PageEvent, SpaceId, Spaces};
use std::sync::Arc;

const BLOCK: u64 = 2 << 20;

/// Why a stream cannot be re-mapped.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RemapError {
    /// Its events are not those of a recorded guest.
    #[error(transparent)]
    Observed(#[from] ObservedError),
    /// The stream ended with an error.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// User space is not the lower half of the addresses.
    #[error("{} paging: only guests with 64-bit addresses can be re-mapped", mode.name)]
    Mode {
        /// The guest's paging mode.
        mode: &'static Mode,
    },
}

fn spaces(info: &GuestInfo) -> Result<Spaces, RemapError> {
    let spaces = Spaces::new(info)?;
    let mode = spaces.mode();
    if mode.address_bits() == 32 { Err(RemapError::Mode { mode }) } else { Ok(spaces) }
}

/// What every address space of a recording had mapped at some time, found in a pass over its controls.
pub struct Survey {
    spaces: Spaces,
    pages: Vec<Pages>,
}

/// Mappings by address space, in the order of their first loads.
#[derive(Debug, Default)]
pub struct Mappings(Vec<Vec<Mapping>>);

impl Survey {
    /// Of a stream of which nothing was read yet.
    ///
    /// # Errors
    /// No guest that can be re-mapped.
    pub fn new(info: &GuestInfo) -> Result<Self, RemapError> {
        Ok(Self { spaces: spaces(info)?, pages: Vec::new() })
    }
    /// Deals with the stream's next control; runs need not be shown.
    ///
    /// # Errors
    /// No event of a recorded guest.
    pub fn follow(&mut self, control: &(u32, Control)) -> Result<(), RemapError> {
        for event in self.spaces.follow(control)? {
            if let PageEvent::Mapped { space, start, bytes, protection } = *event {
                let space = space as usize;
                if space >= self.pages.len() {
                    self.pages.resize_with(space + 1, Pages::default);
                }
                self.pages[space].add(start, bytes, protection);
            }
        }
        Ok(())
    }
    /// Deals with all that a source has left.
    ///
    /// # Errors
    /// The source fails, or says what no recorded guest does.
    pub fn read(&mut self, source: &mut dyn Source) -> Result<(), RemapError> {
        let mut batch = Batch::default();
        while source.next_batch(&mut batch)? {
            batch.controls.iter().try_for_each(|control| self.follow(control))?;
        }
        Ok(())
    }
    /// What was found.
    pub fn finish(self) -> Mappings {
        Mappings(self.pages.into_iter().map(Pages::mappings).collect())
    }
}

impl Mappings {
    /// The mapping that holds an address.
    fn find(&self, space: SpaceId, at: u64) -> Option<&Mapping> {
        let all = self.0.get(space as usize)?;
        let after = all.partition_point(|m| m.start <= at);
        all.get(after.checked_sub(1)?).filter(|m| at < m.end)
    }
}

/// What a re-mapping has seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RemapStats {
    /// Accesses of the recording.
    pub accesses: u64,
    /// Of these, the ones to the kernel's half, which are left out.
    pub left_out: u64,
    /// Of these, the ones outside of everything that was mapped at some time.
    pub unmapped: u64,
    /// Address spaces that user programs ran in.
    pub processes: u64,
    /// Of these, the ones that began as a copy of another.
    pub forks: u64,
}

/// A user address space as a process of the modelled guest.
#[derive(Default)]
struct Process {
    /// The modelled guest has it.
    alive: bool,
    /// What the modelled guest has mapped for it.
    mapped: Ranges,
}

/// A vCPU.
#[derive(Default)]
struct Cpu {
    /// Whose addresses the modelled guest has here.
    running: Option<SpaceId>,
    /// A part of what is mapped for it.
    window: (u64, u64),
    /// What the kernel cleared here since a program ran: `(address space, first, end)`.
    cleared: Vec<(SpaceId, u64, u64)>,
}

/// Turns the stream of a recorded guest into that of processes, for a [`crate::ModelledGuest`].
///
/// - A process is a user address space: the root table that CR3 had. (Threads are one process.)
/// - Accesses to the user's half of the addresses are kept, whoever makes them; those to the kernel's
///   half are left out.
/// - Mappings are not in the stream. A [`Survey`] of the whole recording finds what was mapped at some
///   time, and how; all of that around an access counts as mapped when the access comes. Without a
///   survey, that is for a stream that is not known before it runs, the modelled guest maps the aligned
///   block around each access.
/// - Leaves that the kernel cleared, and that are not there again when a program next runs on the
///   vCPU, were unmapped, together with what was never touched beside them. If none is left the
///   process has ended.
/// - What the address spaces that are loaded before the first access have mapped, the recording found
///   there: each page of it is touched once before counting begins.
/// - A root table whose pages are, for the most part, at the same addresses in a living process, when
///   it is loaded for the first time, is a fork of that.
pub struct Remap {
    spaces: Spaces,
    mappings: Option<Arc<Mappings>>,
    processes: Vec<Process>,
    cpus: Vec<Cpu>,
    stats: RemapStats,
    /// The first access has come.
    begun: bool,
    /// Bytes of guest memory.
    memory_bytes: u64,
}

impl Remap {
    /// Of a stream that begins now. `mappings` are those of a [`Survey`] of the same stream.
    ///
    /// # Errors
    /// No guest that can be re-mapped.
    pub fn new(info: &GuestInfo, mappings: Option<Arc<Mappings>>) -> Result<Self, RemapError> {
        let cpus = (0..info.vcpus).map(|_| Cpu::default()).collect();
        let (processes, stats) = (Vec::new(), RemapStats::default());
        let memory_bytes = info.memory_bytes;
        Ok(Self {
            spaces: spaces(info)?,
            mappings,
            processes,
            cpus,
            stats,
            begun: false,
            memory_bytes,
        })
    }

    /// What results must name, a sentence each.
    pub fn approximations(&self) -> Vec<String> {
        let mappings = if self.mappings.is_some() {
            "mappings are rebuilt from what the recorded page tables mapped at some time; less than \
             2 MiB between writable parts count as mapped, too"
        } else {
            "mappings are not known while the guest runs: the aligned 2 MiB around an access count \
             as mapped"
        };
        [
            "the recorded guest is re-mapped: a modelled kernel in place of the recorded one, whose \
             accesses to its own half of the addresses are left out",
            mappings,
            "pages of files are faulted in one by one at their first use; a fork happens when the child \
             first runs",
        ]
        .map(String::from)
        .into()
    }

    /// What was seen.
    pub const fn stats(&self) -> RemapStats {
        self.stats
    }

    /// Deals with a batch: `output` is replaced by what its processes do.
    ///
    /// # Errors
    /// No event of a recorded guest. What was dealt with before is in `output`.
    pub fn process(&mut self, input: &Batch, output: &mut Batch) -> Result<(), RemapError> {
        output.runs.clear();
        output.controls.clear();
        for (controls, runs) in input.segments() {
            for control in controls {
                self.control(control, output)?;
            }
            self.begun |= !runs.is_empty();
            for run in &input.runs[runs] {
                let count = u64::from(run.count);
                self.stats.accesses += count;
                if run.gva.value() >> 63 == 1 {
                    self.stats.left_out += count;
                    continue;
                }
                let Some(space) = self.spaces.current(run.vcpu) else {
                    self.stats.unmapped += count;
                    continue;
                };
                let cpu = &self.cpus[usize::from(run.vcpu.0)];
                let settled = cpu.cleared.is_empty() || run.flags.is_kernel();
                let at = run.gva.value();
                let (from, to) = cpu.window;
                if !(settled && cpu.running == Some(space) && from <= at && at < to) {
                    self.prepare(run.vcpu, space, (at, count), !settled, output);
                }
                output.runs.push(*run);
            }
        }
        Ok(())
    }

    fn control(&mut self, control: &(u32, Control), output: &mut Batch) -> Result<(), RemapError> {
        let before = self.spaces.len();
        let events = self.spaces.follow(control)?;
        let mut ended = Vec::new();
        for event in events {
            match *event {
                PageEvent::Mapped { .. } => {}
                PageEvent::Cleared { vcpu, space, start, bytes } => {
                    if let Some(cpu) = self.cpus.get_mut(usize::from(vcpu.0)) {
                        match cpu.cleared.last_mut() {
                            Some(last) if last.0 == space && last.2 == start => last.2 += bytes,
                            _ => cpu.cleared.push((space, start, start + bytes)),
                        }
                    }
                }
                PageEvent::Ended(space) => ended.push(space),
            }
        }
        ended.into_iter().for_each(|space| self.exit(space, output));
        if let Control::LoadCr3 { vcpu, .. } = control.1
            && self.spaces.len() > before
        {
            self.begin(vcpu, before as SpaceId, output);
        }
        if control.1 == Control::RegionOfInterest {
            say(output, Control::RegionOfInterest);
        }
        Ok(())
    }

    /// What an address space had mapped when the recording began is touched once, as its process had
    /// done: a store to each page that may be written, a load from any other.
    fn set_up(&mut self, vcpu: VcpuId, space: SpaceId, output: &mut Batch) {
        let mut leaves = Vec::new();
        // No process has more than all of memory.
        let mut left = self.memory_bytes;
        self.spaces.leaves(space, 0, &mut |start, size, entry| {
            leaves.push((start, size, entry.has(WRITE)));
            left = left.saturating_sub(size.bytes());
            left > 0
        });
        for (start, size, write) in leaves {
            let flags = if write { RunFlags::STORE } else { RunFlags::default() };
            for at in (start..start + size.bytes()).step_by(4096) {
                self.prepare(vcpu, space, (at, 0), false, output);
                let (gva, pc) = (Gva::new(at), Gva::new(0));
                let (lines, count, instructions) = (1, 1, 0);
                output.runs.push(Run { gva, pc, lines, count, instructions, vcpu, flags });
            }
        }
    }

    fn of(&mut self, space: SpaceId) -> &mut Process {
        let index = space as usize;
        if index >= self.processes.len() {
            self.processes.resize_with(index + 1, Process::default);
        }
        &mut self.processes[index]
    }

    /// An address space is loaded for the first time.
    fn begin(&mut self, vcpu: VcpuId, space: SpaceId, output: &mut Batch) {
        if !self.begun {
            return self.set_up(vcpu, space, output);
        }
        let Some(parent) = self.spaces.parent(space) else { return };
        if !self.of(parent).alive {
            return;
        }
        let mapped = self.of(parent).mapped.clone();
        *self.of(space) = Process { alive: true, mapped };
        self.stats.processes += 1;
        self.stats.forks += 1;
        say(output, Control::Fork { parent: id(parent), child: id(space) });
    }

    fn exit(&mut self, space: SpaceId, output: &mut Batch) {
        if std::mem::take(self.of(space)).alive {
            say(output, Control::Exit { process: id(space) });
            for cpu in self.cpus.iter_mut().filter(|c| c.running == Some(space)) {
                cpu.running = None;
            }
        }
    }

    /// What must be said before an access to `at` by `space`; `settle`: a program runs again.
    #[cold]
    fn prepare(
        &mut self,
        vcpu: VcpuId,
        space: SpaceId,
        (at, count): (u64, u64),
        settle: bool,
        output: &mut Batch,
    ) {
        if settle {
            self.settle(vcpu, output);
        }
        let process = self.of(space);
        if !std::mem::replace(&mut process.alive, true) {
            self.stats.processes += 1;
        }
        let cpu = &mut self.cpus[usize::from(vcpu.0)];
        if cpu.running != Some(space) {
            cpu.running = Some(space);
            say(output, Control::Switch { vcpu, process: id(space) });
        }
        self.cpus[usize::from(vcpu.0)].window = self.map(space, (at, count), output);
    }

    /// Maps what an access is in. Returns the range around it that is mapped.
    fn map(&mut self, space: SpaceId, (at, count): (u64, u64), output: &mut Batch) -> (u64, u64) {
        let Some(mappings) = &self.mappings else { return (0, u64::MAX) };
        let process = &mut self.processes[space as usize];
        if let Some(range) = process.mapped.find(at) {
            return range;
        }
        let Some(mapping) = mappings.find(space, at) else {
            self.stats.unmapped += count;
            return (0, 0);
        };
        let (start, end) = process.mapped.gap(at, (mapping.start, mapping.end));
        process.mapped.add(start, end);
        say(
            output,
            Control::Map {
                process: id(space),
                start: Gva::new(start),
                bytes: end - start,
                protection: mapping.protection,
            },
        );
        (start, end)
    }

    /// A program runs again on the vCPU: what the kernel cleared and did not map again is unmapped.
    fn settle(&mut self, vcpu: VcpuId, output: &mut Batch) {
        let mut cleared = std::mem::take(&mut self.cpus[usize::from(vcpu.0)].cleared);
        cleared.sort_unstable();
        let mut all: Vec<(SpaceId, u64, u64)> = Vec::new();
        for (space, from, to) in cleared {
            match all.last_mut() {
                Some(last) if last.0 == space && from <= last.2 => last.2 = last.2.max(to),
                _ => all.push((space, from, to)),
            }
        }
        let mut emptied = None;
        for (space, from, to) in all {
            if emptied == Some(space) || !self.of(space).alive {
                continue;
            }
            if self.spaces.next_leaf(space, 0).is_none() {
                emptied = Some(space);
                self.exit(space, output);
                continue;
            }
            let mut at = from;
            while at < to {
                let (start, end) = self.spaces.next_leaf(space, at).unwrap_or((to, to));
                if at < start {
                    self.unmap(space, at, start.min(to), output);
                }
                at = end;
            }
        }
        self.cpus.iter_mut().for_each(|c| c.window = (0, 0));
    }

    /// Unmaps a range without leaves, and what is mapped without leaves beside it.
    fn unmap(&mut self, space: SpaceId, from: u64, to: u64, output: &mut Batch) {
        let previous = self.spaces.last_leaf(space, from).map_or(0, |leaf| leaf.1);
        let next = self.spaces.next_leaf(space, to).map_or(u64::MAX, |leaf| leaf.0);
        let surveyed = self.mappings.is_some();
        let mapped = &mut self.of(space).mapped;
        let (low, high) = if surveyed {
            let low = mapped.find(from).map_or(from, |r| r.0);
            (low, mapped.find(to - 1).map_or(to, |r| r.1))
        } else {
            (from & !(BLOCK - 1), to.next_multiple_of(BLOCK))
        };
        let (start, end) = (from.min(low.max(previous)), to.max(high.min(next)));
        let gone = if surveyed { mapped.remove(start, end) } else { vec![(start, end)] };
        for (start, end) in gone {
            let bytes = end - start;
            say(output, Control::Unmap { process: id(space), start: Gva::new(start), bytes });
        }
    }
}

/// Process 0 is the modelled guest's for a vCPU that nobody has spoken of.
const fn id(space: SpaceId) -> ProcessId {
    ProcessId(space + 1)
}

fn say(output: &mut Batch, control: Control) {
    output.controls.push((output.runs.len() as u32, control));
}
