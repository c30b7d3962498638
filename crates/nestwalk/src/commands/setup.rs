//! `setup`: what real guests need.

use crate::args::SetupArgs;
use crate::progress::Phases;
use anyhow::Result;
use nestwalk_capture::{Cache, KernelChoice, Step, build_plugin, plugin_api, prepare};
use std::path::{Path, PathBuf};

/// The repository that this program was built in, if it is still there.
pub(super) fn built_in() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new(".")).to_path_buf()
}

/// `nestwalk setup`.
///
/// # Errors
/// QEMU or a compiler is missing, or a download fails.
pub fn setup(args: &SetupArgs) -> Result<()> {
    let phases = Phases::new(args.quiet);
    let say = &mut |step: Step<'_>| phases.step(step, &mut crate::tell::say);
    let cache = Cache::locate()?;
    let kernel = KernelChoice::of(args.kernel.as_deref().unwrap_or_default());
    // First what takes seconds to find missing.
    let qemu = Path::new("qemu-system-x86_64");
    nestwalk_capture::qemu_version(qemu)?;
    let source = args.source.clone().unwrap_or_else(built_in);
    let plugin = build_plugin(&cache, &source, say)?;
    let api = plugin_api(qemu, &plugin)?;
    say(Step::Found(&format!(
        "plugin, with version {api} of QEMU's interface: {}",
        plugin.display()
    )));
    prepare(&cache, qemu, &kernel, &args.packages, say)?;
    Ok(())
}
