//! The cost model: counted events and the profile's numbers become cycles.
//!
//! ```text
//! program     = instructions * base_cpi (the kernel's, where the stream shows them: * kernel_cpi)
//!               + data_exposed * (latency beyond the first level)
//! guest OS    = faults, clears, copies, forks, execs, exits, switches, daemons' work * their times, as
//!               far as the stream does not show the guest kernel at work: `OsWork`, `PageCleared`;
//!               loads of CR3 * their cycles
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

use crate::measure::counters::{Counters, ExitReason};
use crate::measure::lock::waiting_ns;
use nestwalk_hw::{Profile, ServedBy, SoftwareProfile, Sourced};
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
        let program = base_cycles(c, profile)
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
        let guest_os =
            c.cr3_loads as f64 * core.cr3_load_cycles.value + guest_os_ns(c, profile) * per_ns;
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

/// Cycles of the instructions alone: the program's, and the kernel's where the stream shows them.
pub fn base_cycles(c: &Counters, profile: &Profile) -> f64 {
    let core = &profile.core;
    (c.instructions - c.kernel_instructions) as f64 * core.base_cpi.value
        + c.kernel_instructions as f64 * core.kernel_cpi.value
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

/// A price of the profile's `[software]` and how often the VMM or the host kernel paid it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Item {
    /// Key of the price.
    pub price: &'static str,
    /// How often.
    pub times: u64,
    /// The price in nanoseconds.
    pub ns: f64,
}

/// What the VMM's and the host kernel's time consists of. Each kind of work is priced once; the prices
/// are explained in `docs/costs.md`.
pub fn vmm_items(c: &Counters, s: &SoftwareProfile) -> [Item; 22] {
    let exits = |r: ExitReason| c.exits[r as usize];
    let of = |wanted: fn(ExitReason) -> bool| -> u64 {
        ExitReason::ALL.iter().filter(|r| wanted(**r)).map(|r| exits(*r)).sum()
    };
    let item = |price, times, number: &Sourced| Item { price, times, ns: number.value };
    [
        item("exit_ns", c.exits_total() - c.paravirtual_exits(), &s.exit_ns),
        item("nested_fill_ns", c.nested_fills, &s.nested_fill_ns),
        // A store that puts a leaf table out of step is a fault that is answered like others.
        item("shadow_fill_ns", c.shadow_fills + exits(ExitReason::TableUnsync), &s.shadow_fill_ns),
        item(
            "shadow_entry_ns",
            c.shadow_prefetches + c.shadow_drops + c.sync_present + c.nested_prefetches,
            &s.shadow_entry_ns,
        ),
        item("shadow_page_ns", c.shadow_pages, &s.shadow_page_ns),
        item("inject_fault_ns", exits(ExitReason::TrueFault), &s.inject_fault_ns),
        item(
            "emulate_write_ns",
            exits(ExitReason::TableWrite) + exits(ExitReason::TableEmulation),
            &s.emulate_write_ns,
        ),
        item("context_exit_ns", exits(ExitReason::Cr3Load), &s.context_exit_ns),
        item("invalidate_exit_ns", exits(ExitReason::Invalidation), &s.invalidate_exit_ns),
        item(
            "sync_entry_ns",
            c.sync_entries + c.dirty_bits_scanned + c.contiguity_updates,
            &s.sync_entry_ns,
        ),
        // The hypervisor of a guest that asks it: system calls and faults, no exits of the processor's.
        item("hypercall_ns", of(ExitReason::is_hypercall), &s.hypercall_ns),
        item("fault_bounce_ns", of(ExitReason::is_trap), &s.fault_bounce_ns),
        item("hypercall_operation_ns", c.hypercall_operations, &s.hypercall_operation_ns),
        item("validate_entry_ns", c.entries_validated, &s.validate_entry_ns),
        item("host_fault_ns", c.host_faults, &s.host_fault_ns),
        // What is copied is read and written.
        item("clear_page_ns", c.host_pages_cleared + 2 * c.pages_moved, &s.clear_page_ns),
        item("scan_page_ns", c.host_pages_scanned, &s.scan_page_ns),
        item("migrate_page_ns", c.host_pages_unmapped, &s.migrate_page_ns),
        item("collapse_ns", c.host_collapses, &s.collapse_ns),
        item("balloon_page_ns", c.balloon_pages, &s.balloon_page_ns),
        // What a VMM that asks for flushes waits for the processors that it interrupts, beyond their
        // exits.
        item("remote_flush_ns", exits(ExitReason::RemoteFlush), &s.remote_flush_ns),
        item("interrupt_ns", exits(ExitReason::InterruptSent), &s.interrupt_ns),
    ]
}

/// Prices of what the VMM does while it holds the lock of the shadow tables; exits are not among it.
const LOCKED: [&str; 6] = [
    "shadow_fill_ns",
    "shadow_entry_ns",
    "shadow_page_ns",
    "emulate_write_ns",
    "sync_entry_ns",
    "remote_flush_ns",
];

/// What the VMM does while it holds the lock of the shadow tables, in nanoseconds.
pub fn locked_ns(c: &Counters, profile: &Profile) -> f64 {
    let items = vmm_items(c, &profile.software);
    let locked = items.iter().filter(|i| LOCKED.contains(&i.price));
    locked.map(|i| i.times as f64 * i.ns).sum()
}

fn vmm_ns(c: &Counters, profile: &Profile) -> f64 {
    vmm_items(c, &profile.software).iter().map(|i| i.times as f64 * i.ns).sum()
}
