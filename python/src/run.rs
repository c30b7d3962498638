//! One comparison, with one seed or several.

use crate::array::Array;
use crate::{error, refuse};
use nestwalk_lab::results::{Compared, long, repeats::Repeats};
use nestwalk_lab::{
    Experiment, Given, Lab, MachineResult, Opened, Progress, Session, Settings, Work, describe,
    memory,
};
use pyo3::PyErr;
use pyo3::prelude::{
    Bound, Py, PyAny, PyAnyMethods, PyResult, Python, pyclass, pyfunction, pymethods,
};
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// From one look at signals and progress to the next.
const EVERY: Duration = Duration::from_millis(100);

thread_local! {
    /// What the lab said of what was asked for.
    static NOTES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn note(text: &str) {
    NOTES.with_borrow_mut(|notes| notes.push(text.to_owned()));
}

/// What came of it.
#[pyclass(frozen, module = "nestwalk._nestwalk")]
pub struct Run {
    experiment: Experiment,
    /// By seed, the first one first.
    sessions: Vec<(u64, Session)>,
    /// Why it ended early or cannot be trusted.
    #[pyo3(get)]
    ended: Option<String>,
    /// What ended it, if that came from Python: a signal, or the function that hears of progress.
    #[pyo3(get)]
    raised: Option<Py<PyAny>>,
    /// What a user should know of what was asked for.
    #[pyo3(get)]
    notes: Vec<String>,
}

impl Run {
    fn machines(&self) -> Vec<(u64, &[MachineResult])> {
        self.sessions.iter().map(|s| (s.0, s.1.outcome.machines.as_slice())).collect()
    }

    fn first(&self) -> PyResult<&Session> {
        self.sessions.first().map(|s| &s.1).ok_or_else(|| refuse("nothing has run"))
    }
}

#[pymethods]
impl Run {
    /// Whether there are results.
    #[getter]
    fn has_counted(&self) -> bool {
        self.sessions.first().is_some_and(|s| s.1.outcome.machines.iter().any(|m| m.accesses > 0))
    }

    /// What `compare --format json` prints.
    fn json(&self) -> PyResult<String> {
        let mut compared = Compared::new(&self.experiment, self.first()?);
        let (seeds, machines): (Vec<u64>, Vec<_>) = self.machines().into_iter().unzip();
        let base = compared.base.filter(|_| seeds.len() > 1);
        let repeats = base.and_then(|base| Repeats::new(base, &seeds, &machines));
        compared.repeats = repeats.as_ref();
        Ok(compared.json().map_err(|e| error(&e))?.to_string())
    }

    /// The rows of `compare --long`.
    fn rows(&self) -> PyResult<String> {
        let source = &self.first()?.info.name;
        let rows = long::rows(source, &self.experiment, &self.machines());
        serde_json::to_string(&rows.map_err(|e| error(&e))?).map_err(refuse)
    }

    /// The file that repeats it.
    fn config(&self) -> PyResult<String> {
        self.experiment.to_toml().map_err(|e| error(&e))
    }
}

/// What is asked for, by names and texts as on the command line.
fn settings(sources: &[String], asked: &[(String, String)]) -> PyResult<Settings> {
    let mut settings = Settings { sources: sources.to_vec(), ..Settings::default() };
    for (key, text) in asked {
        settings.set(key, text).map_err(|e| error(&e))?;
    }
    Ok(settings)
}

/// A source: a name, or an array with its name.
enum Source<'py> {
    Name(String),
    Array(Bound<'py, Array>),
}

fn source<'py>(object: &Bound<'py, PyAny>) -> PyResult<Source<'py>> {
    match object.cast::<Array>() {
        Ok(array) => Ok(Source::Array(array.clone())),
        Err(_) => object.extract().map(Source::Name),
    }
}

