//! Memory traces of Ramulator, which many simulators of courses read, too.
//!
//! The README of Ramulator 1 (memory trace driven): a line is a hexadecimal address and `R` or `W`,
//! `0x12345680 R`; the traces of courses leave `0x` out. Ramulator 2 has `LD` or `ST` and an address,
//! `LD 0x12345680`, decimal without `0x` (`src/frontend/impl/memory_trace/loadstore_trace.cpp`). Lines
//! with `#` are comments here. CPU traces, of numbers alone, are another format.
//!
//! A trace has neither fetches nor addresses of instructions nor sizes: an access is taken as one byte.

use crate::formats::Definition;
use crate::lines::{Line, Lines, blanks, head_lines, hex};
use nestwalk_types::{AccessKind, BatchBuilder, Gva, SourceInfo, VcpuId};

pub(crate) const FORMAT: Definition = Definition::of_lines::<Ramulator>(
    "ramulator",
    "memory traces of Ramulator 1 (0x1000 R) and 2 (LD 0x1000)",
    matches,
);

const V: VcpuId = VcpuId(0);

/// Kind and address of a line.
#[inline(always)]
fn record(line: &[u8]) -> Option<(AccessKind, u64)> {
    match line {
        [b'L', b'D', rest @ ..] => Some((AccessKind::Load, alone(blanks(rest)?)?)),
        [b'S', b'T', rest @ ..] => Some((AccessKind::Store, alone(blanks(rest)?)?)),
        _ => {
            let (address, rest) = hex(line)?;
            match blanks(rest)? {
                [b'R'] => Some((AccessKind::Load, address)),
                [b'W'] => Some((AccessKind::Store, address)),
                _ => None,
            }
        }
    }
}

/// The address that `text` is, decimal unless it begins with `0x`.
#[inline(always)]
fn alone(text: &[u8]) -> Option<u64> {
    if let [b'0', b'x' | b'X', ..] = text {
        return hex(text).filter(|(_, rest)| rest.is_empty()).map(|(address, _)| address);
    }
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
    let add = |n: u64, byte: &u8| n.checked_mul(10)?.checked_add(digit(byte)?);
    if text.is_empty() { None } else { text.iter().try_fold(0, add) }
}

/// The decoder's state.
#[derive(Default)]
struct Ramulator;

impl Lines for Ramulator {
    const EXAMPLE: &'static str = "0x12345680 R";
    const WRITER: &'static str = "a tracer for Ramulator (`0x12345680 R` or `LD 0x12345680`)";

    #[inline(always)]
    fn line(&mut self, line: &[u8], out: &mut BatchBuilder) -> Line {
        let Some((kind, address)) = record(line) else {
            return if line.is_empty() || line[0] == b'#' { Line::Comment } else { Line::Other };
        };
        out.access(V, Gva::new(0), Gva::new(address), 1, kind, 0);
        Line::Record
    }

    fn info(&self) -> SourceInfo {
        SourceInfo {
            description: "memory trace of Ramulator, one process".into(),
            knows_lines: true,
            knows_pc: false,
            has_fetches: false,
            approximations: vec![
                "Ramulator's memory traces hold data accesses alone, without sizes: fetches and the \
                 number of instructions are not known, so there are no rates per instruction; an \
                 access that crosses into a second page is counted once; addresses are those of the \
                 tracer, physical ones if it was behind the MMU"
                    .into(),
            ],
            ..SourceInfo::default()
        }
    }
}

/// Whether these bytes, the start of a file, are lines of the format and comments alone.
fn matches(head: &[u8]) -> bool {
    let mut records = 0;
    let all = head_lines(head).all(|line| {
        let found = record(line);
        records += usize::from(found.is_some());
        found.is_some() || line[0] == b'#'
    });
    all && records > 0
}
