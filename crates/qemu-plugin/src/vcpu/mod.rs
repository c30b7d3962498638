//! One vCPU: its filters, and what it says.

mod life;
mod special;

use crate::access::Reading;
use crate::decode::{NEXT, Operand, What};
use crate::guest::Guest;
use crate::registers::Registers;
use crate::tables::Tables;
use nestwalk_wire::{AccessFilter, BLOCK, Class, Kind, Look, Producer, Record};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

/// Translation blocks after which a vCPU of several says how far it is.
const REPORT: u32 = 4096;
/// Regions of 2 MiB whose page size is remembered.
const REGIONS: usize = 256;
/// Pages of code whose address is remembered.
const CODE_PAGES: usize = 256;

const CR0_PG: u64 = 1 << 31;
/// Bits of CR4 whose change empties the TLBs (SDM vol. 3A, "Operations that Invalidate TLBs and
/// Paging-Structure Caches"): PSE, PAE, PGE, LA57, PCIDE, SMEP.
const CR4_FLUSH: u64 = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 12 | 1 << 17 | 1 << 20;
const CR4_LA57: u64 = 1 << 12;
const ROOT: u64 = 0x000f_ffff_ffff_f000;

/// A translation block, as the callback of its execution finds it.
pub struct Block {
    /// gPA of the first instruction.
    pub gpa: u64,
    /// Offset of the first instruction in its page.
    pub offset: u64,
    /// Instructions on the first page and on the second.
    pub instructions: [u16; 2],
    /// Lines of them.
    pub lines: [u64; 2],
    /// gPA of the second page, 0 if the block is on one.
    pub second: u64,
}

/// What an instruction that matters does, and how long it is.
#[derive(Clone, Copy)]
pub struct Special {
    pub what: What,
    /// Offset of the next instruction from the first page of its block.
    pub next: u64,
}

/// Why accesses are not in the stream.
#[derive(Clone, Copy)]
pub enum Dropped {
    /// To a device.
    Device = 0,
    /// The second page of an access is not mapped as the tables say.
    Unmapped = 1,
}

/// A vCPU.
pub struct Vcpu {
    pub registers: Registers,
    index: u8,
    on: bool,
    producer: Producer,
    data: AccessFilter,
    fetch: AccessFilter,
    /// Address of the page in which the running block begins.
    block_page: u64,
    /// gPA and gVA of the page that was fetched from last.
    fetch_gpa: u64,
    fetch_page: u64,
    code_pages: [(u64, u64); CODE_PAGES],
    regions: [(u64, Class); REGIONS],
    /// Instructions that no record carries yet.
    instructions: u64,
    /// Where the latest run is.
    last_run: u64,
    root: u64,
    levels: u8,
    cr0: u64,
    cr4: u64,
    fault_entry: u64,
    moment: u64,
    tables_made: u64,
    until_report: u32,
    dropped: [u64; 2],
    /// A process was switched to and has not run in user mode yet.
    unnamed: bool,
}

impl Vcpu {
    pub fn new(index: u8, guest: &Guest, producer: Producer, registers: Registers) -> Self {
        Self {
            registers,
            index,
            on: false,
            producer,
            data: AccessFilter::new(guest.options.filters[0]),
            fetch: AccessFilter::new(guest.options.filters[1]),
            block_page: 0,
            fetch_gpa: u64::MAX,
            fetch_page: 0,
            code_pages: [(u64::MAX, 0); CODE_PAGES],
            regions: [(u64::MAX, Class::Small); REGIONS],
            instructions: 0,
            last_run: 0,
            root: u64::MAX,
            levels: 4,
            cr0: 0,
            cr4: 0,
            fault_entry: u64::MAX,
            moment: 0,
            tables_made: 0,
            until_report: REPORT,
            dropped: [0; 2],
            unnamed: true,
        }
    }

    // ---- blocks and fetches ----

