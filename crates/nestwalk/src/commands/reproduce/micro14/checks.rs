//! What was published, and whether the run agrees with it.

use super::super::bars::{Published, geometric_mean};
use super::filter::{Plot, Point};
use super::{BIG_MEMORY, Bar, OfProgram};
use serde::Serialize;

/// What the paper has in words; its bars are not known.
pub const PUBLISHED: &[Published] = &[
    Published {
        what: "VMM Direct is about 2 % slower than native on average, without changes of guests",
        source: "abstract",
    },
    Published {
        what: "Dual Direct has near zero overhead, and is faster than native",
        source: "abstract",
    },
    Published {
        what: "Direct Segments on bare metal cost less than 0.5 %",
        source: "abstract of Basu et al. (ISCA 2013)",
    },
    Published {
        what: "graph500 with 4 KiB pages: 28 % natively, 113 % virtualized",
        source: "from the paper's introduction, as remembered",
    },
    Published {
        what: "16 bad pages slow programs down by about 0.06 % on average",
        source: "the paper's escape-filter plot, as remembered",
    },
];

/// A claim, and what the run says of it.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What is measured, in percent.
    pub what: &'static str,
    /// The published claim.
    pub published: &'static str,
    /// In the geometric mean over programs, each the mean of its seeds.
    pub measured_percent: f64,
    /// The largest of a program.
    pub highest_percent: f64,
    /// Where that was.
    pub highest_of: String,
    /// The measured number should be between these.
    pub bounds_percent: [f64; 2],
    /// It is.
    pub within: bool,
    /// The counts behind the highest.
    pub why: String,
}

impl Check {
    fn new(
        what: &'static str,
        published: &'static str,
        measured: f64,
        (highest_percent, highest_of, why): (f64, String, String),
        bounds: [f64; 2],
    ) -> Self {
        Self {
            what,
            published,
            measured_percent: measured,
            highest_percent,
            highest_of,
            bounds_percent: bounds,
            within: (bounds[0]..=bounds[1]).contains(&measured),
            why,
        }
    }
}

/// A claim on bars: what, published, bar, number, bounds.
type Claim = (&'static str, &'static str, &'static str, fn(&Bar) -> f64, [f64; 2]);

/// Claims on the big-memory group. `Within a few percent` and `near` are taken as 5 %.
const CLAIMS: [Claim; 5] = [
    (
        "4K+VD: run time over native 4K",
        "about 2 %",
        "4K+VD",
        |b| b.more.over_native_percent,
        [-5.0, 5.0],
    ),
    (
        "4K+GD: run time over native 4K",
        "near native",
        "4K+GD",
        |b| b.more.over_native_percent,
        [-5.0, 5.0],
    ),
    ("DD: overhead", "near zero", "DD", |b| b.total_percent, [-0.5, 0.5]),
    ("DD: run time over native 4K", "faster", "DD", |b| b.more.over_native_percent, [-100.0, 0.0]),
    ("DS: overhead", "below 0.5 %", "DS", |b| b.total_percent, [-0.5, 0.5]),
];

/// Bad pages that the filter is made for, and what they may cost.
const BAD: (u64, f64) = (16, 0.1);

/// Checks of a run; those of programs that were not run are left out.
pub fn of(programs: &[OfProgram], plots: &[Plot]) -> Vec<Check> {
    let mut all = Vec::new();
    for (what, published, bar, number, bounds) in CLAIMS {
        let big = programs.iter().filter(|p| p.group == BIG_MEMORY);
        let numbers: Vec<(f64, String, String)> = big
            .filter_map(|p| {
                let bar = p.bars.iter().find(|b| b.bar == bar)?;
                Some((number(bar), p.program.clone(), bar.more.why()))
            })
            .collect();
        let mean = geometric_mean(numbers.iter().map(|n| n.0));
        let highest = numbers.into_iter().max_by(|a, b| a.0.total_cmp(&b.0));
        if let (Some(mean), Some(highest)) = (mean, highest) {
            all.push(Check::new(what, published, mean, highest, bounds));
        }
    }
    for (scheme, what) in [
        ("dual-direct", "DD: slowdown by 16 bad pages"),
        ("vmm-direct", "4K+VD: slowdown by 16 bad pages"),
    ] {
        let points = plots.iter().filter_map(|plot| {
            let line = plot.lines.iter().find(|l| l.scheme == scheme)?;
            Some((plot, line.points.iter().find(|p| p.bad_pages == BAD.0)?))
        });
        let points: Vec<(&Plot, &Point)> = points.collect();
        let mean = geometric_mean(points.iter().map(|p| p.1.mean_percent));
        let highest = points.iter().max_by(|a, b| a.1.mean_percent.total_cmp(&b.1.mean_percent));
        if let (Some(mean), Some((plot, point))) = (mean, highest) {
            let each: Vec<String> = points
                .iter()
                .map(|(plot, p)| format!("{} {:.3} %", plot.program, p.mean_percent))
                .collect();
            let why = format!(
                "{}; of {}: {:.3} % of the segment's pages are reported, {:.3} % of checks met one",
                each.join(", "),
                plot.program,
                point.reported_percent,
                point.escapes_percent
            );
            let highest = (point.mean_percent, plot.program.clone(), why);
            all.push(Check::new(what, "about 0.06 %", mean, highest, [-BAD.1, BAD.1]));
        }
    }
    all
}