/// Arrays as sources, which each run opens anew.
fn given(py: Python<'_>, sources: &[Source<'_>]) -> PyResult<(Vec<String>, Given)> {
    let mut given = Given::default();
    let mut names = Vec::new();
    for source in sources {
        names.push(match source {
            Source::Name(name) => name.clone(),
            Source::Array(array) => {
                let (name, accesses) = array.get().accesses(py)?;
                given.insert(name.clone(), memory::source(&name, Box::new(accesses)));
                name
            }
        });
    }
    Ok((names, given))
}

/// Runs a comparison. `progress` hears what is done, how much of it, and of how much.
#[pyfunction]
pub fn run(
    py: Python<'_>,
    sources: Vec<Bound<'_, PyAny>>,
    asked: Vec<(String, String)>,
    repeat: u16,
    walk_map: bool,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Run> {
    if repeat == 0 || threads == Some(0) {
        return Err(refuse(format!(
            "{} 0: at least 1 is needed",
            if repeat == 0 { "repeat" } else { "threads" }
        )));
    }
    let sources = sources.iter().map(source).collect::<PyResult<Vec<_>>>()?;
    let lab = Lab::new().with_notes(note);
    let work = Work { threads: threads.unwrap_or(Work::default().threads), ..Work::default() };
    let (names, first) = given(py, &sources)?;
    let settings = settings(&names, &asked)?;
    let experiment = lab.experiment(&settings);
    let notes = NOTES.take();
    let experiment = experiment.map_err(|e| error(&e))?;
    let mut watch = Watch { progress, raised: None, last: Instant::now() };
    let mut run = Run { experiment, sessions: Vec::new(), ended: None, raised: None, notes };
    let mut next = Some(first);
    for more in 0..u64::from(repeat) {
        let seed = run.experiment.seed.wrapping_add(more);
        let again = Experiment { seed, ..run.experiment.clone() };
        let given = match next.take() {
            Some(first) => first,
            None => given(py, &sources)?.1,
        };
        let opened = py.detach(|| lab.open_given(&again, given, &work, &mut |_| ()));
        let mut opened = opened.map_err(|e| error(&e))?;
        if walk_map {
            opened.map_walks();
        }
        let session = py.detach(|| watch.run(&again, opened)).map_err(|e| error(&e))?;
        run.ended = session.ended().map(|e| describe(&e));
        let keep = run.ended.is_none() || more == 0;
        if let (Some(why), true) = (&mut run.ended, more > 0) {
            *why = format!("repeat: seed {seed}: {why}");
        }
        if keep {
            run.sessions.push((seed, session));
        }
        if run.ended.is_some() {
            break;
        }
    }
    run.raised = watch.raised.map(|e| e.into_value(py).into_any());
    Ok(run)
}

/// Who looks at signals and tells progress.
struct Watch {
    progress: Option<Py<PyAny>>,
    raised: Option<PyErr>,
    last: Instant,
}

impl Watch {
    fn run(&mut self, experiment: &Experiment, opened: Opened) -> nestwalk_lab::Result<Session> {
        let stop = AtomicBool::new(false);
        let total = opened.info().total;
        opened.run(&stop, &mut |progress| {
            if self.raised.is_none() && self.last.elapsed() >= EVERY {
                self.last = Instant::now();
                if let Err(raised) = self.look(experiment, total, &progress) {
                    self.raised = Some(raised);
                    stop.store(true, Ordering::Relaxed);
                }
            }
        })
    }

    fn look(&self, e: &Experiment, total: Option<u64>, progress: &Progress) -> PyResult<()> {
        let (what, done, of) = match progress.before {
            None => ("setting up", progress.accesses, None),
            Some(before) => match (e.accesses, total.filter(|t| *t > 0)) {
                (0, Some(total)) => ("running", progress.position, Some(total)),
                (0, None) => ("running", progress.accesses.saturating_sub(before), None),
                (limit, _) => ("running", progress.accesses.saturating_sub(before), Some(limit)),
            },
        };
        Python::attach(|py| {
            py.check_signals()?;
            if let Some(tell) = &self.progress {
                tell.call1(py, (what, done, of))?;
            }
            Ok(())
        })
    }
}
