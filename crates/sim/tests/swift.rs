//! Shadow paging without write protection: exits counted beforehand, the referee over random lives, and
//! a VMM that does not compare.

use crate::common;

use common::kernel::{DATA, cleared, setup, write_fault};
use common::lives::{Life, steps};
use common::machines::{Probe, Setup, exits_by_name, plain, with_tiny_tlbs};
use common::{Script, approve};
use nestwalk_hw::{Profile, Translation};
use nestwalk_sim::hardware::Request;
use nestwalk_sim::hardware::walk::{Fault, WalkWatch};
use nestwalk_sim::hypervisor::shadow::Rules;
use nestwalk_sim::scheme::{Event, Handled, MachineError, Platform, Processor, Scheme, Software};
use nestwalk_sim::schemes::shadow::Shadow;
use nestwalk_sim::{Counters, DynMachine, ExitReason, Machine};
use nestwalk_tables::{LEGACY32, LONG4, LONG5, Mode, PAE};
use nestwalk_types::{Gpa, PageSize, SplitMix64};

const S4K: PageSize = PageSize::SIZE_4K;

fn swift(setup: &Setup, wrong: bool) -> Machine<Lazy> {
    let build = setup.build("ssp", true);
    let rules = Rules { write_protect: false, ..Rules::default() };
    Machine::new(Lazy { inner: Shadow::with_rules(&build, rules), wrong }, build).unwrap()
}

/// The right scheme, or one whose VMM flushes TLBs when the guest does and compares nothing.
struct Lazy {
    inner: Shadow,
    wrong: bool,
}

impl Scheme for Lazy {
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        self.inner.walk(cpu, request, watch)
    }
}

impl Software for Lazy {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        self.inner.handle_fault(platform, request, fault)
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        if self.wrong && matches!(event, Event::Invalidate { .. }) {
            platform.cpu.hardware.invalidate_everywhere();
            return Ok(());
        }
        self.inner.on(platform, event)
    }
}

fn count(m: &mut Machine<Lazy>, s: &mut Script) -> Counters {
    let c = m.count(&s.take());
    assert_eq!(m.verdict().unwrap().told, Vec::<String>::new());
    c
}

/// A first touch is a true fault, the kernel's hidden fault on the fresh frame, and the program's. No
/// store to a table exits, whatever its level; a load of CR3 that keeps translations is free if the
/// root is known.
#[test]
fn stores_to_tables_and_known_roots_do_not_exit() {
    let mut m = swift(&setup("4k"), false);
    let mut s = Script::new(&LONG4);
    let parent = s.root;
    s.load_cr3(parent, 1, false);
    s.map_used(0, DATA, S4K);
    s.load(0);
    count(&mut m, &mut s);
    for (i, page) in [16_u64, 32, 512, 1 << 18].into_iter().enumerate() {
        let frame = DATA + ((i as u64 + 1) << 12);
        s.fault(page << 12, true);
        cleared(&mut s, frame);
        s.map_used(page << 12, frame, S4K);
        s.store(page << 12);
        let c = count(&mut m, &mut s);
        let of = |r: ExitReason| c.exits[r as usize];
        assert_eq!((of(ExitReason::TableWrite), of(ExitReason::TableUnsync)), (0, 0));
        assert_eq!(of(ExitReason::TrueFault), 1);
        assert!(of(ExitReason::HiddenFault) >= 2);
    }
    // Another space, and back: the first load of each exits, the second does not.
    let child = s.add_root();
    s.load_cr3(child, 2, true);
    let fresh = [("hidden_fault", 1), ("cr3_load", 1)];
    assert_eq!(exits_by_name(&count(&mut m, &mut s)), fresh, "the kernel clears the root");
    for (root, pcid) in [(parent, 1), (child, 2), (parent, 1)] {
        s.load_cr3(root, pcid, true);
    }
    s.load(16 << 12);
    assert_eq!(exits_by_name(&count(&mut m, &mut s)), []);
    // One that flushes exits, and all that is present is compared.
    s.load_cr3(parent, 1, false);
    let c = count(&mut m, &mut s);
    assert_eq!(exits_by_name(&c), [("cr3_load", 1)]);
    // The root; two tables below it and two below those; three leaf tables.
    assert_eq!(c.sync_entries % 512, 0);
    assert!(
        c.sync_entries >= 4 * 512 && c.sync_present >= 4,
        "{} {}",
        c.sync_entries,
        c.sync_present
    );
}

