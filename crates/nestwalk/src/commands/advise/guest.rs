//! Advice on a command that runs in a real guest: it is recorded, and the recording advised on.

use super::of_source;
use crate::args::{AdviseArgs, CaptureArgs};
use crate::commands::capture;
use crate::commands::compare::of_command;
use crate::formats::Format;
use anyhow::{Result, anyhow};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A recording that goes when nobody needs it any more.
struct Recording(PathBuf);

impl Drop for Recording {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// `nestwalk advise --guest -- COMMAND`. The exit code is 1 if the command failed.
///
/// # Errors
/// The guest cannot be recorded, or what of its recording cannot be advised on.
pub fn advise(args: &AdviseArgs, stop: &Arc<AtomicBool>) -> Result<ExitCode> {
    let name = format!("nestwalk-advise-{}.nwt", std::process::id());
    let recording = Recording(std::env::temp_dir().join(name));
    let capture = CaptureArgs {
        command: args.command.clone(),
        save: Some(recording.0.clone()),
        vcpus: 1,
        seed: args.seed,
        guest: args.real.clone(),
        prepare: false,
        format: Format::default(),
        quiet: args.quiet,
    };
    let failed = capture::save(&capture, stop)?;
    let path = recording.0.to_str().ok_or_else(|| {
        anyhow!(
            "{}: the folder for temporary files has a name that is no text",
            recording.0.display()
        )
    })?;
    let words: Vec<_> = args.command.iter().map(|word| word.to_string_lossy()).collect();
    of_source(args, path, &format!("{} in a guest", words.join(" ")), stop)?;
    Ok(of_command(failed.as_deref()))
}
