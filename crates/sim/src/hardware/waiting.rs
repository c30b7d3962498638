//! References that wait for others, and what was counted of them.
//!
//! While misses are frequent the data caches see references many at a time. Whoever is to know where
//! they were served settles first: then it is as if none had waited.

use super::{Hardware, Processor, Watcher};
use crate::measure::counters::{Counters, References};
use nestwalk_hw::cache::{Reference, Served};
use nestwalk_hw::{Caches, ServedBy};
use nestwalk_types::{Hpa, Run};

/// Kinds of references: the program's data, what it fetches, what nothing waits for, and the walker's by
/// dimension.
const DATA: usize = 0;
const FETCH: usize = 1;
const BACKGROUND: usize = 2;
pub(super) const WALK: usize = 3;

/// Sends the program's references of a run on their way, the line of its first access, which is at
/// `first`, before the others of the page.
#[inline(always)]
fn each_line(run: &Run, first: Hpa, mut send: impl FnMut(Hpa)) {
    let page = first.value() & !0xfff;
    let mut rest = run.lines & !(1 << (first.value() >> 6 & 63));
    let mut at = first;
    loop {
        send(at);
        if rest == 0 {
            return;
        }
        at = Hpa::new(page | u64::from(rest.trailing_zeros()) << 6);
        rest &= rest - 1;
    }
}

/// Sends the program's references of a run through the caches, or lets them wait.
#[inline(always)]
pub fn program_references(caches: &mut Caches, counters: &mut Counters, run: &Run, first: Hpa) {
    let core = usize::from(run.vcpu.0);
    let fetch = run.flags.is_fetch();
    if caches.is_deferring() {
        caches.send_enough();
        return each_line(run, first, |at| {
            caches.defer(if fetch {
                Reference::fetch(core, FETCH, at.value())
            } else {
                Reference::data(core, DATA, at.value())
            });
        });
    }
    each_line(run, first, |at| {
        if fetch {
            counters.fetch[caches.fetch(core, at) as usize] += 1;
        } else {
            counters.data[caches.data(core, at) as usize] += 1;
        }
    });
}

/// Counts program references that waited.
#[inline]
pub fn count_program(served: &Served, counters: &mut Counters) {
    add(&mut counters.data, &served[DATA]);
    add(&mut counters.fetch, &served[FETCH]);
}

fn add(to: &mut [u64; ServedBy::COUNT], more: &[u64; ServedBy::COUNT]) {
    to.iter_mut().zip(more).for_each(|(sum, n)| *sum += n);
}

impl Hardware {
    /// The data caches, to read ahead of their use.
    #[inline]
    pub const fn caches(&self) -> &Caches {
        &self.caches
    }

    /// A reference that nothing waits for: through the caches, counted apart.
    #[inline]
    pub fn background(&mut self, counters: &mut Counters, core: usize, at: Hpa) {
        if self.caches.is_deferring() {
            self.caches.defer(Reference::data(core, BACKGROUND, at.value()));
        } else {
            counters.background[self.caches.data(core, at) as usize] += 1;
        }
    }

    /// A reference ahead of one that a walk will make, counted as those that nothing waits for. Returns
    /// its cycles. None may wait.
    pub fn ahead(&mut self, counters: &mut Counters, core: usize, at: Hpa) -> u64 {
        let served = self.caches.data(core, at) as usize;
        counters.background[served] += 1;
        self.latency[served]
    }

    /// Counts what waited: references of walks that have ended, and of the one under way in its tally.
    #[inline(never)]
    fn count_waiting(&mut self, counters: &mut Counters) {
        let settled = self.caches.take_settled();
        for served in [&settled.before, &settled.walk] {
            count_program(served, counters);
            add(&mut counters.background, &served[BACKGROUND]);
        }
        let (ended, cycles) = self.of_walks(&settled.before);
        counters.references.add(&ended);
        counters.walk_cycles += cycles;
        let (under_way, cycles) = self.of_walks(&settled.walk);
        self.tally.references.add(&under_way);
        self.tally.cycles += cycles;
    }

    /// References of walks among those served, and their cycles.
    fn of_walks(&self, served: &Served) -> (References, u64) {
        let mut references = References::default();
        let mut cycles = 0;
        for (d, sums) in references.0.iter_mut().enumerate() {
            *sums = served[WALK + d];
            cycles += sums.iter().zip(&self.latency).map(|(n, each)| n * each).sum::<u64>();
        }
        (references, cycles)
    }
}

impl Processor {
    /// References may wait from now on, or no longer. Nobody may watch them, and there may be one node
    /// only. Once in many runs: one copy for all machines.
    #[inline(never)]
    pub fn set_deferring(&mut self, on: bool) {
        if on == self.hardware.caches.is_deferring() {
            return;
        }
        if on {
            let unseen = matches!(self.hardware.watcher, Watcher::Nobody);
            let may = unseen && !self.hardware.caches.has_nodes();
            self.hardware.caches.set_deferring(may);
        } else {
            self.settle();
        }
    }

    /// No reference waits any more: counters and the tally of a walk under way are what they would be if
    /// none had.
    #[inline(never)]
    pub fn settle(&mut self) {
        let Self { hardware, counters, .. } = self;
        if hardware.caches.is_deferring() {
            hardware.caches.set_deferring(false);
            hardware.count_waiting(counters);
        }
        if let Some(nodes) = hardware.caches.nodes_mut() {
            let far = nodes.take_program();
            counters.remote_references += far.references;
            counters.remote_cycles += far.cycles;
        }
    }
}
