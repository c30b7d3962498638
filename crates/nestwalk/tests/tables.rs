//! The tables of `compare`: their width, their columns, and the verdict below, against the JSON.

mod common;

use common::{Lab, Ran, machine, number, ran};
use serde_json::Value;
use std::collections::BTreeSet;

/// Fast, and enough to walk, to fault and to exit.
const SMALL: &str = "--footprint 8MiB --accesses 20k --quiet --populate no";

fn at(lab: &Lab, columns: &str, line: &str) -> String {
    let mut command = lab.command();
    command.env("COLUMNS", columns).args(line.split_whitespace());
    let Ran { code, out, err } = ran(command.output().expect("the binary starts"));
    assert_eq!(code, 0, "{line}\n{err}");
    out
}

/// Titles of all tables of a text, in one line each: what stands above each part of a rule.
fn headings(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, rule) in lines.iter().enumerate().filter(|(_, line)| line.starts_with("---")) {
        let above: Vec<&&str> = lines[..at].iter().rev().take_while(|l| !l.is_empty()).collect();
        let mut from = 0;
        for part in rule.split("  ").filter(|part| !part.is_empty()) {
            let start = from + rule[from..].find(part).unwrap();
            from = start + part.len();
            let cut = above.iter().rev().map(|line| line.get(start..from.min(line.len())));
            let words = cut.map(|word| word.unwrap_or("").trim());
            let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
            found.push(words.join(" "));
        }
    }
    found
}

/// Every cell of the tables with this first heading, by machine and title.
fn cell(text: &str, machine: &str, title: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    for (at, rule) in lines.iter().enumerate().filter(|(_, line)| line.starts_with("---")) {
        let widths: Vec<usize> = rule.split("  ").map(str::len).collect();
        let above: Vec<&&str> = lines[..at].iter().rev().take_while(|l| !l.is_empty()).collect();
        let titles = headings(&lines[at - above.len()..=at].join("\n"));
        let row = lines[at..].iter().take_while(|l| !l.is_empty());
        let row = row.copied().find(|l| l.split(' ').next() == Some(machine));
        if let (Some(column), Some(row)) = (titles.iter().position(|t| t == title), row) {
            let start: usize = widths[..column].iter().map(|w| w + 2).sum();
            let end = (start + widths[column]).min(row.len());
            return row.get(start..end).unwrap_or("").trim().to_owned();
        }
    }
    panic!("no {title} of {machine}:\n{text}")
}

#[test]
fn nothing_is_wider_than_the_screen_and_nothing_is_lost() {
    let lab = Lab::new();
    let line = format!(
        "compare gups {SMALL} --wide --energy --sensitivity --contiguity --contiguity-every 5k \
         --machines shadow,nested,spot,vmm-direct,anchor"
    );
    let whole: BTreeSet<String> = headings(&at(&lab, "1000", &line)).into_iter().collect();
    for columns in [80, 120, 200] {
        let text = at(&lab, &columns.to_string(), &line);
        let longest = text.lines().map(|l| l.chars().count()).max().unwrap();
        assert!(longest <= columns, "{longest} of {columns}:\n{text}");
        assert_eq!(headings(&text).into_iter().collect::<BTreeSet<_>>(), whole, "{columns}");
    }
    // The first table of the usual machines stands in one piece on the narrowest terminal.
    let text = at(&lab, "80", &format!("compare gups {SMALL}"));
    assert_eq!(headings(&text).len(), 6, "{text}");
    // What is no number of columns is none; a file is as wide as where nobody says anything.
    let plain = lab.ok(&line);
    assert_eq!(at(&lab, "many", &line), plain);
    at(&lab, "80", &format!("{line} --output here"));
    assert_eq!(lab.read("here/table.txt"), plain);
}

/// Whatever heads a column, names a machine or begins a line: `explain` knows it.
#[test]
fn explain_knows_every_heading_and_every_word() {
    let lab = Lab::new();
    let line = format!(
        "compare gups {SMALL} --wide --energy --sensitivity --contiguity --contiguity-every 5k --repeat 2 \
         --machines shadow,nested:thp@ca,spot,rmm,anchor,dual-direct,switching/svm"
    );
    let text = lab.ok(&line);
    let mut words: BTreeSet<String> = headings(&text).into_iter().collect();
    assert!(words.len() > 60, "{words:?}");
    // Machines, prices, and what lines begin with.
    let rows = text.lines().filter(|line| !line.starts_with(' ') && !line.starts_with("---"));
    let first = |line: &str| line.split("  ").next().unwrap_or_default().to_owned();
    words.extend(rows.map(first).filter(|w| !w.is_empty() && w != "as it is, %"));
    // Single lines of headings are parts of titles.
    let titles: Vec<String> = headings(&text);
    for word in words {
        if !titles.contains(&word) && titles.iter().any(|t| t.contains(&word)) {
            continue;
        }
        let ran = lab.run_with(["explain", &word]);
        assert_eq!(ran.code, 0, "explain {word:?}: {}", ran.err);
    }
    for word in
        ["ept", "npt", "TDP", "4K", "2m", "all", "observed", "mem", "host", "both", "points"]
    {
        assert!(lab.ok(&format!("explain {word}")).len() > 10, "{word}");
    }
    let unknown = lab.refused("explain no such thing");
    assert!(unknown.contains("`no such thing`"), "{unknown}");
}

