//! TLB entries of several pages against what was not written for them: conventional TLBs, streams whose
//! walks are known, and a naive coalescer over a page-by-page map.

use crate::common;

use common::lives::Life;
use common::machines::{Probe, Setup, plain, with_roomy_tlbs};
use common::{Script, approve, bare_profile, machine_with};
use nestwalk_hw::{Profile, Shape};
use nestwalk_sim::assist::coalescing::CoalescingTlbs;
use nestwalk_sim::assist::coalescing::machine_of;
use nestwalk_sim::hypervisor::bare_metal::Native;
use nestwalk_sim::hypervisor::nested::Nested;
use nestwalk_sim::scheme::MachineConfig;
use nestwalk_sim::scheme::Platform;
use nestwalk_sim::schemes::by_name;
use nestwalk_sim::{Counters, Cycles, DynMachine, Energy, Machine};
use nestwalk_tables::{LEGACY32, LONG4, Mode, look_up};
use nestwalk_types::{Address, Gpa, Gva, PageSize, Protection, SplitMix64};
use std::collections::BTreeSet;

const SA: Shape = Shape {
    shift: 2,
    buffer: 0,
    longest: 1024,
    second_level: true,
    cluster_ways: 0,
    cluster_least: 0,
};
const FA: Shape = Shape { shift: 0, buffer: 64, ..SA };
const ALL: Shape = Shape { buffer: 64, ..SA };
const CLUSTERED: Shape =
    Shape { shift: 0, cluster_ways: 32, cluster_least: 2, second_level: false, ..SA };

const KINDS: [(&str, &str); 9] = [
    ("colt", ""),
    ("colt", "sa"),
    ("colt", "sa/shift=3"),
    ("colt", "fa/buffer=2/longest=8"),
    ("colt", "fa/second-level=no"),
    ("colt", "all/buffer=1"),
    ("clustered", ""),
    ("clustered", "ways=3/least=1"),
    ("clustered", "least=8/walked=cluster"),
];

fn native(setup: &Setup, shape: Shape) -> Machine<Native, CoalescingTlbs> {
    machine_of(Native::default(), setup.build("native-colt", false), shape).unwrap()
}

fn nested(setup: &Setup, shape: Shape) -> Machine<Nested, CoalescingTlbs> {
    let mut build = setup.build("colt", true);
    machine_of(Nested::new(&mut build).unwrap(), build, shape).unwrap()
}

/// Small TLBs: everything is evicted and comes back.
fn small() -> Profile {
    let mut profile = Profile::load("cascade-lake-6252").unwrap();
    for level in [&mut profile.l1d_tlb, &mut profile.l1i_tlb, &mut profile.l2_tlb] {
        for array in level {
            (array.entries, array.ways) = (8, 4);
        }
    }
    profile.l2_tlb[0].entries = 32;
    profile
}

fn life(seed: u64, vcpus: u8, mode: &'static Mode, pages: &'static str) -> Life {
    Life {
        seed,
        events: 140,
        vcpus,
        accesses_percent: 60,
        mode,
        pages,
        pcids: seed.is_multiple_of(2),
    }
}

fn kind(name: &str, variant: &str, setup: &Setup) -> Box<dyn DynMachine> {
    let definition = by_name(name).unwrap();
    let build = setup.build(name, definition.virtualized);
    (definition.build)(MachineConfig {
        variant: definition.options.normalize(variant).unwrap(),
        ..build
    })
    .unwrap()
}

