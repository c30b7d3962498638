//! The guest's tables as the hardware of one machine walks them.

use crate::hardware::walk::Tables;
use crate::measure::counters::Dimension;
use nestwalk_tables::{Mode, TableMemory};
use nestwalk_types::{Gpa, NumberSet, VcpuId};

/// The guest's tables as this machine's vCPUs see them.
///
/// The guest's tables are a mirror, kept up by the stream's table events, so that every machine sees
/// them as they were at that moment of the program.
pub struct World {
    /// Paging mode of the guest.
    pub mode: &'static Mode,
    /// The guest's table pages.
    pub guest: TableMemory<Gpa>,
    /// Root table of each vCPU, as CR3 has it.
    pub roots: Vec<Gpa>,
    /// The address of every root that a vCPU has loaded and whose page has had no other use since.
    pub known_roots: NumberSet,
    /// Copies of the guest's tables on the nodes from 1 on, if its kernel keeps any.
    pub copies: Vec<GuestCopy>,
    /// Node of each vCPU, if there are copies.
    pub nodes: Vec<u8>,
}

/// A copy of the guest's tables, at addresses of its own.
pub struct GuestCopy {
    /// Its table pages.
    pub memory: TableMemory<Gpa>,
    /// Its root tables by vCPU.
    pub roots: Vec<Gpa>,
}

impl World {
    /// A world in which nothing is mapped.
    pub fn new(mode: &'static Mode, vcpus: usize) -> Self {
        let (roots, known_roots) = (vec![Gpa::new(0); vcpus], NumberSet::new());
        let (copies, nodes) = (Vec::new(), Vec::new());
        Self { mode, guest: TableMemory::new(), roots, known_roots, copies, nodes }
    }
    /// The guest's tables as a vCPU walks them.
    #[inline]
    pub fn tables(&mut self, vcpu: VcpuId) -> Tables<'_, Gpa> {
        let (mode, dimension) = (self.mode, Dimension::Guest);
        if !self.copies.is_empty()
            && let Some(node) = self.nodes.get(usize::from(vcpu.0))
            && let Some(i) = usize::from(*node).checked_sub(1).filter(|i| *i < self.copies.len())
        {
            let GuestCopy { memory, roots } = &mut self.copies[i];
            return Tables { mode, memory, root: roots[usize::from(vcpu.0)], dimension };
        }
        let root = self.root(vcpu);
        Tables { mode, memory: &mut self.guest, root, dimension }
    }
    /// The vCPU's root table.
    #[inline]
    pub fn root(&self, vcpu: VcpuId) -> Gpa {
        self.roots[usize::from(vcpu.0)]
    }
}
