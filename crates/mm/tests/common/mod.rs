//! A machine that knows the output stream only: a mirror of the tables, a TLB and walk caches that
//! never evict, and the contents of memory as tags.

#![allow(dead_code, reason = "each test file uses its part")]

pub mod pair;

use nestwalk_mm::{GuestConfig, ModelledGuest};
use nestwalk_tables::{Entry, Mode, TableMemory, entry, look_up};
use nestwalk_types::{
    Address, Control, Gpa, GuestBatch, Gva, Invalidation, PageSize, Run, RunFlags, VcpuId,
};
use std::collections::{BTreeMap, HashMap};

/// A cached translation: a page of any size.
#[derive(Clone, Copy, Debug)]
struct Cached {
    frame: Gpa,
    size: PageSize,
    write: bool,
    execute: bool,
}

/// Key of a cached thing: vCPU, PCID, first address.
type Key = (u8, u16, u64);

pub struct Machine {
    mode: &'static Mode,
    pub mirror: TableMemory<Gpa>,
    cr3: BTreeMap<u8, (Gpa, u16)>,
    /// Where a walk begins with a copy of the root (PAE): the copy of each vCPU.
    registers: BTreeMap<u8, Vec<u64>>,
    /// Complete translations, by their size's shift as well.
    tlb: BTreeMap<(Key, u32), Cached>,
    /// Tables that upper entries point to, by level.
    walk_cache: BTreeMap<(Key, u8), Gpa>,
    /// What each 4 KiB frame holds: 0 is cleared.
    tags: HashMap<u64, u64>,
    /// The page cleared just now, and the entry that was taken out right after that.
    cleared: Option<(Gpa, PageSize)>,
    taken_out: Option<(Gpa, Entry)>,
    /// Pages that are being moved, by where their entries are: what they hold.
    moving: HashMap<Gpa, (PageSize, Vec<Option<u64>>)>,
    /// The table that was unlinked last: where from, and the pages that it still mapped.
    unlinked: Option<(Gpa, Vec<(u64, u64)>)>,
    pub counts: Counts,
    /// After each change every translation of the vCPU that goes on is checked.
    pub checks_all: bool,
}

/// What was in the output.
#[derive(Default, Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub tables: u64,
    pub writes: u64,
    pub cleared: u64,
    pub faults: u64,
    pub pages: u64,
    pub loads: u64,
    pub kept: u64,
}

impl Machine {
    pub fn new(mode: &'static Mode) -> Self {
        Self {
            mode,
            mirror: TableMemory::new(),
            cr3: BTreeMap::new(),
            registers: BTreeMap::new(),
            tlb: BTreeMap::new(),
            walk_cache: BTreeMap::new(),
            tags: HashMap::new(),
            cleared: None,
            taken_out: None,
            moving: HashMap::new(),
            unlinked: None,
            counts: Counts::default(),
            checks_all: true,
        }
    }

    /// Follows a batch. `access` is told of each run and of the tag behind it, and gives the new
    /// tag for a store.
    pub fn follow(&mut self, out: &GuestBatch, mut access: impl FnMut(usize, &Run, u64) -> u64) {
        assert_eq!(out.batch.runs.len(), out.gpas.len());
        let mut changed = true;
        let mut last = 0;
        for &(at, _) in &out.batch.controls {
            assert!(at >= last && at as usize <= out.batch.runs.len(), "positions ascend");
            last = at;
        }
        for (controls, runs) in out.batch.segments() {
            controls.iter().for_each(|c| self.control(&c.1));
            changed |= !controls.is_empty();
            for i in runs {
                let run = &out.batch.runs[i];
                if changed && self.checks_all {
                    self.nothing_is_stale(run.vcpu.0);
                    changed = false;
                }
                self.run(run, out.gpas[i]);
                let frame = out.gpas[i].page_number();
                let tag = self.tags.get(&frame).copied().unwrap_or(0);
                let new = access(i, run, tag);
                if run.flags.is_store() {
                    self.tags.insert(frame, new);
                } else {
                    assert_eq!(new, tag);
                }
            }
        }
    }

