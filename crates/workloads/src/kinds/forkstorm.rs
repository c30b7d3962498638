//! `forkstorm`: a parent that forks children, which execute another program and exit.
//!
//! Source: our own, in the manner of `make -j` and of the forkwait microbenchmark of Adams and
//! Agesen (ASPLOS 2006). The parent holds most of the footprint. For each job it reads and writes a
//! few words of its memory and forks; up to `jobs` children live at a time and take turns on the
//! one vCPU with the parent. A child writes some inherited pages (copy-on-write: one of its stack,
//! the others all over the heap), executes a program of its own (data, heap and stack are mapped
//! anew), writes its pages for the first time, reads them at random, and exits. Process numbers
//! grow.
//!
//! Real: the order of accesses and process-level controls. No values are kept. The parent's memory
//! is populated where asked for; a child's never is. Instructions are estimates of short loops.

use crate::Workload;
use crate::data::{hash2, permutation_key};
use crate::driver::{About, Driver, Kernel, PROCESS};
use crate::layout::{AddressSpace, Mapping, Region, pages_up};
use crate::recorder::{Recorder, Site};
use crate::spec::{Options, Setting, WorkloadError, WorkloadSpec};
use nestwalk_types::{Control, ProcessId, ShortPermutation, Source, SplitMix64, VcpuId, mix64};
use std::collections::VecDeque;

/// This workload's entry in the list.
pub(crate) const WORKLOAD: Workload = Workload {
    name: "forkstorm",
    summary: "fork, copy-on-write, exec, first touches, exit, over and over",
    footprint: 256 << 20,
    settings: &[
        Setting { name: "jobs", summary: "children alive at a time", default: 4, range: (1, 64) },
        Setting { name: "children", summary: "children", default: 1024, range: (1, 1 << 30) },
        Setting {
            name: "cow_pages",
            summary: "inherited pages that a child writes",
            default: 8,
            range: (1, 1024),
        },
    ],
    make,
};

const PARENT_LOAD: Site = Site::new(0, 12);
const PARENT_STORE: Site = Site::new(1, 4);
const COW_LOAD: Site = Site::new(2, 10);
const COW_STORE: Site = Site::new(3, 4);
const INIT_STORE: Site = Site::new(4, 4);
const RUN_LOAD: Site = Site::new(5, 8);

const PAGE: u64 = 4096;
/// Words of its memory that the parent reads and writes per job.
const PARENT_WORDS: u64 = 8;
/// Stores to each page of a child's program, one per eighth of it.
const STORES: u64 = 8;
/// Loads per page of a child's program, at random.
const LOADS: u64 = 4;
/// Pages that a child writes, or four times as many words that it reads, in one turn.
const TURN: u64 = 16;
/// A child's program, bytes: at most.
const PROGRAM_MAX: u64 = 2 << 20;

enum Stage {
    /// Writing inherited pages; how many have been written.
    Inherited(u64),
    /// Writing each page of its program.
    Init(u64),
    /// Reading words of its program.
    Run(u64),
}

struct Child {
    process: ProcessId,
    stage: Stage,
    random: SplitMix64,
}

struct ForkStorm {
    heap: Region,
    stack: Region,
    /// Where a child's program lies, and its pages one by one.
    program: Vec<Mapping>,
    program_pages: u64,
    /// Spreads the pages that a child writes: different ones.
    spread: ShortPermutation,
    cow_pages: u64,
    jobs: usize,
    children: u64,
    forked: u64,
    exited: u64,
    running: ProcessId,
    live: VecDeque<Child>,
    random: SplitMix64,
    seed: u64,
}