/// With groups of one page and no buffer nothing coalesces: every counter is the conventional TLB's.
#[test]
fn groups_of_one_page_count_as_conventional_tlbs() {
    let mut hits = 0;
    for seed in 1..=8u64 {
        let (mode, pages) =
            [(&LONG4, "4k"), (&LONG4, "thp"), (&LONG4, "2m"), (&LEGACY32, "4m")][seed as usize % 4];
        let host_pages = ["4k", "thp"][seed as usize / 4 % 2];
        let zen2 = || plain(Profile::load("zen2").unwrap());
        let profile = if seed.is_multiple_of(3) { zen2() } else { small() };
        let setup = Setup { guest_mode: mode, host_pages, vcpus: 3, ..Setup::new(profile) };
        for (coalescing, usual) in [("native-colt", "native"), ("colt", "nested")] {
            let mut one = kind(coalescing, "sa/shift=0", &setup);
            let mut other = kind(usual, "", &setup);
            for events in life(seed, 3, mode, pages).live() {
                one.run(&events).unwrap();
                other.run(&events).unwrap();
                assert_eq!(one.counters(), other.counters(), "{coalescing}, life {seed}");
            }
            hits += one.counters().l2_tlb_hits;
        }
    }
    assert!(hits > 100, "{hits}");
}

/// The referee watches every kind, with one vCPU and with four, on all page sizes, and while the host
/// takes memory back.
#[test]
fn the_referee_approves_of_every_kind() {
    for (vcpus, seed) in [(1, 21u64), (4, 22), (4, 23), (1, 24), (4, 25), (4, 26)] {
        let (guest, host) =
            [("4k", "4k"), ("4k", "thp"), ("thp", "4k"), ("2m", "4k")][seed as usize % 4];
        let profile = if seed.is_multiple_of(2) { small() } else { Profile::load("zen2").unwrap() };
        let setup = Setup { host_pages: host, vcpus: usize::from(vcpus), ..Setup::new(profile) };
        let events = life(seed, vcpus, &LONG4, guest).live();
        for (name, variant) in KINDS {
            for name in [name.to_owned(), format!("native-{name}")] {
                let mut machine = kind(&name, variant, &setup);
                events.iter().for_each(|e| machine.run(e).unwrap());
                approve(&*machine);
                let c = machine.counters();
                assert!(c.coalesced_fills == 0 || c.coalesced_pages >= 2 * c.coalesced_fills);
            }
        }
        for shape in [SA, FA, ALL, Shape { cluster_ways: 1, ..CLUSTERED }] {
            let (mut m, mut r) = (nested(&setup, shape), SplitMix64::new(seed));
            for e in &events {
                m.run(e).unwrap();
                m.discard(Gpa::new(r.below(1 << 14) << 12)).unwrap();
            }
            approve(&m);
        }
    }
}

/// Loads each of so many pages in the order of memory, on tables that map them to consecutive frames.
fn stream(pages: u64) -> (Script, Vec<u64>) {
    let mut s = Script::new(&LONG4);
    for page in 0..pages {
        s.map_used(0x4000_0000 + (page << 12), 0x1000_0000 + (page << 12), PageSize::SIZE_4K);
    }
    (s, (0..pages).map(|p| 0x4000_0000 + (p << 12)).collect())
}

/// Over contiguous memory a walk brings in 4 or 8 pages, so there is one for each 4 or 8.
#[test]
fn a_stream_walks_once_for_each_entry() {
    const PAGES: u64 = 4096;
    for (shape, pages) in [
        (Shape { shift: 0, ..SA }, 1),
        (Shape { shift: 1, ..SA }, 2),
        (SA, 4),
        (Shape { shift: 3, ..SA }, 8),
        (FA, 8),
        (Shape { longest: 8, second_level: false, ..FA }, 8),
        (ALL, 8),
        (Shape { cluster_ways: 3, ..CLUSTERED }, 8),
        (Shape { cluster_ways: 3, second_level: true, ..CLUSTERED }, 8),
    ] {
        let (mut s, stream) = stream(PAGES);
        stream.iter().for_each(|gva| s.load(*gva));
        let events = s.take();
        // The host's pages are large, so the guest's lines decide.
        let setup = Setup { host_pages: "2m", ..Setup::new(bare_profile()) };
        let (mut native, mut nested) = (native(&setup, shape), nested(&setup, shape));
        for (machine, references) in
            [(&mut native as &mut dyn DynMachine, 4), (&mut nested, 4 * 4 + 3)]
        {
            machine.run(&events).unwrap();
            approve(machine);
            let c = machine.counters();
            assert_eq!((c.walks, c.l2_tlb_misses), (PAGES / pages, PAGES / pages), "{shape:?}");
            // No reference more than without.
            assert_eq!(c.references.total(), c.walks * references);
            if pages > 1 {
                assert_eq!((c.coalesced_fills, c.coalesced_pages > 0), (PAGES / pages, true));
                assert_eq!(c.coalesced_hits, PAGES - PAGES / pages);
            }
        }
    }
}

