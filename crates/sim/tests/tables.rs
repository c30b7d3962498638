//! Page tables of other kinds: lengths of walks by closed forms, the referee over random lives with host
//! pages that are taken back and tables that grow and shrink, and structures that are wrong on purpose.

use crate::common;

use common::lives::{Life, steps};
use common::machines::{Probe, Setup, plain, with_tiny_tlbs};
use common::{Script, approve, bare_profile, run};
use nestwalk_hw::Profile;
use nestwalk_sim::assist::tables::classic::{Classic, Rule};
use nestwalk_sim::assist::tables::cuckoo::{Cuckoo, CuckooConfig};
use nestwalk_sim::assist::tables::direct::{Direct, DirectConfig};
use nestwalk_sim::assist::tables::flat::Flat;
use nestwalk_sim::assist::tables::flattened::{FlatConfig, Flattened};
use nestwalk_sim::assist::tables::hashed::{HashConfig, Hashed};
use nestwalk_sim::assist::tables::learned::{Learned, LearnedConfig};
use nestwalk_sim::assist::tables::restricted::{Restricted, RestrictedConfig};
use nestwalk_sim::assist::tables::{
    Found, GuestTable, HostTable, Key, NoHost, NoMemory, RadixGuest, Structure, StructureState,
    Supply, Tabled, Work,
};
use nestwalk_sim::hypervisor::nested_mmu::NestedMmu;
use nestwalk_sim::scheme::Scheme;
use nestwalk_sim::scheme::vmm_options::VmmRules;
use nestwalk_sim::schemes::by_name;
use nestwalk_sim::{Counters, Dimension, DynMachine, Machine, MachineConfig};
use nestwalk_tables::{Entry, LEGACY32, LONG4, LONG5, Mode, PAE};
use nestwalk_types::{Gpa, GuestBatch, PageSize, SplitMix64};

const S4K: PageSize = PageSize::SIZE_4K;
const S2M: PageSize = PageSize::SIZE_2M;

// ---- walk length -------------------------------------------------------------------------------

/// References of one walk, guest's and host's, with everything there and nothing cached.
fn cold(scheme: &str, mode: &'static Mode, size: PageSize, host_pages: &'static str) -> (u64, u64) {
    let mut s = Script::new(mode);
    s.map_used(0x40_0000, 0x4000_0000, size);
    s.load(0x40_0000);
    let (scheme, variant) = scheme.split_once('/').unwrap_or((scheme, ""));
    let profile = with_tiny_tlbs(bare_profile());
    let setup = Setup { guest_mode: mode, host_pages, ..Setup::new(profile) };
    let definition = by_name(scheme).unwrap();
    let build = setup.build(scheme, definition.virtualized);
    let mut m = (definition.build)(MachineConfig { variant: variant.into(), ..build }).unwrap();
    m.run(&s.take()).unwrap();
    let steps = m.watch(&run(0x40_0000, false)).unwrap();
    approve(&*m);
    let of = |d| steps.iter().filter(|s| s.dimension == d).count() as u64;
    (of(Dimension::Guest), of(Dimension::Nested))
}

/// With nothing that collides: one reference for each look-up of a hash table.
#[test]
fn hashed_walks_have_the_length_of_the_formula() {
    for (mode, sizes) in [(&LONG4, [S4K, S2M]), (&LONG5, [S4K, S2M]), (&PAE, [S4K, S2M])] {
        for size in sizes {
            let g = u64::from(mode.walk_references(mode.leaf_level(size).unwrap()));
            for host in ["4k", "2m"] {
                let h = if host == "4k" { 4 } else { 3 };
                let what = format!("{} {size} on {host}", mode.name);
                assert_eq!(cold("hashed", mode, size, host), (1, 2), "{what}");
                assert_eq!(cold("native-hashed", mode, size, host), (1, 0), "{what}");
                assert_eq!(cold("hashed-nested", mode, size, host), (g, g + 1), "{what}");
                assert_eq!(cold("hashed-guest", mode, size, host), (1, 2 * h), "{what}");
            }
        }
    }
}

