//! Commands under headings, for `nestwalk --help`: the parser's library has headings for options only.

use super::Args;
use crate::screen::Screen;
use clap::builder::StyledStr;
use clap::{Command, CommandFactory};
use nestwalk_report::paragraph;
use std::fmt::Write;

/// Headings, and the commands under each. Whoever adds a command adds it here; one that is nowhere
/// stands under the last.
const GROUPS: [(&str, &[&str]); 5] = [
    ("Compare", &["compare", "run", "sweep", "report", "reproduce", "conform"]),
    ("Teach", &["walk", "step", "reach"]),
    ("Live machines", &["advise", "inspect", "govern", "measure"]),
    ("Recordings and traces", &["setup", "capture", "trace"]),
    (
        "About nestwalk",
        &["schemes", "explain", "doctor", "bench", "completions", "man", "schema", "help"],
    ),
];

/// Columns of help, as everywhere.
const MOST: usize = 100;
/// Columns of names.
const NAMES: usize = 13;

/// What parses the command line, with help that has groups.
pub fn command() -> Command {
    let mut command = Args::command();
    // Only then `help` is among the commands.
    command.build();
    let groups = groups(&command, Screen::standard_output().columns().min(MOST));
    let mut template = StyledStr::new();
    let _ = write!(
        template,
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n{groups}\nOptions:\n{{options}}"
    );
    Args::command().help_template(template)
}

/// The commands by groups, as help prints them.
fn groups(command: &Command, width: usize) -> String {
    let style = command.get_styles();
    let (header, literal) = (style.get_header(), style.get_literal());
    let mut out = String::new();
    let all: Vec<&Command> = command.get_subcommands().filter(|c| !c.is_hide_set()).collect();
    let named = |name: &str| GROUPS.iter().any(|(_, names)| names.contains(&name));
    for (i, (title, names)) in GROUPS.iter().enumerate() {
        let mut of: Vec<&Command> = names
            .iter()
            .filter_map(|name| all.iter().find(|c| c.get_name() == *name).copied())
            .collect();
        if i + 1 == GROUPS.len() {
            of.extend(all.iter().filter(|c| !named(c.get_name())).copied());
        }
        if of.is_empty() {
            continue;
        }
        let _ = writeln!(out, "\n{header}{title}:{header:#}");
        for c in of {
            let about = c.get_about().map(ToString::to_string).unwrap_or_default();
            let about = about.lines().next().unwrap_or_default().to_owned();
            let name = c.get_name();
            let text = paragraph(&format!("  {name:NAMES$}"), &about, width);
            // The label stands at its start, and only there.
            out += &text.replacen(name, &format!("{literal}{name}{literal:#}"), 1);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_stands_under_one_heading() {
        let mut command = Args::command();
        command.build();
        let text = groups(&command, 80);
        assert!(
            text.lines().all(|line| line.chars().filter(|c| !c.is_control()).count() < 100),
            "{text}"
        );
        for c in command.get_subcommands() {
            let head = format!("m{}", c.get_name());
            let plain = format!("  {} ", c.get_name());
            let found = text.lines().filter(|l| l.starts_with(&plain) || l.contains(&head)).count();
            assert!(found >= 1, "{}: {found} in\n{text}", c.get_name());
            let groups = GROUPS.iter().filter(|(_, names)| names.contains(&c.get_name())).count();
            assert_eq!(groups, 1, "`{}` has no heading in GROUPS", c.get_name());
        }
        for (title, _) in GROUPS {
            assert_eq!(text.matches(&format!("{title}:")).count(), 1);
        }
    }
}
