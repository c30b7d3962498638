//! How contiguous memory comes about, from the command line: fragmentation as an input,
//! self-ballooning, reclaim of the gap for I/O, and compaction in the host.

mod common;

use common::{Lab, count, machine, number};
use serde_json::Value;

const MIB: u64 = 1 << 20;

fn no_violations(results: &Value) {
    for m in results["machines"].as_array().unwrap().iter().filter(|m| m["scheme"] != "ideal") {
        assert_eq!(count(&m["referee"], "violations"), 0, "{}", m["referee"]);
        assert!(count(&m["referee"], "checked") > 0);
    }
}

/// A guest in which no segment above 64 MiB exists: self-ballooning yields one that covers the
/// primary region, on every machine with that guest.
#[test]
fn self_ballooning_gives_a_fragmented_guest_its_segment() {
    let lab = Lab::new();
    for fragmentation in ["aged", "bad"] {
        let results = lab.json(&format!(
            "compare gups --footprint 128MiB --guest-memory 4GiB --accesses 60k --verify --quiet \
             --guest-fragmentation {fragmentation} --machines nested:4k@primary-balloon,\
             shadow:4k@primary-balloon,agile:4k@primary-balloon,xen-pv:4k@primary-balloon,\
             vmm-direct:4k@primary-balloon,guest-direct:4k@primary-balloon,\
             dual-direct:4k@primary,dual-direct:4k@primary-balloon"
        ));
        no_violations(&results);
        let guest = |g: &str, field: &str| count(&results["guests"][g], field);
        assert!(guest("4k@primary-balloon", "longest_run_before") <= 64 * MIB);
        assert!(guest("4k@primary-balloon", "longest_run_after") >= 128 * MIB);
        assert!(guest("4k@primary", "primary_bytes") <= 64 * MIB);
        let primary = guest("4k@primary-balloon", "primary_bytes");
        assert!(primary >= 128 * MIB, "{primary}");
        // As many pages went as came, and took their time.
        let pages = guest("4k@primary-balloon", "balloon_pages");
        assert_eq!(pages << 12, guest("4k@primary-balloon", "hot_added_bytes"));
        let ms = results["guests"]["4k@primary-balloon"]["balloon_ms"].as_f64().unwrap();
        assert!((ms - pages as f64 * 2250.0 / 1e6).abs() < 1e-6, "{ms}");
        assert!(guest("4k@primary-balloon", "compaction_pages") > 0);
        assert_eq!(guest("4k@primary", "balloon_pages"), 0);
        // The guest's segment covers the region, the VMM's the new memory: no walk is left.
        let dual = machine(&results, "dual-direct:4k+4k@primary-balloon+default");
        assert_eq!(count(&dual["segments"]["guest"], "bytes"), primary);
        assert_eq!(count(&dual["segments"]["vmm"], "base"), (4 + 1) << 30);
        assert!(count(dual, "walks") < 20 && count(dual, "segment_hits") > 5_000, "{dual}");
        let paged = machine(&results, "dual-direct:4k+4k@primary+default");
        assert!(count(paged, "walks") > 1_000);
    }
}

/// With the gap reclaimed one segment covers at least 95 % of guest memory.
#[test]
fn one_segment_covers_the_guest_when_the_gap_is_reclaimed() {
    let lab = Lab::new();
    let percent = |more: &str| {
        let results = lab.json(&format!(
            "compare gups --footprint 64MiB --guest-memory 8GiB --accesses 20k --verify --quiet \
             --machines nested,vmm-direct,dual-direct {more}"
        ));
        no_violations(&results);
        let m = machine(&results, "vmm-direct:4k+4k");
        number(&m["segments"], "vmm_percent")
    };
    assert!((percent("") - 62.5).abs() < 0.01);
    let reclaimed = percent("--io-gap reclaimed");
    assert!((reclaimed - 100.0 * (1.0 - 0.25 / 8.0)).abs() < 0.01 && reclaimed >= 95.0);
    assert!(percent("--io-gap reclaimed --low-memory 64MiB") > 99.0);
}