#[test]
fn the_first_table_says_what_the_results_say() {
    let lab = Lab::new();
    let line = format!("compare forkstorm {SMALL} --machines shadow,nested,nested:thp");
    let (text, json) = (lab.ok(&line), lab.json(&line));
    let base = json["verdict"]["baseline"].as_str().unwrap();
    let of = |name: &str, key: &str| number(machine(&json, name), key);
    // The fastest of the ideal machines, in the heading, for all rows.
    let total = |m: &Value| number(m, "total_cycles");
    let machines = json["machines"].as_array().unwrap();
    let ideal = machines.iter().filter(|m| m["scheme"] == "ideal").map(total);
    let least = ideal.fold(f64::INFINITY, f64::min);
    assert!(of(base, "total_cycles") <= least);
    for m in machines {
        let name = m["name"].as_str().unwrap();
        let shown = |title: &str| cell(&text, name, title);
        assert_eq!(shown(&format!("run time / {base}")), format!("{:.3}", total(m) / least));
        if m["scheme"] != "ideal" {
            let walks = 1000.0 * number(m, "walks") / number(m, "instructions");
            assert_eq!(shown("walks/1000 instr."), format!("{walks:.2}"));
            let above = total(m) - number(m, "vmm_cycles") - number(m, "ideal_cycles");
            assert_eq!(shown("transl. % time"), format!("{:.1}", 100.0 * above / total(m)));
        }
        if number(m, "vmm_cycles") > 0.0 {
            let vmm = 100.0 * number(m, "vmm_cycles") / total(m);
            assert_eq!(shown("VMM % time"), format!("{vmm:.1}"));
        }
    }
}

#[test]
fn the_verdict_follows_from_the_counts() {
    let lab = Lab::new();
    let line = format!("compare forkstorm {SMALL} --machines shadow,nested");
    let json = lab.json(&line);
    let verdict = &json["verdict"];
    let total = |name: &str| number(machine(&json, name), "total_cycles");
    let ideal = total("ideal:4k");
    let (shadow, nested) = (total("shadow:4k+4k"), total("nested:4k+4k"));
    assert!(shadow > nested, "a storm of processes is shadow paging's worst case");
    assert_eq!(
        (&verdict["fastest"], &verdict["next"]),
        (&"nested:4k+4k".into(), &"shadow:4k+4k".into())
    );
    let close = |a: f64, b: f64| (a - b).abs() < 1e-9 * a.abs().max(1.0);
    assert!(close(number(verdict, "percent_less"), 100.0 * (1.0 - nested / shadow)));
    let difference = &verdict["difference"];
    let points = |key: &str| number(difference, key);
    assert!(close(points("points"), 100.0 * (shadow - nested) / ideal));
    let of = |name: &str, key: &str| number(machine(&json, name), key);
    let vmm =
        of("shadow:4k+4k", "vmm_overhead_percent") - of("nested:4k+4k", "vmm_overhead_percent");
    assert!(close(points("vmm_points"), vmm));
    let parts = ["vmm_points", "translation_points", "guest_points"].map(points);
    assert!(close(parts.iter().sum(), points("points")));
    // The words have the numbers, and the largest reason is the one that the counts have.
    let said = verdict["sentences"].to_string();
    let exits = machine(&json, "shadow:4k+4k")["vm_exits"].as_object().unwrap();
    let (reason, _) = exits.iter().max_by_key(|(_, n)| n.as_u64()).unwrap();
    for words in
        [format!("{:.3}", nested / ideal), format!("{vmm:.1} for the hypervisor"), reason.clone()]
    {
        assert!(said.contains(&words), "{words}: {said}");
    }
    // The same words stand below the table.
    let text = lab.ok(&line).replace("\n         ", " ");
    for sentence in verdict["sentences"].as_array().unwrap() {
        assert!(text.contains(sentence.as_str().unwrap()), "{sentence}\n{text}");
    }
}

