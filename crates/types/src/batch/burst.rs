//! The shortest way into a batch, for patterns: data accesses of one vCPU, each within a line.

use super::Open;
use crate::{Gva, Run, RunFlags, VcpuId};

/// Adds accesses to a batch; the run that is open is known here, and told when the burst ends.
pub struct Burst<'a> {
    pub(super) runs: &'a mut Vec<Run>,
    pub(super) open: &'a mut Open,
    pub(super) latest: Open,
    pub(super) vcpu: VcpuId,
    pub(super) instructions: u16,
}

impl Burst<'_> {
    /// Adds a load of user mode, or a store.
    #[inline(always)]
    pub fn access(&mut self, pc: Gva, gva: Gva, store: bool) {
        let flags = RunFlags::STORE.when(store);
        let (page, lines) = (gva.value() & !0xfff, 1 << (gva.value() >> 6 & 63));
        let (vcpu, instructions) = (self.vcpu, self.instructions);
        if self.latest.page == page
            && let Some(run) = self.runs.get_mut(self.latest.index)
            && run.count < u16::MAX
            && let Some(total) = run.instructions.checked_add(instructions)
            && (!store || run.flags.is_store())
        {
            run.lines |= lines;
            run.count += 1;
            run.instructions = total;
            return;
        }
        self.latest = Open { page, index: self.runs.len() };
        self.runs.push(Run { gva, pc, lines, count: 1, instructions, vcpu, flags });
    }
}

impl Drop for Burst<'_> {
    fn drop(&mut self) {
        *self.open = self.latest;
    }
}

#[cfg(test)]
mod tests {
    use crate::{AccessKind, Batch, BatchBuilder, Gva, SplitMix64, VcpuId};

    #[test]
    fn a_burst_leads_where_single_accesses_do() {
        let mut builders = [BatchBuilder::new(), BatchBuilder::new()];
        let [short, long] = &mut builders;
        let mut random = SplitMix64::new(3);
        for _ in 0..300 {
            let (vcpu, n) = (VcpuId(random.below(3) as u8), random.below(40));
            let instructions = random.below(2000) as u16;
            assert!(short.reserve(n));
            let mut burst = short.burst(vcpu, n as usize, instructions);
            for _ in 0..n {
                let (pc, gva) = (Gva::new(7), Gva::new(random.below(3) << 12 | random.below(4096)));
                let store = random.below(4) == 0;
                let kind = if store { AccessKind::Store } else { AccessKind::Load };
                burst.access(pc, gva, store);
                long.access(vcpu, pc, gva, 1, kind, instructions.into());
            }
            drop(burst);
            assert_eq!((short.len(), short.is_full()), (long.len(), long.is_full()));
        }
        let [short, long] = builders.map(|mut builder| {
            let mut batch = Batch::default();
            builder.take_into(&mut batch);
            batch
        });
        assert_eq!(short, long);
    }
}
