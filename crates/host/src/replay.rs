//! Recordings in place of a VM.

use crate::governor::{SwitchResult, Vm, VmError};
use nestwalk_policy::{CsvError, Mode, Row, Sample};
use std::iter::Peekable;

/// A recording. It does what was recorded: a switch is done if the recording changes its mode just then,
/// and refused otherwise.
pub struct ReplayVm<I: Iterator<Item = Result<Row, CsvError>>> {
    rows: Peekable<I>,
    now: Mode,
}

/// The mode of the first row.
fn first<I: Iterator<Item = Result<Row, CsvError>>>(
    rows: &mut Peekable<I>,
) -> Result<Mode, String> {
    match rows.peek() {
        Some(Ok(row)) => Ok(row.sample.mode),
        Some(Err(error)) => Err(error.to_string()),
        None => Err("the recording has no samples".into()),
    }
}

impl<I: Iterator<Item = Result<Row, CsvError>>> ReplayVm<I> {
    /// A recording.
    ///
    /// # Errors
    /// If there is no first sample.
    pub fn new(rows: I) -> Result<Self, String> {
        let mut rows = rows.peekable();
        let now = first(&mut rows)?;
        Ok(Self { rows, now })
    }
}

impl<I: Iterator<Item = Result<Row, CsvError>>> Vm for ReplayVm<I> {
    fn next(&mut self) -> Result<Sample, VmError> {
        match self.rows.next() {
            None => Err(VmError::RecordingEnds),
            Some(Err(error)) => Err(VmError::Fatal(error.to_string())),
            Some(Ok(row)) => {
                self.now = row.sample.mode;
                Ok(row.sample)
            }
        }
    }

    fn mode(&mut self) -> Result<Mode, String> {
        Ok(self.now)
    }

    fn switch(&mut self, to: Mode) -> SwitchResult {
        match self.rows.peek() {
            Some(Ok(row)) if row.sample.mode == to => SwitchResult::Done,
            Some(Ok(_)) => {
                SwitchResult::Refused(format!("the recording stays in {} paging", self.now))
            }
            _ => SwitchResult::Refused("the recording ends here".into()),
        }
    }
}

/// Two recordings of the same work, one in each mode and cut alike: switches are obeyed, and each
/// interval comes from the recording of the mode in force. What a switch costs is not in them.
#[derive(Debug)]
pub struct TwinVm {
    shadow: Vec<Sample>,
    nested: Vec<Sample>,
    mode: Mode,
    next: usize,
}

impl TwinVm {
    /// The recordings, in either order, and the mode to begin with.
    ///
    /// # Errors
    /// If they differ in length, or not each is of one mode.
    pub fn new(one: Vec<Sample>, other: Vec<Sample>, start: Mode) -> Result<Self, String> {
        if one.len() != other.len() {
            let (a, b) = (one.len(), other.len());
            return Err(format!("{a} and {b} intervals: two recordings must be cut alike"));
        }
        let is = |samples: &[Sample], mode| samples.iter().all(|s| s.mode == mode);
        let (shadow, nested) = if is(&one, Mode::Shadow) { (one, other) } else { (other, one) };
        if shadow.is_empty() || !is(&shadow, Mode::Shadow) || !is(&nested, Mode::Nested) {
            return Err("one recording must be all in shadow mode, one all in nested mode".into());
        }
        Ok(Self { shadow, nested, mode: start, next: 0 })
    }

    /// The intervals of a mode.
    pub fn of(&self, mode: Mode) -> &[Sample] {
        match mode {
            Mode::Shadow => &self.shadow,
            Mode::Nested => &self.nested,
        }
    }
}

impl Vm for TwinVm {
    fn next(&mut self) -> Result<Sample, VmError> {
        let sample = self.of(self.mode).get(self.next).copied().ok_or(VmError::RecordingEnds)?;
        self.next += 1;
        Ok(sample)
    }

    fn mode(&mut self) -> Result<Mode, String> {
        Ok(self.mode)
    }

    fn switch(&mut self, to: Mode) -> SwitchResult {
        self.mode = to;
        SwitchResult::Done
    }
}
