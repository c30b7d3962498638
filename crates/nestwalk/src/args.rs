//! What can be typed. Parsing has no effects; what it means is decided in `experiment`.

mod advise;
mod class;
mod conform;
mod evaluate;
mod examples;
mod fleet;
mod govern;
pub mod groups;
mod guest;
mod habits;
mod inspect;
mod measure;
mod report;
mod sample;
mod schema;
mod setup;
mod sweep;
mod tables;
mod trace;
pub mod trace_formats;

pub use advise::AdviseArgs;
pub use class::{ReachArgs, SceneArg, StepArgs};
pub use conform::ConformArgs;
pub use evaluate::{BenchArgs, ExplainArgs, KeepArg, LivedArg, Publication, ReproduceArgs};
pub use fleet::FleetArgs;
pub use govern::GovernArgs;
pub use guest::{CaptureArgs, GuestArgs, ThpArg};
pub use habits::{CompletionsArgs, DoctorArgs, ManArgs};
pub use inspect::InspectArgs;
pub use measure::MeasureArgs;
pub use report::{Drawing, ReportArgs};
pub use sample::SampleArgs;
pub use schema::SchemaArgs;
#[cfg(feature = "schema")]
pub use schema::SchemaOf;
pub use setup::SetupArgs;
pub use sweep::SweepArgs;
pub use tables::TableArgs;
pub use trace::{TraceCommand, TraceConvertArgs, TraceInfoArgs, TraceVerifyArgs};

use crate::formats::{self, Format};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use examples::{CAPTURE_EXAMPLES, GOVERN_EXAMPLES, REPRODUCE_EXAMPLES};
use std::ffi::OsString;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  nestwalk compare
  nestwalk compare kvstore --footprint 64GiB --machines native,shadow,nested,nested:thp
  nestwalk compare gups forkstorm --vcpus 2 --format json --output results
  nestwalk compare trace.champsim.xz --accesses 50M --warmup 10M
  nestwalk compare --lackey -- gcc -O2 -c file.c
  nestwalk compare --guest -- gcc -O2 -c file.c
  nestwalk compare btree --machines shadow,nested --samples samples --sample-every 100k
  nestwalk compare --vm 'a=redis; machine=shadow' --vm 'b=gcc; machine=nested'
  nestwalk compare redis --machines all --columns run-time,l2-tlb-mpki,vm_exits_total
  nestwalk compare gups --repeat 5 --format csv --long
  nestwalk compare storm --sample

`nestwalk explain WORD` says what a heading or another word of the table means.
Exit code 0: done. 2: something was wrong, or interrupted; what was computed before is printed.";

/// A laboratory for memory virtualization: real memory behaviour in, every technique of address
/// translation in one pass, what each costs and saves out.
#[derive(Parser, Debug)]
#[command(name = "nestwalk", version, max_term_width = 100)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Drive many machines with one source and compare them
    #[command(after_help = EXAMPLES)]
    Compare(Box<CompareArgs>),
    /// Get what real guests need: the plugin for QEMU, a kernel, busybox, packages
    #[command(after_help = setup::HELP)]
    Setup(SetupArgs),
    /// Boot a real Linux guest under QEMU, run a command in it, and record it
    #[command(after_help = CAPTURE_EXAMPLES)]
    Capture(Box<CaptureArgs>),
    /// Repeat an experiment from its configuration file (`compare --output DIR` writes one)
    Run(RunArgs),
    /// Run an experiment at many points: sizes, seeds, machines, anything of its configuration
    #[command(after_help = sweep::EXAMPLES)]
    Sweep(Box<SweepArgs>),
    /// Show one translation, reference by reference
    Walk(WalkArgs),
    /// Go through a fault, a flush or a mode switch: every change of tables and TLBs, in order
    #[command(after_help = class::STEP_EXAMPLES)]
    Step(StepArgs),
    /// Plot overhead against footprint: how far TLBs reach
    #[command(after_help = class::REACH_EXAMPLES)]
    Reach(ReachArgs),
    /// Look into, check and convert traces of recorded guests
    #[command(subcommand)]
    Trace(TraceCommand),
    /// Watch a VM, live or recorded, and change its paging mode when a policy says so
    #[command(after_help = GOVERN_EXAMPLES)]
    Govern(Box<GovernArgs>),
    /// Say whether a program or VM should have larger pages and where, and shadow or nested paging
    #[command(after_help = advise::EXAMPLES)]
    Advise(Box<AdviseArgs>),
    /// Look at the memory of a live process or VM: contiguous runs, and how many entries cover them
    #[command(after_help = inspect::EXAMPLES)]
    Inspect(Box<InspectArgs>),
    /// Measure the TLBs and page walks of this machine, from time alone, as a profile
    #[command(after_help = measure::EXAMPLES)]
    Measure(MeasureArgs),
    /// Compare the modelled KVM with the real one, event by event
    #[command(after_help = conform::EXAMPLES)]
    Conform(Box<ConformArgs>),
    /// Make a page of figures of results, and figures for papers
    #[command(after_help = report::EXAMPLES)]
    Report(ReportArgs),
    /// Repeat a publication's evaluation, with the workloads that can be had here
    #[command(after_help = REPRODUCE_EXAMPLES)]
    Reproduce(Box<ReproduceArgs>),
    /// List schemes, policies, page sizes, placements, profiles, workloads and patterns
    Schemes,
    /// Explain a scheme, a policy, a profile, a workload, or a field of the results
    Explain(ExplainArgs),
    /// Print the JSON schema of results
    #[command(after_help = schema::EXAMPLES)]
    Schema(SchemaArgs),
    /// Measure the simulator itself: accesses per second of each scheme
    Bench(BenchArgs),
    /// Say what is installed, what is missing, what needs it, and how to get it
    #[command(after_help = habits::DOCTOR_HELP)]
    Doctor(DoctorArgs),
    /// Print what a shell needs to complete commands, options and their values
    #[command(after_help = habits::COMPLETIONS_HELP)]
    Completions(CompletionsArgs),
    /// Write manual pages into a folder, one for each command
    #[command(after_help = habits::MAN_HELP)]
    Man(ManArgs),
}