/// What takes rights away is seen at INVLPG, at each level; what gives them by the next fault.
#[test]
fn an_address_that_is_flushed_is_compared_at_every_level() {
    let mut m = swift(&setup("4k"), false);
    let mut s = Script::new(&LONG4);
    s.map_used(0, DATA, S4K);
    s.map_used(0x1000, DATA + 0x1000, S4K);
    s.store(0);
    s.load(0x1000);
    count(&mut m, &mut s);
    // Another frame.
    s.unmap(0, S4K);
    s.map_used(0, DATA + 0x5000, S4K);
    s.invlpg(0);
    s.store(0);
    let c = count(&mut m, &mut s);
    assert_eq!(exits_by_name(&c), [("hidden_fault", 1), ("invalidation", 1)]);
    // The table goes: its entry above the leaf level is dropped.
    let (at, old) = s.entry(0, 2);
    s.write(at, 0);
    s.invlpg(0);
    write_fault(&mut s, 0x1000, false);
    s.write(at, old.0);
    s.store(0x1000);
    let c = count(&mut m, &mut s);
    assert_eq!(c.exits[ExitReason::TrueFault as usize], 1);
    assert_eq!(c.exits[ExitReason::HiddenFault as usize], 1);
    assert_eq!(c.exits[ExitReason::TableWrite as usize], 0);
    approve(&m);
}

/// Runs lives in which the host takes pages back; whether the referee was silent, and all exits.
fn lives(wrong: bool) -> (bool, Counters) {
    let (mut silent, mut sum) = (true, Counters::default());
    let modes: [(&'static Mode, [(&str, &'static str); 2]); 4] = [
        (&LONG4, [("4k", "4k"), ("thp", "thp")]),
        (&LONG5, [("thp", "4k"), ("4k", "2m")]),
        (&PAE, [("4k", "4k"), ("2m", "4k")]),
        (&LEGACY32, [("4k", "4k"), ("4m", "2m")]),
    ];
    let cases = modes.into_iter().flat_map(|(mode, pages)| pages.map(|p| (mode, p)));
    for (i, (mode, (pages, host_pages))) in cases.enumerate() {
        for (vcpus, pcids) in [(1, false), (1, true), (4, false), (4, true)] {
            let seed = 10 * i as u64 + u64::from(vcpus) + u64::from(pcids);
            let life = Life { seed, events: 200, vcpus, accesses_percent: 60, mode, pages, pcids };
            let profile = with_tiny_tlbs(plain(Profile::load("zen2").unwrap()));
            let vcpus = usize::from(vcpus);
            let setup = Setup { guest_mode: mode, host_pages, vcpus, ..Setup::new(profile) };
            let mut m = swift(&setup, wrong);
            let mut r = SplitMix64::new(seed);
            let mut used: Vec<Gpa> = Vec::new();
            for events in steps(&life.live()) {
                if m.run(&events).is_err() {
                    silent = false;
                    break;
                }
                used.extend(&events.gpas);
                if !used.is_empty() && r.below(30) == 0 {
                    m.discard(used[r.below(used.len() as u64) as usize]).unwrap();
                }
            }
            let verdict = m.verdict().unwrap();
            if !wrong {
                assert_eq!(verdict.told, Vec::<String>::new(), "life {seed} of {}", mode.name);
            }
            silent &= verdict.violations == 0;
            sum.exits.iter_mut().zip(m.counters().exits).for_each(|(s, e)| *s += e);
            sum.sync_present += m.counters().sync_present;
        }
    }
    (silent, sum)
}

#[test]
fn the_referee_approves_of_random_lives_and_not_of_a_vmm_that_does_not_compare() {
    let (silent, c) = lives(false);
    assert!(silent);
    let of = |r: ExitReason| c.exits[r as usize];
    assert_eq!((of(ExitReason::TableWrite), of(ExitReason::TableUnsync)), (0, 0));
    assert!(of(ExitReason::Invalidation) > 100 && c.sync_present > 1_000);
    assert!(of(ExitReason::DirtyFault) > 10 && of(ExitReason::HiddenFault) > 1_000);
    assert!(!lives(true).0, "stale entries stayed");
}
