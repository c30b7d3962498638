//! SpOT, RMM and anchors by their published rules, on tables written by hand: what is predicted, served
//! and filled, what it costs, and what an invalidation takes.

use crate::common;

use common::machines::{Setup, tlb, with_tiny_tlbs};
use common::{Script, approve, bare_profile};
use nestwalk_mm::{Tiers, pc_memory_map};
use nestwalk_sim::schemes::by_name;
use nestwalk_sim::{Counters, Cycles, Dimension, DynMachine};
use nestwalk_tables::{LONG4, PAE};
use nestwalk_types::{Control, Gpa, GuestBatch, Gva, Invalidation, PageSize, Protection};

const BASE: u64 = 0x4000_0000;
const FRAME: u64 = 0x1000_0000;

/// Maps pages from number `first` on one after the other, used and writable.
fn map(script: &mut Script, first: u64, pages: u64, frame: u64) {
    for i in 0..pages {
        script.map_used(BASE + ((first + i) << 12), frame + (i << 12), PageSize::SIZE_4K);
    }
}

/// The events so far, all accesses by the instruction at `pc`.
fn by(script: &mut Script, pc: u64) -> GuestBatch {
    let mut events = script.take();
    events.batch.runs.iter_mut().for_each(|run| run.pc = Gva::new(pc));
    events
}

fn loads(script: &mut Script, pages: &[u64]) {
    pages.iter().for_each(|page| script.load(BASE + (page << 12)));
}

/// A machine of one-entry TLBs, watched, whose host has pages of 2 MiB: so its runs are as long as the
/// guest's from the first access on.
fn machine(name: &str, variant: &str) -> Box<dyn DynMachine> {
    machine_on("2m", name, variant)
}

fn machine_on(host_pages: &'static str, name: &str, variant: &str) -> Box<dyn DynMachine> {
    let setup = Setup { host_pages, ..Setup::new(with_tiny_tlbs(bare_profile())) };
    let definition = by_name(name).unwrap();
    let mut build = setup.build(name, definition.virtualized);
    build.variant = definition.options.normalize(variant).unwrap();
    (definition.build)(build).unwrap()
}

/// What events add to the counters.
fn added(machine: &mut Box<dyn DynMachine>, events: &GuestBatch) -> Counters {
    let before = machine.counters().clone();
    machine.run(events).unwrap();
    approve(&**machine);
    machine.counters().since(&before)
}

#[test]
fn the_third_walk_of_an_instruction_is_hidden_and_no_other_earlier() {
    for name in ["native-spot", "spot"] {
        let mut m = machine_on("4k", name, "");
        let mut script = Script::new(&LONG4);
        map(&mut script, 0, 64, FRAME);
        // The host has all of it in one run by then, but for the first page: tables came between.
        loads(&mut script, &(0..64).collect::<Vec<_>>());
        let c = added(&mut m, &by(&mut script, 0));
        assert_eq!((c.predictions, c.prediction_fills), (0, 0), "an unknown instruction");
        loads(&mut script, &[3]);
        let c = added(&mut m, &by(&mut script, 0x401000));
        assert_eq!((c.predictions, c.prediction_fills, c.walks), (0, 1, 1), "{name}");
        loads(&mut script, &[40]);
        let c = added(&mut m, &by(&mut script, 0x401000));
        assert_eq!((c.predictions, c.prediction_fills, c.walks), (0, 0, 1));
        assert_eq!(c.hidden_walk_cycles, 0);
        loads(&mut script, &[17]);
        let c = added(&mut m, &by(&mut script, 0x401000));
        assert_eq!((c.predictions, c.predictions_right, c.walks), (1, 1, 1));
        assert_eq!((c.hidden_walk_cycles, c.walk_cycles > 0), (c.walk_cycles, true));
        let references = c.references.total();
        assert_eq!(references, if name == "spot" { 24 } else { 4 }, "the walk happens");
        let profile = bare_profile();
        let lookups = profile.core.l2_tlb_hit_cycles.value * c.l1_tlb_misses as f64;
        let delay = Cycles::of(&c, &profile).translation;
        assert!((delay - profile.core.walk_exposed.value * lookups).abs() < 1e-9, "{delay}");
    }
}

