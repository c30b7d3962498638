//! What machines see of a sampled stream: all of it within windows and before, and between windows only
//! what leaves something behind.
//!
//! Left in everywhere are all controls, the run after each (which finds what the control did), and the
//! first load and the first store of each page in each address space, and again where it is elsewhere:
//! so tables of guests, hosts and shadows are nearly what they are without sampling. Before a window the
//! last use of each of the latest [`PAGES`] pages is left in, too, in its place between the controls:
//! what TLBs with replacement by order of use hold then depends on nothing else. Uses among the latest
//! [`RECENT`] runs have all lines of the page that runs among these touched, so that caches of a core
//! hold about what they would.

use super::windows::{Sampling, Window};
use nestwalk_types::{Address, Control, Gpa, GuestBatch, Run, mix64};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::VecDeque;

/// Pages whose last use is left in before a window: several times what a core's TLBs reach.
const PAGES: usize = 4096;
/// Runs of the latest past among which they are looked for.
const HELD: usize = 1 << 19;
/// Of these, the ones whose lines are kept: about what a second-level cache holds.
const RECENT: usize = 1 << 14;

/// What becomes of a piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// It is simulated, and counts for nothing but events.
    Between,
    /// It is measured: part of the window of this number.
    Measured(usize),
}

/// All that a stream had in its region of interest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) accesses: u64,
    pub(crate) fetches: u64,
    pub(crate) instructions: u64,
    pub(crate) kernel_instructions: u64,
    /// Runs that machines have seen.
    pub(crate) simulated_runs: u64,
    /// And all.
    pub(crate) runs: u64,
}

/// Sees a stream of guest batches, and hands on what machines need of it.
pub(crate) struct Thinner {
    sampling: Sampling,
    /// The region of interest has begun.
    begun: bool,
    window: Option<Window>,
    number: usize,
    held: VecDeque<GuestBatch>,
    held_runs: usize,
    met: Met,
    last_uses: LastUses,
    totals: Totals,
}

impl Thinner {
    pub(crate) fn new(sampling: &Sampling) -> Self {
        Self {
            window: sampling.window(0),
            sampling: sampling.clone(),
            begun: false,
            number: 0,
            held: VecDeque::new(),
            held_runs: 0,
            met: Met::default(),
            last_uses: LastUses::new(),
            totals: Totals::default(),
        }
    }

    pub(crate) const fn totals(&self) -> Totals {
        self.totals
    }

    /// Takes a part of the stream and gives what is left of it to `each`.
    pub(crate) fn take<E>(
        &mut self,
        mut part: GuestBatch,
        each: &mut dyn FnMut(&mut GuestBatch, Phase) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.begun {
            let begins = |c: &(u32, Control)| c.1 == Control::RegionOfInterest;
            let Some(at) = part.batch.controls.iter().position(begins) else {
                return self.whole(part, Phase::Between, each);
            };
            // All up to the control that says so, and the rest.
            let (position, _) = part.batch.controls[at];
            let rest = split_off(&mut part, position as usize, at + 1);
            self.whole(part, Phase::Between, each)?;
            self.begun = true;
            self.totals = Totals::default();
            part = rest;
        }
        loop {
            let now = self.totals.instructions;
            let (until, phase) = match self.window {
                None => (u64::MAX, None),
                Some(w) if now >= w.end => {
                    self.number += 1;
                    self.window = self.sampling.window(self.number);
                    continue;
                }
                Some(w) if now >= w.start => (w.end, Some(Phase::Measured(self.number))),
                Some(w) if now >= w.start.saturating_sub(w.warm) => (w.start, Some(Phase::Between)),
                Some(w) => (w.start - w.warm, None),
            };
            let runs = self.count(&part.batch.runs, until);
            // What stands behind the last run belongs to this piece only if nothing follows.
            let rest = (runs < part.batch.runs.len()).then(|| {
                let controls = part.batch.controls.partition_point(|c| (c.0 as usize) < runs);
                split_off(&mut part, runs, controls)
            });
            match phase {
                Some(phase) => {
                    self.release(true, each)?;
                    self.whole(part, phase, each)?;
                }
                None => self.hold(part, each)?,
            }
            match rest {
                Some(rest) => part = rest,
                None => return Ok(()),
            }
        }
    }

