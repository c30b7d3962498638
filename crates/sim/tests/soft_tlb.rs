//! A TLB that software fills, under a hypervisor: traps of hand-written kernels, and random lives.

use crate::common;

use common::lives::Life;
use common::machines::{Probe, Setup, exits_by_name, plain};
use common::{Script, approve};
use nestwalk_hw::Profile;
use nestwalk_sim::schemes::soft_tlb::SoftTlb;
use nestwalk_sim::{Counters, Dimension, DynMachine, Machine};
use nestwalk_tables::{LEGACY32, LONG4, LONG5, PAE};
use nestwalk_types::{PageSize, SplitMix64};

const S4K: PageSize = PageSize::SIZE_4K;
const DATA: u64 = 0x4000_0000;

fn setup(host_pages: &'static str, vcpus: usize) -> Setup {
    // With PCIDs.
    let profile = plain(Profile::load("zen2").unwrap());
    Setup { host_pages, vcpus, ..Setup::new(profile) }
}

/// References of completed walks: to the guest's tables, and to the hypervisor's.
fn references(c: &Counters) -> [u64; 2] {
    [Dimension::Guest, Dimension::Nested].map(|d| c.references.0[d as usize].iter().sum())
}

/// `pages` pages from address 0 on are mapped, and none was used.
fn mapped(m: &mut Machine<SoftTlb>, pages: u64) -> Script {
    let mut s = Script::new(&LONG4);
    for i in 0..pages {
        s.map_used(i << 12, DATA + (i << 12), S4K);
    }
    m.count(&s.take());
    // The host has pages for all of it.
    for i in 0..pages {
        s.load(i << 12);
    }
    m.count(&s.take());
    m.forget();
    m.scheme.forget_copies();
    s
}

#[test]
fn a_miss_is_handed_on_and_its_handlers_loads_miss_too() {
    let mut m = setup("4k", 1).soft_tlb("");
    let mut s = mapped(&mut m, 2);
    s.load(0);
    let c = m.count(&s.take());
    // Four tables, each on a page of its own.
    assert_eq!(exits_by_name(&c), [("tlb_refill", 1), ("tlb_segment", 4), ("tlb_instruction", 1)]);
    assert_eq!((c.walks, references(&c)), (1, [4, 5]));
    // The second page's entry is in the same tables, which the TLB has by now.
    s.load(1 << 12);
    let c = m.count(&s.take());
    assert_eq!(exits_by_name(&c), [("tlb_refill", 1), ("tlb_instruction", 1)]);
    assert_eq!((c.walks, references(&c)), (1, [4, 1]));
    s.load(0);
    s.load(1 << 12);
    assert_eq!(exits_by_name(&m.count(&s.take())), []);
    approve(&m);
}

#[test]
fn a_large_page_of_the_host_is_one_entry_for_all_tables() {
    let mut m = setup("2m", 1).soft_tlb("registers=trapped");
    let mut s = mapped(&mut m, 1);
    s.load(0);
    let c = m.count(&s.take());
    assert_eq!(exits_by_name(&c), [("tlb_refill", 1), ("tlb_segment", 1), ("tlb_instruction", 4)]);
    assert_eq!(references(&c), [4, 2]);
}

#[test]
fn the_copy_answers_what_the_tlb_has_lost() {
    for (variant, again) in [
        ("", &[("tlb_copy", 1)][..]),
        ("copy=no", &[("tlb_refill", 1), ("tlb_segment", 4), ("tlb_instruction", 1)][..]),
    ] {
        let mut m = setup("4k", 1).soft_tlb(variant);
        let mut s = mapped(&mut m, 1);
        s.load(0);
        m.count(&s.take());
        m.forget();
        s.load(0);
        let c = m.count(&s.take());
        assert_eq!(exits_by_name(&c), again, "{variant}");
        assert_eq!(references(&c), if variant.is_empty() { [0, 0] } else { [4, 5] });
        approve(&m);
    }
}

#[test]
fn an_invalidation_is_two_instructions_and_empties_the_copy() {
    let mut m = setup("4k", 1).soft_tlb("");
    let mut s = mapped(&mut m, 1);
    s.load(0);
    m.count(&s.take());
    s.invlpg(0);
    assert_eq!(exits_by_name(&m.count(&s.take())), [("tlb_instruction", 2)]);
    s.load(0);
    let c = m.count(&s.take());
    assert_eq!(exits_by_name(&c), [("tlb_refill", 1), ("tlb_instruction", 1)]);
    approve(&m);
}

