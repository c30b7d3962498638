//! `bench --growth`: time and memory of whole runs against footprint, machines, vCPUs and threads.

use super::cases;
use super::child::{self, Took};
use crate::formats::Found;
use crate::screen::Screen;
use crate::tell;
use anyhow::{Context, Result};
use nestwalk_report::{Align, Table, count};
use serde_json::{Value, json};

/// Machines that one more is made of where schemes at their defaults are not enough: other page sizes of
/// the host.
const MORE: [&str; 10] = [
    "nested:4k+2m",
    "nested:4k+thp",
    "shadow:4k+2m",
    "shadow:4k+thp",
    "agile:4k+2m",
    "sie:4k+2m",
    "vmm-direct:4k+2m",
    "spot:4k+2m",
    "rmm:4k+2m",
    "soft-tlb:4k+2m",
];

/// A run.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Point {
    axis: &'static str,
    footprint: &'static str,
    /// Names, but for the controls.
    machines: String,
    /// How many, controls included.
    count: usize,
    vcpus: u32,
    threads: u32,
}

impl Point {
    /// The run that all others differ from in one number.
    fn usual(axis: &'static str) -> Self {
        let machines = "native,shadow,nested".into();
        Self { axis, footprint: "1GiB", machines, count: 4, vcpus: 1, threads: 1 }
    }
    /// Where it is on its axis.
    fn at(&self) -> String {
        match self.axis {
            "footprint" => self.footprint.into(),
            "machines" => self.count.to_string(),
            "vCPUs" => self.vcpus.to_string(),
            _ => self.threads.to_string(),
        }
    }
    fn command(&self, accesses: u64) -> Vec<String> {
        let Self { footprint, machines, vcpus, threads, .. } = self;
        let line = format!(
            "compare uniform --footprint {footprint} --populate no --accesses {accesses} --machines \
             {machines} --vcpus {vcpus} --threads {threads} --quiet --format json"
        );
        line.split_whitespace().map(String::from).collect()
    }
}

/// Every run, axis by axis.
fn points() -> Result<Vec<Point>> {
    let mut all = Vec::new();
    for footprint in ["64MiB", "256MiB", "1GiB", "4GiB", "16GiB", "64GiB", "256GiB", "1TiB"] {
        all.push(Point { footprint, ..Point::usual("footprint") });
    }
    // Machines with a guest of their own would bring controls of their own.
    let machines = cases::every_machine()?;
    let usual = machines.first().map(|m| m.guest);
    let schemes = machines.into_iter().filter(|m| Some(m.guest) == usual).map(|m| m.name);
    let names: Vec<String> = schemes.chain(MORE.map(String::from)).collect();
    for count in [2, 3, 4, 8, 16, 32] {
        // The first two are the controls, which are there in any case.
        let machines = names.iter().take(count).cloned().collect::<Vec<_>>().join(",");
        all.push(Point { machines, count, ..Point::usual("machines") });
    }
    for vcpus in [1, 2, 4, 8, 16] {
        all.push(Point { vcpus, ..Point::usual("vCPUs") });
    }
    for threads in [1, 2, 4, 8] {
        let machines = names[..16].join(",");
        all.push(Point { threads, machines, count: 16, ..Point::usual("threads") });
    }
    Ok(all)
}

/// What each run took.
pub struct Growth {
    accesses: u64,
    runs: Vec<(Point, Took)>,
}

/// Runs all, one after the other.
///
/// # Errors
/// One fails.
pub fn growth(accesses: u64) -> Result<Growth> {
    let program = std::env::current_exe().context("the path of this program")?;
    let mut runs = Vec::new();
    for point in points()? {
        tell::note(&format!("{} {}", point.axis, point.at()));
        let took = child::run(&program, &point.command(accesses))?.took;
        runs.push((point, took));
    }
    Ok(Growth { accesses, runs })
}

impl Found for Growth {
    fn json(&self) -> Result<Value> {
        Ok(json!({ "accesses": self.accesses, "runs": self.rows()? }))
    }

    /// A row per run.
    fn rows(&self) -> Result<Vec<Value>> {
        let row = |(point, took): &(Point, Took)| {
            json!({
                "axis": point.axis,
                "footprint": point.footprint,
                "machines": point.count,
                "vcpus": point.vcpus,
                "threads": point.threads,
                "took": took,
                "command": point.command(self.accesses).join(" "),
            })
        };
        Ok(self.runs.iter().map(row).collect())
    }

    fn table(&self, _: Screen) -> String {
        let mut table = Table::new()
            .column("against", Align::Left)
            .column("at", Align::Right)
            .column("processor s", Align::Right)
            .column("wall s", Align::Right)
            .column("peak MiB", Align::Right);
        for (point, took) in &self.runs {
            table.row(vec![
                point.axis.into(),
                point.at(),
                format!("{:.2}", took.processor_seconds),
                format!("{:.2}", took.wall_seconds),
                format!("{:.0}", took.peak_mib),
            ]);
        }
        format!(
            "{}compare uniform, {} accesses and first touches, nothing populated; where an axis does not say \
             otherwise: 1GiB,\nideal, native, shadow and nested, 1 vCPU, 1 thread. Threads are those of 16 \
             machines; controls count as machines.\n",
            table.render(),
            count(self.accesses)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_mm::PagePolicy;
    use nestwalk_sim::compare::spec::{Defaults, MachineSpec};

    #[test]
    fn points_differ_from_the_usual_run_on_their_axis_and_have_as_many_machines_as_they_say() {
        let points = points().unwrap();
        let axes = |axis: &str| points.iter().filter(|p| p.axis == axis).count();
        assert_eq!(["footprint", "machines", "vCPUs", "threads"].map(axes), [8, 6, 5, 4]);
        let defaults = Defaults { pages: PagePolicy::Base, observed: false };
        for point in &points {
            let parsed = MachineSpec::parse_list(&point.machines, defaults).unwrap();
            assert_eq!(parsed.len(), point.count, "{point:?}");
            assert!(parsed.iter().all(|m| m.guest == parsed[0].guest), "one guest: {point:?}");
            assert!(point.command(7).join(" ").contains("--accesses 7 "), "{point:?}");
        }
    }
}
