//! The referee watches SpOT, RMM and anchors in random lives, of one vCPU and of four, with host pages
//! that are taken back between any two steps. And it catches those that trust what they must not.

use crate::common;

use common::Script;
use common::lives::{Life, steps};
use common::machines::{Setup, array, tlb};
use nestwalk_hw::{Profile, Translation};
use nestwalk_mm::{GuestConfig, ModelledGuest, PagePolicy, PlacementKind};
use nestwalk_sim::assist::ranges::{Base, Contiguous, Runs, Scope, SpaceId, Touched, Unit};
use nestwalk_sim::hardware::Request;
use nestwalk_sim::hardware::walk::{Fault, WalkWatch};
use nestwalk_sim::hypervisor::nested::Nested;
use nestwalk_sim::scheme::{MachineError, Platform, Processor};
use nestwalk_sim::schemes::anchor::Anchors;
use nestwalk_sim::schemes::rmm::Rmm;
use nestwalk_sim::schemes::spot::Spot;
use nestwalk_sim::{Counters, DynMachine, Machine};
use nestwalk_tables::{LEGACY32, LONG4, LONG5, Mode, PAE, Permissions};
use nestwalk_types::{Address, Gpa, GuestBatch, Gva, PageSize, SplitMix64};

/// TLBs so small that a short life misses all the time.
fn small() -> Profile {
    let mut p = Profile::load("zen2").unwrap();
    for level in [&mut p.l1d_tlb, &mut p.l1i_tlb] {
        *level = vec![tlb(&["4k", "2m", "1g"], 2, 2)];
    }
    p.l2_tlb = vec![tlb(&["4k", "2m", "1g"], 8, 4)];
    p.walk_cache.pde = Some(array(2, 2));
    p
}

#[derive(Clone, Copy)]
struct Case {
    seed: u64,
    vcpus: u8,
    mode: &'static Mode,
    pages: (&'static str, &'static str),
    placement: PlacementKind,
}

impl Case {
    /// The life, step by step; instructions are a few at a time.
    fn life(&self) -> Vec<GuestBatch> {
        let life = Life {
            seed: self.seed,
            events: 150,
            vcpus: self.vcpus,
            accesses_percent: 70,
            mode: self.mode,
            pages: self.pages.0,
            pcids: self.seed.is_multiple_of(2),
        };
        let config = GuestConfig {
            policy: PagePolicy::by_name(self.pages.0).unwrap(),
            placement: self.placement,
            fragmentation: if self.seed.is_multiple_of(3) { 0.3 } else { 0.0 }.into(),
            seed: self.seed,
            pcids: life.pcids && self.mode.levels >= 4,
            ..GuestConfig::new(self.mode, 1 << 30)
        };
        let mut events = steps(&life.live_on(ModelledGuest::new(config).unwrap()));
        let mut r = SplitMix64::new(self.seed ^ 77);
        for run in events.iter_mut().flat_map(|e| &mut e.batch.runs) {
            run.pc = Gva::new(0x40_0000 + r.below(6));
        }
        events
    }

    fn setup(&self) -> Setup {
        Setup {
            guest_mode: self.mode,
            host_pages: self.pages.1,
            vcpus: usize::from(self.vcpus),
            guest_bytes: 1 << 30,
            ..Setup::new(small())
        }
    }
}

