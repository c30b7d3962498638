//! What can be typed. Parsing has no effects; what it means is decided in `experiment`.

mod evaluate;
pub mod formats;
mod inspect;
mod setup;

pub use evaluate::{BenchArgs, ExplainArgs, KeepArg, LivedArg, Publication, ReproduceArgs};
pub use inspect::InspectArgs;
pub use setup::SetupArgs;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
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

Exit code 0: done. 2: something was wrong, or interrupted; what was computed before is printed.";

const CAPTURE_EXAMPLES: &str = "\
Examples:
  nestwalk capture --save gcc.nwt -- gcc -O2 -c file.c
  nestwalk capture --package redis-server --vcpus 2 --save redis.nwt -- sh load.sh
  nestwalk capture --check --thp never -- ./static-program argument
  nestwalk compare gcc.nwt

Programs come from Debian packages; files and directories that the command's arguments name are copied
into the guest. The exit code is 1 if the command failed, and 2 if something else was wrong; standard error
says what.
`nestwalk setup` gets what this needs.";

const GOVERN_EXAMPLES: &str = "\
Examples:
  nestwalk govern --list
  nestwalk govern 4711 --policy dynamic-thresholds:high=12,low=3 --record samples.csv
  nestwalk govern --dry-run
  nestwalk govern --replay samples.csv --policy single-metric
  nestwalk govern --replay shadow.csv nested.csv --policy hindsight

Live, it counts cycles, instructions, page walks and TLB misses of the vCPU threads of a QEMU with KVM,
asks the policy after each interval, and writes the mode to KVM's file for that VM, which takes the
kernel patch of Runtime-aware Paging Mode Switching. Ctrl-C ends it and says in which mode the VM is.

Exit code 0: the VM exited, the recording ended, or Ctrl-C. 2: something was wrong.";

const REPRODUCE_EXAMPLES: &str = "\
Examples:
  nestwalk reproduce thesis --programs seasons,btree --keep nested --lived long
  nestwalk reproduce thesis --recordings DIR --format json
  nestwalk reproduce agile

samples/thesis/record DIR records programs of the thesis: gcc, perl, sqlite, xalan, redis, x264, vips.";

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
    /// Show one translation, reference by reference
    Walk(WalkArgs),
    /// Look into, check and convert traces of recorded guests
    #[command(subcommand)]
    Trace(TraceCommand),
    /// Watch a VM, live or recorded, and change its paging mode when a policy says so
    #[command(after_help = GOVERN_EXAMPLES)]
    Govern(Box<GovernArgs>),
    /// Look at the memory of a live process or VM: contiguous runs, and how many entries cover them
    #[command(after_help = inspect::EXAMPLES)]
    Inspect(Box<InspectArgs>),
    /// Repeat a publication's evaluation, with the workloads that can be had here
    #[command(after_help = REPRODUCE_EXAMPLES)]
    Reproduce(Box<ReproduceArgs>),
    /// List schemes, policies, page sizes, placements, profiles, workloads and patterns
    Schemes,
    /// Explain a scheme, a policy, a profile, a workload, or a field of the results
    Explain(ExplainArgs),
    /// Measure the simulator itself: accesses per second of each scheme
    Bench(BenchArgs),
}

/// How results are printed.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// A table for people.
    #[default]
    Table,
    /// One JSON object.
    Json,
    /// A row per machine.
    Csv,
}

