//! TLBs that put pages together which do not belong together. The referee must catch each, on lives that
//! the right ones pass.

use crate::common;

use common::Script;
use common::lives::Life;
use common::machines::Setup;
use nestwalk_hw::{Line, Profile, Shape, Translation};
use nestwalk_sim::assist::coalescing::CoalescingTlbs;
use nestwalk_sim::assist::coalescing::{Lines, machine_of};
use nestwalk_sim::hardware::tlbs::{Look, TlbFamily};
use nestwalk_sim::hardware::walk::{Fault, WalkWatch};
use nestwalk_sim::hardware::{Core, Request};
use nestwalk_sim::hypervisor::bare_metal::Native;
use nestwalk_sim::hypervisor::nested::Nested;
use nestwalk_sim::scheme::{Event, Handled, MachineError, Platform, Processor, Scheme, Software};
use nestwalk_sim::{Counters, DynMachine};
use nestwalk_tables::{LONG4, look_up};
use nestwalk_types::{
    Address, Gpa, GuestBatch, Gva, Invalidation, PageSize, Protection, Run, VcpuId,
};
use std::cell::Cell;
use std::collections::BTreeMap;

/// What is wrong with a coalescer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wrong {
    /// Nothing: the control.
    Nothing,
    /// Permissions of neighbours are not compared.
    Permissions,
    /// Neighbours in virtual memory are taken for neighbours in memory.
    Contiguity,
    /// Neighbours in the guest's memory are taken for neighbours in the host's.
    HostContiguity,
    /// INVLPG removes an entry only if its page was the one that was walked last.
    InvlpgOfOthers,
    /// Entries of neighbours that are not present are taken to continue the run.
    Presence,
}

struct Spoilt<S> {
    inner: S,
    wrong: Wrong,
    /// By vCPU and eight pages: the page whose walk was the last.
    walked: BTreeMap<(VcpuId, u64), u64>,
}

thread_local! {
    /// The line of the walk under way as the hardware that is wrong takes it.
    static SPOILT: Cell<Option<Line>> = const { Cell::new(None) };
}

/// TLBs that coalesce, by the spoilt line where there is one.
enum SpoiltTlbs {}

impl TlbFamily for SpoiltTlbs {
    type Watch = Lines;
    fn first(core: &mut Core, counters: &mut Counters, run: &Run, needs: u64) -> Look {
        CoalescingTlbs::first(core, counters, run, needs)
    }
    fn second(core: &mut Core, counters: &mut Counters, run: &Run, needs: u64) -> Look {
        CoalescingTlbs::second(core, counters, run, needs)
    }
    fn begin(watch: &mut Lines) {
        CoalescingTlbs::begin(watch);
    }
    fn fill(
        cpu: &mut Processor,
        request: &Request,
        found: Translation,
        watch: &Lines,
        fill_l2: impl FnOnce(&mut Processor),
    ) {
        let core = &mut cpu.hardware.cores[request.core()];
        match (SPOILT.take(), &mut core.coalesced) {
            (Some(line), Some(tlbs)) => {
                tlbs.line = line;
                tlbs.fill_walked(request.gva, core.asid, request.fetch, found);
            }
            _ => CoalescingTlbs::fill(cpu, request, found, watch, fill_l2),
        }
    }
    fn fill_first(core: &mut Core, request: &Request, found: Translation) {
        CoalescingTlbs::fill_first(core, request, found);
    }
}

/// Where the host has a guest-physical page.
trait Behind: Scheme {
    fn behind(&mut self, gpa: Gpa) -> Option<u64>;
}

impl Behind for Native {
    fn behind(&mut self, gpa: Gpa) -> Option<u64> {
        Some(gpa.page_number())
    }
}

impl Behind for Nested {
    fn behind(&mut self, gpa: Gpa) -> Option<u64> {
        let nested = self.mmu.tables();
        let leaf = look_up(nested.memory, nested.mode, nested.root, gpa).ok()?;
        Some(leaf.apply(gpa).page_number())
    }
}

impl<S: Behind> Scheme for Spoilt<S> {
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        let found = self.inner.walk(cpu, request, watch)?;
        if found.size() == PageSize::SIZE_4K {
            let page = request.gva.page_number();
            self.walked.insert((request.vcpu, page / 8), page);
            SPOILT.set(self.spoilt(cpu, request.vcpu, request.gva, found));
        }
        Ok(found)
    }
}

impl<S: Behind> Software for Spoilt<S> {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        self.inner.handle_fault(platform, request, fault)
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        if let Event::Invalidate { vcpu, what: Invalidation::Page(gva) } = event
            && self.wrong == Wrong::InvlpgOfOthers
            && self.walked.get(&(vcpu, gva.page_number() / 8)) != Some(&gva.page_number())
        {
            return Ok(());
        }
        self.inner.on(platform, event)
    }
}

