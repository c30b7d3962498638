//! The cost model: counted events and the profile's numbers become cycles.
//!
//! ```text
//! program     = instructions * base_cpi (the kernel's, where the stream shows them: * kernel_cpi)
//!               + data_exposed * (latency beyond the first level, of other nodes' memory, too)
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

mod prices;

pub use prices::{Account, Event, PRICES, Price, items, sum_ns};

use crate::measure::counters::{Counters, ExitReason};
use crate::measure::lock::waiting_ns;
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
        let program = base_cycles(c, profile)
            + core.data_exposed.value
                * (beyond_l1(&c.data, profile)
                    + beyond_l1(&c.fetch, profile)
                    + c.remote_cycles as f64
                    + c.late_data_cycles as f64);
        let translation = core.walk_exposed.value
            * (c.walk_cycles.saturating_sub(c.hidden_walk_cycles) as f64
                + second_level_lookups(c) as f64 * core.l2_tlb_hit_cycles.value
                + c.segment_hits as f64 * profile.segment.hit_cycles.value
                + c.assist_cycles as f64)
            + (c.guest_segment_loads + c.vmm_segment_loads) as f64
                * profile.segment.load_cycles.value
            + c.misprediction_cycles as f64;
        let per_ns = core.clock().per_ns();
        let guest_os = c.cr3_loads as f64 * core.cr3_load_cycles.value
            + sum_ns(c, &profile.software, |a| a == Account::Guest) * per_ns;
        let vmm = sum_ns(c, &profile.software, |a| a != Account::Guest);
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
    (c.instructions - c.kernel_instructions) as f64 * profile.core.base_cpi.value
        + kernel_cycles(c, profile)
}

/// Cycles of the kernel's instructions alone, where the stream shows them.
pub fn kernel_cycles(c: &Counters, profile: &Profile) -> f64 {
    c.kernel_instructions as f64 * profile.core.kernel_cpi.value
}

/// Latency of references beyond that of the first level, in cycles.
fn beyond_l1(served: &[u64; ServedBy::COUNT], profile: &Profile) -> f64 {
    let p = &profile.caches;
    let first = f64::from(p.l1d.cycles);
    let latency = [first, f64::from(p.l2.cycles), f64::from(p.llc.cycles), p.memory_cycles.value];
    served.iter().zip(latency).map(|(n, l)| *n as f64 * (l - first)).sum()
}

/// Cycles that the program waits for walks and for wrong guesses: what publications call the overhead of
/// walks, a part of [`Cycles::translation`].
pub fn walk_delay(c: &Counters, profile: &Profile) -> f64 {
    let walks = c.walk_cycles.saturating_sub(c.hidden_walk_cycles) as f64;
    profile.core.walk_exposed.value * walks + c.misprediction_cycles as f64
}

/// Latency of data beyond the first level, and of walks and look-ups of the second-level TLB, in cycles:
/// what `data_exposed` and `walk_exposed` are shares of, on a machine without segments and guesses.
pub fn hideable(c: &Counters, profile: &Profile) -> [f64; 2] {
    [
        beyond_l1(&c.data, profile) + beyond_l1(&c.fetch, profile) + c.remote_cycles as f64,
        c.walk_cycles as f64
            + second_level_lookups(c) as f64 * profile.core.l2_tlb_hit_cycles.value,
    ]
}

/// What daemons of a kernel took for what they did, `interrupts` of other processors included. Pages
/// that they fill are cleared, in a guest, before they are filled, as for copy-on-write.
pub fn daemons_ns(did: &DaemonStats, interrupts: u64, profile: &Profile) -> f64 {
    let filled = did.migrated + (did.collapsed << 9);
    let mut c = Counters { pages_cleared: filled, ..Counters::default() };
    for (work, times) in [
        (OsWork::PageScanned, did.scanned),
        (OsWork::PageMigrated, did.unmapped),
        (OsWork::Collapse, did.collapsed),
        (OsWork::Shootdown, interrupts),
        (OsWork::PageCopied, did.copied),
    ] {
        c.os_work[work.index()] = times;
    }
    sum_ns(&c, &profile.software, |a| a == Account::Guest)
}

/// What clearing so many pages of 4 KiB takes.
pub fn clearing_ns(pages: u64, profile: &Profile) -> f64 {
    let c = Counters { pages_cleared: pages, ..Counters::default() };
    sum_ns(&c, &profile.software, |a| a == Account::Guest)
}

/// What it took the host to move memory: to look at pages, to copy them, and to call the vCPUs out of
/// the guest. A part of [`Cycles::vmm`].
pub fn host_moving_cycles(c: &Counters, profile: &Profile) -> f64 {
    profile.core.clock().cycles(host_moving_ns(c, profile))
}

fn host_moving_ns(c: &Counters, profile: &Profile) -> f64 {
    let s = &profile.software;
    let exits = c.exits[ExitReason::HostMigration as usize] as f64;
    sum_ns(c, s, |a| a == Account::Moving) + exits * s.exit_ns.value
}

/// What the balloon takes for so many pages, in the guest and in the VMM.
pub fn balloon_ns(pages: u64, profile: &Profile) -> f64 {
    let c = Counters { balloon_pages: pages, ..Counters::default() };
    sum_ns(&c, &profile.software, |a| a == Account::Hypervisor)
}

/// What compaction takes to move so many pages of a guest: each is copied and the guest's other vCPUs
/// are interrupted, which is an exit.
pub fn compaction_ns(pages: u64, profile: &Profile) -> f64 {
    let mut c = Counters { pages_moved: pages, ..Counters::default() };
    c.exits[ExitReason::HostMigration as usize] = pages;
    host_moving_ns(&c, profile)
}

/// What the VMM's and the host kernel's time consists of: each price once, and how often it was paid.
/// The prices are explained in `docs/costs.md`.
pub fn vmm_items(c: &Counters) -> impl Iterator<Item = (&'static Price, u64)> {
    items(c, |a| a != Account::Guest)
}

/// What the VMM does while it holds the lock of the shadow tables, in nanoseconds; exits are not among
/// it.
pub fn locked_ns(c: &Counters, profile: &Profile) -> f64 {
    sum_ns(c, &profile.software, |a| a == Account::Locked)
}

/// The same in cycles.
pub fn locked_cycles(c: &Counters, profile: &Profile) -> f64 {
    profile.core.clock().cycles(locked_ns(c, profile))
}