/// Where results go and how the work is done: nothing here changes a result.
#[derive(ClapArgs, Debug, Clone)]
pub struct OutputArgs {
    /// How results are printed
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Also write results.json, results.csv, table.txt and the resolved config.toml into DIR
    #[arg(long, value_name = "DIR")]
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
    #[arg(long, requires = "command")]
    pub lackey: bool,
    /// The command after `--` runs in a real Linux guest under QEMU, whose accesses, page tables,
    /// faults
    /// and flushes drive the machines live
    #[arg(long, requires = "command", conflicts_with = "lackey")]
    pub guest: bool,
    /// The command for --lackey or --guest
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
    /// Machines, separated by commas: scheme[/kind][:guest pages[+host
    /// pages]][@placement[+placement]].
    /// The controls `ideal` and `native` are added. Of a recorded guest: `observed` in place of
    /// guest
    /// pages, the default, is the guest as it was; page sizes re-map its processes
    #[arg(long, default_value = "native,shadow,nested")]
    pub machines: String,
    /// Hardware profile: a built-in name or a .toml file
    #[arg(long, default_value = "cascade-lake-6252")]
    pub profile: String,
    /// Memory that a workload or pattern works on [default: 4GiB; 1GiB with 32-bit paging]
    #[arg(long, value_name = "BYTES")]
    pub footprint: Option<String>,
    /// Accesses to simulate, after set-up and warm-up; 0 for all that there are [default: 20M for
    /// workloads and patterns, all of a trace or program]
    #[arg(long, value_name = "COUNT")]
    pub accesses: Option<String>,
    /// Page sizes of machines that do not name theirs: 4k, thp, khugepaged, 2m, 4m, 1g
    #[arg(long, default_value = "4k")]
    pub page_size: String,
    /// Decides every random choice
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The referee checks every access of every machine
    #[arg(long)]
    pub verify: bool,
    /// Accesses that are simulated first and not counted
    #[arg(long, value_name = "COUNT", default_value = "0")]
    pub warmup: String,
    /// Whether memory of workloads and patterns is present before counting begins; `auto` is yes up
    /// to 64 GiB
    #[arg(long, value_enum, default_value_t)]
    pub populate: PopulateArg,
    /// vCPUs that the processes share [default: 1; those of a recorded guest]
    #[arg(long)]
    pub vcpus: Option<u8>,
    /// Instructions of a process's turn where several share a vCPU [default: 100k]
    #[arg(long, value_name = "COUNT")]
    pub quantum: Option<String>,
    /// Guest memory [default: twice the footprint and 8 GiB; that of a recorded guest]
    #[arg(long, value_name = "BYTES")]
    pub guest_memory: Option<String>,
    /// Host memory [default: 1.25 times the guest's and 8 GiB]
    #[arg(long, value_name = "BYTES")]
    pub host_memory: Option<String>,
    /// Memory below the gap for I/O (3 to 4 GiB): kept, or reclaimed, that is unplugged, and guest
    /// memory
    /// above 4 GiB extended by as much
    #[arg(long, value_enum, default_value_t)]
    pub io_gap: GapArg,
    /// With --io-gap reclaimed: what stays below the gap all the same [default: 256MiB]
    #[arg(long, value_name = "BYTES")]
    pub low_memory: Option<String>,
    /// Paging mode of the guest: 4-level, 5-level, pae, 2-level [default: 4-level; that of a
    /// recorded
    /// guest]
    #[arg(long)]
    pub guest_paging: Option<String>,
    /// Paging mode of nested tables and of the host: 4-level, 5-level
    #[arg(long, default_value = "4-level")]
    pub host_paging: String,
    /// Fragmentation of guest memory at the start: a degree from 0 to 1; fresh, aged or bad; or a
    /// file like /proc/buddyinfo or /proc/pagetypeinfo, whose proportions it gets
    #[arg(long, value_name = "DEGREE|NAME|FILE", default_value = "0")]
    pub guest_fragmentation: String,
    /// Fragmentation of host memory at the start: a degree from 0 to 1; fresh, aged or bad; or a
    /// file like /proc/buddyinfo or /proc/pagetypeinfo, whose proportions it gets
    #[arg(long, value_name = "DEGREE|NAME|FILE", default_value = "0")]
    pub host_fragmentation: String,
    /// So many frames of guest memory are faulty, at random places (--seed)
    #[arg(long, value_name = "N")]
    pub guest_bad: Option<u64>,
    /// These frames of guest memory are faulty, by number (gPA / 4096), up to 64
    #[arg(long, value_name = "FRAME+FRAME", conflicts_with = "guest_bad")]
    pub guest_bad_at: Option<String>,
    /// When daemons run (page sizes `khugepaged`, placement `ranger`), and how much they do, as in
    /// ranger-interval-ms=2,ranger-pages=65536. Published intervals are seconds, which a short run does
    /// not have: see `nestwalk schemes` for keys
    #[arg(long, value_name = "KEY=VALUE,...")]
    pub daemons: Option<String>,
    /// The guest does not use PCIDs: every switch empties its TLBs
    #[arg(long)]
    pub no_pcids: bool,
    /// The guest of --guest.
    #[command(flatten)]
    pub real: GuestArgs,
    /// TLBs that a filtered recording is not exact for are simulated all the same; the results name
    /// them
    #[arg(long)]
    pub approximate: bool,
    #[arg(long, value_name = "FORMAT", help = formats::read(), long_help = formats::described())]
    pub trace_format: Option<String>,
    /// Page tables that come with the trace, a line with virtual and physical address for each page,
    /// or the v2p.textproto of a drmemtrace, or a drmemtrace with markers of physical addresses: they
    /// become those of an observed guest; none: not even those that come with a drmemtrace unasked
    #[arg(long, value_name = "FILE", conflicts_with_all = ["lackey", "guest"])]
    pub page_tables: Option<String>,
    /// The host's page tables beside them, a line with guest-physical and host-physical address for each
    /// page: where every host has guest memory
    #[arg(long, value_name = "FILE", requires = "page_tables")]
    pub host_page_tables: Option<String>,
    /// A table of energies, too: per instruction, and above the ideal machine's. JSON and CSV
    /// always
    /// have them
    #[arg(long)]
    pub energy: bool,
    /// A table of how much each price of the profile's software section decides: by how many points of
    /// overhead
    /// each machine moves when it is halved and doubled
    #[arg(long)]
    pub sensitivity: bool,
    /// A table of contiguity, too, and the field in JSON and CSV: runs of mapped pages at the end, per
    /// dimension and for both together, and how many entries of each technique cover them
    #[arg(long)]
    pub contiguity: bool,
    /// With --contiguity: what it was every so many instructions, set-up included
    #[arg(long, value_name = "INSTRUCTIONS", requires = "contiguity")]
    pub contiguity_every: Option<String>,
    /// Where results go.
    #[command(flatten)]
    pub output: OutputArgs,
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

/// What a real guest is like.
#[derive(ClapArgs, Debug, Clone)]
pub struct GuestArgs {
    /// Memory of the guest
    #[arg(long, value_name = "BYTES", default_value = "2GiB", help_heading = "Real guests")]
    pub memory: String,
    /// When the guest's kernel uses 2 MiB pages for anonymous memory
    #[arg(long, value_enum, default_value_t, help_heading = "Real guests")]
    pub thp: ThpArg,
    /// A Debian package to have in the guest; may be given several times
    #[arg(long = "package", value_name = "NAME", help_heading = "Real guests")]
    pub packages: Vec<String>,
    /// Its kernel: a version that Debian has a package of (6.12), the package, or a bzImage or vmlinux
    /// file [default: the newest of the system's own release]
    #[arg(long, value_name = "VERSION|PACKAGE|FILE", help_heading = "Real guests")]
    pub kernel: Option<String>,
    /// Its root file system in place of Debian packages: a directory (an unpacked container image, say),
    /// a tar archive, or the image of an ext or squashfs file system
    #[arg(
        long,
        value_name = "DIR|TAR|IMAGE",
        conflicts_with = "packages",
        help_heading = "Real guests"
    )]
    pub rootfs: Option<PathBuf>,
    /// A directory whose contents the command finds where it runs
    #[arg(long, value_name = "DIR", help_heading = "Real guests")]
    pub include: Option<PathBuf>,
    /// The boot is recorded, too
    #[arg(long, help_heading = "Real guests")]
    pub boot: bool,
    /// Recording begins where the program marks its region of interest, with the instruction
    /// `nopl 0xf5a00003(%rax)` or the program `nestwalk-mark 3`, and ends at mark 4 or with the
    /// command
    #[arg(long, conflicts_with = "boot", help_heading = "Real guests")]
    pub interest: bool,
    /// Page-table isolation: CR3 changes at each entry to the guest's kernel
    #[arg(long, help_heading = "Real guests")]
    pub pti: bool,
    /// Addresses are random in the guest; recordings then differ
    #[arg(long, help_heading = "Real guests")]
    pub aslr: bool,
    /// QEMU's translation of every run is compared with what the recorded page tables say
    #[arg(long, help_heading = "Real guests")]
    pub check: bool,
    /// Only consecutive accesses to a page are folded: many more runs, for TLBs that a filtered
    /// recording does not do for
    #[arg(long, help_heading = "Real guests")]
    pub no_filter: bool,
}

