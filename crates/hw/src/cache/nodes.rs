//! Nodes of a machine with several sockets: on which each frame lies, and what memory far away takes.
//!
//! Each node has a last-level cache, which holds the lines that its own cores use, wherever they lie.
//! Only what misses there asks for the frame's node, so a machine of one node pays nothing for this.
//!
//! A frame's node is a property of the frame, given when the frame is handed out, and not of its
//! address: a placement changes no address, so that what differs between two placements is latency
//! alone. Each node has a number of frames; where it has none left, the next node gives one.

use super::{Cache, Caches};
use crate::geometry::Geometry;
use nestwalk_types::Hpa;

/// Frames whose nodes are kept together.
const CHUNK: usize = 4096;
/// Nobody has placed the frame.
const NOWHERE: u8 = u8::MAX;

/// What a machine of several nodes is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLayout {
    /// Node of each core.
    pub cores: Vec<u8>,
    /// Cycles beyond the latency of memory on the core's own node, by the core's node and the frame's.
    pub beyond: Vec<Vec<u64>>,
    /// Frames of 4 KiB that a node has.
    pub frames: u64,
    /// Where a frame lies that is used before anybody has placed it; `None` for the node of the core
    /// that uses it.
    pub unplaced: Option<u8>,
}

/// References that the memory of another node served, and the cycles that they took beyond those of the
/// own node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Far {
    /// How many.
    pub references: u64,
    /// Cycles.
    pub cycles: u64,
}

/// The nodes of a machine.
#[derive(Clone, Debug)]
pub struct Nodes {
    layout: NodeLayout,
    /// Last-level caches of the nodes from 1 on.
    caches: Vec<Cache>,
    chunks: Vec<Option<Box<[u8; CHUNK]>>>,
    used: Vec<u64>,
    /// A walk is under way: what is counted is its.
    walking: bool,
    now: Far,
    program: Far,
}

impl Nodes {
    fn new(layout: NodeLayout, last_level: Geometry) -> Self {
        let nodes = layout.beyond.len();
        Self {
            caches: vec![Cache::new(last_level); nodes.saturating_sub(1)],
            chunks: Vec::new(),
            used: vec![0; nodes],
            walking: false,
            now: Far::default(),
            program: Far::default(),
            layout,
        }
    }

    /// How many.
    pub const fn count(&self) -> usize {
        self.used.len()
    }
    /// The node of a core.
    #[inline]
    pub fn of_core(&self, core: usize) -> u8 {
        self.layout.cores.get(core).copied().unwrap_or(0)
    }
    /// The node of a frame, if it has one.
    pub fn of(&self, at: Hpa) -> Option<u8> {
        let frame = at.value() >> 12;
        let chunk = self.chunks.get(frame as usize / CHUNK)?.as_ref()?;
        Some(chunk[frame as usize % CHUNK]).filter(|node| *node != NOWHERE)
    }
    /// Frames of 4 KiB in use, by node.
    pub fn used(&self) -> &[u64] {
        &self.used
    }
    /// Cycles of memory beyond those of the own node, from a core to a frame's node.
    pub fn beyond(&self, core: usize, node: u8) -> u64 {
        let row = self.layout.beyond.get(usize::from(self.of_core(core)));
        row.and_then(|row| row.get(usize::from(node))).copied().unwrap_or(0)
    }

    /// Places the frames of `bytes` bytes from `at` on. Returns their node: the one asked for, or the
    /// next that has room for all of them.
    pub fn place(&mut self, at: Hpa, bytes: u64, node: u8) -> u8 {
        let frames = (bytes >> 12).max(1);
        for i in 0..frames {
            self.set(Hpa::new(at.value() + (i << 12)), NOWHERE);
        }
        let count = self.count();
        let wanted = usize::from(node) % count.max(1);
        let room = |n: &usize| self.used[*n] + frames <= self.layout.frames;
        let node = (0..count).map(|i| (wanted + i) % count).find(room).unwrap_or(wanted) as u8;
        for i in 0..frames {
            self.set(Hpa::new(at.value() + (i << 12)), node);
        }
        node
    }

    /// A frame of 4 KiB is given back.
    pub fn forget(&mut self, at: Hpa) {
        self.set(at, NOWHERE);
    }

    fn set(&mut self, at: Hpa, node: u8) {
        let frame = (at.value() >> 12) as usize;
        if node == NOWHERE && self.of(at).is_none() {
            return;
        }
        if self.chunks.len() <= frame / CHUNK {
            self.chunks.resize(frame / CHUNK + 1, None);
        }
        let chunk = self.chunks[frame / CHUNK].get_or_insert_with(|| Box::new([NOWHERE; CHUNK]));
        let old = std::mem::replace(&mut chunk[frame % CHUNK], node);
        for (node, change) in [(old, u64::MAX), (node, 1)] {
            if let Some(used) = self.used.get_mut(usize::from(node)) {
                *used = used.wrapping_add(change);
            }
        }
    }

    /// The last-level cache of a core's node; `first` is that of node 0.
    pub(super) fn last_level<'a>(&'a mut self, first: &'a mut Cache, core: usize) -> &'a mut Cache {
        match self.of_core(core).checked_sub(1) {
            None => first,
            Some(i) => &mut self.caches[usize::from(i)],
        }
    }

