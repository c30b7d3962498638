//! The `nestwalk` binary: arguments in, tables out. See `nestwalk --help`.

#![deny(clippy::print_stdout, clippy::print_stderr, reason = "they panic if the reader has gone")]

mod args;
mod commands;
mod fields;
mod formats;
mod outcome;
mod processor_events;
mod progress;
mod screen;
mod sensitivity;
mod settings;
mod show;
mod signals;
mod tell;

use args::{Args, Command};
use clap::Parser;
use std::process::ExitCode;

/// 0: done. 1: done, but the command that was run in a guest or traced failed. 2: something was wrong;
/// the message says what, where, and what would be right.
fn main() -> ExitCode {
    let args = Args::parse();
    let result = match args.command {
        Command::Capture(options) => match commands::capture::capture(&options) {
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

/// The error and its causes, outermost first. Many errors end with the text of their cause, which
/// is then not said again.
fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(|c| c.to_string()) {
        let cause = cause.trim_end();
        if !text.ends_with(cause) {
            if !text.is_empty() {
                text += ": ";
            }
            text += cause;
        }
    }
    text
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|c| c.downcast_ref::<std::io::Error>())
        .any(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::describe;
    use nestwalk_hw::Profile;

    #[test]
    fn what_an_error_says_of_its_cause_is_not_said_again() {
        let error = anyhow::Error::from(Profile::load("./none.toml").unwrap_err());
        let text = describe(&error.context("--profile"));
        assert_eq!(text.matches("os error 2").count(), 1, "{text}");
        assert!(text.starts_with("--profile: profile ./none.toml: "), "{text}");
        assert_eq!(describe(&anyhow::anyhow!("a").context("b")), "b: a");
    }
}