/// A fragmented host: the machine starts paged, the VMM compacts, and the mode changes.
#[test]
fn the_mode_changes_when_the_host_is_compacted() {
    let lab = Lab::new();
    for budget in [20_000, 4_000_000] {
        let results = lab.json(&format!(
            "compare gups --footprint 64MiB --guest-memory 256MiB --host-memory 2GiB --accesses 2m \
             --vcpus 2 --verify --quiet --host-fragmentation bad --machines nested,guest-direct,\
             vmm-direct,vmm-direct/start=paged/compact={budget},\
             dual-direct/start=paged/compact={budget}"
        ));
        no_violations(&results);
        // Without compaction no run of frames is long enough for all of it.
        let before = machine(&results, "vmm-direct:4k+4k");
        assert!(count(&before["segments"]["vmm"], "bytes") < 64 * MIB);
        for name in [
            format!("vmm-direct/start=paged/compact={budget}:4k+4k"),
            format!("dual-direct/start=paged/compact={budget}:4k+4k@primary+default"),
        ] {
            let m = machine(&results, &name);
            let bytes = count(&m["segments"]["vmm"], "bytes");
            assert!(bytes == 0 || bytes == 256 * MIB, "{name}: {bytes}");
            assert_eq!(bytes > 0, budget == 4_000_000, "{name}");
            if budget == 20_000 {
                assert!(count(m, "nested_refs") > 0, "{name}: {m}");
            }
        }
    }
}

#[test]
fn a_real_machines_free_memory_is_read() {
    let lab = Lab::new();
    let row = "Node 0, zone   Normal  10 9 8 7 6 5 4 3 2 1 0 \n";
    lab.write("buddyinfo", row);
    let results = lab.json(
        "compare gups --footprint 64MiB --guest-memory 1GiB --accesses 10k --quiet \
         --guest-fragmentation buddyinfo --machines ds:4k@primary-balloon",
    );
    // Nothing above 2 MiB was free on that machine; neighbours may be free together.
    let before = count(&results["guests"]["4k@primary-balloon"], "longest_run_before");
    assert!((2 * MIB..16 * MIB).contains(&before), "{before}");
}

/// What cannot be moved keeps the host from being compacted.
#[test]
fn page_types_say_what_compaction_may_move() {
    let lab = Lab::new();
    let text = |unmovable: u32| {
        format!(
            "Page block order: 9\nPages per block:  512\n\nFree pages count per migrate type at order \
             0 1 2 3 4 5 6 7 8 9 10\nNode 0, zone Normal, type Movable 64 32 16 8 4 2 1 1 0 0 0\n\n\
             Number of blocks type Unmovable Movable\nNode 0, zone Normal {unmovable} {}\n",
            100 - unmovable
        )
    };
    lab.write("movable", text(0));
    lab.write("mixed", text(50));
    let segment = |file: &str| {
        let results = lab.json(&format!(
            "compare gups --footprint 64MiB --guest-memory 256MiB --host-memory 2GiB --accesses 2m \
             --quiet --host-fragmentation {file} \
             --machines vmm-direct/start=paged/compact=4000000"
        ));
        let m = machine(&results, "vmm-direct/start=paged/compact=4000000:4k+4k");
        count(&m["segments"]["vmm"], "bytes")
    };
    assert_eq!(segment("movable"), 256 * MIB);
    assert_eq!(segment("mixed"), 0);
}

/// Frames of the guest that are faulty are in no process, and pages of its segment escape there.
#[test]
fn bad_frames_of_the_guest_escape_from_its_segment() {
    let lab = Lab::new();
    let run = |more: &str| {
        let results = lab.json(&format!(
            "compare gups --footprint 128MiB --guest-memory 256MiB --accesses 200k --verify --quiet \
             --machines guest-direct,dual-direct {more}"
        ));
        no_violations(&results);
        let m = machine(&results, "guest-direct:4k+4k@primary+default").clone();
        (count(&m["segments"]["guest"], "base"), count(&m["segments"]["guest"], "escaped"))
    };
    assert_eq!(run("").1, 0);
    // The region is more than half of the free memory, which may have 16 such pages.
    let escaped = run("--guest-bad 20").1;
    assert!((1..=16).contains(&escaped), "{escaped}");
    // Neither side of these is large enough; tables are in the small blocks between them.
    let escaped = run("--guest-bad-at 0x9000+0x9003+0x9007").1;
    assert!((3..=7).contains(&escaped), "{escaped}");
}

