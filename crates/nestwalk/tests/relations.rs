//! What must hold between machines, whatever the numbers are, and that the referee agrees.

mod common;

use common::{Lab, count, machine, number};
use serde_json::Value;

/// Every scheme with every page size somewhere.
const MACHINES: &str = "native,shadow,nested,nested:thp+thp,shadow:2m+4k,nested:4k+2m,nested:1g+1g";

fn workloads(lab: &Lab) -> Vec<String> {
    let text = lab.ok("schemes");
    let listed = text.split("\nworkload").nth(1).expect("a list of workloads");
    let names = listed.lines().skip(2).take_while(|l| !l.is_empty());
    let names: Vec<String> =
        names.filter_map(|l| l.split_whitespace().next()).map(Into::into).collect();
    assert!(names.len() >= 12, "{names:?}");
    names
}

/// No violation, and that something was looked at. (A violation is exit code 2 as well.)
fn assert_verified(results: &Value, what: &str) {
    for m in results["machines"].as_array().unwrap().iter().filter(|m| m["scheme"] != "ideal") {
        let (checked, accesses) = (count(&m["referee"], "checked"), count(m, "accesses"));
        assert_eq!(count(&m["referee"], "violations"), 0, "{what}: {}", m["referee"]);
        assert!(checked > 0 && accesses == 15_000, "{what}: {checked} of {accesses}");
        let sum = count(m, "l2_tlb_misses") + count(m, "rewalks");
        assert_eq!(sum, count(m, "walks"), "{what}: a walk for each miss and upgrade");
    }
}

fn verify_all(options: &str, machines: &str) {
    let lab = Lab::new();
    for workload in workloads(&lab) {
        for size in ["1MiB --populate no", "8MiB --populate yes"] {
            let line = format!(
                "compare {workload} --machines {machines} --footprint {size} --accesses 15k \
                 --verify --quiet {options}"
            );
            assert_verified(&lab.json(&line), &line);
        }
    }
}

#[test]
fn the_referee_agrees_on_every_workload() {
    verify_all("", MACHINES);
}

#[test]
fn the_referee_agrees_under_5_level_paging() {
    verify_all("--guest-paging 5-level --host-paging 5-level", MACHINES);
}

#[test]
fn the_referee_agrees_under_paging_of_other_architectures() {
    verify_all("--guest-paging sv39 --host-paging sv39x4", "native,shadow,nested,nested:thp+1g");
    verify_all("--guest-paging arm-4k --host-paging arm-4k-ipa40", "native,nested:2m+4k,agile");
}

#[test]
fn the_referee_agrees_under_32_bit_paging() {
    verify_all("--guest-paging pae", "native,shadow,nested,nested:thp+thp,shadow:2m+4k");
    let machines = "native,shadow,nested,nested:thp+2m,nested:4m+4k,shadow:4m+4k,shadow:thp+2m";
    verify_all("--guest-paging 2-level", machines);
}

#[test]
fn the_referee_agrees_in_fragmented_memory() {
    verify_all("--guest-fragmentation 0.8 --host-fragmentation 0.8 --no-pcids", MACHINES);
}

#[test]
fn every_profile_runs() {
    let lab = Lab::new();
    for profile in ["cascade-lake-6252", "kaby-lake-i5-7600", "sandy-bridge-e5-2430", "zen2"] {
        let line = format!(
            "compare kvstore --profile {profile} --footprint 16MiB --accesses 15k --verify --quiet"
        );
        assert_verified(&lab.json(&line), &line);
    }
}

fn overhead(results: &Value, name: &str) -> f64 {
    number(machine(results, name), "overhead_percent")
}

#[test]
fn nested_walks_are_longer_and_their_tables_larger() {
    let lab = Lab::new();
    for workload in ["gups", "btree", "xsbench", "graph500"] {
        let results =
            lab.json(&format!("compare {workload} --footprint 256MiB --accesses 200k --quiet"));
        let (native, nested) = (machine(&results, "native:4k"), machine(&results, "nested:4k+4k"));
        // The same TLBs see the same accesses: what differs is what a miss costs.
        for key in ["l1_tlb_misses", "l2_tlb_misses", "walks", "guest_refs"] {
            assert_eq!(count(native, key), count(nested, key), "{workload} {key}");
        }
        for key in ["refs_per_walk", "cycles_per_walk", "translation_overhead_percent"] {
            assert!(number(nested, key) > number(native, key), "{workload} {key}");
        }
        let bytes = &nested["page_table_bytes"];
        assert!(count(bytes, "nested") >= count(bytes, "guest") - 8 * 4096, "{bytes}");
        assert_eq!(count(&native["page_table_bytes"], "nested"), 0);
    }
}

#[test]
fn large_pages_in_either_dimension_shorten_walks() {
    let results = Lab::new().json(
        "compare gups --footprint 512MiB --accesses 200k --quiet \
         --machines nested:4k+4k,nested:4k+2m,nested:2m+2m",
    );
    let n = |name, key| number(machine(&results, name), key);
    assert!(n("nested:4k+2m", "nested_refs") < n("nested:4k+4k", "nested_refs"));
    assert!(n("nested:2m+2m", "l2_tlb_misses") < n("nested:4k+2m", "l2_tlb_misses"));
    let all = ["nested:2m+2m", "nested:4k+2m", "nested:4k+4k"].map(|m| n(m, "walk_cycles"));
    assert!(all.is_sorted(), "{all:?}");
}

#[test]
fn in_steady_state_shadow_lies_between_native_and_nested() {
    let lab = Lab::new();
    for footprint in ["64MiB", "512MiB"] {
        let results = lab.json(&format!(
            "compare gups --footprint {footprint} --populate yes --warmup 2M --accesses 1M --quiet"
        ));
        let [native, shadow, nested] =
            ["native:4k", "shadow:4k+4k", "nested:4k+4k"].map(|m| overhead(&results, m));
        // Shadow tables are walked as native ones are. They lie elsewhere in memory, so that other
        // lines of the caches conflict: half a percent of the ideal run time either way.
        assert!(shadow > native - 0.5, "{footprint}: shadow {shadow}, native {native}");
        assert!(shadow < native + 2.0, "{footprint}: shadow {shadow}, native {native}");
        assert!(nested > shadow + 5.0, "{footprint}: shadow {shadow}, nested {nested}");
        assert_eq!(count(machine(&results, "shadow:4k+4k"), "vm_exits_total"), 0);
    }
}

#[test]
fn shadow_pays_the_most_where_tables_change() {
    let lab = Lab::new();
    let first_touch = "compare gups --footprint 64MiB --populate no --accesses 200k --quiet";
    let forks = "compare forkstorm --footprint 16MiB --accesses 500k --quiet";
    for (line, times) in [(forks, 5.0), (first_touch, 2.0)] {
        let results = lab.json(line);
        let vmm = |name| number(machine(&results, name), "vmm_overhead_percent");
        let (shadow, nested) = (vmm("shadow:4k+4k"), vmm("nested:4k+4k"));
        assert!(shadow > times * nested && nested > 0.0, "{line}: {shadow}, {nested}");
        let total = |name| overhead(&results, name);
        assert!(total("shadow:4k+4k") > total("nested:4k+4k"));
        assert!(total("nested:4k+4k") > total("native:4k"));
        let exits = &machine(&results, "shadow:4k+4k")["vm_exits"];
        assert!(count(exits, "true_fault") > 0 && count(exits, "hidden_fault") > 0, "{exits}");
    }
}
