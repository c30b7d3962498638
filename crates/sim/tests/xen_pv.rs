//! Direct paging: hypercalls, types and counts of hand-written kernels, and random lives whose
//! records are counted again at every step.

use crate::common;

use common::lives::{Life, with_direct_map};
use common::machines::{Probe, Setup, exits, exits_by_name};
use common::{Script, V0, approve, run};
use nestwalk_hw::Profile;
use nestwalk_mm::{GuestConfig, ModelledGuest};
use nestwalk_sim::schemes::xen_pv::XenPv;
use nestwalk_sim::{Counters, Dimension, DynMachine, ExitReason, Machine};
use nestwalk_tables::entry::{ACCESSED, DIRTY, WRITE};
use nestwalk_tables::{LEGACY32, LONG4, LONG5, PAE};
use nestwalk_types::{
    AccessKind, Address, Batch, BatchBuilder, Control, Gpa, GuestBatch, Gva, PageSize, ProcessId,
    Protection, RunFlags, SplitMix64, VcpuId,
};

const S4K: PageSize = PageSize::SIZE_4K;
const S2M: PageSize = PageSize::SIZE_2M;
const DATA: u64 = 0x4000_0000;

fn setup(host_pages: &'static str, vcpus: usize) -> Setup {
    Setup { host_pages, vcpus, ..Setup::new(Profile::load("zen2").unwrap()) }
}

fn right(m: &Machine<XenPv>) {
    assert_eq!(m.scheme.mmu.audit(), Vec::<String>::new());
    approve(m);
}

/// A root, then `pages` pages from address 0 on, used and dirty, the first touched.
fn mapped(m: &mut Machine<XenPv>, pages: u64) -> Script {
    let mut s = Script::new(&LONG4);
    for i in 0..pages {
        s.map_used(i << 12, DATA + (i << 12), S4K);
    }
    s.load(0);
    m.count(&s.take());
    s
}

#[test]
fn an_address_space_is_pinned_and_its_tables_are_linked_one_by_one() {
    let mut m = setup("4k", 1).xen_pv("");
    let mut s = Script::new(&LONG4);
    // The empty root: its mapping, its pin; then the base pointer.
    let c = m.count(&s.take());
    assert_eq!(exits_by_name(&c), [("pin", 1), ("base_pointer", 1)]);
    assert_eq!((c.hypercall_operations, c.entries_validated), (3, 0));
    // Three tables, each made read-only and linked; the leaf table is pinned besides. Then the
    // page.
    s.map_used(0, DATA, S4K);
    s.load(0);
    let c = m.count(&s.take());
    assert_eq!(exits_by_name(&c), [("mmu_update", 4), ("pin", 3)]);
    assert_eq!((c.hypercall_operations, c.entries_validated), (4 + 3 + 1, 0));
    for (table, level) in [(0, 4), (1, 3), (2, 2), (3, 1)] {
        let page = m.scheme.mmu.page(s.root.offset_by(table << 12));
        assert_eq!((page.table, page.table_uses, page.pinned), (level, 1, level == 4));
    }
    assert_eq!(m.scheme.mmu.page(Gpa::new(DATA)).writable_uses, 1);
    right(&m);
}

/// n entries of one table in batches of b are `ceil(n / b)` hypercalls of n operations; one by one
/// they are n.
#[test]
fn an_unmapping_takes_as_many_hypercalls_as_batches() {
    for (batch, pages) in [(1, 40), (8, 40), (32, 40), (32, 32), (32, 33), (32, 1), (512, 40)] {
        let mut m = setup("4k", 1).xen_pv(&format!("batch={batch}"));
        let mut s = mapped(&mut m, pages);
        (0..pages).for_each(|i| s.unmap(i << 12, S4K));
        s.invlpg(0);
        let c = m.count(&s.take());
        let calls = pages.div_ceil(batch);
        assert_eq!(exits_by_name(&c), [("mmu_update", calls), ("tlb_flush", 1)], "{batch} {pages}");
        assert_eq!(c.hypercall_operations, pages + 1);
        assert_eq!(m.scheme.mmu.page(Gpa::new(DATA)).writable_uses, 0);
        right(&m);
    }
}

