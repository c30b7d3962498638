//! The index of runs that schemes of contiguity follow from table writes: after any life it equals a
//! recount from the page tables.

use crate::common;

use common::lives::Life;
use common::machines::Setup;
use common::{Script, V0};
use nestwalk_contiguity::{MappedRun, RunSet};
use nestwalk_hw::Profile;
use nestwalk_sim::assist::ranges::{Base, Contiguous, Unit};
use nestwalk_sim::hypervisor::bare_metal::Native;
use nestwalk_sim::hypervisor::nested::Nested;
use nestwalk_sim::schemes::spot::Spot;
use nestwalk_sim::{DynMachine, Machine};
use nestwalk_tables::{Entry, LEGACY32, LONG4, LONG5, Mode, PAE, Permissions, TableMemory};
use nestwalk_types::{Address, Control, Gpa, Invalidation, PageSize};

/// All leaves below a table, as somebody who knows nothing of the index would find them.
fn leaves<A: Address>(
    memory: &TableMemory<A>,
    mode: &Mode,
    (table, level, va): (A, u8, u64),
    permissions: Permissions,
    found: &mut Vec<MappedRun>,
) {
    for index in 0..mode.entries(level) {
        let at = table.offset_by(index * u64::from(mode.entry_bytes));
        let entry = Entry(memory.read(at, mode.entry_bytes).unwrap_or(0));
        let here = permissions.and(entry);
        let va = va + (index << mode.span(level).shift());
        if !entry.is_present() || (mode.address_bits() > 32 && va >> (mode.address_bits() - 1) == 1)
        {
            continue;
        }
        if level == 1 || (mode.may_be_leaf(level) && entry.has(1 << 7)) {
            let size = mode.span(level);
            if here.user {
                let (from, to) = (va >> 12, entry.frame::<A>(size).page_number());
                let tag = u16::from(here.write) | u16::from(here.execute) << 1;
                found.push(MappedRun { from, to, pages: size.base_pages(), tag });
            }
        } else {
            leaves(memory, mode, (entry.target(), level - 1, va), here, found);
        }
    }
}

fn recount<A: Address>(memory: &TableMemory<A>, mode: &Mode, root: A) -> RunSet {
    let mut found = Vec::new();
    leaves(memory, mode, (root, mode.levels, 0), Permissions::ALL, &mut found);
    found.into_iter().collect()
}

fn compare<B: Base, U: Unit>(machine: &mut Machine<Contiguous<B, U>>) -> (usize, usize) {
    let Machine { platform, scheme, .. } = machine;
    let (mut runs, mut merged) = (0, 0);
    for root in &platform.cpu.world.roots {
        if root.value() == 0 {
            continue;
        }
        let space = scheme.runs.guest.space(*root).expect("a loaded root is followed");
        let naive = recount(&platform.cpu.world.guest, platform.cpu.world.mode, *root);
        let followed = scheme.runs.guest.runs(space).unwrap();
        assert_eq!(*followed, naive);
        runs += naive.len();
        merged += naive.pages() as usize - naive.len();
    }
    (runs, merged)
}

fn setup(mode: &'static Mode, host_pages: &'static str, vcpus: usize) -> Setup {
    let profile = Profile::load("zen2").unwrap();
    Setup { guest_mode: mode, host_pages, vcpus, verify: false, ..Setup::new(profile) }
}

fn nested(setup: &Setup) -> Machine<Contiguous<Nested, Spot>> {
    let mut build = setup.build("spot", true);
    let unit = Spot::new(&build).unwrap();
    Machine::new(Contiguous::nested(&mut build, unit).unwrap(), build).unwrap()
}

fn native(setup: &Setup) -> Machine<Contiguous<Native, Spot>> {
    let build = setup.build("native-spot", false);
    let unit = Spot::new(&build).unwrap();
    Machine::new(Contiguous::native(&build, unit), build).unwrap()
}

#[test]
fn after_random_lives_it_equals_a_recount_from_both_tables() {
    let (mut seen, mut merged, mut behind) = (0, 0, 0);
    for (i, (mode, pages)) in [
        (&LONG4, "4k"),
        (&LONG4, "thp"),
        (&LONG4, "2m"),
        (&LONG5, "thp"),
        (&PAE, "4k"),
        (&PAE, "2m"),
        (&LEGACY32, "4k"),
        (&LEGACY32, "4m"),
    ]
    .into_iter()
    .enumerate()
    {
        for seed in 0..3 {
            let life = Life {
                seed: 100 * i as u64 + seed,
                events: 120,
                vcpus: 2,
                accesses_percent: 50,
                mode,
                pages,
                pcids: seed == 1,
            };
            let setup = setup(mode, ["4k", "thp"][seed as usize % 2], 2);
            let mut machine = nested(&setup);
            let mut bare = native(&setup);
            for (n, events) in life.live().iter().enumerate() {
                machine.run(events).unwrap();
                bare.run(events).unwrap();
                if n % 10 == 9 {
                    let found = compare(&mut machine);
                    assert_eq!(found, compare(&mut bare));
                    (seen, merged) = (seen + found.0, merged + found.1);
                }
            }
            let tables = machine.scheme.base.mmu.tables();
            let (memory, mode, root) = (tables.memory, tables.mode, tables.root);
            // The host's tables have no bits for users; all of them count, and its runs have no tag.
            let naive: RunSet = {
                let mut found = Vec::new();
                leaves(memory, mode, (root, mode.levels, 0), Permissions::ALL, &mut found);
                found.into_iter().map(|r| MappedRun { tag: 0, ..r }).collect()
            };
            let host = machine.scheme.runs.host.as_ref().unwrap();
            assert_eq!(*host, naive);
            behind += host.len();
        }
    }
    assert!(seen > 2000 && merged > 5000 && behind > 100, "{seen} {merged} {behind}");
}

