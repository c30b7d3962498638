//! Lines for a terminal, in characters.

use super::Point;
use super::axis::{Axis, Scale};

const WIDE: usize = 60;
const HIGH: usize = 16;
const MARKS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// A letter at each point; where several meet, a star.
pub fn plain(x: &Axis, y: &Axis, lines: &[(String, Vec<Point>)]) -> String {
    let points = || lines.iter().flat_map(|l| &l.1);
    let across = Scale::over(points().map(|p| p.0), (0.0, (WIDE - 1) as f64), x.doublings);
    let up = Scale::from_zero(points().map(|p| p.1), ((HIGH - 1) as f64, 0.0));
    let mut grid = vec![[' '; WIDE]; HIGH];
    for (i, (_, points)) in lines.iter().enumerate() {
        let mark = char::from(MARKS[i % MARKS.len()]);
        for (px, py) in points.iter().filter(|p| p.0.is_finite() && p.1.is_finite()) {
            let column = (across.at(*px).round().max(0.0) as usize).min(WIDE - 1);
            let row = (up.at(*py).round().max(0.0) as usize).min(HIGH - 1);
            let cell = &mut grid[row][column];
            *cell = if *cell == ' ' || *cell == mark { mark } else { '*' };
        }
    }
    let mut labels = vec![String::new(); HIGH];
    for tick in up.ticks() {
        let row = (up.at(tick).round().max(0.0) as usize).min(HIGH - 1);
        labels[row] = y.unit.show(tick);
    }
    let widest = labels.iter().map(|l| l.chars().count()).max().unwrap_or(0);
    let mut out = format!("{}\n", y.title);
    for (label, row) in labels.iter().zip(&grid) {
        let row: String = row.iter().collect();
        out += format!("{label:>widest$} |{row}").trim_end();
        out.push('\n');
    }
    out += &format!("{:widest$} +{}\n", "", "-".repeat(WIDE));
    let (mut ticks, mut end) = (String::new(), 0);
    for tick in across.ticks() {
        let text = x.unit.show(tick);
        let at = (across.at(tick).round().max(0.0) as usize).saturating_sub(text.len() / 2);
        if at >= end {
            ticks += &format!("{:1$}{text}", "", at - ticks.chars().count());
            end = at + text.len() + 2;
        }
    }
    out += &format!("{:widest$}  {ticks}\n{:widest$}  {}\n", "", "", x.title);
    for (i, (name, _)) in lines.iter().enumerate() {
        out += &format!("{:widest$}  {}  {name}\n", "", char::from(MARKS[i % MARKS.len()]));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_stand_where_the_numbers_are() {
        let sizes = [1.0, 2.0, 4.0].map(|n| n * 1048576.0);
        let rise = sizes.iter().zip([0.0, 50.0, 100.0]).map(|(x, y)| (*x, y)).collect();
        let flat = sizes.iter().map(|x| (*x, 0.0)).collect();
        let lines = [("rise".to_owned(), rise), ("flat".to_owned(), flat)];
        let text = plain(&Axis::of_bytes("footprint"), &Axis::new("overhead"), &lines);
        let rows: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(rows[0], format!("100 |{:59}a", ""));
        assert_eq!(rows[HIGH - 1], format!("  0 |*{:29}b{:28}b", "", ""));
        assert!(rows[HIGH + 1].contains("1 MiB") && rows[HIGH + 1].ends_with("4 MiB"), "{text}");
        assert!(text.ends_with("     a  rise\n     b  flat\n"), "{text}");
    }
}
