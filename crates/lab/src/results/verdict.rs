//! What follows from a comparison, in a few sentences, and the numbers behind them. Every word that
//! depends on a run is made of its counts.

use super::baseline::Baseline;
use super::repeats::Repeats;
use super::{ratio, translation_cycles};
use nestwalk_report::count;
use nestwalk_sim::SCHEMES;
use nestwalk_sim::report::results::MachineResult;
use serde_json::{Map, Value, json};

/// Run times that differ by less than this share are equal.
const EQUAL: f64 = 0.000_5;

/// What is known of a comparison beside its counts.
pub struct About<'a> {
    /// To what run times are relative.
    pub base: Baseline<'a>,
    /// Every machine.
    pub machines: &'a [MachineResult],
    /// The same with other seeds.
    pub repeats: Option<&'a Repeats>,
    /// Random choices of the seed make the source.
    pub random: bool,
}

/// Sentences, and their numbers.
pub struct Verdict {
    /// What is fastest and by how much, why, what it depends on.
    pub sentences: Vec<String>,
    /// The machine that the verdict is for.
    pub fastest: String,
    numbers: Value,
}

/// The machines between which the verdict decides.
struct Ranking<'a> {
    /// By run time, the fastest first: virtual machines, or bare metal if there are none.
    ranked: Vec<&'a MachineResult>,
    /// The fastest of bare metal beside virtual machines.
    native: Option<&'a MachineResult>,
}

impl<'a> About<'a> {
    fn run_time(&self, m: &MachineResult) -> f64 {
        self.repeats.map_or_else(|| self.base.run_time(m), |r| r.run_time(&m.name).mean)
    }

