//! A scene as a picture: a row for each action, a column for each place where something changed.

use super::state::Part;
use super::told;
use super::watched::Moment;
use nestwalk_report::figure::{Anchor, Ink, Scene, width_of};

const FONT: f64 = 11.0;
const LINE: f64 = 15.0;
const GAP: f64 = 10.0;
/// Of what belongs to an action.
const INDENT: f64 = 18.0;
const TITLES: [&str; 4] = ["what happens", "guest tables", "the VMM's tables", "TLBs"];

/// Lines of a row in each column.
fn cells(number: usize, moment: &Moment) -> [Vec<String>; 4] {
    let mut first = vec![format!("{number}  {}", moment.what)];
    if !moment.references.is_empty() {
        let lines = moment.references.chunks(8).map(|some| format!("reads {}", some.join(" ")));
        first.extend(lines);
    }
    first.extend(moment.exits.iter().map(|exit| format!("exit: {exit}")));
    let of = |part: Part| moment.changes.iter().filter(move |c| c.part == part).map(told).collect();
    [first, of(Part::Guest), of(Part::Vmm), of(Part::Tlb)]
}

/// All actions, from top to bottom.
pub fn strip(title: &str, moments: &[Moment]) -> Scene {
    let mut scene = Scene::new(title);
    let rows: Vec<[Vec<String>; 4]> =
        moments.iter().enumerate().map(|(i, moment)| cells(i + 1, moment)).collect();
    let widths: [f64; 4] = std::array::from_fn(|column| {
        let lines = rows.iter().flat_map(|row| &row[column]);
        lines.map(|line| width_of(line, FONT)).fold(width_of(TITLES[column], 12.0), f64::max)
    });
    let mut lefts = [GAP; 4];
    for i in 1..4 {
        lefts[i] = lefts[i - 1] + widths[i - 1] + 2.0 * GAP;
    }
    let right = lefts[3] + widths[3] + GAP;
    scene.sized((GAP, 20.0), title, Anchor::Start, 14.0);
    for (left, title) in lefts.iter().zip(TITLES) {
        scene.text((*left, 46.0), title, Anchor::Start);
    }
    let mut top = 54.0;
    for row in &rows {
        let lines = row.iter().map(Vec::len).max().unwrap_or(1);
        let high = lines as f64 * LINE + 8.0;
        scene.path(vec![(GAP, top), (right, top)], Ink::Faint, 1.0);
        for (column, lines) in row.iter().enumerate() {
            if column > 0 && !lines.is_empty() {
                let told = format!("{}: {}", TITLES[column], lines.join("; "));
                let size = (widths[column] + GAP, high - 4.0);
                scene.rect(
                    (lefts[column] - GAP / 2.0, top + 2.0),
                    size,
                    Ink::Pale(column - 1),
                    told,
                );
            }
            for (i, line) in lines.iter().enumerate() {
                let base = top + 14.0 + i as f64 * LINE;
                let indent = if column == 0 && i > 0 { INDENT } else { 0.0 };
                scene.sized((lefts[column] + indent, base), line.clone(), Anchor::Start, FONT);
            }
        }
        top += high;
    }
    scene.size = (right + GAP, top + GAP);
    scene
}
