//! What was published, and whether the run agrees with it.

use super::super::bars::{Published, geometric_mean};
use super::{Bar, OfProgram};
use serde::Serialize;

/// What is known of the papers' results.
pub const PUBLISHED: &[Published] = &[
    Published {
        what: "nested paging with transparent huge pages costs 16.5 % on average, with CA paging and SpOT 0.9 %",
        source: "abstract of Alverti et al. (ISCA 2020); an earlier version has 18 % and 1.2 %",
    },
    Published {
        what: "XSBench over 120 GB, natively with CA paging: 8, 11 and 17 ranges cover 80, 90 and 99 %, 8, 11 \
               and 16 offsets, 251, 298 and 1060 anchors",
        source: "README of the authors' released code",
    },
    Published {
        what: "RMM costs less than 1 % on average; less than 50 ranges cover 99 %",
        source: "abstract of Karakostas et al. (ISCA 2015); notes on it",
    },
    Published {
        what: "CoLT eliminates 40 to 58 % of TLB misses on average",
        source: "abstract of Pham et al. (MICRO 2012)",
    },
    Published {
        what: "Translation Ranger covers 120 GB with at most 128 regions typically, at less than 2 % run time",
        source: "abstract of Yan et al. (ISCA 2019)",
    },
];

/// A claim, and what the run says of it.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What is measured.
    pub what: &'static str,
    /// Unit of the numbers.
    pub unit: &'static str,
    /// The published claim.
    pub published: &'static str,
    /// In the mean over programs, or of all of them.
    pub measured: f64,
    /// The program that is farthest from it, and its number.
    pub worst: (String, f64),
    /// The measured number should be between these; none of what depends on the size of programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bounds: Option<[f64; 2]>,
    /// It is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<bool>,
}

/// Above any number of mappings.
const MANY: f64 = 1e15;

impl OfProgram {
    fn bar(&self, name: &str) -> Option<&Bar> {
        self.bars.iter().find(|b| b.bar == name)
    }
    /// Of what walks cost under nested paging over the same memory, what is left with predictions,
    /// percent. None where walks cost next to nothing.
    fn left(&self) -> Option<f64> {
        let (nested, spot) = (self.bar("CA+CA")?, self.bar("SpOT")?);
        (nested.walks_percent >= 0.1).then(|| 100.0 * spot.walks_percent / nested.walks_percent)
    }
    fn lines<'a>(
        &'a self,
        setup: &'a str,
        policy: &'a str,
    ) -> impl Iterator<Item = &'a super::Line> {
        self.contiguity.iter().filter(move |l| l.setup == setup && l.policy == policy)
    }
}

/// One number of each program that has it, how they become one, and the bounds.
struct Claim {
    what: &'static str,
    unit: &'static str,
    published: &'static str,
    of: fn(&OfProgram) -> Option<f64>,
    mean: fn(&[f64]) -> f64,
    /// The worst is the highest, not the lowest.
    highest: bool,
    bounds: Option<[f64; 2]>,
}

fn of_run_times(numbers: &[f64]) -> f64 {
    geometric_mean(numbers.iter().copied()).unwrap_or(0.0)
}

fn arithmetic(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len().max(1) as f64
}

fn highest(numbers: &[f64]) -> f64 {
    numbers.iter().copied().fold(0.0, f64::max)
}

fn lowest(numbers: &[f64]) -> f64 {
    numbers.iter().copied().fold(f64::INFINITY, f64::min)
}

/// `Some tens` of mappings are taken as less than a hundred, `thousands` as a thousand.
const CLAIMS: [Claim; 9] = [
    Claim {
        what: "THP+THP: walks",
        unit: "%",
        published: "16.5 % on average",
        of: |p| p.bar("THP+THP").map(|b| b.walks_percent),
        mean: of_run_times,
        highest: true,
        bounds: None,
    },
    Claim {
        what: "SpOT: walks",
        unit: "%",
        published: "0.9 % on average",
        of: |p| p.bar("SpOT").map(|b| b.walks_percent),
        mean: of_run_times,
        highest: true,
        bounds: Some([0.0, 1.8]),
    },
    Claim {
        what: "SpOT: walks, of those of CA+CA",
        unit: "%",
        published: "a twentieth; at most a tenth",
        of: OfProgram::left,
        mean: arithmetic,
        highest: true,
        bounds: Some([0.0, 10.0]),
    },
    Claim {
        what: "RMM: walks",
        unit: "%",
        published: "less than 1 % on average",
        of: |p| p.bar("RMM").map(|b| b.walks_percent),
        mean: of_run_times,
        highest: true,
        bounds: Some([0.0, 1.0]),
    },
    Claim {
        what: "CoLT, a sixteenth of the memory: misses eliminated natively",
        unit: "%",
        published: "40 to 58 % on average",
        of: |p| (p.coalescing.l2_tlb_misses > 0).then_some(p.coalescing.eliminated_percent),
        mean: arithmetic,
        highest: false,
        bounds: Some([40.0, 58.0]),
    },
    Claim {
        what: "ca, four at once: ranges for 99 %",
        unit: "ranges",
        published: "tens",
        of: |p| p.lines("four", "ca").map(|l| l.for_99("ranges") as f64).next(),
        mean: highest,
        highest: true,
        bounds: Some([1.0, 99.0]),
    },
    Claim {
        what: "linux, four at once: ranges for 99 %",
        unit: "ranges",
        published: "thousands",
        of: |p| p.lines("four", "linux").map(|l| l.for_99("ranges") as f64).next(),
        mean: lowest,
        highest: false,
        bounds: Some([1000.0, MANY]),
    },
    Claim {
        what: "ca: memory that was never used",
        unit: "bytes",
        published: "none",
        of: |p| {
            p.contiguity
                .iter()
                .filter(|l| l.policy == "ca")
                .map(|l| l.bloat_bytes as f64)
                .reduce(f64::max)
        },
        mean: highest,
        highest: true,
        bounds: Some([0.0, 0.0]),
    },
    Claim {
        what: "ca: pages moved",
        unit: "pages",
        published: "none",
        of: |p| {
            p.contiguity
                .iter()
                .filter(|l| l.policy == "ca")
                .map(|l| l.migrated_pages as f64)
                .reduce(f64::max)
        },
        mean: highest,
        highest: true,
        bounds: Some([0.0, 0.0]),
    },
];

/// Checks of a run; those of programs that were not run are left out.
pub fn of(programs: &[OfProgram]) -> Vec<Check> {
    CLAIMS
        .iter()
        .filter_map(|claim| {
            let numbers: Vec<(String, f64)> =
                programs.iter().filter_map(|p| Some((p.program.clone(), (claim.of)(p)?))).collect();
            let values: Vec<f64> = numbers.iter().map(|n| n.1).collect();
            let order = |a: &(String, f64), b: &(String, f64)| a.1.total_cmp(&b.1);
            let worst = match claim.highest {
                true => numbers.into_iter().max_by(order),
                false => numbers.into_iter().min_by(order),
            }?;
            let measured = (claim.mean)(&values);
            Some(Check {
                what: claim.what,
                unit: claim.unit,
                published: claim.published,
                measured,
                worst,
                bounds: claim.bounds,
                within: claim.bounds.map(|[low, high]| (low..=high).contains(&measured)),
            })
        })
        .collect()
}
