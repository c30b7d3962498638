//! Samples as CSV: what a recorder writes and what replay, training and the simulator read.
//!
//! The first line that is not a comment (`#`) names the columns, in any order; columns of other names
//! are passed over. All numbers are whole. A counter that was not there is an empty field.

use crate::sample::{Mode, Sample};
use std::io::{self, BufRead, Write};
use thiserror::Error;

/// A column of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name in the header.
    pub name: &'static str,
    /// Whether every line must have a value; the column itself may only be missing if it is
    /// `best_mode`.
    pub required: bool,
    /// What it means, with its unit.
    pub meaning: &'static str,
}

const fn required(name: &'static str, meaning: &'static str) -> Column {
    Column { name, required: true, meaning }
}

const fn optional(name: &'static str, meaning: &'static str) -> Column {
    Column { name, required: false, meaning }
}

/// The columns, in the order in which they are written.
pub const COLUMNS: [Column; 13] = [
    required("time_ns", "end of the interval, nanoseconds; grows from line to line"),
    required("duration_ns", "length of the interval, nanoseconds"),
    required("busy_ns", "processor time of all vCPU threads, nanoseconds"),
    required("instructions", "instructions retired in the guest"),
    required("guest_cycles", "cycles in the guest, walks included"),
    required("host_kernel_cycles", "cycles of the vCPU threads in the host's kernel (the VMM)"),
    required("host_user_cycles", "cycles of the vCPU threads in the host's user space"),
    optional("walk_cycles", "guest cycles with a page walk under way"),
    optional("guest_page_faults", "page faults that the guest's kernel handled"),
    optional("tlb_misses", "misses of the last level of TLBs, in the guest"),
    optional("vm_exits", "exits to the VMM: those for paging if they can be told, else all"),
    required("mode", "shadow or nested: the mode of the whole interval"),
    optional("best_mode", "for training: the mode that would have been best"),
];

const MODE: usize = 11;
const BEST: usize = 12;
/// No line of samples is longer; a longer one is not of this format.
const MOST_LINE: u64 = 64 * 1024;

/// What is wrong with a file of samples.
#[derive(Debug, Error)]
pub enum CsvError {
    /// It cannot be read.
    #[error("line {line}: {error}")]
    Read {
        /// The line, from 1.
        line: u64,
        /// What is wrong.
        error: io::Error,
    },
    /// There is not even a header.
    #[error("there is no header; it would be {}", header())]
    Empty,
    /// Columns are missing.
    #[error("line {line}: missing columns: {missing}")]
    MissingColumns {
        /// The line of the header.
        line: u64,
        /// The columns' names.
        missing: String,
    },
    /// A column twice.
    #[error("line {line}: two columns {column}")]
    TwoColumns {
        /// The line of the header.
        line: u64,
        /// The column.
        column: &'static str,
    },
    /// Too few or too many fields.
    #[error("line {line}: {found} fields, where the header has {expected}")]
    Fields {
        /// The line.
        line: u64,
        /// How many there are.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
    /// A field that does not say what it should.
    #[error("line {line}, column {column}: {what}")]
    Field {
        /// The line.
        line: u64,
        /// The column.
        column: &'static str,
        /// What is wrong.
        what: String,
    },
    /// Time goes backwards.
    #[error("line {line}, column time_ns: {now} does not come after {before} of the line before")]
    Backwards {
        /// The line.
        line: u64,
        /// The time there.
        now: u64,
        /// The time before.
        before: u64,
    },
}

fn header() -> String {
    let names: Vec<&str> =
        COLUMNS.iter().filter(|c| c.name != "best_mode").map(|c| c.name).collect();
    names.join(",")
}

/// A line of a file of samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The sample.
    pub sample: Sample,
    /// The best mode, if the file says so.
    pub best_mode: Option<Mode>,
    /// The line, from 1.
    pub line: u64,
}

/// Reads samples; an iterator that ends after the first error.
#[derive(Debug)]
pub struct SampleReader<R> {
    input: R,
    line: u64,
    /// For each of [`COLUMNS`], the field that has it.
    place: [Option<usize>; COLUMNS.len()],
    fields: usize,
    before: Option<u64>,
    failed: bool,
}

