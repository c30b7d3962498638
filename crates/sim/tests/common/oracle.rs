//! A TLB as a textbook has it, written apart from the one that is tested: vectors in order of use,
//! with everything that an entry is about kept as a field of its own.
//!
//! It follows the stream of events, with a mirror of the guest's tables. What the hardware walks
//! decides what is filled: for bare metal and nested paging the oracle knows it from its mirror (and
//! from the size of the host's pages), for shadow paging it is told, see `shadowed`.

use nestwalk_hw::Profile;
use nestwalk_hw::profile::TlbProfile;
use nestwalk_sim::Counters;
use nestwalk_tables::entry::{ACCESSED, DIRTY, GLOBAL};
use nestwalk_tables::{Mode, TableMemory, look_up};
use nestwalk_types::{Address, Control, Gpa, GuestBatch, Gva, Invalidation, PageSize, Run, VcpuId};

/// One translation.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// First address.
    pub start: u64,
    pub size: PageSize,
    /// Size of the page that the guest's tables map, of which this is a part or all.
    pub whole: PageSize,
    /// `None`: global.
    pub pcid: Option<u16>,
    pub write: bool,
    pub user: bool,
    pub execute: bool,
    pub dirty: bool,
}

impl Entry {
    fn translates(&self, gva: u64, pcid: u16) -> bool {
        self.start == gva & !self.size.mask() && self.pcid.is_none_or(|p| p == pcid)
    }
    fn serves(&self, run: &Run) -> bool {
        let flags = run.flags;
        (!flags.is_store() || (self.write && self.dirty))
            && (!flags.is_fetch() || self.execute)
            && (flags.is_kernel() || self.user)
    }
}

struct Array {
    sizes: Vec<PageSize>,
    ways: usize,
    /// Least recently used first.
    sets: Vec<Vec<Entry>>,
}

/// One level of TLB.
pub struct Level(Vec<Array>);

impl Level {
    fn new(profile: &[TlbProfile]) -> Self {
        let array = |p: &TlbProfile| Array {
            sizes: p.sizes.iter().map(|s| size_of(s)).collect(),
            ways: p.ways as usize,
            sets: vec![Vec::new(); (p.entries / p.ways) as usize],
        };
        Self(profile.iter().map(array).collect())
    }

    fn look_up(&mut self, gva: u64, pcid: u16) -> Option<Entry> {
        let mut found = None;
        for array in &mut self.0 {
            for size in &array.sizes {
                let sets = array.sets.len() as u64;
                let set = &mut array.sets[((gva >> size.shift()) % sets) as usize];
                if let Some(at) =
                    set.iter().position(|e| e.size == *size && e.translates(gva, pcid))
                {
                    assert!(found.is_none(), "two entries translate {gva:#x}");
                    let entry = set.remove(at);
                    set.push(entry);
                    found = Some(entry);
                }
            }
        }
        found
    }

    /// Fills an entry; a level without the size leaves it out, or takes the part around `gva` of the
    /// largest smaller size that it has.
    fn fill(&mut self, gva: u64, mut entry: Entry, in_parts: bool) {
        let has = |size: PageSize| self.0.iter().any(|a| a.sizes.contains(&size));
        if !has(entry.size) {
            let smaller = self.0.iter().flat_map(|a| &a.sizes).filter(|s| **s < entry.size).max();
            let Some(size) = smaller.copied().filter(|_| in_parts) else { return };
            (entry.start, entry.size) = (gva & !size.mask(), size);
        }
        let array = self.0.iter_mut().find(|a| a.sizes.contains(&entry.size)).unwrap();
        let sets = array.sets.len() as u64;
        let set = &mut array.sets[((entry.start >> entry.size.shift()) % sets) as usize];
        set.retain(|e| (e.start, e.size, e.pcid) != (entry.start, entry.size, entry.pcid));
        if set.len() == array.ways {
            set.remove(0);
        }
        set.push(entry);
    }

    fn remove(&mut self, which: impl Fn(&Entry) -> bool) {
        for set in self.0.iter_mut().flat_map(|a| &mut a.sets) {
            set.retain(|e| !which(e));
        }
    }

    pub fn len(&self) -> usize {
        self.0.iter().flat_map(|a| &a.sets).map(Vec::len).sum()
    }
}

fn size_of(name: &str) -> PageSize {
    let (number, unit) = name.split_at(name.len() - 1);
    let unit = match unit {
        "k" => 10,
        "m" => 20,
        _ => 30,
    };
    PageSize::from_shift(unit + number.parse::<u64>().unwrap().ilog2() as u8)
}

/// TLBs of one vCPU.
pub struct Core {
    pub l1d: Level,
    pub l1i: Level,
    pub l2: Level,
    root: Gpa,
    pcid: u16,
}