#[test]
fn a_batch_ends_with_its_leaf_table() {
    let mut m = setup("4k", 1).xen_pv("");
    let mut s = mapped(&mut m, 4);
    s.map_used(4 << 21, DATA + 0x9000, S4K);
    s.load(4 << 21);
    m.count(&s.take());
    (0..3).for_each(|i| s.unmap(i << 12, S4K));
    s.unmap(4 << 21, S4K);
    s.unmap(3 << 12, S4K);
    s.invlpg(0);
    let c = m.count(&s.take());
    assert_eq!(exits(&c, ExitReason::MmuUpdate), 3, "three, one, one");
    right(&m);
}

/// A fork write-protects n pages of the parent in batches; the child's tables are plain memory
/// until its CR3 is loaded, and are validated then: n leaves and an entry in each of the three
/// tables above.
#[test]
fn a_fork_is_batches_for_the_parent_and_one_pin_for_the_child() {
    for n in [1, 32, 100] {
        let mut m = setup("4k", 1).xen_pv("");
        let mut s = mapped(&mut m, n);
        let (parent, child) = (s.root, s.add_root());
        for i in 0..n {
            s.root = parent;
            s.map(i << 12, DATA + (i << 12), S4K, Protection::READ_EXECUTE, ACCESSED | DIRTY);
            s.root = child;
            s.map(i << 12, DATA + (i << 12), S4K, Protection::READ_EXECUTE, DIRTY);
        }
        s.load_cr3(parent, 1, false);
        let c = m.count(&s.take());
        // The child's tables are made after the first entry: no kernel is in lazy mode then.
        let calls = 1 + (n - 1).div_ceil(32);
        assert_eq!(exits_by_name(&c), [("mmu_update", calls), ("tlb_flush", 1)], "{n}");
        assert_eq!((c.hypercall_operations, c.entries_validated), (n + 1, 0));
        s.load_cr3(child, 2, false);
        s.load(0);
        let c = m.count(&s.take());
        // Four pages read-only, one leaf table and the root pinned: six operations.
        assert_eq!(exits_by_name(&c), [("pin", 1), ("base_pointer", 1)]);
        assert_eq!((c.hypercall_operations, c.entries_validated), (6 + 1, n + 3));
        // Back: the parent is pinned since it was first loaded.
        s.load_cr3(parent, 1, true);
        s.load(0);
        let c = m.count(&s.take());
        assert_eq!(exits_by_name(&c), [("base_pointer", 1)]);
        assert_eq!(c.walks, 1, "there are no PCIDs: nothing was kept");
        right(&m);
    }
}

/// Every first touch of a modelled process is a fault that bounces and an update of its own.
#[test]
fn first_touches_bounce_and_update_once_each() {
    let mut guest = ModelledGuest::new(GuestConfig::new(&LONG4, 3 << 30)).unwrap();
    let mut m = setup("4k", 1).xen_pv("");
    let (mut b, mut plain, mut out) =
        (BatchBuilder::new(), Batch::default(), GuestBatch::default());
    let process = ProcessId(1);
    let pages = 300;
    b.control(Control::Switch { vcpu: V0, process });
    let (start, bytes) = (Gva::new(DATA), pages << 12);
    b.control(Control::Map { process, start, bytes, protection: Protection::ALL });
    b.access(V0, Gva::new(0), Gva::new(DATA), 8, AccessKind::Store, 1);
    b.take_into(&mut plain);
    guest.process(&plain, &mut out).unwrap();
    m.count(&out);
    for i in 1..pages {
        let gva = Gva::new(DATA + (i << 12));
        b.access(V0, Gva::new(0), gva, 8, AccessKind::Store, 1);
    }
    b.take_into(&mut plain);
    guest.process(&plain, &mut out).unwrap();
    let c = m.count(&out);
    assert_eq!(exits_by_name(&c), [("mmu_update", pages - 1), ("fault_bounce", pages - 1)]);
    assert_eq!(c.hypercall_operations, pages - 1);
    assert_eq!((c.host_faults, c.host_pages_cleared), (0, 0), "the domain had its memory before");
    right(&m);
}

