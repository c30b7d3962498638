//! How an access is translated by TLBs whose entries cover several base pages. Counted as by the others.

use crate::engine::Machine;
use crate::hardware::Request;
use crate::scheme::{MachineError, Scheme};
use nestwalk_hw::Translation;
use nestwalk_types::Run;

impl<S: Scheme> Machine<S> {
    /// Where a run's first access is. A machine whose cores have no such TLBs walks always.
    #[inline]
    pub(crate) fn coalesced(&mut self, run: &Run, needs: u64) -> Result<Translation, MachineError> {
        let counters = &mut self.platform.counters;
        let core = &mut self.platform.hardware.cores[usize::from(run.vcpu.0)];
        let asid = core.asid;
        let mut upgrade = false;
        if let Some(tlbs) = &mut core.coalesced {
            if tlbs.has_buffer() {
                counters.run_buffer_lookups += u64::from(run.count);
            }
            if let Some(found) = tlbs.look_up_first(run.gva, asid, run.flags.is_fetch()) {
                if found.translation.serves(needs) {
                    counters.coalesced_hits += u64::from(found.neighbour) * u64::from(run.count);
                    return Ok(found.translation);
                }
                upgrade = true;
            }
        }
        self.coalesced_miss(run, upgrade, needs)
    }

    /// The first level missed, or (`upgrade`) has an entry that cannot serve this access.
    #[inline(never)]
    fn coalesced_miss(
        &mut self,
        run: &Run,
        upgrade: bool,
        needs: u64,
    ) -> Result<Translation, MachineError> {
        let request = Request::of(run);
        let counters = &mut self.platform.counters;
        let core = &mut self.platform.hardware.cores[request.core()];
        let asid = core.asid;
        counters.l1_tlb_fills += 1;
        let mut stale = upgrade;
        if upgrade {
            counters.upgrades += 1;
        } else {
            counters.l1_tlb_misses += 1;
            let tlbs = core.coalesced.as_mut();
            let found =
                tlbs.and_then(|t| t.look_up_second(run.gva, asid, request.fetch).map(|f| (t, f)));
            match found {
                Some((tlbs, found)) if found.translation.serves(needs) => {
                    counters.l2_tlb_hits += 1;
                    // The rest of the run finds what the first level gets.
                    let rest = u64::from(run.count).saturating_sub(1) * u64::from(found.first_too);
                    counters.coalesced_hits += u64::from(found.neighbour) + rest;
                    tlbs.fill_first(run.gva, request.fetch, &found);
                    return Ok(found.translation);
                }
                Some(_) => {
                    counters.l2_tlb_hits += 1;
                    counters.upgrades += 1;
                    stale = true;
                }
                None => counters.l2_tlb_misses += 1,
            }
        }
        if stale {
            core.drop_page(run.gva, asid, true);
        }
        let translation = self.resolve(&request)?;
        let core = &mut self.platform.hardware.cores[request.core()];
        if let Some(tlbs) = &mut core.coalesced {
            let pages = tlbs.fill_walked(run.gva, asid, request.fetch, translation);
            if pages > 1 {
                self.platform.counters.coalesced_fills += 1;
                self.platform.counters.coalesced_pages += u64::from(pages);
            }
        }
        Ok(translation)
    }
}
