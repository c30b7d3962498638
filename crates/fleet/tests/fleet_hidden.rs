//! Filtered recordings in a fleet: what a host makes a VM forget, its recording does not show, and what
//! is touched again for it.

use crate::common;

use common::fleets::{MIB, pattern, run_well};
use nestwalk_fleet::replacement::Kind;
use nestwalk_fleet::{FleetOutcome, FleetPlan, Vm, VmOutcome};
use nestwalk_hw::Profile;
use nestwalk_mm::{GuestConfig, ModelledGuest, PagePolicy};
use nestwalk_sim::{MachineSpec, Plan};
use nestwalk_tables::LONG4;
use nestwalk_types::{
    Batch, Control, Filter, FilterArray, GuestBatch, GuestInfo, Room, Run, Source, SourceError,
    SourceInfo,
};

const MEMORY: u64 = 1 << 30;
/// Records after which a recorder hands its block on, and all that it counts in ends.
const BLOCK: usize = 8192;
const FILTER: Filter = {
    let one = FilterArray { sets: 1, ways: 1 };
    Filter { data: FilterArray { sets: 16, ways: 4 }, ..Filter { fetch: one, ..Filter::RUNS } }
};

enum Item {
    Run(Run),
    Control(Control),
}

struct Entry {
    page: u64,
    home: usize,
    store: bool,
    rank: usize,
}

/// A recorder with a filter of 16 sets of 4 ways, as [`Filter`] says what that is.
#[derive(Default)]
struct Recorder {
    items: Vec<Item>,
    /// Records of the block, and where it begins.
    block: (usize, usize),
    sets: [Vec<Entry>; 16],
    instructions: u16,
}

impl Recorder {
    fn run(&mut self, at: usize) -> &mut Run {
        match &mut self.items[at] {
            Item::Run(run) => run,
            Item::Control(_) => panic!("{at} is no run"),
        }
    }

    fn access(&mut self, run: &Run) {
        assert_eq!(run.count, 1);
        self.instructions += run.instructions;
        let (page, store) = (run.gva.value() >> 12, run.flags.is_store());
        let set = page as usize % 16;
        let way = self.sets[set].iter().position(|e| e.page == page);
        // A record carries so many instructions at most.
        if let Some(way) = way.filter(|_| self.instructions < 40_000) {
            let Entry { home, store: stores, .. } = self.sets[set][way];
            if home >= self.block.1 && (stores || !store) && self.run(home).count < u16::MAX {
                let counted = self.run(home);
                counted.count += 1;
                counted.lines |= run.lines;
                self.sets[set][..=way].rotate_right(1);
                return;
            }
        }
        if self.block.0 >= BLOCK {
            (0..16).for_each(|set| self.announce(set));
            self.block = (0, self.items.len());
        }
        self.announce(set);
        let instructions = std::mem::take(&mut self.instructions);
        let home = self.push(Run { instructions, ..*run });
        let entries = &mut self.sets[set];
        entries.retain(|e| e.page != page);
        entries.insert(0, Entry { page, home, store, rank: 0 });
        entries.truncate(4);
        entries.iter_mut().enumerate().for_each(|(i, e)| e.rank = i);
    }

    fn push(&mut self, run: Run) -> usize {
        self.items.push(Item::Run(run));
        self.block.0 += 1;
        self.items.len() - 1
    }

    /// Pages whose order of use has changed are shown again.
    fn announce(&mut self, set: usize) {
        let mut entries = std::mem::take(&mut self.sets[set]);
        let mut changed = entries.len().saturating_sub(1);
        while changed > 0 && entries[changed - 1].rank < entries[changed].rank {
            changed -= 1;
        }
        let begins = self.block.1;
        for entry in entries[..changed].iter_mut().rev().filter(|e| e.home >= begins) {
            let counted = self.run(entry.home);
            counted.count -= u16::from(counted.count > 1);
            let lines = 1 << (counted.gva.value() >> 6 & 63);
            let again = Run { count: 1, instructions: 0, lines, ..*counted };
            entry.home = self.push(again);
        }
        entries.iter_mut().enumerate().for_each(|(i, e)| e.rank = i);
        self.sets[set] = entries;
    }

    fn control(&mut self, control: Control) {
        if !matches!(control, Control::OsWork { .. } | Control::RegionOfInterest) {
            (0..16).for_each(|set| self.announce(set));
            self.sets.iter_mut().for_each(Vec::clear);
        }
        self.items.push(Item::Control(control));
    }
}

/// A recorded guest's stream.
#[derive(Clone)]
struct Recording {
    name: &'static str,
    batches: Vec<Batch>,
    next: usize,
    filter: Filter,
}

impl Source for Recording {
    fn info(&self) -> SourceInfo {
        let (paging, filter) = (LONG4.name.into(), self.filter);
        let guest = Some(GuestInfo { memory_bytes: MEMORY, paging, vcpus: 1, filter });
        SourceInfo { name: self.name.into(), guest, ..SourceInfo::default() }
    }
    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        let next = self.batches.get(self.next).cloned();
        self.next += 1;
        *batch = next.clone().unwrap_or_default();
        Ok(next.is_some())
    }
}

