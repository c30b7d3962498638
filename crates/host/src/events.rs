//! Which hardware events count page walks and TLB misses, per microarchitecture.
//!
//! Event codes are those of Intel's published event files (github.com/intel/perfmon, one file per core,
//! with mapfile.csv for the models) and of the kernel's lists for AMD
//! (tools/perf/pmu-events/arch/x86/amdzen*), which are made from AMD's processor manuals.

use crate::cpu::Cpu;

/// A raw event: its name in the source, and its `perf_event_attr.config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawEvent {
    /// Its name in the source.
    pub name: &'static str,
    /// The event's encoding, as `perf stat -e rNNN` takes it.
    pub config: u64,
}

/// The events of some models.
#[derive(Debug)]
pub struct Microarchitecture {
    /// Its name.
    pub name: &'static str,
    /// `vendor_id`.
    pub vendor: &'static str,
    /// Family and range of models, first and last included.
    pub models: &'static [(u32, u32, u32)],
    /// Cycles with a walk under way for loads and stores; none where no event counts them.
    pub walk_cycles: &'static [RawEvent],
    /// Completed walks of loads and stores: misses of the last level of TLBs.
    pub misses: &'static [RawEvent],
    /// Cycles of the nested dimension's walks, if an event counts them apart and the events above
    /// leave them out.
    pub nested_cycles: Option<RawEvent>,
    /// The document.
    pub source: &'static str,
    /// What a user should know of the counts.
    pub note: &'static str,
}

/// Intel's layout: event, unit mask, counter mask.
const fn intel(name: &'static str, event: u64, umask: u64, cmask: u64) -> RawEvent {
    RawEvent { name, config: event | umask << 8 | cmask << 24 }
}

/// AMD's layout: event, unit mask.
const fn amd(name: &'static str, event: u64, umask: u64) -> RawEvent {
    RawEvent { name, config: (event & 0xff) | umask << 8 | (event >> 8) << 32 }
}

const INTEL: &str = "GenuineIntel";
const AMD: &str = "AuthenticAMD";

const fn model(model: u32) -> (u32, u32, u32) {
    (6, model, model)
}

/// Skylake to Rocket Lake; the same codes as the thesis's script.
const SKYLAKE_WALKS: &[RawEvent] = &[
    intel("DTLB_LOAD_MISSES.WALK_ACTIVE", 0x08, 0x10, 1),
    intel("DTLB_STORE_MISSES.WALK_ACTIVE", 0x49, 0x10, 1),
];
const SKYLAKE_MISSES: &[RawEvent] = &[
    intel("DTLB_LOAD_MISSES.WALK_COMPLETED", 0x08, 0x0e, 0),
    intel("DTLB_STORE_MISSES.WALK_COMPLETED", 0x49, 0x0e, 0),
];
const GOLDEN_COVE_WALKS: &[RawEvent] = &[
    intel("DTLB_LOAD_MISSES.WALK_ACTIVE", 0x12, 0x10, 1),
    intel("DTLB_STORE_MISSES.WALK_ACTIVE", 0x13, 0x10, 1),
];
const GOLDEN_COVE_MISSES: &[RawEvent] = &[
    intel("DTLB_LOAD_MISSES.WALK_COMPLETED", 0x12, 0x0e, 0),
    intel("DTLB_STORE_MISSES.WALK_COMPLETED", 0x13, 0x0e, 0),
];
const ZEN_MISSES: &[RawEvent] = &[amd("ls_l1_d_tlb_miss.all_l2_miss", 0x45, 0xf0)];
const NO_CYCLES: &str = "no event of Zen counts cycles of walks, only walks";