#[test]
fn walks_read_the_guests_own_pages_in_machine_memory_and_mark_them() {
    let mut m = setup("4k", 1).xen_pv("");
    let mut s = Script::new(&LONG4);
    s.map(0, DATA, S4K, Protection::ALL, 0);
    s.load(0);
    m.count(&s.take());
    let (leaf, _) = s.entry(0, 1);
    let bits = |m: &Machine<XenPv>| {
        let guest = Script::machine_entry(&m.platform.cpu.world, leaf);
        let machine = m.scheme.mmu.machine_entry(leaf).unwrap();
        assert_eq!(guest.0 & 0x8000_0000_0000_0fff, machine.0 & 0x8000_0000_0000_0fff);
        let host = m.platform.host.as_ref().unwrap();
        assert_eq!(
            machine.target::<nestwalk_types::Hpa>(),
            host.look_up(Gpa::new(DATA)).unwrap().frame
        );
        (guest.has(ACCESSED), guest.has(DIRTY))
    };
    assert_eq!(bits(&m), (true, false));
    s.store(0);
    m.count(&s.take());
    assert_eq!(bits(&m), (true, true));
    let steps = m.watch(&run(0, false)).unwrap();
    assert_eq!(steps.len(), 4);
    for (step, level) in steps.iter().zip([4, 3, 2, 1]) {
        assert_eq!((step.dimension, step.level), (Dimension::Guest, level));
        let (home, _) = s.entry(0, level);
        let host = m.platform.host.as_ref().unwrap();
        let page = host.look_up(home).unwrap();
        assert_eq!(step.at, page.frame.offset_by(home.offset_in(page.size)), "level {level}");
    }
    right(&m);
}

/// The kernel's mapping of a table is read-only in hardware, and its stores, which are the stream's
/// table writes, go on; a user's mapping of a table is refused, and each store through it emulated.
#[test]
fn tables_are_never_mapped_writable() {
    let kernel = 0xffff_8880_0000_0000;
    let mut m = setup("4k", 1).xen_pv("");
    let mut s = mapped(&mut m, 1);
    let (leaf, _) = s.entry(0, 1);
    let table = leaf.align_down(S4K).value();
    s.map_used(kernel, table, S4K);
    let (alias, value) = s.entry(kernel, 1);
    s.write(alias, value.0 & !4);
    s.access_as(kernel, RunFlags::STORE.union(RunFlags::KERNEL));
    let c = m.count(&s.take());
    assert!(!m.scheme.mmu.machine_entry(alias).unwrap().has(WRITE));
    assert_eq!((exits(&c, ExitReason::TableEmulation), exits(&c, ExitReason::FaultBounce)), (0, 0));
    // A user's.
    s.map_used(0x5000, table, S4K);
    (0..3).for_each(|_| s.store(0x5000));
    s.load(0x5000);
    let c = m.count(&s.take());
    assert_eq!(exits(&c, ExitReason::TableEmulation), 3, "each store");
    assert_eq!(c.updates_refused, 1);
    right(&m);
    // The table goes: both mappings are writable again.
    let (pointer, _) = s.entry(0, 2);
    let page = m.scheme.mmu.page(Gpa::new(table));
    assert_eq!((page.table, page.writable_uses), (1, 0));
    s.write(pointer, 0);
    s.invalidate(nestwalk_types::Invalidation::All);
    m.count(&s.take());
    assert!(m.scheme.mmu.machine_entry(alias).unwrap().has(WRITE));
    let page = m.scheme.mmu.page(Gpa::new(table));
    assert_eq!((page.table, page.writable_uses), (0, 1), "the user's was in the table itself");
    right(&m);
}

/// A page that is a table of one level is none of another: the entry is not taken, and nothing
/// panics.
#[test]
fn a_table_has_one_level() {
    let mut m = setup("4k", 1).xen_pv("");
    let mut s = mapped(&mut m, 1);
    let (_, root_entry) = s.entry(0, 4);
    let (slot, _) = s.entry(0, 3);
    // Level 3 points to level 3 where level 2 should be.
    s.write(slot.offset_by(8), root_entry.0);
    let c = m.count(&s.take());
    assert_eq!(c.updates_refused, 1);
    assert!(!m.scheme.mmu.machine_entry(slot.offset_by(8)).unwrap().is_present());
    let found = m.run(&{
        let mut out = GuestBatch::default();
        out.batch.runs.push(run(1 << 30, false));
        out.gpas.push(Gpa::new(0));
        out
    });
    assert!(found.unwrap_err().to_string().contains("do not allow"));
    right(&m);
}