fn cases() -> impl Iterator<Item = Case> {
    let modes: [(&'static Mode, [(&str, &str); 3]); 4] = [
        (&LONG4, [("4k", "4k"), ("thp", "4k"), ("thp", "thp")]),
        (&LONG5, [("2m", "4k"), ("4k", "thp"), ("thp", "2m")]),
        (&PAE, [("4k", "4k"), ("2m", "4k"), ("4k", "2m")]),
        (&LEGACY32, [("4k", "4k"), ("4m", "4k"), ("4m", "2m")]),
    ];
    let kinds = [PlacementKind::default(), PlacementKind::Primary];
    modes.into_iter().enumerate().flat_map(move |(i, (mode, pages))| {
        pages.into_iter().enumerate().flat_map(move |(j, pages)| {
            [1, 4].into_iter().map(move |vcpus| {
                let seed = (10 * i + j) as u64 * 4 + u64::from(vcpus);
                Case { seed, vcpus, mode, pages, placement: kinds[j % 2] }
            })
        })
    })
}

/// Runs a life with host pages taken back now and then; the counters at the end.
fn live<B: Base, U: Unit>(
    case: &Case,
    machine: &mut Machine<Contiguous<B, U>>,
    life: &[GuestBatch],
) -> Result<Counters, MachineError> {
    let mut r = SplitMix64::new(case.seed);
    let mut sum = Counters::default();
    for events in life {
        machine.run(events)?;
        if r.below(40) == 0 {
            let page = machine.scheme.runs.host.as_ref().and_then(|host| {
                let runs = host.len().max(1) as u64;
                host.iter().nth(r.below(runs) as usize).map(|run| run.from + r.below(run.pages))
            });
            if let Some(page) = page {
                machine.discard(Gpa::new(page << 12))?;
            }
        }
        sum = machine.counters().clone();
    }
    Ok(sum)
}

fn nested<U: Unit>(
    case: &Case,
    variant: &str,
    unit: fn(&nestwalk_sim::MachineConfig) -> U,
) -> Machine<Contiguous<Nested, U>> {
    let mut build = case.setup().build("right", true);
    build.variant = variant.into();
    let unit = unit(&build);
    Machine::new(Contiguous::nested(&mut build, unit).unwrap(), build).unwrap()
}

fn approve<B: Base, U: Unit>(machine: &Machine<Contiguous<B, U>>, case: &Case) {
    let verdict = machine.verdict().unwrap();
    assert_eq!(verdict.told, Vec::<String>::new(), "life {} with {}", case.seed, case.vcpus);
}

/// A unit in both kinds of machine, over all lives; what was counted in all.
fn all_lives<U: Unit>(variant: &str, unit: fn(&nestwalk_sim::MachineConfig) -> U) -> Vec<Counters> {
    let mut counted = Vec::new();
    for case in cases() {
        let life = case.life();
        let mut machine = nested(&case, variant, unit);
        counted.push(live(&case, &mut machine, &life).unwrap());
        approve(&machine, &case);
        let mut build = case.setup().build("right", false);
        build.variant = variant.into();
        let scheme = Contiguous::native(&build, unit(&build));
        let mut machine = Machine::new(scheme, build).unwrap();
        counted.push(live(&case, &mut machine, &life).unwrap());
        approve(&machine, &case);
    }
    for c in &counted {
        assert!(c.predictions_squashed <= c.faulted_walks && c.hidden_walk_cycles <= c.walk_cycles);
        assert!(c.predictions_right + c.predictions_wrong <= c.walks);
        assert_eq!(
            c.anchor_lookups - c.anchor_hits,
            if c.anchor_lookups > 0 { c.l2_tlb_misses } else { 0 }
        );
        assert!(c.range_walks <= c.walks + c.guest_faults);
    }
    counted
}

fn sum(counted: &[Counters], what: fn(&Counters) -> u64) -> u64 {
    counted.iter().map(what).sum()
}

#[test]
fn the_referee_approves_of_spot() {
    for variant in ["contiguous=2", "entries=4/ways=2/contiguous=0/switch=flush"] {
        let counted = all_lives(variant, |build| Spot::new(build).unwrap());
        let found = [
            sum(&counted, |c| c.predictions_right),
            sum(&counted, |c| c.predictions_wrong),
            sum(&counted, |c| c.predictions_squashed),
            sum(&counted, |c| c.prediction_bypasses),
        ];
        assert!(found[..3].iter().all(|n| *n > 20), "{found:?}");
        // Six instructions have a way each in eight sets, and none in two.
        assert_eq!(found[3] > 0, variant.starts_with("entries"), "{found:?}");
    }
}

#[test]
fn the_referee_approves_of_rmm() {
    for variant in ["min=1/entries=3", "min=4"] {
        let counted = all_lives(variant, |build| Rmm::new(build).unwrap());
        let hits = sum(&counted, |c| c.range_hits);
        assert!(hits > 2000, "{hits}");
    }
}

#[test]
fn the_referee_approves_of_anchors() {
    for variant in ["interval=1000/gain=0", "distance=4", "distance=65536"] {
        let counted = all_lives(variant, |build| Anchors::new(build).unwrap());
        let (hits, changes) =
            (sum(&counted, |c| c.anchor_hits), sum(&counted, |c| c.anchor_changes));
        assert!(hits > 500, "{hits}");
        assert_eq!(changes > 10, variant.starts_with("interval"), "{changes}");
    }
}

/// What is wrong with a unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wrong {
    Nothing,
    /// A guess is used before, and whatever, the walk says.
    GuessTrusted,
    /// INVLPG does not reach the unit.
    InvlpgIgnored,
    /// Whatever software invalidates stays.
    AllKept,
    /// What is served permits everything.
    PermissionsDropped,
}

