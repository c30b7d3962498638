//! What hits the first level, run after run, where all machines with plain TLBs do the same: one copy.

use crate::hardware::{Hardware, program_references};
use crate::scheme::Processor;
use nestwalk_hw::Translation;
use nestwalk_types::{Run, RunFlags};

/// The bits that a run's first access needs to find set, by its flags.
static NEEDS: [u64; 8] = {
    let mut needs = [0; 8];
    let mut flags = 0u8;
    while flags < 8 {
        let (store, fetch) =
            (flags & RunFlags::STORE.bits() != 0, flags & RunFlags::FETCH.bits() != 0);
        let user = flags & RunFlags::KERNEL.bits() == 0;
        needs[flags as usize] = Translation::needs(store, fetch, user);
        flags += 1;
    }
    needs
};

#[inline(always)]
pub(super) fn needs(run: &Run) -> u64 {
    NEEDS[usize::from(run.flags.bits() & 7)]
}

/// Runs what finds its translation the most recently used of its set in the first level, which
/// changes nothing there, until something does not; how many did.
#[inline(never)]
pub(super) fn run_hits(cpu: &mut Processor, runs: &[Run]) -> usize {
    let Processor { hardware, counters, .. } = cpu;
    let Hardware { cores, caches, .. } = hardware;
    let mut done = 0;
    while let Some(first) = runs.get(done) {
        let half = first.gva.value() >> 63;
        let Some(core) = cores.get(usize::from(first.vcpu.0)) else { break };
        let alike = |run: &&Run| run.vcpu == first.vcpu && run.gva.value() >> 63 == half;
        let levels = [&core.l1d, &core.l1i].map(|tlb| tlb.latest(half as usize, core.asid));
        let before = done;
        while let Some(run) = runs.get(done).filter(alike) {
            let fetch = run.flags.is_fetch();
            let level = levels[usize::from(fetch)];
            let hits = |run: &&Run| alike(run) && run.flags.is_fetch() == fetch;
            let of_kind = done;
            while let Some(run) = runs.get(done).filter(hits)
                && let Some(hit) = level.find(run.gva.value())
                && hit.serves(needs(run))
            {
                program_references(caches, counters, run, hit.apply(run.gva));
                done += 1;
            }
            if done == of_kind {
                return done;
            }
        }
        if done == before {
            break;
        }
    }
    done
}
