//! A VM in a VM: world switches of a page fault by the published formulas, walks, random lives with
//! memory taken back, and tables that are wrong on purpose.

use crate::common;

use common::kernel::{DATA, cleared, write_fault};
use common::lives::Life;
use common::machines::{Probe, Setup, exits, exits_by_name};
use common::{Script, approve, bare_profile};
use nestwalk_hw::{Profile, Translation};
use nestwalk_sim::hardware::Request;
use nestwalk_sim::hardware::walk::{Fault, WalkWatch};
use nestwalk_sim::hypervisor::vm_in_vm::{Kind, VmInVm};
use nestwalk_sim::scheme::{Event, Handled, MachineError, Platform, Processor, Scheme, Software};
use nestwalk_sim::{Counters, Dimension, DynMachine, ExitReason, Machine};
use nestwalk_tables::{LONG4, LONG5};
use nestwalk_types::{Gpa, PageSize, SplitMix64};

const S4K: PageSize = PageSize::SIZE_4K;
const KINDS: [Kind; 3] = [Kind::EptOnEpt, Kind::ShadowOnEpt, Kind::Pvm];

fn setup() -> Setup {
    Setup::new(Profile::load("cascade-lake-6252").unwrap())
}

fn machine(setup: &Setup, kind: Kind, variant: &str) -> Machine<VmInVm> {
    let (scheme, build) = setup.vm_in_vm(kind, variant);
    Machine::new(scheme, build).unwrap()
}

/// An address by its index in each table, root first.
fn address(indices: [u64; 4]) -> u64 {
    indices.into_iter().fold(0, |gva, index| gva << 9 | index) << 12
}

/// A guest whose four tables for `address([1, 1, 1, 1])` are shadowed and in step, with a frame that the
/// kernel has written to.
fn begun(kind: Kind, variant: &str) -> (Machine<VmInVm>, Script) {
    let mut m = machine(&setup(), kind, variant);
    let mut s = Script::new(&LONG4);
    let there = address([1, 1, 1, 1]);
    cleared(&mut s, DATA);
    cleared(&mut s, DATA + 0x1000);
    s.map_used(there, DATA, S4K);
    s.store(there);
    m.count(&s.take());
    (m, s)
}

/// The guest's kernel answers a fault by `n` stores to tables that are shadowed: the last `n` entries on
/// the way to a new address, all but the last of which lead to a table that is there already.
fn stores(s: &mut Script, n: usize) -> u64 {
    let mut indices = [1; 4];
    let there = address(indices);
    indices[4 - n..].fill(200);
    let gva = address(indices);
    write_fault(s, gva, false);
    // Tables of the other address, root first, and the entries that lead on from each.
    let entries: Vec<_> = (1..=4).rev().map(|level| s.entry(there, level)).collect();
    for (level, (at, entry)) in entries.iter().enumerate().skip(4 - n) {
        let at = Gpa::new((at.value() & !0xfff) | indices[level] << 3);
        let value = if level == 3 { entry.0 & 0xfff | (DATA + 0x1000) } else { entry.0 };
        s.write(at, value);
    }
    gva
}

/// 4n + 8 world switches for a fault whose answer stores n entries to protected tables, and 2n + 4
/// under PVM: PVM (SOSP 2023).
#[test]
fn a_fault_on_shadow_tables_takes_as_many_world_switches_as_published() {
    for n in 1..=4 {
        for (kind, per_store, fixed) in [(Kind::ShadowOnEpt, 4, 8), (Kind::Pvm, 2, 4)] {
            let (mut m, mut s) = begun(kind, "lived=long");
            let gva = stores(&mut s, n);
            s.store(gva);
            let c = m.count(&s.take());
            approve(&m);
            let n = n as u64;
            assert_eq!(c.world_switches(), per_store * n + fixed, "{kind:?} {n}");
            assert_eq!(exits(&c, ExitReason::TrueFault), 1);
            assert_eq!(exits(&c, ExitReason::TableUnsync), 1, "the store to the leaf table");
            assert_eq!(exits(&c, ExitReason::TableWrite), n - 1);
            let pvm = kind == Kind::Pvm;
            assert_eq!(exits(&c, ExitReason::HiddenFault), u64::from(!pvm));
            assert_eq!(exits(&c, ExitReason::FaultReturn), u64::from(pvm));
            let all = c.exits_total();
            assert_eq!(
                (c.reflected_exits, c.switcher_exits),
                if pvm { (0, all) } else { (all, 0) }
            );
        }
    }
}

