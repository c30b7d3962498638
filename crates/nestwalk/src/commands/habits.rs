//! `completions` and `man`: from the command line's own description.

use crate::args::{Args, CompletionsArgs, ManArgs};
use anyhow::{Context, Result};
use clap::CommandFactory;
use std::io::Write;

/// `nestwalk completions`.
///
/// # Errors
/// Standard output cannot be written.
pub fn completions(args: &CompletionsArgs) -> Result<()> {
    // Into memory first: the generator panics if its writer fails.
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "nestwalk", &mut text);
    std::io::stdout().lock().write_all(&text)?;
    Ok(())
}

/// `nestwalk man`.
///
/// # Errors
/// The folder cannot be made or written.
pub fn man(args: &ManArgs) -> Result<()> {
    let folder = &args.folder;
    let place = || folder.display().to_string();
    std::fs::create_dir_all(folder).with_context(place)?;
    clap_mangen::generate_to(Args::command(), folder).with_context(place)?;
    let pages = std::fs::read_dir(folder).with_context(place)?.flatten();
    let ours = |name: &str| name.starts_with("nestwalk") && name.ends_with(".1");
    let n = pages.filter(|page| page.file_name().to_str().is_some_and(ours)).count();
    crate::tell::say(&format!(
        "{n} pages in {}: man -l {}",
        place(),
        folder.join("nestwalk.1").display()
    ));
    Ok(())
}
