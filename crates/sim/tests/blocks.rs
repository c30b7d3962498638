//! TLB blocks in data caches: what a hit costs and a walk teaches, the referee over random lives with
//! host pages that are taken back, and blocks that outlive their invalidation.

use crate::common;

use common::lives::{Life, steps};
use common::machines::{Probe, Setup, plain, with_tiny_tlbs};
use common::{Script, approve, bare_profile};
use nestwalk_hw::Profile;
use nestwalk_hw::Translation;
use nestwalk_hw::blocks::Blocks;
use nestwalk_sim::assist::blocks::{BlockConfig, Blocked};
use nestwalk_sim::hardware::Request;
use nestwalk_sim::hardware::walk::{Fault, WalkWatch};
use nestwalk_sim::scheme::{
    Event, Handled, MachineError, Platform, Processor, Report, Scheme, Software,
};
use nestwalk_sim::{Dimension, DynMachine, Machine, MachineConfig};
use nestwalk_tables::{LEGACY32, LONG4, LONG5, Mode, PAE};
use nestwalk_types::{Gpa, GuestBatch, PageSize, SplitMix64};

const S4K: PageSize = PageSize::SIZE_4K;
const S2M: PageSize = PageSize::SIZE_2M;

/// Every page that is walked goes into a block.
const ALL: BlockConfig = BlockConfig { walks: 1, cost: 0, nested: true };

fn machine<S: Scheme>(
    setup: &Setup,
    virtualized: bool,
    config: BlockConfig,
    wrap: impl FnOnce(Blocked) -> S,
) -> Machine<S> {
    let mut build: MachineConfig = setup.build("blocks", virtualized);
    let blocks = Blocks::new(setup.profile.caches.l2.geometry());
    let scheme = wrap(Blocked::new(config, &mut build).unwrap());
    let mut machine = Machine::new(scheme, build).unwrap();
    for core in &mut machine.platform.cpu.hardware.cores {
        core.blocks = Some(Box::new(blocks.clone()));
    }
    machine
}

/// A walk of base pages fills the entries of the whole line, where the host maps them by one page; a hit
/// is the latency of the second-level cache and no reference. Of large pages each has a walk of its own.
#[test]
fn a_walk_teaches_a_line_and_a_hit_costs_the_cache() {
    for (size, virtualized) in [(S4K, true), (S4K, false), (S2M, true), (S2M, false)] {
        let setup = Setup { host_pages: "2m", ..Setup::new(with_tiny_tlbs(bare_profile())) };
        let mut m = machine(&setup, virtualized, ALL, |b| b);
        let mut s = Script::new(&LONG4);
        let pages = 64;
        for i in 0..pages {
            s.map_used(0x4000_0000 + i * size.bytes(), 0x4000_0000 + i * size.bytes(), size);
        }
        for round in 0..3 {
            (0..pages).for_each(|i| s.load(0x4000_0000 + i * size.bytes()));
            let c = m.count(&s.take());
            let what = format!("{size} virtualized {virtualized} round {round}");
            let first = if size == S4K { pages / 8 } else { pages };
            let walks = if round == 0 { first } else { 0 };
            assert_eq!((c.walks, c.tlb_block_hits), (walks, pages - walks), "{what}");
            let latency = m.platform.cpu.hardware.latency;
            assert_eq!(c.assist_cycles, c.tlb_block_hits * latency[1], "{what}");
            assert_eq!(c.l2_tlb_misses, walks, "{what}");
        }
        approve(&m);
    }
}

