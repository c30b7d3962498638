//! What every workload of the list keeps, checked from outside.

use nestwalk_types::{Batch, Control, ProcessId, Run};
use nestwalk_workloads::{
    FOOTPRINT_MAX, FOOTPRINT_MIN, Populate, WORKLOADS, WorkloadError, WorkloadSpec, open,
};
use std::collections::BTreeMap;

fn spec(footprint: u64, accesses: u64, populate: Populate) -> WorkloadSpec {
    WorkloadSpec { footprint, accesses: Some(accesses), seed: 1, populate }
}

/// Mappings of all processes, first address to length.
#[derive(Default)]
struct Spaces {
    of: BTreeMap<u32, BTreeMap<u64, u64>>,
    running: ProcessId,
    /// Bytes that each forked process shares with its parent.
    shared: BTreeMap<u32, u64>,
    mapped_max: u64,
}

impl Spaces {
    fn control(&mut self, name: &str, control: &Control) {
        match *control {
            Control::Switch { process, .. } => self.running = process,
            Control::Map { process, start, bytes, .. } => {
                let (start, space) = (start.value(), self.of.entry(process.0).or_default());
                assert!(bytes > 0 && start % 4096 == 0 && bytes % 4096 == 0, "{name}");
                assert!(start + bytes <= 1 << 47, "{name}: {start:#x} is not a user address");
                let before = space.range(..start + bytes).next_back();
                assert!(before.is_none_or(|(s, b)| s + b <= start), "{name}: maps overlap");
                space.insert(start, bytes);
                let mapped: u64 = self.of.values().flat_map(BTreeMap::values).sum();
                let mapped = mapped - self.shared.values().sum::<u64>();
                self.mapped_max = self.mapped_max.max(mapped);
            }
            Control::Populate { process, start, bytes } => {
                assert!(bytes > 0 && bytes <= Control::POPULATE_BYTES, "{name}");
                assert!(self.holds(process, start.value(), bytes), "{name}: populates a hole");
            }
            Control::Unmap { process, start, bytes } => {
                // Whole mappings, one or more.
                let space = self.of.get_mut(&process.0).unwrap();
                let (mut at, end) = (start.value(), start.value() + bytes);
                while at < end {
                    at += space.remove(&at).expect("unmaps what is mapped");
                }
                assert_eq!(at, end, "{name}");
            }
            Control::Fork { parent, child } => {
                let copy = self.of[&parent.0].clone();
                self.shared.insert(child.0, copy.values().sum());
                assert!(self.of.insert(child.0, copy).is_none(), "{name}: a process comes twice");
            }
            Control::Exec { process } => {
                self.of.get_mut(&process.0).unwrap().clear();
                self.shared.remove(&process.0);
            }
            Control::Exit { process } => _ = self.of.remove(&process.0).unwrap(),
            Control::RegionOfInterest => {}
            ref other => panic!("{name}: {other:?}"),
        }
    }
    fn holds(&self, process: ProcessId, start: u64, bytes: u64) -> bool {
        let space = &self.of[&process.0];
        space.range(..=start).next_back().is_some_and(|(s, b)| start + bytes <= s + b)
    }
}

