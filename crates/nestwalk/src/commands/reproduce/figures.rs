//! Figures of what was found: a bar for each row of the results, and beside it what was published, where
//! that is known as a number.

use nestwalk_report::figure::{Axis, Figure, Plot};
use serde_json::Value;

type Rows = Vec<(String, Vec<f64>)>;

/// How rows of one evaluation are drawn.
struct Drawing {
    /// The key by which rows share a figure.
    by: &'static str,
    parts: &'static [&'static str],
    axis: &'static str,
    note: &'static str,
    rows: fn(&Value, &str) -> Rows,
}

/// Evaluations of whole programs: overheads.
const OVERHEADS: Drawing = Drawing {
    by: "program",
    parts: &["page walks", "VMM"],
    axis: "overhead, % of the ideal run time",
    note: "Bars of the publication stand below ours where it has their numbers.",
    rows: |row, name| {
        let of = |keys: [&str; 2]| keys.map(|key| number(row, key)).to_vec();
        let mut all = vec![(name.to_owned(), of(["walk_percent", "vmm_percent"]))];
        if row["published_walk_percent"].is_number() {
            let published = of(["published_walk_percent", "published_vmm_percent"]);
            all.push((format!("{name}, published"), published));
        }
        all
    },
};

/// Evaluations of counters and times.
const COUNTERS: Drawing = Drawing {
    by: "program",
    parts: &["published", "simulated"],
    axis: "% of the published number",
    note: "Each number beside the published one, which is 100 %.",
    rows: |row, name| beside(name, number(row, "published"), number(row, "simulated")),
};

/// `LMbench`: microseconds.
const TIMES: Drawing = Drawing {
    by: "",
    parts: &["published", "simulated"],
    axis: "% of the published time",
    note: "Each time beside the published one, which is 100 %.",
    rows: |row, name| {
        let mut all = Rows::new();
        for (mode, published, simulated) in [
            ("EPT", "published_ept_us", "nested_us"),
            ("shadow", "published_shadow_us", "shadow_us"),
        ] {
            let (published, simulated) = (number(row, published), number(row, simulated));
            all.extend(beside(&format!("{name}, {mode}"), published, simulated));
        }
        all
    },
};

/// Questions and the numbers that answer them.
const FACTS: Drawing = Drawing {
    by: "question",
    parts: &["value"],
    axis: "",
    note: "",
    rows: |row, name| vec![(name.to_owned(), vec![number(row, "value")])],
};

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or(f64::NAN)
}

/// A simulated number below the published one, as shares of that; nothing if there is none.
fn beside(name: &str, published: f64, simulated: f64) -> Rows {
    if published.is_nan() || published <= 0.0 {
        return Rows::new();
    }
    let simulated = 100.0 * simulated / published;
    vec![
        (format!("{name}, published"), vec![100.0, 0.0]),
        (format!("{name}, simulated"), vec![0.0, simulated]),
    ]
}

/// Keys of words that tell rows apart.
const WORDS: [&str; 8] = ["group", "start", "pages", "of", "what", "unit", "name", "bar"];

/// The figures of rows of results.
pub fn figures(rows: &[Value]) -> Vec<Figure> {
    let Some(first) = rows.first() else { return Vec::new() };
    let has = |key: &str| first.get(key).is_some();
    let drawing = match () {
        () if has("walk_percent") => OVERHEADS,
        () if has("published") && has("simulated") => COUNTERS,
        () if has("published_ept_us") => TIMES,
        () if has("question") => FACTS,
        () => return Vec::new(),
    };
    let mut groups: Vec<(&str, Vec<&Value>)> = Vec::new();
    for row in rows {
        let name = row[drawing.by].as_str().unwrap_or_default();
        match groups.iter_mut().find(|group| group.0 == name) {
            Some(group) => group.1.push(row),
            None => groups.push((name, vec![row])),
        }
    }
    groups.iter().enumerate().map(|(i, (name, rows))| figure(&drawing, i, name, rows)).collect()
}

fn figure(drawing: &Drawing, i: usize, name: &str, of: &[&Value]) -> Figure {
    // A word that all of them have tells nothing.
    let differs = |key: &&&str| of.iter().any(|row| row[**key] != of[0][**key]);
    let mut keys: Vec<&str> = WORDS.iter().filter(differs).copied().collect();
    if keys.is_empty() {
        keys.push("bar");
    }
    let called = |row: &Value| {
        let words =
            keys.iter().filter_map(|key| row[*key].as_str()).filter(|word| !word.is_empty());
        words.collect::<Vec<_>>().join(", ")
    };
    let rows: Rows = of.iter().flat_map(|row| (drawing.rows)(row, &called(row))).collect();
    let unit = of[0]["unit"].as_str().unwrap_or_default();
    let axis = if drawing.axis.is_empty() { unit } else { drawing.axis };
    let parts = drawing.parts.iter().map(|part| (*part).to_owned()).collect();
    Figure {
        id: if name.is_empty() { "all".into() } else { format!("{}-{}", i + 1, word(name)) },
        title: if name.is_empty() { "All rows".into() } else { name.to_owned() },
        note: drawing.note.to_owned(),
        plot: Plot::Bars { axis: Axis::new(axis), parts, rows },
    }
}

/// Few words of a name, for a file.
fn word(name: &str) -> String {
    let lower = name.to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.take(6).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::figures;
    use serde_json::json;

    #[test]
    fn published_bars_stand_below_ours() {
        let row = |bar: &str, ours: f64, theirs: Option<f64>| {
            json!({
                "program": "gcc", "pages": "4k", "bar": bar, "walk_percent": ours, "vmm_percent": 1.0,
                "published_walk_percent": theirs, "published_vmm_percent": theirs.map(|_| 2.0),
            })
        };
        let all = figures(&[row("B", 3.0, Some(4.0)), row("N", 5.0, None)]);
        let [figure] = all.as_slice() else { panic!("{all:?}") };
        let rows = figure.rows();
        let cells = |cells: [&str; 3]| cells.map(String::from).to_vec();
        assert_eq!(
            rows[1..],
            [cells(["B", "3", "1"]), cells(["B, published", "4", "2"]), cells(["N", "5", "1"]),]
        );
        assert_eq!(figure.id, "1-gcc");
    }

    #[test]
    fn counters_are_shares_of_published_ones() {
        let row = json!({"program": "p", "what": "walks", "published": 50.0, "simulated": 40.0});
        let other = json!({"program": "p", "what": "none", "published": 0.0, "simulated": 1.0});
        let rows = figures(&[row, other])[0].rows();
        assert_eq!(rows.len(), 3);
        assert_eq!(rows[2], ["walks, simulated", "0", "80"].map(String::from));
        assert!(figures(&[]).is_empty() && figures(&[json!({"a": 1})]).is_empty());
    }
}
