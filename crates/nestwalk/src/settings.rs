//! From what was typed to what the lab is asked for.

use crate::args::{CompareArgs, GapArg, GuestArgs, PopulateArg, SampleArgs, ThpArg};
use anyhow::{Context, Result, anyhow, bail};
use nestwalk_capture::Thp;
use nestwalk_lab::{Experiment, Lab, PageTablesFile, RealGuest, Settings, words};
use nestwalk_mm::LOW_MEMORY_BYTES;
use nestwalk_report::{parse_bytes, parse_count};
use nestwalk_sim::DaemonTimes;
use std::ffi::OsString;
use std::path::Path;

/// What `--page-tables` says if the trace's own are not to be used.
const NO_TABLES: &str = "none";

/// The lab of the command line.
pub const fn lab() -> Lab {
    Lab::new().for_command_line(crate::tell::note)
}

/// The experiment that the arguments mean.
///
/// # Errors
/// An argument has no meaning.
pub fn experiment(args: &CompareArgs) -> Result<Experiment> {
    lab().experiment(&settings(args)?)
}

/// What the arguments ask for.
///
/// # Errors
/// An argument has no meaning.
pub fn settings(args: &CompareArgs) -> Result<Settings> {
    check_command(args)?;
    let vcpus = args.vcpus;
    let guest = args.guest.then(|| real_guest(&args.real, &args.command, vcpus, args.seed));
    Ok(Settings {
        sources: args.sources.clone(),
        lackey: if args.lackey { command(&args.command)? } else { Vec::new() },
        guest: guest.transpose()?,
        trace_format: args.trace_format.clone().unwrap_or_default(),
        page_tables: match args.page_tables.as_deref() {
            None => PageTablesFile::OfTrace,
            Some(NO_TABLES) => PageTablesFile::None,
            Some(file) => PageTablesFile::File(file.into()),
        },
        host_page_tables: args.host_page_tables.clone(),
        machines: args.machines.clone(),
        page_size: words::pages("--page-size", &args.page_size)?,
        profile: args.profile.clone(),
        footprint: size("--footprint", args.footprint.as_deref())?,
        accesses: times("--accesses", args.accesses.as_deref())?,
        warmup: parse_count(&args.warmup).context("--warmup")?,
        populate: match args.populate {
            PopulateArg::Auto => None,
            PopulateArg::Yes => Some(true),
            PopulateArg::No => Some(false),
        },
        seed: args.seed,
        verify: args.verify,
        vcpus,
        quantum: times("--quantum", args.quantum.as_deref())?,
        guest_memory: size("--guest-memory", args.guest_memory.as_deref())?,
        host_memory: size("--host-memory", args.host_memory.as_deref())?,
        low_memory: low_memory(args)?,
        guest_swap: args.guest_swap.clone(),
        guest_paging: args.guest_paging.clone(),
        host_paging: args.host_paging.clone(),
        guest_fragmentation: words::fragmentation(
            "--guest-fragmentation",
            &args.guest_fragmentation,
        )?,
        host_fragmentation: words::fragmentation("--host-fragmentation", &args.host_fragmentation)?,
        guest_bad: args.guest_bad,
        guest_bad_at: words::frames(
            "--guest-bad-at",
            args.guest_bad_at.as_deref().unwrap_or_default(),
        )?,
        daemons: daemons(args.daemons.as_deref())?,
        pcids: !args.no_pcids,
        approximate: args.approximate,
        sample: sample(&args.sample)?,
    })
}

/// What `--sample` says, with the points of the files.
fn sample(args: &SampleArgs) -> Result<String> {
    let text = args.sample.clone().unwrap_or_default();
    let (Some(points), Some(weights)) = (&args.simpoints, &args.weights) else { return Ok(text) };
    let read = |file: &Path| {
        std::fs::read_to_string(file).with_context(|| format!("{}: cannot be read", file.display()))
    };
    let points = nestwalk_lab::sampling::simpoints(&read(points)?, &read(weights)?);
    Ok(format!("{text},{}", points.context("--simpoints")?))
}

/// Whether there is a command for whoever runs one, and nothing beside it.
fn check_command(args: &CompareArgs) -> Result<()> {
    for (option, given) in [("--lackey", args.lackey), ("--guest", args.guest)] {
        if given && !args.sources.is_empty() {
            let sources = args.sources.join(" ");
            bail!("{option} runs a command, so there can be no other source: {sources}");
        }
    }
    if !args.lackey && !args.guest && !args.command.is_empty() {
        bail!(
            "a command after `--` needs --guest or --lackey, as in: compare --guest -- gcc -c x.c"
        );
    }
    Ok(())
}

fn command(words: &[OsString]) -> Result<Vec<String>> {
    let word = |w: &OsString| {
        w.to_str().map(String::from).ok_or_else(|| anyhow!("{}: not valid UTF-8", w.display()))
    };
    words.iter().map(word).collect()
}

/// The real guest that arguments mean.
///
/// # Errors
/// A size that is none, a command that is no text.
pub fn real_guest(
    args: &GuestArgs,
    words: &[OsString],
    vcpus: Option<u8>,
    seed: u64,
) -> Result<RealGuest> {
    let thp = match args.thp {
        ThpArg::Always => Thp::Always,
        ThpArg::Madvise => Thp::Madvise,
        ThpArg::Never => Thp::Never,
    };
    Ok(RealGuest {
        command: command(words)?,
        memory: parse_bytes(&args.memory).context("--memory")?,
        vcpus: vcpus.unwrap_or(1),
        thp: thp.to_string(),
        packages: args.packages.clone(),
        kernel: args.kernel.clone().unwrap_or_default(),
        rootfs: args.rootfs.clone().unwrap_or_default(),
        include: args.include.clone().unwrap_or_default(),
        boot: args.boot,
        interest: args.interest,
        pti: args.pti,
        aslr: args.aslr,
        check: args.check,
        filter: !args.no_filter,
        seed,
    })
}

fn size(option: &'static str, text: Option<&str>) -> Result<Option<u64>> {
    text.map(parse_bytes).transpose().context(option)
}

fn times(option: &'static str, text: Option<&str>) -> Result<Option<u64>> {
    text.map(parse_count).transpose().context(option)
}

/// What `--daemons` says.
fn daemons(text: Option<&str>) -> Result<DaemonTimes> {
    DaemonTimes::parse(text.unwrap_or_default()).map_err(|e| anyhow!(e)).context("--daemons")
}

fn low_memory(args: &CompareArgs) -> Result<Option<u64>> {
    match (args.io_gap, &args.low_memory) {
        (GapArg::Kept, Some(text)) => {
            bail!("--low-memory {text}: is for --io-gap reclaimed")
        }
        (GapArg::Kept, None) => Ok(None),
        (GapArg::Reclaimed, None) => Ok(Some(LOW_MEMORY_BYTES)),
        (GapArg::Reclaimed, Some(text)) => Ok(Some(parse_bytes(text).context("--low-memory")?)),
    }
}
