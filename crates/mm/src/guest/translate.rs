//! Runs: the hot loop, look-ups of the tables, and faults.

use crate::guest::emit::Output;
use crate::guest::{GuestError, ModelledGuest};
use crate::space::{Access, Mapped, canonical};
use crate::translations::{AHEAD, Region};
use nestwalk_tables::{Entry, Handle, Permissions, entry};
use nestwalk_types::{
    Address, Control, FaultCode, Gpa, Gva, OsWork, PageSize, ProcessId, Protection, Run,
};

/// Leaf entries of [`AHEAD`] runs of a segment, found before their turn.
struct Ahead {
    /// The run after them.
    end: usize,
    /// Which of them were found, a bit each.
    known: u32,
    places: [(Handle, Gpa); AHEAD],
}

impl Ahead {
    fn new() -> Self {
        Self { end: 0, known: 0, places: [(Handle::default(), Gpa::new(0)); AHEAD] }
    }
}

/// Frames that a fault needs at most: a page, and tables of five levels.
const FAULT_FRAMES: u64 = 6;

impl ModelledGuest {
    /// Gives each run its address; what the kernel must do before goes to the output before the
    /// run.
    pub(super) fn translate(
        &mut self,
        runs: &[Run],
        output: &mut Output<'_>,
    ) -> Result<(), GuestError> {
        // Runs before `next` are in the output.
        let (mut next, mut ahead) = (0, Ahead::new());
        output.reserve(runs.len());
        while next < runs.len() {
            let (found, missed) = self.remembered(&runs[next..], output);
            next += found;
            let Some(run) = runs.get(next).filter(|_| missed) else { continue };
            let gpa = match self.missed(runs, next, &mut ahead) {
                Some(gpa) => gpa,
                None => {
                    // The kernel may change tables.
                    ahead.known = 0;
                    self.resolve(run, output)?
                }
            };
            output.run(run, gpa);
            next += 1;
        }
        Ok(())
    }

    /// Puts runs of one vCPU into the output whose translations are remembered: how many there were, and
    /// whether the next one is of a page that is not.
    #[inline]
    fn remembered(&self, runs: &[Run], output: &mut Output<'_>) -> (usize, bool) {
        let Some(first) = runs.first() else { return (0, false) };
        let Some(cpu) = self.cpus.get(usize::from(first.vcpu.0)) else { return (0, true) };
        let Some(known) = cpu.translations.cached(first) else { return (0, true) };
        let runs = &runs[..runs.len().min(AHEAD)];
        let (mut gpas, mut found, mut missed) = ([known; AHEAD], 1, false);
        for (gpa, run) in gpas[1..].iter_mut().zip(&runs[1..]) {
            if run.vcpu != first.vcpu {
                break;
            }
            let Some(known) = cpu.translations.cached(run) else {
                missed = true;
                break;
            };
            *gpa = known;
            found += 1;
        }
        output.runs(&runs[..found], &gpas[..found]);
        (found, missed)
    }

    /// Run `i` is not in the translations that are remembered: it is looked up.
    #[inline(never)]
    fn missed(&mut self, runs: &[Run], i: usize, ahead: &mut Ahead) -> Option<Gpa> {
        if i >= ahead.end {
            ahead.known = 0;
            // Misses that follow each other closely wait for memory together.
            if i < ahead.end + AHEAD {
                self.look_ahead(&runs[i..runs.len().min(i + AHEAD)], ahead);
            }
            ahead.end = i + AHEAD;
        }
        let n = i + AHEAD - ahead.end;
        if ahead.known >> n & 1 == 0 {
            return self.walk(&runs[i]);
        }
        let (handle, at) = ahead.places[n];
        let entry = Entry(self.memory.tables.entry(handle, at, self.config.mode.entry_bytes));
        self.use_leaf(&runs[i], at, entry, PageSize::SIZE_4K)
    }

    /// Finds where the leaf entries of these runs are, at most [`AHEAD`], as far as their tables are
    /// remembered, and loads them, so that the cache misses overlap.
    #[inline(always)]
    fn look_ahead(&self, runs: &[Run], ahead: &mut Ahead) {
        let (tables, mode) = (&self.memory.tables, self.config.mode);
        let mut words: [&u64; AHEAD] = [&0; AHEAD];
        let places = words.iter_mut().zip(&mut ahead.places).zip(runs).enumerate();
        for (n, ((word, place), run)) in places {
            let Some(cpu) = self.cpus.get(usize::from(run.vcpu.0)) else { break };
            if cpu.loaded != 0
                && let Some((table, handle)) = cpu.translations.table(run.gva)
            {
                let at = mode.entry_at(table, run.gva.value(), 1);
                let handle = tables.reopen(handle, at);
                *place = (handle, at);
                *word = tables.word(handle, at);
                ahead.known |= 1 << n;
            }
        }
        // All places are known: these loads are all that is under way.
        std::hint::black_box(words.iter().fold(0, |sum, word| sum | **word));
    }

    /// Looks the run's page up in the tables that CR3 points to. `None` if that faults, or if the
    /// vCPU has no address space yet.
    #[inline(always)]
    fn walk(&mut self, run: &Run) -> Option<Gpa> {
        let cpu = self.cpus.get_mut(usize::from(run.vcpu.0)).filter(|c| c.loaded != 0)?;
        match cpu.translations.look_in_region(run) {
            Region::Page(gpa) => Some(gpa),
            Region::Table(table, handle, _) => {
                let mode = self.config.mode;
                let at = mode.entry_at(table, run.gva.value(), 1);
                let tables = &self.memory.tables;
                let entry = Entry(tables.entry(tables.reopen(handle, at), at, mode.entry_bytes));
                self.use_leaf(run, at, entry, PageSize::SIZE_4K)
            }
            Region::Unknown => self.walk_from_root(run),
        }
    }