#[test]
fn only_runs_of_more_than_32_pages_in_both_dimensions_are_filled() {
    for (pages, fills) in [(32, 0), (33, 1)] {
        let mut m = machine("native-spot", "");
        let mut script = Script::new(&LONG4);
        map(&mut script, 0, pages, FRAME);
        loads(&mut script, &[0]);
        assert_eq!(added(&mut m, &by(&mut script, 0x401000)).prediction_fills, fills);
    }
    // In a VM the host's run grows as its pages are touched.
    let mut m = machine_on("4k", "spot", "");
    let mut script = Script::new(&LONG4);
    map(&mut script, 0, 64, FRAME);
    let fills: Vec<u64> = (0..36)
        .map(|page| {
            loads(&mut script, &[page]);
            added(&mut m, &by(&mut script, 0x401000 + 16 * page)).prediction_fills
        })
        .collect();
    // The nested tables' frames lie between the first page and the others.
    assert_eq!(fills[..33], [0; 33]);
    assert_eq!(fills[33..], [1; 3]);
}

#[test]
fn a_wrong_guess_costs_the_walk_the_penalty_and_a_reference_and_is_not_seen() {
    for (name, variant, penalty) in
        [("native-spot", "", 20), ("spot", "penalty=300", 300), ("spot", "penalty=0", 0)]
    {
        let mut m = machine(name, variant);
        let mut script = Script::new(&LONG4);
        map(&mut script, 0, 64, FRAME);
        map(&mut script, 64, 64, FRAME + (1 << 20));
        loads(&mut script, &(0..128).collect::<Vec<_>>());
        added(&mut m, &by(&mut script, 0));
        loads(&mut script, &[1, 2, 3, 4]);
        let c = added(&mut m, &by(&mut script, 0x401000));
        assert_eq!((c.predictions, c.predictions_right), (2, 2));
        loads(&mut script, &[70]);
        let c = added(&mut m, &by(&mut script, 0x401000));
        assert_eq!((c.predictions_wrong, c.misprediction_cycles), (1, penalty), "{name}");
        assert_eq!((c.hidden_walk_cycles, c.background.iter().sum::<u64>()), (0, 1));
        let profile = bare_profile();
        let translation = Cycles::of(&c, &profile).translation;
        let lookup = profile.core.l2_tlb_hit_cycles.value * c.l1_tlb_misses as f64;
        let walk = profile.core.walk_exposed.value * (c.walk_cycles as f64 + lookup);
        assert!((translation - walk - penalty as f64).abs() < 1e-6, "{translation}");
        // From 3 to 2: it still predicts; from 2 to 1: it does no more.
        loads(&mut script, &[71]);
        assert_eq!(added(&mut m, &by(&mut script, 0x401000)).predictions_wrong, 1);
        loads(&mut script, &[72]);
        assert_eq!(added(&mut m, &by(&mut script, 0x401000)).predictions, 0);
    }
}

#[test]
fn a_fault_of_the_walk_squashes_the_guess() {
    let mut m = machine_on("4k", "spot", "");
    let mut script = Script::new(&LONG4);
    map(&mut script, 0, 128, FRAME);
    loads(&mut script, &(0..64).collect::<Vec<_>>());
    added(&mut m, &by(&mut script, 0));
    loads(&mut script, &[1, 2, 3]);
    added(&mut m, &by(&mut script, 0x401000));
    // The host has no page there yet: a violation, then a second guess, which is right.
    loads(&mut script, &[64]);
    let c = added(&mut m, &by(&mut script, 0x401000));
    assert_eq!((c.predictions, c.predictions_squashed, c.predictions_right), (2, 1, 1));
    assert_eq!((c.walks, c.faulted_walks, c.exits_total()), (1, 1, 1));
}

#[test]
fn a_load_of_cr3_keeps_or_empties_the_prediction_table() {
    for (variant, right) in [("", 1), ("switch=flush", 0)] {
        let mut m = machine("native-spot", variant);
        let mut script = Script::new(&LONG4);
        map(&mut script, 0, 64, FRAME);
        loads(&mut script, &[1, 2, 3]);
        script.load_cr3(script.root, 1, true);
        loads(&mut script, &[5]);
        let c = added(&mut m, &by(&mut script, 0x401000));
        assert_eq!(c.predictions_right, 1 + right);
    }
}