/// Without what PVM adds, the access faults once more.
#[test]
fn without_prefault_the_access_faults_once_more() {
    let (mut m, mut s) = begun(Kind::Pvm, "lived=long/prefault=off");
    let gva = stores(&mut s, 1);
    s.store(gva);
    let c = m.count(&s.take());
    approve(&m);
    assert_eq!(c.world_switches(), 2 + 4 + 2);
    let (mut m, mut s) = begun(Kind::Pvm, "lived=long");
    let gva = stores(&mut s, 1);
    s.store(gva);
    let with = m.count(&s.take());
    assert_eq!(c.faulted_walks, with.faulted_walks + 1);
    assert_eq!(c.shadow_fills, with.shadow_fills, "the entry is made all the same");
}

/// Exits to L0, entries of L2 by L1 among them.
fn to_l0(c: &Counters) -> u64 {
    2 * c.reflected_exits + (c.exits_total() - c.reflected_exits)
}

/// A page whose way through L1's nested tables lacks the last `n` entries: 2n + 6 switches, n + 3 of
/// them exits to L0. As KVM protects tables, a branch costs the store that links it.
#[test]
fn a_violation_of_nested_tables_takes_as_many_world_switches_as_published() {
    // The first page of all lacks all, the next one only its entry, and so on.
    let steps = [(4, DATA), (1, DATA + 0x1000), (2, DATA + 0x60_0000), (3, 0x1000_0000)];
    for (variant, per_step) in
        [("lived=long", [4, 1, 2, 3]), ("lived=long/protect=walked", [1, 1, 1, 1])]
    {
        let mut m = machine(&setup(), Kind::EptOnEpt, variant);
        for ((levels, gpa), n) in steps.into_iter().zip(per_step) {
            let mut s = Script::with_found_tables(&LONG4);
            cleared(&mut s, gpa);
            let c = m.count(&s.take());
            let what = format!("{variant}: {levels} levels, {n} stores");
            assert_eq!(c.world_switches(), 2 * n + 6, "{what}: {:?}", exits_by_name(&c));
            assert_eq!(to_l0(&c), n + 3, "{what}");
            assert_eq!(exits(&c, ExitReason::InnerTableStore), n, "{what}");
            let fills = (c.nested_fills, c.shadow_fills);
            assert_eq!(fills, (1, 1), "an entry of L1, and one of L0's combination");
        }
    }
}

/// L1's memory, used for the first time, is L0's to find: a violation for each page, L2's or a table's.
#[test]
fn memory_of_a_young_hypervisor_is_found_page_by_page() {
    let mut m = machine(&setup(), Kind::EptOnEpt, "");
    let mut s = Script::with_found_tables(&LONG4);
    cleared(&mut s, DATA);
    let c = m.count(&s.take());
    // The page, and L1's four tables.
    assert_eq!(exits(&c, ExitReason::OuterViolation), 5);
    assert_eq!(c.world_switches(), 2 * 4 + 6 + 2 * 5);
    // L1's kernel finds a page, and L0's finds the five.
    assert_eq!((c.host_faults, c.nested_fills, c.shadow_fills), (1 + 5, 1 + 5, 1));
}

/// `g * h + g + h`: shadow tables under nested ones are walked as guest tables are.
#[test]
fn cold_walks_have_24_references() {
    for (mode, levels) in [(&LONG4, 4), (&LONG5, 5)] {
        for kind in KINDS {
            let base =
                Setup { profile: bare_profile(), guest_mode: mode, host_mode: mode, ..setup() };
            let mut m = machine(&base, kind, "");
            let mut s = Script::new(mode);
            s.map_used(0x5000_0000, DATA, S4K);
            s.store(0x5000_0000);
            m.count(&s.take());
            m.forget();
            s.load(0x5000_0000);
            let c = m.count(&s.take());
            approve(&m);
            let first = if kind == Kind::EptOnEpt { Dimension::Guest } else { Dimension::Shadow };
            assert_eq!(c.references.of(first), levels, "{kind:?}");
            assert_eq!(c.references.total(), levels * levels + 2 * levels, "{kind:?}");
            assert_eq!(c.exits_total(), 0);
        }
    }
}

/// The VM's own hypervisor has pages of any size, the host below any other: the smaller one decides, and
/// the referee has nothing to say, whoever takes memory back.
#[test]
fn the_referee_is_content_with_random_lives() {
    let variants: [(Kind, &[&str]); 3] = [
        (
            Kind::EptOnEpt,
            &["", "reclaim=l1", "protect=walked/l1=2m", "lived=long/reclaim=l1/l1=thp"],
        ),
        (Kind::ShadowOnEpt, &["", "reclaim=l1/l1=2m", "lived=long/l1=thp"]),
        (Kind::Pvm, &["", "pcids=off/prefault=off", "locks=one/reclaim=l1", "l1=2m/lived=long"]),
    ];
    for (i, (kind, variants)) in variants.into_iter().enumerate() {
        for (j, variant) in variants.iter().enumerate() {
            for (vcpus, host_pages) in [(1, "4k"), (4, "thp")] {
                let base = Setup { vcpus: usize::from(vcpus), host_pages, ..setup() };
                let mut m = machine(&base, kind, variant);
                let seed = (i * 10 + j) as u64;
                let life = Life {
                    seed,
                    events: 500,
                    vcpus,
                    accesses_percent: 60,
                    mode: &LONG4,
                    pages: ["4k", "thp"][j % 2],
                    pcids: true,
                };
                live(&mut m, &life);
                approve(&m);
                assert!(m.counters().walks > 100);
            }
        }
    }
}

