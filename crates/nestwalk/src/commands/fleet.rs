//! `compare --vm`: several VMs on one host, and what neighbours cost each.

mod guests;
mod merging;
mod migrations;

use crate::args::{CompareArgs, OutputArgs};
use crate::formats::{self, Found};
use crate::progress::{Amount, Phase, Phases};
use crate::screen::Screen;
use crate::settings;
use crate::signals::stop_on_signals;
use anyhow::{Context, Result, anyhow, bail};
use nestwalk_lab::{
    Fleet, FleetOutcome, FleetProgress, MergeExperiment, MigrationExperiment, Settings, VERSION,
};
use nestwalk_report::{Align, Table, bytes, count, parse_bytes, parse_count};
use serde_json::{Value, json};
use std::cell::Cell;
use std::io::Write;
use std::path::Path;

/// `nestwalk compare --vm ...`.
///
/// # Errors
/// Arguments that do not go together, or what went wrong on the way.
pub fn compare(args: &CompareArgs, base: &Settings) -> Result<()> {
    refuse(args)?;
    let lab = settings::lab();
    let given = &args.fleet;
    let mut fleet = Fleet {
        cores: given.cores.unwrap_or(0),
        vpids: !given.no_vpids,
        apart: !given.not_apart,
        ..Fleet::default()
    };
    if let Some(turn) = &given.turn {
        fleet.turn = parse_count(turn).context("--turn")?;
    }
    if let Some(memory) = &args.host_memory {
        fleet.host_memory = parse_bytes(memory).context("--host-memory")?;
        if fleet.host_memory == 0 {
            bail!("--host-memory 0: a host has memory");
        }
    }
    fleet.replacement = given.replacement.clone().unwrap_or(fleet.replacement);
    fleet.swap = given.swap.clone().unwrap_or(fleet.swap);
    if let Some(text) = &given.merge {
        fleet.merge = Some(MergeExperiment::parse(text).context("--merge")?);
    }
    for text in &given.migrations {
        fleet.migration.push(MigrationExperiment::parse(text).context("--migrate")?);
    }
    let base = Settings { host_memory: None, ..base.clone() };
    for vm in &given.vms {
        fleet.vm.push(lab.vm(vm, &base).context("--vm")?);
    }
    run(&fleet, &args.output)
}

/// `nestwalk run` of a fleet's configuration.
///
/// # Errors
/// It is none, or what went wrong on the way.
pub fn repeat(file: &Path, output: &OutputArgs) -> Result<()> {
    run(&settings::lab().read_fleet(file)?, output)
}

/// Arguments that are about one VM alone, or about none.
fn refuse(args: &CompareArgs) -> Result<()> {
    if !args.sources.is_empty() {
        bail!(
            "{}: with --vm each source stands in its VM, as in --vm 'a={}'",
            args.sources.join(" "),
            args.sources[0]
        );
    }
    let alone = [
        ("--guest", args.guest),
        ("--lackey", args.lackey),
        ("--page-tables", args.page_tables.is_some()),
        ("--energy", args.tables.energy),
        ("--sensitivity", args.tables.sensitivity),
        ("--contiguity", args.tables.contiguity),
        ("--walk-map", args.walk_map),
        ("--wide", args.tables.wide),
        ("--columns", args.tables.columns.is_some()),
        ("--long", args.tables.long),
        ("--repeat", args.tables.repeat > 1),
        ("--samples", args.output.samples.is_some()),
    ];
    match alone.into_iter().find(|a| a.1) {
        Some((option, _)) => bail!("{option}: is for one VM, and does not go with --vm"),
        None => Ok(()),
    }
}

fn run(fleet: &Fleet, output: &OutputArgs) -> Result<()> {
    let threads = output.threads()?;
    if let Some(folder) = &output.output {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("--output {}: cannot be made", folder.display()))?;
        formats::write(folder, "config.toml", &fleet.to_toml()?)?;
    }
    let phases = Phases::new(output.quiet);
    let lab = settings::lab();
    let vms = fleet.vm.len();
    let begun = Cell::new(false);
    let mut progress = |p: FleetProgress| {
        let amount = Amount::Accesses { done: p.accesses, of: None };
        if !begun.replace(true) {
            phases.begin(Phase::of(format!("running {vms} VMs"), amount));
        }
        phases.at(amount);
    };
    let stop = stop_on_signals();
    let outcome =
        lab.run_fleet(fleet, threads, &mut |step| phases.listen(step), (&stop, &mut progress))?;
    drop(phases);
    let found = Results { fleet, outcome: &outcome };
    let saved = output.output.as_ref().map_or(Ok(()), |folder| formats::save(folder, &found));
    let text = output.format.render(&found)?;
    let mut out = std::io::stdout().lock();
    let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    saved.and(printed.context("standard output"))?;
    complete(outcome)
}