#[test]
fn a_range_serves_all_of_its_pages_after_one_walk() {
    for (name, lines) in [("native-rmm", 1), ("rmm", 5)] {
        let mut m = machine(name, "");
        let mut script = Script::new(&LONG4);
        map(&mut script, 0, 64, FRAME);
        map(&mut script, 64, 7, FRAME + (1 << 24));
        loads(&mut script, &(0..71).collect::<Vec<_>>());
        added(&mut m, &by(&mut script, 0));
        script.invalidate(Invalidation::All);
        loads(&mut script, &[9]);
        let c = added(&mut m, &by(&mut script, 0));
        // One line of one node; in a VM the guest's node and the page are looked for in the VMM's table,
        // whose three ranges lie in two lines.
        let found = (c.walks, c.range_walks, c.range_hits, c.background.iter().sum::<u64>());
        assert_eq!(found, (1, 1, 0, lines), "{name}");
        loads(&mut script, &[0, 63, 9, 31]);
        let c = added(&mut m, &by(&mut script, 0));
        assert_eq!((c.walks, c.range_hits, c.l1_tlb_misses), (0, 4, 4));
        // 7 pages are no range.
        loads(&mut script, &[64, 65, 66]);
        let c = added(&mut m, &by(&mut script, 0));
        assert_eq!((c.walks, c.range_walks, c.range_hits), (3, 0, 0));
        script.invlpg(BASE + (20 << 12));
        loads(&mut script, &[31, 32]);
        let c = added(&mut m, &by(&mut script, 0));
        assert_eq!((c.walks, c.range_walks, c.range_hits), (1, 1, 1), "INVLPG takes the range");
    }
}

#[test]
fn range_tables_take_a_node_and_follow_what_is_mapped() {
    let mut m = machine("native-rmm", "");
    let mut script = Script::new(&LONG4);
    map(&mut script, 0, 64, FRAME);
    let c = added(&mut m, &with_access(&mut script));
    // The first seven pages make no range; the eighth does, and each later one moves its limit.
    assert_eq!(c.contiguity_updates, 57);
    assert_eq!(m.report().contiguity.unwrap().metadata_bytes, 4096);
    // 200 ranges of 8 pages: full leaves were split, which leaves halves behind where numbers ascend.
    for i in 0..200 {
        map(&mut script, 1000 + 16 * i, 8, FRAME + (1 << 24) + (i << 16));
    }
    added(&mut m, &with_access(&mut script));
    assert_eq!(m.report().contiguity.unwrap().metadata_bytes, 4 * 4096);
    assert_eq!(m.report().contiguity.unwrap().guest_runs, 201);
    for page in 0..3200 {
        if page % 16 < 8 {
            script.unmap(BASE + ((1000 + page) << 12), PageSize::SIZE_4K);
        }
    }
    added(&mut m, &with_access(&mut script));
    assert_eq!(m.report().contiguity.unwrap().metadata_bytes, 4096);
}

fn with_access(script: &mut Script) -> GuestBatch {
    script.load(BASE);
    by(script, 0)
}

#[test]
fn a_store_through_a_clean_range_or_anchor_walks_once() {
    for (name, variant) in [("native-rmm", ""), ("rmm", ""), ("anchor", "distance=64")] {
        let mut m = machine(name, variant);
        let mut script = Script::new(&LONG4);
        for i in 0..64 {
            // Accessed, not dirty.
            let (gva, gpa) = (BASE + (i << 12), FRAME + (i << 12));
            script.map(gva, gpa, PageSize::SIZE_4K, Protection::ALL, 0x20);
        }
        loads(&mut script, &(0..64).collect::<Vec<_>>());
        script.invalidate(Invalidation::All);
        loads(&mut script, &[1, 2]);
        let c = added(&mut m, &by(&mut script, 0));
        assert!(c.range_hits + c.anchor_hits > 0);
        script.store(BASE + (3 << 12));
        let c = added(&mut m, &by(&mut script, 0));
        assert_eq!((c.walks, c.range_hits + c.anchor_hits), (1, 0), "{name}");
        script.store(BASE + (4 << 12));
        script.store(BASE + (5 << 12));
        let c = added(&mut m, &by(&mut script, 0));
        assert_eq!((c.walks, c.range_hits + c.anchor_hits), (0, 2), "{name}");
    }
}