    pub fn control(&mut self, control: &Control) {
        match *control {
            Control::TableAdded { gpa, ref entries, .. } => {
                assert_eq!(gpa.value() & 0xfff, 0);
                self.mirror.insert(gpa, entries.as_deref());
                self.counts.tables += 1;
            }
            Control::TableWrite { gpa, value, .. } => self.write(gpa, Entry(value)),
            Control::PageCleared { gpa, size, .. } => {
                assert_eq!(gpa.offset_in(size), 0);
                for i in 0..size.base_pages() {
                    self.mirror.remove(gpa.offset_by(i << 12));
                    self.tags.remove(&(gpa.page_number() + i));
                }
                self.cleared = Some((gpa, size));
                self.taken_out = None;
                self.counts.cleared += 1;
            }
            Control::LoadCr3 { vcpu, root, pcid, keep } => {
                assert!(self.mirror.contains(root), "CR3 points to a table");
                self.cr3.insert(vcpu.0, (root, pcid));
                self.registers.insert(vcpu.0, self.root_entries(root));
                if !keep {
                    self.tlb.retain(|k, _| (k.0.0, k.0.1) != (vcpu.0, pcid));
                    self.walk_cache.retain(|k, _| (k.0.0, k.0.1) != (vcpu.0, pcid));
                }
                self.counts.loads += 1;
                self.counts.kept += u64::from(keep);
            }
            Control::Invalidate { vcpu, what: Invalidation::Page(gva) } => {
                let pcid = self.cr3[&vcpu.0].1;
                self.tlb.retain(|((v, p, page), _), c| {
                    (*v, *p) != (vcpu.0, pcid) || gva.align_down(c.size).value() != *page
                });
                self.walk_cache.retain(|k, _| (k.0.0, k.0.1) != (vcpu.0, pcid));
                self.counts.pages += 1;
            }
            Control::Fault { vcpu, gva, code } => {
                let root = self.cr3[&vcpu.0].0;
                let leaf = look_up(&self.mirror, self.mode, root, gva);
                assert_eq!(code.present, leaf.is_ok(), "{gva:?}");
                if let Ok(leaf) = leaf {
                    let allowed = leaf.permissions.allow(code.write, code.fetch, code.user);
                    assert!(!allowed, "a fault for nothing at {gva:?}");
                    // A fault removes what the TLB holds for the address (SDM vol. 3A,
                    // "Operations that Invalidate TLBs and Paging-Structure Caches").
                    let pcid = self.cr3[&vcpu.0].1;
                    let page = gva.align_down(leaf.size).value();
                    self.tlb.remove(&((vcpu.0, pcid, page), leaf.size.shift()));
                }
                self.counts.faults += 1;
            }
            Control::OsWork { .. } | Control::RegionOfInterest => {}
            ref other => panic!("{other:?} is not architectural"),
        }
    }

    fn write(&mut self, at: Gpa, new: Entry) {
        let bytes = self.mode.entry_bytes;
        if bytes == 4 {
            assert_eq!(new.0 >> 32, 0, "a 4-byte entry");
        }
        let old = self.mirror.write(at, bytes, new.0);
        let old = Entry(old.unwrap_or_else(|| panic!("write to {at:?}, which is no table")));
        self.counts.writes += 1;
        // A changed leaf keeps the dirty bit that the processor may have set.
        let same =
            old.is_present() && new.is_present() && old.0 & entry::FRAME == new.0 & entry::FRAME;
        assert!(!same || !old.has(entry::DIRTY) || new.has(entry::DIRTY), "lost a dirty bit");
        self.moved(at, old, new);
        let Some((to, size)) = self.cleared else { return };
        match self.taken_out.take() {
            None if old.is_present() && !new.is_present() => self.taken_out = Some((at, old)),
            // Copy-on-write: page cleared, entry taken out, entry with the cleared page stored.
            Some((there, old)) if there == at && new.frame::<Gpa>(size) == to => {
                let from = old.frame::<Gpa>(size).page_number();
                for i in 0..size.base_pages() {
                    if let Some(tag) = self.tags.get(&(from + i)).copied() {
                        self.tags.insert(to.page_number() + i, tag);
                    }
                }
                self.cleared = None;
            }
            _ => self.cleared = None,
        }
    }

