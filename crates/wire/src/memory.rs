//! Files that several processes have mapped, as words.
//!
//! All of the crate's `unsafe` is here.
#![allow(unsafe_code)]

use memmap2::{MmapOptions, MmapRaw};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// A file that is mapped whole and shared: what one process stores, the others see.
pub struct SharedFile {
    map: MmapRaw,
}

impl SharedFile {
    /// Makes a file of `bytes` zeros, in place of any that is there, and maps it.
    ///
    /// # Errors
    /// The file cannot be made or mapped.
    pub fn create(path: &Path, bytes: u64) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        file.set_len(bytes)?;
        Self::of(&file)
    }

    /// Maps a file that is there.
    ///
    /// # Errors
    /// The file cannot be opened or mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::of(&OpenOptions::new().read(true).write(true).open(path)?)
    }

    fn of(file: &File) -> io::Result<Self> {
        Ok(Self { map: MmapOptions::new().map_raw(file)? })
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.map.len() as u64
    }
    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.map.len() == 0
    }

    /// The 8-byte word at a byte offset, which is a multiple of 8; `None` beyond the end.
    #[inline]
    pub fn word(&self, offset: u64) -> Option<&AtomicU64> {
        let fits = offset.is_multiple_of(8) && offset.checked_add(8)? <= self.map.len() as u64;
        // SAFETY: 8 bytes at the offset are inside of the mapping, which lives as long as `self` and is
        // aligned to pages, so the word is aligned. Other processes change it at any time, which is
        // what an atomic allows. A file that is truncated under a mapping raises SIGBUS: nobody
        // truncates these, they are private to one run.
        fits.then(|| unsafe { &*self.map.as_ptr().add(offset as usize).cast::<AtomicU64>() })
    }

    /// The word's value, 0 beyond the end.
    #[inline]
    pub fn load(&self, offset: u64) -> u64 {
        self.word(offset).map_or(0, |w| w.load(Ordering::Relaxed))
    }
}

/// Slots of one size at the end of a mapping, for one writer and one reader that take turns.
pub struct Slots<T> {
    first: *mut T,
    mask: u64,
    /// Keeps the mapping.
    _file: std::sync::Arc<SharedFile>,
}

// SAFETY: `Slots` is a pointer into a mapping that it keeps alive by itself; the values are plain data
// (`T: Copy`), so it does not matter which thread uses them.
unsafe impl<T: Copy + Send> Send for Slots<T> {}

impl<T: Copy> Slots<T> {
    /// `slots` values, a power of two, from byte `offset` of the file. `None` if they are not inside.
    pub fn new(file: &std::sync::Arc<SharedFile>, offset: u64, slots: u64) -> Option<Self> {
        let end = offset.checked_add(slots.checked_mul(size_of::<T>() as u64)?)?;
        let fits = slots.is_power_of_two()
            && end <= file.len()
            && offset.is_multiple_of(align_of::<T>().max(64) as u64);
        // SAFETY: the offset is inside of the mapping.
        let first =
            fits.then(|| unsafe { file.map.as_mut_ptr().add(offset as usize).cast::<T>() })?;
        Some(Self { first, mask: slots - 1, _file: std::sync::Arc::clone(file) })
    }

    /// How many there are.
    pub const fn slots(&self) -> u64 {
        self.mask + 1
    }

    /// The value in slot `at` modulo their number, for the side whose turn it is.
    #[inline]
    pub fn get(&self, at: u64) -> T {
        // SAFETY: the index is masked, so the slot is inside of the mapping, and it is aligned. The
        // protocol of the ring gives each slot to one side at a time, and hands it over by a release
        // store of an index that the other side loads with acquire; `T` is plain data for which every
        // bit pattern is a value, so even a peer that breaks the protocol can only give nonsense.
        unsafe { self.first.add((at & self.mask) as usize).read() }
    }

    /// The same slot to change.
    #[inline]
    pub fn slot(&mut self, at: u64) -> &mut T {
        // SAFETY: as in `get`; the exclusive borrow of `self` keeps this side from having two.
        unsafe { &mut *self.first.add((at & self.mask) as usize) }
    }
}
