//! `trace`: what is in a recorded guest's trace, whether it is sound, and conversion.

mod convert;
mod info;
mod read;
mod verify;

use crate::args::TraceCommand;
use anyhow::{Context, Result};
use std::io::Write;

/// `nestwalk trace`.
pub fn trace(command: &TraceCommand) -> Result<()> {
    match command {
        TraceCommand::Info(args) => info::info(args),
        TraceCommand::Verify(args) => verify::verify(args),
        TraceCommand::Convert(args) => convert::convert(args),
    }
}

fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output")
}
