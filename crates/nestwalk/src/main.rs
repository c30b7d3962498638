//! The `nestwalk` binary: arguments in, tables out. See `nestwalk --help`.

mod args;
mod commands;
mod experiment;
mod progress;
mod show;
mod sources;

use args::{Args, Command};
use clap::Parser;
use std::process::ExitCode;

/// 0: done. 2: something was wrong; the message says what, where, and what would be right.
fn main() -> ExitCode {
    let args = Args::parse();
    let result = match args.command {
        Command::Compare(options) => commands::compare::compare(&options),
        Command::Run(options) => commands::compare::run(&options),
        Command::Walk(options) => commands::walk::walk(&options),
        Command::Schemes => commands::explain::schemes(),
        Command::Explain(options) => commands::explain::explain(&options),
        Command::Bench(options) => commands::bench::bench(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of our output has gone: nothing is wrong with us.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nestwalk: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}
