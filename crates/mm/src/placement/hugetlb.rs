//! Pools of large pages that are reserved at the start (Linux, `mm/hugetlb.c`; `hugepages=` on
//! the kernel's command line).

use crate::physical::PhysicalMemory;
use crate::placement::{Outcome, PagePolicy, Placed, Placement, Request};
use nestwalk_tables::Mode;
use nestwalk_types::{Address, PageSize};

/// Share of free memory that goes into the pool of the largest size, and of what is left then
/// into that of the next: chosen here, since an administrator would.
pub const POOL_PERCENT: u64 = 75;

/// Pages of the sizes `2m`, `4m` and `1g` come from pools; `4k` and `thp` know no pool and get
/// what is left. An empty pool means the next smaller size, counted as a fallback, where a
/// program on Linux could not have mapped the memory.
#[derive(Clone, Debug)]
pub struct HugeTlb {
    sizes: Vec<PageSize>,
}

impl HugeTlb {
    /// Pools for the page sizes of the policy.
    pub fn new(pages: PagePolicy, mode: &Mode) -> Self {
        let sizes = pages.sizes(mode);
        let large = |pages| matches!(pages, PagePolicy::Explicit(_));
        let sizes = sizes.get().iter().map(|s| s.0).filter(|s| s.order() > 0 && large(pages));
        Self { sizes: sizes.collect() }
    }
}

impl<O: Address> Placement<O> for HugeTlb {
    fn attach(&mut self, memory: &mut PhysicalMemory<O>) {
        self.sizes.iter().for_each(|s| memory.make_pool(s.order(), POOL_PERCENT));
    }
    fn place(&mut self, memory: &mut PhysicalMemory<O>, request: &Request) -> Option<Placed<O>> {
        let order = request.size.order();
        if self.sizes.contains(&request.size) {
            return memory.take_from_pool(order).map(|f| Placed::new(f, Outcome::Target));
        }
        memory.alloc(order).map(|f| Placed::new(f, Outcome::Ordinary))
    }
    fn forked(&self) -> Box<dyn Placement<O>> {
        Box::new(self.clone())
    }
}
