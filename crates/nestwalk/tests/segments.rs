//! Machines with direct segments, from the command line: what must hold between them and the
//! others.

mod common;

use common::{Lab, count, machine, number};

const PRIMARY: &str = "4k@primary";

/// Dual Direct and direct segments cost next to nothing, VMM Direct and Guest Direct about what
/// bare metal does, and all less than nested paging.
#[test]
fn segments_take_the_costs_of_walks_away() {
    let lab = Lab::new();
    let results = lab.json(
        "compare gups --footprint 256MiB --accesses 300k --verify --quiet \
         --machines native,nested,ds,vmm-direct,guest-direct,dual-direct",
    );
    let total = |name: &str| number(machine(&results, name), "total_cycles");
    let native = total("native:4k");
    let nested = total("nested:4k+4k");
    let (guest, dual) = ("guest-direct:4k+4k@primary+default", "dual-direct:4k+4k@primary+default");
    assert!(nested > 1.1 * native, "{nested} {native}");
    for name in ["vmm-direct:4k+4k", guest] {
        let ratio = total(name) / native;
        assert!((0.98..1.05).contains(&ratio), "{name}: {ratio}");
    }
    let ideal = total(&format!("ideal:{PRIMARY}"));
    for name in [&format!("ds:{PRIMARY}"), dual] {
        let ratio = total(name) / ideal;
        assert!((0.999..1.005).contains(&ratio), "{name}: {ratio}");
        let m = machine(&results, name);
        assert!(count(m, "segment_hits") > 50_000 && count(m, "walks") < 100, "{m}");
    }
    for m in results["machines"].as_array().unwrap().iter().filter(|m| m["scheme"] != "ideal") {
        assert_eq!(count(&m["referee"], "violations"), 0, "{}", m["referee"]);
    }
    // The segment lies above 4 GiB, where the guest's kernel puts everything; the largest mapping
    // is it.
    let m = machine(&results, dual);
    assert!(count(&m["segments"]["guest"], "bytes") >= 256 << 20);
    assert_eq!(count(&m["segments"]["vmm"], "base"), 4 << 30);
    let primary = count(&results["guests"][PRIMARY], "primary_bytes");
    assert_eq!(primary, count(&m["segments"]["guest"], "bytes"));
}

/// VMM Direct needs nothing of the guest: a recorded one walks as on bare metal, without an exit.
#[test]
fn a_recorded_guest_runs_under_a_vmm_segment_as_it_was() {
    let lab = Lab::new();
    let results = lab.json(
        "compare gcc --accesses 2m --verify --quiet --machines native,nested,vmm-direct,vmm-direct/bad=16",
    );
    let get = |name: &str, field: &str| count(machine(&results, name), field);
    for name in ["vmm-direct:observed+4k", "vmm-direct/bad=16:observed+4k"] {
        assert_eq!(count(&machine(&results, name)["referee"], "violations"), 0);
        assert_eq!(get(name, "vm_exits_total"), 0, "{name}");
        assert!(get(name, "walks") >= get("native:observed", "walks"));
        assert!(get(name, "vmm_segment_checks") > get(name, "walks"));
    }
    assert_eq!(get("vmm-direct:observed+4k", "nested_refs"), 0);
    assert!(get("nested:observed+4k", "nested_refs") > 0);
}

#[test]
fn what_cannot_be_is_refused_with_what_would_be_right() {
    let lab = Lab::new();
    for (line, words) in [
        ("compare gcc --machines dual-direct", ["no primary region", "vmm-direct"]),
        ("compare gups --machines vmm-direct/filter=0x4", ["filter=0x4", "neither may be 0"]),
        ("compare gups --machines vmm-direct/filter=96x2", ["filter=96x2", "power of two"]),
        ("compare gups --machines vmm-direct/speed=1", ["no option `speed`", "bad=N"]),
        ("compare gups --machines guest-direct/bad=1", ["no option `bad`", "filter="]),
        (
            "compare gups --footprint 1MiB --guest-memory 64MiB --machines vmm-direct/bad=16384",
            ["16384 bad pages", "give fewer"],
        ),
        (
            "compare gups --footprint 1MiB --machines vmm-direct/bad-at=0x90000000",
            ["frame 0x90000000", "does not exist"],
        ),
        (
            "compare gups --machines nested@default+primary",
            ["`primary` is a guest's", "vmm-direct"],
        ),
    ] {
        let message = lab.refused(line);
        assert!(words.iter().all(|w| message.contains(w)), "{line}: {message}");
    }
}