fn batches(items: Vec<Item>) -> Vec<Batch> {
    let mut all = vec![Batch::default()];
    for item in items {
        if all.last().unwrap().runs.len() >= 4096 {
            all.push(Batch::default());
        }
        let last = all.last_mut().unwrap();
        match item {
            Item::Run(run) => last.runs.push(run),
            Item::Control(control) => last.controls.push((last.runs.len() as u32, control)),
        }
    }
    all
}

/// A program's life as it was, and as a recorder with a filter has it.
fn record(name: &'static str, mut source: Box<dyn Source>) -> [Recording; 2] {
    let mut guest = ModelledGuest::new(GuestConfig::new(&LONG4, MEMORY)).unwrap();
    let (mut all, mut filtered) = (Vec::new(), Recorder::default());
    let (mut batch, mut out) = (Batch::default(), GuestBatch::default());
    loop {
        assert!(source.set_room(Room::SINGLE));
        if !source.next_batch(&mut batch).unwrap() {
            break;
        }
        guest.process(&batch, &mut out).unwrap();
        for (controls, runs) in out.batch.segments() {
            for (_, control) in controls {
                all.push(Item::Control(control.clone()));
                filtered.control(control.clone());
            }
            for run in &out.batch.runs[runs] {
                all.push(Item::Run(*run));
                filtered.access(run);
            }
        }
    }
    let recording = |items, filter| Recording { name, batches: batches(items), next: 0, filter };
    [recording(all, Filter::RUNS), recording(filtered.items, FILTER)]
}

fn vm(machine: &str, recording: &Recording) -> Vm {
    let machines = MachineSpec::parse_list(&format!("{machine}:observed+4k"), PagePolicy::Base);
    let profile = Profile::load("cascade-lake-6252").unwrap();
    let plan = Plan::new(machines.unwrap(), profile, (MEMORY, 3 * MEMORY));
    Vm {
        name: recording.name.into(),
        plan: Plan { verify: true, ..plan },
        source: Box::new(recording.clone()),
        pinned: None,
        async_faults: false,
        reporting: false,
        balloon: false,
    }
}

fn fleet(plan: &FleetPlan, machine: &str, recordings: [&Recording; 2]) -> FleetOutcome {
    run_well(plan, recordings.map(|r| vm(machine, r)).into())
}

/// How far two numbers are apart, in percent of the second.
fn apart(one: u64, other: u64) -> f64 {
    100.0 * (one as f64 - other as f64) / other as f64
}

type Count = fn(&VmOutcome) -> u64;
const COUNTS: [(&str, Count); 5] = [
    ("first-level misses", |vm| vm.together.counters.l1_tlb_misses),
    ("walks", |vm| vm.together.counters.l2_tlb_misses),
    ("pages looked at", |vm| vm.together.counters.host_pages_scanned),
    ("pages taken back", |vm| vm.swap.taken_back),
    ("pages that came back", |vm| vm.swap.swapped_in),
];

/// A program that keeps to 48 pages, three in a set of the filter, which shows next to nothing of it,
/// beside one that takes its memory away: what the host does to the first is what it does to the
/// unfiltered recording, nearly, and far less if nobody knows that anything is hidden.
#[test]
fn what_a_recording_hides_counts_where_the_host_takes_translations() {
    let small = record("small", pattern("uniform", 48 << 12, 600_000));
    let large = record("large", pattern("zipf:theta=0.9", 8 * MIB, 200_000));
    let records = |r: &Recording| r.batches.iter().map(|b| b.runs.len()).sum::<usize>();
    assert!(records(&small[1]) * 100 < records(&small[0]));
    let unknown = |r: &Recording| Recording { filter: Filter::RUNS, ..r.clone() };
    let base = || FleetPlan { turn: 100_000, apart: false, ..FleetPlan::default() };
    let untagged = FleetPlan { vpids: false, ..base() };
    let (replacement, host_bytes) = (Kind::Clock, Some(9 * MIB));
    let scarce = FleetPlan { replacement, host_bytes, ..base() };
    for (machine, plan) in [("nested", &untagged), ("nested", &scarce), ("shadow", &scarce)] {
        let all = fleet(plan, machine, [&small[0], &large[0]]);
        let filtered = fleet(plan, machine, [&small[1], &large[1]]);
        let blind = fleet(plan, machine, [&unknown(&small[1]), &unknown(&large[1])]);
        assert!(filtered.vms[0].shown_again > Some(100));
        assert_eq!(all.vms[0].shown_again, None);
        for (name, count) in COUNTS {
            let of = |outcome: &FleetOutcome, vm: usize| count(&outcome.vms[vm]);
            let apart = |outcome, vm| apart(of(outcome, vm), of(&all, vm));
            let (told, untold) = (apart(&filtered, 0), apart(&blind, 0));
            if of(&all, 0) == 0 {
                assert!(plan.host_bytes.is_none(), "{machine}: no {name}");
                continue;
            }
            assert!(told.abs() < 12.0 && untold < -50.0, "{machine}, {name}: {told} {untold}");
            assert!(apart(&filtered, 1).abs() < 1.0, "{machine}, {name}");
        }
    }
}