/// A line for the first entry of a chain, two at once for a group.
#[test]
fn walks_of_vendors_hash_tables_have_the_length_of_the_formula() {
    for (mode, size) in [(&LONG4, S4K), (&LONG4, S2M), (&PAE, S4K)] {
        let g = u64::from(mode.walk_references(mode.leaf_level(size).unwrap()));
        for host in ["4k", "2m"] {
            let what = format!("{} {size} on {host}", mode.name);
            for (kind, lines) in [("vhpt", 1), ("htab", 2)] {
                let of = |scheme: &str| cold(&format!("{scheme}/kind={kind}"), mode, size, host);
                assert_eq!(of("hashed"), (lines, (lines + 1) * lines), "{kind} {what}");
                assert_eq!(of("native-hashed"), (lines, 0), "{kind} {what}");
                assert_eq!(of("hashed-nested"), (g, (g + 1) * lines), "{kind} {what}");
            }
        }
    }
}

/// Two references for each look-up of flattened tables, whatever the sizes; where there are no nodes of
/// 2 MiB those of a radix tree.
#[test]
fn flattened_walks_have_the_length_of_the_formula() {
    for (size, host) in [(S4K, "4k"), (S4K, "2m"), (S2M, "4k"), (S2M, "2m")] {
        let g = u64::from(LONG4.walk_references(LONG4.leaf_level(size).unwrap()));
        let h = if host == "4k" { 4 } else { 3 };
        let what = format!("{size} on {host}");
        assert_eq!(cold("flattened", &LONG4, size, host), (2, 6), "{what}");
        assert_eq!(cold("native-flattened", &LONG4, size, host), (2, 0), "{what}");
        assert_eq!(cold("flattened-nested", &LONG4, size, host), (g, 2 * (g + 1)), "{what}");
        assert_eq!(cold("flattened-guest", &LONG4, size, host), (2, 3 * h), "{what}");
        let none = cold("flattened/refused=100", &LONG4, size, host);
        assert_eq!(none, (g, (g + 1) * h), "{what}");
    }
}

/// One reference of the host for each line of the guest's tables, and one for the page: 9 with pages of
/// 4 KiB, whatever the host's are.
#[test]
fn flat_walks_have_the_length_of_the_formula() {
    for (mode, sizes) in [(&LONG4, [S4K, S2M]), (&LONG5, [S4K, S2M]), (&PAE, [S4K, S2M])] {
        for size in sizes {
            let g = u64::from(mode.walk_references(mode.leaf_level(size).unwrap()));
            for host in ["4k", "2m", "1g"] {
                let what = format!("{} {size} on {host}", mode.name);
                assert_eq!(cold("flat-nested", mode, size, host), (g, g + 1), "{what}");
            }
        }
    }
    assert_eq!(cold("flat-nested", &LONG4, S4K, "4k"), (4, 5));
    // The inverted table is one more beside the walk that checks it.
    assert_eq!(cold("inverted-shadow", &LONG4, S4K, "4k"), (4, 5));
}

/// One reference for what a register is for; in `pvdmt` the guest's needs no translation. What has none
/// is walked as in radix trees.
#[test]
fn direct_walks_have_the_length_of_the_formula() {
    for (size, host) in [(S4K, "4k"), (S4K, "2m"), (S2M, "4k"), (S2M, "2m")] {
        let g = u64::from(LONG4.walk_references(LONG4.leaf_level(size).unwrap()));
        let what = format!("{size} on {host}");
        let of = |scheme: &str| cold(scheme, &LONG4, size, host);
        assert_eq!(of("dmt/least=1"), (1, 2), "{what}");
        assert_eq!(of("pvdmt/least=1"), (1, 1), "{what}");
        assert_eq!(of("native-dmt/least=1"), (1, 0), "{what}");
        assert_eq!(of("dmt/registers=0"), (g, g + 1), "{what}");
    }
}