impl ForkStorm {
    fn new(
        (heap_bytes, program_bytes): (u64, u64),
        (jobs, children, cow_pages): (u64, u64, u64),
        seed: u64,
        space: &mut AddressSpace,
    ) -> Self {
        let heap = space.mmap(heap_bytes);
        let stack = space.stack();
        let mut own = AddressSpace::new();
        own.data(program_bytes / 4);
        own.heap(program_bytes / 4 * 3 - 8 * PAGE);
        own.stack();
        let program = own.mappings().to_vec();
        Self {
            heap,
            stack,
            program_pages: program.iter().map(|m| m.bytes / PAGE).sum(),
            program,
            spread: ShortPermutation::new(heap_bytes / PAGE, permutation_key(mix64(seed))),
            // The stack's page is one of them.
            cow_pages: cow_pages.min(heap_bytes / PAGE),
            jobs: jobs as usize,
            children,
            forked: 0,
            exited: 0,
            running: PROCESS,
            live: VecDeque::new(),
            random: SplitMix64::new(seed),
            seed,
        }
    }

    fn switch(&mut self, m: &mut Recorder, process: ProcessId) {
        if self.running != process {
            self.running = process;
            m.control(Control::Switch { vcpu: VcpuId(0), process });
        }
    }

    /// The parent prepares a job and forks.
    fn fork(&mut self, m: &mut Recorder) {
        self.switch(m, PROCESS);
        for _ in 0..PARENT_WORDS {
            let at = self.heap.at(self.random.below(self.heap.bytes / 8), 8);
            m.load(PARENT_LOAD, at, 8);
            m.store(PARENT_STORE, at, 8);
        }
        self.forked += 1;
        let process = ProcessId(self.forked as u32);
        m.control(Control::Fork { parent: PROCESS, child: process });
        let random = SplitMix64::new(hash2(self.forked, self.seed));
        self.live.push_back(Child { process, stage: Stage::Inherited(0), random });
    }

    /// Address of the `i`-th page of a child's program.
    fn program_page(&self, mut i: u64) -> u64 {
        for mapping in &self.program {
            let pages = mapping.bytes / PAGE;
            if i < pages {
                return mapping.start + i * PAGE;
            }
            i -= pages;
        }
        self.program[0].start
    }

    fn inherited(&self, m: &mut Recorder, child: &mut Child, written: u64) -> Stage {
        let to = (written + TURN).min(self.cow_pages);
        let first = u64::from(child.process.0) * self.cow_pages;
        for i in written..to {
            let page = if i == 0 {
                self.stack.base + self.stack.bytes - PAGE
            } else {
                let pages = self.heap.bytes / PAGE;
                self.heap.base + self.spread.apply((first + i) % pages) * PAGE
            };
            let at = page + 8 * child.random.below(PAGE / 8);
            m.load(COW_LOAD, at, 8);
            m.store(COW_STORE, at, 8);
        }
        if to < self.cow_pages {
            return Stage::Inherited(to);
        }
        m.control(Control::Exec { process: child.process });
        for mapping in &self.program {
            m.control(mapping.control(child.process));
        }
        Stage::Init(0)
    }

    fn init(&self, m: &mut Recorder, from: u64) -> Stage {
        let to = (from + TURN).min(self.program_pages);
        for i in from..to {
            let page = self.program_page(i);
            for word in 0..STORES {
                m.store(INIT_STORE, page + word * (PAGE / STORES), 8);
            }
        }
        if to < self.program_pages { Stage::Init(to) } else { Stage::Run(0) }
    }

    /// A turn of the child at the head of the queue.
    fn turn(&mut self, m: &mut Recorder) {
        let Some(mut child) = self.live.pop_front() else { return };
        self.switch(m, child.process);
        child.stage = match child.stage {
            Stage::Inherited(written) => self.inherited(m, &mut child, written),
            Stage::Init(from) => self.init(m, from),
            Stage::Run(from) => {
                let end = LOADS * self.program_pages;
                let to = (from + 4 * TURN).min(end);
                for _ in from..to {
                    let page = self.program_page(child.random.below(self.program_pages));
                    m.load(RUN_LOAD, page + 8 * child.random.below(PAGE / 8), 8);
                }
                if to == end {
                    m.control(Control::Exit { process: child.process });
                    self.exited += 1;
                    return;
                }
                Stage::Run(to)
            }
        };
        self.live.push_back(child);
    }
}

