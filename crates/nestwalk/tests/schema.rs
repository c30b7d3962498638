//! `schema`: real results are as it says, and what is not is found.

#![cfg(feature = "schema")]

mod common;

use common::{Lab, parse};
use serde_json::{Value, json};

/// Complains of everything in `value` that is not as the schema says, by JSON Schema 2020-12 as far as
/// schemas here use it; of any other keyword, too.
fn check(root: &Value, schema: &Value, value: &Value, at: &str, complaints: &mut Vec<String>) {
    let Some(rules) = schema.as_object() else {
        if *schema == Value::Bool(false) {
            complaints.push(format!("{at}: nothing is allowed here"));
        }
        return;
    };
    let mut wrong = |what: String| complaints.push(format!("{at}: {what}"));
    for (keyword, rule) in rules {
        match keyword.as_str() {
            "$schema" | "$defs" | "title" | "description" | "unit" | "format" => {}
            "type" => {
                let names = rule.as_array().cloned().unwrap_or_else(|| vec![rule.clone()]);
                if !names.iter().any(|name| is(value, name.as_str().unwrap())) {
                    wrong(format!("{value} is no {rule}"));
                }
            }
            "const" if value != rule => wrong(format!("{value} is not {rule}")),
            "enum" if !rule.as_array().unwrap().contains(value) => {
                wrong(format!("{value} is none of {rule}"));
            }
            "const" | "enum" => {}
            "minimum" if value.as_f64().is_some_and(|n| n < rule.as_f64().unwrap()) => {
                wrong(format!("{value} is below {rule}"));
            }
            "maximum" if value.as_f64().is_some_and(|n| n > rule.as_f64().unwrap()) => {
                wrong(format!("{value} is above {rule}"));
            }
            "minimum" | "maximum" => {}
            "required" => {
                for key in rule.as_array().unwrap().iter().map(|key| key.as_str().unwrap()) {
                    if value.is_object() && value.get(key).is_none() {
                        wrong(format!("{key} is missing"));
                    }
                }
            }
            "$ref"
            | "anyOf"
            | "oneOf"
            | "items"
            | "properties"
            | "patternProperties"
            | "additionalProperties" => {}
            other => panic!("{at}: the schema has {other}, which this test does not know"),
        }
    }
    inside(root, schema, value, at, complaints);
}

fn is(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no type: {other}"),
    }
}

/// The keywords that lead to other schemas.
fn inside(root: &Value, schema: &Value, value: &Value, at: &str, complaints: &mut Vec<String>) {
    if let Some(path) = schema["$ref"].as_str() {
        let target = root.pointer(path.strip_prefix('#').unwrap());
        check(
            root,
            target.unwrap_or_else(|| panic!("{path} leads nowhere")),
            value,
            at,
            complaints,
        );
    }
    for choice in ["anyOf", "oneOf"] {
        let Some(all) = schema[choice].as_array() else { continue };
        let fits = |one: &&Value| {
            let mut complaints = Vec::new();
            check(root, one, value, at, &mut complaints);
            complaints.is_empty()
        };
        if all.iter().filter(fits).count() == 0 {
            complaints.push(format!("{at}: fits none of {choice}"));
        }
    }
    for (number, item) in value.as_array().into_iter().flatten().enumerate() {
        check(root, &schema["items"], item, &format!("{at}[{number}]"), complaints);
    }
    for (key, member) in value.as_object().into_iter().flatten() {
        let at = format!("{at}.{key}");
        let digits = key.bytes().all(|b| b.is_ascii_digit());
        let patterns = schema["patternProperties"].as_object().into_iter().flatten();
        let pattern = patterns.map(|(pattern, rule)| match pattern.as_str() {
            r"^\d+$" => digits.then_some(rule),
            other => panic!("{at}: a pattern that this test does not know: {other}"),
        });
        let pattern = pattern.flatten().next();
        match schema["properties"].get(key).or(pattern) {
            Some(rule) => check(root, rule, member, &at, complaints),
            None => check(root, &schema["additionalProperties"], member, &at, complaints),
        }
    }
}

fn complaints(schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(schema, schema, value, "", &mut found);
    found
}

