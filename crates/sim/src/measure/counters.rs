//! What is counted: a row for each counter, with its unit and meaning. From the row come the field, the
//! difference of two moments, and what results, CSV and `explain` have of it.

mod exits;

pub use exits::{ExitClass, ExitReason};

use nestwalk_hw::ServedBy;
use nestwalk_types::{OsWork, VcpuId};
use serde::Serialize;

/// Whose table a walker's reference read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Dimension {
    /// The guest's tables (native: the only ones).
    Guest,
    /// The nested tables.
    Nested,
    /// The shadow tables.
    Shadow,
}

impl Dimension {
    /// Number of variants.
    pub const COUNT: usize = 3;
}

/// References of walks, by dimension and by where they were served.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct References(pub [[u64; ServedBy::COUNT]; Dimension::COUNT]);

impl References {
    /// References to one dimension's tables.
    pub fn of(&self, dimension: Dimension) -> u64 {
        self.0[dimension as usize].iter().sum()
    }
    /// References to all tables.
    pub fn total(&self) -> u64 {
        self.0.iter().flatten().sum()
    }
    /// References that were served by one place.
    pub fn served_by(&self, place: ServedBy) -> u64 {
        self.0.iter().map(|d| d[place as usize]).sum()
    }
    fn since(&self, earlier: &Self) -> Self {
        Self(std::array::from_fn(|d| less(&self.0[d], &earlier.0[d])))
    }
    #[inline]
    pub(crate) fn add(&mut self, other: &Self) {
        for (sums, more) in self.0.iter_mut().zip(&other.0) {
            for (sum, n) in sums.iter_mut().zip(more) {
                *sum += n;
            }
        }
    }
}

/// Counts by vCPU; those of vCPUs that are not there are 0.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PerVcpu(Vec<u64>);

impl PerVcpu {
    /// One more of a vCPU.
    pub fn add(&mut self, vcpu: VcpuId) {
        let index = usize::from(vcpu.0);
        if index >= self.0.len() {
            self.0.resize(index + 1, 0);
        }
        self.0[index] += 1;
    }
    /// Of each vCPU up to the last that has any.
    pub fn each(&self) -> &[u64] {
        &self.0
    }
    /// Of all vCPUs.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
    fn since(&self, earlier: &Self) -> Self {
        let before = |i: usize| earlier.0.get(i).copied().unwrap_or(0);
        Self(self.0.iter().enumerate().map(|(i, n)| n - before(i)).collect())
    }
}

fn less<const N: usize>(now: &[u64; N], earlier: &[u64; N]) -> [u64; N] {
    std::array::from_fn(|i| now[i] - earlier[i])
}

impl Counters {
    /// Accesses whose data or tables are likely to lie far away: second-level misses, and what was
    /// served beside the TLBs, which is no walk.
    #[inline]
    pub const fn far_accesses(&self) -> u64 {
        self.l2_tlb_misses + self.assist_hits + self.l1_bypasses
    }
}

/// Index of the walks of agile paging that were nested from the guest's CR3 on.
pub const FULLY_NESTED: usize = nestwalk_tables::MAX_LEVELS + 1;

/// Where results have a counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Section {
    /// With the machine's other numbers.
    Machine,
    /// In the machine's `contiguity`, which only schemes have that use it.
    Contiguity,
    /// In the machine's `tables`, which only schemes have whose tables are of another kind.
    Tables,
    /// In the machine's `nodes`, which only machines of several nodes have.
    Nodes,
    /// Nowhere: for engine, referee, and schemes of other crates.
    Inner,
}

/// What is to be known of a counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CounterRow {
    /// Its field in [`Counters`], and its key in results.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// Its meaning.
    pub meaning: &'static str,
    /// Where results have it.
    pub section: Section,
}

impl CounterRow {
    /// Name, unit and meaning.
    pub const fn field(&self) -> (&'static str, &'static str, &'static str) {
        (self.name, self.unit, self.meaning)
    }
}