/// Host pages of 4 KiB lie beside each other, as the guest's do: a nested block has eight of them, so
/// that walks of pages whose own block is gone find the host's half in the cache.
#[test]
fn nested_blocks_serve_the_walker() {
    let setup = Setup::new(with_tiny_tlbs(bare_profile()));
    let of = |nested: bool| {
        let mut m = machine(&setup, true, BlockConfig { nested, ..ALL }, |b| b);
        let mut s = Script::new(&LONG4);
        for i in 0..64 {
            s.map_used(0x4000_0000 + (i << 12), 0x4000_0000 + (i << 12), S4K);
            s.load(0x4000_0000 + (i << 12));
        }
        m.run(&s.take()).unwrap();
        m.forget();
        for core in &mut m.platform.cpu.hardware.cores {
            core.blocks.as_mut().unwrap().invalidate_all(true);
        }
        (0..64).for_each(|i| s.load(0x4000_0000 + (i << 12)));
        let c = m.count(&s.take());
        approve(&m);
        (c.nested_block_hits, c.references.of(Dimension::Nested))
    };
    let (none, walked) = of(false);
    let (hits, left) = of(true);
    assert_eq!(none, 0);
    assert!(hits > 0 && left < walked / 2, "{hits} hits, {left} of {walked} references left");
}

/// With a predictor that asks for more than a page ever has there is no block.
#[test]
fn pages_that_are_cheap_to_translate_get_no_block() {
    let setup = Setup { host_pages: "2m", ..Setup::new(with_tiny_tlbs(bare_profile())) };
    let fills = |walks: u8, cost: u8| {
        let config = BlockConfig { walks, cost, nested: false };
        let mut m = machine(&setup, true, config, |b| b);
        let mut s = Script::new(&LONG4);
        s.map_used(0x4000_0000, 0x4000_0000, S2M);
        s.map_used(0x4020_0000, 0x4020_0000, S4K);
        s.load(0x4020_0000);
        m.run(&s.take()).unwrap();
        m.counters().tlb_block_fills
    };
    assert_eq!((fills(1, 0), fills(1, 1), fills(2, 0)), (1, 1, 0));
}

// ---- random lives ------------------------------------------------------------------------------

fn cases() -> impl Iterator<Item = (u64, u8, &'static Mode, &'static str, &'static str)> {
    let modes: [(&'static Mode, [(&str, &str); 2]); 4] = [
        (&LONG4, [("4k", "4k"), ("thp", "thp")]),
        (&LONG5, [("thp", "4k"), ("4k", "2m")]),
        (&PAE, [("4k", "4k"), ("2m", "4k")]),
        (&LEGACY32, [("4k", "4k"), ("4m", "2m")]),
    ];
    modes.into_iter().enumerate().flat_map(|(i, (mode, pages))| {
        [1, 4].into_iter().flat_map(move |vcpus| {
            pages.into_iter().enumerate().map(move |(j, (guest, host))| {
                (8 * i as u64 + 4 * j as u64 + u64::from(vcpus), vcpus, mode, guest, host)
            })
        })
    })
}

/// Runs all lives, in which the host takes pages back now and then: violations, hits of blocks and of
/// nested ones.
fn lives<S: Scheme>(virtualized: bool, wrap: fn(Blocked) -> S) -> (u64, u64, u64) {
    let mut sum = (0, 0, 0);
    for (seed, vcpus, mode, guest_pages, host_pages) in cases() {
        let mut profile = with_tiny_tlbs(plain(Profile::load("zen2").unwrap()));
        profile.nested_tlb = None;
        let vcpu_count = usize::from(vcpus);
        let setup =
            Setup { guest_mode: mode, host_pages, vcpus: vcpu_count, ..Setup::new(profile) };
        let mut m = machine(&setup, virtualized, ALL, wrap);
        let life = Life {
            seed,
            events: 160,
            vcpus,
            accesses_percent: 60,
            mode,
            pages: guest_pages,
            pcids: seed.is_multiple_of(2),
        };
        let life: Vec<GuestBatch> = steps(&life.live());
        let mut r = SplitMix64::new(seed);
        let mut used: Vec<Gpa> = Vec::new();
        for events in life {
            m.run(&events).unwrap();
            used.extend(&events.gpas);
            if virtualized && !used.is_empty() && r.below(30) == 0 {
                let page = used[r.below(used.len() as u64) as usize];
                m.discard(page).unwrap();
            }
        }
        let c = m.counters();
        sum.0 += m.verdict().unwrap().violations;
        sum.1 += c.tlb_block_hits;
        sum.2 += c.nested_block_hits;
    }
    sum
}

#[test]
fn the_referee_approves_of_blocks_in_random_lives() {
    let (violations, hits, nested) = lives(true, |b| b);
    assert_eq!(violations, 0);
    assert!(hits > 1_000 && nested > 1_000, "{hits} hits, {nested} nested");
    let (violations, hits, _) = lives(false, |b| b);
    assert_eq!(violations, 0);
    assert!(hits > 1_000, "{hits} hits");
}

// ---- canaries ----------------------------------------------------------------------------------

/// Blocks outlive what `OF` says: 0 the guest's invalidations, 1 loads of CR3, 2 what the host takes
/// back.
struct Outliving<const OF: u8>(Blocked);

impl<const OF: u8> Scheme for Outliving<OF> {
    fn looks_up_first(&self) -> bool {
        self.0.looks_up_first()
    }
    fn may_wait(&self) -> bool {
        self.0.may_wait()
    }
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        self.0.walk(cpu, request, watch)
    }
    fn on_l2_miss(&mut self, cpu: &mut Processor, request: &Request) -> Option<Translation> {
        self.0.on_l2_miss(cpu, request)
    }
    fn fill_l2(&mut self, cpu: &mut Processor, request: &Request, found: Translation) {
        self.0.fill_l2(cpu, request, found);
    }
}

