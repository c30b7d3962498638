//! The one measured point that the cost model is calibrated to, and that it stays there.

mod common;

use common::{Lab, machine, number};

/// GUPS over 64 GiB in 4 KiB pages on a Xeon Gold 6252: 260 s under nested paging, 134 s natively
/// (logs of the vMitosis artifact, ASPLOS 2021). `core.data_exposed` was chosen by this ratio.
#[test]
fn gups_over_64_gib_takes_as_much_longer_under_nested_paging_as_was_measured() {
    let results = Lab::new().json(
        "compare gups --footprint 64GiB --machines native,nested --profile cascade-lake-6252 \
         --warmup 2M --accesses 8M --quiet",
    );
    let total = |name: &str| number(machine(&results, name), "total_cycles");
    let ratio = total("nested:4k+4k") / total("native:4k");
    let measured = 260.0 / 134.0;
    assert!((ratio / measured - 1.0).abs() < 0.15, "{ratio} is not within 15 % of {measured}");
    // What was calibrated says so.
    let said = Lab::new().ok("explain cascade-lake-6252");
    assert!(said.lines().any(|l| l.starts_with("core.data_exposed") && l.contains("calibrated:")));
}
