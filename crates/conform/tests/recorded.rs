//! Recorded guests: the model against what real KVMs did with the same actions.

use nestwalk_conform::figures::{CHUNK, Counts, Figures, Recordings, recorded, without_own};
use nestwalk_conform::paging::Paging;
use nestwalk_conform::program::Own;
use nestwalk_conform::recording::{Part, is_own, part};
use nestwalk_conform::stream;
use nestwalk_sim::scheme::vmm_options::KvmVersion;
use nestwalk_source::trace::TraceReader;
use nestwalk_types::{Batch, Control, Source, SourceInfo};
use std::path::PathBuf;

const VERSIONS: [(&str, KvmVersion); 2] = [("6.1", KvmVersion::V6_1), ("6.12", KvmVersion::V6_12)];
const NAMES: [&str; 3] = ["gcc", "redis", "storm"];
const PAGINGS: [Paging; 2] = [Paging::Shadow, Paging::Nested];
/// Chunks of each recording that are compared here.
const PART: usize = 12;

fn open(name: &str) -> TraceReader {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../samples");
    TraceReader::open(&root.join(format!("{name}.nwt"))).unwrap()
}

fn sheet(version: &str, paging: Paging) -> Recordings {
    Recordings::read(recorded(version, paging).unwrap()).unwrap()
}

/// The part that was asked for, and of its actions the first so many.
fn beginning(name: &str, limit: usize, actions: usize) -> Part {
    let mut part = part(name, &mut open(name), limit).unwrap();
    part.program.actions.truncate(actions);
    part
}

/// What the model does, as the real KVM's answers are kept.
fn modelled(part: &Part, paging: Paging, rules: KvmVersion) -> Figures {
    let answers = paging.perform(&part.program, rules).unwrap();
    Figures::of(part, paging, &without_own(&part.program, paging, answers), Counts::new())
}

/// A part of the actions here; `nestwalk conform --recorded gcc,redis,storm` compares all.
#[test]
fn every_event_of_recorded_guests_agrees() {
    for name in NAMES {
        let part = beginning(name, 300_000, PART * CHUNK);
        for (paging, (version, rules)) in
            PAGINGS.into_iter().flat_map(|p| VERSIONS.map(|version| (p, version)))
        {
            let sheet = sheet(version, paging);
            assert!(sheet.kernel.starts_with(version) && !sheet.qemu.is_empty());
            let real = &sheet.figures[name];
            assert!(real.actions > 40_000 && real.actions.div_ceil(CHUNK) == real.chunks.len());
            assert_eq!(real.limit, part.limit);
            let model = modelled(&part, paging, rules);
            assert_eq!(model.chunks, real.chunks[..PART], "{version}: {paging:?}: {name}");
        }
    }
}

/// The comparison can fail: each version's rules differ from the others' within the same actions.
#[test]
fn rules_of_other_versions_differ_from_the_recorded() {
    let versions = [KvmVersion::V4_19, KvmVersion::V6_1, KvmVersion::V6_12];
    for (version, rules) in VERSIONS {
        let real = &sheet(version, Paging::Shadow).figures["storm"];
        let part = beginning("storm", real.limit, PART * CHUNK);
        for other in versions.into_iter().filter(|other| *other != rules) {
            let model = modelled(&part, Paging::Shadow, other);
            assert_ne!(model.chunks, real.chunks[..PART], "{version}: {other:?}");
        }
    }
}

/// A machine that runs the recording itself comes to the real KVM's exits and shadow pages.
#[test]
fn machines_agree_with_kvm_about_the_whole_of_gcc() {
    for (version, rules) in VERSIONS {
        for paging in PAGINGS {
            let real = &sheet(version, paging).figures["gcc"];
            let part = beginning("gcc", real.limit, usize::MAX);
            assert!(part.whole);
            let machine = stream::run(&mut open("gcc"), &part, paging, rules).unwrap();
            assert!(machine.exits.values().sum::<u64>() > 5000);
            assert_eq!(machine.exits, real.exits, "{version}: {paging:?}");
            for kind in ["get new", "get", "zap", "sync", "unsync", "set", "inject"] {
                assert_eq!(machine.events.get(kind), real.events.get(kind), "{version}: {kind}");
            }
        }
    }
}

