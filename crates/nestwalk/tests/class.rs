//! What is shown in class: walks, scenes and reach, as text, JSON and pictures of the same numbers.

mod common;

use common::{Lab, machine, number, parse};
use serde_json::Value;

/// All texts of a picture.
fn texts(svg: &str) -> Vec<String> {
    let document = roxmltree::Document::parse(svg).unwrap_or_else(|e| panic!("{e}\n{svg}"));
    let nodes = document.descendants().filter(|n| n.has_tag_name("text"));
    nodes.filter_map(|n| n.text().map(String::from)).collect()
}

#[test]
fn a_walk_is_drawn_reference_by_reference() {
    let lab = Lab::new();
    for line in [
        "nested",
        "shadow",
        "native",
        "nested:2m+4k",
        "agile",
        "native --guest-paging 2-level",
        "nested --guest-paging arm-64k --host-paging arm-64k-ipa40",
    ] {
        let walk = parse(&lab.ok(&format!("walk {line} --svg w.svg --format json")));
        let texts = texts(&lab.read("w.svg"));
        let steps = walk["steps"].as_array().unwrap();
        for (i, step) in steps.iter().enumerate() {
            let head = format!("{}  {}", i + 1, step["reference"].as_str().unwrap());
            assert!(texts.contains(&head), "{line}: {head}: {texts:?}");
            let at = format!("at {}", step["host_physical_address"].as_str().unwrap());
            assert!(texts.contains(&at), "{line}: {at}");
            // Flags are the entry's bits, read by hand.
            let hex = step["entry"].as_str().unwrap().trim_start_matches("0x");
            let entry = u64::from_str_radix(hex, 16).unwrap();
            let flags: Vec<&str> =
                step["flags"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            for (letter, bit) in
                [("P", 0), ("W", 1), ("U", 2), ("A", 5), ("D", 6), ("PS", 7), ("NX", 63)]
            {
                assert_eq!(
                    flags.contains(&letter),
                    entry >> bit & 1 == 1,
                    "{line}: {entry:#x} {flags:?}"
                );
            }
        }
        let numbered =
            texts.iter().filter(|t| t.contains("  gL") || t.contains("  hL") || t.contains("  sL"));
        assert_eq!(numbered.count(), steps.len(), "{line}");
    }
    // Nothing of the first walk is left in the caches: the first reference goes to memory.
    let walk = parse(&lab.ok("walk nested --format json"));
    assert_eq!(walk["steps"][0]["served"], "memory");
    // The same nested root entry again, five references later, is in the first-level cache.
    assert_eq!(walk["steps"][5]["served"], "l1");
}

#[test]
fn an_address_is_cut_where_the_manual_cuts_it() {
    let lab = Lab::new();
    let address = 0x7fff_f7a0_1234_u64;
    let text = lab.ok("walk nested --address 0x7ffff7a01234");
    let index = |low: u32| address >> low & 0x1ff;
    let split = format!(
        "L4 {}, L3 {}, L2 {}, L1 {}, offset 0x234",
        index(39),
        index(30),
        index(21),
        index(12)
    );
    assert!(text.contains(&split), "{split}\n{text}");
    assert!(lab.refused("walk nested --svg nowhere/w.svg").contains("nowhere/w.svg"));
}

#[test]
fn walks_are_mapped_reference_by_reference() {
    let lab = Lab::new();
    let line = "compare gups --footprint 64MiB --accesses 50k --populate no --quiet \
                --machines native,shadow,nested,agile";
    let plain = lab.json(line);
    lab.ok(&format!("{line} --walk-map --output d"));
    let mapped = parse(&lab.read("d/results.json"));
    for name in ["native:4k", "nested:4k+4k", "agile:4k+4k"] {
        let m = machine(&mapped, name);
        let places = m["walk_map"].as_array().unwrap();
        let sum = |dimension: &str| -> f64 {
            let mine = places.iter().filter(|p| p["dimension"] == dimension);
            mine.map(|p| ["l1", "l2", "llc", "memory"].iter().map(|k| number(p, k)).sum::<f64>())
                .sum()
        };
        let all = sum("guest") + sum("nested") + sum("shadow");
        let counted = ["guest_refs", "nested_refs", "shadow_refs", "faulted_refs"];
        let counted: f64 = counted.iter().map(|key| number(m, key)).sum();
        assert!((all - counted).abs() < 0.5, "{name}: {all} in the map, {counted} counted");
        // To look changes nothing.
        let mut bare = m.clone();
        bare.as_object_mut().unwrap().remove("walk_map");
        assert_eq!(&bare, machine(&plain, name));
        assert!(machine(&plain, name).get("walk_map").is_none());
    }
    lab.ok("report d --figures f");
    let csv = lab.read("f/walk-map-nested-4k-4k.csv");
    let m = machine(&mapped, "nested:4k+4k");
    let leaf = m["walk_map"].as_array().unwrap().iter().find(|p| {
        p["dimension"] == "nested" && p["level"] == 1 && p["on_behalf_of_guest_level"] == 0
    });
    let leaf = leaf.unwrap();
    let walks = number(m, "walks") + number(m, "faulted_walks");
    let expected = 1000.0 * (number(leaf, "llc") + number(leaf, "memory")) / walks;
    let row = csv.lines().find(|line| line.starts_with("page,hL1,")).unwrap();
    let found: f64 = row.rsplit(',').next().unwrap().parse().unwrap();
    assert!((found - expected).abs() < 1e-9 * expected.max(1.0), "{row}: {expected}");
}

#[test]
fn reach_is_what_compare_says_and_is_drawn_where_it_is() {
    let lab = Lab::new();
    let reach = "reach nested,native --from 4MiB --to 16MiB --accesses 20k --quiet --svg r.svg";
    let found = lab.json(reach);
    let points = found["points"].as_array().unwrap();
    assert_eq!(points.len(), 6);
    let compared = lab.json(
        "compare uniform --footprint 8MiB --accesses 20k --warmup 20k --machines nested,native --quiet",
    );
    let point = points.iter().find(|p| p["machine"] == "nested:4k+4k" && p["footprint"] == 8 << 20);
    let overhead = &machine(&compared, "nested:4k+4k")["overhead_percent"];
    assert_eq!(&point.unwrap()["overhead_percent"], overhead);
    // Dots stand where the numbers are, by the numbers along the axis.
    let svg = lab.read("r.svg");
    let document = roxmltree::Document::parse(&svg).unwrap();
    let attribute =
        |n: roxmltree::Node, key: &str| n.attribute(key).unwrap().parse::<f64>().unwrap();
    let ticks: Vec<(f64, f64)> = document
        .descendants()
        .filter(|n| n.has_tag_name("text") && n.attribute("text-anchor") == Some("end"))
        .map(|n| (n.text().unwrap().parse().unwrap(), attribute(n, "y") - 4.0))
        .collect();
    let ((low, from), (high, to)) = (ticks[0], *ticks.last().unwrap());
    let dots: Vec<roxmltree::Node> =
        document.descendants().filter(|n| n.has_tag_name("circle")).collect();
    assert_eq!(dots.len(), 6);
    for dot in dots {
        let told = dot.first_element_child().unwrap().text().unwrap();
        let (name, rest) = told.split_once(": ").unwrap_or_else(|| panic!("{told}"));
        let name = name.replace("4k:", "4k");
        let size = rest.rsplit(" at ").next().unwrap();
        let mib: u64 = size.trim_end_matches(" MiB").parse().unwrap();
        let point = points.iter().find(|p| {
            p["footprint"] == mib << 20 && told.starts_with(p["machine"].as_str().unwrap())
        });
        let value = number(point.unwrap_or_else(|| panic!("{name}")), "overhead_percent");
        let expected = from + (value - low) / (high - low) * (to - from);
        assert!((attribute(dot, "cy") - expected).abs() <= 1.0, "{told}: {value}");
    }
    let text = lab.ok("reach nested --from 4MiB --to 8MiB --accesses 20k --quiet");
    assert!(text.contains("1536 entries, 6 MiB"), "{text}");
    for (line, word) in [
        ("reach --from 1", "--from 1"),
        ("reach --from 8MiB --to 4MiB", "--to 4MiB"),
        ("reach --from x", "--from"),
        ("reach nosuch --quiet", "nosuch"),
        ("reach --source nosuch --quiet", "nosuch"),
    ] {
        assert!(lab.refused(line).contains(word), "{line}");
    }
}

/// A scene's moments, and which of them says or changes something, by its place.
struct Played(Vec<Value>);

impl Played {
    fn of(lab: &Lab, scene: &str) -> Self {
        Self(lab.json(&format!("step {scene}"))["moments"].as_array().unwrap().clone())
    }
    /// The first moment from `from` on with an exit for this reason.
    #[track_caller]
    fn exit(&self, from: usize, reason: &str) -> usize {
        self.find(from, reason, |m| m["exits"].as_array().unwrap().iter().any(|e| e == reason))
    }
    /// The first change from `from` on of what has this name.
    #[track_caller]
    fn change(&self, from: usize, name: &str) -> (usize, &str, &str) {
        let of = |m: &Value| {
            let changes = m["changes"].as_array().unwrap();
            changes.iter().position(|c| c["name"].as_str().unwrap().starts_with(name))
        };
        let at = self.find(from, name, |m| of(m).is_some());
        let change = &self.0[at]["changes"][of(&self.0[at]).unwrap()];
        (at, change["before"].as_str().unwrap(), change["now"].as_str().unwrap())
    }
    #[track_caller]
    fn find(&self, from: usize, what: &str, is: impl Fn(&Value) -> bool) -> usize {
        let found = (from..self.0.len()).find(|i| is(&self.0[*i]));
        found.unwrap_or_else(|| panic!("{what} from {from} on: {:#?}", self.0))
    }
}

/// The first word: where an entry points.
fn frame(value: &str) -> &str {
    value.split(' ').next().unwrap()
}

#[test]
fn a_shadow_fault_goes_first_to_the_guest_and_then_to_the_vmm() {
    let lab = Lab::new();
    let played = Played::of(&lab, "shadow-fault");
    let injected = played.exit(0, "true fault");
    let (mapped, before, guest) = played.change(injected, "gL1");
    assert_eq!(before, "empty");
    assert!(guest.contains("P") && guest.contains("U"), "{guest}");
    let hidden = played.exit(mapped + 1, "hidden fault");
    let (filled, _, shadow) = played.change(mapped, "sL1");
    assert_eq!(filled, hidden, "the exit's answer is the entry");
    let (l2, _, second) = played.change(filled + 1, "L2 TLB");
    let (l1, _, first) = played.change(l2 + 1, "L1 TLB");
    assert!(l1 > l2);
    assert_eq!((frame(first), frame(second)), (frame(shadow), frame(shadow)), "one host frame");
    assert_ne!(frame(guest), frame(shadow), "gPA and hPA differ");
}

#[test]
fn a_leaf_table_goes_out_of_step_once_and_comes_back_at_a_flush() {
    let lab = Lab::new();
    let played = Played::of(&lab, "unsync");
    let out = played.exit(0, "table unsync");
    assert_eq!(played.change(0, "shadow of gL1"), (out, "in step", "out of step"));
    let (back, before, now) = played.change(out + 1, "shadow of gL1");
    assert_eq!((before, now), ("out of step", "in step"));
    // In between the guest stored to the table again and again, and none of that was an exit for it.
    let again = played.0[out + 1..back].iter().filter(|m| {
        m["changes"]
            .as_array()
            .unwrap()
            .iter()
            .any(|c| c["name"].as_str().unwrap().starts_with("gL1"))
    });
    assert!(again.count() >= 3);
    let exits = played.0[out + 1..back].iter().flat_map(|m| m["exits"].as_array().unwrap());
    assert!(exits.clone().all(|e| e != "table unsync"), "{:#?}", exits.collect::<Vec<_>>());
    // INVLPG brings one entry in step, not the table.
    let one = played.exit(out, "invalidation");
    assert!(one < back && played.change(one, "sL1[129]").0 == one);
}

#[test]
fn copy_on_write_ends_with_a_writable_page_elsewhere() {
    let lab = Lab::new();
    let played = Played::of(&lab, "cow");
    let (forked, before, common) = played.change(0, "gL1");
    assert!(
        before.contains(" W ") && !common.contains(" W ") && common.contains("cow"),
        "{common}"
    );
    let fault = played.exit(forked, "true fault");
    let (gone, _, now) = played.change(fault, "gL1");
    assert_eq!(now, "empty", "the kernel clears the entry before it sets the new one");
    let (_, _, copy) = played.change(gone + 1, "gL1");
    assert!(copy.contains(" W ") && !copy.contains("cow"), "{copy}");
    assert_ne!(frame(copy), frame(common));
}

#[test]
fn an_ept_violation_fills_what_the_host_took_back() {
    let lab = Lab::new();
    let played = Played::of(&lab, "ept-violation");
    let taken =
        played.find(0, "taken back", |m| m["what"].as_str().unwrap().starts_with("host: takes"));
    let (cleared, before, now) = played.change(taken, "hL1");
    assert!(before.contains('P') && now == "empty", "{before} {now}");
    let violation = played.exit(cleared + 1, "ept violation");
    let (filled, _, entry) = played.change(violation, "hL1");
    assert_eq!(filled, violation);
    assert_ne!(frame(entry), "empty");
    let walk = &played.0[violation - 1]["what"];
    assert!(walk.as_str().unwrap().contains("an EPT violation"), "{walk}");
    // Nothing of the guest's tables changes by it.
    let later = played.0[taken..].iter().flat_map(|m| m["changes"].as_array().unwrap());
    assert!(later.clone().all(|c| c["part"] != "guest"));
}

#[test]
fn a_mode_switch_empties_tlbs_and_begins_with_no_nested_entry() {
    let lab = Lab::new();
    let played = Played::of(&lab, "mode-switch");
    let (switched, before, now) = played.change(0, "paging mode");
    assert_eq!((before, now), ("shadow", "nested"));
    assert_eq!(played.change(switched, "L1 TLB").2, "none");
    assert_eq!(played.change(switched, "sL1").2, "gone");
    assert_eq!(played.exit(0, "mode switch"), switched);
    // Four guest tables and the page.
    let violations = played.0[switched..].iter().flat_map(|m| m["exits"].as_array().unwrap());
    assert!(violations.filter(|e| **e == "ept violation").count() >= 5);
}

#[test]
fn every_scene_is_text_and_picture_of_the_same_moments() {
    let lab = Lab::new();
    for scene in ["shadow-fault", "unsync", "cow", "ept-violation", "mode-switch"] {
        let text = lab.ok(&format!("step {scene} --svg s.svg"));
        let texts = texts(&lab.read("s.svg"));
        let moments = Played::of(&lab, scene).0;
        for (i, moment) in moments.iter().enumerate() {
            let what = moment["what"].as_str().unwrap();
            assert!(text.contains(&format!("{:>3}  {what}\n", i + 1)), "{what}\n{text}");
            assert!(texts.contains(&format!("{}  {what}", i + 1)), "{what}");
            for change in moment["changes"].as_array().unwrap() {
                let name = change["name"].as_str().unwrap();
                let line = format!(" → {}", change["now"].as_str().unwrap());
                let drawn = |t: &String| t.starts_with(name) && t.ends_with(&line);
                assert!(texts.iter().any(drawn), "{name}{line}");
            }
        }
        assert_eq!(lab.ok(&format!("step {scene}")), text, "the same bytes");
    }
    assert!(lab.refused("step nosuch").contains("mode-switch"));
}

#[test]
fn examples_of_the_help_run() {
    let lab = Lab::new();
    for command in ["report", "step", "reach"] {
        let help = lab.ok(&format!("{command} --help"));
        let examples = help.split("Examples:\n").nth(1).unwrap();
        let examples = examples.lines().map_while(|line| line.trim().strip_prefix("nestwalk "));
        let examples: Vec<&str> = examples.collect();
        assert!(examples.len() >= 3, "{help}");
        for line in examples {
            lab.ok(line);
        }
    }
    let told = lab.json("report d -o all.html --figures figures");
    let written = told["written"].as_array().unwrap();
    for file in written {
        let path = lab.path(file["file"].as_str().unwrap());
        assert_eq!(path.metadata().unwrap().len(), file["bytes"].as_u64().unwrap());
    }
    assert_eq!(written.len(), 1 + 4 * told["figures"].as_array().unwrap().len());
}

#[test]
fn commands_of_the_documentation_run() {
    let lab = Lab::new();
    for line in common::tested_commands("docs/class.md") {
        lab.ok(&line);
    }
    assert!(lab.path("walk.svg").exists() && lab.path("reach.svg").exists());
}
