//! What `govern` prints: a line per interval for people, a JSON object per event for programs.

use crate::formats::Format;
use anyhow::{Context, Result};
use nestwalk_host::{End, Event};
use nestwalk_policy::{Action, Hundredths, Kind, POLICIES, Plan, PolicyInfo};
use nestwalk_report::{Align, Table};
use serde_json::json;
use std::io::Write;

/// Where events appear, each at once: a governor runs for days.
pub struct Screen {
    json: bool,
    quiet: bool,
    /// Start of the first interval, from which times are counted.
    start_ns: Option<u64>,
    /// The end of the last interval, seconds.
    now: f64,
}

fn line(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).context("standard output")
}

impl Screen {
    pub fn new(format: Format, quiet: bool) -> Self {
        Self { json: format.is_for_programs(), quiet, start_ns: None, now: 0.0 }
    }

    pub fn heading(&self, text: &str) -> Result<()> {
        if self.json { Ok(()) } else { line(text) }
    }

    pub fn event(&mut self, event: &Event) -> Result<()> {
        if let Event::Decided { sample, .. } = event {
            let first = sample.time_ns.saturating_sub(sample.duration_ns);
            let start = *self.start_ns.get_or_insert(first);
            self.now = sample.time_ns.saturating_sub(start) as f64 / 1e9;
        }
        if self.json {
            return line(&serde_json::to_string(event)?);
        }
        match self.text(event) {
            Some(text) => line(&format!("{:>10.3} s  {text}", self.now)),
            None => Ok(()),
        }
    }

    fn text(&self, event: &Event) -> Option<String> {
        let percent = |value: Option<Hundredths>| value.map_or("-".into(), |v| v.to_string());
        Some(match event {
            Event::Started { mode } => format!("begins in {mode} paging"),
            Event::Decided { sample, decision } => {
                if self.quiet && decision.action == Action::Stay {
                    return None;
                }
                format!(
                    "{:6}  VMM {:>5} %  walks {:>5} %  IPC {:>4}  {decision}",
                    sample.mode.name(),
                    percent(sample.vmm_percent()),
                    percent(sample.walk_percent()),
                    percent(sample.script_ipc()),
                )
            }
            Event::Advised { to, mode } => format!("ADVICE: {to} paging; it stays in {mode}"),
            Event::Switched { mode } => format!("SWITCHED: now in {mode} paging"),
            Event::Refused { to, mode, why } => {
                format!("REFUSED: not switched to {to}, still in {mode} paging: {why}")
            }
            Event::ModeUnknown { asked: Some(to), why } => format!(
                "MODE UNKNOWN: {to} paging was asked for, and what came of it cannot be read: {why}"
            ),
            Event::ModeUnknown { asked: None, why } => format!("MODE UNKNOWN: {why}"),
            Event::ModeKnown { mode } => format!("the mode can be read again: {mode} paging"),
            Event::ChangedElsewhere { from, mode } => {
                format!("somebody else changed the mode from {from} to {mode} paging")
            }
            Event::NoSample { why, in_a_row } => {
                format!("no sample ({in_a_row} in a row): {why}")
            }
            Event::Ended { end, mode, unknown } => {
                let why = match end {
                    End::VmExited => return Some("the VM has exited".into()),
                    End::RecordingEnds => "the recording ends",
                    End::Interrupted => "interrupted",
                    End::Failed(why) => why,
                };
                match (mode, unknown) {
                    (Some(mode), _) => format!("{why}: left in {mode} paging"),
                    (None, why_unknown) => format!(
                        "{why}: THE MODE IN WHICH THE VM IS LEFT IS NOT KNOWN: {}",
                        why_unknown.as_deref().unwrap_or("it was not read")
                    ),
                }
            }
        })
    }
}

/// What a policy's run over two recordings cost, beside both modes and the bound.
pub fn compared(format: Format, policy: f64, shadow: f64, nested: f64, plan: &Plan) -> Result<()> {
    if format.is_for_programs() {
        return line(&serde_json::to_string(&json!({
            "event": "compared",
            "cycles": { "policy": policy, "shadow": shadow, "nested": nested, "hindsight": plan.cost },
            "hindsight_switches": plan.switches,
        }))?);
    }
    let mut table = Table::new()
        .column("", Align::Left)
        .column("cycles", Align::Right)
        .column("to hindsight", Align::Right);
    for (name, cycles) in
        [("this policy", policy), ("shadow", shadow), ("nested", nested), ("hindsight", plan.cost)]
    {
        let share = if plan.cost > 0.0 { cycles / plan.cost } else { 1.0 };
        table.row(vec![name.into(), format!("{cycles:.0}"), format!("{share:.4}")]);
    }
    line(&format!(
        "\n{}(recordings do not tell what switches cost; hindsight makes {})",
        table.render(),
        plan.switches
    ))
}

/// A policy with its parameters, their ranges, defaults and sources.
pub fn policy(policy: &PolicyInfo) -> String {
    let mut text = format!("{}: {}\n  {}\n", policy.name, policy.summary, policy.source);
    let needs: Vec<String> = policy.needs.iter().map(ToString::to_string).collect();
    if !needs.is_empty() {
        text += &format!("  Needs {}.\n", needs.join(", "));
    }
    for p in policy.parameters {
        let default = if p.kind == Kind::File { "FILE" } else { p.default };
        let set = format!("{}={default}", p.name);
        text += &format!("  {set:12}  {}\n", p.meaning);
        let without = match p.kind {
            Kind::File => format!("; without it {}", p.default),
            _ => String::new(),
        };
        text += &format!("  {:12}  ({}{without}; {})\n", "", p.kind, p.source);
    }
    text
}

/// `govern --list`.
pub fn catalogue() -> Result<()> {
    let all: Vec<String> = POLICIES.iter().map(policy).collect();
    line(all.join("\n").trim_end())
}