/// KVM's own counters say the same as the events, which are other lines of its source. Shadow pages and
/// faults in them are also those of the guest's own page.
#[test]
fn events_add_up_to_the_counters_of_kvm() {
    for (version, _) in VERSIONS {
        for (name, real) in &sheet(version, Paging::Shadow).figures {
            let exits = |reason: &str| real.exits.get(reason).copied().unwrap_or(0);
            assert_eq!(real.counters["pf_guest"], exits("true_fault"), "{version}: {name}");
            assert_eq!(real.counters["pf_emulate"], exits("table_write"), "{version}: {name}");
            assert_eq!(real.counters["invlpg"], exits("invalidation"), "{version}: {name}");
            let faults: u64 =
                real.exits.values().sum::<u64>() - exits("invalidation") - exits("cr3_load");
            assert_eq!(real.events["fault"], faults, "{version}: {name}");
            assert!(real.counters["pf_taken"] >= faults, "{version}: {name}");
            let own = real.counters["mmu_cache_miss"] - real.events["get new"];
            assert!((3..=30).contains(&own), "{version}: {name}: {own}");
        }
    }
}

/// Each recording can be performed as a whole: nothing reaches where its tables do not lead.
#[test]
fn nothing_of_a_recording_is_out_of_reach() {
    for name in NAMES {
        let part = beginning(name, 300_000, usize::MAX);
        assert_eq!((part.left_out.not_allowed, part.left_out.unreachable), (0, 0), "{name}");
        // The stores to tables are actions, one each; the accesses by which they were made are not.
        assert!(part.left_out.table_stores > 1000 && part.left_out.repeated > part.runs / 2);
    }
}

#[test]
fn sheets_of_recordings_are_read_as_they_are_written() {
    for (version, _) in VERSIONS {
        for paging in PAGINGS {
            assert_eq!(sheet(version, paging).text(), recorded(version, paging).unwrap());
        }
    }
    for (text, what) in [
        ("x", "line 1 of the answer sheet: it does not begin"),
        (
            "nestwalk recorded guests 1\nexit a 1",
            "line 2 of the answer sheet: it is of no recording",
        ),
        ("nestwalk recorded guests 1\nrecording a 1", "line 2 of the answer sheet: it is of no"),
        (
            "nestwalk recorded guests 1\nrecording a 1 x 0",
            "line 2 of the answer sheet: recording NAME LIMIT",
        ),
        (
            "nestwalk recorded guests 1\nrecording a 1 1 0\nexit a",
            "line 3 of the answer sheet: exit, event or counter",
        ),
    ] {
        let error = Recordings::read(text).unwrap_err().to_string();
        assert!(error.starts_with(what), "{error}");
    }
}

#[test]
fn events_of_the_small_guests_own_page_are_known() {
    let own = Own { va: 0xffff_8000_0000_0000, gfn: 0x80000 };
    for (event, shadow, nested) in [
        ("fault ffff800000000000 10", true, true),
        ("fault ffff800000001000 10", false, true),
        ("fault 7fffffff0000 4", false, true),
        ("fault 80003000 200000006", false, true),
        ("fault 7ffff000 200000006", false, false),
        ("set 80000 l1 i0 wux", true, true),
        ("get 80003 l1 wux new", true, true),
        ("get 7ffff l1 wux new", false, false),
        ("accessed 80003000", true, true),
        ("accessed 7ffff000", false, false),
        ("inject", false, false),
        ("emulate", false, false),
    ] {
        assert_eq!(is_own(event, Paging::Shadow, own), shadow, "{event}");
        assert_eq!(is_own(event, Paging::Nested, own), nested, "{event}");
    }
}

/// A stream with nothing in it, or of processes.
struct Other(Option<nestwalk_types::GuestInfo>);

impl Source for Other {
    fn info(&self) -> SourceInfo {
        SourceInfo { guest: self.0.clone(), ..SourceInfo::default() }
    }
    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, nestwalk_types::SourceError> {
        let more = batch.is_empty() && self.0.is_some();
        batch.controls = vec![(0, Control::RegionOfInterest)];
        Ok(more)
    }
}

#[test]
fn what_is_no_recording_of_one_vcpu_is_refused() {
    let guest = |vcpus| nestwalk_types::GuestInfo {
        memory_bytes: 1 << 30,
        paging: "4-level".into(),
        vcpus,
        filter: nestwalk_types::Filter::RUNS,
    };
    for (info, what) in [
        (None, "a: it has no page tables"),
        (Some(guest(2)), "a: the small guest has one vCPU"),
        (Some(guest(1)), "a: it loads no root"),
    ] {
        let error = part("a", &mut Other(info), 10).unwrap_err().to_string();
        assert!(error.starts_with(what), "{error}");
    }
}