impl Core {
    fn levels(&mut self) -> [&mut Level; 3] {
        [&mut self.l1d, &mut self.l1i, &mut self.l2]
    }
    fn remove(&mut self, which: impl Fn(&Entry) -> bool) {
        self.levels().into_iter().for_each(|l| l.remove(&which));
    }
    fn first(&mut self, run: &Run) -> &mut Level {
        if run.flags.is_fetch() { &mut self.l1i } else { &mut self.l1d }
    }
}

/// What a hypervisor did to the hardware, and what the hardware found in the shadow tables.
#[derive(Clone, Copy, Debug)]
pub enum Shadowed {
    /// Everything was dropped on every vCPU.
    Flushed,
    /// Everything was dropped on one.
    FlushedVcpu(VcpuId),
    /// A root of the PCID that an invalidation names is at hand.
    AtHand,
    /// The entries for an address were dropped on every vCPU, for the PCID that it runs.
    Dropped(Gva),
    /// A walk ended with this translation.
    Walked(nestwalk_hw::Translation),
}

pub struct Oracle {
    mode: &'static Mode,
    tables: TableMemory<Gpa>,
    pub cores: Vec<Core>,
    /// Size of all pages of the host; `None` on bare metal.
    host: Option<PageSize>,
    /// What is counted: first-level misses, second-level hits and misses, rewalks.
    pub counts: [u64; 4],
    /// A hypervisor with shadow tables answers loads of CR3 and invalidations, by INVVPID.
    kvm: bool,
}

impl Oracle {
    /// Of a guest whose hypervisor has shadow tables.
    pub fn below_kvm(self) -> Self {
        Self { kvm: true, ..self }
    }

    pub fn new(
        profile: &Profile,
        mode: &'static Mode,
        vcpus: usize,
        host: Option<PageSize>,
    ) -> Self {
        let core = || Core {
            l1d: Level::new(&profile.l1d_tlb),
            l1i: Level::new(&profile.l1i_tlb),
            l2: Level::new(&profile.l2_tlb),
            root: Gpa::new(0),
            pcid: 0,
        };
        let cores = (0..vcpus).map(|_| core()).collect();
        Self { mode, tables: TableMemory::new(), cores, host, counts: [0; 4], kvm: false }
    }

    /// What a machine should have counted.
    pub fn agrees(&self, c: &Counters) -> Result<(), String> {
        let found = [c.l1_tlb_misses, c.l2_tlb_hits, c.l2_tlb_misses, c.rewalks];
        if found == self.counts {
            return Ok(());
        }
        let what = "first-level misses, second-level hits and misses, rewalks";
        Err(format!("{what}: {found:?}, the oracle says {:?}", self.counts))
    }

    pub fn follow(&mut self, events: &GuestBatch) {
        let controls = &events.batch.controls;
        let mut next = 0;
        for (i, run) in events.batch.runs.iter().enumerate() {
            while next < controls.len() && controls[next].0 as usize <= i {
                self.control(&controls[next].1, &[]);
                next += 1;
            }
            self.access(run, &[]);
        }
        controls[next..].iter().for_each(|(_, c)| self.control(c, &[]));
    }

    /// One access; `shadowed` is what happened meanwhile under shadow paging.
    pub fn access(&mut self, run: &Run, shadowed: &[Shadowed]) {
        let v = usize::from(run.vcpu.0);
        let (gva, core) = (run.gva.value(), &mut self.cores[v]);
        let pcid = core.pcid;
        let stale = match core.first(run).look_up(gva, pcid) {
            Some(hit) if hit.serves(run) => return,
            Some(_) => true,
            None => {
                self.counts[0] += 1;
                match core.l2.look_up(gva, pcid) {
                    Some(hit) if hit.serves(run) => {
                        self.counts[1] += 1;
                        core.first(run).fill(gva, hit, true);
                        return;
                    }
                    Some(_) => {
                        self.counts[1] += 1;
                        true
                    }
                    None => {
                        self.counts[2] += 1;
                        false
                    }
                }
            }
        };
        if stale {
            self.counts[3] += 1;
            core.remove(|e| e.translates(gva, pcid));
        }
        let told = self.hypervisor(shadowed);
        let entry = told.map_or_else(|| self.walk(run), |t| shadow_entry(gva, pcid, t));
        let core = &mut self.cores[v];
        core.l2.fill(gva, entry, false);
        core.first(run).fill(gva, entry, true);
    }

    /// Does what the hypervisor did; returns what the last walk found.
    fn hypervisor(&mut self, shadowed: &[Shadowed]) -> Option<nestwalk_hw::Translation> {
        let mut found = None;
        for event in shadowed {
            match *event {
                Shadowed::Flushed => self.cores.iter_mut().for_each(|c| c.remove(|_| true)),
                Shadowed::FlushedVcpu(vcpu) => self.cores[usize::from(vcpu.0)].remove(|_| true),
                Shadowed::AtHand => {}
                Shadowed::Dropped(gva) => {
                    for core in &mut self.cores {
                        let pcid = core.pcid;
                        core.remove(|e| e.translates(gva.value(), pcid));
                    }
                }
                Shadowed::Walked(translation) => found = Some(translation),
            }
        }
        found
    }