impl Kernel for ForkStorm {
    /// A turn of a child, or a fork.
    fn step(&mut self, m: &mut Recorder) -> bool {
        let due = self.exited / self.children * self.children + self.children;
        if self.live.len() < self.jobs && self.forked < due {
            self.fork(m);
        } else {
            self.turn(m);
        }
        // Without children the next step begins another storm.
        self.exited != due || !self.live.is_empty()
    }
}

fn make(spec: &WorkloadSpec, options: &Options) -> Result<Box<dyn Source>, WorkloadError> {
    let jobs = options.get("jobs");
    // Half of the footprint at most is the children's.
    let program = pages_up((spec.footprint / 2 / jobs).min(PROGRAM_MAX));
    if program < 64 << 10 {
        return Err(WorkloadError::TooSmall {
            workload: WORKLOAD.name,
            needed: jobs * (128 << 10),
            footprint: spec.footprint,
        });
    }
    let heap = (spec.footprint - jobs * program - 4 * PAGE) & !(PAGE - 1);
    let mut space = AddressSpace::new();
    let counts = (jobs, options.get("children"), options.get("cow_pages"));
    let kernel = ForkStorm::new((heap, program), counts, spec.seed, &mut space);
    let about = About {
        name: WORKLOAD.name,
        description: format!(
            "a parent of {heap} bytes forks children of {program} bytes, {jobs} at a time, each \
             writes {} inherited pages",
            kernel.cow_pages
        ),
        approximations: &["instructions between accesses are estimates"],
    };
    Ok(Driver::boxed(about, spec, &space, kernel))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::Batch;
    use std::collections::{HashMap, HashSet};

    #[test]
    fn processes_and_pages_are_the_closed_form() {
        let (children, cow, jobs) = (40u64, 20u64, 3);
        let counts = (jobs, children, cow);
        let mut k = ForkStorm::new((1 << 20, 128 << 10), counts, 2, &mut AddressSpace::new());
        let (mut m, mut batch) = (Recorder::new(u64::MAX), Batch::default());
        while k.step(&mut m) {}
        m.take_into(&mut batch);
        let pages = k.program_pages;
        let per_child = 2 * PARENT_WORDS + 2 * cow + STORES * pages + LOADS * pages;
        assert_eq!(m.recorded(), children * per_child);

        // Replays the controls: who runs, who lives, and which pages were written since fork, exec.
        let mut stored: HashMap<ProcessId, HashSet<u64>> = HashMap::new();
        let (mut running, mut execs, mut live, mut most) = (PROCESS, 0, HashSet::new(), 0);
        for (controls, runs) in batch.segments() {
            for (_, control) in controls {
                match control {
                    Control::Switch { process, .. } => {
                        assert!(*process == PROCESS || live.contains(process));
                        running = *process;
                    }
                    Control::Fork { parent, child } => {
                        assert_eq!((*parent, running), (PROCESS, PROCESS));
                        assert!(live.insert(*child));
                        most = most.max(live.len());
                    }
                    Control::Exec { process } => {
                        assert_eq!(*process, running);
                        let written = stored.remove(process).unwrap();
                        assert_eq!(written.len() as u64, cow, "different inherited pages");
                        execs += 1;
                    }
                    Control::Exit { process } => {
                        assert_eq!(*process, running);
                        assert_eq!(stored.remove(process).unwrap().len() as u64, pages);
                        assert!(live.remove(process));
                    }
                    Control::Map { process, .. } => assert_eq!(*process, running),
                    other => panic!("{other:?}"),
                }
            }
            for run in &batch.runs[runs] {
                if run.flags.is_store() {
                    stored.entry(running).or_default().insert(run.gva.value() >> 12);
                }
            }
        }
        assert_eq!((k.forked, execs, k.exited, live.len()), (children, children, children, 0));
        assert_eq!(most as u64, jobs);
    }
}
