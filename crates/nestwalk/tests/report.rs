//! `report`: what its pictures say is what the results say, read back from the files.

mod common;

use common::{Lab, parse};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// Seven schemes and the controls, over a little memory.
const COMPARE: &str = "compare gups --footprint 16MiB --accesses 50k --quiet --machines \
                       native,shadow,nested,agile,spot,switching,vmm-direct --output";

fn lab_with_results() -> (Lab, Value) {
    let lab = Lab::new();
    lab.ok(&format!("{COMPARE} d"));
    let results = parse(&lab.read("d/results.json"));
    (lab, results)
}

/// Rectangles and texts of a picture, and where numbers lie along its axis.
struct Picture {
    /// What a rectangle tells, and its left edge and length.
    rects: Vec<(String, f64, f64)>,
    /// Pixels of one unit, and where 0 is, from the numbers below the axis.
    unit: f64,
    zero: f64,
}

fn picture(svg: &str) -> Picture {
    let document = roxmltree::Document::parse(svg).unwrap_or_else(|e| panic!("{e}\n{svg}"));
    let number =
        |node: roxmltree::Node, key: &str| node.attribute(key).unwrap().parse::<f64>().unwrap();
    let mut rects = Vec::new();
    let mut ticks = Vec::new();
    for node in document.descendants() {
        if node.has_tag_name("rect")
            && let Some(title) = node.children().find(|child| child.has_tag_name("title"))
        {
            let told = title.text().unwrap().to_owned();
            rects.push((told, number(node, "x"), number(node, "width")));
        }
        // Numbers of the axis stand in the middle below it; a bar's sum begins where the bar ends.
        if node.has_tag_name("text")
            && node.attribute("text-anchor") == Some("middle")
            && let Ok(value) = node.text().unwrap_or_default().replace(',', "").parse::<f64>()
        {
            ticks.push((value, number(node, "x")));
        }
    }
    let ((first, from), (last, to)) = (ticks[0], *ticks.last().unwrap());
    let unit = (to - from) / (last - first);
    Picture { rects, unit, zero: from - first * unit }
}

impl Picture {
    /// The length of a part of a row, in units of the axis; 0 if there is none.
    fn part(&self, row: &str, part: &str) -> f64 {
        let head = format!("{row}, {part}: ");
        let found = self.rects.iter().find(|(told, ..)| told.starts_with(&head));
        found.map_or(0.0, |(.., length)| length / self.unit)
    }

    /// Fails unless the part is as long as the number says, within a pixel.
    fn assert_part(&self, row: &str, part: &str, expected: f64) {
        let found = self.part(row, part);
        let off = ((found - expected) * self.unit).abs();
        assert!(off <= 1.0, "{row}, {part}: {found} in the picture, {expected} in the results");
    }

    /// The bars of a row stand one behind the other, from 0 on.
    fn assert_stacked(&self, row: &str) {
        let mut at = self.zero;
        for (told, left, length) in &self.rects {
            if told.starts_with(&format!("{row}, ")) {
                assert!((left - at).abs() <= 1.0, "{told} begins at {left}, not at {at}");
                at = left + length;
            }
        }
    }
}

#[test]
fn bars_are_as_long_as_the_numbers() {
    let (lab, results) = lab_with_results();
    lab.ok("report d --figures f --as svg");
    let read = |name: &str| picture(&lab.read(&format!("f/{name}.svg")));
    let [time, overhead, walks] = ["time", "overhead", "references"].map(read);
    let [served, tables, misses] = ["walks-served", "tables", "misses"].map(read);
    let mut bars = 0;
    for m in results["machines"].as_array().unwrap() {
        let (name, of) = (m["name"].as_str().unwrap(), |key: &str| m[key].as_f64().unwrap());
        let percent = |cycles: f64| 100.0 * cycles / of("ideal_cycles");
        let whole: f64 =
            time.rects.iter().filter(|r| r.0.starts_with(&format!("{name}, "))).map(|r| r.2).sum();
        let expected = percent(of("total_cycles"));
        assert!((whole - expected * time.unit).abs() <= 1.0, "{name}: {whole} for {expected}");
        time.assert_part(name, "walks and TLBs", percent(of("translation_cycles")));
        time.assert_stacked(name);
        if m["scheme"] == "ideal" {
            continue;
        }
        bars += 1;
        overhead.assert_part(name, "VMM", percent(of("vmm_cycles") - of("lock_wait_cycles")));
        walks.assert_part(name, "nested tables", of("nested_refs") / of("walks").max(1.0));
        walks.assert_part(name, "guest tables", of("guest_refs") / of("walks").max(1.0));
        let refs = of("guest_refs") + of("nested_refs") + of("shadow_refs");
        let second = m["refs_served"]["l2"].as_f64().unwrap();
        served.assert_part(name, "second-level cache", 100.0 * second / refs.max(1.0));
        let mib = |key: &str| m["page_table_bytes"][key].as_f64().unwrap() / 1048576.0;
        tables.assert_part(name, "nested", mib("nested"));
        tables.assert_part(name, "shadow", mib("shadow"));
        misses.assert_part(name, "both levels missed", of("l2_tlb_mpki"));
    }
    assert_eq!(bars, 7);
}