#[test]
fn an_anchor_serves_as_far_as_its_contiguity_goes() {
    let mut profile = bare_profile();
    for level in [&mut profile.l1d_tlb, &mut profile.l1i_tlb] {
        *level = vec![tlb(&["4k", "2m", "1g"], 1, 1)];
    }
    for name in ["native-anchor", "anchor"] {
        let setup = Setup::new(profile.clone());
        let definition = by_name(name).unwrap();
        let mut build = setup.build(name, definition.virtualized);
        build.variant = "distance=16".into();
        let mut m = (definition.build)(build).unwrap();
        let mut script = Script::new(&LONG4);
        // From page 12 on: the first block has no anchor in the run, the second is whole, of the third
        // 10 pages belong to it.
        map(&mut script, 12, 30, FRAME);
        map(&mut script, 42, 6, FRAME + (1 << 20));
        let all: Vec<u64> = (12..48).collect();
        loads(&mut script, &all);
        script.invalidate(Invalidation::All);
        added(&mut m, &by(&mut script, 0));
        loads(&mut script, &all);
        let c = added(&mut m, &by(&mut script, 0));
        // Pages 12 to 15 and 42 to 47 walk one by one, each of the two blocks once.
        assert_eq!((c.walks, c.anchor_fills, c.anchor_hits), (4 + 2 + 6, 2, 15 + 9), "{name}");
        assert_eq!(c.anchor_lookups, 36);
        // Both anchors were walked to by their own pages; now from the middle.
        assert_eq!(c.background.iter().sum::<u64>(), 0);
        script.invlpg(BASE + (20 << 12));
        loads(&mut script, &[21, 31, 16, 33, 43]);
        let c = added(&mut m, &by(&mut script, 0));
        assert_eq!((c.walks, c.anchor_fills, c.anchor_hits), (1, 1, 3));
        assert_eq!((c.l2_tlb_hits, c.background.iter().sum::<u64>()), (1, 1));
    }
}

#[test]
fn the_os_chooses_the_distance_by_the_runs_and_flushes() {
    let mut m = machine("native-anchor", "interval=1000");
    let mut script = Script::new(&LONG4);
    map(&mut script, 0, 4096, FRAME);
    for page in 0..1200 {
        script.load(BASE + ((page % 512) << 12));
    }
    let c = added(&mut m, &by(&mut script, 0));
    assert_eq!(c.anchor_changes, 1);
    // One anchor of 4096 pages is enough.
    assert_eq!(m.report().contiguity.unwrap().anchor_distance, 4096);
    // Runs of 16 pages, and nothing else: the distance falls.
    for page in (0..4096).step_by(16) {
        script.unmap(BASE + (page << 12), PageSize::SIZE_4K);
    }
    script.invalidate(Invalidation::All);
    for page in 0..1200 {
        script.load(BASE + (((page % 500 * 16 + 1) % 4096) << 12));
    }
    let c = added(&mut m, &by(&mut script, 0));
    assert_eq!(c.anchor_changes, 1);
    let distance = m.report().contiguity.unwrap().anchor_distance;
    assert!((2..=16).contains(&distance), "{distance}");
}

#[test]
fn what_never_comes_to_use_changes_no_count() {
    let never = [
        ("spot", "contiguous=1000000"),
        ("rmm", "min=1000000"),
        ("native-spot", "contiguous=1000000"),
        ("native-rmm", "min=1000000"),
    ];
    for (name, variant) in never {
        let mut m = machine(name, variant);
        let mut plain = machine(if name.starts_with('n') { "native" } else { "nested" }, "");
        let mut script = Script::new(&LONG4);
        map(&mut script, 0, 300, FRAME);
        loads(&mut script, &(0..300).map(|i| i * 7 % 300).collect::<Vec<_>>());
        script.invlpg(BASE);
        loads(&mut script, &(0..300).map(|i| i * 11 % 300).collect::<Vec<_>>());
        let events = by(&mut script, 0x401000);
        assert_eq!(added(&mut m, &events), added(&mut plain, &events), "{name}");
    }
}

#[test]
fn spot_walks_as_nested_paging_does() {
    let (mut spot, mut nested) = (machine("spot", ""), machine("nested", ""));
    let mut script = Script::new(&LONG4);
    map(&mut script, 0, 100, FRAME);
    map(&mut script, 100, 100, FRAME + (1 << 22));
    loads(&mut script, &(0..600).map(|i| i * 37 % 200).collect::<Vec<_>>());
    let events = by(&mut script, 0x401000);
    let (a, b) = (added(&mut spot, &events), added(&mut nested, &events));
    assert!(a.predictions_right > 50 && a.predictions_wrong > 20, "{a:?}");
    for d in [Dimension::Guest, Dimension::Nested] {
        assert_eq!(a.references.of(d), b.references.of(d));
    }
    assert_eq!((a.walks, a.faulted_walks), (b.walks, b.faulted_walks));
}

