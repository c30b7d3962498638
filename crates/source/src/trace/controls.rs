//! Controls as columns, apart from the runs, so that they can be read without them.

use super::column::{Cursor, put_varint, unzigzag, zigzag};
use super::header::control_name;
use super::image;
use nestwalk_types::{
    Control, FaultCode, Gpa, Gva, Invalidation, OsWork, PageSize, ProcessId, VcpuId,
};

/// Columns of controls, in the order of their numbers in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Column {
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
pub(super) const COLUMNS: usize = Column::ImageBits as usize + 1;

/// Names of columns for messages, in their order.
pub(super) const NAMES: [&str; COLUMNS] = [
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
pub(super) type Written = [Vec<u8>; COLUMNS];

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

/// Writes controls.
pub(super) struct Encoder {
    memory: Memory,
    pub(super) columns: Written,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self { memory: Memory::new(), columns: Default::default() }
    }
    fn byte(&mut self, column: Column, byte: u8) {
        self.columns[column as usize].push(byte);
    }
    fn varint(&mut self, column: Column, value: u64) {
        put_varint(&mut self.columns[column as usize], value);
    }
    /// The difference to an address from before, which the address replaces.
    fn page(&mut self, column: Column, address: u64, last: u64) {
        let delta = turned(address).wrapping_sub(turned(last));
        self.varint(column, zigzag(delta as i64));
    }
    fn kind(&mut self, kind: u8, vcpu: VcpuId) {
        if vcpu == self.memory.vcpu {
            self.byte(Column::Kind, kind);
        } else {
            self.byte(Column::Kind, kind | OTHER_VCPU);
            self.byte(Column::Vcpu, vcpu.0);
            self.memory.vcpu = vcpu;
        }
    }

    /// Adds a control that stands before run `position` of the chunk.
    ///
    /// # Errors
    /// The name of a control that no guest says.
    pub(super) fn control(&mut self, position: u64, control: &Control) -> Result<(), &'static str> {
        let gap = position - self.memory.position;
        match *control {
            Control::TableWrite { vcpu, gpa, value } => {
                self.kind(TABLE_WRITE, vcpu);
                self.table_write(gpa.value(), value);
            }
            Control::TableNew { vcpu, gpa, ref entries } => {
                self.kind(if entries.is_some() { TABLE_IMAGE } else { TABLE_CLEAR }, vcpu);
                self.other_page(gpa);
                if let Some(entries) = entries {
                    image::put(&mut self.memory.image, entries, &mut self.columns);
                }
            }
            Control::PageCleared { vcpu, gpa, size } => {
                self.kind(PAGE_CLEARED, vcpu);
                self.page(Column::Page, gpa.value(), self.memory.cleared);
                self.byte(Column::Other, size.shift() as u8);
                self.memory.cleared = gpa.value();
            }
            Control::TableReused { vcpu, gpa } => {
                self.kind(TABLE_REUSED, vcpu);
                self.other_page(gpa);
            }
            Control::LoadCr3 { vcpu, root, pcid, keep } => {
                self.kind(LOAD_CR3, vcpu);
                self.cr3(root.value(), pcid, keep);
            }
            Control::Invalidate { vcpu, what } => self.invalidate(vcpu, what),
            Control::Fault { vcpu, gva, code } => {
                self.kind(FAULT, vcpu);
                self.fault(gva.value(), code);
            }
            Control::Process { vcpu, root, id, ref name } => {
                self.kind(PROCESS, vcpu);
                self.other_page(root);
                self.varint(Column::Other, u64::from(id.0));
                self.varint(Column::Other, name.len() as u64);
                self.columns[Column::Other as usize].extend(name.as_bytes());
            }
            Control::Backed { start, bytes } => {
                self.byte(Column::Kind, BACKED);
                self.other_page(start);
                self.varint(Column::Other, turned(bytes));
            }
            Control::RegionOfInterest => self.byte(Column::Kind, REGION_OF_INTEREST),
            Control::OsWork { work, count } => {
                self.byte(Column::Kind, OS_WORK);
                self.byte(Column::Other, work.index() as u8);
                self.varint(Column::Other, u64::from(count));
            }
            Control::Switch { .. }
            | Control::Map { .. }
            | Control::Populate { .. }
            | Control::Unmap { .. }
            | Control::Protect { .. }
            | Control::Fork { .. }
            | Control::Exec { .. }
            | Control::Exit { .. } => return Err(control_name(control)),
        }
        self.varint(Column::Gap, gap);
        self.memory.position = position;
        Ok(())
    }

    fn other_page(&mut self, gpa: Gpa) {
        self.page(Column::Page, gpa.value(), self.memory.page);
        self.memory.page = gpa.value();
    }

    fn table_write(&mut self, gpa: u64, value: u64) {
        let addresses = [AFTER_LAST, AFTER_SECOND, OF_FAULT];
        let address = addresses.into_iter().find(|&how| self.memory.address(how) == gpa);
        let values = [ZERO, NEXT_FRAME, SAME, WRITE_PROTECTED, USED, CLEARED_PAGE];
        let said = values.into_iter().find(|&how| self.memory.value(how, gpa) == value);
        if address.is_none() {
            let delta = gpa.rotate_right(3).wrapping_sub(self.memory.written[0].rotate_right(3));
            self.varint(Column::WriteAddress, zigzag(delta as i64));
        }
        let said = said.unwrap_or_else(|| {
            self.page(Column::Frame, value & FRAME, self.memory.value & FRAME);
            if (value ^ self.memory.value) & !FRAME == 0 { FRAME_TOLD } else { VALUE_TOLD }
        });
        if said == VALUE_TOLD {
            let rank = self.memory.bits.put(value & !FRAME);
            self.byte(Column::Bits, rank);
            if rank == Recent::<u64>::NEW {
                self.columns[Column::NewBits as usize].extend((value & !FRAME).to_le_bytes());
            }
        }
        self.byte(Column::Write, address.unwrap_or(ADDRESS_TOLD) | said << 2);
        self.memory.written(gpa, value);
    }

    fn cr3(&mut self, root: u64, pcid: u16, keep: bool) {
        let rank = self.memory.cr3.put((root, pcid, keep));
        self.byte(Column::Cr3, rank);
        if rank == Recent::<u64>::NEW {
            self.varint(Column::NewCr3, turned(root));
            self.varint(Column::NewCr3, u64::from(pcid) << 1 | u64::from(keep));
        }
    }

    fn invalidate(&mut self, vcpu: VcpuId, what: Invalidation) {
        match what {
            Invalidation::Page(gva) => {
                self.kind(INVALIDATE_PAGE, vcpu);
                self.invalidated(gva);
            }
            Invalidation::PageInPcid(gva, pcid) => {
                self.kind(INVALIDATE_PAGE_IN_PCID, vcpu);
                self.invalidated(gva);
                self.varint(Column::Other, u64::from(pcid));
            }
            Invalidation::Pcid(pcid) => {
                self.kind(INVALIDATE_PCID, vcpu);
                self.varint(Column::Other, u64::from(pcid));
            }
            Invalidation::AllButGlobal => self.kind(INVALIDATE_ALL_BUT_GLOBAL, vcpu),
            Invalidation::All => self.kind(INVALIDATE_ALL, vcpu),
        }
    }
    fn invalidated(&mut self, gva: Gva) {
        self.page(Column::Invalidated, gva.value(), self.memory.invalidated);
        self.memory.invalidated = gva.value();
    }

    fn fault(&mut self, gva: u64, code: FaultCode) {
        let delta = (gva >> 12).wrapping_sub(self.memory.fault >> 12);
        self.varint(Column::FaultPage, zigzag(delta as i64));
        self.varint(Column::FaultOffset, gva & 0xfff);
        let FaultCode { present, write, user, fetch } = code;
        let bits = [present, write, user, fetch].map(u8::from);
        self.byte(Column::FaultCode, bits[0] | bits[1] << 1 | bits[2] << 2 | bits[3] << 3);
        self.memory.fault = gva;
    }
}