impl<R: BufRead> SampleReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// If there is none or columns are missing; the error names them all.
    pub fn new(input: R) -> Result<Self, CsvError> {
        let mut reader = Self {
            input,
            line: 0,
            place: [None; COLUMNS.len()],
            fields: 0,
            before: None,
            failed: false,
        };
        let text = reader.next_line()?.ok_or(CsvError::Empty)?;
        let line = reader.line;
        for (i, name) in text.split(',').enumerate() {
            reader.fields = i + 1;
            let known = COLUMNS.iter().position(|c| c.name == name.trim());
            if let Some(index) = known
                && reader.place[index].replace(i).is_some()
            {
                return Err(CsvError::TwoColumns { line, column: COLUMNS[index].name });
            }
        }
        let missing: Vec<&str> = (COLUMNS.iter().zip(reader.place))
            .filter(|(column, place)| place.is_none() && column.name != "best_mode")
            .map(|(column, _)| column.name)
            .collect();
        if missing.is_empty() {
            Ok(reader)
        } else {
            Err(CsvError::MissingColumns { line, missing: missing.join(", ") })
        }
    }

    /// The next line that is neither empty nor a comment.
    fn next_line(&mut self) -> Result<Option<String>, CsvError> {
        loop {
            let mut bytes = Vec::new();
            let line = self.line + 1;
            let read = |error| CsvError::Read { line, error };
            let mut limited = io::Read::take(&mut self.input, MOST_LINE);
            if limited.read_until(b'\n', &mut bytes).map_err(read)? == 0 {
                return Ok(None);
            }
            self.line = line;
            if bytes.len() as u64 == MOST_LINE {
                let text = "the line is longer than 64 KiB: not a file of samples";
                return Err(read(io::Error::new(io::ErrorKind::InvalidData, text)));
            }
            let text = String::from_utf8(bytes).map_err(|_| {
                read(io::Error::new(io::ErrorKind::InvalidData, "not UTF-8: not a file of samples"))
            })?;
            let text = text.trim();
            if !text.is_empty() && !text.starts_with('#') {
                return Ok(Some(text.to_owned()));
            }
        }
    }

    fn row(&mut self, text: &str) -> Result<Row, CsvError> {
        let fields: Vec<&str> = text.split(',').map(str::trim).collect();
        let line = self.line;
        if fields.len() != self.fields {
            return Err(CsvError::Fields { line, found: fields.len(), expected: self.fields });
        }
        let place = self.place;
        let text = |index: usize| -> Option<&str> {
            let field = fields.get(place[index]?)?;
            (!field.is_empty()).then_some(*field)
        };
        let wrong = |index: usize, what: String| {
            let column = COLUMNS[index].name;
            CsvError::Field { line, column, what }
        };
        let counter = |index: usize| -> Result<Option<u64>, CsvError> {
            let Some(text) = text(index) else { return Ok(None) };
            number(text).map(Some).map_err(|what| wrong(index, what))
        };
        let must = |index: usize| -> Result<u64, CsvError> {
            counter(index)?.ok_or_else(|| wrong(index, "is empty".to_owned()))
        };
        let mode = |index: usize| -> Result<Option<Mode>, CsvError> {
            text(index).map(|t| t.parse().map_err(|what| wrong(index, what))).transpose()
        };
        let sample = Sample {
            time_ns: must(0)?,
            duration_ns: must(1)?,
            busy_ns: must(2)?,
            instructions: must(3)?,
            guest_cycles: must(4)?,
            host_kernel_cycles: must(5)?,
            host_user_cycles: must(6)?,
            walk_cycles: counter(7)?,
            guest_page_faults: counter(8)?,
            tlb_misses: counter(9)?,
            vm_exits: counter(10)?,
            mode: mode(MODE)?.ok_or_else(|| wrong(MODE, "is empty".to_owned()))?,
        };
        if let Some(before) = self.before
            && sample.time_ns <= before
        {
            return Err(CsvError::Backwards { line, now: sample.time_ns, before });
        }
        self.before = Some(sample.time_ns);
        Ok(Row { sample, best_mode: mode(BEST)?, line })
    }
}

/// A whole number, or what is wrong with the text.
fn number(text: &str) -> Result<u64, String> {
    if let Ok(value) = text.parse::<u64>()
        && !text.starts_with('+')
    {
        return Ok(value);
    }
    Err(match text.parse::<f64>() {
        Ok(v) if v.is_nan() => format!("`{text}` is not a number"),
        Ok(v) if v < 0.0 => format!("`{text}` is negative"),
        Ok(_) => format!("`{text}` is not a whole number below 2^64"),
        Err(_) => format!("`{text}` is not a number"),
    })
}

impl<R: BufRead> Iterator for SampleReader<R> {
    type Item = Result<Row, CsvError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let row = match self.next_line() {
            Ok(None) => return None,
            Ok(Some(text)) => self.row(&text),
            Err(error) => Err(error),
        };
        self.failed = row.is_err();
        Some(row)
    }
}

/// Writes samples.
#[derive(Debug)]
pub struct SampleWriter<W> {
    output: W,
}

impl<W: Write> SampleWriter<W> {
    /// Writes comments, which say where the samples come from, and the header.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn new(mut output: W, comments: &[String]) -> io::Result<Self> {
        for comment in comments.iter().flat_map(|c| c.lines()) {
            writeln!(output, "# {comment}")?;
        }
        writeln!(output, "{}", header())?;
        Ok(Self { output })
    }

    /// The same with a column `best_mode`, for [`SampleWriter::write_labelled`].
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn labelled(mut output: W, comments: &[String]) -> io::Result<Self> {
        for comment in comments.iter().flat_map(|c| c.lines()) {
            writeln!(output, "# {comment}")?;
        }
        writeln!(output, "{},best_mode", header())?;
        Ok(Self { output })
    }

    /// Writes a sample and hands it to the system, so that a kill loses nothing.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&mut self, sample: &Sample) -> io::Result<()> {
        self.line(sample, "")
    }

    /// Writes a sample with the mode that would have been best.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_labelled(&mut self, sample: &Sample, best: Mode) -> io::Result<()> {
        self.line(sample, &format!(",{best}"))
    }

    fn line(&mut self, sample: &Sample, end: &str) -> io::Result<()> {
        let s = sample;
        let times = [s.time_ns, s.duration_ns, s.busy_ns, s.instructions];
        let cycles = [s.guest_cycles, s.host_kernel_cycles, s.host_user_cycles];
        let mut line = String::new();
        for value in times.into_iter().chain(cycles) {
            line += &format!("{value},");
        }
        for counter in [s.walk_cycles, s.guest_page_faults, s.tlb_misses, s.vm_exits] {
            line += &counter.map_or_else(|| ",".to_owned(), |value| format!("{value},"));
        }
        writeln!(self.output, "{line}{}{end}", s.mode)?;
        self.output.flush()
    }
}