    /// A translation block begins.
    #[inline(always)]
    pub fn block(&mut self, guest: &Guest, block: &Block) {
        if !self.on || guest.vcpus > 1 {
            self.look_around(guest);
            if !self.on {
                return;
            }
        }
        if block.gpa == self.fault_entry {
            self.page_fault(guest);
        }
        let page = block.gpa & !0xfff;
        if page != self.fetch_gpa {
            self.find_code(page, block.offset);
        }
        self.block_page = self.fetch_page;
        self.instructions += u64::from(block.instructions[0]);
        self.fetches(guest, block.offset, block.instructions[0], block.lines[0]);
        if block.second != 0 {
            self.fetch_gpa = block.second;
            self.fetch_page = self.block_page.wrapping_add(0x1000);
            self.instructions += u64::from(block.instructions[1]);
            self.fetches(guest, 0, block.instructions[1], block.lines[1]);
        }
    }

    #[inline(always)]
    fn fetches(&mut self, guest: &Guest, offset: u64, count: u16, lines: u64) {
        let gva = self.fetch_page | offset;
        let kernel = gva >> 63 == 1;
        let look = self.fetch.look(&mut self.producer, gva, (kernel, false), (count, lines));
        if look == Look::Miss {
            self.fetched(guest, gva, kernel, (count, lines));
        }
    }

    #[inline(never)]
    fn fetched(&mut self, guest: &Guest, gva: u64, kernel: bool, (count, lines): (u16, u64)) {
        if self.unnamed && !kernel {
            self.name(guest);
        }
        self.before_run(guest);
        if guest.options.check {
            let gpa = self.fetch_gpa | gva & 0xfff;
            self.producer.push(Record::control(Kind::Check, gva, gpa));
        }
        let class = self.class(guest, gva);
        let flags = 2 | u8::from(kernel) << 2;
        let instructions = self.take_instructions();
        let run =
            Record { a: gva, b: gva, c: lines, count, instructions, flags, ..Record::default() };
        self.last_run = self.fetch.insert(&mut self.producer, run, class, false);
    }

    /// Where the page of code at `gpa` is: blocks are shared by all who have the page mapped, so only
    /// the instruction pointer knows.
    #[inline(never)]
    fn find_code(&mut self, gpa: u64, offset: u64) {
        let slot = (gpa >> 12) as usize % CODE_PAGES;
        if self.code_pages[slot].0 != gpa {
            self.code_pages[slot] = (gpa, self.registers.rip().wrapping_sub(offset) & !0xfff);
        }
        (self.fetch_gpa, self.fetch_page) = self.code_pages[slot];
    }

    // ---- data ----

    /// An access was made. `next` is where its instruction begins, from the first page of its block.
    #[inline(always)]
    pub fn access(&mut self, guest: &Guest, info: u32, gva: u64, at: u64) {
        if !self.on {
            return;
        }
        let (store, kernel) = Reading::kind(info);
        let bytes = guest.reading.bytes(info);
        let last = (gva & 0xfff) + bytes - 1;
        if last > 0xfff {
            return self.two_pages(guest, info, gva, at);
        }
        let lines = 1 << (gva >> 6 & 63) | 1 << (last >> 6);
        let look = self.data.look(&mut self.producer, gva, (kernel, store), (1, lines));
        if look == Look::Miss {
            self.accessed(guest, info, gva, at, lines);
        }
    }

    #[inline(never)]
    fn accessed(&mut self, guest: &Guest, info: u32, gva: u64, at: u64, lines: u64) {
        // QEMU 10.2 does not say of the local APIC that it is a device.
        let gpa = crate::entry::physical(info, gva).filter(|gpa| guest.ram.has(*gpa));
        let Some(gpa) = gpa else {
            self.dropped[Dropped::Device as usize] += 1;
            return;
        };
        self.run(guest, info, (gva, gpa), at, lines);
    }

    /// An access that crosses into the next page is one to each page.
    #[cold]
    fn two_pages(&mut self, guest: &Guest, info: u32, gva: u64, at: u64) {
        let bytes = guest.reading.bytes(info);
        let end = (gva & 0xfff) + bytes - 0x1000;
        self.accessed(guest, info, gva, at, 1 << 63);
        let next = (gva & !0xfff).wrapping_add(0x1000);
        let lines = u64::MAX >> (63 - ((end - 1) >> 6));
        match guest.ram.walk(self.root, self.levels, next) {
            Some((gpa, _)) => self.run(guest, info, (next, gpa), at, lines),
            None => self.dropped[Dropped::Unmapped as usize] += 1,
        }
    }