/// Reads controls.
pub(super) struct Decoder {
    memory: Memory,
    columns: [Cursor; COLUMNS],
    nonsense: bool,
}

impl Decoder {
    pub(super) fn new(columns: [Cursor; COLUMNS]) -> Self {
        Self { memory: Memory::new(), columns, nonsense: false }
    }
    fn byte(&mut self, column: Column) -> u8 {
        self.columns[column as usize].byte()
    }
    fn varint(&mut self, column: Column) -> u64 {
        self.columns[column as usize].varint()
    }
    /// A number that has to fit.
    fn number<T: TryFrom<u64> + Default>(&mut self, column: Column) -> T {
        let number = T::try_from(self.varint(column));
        number.unwrap_or_else(|_| self.impossible())
    }
    #[cold]
    fn impossible<T: Default>(&mut self) -> T {
        self.nonsense = true;
        T::default()
    }
    fn page(&mut self, column: Column, last: u64) -> u64 {
        let delta = unzigzag(self.varint(column));
        turned(last).wrapping_add(delta as u64).rotate_left(12)
    }
    fn other_page(&mut self) -> Gpa {
        self.memory.page = self.page(Column::Page, self.memory.page);
        Gpa::new(self.memory.page)
    }

    /// Whether all that was read so far was there and can have been written.
    pub(super) fn is_sound(&self) -> bool {
        !self.nonsense && !self.columns.iter().any(Cursor::overrun)
    }
    /// Whether everything was read.
    pub(super) fn is_finished(&self) -> bool {
        self.is_sound() && self.columns.iter().all(Cursor::is_finished)
    }

