//! Prices of software: who pays each, for which count. A row for each count.

use crate::measure::counters::{Counters, ExitClass, ExitReason};
use nestwalk_hw::SoftwareProfile;
use nestwalk_types::OsWork;

/// Who pays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Account {
    /// The hypervisor.
    Hypervisor,
    /// The hypervisor while it holds the lock of the shadow tables.
    Locked,
    /// The host kernel.
    Host,
    /// The host kernel that moves memory: its daemons, and compaction for segments.
    Moving,
    /// The guest kernel, its daemons included.
    Guest,
}

impl Account {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hypervisor => "hypervisor",
            Self::Locked => "hypervisor, with the lock of the shadow tables,",
            Self::Host => "host kernel",
            Self::Moving => "host kernel, which moves memory,",
            Self::Guest => "guest kernel",
        }
    }
}

/// What a price is paid for.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A counter: its name, and its value.
    Counter(&'static str, fn(&Counters) -> u64),
    /// Exits for one reason.
    Exit(ExitReason),
    /// Exits of one class.
    Exits(ExitClass),
    /// Work of the guest kernel that its stream tells by kind.
    Work(OsWork),
}

impl Event {
    /// How often it happened.
    fn count(self, c: &Counters) -> u64 {
        match self {
            Self::Counter(_, value) => value(c),
            Self::Exit(reason) => c.exits[reason as usize],
            Self::Exits(class) => c.exits_of(class),
            Self::Work(work) => c.os_work[work.index()],
        }
    }
    /// The field of results that has it.
    pub fn field(self) -> String {
        match self {
            Self::Counter(name, _) => name.into(),
            Self::Exit(reason) => format!("vm_exits.{}", reason.name()),
            Self::Exits(class) => format!("vm_exits ({})", class.name()),
            Self::Work(work) => format!("guest_os_work.{}", work.name()),
        }
    }
}

/// A price of the profile's `[software]`, who pays it, and for what.
#[derive(Clone, Copy, Debug)]
pub struct Price {
    /// Who pays.
    pub account: Account,
    /// Key of the price.
    pub key: &'static str,
    /// How often it is paid for one event.
    pub times: u64,
    /// What it is paid for.
    pub event: Event,
    ns: fn(&SoftwareProfile) -> f64,
}

impl Price {
    /// How often it was paid.
    pub fn paid(&self, c: &Counters) -> u64 {
        self.times * self.event.count(c)
    }
    /// The price in nanoseconds.
    pub fn ns(&self, software: &SoftwareProfile) -> f64 {
        (self.ns)(software)
    }
}

macro_rules! event {
    (exit $reason:ident) => {
        Event::Exit(ExitReason::$reason)
    };
    (exits $class:ident) => {
        Event::Exits(ExitClass::$class)
    };
    (work $work:ident) => {
        Event::Work(OsWork::$work)
    };
    ($counter:ident) => {
        Event::Counter(stringify!($counter), |c| c.$counter)
    };
}

macro_rules! prices {
    ($($account:ident $key:ident $times:literal ($($event:tt)+);)*) => {
        /// Every price. Rows of one price stand together, the guest kernel's apart: sums of fractions
        /// depend on their order.
        pub static PRICES: &[Price] = &[$(Price {
            account: Account::$account,
            key: stringify!($key),
            times: $times,
            event: event!($($event)+),
            ns: |s| s.$key.value,
        }),*];
    };
}