/// All processors that are known. Hybrid ones are not: their two kinds of cores count apart.
pub static TABLE: &[Microarchitecture] = &[
    Microarchitecture {
        name: "Sandy Bridge",
        vendor: INTEL,
        models: &[model(0x2a), model(0x2d)],
        walk_cycles: &[
            intel("DTLB_LOAD_MISSES.WALK_DURATION", 0x08, 0x04, 0),
            intel("DTLB_STORE_MISSES.WALK_DURATION", 0x49, 0x04, 0),
        ],
        misses: &[
            intel("DTLB_LOAD_MISSES.WALK_COMPLETED", 0x08, 0x02, 0),
            intel("DTLB_STORE_MISSES.WALK_COMPLETED", 0x49, 0x02, 0),
        ],
        nested_cycles: None,
        source: "intel/perfmon SNB/events/sandybridge_core.json, JKT/events/Jaketown_core.json",
        note: "",
    },
    Microarchitecture {
        name: "Ivy Bridge",
        vendor: INTEL,
        models: &[model(0x3a), model(0x3e)],
        walk_cycles: &[
            intel("DTLB_LOAD_MISSES.WALK_DURATION", 0x08, 0x84, 0),
            intel("DTLB_STORE_MISSES.WALK_DURATION", 0x49, 0x04, 0),
        ],
        misses: &[
            intel("DTLB_LOAD_MISSES.WALK_COMPLETED", 0x08, 0x82, 0),
            intel("DTLB_STORE_MISSES.WALK_COMPLETED", 0x49, 0x02, 0),
        ],
        nested_cycles: None,
        source: "intel/perfmon IVB/events/ivybridge_core.json, IVT/events/ivytown_core.json",
        note: "",
    },
    Microarchitecture {
        name: "Haswell and Broadwell",
        vendor: INTEL,
        models: &[
            model(0x3c),
            model(0x3d),
            model(0x3f),
            model(0x45),
            model(0x46),
            model(0x47),
            model(0x4f),
            model(0x56),
        ],
        walk_cycles: &[
            intel("DTLB_LOAD_MISSES.WALK_DURATION", 0x08, 0x10, 0),
            intel("DTLB_STORE_MISSES.WALK_DURATION", 0x49, 0x10, 0),
        ],
        misses: SKYLAKE_MISSES,
        nested_cycles: None,
        source: "intel/perfmon HSW/events/haswell_core.json, BDW/events/broadwell_core.json",
        note: "Broadwell: erratum BDM69, walks may be counted too often",
    },
    Microarchitecture {
        name: "Skylake to Comet Lake, Cascade Lake",
        vendor: INTEL,
        models: &[
            model(0x4e),
            model(0x55),
            model(0x5e),
            model(0x8e),
            model(0x9e),
            model(0xa5),
            model(0xa6),
        ],
        walk_cycles: SKYLAKE_WALKS,
        misses: SKYLAKE_MISSES,
        nested_cycles: Some(intel("EPT.WALK_PENDING", 0x4f, 0x10, 0)),
        source: "intel/perfmon SKL/events/skylake_core.json, SKX, CLX",
        note: "the walk events leave out cycles of EPT walks (their own description), as in the thesis; \
               --nested-walks adds them",
    },
    Microarchitecture {
        name: "Ice Lake to Rocket Lake",
        vendor: INTEL,
        models: &[
            model(0x6a),
            model(0x6c),
            model(0x7d),
            model(0x7e),
            model(0x8c),
            model(0x8d),
            model(0xa7),
        ],
        walk_cycles: SKYLAKE_WALKS,
        misses: SKYLAKE_MISSES,
        nested_cycles: None,
        source: "intel/perfmon ICL/events/icelake_core.json, ICX, TGL, RKL",
        note: "",
    },
    Microarchitecture {
        name: "Sapphire Rapids to Granite Rapids",
        vendor: INTEL,
        models: &[model(0x8f), model(0xad), model(0xae), model(0xcf)],
        walk_cycles: GOLDEN_COVE_WALKS,
        misses: GOLDEN_COVE_MISSES,
        nested_cycles: None,
        source: "intel/perfmon SPR/events/sapphirerapids_core.json, EMR, GNR",
        note: "",
    },
    Microarchitecture {
        name: "Zen and Zen 2",
        vendor: AMD,
        models: &[(0x17, 0, 0xff)],
        walk_cycles: &[],
        misses: ZEN_MISSES,
        nested_cycles: None,
        source: "tools/perf/pmu-events/arch/x86/amdzen2/memory.json (four events of 0x45 together)",
        note: NO_CYCLES,
    },
    Microarchitecture {
        name: "Zen 3 and Zen 4",
        vendor: AMD,
        models: &[(0x19, 0, 0xff)],
        walk_cycles: &[],
        misses: ZEN_MISSES,
        nested_cycles: None,
        source: "tools/perf/pmu-events/arch/x86/amdzen4/memory.json",
        note: NO_CYCLES,
    },
    Microarchitecture {
        name: "Zen 5",
        vendor: AMD,
        models: &[(0x1a, 0, 0xff)],
        walk_cycles: &[],
        misses: ZEN_MISSES,
        nested_cycles: None,
        source: "tools/perf/pmu-events/arch/x86/amdzen5/load-store.json",
        note: NO_CYCLES,
    },
];