/// The model, and the entry's line if that is where it is predicted; no more than the places within the
/// bound.
#[test]
fn learned_walks_have_the_length_of_the_formula() {
    for (size, host) in [(S4K, "4k"), (S2M, "4k")] {
        let g = u64::from(LONG4.walk_references(LONG4.leaf_level(size).unwrap()));
        assert_eq!(cold("native-learned", &LONG4, size, host), (2, 0), "{size} on {host}");
        let (guest, nested) = cold("learned", &LONG4, size, host);
        assert!(guest == 2 && (6..=24).contains(&nested), "{size}: {guest} and {nested}");
        let (guest, nested) = cold("learned-nested", &LONG4, size, host);
        assert!(guest == g && (2 * (g + 1)..=8 * (g + 1)).contains(&nested), "{size}: {nested}");
    }
}

/// Filter and tags of a set at once, of each size that has a segment; of what is in none a radix walk
/// follows.
#[test]
fn restricted_walks_have_the_length_of_the_formula() {
    for (size, host) in [(S4K, "4k"), (S4K, "2m"), (S2M, "4k"), (S2M, "2m")] {
        let g = u64::from(LONG4.walk_references(LONG4.leaf_level(size).unwrap()));
        let h = if host == "4k" { 4 } else { 3 };
        let what = format!("{size} on {host}");
        let of = |scheme: &str| cold(scheme, &LONG4, size, host);
        assert_eq!(of("utopia"), (2, 6), "{what}");
        assert_eq!(of("native-utopia"), (2, 0), "{what}");
        assert_eq!(of("utopia-nested"), (g, 2 * (g + 1)), "{what}");
        assert_eq!(of("utopia-guest"), (2, 3 * h), "{what}");
    }
}

/// A line of each way of each size that there is: for every line of the guest's, and for the page.
#[test]
fn cuckoo_walks_have_the_length_of_the_formula() {
    for (size, host) in [(S4K, "4k"), (S4K, "2m"), (S2M, "4k"), (S2M, "2m")] {
        let levels = u64::from(LONG4.walk_references(LONG4.leaf_level(size).unwrap()));
        for ways in [2, 3, 4] {
            let g = if size == S4K { ways } else { 2 * ways };
            let h = if host == "4k" { ways } else { 2 * ways };
            let what = format!("{size} on {host}, {ways} ways");
            let of = |scheme: &str| cold(&format!("{scheme}/ways={ways}"), &LONG4, size, host);
            assert_eq!(of("ecpt"), (g, g * h + h), "{what}");
            assert_eq!(of("native-ecpt"), (g, 0), "{what}");
            assert_eq!(of("ecpt-nested"), (levels, (levels + 1) * h), "{what}");
            let radix = if host == "4k" { 4 } else { 3 };
            assert_eq!(of("ecpt-guest"), (g, (g + 1) * radix), "{what}");
        }
    }
}

/// Three steps from memory, one after another: of a hash table a reference each, of cuckoo tables as
/// many at once as there are, after the cycles of its hash functions.
#[test]
fn three_steps_take_as_long_as_three_references() {
    fn cycles<S: Structure + 'static>(make: fn(&mut dyn Supply) -> Option<S>) -> (u64, u64) {
        let mut build = Setup::new(with_tiny_tlbs(bare_profile())).build("steps", true);
        let guest = GuestTable::new(&mut build, make).unwrap();
        let host = HostTable::new(&LONG4, &mut build.host, make).unwrap();
        let mut m = Machine::new(Tabled { guest, host }, build).unwrap();
        let mut s = Script::new(&LONG4);
        s.map_used(0x40_0000, 0x4000_0000, S4K);
        s.load(0x40_0000);
        m.run(&s.take()).unwrap();
        m.forget();
        let _ = m.platform().cpu.hardware.take_caches();
        s.load(0x40_0000);
        let c = m.count(&s.take());
        let hardware = &m.platform().cpu.hardware;
        assert_eq!(c.walks, 1);
        (c.walk_cycles - hardware.walk_cache_cycles, hardware.latency[3])
    }
    let (hashed, memory) = cycles(small);
    assert_eq!(hashed, 3 * memory);
    let (cuckoo, memory) = cycles(small_cuckoo);
    assert_eq!(cuckoo, 3 * (memory + 6));
}

