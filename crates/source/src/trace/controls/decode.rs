//! Reading controls.

use super::{
    ADDRESS_TOLD, BACKED, COLUMNS, Column, FAULT, FRAME, FRAME_TOLD, INVALIDATE_ALL,
    INVALIDATE_ALL_BUT_GLOBAL, INVALIDATE_PAGE, INVALIDATE_PAGE_IN_PCID, INVALIDATE_PCID, LOAD_CR3,
    Memory, OS_WORK, OTHER_VCPU, PAGE_CLEARED, PROCESS, REGION_OF_INTEREST, Recent, TABLE_CLEAR,
    TABLE_IMAGE, TABLE_REUSED, TABLE_WRITE, VALUE_TOLD, turned,
};
use crate::trace::column::{Cursor, unzigzag};
use crate::trace::image;
use nestwalk_types::{
    Control, FaultCode, Gpa, Gva, Invalidation, OsWork, PageSize, ProcessId, VcpuId,
};

/// Reads controls.
pub(in crate::trace) struct Decoder {
    memory: Memory,
    columns: [Cursor; COLUMNS],
    nonsense: bool,
}

impl Decoder {
    pub(in crate::trace) fn new(columns: [Cursor; COLUMNS]) -> Self {
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
    pub(in crate::trace) fn is_sound(&self) -> bool {
        !self.nonsense && !self.columns.iter().any(Cursor::overrun)
    }
    /// Whether everything was read.
    pub(in crate::trace) fn is_finished(&self) -> bool {
        self.is_sound() && self.columns.iter().all(Cursor::is_finished)
    }

    /// Index of the run in the chunk before which the next control stands.
    pub(in crate::trace) fn position(&mut self) -> u64 {
        let gap = self.varint(Column::Gap);
        self.memory.position = self.memory.position.saturating_add(gap);
        self.memory.position
    }

    /// The next control, after [`Decoder::position`]. It means nothing if [`Decoder::is_sound`] is
    /// false afterwards.
    pub(in crate::trace) fn control(&mut self) -> Control {
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
                Control::TableAdded { vcpu, gpa, entries }
            }
            TABLE_CLEAR => Control::TableAdded { vcpu, gpa: self.other_page(), entries: None },
            PAGE_CLEARED => {
                self.memory.cleared = self.page(Column::Page, self.memory.cleared);
                let gpa = Gpa::new(self.memory.cleared);
                let shift = match self.byte(Column::Other) {
                    shift @ 12..64 => shift,
                    _ => self.impossible::<u8>() + 12,
                };
                Control::PageCleared { vcpu, gpa, size: PageSize::from_shift(shift) }
            }
            TABLE_REUSED => Control::TableRetired { vcpu, gpa: self.other_page() },
            LOAD_CR3 => self.load_cr3(vcpu),
            FAULT => self.fault(vcpu),
            PROCESS => self.process(vcpu),
            BACKED => Control::Prefault {
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
