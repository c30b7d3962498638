//! Every value of every scheme, source and evaluation, by digest: rebuilding the house moves no number.
//!
//! `digests/cases.toml` has the commands, `digests/values.toml` a digest per machine or program. A key
//! that was renamed stands in `digests/renamed.toml`, so that its value is compared under its old name;
//! a key that is new is left out there. Whoever moves a number on purpose says so in the changelog and
//! writes the digests anew: `NESTWALK_BLESS=1 cargo nextest run -p nestwalk --test digests`.

mod common;

use common::{Lab, workspace};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

#[derive(serde::Deserialize)]
struct Cases {
    /// Machines of every `compare`.
    machines: Vec<String>,
    /// Sources and options of `compare`, by name.
    compare: BTreeMap<String, String>,
    /// Publications and options of `reproduce`, by name.
    reproduce: BTreeMap<String, String>,
}

#[derive(serde::Deserialize)]
struct Renamed {
    /// New name of a key, and the one under which its value was first digested.
    renamed: BTreeMap<String, String>,
    /// Keys that came later.
    new: Vec<String>,
}

fn file(name: &str) -> PathBuf {
    workspace().join("crates/nestwalk/tests/digests").join(name)
}

fn read<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let text = std::fs::read_to_string(file(name)).unwrap();
    toml::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// FNV-1a, 64 bits.
fn digest(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Each value under `at` as a line `path=value`, by old names of keys.
fn flatten(value: &Value, at: &str, names: &Renamed, lines: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter().filter(|(key, _)| !names.new.contains(key)) {
                let key = names.renamed.get(key).unwrap_or(key);
                flatten(value, &format!("{at}/{key}"), names, lines);
            }
        }
        Value::Array(list) => {
            for (i, value) in list.iter().enumerate() {
                flatten(value, &format!("{at}/{i}"), names, lines);
            }
        }
        leaf => lines.push(format!("{at}={leaf}")),
    }
}

fn digest_of(value: &Value, names: &Renamed) -> String {
    let mut lines = Vec::new();
    flatten(value, "", names, &mut lines);
    lines.sort_unstable();
    format!("{:016x}", digest(&lines.join("\n")))
}

/// Digests of all parts of a result: machines by their names, other lists by place, the rest by key.
fn parts(case: &str, result: &Value, names: &Renamed, found: &mut BTreeMap<String, String>) {
    for (key, value) in result.as_object().unwrap() {
        // Words, not values, and what came later.
        let words = ["version", "description", "source", "approximations"];
        if words.contains(&key.as_str()) || names.new.contains(key) {
            continue;
        }
        match value {
            Value::Array(list) if list.iter().all(Value::is_object) => {
                for (i, part) in list.iter().enumerate() {
                    let name = part["name"].as_str().or_else(|| part["program"].as_str());
                    let name = name.map_or_else(|| i.to_string(), String::from);
                    found.insert(format!("{case} {key} {name}"), digest_of(part, names));
                }
            }
            value => {
                found.insert(format!("{case} {key}"), digest_of(value, names));
            }
        }
    }
}

#[test]
fn no_value_has_moved() {
    let (cases, names): (Cases, Renamed) = (read("cases.toml"), read("renamed.toml"));
    let machines = cases.machines.join(",");
    let lab = Lab::new();
    let mut found = BTreeMap::new();
    for (name, words) in &cases.compare {
        let result = lab.json(&format!("compare {words} --machines {machines} --quiet"));
        assert_eq!(result["complete"], true, "{name}");
        parts(name, &result, &names, &mut found);
    }
    for (name, words) in &cases.reproduce {
        let result = lab.json(&format!("reproduce {words} --quiet"));
        parts(&format!("reproduce {name}"), &result, &names, &mut found);
    }
    if std::env::var_os("NESTWALK_BLESS").is_some() {
        let mut text = String::from("# Written by the test `digests`.\n");
        for (part, digest) in &found {
            writeln!(text, "\"{part}\" = \"{digest}\"").unwrap();
        }
        std::fs::write(file("values.toml"), text).unwrap();
        return;
    }
    let known: BTreeMap<String, String> = read("values.toml");
    let moved: Vec<_> = known.iter().filter(|(part, is)| found.get(*part) != Some(is)).collect();
    assert!(moved.is_empty(), "{} of {} have moved: {moved:#?}", moved.len(), known.len());
    assert_eq!(known.len(), found.len(), "parts that have no digest yet");
}

#[test]
fn a_value_that_moves_and_a_key_that_goes_are_seen() {
    let none = Renamed { renamed: BTreeMap::new(), new: Vec::new() };
    let parse = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
    let value = parse(r#"{"a": {"b": 1, "c": [2.5, null]}}"#);
    let of = |value: &Value| digest_of(value, &none);
    for other in [
        r#"{"a": {"b": 2, "c": [2.5, null]}}"#,
        r#"{"a": {"b": 1, "c": [2.5, 0]}}"#,
        r#"{"a": {"c": [2.5, null]}}"#,
        r#"{"a": {"x": 1, "c": [2.5, null]}}"#,
    ] {
        assert_ne!(of(&value), of(&parse(other)), "{other}");
    }
    let renamed = BTreeMap::from([("x".into(), "b".into())]);
    let names = Renamed { renamed, new: vec!["y".into()] };
    let later = parse(r#"{"a": {"y": 9, "x": 1, "c": [2.5, null]}}"#);
    assert_eq!(of(&value), digest_of(&later, &names));
}
