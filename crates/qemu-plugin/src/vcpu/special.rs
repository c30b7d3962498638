//! Instructions that matter to translation: loads of control registers, invalidations, page faults.

use super::{
    CR0_PG, CR4_FLUSH, CR4_LA57, Guest, Kind, NEXT, Operand, Ordering, ROOT, Record, Special, Vcpu,
    What,
};

impl Vcpu {
    /// An instruction that matters is about to execute.
    pub fn special(&mut self, guest: &Guest, special: &Special) {
        match special.what {
            What::Cr3(register) => {
                let value = self.registers.general(register);
                if guest.options.boot && !guest.recording.load(Ordering::Relaxed) {
                    // Paging may be on from before, or come with CR0: what counts is long mode.
                    guest.recording.store(self.registers.cr0() & CR0_PG != 0, Ordering::Release);
                }
                if self.on {
                    self.load_cr3(guest, value);
                }
            }
            What::Cr0(register) => {
                let value = self.registers.general(register);
                self.control_register(guest, (value ^ self.cr0) & CR0_PG != 0);
                self.cr0 = value;
            }
            What::Cr4(register) => {
                let value = self.registers.general(register);
                self.control_register(guest, (value ^ self.cr4) & CR4_FLUSH != 0);
                self.cr4 = value;
            }
            What::InvalidatePage(operand) => {
                if self.on {
                    let gva = self.address(&operand, special.next);
                    self.event(guest, |v, _, _| {
                        v.producer.push(Record::control(Kind::InvalidatePage, gva, 0));
                    });
                }
            }
            What::LoadIdt(operand) => {
                let at = self.address(&operand, special.next);
                let (root, levels) = self.tables();
                // Two bytes of limit, then the base, which may be in two words.
                let word =
                    |gva: u64| guest.ram.walk(root, levels, gva).and_then(|w| guest.ram.load(w.0));
                let base = at.wrapping_add(2);
                let low = word(base).unwrap_or(0) >> (8 * (base & 7));
                let high = match base & 7 {
                    0 => 0,
                    n => word(base.wrapping_add(7)).unwrap_or(0) << (64 - 8 * n),
                };
                guest.idt.store(low | high, Ordering::Relaxed);
                guest.fault_entry.store(u64::MAX, Ordering::Relaxed);
                self.find_fault_entry(guest);
            }
            What::Mark(number) => self.mark(guest, number),
        }
    }

    pub(super) fn control_register(&mut self, guest: &Guest, flush: bool) {
        if self.on && flush {
            self.event(guest, |v, _, _| {
                v.producer.push(Record::control(Kind::InvalidateAll, 0, 0));
            });
        }
    }

    pub(super) fn address(&mut self, operand: &Operand, next: u64) -> u64 {
        let mut register = |number: u8| match number {
            NEXT => {
                let page = self.registers.rip() & !0xfff;
                let from = if self.on { self.block_page } else { page };
                from.wrapping_add(next)
            }
            n => self.registers.general(n),
        };
        let base = operand.base.map_or(0, &mut register);
        let index = operand.index.map_or(0, |(n, scale)| register(n) << scale);
        let segment = operand.segment.map_or(0, |s| self.registers.segment_base(s));
        let sum = base.wrapping_add(index).wrapping_add(segment);
        sum.wrapping_add(operand.displacement as u64)
    }

    /// Root table and levels as the registers say now.
    pub(super) fn tables(&mut self) -> (u64, u8) {
        let levels = if self.registers.cr4() & CR4_LA57 != 0 { 5 } else { 4 };
        (self.registers.cr3() & ROOT, levels)
    }

    pub(super) fn load_cr3(&mut self, guest: &Guest, value: u64) {
        let (old, new) = (self.root, value & ROOT);
        let before = (old != u64::MAX).then_some(old);
        self.event(guest, |v, guest, tables| {
            let producer = &mut v.producer;
            let parts = (&guest.ram, &guest.levels);
            tables.load(parts, (before, new, v.levels), &mut |r| {
                producer.push(r);
            });
            v.producer.push(Record::control(Kind::LoadCr3, value, 0));
        });
        self.root = new;
        self.unnamed = true;
        self.find_fault_entry(guest);
    }

    /// Where the handler of page faults begins: gate 14 of the interrupt descriptor table (SDM vol. 3A,
    /// figure 6-8).
    pub(super) fn find_fault_entry(&mut self, guest: &Guest) {
        if guest.fault_entry.load(Ordering::Relaxed) == u64::MAX {
            let idt = guest.idt.load(Ordering::Relaxed);
            let (root, levels) = self.tables();
            let word =
                |gva: u64| guest.ram.walk(root, levels, gva).and_then(|w| guest.ram.load(w.0));
            let gate = (idt.wrapping_add(14 * 16), idt.wrapping_add(14 * 16 + 8));
            if let (true, Some(low), Some(high)) = (idt != 0, word(gate.0), word(gate.1)) {
                let entry = low & 0xffff | low >> 48 << 16 | high << 32;
                if let Some((gpa, _)) = guest.ram.walk(root, levels, entry) {
                    guest.fault_entry.store(gpa, Ordering::Relaxed);
                }
            }
        }
        self.fault_entry = guest.fault_entry.load(Ordering::Relaxed);
    }

    /// The first instruction of the page-fault handler is next: CR2 has the address, and the error code
    /// is on top of the stack.
    #[cold]
    pub(super) fn page_fault(&mut self, guest: &Guest) {
        let (gva, stack) = (self.registers.cr2(), self.registers.general(4));
        let code = guest.ram.walk(self.root, self.levels, stack);
        let code = code.and_then(|w| guest.ram.load(w.0)).unwrap_or(0);
        self.event(guest, |v, _, _| {
            v.producer.push(Record::control(Kind::Fault, gva, code));
        });
    }

    /// The process that runs in user mode for the first time since CR3 was loaded.
    #[cold]
    pub(super) fn name(&mut self, guest: &Guest) {
        self.unnamed = false;
        let Some(task) = guest.options.task else { return };
        // In user mode the kernel's GS base is the one that SWAPGS will bring.
        let area = self.registers.kernel_gs_base();
        // With page-table isolation, the kernel's own root is the page before the user's (Linux,
        // `kernel_to_user_pgdp`).
        let mapped = guest.ram.walk(self.root, self.levels, area.wrapping_add(task.current));
        let root = if mapped.is_some() { self.root } else { self.root & !0x1000 };
        let word =
            |gva: u64| guest.ram.walk(root, self.levels, gva).and_then(|w| guest.ram.load(w.0));
        let Some(current) = word(area.wrapping_add(task.current)) else { return };
        let bytes = |gva: u64| {
            let (low, high) = (word(gva)?, word(gva.wrapping_add(7))?);
            let shift = 8 * (gva & 7);
            Some(if shift == 0 { low } else { low >> shift | high << (64 - shift) })
        };
        let comm = current.wrapping_add(task.comm);
        let found =
            (bytes(comm), bytes(comm.wrapping_add(8)), bytes(current.wrapping_add(task.tgid)));
        if let (Some(first), Some(second), Some(tgid)) = found {
            let mut record = Record::control(Kind::Process, self.root, tgid & 0xffff_ffff);
            record.c = first;
            self.data.clear(&mut self.producer);
            self.fetch.clear(&mut self.producer);
            self.producer.push(record);
            self.producer.push(Record::from([second, 0, 0, 0]));
        }
    }
}
