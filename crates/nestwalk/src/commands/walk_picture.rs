//! One walk as a picture: the address cut into indexes, and each reference in the order in which it is
//! made, a row for each guest table that is looked for.

use super::entries;
use super::step::entry_name;
use nestwalk_hw::ServedBy;
use nestwalk_report::figure::{Anchor, Ink, Scene, width_of};
use nestwalk_sim::Dimension;
use nestwalk_sim::hardware::Step;
use nestwalk_tables::Mode;

const GAP: f64 = 16.0;
const BOX: (f64, f64) = (132.0, 58.0);
const SMALL: f64 = 10.5;

/// Steps by what is looked for: nested references, and the entry that they lead to.
pub fn rows(steps: &[Step]) -> Vec<Vec<(usize, &Step)>> {
    let mut rows: Vec<Vec<(usize, &Step)>> = Vec::new();
    let mut open = false;
    for (i, step) in steps.iter().enumerate() {
        // Shadow tables and bare metal have all references in one row.
        let flat = steps.iter().all(|s| s.dimension != Dimension::Nested);
        match rows.last_mut().filter(|_| open) {
            Some(row) => row.push((i + 1, step)),
            None => rows.push(vec![(i + 1, step)]),
        }
        open = flat || step.dimension == Dimension::Nested;
    }
    rows
}

/// What a row looks for.
fn aim(row: &[(usize, &Step)]) -> String {
    match row.last() {
        Some((_, step)) if step.dimension == Dimension::Nested => "the page".into(),
        Some((_, step)) if row.len() > 1 && row[0].1.dimension == Dimension::Nested => {
            format!("guest table of level {}", step.level)
        }
        Some((_, step)) if step.dimension == Dimension::Shadow => "shadow tables".into(),
        _ => "tables".into(),
    }
}

fn address(scene: &mut Scene, mode: &Mode, address: u64) -> f64 {
    let mut x = GAP;
    for (level, index, shift) in entries::split(mode, address) {
        let bits = format!("gVA[{}:{shift}]", shift + bits_of(mode, level) - 1);
        let wide = 104.0;
        scene.rect((x, 40.0), (wide, 36.0), Ink::Pale(level as usize), format!("{bits}: {index}"));
        scene.sized((x + wide / 2.0, 54.0), bits, Anchor::Middle, SMALL);
        scene.text((x + wide / 2.0, 70.0), format!("L{level}: {index}"), Anchor::Middle);
        x += wide + 4.0;
    }
    let offset = address & mode.span(1).mask();
    scene.rect((x, 40.0), (104.0, 36.0), Ink::Pale(7), "");
    scene.sized(
        (x + 52.0, 54.0),
        format!("gVA[{}:0]", mode.span(1).shift() - 1),
        Anchor::Middle,
        SMALL,
    );
    scene.text((x + 52.0, 70.0), format!("offset: {offset:#x}"), Anchor::Middle);
    x + 104.0
}

fn bits_of(mode: &Mode, level: u8) -> u32 {
    mode.entries(level).trailing_zeros()
}

/// The picture.
pub fn picture(title: &str, mode: &Mode, gva: u64, steps: &[Step]) -> Scene {
    let mut scene = Scene::new(title);
    scene.sized((GAP, 24.0), title, Anchor::Start, 14.0);
    let mut right = address(&mut scene, mode, gva).max(width_of(title, 14.0));
    let rows = rows(steps);
    let left = GAP + rows.iter().map(|row| width_of(&aim(row), 12.0)).fold(0.0, f64::max) + GAP;
    let mut top = 96.0;
    for row in &rows {
        scene.text((GAP, top + BOX.1 / 2.0 + 4.0), aim(row), Anchor::Start);
        for (column, (number, step)) in row.iter().enumerate() {
            let x = left + column as f64 * (BOX.0 + 14.0);
            if column > 0 {
                let y = top + BOX.1 / 2.0;
                scene.arrow(vec![(x - 14.0, y), (x - 1.0, y)], Ink::Text);
            }
            reference(&mut scene, (x, top), *number, step);
            right = right.max(x + BOX.0);
        }
        top += BOX.1 + 14.0;
    }
    let legend = "number, entry (g guest, h nested, s shadow), cache that served it; where it is; where it \
                  points; its flags";
    scene.sized((GAP, top + 8.0), legend, Anchor::Start, SMALL);
    scene.size = (right.max(width_of(legend, SMALL)) + 2.0 * GAP, top + 20.0);
    scene
}

fn reference(scene: &mut Scene, (x, y): (f64, f64), number: usize, step: &Step) {
    let ink = match step.dimension {
        Dimension::Guest => Ink::Pale(0),
        Dimension::Nested => Ink::Pale(1),
        Dimension::Shadow => Ink::Pale(2),
    };
    let (name, served) = (entry_name(step), served(step));
    let flags = entries::flags(step.entry).join(" ");
    let target = step.entry & nestwalk_tables::entry::FRAME;
    let told =
        format!("reference {number}: {name} at hPA {:#x}, served by {served}", step.at.value());
    scene.rect((x, y), BOX, ink, told);
    scene.text((x + 6.0, y + 14.0), format!("{number}  {name}"), Anchor::Start);
    scene.sized((x + BOX.0 - 6.0, y + 14.0), served, Anchor::End, SMALL);
    scene.sized((x + 6.0, y + 28.0), format!("at {:#x}", step.at.value()), Anchor::Start, SMALL);
    scene.sized((x + 6.0, y + 40.0), format!("→ {target:#x}"), Anchor::Start, SMALL);
    scene.sized((x + 6.0, y + 52.0), flags, Anchor::Start, SMALL);
}

/// What served a reference.
pub fn served(step: &Step) -> &'static str {
    ServedBy::NAMES[step.served as usize]
}
