//! What was compared, for people and programs.

use super::{Compared, Verdict};
use crate::formats::Found;
use crate::screen::Screen;
use anyhow::Result;
use nestwalk_conform::compare::Difference;
use serde_json::{Value, json};
use std::fmt::Write;

/// All kernels.
pub(super) struct Conformance<'a> {
    pub verdicts: &'a [Verdict],
    /// Every event is shown.
    pub events: bool,
}

impl Found for Conformance<'_> {
    fn json(&self) -> Result<Value> {
        let kernels: Vec<Value> = self.verdicts.iter().map(|v| self.kernel(v)).collect();
        Ok(json!({ "kernels": kernels }))
    }

    fn rows(&self) -> Result<Vec<Value>> {
        let rows = self.verdicts.iter().flat_map(|v| {
            v.scripts.iter().map(|s| {
                json!({
                    "kvm": v.referee.version,
                    "paging": v.referee.paging.name(),
                    "kernel": v.referee.sheet.kernel,
                    "script": s.name,
                    "actions": s.actions,
                    "events": s.events,
                    "agrees": s.difference.is_none(),
                })
            })
        });
        Ok(rows.collect())
    }

    fn table(&self, _: Screen) -> String {
        let mut text = String::new();
        for verdict in self.verdicts {
            if self.events {
                verdict.scripts.iter().for_each(|s| events(s, &mut text));
            }
            verdict.scripts.iter().for_each(|s| difference(s, &mut text));
            text += &summary(verdict);
        }
        text
    }
}

impl Conformance<'_> {
    fn kernel(&self, v: &Verdict) -> Value {
        let script = |s: &Compared| {
            let mut value = json!({
                "script": s.name,
                "actions": s.actions,
                "events": s.events,
                "agrees": s.difference.is_none(),
            });
            if let Some((d, action)) = &s.difference {
                value["difference"] = json!({
                    "action_number": d.action,
                    "action": action,
                    "event_number": d.event,
                    "kvm": d.real,
                    "model": d.model,
                });
            }
            if self.events {
                let answers = s.answered.iter();
                let answers = answers.map(|(a, e)| json!({ "action": a, "events": e }));
                value["answers"] = answers.collect();
            }
            value
        };
        json!({
            "kvm": v.referee.version,
            "paging": v.referee.paging.name(),
            "kernel": v.referee.sheet.kernel,
            "qemu": v.referee.sheet.qemu,
            "live": v.referee.live,
            "scripts": v.scripts.iter().map(script).collect::<Vec<_>>(),
            "random": { "compared": v.random, "differing_seeds": v.differing },
        })
    }
}

// Writing to a string cannot fail.

fn events(script: &Compared, text: &mut String) {
    let _ = writeln!(text, "script {}", script.name);
    for (action, events) in &script.answered {
        let _ = writeln!(text, "> {action}");
        events.iter().for_each(|event| {
            let _ = writeln!(text, "  {event}");
        });
    }
    text.push('\n');
}

fn difference(script: &Compared, text: &mut String) {
    let Some((d, action)) = &script.difference else { return };
    *text += &side_by_side(&format!("{}, action {} ({action})", script.name, d.action), d);
    text.push('\n');
}

/// The events of an action that differ, one by one.
pub(super) fn side_by_side(place: &str, d: &Difference) -> String {
    let mut text = format!(
        "{place}: event {} differs; KVM's on the left, the model's on the right\n",
        d.event
    );
    let none = String::new();
    for i in 0..d.real.len().max(d.model.len()) {
        let (real, model) = (d.real.get(i).unwrap_or(&none), d.model.get(i).unwrap_or(&none));
        let mark = if real == model { ' ' } else { '*' };
        let _ = writeln!(text, "  {mark} {real:36} {model}");
    }
    text
}

fn summary(v: &Verdict) -> String {
    let agree = v.scripts.iter().filter(|s| s.difference.is_none()).count();
    let events: usize = v.scripts.iter().map(|s| s.events).sum();
    let how = if v.referee.live { "asked now" } else { "recorded" };
    let mut text = format!(
        "KVM of Linux {} under QEMU {}, {how}, {} paging: {agree} of {} scripts agree in every event \
         ({events} events)",
        v.referee.sheet.kernel,
        v.referee.sheet.qemu,
        v.referee.paging.name(),
        v.scripts.len()
    );
    if v.random > 0 {
        let agree = v.random - v.differing.len() as u64;
        let _ = write!(text, ", {agree} of {} random ones", v.random);
    }
    if !v.differing.is_empty() {
        let seeds: Vec<String> = v.differing.iter().map(ToString::to_string).collect();
        let _ = write!(text, "; seeds that do not: {}", seeds.join(", "));
    }
    text + "\n"
}
