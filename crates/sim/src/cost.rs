//! The cost model: counted events and the profile's numbers become cycles.
//!
//! ```text
//! program     = instructions * base_cpi + data_exposed * (latency beyond the first level)
//! guest OS    = faults, clears, copies, forks, execs, exits, switches, daemons' work * their times, as
//!               far as the stream does not show the guest kernel at work: `OsWork`, `PageCleared`
//! translation = walk_exposed * (walker cycles - those that correct guesses hid
//!               + (first-level TLB misses that no segment served + anchor look-ups)
//!               * l2_tlb_hit_cycles + segment hits * their cycles)
//!               + loads of segment registers * their cycles + delay by wrong guesses
//! VMM         = exits and the work behind them * their times + waiting for the shadow tables' lock
//! ```
//!
//! Overheads follow the papers (Agile Paging, ISCA 2016, Table IV): relative to what the same
//! instructions take on the `ideal` machine with the same guest; the walk's share is everything that
//! is not the VMM's, so that what page tables displace from the caches counts as translation.

use crate::counters::{Counters, ExitReason};
use crate::lock::waiting_ns;
use nestwalk_hw::{Profile, ServedBy};
use nestwalk_mm::DaemonStats;
use nestwalk_types::OsWork;
use serde::Serialize;

/// Cycles of one machine, by cause. Fractions of cycles are kept.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Cycles {
    /// Instructions and their data references.
    pub program: f64,
    /// The guest kernel's work, the same on every machine with this guest.
    pub guest_os: f64,
    /// Delay by page walks and look-ups of the second-level TLB.
    pub translation: f64,
    /// The VMM's and the host kernel's work, and waiting for the lock of the shadow tables.
    pub vmm: f64,
    /// Of these, waiting for the lock.
    pub lock_wait: f64,
}

impl Cycles {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.program + self.guest_os + self.translation + self.vmm
    }

    /// Prices the counters of one machine.
    pub fn of(c: &Counters, profile: &Profile) -> Self {
        let core = &profile.core;
        let program = c.instructions as f64 * core.base_cpi.value
            + core.data_exposed.value
                * (beyond_l1(&c.data, profile) + beyond_l1(&c.fetch, profile));
        let translation = core.walk_exposed.value
            * (c.walk_cycles.saturating_sub(c.hidden_walk_cycles) as f64
                + second_level_lookups(c) as f64 * core.l2_tlb_hit_cycles.value
                + c.segment_hits as f64 * profile.segment.hit_cycles.value)
            + (c.guest_segment_loads + c.vmm_segment_loads) as f64
                * profile.segment.load_cycles.value
            + c.misprediction_cycles as f64;
        let per_ns = core.frequency_mhz.value / 1000.0;
        let guest_os = guest_os_ns(c, profile) * per_ns;
        let vmm = vmm_ns(c, profile);
        let total_ns = (program + guest_os + translation) / per_ns + vmm;
        let lock_wait = waiting_ns(c, locked_ns(c, profile), total_ns, profile) * per_ns;
        Self { program, guest_os, translation, vmm: vmm * per_ns + lock_wait, lock_wait }
    }
}

/// Look-ups of the second-level TLB that somebody waits for: one for each first-level miss, since a walk
/// begins only when the second level has missed, too, and one more for an anchor, which is looked up
/// after the regular entry, in the same array. Where a segment answers, nobody waits for the second
/// level; an entry of the first level that cannot serve is followed by a walk at once.
pub const fn second_level_lookups(c: &Counters) -> u64 {
    c.l1_tlb_misses.saturating_sub(c.segment_hits) + c.anchor_lookups
}

/// Latency of references beyond that of the first level, in cycles.
fn beyond_l1(served: &[u64; ServedBy::COUNT], profile: &Profile) -> f64 {
    let p = &profile.caches;
    let first = f64::from(p.l1d.cycles);
    let latency = [first, f64::from(p.l2.cycles), f64::from(p.llc.cycles), p.memory_cycles.value];
    served.iter().zip(latency).map(|(n, l)| *n as f64 * (l - first)).sum()
}

fn guest_os_ns(c: &Counters, profile: &Profile) -> f64 {
    let s = &profile.software;
    let work = |w: OsWork| c.os_work[w.index()] as f64;
    work(OsWork::PageFault) * s.guest_fault_ns.value
        + (c.pages_cleared as f64 + 2.0 * work(OsWork::PageCopied)) * s.clear_page_ns.value
        + work(OsWork::Fork) * s.guest_fork_ns.value
        + work(OsWork::Exec) * s.guest_exec_ns.value
        + work(OsWork::Exit) * s.guest_exit_ns.value
        + work(OsWork::ContextSwitch) * s.guest_switch_ns.value
        + work(OsWork::PageScanned) * s.scan_page_ns.value
        + work(OsWork::PageMigrated) * s.migrate_page_ns.value
        + work(OsWork::Collapse) * s.collapse_ns.value
        + work(OsWork::Shootdown) * s.shootdown_ns.value
}