#[test]
fn two_commands_lead_from_a_trace_to_figures_for_a_paper() {
    let lab = Lab::new();
    lab.write("trace.champsim", common::champsim_trace(2000));
    lab.ok("compare trace.champsim --quiet --output d \
         --machines native,shadow,nested,agile,spot,switching,vmm-direct");
    lab.ok("report d --figures f");
    let (svg, pgf) = (lab.read("f/time.svg"), lab.read("f/time.pgf"));
    // Both have the same shapes at the same places.
    let document = roxmltree::Document::parse(&svg).unwrap();
    let count = |tag: &str| document.descendants().filter(|n| n.has_tag_name(tag)).count();
    assert_eq!(pgf.matches(" rectangle ").count(), count("rect"));
    assert_eq!(pgf.matches("\\node[").count(), count("text"));
    let rect = document.descendants().rfind(|n| n.has_tag_name("rect")).unwrap();
    let at =
        format!("({},{}) rectangle", rect.attribute("x").unwrap(), rect.attribute("y").unwrap());
    assert!(pgf.contains(&at), "{at}\n{pgf}");
    assert_eq!(pgf.matches('{').count(), pgf.matches('}').count());
    assert!(!pgf.contains("vmm_"), "LaTeX stops at a bare underscore");
    let vega = parse(&lab.read("f/time.vl.json"));
    let results = parse(&lab.read("d/results.json"));
    let machines = results["machines"].as_array().unwrap();
    for m in machines {
        let values = vega["data"]["values"].as_array().unwrap().iter();
        let mine = values.filter(|v| v["name"] == m["name"]);
        let sum: f64 = mine.map(|v| v["value"].as_f64().unwrap()).sum();
        let share =
            100.0 * m["total_cycles"].as_f64().unwrap() / m["ideal_cycles"].as_f64().unwrap();
        assert!((sum - share).abs() < 1e-6 * share, "{sum} {share}");
    }
    let csv = lab.read("f/time.csv");
    assert_eq!(csv.lines().count(), machines.len() + 1, "{csv}");
    assert!(!lab.path("report.html").exists(), "no page was asked for");
}

/// Nothing of the page is fetched from anywhere.
fn assert_alone(html: &str) {
    let words = ["src=", "url(", "@import", "<link", "fetch(", "XMLHttp", "<iframe", "href=\"http"];
    for word in words {
        assert!(!html.contains(word), "{word}");
    }
    let names = html.matches("http").count();
    let namespaces = html.matches("xmlns=\"http://www.w3.org/2000/svg\"").count();
    assert_eq!(names, namespaces + html.matches("http-equiv").count());
}

#[test]
fn a_page_of_200_machines_is_small_soon_made_and_needs_no_network() {
    let (lab, mut results) = lab_with_results();
    let machines = results["machines"].as_array().unwrap().clone();
    let many = (0..200).map(|i| {
        let mut machine = machines[i % machines.len()].clone();
        machine["name"] = json!(format!("{}/option={i}", machine["name"].as_str().unwrap()));
        machine
    });
    results["machines"] = many.collect();
    lab.write("many.json", results.to_string());
    let fastest = (0..3).map(|_| {
        let begun = Instant::now();
        lab.ok("report many.json");
        begun.elapsed()
    });
    let fastest = fastest.min().unwrap();
    assert!(fastest < Duration::from_secs(1), "{fastest:?}");
    let html = lab.read("report.html");
    assert!(html.len() < 5 << 20, "{} bytes", html.len());
    assert_alone(&html);
    assert_eq!(html.matches("<tr>").count(), 201);
    assert!(html.contains("prefers-color-scheme: dark") && html.contains("width=device-width"));
    // Every figure is well-formed and has its data.
    let figures = html.matches("<figure ").count();
    assert!(figures >= 8, "{figures}");
    assert_eq!(html.matches("<script type=\"application/json\">").count(), figures);
    for part in html.split("<svg ").skip(1) {
        let svg = format!("<svg {}</svg>", part.split("</svg>").next().unwrap());
        roxmltree::Document::parse(&svg).unwrap();
    }
}