/// The row of a processor.
pub fn events_of(cpu: &Cpu) -> Option<&'static Microarchitecture> {
    TABLE.iter().find(|row| {
        row.vendor == cpu.vendor
            && row.models.iter().any(|&(family, first, last)| {
                family == cpu.family && (first..=last).contains(&cpu.model)
            })
    })
}

/// Events that a user names, for processors that the table does not know or to count otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CustomEvents {
    /// Encodings whose counts together are walk cycles; empty for the table's.
    pub walk_cycles: Vec<u64>,
    /// Encodings whose counts together are TLB misses; empty for the table's.
    pub misses: Vec<u64>,
    /// Add the table's event of the nested dimension's walks.
    pub nested_walks: bool,
    /// Where walks are counted but not their cycles: cycles per walk, an estimate.
    pub cycles_per_walk: Option<u32>,
}

/// Encodings as `perf` takes them, separated by commas: `r1001008,0x1001049`.
///
/// # Errors
/// Says which is none.
pub fn parse_raw(text: &str) -> Result<Vec<u64>, String> {
    text.split(',')
        .map(|one| {
            let digits = one.trim().trim_start_matches("0x").trim_start_matches('r');
            u64::from_str_radix(digits, 16)
                .map_err(|_| format!("`{one}` is no raw event; one is r1001008, in hexadecimal"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{TABLE, events_of, parse_raw};
    use crate::cpu::Cpu;

    fn cpu(vendor: &str, family: u32, model: u32) -> Cpu {
        let (vendor, name) = (vendor.to_owned(), String::new());
        Cpu { vendor, family, model, name, virtual_machine: false }
    }

    #[test]
    fn encodings_are_perf_s() {
        // `perf stat -e cpu/event=0x08,umask=0x10,cmask=0x01/` is `-e r1001008`.
        let row = events_of(&cpu("GenuineIntel", 6, 0x9e)).unwrap();
        assert_eq!(
            row.walk_cycles.iter().map(|e| e.config).collect::<Vec<_>>(),
            [0x0100_1008, 0x0100_1049]
        );
        let row = events_of(&cpu("GenuineIntel", 6, 0x8f)).unwrap();
        assert_eq!(row.walk_cycles[0].config, 0x0100_1012);
        let zen = events_of(&cpu("AuthenticAMD", 0x19, 0x11)).unwrap();
        assert_eq!(zen.misses[0].config, 0xf045);
        assert!(zen.walk_cycles.is_empty() && !zen.note.is_empty());
    }

    #[test]
    fn no_processor_has_two_rows_and_every_row_a_source() {
        for row in TABLE {
            assert!(!row.source.is_empty() && !row.misses.is_empty(), "{}", row.name);
            for &(family, first, last) in row.models {
                for model in first..=last {
                    let cpu = cpu(row.vendor, family, model);
                    let rows = TABLE.iter().filter(|r| {
                        r.vendor == cpu.vendor
                            && r.models
                                .iter()
                                .any(|&(f, a, b)| f == family && (a..=b).contains(&model))
                    });
                    assert_eq!(rows.count(), 1, "{} {model:#x}", row.name);
                }
            }
        }
        // Hybrid and old processors have none.
        assert!(events_of(&cpu("GenuineIntel", 6, 0x97)).is_none());
        assert!(events_of(&cpu("GenuineIntel", 6, 0x1a)).is_none());
    }

    #[test]
    fn raw_events_are_hexadecimal() {
        assert_eq!(parse_raw("r1001008,0xf045").unwrap(), [0x100_1008, 0xf045]);
        assert!(parse_raw("walks").unwrap_err().contains("`walks` is no raw event"));
    }
}