/// Where results go and how the work is done: nothing here changes a result.
#[derive(ClapArgs, Debug, Clone)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// How results are printed
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// A folder that gets the results in every format
    #[arg(long, value_name = "DIR", help = formats::help_of_output())]
    pub output: Option<PathBuf>,
    /// Also write what a policy would see of each machine in shadow or nested mode into DIR, as CSV
    /// that `govern` replays and learns from: a file per machine
    #[arg(long, value_name = "DIR")]
    pub samples: Option<PathBuf>,
    /// With --samples: from sample to sample, simulated milliseconds (1ms) or instructions (100k),
    /// which cut all machines alike
    #[arg(long, value_name = "TIME|COUNT", default_value = "1ms", requires = "samples")]
    pub sample_every: String,
    /// Worker threads; results do not depend on it [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// No progress on standard error
    #[arg(long, short)]
    pub quiet: bool,
}

impl OutputArgs {
    /// Worker threads.
    ///
    /// # Errors
    /// None are asked for.
    pub fn threads(&self) -> anyhow::Result<usize> {
        match self.threads {
            Some(0) => anyhow::bail!("--threads 0: at least 1 is needed"),
            Some(n) => Ok(n),
            None => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
        }
    }
}

/// Options of `compare`.
#[derive(ClapArgs, Debug, Clone)]
pub struct CompareArgs {
    /// A recorded guest (`gcc`, the default, or a file), workloads (`gups`), patterns
    /// (`zipf:theta=0.9`) or trace files; several become several processes. With --guest or
    /// --lackey
    /// nothing: the command follows `--`. See `nestwalk schemes`
    #[arg(value_name = "SOURCE")]
    pub sources: Vec<String>,
    /// The command after `--` runs under valgrind's lackey tool and its accesses drive the machines
    /// live
    #[arg(long, requires = "command", help_heading = "Source")]
    pub lackey: bool,
    /// The command after `--` runs in a real Linux guest under QEMU, whose accesses, page tables,
    /// faults
    /// and flushes drive the machines live
    #[arg(long, requires = "command", conflicts_with = "lackey", help_heading = "Source")]
    pub guest: bool,
    /// The command for --lackey or --guest
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
    /// Machines, separated by commas: scheme[/kind][:guest pages[+host
    /// pages]][@placement[+placement]].
    /// The controls `ideal` and `native` are added. Of a recorded guest: `observed` in place of
    /// guest
    /// pages, the default, is the guest as it was; page sizes re-map its processes
    #[arg(long, default_value = "native,shadow,nested", help_heading = "Machines")]
    pub machines: String,
    /// Hardware profile: a built-in name or a .toml file
    #[arg(long, default_value = "cascade-lake-6252", help_heading = "Machines")]
    pub profile: String,
    /// Memory that a workload or pattern works on [default: 4GiB; 1GiB with 32-bit paging]
    #[arg(long, value_name = "BYTES", help_heading = "Source")]
    pub footprint: Option<String>,
    /// Accesses to simulate, after set-up and warm-up; 0 for all that there are [default: 20M for
    /// workloads and patterns, all of a trace or program]
    #[arg(long, value_name = "COUNT", help_heading = "Source")]
    pub accesses: Option<String>,
    /// Page sizes of machines that do not name theirs: 4k, thp, khugepaged, 2m, 4m, 1g
    #[arg(long, default_value = "4k", help_heading = "Machines")]
    pub page_size: String,
    /// Decides every random choice
    #[arg(long, default_value_t = 1, help_heading = "Machines")]
    pub seed: u64,
    /// The referee checks every access of every machine
    #[arg(long, help_heading = "Machines")]
    pub verify: bool,
    /// Accesses that are simulated first and not counted
    #[arg(long, value_name = "COUNT", default_value = "0", help_heading = "Source")]
    pub warmup: String,
    /// Whether memory of workloads and patterns is present before counting begins; `auto` is yes up
    /// to 64 GiB
    #[arg(long, value_enum, default_value_t, help_heading = "Source")]
    pub populate: PopulateArg,
    /// Which stretches are measured, if not all.
    #[command(flatten)]
    pub sample: SampleArgs,
    /// vCPUs that the processes share [default: 1; those of a recorded guest]
    #[arg(long, help_heading = "Source")]
    pub vcpus: Option<u8>,
    /// Instructions of a process's turn where several share a vCPU [default: 100k]
    #[arg(long, value_name = "COUNT", help_heading = "Source")]
    pub quantum: Option<String>,
    /// Guest memory [default: twice the footprint and 8 GiB; that of a recorded guest]
    #[arg(long, value_name = "BYTES", help_heading = "Memory")]
    pub guest_memory: Option<String>,
    /// Host memory [default: 1.25 times the guest's and 8 GiB]
    #[arg(long, value_name = "BYTES", help_heading = "Memory")]
    pub host_memory: Option<String>,
    /// Memory below the gap for I/O (3 to 4 GiB): kept, or reclaimed, that is unplugged, and guest
    /// memory
    /// above 4 GiB extended by as much
    #[arg(long, value_enum, default_value_t, help_heading = "Memory")]
    pub io_gap: GapArg,
    /// A modelled guest that is short of memory swaps pages of 4 KiB; which, a policy says: fifo, clock,
    /// two-lists, mglru, working-set
    #[arg(long, value_name = "POLICY", help_heading = "Memory")]
    pub guest_swap: Option<String>,
    /// With --io-gap reclaimed: what stays below the gap all the same [default: 256MiB]
    #[arg(long, value_name = "BYTES", help_heading = "Memory")]
    pub low_memory: Option<String>,
    /// Paging mode of the guest: 4-level, 5-level, pae, 2-level; sv39, sv48, sv57; arm-4k and others
    /// [default: 4-level; that of a recorded guest]
    #[arg(long, help_heading = "Machines")]
    pub guest_paging: Option<String>,
    /// Paging mode of nested tables and of the host: 4-level, 5-level; sv39x4, sv48x4, sv57x4;
    /// arm-4k-ipa40, arm-4k-ipa48 and others
    #[arg(long, default_value = "4-level", help_heading = "Machines")]
    pub host_paging: String,
    /// Fragmentation of guest memory at the start: a degree from 0 to 1; fresh, aged or bad; or a
    /// file like /proc/buddyinfo or /proc/pagetypeinfo, whose proportions it gets
    #[arg(long, value_name = "DEGREE|NAME|FILE", default_value = "0", help_heading = "Memory")]
    pub guest_fragmentation: String,
    /// Fragmentation of host memory at the start: a degree from 0 to 1; fresh, aged or bad; or a
    /// file like /proc/buddyinfo or /proc/pagetypeinfo, whose proportions it gets
    #[arg(long, value_name = "DEGREE|NAME|FILE", default_value = "0", help_heading = "Memory")]
    pub host_fragmentation: String,
    /// So many frames of guest memory are faulty, at random places (--seed)
    #[arg(long, value_name = "N", help_heading = "Memory")]
    pub guest_bad: Option<u64>,
    /// These frames of guest memory are faulty, by number (gPA / 4096), up to 64
    #[arg(long, value_name = "FRAME+FRAME", conflicts_with = "guest_bad", help_heading = "Memory")]
    pub guest_bad_at: Option<String>,
    /// When daemons run (page sizes `khugepaged`, placement `ranger`), and how much they do, as in
    /// ranger-interval-ms=2,ranger-pages=65536. Published intervals are seconds, which a short run does
    /// not have: see `nestwalk schemes` for keys
    #[arg(long, value_name = "KEY=VALUE,...", help_heading = "Memory")]
    pub daemons: Option<String>,
    /// The guest does not use PCIDs: every switch empties its TLBs
    #[arg(long, help_heading = "Machines")]
    pub no_pcids: bool,
    /// The guest of --guest.
    #[command(flatten)]
    pub real: GuestArgs,
    /// TLBs that a filtered recording is not exact for are simulated all the same; the results name
    /// them
    #[arg(long, help_heading = "Source")]
    pub approximate: bool,
    #[arg(long, value_name = "FORMAT", help = trace_formats::read(), long_help = trace_formats::described(), help_heading = "Source")]
    pub trace_format: Option<String>,
    /// Page tables that come with the trace, a line with virtual and physical address for each page,
    /// or the v2p.textproto of a drmemtrace, or a drmemtrace with markers of physical addresses: they
    /// become those of an observed guest; none: not even those that come with a drmemtrace unasked
    #[arg(long, value_name = "FILE", conflicts_with_all = ["lackey", "guest"], help_heading = "Source")]
    pub page_tables: Option<String>,
    /// The host's page tables beside them, a line with guest-physical and host-physical address for each
    /// page: where every host has guest memory
    #[arg(long, value_name = "FILE", requires = "page_tables", help_heading = "Source")]
    pub host_page_tables: Option<String>,
    /// The results also have which references of walks were served where, by what they read: the heat
    /// map of `report`
    #[arg(long)]
    pub walk_map: bool,
    /// Which tables are printed.
    #[command(flatten)]
    pub tables: TableArgs,
    /// Where results go.
    #[command(flatten)]
    pub output: OutputArgs,
    /// Several VMs on one host.
    #[command(flatten)]
    pub fleet: FleetArgs,
}

