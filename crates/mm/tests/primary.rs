//! Primary regions: contiguous memory behind the largest mapping of a process, and what ends it.

use nestwalk_mm::{
    Contiguous, GuestConfig, ModelledGuest, PagePolicy, PlacementKind, PrimaryConfig,
};
use nestwalk_tables::{LONG4, PAE, entry};
use nestwalk_types::{
    AccessKind, Address, Batch, BatchBuilder, Control, Gpa, GuestBatch, GuestSegment, Gva,
    PageSize, ProcessId, Protection, SplitMix64, VcpuId,
};

const P: ProcessId = ProcessId(1);
const BASE: u64 = 0x4000_0000;
const MIB: u64 = 1 << 20;

fn config() -> GuestConfig {
    GuestConfig {
        placement: PlacementKind::Primary,
        primary: PrimaryConfig { least_bytes: 4096, escapes: 4, balloon: false },
        ..GuestConfig::new(&LONG4, 256 * MIB)
    }
}

/// A guest, and what it has said so far.
struct Test {
    guest: ModelledGuest,
    said: Vec<Control>,
}

impl Test {
    fn new(config: GuestConfig) -> Self {
        let mut test = Self { guest: ModelledGuest::new(config).unwrap(), said: Vec::new() };
        test.control(Control::Switch { vcpu: VcpuId(0), process: P });
        test
    }
    fn run(&mut self, f: impl FnOnce(&mut BatchBuilder)) {
        let (mut b, mut batch, mut out) =
            (BatchBuilder::new(), Batch::default(), GuestBatch::default());
        f(&mut b);
        b.take_into(&mut batch);
        self.guest.process(&batch, &mut out).unwrap();
        self.said.extend(out.batch.controls.into_iter().map(|(_, c)| c));
        check(&self.guest);
    }
    fn control(&mut self, control: Control) {
        self.run(|b| b.control(control));
    }
    fn map(&mut self, page: u64, pages: u64) {
        let (start, bytes) = (at(page), pages << 12);
        self.control(Control::Map { process: P, start, bytes, protection: Protection::ALL });
    }
    fn unmap(&mut self, page: u64, pages: u64) {
        self.control(Control::Unmap { process: P, start: at(page), bytes: pages << 12 });
    }
    fn protect(&mut self, page: u64, pages: u64, protection: Protection) {
        let (start, bytes) = (at(page), pages << 12);
        self.control(Control::Protect { process: P, start, bytes, protection });
    }
    fn store(&mut self, page: u64) {
        self.run(|b| b.access(VcpuId(0), Gva::new(0), at(page), 8, AccessKind::Store, 1));
    }
    fn region(&self) -> Option<Contiguous<Gva, Gpa>> {
        self.guest.spaces().find(|s| s.0 == P)?.1.region()
    }
    /// First page, pages, and escaped pages, as the test numbers them.
    fn pages(&self) -> Option<(u64, u64, Vec<u64>)> {
        let r = self.region()?;
        let first = BASE >> 12;
        let escaped = r.escaped.iter().map(|p| p - first).collect();
        Some((r.start.page_number() - first, r.bytes >> 12, escaped))
    }
    /// What the registers of vCPU 0 were loaded with last, if they were.
    fn loaded(&self) -> Option<Option<GuestSegment>> {
        self.said.iter().rev().find_map(|c| match c {
            Control::LoadSegment { segment, .. } => Some(segment.as_deref().cloned()),
            _ => None,
        })
    }
}

fn at(page: u64) -> Gva {
    Gva::new(BASE + (page << 12))
}