/// Whether it came to its end and its results can be trusted.
fn complete(outcome: FleetOutcome) -> Result<()> {
    let counted: u64 = outcome.vms.iter().map(|v| v.together.counters.accesses).sum();
    let machines = || outcome.vms.iter().flat_map(|v| [&v.alone, &v.together]);
    let violations: u64 = machines().filter_map(|m| m.referee.as_ref()).map(|v| v.violations).sum();
    let told = machines().filter_map(|m| m.referee.as_ref()).flat_map(|v| &v.told).next().cloned();
    if let Some(error) = outcome.error {
        let kept = format!("the results are those of the first {} accesses", count(counted));
        return Err(anyhow!(error).context(format!("ended early; {kept}")));
    }
    if violations > 0 {
        bail!(
            "the referee found {violations} violations: the results cannot be trusted; the first is: {}",
            told.unwrap_or_default()
        );
    }
    let lost: u64 =
        outcome.vms.iter().filter_map(|v| v.migration.as_ref()).map(|m| m.lost_pages).sum();
    if lost > 0 {
        bail!(
            "{lost} pages were not as their VM had left them on its new host: the results cannot be trusted"
        );
    }
    let lost: u64 = outcome.vms.iter().map(|v| v.swap.lost).sum();
    if lost > 0 {
        bail!("{lost} pages were used after they were given away: the results cannot be trusted");
    }
    match outcome.host.frames_given_twice {
        0 => Ok(()),
        n => bail!("{n} frames are behind pages of two VMs: the results cannot be trusted"),
    }
}

/// Everything that is shown of a fleet.
struct Results<'a> {
    fleet: &'a Fleet,
    outcome: &'a FleetOutcome,
}

impl Found for Results<'_> {
    fn json(&self) -> Result<Value> {
        Ok(json!({
            "version": VERSION,
            "complete": self.outcome.error.is_none(),
            "error": self.outcome.error.as_ref().map(ToString::to_string),
            "approximations": self.approximations(),
            "host": self.outcome.host,
            "vms": self.outcome.vms,
        }))
    }

    fn rows(&self) -> Result<Vec<Value>> {
        Ok(self.outcome.vms.iter().map(serde_json::to_value).collect::<Result<_, _>>()?)
    }

    fn table(&self, screen: Screen) -> String {
        let mut out = String::new();
        let host = &self.outcome.host;
        out += &format!(
            "host     {}, {} of memory; the VMs touch {} with their tables\n",
            cores(host.cores),
            bytes(host.bytes),
            bytes(host.touched_bytes)
        );
        if !host.replacement.is_empty() {
            out += &format!(
                "swap     to {}; {} decides which page goes; times of waiting are no part of overheads\n",
                host.device, host.replacement
            );
        }
        if let Some(merging) = &host.merging {
            out += &merging::line(merging);
        }
        for line in self.approximations() {
            out += &format!("note     {line}\n");
        }
        let mut out = screen.lines(&out);
        out.push('\n');
        out += &self.interference(screen);
        out += &self.memory(screen);
        out += &guests::swapping(self.outcome, screen);
        out += &guests::switching(self.outcome, screen);
        if self.fleet.merge.is_some() {
            out += &merging::table(self.outcome, screen);
        }
        if !self.fleet.migration.is_empty() {
            out += &migrations::table(self.outcome, screen);
        }
        out
    }
}

fn cores(n: usize) -> String {
    if n == 1 { "1 core".into() } else { format!("{n} cores") }
}

