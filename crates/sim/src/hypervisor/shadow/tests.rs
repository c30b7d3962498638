//! What must hold between the parts of the shadow MMU after every event of any life. The rules of KVM
//! that can be seen from outside are in `tests/shadow_rules.rs`.

use super::{NONE, PageId, ShadowMmu};
use crate::hardware::walk::agile::SWITCH;
use crate::machine::{DynMachine, Machine};
use crate::measure::counters::ExitReason;
use crate::scheme::MachineConfig;
use crate::scheme::Platform;
use crate::scheme::vmm_options::{KvmVersion, VmmOptions};
use crate::schemes::shadow::Shadow;
use lives::Life;
use nestwalk_hw::Profile;
use nestwalk_mm::{HostMemory, PagePolicy};
use nestwalk_tables::entry::{ACCESSED, DIRTY, LARGE, PRESENT, WRITE};
use nestwalk_tables::{Entry, LEGACY32, LONG4, LONG5, Mode, PAE};
use nestwalk_types::{Address, Gpa, Hpa, PageSize, SplitMix64};
use std::collections::{BTreeMap, BTreeSet};

#[allow(dead_code, reason = "shared with the tests of machines, which use more of it")]
#[path = "../../../tests/common/lives.rs"]
pub(crate) mod lives;

/// One present entry of a shadow page.
struct Found {
    page: PageId,
    index: u64,
    spte: Hpa,
    entry: Entry,
}

impl ShadowMmu {
    /// Whether the vCPU's root was dropped and is made anew at the next fault.
    pub(crate) fn is_obsolete_root(&self, vcpu: usize) -> bool {
        self.roots[vcpu].current.is_some_and(|r| self.pages[r.page as usize].obsolete)
    }

    fn live_pages(&self) -> impl Iterator<Item = PageId> {
        (0..self.pages.len() as PageId).filter(|p| self.pages[*p as usize].live)
    }

    fn present(&self) -> Vec<Found> {
        let mut all = Vec::new();
        for page in self.live_pages() {
            for index in 0..512 {
                let spte = self.pages[page as usize].table.offset_by(index * 8);
                let entry = Entry(self.memory.read(spte, 8).expect("a live page has memory"));
                if entry.is_present() {
                    all.push(Found { page, index, spte, entry });
                }
            }
        }
        all
    }

    /// The guest frame that a leaf entry maps.
    fn frame_of(&self, f: &Found) -> u64 {
        let p = &self.pages[f.page as usize];
        match &p.gfns {
            Some(gfns) => u64::from(gfns[f.index as usize]) - 1,
            None => p.gfn + f.index * self.mode.span(p.level).base_pages(),
        }
    }

    /// Whether a guest's table is behind the page.
    fn still_has_table(&self, page: PageId) -> bool {
        self.pages[page as usize].split.is_none()
    }

    pub(crate) fn check(&self, platform: &Platform) {
        assert!(!self.flush_owed, "a flush is owed when the guest runs");
        assert!(self.emulated.is_none(), "an entry allows stores for one walk only");
        self.check_indexes();
        self.check_protection();
        self.check_holders();
        let present = self.present();
        self.check_links(&present);
        self.check_switches(&present, platform);
        self.check_leaves(&present, platform);
        self.check_in_step(&present, platform);
    }

    /// Every live page is found by its role (unless it is obsolete) and by its table, nothing else is.
    fn check_indexes(&self) {
        let live: BTreeSet<PageId> = self.live_pages().collect();
        assert_eq!(live.len() as u64, self.live);
        assert_eq!(live.len() as u64, self.memory.len());
        assert_eq!(live.len(), self.by_table.len());
        for page in &live {
            let table = self.pages[*page as usize].table;
            assert_eq!(self.by_table[&table.page_number()], *page);
        }
        let by_role: BTreeSet<PageId> = self.by_role.values().copied().collect();
        assert_eq!(by_role.len(), self.by_role.len());
        let current = live.iter().copied().filter(|p| !self.pages[*p as usize].obsolete);
        assert_eq!(by_role, current.collect());
    }

