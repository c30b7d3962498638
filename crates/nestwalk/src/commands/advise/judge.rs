//! What follows from the runs: ranges of gains, and what to do.

use super::choices::{HARDWARE, Pages, find, machine, names};
use nestwalk_sim::report::results::MachineResult;
use serde_json::{Value, json};

/// What gains less than so many percent is not worth doing.
const WORTH: f64 = 1.0;

/// One pass of all machines.
pub struct Run {
    /// What was special: its seed, or which stand-in.
    pub label: String,
    pub machines: Vec<MachineResult>,
}

/// The smallest and the largest of some numbers.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Range {
    pub low: f64,
    pub high: f64,
}

impl Range {
    fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let both = |found: Option<Self>, n: f64| {
            let (low, high) = found.map_or((n, n), |r| (r.low.min(n), r.high.max(n)));
            Some(Self { low, high })
        };
        numbers.into_iter().filter(|n| n.is_finite()).fold(None, both)
    }

    pub fn json(self) -> Value {
        json!({ "low": self.low, "high": self.high })
    }

    /// With so many decimals, once if both ends read alike.
    pub fn text(self, decimals: usize) -> String {
        let [low, high] = [self.low, self.high].map(|n| {
            let text = format!("{n:.decimals$}");
            // Not "-0.0".
            let zero = text.trim_start_matches('-').chars().all(|c| matches!(c, '0' | '.'));
            if zero { text.trim_start_matches('-').to_owned() } else { text }
        });
        if low == high { low } else { format!("{low} to {high}") }
    }
}

/// A machine over all runs.
pub struct Choice {
    pub machine: String,
    /// Run time, of that of today's machine.
    pub run_time: Range,
    /// By how many percent of today's run time it takes less.
    pub gain: Range,
    /// Walks per 1000 instructions; none if instructions are not known.
    pub walks: Option<Range>,
    /// Percent of its own time.
    pub translation: Range,
    pub vmm: Range,
}

