//! Which events of processors count what a field of the results counts. `explain` prints them;
//! `docs/counters.md` names the fields.
//!
//! Codes and meanings were read in Intel's published event files (github.com/intel/perfmon: SNB, HSX,
//! BDX, SKX, CLX, ICX and SPR, `events/*_core.json`) and in the kernel's for AMD
//! (`tools/perf/pmu-events/arch/x86/amdzen2/memory.json`, `amdzen4/memory.json`).

/// An event: its name, its number, its unit mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event(pub &'static str, pub u16, pub u8);

/// Events that together count what fields of a machine count.
#[derive(Debug)]
pub struct Counterpart {
    /// Fields of the results; the sum of them if they are joined by ` + `.
    pub fields: &'static str,
    /// Where the events are.
    pub on: &'static str,
    /// Their sum is the counterpart. None where no event counts it.
    pub events: &'static [Event],
    /// What differs, or why there is none.
    pub differs: &'static str,
}

const SANDY_BRIDGE: &str = "Sandy Bridge";
const HASWELL: &str = "Haswell, Broadwell";
const BEFORE_SKYLAKE: &str = "Sandy Bridge, Haswell, Broadwell";
const SKYLAKE: &str = "Skylake, Cascade Lake";
const SKYLAKE_ICE_LAKE: &str = "Skylake, Cascade Lake, Ice Lake";
const ICE_LAKE: &str = "Ice Lake";
const SAPPHIRE_RAPIDS: &str = "Sapphire Rapids";
const BEFORE_SAPPHIRE_RAPIDS: &str =
    "Sandy Bridge, Haswell, Broadwell, Skylake, Cascade Lake, Ice Lake";
const SINCE_SKYLAKE: &str = "Skylake, Cascade Lake, Ice Lake, Sapphire Rapids";
const INTEL: &str = "Intel, all listed here";
const ZEN_2: &str = "Zen 2";
const ZEN_4: &str = "Zen 4";
const NOWHERE: &str = "none listed here";

/// What events of misses and walks have in common that counters here have not.
const SPECULATIVE: &str = "accesses on mispredicted paths count there, and not here";
const WALKS_DIFFER: &str = "walks of mispredicted paths and of prefetches of software count there; a load and a store that miss on one page at once may both walk there, here the second finds the entry";

