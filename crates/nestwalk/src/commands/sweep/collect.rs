//! One long table of all points.

use super::file::Values;
use super::keys;
use super::point::Point;
use super::store::{Store, write_whole};
use crate::formats::{Found, SWEEP_FORMAT, parquet};
use crate::screen::Screen;
use crate::show::long;
use anyhow::Result;
use nestwalk_lab::VERSION;
use nestwalk_report::figure::number;
use nestwalk_report::{Align, Table, count, to_csv};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// What is there of a sweep.
pub struct Collected {
    /// Names of axes.
    axes: Vec<String>,
    /// Points that are done, by values and keys, with what their files hold.
    done: Vec<(Values, String, Value)>,
    /// Values of those that are not.
    missing: Vec<Values>,
    /// Files of the table, and rows of the long one.
    written: Vec<PathBuf>,
    rows: usize,
}

/// Reads what is there.
///
/// # Errors
/// A result is there, but cannot be read.
pub fn collect(points: &[Point], store: &Store) -> Result<Collected> {
    let axes = points.first().map(|p| p.values.iter().map(|v| v.0.clone()).collect());
    let mut all = Collected {
        axes: axes.unwrap_or_default(),
        done: Vec::new(),
        missing: Vec::new(),
        written: Vec::new(),
        rows: 0,
    };
    for point in points {
        let values = point.values.clone();
        match store.read(point)? {
            Some(found) => all.done.push((values, point.key.clone(), found)),
            None => all.missing.push(values),
        }
    }
    Ok(all)
}

impl Collected {
    /// How many points are not done.
    pub const fn missing(&self) -> usize {
        self.missing.len()
    }

    /// Points in all.
    pub const fn points(&self) -> usize {
        self.done.len() + self.missing.len()
    }

    /// Writes results.csv and results.json.
    ///
    /// # Errors
    /// One cannot be written.
    pub fn write(&mut self, folder: &Path) -> Result<()> {
        // Point by point: rows of all would take many times the memory of the text.
        let (mut csv, mut rows) = (String::new(), 0);
        for point in &self.done {
            let of_point = self.rows_of(point);
            rows += of_point.len();
            let text = to_csv(&of_point)?;
            // All have the same columns.
            let body = text.split_once('\n').map_or("", |(_, body)| body);
            csv += if csv.is_empty() { &text } else { body };
        }
        self.rows = rows;
        let json = serde_json::to_string(&self.json()?)? + "\n";
        for (name, text) in [("results.csv", csv), ("results.json", json)] {
            let file = folder.join(name);
            write_whole(&folder.join(format!("{name}.unfinished")), &file, text.as_bytes())?;
            self.written.push(file);
        }
        Ok(())
    }

    /// Writes the long table as Parquet, a group of rows for each point.
    ///
    /// # Errors
    /// This build cannot, or the file cannot be written.
    pub fn write_parquet(&mut self, file: &Path) -> Result<()> {
        let mut rows = self.done.iter().map(|point| self.rows_of(point)).peekable();
        let Some(first) = rows.peek() else { return Ok(()) };
        let mut writer = parquet::Writer::new(first)?;
        for rows in rows {
            writer.write(&rows)?;
        }
        let unfinished = file.with_extension("unfinished");
        write_whole(&unfinished, file, &writer.finish()?)?;
        self.written.push(file.into());
        Ok(())
    }

    /// Rows of a point: its axes, and a number of a machine.
    fn rows_of(&self, (values, _, found): &(Values, String, Value)) -> Vec<Value> {
        let results = &found["results"];
        let about = long::About {
            source: results["source"].as_str().unwrap_or_default(),
            profile: results["profile"].as_str().unwrap_or_default(),
            seed: found["seed"].as_u64().unwrap_or_default(),
            input_hash: found["input_hash"].as_str().unwrap_or_default(),
        };
        let axes: Map<String, Value> = values
            .iter()
            .map(|(name, value)| (format!("axis.{name}"), cell(value).into()))
            .collect();
        let machines = results["machines"].as_array().into_iter().flatten();
        let row = |row: Value| {
            let mut all = axes.clone();
            all.extend(row.as_object().cloned().unwrap_or_default());
            Value::Object(all)
        };
        machines.flat_map(|machine| about.rows(machine)).map(row).collect()
    }
}

fn cell(value: &toml::Value) -> String {
    keys::text(value).unwrap_or_else(|| value.to_string())
}

/// Values of a point as JSON.
pub fn axes_json(values: &Values) -> Result<Value> {
    let all = values.iter().map(|(name, value)| Ok((name.clone(), serde_json::to_value(value)?)));
    Ok(Value::Object(all.collect::<Result<_>>()?))
}

impl Found for Collected {
    fn json(&self) -> Result<Value> {
        let point = |(values, key, found): &(Values, String, Value)| {
            let mut point = json!({ "axes": axes_json(values)?, "key": key });
            for part in ["seed", "input_hash", "commit", "results"] {
                point[part] = found[part].clone();
            }
            Ok(point)
        };
        Ok(json!({
            "format_version": SWEEP_FORMAT,
            "version": VERSION,
            "axes": self.axes,
            "complete": self.missing.is_empty(),
            "points": self.done.iter().map(point).collect::<Result<Vec<_>>>()?,
            "missing": self.missing.iter().map(axes_json).collect::<Result<Vec<_>>>()?,
        }))
    }

    fn rows(&self) -> Result<Vec<Value>> {
        Ok(self.done.iter().flat_map(|point| self.rows_of(point)).collect())
    }

    fn table(&self, screen: Screen) -> String {
        let mut out = String::from("overhead_percent of each machine\n\n");
        out += &self.overheads().render_within(screen.columns());
        out += &format!("\n{} of {} points", self.done.len(), self.points());
        for file in &self.written {
            out += &format!(", {}", file.display());
        }
        if self.rows > 0 {
            out += &format!(": {} rows", count(self.rows as u64));
        }
        out + "\n"
    }
}

/// Overheads of a point's machines, by name, the ideal one's left out.
fn overheads(found: &Value) -> impl Iterator<Item = (&str, String)> {
    let all = found["results"]["machines"].as_array().into_iter().flatten();
    all.filter(|m| m["scheme"] != "ideal").map(|m| {
        let overhead = m["overhead_percent"].as_f64().map_or_else(|| "-".into(), number);
        (m["name"].as_str().unwrap_or_default(), overhead)
    })
}

impl Collected {
    /// A row for each point if all have the same machines, and else for each machine of each point.
    fn overheads(&self) -> Table {
        let names = |found: &Value| -> Vec<String> {
            overheads(found).map(|(name, _)| name.to_owned()).collect()
        };
        let first = self.done.first().map(|(.., found)| names(found)).unwrap_or_default();
        let same = self.done.iter().all(|(.., found)| names(found) == first);
        let mut table = Table::new();
        for axis in &self.axes {
            table = table.column(axis, Align::Right);
        }
        if same {
            for name in &first {
                table = table.column(name, Align::Right);
            }
        } else {
            table = table.column("machine", Align::Left).column("overhead_percent", Align::Right);
        }
        for (values, _, found) in &self.done {
            let axes: Vec<String> = values.iter().map(|(_, value)| cell(value)).collect();
            if same {
                table.row(axes.into_iter().chain(overheads(found).map(|m| m.1)).collect());
                continue;
            }
            for (name, overhead) in overheads(found) {
                table.row([axes.clone(), vec![name.into(), overhead]].concat());
            }
        }
        table
    }
}
