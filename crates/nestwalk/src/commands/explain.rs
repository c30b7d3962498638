//! `schemes` and `explain`: the catalogue.

mod rows;
mod words;

use crate::args::ExplainArgs;
use crate::commands::govern::show;
use crate::fields::{self, Field};
use crate::processor_events;
use anyhow::{Result, bail};
use nestwalk_hw::Profile;
use nestwalk_hw::profile::{BUILT_IN, is_built_in};
use nestwalk_lab::{PHASES, SAMPLES};
use nestwalk_mm::PLACEMENTS;
use nestwalk_policy::POLICIES;
use nestwalk_report::{Align, Table, count};
use nestwalk_sim::compare::spec::PAGES;
use nestwalk_sim::scheme::options::SchemeOptions;
use nestwalk_sim::{DAEMON_OPTIONS, DaemonTimes, FIELDS, SCHEMES};
use nestwalk_types::Source;
use nestwalk_workloads::WORKLOADS;
use std::io::Write;

/// Patterns and what can be set of them, beside what all have: footprint, size, reads, accesses,
/// seed, vcpus, chunk, instructions, populate.
static PATTERNS: &[(&str, &str)] = &[
    ("sequential", "slot after slot"),
    ("stride", "fixed distance (stride=4160 bytes)"),
    ("uniform", "random slots"),
    ("zipf", "random items with Zipf's law (theta=0.99, item=4096 bytes)"),
    ("chase", "a random cycle through all nodes (node=64 bytes)"),
    (PHASES, "several in turn: phases:sequential/uniform/zipf"),
];

fn section(title: &str, rows: Vec<(String, String)>) -> String {
    let mut table = Table::new().column(title, Align::Left).column("", Align::Left);
    for (name, text) in rows {
        table.row(vec![name, text]);
    }
    table.render() + "\n"
}

/// `nestwalk schemes`.
pub fn schemes() -> Result<()> {
    let own = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    let mut out = String::new();
    out += &section("scheme", SCHEMES.iter().map(|s| own(s.name, s.summary)).collect());
    out += &section("policy", POLICIES.iter().map(|p| own(p.name, p.summary)).collect());
    out += &section("placement", PLACEMENTS.iter().map(|p| own(p.0, p.2)).collect());
    let pages = "base pages; transparent 2 MiB, and with khugepaged; explicit 2 MiB, 4 MiB (2-level \
                 paging), 1 GiB";
    out += &section("page sizes", vec![own(&PAGES.join(" "), pages)]);
    let times = DaemonTimes::default();
    let keys = DAEMON_OPTIONS.rows.iter().map(|row| {
        (row.name.to_owned(), format!("{} (default {})", row.meaning, (row.get)(&times)))
    });
    out += &section("--daemons", keys.collect());
    let mut profiles = Vec::new();
    for (name, _) in BUILT_IN {
        profiles.push(own(name, &Profile::load(name)?.description));
    }
    out += &section("profile", profiles);
    out += &section("recording", SAMPLES.iter().map(|s| own(s.name, s.summary)).collect());
    out += &section("workload", WORKLOADS.iter().map(|w| own(w.name, w.summary)).collect());
    out += &section("pattern", PATTERNS.iter().map(|(n, s)| own(n, s)).collect());
    out += "A machine is scheme[/kind][:guest pages[+host pages]][@placement[+placement]], such as \
            nested:4k+2m;\nkinds of `switching` are the policies. `nestwalk explain NAME` tells more.\n";
    std::io::stdout().lock().write_all(out.as_bytes())?;
    Ok(())
}

/// `nestwalk explain NAME`.
pub fn explain(args: &ExplainArgs) -> Result<()> {
    if args.fields {
        std::io::stdout().lock().write_all(rows::markdown().as_bytes())?;
        return Ok(());
    }
    let name = args.name.join(" ");
    let out = explained(&name)?;
    if out.is_empty() {
        bail!(
            "no scheme, policy, placement, profile, workload, pattern, heading, page size, field of the \
             results or number of profiles is called `{name}`; `nestwalk schemes` lists most of them, \
             `nestwalk explain --fields` fields and numbers"
        );
    }
    std::io::stdout().lock().write_all(out.as_bytes())?;
    Ok(())
}

/// All that has this name; empty if nothing has.
fn explained(name: &str) -> Result<String> {
    let mut out = words::machine(name);
    out += &scheme(name);
    if let Some(policy) = POLICIES.iter().find(|p| p.name == name) {
        out += &format!("policy {}", show::policy(policy));
        out += "Of a machine: switching/POLICY/KEY=VALUE. Beside a VM: govern --policy \
                POLICY:KEY=VALUE,...\n";
    }
    if is_built_in(name) || name.ends_with(".toml") {
        out += &profile(name)?;
    }
    if let Some(p) = PLACEMENTS.iter().find(|p| p.0 == name) {
        out += &format!("placement {name}: {}\n", p.2);
    }
    out += &recording(name)?;
    if let Some(w) = WORKLOADS.iter().find(|w| w.name == name) {
        out += &format!("workload {}: {}\n", w.name, w.summary);
        for s in w.settings {
            out += &format!(
                "  {}:{}=N  {} (default {}, {} to {})\n",
                w.name, s.name, s.summary, s.default, s.range.0, s.range.1
            );
        }
    }
    if let Some((_, summary)) = PATTERNS.iter().find(|p| p.0 == name) {
        out += &format!("pattern {name}: {summary}\n");
        out += "  set as name:key=value,...; all have: footprint, size (bytes of an access), reads \
                (share of loads),\n  accesses, seed, vcpus, chunk (accesses before the next vCPU's \
                turn), instructions (per access),\n  populate (yes or no)\n";
    }
    out += &if name == "results" { results() } else { field(name) };
    out += &rows::number(name);
    Ok(out + &words::heading(name) + &words::word(name))
}

