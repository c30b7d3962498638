//! Rings of records in a shared file, one for each vCPU: one writer, one reader, no loss.
//!
//! The writer may change the records that it has not published yet, so a run's count and lines grow in
//! place while the filter holds its page.

use crate::VERSION;
use crate::memory::{SharedFile, Slots};
use crate::record::{Kind, Record};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use thiserror::Error;

/// Records after which a writer publishes: as many as a batch of the simulator has.
pub const BLOCK: u64 = 8192;

/// What the first word of the file says: `nwring` and the version.
const MAGIC: u64 = 0x6e77_7269_6e67_0000 | VERSION;
/// Bytes before the first ring.
const HEAD: u64 = 4096;
/// Bytes of a ring before its records: indices in cache lines of their own.
const RING_HEAD: u64 = 4096;

/// Why rings cannot be used.
#[derive(Debug, Error)]
pub enum WireError {
    /// The file cannot be made, opened or mapped.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// The file is of another version, or no file of rings.
    #[error(
        "{path}: made for another version of the plugin; build the plugin and nestwalk together"
    )]
    Version {
        /// The file.
        path: String,
    },
}

/// Sizes of the rings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// vCPUs, a ring for each.
    pub vcpus: u32,
    /// Records that a ring holds, a power of two and at least four blocks.
    pub records: u64,
}

impl Layout {
    const fn ring(self, vcpu: u32) -> u64 {
        HEAD + vcpu as u64 * (RING_HEAD + self.records * size_of::<Record>() as u64)
    }
}

/// The shared file with all rings.
pub struct Rings {
    file: Arc<SharedFile>,
    layout: Layout,
    path: String,
}

impl Rings {
    /// Makes the file.
    ///
    /// # Errors
    /// See [`WireError::File`].
    pub fn create(path: &Path, layout: Layout) -> Result<Self, WireError> {
        let name = path.display().to_string();
        let file = SharedFile::create(path, layout.ring(layout.vcpus))
            .map_err(|error| WireError::File { path: name.clone(), error })?;
        let words = [layout.records, u64::from(layout.vcpus), MAGIC];
        for (word, value) in [8, 16, 0].into_iter().zip(words) {
            if let Some(word) = file.word(word) {
                word.store(value, Ordering::Release);
            }
        }
        Ok(Self { file: Arc::new(file), layout, path: name })
    }

    /// Opens the file that the other side has made.
    ///
    /// # Errors
    /// See [`WireError`].
    pub fn open(path: &Path) -> Result<Self, WireError> {
        let name = path.display().to_string();
        let file = SharedFile::open(path)
            .map_err(|error| WireError::File { path: name.clone(), error })?;
        let layout = Layout { records: file.load(8), vcpus: file.load(16) as u32 };
        let sound = file.load(0) == MAGIC
            && layout.records.is_power_of_two()
            && layout.records >= 4 * BLOCK
            && layout.vcpus <= 256
            && layout.ring(layout.vcpus) <= file.len();
        if !sound {
            return Err(WireError::Version { path: name });
        }
        Ok(Self { file: Arc::new(file), layout, path: name })
    }

    /// Its sizes.
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// The moment that it is now ([`crate::Merge`]).
    pub fn moment(&self) -> u64 {
        word(&self.file, NOW).load(Ordering::Acquire)
    }
    /// Makes a new moment: what is said next happened after everything before.
    pub fn next_moment(&self) -> u64 {
        word(&self.file, NOW).fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The writing end of a vCPU's ring.
    ///
    /// # Errors
    /// There is no such vCPU.
    pub fn producer(&self, vcpu: u32) -> Result<Producer, WireError> {
        let (slots, base) = self.slots(vcpu)?;
        Ok(Producer {
            slots,
            file: Arc::clone(&self.file),
            base,
            start: 0,
            next: 0,
            limit: 0,
            waits: 0,
        })
    }

    /// The reading end of a vCPU's ring.
    ///
    /// # Errors
    /// There is no such vCPU.
    pub fn consumer(&self, vcpu: u32) -> Result<Consumer, WireError> {
        let (slots, base) = self.slots(vcpu)?;
        Ok(Consumer { slots, file: Arc::clone(&self.file), base, next: 0 })
    }

    fn slots(&self, vcpu: u32) -> Result<(Slots<Record>, u64), WireError> {
        let base = self.layout.ring(vcpu);
        let slots = (vcpu < self.layout.vcpus)
            .then(|| Slots::new(&self.file, base + RING_HEAD, self.layout.records))
            .flatten();
        slots.map(|s| (s, base)).ok_or_else(|| WireError::Version { path: self.path.clone() })
    }
}

/// The moment that it is now, in a cache line of its own.
const NOW: u64 = 128;
/// Published up to here, counted from the start.
const WRITTEN: u64 = 0;
/// See [`crate::Merge`].
const MOMENT: u64 = 64;
/// Consumed up to here.
const READ: u64 = 128;

fn word(file: &SharedFile, offset: u64) -> &AtomicU64 {
    static NOWHERE: AtomicU64 = AtomicU64::new(0);
    // The rings were checked to be inside of the file.
    file.word(offset).unwrap_or(&NOWHERE)
}

/// The writing end.
pub struct Producer {
    slots: Slots<Record>,
    file: Arc<SharedFile>,
    base: u64,
    /// First record that is not published.
    start: u64,
    /// Where the next record goes.
    next: u64,
    /// Up to where there is room.
    limit: u64,
    waits: u64,
}

impl Producer {
    /// Appends a record and says where it is. Waits while there is no room: a reader that goes away
    /// takes QEMU with it.
    #[inline]
    pub fn push(&mut self, record: Record) -> u64 {
        if self.next >= self.limit {
            self.make_room();
        }
        let at = self.next;
        *self.slots.slot(at) = record;
        self.next = at + 1;
        at
    }