    /// Index of the run in the chunk before which the next control stands.
    pub(super) fn position(&mut self) -> u64 {
        let gap = self.varint(Column::Gap);
        self.memory.position = self.memory.position.saturating_add(gap);
        self.memory.position
    }

    /// The next control, after [`Decoder::position`]. It means nothing if [`Decoder::is_sound`] is
    /// false afterwards.
    pub(super) fn control(&mut self) -> Control {
        let code = self.byte(Column::Kind);
        if code & OTHER_VCPU != 0 {
            self.memory.vcpu = VcpuId(self.byte(Column::Vcpu));
        }
        let vcpu = self.memory.vcpu;
        match code & !OTHER_VCPU {
            TABLE_WRITE => self.table_write(vcpu),
            TABLE_IMAGE => {
                let gpa = self.other_page();
                let image = image::get(&mut self.memory.image, &mut self.columns);
                let entries = image.unwrap_or_else(|| self.impossible::<Option<_>>());
                Control::TableNew { vcpu, gpa, entries }
            }
            TABLE_CLEAR => Control::TableNew { vcpu, gpa: self.other_page(), entries: None },
            PAGE_CLEARED => {
                self.memory.cleared = self.page(Column::Page, self.memory.cleared);
                let gpa = Gpa::new(self.memory.cleared);
                let shift = match self.byte(Column::Other) {
                    shift @ 12..64 => shift,
                    _ => self.impossible::<u8>() + 12,
                };
                Control::PageCleared { vcpu, gpa, size: PageSize::from_shift(shift) }
            }
            TABLE_REUSED => Control::TableReused { vcpu, gpa: self.other_page() },
            LOAD_CR3 => self.load_cr3(vcpu),
            FAULT => self.fault(vcpu),
            PROCESS => self.process(vcpu),
            BACKED => Control::Backed {
                start: self.other_page(),
                bytes: self.varint(Column::Other).rotate_left(12),
            },
            REGION_OF_INTEREST => Control::RegionOfInterest,
            OS_WORK => {
                let work = OsWork::ALL.get(usize::from(self.byte(Column::Other))).copied();
                let work = work.unwrap_or_else(|| {
                    self.nonsense = true;
                    OsWork::PageFault
                });
                Control::OsWork { work, count: self.number(Column::Other) }
            }
            kind => Control::Invalidate { vcpu, what: self.invalidation(kind) },
        }
    }

