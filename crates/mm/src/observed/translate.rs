//! Runs: where the guest's tables put them, by a short cut or by a walk.

use super::{DropReason, DroppedRun, KEPT_EXAMPLES, ObservedGuest};
use crate::space::canonical;
use crate::translations::{AHEAD, Region, Translations, load_ahead};
use nestwalk_tables::entry::LARGE;
use nestwalk_tables::{Entry, MAX_LEVELS, Permissions};
use nestwalk_types::{Address, Gpa, GuestBatch, Gva, PageSize, Run};

/// Address spaces of which a vCPU remembers translations while others run.
const REMEMBERED: usize = 8;

/// One vCPU.
pub(super) struct Cpu {
    /// Root table in CR3; `None` before the first load.
    pub root: Option<Gpa>,
    pub translations: Translations,
    /// Roots and the generations that their translations have.
    spaces: [(Gpa, u64); REMEMBERED],
    /// The place in `spaces` that is taken next.
    next: usize,
    /// The highest generation that was used.
    highest: u64,
}

impl Cpu {
    pub fn new(mode: &nestwalk_tables::Mode) -> Self {
        Self {
            root: None,
            translations: Translations::new(mode),
            spaces: [(Gpa::new(0), 0); REMEMBERED],
            next: 0,
            highest: 1,
        }
    }
    /// CR3 has this root from here on. What is remembered of it is still right, since every change of
    /// a table forgets what came by it.
    pub fn load(&mut self, root: Gpa) {
        self.root = Some(root);
        match self.spaces.iter().find(|s| s.0 == root && s.1 != 0) {
            Some(&(_, generation)) => {
                self.translations.begin(generation);
            }
            None => {
                self.begin();
                self.spaces[self.next] = (root, self.translations.generation());
                self.next = (self.next + 1) % REMEMBERED;
            }
        }
    }
    fn begin(&mut self) {
        if self.translations.begin(self.highest + 1) {
            self.spaces = [(Gpa::new(0), 0); REMEMBERED];
        }
        self.highest = self.translations.generation();
    }
    /// Forgets every translation of every address space.
    pub fn forget(&mut self) {
        self.spaces = [(Gpa::new(0), 0); REMEMBERED];
        self.begin();
        if let Some(root) = self.root {
            self.load(root);
        }
    }
}

impl ObservedGuest {
    /// Gives each run its address, or drops it.
    pub(super) fn translate(&mut self, runs: &[Run], output: &mut GuestBatch) {
        // Runs before `done` are in the output or dropped; entries of runs before `warm` were loaded.
        let (mut done, mut warm) = (0, 0);
        let (mut accesses, mut kernel) = (0, 0);
        output.gpas.reserve(runs.len());
        for (i, run) in runs.iter().enumerate() {
            accesses += u64::from(run.count);
            kernel += u64::from(run.count) * u64::from(run.flags.is_kernel());
            let known = self.cpus.get(usize::from(run.vcpu.0));
            let gpa = match known.and_then(|c| c.translations.cached(run)) {
                Some(gpa) => gpa,
                None => {
                    if i >= warm {
                        // Misses that follow each other closely wait for memory together.
                        if i < warm + AHEAD {
                            self.load_ahead(&runs[i..runs.len().min(i + AHEAD)]);
                        }
                        warm = i + AHEAD;
                    }
                    match self.walk(run) {
                        Ok(gpa) => gpa,
                        Err(reason) => {
                            output.batch.runs.extend_from_slice(&runs[done..i]);
                            done = i + 1;
                            self.drop_run(i as u64, run, reason);
                            continue;
                        }
                    }
                }
            };
            output.gpas.push(gpa);
        }
        output.batch.runs.extend_from_slice(&runs[done..]);
        self.stats.runs += runs.len() as u64;
        self.stats.accesses += accesses;
        self.stats.kernel_accesses += kernel;
    }

    #[inline(never)]
    fn load_ahead(&self, runs: &[Run]) {
        let of = |run: &Run| self.cpus.get(usize::from(run.vcpu.0)).map(|c| &c.translations);
        load_ahead(&self.mirror.tables, self.mirror.mode, runs, of);
    }

    #[cold]
    fn drop_run(&mut self, index: u64, run: &Run, reason: DropReason) {
        let dropped = &mut self.stats.dropped[reason as usize];
        dropped.runs += 1;
        dropped.accesses += u64::from(run.count);
        if dropped.runs <= KEPT_EXAMPLES {
            let index = self.stats.runs + index;
            self.examples.push(DroppedRun { index, run: *run, reason });
        }
    }

