//! `spot`: nested paging with speculative offset-based translation (SpOT; Alverti et al., ISCA 2020).
//! After a miss of the last level of TLBs a prediction table says from the instruction's address
//! where the page probably is. The program goes on with that while the walk checks it.
//!
//! A right guess hides the walk, whose references happen all the same. A wrong one costs the walk and
//! a flush of the pipeline, and has sent a reference to a wrong place through the caches. Nothing else
//! comes of a guess: what the program uses is the walk's translation.

use super::revelator::Guesser;
use super::{Definition, Facts};
use crate::assist::ranges::{Base, Runs, Unit, background, machine};
use crate::hardware::Request;
use crate::hardware::walk::{Fault, WalkWatch};
use crate::machine::DynMachine;
use crate::scheme::MachineConfig;
use crate::scheme::options::{OptionRow, OptionTable, one_of, whole, word_of};
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{MachineError, Platform, Processor};
use nestwalk_hw::{PredictionTable, Trained, Translation};
use nestwalk_types::{Address, Hpa};

const NAME: &str = "spot";
const NATIVE_NAME: &str = "native-spot";

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: NAME,
    summary: "nested paging whose walks are hidden behind guesses by offset (SpOT)",
    virtualized: true,
    facts: Facts { own_structures: true, ..Facts::NONE },
    vmm: VmmKind::Nested,
    options: &OPTIONS,
    build,
};

/// The same on bare metal.
pub const NATIVE: Definition = Definition {
    name: NATIVE_NAME,
    summary: "bare metal whose walks are hidden behind guesses by offset (SpOT)",
    virtualized: false,
    vmm: VmmKind::Other,
    ..DEFINITION
};

const SWITCH: [(&str, bool); 2] = [("keep", false), ("flush", true)];

static OPTIONS: OptionTable<SpotConfig> = OptionTable {
    check: |c| PredictionTable::new(c.entries, c.ways).map(|_| ()).map_err(|e| e.to_string()),
    ..OptionTable::new(&[
        OptionRow {
            name: "entries",
            values: "N",
            meaning: "entries of the prediction table of each core (32)",
            set: |c, value| whole(value, 1, 1 << 16).map(|n| c.entries = n as u32),
            get: |c| c.entries.to_string(),
        },
        OptionRow {
            name: "ways",
            values: "N",
            meaning: "ways of the prediction table (4)",
            set: |c, value| whole(value, 1, 1 << 16).map(|n| c.ways = n as u32),
            get: |c| c.ways.to_string(),
        },
        OptionRow {
            name: "penalty",
            values: "CYCLES",
            meaning: "delay by a wrong guess beyond the walk (20)",
            set: |c, value| whole(value, 0, 1 << 20).map(|n| c.penalty = n),
            get: |c| c.penalty.to_string(),
        },
        OptionRow {
            name: "contiguous",
            values: "PAGES",
            meaning: "runs longer than this are marked contiguous by their OS (32)",
            set: |c, value| whole(value, 0, 1 << 40).map(|n| c.contiguous = n),
            get: |c| c.contiguous.to_string(),
        },
        OptionRow {
            name: "switch",
            values: "keep|flush",
            meaning: "whether a load of CR3 leaves the prediction table or empties it; keep unless given",
            set: |c, value| one_of(value, &SWITCH).map(|flush| c.flush = flush),
            get: |c| word_of(&c.flush, &SWITCH),
        },
    ])
};

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    let unit = Spot::new(&request)?;
    machine(request, unit)
}

/// How SpOT is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpotConfig {
    /// Entries of each table. The paper's are 32.
    pub entries: u32,
    /// Its ways. The paper's are 4.
    pub ways: u32,
    /// Cycles of a wrong guess beyond the walk. The paper's number is not known. Assumed: the pipeline
    /// is flushed as after a mispredicted branch, 15 to 20 cycles on Intel's cores since Haswell (Fog,
    /// The microarchitecture of Intel, AMD and VIA CPUs).
    pub penalty: u64,
    /// Pages that a run must exceed to be marked. The authors' later code has 32.
    pub contiguous: u64,
    /// A load of CR3 empties the table.
    pub flush: bool,
}

impl Default for SpotConfig {
    fn default() -> Self {
        Self { entries: 32, ways: 4, penalty: 20, contiguous: 32, flush: false }
    }
}

/// The prediction tables of all cores.
pub struct Spot {
    config: SpotConfig,
    tables: Vec<PredictionTable>,
    /// Guesses are computed, and fetch data alone: `revelator`.
    guesser: Option<Guesser>,
}

impl Spot {
    /// Empty tables.
    ///
    /// # Errors
    /// What is set cannot be.
    pub fn new(build: &MachineConfig) -> Result<Self, MachineError> {
        let config = build.options(&OPTIONS)?;
        let wrong = |reason| MachineError::Variant { machine: build.name.clone(), reason };
        let table = PredictionTable::new(config.entries, config.ways);
        let tables = vec![table.map_err(|e| wrong(e.to_string()))?; build.vcpus];
        Ok(Self { config, tables, guesser: None })
    }

    /// Without tables: guesses are computed, and nothing but data is fetched by them.
    pub fn by_hash(guesser: Guesser) -> Self {
        Self { config: SpotConfig::default(), tables: Vec::new(), guesser: Some(guesser) }
    }