    /// What daemons do. A page is moved: entry 0, entry that is not present but not 0, entry in another
    /// frame. A block is collapsed: entry of the table 0, page cleared, large entry.
    fn moved(&mut self, at: Gpa, old: Entry, new: Entry) {
        let size = |e: Entry| match e.has(entry::LARGE) {
            true => self.mode.span(2),
            false => PageSize::SIZE_4K,
        };
        if old.0 == 0 && new.0 != 0 && !new.is_present() {
            let size = size(new);
            let first = new.frame::<Gpa>(size).page_number();
            let held = (0..size.base_pages()).map(|i| self.tags.get(&(first + i)).copied());
            self.moving.insert(at, (size, held.collect()));
        } else if new.is_present()
            && let Some((size, held)) = self.moving.remove(&at)
        {
            let first = new.frame::<Gpa>(size).page_number();
            for (i, tag) in held.into_iter().enumerate() {
                match tag {
                    Some(tag) => self.tags.insert(first + i as u64, tag),
                    None => self.tags.remove(&(first + i as u64)),
                };
            }
        } else if old.is_present() && new.0 == 0 && !old.has(entry::LARGE) {
            let table = old.target::<Gpa>();
            let small = |i: u64| {
                let e = self.mirror.read(
                    table.offset_by(i * u64::from(self.mode.entry_bytes)),
                    self.mode.entry_bytes,
                );
                let e = Entry(e?);
                e.is_present().then(|| (i, e.frame::<Gpa>(PageSize::SIZE_4K).page_number()))
            };
            let mapped = (0..self.mode.entries(1)).filter_map(small).collect();
            self.unlinked = Some((at, mapped));
        } else if new.is_present()
            && new.has(entry::LARGE)
            && self.cleared == Some((new.frame(size(new)), size(new)))
            && let Some((there, mapped)) = self.unlinked.take()
            && there == at
        {
            let first = new.frame::<Gpa>(size(new)).page_number();
            for (i, frame) in mapped {
                if let Some(tag) = self.tags.get(&frame).copied() {
                    self.tags.insert(first + i, tag);
                }
            }
        }
    }

    /// No translation that a TLB might use now differs from the tables.
    fn nothing_is_stale(&self, vcpu: u8) {
        let (root, pcid) = self.cr3[&vcpu];
        let mine = ((vcpu, pcid, 0), 0)..((vcpu, pcid + 1, 0), 0);
        for (((_, _, page), _), cached) in self.tlb.range(mine) {
            let leaf = look_up(&self.mirror, self.mode, root, Gva::new(*page));
            let leaf = leaf.unwrap_or_else(|_| panic!("stale: {page:#x} {cached:?}"));
            let now = leaf.apply(Gva::new(*page));
            assert_eq!(now, cached.frame, "stale: {page:#x} {cached:?}");
            let p = leaf.permissions;
            assert!(p.write || !cached.write, "stale permission: {page:#x} {cached:?}");
            assert!(p.execute || !cached.execute, "stale permission: {page:#x} {cached:?}");
            assert!(leaf.size >= cached.size, "two sizes: {page:#x} {cached:?}");
        }
        let mine = ((vcpu, pcid, 0), 0)..((vcpu, pcid + 1, 0), 0);
        for (((_, _, first), level), table) in self.walk_cache.range(mine) {
            let now = self.pointer(root, *first, *level);
            assert_eq!(now, Some(*table), "stale walk cache: {first:#x} level {level}");
        }
    }

    /// What the entry of `level` points to, if it points to a table.
    fn pointer(&self, root: Gpa, address: u64, level: u8) -> Option<Gpa> {
        let mut table = root;
        for l in (level..=self.mode.levels).rev() {
            let at = self.mode.entry_at(table, address, l);
            let e = Entry(self.mirror.read(at, self.mode.entry_bytes)?);
            if !e.is_present() || (self.mode.may_be_leaf(l) && e.has(entry::LARGE)) {
                return None;
            }
            table = e.target();
        }
        Some(table)
    }

    fn root_entries(&self, root: Gpa) -> Vec<u64> {
        let n = if self.mode.root_in_registers { self.mode.entries(self.mode.levels) } else { 0 };
        (0..n).map(|i| self.mirror.read(root.offset_by(8 * i), 8).unwrap()).collect()
    }

