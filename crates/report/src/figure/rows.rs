//! The numbers of a figure as rows.

use super::Plot;

fn cell(value: f64) -> String {
    if value.is_finite() { value.to_string() } else { String::new() }
}

fn line<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(String::from).to_vec()
}

/// Titles, then the numbers; what is not known is empty.
pub fn rows(plot: &Plot) -> Vec<Vec<String>> {
    match plot {
        Plot::Bars { parts, rows, .. } => {
            let mut all = vec![[line(["name"]), parts.clone()].concat()];
            for (name, values) in rows {
                all.push(
                    std::iter::once(name.clone()).chain(values.iter().map(|v| cell(*v))).collect(),
                );
            }
            all
        }
        Plot::Spans { parts, rows, .. } => {
            let mut all = vec![line(["name", "from", "to", "part"])];
            for (name, spans) in rows {
                for (from, to, part) in spans {
                    let part = parts.get(*part).map_or("", String::as_str);
                    all.push(line([name, &cell(*from), &cell(*to), part]));
                }
            }
            all
        }
        Plot::Lines { x, y, lines } => {
            let mut all = vec![line(["name", &x.title, &y.title])];
            for (name, points) in lines {
                all.extend(points.iter().map(|(x, y)| line([name, &cell(*x), &cell(*y)])));
            }
            all
        }
        Plot::Cells { title, columns, rows } => {
            let mut all = vec![line(["row", "column", title])];
            for (name, values) in rows {
                for (column, value) in columns.iter().zip(values) {
                    if let Some(value) = value {
                        all.push(line([name, column, &cell(*value)]));
                    }
                }
            }
            all
        }
        Plot::Drawing(_, rows) => rows.clone(),
    }
}