/// A guest without large pages has small tables: a walk ends at level 1, or at the large page if
/// the host's memory is contiguous there. What splits large pages is not counted.
#[test]
fn large_pages_are_small_unless_machine_memory_is_contiguous() {
    for (host, references) in [("4k", 4), ("2m", 3)] {
        let mut m = setup(host, 1).xen_pv("");
        let mut s = Script::new(&LONG4);
        s.map_used(0, DATA, S2M);
        m.count(&s.take());
        s.load(0x3000);
        s.load(0x1f_f000);
        let c = m.count(&s.take());
        assert_eq!((c.faulted_walks, c.exits_total()), (0, 0), "{host}");
        assert_eq!(m.watch(&run(0x3000, false)).unwrap().len(), references);
        right(&m);
        s.unmap(0, S2M);
        s.invlpg(0);
        m.count(&s.take());
        assert_eq!(m.scheme.mmu.split_bytes(), 0);
        right(&m);
    }
}

/// One INVLPG is for the whole of a large page, however many translations hardware has of it.
#[test]
fn an_invalidation_of_a_large_page_is_for_all_of_it() {
    for host in ["4k", "2m"] {
        let mut m = setup(host, 1).xen_pv("");
        let mut s = Script::new(&LONG4);
        for frame in [DATA, DATA + (1 << 21), DATA] {
            s.map_used(0x20_0000, frame, S2M);
            s.invlpg(0x20_0000);
            for page in [0, 1, 300, 511] {
                s.load(0x20_0000 + (page << 12));
            }
        }
        let c = m.count(&s.take());
        assert_eq!(
            (c.walks, exits(&c, ExitReason::TlbFlush)),
            (if host == "4k" { 12 } else { 3 }, 3)
        );
        right(&m);
    }
}

#[test]
fn pages_and_tables_that_the_host_moves_are_found_again() {
    let mut m = setup("4k", 1).xen_pv("");
    let mut s = mapped(&mut m, 3);
    let (leaf, _) = s.entry(0, 1);
    let (upper, _) = s.entry(0, 3);
    for gpa in [Gpa::new(DATA), leaf, upper, s.root] {
        let before = m.platform.host.as_ref().unwrap().look_up(gpa).unwrap().frame;
        // Something else takes the frame that was freed.
        assert!(m.discard(gpa).unwrap());
        let host = m.platform.host.as_ref().unwrap();
        let after = host.look_up(gpa).expect("moved, not lost").frame;
        right_after_move(&m, gpa, before.value(), after.value());
        (0..3).for_each(|i| s.load(i << 12));
        let c = m.count(&s.take());
        assert_eq!((c.faulted_walks, c.walks), (0, 3));
        right(&m);
    }
}

fn right_after_move(m: &Machine<XenPv>, gpa: Gpa, before: u64, after: u64) {
    assert_eq!(
        m.scheme.mmu.audit(),
        Vec::<String>::new(),
        "{gpa:?} from {before:#x} to {after:#x}"
    );
}

struct Case {
    seed: u64,
    vcpus: u8,
    direct_map: bool,
    discards: u64,
}