#[test]
fn thirty_two_bit_guests_have_ranges_and_anchors_too() {
    for (name, variant) in [("rmm", ""), ("native-anchor", "distance=32"), ("spot", "")] {
        let mut setup = Setup::new(with_tiny_tlbs(bare_profile()));
        setup.guest_mode = &PAE;
        let definition = by_name(name).unwrap();
        let mut build = setup.build(name, definition.virtualized);
        build.variant = variant.into();
        let mut m = (definition.build)(build).unwrap();
        let mut script = Script::new(&PAE);
        map(&mut script, 0, 64, FRAME);
        loads(&mut script, &(0..64).chain(0..64).collect::<Vec<_>>());
        script.say(Control::Invalidate { vcpu: common::V0, what: Invalidation::All });
        loads(&mut script, &(0..64).collect::<Vec<_>>());
        let c = added(&mut m, &by(&mut script, 0x401000));
        assert!(c.range_hits + c.anchor_hits + c.predictions_right > 60, "{name}: {c:?}");
    }
}

/// Pages at the frames of a tier, loaded once each: their lines are fetched while they are walked. In a
/// VM the host has first-fit frames, which no hash says.
#[test]
fn what_lies_at_its_hash_is_there_when_the_walk_ends() {
    let setup = Setup::new(with_tiny_tlbs(bare_profile()));
    let tiers = Tiers::new::<Gpa>(&pc_memory_map(setup.guest_bytes));
    for (name, tier, right) in [
        ("native-revelator", 0, true),
        ("native-revelator", 1, true),
        ("native-revelator", 2, false),
        ("native-revelator/guesses=3", 2, true),
        ("revelator", 0, false),
    ] {
        let (scheme, variant) = name.split_once('/').unwrap_or((name, ""));
        let mut m = machine_on("4k", scheme, variant);
        let mut script = Script::new(&LONG4);
        let (pages, first) = (16, BASE >> 12);
        for page in first..first + pages {
            script.map_used(page << 12, tiers.frame(page, tier) << 12, PageSize::SIZE_4K);
        }
        loads(&mut script, &(0..pages).collect::<Vec<_>>());
        let c = added(&mut m, &script.take());
        let (yes, no) = if right { (pages, 0) } else { (0, pages) };
        assert_eq!((c.predictions_right, c.predictions_wrong), (yes, no), "{name}");
        // The host has no page yet: each is guessed once more after a violation.
        let squashed = if scheme == "revelator" { pages } else { 0 };
        assert_eq!((c.predictions, c.predictions_squashed), (pages + squashed, squashed), "{name}");
        // Nobody but the walk waits: the program finds its line in the first level.
        assert_eq!(c.data[0], yes, "{name}: {:?}", c.data);
        assert_eq!((c.hidden_walk_cycles, c.misprediction_cycles), (0, 0));
        let lines = match scheme {
            "revelator" => 2 * 2 * 2 * pages,
            _ if variant.is_empty() => 2 * pages,
            _ => 3 * pages,
        };
        assert_eq!(c.background.iter().sum::<u64>(), lines, "{name}");
        assert_eq!(c.late_data_cycles > 0, right, "{name}");
    }
}

/// What is left to wait for is the line's latency less the walk's.
#[test]
fn a_line_that_is_later_than_its_walk_is_waited_for() {
    let setup = Setup::new(with_tiny_tlbs(bare_profile()));
    let tiers = Tiers::new::<Gpa>(&pc_memory_map(setup.guest_bytes));
    let mut m = machine_on("4k", "native-revelator", "");
    let mut script = Script::new(&LONG4);
    let first = BASE >> 12;
    for page in first..first + 2 {
        script.map_used(page << 12, tiers.frame(page, 0) << 12, PageSize::SIZE_4K);
    }
    loads(&mut script, &[0]);
    let profile = bare_profile();
    let beyond = profile.caches.memory_cycles.value as u64 - u64::from(profile.caches.l1d.cycles);
    // A cold walk is four references to memory: the line is there long before.
    let cold = added(&mut m, &script.take());
    assert!(cold.walk_cycles > 4 * beyond && cold.late_data_cycles == 0, "{cold:?}");
    // The neighbour's tables are in the first level.
    loads(&mut script, &[1]);
    let warm = added(&mut m, &script.take());
    assert_eq!(warm.late_data_cycles, beyond - warm.walk_cycles);
}
