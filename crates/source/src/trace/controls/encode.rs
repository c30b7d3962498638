//! Writing controls.

use super::{
    ADDRESS_TOLD, AFTER_LAST, AFTER_SECOND, BACKED, CLEARED_PAGE, Column, FAULT, FRAME, FRAME_TOLD,
    INVALIDATE_ALL, INVALIDATE_ALL_BUT_GLOBAL, INVALIDATE_PAGE, INVALIDATE_PAGE_IN_PCID,
    INVALIDATE_PCID, LOAD_CR3, Memory, NEXT_FRAME, OF_FAULT, OS_WORK, OTHER_VCPU, PAGE_CLEARED,
    PROCESS, REGION_OF_INTEREST, Recent, SAME, TABLE_CLEAR, TABLE_IMAGE, TABLE_REUSED, TABLE_WRITE,
    USED, VALUE_TOLD, WRITE_PROTECTED, Written, ZERO, turned,
};
use crate::trace::column::{put_varint, zigzag};
use crate::trace::header::control_name;
use crate::trace::image;
use nestwalk_types::{Control, FaultCode, Gpa, Gva, Invalidation, VcpuId};

/// Writes controls.
pub(in crate::trace) struct Encoder {
    memory: Memory,
    pub(in crate::trace) columns: Written,
}

impl Encoder {
    pub(in crate::trace) fn new() -> Self {
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

    fn process(&mut self, id: u32, name: &str) {
        self.varint(Column::Other, u64::from(id));
        self.varint(Column::Other, name.len() as u64);
        self.columns[Column::Other as usize].extend(name.as_bytes());
    }

    /// Adds a control that stands before run `position` of the chunk.
    ///
    /// # Errors
    /// The name of a control that no guest says.
    pub(in crate::trace) fn control(
        &mut self,
        position: u64,
        control: &Control,
    ) -> Result<(), &'static str> {
        let gap = position - self.memory.position;
        match *control {
            Control::TableWrite { vcpu, gpa, value } => {
                self.kind(TABLE_WRITE, vcpu);
                self.table_write(gpa.value(), value);
            }
            Control::TableAdded { vcpu, gpa, ref entries } => {
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
            Control::TableRetired { vcpu, gpa } => {
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
                self.process(id.0, name);
            }
            Control::Prefault { start, bytes } => {
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
            // Recorded guests have no segment registers, and no need of contiguous memory.
            Control::LoadSegment { .. }
            | Control::SelfBallooned { .. }
            | Control::WrittenOut { .. }
            | Control::Switch { .. }
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
