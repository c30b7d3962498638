//! SpOT, RMM and anchors from the command line: what they save where memory is contiguous, and what
//! results say of it.

mod common;

use common::{Lab, count, machine, number};

#[test]
fn contiguous_memory_hides_and_saves_walks() {
    let lab = Lab::new();
    let results = lab.json(
        "compare gups --footprint 256MiB --accesses 200k --verify --quiet --machines \
         nested:4k@ideal+ideal,spot:4k@ideal+ideal,rmm:4k@ideal+ideal,anchor:4k@ideal+ideal,\
         native-spot:4k@ideal,native-rmm:4k@ideal,native-anchor:4k@ideal",
    );
    for m in results["machines"].as_array().unwrap().iter().filter(|m| m["scheme"] != "ideal") {
        assert_eq!(count(&m["referee"], "violations"), 0, "{}", m["referee"]);
    }
    let of = |name: &str| machine(&results, name).clone();
    let overhead = |name: &str| number(&of(name), "translation_cycles");
    let nested = overhead("nested:4k+4k@ideal+ideal");
    // Nine tenths are hidden, and the walks happen all the same.
    let spot = of("spot:4k+4k@ideal+ideal");
    let hidden = overhead("spot:4k+4k@ideal+ideal");
    assert!(hidden < nested / 10.0, "{hidden}");
    assert_eq!(count(&spot, "walks"), count(&of("nested:4k+4k@ideal+ideal"), "walks"));
    let c = &spot["contiguity"];
    let judged = ["predictions_right", "predictions_wrong", "predictions_squashed"];
    assert_eq!(count(c, "predictions"), judged.iter().map(|k| count(c, k)).sum::<u64>());
    assert!(count(c, "hidden_walk_cycles") <= count(&spot, "walk_cycles"));
    for (name, hits) in [
        ("rmm:4k+4k@ideal+ideal", "range_hits"),
        ("native-rmm:4k@ideal", "range_hits"),
        ("anchor:4k+4k@ideal+ideal", "anchor_hits"),
        ("native-anchor:4k@ideal", "anchor_hits"),
        ("native-spot:4k@ideal", "predictions_right"),
    ] {
        let m = of(name);
        assert!(count(&m["contiguity"], hits) > 10 * count(&m, "faulted_walks") + 1000, "{m}");
    }
    assert!(count(&of("rmm:4k+4k@ideal+ideal")["contiguity"], "metadata_bytes") >= 2 * 4096);
    assert!(count(&of("native-anchor:4k@ideal")["contiguity"], "anchor_distance") > 8);
    assert!(of("nested:4k+4k@ideal+ideal").get("contiguity").is_none());
}

#[test]
fn what_can_be_set_is_told_and_wrong_values_are_refused() {
    let lab = Lab::new();
    assert!(lab.ok("explain spot").contains("penalty"));
    assert!(lab.ok("explain native-anchor").contains("distance"));
    let message = lab.refused("compare gups --machines anchor/distance=3");
    assert!(message.contains("power of two"), "{message}");
}