impl<const OF: u8> Software for Outliving<OF> {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        self.0.handle_fault(platform, request, fault)
    }
    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        let keeps = match event {
            Event::Invalidate { .. } => OF == 0,
            Event::LoadCr3 { .. } => OF == 1,
            Event::HostChanged { .. } => OF == 2,
            _ => false,
        };
        let before: Vec<_> = if keeps {
            platform.cpu.hardware.cores.iter().map(|c| c.blocks.clone()).collect()
        } else {
            Vec::new()
        };
        self.0.on(platform, event)?;
        if keeps {
            for (core, blocks) in platform.cpu.hardware.cores.iter_mut().zip(before) {
                core.blocks = blocks;
            }
        }
        Ok(())
    }
    fn report(&self, platform: &Platform, out: &mut Report) {
        self.0.report(platform, out);
    }
}

/// Violations after a page was mapped elsewhere, and its entry invalidated. In random lives a fault
/// comes between, which drops the translation, too.
fn mapped_elsewhere<S: Scheme>(virtualized: bool, wrap: fn(Blocked) -> S) -> u64 {
    let setup = Setup { host_pages: "2m", ..Setup::new(with_tiny_tlbs(bare_profile())) };
    let mut m = machine(&setup, virtualized, ALL, wrap);
    let mut s = Script::new(&LONG4);
    let (page, others) = (0x4000_0000, 0x5000_0000);
    for i in 0..64 {
        s.map_used(others + (i << 12), others + (i << 12), S4K);
    }
    let elsewhere = |s: &mut Script, to: u64| {
        s.map_used(page, to, S4K);
        s.load(page);
        (0..64).for_each(|i| s.load(others + (i << 12)));
        s.load(page);
    };
    elsewhere(&mut s, 0x4000_0000);
    s.unmap(page, S4K);
    s.invlpg(page);
    elsewhere(&mut s, 0x4800_0000);
    m.run(&s.take()).unwrap();
    assert!(m.counters().tlb_block_hits > 0);
    m.verdict().unwrap().violations
}

#[test]
fn blocks_that_outlive_an_invalidation_are_caught() {
    for virtualized in [true, false] {
        assert_eq!(mapped_elsewhere(virtualized, |b| b), 0);
        assert!(mapped_elsewhere(virtualized, Outliving::<0>) > 0, "the guest's invalidation");
    }
    assert!(lives(true, Outliving::<1>).0 > 0, "loads of CR3");
    assert!(lives(true, Outliving::<2>).0 > 0, "pages that the host takes back");
}