/// All counterparts, in the order of the results.
pub static COUNTERPARTS: &[Counterpart] = &[
    Counterpart {
        fields: "instructions",
        on: INTEL,
        events: &[Event("INST_RETIRED.ANY", 0x00, 0x01)],
        differs: "the event goes on in interrupt handlers; a modelled guest's kernel is cycles here, no instructions",
    },
    Counterpart {
        fields: "accesses",
        on: BEFORE_SKYLAKE,
        events: &[
            Event("MEM_UOPS_RETIRED.ALL_LOADS", 0xd0, 0x81),
            Event("MEM_UOPS_RETIRED.ALL_STORES", 0xd0, 0x82),
        ],
        differs: "no fetches (fetches); one access across pages is two here",
    },
    Counterpart {
        fields: "accesses",
        on: SINCE_SKYLAKE,
        events: &[Event("MEM_INST_RETIRED.ANY", 0xd0, 0x83)],
        differs: "instructions, not accesses: one that loads and stores may be one there and is two here; no fetches",
    },
    Counterpart {
        fields: "l1_tlb_misses",
        on: ZEN_2,
        events: &[Event("ls_l1_d_tlb_miss.all", 0x45, 0xff)],
        differs: "data only; coalesced pages count once there",
    },
    Counterpart {
        fields: "l1_tlb_misses",
        on: ZEN_4,
        events: &[
            Event("ls_l1_d_tlb_miss.all", 0x45, 0xff),
            Event("bp_l1_tlb_miss_l2_tlb_hit", 0x84, 0x00),
            Event("bp_l1_tlb_miss_l2_tlb_miss.all", 0x85, 0x0f),
        ],
        differs: "the second level for fetches is another array there; coalesced pages count once there",
    },
    Counterpart {
        fields: "l1_tlb_misses",
        on: INTEL,
        events: &[],
        differs: "no event of its own: STLB_HIT and MISS_CAUSES_A_WALK together, or l2_tlb_hits + l2_tlb_misses here",
    },
    Counterpart {
        fields: "l2_tlb_hits",
        on: SANDY_BRIDGE,
        events: &[
            Event("DTLB_LOAD_MISSES.STLB_HIT", 0x08, 0x10),
            Event("DTLB_STORE_MISSES.STLB_HIT", 0x49, 0x10),
            Event("ITLB_MISSES.STLB_HIT", 0x85, 0x10),
        ],
        differs: SPECULATIVE,
    },
    Counterpart {
        fields: "l2_tlb_hits",
        on: HASWELL,
        events: &[
            Event("DTLB_LOAD_MISSES.STLB_HIT", 0x08, 0x60),
            Event("DTLB_STORE_MISSES.STLB_HIT", 0x49, 0x60),
            Event("ITLB_MISSES.STLB_HIT", 0x85, 0x60),
        ],
        differs: SPECULATIVE,
    },
    Counterpart {
        fields: "l2_tlb_hits",
        on: SKYLAKE_ICE_LAKE,
        events: &[
            Event("DTLB_LOAD_MISSES.STLB_HIT", 0x08, 0x20),
            Event("DTLB_STORE_MISSES.STLB_HIT", 0x49, 0x20),
            Event("ITLB_MISSES.STLB_HIT", 0x85, 0x20),
        ],
        differs: SPECULATIVE,
    },
    Counterpart {
        fields: "l2_tlb_hits",
        on: SAPPHIRE_RAPIDS,
        events: &[
            Event("DTLB_LOAD_MISSES.STLB_HIT", 0x12, 0x20),
            Event("DTLB_STORE_MISSES.STLB_HIT", 0x13, 0x20),
            Event("ITLB_MISSES.STLB_HIT", 0x11, 0x20),
        ],
        differs: SPECULATIVE,
    },
    Counterpart {
        fields: "l2_tlb_hits",
        on: ZEN_2,
        events: &[
            Event("ls_l1_d_tlb_miss.tlb_reload_4k_l2_hit", 0x45, 0x01),
            Event("ls_l1_d_tlb_miss.tlb_reload_coalesced_page_hit", 0x45, 0x02),
            Event("ls_l1_d_tlb_miss.tlb_reload_2m_l2_hit", 0x45, 0x04),
            Event("ls_l1_d_tlb_miss.tlb_reload_1g_l2_hit", 0x45, 0x08),
        ],
        differs: "data only; Zen 4 has the same four, and bp_l1_tlb_miss_l2_tlb_hit for fetches",
    },
    Counterpart {
        fields: "l2_tlb_misses",
        on: BEFORE_SKYLAKE,
        events: &[
            Event("MEM_UOPS_RETIRED.STLB_MISS_LOADS", 0xd0, 0x11),
            Event("MEM_UOPS_RETIRED.STLB_MISS_STORES", 0xd0, 0x12),
        ],
        differs: "retired ones only, as here; no fetches; every access that waits for one walk counts there",
    },
    Counterpart {
        fields: "l2_tlb_misses",
        on: SINCE_SKYLAKE,
        events: &[
            Event("MEM_INST_RETIRED.STLB_MISS_LOADS", 0xd0, 0x11),
            Event("MEM_INST_RETIRED.STLB_MISS_STORES", 0xd0, 0x12),
        ],
        differs: "retired ones only, as here; no fetches; every access that waits for one walk counts there",
    },
    Counterpart {
        fields: "l2_tlb_misses",
        on: ZEN_4,
        events: &[
            Event("ls_l1_d_tlb_miss.all_l2_miss", 0x45, 0xf0),
            Event("bp_l1_tlb_miss_l2_tlb_miss.all", 0x85, 0x0f),
        ],
        differs: "coalesced pages count once there; Zen 2 names the four page sizes of 0x45 apart",
    },
    Counterpart {
        fields: "walks + faulted_walks",
        on: SANDY_BRIDGE,
        events: &[
            Event("DTLB_LOAD_MISSES.WALK_COMPLETED", 0x08, 0x02),
            Event("DTLB_STORE_MISSES.WALK_COMPLETED", 0x49, 0x02),
            Event("ITLB_MISSES.WALK_COMPLETED", 0x85, 0x02),
        ],
        differs: WALKS_DIFFER,
    },
    Counterpart {
        fields: "walks + faulted_walks",
        on: "Haswell, Broadwell, Skylake, Cascade Lake, Ice Lake",
        events: &[
            Event("DTLB_LOAD_MISSES.WALK_COMPLETED", 0x08, 0x0e),
            Event("DTLB_STORE_MISSES.WALK_COMPLETED", 0x49, 0x0e),
            Event("ITLB_MISSES.WALK_COMPLETED", 0x85, 0x0e),
        ],
        differs: WALKS_DIFFER,
    },
    Counterpart {
        fields: "walks + faulted_walks",
        on: SAPPHIRE_RAPIDS,
        events: &[
            Event("DTLB_LOAD_MISSES.WALK_COMPLETED", 0x12, 0x0e),
            Event("DTLB_STORE_MISSES.WALK_COMPLETED", 0x13, 0x0e),
            Event("ITLB_MISSES.WALK_COMPLETED", 0x11, 0x0e),
        ],
        differs: WALKS_DIFFER,
    },
    Counterpart {
        fields: "walks + faulted_walks",
        on: ZEN_2,
        events: &[
            Event("ls_tablewalker.dside", 0x46, 0x03),
            Event("ls_tablewalker.iside", 0x46, 0x0c),
        ],
        differs: "the description has no more than `total page table walks`; Zen 4's list has no such event",
    },
    Counterpart {
        fields: "walk_cycles",
        on: SANDY_BRIDGE,
        events: &[
            Event("DTLB_LOAD_MISSES.WALK_DURATION", 0x08, 0x04),
            Event("DTLB_STORE_MISSES.WALK_DURATION", 0x49, 0x04),
            Event("ITLB_MISSES.WALK_DURATION", 0x85, 0x04),
        ],
        differs: "whether EPT walks are in it is not said; EPT.WALK_CYCLES (4f/10) counts them",
    },
    Counterpart {
        fields: "walk_cycles",
        on: HASWELL,
        events: &[
            Event("DTLB_LOAD_MISSES.WALK_DURATION", 0x08, 0x10),
            Event("DTLB_STORE_MISSES.WALK_DURATION", 0x49, 0x10),
            Event("ITLB_MISSES.WALK_DURATION", 0x85, 0x10),
        ],
        differs: "whether EPT walks are in it is not said; EPT.WALK_CYCLES (4f/10) counts them",
    },
    Counterpart {
        fields: "walk_cycles",
        on: SKYLAKE,
        events: &[
            Event("DTLB_LOAD_MISSES.WALK_PENDING", 0x08, 0x10),
            Event("DTLB_STORE_MISSES.WALK_PENDING", 0x49, 0x10),
            Event("ITLB_MISSES.WALK_PENDING", 0x85, 0x10),
            Event("EPT.WALK_PENDING", 0x4f, 0x10),
        ],
        differs: "one per cycle and walker at work, so two walkers count two, as here, and the sum may exceed the cycles; EPT walks are left out of the first three; WALK_ACTIVE is the same event with counter mask 1, cycles with any walker at work, for which there is no counter here",
    },
    Counterpart {
        fields: "walk_cycles",
        on: ICE_LAKE,
        events: &[
            Event("DTLB_LOAD_MISSES.WALK_PENDING", 0x08, 0x10),
            Event("DTLB_STORE_MISSES.WALK_PENDING", 0x49, 0x10),
            Event("ITLB_MISSES.WALK_PENDING", 0x85, 0x10),
        ],
        differs: "walks under way in each cycle, as here; EPT walks have no event in the list, and it is not said that they are left out",
    },
    Counterpart {
        fields: "walk_cycles",
        on: SAPPHIRE_RAPIDS,
        events: &[
            Event("DTLB_LOAD_MISSES.WALK_PENDING", 0x12, 0x10),
            Event("DTLB_STORE_MISSES.WALK_PENDING", 0x13, 0x10),
            Event("ITLB_MISSES.WALK_PENDING", 0x11, 0x10),
        ],
        differs: "walks under way in each cycle, as here; EPT walks have no event in the list, and it is not said that they are left out",
    },
    Counterpart {
        fields: "walk_cycles",
        on: "Zen 2, Zen 4",
        events: &[],
        differs: "no event counts cycles of walks",
    },
    Counterpart {
        fields: "refs_served",
        on: HASWELL,
        events: &[
            Event("PAGE_WALKER_LOADS.DTLB_L1", 0xbc, 0x11),
            Event("PAGE_WALKER_LOADS.DTLB_L2", 0xbc, 0x12),
            Event("PAGE_WALKER_LOADS.DTLB_L3", 0xbc, 0x14),
            Event("PAGE_WALKER_LOADS.DTLB_MEMORY", 0xbc, 0x18),
        ],
        differs: "by place, as l1, l2, llc, memory here; lines under way to the first level count as l1 there; with ITLB_ (21 to 28) for fetches",
    },
    Counterpart {
        fields: "nested_refs",
        on: "Haswell",
        events: &[
            Event("PAGE_WALKER_LOADS.EPT_DTLB_L1", 0xbc, 0x41),
            Event("PAGE_WALKER_LOADS.EPT_DTLB_L2", 0xbc, 0x42),
            Event("PAGE_WALKER_LOADS.EPT_DTLB_L3", 0xbc, 0x44),
            Event("PAGE_WALKER_LOADS.EPT_DTLB_MEMORY", 0xbc, 0x48),
        ],
        differs: "with EPT_ITLB_ (81 to 88) for fetches; Broadwell's list has none of EPT",
    },
    Counterpart {
        fields: "data_served",
        on: SINCE_SKYLAKE,
        events: &[
            Event("MEM_LOAD_RETIRED.L1_HIT", 0xd1, 0x01),
            Event("MEM_LOAD_RETIRED.L2_HIT", 0xd1, 0x02),
            Event("MEM_LOAD_RETIRED.L3_HIT", 0xd1, 0x04),
            Event("MEM_LOAD_RETIRED.L3_MISS", 0xd1, 0x20),
        ],
        differs: "by place; loads only, and each of them, where here a line of a page run counts once; prefetchers move hits towards l1 there",
    },
    Counterpart {
        fields: "cr3_loads + invalidations",
        on: BEFORE_SAPPHIRE_RAPIDS,
        events: &[Event("TLB_FLUSH.STLB_ANY", 0xbd, 0x20)],
        differs: "attempts to flush of any kind; loads of CR3 that keep a PCID's entries flush nothing, and count here",
    },
    Counterpart {
        fields: "cr3_loads + invalidations",
        on: ZEN_4,
        events: &[Event("ls_tlb_flush.all", 0x78, 0xff)],
        differs: "all flushes of TLBs; loads of CR3 that keep a PCID's entries flush nothing, and count here",
    },
    Counterpart {
        fields: "total_cycles",
        on: INTEL,
        events: &[Event("CPU_CLK_UNHALTED.THREAD", 0x00, 0x02)],
        differs: "here of a model: `docs/counters.md` has what it is fitted to",
    },
    Counterpart {
        fields: "rewalks",
        on: NOWHERE,
        events: &[],
        differs: "such walks are among the completed ones",
    },
    Counterpart {
        fields: "walk_cache_hits",
        on: NOWHERE,
        events: &[],
        differs: "no event counts look-ups of paging-structure caches; fewer PAGE_WALKER_LOADS per walk show them",
    },
    Counterpart {
        fields: "nested_tlb_hits",
        on: NOWHERE,
        events: &[],
        differs: "no event tells whether guest-physical translations are cached",
    },
    Counterpart {
        fields: "nested_walks",
        on: NOWHERE,
        events: &[],
        differs: "no event counts nested walks, only their cycles (EPT.WALK_PENDING, EPT.WALK_CYCLES) and on Haswell their references",
    },
    Counterpart {
        fields: "splintered",
        on: NOWHERE,
        events: &[],
        differs: "WALK_COMPLETED_4K, _2M_4M and _1G tell sizes of entries, not of the guest's pages",
    },
    Counterpart {
        fields: "vm_exits_total",
        on: NOWHERE,
        events: &[],
        differs: "the hypervisor counts exits: `exits` of KVM in debugfs, and its tracepoint kvm_exit by reason",
    },
    Counterpart {
        fields: "guest_faults",
        on: NOWHERE,
        events: &[],
        differs: "the guest's kernel counts faults: perf's page-faults, pgfault in /proc/vmstat",
    },
];