    /// Memory serves a line for a core.
    pub(super) fn memory(&mut self, core: usize, line: u64) {
        let at = Hpa::new(line << 6);
        let own = self.of_core(core);
        let node = match self.of(at) {
            Some(node) => node,
            None => self.place(at, 4096, self.layout.unplaced.unwrap_or(own)),
        };
        self.now.references += u64::from(node != own);
        self.now.cycles += self.beyond(core, node);
    }

    /// A walk begins: what was counted is the program's, or that of a walk that is void.
    pub(super) fn walk_begins(&mut self) {
        let before = std::mem::take(&mut self.now);
        if !std::mem::replace(&mut self.walking, true) {
            self.add_to_program(before);
        }
    }

    /// The walk ends; what it has taken.
    pub(super) fn walk_ends(&mut self) -> Far {
        self.walking = false;
        std::mem::take(&mut self.now)
    }

    const fn add_to_program(&mut self, more: Far) {
        self.program.references += more.references;
        self.program.cycles += more.cycles;
    }

    /// What the program's own references have taken since this was last asked.
    pub fn take_program(&mut self) -> Far {
        if !self.walking {
            let now = std::mem::take(&mut self.now);
            self.add_to_program(now);
        }
        std::mem::take(&mut self.program)
    }

    /// The same frames, with empty caches.
    fn cold(&self, last_level: Geometry) -> Self {
        Self { caches: vec![Cache::new(last_level); self.caches.len()], ..self.clone() }
    }
}

impl Caches {
    /// The machine has these nodes.
    #[must_use]
    pub fn with_nodes(mut self, layout: NodeLayout, last_level: Geometry) -> Self {
        self.levels.nodes = Some(Box::new(Nodes::new(layout, last_level)));
        self
    }
    /// Frames lie where they do in another machine.
    #[must_use]
    pub fn with_nodes_of(mut self, other: &Self, last_level: Geometry) -> Self {
        self.levels.nodes = other.levels.nodes.as_ref().map(|n| Box::new(n.cold(last_level)));
        self
    }
    /// The nodes, if there are several.
    #[inline]
    pub const fn has_nodes(&self) -> bool {
        self.levels.nodes.is_some()
    }
    /// The nodes, if there are several.
    #[inline]
    pub fn nodes(&self) -> Option<&Nodes> {
        self.levels.nodes.as_deref()
    }
    /// As [`Caches::nodes`], to change.
    #[inline]
    pub fn nodes_mut(&mut self) -> Option<&mut Nodes> {
        self.levels.nodes.as_deref_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Profile, ServedBy};

    fn layout(frames: u64) -> NodeLayout {
        let beyond = vec![vec![0, 100], vec![100, 0]];
        NodeLayout { cores: vec![0, 0, 1], beyond, frames, unplaced: None }
    }

    fn caches() -> Caches {
        let profile = Profile::load("cascade-lake-6252").unwrap().caches;
        Caches::new(&profile, 3).with_nodes(layout(1 << 20), profile.llc.geometry())
    }

    fn frame(n: u64) -> Hpa {
        Hpa::new(n << 12)
    }

    #[test]
    fn cores_of_one_node_share_a_last_level_and_those_of_two_do_not() {
        let mut caches = caches();
        caches.nodes_mut().unwrap().place(frame(7), 4096, 0);
        let served = |caches: &mut Caches, core| caches.data(core, frame(7));
        assert_eq!(served(&mut caches, 0), ServedBy::Memory);
        assert_eq!(served(&mut caches, 1), ServedBy::Llc);
        assert_eq!(served(&mut caches, 2), ServedBy::Memory);
        let far = caches.nodes_mut().unwrap().take_program();
        assert_eq!(far, Far { references: 1, cycles: 100 });
    }

    #[test]
    fn a_frame_that_nobody_placed_lies_with_its_first_user() {
        let mut caches = caches();
        caches.data(2, frame(9));
        assert_eq!(caches.nodes().unwrap().of(frame(9)), Some(1));
        assert_eq!(caches.nodes_mut().unwrap().take_program(), Far::default());
        caches.data(0, frame(9));
        assert_eq!(caches.nodes_mut().unwrap().take_program().cycles, 100);
    }

    #[test]
    fn what_a_walk_takes_is_its_own_and_void_walks_take_nothing() {
        let mut caches = caches();
        (0..4).for_each(|n| {
            caches.nodes_mut().unwrap().place(frame(n), 4096, 1);
        });
        caches.data(0, frame(0));
        caches.walk_begins();
        caches.data(0, frame(1));
        caches.walk_begins();
        caches.data(0, frame(2));
        assert_eq!(caches.nodes_mut().unwrap().take_program().references, 1);
        assert_eq!(caches.walk_ends(), Some(Far { references: 1, cycles: 100 }));
        caches.data(0, frame(3));
        assert_eq!(caches.nodes_mut().unwrap().take_program().references, 1);
    }

    #[test]
    fn a_node_without_room_hands_over_to_the_next() {
        let mut nodes = Nodes::new(layout(2), Geometry { entries: 64 * 4, ways: 4 });
        let places: Vec<u8> = (0..4).map(|n| nodes.place(frame(n), 4096, 0)).collect();
        assert_eq!((places, nodes.used()), (vec![0, 0, 1, 1], &[2, 2][..]));
        // Whoever moves gives the old place back first.
        assert_eq!(nodes.place(frame(0), 4096, 0), 0);
        assert_eq!(nodes.used(), [2, 2]);
        // Full: more than there is stays where it was wanted.
        assert_eq!(nodes.place(frame(9), 4096, 1), 1);
    }
}
