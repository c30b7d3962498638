//! Layout of lines through points, and of cells.

use super::axis::{Axis, Scale, number};
use super::scene::{Anchor, FONT, Ink, Point, Scene, width_of};

const WIDE: f64 = 520.0;
const HIGH: f64 = 300.0;
const LEFT: f64 = 76.0;
const GAP: f64 = 10.0;

/// Lines with a dot at each point. What is not known leaves its point out.
pub fn lines(title: &str, x: &Axis, y: &Axis, lines: &[(String, Vec<Point>)]) -> Scene {
    let mut scene = Scene::new(title);
    let names: Vec<String> = lines.iter().map(|l| l.0.clone()).collect();
    let top = scene.legend(&names, |_| true, (LEFT, GAP), WIDE) + 8.0;
    let bottom = top + HIGH;
    let points = || lines.iter().flat_map(|l| &l.1);
    let across = Scale::over(points().map(|p| p.0), (LEFT, LEFT + WIDE), x.doublings);
    let up = Scale::from_zero(points().map(|p| p.1), (bottom, top));
    for tick in up.ticks() {
        let at = up.at(tick);
        scene.path(vec![(LEFT, at), (LEFT + WIDE, at)], Ink::Faint, 1.0);
        scene.text((LEFT - 6.0, at + 4.0), y.unit.show(tick), Anchor::End);
    }
    for tick in across.ticks() {
        let at = across.at(tick);
        scene.path(vec![(at, top), (at, bottom)], Ink::Faint, 1.0);
        scene.text((at, bottom + 16.0), x.unit.show(tick), Anchor::Middle);
    }
    scene.text((LEFT + WIDE / 2.0, bottom + 36.0), x.title.clone(), Anchor::Middle);
    scene.upwards((14.0, top + HIGH / 2.0), y.title.clone());
    for (i, (name, points)) in lines.iter().enumerate() {
        let known: Vec<&Point> =
            points.iter().filter(|p| p.0.is_finite() && p.1.is_finite()).collect();
        let places = known.iter().map(|p| (across.at(p.0), up.at(p.1))).collect();
        // Lines that lie one on the other are all seen: those below are wider.
        let below = (lines.len() - 1 - i).min(5) as f64;
        scene.path(places, Ink::Part(i), 1.6 + 1.2 * below);
        for (px, py) in known {
            let told = format!("{name}: {} at {}", y.unit.show(*py), x.unit.show(*px));
            scene.dot((across.at(*px), up.at(*py)), 3.0 + 0.8 * below, Ink::Part(i), told);
        }
    }
    scene.size = (LEFT + WIDE + 40.0, bottom + 46.0);
    scene
}

const CELL: Point = (74.0, 34.0);

/// Cells with their numbers.
pub fn cells(
    title: &str,
    what: &str,
    columns: &[String],
    rows: &[(String, Vec<Option<f64>>)],
) -> Scene {
    let mut scene = Scene::new(title);
    let widest = rows.iter().map(|r| width_of(&r.0, FONT)).fold(40.0, f64::max);
    let (left, top) = (GAP + widest + GAP, 44.0);
    let most = rows.iter().flat_map(|r| &r.1).flatten().copied().fold(0.0, f64::max);
    scene.text((left, 16.0), what, Anchor::Start);
    for (i, column) in columns.iter().enumerate() {
        let x = left + (i as f64 + 0.5) * CELL.0;
        scene.text((x, top - 8.0), column.clone(), Anchor::Middle);
    }
    for (i, (name, values)) in rows.iter().enumerate() {
        let y = top + i as f64 * CELL.1;
        scene.text((left - GAP, y + CELL.1 / 2.0 + 4.0), name.clone(), Anchor::End);
        for (j, value) in values.iter().enumerate() {
            let Some(value) = value else { continue };
            let x = left + j as f64 * CELL.0;
            let share = if most > 0.0 { value / most } else { 0.0 };
            let column = columns.get(j).map_or("", String::as_str);
            let told = format!("{name}, {column}: {}", number(*value));
            scene.rect((x, y), (CELL.0 - 2.0, CELL.1 - 2.0), Ink::Shade(share), told);
            scene.text(
                (x + CELL.0 / 2.0 - 1.0, y + CELL.1 / 2.0 + 4.0),
                number(*value),
                Anchor::Middle,
            );
        }
    }
    let wide = (left + columns.len() as f64 * CELL.0).max(left + width_of(what, FONT)) + GAP;
    scene.size = (wide, top + rows.len() as f64 * CELL.1 + GAP);
    scene
}