struct Spoilt<U> {
    inner: U,
    wrong: Wrong,
    guess: fn(&U, &Request) -> Option<nestwalk_types::Hpa>,
}

impl<U: Unit> Spoilt<U> {
    fn spoil(&self, found: Option<Translation>) -> Option<Translation> {
        let t = found?;
        Some(match self.wrong {
            Wrong::PermissionsDropped => {
                Translation::new(t.frame(), t.size(), Permissions::ALL, t.is_dirty(), false)
            }
            _ => t,
        })
    }
}

impl<U: Unit> Unit for Spoilt<U> {
    fn walk<B: Base, W: WalkWatch>(
        &mut self,
        base: &mut B,
        runs: &Runs,
        (cpu, request): (&mut Processor, &Request),
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        let guess = (self.guess)(&self.inner, request);
        let found = self.inner.walk(base, runs, (cpu, request), watch)?;
        Ok(match guess {
            Some(at) if self.wrong == Wrong::GuessTrusted => Translation::new(
                at.align_down(PageSize::SIZE_4K),
                PageSize::SIZE_4K,
                found.permissions(),
                found.is_dirty(),
                false,
            ),
            _ => found,
        })
    }
    fn parallel_to_l2(
        &mut self,
        runs: &Runs,
        cpu: &mut Processor,
        request: &Request,
    ) -> Option<Translation> {
        let found = self.inner.parallel_to_l2(runs, cpu, request);
        self.spoil(found)
    }
    fn on_l2_miss(
        &mut self,
        runs: &Runs,
        cpu: &mut Processor,
        request: &Request,
    ) -> Option<Translation> {
        let found = self.inner.on_l2_miss(runs, cpu, request);
        self.spoil(found)
    }
    fn fill_l2(&mut self, runs: &Runs, cpu: &mut Processor, request: &Request, found: Translation) {
        self.inner.fill_l2(runs, cpu, request, found);
    }
    fn invalidate(&mut self, platform: &mut Platform, core: usize, scope: Scope) {
        match (self.wrong, scope) {
            (Wrong::InvlpgIgnored, Scope::Pages(..)) | (Wrong::AllKept, _) => {}
            _ => self.inner.invalidate(platform, core, scope),
        }
    }
    fn switched(&mut self, runs: &Runs, platform: &mut Platform, core: usize) {
        self.inner.switched(runs, platform, core);
    }
    fn changed(
        &mut self,
        platform: &mut Platform,
        runs: &Runs,
        guest: &[Touched],
        host: &[(u64, u64)],
    ) -> Result<(), MachineError> {
        self.inner.changed(platform, runs, guest, host)
    }
    fn distance(&self, space: SpaceId) -> Option<u64> {
        self.inner.distance(space)
    }
}

