//! Families of TLBs: how an access is looked up, and what a walk puts in. A machine has one, whatever
//! its scheme: a machine of `SegmentedVm` with TLBs that coalesce is `vmm-direct/tlb=colt`.

use super::walk::{Nobody, WalkWatch};
use super::{Core, Processor, Request};
use crate::measure::counters::Counters;
use nestwalk_hw::Translation;
use nestwalk_types::Run;

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

    /// The first level is that of [`PlainTlbs`].
    const PLAIN: bool = false;

    /// Looks the first level up for a run.
    fn first(core: &mut Core, counters: &mut Counters, run: &Run, needs: u64) -> Look;

    /// Looks the second level up, and puts what serves into the first.
    fn second(core: &mut Core, counters: &mut Counters, run: &Run, needs: u64) -> Look;

    /// A walk begins.
    fn begin(_watch: &mut Self::Watch) {}

    /// Puts what a walk has found into both levels.
    ///
    /// `fill_l2` is how the scheme fills a second level with a page in each entry.
    fn fill(
        cpu: &mut Processor,
        request: &Request,
        found: Translation,
        watch: &Self::Watch,
        fill_l2: impl FnOnce(&mut Processor),
    );

    /// Puts what was found without a walk into the first level.
    fn fill_first(core: &mut Core, request: &Request, found: Translation);
}

/// TLBs with a page in each entry.
pub enum PlainTlbs {}

impl TlbFamily for PlainTlbs {
    type Watch = Nobody;
    const PLAIN: bool = true;

    #[inline(always)]
    fn first(core: &mut Core, _counters: &mut Counters, run: &Run, needs: u64) -> Look {
        let asid = core.asid;
        match core.first_level(run.flags.is_fetch()).search(run.gva, asid) {
            Some(hit) if hit.serves(needs) => Look::Hit(hit),
            Some(_) => Look::Stale,
            None => Look::Miss,
        }
    }

    #[inline(always)]
    fn second(core: &mut Core, _counters: &mut Counters, run: &Run, needs: u64) -> Look {
        let (asid, fetch) = (core.asid, run.flags.is_fetch());
        match core.second_level(fetch).search(run.gva, asid) {
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
    fn fill(
        cpu: &mut Processor,
        request: &Request,
        found: Translation,
        _watch: &Nobody,
        fill_l2: impl FnOnce(&mut Processor),
    ) {
        fill_l2(cpu);
        Self::fill_first(&mut cpu.hardware.cores[request.core()], request, found);
    }

    #[inline(always)]
    fn fill_first(core: &mut Core, request: &Request, found: Translation) {
        let asid = core.asid;
        core.first_level(request.fetch).fill_splintering(request.gva, asid, found);
    }
}
