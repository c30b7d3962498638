//! The referee: an independent check of every access, which knows no scheme.
//!
//! The truth is the plain composition of two mappings: the guest's tables, looked up as an OS would,
//! and the host's own record of what is behind each guest-physical page. It shares no code with the
//! walkers, the TLBs or the shadow tables. It checks that
//!
//! - the address used equals the composition (so no stale translation survives an invalidation that
//!   the guest asked for),
//! - the guest's tables permit the access, and the translation permits no more than they do,
//! - the host gives no frame to two guest pages that are not merged, and none that holds a table; merged
//!   pages are not stored to,
//! - the stream's own annotation agrees with the tables,
//! - the counters add up.

use crate::measure::counters::Counters;
use crate::scheme::Platform;
use nestwalk_hw::Translation;
use nestwalk_tables::look_up;
use nestwalk_types::{Address, Gpa, Hpa, PageSize, Run};
use rustc_hash::FxHashMap;
use serde::Serialize;

/// How many violations are told in full.
const TOLD: usize = 10;

/// What the referee found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Verdict {
    /// Runs checked.
    pub checked: u64,
    /// Violations in all.
    pub violations: u64,
    /// The first of them, in words.
    pub told: Vec<String>,
}

/// Checks one machine.
pub struct Referee {
    machine: String,
    checked: u64,
    violations: u64,
    told: Vec<String>,
    /// Which guest page each host frame belongs to, and back, in 4 KiB pages.
    owner: FxHashMap<u64, u64>,
    frame: FxHashMap<u64, u64>,
}

impl Referee {
    /// A referee for the machine of that name.
    pub fn new(machine: &str) -> Self {
        Self {
            machine: machine.into(),
            checked: 0,
            violations: 0,
            told: Vec::new(),
            owner: FxHashMap::default(),
            frame: FxHashMap::default(),
        }
    }

    /// The host took these guest pages' memory back; their frames may be given out again.
    pub fn discarded(&mut self, first: Gpa, size: PageSize) {
        self.exchanged(first, size.bytes());
    }

    /// The host put other frames behind a range of guest memory.
    pub fn exchanged(&mut self, first: Gpa, bytes: u64) {
        for gfn in first.page_number()..first.page_number() + (bytes >> 12) {
            if let Some(frame) = self.frame.remove(&gfn) {
                self.owner.remove(&frame);
            }
        }
    }

    #[cold]
    fn violation(&mut self, run: &Run, what: &str) {
        self.violations += 1;
        if self.told.len() < TOLD {
            self.told.push(format!(
                "{}: access {} at {:?} on vCPU {}: {what}",
                self.machine, self.checked, run.gva, run.vcpu.0
            ));
        }
    }

    /// Checks one run: `annotated` is the source's guest-physical address, `used` the host-physical
    /// address that the machine came to, `translation` what it used.
    pub fn check(
        &mut self,
        platform: &Platform,
        run: &Run,
        annotated: Gpa,
        used: Hpa,
        translation: Translation,
    ) {
        self.checked += 1;
        let world = &platform.cpu.world;
        let Ok(leaf) = look_up(&world.guest, world.mode, world.root(run.vcpu), run.gva) else {
            return self.violation(run, "the guest's tables do not map it");
        };
        let flags = run.flags;
        if !leaf.permissions.allow(flags.is_store(), flags.is_fetch(), !flags.is_kernel()) {
            self.violation(run, "the guest's tables do not permit it");
        }
        let given = translation.permissions();
        if (given.write && !leaf.permissions.write)
            || (given.user && !leaf.permissions.user)
            || (given.execute && !leaf.permissions.execute)
        {
            self.violation(run, "the translation permits more than the guest's tables");
        }
        let gpa = leaf.apply(run.gva);
        if gpa != annotated {
            let what = format!("the guest's tables give {gpa:?}, the source says {annotated:?}");
            self.violation(run, &what);
        }
        let truth = match &platform.host {
            None => Some(Hpa::new(gpa.value())),
            Some(host) => host.look_up(gpa).map(|p| p.frame.offset_by(gpa.offset_in(p.size))),
        };
        match truth {
            None => self.violation(run, &format!("nothing is behind {gpa:?}")),
            Some(truth) if truth != used => {
                self.violation(run, &format!("{gpa:?} is at {truth:?}, the machine used {used:?}"));
            }
            Some(_) if platform.host.as_ref().is_some_and(|h| h.is_merged(gpa)) => {
                if flags.is_store() || given.write {
                    self.violation(run, &format!("merged page {gpa:?} is, or may be, stored to"));
                }
            }
            Some(truth) => self.own(run, gpa, truth),
        }
    }

    /// No frame belongs to two guest pages.
    fn own(&mut self, run: &Run, gpa: Gpa, hpa: Hpa) {
        let (gfn, hfn) = (gpa.page_number(), hpa.page_number());
        if self.frame.get(&gfn) == Some(&hfn) {
            return;
        }
        if let Some(old) = self.frame.insert(gfn, hfn) {
            self.owner.remove(&old);
        }
        if let Some(other) = self.owner.insert(hfn, gfn)
            && other != gfn
        {
            let what = format!("frame {hfn:#x} is behind guest pages {gfn:#x} and {other:#x}");
            self.violation(run, &what);
        }
    }

    /// The verdict so far, with the sums that must hold at any time.
    pub fn verdict(&self, platform: &Platform) -> Verdict {
        let mut told = self.told.clone();
        let mut violations = self.violations;
        for problem in sums(&platform.cpu.counters) {
            violations += 1;
            told.push(format!("{}: {problem}", self.machine));
        }
        // What was exchanged since the last access is not known any more.
        let exchanged = |(first, bytes): &(Gpa, u64), gfn: u64| {
            gfn.checked_sub(first.page_number()).is_some_and(|i| i < bytes >> 12)
        };
        let known = |gfn: &&u64| !platform.moved.iter().any(|m| exchanged(m, **gfn));
        if let Some(host) = &platform.host {
            for table in host.tables().pages() {
                if let Some(gfn) = self.owner.get(&table.page_number()).filter(known) {
                    violations += 1;
                    told.push(format!(
                        "{}: {table:?} holds a table and is behind guest page {gfn:#x}",
                        self.machine
                    ));
                }
            }
        }
        Verdict { checked: self.checked, violations, told }
    }
}

/// Sums that must hold between counters.
pub fn sums(c: &Counters) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut equal = |what: &str, left: u64, right: u64| {
        if left != right {
            wrong.push(format!("{what}: {left} is not {right}"));
        }
    };
    equal(
        "l1 misses = l2 hits + l2 misses + what was served beside the second level",
        c.l1_tlb_misses,
        c.l2_tlb_hits + c.l2_tlb_misses + c.assist_hits,
    );
    equal(
        "look-ups of first-level TLBs = accesses",
        c.l1d_tlb_lookups + c.l1i_tlb_lookups,
        c.accesses,
    );
    equal(
        "guesses = right + wrong + squashed",
        c.predictions,
        c.predictions_right + c.predictions_wrong + c.predictions_squashed,
    );
    if c.walks > 0 {
        equal("walks = l2 misses + rewalks", c.walks, c.l2_tlb_misses + c.rewalks);
    }
    wrong
}
