//! The family of TLBs that coalesce.

use super::Lines;
use crate::hardware::tlbs::{Look, TlbFamily};
use crate::hardware::{Core, Processor, Request};
use crate::measure::counters::Counters;
use nestwalk_hw::{Coalesced, Translation};
use nestwalk_types::{PageSize, Run};

/// TLBs whose entries cover several base pages ([`super`]), in place of the others. A core
/// without them misses always.
pub enum CoalescingTlbs {}

impl CoalescingTlbs {
    fn of(core: &mut Core) -> Option<&mut Coalesced> {
        core.coalesced.as_deref_mut()
    }
}

impl TlbFamily for CoalescingTlbs {
    type Watch = Lines;

    #[inline]
    fn first(core: &mut Core, counters: &mut Counters, run: &Run, needs: u64) -> Look {
        let asid = core.asid;
        let Some(tlbs) = Self::of(core) else { return Look::Miss };
        if tlbs.has_buffer() {
            counters.run_buffer_lookups += u64::from(run.count);
        }
        match tlbs.look_up_first(run.gva, asid, run.flags.is_fetch()) {
            Some(found) if found.translation.serves(needs) => {
                counters.coalesced_hits += u64::from(found.neighbour) * u64::from(run.count);
                Look::Hit(found.translation)
            }
            Some(_) => Look::Stale,
            None => Look::Miss,
        }
    }

    fn second(core: &mut Core, counters: &mut Counters, run: &Run, needs: u64) -> Look {
        let (asid, fetch) = (core.asid, run.flags.is_fetch());
        let Some(tlbs) = Self::of(core) else { return Look::Miss };
        match tlbs.look_up_second(run.gva, asid, fetch) {
            Some(found) if found.translation.serves(needs) => {
                // The rest of the run finds what the first level gets.
                let rest = u64::from(run.count).saturating_sub(1) * u64::from(found.first_too);
                counters.coalesced_hits += u64::from(found.neighbour) + rest;
                tlbs.fill_first(run.gva, fetch, &found);
                Look::Hit(found.translation)
            }
            Some(_) => Look::Stale,
            None => Look::Miss,
        }
    }

    #[inline]
    fn begin(watch: &mut Lines) {
        watch.forget();
    }

    fn fill(
        cpu: &mut Processor,
        request: &Request,
        found: Translation,
        watch: &Lines,
        _fill_l2: impl FnOnce(&mut Processor),
    ) {
        let core = &mut cpu.hardware.cores[request.core()];
        let asid = core.asid;
        let Some(tlbs) = Self::of(core) else { return };
        if found.size() == PageSize::SIZE_4K {
            tlbs.line = watch.learnt(request.gva, found.frame());
        }
        let pages = tlbs.fill_walked(request.gva, asid, request.fetch, found);
        if pages > 1 {
            cpu.counters.coalesced_fills += 1;
            cpu.counters.coalesced_pages += u64::from(pages);
        }
    }

    fn fill_first(core: &mut Core, request: &Request, found: Translation) {
        let asid = core.asid;
        let Some(tlbs) = Self::of(core) else { return };
        tlbs.fill_first_alone(request.gva, asid, request.fetch, found);
    }
}