    /// Every page with a table of the guest behind it stands once in the chain of its frame, and is
    /// counted in its 2 MiB.
    fn check_protection(&self) {
        let mut chained = BTreeSet::new();
        let mut regions: BTreeMap<u64, u32> = BTreeMap::new();
        for (gfn, first) in &self.by_guest {
            let mut page = *first;
            while page != NONE {
                let p = &self.pages[page as usize];
                assert!(p.live && !p.obsolete && p.gfn == *gfn);
                assert!(chained.insert(page), "stands twice");
                *regions.entry(gfn >> 9).or_default() += 1;
                page = p.next_same;
            }
        }
        let tables = self.live_pages().filter(|p| self.still_has_table(*p));
        let tables: BTreeSet<PageId> =
            tables.filter(|p| !self.pages[*p as usize].obsolete).collect();
        assert_eq!(chained, tables);
        assert_eq!(regions, self.shadowed_in_2m.iter().map(|(r, n)| (*r, *n)).collect());
    }

    /// The number of holders is the number of roots; an obsolete page has one at least. Pages out of
    /// step are leaf tables and are remembered.
    fn check_holders(&self) {
        let mut held: BTreeMap<PageId, u32> = BTreeMap::new();
        for roots in &self.roots {
            for root in roots.current.iter().chain(&roots.previous) {
                *held.entry(root.page).or_default() += 1;
            }
            assert!(roots.previous.len() <= self.rules.previous_roots);
        }
        for page in self.live_pages() {
            let p = &self.pages[page as usize];
            assert_eq!(p.holders, held.get(&page).copied().unwrap_or(0));
            assert!(!p.obsolete || p.holders > 0);
            if p.unsync {
                assert!(p.level == 1 && self.still_has_table(page) && self.unsync.contains(&page));
            }
        }
        assert!(held.keys().all(|p| self.pages[*p as usize].live));
    }

    /// Entries above the leaves point to live pages of the next level, which know it.
    fn check_links(&self, present: &[Found]) {
        let mut parents: BTreeMap<PageId, BTreeSet<Hpa>> = BTreeMap::new();
        for f in present {
            let level = self.pages[f.page as usize].level;
            if level == 1 || f.entry.has(LARGE) || f.entry.has(SWITCH) {
                continue;
            }
            let child = self.by_table[&f.entry.target::<Hpa>().page_number()];
            let c = &self.pages[child as usize];
            assert!(c.live && !c.obsolete && c.level == level - 1);
            parents.entry(child).or_default().insert(f.spte);
        }
        for page in self.live_pages() {
            let known = &self.pages[page as usize].parents;
            let expected = parents.remove(&page).unwrap_or_default();
            assert_eq!(known.len(), expected.len());
            assert_eq!(known.iter().copied().collect::<BTreeSet<Hpa>>(), expected);
        }
    }

    /// Switching entries lead to the host's frame of a guest table that is known to be nested, and each
    /// is known.
    fn check_switches(&self, present: &[Found], platform: &Platform) {
        let host = platform.host.as_ref().expect("a VM has a host");
        let mut leading: BTreeMap<u64, BTreeSet<Hpa>> = BTreeMap::new();
        for f in present {
            let level = self.pages[f.page as usize].level;
            if level == 1 || f.entry.has(LARGE) || !f.entry.has(SWITCH) {
                continue;
            }
            let gpa = self.partial.homes.of(self.memory.open(f.spte), f.index);
            let behind = host.look_up(gpa).expect("the host has the table");
            let frame = behind.frame.offset_by(gpa.offset_in(behind.size));
            assert_eq!(f.entry.target::<Hpa>(), frame);
            assert_eq!(self.partial.nested.get(gpa.page_number()), Some(&(level - 1)));
            leading.entry(gpa.page_number()).or_default().insert(f.spte);
        }
        let known = self.partial.switches.iter();
        let known = known.map(|(gfn, all)| (*gfn, all.iter().copied().collect()));
        assert_eq!(known.collect::<BTreeMap<u64, BTreeSet<Hpa>>>(), leading);
    }

    /// Leaves map the frame that the host has behind the guest's, are known to the reverse map, and
    /// allow no store to a table that someone relies on; no large one covers a shadowed table.
    fn check_leaves(&self, present: &[Found], platform: &Platform) {
        let host = platform.host.as_ref().expect("a VM has a host");
        let mut mapped: BTreeMap<u64, BTreeSet<Hpa>> = BTreeMap::new();
        for f in present {
            let level = self.pages[f.page as usize].level;
            if level > 1 && !f.entry.has(LARGE) {
                continue;
            }
            let gfn = self.frame_of(f);
            let gpa = Gpa::new(gfn << 12);
            let behind = host.look_up(gpa).expect("the host has the page");
            let frame = behind.frame.offset_by(gpa.offset_in(behind.size));
            let size = self.mode.span(level);
            assert_eq!(f.entry.frame::<Hpa>(size), frame);
            if f.entry.has(WRITE) {
                assert!(level == 1 || !self.is_shadowed_within(gfn, size));
                assert!(level > 1 || self.has_unsync_shadow(gfn), "gfn {gfn:#x} is protected");
                assert!(f.entry.has(super::protect::GUEST_WRITE));
            }
            let dirty = f.entry.has(DIRTY) || self.rules.hardware_ad || self.rules.kvm.is_newer();
            assert!(!f.entry.has(WRITE) || dirty, "writable is dirty from the start");
            mapped.entry(gfn).or_default().insert(f.spte);
        }
        for (gfn, sptes) in &mapped {
            let known: BTreeSet<Hpa> = self.rmap.entries(*gfn).into_iter().collect();
            assert_eq!(&known, sptes);
        }
    }

