//! Entries that are fetched ahead of walks: how many references a walk has, and how long it takes,
//! against the formula of its steps; the referee over random lives.

use crate::common;

use common::lives::{Life, steps};
use common::machines::{Probe, Setup, plain, with_tiny_tlbs};
use common::{Script, approve, bare_profile, run};
use nestwalk_hw::{Caches, Profile};
use nestwalk_sim::assist::tables::direct::{Ahead, Direct, DirectConfig};
use nestwalk_sim::assist::tables::{
    GuestSide, GuestTable, HostSide, HostTable, NoHost, Supply, Tabled,
};
use nestwalk_sim::hardware::Step;
use nestwalk_sim::schemes::by_name;
use nestwalk_sim::{Counters, Dimension, DynMachine, Machine, MachineConfig};
use nestwalk_tables::{LEGACY32, LONG4, LONG5, Mode, PAE};
use nestwalk_types::PageSize;

const AT: u64 = 0x40_0000;

/// One cold walk: its counters, its references, and what references take by level.
fn cold<G: GuestSide + 'static, H: HostSide + 'static>(
    guest: G,
    host: H,
    build: MachineConfig,
) -> (Counters, Vec<Step>, [u64; 4]) {
    let mut m = Machine::new(Tabled { guest, host }, build).unwrap();
    let mut s = Script::new(&LONG4);
    s.map_used(AT, 0x4000_0000, PageSize::SIZE_4K);
    s.load(AT);
    m.run(&s.take()).unwrap();
    let steps = m.watch(&run(AT, false)).unwrap();
    m.forget();
    let _ = m.platform().cpu.hardware.take_caches();
    s.load(AT);
    let c = m.count(&s.take());
    assert_eq!(c.walks, 1);
    approve(&m);
    let latency = m.platform().cpu.hardware.latency;
    (c, steps, latency)
}

fn of(levels: u8, virtualized: bool, host: bool) -> DirectConfig {
    let guest = DirectConfig {
        registers: 16,
        least: 1,
        host_memory: virtualized,
        ahead: Some(Ahead { levels, caches: [0; 3] }),
    };
    if host { guest.of_host() } else { guest }
}

fn both(levels: u8) -> (Counters, Vec<Step>, [u64; 4]) {
    let make = |host| move |_: &mut dyn Supply| Some(Direct::new(of(levels, true, host)));
    let mut build = Setup::new(with_tiny_tlbs(bare_profile())).build("asap", true);
    let guest = GuestTable::new(&mut build, make(false)).unwrap();
    let host = HostTable::new(&LONG4, &mut build.host, make(true)).unwrap();
    cold(guest, host, build)
}

fn native(levels: u8) -> (Counters, Vec<Step>, [u64; 4]) {
    let mut build = Setup::new(with_tiny_tlbs(bare_profile())).build("native-asap", false);
    let make = |_: &mut dyn Supply| Some(Direct::new(of(levels, false, false)));
    let guest = GuestTable::new(&mut build, make).unwrap();
    cold(guest, NoHost, build)
}

/// The upper two references one after another, and the lower two find what was on its way meanwhile.
#[test]
fn a_cold_native_walk_takes_two_references_to_memory() {
    for (levels, memories, caches) in [(0, 4, 0), (1, 3, 1), (2, 2, 2)] {
        let (c, steps, [l1, .., memory]) = native(levels);
        assert_eq!(steps.len(), 4);
        assert_eq!(c.background, [0, 0, 0, u64::from(levels)]);
        let own = c.walk_cycles - bare_profile().core.walk_cache_cycles.value as u64;
        assert_eq!(own, memories * memory + caches * l1, "{levels} levels");
    }
}

/// What a walk takes by hand: each line from where the data caches have it, and a line that was fetched
/// ahead is there when it is there.
struct ByHand {
    caches: Caches,
    now: u64,
    latency: [u64; 4],
}

impl ByHand {
    fn cycles(&mut self, step: &Step) -> u64 {
        self.latency[self.caches.data(0, step.at) as usize]
    }

    /// The cycles in which the lines of levels 1 and 2 among these are there.
    fn ahead(&mut self, steps: &[Step]) -> [u64; 2] {
        [2, 1].map(|level| {
            let step = steps.iter().find(|s| s.level == level).unwrap();
            self.now + self.cycles(step)
        })
    }

