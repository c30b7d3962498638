//! `bench`: binaries against each other.

mod common;

use common::{Lab, parse};

/// Against itself a build is as fast as itself, within what a loaded machine does to short runs.
#[test]
fn a_binary_is_measured_against_another_and_what_that_cannot_do_is_new_here() {
    let lab = Lab::new();
    let own = env!("CARGO_BIN_EXE_nestwalk");
    let line = |old: &str| {
        format!(
            "bench --against {old} --case tlb-hit/ideal,scattered/nested --accesses 8M --pairs 2 --format json"
        )
    };
    let found = parse(&lab.ok(&line(own)));
    let cases = found["cases"].as_array().unwrap();
    let names: Vec<&str> = cases.iter().map(|c| c["case"].as_str().unwrap()).collect();
    assert_eq!(names, ["scattered/nested", "tlb-hit/ideal"]);
    for case in cases {
        let number = |key: &str| case[key].as_f64().unwrap();
        let pairs = case["pairs"].as_array().unwrap();
        let ratios: Vec<f64> =
            pairs.iter().map(|p| p["old"].as_f64().unwrap() / p["new"].as_f64().unwrap()).collect();
        assert_eq!(ratios.len(), 2);
        assert!((number("ratio") - (ratios[0] + ratios[1]) / 2.0).abs() < 1e-9, "{case}");
        assert!((0.2..5.0).contains(&number("ratio")), "{case}");
        assert!(number("limit") > 0.0 && number("limit") < number("new"), "{case}");
    }
    // A program that understands nothing.
    let found = parse(&lab.ok(&line("/bin/false")));
    for case in found["cases"].as_array().unwrap() {
        assert!(case["ratio"].is_null() && case["new"].as_f64().unwrap() > 0.0, "{case}");
        assert!(case["new_here"].as_str().unwrap().contains("failed"), "{case}");
    }
    let error = lab.refused(&format!("bench --against {own} --case nothing"));
    assert!(error.contains("nothing") && error.contains("walks/nested"), "{error}");
    assert!(lab.refused("bench --against ./none").contains("./none"));
}