macro_rules! counters {
    ($($section:ident { $($name:ident: $unit:literal, $meaning:literal;)* })*) => {
        /// Counts of one machine since its region of interest began.
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub struct Counters {
            $($(#[doc = concat!($meaning, " (", $unit, ")")] pub $name: u64,)*)*
            /// References of completed walks.
            pub references: References,
            /// References of walks that ended in a fault.
            pub faulted_references: References,
            /// Data references of the program by where they were served, one per line of a run.
            pub data: [u64; ServedBy::COUNT],
            /// Instruction lines fetched, by where they were served.
            pub fetch: [u64; ServedBy::COUNT],
            /// References that nothing waits for, by where they were served: to range tables and
            /// anchors, and to where wrong guesses led.
            pub background: [u64; ServedBy::COUNT],
            /// VM exits by reason, in the order of [`ExitReason::ALL`].
            pub exits: [u64; ExitReason::ALL.len()],
            /// Agile paging: completed walks by the level of the guest table at which they left the
            /// shadow tables for the guest's; 0 for those that did not. Those in which the guest's
            /// root was translated, too, are in the last.
            pub walks_switched: [u64; FULLY_NESTED + 1],
            /// Guest kernel work by kind, in the order of [`OsWork::ALL`].
            pub os_work: [u64; OsWork::ALL.len()],
            /// How often each vCPU took the lock of the shadow tables, which one holds at a time.
            pub lock_visits: PerVcpu,
        }
        // By hand: the library has defaults of arrays of up to 32 elements, and there are more reasons.
        impl Default for Counters {
            fn default() -> Self {
                Self {
                    $($($name: 0,)*)*
                    references: References::default(),
                    faulted_references: References::default(),
                    data: [0; ServedBy::COUNT],
                    fetch: [0; ServedBy::COUNT],
                    background: [0; ServedBy::COUNT],
                    exits: [0; ExitReason::ALL.len()],
                    walks_switched: [0; FULLY_NESTED + 1],
                    os_work: [0; OsWork::ALL.len()],
                    lock_visits: PerVcpu::default(),
                }
            }
        }
        impl Counters {
            /// The plain counters, in the order in which results have them.
            pub const ROWS: [CounterRow; [$($(stringify!($name)),*),*].len()] = [$($(CounterRow {
                name: stringify!($name),
                unit: $unit,
                meaning: $meaning,
                section: Section::$section,
            }),*),*];
            /// Values of the plain counters, in the order of [`Counters::ROWS`].
            pub const fn values(&self) -> [u64; Self::ROWS.len()] {
                [$($(self.$name),*),*]
            }
            /// Sums of parts, each times its factor, but for the plain counters that `is_event` names,
            /// exits, guest kernel work and visits of locks, which are those of `whole`.
            #[must_use]
            pub fn blend(
                parts: &[(f64, &Self)],
                whole: &Self,
                is_event: impl Fn(&str) -> bool,
            ) -> Self {
                let sum = |of: &dyn Fn(&Self) -> u64| {
                    let sum: f64 = parts.iter().map(|(factor, part)| factor * of(part) as f64).sum();
                    sum.round() as u64
                };
                let references = |of: &dyn Fn(&Self) -> &References| {
                    References(std::array::from_fn(|d| {
                        std::array::from_fn(|place| sum(&|part| of(part).0[d][place]))
                    }))
                };
                let of_parts: Vec<_> = parts.iter().map(|(factor, part)| (factor, part.values())).collect();
                let mut values = whole.values();
                for ((at, value), row) in values.iter_mut().enumerate().zip(&Self::ROWS) {
                    if !is_event(row.name) {
                        let sum: f64 = of_parts.iter().map(|(factor, of)| *factor * of[at] as f64).sum();
                        *value = sum.round() as u64;
                    }
                }
                // A loop over an array and one look at each field: so many fields, each with a sum of
                // its own, would be a large part of this crate.
                let [$($($name),*),*] = values;
                Self {
                    $($($name,)*)*
                    references: references(&|part| &part.references),
                    faulted_references: references(&|part| &part.faulted_references),
                    data: std::array::from_fn(|place| sum(&|part| part.data[place])),
                    fetch: std::array::from_fn(|place| sum(&|part| part.fetch[place])),
                    background: std::array::from_fn(|place| sum(&|part| part.background[place])),
                    exits: whole.exits,
                    walks_switched: std::array::from_fn(|l| sum(&|part| part.walks_switched[l])),
                    os_work: whole.os_work,
                    lock_visits: whole.lock_visits.clone(),
                }
            }
            /// What was counted since `earlier`, a moment of the same machine.
            #[must_use]
            pub fn since(&self, earlier: &Self) -> Self {
                Self {
                    $($($name: self.$name - earlier.$name,)*)*
                    references: self.references.since(&earlier.references),
                    faulted_references: self.faulted_references.since(&earlier.faulted_references),
                    data: less(&self.data, &earlier.data),
                    fetch: less(&self.fetch, &earlier.fetch),
                    background: less(&self.background, &earlier.background),
                    exits: less(&self.exits, &earlier.exits),
                    walks_switched: less(&self.walks_switched, &earlier.walks_switched),
                    os_work: less(&self.os_work, &earlier.os_work),
                    lock_visits: self.lock_visits.since(&earlier.lock_visits),
                }
            }
        }
    };
}

counters! {
    Machine {
        instructions: "count", "instructions retired in the region of interest";
        kernel_instructions: "count",
            "of these, the ones of the kernel, where the source shows it at work";
        accesses: "count", "loads, stores and instruction fetches; one across pages counts twice";
        fetches: "count", "instruction fetches among the accesses";
        l1d_tlb_lookups: "count",
            "look-ups of the first-level data TLB, one for each access that is no fetch, of a \
             page run all";
        l1i_tlb_lookups: "count", "look-ups of the first-level instruction TLB, one for each fetch";
        l1_tlb_misses: "count", "accesses that missed the first-level TLB";
        l1_tlb_fills: "count",
            "entries put into first-level TLBs: one for each miss, or entry that could not serve";
        l2_tlb_hits: "count", "accesses that missed the first level and that the second served";
        l2_tlb_misses: "count", "accesses that missed both levels";
        rewalks: "count",
            "accesses whose TLB entry was there but could not serve: a store to a clean page, or \
             fewer permissions than the table has by now; the walker runs, and it is no miss";
        walks: "count", "walks that found a translation: one per second-level miss or upgrade";
        faulted_walks: "count",
            "walks that ended in a fault of either dimension, each followed by another walk";
        ad_walks: "count",
            "agile paging: walks repeated in two dimensions to set A and D in the guest's tables, \
             too";
        walk_cache_lookups: "count",
            "walks that looked the paging-structure caches up: all but those that segments make \
             flat";
        walk_cache_hits: "count",
            "walks that began at a table that a paging-structure cache pointed to";
        entry_cache_lookups: "count",
            "entries above the leaves that walkers looked up by their address (AMD's page walk \
             cache)";
        entry_cache_hits: "count", "such look-ups that found the entry and made no reference";
        nested_tlb_hits: "count", "guest-physical look-ups served by the nested TLB";
        nested_walks: "count", "guest-physical look-ups that walked nested tables";
        splintered: "count",
            "TLB entries that are smaller than the guest's page because the host's is";
        coalesced_fills: "count",
            "coalescing: entries of more than one page that walks put into TLBs";
        coalesced_pages: "4 KiB pages", "coalescing: pages that these entries covered then";
        coalesced_hits: "count",
            "coalescing: accesses that an entry of either level served which another page's walk \
             had brought in";
        run_buffer_lookups: "count",
            "coalescing: look-ups of the fully associative buffer of runs, one for each access";
        walk_cycles: "cycles", "the walker at work, faulted walks included, nothing hidden";
        guest_faults: "count", "page faults delivered to the guest kernel";
        pages_cleared: "4 KiB pages", "memory that the guest kernel cleared";
        table_writes: "count", "entries that the guest kernel stored to its tables";
        cr3_loads: "count", "loads of CR3";
        cr3_flushes: "count", "of these, the ones that dropped translations: without the keep bit, or PCIDs";
        invalidations: "count", "INVLPG and INVPCID";
        mode_switches: "count", "changes of the paging mode";
        shared_tlb_lookups: "count", "shared TLB: look-ups, on misses of second levels";
        shared_tlb_hits: "count", "shared TLB: such look-ups that found a translation";
        memory_tlb_reads: "count", "TLB in memory: sets read, on misses of second levels";
        tlb_block_hits: "count",
            "TLB blocks: second-level TLB misses that a line of the second-level cache served";
        nested_block_hits: "count",
            "TLB blocks: guest-physical addresses that such a line translated for the walker";
        tlb_block_fills: "count", "TLB blocks: lines of the second-level cache that became blocks";
        segment_hits: "count",
            "segments: first-level TLB misses that a segment served beside the second level, by \
             no reference";
        segment_accesses: "count",
            "segments, check=l1: accesses that a segment served beside the first level, which was \
             not looked up";
        guest_segment_checks: "count", "segments: base-bound checks of guest-virtual addresses";
        vmm_segment_checks: "count",
            "segments: base-bound checks of guest-physical addresses by the walker";
        segment_escapes: "count",
            "segments: checks inside of the segment whose page the escape filter reported";
        false_escapes: "count", "of these, the ones of pages that had not been put in";
        guest_segment_loads: "count", "segments: loads of the guest segment's registers";
        vmm_segment_loads: "count",
            "segments: loads of the VMM segment's registers, one for each entry into the VM";
        pages_moved: "4 KiB pages",
            "pages that the host copied to make memory contiguous, or pages large, or for stores to \
             merged pages";
        balloon_pages: "4 KiB pages",
            "self-ballooning: pages that the guest gave to the VMM for contiguous memory";
        host_pages_scanned: "4 KiB pages", "daemons of the host: pages looked at";
        host_pages_unmapped: "count",
            "daemons of the host: pages, of any size, unmapped to be mapped elsewhere";
        host_pages_migrated: "4 KiB pages", "daemons of the host: pages moved to free frames";
        host_pages_exchanged: "4 KiB pages",
            "daemons of the host: pages that changed places with others, those included";
        host_collapses: "count",
            "daemons of the host: large pages made of small ones in another place (khugepaged)";
        host_joins: "count",
            "daemons of the host: large pages made of small ones where they lay (Translation \
             Ranger)";
        host_faults: "count", "page faults of the host kernel for guest RAM";
        async_faults: "count",
            "asynchronous page faults: times that the guest was told that its host reads a page";
        host_pages_cleared: "4 KiB pages", "memory that the host kernel cleared";
        nested_fills: "count",
            "entries that the VMM stored to nested tables, prefetched ones not included";
        nested_prefetches: "count",
            "entries stored to nested tables beside one of a page that is executed, ahead of a \
             violation";
        shadow_fills: "count",
            "entries that the VMM stored to shadow tables on a fault, prefetched ones not included";
        remote_flushes: "count", "flushes of all cores' translations that the hypervisor asked for";
        shadow_prefetches: "count", "entries stored to shadow tables ahead of a fault";
        shadow_drops: "count",
            "leaf entries that went from shadow tables, and so from the reverse map";
        sync_entries: "count",
            "shadow entries looked at while out-of-sync tables were brought in step";
        sync_present: "count", "of these, present ones, compared with the guest's";
        shadow_pages: "count", "shadow table pages made";
        shadow_zaps: "count", "shadow table pages dropped";
        flood_zaps: "count", "of these, the ones dropped because of write flooding";
        tables_nested: "count", "agile paging: guest tables that went nested, with all below each";
        tables_shadowed: "count", "agile paging: guest tables that went back to shadow mode";
        dirty_bits_scanned: "count",
            "agile paging: dirty bits of nested tables looked at and cleared";
        hypercall_operations: "count",
            "direct paging: entries, changes of type, roots, invalidations in hypercalls";
        entries_validated: "count",
            "direct paging: present entries of pages that became tables, checked once each";
        updates_refused: "count", "direct paging: entries not taken as they were asked for";
        reflected_exits: "count",
            "VM in a VM: of the exits, the ones that the outer hypervisor handed on to the inner one: \
             four world switches each, from the guest by the outer hypervisor to the inner one and back";
        switcher_exits: "count",
            "PVM: of the exits, the ones by its switcher, which the outer hypervisor does not see";
    }
    Inner {
        assist_hits: "count",
            "first-level TLB misses that a structure of the scheme served in parallel with the second \
             level, or on its miss, by no walk; the engine counts them";
        assist_cycles: "cycles",
            "look-ups of such structures that the access waits for, as long as it would for the walker";
        l1_bypasses: "count",
            "accesses that a structure of the scheme served instead of the first-level TLB; the engine \
             counts them";
    }
    Tables {
        guest_table_updates: "count",
            "entries that the guest's kernel stores to tables of another kind, in step with its radix \
             tables";
        guest_table_moves: "count",
            "entries, or clusters of them, that it moves within such tables, or to larger ones";
        guest_table_pages: "4 KiB pages", "memory that it clears for such tables";
        nested_table_moves: "count", "the same moves of the VMM";
        nested_table_pages: "4 KiB pages", "memory that the VMM clears for such tables";
        guest_table_copies: "4 KiB pages",
            "pages that the guest's kernel copies because such a table says where they lie";
        nested_table_copies: "4 KiB pages", "the same copies of the VMM";
        table_emulations: "count",
            "accesses that software made, whose tables are linked in more places than it follows";
        table_resizes: "count", "changes of the size of such a table";
        table_refusals: "count",
            "blocks of memory for such tables that were not to be had in one piece";
    }
    Nodes {
        remote_walk_references: "count",
            "references of walks, faulted ones included, that the memory of another node served";
        remote_walk_cycles: "cycles",
            "of walk_cycles, what these took beyond the latency of memory on the own node";
        remote_references: "count",
            "the program's references, fetches included, that the memory of another node served";
        remote_cycles: "cycles",
            "what these took beyond the latency of memory on the own node, nothing hidden";
        guest_tables_scanned: "count", "guest tables that its kernel looked at, to move them";
        guest_tables_moved: "4 KiB pages", "of these, the ones that it moved to another node";
        nested_tables_scanned: "count", "nested tables that the VMM looked at, to move them";
        nested_tables_moved: "4 KiB pages", "of these, the ones that it moved to another node";
        guest_copy_stores: "count",
            "stores of the guest kernel to copies of its tables, beside those to the tables themselves";
        guest_copy_pages: "4 KiB pages", "pages that it filled for such copies";
        nested_copy_stores: "count",
            "stores of the VMM to copies of nested tables, beside those to the tables themselves";
        nested_copy_pages: "4 KiB pages", "pages that it cleared for such copies";
    }
    Contiguity {
        predictions: "count", "SpOT, inverted shadows: walks beside which the program went on with a guess";
        predictions_right: "count", "of these, the ones that the walk confirmed";
        predictions_wrong: "count", "of these, the ones whose walk found another frame";
        predictions_squashed: "count", "of these, the ones whose walk ended in a fault";
        prediction_fills: "count",
            "entries put into prediction tables and inverted shadows, news of old entries among them";
        prediction_bypasses: "count",
            "SpOT: walks that filled no entry because all of the set were trusted";
        hidden_walk_cycles: "cycles", "of walk_cycles, those that right guesses hid";
        misprediction_cycles: "cycles", "delay by wrong guesses beyond their walks";
        late_data_cycles: "cycles",
            "Revelator: of lines that right guesses fetched, what was left to wait for when walks had ended";
        range_hits: "count",
            "RMM: first-level TLB misses that the range TLB served beside the second level";
        range_checks: "count", "RMM: comparisons with ranges in range TLBs";
        range_walks: "count",
            "RMM: background walks of range tables, each of which filled the range TLB";
        anchor_hits: "count", "anchors: misses of regular entries that an anchor entry served";
        anchor_lookups: "count",
            "anchors: look-ups of anchor entries, each after a miss of the regular ones";
        anchor_fills: "count", "anchors: anchor entries put into second-level TLBs";
        anchor_changes: "count",
            "anchors: changes of an address space's distance, each with a flush";
        contiguity_updates: "count", "entries of range tables and anchors that software stored";
    }
}

impl Counters {
    /// Counts an exit.
    #[inline]
    pub const fn exit(&mut self, reason: ExitReason) {
        self.exits[reason as usize] += 1;
    }
    /// Exits of one class.
    pub fn exits_of(&self, class: ExitClass) -> u64 {
        let them = ExitReason::ALL.iter().filter(|r| r.class() == class);
        them.map(|r| self.exits[*r as usize]).sum()
    }
    /// Rows and values of the plain counters of one section, in order.
    pub fn of(&self, section: Section) -> impl Iterator<Item = (&'static CounterRow, u64)> {
        const ROWS: &[CounterRow] = &Counters::ROWS;
        ROWS.iter().zip(self.values()).filter(move |(row, _)| row.section == section)
    }
    /// Switches from one world to another, a guest's or a hypervisor's: two for each exit, and two more
    /// where an outer hypervisor hands it on to an inner one, and is asked to enter the guest again.
    pub fn world_switches(&self) -> u64 {
        2 * (self.exits_total() + self.reflected_exits)
    }
    /// Exits of all reasons.
    pub fn exits_total(&self) -> u64 {
        self.exits.iter().sum()
    }
}