impl Event {
    /// Name with number and unit mask, as `NAME (08/10)`.
    fn text(self) -> String {
        format!("{} ({:02x}/{:02x})", self.0, self.1, self.2)
    }
}

impl Counterpart {
    /// The events in words.
    pub fn events(&self) -> String {
        let all: Vec<String> = self.events.iter().map(|e| e.text()).collect();
        if all.is_empty() { "none".into() } else { all.join(" + ") }
    }
}

/// Whatever counts a field.
pub fn of(field: &str) -> impl Iterator<Item = &'static Counterpart> {
    COUNTERPARTS.iter().filter(move |c| c.fields.split(" + ").any(|f| f == field))
}

/// What `explain` tells of a field.
pub fn explain(field: &str) -> String {
    let line = |c: &Counterpart| {
        let events = c.events();
        let sum = if c.fields == field { String::new() } else { format!(" ({})", c.fields) };
        format!("  {}{sum}: {events}: {}\n", c.on, c.differs)
    };
    let lines: String = of(field).map(line).collect();
    if lines.is_empty() {
        lines
    } else {
        format!("Events of processors (event/unit mask):\n{lines}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_sim::FIELDS;

    #[test]
    fn the_document_names_the_fields() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/counters.md");
        let text = std::fs::read_to_string(path).unwrap();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let (_, lists) = text.split_once("- Fields with events:").unwrap();
        let (with, without) = lists.split_once("- Without:").unwrap();
        for c in COUNTERPARTS {
            let place = if c.on == NOWHERE { without } else { with };
            assert!(place.contains(&format!("`{}`", c.fields)), "docs/counters.md: {}", c.fields);
        }
    }

    #[test]
    fn fields_are_those_of_the_results() {
        for c in COUNTERPARTS {
            for field in c.fields.split(" + ") {
                assert!(FIELDS.iter().any(|f| f.0 == field), "{field}");
            }
            assert!(!c.differs.is_empty());
        }
    }

    /// The governor reads some of them on live machines, by codes of its own.
    #[test]
    fn codes_agree_with_those_of_live_machines() {
        let mut compared = 0;
        // Ivy Bridge has codes of its own, and is not listed here.
        for live in nestwalk_host::TABLE.iter().filter(|live| live.name != "Ivy Bridge") {
            for event in live.walk_cycles.iter().chain(live.misses).chain(&live.nested_cycles) {
                let all = COUNTERPARTS.iter().flat_map(|c| c.events);
                let mut mine = all.filter(|e| e.0 == event.name).peekable();
                if mine.peek().is_some() {
                    compared += 1;
                    let low = event.config & 0xffff;
                    let same = |e: &Event| u64::from(e.1) | u64::from(e.2) << 8 == low;
                    assert!(mine.any(same), "{}: {} {low:x}", live.name, event.name);
                }
            }
        }
        assert!(compared >= 12, "{compared}");
    }
}