    fn run(&mut self, guest: &Guest, info: u32, (gva, gpa): (u64, u64), at: u64, lines: u64) {
        let (store, kernel) = Reading::kind(info);
        self.before_run(guest);
        if guest.options.check {
            self.producer.push(Record::control(Kind::Check, gva, gpa));
        }
        let watched = store && guest.levels.watched(gpa);
        let class = self.class(guest, gva);
        let run = Record {
            a: gva,
            b: self.block_page.wrapping_add(at),
            c: lines,
            count: 1,
            instructions: self.take_instructions(),
            flags: u8::from(store) | u8::from(kernel) << 2,
            ..Record::default()
        };
        self.last_run = self.data.insert(&mut self.producer, run, class, store && !watched);
        if watched {
            self.table_store(guest, gpa, guest.reading.bytes(info));
        }
    }

    /// A store to a page table has been made.
    #[cold]
    fn table_store(&mut self, guest: &Guest, gpa: u64, bytes: u64) {
        // One entry at most beyond the page: no store to a table crosses it.
        let bytes = bytes.min(0x1000 - (gpa & 0xfff));
        self.event(guest, |v, guest, tables| {
            let producer = &mut v.producer;
            let parts = (&guest.ram, &guest.levels);
            tables.stored(parts, (gpa, bytes), &mut |r| {
                producer.push(r);
            });
        });
    }

    // ---- what is common to records ----

    /// Publishes when a block is full, and says the moment if others have made new ones.
    #[inline]
    fn before_run(&mut self, guest: &Guest) {
        if self.producer.open() >= BLOCK {
            self.publish();
        }
        if guest.vcpus > 1 {
            let moment = guest.rings.moment();
            if moment != self.moment {
                self.moment = moment;
                self.data.announce_all(&mut self.producer);
                self.fetch.announce_all(&mut self.producer);
                self.producer.push(Record::control(Kind::Moment, moment, 0));
            }
        }
    }

    fn publish(&mut self) {
        self.data.announce_all(&mut self.producer);
        self.fetch.announce_all(&mut self.producer);
        self.producer.publish();
    }

    /// Instructions since the last record, at most what one holds; the rest is a record of its own.
    fn take_instructions(&mut self) -> u16 {
        let all = std::mem::take(&mut self.instructions);
        u16::try_from(all).unwrap_or_else(|_| {
            self.producer.push(Record::control(Kind::Instructions, all, 0));
            0
        })
    }

    fn class(&mut self, guest: &Guest, gva: u64) -> Class {
        let region = gva >> 21;
        let slot = region as usize % REGIONS;
        if self.regions[slot].0 != region {
            let class = guest.ram.walk(self.root, self.levels, gva).map_or(Class::Small, |w| w.1);
            self.regions[slot] = (region, class);
        }
        self.regions[slot].1
    }

    /// Something that tables or translations depend on: it has a moment of its own, and nothing that
    /// was in the filters may hide what comes after it.
    ///
    /// The tables are locked from before the moment is made until all is said: of two events that
    /// change them, the one with the later moment knows what the other did.
    fn event(&mut self, guest: &Guest, say: impl FnOnce(&mut Self, &Guest, &mut Tables)) {
        self.data.clear(&mut self.producer);
        self.fetch.clear(&mut self.producer);
        self.fetch_gpa = u64::MAX;
        self.code_pages = [(u64::MAX, 0); CODE_PAGES];
        self.regions = [(u64::MAX, Class::Small); REGIONS];
        let mut tables = guest.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if guest.vcpus > 1 {
            self.moment = guest.rings.next_moment();
            self.producer.push(Record::control(Kind::Moment, self.moment, 1));
        }
        say(self, guest, &mut tables);
        guest.tables_made.store(tables.made(), Ordering::Release);
        drop(tables);
        if self.producer.open() >= BLOCK {
            self.publish();
        }
    }
}