#[test]
fn results_of_several_footprints_are_drawn_over_the_footprint() {
    let lab = Lab::new();
    for size in ["8", "16", "32"] {
        lab.ok(&format!(
            "compare gups --footprint {size}MiB --accesses 20k --quiet --machines nested --output d{size}"
        ));
    }
    // In any order.
    lab.ok("report d32 d8 d16 --figures f -o page.html");
    let csv = lab.read("f/overhead-footprint.csv");
    let mut lines = csv.lines().skip(1).filter(|line| line.starts_with("nested"));
    for size in ["8", "16", "32"] {
        let results = parse(&lab.read(&format!("d{size}/results.json")));
        let cells: Vec<&str> = lines.next().unwrap().split(',').collect();
        let guest = &results["guests"]["4k"]["peak_resident_bytes"];
        assert_eq!(cells[1].parse::<u64>().unwrap(), guest.as_u64().unwrap());
        let expected =
            common::machine(&results, "nested:4k+4k")["overhead_percent"].as_f64().unwrap();
        assert_eq!(cells[2].parse::<f64>().unwrap().to_bits(), expected.to_bits());
    }
    assert!(lab.path("f/d8-time.svg").exists() && lab.path("f/misses-footprint.pgf").exists());
    assert_alone(&lab.read("page.html"));
    let told = lab.json("report d32 d8 -o page.html");
    assert_eq!((&told["runs"], &told["written"][0]["file"]), (&json!(2), &json!("page.html")));
}

#[test]
fn samples_are_drawn_over_time() {
    let lab = Lab::new();
    lab.ok("compare forkstorm --footprint 16MiB --accesses 200k --quiet --machines shadow,nested \
            --output d --samples s --sample-every 50k");
    lab.ok("report d --samples s --figures f");
    let csv = lab.read("f/exits-time.csv");
    assert!(csv.lines().count() > 4, "{csv}");
    assert!(lab.refused("report d --samples d/none").contains("d/none"));
    std::fs::create_dir(lab.path("empty")).unwrap();
    assert!(lab.refused("report d --samples empty").contains("compare --samples"));
}

#[test]
fn a_fleet_is_drawn_by_what_neighbours_add_and_where_memory_is() {
    let lab = Lab::new();
    let fleet = "compare --vm a=uniform;machine=nested --vm b=zipf;machine=shadow --footprint 16MiB \
                 --accesses 60k --turn 20k --host-memory 24MiB --quiet --output fleet";
    lab.ok(fleet);
    lab.ok("report fleet --figures f -o fleet.html");
    let results = parse(&lab.read("fleet/results.json"));
    let read = |name: &str| picture(&lab.read(&format!("f/{name}.svg")));
    let [overhead, memory, tables] = ["interference", "memory", "tables"].map(read);
    let mut taken = 0.0;
    for vm in results["vms"].as_array().unwrap() {
        let name = format!(
            "{} ({})",
            vm["name"].as_str().unwrap(),
            vm["together"]["name"].as_str().unwrap()
        );
        let parts = &vm["interference"];
        for (part, key) in [
            ("alone", "own"),
            ("shared TLBs", "tlbs"),
            ("shared caches", "caches"),
            ("scarce memory", "memory"),
        ] {
            overhead.assert_part(&name, part, parts[key].as_f64().unwrap().max(0.0));
        }
        let mib = |value: &Value| value.as_f64().unwrap() / 1048576.0;
        let (touched, resident) = (mib(&vm["touched_bytes"]), mib(&vm["resident_bytes"]));
        memory.assert_part(&name, "in memory", resident);
        memory.assert_part(&name, "taken back", touched - resident);
        memory.assert_stacked(&name);
        tables.assert_part(&name, "nested", mib(&vm["together"]["page_table_bytes"]["nested"]));
        taken += vm["swap"]["taken_back"].as_f64().unwrap();
    }
    assert!(taken > 0.0, "memory is not scarce");
    assert!(lab.path("f/swapping.pgf").exists());
    let html = lab.read("fleet.html");
    assert_alone(&html);
    assert_eq!(html.matches("<tr>").count(), 3);
    lab.ok("compare gups --footprint 8MiB --accesses 2k --quiet --output one");
    assert!(lab.refused("report fleet one").contains("one/results.json: not of several VMs"));
    assert!(lab.refused("report fleet --samples s").contains("--samples"));
}

