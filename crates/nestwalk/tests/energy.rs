//! Energies of whole runs: what must hold between machines, and that the table shows them.

mod common;

use common::{Lab, count, machine, number};
use serde_json::Value;

const MACHINES: &str = "native,shadow,nested,nested:4k+2m,agile,ds,vmm-direct,guest-direct,\
                        dual-direct";

fn energy(results: &Value, name: &str, key: &str) -> f64 {
    number(&machine(results, name)["energy"], key)
}

#[test]
fn longer_walks_take_more_energy_and_more_time_costs_static_power() {
    let lab = Lab::new();
    for profile in ["cascade-lake-6252", "sandy-bridge-e5-2430", "zen2"] {
        let results = lab.json(&format!(
            "compare gups --machines {MACHINES} --footprint 256MiB --accesses 200k \
             --profile {profile} --quiet"
        ));
        let translation = |name: &str| energy(&results, name, "translation");
        assert!(translation("ideal:4k") <= 0.0, "{profile}");
        assert!(translation("nested:4k+4k") > translation("nested:4k+2m"), "{profile}");
        assert!(translation("nested:4k+2m") > translation("native:4k"), "{profile}");
        let flat = translation("dual-direct:4k+4k@primary+default");
        assert!(flat > 0.0 && flat < translation("native:4k@primary"), "{profile}");
        for m in results["machines"].as_array().unwrap() {
            sums(m, profile);
        }
    }
}

/// What holds of every machine.
fn sums(m: &Value, profile: &str) {
    let (e, what) = (&m["energy"], &m["name"]);
    let of = |key: &str| number(e, key);
    let near =
        |a: f64, b: f64| assert!((a - b).abs() <= 1e-9 * a.abs().max(1.0), "{what}: {a} {b}");
    let own = ["l1_tlb", "l2_tlb", "walk_caches", "nested_tlb", "segment_checks", "escape_filter"];
    near(of("translation"), own.map(of).iter().sum::<f64>() + of("walk_references"));
    near(of("dynamic"), of("translation") + of("data") + of("core") + of("vmm"));
    near(of("total"), of("dynamic") + of("static"));
    let above = of("dynamic_overhead_percent") + of("static_overhead_percent");
    assert!((above - of("overhead_percent")).abs() < 1e-6, "{what}");
    // Static energy is power times time, and that of references is there where they are.
    let profile = nestwalk_hw::Profile::load(profile).unwrap();
    let per_cycle = 1000.0 * profile.energy.static_w() / profile.core.frequency_mhz.value;
    near(of("static"), per_cycle * number(m, "total_cycles"));
    let refs = count(m, "guest_refs") + count(m, "nested_refs") + count(m, "shadow_refs");
    assert_eq!(refs + count(m, "faulted_refs") > 0, of("walk_references") > 0.0, "{what}");
    let checks = count(m, "guest_segment_checks") + count(m, "vmm_segment_checks");
    near(of("segment_checks"), checks as f64 * profile.energy.segment_check_pj.value / 1000.0);
}

#[test]
fn the_table_of_energies_is_shown_on_request() {
    let lab = Lab::new();
    let line = "compare gups --machines native,dual-direct --footprint 8MiB --accesses 15k --quiet";
    assert!(!lab.ok(line).contains("pJ/instruction"));
    let text = lab.ok(&format!("{line} --energy --output out"));
    let table = text.split("pJ/instruction").nth(1).expect("a table of energies");
    for name in ["ideal:4k", "native:4k", "dual-direct:4k+4k@primary+default"] {
        assert!(table.contains(name), "{text}");
    }
    assert!(lab.ok("run out/config.toml --energy --quiet").contains("pJ/instruction"));
    let told = lab.ok("explain energy");
    assert!(told.contains("machines[].energy.walk_references [nJ]"), "{told}");
    assert!(lab.ok("explain zen2").contains("energy.memory_pj"));
}
