//! What a machine's tables say of contiguity, against look-ups page by page.

use crate::common;

use common::lives::{BASE, Life};
use common::machines::Setup;
use nestwalk_contiguity::{RunSet, compose};
use nestwalk_hw::Profile;
use nestwalk_sim::DynMachine;
use nestwalk_sim::hardware::world::World;
use nestwalk_sim::machine::coverage::{CoverageResult, guest_runs, host_runs};
use nestwalk_tables::{
    Entry, LEGACY32, LONG4, LONG5, Mode, PAE, TableMemory, each_leaf, entry, look_up,
};
use nestwalk_types::{Address, Gpa, Gva};
use std::collections::BTreeMap;

/// No page of a life lies beyond: 4 MiB-pages and the mappings around accesses included.
const PAGES: std::ops::Range<u64> = 0..(BASE >> 12) + 0x4_0000;

fn pages(runs: &RunSet) -> BTreeMap<u64, u64> {
    runs.iter().flat_map(|r| (0..r.pages).map(move |i| (r.from + i, r.to + i))).collect()
}

fn naive(world: &World, root: Gpa) -> BTreeMap<u64, u64> {
    let found = PAGES.filter_map(|page| {
        let leaf = look_up(&world.guest, world.mode, root, Gva::new(page << 12)).ok()?;
        Some((page, leaf.apply(Gva::new(page << 12)).page_number()))
    });
    found.collect()
}

fn life(seed: u64, mode: &'static Mode, pages: &'static str) -> Life {
    Life { seed, events: 400, vcpus: 2, accesses_percent: 60, mode, pages, pcids: true }
}

#[test]
fn runs_of_both_dimensions_are_what_look_ups_say() {
    let mut processes = 0;
    for (seed, (mode, guest_pages, host_pages)) in [
        (&LONG4, "4k", "4k"),
        (&LONG4, "thp", "2m"),
        (&LONG5, "2m", "4k"),
        (&PAE, "thp", "thp"),
        (&LEGACY32, "4m", "4k"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut setup = Setup::new(Profile::load("cascade-lake-6252").unwrap());
        (setup.guest_mode, setup.host_pages, setup.vcpus) = (mode, host_pages, 2);
        let mut machine = setup.nested();
        for batch in life(seed as u64, mode, guest_pages).live() {
            machine.run(&batch).unwrap();
        }
        let world = &machine.platform.cpu.world;
        let host = machine.platform.host.as_ref().unwrap();
        let hosted = host_runs(host);
        let (mut guest_total, mut both_total) = (0, 0);
        for root in world.known_roots.iter().map(Gpa::new).filter(|r| world.guest.contains(*r)) {
            let runs = guest_runs(world, root);
            let found = naive(world, root);
            assert!(pages(&runs) == found, "{} {guest_pages} {root:?}", mode.name);
            let frame = |gpa: u64| {
                let page = host.look_up(Gpa::new(gpa << 12))?;
                Some(page.frame.offset_by(Gpa::new(gpa << 12).offset_in(page.size)).page_number())
            };
            let both: BTreeMap<u64, u64> =
                found.iter().filter_map(|(p, gpa)| Some((*p, frame(*gpa)?))).collect();
            assert!(pages(&compose(&runs, &hosted)) == both, "{} {host_pages}", mode.name);
            guest_total += found.len() as u64;
            both_total += both.len() as u64;
            processes += u64::from(!found.is_empty());
        }
        let told = machine.coverage().unwrap();
        // Lives have four processes; those that have ended have no memory.
        assert!(told.processes <= 4, "{}", told.processes);
        assert_eq!((told.guest.pages, told.both.unwrap().pages), (guest_total, both_total));
        assert_eq!(told.host.unwrap().pages, hosted.pages());
        assert_eq!(told.guest.entries["4k"][&100], guest_total);
    }
    assert!(processes > 5, "only {processes} processes had memory at the end");
}

#[test]
fn two_roots_of_one_program_are_one() {
    let mut machine = Setup::new(Profile::load("cascade-lake-6252").unwrap()).native();
    let platform = &mut machine.platform;
    platform.cpu.world = World::new(&LONG4, 1);
    let world = &mut platform.cpu.world;
    let (user, kernel, table) = (Gpa::new(0x1000), Gpa::new(0x2000), Gpa::new(0x3000));
    let write = |world: &mut World, at: Gpa, value: u64| {
        world.guest.write(at, 8, value);
    };
    for page in [user, kernel, table, Gpa::new(0x4000), Gpa::new(0x5000)] {
        world.guest.insert(page, None);
    }
    for root in [user, kernel] {
        world.known_roots.insert(root.value());
        // The kernel's root forbids fetches from the program, as page-table isolation does.
        let bits = 0x67 | if root == kernel { entry::NO_EXECUTE } else { 0 };
        write(world, root, table.value() | bits);
    }
    write(world, kernel.offset_by(4088), table.value() | 0x63);
    write(world, table, 0x4067);
    write(world, Gpa::new(0x4000), 0x5067);
    (0..3).for_each(|i| write(world, Gpa::new(0x5000 + 8 * i), 0x9067 + (i << 12)));
    let told = CoverageResult::of(platform);
    assert_eq!((told.processes, told.guest.pages, told.guest.runs), (1, 3, 1));
    assert_eq!((told.host, told.both), (None, None));
    // The second program's top table is another.
    let world = &mut platform.cpu.world;
    write(world, kernel, 0);
    world.guest.insert(Gpa::new(0x6000), None);
    write(world, Gpa::new(0x6000), 0x4067);
    write(world, kernel, 0x6067);
    assert_eq!(CoverageResult::of(platform).processes, 2);
}

#[test]
fn tables_in_circles_come_to_an_end() {
    let mut memory = TableMemory::new();
    let root = Gpa::new(0x1000);
    memory.insert(root, None);
    for i in 0..512 {
        memory.write(root.offset_by(8 * i), 8, Entry::table(root).0);
    }
    let mut leaves = 0;
    each_leaf(&memory, &LONG4, root, &(0..1 << 48), &mut |_, _| leaves += 1);
    assert!(leaves < 1_000_000, "{leaves}");
}