    fn run(&mut self, run: &Run, gpa: Gpa) {
        let (root, pcid) = self.cr3[&run.vcpu.0];
        assert_eq!(self.registers[&run.vcpu.0], self.root_entries(root), "PAE's registers are old");
        let leaf = look_up(&self.mirror, self.mode, root, run.gva)
            .unwrap_or_else(|e| panic!("{run:?} is not mapped: {e:?}"));
        assert_eq!(leaf.apply(run.gva), gpa, "{run:?}");
        let f = run.flags;
        assert!(leaf.permissions.allow(f.is_store(), f.is_fetch(), !f.is_kernel()), "{run:?}");
        let used = entry::ACCESSED | if f.is_store() { entry::DIRTY } else { 0 };
        self.mirror.set_bits(leaf.at, used);
        let page = run.gva.align_down(leaf.size).value();
        let cached = Cached {
            frame: leaf.frame,
            size: leaf.size,
            write: leaf.permissions.write,
            execute: leaf.permissions.execute,
        };
        self.tlb.insert(((run.vcpu.0, pcid, page), leaf.size.shift()), cached);
        for level in leaf.level + 1..=self.mode.levels {
            let first = run.gva.align_down(self.mode.span(level)).value();
            if let Some(table) = self.pointer(root, first, level) {
                self.walk_cache.insert(((run.vcpu.0, pcid, first), level), table);
            }
        }
    }
}

/// Every frame is free, pinned, a table, or data; nothing is two of these; what is writable is
/// mapped once; the counters say the same.
pub fn frames_add_up(guest: &ModelledGuest) {
    let memory = guest.memory();
    let mode = guest.config().mode;
    // Frame to (times mapped, times mapped writable).
    let mut mapped: HashMap<u64, (u32, u32)> = HashMap::new();
    let mut tables = 0u64;
    let mut leaves = [0u64; 4];
    let mut table = |t: Gpa| {
        tables += 1;
        assert!(!memory.physical.is_free(t), "{t:?} is a table and free");
        assert!(memory.tables.contains(t));
        t
    };
    for (_, space) in guest.spaces() {
        let mut open = vec![(table(space.root()), mode.levels)];
        while let Some((t, level)) = open.pop() {
            for i in 0..mode.entries(level) {
                let at = t.offset_by(i * u64::from(mode.entry_bytes));
                let e = Entry(memory.tables.read(at, mode.entry_bytes).unwrap());
                if !e.is_present() {
                    continue;
                }
                if level > 1 && !(mode.may_be_leaf(level) && e.has(entry::LARGE)) {
                    open.push((table(e.target()), level - 1));
                    continue;
                }
                let size = mode.span(level);
                leaves[match size.shift() {
                    12 => 0,
                    21 => 1,
                    22 => 2,
                    _ => 3,
                }] += 1;
                for p in 0..size.base_pages() {
                    let frame = e.frame::<Gpa>(size).page_number() + p;
                    let count = mapped.entry(frame).or_default();
                    count.0 += 1;
                    count.1 += u32::from(e.has(entry::WRITE));
                }
            }
        }
    }
    let zero = memory.zero_frame.map(|z| z.page_number());
    for (frame, (times, writable)) in &mapped {
        let at = Gpa::new(frame << 12);
        assert!(!memory.physical.is_free(at), "{at:?} is mapped and free");
        assert!(!memory.tables.contains(at), "{at:?} is mapped and a table");
        assert!(*writable == 0 || *times == 1, "{at:?}: {times} mappings, {writable} writable");
        assert!(Some(*frame) != zero || *writable == 0);
    }
    let data = mapped.keys().filter(|f| Some(**f) != zero).count() as u64;
    let stats = guest.stats();
    assert_eq!(tables, memory.tables.len());
    assert_eq!((tables << 12, data << 12), (stats.table_bytes, stats.resident_bytes));
    let [a, b, c, d] = leaves;
    assert_eq!([stats.pages_4k, stats.pages_2m, stats.pages_4m, stats.pages_1g], [a, b, c, d]);
    let zero = u64::from(zero.is_some()) << 12;
    let aside = (memory.physical.set_aside_frames() + memory.counters.reserved_frames) << 12;
    let used = stats.table_bytes + stats.resident_bytes + stats.pinned_bytes + zero + aside;
    assert_eq!(used + stats.free_bytes, memory.physical.bytes());
}

pub fn run(vcpu: u8, gva: u64, flags: RunFlags) -> Run {
    let gva = Gva::new(gva);
    let pc = if flags.is_fetch() { gva } else { Gva::new(0x40_0000) };
    Run { gva, pc, lines: 1, count: 1, instructions: 1, vcpu: VcpuId(vcpu), flags }
}

pub fn config(mode: &'static Mode, mib: u64) -> GuestConfig {
    GuestConfig { kernel_bytes: 4 << 20, ..GuestConfig::new(mode, mib << 20) }
}
