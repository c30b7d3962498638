//! Who waits for pages that the host reads, and who runs meanwhile.

use nestwalk_fleet::replacement::Kind;
use nestwalk_fleet::timeline::{Timeline, Waits, Who};
use nestwalk_fleet::{self as fleet, FleetOutcome, FleetPlan, SwapCounts, Vm};
use nestwalk_hw::Profile;
use nestwalk_mm::PagePolicy;
use nestwalk_sim::{ExitReason, MachineSpec, Plan};
use nestwalk_source::{Multiplex, PatternSpec};
use nestwalk_types::{
    Batch, Control, OsWork, ProcessId, Source, SourceError, SourceInfo, SplitMix64,
};
use std::collections::HashMap;
use std::sync::atomic::AtomicBool;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What one does next in a stream.
#[derive(Clone, Copy, Debug)]
enum Does {
    Work(u64),
    /// How long, and whether all of the VM waits.
    Wait(u64, bool),
}

/// A piece of a stream as the oracle has it.
struct Piece {
    who: Who,
    items: Vec<Does>,
    until: u64,
    overtaken: bool,
}

/// The schedule of a core, unit of time by unit of time: who ran in each, and what VMs waited.
struct Oracle {
    pieces: Vec<Piece>,
    stopped: [u64; 3],
    ran: Vec<Option<Who>>,
    waits: [Waits; 3],
}

impl Oracle {
    fn of(stream: &[(Who, Does)]) -> Self {
        let mut pieces: Vec<Piece> = Vec::new();
        for &(who, does) in stream {
            match pieces.last_mut().filter(|p| p.who == who) {
                Some(piece) => piece.items.push(does),
                None => {
                    pieces.push(Piece { who, items: vec![does], until: 0, overtaken: false });
                }
            }
        }
        let (stopped, waits) = ([0; 3], [Waits::default(); 3]);
        let mut oracle = Self { pieces, stopped, ran: Vec::new(), waits };
        while oracle.pieces.iter().any(|p| !oracle.is_done(p)) {
            oracle.unit();
        }
        oracle
    }

    fn now(&self) -> u64 {
        self.ran.len() as u64
    }

    fn is_done(&self, piece: &Piece) -> bool {
        piece.items.is_empty() && piece.until <= self.now()
    }

    fn ready(&self, piece: &Piece) -> u64 {
        match piece.items.is_empty() {
            true => piece.until,
            false => piece.until.max(self.stopped[piece.who.0 as usize]),
        }
    }

    /// Nothing before it is undone whose owner has another piece up to it.
    fn may(&self, at: usize) -> bool {
        (0..at).all(|i| {
            let owner = self.pieces[i].who;
            self.is_done(&self.pieces[i])
                || self.pieces[i + 1..=at].iter().all(|between| between.who != owner)
        })
    }

    fn unit(&mut self) {
        let able = |o: &Self, at: usize| {
            let piece = &o.pieces[at];
            !piece.items.is_empty() && o.ready(piece) <= o.now() && o.may(at)
        };
        // What begins to wait takes no time.
        let runs = loop {
            let first = (0..self.pieces.len()).find(|at| able(self, *at));
            let now = self.now();
            let Some(at) = first else { break None };
            match self.pieces[at].items[0] {
                Does::Wait(units, all) => {
                    self.pieces[at].items.remove(0);
                    self.pieces[at].until = now + units;
                    self.pieces[at].overtaken = false;
                    if all {
                        self.stopped[self.pieces[at].who.0 as usize] = now + units;
                    }
                }
                Does::Work(0) => drop(self.pieces[at].items.remove(0)),
                Does::Work(units) => {
                    self.pieces[at].items[0] = Does::Work(units - 1);
                    break Some(at);
                }
            }
        };
        if runs.is_none() && self.pieces.iter().all(|p| self.is_done(p)) {
            return;
        }
        let runner = runs.map(|at| self.pieces[at].who);
        let begun = |o: &Self, at: usize| o.may(at) && o.ready(&o.pieces[at]) > o.now();
        let waiting: Vec<usize> = (0..self.pieces.len()).filter(|at| begun(self, *at)).collect();
        for vm in 0..3u32 {
            let own = runner.is_some_and(|who| who.0 == vm);
            let them = || waiting.iter().copied().filter(|at| self.pieces[*at].who.0 == vm);
            let asleep = them().filter(|at| self.pieces[*at].until > self.now());
            let fresh: Vec<usize> = asleep.filter(|at| !self.pieces[*at].overtaken).collect();
            let waits = &mut self.waits[vm as usize];
            if them_any(&waiting, &self.pieces, vm) {
                match runner {
                    Some(_) if own => waits.own_ns += 1.0,
                    Some(_) => waits.neighbours_ns += 1.0,
                    None => waits.idle_ns += 1.0,
                }
            }
            if own {
                waits.overtaken += fresh.len() as u64;
                fresh.into_iter().for_each(|at| self.pieces[at].overtaken = true);
            }
        }
        self.ran.push(runner);
    }
}