    #[cold]
    fn make_room(&mut self) {
        loop {
            let read = word(&self.file, self.base + READ).load(Ordering::Acquire);
            self.limit = read + self.slots.slots();
            if self.next < self.limit {
                return;
            }
            self.waits += 1;
            // What is open is handed over only where it fills the ring by itself, as the images of
            // many tables do: runs that grow are fewer.
            if self.open() >= self.slots.slots() / 2 {
                self.publish();
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Whether the record at `at` is not published yet, so that it may be changed.
    #[inline]
    pub const fn is_open(&self, at: u64) -> bool {
        at >= self.start
    }
    /// The record at `at`, which is not published yet.
    #[inline]
    pub fn record(&mut self, at: u64) -> &mut Record {
        self.slots.slot(at)
    }
    /// Records that are not published yet.
    #[inline]
    pub const fn open(&self) -> u64 {
        self.next - self.start
    }
    /// How often there was no room.
    pub const fn waits(&self) -> u64 {
        self.waits
    }

    /// Hands all records over.
    pub fn publish(&mut self) {
        self.start = self.next;
        word(&self.file, self.base + WRITTEN).store(self.next, Ordering::Release);
    }

    /// Says that no record of before this moment will come ([`crate::Merge`]).
    pub fn reached(&self, moment: u64) {
        word(&self.file, self.base + MOMENT).store(moment, Ordering::Release);
    }
}

/// The reading end.
pub struct Consumer {
    slots: Slots<Record>,
    file: Arc<SharedFile>,
    base: u64,
    next: u64,
}

impl Consumer {
    /// The moment before which no more records will come, or [`crate::IDLE`]. To be asked before
    /// [`Consumer::drain`], and after [`Rings::moment`], which is what a halted vCPU has reached: it may
    /// run again before the others' rings are read.
    pub fn reached(&self) -> u64 {
        word(&self.file, self.base + MOMENT).load(Ordering::Acquire)
    }

    /// Takes what is there, at most `most` records, and gives the room back. Says whether there was any.
    pub fn drain(&mut self, most: u64, mut each: impl FnMut(Record)) -> bool {
        let written = word(&self.file, self.base + WRITTEN).load(Ordering::Acquire);
        // A writer that is mad cannot make this run for ever.
        let end = written.min(self.next + self.slots.slots()).min(self.next.saturating_add(most));
        let any = end > self.next;
        while self.next < end {
            each(self.slots.get(self.next));
            self.next += 1;
        }
        if any {
            word(&self.file, self.base + READ).store(self.next, Ordering::Release);
        }
        any
    }
}

/// What an image record holds: four entries.
impl From<[u64; 4]> for Record {
    fn from(w: [u64; 4]) -> Self {
        let [low, high] = [w[3] as u32, (w[3] >> 32) as u32];
        let ([c0, c1, i0, i1], [vcpu, flags, kind, spare]) =
            (low.to_le_bytes(), high.to_le_bytes());
        Self {
            a: w[0],
            b: w[1],
            c: w[2],
            count: u16::from_le_bytes([c0, c1]),
            instructions: u16::from_le_bytes([i0, i1]),
            vcpu,
            flags,
            kind,
            spare,
        }
    }
}

impl From<Record> for [u64; 4] {
    fn from(r: Record) -> Self {
        let ([c0, c1], [i0, i1]) = (r.count.to_le_bytes(), r.instructions.to_le_bytes());
        let last = u64::from_le_bytes([c0, c1, i0, i1, r.vcpu, r.flags, r.kind, r.spare]);
        [r.a, r.b, r.c, last]
    }
}

const _: () = assert!(Kind::Run as u8 == 0);