/// What the TLB in memory has is one reference in place of a walk; the size that was found last is read
/// first.
#[test]
fn a_hit_of_the_tlb_in_memory_is_one_reference() {
    for (scheme, virtualized) in [("pom-tlb", true), ("native-pom-tlb", false)] {
        for size in [S4K, S2M] {
            let setup = Setup { host_pages: "2m", ..Setup::new(with_tiny_tlbs(bare_profile())) };
            let build = setup.build(scheme, virtualized);
            let mut m = (by_name(scheme).unwrap().build)(build).unwrap();
            let mut s = Script::new(&LONG4);
            let pages = 64;
            for i in 0..pages {
                s.map_used(0x4000_0000 + i * size.bytes(), 0x4000_0000 + i * size.bytes(), size);
            }
            for round in 0..3 {
                let before = m.counters().clone();
                (0..pages).for_each(|i| s.load(0x4000_0000 + i * size.bytes()));
                m.run(&s.take()).unwrap();
                let c = m.counters().since(&before);
                let (walks, reads) = if round == 0 { (pages, 2 * pages) } else { (0, pages) };
                assert_eq!((c.walks, c.memory_tlb_reads), (walks, reads), "{scheme} {size}");
                assert_eq!(c.shared_tlb_hits, pages - walks);
            }
            approve(&*m);
        }
    }
}

// ---- random lives ------------------------------------------------------------------------------

#[derive(Clone, Copy)]
pub struct Case {
    pub seed: u64,
    vcpus: u8,
    pub mode: &'static Mode,
    pages: (&'static str, &'static str),
}

