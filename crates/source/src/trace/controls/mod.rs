//! Controls as columns, apart from the runs, so that they can be read without them.

mod decode;
mod encode;

pub(in crate::trace) use decode::Decoder;
pub(in crate::trace) use encode::Encoder;

use crate::trace::image;
use nestwalk_types::VcpuId;

/// Columns of controls, in the order of their numbers in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(in crate::trace) enum Column {
    /// Runs since the control before.
    Gap,
    /// One byte per control: its kind, and whether it is of another vCPU.
    Kind,
    /// vCPUs, where they change.
    Vcpu,
    /// How addresses and values of table writes are said.
    Write,
    /// Addresses of table writes, as differences.
    WriteAddress,
    /// Frames in values, as differences.
    Frame,
    /// The other bits of values, by their rank in a list.
    Bits,
    /// The other bits of values that are not in it.
    NewBits,
    /// Addresses of faults: pages, as differences.
    FaultPage,
    /// Addresses of faults: offsets in the page.
    FaultOffset,
    /// Codes of faults.
    FaultCode,
    /// What is loaded into CR3, by its rank in a list.
    Cr3,
    /// And what is not in it.
    NewCr3,
    /// Pages that are invalidated, as differences.
    Invalidated,
    /// Physical pages of other controls, as differences.
    Page,
    /// Everything else.
    Other,
    /// Images of tables: what comes next.
    ImageStep,
    /// Images: how often.
    ImageCount,
    /// Images: frames.
    ImageFrame,
    /// Images: the other bits.
    ImageBits,
}

/// How many columns there are.
pub(in crate::trace) const COLUMNS: usize = Column::ImageBits as usize + 1;

/// Names of columns for messages, in their order.
pub(in crate::trace) const NAMES: [&str; COLUMNS] = [
    "gap",
    "kind",
    "vcpu",
    "write",
    "write address",
    "frame",
    "bits",
    "new bits",
    "fault page",
    "fault offset",
    "fault code",
    "cr3",
    "new cr3",
    "invalidated",
    "page",
    "other",
    "image step",
    "image count",
    "image frame",
    "image bits",
];

/// The columns that an encoder fills.
pub(in crate::trace) type Written = [Vec<u8>; COLUMNS];

// Kinds.
const TABLE_WRITE: u8 = 0;
const TABLE_IMAGE: u8 = 1;
const TABLE_CLEAR: u8 = 2;
const PAGE_CLEARED: u8 = 3;
const TABLE_REUSED: u8 = 4;
const LOAD_CR3: u8 = 5;
const INVALIDATE_PAGE: u8 = 6;
const INVALIDATE_PAGE_IN_PCID: u8 = 7;
const INVALIDATE_PCID: u8 = 8;
const INVALIDATE_ALL_BUT_GLOBAL: u8 = 9;
const INVALIDATE_ALL: u8 = 10;
const FAULT: u8 = 11;
const PROCESS: u8 = 12;
const BACKED: u8 = 13;
const REGION_OF_INTEREST: u8 = 14;
const OS_WORK: u8 = 15;
const OTHER_VCPU: u8 = 1 << 7;

// Bits 0 and 1 of how a write is said: its address.
const AFTER_LAST: u8 = 0;
const AFTER_SECOND: u8 = 1;
const OF_FAULT: u8 = 2;
const ADDRESS_TOLD: u8 = 3;
// Bits 2 to 4: its value.
const ZERO: u8 = 0;
const NEXT_FRAME: u8 = 1;
const SAME: u8 = 2;
const WRITE_PROTECTED: u8 = 3;
const USED: u8 = 4;
const CLEARED_PAGE: u8 = 5;
const FRAME_TOLD: u8 = 6;
const VALUE_TOLD: u8 = 7;

/// Bits of an entry that are an address (SDM vol. 3A, "4-Level Paging"), and R/W, A and D.
const FRAME: u64 = 0x000f_ffff_ffff_f000;
const WRITABLE: u64 = 1 << 1;
const ACCESSED_DIRTY: u64 = 1 << 5 | 1 << 6;