/// Reach: a working set of as many pages as the entries times their pages is walked once and then never
/// again; of one with more, in a cycle, all walks come back under LRU.
#[test]
fn reach_is_entries_times_pages() {
    let profile = {
        let mut p = bare_profile();
        for level in [&mut p.l1d_tlb, &mut p.l1i_tlb] {
            *level = vec![common::machines::tlb(&["4k", "2m", "1g"], 4, 4)];
        }
        p.l2_tlb = vec![common::machines::tlb(&["4k", "2m", "1g"], 64, 64)];
        p
    };
    let setup = Setup::new(profile);
    for (shape, reach) in [
        (Shape { shift: 0, ..SA }, 64),
        (SA, 64 * 4),
        (Shape { shift: 3, ..SA }, 64 * 8),
        (Shape { cluster_ways: 32, ..CLUSTERED }, 32 * 8),
        // The buffer alone, as entries grow to 1024 pages.
        (Shape { buffer: 2, second_level: false, ..FA }, 2 * 1024),
    ] {
        for (pages, again) in [(reach, false), (reach + 8, true)] {
            let (mut s, stream) = stream(pages);
            for _ in 0..2 {
                stream.iter().for_each(|gva| s.load(*gva));
            }
            let events = s.take();
            let (mut machine, mut once) = (native(&setup, shape), native(&setup, shape));
            machine.run(&events).unwrap();
            let (mut s, _) = self::stream(pages);
            stream.iter().for_each(|gva| s.load(*gva));
            once.run(&s.take()).unwrap();
            let (all, first) = (machine.counters().walks, once.counters().walks);
            if again && shape.buffer == 0 {
                assert_eq!(all, 2 * first, "{shape:?}, {pages} pages");
            } else {
                assert_eq!(all > first, again, "{shape:?}, {pages} pages");
            }
        }
    }
}

/// One page of the naive coalescer's map: where it is in both dimensions, and what its entries say.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Naive {
    gfn: u64,
    hfn: u64,
    attributes: u64,
    nested_size: u64,
}

/// A page as the tables have it now; `None` if it may not share an entry.
fn naive(
    script: &Script,
    platform: &Platform,
    maps: &dyn Fn(Gpa) -> bool,
    gva: u64,
) -> Option<Naive> {
    let guest = &platform.cpu.world;
    let leaf = look_up(&guest.guest, guest.mode, script.root, Gva::new(gva)).ok()?;
    let entry = Script::machine_entry(guest, script.entry(gva, 1).0);
    if leaf.size != PageSize::SIZE_4K || !entry.has(0x20) {
        return None;
    }
    let gpa = leaf.apply(Gva::new(gva));
    let (hfn, nested_size) = match &platform.host {
        None => (gpa.value() >> 12, 1 << 40),
        Some(host) if maps(gpa) => {
            let page = host.look_up(gpa)?;
            let offset = gpa.value() & page.size.mask();
            let line = if page.size == PageSize::SIZE_4K { 8 } else { page.size.base_pages() };
            ((page.frame.value() + offset) >> 12, line)
        }
        Some(_) => return None,
    };
    // All but the frame and the software's bits.
    let attributes = entry.0 & !0x000f_ffff_ffff_fe00;
    Some(Naive { gfn: gpa.value() >> 12, hfn, attributes, nested_size })
}