impl Case {
    pub fn all() -> impl Iterator<Item = Self> {
        let modes: [(&'static Mode, [(&str, &str); 2]); 4] = [
            (&LONG4, [("4k", "4k"), ("thp", "thp")]),
            (&LONG5, [("thp", "4k"), ("4k", "2m")]),
            (&PAE, [("4k", "4k"), ("2m", "4k")]),
            (&LEGACY32, [("4k", "4k"), ("4m", "2m")]),
        ];
        modes.into_iter().enumerate().flat_map(|(i, (mode, pages))| {
            [1, 4].into_iter().flat_map(move |vcpus| {
                pages.into_iter().enumerate().map(move |(j, pages)| Self {
                    seed: 8 * i as u64 + 4 * j as u64 + u64::from(vcpus),
                    vcpus,
                    mode,
                    pages,
                })
            })
        })
    }

    fn life(&self) -> Vec<GuestBatch> {
        let life = Life {
            seed: self.seed,
            events: 160,
            vcpus: self.vcpus,
            accesses_percent: 60,
            mode: self.mode,
            pages: self.pages.0,
            pcids: self.seed.is_multiple_of(2),
        };
        steps(&life.live())
    }

    pub fn build(&self, virtualized: bool) -> MachineConfig {
        let mut profile = with_tiny_tlbs(plain(Profile::load("zen2").unwrap()));
        profile.nested_tlb = None;
        let setup = Setup {
            guest_mode: self.mode,
            host_pages: self.pages.1,
            vcpus: usize::from(self.vcpus),
            ..Setup::new(profile)
        };
        setup.build("right", virtualized)
    }
}

/// Runs a life, in which the host takes pages back now and then. Counters and violations at the end; a
/// machine that cannot go on is told apart.
pub fn live<S: Scheme>(case: &Case, machine: &mut Machine<S>) -> (Counters, u64, bool) {
    let mut r = SplitMix64::new(case.seed);
    let mut used: Vec<Gpa> = Vec::new();
    for events in case.life() {
        if machine.run(&events).is_err() {
            let violations = machine.verdict().unwrap().violations;
            return (machine.counters().clone(), violations, false);
        }
        used.extend(&events.gpas);
        if machine.platform.host.is_some() && !used.is_empty() && r.below(30) == 0 {
            let page = used[r.below(used.len() as u64) as usize];
            machine.discard(page).unwrap();
        }
    }
    (machine.counters().clone(), machine.verdict().unwrap().violations, true)
}

fn small(memory: &mut dyn Supply) -> Option<Hashed> {
    Hashed::new(HashConfig { places: 64, ..HashConfig::default() }, 4, memory)
}

fn small_chains(memory: &mut dyn Supply) -> Option<Classic> {
    Classic::new(Rule::Chains, (60, 64), 4, memory)
}

fn small_groups(memory: &mut dyn Supply) -> Option<Classic> {
    Classic::new(Rule::Groups, (60, 64), 4, memory)
}

fn small_cuckoo(memory: &mut dyn Supply) -> Option<Cuckoo> {
    Cuckoo::new(CuckooConfig { entries: 512, ..CuckooConfig::default() }, 4, memory)
}

/// Mappings of few pages, more of them than registers, with memory of the host.
fn small_direct(_memory: &mut dyn Supply) -> Option<Direct> {
    Some(Direct::new(DirectConfig {
        registers: 1,
        least: 24,
        host_memory: true,
        ..DirectConfig::default()
    }))
}

fn small_learned(_memory: &mut dyn Supply) -> Option<Learned> {
    Some(Learned::new(LearnedConfig { error: 2, held: 2 }, 4))
}

/// Sets of one way: what collides displaces.
fn small_restricted(memory: &mut dyn Supply) -> Option<Restricted> {
    let config = RestrictedConfig { mib: [1, 16], ways: [1, 1], held: 8, evict: true };
    Restricted::new(config, 4, true, memory)
}

/// Every third node finds no memory.
fn small_flattened(memory: &mut dyn Supply) -> Option<Flattened> {
    Flattened::new(FlatConfig { refused: 33, ..FlatConfig::default() }, 4, true, memory)
}

/// Structures in both dimensions, in each, and on bare metal, over all lives.
fn lives<S: Structure + 'static>(make: fn(&mut dyn Supply) -> Option<S>) -> Counters {
    let mut sum = Counters::default();
    let mut watch = |case: &Case, (c, violations, finished): (Counters, u64, bool)| {
        assert!(finished && violations == 0, "life {} of {}", case.seed, case.mode.name);
        assert_eq!(c.table_emulations, 0, "an entry was lost");
        sum.table_resizes += c.table_resizes;
        sum.guest_table_updates += c.guest_table_updates;
        sum.table_refusals += c.table_refusals;
        sum.guest_table_moves += c.guest_table_moves;
        sum.guest_table_copies += c.guest_table_copies;
    };
    for case in Case::all() {
        let mut build = case.build(true);
        let guest = GuestTable::new(&mut build, make).unwrap();
        let host = HostTable::new(&LONG4, &mut build.host, make).unwrap();
        let mut m = Machine::new(Tabled { guest, host }, build).unwrap();
        watch(&case, live(&case, &mut m));

        let mut build = case.build(true);
        let host = HostTable::new(&LONG4, &mut build.host, make).unwrap();
        let mut m = Machine::new(Tabled { guest: RadixGuest, host }, build).unwrap();
        watch(&case, live(&case, &mut m));

        let mut build = case.build(true);
        let guest = GuestTable::new(&mut build, make).unwrap();
        let host = NestedMmu::new(&LONG4, &mut build.host, VmmRules::PLAIN).unwrap();
        let mut m = Machine::new(Tabled { guest, host }, build).unwrap();
        watch(&case, live(&case, &mut m));

        let mut build = case.build(false);
        let guest = GuestTable::new(&mut build, make).unwrap();
        let mut m = Machine::new(Tabled { guest, host: NoHost }, build).unwrap();
        watch(&case, live(&case, &mut m));
    }
    sum
}

#[test]
fn the_referee_approves_of_hash_tables_in_random_lives() {
    let c = lives(small);
    assert!(c.table_resizes > 40 && c.guest_table_updates > 10_000, "{}", c.table_resizes);
}

#[test]
fn the_referee_approves_of_vendors_hash_tables_in_random_lives() {
    for make in [small_chains, small_groups] {
        let c = lives(make);
        assert!(c.table_resizes > 40 && c.guest_table_updates > 10_000, "{}", c.table_resizes);
    }
}