/// What holds at any time: every page of a region that does not escape is, if it is present, where
/// the region says, and writable; and no frame is lost.
fn check(guest: &ModelledGuest) {
    let memory = guest.memory();
    for (_, space) in guest.spaces() {
        let Some(region) = space.region() else { continue };
        let writable = |gva: Gva| {
            let mask = space.config().mode.address_mask();
            let plain = gva.value() & mask;
            space.vmas().iter().any(|v| v.start <= plain && plain < v.end && v.protection.write)
        };
        for i in 0..region.bytes >> 12 {
            let gva = region.start.offset_by(i << 12);
            if region.escaped.binary_search(&gva.page_number()).is_ok() {
                continue;
            }
            assert!(writable(gva), "{gva:?} is in the region and not writable memory");
            if let Ok(leaf) = space.look_up(memory, gva) {
                assert_eq!(leaf.apply(gva), region.target.offset_by(i << 12), "{gva:?}");
                assert!(leaf.entry.has(entry::WRITE), "{gva:?}");
            } else {
                assert!(!memory.physical.is_free(region.target.offset_by(i << 12)));
            }
        }
    }
    let c = &memory.counters;
    let used = c.table_frames + c.data_frames + c.reserved_frames + memory.physical.pinned_frames();
    let zero = u64::from(memory.zero_frame.is_some());
    assert_eq!(used + zero + memory.physical.free_frames(), memory.physical.bytes() >> 12);
}

#[test]
fn the_largest_mapping_is_the_region_and_its_pages_come_when_they_are_touched() {
    let mut t = Test::new(config());
    t.map(0, 100);
    assert_eq!(t.pages(), Some((0, 100, vec![])));
    assert_eq!(t.guest.memory().counters.reserved_frames, 100);
    t.control(Control::Switch { vcpu: VcpuId(0), process: P });
    let region = t.region().unwrap();
    let loaded = t.loaded().unwrap().unwrap();
    assert_eq!((loaded.base, loaded.bytes, loaded.target), (at(0), 100 << 12, region.target));
    t.store(7);
    assert_eq!(t.guest.memory().counters.reserved_frames, 99);
    // A smaller one changes nothing, a larger one takes over.
    t.map(1000, 50);
    assert_eq!(t.pages(), Some((0, 100, vec![])));
    t.map(2000, 200);
    assert_eq!(t.pages(), Some((2000, 200, vec![])));
    assert_eq!(t.loaded().unwrap().unwrap().base, at(2000));
    assert_eq!(t.guest.stats().primary_bytes, 200 << 12);
}

#[test]
fn a_region_grows_with_the_mapping_that_follows_it() {
    let mut t = Test::new(config());
    t.map(0, 100);
    t.map(100, 10);
    assert_eq!(t.pages(), Some((0, 110, vec![])));
    for page in [0, 99, 100, 109] {
        t.store(page);
    }
    // Where memory behind it is taken, growth ends.
    t.map(5000, 60);
    t.store(5000);
    t.map(110, 20_000);
    let (first, pages, _) = t.pages().unwrap();
    assert!(first == 0 && (110..20_110).contains(&pages), "{pages}");
    t.store(110 + 19_999);
}

#[test]
fn a_few_pages_in_the_middle_escape_and_more_cut_the_region() {
    for protects in [false, true] {
        let mut t = Test::new(config());
        t.map(0, 100);
        (0..100).for_each(|p| t.store(p));
        let leave = |t: &mut Test, page, pages| match protects {
            true => t.protect(page, pages, Protection::READ),
            false => t.unmap(page, pages),
        };
        leave(&mut t, 10, 2);
        assert_eq!(t.pages(), Some((0, 100, vec![10, 11])));
        assert_eq!(t.loaded().unwrap().unwrap().escaped.len(), 2);
        // At an end the region shrinks.
        leave(&mut t, 95, 5);
        assert_eq!(t.pages(), Some((0, 95, vec![10, 11])));
        leave(&mut t, 0, 3);
        assert_eq!(t.pages(), Some((3, 92, vec![10, 11])));
        // Two more are allowed, three are not: the larger part is kept.
        leave(&mut t, 30, 2);
        assert_eq!(t.pages(), Some((3, 92, vec![10, 11, 30, 31])));
        leave(&mut t, 60, 3);
        assert_eq!(t.pages(), Some((3, 57, vec![10, 11, 30, 31])));
        leave(&mut t, 3, 57);
        assert_eq!((t.pages(), t.loaded()), (None, Some(None)));
    }
}