fn scheme(name: &str) -> String {
    let mut out = String::new();
    if let Some(s) = SCHEMES.iter().find(|s| s.name == name) {
        out += &format!("scheme {}: {}\n", s.name, s.summary);
        out += if s.virtualized {
            "Runs a virtual machine: page sizes and placement of guest and host can differ.\n"
        } else {
            "Runs without a hypervisor: there is no host dimension.\n"
        };
        for (key, values, meaning) in s.options.keys().into_iter().chain(s.vmm.options().keys()) {
            out += &format!("  {key}={values}: {meaning}\n");
        }
        if name == "switching" {
            out += &policies();
        }
    }
    out
}

fn profile(name: &str) -> Result<String> {
    let mut out = String::new();
    let profile = Profile::load(name)?;
    out += &format!("profile {}: {}\n", profile.name, profile.description);
    let mut table = Table::new()
        .column("structure", Align::Left)
        .column("", Align::Left)
        .column("source", Align::Left);
    for (structure, text, source) in profile.structures() {
        table.row(vec![structure, text, source]);
    }
    out += &(table.render() + "\n");
    let mut table = Table::new()
        .column("number", Align::Left)
        .column("value", Align::Right)
        .column("source", Align::Left);
    for (key, number) in profile.numbers() {
        table.row(vec![key.into(), number.value.to_string(), number.source.clone()]);
    }
    out += &table.render();
    out += "docs/profiles.md has every key, and how to change one line of a profile.\n";
    Ok(out)
}

fn recording(name: &str) -> Result<String> {
    let mut out = String::new();
    if let Some(sample) = nestwalk_lab::sample(name) {
        let reader = sample.open()?;
        out += &format!("recording {name}: {}\n", sample.summary);
        out += &format!("  {}\n", reader.info().description);
        if let Some(totals) = reader.totals() {
            out += &format!(
                "  {} accesses in {} runs, {} table writes, {} page faults\n",
                count(totals.accesses),
                count(totals.runs),
                count(totals.controls_by_kind.get("table_write").copied().unwrap_or(0)),
                count(totals.controls_by_kind.get("fault").copied().unwrap_or(0)),
            );
        }
    }
    Ok(out)
}

/// What `switching` can be governed by.
fn policies() -> String {
    let mut out = "Policies, whose own keys `nestwalk explain POLICY` tells:\n".to_owned();
    for policy in POLICIES {
        out += &format!("  {:18}  {}\n", policy.name, policy.summary);
    }
    out
}

fn lines(prefix: &str, fields: &[Field]) -> String {
    let line = |(field, unit, meaning): &Field| {
        let unit = if unit.is_empty() { String::new() } else { format!(" [{unit}]") };
        format!("{prefix}{field}{unit}: {meaning}\n")
    };
    fields.iter().map(line).collect()
}

/// One field, wherever it stands, with its parts.
fn field(name: &str) -> String {
    let mut out = String::new();
    let mut places = vec![("", fields::RESULTS)];
    places.extend(fields::GUESTS);
    places.push(("machines[].", &FIELDS));
    places.extend(fields::OTHERS);
    for (place, fields) in places {
        for found in fields.iter().filter(|f| f.0 == name) {
            out += &lines(place, &[*found]);
            if place == "machines[]." {
                for (part, fields) in fields::parts_of(name) {
                    out += &lines(&format!("{place}{part}."), fields);
                }
                if name == "vmm_work" {
                    out += &rows::prices();
                }
                out += &processor_events::explain(name);
            }
        }
    }
    for (part, fields) in fields::PARTS.iter() {
        let found: Vec<Field> = fields.iter().filter(|f| f.0 == name).copied().collect();
        out += &lines(&format!("machines[].{part}."), &found);
    }
    out
}

/// Every field of the JSON results, in order: where it stands, and the fields there.
fn all_fields() -> Vec<(String, &'static [Field])> {
    let mut all = vec![(String::new(), fields::RESULTS)];
    all.extend(fields::GUESTS.iter().map(|(place, fields)| ((*place).to_owned(), *fields)));
    for found in FIELDS.chunks(1) {
        all.push(("machines[].".into(), found));
        let parts = fields::parts_of(found[0].0);
        all.extend(parts.map(|(part, fields)| (format!("machines[].{part}."), *fields)));
    }
    all.extend(fields::OTHERS.iter().map(|(place, fields)| ((*place).to_owned(), *fields)));
    all
}

/// A line each. CSV has the machines' as columns, those of parts as `part.key`.
fn results() -> String {
    all_fields().iter().map(|(place, fields)| lines(place, fields)).collect()
}

#[cfg(test)]
mod tests {
    use super::{PATTERNS, PHASES};
    use nestwalk_source::Pattern;

    #[test]
    fn every_pattern_is_listed() {
        let listed: Vec<&str> = PATTERNS.iter().map(|p| p.0).collect();
        assert_eq!(listed[..listed.len() - 1], Pattern::NAMES);
        assert_eq!(listed.last(), Some(&PHASES));
    }
}
