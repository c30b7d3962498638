//! Page tables that come with a drmemtrace: `v2p.textproto`, and the markers of physical addresses.
//!
//! The file is text in protocol buffers' text format, as published data-centre traces have it and
//! `reader/v2p_reader.cpp` reads it: groups of mappings with a page size each.
//!
//! ```text
//! address_mapping_group {
//!   page_size: 2097152
//!   address_mapping {
//!     virtual_address: 281464337858560
//!     physical_address: 10485760
//!   }
//! }
//! ```
//!
//! Numbers are decimal or hexadecimal (`0x`); a virtual address that is missing is 0; what is named
//! otherwise is skipped. It holds for all processes of the trace, as in the tracer's own simulators.

use super::merge::Drmemtrace;
use super::record::Head;
use crate::page_tables::{Listed, PageTables};
use nestwalk_types::{Batch, PageSize, Source, SourceError};
use std::path::{Path, PathBuf};

/// Whether a text is one of mappings.
pub(crate) fn is_v2p(head: &[u8]) -> bool {
    let mut tokens = tokens(head).map(|t| t.text);
    tokens.next() == Some(b"address_mapping_group")
}

/// A word, a number or a brace, and the line that it is in.
#[derive(Clone, Copy)]
struct Token<'a> {
    text: &'a [u8],
    line: u64,
}

/// What comments, blanks and the marks between fields leave.
fn tokens(text: &[u8]) -> impl Iterator<Item = Token<'_>> {
    let lines = text.split(|b| *b == b'\n').zip(1..);
    lines.flat_map(|(line, number)| {
        let line = line.split(|b| *b == b'#').next().unwrap_or_default();
        let blank = |b: &u8| b.is_ascii_whitespace() || b":,;".contains(b);
        let words = line.split(blank).filter(|w| !w.is_empty());
        words.flat_map(split_braces).map(move |text| Token { text, line: number })
    })
}

/// A word with braces on it, apart.
fn split_braces(word: &[u8]) -> impl Iterator<Item = &[u8]> {
    word.chunk_by(|a, b| !b"{}".contains(a) && !b"{}".contains(b))
}

fn number(token: Token<'_>) -> Result<u64, String> {
    let text = std::str::from_utf8(token.text).unwrap_or_default();
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let value = match digits {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    value.map_err(|_| {
        let shown = String::from_utf8_lossy(token.text);
        format!("line {}: `{}` is no number", token.line, shown.escape_debug())
    })
}

/// The mappings of a text.
pub(crate) fn parse(text: &[u8]) -> Result<Vec<Listed>, String> {
    let mut found = Vec::new();
    let mut size = None;
    // The mapping that is open: its line, and the addresses seen.
    let mut open: Option<(u64, u64, Option<u64>)> = None;
    let mut depth = 0_usize;
    let mut all = tokens(text);
    let mut last = 1;
    while let Some(token) = all.next() {
        last = token.line;
        let mut value = || {
            let missing = || format!("line {}: ends where a number must be", token.line);
            all.next().ok_or_else(missing).and_then(number)
        };
        match token.text {
            b"address_mapping" => open = Some((token.line, 0, None)),
            b"page_size" => {
                let bytes = value()?;
                let sizes = [PageSize::SIZE_4K, PageSize::SIZE_2M, PageSize::SIZE_1G];
                size = Some(sizes.into_iter().find(|s| s.bytes() == bytes).ok_or_else(|| {
                    let line = token.line;
                    format!("line {line}: pages of {bytes} bytes; there are 4096, 2 MiB and 1 GiB")
                })?);
            }
            b"virtual_address" => {
                let value = value()?;
                open.iter_mut().for_each(|o| o.1 = value);
            }
            b"physical_address" => {
                let value = value()?;
                open.iter_mut().for_each(|o| o.2 = Some(value));
            }
            b"{" => depth += 1,
            b"}" => {
                let line = token.line;
                depth = depth.checked_sub(1).ok_or(format!("line {line}: a `}}` too many"))?;
                if let Some((line, gva, gpa)) = open.take() {
                    let gpa =
                        gpa.ok_or(format!("line {line}: a mapping without physical_address"))?;
                    let size =
                        size.ok_or(format!("line {line}: no page_size before the mapping"))?;
                    // Addresses of AArch64 have 48 bits without a sign.
                    let gva = if gva >> 48 == 0 { (gva << 16) as i64 >> 16 } else { gva as i64 };
                    found.push(Listed { gva: gva as u64, gpa, size, line });
                }
            }
            _ => {}
        }
    }
    if depth > 0 {
        return Err(format!("line {last}: ends within a group: the file was cut off"));
    }
    Ok(found)
}

/// The tables that the markers of a trace say: where each page was first.
///
/// # Errors
/// The trace is damaged, or has no such markers.
pub(crate) fn of_markers(path: &Path) -> Result<PageTables, SourceError> {
    let mut source =
        if path.is_dir() { Drmemtrace::open_directory(path, 1)? } else { Drmemtrace::open(path)? };
    source.collect_pages();
    let mut batch = Batch::default();
    while source.next_batch(&mut batch)? {}
    let name = source.info().name;
    let found = source.pages();
    let (mut pages, mut changed, mut strange) = (Vec::new(), 0_u64, 0_u64);
    let bytes = found.page_bytes;
    let (size, pieces) = match bytes {
        0x20_0000 => (PageSize::SIZE_2M, 1),
        0x4000_0000 => (PageSize::SIZE_1G, 1),
        // Others, as of 16 or 64 KiB, are several small ones.
        _ => (PageSize::SIZE_4K, (bytes >> 12).max(1)),
    };
    for (gva, gpas) in &found.pages {
        changed += u64::from(gpas.1);
        if !matches!(*gva as i64 >> 47, 0 | -1) || gpas.0 >> 52 != 0 {
            strange += 1;
            continue;
        }
        pages.extend((0..pieces).map(|i| {
            let (gva, gpa) = (gva + (i << 12), gpas.0 + (i << 12));
            Listed { gva, gpa, size, line: 0 }
        }));
    }
    let mut notes = Vec::new();
    if changed > 0 {
        notes.push(format!(
            "{changed} times a page of the trace was moved in physical memory; each stays where it was \
             first"
        ));
    }
    if strange > 0 {
        notes.push(format!("{strange} pages of the trace have addresses that no tables can hold"));
    }
    if pages.is_empty() {
        let message =
            "no page tables: no pair of markers with a virtual and a physical address".into();
        return Err(SourceError { source: name, message });
    }
    Ok(PageTables::listed(name, pages, false, notes))
}

/// The page tables that come with a drmemtrace: `v2p.textproto` beside it, or the trace itself if its
/// markers say where its pages are. As `--page-tables` takes them; `None` if there are none.
pub fn tables_of_trace(path: &Path) -> Option<PathBuf> {
    let heads = super::files::heads(path)?;
    if let Some(file) = super::files::physical(path) {
        return Some(file);
    }
    heads.iter().any(|h: &Head| h.physical).then(|| path.to_owned())
}
