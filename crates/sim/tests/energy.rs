//! The energy model against sums made by hand: every event has a price of its own, so that a sum says
//! which events are in it, and how often.

#![allow(clippy::float_cmp, reason = "prices are such that the sums are exact")]

use crate::common;

use common::machines::{Probe, Setup, array, roomy_walk_cache, with_roomy_tlbs};
use common::{Script, bare_profile};
use nestwalk_hw::{Profile, ServedBy};
use nestwalk_sim::{Counters, Cycles, Dimension, Energy, EnergyResult};
use nestwalk_tables::LONG4;
use nestwalk_types::{GuestBatch, PageSize, Run, RunFlags};

const PAGES: u64 = 3;
const ACCESSES: u64 = 5;

/// References cost the same wherever they are served: what is in the caches does not matter.
fn priced(mut profile: Profile) -> Profile {
    let e = &mut profile.energy;
    for (number, pj) in [
        (&mut e.l1d_tlb_pj, 1e3),
        (&mut e.l1i_tlb_pj, 1e5),
        (&mut e.l1_tlb_fill_pj, 1e7),
        (&mut e.l2_tlb_pj, 1e3),
        (&mut e.l2_tlb_fill_pj, 1e5),
        (&mut e.walk_cache_pj, 1e3),
        (&mut e.nested_walk_cache_pj, 1e5),
        (&mut e.nested_tlb_pj, 1e3),
        (&mut e.run_buffer_pj, 1e9),
        (&mut e.segment_check_pj, 1e3),
        (&mut e.escape_filter_pj, 2e3),
        (&mut e.l1_pj, 1e3),
        (&mut e.l2_pj, 0.0),
        (&mut e.llc_pj, 0.0),
        (&mut e.memory_pj, 0.0),
        (&mut e.core_w, 10.0),
        (&mut e.static_share, 0.25),
        (&mut e.translation_static_w, 0.5),
    ] {
        number.value = pj;
    }
    profile
}

/// Three data pages, each used twice, five accesses to one line at a time; then a fetch page.
fn stream() -> (GuestBatch, GuestBatch) {
    let mut s = Script::new(&LONG4);
    for page in 0..=PAGES {
        s.map_used(page << 12, 0x4000_0000 + (page << 12), PageSize::SIZE_4K);
    }
    let tables = s.take();
    for page in (0..PAGES).chain(0..PAGES) {
        s.load(page << 12);
    }
    s.access_as(PAGES << 12, RunFlags::FETCH);
    let mut events = s.take();
    for run in &mut events.batch.runs {
        *run = Run { count: ACCESSES as u16, instructions: 7, ..*run };
    }
    (tables, events)
}

fn energy_of(mut machine: impl Probe, profile: &Profile) -> (Counters, Energy) {
    let (tables, events) = stream();
    machine.run(&tables).unwrap();
    // Once, so that the VMM has mapped everything, then from cold.
    machine.run(&events).unwrap();
    machine.forget();
    let c = machine.count(&events);
    let e = Energy::of(&c, &Cycles::of(&c, profile), profile);
    (c, e)
}

#[test]
fn a_stream_costs_what_its_events_do() {
    let profile = priced(with_roomy_tlbs(bare_profile()));
    let setup = Setup::new(profile.clone());
    let (_, native) = energy_of(setup.native(), &profile);
    let (_, nested) = energy_of(setup.nested(), &profile);
    let walks = (PAGES + 1) as f64;
    let data = (2 * PAGES * ACCESSES) as f64;
    for e in [native, nested] {
        // 30 data look-ups, 5 of fetches, 4 fills.
        assert_eq!(e.l1_tlb, data + 1e2 * ACCESSES as f64 + 1e4 * walks);
        assert_eq!(e.l2_tlb, walks + 1e2 * walks);
        // Every access to a line, not only the first of a run.
        assert_eq!(e.data, data + ACCESSES as f64);
        // The profile has neither.
        assert_eq!((e.walk_caches, e.nested_tlb), (0.0, 0.0));
        assert_eq!((e.segment_checks, e.escape_filter, e.vmm), (0.0, 0.0, 0.0));
    }
    assert_eq!(native.walk_references, 4.0 * walks);
    assert_eq!(nested.walk_references, 24.0 * walks);
}