impl<S: Behind> Spoilt<S> {
    /// What a hardware that leaves a check out would take for the line.
    fn spoilt(
        &mut self,
        cpu: &Processor,
        vcpu: VcpuId,
        gva: Gva,
        found: Translation,
    ) -> Option<Line> {
        let world = &cpu.world;
        let (root, own) = (world.root(vcpu), found.frame().page_number());
        let index = gva.page_number() as u8 & 7;
        let place = |i: u8| {
            let at = gva.offset_by((u64::from(i) << 12).wrapping_sub(u64::from(index) << 12));
            look_up(&world.guest, world.mode, root, at).ok().map(|leaf| leaf.apply(at))
        };
        let inner = &mut self.inner;
        let mut frame = |gpa: Gpa| inner.behind(gpa);
        let (here, mut line) = (place(index)?, Line::alone(index, own));
        for i in 0..8u8 {
            let step = u64::from(i).wrapping_sub(u64::from(index));
            match self.wrong {
                Wrong::Permissions => {
                    if let Some(gpa) = place(i)
                        && let Some(frame) = frame(gpa)
                    {
                        let in_step = here.page_number().wrapping_add(step) == gpa.page_number();
                        line.add(i, frame, in_step);
                    }
                }
                Wrong::Presence if place(i).is_some() => {
                    let gpa = place(i)?;
                    let in_step = here.page_number().wrapping_add(step) == gpa.page_number();
                    line.add(i, frame(gpa)?, in_step);
                }
                Wrong::Contiguity | Wrong::Presence => line.add(i, own.wrapping_add(step), true),
                Wrong::HostContiguity => {
                    let in_step =
                        |gpa: &Gpa| here.page_number().wrapping_add(step) == gpa.page_number();
                    if place(i).filter(in_step).is_some() {
                        line.add(i, own.wrapping_add(step), true);
                    }
                }
                Wrong::Nothing | Wrong::InvlpgOfOthers => return None,
            }
        }
        Some(line)
    }
}

const SHAPES: [Shape; 3] = {
    let sa = Shape {
        shift: 2,
        buffer: 0,
        longest: 1024,
        second_level: true,
        cluster_ways: 0,
        cluster_least: 0,
    };
    let fa = Shape { shift: 0, buffer: 8, ..sa };
    [sa, fa, Shape { shift: 0, cluster_ways: 3, cluster_least: 2, ..sa }]
};

fn machine(virtualized: bool, wrong: Wrong, shape: Shape) -> Box<dyn DynMachine> {
    let setup = Setup { vcpus: 3, ..Setup::new(Profile::load("cascade-lake-6252").unwrap()) };
    let mut build = setup.build("canary", virtualized);
    let walked = BTreeMap::new();
    if virtualized {
        let spoilt = Spoilt { inner: Nested::new(&mut build).unwrap(), wrong, walked };
        return Box::new(machine_of::<_, SpoiltTlbs>(spoilt, build, shape).unwrap());
    }
    let spoilt = Spoilt { inner: Native::default(), wrong, walked };
    Box::new(machine_of::<_, SpoiltTlbs>(spoilt, build, shape).unwrap())
}

fn violations(mut machine: Box<dyn DynMachine>, events: &[GuestBatch]) -> u64 {
    // A wrong machine may also stop: that is no verdict.
    let _ = events.iter().try_for_each(|e| machine.run(e));
    machine.verdict().unwrap().violations
}

fn caught(virtualized: bool, wrong: Wrong, shape: Shape) {
    for seed in 1..=24 {
        let life = Life {
            seed,
            events: 200,
            vcpus: 3,
            accesses_percent: 60,
            mode: &LONG4,
            pages: "4k",
            pcids: false,
        };
        let events = life.live();
        assert_eq!(violations(machine(virtualized, Wrong::Nothing, shape), &events), 0);
        if violations(machine(virtualized, wrong, shape), &events) > 0 {
            return;
        }
    }
    panic!("{wrong:?} got through, virtualized: {virtualized}, {shape:?}");
}

#[test]
fn a_random_life_gives_each_wrong_coalescer_away() {
    for shape in SHAPES {
        for virtualized in [false, true] {
            let clusters = shape.cluster_ways > 0;
            caught(virtualized, Wrong::Permissions, shape);
            caught(virtualized, Wrong::Presence, shape);
            if !clusters {
                caught(virtualized, Wrong::Contiguity, shape);
            }
            caught(virtualized, Wrong::InvlpgOfOthers, shape);
        }
    }
}

/// Pages in a row for the guest, which the host got to know in another order: only a machine that looks
/// at the host's frames is right.
#[test]
fn a_coalescer_of_the_guests_dimension_alone_is_caught() {
    let mut s = Script::new(&LONG4);
    for page in 0..8u64 {
        let gva = 0x4000_0000 + (page << 12);
        s.map(gva, 0x1000_0000 + (page << 12), PageSize::SIZE_4K, Protection::ALL, 0x60);
    }
    for page in [7, 2, 5, 0, 3, 6, 1, 4, 7, 2, 5, 0, 3, 6, 1, 4] {
        s.load(0x4000_0000 + (page << 12));
    }
    let events = [s.take()];
    for shape in SHAPES {
        assert_eq!(violations(machine(true, Wrong::Nothing, shape), &events), 0);
        assert!(violations(machine(true, Wrong::HostContiguity, shape), &events) > 0, "{shape:?}");
        // On bare metal it is the right thing.
        assert_eq!(violations(machine(false, Wrong::HostContiguity, shape), &events), 0);
    }
}
