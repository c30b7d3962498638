//! Pages of the same contents that share a frame (Linux, `mm/ksm.c`).

use crate::space::{AddressSpace, Memory, Spot, Unobserved};
use nestwalk_tables::{Entry, entry};
use nestwalk_types::{Address, PageSize};

impl<I: Address, O: Address> AddressSpace<I, O> {
    /// The small page at an address can be stored to no more (`write_protect_page`), and has this frame
    /// in place of its own, if one is given (`replace_page`). The next store gives it a frame of its
    /// own. Returns the frame; `None`, and nothing is done, if no small page is there.
    pub(crate) fn merge(&self, memory: &mut Memory<O>, page: u64, with: Option<O>) -> Option<O> {
        let small = PageSize::SIZE_4K;
        let Spot { at, level, entry: leaf } = self.spot(memory, page, 1);
        if level != 1 || !leaf.is_present() {
            return None;
        }
        let own: O = leaf.frame(small);
        let frame = with.unwrap_or(own);
        let moved = Entry(leaf.0 - own.value() + frame.value());
        let shared = moved.without(entry::WRITE).with(entry::SOFT_COW);
        if frame != own {
            memory.share(frame, small);
        }
        self.store(memory, at, shared, &mut Unobserved);
        if frame != own {
            memory.release(own, small);
        }
        Some(frame)
    }
}
