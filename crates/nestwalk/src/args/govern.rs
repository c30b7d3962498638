//! Arguments of `govern`.

use crate::formats::Format;
use clap::{Args as ClapArgs, ValueEnum};
use std::path::PathBuf;

/// Options of `govern`.
#[derive(ClapArgs, Debug, Clone)]
pub struct GovernArgs {
    /// The QEMU process [default: the only one with KVM]
    #[arg(value_name = "PID", conflicts_with = "replay")]
    pub pid: Option<u32>,
    /// Recorded samples instead of a live VM. Two files, of the same work in either mode: switches
    /// are
    /// obeyed, and the result is compared with the best afterwards
    #[arg(long, value_name = "FILE", num_args = 1..=2)]
    pub replay: Vec<PathBuf>,
    /// The policy, as in name:key=value,...; see --list
    #[arg(long, default_value = "dynamic-thresholds")]
    pub policy: String,
    /// List the policies and their parameters
    #[arg(long)]
    pub list: bool,
    /// Length of an interval
    #[arg(long, value_name = "TIME", default_value = "1s")]
    pub interval: String,
    /// Write the samples to FILE, as CSV
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Only say what should be done
    #[arg(long)]
    pub dry_run: bool,
    /// With two recordings: the mode to begin with [default: shadow]
    #[arg(long, value_enum, value_name = "MODE")]
    pub start: Option<ModeArg>,
    /// How events are printed: a line each, or with json an object each
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Intervals in which nothing is to be done are not printed
    #[arg(long, short)]
    pub quiet: bool,
    /// The file that switches the VM's mode [default: DIR/PID-FD/pms]
    #[arg(long, value_name = "FILE", help_heading = "Live VMs")]
    pub pms: Option<PathBuf>,
    /// KVM's directory in debugfs [default: /sys/kernel/debug/kvm]
    #[arg(long, value_name = "DIR", help_heading = "Live VMs")]
    pub debugfs: Option<PathBuf>,
    /// A file in which something in the guest keeps its /proc/vmstat: page faults that the host
    /// does not
    /// see under nested paging
    #[arg(long, value_name = "FILE", help_heading = "Live VMs")]
    pub guest_faults: Option<PathBuf>,
    /// Raw events whose sum is walk cycles, for processors that are not known: r1001008,r1001049
    #[arg(long, value_name = "EVENTS", help_heading = "Live VMs")]
    pub walk_events: Option<String>,
    /// Raw events whose sum is TLB misses
    #[arg(long, value_name = "EVENTS", help_heading = "Live VMs")]
    pub miss_events: Option<String>,
    /// Add cycles of the nested dimension's walks where they are counted apart (Skylake)
    #[arg(long, help_heading = "Live VMs")]
    pub nested_walks: bool,
    /// Cycles per walk, an estimate, where only walks are counted (Zen)
    #[arg(long, value_name = "N", help_heading = "Live VMs")]
    pub cycles_per_walk: Option<u32>,
    /// Train a model of the policy svm: from samples with a column best_mode, or from runs of the
    /// same
    /// work in either mode, two after two
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["pid", "replay"])]
    pub train: Vec<PathBuf>,
    /// Where the trained model goes
    #[arg(long, value_name = "FILE", requires = "train")]
    pub save_model: Option<PathBuf>,
    /// With --train: also write the rows with their best modes, as CSV that --train reads
    #[arg(long, value_name = "FILE", requires = "train")]
    pub save_rows: Option<PathBuf>,
    /// Another /proc
    #[arg(long, hide = true)]
    pub proc: Option<PathBuf>,
    /// Another /sys
    #[arg(long, hide = true)]
    pub sys: Option<PathBuf>,
}

/// A paging mode.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum ModeArg {
    /// Shadow page tables.
    Shadow,
    /// Two-dimensional paging.
    Nested,
}

impl From<ModeArg> for nestwalk_policy::Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Shadow => Self::Shadow,
            ModeArg::Nested => Self::Nested,
        }
    }
}