/// A walk that never exits: the other technique wins, for the other reason.
#[test]
fn the_verdict_turns_with_the_program_and_the_pages() {
    let lab = Lab::new();
    let gups = "compare gups --footprint 256MiB --accesses 50k --quiet --machines shadow,nested";
    let verdict = &lab.json(gups)["verdict"];
    assert_eq!(verdict["fastest"], "shadow:4k+4k");
    assert_eq!(verdict["populated"], true);
    let part = |key: &str| number(&verdict["difference"], key);
    assert!(part("translation_points") > 10.0 * part("vmm_points").abs());
    let said = verdict["sentences"].to_string();
    assert!(
        said.contains("for translation (walks: ") && said.contains("page faults were left out")
    );
    let mixed = &lab.json(&format!("{gups},nested:2m"))["verdict"];
    assert_eq!(mixed["fastest"], "nested:2m+2m");
    assert_eq!(mixed["fastest_by_pages"]["4k+4k"], "shadow:4k+4k");
    // One machine is told beside bare metal; without any, bare metal is what there is.
    let one = &lab.json(&gups.replace("shadow,nested", "nested"))["verdict"];
    assert_eq!((&one["fastest"], &one["next"]), (&"nested:4k+4k".into(), &Value::Null));
    assert_eq!(one["difference"]["faster"], "native:4k");
    let none = &lab.json(&gups.replace("shadow,nested", "native"))["verdict"];
    assert_eq!(none["fastest"], "native:4k");
}

#[test]
fn several_seeds_have_a_mean_and_a_spread() {
    let lab = Lab::new();
    let line = |seed: u64| format!("compare gups {SMALL} --machines nested --seed {seed}");
    let alone: Vec<Value> = (7..10).map(|seed| lab.json(&line(seed))).collect();
    let all = lab.json(&format!("{} --repeat 3", line(7)));
    assert_eq!(all["machines"], alone[0]["machines"], "the first seed's are as without --repeat");
    let repeats = &all["repeats"];
    assert_eq!(repeats["seeds"], serde_json::json!([7, 8, 9]));
    let name = "nested:4k+4k";
    let found = repeats["machines"].as_array().unwrap().iter().find(|m| m["name"] == name).unwrap();
    let values = |key: &str| -> Vec<f64> {
        alone.iter().map(|run| number(machine(run, name), key)).collect()
    };
    for key in ["walks", "total_cycles", "vm_exits_total"] {
        let (values, spread) = (values(key), &found["fields"][key]);
        let mean = values.iter().sum::<f64>() / 3.0;
        assert!((number(spread, "mean") - mean).abs() < 1e-9 * mean, "{key}");
        let close = |key: &str, of: f64| (number(spread, key) - of).abs() < 1e-9 * of;
        assert!(close("least", values.iter().copied().fold(f64::MAX, f64::min)), "{key}");
        assert!(close("most", values.iter().copied().fold(0.0, f64::max)), "{key}");
    }
    assert!(number(&found["fields"]["total_cycles"], "deviation") > 0.0, "seeds decide nothing");
    let text = lab.ok(&format!("{} --repeat 3", line(7)));
    let mean = format!("{:.3}", number(&found["run_time"], "mean"));
    assert_eq!(cell(&text, name, "run time / ideal:4k"), mean);
    assert!(text.contains("Over 3 seeds nested:4k+4k takes"), "{text}");
    assert!(lab.refused("compare gups --repeat 0").contains("1..=1000"));
    assert!(lab.refused("compare gups --repeat 2 --samples s").contains("--repeat 2"));
}

#[test]
fn columns_are_chosen_by_heading_and_by_field() {
    let lab = Lab::new();
    let line = format!("compare forkstorm {SMALL}");
    let json = lab.json(&line);
    let ran = lab.run_with(
        line.split(' ').chain(["--columns", "walks,L2 TLB MPKI,vm_exits.cr3_load,scheme"]),
    );
    assert_eq!(ran.code, 0, "{}", ran.err);
    let titles = headings(&ran.out);
    assert_eq!(titles, ["machine", "walks", "L2 TLB MPKI", "vm_exits. cr3_load", "scheme"]);
    let shadow = machine(&json, "shadow:4k+4k");
    let of = |title: &str| cell(&ran.out, "shadow:4k+4k", title).replace(',', "");
    assert_eq!(of("walks"), shadow["walks"].to_string());
    assert_eq!(of("vm_exits. cr3_load"), shadow["vm_exits"]["cr3_load"].to_string());
    let message = lab.refused("compare gups --columns walkz");
    assert!(
        message.contains("walkz") && message.contains("run-time") && message.contains("energy")
    );
    lab.refused("compare gups --wide --columns walks");
}