#[test]
fn what_cannot_be_is_refused_with_what_would_be_right() {
    let lab = Lab::new();
    lab.write("short", "Node 0, zone DMA 1 2 3\n");
    for (line, words) in [
        (
            "compare gups --footprint 1MiB --guest-memory 128MiB --io-gap reclaimed",
            ["--io-gap reclaimed", "give more memory"],
        ),
        (
            "compare gups --footprint 1MiB --guest-memory 8GiB --io-gap reclaimed --low-memory 4GiB",
            ["stays low (4 GiB)", "below the gap"],
        ),
        ("compare gups --guest-bad-at 0x10+16", ["named twice", "0x10"]),
        ("compare gups --guest-bad-at x", ["--guest-bad-at x", "0x1000+0x1001"]),
        ("compare gups --guest-bad-at 0xd0000 --guest-memory 8GiB", ["0xd0000", "no gPA memory"]),
        ("compare gups --guest-bad 99999999", ["99999999 bad pages", "are free"]),
        ("compare gups --low-memory 1GiB", ["--low-memory 1GiB", "--io-gap reclaimed"]),
        ("compare gcc --io-gap reclaimed", ["recorded guest", "vmm-direct:4k"]),
        ("compare gups --guest-fragmentation none.txt", ["none.txt", "fresh, aged, bad"]),
        ("compare gups --host-fragmentation short", ["short: line 1, column 23", "only 3 numbers"]),
        ("compare gups --machines vmm-direct/compact=9", ["compact=9", "start=paged"]),
    ] {
        let message = lab.refused(line);
        assert!(words.iter().all(|w| message.contains(w)), "{line}: {message}");
    }
}

#[test]
fn machines_tell_runs_and_what_covers_them() {
    let lab = Lab::new();
    let line =
        "compare sequential --footprint 64MiB --accesses 20k --machines nested:thp+4k --quiet";
    let without = lab.json(line);
    assert!(machine(&without, "nested:thp+4k").get("coverage").is_none());
    let with = lab.json(&format!("{line} --contiguity"));
    assert!(machine(&with, "ideal:thp").get("coverage").is_none());
    let native = &machine(&with, "native:thp")["coverage"];
    assert!(native.get("host").is_none() && native["processes"] == 1);
    let c = &machine(&with, "nested:thp+4k")["coverage"];
    // The guest is the same, and both together have its pages.
    assert_eq!(native["guest"], c["guest"]);
    let of = |d: &str, technique: &str| count(&c[d]["entries"][technique], "100");
    assert_eq!(of("guest", "4k"), count(&c["guest"], "pages"));
    assert_eq!(count(&c["both"], "pages"), count(&c["guest"], "pages"));
    assert!(count(&c["guest"], "pages") >= 64 << 8);
    for d in ["guest", "host", "both"] {
        assert_eq!(of(d, "ranges"), count(&c[d], "runs"));
        assert!(of(d, "offsets") <= of(d, "ranges") && of(d, "ranges") <= of(d, "4k"));
    }
    assert!(of("guest", "2m") < of("guest", "4k") / 256);
    // Nothing else of the results has changed.
    let mut same = with.clone();
    for m in same["machines"].as_array_mut().unwrap() {
        m.as_object_mut().unwrap().remove("coverage");
    }
    assert_eq!(same, without);
    let text = lab.ok(&format!("{line} --contiguity"));
    assert!(text.contains("contiguity at the end:") && text.contains("offsets"), "{text}");
    let text = lab.ok("explain coverage");
    assert!(text.contains("machines[].coverage.both.entries"), "{text}");
}
