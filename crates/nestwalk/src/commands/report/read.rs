//! Results as `compare --output` wrote them.

use crate::formats::RESULTS_FORMAT;
use anyhow::{Context, Result, anyhow, bail};
use nestwalk_lab::VERSION;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The file in a folder.
const FILE: &str = "results.json";

/// A number that every machine of every result has.
const ALWAYS: [&str; 6] =
    ["instructions", "walks", "program_cycles", "translation_cycles", "vmm_cycles", "total_cycles"];

/// Results of one run.
#[derive(Clone, Debug)]
pub struct Run {
    /// What it is called among others.
    pub label: String,
    /// Its source.
    pub source: String,
    /// What that is.
    pub description: String,
    /// Name of its profile.
    pub profile: String,
    /// What is not as in the real program, and if it ended early, why.
    pub notes: Vec<String>,
    /// Memory that its processes used, if a kernel was modelled.
    pub footprint: Option<f64>,
    /// The configuration beside it, if there is one.
    pub config: Option<PathBuf>,
    /// An object each.
    pub machines: Vec<Value>,
}

/// A number of a machine; not a number where it has none.
pub fn number(machine: &Value, key: &str) -> f64 {
    key.split('.').fold(machine, |at, key| &at[key]).as_f64().unwrap_or(f64::NAN)
}

/// The name of a machine.
pub fn name(machine: &Value) -> String {
    machine["name"].as_str().unwrap_or_default().into()
}

/// Reads all of them, and tells them apart.
///
/// # Errors
/// One cannot be read, is of another version, or has nothing in it.
pub fn runs(paths: &[PathBuf]) -> Result<Vec<Run>> {
    let mut runs = paths.iter().map(|path| run(path)).collect::<Result<Vec<Run>>>()?;
    let labels: Vec<String> = runs.iter().map(|run| run.label.clone()).collect();
    for ((i, run), path) in runs.iter_mut().enumerate().zip(paths) {
        if labels.iter().enumerate().any(|(j, label)| i != j && *label == run.label) {
            run.label = path.display().to_string();
        }
    }
    Ok(runs)
}

/// Where the results are: in the folder, or the file itself.
fn file_of(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.into());
    }
    let file = path.join(FILE);
    if !file.exists() {
        let folder = path.display();
        bail!("{folder}: no {FILE} in it; `nestwalk compare --output {folder}` writes one");
    }
    Ok(file)
}

/// What a file has, and which file that is.
///
/// # Errors
/// It cannot be read, or is no JSON.
pub fn value(path: &Path) -> Result<(PathBuf, Value)> {
    let file = file_of(path)?;
    let at = file.display();
    let text = std::fs::read_to_string(&file).with_context(|| format!("{at}: cannot be read"))?;
    if text.trim().is_empty() {
        bail!("{at}: it is empty; results of `nestwalk compare --output DIR` are expected");
    }
    let value: Value = serde_json::from_str(&text).with_context(|| {
        format!("{at}: it is no JSON; the {FILE} of `nestwalk compare --output DIR` is expected")
    })?;
    Ok((file, value))
}

/// What of the results is not as in the real program, and if they ended early, why.
pub fn notes(value: &Value) -> Vec<String> {
    let strings = |v: &Value| v.as_str().map(String::from);
    let mut notes: Vec<String> =
        value["approximations"].as_array().into_iter().flatten().filter_map(strings).collect();
    if value["complete"] != Value::Bool(true) {
        let why = value["error"].as_str().unwrap_or("it was interrupted");
        notes.insert(0, format!("the run ended early, and numbers are of what came before: {why}"));
    }
    notes
}

fn run(path: &Path) -> Result<Run> {
    let (file, value) = value(path)?;
    let machines = machines(&value).with_context(|| file.display().to_string())?;
    let word = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let guests = value["guests"].as_object().into_iter().flat_map(|guests| guests.values());
    let resident = guests.filter_map(|guest| guest["peak_resident_bytes"].as_f64());
    Ok(Run {
        label: label(&file),
        config: Some(file.with_file_name("config.toml")).filter(|config| config.exists()),
        source: word("source"),
        description: word("description"),
        profile: word("profile"),
        notes: notes(&value),
        // The least: larger pages hold memory that nothing uses.
        footprint: resident.filter(|bytes| *bytes > 0.0).reduce(f64::min),
        machines,
    })
}

/// The folder's name, or the file's if that is not the usual one.
pub fn label(file: &Path) -> String {
    let name = |path: &Path| path.file_stem().map(|n| n.to_string_lossy().into_owned());
    let usual = file.file_name().is_some_and(|name| name == FILE);
    let folder = file.parent().and_then(|folder| folder.canonicalize().ok());
    let folder =
        folder.as_deref().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
    if usual { folder } else { name(file) }.unwrap_or_else(|| "results".into())
}

/// The version whose results may have no number of their format.
const FIRST: &str = "0.1.0";

/// Whether results are understood.
///
/// # Errors
/// They are not.
pub fn check_version(value: &Value) -> Result<()> {
    let version = value["version"].as_str().unwrap_or_default();
    // Results have had a number of their format since 0.1.0, and are those of format 1 without.
    let format = value.get("format_version");
    let readable = match format.map(Value::as_u64) {
        Some(Some(format)) => format <= RESULTS_FORMAT,
        Some(None) => bail!("`format_version` is no number"),
        None => version == FIRST,
    };
    if !readable {
        let format = format.map_or_else(String::new, |format| format!(" in format {format}"));
        bail!(
            "results of nestwalk {version}{format}, but this is nestwalk {VERSION}, which reads format \
             {RESULTS_FORMAT} and those before; make the report with that version, or the results anew"
        );
    }
    Ok(())
}

/// The machines, once it is certain that they are understood.
fn machines(value: &Value) -> Result<Vec<Value>> {
    let (Some(_), Some(list)) = (value["version"].as_str(), value["machines"].as_array()) else {
        bail!("no results of `nestwalk compare`: `version` or `machines` is missing");
    };
    check_version(value)?;
    if list.is_empty() {
        bail!("no machine in the results: the run ended before any");
    }
    for (i, machine) in list.iter().enumerate() {
        let lacks =
            |key: &str| anyhow!("machine {} (`{}`): no number `{key}`", i + 1, name(machine));
        if !machine["name"].is_string() {
            bail!("machine {}: no `name`", i + 1);
        }
        for key in ALWAYS {
            if !number(machine, key).is_finite() {
                return Err(lacks(key));
            }
        }
    }
    Ok(list.clone())
}
