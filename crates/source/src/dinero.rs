//! Dinero's `din` format, the common one of cache simulators and courses, and its extended form.
//!
//! A line is a label and a hexadecimal address, `2 401000`; what follows is a comment (`tracein.c` of
//! Dinero IV). Labels: 0 a read, 1 a write, 2 an instruction fetch, 3 an access of unknown type, which
//! Dinero treats as a read and so does this, 4 a flush of the cache, which accesses nothing. The
//! extended form (`xdinfmt.c`) has letters and a size, hexadecimal as well, `r 1000 4`: `r`, `w`, `i`,
//! `m` for an access of unknown type, and `c` and `v`, a copy-back and an invalidation, which access
//! nothing.
//!
//! The plain form has no sizes: accesses are taken as one byte. Data accesses that follow a fetch are
//! taken to be of that instruction. Of a trace without fetches neither instructions nor their number
//! are known.

use crate::formats::Definition;
use crate::lines::{Line, Lines, blanks, ends, head_lines, hex};
use nestwalk_types::{AccessKind, BatchBuilder, Gva, SourceInfo, VcpuId};

pub(crate) const FORMAT: Definition =
    Definition::of_lines::<Dinero>("dinero", "Dinero's din text, plain or extended", matches);

const V: VcpuId = VcpuId(0);
/// Largest access that is believed, bytes.
const LARGEST: u64 = 1 << 16;

/// What a line asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Access(AccessKind),
    /// Of unknown type.
    Unknown,
    /// Nothing that a TLB is looked up for.
    Nothing,
}

/// Kind, address, and size if there is one, of a line.
#[inline(always)]
fn record(line: &[u8]) -> Option<(What, u64, Option<u32>)> {
    let (&label, rest) = line.split_first()?;
    let (what, extended) = match label {
        b'0' => (What::Access(AccessKind::Load), false),
        b'1' => (What::Access(AccessKind::Store), false),
        b'2' => (What::Access(AccessKind::Fetch), false),
        b'3' => (What::Unknown, false),
        b'4' => (What::Nothing, false),
        b'r' | b'R' => (What::Access(AccessKind::Load), true),
        b'w' | b'W' => (What::Access(AccessKind::Store), true),
        b'i' | b'I' => (What::Access(AccessKind::Fetch), true),
        b'm' | b'M' => (What::Unknown, true),
        b'c' | b'C' | b'v' | b'V' => (What::Nothing, true),
        _ => return None,
    };
    let (address, rest) = hex(blanks(rest)?)?;
    if !ends(rest) {
        return None;
    }
    if !extended {
        return Some((what, address, None));
    }
    let (bytes, rest) = hex(blanks(rest)?)?;
    (ends(rest) && bytes <= LARGEST).then_some((what, address, Some(bytes as u32)))
}

/// The decoder's state.
#[derive(Default)]
struct Dinero {
    /// Address of the latest fetch.
    pc: Gva,
    fetches: u64,
    unsized_records: u64,
    unknown: u64,
    nothing: u64,
}

impl Lines for Dinero {
    const EXAMPLE: &'static str = "0 600000";
    const WRITER: &'static str = "a tracer for Dinero (labels 0, 1, 2 and a hexadecimal address)";

    #[inline(always)]
    fn line(&mut self, line: &[u8], out: &mut BatchBuilder) -> Line {
        let Some((what, address, bytes)) = record(line) else {
            return if line.is_empty() || line[0] == b'#' { Line::Comment } else { Line::Other };
        };
        let kind = match what {
            What::Access(kind) => kind,
            What::Unknown => {
                self.unknown += 1;
                AccessKind::Load
            }
            What::Nothing => {
                self.nothing += 1;
                return Line::Record;
            }
        };
        let gva = Gva::new(address);
        self.unsized_records += u64::from(bytes.is_none());
        let bytes = bytes.unwrap_or(1).max(1);
        if kind == AccessKind::Fetch {
            self.fetches += 1;
            self.pc = gva;
            out.access(V, gva, gva, bytes, kind, 1);
        } else {
            out.access(V, self.pc, gva, bytes, kind, 0);
        }
        Line::Record
    }

    fn info(&self) -> SourceInfo {
        let mut approximations = Vec::new();
        if self.unsized_records > 0 {
            approximations.push(
                "din records hold no sizes: accesses that cross into a second page are counted once"
                    .to_owned(),
            );
        }
        if self.fetches == 0 {
            approximations.push(
                "the trace has no fetches, so that instructions and their number are not known"
                    .to_owned(),
            );
        }
        if self.unknown > 0 {
            approximations.push(format!(
                "{} accesses of unknown type are taken as loads, as Dinero does",
                self.unknown
            ));
        }
        if self.nothing > 0 {
            approximations.push(format!(
                "{} flushes, copy-backs and invalidations of the cache were left out",
                self.nothing
            ));
        }
        SourceInfo {
            description: "Dinero trace, one process".into(),
            knows_lines: true,
            knows_pc: self.fetches > 0,
            has_fetches: self.fetches > 0,
            approximations,
            ..SourceInfo::default()
        }
    }
}

/// Whether these bytes, the start of a file, look like a Dinero trace: every line is a record of one of
/// the two forms or a comment.
fn matches(head: &[u8]) -> bool {
    let mut records = 0;
    let all = head_lines(head).all(|line| {
        let found = record(line);
        records += usize::from(found.is_some());
        found.is_some() || line[0] == b'#'
    });
    all && records > 0
}