    fn step(&mut self, step: &Step, [two, one]: [u64; 2]) {
        self.now += self.cycles(step);
        match step.level {
            1 => self.now = self.now.max(one),
            2 => self.now = self.now.max(two),
            _ => {}
        }
    }
}

#[test]
fn a_cold_walk_in_two_dimensions_takes_what_the_formula_says() {
    let (c, steps, latency) = both(2);
    let count = |d| steps.iter().filter(|s| s.dimension == d).count();
    assert_eq!((count(Dimension::Guest), count(Dimension::Nested)), (4, 20));
    assert_eq!(c.background.iter().sum::<u64>(), 2 + 5 * 2);
    let mut by_hand = ByHand { caches: Caches::new(&bare_profile().caches, 1), now: 0, latency };
    let guest: Vec<Step> =
        steps.iter().filter(|s| s.dimension == Dimension::Guest).copied().collect();
    let there = by_hand.ahead(&guest);
    // Four nested references, and what they were for.
    for group in steps.chunks(5) {
        let there_nested = by_hand.ahead(&group[..4]);
        group[..4].iter().for_each(|step| by_hand.step(step, there_nested));
        group[4..].iter().for_each(|step| by_hand.step(step, there));
    }
    let own = c.walk_cycles - bare_profile().core.walk_cache_cycles.value as u64;
    assert_eq!(own, by_hand.now);
    let (without, ..) = both(0);
    assert!(without.walk_cycles > c.walk_cycles, "{} {}", without.walk_cycles, c.walk_cycles);
}

/// Walks have the references of radix tables, with registers and without, in each dimension.
#[test]
fn walks_have_their_references_as_ever() {
    for scheme in ["asap", "asap-nested", "asap-guest", "native-asap"] {
        for (variant, host) in [("least=1", "4k"), ("least=1", "2m"), ("registers=0", "4k")] {
            let definition = by_name(scheme).unwrap();
            let setup = Setup { host_pages: host, ..Setup::new(with_tiny_tlbs(bare_profile())) };
            let build = setup.build(scheme, definition.virtualized);
            let build = MachineConfig { variant: variant.into(), ..build };
            let mut m = (definition.build)(build).unwrap();
            let mut s = Script::new(&LONG4);
            s.map_used(AT, 0x4000_0000, PageSize::SIZE_4K);
            s.load(AT);
            m.run(&s.take()).unwrap();
            let steps = m.watch(&run(AT, false)).unwrap();
            let h = if host == "4k" { 4 } else { 3 };
            let expected = if definition.virtualized { 4 + 5 * h } else { 4 };
            assert_eq!(steps.len(), expected, "{scheme}/{variant} on {host}");
            approve(&*m);
        }
    }
}

/// Random lives with few registers, walk caches, and entries ahead in both dimensions.
#[test]
fn the_referee_approves_in_random_lives() {
    let modes: [(&'static Mode, &str, &'static str); 4] =
        [(&LONG4, "thp", "4k"), (&LONG5, "4k", "2m"), (&PAE, "4k", "4k"), (&LEGACY32, "4m", "2m")];
    let (mut ahead, mut moves) = (0, 0);
    for (seed, (mode, pages, host_pages)) in modes.into_iter().enumerate() {
        for scheme in ["asap", "asap-nested", "asap-guest", "native-asap"] {
            let definition = by_name(scheme).unwrap();
            let profile = with_tiny_tlbs(plain(Profile::load("zen2").unwrap()));
            let setup = Setup { guest_mode: mode, host_pages, vcpus: 2, ..Setup::new(profile) };
            let build = setup.build(scheme, definition.virtualized);
            let variant = "registers=1/least=24".into();
            let mut m = (definition.build)(MachineConfig { variant, ..build }).unwrap();
            let life = Life {
                seed: seed as u64,
                events: 160,
                vcpus: 2,
                accesses_percent: 60,
                mode,
                pages,
                pcids: seed % 2 == 0,
            };
            for events in steps(&life.live()) {
                m.run(&events).unwrap();
            }
            approve(&*m);
            let c = m.counters();
            assert_eq!(c.table_emulations, 0, "an entry was lost");
            ahead += c.background.iter().sum::<u64>();
            moves += c.guest_table_moves;
        }
    }
    assert!(ahead > 1_000 && moves > 100, "{ahead} {moves}");
}