    /// Whether nobody relies on the contents of a guest frame.
    fn has_unsync_shadow(&self, gfn: u64) -> bool {
        let mut page = self.by_guest.get(&gfn).copied().unwrap_or(NONE);
        while page != NONE {
            if !self.pages[page as usize].unsync {
                return false;
            }
            page = self.pages[page as usize].next_same;
        }
        true
    }

    /// The reverse map knows no entry that is not there, either.
    fn check_reverse_map(&self) {
        let present = self.present();
        let leaf = |f: &&Found| self.pages[f.page as usize].level == 1 || f.entry.has(LARGE);
        let leaves = present.iter().filter(leaf).count();
        let known = (0..(3u64 << 30) >> 12).map(|gfn| self.rmap.entries(gfn).len());
        assert_eq!(known.sum::<usize>(), leaves);
    }

    /// What is protected is in step: every entry stands for what the guest's entry says now, and gives
    /// no more than it does.
    fn check_in_step(&self, present: &[Found], platform: &Platform) {
        for f in present {
            let p = &self.pages[f.page as usize];
            if p.obsolete || p.unsync || !self.still_has_table(f.page) {
                continue;
            }
            let at = self.guest_entry_at(f.page, f.index);
            let raw = platform.cpu.world.guest.read(at, platform.cpu.world.mode.entry_bytes);
            let guest = Entry(raw.expect("a shadowed table is a table"));
            let leaf = p.level == 1 || f.entry.has(LARGE);
            if self.rules.hardware_ad && leaf {
                // What the hardware would set in both is set in both, or in the guest's alone.
                assert!(guest.has(PRESENT | f.entry.0 & (ACCESSED | DIRTY | WRITE)), "{at:?}");
            } else {
                assert!(guest.has(PRESENT | ACCESSED), "{at:?}");
                if f.entry.has(WRITE) && leaf {
                    assert!(guest.has(WRITE | DIRTY), "{at:?}");
                }
            }
            if p.level == 1 {
                let gfn = self.frame_of(f);
                assert_eq!(guest.target::<Gpa>().page_number(), gfn, "{at:?}");
            } else if f.entry.has(SWITCH) {
                let home = self.partial.homes.of(self.memory.open(f.spte), f.index);
                assert_eq!(guest.target::<Gpa>().page_number(), home.page_number(), "{at:?}");
            } else if !f.entry.has(LARGE) && !guest.has(LARGE) {
                let child = self.by_table[&f.entry.target::<Hpa>().page_number()];
                let gfn = self.pages[child as usize].gfn;
                assert_eq!(guest.target::<Gpa>().page_number(), gfn, "{at:?}");
            }
        }
    }
}

/// Of every third seed one version of KVM.
fn version(seed: u64) -> KvmVersion {
    [KvmVersion::V4_19, KvmVersion::V6_1, KvmVersion::V6_12][seed as usize % 3]
}

fn machine(
    mode: &'static Mode,
    host_pages: &str,
    guest_bytes: u64,
    kvm: KvmVersion,
) -> Machine<Shadow> {
    let policy = PagePolicy::by_name(host_pages).unwrap();
    let slots = [(Gpa::new(0), 3 << 30)];
    let build = MachineConfig {
        variant: String::new(),
        name: "shadow".into(),
        vmm: VmmOptions { kvm, ..VmmOptions::default() },
        profile: Profile::load("zen2").unwrap(),
        guest_mode: mode,
        nested_mode: &LONG4,
        vcpus: 3,
        guest_bytes,
        host: Some(HostMemory::new(8 << 30, &LONG4, policy, 0.0, 1, &slots).unwrap()),
        verify: true,
    };
    Machine::new(Shadow::new(&build).unwrap(), build).unwrap()
}