/// A table by hash has so many entries.
const SLOTS: usize = 1 << 12;

const fn slot(key: u64) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize
}

/// A short list by order of use.
struct Recent<T> {
    list: Vec<T>,
}

impl<T: Copy + PartialEq> Recent<T> {
    const MOST: usize = 64;
    /// Rank of a value that is in no list.
    const NEW: u8 = 255;

    const fn new() -> Self {
        Self { list: Vec::new() }
    }
    fn put(&mut self, value: T) -> u8 {
        match self.list.iter().position(|&v| v == value) {
            Some(rank) => {
                self.list[..=rank].rotate_right(1);
                rank as u8
            }
            None => {
                self.add(value);
                Self::NEW
            }
        }
    }
    fn add(&mut self, value: T) {
        self.list.truncate(Self::MOST - 1);
        self.list.insert(0, value);
    }
    fn get(&mut self, rank: u8) -> Option<T> {
        let used = self.list.get_mut(..=usize::from(rank))?;
        used.rotate_right(1);
        used.first().copied()
    }
}

/// What encoder and decoder both know of what came before.
struct Memory {
    position: u64,
    vcpu: VcpuId,
    /// Addresses of the last two writes, the latest first.
    written: [u64; 2],
    /// The latest value that was not 0, and the latest of all.
    value: u64,
    latest: u64,
    /// What was written last where; by hash.
    old: Box<[(u64, u64); SLOTS]>,
    /// Tables that were written to after faults in a region of 2 MiB; by hash.
    tables: Box<[u64; SLOTS]>,
    fault: u64,
    invalidated: u64,
    page: u64,
    cleared: u64,
    bits: Recent<u64>,
    cr3: Recent<(u64, u16, bool)>,
    image: image::Memory,
}

impl Memory {
    fn new() -> Self {
        Self {
            position: 0,
            vcpu: VcpuId(0),
            written: [0; 2],
            value: 0,
            latest: 0,
            old: Box::new([(0, 0); SLOTS]),
            tables: Box::new([0; SLOTS]),
            fault: 0,
            invalidated: 0,
            page: 0,
            cleared: 0,
            bits: Recent::new(),
            cr3: Recent::new(),
            image: image::Memory::default(),
        }
    }
    /// Where the entry of the last fault's page is, if its table is the one that was written to after
    /// an earlier fault nearby.
    fn of_fault(&self) -> u64 {
        self.tables[slot(self.fault >> 21)] | (self.fault >> 12 & 511) << 3
    }
    fn address(&self, how: u8) -> u64 {
        match how {
            AFTER_LAST => self.written[0].wrapping_add(8),
            AFTER_SECOND => self.written[1].wrapping_add(8),
            _ => self.of_fault(),
        }
    }
    fn old(&self, gpa: u64) -> u64 {
        let (at, value) = self.old[slot(gpa >> 3)];
        if at == gpa { value } else { 0 }
    }
    fn value(&self, how: u8, gpa: u64) -> u64 {
        match how {
            ZERO => 0,
            NEXT_FRAME => self.value.wrapping_add(0x1000),
            SAME => self.latest,
            WRITE_PROTECTED => self.old(gpa) & !WRITABLE,
            USED => self.old(gpa) | ACCESSED_DIRTY,
            _ => self.value & !FRAME | self.cleared & FRAME,
        }
    }
    fn written(&mut self, gpa: u64, value: u64) {
        self.written = [gpa, self.written[0]];
        self.latest = value;
        if value != 0 {
            self.value = value;
        }
        self.old[slot(gpa >> 3)] = (gpa, value);
        if gpa >> 3 & 511 == self.fault >> 12 & 511 {
            self.tables[slot(self.fault >> 21)] = gpa & !0xfff;
        }
    }
}

/// An address, turned so that neighbouring pages differ by 1.
const fn turned(address: u64) -> u64 {
    address.rotate_right(12)
}