/// Every part that results can have: all kinds of schemes, a recorded guest, one that is re-mapped,
/// seeds, the referee, contiguity, walk maps, a source that does not know its instructions.
const RUNS: [&str; 5] = [
    "gups --footprint 8MiB --accesses 20k --verify --walk-map --contiguity --contiguity-every 5k \
     --machines nested,shadow,agile,switching,spot,anchor,vmm-direct,colt,xen-pv,sie",
    "gcc --accesses 20k --machines nested,shadow",
    "gcc --accesses 20k --machines nested,nested:2m+2m --repeat 2",
    "a.lackey --machines nested",
    "forkstorm --footprint 16MiB --accesses 400k --machines switching,nested:thp@ca",
];

/// A log of data alone, which says nothing of instructions.
const LOG: &str = " L 1000,8\n S 5000,8\n L 2000,8\n";

#[test]
fn real_results_are_as_the_schema_says() {
    let lab = Lab::new();
    lab.write("a.lackey", LOG);
    let schema = parse(&lab.ok("schema"));
    let mut nulls = 0;
    for run in RUNS {
        let results = lab.json(&format!("compare {run} --quiet"));
        let found = complaints(&schema, &results);
        assert!(found.is_empty(), "{run}: {found:#?}");
        nulls += usize::from(results["machines"][0]["l2_tlb_mpki"].is_null());
        // Nothing that is written is without a word in the schema.
        let machine = &schema["$defs"]["Machine"]["properties"];
        for key in results["machines"].as_array().unwrap().iter().filter_map(Value::as_object) {
            for (key, _) in key {
                assert!(machine[key]["description"].is_string(), "{key}");
            }
        }
        for (key, _) in results.as_object().unwrap() {
            assert!(schema["properties"][key]["description"].is_string(), "{key}");
        }
    }
    assert_eq!(nulls, 1, "of the source without instructions");
}

#[test]
fn results_of_a_sweep_are_as_its_schema_says() {
    let lab = Lab::new();
    let base =
        "[compare]\nsource = 'gups'\nfootprint = '1MiB'\naccesses = '2k'\nmachines = 'nested'\n";
    lab.write(
        "s.toml",
        format!("{base}[axes]\nseed = [1, 2]\nprofile.core.base_cpi = [0.25, 1]\n"),
    );
    lab.ok("sweep s.toml -o d --quiet --shard 1/2");
    lab.refused("sweep s.toml -o d --collect");
    let schema = parse(&lab.ok("schema sweep"));
    let results = parse(&lab.read("d/results.json"));
    assert_eq!(results["missing"].as_array().unwrap().len(), 2);
    let found = complaints(&schema, &results);
    assert!(found.is_empty(), "{found:#?}");
    let mut broken = results;
    broken["points"][1]["results"]["machines"][0]["walks"] = json!("many");
    assert_eq!(complaints(&schema, &broken).len(), 1);
}

#[test]
fn what_is_no_result_is_found() {
    let lab = Lab::new();
    let schema = parse(&lab.ok("schema"));
    let line = "compare gups --footprint 1MiB --accesses 2k --machines switching --verify --quiet";
    let results = lab.json(line);
    assert!(complaints(&schema, &results).is_empty());
    for (pointer, value, words) in [
        ("/format_version", json!(2), "is not 1"),
        ("/format_version", json!("1"), "is not 1"),
        ("/machines/0/walks", json!(-1), "below 0"),
        ("/machines/0/walks", json!(0.5), "integer"),
        ("/machines/0/total_cycles", json!(null), "number"),
        ("/machines/1/page_table_bytes/guest", json!("0"), "integer"),
        ("/machines/1/energy/static", json!("0"), "number"),
        ("/machines/2/switching/start", json!("direct"), "none of"),
        ("/machines/2/referee/told", json!([1]), "string"),
        ("/verdict/run_times/ideal:4k", json!("one"), "number"),
        ("/guests/4k/placement/at_target", json!([]), "integer"),
        ("/complete", json!(1), "boolean"),
    ] {
        let mut broken = results.clone();
        *broken.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value;
        let found = complaints(&schema, &broken);
        assert!(
            found.iter().any(|c| c.contains(words) || c.contains("anyOf")),
            "{pointer}: {found:?}"
        );
    }
    // A key that goes is missed; one that is new is nothing to complain of.
    let mut broken = results;
    broken["new"] = json!(1);
    broken["machines"][0]["new"] = json!(1);
    assert!(complaints(&schema, &broken).is_empty());
    broken["machines"][0].as_object_mut().unwrap().remove("walks");
    broken.as_object_mut().unwrap().remove("format_version");
    assert_eq!(complaints(&schema, &broken).len(), 2);
}