/// What becomes of memory below the gap for I/O.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum GapArg {
    /// It stays.
    #[default]
    Kept,
    /// It goes above 4 GiB.
    Reclaimed,
}

/// Whether memory is there before counting begins.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PopulateArg {
    /// Yes up to 64 GiB of footprint.
    #[default]
    Auto,
    /// Yes.
    Yes,
    /// First touches are measured.
    No,
}

/// Options of `run`.
#[derive(ClapArgs, Debug, Clone)]
pub struct RunArgs {
    /// The configuration, as `compare --output DIR` writes it
    #[arg(value_name = "FILE.toml")]
    pub file: PathBuf,
    /// Which tables are printed.
    #[command(flatten)]
    pub tables: TableArgs,
    /// Where results go.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Options of `walk`.
#[derive(ClapArgs, Debug, Clone)]
pub struct WalkArgs {
    /// The machine, as for `compare --machines`
    #[arg(default_value = "nested")]
    pub machine: String,
    /// Guest-virtual address, in hexadecimal [default: 0x7ffff7a01234; 0xb7a01234 with 32-bit
    /// paging; less with 39 bits]
    #[arg(long)]
    pub address: Option<String>,
    /// Hardware profile
    #[arg(long, default_value = "cascade-lake-6252")]
    pub profile: String,
    /// Page sizes if the machine does not name them
    #[arg(long, default_value = "4k")]
    pub page_size: String,
    /// Keep the profile's walk caches: references that they save are left out
    #[arg(long)]
    pub caches: bool,
    /// Paging mode of the guest: those of `compare`, and arm-16k, arm-64k and others
    #[arg(long, default_value = "4-level")]
    pub guest_paging: String,
    /// Paging mode of nested tables: those of `compare`, and arm-16k-ipa48, arm-64k-ipa48 and others
    #[arg(long, default_value = "4-level")]
    pub host_paging: String,
    /// Also draw it
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// How the steps are printed
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

#[cfg(test)]
mod tests {
    use super::Args;
    use clap::CommandFactory;

    #[test]
    fn the_surface_is_consistent() {
        Args::command().debug_assert();
    }
}