/// What a script finds in a page that a real browser has loaded; nothing where there is none.
fn browsed(lab: &Lab, page: &str, script: &str) -> Option<Value> {
    let watch = "<head><script>addEventListener('error', \
                 (e) => document.documentElement.dataset.error = e.message)</script>";
    let probe = format!(
        "<script>document.body.dataset.found = JSON.stringify((() => {{{script}}})())</script></body>"
    );
    let html = lab.read(page).replace("<head>", watch).replace("</body>", &probe);
    lab.write("probe.html", html);
    let profile = format!("--user-data-dir={}", lab.path("browser").display());
    let file = format!("file://{}", lab.path("probe.html").display());
    let mut browser = std::process::Command::new("chromium");
    browser.args(["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]);
    // Narrow as a telephone.
    let Ok(ran) = browser.args(["--window-size=400,800", &profile, "--dump-dom", &file]).output()
    else {
        eprintln!("chromium is not installed: the page was not looked at in a browser");
        return None;
    };
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(!said.contains("CONSOLE"), "{said}");
    let page = String::from_utf8(ran.stdout).unwrap();
    assert!(!page.contains("data-error="), "{}", &page[..page.len().min(2000)]);
    let found = page.split("data-found=\"").nth(1).and_then(|rest| rest.split('"').next());
    let found = found.unwrap_or_else(|| panic!("the script did not run: {said}"));
    Some(parse(
        &found
            .replace("&quot;", "\"")
            .replace("&lt;", "<")
            .replace("&gt;", ">")
            .replace("&amp;", "&"),
    ))
}

#[test]
fn a_browser_shows_walks_as_the_simulator_makes_them_and_sorts_tables() {
    let lab = Lab::new();
    lab.ok("compare gups --footprint 8MiB --accesses 20k --quiet --output d \
            --machines native,shadow,nested,nested:2m+4k");
    lab.ok("report d");
    let script = r#"
        const explorer = document.querySelector(".explorer");
        const [machine, pages, , address] = explorer.querySelectorAll("select");
        const options = (select) => [...select.options].map((option) => option.value);
        const rows = (body) => [...body.rows].map((row) => [...row.cells].map((cell) => cell.textContent));
        const choose = (select, value) => {
          select.value = value;
          select.dispatchEvent(new Event("change"));
        };
        const walks = [];
        for (const m of options(machine)) {
          choose(machine, m);
          for (const p of options(pages)) {
            choose(pages, p);
            for (const a of options(address)) {
              choose(address, a);
              walks.push([`${m}:${p}`, a, rows(explorer.querySelector("tbody"))]);
            }
          }
        }
        const table = document.querySelector("section > .wide > table");
        const names = () => rows(table.tBodies[0]).map((cells) => cells[0]);
        const walked = [...table.tHead.rows[0].cells].find((c) => c.textContent.startsWith("walks"));
        walked.firstElementChild.click();
        const up = names();
        walked.firstElementChild.click();
        const figure = document.querySelector("figure svg").getBoundingClientRect();
        const { scrollWidth, clientWidth } = document.documentElement;
        return { walks, up, down: names(), figure: figure.width * figure.height, scrollWidth, clientWidth };
    "#;
    let Some(found) = browsed(&lab, "report.html", script) else { return };
    let walks = found["walks"].as_array().unwrap();
    // Controls are among them: native with both page sizes.
    assert_eq!(walks.len(), 5 * 3, "machines and addresses");
    for walk in walks {
        let (name, address) = (walk[0].as_str().unwrap(), walk[1].as_str().unwrap());
        let real = lab.json(&format!("walk {name} --address {address}"));
        let shown = walk[2].as_array().unwrap();
        let steps = real["steps"].as_array().unwrap();
        assert_eq!(shown.len(), steps.len(), "{name} {address}");
        for (i, (cells, step)) in shown.iter().zip(steps).enumerate() {
            assert_eq!(cells[0], (i + 1).to_string());
            let told = [&cells[1], &cells[2], &cells[4], &cells[6]];
            let are =
                ["reference", "dimension", "served", "host_physical_address"].map(|k| &step[k]);
            assert_eq!(told, are, "{name} {address}");
            assert_eq!(cells[3], step["level"].to_string());
        }
    }
    let lengths = |name: &str| {
        let of = walks.iter().find(|walk| walk[0] == name).unwrap();
        of[2].as_array().unwrap().len()
    };
    assert_eq!(["nested:4k+4k", "shadow:4k+4k", "nested:2m+4k"].map(lengths), [24, 4, 19]);
    let names = |key: &str| found[key].as_array().unwrap().clone();
    let reversed: Vec<Value> = names("down").into_iter().rev().collect();
    assert_eq!(names("up").first(), reversed.first());
    assert_eq!(names("up").len(), 7);
    assert!(found["figure"].as_f64().unwrap() > 10_000.0);
    assert!(found["scrollWidth"].as_f64() <= found["clientWidth"].as_f64(), "{found}");
}

#[test]
fn what_is_no_result_is_refused_by_name() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("folder")).unwrap();
    lab.write("empty.json", "");
    lab.write("text.json", "native 1.0\n");
    lab.write("list.json", "[1, 2]");
    lab.write("other.json", r#"{"program": "x", "bars": []}"#);
    lab.write("old.json", r#"{"version": "0.0.1", "machines": [{"name": "nested"}]}"#);
    let numbered = |format: &str| {
        format!(
            r#"{{"format_version": {format}, "version": "9.1.0", "machines": [{{"name": "nested"}}]}}"#
        )
    };
    lab.write("later.json", numbered("2"));
    lab.write("word.json", numbered("\"one\""));
    let of = |machines: &str| format!(r#"{{"version": "0.1.0", "machines": {machines}}}"#);
    lab.write("none.json", of("[]"));
    lab.write("nameless.json", of("[{}]"));
    lab.write("lacking.json", of(r#"[{"name": "nested", "instructions": 1}]"#));
    let cases = [
        ("folder", "no results.json in it; `nestwalk compare --output folder`"),
        ("missing.json", "missing.json: cannot be read"),
        ("empty.json", "empty.json: it is empty"),
        ("text.json", "text.json: it is no JSON"),
        ("list.json", "no results of `nestwalk compare`"),
        ("other.json", "no results of `nestwalk compare`"),
        ("old.json", "results of nestwalk 0.0.1, but this is nestwalk 0.1.0"),
        (
            "later.json",
            "results of nestwalk 9.1.0 in format 2, but this is nestwalk 0.1.0, which reads format 1",
        ),
        ("word.json", "`format_version` is no number"),
        ("none.json", "no machine in the results"),
        ("nameless.json", "machine 1: no `name`"),
        ("lacking.json", "machine 1 (`nested`): no number `walks`"),
    ];
    for (file, words) in cases {
        let message = lab.refused(&format!("report {file}"));
        assert!(message.contains(words), "{file}: {message}");
        assert!(!lab.path("report.html").exists(), "{file}");
    }
}

/// Results of before there were numbers of formats, and of a later version in the same format.
#[test]
fn results_of_other_versions_in_a_known_format_are_read() {
    let lab = Lab::new();
    let old = include_str!("results/before-format-versions.json");
    assert!(!old.contains("format_version"));
    lab.write("old.json", old);
    let told = lab.json("report old.json -o old.html --figures old");
    assert!(told["figures"].as_array().unwrap().len() >= 6, "{told}");
    // What a later version adds is passed over.
    let mut later = parse(old);
    later["format_version"] = json!(1);
    later["version"] = json!("9.1.0");
    later["added"] = json!({ "since": "9.0.0" });
    later["machines"][1]["added"] = json!(1);
    lab.write("later.json", later.to_string());
    lab.ok("report later.json -o later.html --figures later");
    assert_eq!(lab.read("old/time.svg"), lab.read("later/time.svg"));
}

#[test]
fn places_that_cannot_be_written_to_are_named_and_results_are_kept() {
    let (lab, results) = lab_with_results();
    lab.write("file", "");
    assert!(lab.refused("report d -o nowhere/report.html").contains("nowhere/report.html"));
    assert!(lab.refused("report d --figures file").contains("--figures file"));
    assert!(lab.refused("report d -o d/results.json").contains("the results are there"));
    assert!(lab.refused("report d --as svg").contains("--figures"));
    assert_eq!(parse(&lab.read("d/results.json")), results);
    assert!(!Path::new("report.html").exists());
}

#[test]
fn commands_of_the_documentation_run() {
    let lab = Lab::new();
    lab.write("trace.champsim", common::champsim_trace(2000));
    for line in common::tested_commands("docs/report.md") {
        lab.ok(&line);
    }
    assert!(lab.path("f/time.pgf").exists() && lab.path("report.html").exists());
    assert!(lab.path("sizes/overhead-footprint.svg").exists());
}
