//! What KVM with shadow tables drops from TLBs when the guest loads CR3 or invalidates, and what the
//! kernel's own mapping costs over shadowed tables. Linux 4.19: `kvm_set_cr3`, `fast_cr3_switch`,
//! `kvm_mmu_load`, `kvm_mmu_invlpg`, `kvm_mmu_invpcid_gva`, `handle_invpcid`, `vmx_flush_tlb`.

use crate::common;

use common::kernel::{DATA, cleared, count, setup};
use common::machines::Probe;
use common::{Script, approve};
use nestwalk_sim::Machine;
use nestwalk_sim::schemes::shadow::Shadow;
use nestwalk_tables::LONG4;
use nestwalk_types::{Gpa, Gva, Invalidation, PageSize};

const S4K: PageSize = PageSize::SIZE_4K;

/// Two address spaces with two pages in the TLBs each; the second is loaded, with PCID 2.
fn two_spaces() -> (Machine<Shadow>, Script, [Gpa; 2]) {
    let mut m = setup("4k").shadow();
    let mut s = Script::new(&LONG4);
    let roots = [s.root, s.add_root()];
    for (i, root) in roots.into_iter().enumerate() {
        s.load_cr3(root, i as u16 + 1, false);
        for page in 1..=2 {
            s.map_used(page << 12, DATA + ((2 * i as u64 + page) << 12), S4K);
        }
    }
    // Both are at hand now, so that what follows flushes nothing.
    for (i, root) in roots.into_iter().enumerate() {
        s.load_cr3(root, i as u16 + 1, true);
        s.load(0x1000);
        s.load(0x2000);
    }
    for (i, root) in roots.into_iter().enumerate() {
        s.load_cr3(root, i as u16 + 1, true);
        s.load(0x1000);
        s.load(0x2000);
    }
    m.count(&s.take());
    (m, s, roots)
}

type Event = Box<dyn Fn(&mut Script, [Gpa; 2])>;

/// A flush that KVM makes for the guest drops the whole VPID, and an address of every PCID; what no root
/// at hand has is left to the load that takes one up.
#[test]
fn flushes_reach_every_pcid() {
    let invalidate = |what| -> Event { Box::new(move |s: &mut Script, _| s.invalidate(what)) };
    let first = Gva::new(0x1000);
    // Event, then misses of the first page and of the second after the other address space is loaded.
    let cases: Vec<(&str, Event, [u64; 2])> = vec![
        ("a load that keeps", Box::new(|s, r| s.load_cr3(r[1], 2, true)), [0, 0]),
        ("a load that flushes", Box::new(|s, r| s.load_cr3(r[1], 2, false)), [1, 1]),
        (
            "a load of another root that keeps",
            Box::new(|s, _| {
                let root = s.add_root();
                s.load_cr3(root, 3, true);
            }),
            [1, 1],
        ),
        ("INVPCID of the current PCID", invalidate(Invalidation::Pcid(2)), [1, 1]),
        ("INVPCID of the other PCID", invalidate(Invalidation::Pcid(1)), [1, 1]),
        ("INVPCID of an unknown PCID", invalidate(Invalidation::Pcid(7)), [0, 0]),
        ("INVPCID of all but global", invalidate(Invalidation::AllButGlobal), [1, 1]),
        ("INVPCID of all", invalidate(Invalidation::All), [1, 1]),
        ("INVLPG", invalidate(Invalidation::Page(first)), [1, 0]),
        ("INVPCID of a page", invalidate(Invalidation::PageInPcid(first, 1)), [1, 0]),
        ("INVPCID of a page elsewhere", invalidate(Invalidation::PageInPcid(first, 7)), [0, 0]),
    ];
    for (name, event, misses) in cases {
        let (mut m, mut s, roots) = two_spaces();
        event(&mut s, roots);
        s.load_cr3(roots[0], 1, true);
        m.count(&s.take());
        for (page, expected) in [(0x1000, misses[0]), (0x2000, misses[1])] {
            s.load(page);
            assert_eq!(count(&mut m, &mut s).l1_tlb_misses, expected, "{name}: {page:#x}");
        }
        approve(&m);
    }
}

/// The kernel's own mapping has a shadow entry as large as the host's page, unless a shadowed table lies
/// in it: there each group of eight pages is a hidden fault. A table that becomes shadowed takes the
/// permission to store from the large entry over it.
#[test]
fn the_kernels_mapping_is_small_over_shadowed_tables() {
    let mut m = setup("2m").shadow();
    let mut s = Script::new(&LONG4);
    s.map_used(0x1000, DATA, S4K);
    s.load(0x1000);
    m.count(&s.take());
    let clear = |m: &mut Machine<Shadow>, s: &mut Script, pages: &[(u64, u64, u64)]| {
        for &(page, faults, ahead) in pages {
            cleared(s, page);
            let c = count(m, s);
            let found = (c.exits_total(), c.shadow_fills, c.shadow_prefetches);
            assert_eq!(found, (faults, faults, ahead), "{page:#x}");
        }
    };
    // The block at 16 MiB holds the guest's tables, another one none.
    let (tables, other) = (16u64 << 20, DATA + 0x20_0000);
    clear(&mut m, &mut s, &[(tables + 0x10_0000, 1, 7), (tables + 0x10_7000, 0, 0)]);
    clear(&mut m, &mut s, &[(tables + 0x10_8000, 1, 7)]);
    clear(&mut m, &mut s, &[(other, 1, 0), (other + 0x1f_f000, 0, 0)]);
    // Two tables appear in that, and are shadowed.
    s.next_table = other + 0x5000;
    s.map_used(0x8000_0000, DATA + 0x40_0000, S4K);
    m.count(&s.take());
    clear(&mut m, &mut s, &[(other + 0x10_0000, 0, 0)]);
    s.load(0x8000_0000);
    m.count(&s.take());
    clear(&mut m, &mut s, &[(other + 0x20_0000, 1, 0), (other + 0x10_0000, 1, 7)]);
    clear(&mut m, &mut s, &[(other + 0x10_1000, 0, 0), (other + 0x18_0000, 1, 7)]);
}
