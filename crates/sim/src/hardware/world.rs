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
}

impl World {
    /// A world in which nothing is mapped.
    pub fn new(mode: &'static Mode, vcpus: usize) -> Self {
        let (roots, known_roots) = (vec![Gpa::new(0); vcpus], NumberSet::new());
        Self { mode, guest: TableMemory::new(), roots, known_roots }
    }
    /// The guest's tables as a vCPU walks them.
    #[inline]
    pub fn tables(&mut self, vcpu: VcpuId) -> Tables<'_, Gpa> {
        let root = self.root(vcpu);
        Tables { mode: self.mode, memory: &mut self.guest, root, dimension: Dimension::Guest }
    }
    /// The vCPU's root table.
    #[inline]
    pub fn root(&self, vcpu: VcpuId) -> Gpa {
        self.roots[usize::from(vcpu.0)]
    }
}