    /// Hands on what is still held.
    pub(crate) fn finish<E>(
        &mut self,
        each: &mut dyn FnMut(&mut GuestBatch, Phase) -> Result<(), E>,
    ) -> Result<(), E> {
        self.release(false, each)
    }

    /// Counts runs up to the one that reaches so many instructions; says how many those are.
    fn count(&mut self, runs: &[Run], until: u64) -> usize {
        let t = &mut self.totals;
        for (i, run) in runs.iter().enumerate() {
            if t.instructions >= until {
                return i;
            }
            let (count, instructions) = (u64::from(run.count), u64::from(run.instructions));
            t.runs += 1;
            t.accesses += count;
            t.instructions += instructions;
            if run.flags.is_fetch() {
                t.fetches += count;
            }
            if run.flags.is_kernel() {
                t.kernel_instructions += instructions;
            }
        }
        runs.len()
    }

    fn whole<E>(
        &mut self,
        mut part: GuestBatch,
        phase: Phase,
        each: &mut dyn FnMut(&mut GuestBatch, Phase) -> Result<(), E>,
    ) -> Result<(), E> {
        if part.batch.is_empty() {
            return Ok(());
        }
        for (controls, runs) in part.batch.segments() {
            controls.iter().for_each(|c| self.met.control(&c.1));
            for (run, gpa) in part.batch.runs[runs.clone()].iter().zip(&part.gpas[runs]) {
                self.met.is_first(run, *gpa);
            }
        }
        self.totals.simulated_runs += part.batch.runs.len() as u64;
        each(&mut part, phase)
    }

    /// Keeps a part until it is known whether a window follows soon.
    fn hold<E>(
        &mut self,
        part: GuestBatch,
        each: &mut dyn FnMut(&mut GuestBatch, Phase) -> Result<(), E>,
    ) -> Result<(), E> {
        self.held_runs += part.batch.runs.len();
        self.held.push_back(part);
        while self.held_runs > HELD
            && let Some(oldest) = self.held.pop_front()
        {
            self.held_runs -= oldest.batch.runs.len();
            self.thin(oldest, &[], each)?;
        }
        Ok(())
    }

    /// Hands on all that is held, with the last uses of pages if a window follows.
    fn release<E>(
        &mut self,
        window: bool,
        each: &mut dyn FnMut(&mut GuestBatch, Phase) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.held.is_empty() {
            return Ok(());
        }
        let mut held: Vec<GuestBatch> = std::mem::take(&mut self.held).into();
        self.held_runs = 0;
        let marks = if window { self.last_uses.find(&mut held) } else { Vec::new() };
        for (i, part) in held.into_iter().enumerate() {
            self.thin(part, marks.get(i).map_or(&[], Vec::as_slice), each)?;
        }
        Ok(())
    }

    /// Hands on what leaves something behind, and runs with the numbers `marked`, the last first.
    fn thin<E>(
        &mut self,
        part: GuestBatch,
        marked: &[u32],
        each: &mut dyn FnMut(&mut GuestBatch, Phase) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut out = GuestBatch::default();
        let mut marked = marked.iter().rev().copied().peekable();
        let GuestBatch { batch, gpas } = part;
        let mut controls = batch.controls.into_iter().peekable();
        for (i, (run, gpa)) in batch.runs.iter().zip(gpas).enumerate() {
            let mut keep = false;
            while let Some((_, control)) = controls.next_if(|c| c.0 as usize <= i) {
                self.met.control(&control);
                out.batch.controls.push((out.batch.runs.len() as u32, control));
                keep = true;
            }
            keep |= self.met.is_first(run, gpa);
            keep |= marked.next_if_eq(&(i as u32)).is_some();
            if keep {
                out.batch.runs.push(*run);
                out.gpas.push(gpa);
            }
        }
        let end = out.batch.runs.len() as u32;
        for (_, control) in controls {
            self.met.control(&control);
            out.batch.controls.push((end, control));
        }
        if out.batch.is_empty() {
            return Ok(());
        }
        self.totals.simulated_runs += out.batch.runs.len() as u64;
        each(&mut out, Phase::Between)
    }
}

