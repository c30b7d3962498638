//! `kvm-window`: the last N samples vote (Zhang et al., for KVM, 2017; the thesis's chapter 5).
//!
//! Under shadow paging a sample votes for nested paging if page faults and exits are both frequent.
//! Under nested paging it votes for shadow paging if TLB misses are frequent and neither of the two is,
//! since then shadow paging would not pay. A switch takes a large share of the window. Window and
//! share are not known here; ours are chosen.

use crate::decision::{Action, Decision, Outcome, Policy, Reason};
use crate::gate::Gate;
use crate::policies::aspms::EXITS;
use crate::policies::dsp::{FAULTS, MISSES};
use crate::policies::{LOAD, PolicyInfo, SKIP};
use crate::rates::rate;
use crate::sample::{Counter, Mode, Sample};
use crate::spec::{Kind, Parameter, PolicySpec};
use std::collections::VecDeque;

pub(crate) const INFO: PolicyInfo = PolicyInfo {
    name: "kvm-window",
    summary: "the last N samples vote on page faults, exits and TLB misses",
    source: "Zhang et al. 2014 and 2017; thesis chapter 5; thresholds derived, window chosen",
    parameters: &[
        Parameter {
            name: "window",
            default: "8",
            kind: Kind::Whole(1, 1000),
            meaning: "N: samples that vote",
            source: "chosen here: twice the thesis's N; the source's is not known",
        },
        Parameter {
            name: "share",
            default: "0.75",
            kind: Kind::Real(0.01, 1.0),
            meaning: "share of the whole window that causes a switch",
            source: "chosen here: a large share",
        },
        FAULTS,
        EXITS,
        MISSES,
        SKIP,
        LOAD,
    ],
    needs: &[Counter::GuestPageFaults, Counter::TlbMisses, Counter::VmExits],
    build: |spec, mode, _| Ok(Box::new(KvmWindow::new(spec, mode))),
};

#[derive(Debug)]
struct KvmWindow {
    gate: Gate,
    faults: f64,
    exits: f64,
    misses: f64,
    size: usize,
    needed: u32,
    votes: VecDeque<bool>,
}

impl KvmWindow {
    fn new(spec: &PolicySpec, mode: Mode) -> Self {
        let window = spec.whole("window");
        Self {
            gate: Gate::new(mode, spec.whole("skip"), spec.hundredths("load").0),
            faults: spec.real("faults"),
            exits: spec.real("exits"),
            misses: spec.real("misses"),
            size: window as usize,
            needed: (f64::from(window) * spec.real("share")).ceil().max(1.0) as u32,
            votes: VecDeque::new(),
        }
    }

    fn decide(&mut self, sample: &Sample) -> Result<Decision, Reason> {
        self.gate.admit(sample)?;
        let faults = rate(sample, Counter::GuestPageFaults)? > self.faults;
        let exits = rate(sample, Counter::VmExits)? > self.exits;
        let misses = rate(sample, Counter::TlbMisses)? > self.misses;
        let mode = self.gate.mode();
        self.votes.push_back(match mode {
            Mode::Shadow => faults && exits,
            Mode::Nested => misses && !faults && !exits,
        });
        if self.votes.len() > self.size {
            self.votes.pop_front();
        }
        let votes = self.votes.iter().filter(|&&v| v).count() as u32;
        let reason = Reason::Votes { votes, samples: self.votes.len() as u32, needed: self.needed };
        if votes < self.needed {
            return Ok(Decision::stay(reason));
        }
        self.gate.ask(mode.other());
        Ok(Decision { action: Action::Switch(mode.other()), reason })
    }
}

impl Policy for KvmWindow {
    fn sample(&mut self, sample: &Sample) -> Decision {
        self.decide(sample).unwrap_or_else(Decision::stay)
    }

    fn switched(&mut self, outcome: Outcome) {
        self.votes.clear();
        self.gate.switched(outcome);
    }

    fn mode(&self) -> Mode {
        self.gate.mode()
    }
}