/// A life in which the host takes pages back all the time, those that are used lately among them.
fn live(m: &mut Machine<VmInVm>, life: &Life) {
    let mut r = SplitMix64::new(life.seed ^ 0xdead);
    for batch in life.live() {
        m.run(&batch).unwrap();
        for gpa in batch.gpas.iter().take(2) {
            if r.below(4) == 0 {
                m.discard(*gpa).unwrap();
            }
        }
    }
}

fn take_back<S: Scheme>(m: &mut Machine<S>, gpa: Gpa) {
    assert!(m.discard(gpa).unwrap());
}

/// What L1 does not hear of: L0 takes a page back and finds another; L1's tables stay as they are.
#[test]
fn memory_that_the_outer_hypervisor_takes_back_is_its_own_affair() {
    for kind in KINDS {
        for (variant, inner) in [("", 0), ("reclaim=l1", 1)] {
            let (mut m, mut s) = begun(kind, variant);
            take_back(&mut m, Gpa::new(DATA));
            s.load(address([1, 1, 1, 1]));
            let c = m.count(&s.take());
            approve(&m);
            let own = exits(&c, ExitReason::OuterViolation) + exits(&c, ExitReason::CombinedFill);
            assert!(own > 0, "{kind:?}");
            assert_eq!(c.reflected_exits + c.switcher_exits, inner, "{kind:?} {variant}");
        }
    }
}

/// Loads of CR3 that keep translations keep them where PCIDs are the processor's, and L0 hears of each
/// flush that L1 owes.
#[test]
fn pcids_of_the_guest_save_flushes() {
    let walks = |kind, variant| {
        let (mut m, mut s) = begun(kind, variant);
        let (first, second) = (s.root, s.add_root());
        s.load_cr3(second, 2, false);
        s.load_cr3(first, 1, true);
        s.load(address([1, 1, 1, 1]));
        let c = m.count(&s.take());
        approve(&m);
        (c.walks, exits(&c, ExitReason::InnerFlush))
    };
    assert_eq!(walks(Kind::Pvm, ""), (0, 0));
    assert_eq!(walks(Kind::Pvm, "pcids=off"), (1, 0));
    assert_eq!(walks(Kind::ShadowOnEpt, ""), (1, 1));
}

/// Wrong on purpose.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Wrong {
    Nothing,
    /// L1 unmaps a page, and what L0 combined of it stays, or L0's own entry for the memory of L1.
    OuterKept,
    /// Nobody hears that a page was taken back.
    Deaf,
}

struct Spoilt(VmInVm, Wrong);

impl Scheme for Spoilt {
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        self.0.walk(cpu, request, watch)
    }
}

impl Software for Spoilt {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        self.0.handle_fault(platform, request, fault)
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        match (self.1, event) {
            (Wrong::OuterKept, Event::HostChanged { at, .. }) => {
                self.0.unmap_in_l1(platform, at)?;
                platform.cpu.hardware.invalidate_nested_everywhere();
                Ok(())
            }
            (Wrong::Deaf, Event::HostChanged { .. }) => {
                platform.cpu.hardware.invalidate_nested_everywhere();
                Ok(())
            }
            (_, event) => self.0.on(platform, event),
        }
    }
}

#[test]
fn entries_that_outlive_their_page_are_found() {
    for kind in KINDS {
        for wrong in [Wrong::Nothing, Wrong::OuterKept, Wrong::Deaf] {
            let (scheme, build) = setup().vm_in_vm(kind, "reclaim=l1");
            let mut m = Machine::new(Spoilt(scheme, wrong), build).unwrap();
            let mut s = Script::new(&LONG4);
            for i in 0..4 {
                cleared(&mut s, DATA + (i << 12));
                s.map_used(i << 12, DATA + (i << 12), S4K);
                s.store(i << 12);
            }
            m.count(&s.take());
            take_back(&mut m, Gpa::new(DATA));
            take_back(&mut m, Gpa::new(DATA + 0x1000));
            // Their frames are given to others, so that they cannot be found again by chance.
            cleared(&mut s, DATA + 0x10_0000);
            s.load(0);
            s.load(0x1000);
            s.load(0x2000);
            m.run(&s.take()).unwrap();
            let told = m.verdict().unwrap().told;
            assert_eq!(told.is_empty(), wrong == Wrong::Nothing, "{kind:?} {wrong:?}: {told:?}");
        }
    }
}