#[test]
fn the_parts_agree_after_every_event_of_any_life() {
    let mut zapped = [0, 0];
    for seed in 1..=16u64 {
        let mode: &'static Mode = [&LONG4, &LONG5, &PAE, &LEGACY32][seed as usize % 4];
        let narrow = mode.entry_bytes == 4;
        let life = Life {
            seed,
            events: 90,
            vcpus: 3,
            accesses_percent: 60,
            mode,
            pages: ["4k", "thp", if narrow { "4m" } else { "2m" }][seed as usize / 2 % 3],
            pcids: seed % 2 == 0,
        };
        // Every second life has the smallest quota.
        let guest_bytes = if seed % 2 == 0 { 3 << 30 } else { 1 << 20 };
        let mut m = machine(mode, ["4k", "2m"][seed as usize / 3 % 2], guest_bytes, version(seed));
        for (i, events) in life.live().iter().enumerate() {
            m.run(events).unwrap();
            if i % 3 == 0 {
                m.scheme.mmu.check(&m.platform);
            }
        }
        m.scheme.mmu.check(&m.platform);
        m.scheme.mmu.check_reverse_map();
        assert_eq!(m.verdict().unwrap().told, Vec::<String>::new());
        let c = m.counters();
        zapped = [zapped[0] + c.shadow_zaps, zapped[1] + c.flood_zaps];
    }
    assert!(zapped.iter().all(|z| *z > 0), "{zapped:?}");
}

/// The same with the kernel's own stores in the stream, through large pages that hold the tables.
#[test]
fn the_parts_agree_while_a_kernel_stores_to_its_tables_through_a_direct_map() {
    let (mut unsynced, mut written, mut zapped) = (0, 0, 0);
    for seed in 1..=12u64 {
        let mode: &'static Mode = [&LONG4, &LONG5][seed as usize % 2];
        let life = Life {
            seed,
            events: 60,
            vcpus: 2,
            accesses_percent: 60,
            mode,
            pages: ["4k", "thp"][seed as usize / 2 % 2],
            pcids: seed % 3 == 0,
        };
        let guest_bytes = if seed % 4 == 0 { 1 << 20 } else { 3 << 30 };
        let mut m =
            machine(mode, ["4k", "2m", "1g"][seed as usize % 3], guest_bytes, version(seed));
        let size = [PageSize::SIZE_2M, PageSize::SIZE_1G][seed as usize / 2 % 2];
        let mut r = SplitMix64::new(seed);
        let batches = lives::with_direct_map(&life.live(), mode, size, &mut r);
        for (i, events) in batches.iter().enumerate() {
            m.run(events).unwrap();
            if i % 3 == 0 {
                m.scheme.mmu.check(&m.platform);
            }
        }
        m.scheme.mmu.check(&m.platform);
        assert_eq!(m.verdict().unwrap().told, Vec::<String>::new());
        let c = m.counters();
        unsynced += c.exits[ExitReason::TableUnsync as usize];
        written += c.exits[ExitReason::TableWrite as usize];
        zapped += c.shadow_zaps;
    }
    assert!(unsynced > 50 && written > 50 && zapped > 50, "{unsynced} {written} {zapped}");
}

/// A frame that the host takes away is gone from every entry, of several address spaces too.
#[test]
fn dropping_a_frame_drops_every_entry_that_maps_it() {
    let life = Life {
        seed: 77,
        events: 150,
        vcpus: 3,
        accesses_percent: 60,
        mode: &LONG4,
        pages: "4k",
        pcids: true,
    };
    let mut m = machine(&LONG4, "4k", 3 << 30, KvmVersion::V4_19);
    life.live().iter().for_each(|events| m.run(events).unwrap());
    let leaves: Vec<u64> = {
        let mmu = &m.scheme.mmu;
        let all = mmu.present();
        let leaves = all.iter().filter(|f| mmu.pages[f.page as usize].level == 1);
        leaves.map(|f| mmu.frame_of(f)).collect()
    };
    let mut dropped = 0;
    for gfn in leaves.iter().collect::<BTreeSet<_>>() {
        let expected = leaves.iter().filter(|g| *g == gfn).count();
        assert_eq!(m.scheme.mmu.drop_gfn(*gfn), expected);
        m.scheme.mmu.settle(&mut m.platform);
        dropped += expected;
    }
    assert_eq!(dropped, leaves.len());
    assert!(dropped > leaves.iter().collect::<BTreeSet<_>>().len(), "none is shared");
    m.scheme.mmu.check(&m.platform);
    assert!(m.platform.cpu.hardware.cores.iter().all(|c| c.l1d.is_empty() && c.l2.is_empty()));
}