    /// What the hardware finds in the guest's tables, and the bits that it sets there.
    fn walk(&mut self, run: &Run) -> Entry {
        let core = &self.cores[usize::from(run.vcpu.0)];
        let leaf = look_up(&self.tables, self.mode, core.root, run.gva).unwrap();
        let dirty = if run.flags.is_store() { DIRTY } else { 0 };
        self.tables.set_bits(leaf.at, ACCESSED | dirty);
        let size = self.host.map_or(leaf.size, |host| host.min(leaf.size));
        Entry {
            start: run.gva.value() & !size.mask(),
            size,
            whole: leaf.size,
            pcid: (!leaf.entry.has(GLOBAL)).then_some(core.pcid),
            write: leaf.permissions.write,
            user: leaf.permissions.user,
            execute: leaf.permissions.execute,
            dirty: dirty != 0 || leaf.entry.has(DIRTY),
        }
    }

    pub fn control(&mut self, control: &Control, shadowed: &[Shadowed]) {
        self.hypervisor(shadowed);
        match *control {
            Control::TableAdded { gpa, ref entries, .. } => {
                self.tables.insert(gpa, entries.as_deref());
            }
            Control::TableWrite { gpa, value, .. } => {
                self.tables.write(gpa, self.mode.entry_bytes, value);
            }
            Control::PageCleared { gpa, size, .. } => {
                (0..size.base_pages()).for_each(|i| self.tables.remove(gpa.offset_by(i << 12)));
            }
            Control::LoadCr3 { vcpu, root, pcid, keep } => {
                let core = &mut self.cores[usize::from(vcpu.0)];
                (core.root, core.pcid) = (root, pcid);
                if !keep {
                    let all = self.kvm;
                    core.remove(|e| all || e.pcid == Some(pcid));
                }
            }
            Control::Invalidate { vcpu, what } if self.kvm => {
                let at_hand = shadowed.iter().any(|e| matches!(e, Shadowed::AtHand));
                self.invalidate_by_kvm(usize::from(vcpu.0), what, at_hand);
            }
            Control::Invalidate { vcpu, what } => self.invalidate(usize::from(vcpu.0), what),
            Control::Fault { vcpu, gva, code } => {
                let core = &mut self.cores[usize::from(vcpu.0)];
                // A fault that was spurious found a leaf, and used it.
                if let Ok(leaf) = look_up(&self.tables, self.mode, core.root, gva)
                    && leaf.permissions.allow(code.write, code.fetch, code.user)
                {
                    let dirty = if code.write { DIRTY } else { 0 };
                    self.tables.set_bits(leaf.at, ACCESSED | dirty);
                }
                let (gva, pcid) = (gva.value(), core.pcid);
                core.remove(|e| e.pcid == Some(pcid) && e.translates(gva, pcid));
            }
            Control::RegionOfInterest => self.counts = [0; 4],
            _ => {}
        }
    }

    fn invalidate_by_kvm(&mut self, v: usize, what: Invalidation, at_hand: bool) {
        let core = &mut self.cores[v];
        let of = |e: &Entry, gva: Gva| e.start & !e.whole.mask() == gva.value() & !e.whole.mask();
        match what {
            Invalidation::Page(gva) => core.remove(|e| of(e, gva)),
            Invalidation::PageInPcid(gva, _) => core.remove(|e| at_hand && of(e, gva)),
            Invalidation::Pcid(pcid) if pcid != core.pcid => {}
            _ => core.remove(|_| true),
        }
    }

    fn invalidate(&mut self, v: usize, what: Invalidation) {
        let core = &mut self.cores[v];
        // Of a page that was cached in parts, all of them.
        let of = |e: &Entry, gva: Gva| e.start & !e.whole.mask() == gva.value() & !e.whole.mask();
        let current = core.pcid;
        match what {
            Invalidation::Page(gva) => {
                core.remove(|e| of(e, gva) && e.pcid.is_none_or(|p| p == current));
            }
            Invalidation::PageInPcid(gva, pcid) => {
                core.remove(|e| of(e, gva) && e.pcid == Some(pcid));
            }
            Invalidation::Pcid(pcid) => core.remove(|e| e.pcid == Some(pcid)),
            Invalidation::AllButGlobal => core.remove(|e| e.pcid.is_some()),
            Invalidation::All => core.remove(|_| true),
        }
    }
}

fn shadow_entry(gva: u64, pcid: u16, t: nestwalk_hw::Translation) -> Entry {
    let (size, permissions) = (t.size(), t.permissions());
    Entry {
        start: gva & !size.mask(),
        size,
        whole: size,
        pcid: (!t.is_global()).then_some(pcid),
        write: permissions.write,
        user: permissions.user,
        execute: permissions.execute,
        dirty: t.is_dirty(),
    }
}
