//! `step`: what a VMM and its hardware do at a fault, a flush or a mode switch, action by action.

mod scenes;
mod state;
mod strip;
mod watched;

use crate::args::StepArgs;
use crate::formats::{self, Found};
use crate::screen::Screen;
use anyhow::{Context, Result};
use nestwalk_hw::Profile;
use nestwalk_report::figure::svg;
use serde_json::{Value, json};
use std::io::Write;
pub use watched::entry_name;
use watched::{Change, Moment};

/// `nestwalk step`.
pub fn step(args: &StepArgs) -> Result<()> {
    let profile = Profile::load(&args.profile).context("--profile")?;
    let scene = scenes::scene(args.scene);
    let moments = scenes::play(&scene, profile)?;
    let played = Played { title: scene.title, machine: scene.machine, moments };
    if let Some(file) = &args.svg {
        formats::write_file("--svg", file, &svg(&strip::strip(played.title, &played.moments)))?;
    }
    let out = args.format.render(&played)?;
    std::io::stdout().lock().write_all(out.as_bytes())?;
    Ok(())
}

/// What happened.
struct Played {
    title: &'static str,
    machine: &'static str,
    moments: Vec<Moment>,
}

/// `gL1[385]: empty → 0x5000 P W U`.
pub fn told(change: &Change) -> String {
    let Change { name, before, now, .. } = change;
    let before = if before.is_empty() { "new" } else { before };
    format!("{name}: {before} → {now}")
}

impl Found for Played {
    fn json(&self) -> Result<Value> {
        Ok(json!({
            "title": self.title,
            "machine": self.machine,
            "moments": serde_json::to_value(&self.moments)?,
        }))
    }

    fn rows(&self) -> Result<Vec<Value>> {
        let rows = self.moments.iter().enumerate().flat_map(|(i, moment)| {
            moment.changes.iter().map(move |c| {
                json!({
                    "moment": i + 1, "what": moment.what, "part": c.part, "name": c.name,
                    "before": c.before, "now": c.now,
                })
            })
        });
        Ok(rows.collect())
    }

    fn table(&self, _: Screen) -> String {
        let mut out = format!("{}\n\n", self.title);
        for (i, moment) in self.moments.iter().enumerate() {
            out += &format!("{:>3}  {}\n", i + 1, moment.what);
            if !moment.references.is_empty() {
                out += &format!("     reads  {}\n", moment.references.join(" "));
            }
            for exit in &moment.exits {
                out += &format!("     exit   {exit}\n");
            }
            for change in &moment.changes {
                let part = match change.part {
                    state::Part::Guest => "guest",
                    state::Part::Vmm => "VMM  ",
                    state::Part::Tlb => "TLB  ",
                };
                out += &format!("     {part}  {}\n", told(change));
            }
        }
        out += "\ngL4[3]: entry 3 of the guest's table of level 4; h: nested, s: shadow. Flags: ";
        let flags = super::entries::FLAGS
            .iter()
            .map(|(_, letters, meaning)| format!("{letters} {meaning}"));
        out + &flags.collect::<Vec<_>>().join(", ") + "\n"
    }
}
