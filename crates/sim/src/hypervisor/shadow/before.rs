//! What a hypervisor with shadow tables has of a guest that ran before the stream begins.
//!
//! A recording begins in the life of a guest: under nested paging the nested tables are there already,
//! and under shadow paging so are the shadows of whatever the guest has used. The guest's own tables
//! say what that was: leaves with the accessed bit, and behind those, memory that the host has pages
//! for. The kernel clears every page through its own large mapping before it hands it out, so what of a
//! large leaf has pages behind it was used through it.

use super::ShadowMmu;
use crate::hardware::Request;
use crate::scheme::{MachineError, Platform};
use nestwalk_tables::entry::{ACCESSED, DIRTY, LARGE, USER, WRITE};
use nestwalk_tables::{Entry, Level};
use nestwalk_types::{Address, Gpa, Gva, PageSize, VcpuId};

impl ShadowMmu {
    /// Builds the shadows of what the vCPU's address space has used, as far as the quota allows.
    ///
    /// # Errors
    /// Host memory is exhausted.
    pub fn warm_start(
        &mut self,
        platform: &mut Platform,
        vcpu: VcpuId,
    ) -> Result<(), MachineError> {
        if self.guest_mode.entry_bytes != 8 || self.guest_mode.root_in_registers {
            // No recording has such a guest.
            return Ok(());
        }
        let root = platform.cpu.world.root(vcpu);
        self.table_used(platform, vcpu, (root, self.guest_mode.levels), 0, USER | WRITE)
    }

    /// The part of the address space below a guest table; `allowed` is what the entries above allow.
    fn table_used(
        &mut self,
        platform: &mut Platform,
        vcpu: VcpuId,
        (table, level): (Gpa, Level),
        base: u64,
        allowed: u64,
    ) -> Result<(), MachineError> {
        let mode = self.guest_mode;
        let Some(entries) = platform.cpu.world.guest.page(table).map(|page| *page) else {
            return Ok(());
        };
        let span = mode.span(level).bytes();
        for (i, word) in entries.iter().enumerate() {
            let entry = Entry(*word);
            if !entry.is_present() || !entry.has(ACCESSED) {
                continue;
            }
            let mut start = base + i as u64 * span;
            if level == mode.levels && i as u64 >= mode.entries(level) / 2 {
                // The upper half is at the end of the 64-bit addresses.
                start |= u64::MAX << mode.address_bits();
            }
            let allowed = allowed & entry.0;
            if level == 1 || (mode.may_be_leaf(level) && entry.has(LARGE)) {
                let leaf = (entry, mode.span(level));
                self.leaf_used(platform, vcpu, leaf, start, allowed)?;
            } else {
                let below = (entry.target(), level - 1);
                self.table_used(platform, vcpu, below, start, allowed)?;
            }
        }
        Ok(())
    }

    fn leaf_used(
        &mut self,
        platform: &mut Platform,
        vcpu: VcpuId,
        (entry, size): (Entry, PageSize),
        start: u64,
        allowed: u64,
    ) -> Result<(), MachineError> {
        let frame: Gpa = entry.frame(size);
        let mut at = 0;
        while at < size.bytes() && self.live < self.quota {
            let gpa = frame.offset_by(at);
            let behind = platform.host.as_ref().and_then(|h| h.look_up(gpa));
            let step = behind.map_or(PageSize::SIZE_4K, |page| page.size.min(size));
            if behind.is_some() {
                let request = Request {
                    vcpu,
                    gva: Gva::new(start + at),
                    write: allowed & WRITE != 0 && entry.has(DIRTY),
                    fetch: false,
                    user: allowed & USER != 0,
                    pc: Gva::new(0),
                };
                self.page_fault(platform, &request)?;
                self.end_emulation();
            }
            at += step.bytes();
        }
        Ok(())
    }
}
