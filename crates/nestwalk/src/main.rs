//! The `nestwalk` binary: arguments in, tables out. See `nestwalk --help`.

#![deny(clippy::print_stdout, clippy::print_stderr, reason = "they panic if the reader has gone")]

mod args;
mod commands;
mod formats;
mod processor_events;
mod progress;
mod screen;
mod sensitivity;
mod settings;
mod show;
mod signals;
mod tell;

use args::{Args, Command, groups};
use clap::FromArgMatches;
use nestwalk_lab::describe;
use nestwalk_lab::results::{fields, outcome};
use std::process::ExitCode;

/// 0: done. 1: done, but the command that was run in a guest or traced failed. 2: something was wrong;
/// the message says what, where, and what would be right.
fn main() -> ExitCode {
    let args = groups::command().get_matches();
    let args = Args::from_arg_matches(&args).unwrap_or_else(|error| error.exit());
    let result = match args.command {
        Command::Capture(options) => match commands::capture::capture(&options) {
            Ok(status) => return status,
            Err(error) => Err(error),
        },
        Command::Advise(options) => match commands::advise::advise(&options) {
            Ok(status) => return status,
            Err(error) => Err(error),
        },
        Command::Compare(options) => match commands::compare::compare(&options) {
            Ok(status) => return status,
            Err(error) => Err(error),
        },
        Command::Run(options) => match commands::compare::run(&options) {
            Ok(status) => return status,
            Err(error) => Err(error),
        },
        Command::Setup(options) => commands::setup::setup(&options),
        Command::Sweep(options) => match commands::sweep::sweep(&options) {
            Ok(status) => return status,
            Err(error) => Err(error),
        },
        Command::Walk(options) => commands::walk::walk(&options),
        Command::Step(options) => commands::step::step(&options),
        Command::Reach(options) => commands::reach::reach(&options),
        Command::Trace(command) => commands::trace::trace(&command),
        Command::Govern(options) => commands::govern::govern(&options),
        Command::Inspect(options) => commands::inspect::inspect(&options),
        Command::Measure(options) => commands::measure::measure(&options),
        Command::Conform(options) => commands::conform::conform(&options),
        Command::Report(options) => commands::report::report(&options),
        Command::Reproduce(options) => commands::reproduce::reproduce(&options),
        Command::Schemes => commands::explain::schemes(),
        Command::Explain(options) => commands::explain::explain(&options),
        Command::Schema(options) => commands::schema::schema(&options),
        Command::Bench(options) => commands::bench::bench(&options),
        Command::Doctor(options) => commands::doctor::doctor(&options),
        Command::Completions(options) => commands::habits::completions(&options),
        Command::Man(options) => commands::habits::man(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of our output has gone: nothing is wrong with us.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            tell::tell(format_args!("nestwalk: {}", describe(&error)));
            ExitCode::from(2)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|c| c.downcast_ref::<std::io::Error>())
        .any(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}