/// What the runs say.
pub struct Advice {
    /// Page sizes that may be there today, the likeliest first.
    pub today: Vec<Pages>,
    /// Where large pages should be asked for.
    pub wanted: Pages,
    /// Whether every run wants the same.
    pub agreed: bool,
    /// Percent of run time that it gains.
    pub gain: Range,
    /// The same of each place alone, and both.
    pub alone: Vec<(Pages, Range)>,
    /// Percent of nested paging's run time that shadow paging takes less, with the pages that are
    /// wanted.
    pub shadow: Range,
    /// Percent of today's run time that hardware gains with 4 KiB pages.
    pub hardware: Vec<(&'static str, Range)>,
    /// Percent of today's run time that translation takes.
    pub translation: Range,
    /// The same of the hypervisor.
    pub vmm: Range,
    /// Percent that what is wanted gains, by the TLB misses that the processor counted.
    pub counted: Option<f64>,
    pub choices: Vec<Choice>,
}

/// What a stand-in says: walks per 1000 instructions today, and its times of today and of what is
/// wanted.
#[derive(Clone, Copy)]
struct Extreme {
    walks: f64,
    today: f64,
    wanted: f64,
}

/// Percent that is gained by what lies between two stand-ins where so many walks were counted.
fn between(counted: f64, low: Extreme, high: Extreme) -> Option<f64> {
    let width = high.walks - low.walks;
    let part = ((counted - low.walks) / width).clamp(0.0, 1.0);
    let mix = |low: f64, high: f64| low + part * (high - low);
    (width > 0.0).then(|| less(mix(low.today, high.today), mix(low.wanted, high.wanted)))
}

/// Time of a machine's work: per instruction, or per access if instructions are not known.
fn time(run: &Run, name: &str) -> Option<f64> {
    let m = find(&run.machines, name)?;
    let work = if m.instructions > 0 { m.instructions } else { m.accesses };
    (work > 0 && m.total_cycles > 0.0).then(|| m.total_cycles / work as f64)
}

fn nested(run: &Run, pages: Pages) -> Option<f64> {
    time(run, &machine("nested", pages))
}

/// Percent that the second takes less than the first.
fn less(first: f64, second: f64) -> f64 {
    100.0 * (1.0 - second / first)
}

fn share(m: &MachineResult, cycles: f64) -> f64 {
    100.0 * cycles / m.total_cycles.max(1.0)
}

fn translation(m: &MachineResult) -> f64 {
    share(m, nestwalk_lab::results::translation_cycles(m))
}

/// What large pages in these places gain, for each run and each way that today may be.
fn gains(runs: &[Run], today: &[Pages], wanted: Pages) -> Vec<f64> {
    let of = |run: &Run| -> Vec<f64> {
        let gain = |from: &Pages| {
            let (before, after) = (nested(run, *from)?, nested(run, from.with(wanted))?);
            Some(less(before, after))
        };
        today.iter().filter_map(gain).collect()
    };
    runs.iter().flat_map(of).collect()
}

/// Where large pages should be: the fewest places that gain all but [`WORTH`] of what any gain, in
/// every case; if there are none, those that lose least. And whether there are.
fn wanted(runs: &[Run], today: &[Pages]) -> (Pages, bool) {
    let all = Pages::ALL.map(|pages| (pages, gains(runs, today, pages)));
    let cases = all[0].1.len();
    let regret = |gains: &[f64]| {
        let missed = (0..cases).map(|i| {
            let best = all.iter().filter_map(|(_, g)| g.get(i)).copied().fold(f64::MIN, f64::max);
            best - gains.get(i).copied().unwrap_or(f64::MIN)
        });
        missed.fold(0.0, f64::max)
    };
    let enough = all.iter().find(|(_, gains)| regret(gains) <= WORTH);
    let least = || all.iter().min_by(|a, b| regret(&a.1).total_cmp(&regret(&b.1)));
    match enough {
        Some((pages, _)) => (*pages, true),
        None => (least().map_or(Pages::SMALL, |(pages, _)| *pages), false),
    }
}

fn choice(runs: &[Run], today: Pages, name: &str) -> Option<Choice> {
    let found: Vec<(&MachineResult, f64)> = runs
        .iter()
        .filter_map(|run| {
            Some((find(&run.machines, name)?, time(run, name)? / nested(run, today)?))
        })
        .collect();
    let over = |number: &dyn Fn(&MachineResult, f64) -> f64| {
        Range::of(found.iter().map(|(m, time)| number(m, *time)))
    };
    let known = found.iter().all(|(m, _)| m.instructions > 0);
    let per = |m: &MachineResult, _| 1000.0 * m.walks as f64 / m.instructions as f64;
    Some(Choice {
        machine: name.to_owned(),
        run_time: over(&|_, time| time)?,
        gain: over(&|_, time| less(1.0, time))?,
        walks: if known { over(&per) } else { None },
        translation: over(&|m, _| translation(m))?,
        vmm: over(&|m, _| share(m, m.vmm_cycles))?,
    })
}

impl Advice {
    /// What the runs say; none if no run has every machine.
    pub fn of(runs: &[Run], today: Vec<Pages>) -> Option<Self> {
        let first = *today.first()?;
        let (wanted, agreed) = wanted(runs, &today);
        let large = Pages::ALL.into_iter().filter(|p| *p != Pages::SMALL);
        let alone = large.filter_map(|p| Some((p, Range::of(gains(runs, &today, p))?))).collect();
        // Of every way that today may be.
        let beyond = |name: &dyn Fn(Pages) -> String| {
            let of = |run: &Run| {
                let case = |from: &Pages| {
                    let pages = from.with(wanted);
                    Some(less(nested(run, pages)?, time(run, &name(pages))?))
                };
                today.iter().filter_map(case).collect::<Vec<f64>>()
            };
            Range::of(runs.iter().flat_map(of).collect::<Vec<f64>>())
        };
        let instead = |name: &str| {
            let of = |run: &Run| {
                let case = |from: &Pages| Some(less(nested(run, *from)?, time(run, name)?));
                today.iter().filter_map(case).collect::<Vec<f64>>()
            };
            Range::of(runs.iter().flat_map(of).collect::<Vec<f64>>())
        };
        let hardware = HARDWARE.iter().filter_map(|h| Some((h.what, instead(h.machine)?)));
        let spent = |number: fn(&MachineResult) -> f64| {
            let of = |from: &Pages| {
                let name = machine("nested", *from);
                let found = runs.iter().filter_map(|r| find(&r.machines, &name)).map(number);
                found.collect::<Vec<f64>>()
            };
            Range::of(today.iter().flat_map(of).collect::<Vec<f64>>())
        };
        Some(Self {
            wanted,
            agreed,
            gain: Range::of(gains(runs, &today, wanted))?,
            alone,
            shadow: beyond(&|pages| machine("shadow", pages))?,
            hardware: hardware.collect(),
            counted: None,
            translation: spent(translation)?,
            vmm: spent(|m| share(m, m.vmm_cycles))?,
            choices: names().iter().filter_map(|name| choice(runs, first, name)).collect(),
            today,
        })
    }