/// Pages that a naive coalescer puts together with `page`.
fn together(shape: Shape, page: u64, map: &dyn Fn(u64) -> Option<Naive>) -> BTreeSet<u64> {
    let own = map(page).unwrap();
    let known = |p: u64| {
        map(p).filter(|n| {
            n.attributes == own.attributes && n.gfn / n.nested_size == own.gfn / own.nested_size
        })
    };
    if shape.cluster_ways > 0 {
        let same = |p: &u64| *p == page || known(*p).is_some_and(|n| n.hfn / 8 == own.hfn / 8);
        let all: BTreeSet<u64> = (page / 8 * 8..page / 8 * 8 + 8).filter(same).collect();
        return if all.len() < 2 { BTreeSet::from([page]) } else { all };
    }
    let pages = if shape.buffer > 0 { 8 } else { 1 << shape.shift };
    let group = page / pages * pages;
    let fits = |p: u64| {
        known(p).is_some_and(|n| {
            n.gfn.wrapping_sub(own.gfn) == p.wrapping_sub(page)
                && n.hfn.wrapping_sub(own.hfn) == p.wrapping_sub(page)
        })
    };
    let mut all = BTreeSet::from([page]);
    all.extend((page + 1..group + pages).take_while(|p| fits(*p)));
    all.extend((group..page).rev().take_while(|p| fits(*p)));
    all
}

/// A map with runs, holes, permutations of eight frames, read-only, global, clean and unused pages.
fn random_map(s: &mut Script, r: &mut SplitMix64, pages: u64) -> Vec<u64> {
    let (mut mapped, mut next) = (Vec::new(), 0x1000_0000 / 4096 + r.below(3));
    for page in 0..pages {
        match r.below(16) {
            0 => continue,
            1 => next += 1 + r.below(3),
            2 => next = (next ^ r.below(8)) + 16,
            _ => {}
        }
        let gva = 0x4000_0000 + (page << 12);
        let protection = if r.below(12) == 0 { Protection::READ } else { Protection::ALL };
        let bits = [0x60, 0x60, 0x60, 0x60, 0x60, 0x20, 0, 0x160][r.below(8) as usize];
        let frame = if r.below(8) == 0 { next ^ 1 } else { next };
        s.map(gva, frame << 12, PageSize::SIZE_4K, protection, bits);
        mapped.push(gva);
        next += 1;
    }
    mapped
}

fn against_naive<M: Probe>(
    machine: &mut M,
    shape: Shape,
    seed: u64,
    maps: impl Fn(&mut M, Gpa) -> bool,
) -> (u64, u64) {
    let (mut s, mut r) = (Script::new(&LONG4), SplitMix64::new(seed));
    let mapped = random_map(&mut s, &mut r, 320);
    // The host gets to know most pages in the order of memory.
    mapped.iter().filter(|_| r.below(4) > 0).for_each(|gva| s.load(*gva));
    machine.run(&s.take()).unwrap();
    machine.platform().cpu.hardware.cores[0].coalesced.as_mut().unwrap().flush();
    let (mut covered, mut saved) = (BTreeSet::new(), 0);
    for _ in 0..700 {
        let gva = mapped[r.below(mapped.len() as u64) as usize];
        s.load(gva);
        let walks = machine.count(&s.take()).walks;
        assert_eq!(walks == 0, covered.contains(&(gva >> 12)), "{shape:?}: {gva:#x}");
        if walks > 0 {
            let mapped_gpas: BTreeSet<u64> = mapped
                .iter()
                .map(|g| s.entry(*g, 1).1.target::<Gpa>().page_number())
                .filter(|gfn| maps(machine, Gpa::new(gfn << 12)))
                .collect();
            let platform = &*machine.platform();
            let maps = |gpa: Gpa| mapped_gpas.contains(&(gpa.value() >> 12));
            let map = |page: u64| naive(&s, platform, &maps, page << 12);
            let all = together(shape, gva >> 12, &map);
            saved += all.len() as u64 - 1;
            covered.extend(all);
        }
    }
    approve(machine);
    (covered.len() as u64, saved)
}

