//! The explorer of walks: each machine of the results translates some addresses, from cold, as
//! `walk` does.

use super::read::{self, Run};
use crate::commands::walk::{Cold, purpose, steps, without_walk_caches};
use crate::commands::{entries, step::entry_name, walk_picture::served};
use crate::settings;
use anyhow::Result;
use nestwalk_hw::Profile;
use nestwalk_lab::words;
use nestwalk_mm::PagePolicy;
use nestwalk_report::page::{Explored, Explorer, Section};
use nestwalk_sim::Dimension;
use nestwalk_sim::compare::spec::MachineSpec;
use nestwalk_tables::Mode;

/// Machines that are walked; more would make the page slow to make.
const MOST: usize = 24;

/// Addresses like those of a program: a library's, the heap's, a low one.
const ADDRESSES: [u64; 3] = [0x7fff_f7a0_1234, 0x5555_55b0_2010, 0x1234_5678];
const ADDRESSES_32: [u64; 3] = [0xb7a0_1234, 0x0804_9010, 0x1234_5678];

/// The processor and the paging modes of a run.
struct Setting {
    profile: Profile,
    modes: (&'static Mode, &'static Mode),
}

/// As the configuration beside the results has it; without one, the built-in profile of that name.
fn setting(run: &Run) -> Option<Setting> {
    if let Some(e) = run.config.as_deref().and_then(|file| settings::lab().read(file).ok()) {
        let guest = words::mode("guest_paging", &e.guest_paging).ok()?;
        let host = words::host_mode("host_paging", &e.host_paging).ok()?;
        return Some(Setting { profile: e.profile, modes: (guest, host) });
    }
    let usual = words::mode("guest_paging", "4-level").ok()?;
    Some(Setting { profile: Profile::load(&run.profile).ok()?, modes: (usual, usual) })
}

/// The section, if any machine can be walked.
pub fn section(runs: &[Run]) -> Option<Section> {
    let mut tables = Vec::new();
    let mut left_out = Vec::new();
    let mut met: Vec<(String, String)> = Vec::new();
    for run in runs {
        let Some(setting) = setting(run) else { continue };
        let names = run.machines.iter().filter(|m| m["scheme"] != "ideal").map(read::name);
        for name in names {
            let known = (name.clone(), run.profile.clone());
            if met.contains(&known) {
                continue;
            }
            met.push(known);
            if met.len() > MOST {
                continue;
            }
            match walks(&name, &run.profile, &setting) {
                Ok(walks) => tables.extend(walks),
                Err(why) => left_out.push(format!("Left out: {why:#}.")),
            }
        }
    }
    if tables.is_empty() {
        return None;
    }
    let mut notes = vec![
        "One translation of each machine, simulated for this page with all caches and TLBs empty and \
         without walk caches, as `nestwalk walk` does. A reference is served by a cache only if the walk \
         itself has brought that line in. Recorded guests have a modelled kernel in their place."
            .to_owned(),
    ];
    if met.len() > MOST {
        notes.push(format!("Of {} machines these are the first {MOST}.", met.len()));
    }
    notes.extend(left_out);
    let titles = |all: &[&str]| all.iter().map(|title| (*title).to_owned()).collect();
    let explorer = Explorer {
        choices: titles(&["machine", "page sizes", "profile", "address"]),
        columns: titles(&[
            "#",
            "entry",
            "dimension",
            "level",
            "served by",
            "why",
            "at hPA",
            "points to, flags",
        ]),
        tables,
    };
    Some(Section { title: "Walks".into(), notes, explorer: Some(explorer), ..Section::default() })
}

/// The walks of a machine, one for each address.
fn walks(name: &str, profile: &str, setting: &Setting) -> Result<Vec<Explored>> {
    // No recording is at hand.
    let spec = MachineSpec::parse(&name.replace("observed", "4k"), PagePolicy::Base)?;
    let (scheme, pages) = name.split_once(':').unwrap_or((name, ""));
    let guest = setting.modes.0;
    let addresses = if guest.address_bits() == 32 { ADDRESSES_32 } else { ADDRESSES };
    // As far up in fewer bits.
    let addresses = addresses.map(|a| a & (words::process_bytes(guest).next_power_of_two() - 1));
    let walk = |address: u64| {
        let processor = without_walk_caches(setting.profile.clone());
        let steps = steps(&spec, processor, setting.modes, address)?;
        let words = [scheme, pages, profile, &format!("{address:#x}")].map(String::from).to_vec();
        let walk = Cold { machine: name, mode: guest, address, steps };
        let rows = walk.steps.iter().enumerate().map(|(i, step)| {
            let kind = match step.dimension {
                Dimension::Guest => 0,
                Dimension::Nested => 1,
                Dimension::Shadow => 2,
            };
            let dimension = ["guest", "nested", "shadow"][usize::from(kind)];
            let cells = vec![
                (i + 1).to_string(),
                entry_name(step),
                dimension.to_owned(),
                step.level.to_string(),
                served(step).to_owned(),
                purpose(step),
                format!("{:#x}", step.at.value()),
                entries::text(step.entry),
            ];
            (kind, cells)
        });
        let rows = rows.collect();
        Ok(Explored {
            words,
            notes: vec![walk.title(), format!("Indexes: {}", walk.split())],
            rows,
        })
    };
    addresses.into_iter().map(walk).collect()
}