    /// The same, where the processor has counted walks per 1000 instructions of what the first two runs
    /// stand in for.
    #[must_use]
    pub fn with_counted(mut self, runs: &[Run], counted: f64) -> Self {
        let extreme = |run: &Run| {
            let from = *self.today.first()?;
            let m = find(&run.machines, &machine("nested", from))?;
            let walks = 1000.0 * m.walks as f64 / m.instructions.max(1) as f64;
            let (today, wanted) = (nested(run, from)?, nested(run, from.with(self.wanted))?);
            Some(Extreme { walks, today, wanted })
        };
        if let [low, high, ..] = runs {
            self.counted =
                extreme(low).zip(extreme(high)).and_then(|(l, h)| between(counted, l, h));
        }
        self
    }

    /// The answer, a sentence for each question.
    pub fn sentences(&self) -> Vec<String> {
        let mut out = vec![self.pages()];
        out.extend(self.counted.map(|gain| {
            format!("By the TLB misses that the processor counted it is about {gain:.1} %.")
        }));
        // What is there already gains nothing, and both is then the other.
        let new = |(pages, _): &&(Pages, Range)| self.today.iter().any(|t| t.with(*pages) != *t);
        let there = |f: fn(&Pages) -> bool| self.today.iter().all(f);
        let one = there(|p| p.guest) || there(|p| p.host);
        let told = self.alone.iter().filter(new).filter(|(p, _)| !(one && p.guest && p.host));
        let alone: Vec<String> =
            told.map(|(pages, gain)| format!("{} {} %", pages.places(), gain.text(1))).collect();
        let mut text = format!("Large pages gain {}", alone.join(", "));
        for (is, place) in [(there(|p| p.guest), "guest"), (there(|p| p.host), "host")] {
            text += &if is { format!("; the {place} has them already") } else { String::new() };
        }
        out.push(text + ".");
        out.push(self.paging());
        let hardware: Vec<String> =
            self.hardware.iter().map(|(what, gain)| format!("{what} {} %", gain.text(1))).collect();
        out.push(format!(
            "Hardware that is not built would gain with 4 KiB pages: {}.",
            hardware.join(", ")
        ));
        out.push(format!(
            "Translation takes {} % of the run time today, and the hypervisor {} %: nothing gains more than \
             both.",
            self.translation.text(1),
            self.vmm.text(1)
        ));
        out
    }