#[test]
fn host_pages_that_are_taken_back_leave_the_runs() {
    let setup = setup(&LONG4, "4k", 1);
    let mut machine = nested(&setup);
    let life = Life {
        seed: 5,
        events: 200,
        vcpus: 1,
        accesses_percent: 60,
        mode: &LONG4,
        pages: "4k",
        pcids: false,
    };
    life.live().iter().for_each(|events| machine.run(events).unwrap());
    let pages: Vec<u64> =
        machine.scheme.runs.host.as_ref().unwrap().iter().map(|r| r.from + r.pages / 2).collect();
    for page in &pages {
        assert!(machine.discard(Gpa::new(page << 12)).unwrap());
        assert_eq!(machine.scheme.runs.host.as_ref().unwrap().find(*page), None);
    }
    let host = machine.scheme.runs.host.as_ref().unwrap();
    let tables = machine.scheme.base.mmu.tables();
    let mut found = Vec::new();
    leaves(tables.memory, tables.mode, (tables.root, 4, 0), Permissions::ALL, &mut found);
    let naive: RunSet = found.into_iter().map(|r| MappedRun { tag: 0, ..r }).collect();
    assert_eq!(*host, naive);
}

#[test]
fn tables_in_two_places_reused_tables_and_loops() {
    let setup = setup(&LONG4, "4k", 1);
    let mut machine = nested(&setup);
    let mut script = Script::new(&LONG4);
    for i in 0..64 {
        script.map_used(0x4000_0000 + (i << 12), 0x800_0000 + (i << 12), PageSize::SIZE_4K);
    }
    script.load(0x4000_0000);
    // Page-table isolation: another root with the same table below.
    let (kernel, second) = (script.root, script.add_root());
    let (at, entry) = script.entry(0x4000_0000, 4);
    script.write(Gpa::new(second.value() + (at.value() & 0xfff)), entry.0);
    script.load_cr3(second, 2, false);
    script.load(0x4000_1000);
    machine.run(&script.take()).unwrap();
    compare(&mut machine);
    let runs = |m: &Machine<Contiguous<Nested, Spot>>, root| {
        let guest = &m.scheme.runs.guest;
        guest
            .space(root)
            .map(|s| guest.runs(s).unwrap().iter().map(|r| (r.from, r.pages)).collect::<Vec<_>>())
    };
    for root in [kernel, second] {
        assert_eq!(runs(&machine, root).unwrap(), [(0x40000, 64)]);
    }
    // A store to the shared leaf table shows in both, and a mapping that comes back joins its run.
    let (leaf, entry) = script.entry(0x4000_a000, 1);
    script.write(leaf, 0);
    machine.run(&script.take()).unwrap();
    for root in [kernel, second] {
        assert_eq!(runs(&machine, root).unwrap(), [(0x40000, 10), (0x4000b, 53)]);
    }
    script.write(leaf, entry.0 & !2);
    machine.run(&script.take()).unwrap();
    assert_eq!(runs(&machine, kernel).unwrap(), [(0x40000, 10), (0x4000a, 1), (0x4000b, 53)]);
    script.write(leaf, entry.0);
    machine.run(&script.take()).unwrap();
    assert_eq!(runs(&machine, second).unwrap(), [(0x40000, 64)]);
    // The first root is reused as data.
    script.say(Control::TableRetired { vcpu: V0, gpa: kernel });
    // A loop: the leaf table's page is also a table above itself.
    let (middle, _) = script.entry(0x8000_0000 - (1 << 30), 3);
    script.write(Gpa::new(middle.value() & !0xfff | 0x20), middle.value() & !0xfff | 7);
    script.invalidate(Invalidation::All);
    machine.run(&script.take()).unwrap();
    assert_eq!(runs(&machine, kernel), None);
    compare(&mut machine);
    script.write(Gpa::new(middle.value() & !0xfff | 0x20), 0);
    machine.run(&script.take()).unwrap();
    assert_eq!(runs(&machine, second).unwrap(), [(0x40000, 64)]);
}
