//! What migration of a VM is asked for, and what came of it.

use super::super::FleetError;
use crate::Member;
use nestwalk_sim::scheme::guard::Tracking;
use nestwalk_sim::scheme::vmm_options::VmmKind;
use serde::Serialize;

/// When the VM's run moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// Memory is sent while the VM runs, what it stores to meanwhile again, in rounds; it stops for
    /// the rest.
    #[default]
    PreCopy,
    /// The VM goes on at once on the other host; memory comes as it is touched, and in the background.
    PostCopy,
}

impl Mode {
    /// Names on the command line and what they mean.
    pub const ALL: [(&'static str, Self, &'static str); 2] = [
        ("pre-copy", Self::PreCopy, "memory first, in rounds, then the VM"),
        ("post-copy", Self::PostCopy, "the VM first, memory as it is touched"),
    ];

    /// The one of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|m| m.0 == name).map(|m| m.1)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|m| m.1 == self).map_or("", |m| m.0)
    }
}

/// A VM's move to a host of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct MigrationPlan {
    /// Name of the VM.
    pub vm: String,
    /// When it begins: instructions of the VM since counting began.
    pub at: u64,
    /// When it is given up, likewise, if it is not over by then.
    pub cancel: Option<u64>,
    /// Bits that the link carries in a second.
    pub link_bits_per_s: f64,
    /// From a request to the first byte of its answer, in nanoseconds.
    pub latency_ns: f64,
    /// How the host knows what was stored to.
    pub tracking: Tracking,
    /// How long the VM may stand still, in nanoseconds.
    pub max_downtime_ns: f64,
    /// Rounds before it stops, whatever is left.
    pub max_rounds: u32,
    /// What moves first.
    pub mode: Mode,
}

/// Down time unless said: QEMU's `DEFAULT_MIGRATE_SET_DOWNTIME`, 300 ms.
pub const MAX_DOWNTIME_NS: u64 = 300_000_000;
/// Rounds unless said: Xen's first (`DEF_MAX_ITERS` of `xc_domain_save.c`: 29 and the first). QEMU has
/// no bound.
pub const MAX_ROUNDS: u32 = 30;
/// Bits of a second unless said: 10-gigabit Ethernet.
pub const LINK_BITS: u64 = 10_000_000_000;
/// Round trip unless said, in nanoseconds: an assumption, of two switched hosts of one rack.
pub const LATENCY_NS: u64 = 50_000;
/// Bytes of a page on the link: its contents, and 8 of its address (QEMU, `save_page_header`).
pub const PAGE_BYTES: u64 = 4096 + 8;

impl MigrationPlan {
    /// How long the link takes for so many pages, in nanoseconds.
    pub fn sending_ns(&self, pages: u64) -> f64 {
        (pages * PAGE_BYTES * 8) as f64 / self.link_bits_per_s * 1e9
    }

    /// Whether such a VM can move so.
    pub(crate) fn check(&self, members: &[Member]) -> Result<usize, FleetError> {
        let plan = |why: String| FleetError::Plan(format!("migration of {}: {why}", self.vm));
        let Some(vm) = members.iter().position(|m| m.name == self.vm) else {
            let known: Vec<&str> = members.iter().map(|m| m.name.as_str()).collect();
            return Err(plan(format!("there is no such VM; there are {}", known.join(", "))));
        };
        let positive = |x: f64| x.is_finite() && x > 0.0;
        if !positive(self.link_bits_per_s) {
            return Err(plan(
                "a link of no bandwidth carries nothing; give it some, as in link=10Gbit/s".into(),
            ));
        }
        let latency = self.latency_ns.is_finite() && self.latency_ns >= 0.0;
        if !latency || !positive(self.max_downtime_ns) {
            return Err(plan("latency and down time are times, the latter more than none".into()));
        }
        if self.max_rounds == 0 {
            return Err(plan("rounds=0: the first round sends all; take 1 or more".into()));
        }
        let spec = &members[vm].spec;
        let facts = &spec.scheme.facts;
        if facts.pins_memory || facts.primary_region {
            return Err(plan(format!(
                "{} keeps memory or registers of a segment, whose stores no table shows; take another machine",
                spec.name
            )));
        }
        let nested = matches!(spec.scheme.vmm, VmmKind::Nested | VmmKind::NestedNodes)
            && spec
                .vmm
                .rules(VmmKind::Nested, &members[vm].plan.profile)
                .is_ok_and(|rules| rules.ept_ad);
        if self.tracking.needs_dirty_bits() && self.mode == Mode::PreCopy && !nested {
            return Err(plan(format!(
                "tracking={} needs nested tables with dirty bits, which {} has not; take \
                 tracking=write-protect",
                self.tracking.name(),
                spec.name
            )));
        }
        Ok(vm)
    }
}

/// What a migration has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Progress {
    /// The VM has not come to where it begins.
    #[default]
    Waiting,
    /// Memory was being sent when the VM ended.
    Unfinished,
    /// It was given up: the VM stayed.
    Cancelled,
    /// The VM runs on the other host, and all its memory is there.
    Completed,
}

/// One round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Round {
    /// Pages of 4 KiB that it sent.
    pub pages: u64,
    /// How long that took, in nanoseconds.
    pub ns: f64,
}

/// What came of a migration.
#[derive(Clone, Debug, PartialEq, Default, Serialize)]
pub struct MigrationOutcome {
    /// What it has come to.
    pub progress: Progress,
    /// What moved first.
    pub mode: &'static str,
    /// How stores were logged.
    pub tracking: &'static str,
    /// Rounds, the last of which the VM stood still for, if it was completed.
    pub rounds: Vec<Round>,
    /// The rounds came to an end since what was left fitted the down time.
    pub converged: bool,
    /// Pages sent, those sent again included.
    pub pages_sent: u64,
    /// Bytes sent.
    pub bytes_sent: u64,
    /// From its beginning until all memory was there, in nanoseconds.
    pub total_ns: f64,
    /// How long the VM stood still, in nanoseconds.
    pub down_ns: f64,
    /// Exits since stores were logged.
    pub write_protected: u64,
    /// Exits since a log was full.
    pub pml_full: u64,
    /// Post-copy: pages that the VM waited for.
    pub network_faults: u64,
    /// How long it waited for them, in nanoseconds.
    pub waited_ns: f64,
    /// Pages whose contents on the other host were not those that the VM had stored. It must be 0.
    pub lost_pages: u64,
}