/// With room for everything an access walks exactly if a naive coalescer has not covered its page.
#[test]
fn walks_are_those_of_a_naive_coalescer() {
    for (i, shape) in [SA, Shape { shift: 3, ..SA }, FA, ALL, CLUSTERED].into_iter().enumerate() {
        for host_pages in ["4k", "2m"] {
            let mut profile = with_roomy_tlbs(bare_profile());
            profile.l2_tlb[0].ways = 64;
            let setup = Setup { host_pages, ..Setup::new(profile) };
            let mut bare = native(&setup, shape);
            let seed = 100 + i as u64;
            let (_, saved) = against_naive(&mut bare, shape, seed, |_, _| true);
            assert!(saved > 40, "{saved}");
            let mut virtualized = nested(&setup, shape);
            let maps = |m: &mut Machine<Nested, CoalescingTlbs>, gpa| m.scheme.mmu.maps(gpa);
            let (_, saved) = against_naive(&mut virtualized, shape, seed, maps);
            assert!(saved > 20, "{host_pages}: {saved}");
        }
    }
}

fn count(machine: &mut dyn DynMachine, s: &mut Script) -> Counters {
    let before = machine.counters().clone();
    machine.run(&s.take()).unwrap();
    machine.counters().since(&before)
}

/// A page whose accessed bit is clear may not be cached, whatever it continues; once used it may.
#[test]
fn unused_pages_are_not_coalesced() {
    let setup = Setup::new(bare_profile());
    let mut m = native(&setup, SA);
    let mut s = Script::new(&LONG4);
    for (page, bits) in [(0, 0x60), (1, 0x40), (2, 0x60), (3, 0x60)] {
        let gva = 0x4000_0000 + (page << 12);
        s.map(gva, 0x1000_0000 + (page << 12), PageSize::SIZE_4K, Protection::ALL, bits);
    }
    let pages =
        |s: &mut Script, list: &[u64]| list.iter().for_each(|p| s.load(0x4000_0000 + (p << 12)));
    pages(&mut s, &[0, 1, 2, 3]);
    // 0 alone; 1, used now, brings 0, 2 and 3.
    assert_eq!(count(&mut m, &mut s).walks, 2);
    m.forget_all();
    pages(&mut s, &[3, 0, 1, 2]);
    assert_eq!(count(&mut m, &mut s).walks, 1);
    approve(&m);
}

/// A store through a shared entry leaves no dirty bit clear: clean pages and dirty ones are not put
/// together.
#[test]
fn stores_set_the_dirty_bit_of_every_page() {
    for shape in [SA, FA, ALL, CLUSTERED] {
        let setup = Setup::new(with_roomy_tlbs(bare_profile()));
        let mut m = native(&setup, shape);
        let mut s = Script::new(&LONG4);
        for page in 0..8u64 {
            let bits = if page < 3 { 0x60 } else { 0x20 };
            let gva = 0x4000_0000 + (page << 12);
            s.map(gva, 0x1000_0000 + (page << 12), PageSize::SIZE_4K, Protection::ALL, bits);
        }
        for page in [5, 0, 3, 4, 6, 7, 1, 2] {
            s.load(0x4000_0000 + (page << 12));
        }
        for page in [5, 0, 3, 4, 6, 7, 1, 2] {
            s.store(0x4000_0000 + (page << 12));
        }
        m.run(&s.take()).unwrap();
        for page in 0..8u64 {
            let at = s.entry(0x4000_0000 + (page << 12), 1).0;
            assert!(
                Script::machine_entry(&m.platform.cpu.world, at).has(0x60),
                "{shape:?}: {page}"
            );
        }
        approve(&m);
    }
}

/// INVLPG of one page of a run removes the run; of a cluster it takes the page out, and the others stay.
#[test]
fn invalidations_take_the_entry_or_the_page() {
    for (shape, walks) in [(SA, 1), (FA, 1), (ALL, 1), (CLUSTERED, 0)] {
        let setup = Setup::new(with_roomy_tlbs(bare_profile()));
        let mut m = native(&setup, shape);
        let (mut s, pages) = stream(4);
        s.load(pages[0]);
        s.load(pages[3]);
        assert_eq!(count(&mut m, &mut s).walks, 1);
        s.invlpg(pages[1]);
        s.load(pages[2]);
        assert_eq!(count(&mut m, &mut s).walks, walks, "{shape:?}");
        s.invlpg(pages[2]);
        s.load(pages[2]);
        assert_eq!(count(&mut m, &mut s).walks, 1, "{shape:?}");
    }
}