fn them_any(waiting: &[usize], pieces: &[Piece], vm: u32) -> bool {
    waiting.iter().any(|at| pieces[*at].who.0 == vm)
}

fn stream(random: &mut SplitMix64) -> Vec<(Who, Does)> {
    let mut all = Vec::new();
    let told = random.below(4) > 0;
    for _ in 0..2 + random.below(12) {
        let vm = random.below(3) as u32;
        let who = (vm, if told { random.below(3) } else { 0 });
        for _ in 0..1 + random.below(4) {
            all.push((who, Does::Work(1 + random.below(6))));
            if random.below(2) == 0 {
                let does = Does::Wait(1 + random.below(12), random.below(4) == 0);
                all.push((who, does));
            }
        }
    }
    all
}

fn timeline(stream: &[(Who, Does)]) -> Timeline {
    let mut timeline = Timeline::default();
    timeline.listen();
    for &(who, does) in stream {
        match does {
            Does::Work(units) => timeline.work(who, units as f64),
            Does::Wait(units, all) => timeline.wait(who, units as f64, all),
        }
    }
    timeline.finish();
    timeline
}

#[test]
fn a_core_does_what_an_oracle_says_unit_by_unit() {
    let mut random = SplitMix64::new(5);
    let mut overtaken = 0;
    for round in 0..3000 {
        let stream = stream(&mut random);
        let (oracle, timeline) = (Oracle::of(&stream), timeline(&stream));
        let mut ran = vec![None; timeline.now() as usize];
        for &(who, from, to) in timeline.heard() {
            (from as usize..to as usize).for_each(|at| ran[at] = Some(who));
        }
        assert_eq!(ran, oracle.ran, "{round}: {stream:?}");
        for vm in 0..3 {
            let waits = oracle.waits[vm as usize];
            assert_eq!(timeline.waits(vm), waits, "{round}, VM {vm}: {stream:?}");
            overtaken += waits.overtaken;
        }
    }
    assert!(overtaken > 1000, "{overtaken}");
}

/// Nobody works between his fault and "page ready", and no work is lost.
#[test]
fn nobody_goes_on_before_the_page_is_there() {
    let mut random = SplitMix64::new(6);
    for _ in 0..500 {
        let stream = stream(&mut random);
        let timeline = timeline(&stream);
        let mut seen: HashMap<Who, Vec<(f64, f64)>> = HashMap::default();
        for &(who, from, to) in timeline.heard() {
            seen.entry(who).or_default().push((from, to));
        }
        for (who, times) in seen {
            let own: Vec<Does> = stream.iter().filter(|s| s.0 == who).map(|s| s.1).collect();
            let (mut done, mut after) = (0.0, Vec::new());
            for does in own {
                match does {
                    Does::Work(units) => done += units as f64,
                    Does::Wait(units, _) => after.push((done, units as f64)),
                }
            }
            let all: f64 = times.iter().map(|t| t.1 - t.0).sum();
            assert!(close(all, done), "no work is lost: {all} of {done}");
            for (before, units) in after.into_iter().filter(|a| a.0 > 0.0 && a.0 < done) {
                // The moment at which so much was done, and the next work.
                let (mut sum, mut faulted, mut next) = (0.0, 0.0, f64::INFINITY);
                for (from, to) in &times {
                    if sum < before && sum + to - from >= before {
                        faulted = from + before - sum;
                        if sum + to - from > before {
                            next = faulted;
                        }
                    } else if sum >= before {
                        next = next.min(*from);
                    }
                    sum += to - from;
                }
                assert!(next >= faulted + units, "{who:?}: {faulted} + {units}, on at {next}");
            }
        }
    }
}