    #[inline]
    fn walk(&mut self, run: &Run) -> Result<Gpa, DropReason> {
        let cpu = self.cpus.get_mut(usize::from(run.vcpu.0)).ok_or(DropReason::NotMapped)?;
        match cpu.translations.look_in_region(run) {
            Region::Page(gpa) => Ok(gpa),
            Region::Table(table, handle, above) => {
                let mode = self.mirror.mode;
                let at = mode.entry_at(table, run.gva.value(), 1);
                let tables = &self.mirror.tables;
                let entry = Entry(tables.entry(tables.reopen(handle, at), at, mode.entry_bytes));
                let above = Permissions::from(above);
                self.use_leaf(run, entry, PageSize::SIZE_4K, above.and(entry))
            }
            Region::Unknown => self.walk_from_root(run),
        }
    }

    #[inline(never)]
    fn walk_from_root(&mut self, run: &Run) -> Result<Gpa, DropReason> {
        let mode = self.mirror.mode;
        let Some(root) = self.cpus.get(usize::from(run.vcpu.0)).and_then(|c| c.root) else {
            return Err(DropReason::NotMapped);
        };
        if !self.is_translated(run.gva) {
            return Err(DropReason::NotMapped);
        }
        let mut path = [Gpa::new(0); MAX_LEVELS + 1];
        let (mut table, mut allowed) = (root, Permissions::ALL);
        for level in (1..=mode.levels).rev() {
            let at = mode.entry_at(table, run.gva.value(), level);
            path[usize::from(level)] = at;
            let entry = Entry(self.mirror.tables.read(at, mode.entry_bytes).unwrap_or(0));
            if !entry.is_present() {
                return Err(DropReason::NotMapped);
            }
            let above = allowed;
            allowed = allowed.and(entry);
            if level == 1 || (mode.may_be_leaf(level) && entry.has(LARGE)) {
                for l in level..=mode.levels {
                    self.mirror.walked(path[usize::from(l)], l, run.gva);
                }
                if level == 1 {
                    let table = table.align_down(PageSize::SIZE_4K);
                    let handle = self.mirror.tables.open(table);
                    let cpu = &mut self.cpus[usize::from(run.vcpu.0)];
                    cpu.translations.remember_table(run.gva, table, handle, above);
                }
                return self.use_leaf(run, entry, mode.span(level), allowed);
            }
            table = entry.target();
        }
        Err(DropReason::NotMapped)
    }

    /// Whether the paging mode translates the address at all.
    pub(super) const fn is_translated(&self, gva: Gva) -> bool {
        let mode = self.mirror.mode;
        canonical(mode, gva.value() & mode.address_mask()) == gva.value()
    }

    #[inline]
    fn use_leaf(
        &mut self,
        run: &Run,
        leaf: Entry,
        size: PageSize,
        allowed: Permissions,
    ) -> Result<Gpa, DropReason> {
        let flags = run.flags;
        if !leaf.is_present() {
            return Err(DropReason::NotMapped);
        }
        if !allowed.allow(flags.is_store(), flags.is_fetch(), !flags.is_kernel()) {
            return Err(match () {
                () if !flags.is_kernel() && !allowed.user => DropReason::NotUser,
                () if flags.is_store() => DropReason::NotWritable,
                () => DropReason::NotExecutable,
            });
        }
        let gpa = leaf.frame::<Gpa>(size).offset_by(run.gva.offset_in(size));
        if !self.is_memory(gpa.align_down(PageSize::SIZE_4K), 0x1000) {
            return Err(DropReason::Device);
        }
        // Regions of 2 MiB are remembered as a whole: all of one must be memory.
        let region = self.mirror.mode.span(2);
        let whole = size >= region && self.is_memory(gpa.align_down(region), region.bytes());
        let translations = &mut self.cpus[usize::from(run.vcpu.0)].translations;
        if whole {
            translations.remember_large(run.gva, gpa, allowed);
        } else {
            translations.remember(run.gva, gpa.align_down(PageSize::SIZE_4K), allowed);
        }
        Ok(gpa)
    }

    #[inline]
    fn is_memory(&self, gpa: Gpa, bytes: u64) -> bool {
        let (from, to) = (gpa.value(), gpa.value() + bytes);
        self.ranges.iter().any(|(start, size)| {
            let start = start.value();
            start <= from && to <= start + size
        })
    }
}