/// A guest's 2 MiB page on 4 KiB host pages: the nested lines decide alone, and one INVLPG anywhere in
/// the page removes all parts of it.
#[test]
fn splintered_pages_coalesce_by_nested_lines() {
    for shape in [SA, FA, ALL, CLUSTERED] {
        let setup = Setup::new(with_roomy_tlbs(bare_profile()));
        let mut m = nested(&setup, shape);
        let mut s = Script::new(&LONG4);
        s.map_used(0x4000_0000, 0x1000_0000, PageSize::SIZE_2M);
        // The host gives frames in the order of first use, which is that of memory.
        (0..64u64).for_each(|p| s.load(0x4000_0000 + (p << 12)));
        m.run(&s.take()).unwrap();
        m.forget_all();
        (0..64u64).for_each(|p| s.load(0x4000_0000 + (p << 12)));
        let c = count(&mut m, &mut s);
        let frame = |p: u64| {
            let host = m.platform.host.as_ref().unwrap();
            host.look_up(Gpa::new(0x1000_0000 + (p << 12))).unwrap().frame.value() >> 12
        };
        let map = |p: u64| {
            let (gfn, hfn) = (p, frame(p));
            Some(Naive { gfn, hfn, attributes: 0, nested_size: 8 })
        };
        let mut covered = BTreeSet::new();
        let mut walks = 0;
        for p in 0..64 {
            if !covered.contains(&p) {
                walks += 1;
                covered.extend(together(shape, p, &map));
            }
        }
        assert_eq!(c.walks, walks, "{shape:?}");
        assert!(walks < 32 && c.splintered == walks);
        s.invlpg(0x401f_f000);
        (0..64u64).for_each(|p| s.load(0x4000_0000 + (p << 12)));
        assert_eq!(count(&mut m, &mut s).walks, walks, "{shape:?}");
        approve(&m);
    }
}

/// The buffer is looked up with every access, and costs energy for that; the other kinds have none.
#[test]
fn energy_knows_the_buffer() {
    let profile = Profile::load("cascade-lake-6252").unwrap();
    let setup = Setup::new(profile.clone());
    for (shape, looked_up) in
        [(SA, false), (FA, true), (ALL, true), (Shape { cluster_ways: 3, ..CLUSTERED }, false)]
    {
        let mut m = native(&setup, shape);
        let (mut s, pages) = stream(100);
        pages.iter().for_each(|gva| s.load(*gva));
        m.run(&s.take()).unwrap();
        let c = m.counters();
        assert_eq!(c.run_buffer_lookups, if looked_up { c.accesses } else { 0 }, "{shape:?}");
        let of = |c: &Counters| Energy::of(c, &Cycles::of(c, &profile), &profile).l1_tlb;
        let without = of(&Counters { run_buffer_lookups: 0, ..c.clone() });
        let pj = c.run_buffer_lookups as f64 * profile.energy.run_buffer_pj.value;
        assert!((of(c) - without - pj / 1000.0).abs() < 1e-9);
    }
}

/// More clusters than the second level has ways is no machine.
#[test]
fn ways_that_are_not_there_are_refused() {
    let setup = Setup::new(small());
    let definition = by_name("clustered").unwrap();
    let build = setup.build("clustered", true);
    let build = MachineConfig { variant: definition.options.normalize("ways=4").unwrap(), ..build };
    let told = (definition.build)(build).map(|_| ()).unwrap_err().to_string();
    assert!(told.contains("4 ways") && told.contains("it has 4 in all"), "{told}");
    // The default is a quarter, and one at least: it fits every profile with two ways.
    let _ = machine_with("clustered", &LONG4, &LONG4, "4k", &small(), 1);
}

/// Empties TLBs, so that what follows walks.
trait Forget {
    fn forget_all(&mut self);
}
impl<S: nestwalk_sim::scheme::Scheme> Forget for Machine<S, CoalescingTlbs> {
    fn forget_all(&mut self) {
        for core in &mut self.platform.cpu.hardware.cores {
            core.coalesced.as_mut().unwrap().flush();
        }
    }
}
