//! From what was typed to a guest that is ready to boot.

use crate::args::{GuestArgs, ThpArg};
use anyhow::{Context, Result};
use nestwalk_capture::live::LiveOptions;
use nestwalk_capture::{Boot, Cache, Guest, Thp};
use nestwalk_report::parse_bytes;
use std::ffi::OsString;

impl From<ThpArg> for Thp {
    fn from(arg: ThpArg) -> Self {
        match arg {
            ThpArg::Always => Self::Always,
            ThpArg::Madvise => Self::Madvise,
            ThpArg::Never => Self::Never,
        }
    }
}

/// What is recorded of it.
pub const fn options(args: &GuestArgs) -> LiveOptions {
    LiveOptions {
        boot: args.boot,
        interest: args.interest,
        check: args.check,
        filter: !args.no_filter,
    }
}

/// Makes the guest ready: finds its pieces and builds its root file system.
///
/// # Errors
/// A piece is missing, or the command cannot run in the guest.
pub fn boot(
    args: &GuestArgs,
    command: &[OsString],
    (vcpus, seed): (u8, u64),
    quiet: bool,
) -> Result<Boot> {
    let guest = Guest {
        packages: args.packages.clone(),
        include: args.include.clone(),
        memory_bytes: parse_bytes(&args.memory).context("--memory")?,
        vcpus: u32::from(vcpus),
        thp: args.thp.into(),
        pti: args.pti,
        aslr: args.aslr,
        seed,
        ..Guest::new(command.to_vec())
    };
    let cache = Cache::locate()?;
    let mut say = |text: &str| {
        if !quiet {
            eprintln!("{text}");
        }
    };
    Ok(guest.boot(&cache, &mut say)?)
}

/// Why two recordings of the guest may differ, if they may.
pub fn irreproducible(boot: &Boot, options: LiveOptions) -> Option<String> {
    let guest = boot.guest();
    if guest.vcpus > 1 {
        return Some("several vCPUs run as the host lets them".into());
    }
    let _ = options;
    guest.aslr.then(|| "addresses are random in the guest".into())
}