#[test]
fn the_referee_approves_of_cuckoo_tables_in_random_lives() {
    let c = lives(small_cuckoo);
    assert!(c.table_resizes > 10 && c.guest_table_updates > 10_000, "{}", c.table_resizes);
}

#[test]
fn the_referee_approves_of_flattened_tables_in_random_lives() {
    let c = lives(small_flattened);
    assert!(c.table_refusals > 10 && c.guest_table_updates > 10_000, "{}", c.table_refusals);
}

#[test]
fn the_referee_approves_of_direct_tables_in_random_lives() {
    let c = lives(small_direct);
    assert!(c.guest_table_moves > 100 && c.guest_table_updates > 10_000, "{}", c.guest_table_moves);
}

#[test]
fn the_referee_approves_of_learned_tables_in_random_lives() {
    let c = lives(small_learned);
    assert!(c.table_resizes > 100 && c.guest_table_updates > 10_000, "{}", c.table_resizes);
}

#[test]
fn the_referee_approves_of_restricted_segments_in_random_lives() {
    let c = lives(small_restricted);
    assert!(
        c.guest_table_copies > 20 && c.guest_table_updates > 10_000,
        "{}",
        c.guest_table_copies
    );
}

/// A structure in the host alone, over all lives: the accesses that met violations, and whether the
/// referee caught anything.
fn lives_in_host<S: Structure + 'static>(
    make: impl Fn(&mut dyn Supply) -> Option<S>,
) -> (u64, bool) {
    let (mut fills, mut caught) = (0, false);
    for case in Case::all() {
        let mut build = case.build(true);
        let host = HostTable::new(&LONG4, &mut build.host, &make).unwrap();
        let mut m = Machine::new(Tabled { guest: RadixGuest, host }, build).unwrap();
        let (c, violations, finished) = live(&case, &mut m);
        assert!(finished || violations > 0, "life {} of {}", case.seed, case.mode.name);
        fills += c.nested_fills;
        caught |= violations > 0;
    }
    (fills, caught)
}

/// An array for little memory: most is added later.
fn small_flat(memory: &mut dyn Supply) -> Option<Flat> {
    Flat::new(64, memory)
}

#[test]
fn the_referee_approves_of_a_flat_table_in_random_lives_and_of_no_wrong_one() {
    let (fills, caught) = lives_in_host(small_flat);
    assert!(fills > 1_000 && !caught, "{fills}");
    let spoilt = |inner, wrong| Some(Spoilt { inner, wrong });
    assert!(lives_in_host(|m| spoilt(small_flat(m)?, Wrong::Stale)).1, "entries that go stay");
    assert!(lives_in_host(|m| spoilt(small_flat(m)?, Wrong::Neighbour)).1, "a neighbour's entry");
}

// ---- canaries ----------------------------------------------------------------------------------

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wrong {
    Nothing,
    /// Entries that go stay.
    Stale,
    /// A resize loses an entry.
    Loses,
    /// An entry is found in the place of its neighbour.
    Neighbour,
    /// A store over an entry is lost.
    Kept,
}

/// A right structure, spoilt.
struct Spoilt<S> {
    inner: S,
    wrong: Wrong,
}

