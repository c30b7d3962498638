//! Arguments of real guests: of `capture`, and of `compare --guest`.

use crate::formats::Format;
use clap::{Args as ClapArgs, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

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