/// Runs a source to its end and checks what holds for every one. Returns its runs, unless there are
/// too many, and the most that was mapped.
fn check(name: &str, spec: &WorkloadSpec) -> (Vec<Run>, u64) {
    let mut source = open(name, spec).unwrap_or_else(|e| panic!("{name}: {e}"));
    let info = source.info();
    assert_eq!(info.total, spec.accesses);
    assert!(info.knows_lines && info.knows_pc && !info.has_fetches);
    let (mut spaces, mut batch, mut runs) = (Spaces::default(), Batch::default(), vec![]);
    let (mut accesses, mut interest) = (0, 0);
    while source.next_batch(&mut batch).unwrap() {
        let populates =
            batch.controls.iter().filter(|c| matches!(c.1, Control::Populate { .. })).count();
        assert!(populates <= 4, "{name}: {populates} populate controls in one batch");
        assert!(batch.runs.len() <= Batch::RUNS + 4096, "{name}: {}", batch.runs.len());
        assert_eq!(batch.segments().map(|s| s.1.len()).sum::<usize>(), batch.runs.len());
        for (controls, range) in batch.segments() {
            for (_, control) in controls {
                spaces.control(name, control);
                interest += u32::from(*control == Control::RegionOfInterest);
            }
            for run in &batch.runs[range] {
                assert_eq!(interest, 1, "{name}: an access before the region of interest");
                let line = 64 * u64::from(run.lines.trailing_zeros());
                let page = run.gva.value() & !0xfff;
                assert!(spaces.holds(spaces.running, page + line, 64), "{name}: {:?}", run.gva);
                assert!(run.pc.value() >= 0x40_1000 && !run.flags.is_fetch());
            }
        }
        accesses += batch.accesses();
        assert_eq!(source.position(), accesses, "{name}");
        if runs.len() < 1 << 20 {
            runs.extend_from_slice(&batch.runs);
        }
    }
    assert!(batch.is_empty(), "{name}: the end is an empty batch");
    assert!(!source.next_batch(&mut batch).unwrap(), "{name}: the end stays");
    assert_eq!(interest, 1, "{name}");
    if let Some(wanted) = spec.accesses {
        assert_eq!(accesses, wanted, "{name}: exactly as many as asked for");
    }
    (runs, spaces.mapped_max)
}

#[test]
fn no_file_is_forgotten() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/kinds");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .filter_map(|e| {
            e.unwrap().file_name().into_string().unwrap().strip_suffix(".rs").map(str::to_owned)
        })
        .filter(|stem| stem != "mod")
        .collect();
    files.sort();
    let names: Vec<_> = WORKLOADS.iter().map(|w| w.name).collect();
    assert_eq!(files, names, "one file per workload, in alphabetical order");
    assert_eq!(names.len(), 13);
}

#[test]
fn streams_are_exact_bounded_and_inside_their_mappings() {
    for w in WORKLOADS {
        for footprint in [FOOTPRINT_MIN, 3_000_001, 64 << 20, 5 << 30, FOOTPRINT_MAX] {
            for accesses in [1, 100_003] {
                let (_, mapped) = check(w.name, &spec(footprint, accesses, Populate::No));
                // A page per region beyond the footprint; half where sizes are powers of two.
                assert!(mapped <= footprint + (80 << 10), "{} {footprint}: {mapped}", w.name);
                let arenas = if w.name == "compiler" { 2 } else { 1 };
                // What is mapped on the way comes later than the first access.
                assert!(
                    accesses == 1 || mapped >= footprint / 2 / arenas,
                    "{} {footprint}: {mapped}",
                    w.name
                );
            }
        }
    }
}

#[test]
fn long_lived_memory_is_populated_before_the_region_of_interest() {
    for w in WORKLOADS {
        let footprint = 300 << 20;
        let mut source = open(w.name, &spec(footprint, 1000, Populate::Yes)).unwrap();
        let (mut batch, mut populated, mut mapped) = (Batch::default(), 0, 0);
        let mut next = 0;
        'all: while source.next_batch(&mut batch).unwrap() {
            for (at, control) in &batch.controls {
                match control {
                    Control::Map { bytes, .. } => mapped += bytes,
                    Control::Populate { start, bytes, .. } => {
                        // Within a mapping the pieces follow each other.
                        assert!(next == start.value() || start.value() % 4096 == 0);
                        next = start.value() + bytes;
                        populated += bytes;
                    }
                    Control::RegionOfInterest => {
                        assert_eq!(*at, 0);
                        break 'all;
                    }
                    _ => {}
                }
            }
            assert!(batch.runs.is_empty(), "{}", w.name);
        }
        assert_eq!(populated, mapped, "{}", w.name);
        check(w.name, &spec(footprint, 50_000, Populate::Yes));
    }
}