    /// The guess for an access, if there is one. Instruction fetches have none, nor have accesses whose
    /// instruction is not known.
    #[inline]
    pub fn predict(&self, request: &Request) -> Option<Hpa> {
        if request.fetch || request.pc.value() == 0 {
            return None;
        }
        self.tables[request.core()].predict(request.pc, request.gva, request.write, request.user)
    }

    fn learn(&mut self, runs: &Runs, cpu: &mut Processor, request: &Request, found: Translation) {
        if request.fetch || request.pc.value() == 0 {
            return;
        }
        let (at, threshold) = ((request.pc, request.gva), self.config.contiguous);
        let table = &mut self.tables[request.core()];
        let trained = table.train(at, found.apply(request.gva), found.permissions(), || {
            is_marked(runs, request, threshold)
        });
        match trained {
            Trained::Filled => cpu.counters.prediction_fills += 1,
            Trained::Bypassed => cpu.counters.prediction_bypasses += 1,
            _ => {}
        }
    }
}

/// The mapping is marked contiguous in each dimension: the bits that a walker finds in the entries of
/// both.
fn is_marked(runs: &Runs, request: &Request, threshold: u64) -> bool {
    let space = runs.space(request.core());
    let lengths = space.and_then(|space| runs.lengths(space, request.gva.page_number()));
    lengths.is_some_and(|(guest, host)| guest.min(host) > threshold)
}

impl Unit for Spot {
    #[inline]
    fn walk<B: Base, W: WalkWatch>(
        &mut self,
        base: &mut B,
        runs: &Runs,
        (cpu, request): (&mut Processor, &Request),
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        if let Some(guesser) = &self.guesser {
            let walked = base.walk(cpu, request, watch);
            if !request.fetch {
                fetch_guessed(guesser, cpu, request, walked.as_ref().ok());
            }
            return walked;
        }
        let guess = self.predict(request);
        let walked = base.walk(cpu, request, watch);
        if let Some(guess) = guess {
            self.judge(cpu, request, guess, walked.as_ref().ok());
        }
        if let Ok(found) = walked {
            self.learn(runs, cpu, request, found);
        }
        walked
    }

    // Where the guessed line was served is asked at once.
    #[inline]
    fn may_wait(&self) -> bool {
        self.guesser.is_none()
    }

    fn switched(&mut self, _runs: &Runs, _platform: &mut Platform, core: usize) {
        if self.config.flush {
            self.tables[core].flush();
        }
    }
}

/// Fetches an access's line from wherever it may be, while the walk went on that found `found`.
fn fetch_guessed(
    guesser: &Guesser,
    cpu: &mut Processor,
    request: &Request,
    found: Option<&Translation>,
) {
    // What the walk has cost is to be known.
    cpu.settle();
    let Processor { hardware, counters, .. } = cpu;
    let walk = hardware.tally.cycles;
    let there = found.map(|t| t.apply(request.gva));
    let mut late = None;
    guesser.each(request.gva, |guess| {
        let before = counters.background;
        background(hardware, counters, request.core(), guess);
        if there == Some(guess) && late.is_none() {
            let mut served = before.iter().zip(&counters.background);
            let served = served.position(|(b, a)| b != a).unwrap_or(0);
            let waits = hardware.latency[served].saturating_sub(hardware.latency[0]);
            late = Some(waits.saturating_sub(walk));
        }
    });
    counters.predictions += 1;
    match late {
        Some(late) => {
            counters.predictions_right += 1;
            counters.late_data_cycles += late;
        }
        None if found.is_some() => counters.predictions_wrong += 1,
        None => counters.predictions_squashed += 1,
    }
}

impl Spot {
    /// What a guess was worth, by the walk that checked it.
    fn judge(
        &self,
        cpu: &mut Processor,
        request: &Request,
        guess: Hpa,
        found: Option<&Translation>,
    ) {
        // What the walk has cost is to be known.
        cpu.settle();
        let Processor { hardware, counters, .. } = cpu;
        counters.predictions += 1;
        if found.is_some_and(|t| t.apply(request.gva) == guess) {
            counters.predictions_right += 1;
            counters.hidden_walk_cycles += hardware.tally.cycles;
            return;
        }
        // The program has read where the guess led, and must read again.
        background(hardware, counters, request.core(), guess);
        if found.is_some() {
            counters.predictions_wrong += 1;
            counters.misprediction_cycles += self.config.penalty;
        } else {
            counters.predictions_squashed += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{OPTIONS, SpotConfig};
    use crate::scheme::options::SchemeOptions;

    #[test]
    fn what_is_set_is_read_back() {
        let all = "entries=64/ways=8/penalty=100/contiguous=511/switch=flush";
        assert_eq!(OPTIONS.normalize(all).unwrap(), all);
        let defaults = "entries=32/ways=4/penalty=20/contiguous=32/switch=keep";
        assert_eq!(OPTIONS.parse(defaults).unwrap(), SpotConfig::default());
        assert_eq!(OPTIONS.spell(&SpotConfig::default()), "");
        for (text, words) in [
            ("ways=3", "32 entries in 3 ways"),
            ("penalty=x", "whole number"),
            ("switch=off", "keep, flush"),
            ("fast", "not name=value"),
            ("speed=1", "no option `speed`"),
        ] {
            let message = OPTIONS.parse(text).unwrap_err();
            assert!(message.contains(words), "{message}");
        }
    }
}
