//! Families of TLBs: how an access is looked up, and what a walk puts in. A machine has one, whatever its
//! scheme: `Machine<SegmentedVm, CoalescingTlbs>` is a VMM segment with TLBs that coalesce.

use crate::coalescing::Lines;
use crate::counters::Counters;
use crate::hardware::{Core, Request};
use crate::scheme::{Processor, Scheme};
use crate::walk::{Nobody, WalkWatch};
use nestwalk_hw::{Coalesced, Translation};
use nestwalk_types::{PageSize, Run};

/// What a level says.
pub enum Look {
    /// It has a translation that serves.
    Hit(Translation),
    /// It has one that cannot serve the access: a store to a clean page, or permissions have grown.
    Stale,
    /// It has none.
    Miss,
}

/// A family of TLBs. Its structures hang at the [`Core`], so that every invalidation reaches them.
pub trait TlbFamily: Send + 'static {
    /// Sees the ends of walks.
    type Watch: WalkWatch + Default + Send;

    /// Looks the first level up for a run.
    fn first(core: &mut Core, counters: &mut Counters, run: &Run, needs: u64) -> Look;

    /// Looks the second level up, and puts what serves into the first.
    fn second(core: &mut Core, counters: &mut Counters, run: &Run, needs: u64) -> Look;

    /// A walk begins.
    fn begin(_watch: &mut Self::Watch) {}

    /// Puts what a walk has found into both levels.
    fn fill<S: Scheme>(
        scheme: &mut S,
        cpu: &mut Processor,
        request: &Request,
        found: Translation,
        watch: &Self::Watch,
    );

    /// Puts what was found without a walk into the first level.
    fn fill_first(core: &mut Core, request: &Request, found: Translation);
}

/// TLBs with a page in each entry.
pub enum PlainTlbs {}

impl TlbFamily for PlainTlbs {
    type Watch = Nobody;

    #[inline(always)]
    fn first(core: &mut Core, _counters: &mut Counters, run: &Run, needs: u64) -> Look {
        let asid = core.asid;
        match core.first_level(run.flags.is_fetch()).look_up(run.gva, asid) {
            Some(hit) if hit.serves(needs) => Look::Hit(hit),
            Some(_) => Look::Stale,
            None => Look::Miss,
        }
    }

    #[inline(always)]
    fn second(core: &mut Core, _counters: &mut Counters, run: &Run, needs: u64) -> Look {
        let (asid, fetch) = (core.asid, run.flags.is_fetch());
        match core.second_level(fetch).look_up(run.gva, asid) {
            Some(hit) if hit.serves(needs) => {
                let hit = hit.restored();
                core.first_level(fetch).fill_splintering(run.gva, asid, hit);
                Look::Hit(hit)
            }
            Some(_) => Look::Stale,
            None => Look::Miss,
        }
    }

    #[inline(always)]
    fn fill<S: Scheme>(
        scheme: &mut S,
        cpu: &mut Processor,
        request: &Request,
        found: Translation,
        _watch: &Nobody,
    ) {
        scheme.fill_l2(cpu, request, found);
        Self::fill_first(&mut cpu.hardware.cores[request.core()], request, found);
    }

    #[inline(always)]
    fn fill_first(core: &mut Core, request: &Request, found: Translation) {
        let asid = core.asid;
        core.first_level(request.fetch).fill_splintering(request.gva, asid, found);
    }
}

/// TLBs whose entries cover several base pages ([`crate::coalescing`]), in place of the others. A core
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

    fn fill<S: Scheme>(
        _scheme: &mut S,
        cpu: &mut Processor,
        request: &Request,
        found: Translation,
        watch: &Lines,
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