/// What daemons of a kernel took for what they did, `interrupts` of other processors included. Pages
/// that they fill are cleared, in a guest, before they are filled, as for copy-on-write.
pub fn daemons_ns(did: &DaemonStats, interrupts: u64, profile: &Profile) -> f64 {
    let s = &profile.software;
    let filled = did.migrated + (did.collapsed << 9);
    did.scanned as f64 * s.scan_page_ns.value
        + did.unmapped as f64 * s.migrate_page_ns.value
        + did.collapsed as f64 * s.collapse_ns.value
        + interrupts as f64 * s.shootdown_ns.value
        + (filled as f64 + 2.0 * did.copied as f64) * s.clear_page_ns.value
}

/// What it took the host to move memory: to look at pages, to copy them, and to call the vCPUs out of
/// the guest. A part of [`Cycles::vmm`].
pub fn host_moving_cycles(c: &Counters, profile: &Profile) -> f64 {
    let s = &profile.software;
    let exits = c.exits[ExitReason::HostMigration as usize] as f64;
    (host_moving_ns(c, profile) + exits * s.exit_ns.value) * profile.core.frequency_mhz.value
        / 1000.0
}

fn host_moving_ns(c: &Counters, profile: &Profile) -> f64 {
    let s = &profile.software;
    2.0 * c.pages_moved as f64 * s.clear_page_ns.value
        + c.host_pages_scanned as f64 * s.scan_page_ns.value
        + c.host_pages_unmapped as f64 * s.migrate_page_ns.value
        + c.host_collapses as f64 * s.collapse_ns.value
}

/// What the balloon takes for so many pages, in the guest and in the VMM.
pub fn balloon_ns(pages: u64, profile: &Profile) -> f64 {
    pages as f64 * profile.software.balloon_page_ns.value
}

/// What compaction takes to move so many pages of a guest: each is copied and the guest's other vCPUs
/// are interrupted, which is an exit.
pub fn compaction_ns(pages: u64, profile: &Profile) -> f64 {
    let s = &profile.software;
    pages as f64 * (2.0 * s.clear_page_ns.value + s.exit_ns.value)
}

fn vmm_ns(c: &Counters, profile: &Profile) -> f64 {
    let s = &profile.software;
    let exits = |r: ExitReason| c.exits[r as usize] as f64;
    paravirtual_ns(c, profile)
        + (c.exits_total() - c.paravirtual_exits()) as f64 * s.exit_ns.value
        + c.nested_fills as f64 * s.nested_fill_ns.value
        + c.shadow_fills as f64 * s.shadow_fill_ns.value
        + exits(ExitReason::TrueFault) * s.inject_fault_ns.value
        + exits(ExitReason::TableWrite) * s.emulate_write_ns.value
        + exits(ExitReason::TableUnsync) * s.shadow_fill_ns.value
        + (exits(ExitReason::Cr3Load) + exits(ExitReason::Invalidation)) * s.context_exit_ns.value
        + (c.sync_entries
            + c.shadow_prefetches
            + c.nested_prefetches
            + c.dirty_bits_scanned
            + c.contiguity_updates) as f64
            * s.sync_entry_ns.value
        + c.host_faults as f64 * s.host_fault_ns.value
        + host_moving_ns(c, profile)
        + remote_flush_ns(c, profile)
        + exits(ExitReason::InterruptSent) * s.interrupt_ns.value
        + c.host_pages_cleared as f64 * s.clear_page_ns.value
        + balloon_ns(c.balloon_pages, profile)
}

/// What the VMM does while it holds the lock of the shadow tables; exits are not among it.
fn locked_ns(c: &Counters, profile: &Profile) -> f64 {
    let s = &profile.software;
    let exits = |r: ExitReason| c.exits[r as usize] as f64;
    (c.shadow_fills as f64 + exits(ExitReason::TableUnsync)) * s.shadow_fill_ns.value
        + exits(ExitReason::TableWrite) * s.emulate_write_ns.value
        + (c.sync_entries + c.shadow_prefetches) as f64 * s.sync_entry_ns.value
        + remote_flush_ns(c, profile)
}

/// What a VMM that asks for flushes waits for the processors that it interrupts, beyond their exits.
fn remote_flush_ns(c: &Counters, profile: &Profile) -> f64 {
    c.exits[ExitReason::RemoteFlush as usize] as f64 * profile.software.shootdown_ns.value
}

/// The hypervisor of a guest that asks it: system calls and faults, no exits of the processor's.
fn paravirtual_ns(c: &Counters, profile: &Profile) -> f64 {
    let s = &profile.software;
    let of = |wanted: fn(ExitReason) -> bool| -> u64 {
        ExitReason::ALL.iter().filter(|r| wanted(**r)).map(|r| c.exits[*r as usize]).sum()
    };
    of(ExitReason::is_hypercall) as f64 * s.hypercall_ns.value
        + of(ExitReason::is_trap) as f64 * s.fault_bounce_ns.value
        + c.exits[ExitReason::TableEmulation as usize] as f64 * s.emulate_write_ns.value
        + c.hypercall_operations as f64 * s.hypercall_operation_ns.value
        + c.entries_validated as f64 * s.validate_entry_ns.value
}
