//! Inverted shadow tables: what a guess hides, and that no guess goes unchecked.

use crate::common;
use crate::tables::{Case, live};

use common::machines::{Probe, Setup, with_tiny_tlbs};
use common::{Script, approve, bare_profile};
use nestwalk_hw::Translation;
use nestwalk_sim::hardware::Request;
use nestwalk_sim::hardware::walk::{Fault, WalkWatch};
use nestwalk_sim::scheme::{Event, Handled, MachineError, Platform, Processor, Scheme, Software};
use nestwalk_sim::schemes::inverted_shadow::InvertedShadow;
use nestwalk_sim::{Counters, Dimension, DynMachine, Machine};
use nestwalk_tables::LONG4;
use nestwalk_types::{Address, PageSize};

const S4K: PageSize = PageSize::SIZE_4K;

/// A guess hides all of the walk but the reference to its line; a stale one is met by the walk, and
/// costs what it costs.
#[test]
fn an_inverted_shadow_guesses_and_the_walk_checks() {
    let mut build = Setup::new(with_tiny_tlbs(bare_profile())).build("inverted-shadow", true);
    let mut m = Machine::new(InvertedShadow::new(&mut build).unwrap(), build).unwrap();
    let mut s = Script::new(&LONG4);
    s.map_used(0x40_0000, 0x4000_0000, S4K);
    s.load(0x40_0000);
    let c = m.count(&s.take());
    assert_eq!((c.predictions, c.prediction_fills), (0, 1));
    m.forget();
    let _ = m.platform().cpu.hardware.take_caches();
    s.load(0x40_0000);
    let c = m.count(&s.take());
    let hardware = &m.platform().cpu.hardware;
    let line = hardware.latency[3] + hardware.walk_cache_cycles;
    assert_eq!((c.walks, c.predictions, c.predictions_right), (1, 1, 1));
    assert_eq!(c.walk_cycles - c.hidden_walk_cycles, line, "the line of the inverted table");
    let shadow = |c: &Counters| c.references.0[Dimension::Shadow as usize].iter().sum::<u64>();
    assert_eq!((shadow(&c), c.prediction_fills), (1, 0));
    // The guest maps another frame, and says nothing but INVLPG.
    s.unmap(0x40_0000, S4K);
    s.map_used(0x40_0000, 0x4000_1000, S4K);
    s.invlpg(0x40_0000);
    m.run(&s.take()).unwrap();
    s.load(0x40_0000);
    let c = m.count(&s.take());
    let right = c.predictions_right;
    assert_eq!((right, c.predictions_wrong + c.predictions_squashed), (0, c.predictions));
    assert_eq!((c.predictions_wrong, c.misprediction_cycles), (1, 20));
    assert_eq!((c.hidden_walk_cycles, c.prediction_fills), (0, 1));
    // What may not be stored to has no guess for a store.
    m.forget();
    s.load(0x40_0000);
    let c = m.count(&s.take());
    assert_eq!((c.predictions, c.predictions_right), (1, 1));
    approve(&m);
}

/// One that takes the table's word for it.
struct Unverified(InvertedShadow, bool);

impl Scheme for Unverified {
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        let guess = self.0.table.guess(cpu.world.root(request.vcpu), request);
        let t = self.0.walk(cpu, request, watch)?;
        let Some(guess) = guess.filter(|_| self.1) else { return Ok(t) };
        let frame = guess.align_down(S4K);
        Ok(Translation::new(frame, S4K, t.permissions(), t.is_dirty(), false))
    }
}

impl Software for Unverified {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        self.0.handle_fault(platform, request, fault)
    }
    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        self.0.on(platform, event)
    }
}

#[test]
fn the_referee_approves_of_guesses_that_are_checked_and_of_no_others() {
    let mut sums = [[0; 2]; 2];
    let mut wrong = [0; 2];
    for unverified in [false, true] {
        let [found, right] = &mut sums[usize::from(unverified)];
        for case in Case::all() {
            let mut build = case.build(true);
            let scheme = Unverified(InvertedShadow::new(&mut build).unwrap(), unverified);
            let mut m = Machine::new(scheme, build).unwrap();
            let (c, violations, finished) = live(&case, &mut m);
            assert!(finished || unverified, "life {} of {}", case.seed, case.mode.name);
            *found += violations;
            *right += c.predictions_right;
            wrong[usize::from(unverified)] += c.predictions_wrong;
        }
    }
    assert_eq!(sums[0][0], 0);
    assert!(sums[0][1] > 500 && wrong[0] > 100, "{sums:?} {wrong:?}");
    assert!(sums[1][0] > 0, "no stale guess was caught");
}