#[test]
fn all_machines_are_every_scheme() {
    let lab = Lab::new();
    let line = "compare gups --footprint 4MiB --accesses 2k --quiet --machines";
    let listed = lab.ok("schemes");
    let schemes: BTreeSet<&str> = listed
        .lines()
        .skip(2)
        .take_while(|l| !l.is_empty())
        .filter_map(|l| l.split(' ').next())
        .collect();
    let json = lab.json(&format!("{line} all"));
    let found = json["machines"].as_array().unwrap().iter().map(|m| m["scheme"].as_str().unwrap());
    assert_eq!(found.filter(|s| !s.is_empty()).collect::<BTreeSet<_>>(), schemes);
    // Of a recorded guest those without a primary region, and it is said which are not there.
    let ran = lab.run("compare bfs --accesses 1k --quiet --machines all");
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("--machines all: left out: machine `guest-direct`"), "{}", ran.err);
    assert!(ran.out.contains("vmm-direct:observed+4k"), "{}", ran.out);
    let named = lab.json(&format!("{line} EPT:4K,npt:2M,tdp:1g --page-size THP"));
    machine(&named, "nested:4k+4k");
    machine(&named, "nested:2m+2m");
    machine(&named, "nested:1g+1g");
}

#[test]
fn colours_are_for_those_who_see_them() {
    let lab = Lab::new();
    let line = format!("compare gups {SMALL}");
    let with = |variables: &[(&str, &str)]| {
        let mut command = lab.command();
        command.envs(variables.iter().copied()).args(line.split_whitespace());
        ran(command.output().expect("the binary starts")).out
    };
    let plain = with(&[]);
    assert!(!plain.contains('\x1b'), "{plain}");
    let forced = with(&[("CLICOLOR_FORCE", "1")]);
    assert!(forced.contains("\x1b[1m") && forced.contains("\x1b[32m"), "{forced}");
    let mut stripped = forced;
    for code in ["\x1b[1m", "\x1b[32m", "\x1b[0m"] {
        stripped = stripped.replace(code, "");
    }
    assert_eq!(stripped, plain);
    assert_eq!(with(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]), plain);
}

/// Files of runs of other machines, profiles and seeds are one table.
#[test]
fn long_rows_have_the_same_columns_and_the_numbers_of_the_json() {
    let lab = Lab::new();
    let line = |more: &str| format!("compare gups {SMALL} --machines {more}");
    let first = line("nested,vmm-direct --seed 3");
    let other = line("shadow --profile zen2 --verify");
    let (a, b) = (
        lab.ok(&format!("{first} --format csv --long")),
        lab.ok(&format!("{other} --format csv --long")),
    );
    let head = a.lines().next().unwrap();
    assert_eq!(head, "machine,key,value,unit,source,profile,pages,seed,version,commit,input_hash");
    assert_eq!(b.lines().next(), Some(head));
    let json = lab.json(&first);
    let mut reader = csv::Reader::from_reader(a.as_bytes());
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    let value = |name: &str, key: &str| {
        let row = rows.iter().find(|r| &r[0] == name && &r[1] == key);
        row.unwrap_or_else(|| panic!("{name} {key}")).clone()
    };
    let nested = machine(&json, "nested:4k+4k");
    let row = value("nested:4k+4k", "vm_exits.ept_violation");
    assert_eq!(row[2], nested["vm_exits"]["ept_violation"].to_string());
    assert_eq!((&row[3], &row[5], &row[6], &row[7]), ("count", "cascade-lake-6252", "4k+4k", "3"));
    assert_eq!(&value("vmm-direct:4k+4k", "segments.vmm_percent")[3], "% of guest memory");
    // Every seed of --repeat has its rows, which are those that it has alone.
    let both = lab.ok(&format!("{first} --repeat 2 --format csv --long"));
    let second = lab.ok(&format!("{} --format csv --long", first.replace("--seed 3", "--seed 4")));
    assert_eq!(both, a.clone() + second.split_once('\n').unwrap().1);
    // The hash is that of the input: seeds and threads are not part of it, machines and contents are.
    let hash = |text: &str| text.lines().nth(1).unwrap().rsplit(',').next().unwrap().to_owned();
    let of = |line: &str| hash(&lab.ok(&format!("{line} --format csv --long")));
    assert_eq!(hash(&a), of(&first.replace("--seed 3", "--seed 4 --threads 1")));
    assert_ne!(hash(&a), hash(&b));
    lab.write("a.lackey", " L 1000,8\n");
    let trace = "compare a.lackey --machines native --quiet";
    let before = of(trace);
    lab.write("a.lackey", " L 2000,8\n");
    assert_ne!(before, of(trace));
    assert!(lab.ok(&format!("{trace} --long --format markdown")).starts_with("| machine | key |"));
}