    /// Only machines that did what the baseline did can be faster or slower than each other.
    fn ranking(&self) -> Ranking<'a> {
        let same = |m: &&MachineResult| self.base.compares_with(m);
        let all = || self.machines.iter().filter(same).filter(|m| m.scheme != "ideal");
        let by_time =
            |a: &&MachineResult, b: &&MachineResult| self.run_time(a).total_cmp(&self.run_time(b));
        let mut ranked: Vec<&MachineResult> = all().filter(|m| is_virtual(m)).collect();
        let native = all().filter(|m| !is_virtual(m)).min_by(by_time);
        let native = native.filter(|_| !ranked.is_empty());
        if ranked.is_empty() {
            ranked = all().collect();
        }
        ranked.sort_by(by_time);
        Ranking { ranked, native }
    }

    /// The verdict; none if there is nothing to decide between.
    pub fn verdict(&self) -> Option<Verdict> {
        let Ranking { ranked, native } = self.ranking();
        let fastest = *ranked.first()?;
        // Whoever takes as long is no runner-up.
        let ahead = |m: &&&MachineResult| self.run_time(m) > self.run_time(fastest) * (1.0 + EQUAL);
        let next = ranked.iter().find(ahead).copied();
        let mut sentences = vec![self.which(&ranked, next, native)];
        let compared = match (next, native) {
            (Some(next), _) => Some((fastest, next)),
            (None, Some(native)) if self.run_time(native) < self.run_time(fastest) => {
                Some((native, fastest))
            }
            _ => None,
        };
        let parts = compared.map(|(fast, slow)| Parts::new(self, fast, slow));
        sentences.extend(parts.as_ref().and_then(|p| p.why(self)));
        let pages = self.by_pages(&ranked);
        sentences.push(self.depends(&pages));
        sentences.extend(self.spread(fastest, next));
        let times = self.machines.iter().map(|m| (m.name.clone(), json!(self.run_time(m))));
        let numbers = json!({
            "baseline": self.base.machine.name,
            "same_work": self.base.same_work,
            "run_times": times.collect::<Map<_, _>>(),
            "fastest": fastest.name,
            "next": next.map(|m| &m.name),
            "percent_less": next.map(|m| self.percent_less(fastest, m)),
            "difference": parts.map(|p| p.json()),
            "fastest_by_pages": pages.iter().map(|(p, m)| (p.clone(), json!(m.name)))
                .collect::<Map<_, _>>(),
            "populated": self.machines.iter().any(|m| m.setup_guest_faults > 0),
        });
        Some(Verdict { sentences, fastest: fastest.name.clone(), numbers })
    }

    /// By how much of the second's run time the first is faster.
    fn percent_less(&self, fast: &MachineResult, slow: &MachineResult) -> f64 {
        100.0 * (1.0 - self.run_time(fast) / self.run_time(slow))
    }

    /// Which machine is fastest, and by how much.
    fn which(
        &self,
        ranked: &[&MachineResult],
        next: Option<&MachineResult>,
        native: Option<&MachineResult>,
    ) -> String {
        let fastest = ranked[0];
        let takes = format!(
            "{:.3} times the run time of {}",
            self.run_time(fastest),
            self.base.machine.name
        );
        let mut out = match (ranked.len(), next) {
            (1, _) => format!("{} takes {takes}", fastest.name),
            (2, None) => format!("Both are equally fast: {takes}"),
            (n, None) => format!("All {n} are equally fast: {takes}"),
            (n, Some(next)) => {
                let equal = ranked.iter().take_while(|m| m.name != next.name).count();
                let others = match equal {
                    1 => String::new(),
                    _ => format!(" (with {} more that take as long)", equal - 1),
                };
                format!(
                    "{}{others} is the fastest of {n}: {takes}, {:.1} % less than the next, {} ({:.3})",
                    fastest.name,
                    self.percent_less(fastest, next),
                    next.name,
                    self.run_time(next)
                )
            }
        };
        if let Some(last) = ranked.last().filter(|m| next.is_some_and(|next| next.name != m.name)) {
            out += &format!("; the slowest is {} ({:.3})", last.name, self.run_time(last));
        }
        if let Some(native) = native {
            out += &format!("; bare metal, {}, takes {:.3}", native.name, self.run_time(native));
        }
        out + "."
    }

    /// The fastest of each combination of page sizes, in the order of the table.
    fn by_pages(&self, ranked: &[&'a MachineResult]) -> Vec<(String, &'a MachineResult)> {
        let pages = |m: &MachineResult| {
            let of = m.name.split_once(':').map_or("", |(_, rest)| rest);
            of.split('@').next().unwrap_or_default().to_owned()
        };
        let mut found: Vec<(String, &MachineResult)> = Vec::new();
        for m in self.machines {
            let fastest = ranked.iter().find(|r| pages(r) == pages(m));
            if let Some(fastest) = fastest.filter(|_| !found.iter().any(|f| f.0 == pages(m))) {
                found.push((pages(m), fastest));
            }
        }
        found
    }

    /// What could turn the verdict.
    fn depends(&self, pages: &[(String, &MachineResult)]) -> String {
        let sizes = match pages {
            [] => String::new(),
            [(one, _)] => format!("page sizes (here {one}; nested:thp+2m has others)"),
            [(_, first), rest @ ..] if rest.iter().all(|(_, m)| scheme(m) == scheme(first)) => {
                let all: Vec<&str> = pages.iter().map(|(p, _)| p.as_str()).collect();
                format!(
                    "page sizes ({} is the fastest with each of {})",
                    scheme(first),
                    all.join(", ")
                )
            }
            many => {
                let each =
                    many.iter().map(|(p, m)| format!("with {p} {} is the fastest", scheme(m)));
                format!("page sizes ({})", each.collect::<Vec<_>>().join(", "))
            }
        };
        let setup = self.machines.iter().map(|m| m.setup_guest_faults).max().unwrap_or(0);
        let faults = self.machines.iter().map(|m| m.guest_faults).max().unwrap_or(0);
        let touches = if setup > 0 {
            format!(
                "on memory being there before counting: {} page faults were left out",
                count(setup)
            )
        } else {
            format!("on first touches being counted: {} page faults", count(faults))
        };
        let mut out = format!("It depends on {sizes}");
        if setup + faults > 0 {
            out += if sizes.is_empty() { "" } else { ", and " };
            out += if sizes.is_empty() { touches.trim_start_matches("on ") } else { &touches };
        }
        let apart = self.machines.iter().filter(|m| !self.base.compares_with(m)).count();
        if !self.base.same_work {
            out += "; run times are per instruction, since a re-mapped guest lacks the recorded kernel's";
        }
        if apart > 0 {
            out += &format!(
                ", and {apart} of {} machines that ran too different instructions take no part",
                self.machines.len()
            );
        }
        out + "."
    }

    /// How far random choices decide.
    fn spread(&self, fastest: &MachineResult, next: Option<&MachineResult>) -> Option<String> {
        let Some(repeats) = self.repeats else {
            let one = "One seed decided every random choice: --repeat 5 tells the spread.";
            return self.random.then(|| one.into());
        };
        let of = |m: &MachineResult| {
            let s = repeats.run_time(&m.name);
            format!("{} takes {:.4} +- {:.4}", m.name, s.mean, s.deviation)
        };
        let n = repeats.seeds.len();
        let mut out = format!("Over {n} seeds {}", of(fastest));
        if let Some(next) = next {
            let faster = repeats.times_faster(&fastest.name, &next.name);
            out += &format!(" and {}; the first is faster with {faster} of them", of(next));
        }
        Some(out + " (mean and standard deviation).")
    }
}