fn violations<U: Unit>(
    wrong: Wrong,
    variant: &str,
    unit: fn(&nestwalk_sim::MachineConfig) -> U,
    guess: fn(&U, &Request) -> Option<nestwalk_types::Hpa>,
) -> u64 {
    let mut found = 0;
    for case in cases().filter(|c| c.mode.levels == 4) {
        let mut setup = case.setup();
        // What is wrong stays long enough to be met.
        setup.profile.l2_tlb = vec![tlb(&["4k", "2m", "1g"], 256, 16)];
        let mut build = setup.build("spoilt", true);
        build.variant = variant.into();
        let unit = Spoilt { inner: unit(&build), wrong, guess };
        let scheme = Contiguous::nested(&mut build, unit).unwrap();
        let mut machine = Machine::new(scheme, build).unwrap();
        let end = live(&case, &mut machine, &case.life());
        assert!(end.is_ok() || wrong != Wrong::Nothing, "{end:?}");
        found += machine.verdict().unwrap().violations;
    }
    found
}

#[test]
fn a_spot_that_trusts_its_guess_is_caught() {
    let run = |wrong| {
        violations(wrong, "contiguous=2", |b| Spot::new(b).unwrap(), |unit, r| unit.predict(r))
    };
    assert_eq!(run(Wrong::Nothing), 0);
    assert!(run(Wrong::GuessTrusted) > 10);
}

#[test]
fn ranges_and_anchors_that_are_kept_or_permit_too_much_are_caught() {
    let rmm = |wrong| violations(wrong, "min=1", |b| Rmm::new(b).unwrap(), |_, _| None);
    let anchors =
        |wrong| violations(wrong, "distance=16", |b| Anchors::new(b).unwrap(), |_, _| None);
    assert_eq!((rmm(Wrong::Nothing), anchors(Wrong::Nothing)), (0, 0));
    // Whole address spaces leave the second level by their tags, anchors with them.
    assert!(rmm(Wrong::AllKept) > 0);
    assert!(rmm(Wrong::PermissionsDropped) > 0 && anchors(Wrong::PermissionsDropped) > 0);
}

/// A page of a run moves, and INVLPG says so.
fn moved_page<U: Unit>(
    wrong: Wrong,
    variant: &str,
    unit: fn(&nestwalk_sim::MachineConfig) -> U,
) -> u64 {
    let mut build = Setup::new(small()).build("spoilt", true);
    build.variant = variant.into();
    let unit = Spoilt { inner: unit(&build), wrong, guess: |_, _| None };
    let mut machine = Machine::new(Contiguous::nested(&mut build, unit).unwrap(), build).unwrap();
    let mut script = Script::new(&LONG4);
    let page = |i: u64| 0x4000_0000 + (i << 12);
    (0..64).for_each(|i| script.map_used(page(i), 0x800_0000 + (i << 12), PageSize::SIZE_4K));
    (0..64).for_each(|i| script.load(page(i)));
    script.map_used(page(20), 0x900_0000, PageSize::SIZE_4K);
    script.invlpg(page(20));
    [40, 20, 41, 20].iter().for_each(|i| script.load(page(*i)));
    machine.run(&script.take()).unwrap();
    machine.verdict().unwrap().violations
}

#[test]
fn a_range_or_anchor_that_invlpg_leaves_is_caught() {
    for (wrong, caught) in [(Wrong::Nothing, false), (Wrong::InvlpgIgnored, true)] {
        assert_eq!(moved_page(wrong, "", |b| Rmm::new(b).unwrap()) > 0, caught);
        assert_eq!(moved_page(wrong, "distance=16", |b| Anchors::new(b).unwrap()) > 0, caught);
    }
}