#[test]
fn pages_that_have_left_are_invalidated_everywhere() {
    let mut t = Test::new(GuestConfig { pcids: false, ..config() });
    t.map(0, 100);
    t.store(50);
    t.said.clear();
    t.protect(50, 1, Protection::READ);
    let load = t.said.iter().position(|c| matches!(c, Control::LoadSegment { .. })).unwrap();
    let flush = |c: &Control| matches!(c, Control::LoadCr3 { keep: false, .. });
    assert!(t.said[load..].iter().any(flush), "{:?}", t.said);
    let write = t.said.iter().position(|c| matches!(c, Control::TableWrite { .. })).unwrap();
    assert!(load < write, "the registers change before the tables: {:?}", t.said);
}

#[test]
fn fork_exec_and_exit_end_a_region() {
    let mut t = Test::new(config());
    t.map(0, 100);
    (0..50).for_each(|p| t.store(p));
    t.control(Control::Fork { parent: P, child: ProcessId(2) });
    assert_eq!(t.loaded(), Some(None));
    assert!(t.guest.spaces().all(|(_, s)| s.region().is_none()));
    t.store(3); // copied
    t.store(70); // fresh
    t.control(Control::Exec { process: P });
    t.map(0, 80);
    t.store(0);
    assert_eq!(t.pages(), Some((0, 80, vec![])));
    assert!(t.loaded().unwrap().is_some());
    t.control(Control::Exit { process: P });
    assert_eq!(t.loaded(), Some(None));
    t.control(Control::Exit { process: ProcessId(2) });
    assert_eq!(t.guest.memory().counters.reserved_frames, 0);
    assert_eq!(t.guest.memory().counters.data_frames, 0);
}

#[test]
fn a_context_switch_loads_the_registers_of_the_new_process_or_turns_them_off() {
    let mut t = Test::new(config());
    t.map(0, 100);
    let (other, small) = (ProcessId(2), ProcessId(3));
    let (start, bytes, protection) = (at(0), 64 << 12, Protection::ALL);
    t.control(Control::Map { process: other, start, bytes, protection });
    for (process, bytes) in [(P, Some(100 << 12)), (other, Some(64 << 12)), (small, None)] {
        t.control(Control::Switch { vcpu: VcpuId(0), process });
        assert_eq!(t.loaded().unwrap().map(|s| s.bytes), bytes);
    }
    // Between processes without a segment there is nothing to load.
    let loads = t.guest.stats().segment_loads;
    t.control(Control::Switch { vcpu: VcpuId(0), process: ProcessId(4) });
    assert_eq!(t.guest.stats().segment_loads, loads);
}

#[test]
fn what_has_no_contiguous_memory_is_paged() {
    // 2 MiB blocks with pinned frames everywhere: no run of more than 16 holes is long.
    let fragmented = GuestConfig {
        fragmentation: 1.0.into(),
        primary: PrimaryConfig { least_bytes: 64 * MIB, escapes: 16, balloon: false },
        ..config()
    };
    let mut t = Test::new(fragmented);
    t.map(0, (100 * MIB) >> 12);
    assert_eq!(t.pages(), None);
    t.store(17);
    // With few pinned frames it spans them, and they escape.
    let primary = PrimaryConfig { least_bytes: 4096, escapes: 16, balloon: false };
    let mut t = Test::new(GuestConfig { fragmentation: 0.05.into(), primary, seed: 3, ..config() });
    t.map(0, (100 * MIB) >> 12);
    let (_, pages, escaped) = t.pages().unwrap();
    assert!(pages > 10_000 && !escaped.is_empty() && escaped.len() <= 16, "{pages} {escaped:?}");
    let hole = escaped[0];
    t.store(hole);
    t.store(hole + 1);
    // A mapping that memory is too small for, and one that nobody may write.
    let mut t = Test::new(config());
    t.map(0, 1 << 20);
    assert_eq!(t.pages(), None);
    let (start, bytes) = (at(0), 4096 * 100);
    t.control(Control::Map { process: P, start, bytes, protection: Protection::READ });
    assert_eq!(t.pages(), None);
    t.protect(0, 100, Protection::READ_WRITE);
    assert_eq!(t.pages(), Some((0, 100, vec![])));
}