/// Whether it is a virtual machine. A scheme of another crate is taken for one.
fn is_virtual(m: &MachineResult) -> bool {
    SCHEMES.iter().find(|s| s.name == m.scheme).is_none_or(|s| s.virtualized)
}

fn scheme(m: &MachineResult) -> &str {
    m.name.split(':').next().unwrap_or(&m.name)
}

/// Of what the difference between two machines consists, in points.
struct Parts<'a> {
    fast: &'a MachineResult,
    slow: &'a MachineResult,
    vmm: f64,
    translation: f64,
    guest: f64,
}

impl<'a> Parts<'a> {
    fn new(about: &About, fast: &'a MachineResult, slow: &'a MachineResult) -> Self {
        let points = |cycles: fn(&MachineResult) -> f64| {
            about.base.points(slow, cycles(slow)) - about.base.points(fast, cycles(fast))
        };
        Self {
            fast,
            slow,
            vmm: points(|m| m.vmm_cycles),
            translation: points(translation_cycles),
            guest: points(|m| m.ideal_cycles),
        }
    }

    fn total(&self) -> f64 {
        self.vmm + self.translation + self.guest
    }

    fn json(&self) -> Value {
        json!({
            "slower": self.slow.name,
            "faster": self.fast.name,
            "points": self.total(),
            "vmm_points": self.vmm,
            "translation_points": self.translation,
            "guest_points": self.guest,
        })
    }

    /// Why the one is slower than the other, the largest part first.
    fn why(&self, about: &About) -> Option<String> {
        let mut parts = [
            (self.vmm, self.of_exits()),
            (self.translation, self.of_walks()),
            (self.guest, self.of_guests()),
        ];
        parts.sort_by(|a, b| b.0.abs().total_cmp(&a.0.abs()));
        let least = (parts[0].0.abs() / 20.0).max(0.05);
        let told = parts.iter().filter(|(points, _)| points.abs() >= least);
        let told: Vec<String> = told.map(|(p, text)| format!("{p:.1} {text}")).collect();
        (!told.is_empty()).then(|| {
            format!(
                "{} takes {:.1} points more than {} (% of the run time of {}): {}.",
                self.slow.name,
                self.total(),
                self.fast.name,
                about.base.machine.name,
                told.join(", ")
            )
        })
    }

    /// The hypervisor's part.
    fn of_exits(&self) -> String {
        let exits = |m: &MachineResult| {
            let largest = m.vm_exits.iter().max_by_key(|(_, n)| **n);
            match largest {
                None => "none".into(),
                Some((reason, n)) if *n == m.vm_exits_total => format!("{} {reason}", count(*n)),
                Some((reason, n)) => {
                    format!("{}, {reason} most often, {}", count(m.vm_exits_total), count(*n))
                }
            }
        };
        match self.slow.vm_exits_total + self.fast.vm_exits_total {
            0 => "for work of the host without exits".into(),
            _ => {
                let (slow, fast) = (exits(self.slow), exits(self.fast));
                format!("for the hypervisor (exits: {slow}; against {fast})")
            }
        }
    }

    /// Translation's part.
    fn of_walks(&self) -> String {
        let walks = |m: &MachineResult| {
            let refs = m.guest_refs + m.nested_refs + m.shadow_refs;
            match m.walks {
                0 => format!("none, and {} hits of the second-level TLB", count(m.l2_tlb_hits)),
                n => format!("{} of {:.2} references", count(n), ratio(refs, n)),
            }
        };
        format!("for translation (walks: {}; against {})", walks(self.slow), walks(self.fast))
    }

    /// The guest kernel's part.
    fn of_guests(&self) -> String {
        format!(
            "for the guest's kernel and what its pages do to caches (page faults: {}; against {})",
            count(self.slow.guest_faults),
            count(self.fast.guest_faults)
        )
    }
}

impl Verdict {
    /// Documented in `fields::VERDICT`.
    pub fn json(&self) -> Value {
        let mut all = json!({ "sentences": self.sentences });
        if let (Some(all), Value::Object(numbers)) = (all.as_object_mut(), &self.numbers) {
            all.extend(numbers.clone());
        }
        all
    }
}