prices! {
    Hypervisor exit_ns 1 (exits Exit);
    Hypervisor nested_exit_ns 1 (reflected_exits);
    Hypervisor switcher_exit_ns 1 (switcher_exits);
    Hypervisor nested_fill_ns 1 (nested_fills);
    Locked shadow_fill_ns 1 (shadow_fills);
    // A store that puts a leaf table out of step is a fault that is answered like others.
    Locked shadow_fill_ns 1 (exit TableUnsync);
    Locked shadow_entry_ns 1 (shadow_prefetches);
    Locked shadow_entry_ns 1 (shadow_drops);
    Locked shadow_entry_ns 1 (sync_present);
    Locked shadow_entry_ns 1 (nested_prefetches);
    Hypervisor table_entry_ns 1 (nested_table_moves);
    Hypervisor table_entry_ns 1 (nested_copy_stores);
    Locked shadow_page_ns 1 (shadow_pages);
    Hypervisor inject_fault_ns 1 (exit TrueFault);
    Hypervisor inject_fault_ns 1 (async_faults);
    Locked emulate_write_ns 1 (exit TableWrite);
    Locked emulate_write_ns 1 (exit TableEmulation);
    Locked emulate_write_ns 1 (exit InnerTableStore);
    Hypervisor context_exit_ns 1 (exit Cr3Load);
    Hypervisor invalidate_exit_ns 1 (exit Invalidation);
    Locked sync_entry_ns 1 (sync_entries);
    Locked sync_entry_ns 1 (dirty_bits_scanned);
    Locked sync_entry_ns 1 (contiguity_updates);
    // The hypervisor of a guest that asks it: system calls and faults, no exits of the processor's.
    Hypervisor hypercall_ns 1 (exits Hypercall);
    // An exception comes in and goes back as a system call does.
    Hypervisor hypercall_ns 1 (exits Answered);
    Hypervisor fault_bounce_ns 1 (exits Trap);
    Hypervisor hypercall_operation_ns 1 (hypercall_operations);
    Hypervisor validate_entry_ns 1 (entries_validated);
    Host host_fault_ns 1 (host_faults);
    Host clear_page_ns 1 (host_pages_cleared);
    Hypervisor clear_page_ns 1 (nested_table_pages);
    Hypervisor clear_page_ns 1 (nested_copy_pages);
    Hypervisor clear_page_ns 2 (nested_table_copies);
    // What is copied is read and written.
    Moving clear_page_ns 2 (pages_moved);
    Moving clear_page_ns 2 (nested_tables_moved);
    Moving scan_page_ns 1 (host_pages_scanned);
    Moving scan_page_ns 1 (nested_tables_scanned);
    Moving migrate_page_ns 1 (host_pages_unmapped);
    Moving collapse_ns 1 (host_collapses);
    Hypervisor balloon_page_ns 1 (balloon_pages);
    // What a VMM that asks for flushes waits for the processors that it interrupts, beyond their exits.
    Locked remote_flush_ns 1 (exit RemoteFlush);
    Hypervisor interrupt_ns 1 (exit InterruptSent);
    // Two kernels of one kind: the host's changes threads as the guest's changes processes.
    Host guest_switch_ns 1 (exit Preempted);

    Guest guest_fault_ns 1 (work PageFault);
    Guest clear_page_ns 1 (pages_cleared);
    Guest clear_page_ns 2 (work PageCopied);
    Guest clear_page_ns 1 (guest_table_pages);
    // A copy is read from the table that it is one of, and written.
    Guest clear_page_ns 2 (guest_copy_pages);
    Guest clear_page_ns 2 (guest_tables_moved);
    Guest clear_page_ns 2 (guest_table_copies);
    Guest guest_fork_ns 1 (work Fork);
    Guest guest_exec_ns 1 (work Exec);
    Guest guest_exit_ns 1 (work Exit);
    Guest guest_switch_ns 1 (work ContextSwitch);
    Guest scan_page_ns 1 (work PageScanned);
    Guest scan_page_ns 1 (guest_tables_scanned);
    Guest migrate_page_ns 1 (work PageMigrated);
    Guest collapse_ns 1 (work Collapse);
    Guest shootdown_ns 1 (work Shootdown);
    // Tables of another kind, which the stream's kernel does not have.
    Guest table_entry_ns 1 (guest_table_updates);
    Guest table_entry_ns 1 (guest_table_moves);
    Guest table_entry_ns 1 (guest_copy_stores);
}

/// Each price that these accounts pay, and how often it was paid.
pub fn items(
    c: &Counters,
    pays: fn(Account) -> bool,
) -> impl Iterator<Item = (&'static Price, u64)> {
    let same = |a: &Price, b: &Price| {
        a.key == b.key && (a.account == Account::Guest) == (b.account == Account::Guest)
    };
    PRICES.chunk_by(same).filter_map(move |rows| {
        let mut paid = rows.iter().filter(|row| pays(row.account)).peekable();
        let first = *paid.peek()?;
        Some((first, paid.map(|row| row.paid(c)).sum()))
    })
}

/// What these accounts pay, in nanoseconds.
pub fn sum_ns(c: &Counters, software: &SoftwareProfile, pays: fn(Account) -> bool) -> f64 {
    items(c, pays).map(|(price, times)| times as f64 * price.ns(software)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn rows_of_one_price_stand_together() {
        let c = Counters::default();
        let accounts: [fn(Account) -> bool; 2] = [|a| a == Account::Guest, |a| a != Account::Guest];
        for pays in accounts {
            let keys: Vec<&str> = items(&c, pays).map(|i| i.0.key).collect();
            let distinct: HashSet<&&str> = keys.iter().collect();
            assert_eq!(distinct.len(), keys.len(), "{keys:?}");
        }
    }

    #[test]
    fn all_prices_of_profiles_are_paid() {
        // Hand-offs of the lock are counted by how vCPUs come to it (`lock`).
        let paid: HashSet<&str> = PRICES.iter().map(|p| p.key).chain(["lock_handoff_ns"]).collect();
        let known: HashSet<&str> = SoftwareProfile::ROWS.iter().map(|r| r.0).collect();
        assert_eq!(paid, known);
    }
}