#[test]
fn frames_that_are_set_aside_serve_others_when_memory_ends() {
    let mut t = Test::new(config());
    let free = t.guest.memory().physical.free_frames();
    t.map(0, free / 2);
    t.map(1 << 20, free / 2 - 100);
    // The second mapping needs frames; what the first one holds unused is given back.
    t.run(|b| {
        for page in 0..free / 2 - 200 {
            let gva = at((1 << 20) + page);
            b.access(VcpuId(0), Gva::new(0), gva, 8, AccessKind::Store, 1);
        }
    });
    assert_eq!(t.guest.stats().resident_bytes >> 12, free / 2 - 200);
}

/// Random lives: the invariants of `check` hold after every event, with all page sizes.
#[test]
fn regions_keep_their_promises_in_random_lives() {
    let mut regions = [0u64; 3];
    for seed in 0..24u64 {
        let mut r = SplitMix64::new(seed);
        let pages = ["4k", "thp", "2m"][seed as usize % 3];
        let mode = if seed % 5 == 4 { &PAE } else { &LONG4 };
        let mut t = Test::new(GuestConfig {
            policy: PagePolicy::by_name(pages).unwrap(),
            fragmentation: if seed % 2 == 0 { 0.0 } else { 0.3 }.into(),
            zero_page: seed % 4 == 1,
            seed,
            placement: PlacementKind::Primary,
            primary: PrimaryConfig { least_bytes: 4096, escapes: 4, balloon: false },
            ..GuestConfig::new(mode, 64 * MIB)
        });
        for _ in 0..150 {
            let process = ProcessId(r.below(3) as u32);
            let page = [r.below(24), 500 + r.below(40), r.below(1600)][r.below(3) as usize];
            let pages = [1 + r.below(6), 30 + r.below(10), 512, 1024][r.below(4) as usize];
            let (start, bytes) = (at(page), pages << 12);
            let vcpu = VcpuId(r.below(2) as u8);
            let (mut b, mut batch, mut out) =
                (BatchBuilder::new(), Batch::default(), GuestBatch::default());
            match r.below(16) {
                0..7 => {
                    let kind = [AccessKind::Load, AccessKind::Store][r.below(2) as usize];
                    for p in page..page + pages.min(60) {
                        b.access(vcpu, Gva::new(0), at(p), 8, kind, 1);
                    }
                }
                7..9 => {
                    let protection = Protection::ALL;
                    b.control(Control::Map { process, start, bytes, protection });
                }
                9 => b.control(Control::Unmap { process, start, bytes }),
                10..12 => {
                    let kinds = [Protection::READ, Protection::READ_WRITE];
                    let protection = kinds[r.below(2) as usize];
                    b.control(Control::Protect { process, start, bytes, protection });
                }
                12 => b.control(Control::Populate { process, start, bytes }),
                13 => {
                    let child = ProcessId(r.below(3) as u32);
                    b.control(Control::Fork { parent: process, child });
                }
                14 => b.control(Control::Exec { process }),
                _ => b.control(Control::Switch { vcpu, process }),
            }
            b.take_into(&mut batch);
            let _ = t.guest.process(&batch, &mut out);
            check(&t.guest);
            for (_, space) in t.guest.spaces() {
                let Some(region) = space.region() else { continue };
                regions[0] += 1;
                regions[1] += u64::from(!region.escaped.is_empty());
                let large = space.look_up(t.guest.memory(), region.start);
                regions[2] += u64::from(large.is_ok_and(|l| l.size > PageSize::SIZE_4K));
            }
        }
    }
    assert!(regions[0] > 300 && regions[1] > 30 && regions[2] > 20, "{regions:?}");
}
