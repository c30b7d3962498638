//! Who maps a frame: what the kernel's reverse map knows, built when it is needed.

use crate::daemons::Home;
use nestwalk_types::{Address, PageSize};

/// Bits of a page number in a record; the rest is the address space's place in the list, from 1.
const PAGE_BITS: u32 = 45;
const CHUNK: usize = 512;

/// The page behind each frame, for the length of one run. Pages that several address spaces map are
/// known by one of them; a record is to be verified before it is believed.
#[derive(Debug, Default)]
pub(super) struct Owners {
    spaces: Vec<u64>,
    chunks: Vec<Option<Box<[u64; CHUNK]>>>,
    built: bool,
}

impl Owners {
    /// The address space and the address of the page whose first frame this is, as far as is known.
    pub fn find<I: Address, O: Address>(
        &mut self,
        home: &impl Home<I, O>,
        frame: u64,
    ) -> Option<(u64, u64)> {
        if !std::mem::replace(&mut self.built, true) {
            self.build(home);
        }
        let chunk = self.chunks.get((frame / CHUNK as u64) as usize)?.as_ref()?;
        let record = chunk[frame as usize % CHUNK];
        let place = (record >> PAGE_BITS).checked_sub(1)?;
        let id = *self.spaces.get(place as usize)?;
        Some((id, (record & ((1 << PAGE_BITS) - 1)) << 12))
    }

    fn build<I: Address, O: Address>(&mut self, home: &impl Home<I, O>) {
        self.spaces = home.spaces();
        for place in 0..self.spaces.len() {
            let Some(space) = home.look(self.spaces[place]) else { continue };
            space.pages(home.memory(), &mut |page, size: PageSize, entry| {
                self.put(entry.frame::<O>(size).page_number(), place, page);
            });
        }
    }

    fn put(&mut self, frame: u64, place: usize, page: u64) {
        let index = (frame / CHUNK as u64) as usize;
        if index >= self.chunks.len() {
            self.chunks.resize_with(index + 1, || None);
        }
        let chunk = self.chunks[index].get_or_insert_with(|| Box::new([0; CHUNK]));
        chunk[frame as usize % CHUNK] = (place as u64 + 1) << PAGE_BITS | page >> 12;
    }

    /// The page is in this frame now.
    pub fn moved(&mut self, frame: u64, id: u64, page: u64) {
        if self.built
            && let Ok(place) = self.spaces.binary_search(&id)
        {
            self.put(frame, place, page);
        }
    }

    /// A large page was split: its small pages are known by themselves.
    pub fn split(&mut self, frame: u64, id: u64, page: u64, pages: u64) {
        (0..pages).for_each(|i| self.moved(frame + i, id, page + (i << 12)));
    }
}