#[test]
fn caches_of_walks_are_priced_by_look_ups() {
    let mut profile = priced(with_roomy_tlbs(bare_profile()));
    profile.walk_cache = roomy_walk_cache();
    profile.nested_walk_cache = roomy_walk_cache();
    profile.nested_tlb = Some(array(64, 64));
    let setup = Setup::new(profile.clone());
    let (c, native) = energy_of(setup.native(), &profile);
    assert_eq!((c.walk_cache_lookups, c.walk_cache_hits), (PAGES + 1, PAGES));
    assert_eq!(native.walk_caches, (PAGES + 1) as f64);
    assert_eq!(native.nested_tlb, 0.0);
    // The first walk goes through four guest tables and the page, the others through the last table:
    // each asks for a page, of which the nested TLB knows none yet.
    let (c, nested) = energy_of(setup.nested(), &profile);
    let asked = 5 + PAGES;
    assert_eq!((c.nested_tlb_hits, c.nested_walks), (0, asked));
    assert_eq!(nested.nested_tlb, asked as f64);
    assert_eq!(nested.walk_caches, (PAGES + 1) as f64 + 1e2 * asked as f64);
}

#[test]
fn a_reference_pays_for_all_that_it_passed() {
    let mut profile = priced(bare_profile());
    let e = &mut profile.energy;
    (e.l1_pj.value, e.l2_pj.value) = (1e3, 1e5);
    (e.llc_pj.value, e.memory_pj.value) = (1e7, 1e9);
    for (place, nj) in ServedBy::ALL.into_iter().zip([1.0, 101.0, 10_101.0, 1_010_101.0]) {
        let mut c = Counters::default();
        c.references.0[Dimension::Guest as usize][place as usize] = 1;
        c.references.0[Dimension::Nested as usize][place as usize] = 2;
        c.faulted_references.0[Dimension::Shadow as usize][place as usize] = 4;
        (c.accesses, c.fetches) = (11, 3);
        c.data[place as usize] = 8;
        c.fetch[place as usize] = 3;
        let e = Energy::of(&c, &Cycles::default(), &profile);
        assert_eq!((e.walk_references, e.data), (7.0 * nj, 11.0 * nj), "{place:?}");
        assert_eq!(e.total(), e.walk_references + e.data);
    }
}

#[test]
fn time_costs_static_power_and_work_dynamic_power() {
    let mut profile = priced(bare_profile());
    profile.core.frequency_mhz.value = 2000.0;
    profile.core.base_cpi.value = 0.5;
    let cycles = Cycles {
        program: 1000.0,
        guest_os: 400.0,
        translation: 2000.0,
        vmm: 600.0,
        ..Cycles::default()
    };
    let c = Counters {
        instructions: 800,
        guest_segment_checks: 2,
        vmm_segment_checks: 5,
        ..Counters::default()
    };
    let e = Energy::of(&c, &cycles, &profile);
    // 4000 cycles are 2 us, at 2.5 W.
    assert_eq!((e.static_power, e.translation_static), (5000.0, 1000.0));
    // 400 cycles of instructions and as many of the guest's kernel, 600 of the VMM's, at 7.5 W.
    assert_eq!((e.core, e.vmm), (3000.0, 2250.0));
    assert_eq!((e.segment_checks, e.escape_filter), (7.0, 14.0));
    assert_eq!(e.translation(), 21.0);
    assert_eq!(e.dynamic(), 21.0 + 3000.0 + 2250.0);
    assert_eq!(e.total(), e.dynamic() + 5000.0);
}

#[test]
fn what_is_above_the_ideal_machine_is_split_in_dynamic_and_static() {
    let profile = priced(bare_profile());
    let ideal = Counters { instructions: 1000, ..Counters::default() };
    let own = Counters { walk_cycles: 4000, l1d_tlb_lookups: 3000, ..ideal.clone() };
    let same = EnergyResult::new(&ideal, &profile, Some(&ideal));
    assert_eq!((same.overhead_percent, same.translation), (0.0, 0.0));
    assert_eq!(same.total, same.ideal_total);
    let e = EnergyResult::new(&own, &profile, Some(&ideal));
    assert!(e.dynamic_overhead_percent > 0.0 && e.static_overhead_percent > 0.0);
    let sum = e.dynamic_overhead_percent + e.static_overhead_percent;
    assert!((e.overhead_percent - sum).abs() < 1e-9);
    assert_eq!(e.translation_pj_per_instruction, 3000.0);
    // Nothing to compare with is no overhead.
    assert_eq!(EnergyResult::new(&own, &profile, None).overhead_percent, 0.0);
}
