//! A way: lines, and the table that they move to.

use super::{CLUSTER, LINE};
use crate::assist::tables::{Supply, Work};

#[derive(Clone, Copy, Default)]
pub(super) struct Line {
    /// Number of the cluster.
    pub(super) cluster: u64,
    pub(super) region: u32,
    pub(super) present: u32,
    pub(super) entries: [u64; CLUSTER as usize],
}

pub(super) struct Part {
    pub(super) base: u64,
    pub(super) lines: Vec<Line>,
}

impl Part {
    pub(super) fn new(lines: u64, memory: &mut dyn Supply, work: &mut Work) -> Option<Self> {
        let Some(base) = memory.take(lines * LINE) else {
            work.refused += 1;
            return None;
        };
        work.pages += (lines * LINE).div_ceil(4096);
        Some(Self { base, lines: vec![Line::default(); lines as usize] })
    }
    pub(super) const fn bytes(&self) -> u64 {
        self.lines.len() as u64 * LINE
    }
}

/// A way: its table, and the one that it is moved to, with how far.
pub(super) struct Way {
    pub(super) old: Part,
    pub(super) new: Option<(Part, usize)>,
    pub(super) used: u64,
    pub(super) salt: u64,
}

impl Way {
    #[inline]
    pub(super) fn hash(&self, cluster: u64, region: u32) -> u64 {
        let mut x = cluster ^ (u64::from(region) << 40) ^ self.salt;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }
    /// Where a cluster would be: in the new table or not, and the line.
    #[inline]
    pub(super) fn place(&self, cluster: u64, region: u32) -> (bool, usize) {
        let hash = self.hash(cluster, region);
        let at = hash as usize & (self.old.lines.len() - 1);
        match &self.new {
            Some((part, moved)) if at < *moved => (true, hash as usize & (part.lines.len() - 1)),
            _ => (false, at),
        }
    }
    #[inline]
    pub(super) fn line(&self, (new, at): (bool, usize)) -> &Line {
        match &self.new {
            Some((part, _)) if new => &part.lines[at],
            _ => &self.old.lines[at],
        }
    }
    pub(super) fn line_mut(&mut self, (new, at): (bool, usize)) -> &mut Line {
        match &mut self.new {
            Some((part, _)) if new => &mut part.lines[at],
            _ => &mut self.old.lines[at],
        }
    }
    #[inline]
    pub(super) fn address(&self, (new, at): (bool, usize)) -> u64 {
        let base = match &self.new {
            Some((part, _)) if new => part.base,
            _ => self.old.base,
        };
        base + at as u64 * LINE
    }
    /// Lines that it has, or will have.
    pub(super) fn len(&self) -> u64 {
        self.new.as_ref().map_or(self.old.lines.len(), |n| n.0.lines.len()) as u64
    }
    pub(super) fn bytes(&self) -> u64 {
        self.old.bytes() + self.new.as_ref().map_or(0, |n| n.0.bytes())
    }
}