    fn table_write(&mut self, vcpu: VcpuId) -> Control {
        let how = self.byte(Column::Write);
        let gpa = match how & 3 {
            ADDRESS_TOLD => {
                let delta = unzigzag(self.varint(Column::WriteAddress)) as u64;
                self.memory.written[0].rotate_right(3).wrapping_add(delta).rotate_left(3)
            }
            how => self.memory.address(how),
        };
        let value = match how >> 2 {
            how @ (FRAME_TOLD | VALUE_TOLD) => {
                let frame = self.page(Column::Frame, self.memory.value & FRAME) & FRAME;
                let bits = if how == FRAME_TOLD { self.memory.value } else { self.bits() };
                frame | bits & !FRAME
            }
            how @ 0..FRAME_TOLD => self.memory.value(how, gpa),
            _ => self.impossible(),
        };
        self.memory.written(gpa, value);
        Control::TableWrite { vcpu, gpa: Gpa::new(gpa), value }
    }

    fn bits(&mut self) -> u64 {
        let rank = self.byte(Column::Bits);
        if rank == Recent::<u64>::NEW {
            let bits = self.columns[Column::NewBits as usize].u64();
            self.memory.bits.add(bits);
            return bits;
        }
        self.memory.bits.get(rank).unwrap_or_else(|| self.impossible())
    }

    fn load_cr3(&mut self, vcpu: VcpuId) -> Control {
        let rank = self.byte(Column::Cr3);
        let (root, pcid, keep) = if rank == Recent::<u64>::NEW {
            let root = self.varint(Column::NewCr3).rotate_left(12);
            let tag: u32 = self.number(Column::NewCr3);
            let new = (root, (tag >> 1) as u16, tag & 1 != 0);
            self.nonsense |= tag >> 17 != 0;
            self.memory.cr3.add(new);
            new
        } else {
            self.memory.cr3.get(rank).unwrap_or_else(|| self.impossible())
        };
        Control::LoadCr3 { vcpu, root: Gpa::new(root), pcid, keep }
    }

    fn fault(&mut self, vcpu: VcpuId) -> Control {
        let delta = unzigzag(self.varint(Column::FaultPage)) as u64;
        let page = (self.memory.fault >> 12).wrapping_add(delta) << 12;
        let gva = page | self.varint(Column::FaultOffset) & 0xfff;
        self.memory.fault = gva;
        let bits = self.byte(Column::FaultCode);
        self.nonsense |= bits > 15;
        let [present, write, user, fetch] = [1, 2, 4, 8].map(|bit| bits & bit != 0);
        let code = FaultCode { present, write, user, fetch };
        Control::Fault { vcpu, gva: Gva::new(gva), code }
    }

    fn process(&mut self, vcpu: VcpuId) -> Control {
        let root = self.other_page();
        let id = ProcessId(self.number(Column::Other));
        let length: u16 = self.number(Column::Other);
        let name = self.columns[Column::Other as usize].take(usize::from(length));
        let name = std::str::from_utf8(name).map(Into::into);
        let name = name.unwrap_or_else(|_| self.impossible());
        Control::Process { vcpu, root, id, name }
    }

    fn invalidation(&mut self, kind: u8) -> Invalidation {
        match kind {
            INVALIDATE_PAGE => Invalidation::Page(self.invalidated()),
            INVALIDATE_PAGE_IN_PCID => {
                Invalidation::PageInPcid(self.invalidated(), self.number(Column::Other))
            }
            INVALIDATE_PCID => Invalidation::Pcid(self.number(Column::Other)),
            INVALIDATE_ALL_BUT_GLOBAL => Invalidation::AllButGlobal,
            INVALIDATE_ALL => Invalidation::All,
            _ => {
                self.nonsense = true;
                Invalidation::All
            }
        }
    }
    fn invalidated(&mut self) -> Gva {
        self.memory.invalidated = self.page(Column::Invalidated, self.memory.invalidated);
        Gva::new(self.memory.invalidated)
    }
}