impl<S: Structure> Structure for Spoilt<S> {
    fn look_up<E>(
        &mut self,
        core: usize,
        key: Key,
        fetch: &mut impl FnMut(u8, &[u64]) -> Result<(), E>,
    ) -> Result<Option<Found>, E> {
        let found = self.inner.look_up(core, key, fetch)?;
        if self.wrong == Wrong::Neighbour {
            let near = self.inner.get(Key { page: key.page ^ 1, ..key });
            return Ok(near.filter(|n| found.is_some_and(|f| f.shift == n.shift)).or(found));
        }
        Ok(found)
    }
    fn get(&self, key: Key) -> Option<Found> {
        self.inner.get(key)
    }
    fn put(
        &mut self,
        key: Key,
        shift: u8,
        entry: u64,
        memory: &mut dyn Supply,
    ) -> Result<(), NoMemory> {
        let there = self.inner.get(key).is_some();
        if self.wrong == Wrong::Kept && there && Entry(entry).is_present() {
            return Ok(());
        }
        let before = self.inner.work().resizes;
        self.inner.put(key, shift, entry, memory)?;
        if self.wrong == Wrong::Loses && self.inner.work().resizes > before {
            self.inner.remove(key, shift, memory);
        }
        Ok(())
    }
    fn remove(&mut self, key: Key, shift: u8, memory: &mut dyn Supply) -> bool {
        self.wrong != Wrong::Stale && self.inner.remove(key, shift, memory)
    }
    fn mark(&mut self, found: &Found, bits: u64) {
        self.inner.mark(found, bits);
    }
    fn shifts(&self) -> Vec<u8> {
        self.inner.shifts()
    }
    fn work(&mut self) -> &mut Work {
        self.inner.work()
    }
    fn state(&self) -> StructureState {
        self.inner.state()
    }
}

/// Whether the wrong structure is caught in a dimension: by the referee, or, what is lost, by accesses
/// that software has to make.
fn is_caught(wrong: Wrong, in_guest: bool) -> bool {
    for case in Case::all() {
        let mut build = case.build(true);
        let in_which = |here| if here { wrong } else { Wrong::Nothing };
        let guest = GuestTable::new(&mut build, |m| {
            Some(Spoilt { inner: small(m)?, wrong: in_which(in_guest) })
        });
        let host = HostTable::new(&LONG4, &mut build.host, |m| {
            Some(Spoilt { inner: small(m)?, wrong: in_which(!in_guest) })
        });
        let tabled = Tabled { guest: guest.unwrap(), host: host.unwrap() };
        let mut m = Machine::new(tabled, build).unwrap();
        let (c, violations, _) = live(&case, &mut m);
        if violations > 0 || c.table_emulations > 0 {
            return true;
        }
    }
    false
}

#[test]
fn structures_that_are_wrong_are_caught() {
    assert!(!is_caught(Wrong::Nothing, true));
    for wrong in [Wrong::Stale, Wrong::Loses, Wrong::Neighbour, Wrong::Kept] {
        assert!(is_caught(wrong, true), "{wrong:?} in the guest");
    }
    // What a host's table loses comes again by a violation.
    for wrong in [Wrong::Stale, Wrong::Neighbour] {
        assert!(is_caught(wrong, false), "{wrong:?} in the host");
    }
}

// ---- software ----------------------------------------------------------------------------------

/// What an OS pays is counted: an update for each entry, clearing for each table, moves for each growth.
#[test]
fn every_entry_and_every_table_is_counted() {
    let case = Case { seed: 1, vcpus: 1, mode: &LONG4, pages: ("4k", "4k") };
    let mut build = case.build(true);
    let guest = GuestTable::new(&mut build, small).unwrap();
    let host = HostTable::new(&LONG4, &mut build.host, small).unwrap();
    let mut m = Machine::new(Tabled { guest, host }, build).unwrap();
    let mut s = Script::new(&LONG4);
    s.map_used(0x40_0000, 0x4000_0000, S4K);
    s.load(0x40_0000);
    m.run(&s.take()).unwrap();
    // 400 clusters of one page each; the 39th fills 60 percent of 64 places, and so on.
    for i in 1..400_u64 {
        s.map_used(0x40_0000 + (i << 15), 0x4000_0000 + (i << 12), S4K);
    }
    let c = m.count(&s.take());
    assert_eq!(c.guest_table_updates, 399);
    let state = m.scheme.guest.structure.state();
    assert_eq!((state.used, state.places), (400, 1024));
    let bytes: u64 = [128, 256, 512, 1024].iter().map(|places| places * 64).sum();
    assert_eq!(c.guest_table_pages, bytes / 4096);
    // Each growth moves what the smaller table holds: 60 percent of it.
    assert_eq!(c.guest_table_moves, 38 + 76 + 153 + 307);
    // The kernel touches what it clears: a violation for each page that the host had not backed.
    assert!(c.exits_total() >= bytes / 4096, "{}", c.exits_total());
    approve(&m);
}