    #[inline(never)]
    fn walk_from_root(&mut self, run: &Run) -> Option<Gpa> {
        let root = self.cpus.get(usize::from(run.vcpu.0))?.root;
        let mode = self.config.mode;
        if canonical(mode, run.gva.value() & mode.address_mask()) != run.gva.value() {
            return None;
        }
        let leaf = nestwalk_tables::look_up(&self.memory.tables, mode, root, run.gva).ok()?;
        if leaf.level == 1 {
            let table = leaf.at.align_down(PageSize::SIZE_4K);
            let handle = self.memory.tables.open(table);
            let translations = &mut self.cpu(run.vcpu).translations;
            translations.remember_table(run.gva, table, handle, Permissions::ALL);
        }
        self.use_leaf(run, leaf.at, leaf.entry, leaf.size)
    }

    /// Uses a leaf as the processor does, which sets its accessed and dirty bits, and remembers it.
    /// A page counts as writable only when it is dirty, so that the first store comes here.
    #[inline(always)]
    fn use_leaf(&mut self, run: &Run, at: Gpa, leaf: Entry, size: PageSize) -> Option<Gpa> {
        let (store, fetch) = (run.flags.is_store(), run.flags.is_fetch());
        let no_execute = leaf.has(entry::NO_EXECUTE) && self.config.mode.entry_bytes == 8;
        if !leaf.is_present() || (store && !leaf.has(entry::WRITE)) || (fetch && no_execute) {
            return None;
        }
        let used = if store { entry::ACCESSED | entry::DIRTY } else { entry::ACCESSED };
        if !leaf.has(used) {
            self.memory.tables.set_bits(at, used);
        }
        let gpa = leaf.frame::<Gpa>(size).offset_by(run.gva.offset_in(size));
        let writable = leaf.with(used).has(entry::WRITE | entry::DIRTY);
        let translations = &mut self.cpus.get_mut(usize::from(run.vcpu.0))?.translations;
        let allowed = Permissions { write: writable, user: true, execute: !no_execute };
        if size == PageSize::SIZE_4K {
            translations.remember(run.gva, gpa.align_down(size), allowed);
        } else {
            translations.remember_large(run.gva, gpa, allowed);
        }
        Some(gpa)
    }

    /// The first access of a vCPU, a page fault, or both.
    #[cold]
    #[inline(never)]
    fn resolve(&mut self, run: &Run, output: &mut Output<'_>) -> Result<Gpa, GuestError> {
        let (vcpu, gva) = (run.vcpu, run.gva);
        self.current = vcpu;
        let cpu = self.cpu(vcpu);
        let (id, had) = (cpu.process.unwrap_or(ProcessId(0)), cpu.loaded);
        self.load(vcpu, id, output)?;
        if had != self.cpu(vcpu).loaded
            && let Some(gpa) = self.walk(run)
        {
            return Ok(gpa);
        }
        let mapped = self.fault(id, run, output)?;
        if mapped.size == PageSize::SIZE_4K {
            let table = mapped.at.align_down(PageSize::SIZE_4K);
            let handle = self.memory.tables.open(table);
            let translations = &mut self.cpu(vcpu).translations;
            translations.remember_table(gva, table, handle, Permissions::ALL);
        }
        let gpa = self.use_leaf(run, mapped.at, mapped.entry, mapped.size);
        gpa.ok_or_else(|| {
            // The mapping allows the access, so the leaf does; not reached.
            self.error(id, crate::MmError::NoMapping { space: Gva::SPACE, address: gva.value() })
        })
    }

    /// Delivers the fault and has the kernel answer it. An address outside of every mapping is
    /// mapped first: the trace does not say what was mapped.
    fn fault(
        &mut self,
        id: ProcessId,
        run: &Run,
        output: &mut Output<'_>,
    ) -> Result<Mapped<Gpa>, GuestError> {
        let gva = run.gva;
        // Without NX, that is with 4-byte entries, a fetch is a load to the kernel, too (SDM vol.
        // 3A, "Page-Fault Exceptions": the I/D flag).
        let fetch = run.flags.is_fetch() && self.config.mode.entry_bytes == 8;
        let access = Access { write: run.flags.is_store(), execute: fetch };
        let block = self.config.policy.implicit_block(self.config.mode);
        let user = !run.flags.is_kernel();
        self.make_room(FAULT_FRAMES, output);
        let (mapped, implicit, delivered) =
            self.with(id, run.vcpu, output, |space, memory, emit| {
                let implicit = space.map_around(memory, gva, block, Protection::ALL, emit)?;
                let present = space.look_up(memory, gva).is_ok();
                // A placement that makes pages present when they are mapped has done so now, and
                // the mapping is one that was there before the access.
                let delivered = !(implicit && present);
                if delivered {
                    let code = FaultCode { present, write: access.write, user, fetch };
                    emit.output.control(Control::Fault { vcpu: run.vcpu, gva, code });
                }
                Ok((space.fault(memory, gva, access, emit)?, implicit, delivered))
            })?;
        if mapped.fresh && self.reclaim.is_some() {
            let context = self.cpu(run.vcpu).loaded;
            self.page_came(context, gva.align_down(PageSize::SIZE_4K));
        }
        self.stats.implicit_mappings += u64::from(implicit);
        if delivered {
            self.stats.faults += 1;
            self.count(OsWork::PageFault);
        }
        Ok(mapped)
    }
}
