//! What each placement policy promises, seen from a guest's tables; and how contiguous memory
//! becomes.

#[path = "common/aged.rs"]
mod aged;

use aged::{Aged, memory, populate};
use nestwalk_mm::{
    DaemonConfig, GuestConfig, GuestStats, HostConfig, HostMemory, ModelledGuest, PagePolicy,
    PlacementKind,
};
use nestwalk_tables::{LONG4, entry};
use nestwalk_types::{
    AccessKind, Address, Batch, BatchBuilder, Control, Gpa, GuestBatch, Gva, PageSize, ProcessId,
    Protection, VcpuId,
};

const MIB: u64 = 1 << 20;
const BASE: u64 = 0x4000_0000;
const P: ProcessId = ProcessId(1);

/// A guest that is told things one after the other.
struct Test {
    guest: ModelledGuest,
    out: GuestBatch,
}

impl Test {
    fn new(placement: &str, pages: &str, mib: u64) -> Self {
        let placement = PlacementKind::by_name(placement).unwrap();
        let policy = PagePolicy::by_name(pages).unwrap();
        let config = GuestConfig { placement, policy, ..GuestConfig::new(&LONG4, mib * MIB) };
        let mut test =
            Self { guest: ModelledGuest::new(config).unwrap(), out: GuestBatch::default() };
        test.control(Control::Switch { vcpu: VcpuId(0), process: P });
        test
    }
    fn say(&mut self, say: impl FnOnce(&mut BatchBuilder)) {
        let (mut builder, mut batch) = (BatchBuilder::new(), Batch::default());
        say(&mut builder);
        builder.take_into(&mut batch);
        self.guest.process(&batch, &mut self.out).unwrap();
    }
    fn control(&mut self, control: Control) {
        self.say(|b| b.control(control));
    }
    fn map(&mut self, page: u64, pages: u64) {
        let (start, bytes, protection) = (at(page), pages << 12, Protection::ALL);
        self.control(Control::Map { process: P, start, bytes, protection });
    }
    fn unmap(&mut self, page: u64, pages: u64) {
        self.control(Control::Unmap { process: P, start: at(page), bytes: pages << 12 });
    }
    fn store_on(&mut self, vcpu: u8, page: u64) {
        self.say(|b| b.access(VcpuId(vcpu), Gva::new(0), at(page), 8, AccessKind::Store, 1));
    }
    fn store(&mut self, page: u64) {
        self.store_on(0, page);
    }
    fn stores(&mut self, pages: std::ops::Range<u64>) {
        pages.for_each(|p| self.store(p));
    }
    /// Frame number and size, if the page is mapped.
    fn found(&self, page: u64) -> Option<(u64, PageSize)> {
        let space = self.guest.spaces().find(|s| s.0 == P)?.1;
        let leaf = space.look_up(self.guest.memory(), at(page)).ok()?;
        Some((leaf.apply(at(page)).page_number(), leaf.size))
    }
    fn frame(&self, page: u64) -> u64 {
        self.found(page).expect("mapped").0
    }
    fn stats(&self) -> GuestStats {
        self.guest.stats()
    }
    /// Frames set aside.
    fn aside(&self) -> u64 {
        self.guest.memory().physical.set_aside_frames()
    }
    fn cleared(&self) -> u64 {
        let cleared = |c: &Control| match c {
            Control::PageCleared { size, .. } => size.base_pages(),
            _ => 0,
        };
        self.out.batch.controls.iter().map(|c| cleared(&c.1)).sum()
    }
}

fn at(page: u64) -> Gva {
    Gva::new(BASE + (page << 12))
}

#[test]
fn eager_paging_clears_a_mapping_at_once_and_counts_what_is_never_used() {
    for (pages, leaves) in [("4k", (3000, 0)), ("thp", (440, 5))] {
        let mut t = Test::new("eager", pages, 64);
        t.map(0, 3000);
        assert_eq!(t.cleared(), 3000);
        let s = t.stats();
        assert_eq!((s.pages_4k, s.pages_2m), leaves);
        let p = s.placement;
        assert_eq!(
            (p.most_at_once, p.untouched_bytes, p.at_target),
            (3000, 3000 << 12, leaves.0 + leaves.1)
        );
        let free = t.guest.memory().physical.free_frames();
        t.stores(0..512);
        // Nothing is allocated, no fault happens, and what was used is bloat no more.
        assert_eq!((t.stats().faults, t.guest.memory().physical.free_frames()), (0, free));
        assert_eq!(t.stats().placement.untouched_bytes, 2488 << 12);
        // Contiguous but for where one block ends and the next begins, each at most half as long.
        let jumps = (1..3000).filter(|p| t.frame(*p) != t.frame(p - 1) + 1).count();
        assert!(jumps <= 8, "{jumps}");
        t.unmap(0, 3000);
        assert_eq!((t.stats().resident_bytes, t.aside()), (0, 0));
    }
}