    fn pages(&self) -> String {
        let gain = self.gain.text(1);
        let change = Range { low: -self.gain.high, high: -self.gain.low }.text(1);
        match (self.agreed, self.wanted) {
            (true, Pages::SMALL) => {
                format!(
                    "Leave pages as they are: nothing gains more than {WORTH:.0} % of the run time."
                )
            }
            (true, pages) if self.gain.low >= 0.0 => {
                format!("Use large pages {}: the run time falls by {gain} %.", pages.places())
            }
            (true, pages) => {
                format!("Use large pages {}: the run time changes by {change} %.", pages.places())
            }
            (false, Pages::SMALL) => {
                "What is known does not decide it: large pages gain in some cases and lose in others; \
                 leaving pages as they are loses least at worst."
                    .into()
            }
            (false, pages) => format!(
                "What is known does not decide it; large pages {} lose least at worst: the run time \
                 changes by {change} %.",
                pages.places()
            ),
        }
    }

    fn paging(&self) -> String {
        let Range { low, high } = self.shadow;
        let text = self.shadow.text(1);
        if low > WORTH {
            format!("Shadow paging is the better with these pages: it takes {text} % less.")
        } else if high < -WORTH {
            let more = Range { low: -high, high: -low }.text(1);
            format!(
                "Nested paging is the better with these pages: shadow paging takes {more} % more."
            )
        } else if low >= -WORTH && high <= WORTH {
            format!("Shadow and nested paging differ by {WORTH:.0} % at most with these pages.")
        } else {
            format!(
                "Whether shadow or nested paging is better with these pages is open: shadow paging gains \
                 {text} %."
            )
        }
    }

    /// Documented in docs/advise.md.
    pub fn json(&self) -> Value {
        let pages = |p: &Pages| json!(p.name());
        let alone =
            |(p, gain): &(Pages, Range)| json!({ "pages": p.name(), "gain_percent": gain.json() });
        let hardware =
            |(what, gain): &(&str, Range)| json!({ "what": what, "gain_percent": gain.json() });
        json!({
            "today": self.today.iter().map(pages).collect::<Vec<_>>(),
            "large_pages_in_guest": self.wanted.guest,
            "large_pages_in_host": self.wanted.host,
            "agreed": self.agreed,
            "gain_percent": self.gain.json(),
            "gain_by_counters_percent": self.counted,
            "gain_of_pages": self.alone.iter().map(alone).collect::<Vec<_>>(),
            "gain_of_shadow_percent": self.shadow.json(),
            "gain_of_hardware": self.hardware.iter().map(hardware).collect::<Vec<_>>(),
            "translation_percent": self.translation.json(),
            "vmm_percent": self.vmm.json(),
            "sentences": self.sentences(),
        })
    }
}

impl Choice {
    /// Documented in docs/advise.md.
    pub fn json(&self) -> Value {
        json!({
            "machine": self.machine,
            "run_time": self.run_time.json(),
            "gain_percent": self.gain.json(),
            "walks_per_1000_instructions": self.walks.map(Range::json),
            "translation_percent": self.translation.json(),
            "vmm_percent": self.vmm.json(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_lies_between_the_stand_ins() {
        let low = Extreme { walks: 1.0, today: 1.0, wanted: 1.0 };
        let high = Extreme { walks: 101.0, today: 3.0, wanted: 1.5 };
        let gain = |counted| between(counted, low, high).unwrap();
        // Half of each: 2 before, 1.25 after.
        assert!((gain(51.0) - 37.5).abs() < 1e-9);
        assert!(gain(0.0).abs() < 1e-9 && (gain(1000.0) - 50.0).abs() < 1e-9);
        assert!(between(1.0, low, low).is_none());
    }

    #[test]
    fn ranges_read_well() {
        let text = |low, high, n| Range { low, high }.text(n);
        assert_eq!(text(1.04, 1.01, 1), "1.0");
        assert_eq!(text(-0.01, 2.0, 1), "0.0 to 2.0");
        assert_eq!(text(-12.0, -0.5, 1), "-12.0 to -0.5");
        assert_eq!(Range::of([2.0, f64::NAN, 1.0]), Some(Range { low: 1.0, high: 2.0 }));
        assert_eq!(Range::of([f64::NAN]), None);
    }
}
