//! Layout of rows with lengths along them: bars of parts, and stretches of time.

use super::Span;
use super::axis::{Axis, Scale, number};
use super::scene::{Anchor, FONT, Ink, Scene, width_of};

/// Length of the longest bar's axis.
const PLOT: f64 = 440.0;
/// From row to row, and the height of a bar.
const PITCH: f64 = 22.0;
const BAR: f64 = 15.0;
const GAP: f64 = 10.0;

/// Where things are.
struct Frame {
    left: f64,
    top: f64,
    bottom: f64,
}

/// Names of rows, the legend, and the grid of an axis.
fn frame<'a>(
    scene: &mut Scene,
    names: impl ExactSizeIterator<Item = &'a String>,
    parts: &[String],
    shown: impl Fn(usize) -> bool,
) -> Frame {
    let count = names.len() as f64;
    let names: Vec<&String> = names.collect();
    let widest = names.iter().map(|n| width_of(n, FONT)).fold(60.0, f64::max);
    let left = GAP + widest + GAP;
    let parts = if parts.len() > 1 { parts } else { &[] };
    let top = scene.legend(parts, shown, (left, GAP), PLOT + 60.0) + 4.0;
    for (i, name) in names.into_iter().enumerate() {
        let base = top + i as f64 * PITCH + BAR - 3.0;
        scene.text((left - GAP, base), name.clone(), Anchor::End);
    }
    Frame { left, top, bottom: top + count * PITCH }
}

/// Ticks below, and the title of the axis.
fn axis(scene: &mut Scene, frame: &Frame, scale: &Scale, axis: &Axis) {
    for tick in scale.ticks() {
        let x = scale.at(tick);
        scene.path(vec![(x, frame.top - 2.0), (x, frame.bottom)], Ink::Faint, 1.0);
        scene.text((x, frame.bottom + 15.0), axis.unit.show(tick), Anchor::Middle);
    }
    let middle = frame.left + PLOT / 2.0;
    scene.text((middle, frame.bottom + 34.0), axis.title.clone(), Anchor::Middle);
    scene.size = (frame.left + PLOT + 76.0, frame.bottom + 44.0);
}

/// A bar per row. Parts that are not known have no length, and the row says so.
pub fn bars(title: &str, along: &Axis, parts: &[String], rows: &[(String, Vec<f64>)]) -> Scene {
    let mut scene = Scene::new(title);
    let shown = |part: usize| rows.iter().any(|(_, v)| v.get(part).is_some_and(|v| *v > 0.0));
    let frame = frame(&mut scene, rows.iter().map(|r| &r.0), parts, shown);
    let sum = |values: &[f64]| values.iter().filter(|v| v.is_finite()).sum::<f64>();
    let sums = rows.iter().map(|(_, values)| sum(values));
    let scale = Scale::from_zero(sums, (frame.left, frame.left + PLOT));
    axis(&mut scene, &frame, &scale, along);
    for (i, (name, values)) in rows.iter().enumerate() {
        let y = frame.top + i as f64 * PITCH;
        let mut x = frame.left;
        for (part, value) in values.iter().enumerate().filter(|(_, v)| v.is_finite() && **v > 0.0) {
            let wide = scale.length(*value);
            let what = parts.get(part).map_or("", String::as_str);
            let told = format!("{name}, {what}: {}", along.unit.show(*value));
            scene.rect((x, y), (wide, BAR), Ink::Part(part), told);
            x += wide;
        }
        let known = values.iter().any(|v| v.is_finite());
        let total = if known { along.unit.show(sum(values)) } else { number(f64::NAN) };
        scene.text((x + 5.0, y + BAR - 3.0), total, Anchor::Start);
    }
    scene
}

/// Stretches per row.
pub fn spans(title: &str, along: &Axis, parts: &[String], rows: &[(String, Vec<Span>)]) -> Scene {
    let mut scene = Scene::new(title);
    let frame = frame(&mut scene, rows.iter().map(|r| &r.0), parts, |_| true);
    let ends = rows.iter().flat_map(|(_, spans)| spans.iter().map(|s| s.1));
    let scale = Scale::from_zero(ends, (frame.left, frame.left + PLOT));
    axis(&mut scene, &frame, &scale, along);
    for (i, (name, spans)) in rows.iter().enumerate() {
        let y = frame.top + i as f64 * PITCH;
        for (from, to, part) in spans.iter().filter(|s| s.1 > s.0) {
            let what = parts.get(*part).map_or("", String::as_str);
            let (start, end) = (along.unit.show(*from), along.unit.show(*to));
            let told = format!("{name}, {what}: {start} to {end}");
            scene.rect(
                (scale.at(*from), y),
                (scale.length(to - from), BAR),
                Ink::Part(*part),
                told,
            );
        }
    }
    scene
}