#[test]
fn eager_paging_leaves_what_does_not_fit_to_faults() {
    let mut t = Test::new("eager", "4k", 64);
    t.map(0, 40_000);
    let mapped = t.stats().resident_bytes >> 12;
    assert!((5000..8000).contains(&mapped), "{mapped}");
    t.store(39_999);
    assert_eq!((t.stats().faults, t.stats().resident_bytes >> 12), (1, mapped + 1));
}

#[test]
fn reserved_blocks_are_joined_when_they_are_full() {
    let mut t = Test::new("reserve", "thp", 64);
    t.map(100, 2000);
    // Backwards, with a fork in the middle of it: what is shared is not joined.
    t.stores(512..1023);
    assert_eq!((t.aside(), t.found(512).unwrap().1), (1, PageSize::SIZE_4K));
    assert_eq!(t.frame(512) % 512, 0);
    assert_eq!(t.frame(1022), t.frame(512) + 510);
    t.store(1023);
    let (frame, size) = t.found(700).unwrap();
    assert_eq!((size, frame % 512, t.aside()), (PageSize::SIZE_2M, 188, 0));
    let s = t.stats();
    assert_eq!((s.placement.promotions, s.pages_4k, s.pages_2m), (1, 0, 1));
    // The table went, and the leaf is used and dirty.
    let space = t.guest.spaces().find(|s| s.0 == P).unwrap().1;
    let leaf = space.look_up(t.guest.memory(), at(512)).unwrap();
    assert!(leaf.entry.has(entry::ACCESSED | entry::DIRTY | entry::WRITE | entry::LARGE));
    // The mapping's ends cover no block of 2 MiB: no reservation.
    t.store(100);
    assert_eq!((t.aside(), t.stats().placement.placed_elsewhere), (0, 1));
    // A part unmapped splits; a whole block unmapped gives back what it holds.
    t.unmap(600, 10);
    assert_eq!(t.stats().pages_4k, 503);
    t.store(1024);
    assert_eq!(t.aside(), 511);
    t.unmap(1024, 256);
    assert_eq!(t.aside(), 256);
    t.unmap(0, 3000);
    assert_eq!((t.aside(), t.stats().resident_bytes), (0, 0));
}

#[test]
fn reserved_blocks_stay_small_pages_where_the_policy_has_no_others_or_permissions_differ() {
    let mut t = Test::new("reserve", "4k", 64);
    t.map(0, 1024);
    t.stores(0..512);
    assert_eq!((t.stats().placement.promotions, t.frame(511)), (0, t.frame(0) + 511));
    let mut t = Test::new("reserve", "thp", 64);
    t.map(0, 1024);
    t.stores(0..511);
    let (start, protection) = (at(7), Protection::READ);
    t.control(Control::Protect { process: P, start, bytes: 4096, protection });
    t.store(511);
    assert_eq!(t.stats().placement.promotions, 0);
    // Shared with a child: not joined either.
    let mut t = Test::new("reserve", "thp", 64);
    t.map(0, 1024);
    t.stores(0..511);
    t.control(Control::Fork { parent: P, child: ProcessId(2) });
    t.store(511);
    assert_eq!(t.stats().placement.promotions, 0);
}

#[test]
fn reservations_are_broken_rather_than_memory_being_refused() {
    for (placement, pages) in
        [("reserve", "thp"), ("ideal", "4k"), ("ideal", "thp"), ("ptemagnet", "4k")]
    {
        let mut t = Test::new(placement, pages, 64);
        // Every 37th page of 120 MiB in a guest with 31 MiB free, then pages one by one.
        t.map(0, 30_000);
        for p in (0..30_000).step_by(37) {
            if t.guest.memory().counters.data_frames < 5000 {
                t.store(p);
            }
        }
        let mut p = 1;
        while t.guest.memory().physical.free_frames() + t.aside() > 768 {
            t.store(p);
            p += 1;
        }
        let s = t.stats();
        let used = s.resident_bytes + s.table_bytes + s.pinned_bytes + s.free_bytes;
        assert_eq!(used + s.placement.set_aside_bytes, 64 * MIB);
        // Large pages take what is reserved for them before that is needed by others.
        let broken = s.placement.reservations_broken;
        assert!(broken > 0 || (placement, pages) == ("ideal", "thp"), "{placement} {pages}");
        t.control(Control::Exit { process: P });
        assert_eq!((t.aside(), t.stats().resident_bytes), (0, 0));
    }
}