/// The first store to a page that is clean needs the handler, which sets the dirty flag.
#[test]
fn a_clean_entry_of_the_copy_serves_no_store() {
    let mut m = setup("4k", 1).soft_tlb("");
    let mut s = Script::new(&LONG4);
    let all = nestwalk_types::Protection { write: true, execute: true };
    s.map(0, DATA, S4K, all, nestwalk_tables::entry::USER);
    s.load(0);
    m.count(&s.take());
    s.store(0);
    let c = m.count(&s.take());
    assert_eq!(exits_by_name(&c), [("tlb_refill", 1), ("tlb_instruction", 1)]);
    m.forget();
    s.store(0);
    assert_eq!(exits_by_name(&m.count(&s.take())), [("tlb_copy", 1)]);
    approve(&m);
}

/// Two address spaces in turn: with identifiers both stay, without every load of a root empties the TLB.
#[test]
fn identifiers_keep_what_another_address_space_leaves() {
    for (variant, switches, refills) in [("", 4, 0), ("ids=no", 8, 4)] {
        let mut m = setup("4k", 1).soft_tlb(variant);
        let mut s = mapped(&mut m, 1);
        let first = s.root;
        let second = s.add_root();
        s.load_cr3(second, 2, false);
        s.map_used(0, DATA + 0x1000, S4K);
        s.load(0);
        s.load_cr3(first, 0, true);
        s.load(0);
        m.count(&s.take());
        for root in [second, first, second, first] {
            s.load_cr3(root, if root == second { 2 } else { 0 }, true);
            s.load(0);
        }
        let c = m.count(&s.take());
        let count = |name| exits_by_name(&c).iter().find(|e| e.0 == name).map_or(0, |e| e.1);
        assert_eq!(count("tlb_refill"), refills, "{variant}");
        assert_eq!(count("tlb_instruction"), switches + refills, "{variant}");
        assert_eq!(count("tlb_copy"), 0, "{variant}");
        approve(&m);
    }
}

#[test]
fn what_is_set_is_named() {
    let parse = |name: &str| nestwalk_sim::MachineSpec::parse(name, nestwalk_mm::PagePolicy::Base);
    assert_eq!(parse("soft-tlb").unwrap().name, "soft-tlb:4k+4k");
    assert_eq!(parse("soft-tlb/copy=no/ids=yes").unwrap().name, "soft-tlb/copy=no:4k+4k");
    for (name, words) in [
        ("soft-tlb/ids=maybe", "there are: yes, no"),
        ("soft-tlb/registers=some", "patched, trapped"),
        ("soft-tlb/asid=8", "ids=yes|no"),
    ] {
        let message = parse(name).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
}

/// Whatever is kept, and whatever the host takes back: the referee finds nothing.
#[test]
fn random_lives_are_right() {
    let modes = [&LONG4, &LONG5, &PAE, &LEGACY32];
    let variants = ["", "copy=no", "ids=no", "registers=trapped/ids=no/copy=no"];
    for seed in 0..16 {
        let mut r = SplitMix64::new(seed ^ 0x50f7);
        let mode = modes[r.below(4) as usize];
        let large = if mode.entry_bytes == 4 { "4m" } else { "2m" };
        let life = Life {
            seed,
            events: 120,
            vcpus: [1, 4][seed as usize & 1],
            accesses_percent: 60,
            mode,
            pages: ["4k", "thp", large][r.below(3) as usize],
            pcids: r.below(2) == 0,
        };
        let batches = life.live();
        let host_pages = ["4k", "thp"][r.below(2) as usize];
        let vcpus = usize::from(life.vcpus);
        let setup = Setup { guest_mode: mode, ..setup(host_pages, vcpus) };
        let variant = variants[seed as usize % 4];
        let mut m = setup.soft_tlb(variant);
        for step in &batches {
            let used = &batches[r.below(batches.len() as u64) as usize].gpas;
            if let Some(&gpa) = used.first().filter(|_| r.below(4) == 0) {
                m.discard(gpa).unwrap();
            }
            m.run(step).unwrap();
        }
        let verdict = m.verdict().unwrap();
        assert_eq!(verdict.told, Vec::<String>::new(), "life {seed}, {variant}");
        assert!(m.counters().walks > 0, "life {seed}");
    }
}