impl Results<'_> {
    /// What is approximate, a sentence each.
    fn approximations(&self) -> Vec<String> {
        let vms = self.outcome.vms.iter();
        let filtered = vms.filter_map(|vm| Some((vm.name.as_str(), vm.shown_again?)));
        let (names, again): (Vec<&str>, Vec<u64>) = filtered.unzip();
        let mut all = Vec::new();
        if self.outcome.vms.iter().any(|vm| vm.guest_swap.is_some()) {
            all.push(
                "a guest that swaps is the same in all columns, and in its ideal run: what that costs its \
                 kernel is no part of overheads, and what it waits for its device is told in JSON"
                    .into(),
            );
        }
        if !names.is_empty() {
            all.push(format!(
                "recordings of {} hide accesses that hit in small TLBs; after another VM's turn, and where \
                 the host took a page or cleared its accessed bit, pages whose records count more \
                 accesses than came at once are touched again ({} times): when those accesses came is \
                 not known, so a page may be touched that is not used any more",
                names.join(", "),
                count(again.iter().sum())
            ));
        }
        all
    }

    /// What each VM's overhead is made of.
    fn interference(&self, screen: Screen) -> String {
        let right = Align::Right;
        let mut table = Table::new()
            .column("overhead, % of\nthe ideal run alone", Align::Left)
            .column("source", Align::Left)
            .column("machine", Align::Left)
            .column("instructions", right)
            .column("turns", right)
            .column("alone", right);
        if self.fleet.apart {
            table = table.column("shared\nTLBs", right).column("shared\ncaches", right);
        } else {
            table = table.column("shared\ncores", right);
        }
        table = table.column("scarce\nmemory", right);
        if self.fleet.merge.is_some() {
            table = table.column("merging", right);
        }
        if !self.fleet.migration.is_empty() {
            table = table.column("migration", right);
        }
        table = table.column("total", right);
        for vm in &self.outcome.vms {
            let i = &vm.interference;
            let percent = |x: f64| format!("{x:.1}");
            let mut row = vec![
                vm.name.clone(),
                vm.source.clone(),
                vm.together.name.clone(),
                count(vm.together.counters.instructions),
                count(vm.turns),
                percent(i.own),
            ];
            if self.fleet.apart {
                row.push(percent(i.tlbs));
            }
            row.push(percent(i.caches));
            row.push(if self.fleet.host_memory > 0 { percent(i.memory) } else { "-".into() });
            if self.fleet.merge.is_some() {
                row.push(percent(i.merging));
            }
            if !self.fleet.migration.is_empty() {
                row.push(percent(i.migration));
            }
            row.push(percent(i.total));
            table.row(row);
        }
        table.render_within(screen.columns())
    }

    /// What became of each VM's memory.
    fn memory(&self, screen: Screen) -> String {
        let right = Align::Right;
        let mut table = Table::new()
            .column("memory", Align::Left)
            .column("touched", right)
            .column("in memory", right)
            .column("tables", right)
            .column("pages\ntaken back", right)
            .column("written", right)
            .column("came\nback", right)
            .column("reported\nfree", right)
            .column("async\nfaults", right)
            .column("waited, %", right)
            .column("idle, %", right);
        let reclaims = self.fleet.host_memory > 0;
        let reports = self.fleet.vm.iter().any(|vm| vm.reporting);
        for vm in &self.outcome.vms {
            let t = &vm.together.page_table_bytes;
            let of_swap = |n: u64| if reclaims { count(n) } else { "-".into() };
            let share = |ns: f64| ns / vm.swap.halted_ns.max(f64::MIN_POSITIVE);
            let idle = vm.waited_percent * share(vm.swap.idle_ns);
            let percent = |x: f64| if reclaims { format!("{x:.1}") } else { "-".into() };
            table.row(vec![
                vm.name.clone(),
                bytes(vm.touched_bytes),
                bytes(vm.resident_bytes),
                bytes(t.nested + t.shadow + t.host),
                of_swap(vm.swap.taken_back),
                of_swap(vm.swap.written),
                of_swap(vm.swap.swapped_in),
                if reports { count(vm.swap.reported) } else { "-".into() },
                of_swap(vm.swap.async_faults),
                percent(vm.waited_percent),
                percent(idle),
            ]);
        }
        table.drop_columns_from(0, "-");
        format!("\n{}", table.render_within(screen.columns()))
    }
}