#[test]
fn groups_of_eight_lie_together_however_processes_interleave() {
    const Q: ProcessId = ProcessId(2);
    // How many of 64 groups lie in one aligned block of frames.
    let together = |placement: &str| {
        let mut t = Test::new(placement, "4k", 64);
        t.map(0, 512);
        t.control(Control::Switch { vcpu: VcpuId(0), process: Q });
        let (start, bytes, protection) = (at(0), 512 << 12, Protection::ALL);
        t.control(Control::Map { process: Q, start, bytes, protection });
        for page in 0..512 {
            for process in [P, Q] {
                t.control(Control::Switch { vcpu: VcpuId(0), process });
                t.store(page);
            }
        }
        let whole = |first: &u64| {
            let frame = t.frame(8 * first);
            frame.is_multiple_of(8) && (0..8).all(|i| t.frame(8 * first + i) == frame + i)
        };
        ((0..64).filter(whole).count(), t.aside())
    };
    assert_eq!(together("ptemagnet"), (64, 0));
    assert_eq!(together("linux").0, 0);
    assert_eq!(together("default").0, 0);
}

#[test]
fn a_reserved_group_ends_when_a_page_of_it_goes() {
    let mut t = Test::new("ptemagnet", "4k", 64);
    // The mapping begins and ends within groups, which are reserved nevertheless.
    t.map(3, 20);
    t.store(5);
    assert_eq!((t.aside(), t.frame(5) % 8), (7, 5));
    t.stores(3..8);
    assert_eq!((t.aside(), t.frame(7)), (3, t.frame(3) + 4));
    // One page of another group goes: the others stay where they are, what was kept for them is free,
    // and the next fault reserves anew.
    t.stores(8..11);
    let (old, free) = (t.frame(10), t.guest.memory().physical.free_frames());
    t.unmap(9, 1);
    assert_eq!((t.aside(), t.frame(10)), (3, old));
    assert_eq!(t.guest.memory().physical.free_frames(), free + 6);
    t.store(12);
    assert_eq!((t.aside(), t.frame(12) % 8), (3 + 7, 4));
    assert!(t.frame(12) >> 3 != old >> 3);
    // A copy ends its group's, a child has none.
    t.control(Control::Fork { parent: P, child: ProcessId(2) });
    t.store(12);
    assert_eq!(t.aside(), 3);
    let s = t.stats().placement;
    assert_eq!((s.placed_elsewhere, s.reservations_broken), (0, 0));
    t.control(Control::Exit { process: ProcessId(2) });
    t.control(Control::Exit { process: P });
    assert_eq!((t.aside(), t.stats().resident_bytes), (0, 0));
}

#[test]
fn ideal_memory_is_one_range_for_each_mapping_even_as_it_grows() {
    let mut t = Test::new("ideal", "4k", 256);
    t.map(0, 5000);
    t.map(10_000, 5000);
    // In turns, from both ends.
    for i in 0..2500 {
        [i, 4999 - i, 10_000 + i, 14_999 - i].into_iter().for_each(|p| t.store(p));
    }
    for first in [0, 10_000] {
        assert!((first..first + 5000).all(|p| t.frame(p) == t.frame(first) + (p - first)));
    }
    // Grown by a mapping that follows, which merges with it.
    t.map(15_000, 100);
    t.stores(15_000..15_100);
    assert_eq!(t.frame(15_099), t.frame(10_000) + 5099);
    assert_eq!(t.aside(), 0);
}

#[test]
fn pools_serve_their_size_until_they_are_empty() {
    let mut t = Test::new("hugetlb", "2m", 64);
    t.map(0, 512 * 20);
    t.store(0);
    // 31 MiB are free in two pieces (the kernel's image lies between): three quarters are the pool.
    let pool = t.aside() / 512 + 1;
    assert!((9..=11).contains(&pool), "{pool}");
    (1..pool + 1).for_each(|i| t.store(512 * i));
    let s = t.stats();
    assert_eq!((s.pages_2m, s.pages_4k, s.fallbacks, t.aside()), (pool, 1, 1, 0));
    t.unmap(0, 512 * 20);
    assert_eq!(t.aside(), pool * 512);
    // Base pages cannot have it.
    let mut t = Test::new("hugetlb", "4k", 64);
    t.map(0, 512);
    t.store(0);
    assert_eq!(t.aside(), 0);
}