/// When the guest's kernel uses huge pages.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ThpArg {
    /// Wherever they fit: Debian's default.
    #[default]
    Always,
    /// Where the program asks for it.
    Madvise,
    /// Nowhere.
    Never,
}

/// Options of `capture`.
#[derive(ClapArgs, Debug, Clone)]
pub struct CaptureArgs {
    /// The command that runs in the guest
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
    /// Write the trace to FILE
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// vCPUs; several run in parallel, and recordings then differ
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    pub vcpus: u8,
    /// Decides what is random in the guest's machine
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The guest.
    #[command(flatten)]
    pub guest: GuestArgs,
    /// First get the kernel, busybox and packages that are missing
    #[arg(long)]
    pub prepare: bool,
    /// How the summary is printed; with json the command's output goes to standard error
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Neither progress nor summary on standard error
    #[arg(long, short)]
    pub quiet: bool,
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
    /// A table of energies, too, as for `compare`
    #[arg(long)]
    pub energy: bool,
    /// A table of how much each price of the profile's software section decides: by how many points of
    /// overhead
    /// each machine moves when it is halved and doubled
    #[arg(long)]
    pub sensitivity: bool,
    /// A table of contiguity, too, as for `compare`
    #[arg(long)]
    pub contiguity: bool,
    /// With --contiguity: what it was every so many instructions, set-up included
    #[arg(long, value_name = "INSTRUCTIONS", requires = "contiguity")]
    pub contiguity_every: Option<String>,
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
    /// paging]
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
    /// Paging mode of the guest
    #[arg(long, default_value = "4-level")]
    pub guest_paging: String,
    /// Paging mode of nested tables
    #[arg(long, default_value = "4-level")]
    pub host_paging: String,
    /// How the steps are printed
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

const CONVERT_HELP: &str = "\
Examples:
  nestwalk trace convert live.nwt small.nwt --level 22
  nestwalk trace convert gcc.nwt gcc.champsim.xz --user-only --process 87
  nestwalk trace convert trace.champsim.xz trace.nwt
  nestwalk trace convert pinatrace.out trace.drmemtrace.gz --accesses 10M

To nestwalk: a trace of nestwalk is compressed again; any other is given to a modelled Linux
guest with 4 KiB pages, whose page tables, faults and invalidations become part of the trace, or,
with --page-tables, to an observed one that has those.

To champsim, cloudsuite, lackey and drmemtrace, from a trace of accesses: access by access. What
the format has no place for is counted and said: sizes, processes, kernel mode, addresses of
instructions that were not fetched. Accesses cover the cache lines that they did.

To them from a recorded guest: an instruction for each cache line of a fetch run and for each data run,
which accesses the run's first address and loads from each further line that it touched. Lost
are: how often and when lines were touched again, sizes (all are 1 byte), page tables and address
spaces (processes are mixed unless --process chooses one), and branches. Instructions that make
no run are left out unless --all-instructions is given.";

/// What is done with traces of guests.
#[derive(Subcommand, Debug)]
pub enum TraceCommand {
    /// What a trace of any format holds, after reading it, and what made it
    Info(TraceInfoArgs),
    /// Check checksums, order, totals, and that every access has a mapping in the recorded page
    /// tables
    Verify(TraceVerifyArgs),
    /// Compress again, cut, and convert from and to other formats
    #[command(after_help = CONVERT_HELP)]
    Convert(Box<TraceConvertArgs>),
}

/// Options of `trace info`.
#[derive(ClapArgs, Debug, Clone)]
pub struct TraceInfoArgs {
    /// A trace of nestwalk, or any that `compare` reads
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Format of FILE, instead of telling it by the contents
    #[arg(long, value_name = "FORMAT")]
    pub trace_format: Option<String>,
    /// How it is printed: table or json
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// No progress on standard error
    #[arg(long, short)]
    pub quiet: bool,
}

/// Options of `trace verify`.
#[derive(ClapArgs, Debug, Clone)]
pub struct TraceVerifyArgs {
    /// A trace of nestwalk
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// How the verdict is printed: table or json
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// No progress on standard error
    #[arg(long, short)]
    pub quiet: bool,
}

/// Options of `trace convert`.
#[derive(ClapArgs, Debug, Clone)]
pub struct TraceConvertArgs {
    /// The trace to read: of nestwalk, or any that `compare` reads
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    #[arg(value_name = "OUT", help = formats::output())]
    pub output: PathBuf,
    #[arg(long, value_name = "FORMAT", help = formats::written())]
    pub to: Option<String>,
    /// Format of IN, instead of telling it by the contents
    #[arg(long, value_name = "FORMAT")]
    pub trace_format: Option<String>,
    /// Only so many accesses from the beginning of the region of interest; of a recorded guest rounded
    /// up to a whole run
    #[arg(long, value_name = "COUNT")]
    pub accesses: Option<String>,
    /// Page tables that come with IN, as for `compare`
    #[arg(long, value_name = "FILE")]
    pub page_tables: Option<PathBuf>,
    /// To nestwalk: level of compression, 1 to 22 [default: 19]
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..=22))]
    pub level: Option<i32>,
    /// To nestwalk: keep the lowest 6 bits of addresses, if IN has them
    #[arg(long)]
    pub whole_addresses: bool,
    /// Of a recorded Linux guest: as if its processor had PCIDs, which QEMU's has not
    #[arg(long)]
    pub pcids: bool,
    /// To nestwalk from other formats: memory of the modelled guest
    #[arg(long, value_name = "BYTES", default_value = "16GiB")]
    pub guest_memory: String,
    /// To other formats: leave out the kernel
    #[arg(long)]
    pub user_only: bool,
    /// To other formats: only the process of this number
    #[arg(long, value_name = "PID")]
    pub process: Option<u32>,
    /// To other formats: the vCPU, if there are several
    #[arg(long, value_name = "N")]
    pub vcpu: Option<u8>,
    /// To other formats: as many instructions as were retired, not only those of runs
    #[arg(long)]
    pub all_instructions: bool,
    /// No progress on standard error
    #[arg(long, short)]
    pub quiet: bool,
}

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

#[cfg(test)]
mod tests {
    use super::Args;
    use clap::CommandFactory;

    #[test]
    fn the_surface_is_consistent() {
        Args::command().debug_assert();
    }
}
