//! References that wait until there are many of them.

use super::{Caches, Reference, Served};

/// References at which there are enough.
const ENOUGH: usize = 1024;

/// What waits, and what is not told yet of those that waited.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    /// References may wait.
    on: bool,
    references: Vec<Reference>,
    /// How many waited when the walk under way began; more than wait if there is none.
    began: usize,
    told: Settled,
}

impl Default for Queue {
    fn default() -> Self {
        let (references, told) = (Vec::new(), Settled::default());
        Self { on: false, references, began: usize::MAX, told }
    }
}

/// Where references were served that had waited.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settled {
    /// Those of before the walk under way.
    pub before: Served,
    /// Those of the walk under way.
    pub walk: Served,
}

impl Caches {
    /// References may wait from now on, or no longer; those that wait are sent then.
    pub fn set_deferring(&mut self, on: bool) {
        if !on {
            self.send_waiting();
        }
        self.queue.on = on;
        self.queue.references.reserve(if on { 2 * ENOUGH } else { 0 });
    }
    /// Whether references may wait.
    #[inline(always)]
    pub const fn is_deferring(&self) -> bool {
        self.queue.on
    }
    /// A reference waits.
    #[inline(always)]
    pub fn defer(&mut self, reference: Reference) {
        self.queue.references.push(reference);
    }
    /// A walk begins: what waits from now on is of it until it ends.
    #[inline(always)]
    pub const fn walk_begins(&mut self) {
        self.queue.began = self.queue.references.len();
    }
    /// The walk under way ends.
    #[inline(always)]
    pub const fn walk_ends(&mut self) {
        self.queue.began = usize::MAX;
    }
    /// Between walks: sends what waits if it is enough.
    #[inline(always)]
    pub fn send_enough(&mut self) {
        if self.queue.references.len() >= ENOUGH {
            self.send_waiting();
        }
    }
    /// Sends everything that waits.
    #[inline(never)]
    pub fn send_waiting(&mut self) {
        if self.queue.references.is_empty() {
            return;
        }
        let mut references = std::mem::take(&mut self.queue.references);
        let mut told = self.queue.told;
        let began = self.queue.began.min(references.len());
        let (before, walk) = references.split_at_mut(began);
        self.drain(before, &mut told.before);
        self.drain(walk, &mut told.walk);
        references.clear();
        self.queue = Queue { references, told, began: usize::MAX, on: self.queue.on };
    }
    /// Where references that waited were served, since this was last asked. Some may still wait.
    pub fn take_settled(&mut self) -> Settled {
        std::mem::take(&mut self.queue.told)
    }
    /// Whether something waits.
    #[inline(always)]
    pub(super) const fn has_waiting(&self) -> bool {
        !self.queue.references.is_empty()
    }
}