#[test]
fn vcpus_get_single_pages_from_batches_of_their_own() {
    let mut t = Test::new("linux", "4k", 2048);
    t.control(Control::Switch { vcpu: VcpuId(1), process: P });
    t.map(0, 4000);
    for p in 0..2000 {
        t.store_on((p % 2) as u8, p);
    }
    // Within a batch a vCPU's pages follow each other, and the other one's are 63 further on.
    for vcpu in 0..2 {
        let of = |i: u64| t.frame(2 * i + vcpu);
        let follow = (1..1000).filter(|i| of(*i) == of(i - 1) + 1).count();
        assert!(follow >= 1000 - 1000 / 63 - 4, "{follow}");
    }
    assert_eq!(t.frame(1), t.frame(0) + 63);
    // What is freed comes first: from the own list, the latest one first.
    let last = t.frame(1998);
    t.unmap(1998, 1);
    t.map(1998, 1);
    // The vCPU of the latest event did the unmapping.
    t.store_on(1, 1998);
    assert_eq!(t.frame(1998), last);
}

#[test]
fn copies_are_placed_by_the_same_policy() {
    let mut t = Test::new("ca-4k", "4k", 256);
    t.map(0, 1024);
    t.stores(0..100);
    let first = t.frame(0);
    t.control(Control::Fork { parent: P, child: ProcessId(2) });
    t.stores(0..100);
    // The target is the child's now, so there is a new place; but of two entries for page 0 the
    // kernel's loop finds the old one, so page 1 gets a new place too. The other copies follow
    // that.
    assert!(t.frame(0) != first);
    assert!((1..100).all(|p| t.frame(p) == t.frame(1) + p - 1));
    let p = t.stats().placement;
    assert_eq!((p.at_target, p.placed_again, p.placed_elsewhere), (198, 2, 0));
}

#[test]
fn a_host_that_pages_eagerly_knows_which_pages_the_guest_never_used() {
    let config = HostConfig {
        bytes: 512 * MIB,
        mode: &LONG4,
        policy: PagePolicy::Thp,
        placement: PlacementKind::Eager,
        fragmentation: 0.0.into(),
        seed: 1,
        daemons: DaemonConfig::default(),
        kernel_bytes: 0,
    };
    let mut host = HostMemory::with_config(&config, &[(Gpa::new(0), 128 * MIB)]).unwrap();
    assert_eq!(host.placement_stats().untouched_bytes, 128 * MIB);
    assert!(!host.ensure(Gpa::new(5 * MIB)).unwrap().fresh);
    assert_eq!(host.placement_stats().untouched_bytes, 126 * MIB);
    assert_eq!(host.placement_stats().most_at_once, (128 * MIB) >> 12);
    // What the host takes back comes when it is touched, not before.
    assert!(host.discard(Gpa::new(5 * MIB)).unwrap().is_some());
    assert_eq!(host.look_up(Gpa::new(5 * MIB)), None);
    assert!(host.ensure(Gpa::new(5 * MIB)).unwrap().fresh);
}

#[test]
fn ca_paging_needs_tens_of_ranges_where_others_need_thousands() {
    let aged = Aged { name: "", neighbours: Some(((4, 64), (256, 1024))), degree: 0.0 };
    let run = |placement: &str, pages: &str| {
        let kind = PlacementKind::by_name(placement).unwrap();
        let policy = PagePolicy::by_name(pages).unwrap();
        let mut m = memory(8 << 30, &aged, 7);
        let o = populate(&mut m, (kind, policy), (4, 512, if pages == "4k" { 16 } else { 1 }));
        assert_eq!(o.bloat, 0, "{placement}");
        assert!(m.physical.free_frames() + m.physical.set_aside_frames() > 0);
        o.ranges.0
    };
    let large = ["default", "linux", "ca", "ideal"].map(|p| run(p, "thp"));
    assert!(large[0] > 900 && large[1] > 900 && large[2] <= 24 && large[3] <= 12, "{large:?}");
    let small = ["default", "linux", "ca-4k", "ideal"].map(|p| run(p, "4k"));
    assert!(small[0] > 30_000 && small[1] > 7000 && small[2] <= 24, "{small:?}");
}