/// A wait of 10 beside work of 4 of another process, and beside that of another VM.
#[test]
fn closed_forms() {
    let (a, b, other) = ((0, 1), (0, 2), (1, 1));
    let of = |second: Who, back: Who| {
        let stream = [(a, Does::Wait(10, false)), (second, Does::Work(4)), (back, Does::Work(1))];
        let timeline = timeline(&stream);
        let w = timeline.waits(0);
        (timeline.now(), w.own_ns, w.neighbours_ns, w.idle_ns, w.overtaken)
    };
    assert_eq!(of(b, a), (11.0, 4.0, 0.0, 6.0, 1));
    assert_eq!(of(other, a), (11.0, 0.0, 4.0, 6.0, 0));
    assert_eq!(of(a, a), (15.0, 0.0, 0.0, 10.0, 0));
    // A wait of the whole VM stops its other processes, not other VMs.
    let whole = |second| {
        timeline(&[(a, Does::Wait(10, true)), (second, Does::Work(4)), (a, Does::Work(1))]).now()
    };
    assert_eq!((whole(b), whole(other)), (15.0, 11.0));
}

fn vm(name: &str, processes: u64, async_faults: bool) -> Vm {
    let base = PagePolicy::by_name("4k").unwrap();
    let machine = if name == "a" { "nested" } else { "shadow" };
    let profile = Profile::load("cascade-lake-6252").unwrap();
    let machines = MachineSpec::parse_list(machine, base).unwrap();
    let source = |seed| -> Box<dyn Source> {
        let footprint = 24 * MIB / processes;
        let base =
            PatternSpec { footprint, accesses: 60_000 / processes, seed, ..PatternSpec::default() };
        Box::new(PatternSpec::parse("zipf:theta=0.8", &base).unwrap().source())
    };
    let source: Box<dyn Source> = match processes {
        1 => source(1),
        n => Box::new(Multiplex::new((0..n).map(source).collect(), 1, 2_000)),
    };
    Vm {
        name: name.into(),
        plan: Plan { verify: true, pcids: true, ..Plan::new(machines, profile, (GIB, 3 * GIB)) },
        source,
        pinned: None,
        async_faults,
        reporting: false,
        balloon: false,
    }
}

fn run(vms: Vec<Vm>) -> FleetOutcome {
    let outcome = run_with(33 + 12 + 12 * vms.len() as u64, vms);
    for vm in &outcome.vms {
        let SwapCounts { swapped_in, waited_ns, halted_ns, idle_ns, .. } = vm.swap;
        assert!(swapped_in > 500 && idle_ns <= halted_ns * (1.0 + 1e-12), "{:?}", vm.swap);
        assert!(halted_ns <= waited_ns * (1.0 + 1e-9), "{:?}", vm.swap);
    }
    outcome
}

/// On a host of so many MiB.
fn run_with(mib: u64, vms: Vec<Vm>) -> FleetOutcome {
    let fleet = FleetPlan {
        host_bytes: Some(mib * MIB),
        replacement: Kind::Clock,
        apart: false,
        turn: 20_000,
        ..FleetPlan::default()
    };
    let outcome = fleet::run(&fleet, vms, &AtomicBool::new(false), &mut |_| {}).unwrap();
    assert!(outcome.error.is_none(), "{}", outcome.error.unwrap());
    for vm in &outcome.vms {
        assert_eq!(vm.together.referee.as_ref().unwrap().violations, 0);
    }
    outcome
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * a.abs().max(b.abs())
}

