//! What the hypervisor knows of each frame: where it is, whose it is, and what type it has.

use nestwalk_tables::Level;

const CHUNK: usize = 512;

/// A table by frame number that takes memory only where it was written to.
pub(super) struct Chunked<T>(Vec<Option<Box<[T; CHUNK]>>>);

impl<T> Default for Chunked<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy + Default> Chunked<T> {
    /// The value of a frame; the default if it has none.
    #[inline]
    pub fn get(&self, frame: u64) -> T {
        let chunk = usize::try_from(frame / CHUNK as u64).ok().and_then(|c| self.0.get(c));
        chunk.and_then(Option::as_ref).map_or(T::default(), |c| c[frame as usize % CHUNK])
    }
    /// The value of a frame that exists, to change it.
    pub fn at(&mut self, frame: u64) -> &mut T {
        let chunk = (frame / CHUNK as u64) as usize;
        if chunk >= self.0.len() {
            self.0.resize_with(chunk + 1, || None);
        }
        let chunk = self.0[chunk].get_or_insert_with(|| Box::new([T::default(); CHUNK]));
        &mut chunk[frame as usize % CHUNK]
    }
    /// Numbers and values of all frames in chunks that were written to.
    pub fn all(&self) -> impl Iterator<Item = (u64, &T)> {
        self.0.iter().enumerate().flat_map(|(c, chunk)| {
            let values = chunk.iter().flat_map(|values| values.iter().enumerate());
            values.map(move |(i, value)| ((c * CHUNK + i) as u64, value))
        })
    }
}

/// The hypervisor's record of a guest page (Xen, `struct page_info` and the M2P table's inverse):
/// its type is a table of one level, or writable, or neither; never both.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PageInfo {
    /// Number of the machine frame, and 1; 0 if nobody has asked for it yet.
    pub(super) machine: u64,
    /// It is a table of this level; 0 if it is none.
    pub table: Level,
    /// The kernel has pinned it: one of the references to its type.
    pub pinned: bool,
    /// Uses as a table: entries that point to it, and the pin.
    pub table_uses: u32,
    /// Entries that map it writable.
    pub writable_uses: u32,
}