#[test]
fn a_seed_decides_the_stream_and_nothing_else_does() {
    for w in WORKLOADS {
        let s = spec(8 << 20, 200_000, Populate::Yes);
        let (runs, _) = check(w.name, &s);
        assert_eq!(runs, check(w.name, &s).0, "{}", w.name);
        let (other, _) = check(w.name, &WorkloadSpec { seed: 2, ..s.clone() });
        // Regular sweeps have no random choices.
        let regular = ["bt", "stream"].contains(&w.name);
        assert_eq!(runs == other, regular, "{}", w.name);
        // Fewer accesses are a prefix.
        let (prefix, _) = check(w.name, &WorkloadSpec { accesses: Some(70_001), ..s });
        let complete = prefix.len() - 1;
        assert_eq!(prefix[..complete], runs[..complete], "{}", w.name);
    }
}

#[test]
fn algorithms_end_by_themselves_and_verify_their_results() {
    let small = WorkloadSpec { accesses: None, ..spec(FOOTPRINT_MIN, 1, Populate::No) };
    for name in [
        "gups:verify=1",
        "stream:verify=1",
        "pagerank:verify=1,iterations=5",
        "bt:verify=1,iterations=2",
        "graph500:roots=3",
        "hashjoin",
        "xsbench:lookups=1000",
        "btree",
        "kvstore",
        "svm",
        "compiler:functions=5,chunk_kib=16",
        "forkstorm:children=9",
        "seasons:length=20000,storm_kib=64",
    ] {
        check(name, &small);
        check(name, &WorkloadSpec { populate: Populate::Yes, ..small.clone() });
        // Starting over gives as many accesses as are wanted.
        check(name, &WorkloadSpec { accesses: Some(3_000_000), ..small.clone() });
    }
}

#[test]
fn verifying_does_not_change_the_stream() {
    for w in WORKLOADS.iter().filter(|w| w.settings.iter().any(|s| s.name == "verify")) {
        for populate in [Populate::Yes, Populate::No] {
            let s = spec(FOOTPRINT_MIN, 400_000, populate);
            let verified = check(&format!("{}:verify=1", w.name), &s).0;
            assert_eq!(check(w.name, &s).0, verified, "{}", w.name);
        }
    }
}

#[test]
fn mistakes_are_named() {
    let good = spec(FOOTPRINT_MIN, 1, Populate::No);
    let message = |name: &str, s: &WorkloadSpec| match open(name, s) {
        Err(e) => e.to_string(),
        Ok(_) => panic!("{name} should not open"),
    };
    let unknown = message("gupz", &good);
    assert!(WORKLOADS.iter().all(|w| unknown.contains(w.name)), "{unknown}");
    for footprint in [0, FOOTPRINT_MIN - 1, FOOTPRINT_MAX + 1, u64::MAX] {
        let text = message("gups", &WorkloadSpec { footprint, ..good.clone() });
        assert!(text.contains(&footprint.to_string()) && text.contains("1 TiB"), "{text}");
    }
    assert_eq!(
        open("gups", &WorkloadSpec { accesses: Some(0), ..good.clone() }).err(),
        Some(WorkloadError::NoAccesses)
    );
    let text = message("kvstore:set_percent=101", &good);
    assert!(text.contains("set_percent=101") && text.contains("0 to 100"), "{text}");
    assert!(message("kvstore:sets=5", &good).contains("set_percent, value_bytes"));
    assert!(message("svm:a=1", &good).contains("has none"));
    assert!(message("gups:verify", &good).contains("key=number"));
    assert!(message("gups:verify=yes", &good).contains("`verify=yes`"));
    let text = message("forkstorm:jobs=64", &good);
    assert!(text.contains("8388608"), "{text}");
    open("forkstorm:jobs=64", &spec(8 << 20, 1, Populate::No)).unwrap();
    assert!(message("compiler:chunk_kib=65536", &good).contains("needs"));
}

#[test]
fn extreme_options_open_and_run() {
    for w in WORKLOADS {
        for setting in w.settings {
            for value in [setting.range.0, setting.range.1] {
                let name = format!("{}:{}={value}", w.name, setting.name);
                let s = spec(64 << 20, 20_000, Populate::No);
                match open(&name, &s) {
                    Err(WorkloadError::TooSmall { .. }) => {}
                    _ => _ = check(&name, &s),
                }
            }
        }
    }
}