/// With several processes a guest that is told waits less; with one it cannot. What is done for
/// the same stream is the same but for what telling costs.
#[test]
fn a_guest_that_is_told_waits_less_if_it_has_something_to_do() {
    for processes in [1, 4] {
        let [told, not] = [true, false].map(|on| run(vec![vm("a", processes, on)]).vms.remove(0));
        assert_eq!(not.swap.async_faults, 0);
        assert!(close(not.swap.halted_ns, not.swap.waited_ns), "{:?}", not.swap);
        assert!(told.swap.async_faults > 100, "{:?}", told.swap);
        let exits = |reason: ExitReason| told.together.counters.exits[reason as usize];
        let waits = told.swap.async_faults;
        assert_eq!(exits(ExitReason::PageReadyAck), waits);
        assert_eq!(exits(ExitReason::PageReady), told.swap.overtaken);
        assert_eq!(exits(ExitReason::Halted), waits - told.swap.overtaken);
        let (a, b) = (&told.together.counters, &not.together.counters);
        assert_eq!((a.instructions, a.accesses), (b.instructions, b.accesses));
        assert_eq!(a.cr3_loads - b.cr3_loads, 2 * told.swap.overtaken);
        let switch = OsWork::ContextSwitch.index();
        assert_eq!(a.os_work[switch] - b.os_work[switch], 2 * waits);
        assert_eq!(told.alone.counters, not.alone.counters, "nothing of it without a neighbour");
        if processes == 1 {
            assert_eq!(told.swap.overtaken, 0);
            assert!(close(told.swap.halted_ns, not.swap.halted_ns));
            assert_eq!(told.swap.swapped_in, not.swap.swapped_in);
        } else {
            assert!(told.swap.overtaken > 100, "{:?}", told.swap);
            assert!(told.swap.halted_ns < 0.99 * not.swap.halted_ns, "{:?}", told.swap);
            assert!(told.swap.hidden_ns > 0.0);
        }
    }
}

/// A VM that waits leaves the core to others, told or not.
#[test]
fn another_vm_runs_while_one_waits() {
    let alone = run(vec![vm("a", 1, false)]);
    assert!(close(alone.vms[0].swap.idle_ns, alone.vms[0].swap.waited_ns));
    for told in [true, false] {
        let outcome = run(vec![vm("a", 1, told), vm("b", 1, told)]);
        for vm in &outcome.vms {
            let SwapCounts { halted_ns, waited_ns, idle_ns, .. } = vm.swap;
            assert!(close(halted_ns, waited_ns), "{:?}", vm.swap);
            assert!(idle_ns > 0.0 && idle_ns < 0.999 * halted_ns, "{:?}", vm.swap);
        }
    }
}

/// A process that ends.
struct Mortal {
    inner: Box<dyn Source>,
    ended: bool,
}

impl Source for Mortal {
    fn info(&self) -> SourceInfo {
        self.inner.info()
    }
    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        let more = self.inner.next_batch(batch)?;
        if more || std::mem::replace(&mut self.ended, true) {
            return Ok(more);
        }
        batch.controls.push((0, Control::Exit { process: ProcessId(1) }));
        Ok(true)
    }
}

/// A guest that says what it has free needs no swap for it.
#[test]
fn free_memory_that_is_reported_is_not_swapped() {
    let source = |text, footprint, accesses| -> Box<dyn Source> {
        let base = PatternSpec { footprint, accesses, ..PatternSpec::default() };
        Box::new(PatternSpec::parse(text, &base).unwrap().source())
    };
    let fleet = |reporting| {
        let mut mortal = vm("a", 1, true);
        let first = Mortal { inner: source("uniform", 24 * MIB, 60_000), ended: false };
        let parts = vec![Box::new(first), source("uniform", 4 * MIB, 600_000)];
        (mortal.source, mortal.reporting) = (Box::new(Multiplex::new(parts, 1, 2_000)), reporting);
        let mut other = vm("b", 1, true);
        other.source = source("uniform", 24 * MIB, 300_000);
        run_with(80, vec![mortal, other])
    };
    let (with, without) = (fleet(true), fleet(false));
    let swap = |outcome: &FleetOutcome| outcome.vms.iter().map(|v| v.swap).collect::<Vec<_>>();
    let sum = |outcome, of: fn(&SwapCounts) -> u64| swap(outcome).iter().map(of).sum::<u64>();
    assert_eq!(sum(&without, |s| s.reported), 0);
    assert!(sum(&with, |s| s.reported) > 512, "{:?}", swap(&with));
    assert_eq!(sum(&with, |s| s.lost), 0);
    let (less, more) = (sum(&with, |s| s.written), sum(&without, |s| s.written));
    assert!(less < more, "{less} and {more} written: {:?} {:?}", swap(&with), swap(&without));
    let exits = with.vms[0].together.counters.exits[ExitReason::FreePages as usize];
    assert!(exits > 0, "requests");
    assert_eq!(with.vms[0].alone.counters, without.vms[0].alone.counters);
}