/// Takes all from a run and from a control on.
fn split_off(part: &mut GuestBatch, run: usize, control: usize) -> GuestBatch {
    let mut rest = GuestBatch::default();
    rest.batch.runs = part.batch.runs.split_off(run);
    rest.gpas = part.gpas.split_off(run);
    rest.batch.controls = part.batch.controls.split_off(control);
    for (position, _) in &mut rest.batch.controls {
        *position -= run as u32;
    }
    rest
}

/// Which pages machines have met, by address space, and whether by a load or by a store.
#[derive(Default)]
struct Met {
    /// Hashes of all that.
    known: FxHashSet<u64>,
    /// How often each root table came into use: an address space that ends leaves its root to others.
    lives: FxHashMap<u64, u64>,
    /// The address space of each vCPU: its root and life, mixed.
    spaces: Vec<u64>,
    /// The latest run that was no news, of a vCPU.
    latest: u64,
}

impl Met {
    fn control(&mut self, control: &Control) {
        match control {
            Control::TableAdded { gpa, .. } => {
                *self.lives.entry(gpa.page_number()).or_default() += 1
            }
            Control::LoadCr3 { vcpu, root, .. } => {
                let (root, vcpu) = (root.page_number(), usize::from(vcpu.0));
                let life = self.lives.get(&root).copied().unwrap_or(0);
                if vcpu >= self.spaces.len() {
                    self.spaces.resize(vcpu + 1, 0);
                }
                self.spaces[vcpu] = mix64(root << 20 ^ life);
            }
            _ => {}
        }
    }

    /// Notes a run; whether it is the first of its kind to its page.
    fn is_first(&mut self, run: &Run, gpa: Gpa) -> bool {
        let space = self.spaces.get(usize::from(run.vcpu.0)).copied().unwrap_or(0);
        let page = run.gva.page_number() << 1 | u64::from(run.flags.is_store());
        let key = mix64(space ^ mix64(page) ^ gpa.page_number().rotate_left(32));
        if key == self.latest {
            return false;
        }
        self.latest = key;
        self.known.insert(key)
    }
}

/// Finds the last uses of pages.
struct LastUses {
    /// By hash: a page's key, the search that it is of, and where its last use is among those found.
    slots: Vec<(u64, u32, u32)>,
    search: u32,
}

impl LastUses {
    fn new() -> Self {
        Self { slots: vec![(0, 0, 0); 4 * PAGES], search: 0 }
    }

    /// For each part the numbers of the runs that are the last use of a page, the last first. Those runs
    /// get the lines of the page's earlier runs, if these are recent.
    fn find(&mut self, parts: &mut [GuestBatch]) -> Vec<Vec<u32>> {
        self.search += 1;
        let mut marks = vec![Vec::new(); parts.len()];
        let mut found: Vec<(usize, usize)> = Vec::new();
        let mut looked = 0;
        for part in (0..parts.len()).rev() {
            for i in (0..parts[part].batch.runs.len()).rev() {
                let (run, gpa) = (parts[part].batch.runs[i], parts[part].gpas[i]);
                looked += 1;
                match self.slot(&run, gpa, found.len()) {
                    Some(known) if looked <= RECENT => {
                        let (part, i) = found[known];
                        parts[part].batch.runs[i].lines |= run.lines;
                    }
                    None if found.len() < PAGES => {
                        found.push((part, i));
                        marks[part].push(i as u32);
                    }
                    Some(_) | None => {}
                }
            }
        }
        marks
    }

    /// Which use of the page is known; if none is, it becomes the one of number `next`, if there is
    /// room.
    fn slot(&mut self, run: &Run, gpa: Gpa, next: usize) -> Option<usize> {
        let kind = u64::from(run.vcpu.0) << 1 | u64::from(run.flags.is_fetch());
        let page = run.gva.page_number() ^ gpa.page_number().rotate_left(32);
        let key = mix64(page ^ kind << 56);
        let mask = self.slots.len() - 1;
        let mut at = key as usize & mask;
        loop {
            let (known, search, number) = self.slots[at];
            if search != self.search {
                if next < PAGES {
                    self.slots[at] = (key, self.search, next as u32);
                }
                return None;
            }
            if known == key {
                return Some(number as usize);
            }
            at = (at + 1) & mask;
        }
    }
}
