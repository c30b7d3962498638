//! Recorded guests among the sources: what they say of themselves before anything runs.

use super::{Kind, kind, samples, trace_format};
use anyhow::{Context, Result, bail};
use nestwalk_mm::{HostPages, Mappings, Survey};
use nestwalk_source::trace::TraceReader;
use nestwalk_source::{Format, Mapped, PageTables};
use nestwalk_types::{Batch, Control, GuestInfo, Room, Source, SourceError, SourceInfo};
use std::io::{Read, Seek};
use std::path::Path;
use std::sync::Arc;

/// The recorded guest that the sources are, if they are one.
///
/// # Errors
/// It is one of several sources.
pub fn recorded(sources: &[String], format: &str, page_tables: &str) -> Result<Option<GuestInfo>> {
    // A format that does not exist is reported with the other options.
    let Ok(format) = trace_format(format) else { return Ok(None) };
    if !page_tables.is_empty() {
        return Ok(mapped(sources, format, page_tables)?.info().guest);
    }
    for name in sources {
        if let Some(sample) = samples::by_name(name) {
            alone(name, sources)?;
            return Ok(sample.open()?.info().guest);
        }
        let path = Path::new(name);
        // What is no plain file cannot be read twice, and no recording is.
        let plain = std::fs::metadata(path).is_ok_and(|m| m.is_file());
        if kind(name) != Some(Kind::File) || !plain {
            continue;
        }
        // A file that cannot be opened is reported when it must be.
        let info = nestwalk_source::open_on(path, format, 1).ok().and_then(|s| s.info().guest);
        if info.is_some() {
            alone(name, sources)?;
            return Ok(info);
        }
    }
    Ok(None)
}

/// The trace with the page tables that come with it.
///
/// # Errors
/// There is not one trace, either cannot be read, or the trace has its own page tables.
pub fn mapped(
    sources: &[String],
    format: Option<Format>,
    page_tables: &str,
) -> Result<Mapped<Box<dyn Source>>> {
    let [name] = sources else {
        bail!(
            "--page-tables {page_tables}: is for one trace file; {} sources are given",
            sources.len()
        )
    };
    if kind(name) != Some(Kind::File) {
        bail!("--page-tables {page_tables}: is for a trace file, and {name} is none");
    }
    let tables = PageTables::open(Path::new(page_tables)).context("--page-tables")?;
    let trace = nestwalk_source::open_on(Path::new(name), format, 1)?;
    Ok(Mapped::new(trace, &tables)?)
}

/// Where the host has the pages of the guest's memory, as the dumps that come with a trace say it.
///
/// # Errors
/// One of the dumps cannot be read.
pub fn host_pages(page_tables: &str, host_page_tables: &str) -> Result<Arc<HostPages>> {
    let guest = PageTables::open(Path::new(page_tables)).context("--page-tables")?;
    let host = guest.open_host(Path::new(host_page_tables)).context("--host-page-tables")?;
    Ok(Arc::new(HostPages::new(host)))
}

/// What the process of a trace with page tables has mapped.
///
/// # Errors
/// As [`mapped`], or the guest cannot be re-mapped.
pub fn survey_mapped(
    sources: &[String],
    format: Option<Format>,
    page_tables: &str,
    guest: &GuestInfo,
) -> Result<Arc<Mappings>> {
    let mapped = mapped(sources, format, page_tables)?;
    let mut survey = Survey::new(guest).context("--page-tables")?;
    for control in mapped.begin() {
        survey.follow(&(0, control.clone())).context("--page-tables")?;
    }
    Ok(Arc::new(survey.finish()))
}

fn alone(name: &str, sources: &[String]) -> Result<()> {
    if sources.len() > 1 {
        bail!(
            "{name} is a recorded guest, a whole machine with its kernel, so it can be no process \
             beside others: give it alone"
        );
    }
    Ok(())
}

/// What the processes of a recording had mapped at some time: a pass over its controls.
///
/// # Errors
/// The file cannot be read, or the guest cannot be re-mapped.
pub fn survey(path: &str, guest: &GuestInfo) -> Result<Arc<Mappings>> {
    match samples::by_name(path) {
        Some(sample) => survey_of(sample.open()?, path, guest),
        None => survey_of(TraceReader::open(Path::new(path))?, path, guest),
    }
}

fn survey_of<R: Read + Seek + Send>(
    mut reader: TraceReader<R>,
    path: &str,
    guest: &GuestInfo,
) -> Result<Arc<Mappings>> {
    let mut survey = Survey::new(guest).with_context(|| path.to_owned())?;
    let mut controls = Vec::new();
    // Damage ends the survey where it will end the run, which then says what was wrong.
    while matches!(reader.next_controls(&mut controls), Ok(true)) {
        for (_, control) in controls.drain(..) {
            survey.follow(&(0, control)).with_context(|| path.to_owned())?;
        }
    }
    Ok(Arc::new(survey.finish()))
}

/// Whether the recording itself says where its region of interest begins.
pub fn has_interest(path: &str) -> bool {
    let totals = match samples::by_name(path) {
        Some(sample) => sample.open().ok().and_then(|r| r.totals().cloned()),
        None => TraceReader::open(Path::new(path)).ok().and_then(|r| r.totals().cloned()),
    };
    totals.is_some_and(|t| t.controls_by_kind.contains_key("region_of_interest"))
}

/// Says that the region of interest begins before the first access, as every source must that does not
/// say it later.
pub struct Interest<S> {
    inner: S,
    said: bool,
}

impl<S: Source> Interest<S> {
    /// Of a source that says nothing of the kind.
    pub const fn new(inner: S) -> Self {
        Self { inner, said: false }
    }
}

impl<S: Source> Source for Interest<S> {
    fn info(&self) -> SourceInfo {
        self.inner.info()
    }
    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        let more = self.inner.next_batch(batch)?;
        if !self.said && !batch.runs.is_empty() {
            self.said = true;
            let place = batch.controls.partition_point(|c| c.0 == 0);
            batch.controls.insert(place, (0, Control::RegionOfInterest));
        }
        Ok(more)
    }
    fn set_room(&mut self, room: Room) -> bool {
        self.inner.set_room(room)
    }
    fn tally(&self) -> Vec<(&'static str, u64)> {
        self.inner.tally()
    }
    fn position(&self) -> u64 {
        self.inner.position()
    }
}