/// Lives it; the records are counted again after every event.
fn live(case: &Case) -> Counters {
    let seed = case.seed;
    let modes = [&LONG4, &LONG5, &PAE, &LEGACY32];
    let mode = modes[seed as usize % if case.direct_map { 2 } else { 4 }];
    let large = if mode.entry_bytes == 4 { "4m" } else { "2m" };
    let mut r = SplitMix64::new(seed ^ 0xca5e);
    let pages = ["4k", "thp", large][r.below(3) as usize];
    let life = Life {
        seed,
        events: 100,
        vcpus: case.vcpus,
        accesses_percent: 60,
        mode,
        pages,
        pcids: seed.is_multiple_of(2),
    };
    let mut batches = life.live();
    if case.direct_map {
        batches = with_direct_map(&batches, mode, S2M, &mut r);
    }
    let host_pages = ["4k", "thp"][r.below(2) as usize];
    let setup = Setup { guest_mode: mode, ..setup(host_pages, usize::from(case.vcpus)) };
    let batch = ["", "batch=1", "batch=5"][r.below(3) as usize];
    let mut m = setup.xen_pv(batch);
    for step in &batches {
        if case.discards > 0 && r.below(case.discards) == 0 {
            let used = &batches[r.below(batches.len() as u64) as usize].gpas;
            let tables: Vec<Gpa> = m.platform.cpu.world.guest.pages().collect();
            if r.below(2) == 0 && !tables.is_empty() {
                m.discard(tables[r.below(tables.len() as u64) as usize]).unwrap();
            } else if let Some(&gpa) = used.first() {
                m.discard(gpa).unwrap();
            }
        }
        m.run(step).unwrap();
        assert_eq!(m.scheme.mmu.audit(), Vec::<String>::new(), "life {seed}");
    }
    let verdict = m.verdict().unwrap();
    assert_eq!(verdict.told, Vec::<String>::new(), "life {seed}");
    let frames = m.platform.host.as_ref().unwrap();
    let own = frames.tables().len() + m.scheme.mmu.split_bytes() / 4096;
    assert_eq!(frames.counters().table_frames, own, "no frame of a table is lost");
    m.counters().clone()
}

fn lives(vcpus: u8, direct_map: bool, discards: u64) {
    let (mut updates, mut operations) = (0, 0);
    for seed in 0..if direct_map { 4 } else { 12 } {
        let c = live(&Case { seed, vcpus, direct_map, discards });
        assert!(discards > 0 || c.host_faults == 0, "life {seed}");
        updates += exits(&c, ExitReason::MmuUpdate);
        operations += c.hypercall_operations;
    }
    assert!(updates > 300 && operations > updates, "{updates} {operations}");
}

#[test]
fn random_lives_are_right_at_every_step() {
    lives(1, false, 0);
    lives(4, false, 0);
}

#[test]
fn the_kernels_own_mapping_is_right_at_every_step() {
    lives(1, true, 0);
    lives(4, true, 0);
}

#[test]
fn the_host_moves_pages_at_any_step() {
    lives(4, false, 4);
    lives(4, true, 4);
}

/// A PAE root that still runs on an idle vCPU points to a page that is another's root by now, and
/// the host moves the first.
#[test]
fn a_root_may_have_been_a_table_of_an_address_space_that_has_gone() {
    live(&Case { seed: 62, vcpus: 4, direct_map: false, discards: 4 });
}

/// A vCPU sees what another has queued, whichever way it looks.
#[test]
fn updates_of_another_vcpu_are_seen() {
    let mut m = setup("4k", 2).xen_pv("");
    let mut s = mapped(&mut m, 2);
    s.vcpu = VcpuId(1);
    s.load_cr3(s.root, 1, false);
    s.load(0);
    m.count(&s.take());
    s.map_used(0x7000, DATA + 0x7000, S4K);
    assert_eq!(m.scheme.mmu.queued(), 0);
    m.count(&s.take());
    assert_eq!(m.scheme.mmu.queued(), 1, "vCPU 0 is in lazy mode");
    s.load(0x7000);
    let c = m.count(&s.take());
    assert_eq!((exits(&c, ExitReason::MmuUpdate), c.faulted_walks), (1, 0));
    assert_eq!(m.scheme.mmu.queued(), 0);
    right(&m);
}

#[test]
fn the_batch_is_a_number() {
    let parse = |name: &str| nestwalk_sim::MachineSpec::parse(name, nestwalk_mm::PagePolicy::Base);
    assert_eq!(parse("xen-pv").unwrap().name, "xen-pv:4k+4k");
    assert_eq!(parse("xen-pv/batch=32").unwrap().name, "xen-pv:4k+4k");
    assert_eq!(parse("xen-pv/batch=1").unwrap().name, "xen-pv/batch=1:4k+4k");
    for (wrong, said) in [
        ("xen-pv/batch=0", "from 1 to 4096"),
        ("xen-pv/batch=x", "from 1 to 4096"),
        ("xen-pv/fast", "batch=N"),
        ("xen-pv/batch=2/batch=2", "twice"),
        ("sie/preferred", "not modelled"),
        ("sie/x", "pageable"),
    ] {
        let error = parse(wrong).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}
