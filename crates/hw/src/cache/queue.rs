//! References that wait until there are many of them.

use super::helper::Helper;
use super::{Caches, Far, Reference, Served};

/// References at which there are enough.
const ENOUGH: usize = 1024;
/// The same, where a thread works on them.
const ENOUGH_TO_SEND: usize = 8192;

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
    /// From now on a thread works on references while they may wait, if the system has one to give.
    pub fn have_helper(&mut self) {
        self.helper = Helper::new();
    }
    /// References may wait from now on, or no longer; those that wait are sent then. On a machine of
    /// several nodes none may.
    pub fn set_deferring(&mut self, on: bool) {
        let enough = if self.helper.is_some() { ENOUGH_TO_SEND } else { ENOUGH };
        if on {
            self.queue.references.reserve(2 * enough);
        } else {
            self.send_all();
        }
        self.queue.on = on;
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
    pub fn walk_begins(&mut self) {
        self.queue.began = self.queue.references.len();
        if let Some(nodes) = &mut self.levels.nodes {
            nodes.walk_begins();
        }
    }
    /// The walk under way ends. Returns what memory of other nodes has taken it, if there are others.
    #[inline(always)]
    pub fn walk_ends(&mut self) -> Option<Far> {
        self.queue.began = usize::MAX;
        self.levels.nodes.as_mut().map(|nodes| nodes.walk_ends())
    }
    /// Between walks: sends what waits if it is enough.
    #[inline(always)]
    pub fn send_enough(&mut self) {
        if self.queue.references.len() >= ENOUGH {
            self.send_waiting();
        }
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

    #[inline(never)]
    fn send_waiting(&mut self) {
        let Self { levels, queue, helper } = self;
        match helper {
            None => {
                levels.drain(&mut queue.references, &mut queue.told.before);
                queue.references.clear();
            }
            Some(_) if queue.references.len() < ENOUGH_TO_SEND => {}
            Some(helper) => {
                let references = std::mem::take(&mut queue.references);
                queue.references = helper.send(levels, references);
                queue.references.reserve(2 * ENOUGH_TO_SEND);
            }
        }
    }

    /// Sends everything, those of a walk under way as well, and has the caches back.
    fn send_all(&mut self) {
        let Self { levels, queue, helper } = self;
        if let Some((back, served)) = helper.as_mut().and_then(Helper::fetch) {
            *levels = *back;
            let sums = queue.told.before.as_flattened_mut().iter_mut();
            sums.zip(served.as_flattened()).for_each(|(sum, n)| *sum += n);
        }
        let began = queue.began.min(queue.references.len());
        let (before, walk) = queue.references.split_at_mut(began);
        levels.drain(before, &mut queue.told.before);
        levels.drain(walk, &mut queue.told.walk);
        queue.references.clear();
        queue.began = usize::MAX;
    }
}
